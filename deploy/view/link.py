"""The sender's side of a live view.

The page is served by a process of its own, which lives as long as the socket that the two share. The sender writes a
small frame now and then and never waits: where the socket is full the frame is dropped, where nobody reads any more
nothing is sent again. A view that hangs, or was killed, is no reason to do anything else.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from deploy.child import start_child
from deploy.view.message import Setup

FRAMES_HZ = 25.0
READY_WITHIN_S = 20.0


class View:
    """A page that is there.

    Attributes:
        address: of the page.
        process: that serves it.
    """

    def __init__(self, process: subprocess.Popen, link: socket.socket, setup: Setup, address: str) -> None:
        self.process, self._link, self.address = process, link, address
        self._frame = np.zeros((), setup.frame)
        self._rest, self._gone, self._due = b"", False, 0.0

    @classmethod
    def start(cls, setup: Setup, say: Callable[[str], None], within_s: float = READY_WITHIN_S) -> Self | None:
        """Start the process and wait until it serves, so that its work at the start is over before a run begins.

        Args:
            setup: what it shows.
            say: called with one line: where the page is, or why there is none.
            within_s: how long it may take [s].

        Returns:
            None where it does not come up: that keeps nobody from going on.
        """
        ours, theirs = socket.socketpair()
        process = start_child("deploy.view.page", theirs, quiet=True)
        try:
            ours.settimeout(within_s)
            answer: dict[str, str] = {}
            try:
                ours.sendall(setup.to_line())
                answer = json.loads(ours.recv(4096) or "{}")
            except TimeoutError:
                answer = {"problem": f"it did not come up in {within_s:g} s"}
            except OSError:
                pass
            ours.setblocking(False)
            if "address" in answer:
                say(f"view on {answer['address']}")
                return cls(process, ours, setup, answer["address"])
            say(f"no view: {answer.get('problem', 'its process ended')}; going on without it")
        except BaseException:
            _end(process, ours)
            raise
        _end(process, ours)
        return None

    def due(self) -> bool:
        """Whether it is time for the next frame; at most `FRAMES_HZ` times a second."""
        now = time.monotonic()
        if self._gone or now < self._due:
            return False
        self._due = max(self._due, now - 1.0 / FRAMES_HZ) + 1.0 / FRAMES_HZ
        return True

    def send(self, **values: Any) -> None:
        """Send a frame, or drop it; never waits and never fails.

        Args:
            values: fields of `Setup.frame`; what is left out is as before.
        """
        for name, value in values.items():
            self._frame[name] = value
        try:
            if self._rest:
                self._rest = self._rest[self._link.send(self._rest) :]
            if not self._rest:
                data = self._frame.tobytes()
                self._rest = data[self._link.send(data) :]
        except BlockingIOError:
            pass  # full: it hangs, or is busy
        except OSError:
            self._gone = True

    def close(self) -> None:
        """End the process; it has nothing to lose."""
        _end(self.process, self._link)


def _end(process: subprocess.Popen, link: socket.socket) -> None:
    link.close()
    process.kill()
    process.wait()
