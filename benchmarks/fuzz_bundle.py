"""Damaged bundles through everything that reads one: only our own errors may come out, and memory stays bounded.

Each input goes through `read_bundle`, the check of the graphs, and, where it passes, ONNX Runtime and two steps, in
a process of its own with limited memory, so that a crash or a hang of native code is seen, counted and named.

    python benchmarks/fuzz_bundle.py --inputs 100000
    python benchmarks/fuzz_bundle.py --only 4711 --keep bad.kinfer      # one of them again

Fails on anything else than robots.errors.BundleError and deploy.errors.PolicyError, on a crash, a hang, an input
that takes more than `--memory`, and on an allocation that ONNX Runtime was refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz import seeds
from fuzz.mutate import LAYERS, mutate

from deploy.bundle.session import OnnxPolicy
from deploy.errors import PolicyError
from robots.bundle import read_bundle
from robots.errors import BundleError

MIB = 2**20
BAD = ("other error", "unprintable", "crash", "hang", "memory", "printed")
# what may go on at the size of what it was given: reading it, unpacking it, a session of it
DEFAULT_MEMORY_MIB = 1024


def corpus() -> list[seeds.Seed]:
    """Whole policies, more often than any one operator."""
    whole = [seeds.small(spec=True), seeds.small(spec=False)]
    return whole * 25 + [seeds.sliced()] * 10 + [seeds.shipped()] * 5 + seeds.operators()


def make(seed: int, index: int, starts: list[seeds.Seed], layer: str = "") -> tuple[str, str, bytes]:
    """(what it was made from, the layer damaged, the file) of one input: the same at any time."""
    rng = random.Random(seed * 2**40 + index)
    start = rng.choice(starts)
    layer, data = mutate(rng, start, layer)
    return start.name, layer, data


def _peak_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def try_one(path: Path) -> tuple[str, str]:
    """(outcome, the error's text) of one file."""
    import numpy as np

    try:
        bundle = read_bundle(path)
        outcome = "PolicyError"
        policy = OnnxPolicy(bundle)
        rng = np.random.default_rng(0)
        for _ in range(2):
            policy.step({n: rng.normal(size=policy.shapes[n]).astype(np.float32) for n in policy.inputs})
    except BundleError as error:
        outcome, text = "BundleError", str(error)
    except PolicyError as error:
        text = str(error)
        outcome = "PolicyError"
        if "ONNX Runtime" in text or "cannot be run" in text:
            outcome = "PolicyError, from ONNX Runtime"
        if "bad_alloc" in text or "Failed to allocate" in text or ("bytes:" in text and "allocat" in text):
            outcome = "memory"
    except Exception:
        return "other error", traceback.format_exc()
    else:
        return "accepted", ""
    return (outcome if text.isprintable() else "unprintable"), text


def work(seed: int, first: int, last: int, memory_mib: int, only: str) -> int:
    """Go through inputs and print a line for each; the parent reads them."""
    starts = corpus()
    OnnxPolicy(read_bundle(seeds.SHIPPED))  # what ONNX Runtime takes once
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_mib * MIB, resource.RLIM_INFINITY))
    out, trouble = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        path = Path(folder) / "input.kinfer"
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        for index in range(first, last):
            try:
                name, layer, data = make(seed, index, starts, only)
            except Exception:
                print(f"input {index} cannot be made:\n{traceback.format_exc()}", file=trouble, flush=True)
                return 1
            path.write_bytes(data)
            del data
            print(json.dumps(["begin", index, name, layer]), file=out, flush=True)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before, start = _peak_kib(), time.perf_counter()
            outcome, text = try_one(path)
            took, grew = time.perf_counter() - start, _peak_kib() - before
            if said.tell():
                said.seek(0)
                text = f"{text} {said.read(4000).decode('utf-8', 'replace')}"
                said.seek(0)
                said.truncate()
                outcome = outcome if outcome in BAD else "printed"
            print(json.dumps(["end", index, outcome, took, grew, text[-3000:]]), file=out, flush=True)
    return 0


class Tally:
    """What came out, over all inputs."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.layers: Counter[tuple[str, str]] = Counter()
        self.largest = (0, -1)
        self.slowest = (0.0, -1)
        self.bad: list[dict[str, Any]] = []

    def add(self, index: int, layer: str, outcome: str, took: float = 0.0, grew_kib: int = 0, text: str = "") -> None:
        """One input."""
        self.outcomes[outcome] += 1
        self.layers[layer, outcome] += 1
        self.largest = max(self.largest, (grew_kib, index))
        self.slowest = max(self.slowest, (took, index))
        if outcome in BAD:
            self.bad.append({"input": index, "layer": layer, "outcome": outcome, "text": text})
            print(f"input {index} ({layer}): {outcome}\n{text}", file=sys.stderr)

    def to_json(self) -> dict[str, Any]:
        """Everything, plain."""
        layers = {layer: {o: n for (at, o), n in sorted(self.layers.items()) if at == layer} for layer in LAYERS}
        return {
            "outcomes": dict(sorted(self.outcomes.items())),
            "layers": layers,
            "largest_mib": self.largest[0] / 1024,
            "largest_input": self.largest[1],
            "slowest_s": self.slowest[0],
            "slowest_input": self.slowest[1],
            "failures": self.bad,
        }


def run(seed: int, inputs: int, *, memory_mib: int, patience_s: float, first: int = 0, only: str = "") -> Tally:
    """All inputs, in processes that are started again where one dies."""
    tally, at = Tally(), first
    begun = time.monotonic()
    while at < first + inputs:
        arguments = ["--worker", str(at), str(first + inputs), "--seed", str(seed), "--memory", str(memory_mib)]
        arguments += ["--layer", only] if only else []
        child = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        watch = selectors.DefaultSelector()
        watch.register(child.stdout, selectors.EVENT_READ)
        started, layer = None, ""
        while True:
            # one line is written at a time, so that what select sees is whole
            line = child.stdout.readline() if watch.select(patience_s if started is not None else 120) else None
            if not line:
                break
            what, index, *rest = json.loads(line)
            if what == "begin":
                started, layer = index, rest[1]
            else:
                tally.add(index, layer, *rest)
                started, at = None, index + 1
                if at % 5000 == 0:
                    rate = (at - first) / (time.monotonic() - begun)
                    print(f"{at - first} inputs, {rate:.0f} a second, {dict(tally.outcomes)}", file=sys.stderr)
        hung = line is None
        if hung:
            child.kill()
        code = child.wait()
        if started is not None:
            text = f"nothing for {patience_s} s" if hung else f"the process ended with {code}"
            tally.add(started, layer, "hang" if hung else "crash", text=text)
            at = started + 1
        elif code:
            raise SystemExit(f"the worker ended with {code} between inputs")
    return tally


def show(report: dict[str, Any]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    outcomes = list(report["outcomes"])
    title = f"{report['inputs']} inputs, seed {report['seed']}, {report['took_s']:.0f} s; {report['machine']}"
    table = Table(title=title, title_justify="left")
    table.add_column("damaged")
    for outcome in outcomes:
        table.add_column(outcome, justify="right")
    for layer, counts in report["layers"].items():
        table.add_row(layer, *(str(counts.get(o, "")) for o in outcomes))
    table.add_row("all", *(str(report["outcomes"][o]) for o in outcomes))
    console = Console()
    console = Console(width=None if console.is_terminal else 120)
    console.print(table)
    console.print(f"largest: {report['largest_mib']:.1f} MiB more than before (input {report['largest_input']})")
    console.print(f"slowest: {1e3 * report['slowest_s']:.0f} ms (input {report['slowest_input']})")
    console.print("failures: " + (", ".join(f"{f['input']} {f['outcome']}" for f in report["failures"][:20]) or "none"))


def main(argv: list[str] | None = None) -> int:
    """Run, print, and exit with 1 where something else than our errors came out."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--inputs", type=int, default=5000, help="how many (%(default)s)")
    parse.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parse.add_argument("--first", type=int, default=0, help="number of the first input (%(default)s)")
    parse.add_argument("--layer", choices=list(LAYERS), default="", help="damage only this (default: any)")
    parse.add_argument("--memory", type=int, default=DEFAULT_MEMORY_MIB, help="MiB for one input (%(default)s)")
    parse.add_argument("--patience", type=float, default=20.0, help="seconds for one input (%(default)s)")
    parse.add_argument("--only", type=int, help="one input again, in this process")
    parse.add_argument("--keep", type=Path, help="with --only: write the file there")
    parse.add_argument("--json", action="store_true", help="print one JSON object")
    parse.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parse.parse_args(argv)
    if args.worker:
        return work(args.seed, *args.worker, args.memory, args.layer)
    if args.only is not None:
        name, layer, data = make(args.seed, args.only, corpus(), args.layer)
        path = args.keep or Path(tempfile.mkdtemp()) / "input.kinfer"
        path.write_bytes(data)
        print(f"{path}: made from {name}, {layer} damaged", flush=True)
        print(*try_one(path))
        return 0
    start = time.monotonic()
    limits = {"memory_mib": args.memory, "patience_s": args.patience}
    tally = run(args.seed, args.inputs, **limits, first=args.first, only=args.layer)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    report = {"inputs": args.inputs, "seed": args.seed, "took_s": time.monotonic() - start, "machine": machine}
    report |= tally.to_json()
    if args.json:
        print(json.dumps(report))
    else:
        show(report)
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
