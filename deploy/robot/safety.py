"""The safety layer: pure functions between whatever wants to move the robot and the robot.

deploy/robot/kos.py accepts only a `SafeTarget` and `Gains`, and only this module makes them: a target that
did not pass through here cannot be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from deploy.errors import SafetyError
from deploy.robot.state import RobotState
from robots.inputs import LIMIT_SLACK_RAD
from robots.rotation import rotvec_between
from robots.spec import PolicySpec, RobotSpec

_KEY = object()
# Joint zero offsets of up to 3 degrees are usual on the K-Bot (K-Scale's randomization range), so a
# robot at a stop may read that much beyond its limit.
START_SLACK_RAD = 0.06
FALL = "fall: "
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
        tilt_max_rad: more tilt of the IMU than this is a fall [rad].
        range_slack_rad: how far beyond its limits a joint may be measured [rad]; as in a policy's inputs.
        over_speed: a joint faster than this many times its no-load speed is a fault.
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
    tilt_max_rad: float = 1.0
    range_slack_rad: float = LIMIT_SLACK_RAD
    over_speed: float = 1.5
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
            tilt_max_rad=tilt_max_rad,
            stale_ticks_max=stale_ticks_max,
        )


@dataclass(frozen=True)
class SafeTarget:
    """A target that passed through `limit` or `hold`; nothing else can make one.

    Attributes:
        rad: the target (joints,) [rad].
        reasons: what was changed, one string a joint and reason.
    """

    rad: np.ndarray
    reasons: tuple[str, ...] = ()
    _key: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise SafetyError("target: made by hand; expected one from deploy.robot.safety.limit or hold")
        self.rad.setflags(write=False)

    def __iter__(self):
        """Unpacks as `(target, reasons)`."""
        return iter((self.rad, self.reasons))


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
            raise SafetyError("gains: made by hand; expected them from deploy.robot.safety.nominal or damp")

    @classmethod
    def _of(cls, kp: np.ndarray, limits: Limits) -> Self:
        return cls(kp, limits.kd, limits.torque_limit, True, _KEY)


def nominal(limits: Limits) -> Gains:
    """The gains that the policy was trained with, torque limited and on."""
    return Gains._of(limits.kp, limits)


def damp(limits: Limits) -> Gains:
    """The gains of a safe stop: no stiffness, nominal damping, torque limited and on.

    The robot sinks slowly instead of dropping (torque off) or fighting for a stale target (kp on),
    and stays so: nothing has to be alive on this side to keep it there.
    """
    return Gains._of(np.zeros_like(limits.kp), limits)


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
    """The nearest target that may be sent; iterates as `(target, reasons)`.

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
    reasons: list[str] = []

    def note(what: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        # a rounding error of the bound itself is not an intervention
        changed = ~(np.abs(after - before) <= 1e-9)
        reasons.extend(f"{limits.names[i]}: {what}" for i in np.flatnonzero(changed))
        return after

    finite = note("not finite", asked, np.where(np.isfinite(asked), asked, previous_target))
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
    note("target speed", without, safe)
    safe = note("torque", np.where(np.abs(safe - without) <= 1e-9, finite, slowed), bounded(slowed))
    safe = note("position limit", safe, np.clip(safe, limits.lower, limits.upper))
    return SafeTarget(safe, tuple(reasons), _KEY)


def check_state(state: RobotState, limits: Limits, stale_ticks: int = 0) -> list[str]:
    """What forbids going on, one string each; empty when all is well. A fall is the first and starts with FALL."""
    faults: list[str] = []
    for name in ("joint_position", "joint_velocity", "joint_torque", "quat_wxyz", "gyro_b", "accel_b"):
        bad = np.flatnonzero(~np.isfinite(getattr(state, name)))
        if bad.size:
            where = ", ".join(limits.names[i] for i in bad) if name.startswith("joint") else "IMU"
            faults.append(f"not finite: {name} of {where}")
    if faults:
        return faults
    if state.tilt_rad > limits.tilt_max_rad:
        faults.append(f"{FALL}tilt {state.tilt_rad:.2f} rad, limit {limits.tilt_max_rad:.2f} rad")
    low, high = limits.lower - limits.range_slack_rad, limits.upper + limits.range_slack_rad
    for i in np.flatnonzero((state.joint_position < low) | (state.joint_position > high)):
        faults.append(
            f"joint out of range: {limits.names[i]} at {state.joint_position[i]:.3f} rad, "
            f"limits [{limits.lower[i]:.3f}, {limits.upper[i]:.3f}] rad"
        )
    for i in np.flatnonzero(np.abs(state.joint_velocity) > limits.over_speed * limits.velocity_max):
        faults.append(
            f"over-speed: {limits.names[i]} at {state.joint_velocity[i]:.1f} rad/s, "
            f"limit {limits.over_speed * limits.velocity_max[i]:.1f} rad/s"
        )
    if state.joint_temperature is not None:
        for i in np.flatnonzero(state.joint_temperature > limits.temperature_max_c):
            faults.append(
                f"too hot: {limits.names[i]} at {state.joint_temperature[i]:.0f} C, "
                f"limit {limits.temperature_max_c:g} C"
            )
    if stale_ticks > limits.stale_ticks_max:
        faults.append(f"stale: nothing new measured for {stale_ticks} ticks, limit {limits.stale_ticks_max}")
    return faults


def _check_turn(state: RobotState, before: RobotState, dt: float, limits: Limits) -> list[str]:
    if not 0.0 < dt < TURN_READ_S:
        return []
    turned = float(np.linalg.norm(rotvec_between(before.quat_wxyz, state.quat_wxyz)))
    spin = max(float(np.linalg.norm(before.gyro_b)), float(np.linalg.norm(state.gyro_b)))
    if turned <= limits.turn_max_rad + (TURN_GAP_S + dt) * spin:
        return []
    return [f"orientation jumped: by {turned:.2f} rad within {1e3 * dt:.0f} ms, at {spin:.1f} rad/s"]


def check_motion(state: RobotState, before: RobotState, dt: float, limits: Limits) -> list[str]:
    """What forbids going on between two readings that are `dt` apart [s], one string each."""
    jumped = _check_turn(state, before, dt, limits)
    if not 0.0 < dt < MOTION_GAP_S:
        return jumped
    v0, v1 = before.joint_velocity, state.joint_velocity
    # a joint that speeds up is anywhere between what both speeds say, and a server may tell the feedback of the period
    # before, once or twice
    slack = limits.jump_max_rad + (0.5 * np.abs(v1 - v0) + np.maximum(np.abs(v0), np.abs(v1))) * dt
    moved = state.joint_position - before.joint_position
    return jumped + [
        f"jumped: {limits.names[i]} by {moved[i]:+.2f} rad within {1e3 * dt:.0f} ms, at {v1[i]:+.1f} rad/s"
        for i in np.flatnonzero(np.abs(moved - 0.5 * (v0 + v1) * dt) > slack)
    ]


def check_action(action: np.ndarray, limits: Limits) -> list[str]:
    """What a policy that has gone wrong asks for, one string each: (joints,) [rad]."""
    wild = np.flatnonzero((action < limits.lower - WILD_RAD) | (action > limits.upper + WILD_RAD))
    if not wild.size:
        return []
    i, more = wild[0], f" and {wild.size - 1} more joints" if wild.size > 1 else ""
    return [
        f"policy: asks for {action[i]:.4g} rad of {limits.names[i]}{more}, "
        f"limits [{limits.lower[i]:.3f}, {limits.upper[i]:.3f}] rad"
    ]


def check_start(state: RobotState, limits: Limits) -> list[str]:
    """What forbids starting: `check_state`, with the position limits taken at their word but for zero offsets."""
    faults = check_state(state, limits)
    low, high = limits.lower - START_SLACK_RAD, limits.upper + START_SLACK_RAD
    outside = np.flatnonzero((state.joint_position < low) | (state.joint_position > high))
    seen = " ".join(faults)
    for i in outside:
        if f"out of range: {limits.names[i]} " not in seen:
            faults.append(
                f"joint out of range: {limits.names[i]} at {state.joint_position[i]:.3f} rad, "
                f"limits [{limits.lower[i]:.3f}, {limits.upper[i]:.3f}] rad"
            )
    return faults
