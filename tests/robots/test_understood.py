"""One line says what was understood of a robot folder, and calls a guess a guess."""

from __future__ import annotations

import numpy as np
import pytest

from robots.load import EXTRA_KEY
from robots.model import build_model
from robots.understood import understood

pytest.importorskip("mujoco")


def test_the_kbot_is_told_without_a_guess():
    said = understood(build_model("kbot", shapes=False))
    assert "guess" not in said and "\n" not in said
    assert said.startswith("robot kbot; base: free joint ")
    assert "mesh" not in said  # it has none
    for part in (
        "IMU: imu_site on body imu",
        "feet: left_foot, right_foot (as metadata.json says)",
        "home: base at 0.720 m (of keyframe home)",
        "20 motors; passive joints: none; ",
    ):
        assert part in said, said


def parts(built) -> dict[str, str]:
    """The parts of the line by their first word."""
    return {part.split(":")[0]: part for part in understood(built).split("; ")}


def test_what_a_file_says_and_what_is_guessed_of_a_small_robot(write_robot, crate_xml):
    said = parts(build_model(write_robot(crate_xml)))
    assert said["base"] == "base: free joint base (of the model)"
    assert said["IMU"] == "IMU: imu on body pelvis (by its name)"
    assert said["feet"] == "feet: left_foot, right_foot (all sites called so)"
    assert said["floor"] == "floor: added" and "11.00 kg" in said
    assert said["beside the robot"] == "beside the robot: foot_crate"


def test_each_guess_is_named_with_its_reason(write_robot, biped_xml, tmp_path):
    keys = '<key name="tall" qpos="0 0 0 0 0"/><key name="low" qpos="0 0.1 0.1 0.1 0.1"/>'
    text = biped_xml.replace('<key name="home" qpos="0 0 1 1 0 0 0  0.1 0.2 -0.1 0.3"/>', keys)
    text = text.replace("<freejoint/>", "").replace('site name="imu"', 'site name="chest"')
    text = text.replace('<gyro name="g" site="imu" noise="0.1"/>', "")
    text = text.replace("<worldbody>", '<asset><mesh name="cover" file="cover.stl"/></asset><worldbody>')
    cover = '<geom type="mesh" mesh="cover" contype="0" conaffinity="0"/>'
    mass = '<inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/>'
    tail = f'<body name="tail"><joint name="wag" type="slide"/>{mass}{cover}</body>'
    text = text.replace('<body name="left_thigh"', f'{tail}<body name="left_thigh"')
    built = build_model(write_robot(text))
    said = parts(built)
    assert said["base"] == "base: free joint base (guess: because it has feet and nothing says otherwise)"
    assert built.base_added
    imu = understood(built).split("IMU: ")[1].split("; feet")[0]
    assert imu.startswith(
        "pelvis on body pelvis (guess: the first body's own frame, as no site or body has imu in its name"
    )
    assert "guess: all zeros" in said["home"] and "(keyframes tall, low are not looked at)" in said["home"]
    assert said["passive joints"] == "passive joints: wag" and said["meshes left out"] == "meshes left out: cover.stl"
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4") * 0.1
    sides = [corners[list(side)] for side in ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))]
    faces = b"".join(bytes(12) + side.tobytes() + bytes(2) for side in sides)
    (tmp_path / "biped" / "cover.stl").write_bytes(bytes(80) + (4).to_bytes(4, "little") + faces)
    assert "all meshes are there" in parts(build_model(tmp_path / "biped"))


def test_a_half_told_home_is_a_guess(write_robot, biped_xml):
    def edit(metadata):
        metadata[EXTRA_KEY] = {"home_deg": {"left_knee": 20}, "floating": True, "foot_sites": ["left_foot"]}

    said = parts(build_model(write_robot(biped_xml.replace('name="home"', 'name="start"'), edit)))
    assert said["home"].endswith("(guess: of home_deg in metadata.json, 3 joints that it does not name at zero)")
    assert said["feet"] == "feet: left_foot (as metadata.json says)"
