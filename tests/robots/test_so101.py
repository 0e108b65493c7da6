"""The built-in SO-101 is the one that was published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robots.load import load_robot
from robots.model import build_model
from robots.understood import understood

mujoco = pytest.importorskip("mujoco")

PUBLISHED = Path(__file__).parents[3] / "shared" / "real" / "so101" / "so101.xml"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def test_gains_motors_and_masses_are_the_published_ones():
    robot, built = load_robot("so101"), build_model("so101")
    assert robot.joint_names == JOINTS
    for number, joint in enumerate(robot.joints, 1):
        assert (joint.id, joint.kp, joint.kd, joint.torque_max_nm) == (number, 998.22, 2.731, 3.35)
        assert (joint.armature, joint.damping, joint.friction_nm) == (0.028, 0.6, 0.052)
    masses = (0.147, 0.100006, 0.103, 0.104, 0.079, 0.087, 0.012)
    assert built.model.body_mass[1:] == pytest.approx(masses, rel=1e-6)
    assert built.base_body == -1
    assert understood(built).count("guess") == 1  # it has no feet


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published file is not here")
def test_frames_inertias_and_ranges_are_those_of_the_published_file():
    ours, theirs = build_model("so101").model, mujoco.MjModel.from_xml_path(str(PUBLISHED))
    np.testing.assert_allclose(ours.jnt_range, theirs.jnt_range, atol=1e-5)
    here, there = mujoco.MjData(ours), mujoco.MjData(theirs)
    draw = np.random.default_rng(0)
    for _ in range(5):
        here.qpos[:] = there.qpos[:] = draw.uniform(ours.jnt_range[:, 0], ours.jnt_range[:, 1])
        here.qvel[:] = there.qvel[:] = draw.normal(size=6)
        mujoco.mj_forward(ours, here)
        mujoco.mj_forward(theirs, there)
        np.testing.assert_allclose(here.xpos, there.xpos, atol=1e-7)
        np.testing.assert_allclose(here.qfrc_bias, there.qfrc_bias, atol=1e-7)
