"""Where a run's commands come from: what the control loop asks of a source, and what every live source has in common.

The loop asks once a tick and never waits: a live source reads in a thread of its own and leaves its newest command in
one attribute. `LiveSource.at` takes that through the guard.
"""

from __future__ import annotations

import abc
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploy.control.commands.guard import ChangeKind, CommandGuard, Guarded

# how long a live source's thread may wait before it looks whether it is to end [s]
WAIT_S = 0.1
# lines that nobody has asked for yet; the oldest go first
NEWS_MAX = 32


@dataclass(frozen=True)
class StopAsked:
    """The wish for the end of a run.

    Attributes:
        by: what was pressed, such as "the space bar".
        gently: zero command first, then softer and softer, as at the end of a run's time.
    """

    by: str
    gently: bool = False


class CommandSource(abc.ABC):
    """What the loop needs of a source of commands.

    Attributes:
        kind: what it is, for the log: "command", "schedule", "keyboard", "gamepad" or "udp".
    """

    kind: str

    @abc.abstractmethod
    def at(self, time_s: float) -> np.ndarray:
        """The command at a time since the policy's first tick [s], (commands,). Never waits."""

    def stop_asked(self) -> StopAsked | None:
        """The wish for the end of the run; None where there is none."""
        return None

    def news(self) -> list[str]:
        """What there is to tell since it was last asked, one line each."""
        return []

    def status(self) -> str:
        """The command as a person reads it while the run goes on; empty where it is known beforehand."""
        return ""

    def close(self) -> None:  # noqa: B027
        """Give back what it holds; a second call does nothing."""


class LiveSource(CommandSource):
    """A source that a person or another program drives while the run goes on.

    A subclass's `_read` waits for at most `WAIT_S` and calls `_put` with each command. A source whose values stay
    until they are changed (keys, sticks) puts them again each time, for as long as the device is there: so silence
    is always the same thing, nothing put for the guard's `silence_s`.

    Args:
        guard: between the source and the policy.
        clock: monotonic [s].

    Attributes:
        last: what the guard made of the newest command at the last tick.
        hint: how it stops the run, for the status line; empty where it cannot.
        warning: what a person should know before the run; empty for nothing.
    """

    hint: str = ""
    warning: str = ""

    def __init__(self, guard: CommandGuard, clock: Callable[[], float] = time.monotonic) -> None:
        self.guard, self._clock = guard, clock
        self.last = Guarded(command=guard.rest)
        self._newest = (guard.rest, -np.inf)
        self._time_s: float | None = None
        self._stop: StopAsked | None = None
        self._news: deque[str] = deque(maxlen=NEWS_MAX)
        self._silent = False
        self._told: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"commands: {self.kind}")

    @abc.abstractmethod
    def _read(self) -> None:
        """Wait for at most `WAIT_S` and `_put` what came."""

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._read()
        except Exception as error:  # nothing more is put, so the command goes to zero
            self.tell(f"{type(error).__name__}: {' '.join(str(error).split())}; nothing is read any more")

    def _put(self, wanted: np.ndarray) -> None:
        """The newest command, (commands,)."""
        self._newest = (np.array(wanted, dtype=float), self._clock())

    def tell(self, line: str) -> None:
        """Have a line of news."""
        self._news.append(f"{self.kind}: {line}")

    def at(self, time_s: float) -> np.ndarray:
        """The newest command behind the guard; the first tick is at rest."""
        wanted, at_s = self._newest
        dt_s = 0.0 if self._time_s is None else max(time_s - self._time_s, 0.0)
        self._time_s = time_s
        self.last = self.guard.apply(self.last.command, wanted, self._clock() - at_s, dt_s)
        if self.last.silent != self._silent:
            self._silent = self.last.silent
            said = f"no command for {self.guard.silence_s:g} s: all go to zero" if self._silent else "commands come"
            self.tell(said if np.isfinite(at_s) else "no command yet")
        for change in self.last.changes:
            if change.kind is ChangeKind.RANGE and change.command not in self._told:
                self._told.add(change.command)
                self.tell(f"{change.command}={change.wanted:g} is outside the range of training (told once a command)")
        return self.last.command

    def stop_asked(self) -> StopAsked | None:
        """The wish for the end of the run; None where there is none."""
        return self._stop

    def _ask(self, stop: StopAsked | None) -> None:
        """Wish for the end; the first wish counts, but one that is not gentle counts more than one that is."""
        if stop is not None and (self._stop is None or (self._stop.gently and not stop.gently)):
            self._stop = stop

    def news(self) -> list[str]:
        """The lines since it was last asked."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def status(self) -> str:
        """The commands that are not at rest, and why any is not what was asked for."""
        rows = zip(self.guard.names, self.last.command, self.guard.rest, strict=True)
        values = " ".join(f"{name} {value:.2f}" for name, value, rest in rows if value != rest)
        why = {c.kind.value for c in self.last.changes} | ({"silent"} if self.last.silent else set())
        words = [f"{self.kind}: {values or 'zero'}" + (f" ({', '.join(sorted(why))})" if why else ""), self.hint]
        return "; ".join(filter(None, words))

    def close(self) -> None:
        """End the thread and give back what it holds."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(10 * WAIT_S)
