"""A small robot, a real ONNX policy for it, and a KOS server with the K-Bot's semantics and faults to order."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from robots.bundle import Bundle, write_bundle
from robots.spec import ArraySpec, CommandSpec, JointSpec, PolicySpec, RobotSpec, input_specs

USED = ("joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "command", "time")


def make_robot() -> RobotSpec:
    """Three joints with ids out of order and distinct gains, 50 Hz."""

    def joint(name: str, id_: int, kp: float, home: float) -> JointSpec:
        return JointSpec(
            name=name,
            id=id_,
            kp=kp,
            kd=2.0,
            torque_limit_nm=20.0,
            torque_max_nm=30.0,
            velocity_max_rad_s=15.0,
            armature=0.01,
            friction_nm=0.1,
            damping=0.0,
            lower_rad=-1.0,
            upper_rad=1.5,
            home_rad=home,
            actuator_type="robstride_02",
        )

    joints = (joint("hip", 31, 50.0, 0.3), joint("knee", 12, 40.0, -0.5), joint("ankle", 25, 20.0, 0.0))
    return RobotSpec(name="leg", joints=joints, control_period_s=0.02)


def make_policy_spec(robot: RobotSpec, used: tuple[str, ...] = USED, carry_size: int = 2) -> PolicySpec:
    """A specification of a policy that reads `used`."""
    commands = (
        CommandSpec(name="vx", low=-0.5, high=1.0, unit="m/s"),
        CommandSpec(name="yaw", low=-1.0, high=1.0, unit="rad/s"),
    )
    known = input_specs(robot, commands)
    return PolicySpec(
        task="test",
        robot=robot,
        inputs=tuple(known[name] for name in used if name in known),
        commands=commands,
        carry_size=carry_size,
        control_period_s=robot.control_period_s,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
    )


def make_bundle(
    robot: RobotSpec,
    used: tuple[str, ...] = USED,
    carry_size: int = 2,
    with_spec: bool = True,
    shapes: dict[str, list[int]] | None = None,
    divide_by_carry: bool = False,
    constant: float = 0.0,
) -> Bundle:
    """A real policy: action = home + 0.1 command[0] + constant, next carry = carry + 1.

    With `divide_by_carry` the action is also divided by (2 - carry[0]): not finite at the third step.
    """
    from onnx import TensorProto, helper, numpy_helper

    n = len(robot.joints)
    sizes = {
        "joint_angles": n,
        "joint_angular_velocities": n,
        "projected_gravity": 3,
        "accelerometer": 3,
        "gyroscope": 3,
        "command": 2,
        "time": 1,
        "quaternion": 4,
        "initial_heading": 1,
    }
    shape = {name: [sizes.get(name, 1)] for name in used} | {"carry": [carry_size]} | (shapes or {})

    def tensor(name: str, dims: list[int]):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    def const(name: str, values):
        return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)

    weights = [
        const("home", np.asarray(robot.column("home_rad")) + constant),
        const("one", np.ones(carry_size)),
        const("gain", [0.1]),
        const("zero", [0.0]),
        const("two", [2.0]),
    ]
    index = [
        numpy_helper.from_array(np.array([0], dtype=np.int64), "i0"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "i1"),
    ]
    nodes, last = [], "home"

    def add(op: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(op, inputs, [output]))
        return output

    for name in used:
        if name == "command":
            add("Slice", [name, "i0", "i1"], "first")
            term = add("Mul", ["first", "gain"], "command_term")
        else:
            # every declared input is read, and adds nothing
            nodes.append(helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=1))
            term = add("Mul", [f"{name}_sum", "zero"], f"{name}_term")
        last = add("Add", [last, term], f"with_{name}")
    if divide_by_carry:
        add("Slice", ["carry", "i0", "i1"], "count")
        add("Sub", ["two", "count"], "left")
        last = add("Div", [last, "left"], "divided")
    add("Identity", [last], "action")
    add("Add", ["carry", "one"], "next_carry")

    def model(graph) -> bytes:
        out = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return out.SerializeToString()

    step = helper.make_graph(
        nodes,
        "step",
        [tensor(name, shape[name]) for name in (*used, "carry")],
        [tensor("action", [n]), tensor("next_carry", [carry_size])],
        weights + index,
    )
    init = helper.make_graph(
        [helper.make_node("Identity", ["start"], ["carry"])],
        "init",
        [],
        [tensor("carry", [carry_size])],
        [const("start", np.zeros(carry_size))],
    )
    return Bundle(
        joint_names=robot.joint_names,
        command_names=("vx", "yaw"),
        carry_size=carry_size,
        init_fn=model(init),
        step_fn=model(step),
        spec=make_policy_spec(robot, used, carry_size) if with_spec else None,
    )


@pytest.fixture
def robot() -> RobotSpec:
    return make_robot()


@pytest.fixture
def bundle(robot):
    return make_bundle(robot)


@pytest.fixture
def bundle_factory():
    return make_bundle


@pytest.fixture
def policy_spec_factory():
    return make_policy_spec


@pytest.fixture
def kinfer(tmp_path, bundle):
    path = tmp_path / "policy.kinfer"
    write_bundle(path, bundle)
    return path
