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
from deploy.bundle.session import OnnxPolicy
from deploy.errors import DeployError, PolicyError
from deploy.log.recorder import RunLog
from deploy.log.timing import LoopTiming
from deploy.parity.motion import Replay, WindowedSimulation, arrived_at_s, measured_at_s
from deploy.parity.page import write_html
from deploy.robot.faults import ClampKind
from deploy.twin.reality import Commands, Reality, Sensors
from robots.errors import RobotLoadError
from robots.load import load_robot
from robots.rotation import up_in_frame
from robots.spec import RobotSpec
from toolkit.files import atomic_path

HORIZON_S = 0.3
# The search for the delay that explains the motion best, beside the assumed one and none at all [s].
DELAY_GRID_S = (-0.04, -0.02, -0.01, 0.0, 0.01, 0.02, 0.04, 0.07)
DELAY_WINDOW_S = 0.16
DELAY_WINDOWS = 40
LAG_MAX_S = 0.3
LAG_STEP_S = 0.005
# A held command on a coarse grid would seem early by half a cell.
GRID_S = 0.001
# Below this spread of its target or of its motion a joint says nothing about delay [rad].
MOTION_MIN_RAD = 0.004
CORRELATION_MIN = 0.5


class ParityError(DeployError):
    """A log does not hold what a comparison needs."""


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


def replay_policy(log: RunLog) -> dict[str, Any]:
    """The recorded inputs through the recorded bundle from its first carry, against the recorded actions.

    Returns:
        `error_max` and `error_rms` [rad], `steps`; the errors are None where the log has no bundle.
    """
    rows = np.flatnonzero(log.run & np.isfinite(log.action).all(axis=1))
    if log.bundle is None or not len(rows):
        return {"error_max": None, "error_rms": None, "steps": 0}
    policy = OnnxPolicy(log.bundle)
    missing = [name for name in policy.inputs if name not in log.inputs]
    if missing:
        raise ParityError(f"{log.path}: inputs {missing} of the policy are not in the log; record the run again")
    errors = []
    try:
        for row in rows:
            action = policy.step({name: log.inputs[name][row] for name in policy.inputs})
            errors.append(action.astype(np.float64) - log.action[row])
    except PolicyError as error:
        raise ParityError(f"{log.path}: the recorded inputs do not pass through the policy again: {error}") from error
    all_errors = np.asarray(errors)
    return {
        "error_max": float(np.abs(all_errors).max()),
        "error_rms": float(np.sqrt(np.mean(all_errors**2))),
        "steps": len(rows),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-12 else math.nan


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else math.nan


def compare(replay: Replay, names: tuple[str, ...], period_s: float) -> dict[str, Any]:
    """Errors of the simulated motion, simulated minus measured: overall, by joint and by horizon.

    The correlation of positions is that of the motion since each window's restart: whole positions would correlate
    whatever the model is.
    """
    position, velocity = replay.position_sim - replay.position, replay.velocity_sim - replay.velocity
    moved, moved_sim = replay.position - replay.start[:, None], replay.position_sim - replay.start[:, None]
    horizons = replay.position.shape[1]
    per_joint = {
        name: {
            "position_rmse_rad": _rms(position[..., j]),
            "position_bias_rad": float(position[..., j].mean()),
            "position_correlation": _correlation(moved[..., j], moved_sim[..., j]),
            "velocity_rmse_rad_s": _rms(velocity[..., j]),
            "velocity_bias_rad_s": float(velocity[..., j].mean()),
            "velocity_correlation": _correlation(replay.velocity[..., j], replay.velocity_sim[..., j]),
            "motion_rms_rad": _rms(moved[..., j]),
        }
        for j, name in enumerate(names)
    }
    return {
        "windows": len(replay.first),
        "window_s": horizons * period_s,
        "joint_position_rmse_rad": _rms(position),
        "joint_velocity_rmse_rad_s": _rms(velocity),
        "joint_position_bias_rad": float(position.mean()),
        "base_tilt_rmse_rad": _rms(replay.tilt_error_rad),
        "base_tilt_max_rad": float(replay.tilt_error_rad.max()),
        "motion_rms_rad": _rms(moved),
        "horizon": {
            "time_s": [(h + 1) * period_s for h in range(horizons)],
            "joint_position_rmse_rad": [_rms(position[:, h]) for h in range(horizons)],
            "joint_velocity_rmse_rad_s": [_rms(velocity[:, h]) for h in range(horizons)],
            "base_tilt_rmse_rad": [_rms(replay.tilt_error_rad[:, h]) for h in range(horizons)],
        },
        "per_joint": per_joint,
    }


def lag_s(command_s: np.ndarray, command: np.ndarray, motion_s: np.ndarray, motion: np.ndarray) -> tuple[float, float]:
    """By how much a motion follows its command: (lag [s], correlation there).

    Both are put on one fine grid, the command held between its changes, and cross-correlated; the greatest
    correlation is placed between the samples by a parabola.

    Args:
        command_s: when each command came, ascending (T,) [s].
        command: (T,) [rad].
        motion_s: when each motion was measured, ascending (S,) [s].
        motion: (S,) [rad].

    Returns:
        NaN and NaN where either hardly moves or the series are shorter than the greatest lag sought.
    """
    begin = max(command_s[0], motion_s[0] - LAG_MAX_S)
    grid = np.arange(begin, motion_s[-1], GRID_S)
    longest, stride = round(LAG_MAX_S / GRID_S), round(LAG_STEP_S / GRID_S)
    if len(grid) < 3 * longest:
        return math.nan, math.nan
    held = command[np.searchsorted(command_s, grid, side="right") - 1]
    there = np.interp(grid, motion_s, motion)[longest:]
    if np.std(held) < MOTION_MIN_RAD or np.std(there) < MOTION_MIN_RAD:
        return math.nan, math.nan
    lags = np.arange(0, longest + 1, stride)
    scores = [_correlation(held[longest - lag : len(held) - lag], there) for lag in lags]
    best = int(np.argmax(scores))
    if not 0 < best < len(lags) - 1:
        return best * LAG_STEP_S, scores[best]
    left, middle, right = scores[best - 1 : best + 2]
    curve = left - 2 * middle + right
    offset = 0.5 * (left - right) / curve if curve < 0 else 0.0
    return (best + offset) * LAG_STEP_S, middle


def joint_lags(log: RunLog, replay: Replay) -> dict[str, Any]:
    """Lag of each joint behind its target, measured and simulated; joints that hardly move are left out."""
    rows = np.flatnonzero(log.run & np.isfinite(arrived_at_s(log)))
    measured_s, arrived_s = measured_at_s(log), arrived_at_s(log)
    flat = replay.time_s.ravel()
    zero = measured_s[np.flatnonzero(log.run)[0]]
    order = np.argsort(flat)
    out: dict[str, Any] = {}
    for j, name in enumerate(log.spec.robot.joint_names):
        command_s, command = arrived_s[rows], log.sent[rows, j]
        real, score = lag_s(command_s, command, measured_s[rows], log.joint_position[rows, j])
        if not score >= CORRELATION_MIN:
            continue
        sim, sim_score = lag_s(command_s - zero, command, flat[order], replay.position_sim[..., j].ravel()[order])
        out[name] = {"measured_s": real, "simulated_s": sim, "correlation": score, "correlation_simulated": sim_score}
    return out


def fit_delay(simulation: WindowedSimulation, period_s: float) -> dict[str, Any]:
    """The delay from command to measured effect that makes the simulated positions fit best.

    Under feedback the target follows the motion as much as the motion the target, so a correlation alone cannot
    tell the delay of the plant; replaying at several delays can.

    Returns:
        `assumed_s`, `trained_s` (least and greatest of training), `estimated_s` (None where no delay fits best inside
        the search; 0 where none at all does), `difference_s` from the assumed one, `outside_s`: how far it lies outside
        the range of training, `improvement`: the share of the squared error that the estimated delay takes away, and
        the curve that was searched.
    """
    horizon = max(2, round(DELAY_WINDOW_S / period_s))
    starts = simulation.windows(horizon)
    if len(starts) > DELAY_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, DELAY_WINDOWS).astype(int)]
    assumed = simulation.action_latency_s + simulation.observation_latency_s

    def cost(extra_s: float) -> float:
        replay = simulation.replay(starts, horizon, extra_s)
        # positions: each held target kicks the velocities, whose error has a dip wherever the kicks happen to agree
        error = replay.position_sim - replay.position
        # each joint by its own motion, so that the large ones do not decide alone
        moved = (replay.position - replay.start[:, None]).reshape(-1, error.shape[-1])
        spread = np.maximum(np.sqrt(np.mean(moved**2, axis=0)), MOTION_MIN_RAD)
        return float(np.mean((error / spread) ** 2))

    tried = {extra: cost(extra) for extra in DELAY_GRID_S if extra >= -assumed} if len(starts) else {}
    if tried and -assumed not in tried and -assumed > DELAY_GRID_S[0]:
        tried[-assumed] = cost(-assumed)
    for _ in range(3):
        points = sorted(tried)
        best = min(tried, key=lambda extra: tried[extra]) if tried else math.nan
        if not tried or best in (points[0], points[-1]):
            break
        i = points.index(best)
        guess = _vertex(points[i - 1 : i + 2], [tried[p] for p in points[i - 1 : i + 2]])
        if min(abs(guess - p) for p in points) < 0.0005:
            break
        tried[guess] = cost(guess)
    points = sorted(tried)
    inside = bool(tried) and min(tried, key=lambda extra: tried[extra]) != points[-1]
    best = min(tried, key=lambda extra: tried[extra]) if tried else math.nan
    spec = simulation.log.spec
    low, high = (a + b for a, b in zip(spec.action_latency_s, spec.observation_latency_s, strict=True))
    estimated = max(0.0, assumed + best)
    return {
        "assumed_s": assumed,
        "trained_s": [low, high],
        "estimated_s": estimated if inside else None,
        "outside_s": max(low - estimated, estimated - high, 0.0) if inside else None,
        "difference_s": best if inside else None,
        "improvement": 1.0 - tried[best] / tried[0.0] if inside and tried[0.0] > 0 else None,
        "searched_s": [assumed + p for p in points],
        "searched_error": [tried[p] for p in points],
    }


def _vertex(x: list[float], y: list[float]) -> float:
    """Where the parabola through three points is least; the middle point where it opens downwards."""
    (a, b, c), (fa, fb, fc) = x, y
    below = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    if abs(below) < 1e-15:
        return b
    at = b - 0.5 * ((b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)) / below
    return float(min(max(at, a), c))


def loop_timing(log: RunLog) -> dict[str, Any]:
    """The control loop's timing over the run phase, in ms.

    `overruns` counts ticks that ended after the next one was due, as the run itself counted them, ramp included;
    where the log has no end, those whose command came that late.
    """
    rows, simulated = np.flatnonzero(log.run), bool(log.metadata.get("step_lock"))
    start, period = log.start_s[rows], log.spec.control_period_s
    ended = np.where(np.isfinite(log.command_s[rows]), log.command_s[rows], start)
    overruns = (log.result or {}).get("overruns")
    if not isinstance(overruns, int):
        overruns = 0 if simulated else int(np.sum(ended > log.scheduled_s[rows] + period))
    timing = LoopTiming.of(
        period_s=period,
        tick=log.tick[rows],
        scheduled_s=log.scheduled_s[rows],
        start_s=start,
        state_round_trip_s=log.state_round_trip_s[rows],
        command_round_trip_s=log.command_round_trip_s[rows],
        simulated=simulated,
    )
    return timing.to_json() | {
        "duration_s": float(start[-1] - start[0]),
        "overruns": overruns,
        "stale": int(log.stale[rows].sum()),
        "commands_unacknowledged": int(np.sum(~np.isfinite(log.command_s[rows]))),
    }


def safety_counts(log: RunLog) -> dict[str, Any]:
    """How many ticks of the run had each kind of intervention."""
    kinds: dict[str, int] = {}
    joints: dict[str, int] = {}
    rows = np.flatnonzero(log.run)
    for row in rows:
        for reason in log.safety[row]:
            kinds[reason.kind.value] = kinds.get(reason.kind.value, 0) + 1
            joints[reason.joint] = joints.get(reason.joint, 0) + 1
    changed = np.abs(log.sent[rows] - log.action[rows])
    # bounding the torque asked for leaves the torque given as it is: the motor has the same limit
    others = [any(reason.kind is not ClampKind.TORQUE for reason in log.safety[row]) for row in rows]
    return {
        "ticks_with_intervention": sum(bool(log.safety[row]) for row in rows),
        "ticks_with_other_than_torque": sum(others),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "joints": dict(sorted(joints.items(), key=lambda item: -item[1])),
        "change_max_rad": float(np.nanmax(changed)) if np.isfinite(changed).any() else math.nan,
    }


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
