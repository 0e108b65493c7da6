"""The command `ksim validate`. JAX is imported when the arguments have been read: the help needs none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from export.errors import ExportError
from export.options import ProofOptions
from robots.bundle import read_bundle
from toolkit.cli import Option, importing, options


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(ProofOptions):
    """The options of `ksim validate`."""

    bundle: Annotated[str, Option("a .kinfer file", positional=True)]
    checkpoint: Annotated[str, Option("the .ckpt file that it was exported from")]
    out: Annotated[str | None, Option("write report.json and report.html into this folder", metavar="DIR")] = None


def main(argv: list[str] | None = None) -> int:
    """`ksim validate`."""
    args = options(
        ValidateOptions,
        argv,
        "ksim validate",
        "Prove that a bundle is the policy of a checkpoint: graph, numbers, behaviour in simulation, wrong contracts.",
        "ksim validate policy.kinfer --checkpoint runs/stand/model.ckpt --out reports/",
    )
    with importing("validate"):
        from export.report import show, write_report
        from export.validate import check_origin, latency_us, to_stderr, validate
        from ksim.learning.checkpoint import load_trained

    bundle, trained = read_bundle(args.bundle), load_trained(args.checkpoint, teachers=False)
    check_origin(bundle, trained)
    alone = Path(args.bundle).with_suffix(".onnx")
    if alone.is_file() and alone.read_bytes() != bundle.step_fn:
        raise ExportError(f"{alone}: its bytes differ from step_fn of {args.bundle}, expected the same; export again")
    report = validate(bundle, trained.policy, trained.config, **args.arguments(), keep_going=True, log=to_stderr)
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
