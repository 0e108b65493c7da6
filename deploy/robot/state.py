"""What a robot tells about itself at one instant, in SI, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_type_hints

import numpy as np

from robots.rotation import GRAVITY_M_S2, gravity_in_frame, yaw_of

JOINTS = "joints"


@dataclass(frozen=True)
class Column:
    """What a field of a reading, or of a tick, holds.

    Attributes:
        unit: of its numbers.
        parts: the names of its numbers, a letter each; JOINTS: one for each joint; empty: it is one number.
    """

    unit: str
    parts: str = JOINTS


def columns_of(kind: type) -> dict[str, Column]:
    """The fields of a class that hold measured or wanted numbers, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: c for name, hint in hints.items() for c in getattr(hint, "__metadata__", ()) if type(c) is Column}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a robot measures; vectors of joints are in the order of the robot's specification.

    Attributes:
        joint_position: (joints,) [rad].
        joint_velocity: (joints,) [rad/s].
        joint_torque: (joints,) [N m].
        joint_temperature: of the motors, NaN where one tells none (joints,) [Celsius]; None where none does.
        quat_wxyz: orientation of the IMU in the world, unit length, (4,).
        gyro_b: angular velocity in the IMU's frame, (3,) [rad/s].
        accel_b: specific force in the IMU's frame, (3,) [m/s^2].
    """

    joint_position: Annotated[np.ndarray, Column("rad")]
    joint_velocity: Annotated[np.ndarray, Column("rad/s")]
    joint_torque: Annotated[np.ndarray, Column("N m")]
    joint_temperature: Annotated[np.ndarray | None, Column("C")]
    quat_wxyz: Annotated[np.ndarray, Column("", "wxyz")]
    gyro_b: Annotated[np.ndarray, Column("rad/s", "xyz")]
    accel_b: Annotated[np.ndarray, Column("m/s^2", "xyz")]


MEASURED = tuple(columns_of(Measured))
# a temperature may stay the same while all else moves, or be all NaN
_TO_THE_BIT = tuple(name for name in MEASURED if name != "joint_temperature")


@dataclass(frozen=True, kw_only=True)
class RobotState(Measured):
    """One reading of a robot.

    Attributes:
        time_s: monotonic clock when the answer was complete [s].
        round_trip_s: from the question to the complete answer [s].
    """

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
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _TO_THE_BIT)
