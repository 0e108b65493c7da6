"""The keyboard as a source of commands: keys by their values, then in a real terminal."""

import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest

from deploy.control.commands.keyboard import Keyboard, Keys
from deploy.control.commands.source import StopAsked
from deploy.control.run import RunOptions, run
from deploy.log.recorder import read_log
from tests.deploy.live_commands import Ticks, check_record, until


def pressed(guard, text):
    keys = Keys(guard)
    stopped = keys.press(text.encode())
    return dict(zip(guard.names, keys.values.tolist(), strict=True)), stopped


def test_k_scale_s_keys_step_and_end_where_theirs_do_or_the_policy_s_range(guard):
    assert pressed(guard, "www") == ({"xvel": 0.3, "yawrate": 0.0, "baseheight": 0.0}, [])
    assert pressed(guard, "wwWwwwwwwwww")[0]["xvel"] == 0.8, "their end, within the range"
    assert pressed(guard, "ssssssss")[0]["xvel"] == -0.5, "the range's end"
    assert pressed(guard, "ssssssssw")[0]["xvel"] == -0.4, "a key at the end is not owed back"
    assert pressed(guard, "qqe=--")[0] == {"xvel": 0.0, "yawrate": 0.1, "baseheight": -0.05}
    assert pressed(guard, "wwq0") == (dict.fromkeys(guard.names, 0.0), [])
    assert pressed(guard, "adrfzx\n?")[0] == dict.fromkeys(guard.names, 0.0), "no such commands here"
    assert pressed(guard, "w w")[1] == [StopAsked("the space bar")]
    assert pressed(guard, "w\x7f")[1] == pressed(guard, "\x08")[1] == [StopAsked("backspace", gently=True)]


def test_sequences_of_other_keys_are_none_and_may_come_in_parts(guard):
    # up, F1, page down, ctrl-right, alt-w; then the key itself
    assert pressed(guard, "\x1b[A\x1bOP\x1b[6~\x1b[1;5C\x1bww")[0]["xvel"] == 0.1
    keys = Keys(guard)
    assert not any(
        [keys.press(b"\x1b"), keys.press(b"["), keys.press(b"1;5"), keys.press(b"D"), keys.press("ß é".encode()[:2])]
    )
    assert keys.values.tolist() == guard.rest.tolist()


# makes its standard input the terminal of a session of its own, then becomes the command
LEAD = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A pseudo-terminal with a command in its foreground."""

    def __init__(self, *command):
        self.master, self._slave = pty.openpty()
        self.before = self.settings()
        words = [sys.executable, "-c", LEAD, *command]
        self.child = subprocess.Popen(
            words, stdin=self._slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def settings(self):
        return termios.tcgetattr(self._slave)

    def echoes(self):
        return bool(self.settings()[3] & termios.ECHO)

    def type(self, text):
        os.write(self.master, text.encode())

    def end(self):
        out, err = self.child.communicate(timeout=60)
        assert "Traceback" not in err
        return out, err

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()
        os.close(self.master)
        os.close(self._slave)


def run_words(kinfer, port, tmp_path, *more):
    patient = ("--watchdog", "2", "--max-late", "10", "--duration", "60", "--log", str(tmp_path / "run.mcap"))
    return [sys.executable, "-m", "deploy.control.run", str(kinfer), "--port", str(port), *patient, *more]


@pytest.fixture
def terminal(kinfer, server, tmp_path):
    terminal = Terminal(*run_words(kinfer, server.port, tmp_path, "--command-from", "keyboard"))
    try:
        server.wait_for_policy(terminal.child)
        assert not terminal.echoes()
        yield terminal
        assert terminal.settings() == terminal.before
    finally:
        terminal.close()


def test_keys_drive_a_run_and_space_stops_it_with_the_terminal_as_it_was(terminal, server, tmp_path):
    home = np.rad2deg(0.3)
    terminal.type("ww\x1b[Aq")
    until(lambda: server.target_deg[31] == pytest.approx(home + np.rad2deg(0.02), abs=1e-3))
    time.sleep(0.8)  # a key's value stays
    until(lambda: server.target_deg[31] == pytest.approx(home + np.rad2deg(0.02), abs=1e-3))
    terminal.type("0")
    until(lambda: server.target_deg[31] == pytest.approx(home, abs=1e-3))
    terminal.type(" ")
    out, _ = terminal.end()
    assert terminal.child.returncode == 0 and "ended      stopped: the space bar was pressed" in out
    assert server.damped()
    log = read_log(tmp_path / "run.mcap")
    assert log.result["ended"] == "stopped" and log.phase[-1] == "damp" and log.metadata["command_source"] == "keyboard"
    assert check_record(log)[:, 0].max() == np.float32(0.2)
    assert log.metadata["schedule"] == [{"at_s": 0.0, "vx": 0.0, "yaw": 0.0}]


def test_backspace_brings_the_command_to_zero_and_softens_before_the_robot_is_limp(terminal, server, tmp_path):
    terminal.type("ww")
    until(lambda: server.target_deg[31] == pytest.approx(np.rad2deg(0.3 + 0.02), abs=1e-3))
    terminal.type("\x7f")
    out, _ = terminal.end()
    assert terminal.child.returncode == 0 and "ended      stopped: backspace was pressed" in out
    assert server.damped()
    log = read_log(tmp_path / "run.mcap")
    stopping = np.flatnonzero(log.mask("stop"))
    # 1 s of rest and 0.3 s of softening, but for ticks that a busy machine left out
    assert 20 <= len(stopping) <= 67 and log.phase[-1] == "damp"
    assert np.nanmin(log.inputs["command"][stopping, 0]) == 0.0


def test_a_stop_at_once_counts_more_than_a_gentle_one(guard):
    master, slave = pty.openpty()
    source = Keyboard(guard, slave)
    try:
        os.write(master, b"\x7f")
        until(source.stop_asked)
        assert source.stop_asked().gently
        os.write(master, b" ")
        until(lambda: not source.stop_asked().gently)
        os.write(master, b"\x7f")
        time.sleep(0.3)
        assert source.stop_asked() == StopAsked("the space bar")
    finally:
        source.close()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x1c", -signal.SIGQUIT)])
def test_ctrl_c_and_ctrl_backslash_are_what_they_are_and_the_terminal_is_put_back(terminal, key, code):
    terminal.type(key)
    terminal.end()
    assert terminal.child.returncode == code


def test_a_fault_leaves_the_terminal_as_it_was(terminal, server):
    server.faults[31] = ["over temperature"]
    terminal.end()
    assert terminal.child.returncode == 1


def test_space_before_the_robot_is_touched_starts_nothing(kinfer, tmp_path, dead_port):
    terminal = Terminal(*run_words(kinfer, dead_port, tmp_path, "--command-from", "keyboard"))
    try:
        until(lambda: not terminal.echoes(), 60)
        terminal.type(" ")
        out, _ = terminal.end()
        assert terminal.child.returncode == 1 and "the space bar was pressed before the robot was touched" in out
        assert terminal.settings() == terminal.before and not (tmp_path / "run.mcap").exists()
    finally:
        terminal.close()


def test_space_ends_the_wait_for_a_server(kinfer, tmp_path, dead_port, monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        press = threading.Timer(0.5, os.write, (master, b" "))
        press.start()
        begin = time.monotonic()
        values = {
            "port": dead_port,
            "log": tmp_path / "run.mcap",
            "connect_timeout_s": 60.0,
            "command_from": "keyboard",
        }
        report = run(RunOptions(bundle=kinfer, **values))
        press.join()
    os.close(master)
    assert report.ended == "stopped" and report.exit_code == 1 and time.monotonic() - begin < 40


# a program with the keyboard whose terminal gives its foreground to another one, and its keys with it
BACKGROUND = """
import os, signal, subprocess, sys, time
import numpy as np
from deploy.control.commands.guard import CommandGuard
from deploy.control.commands.keyboard import Keyboard
one = np.ones(1)
source = Keyboard(CommandGuard(names=("xvel",), low=-one, high=one, rest=0 * one, slew_per_s=100 * one))
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "input()"], process_group=0)
k = 0
def at():
    global k
    k += 1
    time.sleep(0.01)
    return source.at(0.02 * k)[0]
while at() < 0.3: pass
os.tcsetpgrp(0, other.pid)
print("background", flush=True)
while not source.last.silent: at()
for _ in range(50): assert at() == 0
os.tcsetpgrp(0, os.getpgrp())
while source.last.silent: at()
print(round(at(), 9), flush=True)
other.kill()
source.close()
"""


def test_keys_for_another_program_in_the_foreground_are_not_read_and_stop_nothing():
    terminal = Terminal(sys.executable, "-c", BACKGROUND)
    try:
        until(lambda: not terminal.echoes(), 60)
        terminal.type("www")
        assert terminal.child.stdout.readline() == "background\n"
        terminal.type("w ")
        _, err = terminal.end()
        assert terminal.child.returncode == 0, err
        assert terminal.settings() == terminal.before
    finally:
        terminal.close()


def test_a_run_in_the_background_of_its_terminal_is_refused_and_not_stopped(kinfer, server, tmp_path):
    words = run_words(kinfer, server.port, tmp_path, "--command-from", "keyboard")
    terminal = Terminal("/bin/sh", "-c", 'set -m; "$@" & wait $!', "sh", *words)
    try:
        _, err = terminal.end()
        assert terminal.child.returncode == 1 and "the run is in the background of its terminal" in err
        assert terminal.settings() == terminal.before and server.requests == []
    finally:
        terminal.close()


def test_a_terminal_that_is_gone_is_silence(guard):
    master, slave = pty.openpty()
    source = Keyboard(guard, slave)
    ticks = Ticks(source)
    try:
        os.write(master, b"www")
        ticks.reach([0.3, 0.0, 0.0])
        os.close(master)
        ticks.reach([0.0, 0.0, 0.0])
        assert source.last.silent and "keyboard: no command for 0.5 s: all go to zero" in source.news()
    finally:
        source.close()
        os.close(slave)


def test_without_a_terminal_the_keyboard_is_refused_in_one_line(kinfer, server, tmp_path):
    words = run_words(kinfer, server.port, tmp_path, "--command-from", "keyboard")
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "standard input is no terminal; expected one; start the run in a terminal" in done.stderr
    assert server.requests == []
