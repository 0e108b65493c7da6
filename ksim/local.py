"""The processes of one run on this machine: each has its own share of the cores."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from ksim.errors import TrainingError

# How long a process may take to end once the run has ended [s].
END_S = 60.0


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shares(many: int) -> list[list[int]]:
    """These cores, shared out."""
    whole = cores()
    return [whole[len(whole) * i // many : len(whole) * (i + 1) // many] for i in range(many)]


def keep_to(share: Sequence[int]) -> None:
    """Keep this thread, and the processes that it starts, to these cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)


@contextlib.contextmanager
def started(argv: Sequence[str] | None, processes: int) -> Iterator[str]:
    """Start the other processes of this run, before JAX is used, and keep each to its share of the cores.

    Args:
        argv: the arguments of this one; None for the process's.
        processes: how many there are, this one among them.

    Yields:
        HOST:PORT of process 0, which this one is.
    """
    whole, of = cores(), shares(processes)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    own = sys.orig_argv
    if argv is not None and list(argv) != own[len(own) - len(argv) :]:  # called by another program
        own = [sys.executable, "-m", "ksim.train", *argv]
    others: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    try:
        for place in range(1, processes):
            keep_to(of[place])  # a child keeps to what its parent keeps to
            said = tempfile.TemporaryFile()  # noqa: SIM115
            # not of this terminal: a Ctrl-C comes to process 0, which tells the others
            other = subprocess.Popen(
                [*own, "--distributed", "--coordinator", coordinator, "--process", str(place)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            others.append((other, said))
        keep_to(of[0])
        yield coordinator
        for other, _ in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(END_S)
    except TrainingError:
        # process 0 knows only that one is gone
        for other, said in others:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            if other.poll() and last and "another process of this run" not in last[0]:
                print(last[0], file=sys.stderr, flush=True)
        raise
    finally:
        keep_to(whole)
        for other, said in others:
            if other.poll() is None:
                other.kill()
            other.wait()
            said.close()
