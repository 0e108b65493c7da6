"""The twin: a KOS server over MuJoCo, with the K-Bot server's manners and a reality of its own.

Degrees and the order x, y, z, w are this module's, as they are deploy/kos.py's: it is the other end of the wire.
What a K-Bot's server does is in the comments "K-Bot:"; source: kos-kbot and pykos 0.7.10.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2, common_pb2, imu_pb2, sim_pb2

from deploy.errors import DeployError
from deploy.plant import Plant
from deploy.reality import Reality, load_reality
from deploy.state import projected_gravity
from robots.bundle import atomic_path

# How often physics catches up when nobody asks; a call catches up by itself first.
TICK_S = 0.004
# Behind by more than this (a stopped process), simulated time slips instead of racing.
SLIP_S = 1.0
AMBIENT_C = 25.0
DEFAULT_MAX_TORQUE_NM = 120.0


class TwinError(DeployError):
    """The twin cannot start, or could not be started."""


def _error(message: str, code: Any = common_pb2.INVALID_ARGUMENT) -> common_pb2.Error:
    return common_pb2.Error(code=code, message=message)


def _refused(message: str, code: Any = common_pb2.INVALID_ARGUMENT) -> common_pb2.ActionResponse:
    return common_pb2.ActionResponse(success=False, error=_error(message, code))


def _bytes_of(message: Any) -> bytes:
    return message.SerializeToString()


OK = common_pb2.ActionResponse(success=True)


class Services:
    """The answers: one method a call, plain functions of the request over a Plant. Runs on one thread.

    Args:
        plant: the simulated robot.
        lockstep: time advances through Step only.
    """

    def __init__(self, plant: Plant, lockstep: bool) -> None:
        self.plant = plant
        self.lockstep = lockstep
        self.paused = False
        self.time_scale = 1.0
        self.slipped_s = 0.0
        self._joint_of = {joint_id: i for i, joint_id in enumerate(plant.spec.joint_ids)}
        self._gyro_scale = math.degrees(1.0) if plant.reality.sensors.gyro_unit == "deg/s" else 1.0
        self._sampled: tuple[int, Any] = (-1, None)
        self._anchor()

    # time

    def start(self) -> None:
        """Simulated time begins to run now."""
        self._anchor()

    def _anchor(self) -> None:
        self._wall_s, self._from_step = time.monotonic(), self.plant.step_count

    def catch_up(self) -> None:
        """Bring physics to the present; in lock-step or paused it stays where it is."""
        if self.lockstep or self.paused:
            return
        plant = self.plant
        due = int((time.monotonic() - self._wall_s) * self.time_scale / plant.dt) - (plant.step_count - self._from_step)
        limit = int(SLIP_S * self.time_scale / plant.dt)
        if due > limit:
            self.slipped_s += due * plant.dt / self.time_scale
            self._anchor()
        elif due > 0:
            plant.advance(due)

    def _sample(self) -> Any:
        # the calls of one gathered read share the sample of one physics step
        if self._sampled[0] != self.plant.step_count:
            self._sampled = (self.plant.step_count, self.plant.read())
        return self._sampled[1]

    def _forget(self) -> None:
        self._sampled = (-1, None)

    # ActuatorService

    def CommandActuators(self, request: Any) -> Any:
        joints, position, velocity, torque, results = [], [], [], [], []
        for c in request.commands:
            joint = self._joint_of.get(c.actuator_id)
            finite = math.isfinite(c.position) and math.isfinite(c.velocity) and math.isfinite(c.torque)
            if joint is None or not finite:
                why = f"actuator {c.actuator_id} is not on the bus" if joint is None else "the command is not finite"
                results.append(
                    common_pb2.ActionResult(actuator_id=c.actuator_id, success=False, error=_error(why)),
                )
                continue
            joints.append(joint)
            # K-Bot: a position, velocity or torque left out is 0, which is what an absent field reads as
            position.append(math.radians(c.position))
            velocity.append(math.radians(c.velocity))
            torque.append(c.torque)
            results.append(common_pb2.ActionResult(actuator_id=c.actuator_id, success=True))
        if joints:
            self.plant.command(joints, position, velocity, torque)
        return actuator_pb2.CommandActuatorsResponse(results=results)

    def ConfigureActuator(self, request: Any) -> Any:
        joint = self._joint_of.get(request.actuator_id)
        if joint is None:
            return _refused(f"actuator {request.actuator_id} is not on the bus")
        if request.HasField("new_actuator_id"):
            return _refused("a twin's ids do not change", common_pb2.NOT_IMPLEMENTED)
        # K-Bot: a gain left out is set to 0 and a torque limit left out to 120 N m; they are not kept
        kp, kd = request.kp, request.kd
        limit = request.max_torque if request.HasField("max_torque") else DEFAULT_MAX_TORQUE_NM
        if not all(math.isfinite(v) and v >= 0 for v in (kp, kd, limit)):
            return _refused(f"actuator {request.actuator_id}: kp, kd, max_torque: expected numbers of 0 or more")
        enabled = request.torque_enabled if request.HasField("torque_enabled") else None
        self.plant.configure(joint, kp=kp, kd=kd, max_torque=limit, torque_enabled=enabled)
        if request.zero_position:
            self.plant.set_zero(joint)
            self._forget()
        return OK

    def GetActuatorsState(self, request: Any) -> Any:
        plant, states = self.plant, []
        sample = self._sample()
        # K-Bot: no ids gives no states, and an id without feedback is left out
        joints = [(i, self._joint_of[i]) for i in request.actuator_ids if i in self._joint_of]
        position = np.degrees(sample.position).tolist()
        velocity = np.degrees(sample.velocity).tolist()
        torque = sample.torque.tolist()
        for actuator_id, j in joints:
            spec = plant.spec.joints[j]
            states.append(
                actuator_pb2.ActuatorStateResponse(
                    actuator_id=actuator_id,
                    online=True,
                    position=position[j],
                    velocity=velocity[j],
                    torque=torque[j],
                    temperature=AMBIENT_C,
                    torque_enabled=bool(plant.enabled[j]),
                    kp=float(plant.kp[j]),
                    kd=float(plant.kd[j]),
                    max_torque=float(plant.max_torque[j]),
                    min_position=math.degrees(spec.lower_rad),
                    max_position=math.degrees(spec.upper_rad),
                )
            )
        return actuator_pb2.GetActuatorsStateResponse(states=states)

    # IMUService

    def GetValues(self, request: Any) -> Any:
        sample = self._sample()
        ax, ay, az = sample.accel_b.tolist()
        gx, gy, gz = (self._gyro_scale * sample.gyro_b).tolist()
        return imu_pb2.IMUValuesResponse(accel_x=ax, accel_y=ay, accel_z=az, gyro_x=gx, gyro_y=gy, gyro_z=gz)

    def GetQuaternion(self, request: Any) -> Any:
        w, x, y, z = self._sample().quat_wxyz.tolist()
        return imu_pb2.QuaternionResponse(x=x, y=y, z=z, w=w)

    def GetEuler(self, request: Any) -> Any:
        w, x, y, z = self._sample().quat_wxyz.tolist()
        roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
        pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
        yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return imu_pb2.EulerAnglesResponse(roll=math.degrees(roll), pitch=math.degrees(pitch), yaw=math.degrees(yaw))

    def GetAdvancedValues(self, request: Any) -> Any:
        sample = self._sample()
        down = projected_gravity(sample.quat_wxyz)
        lin = sample.accel_b + down
        return imu_pb2.IMUAdvancedValuesResponse(
            lin_acc_x=lin[0], lin_acc_y=lin[1], lin_acc_z=lin[2], grav_x=down[0], grav_y=down[1], grav_z=down[2]
        )

    # SimulationService

    def Reset(self, request: Any) -> Any:
        """Pick the robot up: joints by name in degrees and degrees/s, an absent quaternion is upright."""
        plant = self.plant
        home = np.asarray(plant.spec.column("home_rad"))
        position, velocity = home.copy(), np.zeros(plant.joints)
        for value in request.joints.values:
            if value.name not in plant.spec.joint_names:
                return _refused(f"no joint {value.name!r}; there is {', '.join(plant.spec.joint_names)}")
            j = plant.spec.joint_names.index(value.name)
            position[j], velocity[j] = math.radians(value.pos), math.radians(value.vel)
        place, quat = None, None
        if request.HasField("pos"):
            place = (request.pos.x, request.pos.y, request.pos.z)
        if request.HasField("quat"):
            quat = np.asarray([request.quat.w, request.quat.x, request.quat.y, request.quat.z])
            norm = float(np.linalg.norm(quat))
            if not norm > 1e-6:
                return _refused("the quaternion is zero; leave it out for upright")
            quat = quat / norm
        if not all(np.isfinite(v).all() for v in (position, velocity, place or 0.0, 0.0 if quat is None else quat)):
            return _refused("the pose is not finite")
        plant.place(place, quat, position, velocity)
        self._forget()
        self._anchor()
        return OK

    def SetPaused(self, request: Any) -> Any:
        """Stop simulated time, or let it run; going on also releases a robot that is held."""
        if not request.paused:
            self.plant.release()
        self.paused = request.paused
        self._anchor()
        return OK

    def Step(self, request: Any) -> Any:
        """Advance by num_steps of step_size, a multiple of the physics step (the default)."""
        if not (self.lockstep or self.paused):
            return _refused("time runs by itself; start the twin with --lockstep, or pause it first")
        dt = self.plant.dt
        # the proto's float: 0.02 comes as 0.0199999996
        size = round(request.step_size, 7) if request.HasField("step_size") else dt
        ratio = size / dt if math.isfinite(size) else 0.0
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-4:
            return _refused(f"step_size {size:g} s: expected a multiple of the physics step {dt:g} s")
        self.plant.advance(request.num_steps * round(ratio))
        return OK

    def SetParameters(self, request: Any) -> Any:
        """Time scale [simulated s/s] and gravity [m/s^2], downwards whatever its sign."""
        p = request.parameters
        if p.HasField("time_scale"):
            if not (math.isfinite(p.time_scale) and 0 < p.time_scale <= 100):
                return _refused(f"time_scale {p.time_scale:g}: expected more than 0 and at most 100")
            self._anchor()
            self.time_scale = p.time_scale
        if p.HasField("gravity"):
            if not math.isfinite(p.gravity):
                return _refused("gravity is not finite")
            self.plant.model.opt.gravity[:] = (0.0, 0.0, -abs(p.gravity))
        return OK

    def GetParameters(self, request: Any) -> Any:
        gravity = float(np.linalg.norm(self.plant.model.opt.gravity))
        return sim_pb2.GetParametersResponse(
            parameters=sim_pb2.SimulationParameters(time_scale=self.time_scale, gravity=gravity)
        )


CALLS: dict[str, dict[str, Any]] = {
    "kos.actuator.ActuatorService": {
        "CommandActuators": actuator_pb2.CommandActuatorsRequest,
        "ConfigureActuator": actuator_pb2.ConfigureActuatorRequest,
        "GetActuatorsState": actuator_pb2.GetActuatorsStateRequest,
    },
    "kos.imu.IMUService": {
        "GetValues": Empty,
        "GetQuaternion": Empty,
        "GetEuler": Empty,
        "GetAdvancedValues": Empty,
    },
    "kos.sim.SimulationService": {
        "Reset": sim_pb2.ResetRequest,
        "SetPaused": sim_pb2.SetPausedRequest,
        "Step": sim_pb2.StepRequest,
        "SetParameters": sim_pb2.SetParametersRequest,
        "GetParameters": Empty,
    },
}
"""What the twin answers; any other call of KOS is UNIMPLEMENTED."""


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
    ) -> None:
        self.plant = Plant(robot, reality, seed=seed, start=start)
        self.services = Services(self.plant, lockstep)
        self.host, self.port = host, port
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
            self.services.catch_up()
            return answer(request)

        return handle

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Serve until `stop` is set; `ready` is called once the port answers.

        Raises:
            TwinError: the port cannot be had.
        """
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for service, calls in CALLS.items():
            methods = {
                call: grpc.unary_unary_rpc_method_handler(
                    self._handler(service, call),
                    request_deserializer=request.FromString,
                    response_serializer=_bytes_of,
                )
                for call, request in calls.items()
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        try:
            self.port = server.add_insecure_port(f"{self.host}:{self.port}")
        except RuntimeError:
            raise TwinError(
                f"port {self.port} on {self.host}: cannot be had, another program may be using it; "
                "stop that one or choose another --port (0 picks a free one)"
            ) from None
        await server.start()
        self.services.start()
        ready()
        due = time.monotonic()
        try:
            while not stop.is_set():
                self.services.catch_up()
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
        timeout_s: how long it may take to be ready [s].

    Raises:
        TwinError: it did not become ready; the message is its own.
    """
    command = [sys.executable, "-m", "deploy.twin", "--robot", str(robot), "--port", str(port), "--seed", str(seed)]
    command += ["--start", start]
    command += ["--reality", str(reality)] if reality is not None else []
    command += ["--truth", str(truth)] if truth is not None else []
    command += ["--lockstep"] if lockstep else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


def main(argv: list[str] | None = None) -> int:
    """`ksim twin`: serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="ksim twin",
        description="A KOS server over MuJoCo with the K-Bot server's semantics: what ksim run sees as a robot.\n\n"
        "With --start home the robot is held still at home, feet on the floor, like on a gantry. It is let go by the\n"
        "first CommandActuators after torque is enabled on any joint, or by SimulationService.SetPaused(false).\n"
        "SimulationService.Reset picks it up again. With --start hang the base stays fixed above the floor and the\n"
        "joints are free. There is no watchdog, as on the robot: the last command stays in force.",
        epilog="example:\n  ksim twin --robot kbot --port 50051 --reality configs/reality_demo.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--robot", default="kbot", help="built-in robot or robot folder (default: kbot)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=50051, help="port, 0 picks a free one (default: 50051)")
    parser.add_argument("--reality", help="YAML of how it differs from the nominal robot (default: not at all)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, losses and pushes (default: 0)")
    parser.add_argument("--start", choices=("home", "hang"), default="home", help="how it begins (default: home)")
    parser.add_argument("--lockstep", action="store_true", help="time advances through SimulationService.Step only")
    parser.add_argument("--truth", help="write what really happened to this .npz at the end")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        raise TwinError(f"--port: got {args.port}, expected 0 to 65535")
    if args.seed < 0:
        raise TwinError(f"--seed: got {args.seed}, expected 0 or more")
    twin = Twin(
        args.robot,
        load_reality(args.reality),
        host=args.host,
        port=args.port,
        seed=args.seed,
        lockstep=args.lockstep,
        start=args.start,
    )

    def ready() -> None:
        how = "lock-step" if args.lockstep else "real time"
        reality = twin.plant.reality.name
        print(f"twin: {twin.plant.spec.name} on {args.host}:{twin.port} ({how}, reality {reality})", flush=True)

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        gc.collect()
        gc.freeze()  # the model stays; the collector need not look at it while a client waits
        await twin.serve(ready, stop)

    asyncio.run(serve())
    if twin.services.slipped_s:
        print(f"twin: fell behind the clock by {twin.services.slipped_s:.1f} s in all", file=sys.stderr)
    if args.truth:
        twin.write_truth(args.truth)
    return 0


if __name__ == "__main__":
    from robots.errors import ToolkitError

    try:
        sys.exit(main())
    except ToolkitError as error:
        print(f"ksim twin: {error}", file=sys.stderr)
        sys.exit(1)
