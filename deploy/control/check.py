"""`ksim check`: looks at a robot before a policy runs on it, against what the policy was trained for."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from deploy.bundle.preflight import prepare
from deploy.control.findings import AMBER, GREEN, RED, Finding, Probe, next_step, to_json, worst
from deploy.control.judge_joints import actuator_findings, gain_findings, server_findings, wiggle_findings
from deploy.control.judge_sensors import (
    channel_findings,
    clock_findings,
    figures,
    imu_findings,
    link_findings,
    margin_findings,
)
from deploy.control.run import alone, or_stop, signals
from deploy.control.stop import Stop, Stopped
from deploy.control.watchdog import Watchdog
from deploy.control.wiggle import Wiggle
from deploy.errors import CheckError, ConnectionLost, DeployError
from deploy.robot.address import KnownServer, addressed
from deploy.robot.faults import text_of
from deploy.robot.interface import Sight
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, check_imu, check_start
from robots.load import load_robot
from robots.spec import PolicySpec, RobotSpec
from toolkit.cli import Option, options, run_verb
from toolkit.settings import Bound

# The share of the probe that asks at the control rate; the rest asks as fast as the link allows, this often at most.
PACED_SHARE, FAST_PERIOD_S = 0.7, 0.002
AMPLITUDE_RAD = 0.05
_COLOURS = {GREEN: "32", AMBER: "33", RED: "31"}


@dataclass(frozen=True, kw_only=True)
class CheckOptions(KnownServer):
    """The options of `ksim check`."""

    bundle: Annotated[Path | None, Option("the policy that is to run, a .kinfer file", positional=True)] = None
    robot: Annotated[
        str | None,
        Option("whose joints: a built-in robot, or a folder (default: the bundle's)", metavar="NAME|FOLDER"),
    ] = None
    probe_s: Annotated[
        float, Option("how long to look at it [s]", flag="--probe", metavar="S"), Bound(0.2, 600, "seconds")
    ] = 10.0
    wiggle: Annotated[bool, Option("then make it stiff and move one joint at a time: have it on a gantry")] = False
    joint: Annotated[tuple[str, ...], Option("wiggle this joint alone; repeat it", metavar="NAME")] = ()
    amplitude_rad: Annotated[
        float, Option("how far a joint is moved [rad]", flag="--amplitude", metavar="RAD"), Bound(0.01, 0.1, "radians")
    ] = AMPLITUDE_RAD
    yes: Annotated[bool, Option("do not ask before it is moved")] = False
    watchdog_s: Annotated[
        float,
        Option(
            "while it is moved: damp it when this command hangs for so long; 0: never", flag="--watchdog", metavar="S"
        ),
        Bound(0, 60, "seconds"),
    ] = 0.5
    json: Annotated[bool, Option("print the findings as one JSON object")] = False

    def check(self) -> None:
        self.require(self.bundle is not None or self.robot is not None, "bundle", None, "a .kinfer file, or --robot")
        self.require(self.wiggle or not self.joint, "joint", self.joint, "--wiggle with it")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is looked at, and for what.

    Attributes:
        robot: whose joints.
        policy: what is to run; None for a robot alone.
        warnings: what the bundle itself gives reason for.
    """

    robot: RobotSpec
    policy: PolicySpec | None
    warnings: tuple[str, ...] = ()

    @property
    def period_s(self) -> float:
        return self.robot.control_period_s if self.policy is None else self.policy.control_period_s


def _task(args: CheckOptions) -> _Task:
    if args.bundle is None:
        return _Task(robot=load_robot(args.robot or ""), policy=None)
    ready = prepare(args.bundle, args.robot, {}, unvalidated=True)
    return _Task(robot=ready.spec.robot, policy=ready.spec, warnings=ready.warnings)


def findings(p: Probe, spec: PolicySpec | None, limits: Limits) -> list[Finding]:
    """All that a robot left alone tells; `spec` is what the bundle's policy was trained for."""
    found = [*server_findings(p), *actuator_findings(p, limits), *gain_findings(p)]
    if not len(p.time_s):
        found.append(
            Finding(
                "link",
                "states",
                RED,
                f"none of {p.lost} came in time",
                "answers",
                "look at the link, and at the server",
            )
        )
        return found
    reads = spec is not None and any(a.name == "accelerometer" for a in spec.inputs)
    found += [*imu_findings(p, limits, reads), *channel_findings(p, spec), *margin_findings(p, spec)]
    found += [*link_findings(p), *clock_findings(p)]
    return found


async def probe(robot: KosRobot, period_s: float, for_s: float, server: str) -> Probe:
    """Look at a robot for a while. Nothing is commanded or configured.

    Args:
        robot: connected.
        period_s: control period [s].
        for_s: how long [s].
        server: what kind it is said to be, or "auto".

    Raises:
        ConnectionLost: nothing answers.
        FaultError: the server refuses to tell of its actuators.
    """
    await robot.identify("auto")
    questions = robot.dialect.name
    said = await robot.identify(server)
    joints, extra = await robot.joints_seen()
    offset = time.time() - time.monotonic()
    seen, lost = await _sights(robot, period_s, PACED_SHARE * for_s)
    paced = len(seen)
    more, _ = await _sights(robot, FAST_PERIOD_S, (1.0 - PACED_SHARE) * for_s)
    seen += more

    def column(name: str, width: int) -> np.ndarray:
        return np.array([getattr(s, name) for s in seen]).reshape(len(seen), width)

    return Probe(
        robot=robot.spec,
        period_s=period_s,
        dialect=robot.dialect,
        server=said,
        questions=questions,
        gyro_unit=robot.gyro_unit,
        joints=joints,
        extra=extra,
        paced=paced,
        lost=lost,
        errors=tuple(dict.fromkeys(e for s in seen for e in s.errors)),
        time_s=column("time_s", 1)[:, 0],
        round_trip_s=column("round_trip_s", 1)[:, 0],
        position=column("position", len(joints)),
        velocity=column("velocity", len(joints)),
        quat_wxyz=column("quat_wxyz", 4),
        gyro_b=column("gyro_b", 3),
        accel_b=column("accel_b", 3),
        clock_step_s=time.time() - time.monotonic() - offset,
    )


async def _sights(robot: KosRobot, period_s: float, for_s: float) -> tuple[list[Sight], int]:
    """What was seen, a look each period; how many looks were lost."""
    seen: list[Sight] = []
    lost, began, due = 0, time.monotonic(), time.monotonic()
    while time.monotonic() - began < for_s:
        try:
            seen.append(await robot.look())
        except ConnectionLost:
            lost += 1
        due = max(due + period_s, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
    return seen, lost


async def _wiggle(
    robot: KosRobot, task: _Task, args: CheckOptions, limits: Limits, stop: Stop, lock: int
) -> list[Finding]:
    """Wiggle the joints and damp the robot, whatever happens."""

    def red(what: str, got: str, do: str) -> Finding:
        return Finding("wiggle", what, RED, got, do=do)

    watchdog, damped = None, True
    try:
        if args.watchdog_s > 0:
            limit_s = max(args.watchdog_s, 3.0 * task.period_s)
            starting = Watchdog.start(task.robot, args.host, args.port, Path("wiggle"), limit_s, lock=lock)
            watchdog = await or_stop(stop, starting)
        first = await or_stop(stop, robot.read(1.0))
        faults = check_start(first, limits) + check_imu(first, accelerometer=False)
        if faults:
            return [red("start", text_of(faults, 3), "put it right: it was not moved")]

        def tell(name: str) -> None:
            print(f"wiggle: {name}", file=sys.stderr, flush=True)

        work = Wiggle(
            robot, limits, task.period_s, args.amplitude_rad, stop=stop, watchdog=watchdog,
            on_joint=None if args.json else tell,
        )  # fmt: skip
        found: list[Finding] = []
        damped = False
        try:
            await work.run(first, args.joint or limits.names)
        except DeployError as error:
            found.append(red("ended early", str(error), "the robot was damped: find out why before it is moved again"))
        finally:
            damping = await work.damp()
            damped = damping is None or damping.done
            if damping is not None and not damping.done:
                print(f"ksim check: {damping.message}; try ksim damp", file=sys.stderr, flush=True)
                found.append(red("damped", damping.message, "ksim damp"))
        if work.gains:
            more = f" and {len(work.gains) - 3} more" if len(work.gains) > 3 else ""
            found.append(red("gains", "; ".join(work.gains[:3]) + more, "the server did not take what it was sent"))
        return wiggle_findings(work.done, limits.names) + found
    finally:
        if watchdog is not None:
            watchdog.close(damped)


async def _check(args: CheckOptions, task: _Task, stop: Stop, lock: int) -> tuple[list[Finding], Probe]:
    limits = Limits.from_spec(task.robot)
    robot = KosRobot(task.robot, args.host, args.port, gyro_unit=args.gyro_unit, accelerometer=False)
    try:
        await or_stop(stop, robot.connect())
        seen = await or_stop(stop, probe(robot, task.period_s, args.probe_s, args.server))
        found = [
            Finding("bundle", "proof", AMBER, line, do="export it again, with its proof") for line in task.warnings
        ]
        found += findings(seen, task.policy, limits)
        if args.wiggle and worst(found) is RED:
            found.append(Finding("wiggle", "not done", AMBER, "the robot is red already", do="put that right first"))
        elif args.wiggle:
            found += await _wiggle(robot, task, args, limits, stop, lock)
        return found, seen
    finally:
        await robot.close()


def check(args: CheckOptions) -> tuple[list[Finding], Probe]:
    """What was found, and what it was found in.

    Raises:
        ToolkitError: the robot or the bundle cannot be looked at.
        Stopped: a signal ended it; a robot that was moved is damped.
    """
    task = _task(args)
    for name in args.joint:
        task.robot.joint(name)

    async def session() -> tuple[list[Finding], Probe]:
        stop = Stop()
        with signals(stop, asyncio.get_running_loop()):
            return await _check(args, task, stop, lock)

    with alone(args.host, args.port) as lock, asyncio.Runner() as runner:
        return runner.run(session())


def table(found: Sequence[Finding], colour: bool) -> str:
    """Lines for a person, by groups."""
    lines, group = [], ""
    width = max(len(f.what) for f in found)
    for f in found:
        if f.group != group:
            group = f.group
            lines.append(group)
        word = f"{f.level:5}"
        word = f"\x1b[{_COLOURS[f.level]}m{word}\x1b[0m" if colour else word
        lines.append(f"  {word}  {f.what:{width}}  {f.got}" + (f"; expected {f.expected}" if f.expected else ""))
        if f.do:
            lines.append(f"  {'':5}  {'':{width}}  -> {f.do}")
    return "\n".join(lines)


def _confirmed(args: CheckOptions) -> None:
    if args.yes or not args.wiggle:
        return
    if not sys.stdin.isatty():
        raise CheckError(
            "--wiggle moves the robot, and nobody is there to be asked; add --yes once it hangs on a gantry"
        )
    print(
        f"--wiggle makes every joint of {args.host}:{args.port} stiff and moves one after the other by "
        f"{args.amplitude_rad:g} rad; then it is limp and sinks.\nIt has to hang on a gantry, clear of "
        "people. Go on? [y/N] ",
        end="", file=sys.stderr, flush=True,
    )  # fmt: skip
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CheckError("the robot was not touched: you did not say yes")


_DESCRIPTION = """\
Look at a robot before a policy runs on it: its actuators, gains, IMU, the real rate and age of each channel, the
link and the clock, against what the bundle's policy was trained for.

Nothing is commanded: the robot stays as it is. Turn it by hand by some 10 degrees and back meanwhile, and the gyro's
unit and frame are judged as well. --wiggle then moves one joint at a time by a little, every joint stiff: have the
robot on a gantry. It leaves the robot damped on every way out, and damped it sinks.

green: as it should be. amber: look at it. red: ksim run would fail, or the policy meets what it was not trained for.
Exit code: 0 for green and amber, 1 for red or where it could not be looked at.
"""


def main(argv: list[str] | None = None) -> int:
    """The command `ksim check`."""
    args = options(CheckOptions, argv, "ksim check", _DESCRIPTION, "ksim check policy.kinfer --host 127.0.0.1")
    args = addressed(args)
    _confirmed(args)
    if not args.json and sys.stderr.isatty():
        print(f"looking for {args.probe_s:g} s: turn the robot by hand meanwhile", file=sys.stderr, flush=True)
    try:
        found, seen = check(args)
    except Stopped as stopped:
        print("ksim check: interrupted", file=sys.stderr, flush=True)
        return 128 + stopped.signum
    what = f"ksim run {args.bundle or 'POLICY.kinfer'} --host {args.host}"
    what += f" --port {args.port}" if args.port != 50051 else ""
    what += f" --server {args.server}" if args.server != "auto" else ""
    what += f" --gyro-unit {args.gyro_unit}" if args.gyro_unit else ""
    if args.json:
        print(
            json.dumps(to_json(found, host=args.host, port=args.port, server=seen.dialect.name, figures=figures(seen)))
        )
    else:
        print(table(found, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
        print(next_step(found, what))
    return 1 if worst(found) is RED else 0


if __name__ == "__main__":
    sys.exit(run_verb("check", main, sys.argv[1:]))
