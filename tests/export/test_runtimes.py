"""What deploy.bundle.targets says of kinfer 0.6.1 and pyfirmware is what they do: each file is given to them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle.card import make_card
from deploy.bundle.targets import Gap, Target, fits
from export.command import export_checkpoint
from export.command import main as export_main
from export.errors import ExportError
from ksim.cli import run_verb
from robots import Bundle, load_robot, read_bundle, write_bundle
from tests import kscale
from toolkit.files import shipped_policy

FAR = [2.1 if name == "dof_left_elbow_02" else angle for name, angle in zip(kscale.JOINTS, kscale.HOME, strict=True)]
STRANGE = [*kscale.JOINTS[:-1], "tail"]
# what differs from a file that fits both -> (fits kinfer 0.6.1, fits pyfirmware)
FILES = {
    "as published": ({}, True, True),
    "a flat carry": ({"carry": (6,)}, True, True),
    "three axes": ({"carry": (2, 3, 4)}, True, True),
    "no home": ({"joint_biases": ...}, True, True),
    "other keys": ({"kinfer_version": "1.0", "notes": {"a": [1]}}, True, True),
    "metadata first": ({"order": kscale.ORDER[::-1]}, True, False),
    "step first": ({"order": (kscale.ORDER[1], kscale.ORDER[0], kscale.ORDER[2])}, True, False),
    "a clock": ({"inputs": (*kscale.SIX, "time")}, True, False),
    "an accelerometer": ({"inputs": (*kscale.SIX, "accelerometer")}, True, False),
    "no command": ({"inputs": (*kscale.SIX[:4], "carry")}, True, False),
    "no carry": ({"inputs": kscale.SIX[:5]}, True, False),
    "before 0.6": ({"inputs": kscale.OLD, "command_names": ..., "num_commands": 6}, False, False),
    "numbered commands": ({"command_names": ..., "num_commands": 6}, False, False),
    "a heading": ({"inputs": (*kscale.SIX, "initial_heading")}, False, False),
    "a carry's size": ({"carry": (6,), "carry_size": 6}, False, True),
    "opset 21": ({"opset": 21, "ir_version": 10}, True, True),
    "opset 22": ({"opset": 22, "ir_version": 10}, False, True),
    "IR 11": ({"ir_version": 11}, False, True),
    "another joint": ({"joints": STRANGE}, True, False),
    "legs alone": ({"joints": kscale.LEGS, "joint_biases": kscale.HOME[10:]}, True, True),
    "no yawrate": ({"command_names": ["xvel", "yvel", "a", "b", "c", "d"]}, True, False),
    "older names": ({"command_names": ["vx", "vy", "yaw_rate"], "commands": 3}, True, False),
    "a far elbow": ({"joint_biases": FAR}, True, False),
    "home by name": ({"joint_biases": [["dof_left_knee_04", 0.9]]}, True, False),
    "home of others": ({"joint_biases": [0.1, 0.2]}, True, False),
}


@pytest.mark.parametrize("name", FILES)
def test_pyfirmware_starts_what_is_said_to_fit_it_and_nothing_else(name, tmp_path):
    how, _, expected = FILES[name]
    path = kscale.write(tmp_path / "p.kinfer", **how)
    assert fits(make_card(path).fits[Target.PYFIRMWARE]) is expected
    if expected:
        assert np.ptp(kscale.start_as_pyfirmware(path), axis=0).max() > 0
    else:
        with pytest.raises(Exception, match=r"."):
            kscale.start_as_pyfirmware(path)


def test_a_name_that_does_not_end_in_kinfer_is_none_for_pyfirmware(tmp_path):
    path = kscale.write(tmp_path / "p.tar.gz")
    (finding,) = make_card(path).fits[Target.PYFIRMWARE]
    assert finding.gap is Gap.FILE_NAME
    with pytest.raises(kscale.Refused):
        kscale.start_as_pyfirmware(path)


def test_kinfer_0_6_1_runs_what_is_said_to_fit_it_and_nothing_else(kinfer_python, tmp_path):
    paths = [kscale.write(tmp_path / f"{k}.kinfer", **how) for k, (how, _, _) in enumerate(FILES.values())]
    runner = [kinfer_python, Path(__file__).with_name("kinfer_loads.py"), *paths]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(runner, capture_output=True, text=True, env=clean, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    theirs = {name: said[str(path)] == "" for name, path in zip(FILES, paths, strict=True)}
    assert theirs == {name: expected for name, (_, expected, _) in FILES.items()}, said
    ours = {name: fits(make_card(p).fits[Target.KINFER]) for name, p in zip(FILES, paths, strict=True)}
    assert ours == theirs


def test_an_export_starts_in_pyfirmware_and_carries_its_home_pose(bundle: Bundle, tmp_path):
    path = tmp_path / "p.kinfer"
    write_bundle(path, bundle)
    home = load_robot("kbot").column("home_rad")
    with tarfile.open(path, "r:gz") as tar:
        assert tar.getnames() == list(kscale.ORDER)
        metadata = json.load(tar.extractfile("metadata.json"))
    assert metadata["joint_biases"] == home and read_bundle(path).joint_biases == tuple(home)
    actions = kscale.start_as_pyfirmware(path)
    assert actions.shape == (5, 20) and np.ptp(actions, axis=0).max() > 0
    found = make_card(path).fits
    assert all(fits(each) for each in found.values())
    assert {f.gap for f in found[Target.PYFIRMWARE]} == {Gap.GAINS}


@pytest.mark.parametrize("name", ["stand", "walk"])
def test_a_shipped_policy_starts_in_pyfirmware(name):
    path = shipped_policy(name, ".kinfer")
    assert read_bundle(path).joint_biases is not None
    assert np.ptp(kscale.start_as_pyfirmware(path), axis=0).max() > 0


def test_a_home_pose_that_is_not_the_specifications_is_refused(bundle: Bundle, tmp_path):
    with pytest.raises(Exception, match=r"joint_biases: got .*expected .* as in ksim2real"):
        write_bundle(tmp_path / "p.kinfer", dataclasses.replace(bundle, joint_biases=(0.1,) * 20))


@pytest.mark.parametrize(
    ("commands", "missing"), [(("xvel",), "yvel, yawrate"), (("xvel", "yvel", "baseheight"), "yawrate")]
)
def test_an_export_for_pyfirmware_without_its_commands_writes_nothing(untrained, commands, missing, tmp_path, capsys):
    checkpoint = untrained(*commands)
    said: list[str] = []
    with pytest.raises(ExportError, match=f"--target pyfirmware: .* no command {missing}, which its keyboard needs"):
        export_checkpoint(checkpoint, tmp_path / "p.kinfer", target=Target.PYFIRMWARE, log=said.append)
    assert said == ["tracing the policy to ONNX"], "before minutes of proofs"
    argv = [str(checkpoint), "-o", str(tmp_path / "p.kinfer"), "--target", "pyfirmware", "--force"]
    assert run_verb("export", export_main, argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("ksim export: --target pyfirmware: ")
    assert not list(tmp_path.iterdir())


def test_a_target_of_a_graph_alone_is_refused(tmp_path, capsys):
    argv = ["none.ckpt", "--onnx-only", "-o", str(tmp_path / "p.onnx"), "--target", "kinfer"]
    assert run_verb("export", export_main, argv) == 1
    assert "--target: got 'kinfer', expected all with --onnx-only" in capsys.readouterr().err
