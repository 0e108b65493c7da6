"""Where an episode starts: terms that change a pose, one after the other, beginning with the home pose."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ksim.curriculum import SHARE, Scale, factor
from ksim.poses import load_poses
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

    scale: Annotated[float | Scale, SHARE] = 1.0

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
    """The base is lifted [m]: by `lift_m`, and by up to `drop_m` more, which the curriculum may change."""

    lift_m: Annotated[float, Bound(0, 10, "metres")] = 0.01
    drop_m: Annotated[float, Bound(0, 10, "metres")] = 0.0

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        if not scene.floating:
            return pose
        lift = self.lift_m + factor(self.scale, level) * self.drop_m * jax.random.uniform(key)
        return pose._replace(qpos=pose.qpos.at[scene.base_qpos + 2].add(lift))


@dataclass(frozen=True, kw_only=True)
class BasePositionReset(Reset):
    """The base starts elsewhere over ground, up to this far along each axis of the world [m]."""

    width_m: Annotated[float, Bound(0, 1e6, "metres")] = 0.5

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        if not scene.floating:
            return pose
        start = scene.base_qpos
        away = self.width_m * self._unit(key, 2, level)
        return pose._replace(qpos=pose.qpos.at[start : start + 2].add(away))


@dataclass(frozen=True, kw_only=True)
class PosesReset(Reset):
    """A pose of a file, drawn at random; see ksim/poses.py for the file. What it does not name stays.

    `scale` is the share of the way from the pose so far to that of the file.

    Attributes:
        path: the file.
        share: share of the episodes that start so; the others keep the pose so far.
    """

    path: Annotated[str, Bound(1, 4096, "a file's name")]
    share: Annotated[float, Bound(0, 1, "a share")] = 1.0

    def reset(self, pose: Pose, scene: Scene, key: Any, level: Any) -> Pose:
        poses = load_poses(self.path, scene)
        row_key, share_key = jax.random.split(key)
        row = jax.random.randint(row_key, (), 0, len(poses.position))
        way = jnp.where(jax.random.uniform(share_key) < self.share, factor(self.scale, level), 0.0)
        at, qpos = scene.built.qpos_ids[poses.joints], pose.qpos
        qpos = qpos.at[at].add(way * (jnp.asarray(poses.position)[row] - qpos[at]))
        start = scene.base_qpos
        if scene.floating and poses.height_m is not None:
            qpos = qpos.at[start + 2].add(way * (jnp.asarray(poses.height_m)[row] - qpos[start + 2]))
        if scene.floating and poses.quat is not None:
            place = slice(start + 3, start + 7)
            turn = rotation.rotvec_between(qpos[place], jnp.asarray(poses.quat)[row], jnp)
            turned_quat = rotation.multiply(qpos[place], rotation.from_rotvec(way * turn, jnp), jnp)
            qpos = qpos.at[place].set(turned_quat)
        return pose._replace(qpos=qpos)


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
