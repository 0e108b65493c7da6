"""Which runtimes a bundle fits, as ksim inspect says it of files that K-Scale's exporters wrote."""

from __future__ import annotations

import dataclasses
import json

import pytest

from deploy.bundle.card import compare, make_card
from deploy.bundle.inspect import main
from deploy.bundle.targets import Gap, Target, fits, pyfirmware_gains
from robots.bundle import read_bundle, write_bundle
from robots.load import load_robot
from tests import kscale
from toolkit.files import shipped_policy

KOS, KINFER, PYFIRMWARE = Target.KOS, Target.KINFER, Target.PYFIRMWARE


def found(path) -> dict[Target, dict[Gap, bool]]:
    """What keeps each runtime from the file, or is to be known, and which of both."""
    return {target: {f.gap: f.blocks for f in each} for target, each in make_card(path).fits.items()}


def test_a_file_as_k_scale_publishes_them_fits_all_three(tmp_path):
    path = kscale.write(tmp_path / "p.kinfer")
    assert found(path) == {KOS: {Gap.NO_ROBOT: False}, KINFER: {}, PYFIRMWARE: {}}


def test_a_file_from_before_kinfer_0_6_fits_ours_alone(tmp_path):
    old = kscale.write(tmp_path / "p.kinfer", inputs=kscale.OLD, command_names=..., num_commands=6)
    gaps = found(old)
    assert gaps[KOS] == {Gap.NO_ROBOT: False}
    assert gaps[KINFER] == {Gap.INPUT: True, Gap.COMMANDS_NOT_NAMED: True}
    assert gaps[PYFIRMWARE] == {Gap.NO_INPUT: True, Gap.INPUT: True, Gap.COMMANDS_NOT_NAMED: True}
    (finding,) = (f for f in make_card(old).fits[PYFIRMWARE] if f.gap is Gap.NO_INPUT)
    assert finding.got == ("projected_gravity", "gyroscope")


def test_the_shipped_policies_fit_and_where_pyfirmwares_gains_differ_is_told(capsys):
    for name in ("stand", "walk"):
        path = shipped_policy(name, ".kinfer")
        card = make_card(path)
        assert all(fits(each) for each in card.fits.values())
        (gains,) = (f for f in card.fits[PYFIRMWARE] if f.gap is Gap.GAINS)
        # field figures: shoulder yaw 100/2.945, left elbow 80/2.266, right elbow 100/2.266; trained 40/0.945, 40/1.266
        assert gains.expected == {
            "dof_left_shoulder_yaw_02": (100.0, 2.945), "dof_right_shoulder_yaw_02": (100.0, 2.945),
            "dof_left_elbow_02": (80.0, 2.266), "dof_right_elbow_02": (100.0, 2.266),
        }  # fmt: skip
        assert gains.got["dof_left_elbow_02"] == (40.0, 1.266) and not gains.blocks
        assert main([str(path)]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "kinfer 0.6.1 fits" in out and "pyfirmware (2025-10-23) fits" in out and "80/2.266" in out


def test_every_joint_of_the_k_bot_has_gains_of_pyfirmware():
    assert set(load_robot("kbot").joint_names) <= set(pyfirmware_gains())


def test_gains_as_pyfirmware_has_them_are_no_warning(tmp_path):
    bundle = read_bundle(shipped_policy("walk", ".kinfer"))
    spec = bundle.spec
    assert spec is not None
    joints = tuple(
        j.replace(kp=pyfirmware_gains()[j.name][0], kd=pyfirmware_gains()[j.name][1]) for j in spec.robot.joints
    )
    same = spec.replace(robot=spec.robot.replace(joints=joints))
    write_bundle(tmp_path / "p.kinfer", dataclasses.replace(bundle, spec=same))
    gaps = found(tmp_path / "p.kinfer")
    assert Gap.GAINS not in gaps[PYFIRMWARE]
    assert gaps[KOS] == {Gap.CHANGED: True}  # the graphs carry the specification of the export


def test_another_control_period_than_50_hz_does_not_fit_pyfirmware(tmp_path):
    bundle = read_bundle(shipped_policy("walk", ".kinfer"))
    assert bundle.spec is not None
    write_bundle(tmp_path / "p.kinfer", dataclasses.replace(bundle, spec=bundle.spec.replace(control_period_s=0.01)))
    assert found(tmp_path / "p.kinfer")[PYFIRMWARE][Gap.PERIOD]


def test_a_command_that_nothing_there_can_set_is_told(tmp_path):
    names = [*kscale.COMMANDS[:5], "jump"]
    path = kscale.write(tmp_path / "p.kinfer", command_names=names)
    assert found(path)[PYFIRMWARE] == {Gap.COMMAND: False}
    names = ["xvel", "yvel", "yawrate", "relbowpitch", "lwristroll", "baseroll"]
    assert found(kscale.write(tmp_path / "q.kinfer", command_names=names))[PYFIRMWARE] == {}


def test_inspect_says_it_in_words_and_in_json(tmp_path, capsys):
    path = kscale.write(tmp_path / "p.kinfer", order=kscale.ORDER[::-1], joint_biases=...)
    assert main([str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "kos (ksim run) fits warning: it tells no ids, gains and limits: ksim run needs --robot" in out
    order = "the archive holds metadata.json, step_fn.onnx, init_fn.onnx, expected init_fn.onnx, step_fn.onnx"
    assert f"pyfirmware (2025-10-23) does NOT fit: {order}" in out and "warning: no joint_biases" in out
    assert "carry: 256 numbers, an array of 2x128" in out
    assert main([str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    told = data["targets"]["pyfirmware"]
    assert not told["fits"] and data["targets"]["kinfer"] == {"fits": True, "findings": []}
    assert [(f["gap"], f["blocks"]) for f in told["findings"]] == [("members", True), ("no_home", False)]
    assert data["carry_shape"] == [2, 128] and data["members"] == list(kscale.ORDER[::-1])


def test_a_home_pose_of_anothers_file_is_shown(tmp_path, capsys):
    assert main([str(kscale.write(tmp_path / "p.kinfer"))]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dof_left_knee_04", "0.8727"] in rows and ["dof_right_elbow_02", "1.571"] in rows


def test_files_that_differ_in_home_pose_or_shape_of_the_carry_alone_are_not_the_same(tmp_path):
    one = kscale.write(tmp_path / "a.kinfer")
    other = kscale.write(tmp_path / "b.kinfer", joint_biases=...)
    assert [(d.field, d.b) for d in compare(make_card(one), make_card(other))] == [("joint_biases", None)]
    flat = kscale.write(tmp_path / "c.kinfer", carry=(256,))
    assert ("carry_size", (2, 128), (256,)) in [(d.field, d.a, d.b) for d in compare(make_card(one), make_card(flat))]
    packed = kscale.write(tmp_path / "d.kinfer", order=kscale.ORDER[::-1])
    assert compare(make_card(one), make_card(packed)) == []


@pytest.mark.parametrize("biases", [[["dof_left_knee_04", 0.1]], {"a": 1.0}, [0.1, 0.2], "home"])
def test_other_things_under_joint_biases_do_not_keep_ksim_from_the_file(tmp_path, biases):
    path = kscale.write(tmp_path / "p.kinfer", joint_biases=biases)
    assert read_bundle(path).joint_biases is None and make_card(path).runs == ""
    assert found(path)[PYFIRMWARE] == {Gap.HOME: True}
