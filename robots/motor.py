"""The motor law: PD about a target, a torque limit that falls with speed, dry friction that holds, play, a spring.

Written once against an array namespace: `xp` is numpy or jax.numpy. MJX training, CPU training,
the twin, the parity replay and identification all call it. Nothing of it is left to MuJoCo: the
built models have no joint damping and no friction loss (see robots/model.py), because joint friction
as a constraint costs MuJoCo 17 % and two laws would be two truths.

The chain is: controller and encoder - rotor with its friction - gap (play) - spring (compliance) - joint.

Friction is a bristle: a spring from the rotor to an anchor, which slides where the bristle would pull more than
friction can (Haessig and Friedland 1991, the reset integrator). Its stiffness is armature / dt^2, the greatest that
an explicit step carries whatever the joint weighs, so a held joint gives way by load * dt^2 / armature and then stays.
Friction needs an armature: a joint that has none has no dry friction.

Behind a gap or a spring the rotor has no mass of its own: its inertia stays on the joint, its position is where the
torques balance at the end of the step. The other form, a rotor with inertia in the law, leaves the joint without
armature, and a light link on a stiff spring then explodes at the steps in use. benchmarks/motor_law.py compares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from robots.spec import RobotSpec

# Share of the no-load speed up to which a motor gives its full torque; beyond, the torque falls
# linearly to zero at the no-load speed. A guess: the Robstride data give peak torque and no-load
# speed, not the curve between.
KNEE = 0.5
# Sliding speed at which half of the stiction is gone [rad/s]; the curve 1 / (1 + (v / v0)^2) is Hess and Soom's
# (1990). A guess: nobody has published a Stribeck curve of these motors.
STRIBECK_RAD_S = 0.1
# Time constant of the spring's own damping [s]; without it a light link would ring on its spring for ever while
# friction holds the motor. A guess: 6 % of critical damping at 10 Hz.
SHAFT_RELAX_S = 0.002
# Stands for zero where something is divided by a stiffness that may be zero [N m/rad].
_TINY = 1e-9


class MotorParams(NamedTuple):
    """Parameters of the law, each of shape (..., joints) or a number, in SI.

    kp [N m/rad], kd [N m s/rad], torque_limit [N m], velocity_max [rad/s], friction [N m],
    damping [N m s/rad], armature [kg m^2], stiction: breakaway torque above the friction [N m],
    play: full width of the gap between motor and joint [rad], compliance of the spring between
    them [rad/(N m)], 1 / stiffness; 0 is rigid, load_friction: friction more, as a share of what the
    motor's controller gives: a gear rubs more under load. A plain 0.0 in the last four costs nothing.
    """

    kp: Any
    kd: Any
    torque_limit: Any
    velocity_max: Any
    friction: Any
    damping: Any
    armature: Any
    stiction: Any = 0.0
    play: Any = 0.0
    compliance: Any = 0.0
    load_friction: Any = 0.0

    @classmethod
    def of(cls, robot: RobotSpec) -> MotorParams:
        """The nominal parameters of a robot, numpy float64 of shape (joints,)."""
        fields = ("kp", "kd", "torque_limit_nm", "velocity_max_rad_s", "friction_nm", "damping", "armature")
        columns = [np.asarray(robot.column(f)) for f in fields]
        return cls(*columns, *(np.zeros_like(columns[0]) for _ in range(4)))


class MotorState(NamedTuple):
    """What the law remembers, each (..., joints).

    anchor: where friction holds the rotor [rad]. slip: speed at which the anchor slid in the last step [rad/s];
    0 where friction holds. twist: position of the motor less that of the joint [rad], and twist_rate [rad/s]:
    both 0 where there is neither play nor compliance.
    """

    anchor: Any
    slip: Any
    twist: Any
    twist_rate: Any


class SoftJoints(NamedTuple):
    """The joints that have play or a spring anywhere in a batch, numpy; None stands for all of them.

    Attributes:
        index: which they are.
        params: the law's parameters of those alone.
    """

    index: Any
    params: MotorParams

    @classmethod
    def of(cls, params: MotorParams) -> SoftJoints:
        """Of the parameters of all joints, each (..., joints) or a number."""
        loose = np.atleast_1d((np.asarray(params.play) != 0) | (np.asarray(params.compliance) != 0))
        joints = max(np.shape(value)[-1] if np.ndim(value) else 1 for value in params)
        loose = np.broadcast_to(loose.reshape(-1, loose.shape[-1]).any(axis=0), joints)
        if loose.all():
            return cls(None, params)
        index = np.flatnonzero(loose)
        wide = (np.ndim(value) and np.shape(value)[-1] == joints for value in params)
        few = (value[..., index] if is_wide else value for value, is_wide in zip(params, wide, strict=True))
        return cls(index, MotorParams(*few))


def wound(params: MotorParams, torque: Any, xp: Any = np) -> Any:
    """Twist of a shaft that carries a `torque` (..., joints) [N m]: the gap closed and the spring bent [rad]."""
    return 0.5 * params.play * xp.sign(torque) + params.compliance * torque


def rest(params: MotorParams, position: Any, xp: Any = np, *, torque: Any = 0.0) -> MotorState:
    """The memory of motors that have stood for long, friction unloaded.

    Args:
        params: of the law.
        position: of the joint, (..., joints) [rad].
        xp: numpy or jax.numpy.
        torque: that the shaft carries, a number or (..., joints) [N m].
    """
    zero = xp.zeros_like(xp.asarray(position))
    twist = zero + wound(params, zero + torque, xp)
    return MotorState(anchor=position + twist, slip=zero, twist=twist, twist_rate=zero)


def encoder(params: MotorParams, state: MotorState, position: Any, velocity: Any, xp: Any = np) -> tuple[Any, Any]:
    """(position, velocity) that an encoder on the motor's side shows [rad, rad/s]: it sees neither gap nor spring.

    `position` and `velocity` are the joint's.
    """
    return position + state.twist, velocity + state.twist_rate


def _off(value: Any) -> bool:
    """Whether a parameter is known to be zero everywhere; what jax traces is not known."""
    if isinstance(value, np.ndarray):
        return not value.any()
    return isinstance(value, (int, float, np.generic)) and not value


def _cut(value: Any, low: Any, high: Any, xp: Any) -> Any:
    """As `clip`, which takes twice the time in numpy where the limits are arrays."""
    return xp.minimum(xp.maximum(value, low), high)


def _torque_bounds(params: MotorParams, velocity: Any, xp: Any) -> tuple[Any, Any]:
    """(low, high): the least and the greatest torque at a speed [N m]."""
    left = (1.0 - xp.abs(velocity) / params.velocity_max) / (1.0 - KNEE)
    if xp is np and (left >= 1.0).all():  # no motor is that fast: the same to the bit, sooner; jax cannot look
        return -params.torque_limit, params.torque_limit
    drive = params.torque_limit * _cut(left, 0.0, 1.0, xp)
    high = xp.where(velocity > 0, drive, params.torque_limit)
    low = xp.where(velocity < 0, drive, params.torque_limit)
    return -low, high


def _pd(params: MotorParams, position: Any, velocity: Any, target: Any, target_velocity: Any, feedforward: Any) -> Any:
    """What the controller asks for before its limit [N m]."""
    speed = velocity if _off(target_velocity) else velocity - target_velocity
    torque = params.kp * (target - position) - params.kd * speed
    return torque if _off(feedforward) else torque + feedforward


def drive_torque(
    params: MotorParams,
    position: Any,
    velocity: Any,
    target: Any,
    xp: Any = np,
    *,
    target_velocity: Any = 0.0,
    feedforward: Any = 0.0,
) -> Any:
    """Torque that the motor's controller produces, before friction, (..., joints) [N m].

    The limit holds in full when the torque brakes, and falls with speed when it drives.

    Args:
        params: of the law.
        position: of the motor [rad].
        velocity: of the motor [rad/s].
        target: position asked for [rad].
        xp: numpy or jax.numpy.
        target_velocity: velocity asked for [rad/s].
        feedforward: torque added to the controller's, inside its limit [N m].
    """
    low, high = _torque_bounds(params, velocity, xp)
    return _cut(_pd(params, position, velocity, target, target_velocity, feedforward), low, high, xp)


def step(
    params: MotorParams,
    state: MotorState,
    position: Any,
    velocity: Any,
    target: Any,
    dt: float,
    xp: Any = np,
    *,
    target_velocity: Any = 0.0,
    feedforward: Any = 0.0,
    soft: SoftJoints | None = None,
) -> tuple[Any, Any, MotorState]:
    """One physics step of the law.

    Args:
        params: of the law.
        state: its memory, of `rest` or of the step before.
        position: true joint position, (..., joints) [rad].
        velocity: joint velocity [rad/s].
        target: position asked for, in the joint's own zero [rad].
        dt: the physics step [s].
        xp: numpy or jax.numpy.
        target_velocity: velocity asked for [rad/s].
        feedforward: torque added to the controller's, inside its limit [N m].
        soft: of these parameters, for who steps with the same ones many times in numpy; found anew if not given.

    Returns:
        (drive, net, next state): the torque before friction, which a torque sensor at the motor shows, and the
        torque that the joint feels, both (..., joints) [N m].
    """
    level = params.friction
    if not _off(params.stiction):
        speed = state.slip * (1.0 / STRIBECK_RAD_S)
        level = level + params.stiction / (1.0 + speed * speed)
    bristle = xp.maximum(params.armature * (1.0 / dt**2), _TINY)
    bounds = _torque_bounds(params, velocity, xp)
    asked = _pd(params, position, velocity, target, target_velocity, feedforward)
    if not _off(params.load_friction):
        level = level + params.load_friction * xp.abs(_cut(asked, *bounds, xp))
    # the bristle as it will be at the end of the step: so it stops a rotor in one step and does not throw it back
    pull = bristle * (position - state.anchor + dt * velocity)
    viscous = params.damping * velocity
    twist, twist_rate = state.twist, state.twist_rate
    if not (_off(params.play) and _off(params.compliance)):
        lines = (state.twist, asked, *bounds, pull, level, bristle, viscous)
        if xp is np:
            drive, net, twist = _balance_soft(params, lines, dt, soft or SoftJoints.of(params))
        else:
            drive, net, twist = _balance(params, lines, dt, xp)
        twist_rate = (twist - state.twist) * (1.0 / dt)
        position = position + twist
    else:
        drive = _cut(asked, *bounds, xp)
        net = drive - _cut(pull, -level, level, xp) - viscous
    reach = level / bristle
    anchor = position - _cut(position - state.anchor, -reach, reach, xp)
    slip = (anchor - state.anchor) * (1.0 / dt)
    return drive, net, MotorState(anchor=anchor, slip=slip, twist=twist, twist_rate=twist_rate)


def _balance_soft(params: MotorParams, lines: tuple[Any, ...], dt: float, soft: SoftJoints) -> tuple[Any, Any, Any]:
    """As `_balance`, in numpy: only those joints that have play or a spring anywhere in the batch.

    `lines` are the arguments from `before` to `viscous`.
    """
    _, asked, low, high, pull, level, _, viscous = lines
    if soft.index is None:
        return _balance(params, lines, dt, np)
    drive = _cut(asked, low, high, np)
    net, twist = drive - _cut(pull, -level, level, np) - viscous, np.zeros_like(asked)
    # taken at once: one by one they take as long as what is done with them
    rows = np.empty((len(lines), *asked.shape), asked.dtype)
    for i, line in enumerate(lines):
        rows[i] = line
    some = _balance(soft.params, tuple(rows[..., soft.index]), dt, np)
    for whole, part in zip((drive, net, twist), some, strict=True):
        whole[..., soft.index] = part
    return drive, net, twist


def _balance(params: MotorParams, lines: tuple[Any, ...], dt: float, xp: Any) -> tuple[Any, Any, Any]:
    """The rotor's place between controller, friction and spring: (drive, torque on the joint, twist).

    The unknown is the twist at the end of the step. Controller and bristle are straight lines in it, each cut off at
    its limit, the spring is a line with a gap; their sum falls with the twist, so there is one solution. It is exact:
    with both lines whole, then with those cut off that stay cut off whichever way the twist moves, then with the rest.

    Args:
        params: of the law.
        lines: `before`: twist at the end of the step before [rad]; `asked`: what the controller asks for if the motor
            moves as the joint does, and its bounds `low` and `high` [N m]; `pull` of the bristle, likewise, and its
            greatest, `level` [N m]; `bristle`: its stiffness [N m/rad]; `viscous`: friction, likewise [N m].
        dt: the physics step [s].
        xp: numpy or jax.numpy.
    """
    before, asked, low, high, pull, level, bristle, viscous = lines
    rate = 1.0 / dt
    # a damped spring (Kelvin and Voigt) that is let go does not spring back at once: where its ends would be is the
    # gap's edge, and within the step it is stiffer by 1 + SHAFT_RELAX_S / dt
    lag = SHAFT_RELAX_S / (SHAFT_RELAX_S + dt)
    half, compliance = 0.5 * params.play, params.compliance * (1.0 - lag)
    bent = lag * (before - _cut(before, -half, half, xp))
    edge_low, edge_high = xp.minimum(bent, 0.0) - half, xp.maximum(bent, 0.0) + half
    # slopes over the twist; all three lines are given at twist 0 with the velocity of an unchanged twist
    drive_slope = params.kp + params.kd * rate
    pull_slope = 2.0 * bristle
    viscous_slope = params.damping * rate
    asked = asked + (params.kd * rate) * before
    pull = pull - bristle * before
    rest_of = -(viscous - viscous_slope * before)

    def settle(torque: Any, slope: Any) -> tuple[Any, Any]:
        """Where a line that falls from `torque` at twist 0 meets spring and gap: (torque, twist)."""
        slope = xp.maximum(slope, _TINY)
        free = _cut(torque / slope, edge_low, edge_high, xp)
        held = (torque - slope * free) / (1.0 + compliance * slope)
        return held, free + compliance * held

    def parts_at(twist: Any) -> tuple[Any, Any, Any, Any]:
        """What the two lines are at a twist, cut off, and by how much they were too great."""
        driven, pulled = asked - drive_slope * twist, pull + pull_slope * twist
        drive, hold = _cut(driven, low, high, xp), _cut(pulled, -level, level, xp)
        return drive, driven - drive, hold, pulled - hold

    def solve(drive: Any, drive_cut: Any, hold: Any, hold_cut: Any) -> tuple[Any, Any]:
        torque = xp.where(drive_cut, drive, asked) - xp.where(hold_cut, hold, pull) + rest_of
        slope = xp.where(drive_cut, 0.0, drive_slope) + xp.where(hold_cut, 0.0, pull_slope) + viscous_slope
        return settle(torque, slope)

    net, twist = settle(asked - pull + rest_of, drive_slope + pull_slope + viscous_slope)
    drive, drive_over, hold, hold_over = parts_at(twist)
    # cutting both off moves the twist this way
    way = hold_over - drive_over
    if xp is np and not (drive_over.any() or hold_over.any()):  # the same to the bit, sooner; jax cannot look
        return drive, net, twist
    drive_cut, hold_cut = way * drive_over < 0, way * hold_over > 0
    net, twist = solve(drive, drive_cut, hold, hold_cut)
    drive, drive_over, hold, hold_over = parts_at(twist)
    drive_now, hold_now = drive_cut | (drive_over != 0), hold_cut | (hold_over != 0)
    if xp is np and not ((drive_now ^ drive_cut).any() or (hold_now ^ hold_cut).any()):
        return drive, net, twist
    net, twist = solve(drive, drive_now, hold, hold_now)
    drive, _, _, _ = parts_at(twist)
    return drive, net, twist
