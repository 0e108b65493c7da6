"""The check of a bundle's graphs: what a policy needs passes, what could do harm does not, and nothing is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploy.bundle.graph import check as graphs
from deploy.bundle.graph import read_graphs
from deploy.bundle.graph import wire as onnx_wire
from deploy.bundle.graph.check import check_graph
from deploy.bundle.session import OnnxPolicy
from deploy.errors import PolicyError
from robots.bundle import Bundle, read_bundle

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "robots" / "kbot" / "policies" / "stand.kinfer"
SHAPES = {"joint_angles": (3,), "carry": (2,)}


def floats(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def tensor(name: str, values, kind=np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def step() -> onnx.ModelProto:
    """Action = joint_angles + home, carry_out = carry."""
    nodes = [
        helper.make_node("Add", ["joint_angles", "home"], ["action"], name="add"),
        helper.make_node("Identity", ["carry"], ["carry_out"]),
    ]
    graph = helper.make_graph(
        nodes, "step", [floats("joint_angles", 3), floats("carry", 2)], [floats("action", 3), floats("carry_out", 2)],
        [tensor("home", [0.1, 0.2, 0.3])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refused(model: onnx.ModelProto | bytes, message: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(PolicyError, match=message) as caught:
        check_graph(data, "step_fn.onnx", SHAPES)
    assert str(caught.value).startswith("step_fn.onnx: ") and str(caught.value).isprintable()


def test_the_shipped_graphs_pass_and_their_facts_are_those_that_onnx_reads():
    bundle = read_bundle(SHIPPED)
    init, facts = read_graphs(bundle)
    model = onnx.load_model_from_string(bundle.step_fn)
    assert facts.nodes == len(model.graph.node) == sum(facts.operators.values())
    assert facts.weights == sum(numpy_helper.to_array(i).size for i in model.graph.initializer)
    assert (facts.opset, facts.ir_version, facts.bytes) == (17, model.ir_version, len(bundle.step_fn))
    assert facts.inputs == {i.name: (i.type.tensor_type.shape.dim[0].dim_value,) for i in model.graph.input}
    assert init.outputs == {"carry": (bundle.carry_size,)}
    assert facts.properties == {p.key: p.value for p in model.metadata_props}


def test_an_ordinary_graph_passes():
    facts = check_graph(step().SerializeToString(), "step_fn.onnx", SHAPES)
    # 3 sums and 2 copies written
    assert (facts.work, facts.memory_bytes, facts.weights) == (5, 4 * (3 + 2) + 8 * 2, 3)


Change = Callable[[onnx.ModelProto], object]


def weights(values, kind=np.float32) -> Change:
    return lambda m: m.graph.initializer[0].CopyFrom(tensor("home", values, kind))


def external(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def node(op: str, inputs: list[str], **attributes) -> Change:
    """One more node, whose output nothing reads."""
    return lambda m: m.graph.node.append(helper.make_node(op, inputs, ["more"], **attributes))


def doubled(model: onnx.ModelProto) -> None:
    last = "home"
    for k in range(40):
        model.graph.node.append(helper.make_node("Concat", [last, last], [f"d{k}"], axis=0))
        last = f"d{k}"


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"])], "body",
        [helper.make_tensor_value_info("k", TensorProto.INT64, []),
         helper.make_tensor_value_info("going", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )  # fmt: skip
    model.graph.initializer.extend([tensor("often", 2**62, np.int64), tensor("true", True, bool)])
    model.graph.node.append(helper.make_node("Loop", ["often", "true"], [], body=body))


def nested(depth: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(tensor("yes", True, bool))
        inner = helper.make_graph([helper.make_node("Neg", ["home"], ["x0"])], "g", [], [floats("x0", 3)])
        for k in range(1, depth):
            made = helper.make_node("If", ["yes"], [f"x{k}"], then_branch=inner, else_branch=inner)
            inner = helper.make_graph([made], "g", [], [floats(f"x{k}", 3)])
        model.graph.node.append(helper.make_node("If", ["yes"], ["more"], then_branch=inner, else_branch=inner))

    return change


HARM: dict[str, tuple[Change, str]] = {
    "weights in another file": (external, "weights home: weights in another file"),
    "weights said to be in another file": (
        lambda m: setattr(m.graph.initializer[0], "data_location", 1), "weights home: weights in another file"),
    "another file named": (
        lambda m: m.graph.initializer[0].external_data.add(key="location", value="x"), "weights in another file"),
    "a weight that is no number": (weights([1, np.nan, 1]), "weights home: 1 values that are not finite"),
    "weights without end": (weights([1, np.inf, -np.inf]), "weights home: 2 values that are not finite"),
    "a scalar that is no number": (weights(np.nan), "1 values that are not finite"),
    "complex weights": (weights([1, 2, 3], np.complex64), "element type 14"),
    "text": (lambda m: m.graph.initializer[0].CopyFrom(helper.make_tensor("home", 8, [1], [b"a"])), "Tensor: text"),
    "fewer weights than said": (lambda m: m.graph.initializer[0].dims.insert(0, 4), "3 elements of shape"),
    "a shape without end": (lambda m: m.graph.initializer[0].dims.insert(0, 2**62), "3 elements of shape"),
    "a negative shape": (lambda m: m.graph.initializer[0].dims.insert(0, -3), "none negative"),
    "weights twice": (
        lambda m: m.graph.initializer.append(tensor("home", [1, 2, 3])), "'home' is empty or given twice"),
    "float64 action": (weights([1, 2, 3], np.float64), "Add action: inputs of float32 and float64"),
    "another shape": (weights([[1, 2, 3], [4, 5, 6]]), r"output action: float32 of shape \(2, 3\)"),
    "another domain": (lambda m: setattr(m.graph.node[0], "domain", "com.microsoft"), "of the domain com.microsoft"),
    "another domain imported": (lambda m: m.opset_import.add(domain="evil", version=1), "operators of evil"),
    "no opset": (lambda m: m.ClearField("opset_import"), "opset 0; expected 7 to 23"),
    "an opset of the future": (lambda m: setattr(m.opset_import[0], "version", 99), "opset 99; expected 7 to 23"),
    "an old IR": (lambda m: setattr(m, "ir_version", 2), "IR version 2; expected 3 to"),
    "an IR of the future": (lambda m: setattr(m, "ir_version", 99), "IR version 99"),
    "a local function": (lambda m: m.functions.add(name="f"), "Model: local functions"),
    "training": (lambda m: m.training_info.add(), "Model: training information"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.add(), "Graph: sparse weights"),
    "Loop": (loop, "a loop, which could run without end; unroll it"),
    "Scan": (node("Scan", ["home"], num_scan_inputs=1), "a loop, which could run"),
    "a random number": (node("RandomNormal", [], shape=[3]), "a policy has no use for"),
    "an operator of somebody": (node("Exec", ["home"]), "Exec more: an operator that a policy has no use for"),
    "a size from an input": (lambda m: [node("Cast", ["carry"], to=7)(m), m.graph.node.append(
        helper.make_node("ConstantOfShape", ["more"], ["big"]))], "big: a size that depends on values"),
    "twice as much forty times": (doubled, r"16777216 elements|bytes so far"),
    "five branches deep": (nested(5), "graphs nested too deep"),
    "a name twice": (lambda m: m.graph.node.append(m.graph.node[0]), "'action' is empty or given twice"),
    "a name that nothing makes": (node("Neg", ["nothing"]), "reads 'nothing' before anything makes it"),
    "an order that goes back": (
        lambda m: m.graph.node.insert(0, helper.make_node("Neg", ["action"], ["x"])), "'action' before"),
    "a variadic input left out": (node("Max", ["home", ""]), "input 1 is missing"),
    "a name that a terminal obeys": (lambda m: setattr(m.graph.node[0], "name", "\x1b[2J"), "expected plain text"),
    "an attribute of two kinds": (
        lambda m: m.graph.node[0].attribute.add(name="a", type=2, i=1, f=2.0), "one value of its"),
    "an attribute twice": (
        lambda m: [m.graph.node[0].attribute.add(name="a", type=2, i=1) for _ in "ab"], "given twice"),
    "an open input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "n"), "is not fixed"),
    "an integer input": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7), "expected a float32"),
    "a wide input": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2), r"shape \[3, 2\], expected"),
    "an input of another name": (
        lambda m: setattr(m.graph.input[0], "name", "lidar"), "'lidar' is unknown; expected some"),
    "an output that nothing makes": (lambda m: setattr(m.graph.output[0], "name", "x"), "output x; expected a value"),
    "one output twice": (lambda m: setattr(m.graph.output[1], "name", "action"), "output action; expected a value"),
    "a declared size that is wrong": (
        lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[0], "dim_value", 4),
        r"expected float32 of \(4,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARM)
def test_what_could_do_harm_is_refused_with_one_line(case):
    change, message = HARM[case]
    model = step()
    change(model)
    refused(model, message)


@pytest.mark.parametrize(
    "change",
    [
        weights(np.inf),  # one infinity is a bound, not a weight
        nested(3),
        lambda m: m.opset_import.add(domain="ai.onnx.ml", version=2),  # tf2onnx declares it, used or not
        lambda m: m.graph.input.append(floats("home", 3)),  # before IR version 4, weights are inputs too
        lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
        lambda m: setattr(m.graph.node[0], "domain", "ai.onnx"),
        lambda m: m.metadata_props.add(key="k", value="line\nbreak"),
    ],
)
def test_what_other_exporters_write_passes(change):
    model = step()
    change(model)
    check_graph(model.SerializeToString(), "step_fn.onnx", SHAPES)


def test_a_policy_too_large_for_a_control_loop_is_refused(monkeypatch):
    monkeypatch.setattr(graphs, "MAX_WORK", 4)
    refused(step(), "5 operations and .* bytes so far; expected at most 4")
    monkeypatch.undo()
    monkeypatch.setattr(graphs, "MAX_MEMORY", 20)
    refused(step(), "bytes so far; expected at most .* and 20")
    monkeypatch.undo()
    monkeypatch.setattr(graphs, "MAX_NODES", 1)
    refused(step(), "more than 1 nodes")


# The bytes: a strict subset of protobuf.

WIRE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no bytes": (lambda d: b"", "it has no graph"),
    "garbage": (lambda d: b"garbage", "not a model"),
    "text": (lambda d: b"<html>" * 99, "not a model"),
    "an unknown field": (lambda d: d + b"\xfa\x01\x01x", "Model: field 31"),
    "a group": (lambda d: d + b"\x0b\x0c", "wire type 3|given twice"),
    "another wire type": (lambda d: b"\x3d\0\0\0\0", "graph of wire type 5"),
    "a field twice": (lambda d: d + d[d.index(b":", 1):], "given twice|not a model"),
    "a version twice": (lambda d: b"\x08\x08" + d, "Model: ir_version given twice"),
    "a number without end": (lambda d: b"\x08" + b"\xff" * 11, "a number of more than 64 bits"),
    "a number cut off": (lambda d: b"\x08\xff", "it ends inside a number"),
    "a length without end": (lambda d: b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "graph ends too early"),
    "a million empty nodes": (lambda d: message(7, b"\x0a\x00" * 300_000), "more than 200000 fields"),
    "a million numbers in one": (
        lambda d: message(7, message(5, message(7, b"\x01" * 300_000))), "more than 200000 fields"),
    "a type number that others would cut": (
        lambda d: message(7, message(5, b"\x10\x81\x80\x80\x80\x10")), "a number of more than 32 bits"),
    "a name that is no text": (lambda d: d.replace(b"add", b"a\x80d"), "the name .* expected plain text"),
    "a note that is no text": (lambda d: d + b"\x32\x01\x80", "the text .* expected plain text"),
    "graphs in graphs": (lambda d: deep(200), "graphs nested too deep"),
}  # fmt: skip


def message(field: int, content: bytes) -> bytes:
    """A length-delimited field."""
    size, n = b"", len(content)
    while True:
        size += bytes([n & 0x7F | (0x80 if n > 0x7F else 0)])
        n >>= 7
        if not n:
            return bytes([field << 3 | 2]) + size + content


def deep(levels: int) -> bytes:
    inner = b""
    for _ in range(levels):
        inner = message(1, message(5, message(6, inner)))
    return message(7, inner)


@pytest.mark.parametrize("case", WIRE)
def test_bytes_with_a_second_meaning_or_without_bounds_are_refused(case):
    change, expected = WIRE[case]
    data = change(step().SerializeToString())
    tracemalloc.start()
    try:
        refused(data, expected)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_every_prefix_and_every_flipped_byte_is_refused_or_read_as_onnx_reads_it():
    whole = step().SerializeToString()
    for k in range(len(whole)):
        for data in (whole[:k], whole[:k] + bytes([whole[k] ^ 0x11]) + whole[k + 1 :]):
            try:
                facts = check_graph(data, "step_fn.onnx", SHAPES)
            except PolicyError as error:
                assert str(error).isprintable()
                continue
            model = onnx.load_model_from_string(data)
            assert facts.nodes == len(model.graph.node) and facts.ir_version == model.ir_version


def test_tensors_read_as_onnx_reads_them_in_every_form():
    made = [
        tensor("raw", [[1, 2], [3, 4]]), tensor("int64", [2**62, -1], np.int64), tensor("bool", [True, False], bool),
        tensor("half", [1, 2], np.float16), tensor("double", [1e300], np.float64), tensor("byte", [255], np.uint8),
        tensor("empty", np.zeros((0, 3))), tensor("scalar", 5.0),
        helper.make_tensor("listed", TensorProto.FLOAT, [3], [1.0, -2.5, 3e-7]),
        helper.make_tensor("listed64", TensorProto.INT64, [2], [-(2**63), 7]),
        helper.make_tensor("listed32", TensorProto.INT32, [2], [-5, 7]),
        helper.make_tensor("listed_bool", TensorProto.BOOL, [2], [True, False]),
        helper.make_tensor("listed_half", TensorProto.FLOAT16, [2], [0.5, -2.0]),
        helper.make_tensor("listed_double", TensorProto.DOUBLE, [1], [1e-300]),
    ]  # fmt: skip
    model = step()
    model.graph.initializer.extend(made)
    parsed = onnx_wire.parse(model.SerializeToString(), "x")["graph"]["initializer"][1:]
    assert len(parsed) == len(made)
    for got, expected in zip(parsed, made, strict=True):
        array = onnx_wire.tensor_array(got)
        np.testing.assert_array_equal(array, numpy_helper.to_array(expected))
        assert array.dtype == numpy_helper.to_array(expected).dtype


# Files of K-Scale's, which tell less.


def kscale(command_key: dict, inputs: dict[str, int], carry: int = 4, joints: int = 2, opset: int = 17) -> Bundle:
    """A policy as their exporters make it: einsum for the weights, a branch, a scatter, slices of a joined vector."""
    from robots.bundle import _parse

    width = sum(inputs.values()) + carry
    rng = np.random.default_rng(1)
    init = [
        tensor("w", 0.1 * rng.normal(size=(carry, width))), tensor("head", rng.normal(size=(joints, carry))),
        tensor("at", [[0]], np.int64), tensor("one", [1.0]), tensor("zero", [0], np.int64),
        tensor("two", [2], np.int64), tensor("row", [1, carry], np.int64), tensor("flat", [-1], np.int64),
    ]  # fmt: skip
    branches = [
        helper.make_graph([helper.make_node(op, ["mixed"], [op])], op, [], [floats(op, carry)])
        for op in ("Tanh", "Erf")
    ]
    nodes = [
        helper.make_node("Concat", [*inputs, "carry"], ["all"], axis=0),
        helper.make_node("Einsum", ["w", "all"], ["mixed"], equation="ij,j->i"),
        helper.make_node("Slice", ["all", "zero", "two"], ["first"]),
        helper.make_node("ReduceMax", ["first"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "one"], ["far"]),
        helper.make_node("Reshape", ["far", "flat"], ["flag"]),
        helper.make_node("If", ["flag"], ["hidden"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("ScatterND", ["hidden", "at", "one"], ["next_carry"]),
        helper.make_node("Reshape", ["next_carry", "row"], ["as_row"]),
        helper.make_node("Gemm", ["as_row", "head"], ["wide"], transB=1),
        helper.make_node("Where", ["flag", "wide", "wide"], ["chosen"]),
        helper.make_node("Reshape", ["chosen", "flat"], ["action"]),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "tf2onnx", [floats(n, s) for n, s in inputs.items()] + [floats("carry", carry)],
                              [floats("action", joints), floats("next_carry", carry)], init)  # fmt: skip
    ops = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 2)]
    step_fn = helper.make_model(graph, opset_imports=ops, ir_version=8, producer_name="tf2onnx").SerializeToString()
    first = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["size"], ["carry"], value=tensor("", [0.0]))], "init", [],
        [floats("carry", carry)], [tensor("size", [carry], np.int64)],
    )  # fmt: skip
    init_fn = helper.make_model(first, opset_imports=ops[:1], ir_version=8).SerializeToString()
    metadata = {"joint_names": [f"j{k}" for k in range(joints)], "carry_size": [carry], **command_key}
    return _parse({"init_fn.onnx": init_fn, "step_fn.onnx": step_fn, "metadata.json": json.dumps(metadata).encode()})


OLD = {"joint_angles": 2, "joint_angular_velocities": 2, "quaternion": 4, "initial_heading": 1, "command": 3, "time": 1}
NEW = {"joint_angles": 2, "joint_angular_velocities": 2, "projected_gravity": 3, "accelerometer": 3, "gyroscope": 3,
       "command": 2, "time": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "inputs", "names"),
    [
        ({"num_commands": 3}, OLD, ("command_0", "command_1", "command_2")),
        ({"command_names": ["vx", "vy"]}, NEW, ("vx", "vy")),
    ],
    ids=["before 0.6", "0.6"],
)
def test_a_bundle_of_k_scales_making_runs_and_carries_on(key, inputs, names):
    bundle = kscale(key, inputs)
    assert bundle.command_names == names and bundle.spec is None
    policy = OnnxPolicy(bundle)
    assert set(policy.inputs) == set(inputs)
    rng = np.random.default_rng(0)
    reference = ReferenceEvaluator(onnx.load_model_from_string(bundle.step_fn))
    carry = np.zeros(4, np.float32)
    for _ in range(5):
        fed = {n: rng.normal(size=s).astype(np.float32) for n, s in inputs.items()}
        action, carry = reference.run(None, {**fed, "carry": carry})  # type: ignore[misc]
        np.testing.assert_allclose(policy.step(fed), action, atol=1e-5)
        np.testing.assert_allclose(policy.carry, carry, atol=1e-5)
    assert policy.carry[0] == 1.0


def test_checking_loads_neither_onnx_nor_onnx_runtime():
    code = (
        "import sys; from deploy.bundle.graph.check import check_graph; from robots.bundle import read_bundle; "
        f"b = read_bundle({str(SHIPPED)!r}); print(check_graph(b.init_fn, 'init_fn.onnx', {{}}).nodes); "
        "print([m for m in ('onnx', 'onnxruntime', 'google.protobuf', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[1] == "[]", done.stderr


def test_nothing_outside_the_folder_goes_round_its_one_door():
    inside = ROOT / "deploy" / "bundle" / "graph"
    files = [p for d in ("deploy", "export", "ksim", "robots", "toolkit") for p in (ROOT / d).rglob("*.py")]
    users = {p.relative_to(ROOT): p.read_text() for p in files if inside not in p.parents}
    assert any("from deploy.bundle.graph import" in text and "read_graphs(" in text for text in users.values())
    assert [str(p) for p, text in users.items() if re.search(r"(from|import) deploy\.bundle\.graph\.", text)] == []
    # where a graph is loaded: of a bundle that was read, in one place; of a graph that was just made, in the export
    assert sorted(str(p) for p, text in users.items() if "InferenceSession(" in text) == [
        "deploy/bundle/session.py", "export/compare.py",
    ]  # fmt: skip
