"""Files: written beside and renamed, folders that one process at a time writes into, and what ships with us."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import FileError

LOCK = ".lock"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path to write beside `path`; renamed onto it on success, removed on any failure. A link is followed.

    Raises:
        FileError: there is something else than a file, a device for example, which the rename would destroy.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileError(f"{path}: is no regular file; expected a file or a new name; name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        if error.filename in (None, str(part)):  # a write to an open file names none, and a rename the wrong one
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


_CLOEXEC = getattr(os, "O_CLOEXEC", 0)  # not on Windows


def _lock(path: Path) -> int | None:
    """An open file that holds the lock; None where another process has it. The system frees it when we end, however."""
    try:
        import fcntl
    except ImportError:  # Windows: go without
        fcntl = None
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _CLOEXEC, 0o666)
        except PermissionError:  # another user's, which can be locked all the same
            handle = os.open(path, os.O_RDONLY | _CLOEXEC)
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
        FileError: it is a file, or another process writes there.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise FileError(f"{error.filename}: is a file; expected a folder; name another --out") from None
        handle = _lock(folder / LOCK)
        if handle is None:
            raise FileError(f"{folder}: another {what} is writing here; wait until it ends, or name another --out")
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)
    finally:
        with contextlib.suppress(OSError):  # not empty: it is kept
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def only_one(name: str, refusal: str) -> Iterator[int]:
    """Keep another process of this machine from doing the same while this is open; an open file that holds the lock.

    A child that is given the file holds the lock as long as it lives. The file itself stays: it says nothing.

    Args:
        name: of what is done.
        refusal: the message where another does it.

    Raises:
        FileError: another does.
    """
    plain = "".join(c if c.isalnum() else "-" for c in name)
    shared = Path("/tmp")  # whatever TMPDIR says: others look there too
    path = (shared if shared.is_dir() else Path(tempfile.gettempdir())) / f"ksim-{plain}.lock"
    handle = _lock(path)
    if handle is None:
        raise FileError(refusal)
    try:
        yield handle
    finally:
        os.close(handle)


def remove_parts(folder: Path, *names: str) -> None:
    """Remove what a killed process left of files that it was writing (`atomic_path`)."""
    for name in names:
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


def shipped_config(name: str) -> Path:
    """A shipped configuration by file name, e.g. `kbot_stand.yaml`.

    Raises:
        FileError: there is none of that name; the message lists those there are.
    """
    root = Path(__file__).parent.parent
    # beside the packages in a checkout, inside ksim in a wheel
    folders = [root / "configs", root / "ksim" / "configs"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    known = sorted({p.name for f in folders for p in f.glob("*.yaml") if not p.name.startswith("reality_")})
    raise FileError(f"configuration {name!r}: not shipped; there is {', '.join(known) or 'none'}")


def packaged(path: str | Path) -> Path:
    """The path; where nothing is there, the file of the package that it names as one in a clone would.

    That is `configs/NAME` or `robots/...`, from any folder.
    """
    path = Path(path)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    root = Path(__file__).parent.parent
    places = {"configs": (root / path, root / "ksim" / path), "robots": (root / path,)}
    return next((p for p in places.get(path.parts[0] if path.parts else "", ()) if p.is_file()), path)


def shipped_policy(name: str, suffix: str) -> Path:
    """A shipped policy's file, e.g. `shipped_policy("stand", ".ckpt")`."""
    return Path(__file__).parent.parent / "robots" / "kbot" / "policies" / f"{name}{suffix}"
