"""`ksim parity`: compare a log with the simulation."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from deploy.errors import OptionError
from deploy.log.recorder import read_log
from deploy.parity.layers import parity, write_reports
from deploy.parity.page import summary_lines
from deploy.twin.calibrated import read_reality
from toolkit.cli import Option, options, run_verb
from toolkit.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ParityOptions(Settings):
    """The options of `ksim parity`."""

    log: Annotated[tuple[str, ...], Option("a log of ksim run; with --full several", positional=True, many=True)]
    robot: Annotated[str | None, Option("built-in robot or robot folder (default: the log's)")] = None
    reality: Annotated[
        str | None, Option("simulate this reality YAML, or this calibration, instead of the nominal robot")
    ] = None
    hang: Annotated[bool, Option("the robot hung from a gantry, feet off the floor")] = False
    full: Annotated[bool, Option("replay whole logs open loop, as joint positions in OUT/MOTION.npz")] = False
    calibration: Annotated[str | None, Option("what ksim sysid found, for --full", metavar="FILE")] = None
    held: Annotated[bool, Option("the base, which floats in the model, was fixed to the world (--full)")] = False
    out: Annotated[str | None, Option("folder, or name of the page ending in .html (default: beside the log)")] = None
    json: Annotated[bool, Option("print the figures as one JSON object on stdout")] = False


def main(argv: list[str] | None = None) -> int:
    """`ksim parity`: compare a log with the simulation."""
    args = options(
        ParityOptions,
        argv,
        "ksim parity",
        "Compare a recorded run with the simulation: does the policy replay to the same actions, how far\n"
        "do the joints move from what the model says, how late do they answer, how even was the loop.",
        "ksim parity run.mcap --out reports/",
    )
    if args.full:
        from deploy.parity.full import full

        return full(args)
    if len(args.log) > 1 or args.calibration or args.held:
        raise OptionError("several logs, --calibration and --held are for --full; add it, or leave them out")
    log = read_log(args.log[0])
    reality = read_reality(args.reality, args.robot or log.spec.robot.name) if args.reality else None
    if not log.complete:
        print(f"ksim parity: {args.log[0]}: the log breaks off; comparing what is there", file=sys.stderr)
    result = parity(log, args.robot, reality, hang=args.hang)
    files = write_reports(result, args.out)
    report = result.report
    if report["robot_differences"]:
        found = report["robot_differences"]
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        print(f"ksim parity: warning: simulated with another robot: {'; '.join(found[:4])}{more}", file=sys.stderr)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        print("\n".join(summary_lines(report)))
    print(f"wrote {files['json']} and {files['html']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("parity", main, sys.argv[1:]))
