"""A process of ours beside the one that starts it: they share a socket, and no terminal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def start_child(module: str, link: socket.socket, *more: int, quiet: bool = False) -> subprocess.Popen:
    """Run a module in a process of its own, in a session of its own: Ctrl-C in the terminal does not reach it.

    Args:
        module: its name; the number of its end of the socket is its argument.
        link: that end; it is closed here.
        more: other files that it is to hold.
        quiet: what it writes on standard error goes nowhere.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    with link:
        return subprocess.Popen(
            # -P: nothing that lies in the current folder is taken for ours
            [sys.executable, "-P", "-m", module, str(link.fileno())],
            pass_fds=[link.fileno(), *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
