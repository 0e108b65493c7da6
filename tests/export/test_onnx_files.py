"""Policies of other toolkits as ONNX files: what comes out is the file's policy, and what does not fit is told."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploy.bundle.preflight import prepare
from deploy.bundle.session import OnnxPolicy
from export import onnx_command
from export.command import main
from export.errors import ExportError
from export.onnx_command import export_file, make
from export.onnx_file import read_onnx
from export.onnx_metadata import read_metadata
from export.onnx_plan import make_plan
from export.onnx_spec import Action, Gains, History, OnnxSpec, Term
from robots.bundle import read_bundle, write_bundle
from robots.load import load_robot
from toolkit.settings import fields, from_dict, load
from toolkit.yaml_file import parse_yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_policy"
KBOT = load_robot("kbot")
HOME = dict(zip(KBOT.joint_names, KBOT.column("home_rad"), strict=True))
COMMANDS = {"xvel": [-0.5, 1.0], "yvel": [-0.3, 0.3], "yawrate": [-1.0, 1.0]}
TERMS = [
    {"input": "gyroscope", "scale": 0.25},
    "projected_gravity",
    "command",
    "joint_angles",
    {"input": "joint_angular_velocities", "scale": 0.05},
    "last_action",
]
PLAIN = {"commands": COMMANDS, "observation": TERMS, "action": {"scale": 0.25}}
SIZE = 3 + 3 + 3 + 20 + 20 + 20
HIDDEN = 8


def write_policy(path, size=SIZE, actions=20, *, rnn="", opset=17, dtype=np.float32, batch=1, layers=1, props=None):
    """A normaliser, perhaps an LSTM or GRU, and two layers; as torch's exporter makes them at that opset."""
    rng = np.random.default_rng(3)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def drawn(*shape):
        return (rng.normal(0.0, 1.0, shape) / shape[-1] ** 0.5).astype(dtype)

    constants = {"mean": 0.1 * drawn(size), "std": np.full(size, 1.5, dtype)}
    nodes = [
        helper.make_node("Sub", ["obs", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["x"]),
    ]
    inputs = [helper.make_tensor_value_info("obs", kind, [size] if batch is None else [batch, size])]
    outputs = [helper.make_tensor_value_info("actions", kind, [actions] if batch is None else [batch, actions])]
    latent, width = "x", size
    if rnn:
        gates, names = {"LSTM": (4, ["h", "c"]), "GRU": (3, ["h"])}[rnn]
        for name in names:
            inputs.append(helper.make_tensor_value_info(f"{name}_in", kind, [layers, batch, HIDDEN]))
            outputs.append(helper.make_tensor_value_info(f"{name}_out", kind, [layers, batch, HIDDEN]))
        modern = opset >= 13
        constants |= {"axis": np.asarray([0], np.int64)} if modern else {}

        def over(op, value, out):
            extra, how = (["axis"], {}) if modern else ([], {"axes": [0]})
            nodes.append(helper.make_node(op, [value, *extra], [out], **how))

        over("Unsqueeze", "x", "sequence")
        wide = size
        for i in range(layers):
            shapes = {"w": (1, gates * HIDDEN, wide), "r": (1, gates * HIDDEN, HIDDEN), "b": (1, 2 * gates * HIDDEN)}
            constants |= {f"{name}{i}": drawn(*shape) for name, shape in shapes.items()}
            first = []
            for name in names:
                if opset > 9:
                    constants |= {f"from{i}": np.asarray([i], np.int64), f"to{i}": np.asarray([i + 1], np.int64)}
                ends = (
                    ([f"from{i}", f"to{i}"], {}) if opset > 9 else ([], {"starts": [i], "ends": [i + 1], "axes": [0]})
                )
                nodes.append(helper.make_node("Slice", [f"{name}_in", *ends[0]], [f"{name}_in{i}"], **ends[1]))
                first.append(f"{name}_in{i}")
            out = [f"y{i}", *(f"{name}_out{i}" for name in names)]
            how = {"linear_before_reset": 1} if rnn == "GRU" else {}
            before = "sequence" if i == 0 else f"flat{i - 1}"
            weights = [before, f"w{i}", f"r{i}", f"b{i}", "", *first]
            nodes.append(helper.make_node(rnn, weights, out, hidden_size=HIDDEN, **how))
            constants["axis1"] = np.asarray([1], np.int64)
            if modern:
                nodes.append(helper.make_node("Squeeze", [f"y{i}", "axis1"], [f"flat{i}"]))
            else:
                nodes.append(helper.make_node("Squeeze", [f"y{i}"], [f"flat{i}"], axes=[1]))
            wide = HIDDEN
        if not modern:
            del constants["axis1"]
        for name in names:
            nodes.append(helper.make_node("Concat", [f"{name}_out{i}" for i in range(layers)], [f"{name}_out"], axis=0))
        over("Squeeze", f"flat{layers - 1}", "latent")
        latent, width = "latent", HIDDEN
    constants |= {"w_a": drawn(width, 16), "b_a": drawn(16), "w_b": drawn(16, actions)}
    nodes += [
        helper.make_node("MatMul", [latent, "w_a"], ["m"]),
        helper.make_node("Add", ["m", "b_a"], ["n"]),
        helper.make_node("Elu", ["n"], ["e"]),
        helper.make_node("MatMul", ["e", "w_b"], ["actions"]),
    ]
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "main", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", opset)]
    )
    model.ir_version = 10 if opset > 17 else 8
    helper.set_model_props(model, props or {})
    onnx.save(model, path)
    return path


def spec(**changes):
    return from_dict(OnnxSpec, {**PLAIN, **changes})


def rows_of(bundle, steps, seed=0):
    """Inputs of a robot about home, by name."""
    rng = np.random.default_rng(seed)
    out = {"joint_angles": np.asarray(KBOT.column("home_rad")) + rng.normal(0.0, 0.3, (steps, 20))}
    out["joint_angular_velocities"] = rng.normal(0.0, 2.0, (steps, 20))
    out["gyroscope"] = rng.normal(0.0, 0.5, (steps, 3))
    gravity = rng.normal(0.0, 0.2, (steps, 3)) + np.asarray([0.0, 0.0, -1.0])
    out["projected_gravity"] = 9.81 * gravity / np.linalg.norm(gravity, axis=1, keepdims=True)
    out["command"] = rng.uniform(-0.3, 0.3, (steps, len(bundle.command_names)))
    return {name: rows.astype(np.float32) for name, rows in out.items()}


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


def test_the_page_shows_every_key_and_its_description_is_one():
    page = (ROOT / "docs" / "policies_from_elsewhere.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    description = from_dict(OnnxSpec, parse_yaml(shown))
    assert set(parse_yaml(shown)) == set(description.to_dict())
    for cls in (Term, History, Action, Gains):
        missing = [name for name in fields(cls) if not re.search(rf"\b{name}\b", page)]
        assert missing == [], cls


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


LEGS = {"joints": list(KBOT.joint_names[:10])}
WRONG = {
    "one term less": ({"observation": TERMS[1:]}, "the terms give 66 values, obs of p.onnx takes 69: observation.0. "),
    "history": (
        {"history": {"length": 2}},
        r"give 138 values, obs of p.onnx takes 69: observation\[0\] gyroscope 6 \(3 x 2\)",
    ),
    "unknown joint": ({"joints": ["dof_left_hip_pich_04"]}, "did you mean dof_left_hip_pitch_04"),
    "twice": ({"joints": [KBOT.joint_names[0]] * 2}, "given twice"),
    "too few": (LEGS, r"actions has 20 values, the policy's joints are 10 .*action.joints"),
    "no commands": ({"commands": None}, "key commands: is missing"),
    "unknown command": ({"observation": [{"input": "command", "commands": ["xvl"]}]}, "did you mean xvel"),
    "no scale": ({"action": {}}, "key action.scale: is missing"),
    "scales": ({"action": {"scale": [1.0, 2.0]}}, "key action.scale: got 2 numbers, expected 1 or 20"),
    "by name": ({"action": {"scale": {"*_hip_*": 1.0}}}, "key action.scale: got none for dof_left_knee_04"),
    "no terms": ({"observation": None}, "key observation: is missing"),
    "cycle": ({"observation": [{"input": "phase", "period_s": 0.03}]}, "at least two control periods"),
    "pose": ({"default_pose": {"*": 0.0, "dof_left_knee_04": -1.0}}, "got twice"),
    "limits": ({"default_pose": [-1.0] * 20}, "within the limits"),
    "robot": ({"robot": "kbt"}, "kbt"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told_in_one_line(tmp_path, change, said):
    with pytest.raises(Exception, match=said) as caught:
        make(write_policy(tmp_path / "p.onnx"), spec(**change))
    assert "\n" not in str(caught.value)


WRONG_KEYS = {
    "unknown": ({"obsevation": TERMS}, "did you mean observation"),
    "of a term": ({"observation": [{"input": "gyroscope", "scle": 1}]}, r"did you mean observation\[0\].scale"),
    "input": ({"observation": ["gyrosope"]}, "did you mean gyroscope"),
    "their name": ({"observation": ["joint_pos_rel"]}, "got 'joint_pos_rel'; it is joint_angles here"),
    "velocity": ({"observation": ["base_lin_vel"]}, "no robot of ours measures it"),
    "bound": ({"history": {"length": 0}}, r"key history.length: got 0, expected 1 to 1000 \(steps\)"),
    "of another": ({"observation": [{"input": "gyroscope", "period_s": 1.0}]}, "period_s"),
    "no period": ({"observation": ["phase"]}, "period_s"),
}


@pytest.mark.parametrize(("change", "said"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_wrong_keys_name_the_nearest(change, said):
    with pytest.raises(ExportError, match=said):
        spec(**change)


def csv(values):
    return ",".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)


MJLAB = {
    "run_path": "user/project/run",
    "joint_names": csv(KBOT.joint_names),
    "joint_stiffness": csv(KBOT.column("kp")),
    "joint_damping": csv(KBOT.column("kd")),
    "default_joint_pos": csv(KBOT.column("home_rad")),
    "command_names": "twist",
    "observation_names": "base_ang_vel,projected_gravity,command,joint_pos,joint_vel,actions",
    "action_scale": csv([0.25] * 20),
}
SCALED = {
    "observation_terms_scale": "0.250,1.000,1.000,1.000,0.050,1.000",
    "observation_terms_history_length": "0.000,0.000,0.000,0.000,0.000,0.000",
    "observation_terms_clip": ",".join(["[-inf, inf]"] * 6),
    "observation_terms_flatten_history_dim": csv([True] * 6),
}


def plan_of(path, description):
    file = read_onnx(path)
    return make_plan(description, file, read_metadata(path, file.metadata))


def test_what_mjlab_writes_into_the_file_need_not_be_written_again(tmp_path):
    path = write_policy(tmp_path / "p.onnx", props=MJLAB | SCALED)
    plan = plan_of(path, from_dict(OnnxSpec, {"commands": COMMANDS}))
    assert [t.source for t in plan.terms] == [
        "gyroscope",
        *[t if isinstance(t, str) else t["input"] for t in TERMS[1:]],
    ]
    assert [t.scale[0] for t in plan.terms] == [0.25, 1.0, 1.0, 1.0, 0.05, 1.0]
    assert set(plan.scale) == {0.25}
    np.testing.assert_allclose(plan.offset, KBOT.column("home_rad"), atol=5e-4)
    assert any("default_joint_pos, which is rounded" in note for note in plan.notes)
    # exact numbers in the description win over rounded ones
    exact = plan_of(path, from_dict(OnnxSpec, {"commands": COMMANDS, "default_pose": HOME, "observation": TERMS}))
    np.testing.assert_array_equal(exact.offset, KBOT.column("home_rad"))


def test_histories_of_the_file_are_taken_term_by_term(tmp_path):
    props = MJLAB | SCALED | {"observation_terms_history_length": "3.000,0.000,0.000,0.000,0.000,2.000"}
    plan = plan_of(
        write_policy(tmp_path / "p.onnx", SIZE + 6 + 20, props=props), from_dict(OnnxSpec, {"commands": COMMANDS})
    )
    assert [t.size for t in plan.terms] == [9, 3, 3, 20, 20, 40]


OTHERWISE = {
    "joints": ({"joints": list(KBOT.joint_names[::-1])}, {}, "joint 0 is dof_left_wrist_00 in the spec, dof_left_hip"),
    "scale": ({"action": {"scale": 0.3}}, {}, "the spec says 0.3, the file's metadata action_scale 0.25"),
    "rounded away": ({"action": {"scale": 0.2508}}, {}, "the spec says 0.2508"),
    "pose": ({"default_pose": {**HOME, "dof_left_knee_04": 0.8}}, {}, "dof_left_knee_04: the spec says 0.8, .*0.873"),
    "gains": ({"gains": {"kp": 90.0}}, {}, "key gains.kp: .*: the spec says 90, the file's metadata joint_stiffness"),
    "terms": ({"observation": TERMS[::-1]}, {}, "the spec has last_action, .* expected the same order"),
    "term scale": ({"observation": ["gyroscope", *TERMS[1:]]}, SCALED, r"observation\[0\].scale: the spec says"),
    "scales of a term": (
        {"observation": [{"input": "gyroscope", "scale": [0.5] * 3}, *TERMS[1:]]},
        SCALED,
        r"\[0\].scale: .* \[0.25\]",
    ),
    "scale by joint": (
        {"observation": [*TERMS[:4], {"input": "joint_angular_velocities", "scale": {"*": 0.1}}, TERMS[5]]},
        SCALED,
        r"observation\[4\].scale: the spec says \[0.1\]",
    ),
    "clip of a term": (
        {},
        SCALED | {"observation_terms_clip": "[-5.0, 5.0]," + ",".join(["[-inf, inf]"] * 5)},
        r"observation\[0\].clip: the spec says \[-inf, inf\], .* \[-5.0, 5.0\]",
    ),
    "frames": (
        {"history": {"length": 3, "of": "frame"}},
        SCALED | {"observation_terms_history_length": ",".join(["3.000"] * 6)},
        "the spec says of: frame, .* 3 steps of this term alone",
    ),
    "unknown term": ({"observation": None}, {"observation_names": "height_scan"}, "height_scan is not one"),
    "damaged": ({}, {"joint_damping": "1.0,x"}, "metadata joint_damping: got 'x'"),
}


@pytest.mark.parametrize(("change", "props", "said"), OTHERWISE.values(), ids=OTHERWISE)
def test_where_description_and_file_differ_both_are_told(tmp_path, change, props, said):
    path = write_policy(tmp_path / "p.onnx", props=MJLAB | props)
    with pytest.raises(ExportError, match=said):
        plan_of(path, spec(**change))


def test_gains_of_training_go_into_the_bundle_under_a_robot_of_their_own(tmp_path):
    plan = plan_of(write_policy(tmp_path / "walk.onnx"), spec(gains={"kp": 80.0}))
    assert plan.spec.robot.column("kp") == [80.0] * 20 and plan.spec.robot.column("kd") == KBOT.column("kd")
    assert plan.spec.robot.name == "kbot_walk" and any("named kbot_walk" in note for note in plan.notes)


def broken(model, how):
    if how == "half":
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    if how == "time_step":
        model.graph.input.append(helper.make_tensor_value_info("time_step", TensorProto.FLOAT, [1, 1]))
    if how == "outputs":
        model.graph.output[0].name = "e"
        model.graph.output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, [1, 16]))
    if how == "batch":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    return model


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("half", "got float16, expected float32"),
        ("time_step", "inputs obs, time_step; expected one observation"),
        ("outputs", "outputs e, n; expected one named actions"),
        ("batch", r"got shape \[4, 69\], expected \[1, N\]"),
    ],
)
def test_files_that_are_no_such_policy_are_told_why(tmp_path, how, said):
    path = write_policy(tmp_path / "p.onnx")
    onnx.save(broken(onnx.load(path), how), path)
    with pytest.raises(ExportError, match=said):
        read_onnx(path)


def test_recurrent_names_that_do_not_tell_are_named_in_the_description(tmp_path):
    path = write_policy(tmp_path / "p.onnx", rnn="GRU")
    model = onnx.load(path)
    renamed = {"h_in": "hidden", "h_out": "hidden_next"}
    for node in model.graph.node:
        node.input[:], node.output[:] = ([renamed.get(n, n) for n in names] for names in (node.input, node.output))
    for value in (*model.graph.input, *model.graph.output):
        value.name = renamed.get(value.name, value.name)
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"states: \{hidden: hidden_next\}"):
        read_onnx(path)
    assert [s.output for s in read_onnx(path, {"hidden": "hidden_next"}).states] == ["hidden_next"]


def test_two_states_have_two_outputs(tmp_path):
    path = write_policy(tmp_path / "p.onnx", rnn="LSTM")
    with pytest.raises(ExportError, match="h_out is the next one of c_in, h_in; expected an output of its own"):
        read_onnx(path, {"c_in": "h_out"})


def test_all_that_is_wrong_with_a_description_is_told_at_once(tmp_path):
    wrong = {"commands": None, "action": {}, "observation": ["command", {"input": "gyroscope", "scale": [1.0, 2.0]}]}
    with pytest.raises(ExportError, match=r"key commands: .*observation\[1\].scale: .*key action.scale: is missing"):
        make(write_policy(tmp_path / "p.onnx"), spec(**wrong))


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


@pytest.mark.parametrize(
    ("head", "said"), [(b"PK\3\4", "is a zip"), (b"\x80\x02", "is a pickle"), (b"hello", "not an ONNX model")]
)
def test_a_file_that_is_no_onnx_is_told_what_it_is(tmp_path, head, said):
    (tmp_path / "p.onnx").write_bytes(head * 10)
    with pytest.raises(ExportError, match=said):
        read_onnx(tmp_path / "p.onnx")


def test_the_command_asks_for_a_description_and_never_writes_over_the_file(tmp_path):
    path = write_policy(tmp_path / "policy.onnx")
    before = path.read_bytes()
    with pytest.raises(ExportError, match="describe it with --spec"):
        main([str(path), "-o", str(tmp_path / "policy.kinfer")])
    (tmp_path / "spec.yaml").write_text(json.dumps(PLAIN))
    command = [str(path), "--spec", str(tmp_path / "spec.yaml"), "-o", str(tmp_path / "policy.kinfer")]
    assert main([*command, "--steps", "50"]) == 0
    assert path.read_bytes() == before and read_bundle(tmp_path / "policy.kinfer").spec.validated
    with pytest.raises(ExportError, match="for checkpoints alone"):
        main([*command, "--onnx-only"])
    with pytest.raises(ExportError, match="says itself what it is"):
        main(["model.ckpt", "--spec", str(tmp_path / "spec.yaml")])


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
