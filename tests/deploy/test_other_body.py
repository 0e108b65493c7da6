"""A simulated robot is the same robot after a crate with a free joint, and nobody writes into a shared model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.twin.plant import Plant
from deploy.twin.reality import parse_reality
from robots.model import build_model

mujoco = pytest.importorskip("mujoco")

LEG = """<body name="{0}_thigh" pos="0 {1} 0"><joint name="{0}_hip" axis="0 1 0" range="-1.5 1.5"/>
    <geom type="capsule" size="0.02" fromto="0 0 0 0 0 -0.2" mass="1"/>
    <body name="{0}_foot" pos="0 0 -0.2"><joint name="{0}_knee" axis="0 1 0" range="0 2"/>
    <geom type="box" size="0.06 0.03 0.1" pos="0 0 -0.1" mass="0.5"/></body></body>"""
TRUNK = """<body name="trunk" pos="0 0 0.5"><freejoint name="root"/><site name="imu"/>
    <geom type="box" size="0.1 0.1 0.05" mass="3"/>{}</body>""".format(LEG.format("l", 0.08) + LEG.format("r", -0.08))
CRATE = """<body name="crate" pos="90 0 50"><freejoint/><geom type="box" size="0.1 0.1 0.1" mass="2"/></body>"""
JOINTS = ("l_hip", "l_knee", "r_hip", "r_knee")
METADATA = {
    "joint_name_to_metadata": {
        name: {"id": i + 1, "kp": 40, "kd": 2, "actuator_type": "m"} for i, name in enumerate(JOINTS)
    },
    "actuator_type_to_metadata": {"m": {"max_torque": 40, "max_velocity": 30}},
    "control_frequency": 50,
}


def folder(path: Path, bodies: str, home: str) -> Path:
    """A robot whose keyframe is `home`, with the joints' angles in the place of {}."""
    path.mkdir()
    key = f'<keyframe><key name="home" qpos="{home.format("-0.4 0.8 -0.4 0.8")}"/></keyframe>'
    text = f'<mujoco><compiler angle="radian"/><worldbody>{bodies}</worldbody>{key}</mujoco>'
    (path / "robot.xml").write_text(text)
    (path / "metadata.json").write_text(json.dumps(METADATA))
    return path


def readings(robot: Path, start: str) -> np.ndarray:
    """What the sensors say while the robot is driven, pushed and carries a load."""
    reality = parse_reality(
        {
            "body": {"mass_scale": 1.1, "payload_kg": 0.5},
            "sensors": {"gyro_noise_rad_s": 0.01},
            "pushes": {"force_max_n": 20.0, "start_s": 0.05},
        }
    )
    plant = Plant(robot, reality, seed=3, start=start)
    for joint in range(4):
        plant.configure(joint, kp=40.0, kd=2.0, max_torque=40.0, torque_enabled=True)
    rows = []
    for k in range(40):
        plant.command(range(4), plant.spec.column("home_rad") + 0.1 * np.sin(0.2 * k + np.arange(4)), [0] * 4, [0] * 4)
        plant.advance(10)
        rows.append(np.hstack([*vars(plant.read()).values()]))
    truth = plant.truth()
    assert not np.isnan(truth["base_position_m"]).any()
    rows.append(np.concatenate([truth["base_position_m"][-1], truth["base_quat_wxyz"][-1], truth["push_n"][-1]]))
    return np.concatenate(rows)


@pytest.mark.parametrize("start", ["home", "hang"])
def test_a_crate_before_the_robot_changes_no_reading(tmp_path, start):
    alone = folder(tmp_path / "alone", TRUNK, "0 0 0.45 1 0 0 0 {}")
    before = folder(tmp_path / "before", CRATE + TRUNK, "90 0 50 1 0 0 0 0 0 0.45 1 0 0 0 {}")
    after = folder(tmp_path / "after", TRUNK + CRATE, "0 0 0.45 1 0 0 0 {} 90 0 50 1 0 0 0")
    expected = readings(alone, start)
    for other in (before, after):
        np.testing.assert_allclose(readings(other, start), expected, rtol=1e-9, atol=1e-9)


def test_a_plant_s_load_and_gravity_are_its_own(tmp_path):
    robot = folder(tmp_path / "robot", CRATE + TRUNK, "90 0 50 1 0 0 0 0 0 0.45 1 0 0 0 {}")
    shared = build_model(robot, 0.002)
    mass = shared.model.body_mass.copy()
    plant = Plant(robot, parse_reality({"body": {"mass_scale": 1.5}}))
    plant.model.opt.gravity[2] = -1.0
    assert plant.built is not shared and build_model(robot, 0.002) is shared
    np.testing.assert_array_equal(shared.model.body_mass, mass)
    assert shared.model.opt.gravity[2] == -9.81
    # the robot's bodies are heavier, the crate is not
    crate = shared.model.body("crate").id
    assert plant.model.body_mass[crate] == mass[crate] == 2.0
    np.testing.assert_allclose(plant.model.body_mass[shared.bodies], 1.5 * mass[shared.bodies])
