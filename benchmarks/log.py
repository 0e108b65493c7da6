"""What the log costs the control loop's thread in each tick, and an hour of it: size, and memory of both processes.

Run: python benchmarks/log.py --markdown docs/log.md

The ticks are those of a run of the standing policy on a twin in lock step, again and again. "in the loop" is the file
written by the loop's own thread, each tick handed to the system at once, as it was before the writer had a process of
its own. "writer stopped" is SIGSTOP of that process for 3 s of the ticks. The hour is 180,000 ticks at 50 Hz, written
as fast as the writer takes them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.control.run import RunOptions, run
from deploy.log.recorder import Recorder, RunLog, Tick, read_log
from deploy.log.tick import TIMES, VECTORS, Packer
from deploy.log.writer import LogFile
from deploy.twin.server import spawn_twin
from toolkit.files import shipped_policy

POLICY = shipped_policy("stand", ".kinfer")
PERIOD_S = 0.02
HEAD = "| written | ticks | p50 | p99 | max |\n|---|---|---|---|---|"
HOUR = "| after | file | loop's memory | writer's memory |\n|---|---|---|---|"


def recorded(folder: Path) -> RunLog:
    """A run of 20 s on the twin."""
    path = folder / "twin.mcap"
    with spawn_twin("kbot", lockstep=True) as twin:
        run(RunOptions(bundle=POLICY, robot="kbot", port=twin.port, duration_s=20.0, step_lock=True, log=path))
    return read_log(path)


def ticks_of(log: RunLog) -> list[Tick]:
    """The ticks in which the policy ran."""
    out = []
    for k in np.flatnonzero(log.run):
        values = {name: float(getattr(log, name)[k]) for name in TIMES}
        values |= {name: getattr(log, name)[k] for name in VECTORS}
        stages = {name: float(taken[k]) for name, taken in log.stages_ms.items()}
        inputs = {name: array[k] for name, array in log.inputs.items()}
        values |= {"inputs": inputs, "stages_ms": stages, "safety": log.safety[k], "phase": "run", "tick": 0}
        out.append(Tick(**values))
    return out


def at(tick: Tick, k: int) -> Tick:
    """The tick as number k of a run."""
    return replace(tick, tick=k, scheduled_s=PERIOD_S * k, start_s=PERIOD_S * k + 1e-4 * (k % 7))


def memory_mb(pid: int | str) -> float:
    """Resident memory of a process [MB]."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def paced(write: Callable[[Tick], None], ticks: list[Tick], count: int, mark: Callable[[int], None]) -> np.ndarray:
    """Time that `write` took of this thread for each of so many ticks at 50 Hz [us]."""
    took, began = np.empty(count), time.monotonic()
    for k in range(count):
        tick = at(ticks[k % len(ticks)], k)
        time.sleep(max(0.0, began + PERIOD_S * k - time.monotonic()))
        mark(k)
        before = time.perf_counter()
        write(tick)
        took[k] = 1e6 * (time.perf_counter() - before)
    return took


def row(name: str, took: np.ndarray) -> str:
    """Of the table."""
    p50, p99 = np.percentile(took, [50, 99])
    return f"| {name} | {len(took)} | {p50:.0f} us | {p99:.0f} us | {took.max():.0f} us |"


def costs(folder: Path, log: RunLog, ticks: list[Tick], seconds: float) -> list[str]:
    """The table of what a tick costs."""
    count, bundle = round(seconds / PERIOD_S), POLICY.read_bytes()
    file = LogFile(folder / "in.mcap", epoch_ns=time.time_ns(), head={"spec": log.spec.to_json()}, bundle=bundle)

    pack = Packer(array.name for array in log.spec.inputs).pack

    def at_once(tick: Tick) -> None:
        file.tick(pack(tick))
        file.flush()

    rows = [row("in the loop", paced(at_once, ticks, count, lambda k: None))]
    file.close({})
    for name, stop in (("by its own process", False), ("by its own process, writer stopped for 3 s", True)):
        path = folder / f"out{stop}.mcap"
        recorder = Recorder(path, spec=log.spec, bundle=bundle, settings={})
        pid = recorder._process.process.pid

        def mark(k: int, stop: bool = stop, pid: int = pid) -> None:
            middle = count // 2
            if stop and k in (middle, middle + round(3.0 / PERIOD_S)):
                os.kill(pid, signal.SIGSTOP if k == middle else signal.SIGCONT)

        rows.append(row(name, paced(recorder.tick, ticks, count, mark)))
        recorder.close({})
        assert len(read_log(path).tick) == count
    return rows


def hour(folder: Path, log: RunLog, ticks: list[Tick], count: int) -> list[str]:
    """The table of a long log."""
    path, rows, began = folder / "hour.mcap", [], time.monotonic()
    recorder = Recorder(path, spec=log.spec, bundle=POLICY.read_bytes(), settings={}, patient=True)
    pid = recorder._process.process.pid
    for k in range(count + 1):
        if k in (round(0.01 * count), count // 4, count // 2, 3 * count // 4, count):
            size = path.stat().st_size / 1e6
            rows.append(
                f"| {PERIOD_S * k:.0f} s | {size:.0f} MB | {memory_mb('self'):.1f} MB | {memory_mb(pid):.1f} MB |"
            )
        if k < count:
            recorder.tick(at(ticks[k % len(ticks)], k))
    recorder.close({"ended": "completed"})
    took = time.monotonic() - began
    size = path.stat().st_size
    rows.append(
        f"\n{count} ticks took {took:.0f} s. The closed file has {size / 1e6:.0f} MB, {size / count:.0f} bytes a tick."
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "deploy.log.tools", "info", str(path)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows.append(
        f"`ksim log info` took {took:.0f} s of a processor, and {after.ru_maxrss / 1e3:.0f} MB of memory at most."
    )
    return rows


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each way to write")
    parser.add_argument("--ticks", type=int, default=180_000, help="of the long log")
    parser.add_argument("--markdown", type=Path, help="put the tables into this page, between its markers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = recorded(folder)
        ticks = ticks_of(log)
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        lines = [
            f"Measured on {machine}, Python {platform.python_version()}.",
            "",
            HEAD,
            *costs(folder, log, ticks, args.seconds),
        ]
        lines += ["", HOUR, *hour(folder, log, ticks, args.ticks)]
    text = "\n".join(lines)
    print(text)
    if args.markdown:
        page = args.markdown.read_text(encoding="utf-8")
        start, end = "<!-- table -->\n", "<!-- end of table -->"
        head, _, rest = page.partition(start)
        args.markdown.write_text(f"{head}{start}{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
