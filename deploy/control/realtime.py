"""See that nothing holds the control loop up: priority, a processor of its own, memory that stays, no collector."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.errors import OptionError

_MCL_CURRENT = 1
HOW = (
    "to allow it, put `USER - rtprio 10` and `USER - memlock unlimited` into /etc/security/limits.conf and log in again"
)


@dataclass(frozen=True, kw_only=True)
class Granted:
    """What the system allowed.

    Attributes:
        priority: real-time scheduling.
        memory: what the process has in memory stays there.
        cpu: the one processor that the loop keeps to; None for any.
    """

    priority: bool = False
    memory: bool = False
    cpu: int | None = None

    def __str__(self) -> str:
        """One line for a person."""
        cpu = "any processor" if self.cpu is None else f"processor {self.cpu}"
        said = f"real-time priority {_yes(self.priority)}, memory locked {_yes(self.memory)}, {cpu}"
        return said if self.priority and self.memory else f"{said}; {HOW}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _memory(call: str, *arguments: int) -> bool:
    try:
        return getattr(ctypes.CDLL(None), call)(*arguments) == 0
    except (OSError, AttributeError, TypeError):  # no such function on this system
        return False


def _lock_memory() -> bool:
    """Lock what is in memory now; what comes later is not, so that no allocation of the run can fail by it."""
    return _memory("mlockall", _MCL_CURRENT)


@contextlib.contextmanager
def realtime(wanted: bool, cpu: int | None = None) -> Iterator[Granted]:
    """Real-time scheduling for this thread and those that it starts, as far as the system grants it.

    Round robin at the lowest real-time priority: before any ordinary process, behind the drivers. It needs
    root, CAP_SYS_NICE or an rtprio limit, so a refusal is normal and no error.

    Args:
        wanted: ask for priority and memory.
        cpu: keep to this processor.

    Raises:
        OptionError: there is no such processor, or it is not for this process.
    """
    affinity = None
    if cpu is not None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if cpu not in allowed:
            have = ", ".join(str(number) for number in sorted(allowed)) or "none"
            raise OptionError(f"--cpu {cpu}: this process may use {have}; expected one of these")
        affinity = allowed
        os.sched_setaffinity(0, {cpu})
    before = None
    if wanted and hasattr(os, "sched_setscheduler"):
        policy = os.sched_getscheduler(0), os.sched_getparam(0)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
            before = policy
    locked = wanted and _lock_memory()
    try:
        yield Granted(priority=before is not None, memory=locked, cpu=cpu)
    finally:
        if locked:
            _memory("munlockall")
        if before is not None:
            os.sched_setscheduler(0, *before)
        if affinity is not None:
            os.sched_setaffinity(0, affinity)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """The collector stops the world for milliseconds; a run allocates little and without cycles."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()
