"""Resets: each changes what it says, by as much as it says, and nothing else."""

from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import resets
from ksim.curriculum import LinearScale
from ksim.errors import ConfigError
from ksim.scene import Scene
from robots import rotation

DRAWS = 300


@pytest.fixture(scope="module")
def home(scene):
    return resets.Pose(jnp.asarray(scene.built.home_qpos, jnp.float32), jnp.zeros(scene.built.model.nv))


@pytest.fixture(scope="module")
def drawn(scene, home):
    """`drawn(term, level)`: many starts, numpy."""

    def draw(term, level=1.0):
        keys = jax.random.split(jax.random.key(2), DRAWS)
        return jax.tree.map(np.asarray, jax.vmap(lambda key: term.reset(home, scene, key, level))(keys))

    return draw


def spans(values, width):
    """Uniform between minus and plus a width, as far as 300 draws tell."""
    values = np.asarray(values)
    assert np.abs(values).max() <= width * (1 + 1e-5)
    assert values.max() > 0.9 * width and values.min() < -0.9 * width


def moved(poses, home):
    """Which elements of qpos and of qvel differ from home in any draw."""
    changed = [(np.abs(a - np.asarray(b)) > 1e-9).any(axis=0) for a, b in zip(poses, home, strict=True)]
    return [set(np.flatnonzero(c).tolist()) for c in changed]


def places(scene, at, count):
    return set(range(at, at + count))


def test_joints_start_about_home_within_their_limits(drawn, scene, home):
    poses = drawn(resets.JointPositionReset(width_rad=0.1))
    ids = scene.built.qpos_ids
    assert moved(poses, home) == [set(ids.tolist()), set()]
    hip = ids[scene.joint_names.index("dof_left_hip_yaw_03")]
    spans(poses.qpos[:, hip] - np.asarray(home.qpos)[hip], 0.1)
    wide = drawn(resets.JointPositionReset(width_rad=3.0)).qpos[:, ids]
    assert (wide >= scene.column("lower_rad")).all() and (wide <= scene.column("upper_rad")).all()


def test_joint_velocities_start_about_zero(drawn, scene, home):
    poses = drawn(resets.JointVelocityReset(width_rad_s=2.0))
    assert moved(poses, home) == [set(), set(scene.built.dof_ids.tolist())]
    spans(poses.qvel[:, scene.built.dof_ids[0]], 2.0)


def test_the_base_starts_elsewhere_over_ground(drawn, scene, home):
    poses = drawn(resets.BasePositionReset(width_m=2.0))
    assert moved(poses, home) == [places(scene, scene.base_qpos, 2), set()]
    spans(poses.qpos[:, scene.base_qpos : scene.base_qpos + 2], 2.0)


def test_the_heading_is_any_and_the_robot_stays_upright(drawn, scene, home):
    poses = drawn(resets.HeadingReset())
    quat = poses.qpos[:, scene.built.base_quat]
    spans(rotation.yaw_of(quat), math.pi)
    np.testing.assert_allclose(rotation.up_in_frame(quat), np.tile([0.0, 0.0, 1.0], (DRAWS, 1)), atol=1e-6)


def test_the_tilt_is_horizontal_and_small(drawn, scene):
    quat = drawn(resets.TiltReset(width_rad=0.1)).qpos[:, scene.built.base_quat]
    lean = rotation.to_rotvec(quat)
    assert np.abs(lean[:, 2]).max() < 1e-6
    spans(lean[:, :2], 0.1)


def test_the_height_is_a_fixed_lift_and_a_random_drop_that_the_level_scales(drawn, scene, home):
    at = scene.base_qpos + 2
    fixed = drawn(resets.HeightReset(lift_m=0.02)).qpos[:, at] - np.asarray(home.qpos)[at]
    np.testing.assert_allclose(fixed, 0.02, atol=1e-6)
    term = resets.HeightReset(lift_m=0.02, drop_m=0.1, scale=LinearScale(low=0.5, high=1.0))
    far, near = (drawn(term, level).qpos[:, at] - np.asarray(home.qpos)[at] for level in (1.0, 0.0))
    assert far.min() >= 0.02 - 1e-6 and 0.11 < far.max() <= 0.12 + 1e-6
    np.testing.assert_allclose(near - 0.02, (far - 0.02) / 2, atol=1e-6)


def test_the_base_starts_with_a_velocity_of_its_own(drawn, scene, home):
    poses = drawn(resets.BaseVelocityReset(lin_vel_m_s=0.5, ang_vel_rad_s=2.0))
    start = scene.base_qvel
    assert moved(poses, home) == [set(), places(scene, start, 6) - {start + 2}]
    spans(poses.qvel[:, start : start + 2], 0.5)
    spans(poses.qvel[:, start + 3 : start + 6], 2.0)


@pytest.mark.parametrize("kind", ["JointPositionReset", "JointVelocityReset", "TiltReset", "BaseVelocityReset"])
def test_a_scale_of_zero_leaves_the_pose_as_it_is(drawn, home, kind):
    poses = drawn(getattr(resets, kind)(scale=LinearScale()), level=0.0)
    assert moved(poses, home) == [set(), set()]


BASE_TERMS = (
    *(resets.TiltReset(), resets.HeadingReset(), resets.HeightReset()),
    *(resets.BaseVelocityReset(), resets.BasePositionReset()),
)


@pytest.mark.parametrize("term", BASE_TERMS, ids=lambda t: type(t).__name__)
def test_a_robot_without_a_base_is_left_alone(arm, term):
    pose = resets.Pose(jnp.zeros(arm.model.nq), jnp.zeros(arm.model.nv))
    after = term.reset(pose, Scene(built=arm), jax.random.key(0), 1.0)
    assert np.array_equal(after.qpos, pose.qpos) and np.array_equal(after.qvel, pose.qvel)


# Poses of a file.

CSV = """dof_left_knee_04,dof_right_knee_04,base_height_m,base_qw,base_qx,base_qy,base_qz
1.0,-1.0,0.6,1,0,0,0
1.5,-1.5,0.5,0.0,0.0,0.0,1.0
"""


@pytest.fixture
def poses_csv(tmp_path):
    path = tmp_path / "poses.csv"
    path.write_text(CSV)
    return path


def test_a_pose_is_a_row_of_the_file_with_height_and_orientation(drawn, scene, home, poses_csv):
    start = scene.base_qpos
    qpos = drawn(resets.PosesReset(path=str(poses_csv))).qpos
    knees = [scene.built.qpos_ids[scene.joint_names.index(f"dof_{side}_knee_04")] for side in ("left", "right")]
    first = np.isclose(qpos[:, knees[0]], 1.0)
    assert 0.3 < first.mean() < 0.7
    for mine, knee, height, quat in ((first, 1.0, 0.6, [1, 0, 0, 0]), (~first, 1.5, 0.5, [0, 0, 0, 1])):
        np.testing.assert_allclose(qpos[mine][:, knees], [[knee, -knee]] * mine.sum(), atol=1e-6)
        np.testing.assert_allclose(qpos[mine][:, start + 2], height, atol=1e-6)
        np.testing.assert_allclose(np.abs(qpos[mine][:, scene.built.base_quat]), [quat] * mine.sum(), atol=1e-5)
    others = sorted(set(scene.built.qpos_ids.tolist()) - set(np.asarray(knees).tolist()))
    np.testing.assert_allclose(qpos[:, others], np.tile(np.asarray(home.qpos)[others], (DRAWS, 1)), atol=1e-6)


def test_half_a_scale_goes_half_the_way_to_the_pose(drawn, scene, home, tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("\n".join(CSV.splitlines()[::2]) + "\n")
    qpos = drawn(resets.PosesReset(path=str(path), scale=0.5)).qpos
    np.testing.assert_allclose(qpos[:, scene.base_qpos + 2], (0.5 + scene.standing_height_m) / 2, atol=1e-5)
    # half a turn about the vertical becomes a quarter turn
    yaw = rotation.yaw_of(qpos[:, scene.built.base_quat])
    np.testing.assert_allclose(np.abs(yaw), math.pi / 2, atol=1e-5)


def test_a_share_of_the_episodes_starts_from_the_file(drawn, scene, home, poses_csv):
    qpos = drawn(resets.PosesReset(path=str(poses_csv), share=0.25)).qpos
    changed = (np.abs(qpos - np.asarray(home.qpos)) > 1e-6).any(axis=1)
    assert abs(changed.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / DRAWS)


def test_an_npz_gives_the_same_start_as_a_csv(drawn, poses_csv, tmp_path):
    path = tmp_path / "poses.npz"
    np.savez(
        path,
        joint_names=np.array(["dof_left_knee_04", "dof_right_knee_04"]),
        joint_position=[[1.0, -1.0], [1.5, -1.5]],
        base_height_m=[0.6, 0.5],
        base_quat=[[1.0, 0, 0, 0], [0, 0, 0, 1.0]],
    )
    one, other = (drawn(resets.PosesReset(path=str(p))).qpos for p in (poses_csv, path))
    assert np.array_equal(one, other)


def test_a_file_without_a_base_leaves_the_base_and_a_changed_file_is_read_again(drawn, scene, home, tmp_path):
    path = tmp_path / "poses.csv"
    knee = scene.built.qpos_ids[scene.joint_names.index("dof_left_knee_04")]
    path.write_text("dof_left_knee_04\n1.0\n")
    term = resets.PosesReset(path=str(path))
    qpos = drawn(term).qpos
    base = slice(scene.base_qpos, scene.base_qpos + 7)
    assert np.array_equal(qpos[:, base], np.tile(np.asarray(home.qpos)[base], (DRAWS, 1)))
    path.write_text("dof_left_knee_04\n1.25\n")
    os.utime(path, ns=(1, 1))
    np.testing.assert_allclose(drawn(term).qpos[:, knee], 1.25, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dof_left_kneee_04\n1\n", "no joint 'dof_left_kneee_04'; did you mean dof_left_knee_04?"),
        ("dof_left_knee_04\n", "got no pose"),
        ("", "got no pose"),
        ("base_height_m\n0.7\n", "got no joint"),
        ("dof_left_knee_04\n1,2\n", "pose 1: got 2 numbers, expected 1"),
        ("dof_left_knee_04\n1\nfar\n", "pose 2: dof_left_knee_04: got 'far', expected a number"),
        ("dof_left_knee_04\n1\nnan\n", "pose 2: dof_left_knee_04: got nan, expected a finite number"),
        ("dof_left_knee_04\n1\n9\n", "pose 2: joint dof_left_knee_04: got 9 rad, expected 0 to 2.70526"),
        ("dof_left_knee_04,dof_left_knee_04\n1,1\n", "is there twice"),
        ("dof_left_knee_04,base_qw\n1,1\n", "got some of base_qw, base_qx, base_qy, base_qz"),
        ("dof_left_knee_04,base_qw,base_qx,base_qy,base_qz\n1,2,0,0,0\n", "has length 2, expected 1"),
    ],
)
def test_a_wrong_csv_is_refused_in_one_line_that_names_the_place(scene, home, tmp_path, text, message):
    path = tmp_path / "poses.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resets.PosesReset(path=str(path)).reset(home, scene, jax.random.key(0), 1.0)
    said = str(caught.value)
    assert message in said and said.startswith(str(path)) and "\n" not in said


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"joint_position": [[1.0]]}, "got no array joint_names"),
        ({"joint_names": ["dof_left_knee_04"]}, "got no array joint_position"),
        ({"joint_names": ["dof_left_knee_04"], "joint_position": [[1.0, 2.0]]}, "shape (1, 2), expected"),
        ({"joint_names": ["dof_left_knee_04"] * 2, "joint_position": [[1.0, 1.0]]}, "there twice"),
        (
            {"joint_names": ["dof_left_knee_04"], "joint_position": [[1.0]], "base_hight_m": [1.0]},
            "array 'base_hight_m' is unknown; did you mean base_height_m?",
        ),
        ({"joint_names": ["dof_left_knee_04"], "joint_position": [["far"]]}, "expected numbers"),
    ],
)
def test_a_wrong_npz_is_refused_in_one_line(scene, home, tmp_path, arrays, message):
    path = tmp_path / "poses.npz"
    np.savez(path, **{name: np.array(value) for name, value in arrays.items()})
    with pytest.raises(ConfigError) as caught:
        resets.PosesReset(path=str(path)).reset(home, scene, jax.random.key(0), 1.0)
    said = str(caught.value)
    assert message in said and said.startswith(str(path)) and "\n" not in said


def test_objects_in_an_npz_are_never_loaded_and_other_files_are_refused(scene, home, tmp_path):
    pickled = tmp_path / "poses.npz"
    np.savez(pickled, joint_names=np.array([object()]), joint_position=[[1.0]])
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "poses.txt").write_text("1")
    for name, message in (
        ("poses.npz", "cannot be read"),
        ("torn.npz", "cannot be read"),
        ("poses.txt", "got a file of kind '.txt'"),
        ("none.csv", "no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            resets.PosesReset(path=str(tmp_path / name)).reset(home, scene, jax.random.key(0), 1.0)
