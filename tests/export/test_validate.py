"""The proof, and that it fails where it should: each damage to a bundle is caught."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export import ExportError, validate
from export.command import export_checkpoint, write_proven
from export.command import main as export_main
from export.compare import difference, drawn, initial_carry, sequence
from export.tracing import convert
from ksim.evaluate import Evaluation
from robots import ArraySpec, read_bundle, write_bundle
from robots.bundle import MEMBERS

EPISODES = 2


@pytest.fixture(scope="module")
def exported(checkpoint_path, tmp_path_factory):
    """The whole export, once: files on disk and the report."""
    return export_checkpoint(checkpoint_path, tmp_path_factory.mktemp("out") / "policy.kinfer", episodes=EPISODES)


def test_export_is_the_policy_within_1e5_over_1000_steps_with_resets(exported):
    report = exported.report
    assert report.init_error == 0.0
    assert (report.recorded.steps, report.unbroken.steps, report.drawn.steps) == (1000, 1000, 200)
    # two short episodes follow each other, and one step in a hundred starts anew
    assert report.recorded.resets > 20 and report.unbroken.resets == 1
    assert 0 < report.error_max <= 1e-5 and 0 < report.drawn.error <= 1e-5
    assert report.recorded.action_error <= report.recorded.error


def test_closed_loop_compares_both_policies_from_the_same_seeds(exported):
    closed = exported.report.closed_loop
    assert closed.episodes == EPISODES
    assert closed.joint_deviation_rad <= 1e-5
    assert closed.survival_onnx == closed.survival_jax
    assert closed.return_onnx == pytest.approx(closed.return_jax, abs=1e-4)


def test_the_proofs_travel_in_the_bundle_at_full_precision(exported):
    bundle = read_bundle(exported.kinfer)
    assert bundle == exported.bundle
    assert bundle.spec.proofs == exported.report.to_json()
    assert bundle.spec.proofs["recorded"]["carry_error"] == exported.report.recorded.carry_error


def test_the_onnx_file_is_the_step_fn_of_the_bundle(exported):
    assert exported.onnx.name == "policy.onnx"
    assert exported.onnx.read_bytes() == read_bundle(exported.kinfer).step_fn


# Damages. Each is refused before the closed loop begins.


def rewire(old: str, new: str):
    """Every node that reads `old` reads `new`."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [new if i == old else i for i in node.input]

    return change


def swap(a: str, b: str):
    """Every node that reads `a` reads `b`, and the other way round."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [{a: b, b: a}.get(i, i) for i in node.input]

    return change


def stale_carry(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["unused" if o == "carry_out" else o for o in node.output]
    model.graph.node.append(helper.make_node("Identity", ["carry"], ["carry_out"]))


def late_action(model: onnx.ModelProto) -> None:
    """The action of the step before: the last targets in the carry."""
    for node in model.graph.node:
        node.output[:] = ["now" if o == "action" else o for o in node.output]
        node.input[:] = ["now" if i == "action" else i for i in node.input]
    bounds = [numpy_helper.from_array(np.int64([v]), f"late_{v}") for v in (84, 104)]
    model.graph.initializer.extend(bounds)
    model.graph.node.append(helper.make_node("Slice", ["carry", "late_84", "late_104"], ["action"]))


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[3].name = "gyro"
    rewire("gyroscope", "gyro")(model)


def reordered_inputs(model: onnx.ModelProto) -> None:
    inputs = [model.graph.input[i] for i in (1, 0, 2, 3, 4, 5)]
    inputs = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in inputs]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


DAMAGES = {
    "swapped inputs": (
        swap("gyroscope", "projected_gravity"),
        r"drawn inputs, step .*: error .* expected at most 1e-05",
    ),
    "swapped joints": (swap("joint_angles", "joint_angular_velocities"), "drawn inputs, step .*: error"),
    "a stale carry": (stale_carry, "drawn inputs, step .*: error"),
    "the action of the step before": (late_action, "drawn inputs, step .*: error"),
    "an input of another name": (renamed_input, "step_fn: inputs: got .*'gyro'"),
    "inputs in another order": (reordered_inputs, "step_fn: inputs: got"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_graph_is_refused(name, bundle, trained, damage):
    change, match = DAMAGES[name]
    with pytest.raises(ExportError, match=match) as error:
        validate.validate(damage(bundle, change), trained.policy, trained.config, episodes=EPISODES)
    assert "\n" not in str(error.value)


def test_every_weight_matrix_changed_by_one_thousandth_in_one_place_is_caught(bundle, trained, damage):
    matrices = [i.name for i in onnx.load_model_from_string(bundle.step_fn).graph.initializer if len(i.dims) == 2]
    assert len(matrices) == 4  # two cells, input and state in one, and the head of two
    rng = np.random.default_rng(0)
    for name in matrices:

        def off(model: onnx.ModelProto, name: str = name) -> None:
            tensor = next(i for i in model.graph.initializer if i.name == name)
            value = numpy_helper.to_array(tensor).copy()
            value[tuple(rng.integers(0, s) for s in value.shape)] += 1e-3
            tensor.CopyFrom(numpy_helper.from_array(value, name))

        with pytest.raises(ExportError, match="drawn inputs, step"):
            validate.validate(damage(bundle, off), trained.policy, trained.config)


def test_an_initial_carry_that_is_off_by_one_bit_is_refused(bundle, trained, damage):
    def change(model: onnx.ModelProto) -> None:
        value = numpy_helper.to_array(model.graph.node[0].attribute[0].t).copy()
        value[-1] = np.nextafter(value[-1], np.float32(1))
        model.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(value, "initial_carry"))

    with pytest.raises(ExportError, match=r"init_fn against the JAX initial carry: got .* expected at most 0"):
        validate.validate(damage(bundle, change, "init_fn"), trained.policy, trained.config)


def test_a_specification_changed_after_the_export_is_refused(bundle, trained):
    changed = dataclasses.replace(bundle, spec=bundle.spec.replace(control_period_s=0.01))
    with pytest.raises(ExportError, match="step_fn: metadata property ksim2real: got another specification"):
        validate.validate(changed, trained.policy, trained.config)


def test_a_refused_export_writes_nothing(checkpoint_path, tmp_path, monkeypatch, damage):
    def bad(*args):
        return damage(convert(*args), stale_carry)

    monkeypatch.setattr("export.command.convert", bad)
    with pytest.raises(ExportError, match="the bundle is not the policy and is refused"):
        export_checkpoint(checkpoint_path, tmp_path / "policy.kinfer", episodes=1)
    assert list(tmp_path.iterdir()) == []


def test_neither_file_is_written_where_one_cannot_be(exported, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.command.write_bundle", full)
    with pytest.raises(OSError, match="No space left"):
        write_proven(tmp_path / "policy.kinfer", exported.bundle, exported.report)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_not_a_number_is_over_every_limit():
    validate._require(1e-5, 1e-5, "error")
    for value in (1.1e-5, np.nan, np.inf):
        with pytest.raises(ExportError, match=r"error: got .*, expected at most 1e-05"):
            validate._require(value, 1e-5, "error")


# Numbers by hand.


def test_difference_reports_the_greatest_error_its_step_and_its_growth(trained):
    def step(inputs, carry):
        return inputs["joint_angles"], carry + 1.0

    spec = trained.spec.replace(inputs=trained.spec.inputs[:1], carry_size=1, carry_layout=())
    bundle = convert(step, np.zeros(1, np.float32), spec)

    def drifting(inputs, carry):  # the carry gains 1.25 a step in place of 1, the action is off by 0.5
        return inputs["joint_angles"] + 0.5, carry + 1.25

    inputs = {"joint_angles": np.zeros((20, 20), np.float32)}
    found = difference(bundle, drifting, np.zeros(1), inputs, np.arange(20) == 16)
    assert (found.steps, found.resets, found.action_error) == (20, 1, 0.5)
    assert (found.carry_error, found.worst_step) == (16 * 0.25, 15)
    assert (found.early_error, found.late_error) == (0.5, 4 * 0.25)
    assert found.relative_error == 0.5  # of the action, whose value is below 1; of the carry 0.25 / 1.25


def test_a_value_that_is_not_finite_is_refused(trained):
    def step(inputs, carry):
        return inputs["joint_angles"], 1.0 / carry

    spec = trained.spec.replace(inputs=trained.spec.inputs[:1], carry_size=1, carry_layout=())
    bundle = convert(step, np.ones(1, np.float32), spec)
    inputs = {"joint_angles": np.full((5, 20), np.nan, np.float32)}
    with pytest.raises(ExportError, match="not finite at step 0"):
        difference(bundle, step, np.ones(1), inputs, np.zeros(5, bool))


def test_sequence_joins_episodes_to_their_ends_and_starts_anew_at_each():
    # three steps of two episodes, of which the second falls after its first step
    inputs = {"time": np.float32([[[10], [20]], [[11], [21]], [[12], [22]]])}
    alive = np.array([[True, True], [True, False], [True, False]])

    class Never:
        def random(self, steps):
            return np.ones(steps)

    line, starts = sequence(inputs, alive, 7, Never())
    assert line["time"][:, 0].tolist() == [10, 11, 12, 20, 10, 11, 12]
    assert starts.tolist() == [True, False, False, True, True, False, False]


def test_drawn_inputs_fill_their_ranges_and_an_open_range_ends_at_a_thousand():
    specs = (
        ArraySpec(name="time", shape=(1,), unit="s", low=(0.0,)),
        ArraySpec(name="command", shape=(2,), unit="m/s", low=(-1.0, 5.0), high=(1.0, 5.0)),
    )
    rows = drawn(specs, 500, np.random.default_rng(0))
    assert rows["time"].shape == (500, 1) and rows["time"].dtype == np.float32
    assert 0 <= rows["time"].min() < 20 and 980 < rows["time"].max() <= 1000
    assert rows["command"][:, 0].min() < -0.9 and rows["command"][:, 0].max() > 0.9
    assert (rows["command"][:, 1] == 5.0).all()


def test_joint_deviation_looks_only_where_both_still_stand():
    def run(angles, alive):
        zero = np.zeros(2)
        return Evaluation(
            episodes=2, seed=0, engine="mujoco", survived=zero, returns=zero, lengths_s=zero, drift_m=zero,
            inputs={"joint_angles": np.float64(angles)[..., None]}, alive=np.array(alive, bool),
        )  # fmt: skip

    a = run([[0, 0], [0, 0], [0, 0]], [[1, 1], [1, 0], [1, 0]])
    b = run([[0.25, 0], [0, 8], [9, 9]], [[1, 1], [1, 1], [1, 1]])
    assert validate._deviation(a, b, 2) == 0.25  # 8: one has fallen; 9: after two steps


def test_the_initial_carry_is_what_init_fn_gives(bundle, trained):
    np.testing.assert_array_equal(initial_carry(bundle), np.asarray(trained.policy.init_carry()))


# The commands.


def test_the_export_command_prints_one_json_object_and_writes_the_same_bytes_again(
    exported, checkpoint_path, tmp_path, capfd
):
    out = tmp_path / "p.kinfer"
    assert export_main([str(checkpoint_path), "-o", str(out), "--episodes", str(EPISODES), "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    answer = json.loads(stdout)
    assert answer["files"] == {"kinfer": str(out), "onnx": str(tmp_path / "p.onnx")}
    assert answer["error_max"] <= 1e-5 and answer["latency_us"]["p50"] > 0
    assert answer["digest"] == read_bundle(out).digest
    assert "tracing the policy to ONNX" in stderr
    assert out.read_bytes() == exported.kinfer.read_bytes()
    assert (tmp_path / "p.onnx").read_bytes() == exported.onnx.read_bytes()


def test_the_validate_command_prints_a_table_and_its_figures(exported, checkpoint_path, capsys):
    arguments = [str(exported.kinfer), "--checkpoint", str(checkpoint_path), "--episodes", str(EPISODES)]
    assert validate.main(arguments) == 0
    table = capsys.readouterr().out
    assert "recorded inputs, 1000 steps" in table and "(limit 1e-05)" in table and "closed loop, 2 episodes" in table


def test_validate_refuses_a_bundle_of_another_checkpoint(exported, trained, tmp_path):
    other = dataclasses.replace(trained, spec=trained.spec.replace(weights_digest="0" * 64))
    with pytest.raises(ExportError, match=r"bundle: weights_digest: got .* expected the checkpoint's 000000000000"):
        validate.check_origin(exported.bundle, other)
    with pytest.raises(ExportError, match=r"metadata\.json has no ksim2real entry"):
        validate.check_origin(dataclasses.replace(exported.bundle, spec=None), trained)


def test_validate_refuses_an_onnx_file_that_is_not_the_step_fn(exported, checkpoint_path, tmp_path):
    write_bundle(tmp_path / "policy.kinfer", exported.bundle)
    (tmp_path / "policy.onnx").write_bytes(exported.bundle.step_fn[:-1])
    with pytest.raises(ExportError, match=r"policy\.onnx: its bytes differ from step_fn"):
        validate.main([str(tmp_path / "policy.kinfer"), "--checkpoint", str(checkpoint_path)])


def test_a_member_that_is_not_onnx_is_refused(bundle, trained):
    for member in MEMBERS[:2]:
        name = member.removesuffix(".onnx")
        broken = dataclasses.replace(bundle, **{name: b"\x00\x01 not a graph"})
        with pytest.raises(ExportError, match=f"{name}: not an ONNX model"):
            validate.validate(broken, trained.policy, trained.config)


def test_the_reference_does_not_depend_on_the_default_matmul_precision(bundle, trained):
    rows = drawn(bundle.spec.inputs, 20, np.random.default_rng(0))
    with jax.default_matmul_precision("bfloat16"):
        found = difference(bundle, trained.policy.step, trained.policy.init_carry(), rows, np.zeros(20, bool))
    assert found.error <= 1e-5
