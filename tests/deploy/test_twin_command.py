"""The command `ksim twin`: signals, ports, hosts, and where the truth is written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.twin.server import Twin, TwinError, spawn_twin
from robots.load import load_robot

ROBOT = load_robot("kbot")
HOME = np.asarray(ROBOT.column("home_rad"))


def command_line(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.twin.server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_0_and_the_truth_is_written(tmp_path: Path, number: signal.Signals) -> None:
    process = command_line("--port", "0", "--truth", str(tmp_path / "truth.npz"))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("twin: kbot on 127.0.0.1:") and "127.0.0.1:0 " not in line
    time.sleep(0.3)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    truth = np.load(tmp_path / "truth.npz")
    assert truth["time_s"][-1] > 0.2
    assert truth["joint_position_rad"].shape == (len(truth["time_s"]), 20)
    assert truth["held"].all()
    assert truth["qpos"].shape == (len(truth["time_s"]), 27)
    np.testing.assert_allclose(truth["qpos"][0, 7:], HOME)


def test_a_port_in_use_is_one_line_and_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = command_line("--port", str(port), "--lockstep")
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert out == ""
        assert errors.startswith(f"ksim twin: port {port} ") and errors.count("\n") == 1
        with pytest.raises(TwinError, match=f"port {port}"), spawn_twin(port=port):
            pass
        with pytest.raises(TwinError, match=f"port {port}"):
            Twin("kbot", port=port).start()


def one_line(*arguments: str) -> str:
    process = command_line("--port", "0", *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "", (process.returncode, out, errors)
    assert errors.startswith("ksim twin: ") and errors.count("\n") == 1, errors
    return errors


def test_a_place_where_the_truth_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here already")
    assert "is a folder; expected a file name ending in .npz" in one_line("--truth", str(tmp_path))
    assert "file" in one_line("--truth", str(file / "truth.npz"))
    assert "No such file or directory; expected a path that exists" in one_line("--truth", "/proc/x/truth.npz")
    assert file.read_text() == "here already"


def test_a_host_that_cannot_be_a_name_is_one_line() -> None:
    for host in ("a..b", "x" * 80 + ".local"):
        assert f"--host: got '{host}', expected an address" in one_line("--host", host)


def test_the_truth_is_written_when_the_terminal_is_gone(tmp_path: Path) -> None:
    process = command_line("--port", "0", "--truth", str(tmp_path / "truth.npz"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=30)
    assert (tmp_path / "truth.npz").exists()
