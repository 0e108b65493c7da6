"""Rewrites of a traced graph that make it smaller and faster without changing what it computes by more than rounding.

onnxruntime does most of what an optimiser does when it loads a graph, on the robot too: what is here is what neither it
nor the stand-alone optimisers did to a recurrent policy (benchmarks/inference.py compares).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.graph import graphs

# Begins the name of a product of a vector and a constant matrix.
MATVEC = "matvec_"


def rewrite(model: onnx.ModelProto) -> None:
    """All rewrites, in place."""
    fold_constants(model)
    fold_choices(model)
    matvec_to_matmul(model)
    while _merge_products(_Values(model.graph)):
        pass
    while _fold_affine(_Values(model.graph)):
        pass
    mask_constants(model)


def fold_choices(model: onnx.ModelProto) -> None:
    """A Where whose condition is known is one of its branches: the other may be a NaN that is never taken, as in the
    variance of jax.numpy.
    """
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        condition = constants.get(node.input[0]) if node.op_type == "Where" else None
        if condition is None or condition.size != 1:
            continue
        taken, other = (node.input[1], node.input[2]) if condition.all() else (node.input[2], node.input[1])
        if other in constants and constants[other].size == 1:  # else it may be what gives the result its shape
            node.CopyFrom(helper.make_node("Identity", [taken], list(node.output), name=node.name))


def fold_constants(model: onnx.ModelProto) -> None:
    """Compute what does not depend on the inputs, with ONNX's own reference implementation."""
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    outputs, kept = {o.name for o in graph.output}, []
    for node in graph.node:
        inner = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
        known = all(not i or i in constants for i in node.input)
        if inner or not known or node.op_type.startswith("Random") or outputs & set(node.output):
            kept.append(node)
            continue
        names = [o for o in node.output if o]
        values = ReferenceEvaluator(
            helper.make_model(
                helper.make_graph(
                    [node],
                    "constant",
                    [onnx.ValueInfoProto(name=i) for i in dict.fromkeys(node.input) if i],
                    [onnx.ValueInfoProto(name=o) for o in names],
                ),
                opset_imports=model.opset_import,
                ir_version=model.ir_version,
            )
        ).run(None, {i: constants[i] for i in node.input if i})
        for name, value in zip(names, values, strict=True):
            constants[name] = np.asarray(value)
            graph.initializer.append(numpy_helper.from_array(constants[name], name))
    del graph.node[:]
    graph.node.extend(kept)


def mask_constants(model: onnx.ModelProto) -> None:
    """A constant with infinities or NaNs that only chooses, bounds or masks is chosen from finite ones.

    As a constant no robot's runtime can tell it from damaged weights.
    """
    graph, made, changed = model.graph, [], {}
    readers: dict[str, set[str]] = {}
    for node in (n for inner in graphs(graph) for n in inner.node):
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)

    def constant(name: str, value: object, kind: type = np.float32) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    for tensor in list(graph.initializer):
        array = numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else np.zeros(())
        if np.isfinite(array).all() or (array.size == 1 and not np.isnan(array).any()):
            continue
        if readers.get(tensor.name, set()) - (_CHOOSING if np.isnan(array).any() else _MASKING):
            continue
        last = constant(f"{tensor.name}_finite", np.where(np.isfinite(array), array, 0.0))
        for what, here in (("nan", np.isnan(array)), ("low", array == -np.inf), ("high", array == np.inf)):
            if not here.any():
                continue
            value = f"{tensor.name}_{what}"
            if what == "nan":
                made.append(helper.make_node("Log", [constant(f"{value}_of", -1.0)], [value], name=value))
            else:
                constant(value, np.inf if what == "high" else -np.inf)
            out, mask = f"{value}_chosen", constant(f"{value}_where", here, bool)
            made.append(helper.make_node("Where", [mask, value, last], [out], name=out))
            last = out
        changed[tensor.name] = last
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [changed.get(i, i) for i in node.input]
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


_CHOOSING = {"Where"}
_MASKING = {*_CHOOSING, "Add", "Sub", "Max", "Min", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Clip"}


def matvec_to_matmul(model: onnx.ModelProto) -> None:
    """Turn each `Einsum("ab,b->a")` of a constant matrix and a vector into one MatMul.

    A vector times the transposed constant, which ONNX Runtime packs once; the same sum of products.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type != "Einsum" or len(node.input) != 2 or node.input[0] not in constants:
            continue
        equation = helper.get_node_attr_value(node, "equation").decode().replace(" ", "")
        left, _, out = equation.partition("->")
        matrix, _, vector = left.partition(",")
        if len(matrix) != 2 or vector != matrix[1] or out != matrix[0] or out == vector:
            continue
        name = f"{node.input[0]}_transposed"
        if name not in constants:
            weight = numpy_helper.to_array(constants[node.input[0]])
            constants[name] = numpy_helper.from_array(np.ascontiguousarray(weight.T), name)
            graph.initializer.append(constants[name])
        node.op_type, node.name = "MatMul", f"{MATVEC}{node.name}"
        node.input[:] = [node.input[1], name]
        del node.attribute[:]


class _Values:
    """Who makes and who reads each value of a graph, and which are constant."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.constants = {i.name: i for i in graph.initializer}
        self.maker = {o: node for node in graph.node for o in node.output}
        self.readers = Counter(i for inner in graphs(graph) for node in inner.node for i in node.input)
        self.readers.update(o.name for inner in graphs(graph) for o in inner.output)

    def array(self, name: str) -> np.ndarray | None:
        """A constant float32 value, or None."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def constant(self, name: str, value: np.ndarray) -> str:
        """The name of a new constant."""
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Put new nodes where the last of the old ones was."""
        gone = {id(node) for node in old}
        nodes = list(self.graph.node)
        at = max(i for i, node in enumerate(nodes) if id(node) in gone)
        kept = [n for n in nodes[:at] if id(n) not in gone], [n for n in nodes[at + 1 :] if id(n) not in gone]
        del self.graph.node[:]
        self.graph.node.extend([*kept[0], *new, *kept[1]])


def _merge_products(values: _Values) -> bool:
    """Turn one sum of two vectors' products with constants, `x A + h B`, into one product, `[x, h] [A; B]`.

    So each layer of a recurrent network reads its gates' weights in one pass.
    """
    for node in values.graph.node:
        if node.op_type != "Add" or node.input[0] == node.input[1]:
            continue
        products = [values.maker.get(i) for i in node.input]
        if any(p is None or not p.name.startswith(MATVEC) or values.readers[p.output[0]] != 1 for p in products):
            continue
        old = [p for p in products if p is not None]
        weights = [w for p in old if (w := values.array(p.input[1])) is not None]
        if len(weights) != 2 or weights[0].shape[1] != weights[1].shape[1]:
            continue
        out = node.output[0]
        name = values.constant(f"{out}_weights", np.concatenate(weights))
        vectors = [p.input[0] for p in old]
        values.replace(
            [*old, node],
            [
                helper.make_node("Concat", vectors, [f"{out}_vectors"], name=f"{node.name}_concat", axis=0),
                helper.make_node("MatMul", [f"{out}_vectors", name], [out], name=f"{MATVEC}{node.name}"),
            ],
        )
        return True
    return False


def _affine(values: _Values, node: onnx.NodeProto) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(x, a, b) of a node that computes a x + b with constants, in float64."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    left, right = (values.array(i) for i in node.input)
    one, zero = np.float64(1.0), np.float64(0.0)
    if right is not None and left is None:
        c = right.astype(np.float64)
        if node.op_type == "Div" and not c.all():
            return None
        terms = {"Add": (one, c), "Sub": (one, -c), "Mul": (c, zero)}
        a, b = terms[node.op_type] if node.op_type in terms else (1.0 / c, zero)
        return node.input[0], np.asarray(a), np.asarray(b)
    if left is not None and right is None and node.op_type != "Div":
        c = left.astype(np.float64)
        a, b = {"Add": (one, c), "Sub": (-one, c), "Mul": (c, zero)}[node.op_type]
        return node.input[1], np.asarray(a), np.asarray(b)
    return None


# What makes a jump of a rounding, and what passes one on.
_JUMPS = {"Floor", "Ceil", "Round", "Mod"}
_PASSING = {
    "Abs", "Add", "Clip", "Concat", "Div", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Neg", "Reshape",
    "Slice", "Split", "Squeeze", "Sub", "Unsqueeze",
}  # fmt: skip


def _before_jumps(graph: onnx.GraphProto) -> set[str]:
    """Values that are floored, or turned into an index: a frame of a motion must not be the next one by a rounding."""
    found: set[str] = set()
    for node in reversed(graph.node):
        whole = node.op_type == "Cast" and helper.get_node_attr_value(node, "to") in _WHOLE
        if node.op_type in _JUMPS or whole or (node.op_type in _PASSING and found & set(node.output)):
            found.update(node.input)
    return found


_WHOLE = {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8}


def _fold_affine(values: _Values) -> bool:
    """Turn one chain of three or more sums and products with constants into one product and one sum."""
    exact = _before_jumps(values.graph)
    for last in reversed(values.graph.node):
        if last.output[0] in exact:
            continue
        chain, x = [], last.output[0]
        scale, offset = np.asarray(1.0), np.asarray(0.0)
        while (node := values.maker.get(x)) is not None and (found := _affine(values, node)) is not None:
            if chain and values.readers[x] != 1:
                break
            x, a, b = found
            scale, offset = scale * a, offset + scale * b
            chain.append(node)
        if len(chain) < 3:
            continue
        out = last.output[0]
        values.replace(
            chain,
            [
                helper.make_node(
                    "Mul", [x, values.constant(f"{out}_scale", scale)], [f"{out}_scaled"], name=f"{last.name}_scale"
                ),
                helper.make_node(
                    "Add",
                    [f"{out}_scaled", values.constant(f"{out}_offset", offset)],
                    [out],
                    name=f"{last.name}_offset",
                ),
            ],
        )
        return True
    return False
