"""The twin in a calibration: its joints are what was found, all else is nominal, another robot's is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import yaml

pytest.importorskip("mujoco")

from deploy.parity import command as parity
from deploy.sysid.calibration import CalibrationError, Estimate
from deploy.sysid.excite import ExciteOptions, excite
from deploy.twin.calibrated import read_reality, reality_of
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality, load_reality, parse_reality
from deploy.twin.server import spawn_twin
from robots.load import load_robot
from tests.calibrations import KNEE, WRIST, calibration, calibration_file, known

ROBOT = load_robot("kbot")
KNEE_AT, WRIST_AT = (ROBOT.joint_names.index(name) for name in (KNEE, WRIST))


def stiff(plant: Plant) -> Plant:
    for i, joint in enumerate(ROBOT.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    return plant


def test_a_plant_in_a_calibration_has_what_was_found_of_the_joint(tmp_path):
    plant = stiff(Plant("kbot", read_reality(calibration_file(tmp_path), "kbot"), start="hang"))
    law, at = plant.params, KNEE_AT
    found = {name: float(np.broadcast_to(value, 20)[at]) for name, value in law._asdict().items()}
    expected = {"kp": 120.0, "kd": 7.0, "torque_limit": 70.0, "velocity_max": 15.0, "friction": 0.5, "damping": 0.0}
    expected |= {"armature": 0.05, "stiction": 0.4, "play": 0.02, "compliance": 0.01}
    expected |= {"load_friction": 0.1}
    assert found == pytest.approx(expected)
    assert plant.offset[at] == 0.05 and plant.reality.commands.latency_s == 0.02
    assert plant.model.dof_armature[plant.built.dof_ids[at]] == pytest.approx(0.05)
    described = Plant("kbot", Reality(), start="hang").model
    links = plant.model.dof_bodyid[plant.built.dof_ids]
    ratio = plant.model.body_mass[links] / described.body_mass[links]
    assert ratio[at] == pytest.approx(1.25) and np.delete(ratio, at) == pytest.approx(1.0)
    turn = plant.model.body_inertia[links[at]] / described.body_inertia[links[at]]
    assert turn == pytest.approx([1.25] * 3)


def test_what_is_not_known_stays_nominal(tmp_path):
    plant = stiff(Plant("kbot", read_reality(calibration_file(tmp_path), "kbot"), start="hang"))
    joint = ROBOT.joints[WRIST_AT]
    assert plant.params.kp[WRIST_AT] == pytest.approx(joint.kp) and plant.params.kd[WRIST_AT] == pytest.approx(joint.kd)
    assert plant.offset[WRIST_AT] == 0.0
    other = calibration(one_clock=True)
    assert reality_of(other, ROBOT).commands.latency_s == 0.0


def test_a_joint_that_cannot_be_nominal_is_as_it_was_found_though_no_figure_of_it_is_told_well():
    found = calibration()
    nominal = ROBOT.joints[WRIST_AT]
    vague = Estimate(value=0.1 * nominal.kp, low=0.01 * nominal.kp, high=0.5 * nominal.kp)
    wrist = dataclasses.replace(found.joints[nominal.name], kp=vague)
    reality = reality_of(dataclasses.replace(found, joints=found.joints | {nominal.name: wrist}), ROBOT)
    assert reality.joints.kp_scale[nominal.name] == pytest.approx(0.1)
    assert reality.joints.kd_scale[nominal.name] == pytest.approx(9.0 / nominal.kd)


def test_a_search_that_had_not_come_to_its_end_is_told(tmp_path, capsys):
    path = calibration_file(tmp_path)
    read_reality(path, "kbot")
    assert capsys.readouterr().err == ""
    path.write_text(path.read_text().replace("converged: true", "converged: false"))
    read_reality(path, "kbot")
    assert "warning: its search had not come to its end; go on with ksim sysid --begin" in capsys.readouterr().err


def test_viscous_friction_that_is_in_kd_is_taken_from_the_nominal_one():
    joint = dataclasses.replace(ROBOT.joints[KNEE_AT], damping=0.3)
    joints = tuple(joint if j.name == KNEE else j for j in ROBOT.joints)
    reality = reality_of(calibration(), ROBOT.replace(joints=joints))
    assert reality.joints.damping_add[KNEE] == pytest.approx(-0.3)


def test_armature_and_no_load_speed_scale_in_a_reality_file():
    plant = Plant("kbot", parse_reality({"joints": {"armature_scale": {KNEE: 2.0}, "velocity_scale": 0.5}}))
    nominal = Plant("kbot", Reality())
    ratio = plant.model.dof_armature[plant.built.dof_ids] / nominal.model.dof_armature[nominal.built.dof_ids]
    assert ratio[KNEE_AT] == pytest.approx(2.0) and np.delete(ratio, KNEE_AT) == pytest.approx(1.0)
    assert np.asarray(plant.params.armature) / nominal.params.armature == pytest.approx(ratio)
    assert np.asarray(plant.params.velocity_max) / nominal.params.velocity_max == pytest.approx(0.5)


def test_a_calibration_of_another_robot_or_description_is_refused_with_one_line(tmp_path):
    path = calibration_file(tmp_path)
    with pytest.raises(CalibrationError, match=r"it is of robot kbot, expected so101; name that robot's own$"):
        read_reality(path, "so101")
    with pytest.raises(CalibrationError, match=r"of a description 0123456789ab of kbot, expected [0-9a-f]{12}; make"):
        read_reality(calibration_file(tmp_path, model="0123456789abcdef"), "kbot")


def test_a_reality_file_is_still_read_as_one(tmp_path):
    path = tmp_path / "late.yaml"
    path.write_text("commands: {latency_s: 0.01}")
    assert read_reality(path, "kbot") == load_reality(path) and read_reality(None, "kbot") == Reality()


def test_the_twin_command_serves_a_calibration_and_names_it(tmp_path):
    path = calibration_file(tmp_path)
    with spawn_twin(reality=path, lockstep=True, start="hang") as twin:
        assert twin.port > 0
    words = [sys.executable, "-m", "deploy.twin.server", "--robot", "so101", "--port", "0", "--reality", str(path)]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "it is of robot kbot" in refused.stderr


def test_parity_reads_a_calibration_too_and_refuses_another_descriptions(tmp_path):
    with spawn_twin(lockstep=True, start="hang") as twin:
        options = {"step_lock": True, "suspended": True, "kinds": ("steps",), "joints": ("left_knee",), "seconds": 5.0}
        (report,) = excite(ExciteOptions(out=tmp_path, port=twin.port, **options))
    other = calibration_file(tmp_path, model="0123456789abcdef")
    with pytest.raises(CalibrationError, match="make it again with ksim sysid"):
        parity.main([str(report.log), "--held", "--reality", str(other)])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"kp": known(-1.0)}, r"joints\..*\.kp\.value: got -1\.0, expected 0 to"),
        ({"compliance": known(-1.0)}, r"compliance\.value: got -1\.0"),
        ({"mass": known(0.001)}, r"mass\.value: got 0\.001, expected a factor"),
        ({"load_friction": known(1.0)}, r"load_friction\.value: got 1\.0, expected a share"),
        ({"kp": known(1e9)}, "calibration.yaml: no robot has this: kp_scale"),
    ],
)
def test_a_calibration_of_what_no_robot_has_is_refused_with_its_file(tmp_path, what, words):
    text = calibration_file(tmp_path).read_text()
    data = yaml.safe_load(text)
    for name, estimate in what.items():
        data["joints"][KNEE][name] = dataclasses.asdict(estimate)
    (tmp_path / "calibration.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(CalibrationError, match=words):
        read_reality(tmp_path / "calibration.yaml", "kbot")


def test_a_calibration_without_a_joint_or_with_an_impossible_step_is_refused(tmp_path):
    data = yaml.safe_load(calibration_file(tmp_path).read_text())
    del data["joints"][KNEE]
    (tmp_path / "calibration.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(CalibrationError, match=f"joints: {KNEE} in it or in robot"):
        read_reality(tmp_path / "calibration.yaml", "kbot")
    (tmp_path / "calibration.yaml").write_text(yaml.safe_dump(data | {"timestep_s": -1.0}))
    with pytest.raises(CalibrationError, match=r"timestep_s: got -1\.0"):
        read_reality(tmp_path / "calibration.yaml", "kbot")
