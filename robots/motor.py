"""The motor law: PD about a target, a torque limit that falls with speed, friction.

Written once against an array namespace: `xp` is numpy or jax.numpy. MJX training, CPU training,
the twin, the parity replay and identification all call it. Nothing of it is left to MuJoCo: the
built models have no joint damping and no friction loss (see robots/model.py), because joint friction
as a constraint costs MuJoCo 17 % and two laws would be two truths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from robots.spec import RobotSpec

# Share of the no-load speed up to which a motor gives its full torque; beyond, the torque falls
# linearly to zero at the no-load speed. A guess: the Robstride data give peak torque and no-load
# speed, not the curve between.
KNEE = 0.5


class MotorParams(NamedTuple):
    """Parameters of the law, each of shape (..., joints), in SI.

    kp [N m/rad], kd [N m s/rad], torque_limit [N m], velocity_max [rad/s], friction [N m],
    damping [N m s/rad], armature [kg m^2].
    """

    kp: Any
    kd: Any
    torque_limit: Any
    velocity_max: Any
    friction: Any
    damping: Any
    armature: Any

    @classmethod
    def of(cls, robot: RobotSpec) -> MotorParams:
        """The nominal parameters of a robot, numpy float64 of shape (joints,)."""
        fields = ("kp", "kd", "torque_limit_nm", "velocity_max_rad_s", "friction_nm", "damping", "armature")
        return cls(*(np.asarray(robot.column(f)) for f in fields))


def drive_torque(params: MotorParams, position: Any, velocity: Any, target: Any, xp: Any = np) -> Any:
    """Torque that the motor's controller produces, before friction, (..., joints) [N m].

    The limit holds in full when the torque brakes, and falls with speed when it drives.
    """
    torque = params.kp * (target - position) - params.kd * velocity
    left = (1.0 - xp.abs(velocity) / params.velocity_max) / (1.0 - KNEE)
    drive = params.torque_limit * xp.clip(left, 0.0, 1.0)
    high = xp.where(velocity > 0, drive, params.torque_limit)
    low = xp.where(velocity < 0, drive, params.torque_limit)
    return xp.clip(torque, -low, high)


def friction_torque(params: MotorParams, velocity: Any, dt: float, xp: Any = np) -> Any:
    """Friction at the joint, (..., joints) [N m], opposed to the velocity.

    Coulomb friction is rounded off near standstill so that one step of `dt` cannot reverse the
    rotor's own inertia: an explicit integrator stays stable whatever the friction is.
    """
    stop = params.armature * velocity / dt
    return -xp.clip(stop, -params.friction, params.friction) - params.damping * velocity


def joint_torque(
    params: MotorParams, position: Any, velocity: Any, target: Any, dt: float, xp: Any = np
) -> tuple[Any, Any]:
    """(drive, net): what a torque sensor at the motor would show, and what the joint feels [N m]."""
    drive = drive_torque(params, position, velocity, target, xp)
    return drive, drive + friction_torque(params, velocity, dt, xp)
