"""Commands as datagrams: by their values, over real sockets, then through a whole run."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.control.commands.guard import CommandGuard
from deploy.control.commands.udp import BATCH, PAUSE_S, Datagrams, UdpCommands, parse_address
from deploy.control.run import RunOptions, main, run
from deploy.errors import CheckError, LogError
from deploy.log.recorder import read_log
from tests.deploy.live_commands import Ticks, check_record, free_udp_port, until
from toolkit.cli import run_verb


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
