"""The exported files: what K-Scale's runtime and ours expect of them, and that equal gives equal."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from export import ExportError, convert, graph
from export.command import output_paths
from export.compare import difference, drawn, session
from export.tracing import flatten
from robots import PolicySpec, read_bundle, write_bundle
from robots.spec import canonical_json

INPUTS = ["joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "command"]
N = 20


def model_of(data: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(data)


def shapes(values) -> list[tuple[str, int, list[int]]]:
    tensors = [(v.name, v.type.tensor_type) for v in values]
    return [(name, t.elem_type, [d.dim_value for d in t.shape.dim]) for name, t in tensors]


def test_step_fn_has_the_inputs_and_outputs_of_the_contract(bundle):
    step, carry = model_of(bundle.step_fn), 2 * 2 * 16 + 2 * N
    sizes = [[N], [N], [3], [3], [3], [carry]]
    expected = [(name, onnx.TensorProto.FLOAT, size) for name, size in zip([*INPUTS, "carry"], sizes, strict=True)]
    assert shapes(step.graph.input) == expected
    assert shapes(step.graph.output) == [("action", 1, [N]), ("carry_out", 1, [carry])]
    assert step.graph.input[2].doc_string == "m/s^2, frame imu"


def test_init_fn_has_no_input_and_gives_the_first_carry_to_the_bit(bundle, trained):
    init = model_of(bundle.init_fn)
    assert not init.graph.input and len(init.graph.output) == 1
    carry = session(bundle.init_fn).run(None, {})[0]
    home = np.float32([j.home_rad for j in trained.spec.robot.joints])
    assert carry.dtype == np.float32
    np.testing.assert_array_equal(carry, np.concatenate([np.zeros(2 * 2 * 16 + N, np.float32), home]))


@pytest.mark.parametrize("member", ["init_fn", "step_fn"])
def test_both_graphs_are_plain_onnx_that_onnx_runtime_1_20_reads(bundle, member):
    model = model_of(getattr(bundle, member))
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert not model.functions and {n.domain for n in model.graph.node} == {""}


def test_the_data_path_is_float32_and_every_initializer_is_used(bundle):
    step = model_of(bundle.step_fn).graph
    kinds = {v.type.tensor_type.elem_type for v in step.value_info}
    assert kinds == {onnx.TensorProto.FLOAT}
    assert {i.name for i in step.initializer} <= {name for node in step.node for name in node.input}


def test_each_gate_product_is_one_matmul_and_no_einsum_is_left(bundle):
    counts = graph.operators(model_of(bundle.step_fn))
    assert "Einsum" not in counts
    assert counts["MatMul"] == 2  # two layers; input and state in one


def test_graphs_carry_the_spec_at_full_precision(bundle, trained):
    for data in (bundle.step_fn, bundle.init_fn):
        properties = {p.key: p.value for p in model_of(data).metadata_props}
        spec = PolicySpec.from_json(json.loads(properties["ksim2real"]))
        assert spec == bundle.spec
        assert properties["spec_digest"] == bundle.spec.digest
        assert properties["weights_digest"] == trained.spec.weights_digest != ""
        assert json.loads(properties["versions"])["jax2onnx"]
    assert bundle.spec.robot.column("kp") == trained.spec.robot.column("kp")


def test_kinfer_file_has_exactly_the_members_and_keys_that_k_scale_reads(bundle, tmp_path):
    write_bundle(tmp_path / "policy.kinfer", bundle)
    with tarfile.open(tmp_path / "policy.kinfer", "r:gz") as tar:
        assert tar.getnames() == ["init_fn.onnx", "step_fn.onnx", "metadata.json"]
        metadata = json.loads(tar.extractfile("metadata.json").read())
    assert metadata["joint_names"] == list(bundle.spec.robot.joint_names)
    assert metadata["command_names"] == ["xvel", "yvel", "yawrate"]
    assert metadata["carry_size"] == [2 * 2 * 16 + 2 * N]  # a shape, not a number
    assert set(metadata) == {"joint_names", "command_names", "carry_size", "joint_biases", "ksim2real"}


def test_the_same_policy_gives_the_same_bytes_here_and_in_another_process(bundle, trained, checkpoint_path, tmp_path):
    again = convert(trained.policy.step, trained.policy.init_carry(), trained.spec)
    assert again == bundle
    code = (
        "import sys, hashlib; from ksim.learning.checkpoint import load_trained; from export import convert; "
        "t = load_trained(sys.argv[1]); b = convert(t.policy.step, t.policy.init_carry(), t.spec); "
        "print(hashlib.sha256(b.step_fn + b.init_fn).hexdigest(), b.digest)"
    )
    out = subprocess.run([sys.executable, "-c", code, checkpoint_path], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [hashlib.sha256(bundle.step_fn + bundle.init_fn).hexdigest(), bundle.digest]
    for name in ("a", "b"):
        write_bundle(tmp_path / name, bundle)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_bundle(tmp_path / "a") == bundle


# Policies that were trained elsewhere: any JAX function with the signature.


def foreign(trained, inputs: tuple[str, ...], carry_size: int) -> PolicySpec:
    from robots.spec import input_specs

    known = input_specs(trained.spec.robot, trained.spec.commands)
    return trained.spec.replace(
        inputs=tuple(known[i] for i in inputs), carry_size=carry_size, carry_layout=(), weights_digest=""
    )


POLICIES = {
    "without a state": (lambda i, c: (0.5 * i["joint_angles"], c), ("joint_angles", "time"), 1),
    "whose action is an input": (lambda i, c: (i["joint_angles"], jnp.tanh(c)), ("joint_angles",), 4),
    "whose action is its carry": (lambda i, c: (jnp.sin(i["joint_angles"]) + c,) * 2, ("joint_angles",), N),
    "that is constant": (lambda i, c: (jnp.full(N, 0.25), c + 1), ("joint_angles",), 1),
    "with a branch": (
        lambda i, c: (jnp.where(i["time"] > 2.0, i["joint_angles"], -i["joint_angles"]), c + i["time"]),
        ("joint_angles", "time"),
        1,
    ),
    "with layer norm and softmax": (
        lambda i, c: (jax.nn.softmax(jax.nn.standardize(i["joint_angles"])), c * c.mean()),
        ("joint_angles",),
        2,
    ),
}


BROKEN = {
    "a loop until something is so": (
        lambda i, c: (jax.lax.while_loop(lambda v: v[0] < 1, lambda v: v + 1, i["joint_angles"]), c + 0.0),
        "a loop that ends when something is so",
    ),
    "a weight that is not finite": (lambda i, c: (i["joint_angles"] * jnp.full(N, jnp.nan), c + 0.0), "not finite"),
    "a rounding mode that ONNX has not": (
        lambda i, c: (jax.lax.round(0 * i["joint_angles"] + 2.5, jax.lax.RoundingMethod.AWAY_FROM_ZERO), c + 0.0),
        r"round: gives .* in ONNX and .* in JAX \(test_convert.py:\d+: ",
    ),
    "a carry whose keys have no order": (None, "cannot be converted: ValueError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_robot_would_not_run_or_would_run_otherwise_is_refused_when_it_is_converted(trained, name):
    step, reason = BROKEN[name]
    carry = np.zeros(3, np.float32)
    if step is None:
        step, carry = (lambda i, c: (i["joint_angles"], c)), {1: carry, "a": carry}
    refused(reason, step, trained, carry=carry, carry_size=3)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_trained_elsewhere_exports_and_agrees(name, trained):
    step, inputs, carry_size = POLICIES[name]
    start = np.linspace(0, 0.5, carry_size, dtype=np.float32)
    bundle = convert(step, start, foreign(trained, inputs, carry_size))
    rng = np.random.default_rng(0)
    found = difference(
        bundle, step, start, drawn(foreign(trained, inputs, carry_size).inputs, 50, rng), rng.random(50) < 0.2
    )
    assert found.error <= 1e-5


def test_an_input_that_the_policy_does_not_use_is_left_out_of_graph_and_spec(trained):
    step, inputs, carry_size = POLICIES["without a state"]
    bundle = convert(step, np.zeros(1, np.float32), foreign(trained, inputs, carry_size))
    assert [i.name for i in model_of(bundle.step_fn).graph.input] == ["joint_angles", "carry"]
    assert [a.name for a in bundle.spec.inputs] == ["joint_angles"]


def refused(match: str, step, trained, inputs=("joint_angles",), carry=None, carry_size=2):
    carry = np.zeros(carry_size, np.float32) if carry is None else carry
    with pytest.raises(ExportError, match=match) as error:
        convert(step, carry, foreign(trained, inputs, carry_size))
    assert "\n" not in str(error.value)


def test_a_function_of_another_signature_is_refused_in_one_line(trained):
    refused(r"returns an action of .*\(3,\).*expected .*\(20,\)", lambda i, c: (jnp.zeros(3), c), trained)
    refused(r"returns .*expected \(action, carry\)", lambda i, c: i["joint_angles"], trained)
    refused(r"int32.*expected .*float32", lambda i, c: (jnp.zeros(N, int), c), trained)
    refused(r"returns a carry of .*\(3,\).*expected .*\(2,\)", lambda i, c: (i["joint_angles"], jnp.zeros(3)), trained)
    refused(
        r"reads 'gyroscope', which is no input; expected only joint_angles", lambda i, c: (i["gyroscope"], c), trained
    )
    refused(r"cannot be traced: TypeError", lambda i, c: (i["joint_angles"] @ c, c), trained)


def test_an_initial_carry_of_another_shape_type_or_value_is_refused(trained):
    def step(i, c):
        return i["joint_angles"], c

    for carry in (np.zeros(2), np.float32([0, np.nan]), np.zeros(0, np.float32)):
        refused(r"initial carry: got .*expected float32, not empty, all finite", step, trained, carry=carry)
    refused(
        r"initial carry: got 3 elements .*expected 2, the spec's carry_size", step, trained, carry=np.zeros(3, "f4")
    )
    steps = {"h": np.zeros(1, np.float32), "steps": np.int32(0)}
    refused(r"initial carry, part steps: got .*int32", step, trained, carry=steps)


def test_an_input_that_kinfer_does_not_have_is_refused(trained):
    step = POLICIES["without a state"][0]
    spec = foreign(trained, ("joint_angles",), 1)
    wrong = spec.replace(inputs=(spec.inputs[0].replace(name="foot_force"),))
    with pytest.raises(ExportError, match=r"input foot_force: .*\.kinfer has no other inputs"):
        convert(step, np.zeros(1, np.float32), wrong)


def test_half_precision_on_the_data_path_is_refused(trained):
    def step(i, c):
        return i["joint_angles"].astype(jnp.float16).astype(jnp.float32), c

    refused(r"float16 in convert_element_type; .*float32.* \(test_convert.py:\d+: return i", step, trained)


def test_bits_of_integers_on_the_data_path_are_refused(trained):
    def step(i, c):
        return (i["joint_angles"].astype(jnp.uint32) << 1).astype(jnp.float32), c

    refused(r"take bits of an integer apart by // and %", step, trained)


def test_a_graph_beyond_the_runtime_of_k_scale_is_refused(bundle, damage):
    def opset(model):
        model.opset_import[0].version = 22

    def ir(model):
        model.ir_version = 11

    def domain(model):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))

    for change, match in (
        (opset, "opset: got 22, expected at most 21"),
        (ir, "IR version: got 11"),
        (domain, "domains"),
    ):
        with pytest.raises(ExportError, match=match):
            graph.check_step(model_of(damage(bundle, change).step_fn), bundle.spec)


# A carry of several parts.


def gru_of_two(inputs, carry):
    """A carry that is a dict with a tuple in it, one part of another shape, one a scalar."""
    h = jnp.tanh(0.5 * carry["h"] + inputs["joint_angles"][:4])
    line = jnp.concatenate([carry["past"][0][1:], inputs["gyroscope"][None]])
    count = carry["past"][1] + 1.0
    action = jnp.tile(h, 5) + 0.01 * jnp.sum(line) + jnp.minimum(count, 5.0)
    return action, {"h": h, "past": (line, count)}


PARTS = {"h": np.full(4, 0.1, np.float32), "past": (np.ones((2, 3), np.float32), np.float32(2.0))}


def test_a_carry_of_any_structure_is_laid_out_flat_and_named_by_its_paths(trained):
    spec = foreign(trained, ("joint_angles", "gyroscope"), 0)
    bundle = convert(gru_of_two, PARTS, spec)
    assert bundle.carry_size == bundle.spec.carry_size == 4 + 6 + 1
    assert [(p.name, p.shape) for p in bundle.spec.carry_layout] == [("h", (4,)), ("past.0", (2, 3)), ("past.1", ())]
    np.testing.assert_array_equal(session(bundle.init_fn).run(None, {})[0], np.float32([0.1] * 4 + [1.0] * 6 + [2.0]))
    assert "past.0 2x3" in model_of(bundle.step_fn).graph.input[-1].doc_string
    flat = flatten(gru_of_two, PARTS)
    rng = np.random.default_rng(0)
    inputs, resets = drawn(spec.inputs, 50, rng), rng.random(50) < 0.1
    found = difference(bundle, flat.step, flat.carry, inputs, resets)
    assert found.error <= 1e-5
    # against the function itself, with its own carry: nothing is lost or swapped on the way
    run, carry, flat_carry = session(bundle.step_fn), PARTS, flat.carry
    for t in range(5):
        row = {k: v[t] for k, v in inputs.items()}
        action, carry = gru_of_two({k: jnp.asarray(v) for k, v in row.items()}, carry)
        got, flat_carry = run.run(None, {**row, "carry": flat_carry})
        np.testing.assert_allclose(got, action, atol=1e-5)
    leaves = [np.ravel(v) for v in jax.tree.leaves(carry)]
    np.testing.assert_allclose(flat_carry, np.concatenate(leaves), atol=1e-5)


def test_a_policy_without_a_carry_gets_one_unused_zero(trained):
    bundle = convert(lambda i, c: (0.5 * i["joint_angles"], c), (), foreign(trained, ("joint_angles",), 0))
    assert [(p.name, p.shape) for p in bundle.spec.carry_layout] == [("unused", (1,))]
    action, carry = session(bundle.step_fn).run(None, {"joint_angles": np.ones(N, "f4"), "carry": np.zeros(1, "f4")})
    assert action.tolist() == [0.5] * N and carry.tolist() == [0.0]


def test_the_layout_of_our_carry_is_that_of_the_policy(bundle, trained):
    names = [(p.name, p.size) for p in bundle.spec.carry_layout]
    assert names == [
        ("lstm0.h", 16), ("lstm0.c", 16), ("lstm1.h", 16), ("lstm1.c", 16), ("last_action", N), ("last_targets", N)
    ]  # fmt: skip
    assert bundle.spec.carry_layout == trained.policy.carry_layout


def test_the_output_must_be_a_kinfer_file(tmp_path):
    assert output_paths("a/policy.kinfer")[1].name == "policy.onnx"
    (tmp_path / "folder.kinfer").mkdir()
    for path in ("policy.onnx", tmp_path / "folder.kinfer"):
        with pytest.raises(ExportError, match=r"expected a file name that ends in \.kinfer"):
            output_paths(path)
    for path in ("a/policy.kinfer", "a/policy.onnx"):
        kinfer, alone = output_paths(path, onnx_only=True)
        assert kinfer is None and alone.name == "policy.onnx"
    with pytest.raises(ExportError, match=r"ends in \.kinfer or \.onnx"):
        output_paths("policy.pt", onnx_only=True)


def test_stamped_spec_is_the_canonical_json_of_the_spec_without_proofs(bundle):
    graph.check_stamp(model_of(bundle.step_fn), bundle.spec.replace(proofs={"a": 1}), "step_fn")
    joint = bundle.spec.robot.joints[0]
    softer = bundle.spec.robot.replace(joints=(joint.replace(kp=joint.kp / 2), *bundle.spec.robot.joints[1:]))
    assert canonical_json(softer.to_json()) != canonical_json(bundle.spec.robot.to_json())
    with pytest.raises(ExportError, match="another specification"):
        graph.check_stamp(model_of(bundle.step_fn), bundle.spec.replace(robot=softer), "step_fn")
