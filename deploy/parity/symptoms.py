"""What a log shows by itself, before anything is simulated."""

from __future__ import annotations

from pathlib import Path

from deploy.log.recorder import RunLog
from deploy.parity.report import Suspect
from deploy.twin.reality import Reality


def symptoms(log: RunLog, robot: str | Path, reality: Reality, *, hang: bool) -> tuple[tuple[Suspect, ...], RunLog]:
    """(what is seen, the log as it would be without that where it can be put right)."""
    return (), log
