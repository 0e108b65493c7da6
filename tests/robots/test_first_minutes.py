"""A newcomer's robot folder loads after two rounds: each says all that is missing, with lines to paste."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from robots.errors import RobotLoadError
from robots.load import load_robot, model_file, read_robot
from robots.problems import Problem
from robots.robot_card import inspect_robot, is_robot
from robots.understood import as_line, facts

LINK = (
    '<link name="{0}"><inertial><mass value="{1}"/><inertia ixx="0.1" iyy="0.1" izz="0.1" ixy="0" ixz="0" iyz="0"/>'
    '</inertial><collision><geometry><box size="0.1 0.1 0.1"/></geometry></collision></link>'
)
JOINT = (
    '<joint name="{0}" type="{1}"><parent link="{2}"/><child link="{3}"/><origin xyz="{4}"/><axis xyz="0 1 0"/>'
    '<limit lower="-1" upper="1" effort="60" velocity="12"/></joint>'
)


def humanoid() -> str:
    """A URDF of two legs whose joints and links are named as another exporter names them."""
    parts = [LINK.format("pelvis_contour", 8), LINK.format("chest_imu_link", 0.1)]
    parts.append(JOINT.format("chest_imu_fix", "fixed", "pelvis_contour", "chest_imu_link", "0 0 0.2"))
    for side, y in (("L", 0.1), ("R", -0.1)):
        above = "pelvis_contour"
        for joint, place in (("HipP", f"0 {y} 0"), ("Kn", "0 0 -0.35"), ("AnkP", "0 0 -0.35")):
            link = f"{side}_{joint}_link"
            parts += [LINK.format(link, 1.5), JOINT.format(f"{side}_{joint}", "revolute", above, link, place)]
            above = link
    return f'<robot name="other">{"".join(parts)}</robot>'


ARM = """<mujoco><worldbody>
  <body name="table"><geom type="box" size="1 1 0.1" mass="30"/></body>
  <body name="pedestal"><geom type="cylinder" size="0.05 0.05" mass="2"/>
    <body name="shoulder"><joint name="j1"/><geom type="capsule" fromto="0 0 0 0 0 0.2" size="0.03" mass="1"/>
      <body name="upper"><joint name="j2" axis="0 1 0" range="-90 90"/><geom size="0.1" mass="1"/></body></body></body>
  <body name="ball" pos="1 0 1"><freejoint/><geom size="0.04" mass="0.2"/></body>
  <body name="hand_target" mocap="true"><geom size="0.04" mass="7" contype="0" conaffinity="0"/></body>
  <body name="door" pos="2 0 0"><joint name="door_hinge" range="0 90"/><geom size="0.4" mass="11"/></body>
</worldbody></mujoco>"""
LEG = """<body name="{0}_hip" pos="{1} {2} 0"><joint name="{0}_hip_joint"/><geom size="0.04" mass="0.6"/>
  <body name="{0}_calf" pos="0 0 -0.2"><joint name="{0}_calf_joint"/><geom size="0.02" mass="0.2"/></body>
</body>"""
LEGS = "".join(LEG.format(n, x, y) for n, x, y in (("FL", 0.2, 0.1), ("FR", 0.2, -0.1), ("RL", -0.2, 0.1)))
QUADRUPED = f"""<mujoco><compiler angle="radian"/><default><joint axis="0 1 0" range="-1.5 1.5"/></default><worldbody>
  <body name="trunk" pos="0 0 0.4"><freejoint/><geom type="box" size="0.2 0.1 0.05" mass="6"/>
    <site name="imu_front"/><site name="imu_back" pos="-0.1 0 0"/>{LEGS}</body></worldbody></mujoco>"""
SCENE = """<mujoco><include file="go.xml"/><worldbody><geom type="plane" size="0 0 1"/>
  <body name="ball" pos="1 1 1"><freejoint/><geom size="0.1" mass="3"/></body></worldbody></mujoco>"""


class Page:
    """What is printed, as text."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def table(self, title, columns, rows, right=""):
        self.said += [title, " | ".join(columns), *(" | ".join(map(str, row)) for row in rows)]

    def pairs(self, title, rows):
        self.said += [title, *(f"{name} | {value}" for name, value in rows)]

    def text(self, text):
        self.said.append(text)

    def __str__(self) -> str:
        return "\n".join(self.said)


def problems(folder: Path) -> tuple[Problem, ...]:
    with pytest.raises(RobotLoadError) as caught:
        read_robot(folder)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def inspected(folder: Path, capsys) -> dict[str, Any]:
    """What `ksim inspect FOLDER --json` answers."""
    inspect_robot(str(folder), Page(), as_json=True)
    return json.loads(capsys.readouterr().out)


def fill(value: Any, numbers: Any) -> Any:
    """The draft as its owner completes it: a number for each null, ids that differ."""
    if isinstance(value, dict):
        return {k: next(numbers) if k == "id" else fill(v, numbers) for k, v in value.items()}
    return 30 if value is None else value


@pytest.mark.parametrize(
    ("files", "joints", "extra"),
    [
        ({"humanoid.urdf": humanoid()}, 6, {}),
        ({"arm.xml": ARM}, 2, {"passive_joints": ["door_hinge"]}),
        ({"go.xml": QUADRUPED, "scene.xml": SCENE}, 6, {"imu_site": "imu_front"}),
        ({}, 6, {}),
    ],
    ids=["a URDF of other names", "an arm beside a door", "a quadruped in a scene", "an empty folder"],
)
def test_a_folder_of_ones_own_takes_two_rounds(tmp_path, capsys, files, joints, extra):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    told = problems(tmp_path)  # the first round
    assert "no metadata.json" in str(told[0]) and "ksim inspect" in str(told[0])
    assert any("model files: none" in str(p) for p in told) == (not files)
    if not files:
        (tmp_path / "robot.urdf").write_text(humanoid())
    answer = inspected(tmp_path, capsys)  # the second: what it prints is completed and pasted
    draft = answer["draft"]
    for name in [name for name in draft["joint_name_to_metadata"] if name in extra.get("passive_joints", [])]:
        del draft["joint_name_to_metadata"][name]
    draft["ksim2real"] |= extra
    for key in set(extra) - {"passive_joints"}:
        assert any(example.startswith(f'"{key}": ') for p in answer["problems"] for example in p["examples"])
    row = draft["joint_name_to_metadata"]
    for joint in row.values():
        joint |= {"min_angle_deg": -30} if "min_angle_deg" in joint else {}
    (tmp_path / "metadata.json").write_text(json.dumps(fill(draft, iter(range(1, 100)))))
    assert len(load_robot(tmp_path).joints) == joints


def test_a_draft_that_is_pasted_as_it_is_says_each_number_that_is_missing_once(tmp_path, capsys):
    (tmp_path / "arm.xml").write_text(ARM.replace("door_hinge", "j3"))
    draft = inspected(tmp_path, capsys)["draft"]
    (tmp_path / "metadata.json").write_text(json.dumps(draft))
    told = problems(tmp_path)
    by_key = {p.what.split(" ")[0]: p for p in told}
    assert set(by_key) == {"id", "kp", "kd", "max_torque", "max_velocity", "no"} and len(told) == 6
    assert by_key["kp"].names == ("j1", "j2", "j3") and by_key["kp"].examples == ('"kp": 40',)
    assert by_key["kp"].place == "in its entry of joint_name_to_metadata"
    # no two actuators have one id
    assert by_key["id"].examples == ('"j1": {"id": 1, ...}', '"j2": {"id": 2, ...}', '"j3": {"id": 3, ...}')
    assert by_key["no"].names == ("j1",) and by_key["no"].what.startswith("no position limits")
    assert by_key["max_torque"].names == ("motor",) and by_key["max_torque"].kind == "actuator type"


def test_all_that_is_wrong_is_said_at_once(write_robot, biped_xml):
    def edit(metadata):
        del metadata["joint_name_to_metadata"]["left_hip"]["kp"]
        del metadata["joint_name_to_metadata"]["right_hip"]["kp"]
        metadata["joint_name_to_metadata"]["left_knee"] |= {"kd": "stiff", "armature": "x"}
        metadata["joint_name_to_metadata"]["tail"] = {"id": 9, "kp": 1, "kd": 1, "actuator_type": "tiny"}
        del metadata["actuator_type_to_metadata"]["small"]["max_velocity"]
        metadata["control_frequency"] = 0
        metadata["ksim2real"] = {"home_deg": {"wing": 3}, "floating": "yes"}

    text = biped_xml.replace('<site name="imu"/>', '<site name="imu_a"/><site name="imu_b"/>')
    text = text.replace('<gyro name="g" site="imu" noise="0.1"/>', "").replace('key name="home"', 'key name="start"')
    folder = write_robot(text, edit)
    told = problems(folder)
    words = (
        "joints left_hip, right_hip: kp is missing",
        "left_knee: kd: got 'stiff', expected a finite number",
        "left_knee: armature: got 'x'",
        "joints that robot.xml does not have: tail",
        "tail: actuator_type: got 'tiny', expected one of big, small",
        "actuator type small: max_velocity is missing; expected a number, rad/s",
        "control_frequency: got 0.0, expected a frequency in Hz",
        "home_deg: no such joints: wing",
        "floating: got 'yes', expected true or false",
        "more than one place that may be the IMU's: imu_a, imu_b",
    )
    for word in words:
        assert sum(word in str(p) for p in told) == 1, word
    assert len(told) == len(words)
    page = Page()
    assert inspect_robot(str(folder), page, as_json=False) == 1
    assert f"{folder}: {len(words)} things are missing or wrong" in str(page)
    assert '       "imu_site": "imu_b"' in str(page).splitlines()


def test_the_mass_and_the_joints_are_the_robot_s_alone_whatever_stands_beside_it(tmp_path, capsys):
    pytest.importorskip("mujoco")
    from robots.model import build_model
    from robots.understood import understood

    text = ARM.replace("</worldbody>", '</worldbody><actuator><motor joint="j1"/><motor joint="j2"/></actuator>')
    text = text.replace('<joint name="j1"/>', '<joint name="j1" range="-90 90"/>')
    (tmp_path / "arm.xml").write_text(text)
    row = {"kp": 5, "kd": 1, "actuator_type": "m"}
    metadata = {
        "joint_name_to_metadata": {"j1": {"id": 1, **row}, "j2": {"id": 2, **row}},
        "actuator_type_to_metadata": {"m": {"max_torque": 5, "max_velocity": 5}},
        "control_frequency": 50,
    }
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    spec, origins = read_robot(tmp_path)
    built = build_model(tmp_path)
    # 2 of the pedestal, 1 and 1 of the links; not the table, the ball, the target, the door
    assert spec.mass_kg == pytest.approx(4.0) and built.mass_kg == pytest.approx(4.0)
    assert not origins.passive and origins.others == ("table", "ball", "hand_target", "door")
    for line in (as_line(facts(spec, origins)), understood(built)):
        assert "4.00 kg" in line and "passive joints: none" in line and "base: fixed to the world" in line
        assert line.endswith("beside the robot: table, ball, hand_target, door")
    # the door stands where it stood
    assert built.home_qpos[built.model.joint("door_hinge").qposadr[0]] == 0.0


def test_of_several_models_it_is_the_one_that_includes_the_others_or_that_the_metadata_names(tmp_path, write_robot):
    (tmp_path / "go.xml").write_text(QUADRUPED)
    (tmp_path / "scene.xml").write_text(SCENE)
    assert model_file(tmp_path).name == "scene.xml"
    assert model_file(tmp_path, "go.xml").name == "go.xml"
    (tmp_path / "go_mjx.xml").write_text(QUADRUPED)
    with pytest.raises(RobotLoadError, match=r'for example "model": "go_mjx.xml" under ksim2real') as caught:
        model_file(tmp_path)
    assert "go.xml, go_mjx.xml, scene.xml" in str(caught.value)
    with pytest.raises(RobotLoadError, match=r"model: got 'og.xml', expected a model file of the folder: go.xml"):
        model_file(tmp_path, "og.xml")
    folder = write_robot(edit=lambda m: m.update(ksim2real={"model": "b.xml"}), model="b.xml")
    (folder / "a.xml").write_text("<mujoco/>")
    assert read_robot(folder)[1].model.name == "b.xml"


def test_each_value_is_told_with_its_file_key_and_rule(write_robot, capsys):
    pytest.importorskip("mujoco")
    told = inspected(write_robot(), capsys)
    hip, knee, right = (told["joints"][name] for name in ("left_hip", "left_knee", "right_knee"))
    assert hip["kp"] == {
        "value": 80.0, "file": "metadata.json", "key": "joint_name_to_metadata.left_hip.kp", "rule": "", "guess": False
    }  # fmt: skip
    keys = {
        ("left_hip", "torque_limit_nm"): "joint_name_to_metadata.left_hip.soft_torque_limit",
        ("left_knee", "torque_limit_nm"): "actuator_type_to_metadata.big.max_torque",
        ("left_hip", "armature"): "actuator_type_to_metadata.big.armature",
        ("right_knee", "armature"): "joint right_knee: armature",
        ("right_hip", "armature"): "joint_name_to_metadata.right_hip.armature",
        ("left_knee", "lower_rad"): "joint_name_to_metadata.left_knee.min_angle_deg",
        ("left_knee", "upper_rad"): "joint left_knee: range",
        ("right_knee", "friction_nm"): "joint_name_to_metadata.right_knee.friction",
        ("left_hip", "home_rad"): "keyframe home",
    }
    assert {place: told["joints"][place[0]][place[1]]["key"] for place in keys} == keys
    assert right["armature"]["file"] == hip["home_rad"]["file"] == knee["upper_rad"]["file"] == "robot.xml"
    assert told["understood"]["IMU"] == {
        "value": "imu on body pelvis", "file": "robot.xml", "key": "", "rule": "by its name", "guess": False
    }  # fmt: skip
    assert told["mass_kg"] == pytest.approx(11.0) and told["control_period_s"]["key"] == "control_frequency"


def test_a_guess_is_printed_with_the_line_that_would_say_it(write_robot, biped_xml):
    text = biped_xml.replace('key name="home"', 'key name="a"').replace("</keyframe>", "</keyframe>")
    text = text.replace("<keyframe>", '<keyframe><key name="b" qpos="0 0 1 1 0 0 0 0 0 0 0"/>')
    page = Page()
    assert inspect_robot(str(write_robot(text)), page, as_json=False) == 0
    said = str(page).splitlines()
    at = said.index("guessed; to say it, write under ksim2real in metadata.json")
    line = 'home | "home_deg": {"left_hip": 0.0, "left_knee": 0.0, "right_hip": 0.0, "right_knee": 0.0}'
    assert said[at + 1] == line and any(line.startswith("passive joints | none") for line in said)


def test_the_file_of_each_mesh_is_told_and_a_missing_one_named(write_robot, biped_xml, capsys):
    pytest.importorskip("mujoco")
    mesh = '<asset><mesh name="sole" file="sole.stl"/></asset><worldbody>'
    text = biped_xml.replace("<worldbody>", mesh).replace(
        'name="left_sole" type="box" size="0.1 0.05 0.02"', 'name="left_sole" type="mesh" mesh="sole"'
    )
    folder = write_robot(text)
    told = inspected(folder, capsys)
    assert "meshes that collide or give mass are not there: sole.stl" in told["problems"][0]["what"]
    corners = [(0, 0, 0), (0.1, 0, 0), (0, 0.1, 0), (0, 0, 0.1)]
    (folder / "meshes").mkdir()
    faces = b"".join(
        bytes(12) + b"".join(struct.pack("<3f", *corners[i]) for i in side) + bytes(2)
        for side in ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))
    )
    (folder / "meshes" / "sole.stl").write_bytes(bytes(80) + (4).to_bytes(4, "little") + faces)
    assert inspected(folder, capsys)["meshes"] == {"sole": str(folder / "meshes" / "sole.stl")}


def test_the_whole_metadata_of_the_readme_has_every_key_and_loads_as_it_is_explained(tmp_path):
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").partition("## Your robot\n")[2]
    metadata = json.loads(page.partition("```json\n")[2].partition("```")[0])
    explained = {
        key for row in page.splitlines() if row.startswith("| `") for key in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    hip, big = metadata["joint_name_to_metadata"]["hip"], metadata["actuator_type_to_metadata"]["big"]
    keys = {*hip, *big, *metadata["ksim2real"], "control_frequency"} - {"frictionloss"}
    assert keys == explained
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    (tmp_path / "robot.xml").write_text(
        """<mujoco><worldbody><body name="trunk" pos="0 0 1"><site name="imu"/><geom size="0.1" mass="3"/>
        <body name="thigh"><joint name="hip" range="-90 90"/><geom size="0.05" mass="1"/>
        <body name="shin"><joint name="knee" range="-90 5"/><geom size="0.05" mass="1"/><site name="foot"/>
        <body name="tip"><joint name="toe" range="-5 5"/><geom size="0.02" mass="0.1"/></body>
        </body></body></body></worldbody></mujoco>"""
    )
    robot, origins = read_robot(tmp_path)
    assert (robot.name, robot.imu_site, robot.foot_sites, origins.free) == ("hopper", "imu", ("foot",), True)
    assert [*origins.passive] == ["toe"] and not any(
        origin.guess for origin in (origins.imu, origins.feet, origins.home, origins.floating)
    )
    spec = robot.joint("hip")
    assert (spec.torque_limit_nm, spec.torque_max_nm, spec.armature, spec.friction_nm) == (84, 120, 0.04, 0.2)
    degrees = [math.degrees(v) for v in (spec.lower_rad, spec.upper_rad, spec.home_rad)]
    assert degrees == pytest.approx([-60, 90, 20])  # of 127 in the metadata and 90 in the model the narrower


def test_a_word_is_a_robot_where_it_names_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "p.kinfer").mkdir()
    assert is_robot("mine") and is_robot("./mine") and is_robot("kbot")
    assert not is_robot("p.kinfer") and not is_robot("policy.kinfer") and not is_robot("nobody")
    (tmp_path / "kbot").touch()  # a bundle of that name
    assert not is_robot("kbot")
