"""A twin, a run on it in a process of its own, a fault, and how long until the robot is limp."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from kos_protos import actuator_pb2, actuator_pb2_grpc

from deploy.errors import LogError
from deploy.log.recorder import read_log
from deploy.twin.server import TwinProcess, spawn_twin
from robots.load import load_robot
from toolkit.files import shipped_policy

from .clock import stepping
from .link import Proxy, link

ROBOT = load_robot("kbot")
# The policy stands for so long before something happens [s].
LEAD_S = 1.0


class TooBusy(RuntimeError):
    """The run was over before its fault: this machine does too much besides."""


class Scene:
    """A twin, and what it tells."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._news = threading.Condition()
        self._told: list[tuple[str, float]] = []
        self._start()

    def _start(self, port: int = 0) -> None:
        self.twin: TwinProcess = self._open.enter_context(spawn_twin("kbot", port=port, fault_input=True))
        threading.Thread(target=self._listen, args=(self.twin.process.stdout,), daemon=True).start()
        self.address = f"{self.twin.host}:{self.twin.port}"
        channel = self._open.enter_context(grpc.insecure_channel(self.address))
        self.stub = actuator_pb2_grpc.ActuatorServiceStub(channel)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _listen(self, lines: Any) -> None:
        for line in lines:
            told = json.loads(line)
            with self._news:
                self._told.append((told["event"], told["monotonic_s"]))
                self._news.notify_all()

    def wait(self, event: str, since: float, within_s: float, unless: Callable[[], bool] = bool) -> float | None:
        """When the twin told of an event since a time; None where it did not, or `unless` became true."""

        def found() -> list[float]:
            return [when for what, when in self._told if what.startswith(event) and when >= since]

        until = time.monotonic() + within_s
        with self._news:
            while not found() and time.monotonic() < until and not unless():
                self._news.wait(0.05)
            return next(iter(found()), None)

    def say(self, line: str, answer: str) -> float:
        """Give the twin a line; when it says it happened."""
        now = time.monotonic()
        assert self.twin.process.stdin is not None
        self.twin.process.stdin.write(line + "\n")
        self.twin.process.stdin.flush()
        when = self.wait(answer, now, 10.0)
        if when is None:
            raise RuntimeError(f"the twin did not take {line!r}: {self._told[-1:]}")
        return when

    def restart(self, after_s: float) -> None:
        """Kill the server and start it again."""
        self.twin.process.kill()
        self.twin.process.wait()
        time.sleep(after_s)
        self._start(self.twin.port)

    def configure(self, ids: Sequence[int], **gains: Any) -> None:
        """What another client would do."""
        for id_ in ids:
            self.stub.ConfigureActuator(
                actuator_pb2.ConfigureActuatorRequest(actuator_id=id_, torque_enabled=True, **gains), timeout=5.0
            )

    def clear(self) -> None:
        """As it was at first: no fault and no stiffness."""
        if self.twin.process.poll() is None:
            self.say("clear", "clear")
            self.configure(ROBOT.joint_ids, kp=0.0, kd=1.0, max_torque=10.0)


@dataclass
class Run:
    """A `ksim run` under way, its twin, and the link between them."""

    scene: Scene
    process: subprocess.Popen[str]
    link: Proxy
    log: Path
    terminal: int
    stiff: float = 0.0
    others: list[subprocess.Popen] = field(default_factory=list)

    def watchdog(self) -> int:
        """Process of the run's watchdog."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"PPid:\t{self.process.pid}\n" in (process / "status").read_text()
                if ours and b"deploy.control.watchdog" in (process / "cmdline").read_bytes():
                    return int(process.name)
        raise RuntimeError("no watchdog runs")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault, and what shall come of it.

    Attributes:
        what: in words.
        make: makes it, and returns when it began if not at once; or the twin's own fault as a line of text.
        ends: ways in which the run may end; empty where its process says nothing.
        says: a pattern that the message holds.
        options: of `ksim run`.
        damped: whether all stiffness goes before the run has had its time; None where it may or may not.
        seconds: the policy's time [s].
        wait_s: how long to wait for the stiffness to go [s].
        policy: makes the bundle in a folder; None takes the shipped standing policy.
        bad_tick: of the policy, where the fault is its own.
        linked: through a proxy.
        terminal: the run has a terminal.
        early: made before the run starts, and counted from its first stiffness.
        stepping: its clock of the day can be stepped.
        fresh: spoils its twin.
        needs: why it cannot be made here; empty where it can.
        note: for the table.
    """

    what: str
    make: Callable[[Run], float | None] | str
    ends: tuple[str, ...] = ("fault",)
    says: str = ""
    options: tuple[str, ...] = ()
    damped: bool | None = True
    seconds: float = 60.0
    wait_s: float = 15.0
    policy: Callable[[Path], Path] | None = None
    bad_tick: int | None = None
    linked: bool = False
    terminal: bool = False
    early: bool = False
    stepping: bool = False
    fresh: bool = False
    needs: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it.

    Attributes:
        ms: from the fault until no joint had any stiffness; None where that did not happen by the run's doing.
        ended_ms: from the fault until the process had ended.
        code: its exit code.
        report: of the run; empty where it gave none.
    """

    ms: float | None
    ended_ms: float
    code: int
    report: dict[str, Any]

    @property
    def ended(self) -> str:
        """How it ended; empty where it said nothing."""
        return self.report.get("ended", "")

    @property
    def said(self) -> str:
        """In the run's words."""
        return self.report.get("message", "")

    @property
    def counts(self) -> str:
        """What a run that went on counted."""
        names = {"lost_states": "reads lost", "lost_commands": "commands lost", "stale_ticks": "stale"}
        names |= {"overruns": "late", "skipped": "skipped"}
        return ", ".join(f"{self.report[key]} {what}" for key, what in names.items() if self.report.get(key)) or "-"


@contextlib.contextmanager
def running(row: Row, scene: Scene, folder: Path, more: Sequence[str], lead_s: float) -> Iterator[Run]:
    """The run of a row, a while after its joints got their stiffness."""
    policy = shipped_policy("stand", ".kinfer") if row.policy is None else row.policy(folder)
    log = folder / "run.mcap"
    with contextlib.ExitStack() as open_:
        proxy = open_.enter_context(link(scene.twin.host, scene.twin.port))
        port = proxy.port if row.linked else scene.twin.port
        words = [sys.executable, "-m", "deploy.control.run", str(policy), "--port", str(port), "--reset", "--json"]
        words += ["--log", str(log), "--duration", f"{row.seconds:g}", *more, *row.options]
        master = slave = None
        if row.terminal:
            master, slave = pty.openpty()
            words = ["setsid", "--ctty", *words]
        if row.early:
            scene.say(str(row.make), "fault")
        began = time.monotonic()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if slave is None else slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if slave is None else slave,
            text=True,
            env=os.environ | (stepping(folder) if row.stepping else {}),
        )
        if slave is not None:
            os.close(slave)
        run = Run(scene, process, proxy, log, -1 if master is None else master)
        try:
            stiff = scene.wait("stiff", began, 60.0, lambda: process.poll() is not None)
            if stiff is not None:
                time.sleep(0.0 if row.early or row.bad_tick is not None else lead_s)
            if stiff is None or scene.wait("limp", stiff, 0.0) is not None:
                said = process.communicate(timeout=20)[0].strip()
                raise TooBusy(f"{row.what}: the run was over before the fault: {said}")
            run.stiff = stiff
            yield run
        finally:
            for child in (process, *run.others):
                child.kill()
                child.wait()


def _bad_tick(run: Run, tick: int) -> float:
    """When a tick of the policy was due, by the run's log.

    The log's clock is tied to the twin's by the event that follows the gains: some milliseconds too early.
    """
    log = read_log(run.log)
    if not log.run.any():
        raise TooBusy("the run ended before the policy began; is the machine busy?")
    homing = next(e["t_s"] for e in log.events if e["kind"] == "phase" and e["message"].endswith("to homing"))
    return run.stiff - homing + float(log.scheduled_s[log.run][0]) + tick * log.spec.control_period_s


def measure(row: Row, scene: Scene, more: Sequence[str] = (), lead_s: float = LEAD_S) -> Result:
    """Make a row's fault and see what comes of it."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        running(row, scene, Path(folder), more, lead_s) as run,
    ):
        process, began = run.process, time.monotonic()
        if row.early or row.bad_tick is not None:
            began = run.stiff
        elif isinstance(row.make, str):
            began = scene.say(row.make, "fault")
        else:
            began = row.make(run) or began
        # a process that has ended was the last to take the stiffness out, but for its watchdog
        limp = scene.wait("limp", began, row.wait_s, lambda: process.poll() not in (None, -9, -3))
        limp = limp or scene.wait("limp", began, 0.2)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        try:
            out, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            out += json.dumps({"ended": "still runs", "message": ""})
        ended = time.monotonic()
        report = json.loads(out.strip().splitlines()[-1]) if out.strip() else {}
        if row.bad_tick is not None:
            with contextlib.suppress(LogError):
                began = _bad_tick(run, row.bad_tick)
            if limp is not None and limp < began:
                raise TooBusy(f"{row.what}: the run was over before the fault: {out.strip()}")
        by_itself = limp is not None and report.get("ended") != "completed"
        return Result(
            ms=1e3 * (limp - began) if by_itself and limp is not None else None,
            ended_ms=1e3 * (ended - began),
            code=process.returncode,
            report=report,
        )
