"""What a graph must be; knows ONNX, not JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto, helper, shape_inference

from deploy.bundle.targets import IR_MAX, OPSET_MAX
from export.errors import ExportError
from robots.bundle import EXTRA_KEY
from robots.spec import PolicySpec, canonical_json

# Opset 17 has all that policies need and is read by ONNX Runtime 1.13 and later; its own IR version is 8.
OPSET, IR_VERSION = 17, 8
CARRY, ACTION, CARRY_OUT = "carry", "action", "carry_out"
# The metadata property of both graphs that holds the spec, without the proofs, as canonical JSON.
SPEC_PROPERTY = EXTRA_KEY
# What may compute an integer: an index into a table, a count. What else there is on integers, ONNX and JAX may mean
# differently.
_INDEX_OPS = {
    "Abs", "Add", "ArgMax", "ArgMin", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "CumSum", "Div",
    "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Range",
    "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Sign", "Slice", "Squeeze", "Sub", "TopK",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)
            for inner in attribute.graphs:
                yield from nodes(inner)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every subgraph."""
    yield graph
    for node in nodes(graph):
        yield from (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def name_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give the outputs their names; one that is an input, a constant or another output gets an Identity."""
    graph = model.graph
    made = {o for node in graph.node for o in node.output}
    for at, name in enumerate(names):
        old = graph.output[at].name
        graph.output[at].name = name
        if old not in made:
            graph.node.append(helper.make_node("Identity", [old], [name], name=f"node_{name}"))
            continue
        for inner in graphs(graph):
            for node in inner.node:
                node.input[:] = [name if i == old else i for i in node.input]
                node.output[:] = [name if o == old else o for o in node.output]
        for other in graph.output[at + 1 :]:
            other.name = name if other.name == old else other.name


def drop_unused(model: onnx.ModelProto, keep: str) -> None:
    """Remove initializers and inputs that no node reads, save the input `keep`."""
    graph = model.graph
    used = {i for node in nodes(graph) for i in node.input}
    used |= {o.name for inner in graphs(graph) for o in inner.output} | {keep}
    constants = [v for v in graph.initializer if v.name in used]
    inputs = [v for v in graph.input if v.name in used]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(constants)
    graph.input.extend(inputs)


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shape of every value, checked in full.

    Raises:
        ExportError: it is not valid ONNX.
    """
    del model.graph.value_info[:]
    try:
        model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is not valid ONNX: {' '.join(str(error).split())}") from error
    return model


def parse(data: bytes, what: str) -> onnx.ModelProto:
    """A model from its bytes.

    Raises:
        ExportError: they are not an ONNX model.
    """
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf has its own roots in each implementation
        raise ExportError(f"{what}: not an ONNX model ({' '.join(str(error).split())}); export it again") from error


def _signature(values: Sequence[onnx.ValueInfoProto], what: str) -> list[tuple[str, tuple[int, ...]]]:
    out = []
    for value in values:
        tensor = value.type.tensor_type
        if tensor.elem_type != TensorProto.FLOAT:
            got = TensorProto.DataType.Name(tensor.elem_type)
            raise ExportError(f"{what} {value.name}: got {got}, expected FLOAT (float32); cast it in the policy")
        dims = tensor.shape.dim
        if any(not d.HasField("dim_value") for d in dims):
            raise ExportError(f"{what} {value.name}: got a shape that is not static, expected fixed sizes")
        out.append((value.name, tuple(d.dim_value for d in dims)))
    return out


def _expect(ok: bool, what: str, got: object, expected: object) -> None:
    if not ok:
        raise ExportError(f"{what}: got {got}, expected {expected}; export it again with ksim export")


def check_graph(model: onnx.ModelProto, what: str) -> None:
    """Opset, IR version, domains and types that every runtime of ours and K-Scale's reads.

    Raises:
        ExportError: one of them is out of bounds.
    """
    _expect(model.ir_version <= IR_MAX, f"{what}: IR version", model.ir_version, f"at most {IR_MAX}")
    domains = {o.domain: o.version for o in model.opset_import}
    custom = sorted((set(domains) | {n.domain for n in nodes(model.graph)}) - {"", "ai.onnx"})
    _expect(not custom, f"{what}: operator domains", custom, "only ONNX's own")
    opset = max(domains.values(), default=0)
    _expect(opset <= OPSET_MAX, f"{what}: opset", opset, f"at most {OPSET_MAX}")
    _expect(not model.functions, f"{what}: local functions", len(model.functions), "none")
    inferred = infer(onnx.ModelProto.FromString(model.SerializeToString()))
    inexact = {TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    kinds = {v.name: v.type.tensor_type.elem_type for g in graphs(inferred.graph) for v in (*g.value_info, *g.output)}
    kinds |= {i.name: i.data_type for g in graphs(inferred.graph) for i in g.initializer}
    for name, kind in kinds.items():
        if kind in inexact:
            got = TensorProto.DataType.Name(kind)
            raise ExportError(f"{what}: value {name}: got {got}, expected float32; cast it in the policy")
    plain = {TensorProto.FLOAT, TensorProto.BOOL, 0}
    for node in nodes(inferred.graph):
        whole = [o for o in node.output if kinds.get(o, 0) not in plain]
        if whole and node.op_type not in _INDEX_OPS:
            raise ExportError(
                f"{what}: {node.op_type} {whole[0]}: got integer arithmetic, expected float32; cast it in the policy"
            )


def check_step(model: onnx.ModelProto, spec: PolicySpec) -> None:
    """The step graph is what `spec` says: inputs in order with the carry last, action and carry out.

    Raises:
        ExportError: a name, type, shape or order differs.
    """
    check_graph(model, "step_fn")
    n = len(spec.robot.joints)
    got = _signature(model.graph.input, "step_fn: input")
    expected = [(a.name, a.shape) for a in spec.inputs] + [(CARRY, (spec.carry_size,))]
    _expect(got == expected, "step_fn: inputs", got, expected)
    got = _signature(model.graph.output, "step_fn: output")
    _expect([s for _, s in got] == [(n,), (spec.carry_size,)], "step_fn: outputs", got, "the action, then the carry")


def check_init(model: onnx.ModelProto, spec: PolicySpec) -> None:
    """The init graph has no input and one output, the carry.

    Raises:
        ExportError: it has another signature.
    """
    check_graph(model, "init_fn")
    _expect(not model.graph.input, "init_fn: inputs", len(model.graph.input), "none")
    got = _signature(model.graph.output, "init_fn: output")
    _expect([s for _, s in got] == [(spec.carry_size,)], "init_fn: outputs", got, f"one of {spec.carry_size}")


def check_stamp(model: onnx.ModelProto, spec: PolicySpec, what: str) -> None:
    """The graph's own copy of the spec is the bundle's.

    Raises:
        ExportError: the spec was changed after the export, or the graph is another policy's.
    """
    stamped = {p.key: p.value for p in model.metadata_props}.get(SPEC_PROPERTY, "")
    same = stamped == canonical_json(spec.contract().to_json())
    _expect(same, f"{what}: metadata property {SPEC_PROPERTY}", "another specification", "that of metadata.json")


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs."""
    return dict(sorted(Counter(node.op_type for node in nodes(model.graph)).items()))
