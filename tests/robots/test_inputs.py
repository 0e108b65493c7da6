"""The one table of policy inputs: what it says, and that each that reads it gets the same."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from deploy.bundle.envelope import SLACK
from deploy.bundle.graph import known_inputs
from deploy.bundle.session import observe
from deploy.robot.state import RobotState
from robots import inputs
from robots.load import load_robot
from robots.spec import ArraySpec, CommandSpec, digest, input_specs

COMMANDS = (CommandSpec(name="vx", low=-0.5, high=1.0, unit="m/s"), CommandSpec(name="yaw", low=-1.0, high=2.0))


def test_names_are_once_each_and_in_the_order_of_bundles():
    assert [i.name for i in inputs.POLICY_INPUTS] == [
        "joint_angles",
        "joint_angular_velocities",
        "projected_gravity",
        "accelerometer",
        "gyroscope",
        "time",
        "command",
        "quaternion",
        "initial_heading",
    ]
    assert inputs.JOINT_INPUTS == ("joint_angles", "joint_angular_velocities")
    assert (*inputs.JOINT_INPUTS, "gyroscope") == inputs.ANGLE_INPUTS


def test_sizes_by_hand():
    assert {name: shape[0] for name, shape in known_inputs(20, 3, (64,)).items()} == {
        **{"joint_angles": 20, "joint_angular_velocities": 20, "projected_gravity": 3, "accelerometer": 3},
        **{"gyroscope": 3, "command": 3, "time": 1, "carry": 64, "quaternion": 4, "initial_heading": 1},
    }


def test_ranges_by_hand():
    robot = load_robot("kbot")
    specs = input_specs(robot, COMMANDS)
    joint = robot.joints[0]
    assert (specs["joint_angles"].low[0], specs["joint_angles"].high[0]) == (
        joint.lower_rad - 0.2,
        joint.upper_rad + 0.2,
    )
    fast = 1.5 * joint.velocity_max_rad_s
    assert (specs["joint_angular_velocities"].low[0], specs["joint_angular_velocities"].high[0]) == (-fast, fast)
    assert specs["time"].low == (0.0,) and specs["time"].high == (math.inf,)
    assert specs["command"] == ArraySpec(name="command", shape=(2,), unit="mixed", low=(-0.5, -1.0), high=(1.0, 2.0))
    assert "command" not in input_specs(robot, ()) and "quaternion" not in specs
    assert input_specs(robot, (), old=True)["quaternion"].frame == "world"


def test_what_bundles_say_of_the_kbot_has_not_changed():
    """The digest of an exported file is over these: a change here makes every file in the field another one."""
    robot = load_robot("kbot").replace(source="")
    said = [a.to_json() for a in input_specs(robot, COMMANDS).values()]
    assert digest(said) == "dc222a48454de47df1b388887691212442aae7639b39bf9f748a16f3c3fcda11"


def test_the_envelope_looks_at_what_has_a_slack():
    assert SLACK == {
        **{"joint_angles": 0.1, "joint_angular_velocities": 1.0, "projected_gravity": 1.0},
        **{"accelerometer": 5.0, "gyroscope": 0.5},
    }


def test_each_measured_input_is_an_attribute_of_the_state_and_reaches_the_policy():
    state = RobotState(
        joint_position=np.array([0.1, 0.2]),
        joint_velocity=np.array([3.0, 4.0]),
        joint_torque=np.zeros(2),
        quat_wxyz=np.array([1.0, 0.0, 0.0, 0.0]),
        gyro_b=np.array([5.0, 6.0, 7.0]),
        accel_b=np.array([0.5, 0.0, 9.8]),
        time_s=0.0,
        round_trip_s=0.0,
    )
    names = tuple(i.name for i in inputs.POLICY_INPUTS)
    seen = observe(names, state, np.array([0.3, -0.1]), 1.5, 0.7)
    expected = {
        **{"joint_angles": [0.1, 0.2], "joint_angular_velocities": [3, 4], "projected_gravity": [0, 0, -9.81]},
        **{"accelerometer": [0.5, 0, 9.8], "gyroscope": [5, 6, 7], "time": [1.5], "command": [0.3, -0.1]},
        **{"quaternion": [1, 0, 0, 0], "initial_heading": [0.7]},
    }
    assert set(seen) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], np.float32(value), atol=1e-6, err_msg=name)
        assert seen[name].shape == (inputs.BY_NAME[name].length(2, 2),)


def test_encoding_brings_what_is_at_rest_at_home_to_nothing():
    gravity = inputs.BY_NAME["projected_gravity"].encoding
    assert gravity is not None
    raw = np.array([0.0, 0.0, -9.81])
    assert ((raw / gravity.divisor + np.asarray(gravity.offset)) * gravity.scale == 0).all()
    scales = {i.name: i.encoding.scale for i in inputs.POLICY_INPUTS if i.encoding is not None}
    assert scales == {
        **{"joint_angles": 4.0, "joint_angular_velocities": 0.1, "projected_gravity": 6.0},
        **{"accelerometer": 1.0, "gyroscope": 1.0},
    }


def test_a_row_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        inputs.POLICY_INPUTS[0].unit = "deg"  # type: ignore[misc]
