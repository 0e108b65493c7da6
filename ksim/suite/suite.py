"""The suite of walking: its parts, what it asks for, and what came out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from ksim.config import Config
from ksim.environment import Environment, make_environment
from ksim.evaluate import BatchPolicy
from ksim.suite import conditions, figures
from ksim.suite.walked import Walked, walk
from robots.margins import STANDS
from toolkit.settings import Bound, Settings


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(Settings):
    """How much of the suite is run.

    Attributes:
        episodes: of 20 s in each of the parts calm, pushes and standing.
        uneven: episodes on uneven ground, without pushes.
        alone: episodes for each thing that is random alone.
        cell: episodes for each cell of the grid of the IMU.
        seed: of all episodes.
        imu_age_s: ages of an IMU's value when it comes [s].
        imu_rate_hz: how often one comes [Hz].
        imu_stiction_nm: breakaway torque of every joint, above its friction [N m].
    """

    episodes: Annotated[int, Bound(1, 100_000, "episodes")] = 512
    uneven: Annotated[int, Bound(0, 100_000, "episodes, 0 to leave it out")] = 128
    alone: Annotated[int, Bound(0, 100_000, "episodes, 0 to leave it out")] = 64
    cell: Annotated[int, Bound(0, 100_000, "episodes, 0 to leave it out")] = 32
    seed: Annotated[int, Bound(0, 2**32 - 1, "a seed")] = 2000
    imu_age_s: Annotated[tuple[float, ...], Bound(0, 1, "seconds")] = (0.0, 0.02, 0.04, 0.06, 0.08)
    imu_rate_hz: Annotated[tuple[float, ...], Bound(1, 1000, "hertz")] = (20.0, 30.0, 50.0)
    imu_stiction_nm: Annotated[tuple[float, ...], Bound(0, 100, "N m")] = (0.0, 0.6, 1.2)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One thing that a policy must show.

    Attributes:
        what: what it is.
        value: its figure; None where it could not be told.
        limit: what it must reach, or stay below.
        least: the limit is the least value, not the greatest.
        unit: of both.
    """

    what: str
    value: float | None
    limit: float
    least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it is so."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.least else self.value <= self.limit


Say = Callable[[str, int, int], None]


def run_suite(config: Config, policy: BatchPolicy, settings: SuiteSettings, say: Say | None = None) -> dict[str, Any]:
    """Run all parts.

    Args:
        config: the task of the policy.
        policy: it.
        settings: how much is run.
        say: called with (part, step, steps).

    Returns:
        The figures of each part, by its name; what `asked` reads and a page shows.
    """

    def run(part: str, task: Config, envs: int, alter: Callable[[Environment], Any] | None = None) -> Walked:
        environment = make_environment(task, envs, "mujoco")
        changed = None if alter is None else alter(environment)
        told = None if say is None else (lambda step, steps: say(part, step, steps))
        return walk(task, policy, environment, seed=settings.seed, alter=changed, progress=told)[0]

    out: dict[str, Any] = {"settings": settings.to_dict(), "task": config.task, "robot": config.robot}
    sizes = dict.fromkeys(conditions.PARTS, settings.episodes) | {"noise": settings.alone}
    groups = np.repeat(list(sizes), list(sizes.values()))
    w = run("commands", conditions.course(config), len(groups), lambda env: conditions.parts(env, groups))
    out["calm"] = _walking(w.only(groups == "calm"))
    for part, force in conditions.PUSHES_N.items():
        pushed = w.only(groups == part)
        out[part] = {**_walking(pushed), "recovery": figures.recovery(pushed, tuple(np.arange(0.0, force + 1, 25.0)))}
    stood = w.only(groups == "standing")
    out["standing"] = {**figures.survival(stood), **figures.standing(stood)}
    if settings.uneven:
        out["uneven"] = _short(run("uneven ground", conditions.uneven(config), settings.uneven))
    if settings.alone:
        out["alone"] = [*_alone(config, settings, run), {"what": "noise", **_short(w.only(groups == "noise"))}]
    if settings.cell and "imu" in config.channels:
        out["imu"] = _imu(config, settings, run)
    return out


def _walking(w: Walked) -> dict[str, Any]:
    return {**figures.survival(w), **figures.tracking(w), **figures.feet(w), **figures.effort(w)}


def _alone(config: Config, settings: SuiteSettings, run: Callable[..., Walked]) -> list[dict[str, Any]]:
    task = conditions.course(config, noise=False)
    names = conditions.conditions_alone(task)
    groups = np.repeat(names, settings.alone)
    w = run("each alone", task, len(groups), lambda env: conditions.alone(env, groups))
    return [{"what": name, **_short(w.only(groups == name))} for name in names]


def _short(w: Walked) -> dict[str, Any]:
    return {**figures.survival(w), **figures.tracking(w)}


def _imu(config: Config, settings: SuiteSettings, run: Callable[..., Walked]) -> dict[str, Any]:
    ages, rates, frictions = settings.imu_age_s, settings.imu_rate_hz, settings.imu_stiction_nm
    task = conditions.imu_channel(conditions.course(config, pushes=False), ages, rates)
    grid = np.asarray([(a, r, s) for r in rates for s in frictions for a in ages])
    every = np.repeat(grid, settings.cell, axis=0)
    w = run("IMU", task, len(every), lambda _: conditions.imu(*every.T))
    cells = []
    for i, (age, rate, stiction) in enumerate(grid):
        part = w.only(np.arange(i * settings.cell, (i + 1) * settings.cell))
        cells.append({"age_s": age, "rate_hz": rate, "stiction_nm": stiction, **_short(part)})
    by_rate = {f"{rate:g}": margin([c for c in cells if c["rate_hz"] == rate], ages) for rate in rates}
    return {"cells": cells, "margin_s": by_rate}


def margin(cells: Sequence[dict[str, Any]], ages: Sequence[float]) -> float:
    """The age up to which survival stays at STANDS, whatever the stiction: linear between the ages that were run.

    It is the greatest age that was run where survival never falls below, and 0 where it does at once.
    """
    worst = [min(c["survival"] for c in cells if c["age_s"] == age) for age in ages]
    if worst[0] < STANDS:
        return 0.0
    for (a, p), (b, q) in itertools.pairwise(zip(ages, worst, strict=True)):
        if q < STANDS:
            return float(a + (b - a) * (p - STANDS) / (p - q))
    return float(ages[-1])


def asked(result: dict[str, Any]) -> list[Asked]:
    """What a policy must show, with what it showed; parts that were left out are not asked for."""
    calm, hard, all_of_them, still = (result[k] for k in ("calm", "pushes_100", "pushes_200", "standing"))
    rows = [
        Asked(what="survival, pushes to 100 N", value=hard["survival"], limit=0.97, least=True),
        Asked(what="survival, pushes to 200 N", value=all_of_them["survival"], limit=0.90, least=True),
        Asked(what="velocity error", value=calm["velocity_rmse_m_s"], limit=0.10, least=False, unit="m/s"),
        Asked(what="yaw rate error", value=calm["yaw_rate_rmse_rad_s"], limit=0.10, least=False, unit="rad/s"),
        Asked(what="swings higher than 4 cm", value=calm["swings_over_4_cm"], limit=0.95, least=True),
        Asked(what="target speed, 99 %, of the no-load speed", value=calm["target_speed_p99"], limit=0.5, least=False),
        Asked(what="standing: episodes without a step", value=still.get("without_a_step"), limit=0.95, least=True),
        Asked(what="standing: drift in 20 s, 95 %", value=still.get("drift_p95_m"), limit=0.05, least=False, unit="m"),
        Asked(what="standing: turn in 20 s, 95 %", value=still.get("turn_p95_deg"), limit=5.0, least=False, unit="deg"),
    ]
    if "uneven" in result:
        ground = result["uneven"]["survival"]
        rows.append(Asked(what="survival on uneven ground", value=ground, limit=STANDS, least=True))
    if result.get("twins"):
        walked = [row["ended"] == "completed" for row in result["twins"]]
        rows.append(
            Asked(what="twins walked through the course", value=sum(walked) / len(walked), limit=0.9, least=True)
        )
    if "imu" in result:
        least = min(result["imu"]["margin_s"].values())
        rows.append(Asked(what="IMU's age that it bears", value=least, limit=0.045, least=True, unit="s"))
    return rows


def quick(settings: SuiteSettings) -> SuiteSettings:
    """A small part of it, for a look."""
    return dataclasses.replace(settings, episodes=64, uneven=16, alone=8, cell=4)
