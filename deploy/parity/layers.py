"""How far a run was from the simulation: the policy's replay, joint errors, delay, and the loop's timing.

Reads a log of `ksim run`, writes report.json and report.html.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.preflight import differences
from deploy.log.recorder import RunLog
from deploy.parity.action_path import safety_counts
from deploy.parity.body import compare
from deploy.parity.delay import fit_delay, joint_lags
from deploy.parity.errors import ParityError
from deploy.parity.motion import Replay, WindowedSimulation, arrived_at_s
from deploy.parity.page import write_html
from deploy.parity.policy import replay_policy
from deploy.parity.timing import loop_timing
from deploy.twin.reality import Commands, Reality, Sensors
from robots.errors import RobotLoadError
from robots.load import load_robot
from robots.rotation import up_in_frame
from robots.spec import RobotSpec
from toolkit.files import atomic_path

HORIZON_S = 0.3


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for "cannot be told"."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (np.floating, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """A comparison: figures for programs, and the series that the page draws.

    Attributes:
        log: the log.
        replay: the windows.
        report: what report.json holds.
    """

    log: RunLog
    replay: Replay
    report: dict[str, Any]


def _in_order(log: RunLog, robot: RobotSpec) -> RunLog:
    """The log with its joints in a robot's order."""
    names = log.spec.robot.joint_names
    if names == robot.joint_names:
        return log
    at = [names.index(name) for name in robot.joint_names]
    spec = log.spec.replace(
        robot=log.spec.robot.replace(joints=tuple(log.spec.robot.joints[i] for i in at)),
        action_low_rad=tuple(log.spec.action_low_rad[i] for i in at),
        action_high_rad=tuple(log.spec.action_high_rad[i] for i in at),
    )
    columns = ("action", "target", "sent", "joint_position", "joint_velocity", "joint_torque")
    return dataclasses.replace(log, spec=spec, **{c: getattr(log, c)[:, at] for c in columns})


def assumed_reality(log: RunLog) -> Reality:
    """The nominal robot with the latencies that the bundle's training had in the middle of its ranges."""
    spec = log.spec
    return Reality(
        commands=Commands(latency_s=float(np.mean(spec.action_latency_s))),
        sensors=Sensors(latency_s=float(np.mean(spec.observation_latency_s))),
    )


def parity(
    log: RunLog, robot: str | Path | None = None, reality: Reality | None = None, *, hang: bool = False
) -> Parity:
    """Compare a run with the simulation.

    Args:
        log: the run.
        robot: name or folder of the model; default the robot's name in the log.
        reality: what the simulation is; default nominal with the bundle's assumed latencies.
        hang: the robot hung from its base, feet off the floor.

    Raises:
        ParityError: the log has no run phase, is too short, or is of another robot.
    """
    spec, period = log.spec, log.spec.control_period_s
    horizons = [max(2, round(share * HORIZON_S / period)) for share in (1.0, 0.6, 0.3)]
    horizon = horizons[-1]
    ticks = int(log.run.sum())
    if not ticks:
        raise ParityError(
            f"{log.path}: no tick in which the policy ran ({len(log.phase)} ticks in all); "
            "expected a log of a run that got past its ramp"
        )
    if ticks < horizon + 2:
        raise ParityError(
            f"{log.path}: {ticks} ticks in which the policy ran, expected at least {horizon + 2} "
            f"({(horizon + 2) * period:g} s); record a longer run"
        )
    try:
        loaded = load_robot(robot if robot is not None else spec.robot.name)
    except RobotLoadError as error:
        hint = "" if robot is not None else "; name the folder it was trained from with --robot"
        raise ParityError(f"{error}{hint}") from error
    odd = sorted(set(loaded.joint_names) ^ set(spec.robot.joint_names))
    if odd:
        raise ParityError(
            f"{log.path}: recorded on robot {spec.robot.name}, whose joints differ from {loaded.name}'s in "
            f"{', '.join(odd[:4])}; name the right one with --robot"
        )
    recorded, log = log, _in_order(log, loaded)
    if not (np.isfinite(arrived_at_s(log)) & np.isfinite(log.sent).all(axis=1))[log.run].any():
        lacks = ", ".join(log.metadata.get("import", {}).get("missing", ()))
        said = f"imported, and it lacks: {lacks}" if lacks else "no command of the run was acknowledged"
        raise ParityError(f"{log.path}: {said}; expected a run that tells when its commands reached the robot")
    simulation = WindowedSimulation(
        robot if robot is not None else spec.robot.name,
        log,
        assumed_reality(log) if reality is None else reality,
        hang=hang,
    )
    # an uneven loop leaves few whole stretches; shorter windows, which say less, are better than none
    for horizon in horizons:
        starts = simulation.windows(horizon)
        if len(starts):
            break
    else:
        raise ParityError(
            f"{log.path}: no {horizons[-1] * period:g} s of the run without a stale or missing state; "
            "record a calmer run"
        )
    replay = simulation.replay(starts, horizon)
    motion = compare(replay, loaded.joint_names, period)
    policy = replay_policy(recorded)
    lags = joint_lags(log, replay)
    delay = fit_delay(simulation, period)
    apart = [v["measured_s"] - v["simulated_s"] for v in lags.values() if math.isfinite(v["simulated_s"])]
    delay["lag_measured_s"] = float(np.median([v["measured_s"] for v in lags.values()])) if lags else math.nan
    delay["lag_difference_s"] = float(np.median(apart)) if apart else math.nan
    delay["per_joint"] = lags
    rows = np.flatnonzero(log.run)
    up = up_in_frame(log.quat_wxyz[rows])
    tilt = np.arccos(np.clip(up[:, 2], -1, 1))
    report = {
        "log": log.path.name,
        "log_complete": log.complete,
        "robot": spec.robot.name,
        "task": spec.task,
        "robot_differences": differences(spec.robot, loaded),
        "simulation": "nominal" if reality is None else reality.name,
        "policy_replay_error_max": policy["error_max"],
        "policy_replay_error_rms": policy["error_rms"],
        "policy_replay_steps": policy["steps"],
        **motion,
        "delay_s": delay,
        "loop": loop_timing(log),
        "safety": safety_counts(log),
        "tilt_max_rad": float(np.nanmax(tilt)) if np.isfinite(tilt).any() else math.nan,
        "events": log.events,
        "result": log.result,
    }
    return Parity(log=log, replay=replay, report=_finite(report))


def write_reports(result: Parity, out: str | Path | None) -> dict[str, Path]:
    """Write report.json and report.html; `out` is a folder, or the page's own name ending in .html."""
    out = Path(out) if out is not None else result.log.path.parent
    page = out if out.suffix == ".html" else out / "report.html"
    figures = page.with_suffix(".json")
    for file in (page, figures):
        if file.exists() and file.samefile(result.log.path):
            raise ParityError(f"--out {out}: {file.name} is the log itself; expected another file or folder")
    with atomic_path(figures) as part:
        part.write_text(json.dumps(result.report, indent=1, allow_nan=False) + "\n")
    with atomic_path(page) as part:
        write_html(part, result)
    return {"json": figures, "html": page}
