"""The check of a bundle's graphs against a trial load in a process with limits, on the inputs of fuzz_bundle.py.

    python benchmarks/fuzz_trial.py --inputs 100000       # an hour and a half on one core

Each input that `read_bundle` takes meets three doors, each in a forked process with limits on memory, time and files:
the check (deploy.bundle.graph), a bare trial (ONNX Runtime loads and runs both graphs: fuzz/trial.py) and a trial
after a list of allowed operators and fixed sizes. What a door lets in is run as `ksim run` would, 50 steps of
ordinary to extreme inputs: a crash, a hang, a step of more than a second, or an allocation that fails is harm.
Then policies made by hand, which behave for 20 steps (fuzz/sleepers.py), and what a door costs at the start of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fuzz import seeds, sleepers, trial
from fuzz.mutate import pack, zip_up
from fuzz_bundle import _peak_kib, corpus, make
from rich.console import Console
from rich.table import Table

from deploy.bundle import session
from deploy.bundle.graph import known_inputs, read_graphs
from deploy.errors import PolicyError
from robots.bundle import Bundle, read_bundle
from robots.errors import BundleError

DOORS = ("check", "bare trial", "trial with a list")
VERDICTS = ("accepted", "refused", "memory", "crash", "hang")
PATIENCE_S = 12.0


def apart(work: Callable[[], str]) -> dict[str, Any]:
    """What `work` says in a forked process with limits, with its seconds and MiB."""
    read, write = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            Path("/proc/self/clear_refs").write_text("5")
            before = _peak_kib()
            status = os.open("/proc/self/status", os.O_RDONLY)
            trial.limit()
            try:
                said = work()
            except BaseException as error:
                said = f"other error {type(error).__name__} {error}"
            peak = next(v for v in os.read(status, 8192).decode().splitlines() if v.startswith("VmHWM"))
            grew = (int(peak.split()[1]) - before) / 1024
            os.write(write, json.dumps({"said": said[:400], "mib": grew}).encode())
        finally:
            os._exit(0)
    os.close(write)
    said = b""
    while select.select([read], [], [], max(0.0, start + PATIENCE_S - time.perf_counter()))[0]:
        more = os.read(read, 65536)
        if not more:
            break
        said += more
    os.close(read)
    if not said:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    took = time.perf_counter() - start
    if not said:
        return {"said": f"{'hang' if took > trial.CPU_S - 1 else 'crash'} {status}", "s": took, "mib": 0.0}
    return {**json.loads(said), "s": took}


def _door(name: str, bundle: Bundle) -> str:
    if name == "check":
        try:
            session.OnnxPolicy(bundle)
        except PolicyError as error:
            return f"refused {error}"
        return "accepted"
    shapes = known_inputs(len(bundle.joint_names), len(bundle.command_names), bundle.carry_shape)
    wrong = trial.answer(bundle.init_fn, bundle.step_fn, shapes, len(bundle.joint_names), name != "bare trial")
    memory = any(w in wrong for w in ("bad_alloc", "Failed to allocate", "MemoryError"))
    return f"{'memory' if memory else 'refused'} {wrong}" if wrong else "accepted"


def _run(bundle: Bundle) -> str:
    """50 steps as the loop would, without the check."""
    names = [o.name for o in session._session("step_fn.onnx", bundle.step_fn).get_outputs()]
    shapes = dict(zip(names, [(len(bundle.joint_names),), (bundle.carry_size,)], strict=False))
    session.read_graphs = lambda bundle: (SimpleNamespace(outputs=shapes),) * 2
    try:
        policy = session.OnnxPolicy(bundle)
    except PolicyError:
        return "refused when loaded"
    rng, faults, slowest = np.random.default_rng(1), 0, 0.0
    for t in range(50):
        scale = (1.0, 1e3, 1e10, 1e19, 3e38)[t % 5]
        fed = {n: (scale * rng.normal(size=policy.shapes[n]).clip(-1, 1)).astype(np.float32) for n in policy.inputs}
        start = time.perf_counter()
        try:
            policy.step(fed)
        except PolicyError as error:
            faults += 1
            if any(w in str(error) for w in ("bad_alloc", "Failed to allocate")):
                return "harm: memory"
            policy.reset()
        slowest = max(slowest, time.perf_counter() - start)
    return "harm: slow" if slowest > 1.0 else "faults" if faults else "runs"


def meet(bundle: Bundle) -> dict[str, Any]:
    """What each door says of a bundle, and how it runs where one of them lets it in."""
    told: dict[str, Any] = {door: apart(lambda d=door: _door(d, bundle)) for door in DOORS}
    if any(t["said"] == "accepted" for t in told.values()):
        told["after"] = apart(lambda: _run(bundle))["said"]
    return told


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def show(told: list[dict[str, Any]], title: str) -> None:
    """Verdicts of each door, the most it took, and what became of those that it let in."""
    ends = sorted({t["after"] for t in told if "after" in t})
    rows = []
    for door in DOORS:
        found = Counter(t[door]["said"].split()[0] for t in told)
        later = Counter(t["after"] for t in told if t[door]["said"] == "accepted")
        most = [f"{max(t[door][what] for t in told):.{digits}f}" for what, digits in (("s", 2), ("mib", 0))]
        rows.append(
            (door, *(found[v] for v in VERDICTS), *most, ", ".join(f"{later[e]} {e}" for e in ends if later[e]))
        )
    _table(title, ("door", *VERDICTS, "s at most", "MiB at most", "then, of the accepted"), rows)


def main(argv: list[str] | None = None) -> int:
    """Run and print."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--inputs", type=int, default=1000, help="how many (%(default)s)")
    parse.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    args = parse.parse_args(argv)
    starts = corpus()
    trial.model_class()
    told = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.kinfer"
        for index in range(args.inputs):
            path.write_bytes(make(args.seed, index, starts)[2])
            try:
                bundle = read_bundle(path)
            except BundleError:
                continue
            told.append(meet(bundle))
            if (index + 1) % 1000 == 0:
                print(f"{index + 1} of {args.inputs}", file=sys.stderr)
        show(told, f"{args.inputs} inputs, seed {args.seed}, {args.inputs - len(told)} refused by the archive's reader")
        same = Counter(tuple(t[d]["said"] == "accepted" for d in DOORS) for t in told)
        rows = [(*("in" if v else "out" for v in k), n) for k, n in sorted(same.items(), key=lambda p: -p[1])]
        _table("who lets in what", (*DOORS, "inputs"), rows)
        told, rng = {}, random.Random(0)
        for name in sleepers.SLEEPERS:
            path.write_bytes(zip_up(rng, pack(rng, sleepers.sleeper(name).members(), False), False))
            told[name] = meet(read_bundle(path))
        rows = [(n, *(t[d]["said"].split()[0] for d in DOORS), t.get("after", "")) for n, t in told.items()]
        _table("policies that behave for 20 steps", ("what it then does", *DOORS, "and then"), rows)
    bundle = read_bundle(seeds.SHIPPED)
    shapes = known_inputs(len(bundle.joint_names), len(bundle.command_names), bundle.carry_shape)
    doors = {
        "check": lambda: read_graphs(bundle),
        "trial": lambda: trial.try_out(bundle.init_fn, bundle.step_fn, shapes, len(bundle.joint_names)),
    }
    for name, door in doors.items():
        times = []
        for _ in range(9):
            start = time.perf_counter()
            door()
            times.append(time.perf_counter() - start)
        print(f"the shipped bundle, {name}: {1e3 * sorted(times)[4]:.0f} ms (median of 9)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
