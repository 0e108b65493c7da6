"""What is static about an environment, by name: terms ask it for addresses, limits, periods and places in vectors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ksim.errors import ConfigError
from robots import rotation
from robots.command_names import known_as
from robots.mirror_map import MirrorMap
from robots.model import BuiltModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The robot in its world, as compiled, and the task's fixed numbers. Hashed by identity: it is static under jit.

    Attributes:
        built: the compiled robot.
        control_period_s: how often the policy runs [s].
        episode_length_s: length of an episode [s].
        command_names: the elements of the command vector, in order.
        moved: the joints that the policy's raw action moves, in its order.
        flat: the same robot on a flat floor, where `built` stands on uneven ground.
    """

    built: BuiltModel
    control_period_s: float = 0.02
    episode_length_s: float = 10.0
    command_names: tuple[str, ...] = ()
    moved: tuple[int, ...] = ()
    flat: BuiltModel | None = None

    @property
    def actions(self) -> int:
        """Length of the policy's raw action."""
        return len(self.moved)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints, in the order of every vector of joints."""
        return self.built.spec.joint_names

    @property
    def joints(self) -> int:
        """Number of actuated joints."""
        return len(self.built.spec.joints)

    @functools.cached_property
    def home_rad(self) -> np.ndarray:
        """The home pose [rad], (joints,)."""
        return self.column("home_rad")

    def column(self, field: str) -> np.ndarray:
        """One float32 number per joint of the robot's specification: `scene.column("torque_limit_nm")`."""
        return np.asarray(self.built.spec.column(field), np.float32)

    def joint_ids(self, words: tuple[str, ...]) -> np.ndarray:
        """Places of the joints whose name contains one of the words; no word means every joint.

        Raises:
            ConfigError: a word is in no joint's name.
        """
        for word in words:
            if not any(word in name for name in self.joint_names):
                raise ConfigError(f"no joint's name contains {word!r}; {self.built.spec.name} has {self._listed()}")
        names = self.joint_names
        return np.asarray([i for i, n in enumerate(names) if not words or any(w in n for w in words)], np.int32)

    def _listed(self) -> str:
        return ", ".join(self.joint_names)

    @property
    def floating(self) -> bool:
        """Whether the robot has a free joint."""
        return self.built.base_body >= 0

    @property
    def base_qpos(self) -> int:
        """Address in qpos of the base's position; its quaternion follows. -1 for a robot fixed to the world."""
        return self.built.base_qpos

    @property
    def base_qvel(self) -> int:
        """Address in qvel of the base's linear velocity; its angular one follows. -1 where there is none."""
        return self.built.base_qvel

    @property
    def standing_height_m(self) -> float:
        """Height of the base in the home pose [m]."""
        return self.built.standing_height_m

    @property
    def feet(self) -> tuple[str, ...]:
        """Names of the feet, in order."""
        return self.built.foot_names

    @functools.cached_property
    def _feet_at_home(self) -> tuple[np.ndarray, np.ndarray]:
        import mujoco

        library: Any = mujoco
        model, data = self.built.model, library.MjData(self.built.model)
        data.qpos[:] = self.built.home_qpos
        library.mj_kinematics(model, data)
        sites = [model.site(name).id for name in self.feet]
        quats = np.zeros((len(sites), 4))
        for quat, site in zip(quats, sites, strict=True):
            library.mju_mat2Quat(quat, data.site_xmat[site])
        return data.site_xpos[sites].reshape(-1, 3), quats

    @functools.cached_property
    def foot_rest_height_m(self) -> np.ndarray:
        """Height of each foot's site in the home pose [m], (feet,): the foot is on the floor there."""
        return self._feet_at_home[0][:, 2].astype(np.float32)

    @functools.cached_property
    def foot_home_m(self) -> np.ndarray:
        """Each foot's site in the home pose, from the base, in the frame of its heading [m], (feet, 3)."""
        at, quat = self.base_qpos, self.home_quat
        base = self.built.home_qpos[at : at + 3] if at >= 0 else np.zeros(3)
        turn = rotation.from_yaw(rotation.yaw_of(quat))
        return rotation.rotate_inverse(turn, self._feet_at_home[0] - base).astype(np.float32)

    @functools.cached_property
    def foot_home_up(self) -> np.ndarray:
        """The world's up in each foot's frame in the home pose, (feet, 3): the foot is flat there."""
        return rotation.up_in_frame(self._feet_at_home[1]).astype(np.float32)

    @property
    def home_quat(self) -> np.ndarray:
        """Orientation of the base in the home pose, w first, (4,)."""
        at = self.base_qpos
        return self.built.home_qpos[at + 3 : at + 7] if at >= 0 else np.asarray([1.0, 0.0, 0.0, 0.0])

    @functools.cached_property
    def mirror(self) -> MirrorMap:
        """The robot's mirror map; the ground that it stands on has no part in it.

        Raises:
            MirrorError: the robot is not symmetric.
        """
        from robots.mirror import find_mirror

        return find_mirror(self.flat or self.built)

    @functools.cached_property
    def home_gravity_b(self) -> np.ndarray:
        """Gravity in the IMU's frame in the home pose [m/s^2], (3,): says how the IMU is mounted."""
        import mujoco

        library: Any = mujoco
        data = library.MjData(self.built.model)
        data.qpos[:] = self.built.home_qpos
        library.mj_forward(self.built.model, data)
        quat = data.sensordata[self.sensor("imu_quat")]
        return rotation.gravity_in_frame(quat).astype(np.float32)

    @property
    def mass_kg(self) -> float:
        """Mass of the robot alone [kg]."""
        return self.built.mass_kg

    def command(self, name: str) -> int:
        """Place of a command in the command vector, by its name or an older name of it; -1 where there is none."""
        known = known_as(name, self.command_names)
        return self.command_names.index(known) if known in self.command_names else -1

    def sensor(self, name: str) -> slice:
        """Where a sensor stands in the sensor data.

        Raises:
            ConfigError: there is no such sensor.
        """
        if name not in self.built.sensors:
            raise ConfigError(f"no sensor {name!r}; {self.built.spec.name} has {', '.join(self.built.sensors)}")
        return self.built.sensors[name]
