"""`ksim parity`: compare logs with the simulation."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from deploy.errors import OptionError
from deploy.log.place import check_place
from deploy.log.recorder import read_head, read_log
from deploy.parity.closed_loop import RUNS
from deploy.parity.layers import Parity, model_of, parity, write_reports
from deploy.parity.overview import LogRow
from deploy.parity.page import write_many
from deploy.parity.pool import pooled, pooled_report
from deploy.parity.report import EXIT_BAD, Judgement, Mark
from deploy.parity.terminal import judgement_lines
from deploy.twin.calibrated import read_reality
from deploy.twin.reality import Reality
from toolkit.cli import Option, options, run_verb
from toolkit.errors import SettingsError
from toolkit.files import atomic_path, packaged
from toolkit.settings import Bound, Settings
from toolkit.words import count


@dataclass(frozen=True, kw_only=True)
class ParityOptions(Settings):
    """The options of `ksim parity`."""

    log: Annotated[tuple[str, ...], Option("a log of ksim run, or several of one robot", positional=True, many=True)]
    robot: Annotated[str | None, Option("built-in robot or robot folder (default: the log's)")] = None
    reality: Annotated[
        str | None, Option("simulate this reality YAML, or this calibration, instead of the nominal robot")
    ] = None
    held: Annotated[
        bool,
        Option("the base, which floats in the model, was fixed, or hung from a gantry (older: --hang)", short="--hang"),
    ] = False
    closed_loop: Annotated[
        int, Bound(0, 1000, "a number of runs"), Option("simulate the run through its policy so often; 0: not")
    ] = RUNS
    full: Annotated[bool, Option("replay whole logs open loop, as joint positions in OUT/MOTION.npz")] = False
    calibration: Annotated[str | None, Option("what ksim sysid found, for --full", metavar="FILE")] = None
    out: Annotated[str | None, Option("folder, or name of the page ending in .html (default: beside the log)")] = None
    exit_zero: Annotated[bool, Option("exit with 0 also where a layer is bad")] = False
    json: Annotated[bool, Option("print the figures as one JSON object on stdout")] = False
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""


def _check(args: ParityOptions) -> dict[str, Reality | None]:
    """What can be known before the logs are read, which takes long; what each log's simulation is, by its path.

    Raises:
        ToolkitError: a log, its robot, the simulation or a place is none that can be used.
    """
    if args.out is not None:
        out = Path(args.out)
        if len(args.log) > 1 and out.suffix == ".html":
            raise OptionError(f"--out {out}: a page; expected a folder, for there is a page for each log")
        check_place(out if out.suffix == ".html" else out / "report.html", "--out", "report.html")
    heads = {path: read_head(path) for path in args.log}
    robots = {spec.robot.name for _, spec in heads.values()}
    if len(robots) > 1:
        raise OptionError(f"logs of {', '.join(sorted(robots))}: expected logs of one robot; compare the others apart")
    realities: dict[str, Reality | None] = {}
    for path, (metadata, spec) in heads.items():
        model_of(path, spec.robot, args.robot, imported="import" in metadata)
        realities[path] = read_reality(args.reality, args.robot or spec.robot.name) if args.reality else None
        if args.out is None:
            check_place(Path(path).parent / "report.html", "--out (beside the log)", "report.html")
    return realities


def _compare(args: ParityOptions, path: str, reality: Reality | None) -> Parity:
    log = read_log(path)
    if not log.complete:
        print(f"ksim parity: {path}: the log breaks off; comparing what is there", file=sys.stderr)
    result = parity(log, args.robot, reality, hang=args.held, closed_loop_runs=args.closed_loop)
    if args.reality:  # a name alone may be another file's
        digest = hashlib.sha256(packaged(args.reality).read_bytes()).hexdigest()
        result.report["simulation_sha256"] = digest
    absent, known = result.report["joints_absent"], len(log.spec.robot.joints)
    if absent:
        print(
            f"ksim parity: {path}: it has {known} of the robot's {known + len(absent)} joints; in the simulation the "
            "others are held at home, and nothing is told of them",
            file=sys.stderr,
        )
    if repeated := result.report["stamps_repeated"]:
        print(
            f"ksim parity: warning: {path}: {count(repeated, 'row')} of {len(log.tick):,} "
            f"{'has' if repeated == 1 else 'have'} the stamp of the row before; delays and rates are told by the clock",
            file=sys.stderr,
        )
    found = result.report["robot_differences"]
    if found:
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        print(f"ksim parity: warning: simulated with another robot: {'; '.join(found[:4])}{more}", file=sys.stderr)
    return result


def _many(args: ParityOptions, results: Sequence[Parity]) -> tuple[dict[str, Any], Judgement, list[Path]]:
    """Reports of several logs: (what report.json holds, the judgement of all, the files)."""
    out = Path(args.out) if args.out is not None else results[0].log.path.parent
    stems = [r.log.path.stem for r in results]
    names = [s if stems.count(s) == 1 else f"{s}_{k + 1}" for k, s in enumerate(stems)]
    names = [f"{name}_log" if name == "report" else name for name in names]
    files = [write_reports(r, out, name=name)["html"] for r, name in zip(results, names, strict=True)]
    judgement = pooled(results)
    report = pooled_report(results, judgement)
    with atomic_path(out / "report.json") as part:
        part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    rows = [
        LogRow(name=r.report["log"], duration_s=r.report["loop"]["duration_s"], judgement=r.judgement, page=file.name)
        for r, file in zip(results, files, strict=True)
    ]
    with atomic_path(out / "report.html") as part:
        write_many(part, results[0].robot, judgement, rows)
    files = [out / "report.html", *files]
    return report, judgement, [out / "report.json", *files]


def main(argv: list[str] | None = None) -> int:
    """`ksim parity`: compare logs with the simulation."""
    args = options(
        ParityOptions,
        argv,
        "ksim parity",
        "Compare recorded runs with the simulation, layer by layer: does the policy replay to the same actions, what\n"
        "happens to them on their way, what do the sensors tell, do joints and body move as the model says, is the\n"
        "run inside the band of many simulated ones, how even was the loop.\n"
        f"Exit status: 0 good or to be looked at, {EXIT_BAD} a layer is bad or something is suspected, 1 an error.",
        "ksim parity run.mcap --out reports/",
    )
    if args.full:
        from deploy.parity.full import full

        return full(args)
    if args.calibration:
        raise OptionError("--calibration is for --full; add it, or name the calibration with --reality")
    realities = _check(args)
    results = [_compare(args, path, realities[path]) for path in args.log]
    if len(results) == 1:
        judgement, report = results[0].judgement, results[0].to_json()
        files = list(write_reports(results[0], args.out).values())
    else:
        report, judgement, files = _many(args, results)
    lines = judgement_lines(judgement, colour=sys.stdout.isatty())
    print(json.dumps(report, allow_nan=False) if args.json else "\n".join(lines))
    print(f"wrote {' and '.join(map(str, files))}", file=sys.stderr)
    return EXIT_BAD if judgement.mark is Mark.BAD and not args.exit_zero else 0


if __name__ == "__main__":
    sys.exit(run_verb("parity", main, sys.argv[1:]))
