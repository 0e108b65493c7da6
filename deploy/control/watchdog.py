"""The watchdog: a process of its own that damps the robot when the control loop dies, hangs or misses its beat.

The loop starts it before the robot's torque is on, in a session of its own: neither Ctrl-C in the terminal nor the end
of the session reaches it. They share a socket. The loop writes one byte a tick; the watchdog answers some of them, so
that each knows that the other lives. Where the loop's end closes, as after `kill -9`, the watchdog damps at once;
where the beat stops, as after SIGSTOP, when `limit_s` has passed. When it has damped, it closes its end, which ends
the run of a loop that comes back.

What the watchdog did stands in a file beside the log, `NAME.mcap.watchdog.json`: the process that writes the log may
be the one that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from deploy.child import start_child
from deploy.control.machine import OnFault
from deploy.errors import DeployError, FaultError
from deploy.robot.damping import Damping, damp_joints
from deploy.robot.faults import Fault, FaultKind
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, damp, off
from robots.spec import RobotSpec

# What the loop writes: the robot may be stiff from now on; a tick; it damps the robot itself; nothing is left to do;
# it could not damp the robot.
TOUCHED, BEAT, LEAVING, DONE, GIVEN_UP = b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"
# Without a beat: while the loop sets gains before its first tick, and while it damps the robot itself [s].
STARTING_S, LEAVING_S = 2.0, 2.0
# It looks at the time this often; it answers at most this often, and is dead to the loop after this long [s].
LOOK_S, ANSWER_S, SILENT_S = 0.01, 0.1, 2.0
# Gains that the loop had sent before it died may reach the motors this much later [s].
SETTLE_S = 1.0
# A server that restarts is back within seconds, its motors still stiff.
DAMP_FOR_S = 8.0
_NOT_THERE = "its process is gone; a run without it is not allowed to go on"


def note_of(log: Path) -> Path:
    """The file in which the watchdog of a run says what it did, beside the run's log."""
    return log.with_name(f"{log.name}.watchdog.json")


def _gone(why: str) -> FaultError:
    fault = Fault(kind=FaultKind.WATCHDOG, detail=f"watchdog: {why}")
    return FaultError(str(fault), [fault])


class Watchdog:
    """The loop's side of it.

    Attributes:
        limit_s: time without a beat after which the robot is damped [s].
    """

    def __init__(self, process: subprocess.Popen, link: socket.socket, limit_s: float) -> None:
        self._process, self._link, self.limit_s = process, link, limit_s
        self._heard = time.monotonic()

    @classmethod
    async def start(
        cls,
        spec: RobotSpec,
        host: str,
        port: int,
        log: Path,
        limit_s: float,
        *,
        on_fault: OnFault = OnFault.DAMP,
        lock: int | None = None,
        ready_within_s: float = 20.0,
    ) -> Self:
        """Start it and wait until it is ready.

        Args:
            spec: the robot.
            host: where its server is.
            port: the server's port.
            log: of the run; what an earlier watchdog said beside it goes.
            limit_s: time without a beat after which it damps the robot [s].
            on_fault: what it leaves the robot in.
            lock: a file that keeps others from this robot, for the watchdog to hold as long as it lives.
            ready_within_s: how long it may take [s].

        Raises:
            DeployError: it does not come up.
        """
        note = note_of(log.absolute())
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        ours, theirs = socket.socketpair()
        process = start_child("deploy.control.watchdog", theirs, *([] if lock is None else [lock]))
        ours.setblocking(False)
        told = {"robot": spec.to_json(), "host": host, "port": port, "note": str(note), "limit_s": limit_s}
        told["on_fault"] = on_fault.value
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(ours, json.dumps(told).encode() + b"\n")
            answer = await asyncio.wait_for(loop.sock_recv(ours, 64), ready_within_s)
            if not answer:
                raise ConnectionResetError
        except BaseException as error:
            process.kill()
            process.wait()
            ours.close()
            if isinstance(error, (OSError, TimeoutError)):
                raise DeployError(
                    "the watchdog did not come up; the robot was not touched; --watchdog 0 runs without one"
                ) from None
            raise
        return cls(process, ours, limit_s)

    def _send(self, what: bytes) -> None:
        try:
            self._link.send(what)
        except BlockingIOError:
            pass  # it reads nothing any more: `beat` finds it silent
        except OSError as error:
            raise _gone(self._last_words()) from error

    def _last_words(self) -> str:
        said = b""
        with contextlib.suppress(OSError):
            while chunk := self._link.recv(4096):
                said += chunk
        text = said.replace(BEAT, b"").decode(errors="replace").strip()
        return text or _NOT_THERE

    def touched(self) -> None:
        """From now on the robot may be stiff."""
        self._send(TOUCHED)
        self._heard = time.monotonic()

    def beat(self) -> None:
        """The loop lives. Called once a tick.

        Raises:
            FaultError: the watchdog has damped the robot, or does not live itself.
        """
        self._send(BEAT)
        self.check()

    def check(self) -> None:
        """Whether the watchdog lives, and has not damped the robot.

        Raises:
            FaultError: it has, or does not.
        """
        now = time.monotonic()
        try:
            heard = self._link.recv(4096)
        except BlockingIOError:
            if now - self._heard > SILENT_S:
                raise _gone(
                    f"its process has not answered for {now - self._heard:.1f} s; a run without it is not allowed to "
                    "go on"
                ) from None
            return
        except OSError as error:
            raise _gone(self._last_words()) from error
        text = heard.replace(BEAT, b"").decode(errors="replace").strip()
        if not heard or text:
            raise _gone(text or _NOT_THERE)
        self._heard = now

    def leaving(self) -> None:
        """The loop damps the robot itself."""
        with contextlib.suppress(FaultError):
            self._send(LEAVING)

    def close(self, damped: bool) -> None:
        """The run is over; where the robot is not damped, the watchdog goes on trying by itself."""
        with contextlib.suppress(FaultError):
            self._send(DONE if damped else GIVEN_UP)
        self._link.close()
        if not damped:
            return
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:  # it hangs
            self._process.kill()
            self._process.wait()


async def _watch(link: socket.socket) -> None:
    """The watchdog's own side."""
    loop = asyncio.get_running_loop()
    told, rest = await _told(link)
    spec = RobotSpec.from_json(told["robot"])
    robot, limits = KosRobot(spec, told["host"], told["port"], accelerometer=False), Limits.from_spec(spec)
    with contextlib.suppress(DeployError):  # sought again when it is needed
        await robot.connect()
    try:
        await loop.sock_sendall(link, BEAT)
    except OSError:
        return  # nobody wants it any more
    limit, answered, why, setting = 0.0, 0.0, "", False
    coming = asyncio.ensure_future(loop.sock_recv(link, 4096))
    last = time.monotonic()
    while not why:
        await asyncio.wait({coming}, timeout=LOOK_S)
        now = time.monotonic()
        if coming.done():
            try:
                got = rest + coming.result()
            except OSError:
                got = b""
            rest = b""
            if DONE in got or (not got and not limit):
                return
            if not got or GIVEN_UP in got:
                why = "the control loop could not damp the robot" if got else "the control loop died"
                break
            last, setting = now, got[-1:] == TOUCHED
            limit = _limit(got, limit, told["limit_s"])
            if now - answered > ANSWER_S:
                answered = now
                with contextlib.suppress(OSError):
                    link.send(BEAT)
            coming = asyncio.ensure_future(loop.sock_recv(link, 4096))
        elif limit and now - last > limit:
            # it may be this process that was held up: what came meanwhile counts
            await asyncio.wait({coming}, timeout=LOOK_S)
            if coming.done():
                continue
            why = f"no beat of the control loop for {now - last:.2f} s (limit {limit:g} s)"
    coming.cancel()
    with contextlib.suppress(OSError):
        link.send(why.encode())  # before all else: a loop that comes back goes no further
    if told["on_fault"] == OnFault.HOLD:
        result = Damping(joints=0, left=dict.fromkeys(spec.joint_names, "to be held"))
    else:
        gains = off(limits) if told["on_fault"] == OnFault.OFF else damp(limits)
        result = await damp_joints(robot, gains, DAMP_FOR_S, settle_s=SETTLE_S if setting else 0.0)
    silent_s = time.monotonic() - last
    note = {
        "why": why,
        "damped": result.done,
        "left": result.left,
        "took_s": round(result.took_s, 4),
        "after_last_beat_s": round(silent_s, 4),
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    said = f"{why}; {result.message}"
    with contextlib.suppress(OSError):
        Path(told["note"]).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    with contextlib.suppress(OSError):
        print(f"\nksim run: watchdog: {said}", file=sys.stderr, flush=True)
    await robot.close()


def _limit(got: bytes, before: float, limit_s: float) -> float:
    """How long the loop may be silent after what it wrote last."""
    last = got[-1:]
    if last == BEAT:
        return limit_s
    return {TOUCHED: max(STARTING_S, limit_s), LEAVING: max(LEAVING_S, limit_s)}.get(last, before)


async def _told(link: socket.socket) -> tuple[dict[str, Any], bytes]:
    loop, got = asyncio.get_running_loop(), b""
    while b"\n" not in got:
        more = await loop.sock_recv(link, 65536)
        if not more:
            raise SystemExit(0)  # nobody wants it any more
        got += more
    line, _, rest = got.partition(b"\n")
    return json.loads(line), rest


def main() -> int:
    """The process: its argument is the number of its end of the socket."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    link = socket.socket(fileno=int(sys.argv[1]))
    link.setblocking(False)
    os.chdir("/")  # it keeps no folder busy
    with link, asyncio.Runner() as runner:
        runner.run(_watch(link))
    return 0


if __name__ == "__main__":
    sys.exit(main())
