"""Robot folders as newcomers have them: what is said in other words is read right, or refused by its name."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from robots.errors import RobotLoadError
from robots.load import EXTRA_KEY, load_robot, read_robot
from robots.model import build_model
from robots.understood import understood


def extra(**values):
    def edit(metadata):
        metadata[EXTRA_KEY] = values

    return edit


def only(*names):
    def edit(metadata):
        row = metadata["joint_name_to_metadata"]["left_hip"]
        metadata["joint_name_to_metadata"] = {name: {**row, "id": i} for i, name in enumerate(names, 1)}

    return edit


def tetrahedron(side):
    points = [(0, 0, 0), (side, 0, 0), (0, side, 0), (0, 0, side)]
    data = b" " * 80 + struct.pack("<I", 4)
    for face in ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)):
        data += struct.pack("<12f", 0, 0, 0, *(v for i in face for v in points[i])) + b"  "
    return data


def link(name, mesh="", scale="1 1 1", inertia=True):
    about = '<inertial><mass value="2"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'
    shape = f'<mesh filename="{mesh}" scale="{scale}"/>' if mesh else '<box size="0.1 0.1 0.1"/>'
    return f'<link name="{name}">{about * inertia}<collision><geometry>{shape}</geometry></collision></link>'


def urdf(*links, more=""):
    names = ("base", "left_foot")
    joint = '<joint name="hip" type="revolute"><parent link="{}"/><child link="{}"/><axis xyz="0 1 0"/>'
    limit = '<limit lower="-1" upper="1" effort="1" velocity="1"/></joint>'
    return f'<robot name="r">{"".join(links)}{joint.format(*names)}{limit}{more}</robot>'


def test_a_key_of_ours_that_is_unknown_is_refused_with_the_nearest(write_robot):
    folder = write_robot(edit=extra(foot_site=["left_foot"], home={"left_hip": 1}))
    with pytest.raises(RobotLoadError, match=r"'foot_site' is unknown; did you mean foot_sites.*'home' is unknown"):
        load_robot(folder)


def test_a_longer_word_says_neither_imu_nor_foot(write_robot, biped_xml):
    text = biped_xml.replace('<site name="imu"/>', '<site name="simulation_origin" pos="1 0 0"/>')
    _, origins = read_robot(write_robot(text.replace('<gyro name="g" site="imu" noise="0.1"/>', "")))
    assert origins.imu.guess and origins.imu_body == "pelvis"
    arm = urdf(link("base"), link("left_foot"), '<link name="base_footprint"/>').replace("left_foot", "hand")
    fixed = '<joint name="f" type="fixed"><parent link="base_footprint"/><child link="base"/></joint></robot>'
    folder = write_robot(arm.replace("</robot>", fixed), only("hip"), name="arm", model="robot.urdf")
    robot, origins = read_robot(folder)
    assert robot.foot_sites == () and not origins.free


def test_two_sites_with_the_names_of_an_imu_are_refused(write_robot, biped_xml):
    folder = write_robot(biped_xml.replace('<site name="imu"/>', '<site name="imu"/><site name="imu_site"/>'))
    with pytest.raises(RobotLoadError, match="more than one place that may be the IMU's: imu, imu_site"):
        load_robot(folder)


def test_of_two_coupled_joints_the_one_with_the_motor_leads(write_robot, biped_xml):
    pair = "<equality><joint joint1='left_hip' joint2='right_hip' polycoef='0.1 2 0 0 0'/></equality><actuator>"
    text = biped_xml.replace("<actuator>", pair).replace('<motor name="c" joint="right_hip"/>', "")
    folder = write_robot(text, lambda metadata: metadata["joint_name_to_metadata"].pop("right_hip"))
    robot, origins = read_robot(folder)
    assert "left_hip" in robot.joint_names and origins.passive["right_hip"].how == "follows left_hip"
    built = build_model(folder)
    angle = {name: built.home_qpos[built.model.joint(name).qposadr[0]] for name in ("left_hip", "right_hip")}
    assert angle["left_hip"] == pytest.approx(0.1)
    assert angle["left_hip"] == pytest.approx(0.1 + 2 * angle["right_hip"])


def test_an_equality_that_its_default_class_switches_off_does_not_hold(write_robot, biped_xml):
    pair = "<equality><joint joint1='left_hip' joint2='right_hip'/></equality><actuator>"
    text = biped_xml.replace("<actuator>", pair).replace("<default>", '<default><equality active="false"/>', 1)
    assert load_robot(write_robot(text)).joint_names == ("left_hip", "left_knee", "right_hip", "right_knee")


def test_a_home_outside_the_limits_and_a_short_keyframe_say_where_they_are(write_robot, biped_xml):
    folder = write_robot(biped_xml.replace("0.1 0.2 -0.1 0.3", "2 0.2 -0.1 0.3"))
    with pytest.raises(RobotLoadError, match=r"left_hip: home is 114.592 degrees \(of robot.xml, keyframe home\)"):
        load_robot(folder)
    folder = write_robot(biped_xml.replace("0.1 0.2 -0.1 0.3", "0.1 0.2"))
    with pytest.raises(RobotLoadError, match="keyframe home: qpos: got 9 numbers, expected 11"):
        load_robot(folder)


def test_weight_that_the_model_takes_away_is_told(write_robot, biped_xml):
    assert "gravity" not in understood(build_model(write_robot()))
    text = biped_xml.replace("<default>", '<option gravity="0 0 0"/><default>', 1)
    said = understood(build_model(write_robot(text.replace('name="pelvis"', 'name="pelvis" gravcomp="1"'))))
    assert "gravity: 0 0 0 m/s^2" in said and "weight carried by the model: of pelvis" in said


def test_meshes_of_one_name_are_told_apart(write_robot):
    text = urdf(link("base", "package://r/meshes/a.stl"), link("left_foot", "package://r/meshes/sub/a.stl"))
    folder = write_robot(text, only("hip"), model="robot.urdf")
    (folder / "meshes/sub").mkdir(parents=True)
    (folder / "meshes/a.stl").write_bytes(tetrahedron(1.0))
    (folder / "meshes/sub/a.stl").write_bytes(tetrahedron(0.25))
    built = build_model(folder)
    assert sorted(built.meshes.values()) == [folder / "meshes/a.stl", folder / "meshes/sub/a.stl"]
    foot = built.geoms_by_foot["left_foot"][0]
    assert built.model.geom_rbound[foot] < 0.3
    mirrored = text.replace("sub/a.stl", "a.stl").replace('1 1 1"', '1 -1 1"', 2).replace('1 -1 1"', '1 1 1"', 1)
    built = build_model(write_robot(mirrored, only("hip"), model="robot.urdf"))
    assert sorted(built.model.mesh_scale[:, 1]) == [-1, 1]


def test_what_mujoco_cannot_read_is_told_with_what_to_do(write_robot):
    folder = write_robot(urdf(link("base", "a.dae"), link("left_foot")), only("hip"), model="robot.urdf")
    (folder / "a.dae").write_text("<x/>")
    with pytest.raises(RobotLoadError, match=r"does not read: a\.dae; expected STL, OBJ or MSH; convert them"):
        build_model(folder)
    text = urdf(link("base"), link("left_foot"), more='<xacro:include xmlns:xacro="x/xacro" filename="b"/>')
    with pytest.raises(RobotLoadError, match=r"xacro FILE > robot\.urdf"):
        load_robot(write_robot(text, only("hip"), name="x", model="robot.urdf"))


def test_a_mass_that_only_mujoco_knows_is_not_told_of_the_rest(write_robot, biped_xml):
    text = urdf(link("base"), link("left_foot", inertia=False))
    assert load_robot(write_robot(text, only("hip"), model="robot.urdf", name="u")).mass_kg == 0.0
    scaled = biped_xml.replace('angle="degree"', 'angle="degree" settotalmass="20"')
    assert load_robot(write_robot(scaled)).mass_kg == 0.0


def test_metadata_that_an_editor_marked_as_utf_8_is_read(write_robot):
    folder = write_robot()
    path = folder / "metadata.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert np.isfinite(load_robot(folder).mass_kg)
