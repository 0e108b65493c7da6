"""Environments beside ours, of packages that do not fit it: made once, in `.cache`, and found by later runs."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache"
# what pip says where a package cannot be had, and not where something of ours is wrong
UNAVAILABLE = ("No matching distribution found", "NewConnectionError", "ConnectTimeout", "ReadTimeout", "getaddrinfo")


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Wait until no other process makes this environment, and keep others from it."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def python_with(name: str, release: str, *words: str) -> Path:
    """The interpreter of an environment that has a package; the test is skipped where it cannot be downloaded.

    Args:
        name: of the package.
        release: its version.
        words: more for pip: options, other packages.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = CACHE / f"{name}-{release}-py{version}"
    python, done = home / "bin" / "python", home / "installed"
    with alone(home):
        if done.is_file():
            return python
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True, capture_output=True, text=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        made = subprocess.run([*pip, f"{name}=={release}", *words], capture_output=True, text=True)
        if made.returncode and any(sign in made.stderr for sign in UNAVAILABLE):
            pytest.skip(f"{name} {release} for Python {version} cannot be downloaded here")
        assert made.returncode == 0, made.stderr
        done.write_text("")
    return python
