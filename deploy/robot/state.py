"""What a robot tells about itself at one instant, in SI, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robots.rotation import GRAVITY_M_S2, gravity_in_frame, yaw_of


@dataclass(frozen=True, kw_only=True)
class RobotState:
    """One reading of a robot; vectors of joints are in the order of the robot's specification.

    Attributes:
        joint_position: (joints,) [rad].
        joint_velocity: (joints,) [rad/s].
        joint_torque: (joints,) [N m].
        quat_wxyz: orientation of the IMU in the world, unit length, (4,).
        gyro_b: angular velocity in the IMU's frame, (3,) [rad/s].
        accel_b: specific force in the IMU's frame, (3,) [m/s^2].
        time_s: monotonic clock when the answer was complete [s].
        round_trip_s: from the question to the complete answer [s].
        joint_temperature: of the motors, NaN where one tells none (joints,) [Celsius]; None where none does.
    """

    joint_position: np.ndarray
    joint_velocity: np.ndarray
    joint_torque: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    time_s: float
    round_trip_s: float
    joint_temperature: np.ndarray | None = None

    @property
    def projected_gravity(self) -> np.ndarray:
        """Gravity in the IMU's frame, (3,) [m/s^2]; upright it is (0, 0, -9.81)."""
        return gravity_in_frame(self.quat_wxyz)

    @property
    def tilt_rad(self) -> float:
        """Angle between the IMU's z axis and up [rad]."""
        return float(np.arccos(np.clip(-self.projected_gravity[2] / GRAVITY_M_S2, -1.0, 1.0)))

    @property
    def heading_rad(self) -> float:
        """Yaw of the IMU [rad]."""
        return float(yaw_of(self.quat_wxyz))

    def same_reading(self, other: RobotState) -> bool:
        """Whether every measured number is the same to the bit: nothing new was measured in between."""
        names = ("joint_position", "joint_velocity", "joint_torque", "quat_wxyz", "gyro_b", "accel_b")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
