"""What the tests of live sources of commands share."""

import socket
import time

import numpy as np
import pytest

from deploy.control.commands.guard import CommandGuard
from robots.spec import CommandSpec


def guard_of(policy_spec_factory, robot, *commands):
    spec = policy_spec_factory(robot)
    given = tuple(CommandSpec(name=n, low=low, high=high, unit=unit) for n, low, high, unit in commands)
    return CommandGuard.from_spec(spec.replace(commands=given, inputs=()))


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
