"""The same commands through the policy in simulation, many times: is reality inside the band of the simulations?

Each run differs by as much as the bundle's training says that robots may. A robot that balances parts from its
simulation within a second or two; what can be compared is the spread of many.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.bundle.session import OnnxPolicy, observe
from deploy.log.recorder import RunLog
from deploy.parity.motion import WindowedSimulation, arrived_at_s, measured_at_s
from deploy.parity.report import Figure, Layer, LayerName
from deploy.parity.statistics import noise_std
from deploy.parity.trained import channel_latency_s, channel_rate_hz, noise, span, told
from deploy.robot.safety import Limits, limit
from deploy.robot.state import RobotState
from deploy.twin.plant import Plant
from deploy.twin.reality import Channel, Commands, Network, Pushes, Reality, Sensors, per_joint
from robots.inputs import GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.rotation import up_in_frame, yaw_of
from robots.spec import PolicySpec, RobotSpec

RUNS, LONGEST_S = 16, 10.0
# Physics step, near that of training: half the time of the twin's [s].
STEP_S = 0.004
# The band: so many percent of the runs are below, and above.
LOW, HIGH = 5.0, 95.0
# What a bundle does not tell of its training: factors and additions, from least to greatest.
GAIN, MASS, FRICTION, FLOOR = (0.9, 1.1), (0.95, 1.05), (0.5, 2.0), (0.5, 1.5)
OFFSET_RAD = 0.02
# Differences that nobody would call another motion widen the band on both sides.
TILT_RAD, TURN_RAD_S, JOINT_RAD = 0.01, 0.1, 0.01
# The gyro counts as its root mean square over this: when a foot lands differs from run to run [s].
SMOOTH_S = 0.5
# Ours: well below 90 %, for the band of few runs is narrower than that of all.
INSIDE_GOOD, INSIDE_POOR = 0.6, 0.3
# Of fewer runs the band is too narrow for that.
JUDGED_RUNS = 12
FELL_GOOD, FELL_POOR = 0.25, 0.75
FALL_RAD = 1.0


@dataclass(frozen=True, kw_only=True)
class Band:
    """One signal in reality and in the simulations, a row a tick of the run.

    Attributes:
        signal: "tilt", "gyro", or a joint's name.
        unit: of the values.
        time_s: of each tick since the first of the policy (T,) [s].
        measured: (T,).
        low: 5 % of the simulations are below (T,); NaN where none stands any more.
        middle: their median (T,).
        high: 5 % of the simulations are above (T,).
        margin: what the band is widened by on both sides, in that unit.
    """

    signal: str
    unit: str
    time_s: np.ndarray
    measured: np.ndarray
    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    margin: float

    @property
    def inside(self) -> float:
        """Share of the ticks at which reality is inside; NaN where none can be told."""
        known = np.isfinite(self.measured) & np.isfinite(self.low)
        within = (self.measured >= self.low - self.margin) & (self.measured <= self.high + self.margin)
        return float(within[known].mean()) if known.any() else np.nan


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """The simulations of one run.

    Attributes:
        bands: tilt, gyro, then each joint.
        runs: how many.
        fell: share of them that fell.
    """

    bands: tuple[Band, ...]
    runs: int
    fell: float


def _range(spec: PolicySpec, names: tuple[str, ...], default: tuple[float, float]) -> tuple[float, float]:
    """The factor of a randomisation of training, by the first name that the bundle has."""
    for name in names:
        for keys in (("randomizations", name, "factor"), ("randomization", name)):
            found = span(told(spec, *keys))
            if found is not None:
                return found
    return default


def _width(spec: PolicySpec) -> float:
    for keys in (("randomizations", "joint_offset", "width_rad"), ("randomization", "joint_offset_rad")):
        value = told(spec, *keys)
        if isinstance(value, (int, float)):
            return float(value)
    return OFFSET_RAD


def randomised(spec: PolicySpec, robot: RobotSpec, reality: Reality | None, floor: float, seed: int) -> Reality:
    """A reality drawn about the given one, as far from it as training went.

    Args:
        spec: of the policy.
        robot: the model's.
        reality: the middle; None: nominal, and latencies from the ranges of training.
        floor: friction of the model's feet.
        seed: of the draw.
    """
    rng = np.random.default_rng([seed, 7])
    middle = reality or Reality()

    def joints(what: str, ends: tuple[float, float], nominal: float = 1.0) -> dict[str, float]:
        values = per_joint(what, getattr(middle.joints, what), robot, nominal)
        drawn = rng.uniform(ends[0], ends[1], len(values))
        drawn = values + drawn if nominal == 0.0 else values * drawn
        return dict(zip(robot.joint_names, drawn.tolist(), strict=True))

    width = _width(spec)
    changed = dataclasses.replace(
        middle.joints,
        kp_scale=joints("kp_scale", _range(spec, ("kp",), GAIN)),
        kd_scale=joints("kd_scale", _range(spec, ("kd",), GAIN)),
        friction_scale=joints("friction_scale", _range(spec, ("joint_friction",), FRICTION)),
        zero_offset_rad=joints("zero_offset_rad", (-width, width), 0.0),
    )
    centre = middle.body.floor_friction if middle.body.floor_friction >= 0 else floor
    body = dataclasses.replace(
        middle.body,
        mass_scale=middle.body.mass_scale * float(rng.uniform(*_range(spec, ("link_mass",), MASS))),
        floor_friction=centre * float(rng.uniform(*_range(spec, ("friction",), FLOOR))),
    )
    sensors, commands = middle.sensors, middle.commands
    if reality is None:
        commands = Commands(latency_s=float(rng.uniform(spec.action_latency_s[0], spec.action_latency_s[1])))
        channels = {}
        for channel in ("joints", "imu"):
            late, least = float(rng.uniform(*channel_latency_s(spec, channel))), channel_rate_hz(spec, channel)
            fastest = span(told(spec, "channels", channel, "rate_hz")) or (0.0, 0.0)
            rate = float(rng.uniform(*fastest)) if least >= 1.0 else 0.0
            phase = float(rng.uniform(0.0, 1.0 / rate)) if rate else 0.0
            channels[channel] = Channel(latency_s=late, rate_hz=rate, phase_s=phase)
        sensors = Sensors(
            **channels,
            position_noise_rad=noise(spec, JOINT_ANGLES),
            velocity_noise_rad_s=noise(spec, JOINT_VELOCITIES),
            gyro_noise_rad_s=noise(spec, GYROSCOPE),
            orientation_noise_rad=noise(spec, GRAVITY_INPUT),
        )
    return dataclasses.replace(
        middle,
        body=body,
        joints=changed,
        commands=commands,
        sensors=sensors,
        network=Network(),
        pushes=Pushes(),
    )


def loop_delay_s(log: RunLog) -> float:
    """From the sample of a state to the arrival of its command, median [s]."""
    late = (arrived_at_s(log) - measured_at_s(log))[log.run]
    late = late[np.isfinite(late)]
    return float(max(0.0, np.median(late))) if len(late) else 0.0


def simulate(
    robot: str | Path,
    log: RunLog,
    rows: np.ndarray,
    start: tuple[np.ndarray, np.ndarray],
    reality: Reality,
    policy: OnnxPolicy,
    *,
    hang: bool,
    seed: int,
) -> tuple[np.ndarray, bool]:
    """One run: ((T, 1 + 1 + joints) of tilt, size of the turn, and joint positions, as the sensors tell; it fell).

    NaN after a fall.
    """
    spec = log.spec
    delay = dataclasses.replace(reality.commands, latency_s=reality.commands.latency_s + loop_delay_s(log))
    differs = dataclasses.replace(reality, commands=delay)
    plant = Plant(robot, differs, seed=seed, start="hang" if hang else "home", timestep_s=STEP_S)
    for i, joint in enumerate(spec.robot.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    before = log.sent[max(rows[0] - 1, 0)]
    plant.set_state(*start, [before], held=hang)
    n, names = len(spec.robot.joints), tuple(a.name for a in spec.inputs)
    limits, every = Limits.from_spec(spec), list(range(len(spec.robot.joints)))
    out, zero = np.full((len(rows), 2 + n), np.nan), [0.0] * n
    policy.reset()
    first, began = int(log.tick[rows[0]]), plant.step_count
    heading: float | None = None
    for k, row in enumerate(rows):
        tick = int(log.tick[row]) - first
        plant.advance(max(0, began + round(tick * spec.control_period_s / plant.dt) - plant.step_count))
        told_now = plant.read()
        state = RobotState(
            time_s=plant.time_s,
            round_trip_s=0.0,
            joint_position=told_now.position,
            joint_velocity=told_now.velocity,
            joint_torque=told_now.torque,
            quat_wxyz=told_now.quat_wxyz,
            gyro_b=told_now.gyro_b,
            accel_b=told_now.accel_b,
        )
        if state.tilt_rad > FALL_RAD and not hang:
            return out, True
        out[k] = [state.tilt_rad, float(np.linalg.norm(state.gyro_b)), *state.joint_position]
        heading = float(yaw_of(state.quat_wxyz)) if heading is None else heading
        command = log.inputs.get("command")
        given = np.zeros(0) if command is None else command[row]
        action = policy.step(observe(names, state, given, tick * spec.control_period_s, heading))
        before = limit(action, before, state, limits, spec.control_period_s).rad
        plant.command(every, before.tolist(), zero, zero)
    return out, False


def _smooth(values: np.ndarray, ticks: int) -> np.ndarray:
    """Root mean square over the last ticks (..., T)."""
    total = np.cumsum(np.square(values), axis=-1)
    before = np.concatenate([np.zeros((*values.shape[:-1], ticks)), total[..., :-ticks]], axis=-1)
    count = np.minimum(np.arange(1, values.shape[-1] + 1), ticks)
    return np.sqrt(np.maximum(total - before[..., : values.shape[-1]], 0.0) / count)


def bands(
    names: tuple[str, ...], time_s: np.ndarray, measured: np.ndarray, runs: np.ndarray, smooth: int
) -> tuple[Band, ...]:
    """The bands of what was measured (T, 2 + joints) among runs (N, T, 2 + joints), as `simulate` gives them.

    Args:
        names: of the joints.
        time_s: (T,) [s].
        measured: NaN where something is missing.
        runs: likewise.
        smooth: ticks that the gyro is averaged over.
    """
    out = []
    for k, (name, unit, margin) in enumerate(
        [("tilt", "rad", TILT_RAD), ("gyro", "rad/s", TURN_RAD_S), *((n, "rad", JOINT_RAD) for n in names)]
    ):
        real, some = measured[:, k], runs[..., k]
        if k == 1 and len(real) > smooth:
            real, some = _smooth(real, smooth), _smooth(some, smooth)
        else:
            margin += 2.0 * float(np.nan_to_num(noise_std(real)))
        stands = np.isfinite(some).any(axis=0)
        ends = np.full((3, len(real)), np.nan)
        if stands.any():
            ends[:, stands] = np.nanpercentile(some[:, stands], (LOW, 50.0, HIGH), axis=0)
        out.append(
            Band(
                signal=name,
                unit=unit,
                time_s=time_s,
                measured=real,
                low=ends[0],
                middle=ends[1],
                high=ends[2],
                margin=margin,
            )
        )
    return tuple(out)


def closed_loop(
    robot: str | Path, log: RunLog, simulation: WindowedSimulation, reality: Reality | None, runs: int, *, hang: bool
) -> ClosedLoop | str:
    """The simulations; or why there are none.

    Args:
        robot: name or folder of the model.
        log: with the model's joints in its order.
        simulation: of the log, which tells the first state.
        reality: the middle of the draws; None: nominal.
        runs: how many.
        hang: the robot hung from its base.
    """
    if not runs:
        return "not asked for (--closed-loop 0)"
    if log.bundle is None:
        return "the log does not hold the policy that ran"
    if simulation.plant.built.base_body < 0:
        return "the base is fixed: nothing falls, and the actuators' layer tells it all"
    if log.bundle.joint_names != log.spec.robot.joint_names:
        return "the policy's joints are in another order than the model's"
    rows = np.flatnonzero(log.run)
    first = (log.joint_position, log.joint_velocity, log.quat_wxyz, log.gyro_b)
    if (
        not all(np.isfinite(values[rows[0]]).all() for values in first)
        or not np.isfinite(log.sent[max(rows[0] - 1, 0)]).all()
    ):
        return "the state at the policy's first step is not in the log"
    if any(a.name == "command" for a in log.spec.inputs) and "command" not in log.inputs:
        return "the commands that the policy was given are not in the log"
    period = log.spec.control_period_s
    rows = rows[log.tick[rows] - log.tick[rows[0]] < round(LONGEST_S / period)]
    start, policy = simulation.state_of(int(rows[0])), OnnxPolicy(log.bundle)
    built = simulation.plant.built
    floor = float(simulation.plant.model.geom_friction[np.atleast_1d(built.foot_geoms)[0], 0])
    found, fell = [], 0
    for seed in range(runs):
        drawn = randomised(log.spec, simulation.plant.spec, reality, floor, seed)
        track, down = simulate(robot, log, rows, start, drawn, policy, hang=hang, seed=seed)
        found.append(track)
        fell += down
    tilt = np.arccos(np.clip(up_in_frame(log.quat_wxyz[rows])[:, 2], -1.0, 1.0))
    turn = np.linalg.norm(log.gyro_b[rows], axis=1)
    measured = np.column_stack([tilt, turn, log.joint_position[rows]])
    return ClosedLoop(
        bands=bands(
            log.spec.robot.joint_names,
            (log.tick[rows] - log.tick[rows[0]]) * period,
            measured,
            np.asarray(found),
            max(1, round(SMOOTH_S / period)),
        ),
        runs=runs,
        fell=fell / runs,
    )


def closed_loop_layer(found: ClosedLoop | str, fell: bool) -> Layer:
    """The layer.

    Args:
        found: of `closed_loop`.
        fell: the robot fell.
    """
    if isinstance(found, str):
        return Layer(name=LayerName.CLOSED_LOOP, untold=found)
    coverage = {band.signal: band.inside for band in found.bands}
    joints = {name: share for name, share in coverage.items() if name not in ("tilt", "gyro") and np.isfinite(share)}
    worst = min(joints, key=lambda name: joints[name], default="")
    judged = found.runs >= JUDGED_RUNS

    def inside(key: str, what: str, value: float | None) -> Figure:
        return Figure(
            key=key,
            what=f"{what}: ticks inside the band of {found.runs} simulations",
            value=value if value is not None and np.isfinite(value) else None,
            unit="share",
            good=INSIDE_GOOD if judged else None,
            poor=INSIDE_POOR if judged else None,
            at_least=True,
        )

    return Layer(
        name=LayerName.CLOSED_LOOP,
        figures=(
            inside("inside_tilt_share", "tilt", coverage["tilt"]),
            inside("inside_gyro_share", "turning", coverage["gyro"]),
            inside("inside_joints_share", "joints, mean", float(np.mean(list(joints.values()))) if joints else None),
            Figure(
                key="inside_worst_joint_share",
                what="the joint that is least inside",
                value=joints.get(worst),
                unit="share",
                where=worst,
                at_least=True,
                good=0.5 * INSIDE_GOOD if judged else None,
                poor=0.5 * INSIDE_POOR if judged else None,
            ),
            Figure(
                key="falls_apart_share",
                what=f"share of the simulations that end otherwise than the robot, which {'fell' if fell else 'stood'}",
                value=1.0 - found.fell if fell else found.fell,
                unit="share",
                good=FELL_GOOD,
                poor=FELL_POOR,
            ),
        ),
        joints={name: min(INSIDE_GOOD / max(share, 1e-3), 100.0) for name, share in joints.items()},
    )
