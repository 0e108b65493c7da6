"""What it costs to train in several processes: whole updates, and the share of them that is communication.

Run: python benchmarks/scale.py --processes 2
Each process has one thread of physics and, where the machine can, a processor of its own. The number of environments
of each process stays the same, so the ideal is as many times the steps as there are processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENVS = 128  # of each process


def _port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _pinned(number: int) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[number % len(cores)])]


def steps_per_s(config: str, processes: int, updates: int) -> float:
    """Control steps a second of whole updates, the median of the second half of them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        envs = processes * ENVS
        command = [sys.executable, "-m", "ksim.train", "--config", config, "--out", str(out)]
        command += ["--set", f"ppo.envs={envs}", "--set", "threads=1"]
        command += ["--set", f"run.total_steps={envs * 24 * updates}", "--set", "run.save_every_updates=100000"]
        together = ["--distributed", "--coordinator", f"127.0.0.1:{_port()}", "--processes", str(processes)]
        running = [
            subprocess.Popen(
                [*_pinned(i), *command, *([*together, "--process", str(i)] if processes > 1 else [])],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for i in range(processes)
        ]
        for process in running:
            if process.wait():
                sys.exit(f"benchmarks/scale.py: a training of {processes} processes ended with {process.returncode}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        half = rows[len(rows) // 2 :]
        took = sorted(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(half))
        return envs * 24 / took[len(took) // 2]


def reduce_ms(size: int, repeats: int = 200) -> float:
    """Median time of a mean over the devices of so many float32 [ms]; in a process that has joined the others."""
    import jax
    import jax.numpy as jnp

    from ksim.learning.world import CUT, WHOLE, World, everywhere

    world = World.here()
    mean = world.spread(lambda v: everywhere(v[0], True), (CUT,), WHOLE)
    rows = world.shared(jnp.zeros((world.devices // world.processes, size)), CUT)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(mean(rows))
        times.append(time.perf_counter() - begin)
    return 1e3 * sorted(times)[repeats // 2]


def _measure_reduce(processes: int, size: int) -> float:
    port, code = _port(), "import benchmarks.scale as s, sys; s.child(*map(int, sys.argv[1:]))"
    running = [
        subprocess.Popen(
            [*_pinned(i), sys.executable, "-c", code, str(port), str(processes), str(i), str(size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for i in range(processes)
    ]
    return [float(process.communicate()[0].split()[-1]) for process in running].pop()


def child(port: int, processes: int, number: int, size: int) -> None:
    """One process of `_measure_reduce`."""
    from ksim.learning import world

    world.join(f"127.0.0.1:{port}", processes, number)
    with world.together("-"):
        print(reduce_ms(size), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/kbot_walk.yaml")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--updates", type=int, default=30)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors; {args.config}, {ENVS} environments a process")
    one = steps_per_s(args.config, 1, args.updates)
    print(f"one process, one thread: {one:,.0f} control steps a second")
    many = steps_per_s(args.config, args.processes, args.updates)
    print(f"{args.processes} processes: {many:,.0f}, {many / one / args.processes:.0%} of {args.processes} times that")
    size, reductions = 140_437, 16
    took = _measure_reduce(args.processes, size)
    update = 1e3 * args.processes * ENVS * 24 / many
    share = took * reductions / update
    print(f"a mean of {size:,} float32 over the processes: {took:.2f} ms")
    print(f"{reductions} of them in an update of {update:.0f} ms: {share:.1%}")


if __name__ == "__main__":
    main()
