"""The twin: a KOS server over MuJoCo, with the K-Bot server's manners and a reality of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import grpc
import grpc.aio
import numpy as np

from deploy.errors import DeployError
from deploy.robot.address import addressed
from deploy.twin.calibrated import read_reality
from deploy.twin.faults import Faults, faults_help, parse_fault
from deploy.twin.manners import Aborted, calls_as, services_as
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality
from deploy.twin.view import TwinView
from robots.understood import understood
from toolkit.cli import Option, describe, options, run_verb
from toolkit.files import atomic_path
from toolkit.settings import Bound, Settings

# How often physics catches up when nobody asks; a call catches up by itself first.
TICK_S = 0.004


class TwinError(DeployError):
    """The twin cannot start, or could not be started."""


def _bytes_of(message: Any) -> bytes:
    return message.SerializeToString()


def _port_taken(host: str, port: int, why: str) -> str:
    return f"port {port} on {host}: {why}; stop what uses it, or choose another --port (0 picks a free one)"


def _check_port(host: str, port: int) -> None:
    """Asked first, because gRPC tells of a port in use in lines of its own on standard error."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise TwinError(_port_taken(host, port, error.strerror or str(error))) from None
    except UnicodeError:  # a label that is empty, or longer than a name may have
        raise TwinError(f"--host: got {host!r:.300}, expected an address or the name of this machine") from None


def _check_truth(path: Path) -> None:
    """Asked at the start: what really happened is not to be lost to a slip of the pen at the end."""
    if path.is_dir():
        raise TwinError(f"--truth {path}: is a folder; expected a file name ending in .npz; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise TwinError(f"--truth {path}: {describe(error)}") from None


@dataclass(frozen=True, kw_only=True)
class _Fate:
    """What the network does to one call."""

    fail: bool
    stall_s: float


class _Network:
    """Draws each call's fate from a stream of its own kind, so that the order between kinds does not matter."""

    def __init__(self, reality: Reality, seed: int) -> None:
        self.settings = reality.network
        self.seed = seed
        self._streams: dict[str, np.random.Generator] = {}

    def fate(self, call: str) -> _Fate | None:
        s = self.settings
        if not (s.fail or s.stall):
            return None
        if call not in self._streams:
            self._streams[call] = np.random.default_rng([self.seed, *call.encode()])
        fail, stall = self._streams[call].random(2)
        return _Fate(fail=bool(fail < s.fail), stall_s=s.stall_s if stall < s.stall else 0.0)


class Twin:
    """A twin in this process: physics and the server share one thread, so nothing is ever half a step old.

    Physics is brought to the present whenever a call arrives, and every `TICK_S` in between: no lock, no second
    thread that holds the interpreter while a client waits.

    Args:
        robot: a built-in robot's name or a robot folder.
        reality: how it differs from nominal.
        host: address to listen on.
        port: 0 picks a free one.
        seed: of noise, losses and pushes.
        lockstep: time advances through SimulationService.Step only.
        start: "home" or "hang", see `Plant`.
        server: whose manners it has, see deploy/robot/dialects.py.
        faults: lines of text, see `deploy.twin.faults`.
        tell: called with what happens, in words, and its monotonic time [s].
    """

    def __init__(
        self,
        robot: str | Path = "kbot",
        reality: Reality | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        lockstep: bool = False,
        start: str = "home",
        server: str = "twin",
        faults: Sequence[str] = (),
        tell: Callable[[str, float], None] | None = None,
    ) -> None:
        self.plant = Plant(robot, reality, seed=seed, start=start)
        wanted = [parse_fault(line, self.plant.spec) for line in faults]
        self._tell = tell or (lambda what, when: None)
        self.faults = Faults(self.plant, wanted, lambda fault, when: self._tell(f"fault {fault.kind}", when))
        done = lambda what: self._tell(what, time.monotonic())  # noqa: E731
        self.services = services_as(server, self.plant, lockstep, self.faults, done)
        self._calls = calls_as(server)
        self.host, self.port = host, port
        self.view: TwinView | None = None
        self._network = _Network(self.plant.reality, seed)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None

    def _handler(self, service: str, call: str) -> Callable[[Any, grpc.aio.ServicerContext], Any]:
        answer = getattr(self.services, call)
        spared = service == "kos.sim.SimulationService"

        async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
            if not spared and (fate := self._network.fate(call)) is not None:
                if fate.stall_s:
                    await asyncio.sleep(fate.stall_s)
                if fate.fail:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the twin's reality lost this call")
            if not spared and await self.faults.hold(call):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "a fault of the twin lost this call")
            self.services.catch_up()
            try:
                return answer(request)
            except Aborted as aborted:
                await context.abort(aborted.code, aborted.detail)

        return handle

    def hear(self, line: str) -> None:
        """A fault that begins while it serves, or "clear"; on the thread that serves."""
        try:
            if line.strip() == "clear":
                self.services.clear_faults()
                self._tell("clear", time.monotonic())
            elif line.strip():
                self.faults.add(parse_fault(line.strip(), self.plant.spec))
                self.services.catch_up()
        except DeployError as error:
            self._tell(f"refused: {error}", time.monotonic())

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Serve until `stop` is set; `ready` is called once the port answers.

        Raises:
            TwinError: the port cannot be had.
        """
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for service, calls in self._calls.items():
            methods = {
                call: grpc.unary_unary_rpc_method_handler(
                    self._handler(service, call),
                    request_deserializer=request.FromString,
                    response_serializer=_bytes_of,
                )
                for call, request in calls.items()
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        _check_port(self.host, self.port)
        try:
            self.port = server.add_insecure_port(f"{self.host}:{self.port}")
        except RuntimeError:
            raise TwinError(_port_taken(self.host, self.port, "gRPC cannot bind it")) from None
        await server.start()
        self.services.start()
        ready()
        due = time.monotonic()
        try:
            while not stop.is_set():
                self.services.catch_up()
                if self.view is not None:
                    self.view.look()
                due = max(due + TICK_S, time.monotonic())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), due - time.monotonic())
        finally:
            await server.stop(0.2)

    def start(self) -> int:
        """Serve on a thread of this process; returns the port.

        Raises:
            TwinError: the port cannot be had.
        """
        ready = threading.Event()

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await self.serve(ready.set, self._stop)

        def run() -> None:
            try:
                asyncio.run(main())
            except BaseException as error:
                self._failure = error
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="twin", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self.port

    def stop(self) -> None:
        """Stop serving; a second call does nothing."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Twin:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write_truth(self, path: str | Path) -> None:
        """Write what really happened, see `Plant.truth`, as .npz."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **self.plant.truth())  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class TwinProcess:
    """A twin in a process of its own.

    Attributes:
        host: its address.
        port: its port.
        process: the process; its standard error is not captured.
    """

    host: str
    port: int
    process: subprocess.Popen[str]


@contextlib.contextmanager
def spawn_twin(
    robot: str | Path = "kbot",
    *,
    reality: str | Path | None = None,
    port: int = 0,
    seed: int = 0,
    lockstep: bool = False,
    start: str = "home",
    truth: str | Path | None = None,
    server: str = "twin",
    faults: Sequence[str] = (),
    fault_input: bool = False,
    timeout_s: float = 60.0,
) -> Iterator[TwinProcess]:
    """A twin in a process of its own, ready when the block begins and ended with SIGTERM after it.

    Args:
        robot: a built-in robot's name or a robot folder.
        reality: a reality YAML file.
        port: 0 picks a free one.
        seed: of noise, losses and pushes.
        lockstep: time advances through SimulationService.Step only.
        start: "home" or "hang".
        truth: .npz to write when it ends.
        server: whose manners it has.
        faults: what is wrong with it, see `deploy.twin.faults`.
        fault_input: more of them come through the process's standard input; it then tells on its standard output.
        timeout_s: how long it may take to be ready [s].

    Raises:
        TwinError: it did not become ready; the message is its own.
    """
    command = [
        sys.executable,
        "-m",
        "deploy.twin.server",
        "--robot",
        str(robot),
        "--port",
        str(port),
        "--seed",
        str(seed),
    ]
    command += ["--start", start, "--server", server]
    command += ["--reality", str(reality)] if reality is not None else []
    command += ["--truth", str(truth)] if truth is not None else []
    command += ["--lockstep"] if lockstep else []
    command += [word for line in faults for word in ("--fault", line)]
    command += ["--fault-input"] if fault_input else []
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if fault_input else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        timer.cancel()
        if not line.startswith("twin:"):
            process.kill()
            said = process.stderr.read().strip().splitlines()
            raise TwinError(
                said[-1].removeprefix("ksim twin: ") if said else f"the twin was not ready in {timeout_s:g} s"
            )
        # drained, so that a talkative gRPC cannot fill the pipe and stop the twin
        threading.Thread(target=process.stderr.read, daemon=True).start()
        address = line.split(" on ", 1)[1].split()[0]
        host, _, got = address.rpartition(":")
        yield TwinProcess(host=host, port=int(got), process=process)
    finally:
        timer.cancel()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


@dataclass(frozen=True, kw_only=True)
class TwinOptions(Settings):
    """The options of `ksim twin`."""

    robot: Annotated[str, Option("built-in robot or robot folder")] = "kbot"
    host: Annotated[str, Option("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Option("port, 0 picks a free one"), Bound(0, 65535, "a port")] = 50051
    reality: Annotated[
        str | None, Option("YAML of how it differs from the nominal robot, or a calibration (default: not at all)")
    ] = None
    seed: Annotated[int, Option("of noise, losses and pushes"), Bound(0, 2**32 - 1, "a seed")] = 0
    start: Annotated[Literal["home", "hang"], Option("how it begins")] = "home"
    server: Annotated[
        Literal["twin", "kbot", "kos-sim", "zbot"], Option("whose manners it has: units, what is told, what is ignored")
    ] = "twin"
    lockstep: Annotated[bool, Option("time advances through SimulationService.Step only")] = False
    view: Annotated[
        int | None,
        Option("show the twin in a browser on this machine, at port 8080 or this one", metavar="PORT", bare=8080),
        Bound(0, 65535, "a port"),
    ] = None
    truth: Annotated[str | None, Option("write what really happened to this .npz at the end")] = None
    fault: Annotated[
        tuple[str, ...],
        Option("what goes wrong, see above; repeat it", metavar="KIND[:WHERE][=VALUE][@S]", read=tuple),
    ] = ()
    fault_input: Annotated[
        bool, Option("take more faults from standard input, one a line (clear: none), and tell when each begins")
    ] = False


def _hear(twin: Twin, loop: asyncio.AbstractEventLoop) -> None:
    """Read faults from standard input until it ends."""
    for line in sys.stdin:
        with contextlib.suppress(RuntimeError):  # the twin has ended
            loop.call_soon_threadsafe(twin.hear, line)


def _told(what: str, when: float) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(json.dumps({"event": what, "monotonic_s": when}), flush=True)


def _said(what: str, when: float) -> None:
    if what.startswith("fault"):
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"twin: {what} begins", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """`ksim twin`: serve until SIGTERM, SIGHUP or Ctrl-C."""
    args = options(
        TwinOptions,
        argv,
        "ksim twin",
        "A KOS server over MuJoCo with the K-Bot server's semantics: what ksim run sees as a robot.\n\n"
        "With --start home the robot is held still at home, feet on the floor, like on a gantry. It is let go by the\n"
        "first CommandActuators after torque is enabled on any joint, or by SimulationService.SetPaused(false).\n"
        "SimulationService.Reset picks it up again. With --start hang the base stays fixed above the floor and the\n"
        "joints are free. There is no watchdog, as on the robot: the last command stays in force.\n\n"
        "Faults, S seconds after the first command with torque, at once without @S; names can be several (a,b):\n"
        f"{faults_help()}",
        "ksim twin --fault imu_frozen@5\n  ksim twin --robot kbot --port 50051 --reality configs/reality_demo.yaml",
    )
    args = addressed(args)
    if args.truth:
        _check_truth(Path(args.truth))
    twin = Twin(
        args.robot,
        read_reality(args.reality, args.robot),
        host=args.host,
        port=args.port,
        seed=args.seed,
        lockstep=args.lockstep,
        start=args.start,
        server=args.server,
        faults=args.fault,
        tell=_told if args.fault_input else _said,
    )

    def ready() -> None:
        how = "lock-step" if args.lockstep else "real time"
        reality = twin.plant.reality.name
        print(f"twin: {twin.plant.spec.name} on {args.host}:{twin.port} ({how}, reality {reality})", flush=True)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"twin: {understood(twin.plant.built)}", file=sys.stderr, flush=True)

    def show(line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"twin: {line}", file=sys.stderr, flush=True)

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        if args.fault_input:
            threading.Thread(target=_hear, args=(twin, loop), daemon=True, name="faults").start()
        gc.collect()
        gc.freeze()  # the model stays; the collector need not look at it while a client waits
        await twin.serve(ready, stop)

    if args.view is not None:
        twin.view = TwinView.start(args.robot, twin.services, args.view, show)
    try:
        asyncio.run(serve())
    finally:
        if twin.view is not None:
            twin.view.view.close()
    if args.truth:
        twin.write_truth(args.truth)
    if twin.services.slipped_s:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"twin: fell behind the clock by {twin.services.slipped_s:.1f} s in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("twin", main, sys.argv[1:]))
