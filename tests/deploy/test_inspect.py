"""`ksim inspect`: the card says what the bundle says, and a comparison names each field that differs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.bundle.card import compare, flatten, graph_relation, make_card
from deploy.bundle.graph import read_graphs
from deploy.bundle.inspect import main
from ksim.cli import run_verb
from robots.bundle import Bundle, read_bundle, write_bundle
from robots.spec import CarrySpec

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "robots" / "kbot" / "policies" / "stand.kinfer"
EXTRA = {
    "training": {"seed": 7, "network": {"kind": "lstm", "hidden": [64, 32]}, "randomised": True},
    "proofs": {
        "error_max": 2.5e-7,
        "closed_loop": {"episodes": 200, "survival": 0.955},
        "growth": [1e-7] * 19 + [3e-7],
    },
    "envelope": {"joint_angles": {"low": [0.0], "high": [1.0]}},
    "self_test": {"inputs": {}, "actions": [[0.0], [0.1], [0.2]], "carry": [], "tolerance": 1e-4},
    "carry_layout": (CarrySpec(name="lstm0.h", shape=(1, 1)), CarrySpec(name="last_action", shape=(1,))),
}


def words(text: str) -> str:
    """The text with one blank between words."""
    return " ".join(text.split())


@pytest.fixture
def write(tmp_path, bundle: Bundle):
    """`write(name, **changes of the specification)`: the path of a small bundle."""

    def make(name: str, of: Bundle = bundle, **changes) -> Path:
        path = tmp_path / f"{name}.kinfer"
        spec = of.spec.replace(**changes) if of.spec is not None else None
        write_bundle(path, dataclasses.replace(of, spec=spec))
        return path

    return make


def printed(capsys, *argv: object) -> str:
    assert main([str(a) for a in argv]) in (0, 1)
    return capsys.readouterr().out


def test_the_card_of_the_shipped_policy_has_every_joint_with_its_numbers(capsys):
    out = printed(capsys, SHIPPED)
    assert max(map(len, out.splitlines())) <= 100 and out.isascii()
    bundle = read_bundle(SHIPPED)
    assert bundle.spec is not None
    for joint in bundle.spec.robot.joints:
        line = next(line for line in out.splitlines() if line.startswith(joint.name)).split()
        assert line[1:4] == [str(joint.id), f"{joint.kp:.4g}", f"{joint.kd:.4g}"]
        assert line[4] == f"{joint.torque_limit_nm:g}/{joint.torque_max_nm:g}"
        assert [float(v) for v in line[6:9]] == pytest.approx(
            [joint.lower_rad, joint.upper_rad, joint.home_rad], rel=1e-3, abs=1e-4
        )
        assert line[9] == joint.actuator_type
    for text in ("task kbot_stand", "runs here yes", "2 to 49 ms in training", "20 ms (50 Hz)"):
        assert text in words(out)
    for digest in (bundle.digest, bundle.spec.weights_digest, bundle.spec.robot.digest):
        assert digest in out
    assert "onnxruntime 1." in out and f"opset 17, IR {bundle.spec.proofs['graph']['ir_version']}" in out


def test_a_card_tells_inputs_commands_carry_training_proofs_and_self_test(capsys, write):
    out = printed(capsys, write("p", **EXTRA))
    rows = [line.split() for line in out.splitlines()]
    assert ["projected_gravity", "3", "m/s^2", "imu", "-9.82", "to", "9.82"] in rows
    assert ["lstm0.h", "1x1", "0", "to", "0"] in rows and ["last_action", "1", "1", "to", "1"] in rows
    assert ["self-test", "3", "steps"] in rows and ["envelope", "joint_angles"] in rows
    assert "network hidden 64, 32; kind lstm" in words(out) and "randomised yes; seed 7" in words(out)
    assert "closed_loop episodes 200; survival 0.955" in words(out)
    assert "growth 20 numbers, 1e-07 to 3e-07" in words(out)
    assert "proof validated (reduced: 0 steps in place of 10,000, and numbers alone, not run in simulation)" in words(
        out
    )


def test_proofs_of_ksim_export_are_a_line_each(capsys, write):
    errors = {"steps": 10000, "action_error": 2e-7, "carry_error": 3e-7, "of_limit": 0.03, "windows": [1e-7] * 20}
    survival = {"onnx": 0.95, "jax": 0.96, "low95": -0.02, "high95": 0.01}
    proofs = {
        "numbers": {"recorded": errors, "extreme": {"corners": errors}},
        "closed_loop": {"mjx": {"episodes": 50, "survival": survival}},
        "probes": [{"contract": "stale carry", "caught": 1, "different": 2, "example": "long " * 50}] * 2,
        "other": {"what": 7},
    }
    out = words(printed(capsys, write("p", proofs=proofs)))
    line = "10,000 steps: action 2e-07 rad, carry 3e-07; 3 % of the limit used"
    assert f"recorded {line}" in out and f"extreme corners {line}" in out
    assert "closed loop, mjx 50 episodes: survival 0.95 (checkpoint 0.96, -0.02 to 0.01)" in out
    assert "refused when wrong stale carry 2 of 4" in out and "long" not in out and "other what 7" in out
    # and what only looks like them is shown as it is
    out = words(printed(capsys, write("q", proofs={"numbers": [1, 2], "closed_loop": 3, "probes": "none"})))
    assert "closed_loop 3" in out and "probes none" in out


@pytest.mark.parametrize(
    ("proofs", "state", "text"),
    [
        ({"error_max": 1.0}, "validated", "validated"),
        (
            {"error_max": 1.0, "failures": ["survival 0.3, expected 0.5"]},
            "forced",
            "NOT validated: written with --force",
        ),
        ({}, "unvalidated", "NOT validated"),
    ],
)
def test_a_card_says_whether_it_was_validated_and_what_failed(capsys, write, proofs, state, text):
    path = write("p", proofs=proofs)
    assert make_card(path).state == state
    out = printed(capsys, path)
    assert text in words(out)
    if state == "forced":
        assert "failed survival 0.3, expected 0.5" in words(out)


def test_a_foreign_card_says_what_it_does_not_tell(capsys, robot, bundle_factory, write):
    foreign = bundle_factory(robot, used=("joint_angles", "quaternion", "initial_heading"), with_spec=False)
    path = write("foreign", of=foreign)
    out = printed(capsys, path)
    assert "not told whether it was validated: another exporter wrote it" in out
    assert "joints (ids, gains, limits, home: not told)" in out and ", ".join(foreign.joint_names) in " ".join(
        out.split()
    )
    rows = [line.split() for line in out.splitlines()]
    assert ["quaternion", "4", "not", "told", "not", "told", "not", "told"] in rows
    assert ["weights", "not", "told"] in rows and ["runs", "here", "yes"] in rows
    data = json.loads(printed(capsys, path, "--json"))
    assert data["spec"] is None and data["state"] == "unknown" and data["digests"]["weights"] == ""


def test_json_has_every_number_in_full(capsys, write):
    path = write("p", **EXTRA)
    spec = read_bundle(path).spec
    assert spec is not None
    data = json.loads(printed(capsys, path, "--json"))
    assert data["spec"]["robot"] == spec.robot.to_json() and data["spec"]["proofs"] == EXTRA["proofs"]
    assert data["self_test_steps"] == 3 and data["runs"] is True
    assert data["graphs"]["step_fn"]["operators"]["Slice"] == 1


def test_names_with_markup_are_printed_as_they_are(capsys, write):
    out = printed(capsys, write("p", task="[red]stand[/red]", training={"[bold]": ":smile:"}))
    assert "[red]stand[/red]" in out and "[bold] :smile:" in out


def test_the_same_policy_is_the_same_and_exits_with_0(capsys, write):
    a, b = write("a", **EXTRA), write("b", **EXTRA)
    assert main([str(a), str(b)]) == 0
    assert capsys.readouterr().out.strip() == "a.kinfer and b.kinfer are the same policy (the same file)"
    assert main([str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": str(a), "b": str(b), "same": True, "differences": []}


def test_each_field_that_differs_is_named_with_both_values(capsys, write, bundle):
    joints = bundle.spec.robot.joints
    changed = bundle.spec.robot.replace(joints=(joints[0].replace(kp=joints[0].kp + 1, home_rad=0.25), *joints[1:]))
    a = write("a", **EXTRA)
    none = {"envelope": {}, "self_test": {}}
    b = write("b", robot=changed, training={"seed": 8}, proofs={"error_max": 2.5e-7}, weights_digest="f" * 64, **none)
    assert main([str(a), str(b), "--json"]) == 1
    rows = {d["field"]: (d["a"], d["b"]) for d in json.loads(capsys.readouterr().out)["differences"]}
    name = joints[0].name
    assert rows[f"robot.joints.{name}.kp"] == (joints[0].kp, joints[0].kp + 1)
    assert rows[f"robot.joints.{name}.home_rad"] == (joints[0].home_rad, 0.25)
    assert rows["training.seed"] == (7, 8) and rows["training.network.kind"] == ("lstm", None)
    assert rows["proofs.closed_loop.episodes"] == (200, None)
    assert rows["weights_digest"][1] == "f" * 64
    assert rows["envelope"] == ("one", "none") and rows["self_test"] == ("one", "none")
    assert not any("step_fn" in field for field in rows)
    out = printed(capsys, a, b)
    assert "step_fn the same bytes in both" in words(out) and max(map(len, out.splitlines())) <= 100
    assert [f"robot.joints.{name}.kp", f"{joints[0].kp:.4g}", f"{joints[0].kp + 1:.4g}"] in [
        r.split() for r in out.splitlines()
    ]


def test_proofs_that_were_run_again_are_told_in_one_line(capsys, write):
    def proofs(scale, episodes):
        figures = {f"figure {i}": scale * i for i in range(1, 20)}
        loops = {"mujoco": {"episodes": episodes}}
        return {"failures": [], "numbers": {"recorded": {"steps": 10_000}}, "closed_loop": loops, "other": figures}

    a, b = write("a", proofs=proofs(1e-7, 200)), write("b", proofs=proofs(2e-7, 4))
    out = printed(capsys, a, b)
    assert "20 differences" in out and "proofs: 20 figures, listed by --json full 10,000 steps and 4 episodes" in words(
        out
    )
    assert "figure 7" not in out and len(out.splitlines()) < 12


def test_another_order_of_the_same_joints_is_told_as_such(write, bundle):
    names = bundle.joint_names[::-1]
    robot = bundle.spec.robot.replace(joints=bundle.spec.robot.joints[::-1])
    reverse = dataclasses.replace(bundle, joint_names=names, spec=bundle.spec.replace(robot=robot))
    found = compare(make_card(write("a")), make_card(write("b", of=reverse)))
    assert [(d.field, d.a) for d in found if "order" in d.field] == [
        ("joint_names: order", ", ".join(bundle.joint_names))
    ]
    assert not any("robot.joints" in d.field for d in found), "the same joints, by name"


def test_another_graph_with_the_same_promise_differs_by_digest_and_facts(write, robot, bundle_factory):
    a, b = (make_card(write(n, of=bundle_factory(robot, constant=c))) for n, c in (("a", 0.0), ("b", 0.1)))
    graph, test = compare(a, b)
    assert graph.field == "digests: step_fn (another graph)" and graph.a == a.digests["step_fn"] != graph.b
    assert test.field == "self_test"


def test_graphs_that_differ_in_notes_only_are_told_apart_from_other_graphs(bundle, robot, bundle_factory):
    import onnx

    model = onnx.load_model_from_string(bundle.step_fn)
    model.metadata_props.add(key="spec", value="x")
    model.producer_name = "another"
    notes = dataclasses.replace(bundle, step_fn=model.SerializeToString())
    one, other, another = (read_graphs(b)[1] for b in (bundle, notes, bundle_factory(robot, constant=0.1)))
    assert graph_relation(one, one) == "the same bytes"
    assert graph_relation(one, other) == "the same graph, other notes in it"
    assert graph_relation(one, another) == "another graph"


def test_a_graph_stamped_with_another_specification_is_told(write, bundle):
    import onnx

    def stamped(spec) -> Bundle:
        members = {}
        for what in ("init_fn", "step_fn"):
            model = onnx.load_model_from_string(getattr(bundle, what))
            model.metadata_props.add(key="ksim2real", value=json.dumps(spec.contract().to_json()))
            members[what] = model.SerializeToString()
        return dataclasses.replace(bundle, **members)

    assert make_card(write("none")).stamp == "none"
    assert make_card(write("same", of=stamped(bundle.spec))).stamp == "the same"
    assert make_card(write("other", of=stamped(bundle.spec.replace(task="other")))).stamp == "another"


def test_what_cannot_be_read_is_one_line_and_exit_1(tmp_path, capsys, write, robot, bundle_factory):
    (tmp_path / "text.kinfer").write_text("hello")
    bad = write("bad", of=dataclasses.replace(bundle_factory(robot), step_fn=b"garbage"))
    for argv in ([tmp_path / "none.kinfer"], [tmp_path / "text.kinfer"], [bad], [write("a"), bad]):
        assert run_verb("inspect", main, [str(a) for a in argv]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("ksim inspect: ") and err.count("\n") == 1


def test_flatten_names_leaves_and_keeps_lists_of_numbers_whole():
    value = {"a": {"b": 1, "c": [1, 2]}, "joints": [{"name": "x", "kp": 1}, {"name": "y", "kp": 2}], "d": {}, "e": []}
    assert flatten(value) == {"a.b": 1, "a.c": [1, 2], "joints.x.kp": 1, "joints.y.kp": 2, "d": {}, "e": []}


def test_it_runs_where_only_the_base_install_is():
    """No jax, no MuJoCo, no onnx: they are made impossible to import."""
    code = (
        "import sys\n"
        "for name in ('jax', 'mujoco', 'onnx', 'equinox', 'export', 'google.protobuf', 'rich'):\n"
        "    sys.modules[name] = None\n"
        f"from ksim.cli import main; sys.exit(main(['inspect', {str(SHIPPED)!r}]))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stand.kinfer\n") and done.stderr == ""
