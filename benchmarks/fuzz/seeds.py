"""Whole bundles to start from: the shipped one, small ones in every older form, and one for each operator."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from robots.bundle import read_bundle
from robots.spec import CommandSpec, JointSpec, PolicySpec, RobotSpec, input_specs

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "robots" / "kbot" / "policies" / "stand.kinfer"


@dataclass(frozen=True, kw_only=True)
class Seed:
    """The three members of a bundle."""

    name: str
    init_fn: bytes
    step_fn: bytes
    metadata: dict[str, Any]

    def members(self) -> dict[str, bytes]:
        """As they lie in the archive."""
        text = json.dumps(self.metadata).encode()
        return {"init_fn.onnx": self.init_fn, "step_fn.onnx": self.step_fn, "metadata.json": text}


def _model(graph: Any, opset: int = 17) -> bytes:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made.SerializeToString()


def _floats(name: str, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _init(carry: np.ndarray) -> bytes:
    tensor = numpy_helper.from_array(carry.astype(np.float32), "start")
    node = helper.make_node("Identity", ["start"], ["carry"])
    return _model(helper.make_graph([node], "init", [], [_floats("carry", carry.size)], [tensor]))


def operator(case: tuple) -> Seed | None:
    """A policy whose step is one operator: its inputs are cut from the carry, its first output is the action."""
    op, inputs, attributes, constants, opset, outputs = case
    nodes, weights, carry, names = [], [], [], []
    for at, value in enumerate(inputs):
        name = "" if value is None else f"in{at}"
        names.append(name)
        if value is None:
            continue
        if at in constants:
            weights.append(numpy_helper.from_array(value, name))
            continue
        start = sum(v.size for v in carry)
        carry.append(value)
        for what, data in (("from", [start]), ("to", [start + value.size]), ("shape", value.shape)):
            weights.append(numpy_helper.from_array(np.asarray(data, np.int64), f"{name}_{what}"))
        if opset >= 10:
            nodes.append(helper.make_node("Slice", ["carry", f"{name}_from", f"{name}_to"], [f"{name}_flat"]))
        else:
            bounds = {"starts": [start], "ends": [start + value.size]}
            nodes.append(helper.make_node("Slice", ["carry"], [f"{name}_flat"], **bounds))
        nodes.append(helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [f"{name}_shaped"]))
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        nodes.append(helper.make_node("Cast", [f"{name}_shaped"], [name], to=kind))
    flat = np.concatenate([v.reshape(-1).astype(np.float32) for v in carry] or [np.zeros(1, np.float32)])
    weights.append(numpy_helper.from_array(np.asarray([-1], np.int64), "all"))
    nodes.append(helper.make_node(op, names, [f"out{k}" for k in range(outputs)], **attributes))
    nodes.append(helper.make_node("Cast", ["out0"], ["as_float"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Reshape", ["as_float", "all"], ["action"]))
    nodes.append(helper.make_node("Identity", ["carry"], ["carry_out"]))
    from deploy.bundle.graph.check import check_graph
    from deploy.errors import PolicyError

    # the size of the action is that of the operator's output, which the check knows
    open_ended = [helper.make_tensor_value_info("action", TensorProto.FLOAT, None), _floats("carry_out", flat.size)]
    graph = helper.make_graph(nodes, "step", [_floats("carry", flat.size)], open_ended, weights)
    try:
        size = check_graph(_model(graph, opset), "seed", {"carry": (flat.size,)}).outputs["action"][0]
    except PolicyError as error:
        raise AssertionError(f"{op}: {error}") from error
    if not size:
        return None
    del graph.output[:]
    graph.output.extend([_floats("action", size), _floats("carry_out", flat.size)])
    metadata = {"joint_names": [f"j{k}" for k in range(size)], "command_names": [], "carry_size": [flat.size]}
    return Seed(name=op, init_fn=_init(flat), step_fn=_model(graph, opset), metadata=metadata)


def small(*, spec: bool) -> Seed:
    """A recurrent policy of two joints with a branch in it; with our key, or as files before kinfer 0.6."""
    joint = {"kp": 1.0, "kd": 0.1, "torque_limit_nm": 1.0, "torque_max_nm": 2.0, "velocity_max_rad_s": 5.0,
             "armature": 0.0, "friction_nm": 0.0, "damping": 0.0, "lower_rad": -1.0, "upper_rad": 1.0, "home_rad": 0.1,
             "actuator_type": "small"}  # fmt: skip
    robot = RobotSpec(name="arm", joints=tuple(JointSpec(name=n, id=k, **joint) for k, n in enumerate("ab")))
    commands = (CommandSpec(name="vx", low=-1.0, high=1.0, unit="m/s"),)
    extra = ["gyroscope", "command"] if spec else ["quaternion", "initial_heading"]
    sizes = {"joint_angles": 2, "gyroscope": 3, "command": 1, "quaternion": 4, "initial_heading": 1, "carry": 4}
    used = ["joint_angles", *extra]
    width = sum(sizes[n] for n in used) + 4
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n)
               for n, s in (("w", (width, 4)), ("bias", (4,)), ("head", (2, 4)), ("low", (2,)))]  # fmt: skip
    weights += [numpy_helper.from_array(np.asarray(v, np.int64), n) for n, v in (("zero", [0]), ("one", [1]))]
    branch = [helper.make_graph([helper.make_node(op, ["raw"], [f"{op}_out"])], op,
                                [], [_floats(f"{op}_out", 2)]) for op in ("Tanh", "Neg")]  # fmt: skip
    nodes = [
        helper.make_node("Concat", [*used, "carry"], ["all"], axis=0),
        helper.make_node("MatMul", ["all", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Tanh", ["biased"], ["carry_out"]),
        helper.make_node("Einsum", ["head", "carry_out"], ["raw"], equation="ab,b->a"),
        helper.make_node("Slice", ["joint_angles", "zero", "one"], ["first"]),
        helper.make_node("Greater", ["first", "first"], ["more"]),
        helper.make_node("If", ["more"], ["chosen"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Max", ["chosen", "low"], ["action"]),
    ]
    graph = helper.make_graph(nodes, "step", [_floats(n, sizes[n]) for n in [*used, "carry"]],
                              [_floats("action", 2), _floats("carry_out", 4)], weights)  # fmt: skip
    metadata: dict[str, Any] = {"joint_names": ["a", "b"], "carry_size": [4] if spec else 4}
    if spec:
        known = input_specs(robot, commands)
        policy = PolicySpec(
            task="reach", robot=robot, inputs=tuple(known[n] for n in used), commands=commands, carry_size=4,
            control_period_s=0.02, action_low_rad=(-1.0, -1.0), action_high_rad=(1.0, 1.0),
            training={"seed": 1, "network": {"layers": [4]}}, proofs={"error_max": 1e-7}, versions={"onnx": "1"},
        )  # fmt: skip
        metadata |= {"command_names": ["vx"], "ksim2real": policy.to_json()}
    else:
        metadata["num_commands"] = 1
    return Seed(name="ours" if spec else "old", init_fn=_init(np.zeros(4)), step_fn=_model(graph), metadata=metadata)


def sliced() -> Seed:
    """A slice of the carry that begins and ends where the carry says, and one of its values put elsewhere."""
    carry = np.asarray([1, 4, 0.5, 0.25, -1, 2], np.float32)
    weights = [numpy_helper.from_array(np.asarray(v, np.int64), n)
               for n, v in (("zero", [0]), ("one", [1]), ("two", [2]), ("column", [-1, 1]))]  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["carry", "zero", "two"], ["floats"]),
        helper.make_node("Cast", ["floats"], ["bounds"], to=TensorProto.INT64),
        helper.make_node("Slice", ["bounds", "zero", "one"], ["start"]),
        helper.make_node("Slice", ["bounds", "one", "two"], ["end"]),
        helper.make_node("Slice", ["carry", "start", "end", "zero", "one"], ["cut"]),
        helper.make_node("ReduceSum", ["cut"], ["action"], keepdims=1),
        helper.make_node("Reshape", ["start", "column"], ["where"]),
        helper.make_node("ScatterND", ["carry", "where", "action"], ["carry_out"]),
    ]
    graph = helper.make_graph(nodes, "step", [_floats("carry", 6)],
                              [_floats("action", 1), _floats("carry_out", 6)], weights)  # fmt: skip
    metadata = {"joint_names": ["a"], "command_names": [], "carry_size": [6]}
    return Seed(name="sliced", init_fn=_init(carry), step_fn=_model(graph), metadata=metadata)


def shipped() -> Seed:
    """The bundle that ships with the K-Bot."""
    bundle = read_bundle(SHIPPED)
    return Seed(name="kbot", init_fn=bundle.init_fn, step_fn=bundle.step_fn, metadata=bundle.metadata())


def operators() -> list[Seed]:
    """One for each case that the tests of the shape rules have."""
    cases = runpy.run_path(str(ROOT / "tests" / "deploy" / "test_onnx_shapes.py"))["CASES"]
    return [seed for seed in map(operator, cases) if seed is not None]
