"""Commands from the keyboard of the terminal that the run is in.

Followed: pyfirmware's firmware/commands/keyboard.py and kinfer-sim's keyboard.py. Keys, steps and ends are theirs; `0`
takes all commands to zero. Ours beside: the space bar stops the run, backspace stops it gently; a key's value ends at
the range of training; a key whose command the policy does not take does nothing; an arrow key does nothing (there its
escape sequence ends in a letter that is a key). Their keys for motions of the arms are not here.

A value stays until a key changes it. What silence means here: the thread puts the values again ten times a second, for
as long as its terminal is there and the run in its foreground. A closed terminal, or a run that was put into the
background, is silent.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import signal
import sys
import termios
import threading
from types import FrameType

import numpy as np

from deploy.control.commands.guard import CommandGuard, keyboard_max
from deploy.control.commands.source import WAIT_S, LiveSource, StopAsked
from deploy.errors import CheckError
from robots.command_names import known_as

# key: (command, step)
KEYS = {
    "w": ("xvel", 0.1),
    "s": ("xvel", -0.1),
    "a": ("yvel", 0.1),
    "d": ("yvel", -0.1),
    "q": ("yawrate", 0.1),
    "e": ("yawrate", -0.1),
    "=": ("baseheight", 0.05),
    "-": ("baseheight", -0.05),
    "r": ("baseroll", 0.1),
    "f": ("baseroll", -0.1),
    "t": ("basepitch", 0.1),
    "g": ("basepitch", -0.1),
}
ZERO = "0"
STOPS = {
    " ": StopAsked("the space bar"),
    "\x7f": StopAsked("backspace", gently=True),
    "\x08": StopAsked("backspace", gently=True),
}
_ESCAPE = 0x1B


class Keys:
    """What keys make of the command. Arithmetic alone.

    Attributes:
        values: what is asked for now (commands,).
    """

    def __init__(self, guard: CommandGuard) -> None:
        self._guard, self.values = guard, guard.rest.copy()
        self._sequence = ""

    def press(self, data: bytes) -> list[StopAsked]:
        """Take what a terminal sent; the wishes for the end that were in it."""
        return [stop for byte in data if (stop := self._one(byte))]

    def _one(self, byte: int) -> StopAsked | None:
        # ESC, then one character, or "[" and parameters up to a letter or ~, or "O" and one character
        if byte == _ESCAPE:
            self._sequence = "\x1b"
            return None
        key = chr(byte)
        if self._sequence:
            first = len(self._sequence) == 1
            self._sequence += key
            if (first and key not in "[O") or (not first and 0x40 <= byte <= 0x7E):
                self._sequence = ""
            return None
        key = key.lower()
        if key == ZERO:
            self.values = self._guard.rest.copy()
        elif key in KEYS:
            self._step(*KEYS[key])
        return STOPS.get(key)

    def _step(self, command: str, step: float) -> None:
        guard, name = self._guard, known_as(command, self._guard.names)
        if name not in guard.names:
            return
        i, end = guard.names.index(name), keyboard_max(command)
        low, high = min(max(guard.low[i], -end), guard.rest[i]), max(min(guard.high[i], end), guard.rest[i])
        # to the step: 0.1 added eight times is not 0.8
        self.values[i] = np.clip(round(float(self.values[i]) + step, 9), low, high)


class Keyboard(LiveSource):
    """The keys of a terminal.

    Args:
        guard: between the keys and the policy.
        terminal: its descriptor; None takes standard input's.

    Raises:
        CheckError: it is no terminal, or the run is not in its foreground.
    """

    kind, hint = "keyboard", "space stops, backspace stops gently"

    def __init__(self, guard: CommandGuard, terminal: int | None = None) -> None:
        super().__init__(guard)
        if terminal is None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                terminal = sys.stdin.fileno()
        if terminal is None or not os.isatty(terminal):
            raise CheckError(
                "--command-from keyboard: standard input is no terminal; expected one; start the run in a terminal, "
                "or use --command, --schedule or --command-from udp"
            )
        self._terminal = terminal
        if not self._in_foreground():
            raise CheckError(
                "--command-from keyboard: the run is in the background of its terminal; expected the foreground; "
                "start it without &"
            )
        self._keys = Keys(guard)
        self._before = termios.tcgetattr(terminal)
        self._quit_before = None
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL:
            self._quit_before = signal.signal(signal.SIGQUIT, self._on_quit)
        atexit.register(self._restore)  # a signal may raise before anybody can close this
        mode = termios.tcgetattr(terminal)
        mode[3] &= ~(termios.ECHO | termios.ICANON)  # Ctrl-C, Ctrl-\ and Ctrl-Z stay what they are
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
        self._thread.start()

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError as error:  # not the terminal that this process belongs to: it has no foreground for us
            return error.errno != errno.EIO  # hung up

    def _run(self) -> None:
        # reading or setting a terminal from its background would otherwise stop the whole process
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTIN, signal.SIGTTOU))
        super()._run()

    def _read(self) -> None:
        ready, _, _ = select.select([self._terminal], [], [], WAIT_S)
        if not self._in_foreground():
            self._closing.wait(WAIT_S)  # a background process is woken by keys that are not for it
            return
        if ready:
            data = os.read(self._terminal, 1024)
            if not data:
                raise OSError("the terminal is gone")
            for stop in self._keys.press(data):
                self._ask(stop)
        self._put(self._keys.values)

    def _on_quit(self, signum: int, frame: FrameType | None) -> None:
        self._restore()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def _restore(self) -> None:
        """The terminal as it was, without waiting for its output: Ctrl-S may hold that."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
        try:
            if self._in_foreground():  # in the background the shell has its own settings
                termios.tcflush(self._terminal, termios.TCIFLUSH)  # keys of the run are none for the shell
                termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
        except termios.error:
            pass  # it is gone
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Give the terminal back as it was."""
        if self._closing.is_set():
            return
        try:
            super().close()
        finally:
            self._restore()
            atexit.unregister(self._restore)
            if self._quit_before is not None:
                signal.signal(signal.SIGQUIT, self._quit_before)
