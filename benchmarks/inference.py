"""One control step of a policy: graphs of it in ONNX Runtime, and jax.jit of the function.

One run, one thread, the contenders taking turns, so that a busy moment of the machine hits all of them. Before that,
each is compared with the JAX function over 50 carried steps.

    python benchmarks/inference.py [--checkpoint CKPT] [--kinfer OTHER.kinfer] [--forms] [--json]

Without a checkpoint it measures freshly initialised K-Bot policies of three sizes: speed does not depend on weights.
`ordinary code` is the graph that jax2onnx gives of the policy as one would write it at first, and what the others are
divided by. `bound` has buffers bound once in place of arrays handed to `session.run`, as deploy.bundle.session has;
`as ksim run` is deploy.bundle.session itself, with all its checks. `an empty graph` has our inputs and outputs and
copies the carry: what a call costs beside arithmetic. `a product by its weights` multiplies by as many numbers once
besides: what reading them costs. `like K-Scale's` is an actor of the form of their K-Bot example, untrained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
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

import graph_forms
import jax
import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from deploy.bundle.session import OnnxPolicy
from export import convert, graph
from export.compare import session
from export.tracing import trace
from ksim.config import PolicyConfig
from ksim.learning.checkpoint import load_trained, policy_spec
from ksim.learning.policy import Policy, make_model, make_policy
from ksim.tasks.stand import stand
from robots import Bundle, PolicySpec, load_robot, read_bundle

SIZES = {
    "LSTM 1 x 64": PolicyConfig(hidden=64),
    "LSTM 1 x 128": PolicyConfig(hidden=128),
    "LSTM 2 x 256": PolicyConfig(hidden=256, layers=2),
}
ORDINARY = "jax2onnx, ordinary code"
EMPTY = "an empty graph, bound"
PRODUCT = "a product by its weights, bound"
TOOLS = ("onnxsim", "onnxoptimizer", "onnxscript", "onnxslim")
ERROR_LIMIT = 1e-5

Call = Callable[[dict[str, np.ndarray]], Any]


def machine() -> str:
    """Processor, cores and versions of this machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}, JAX {jax.__version__}"
    )


def fresh(size: PolicyConfig) -> tuple[Policy, PolicySpec]:
    """An untrained policy of a size on the K-Bot."""
    config, robot = dataclasses.replace(stand(), policy=size), load_robot("kbot")
    model = make_model(robot, 1, config, key=jax.random.key(0))
    policy = make_policy(model.actor, robot, config)
    return policy, policy_spec(config, robot, policy, "")


def run(model: bytes) -> Call:
    """As `session.run` of NumPy arrays."""
    one = session(model)
    return lambda feed: one.run(None, feed)


def deployed(bundle: Bundle) -> Call:
    """As `ksim run` calls it: deploy.bundle.session, with buffers bound once and all its checks."""
    policy = OnnxPolicy(bundle)

    def call(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        policy.carry = feed[graph.CARRY]
        return [policy.step(feed), policy.carry]

    return call


def bound(model: bytes) -> Call:
    """On buffers bound once; the caller's arrays are copied in."""
    one = session(model)
    binding = one.io_binding()
    buffers = {v.name: np.zeros(v.shape, np.float32) for v in [*one.get_inputs(), *one.get_outputs()]}
    for v in one.get_inputs():
        binding.bind_input(v.name, "cpu", 0, np.float32, v.shape, buffers[v.name].ctypes.data)
    for v in one.get_outputs():
        binding.bind_output(v.name, "cpu", 0, np.float32, v.shape, buffers[v.name].ctypes.data)
    outputs = [buffers[v.name] for v in one.get_outputs()]

    def call(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        for name, value in feed.items():
            buffers[name][:] = value
        one.run_with_iobinding(binding)
        return outputs

    return call


def empty(model: bytes) -> bytes:
    """A graph of the same inputs and outputs, without any arithmetic."""
    graph_of = onnx.load_from_string(model).graph
    action, carry = graph_of.output
    nodes = [
        onnx.helper.make_node(
            "Constant", [], [action.name], value_floats=[0.0] * action.type.tensor_type.shape.dim[0].dim_value
        ),
        onnx.helper.make_node("Identity", [graph.CARRY], [carry.name]),
    ]
    whole = onnx.helper.make_graph(nodes, "empty", graph_of.input, graph_of.output)
    return onnx.helper.make_model(
        whole, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def product(model: bytes) -> bytes:
    """A graph of the same inputs and outputs that only multiplies by as many weights, once."""
    graph_of = onnx.load_from_string(model).graph
    weights = sum(math.prod(w.dims) for w in graph_of.initializer if len(w.dims) == 2)
    action, carry = graph_of.output
    size = carry.type.tensor_type.shape.dim[0].dim_value
    table = np.full((size, max(1, round(weights / size))), 1e-3, np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", [graph.CARRY, "table"], ["y"]),
        onnx.helper.make_node("Slice", ["y", "zero", "actions"], [action.name]),
        onnx.helper.make_node("Identity", [graph.CARRY], [carry.name]),
    ]
    ends = {"zero": [0], "actions": [action.type.tensor_type.shape.dim[0].dim_value]}
    constants = [onnx.numpy_helper.from_array(np.asarray(v, np.int64), name) for name, v in ends.items()]
    constants.append(onnx.numpy_helper.from_array(table, "table"))
    whole = onnx.helper.make_graph(nodes, "product", graph_of.input, graph_of.output, constants)
    return onnx.helper.make_model(
        whole, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def hand_made(policy: Policy) -> bool:
    """The other graphs know plain LSTM policies alone."""
    law, lstm = policy.targets, policy.carry_layout[0].name == "lstm0.h"
    return lstm and not (law.active or law.smoothing or law.step or policy.actor.normaliser)


def contenders(policy: Policy, spec: PolicySpec, forms: bool) -> tuple[dict[str, Call], dict[str, bytes]]:
    """A call of one step for each, and the graph of each that has one."""
    jitted = jax.jit(lambda i, c: policy.step(i, c))

    def with_jax(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        inputs = {k: v for k, v in feed.items() if k != graph.CARRY}
        return [np.asarray(v) for v in jitted(inputs, feed[graph.CARRY])]

    def traced(step: Any) -> onnx.ModelProto:
        model = trace(step, spec)
        graph.name_outputs(model, [graph.ACTION, graph.CARRY_OUT])
        return model

    plain = traced(policy.step)
    graphs: dict[str, bytes] = {}
    if hand_made(policy):
        first = traced(graph_forms.ordinary(policy))
        graphs[ORDINARY] = first.SerializeToString()
        for tool in TOOLS if forms else ():
            if (better := graph_forms.optimised(first, tool)) is not None:
                graphs[f"{ORDINARY}, {tool}"] = better.SerializeToString()
    graphs["jax2onnx, our code"] = plain.SerializeToString()
    bundle = convert(policy.step, policy.init_carry(), spec)
    graphs["ours"] = bundle.step_fn
    if forms and hand_made(policy):
        graphs["by hand, fused products"] = graph_forms.by_hand(policy, spec, operator=False)
        graphs["by hand, LSTM operator"] = graph_forms.by_hand(policy, spec, operator=True)
    calls = {name: run(model) for name, model in graphs.items()}
    calls["ours, bound"] = bound(graphs["ours"])
    for name in (ORDINARY, "ours"):
        if name in graphs:
            calls[f"{name}, as ksim run"] = deployed(dataclasses.replace(bundle, step_fn=graphs[name]))
    calls["jax.jit"] = with_jax
    return calls, graphs


def check(policy: Policy, spec: PolicySpec, calls: dict[str, Call]) -> dict[str, float]:
    """Greatest error of each against the JAX function over 50 carried steps."""
    rng, errors = np.random.default_rng(0), dict.fromkeys(calls, 0.0)
    step = jax.jit(lambda i, c: policy.step(i, c))
    first = np.asarray(policy.init_carry())
    carries, truth = dict.fromkeys(calls, first), first
    for _ in range(50):
        inputs = {a.name: rng.normal(size=a.shape).astype(np.float32) for a in spec.inputs}
        action, truth = (np.asarray(v) for v in step(inputs, truth))
        for name, call in calls.items():
            got, carry = call({**inputs, graph.CARRY: carries[name]})
            carries[name] = np.array(carry)
            errors[name] = max(errors[name], *(float(np.abs(a - b).max()) for a, b in ((got, action), (carry, truth))))
    for name, error in errors.items():
        if error > ERROR_LIMIT:
            raise SystemExit(f"{name}: error {error:.2e} against the JAX function, expected at most {ERROR_LIMIT:g}")
    return errors


def measure(calls: dict[str, Callable[[], Any]], steps: int, turn: int = 50) -> dict[str, np.ndarray]:
    """Time of each step of each contender [us], (steps,), after a warm-up, in turns of a few steps."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(100):
            call()
    for _ in range(steps // turn):
        for name, call in calls.items():
            call()  # the first after another's turn finds cold caches
            for _ in range(turn):
                begin = time.perf_counter_ns()
                call()
                taken[name].append((time.perf_counter_ns() - begin) / 1e3)
    return {name: np.asarray(values) for name, values in taken.items()}


def figures(model: bytes) -> dict[str, int]:
    """Size of a graph."""
    return {"bytes": len(model), "nodes": sum(graph.operators(graph.parse(model, "graph")).values())}


def other(model: bytes) -> tuple[Callable[[], Any], dict[str, int]]:
    """A call of one step of any graph, and its size."""
    one, rng = session(model), np.random.default_rng(0)
    feed = {i.name: rng.normal(size=i.shape).astype(np.float32) for i in one.get_inputs()}
    return (lambda: one.run(None, feed)), figures(model)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--checkpoint", help="a .ckpt file (default: untrained policies of three sizes)")
    parse.add_argument("--kinfer", action="append", default=[], metavar="PATH", help="another bundle to measure beside")
    parse.add_argument("--forms", action="store_true", help="also the graphs written by hand, and those of optimisers")
    parse.add_argument("--steps", type=int, default=5000, help="steps of each contender (%(default)s)")
    parse.add_argument("--json", action="store_true", help="print one JSON object")
    args = parse.parse_args(argv)
    if args.checkpoint:
        trained = load_trained(args.checkpoint)
        policies = {Path(args.checkpoint).name: (trained.policy, trained.spec)}
    else:
        policies = {name: fresh(size) for name, size in SIZES.items()}
    theirs = {f"like K-Scale's, LSTM {n} x 128": graph_forms.like_k_scale(n, 128).SerializeToString() for n in (1, 2)}
    rows: list[dict[str, Any]] = []
    for name, (policy, spec) in policies.items():
        calls, graphs = contenders(policy, spec, args.forms)
        errors = check(policy, spec, calls)
        rng = np.random.default_rng(0)
        feed = {a.name: rng.normal(size=a.shape).astype(np.float32) for a in spec.inputs}
        feed[graph.CARRY] = np.array(policy.init_carry())
        calls[EMPTY] = bound(empty(graphs["ours"]))
        calls[PRODUCT] = bound(product(graphs["ours"]))
        ready: dict[str, Callable[[], Any]] = {who: lambda c=call: c(feed) for who, call in calls.items()}  # noqa: B023
        sizes = {who: figures(model) for who, model in graphs.items()}
        sizes["ours, bound"] = sizes["ours"]
        sizes |= {f"{who}, as ksim run": size for who, size in sizes.items()}
        for who, model in {**theirs, **{Path(path).name: read_bundle(path).step_fn for path in args.kinfer}}.items():
            ready[who], sizes[who] = other(model)
        taken = measure(ready, args.steps)
        base = float(np.median(taken[ORDINARY if ORDINARY in taken else "jax2onnx, our code"]))
        for who, times in taken.items():
            p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
            row = {"policy": name, "runtime": who, "p50_us": p50, "p99_us": p99, "of_plain": p50 / base}
            rows.append(row | sizes.get(who, {}) | ({"error": errors[who]} if who in errors else {}))
    if args.json:
        print(json.dumps({"machine": machine(), "threads": 1, "steps": args.steps, "rows": rows}))
        return 0
    table = Table(title=f"{machine()}; one thread, {args.steps} steps", title_justify="left")
    for column in ("policy", "runtime", "p50 [us]", "p99 [us]", "of plain", "bytes", "nodes", "error"):
        table.add_column(column, justify="left" if column in ("policy", "runtime") else "right")
    for row in rows:
        size, count = (f"{row[k]:,}" if k in row else "" for k in ("bytes", "nodes"))
        error = f"{row['error']:.1e}" if "error" in row else ""
        times = (f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}", f"{row['of_plain']:.2f}")
        table.add_row(row["policy"], row["runtime"], *times, size, count, error)
    console = Console()
    Console(width=None if console.is_terminal else 130).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
