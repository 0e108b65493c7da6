"""The watchdog, and `ksim damp`, against a real server: who takes the stiffness out when the loop cannot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deploy.control import damp as damp_command
from deploy.control.run import RunOptions, run
from deploy.control.watchdog import note_of
from deploy.robot.damping import damp_joints
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits
from deploy.robot.safety import damp as safe
from robots.bundle import write_bundle

# What the issue of a robot that falls asks for: from the last beat to kp 0 on all joints [s]. A busy test machine gets
# more; benchmarks/ has the times.
SOON_S = 1.0
RUN = [sys.executable, "-m", "deploy.control.run"]


def begin(kinfer, server, tmp_path, *more):
    """`ksim run` in a process of its own, its policy running."""
    log = tmp_path / "run.mcap"
    if "--watchdog" not in more:  # longer than a user's: a test machine with two busy cores misses 0.15 s
        more = (*more, "--watchdog", "0.5")
    child = subprocess.Popen(
        [
            *RUN,
            str(kinfer),
            "--port",
            str(server.port),
            "--log",
            str(log),
            "--duration",
            "60",
            "--json",
            "--max-late",
            "10",
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    server.wait_for_policy(child)
    return child, log


def limp(server) -> bool:
    gains = list(server.gains.values())
    return len(gains) == len(server.robot.joints) and all(g["kp"] == 0.0 and g["torque_enabled"] for g in gains)


def seconds_until_limp(server, within_s: float = 20.0) -> float:
    began = time.monotonic()
    while not limp(server):
        assert time.monotonic() - began < within_s, server.gains
        time.sleep(0.002)
    return time.monotonic() - began


def watchdog_of(child) -> int:
    """The process of a run's watchdog: other tests have theirs."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            mine = f"PPid:\t{child.pid}\n" in (process / "status").read_text()
            if mine and b"deploy.control.watchdog" in (process / "cmdline").read_bytes():
                return int(process.name)
    raise AssertionError("no watchdog runs")


def note(log, within_s: float = 10.0) -> dict:
    deadline = time.monotonic() + within_s
    while not note_of(log).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    return json.loads(note_of(log).read_text())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGQUIT])
def test_a_loop_that_dies_leaves_a_limp_robot_and_a_note(kinfer, server, tmp_path, signum):
    child, log = begin(kinfer, server, tmp_path)
    assert not limp(server)
    child.send_signal(signum)
    assert seconds_until_limp(server) < SOON_S
    told = note(log)
    assert told["why"] == "the control loop died" and told["damped"] and told["left"] == {}
    assert told["after_last_beat_s"] < SOON_S
    _, err = child.communicate(timeout=20)
    assert "ksim run: watchdog: the control loop died; damped: kp 0, kd nominal on 3 joints" in err


def test_a_loop_that_hangs_is_damped_and_ends_when_it_comes_back(kinfer, server, tmp_path):
    child, log = begin(kinfer, server, tmp_path)
    child.send_signal(signal.SIGSTOP)
    assert seconds_until_limp(server) < SOON_S
    assert "no beat of the control loop for 0." in note(log)["why"]
    child.send_signal(signal.SIGCONT)
    out, _ = child.communicate(timeout=20)
    result = json.loads(out)
    assert child.returncode == 1 and result["ended"] == "fault" and result["damped"]
    assert result["message"].startswith("watchdog: no beat of the control loop for 0.")
    assert limp(server)


def test_the_loop_damps_the_robot_where_its_watchdog_dies(kinfer, server, tmp_path):
    child, _ = begin(kinfer, server, tmp_path)
    own = watchdog_of(child)
    os.kill(own, signal.SIGTERM)  # it does not listen to that
    time.sleep(0.3)
    assert child.poll() is None and not limp(server)
    os.kill(own, signal.SIGKILL)
    out, _ = child.communicate(timeout=20)
    result = json.loads(out)
    assert (result["ended"], child.returncode) == ("fault", 1) and limp(server)
    assert result["message"] == "watchdog: its process is gone; a run without it is not allowed to go on"


def test_the_loop_damps_the_robot_where_its_watchdog_hangs(kinfer, server, tmp_path):
    child, _ = begin(kinfer, server, tmp_path)
    own = watchdog_of(child)
    os.kill(own, signal.SIGSTOP)
    try:
        out, _ = child.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the loop has killed it
            os.kill(own, signal.SIGKILL)
    assert "watchdog: its process has not answered for 2." in json.loads(out)["message"] and limp(server)


def test_a_run_that_ends_by_itself_leaves_no_watchdog_and_no_note(kinfer, server, tmp_path):
    child, log = begin(kinfer, server, tmp_path)
    own = watchdog_of(child)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130 and server.damped()
    assert not Path(f"/proc/{own}").exists() and not note_of(log).exists()


def test_a_second_run_on_the_same_robot_is_refused(kinfer, server, tmp_path):
    child, _ = begin(kinfer, server, tmp_path, "--watchdog", "2")
    requests = len(server.requests)
    second = subprocess.run(
        [*RUN, str(kinfer), "--port", str(server.port), "--log", str(tmp_path / "second.mcap")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert f"another run on 127.0.0.1:{server.port}" in second.stderr and not (tmp_path / "second.mcap").exists()
    assert child.poll() is None and len(server.requests) > requests and not limp(server)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)


# ksim damp


def damp(server, kinfer, *more) -> int:
    return damp_command.main(["--port", str(server.port), "--bundle", str(kinfer), *more])


def stiffen(server) -> None:
    for joint in server.robot.joints:
        server.gains[joint.id] = {"kp": 200.0, "kd": 5.0, "max_torque": 50.0, "torque_enabled": True}


def test_damp_takes_the_stiffness_out_whatever_the_robot_says_of_itself(kinfer, server, capsys):
    stiffen(server)
    server.missing, server.offline, server.faults = {12}, {31}, {25: ["over temperature"]}
    server.quat_wxyz = [0.0, 0.0, 0.0, 0.0]
    assert damp(server, kinfer) == 0 and limp(server)
    assert "leg at 127.0.0.1:" in (said := capsys.readouterr().out) and "on 3 joints" in said


def test_one_joint_that_refuses_is_named_and_keeps_no_other_stiff(kinfer, server, capsys):
    stiffen(server)
    server.refuse_configure = {12}
    assert damp(server, kinfer, "--for", "0.3", "--json") == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["damped"], told["joints"], told["left"]) == (False, 2, {"knee": "bus error"})
    assert "NOT damped: 1 of 3 joints keep their last gains and target: knee: bus error" in err
    assert [server.gains[j.id]["kp"] for j in server.robot.joints] == [0.0, 200.0, 0.0]


def test_a_server_that_is_slow_with_each_joint_is_not_asked_again_for_those_that_are_done(kinfer, server, monkeypatch):
    stiffen(server)
    monkeypatch.setattr("deploy.robot.damping.TIMEOUT_S", 0.25)
    server.delay_s["configure"] = 0.2
    # one at a time, so that the last two miss the deadline of the first round
    one, enter = threading.Lock(), server._enter

    def in_turn(what, request):
        with one:
            enter(what, request)

    server._enter = in_turn
    assert damp(server, kinfer) == 0 and limp(server)
    asked = [r.actuator_id for kind, r in server.requests if kind == "configure"]
    assert asked.count(asked[0]) == 1 and len(asked) >= 5


def test_damp_needs_a_server_and_a_bundle_that_names_its_robot(kinfer, robot, bundle_factory, tmp_path, dead_port):
    words = ["--port", str(dead_port), "--for", "0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.control.damp", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.startswith(f"ksim damp: no KOS server at 127.0.0.1:{dead_port} ")
    # who asks for this needs no twin
    assert "NOT damped" in done.stderr and "cut the motors' power" in done.stderr and "ksim twin" not in done.stderr
    assert done.stderr.count("\n") == 1
    write_bundle(tmp_path / "k.kinfer", bundle_factory(robot, with_spec=False))
    words = ["--bundle", str(tmp_path / "k.kinfer")]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.control.damp", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "does not say which robot it is for; use --robot" in done.stderr


def test_a_terminal_that_takes_nothing_holds_no_loop(kinfer, server, tmp_path):
    # as Ctrl-S does: what the run writes into its terminal is not taken, and nobody reads it
    import pty
    import termios

    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [
            *RUN,
            str(kinfer),
            "--port",
            str(server.port),
            "--log",
            str(tmp_path / "run.mcap"),
            "--duration",
            "60",
            "--max-late",
            "10",
            "--watchdog",
            "2",
        ],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    try:
        server.wait_for_policy(child)
        termios.tcflow(theirs, termios.TCOOFF)
        ticks = len(server.requests)
        time.sleep(2.5)  # more than one of its lines
        assert len(server.requests) > ticks + 100 and not limp(server)
        termios.tcflow(theirs, termios.TCOON)
        child.send_signal(signal.SIGINT)
        threading.Thread(target=lambda: os.read(ours, 65536), daemon=True).start()
        assert child.wait(20) == 130 and limp(server)
    finally:
        child.kill()
        os.close(theirs)
        os.close(ours)


# what a review of it found


def test_gains_that_come_late_do_not_leave_a_damped_robot_stiff(kinfer, server, tmp_path):
    # the first gains of a run hang in the server for longer than the run waits for them, and are set then
    configure, held = server.configure, []

    def late(request):
        if request.kp > 0:
            held.append(request.actuator_id)
            time.sleep(0.8)
        return configure(request)

    server.configure = late
    options = RunOptions(bundle=kinfer, port=server.port, log=tmp_path / "run.mcap", duration_s=1.0, watchdog_s=0.0)
    report = run(options)
    assert (report.ended, report.damped) == ("lost", True) and len(held) == 3
    time.sleep(1.0)
    assert limp(server)


def test_a_robot_that_is_not_connected_yet_is_sought(server):
    async def take() -> bool:
        robot = KosRobot(server.robot, "127.0.0.1", server.port)
        try:
            return (await damp_joints(robot, safe(Limits.from_spec(server.robot)), 5.0)).done
        finally:
            await robot.close()

    stiffen(server)
    with asyncio.Runner() as runner:
        assert runner.run(take()) and limp(server)


def test_a_second_run_by_another_name_of_the_host_is_refused(kinfer, server, tmp_path):
    child, _ = begin(kinfer, server, tmp_path)
    words = ["--host", "localhost", "--port", str(server.port), "--log", str(tmp_path / "b.mcap")]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    second = subprocess.run([*RUN, str(kinfer), *words], capture_output=True, text=True, timeout=60, env=env)
    assert second.returncode == 1 and "another run on localhost" in second.stderr
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)


def test_the_robot_is_taken_as_long_as_its_watchdog_damps_it(kinfer, server, tmp_path):
    child, log = begin(kinfer, server, tmp_path)
    server.refuse_configure = {12}
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    words = ["--port", str(server.port), "--log", str(tmp_path / "b.mcap")]
    second = subprocess.run([*RUN, str(kinfer), *words], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "another run on" in second.stderr
    server.refuse_configure = set()
    assert note(log)["damped"]
    child.communicate(timeout=20)


def test_what_lies_in_the_current_folder_is_not_taken_for_ours(kinfer, server, tmp_path):
    for name in ("deploy.py", "queue.py", "signal.py"):
        (tmp_path / name).write_text("raise SystemExit('taken')")
    words = [str(kinfer), "--port", str(server.port), "--log", str(tmp_path / "run.mcap"), "--duration", "0.3"]
    # what an earlier watchdog said goes with the log that it said it of
    note_of(tmp_path / "run.mcap").write_text("{}")
    command = [sys.executable, "-P", "-m", "deploy.control.run", *words, "--max-late", "10", "--watchdog", "1"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    assert not note_of(tmp_path / "run.mcap").exists()
