"""The log's writer as a process: what happens to the run where it dies, hangs, or loses its disk."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader

from deploy.control.run import RunOptions, run
from deploy.errors import LogError
from deploy.log.recorder import Recorder, read_log
from deploy.log.tick import Packer
from robots.bundle import read_bundle
from tests.deploy.test_recorder import log_file, tick


def writer_of(pid: int) -> int:
    """The process of a run's log writer: other tests have theirs."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            mine = f"PPid:\t{pid}\n" in (process / "status").read_text()
            if mine and b"deploy.log.writer" in (process / "cmdline").read_bytes():
                return int(process.name)
    raise AssertionError("no writer runs")


@pytest.fixture
def run_with(tmp_path, kinfer, server):
    """A run in this process, and what is done to it at its tenth command."""

    def go(fault, **changes):
        def once(count: int) -> None:
            if count == 10:
                fault(writer_of(os.getpid()))

        server.on_tick = once
        values = {"bundle": kinfer, "port": server.port, "log": tmp_path / "logs" / "run.mcap"}
        values |= {"watchdog_s": 0.0, "late_max": 10.0, "lost_ticks_max": 10_000, "duration_s": 30.0}
        report = run(RunOptions(**(values | changes)))
        assert report.damped and server.damped()
        return report

    return go


def test_a_writer_that_dies_ends_the_run_damped_and_the_loss_is_told(run_with):
    report = run_with(lambda writer: os.kill(writer, signal.SIGKILL))
    assert (report.ended, report.exit_code) == ("error", 1) and report.survived_s < 10.0
    assert "cannot be written (its writer's process is gone)" in report.message
    assert re.search(r"; \d+ of \d+ ticks may be missing; ksim log recover", report.message), report.message


def test_a_writer_that_is_held_up_for_a_while_holds_nobody_and_loses_nothing(run_with, server, monkeypatch):
    monkeypatch.setattr("deploy.log.recorder.BUFFER", 2048)  # what is handed over waits in the loop's own memory
    commands: list[int] = []

    def hold(writer: int) -> None:
        def resume() -> None:
            commands.append(sum(kind == "command" for kind, _ in list(server.requests)))
            os.kill(writer, signal.SIGCONT)

        os.kill(writer, signal.SIGSTOP)
        threading.Timer(2.0, resume).start()

    report = run_with(hold, duration_s=4.0)
    assert (report.ended, report.exit_code) == ("completed", 0)
    assert commands[0] > 40, "the loop kept its beat meanwhile"
    log = read_log(report.log)
    assert log.complete and len(log.tick) == report.ticks + 1
    assert np.isfinite(log.sent).all() and log.run.sum() == round(report.survived_s / 0.02)


def test_a_writer_that_takes_nothing_for_too_long_ends_the_run(run_with, server, monkeypatch):
    monkeypatch.setattr("deploy.log.recorder.BUFFER", 2048)
    stopped: list[int] = []

    def stop(writer: int) -> None:
        stopped.append(writer)
        os.kill(writer, signal.SIGSTOP)
        monkeypatch.setattr("deploy.log.recorder.HELD_S", 1.0)  # coming up may take longer

    report = run_with(stop)
    assert report.ended == "error" and 0.5 < report.survived_s < 15.0
    assert "its writer has taken nothing for 1 s" in report.message
    os.kill(stopped[0], signal.SIGCONT)
    deadline = time.monotonic() + 20
    while not has_an_index(report.log):  # it writes what it was given, and closes the file by itself
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log = read_log(report.log)
    assert not log.complete and len(log.tick) > 5 and (np.diff(log.tick) >= 0).all()


def has_an_index(path: Path) -> bool:
    with path.open("rb") as file, contextlib.suppress(Exception):
        return make_reader(file).get_summary() is not None
    return False


@pytest.mark.parametrize("what", ["file", "folder", "moved"])
def test_a_log_that_is_deleted_ends_the_run(run_with, tmp_path, what):
    log = tmp_path / "logs" / "run.mcap"
    do = {
        "file": log.unlink,
        "folder": lambda: shutil.rmtree(log.parent),
        "moved": lambda: log.rename(log.with_name("other.mcap")),
    }
    report = run_with(lambda writer: do[what]())
    assert report.ended == "error" and report.survived_s < 15.0
    assert "cannot be written (it was deleted or moved while it was being written)" in report.message
    if what == "moved":
        assert read_log(log.with_name("other.mcap")).complete


def test_a_disk_that_is_full_at_the_end_is_a_failure_of_a_completed_run(run_with, tmp_path):
    def full(writer: int) -> None:
        size = (tmp_path / "logs" / "run.mcap").stat().st_size
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (size, size))

    report = run_with(full, duration_s=0.3, soften_s=0.0)
    assert (report.ended, report.exit_code) == ("error", 1)
    assert "it could not be finished (File too large)" in report.message


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room_again(tmp_path, kinfer):
    path = tmp_path / "a.mcap"
    file = log_file(path, kinfer, map(tick, range(4)))
    size, (soft, hard) = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    file.tick(Packer(array.name for array in read_bundle(kinfer).spec.inputs).pack(tick(4)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size and len(read_log(path).tick) == 4, "no half of a chunk is left at its end"
    file.close({"ended": "completed"})
    log = read_log(path)
    assert log.complete and log.tick.tolist() == [0, 1, 2, 3, 4]


def test_signals_of_the_terminal_do_not_reach_the_writer(tmp_path, kinfer):
    log = Recorder(tmp_path / "a.mcap", spec=read_bundle(kinfer).spec, bundle=b"", settings={})
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(writer_of(os.getpid()), signum)
    log.tick(tick(0))
    log.close({})
    assert read_log(tmp_path / "a.mcap").complete


def test_a_tick_after_the_writer_has_died_is_refused_in_one_line(tmp_path, kinfer):
    log = Recorder(tmp_path / "a.mcap", spec=read_bundle(kinfer).spec, bundle=b"", settings={})
    log._process.process.kill()
    log._process.process.wait()
    log.event(0.0, "note", "an event never raises")
    with pytest.raises(LogError, match="cannot be written") as caught:
        log.tick(tick(0))
    assert "\n" not in str(caught.value)
    with pytest.raises(LogError, match=r"its writer's process is gone\); 1 of 1 ticks may be missing"):
        log.close({})
    log.close()


def test_a_loop_in_lock_step_waits_for_its_log(tmp_path, kinfer, monkeypatch):
    monkeypatch.setattr("deploy.log.recorder.BUFFER", 2048)
    bundle = bytes(range(256)) * 4096  # more than the system takes at once
    log = Recorder(tmp_path / "a.mcap", spec=read_bundle(kinfer).spec, bundle=bundle, settings={}, patient=True)
    for k in range(300):
        log.tick(tick(k))
        assert not log._waiting
    log.close({})
    assert len(read_log(tmp_path / "a.mcap").tick) == 300
    with (tmp_path / "a.mcap").open("rb") as file:
        assert [a.data for a in make_reader(file).iter_attachments()] == [bundle]
