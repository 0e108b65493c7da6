"""Rotations as unit quaternions, w first: the only module that knows their arithmetic.

Written once against an array namespace: `xp` is numpy or jax.numpy. Quaternions are (..., 4), vectors are (..., 3),
with any leading axes; the two broadcast. A quaternion is the orientation of a frame in the world: `rotate` takes a
vector from that frame to the world, `rotate_inverse` takes it back.
Each function is differentiable everywhere, at no rotation too.
Source: J. Sola, Quaternion kinematics for the error-state Kalman filter, 2017, sections 1 and 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Standard of the project's models and bundles [m/s^2].
GRAVITY_M_S2 = 9.81


def _parts(array: Any) -> tuple[Any, ...]:
    return tuple(array[..., i] for i in range(array.shape[-1]))


def _cross(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _stack(parts: tuple[Any, ...] | list[Any], xp: Any) -> Any:
    return xp.stack(xp.broadcast_arrays(*parts), axis=-1)


def conjugate(quat: Any, xp: Any = np) -> Any:
    """The inverse rotation, (..., 4)."""
    w, x, y, z = _parts(xp.asarray(quat))
    return _stack([w, -x, -y, -z], xp)


def multiply(a: Any, b: Any, xp: Any = np) -> Any:
    """Hamilton product, (..., 4): as rotations, b first and then a."""
    aw, *av = _parts(xp.asarray(a))
    bw, *bv = _parts(xp.asarray(b))
    dot = av[0] * bv[0] + av[1] * bv[1] + av[2] * bv[2]
    turned = _cross(tuple(av), tuple(bv))
    return _stack([aw * bw - dot, *(aw * q + bw * p + c for p, q, c in zip(av, bv, turned, strict=True))], xp)


def normalise(quat: Any, xp: Any = np) -> Any:
    """The quaternion at unit length, (..., 4); one of length 0 gives NaN."""
    quat = xp.asarray(quat)
    return quat / xp.sqrt(xp.sum(quat * quat, axis=-1, keepdims=True))


def rotate(quat: Any, vector: Any, xp: Any = np) -> Any:
    """A vector of the quaternion's frame, told in the world, (..., 3)."""
    w, *v = _parts(xp.asarray(quat))
    u = _parts(xp.asarray(vector))
    t = tuple(2.0 * c for c in _cross(tuple(v), u))
    return _stack([p + w * q + c for p, q, c in zip(u, t, _cross(tuple(v), t), strict=True)], xp)


def rotate_inverse(quat: Any, vector: Any, xp: Any = np) -> Any:
    """A vector of the world, told in the quaternion's frame, (..., 3)."""
    return rotate(conjugate(quat, xp), vector, xp)


def from_rotvec(rotvec: Any, xp: Any = np) -> Any:
    """Quaternion of a rotation vector [rad], (..., 4)."""
    vector = xp.asarray(rotvec)
    square = xp.sum(vector * vector, axis=-1)
    small = square < 1e-8  # the series is exact to a double there, and the root has no derivative at 0
    angle = xp.sqrt(xp.where(small, 1.0, square))
    w = xp.where(small, 1.0 - square / 8.0, xp.cos(angle / 2.0))
    scale = xp.where(small, 0.5 - square / 48.0, xp.sin(angle / 2.0) / angle)
    return _stack([w, *(scale * part for part in _parts(vector))], xp)


def to_rotvec(quat: Any, xp: Any = np) -> Any:
    """Rotation vector of a unit quaternion, of at most half a turn, (..., 3) [rad]."""
    w, *v = _parts(xp.asarray(quat))
    square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
    small = square < 1e-12
    sine = xp.sqrt(xp.where(small, 1.0, square))
    scale = xp.where(small, 2.0 + square / 3.0, 2.0 * xp.arctan2(sine, xp.abs(w)) / sine)
    # a quaternion and its negative are one rotation; the one with w > 0 is the shorter way
    return _stack([xp.where(w < 0, -scale * part, scale * part) for part in v], xp)


def rotvec_between(before: Any, after: Any, xp: Any = np) -> Any:
    """The rotation from one orientation to the next as a vector in the body's frame, (..., 3) [rad]."""
    return to_rotvec(multiply(conjugate(before, xp), after, xp), xp)


def from_yaw(yaw: Any, xp: Any = np) -> Any:
    """Quaternion of a heading about the world's z axis [rad], (..., 4)."""
    half = 0.5 * xp.asarray(yaw)
    none = xp.zeros_like(half)
    return _stack([xp.cos(half), none, none, xp.sin(half)], xp)


def yaw_of(quat: Any, xp: Any = np) -> Any:
    """Heading of the frame's x axis about the world's z axis, -pi to pi, (...,) [rad]."""
    w, x, y, z = _parts(xp.asarray(quat))
    return xp.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def roll_pitch_yaw(quat: Any, xp: Any = np) -> tuple[Any, Any, Any]:
    """Angles about the frame's x, then y, then z axis as they were turned from the last to the first, each (...,)."""
    w, x, y, z = _parts(xp.asarray(quat))
    roll = xp.arctan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y))
    pitch = xp.arcsin(xp.clip(2.0 * (w * y - z * x), -1.0, 1.0))
    return roll, pitch, yaw_of(quat, xp)


def up_in_frame(quat: Any, xp: Any = np) -> Any:
    """The world's up in the quaternion's frame: the third row of its matrix, (..., 3)."""
    w, x, y, z = _parts(xp.asarray(quat))
    return _stack([2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)], xp)


def gravity_in_frame(quat: Any, gravity: float = GRAVITY_M_S2, xp: Any = np) -> Any:
    """Gravity in the quaternion's frame, (..., 3) [m/s^2]; upright it is (0, 0, -9.81)."""
    return -gravity * up_in_frame(quat, xp)


def from_up(up: Any, xp: Any = np) -> Any:
    """The orientation, without a turn about it, in whose frame the world's up is the unit vector `up`, (..., 4).

    Upside down any axis would do: it is the frame's x axis.
    """
    x, y, z = _parts(xp.asarray(up))
    w = 1.0 + z  # half way between the two
    over = w < 1e-6
    none = xp.zeros_like(w)
    quat = [xp.where(over, none, w), xp.where(over, 1.0 + none, y), xp.where(over, none, -x), none]
    return normalise(_stack(quat, xp), xp)


def matrix(quat: Any, xp: Any = np) -> Any:
    """Rotation matrix, (..., 3, 3): its columns are the frame's axes in the world."""
    w, x, y, z = _parts(xp.asarray(quat))
    rows = [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]
    return xp.stack([_stack(row, xp) for row in rows], axis=-2)


def reflected(world: Any, body: Any) -> np.ndarray:
    """Matrix that takes the quaternion of R to that of S R M, S and M the reflections, (4, 4).

    A reflection in a plane is minus the half turn about its normal, so the two minus signs go: the quaternion
    is w q n*, with the normals as pure quaternions.
    """
    w, x, y, z = 0.0, *world
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    x, y, z = (-float(c) for c in body)
    right = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])
    return left @ right
