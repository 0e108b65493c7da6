"""Commands from a gamepad, on Linux, by evdev.

Left stick: up and down xvel, left and right yvel. Right stick: left and right yawrate. B (circle on a PlayStation's)
stops, START stops gently. A stick at its end asks for the end of the range of training; one within a tenth of its
middle for zero. K-Scale's own programs send a gamepad over UDP and have no map of their own to follow.

A stick that is held sends nothing. What silence means here: the thread puts the sticks' positions again ten times a
second, for as long as the device is there. An unplugged one is silent; when it is back it is taken up again.
"""

from __future__ import annotations

import contextlib
import errno
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deploy.control.commands.guard import CommandGuard
from deploy.control.commands.source import WAIT_S, LiveSource, StopAsked
from deploy.errors import CheckError
from robots.command_names import known_as

# Linux's input-event-codes.h
EV_SYN, EV_KEY, EV_ABS = 0, 1, 3
SYN_DROPPED = 3
ABS_X, ABS_Y, ABS_Z, ABS_RX = 0, 1, 2, 3
BTN_GAMEPAD, BTN_EAST, BTN_START = 0x130, 0x131, 0x13B
STOPS = {BTN_EAST: StopAsked("the gamepad's B"), BTN_START: StopAsked("the gamepad's START", gently=True)}
DEAD_ZONE = 0.1
AGAIN_S = 0.5


class Axis(NamedTuple):
    """What an axis drives. A robot's x is forward, its y left, its yaw to the left; a stick's x is right, y down."""

    command: str
    sign: float


AXES = {ABS_X: Axis("yvel", -1.0), ABS_Y: Axis("xvel", -1.0), ABS_RX: Axis("yawrate", -1.0)}


def deflection(value: int, low: int, high: int) -> float:
    """An axis's value in [-1, 1], 0 in the dead zone and continuous at its edge."""
    share = float(np.clip((2.0 * value - low - high) / max(high - low, 1), -1.0, 1.0))
    return float(np.sign(share)) * max(abs(share) - DEAD_ZONE, 0.0) / (1.0 - DEAD_ZONE)


class Sticks:
    """What a gamepad's events make of the command. Arithmetic alone.

    Args:
        guard: between the gamepad and the policy.
        ranges: of the device's axes, by code: (least, greatest).

    Attributes:
        values: what is asked for now (commands,).
    """

    def __init__(self, guard: CommandGuard, ranges: dict[int, tuple[int, int]]) -> None:
        self._guard, self._ranges, self.values = guard, ranges, guard.rest.copy()
        # without a second stick at RX a device has it at Z
        self._axes = AXES if ABS_RX in ranges else {ABS_X: AXES[ABS_X], ABS_Y: AXES[ABS_Y], ABS_Z: AXES[ABS_RX]}
        self.codes = tuple(code for code in self._axes if code in ranges)

    def event(self, type_: int, code: int, value: int) -> StopAsked | None:
        """Take one of Linux's input events; the wish for the end, None where it is none."""
        if type_ == EV_KEY and value == 1:
            return STOPS.get(code)
        if type_ == EV_ABS and code in self.codes:
            axis, guard = self._axes[code], self._guard
            name = known_as(axis.command, guard.names)
            if name in guard.names:
                i, share = guard.names.index(name), axis.sign * deflection(value, *self._ranges[code])
                end = guard.high[i] if share > 0 else guard.low[i]
                self.values[i] = guard.rest[i] + abs(share) * (end - guard.rest[i])
        return None


def _evdev() -> Any:
    import evdev  # type: ignore[import-not-found]

    return evdev


def find_gamepad(path: str = "") -> Any:
    """The evdev device at a path, or the first one that is a gamepad.

    Raises:
        CheckError: there is none that may be read.
        ModuleNotFoundError: evdev is not installed.
    """
    evdev = _evdev()
    if path:
        try:
            device = evdev.InputDevice(path)
        except OSError as error:
            raise CheckError(
                f"--command-from gamepad:{path}: {error.strerror or error}; expected an input device such as "
                "/dev/input/event5 that you may read"
            ) from error
        if is_gamepad(device.capabilities(absinfo=False)):
            return device
        device.close()
        raise CheckError(f"--command-from gamepad:{path}: {device.name!r:.80} is no gamepad; expected one")
    for found in evdev.list_devices():
        with contextlib.suppress(OSError):
            device = evdev.InputDevice(found)
            if is_gamepad(device.capabilities(absinfo=False)):
                return device
            device.close()
    raise CheckError(
        "--command-from gamepad: found none; expected one at /dev/input/event*; plug it in, and where it is there join "
        "the group that may read it: sudo usermod -aG input $USER, then log in anew"
    )


def is_gamepad(able: Mapping[int, Sequence[int]]) -> bool:
    """Whether a device with these codes, by type, is one: it has a stick, and a gamepad's first button."""
    return {ABS_X, ABS_Y} <= set(able.get(EV_ABS, ())) and BTN_GAMEPAD in able.get(EV_KEY, ())


class Gamepad(LiveSource):
    """A gamepad.

    Args:
        guard: between the sticks and the policy.
        path: of its device; empty finds one.
        find: gives the device.

    Raises:
        CheckError: there is none.
        ModuleNotFoundError: evdev is not installed.
    """

    kind, hint = "gamepad", "B stops, START stops gently"

    def __init__(self, guard: CommandGuard, path: str = "", find: Callable[[str], Any] = find_gamepad) -> None:
        super().__init__(guard)
        self._path, self._find = path, find
        self._device: Any = None
        self._open()
        self._thread.start()

    def _open(self) -> None:
        device = self._find(self._path)
        ranges = {code: (info.min, info.max) for code, info in device.capabilities().get(EV_ABS, ())}
        self._sticks = Sticks(self.guard, ranges)
        self._device = device
        self._look()
        self.tell(f"{device.name} at {device.path}")

    def _look(self) -> None:
        """Where the sticks are now: at the start, and where the kernel lost events."""
        for code in self._sticks.codes:
            self._sticks.event(EV_ABS, code, self._device.absinfo(code).value)

    def _read(self) -> None:
        if self._device is None:
            self._closing.wait(AGAIN_S)
            with contextlib.suppress(CheckError, OSError):
                self._open()
            return
        try:
            if select.select([self._device.fd], [], [], WAIT_S)[0]:
                for event in self._device.read():
                    if (event.type, event.code) == (EV_SYN, SYN_DROPPED):
                        self._look()
                    self._ask(self._sticks.event(event.type, event.code, event.value))
        except BlockingIOError:
            pass
        except OSError as error:
            gone = "unplugged" if error.errno == errno.ENODEV else error.strerror or str(error)
            self.tell(f"{gone}; looked for again every {AGAIN_S:g} s")
            self._shut()
            return
        self._put(self._sticks.values)

    def _shut(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            with contextlib.suppress(OSError):
                device.close()

    def close(self) -> None:
        """End the thread and close the device."""
        super().close()
        self._shut()
