"""The proof, and that it fails where it should: each damage to a bundle is caught."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploy.bundle.preflight import prepare
from deploy.bundle.session import OnnxPolicy, self_test
from deploy.errors import CheckError, PolicyError
from export import ExportError, proof, validate
from export.command import export_checkpoint, write_proven
from export.command import main as export_main
from export.compare import Reference, determinism, difference, drawn, extreme, initial_carry, sequence
from export.recording import Recording
from export.tracing import convert
from export.validate_command import main as validate_main
from ksim.evaluate import Evaluation
from robots import ArraySpec, read_bundle, write_bundle
from robots.bundle import MEMBERS

EPISODES, STEPS = 3, 500
SMALL = {"episodes": EPISODES, "steps": STEPS, "margin_episodes": 0}
OPTIONS = ["--episodes", str(EPISODES), "--steps", str(STEPS), "--margin-episodes", "0"]


@pytest.fixture
def exported(exported_small):
    return exported_small


def test_export_is_the_policy_within_1e5_on_every_kind_of_input(exported):
    numbers = exported.report.numbers
    assert exported.report.failures == () and numbers.init_error == 0.0 and numbers.scan_error <= 1e-6
    found = numbers.sequences()
    kinds = {"corners", "alternating", "zeros", "one input", "constant"}
    assert set(found) == {
        "recorded inputs", "recorded inputs without resets", "drawn inputs", *(f"extreme inputs, {k}" for k in kinds)
    }  # fmt: skip
    for name, d in found.items():
        assert 0 < d.action_error <= 1e-5 and 0 < d.step_action_error <= 1e-5, name
        assert 0 < d.step_carry_error <= 1e-5 and 0 < d.of_limit <= 1, name
        assert d.steps == (STEPS // 5 if name.startswith("extreme") else STEPS) and len(d.windows) == 20
        assert d.carry_limited is not name.startswith("extreme")
    # short episodes follow each other, and one step in a hundred starts anew
    assert numbers.recorded.resets > 20 and numbers.unbroken.resets == 1
    assert 0 < exported.report.error_max <= 1e-5


def test_the_bytes_are_the_same_in_another_run_and_with_other_thread_counts(exported):
    again = exported.report.numbers.determinism
    assert again.runs_equal and again.threads_equal and again.steps == 1000
    assert set(again.optimisation) == {"extended", "basic", "disabled"}
    assert all(v <= 1e-5 for v in again.optimisation.values())


def test_closed_loop_compares_both_forms_from_the_same_seeds(exported):
    (closed,) = exported.report.closed_loops
    assert (closed.engine, closed.episodes, closed.parted) == ("mujoco", EPISODES, 0)
    assert closed.joint_deviation_rad <= closed.joint_deviation_max_rad <= 0.05 and closed.failures() == []
    assert closed.survival.onnx == closed.survival.jax == 1.0
    assert closed.returns.onnx == pytest.approx(closed.returns.jax, abs=1e-4)
    assert closed.tracking.jax > 0 and closed.tracking.verdict == closed.drift.verdict == "equivalent"


def test_the_proofs_travel_in_the_bundle_at_full_precision(exported):
    bundle = read_bundle(exported.kinfer)
    assert bundle == exported.bundle and bundle.spec.validated
    assert bundle.spec.proofs == exported.report.to_json()
    assert bundle.spec.proofs["numbers"]["recorded"]["carry_error"] == exported.report.numbers.recorded.carry_error


def test_the_bundle_carries_its_self_test_and_its_envelope_and_runs_without_a_warning(exported):
    spec = read_bundle(exported.kinfer).spec
    # five parts of 8 steps of an episode of 20, and 16 drawn ones
    assert len(spec.self_test["actions"]) == 56 and len(spec.self_test["carry"]) == spec.carry_size
    assert self_test(OnnxPolicy(exported.bundle), spec) <= 1e-5
    assert set(spec.envelope) == {"joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope"}
    knee = spec.robot.joint_names.index("dof_left_knee_04")
    home = spec.robot.column("home_rad")[knee]
    assert spec.envelope["joint_angles"]["low"][knee] < home < spec.envelope["joint_angles"]["high"][knee]
    assert [w for w in prepare(exported.kinfer, "kbot", {}).warnings if "are reduced" not in w] == []


def test_the_self_test_covers_start_standing_a_command_that_comes_and_goes_and_a_reset(exported):
    record = read_bundle(exported.kinfer).spec.self_test
    parts = [(part["name"], part["steps"], part["reset"]) for part in record["parts"]]
    assert parts == [
        *(("start", 8, True), ("standing", 8, False), ("command starts", 8, False), ("command stops", 8, False)),
        *(("reset", 8, True), ("drawn", 16, False)),
    ]
    at = np.cumsum([0, *(steps for _, steps, _ in parts)])
    command, angles, actions = (
        [np.float32(rows[a:b]) for a, b in itertools.pairwise(at)]
        for rows in (record["inputs"]["command"], record["inputs"]["joint_angles"], record["actions"])
    )
    rest, move = [0.0, 0.0, 0.0], [1.0, 0.3, 1.0]
    for i, asked in enumerate((rest, rest, move, rest, rest)):
        assert (command[i] == np.broadcast_to(np.float32(asked), (8, 3))).all(), parts[i]
    # standing is another time than the start, and what is sensed stays while the command comes and goes
    assert (angles[0] != angles[1]).any() and (angles[1] == angles[2]).all() and (angles[2] == angles[3]).all()
    # after a reset it begins as it began; the command makes a difference while it is there and after it
    np.testing.assert_allclose(actions[4], actions[0], atol=1e-6)
    assert np.abs(actions[2] - actions[1]).max() > 1e-3 and np.abs(actions[3] - actions[1]).max() > 1e-3


def test_a_host_that_does_not_reset_fails_the_self_test(exported):
    class Endless(OnnxPolicy):
        started = False

        def step(self, inputs, *, check_finite=True):
            self.started = check_finite  # the first call of all is a trial
            return super().step(inputs, check_finite=check_finite)

        def reset(self):
            if not self.started:
                super().reset()

    with pytest.raises(PolicyError, match=r"self-test, step 3[2-9]: target of dof_"):
        self_test(Endless(exported.bundle), exported.bundle.spec)


def test_numbers_for_deployment_are_the_float32_numbers_themselves():
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    text = json.dumps(proof._float32_json(values))
    assert np.array_equal(np.asarray(json.loads(text), np.float32), values)
    assert proof._float32_json(np.float32([0.1])) == [0.1]  # the shortest decimal, not 0.10000000149011612


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
        r"drawn inputs, step .*: error .* times its limit .*expected at most 1e-05",
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
        validate.validate(damage(bundle, change), trained.policy, trained.config, **SMALL)
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
            validate.validate(damage(bundle, off), trained.policy, trained.config, **SMALL)


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

    monkeypatch.setattr("export.tracing.convert", bad)
    with pytest.raises(ExportError, match="the bundle is not the policy and is refused"):
        export_checkpoint(checkpoint_path, tmp_path / "policy.kinfer", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_forced_export_is_written_marked_and_ends_with_status_2(
    checkpoint_path, tmp_path, monkeypatch, damage, capfd
):
    def bad(*args):
        return damage(convert(*args), stale_carry)

    monkeypatch.setattr("export.tracing.convert", bad)
    out = tmp_path / "policy.kinfer"
    assert export_main([str(checkpoint_path), "-o", str(out), *OPTIONS, "--force", "--json"]) == 2
    stdout, stderr = capfd.readouterr()
    assert f"{out} is written and marked as unvalidated: drawn inputs, step" in stderr
    spec = read_bundle(out).spec
    assert not spec.validated and json.loads(stdout)["failures"] == spec.proofs["failures"]
    # all that failed is listed, not the first alone
    assert any(f.startswith("recorded inputs, step") for f in spec.proofs["failures"])
    assert any("closed loop in mujoco" in f for f in spec.proofs["failures"])
    with pytest.raises(CheckError, match=r"not validated \(it failed: drawn inputs, step .*--unvalidated"):
        prepare(out, None, {})
    # told to run it, deployment's own self-test still knows the graph for another one
    with pytest.raises(PolicyError, match="self-test, step 1"):
        prepare(out, None, {}, unvalidated=True)
    page = (tmp_path / "policy.report.html").read_text()
    assert "Not proven" in page and json.loads((tmp_path / "policy.report.json").read_text())["validated"] is False


def test_neither_file_is_written_where_one_cannot_be(exported, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.command.write_bundle", full)
    with pytest.raises(OSError, match="No space left"):
        write_proven(tmp_path / "policy.kinfer", exported.bundle, exported.report)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_not_a_number_is_over_every_limit():
    stages = proof.Stages(True, print)
    for value in (1e-5, 1.1e-5, np.nan, np.inf):
        stages.require(value, 1e-5, f"error {value}")
    assert [f.split(":")[0] for f in stages.failures] == ["error 1.1e-05", "error nan", "error inf"]
    with pytest.raises(ExportError, match="the bundle is not the policy and is refused"):
        proof.Stages(False, print).require(np.nan, 1.0, "error")


# Numbers by hand.


def counting(trained, gain=1.0):
    """(bundle, spec) of a policy whose action is joint_angles and whose one-element carry gains `gain` a step."""

    def step(inputs, carry):
        return inputs["joint_angles"], carry + gain

    spec = trained.spec.replace(inputs=trained.spec.inputs[:1], carry_size=1, carry_layout=())
    return convert(step, np.zeros(1, np.float32), spec)


def test_difference_tells_what_is_carried_from_what_one_step_adds(trained):
    def drifting(inputs, carry):  # the carry gains 1.25 a step in place of 1, the action is off by 0.5
        return inputs["joint_angles"] + 0.5, carry + 1.25

    inputs = {"joint_angles": np.zeros((20, 20), np.float32)}
    found = difference(counting(trained), drifting, np.zeros(1), inputs, np.arange(20) == 16)
    assert (found.steps, found.resets, found.action_error, found.step_action_error) == (20, 1, 0.5, 0.5)
    # up to 10 the carry of the reference is 1.25, 2.5 ... 10 after 8 steps; beyond that it is counted apart
    assert (found.carry_error, found.step_carry_error) == (8 * 0.25, 0.25)
    assert (found.large_carry_error, found.carry_max) == (16 * 0.25, 20.0)
    assert found.large_step_share == pytest.approx(0.25 / 11.25)
    # the farthest beyond its limit: 2 of 1e-5, after the eighth step
    assert found.of_limit == pytest.approx(2.0 / 1e-5) and found.worst_step == 7
    # 20 windows of one step: the action's 0.5, then the carry's 0.75 after 3 steps, to 2.0 after 8; then the action
    assert found.windows[:9] == (0.5, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 0.5) and found.windows[16] == 0.5


@pytest.mark.parametrize(("gain", "off", "within"), [(100.0, 5e-5, True), (100.0, 5e-4, False), (1.0, 5e-5, False)])
def test_beyond_ten_an_element_of_the_carry_is_held_to_a_millionth_of_its_value_in_one_step(trained, gain, off, within):
    def step(inputs, carry):
        return inputs["joint_angles"], carry + (gain + off)

    inputs = {"joint_angles": np.zeros((5, 20), np.float32)}
    found = difference(counting(trained, gain), step, np.zeros(1), inputs, np.ones(5, bool))
    assert (found.of_limit <= 1) is within


def test_where_the_compiled_loop_is_another_sum_the_step_itself_is_the_reference(trained):
    class Unlike(Reference):
        def run(self, inputs, resets):
            trace = super().run(inputs, resets)
            return dataclasses.replace(trace, actions=trace.actions + np.float32(1e-4))

    rows = drawn(trained.spec.inputs, 30, np.random.default_rng(0))
    resets = np.arange(30) % 10 == 0
    start = trained.policy.init_carry()
    same, apart = Reference(trained.policy.step, start).check(rows, resets)
    assert apart <= 1e-6 and not same._stepwise
    unlike, apart = Unlike(trained.policy.step, start).check(rows, resets)
    assert apart == pytest.approx(1e-4, rel=0.01) and unlike._stepwise
    # the same resets, the same carries
    a, b = same.run(rows, resets), unlike.run(rows, resets)
    assert np.abs(a.carries - b.carries).max() <= 1e-6 and np.abs(a.before - b.before).max() <= 1e-6
    assert np.array_equal(a.before[10], np.asarray(start)) and not np.array_equal(a.before[11], np.asarray(start))


def test_determinism_sees_a_graph_that_draws_random_numbers(bundle, damage):
    def noisy(model):
        for node in model.graph.node:
            node.output[:] = ["calm" if o == "action" else o for o in node.output]
            node.input[:] = ["calm" if i == "action" else i for i in node.input]
        noise = helper.make_node("RandomNormal", [], ["noise"], shape=[20], scale=1e-3)
        model.graph.node.extend([noise, helper.make_node("Add", ["calm", "noise"], ["action"])])

    rows = drawn(bundle.spec.inputs, 5, np.random.default_rng(0))
    assert determinism(bundle, rows, np.zeros(5, bool)).runs_equal
    found = determinism(damage(bundle, noisy), rows, np.zeros(5, bool))
    assert not found.runs_equal


def test_extreme_inputs_stand_at_the_ends_of_their_ranges():
    specs = (
        ArraySpec(name="time", shape=(1,), unit="s", low=(0.0,)),
        ArraySpec(name="joint_angles", shape=(2,), unit="rad", low=(-1.0, 0.5), high=(1.0, 2.0)),
    )
    kinds = extreme(specs, 200, np.random.default_rng(0))
    angles = {kind: rows["joint_angles"] for kind, (rows, _) in kinds.items()}
    assert set(np.unique(angles["corners"][:, 1])) == {0.5, 2.0} and 60 < (angles["corners"][:, 0] > 0).sum() < 140
    assert angles["alternating"][:3].tolist() == [[1.0, 2.0], [-1.0, 0.5], [1.0, 2.0]]
    assert np.unique(angles["zeros"], axis=0).tolist() == [[0.0, 0.5]]  # 0 is out of the second one's range
    assert kinds["zeros"][0]["time"].max() == 0.0
    assert angles["constant"][[0, 99, 100, 199]].tolist() == [[1.0, 2.0]] * 2 + [[-1.0, 0.5]] * 2
    assert np.flatnonzero(kinds["constant"][1]).tolist() == [0, 100]
    # in turns of 50 steps: time up, angles up, time down (which is 0), angles down
    alone, resets = kinds["one input"]
    assert alone["time"][[0, 50, 100, 150], 0].tolist() == [1000.0, 0.0, 0.0, 0.0]
    assert alone["joint_angles"][[0, 50, 100, 150]].tolist() == [[0.0, 0.5], [1.0, 2.0], [0.0, 0.5], [-1.0, 0.5]]
    assert np.flatnonzero(resets).tolist() == [0, 50, 100, 150]


def test_the_self_test_and_the_envelope_that_a_bundle_brings_along_are_proven_too(exported):
    spec = exported.bundle.spec
    home = np.float32(spec.robot.column("home_rad"))
    inputs = {a.name: np.zeros((1, *a.shape), np.float32) for a in spec.inputs} | {"joint_angles": home[None]}
    inputs["projected_gravity"][..., 2] = -9.81
    whole = np.ones(1, bool)
    recording = Recording(inputs=inputs, starts=whole, healthy=whole)

    def found(**changes):
        return proof.own_checks(dataclasses.replace(exported.bundle, spec=spec.replace(**changes)), recording)

    assert found() == found(self_test={}, envelope={}) == []
    wrong = {**spec.self_test, "actions": [[0.0] * 20 for _ in spec.self_test["actions"]]}
    assert found(self_test=wrong)[0].startswith("the bundle's own checks: self-test, step 0: target of ")
    far = {"joint_angles": {"low": [5.0] * 20, "high": [6.0] * 20}}
    (line,) = found(envelope=far)
    assert line.startswith("the bundle's own envelope refuses a start of training: joint_angles of dof_left_hip_pitch")
    assert found(envelope={"joint_angles": 3})[0].startswith("the bundle's own checks: envelope of input joint_angles")


def test_the_envelope_leaves_out_what_was_met_while_falling(trained):
    # 60 steps of 20 ms: the first second is 50; the second episode falls
    angles = np.zeros((60, 2, 20), np.float32)
    angles[10, 1], angles[55, 0], angles[55, 1], angles[5, 0] = 0.5, 0.7, 9.0, -0.2
    zero = np.zeros(2)
    run = Evaluation(
        episodes=2, seed=0, engine="mujoco", survived=np.array([True, False]), returns=zero, lengths_s=zero,
        drift_m=zero, tracking_m_s=zero, inputs={"joint_angles": angles}, alive=np.ones((60, 2), bool),
    )  # fmt: skip
    spec = trained.spec.replace(inputs=trained.spec.inputs[:1])
    found = proof.envelope_of(spec, validate.recording_of(spec, run))["joint_angles"]
    assert found["low"] == [-0.2] * 20 and found["high"] == [0.7] * 20


def test_a_value_that_is_not_finite_is_refused(trained):
    def step(inputs, carry):
        return inputs["joint_angles"], 1.0 / carry

    spec = trained.spec.replace(inputs=trained.spec.inputs[:1], carry_size=1, carry_layout=())
    bundle = convert(step, np.ones(1, np.float32), spec)
    inputs = {"joint_angles": np.full((5, 20), np.nan, np.float32)}
    with pytest.raises(ExportError, match="not finite at step 0"):
        difference(bundle, step, np.ones(1), inputs, np.zeros(5, bool))


def test_sequence_joins_episodes_to_their_ends_and_starts_anew_at_each(trained):
    # three steps of two episodes, of which the second falls after its first step
    zero = np.zeros(2)
    run = Evaluation(
        episodes=2, seed=0, engine="mujoco", survived=np.array([True, False]), returns=zero, lengths_s=zero,
        drift_m=zero, tracking_m_s=zero, inputs={"time": np.float32([[[10], [20]], [[11], [21]], [[12], [22]]])},
        alive=np.array([[True, True], [True, False], [True, False]]),
    )  # fmt: skip
    recording = validate.recording_of(trained.spec, run)
    assert [row["time"].tolist() for row in recording.first_rows()] == [[10], [20]] and recording.first_length == 3
    assert recording.healthy.tolist() == [True] * 4

    class Never:
        def random(self, steps):
            return np.ones(steps)

    line, starts = sequence(recording.inputs, recording.starts, 7, Never())
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


def test_the_initial_carry_is_what_init_fn_gives(bundle, trained):
    np.testing.assert_array_equal(initial_carry(bundle), np.asarray(trained.policy.init_carry()))


# The commands.


def test_the_export_command_prints_one_json_object_and_writes_the_same_bytes_again(
    exported, checkpoint_path, tmp_path, capfd
):
    out = tmp_path / "p.kinfer"
    assert export_main([str(checkpoint_path), "-o", str(out), *OPTIONS, "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    answer = json.loads(stdout)
    pages = [str(tmp_path / f"p.report.{kind}") for kind in ("json", "html")]
    assert answer["files"] == {"kinfer": str(out), "onnx": str(tmp_path / "p.onnx"), "report": pages}
    assert answer["error_max"] <= 1e-5 and answer["latency_us"]["p50"] > 0
    assert answer["digest"] == read_bundle(out).digest
    assert {name: told["fits"] for name, told in answer["targets"].items()} == dict.fromkeys(
        ("kos", "kinfer", "pyfirmware"), True
    )
    assert "tracing the policy to ONNX" in stderr
    assert out.read_bytes() == exported.kinfer.read_bytes()
    assert (tmp_path / "p.onnx").read_bytes() == exported.onnx.read_bytes()


def test_the_validate_command_prints_a_table_and_writes_its_report(exported, checkpoint_path, tmp_path, capsys):
    out = tmp_path / "reports"
    arguments = [str(exported.kinfer), "--checkpoint", str(checkpoint_path), *OPTIONS, "--out", str(out)]
    assert validate_main(arguments) == 0
    table = capsys.readouterr().out
    assert "Recorded inputs: 500 steps" in table and "1e-05" in table and "FAILS" not in table
    assert "3 episodes of each" in table and "not run (ksim validate --engines mujoco,mjx)" in table
    # a second validation proves the same, to the bit
    report = json.loads((out / "report.json").read_text())
    assert {k: report[k] for k in exported.bundle.spec.proofs} == exported.bundle.spec.proofs
    assert report["validated"] is True and report["digests"]["bundle"] == exported.bundle.digest


def test_validate_of_a_bundle_that_is_not_its_checkpoint_writes_the_report_and_fails(
    bundle, damage, checkpoint_path, tmp_path, capsys
):
    write_bundle(tmp_path / "bad.kinfer", damage(bundle, stale_carry))
    words = [str(tmp_path / "bad.kinfer"), "--checkpoint", str(checkpoint_path), *OPTIONS, "--out", str(tmp_path)]
    with pytest.raises(ExportError, match=r"drawn inputs, step .* \(and \d+ more\); the bundle is not the policy"):
        validate_main(words)
    assert "FAILS" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["validated"] is False and report["verdict"].startswith("Not proven: ")
    assert "Not proven" in (tmp_path / "report.html").read_text()


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
        validate_main([str(tmp_path / "policy.kinfer"), "--checkpoint", str(checkpoint_path)])


def test_a_member_that_is_not_onnx_is_refused(bundle, trained):
    for member in MEMBERS[:2]:
        name = member.removesuffix(".onnx")
        broken = dataclasses.replace(bundle, **{name: b"\x00\x01 not a graph"})
        with pytest.raises(ExportError, match=f"{name}: not an ONNX model"):
            validate.validate(broken, trained.policy, trained.config)
        report = validate.validate(broken, trained.policy, trained.config, keep_going=True)
        assert report.failures[0].startswith(f"{name}: not an ONNX model") and report.numbers is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"episodes": 0}, "episodes: got 0, expected 1 or more"),
        ({"mjx_episodes": -1}, "mjx_episodes: got -1"),
        ({"steps": 0}, "steps: got 0"),
        ({"engines": ("bullet",)}, "engines: got bullet, expected some of mujoco, mjx"),
        ({"engines": ()}, "engines: got none"),
    ],
)
def test_options_that_mean_nothing_are_refused(bundle, trained, options, match):
    with pytest.raises(ExportError, match=match):
        validate.validate(bundle, trained.policy, trained.config, **options)


def test_the_reference_does_not_depend_on_the_default_matmul_precision(bundle, trained):
    rows = drawn(bundle.spec.inputs, 20, np.random.default_rng(0))
    with jax.default_matmul_precision("bfloat16"):
        found = difference(bundle, trained.policy.step, trained.policy.init_carry(), rows, np.zeros(20, bool))
    assert found.error <= 1e-5
