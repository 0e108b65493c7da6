"""`ksim log import` of SAGE's folders."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import LogError
from tests.deploy.foreign_logs import ARM, mapped, plain, taken

# beside the checkout, where they are kept
MOTIONS = Path(__file__).parents[3] / "shared/real/so101/motions"


def sage(folder, rows=60, **files):
    """A folder of SAGE with two joints; commands come 5 ms after states."""
    folder.mkdir(parents=True)
    states, commands = io.StringIO(), io.StringIO()
    state, command = csv.writer(states), csv.writer(commands)
    state.writerow(["type", "timestamp", "positions", "velocities", "torques"])
    command.writerow(["type", "timestamp", "positions"])
    for k in range(rows):
        state.writerow(["STATE_MOTOR", 20_000.0 * k, [0.01 * k, 0.5], [0.5, 0.0], [0.1, 0.2]])
        command.writerow(["CONTROL", 20_000.0 * k + 5000, [0.02 * k, 0.5]])
    (folder / "state_motor.csv").write_text(states.getvalue())
    (folder / "control.csv").write_text(commands.getvalue())
    (folder / "joint_list.txt").write_text("Elbow\nJaw\n")
    (folder / "event.csv").write_text("type,timestamp,event\nEVENT,0,MOTION_START\n")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


SAGE_MAP = "joints: {elbow_flex: Elbow, gripper: {source: Jaw, unit: fraction}}\nunits: {torque: unsigned}\n"


def test_a_folder_of_sage_has_the_last_command_before_each_state(arm, tmp_path):
    given = mapped(tmp_path, SAGE_MAP + f"robot: {arm}\n")
    log = taken(sage(tmp_path / "move"), tmp_path / "a.mcap", "--map", given)
    assert log.spec.robot.joint_names == ("elbow_flex", "gripper") and len(log.tick) == 60
    assert np.isnan(log.sent[0]).all() and np.allclose(log.sent[1:, 0], 0.02 * np.arange(59))
    assert np.allclose(log.joint_position[:, 0], 0.01 * np.arange(60)) and np.allclose(log.joint_position[:, 1], 0.8)
    assert np.allclose(log.start_s, 0.02 * np.arange(60)) and np.all(log.joint_velocity[:, 0] == 0.5)
    # the size of a current is no torque
    assert np.isnan(log.joint_torque).all() and any("torques" in m for m in log.metadata["import"]["missing"])
    assert log.events == [{"t_s": 0.0, "kind": "source", "message": "MOTION_START"}]
    assert [s["name"] for s in log.metadata["import"]["sources"]] == [
        "control.csv", "state_motor.csv", "joint_list.txt", "event.csv",
    ]  # fmt: skip


def test_parity_of_positions_and_targets_alone_tells_of_the_joints_and_says_what_it_lacks(arm, tmp_path):
    from deploy.parity.layers import parity

    log = taken(plain(tmp_path / "a.csv", {f"{j}.{k}": math.sin for j in ARM for k in ("position", "target")}),
                tmp_path / "a.mcap", "--robot", arm)  # fmt: skip
    found = parity(log, arm)
    layers = {layer.name.value: layer for layer in found.judgement.layers}
    assert "does not hold the policy" in layers["policy"].untold and "cannot move" in layers["body"].untold
    assert layers["actuators"].figures and found.report["one_clock"] and found.report["windows"] > 0
    told = {figure.key for figure in layers["sensing"].figures}
    assert "joints_new_hz" in told and not any(key.startswith(("gyro", "orientation")) for key in told)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"joint_list__txt": "Elbow\n"}, r"60 of 60 lines.*positions: got 2 numbers, expected 1"),
        ({"joint_list__txt": "Elbow\nElbow\n"}, "joints: got Elbow twice"),
        ({"joint_list__txt": ""}, "joint_list.txt: is empty"),
        ({"state_motor__csv": "a,b\n1,2\n"}, "state_motor.csv: no column timestamp, positions; expected timestamp"),
        (
            {"state_motor__csv": "type,timestamp,positions\n" + "S,x,hello\n" * 9},
            r"9 of 9 lines.*positions: got 'hello'",
        ),
        ({"control__csv": "type,timestamp,positions\n" + "C,0,[1]\n" * 9}, "control.csv: positions: got 1 numbers"),
    ],
)
def test_a_folder_of_sage_that_makes_no_sense_is_refused_in_one_line(arm, tmp_path, files, said):
    given = SAGE_MAP if "joint_list__txt" not in files else "joints: {elbow_flex: Elbow}\n"
    with pytest.raises(LogError, match=said):
        taken(sage(tmp_path / "move", **files), tmp_path / "a.mcap", "--map", mapped(tmp_path, given), "--robot", arm)


def test_a_file_of_a_sage_folder_says_to_name_the_folder(arm, tmp_path):
    folder = sage(tmp_path / "move")
    with pytest.raises(LogError, match=r"a file of a SAGE folder; expected the folder; name .*move"):
        taken(folder / "state_motor.csv", tmp_path / "a.mcap", "--robot", arm)
    (folder / "control.csv").unlink()
    (folder / "control.csv").mkdir()
    with pytest.raises(LogError, match=r"control.csv: is a folder; expected a file"):
        taken(folder, tmp_path / "a.mcap", "--robot", arm)


REAL_MAP = """
units: {torque: unsigned}
joints:
  shoulder_pan: Rotation
  shoulder_lift: Pitch
  elbow_flex: Elbow
  wrist_flex: Wrist_Pitch
  wrist_roll: Wrist_Roll
  gripper: {source: Jaw, unit: fraction, range_rad: [-0.17, 2.17]}
"""


@pytest.fixture(scope="module")
def so101(tmp_path_factory):
    """The SO-101 as a robot folder."""
    folder = tmp_path_factory.mktemp("so101") / "so101"
    folder.mkdir()
    shutil.copy(MOTIONS.parent / "so101.xml", folder / "robot.xml")
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    joints = {n: {"id": k + 1, "kp": 998.22, "kd": 2.731, "actuator_type": "sts3215"} for k, n in enumerate(names)}
    types = {"sts3215": {"max_torque": 3.35, "max_velocity": 4.7, "armature": 0.028, "frictionloss": 0.052}}
    data = {"joint_name_to_metadata": joints, "actuator_type_to_metadata": types, "control_frequency": 50}
    (folder / "metadata.json").write_text(json.dumps(data | {"ksim2real": {"floating": False}}))
    return folder


@pytest.mark.skipif(not MOTIONS.is_dir(), reason="the recorded motions are not here")
@pytest.mark.parametrize(
    "motion",
    [
        "chirp_sweep", "hold_under_gravity", "multisine", "random_waypoints", "single_joint_elbow",
        "single_joint_rotation", "step_response",
    ],
)  # fmt: skip
def test_a_recorded_motion_comes_out_as_it_is(so101, tmp_path, motion):
    log = taken(MOTIONS / motion, tmp_path / "a.mcap", "--robot", so101, "--map", mapped(tmp_path, REAL_MAP))
    with (MOTIONS / motion / "state_motor.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (MOTIONS / motion / "control.csv").open(newline="") as file:
        wanted = np.array([json.loads(r["positions"]) for r in csv.DictReader(file)])
    position, velocity = (np.array([json.loads(r[k]) for r in rows]) for k in ("positions", "velocities"))
    assert len(log.tick) == len(rows) and log.result["left_out"] == {} and log.result["gaps"] == 0
    assert np.array_equal(log.joint_position[:, :5], position[:, :5]) and np.array_equal(log.sent[:, :5], wanted[:, :5])
    assert np.allclose(log.joint_position[:, 5], -0.17 + 2.34 * position[:, 5], atol=1e-12)
    assert np.array_equal(log.joint_velocity, velocity)
    assert np.allclose(log.start_s, [1e-6 * float(r["timestamp"]) for r in rows], atol=1e-12)
    assert log.spec.control_period_s == pytest.approx(0.02006, abs=1e-5) and np.all(np.diff(log.tick) == 1)
