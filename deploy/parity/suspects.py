"""Which difference explains the gap between a log and the simulation: suspects, the first explains most.

What the log itself shows comes first (deploy/parity/symptoms.py); the rest is found by putting differences into the
simulation one at a time (deploy/parity/ablation.py). docs/suspects.md tells what can be told apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.log.recorder import RunLog
from deploy.parity import symptoms
from deploy.parity.ablation import Difference, Lab, Wiring, best_on, changed, gain_of
from deploy.parity.motion import acknowledged
from deploy.parity.report import Cause, LayerName, Suspect
from deploy.robot.frozen import CHANNELS
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality

# A difference is named if it takes away this share of the misfit, by so many standard errors over the windows.
SHARE_MIN, SURE_MIN = 0.06, 3.0
# And if it is of a size that matters; what is smaller is put into the simulation without a word.
GAIN_MIN = math.log(1.15)
DELAY_MIN_S, DELAY_OUTSIDE_S = 0.012, 0.008
MASS_MIN = 0.05
STICKY_MIN_NM, STICKY_MIN = 0.4, 0.01
RANGE_RAD, DISTINCT_RAD = 0.1, 0.02
PLAY_MIN_RAD = 0.02
SPRING_MAX = 3.0
OFFSET_MIN_RAD = 0.03
# Fewer windows than this tell nothing.
WINDOWS_MIN = 4
# Joints that are tried one by one: those that are furthest off.
JOINTS_TRIED, JOINTS_CLEAR = 6, 3
# Where one thing explains more than this, fewer joints are tried.
CLEAR = 0.5
# All is tried on so many windows. So many of what looks best there, and about as good as the best, have their size
# searched on so many, and are judged on all.
COARSE, REFINED, NEAR_BEST, SEARCHED = 8, 3, 0.4, 12
# Rounds: each has in it what the ones before found. So many are named at most.
TURNS_MAX, FOUND_MAX = 4, 2
LAYER = {
    Cause.DELAY: LayerName.ACTION_PATH,
    Cause.JOINTS_SWAPPED: LayerName.ACTION_PATH,
    Cause.JOINT_INVERTED: LayerName.ACTION_PATH,
    Cause.ZERO_OFFSET: LayerName.SENSING,
    Cause.IMU_TURNED: LayerName.SENSING,
    Cause.GAINS: LayerName.ACTUATORS,
    Cause.STICKY: LayerName.ACTUATORS,
    Cause.LOOSE: LayerName.ACTUATORS,
    Cause.MASS: LayerName.BODY,
}


@dataclass(frozen=True, kw_only=True)
class Idea:
    """One kind of difference at one place, of any size.

    Attributes:
        cause: of the suspect that it makes.
        places: likewise.
        unit: of the suspect's value.
        put: the difference of a size; size 0 is none.
        sizes: to try first.
        value: a size as the suspect tells it.
        matters: whether a size is worth a word.
        searched: sizes between the first ones make sense.
    """

    cause: Cause
    places: tuple[str, ...] = ()
    unit: str = ""
    put: Callable[[float], Difference]
    sizes: tuple[float, ...]
    value: Callable[[float], float | None] = lambda size: size
    matters: Callable[[float], bool] = lambda size: True
    searched: bool = True


@dataclass(frozen=True, kw_only=True)
class Found:
    """An idea at its best size."""

    idea: Idea
    size: float
    share: float
    sure: float

    @property
    def named(self) -> bool:
        """Whether it is worth a word."""
        return self.share >= SHARE_MIN and self.sure >= SURE_MIN and self.idea.matters(self.size)

    @property
    def small(self) -> bool:
        """Whether it explains much, and is not worth a word."""
        return self.share >= 2 * SHARE_MIN and self.sure >= SURE_MIN and not self.idea.matters(self.size)

    @property
    def difference(self) -> Difference:
        """To be put into the simulation."""
        return self.idea.put(self.size)

    def suspect(self, part: float) -> Suspect:
        """As the report has it; `part` is the share of the whole misfit that the search was about."""
        idea = self.idea
        return Suspect(
            cause=idea.cause,
            layer=LAYER[idea.cause],
            places=idea.places,
            value=idea.value(self.size),
            unit=idea.unit,
            explains=min(1.0, part * self.share),
        )


def _joint_idea(
    lab: Lab, base: Difference, cause: Cause, whats: tuple[str, ...], at: int | None, unit: str, **more: object
) -> Idea:
    """A property of one joint, or of all, scaled by exp(size), added to, or set where it is a spring."""

    def put(size: float) -> Difference:
        joints = base.joints
        for what in whats:
            if what.endswith("_scale"):
                joints = changed(joints, lab.spec, what, at, lambda v: v * math.exp(size))
            elif what == "stiffness_nm_rad":
                joints = changed(joints, lab.spec, what, at, lambda v: 1.0 / ((1.0 / v if v else 0.0) + size))
            elif what == "zero_offset_rad":
                joints = changed(joints, lab.spec, what, at, lambda v: v + size)
            else:
                joints = changed(joints, lab.spec, what, at, lambda v: max(0.0, v + size))
        return dataclasses.replace(base, joints=joints)

    places = () if at is None else (lab.spec.joint_names[at],)
    return Idea(cause=cause, places=places, unit=unit, put=put, **more)  # type: ignore[arg-type]


def _gains(lab: Lab, base: Difference, at: int | None, *, damping: bool = True) -> Idea:
    return _joint_idea(
        lab,
        base,
        Cause.GAINS,
        ("kp_scale", "kd_scale") if damping else ("kp_scale",),
        at,
        "factor",
        sizes=(math.log(0.7), math.log(1.35)),
        value=math.exp,
        matters=lambda size: abs(size) >= GAIN_MIN,
    )


def _everywhere(lab: Lab, base: Difference, *, free: bool, delay_matters: Callable[[float], bool]) -> list[Idea]:
    """What is of the whole robot."""
    assumed = lab.simulation.action_latency_s + lab.simulation.observation_latency_s + base.extra_s

    def extra_s(size: float) -> float:
        """No delay in all is the least."""
        return base.extra_s + max(size, -assumed)

    delay = Idea(
        cause=Cause.DELAY,
        unit="s",
        put=lambda size: dataclasses.replace(base, extra_s=extra_s(size)),
        sizes=tuple(v for v in (-0.04, -0.02, -0.01, 0.01, 0.02, 0.04) if v > -assumed - 0.001),
        value=extra_s,
        matters=lambda size: delay_matters(extra_s(size)),
    )
    ideas = [delay, _gains(lab, base, None), _gains(lab, base, None, damping=False)]
    if free:
        plant = lab.simulation.plant
        torso = plant.model.body(plant.built.torso_body).name
        mass = plant.built.mass_kg
        ideas.append(
            Idea(
                cause=Cause.MASS,
                places=(torso,),
                unit="kg",
                put=lambda size: dataclasses.replace(base, payload_kg=base.payload_kg + size * mass),
                sizes=(0.12,),
                value=lambda size: base.payload_kg + size * mass,
                matters=lambda size: abs(size) >= MASS_MIN,
            )
        )
        # about the other axes it shows at once
        ideas.append(
            Idea(
                cause=Cause.IMU_TURNED,
                places=("z",),
                unit="rad",
                put=lambda size: dataclasses.replace(base, imu_z_rad=size),
                sizes=(0.5 * math.pi, -0.5 * math.pi, math.pi),
                searched=False,
            )
        )
    return ideas


def _zero(lab: Lab, base: Difference, at: int, drift_rad: float) -> Idea:
    """A zero that only the measurements have: then the simulation goes from them to where the joint really was."""
    wiring = base.wiring or Wiring.plain(len(lab.spec.joints))

    def put(size: float) -> Difference:
        zero = wiring.zero_rad.copy()
        zero[at] += size
        return dataclasses.replace(base, wiring=dataclasses.replace(wiring, zero_rad=zero))

    return Idea(
        cause=Cause.ZERO_OFFSET,
        places=(lab.spec.joint_names[at],),
        unit="rad",
        put=put,
        sizes=(-1.5 * drift_rad,),
        matters=lambda size: abs(size) >= OFFSET_MIN_RAD,
    )


def _of_joint(lab: Lab, base: Difference, at: int, drift_rad: float) -> list[Idea]:
    """What may be of one joint, whose simulated position drifts off by so much."""
    joint = lab.log.spec.robot.joints[at]
    least = STICKY_MIN_NM + STICKY_MIN * joint.torque_limit_nm
    friction = 0.03 * joint.torque_limit_nm
    sticky = {"sizes": (friction,), "matters": lambda size: size >= least}
    soft = 1.0 / joint.kp if joint.kp > 0 else 0.01
    return [
        _gains(lab, base, at),
        _joint_idea(lab, base, Cause.STICKY, ("friction_add_nm",), at, "N m", **sticky),
        _joint_idea(lab, base, Cause.STICKY, ("stiction_nm",), at, "N m", **sticky),
        _joint_idea(
            lab,
            base,
            Cause.LOOSE,
            ("play_rad",),
            at,
            "rad",
            sizes=(0.03,),
            matters=lambda size: size >= PLAY_MIN_RAD,
        ),
        _joint_idea(
            lab,
            base,
            Cause.LOOSE,
            ("stiffness_nm_rad",),
            at,
            "N m/rad",
            sizes=(soft,),
            value=lambda size: 1.0 / size if size > 0 else None,
            matters=lambda size: size >= soft / SPRING_MAX,
        ),
        _joint_idea(
            lab,
            base,
            Cause.ZERO_OFFSET,
            ("zero_offset_rad",),
            at,
            "rad",
            sizes=(-0.05, 0.05),
            matters=lambda size: abs(size) >= OFFSET_MIN_RAD,
        ),
        _zero(lab, base, at, drift_rad),
    ]


def _wirings(lab: Lab, base: Difference) -> list[Idea]:
    """Joints that may be swapped or inverted: on the way of the targets, of the measurements, or on both.

    Only what the log allows is tried: positions within the joints' ranges, and targets that fit the positions no
    worse than now. On both ways at once that says nothing: then two joints of one limb, or of its mirror image.
    """
    robot, log = lab.spec, lab.log
    n, names = len(robot.joints), robot.joint_names
    rows = np.flatnonzero(log.run & np.isfinite(log.sent).all(axis=1) & np.isfinite(log.joint_position).all(axis=1))
    low, high = (np.asarray(robot.column(c)) for c in ("lower_rad", "upper_rad"))
    mirrored = {
        name: name.replace("left", "right") if "left" in name else name.replace("right", "left") for name in names
    }
    limb = lab.limbs()
    plain = Wiring.plain(n)
    moves = np.ptp(log.sent[rows], axis=0) > DISTINCT_RAD if rows.size else np.zeros(n, dtype=bool)

    def judged(wiring: Wiring) -> tuple[float, float, float]:
        """(how far targets are from positions, share of ticks out of range, how far all is from the log as it is)."""
        fixed = wiring.corrected(log)
        position, sent = fixed.joint_position[rows], fixed.sent[rows]
        apart = np.sqrt(np.mean((sent - position) ** 2, axis=0)).sum()
        out = np.mean((position < low - RANGE_RAD) | (position > high + RANGE_RAD), axis=0).max()
        moved = np.abs(position - log.joint_position[rows]).mean(axis=0).max()
        return float(apart), float(out), float(max(moved, np.abs(sent - log.sent[rows]).mean(axis=0).max()))

    apart, out, _ = judged(plain)
    ideas = []

    def consider(cause: Cause, at: tuple[int, ...], change: dict[str, np.ndarray], *, near: bool) -> None:
        both = len(change) > 1
        fixed = dataclasses.replace(plain, **change)
        got = judged(fixed)
        if got[1] > out + 0.05 or got[2] < DISTINCT_RAD or (both and not near) or (not both and got[0] > 0.97 * apart):
            return
        ideas.append(
            Idea(
                cause=cause,
                places=tuple(names[j] for j in at),
                put=lambda size: dataclasses.replace(base, wiring=fixed),
                sizes=(1.0,),
                value=lambda size: None,
                searched=False,
            )
        )

    for a in range(n):
        flip = np.where(np.arange(n) == a, -1.0, 1.0)
        for change in ({"told_factor": flip}, {"sent_factor": flip}, {"told_factor": flip, "sent_factor": flip}):
            consider(Cause.JOINT_INVERTED, (a,), change, near=True)
        for b in range(a + 1, n):
            order = np.arange(n)
            order[[a, b]] = b, a
            # where one of both stands still, no motion tells that both its ways are the other's
            near = bool(moves[a] and moves[b]) and (limb[a] == limb[b] or mirrored[names[a]] == names[b])
            for change in ({"told": order}, {"sent": order}, {"told": order, "sent": order}):
                consider(Cause.JOINTS_SWAPPED, (a, b), change, near=near)
    return ideas


class Search:
    """Looks for the difference that explains most.

    Args:
        lab: the simulation.
        base: what is in it already.
    """

    def __init__(self, lab: Lab, base: Difference) -> None:
        self.lab, self.base = lab, base
        self.misfit = lab.misfit_of(base)
        self.drift_rad = lab.drift_rad.copy()

    def coarse(self, ideas: Iterable[Idea]) -> list[Found]:
        """Every idea at its first sizes, on a part of the windows; the best first."""
        part = self.lab.some(COARSE)
        found = []
        for idea in ideas:
            best = Found(idea=idea, size=0.0, share=-math.inf, sure=0.0)
            for size in idea.sizes:
                got = gain_of(self.misfit[part], self.lab.misfit_of(idea.put(size), part))
                if got[0] > best.share:
                    best = Found(idea=idea, size=size, share=got[0], sure=got[1])
            found.append(best)
        return sorted(found, key=lambda f: -f.share)

    def refine(self, found: Found) -> Found:
        """With the size searched on some windows, then on all of them."""
        part = self.lab.some(SEARCHED)

        def cost(size: float) -> float:
            return float(self.lab.misfit_of(found.idea.put(size), part).sum())

        size = found.size
        if found.idea.searched:
            size, _ = best_on(cost, (0.5 * size, size, 1.6 * size), float(self.misfit[part].sum()))
        share, sure = gain_of(self.misfit, self.lab.misfit_of(found.idea.put(size))) if size else (0.0, 0.0)
        return dataclasses.replace(found, size=size, share=share, sure=sure)

    def worst_joints(self) -> list[int]:
        """Joints, those furthest off first."""
        n = len(self.lab.spec.joints)
        off = self.misfit[:, :n].mean(axis=0) + self.misfit[:, n : 2 * n].mean(axis=0)
        return np.argsort(-off)[:JOINTS_TRIED].tolist()


def suspects(
    log: RunLog, robot: str | Path, reality: Reality, *, hang: bool = False, most: int = FOUND_MAX
) -> tuple[Suspect, ...]:
    """What may explain the gap between a log and the simulation, the first explains most; empty for a clean run.

    Args:
        log: the run; its joints are in the robot's order.
        robot: name or folder of the model.
        reality: what the simulation is.
        hang: the robot hung from its base, feet off the floor.
        most: so many are named at most, beside what the log itself shows.
    """
    direct, after, log = _seen(log, Plant(robot), reality, hang=hang)
    lab = Lab(robot, log, reality, hang=hang)
    if len(lab.starts) < WINDOWS_MIN:
        return direct + after
    base = lab.plain
    trained = _assumed_delay(log, reality)
    free = not hang and lab.simulation.plant.built.base_body >= 0

    def delay_matters(extra_s: float) -> bool:
        total = lab.simulation.action_latency_s + lab.simulation.observation_latency_s + extra_s
        if trained is not None and extra_s < 0:
            return total < trained[0] - DELAY_OUTSIDE_S
        return abs(extra_s) >= DELAY_MIN_S

    found: list[Suspect] = []
    whole = 0.0
    for _ in range(TURNS_MAX):
        search = Search(lab, base)
        whole = whole or float(search.misfit.sum())
        ideas = _everywhere(lab, base, free=free, delay_matters=delay_matters)
        # where one loop stamps command and state alike, the log tells of no delay
        tried = search.coarse(i for i in ideas if i.cause is not Cause.DELAY or acknowledged(log))
        lead = [search.refine(tried[0])] if tried[0].share > SHARE_MIN else []
        # what is too small for a word may hide what is not
        if lead and lead[0].small:
            base = lead[0].difference
            continue
        clear = bool(direct or found) or (bool(lead) and lead[0].share > CLEAR)
        if not clear:
            tried += search.coarse(_wirings(lab, base))
            clear = max(f.share for f in tried) > CLEAR
        worst = search.worst_joints()[: JOINTS_CLEAR if clear else JOINTS_TRIED]
        tried += search.coarse(idea for at in worst for idea in _of_joint(lab, base, at, search.drift_rad[at]))
        least = max(0.5 * SHARE_MIN, NEAR_BEST * max(f.share for f in tried))
        rest = sorted((f for f in tried[len(lead) :] if f.share > least), key=lambda f: -f.share)[:REFINED]
        tried = sorted([*lead, *map(search.refine, rest)], key=lambda f: -f.share)
        best = next((f for f in tried if f.named or f.small), None)
        if best is None:
            break
        base = best.difference
        if best.named:
            # a share of the whole misfit, not of what the ones before have left of it
            new = best.suspect(float(search.misfit.sum()) / whole)
            same = [i for i, old in enumerate(found) if (old.cause, old.places) == (new.cause, new.places)]
            if same:  # a little more of what was found: its share counts, its size stays that of the first look
                i = same[0]
                found[i] = dataclasses.replace(found[i], explains=min(1.0, found[i].explains + new.explains))
                continue
            found.append(new)
            if len(found) == most:
                break
    return direct + tuple(found) + after


def _seen(
    log: RunLog, plant: Plant, reality: Reality, *, hang: bool
) -> tuple[tuple[Suspect, ...], tuple[Suspect, ...], RunLog]:
    """(what the log shows, what it shows that may be the effect of something else, the log put right)."""
    carry = symptoms.policy(log)
    stale = tuple(s for s in carry if s.cause is Cause.STALE_CARRY)
    wrong_units, factors = symptoms.units(log)
    log = dataclasses.replace(log, **{column: getattr(log, column) / f for column, f in factors.items()})
    frame, log = symptoms.imu_frame(log, plant)
    still = symptoms.frozen(log, hang=hang)
    slow = symptoms.imu_rate(log, reality, hang=hang) if not any(s.places[0] in CHANNELS for s in still) else ()
    after = symptoms.loop_late(log) + symptoms.guard(log) + tuple(s for s in carry if s not in stale)
    return stale + wrong_units + frame + still + slow, after, log


def _assumed_delay(log: RunLog, reality: Reality) -> tuple[float, float] | None:
    """The range of training's delay, where the reality's delay is no more than the middle of it; else None."""
    spec = log.spec
    sensors, commands = reality.sensors.latency_s, reality.commands.latency_s
    middle = float(np.mean(spec.action_latency_s)), float(np.mean(spec.observation_latency_s))
    if (commands, sensors) != middle:
        return None
    return tuple(a + b for a, b in zip(spec.action_latency_s, spec.observation_latency_s, strict=True))  # type: ignore[return-value]
