"""The proof that a bundle is the policy it was made from: graph, numbers, and behaviour in simulation."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export import graph
from export.compare import Difference, difference, drawn, initial_carry, sequence, session
from export.errors import ExportError
from ksim.checkpoint import Trained, load_trained
from ksim.cli import parser
from ksim.config import Config
from ksim.evaluate import Evaluation, JaxBatchPolicy, OnnxBatchPolicy, evaluate
from ksim.policy import Policy
from ksim.tasks import make_environment
from robots.bundle import Bundle, read_bundle
from robots.spec import digest

STEPS = 1000
DRAWN_STEPS = 200
# Greatest difference of action [rad] and carry over a recorded sequence. Float32 with another order of
# sums differs by some 1e-6; a weight that is off by 1e-3 differs by 1e-4 and more.
ERROR_LIMIT = 1e-5
# Drawn inputs go far beyond what a robot sees and drive the raw action in the carry to tens: there the same limit
# holds for the difference divided by the value where that is beyond 1.
# In closed loop the difference passes through contacts, which multiply it; another policy is apart by 0.1.
DEVIATION_LIMIT_RAD = 1e-3
DEVIATION_S = 1.0
# Falls are decided by small things late in an episode, so survival may differ by chance; by this share at most.
SURVIVAL_LIMIT = 0.15
NO_SPEC = "bundle: metadata.json has no ksim2real entry, expected one; write the bundle with ksim export"


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Both policies in MuJoCo C from the same seeds.

    Attributes:
        episodes: episodes of each.
        seed: the seed.
        survival_onnx: share of episodes without a fall, ONNX policy.
        survival_jax: the same of the JAX policy.
        return_onnx: mean return of the ONNX policy.
        return_jax: the same of the JAX policy.
        joint_deviation_rad: greatest difference of any joint angle in the first second [rad].
    """

    episodes: int
    seed: int
    survival_onnx: float
    survival_jax: float
    return_onnx: float
    return_jax: float
    joint_deviation_rad: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was proven.

    Attributes:
        opset: opset of both graphs.
        ir_version: IR version of both graphs.
        nodes: nodes of the step graph.
        step_bytes: size of step_fn.
        step_digest: SHA-256 of step_fn.
        init_error: greatest difference of init_fn and the JAX initial carry.
        recorded: recorded inputs, with resets at random times.
        unbroken: recorded inputs, one carry from beginning to end: how the error grows.
        drawn: inputs drawn from the whole declared range.
        closed_loop: both policies in simulation.
    """

    opset: int
    ir_version: int
    nodes: int
    step_bytes: int
    step_digest: str
    init_error: float
    recorded: Difference
    unbroken: Difference
    drawn: Difference
    closed_loop: ClosedLoop

    @property
    def error_max(self) -> float:
        """Greatest difference over recorded inputs."""
        return max(self.init_error, self.recorded.error, self.unbroken.error)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values at full precision; no timings, so that equal exports give equal bytes."""
        limits = {
            "error": ERROR_LIMIT,
            "joint_deviation_rad": DEVIATION_LIMIT_RAD,
            "survival": SURVIVAL_LIMIT,
        }
        return {**asdict(self), "error_max": self.error_max, "limits": limits}


def _require(value: float, limit: float, what: str) -> None:
    if not value <= limit:
        raise ExportError(
            f"{what}: got {value:.3g}, expected at most {limit:g}; the bundle is not the policy and is refused"
        )


def validate(
    bundle: Bundle,
    policy: Policy,
    config: Config,
    *,
    episodes: int = 16,
    seed: int = 1,
    steps: int = STEPS,
    log: Callable[[str], None] = lambda text: None,
) -> Report:
    """Prove that a bundle is a policy.

    Args:
        bundle: the ONNX form, with a spec.
        policy: the JAX form.
        config: the configuration that the policy was trained with; its simulation gives the inputs.
        episodes: closed-loop episodes of each.
        seed: seed of the simulation, the resets and the drawn inputs.
        steps: length of the recorded sequences.
        log: called with one line per stage.

    Raises:
        ExportError: a figure is over its limit; the message says which.
    """
    spec = bundle.spec
    if spec is None:
        raise ExportError(NO_SPEC)
    if episodes < 1:
        raise ExportError(f"episodes: got {episodes}, expected 1 or more")
    step_model = graph.parse(bundle.step_fn, "step_fn")
    graph.check_step(step_model, spec)
    init_model = graph.parse(bundle.init_fn, "init_fn")
    graph.check_init(init_model, spec)
    for model, what in ((step_model, "step_fn"), (init_model, "init_fn")):
        graph.check_stamp(model, spec, what)
    start = np.asarray(policy.init_carry())
    init_error = float(np.max(np.abs(initial_carry(bundle) - start), initial=0.0))
    _require(init_error, 0.0, "init_fn against the JAX initial carry")

    log(f"drawn inputs: {DRAWN_STEPS} steps")
    rng = np.random.default_rng(seed)
    random = difference(
        bundle, policy.step, start, drawn(spec.inputs, DRAWN_STEPS, rng), rng.random(DRAWN_STEPS) < 0.02
    )
    _require(random.relative_error, ERROR_LIMIT, f"drawn inputs, step {random.worst_step}: error of action or carry")

    log(f"closed loop, JAX policy: {episodes} episodes")
    # one environment for both: what is compiled for the first serves the second
    env = make_environment(config, episodes, "mujoco")
    same: dict[str, Any] = {"episodes": episodes, "seed": seed, "record": True, "environment": env}
    jax_run = evaluate(config, JaxBatchPolicy(policy), **same)
    inputs = jax_run.inputs
    assert inputs is not None and jax_run.alive is not None
    log(f"recorded inputs: {steps} steps")
    line, starts = sequence(inputs, jax_run.alive, steps, rng)
    recorded = difference(bundle, policy.step, start, line, starts)
    _require(recorded.error, ERROR_LIMIT, f"recorded inputs, step {recorded.worst_step}: error of action or carry")
    unbroken = difference(bundle, policy.step, start, line, np.arange(steps) == 0)
    _require(unbroken.error, ERROR_LIMIT, f"recorded inputs without resets, step {unbroken.worst_step}: error")

    log(f"closed loop, ONNX policy: {episodes} episodes")
    onnx_run = evaluate(config, OnnxBatchPolicy(bundle), **same)
    closed = ClosedLoop(
        episodes=episodes,
        seed=seed,
        survival_onnx=onnx_run.survival,
        survival_jax=jax_run.survival,
        return_onnx=float(np.mean(onnx_run.returns)),
        return_jax=float(np.mean(jax_run.returns)),
        joint_deviation_rad=_deviation(jax_run, onnx_run, round(DEVIATION_S / spec.control_period_s)),
    )
    _require(closed.joint_deviation_rad, DEVIATION_LIMIT_RAD, "closed loop: joint deviation in the first second [rad]")
    apart = abs(closed.survival_onnx - closed.survival_jax)
    _require(apart, max(SURVIVAL_LIMIT, 1.5 / episodes), "closed loop: difference of survival")
    return Report(
        opset=max(o.version for o in step_model.opset_import),
        ir_version=step_model.ir_version,
        nodes=sum(1 for _ in graph.nodes(step_model.graph)),
        step_bytes=len(bundle.step_fn),
        step_digest=digest(bundle.step_fn),
        init_error=init_error,
        recorded=recorded,
        unbroken=unbroken,
        drawn=random,
        closed_loop=closed,
    )


def _deviation(a: Evaluation, b: Evaluation, steps: int) -> float:
    """Greatest difference of any joint angle while both still stand, within `steps`."""
    assert a.inputs is not None and b.inputs is not None and a.alive is not None and b.alive is not None
    apart = np.abs(a.inputs["joint_angles"][:steps] - b.inputs["joint_angles"][:steps]).max(axis=-1)
    return float(np.where(a.alive[:steps] & b.alive[:steps], apart, 0.0).max(initial=0.0))


def latency_us(bundle: Bundle, runs: int = 500) -> dict[str, float]:
    """p50 and p99 of one step through ONNX Runtime on one thread of this machine [us]."""
    run = session(bundle.step_fn, "step_fn")
    feed = {i.name: np.zeros(i.shape, np.float32) for i in run.get_inputs()}
    taken = []
    for _ in range(runs + 50):
        begin = time.perf_counter()
        run.run(None, feed)
        taken.append(1e6 * (time.perf_counter() - begin))
    taken = taken[50:]  # the first calls allocate
    return {"p50": float(np.percentile(taken, 50)), "p99": float(np.percentile(taken, 99))}


def add_arguments(parse: argparse.ArgumentParser) -> None:
    """The options that `ksim export` and `ksim validate` share."""
    parse.add_argument("--episodes", type=int, default=16, help="closed-loop episodes of each policy (%(default)s)")
    parse.add_argument("--seed", type=int, default=1, help="seed of the simulation (%(default)s)")
    parse.add_argument("--json", action="store_true", help="print one JSON object")


def to_stderr(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def show(title: str, report: Report, latency: dict[str, float]) -> None:
    """The closing table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    closed = report.closed_loop
    for row in (
        ("graph", f"{report.nodes} nodes, {report.step_bytes:,} bytes, opset {report.opset}, IR {report.ir_version}"),
        ("init_fn error", f"{report.init_error:g}"),
        *(
            (
                f"{name}, {d.steps} steps, {d.resets} resets",
                f"action {d.action_error:.2e} rad, carry {d.carry_error:.2e} (limit {ERROR_LIMIT:g})",
            )
            for name, d in (
                ("recorded inputs", report.recorded),
                ("recorded, one carry", report.unbroken),
                ("drawn inputs", report.drawn),
            )
        ),
        ("error in the first and last tenth", f"{report.unbroken.early_error:.2e}, {report.unbroken.late_error:.2e}"),
        (
            f"closed loop, {closed.episodes} episodes, ONNX and JAX",
            f"survival {closed.survival_onnx:.1%} and {closed.survival_jax:.1%}, "
            f"return {closed.return_onnx:.2f} and {closed.return_jax:.2f}",
        ),
        (
            "joint deviation in the first second",
            f"{closed.joint_deviation_rad:.2e} rad (at most {DEVIATION_LIMIT_RAD:g})",
        ),
        ("one step, one thread", f"p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us"),
    ):
        table.add_row(*row)
    # a pipe has no width of its own; 80 columns would break most rows
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def check_origin(bundle: Bundle, trained: Trained) -> None:
    """The bundle says that it was made from this checkpoint.

    Raises:
        ExportError: it was made from another one.
    """
    if bundle.spec is None:
        raise ExportError(NO_SPEC)
    for what in ("weights_digest", "config_digest"):
        got, expected = getattr(bundle.spec, what), getattr(trained.spec, what)
        if got != expected:
            raise ExportError(
                f"bundle: {what}: got {got[:12]}, expected the checkpoint's {expected[:12]}; "
                "name the checkpoint that it was exported from"
            )
    if bundle.spec.robot != trained.spec.robot:
        raise ExportError("bundle: its robot differs from the checkpoint's; name the checkpoint it was exported from")


def main(argv: list[str] | None = None) -> int:
    """`ksim validate`."""
    parse = parser(
        "ksim validate",
        "Prove that a bundle is the policy of a checkpoint: graph, numbers, behaviour in simulation.",
        "ksim validate policy.kinfer --checkpoint runs/stand/model.ckpt",
    )
    parse.add_argument("bundle", help="a .kinfer file")
    parse.add_argument("--checkpoint", required=True, help="the .ckpt file that it was exported from")
    add_arguments(parse)
    args = parse.parse_args(argv)
    bundle, trained = read_bundle(args.bundle), load_trained(args.checkpoint)
    check_origin(bundle, trained)
    alone = Path(args.bundle).with_suffix(".onnx")
    if alone.is_file() and alone.read_bytes() != bundle.step_fn:
        raise ExportError(f"{alone}: its bytes differ from step_fn of {args.bundle}, expected the same; export again")
    report = validate(bundle, trained.policy, trained.config, episodes=args.episodes, seed=args.seed, log=to_stderr)
    latency = latency_us(bundle)
    if args.json:
        print(json.dumps({"digest": bundle.digest, **report.to_json(), "latency_us": latency}))
    else:
        show(args.bundle, report, latency)
    return 0
