"""The wish for the end of a run, from whoever has it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from deploy.control.commands import CommandSource
from deploy.control.machine import Ended


class Stopped(Exception):
    """The end was asked for before there was anything to end; carries how, why and the signal, 0 for none."""

    def __init__(self, ended: Ended, why: str, signum: int) -> None:
        super().__init__(why)
        self.ended, self.why, self.signum = ended, why, signum


@dataclass
class Stop:
    """Set by whoever wants the end, looked at once a tick; the first word counts, but that a stop be at once.

    The source of commands is asked as well.

    Attributes:
        ended: how the run is then said to have ended; None while nobody wants it.
        why: in words.
        now: without a gentle stop.
        signum: of the signal, 0 for none.
        source: of commands.
        event: set with it.
    """

    ended: Ended | None = None
    why: str = ""
    now: bool = False
    signum: int = 0
    source: CommandSource | None = None
    event: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, ended: Ended, why: str, *, now: bool = True, signum: int = 0) -> None:
        """Ask for the end."""
        if self.ended is None:
            self.ended, self.why, self.signum = ended, why, signum
        self.now = self.now or now
        self.event.set()

    def ask(self) -> None:
        """Ask the source of commands."""
        if self.source is not None and (asked := self.source.stop_asked()):
            self.set(Ended.STOPPED, f"{asked.by} was pressed", now=not asked.gently)

    def check(self) -> None:
        """Raise Stopped when the end was asked for."""
        self.ask()
        if self.ended is not None:
            raise Stopped(self.ended, self.why, self.signum)
