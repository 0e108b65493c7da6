"""A gamepad as a source of commands: sticks by their values, then a device in a pipe."""

import errno
import os
import struct
import sys
import time
from types import SimpleNamespace

import pytest

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
from deploy.control.commands.source import StopAsked
from deploy.control.run import main
from deploy.errors import CheckError
from tests.deploy.live_commands import Ticks, until
from toolkit.cli import run_verb


def test_sticks_drive_to_the_ends_of_the_range_and_rest_in_their_middle(guard):
    assert deflection(0, -32768, 32767) == 0 and deflection(2000, -32768, 32767) == 0
    assert deflection(255, 0, 255) == 1 and deflection(0, 0, 255) == -1 and deflection(128, 0, 255) == 0
    assert deflection(55, -100, 100) == pytest.approx(0.5)
    sticks = Sticks(guard, {ABS_X: (-100, 100), ABS_Y: (-100, 100), ABS_RX: (-100, 100), ABS_Z: (0, 255)})
    for code, value in ((ABS_Y, -100), (ABS_RX, 55), (ABS_Z, 255), (ABS_X, -100)):
        assert sticks.event(EV_ABS, code, value) is None
    assert sticks.values.tolist() == pytest.approx([1.0, -0.5, 0.0]), "forward, to the right; the trigger is no stick"
    sticks.event(EV_ABS, ABS_Y, 55)
    assert sticks.values[0] == pytest.approx(-0.25), "half of what is behind"
    sticks.event(EV_ABS, ABS_Y, 0)
    assert sticks.values[0] == 0.0


def test_b_and_start_stop_when_they_are_pressed(guard):
    sticks = Sticks(guard, {ABS_X: (0, 255), ABS_Y: (0, 255), ABS_Z: (0, 255)})
    assert sticks.event(EV_KEY, BTN_EAST, 1) == StopAsked("the gamepad's B")
    assert sticks.event(EV_KEY, BTN_START, 1) == StopAsked("the gamepad's START", gently=True)
    for type_, code, value in ((EV_KEY, BTN_EAST, 0), (EV_KEY, 0x130, 1), (EV_SYN, BTN_EAST, 1)):
        assert sticks.event(type_, code, value) is None
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
        assert source.status() == "gamepad: xvel 1.00; B stops, START stops gently"
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
        assert source.stop_asked() is None
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
