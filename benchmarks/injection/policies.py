"""Policies that stand and then go bad: the shipped standing policy with a few ONNX nodes behind its action."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper, load_from_string, numpy_helper, shape_inference

from deploy.bundle.session import OnnxPolicy
from robots.bundle import Bundle, read_bundle, write_bundle
from robots.spec import input_specs
from toolkit.files import shipped_policy

# The first tick at which the policy is bad.
BAD_TICK = 50
# The first at which it is slow.
SLOW_TICK = 1


def _const(model: ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
    return name


def _node(model: ModelProto, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
    model.graph.node.append(helper.make_node(op, inputs, [output], **attributes))
    return output


def _bundle(change: Callable[[ModelProto, str], str], timed: bool) -> Bundle:
    """The standing policy, its action changed; `timed` gives its graph the input `time`."""
    bundle = read_bundle(shipped_policy("stand", ".kinfer"))
    spec, model, init = bundle.spec, load_from_string(bundle.step_fn), load_from_string(bundle.init_fn)
    assert spec is not None
    if timed:
        known = input_specs(spec.robot, spec.commands)
        test = dict(spec.self_test)
        test["inputs"] = {**test["inputs"], "time": [[0.0]] * len(test["actions"])}
        spec = spec.replace(inputs=(*spec.inputs, known["time"]), self_test=test)
        model.graph.input.append(helper.make_tensor_value_info("time", 1, [1]))
    named = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["good" if name == named else name for name in node.output]
        node.input[:] = ["good" if name == named else name for name in node.input]
    _node(model, "Identity", [change(model, "good")], named)
    for graph in (model, init):
        kept = {p.key: p.value for p in graph.metadata_props if p.key != "ksim2real"}
        helper.set_model_props(graph, kept | {"spec_digest": spec.contract().digest})
    return dataclasses.replace(
        bundle,
        spec=spec,
        step_fn=shape_inference.infer_shapes(model).SerializeToString(),
        init_fn=init.SerializeToString(),
    )


def bad(over: float, under: float = 0.0) -> Callable[[Path], Path]:
    """Asks every joint for `over` / `under` rad from `BAD_TICK` on: not finite where `under` is 0."""

    def change(model: ModelProto, good: str) -> str:
        late = _node(model, "Greater", ["time", _const(model, "late", [0.02 * BAD_TICK - 0.01])], "is_late")
        # of an input, so that no graph holds a value that is not finite
        nothing = _node(model, "Mul", ["time", _const(model, "nil", [0.0])], "nothing")
        under_ = _node(model, "Add", [nothing, _const(model, "under", [under])], "divisor")
        worse = _node(model, "Div", [_const(model, "over", [over]), under_], "worse")
        return _node(model, "Where", [late, worse, good], "chosen")

    def make(folder: Path) -> Path:
        write_bundle(folder / "bad.kinfer", _bundle(change, timed=True))
        return folder / "bad.kinfer"

    return make


def _working(times: int) -> Bundle:
    """The standing policy with so many powers of long vectors behind it that change nothing, from `SLOW_TICK` on.

    Not sooner: its self-test, of many steps, would take as long as they do.
    """
    size = 200_000

    def change(model: ModelProto, good: str) -> str:
        inside = [helper.make_node("Add", ["ones", "sum"], ["many"]), helper.make_node("Abs", ["many"], ["positive"])]
        last = "positive"
        for k in range(times):
            inside.append(helper.make_node("Pow", [last, "power"], [f"power{k}"]))
            last = f"power{k}"
        inside.append(helper.make_node("ReduceSum", [last], ["work"], keepdims=0))
        _const(model, "ones", np.ones(size)), _const(model, "power", 0.9)
        _node(model, "ReduceSum", [good], "sum", keepdims=0)
        late = _node(model, "Greater", ["time", _const(model, "late", [0.02 * SLOW_TICK - 0.01])], "is_late")
        made, idle = (helper.make_tensor_value_info(name, 1, []) for name in ("work", "idle"))
        nothing = [helper.make_node("Identity", ["nil"], ["idle"])]
        _const(model, "nil", 0.0)
        branches = {"then_branch": helper.make_graph(inside, "busy", [], [made])}
        branches["else_branch"] = helper.make_graph(nothing, "not_busy", [], [idle])
        none = _node(model, "Mul", [_node(model, "If", [late], "worked", **branches), "nil"], "none")
        return _node(model, "Add", [good, none], "slowly")

    return _bundle(change, timed=True)


def slow(seconds: float) -> Callable[[Path], Path]:
    """Takes about `seconds` longer, from `SLOW_TICK` on."""

    def make(folder: Path) -> Path:
        few, took = OnnxPolicy(_working(10)), []
        feed = {name: np.ones(few.shapes[name], np.float32) for name in few.inputs}
        for _ in range(5):
            began = time.perf_counter()
            few.step(feed)
            took.append(time.perf_counter() - began)
        write_bundle(folder / "slow.kinfer", _working(max(1, round(10 * seconds / min(took)))))
        return folder / "slow.kinfer"

    return make
