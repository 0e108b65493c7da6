"""Puts the file's graph between ours: raw inputs -> observation -> the policy as it is -> joint targets.

All that is remembered goes round in one flat carry: recurrent states, the last action, clocks, histories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.function import UNUSED
from export.onnx_file import PREFIX, OnnxFile, prefixed
from export.onnx_plan import Plan, PlannedTerm
from export.onnx_spec import CONSTANT, LAST_ACTION, PHASE, History
from robots.spec import CarrySpec

CLOCK, STARTED, FRAME = "clock", "started", "observation"


def history_name(i: int) -> str:
    """The part of the carry that holds earlier values of term `i`."""
    return f"history.{i}"


def layout(plan: Plan, file: OnnxFile) -> tuple[CarrySpec, ...]:
    """What the flat carry holds, in order. Histories hold all steps but the present one, the oldest first."""
    parts = [CarrySpec(name=state.input.removeprefix(PREFIX), shape=state.shape) for state in file.states]
    if any(term.source == LAST_ACTION for term in plan.terms):
        parts.append(CarrySpec(name=LAST_ACTION, shape=(len(plan.driven),)))
    if plan.cycles:
        parts.append(CarrySpec(name=CLOCK, shape=(len(plan.cycles),)))
    histories = [(history_name(i), t.width, t.history) for i, t in enumerate(plan.terms) if t.history]
    if plan.frame:
        histories.append((FRAME, plan.frame_width, plan.frame))
    parts += [CarrySpec(name=name, shape=(h.length - 1, width)) for name, width, h in histories]
    if any(h.fill == "first" for _, _, h in histories):
        parts.append(CarrySpec(name=STARTED, shape=(1,)))
    return tuple(parts) or (CarrySpec(name=UNUSED, shape=(1,)),)


class _Builder:
    """Nodes in order, each with a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, kind: type = np.float32) -> str:
        array = np.asarray(value, kind)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def gather(self, value: str, index: Sequence[int], size: int) -> str:
        if tuple(index) == tuple(range(size)):
            return value
        return self.add("Gather", value, self.constant(index, np.int64), axis=0)

    def slice(self, value: str, start: int, end: int) -> str:
        return self.add("Slice", value, self.constant([start], np.int64), self.constant([end], np.int64))

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", value, self.constant(shape, np.int64))

    def concat(self, values: Sequence[str], output: str = "") -> str:
        if len(values) == 1:
            return self.add("Identity", values[0], output=output) if output else values[0]
        return self.add("Concat", *values, axis=0, output=output)

    def clip(self, value: str, ends: tuple[float, float] | None) -> str:
        if ends is None:
            return value
        return self.add("Clip", value, *(self.constant(np.float32(e)) for e in ends))


class _Composer(_Builder):
    def __init__(self, plan: Plan, file: OnnxFile) -> None:
        super().__init__()
        self.plan, self.file, self.parts = plan, prefixed(file), layout(plan, file)
        self.sizes = {a.name: math.prod(a.shape) for a in plan.spec.inputs}
        self.before: dict[str, str] = {}
        self.after: dict[str, str] = {}

    def _split_carry(self) -> None:
        at = 0
        for part in self.parts:
            whole = len(self.parts) == 1
            self.before[part.name] = graph.CARRY if whole else self.slice(graph.CARRY, at, at + part.size)
            at += part.size

    def _phase(self, term: PlannedTerm) -> str:
        """Every form of every clock, from how much of the cycle has passed."""
        cycle = self.plan.cycles[term.clock][1]
        count = self.gather(self.before[CLOCK], [term.clock], len(self.plan.cycles))
        passed = self.add("Add", self.add("Div", count, self.constant([cycle])), self.constant(term.starts))
        share = self.add("Sub", passed, self.add("Floor", passed))
        angle = self.add("Mul", share, self.constant([2.0 * np.pi]))
        return self.concat([share if form == "phase" else self.add(form.capitalize(), angle) for form in term.form])

    def _clocks(self) -> None:
        """Each clock a step further, in whole parts of its cycle."""
        steps, cycles = (self.constant(column) for column in zip(*self.plan.cycles, strict=True))
        later = self.add("Add", self.before[CLOCK], steps)
        over = self.add("Less", later, cycles)
        self.after[CLOCK] = self.add("Where", over, later, self.add("Sub", later, cycles))

    def _remembered(self, name: str, value: str, width: int, history: History) -> str:
        """The value with those of the steps before."""
        earlier = self.before[name]
        length = history.length - 1
        if history.fill == "first":
            started = self.add("Greater", self.before[STARTED], self.constant([0.5]))
            repeated = self.add("Tile", value, self.constant([length], np.int64)) if length > 1 else value
            earlier = self.add("Where", started, earlier, repeated)
        kept = [self.slice(earlier, width, width * length)] if length > 1 else []
        self.after[name] = self.concat([*kept, value])
        if history.order == "oldest_first":
            return self.concat([earlier, value])
        steps = [self.slice(earlier, width * i, width * (i + 1)) for i in reversed(range(length))] if length > 1 else [
            earlier
        ]  # fmt: skip
        return self.concat([value, *steps])

    def _term(self, i: int, term: PlannedTerm) -> str:
        if term.source == CONSTANT:
            value = self.constant(np.zeros(term.width))
        elif term.source == PHASE:
            value = self._phase(term)
        elif term.source == LAST_ACTION:
            value = self.before[LAST_ACTION]
        else:
            value = self.gather(term.source, term.index, self.sizes[term.source])
        if term.divisor != 1.0:
            value = self.add("Div", value, self.constant([term.divisor]))
        if term.offset.any():
            value = self.add("Sub", value, self.constant(term.offset))
        value = self.clip(value, term.clip)
        if (term.scale != 1.0).any():
            value = self.add("Mul", value, self.constant(term.scale))
        return self._remembered(history_name(i), value, term.width, term.history) if term.history else value

    def _observation(self) -> str:
        value = self.concat([self._term(i, term) for i, term in enumerate(self.plan.terms)])
        if self.plan.frame:
            value = self._remembered(FRAME, value, self.plan.frame_width, self.plan.frame)
        return self.clip(value, self.plan.clip)

    def _policy(self, observation: str) -> str:
        """The file's own graph; its raw actions, (A,)."""
        file = self.file
        for state in file.states:
            flat = self.before[state.input.removeprefix(PREFIX)]
            self.add("Reshape", flat, self.constant(state.shape, np.int64), output=state.input)
        self.add("Reshape", observation, self.constant(file.obs_shape, np.int64), output=file.obs)
        self.nodes += file.model.graph.node
        self.constants += file.model.graph.initializer
        for state in file.states:
            self.after[state.input.removeprefix(PREFIX)] = self.reshape(state.output, [state.size])
        return self.reshape(file.actions, [file.count])

    def _targets(self, actions: str) -> None:
        plan, joints = self.plan, len(self.plan.held)
        target = self.add("Mul", actions, self.constant(plan.scale)) if (plan.scale != 1.0).any() else actions
        target = self.add("Add", target, self.constant(plan.offset)) if plan.offset.any() else target
        rest = [i for i in range(joints) if i not in plan.driven]
        if rest:
            target = self.concat([target, self.constant(plan.held[rest])])
        order = [*plan.driven, *rest]
        target = self.gather(target, [order.index(i) for i in range(joints)], joints)
        if plan.target_low is not None and plan.target_high is not None:
            ends = (np.nan_to_num(end, posinf=1e6, neginf=-1e6) for end in (plan.target_low, plan.target_high))
            low, high = (self.constant(end) for end in ends)
            target = self.add("Min", self.add("Max", target, low), high)
        self.add("Identity", target, output=graph.ACTION)

    def model(self) -> onnx.ModelProto:
        plan = self.plan
        self._split_carry()
        actions = self.clip(self._policy(self._observation()), plan.action_clip)
        if LAST_ACTION in self.before:
            self.after[LAST_ACTION] = actions
        if plan.cycles:
            self._clocks()
        if STARTED in self.before:
            self.after[STARTED] = self.constant([1.0])
        if UNUSED in self.before:
            self.after[UNUSED] = self.before[UNUSED]
        self._targets(actions)
        self.concat([self.after[part.name] for part in self.parts], output=graph.CARRY_OUT)
        size = sum(part.size for part in self.parts)
        inputs = [(a.name, a.shape) for a in plan.spec.inputs] + [(graph.CARRY, (size,))]
        outputs = [(graph.ACTION, (len(plan.held),)), (graph.CARRY_OUT, (size,))]
        declared = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values]
            for values in (inputs, outputs)
        ]
        made = helper.make_graph(self.nodes, "step", *declared, initializer=self.constants)
        model = helper.make_model(made, opset_imports=list(self.file.model.opset_import))
        model.ir_version = self.file.model.ir_version
        return model


def compose(plan: Plan, file: OnnxFile) -> onnx.ModelProto:
    """The step graph of a bundle: the plan's inputs and the carry in, targets and the carry out."""
    return _Composer(plan, file).model()
