"""Live commands: the guard by hand, keys and datagrams and sticks by their values, then each through a whole run."""

import contextlib
import errno
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.control.commands import LiveSource, live_kind, open_live
from deploy.control.commands.gamepad import (
    ABS_RX,
    ABS_X,
    ABS_Y,
    ABS_Z,
    BTN_EAST,
    BTN_START,
    EV_ABS,
    EV_KEY,
    EV_SYN,
    SYN_DROPPED,
    Gamepad,
    Sticks,
    deflection,
    is_gamepad,
)
from deploy.control.commands.guard import Change, ChangeKind, CommandGuard
from deploy.control.commands.keyboard import Keyboard, Keys
from deploy.control.commands.udp import BATCH, PAUSE_S, Datagrams, UdpCommands, parse_address
from deploy.control.run import RunOptions, main, run
from deploy.errors import CheckError, LogError
from deploy.log.recorder import read_log
from robots.spec import CommandSpec
from toolkit.cli import run_verb
from toolkit.errors import SettingsError


def guard_of(policy_spec_factory, robot, *commands):
    spec = policy_spec_factory(robot)
    given = tuple(CommandSpec(name=n, low=low, high=high, unit=unit) for n, low, high, unit in commands)
    return CommandGuard.from_spec(spec.replace(commands=given, inputs=()))


@pytest.fixture
def guard(policy_spec_factory, robot):
    return guard_of(
        policy_spec_factory,
        robot,
        ("xvel", -0.5, 1.0, "m/s"),
        ("yawrate", -1.0, 1.0, "rad/s"),
        ("baseheight", -0.3, 0.1, "m"),
    )


# the guard


def test_a_velocity_moves_by_0_05_a_tick_as_on_k_scale_s_robots_and_others_by_their_range_in_0_64_s(guard):
    at = guard.apply(np.zeros(3), np.array([1.0, -1.0, -0.3]), age_s=0.0, dt_s=0.02)
    assert at.command.tolist() == pytest.approx([0.05, -0.05, -0.0125])
    assert [c.kind for c in at.changes] == [ChangeKind.SLEW] * 3
    # a skipped tick is made up for; what is near enough is reached
    assert guard.apply(np.zeros(3), np.array([1.0, 0.1, 0.0]), 0.0, 0.06).command.tolist() == pytest.approx(
        [0.15, 0.1, 0]
    )
    done = guard.apply(np.array([0.98, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]), 0.0, 0.02)
    assert done.command.tolist() == [1.0, 0.0, 0.0] and done.changes == ()


def test_what_the_policy_was_not_trained_for_is_clamped_and_what_is_no_number_is_rest(guard):
    at = guard.apply(np.array([-0.48, 0.0, 0.0]), np.array([-7.0, np.nan, np.inf]), 0.0, 0.02)
    assert at.command.tolist() == [-0.5, 0.0, 0.0]
    assert at.changes[0] == Change("xvel", ChangeKind.RANGE, -7.0, -0.5)
    assert [c.kind for c in at.changes] == [ChangeKind.RANGE] * 3


def test_a_source_that_is_silent_for_more_than_half_a_second_is_slewed_to_rest(guard):
    wanted = np.array([0.5, 0.0, 0.0])
    assert guard.apply(wanted, wanted, 0.5, 0.02).command.tolist() == wanted.tolist()
    at = guard.apply(wanted, wanted, 0.501, 0.02)
    assert at.silent and at.command.tolist() == pytest.approx([0.45, 0.0, 0.0])
    assert [(c.command, c.kind) for c in at.changes] == [("xvel", ChangeKind.SILENT)]
    assert guard.apply(wanted, wanted, np.inf, 0.02).silent and guard.apply(wanted, wanted, np.nan, 0.02).silent


def test_rest_is_the_end_of_a_range_that_leaves_0_out(policy_spec_factory, robot):
    guard = guard_of(policy_spec_factory, robot, ("xvel", 0.2, 0.6, "m/s"), ("yvel", -0.6, -0.2, "m/s"))
    assert guard.rest.tolist() == [0.2, -0.2]
    assert guard.apply(np.array([0.21, -0.21]), np.array([0.6, -0.6]), 1.0, 0.02).command.tolist() == [0.2, -0.2]


def test_a_bundle_that_tells_no_ranges_gets_the_ends_of_k_scale_s_keyboard(policy_spec_factory, robot):
    names = ("xvel", "yaw_rate", "baseheight", "relbowpitch")
    guard = guard_of(policy_spec_factory, robot, *((name, -1e6, 1e6, "") for name in names))
    assert guard.high.tolist() == pytest.approx([0.8, 0.8, 0.3, np.pi]) and guard.low.tolist() == (-guard.high).tolist()


@given(
    wanted=st.lists(st.lists(st.floats(), min_size=3, max_size=3), min_size=1, max_size=20),
    ages=st.lists(st.floats(0, 2), min_size=20, max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_asked_for_the_command_stays_in_range_and_within_its_rate(wanted, ages):
    low, high = np.array([-0.5, 0.2, 0.0]), np.array([1.0, 0.6, 0.0])
    rest = np.clip(0.0, low, high)
    guard = CommandGuard(names=("a", "b", "c"), low=low, high=high, rest=rest, slew_per_s=np.array([2.5, 1.0, 0.0]))
    before = rest
    for asked, age in zip(wanted, ages, strict=False):
        command = guard.apply(before, np.array(asked), age, 0.02).command
        assert np.all((low <= command) & (command <= high))
        assert np.all(np.abs(command - before) <= guard.slew_per_s * 0.02 + 1e-12)
        before = command


# keys


def pressed(guard, text):
    keys = Keys(guard)
    stopped = keys.press(text.encode())
    return dict(zip(guard.names, keys.values.tolist(), strict=True)), stopped


def test_k_scale_s_keys_step_and_end_where_theirs_do_or_the_policy_s_range(guard):
    assert pressed(guard, "www") == ({"xvel": 0.3, "yawrate": 0.0, "baseheight": 0.0}, False)
    assert pressed(guard, "wwWwwwwwwwww")[0]["xvel"] == 0.8, "their end, within the range"
    assert pressed(guard, "ssssssss")[0]["xvel"] == -0.5, "the range's end"
    assert pressed(guard, "ssssssssw")[0]["xvel"] == -0.4, "a key at the end is not owed back"
    assert pressed(guard, "qqe=--")[0] == {"xvel": 0.0, "yawrate": 0.1, "baseheight": -0.05}
    assert pressed(guard, "wwq0") == (dict.fromkeys(guard.names, 0.0), False)
    assert pressed(guard, "adrfzx\n?")[0] == dict.fromkeys(guard.names, 0.0), "no such commands here"
    assert pressed(guard, "w w")[1]


def test_sequences_of_other_keys_are_none_and_may_come_in_parts(guard):
    # up, F1, page down, ctrl-right, alt-w; then the key itself
    assert pressed(guard, "\x1b[A\x1bOP\x1b[6~\x1b[1;5C\x1bww")[0]["xvel"] == 0.1
    keys = Keys(guard)
    assert not any(
        [keys.press(b"\x1b"), keys.press(b"["), keys.press(b"1;5"), keys.press(b"D"), keys.press("ß é".encode()[:2])]
    )
    assert keys.values.tolist() == guard.rest.tolist()


# datagrams


def taken(guard, *datagrams):
    state = Datagrams(guard)
    said = [state.take(d if isinstance(d, bytes) else json.dumps(d).encode()) for d in datagrams]
    return state.values.tolist(), said


def test_k_scale_s_json_sets_commands_by_name_and_keeps_the_others(guard):
    values, said = taken(
        guard, {"xvel": 0.3, "yvel": 1, "lwristroll": 0.2}, {"commands": {"YawRate": -0.1}}, b'{"xvel": 0.4}\n'
    )
    assert values == [0.4, -0.1, 0.0] and said == ["", "", ""]
    assert taken(guard, {"xvel": 0.3}, {"type": "reset"}) == ([0.0, 0.0, 0.0], ["", ""])
    assert taken(guard, {"type": "reset", "xvel": 1})[0] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("datagram", "why"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"xvel": NaN}', "the number NaN"),
        (b'{"xvel": 1e999}', "the number 1e999"),
        (b'{"xvel": 0.1, "xvel": 0.2}', "twice"),
        (b"[0.1, 0.2]", "a JSON list"),
        (b'{"commands": [0.1]}', "commands is a list"),
        (b'{"xvel": "0.3"}', "xvel: got '0.3', expected a finite number"),
        (b'{"xvel": true}', "xvel: got True"),
        (b'{"yawrate": 0.2, "xvel": null}', "xvel: got None"),
        (b'{"yvel": 0.2}', "no command of this policy"),
        (b"{}", "no command of this policy"),
        (b'{"xvel": 0.1}' + b" " * 5000, "more than 4096 bytes"),
        (b"[" * 4000, "nested too deep"),
    ],
)
def test_a_datagram_that_is_not_whole_changes_nothing_and_says_why(guard, datagram, why):
    values, said = taken(guard, {"xvel": 0.3}, datagram)
    assert values == [0.3, 0.0, 0.0] and why in said[1] and "\n" not in said[1]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["xvel", "commands", "type", "", "XVEL"]), inner)
    ),
    max_leaves=10,
)


@given(data=st.binary(max_size=200) | ANYTHING.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_no_datagram_hurts(data):
    one = np.ones(1)
    state = Datagrams(CommandGuard(names=("xvel",), low=-one, high=one, rest=0 * one, slew_per_s=one))
    state.take(data)
    assert np.isfinite(state.values).all() and len(state.unknown) <= 16


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", ("127.0.0.1", 10000)),
        ("9000", ("127.0.0.1", 9000)),
        ("0.0.0.0", ("0.0.0.0", 10000)),
        ("robot:1", ("robot", 1)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::1]", ("::1", 10000)),
    ],
)
def test_an_address_is_a_host_a_port_or_both(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["a:b", "host:", "host:0", "host:65536", "0", "::1", "a:1:2", "host:-1", ":9:"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(CheckError, match="expected udp, udp:PORT"):
        parse_address(text)


# sticks


def test_sticks_drive_to_the_ends_of_the_range_and_rest_in_their_middle(guard):
    assert deflection(0, -32768, 32767) == 0 and deflection(2000, -32768, 32767) == 0
    assert deflection(255, 0, 255) == 1 and deflection(0, 0, 255) == -1 and deflection(128, 0, 255) == 0
    assert deflection(55, -100, 100) == pytest.approx(0.5)
    sticks = Sticks(guard, {ABS_X: (-100, 100), ABS_Y: (-100, 100), ABS_RX: (-100, 100), ABS_Z: (0, 255)})
    for code, value in ((ABS_Y, -100), (ABS_RX, 55), (ABS_Z, 255), (ABS_X, -100)):
        assert sticks.event(EV_ABS, code, value) == ""
    assert sticks.values.tolist() == pytest.approx([1.0, -0.5, 0.0]), "forward, to the right; the trigger is no stick"
    sticks.event(EV_ABS, ABS_Y, 55)
    assert sticks.values[0] == pytest.approx(-0.25), "half of what is behind"
    sticks.event(EV_ABS, ABS_Y, 0)
    assert sticks.values[0] == 0.0


def test_b_and_start_stop_when_they_are_pressed(guard):
    sticks = Sticks(guard, {ABS_X: (0, 255), ABS_Y: (0, 255), ABS_Z: (0, 255)})
    assert "B" in sticks.event(EV_KEY, BTN_EAST, 1) and "START" in sticks.event(EV_KEY, BTN_START, 1)
    assert (
        sticks.event(EV_KEY, BTN_EAST, 0) == sticks.event(EV_KEY, 0x130, 1) == sticks.event(EV_SYN, BTN_EAST, 1) == ""
    )
    sticks.event(EV_ABS, ABS_Z, 0)
    assert sticks.values[1] == 1.0, "a pad without RX has its second stick at Z"


def test_a_touchpad_a_joystick_and_a_keyboard_are_no_gamepads():
    sticks, digitizer = [ABS_X, ABS_Y, ABS_RX], [0x145, 0x14A]
    assert is_gamepad({EV_ABS: sticks, EV_KEY: [0x130, BTN_EAST]})
    for able in ({EV_ABS: sticks, EV_KEY: digitizer}, {EV_ABS: sticks, EV_KEY: [0x120]}, {EV_KEY: [30, 0x130]}, {}):
        assert not is_gamepad(able)


class PipePad:
    """The kernel's side of a gamepad by what evdev's device offers, its events as the kernel's own bytes in a pipe."""

    name, path = "pipe pad", "/dev/input/pipe"

    def __init__(self):
        self.fd, self._kernel = os.pipe()
        os.set_blocking(self.fd, False)
        self.positions = {ABS_X: 0, ABS_Y: 0, ABS_RX: 0}

    def send(self, type_, code, value):
        os.write(self._kernel, struct.pack("llHHi", 0, 0, type_, code, value))

    def unplug(self):
        os.close(self._kernel)

    def capabilities(self):
        return {EV_ABS: [(code, SimpleNamespace(min=-100, max=100)) for code in self.positions]}

    def absinfo(self, code):
        return SimpleNamespace(value=self.positions[code])

    def read(self):
        data = os.read(self.fd, 24 * 64)
        if not data:
            raise OSError(errno.ENODEV, "No such device")
        for _, _, type_, code, value in struct.iter_unpack("llHHi", data):
            yield SimpleNamespace(type=type_, code=code, value=value)

    def close(self):
        os.close(self.fd)


def until(what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Ticks:
    """Ask a live source as the loop does, at 50 Hz of its own time."""

    def __init__(self, source):
        self.source, self.k = source, 0

    def __call__(self):
        self.k += 1
        return self.source.at(0.02 * self.k).tolist()

    def reach(self, command):
        until(lambda: self() == pytest.approx(command))


def test_a_gamepad_is_followed_unplugged_and_plugged_in_again(guard):
    pads = [PipePad()]

    def find(path):
        if not pads:
            raise CheckError("none")
        return pads.pop()

    pad = pads[0]
    source = Gamepad(guard, find=find)
    ticks = Ticks(source)
    try:
        assert ticks() == [0.0, 0.0, 0.0]
        pad.send(EV_ABS, ABS_Y, -100)
        ticks.reach([1.0, 0.0, 0.0])
        time.sleep(0.7)  # a stick that is held sends nothing
        ticks.reach([1.0, 0.0, 0.0])
        assert source.status() == "gamepad: xvel 1.00; B or START stops"
        pad.positions[ABS_Y] = 100
        pad.send(EV_SYN, SYN_DROPPED, 0)  # the kernel lost events: where the sticks are is asked anew
        ticks.reach([-0.5, 0.0, 0.0])
        pad.unplug()
        ticks.reach([0.0, 0.0, 0.0])
        assert source.last.silent and "silent" in source.status()
        assert any("unplugged" in line for line in source.news())
        again = PipePad()
        again.positions[ABS_RX] = -100
        pads.append(again)
        ticks.reach([0.0, 1.0, 0.0])
        assert source.stop_asked() == ""
        again.send(EV_KEY, BTN_START, 1)
        until(source.stop_asked)
    finally:
        source.close()


def test_a_real_virtual_gamepad_is_found_and_followed(guard):
    evdev = pytest.importorskip("evdev")
    stick = evdev.AbsInfo(value=0, min=-100, max=100, fuzz=0, flat=0, resolution=0)
    able = {EV_ABS: [(code, stick) for code in (ABS_X, ABS_Y, ABS_RX)], EV_KEY: [0x130, BTN_EAST, BTN_START]}
    try:
        pad = evdev.UInput(able, name="ksim test pad")
    except (OSError, evdev.UInputError) as error:
        pytest.skip(f"no uinput here: {error}")
    with pad:
        source = Gamepad(guard, pad.device.path)
        try:
            pad.write(EV_ABS, ABS_Y, -100)
            pad.syn()
            Ticks(source).reach([1.0, 0.0, 0.0])
            pad.write(EV_KEY, BTN_EAST, 1)
            pad.syn()
            until(source.stop_asked)
        finally:
            source.close()


def test_a_missing_evdev_is_one_line_that_says_how_to_install_it(kinfer, server, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "evdev", None)
    assert run_verb("run", main, [str(kinfer), "--port", str(server.port), "--command-from", "gamepad"]) == 1
    assert capsys.readouterr().err == "ksim run: needs evdev; install it with: pip install 'ksim2real[gamepad]'\n"
    assert server.requests == []


# UDP, over real sockets


class Sender:
    """Another program that sends the same datagram again and again, until it is told to be silent."""

    def __init__(self, port, message, period_s=0.02):
        self.socket, self._silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), threading.Event()
        self._to, self.message, self._period_s = ("127.0.0.1", port), message, period_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with self.socket:
            while not self._silent.wait(self._period_s):
                self.socket.sendto(json.dumps(self.message).encode(), self._to)

    def close(self):
        self._silent.set()
        self._thread.join()


def test_garbage_between_datagrams_changes_nothing_and_is_told_once(guard):
    source = UdpCommands(guard, port=0)
    ticks, sender = Ticks(source), Sender(source.address[1], {"xvel": 0.4, "hat": 1})
    try:
        ticks.reach([0.4, 0.0, 0.0])
        random = np.random.default_rng(0)
        for size in random.integers(0, 60_000, 200):
            sender.socket.sendto(random.bytes(int(size)), source.address)
        sender.message = {"yawrate": -9.0}
        ticks.reach([0.4, -1.0, 0.0])
        assert "yawrate -1.00 (range)" in source.status()
        sender.message = {"hat": 1}  # no sign of life
        ticks.reach([0.0, 0.0, 0.0])
        sender.close()
        told = source.news()
        for words in ("a datagram is ignored", "ignored: hat", "yawrate=-9 is outside", "no command for 0.5 s"):
            assert sum(words in line for line in told) == 1, (words, told)
        # who was silent begins from zero, not where it was
        sender = Sender(source.address[1], {"baseheight": 0.1})
        ticks.reach([0.0, 0.0, 0.1])
    finally:
        sender.close()
        source.close()


FLOOD = """
import socket, sys
to = ("127.0.0.1", int(sys.argv[1]))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    sender.sendto(b'{"xvel": 0.4}', to)
"""


def test_a_flood_of_datagrams_leaves_the_interpreter_to_others(guard):
    source = UdpCommands(guard, port=0)
    sender = subprocess.Popen([sys.executable, "-c", FLOOD, str(source.address[1])], stderr=subprocess.DEVNULL)
    try:
        Ticks(source).reach([0.4, 0.0, 0.0])
        begin = time.monotonic()
        take, taken = source._datagrams.take, []
        source._datagrams.take = lambda data: taken.append(time.monotonic()) or take(data)
        time.sleep(0.5)
        batches = (time.monotonic() - begin) / PAUSE_S
        assert 0 < len(taken) <= BATCH * (batches + 2), "a pause after each batch"
    finally:
        sender.kill()
        sender.wait()
        source.close()


def test_a_port_in_use_is_one_line_before_the_robot_is_touched(kinfer, server, tmp_path, capsys):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        words = [str(kinfer), "--port", str(server.port), "--command-from", f"udp:{where}"]
        assert run_verb("run", main, words) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"ksim run: --command-from udp: cannot listen on {where} (") and err.count("\n") == 1
    assert server.requests == []


def test_another_interface_than_loopback_is_warned_of(guard):
    for host, words in (("127.0.0.1", ""), ("0.0.0.0", "everybody who can reach that drives the robot")):
        source = UdpCommands(guard, host, 0)
        source.close()
        assert words in source.warning and bool(source.warning) == bool(words)


def free_udp_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def check_record(log):
    """The recorded command is what the policy saw: it acted on it, and it moved by no more than its slew."""
    command, home = log.inputs["command"][log.run], np.asarray(log.spec.robot.column("home_rad"))
    assert np.allclose(log.action[log.run], home + 0.1 * command[:, :1], atol=1e-6)
    assert command[0].tolist() == [0.0, 0.0]
    assert np.all(np.abs(np.diff(command, axis=0)) <= 0.05 * np.diff(log.tick[log.run])[:, None] + 1e-6)
    return command


def test_udp_drives_a_run_on_the_twin_until_it_falls_silent(tmp_path, bundle_factory):
    pytest.importorskip("mujoco")
    from deploy.twin.server import spawn_twin
    from robots.bundle import write_bundle
    from robots.load import load_robot

    bundle, port = tmp_path / "kbot.kinfer", free_udp_port()
    write_bundle(bundle, bundle_factory(load_robot("kbot")))
    sender = Sender(port, {"xvel": 0.4, "baseheight": 0.0})
    log = tmp_path / "run.mcap"

    def reached():
        with contextlib.suppress(LogError, KeyError):
            return np.nanmax(read_log(log).inputs["command"][:, 0]) == np.float32(0.4)

    # in lock step no machine is too slow; the robot falls and lies, and the run goes on
    values = {"step_lock": True, "tilt_max_rad": np.pi, "log": log, "duration_s": 15.0, "command_from": f"udp:{port}"}
    silencer = threading.Thread(target=lambda: (until(reached, 60), sender.close()))
    silencer.start()
    try:
        with spawn_twin("kbot", lockstep=True) as twin:
            report = run(RunOptions(bundle=bundle, port=twin.port, **values))
    finally:
        silencer.join()
        sender.close()
    assert report.ended == "completed" and report.exit_code == 0, report.message
    log = read_log(report.log)
    command = check_record(log)
    assert command[:, 0].max() == np.float32(0.4) and command[-1].tolist() == [0.0, 0.0]
    assert log.metadata["command_source"] == "udp"
    said = [e["message"] for e in log.events if e["kind"] == "command"]
    assert any("baseheight" in line for line in said) and any("no command for 0.5 s" in line for line in said)


# the keyboard, in a real terminal

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


# options


def test_one_source_at_a_time(tmp_path):
    for more in ({"command": {"xvel": 0.0}}, {"schedule": tmp_path / "course.csv"}):
        with pytest.raises(SettingsError, match="either it, --schedule or --command"):
            RunOptions(bundle=tmp_path / "p.kinfer", command_from="udp", **more)
    for wrong in ("joystick", "keyboard:w", "UDP", ":1"):
        with pytest.raises(SettingsError, match="one of keyboard, gamepad, udp"):
            RunOptions(bundle=tmp_path / "p.kinfer", command_from=wrong)
    assert live_kind("udp:1:2") == "udp" and live_kind("gamepad:/dev/input/event5") == "gamepad"


def test_a_source_whose_thread_fails_is_silent_and_says_so(guard):
    class Broken(LiveSource):
        kind = "broken"

        def _read(self):
            self._put(np.ones(3))
            raise RuntimeError("a bug")

    source = Broken(guard)
    source._thread.start()
    source._thread.join()
    ticks = Ticks(source)
    ticks.reach([0.0, 0.0, 0.0])
    until(lambda: [ticks(), source.last.silent][1])
    assert "broken: RuntimeError: a bug; nothing is read any more" in source.news()
    source.close()


def test_a_live_source_is_opened_by_its_name(policy_spec_factory, robot):
    source = open_live(f"udp:127.0.0.1:{free_udp_port()}", policy_spec_factory(robot))
    source.close()
    assert source.kind == "udp" and source.guard.names == ("vx", "yaw")
