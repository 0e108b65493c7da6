"""`ksim export`: a checkpoint to policy.kinfer and policy.onnx, written only when proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from deploy.bundle.targets import Target
from deploy.bundle.targets import to_json as fits_json
from export.errors import ExportError
from export.fits import judged, show_fits
from export.options import ProofOptions
from robots.bundle import Bundle, write_bundle
from toolkit.cli import Option, importing, options
from toolkit.files import atomic_path

if TYPE_CHECKING:
    from export.proof import Report


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_checkpoint` wrote.

    Attributes:
        bundle: the bundle, with the proofs in its spec.
        report: the proofs.
        kinfer: path of the bundle; None where only the graph was asked for.
        onnx: path of the step graph alone, the same bytes as the bundle's step_fn.
    """

    bundle: Bundle
    report: Report
    kinfer: Path | None
    onnx: Path


def write_proven(path: str | Path, bundle: Bundle, report: Report, *, onnx_only: bool = False) -> Exported:
    """Write `path` and the .onnx file beside it, both or none, with the report in the bundle's spec."""
    kinfer, alone = output_paths(path, onnx_only=onnx_only)
    bundle = report.attach(bundle)
    with atomic_path(alone) as part:
        part.write_bytes(bundle.step_fn)
        if kinfer is not None:
            write_bundle(kinfer, bundle)
    return Exported(bundle=bundle, report=report, kinfer=kinfer, onnx=alone)


def output_paths(path: str | Path, *, onnx_only: bool = False) -> tuple[Path | None, Path]:
    """(the bundle, the .onnx file beside it); of `onnx_only` the latter alone.

    Raises:
        ExportError: the path is a folder or does not end in .kinfer (or .onnx, of `onnx_only`).
    """
    path = Path(path)
    if path.suffix not in ((".kinfer", ".onnx") if onnx_only else (".kinfer",)) or path.is_dir():
        other = " or .onnx" if onnx_only else ""
        hint = "" if onnx_only or path.suffix != ".onnx" else "; --onnx-only writes policy.onnx alone"
        raise ExportError(
            f"output {path}: expected a file name that ends in .kinfer{other}, for example -o policy.kinfer{hint}"
        )
    alone = path.with_suffix(".onnx")
    if alone.is_dir():
        raise ExportError(f"output {alone}: is a folder; expected a file name; name another with -o")
    return None if onnx_only else path, alone


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    onnx_only: bool = False,
    target: Target | None = None,
    log: Callable[[str], None] = lambda text: None,
    **proof: Any,
) -> Exported:
    """Export a checkpoint, prove the export, write it.

    Args:
        checkpoint: a .ckpt file.
        output: the .kinfer file to write; policy.onnx goes beside it under the same stem.
        force: write it also where it is not the policy; `proofs.failures` in its spec then lists why.
        onnx_only: write the .onnx file alone; `output` may name it.
        target: a runtime that the bundle has to fit.
        log: called with one line per stage.
        proof: of `export.validate.validate`: episodes, seed, steps, engines, margin_episodes.

    Raises:
        ExportError: the export is not the policy, and `force` is false, or does not fit the target; nothing is
            written.
    """
    from export.tracing import convert
    from export.validate import validate
    from ksim.learning.checkpoint import load_trained

    output_paths(output, onnx_only=onnx_only)
    trained = load_trained(checkpoint, teachers=False)
    log("tracing the policy to ONNX")
    bundle = convert(trained.policy.step, trained.policy.init_carry(), trained.spec)
    judged(bundle, output, target)  # before minutes of proofs
    report = validate(bundle, trained.policy, trained.config, keep_going=force, log=log, **proof)
    return write_proven(output, bundle, report, onnx_only=onnx_only)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ProofOptions):
    """The options of `ksim export`."""

    checkpoint: Annotated[str, Option("a .ckpt file of ksim train, or an .onnx file of others", positional=True)]
    output: Annotated[str, Option("the bundle to write", short="-o")] = "policy.kinfer"
    onnx_only: Annotated[bool, Option("write policy.onnx alone, proven the same way")] = False
    target: Annotated[
        Literal["all", "kos", "kinfer", "pyfirmware"],
        Option("the runtime that it has to fit; all: say of each whether it does"),
    ] = "all"
    spec: Annotated[
        str | None, Option("of an .onnx file: what its observation and action are, YAML", metavar="FILE")
    ] = None
    recorded: Annotated[
        str | None, Option("of an .onnx file: your own obs and actions, .npz, to compare with", metavar="FILE")
    ] = None
    report: Annotated[
        str | None,
        Option("folder of the report (default: policy.report.html and .json beside the bundle)", metavar="DIR"),
    ] = None
    force: Annotated[bool, Option("write it, marked as unvalidated, also where a proof fails (exit status 2)")] = False

    def check(self) -> None:
        bundle = self.target == "all" or not self.onnx_only
        self.require(bundle, "target", self.target, "all with --onnx-only, which writes no bundle")


def main(argv: list[str] | None = None) -> int:
    """`ksim export`."""
    args = options(
        ExportOptions,
        argv,
        "ksim export",
        "Write a checkpoint as policy.kinfer and policy.onnx, after proving that they are the policy.",
        "ksim export runs/stand/model.ckpt -o policy.kinfer\n"
        "  ksim export runs/walk/model.ckpt -o walk.kinfer --target pyfirmware\n"
        "  ksim export theirs.onnx --spec spec.yaml -o policy.kinfer",
    )
    if Path(args.checkpoint).suffix == ".onnx":
        from export.onnx_command import run

        return run(args)
    if args.spec is not None or args.recorded is not None:
        raise ExportError(f"--spec and --recorded: for an .onnx file; {args.checkpoint} says itself what it is")
    with importing("export"):
        from export.report import show, write_report
        from export.validate import latency_us, to_stderr

    target = None if args.target == "all" else Target(args.target)
    how = {"force": args.force, "onnx_only": args.onnx_only, "target": target}
    done = export_checkpoint(args.checkpoint, args.output, log=to_stderr, **how, **args.arguments())
    written = done.kinfer or done.onnx
    latency = None if done.report.numbers is None else latency_us(done.bundle)
    folder, stem = (Path(args.report), "report") if args.report else (written.parent, f"{written.stem}.report")
    found = {} if done.kinfer is None else judged(done.bundle, done.kinfer, target)
    pages = write_report(folder, written.name, done.bundle, done.report, latency, stem)
    if args.json:
        files = {"kinfer": str(done.kinfer)} if done.kinfer else {}
        files |= {"onnx": str(done.onnx), "report": [str(p) for p in pages]}
        about = {"files": files, "digest": done.bundle.digest, "targets": fits_json(found)}
        print(json.dumps({**about, **done.report.to_json(), "latency_us": latency}))
    else:
        title = f"{done.kinfer} and {done.onnx.name}" if done.kinfer else str(done.onnx)
        show(title, done.report, latency, pages)
        show_fits(found)
    if done.report.failures:
        to_stderr(f"ksim export: {written} is written and marked as unvalidated: {done.report.failures[0]}")
        return 2
    return 0
