"""The values that the rooms of ksim exchange.

Names of axes: E environments, n joints, k channels of the sensor line. Terms see one environment
(no leading E); the environment vmaps them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from robots.motor import MotorParams

GRAVITY = 9.81


class PhysicsParams(NamedTuple):
    """What differs between environments and stays for an episode.

    Attributes:
        model: MjModel fields by name, each (E, *field shape).
        motor: parameters of the motor law, each (E, n).
        joint_offset: error of the encoder's zero [rad], (E, n): encoder = joint + offset. The motor
            regulates the encoder's angle, as the real one does.
        action_latency: mean latency from policy to motor [s], (E,).
        observation_latency: mean latency from sensor to policy [s], (E,).
        imu_tilt: rotation vector by which the IMU is mounted askew [rad], (E, 3).
    """

    model: dict[str, Any]
    motor: MotorParams
    joint_offset: Any
    action_latency: Any
    observation_latency: Any
    imu_tilt: Any


class Sensors(NamedTuple):
    """What the robot's sensors give, without noise, in the order of the sensor line's channels.

    Attributes:
        joint_position: encoder angles [rad], (..., n).
        joint_velocity: encoder velocities [rad/s], (..., n).
        gravity_b: gravity in the IMU frame [m/s^2], (..., 3); upright is (0, 0, -9.81).
        gyro_b: angular velocity in the IMU frame [rad/s], (..., 3).
        accel_b: proper acceleration in the IMU frame [m/s^2], (..., 3).
    """

    joint_position: Any
    joint_velocity: Any
    gravity_b: Any
    gyro_b: Any
    accel_b: Any

    def flat(self, xp: Any) -> Any:
        """All channels in one vector, (..., 2 n + 9)."""
        return xp.concatenate(list(self), axis=-1)

    @classmethod
    def unflat(cls, vector: Any, joints: int) -> Sensors:
        """The inverse of `flat`."""
        n = joints
        parts = [vector[..., :n], vector[..., n : 2 * n]]
        return cls(*parts, *(vector[..., 2 * n + 3 * i : 2 * n + 3 * i + 3] for i in range(3)))


class PhysicsState(NamedTuple):
    """The state after a control step, the same for every engine.

    Attributes:
        qpos: generalised positions, (E, nq).
        qvel: generalised velocities, (E, nv).
        joint_position: true joint angles [rad], (E, n).
        joint_velocity: true joint velocities [rad/s], (E, n).
        torque: drive torque of the last physics step, before friction [N m], (E, n).
        sensors: the sensors now, without noise.
        foot_force: contact force of each foot [N], (E, feet).
        command_line: past targets, newest first, one per physics step [rad], (E, depth, n).
        sensor_line: past sensors, newest first, one per physics step, (E, depth, k).
        internal: what the engine keeps besides; () or a pytree.
    """

    qpos: Any
    qvel: Any
    joint_position: Any
    joint_velocity: Any
    torque: Any
    sensors: Sensors
    foot_force: Any
    command_line: Any
    sensor_line: Any
    internal: Any = ()


class Drive(NamedTuple):
    """What acts on the robot during one control step.

    Attributes:
        target: joint targets sent by the policy [rad], (E, n).
        latency: latency of this step's target [s], (E,).
        force_w: force on the base in the world frame [N], (E, 3).
    """

    target: Any
    latency: Any
    force_w: Any


class Event(NamedTuple):
    """A running push: force in the world frame [N], (3,), the time it still lasts and the time to the next [s]."""

    force_w: Any
    left_s: Any
    next_s: Any


class EnvState(NamedTuple):
    """One environment between two control steps, without its physics.

    Attributes:
        key: random key of this environment.
        step: control steps since the reset.
        command: the command vector, (commands,).
        target: targets of the last step [rad], (n,).
        action: the policy's last raw action, (actions,).
        action_before: the one before, (actions,).
        event: the push.
    """

    key: Any
    step: Any
    command: Any
    target: Any
    action: Any
    action_before: Any
    event: Event
