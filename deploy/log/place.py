"""Whether a log can be written at a place, asked before anything else is done."""

from __future__ import annotations

import tempfile
from pathlib import Path

from deploy.errors import LogError


def check_place(log: Path, what: str = "log", example: str = "run.mcap") -> None:
    """That a file can be written there; nothing is left behind.

    Args:
        log: the place.
        what: is written, for the message.
        example: a name of one.

    Raises:
        LogError: it cannot; the message says why.
    """
    if log.is_dir():
        raise LogError(f"{what} {log}: it is a folder; expected a file; name one in it, for example {log / example}")
    if log.is_fifo() or log.is_socket():  # opening it would wait for somebody who reads
        raise LogError(f"{what} {log}: it is a pipe; expected a file; name another")
    there = next(p for p in (log.absolute().parent, *log.absolute().parents) if p.exists())
    why = "" if there.is_dir() else f"{there} is a file, not a folder"
    if not why:
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            why = f"{there}: {error.strerror}"
    if why:
        raise LogError(f"{what} {log}: cannot be written ({why}); name a file in a folder of yours, with room for it")
