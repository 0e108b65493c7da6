"""`ksim sysid`: what a robot's joints really are, from recorded motions."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from deploy.errors import OptionError
from deploy.log.place import check_place
from deploy.sysid.kinds import FITTED, KINDS
from toolkit.cli import Option, options, run_verb
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings, load

if TYPE_CHECKING:
    from deploy.sysid.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class SysidOptions(Settings):
    """The options of `ksim sysid`."""

    logs: Annotated[
        tuple[str, ...],
        Option("logs to fit: of ksim run, or what ksim log import reads", metavar="LOG", positional=True, many=True),
    ]
    robot: Annotated[str, Option("a built-in robot, or a folder", metavar="NAME|FOLDER")]
    out: Annotated[Path, Option("the calibration to write", metavar="FILE", short="-o")]
    unseen: Annotated[
        tuple[str, ...], Option("logs to judge the result by, which are not fitted", metavar="LOG", many=True)
    ] = ()
    map: Annotated[Path | None, Option("YAML for logs of other programs (docs/log_import.md)", metavar="FILE")] = None
    held: Annotated[bool, Option("the base, which floats in the model, was fixed to the world")] = False
    contacts: Annotated[
        Path | None, Option("a YAML file of what the arm touches and which rows do not count", metavar="FILE")
    ] = None
    fit: Annotated[
        tuple[str, ...], Option(f"what is fitted: {', '.join(KINDS)} (default: {' '.join(FITTED)})", many=True)
    ] = FITTED
    leave_out: Annotated[bool, Option("do not fit rows in which the arm seems to touch what is not declared")] = True
    timestep_s: Annotated[
        float, Option("physics step [s]", flag="--timestep", metavar="S"), Bound(1e-4, 0.01, "seconds")
    ] = 0.002
    iterations: Annotated[int, Option("steps of the search at most"), Bound(1, 1000, "steps")] = 30
    threads: Annotated[int, Option("threads of the simulation"), Bound(1, 256, "threads")] = 2
    begin: Annotated[Path | None, Option("go on from this calibration", metavar="FILE")] = None
    whole: Annotated[bool, Option("exact slopes for an arm too: slower, for heavy links that move each other")] = False
    state: Annotated[
        Path | None, Option("keep here after each step where the fit stands, and go on from there", metavar="FILE")
    ] = None
    page: Annotated[Path | None, Option("the report (default: beside --out, .html)", metavar="FILE")] = None
    model: Annotated[
        Path | None, Option("write the robot with what was found as a model that MuJoCo loads", metavar="FILE")
    ] = None
    json: Annotated[bool, Option("print the figures as one JSON object")] = False
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""


def _say(text: str) -> None:
    print(f"ksim sysid: {text}", file=sys.stderr, flush=True)


def lines(calibration: Calibration) -> list[str]:
    """What a person reads of a calibration."""
    wide = max(16, *map(len, calibration.joints))
    out = [f"{'joint':{wide}s}" + "".join(f"{kind:>34s}" for kind in calibration.fitted if not KINDS[kind].shared)]
    for name, joint in calibration.joints.items():
        cells = []
        for kind in calibration.fitted:
            if KINDS[kind].shared:
                continue
            value = getattr(joint, kind)
            mark = "" if value.known else " ?"
            cells.append(f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]{mark}".rjust(34))
        out.append(f"{name:{wide}s}" + "".join(cells))
    if "delay_s" in calibration.fitted:
        delay = calibration.delay_s
        low, high = ((end or 0.0) * 1e3 for end in (delay.low, delay.high))
        out.append(f"delay {delay.value * 1e3:.1f} ms [{low:.1f}, {high:.1f}]")
        if calibration.one_clock:
            out.append("  commands and states bear one stamp: this is not the transport delay, do not train with it")
    if not calibration.converged:
        out.append("the search had not come to its end: go on with --begin and this file, or give more --iterations")
    if calibration.contacts.plane is not None:
        out.append(f"plane at {calibration.plane_m.value:.4f} m")
    for touch in calibration.touching:
        where = f"a plane at {touch.level:.3f} m" if touch.what == "plane" else f"{touch.what} at {touch.level:.3f} rad"
        fitted = ", which were not fitted" if touch.left_out else ""
        out.append(f"{touch.motion}: touches {where} in {touch.share:.0%} of its rows{fitted}; the model does not")
    if any(t.what != "plane" for t in calibration.touching):
        out.append("declare a joint's stop with --contacts, under stops_rad")
    if plane := calibration.declaration():
        out += [
            "declare the plane, or the model is off where the robot touches it: --contacts with a file of these lines"
        ]
        out += [f"  {line}" for line in plane]
    if "offset" in calibration.fitted:
        out.append("offsets trade against the stiffness of joints that carry weight: have a reason for them")
    for title, table in (("fitted", calibration.seen), ("unseen", calibration.unseen)):
        for name, score in table.items():
            extra = f", touching in {score.touching:.0%}" if score.touching else ""
            extra += f", {score.left_out:.0%} left out" if score.left_out else ""
            out.append(
                f"{title} {name}: {score.ratio:.3f} of the published model's error (lag {score.lag_ratio:.3f}{extra})"
            )
        if table:
            mean, lag = (np.mean([getattr(m, what) for m in table.values()]) for what in ("ratio", "lag_ratio"))
            out.append(f"{title} mean: {mean:.3f} (lag {lag:.3f})")
    return out


def _next(calibration: Calibration, file: Path) -> list[str]:
    """What to do with it."""
    if not calibration.converged:
        return [f"next: the same command with --begin {file}"]
    return [
        f"next: ksim parity LOG --full --calibration {file} --out DIR   or   "
        f"ksim train --config TASK.yaml --calibration {file}"
    ]


def _check_places(args: SysidOptions, report: Path) -> None:
    """That what is written at the end of a long fit can be, and destroys nothing.

    Raises:
        OptionError: two outputs are one file, or one is what is read.
        LogError: a place cannot be written.
    """
    read = [("a log", Path(p)) for p in (*args.logs, *args.unseen)] + [
        ("--map", args.map),
        ("--contacts", args.contacts),
    ]
    taken = {p.resolve(): what for what, p in read if p is not None}
    written = {"--out": args.out, "--page": report, "--model": args.model, "--state": args.state}
    for flag, path in written.items():
        if path is None:
            continue
        if (other := taken.get(path.resolve())) is not None:
            raise OptionError(f"{flag} {path}: it is {other} too; expected a file of its own; name another")
        taken[path.resolve()] = flag
        check_place(path, flag, "calibration.yaml")
    if args.begin is not None and (other := taken.get(args.begin.resolve(), "--out")) != "--out":
        raise OptionError(f"--begin {args.begin}: it is {other} too; expected a calibration; name another")


_DESCRIPTION = """\
Fit a robot's joints to recorded motions by full open-loop replay: commands and the first measured state alone.

It judges the result on motions that were not fitted (--unseen), says which rows touch something that the model does
not have, and what the motions cannot tell (marked ?).
"""


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        SysidOptions,
        argv,
        "ksim sysid",
        _DESCRIPTION,
        "ksim sysid chirp.mcap steps.mcap --robot so101 --unseen waypoints.mcap -o calibration.yaml",
    )
    from deploy.log.imports.mapping import load_map
    from deploy.sysid.calibrate import calibrate, declared
    from deploy.sysid.calibration import load_calibration, replay, write_calibration
    from deploy.sysid.contacts import Contacts
    from deploy.sysid.model import not_told, write_model
    from deploy.sysid.motion import SysidError, read_motion
    from deploy.sysid.page import write_page
    from robots.load import load_robot

    if not args.out.name:
        raise OptionError(f"--out {args.out}: it is a folder; expected a file; name one in it, calibration.yaml say")
    report = args.page or args.out.with_suffix(".html")
    _check_places(args, report)
    started, spec = time.monotonic(), load_robot(args.robot)
    contacts = load(Contacts, args.contacts, expected="a YAML file of contacts") if args.contacts else Contacts()
    both = sorted({Path(p).resolve() for p in args.logs} & {Path(p).resolve() for p in args.unseen})
    if both:
        raise SysidError(f"--unseen {both[0]}: it is fitted too; expected motions that are not; name others")
    given = None if args.map is None else load_map(args.map)
    seen, unseen = ([read_motion(path, spec, given) for path in paths] for paths in (args.logs, args.unseen))
    named = {motion.name for motion in (*seen, *unseen)}
    if unknown := [name for name in contacts.leave_out or () if name not in named]:
        _say(f"warning: {args.contacts}: leave_out names {', '.join(unknown)}, which is none of these motions")
    result = calibrate(
        args.robot,
        seen,
        unseen,
        contacts=contacts,
        kinds=args.fit,
        held=args.held,
        leave_out=args.leave_out,
        timestep_s=args.timestep_s,
        iterations=args.iterations,
        threads=args.threads,
        whole=args.whole,
        begin=load_calibration(args.begin).begin(spec, contacts) if args.begin else None,
        state=args.state,
        say=_say,
    )
    write_calibration(args.out, result)
    judged = unseen or seen
    took_s = time.monotonic() - started
    write_page(report, result, declared(judged, contacts), replay(result, args.robot, judged), took_s)
    if args.model is not None:
        write_model(args.model, args.robot, result)
        if guessed := not_told(result):
            _say(
                f"warning: {args.model} has values that the motions do not tell (marked ?): {'; '.join(guessed)[:300]}"
            )
    told = [*lines(result), *_next(result, args.out)]
    print(json.dumps(result.to_dict()) if args.json else "\n".join(told))
    _say(f"wrote {', '.join(str(p) for p in (args.out, report, args.model) if p)}; it took {took_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("sysid", main, sys.argv[1:]))
