"""`ksim run`: a policy on a robot over KOS, every tick recorded, the robot damped on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np

from deploy.bundle.preflight import Prepared, parse_commands, prepare
from deploy.control.commands import Schedule, read_schedule
from deploy.control.loop import DAMP_FOR_S, ControlLoop, Fall, Stop, Stopped
from deploy.control.report import RunReport
from deploy.control.watchdog import Watchdog
from deploy.errors import ConnectionLost, DeployError, FaultError, LogError, OptionError, SafetyError
from deploy.log.recorder import Recorder
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, check_start
from deploy.robot.state import RobotState
from toolkit.cli import Option, options, run_verb
from toolkit.errors import SettingsError, ToolkitError
from toolkit.files import only_one
from toolkit.settings import Bound, Settings

T = TypeVar("T")
# SIGHUP comes when the terminal or the connection to the robot's computer is lost
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
NO_ACCELEROMETER = (
    "the accelerometer reads 0 on every axis, as a simulator that holds the base fixed has it and no robot; the policy "
    "does not read it"
)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """What to run, where, for how long.

    Attributes:
        bundle: the .kinfer file.
        host: where the KOS server is.
        port: its port.
        duration_s: how long the policy runs, after the ramp [s].
        command: command values by name; what is left out is 0, or the end of its range next to 0.
        schedule: a YAML file of commands over time, in place of `command`.
        log: the log's file; None names one by the time of day in the current folder.
        force: replace a log that is there.
        ramp_s: time from the measured pose to home [s]; none where the pose is home already. 0 starts the policy
            at once from any pose.
        robot: name or folder to check the bundle against; None trusts the bundle.
        gyro_unit: what the server's gyro speaks, "deg/s" or "rad/s".
        base_fixed: the base cannot move, as in a simulator that holds it. An IMU that gives the same values for more
            than seven ticks is otherwise a fault.
        reset: ask a simulator to put the robot at home first; a robot refuses.
        step_lock: drive a simulator that is in lock step; time is then the simulator's.
        tilt_max_rad: more tilt than this is a fall [rad].
        lost_ticks_max: more ticks in a row without an answer than this end the run; so does a silence that is as long
            as `watchdog_s`.
        connect_timeout_s: how long to wait for the server [s].
        realtime: ask the system for real-time scheduling; goes on without where that is not allowed.
        damp_for_s: how long to try to damp a robot that does not answer [s].
        watchdog_s: a process of its own damps the robot when the loop has missed its beat for so long [s], or has
            died; at least three control periods. 0 runs without it, as lock step always does.
        late_max: the loop may be slower than in training by this share, over a second; more ends the run.
        on_second: called about once a second with a line to show.
        unvalidated: run a bundle of ours that was not proven to be its checkpoint.
        on_warning: called with each line of warning before the robot is reached.
    """

    bundle: Annotated[Path, Option("the policy, a .kinfer file", positional=True)]
    host: Annotated[str, Option("where the KOS server is")] = "127.0.0.1"
    port: Annotated[int, Option("its port"), Bound(1, 65535, "a port")] = 50051
    duration_s: Annotated[
        float, Option("time to run the policy [s]", flag="--duration", metavar="S"), Bound(0, 86400, "seconds")
    ] = 20.0
    command: Annotated[
        dict[str, float],
        Option("a command, in SI (default 0); repeat it", metavar="NAME=VALUE", read=parse_commands),
    ] = field(default_factory=dict)
    schedule: Annotated[Path | None, Option("commands over time, from a YAML file", metavar="FILE")] = None
    log: Annotated[Path | None, Option("log file, written as the run goes (default run_<time>.mcap here)")] = None
    force: Annotated[bool, Option("replace a log that is there")] = False
    ramp_s: Annotated[
        float,
        Option("time to the home pose, skipped when there [s]", flag="--ramp", metavar="S"),
        Bound(0, 600, "seconds"),
    ] = 3.0
    robot: Annotated[
        str | Path | None,
        Option("compare the bundle with this robot (default: its built-in one)", metavar="NAME|FOLDER"),
    ] = None
    unvalidated: Annotated[bool, Option("run a bundle that was not proven to be its checkpoint")] = False
    gyro_unit: Annotated[Literal["deg/s", "rad/s"], Option("what the server sends")] = "deg/s"
    tilt_max_rad: Annotated[
        float, Option("more tilt is a fall [rad]", flag="--max-tilt", metavar="RAD"), Bound(0, math.pi, "radians")
    ] = 1.0
    base_fixed: Annotated[
        bool, Option("the base cannot move (kos-sim --suspended): its IMU may say the same for ever")
    ] = False
    reset: Annotated[bool, Option("have a simulator pick the robot up first (a robot has no such service)")] = False
    step_lock: Annotated[bool, Option("advance a twin in lock step (ksim twin --lockstep)")] = False
    lost_ticks_max: Annotated[int, Bound(0, 10**6, "ticks")] = 7
    connect_timeout_s: Annotated[float, Bound(0, 600, "seconds")] = 3.0
    late_max: Annotated[
        float,
        Option("the loop may be slower by this share, over a second", flag="--max-late", metavar="SHARE"),
        Bound(0, 1000, "a share"),
    ] = 0.25
    realtime: bool = False
    damp_for_s: Annotated[float, Bound(0, 600, "seconds")] = DAMP_FOR_S
    watchdog_s: Annotated[
        float,
        Option(
            "damp the robot when the loop hangs or hears nothing for so long; 0: never",
            flag="--watchdog",
            metavar="S",
        ),
        Bound(0, 60, "seconds"),
    ] = 0.15
    on_second: Callable[[str], None] | None = field(default=None, metadata={"plain": False})
    on_warning: Callable[[str], None] | None = field(default=None, metadata={"plain": False})
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""

    def check(self) -> None:
        self.require(self.duration_s > 0, "duration_s", self.duration_s, "more than 0")
        self.require(self.tilt_max_rad > 0, "tilt_max_rad", self.tilt_max_rad, "more than 0")
        one = self.schedule is None or not self.command
        self.require(one, "schedule", str(self.schedule), "either --schedule or --command, not both")


@dataclass(frozen=True, kw_only=True)
class RunCommand(RunOptions):
    """The options of `ksim run`: those of a run, and how it is told of."""

    realtime: Annotated[bool, Option("real-time scheduling where the system allows it (default on)")] = True
    json: Annotated[bool, Option("print the report as one JSON object")] = False


@dataclass(frozen=True)
class _End:
    """How a run ended."""

    ended: str
    message: str
    signum: int = 0

    @classmethod
    def by_signal(cls, signum: int) -> _End:
        ended = "interrupted" if signum == signal.SIGINT else "terminated"
        return cls(ended, f"{signal.Signals(signum).name} received", signum)


def _percentile(values: list[float], share: float) -> float | None:
    return None if not values else round(float(np.percentile(values, share)) * 1e3, 4)


def _report(loop: ControlLoop, options: RunOptions, log: Path, damped: bool, end: _End) -> RunReport:
    counts = loop.counts
    timing: dict[str, float | None] = {}
    if not options.step_lock and len(counts.starts) > 1:
        k, scheduled, start = (np.array(column) for column in zip(*counts.starts, strict=True))
        periods = np.diff(start)
        timing = {
            "period_p50_ms": _percentile(periods.tolist(), 50),
            "period_p99_ms": _percentile(periods.tolist(), 99),
            "period_max_ms": _percentile(periods.tolist(), 100),
            "loop_period_error_p99_ms": _percentile(np.abs(periods - np.diff(k) * loop.period_s).tolist(), 99),
            "lateness_p99_ms": _percentile((start - scheduled).tolist(), 99),
        }
    return RunReport(
        ended=end.ended,
        message=end.message,
        damped=damped,
        log=log,
        duration_s=options.duration_s,
        signum=end.signum,
        left_stiff=loop.left_stiff,
        compared="",
        warnings=tuple(counts.warnings),
        survived_s=round(loop.survived_s, 6),
        ticks=counts.ramp_ticks + counts.run_ticks,
        ramp_ticks=counts.ramp_ticks,
        overruns=counts.overruns,
        skipped=counts.skipped,
        lost_states=counts.lost_states,
        lost_commands=counts.lost_commands,
        stale_ticks=counts.stale,
        clamped_ticks=counts.clamped_ticks,
        clamps=dict(counts.clamps),
        period_ms=round(loop.period_s * 1e3, 6),
        **timing,
        state_round_trip_p50_ms=_percentile(counts.state_round_trips, 50),
        state_round_trip_p99_ms=_percentile(counts.state_round_trips, 99),
        command_round_trip_p50_ms=_percentile(counts.command_round_trips, 50),
        command_round_trip_p99_ms=_percentile(counts.command_round_trips, 99),
    )


async def _or_stop(stop: Stop, work: Awaitable[T]) -> T:
    """The result of `work`, or Stopped as soon as a signal asks for the end."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(stop.event.wait())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        stop.check()
        return task.result()
    finally:
        for pending in (task, watch):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError, DeployError):
                    await pending


async def _first_reading(robot: KosRobot, limits: Limits) -> RobotState:
    state = await robot.read(1.0)
    faults = check_start(state, limits)
    if faults:
        raise SafetyError(
            f"the robot may not start: {'; '.join(faults)}; put it right and try again (a simulator: add --reset)"
        )
    return state


def _settings(options: RunOptions, ready: Prepared, schedule: Schedule, realtime: bool) -> dict[str, Any]:
    names = ("ksim2real", "onnxruntime", "grpcio", "numpy")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "bundle": options.bundle.name,
        "bundle_digest": ready.bundle.digest,
        "host": options.host,
        "port": options.port,
        "command": dict(zip(ready.spec.command_names, schedule.at(0.0).tolist(), strict=True)),
        "schedule": schedule.to_list(ready.spec.command_names),
        "duration_s": options.duration_s,
        "ramp_s": options.ramp_s,
        "gyro_unit": options.gyro_unit,
        "step_lock": options.step_lock,
        "tilt_max_rad": options.tilt_max_rad,
        "realtime": realtime,
        "compared_robot": ready.compared,
        "unvalidated": options.unvalidated and ready.bundle.spec is not None and not ready.bundle.spec.validated,
        "started_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "versions": versions,
    }


async def _control(
    options: RunOptions, ready: Prepared, schedule: Schedule, log: Path, stop: Stop, realtime: bool, lock: int
) -> RunReport:
    limits = Limits.from_spec(ready.spec, tilt_max_rad=options.tilt_max_rad)
    accelerometer = any(a.name == "accelerometer" for a in ready.spec.inputs)
    robot = KosRobot(
        ready.spec.robot, options.host, options.port, gyro_unit=options.gyro_unit, accelerometer=accelerometer
    )
    watchdog: Watchdog | None = None
    damped = True
    limit_s = 0.0 if options.step_lock else options.watchdog_s
    try:
        await _or_stop(stop, robot.connect(options.connect_timeout_s))
        if options.reset:
            await _or_stop(stop, robot.reset_simulation())
        if limit_s > 0:
            limit_s = max(limit_s, 3.0 * ready.spec.control_period_s)
            starting = Watchdog.start(ready.spec.robot, options.host, options.port, log, limit_s, lock=lock)
            watchdog = await _or_stop(stop, starting)
        # after all that takes time: the first target is where the robot is now
        first = await _or_stop(stop, _first_reading(robot, limits))
        settings = _settings(options, ready, schedule, realtime)
        recorder = Recorder(log, spec=ready.spec, bundle=ready.data, settings=settings, force=options.force)
        with recorder:
            loop = ControlLoop(
                robot=robot,
                spec=ready.spec,
                policy=ready.policy,
                schedule=schedule,
                limits=limits,
                recorder=recorder,
                stop=stop,
                ramp_s=options.ramp_s,
                duration_s=options.duration_s,
                step_lock=options.step_lock,
                lost_ticks_max=options.lost_ticks_max,
                damp_for_s=options.damp_for_s,
                on_second=options.on_second,
                watchdog=watchdog,
                base_fixed=options.base_fixed,
                late_max=options.late_max,
            )
            loop.counts.warnings += ready.warnings
            if not first.accel_b.any():
                loop.counts.warnings.append(NO_ACCELEROMETER)
            damped = False  # until it is known to be
            report = await _guarded(loop, first, recorder, options, ready.compared)
            damped = report.damped
            return report
    except Stopped as stopped:
        end = _End.by_signal(stopped.signum)
        return RunReport(
            ended=end.ended,
            message=f"{end.message} before the robot was touched",
            damped=True,
            log=None,
            duration_s=options.duration_s,
            signum=end.signum,
        )
    finally:
        if watchdog is not None:
            watchdog.close(damped)
        await robot.close()


async def _guarded(
    loop: ControlLoop, first: RobotState, recorder: Recorder, options: RunOptions, compared: str
) -> RunReport:
    """Run the loop; whatever happens, damp the robot and close the log."""
    end = _End("error", "the run was cancelled")
    try:
        await loop.run(first)
        end = _End("completed", f"{options.duration_s:g} s of the policy")
    except Stopped as stopped:
        end = _End.by_signal(stopped.signum)
    except Fall as error:
        end = _End("fall", str(error))
    except ConnectionLost as error:
        end = _End("lost", str(error))
    except FaultError as error:
        end = _End("fault", str(error))
    except ToolkitError as error:
        end = _End("error", str(error))
    except Exception as error:
        # a full disk, a bug: the robot comes first, and the user gets one line
        end = _End("error", f"{type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        loop.event("end", f"{end.ended}: {end.message}")
        damped = await loop.damp()
        report = _report(loop, options, recorder.path, damped, end)
        report = replace(report, compared=compared)
        result = report.to_json()
        del result["log"]
        try:
            recorder.close(result)
        except OSError as error:
            # what the run did stands, but a log without its end is a failure of its own
            said = f"the log could not be finished ({error.strerror}): it breaks off; make room for it"
            ended = "error" if report.ended == "completed" else report.ended
            report = replace(report, ended=ended, message=f"{report.message}; {said}")
    return report


@contextlib.contextmanager
def _signals(stop: Stop, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP set `stop` while this is open; only a process's main thread may ask for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for signum in SIGNALS:
        loop.add_signal_handler(signum, stop.set, signum)
    try:
        yield
    finally:
        for signum in SIGNALS:
            loop.remove_signal_handler(signum)


@contextlib.contextmanager
def _realtime(wanted: bool) -> Iterator[bool]:
    """Real-time scheduling for this thread and those that gRPC starts from it; whether it was granted.

    Round robin at the lowest real-time priority: before any ordinary process, behind the drivers. It needs
    root, CAP_SYS_NICE or an rtprio limit, so a refusal is normal and no error.
    """
    if not wanted or not hasattr(os, "sched_setscheduler"):
        yield False
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)


def _address(host: str) -> str:
    """The host's numeric address, so that its names are one place; the name where nobody knows it."""
    try:
        return str(socket.getaddrinfo(host, None, family=socket.AF_INET)[0][4][0])
    except OSError:
        return host


def run(options: RunOptions) -> RunReport:
    """Run a policy and report how it went; a run that began is always reported, and the robot left damped.

    Raises:
        ToolkitError: something did not fit before the robot was touched: bundle, robot, command, log, no
            server, a fault or a joint outside its limits.
    """
    log = options.log
    if log is None:
        log = Path(f"run_{datetime.datetime.now():%Y%m%d_%H%M%S}.mcap")
    if log.exists() and not options.force:
        raise LogError(f"log {log}: it exists; expected a new file; name another or add --force")
    if log.exists() and options.bundle.exists() and log.samefile(options.bundle):
        raise LogError(f"log {log}: it is the bundle; expected another file")
    ready = prepare(options.bundle, options.robot, options.command, unvalidated=options.unvalidated)
    schedule = Schedule.constant(ready.command)
    if options.schedule is not None:
        schedule = read_schedule(options.schedule, ready.spec)
    if options.on_warning is not None:
        for line in ready.warnings:
            options.on_warning(line)

    async def session() -> RunReport:
        stop = Stop()
        with _signals(stop, asyncio.get_running_loop()):
            return await _control(options, ready, schedule, log, stop, realtime, lock)

    refusal = f"another run on {options.host}:{options.port} is under way on this machine; end it first"
    alone = only_one(f"run-{_address(options.host)}:{options.port}", refusal)
    # A runner of its own: pykos elsewhere in the process may have replaced asyncio.run.
    with alone as lock, _realtime(options.realtime) as realtime, asyncio.Runner() as runner:
        return runner.run(session())


_DESCRIPTION = """\
Run a policy on a robot over KOS.

Checks the bundle against the robot and replays its self-test, sets the gains of training, goes to the home
pose, compares what it measures there with training, runs the policy at its own rate, clamps every target,
records every tick, and leaves the robot damped (no stiffness, nominal damping) on every way out: time up,
Ctrl-C, SIGTERM, SIGHUP, an error, a lost server, a fall. A damped robot sinks: have it on a gantry, or near
the floor. A bundle that was not proven to be its checkpoint is refused; --unvalidated runs it nevertheless.

Exit code: 0 when the whole duration was run, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 1 for
anything else.
"""


class _StatusLine:
    """The line that tells of a run while it goes on, written by a thread of its own.

    A terminal that takes nothing, after Ctrl-S for example, holds that thread and not the loop.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue(maxsize=1)
        threading.Thread(target=self._write, daemon=True, name="status line").start()

    def __call__(self, line: str) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError):  # the terminal may be gone; the run is not
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command `ksim run`."""
    args = options(
        RunCommand,
        argv,
        "ksim run",
        _DESCRIPTION,
        "ksim run policy.kinfer --host 127.0.0.1 --duration 20 --command xvel=0 --log run.mcap",
    )

    def warn(line: str) -> None:
        print(f"ksim run: warning: {line}", file=sys.stderr, flush=True)

    live = sys.stderr.isatty()
    report = run(replace(args, on_second=_StatusLine() if live else None, on_warning=warn))
    with contextlib.suppress(OSError):
        if live:
            print("\r\x1b[K", end="", file=sys.stderr)
        print(report.summary(), file=sys.stderr if args.json else sys.stdout, flush=True)
    with contextlib.suppress(OSError):  # one of the two may be gone with its terminal
        if args.json:
            print(json.dumps(report.to_json()), flush=True)
        if report.exit_code:
            print(f"ksim run: {report.ended}: {report.message}", file=sys.stderr, flush=True)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(run_verb("run", main, sys.argv[1:]))
