"""One control step of a policy: our step_fn through ONNX Runtime against jax.jit of the same function.

One run, one thread, the contenders taking turns, so that a busy moment of the machine hits all of them.

    python benchmarks/inference.py [--checkpoint CKPT] [--json]

Without a checkpoint it measures freshly initialised policies of two sizes: speed does not depend on weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread for JAX as for ONNX Runtime; read when JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from export import convert, graph
from export.compare import session
from ksim.checkpoint import load_trained, policy_spec
from ksim.config import Config, PolicyConfig
from ksim.policy import Policy, make_model, make_policy
from robots import PolicySpec, load_robot

SIZES = {"LSTM 1 x 64": PolicyConfig(hidden=64, layers=1), "LSTM 2 x 256": PolicyConfig(hidden=256, layers=2)}


def machine() -> str:
    """Processor, cores and Python of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def fresh(size: PolicyConfig) -> tuple[Policy, PolicySpec]:
    """An untrained policy of a size on the K-Bot."""
    config, robot = Config(policy=size), load_robot("kbot")
    model = make_model(robot, len(config.commands), 1, size, key=jax.random.key(0))
    policy = make_policy(model.actor, robot, config)
    return policy, policy_spec(config, robot, policy, "")


def contenders(policy: Policy, spec: PolicySpec) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """A call of one step for each, and the figures of the graph. Each call gets NumPy in and gives NumPy out."""
    bundle = convert(policy.step, policy.init_carry(), spec)
    rng = np.random.default_rng(0)
    inputs = {a.name: rng.normal(size=a.shape).astype(np.float32) for a in spec.inputs}
    carry = np.array(policy.init_carry())
    run, feed = session(bundle.step_fn), {**inputs, graph.CARRY: carry}
    jitted = jax.jit(lambda i, c: policy.step(i, c))

    def with_jax() -> list[np.ndarray]:
        return [np.asarray(v) for v in jitted(inputs, carry)]

    model = onnx.load_model_from_string(bundle.step_fn)
    figures = {"bytes": len(bundle.step_fn), "nodes": sum(graph.operators(model).values())}
    return {"step_fn, ONNX Runtime": lambda: run.run(None, feed), "jax.jit": with_jax}, figures


def measure(calls: dict[str, Callable[[], Any]], steps: int, rounds: int = 10) -> dict[str, np.ndarray]:
    """Time of each step of each contender [us], (steps,), after a warm-up, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(100):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(steps // rounds):
                begin = time.perf_counter_ns()
                call()
                taken[name].append((time.perf_counter_ns() - begin) / 1e3)
    return {name: np.asarray(values) for name, values in taken.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--checkpoint", help="a .ckpt file (default: untrained policies of two sizes)")
    parse.add_argument("--steps", type=int, default=5000, help="steps of each contender (%(default)s)")
    parse.add_argument("--json", action="store_true", help="print one JSON object")
    args = parse.parse_args(argv)
    if args.checkpoint:
        trained = load_trained(args.checkpoint)
        policies = {Path(args.checkpoint).name: (trained.policy, trained.spec)}
    else:
        policies = {name: fresh(size) for name, size in SIZES.items()}
    rows = []
    for name, (policy, spec) in policies.items():
        calls, figures = contenders(policy, spec)
        for who, taken in measure(calls, args.steps).items():
            p50, p99 = (float(np.percentile(taken, q)) for q in (50, 99))
            graph_figures = figures if who.startswith("step_fn") else {}
            rows.append({"policy": name, "runtime": who, "p50_us": p50, "p99_us": p99, **graph_figures})
    if args.json:
        print(json.dumps({"machine": machine(), "threads": 1, "steps": args.steps, "rows": rows}))
        return 0
    table = Table(title=f"{machine()}; one thread, {args.steps} steps", title_justify="left")
    for column in ("policy", "runtime", "p50 [us]", "p99 [us]", "bytes", "nodes"):
        table.add_column(column, justify="left" if column in ("policy", "runtime") else "right")
    for row in rows:
        size, count = (f"{row[k]:,}" if k in row else "" for k in ("bytes", "nodes"))
        table.add_row(row["policy"], row["runtime"], f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}", size, count)
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
