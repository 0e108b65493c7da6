"""What a K-Bot in the field leaves behind, from its file to a report and to the robot's joints, by the command line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.log.recorder import read_log
from deploy.log.tools import main as log_tool
from deploy.parity.command import main as parity
from deploy.sysid.calibration import load_calibration
from deploy.sysid.command import main as sysid
from deploy.sysid.motion import SysidError, read_motion
from deploy.sysid.simulate import Parameters, Simulator
from robots.load import load_robot
from robots.spec import RobotSpec
from tests.deploy.foreign_logs import FieldRun, field_run, write_rows
from toolkit.files import shipped_policy

KBOT = Path(__file__).parents[2] / "robots/kbot"


def imported(run: FieldRun, out: Path, *words: str) -> Path:
    """The log of a run whose last line broke off."""
    text = write_rows(out.with_suffix(".ndjson"), run.rows).read_text()
    out.with_suffix(".ndjson").write_text(text[:-500])
    assert log_tool(["import", str(out.with_suffix(".ndjson")), "-o", str(out), *words]) == 0
    return out


@pytest.fixture(scope="module")
def hanging(tmp_path_factory) -> FieldRun:
    """The robot on its gantry, its legs in the air."""
    return field_run(tmp_path_factory.mktemp("hanging"), start="hang", seconds=6.0)


@pytest.fixture
def pinned(tmp_path) -> Path:
    """The K-Bot with its base fixed to the world, as a folder."""
    folder = tmp_path / "pinned"
    folder.mkdir()
    text = (KBOT / "robot.xml").read_text()
    text, found = re.subn(r"<freejoint .*?/>|<keyframe>.*?</keyframe>", "", text, flags=re.DOTALL)
    assert found == 2
    (folder / "robot.xml").write_text(text)
    about = json.loads((KBOT / "metadata.json").read_text())
    about["ksim2real"] = {"imu_site": "imu_site", "floating": False}
    (folder / "metadata.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("policy", [True, False], ids=["with the policy", "without it"])
def test_a_run_on_the_floor_is_compared(field, tmp_path, capsys, policy):
    run = dataclasses.replace(field, rows=field.rows[:120])
    words = ["--policy", str(shipped_policy("stand", ".kinfer"))] if policy else []
    log = imported(run, tmp_path / "a.mcap", *words)
    assert "the last line breaks off; it was left out" in capsys.readouterr().err
    # 3: something is bad, and an IMU that gives a new sample every other tick may be
    assert parity([str(log), "--robot", "kbot", "--out", str(tmp_path / "report")]) in (0, 3)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["policy_replay_steps"] == (119 if policy else 0)
    assert report["policy_replay_error_max"] < 1e-6 if policy else report["policy_replay_error_max"] is None
    assert report["joint_position_rmse_rad"] < 0.02 and report["windows"] > 3
    assert report["loop"]["ticks"] == 119 and report["loop"]["period_p50_ms"] == pytest.approx(20.35, abs=0.3)
    assert (tmp_path / "report/report.html").stat().st_size > 10_000


def test_a_run_on_the_gantry_is_replayed_whole_by_the_gains_that_were_in_force(hanging, pinned, tmp_path):
    log = read_log(imported(hanging, tmp_path / "a.mcap"))
    robot = load_robot(pinned)
    motion = read_motion(log.path, robot)
    assert motion.names == robot.joint_names and len(motion.time_s) == len(hanging.rows) - 1 and not motion.one_clock
    order = [list(hanging.rows[0]["joint_order"]).index(name) for name in robot.joint_names]
    assert np.array_equal(motion.target[7], np.array(hanging.rows[7]["action"])[order])
    simulator = Simulator(pinned, [motion])

    def rmse(spec: RobotSpec, delay_s: float) -> np.ndarray:
        (shown,) = simulator.run([Parameters.of(spec).replace(delay_s=delay_s)])[motion.name]
        return np.sqrt(np.mean((shown - motion.position) ** 2, axis=0))

    in_force = robot.replace(joints=tuple(log.spec.robot.joint(name) for name in robot.joint_names))
    # a command reaches the motors some 7 ms after its row's time; readings that are used again are a tick old
    there, at_once, published = rmse(in_force, 0.007), rmse(in_force, 0.0), rmse(robot, 0.007)
    assert there.max() < 0.003 and np.mean(there[:10]) < 0.8 * np.mean(at_once[:10])
    elbow = robot.joint_names.index("dof_left_elbow_02")
    assert there[elbow] < 1e-4 < 0.005 < published[elbow]  # pyfirmware's gain is twice what the robot's file says


def test_ksim_parity_replays_it_whole(hanging, pinned, tmp_path, capsys):
    log = imported(hanging, tmp_path / "gantry.mcap")
    assert parity([str(log), "--full", "--robot", str(pinned), "--out", str(tmp_path / "out")]) == 0
    assert "gantry" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "out/full.json").read_text())["motions"].values()
    assert found["rows"] == len(hanging.rows) - 1 and len(found["joints"]) == 20
    # with twice the gain that the robot's description has, as the log tells
    assert found["joints"]["dof_left_elbow_02"]["published"]["rmse_rad"] < 0.001


def test_ksim_sysid_finds_the_gains_that_were_in_force_with_the_base_held(hanging, tmp_path):
    log, out = imported(hanging, tmp_path / "gantry.mcap"), tmp_path / "calibration.yaml"
    options = ["--robot", "kbot", "--held", "--fit", "kp", "friction", "delay_s", "--iterations", "4", "-o", str(out)]
    assert sysid([str(log), *options]) == 0
    found = load_calibration(out)
    assert found.ratio < 0.6 and len(found.joints) == 20
    assert found.delay_s.value == pytest.approx(0.007, abs=0.002)
    assert found.joints["dof_left_hip_yaw_03"].kp.value == pytest.approx(100.0, rel=0.1)  # of those that move much
    words = [str(log), "--full", "--calibration", str(out), "--held", "--robot", "kbot", "--out", str(tmp_path / "out")]
    assert parity(words) == 0
    report = json.loads((tmp_path / "out/full.json").read_text())
    assert report["held"] and report["ratio"] == pytest.approx(found.ratio, rel=1e-3)


def test_a_base_that_floats_is_refused_unless_it_was_held(hanging, tmp_path):
    log = imported(hanging, tmp_path / "gantry.mcap")
    with pytest.raises(SysidError, match=r"robot kbot: its base floats; expected one that is fixed to the world"):
        parity([str(log), "--full", "--robot", "kbot", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
