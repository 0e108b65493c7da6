"""`ksim export policy.onnx --spec spec.yaml`: a policy of another toolkit to a bundle, written only when proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.bundle.session import OnnxPolicy
from deploy.bundle.targets import Target
from deploy.bundle.targets import to_json as fits_json
from deploy.errors import PolicyError
from export.compare import ERROR_LIMIT
from export.errors import ExportError
from export.fits import judged, show_fits
from export.onnx_compose import compose, layout
from export.onnx_file import Network, OnnxFile, read_onnx
from export.onnx_metadata import read_metadata
from export.onnx_plan import Plan, make_plan
from export.onnx_recorded import compare_pairs, drawn_recording, read_pairs, recording_of
from export.onnx_reference import Episode, FileReference
from export.onnx_spec import OnnxSpec
from export.proof import Prover, Report, Stages, check_starts
from export.recording import Recording
from export.tracing import assemble
from robots.bundle import Bundle, write_bundle
from robots.inputs import JOINT_ANGLES
from toolkit.settings import load

if TYPE_CHECKING:
    from export.command import ExportOptions

# Steps on which a float64 file and its float32 form are compared.
DOUBLE_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """A proven bundle of an ONNX policy.

    Attributes:
        bundle: with the proofs.
        report: the proofs.
        notes: what was taken from where, one line each.
        recorded: of a user's recording, greatest difference of observation and action; empty without one.
    """

    bundle: Bundle
    report: Report
    notes: tuple[str, ...]
    recorded: dict[str, float]


def _double_gap(plan: Plan, file: OnnxFile, recording: Recording) -> float:
    """How far a float64 file and its float32 form are apart on the same observations, as a share.

    Raises:
        ExportError: too far.
    """
    rounded, exact = Network(file, original=False), Network(file, original=True)
    episode, states, worst = Episode(plan, rounded), exact.start(), 0.0
    for t in range(min(DOUBLE_STEPS, recording.first_length)):
        observation = episode.observe({name: rows[t] for name, rows in recording.inputs.items()})
        wanted, states = exact(observation, states)
        output, episode.states = rounded(observation, episode.states)
        episode.end_step(output)
        worst = max(worst, float((np.abs(output - wanted) / np.maximum(1.0, np.abs(wanted))).max()))
    if not worst <= ERROR_LIMIT:
        raise ExportError(
            f"{file.path}: in float32 its actions are off by {worst:.3g} of their value, expected at most "
            f"{ERROR_LIMIT:g}; export it in float32"
        )
    return worst


def make(path: str | Path, spec: OnnxSpec) -> tuple[OnnxFile, Plan, FileReference, Bundle]:
    """The file, what the description means for it, the reference of a proof, and the bundle without one.

    Raises:
        ExportError: description and file do not fit together, or `ksim run` would not take the graph.
    """
    file = read_onnx(path, spec.states)
    plan = make_plan(spec, file, read_metadata(file.path, file.metadata))
    reference = FileReference(plan, file)
    contract = plan.spec.replace(carry_size=reference.start.size, carry_layout=layout(plan, file))
    bundle = assemble(compose(plan, file), reference.start, contract)
    try:
        OnnxPolicy(bundle)
    except PolicyError as error:
        reason = str(error).removesuffix("; export it again")
        raise ExportError(f"{path}: its graph is not one that ksim run takes: {reason}; write it otherwise") from error
    return file, plan, reference, bundle


def export_file(
    path: str | Path,
    spec: OnnxSpec,
    *,
    recorded: str | Path | None = None,
    steps: int = 10_000,
    seed: int = 1,
    force: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> FromFile:
    """Make a bundle of an ONNX policy and prove it against the file itself; see `make`.

    Args:
        path: the .onnx file.
        spec: what its observation and its action are.
        recorded: an .npz file of obs and actions; without one the inputs of the proof are drawn.
        steps: length of each sequence.
        seed: of the drawn inputs.
        force: give it also where it is not the policy; its proofs then list why.
        log: called with one line per stage.

    Raises:
        ExportError: description, file or recording do not fit together, or the bundle is not the policy.
    """
    file, plan, reference, bundle = make(path, spec)
    pairs = None if recorded is None else read_pairs(recorded, plan, file)
    recording = drawn_recording(plan, seed) if pairs is None else recording_of(pairs, plan)
    found: dict[str, float] = {}
    if pairs is not None:
        log(f"recorded pairs: {len(pairs.obs)} steps")
        found = compare_pairs(pairs, recording.inputs, plan, file)
    notes = list(plan.notes)
    if file.double:
        notes.append(f"the file is float64; in float32 its actions are within {_double_gap(plan, file, recording):.1e}")
    stages = Stages(force, log)
    prover = Prover(bundle, None, reference.start, steps=steps, seed=seed, stages=stages, reference=reference)
    if JOINT_ANGLES not in recording.unseen:
        check_starts(prover.spec, recording)
    if prover.graphs():
        prover.ranges()
        prover.recorded(recording)
        prover.contracts(recording)
    report = prover.report()
    if pairs is None:
        notes.append("nothing was recorded: the bundle has no envelope of inputs, and ksim run will say so")
    return FromFile(bundle=report.attach(bundle), report=report, notes=tuple(notes), recorded=found)


def run(args: ExportOptions) -> int:
    """`ksim export` of an .onnx file."""
    from export.validate import latency_us, to_stderr

    if args.spec is None:
        raise ExportError(
            f"{args.checkpoint}: an ONNX file says nothing of its observation; describe it with --spec spec.yaml "
            "(docs/policies_from_elsewhere.md)"
        )
    if args.onnx_only or args.report:
        raise ExportError("--onnx-only and --report: for checkpoints alone; leave them out, --json gives the proofs")
    output = Path(args.output)
    if output.suffix != ".kinfer" or output.is_dir():
        raise ExportError(f"output {output}: expected a file name that ends in .kinfer, for example -o policy.kinfer")
    spec = load(OnnxSpec, args.spec, expected="a description such as examples/onnx_policy/spec.yaml")
    done = export_file(
        args.checkpoint, spec, recorded=args.recorded, steps=args.steps, seed=args.seed, force=args.force, log=to_stderr
    )
    found = judged(done.bundle, output, None if args.target == "all" else Target(args.target))
    write_bundle(output, done.bundle)
    latency = None if done.report.numbers is None else latency_us(done.bundle)
    if args.json:
        about = {"files": {"kinfer": str(output)}, "digest": done.bundle.digest}
        about |= {"targets": fits_json(found), "notes": done.notes}
        print(json.dumps({**about, "recorded_pairs": done.recorded, **done.report.to_json(), "latency_us": latency}))
    else:
        _show(output, done, latency)
        show_fits(found)
    if done.report.failures:
        to_stderr(f"ksim export: {output} is written and marked as unvalidated: {done.report.failures[0]}")
        return 2
    return 0


def _show(output: Path, done: FromFile, latency: dict[str, float] | None) -> None:
    from export.report import proofs

    for note in done.notes:
        print(f"note: {note}")
    for what, value in done.recorded.items():
        print(f"your recording: {what.replace('_', ' ')} {value:.1e} of the value")
    for row in proofs(done.report):
        what = row.what if done.recorded else row.what.replace("Recorded inputs", "Inputs drawn about home")
        print(f"{'holds' if row.holds else 'FAILS'}: {what}: {row.found} (limit {row.limit})")
    if latency is not None:
        print(f"one step, one thread: p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us")
    print(f"wrote {output}")
