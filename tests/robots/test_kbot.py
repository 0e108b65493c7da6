"""The built-in K-Bot is the one that was published: masses, ranges, gains, and how it stands."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from robots.load import load_robot, robot_folder
from robots.model import BuiltModel, build_model
from robots.motor import MotorParams, rest
from robots.motor import step as motor_step

mujoco = pytest.importorskip("mujoco")

PUBLISHED = Path(__file__).parents[3] / "shared" / "kbot"

# id, kp, kd, soft torque limit [N m], range [deg]; the right side mirrors the left. Source: kbot-headless
LEFT = {
    "dof_left_shoulder_pitch_03": (11, 100.0, 8.284, 42.0, -60, 180),  # metadata -80 to 180, model -60 to 200
    "dof_left_shoulder_roll_03": (12, 100.0, 8.257, 42.0, -20, 95),
    "dof_left_shoulder_yaw_02": (13, 40.0, 0.945, 11.9, -95, 95),
    "dof_left_elbow_02": (14, 40.0, 1.266, 11.9, -142, 0),
    "dof_left_wrist_00": (15, 20.0, 0.295, 9.8, -79, 79),  # metadata 100, model 79
    "dof_left_hip_pitch_04": (31, 150.0, 24.722, 84.0, -60, 127),
    "dof_left_hip_roll_03": (32, 200.0, 26.387, 42.0, -12, 130),
    "dof_left_hip_yaw_03": (33, 100.0, 3.419, 42.0, -90, 90),
    "dof_left_knee_04": (34, 150.0, 8.654, 84.0, 0, 155),
    "dof_left_ankle_02": (35, 40.0, 0.990, 11.9, -65, 13),  # metadata -72, model -65
}
# by the two digits that end a joint's name: peak torque [N m], no-load speed [rad/s], armature, friction
MOTORS = {
    "00": (14.0, 27.227, 0.001, 0.1),
    "02": (17.0, 37.699, 0.0042, 0.1),
    "03": (60.0, 18.849, 0.02, 0.2),
    "04": (120.0, 17.488, 0.04, 0.2),
}
# [kg]
LINKS = {
    "torso": 12.606875,
    "imu": 0.0057,
    "hip_pitch": (0.550354, 0.550361),
    "hip_roll": (2.396969, 2.396917),
    "thigh": (2.349254, 2.349261),
    "shin": (1.684707, 1.684717),
    "foot": (0.608966, 0.608742),
    "shoulder_pitch": (0.569863, 0.569870),
    "shoulder_roll": (1.789191, 1.789232),
    "upper_arm": (0.866827, 0.753224),
    "forearm": (0.641873, 0.641859),
    "hand": (0.462356, 0.462356),
}
HOME_DEG = {"hip_pitch_04": 20, "knee_04": 50, "ankle_02": -30, "shoulder_roll_03": 10, "elbow_02": -90}


@pytest.fixture(scope="module")
def kbot() -> BuiltModel:
    return build_model("kbot")


@pytest.fixture
def at_home(kbot: BuiltModel):
    data = mujoco.MjData(kbot.model)
    data.qpos[:] = kbot.home_qpos
    mujoco.mj_forward(kbot.model, data)
    return data


def test_gains_ids_and_limits_are_the_published_ones():
    robot = load_robot("kbot")
    assert len(robot.joints) == 20
    for name, (bus_id, kp, kd, limit, low, high) in LEFT.items():
        left, right = robot.joint(name), robot.joint(name.replace("left", "right"))
        assert (left.id, left.kp, left.kd, left.torque_limit_nm) == (bus_id, kp, kd, limit)
        assert (right.id, right.kp, right.kd, right.torque_limit_nm) == (bus_id + 10, kp, kd, limit)
        degrees = [math.degrees(v) for v in (left.lower_rad, left.upper_rad, right.lower_rad, right.upper_rad)]
        assert degrees == pytest.approx([low, high, -high, -low], abs=1e-4)
        for joint in (left, right):
            figures = (joint.torque_max_nm, joint.velocity_max_rad_s, joint.armature, joint.friction_nm)
            assert figures == MOTORS[name[-2:]]
    assert robot.control_period_s == 0.02


def test_home_is_the_published_pose():
    for joint in load_robot("kbot").joints:
        side, part = joint.name.removeprefix("dof_").split("_", 1)
        expected = HOME_DEG.get(part, 0) * (1 if side == "left" else -1)
        assert math.degrees(joint.home_rad) == pytest.approx(expected, abs=1e-12), joint.name


def test_masses_of_the_links_and_the_total(kbot):
    assert kbot.model.body_mass.sum() == pytest.approx(36.3437, abs=5e-5)
    assert kbot.spec.mass_kg == pytest.approx(kbot.model.body_mass.sum(), abs=1e-12)
    for link, mass in LINKS.items():
        names = [link] if isinstance(mass, float) else [f"left_{link}", f"right_{link}"]
        masses = [float(kbot.model.body(name).mass[0]) for name in names]
        assert masses == pytest.approx([mass] if isinstance(mass, float) else list(mass), abs=1e-12), link


def test_compiled_ranges_and_armature_are_the_specs(kbot):
    for joint in kbot.spec.joints:
        compiled = kbot.model.joint(joint.name)
        low, high = compiled.range
        assert low <= joint.lower_rad + 1e-12 and joint.upper_rad <= high + 1e-12
        assert kbot.model.dof_armature[compiled.dofadr[0]] == joint.armature


def test_home_stands_on_flat_soles_facing_x_with_the_left_foot_at_y(kbot, at_home):
    assert kbot.home_qpos[2] == pytest.approx(0.7197, abs=1e-4)
    assert at_home.site("imu_site").xpos[2] == pytest.approx(0.7197 + 0.4405, abs=1e-3)
    soles = [at_home.geom(int(g)) for g in kbot.foot_geoms]
    assert len(soles) == 4
    for sole in soles:
        axis = sole.xmat.reshape(3, 3)[:, 2]
        assert abs(axis) == pytest.approx([1, 0, 0], abs=1e-4)
        assert sole.xpos[2] == pytest.approx(0.02, abs=1e-4)
        # toes are ahead of the ankle
        foot = at_home.body(kbot.model.geom(sole.id).bodyid[0])
        assert sole.xpos[0] > foot.xpos[0]
    left, right = at_home.body("left_foot").xpos, at_home.body("right_foot").xpos
    assert left == pytest.approx(right * [1, -1, 1], abs=2e-4)
    assert left[1] > 0.1


def test_gravity_points_down_in_the_imu_frame_and_forward_is_its_minus_y(kbot, at_home):
    to_imu = at_home.site("imu_site").xmat.reshape(3, 3).T
    assert to_imu @ [0, 0, -9.81] == pytest.approx([0, 0, -9.81], abs=1e-9)
    assert to_imu @ [1, 0, 0] == pytest.approx([0, -1, 0], abs=1e-5)
    quat = at_home.sensordata[kbot.sensors["imu_quat"]]
    assert quat == pytest.approx([math.sqrt(0.5), 0, 0, math.sqrt(0.5)], abs=1e-5)


def test_shapes_touch_nothing_weigh_nothing_and_stay_above_the_floor(kbot, at_home):
    shapes = np.flatnonzero(kbot.model.geom_group == 2)
    assert len(shapes) > 30
    assert not kbot.model.geom_contype[shapes].any() and not kbot.model.geom_conaffinity[shapes].any()
    for geom in shapes:
        gap = mujoco.mj_geomDistance(kbot.model, at_home, kbot.floor_geom, int(geom), 5.0, None)
        assert gap > -1e-3, kbot.model.geom(int(geom)).bodyid


def test_it_stands_for_a_moment_under_the_motor_law_and_falls_without_it(kbot):
    heights = {}
    for powered in (True, False):
        data = mujoco.MjData(kbot.model)
        data.qpos[:] = kbot.home_qpos
        params = MotorParams.of(kbot.spec)
        target = kbot.home_qpos[kbot.qpos_ids]
        weight, memory = 0.0, rest(params, target)
        for _ in range(100):
            position, velocity = data.qpos[kbot.qpos_ids], data.qvel[kbot.dof_ids]
            _, net, memory = motor_step(params, memory, position, velocity, target, kbot.model.opt.timestep)
            data.ctrl[:] = net if powered else 0.0
            mujoco.mj_step(kbot.model, data)
            weight += sum(float(data.sensordata[kbot.sensors[f"touch_{s}_foot"]][0]) for s in ("left", "right")) / 100
        assert not any(warning.number for warning in data.warning)
        heights[powered] = data.qpos[2]
        if powered:
            assert weight == pytest.approx(kbot.spec.mass_kg * 9.81, rel=0.15)
    assert heights[True] > 0.65 > heights[False] + 0.05


def test_the_file_alone_opens_in_mujoco_with_the_same_home(kbot):
    path = robot_folder("kbot") / "robot.xml"
    alone = mujoco.MjModel.from_xml_path(str(path))
    assert alone.key("home").qpos == pytest.approx(kbot.home_qpos, abs=1e-9)
    assert [alone.actuator(i).name for i in range(alone.nu)] == list(kbot.spec.joint_names)
    assert "MIT" in path.read_text() and "kscalelabs/ksim" in path.read_text()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published model is not here")
def test_dynamics_are_the_published_models_at_random_states(kbot):
    theirs = build_model(PUBLISHED)
    rng = np.random.default_rng(7)
    for _ in range(20):
        pose = rng.uniform(-1, 1, 7)
        pose[3:] /= np.linalg.norm(pose[3:])
        joints = rng.uniform(-1.5, 1.5, 20)
        speed = rng.normal(size=26)
        results = []
        for built in (kbot, theirs):
            data = mujoco.MjData(built.model)
            data.qpos[:7] = pose
            data.qpos[built.qpos_ids] = joints
            data.qvel[:6] = speed[:6]
            data.qvel[built.dof_ids] = speed[6:]
            mujoco.mj_forward(built.model, data)
            mass = np.zeros((26, 26))
            mujoco.mj_fullM(built.model, data, mass)
            sites = [data.site(n).xpos for n in ("imu_site", "left_foot", "right_foot", "base_site")]
            turns = [data.site(n).xmat for n in ("imu_site", "left_foot", "right_foot", "base_site")]
            soles = np.sort(data.geom_xpos[built.foot_geoms], axis=0)
            results.append((mass, data.qfrc_bias.copy(), np.array(sites), np.array(turns), soles))
        for ours, published in zip(*results, strict=False):
            np.testing.assert_allclose(ours, published, rtol=0, atol=1e-10)
    assert kbot.spec.joint_names == theirs.spec.joint_names


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published model is not here")
def test_contact_with_the_floor_is_the_published_models(kbot):
    theirs = build_model(PUBLISHED)
    motion = []
    for built in (kbot, theirs):
        data = mujoco.MjData(built.model)
        data.qpos[:] = kbot.home_qpos
        data.qpos[2] += 0.01
        params, dt = MotorParams.of(built.spec), built.model.opt.timestep
        memory = rest(params, data.qpos[built.qpos_ids])
        for step in range(60):
            position, velocity = data.qpos[built.qpos_ids], data.qvel[built.dof_ids]
            target = kbot.home_qpos[kbot.qpos_ids] + 0.1 * math.sin(step / 5)
            _, data.ctrl[:], memory = motor_step(params, memory, position, velocity, target, dt)
            mujoco.mj_step(built.model, data)
        assert data.ncon > 0
        assert not any(warning.number for warning in data.warning)
        motion.append(data.qpos.copy())
    np.testing.assert_allclose(*motion, rtol=0, atol=1e-9)
