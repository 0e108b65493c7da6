"""Tells the files of this toolkit apart by what they begin with, for one that was given in place of another."""

from __future__ import annotations

import zipfile
from pathlib import Path

_MCAP = b"\x89MCAP0\r\n"


def meant(path: str | Path) -> str:
    """What a file is that was given for a bundle, and what to do with it; empty where that is not known."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head == _MCAP:
            return f"is a log of ksim run, expected a bundle; ksim log info {path} tells what it says"
        if head[:2] == b"PK" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if "meta.json" in archive.namelist():
                    to = path.with_suffix(".kinfer")
                    return f"is a checkpoint, expected a bundle; export it first: ksim export {path} -o {to}"
    except (OSError, ValueError, zipfile.BadZipFile):
        pass
    return ""
