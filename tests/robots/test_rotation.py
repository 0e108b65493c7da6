"""The one module of rotations: by hand, and by what must hold of any rotation."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest

from robots import rotation as r

HALF = math.sqrt(0.5)
ROOT = Path(__file__).parents[2]
# xp.asarray of each namespace makes what the functions are given
SPACES = ["numpy", "jax"]


def space(name: str):
    return np if name == "numpy" else pytest.importorskip("jax.numpy")


def some(seed: int, *shape: int) -> np.ndarray:
    """Random unit quaternions of all the turns there are, float32 so that both namespaces get the same."""
    quat = np.random.default_rng(seed).normal(size=(*shape, 4))
    return (quat / np.linalg.norm(quat, axis=-1, keepdims=True)).astype(np.float32)


def vectors(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def test_quarter_turns_by_hand():
    about_x, about_z = r.from_rotvec([math.pi / 2, 0, 0]), r.from_yaw(math.pi / 2)
    assert about_x == pytest.approx([HALF, HALF, 0, 0]) and about_z == pytest.approx([HALF, 0, 0, HALF])
    assert r.rotate(about_z, [1, 0, 0]) == pytest.approx([0, 1, 0])
    assert r.rotate_inverse(about_z, [1, 0, 0]) == pytest.approx([0, -1, 0])
    # first about z, then about x: the x axis goes to y, then to z
    assert r.rotate(r.multiply(about_x, about_z), [1, 0, 0]) == pytest.approx([0, 0, 1])
    assert r.rotate(r.multiply(about_z, about_x), [1, 0, 0]) == pytest.approx([0, 1, 0])
    assert r.matrix(about_z) == pytest.approx(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    assert r.normalise([0, 3, 0, 4]) == pytest.approx([0, 0.6, 0, 0.8])


@pytest.mark.parametrize(
    ("quat", "gravity"),
    [
        ((1, 0, 0, 0), (0, 0, -9.81)),
        ((0, 1, 0, 0), (0, 0, 9.81)),  # upside down
        ((HALF, HALF, 0, 0), (0, -9.81, 0)),  # rolled to its right: its left points up
        ((HALF, 0, HALF, 0), (9.81, 0, 0)),  # pitched forward: its front points down
        ((HALF, 0, 0, HALF), (0, 0, -9.81)),  # yaw changes nothing
    ],
)
def test_gravity_in_a_frame_by_hand(quat, gravity):
    assert r.gravity_in_frame(quat) == pytest.approx(gravity, abs=1e-12)
    assert r.gravity_in_frame(quat, 1.0) == pytest.approx(np.divide(gravity, 9.81), abs=1e-12)
    up = r.up_in_frame(quat)
    assert r.up_in_frame(r.from_up(up)) == pytest.approx(up, abs=1e-12)


def test_angles_and_rotation_vectors_by_hand():
    start = r.from_yaw(math.pi / 2)
    after = r.multiply(start, r.from_rotvec([0.1, 0, 0]))  # a turn about the body's own x
    for sign in (1.0, -1.0):  # a quaternion and its negative are one orientation
        assert r.rotvec_between(start, sign * after) == pytest.approx([0.1, 0, 0])
    assert r.rotvec_between(start, start) == pytest.approx([0, 0, 0])
    assert r.yaw_of(after) == pytest.approx(math.pi / 2)
    assert r.roll_pitch_yaw(after) == pytest.approx((0.1, 0.0, math.pi / 2))
    assert r.roll_pitch_yaw(r.from_rotvec([0, 0.3, 0])) == pytest.approx((0.0, 0.3, 0.0))
    # straight down there is no yaw to tell, and rounding beyond 1 gives no NaN
    assert r.roll_pitch_yaw([HALF, 0, HALF + 1e-9, 0])[1] == pytest.approx(math.pi / 2)
    assert r.to_rotvec([-1, 0, 0, 0]) == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("name", SPACES)
def test_what_holds_of_any_rotation(name):
    xp = space(name)
    a, b, v = some(1, 50), some(2, 50), vectors(3, 50)
    a, b, v = (xp.asarray(x) for x in (a, b, v))
    close = {"atol": 3e-6}
    one = np.broadcast_to([1, 0, 0, 0], (50, 4))
    np.testing.assert_allclose(r.multiply(a, r.conjugate(a, xp), xp), one, **close)
    np.testing.assert_allclose(r.rotate_inverse(a, r.rotate(a, v, xp), xp), v, **close)
    np.testing.assert_allclose(r.rotate(r.multiply(a, b, xp), v, xp), r.rotate(a, r.rotate(b, v, xp), xp), atol=1e-5)
    np.testing.assert_allclose(xp.einsum("nij,nj->ni", r.matrix(a, xp), v), r.rotate(a, v, xp), **close)
    up = np.broadcast_to(np.float32([0, 0, 1]), (50, 3))
    np.testing.assert_allclose(r.up_in_frame(a, xp), r.rotate_inverse(a, xp.asarray(up), xp), **close)
    # back from the vector: the same rotation, by one sign or the other, by at most half a turn
    vector = r.to_rotvec(a, xp)
    assert np.linalg.norm(vector, axis=-1).max() <= math.pi + 1e-6
    np.testing.assert_allclose(r.matrix(r.from_rotvec(vector, xp), xp), r.matrix(a, xp), **close)
    yaw = xp.asarray(np.float32(np.linspace(-3.1, 3.1, 50)))
    np.testing.assert_allclose(r.yaw_of(r.from_yaw(yaw, xp), xp), yaw, **close)
    # heading and lean are apart: less its heading, the frame's x axis lies in the plane of x and z
    level = r.multiply(r.from_yaw(-r.yaw_of(a, xp), xp), a, xp)
    np.testing.assert_allclose(r.yaw_of(level, xp), np.zeros(50), **close)
    np.testing.assert_allclose(r.up_in_frame(level, xp), r.up_in_frame(a, xp), **close)


@pytest.mark.parametrize("name", SPACES)
def test_leading_axes_broadcast_and_types_stay(name):
    xp = space(name)
    quat, vector = xp.asarray(some(4, 2, 3)), xp.asarray(vectors(5, 3))
    out = r.rotate(quat, vector, xp)
    assert out.shape == (2, 3, 3) and out.dtype == np.float32
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(out[i, j], r.rotate(quat[i, j], vector[j], xp), atol=1e-6)
    assert r.rotate(quat[0, 0], vector, xp).shape == (3, 3)
    assert r.matrix(quat, xp).shape == (2, 3, 3, 3) and r.yaw_of(quat, xp).shape == (2, 3)
    assert r.to_rotvec(quat, xp).dtype == r.from_rotvec(vector, xp).dtype == np.float32


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1.9e-6, 1e-5, 0.99e-4, 1.01e-4, 1e-3, 1.0, 3.14])
def test_small_turns_lose_nothing(angle):
    vector = angle * np.array([0.6, 0.0, -0.8])
    quat = r.from_rotvec(vector)
    assert quat[0] == pytest.approx(math.cos(angle / 2), abs=1e-15)
    assert np.linalg.norm(quat) == pytest.approx(1.0, abs=1e-15)
    assert r.to_rotvec(quat) == pytest.approx(vector, rel=1e-14, abs=1e-300)


def test_no_rotation_has_a_derivative():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    slope = jax.jacobian(lambda v: r.from_rotvec(v, jnp))(jnp.zeros(3))
    np.testing.assert_allclose(slope, [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], atol=1e-7)
    back = jax.jacobian(lambda q: r.to_rotvec(q, jnp))(jnp.asarray([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(back[:, 1:], 2 * np.eye(3), atol=1e-6)


def test_jit_and_vmap_give_what_the_batch_gives():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    quat, vector = jnp.asarray(some(6, 8)), jnp.asarray(vectors(7, 8))
    each = jax.jit(jax.vmap(lambda q, v: r.rotate_inverse(q, v, jnp)))(quat, vector)
    np.testing.assert_allclose(each, r.rotate_inverse(quat, vector, jnp), atol=1e-6)


def test_it_turns_as_mujoco_does():
    mujoco = pytest.importorskip("mujoco")
    for quat, other, vector in zip(some(8, 10), some(9, 10), vectors(10, 10), strict=True):
        out, product = np.zeros(3), np.zeros(4)
        quat, other, vector = (x.astype(np.float64) for x in (quat, other, vector))
        mujoco.mju_rotVecQuat(out, vector, quat)
        mujoco.mju_mulQuat(product, quat, other)
        np.testing.assert_allclose(r.rotate(quat, vector), out, atol=1e-6)
        np.testing.assert_allclose(r.multiply(quat, other), product, atol=1e-12)


def test_nobody_else_has_a_helper_for_rotations():
    """A function elsewhere whose name says that it turns or multiplies quaternions is a second truth."""
    words = ("quat_", "quaternion_", "rotate", "rotvec", "euler", "projected_gravity", "gravity_in")
    found = []
    for package in ("robots", "deploy", "ksim", "export"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and any(w in node.name for w in words):
                    found.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert all(line.startswith("robots/rotation.py: ") for line in found) and found, found
