"""How far a run was from the simulation, layer by layer: deploy/parity has a module for each layer.

Reads a log, writes report.json and report.html. docs/parity.md lists the figures and their bounds.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.preflight import differences
from deploy.log.recorder import RunLog
from deploy.parity.action_path import action_path_layer, safety_counts
from deploy.parity.actuators import actuator_layer
from deploy.parity.body import body_layer, compare
from deploy.parity.closed_loop import RUNS, Band, closed_loop, closed_loop_layer
from deploy.parity.delay import fit_delay, joint_lags
from deploy.parity.errors import ParityError
from deploy.parity.motion import Replay, WindowedSimulation, acknowledged, arrived_at_s, measured_at_s
from deploy.parity.page import write_html
from deploy.parity.policy import policy_layer, replay_policy
from deploy.parity.report import Judgement, Layer, LayerName, Mark
from deploy.parity.sensing import sensing_layer
from deploy.parity.suspects import suspects
from deploy.parity.timing import loop_timing, timing_layer
from deploy.parity.trained import delay_s
from deploy.twin.reality import Commands, Reality, Sensors
from robots.errors import RobotLoadError
from robots.load import load_robot
from robots.rotation import up_in_frame
from robots.spec import PolicySpec, RobotSpec
from toolkit.files import atomic_path
from toolkit.words import count

HORIZON_S = 0.3
# A delay that fits better by less than this is no other delay [s].
ALIGN_S = 0.0005
# A joint that is told or measured to be farther, or faster, is a broken record [rad, rad/s].
FARTHEST = 1e6


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
    """A comparison: the judgement, figures for programs, and the series that the page draws.

    Attributes:
        log: the log, joints in the model's order.
        robot: name or folder of the model.
        replay: the windows, joints as in the log; without windows where none could be simulated.
        report: what report.json holds; NaN where something cannot be told of a joint.
        judgement: the layers and the suspects.
        bands: the signals of the closed loop; empty where there is none.
    """

    log: RunLog
    robot: str | Path
    replay: Replay
    report: dict[str, Any]
    judgement: Judgement
    bands: tuple[Band, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return _finite(self.report)


def judged(judgement: Judgement) -> dict[str, Any]:
    """A judgement as plain JSON values: `layers`, `suspects`, `verdict`."""
    bad = [layer.name.value for layer in judgement.layers if layer.mark is Mark.BAD]
    return {
        "layers": [
            {
                "name": layer.name.value,
                "mark": layer.mark.value,
                "figures": [{**dataclasses.asdict(f), "mark": f.mark.value} for f in layer.figures],
                "joints": layer.joints,
                "untold": layer.untold,
            }
            for layer in judgement.layers
        ],
        "suspects": [
            {**dataclasses.asdict(s), "cause": s.cause.value, "layer": s.layer.value} for s in judgement.suspects
        ],
        "verdict": {"mark": judgement.mark.value, "bad_layers": bad},
    }


COLUMNS = ("action", "target", "sent", "joint_position", "joint_velocity", "joint_torque")


def _in_order(log: RunLog, names: tuple[str, ...]) -> RunLog:
    """The log with its joints in another order; the names are the log's own, all or some."""
    own = log.spec.robot.joint_names
    if names == own:
        return log
    at = [own.index(name) for name in names]
    spec = log.spec.replace(
        robot=log.spec.robot.replace(joints=tuple(log.spec.robot.joints[i] for i in at)),
        action_low_rad=tuple(log.spec.action_low_rad[i] for i in at),
        action_high_rad=tuple(log.spec.action_high_rad[i] for i in at),
    )
    return dataclasses.replace(log, spec=spec, **{c: getattr(log, c)[:, at] for c in COLUMNS})


def _with_all(log: RunLog, robot: RobotSpec) -> RunLog:
    """The log with the joints that only the model has, held at home."""
    more = [joint for joint in robot.joints if joint.name not in log.spec.robot.joint_names]
    if not more:
        return log
    home = np.broadcast_to([joint.home_rad for joint in more], (len(log.tick), len(more)))
    still = {"joint_velocity": np.zeros_like(home), "joint_torque": np.full(home.shape, np.nan)}
    spec = log.spec
    spec = spec.replace(
        robot=spec.robot.replace(joints=(*spec.robot.joints, *more)),
        action_low_rad=(*spec.action_low_rad, *(joint.lower_rad for joint in more)),
        action_high_rad=(*spec.action_high_rad, *(joint.upper_rad for joint in more)),
    )
    columns = {c: np.concatenate([getattr(log, c), still.get(c, home)], axis=1) for c in COLUMNS}
    return _in_order(dataclasses.replace(log, spec=spec, **columns), robot.joint_names)


def _with_velocity(log: RunLog) -> RunLog:
    """The log with velocities: where it has none they are the slopes of the positions."""
    rows = np.flatnonzero(log.run)
    if np.isfinite(log.joint_velocity[rows]).any() or len(rows) < 2:
        return log
    velocity, time_s = log.joint_velocity.copy(), measured_at_s(log)[rows]
    # rows of one stamp have one slope
    time_s, first, row = np.unique(time_s, return_index=True, return_inverse=True)
    if len(time_s) < 2:
        return log
    velocity[rows] = np.gradient(log.joint_position[rows[first]], time_s, axis=0)[row]
    return dataclasses.replace(log, joint_velocity=velocity)


def assumed_reality(log: RunLog) -> Reality:
    """The nominal robot with the latencies that the bundle's training had in the middle of its ranges."""
    spec = log.spec
    return Reality(
        commands=Commands(latency_s=float(np.mean(spec.action_latency_s))),
        sensors=Sensors(latency_s=float(np.mean(spec.observation_latency_s))),
    )


def _some(replay: Replay, joints: list[int]) -> Replay:
    """The windows of some joints."""
    columns = ("position", "position_sim", "velocity", "velocity_sim")
    return dataclasses.replace(
        replay, start=replay.start[:, joints], **{c: getattr(replay, c)[..., joints] for c in columns}
    )


def _median_rmse(replay: Replay) -> float:
    """RMSE of the positions of the joint in the middle [rad]."""
    return float(np.median(np.sqrt(np.mean((replay.position_sim - replay.position) ** 2, axis=(0, 1)))))


def _no_delay(spec: PolicySpec) -> dict[str, Any]:
    """What there is of a delay where nothing was simulated."""
    assumed = float(np.mean(spec.action_latency_s) + np.mean(spec.observation_latency_s))
    told = {"assumed_s": assumed, "trained_s": list(delay_s(spec)), "searched_s": [], "searched_error": []}
    return told | dict.fromkeys(("estimated_s", "outside_s", "difference_s", "improvement"))


def _as_told(recorded: RobotSpec, robot: RobotSpec, *, imported: bool) -> RobotSpec:
    """The robot that a log tells of; an imported one tells the period of its rows, which is no figure of the robot."""
    return recorded.replace(control_period_s=robot.control_period_s) if imported else recorded


def model_of(path: str | Path, recorded: RobotSpec, robot: str | Path | None, *, imported: bool) -> RobotSpec:
    """The model that a log is compared with.

    Args:
        path: the log, for messages.
        recorded: the robot that it tells of.
        robot: name or folder of the model; None takes the recorded robot's name.
        imported: another program wrote the log, which may lack joints.

    Raises:
        ParityError: there is no such robot, or the joints are others.
    """
    try:
        loaded = load_robot(robot if robot is not None else recorded.name)
    except RobotLoadError as error:
        hint = "" if robot is not None else "; name the folder it was trained from with --robot"
        raise ParityError(f"{error}{hint}") from error
    odd = sorted(set(recorded.joint_names) - set(loaded.joint_names))
    if not imported:  # a run of ours has all joints that its robot has
        odd = sorted(set(loaded.joint_names) ^ set(recorded.joint_names))
    if odd:
        raise ParityError(
            f"{path}: recorded on robot {recorded.name}, whose joints differ from {loaded.name}'s in "
            f"{', '.join(odd[:4])}; name the right one with --robot"
        )
    return loaded


def parity(
    log: RunLog,
    robot: str | Path | None = None,
    reality: Reality | None = None,
    *,
    hang: bool = False,
    closed_loop_runs: int = RUNS,
    search: bool = True,
) -> Parity:
    """Compare a run with the simulation.

    Args:
        log: the run.
        robot: name or folder of the model; default the robot's name in the log.
        reality: what the simulation is; default nominal with the bundle's assumed latencies.
        hang: the robot hung from its base, feet off the floor.
        closed_loop_runs: how many times the run is simulated through its policy; 0: not.
        search: for suspects, which takes most of the time.

    Raises:
        ParityError: the log has no run phase, is too short, or is of another robot.
    """
    spec, period = log.spec, log.spec.control_period_s
    horizons = [max(2, round(share * HORIZON_S / period)) for share in (1.0, 0.6, 0.3)]
    horizon = horizons[-1]
    ticks = int(log.run.sum())
    back = np.flatnonzero(np.diff(log.start_s) < 0)
    if len(back):
        by_s = log.start_s[back[0]] - log.start_s[back[0] + 1]
        raise ParityError(
            f"{log.path}: its clock runs back: got row {back[0] + 1} {by_s:.3g} s before the row before it "
            f"({count(len(back), 'such row')}), expected times that rise; mend its clock, or make a log of each part"
        )
    if not ticks:
        raise ParityError(
            f"{log.path}: no tick in which the policy ran ({count(len(log.phase), 'tick')} in all); "
            "expected a log of a run that got past its ramp"
        )
    if ticks < horizon + 2:
        raise ParityError(
            f"{log.path}: {count(ticks, 'tick')} in which the policy ran, expected at least {horizon + 2} "
            f"({(horizon + 2) * period:g} s); record a longer run"
        )
    for what in ("sent", "joint_position", "joint_velocity"):
        wild = np.argwhere(np.abs(getattr(log, what)) > FARTHEST)  # NaN is not
        if len(wild):
            row, j = wild[0]
            raise ParityError(
                f"{log.path}: {what}: got {getattr(log, what)[row, j]:.3g} of joint {spec.robot.joint_names[j]} in row "
                f"{row}, expected up to {FARTHEST:g}; mend the log, or record it again"
            )
    named, imported = robot if robot is not None else spec.robot.name, "import" in log.metadata
    loaded = model_of(log.path, spec.robot, robot, imported=imported)
    recorded, log = log, _with_velocity(_in_order(log, tuple(n for n in loaded.joint_names if _has(log, n))))
    names = log.spec.robot.joint_names
    whole, known = _with_all(log, loaded), [loaded.joint_names.index(name) for name in names]
    assumed = assumed_reality(log) if reality is None else reality
    simulation = WindowedSimulation(named, whole, assumed, hang=hang)
    held = simulation.base_held
    # an uneven loop leaves few whole stretches; shorter windows, which say less, are better than none
    starts = np.zeros(0, dtype=int)
    for horizon in horizons:
        starts = simulation.windows(horizon)
        if len(starts):
            break
    replay = simulation.replay(starts, horizon)
    motion, delay = compare(_some(replay, known), names, period), _no_delay(log.spec)
    lags: dict[str, Any] = {}
    per_actuator: dict[str, Any] = {}
    why = _why_no_windows(simulation, imported)
    actuators = Layer(name=LayerName.ACTUATORS, untold=why)
    body = body_layer(motion, base_held=True) if held else Layer(name=LayerName.BODY, untold=why)
    if len(starts):
        lags = {name: lag for name, lag in joint_lags(whole, replay).items() if name in names}
        delay = fit_delay(simulation, period)
        extra = delay["difference_s"]
        aligned = None
        if extra is not None and abs(extra) >= ALIGN_S:
            aligned = _some(simulation.replay(starts, horizon, extra), known)
            if _median_rmse(aligned) >= _median_rmse(_some(replay, known)):
                aligned, extra = None, None  # a few joints alone ask for it: no delay does that
        actuators, per_actuator = actuator_layer(
            whole, simulation, _some(replay, known), aligned, names, delay["assumed_s"] + (extra or 0.0)
        )
        body = body_layer(motion if aligned is None else compare(aligned, names, period), base_held=held)
    apart = [v["measured_s"] - v["simulated_s"] for v in lags.values() if math.isfinite(v["simulated_s"])]
    delay["lag_measured_s"] = float(np.median([v["measured_s"] for v in lags.values()])) if lags else math.nan
    delay["lag_difference_s"] = float(np.median(apart)) if apart else math.nan
    delay["per_joint"] = lags
    policy, loop = replay_policy(recorded), loop_timing(log)
    loops = closed_loop(named, whole, simulation, reality, closed_loop_runs, hang=hang)
    built = None if held or len(names) < len(loaded.joint_names) else simulation.plant.built
    layers = (
        policy_layer(policy),
        action_path_layer(log, delay),
        sensing_layer(log, built, base_held=held),
        actuators,
        body,
        closed_loop_layer(loops, (log.result or {}).get("ended") == "fall"),
        timing_layer(loop, imported=imported),
    )
    found = suspects(whole, named, assumed, hang=hang) if search and len(starts) else ()
    judgement = Judgement(layers=layers, suspects=found)
    rows = np.flatnonzero(log.run)
    tilt = np.arccos(np.clip(up_in_frame(log.quat_wxyz[rows])[:, 2], -1, 1))
    report = {
        "log": log.path.name,
        "log_complete": log.complete,
        "robot": spec.robot.name,
        "task": spec.task,
        "robot_differences": differences(_as_told(spec.robot, loaded, imported=imported), _of(loaded, names)),
        "joints_absent": [name for name in loaded.joint_names if name not in names],
        "stamps_repeated": int(np.sum(np.diff(log.start_s[log.run]) == 0)),
        "simulation": "nominal" if reality is None else reality.name,
        "simulation_sha256": None,
        **judged(judgement),
        "policy_replay_error_max": policy["error_max"],
        "policy_replay_error_rms": policy["error_rms"],
        "policy_replay_steps": policy["steps"],
        **motion,
        "actuators": per_actuator,
        "delay_s": delay,
        "one_clock": not acknowledged(log),
        "loop": loop,
        "safety": safety_counts(log),
        "tilt_max_rad": float(np.nanmax(tilt)) if np.isfinite(tilt).any() else math.nan,
        "events": log.events,
        "result": log.result,
    }
    report = _finite(report)
    if not len(starts):
        report["per_joint"] = motion["per_joint"]
    return Parity(
        log=log,
        robot=named,
        replay=_some(replay, known),
        report=report,
        judgement=judgement,
        bands=() if isinstance(loops, str) else loops.bands,
    )


def _of(robot: RobotSpec, names: Sequence[str]) -> RobotSpec:
    """The robot with some of its joints."""
    return robot.replace(joints=tuple(joint for joint in robot.joints if joint.name in names))


def _has(log: RunLog, name: str) -> bool:
    return name in log.spec.robot.joint_names


def _why_no_windows(simulation: WindowedSimulation, imported: bool) -> str:
    """Why no stretch of the run can be simulated."""
    log, rows = simulation.log, simulation.rows
    if not (np.isfinite(arrived_at_s(log)) & np.isfinite(log.sent).all(axis=1))[rows].any():
        lacks = ", ".join(log.metadata.get("import", {}).get("missing", ()))
        return f"imported, and it lacks: {lacks}" if imported and lacks else "no command of the run was acknowledged"
    for what, values in (("orientation", log.quat_wxyz), ("angular velocity", log.gyro_b)):
        if not simulation.base_held and not np.isfinite(values[rows]).all(axis=1).any():
            return f"the base floats, and the log has no {what} of it"
    return "no stretch of the run without a stale or missing state is long enough"


def write_reports(result: Parity, out: str | Path | None, *, name: str = "report") -> dict[str, Path]:
    """Write report.json and report.html; `out` is a folder, or the page's own name ending in .html."""
    out = Path(out) if out is not None else result.log.path.parent
    page = out if out.suffix == ".html" else out / f"{name}.html"
    figures = page.with_suffix(".json")
    for file in (page, figures):
        if file.exists() and file.samefile(result.log.path):
            raise ParityError(f"--out {out}: {file.name} is the log itself; expected another file or folder")
    with atomic_path(figures) as part:
        part.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    with atomic_path(page) as part:
        write_html(part, result)
    return {"json": figures, "html": page}
