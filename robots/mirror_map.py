"""Left for right: the mirror image of states, sensor readings, actions and commands of a robot.

A `MirrorMap` holds index and sign tables and needs numpy only; its methods take `xp`, numpy or jax.numpy.
robots/mirror.py derives it from the compiled model, robots/mirror_check.py checks it by physics.

The world is reflected in one fixed vertical plane, the robot's own sagittal plane in the home pose. A flat
floor and gravity are the same in it, so a mirrored state, stepped, is the mirrored next state.
Under a reflection S a polar vector v (velocity, force, gravity) becomes S v, an axial one (angular
velocity, torque) becomes -S v: a reflected turn goes the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robots import rotation
from robots.errors import MirrorError

# Commands by the way they are mirrored, in the base's heading frame; K-Scale's names and our own.
ALONG_X = ("vx", "xvel")
ALONG_Y = ("vy", "yvel")
ABOUT_X = ("roll", "baseroll")
ABOUT_Y = ("pitch", "basepitch")
ABOUT_Z = ("yaw", "yaw_rate", "yawrate")
UPRIGHT = ("height", "baseheight")
_PLANAR = (*ALONG_X, *ALONG_Y, *ABOUT_X, *ABOUT_Y)

Vector = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class FreeMirror:
    """How the free joint of one body is mirrored.

    Attributes:
        qpos: address of its seven numbers in qpos.
        dof: address of its six numbers in qvel.
        normal: unit normal of the body's own plane of symmetry, in the body's frame.
        offset_m: distance of that plane from the body's origin along the normal [m].
    """

    qpos: int
    dof: int
    normal: Vector
    offset_m: float


@dataclass(frozen=True, kw_only=True)
class MirrorMap:
    """The mirror image of all that a policy sees and does; every map is its own inverse.

    Attributes:
        joint_names: the joints in the robot's order.
        joints: index of each joint's partner; a central joint is its own.
        joint_sign: mirrored[i] = joint_sign[i] * angle[joints[i]] + joint_offset[i].
        joint_offset: angle [rad]; zero unless the two zero poses of a pair are no mirror images.
        feet: index of each foot's partner.
        imu_normal: unit normal of the plane of symmetry in the IMU's frame.
        imu_offset_m: distance of that plane from the IMU along the normal [m].
        world_normal: unit normal of the plane that the world is reflected in, horizontal.
        world_offset_m: distance of that plane from the world's origin [m].
        free: the free joints, the robot's own first.
        qpos_index: source of each element of qpos; the free joints' are not used.
        qpos_sign: its sign.
        qpos_offset: what is added to it.
        qvel_index: source of each element of qvel, likewise.
        qvel_sign: its sign.
        lateral: the robot's lateral axis in its base's heading frame, "x" or "y"; empty where it is neither.
        asymmetry: what `check_mirror` measured, 0 for a robot that is symmetric to rounding.
    """

    joint_names: tuple[str, ...]
    joints: tuple[int, ...]
    joint_sign: tuple[float, ...]
    joint_offset: tuple[float, ...]
    feet: tuple[int, ...]
    imu_normal: Vector
    imu_offset_m: float
    world_normal: Vector
    world_offset_m: float
    free: tuple[FreeMirror, ...]
    qpos_index: tuple[int, ...]
    qpos_sign: tuple[float, ...]
    qpos_offset: tuple[float, ...]
    qvel_index: tuple[int, ...]
    qvel_sign: tuple[float, ...]
    lateral: str
    asymmetry: float = 0.0

    @property
    def imu_polar(self) -> np.ndarray:
        """Matrix that mirrors a polar vector in the IMU's frame (gravity, acceleration), (3, 3)."""
        return _reflection(self.imu_normal)

    @property
    def imu_axial(self) -> np.ndarray:
        """Matrix that mirrors an axial vector in the IMU's frame (angular velocity), (3, 3)."""
        return -_reflection(self.imu_normal)

    def joint(self, v: Any, xp: Any = np) -> Any:
        """Joint angles, (..., joints) [rad]: positions and position targets."""
        return self.joint_change(v, xp) + _like(self.joint_offset, v, xp)

    def joint_change(self, v: Any, xp: Any = np) -> Any:
        """Joint velocities, torques and differences of angles, (..., joints)."""
        v = xp.asarray(v)
        return v[..., np.asarray(self.joints)] * _like(self.joint_sign, v, xp)

    def polar(self, v: Any, xp: Any = np) -> Any:
        """A polar vector in the IMU's frame, (..., 3): projected gravity, acceleration.

        An accelerometer beside the plane feels the lever to it as well, which this leaves out.
        """
        return _apply(self.imu_polar, v, xp)

    def axial(self, v: Any, xp: Any = np) -> Any:
        """An axial vector in the IMU's frame, (..., 3): angular velocity."""
        return _apply(self.imu_axial, v, xp)

    def imu_quat(self, v: Any, xp: Any = np) -> Any:
        """Orientation of the IMU in the world, (..., 4) as w, x, y, z."""
        return _apply(rotation.reflected(self.world_normal, self.imu_normal), v, xp)

    def world_polar(self, v: Any, xp: Any = np) -> Any:
        """A polar vector in the world's frame, (..., 3): velocity, force."""
        return _apply(_reflection(self.world_normal), v, xp)

    def world_axial(self, v: Any, xp: Any = np) -> Any:
        """An axial vector in the world's frame, (..., 3): angular velocity, torque."""
        return _apply(-_reflection(self.world_normal), v, xp)

    def base_polar(self, v: Any, frame: str = "base", xp: Any = np) -> Any:
        """A polar vector of the base's origin, (..., 3), told in its own frame, its heading's or the world's.

        Raises:
            MirrorError: the base's origin lies beside the plane of symmetry, or its heading has no lateral axis.
        """
        if frame == "world":
            return self.world_polar(v, xp)
        if not self.free or self.free[0].offset_m or (frame == "heading" and not self.lateral):
            raise MirrorError(
                "the base's velocity: its mirror image is not known; expected a floating base whose origin is in the "
                "robot's plane of symmetry, and whose axes are along it"
            )
        normal = self.free[0].normal if frame == "base" else {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0)}[self.lateral]
        return _apply(_reflection(normal), v, xp)

    def world_point(self, v: Any, xp: Any = np) -> Any:
        """A point in the world, (..., 3) [m]."""
        shift = 2 * self.world_offset_m * np.asarray(self.world_normal)
        return self.world_polar(v, xp) + _like(shift, v, xp)

    def qpos(self, q: Any, xp: Any = np) -> Any:
        """Positions of the whole model, (..., nq)."""
        q = xp.asarray(q)
        out = q[..., np.asarray(self.qpos_index)] * _like(self.qpos_sign, q, xp) + _like(self.qpos_offset, q, xp)
        for free in self.free:
            a = free.qpos
            position, quat = q[..., a : a + 3], q[..., a + 3 : a + 7]
            if free.offset_m:
                position = position + rotation.rotate(quat, _like(_shift(free), q, xp), xp)
            parts = [
                self.world_point(position, xp),
                _apply(rotation.reflected(self.world_normal, free.normal), quat, xp),
            ]
            out = xp.concatenate([out[..., :a], *parts, out[..., a + 7 :]], -1)
        return out

    def qvel(self, v: Any, q: Any, xp: Any = np) -> Any:
        """Velocities of the whole model, (..., nv).

        Args:
            v: the velocities, (..., nv).
            q: the positions that go with them, before they are mirrored, (..., nq). A base whose origin lies
                beside the plane of symmetry needs its orientation.
            xp: numpy or jax.numpy.
        """
        v, q = xp.asarray(v), xp.asarray(q)
        out = v[..., np.asarray(self.qvel_index)] * _like(self.qvel_sign, v, xp)
        for free in self.free:
            a, b = free.qpos, free.dof
            # MuJoCo's free joint: linear velocity in the world's frame, angular in the body's
            linear, angular = v[..., b : b + 3], v[..., b + 3 : b + 6]
            if free.offset_m:
                lever = xp.cross(angular, _like(_shift(free), v, xp))
                linear = linear + rotation.rotate(q[..., a + 3 : a + 7], lever, xp)
            parts = [self.world_polar(linear, xp), _apply(-_reflection(free.normal), angular, xp)]
            out = xp.concatenate([out[..., :b], *parts, out[..., b + 6 :]], -1)
        return out

    def feet_of(self, v: Any, xp: Any = np) -> Any:
        """One number per foot, (..., feet): contact, force, height."""
        return xp.asarray(v)[..., np.asarray(self.feet, np.int64)]

    def command(self, v: Any, names: Sequence[str], xp: Any = np, *, signs: Mapping[str, float] | None = None) -> Any:
        """Commands, (..., commands).

        A joint's target, by the joint's name or by K-Scale's (`rshoulderpitch`), goes to the partner's place.

        Args:
            v: the commands.
            names: their names, in order.
            xp: numpy or jax.numpy.
            signs: 1 or -1 for commands of other names, and for these instead of what is known.

        Raises:
            MirrorError: the mirror image of a command is not known, or its partner is not there.
        """
        v = xp.asarray(v)
        index, sign, offset = self.command_table(tuple(names), signs or {})
        return v[..., np.asarray(index, np.int64)] * _like(sign, v, xp) + _like(offset, v, xp)

    def command_table(
        self, names: tuple[str, ...], signs: Mapping[str, float]
    ) -> tuple[list[int], list[float], list[float]]:
        """(index, sign, offset) of each command: mirrored[i] = sign[i] * value[index[i]] + offset[i].

        Raises:
            MirrorError: as `command`.
        """
        odd = {"y": (*ALONG_Y, *ABOUT_X), "x": (*ALONG_X, *ABOUT_Y), "": ()}[self.lateral]
        joints = {name: self._command_joint(name) for name in names if name not in signs}
        index, sign, offset = [], [], []
        for here, name in enumerate(names):
            joint = joints.get(name)
            source, turn, shift = here, 1.0, 0.0
            if name in signs:
                turn = float(signs[name])
                if turn not in (1.0, -1.0):
                    raise MirrorError(f"command {name!r}: sign {signs[name]!r}; it must be 1 or -1")
            elif name in _PLANAR and not self.lateral:
                raise MirrorError(
                    f"command {name!r}: the robot's lateral axis is neither x nor y of its base's heading, "
                    "so the command has no sign; turn the base body, or give it in `signs`"
                )
            elif name in odd or name in ABOUT_Z:
                turn = -1.0
            elif name in _PLANAR or name in UPRIGHT:
                pass
            elif joint is not None:
                partner = self.joints[joint]
                source = next((k for k, other in enumerate(names) if joints.get(other) == partner), -1)
                if source < 0:
                    raise MirrorError(
                        f"command {name!r}: its mirror image is the target of joint {self.joint_names[partner]}, "
                        f"which no command gives; add it to {', '.join(names)}"
                    )
                turn, shift = self.joint_sign[joint], self.joint_offset[joint]
            else:
                known = (*_PLANAR, *ABOUT_Z, *UPRIGHT)
                raise MirrorError(
                    f"command {name!r}: its mirror image is not known; known are {', '.join(known)} and joints; "
                    "give its sign, 1 or -1, in `signs`"
                )
            index.append(source)
            sign.append(turn)
            offset.append(shift)
        return index, sign, offset

    def _command_joint(self, name: str) -> int | None:
        """Index of the joint whose target a command is, by the joint's name or K-Scale's short one."""
        if name in self.joint_names:
            return self.joint_names.index(name)
        if name in (*_PLANAR, *ABOUT_Z, *UPRIGHT):
            return None
        short = [_short_name(joint) for joint in self.joint_names]
        found = [i for i, s in enumerate(short) if s == name]
        # K-Scale says relbowpitch and rwristroll of joints that the model calls right_elbow and right_wrist
        found = found or [i for i, s in enumerate(short) if s and name.startswith(s)]
        return found[0] if len(found) == 1 else None


def _short_name(joint: str) -> str:
    """`rshoulderpitch` of `dof_right_shoulder_pitch_03`; empty for a joint of no side."""
    words = [w for w in re.split(r"[^a-z]+", joint.lower()) if w and w != "dof"]
    side = next((w for w in words if w in ("left", "right")), None)
    rest = "".join(w for w in words if w != side)
    return side[0] + rest if side and rest else ""


def _like(value: Any, v: Any, xp: Any) -> Any:
    """A constant in the floating type of an array."""
    return xp.asarray(np.asarray(value), dtype=xp.asarray(v).dtype)


def _apply(matrix: Any, v: Any, xp: Any) -> Any:
    # a sum of products and no matrix product, which accelerators round to ten bits
    v = xp.asarray(v)
    return (_like(matrix, v, xp) * v[..., None, :]).sum(-1)


def _reflection(normal: Any) -> np.ndarray:
    """Reflection in a plane through the origin, (3, 3)."""
    n = np.asarray(normal, np.float64)
    return np.eye(3) - 2 * np.outer(n, n)


def _shift(free: FreeMirror) -> np.ndarray:
    """What the body's own reflection adds to a point, in the body's frame [m]."""
    return 2 * free.offset_m * np.asarray(free.normal)
