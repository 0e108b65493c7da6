"""Compiles a robot for MuJoCo, the same way for training, the twin, parity and identification.

The only module of the package that needs MuJoCo; it is imported inside `build_model`, so that the
robot's own computer can load the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robots.spec import RobotSpec

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A compiled robot on a floor, with every index resolved from names.

    Attributes:
        model: the compiled model. One motor actuator per joint, in the order of `spec.joints`, gear 1,
            no limits: its control is the joint's net torque [N m] of robots/motor.py. Joint damping and
            friction loss are zero, because the motor law has them; armature stays in the model.
        spec: the robot.
        qpos_ids: index in qpos of each joint, (joints,).
        dof_ids: index in qvel of each joint, (joints,).
        home_qpos: qpos of the home pose with the lowest foot point on the floor, (nq,).
        sensors: slice of sensordata of each sensor, by name: `imu_quat` (w, x, y, z), `imu_gyro` [rad/s],
            `imu_accelerometer` [m/s^2], and one `touch_<foot site>` [N] per foot.
        base_body: the body with the free joint; -1 for a robot that is fixed to the world.
        imu_body: the body that carries the IMU; pushes act on it.
        floor_geom: the floor, -1 where there is none.
        foot_geoms: the geoms of the feet that touch the floor.
    """

    model: mujoco.MjModel
    spec: RobotSpec
    qpos_ids: np.ndarray
    dof_ids: np.ndarray
    home_qpos: np.ndarray
    sensors: dict[str, slice]
    base_body: int
    imu_body: int
    floor_geom: int
    foot_geoms: np.ndarray


def build_model(robot: str | Path, timestep_s: float = 0.005) -> BuiltModel:
    """Compile a built-in robot or a robot folder. Raises RobotLoadError saying what is missing."""
    raise NotImplementedError
