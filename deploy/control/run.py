"""`ksim run`: a policy on a robot over KOS, every tick recorded, the robot damped on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import queue
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from deploy.bundle.preflight import Prepared, parse_commands, prepare
from deploy.control.commands import LIVE, CommandSource, Schedule, live_kind, open_live, read_schedule
from deploy.control.loop import ControlLoop
from deploy.control.machine import Ended, OnFault, Order, Phase, Plan
from deploy.control.realtime import Granted, realtime
from deploy.control.report import RunReport
from deploy.control.stop import Stop, Stopped
from deploy.control.watchdog import DAMP_FOR_S, Watchdog
from deploy.errors import DeployError, LogError, OptionError, SafetyError
from deploy.log.place import check_place
from deploy.log.recorder import LogProcess, Recorder
from deploy.robot.address import DrivenServer, addressed
from deploy.robot.faults import FaultKind, text_of
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, check_imu, check_start
from deploy.robot.state import RobotState
from deploy.view.run import RunView, viewed
from toolkit.cli import Option, options, run_verb
from toolkit.files import only_one
from toolkit.settings import Bound

T = TypeVar("T")
# SIGHUP comes when the terminal or the connection to the robot's computer is lost
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
TIME_STANDS = (
    "no reading was new since the first: the server's time stands; drive a simulator in lock step (ksim twin "
    "--lockstep) with --step-lock"
)
NO_ACCELEROMETER = (
    "the accelerometer reads 0 on every axis, as a simulator that holds the base fixed has it and no robot; the policy "
    "does not read it"
)


@dataclass(frozen=True, kw_only=True)
class RunOptions(DrivenServer):
    """What to run, where, for how long.

    Attributes:
        bundle: the .kinfer file.
        duration_s: how long the policy runs, after the ramp [s].
        command: command values by name; what is left out is 0, or the end of its range next to 0.
        schedule: a YAML or CSV file of commands over time, in place of `command`.
        command_from: a live source in place of both: "keyboard", "gamepad", "gamepad:DEVICE", "udp" or
            "udp:HOST:PORT"; empty for none.
        log: the log's file; None names one by the time of day in the current folder.
        force: replace a log that is there.
        ramp_s: time from the measured pose to home [s]; none where the pose is home already. 0 starts the policy
            at once from any pose.
        robot: name or folder to check the bundle against; None trusts the bundle.
        base_fixed: the base cannot move, as in a simulator that holds it. An IMU that gives the same values for more
            than seven ticks is otherwise a fault.
        reset: ask a simulator to put the robot at home first; a robot refuses.
        tilt_max_rad: more tilt than this is a fall [rad].
        lost_ticks_max: more ticks in a row without an answer than this end the run; so does a silence that is as long
            as `watchdog_s`.
        connect_timeout_s: how long to wait for the server [s].
        realtime: ask the system for real-time scheduling; goes on without where that is not allowed.
        damp_for_s: how long to try to damp a robot that does not answer [s].
        rest_s: how long the policy is at zero command when the time is up, if it was asked to move [s].
        soften_s: over which the stiffness goes after that [s].
        on_fault: what a fault leaves the robot in: "damp" (no stiffness, nominal damping), "hold" (the last gains and
            target) or "off" (no torque). After a fall, an over-speed or with a hot motor it is damped in any case.
        rate_hz: of the loop, a whole multiple of the policy's: between two steps of the policy the robot is looked at
            and its target sent again; 0 is the policy's own.
        cpu: the one that the loop may use; -1 is any.
        on_second: called about once a second with a line to show.
        unvalidated: run a bundle of ours that was not proven to be its checkpoint.
        on_warning: called with each line of warning before the policy starts; then in a thread of its own.
        view: port of a page on this machine that shows the run, 0 for any; None for no page. A page that is not to be
            had is no reason not to run.
        on_view: called with the line that tells where it is, or why there is none.
        on_robot: called with the line of what was understood of the robot, before it is touched.
    """

    bundle: Annotated[Path, Option("the policy, a .kinfer file", positional=True)]
    duration_s: Annotated[
        float, Option("time to run the policy [s]", flag="--duration", metavar="S"), Bound(0, 86400, "seconds")
    ] = 20.0
    command: Annotated[
        dict[str, float],
        Option("a command, in SI (default 0); repeat it", metavar="NAME=VALUE", read=parse_commands),
    ] = field(default_factory=dict)
    schedule: Annotated[Path | None, Option("commands over time, from a YAML or CSV file", metavar="FILE")] = None
    command_from: Annotated[
        str,
        Option("drive it while it runs: keyboard, gamepad[:DEVICE] or udp[:HOST:PORT]", metavar="SOURCE"),
    ] = ""
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
    tilt_max_rad: Annotated[
        float, Option("more tilt is a fall [rad]", flag="--max-tilt", metavar="RAD"), Bound(0, math.pi, "radians")
    ] = 1.0
    base_fixed: Annotated[
        bool, Option("the base cannot move (kos-sim --suspended): its IMU may say the same for ever")
    ] = False
    reset: Annotated[bool, Option("have a simulator pick the robot up first (a robot has no such service)")] = False
    lost_ticks_max: Annotated[int, Bound(0, 10**6, "ticks")] = 7
    connect_timeout_s: Annotated[float, Bound(0, 600, "seconds")] = 3.0
    rest_s: Annotated[
        float,
        Option("zero command before the end, where it moved [s]", flag="--rest", metavar="S"),
        Bound(0, 60, "seconds"),
    ] = 1.0
    soften_s: Annotated[
        float,
        Option("let the stiffness go over this time at the end [s]", flag="--soften", metavar="S"),
        Bound(0, 60, "seconds"),
    ] = 0.3
    on_fault: Annotated[
        Literal["damp", "hold", "off"],
        Option("what a fault leaves the robot in: limp, its last gains and target, or without torque"),
    ] = "damp"
    rate_hz: Annotated[
        float,
        Option("look at the robot so often, a multiple of the policy's rate (default: the policy's)", flag="--rate"),
        Bound(0, 1000, "hertz"),
    ] = 0.0
    cpu: Annotated[int, Option("the processor that the loop keeps to (default: any)"), Bound(-1, 4096, "a number")] = -1
    realtime: bool = False
    damp_for_s: Annotated[float, Bound(0, 600, "seconds")] = DAMP_FOR_S
    view: Annotated[
        int | None,
        Option("show the run in a browser on this machine, at port 8080 or this one", metavar="PORT", bare=8080),
        Bound(0, 65535, "a port"),
    ] = None
    on_view: Callable[[str], None] | None = field(default=None, metadata={"plain": False})
    on_robot: Callable[[str], None] | None = field(default=None, metadata={"plain": False})
    on_second: Callable[[str], None] | None = field(default=None, metadata={"plain": False})
    on_warning: Callable[[str], None] | None = field(default=None, metadata={"plain": False})

    def check(self) -> None:
        self.require(self.duration_s > 0, "duration_s", self.duration_s, "more than 0")
        self.require(self.tilt_max_rad > 0, "tilt_max_rad", self.tilt_max_rad, "more than 0")
        one = self.schedule is None or not self.command
        self.require(one, "schedule", str(self.schedule), "either --schedule or --command, not both")
        source = self.command_from
        self.require(not source or bool(live_kind(source)), "command_from", source, f"one of {', '.join(LIVE)}")
        one = not source or (self.schedule is None and not self.command)
        self.require(one, "command_from", source, "either it, --schedule or --command, not two of them")


@dataclass(frozen=True, kw_only=True)
class RunCommand(RunOptions):
    """The options of `ksim run`: those of a run, and how it is told of."""

    realtime: Annotated[bool, Option("real-time scheduling where the system allows it (default on)")] = True
    json: Annotated[bool, Option("print the report as one JSON object")] = False


def _report(loop: ControlLoop, options: RunOptions, log: Path, damped: bool, granted: Granted) -> RunReport:
    counts, machine = loop.counts, loop.machine
    ticks = counts.ramp_ticks + counts.run_ticks + counts.stop_ticks
    # not one reading was new since the first: no sensor does that
    stands = counts.stale == ticks and any(f.kind is FaultKind.STALE for f in machine.faults) and not options.step_lock
    left = "damped" if damped else "unknown"
    if machine.order is Order.HOLD:
        left = "held"
    elif damped and machine.phase is Phase.DAMPED and loop.off:
        left = "off"
    return RunReport(
        ended=machine.ended or Ended.ERROR,
        message=f"{machine.message}; {TIME_STANDS}" if stands else machine.message,
        damped=damped,
        log=log,
        duration_s=options.duration_s,
        left_stiff=loop.left_stiff,
        warnings=tuple(counts.warnings),
        survived_s=round(loop.survived_s, 6),
        ticks=ticks,
        ramp_ticks=counts.ramp_ticks,
        stop_ticks=counts.stop_ticks,
        overruns=counts.overruns,
        lost_states=counts.lost_states,
        lost_commands=counts.lost_commands,
        stale_ticks=counts.stale,
        clamped_ticks=counts.clamped_ticks,
        clamps=dict(counts.clamps),
        faults=machine.faults,
        left=left,
        gyro="" if options.step_lock else loop.gyro,
        granted=granted,
        timing=counts.times.timing(loop.period_s, simulated=options.step_lock),
    )


async def or_stop(stop: Stop, work: Awaitable[T]) -> T:
    """The result of `work`, or Stopped as soon as a signal asks for the end."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(stop.event.wait())
    try:
        while not (await asyncio.wait({task, watch}, timeout=0.05, return_when=asyncio.FIRST_COMPLETED))[0]:
            stop.check()  # the source of commands has no event
        stop.check()
        return task.result()
    finally:
        for pending in (task, watch):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError, DeployError):
                    await pending


async def _first_reading(robot: KosRobot, limits: Limits, accelerometer: bool) -> RobotState:
    state = await robot.read(1.0)
    faults = check_start(state, limits) + check_imu(state, accelerometer)
    if faults:
        raise SafetyError(
            f"the robot may not start: {text_of(faults, 20)}; put it right and try again (a simulator: add --reset)"
        )
    return state


def _settings(
    options: RunOptions, ready: Prepared, commands: CommandSource, granted: Granted, robot: KosRobot
) -> dict[str, Any]:
    names = ("ksim2real", "onnxruntime", "grpcio", "numpy")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    # a live source begins at rest, and what it asks for is in each tick
    schedule = commands if isinstance(commands, Schedule) else Schedule.constant(ready.command)
    return {
        "bundle": options.bundle.name,
        "bundle_digest": ready.bundle.digest,
        "host": options.host,
        "port": options.port,
        "command": dict(zip(ready.spec.command_names, schedule.at(0.0).tolist(), strict=True)),
        "schedule": schedule.to_list(ready.spec.command_names),
        "command_source": commands.kind,
        "duration_s": options.duration_s,
        "ramp_s": options.ramp_s,
        "server": robot.dialect.name,
        "gyro_unit": robot.gyro_unit,
        "step_lock": options.step_lock,
        "tilt_max_rad": options.tilt_max_rad,
        "realtime": asdict(granted),
        "compared_robot": ready.compared,
        "unvalidated": options.unvalidated and ready.bundle.spec is not None and not ready.bundle.spec.validated,
        "started_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "versions": versions,
    }


def _ticks_a_step(rate_hz: float, step_s: float) -> int:
    """Ticks of the loop for each step of the policy."""
    every = rate_hz * step_s if rate_hz else 1.0
    if abs(every - round(every)) > 1e-6 or round(every) < 1:
        raise OptionError(
            f"--rate {rate_hz:g}: the policy has {1.0 / step_s:g} steps a second; expected a whole multiple of that"
        )
    return round(every)


async def _control(
    options: RunOptions,
    ready: Prepared,
    commands: CommandSource,
    log: Path,
    stop: Stop,
    granted: Granted,
    lock: int,
    view: RunView | None,
) -> RunReport:
    limits = Limits.from_spec(ready.spec, tilt_max_rad=options.tilt_max_rad)
    accelerometer = any(a.name == "accelerometer" for a in ready.spec.inputs)
    robot = KosRobot(
        ready.spec.robot, options.host, options.port, gyro_unit=options.gyro_unit, accelerometer=accelerometer
    )
    watchdog: Watchdog | None = None
    writer: LogProcess | None = None
    damped = True
    limit_s = 0.0 if options.step_lock else options.watchdog_s
    every = _ticks_a_step(options.rate_hz, ready.spec.control_period_s)
    try:
        await or_stop(stop, robot.connect(options.connect_timeout_s))
        server = await or_stop(stop, robot.identify(options.server, max(1.0, options.connect_timeout_s)))
        if options.reset:
            await or_stop(stop, robot.reset_simulation())
        writer = LogProcess()
        if limit_s > 0:
            limit_s = max(limit_s, 3.0 * ready.spec.control_period_s)
            on_fault = OnFault(options.on_fault)
            starting = Watchdog.start(
                ready.spec.robot, options.host, options.port, log, limit_s, on_fault=on_fault, lock=lock
            )
            watchdog = await or_stop(stop, starting)
        # after all that takes time: the first target is where the robot is now
        first = await or_stop(stop, _first_reading(robot, limits, accelerometer))
        if options.on_robot is not None:
            options.on_robot(ready.understood)
        settings = _settings(options, ready, commands, granted, robot)
        recorder = Recorder(
            log,
            spec=ready.spec,
            bundle=ready.data,
            settings=settings,
            force=options.force,
            patient=options.step_lock,
            process=writer,
        )
        with recorder:
            loop = ControlLoop(
                robot=robot,
                spec=ready.spec,
                policy=ready.policy,
                commands=commands,
                limits=limits,
                recorder=recorder,
                stop=stop,
                plan=Plan(
                    ramp_s=options.ramp_s,
                    run_s=options.duration_s,
                    rest_s=options.rest_s,
                    soften_s=options.soften_s,
                    on_fault=OnFault(options.on_fault),
                ),
                step_lock=options.step_lock,
                lost_ticks_max=options.lost_ticks_max,
                damp_for_s=options.damp_for_s,
                on_second=options.on_second,
                watchdog=watchdog,
                base_fixed=options.base_fixed,
                late_max=options.late_max,
                every=every,
                on_warning=options.on_warning,
                view=view,
            )
            loop.counts.warnings += ready.warnings
            if not first.accel_b.any():
                loop.counts.warnings.append(NO_ACCELEROMETER)
            damped = False  # until it is known to be
            report = await _guarded(loop, first, recorder, options, granted, watchdog)
            signum = stop.signum if report.ended == stop.ended else 0
            report = replace(report, server=server, compared=ready.compared, signum=signum)
            damped = report.damped or report.left == "held"
            return report
    except Stopped as stopped:
        return RunReport(
            ended=stopped.ended,
            message=f"{stopped.why} before the robot was touched",
            damped=True,
            log=None,
            duration_s=options.duration_s,
            signum=stopped.signum,
        )
    finally:
        if watchdog is not None:
            watchdog.close(damped)
        if writer is not None:
            writer.close()
        await robot.close()


async def _guarded(
    loop: ControlLoop,
    first: RobotState,
    recorder: Recorder,
    options: RunOptions,
    granted: Granted,
    watchdog: Watchdog | None,
) -> RunReport:
    """Run the loop; whatever happens, leave the robot safe and close the log."""
    try:
        await loop.run(first)
    finally:
        damped = await loop.finish()
        report = _report(loop, options, recorder.path, damped, granted)
        loop.event("end", f"{report.ended}: {report.message}")
        result = report.to_json()
        del result["log"]
        try:
            recorder.close(result, None if watchdog is None else watchdog.leaving)
        except LogError as error:
            # what the run did stands, but a log without its end is a failure of its own
            ended = Ended.ERROR if report.ended is Ended.COMPLETED else report.ended
            report = replace(report, ended=ended, message=f"{report.message}; {error}")
    return report


@contextlib.contextmanager
def signals(stop: Stop, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP set `stop` while this is open; only a process's main thread may ask for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(signum: int, frame: object) -> None:
        ended = Ended.INTERRUPTED if signum == signal.SIGINT else Ended.TERMINATED
        with contextlib.suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(
                functools.partial(stop.set, ended, f"{signal.Signals(signum).name} received", signum=signum)
            )

    before = {signum: signal.signal(signum, tell) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _ours(family: int, address: tuple[Any, ...]) -> bool:
    """Whether an address is one of this machine's: only then can it be listened on."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def alone(host: str, port: int) -> contextlib.AbstractContextManager[int]:
    """Keeps others on this machine from the robot while it is open: see `only_one`."""
    address = host
    with contextlib.suppress(OSError, ValueError):  # a numeric address, so that its names are one place
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        found.sort(key=lambda info: info[0] != socket.AF_INET)
        ours = any(_ours(info[0], info[4]) for info in found)  # this machine has many addresses
        address = "127.0.0.1" if ours else str(found[0][4][0])
    refusal = f"another run on {host}:{port} is under way on this machine; end it first"
    return only_one(f"run-{address}:{port}", refusal)


def run(options: RunOptions) -> RunReport:
    """Run a policy and report how it went; a run that began is always reported, and the robot left damped.

    Raises:
        ToolkitError: something did not fit before the robot was touched: bundle, robot, command, log, no
            server, a fault or a joint outside its limits.
        ModuleNotFoundError: evdev is not installed, for a gamepad.
    """
    log = options.log
    if log is None:
        log = Path(f"run_{datetime.datetime.now():%Y%m%d_%H%M%S}.mcap")
    check_place(log)
    if log.exists() and not options.force:
        raise LogError(f"log {log}: it exists; expected a new file; name another or add --force")
    if log.exists() and options.bundle.exists() and log.samefile(options.bundle):
        raise LogError(f"log {log}: it is the bundle; expected another file")
    ready = prepare(options.bundle, options.robot, options.command, unvalidated=options.unvalidated)
    commands: CommandSource = Schedule.constant(ready.command)
    if options.schedule is not None:
        commands = read_schedule(options.schedule, ready.spec)
    if options.on_warning is not None:
        for line in ready.warnings:
            options.on_warning(line)
    return carry_out(options, ready, commands, log)


def carry_out(options: RunOptions, ready: Prepared, commands: CommandSource, log: Path) -> RunReport:
    """Run what was prepared: the part of `run` that touches the robot.

    Args:
        options: of the run; what they say of the bundle and its commands has been done.
        ready: the policy, or what stands in for one.
        commands: of the run, but for a live source.
        log: to write.
    """
    # A runner of its own: pykos elsewhere in the process may have replaced asyncio.run. And a thread of its own, so
    # that signals, the status line and whoever calls this do not share the loop's.
    showing = viewed(options.view, ready.spec, options.robot, f"ksim run: {options.bundle.name}", options.on_view)
    with (
        alone(options.host, options.port) as lock,
        showing as view,
        asyncio.Runner() as runner,
        ThreadPoolExecutor(1, "control") as thread,
    ):
        if options.command_from:
            commands = live = open_live(options.command_from, ready.spec)
            if live.warning and options.on_warning is not None:
                options.on_warning(live.warning)
        stop = Stop(source=commands)

        def control() -> RunReport:
            with realtime(options.realtime, None if options.cpu < 0 else options.cpu) as granted:
                return runner.run(_control(options, ready, commands, log, stop, granted, lock, view))

        with contextlib.closing(commands), signals(stop, runner.get_loop()):
            return thread.submit(control).result()


_DESCRIPTION = """\
Run a policy on a robot over KOS.

Checks the bundle against the robot and replays its self-test, sets the gains of training, goes to the home
pose, compares what it measures there with training, runs the policy at its own rate, clamps every target,
records every tick, and leaves the robot damped (no stiffness, nominal damping) on every way out: time up,
Ctrl-C, SIGTERM, SIGHUP, an error, a lost server, a fall. A damped robot sinks: have it on a gantry, or near
the floor. A bundle that was not proven to be its checkpoint is refused; --unvalidated runs it nevertheless.

--command-from keyboard: w/s xvel, a/d yvel, q/e yawrate, 0 all to zero; space stops the run at once, backspace gently.
A gamepad: left stick xvel and yvel, right stick yawrate; B stops at once, START gently. udp: JSON datagrams by name, on
127.0.0.1:10000 unless told otherwise. A source that falls silent for 0.5 s is taken as zero.

Exit code: 0 when the whole duration was run, or a key or the gamepad stopped it; 130 after Ctrl-C, 143 after SIGTERM,
129 after SIGHUP, 1 for anything else.
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
    args = addressed(args)

    def show(line: str) -> None:
        with contextlib.suppress(OSError):  # what cannot be told is no reason not to run
            print(f"ksim run: {line}", file=sys.stderr, flush=True)

    def warn(line: str) -> None:
        show(f"warning: {line}")

    live = sys.stderr.isatty()
    report = run(replace(args, on_second=_StatusLine() if live else None, on_warning=warn, on_view=show, on_robot=show))
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
