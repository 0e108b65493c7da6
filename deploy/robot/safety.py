"""The safety layer: pure functions between whatever wants to move the robot and the robot.

deploy/robot/kos.py accepts only a `SafeTarget` and `Gains`, and only this module makes them: a target that
did not pass through here cannot be sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from deploy.errors import SafetyError
from deploy.robot.faults import Clamp, ClampKind, Fault, FaultKind
from deploy.robot.state import RobotState
from robots.inputs import LIMIT_SLACK_RAD
from robots.rotation import GRAVITY_M_S2, rotvec_between
from robots.spec import PolicySpec, RobotSpec

_KEY = object()
# Joint zero offsets of up to 3 degrees are usual on the K-Bot (K-Scale's randomization range), so a
# robot at a stop may read that much beyond its limit.
START_SLACK_RAD = 0.06
# How far up by the accelerometer and up by the orientation may be apart: less is a robot that is moved.
FRAME_MAX_RAD = 0.8
# Readings farther apart than this say nothing of how a joint moved between them [s].
MOTION_GAP_S = 0.05
# The same of an orientation, whose turn may have taken longer by so much: an IMU of 17 Hz that loses a packet [s].
TURN_READ_S, TURN_GAP_S = 0.2, 0.1
# A policy that asks for more than this beyond a joint's range has gone wrong [rad].
WILD_RAD = np.pi


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the robot may be told and what it may be seen doing; arrays are (joints,).

    Attributes:
        names: joint names, for messages.
        lower: least target [rad].
        upper: greatest target [rad].
        velocity_max: greatest speed of the target, and the motor's no-load speed [rad/s].
        kp: position gain [N m/rad].
        kd: velocity gain [N m s/rad].
        torque_limit: the limit that the controller sets [N m].
        torque_max: the most that the motor can give [N m].
        tilt_max_rad: more tilt of the IMU than this is a fall [rad].
        range_slack_rad: how far beyond its limits a joint may be measured [rad]; as in a policy's inputs.
        over_speed: a joint faster than this many times its no-load speed is a fault.
        over_torque: a motor that tells more than this many times its greatest torque is a fault.
        spin_max_rad_s: an IMU that turns faster than this is a fault [rad/s].
        stale_ticks_max: more ticks than this without anything new measured is a fault.
        temperature_max_c: a motor hotter than this is a fault [Celsius].
        jump_max_rad: a joint that is farther than this from where its speed takes it, from one reading to the next,
            is a fault: two joints changed places, an encoder slipped, an answer is another's [rad].
        turn_max_rad: an orientation that is farther than this from where the gyro takes it is a fault: the IMU came
            loose, or started anew with another frame [rad].
    """

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    velocity_max: np.ndarray
    kp: np.ndarray
    kd: np.ndarray
    torque_limit: np.ndarray
    torque_max: np.ndarray
    tilt_max_rad: float = 1.0
    range_slack_rad: float = LIMIT_SLACK_RAD
    over_speed: float = 1.5
    over_torque: float = 1.5
    spin_max_rad_s: float = 15.0
    stale_ticks_max: int = 7
    temperature_max_c: float = 100.0
    jump_max_rad: float = 0.15
    turn_max_rad: float = 0.5

    @classmethod
    def from_spec(cls, spec: PolicySpec | RobotSpec, *, tilt_max_rad: float = 1.0, stale_ticks_max: int = 7) -> Limits:
        """The limits of a robot, or of the robot that a policy was trained for."""
        robot = spec.robot if isinstance(spec, PolicySpec) else spec
        return cls(
            names=robot.joint_names,
            lower=np.asarray(robot.column("lower_rad")),
            upper=np.asarray(robot.column("upper_rad")),
            velocity_max=np.asarray(robot.column("velocity_max_rad_s")),
            kp=np.asarray(robot.column("kp")),
            kd=np.asarray(robot.column("kd")),
            torque_limit=np.asarray(robot.column("torque_limit_nm")),
            torque_max=np.asarray(robot.column("torque_max_nm")),
            tilt_max_rad=tilt_max_rad,
            stale_ticks_max=stale_ticks_max,
        )


@dataclass(frozen=True)
class SafeTarget:
    """A target that passed through `limit` or `hold`; nothing else can make one.

    Attributes:
        rad: the target (joints,) [rad].
        clamps: what was changed, one for each joint and reason.
    """

    rad: np.ndarray
    clamps: tuple[Clamp, ...] = ()
    _key: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise SafetyError("target: made by hand; expected one from deploy.robot.safety.limit or hold")
        self.rad.setflags(write=False)

    def __iter__(self):
        """Unpacks as `(target, clamps)`."""
        return iter((self.rad, self.clamps))


@dataclass(frozen=True)
class Gains:
    """What every motor's controller is set to, always all four; (joints,) each.

    Attributes:
        kp: [N m/rad].
        kd: [N m s/rad].
        max_torque: [N m].
        torque_enabled: whether the motors may push at all.
    """

    kp: np.ndarray
    kd: np.ndarray
    max_torque: np.ndarray
    torque_enabled: bool
    _key: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise SafetyError("gains: made by hand; expected them from deploy.robot.safety.nominal, damp or off")

    @classmethod
    def _of(cls, kp: np.ndarray, kd: np.ndarray, limits: Limits, on: bool = True) -> Self:
        return cls(kp, kd, limits.torque_limit, on, _KEY)


def nominal(limits: Limits) -> Gains:
    """The gains that the policy was trained with, torque limited and on."""
    return Gains._of(limits.kp, limits.kd, limits)


def damp(limits: Limits) -> Gains:
    """The gains of a safe stop: no stiffness, nominal damping, torque limited and on.

    The robot sinks slowly instead of dropping (torque off) or fighting for a stale target (kp on),
    and stays so: nothing has to be alive on this side to keep it there.
    """
    return Gains._of(np.zeros_like(limits.kp), limits.kd, limits)


def off(limits: Limits) -> Gains:
    """The motors without any force: a robot drops, as when its power is cut."""
    return Gains._of(np.zeros_like(limits.kp), np.zeros_like(limits.kd), limits, on=False)


def hold(state: RobotState) -> SafeTarget:
    """The measured position as the target: no torque at standstill, whatever the gains are."""
    return SafeTarget(np.array(state.joint_position, dtype=np.float64), (), _KEY)


def limit(
    target: np.ndarray | Sequence[float],
    previous_target: np.ndarray,
    state: RobotState,
    limits: Limits,
    dt: float,
) -> SafeTarget:
    """The nearest target that may be sent; iterates as `(target, clamps)`.

    In this order, so that the last word has what protects most: a target that is not finite holds the
    previous one; the target moves at most at the motor's no-load speed from the previous one; it stays
    so near to the measured position that the motor is asked for no more than its torque limit; it stays
    within the position limits.

    The distance leaves out what damping takes: kp |target - position| <= torque_limit + kd |velocity|
    on the side that the joint moves to, so the motor law, which limits the sum, gives the same torque
    as for the target asked for.

    Args:
        target: asked for (joints,) [rad].
        previous_target: sent last (joints,) [rad].
        state: measured.
        limits: of this robot.
        dt: time since the previous target was sent [s].
    """
    asked = np.asarray(target, dtype=np.float64)
    n = len(limits.names)
    if asked.shape != (n,):
        raise SafetyError(f"target: shape {asked.shape}, expected ({n},), one for each joint")
    clamps: list[Clamp] = []

    def note(kind: ClampKind, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        # a rounding error of the bound itself is not an intervention
        changed = ~(np.abs(after - before) <= 1e-9)
        clamps.extend(Clamp(limits.names[i], kind) for i in np.flatnonzero(changed))
        return after

    finite = note(ClampKind.NOT_FINITE, asked, np.where(np.isfinite(asked), asked, previous_target))
    step = limits.velocity_max * max(dt, 0.0)
    slowed = np.clip(finite, previous_target - step, previous_target + step)
    drag = limits.kd * state.joint_velocity
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(limits.kp > 0, (limits.torque_limit + np.maximum(-drag, 0.0)) / limits.kp, np.inf)
        above = np.where(limits.kp > 0, (limits.torque_limit + np.maximum(drag, 0.0)) / limits.kp, np.inf)
    position = state.joint_position

    def bounded(values: np.ndarray) -> np.ndarray:
        return np.clip(values, position - below, position + above)

    # where torque bounds the target further than speed does, speed changed nothing: the previous target was bounded
    # by torque too, so that a target which moves slowly seems to jump from it
    without, safe = (np.clip(bounded(v), limits.lower, limits.upper) for v in (finite, slowed))
    note(ClampKind.SPEED, without, safe)
    safe = note(ClampKind.TORQUE, np.where(np.abs(safe - without) <= 1e-9, finite, slowed), bounded(slowed))
    safe = note(ClampKind.POSITION, safe, np.clip(safe, limits.lower, limits.upper))
    return SafeTarget(safe, tuple(clamps), _KEY)


def check_state(state: RobotState, limits: Limits, stale_ticks: int = 0) -> tuple[Fault, ...]:
    """What forbids going on; empty when all is well. A fall comes first."""
    faults: list[Fault] = []
    for name in ("joint_position", "joint_velocity", "joint_torque", "quat_wxyz", "gyro_b", "accel_b"):
        bad = np.flatnonzero(~np.isfinite(getattr(state, name)))
        if bad.size:
            where = ", ".join(limits.names[i] for i in bad) if name.startswith("joint") else "IMU"
            faults.append(Fault(kind=FaultKind.NOT_FINITE, where=where, detail=name))
    if faults:
        return tuple(faults)
    if state.tilt_rad > limits.tilt_max_rad:
        faults.append(Fault(kind=FaultKind.FALL, value=state.tilt_rad, high=limits.tilt_max_rad))
    faults += _out_of_range(state, limits, limits.range_slack_rad)
    spin = float(np.linalg.norm(state.gyro_b))
    if spin > limits.spin_max_rad_s:
        faults.append(Fault(kind=FaultKind.SPIN, where="gyro", value=spin, high=limits.spin_max_rad_s))
    for kind, values, most in (
        (FaultKind.OVER_SPEED, state.joint_velocity, limits.over_speed * limits.velocity_max),
        (FaultKind.OVER_TORQUE, state.joint_torque, limits.over_torque * limits.torque_max),
    ):
        faults += [
            Fault(kind=kind, where=limits.names[i], value=values[i], low=-most[i], high=most[i])
            for i in np.flatnonzero(np.abs(values) > most)
        ]
    if state.joint_temperature is not None:
        for i in np.flatnonzero(state.joint_temperature > limits.temperature_max_c):
            heat = state.joint_temperature[i]
            faults.append(
                Fault(kind=FaultKind.TOO_HOT, where=limits.names[i], value=heat, high=limits.temperature_max_c)
            )
    if stale_ticks > limits.stale_ticks_max:
        faults.append(Fault(kind=FaultKind.STALE, value=stale_ticks, high=limits.stale_ticks_max))
    return tuple(faults)


def _out_of_range(state: RobotState, limits: Limits, slack_rad: float) -> list[Fault]:
    position = state.joint_position
    outside = (position < limits.lower - slack_rad) | (position > limits.upper + slack_rad)
    return [
        Fault(
            kind=FaultKind.OUT_OF_RANGE,
            where=limits.names[i],
            value=position[i],
            low=limits.lower[i],
            high=limits.upper[i],
        )
        for i in np.flatnonzero(outside)
    ]


def gravity_error_rad(state: RobotState) -> float | None:
    """Angle between up by the accelerometer and up by the orientation [rad].

    None where the accelerometer does not read about gravity, as while it is shaken, or in a simulator that holds the
    base.
    """
    size = float(np.linalg.norm(state.accel_b))
    if not 0.7 < size / GRAVITY_M_S2 < 1.3:
        return None
    cosine = -float(state.accel_b @ state.projected_gravity) / (size * GRAVITY_M_S2)
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)))


def check_imu(state: RobotState, accelerometer: bool) -> tuple[Fault, ...]:
    """What forbids starting in an IMU at rest: its parts have different frames.

    Args:
        state: measured.
        accelerometer: whether the policy reads it. Where it does not, one that tells gravity in place of the specific
            force is no matter.
    """
    error = gravity_error_rad(state)
    if error is None or error < FRAME_MAX_RAD or (error > math.pi - FRAME_MAX_RAD and not accelerometer):
        return ()
    fault = Fault(kind=FaultKind.IMU, where="IMU", value=math.degrees(error), high=math.degrees(FRAME_MAX_RAD))
    return (fault,)


def _check_turn(state: RobotState, before: RobotState, dt: float, limits: Limits) -> tuple[Fault, ...]:
    if not 0.0 < dt < TURN_READ_S:
        return ()
    turned = float(np.linalg.norm(rotvec_between(before.quat_wxyz, state.quat_wxyz)))
    spin = max(float(np.linalg.norm(before.gyro_b)), float(np.linalg.norm(state.gyro_b)))
    most = limits.turn_max_rad + (TURN_GAP_S + dt) * spin
    if not turned > most:
        return ()
    detail = f"within {1e3 * dt:.0f} ms, at {spin:.1f} rad/s"
    return (Fault(kind=FaultKind.TURNED, where="orientation", value=turned, high=most, detail=detail),)


def check_motion(state: RobotState, before: RobotState, dt: float, limits: Limits) -> tuple[Fault, ...]:
    """What forbids going on between two readings that are `dt` apart [s]."""
    jumped = _check_turn(state, before, dt, limits)
    if not 0.0 < dt < MOTION_GAP_S:
        return jumped
    v0, v1 = before.joint_velocity, state.joint_velocity
    # a joint that speeds up is anywhere between what both speeds say, and a server may tell the feedback of the period
    # before, once or twice
    slack = limits.jump_max_rad + (0.5 * np.abs(v1 - v0) + np.maximum(np.abs(v0), np.abs(v1))) * dt
    moved = state.joint_position - before.joint_position
    return jumped + tuple(
        Fault(
            kind=FaultKind.JUMPED,
            where=limits.names[i],
            value=moved[i],
            low=-slack[i],
            high=slack[i],
            detail=f"within {1e3 * dt:.0f} ms, at {v1[i]:+.1f} rad/s",
        )
        for i in np.flatnonzero(np.abs(moved - 0.5 * (v0 + v1) * dt) > slack)
    )


def check_action(action: np.ndarray, limits: Limits) -> tuple[Fault, ...]:
    """What a policy that has gone wrong asks for (joints,) [rad]; one fault at most."""
    wild = np.flatnonzero((action < limits.lower - WILD_RAD) | (action > limits.upper + WILD_RAD))
    if not wild.size:
        return ()
    i, more = wild[0], f" and {wild.size - 1} more joints" if wild.size > 1 else ""
    low, high = limits.lower[i], limits.upper[i]
    return (Fault(kind=FaultKind.WILD, where=limits.names[i], value=action[i], low=low, high=high, detail=more),)


def check_start(state: RobotState, limits: Limits) -> tuple[Fault, ...]:
    """What forbids starting: `check_state`, with the position limits taken at their word but for zero offsets."""
    faults = check_state(state, limits)
    if any(fault.kind is FaultKind.NOT_FINITE for fault in faults):
        return faults
    told = {fault.where for fault in faults if fault.kind is FaultKind.OUT_OF_RANGE}
    return (*faults, *(f for f in _out_of_range(state, limits, START_SLACK_RAD) if f.where not in told))
