"""A folder that one process at a time writes into."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ksim.errors import KsimError

LOCK = ".lock"


def _lock(path: Path) -> int | None:
    """An open file that holds the lock; None where another process has it. The system frees it when we end, however."""
    try:
        import fcntl
    except ImportError:  # Windows: go without
        fcntl = None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
            return handle  # a file system without locks: go without
        try:
            # who ended while we opened it has removed the file that we now hold; take the next
            if os.path.samestat(path.stat(), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Make a folder where there is none, and keep others of our kind out of it. What stays empty is removed again.

    Args:
        folder: the folder.
        what: what writes there, for the message: "training".

    Raises:
        KsimError: it is a file, or another process writes there.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise KsimError(f"{error.filename}: is a file; expected a folder; name another --out") from None
        handle = _lock(folder / LOCK)
        if handle is None:
            raise KsimError(f"{folder}: another {what} is writing here; wait until it ends, or name another --out")
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)
    finally:
        with contextlib.suppress(OSError):  # not empty: it is kept
            for path in made:
                path.rmdir()


def remove_parts(folder: Path, *names: str) -> None:
    """Remove what a killed process left of files that it was writing (robots.bundle.atomic_path)."""
    for name in names:
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)
