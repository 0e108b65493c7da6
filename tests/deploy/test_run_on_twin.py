"""`ksim run` against the twin in a process of its own: every way out, and what the robot is left in."""

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.control.run import RunOptions, run
from deploy.errors import LogError, SafetyError
from deploy.log.recorder import read_log
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, damp
from deploy.twin.server import spawn_twin
from robots.bundle import write_bundle
from robots.load import load_robot
from toolkit.files import shipped_policy


@pytest.fixture
def kbot_kinfer(tmp_path, bundle_factory):
    """A policy that holds the K-Bot's home pose; the robot falls in about 1.5 s."""
    path = tmp_path / "kbot.kinfer"
    write_bundle(path, bundle_factory(load_robot("kbot")))
    return path


REALITY = Path(__file__).parents[2] / "configs" / "reality_demo.yaml"


def differences_from_damped(port):
    spec = load_robot("kbot")

    async def ask():
        async with KosRobot(spec, "127.0.0.1", port) as robot:
            return await robot.gain_differences(damp(Limits.from_spec(spec)))

    with asyncio.Runner() as runner:
        return runner.run(ask())


def start(kbot_kinfer, port, log):
    """The command, once its log shows that the policy runs."""
    command = [sys.executable, "-m", "deploy.control.run", str(kbot_kinfer), "--robot", "kbot", "--port", str(port)]
    child = subprocess.Popen(
        [
            *command,
            "--duration",
            "30",
            "--max-tilt",
            "3.1",
            "--watchdog",
            "2",
            "--max-late",
            "10",
            "--log",
            str(log),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while ticks_of_the_policy(log) < 10:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.05)
    return child


def ticks_of_the_policy(log):
    """How many ticks the policy ran, in a log that another process may only just have opened."""
    try:
        return read_log(log).run.sum()
    except LogError:
        return 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_twin_damped(kbot_kinfer, tmp_path, signum, code):
    with spawn_twin("kbot") as twin:
        child = start(kbot_kinfer, twin.port, tmp_path / "run.mcap")
        assert len(differences_from_damped(twin.port)) >= 20, "stiff while the policy runs"
        child.send_signal(signum)
        out, err = child.communicate(timeout=30)
        assert child.returncode == code and json.loads(out)["damped"] and "Traceback" not in err
        assert differences_from_damped(twin.port) == []
    log = read_log(tmp_path / "run.mcap")
    assert log.complete and log.phase[-1] == "damp" and log.bundle is not None


def test_a_killed_twin_ends_the_run_with_its_log_whole_to_the_last_tick(kbot_kinfer, tmp_path):
    with spawn_twin("kbot") as twin:
        child = start(kbot_kinfer, twin.port, tmp_path / "run.mcap")
        twin.process.kill()
        out, err = child.communicate(timeout=30)
    report = json.loads(out)
    assert child.returncode == 1 and report["ended"] == "lost" and not report["damped"]
    assert "Traceback" not in err and "ksim run: lost:" in err
    log = read_log(tmp_path / "run.mcap")
    assert log.complete and len(log.tick) == report["ticks"]


def test_holding_the_home_pose_falls_and_says_when(kbot_kinfer, tmp_path):
    with spawn_twin("kbot") as twin:
        options = RunOptions(
            bundle=kbot_kinfer,
            port=twin.port,
            watchdog_s=0.0,
            late_max=10.0,
            duration_s=10.0,
            log=tmp_path / "run.mcap",
        )
        report = run(options)
        assert report.ended == "fall" and 0.5 < report.survived_s < 4.0 and report.exit_code == 1
        assert report.damped and differences_from_damped(twin.port) == []
        # it lies on the floor until it is picked up
        again = replace(options, log=tmp_path / "again.mcap", duration_s=0.2)
        with pytest.raises(SafetyError, match="add --reset"):
            run(again)
        report = run(replace(again, reset=True))
        # it was let start; on a machine that is too busy for its first second it falls anew
        assert report.ended in ("completed", "fall") and report.damped
    log = read_log(tmp_path / "run.mcap")
    gyro = next(e["message"] for e in log.events if e["kind"] == "gyro")
    assert gyro.startswith("gyro: ok") and "unit set to deg/s" in gyro


def test_the_wrong_gyro_unit_is_found_on_the_twin(kbot_kinfer, tmp_path):
    with spawn_twin("kbot") as twin:
        report = run(
            RunOptions(
                bundle=kbot_kinfer,
                port=twin.port,
                watchdog_s=0.0,
                late_max=10.0,
                duration_s=10.0,
                log=tmp_path / "a.mcap",
                gyro_unit="rad/s",
            )
        )
    assert report.ended == "fault" and "try --gyro-unit deg/s" in report.message


def test_in_lock_step_the_same_seed_gives_the_same_log(kbot_kinfer, tmp_path):
    logs = []
    for name in ("a", "b"):
        with spawn_twin("kbot", lockstep=True, seed=3) as twin:
            path = tmp_path / f"{name}.mcap"
            report = run(
                RunOptions(
                    bundle=kbot_kinfer,
                    port=twin.port,
                    watchdog_s=0.0,
                    late_max=10.0,
                    duration_s=1.0,
                    log=path,
                    step_lock=True,
                )
            )
            assert report.ended == "completed" and report.survived_s == 1.0
            logs.append(read_log(path))
    for field in ("sent", "joint_position", "joint_velocity", "joint_torque", "quat_wxyz", "gyro_b", "accel_b"):
        assert np.array_equal(getattr(logs[0], field), getattr(logs[1], field)), field
    assert np.ptp(logs[0].joint_position, axis=0).max() > 0.01, "the robot moved"


def narrow_envelope(spec):
    """What episodes of kbot_stand begin with, noise and offsets included: narrower than what a policy meets later."""
    home = np.asarray(spec.robot.column("home_rad"))
    spans = {
        "joint_angles": (home - 0.07, home + 0.07),
        "joint_angular_velocities": (np.full(20, -0.5), np.full(20, 0.5)),
        "projected_gravity": ([-0.7, -0.7, -10.1], [0.7, 0.7, -9.5]),
        "gyroscope": ([-0.28] * 3, [0.28] * 3),
    }
    return {k: {"low": list(map(float, low)), "high": list(map(float, high))} for k, (low, high) in spans.items()}


@pytest.fixture
def narrow_kinfer(tmp_path, bundle_factory):
    path, bundle = tmp_path / "narrow.kinfer", bundle_factory(load_robot("kbot"))
    spec = bundle.spec.replace(envelope=narrow_envelope(bundle.spec))
    write_bundle(path, dataclasses.replace(bundle, spec=spec))
    return path


@pytest.mark.parametrize("start", ["home", "hang"])
def test_another_reality_on_its_feet_or_on_a_gantry_is_within_the_envelope(narrow_kinfer, tmp_path, start):
    # other gains, zero offsets, gyro bias, a tilted IMU, noise; on the gantry the legs fall while the run begins
    with spawn_twin("kbot", reality=REALITY, start=start) as twin:
        report = run(
            RunOptions(
                bundle=narrow_kinfer,
                port=twin.port,
                watchdog_s=0.0,
                late_max=10.0,
                duration_s=0.3,
                log=tmp_path / "a.mcap",
            )
        )
    assert report.ended == "completed" and report.warnings == (), report.summary()
    assert read_log(tmp_path / "a.mcap").run.any()


def test_a_joint_that_falls_after_the_first_look_is_ramped_home(kinfer, server, tmp_path):
    def fall(command):
        if command == 1:  # it holds the measured pose; gains come after it
            server.position_deg[12] += 20.0

    server.lockstep, server.on_tick, server.follows_rad = True, fall, 0.05
    log = tmp_path / "a.mcap"
    report = run(RunOptions(bundle=kinfer, port=server.port, step_lock=True, ramp_s=0.2, duration_s=0.1, log=log))
    assert (report.ended, report.ramp_ticks) == ("completed", 10 + 1), report.summary()


def test_a_robot_whose_zero_is_off_by_a_quarter_turn_is_refused_and_damped(narrow_kinfer, tmp_path):
    reality = tmp_path / "reality.yaml"
    reality.write_text("name: unzeroed\njoints: {zero_offset_rad: {dof_left_elbow_02: 0.785, all: 0.0}}\n")
    with spawn_twin("kbot", reality=reality) as twin:
        # at once: a ramp would bring the reading home, and the arm away from it
        options = {"bundle": narrow_kinfer, "port": twin.port, "duration_s": 1.0, "log": tmp_path / "a.mcap"}
        report = run(RunOptions(**options, ramp_s=0.0, watchdog_s=0.0, late_max=10.0))
        assert report.damped and differences_from_damped(twin.port) == []
    assert report.ended == "fault" and report.survived_s == 0.0
    assert "the policy was not started: joint_angles of dof_left_elbow_02: -0.7" in report.message


def test_a_schedule_asks_for_one_command_after_the_other(tmp_path):
    course = tmp_path / "course.yaml"
    course.write_text("- {at_s: 0}\n- {at_s: 0.2, xvel: 0.3}\n- {at_s: 0.4, yawrate: -0.5}\n")
    with spawn_twin("kbot", lockstep=True) as twin:
        bundle, log = shipped_policy("walk", ".kinfer"), tmp_path / "a.mcap"
        options = RunOptions(bundle=bundle, port=twin.port, duration_s=0.6, log=log, step_lock=True, schedule=course)
        assert run(options).ended == "completed"
    read = read_log(log)
    asked = read.inputs["command"][[phase == "run" for phase in read.phase]]
    assert len(asked) == 30 and not asked[:10].any()
    assert np.allclose(asked[10:20], [0.3, 0.0, 0.0]) and np.allclose(asked[20:], [0.0, 0.0, -0.5])
    assert [row["at_s"] for row in read.metadata["schedule"]] == [0.0, 0.2, 0.4]
