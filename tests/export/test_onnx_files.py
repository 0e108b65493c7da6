"""Policies of other toolkits as ONNX files: what comes out is the file's policy, and its recording proves it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from deploy.bundle.preflight import prepare
from deploy.bundle.session import OnnxPolicy
from export import onnx_command
from export.errors import ExportError
from export.onnx_command import export_file, make
from export.onnx_file import read_onnx
from export.onnx_spec import OnnxSpec
from robots.bundle import write_bundle
from tests.export.onnx_policies import HIDDEN, KBOT, SIZE, TERMS, rows_of, spec, write_policy
from toolkit.settings import from_dict, load

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_policy"
FILES = {
    "as mjlab writes it": {},
    "opset 9": {"opset": 9},
    "opset 11, as Isaac Lab writes it, LSTM": {"opset": 11, "rnn": "LSTM"},
    "opset 18, LSTM of two layers": {"opset": 18, "rnn": "LSTM", "layers": 2},
    "opset 20": {"opset": 20},
    "opset 17, GRU": {"rnn": "GRU"},
    "opset 9, GRU of two layers": {"opset": 9, "rnn": "GRU", "layers": 2},
    "open batch axis": {"batch": "batch"},
    "open batch axis, LSTM": {"batch": "batch", "rnn": "LSTM"},
    "no batch axis": {"batch": None},
    "float64": {"dtype": np.float64},
    "float64, LSTM": {"dtype": np.float64, "rnn": "LSTM"},
}


@pytest.mark.parametrize("how", FILES.values(), ids=FILES)
def test_every_kind_of_file_gives_the_targets_that_a_hand_written_loop_gives(tmp_path, how):
    path = write_policy(tmp_path / "theirs.onnx", **how)
    bundle, dtype = make(path, spec())[-1], how.get("dtype", np.float32)
    session = onnxruntime.InferenceSession(path) if dtype == np.float32 else ReferenceEvaluator(str(path))
    rows, policy = rows_of(bundle, 200), OnnxPolicy(bundle)
    shape = (SIZE,) if how.get("batch", 1) is None else (1, SIZE)
    names = [i.name for i in onnx.load(path).graph.input][1:]
    home = np.asarray(KBOT.column("home_rad"))
    for t in range(200):
        if t % 37 == 0:
            policy.reset()
            last = np.zeros(20)
            states = {name: np.zeros((how.get("layers", 1), 1, HIDDEN), dtype) for name in names}
        r = {name: values[t].astype(np.float64) for name, values in rows.items()}
        obs = np.concatenate([
            0.25 * r["gyroscope"], r["projected_gravity"] / 9.81, r["command"], r["joint_angles"] - home,
            0.05 * r["joint_angular_velocities"], last,
        ])  # fmt: skip
        out, *after = session.run(None, {"obs": obs.reshape(shape).astype(dtype), **states})
        states, last = dict(zip(names, after, strict=True)), out.reshape(-1).astype(np.float64)
        np.testing.assert_allclose(
            policy.step({name: rows[name][t] for name in policy.inputs}), 0.25 * last + home, atol=1e-5
        )


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
@pytest.mark.parametrize("fill", ["first", "zeros"])
@pytest.mark.parametrize("of", ["terms", "frame"])
def test_history_phase_clip_order_and_constants_are_those_of_a_hand_written_loop(tmp_path, order, fill, of):
    legs = [n for n in KBOT.joint_names if "hip" in n or "knee" in n][::-1]
    terms = [
        {"input": "projected_gravity", "unit": "m/s^2", "scale": 0.1, "offset": [0.0, 0.0, -9.81]},
        {"input": "joint_angles", "joints": legs, "offset": 0.1, "clip": [-0.5, 0.5], "scale": 2.0},
        {"input": "command", "commands": ["yawrate", "xvel"], "scale": [2.0, 0.5]},
        {"input": "phase", "period_s": 0.65, "starts": [0.0, 0.5], "form": ["phase", "sin", "cos"]},
        {"input": "constant", "value": [0.7, -0.2]},
        "last_action",
    ]
    length, frame = 3, 3 + 8 + 2 + 6 + 2 + 8
    description = spec(
        observation=terms, clip=1.5, history={"length": length, "order": order, "fill": fill, "of": of},
        default_pose={"dof_left_knee_*": 0.5, "dof_right_knee_*": -0.5, "*_hip_*": 0.05}, joints=legs,
        action={"scale": {"*_hip_*": 0.3, "*_knee_*": 0.1}, "clip": [-0.4, 0.4], "clip_target": "joint_limits"},
    )  # fmt: skip
    path = write_policy(tmp_path / "theirs.onnx", length * frame, 8)
    bundle = make(path, description)[-1]
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    at = [KBOT.joint_names.index(name) for name in legs]
    home = np.asarray(KBOT.column("home_rad"))
    home[at] = [0.05 if "hip" in n else 0.5 if "left" in n else -0.5 for n in legs]
    assert bundle.spec.robot.column("home_rad") == home.tolist()
    scale = np.asarray([0.3 if "hip" in n else 0.1 for n in legs])
    rows, policy = rows_of(bundle, 150), OnnxPolicy(bundle)
    for t in range(150):
        if t % 61 == 0:
            policy.reset()
            start, past, last = t, [], np.zeros(8)
        r = {name: values[t].astype(np.float64) for name, values in rows.items()}
        share = ((t - start) * 0.02 / 0.65 + np.asarray([0.0, 0.5])) % 1.0
        now = [
            0.1 * (r["projected_gravity"] + [0.0, 0.0, 9.81]),
            2.0 * np.clip(r["joint_angles"][at] - 0.1, -0.5, 0.5),
            np.asarray([2.0 * r["command"][2], 0.5 * r["command"][0]]),
            np.concatenate([share, np.sin(2 * np.pi * share), np.cos(2 * np.pi * share)]),
            np.asarray([0.7, -0.2]),
            last,
        ]
        now = [np.concatenate(now)] if of == "frame" else now
        past = past or [[v if fill == "first" else np.zeros_like(v) for v in now]] * length
        past = [*past[1:], now]
        ordered = past if order == "oldest_first" else past[::-1]
        obs = np.concatenate([np.concatenate([step[i] for step in ordered]) for i in range(len(now))])
        obs = np.clip(obs, -1.5, 1.5).astype(np.float32)
        last = np.clip(session.run(None, {"obs": obs[None]})[0][0], -0.4, 0.4).astype(np.float64)
        target = home.copy()
        target[at] += scale * last
        target = np.clip(target, KBOT.column("lower_rad"), KBOT.column("upper_rad"))
        np.testing.assert_allclose(policy.step({name: rows[name][t] for name in policy.inputs}), target, atol=1e-5)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example, as its docstring says: files of a stand-in for another toolkit, and the command's output."""
    folder = tmp_path_factory.mktemp("example")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    commands = (
        ["examples/onnx_policy/make_policy.py", "--out", folder],
        [
            *("-m", "ksim.cli", "export", folder / "theirs.onnx", "--spec", EXAMPLE / "spec.yaml"),
            *("--recorded", folder / "recorded.npz", "-o", folder / "policy.kinfer", "--steps", "300", "--json"),
        ],
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout)


def test_the_example_is_proven_on_its_own_recording(example):
    folder, told = example
    assert told["failures"] == [] and told["recorded_pairs"]["obs_error"] < 1e-5
    assert told["recorded_pairs"]["action_error"] < 1e-5 and told["numbers"]["recorded"]["action_error"] < 1e-5
    assert "they are held at the default pose" in " ".join(told["notes"])
    warnings = prepare(folder / "policy.kinfer", "kbot", {"xvel": 0.3}).warnings
    assert len(warnings) == 1 and "reduced" in warnings[0]  # there is an envelope: of the recording
    # the file that lies beside the bundle is the user's own
    assert read_onnx(folder / "theirs.onnx").size == 49


def test_the_bundle_is_one_that_pyfirmware_loads(example):
    path = example[0] / "policy.kinfer"
    with tarfile.open(path, "r:gz") as tar:
        assert tar.getnames() == ["init_fn.onnx", "step_fn.onnx", "metadata.json"]
        parts = {name: tar.extractfile(name).read() for name in tar.getnames()}
    init, step = (onnxruntime.InferenceSession(parts[f"{n}_fn.onnx"]) for n in ("init", "step"))
    wanted = {"joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "command", "carry"}
    assert {i.name for i in step.get_inputs()} == wanted
    action, carry = step.run(None, {i.name: np.zeros(i.shape, np.float32) for i in step.get_inputs()})
    assert action.shape == (20,) and carry.shape == init.run(None, {})[0].shape
    assert json.loads(parts["metadata.json"])["joint_names"] == list(KBOT.joint_names)


def test_inputs_that_the_policy_does_not_read_are_declared_and_change_nothing(tmp_path):
    bundle = make(write_policy(tmp_path / "p.onnx", 3), spec(observation=["gyroscope"]))[-1]
    policy, rows = OnnxPolicy(bundle), rows_of(bundle, 2)
    assert len(policy.inputs) == 5
    first = {name: values[0] for name, values in rows.items()}
    same = policy.step(first)
    np.testing.assert_array_equal(policy.step(first | {"joint_angles": rows["joint_angles"][1]}), same)
    assert np.abs(policy.step(first | {"gyroscope": rows["gyroscope"][1]}) - same).max() > 1e-3


def test_ksim_run_drives_the_twin_with_it(example, tmp_path):
    pytest.importorskip("mujoco")
    from deploy.control.run import RunOptions, run
    from deploy.log.recorder import read_log
    from deploy.twin.server import spawn_twin

    log = tmp_path / "run.mcap"
    with spawn_twin("kbot", lockstep=True) as twin:
        options = RunOptions(
            bundle=example[0] / "policy.kinfer", robot="kbot", port=twin.port, duration_s=0.3, step_lock=True, log=log,
            tilt_max_rad=3.1, on_fault="damp",
        )  # fmt: skip
        report = run(options)
    assert report.ended == "completed", report.message
    assert read_log(log).run.sum() >= 15


def changed(tmp_path, example, **arrays):
    """The example's recording with some arrays in place of its own."""
    with np.load(example[0] / "recorded.npz") as data:
        np.savez(tmp_path / "r.npz", **{**{k: data[k] for k in data.files}, **arrays})
    return tmp_path / "r.npz"


def recorded(example, name):
    with np.load(example[0] / "recorded.npz") as data:
        return data[name].copy()


def with_swapped_history(obs):
    obs[:, :9] = obs[:, [6, 7, 8, 3, 4, 5, 0, 1, 2]]
    return obs


WRONG_RECORDINGS = {
    "other actions": ({"actions": lambda a: a + 0.01}, r"recorded actions, step 0, value \d: got "),
    "the newest first": (
        {"obs": with_swapped_history},
        r"recorded obs, step 1, value \d: .*observation\[0\] gyroscope",
    ),
    "no starts": ({"starts": lambda s: np.arange(len(s)) == 0}, r"recorded obs, step 100, .*starts"),
    "an action late": ({"obs": lambda o: np.roll(o, 1, 0)}, "recorded"),
    "too short": ({"obs": lambda o: o[:, 1:]}, r"obs: got shape \[2000, 48\] float32, expected \[2000, 49\]"),
}


@pytest.mark.parametrize(("change", "said"), WRONG_RECORDINGS.values(), ids=WRONG_RECORDINGS)
def test_a_recording_that_is_not_of_this_policy_is_refused(example, tmp_path, change, said):
    path = changed(tmp_path, example, **{name: f(recorded(example, name)) for name, f in change.items()})
    description = load(OnnxSpec, EXAMPLE / "spec.yaml")
    with pytest.raises(ExportError, match=said):
        export_file(example[0] / "theirs.onnx", description, recorded=path, steps=50)


def test_recorded_inputs_tell_a_wrong_order_of_joints(example, tmp_path):
    obs, order = recorded(example, "obs"), load(OnnxSpec, EXAMPLE / "spec.yaml").joints
    angles = np.tile(np.asarray(KBOT.column("home_rad")), (len(obs), 1))
    angles[:, [KBOT.joint_names.index(name) for name in order]] += obs[:, 15:25]
    description = load(OnnxSpec, EXAMPLE / "spec.yaml")
    path = changed(tmp_path, example, joint_angles=angles)
    done = export_file(example[0] / "theirs.onnx", description, recorded=path, steps=50)
    assert done.recorded["obs_error"] < 1e-5
    other = dataclasses.replace(description, joints=(order[2], order[1], order[0], *order[3:]))
    with pytest.raises(ExportError, match=r"recorded obs, step 0, .*observation\[3\] joint_angles"):
        export_file(example[0] / "theirs.onnx", other, recorded=path, steps=50)


def test_a_description_that_is_not_what_was_recorded_is_refused(example):
    whole = load(OnnxSpec, EXAMPLE / "spec.yaml").to_dict()
    whole["observation"][1]["unit"] = "m/s^2"
    with pytest.raises(ExportError, match=r"vectors of length 1, expected about 9\.81"):
        export_file(
            example[0] / "theirs.onnx", from_dict(OnnxSpec, whole), recorded=example[0] / "recorded.npz", steps=50
        )


def test_a_graph_that_is_not_the_file_is_refused(tmp_path, monkeypatch):
    compose = onnx_command.compose
    off = lambda plan, file: compose(dataclasses.replace(plan, offset=plan.offset + 1e-4), file)  # noqa: E731
    monkeypatch.setattr(onnx_command, "compose", off)
    with pytest.raises(ExportError, match=r"drawn inputs.*the bundle is not the policy"):
        export_file(write_policy(tmp_path / "p.onnx"), spec(), steps=50)


def changed_file(path, change):
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def test_axes_of_one_before_the_values_are_none_and_open_values_are_told(tmp_path):
    def three(graph):
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.shape.dim.insert(0, value.type.tensor_type.shape.dim[0])

    file, *_ = make(changed_file(write_policy(tmp_path / "p.onnx"), three), spec())
    assert file.obs_shape == (1, 1, SIZE) and file.count == 20

    def open_values(graph):
        graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"

    with pytest.raises(ExportError, match=r"how many values it takes is left open; .* no axis open but the batch"):
        read_onnx(changed_file(write_policy(tmp_path / "q.onnx"), open_values))


def test_float64_inside_a_float32_policy_is_compared_with_the_file(tmp_path):
    def inside(graph):
        (last,) = [node for node in graph.node if "actions" in node.output]
        last.output[0] = "single"
        graph.node.append(helper.make_node("Cast", ["single"], ["double"], to=onnx.TensorProto.DOUBLE))
        graph.node.append(helper.make_node("Tanh", ["double"], ["tanh"]))
        graph.node.append(helper.make_node("Cast", ["tanh"], ["actions"], to=onnx.TensorProto.FLOAT))

    done = export_file(changed_file(write_policy(tmp_path / "p.onnx"), inside), spec(), steps=200)
    assert not done.report.failures and any("float64" in note for note in done.notes)


def test_the_same_file_and_description_give_the_same_bytes(tmp_path):
    path = write_policy(tmp_path / "p.onnx", rnn="LSTM")
    for name in "ab":
        write_bundle(tmp_path / f"{name}.kinfer", make(path, spec())[-1])
    assert (tmp_path / "a.kinfer").read_bytes() == (tmp_path / "b.kinfer").read_bytes()


def test_the_example_says_itself_what_it_gives():
    made = importlib.util.spec_from_file_location("make_policy", EXAMPLE / "make_policy.py")
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    assert module.SIZE == 49 and list(load(OnnxSpec, EXAMPLE / "spec.yaml").joints) == module.LEGS


def test_the_reference_goes_on_from_any_carry(tmp_path):
    terms = [*TERMS, {"input": "phase", "period_s": 0.7, "starts": [0.0, 0.5]}, {"input": "phase", "period_s": 0.9}]
    described = spec(observation=terms[1:], history={"length": 3, "of": "frame"})
    path = write_policy(tmp_path / "p.onnx", 3 * (SIZE - 3 + 4 + 2), rnn="LSTM")
    _, _, reference, bundle = make(path, described)
    rows, resets = rows_of(bundle, 80), np.arange(80) % 50 == 0
    truth = reference.run(rows, resets)
    # as in one go, so that what a nudge moves is all that differs
    actions, carries = reference._steps(rows, truth.before)
    np.testing.assert_array_equal(actions, truth.actions)
    np.testing.assert_array_equal(carries, truth.carries)
    action, carry = reference.moved(rows, truth.before)
    assert action.shape == truth.actions.shape and carry.shape == truth.carries.shape
    assert 0 < action.max() < 1e-4 and 0 < carry.max() < 1e-3
