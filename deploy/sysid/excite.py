"""`ksim excite`: drives a robot's joints with signals that `ksim sysid` can read, one log a signal.

It is `ksim run` with a table of targets in the policy's place: the same loop, safety layer, watchdog and log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np

from deploy.bundle.preflight import Prepared
from deploy.bundle.session import OnnxPolicy
from deploy.control.commands import Schedule
from deploy.control.machine import Ended
from deploy.control.report import RunReport
from deploy.control.run import RunOptions, carry_out
from deploy.errors import CheckError, LogError
from deploy.log.place import check_place
from deploy.robot.address import DrivenServer, addressed
from deploy.sysid.signals import LEAD_S, AtOnce, Kind, chosen, excitation, sets_of
from robots.bundle import Bundle
from robots.load import load_robot
from robots.spec import PolicySpec, RobotSpec, input_specs
from toolkit.cli import Option, options, run_verb
from toolkit.settings import Bound
from toolkit.words import count

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class ExciteOptions(DrivenServer):
    """The options of `ksim excite`."""

    out: Annotated[Path, Option("folder for the logs, one a kind of signal", short="-o", metavar="FOLDER")]
    robot: Annotated[str, Option("whose joints: a built-in robot, or a folder", metavar="NAME|FOLDER")] = "kbot"
    kinds: Annotated[
        tuple[Kind, ...], Option(f"signals: {', '.join(KINDS)} (default: all)", metavar="KIND", many=True)
    ] = KINDS
    joints: Annotated[
        tuple[str, ...], Option("words in the names of the joints that move (default: all)", metavar="WORD", many=True)
    ] = ()
    at_once: Annotated[
        AtOnce, Option("joints that move at once: one, those of one side (left, right), or all that move")
    ] = "one"
    seconds: Annotated[
        float, Option("of each signal, for each set of joints that moves at once [s]", metavar="S"), Bound(5, 3600, "s")
    ] = 20.0
    amplitude_rad: Annotated[
        float,
        Option("how far a joint goes at most [rad]; its limits may allow less", flag="--amplitude", metavar="RAD"),
        Bound(0.01, 1.5, "radians"),
    ] = 0.2
    seed: Annotated[int, Option("of what is random"), Bound(0, 2**32 - 1, "a seed")] = 0
    suspended: Annotated[bool, Option("the robot hangs, or is bolted down, clear of everything: do not ask")] = False
    ramp_s: Annotated[
        float, Option("time to the home pose before each signal [s]", flag="--ramp", metavar="S"), Bound(1, 600, "s")
    ] = 3.0
    force: Annotated[bool, Option("replace logs that are there")] = False
    json: Annotated[bool, Option("print the reports as one JSON object")] = False

    def check(self) -> None:
        self.require(bool(self.kinds), "kinds", list(self.kinds), f"some of {', '.join(KINDS)}")
        self.require(len(set(self.kinds)) == len(self.kinds), "kinds", list(self.kinds), "each once")

    def log_of(self, kind: Kind) -> Path:
        """Where a signal is recorded."""
        return self.out / f"{kind}.mcap"


class Played:
    """Stands in for a policy: a table of targets over time, so that a tick that is skipped delays nothing."""

    def __init__(self, targets: np.ndarray, period_s: float) -> None:
        self._targets, self._period_s = targets.astype(np.float32), period_s

    def reset(self) -> None:
        """It remembers nothing."""

    def step(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """The row of this time (joints,) [rad]."""
        row = round(float(inputs["time"][0]) / self._period_s)
        return self._targets[min(row, len(self._targets) - 1)]


def prepared(robot: RobotSpec, targets: np.ndarray, what: dict[str, Any]) -> Prepared:
    """A table of targets (T, joints) [rad] as something that `ksim run` runs; `what` it is goes into the log."""
    spec = PolicySpec(
        task=f"excite {what['kind']}",
        robot=robot,
        inputs=(input_specs(robot, ())["time"],),
        commands=(),
        carry_size=0,
        control_period_s=robot.control_period_s,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
        training=what,
    )
    empty = Bundle(joint_names=robot.joint_names, command_names=(), carry_shape=(0,), init_fn=b"", step_fn=b"")
    return Prepared(
        data=b"",
        bundle=empty,
        spec=spec,
        policy=cast("OnnxPolicy", Played(targets, robot.control_period_s)),  # all that the loop asks of one
        command=np.zeros(0),
        compared=robot.name,
        understood=f"{robot.name}, {len(robot.joints)} joints",
    )


def excite(args: ExciteOptions) -> list[RunReport]:
    """Drive a robot with each kind of signal; a signal that was not played to its end is the last.

    Raises:
        ToolkitError: something did not fit before the robot was touched.
    """
    robot = load_robot(args.robot)
    sets = sets_of(robot, chosen(robot, args.joints), args.at_once)
    for kind in args.kinds:
        log = args.log_of(kind)
        check_place(log)
        if log.exists() and not args.force:
            raise LogError(f"log {log}: it exists; expected a new file; name another --out or add --force")
    reports: list[RunReport] = []
    for kind in args.kinds:
        targets = excitation(robot, kind, sets, seconds=args.seconds, amplitude_rad=args.amplitude_rad, seed=args.seed)
        what = {
            "kind": kind,
            "joints": [[robot.joint_names[i] for i in group] for group in sets],
            "seconds": args.seconds,
            "amplitude_rad": args.amplitude_rad,
            "seed": args.seed,
        }
        duration_s = len(targets) * robot.control_period_s
        print(f"ksim excite: {kind}, {duration_s:.0f} s and the way to home", file=sys.stderr, flush=True)
        run = RunOptions(
            bundle=Path(kind),
            host=args.host,
            port=args.port,
            duration_s=duration_s,
            ramp_s=args.ramp_s,
            robot=args.robot,
            server=args.server,
            gyro_unit=args.gyro_unit,
            base_fixed=True,
            step_lock=args.step_lock,
            late_max=args.late_max,
            watchdog_s=args.watchdog_s,
            force=args.force,
            realtime=True,
        )
        ready = prepared(robot, targets, what)
        reports.append(carry_out(run, ready, Schedule.constant(ready.command), args.log_of(kind)))
        if reports[-1].ended is not Ended.COMPLETED or reports[-1].exit_code:
            break
    return reports


def _confirmed(args: ExciteOptions) -> None:
    if args.suspended:
        return
    if not sys.stdin.isatty():
        raise CheckError(
            "it moves the robot, and nobody is there to be asked; add --suspended once it hangs, clear of everything"
        )
    robot = load_robot(args.robot)
    sets = sets_of(robot, chosen(robot, args.joints), args.at_once)
    whole_s = len(args.kinds) * (len(sets) * (args.seconds + 2 * LEAD_S) + args.ramp_s)
    print(
        f"It makes every joint of {args.host}:{args.port} stiff at the home pose and moves "
        f"{'each' if args.at_once == 'one' else 'several at once'} by up to {args.amplitude_rad:g} rad, for "
        f"{whole_s / 60:.0f} minutes in all; after each signal it is limp and sinks.\n"
        "It has to hang on a gantry, feet off the floor, clear of people and of its own limbs. Go on? [y/N] ",
        end="", file=sys.stderr, flush=True,
    )  # fmt: skip
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CheckError("the robot was not touched: you did not say yes")


def lines(reports: Sequence[RunReport]) -> list[str]:
    """What a person reads."""
    out = []
    for report in reports:
        clamps = ", ".join(f"{kind} {times}" for kind, times in sorted(report.clamps.items()))
        clamped = (
            f"safety changed {count(report.clamped_ticks, 'tick')} ({clamps})" if clamps else "safety changed nothing"
        )
        out.append(f"{report.log}: {report.ended}, {report.survived_s:.0f} of {report.duration_s:.0f} s, {clamped}")
        out += [f"  warning: {line}" for line in report.warnings]
    return out


_DESCRIPTION = """\
Drive a robot's joints with signals from which ksim sysid tells what they are, and record one log a signal.

chirp: 0.1 to 10 Hz and back. multisine: random phases, low peak. steps: three sizes, both ways. sweeps: slow, both
ways, for friction and gravity. hold: still at random poses.

The robot has to hang on a gantry, feet off the floor, or be bolted down. Every joint is stiff; those that do not move
stay at home. Each signal begins with a ramp to the home pose and ends there; then the robot is damped, and sinks. The
joints' own limits, the torque limits and the safety layer of ksim run hold. It does not know where its limbs meet: move
one joint at a time, or look first with a small --amplitude.
"""


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        ExciteOptions,
        argv,
        "ksim excite",
        _DESCRIPTION,
        "ksim excite --host 127.0.0.1 --joints knee ankle --kinds chirp steps --out logs",
    )
    args = addressed(args)
    _confirmed(args)
    reports = excite(args)
    last = reports[-1]
    print(json.dumps({"runs": [r.to_json() for r in reports]}) if args.json else "\n".join(lines(reports)), flush=True)
    if last.exit_code:
        print(f"ksim excite: {last.ended}: {last.message}", file=sys.stderr, flush=True)
    else:
        print(
            f"next: ksim sysid {args.out}/*.mcap --robot {args.robot} -o calibration.yaml   "
            "(with --held where the base floats in the model)",
            file=sys.stderr,
            flush=True,
        )
    return last.exit_code


if __name__ == "__main__":
    sys.exit(run_verb("excite", main, sys.argv[1:]))
