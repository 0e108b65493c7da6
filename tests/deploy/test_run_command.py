"""`ksim run` as a command, most of it in a process of its own: what it says, signals, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from deploy.control.run import main
from deploy.log.recorder import read_log

# a busy test machine is no fault
PATIENT = ("--watchdog", "2", "--max-late", "10")


def command_line(kinfer, server, tmp_path, *more):
    return [str(kinfer), "--port", str(server.port), "--log", str(tmp_path / "run.mcap"), *PATIENT, *more]


def test_json_is_one_object_on_stdout(kinfer, server, tmp_path, capsys):
    code = main(
        command_line(
            kinfer, server, tmp_path, "--duration", "0.3", "--command", "vx=0.1", "--command", "yaw=0", "--json"
        )
    )
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert code == result["exit_code"] == 0 and result["ended"] == "completed" and "ended      completed" in err
    assert result["log"] == str(tmp_path / "run.mcap") and result["timing"]["period_error_p99_ms"] >= 0


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0 and "ksim run policy.kinfer --host" in capsys.readouterr().out


def start(kinfer, server, tmp_path, *more, through=()):
    """The command in a process of its own, running its policy; `through` are words of a command that executes it."""
    child = subprocess.Popen(
        [
            *through,
            sys.executable,
            "-m",
            "deploy.control.run",
            *command_line(kinfer, server, tmp_path, "--duration", "30", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    server.wait_for_policy(child)
    return child


@pytest.mark.parametrize(
    ("signum", "code", "ended"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_a_signal_ends_the_run_damped_with_its_own_exit_code(kinfer, server, tmp_path, signum, code, ended):
    child = start(kinfer, server, tmp_path)
    child.send_signal(signum)
    out, err = child.communicate(timeout=20)
    assert child.returncode == code and f"ended      {ended}" in out and "Traceback" not in err
    assert server.damped()
    log = read_log(tmp_path / "run.mcap")
    assert log.complete and log.result["ended"] == ended and log.phase[-1] == "damp"


def test_a_killed_run_leaves_a_log_up_to_its_last_tick(kinfer, server, tmp_path):
    child = start(kinfer, server, tmp_path)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=20)
    commands = sum(1 for kind, _ in server.requests if kind == "command")
    log = read_log(tmp_path / "run.mcap")
    # the first command only holds; the last may have been sent and not yet recorded
    assert not log.complete and commands - 2 <= log.run.sum() <= commands - 1
    assert log.bundle is not None and np.isfinite(log.sent).all()


def test_a_full_disk_ends_the_run_damped(kinfer, server, tmp_path):
    # a shell sets the limit: a function between fork and exec meets the threads of this process's gRPC server
    small_files = ("sh", "-c", 'ulimit -f 117 && exec "$@"', "sh")  # blocks of 512 bytes
    child = start(kinfer, server, tmp_path, "--json", through=small_files)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 1 and "File too large" in json.loads(out)["message"] and "Traceback" not in err
    assert server.damped()
    assert len(read_log(tmp_path / "run.mcap").tick) > 15


def test_a_signal_while_connecting_ends_at_once(kinfer, tmp_path, dead_port):
    child = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "deploy.control.run", str(kinfer), "--port", str(dead_port)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    for line in child.stderr:
        if "onnxruntime" in line:
            break
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 130 and "before the robot was touched" in out and "Traceback" not in err
    assert list(tmp_path.glob("*.mcap")) == []


def test_errors_are_one_line_on_stderr(kinfer, tmp_path, dead_port):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy.control.run",
            str(kinfer),
            "--port",
            str(dead_port),
            "--log",
            str(tmp_path / "x.mcap"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"ksim run: no KOS server at 127.0.0.1:{dead_port} ") and done.stderr.count("\n") == 1


def test_importing_the_command_loads_no_simulator_and_no_training():
    code = (
        "import sys, deploy.control.run; "
        "print([m for m in ('jax', 'mujoco', 'equinox', 'optax', 'ksim', 'export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout == "[]\n", done.stderr
