"""The proof that a bundle is the policy it was made from: graph, numbers, behaviour in simulation, wrong contracts.

What is proven and with which limits: export/compare.py (numbers), export/closed_loop.py (behaviour),
export/probes.py (what deployment refuses). What deployment checks again by itself, the self-test and the envelope of
inputs, is recorded here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.envelope import Envelope
from deploy.policy import OnnxPolicy, self_test
from export import graph
from export.closed_loop import ENGINES, ClosedLoop, closed_loop
from export.compare import (
    ERROR_LIMIT,
    Determinism,
    Difference,
    Onnx,
    Reference,
    compare,
    determinism,
    drawn,
    extreme,
    sequence,
    session,
)
from export.errors import ExportError
from export.probes import Probe, graph_probes, robot_probes
from ksim.checkpoint import Trained, load_trained
from ksim.cli import parser
from ksim.config import Config
from ksim.evaluate import Evaluation, JaxBatchPolicy, OnnxBatchPolicy, evaluate
from ksim.policy import Policy
from ksim.tasks import make_environment
from robots.bundle import Bundle, read_bundle
from robots.errors import ToolkitError
from robots.spec import PolicySpec, digest

STEPS = 10_000
EPISODES = 200
NO_SPEC = "bundle: metadata.json has no ksim2real entry, expected one; write the bundle with ksim export"
# Deployment's self-test: so many recorded steps from a first carry on, then as many drawn from the whole range, so
# that every input has moved far. Another processor adds float32 sums in another order: 1e-6, in drawn steps 1e-5.
SELF_TEST_STEPS = 16
SELF_TEST_TOLERANCE = 1e-4
# The envelope of inputs: whole episodes that lasted, and so much of those that ended in a fall.
UPRIGHT_S = 1.0
PROBE_STEPS, PROBE_STARTS = 100, 32


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """ONNX against JAX on the same inputs.

    Attributes:
        init_error: greatest difference of init_fn and the JAX initial carry.
        scan_error: greatest difference of the JAX loop over a sequence and its step called one by one; where it is
            beyond 1e-6 the latter is the reference.
        recorded: inputs recorded in simulation, with resets at random times.
        unbroken: the same inputs, one carry from beginning to end: how the error grows.
        drawn: inputs drawn from the whole declared range.
        extreme: inputs at the ends of their ranges, by kind.
        determinism: the same inputs again, in other threads and at other optimisation levels.
    """

    init_error: float
    scan_error: float
    recorded: Difference
    unbroken: Difference
    drawn: Difference
    extreme: Mapping[str, Difference]
    determinism: Determinism

    def sequences(self) -> dict[str, Difference]:
        """All comparisons by name."""
        return {
            "recorded inputs": self.recorded,
            "recorded inputs without resets": self.unbroken,
            "drawn inputs": self.drawn,
            **{f"extreme inputs, {kind}": d for kind, d in self.extreme.items()},
        }

    @property
    def error_max(self) -> float:
        """Greatest difference over recorded inputs."""
        return max(self.init_error, self.recorded.error, self.unbroken.error)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "init_error": self.init_error,
            "scan_error": self.scan_error,
            "recorded": self.recorded.to_json(),
            "unbroken": self.unbroken.to_json(),
            "drawn": self.drawn.to_json(),
            "extreme": {kind: d.to_json() for kind, d in self.extreme.items()},
            "determinism": asdict(self.determinism),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was proven; None and empty where an earlier failure made a stage impossible.

    Attributes:
        opset: opset of both graphs.
        ir_version: IR version of both graphs.
        nodes: nodes of the step graph.
        operators: how often each operator occurs in it.
        step_bytes: size of step_fn.
        step_digest: SHA-256 of step_fn.
        numbers: ONNX against JAX on the same inputs.
        closed_loops: both in simulation, one for each engine that was asked for.
        probes: wrong contracts, and who refuses them.
        failures: what does not hold, one line each; empty for a proven bundle.
        envelope: for the bundle's specification.
        self_test: for the bundle's specification.
    """

    opset: int = 0
    ir_version: int = 0
    nodes: int = 0
    operators: Mapping[str, int] = field(default_factory=dict)
    step_bytes: int = 0
    step_digest: str = ""
    numbers: Numbers | None = None
    closed_loops: tuple[ClosedLoop, ...] = ()
    probes: tuple[Probe, ...] = ()
    failures: tuple[str, ...] = ()
    envelope: Mapping[str, Any] = field(default_factory=dict)
    self_test: Mapping[str, Any] = field(default_factory=dict)

    @property
    def error_max(self) -> float | None:
        """Greatest difference over recorded inputs; None where there are no numbers."""
        return None if self.numbers is None else self.numbers.error_max

    def to_json(self) -> dict[str, Any]:
        """The proofs: plain JSON values at full precision; no timings, so that equal exports give equal bytes."""
        return {
            "failures": list(self.failures),
            "error_limit": ERROR_LIMIT,
            "error_max": self.error_max,
            "graph": {
                "opset": self.opset,
                "ir_version": self.ir_version,
                "nodes": self.nodes,
                "operators": dict(self.operators),
                "step_bytes": self.step_bytes,
                "step_digest": self.step_digest,
            },
            "numbers": None if self.numbers is None else self.numbers.to_json(),
            "closed_loop": {loop.engine: loop.to_json() for loop in self.closed_loops},
            "probes": [probe.to_json() for probe in self.probes],
        }

    def attach(self, bundle: Bundle) -> Bundle:
        """The bundle with the proofs, the envelope and the self-test in its specification."""
        assert bundle.spec is not None
        spec = bundle.spec.replace(proofs=self.to_json(), envelope=dict(self.envelope), self_test=dict(self.self_test))
        return dataclasses.replace(bundle, spec=spec)


class _Stages:
    """Collects failures; the first one ends the validation unless it is to keep going."""

    def __init__(self, keep_going: bool, log: Callable[[str], None]) -> None:
        self.failures: list[str] = []
        self._keep_going, self.log = keep_going, log

    def fail(self, what: str) -> None:
        self.failures.append(what)
        if not self._keep_going:
            raise ExportError(f"{what}; the bundle is not the policy and is refused")

    def require(self, value: float, limit: float, what: str) -> None:
        if not value <= limit:
            self.fail(f"{what}: got {value:.3g}, expected at most {limit:g}")

    def compared(self, name: str, found: Difference) -> None:
        if not found.of_limit <= 1.0:
            self.fail(
                f"{name}, step {found.worst_step}: error of action or carry is {found.of_limit:.3g} times its limit "
                f"(action {found.action_error:.3g} rad, carry {found.carry_error:.3g}); "
                f"expected at most {ERROR_LIMIT:g}"
            )


def _float32_json(values: np.ndarray) -> list[Any]:
    """Float32 numbers as the shortest decimals that read back to the same bits."""
    return [float(str(v)) if np.ndim(v) == 0 else _float32_json(v) for v in np.asarray(values, np.float32)]


def envelope_of(spec: PolicySpec, run: Evaluation) -> dict[str, Any]:
    """Least and greatest value of each element of each input while the robot stood.

    Args:
        spec: whose inputs.
        run: recorded; all of the episodes that lasted, and the first second of each.
    """
    assert run.inputs is not None and run.alive is not None
    early = np.arange(len(run.alive))[:, None] < round(UPRIGHT_S / spec.control_period_s)
    kept = run.alive & (run.survived.astype(bool)[None] | early)
    rows = {a.name: run.inputs[a.name][kept] for a in spec.inputs if a.name not in ("time", "command")}
    return {
        name: {"low": _float32_json(v.min(axis=0)), "high": _float32_json(v.max(axis=0))} for name, v in rows.items()
    }


def self_test_of(spec: PolicySpec, reference: Reference, run: Evaluation, rng: np.random.Generator) -> dict[str, Any]:
    """A short sequence from the first carry on, with what the JAX policy makes of it.

    Args:
        spec: whose inputs.
        reference: the JAX form.
        run: recorded; the first episode's first steps are taken.
        rng: draws the second half from the whole declared range.
    """
    assert run.inputs is not None
    steps = min(SELF_TEST_STEPS, len(next(iter(run.inputs.values()))))
    wide = drawn(spec.inputs, SELF_TEST_STEPS, rng)
    inputs = {a.name: np.concatenate([run.inputs[a.name][:steps, 0], wide[a.name]]) for a in spec.inputs}
    trace = reference.run(inputs, np.arange(steps + SELF_TEST_STEPS) == 0)
    return {
        "inputs": {name: _float32_json(rows) for name, rows in inputs.items()},
        "actions": _float32_json(trace.actions),
        "carry": _float32_json(trace.carries[-1]),
        "tolerance": SELF_TEST_TOLERANCE,
    }


def own_checks(bundle: Bundle, run: Evaluation) -> list[str]:
    """What does not hold of the self-test and the envelope that a bundle brings along; nothing where it has none.

    Args:
        bundle: with a spec.
        run: recorded with the JAX policy.
    """
    spec, found = bundle.spec, []
    assert spec is not None and run.inputs is not None
    try:
        if spec.self_test:
            self_test(OnnxPolicy(bundle), spec)
        envelope = Envelope.from_spec(spec)
    except ToolkitError as error:
        return [f"the bundle's own checks: {error}"]
    for episode in range(run.episodes):
        outside = envelope.outside({name: rows[0, episode] for name, rows in run.inputs.items()})
        found += [f"the bundle's own envelope refuses a start of training: {line}" for line in outside[:1]]
    return found[:1]


def _graph_facts(bundle: Bundle, spec: PolicySpec) -> dict[str, Any]:
    """Facts of the graphs, both checked in full.

    Raises:
        ExportError: they are not what the specification says.
    """
    step_model = graph.parse(bundle.step_fn, "step_fn")
    graph.check_step(step_model, spec)
    init_model = graph.parse(bundle.init_fn, "init_fn")
    graph.check_init(init_model, spec)
    for model, what in ((step_model, "step_fn"), (init_model, "init_fn")):
        graph.check_stamp(model, spec, what)
    return {
        "opset": max(o.version for o in step_model.opset_import),
        "ir_version": step_model.ir_version,
        "nodes": sum(1 for _ in graph.nodes(step_model.graph)),
        "operators": graph.operators(step_model),
    }


def _loop(config: Config, policy: Any, engine: str, episodes: int, seed: int, environment: Any) -> Evaluation:
    return evaluate(config, policy, episodes=episodes, seed=seed, engine=engine, record=True, environment=environment)


def validate(
    bundle: Bundle,
    policy: Policy,
    config: Config,
    *,
    episodes: int = EPISODES,
    mjx_episodes: int | None = None,
    engines: Sequence[str] = ("mujoco",),
    seed: int = 1,
    steps: int = STEPS,
    keep_going: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> Report:
    """Prove that a bundle is a policy.

    Args:
        bundle: the ONNX form, with a spec.
        policy: the JAX form.
        config: the configuration that the policy was trained with; its simulation gives the inputs.
        episodes: closed-loop episodes of each form.
        mjx_episodes: the same in MJX; as many as `episodes` by default.
        engines: those of the closed loop; the recorded inputs always come from MuJoCo C.
        seed: seed of the simulation, the resets and the drawn inputs.
        steps: length of each sequence.
        keep_going: go on after a failure and list it in the report.
        log: called with one line per stage.

    Raises:
        ExportError: something does not hold and `keep_going` is false, or cannot be asked at all.
    """
    spec = bundle.spec
    if spec is None:
        raise ExportError(NO_SPEC)
    for what, value in (
        ("episodes", episodes),
        ("mjx_episodes", 1 if mjx_episodes is None else mjx_episodes),
        ("steps", steps),
    ):
        if value < 1:
            raise ExportError(f"{what}: got {value}, expected 1 or more")
    unknown = [e for e in engines if e not in ENGINES]
    if unknown or not engines:
        raise ExportError(f"engines: got {', '.join(unknown) or 'none'}, expected some of {', '.join(ENGINES)}")
    stages = _Stages(keep_going, log)
    facts: dict[str, Any] = {"step_bytes": len(bundle.step_fn), "step_digest": digest(bundle.step_fn)}
    try:
        facts |= _graph_facts(bundle, spec)
        onnx = Onnx(bundle)
    except ExportError as error:
        stages.fail(str(error))
        return Report(**facts, failures=tuple(stages.failures))

    rng = np.random.default_rng(seed)
    start = np.asarray(policy.init_carry())
    init_error = float(np.max(np.abs(onnx.start - start), initial=0.0))
    stages.require(init_error, 0.0, "init_fn against the JAX initial carry")
    found: dict[str, Difference] = {}

    def against(
        name: str,
        reference: Reference,
        inputs: Mapping[str, np.ndarray],
        resets: np.ndarray,
        carry_limited: bool = True,
    ) -> None:
        try:
            found[name] = compare(onnx, reference, inputs, resets, carry_limited=carry_limited)
        except ExportError as error:
            stages.fail(f"{name}: {error}")
        else:
            stages.compared(name, found[name])

    log(f"drawn and extreme inputs: {steps} steps each")
    wide, wide_resets = drawn(spec.inputs, steps, rng), rng.random(steps) < 0.02
    reference, scan_error = Reference(policy.step, start).check(wide, wide_resets)
    against("drawn inputs", reference, wide, wide_resets)
    edges = extreme(spec.inputs, max(1, steps // 5), rng)
    for kind, (inputs, resets) in edges.items():
        against(f"extreme inputs, {kind}", reference, inputs, resets, carry_limited=False)

    log(f"closed loop in MuJoCo C, JAX policy: {episodes} episodes")
    # one environment for both: what is compiled for the first serves the second
    env = make_environment(config, episodes, "mujoco")
    jax_run = _loop(config, JaxBatchPolicy(policy), "mujoco", episodes, seed, env)
    assert jax_run.inputs is not None and jax_run.alive is not None
    log(f"recorded inputs: {steps} steps")
    line, starts = sequence(jax_run.inputs, jax_run.alive, steps, rng)
    against("recorded inputs", reference, line, starts)
    against("recorded inputs without resets", reference, line, np.arange(steps) == 0)
    mixed = {name: np.concatenate([line[name][:500], wide[name][:500]]) for name in wide}
    again = determinism(bundle, mixed, np.arange(len(next(iter(mixed.values())))) % 100 == 0)
    if not (again.runs_equal and again.threads_equal):
        stages.fail("determinism: got other bytes in another run or with other thread counts, expected the same")
    for level, apart in again.optimisation.items():
        stages.require(apart, ERROR_LIMIT, f"determinism: optimisation level {level} against all")

    loops = []
    for engine in engines:
        if engine == "mujoco":
            truth, n, place = jax_run, episodes, env
        else:
            n = mjx_episodes or episodes
            log(f"closed loop in MJX, JAX policy: {n} episodes; compiling takes minutes without a GPU")
            place = make_environment(config, n, engine)
            truth = _loop(config, JaxBatchPolicy(policy), engine, n, seed, place)
        log(f"closed loop in {'MJX' if engine == 'mjx' else 'MuJoCo C'}, ONNX policy: {n} episodes")
        try:
            ours = _loop(config, OnnxBatchPolicy(bundle), engine, n, seed, place)
        except ToolkitError as error:  # an action that is not finite
            stages.fail(f"closed loop in {engine}: {error}")
            continue
        loops.append(closed_loop(ours, truth, spec.control_period_s))
        for failure in loops[-1].failures():
            stages.fail(failure)

    for failure in own_checks(bundle, jax_run):
        stages.fail(failure)
    checks = Report(envelope=envelope_of(spec, jax_run), self_test=self_test_of(spec, reference, jax_run, rng))
    log("wrong contracts")
    probes = _probes(bundle, checks, jax_run, rng)
    for probe in probes:
        if not probe.passed:
            stages.fail(
                f"wrong contract not caught: {probe.contract} ({probe.probe}): "
                f"{probe.caught} of {probe.different} refused"
            )
    numbers = None
    if {"drawn inputs", "recorded inputs", "recorded inputs without resets"} <= found.keys():
        numbers = Numbers(
            init_error=init_error,
            scan_error=scan_error,
            recorded=found["recorded inputs"],
            unbroken=found["recorded inputs without resets"],
            drawn=found["drawn inputs"],
            extreme={kind: found[name] for kind in edges if (name := f"extreme inputs, {kind}") in found},
            determinism=again,
        )
    return Report(
        **facts,
        numbers=numbers,
        closed_loops=tuple(loops),
        probes=tuple(probes),
        failures=tuple(stages.failures),
        envelope=checks.envelope,
        self_test=checks.self_test,
    )


def _probes(bundle: Bundle, found: Report, run: Evaluation, rng: np.random.Generator) -> list[Probe]:
    """The wrong contracts, with the self-test and the envelope that were found."""
    assert bundle.spec is not None and run.inputs is not None
    whole = found.attach(bundle)
    episodes = min(run.episodes, PROBE_STARTS)
    starts = [{k: v[0, e] for k, v in run.inputs.items()} for e in range(episodes)]
    wide = drawn(bundle.spec.inputs, PROBE_STEPS, rng)
    return graph_probes(whole, wide, np.arange(PROBE_STEPS) == 0) + robot_probes(whole, starts)


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
    add = parse.add_argument
    add("--episodes", type=int, default=EPISODES, help="closed-loop episodes of each form (%(default)s)")
    add(
        "--engines",
        default="mujoco",
        metavar="NAMES",
        help="engines of the closed loop: mujoco, or mujoco,mjx; MJX takes long without a GPU (%(default)s)",
    )
    add("--mjx-episodes", type=int, metavar="N", help="the same in MJX (default: as --episodes)")
    add("--steps", type=int, default=STEPS, help="length of each sequence of inputs (%(default)s)")
    add("--seed", type=int, default=1, help="seed of the simulation (%(default)s)")
    add("--json", action="store_true", help="print one JSON object")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The shared options as arguments of `validate`."""
    for name, least, greatest in (("seed", 0, 2**32 - 1), ("episodes", 1, 100_000), ("steps", 1, 10_000_000)):
        value = getattr(args, name)
        if not least <= value <= greatest:
            raise ExportError(f"--{name}: got {value}, expected {least} to {greatest}")
    engines = tuple(dict.fromkeys(name for name in args.engines.split(",") if name))
    return {
        "episodes": args.episodes,
        "mjx_episodes": args.mjx_episodes,
        "engines": engines,
        "seed": args.seed,
        "steps": args.steps,
    }


def to_stderr(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


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
    from export.report import show, write_report

    parse = parser(
        "ksim validate",
        "Prove that a bundle is the policy of a checkpoint: graph, numbers, behaviour in simulation, wrong contracts.",
        "ksim validate policy.kinfer --checkpoint runs/stand/model.ckpt --out reports/",
    )
    parse.add_argument("bundle", help="a .kinfer file")
    parse.add_argument("--checkpoint", required=True, help="the .ckpt file that it was exported from")
    parse.add_argument("--out", metavar="DIR", help="write report.json and report.html into this folder")
    add_arguments(parse)
    args = parse.parse_args(argv)
    bundle, trained = read_bundle(args.bundle), load_trained(args.checkpoint)
    check_origin(bundle, trained)
    alone = Path(args.bundle).with_suffix(".onnx")
    if alone.is_file() and alone.read_bytes() != bundle.step_fn:
        raise ExportError(f"{alone}: its bytes differ from step_fn of {args.bundle}, expected the same; export again")
    report = validate(bundle, trained.policy, trained.config, **options(args), keep_going=True, log=to_stderr)
    latency = None if report.numbers is None else latency_us(bundle)
    files = []
    if args.out is not None:
        files = write_report(Path(args.out), Path(args.bundle).name, bundle, report, latency)
    if args.json:
        about = {"digest": bundle.digest, "files": [str(f) for f in files]}
        print(json.dumps({**about, **report.to_json(), "latency_us": latency}))
    else:
        show(args.bundle, report, latency, files)
    for failure in report.failures:
        more = f" (and {len(report.failures) - 1} more)" if len(report.failures) > 1 else ""
        raise ExportError(f"{failure}{more}; the bundle is not the policy")
    return 0
