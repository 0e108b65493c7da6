"""Descriptions of other toolkits' ONNX files: what the file itself says of it, and what is wrong in either is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.command import main
from export.errors import ExportError
from export.onnx_command import make
from export.onnx_file import read_onnx
from export.onnx_metadata import read_metadata
from export.onnx_plan import make_plan
from export.onnx_spec import Action, Gains, History, OnnxSpec, Term
from robots.bundle import read_bundle
from tests.export.onnx_policies import COMMANDS, KBOT, PLAIN, SIZE, TERMS, spec, write_policy
from toolkit.settings import fields, from_dict
from toolkit.yaml_file import parse_yaml

ROOT = Path(__file__).parents[2]
HOME = dict(zip(KBOT.joint_names, KBOT.column("home_rad"), strict=True))


def test_the_page_shows_every_key_and_its_description_is_one():
    page = (ROOT / "docs" / "policies_from_elsewhere.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    description = from_dict(OnnxSpec, parse_yaml(shown))
    assert set(parse_yaml(shown)) == set(description.to_dict())
    for cls in (Term, History, Action, Gains):
        missing = [name for name in fields(cls) if not re.search(rf"\b{name}\b", page)]
        assert missing == [], cls


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
