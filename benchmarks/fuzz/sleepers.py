"""Policies that behave for twenty steps and then do harm: what a trial load of a few steps cannot see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz.seeds import Seed, _floats, _init, _model
from onnx import TensorProto, helper, numpy_helper

WAKES_AT = 20
N = 200_000


def _ints(name: str, values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def _branch(name: str, nodes: list[Any]) -> Any:
    return helper.make_graph(nodes, name, [], [_floats(nodes[-1].output[0], 1)])


def _node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def _sum(of: str) -> list[Any]:
    """One float of a tensor of any shape."""
    return [
        _node("Cast", of, f"{of}_f", to=TensorProto.FLOAT), _node("Reshape", f"{of}_f all", f"{of}_flat"),
        _node("ReduceMax", f"{of}_flat", "made", keepdims=1),
    ]  # fmt: skip


def _loop() -> list[Any]:
    body = helper.make_graph(
        [_node("Identity", "go", "on"), _node("Neg", "turn", "turned")], "body",
        [helper.make_tensor_value_info("k", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []), _floats("turn", 1)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), _floats("turned", 1)],
    )  # fmt: skip
    return [
        _node("Squeeze", "huge", "often"), _node("Squeeze", "yes", "ja"),
        helper.make_node("Loop", ["often", "ja", "one_float"], ["made"], body=body),
    ]  # fmt: skip


def _if(then: list[Any]) -> list[Any]:
    other = _branch("else", [_node("Neg", "one_float", "calm")])
    return [helper.make_node("If", ["awake"], ["made"], then_branch=_branch("then", then), else_branch=other)]


def _nested() -> list[Any]:
    inner = _if([_node("Div", "one zero_int", "broken"), _node("Cast", "broken", "stormy", to=TensorProto.FLOAT)])
    inner[0].output[0] = "inner"
    return _if(inner)


# what each does once `awake` (bool (1,)), with `count` (int64 (1,)): 1, then 10^9; `zero_int`: 1, then 0
SLEEPERS: dict[str, Callable[[], list[Any]]] = {
    "a loop of 10^9 turns": _loop,
    "an integer divided by 0": lambda: [_node("Div", "one zero_int", "x"), *_sum("x")],
    "an integer modulo 0": lambda: [_node("Mod", "one zero_int", "x"), *_sum("x")],
    "the same in a branch": lambda: _if(
        [_node("Div", "one zero_int", "x"), _node("Cast", "x", "stormy", to=TensorProto.FLOAT)]
    ),
    "the same two branches deep": _nested,
    "a constant of 10^9 elements": lambda: [_node("ConstantOfShape", "huge", "x"), *_sum("x")],
    "one number expanded to 10^9": lambda: [_node("Expand", "one huge", "x"), *_sum("x")],
    "tiled to 10^9": lambda: [_node("Tile", "one huge", "x"), *_sum("x")],
    "a range to 10^9": lambda: [_node("Squeeze", "huge", "end"), _node("Range", "nought end step", "x"), *_sum("x")],
    "padded by 10^9": lambda: [_node("Concat", "zeros_1 huge", "pads", axis=0), _node("Pad", "one_float pads", "x"),
                               *_sum("x")],
    "one-hot of 10^9": lambda: [_node("OneHot", "zeros_1 huge on_off", "x"), *_sum("x")],
    "the product of two slices": lambda: [
        _node("Slice", "wide zeros_1 huge", "a"), _node("Unsqueeze", "a ones_1", "b"), _node("Mul", "a b", "x"),
        _node("ReduceMax", "x", "most", keepdims=1), _node("Squeeze", "most zeros_1", "made")],
}  # fmt: skip


def sleeper(name: str) -> Seed:
    """A policy of one joint whose carry counts the steps."""
    carry = np.zeros(N, np.float32)
    head = [
        _node("Slice", "carry zeros_1 ones_1", "steps"),
        _node("Greater", "steps wakes", "awake"),
        _node("Where", "awake milliard one", "huge"),
        _node("Where", "awake zeros_1 one", "zero_int"),
        _node("Add", "carry one_float", "carry_out"),
        _node("Identity", "carry", "wide"),
    ]
    weights = [
        _ints("zeros_1", [0]), _ints("ones_1", [1]), _ints("one", [1]), _ints("all", [-1]),
        _ints("milliard", [10**9]), _ints("nought", 0), _ints("step", 1), _ints("on_off", [0, 1]),
        numpy_helper.from_array(np.asarray([1.0], np.float32), "one_float"),
        numpy_helper.from_array(np.asarray([WAKES_AT], np.float32), "wakes"),
        numpy_helper.from_array(np.asarray([True]), "yes"),
    ]  # fmt: skip
    nodes = [*head, *SLEEPERS[name](), _node("Add", "made steps", "action")]
    outputs = [_floats("action", 1), _floats("carry_out", N)]
    graph = helper.make_graph(nodes, "step", [_floats("carry", N)], outputs, weights)
    metadata = {"joint_names": ["a"], "command_names": [], "carry_size": [N]}
    return Seed(name=name, init_fn=_init(carry), step_fn=_model(graph), metadata=metadata)
