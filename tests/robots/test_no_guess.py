"""What a robot folder does not say is found by a rule or refused: IMU, home, feet, joints without a motor."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

from robots.errors import RobotLoadError
from robots.load import EXTRA_KEY, load_robot, read_robot
from robots.model import build_model
from robots.understood import understood

KEY = '<key name="home" qpos="0 0 1 1 0 0 0  0.1 0.2 -0.1 0.3"/>'


def test_the_one_site_with_imu_in_its_name_is_the_imu_with_its_own_frame(write_robot, biped_xml):
    text = biped_xml.replace('<site name="imu"/>', '<site name="Chest_IMU_link" quat="0.70710678 0 0 0.70710678"/>')
    text = text.replace('<gyro name="g" site="imu" noise="0.1"/>', "")
    folder = write_robot(text)
    robot, origins = read_robot(folder)
    assert robot.imu_site == "Chest_IMU_link" and not origins.imu.guess
    built = build_model(folder)
    site = built.model.site("Chest_IMU_link")
    assert np.allclose(site.quat, [math.sqrt(0.5), 0, 0, math.sqrt(0.5)])


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        ('<site name="imu_in_pelvis"/><site name="imu_in_torso" pos="0 0 1"/>', "imu_in_pelvis, imu_in_torso"),
        ('<body name="imu_a"/><body name="imu_b"/>', "imu_a, imu_b"),
        ('<body name="imu_link"><site name="front"/><site name="back"/></body>', "front, back"),
    ],
)
def test_several_that_may_be_the_imu_are_refused_with_their_names(write_robot, biped_xml, sites, names):
    text = biped_xml.replace('<site name="imu"/>', sites).replace('<gyro name="g" site="imu" noise="0.1"/>', "")
    with pytest.raises(RobotLoadError, match=rf"more than one place that may be the IMU's: {names}; name one of them"):
        load_robot(write_robot(text))
    one = names.split(", ")[1]
    told = load_robot(write_robot(text, lambda metadata: metadata.update({EXTRA_KEY: {"imu_site": one}})))
    assert told.imu_site == one


@pytest.mark.parametrize(
    ("keys", "home", "how"),
    [
        ('<key name="stand" qpos="0 0 1 1 0 0 0  0.2 0.4 -0.2 0.5"/>', [0.2, 0.4, -0.2, 0.5], "of keyframe stand"),
        (
            '<key name="lie" qpos="0 0 1 1 0 0 0  0 0.9 0 0.9"/>'
            '<key name="stand" qpos="0 0 1 1 0 0 0  0.2 0.4 -0.2 0.5"/>',
            [0.2, 0.4, -0.2, 0.5],
            "of keyframe stand",
        ),
        ('<key qpos="0 0 1 1 0 0 0  0.1 0.3 0.1 0.3"/>', [0.1, 0.3, 0.1, 0.3], "of the only keyframe, unnamed"),
        (KEY + '<key name="stand" qpos="0 0 1 1 0 0 0  0 0 0 0"/>', [0.1, 0.2, -0.1, 0.3], "of keyframe home"),
    ],
)
def test_home_is_the_keyframe_home_or_stand_or_the_only_one(write_robot, biped_xml, keys, home, how):
    robot, origins = read_robot(write_robot(biped_xml.replace(KEY, keys)))
    assert robot.column("home_rad") == pytest.approx(home)
    assert (origins.home.how, origins.home.guess) == (how, False)


def test_home_deg_goes_before_a_keyframe_of_another_name_and_two_others_are_none(write_robot, biped_xml):
    keys = '<key name="low" qpos="0 0 1 1 0 0 0  0.2 0.4 -0.2 0.5"/>'
    degrees = {name: 6.0 for name in ("left_hip", "left_knee", "right_hip", "right_knee")}
    folder = write_robot(
        biped_xml.replace(KEY, keys), lambda metadata: metadata.update({EXTRA_KEY: {"home_deg": degrees}})
    )
    assert load_robot(folder).column("home_rad") == pytest.approx([math.radians(6.0)] * 4)
    robot, origins = read_robot(write_robot(biped_xml.replace(KEY, keys + keys.replace("low", "lower"))))
    assert set(robot.column("home_rad")) == {0.0} and origins.home.guess and "low, lower" in origins.home.how


def test_corner_sites_are_not_taken_for_feet(write_robot, biped_xml):
    corners = "".join(f'<site name="left_foot_{i}" pos="0.0{i} 0 -0.4"/>' for i in range(4))
    text = biped_xml.replace('<site name="left_foot" pos="0 0 -0.4"/>', corners)
    text = text.replace('<touch name="t" site="left_foot"/>', "")
    with pytest.raises(RobotLoadError, match=r"more than one site of a foot on one body: left_foot_0, .*name one for"):
        load_robot(write_robot(text))
    feet = ["left_foot_2", "right_foot"]
    told = load_robot(write_robot(text, lambda metadata: metadata.update({EXTRA_KEY: {"foot_sites": feet}})))
    assert list(told.foot_sites) == feet


# joints without a motor

FINGER = (
    '<body name="finger"><joint name="left_finger" axis="0 0 1"/><geom size="0.01" mass="0.01" contype="0" '
    'conaffinity="0"/></body>'
)


def test_a_joint_that_an_equality_makes_follow_has_no_motor_and_stands_where_it_is_taken(write_robot, biped_xml):
    text = biped_xml.replace('<site name="imu"/>', f'<site name="imu"/>{FINGER}')
    follows = '<equality><joint joint1="left_finger" joint2="left_knee" polycoef="0.01 2 0 0 0"/></equality><keyframe>'
    text = text.replace("<keyframe>", follows).replace("0 0 1 1 0 0 0  0.1", "0 0 1 1 0 0 0  0.7 0.1")
    built = build_model(write_robot(text))
    assert built.spec.joint_names == ("left_hip", "left_knee", "right_hip", "right_knee")
    assert built.model.nu == 4 and built.model.neq == 1
    # 0.01 + 2 times the knee's 0.2: not the 0.7 of the keyframe
    assert built.home_qpos[built.model.joint("left_finger").qposadr[0]] == pytest.approx(0.41)
    assert "passive joints: left_finger" in understood(built)


def test_a_joint_without_an_actuator_beside_joints_that_have_one_is_passive_and_keeps_its_keyframe(
    write_robot, biped_xml
):
    spring = FINGER.replace('axis="0 0 1"', 'axis="0 0 1" stiffness="3" springref="5"')
    text = biped_xml.replace('<site name="imu"/>', f'<site name="imu"/>{spring}')
    text = text.replace("0 0 1 1 0 0 0  0.1", "0 0 1 1 0 0 0  0.7 0.1")
    built = build_model(write_robot(text))
    assert len(built.spec.joints) == 4 and built.model.joint("left_finger").stiffness[0] == 3
    assert built.home_qpos[built.model.joint("left_finger").qposadr[0]] == pytest.approx(0.7)


def test_where_no_joint_has_an_actuator_one_that_the_metadata_does_not_name_is_refused_with_both_ways_out(
    write_robot, biped_xml
):
    text = biped_xml.replace('<site name="imu"/>', f'<site name="imu"/>{FINGER}')
    text = text.replace("0 0 1 1 0 0 0  0.1", "0 0 1 1 0 0 0  0.7 0.1")
    actuators = text[text.index("<actuator>") : text.index("</actuator>") + len("</actuator>")]
    text = text.replace(actuators, "")
    with pytest.raises(RobotLoadError, match=r"no entry for these joints of robot\.xml: left_finger; add those with a"):
        load_robot(write_robot(text))
    passive = write_robot(text, lambda metadata: metadata.update({EXTRA_KEY: {"passive_joints": ["left_finger"]}}))
    assert "left_finger" not in load_robot(passive).joint_names
    with pytest.raises(RobotLoadError, match=r"passive_joints: got \['tail'\], expected a list of hinges of the model"):
        load_robot(write_robot(text, lambda metadata: metadata.update({EXTRA_KEY: {"passive_joints": ["tail"]}})))


URDF = """<robot name="gripper">
  <link name="base"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <link name="a"><inertial><mass value="0.1"/><inertia ixx="1e-3" iyy="1e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <link name="b"><inertial><mass value="0.1"/><inertia ixx="1e-3" iyy="1e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="close" type="revolute"><parent link="base"/><child link="a"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="1" effort="5" velocity="5"/></joint>
  <joint name="close_too" type="revolute"><parent link="base"/><child link="b"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="1" effort="5" velocity="5"/><mimic joint="close" multiplier="-1"/></joint>
</robot>"""  # noqa: E501


def test_a_urdf_joint_that_mimics_has_no_motor_and_one_that_the_metadata_gives_a_motor_is_refused(tmp_path):
    (tmp_path / "robot.urdf").write_text(URDF)
    row = {"id": 7, "kp": 5, "kd": 0.1, "actuator_type": "small"}
    metadata = {
        "joint_name_to_metadata": {"close": row},
        "actuator_type_to_metadata": {"small": {"max_torque": 2, "max_velocity": 5}},
        "control_frequency": 50,
        EXTRA_KEY: {"home_deg": {"close": 10}, "floating": False},
    }
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    built = build_model(tmp_path)
    assert built.spec.joint_names == ("close",) and built.model.neq == 1
    assert built.home_qpos[built.model.joint("close_too").qposadr[0]] == pytest.approx(-math.radians(10))
    twice = copy.deepcopy(metadata)
    twice["joint_name_to_metadata"]["close_too"] = {**row, "id": 8}
    (tmp_path / "metadata.json").write_text(json.dumps(twice))
    with pytest.raises(RobotLoadError, match=r"without a motor of their own: close_too \(follows close\); take them"):
        load_robot(tmp_path)
