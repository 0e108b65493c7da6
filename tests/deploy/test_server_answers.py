"""Answers that no KOS server should give: unreadable, incomplete, endless. The robot is left limp, one line told."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from deploy.control.run import RunOptions, alone, run
from deploy.errors import FaultError, LogError
from deploy.robot.kos import KosRobot
from toolkit.errors import FileError
from toolkit.files import only_one


class Spoiled:
    """A server in front of another one: what it answers may be spoiled, by the name of the call."""

    def __init__(self, inner) -> None:
        from google.protobuf.empty_pb2 import Empty
        from kos_protos import actuator_pb2 as actuator

        self.spoil = lambda name: False
        calls = {
            "kos.actuator.ActuatorService": {
                "GetActuatorsState": (actuator.GetActuatorsStateRequest, inner.state),
                "CommandActuators": (actuator.CommandActuatorsRequest, inner.command),
                "ConfigureActuator": (actuator.ConfigureActuatorRequest, inner.configure),
            },
            "kos.imu.IMUService": {
                "GetValues": (Empty, lambda _: inner.imu()),
                "GetQuaternion": (Empty, lambda _: inner.quaternion()),
            },
        }
        self._server = grpc.server(ThreadPoolExecutor(8))
        for service, methods in calls.items():
            handlers = {name: self._handler(name, *how) for name, how in methods.items()}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _handler(self, name, kind, answer):
        def handle(data, context):
            given = answer(kind.FromString(data)).SerializeToString()
            return b"\xff\xff\xff" if self.spoil(name) else given

        return grpc.unary_unary_rpc_method_handler(handle)

    def kill(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def spoiled(server):
    spoiled = Spoiled(server)
    yield spoiled
    spoiled.kill()


@pytest.fixture
def options(tmp_path, kinfer, server):
    def make(**changes):
        values = {"bundle": kinfer, "port": server.port, "duration_s": 0.5, "log": tmp_path / "run.mcap"}
        values |= {"watchdog_s": 0.0, "late_max": 10.0, "lost_ticks_max": 100}
        return RunOptions(**(values | changes))

    return make


def commands(server) -> int:
    return sum(kind == "command" for kind, _ in list(server.requests))


@pytest.mark.parametrize("call", ["GetActuatorsState", "GetQuaternion", "CommandActuators"])
def test_an_unreadable_answer_ends_the_run_damped(call, options, server, spoiled):
    spoiled.spoil = lambda name: name == call and commands(server) >= 5
    report = run(options(port=spoiled.port))
    assert report.ended == "fault" and report.damped and "its answer cannot be read" in report.message
    assert {gains["kp"] for gains in server.gains.values()} == {0.0}


def test_an_unreadable_acknowledgement_of_damping_is_asked_for_again(options, server, spoiled):
    bad = []

    def spoil(name):
        damping = name == "ConfigureActuator" and sum(kind == "configure" for kind, _ in server.requests) > 3
        bad.extend([name] * damping)
        return damping and len(bad) <= 3

    spoiled.spoil = spoil
    report = run(options(port=spoiled.port))
    assert report.ended == "completed" and report.damped and server.damped() and len(bad) > 3


def test_an_unreadable_first_reading_is_one_line_and_touches_nothing(options, server, spoiled):
    spoiled.spoil = lambda name: name == "GetActuatorsState"
    with pytest.raises(FaultError, match="cannot be read; expected"):
        run(options(port=spoiled.port))
    assert not server.gains and not commands(server)


def test_a_joint_that_is_left_out_of_the_acknowledgement_did_not_acknowledge(options, server, monkeypatch):
    whole = server.command

    def partial(request):
        answer = whole(request)
        del answer.results[1:]
        return answer

    monkeypatch.setattr(server, "command", partial)
    report = run(options())
    assert report.ended == "fault" and "knee (id 12): not acknowledged" in report.message
    # the target was not certain, so no stiffness was asked for
    assert not any(r.kp > 0 for kind, r in server.requests if kind == "configure")


def test_a_gain_that_was_another_at_first_may_not_change_later(options, server):
    server.max_torque_reported = 120.0

    def other(count):
        if count == 10:
            server.max_torque_reported = 5.0

    server.on_tick = other
    report = run(options(duration_s=20.0))
    assert report.ended == "fault" and "gains changed during the run: hip: max_torque is 5" in report.message


def test_a_stiffness_that_is_no_number_is_not_taken_for_none(options, server, monkeypatch):
    whole = server.state

    def odd(request):
        answer = whole(request)
        for state in answer.states:
            if server.gains.get(state.actuator_id, {}).get("kp") == 0.0:
                state.kp = float("nan")
        return answer

    monkeypatch.setattr(server, "state", odd)
    report = run(options(damp_for_s=0.2))
    assert not report.damped and report.exit_code == 1


def test_what_a_server_says_is_cut_and_does_nothing_to_a_terminal(options, server):
    def long(count):
        if count == 5:
            server.faults = {31: ["burnt \x1b[2J" * 100_000] * 3}

    server.on_tick = long
    report = run(options(duration_s=20.0))
    assert report.ended == "fault" and "hip (id 31) reports burnt ?[2J" in report.message
    assert len(report.message) < 1000 and report.message.isprintable()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.2", "0.0.0.0", "::1", "[::1]", socket.gethostname()])
def test_all_names_of_this_machine_are_one_robot(name):
    try:
        family, kind, _, _, address = socket.getaddrinfo(name.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.bind(address)
    except OSError:
        pytest.skip(f"{name} is no address of this machine")
    with alone("127.0.0.1", 1), pytest.raises(FileError, match="another run on"), alone(name, 1):
        pass


@pytest.mark.parametrize("name", ["a" * 70, "a..b"])
def test_a_name_that_is_none_is_told_by_the_connection(name):
    with alone(name, 1), pytest.raises(FileError), only_one(f"run-{name}:1", "taken"):
        pass


def test_an_ipv6_address_is_put_in_brackets_for_grpc(robot):
    assert KosRobot(robot, "::1", 5).address == KosRobot(robot, "[::1]", 5).address == "[::1]:5"


def test_a_stop_while_the_log_is_opened_leaves_the_robot_untouched(options, server, monkeypatch):
    from deploy.control import run as module
    from deploy.control.machine import Ended
    from deploy.control.stop import Stop

    stops = []

    class Kept(Stop):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            stops.append(self)

    def opened(*args, **kwargs):
        recorder = real(*args, **kwargs)
        stops[0].set(Ended.INTERRUPTED, "SIGINT received", signum=2)
        return recorder

    real = module.Recorder
    monkeypatch.setattr(module, "Stop", Kept)
    monkeypatch.setattr(module, "Recorder", opened)
    report = run(options())
    assert report.ended == "interrupted" and report.exit_code == 130 and report.damped
    assert not server.gains and not commands(server)


def test_a_log_that_is_a_pipe_is_refused_before_anything_waits_for_it(options, tmp_path):
    os.mkfifo(tmp_path / "pipe.mcap")
    with pytest.raises(LogError, match="it is a pipe; expected a file"):
        run(options(log=tmp_path / "pipe.mcap", force=True))
