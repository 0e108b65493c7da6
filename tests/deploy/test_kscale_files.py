"""Files that K-Scale's exporters wrote, run as they are: read, inspected, and against real servers."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from deploy.bundle.preflight import prepare
from deploy.bundle.session import OnnxPolicy
from deploy.control.run import RunOptions, run
from deploy.errors import CheckError
from deploy.log.recorder import RunLog, read_log
from deploy.twin.server import spawn_twin
from robots.bundle import read_bundle
from robots.load import load_robot
from tests import kscale
from tests.deploy.conftest import KBotServer

OLD = {"inputs": kscale.OLD, "command_names": ..., "num_commands": 6}
FILES = {
    "published": {},
    "before 0.6": OLD,
    "a bare carry_size, no commands": {
        "inputs": ("joint_angles", "quaternion", "time", "carry"), "carry": (7,), "carry_size": 7,
        "command_names": ..., "num_commands": None, "joint_biases": ...,
    },
    "no carry": {"inputs": kscale.SIX[:5], "carry": (1, 1)},
}  # fmt: skip


def replayed(log: RunLog) -> int:
    """Ticks of the policy; each action is what the file's graph makes of the inputs that the log has."""
    assert log.bundle is not None
    policy, ran = OnnxPolicy(log.bundle), np.flatnonzero(log.run)
    for row in ran:
        action = policy.step({name: values[row].astype(np.float32) for name, values in log.inputs.items()})
        np.testing.assert_array_equal(action, log.action[row].astype(np.float32))
    return len(ran)


@pytest.mark.parametrize("name", FILES)
def test_it_is_run_on_a_twin_with_the_robot_named(name, tmp_path):
    path, log = kscale.write(tmp_path / "p.kinfer", **FILES[name]), tmp_path / "run.mcap"
    # in lock step: how busy the machine is makes no difference
    with spawn_twin("kbot", lockstep=True) as twin:
        argv = [str(path), "--robot", "kbot", "--port", str(twin.port), "--reset", "--step-lock", "--duration", "0.5"]
        child = [sys.executable, "-m", "deploy.control.run", *argv, "--log", str(log), "--max-late", "10", "--json"]
        done = subprocess.run(child, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ended"] == "completed" and report["damped"]
    found = read_log(log)
    assert replayed(found) == 25 and set(found.inputs) == set(FILES[name].get("inputs", kscale.SIX)) - {"carry"}
    # joints by name: the file has the arms first, the robot the legs
    home = {j.name: j.home_rad for j in load_robot("kbot").joints}
    at = np.flatnonzero(found.run)[0]
    expected = [home[joint] for joint in kscale.JOINTS]
    np.testing.assert_allclose(found.inputs["joint_angles"][at], expected, atol=0.15)


def test_quaternion_and_heading_are_those_of_the_imu_w_first(tmp_path):
    robot = load_robot("kbot")
    server = KBotServer(robot)
    yaw = 0.7
    server.quat_wxyz = [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]
    path = kscale.write(tmp_path / "p.kinfer", **OLD)
    try:
        options = RunOptions(
            bundle=path, robot="kbot", port=server.port, duration_s=0.3, log=tmp_path / "run.mcap", watchdog_s=0.0,
            late_max=10.0, lost_ticks_max=200, command={"command_0": 0.25}, gyro_unit="deg/s",
        )  # fmt: skip
        report = run(options)
    finally:
        server.kill()
    assert report.ended == "completed", report
    log = read_log(tmp_path / "run.mcap")
    assert replayed(log) > 5
    for row in np.flatnonzero(log.run):
        np.testing.assert_allclose(log.inputs["quaternion"][row], server.quat_wxyz, atol=1e-3)
        np.testing.assert_allclose(log.inputs["initial_heading"][row], [yaw], atol=1e-3)
        np.testing.assert_allclose(log.inputs["command"][row], [0.25, 0, 0, 0, 0, 0])


def test_the_home_pose_of_the_file_is_where_the_run_begins(tmp_path):
    home = [h + 0.1 if name == "dof_left_wrist_00" else h for name, h in zip(kscale.JOINTS, kscale.HOME, strict=True)]
    ready = prepare(kscale.write(tmp_path / "p.kinfer", joint_biases=home), "kbot", {})
    assert ready.spec.robot.column("home_rad") == home
    (line,) = (w for w in ready.warnings if "home" in w and "robot kbot" in w)
    assert line == "the home pose is the bundle's, not that of robot kbot: dof_left_wrist_00 0.1, not 0 rad"
    ready = prepare(kscale.write(tmp_path / "q.kinfer"), "kbot", {})
    assert not [w for w in ready.warnings if "robot kbot" in w]
    with pytest.raises(
        CheckError, match=r"joint_biases: .* none of robot kbot: joint dof_right_shoulder_pitch_03: home"
    ):
        prepare(kscale.write(tmp_path / "r.kinfer", joint_biases=[9.0] * 20), "kbot", {})


def test_without_a_robot_it_is_told_what_the_file_lacks(tmp_path):
    with pytest.raises(
        CheckError, match=r"joint names only, no ids, gains or limits .*; name the robot .*--robot kbot"
    ):
        run(RunOptions(bundle=kscale.write(tmp_path / "p.kinfer"), log=tmp_path / "run.mcap"))


def test_a_robot_with_other_joints_is_refused_by_name(tmp_path):
    path = kscale.write(tmp_path / "p.kinfer", joints=[*kscale.JOINTS[:-1], "tail"])
    with pytest.raises(CheckError, match="the robot has no tail; the bundle does not command dof_right_ankle_02"):
        run(RunOptions(bundle=path, robot="kbot", log=tmp_path / "run.mcap"))


@pytest.mark.parametrize("name", FILES)
def test_it_is_read_as_it_is(name, tmp_path):
    how = FILES[name]
    bundle = read_bundle(kscale.write(tmp_path / "p.kinfer", **how))
    assert list(bundle.joint_names) == kscale.JOINTS and bundle.carry_shape == how.get("carry", (2, 128))
    named = how.get("command_names") is not ...
    numbered = [f"command_{k}" for k in range(how.get("num_commands") or 0)]
    assert list(bundle.command_names) == (kscale.COMMANDS if named else numbered)
    assert bundle.joint_biases == (None if "joint_biases" in how else tuple(kscale.HOME))
