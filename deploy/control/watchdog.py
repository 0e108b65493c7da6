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

from deploy.errors import DeployError, FaultError
from deploy.robot.damping import damp_joints
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, damp
from robots.spec import RobotSpec

# What the loop writes: the robot may be stiff from now on; a tick; it damps the robot itself; nothing is left to do.
TOUCHED, BEAT, LEAVING, DONE = b"\x01", b"\x02", b"\x03", b"\x04"
# Without a beat: while the loop sets gains before its first tick, and while it damps the robot itself [s].
STARTING_S, LEAVING_S = 2.0, 2.0
# It looks at the time this often; it answers every so many beats, and is dead to the loop after this long [s].
LOOK_S, ANSWER_EVERY, SILENT_S = 0.01, 10, 2.0
DAMP_FOR_S = 8.0


def note_of(log: Path) -> Path:
    """The file in which the watchdog of a run says what it did, beside the run's log."""
    return log.with_name(f"{log.name}.watchdog.json")


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
        cls, spec: RobotSpec, host: str, port: int, log: Path, limit_s: float, ready_within_s: float = 20.0
    ) -> Self:
        """Start it and wait until it is ready.

        Raises:
            DeployError: it does not come up.
        """
        if os.name == "nt":
            raise DeployError("the watchdog needs a Unix; on Windows: --watchdog 0, and somebody at the power switch")
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "deploy.control.watchdog", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.setblocking(False)
        told = {
            "robot": spec.to_json(),
            "host": host,
            "port": port,
            "note": str(note_of(log.absolute())),
            "limit_s": limit_s,
        }
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(ours, json.dumps(told).encode() + b"\n")
            answer = await asyncio.wait_for(loop.sock_recv(ours, 64), ready_within_s)
        except (OSError, TimeoutError):
            answer = b""
        if not answer:
            process.kill()
            process.wait()
            ours.close()
            raise DeployError("the watchdog did not come up; the robot was not touched; --watchdog 0 runs without one")
        return cls(process, ours, limit_s)

    def _send(self, what: bytes) -> None:
        try:
            self._link.send(what)
        except BlockingIOError:
            pass  # it reads nothing any more: `beat` finds it silent
        except OSError as error:
            raise FaultError(f"watchdog: {self._last_words()}") from error

    def _last_words(self) -> str:
        said = b""
        with contextlib.suppress(OSError):
            while chunk := self._link.recv(4096):
                said += chunk
        text = said.replace(BEAT, b"").decode(errors="replace").strip()
        return text or "its process is gone; a run without it is not allowed to go on"

    def touched(self) -> None:
        """From now on the robot may be stiff."""
        self._send(TOUCHED)

    def beat(self) -> None:
        """The loop lives. Called once a tick.

        Raises:
            FaultError: the watchdog has damped the robot, or does not live itself.
        """
        self._send(BEAT)
        now = time.monotonic()
        try:
            heard = self._link.recv(4096)
        except BlockingIOError:
            if now - self._heard > SILENT_S:
                raise FaultError(
                    f"watchdog: its process has not answered for {now - self._heard:.1f} s; "
                    "a run without it is not allowed to go on"
                ) from None
            return
        except OSError as error:
            raise FaultError(f"watchdog: {self._last_words()}") from error
        text = heard.replace(BEAT, b"").decode(errors="replace").strip()
        if not heard or text:
            raise FaultError(f"watchdog: {text or 'its process is gone; a run without it is not allowed to go on'}")
        self._heard = now

    def leaving(self) -> None:
        """The loop damps the robot itself."""
        with contextlib.suppress(FaultError):
            self._send(LEAVING)

    def close(self, damped: bool) -> None:
        """The run is over; where the robot is not damped, the watchdog goes on trying."""
        if damped:
            with contextlib.suppress(FaultError):
                self._send(DONE)
        self._link.close()
        try:
            self._process.wait(1.0 if damped else DAMP_FOR_S + 2.0)
        except subprocess.TimeoutExpired:  # it hangs
            self._process.kill()
            self._process.wait()


async def _watch(link: socket.socket) -> None:
    """The watchdog's own side."""
    loop = asyncio.get_running_loop()
    told, rest = await _told(link)
    spec = RobotSpec.from_json(told["robot"])
    robot, gains = KosRobot(spec, told["host"], told["port"], accelerometer=False), damp(Limits.from_spec(spec))
    with contextlib.suppress(DeployError):  # sought again when it is needed
        await robot.connect()
    await loop.sock_sendall(link, BEAT)
    limit, beats, why = 0.0, 0, ""
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
            if not got:
                why = "the control loop died"
                break
            last = now
            limit = _limit(got, limit, told["limit_s"])
            if beats // ANSWER_EVERY != (beats + len(got)) // ANSWER_EVERY:
                with contextlib.suppress(OSError):
                    link.send(BEAT)
            beats += len(got)
            coming = asyncio.ensure_future(loop.sock_recv(link, 4096))
        elif limit and now - last > limit:
            # it may be this process that was held up: what came meanwhile counts
            await asyncio.wait({coming}, timeout=LOOK_S)
            if coming.done():
                continue
            why = f"no beat of the control loop for {now - last:.2f} s (limit {limit:g} s)"
    coming.cancel()
    result = await damp_joints(robot, gains, DAMP_FOR_S)
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
        link.send(said.encode())
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
