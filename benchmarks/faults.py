"""Faults made for real in `ksim run` on the K-Bot's twin: how long until no joint has any stiffness left.

Run: python benchmarks/faults.py [--runs 3] [--markdown docs/faults.md]

Each row starts a twin and `ksim run` with the shipped standing policy, in processes of their own and in real time; lets
the policy run for a second; makes the fault; and asks the twin every few milliseconds, through a client of its own,
whether kp is 0 on every joint. So a figure is up to one such question (about 3 ms) too high. Nothing else should run on
the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from kos_protos import actuator_pb2, actuator_pb2_grpc

from deploy.twin.server import TwinProcess, spawn_twin
from robots.load import load_robot

ROOT = Path(__file__).parent.parent
POLICY = ROOT / "robots" / "kbot" / "policies" / "stand.kinfer"
GIVE_UP_S = 15.0


@dataclass
class Run:
    """A twin, a run on it, and a client that looks."""

    twin: TwinProcess
    process: subprocess.Popen
    stub: actuator_pb2_grpc.ActuatorServiceStub
    ids: list[int]

    def gains(self) -> list[float]:
        answer = self.stub.GetActuatorsState(actuator_pb2.GetActuatorsStateRequest(actuator_ids=self.ids), timeout=5.0)
        return [state.kp for state in answer.states]

    def watchdog(self) -> int:
        """Process of the run's watchdog."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"deploy.control.watchdog" in (process / "cmdline").read_bytes():
                    return int(process.name)
        raise RuntimeError("no watchdog runs")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


@contextlib.contextmanager
def running(*more: str) -> Iterator[Run]:
    ids = list(load_robot("kbot").joint_ids)
    with tempfile.TemporaryDirectory() as folder, spawn_twin("kbot") as twin:
        words = ["--host", twin.host, "--port", str(twin.port), "--duration", "60", "--log", f"{folder}/run.mcap"]
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.control.run", str(POLICY), *words, "--json", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with grpc.insecure_channel(f"{twin.host}:{twin.port}") as channel:
            run = Run(twin, process, actuator_pb2_grpc.ActuatorServiceStub(channel), ids)
            try:
                began = time.monotonic()
                while not all(run.gains()):
                    if time.monotonic() - began > 60 or process.poll() is not None:
                        raise RuntimeError("the run did not begin")
                    time.sleep(0.05)
                time.sleep(1.0)
                yield run
            finally:
                process.kill()
                process.wait()


def kill_watchdog(run: Run) -> None:
    os.kill(run.watchdog(), signal.SIGKILL)


def stop_watchdog(run: Run) -> None:
    os.kill(run.watchdog(), signal.SIGSTOP)


def freeze_server(run: Run) -> None:
    run.twin.process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    run.twin.process.send_signal(signal.SIGCONT)


def other_gains(run: Run) -> None:
    request = actuator_pb2.ConfigureActuatorRequest(
        actuator_id=run.ids[0], kp=20.0, kd=1.0, max_torque=10.0, torque_enabled=True
    )
    run.stub.ConfigureActuator(request)


def damp_verb(run: Run) -> None:
    words = ["--host", run.twin.host, "--port", str(run.twin.port)]
    subprocess.run([sys.executable, "-m", "deploy.control.damp", *words], check=True, stdout=subprocess.DEVNULL)


def sends(number: int) -> Callable[[Run], None]:
    return lambda run: run.signal(number)


# (what happens, how it is made, options of ksim run)
FAULTS: list[tuple[str, Callable[[Run], None], tuple[str, ...]]] = [
    ("Ctrl-C (SIGINT)", sends(signal.SIGINT), ()),
    ("SIGTERM", sends(signal.SIGTERM), ()),
    ("terminal closed (SIGHUP)", sends(signal.SIGHUP), ()),
    ("Ctrl-\\ (SIGQUIT)", sends(signal.SIGQUIT), ()),
    ("loop killed (kill -9)", sends(signal.SIGKILL), ()),
    ("loop killed, with --watchdog 0", sends(signal.SIGKILL), ("--watchdog", "0")),
    ("loop hangs (SIGSTOP, as Ctrl-Z)", sends(signal.SIGSTOP), ()),
    ("watchdog killed", kill_watchdog, ()),
    ("watchdog hangs (SIGSTOP)", stop_watchdog, ()),
    ("server frozen for 1 s; counted from when it goes on", freeze_server, ()),
    ("another client changes a joint's gains", other_gains, ()),
    ("ksim damp while a run goes on; counted from when it ended", damp_verb, ()),
]


def measure(what: str, make: Callable[[Run], None], more: tuple[str, ...]) -> dict:
    with running(*more) as run:
        began = time.monotonic()
        make(run)
        if make in (freeze_server, damp_verb):
            began = time.monotonic()
        took = None
        while time.monotonic() - began < GIVE_UP_S:
            if not any(run.gains()):
                took = time.monotonic() - began
                break
            time.sleep(0.001)
        run.signal(signal.SIGCONT)
        ended, said = "", ""
        try:
            out, _ = run.process.communicate(timeout=15)
            if out.strip():
                report = json.loads(out.strip().splitlines()[-1])
                ended, said = report["ended"], report["message"]
        except subprocess.TimeoutExpired:
            ended = "still runs"
        code = run.process.poll()
        return {"what": what, "ms": None if took is None else 1e3 * took, "exit": code, "ended": ended, "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its two marks")
    args = parser.parse_args()
    # a shell that starts this script in the background has it, and what it starts, ignore these
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    lines = [
        "| fault | ms until kp is 0 on every joint: median (greatest) | exit code | the run said |",
        "|---|---|---|---|",
    ]
    for what, make, more in FAULTS:
        if args.only not in what:
            continue
        rows = [measure(what, make, more) for _ in range(args.runs)]
        times = [row["ms"] for row in rows if row["ms"] is not None]
        figure = f"{statistics.median(times):.0f} ({max(times):.0f})" if times else f"not within {GIVE_UP_S:.0f} s"
        if times and len(times) < len(rows):
            figure += f", {len(rows) - len(times)} of {len(rows)} not"
        last = rows[-1]
        said = f"{last['ended']}: {last['said']}" if last["ended"] else "nothing"
        lines.append(f"| {what} | {figure} | {last['exit']} | {said} |")
        print(lines[-1], flush=True)
    if args.markdown is not None:
        text = args.markdown.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end of table -->")
        table = "\n".join(lines)
        args.markdown.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
