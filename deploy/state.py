"""What a robot tells about itself at one instant, in SI, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRAVITY_M_S2 = 9.81


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
    """

    joint_position: np.ndarray
    joint_velocity: np.ndarray
    joint_torque: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    time_s: float
    round_trip_s: float

    @property
    def projected_gravity(self) -> np.ndarray:
        """Gravity in the IMU's frame, (3,) [m/s^2]; upright it is (0, 0, -9.81)."""
        return projected_gravity(self.quat_wxyz)

    @property
    def tilt_rad(self) -> float:
        """Angle between the IMU's z axis and up [rad]."""
        return float(np.arccos(np.clip(-self.projected_gravity[2] / GRAVITY_M_S2, -1.0, 1.0)))

    @property
    def heading_rad(self) -> float:
        """Yaw of the IMU [rad]."""
        w, x, y, z = self.quat_wxyz
        return float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))

    def same_reading(self, other: RobotState) -> bool:
        """Whether every measured number is the same to the bit: nothing new was measured in between."""
        names = ("joint_position", "joint_velocity", "joint_torque", "quat_wxyz", "gyro_b", "accel_b")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


def projected_gravity(quat_wxyz: np.ndarray) -> np.ndarray:
    """Gravity in the frame of a unit quaternion, (3,) [m/s^2]: the third row of its matrix, times -9.81."""
    w, x, y, z = quat_wxyz
    return -GRAVITY_M_S2 * np.array([2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)])


def quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product of two quaternions (w, x, y, z)."""
    aw, av, bw, bv = a[0], a[1:], b[0], b[1:]
    return np.concatenate([[aw * bw - av @ bv], aw * bv + bw * av + np.cross(av, bv)])


def rotation_vector(before_wxyz: np.ndarray, after_wxyz: np.ndarray) -> np.ndarray:
    """The rotation from one orientation to the next as a vector in the body's frame, (3,) [rad]."""
    change = quaternion_product(before_wxyz * np.array([1.0, -1.0, -1.0, -1.0]), after_wxyz)
    if change[0] < 0.0:
        change = -change
    sine = float(np.linalg.norm(change[1:]))
    if sine < 1e-12:
        return 2.0 * change[1:]
    return change[1:] / sine * 2.0 * float(np.arctan2(sine, change[0]))
