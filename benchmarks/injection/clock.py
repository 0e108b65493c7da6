"""A clock of the day that is stepped, for one process and its children: a library put before the C library's own.

Setting the machine's clock needs rights that a test has not. Python and gRPC both ask the C library.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_CODE = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* an hour forward as soon as the file is there */
static long step(void) { return access(STEPPED, F_OK) == 0 ? 3600 : 0; }

int clock_gettime(clockid_t id, struct timespec *t) {
    long failed = syscall(SYS_clock_gettime, id, t);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += step();
    return failed;
}

int gettimeofday(struct timeval *t, void *zone) {
    long failed = syscall(SYS_gettimeofday, t, zone);
    if (!failed && t) t->tv_sec += step();
    return failed;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""
NEEDS = "" if shutil.which("cc") else "no C compiler"


def stepping(folder: Path) -> dict[str, str]:
    """What the environment of a process needs so that `step` reaches it."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_CODE, encoding="utf-8")
    define = f'-DSTEPPED="{folder / "stepped"}"'
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", define, "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library)}


def step(folder: Path) -> None:
    """Now the clock of the day is an hour ahead."""
    (folder / "stepped").touch()
