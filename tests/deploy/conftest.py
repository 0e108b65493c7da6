"""A small robot, a real ONNX policy for it, and a KOS server with the K-Bot's semantics and faults to order."""

from __future__ import annotations

import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from robots.bundle import Bundle, write_bundle
from robots.spec import CommandSpec, JointSpec, PolicySpec, RobotSpec, input_specs

USED = ("joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "command", "time")


def make_robot() -> RobotSpec:
    """Three joints with ids out of order and distinct gains, 50 Hz."""

    def joint(name: str, id_: int, kp: float, home: float) -> JointSpec:
        return JointSpec(
            name=name,
            id=id_,
            kp=kp,
            kd=2.0,
            torque_limit_nm=20.0,
            torque_max_nm=30.0,
            velocity_max_rad_s=15.0,
            armature=0.01,
            friction_nm=0.1,
            damping=0.0,
            lower_rad=-1.0,
            upper_rad=1.5,
            home_rad=home,
            actuator_type="robstride_02",
        )

    joints = (joint("hip", 31, 50.0, 0.3), joint("knee", 12, 40.0, -0.5), joint("ankle", 25, 20.0, 0.0))
    return RobotSpec(name="leg", joints=joints, control_period_s=0.02)


def make_policy_spec(robot: RobotSpec, used: tuple[str, ...] = USED, carry_size: int = 2) -> PolicySpec:
    """A specification of a policy that reads `used`."""
    commands = (
        CommandSpec(name="vx", low=-0.5, high=1.0, unit="m/s"),
        CommandSpec(name="yaw", low=-1.0, high=1.0, unit="rad/s"),
    )
    known = input_specs(robot, commands)
    return PolicySpec(
        task="test",
        robot=robot,
        inputs=tuple(known[name] for name in used if name in known),
        commands=commands,
        carry_size=carry_size,
        control_period_s=robot.control_period_s,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
        proofs={
            "failures": [],
            "numbers": {"recorded": {"steps": 10_000}},
            "closed_loop": {"mujoco": {"episodes": 200}},
        },
    )


def make_checks(spec: PolicySpec, constant: float, divide_by_carry: bool) -> PolicySpec:
    """The specification with the self-test of the policy below, by hand, and an envelope of 1.5 rad about home."""
    home = np.asarray(spec.robot.column("home_rad"))
    sizes = {a.name: a.shape[0] for a in spec.inputs}
    # two steps: command 0.5, carry 0 and then 1
    actions = [(home + constant + 0.05) / ((2.0 - step) if divide_by_carry else 1.0) for step in range(2)]
    inputs = {name: [[0.5] + [0.0] * (k - 1) if name == "command" else [0.0] * k] * 2 for name, k in sizes.items()}
    spans = {"joint_angles": (home - 1.5, home + 1.5), "projected_gravity": ([-5, -5, -9.81], [5, 5, -5])}
    return spec.replace(
        envelope={
            name: {"low": np.asarray(low, float).tolist(), "high": np.asarray(high, float).tolist()}
            for name, (low, high) in spans.items()
            if name in sizes
        },
        self_test={
            "inputs": inputs,
            "actions": [a.tolist() for a in actions],
            "carry": [2.0] * spec.carry_size,
            "tolerance": 1e-5,
        },
    )


def make_bundle(
    robot: RobotSpec,
    used: tuple[str, ...] = USED,
    carry_size: int = 2,
    with_spec: bool = True,
    shapes: dict[str, list[int]] | None = None,
    divide_by_carry: bool = False,
    constant: float = 0.0,
) -> Bundle:
    """A real policy: action = home + 0.1 command[0] + constant, next carry = carry + 1.

    With `divide_by_carry` the action is also divided by (2 - carry[0]): not finite at the third step.
    """
    from onnx import TensorProto, helper, numpy_helper

    n = len(robot.joints)
    sizes = {
        "joint_angles": n,
        "joint_angular_velocities": n,
        "projected_gravity": 3,
        "accelerometer": 3,
        "gyroscope": 3,
        "command": 2,
        "time": 1,
        "quaternion": 4,
        "initial_heading": 1,
    }
    shape = {name: [sizes.get(name, 1)] for name in used} | {"carry": [carry_size]} | (shapes or {})

    def tensor(name: str, dims: list[int]):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    def const(name: str, values):
        return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)

    weights = [
        const("home", np.asarray(robot.column("home_rad")) + constant),
        const("one", np.ones(carry_size)),
        const("gain", [0.1]),
        const("zero", [0.0]),
        const("two", [2.0]),
    ]
    index = [
        numpy_helper.from_array(np.array([0], dtype=np.int64), "i0"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "i1"),
    ]
    nodes, last = [], "home"

    def add(op: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(op, inputs, [output]))
        return output

    for name in used:
        if name == "command":
            add("Slice", [name, "i0", "i1"], "first")
            term = add("Mul", ["first", "gain"], "command_term")
        else:
            # every declared input is read, and adds nothing
            nodes.append(helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=1))
            term = add("Mul", [f"{name}_sum", "zero"], f"{name}_term")
        last = add("Add", [last, term], f"with_{name}")
    if divide_by_carry:
        add("Slice", ["carry", "i0", "i1"], "count")
        add("Sub", ["two", "count"], "left")
        last = add("Div", [last, "left"], "divided")
    add("Identity", [last], "action")
    add("Add", ["carry", "one"], "next_carry")

    spec = make_checks(make_policy_spec(robot, used, carry_size), constant, divide_by_carry) if with_spec else None

    def model(graph) -> bytes:
        out = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if spec is not None:
            helper.set_model_props(out, {"spec_digest": spec.contract().digest})
        return out.SerializeToString()

    step = helper.make_graph(
        nodes,
        "step",
        [tensor(name, shape[name]) for name in (*used, "carry")],
        [tensor("action", [n]), tensor("next_carry", [carry_size])],
        weights + index,
    )
    init = helper.make_graph(
        [helper.make_node("Identity", ["start"], ["carry"])],
        "init",
        [],
        [tensor("carry", [carry_size])],
        [const("start", np.zeros(carry_size))],
    )
    return Bundle(
        joint_names=robot.joint_names,
        command_names=("vx", "yaw"),
        carry_shape=(carry_size,),
        init_fn=model(init),
        step_fn=model(step),
        spec=spec,
    )


@pytest.fixture
def robot() -> RobotSpec:
    return make_robot()


@pytest.fixture
def bundle(robot):
    return make_bundle(robot)


@pytest.fixture
def bundle_factory():
    return make_bundle


@pytest.fixture
def policy_spec_factory():
    return make_policy_spec


@pytest.fixture
def kinfer(tmp_path, bundle):
    path = tmp_path / "policy.kinfer"
    write_bundle(path, bundle)
    return path


class KBotServer:
    """A KOS server on a free port with the K-Bot's semantics, and faults to order.

    Each joint follows its target at once while its motor is on and stiff. A position or velocity left out
    of a command is 0, gains left out of a configuration are 0 and 120 N m, states come in ascending id.
    A little noise makes every reading new.
    """

    def __init__(self, robot: RobotSpec) -> None:
        from kos_protos import actuator_pb2_grpc, imu_pb2_grpc, sim_pb2_grpc

        self.robot = robot
        self.position_deg = {j.id: math.degrees(j.home_rad) for j in robot.joints}
        self.gains: dict[int, dict] = {}
        self.target_deg: dict[int, float] = {}
        self.requests: list[tuple[str, object]] = []
        self.steps: list[float] = []
        # faults
        self.missing: set[int] = set()
        self.offline: set[int] = set()
        self.faults: dict[int, list[str]] = {}
        self.order = sorted
        self.quat_wxyz = [1.0, 0.0, 0.0, 0.0]
        self.gyro = [0.0, 0.0, 0.0]
        self.accel = [0.0, 0.0, 9.81]
        self.frozen = False
        self.frozen_channels: set[str] = set()
        self.temperature_c: dict[int, float] = {}
        self.slip_deg: dict[int, float] = {}  # an encoder's zero that has moved
        self.swap: dict[int, int] = {}  # whose position a joint tells
        self.follows_rad = math.inf  # how far a joint moves at a command
        self.delay_s: dict[str, float] = {}
        self.refuse: set[int] = set()
        self.refuse_configure: set[int] = set()
        self.max_torque_reported: float | None = None
        self.lockstep = False
        self.on_tick = None
        self._count = 0
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8))
        outer = self

        class Actuator(actuator_pb2_grpc.ActuatorServiceServicer):
            def GetActuatorsState(self, request, context):
                return outer.state(request)

            def CommandActuators(self, request, context):
                return outer.command(request)

            def ConfigureActuator(self, request, context):
                return outer.configure(request)

        class Imu(imu_pb2_grpc.IMUServiceServicer):
            def GetValues(self, request, context):
                return outer.imu()

            def GetQuaternion(self, request, context):
                return outer.quaternion()

        class Simulation(sim_pb2_grpc.SimulationServiceServicer):
            def Step(self, request, context):
                return outer.step(request)

        actuator_pb2_grpc.add_ActuatorServiceServicer_to_server(Actuator(), self._server)
        imu_pb2_grpc.add_IMUServiceServicer_to_server(Imu(), self._server)
        sim_pb2_grpc.add_SimulationServiceServicer_to_server(Simulation(), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def kill(self) -> None:
        self._server.stop(None).wait()

    def wait_for_policy(self, child) -> None:
        """Until a run in a process of its own, `child`, has sent a number of commands."""
        deadline = time.monotonic() + 40
        while sum(1 for kind, _ in list(self.requests) if kind == "command") < 20:
            assert child.poll() is None and time.monotonic() < deadline, child.communicate()
            time.sleep(0.01)

    def _enter(self, what: str, request: object) -> None:
        with self._lock:
            self.requests.append((what, request))
        if self.on_tick is not None and what == "command":
            self.on_tick(sum(1 for kind, _ in self.requests if kind == "command"))
        time.sleep(self.delay_s.get(what, 0.0))

    def state(self, request):
        from kos_protos import actuator_pb2

        self._enter("state", request)
        known = {j.id for j in self.robot.joints}
        ids = self.order([i for i in request.actuator_ids if i in known and i not in self.missing])
        self._count += 1
        noise = 0.0 if self.frozen else 1e-3 * math.sin(self._count)
        states = []
        for id_ in ids:
            gains = self.gains.get(id_, {"kp": 0.0, "kd": 0.0, "max_torque": 120.0, "torque_enabled": False})
            if self.max_torque_reported is not None:
                gains = gains | {"max_torque": self.max_torque_reported}
            states.append(
                actuator_pb2.ActuatorStateResponse(
                    actuator_id=id_,
                    online=id_ not in self.offline,
                    position=self.position_deg[self.swap.get(id_, id_)] + self.slip_deg.get(id_, 0.0) + noise,
                    velocity=float(id_),
                    torque=0.1 * id_,
                    **({"temperature": self.temperature_c[id_]} if id_ in self.temperature_c else {}),
                    faults=self.faults.get(id_, []),
                    **gains,
                )
            )
        return actuator_pb2.GetActuatorsStateResponse(states=states)

    def command(self, request):
        from kos_protos import actuator_pb2, common_pb2

        self._enter("command", request)
        results = []
        for command in request.commands:
            id_ = command.actuator_id
            if id_ in self.refuse:
                error = common_pb2.Error(message="no such actuator")
                results.append(common_pb2.ActionResult(actuator_id=id_, success=False, error=error))
                continue
            self.target_deg[id_] = command.position  # left out reads as 0
            gains = self.gains.get(id_, {})
            if gains.get("torque_enabled") and gains["kp"] > 0:
                move = command.position - self.position_deg[id_]
                most = math.degrees(self.follows_rad)
                self.position_deg[id_] += max(-most, min(move, most))
            results.append(common_pb2.ActionResult(actuator_id=id_, success=True))
        return actuator_pb2.CommandActuatorsResponse(results=results)

    def configure(self, request):
        from kos_protos import common_pb2

        self._enter("configure", request)
        if request.actuator_id in self.refuse | self.refuse_configure:
            return common_pb2.ActionResponse(success=False, error=common_pb2.Error(message="bus error"))
        self.gains[request.actuator_id] = {
            "kp": request.kp,
            "kd": request.kd,
            "max_torque": request.max_torque if request.HasField("max_torque") else 120.0,
            "torque_enabled": request.torque_enabled,
        }
        return common_pb2.ActionResponse(success=True)

    def _noise(self, channel: str, size: float) -> float:
        if self.frozen or channel in self.frozen_channels:
            return 0.0
        return size * math.sin(len(self.requests))

    def imu(self):
        from kos_protos import imu_pb2

        self._enter("imu", None)
        (gx, gy, gz), (ax, ay, az) = self.gyro, self.accel
        gz += self._noise("gyro", 1e-9)
        return imu_pb2.IMUValuesResponse(gyro_x=gx, gyro_y=gy, gyro_z=gz, accel_x=ax, accel_y=ay, accel_z=az)

    def quaternion(self):
        from kos_protos import imu_pb2

        self._enter("quaternion", None)
        w, x, y, z = self.quat_wxyz
        if w:  # all zero means no data
            z += self._noise("orientation", 1e-9)
        return imu_pb2.QuaternionResponse(w=w, x=x, y=y, z=z)

    def step(self, request):
        from kos_protos import common_pb2

        self._enter("step", request)
        if not self.lockstep:
            return common_pb2.ActionResponse(success=False, error=common_pb2.Error(message="not in lock step"))
        self.steps.append(request.num_steps * request.step_size)
        return common_pb2.ActionResponse(success=True)

    def damped(self) -> bool:
        """Every joint has kp 0, kd nominal, limited torque, torque on, and its own position as target."""
        return all(
            self.gains.get(j.id) == {"kp": 0.0, "kd": j.kd, "max_torque": j.torque_limit_nm, "torque_enabled": True}
            and abs(self.target_deg[j.id] - self.position_deg[j.id]) < 0.01
            for j in self.robot.joints
        )


@pytest.fixture
def server(robot):
    server = KBotServer(robot)
    yield server
    server.kill()


@pytest.fixture
def options(tmp_path, kinfer, server):
    """`options(**changes)`: of a short run on that server."""
    from deploy.control.run import RunOptions

    def make(**changes):
        values = {"bundle": kinfer, "port": server.port, "duration_s": 0.5, "log": tmp_path / "run.mcap"}
        # tests/deploy/test_watchdog.py has the one; a busy test machine may be slow
        values |= {"watchdog_s": 0.0, "late_max": 10.0}
        return RunOptions(**(values | changes))

    return make


@pytest.fixture
def dead_port():
    """A port that is taken and that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def guard(policy_spec_factory, robot):
    from tests.deploy.live_commands import guard_of

    return guard_of(
        policy_spec_factory,
        robot,
        ("xvel", -0.5, 1.0, "m/s"),
        ("yawrate", -1.0, 1.0, "rad/s"),
        ("baseheight", -0.3, 0.1, "m"),
    )


@pytest.fixture
def arm(tmp_path):
    from tests.deploy.foreign_logs import arm_folder

    return arm_folder(tmp_path / "arm")


@pytest.fixture(scope="session")
def field(tmp_path_factory):
    from tests.deploy.foreign_logs import field_run

    return field_run(tmp_path_factory.mktemp("field"))
