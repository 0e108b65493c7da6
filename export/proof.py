"""The proof that a bundle is a JAX policy, but for its behaviour in simulation: graph, numbers, wrong contracts.

What is proven and with which limits: export/compare.py (numbers), export/probes.py (what deployment refuses). What
deployment checks again by itself, the self-test and the envelope of inputs, is recorded here.
export/validate.py adds the closed loop for policies whose simulation is known; `prove` is for those that come with
recorded inputs alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.bundle.envelope import Envelope
from deploy.bundle.session import OnnxPolicy, self_test
from export import graph
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
)
from export.errors import ExportError
from export.function import Step, flatten
from export.probes import Probe, graph_probes, refusals, robot_probes
from export.recording import Recording
from robots.bundle import Bundle
from robots.inputs import JOINT_ANGLES
from robots.margins import Margins
from robots.spec import PolicySpec, digest
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from export.closed_loop import ClosedLoop

STEPS = 10_000
NO_SPEC = "bundle: metadata.json has no ksim2real entry, expected one; write the bundle with ksim export"
# Deployment's self-test: so many recorded steps a part, then twice as many drawn from the whole range, so that every
# input has moved far. Another processor adds float32 sums in another order: 1e-6, in drawn steps 1e-5.
SELF_TEST_STEPS = 8
SELF_TEST_TOLERANCE = 1e-4
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
        recording: how many episodes and steps of recorded inputs there were; the sequences repeat them.
        envelope: for the bundle's specification.
        self_test: for the bundle's specification.
        margins: for the bundle's specification; None where they were not measured.
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
    recording: Mapping[str, int] = field(default_factory=dict)
    envelope: Mapping[str, Any] = field(default_factory=dict)
    self_test: Mapping[str, Any] = field(default_factory=dict)
    margins: Margins | None = None

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
            "recording": dict(self.recording),
        }

    def attach(self, bundle: Bundle) -> Bundle:
        """The bundle with the proofs, the envelope, the self-test and the margins in its specification."""
        assert bundle.spec is not None
        checks = {"envelope": dict(self.envelope), "self_test": dict(self.self_test), "margins": self.margins}
        spec = bundle.spec.replace(proofs=self.to_json(), **checks)
        return dataclasses.replace(bundle, spec=spec)


class Stages:
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
                f"expected at most {ERROR_LIMIT:g}{found.limits_told}"
            )


def _float32_json(values: np.ndarray) -> list[Any]:
    """Float32 numbers as the shortest decimals that read back to the same bits."""
    return [float(str(v)) if np.ndim(v) == 0 else _float32_json(v) for v in np.asarray(values, np.float32)]


def envelope_of(spec: PolicySpec, recording: Recording) -> dict[str, Any]:
    """Least and greatest value of each element of each input while the robot was as it should be.

    Args:
        spec: whose inputs.
        recording: its healthy rows.
    """
    rows = {
        a.name: recording.inputs[a.name][recording.healthy]
        for a in spec.inputs
        if a.name not in ("time", "command", *recording.unseen)
    }
    return {
        name: {"low": _float32_json(v.min(axis=0)), "high": _float32_json(v.max(axis=0))} for name, v in rows.items()
    }


def _asked(spec: PolicySpec) -> dict[str, np.ndarray]:
    """Commands of the self-test, (commands,): "rest" asks for nothing, "move" for the far end of each range."""
    low, high = (np.asarray([getattr(c, end) for c in spec.commands]) for end in ("low", "high"))
    return {"rest": np.clip(0.0, low, high), "move": np.where(np.abs(high) >= np.abs(low), high, low)}


def self_test_of(
    spec: PolicySpec, reference: Reference, recording: Recording, rng: np.random.Generator
) -> dict[str, Any]:
    """A short sequence with what the JAX policy makes of it: start, standing, a command that comes and goes, a reset.

    Args:
        spec: whose inputs.
        reference: the JAX form.
        recording: the first episode's first steps are the start, its last healthy ones all that follows.
        rng: draws the last part from the whole declared range.
    """
    first, commands = np.arange(recording.first_length), _asked(spec)
    start = first[:SELF_TEST_STEPS]
    healthy = first[recording.healthy[first]]
    later = healthy[-SELF_TEST_STEPS:] if healthy.size else start
    parts: list[tuple[str, np.ndarray, str]] = [("start", start, "rest"), ("standing", later, "rest")]
    if any(a.name == "command" for a in spec.inputs):
        parts += [("command starts", later, "move"), ("command stops", later, "rest")]
    parts.append(("reset", start, "rest"))

    def rows(name: str, at: np.ndarray, command: str) -> np.ndarray:
        found = recording.inputs[name][at]
        return np.broadcast_to(commands[command], found.shape) if name == "command" else found

    wide = drawn(spec.inputs, 2 * SELF_TEST_STEPS, rng)
    inputs = {
        a.name: np.concatenate([*(rows(a.name, at, command) for _, at, command in parts), wide[a.name]]).astype(
            np.float32
        )
        for a in spec.inputs
    }
    told = [{"name": name, "steps": len(at), "reset": name in ("start", "reset")} for name, at, _ in parts]
    told.append({"name": "drawn", "steps": 2 * SELF_TEST_STEPS, "reset": False})
    resets = np.repeat([part["reset"] for part in told], [part["steps"] for part in told])
    resets &= np.concatenate([np.arange(part["steps"]) == 0 for part in told])
    trace = reference.run(inputs, resets)
    return {
        "inputs": {name: _float32_json(values) for name, values in inputs.items()},
        "actions": _float32_json(trace.actions),
        "carry": _float32_json(trace.carries[-1]),
        "tolerance": SELF_TEST_TOLERANCE,
        "parts": told,
    }


def own_checks(bundle: Bundle, recording: Recording) -> list[str]:
    """What does not hold of the self-test and the envelope that a bundle brings along; nothing where it has none.

    Args:
        bundle: with a spec.
        recording: of the JAX policy.
    """
    spec, found = bundle.spec, []
    assert spec is not None
    try:
        if spec.self_test:
            self_test(OnnxPolicy(bundle), spec)
        envelope = Envelope.from_spec(spec)
    except ToolkitError as error:
        return [f"the bundle's own checks: {error}"]
    for row in recording.first_rows():
        outside = envelope.outside(row)
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


class Prover:
    """The stages of a proof, in the order in which they are asked for.

    Args:
        bundle: the ONNX form.
        step: the JAX form, over a flat carry.
        start: its first carry, (carry,).
        steps: length of each sequence.
        seed: of the resets and of the drawn inputs.
        stages: where failures go.
        reference: what stands for the JAX form where there is none; `step` is then not called.

    Raises:
        ExportError: the bundle has no specification, or `steps` is less than 1.
    """

    def __init__(
        self,
        bundle: Bundle,
        step: Step | None,
        start: Any,
        *,
        steps: int,
        seed: int,
        stages: Stages,
        reference: Any = None,
    ) -> None:
        if bundle.spec is None:
            raise ExportError(NO_SPEC)
        if steps < 1:
            raise ExportError(f"steps: got {steps}, expected 1 or more")
        self.bundle, self.spec, self.steps, self._stages = bundle, bundle.spec, steps, stages
        self.rng = np.random.default_rng(seed)
        self._start = np.asarray(start)
        self._given = Reference(step, self._start) if step is not None else reference
        self._facts: dict[str, Any] = {"step_bytes": len(bundle.step_fn), "step_digest": digest(bundle.step_fn)}
        self._found: dict[str, Difference] = {}
        self._edges: tuple[str, ...] = ()
        self._determinism: Determinism | None = None
        self._checks = Report()

    def graphs(self) -> bool:
        """Both graphs are as they should be; False where no other stage can be asked."""
        try:
            self._facts |= _graph_facts(self.bundle, self.spec)
            self._onnx = Onnx(self.bundle)
        except ExportError as error:
            self._stages.fail(str(error))
            return False
        return True

    def _against(self, name: str, inputs: Mapping[str, np.ndarray], resets: np.ndarray, limited: bool = True) -> None:
        try:
            self._found[name] = compare(self._onnx, self._reference, inputs, resets, carry_limited=limited)
        except ExportError as error:
            self._stages.fail(f"{name}: {error}")
        else:
            self._stages.compared(name, self._found[name])

    def ranges(self) -> None:
        """The first carry, and inputs drawn from the whole declared range and at its ends."""
        stages, rng, steps = self._stages, self.rng, self.steps
        self._init_error = float(np.max(np.abs(self._onnx.start - self._start), initial=0.0))
        stages.require(self._init_error, 0.0, "init_fn against the JAX initial carry")
        stages.log(f"drawn and extreme inputs: {steps} steps each")
        self._wide, resets = drawn(self.spec.inputs, steps, rng), rng.random(steps) < 0.02
        self._reference, self._scan_error = self._given.check(self._wide, resets)
        self._against("drawn inputs", self._wide, resets)
        edges = extreme(self.spec.inputs, max(1, steps // 5), rng)
        self._edges = tuple(edges)
        for kind, (inputs, resets) in edges.items():
            self._against(f"extreme inputs, {kind}", inputs, resets, limited=False)

    def recorded(self, recording: Recording) -> None:
        """Recorded inputs, with resets and without, and the same bytes again; after `ranges`."""
        stages, steps = self._stages, self.steps
        stages.log(f"recorded inputs: {steps} steps")
        line, starts = sequence(recording.inputs, recording.starts, steps, self.rng)
        self._against("recorded inputs", line, starts)
        self._against("recorded inputs without resets", line, np.arange(steps) == 0)
        wide = self._wide
        mixed = {name: np.concatenate([line[name][:500], wide[name][:500]]) for name in wide}
        again = determinism(self.bundle, mixed, np.arange(len(next(iter(mixed.values())))) % 100 == 0)
        if not (again.runs_equal and again.threads_equal):
            stages.fail("determinism: got other bytes in another run or with other thread counts, expected the same")
        for level, apart in again.optimisation.items():
            stages.require(apart, ERROR_LIMIT, f"determinism: optimisation level {level} against all")
        self._determinism = again

    def contracts(self, recording: Recording) -> None:
        """The checks that the bundle brings along, those that it is given, and what they refuse; after `ranges`."""
        stages, spec, rng = self._stages, self.spec, self.rng
        for failure in own_checks(self.bundle, recording):
            stages.fail(failure)
        checks = Report(
            recording={"episodes": int(recording.starts.sum()), "steps": len(recording.starts)},
            envelope=envelope_of(spec, recording),
            self_test=self_test_of(spec, self._reference, recording, rng),
        )
        stages.log("wrong contracts")
        whole = checks.attach(self.bundle)
        wide = drawn(spec.inputs, PROBE_STEPS, rng)
        probes = graph_probes(whole, wide, np.arange(PROBE_STEPS) == 0)
        probes += robot_probes(whole, recording.first_rows(PROBE_STARTS))
        for probe in probes:
            if not probe.passed:
                stages.fail(
                    f"wrong contract not caught: {probe.contract} ({probe.probe}): "
                    f"{probe.caught} of {probe.different} refused"
                )
        self._checks = dataclasses.replace(checks, probes=tuple(probes))

    def report(self, loops: Sequence[ClosedLoop] = ()) -> Report:
        """What was found."""
        found, numbers = self._found, None
        whole = {"drawn inputs", "recorded inputs", "recorded inputs without resets"} <= found.keys()
        if whole and self._determinism is not None:
            numbers = Numbers(
                init_error=self._init_error,
                scan_error=self._scan_error,
                recorded=found["recorded inputs"],
                unbroken=found["recorded inputs without resets"],
                drawn=found["drawn inputs"],
                extreme={kind: found[name] for kind in self._edges if (name := f"extreme inputs, {kind}") in found},
                determinism=self._determinism,
            )
        return dataclasses.replace(
            self._checks,
            **self._facts,
            numbers=numbers,
            closed_loops=tuple(loops),
            failures=tuple(self._stages.failures),
        )


def check_starts(spec: PolicySpec, recording: Recording) -> None:
    """`ksim run` will start the policy from the home pose of a robot that stands: the recording shows both.

    Raises:
        ExportError: it does not.
    """
    spec = spec.replace(envelope=envelope_of(spec, recording))
    names = [a.name for a in spec.inputs]
    if JOINT_ANGLES in names:
        home = np.asarray(spec.robot.column("home_rad"))
        seen = dataclasses.replace(
            envelope := Envelope.from_spec(spec), spans={JOINT_ANGLES: envelope.spans[JOINT_ANGLES]}
        )
        outside = seen.outside({JOINT_ANGLES: home})
        if outside:
            said = outside[0].replace("measured", "at home").replace("in training", "in the recording")
            raise ExportError(f"episodes: {said}; ksim run starts at home and would refuse; record from there")
    refused = [refusals(row, spec) for row in recording.first_rows()]
    if all(refused):
        raise ExportError(
            f"episodes: ksim run would refuse the start of each: {next(iter(refused[0].values()))}; record a robot "
            "as it should be, or give the spec its inputs' frames and units"
        )


def prove(
    bundle: Bundle,
    step: Step,
    init_carry: Any,
    episodes: Sequence[Mapping[str, Any]],
    *,
    steps: int = STEPS,
    seed: int = 1,
    log: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """The bundle of `convert` with the proof that it is the function, from inputs that you recorded.

    All of the proof of `ksim export` but the closed loop, for which it has not your simulation; `ksim run` says so.
    For the same reason it measures no margins, as `ksim inspect` says.
    The inputs also make the envelope that `ksim run` compares a robot with before the policy's first step, so they
    must be of a robot that is as it should be, noise and randomisation included.

    Args:
        bundle: what `convert` gave.
        step: the function that it was made from.
        init_carry: its first carry, as `convert` took it.
        episodes: recorded inputs, one dict an episode: {input: (T, size)}, in SI, of any lengths; each episode begins
            with the first carry. They are gone through again and again until there are `steps`.
        steps: length of each sequence; 10,000 is the full proof.
        seed: of the resets and of the drawn inputs.
        log: called with one line per stage.

    Raises:
        ExportError: something does not hold, or the recording does not fit the bundle.
    """
    if not isinstance(bundle, Bundle):
        raise ExportError(f"bundle: got {type(bundle).__name__}, expected what export.convert returns")
    flat = flatten(step, init_carry)
    prover = Prover(bundle, flat.step, flat.carry, steps=steps, seed=seed, stages=Stages(False, log))
    if prover.spec.carry_size != flat.carry.size:
        raise ExportError(
            f"initial carry: got {flat.carry.size} elements, expected {prover.spec.carry_size}, those of the bundle"
        )
    if not prover.spec.inputs:
        raise ExportError("policy function: reads no input, expected one or more; there is nothing to prove it on")
    recording = Recording.of_episodes(prover.spec, episodes)
    check_starts(prover.spec, recording)
    prover.graphs()
    prover.ranges()
    prover.recorded(recording)
    prover.contracts(recording)
    return prover.report().attach(bundle)
