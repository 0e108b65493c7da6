"""The KOS boundary: the only module that knows actuator ids, degrees, the wire's quaternion order and deadlines.

What the servers do that a client must not trust, and what is done here about it:
- a gain left out of ConfigureActuator is set to 0 (K-Bot) or kept (kos-sim): always all four are sent;
- max_torque is N m, as the K-Bot's server takes it, though the proto's comment says percent;
- a position or velocity left out of CommandActuators is read as 0: always all three are sent;
- GetActuatorsState answers nothing for an empty list, in any order, and leaves actuators out: explicit
  ids, mapped by id, a missing one is a fault;
- an all-zero quaternion means "no data";
- the gyro's unit differs between IMUs of the same robot: a setting, verified by `GyroCheck`;
- where one kind of server differs from another (deploy/robot/dialects.py): told by `identify`, or set;
- nothing carries a time stamp: the age of a reading is that of its call.

pykos' own `KOS.connect()` patches asyncio for the whole process (nest_asyncio: tasks and loop in pure
Python), which costs latency in every tick, and sets no deadlines. So its service clients are used on a
channel of ours, with a deadline on each call.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

# gRPC's C core reports a refused connection on stderr; here it is an error of ours, in one line
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2, sim_pb2
from pykos.services.actuator import ActuatorServiceClient
from pykos.services.imu import IMUServiceClient
from pykos.services.sim import SimServiceClient

from deploy.errors import ConnectionLost, DeployError, FaultError, SafetyError
from deploy.robot.answers import LISTED, LOST, answers_of, first_few, one_line, said_by, said_no
from deploy.robot.dialects import KBOT, Dialect, named, told_apart
from deploy.robot.gyro import GYRO_UNITS
from deploy.robot.interface import JointSeen, Sight
from deploy.robot.safety import Gains, SafeTarget
from deploy.robot.state import RobotState
from robots.spec import RobotSpec

_CHANNEL = (
    # a pool of its own: a new client does not inherit another one's reconnection back-off
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
)


class KosRobot:
    """A robot behind a KOS server, in SI and in the joint order of its specification.

    Open it with `async with`, or `connect` and `close`.

    Args:
        spec: names, ids and their order.
        host: where the server is.
        port: its port.
        dialect: which kind of server it is; `identify` finds it out.
        gyro_unit: what the server's gyro speaks, "deg/s" or "rad/s"; None takes the dialect's.
        accelerometer: whether somebody reads it, so that 0 on all its axes, no data, is a fault. A simulator in MuJoCo
            that holds the base fixed (kos-sim --suspended) gives just that.
    """

    def __init__(
        self,
        spec: RobotSpec,
        host: str = "127.0.0.1",
        port: int = 50051,
        *,
        dialect: Dialect = KBOT,
        gyro_unit: str | None = None,
        accelerometer: bool = True,
    ) -> None:
        if gyro_unit is not None and gyro_unit not in GYRO_UNITS:
            raise DeployError(f"gyro unit: got {gyro_unit!r}, expected one of {', '.join(GYRO_UNITS)}")
        self.spec = spec
        bare = host.count(":") > 1 and host[0] != "["  # an IPv6 address
        self.address = f"[{host}]:{port}" if bare else f"{host}:{port}"
        self.dialect = dialect
        self._gyro_unit_set = gyro_unit
        self._accelerometer = accelerometer
        self._enabled: set[int] = set()  # ids that acknowledged that their torque is on
        self._history: dict[int, tuple[str, ...]] = {}
        self._ids = spec.joint_ids
        self._row = {id_: row for row, id_ in enumerate(self._ids)}
        self._name = dict(zip(spec.joint_ids, spec.joint_names, strict=True))
        self._ask = actuator_pb2.GetActuatorsStateRequest(actuator_ids=self._ids)
        self._channel: grpc.aio.Channel | None = None
        self._last: Any = None

    async def connect(self, timeout_s: float = 3.0) -> None:
        """Open the channel and wait for the server.

        Raises:
            ConnectionLost: nothing answers within the time.
        """
        self._channel = grpc.aio.insecure_channel(self.address, options=_CHANNEL)
        self._actuator = ActuatorServiceClient(self._channel).stub
        self._imu = IMUServiceClient(self._channel).stub
        self._sim = SimServiceClient(self._channel).stub
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s)
        except TimeoutError:
            await self.close()
            raise ConnectionLost(
                f"no KOS server at {self.address} within {timeout_s:g} s; "
                "check --host and --port, or start one: ksim twin --robot kbot"
            ) from None

    @property
    def gyro_unit(self) -> str:
        """What the server's gyro is taken to speak."""
        return self._gyro_unit_set or self.dialect.gyro_unit

    @property
    def settle_s(self) -> float:
        """For how long after gains were set a target moves nothing [s]."""
        return self.dialect.settle_s

    async def identify(self, server: str = "auto", timeout_s: float = 1.0) -> str:
        """Take the server for the one named, or find out which it is by two questions that change nothing.

        Returns:
            Which, and why, in one line.

        Raises:
            ConnectionLost: no answer within the time.
            OptionError: there is no server of that name.
        """
        self._check_open()
        if server != "auto":
            self.dialect = named(server)
            return f"{server}, as --server says; its gyro is taken to be in {self.gyro_unit}"
        calls = (
            self._sim.GetParameters(Empty(), timeout=timeout_s),
            self._actuator.GetActuatorsState(actuator_pb2.GetActuatorsStateRequest(), timeout=timeout_s),
        )
        parameters, states = await answers_of(*calls)
        for answer in (parameters, states):
            if isinstance(answer, BaseException) and not said_no(answer):
                raise ConnectionLost(f"which server: {self.address}: {said_by(answer)}") from answer
        absent = isinstance(parameters, grpc.aio.AioRpcError) and parameters.code() is grpc.StatusCode.UNIMPLEMENTED
        lists_all = not isinstance(states, BaseException) and len(states.states) > 0
        self.dialect, why = told_apart(not absent, lists_all)
        return f"{self.dialect.name}: {why}; its gyro is taken to be in {self.gyro_unit}"

    @property
    def connected(self) -> bool:
        """Whether there is a channel; the server behind it may be gone."""
        return self._channel is not None

    async def close(self) -> None:
        """Close the channel; the robot keeps the last gains and target that it was given."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, what: str, *calls: Awaitable[Any]) -> list[Any]:
        """The answers of concurrent calls; waits for all of them before it raises for one."""
        answers = await answers_of(*calls)
        for answer in answers:
            if isinstance(answer, FaultError):
                raise FaultError(f"{what}: {self.address}: {answer}")
            if isinstance(answer, grpc.aio.AioRpcError):
                if answer.code() in LOST:
                    raise ConnectionLost(f"{what}: {self.address}: {said_by(answer)}")
                detail = one_line(answer.details() or "")
                raise FaultError(f"{what}: {self.address} answered {answer.code().name} ({detail})")
            if isinstance(answer, (grpc.aio.UsageError, asyncio.CancelledError)) and self._channel is None:
                raise ConnectionLost(f"{what}: {self.address}: the connection is closed")
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def _check_open(self) -> None:
        if self._channel is None:
            raise ConnectionLost(f"{self.address}: not connected; call connect() first")

    async def read(self, timeout_s: float = 0.5) -> RobotState:
        """Joints, IMU values and orientation, asked for at the same time.

        Raises:
            ConnectionLost: no complete answer within the time.
            FaultError: an actuator is missing, offline or reports a fault, or a sensor has no data.
        """
        self._check_open()
        asked = time.monotonic()
        joints, imu, quat = await self._call(
            "state",
            self._actuator.GetActuatorsState(self._ask, timeout=timeout_s),
            self._imu.GetValues(Empty(), timeout=timeout_s),
            self._imu.GetQuaternion(Empty(), timeout=timeout_s),
        )
        answered = time.monotonic()
        self._last = joints
        position, velocity, torque = self._joints(joints)
        return RobotState(
            joint_position=position,
            joint_velocity=velocity,
            joint_torque=torque,
            quat_wxyz=self._quaternion(quat),
            gyro_b=self._vector("gyro", imu, "gyro") * GYRO_UNITS[self.gyro_unit],
            accel_b=self._vector("accelerometer", imu, "accel", zero_is_fault=self._accelerometer),
            time_s=answered,
            round_trip_s=answered - asked,
            joint_temperature=self._temperatures(joints),
        )

    def _joints(self, answer: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = np.full((3, len(self._ids)), np.nan)
        faults: list[str] = []
        for state in answer.states:
            row = self._row.get(state.actuator_id)
            if row is None:
                continue
            who = f"{self._name[state.actuator_id]} (id {state.actuator_id})"
            if self._absent(state):
                faults.append(f"{who} is missing")
                continue
            if not state.online and not self._limp(state):
                faults.append(f"{who} is offline")
            elif not state.HasField("position") or not state.HasField("velocity"):
                faults.append(f"{who} reports no position or velocity")
            if state.faults and not self._old(state):
                faults.append(f"{who} reports {one_line(', '.join(state.faults))}")
            # torque is for the log only, and not every actuator measures it
            table[:, row] = math.radians(state.position), math.radians(state.velocity), state.torque
        answered = {state.actuator_id for state in answer.states}
        faults.extend(f"{self._name[i]} (id {i}) is missing" for i in self._ids if i not in answered)
        if faults:
            raise FaultError(f"actuators: {first_few(faults)}")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=0))
        if bad.size:
            names = ", ".join(self.spec.joint_names[i] for i in bad)
            raise FaultError(f"actuators: {names}: got a value that is not finite")
        return table[0], table[1], table[2]

    def _absent(self, state: Any) -> bool:
        """A server that answers for every id says so of one that it does not have."""
        return self.dialect.lists_all and not state.online and any("not registered" in f for f in state.faults)

    def _limp(self, state: Any) -> bool:
        """Offline only because its torque was not switched on yet."""
        return self.dialect.online_is_torque and state.actuator_id not in self._enabled

    def _old(self, state: Any) -> bool:
        """What it reports was so when it was first looked at."""
        told = tuple(state.faults)
        return self.dialect.faults_are_history and self._history.setdefault(state.actuator_id, told) == told

    async def look(self, timeout_s: float = 0.5) -> Sight:
        """The same as `read`, without a word on what it means.

        Raises:
            ConnectionLost: not all of it came within the time.
        """
        self._check_open()
        asked = time.monotonic()
        answers = await answers_of(
            self._actuator.GetActuatorsState(self._ask, timeout=timeout_s),
            self._imu.GetValues(Empty(), timeout=timeout_s),
            self._imu.GetQuaternion(Empty(), timeout=timeout_s),
        )
        answered = time.monotonic()
        errors = []
        for answer in answers:
            if isinstance(answer, BaseException):
                # an IMU that is not there is unavailable in kos-zbot's words
                here = isinstance(answer, grpc.aio.AioRpcError) and answer.code() is grpc.StatusCode.UNAVAILABLE
                if not said_no(answer) and not (here and answer is not answers[0]):
                    raise ConnectionLost(f"state: {self.address}: {said_by(answer)}") from answer
                errors.append(said_by(answer))
            elif hasattr(answer, "error") and answer.HasField("error"):
                errors.append(one_line(answer.error.message) or str(answer.error.code))
        joints, imu, quat = (None if isinstance(a, BaseException) else a for a in answers)
        table = np.full((2, len(self._ids)), np.nan)
        for state in () if joints is None else joints.states:
            row = self._row.get(state.actuator_id)
            if row is not None and not self._absent(state):
                table[:, row] = math.radians(state.position), math.radians(state.velocity)

        def axes(answer: Any, names: Sequence[str]) -> np.ndarray:
            return np.array([math.nan if answer is None else getattr(answer, name) for name in names])

        return Sight(
            position=table[0],
            velocity=table[1],
            quat_wxyz=axes(quat, "wxyz"),
            gyro_b=axes(imu, ("gyro_x", "gyro_y", "gyro_z")) * GYRO_UNITS[self.gyro_unit],
            accel_b=axes(imu, ("accel_x", "accel_y", "accel_z")),
            time_s=answered,
            round_trip_s=answered - asked,
            errors=tuple(errors),
        )

    async def joints_seen(self, timeout_s: float = 1.0) -> tuple[tuple[JointSeen, ...], tuple[int, ...]]:
        """What the server tells of each joint, and the ids that it has besides.

        Raises:
            ConnectionLost: no answer within the time.
            FaultError: the server refuses to answer.
        """
        self._check_open()
        ids = [] if self.dialect.lists_all else [*self._ids, *(i for i in range(1, 128) if i not in self._row)]
        # a server that refuses an id it does not have lists them all
        request = actuator_pb2.GetActuatorsStateRequest(actuator_ids=ids)
        (answer,) = await self._call("actuators", self._actuator.GetActuatorsState(request, timeout=timeout_s))
        told = {state.actuator_id: state for state in answer.states if not self._absent(state)}
        extra = sorted(i for i in told if i not in self._row)
        return tuple(self._seen(id_, told.get(id_)) for id_ in self._ids), tuple(extra)

    def _seen(self, id_: int, state: Any) -> JointSeen:
        name = self._name[id_]
        if state is None:
            return JointSeen(name=name, id=id_, there=False, online=False)

        def told(field: str, angle: bool = False) -> Any:
            if not state.HasField(field):
                return None
            value = getattr(state, field)
            return math.radians(value) if angle else value

        return JointSeen(
            name=name,
            id=id_,
            online=state.online,
            faults=tuple(one_line(f) for f in state.faults[:LISTED]),
            position=told("position", angle=True),
            velocity=told("velocity", angle=True),
            temperature=told("temperature"),
            voltage=told("voltage"),
            kp=told("kp"),
            kd=told("kd"),
            max_torque=told("max_torque"),
            torque_enabled=told("torque_enabled"),
            lower=told("min_position", angle=True),
            upper=told("max_position", angle=True),
        )

    def _temperatures(self, answer: Any) -> np.ndarray | None:
        table = np.full(len(self._ids), np.nan)
        for state in answer.states:
            row = self._row.get(state.actuator_id)
            if row is not None and state.HasField("temperature"):
                table[row] = state.temperature
        return None if np.isnan(table).all() else table

    @staticmethod
    def _error_of(what: str, answer: Any) -> None:
        if answer.HasField("error"):
            raise FaultError(f"{what}: the server reports {one_line(answer.error.message) or answer.error.code}")

    def _quaternion(self, answer: Any) -> np.ndarray:
        self._error_of("orientation", answer)
        quat = np.array([answer.w, answer.x, answer.y, answer.z])
        norm = float(np.linalg.norm(quat))
        if not np.isfinite(norm) or not 0.5 < norm < 2.0:
            raise FaultError(f"orientation: got quaternion {quat.tolist()}, expected unit length; the IMU has no data")
        return quat / norm

    def _vector(self, what: str, answer: Any, prefix: str, zero_is_fault: bool = False) -> np.ndarray:
        self._error_of(what, answer)
        vector = np.array([getattr(answer, f"{prefix}_{axis}") for axis in "xyz"])
        if not np.isfinite(vector).all() or (zero_is_fault and not vector.any()):
            raise FaultError(f"{what}: got {vector.tolist()}, expected a measurement; the IMU has no data")
        return vector

    async def command(self, target: SafeTarget, timeout_s: float = 0.5) -> float:
        """Send a target position, with velocity 0 and torque 0, to every joint.

        Returns:
            The time from the command to its acknowledgement [s].

        Raises:
            ConnectionLost: no acknowledgement within the time.
            FaultError: an actuator refused, or is left out of the acknowledgement. A server that says nothing of any
                (kos-sim, kos-zbot) has taken it as a whole.
            SafetyError: the target did not come from the safety layer.
        """
        if not isinstance(target, SafeTarget):
            raise SafetyError(f"command: got {type(target).__name__}, expected a SafeTarget of deploy.robot.safety")
        self._check_open()
        degrees = np.degrees(target.rad)
        if degrees.shape != (len(self._ids),) or not np.isfinite(degrees).all():
            raise SafetyError(f"command: got {degrees.tolist()}, expected {len(self._ids)} finite numbers")
        commands = [
            actuator_pb2.ActuatorCommand(actuator_id=id_, position=value, velocity=0.0, torque=0.0)
            for id_, value in zip(self._ids, degrees.tolist(), strict=True)
        ]
        request = actuator_pb2.CommandActuatorsRequest(commands=commands)
        sent = time.monotonic()
        (answer,) = await self._call("command", self._actuator.CommandActuators(request, timeout=timeout_s))
        took = time.monotonic() - sent
        refused = [
            f"{self._name.get(r.actuator_id, 'unknown')} (id {r.actuator_id}): {one_line(r.error.message)}"
            for r in answer.results
            if not r.success
        ]
        told = {r.actuator_id for r in answer.results}
        refused += [f"{self._name[i]} (id {i}): not acknowledged" for i in self._ids if told and i not in told]
        if refused:
            raise FaultError(f"command refused: {first_few(refused)}")
        return took

    def _configured(self, gains: Gains, rows: Sequence[int], timeout_s: float) -> list[Awaitable[Any]]:
        """Calls that set kp, kd, max_torque and torque_enabled of joints, always all four."""
        if not isinstance(gains, Gains):
            raise SafetyError(f"configure: got {type(gains).__name__}, expected Gains of deploy.robot.safety")
        self._check_open()
        requests = [
            actuator_pb2.ConfigureActuatorRequest(
                actuator_id=self._ids[row],
                kp=float(gains.kp[row]),
                kd=float(gains.kd[row]),
                max_torque=float(gains.max_torque[row]),
                torque_enabled=gains.torque_enabled,
            )
            for row in rows
        ]
        return [self._actuator.ConfigureActuator(request, timeout=timeout_s) for request in requests]

    async def configure(self, gains: Gains, timeout_s: float = 0.5) -> None:
        """Set kp, kd, max_torque and torque_enabled of every joint.

        Every joint is tried, also after one has failed.

        Raises:
            ConnectionLost: no acknowledgement within the time.
            FaultError: an actuator refused.
            SafetyError: the gains did not come from the safety layer.
        """
        answers = await self._call("configure", *self._configured(gains, range(len(self._ids)), timeout_s))
        took = {id_ for id_, answer in zip(self._ids, answers, strict=True) if answer.success}
        self._enabled = self._enabled | took if gains.torque_enabled else self._enabled - took
        refused = [
            f"{self._name[id_]} (id {id_}): {one_line(answer.error.message)}"
            for id_, answer in zip(self._ids, answers, strict=True)
            if not answer.success
        ]
        if refused:
            raise FaultError(f"configure refused: {first_few(refused)}")

    async def configure_each(self, gains: Gains, joints: Sequence[str], timeout_s: float = 0.5) -> dict[str, str]:
        """Set the gains of some joints; what one of them says changes nothing for the others.

        Returns:
            Joints that did not acknowledge within the time, and why; empty when all did.

        Raises:
            ConnectionLost: not connected.
            SafetyError: the gains did not come from the safety layer.
        """
        rows = [self.spec.joint_names.index(name) for name in joints]
        calls = self._configured(gains, rows, timeout_s)
        failed: dict[str, str] = {}
        for name, answer in zip(joints, await answers_of(*calls), strict=True):
            if isinstance(answer, (grpc.aio.AioRpcError, FaultError)):
                failed[name] = said_by(answer)
            elif isinstance(answer, (grpc.aio.UsageError, asyncio.CancelledError)) and self._channel is None:
                failed[name] = "the connection is closed"
            elif isinstance(answer, BaseException):
                raise answer
            elif not answer.success:
                failed[name] = one_line(answer.error.message) or "refused"
            elif gains.torque_enabled:
                self._enabled.add(self.spec.joint(name).id)
            else:
                self._enabled.discard(self.spec.joint(name).id)
        return failed

    async def gain_differences(self, gains: Gains, timeout_s: float = 0.5) -> list[str]:
        """Where the server reports other gains than `gains`; servers that report none give an empty list."""
        self._check_open()
        (answer,) = await self._call("state", self._actuator.GetActuatorsState(self._ask, timeout=timeout_s))
        return self._gain_differences(answer, gains)

    async def stiff(self, timeout_s: float = 0.5) -> dict[str, str]:
        """Joints that the server reports with a stiffness, and what it says; those that report none are not there."""
        self._check_open()
        (answer,) = await self._call("state", self._actuator.GetActuatorsState(self._ask, timeout=timeout_s))
        known = [s for s in answer.states if s.actuator_id in self._row and s.HasField("kp")]
        return {self._name[s.actuator_id]: f"acknowledged, and has kp {s.kp:g}" for s in known if not s.kp <= 1e-3}

    def gains_seen(self, gains: Gains) -> list[str]:
        """Where the last state read reports other gains than `gains`; asks the server nothing."""
        return [] if self._last is None else self._gain_differences(self._last, gains)

    def _gain_differences(self, answer: Any, gains: Gains) -> list[str]:
        found: list[str] = []
        known = [state for state in answer.states if state.actuator_id in self._row]
        for state in sorted(known, key=lambda s: self._row[s.actuator_id]):
            row = self._row[state.actuator_id]
            wanted = {"kp": gains.kp[row], "kd": gains.kd[row], "max_torque": gains.max_torque[row]}
            for name, value in wanted.items():
                got = getattr(state, name)
                if state.HasField(name) and not abs(got - value) <= 1e-3 * max(1.0, abs(value)):
                    found.append(f"{self._name[state.actuator_id]}: {name} is {got:g}, sent {value:g}")
            if state.HasField("torque_enabled") and state.torque_enabled != gains.torque_enabled:
                found.append(f"{self._name[state.actuator_id]}: torque_enabled is {state.torque_enabled}")
        return found

    async def reset_simulation(self, timeout_s: float = 5.0) -> None:
        """Ask a simulator to pick the robot up and put it upright at its home pose; a robot has no such service.

        Raises:
            ConnectionLost: the server is gone.
            FaultError: the server is no simulator, or refuses.
        """
        self._check_open()
        if not self.dialect.places:
            raise FaultError(
                f"reset: {self.address} is a {self.dialect.name} server, which cannot place a robot at home; "
                "leave --reset out, and put it there by hand"
            )
        joints = [
            sim_pb2.JointValue(name=joint.name, pos=math.degrees(joint.home_rad), vel=0.0) for joint in self.spec.joints
        ]
        request = sim_pb2.ResetRequest(
            joints=sim_pb2.JointValues(values=joints),
            # kos-sim takes an orientation that is left out for zero
            quat=sim_pb2.StartingQuaternion(w=1.0, x=0.0, y=0.0, z=0.0),
        )
        (answer,) = await self._call("reset", self._sim.Reset(request, timeout=timeout_s))
        if not answer.success:
            raise FaultError(
                f"reset: {self.address} refused ({one_line(answer.error.message)}); "
                "start it anew, or name the server of the bundle's robot with --port"
            )

    async def step_simulation(self, duration_s: float, timeout_s: float = 10.0) -> None:
        """Advance a simulator that runs in lock step.

        Raises:
            ConnectionLost: the server is gone.
            FaultError: the server does not run in lock step.
        """
        self._check_open()
        request = sim_pb2.StepRequest(num_steps=1, step_size=duration_s)
        (answer,) = await self._call("lock step", self._sim.Step(request, timeout=timeout_s))
        if not answer.success:
            raise FaultError(
                f"lock step: {self.address} refused ({one_line(answer.error.message)}); "
                "start the twin with --lockstep or leave --step-lock out"
            )
