"""Where an episode starts: terms that change a pose, one after the other, beginning with the home pose."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ksim.curriculum import Scale, factor
from ksim.scene import Scene
from ksim.term import Term
from robots import rotation
from toolkit.settings import Bound

_RADIANS = Bound(0, 3.2, "radians")


class Pose(NamedTuple):
    """A start: qpos (nq,) and qvel (nv,)."""

    qpos: Any
    qvel: Any


@dataclass(frozen=True, kw_only=True)
class Reset(Term, abc.ABC):
    """A change of the start; `scale` may follow the curriculum."""

    scale: float | Scale = 1.0

    @abc.abstractmethod
    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        """The pose, changed."""

    def _unit(self, key: Any, size: int, level: Any) -> Any:
        return factor(self.scale, level) * jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0)


@dataclass(frozen=True, kw_only=True)
class JointPositionReset(Reset):
    """Uniform noise on the joints' angles, within their limits [rad]."""

    width_rad: Annotated[float, _RADIANS] = 0.05

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        at = scene.built.qpos_ids
        moved = pose.qpos[at] + self.width_rad * self._unit(key, scene.joints, level)
        low, high = scene.column("lower_rad"), scene.column("upper_rad")
        return pose._replace(qpos=pose.qpos.at[at].set(jnp.clip(moved, low, high)))


@dataclass(frozen=True, kw_only=True)
class JointVelocityReset(Reset):
    """Uniform noise on the joints' velocities [rad/s]."""

    width_rad_s: Annotated[float, Bound(0, 100, "rad/s")] = 0.3

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        noise = self.width_rad_s * self._unit(key, scene.joints, level)
        return pose._replace(qvel=pose.qvel.at[scene.built.dof_ids].add(noise))


@dataclass(frozen=True, kw_only=True)
class TiltReset(Reset):
    """The base leans about its horizontal axes [rad]."""

    width_rad: Annotated[float, _RADIANS] = 0.04

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        lean = jnp.concatenate([self.width_rad * self._unit(key, 2, level), jnp.zeros(1)])
        return turned(pose, scene, rotation.from_rotvec(lean, jnp))


@dataclass(frozen=True, kw_only=True)
class HeadingReset(Reset):
    """The base looks anywhere; no curriculum changes that."""

    width_rad: Annotated[float, _RADIANS] = 3.141592653589793

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        yaw = jax.random.uniform(key, (), minval=-self.width_rad, maxval=self.width_rad)
        return turned(pose, scene, rotation.from_yaw(yaw, jnp))


def turned(pose: Pose, scene: Scene, quat: Any) -> Pose:
    """The pose with the base turned by a rotation of the world."""
    if not scene.floating:
        return pose
    at = slice(scene.base_qpos + 3, scene.base_qpos + 7)
    return pose._replace(qpos=pose.qpos.at[at].set(rotation.multiply(quat, pose.qpos[at], jnp)))


@dataclass(frozen=True, kw_only=True)
class HeightReset(Reset):
    """The base is lifted [m]."""

    lift_m: Annotated[float, Bound(0, 10, "metres")] = 0.01

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        return pose._replace(qpos=pose.qpos.at[scene.base_qpos + 2].add(self.lift_m)) if scene.floating else pose


@dataclass(frozen=True, kw_only=True)
class BaseVelocityReset(Reset):
    """The base moves: horizontally [m/s], and about every axis [rad/s]."""

    lin_vel_m_s: Annotated[float, Bound(0, 100, "m/s")] = 0.1
    ang_vel_rad_s: Annotated[float, Bound(0, 100, "rad/s")] = 0.2

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        if not scene.floating:
            return pose
        unit = self._unit(key, 5, level)
        start = scene.base_qvel
        qvel = pose.qvel.at[start : start + 2].add(self.lin_vel_m_s * unit[:2])
        return pose._replace(qvel=qvel.at[start + 3 : start + 6].add(self.ang_vel_rad_s * unit[2:]))
