"""Faults that the twin is told to have, by hand-computed values; in lock step, without a network."""

from __future__ import annotations

import asyncio
import json
import math
import time

import numpy as np
import pytest

pytest.importorskip("mujoco")

from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2

from deploy.twin.faults import KINDS, Fault, Faults, TwinFaultError, faults_help, parse_fault
from deploy.twin.plant import Plant
from deploy.twin.server import Twin, spawn_twin
from deploy.twin.services import Services
from robots.load import load_robot

ROBOT = load_robot("kbot")
KNEE, OTHER, YAW = "dof_left_knee_04", "dof_right_knee_04", "dof_left_hip_yaw_03"
HOME = dict(zip(ROBOT.joint_names, ROBOT.column("home_rad"), strict=True))


class Bench:
    """Services over a plant that has a fault, as a client sees them."""

    def __init__(self, *faults: str) -> None:
        self.plant = Plant("kbot")
        self.begun: list[str] = []
        self.faults = Faults(
            self.plant, [parse_fault(f, ROBOT) for f in faults], lambda f, _: self.begun.append(f.kind)
        )
        self.told: list[str] = []
        self.services = Services(self.plant, True, self.faults, self.told.append)
        self.services.catch_up()

    def now(self, line: str) -> None:
        self.faults.add(parse_fault(line, ROBOT))
        self.services.catch_up()

    def drive(self, seconds: float) -> None:
        """Stiff at home for so long."""
        for joint in ROBOT.joints:
            self.services.ConfigureActuator(
                actuator_pb2.ConfigureActuatorRequest(
                    actuator_id=joint.id,
                    kp=joint.kp,
                    kd=joint.kd,
                    max_torque=joint.torque_limit_nm,
                    torque_enabled=True,
                )
            )
        self.command({name: HOME[name] for name in ROBOT.joint_names})
        self.step(seconds)

    def command(self, targets: dict[str, float]) -> None:
        self.services.CommandActuators(
            actuator_pb2.CommandActuatorsRequest(
                commands=[
                    actuator_pb2.ActuatorCommand(actuator_id=ROBOT.joint(n).id, position=math.degrees(rad))
                    for n, rad in targets.items()
                ]
            )
        )

    def step(self, seconds: float) -> None:
        self.plant.advance(round(seconds / self.plant.dt))
        self.services.catch_up()

    def state(self, name: str):
        ids = [ROBOT.joint(name).id]
        states = self.services.GetActuatorsState(actuator_pb2.GetActuatorsStateRequest(actuator_ids=ids)).states
        return states[0] if states else None

    def imu(self) -> tuple[list[float], list[float], list[float]]:
        """Orientation w, x, y, z, gyro on the wire, accelerometer."""
        q, v = self.services.GetQuaternion(Empty()), self.services.GetValues(Empty())
        return [q.w, q.x, q.y, q.z], [v.gyro_x, v.gyro_y, v.gyro_z], [v.accel_x, v.accel_y, v.accel_z]


def test_a_line_of_text_is_a_fault():
    assert parse_fault("imu_frozen@5", ROBOT) == Fault(kind="imu_frozen", at_s=5.0)
    assert parse_fault(f"joint_hot:{KNEE}@0.5", ROBOT) == Fault(kind="joint_hot", where=(KNEE,), value=140.0, at_s=0.5)
    assert parse_fault(" imu_turned:x=-30 ", ROBOT) == Fault(kind="imu_turned", where=("x",), value=-30.0)
    assert parse_fault("imu_zero:gyro,accelerometer", ROBOT).where == ("gyro", "accelerometer")
    assert all(name in faults_help() for name in KINDS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("imu_frozn", "did you mean imu_frozen"),
        ("joint_hot:dof_left_kne_04", "did you mean dof_left_knee_04"),
        ("joint_hot", "expected joint_hot:WHERE with joint"),
        (f"joints_swapped:{KNEE}", "with two joints"),
        ("imu_turned:w", "no axis 'w'; there is x, y, z"),
        ("imu_rate=0", "expected 0.1 to 10000"),
        ("imu_rate=nan", "expected a number"),
        ("gyro_unit=2", "takes no value"),
        ("gyro_unit:x", "no place 'x'"),
        ("imu_frozen@-1", "expected 0 or more seconds"),
    ],
)
def test_a_line_that_is_no_fault_says_what_would_be(line, says):
    with pytest.raises(TwinFaultError, match=says):
        parse_fault(line, ROBOT)


def test_a_fault_waits_for_its_time_and_the_physics_does_not_see_it():
    true, bench = Bench(), Bench("imu_zero@0.1")
    for one in (true, bench):
        one.drive(0.09)
    assert bench.begun == [] and bench.imu() == true.imu() and any(bench.imu()[0])
    for one in (true, bench):
        one.step(0.02)
    assert bench.begun == ["imu_zero"] and bench.imu() == ([0.0] * 4, [0.0] * 3, [0.0] * 3)
    assert np.array_equal(bench.plant.data.qpos, true.plant.data.qpos)
    bench.services.clear_faults()
    assert bench.imu() == true.imu()


def test_what_an_imu_can_have():
    bench = Bench()
    bench.drive(0.2)
    quat, gyro, accel = bench.imu()
    bench.now("gyro_unit")
    # the wire's number is the rad/s where it was the deg/s
    assert np.allclose(bench.imu()[1], np.radians(gyro)) and bench.imu()[0] == quat
    bench.services.clear_faults()
    bench.now("imu_turned:x=90")
    # seen from a frame turned by 90 degrees about x, the y axis is -z and the z axis is y
    half = math.sqrt(0.5)
    w, x, y, z = quat
    assert np.allclose(bench.imu()[0], [half * (w - x), half * (w + x), half * (y + z), half * (z - y)])
    assert np.allclose(bench.imu()[1], [gyro[0], gyro[2], -gyro[1]])
    assert np.allclose(bench.imu()[2], [accel[0], accel[2], -accel[1]])
    bench.services.clear_faults()
    bench.now("imu_nan:gyro")
    assert np.isnan(bench.imu()[1]).all() and bench.imu()[0] == quat
    bench.services.clear_faults()
    bench.now("imu_frozen:orientation")
    first = bench.imu()
    bench.step(0.02)
    assert bench.imu()[0] == first[0] and bench.imu()[1] != first[1]


def test_an_imu_of_20_hz_tells_each_sample_for_50_ms():
    bench = Bench("imu_rate=20")
    bench.drive(0.1)
    told = []
    for _ in range(20):
        bench.step(0.01)
        told.append(tuple(bench.imu()[1]))
    # 0.2 s: four or five samples, each for five reads
    assert 4 <= len(set(told)) <= 5 and max(told.count(v) for v in set(told)) == 5


def test_the_age_of_an_imu_grows():
    bench = Bench()
    bench.drive(0.1)
    bench.now("imu_age=0.5")
    truth = Bench()
    truth.drive(0.1)
    seen = []
    for _ in range(20):
        for one in (bench, truth):
            one.step(0.01)
        bench.imu()
        seen.append(truth.imu()[0])
    # after 0.2 s what is told was measured 0.1 s before
    assert np.allclose(bench.imu()[0], seen[9], atol=1e-9)


def test_what_a_joint_can_have():
    bench = Bench()
    position = bench.state(KNEE).position
    for line in ("joint_offline", "joint_faulted", "joint_hot=140"):
        name, _, value = line.partition("=")
        bench.now(f"{name}:{KNEE}" + (f"={value}" if value else ""))
    state = bench.state(KNEE)
    assert not state.online and list(state.faults) == ["over current"] and state.temperature == 140.0
    assert state.position == position and bench.state(OTHER).online
    bench.services.clear_faults()
    bench.now(f"joint_silent:{KNEE}")
    assert bench.state(KNEE) is None and bench.state(OTHER) is not None
    bench.services.clear_faults()
    bench.now(f"joint_beyond:{KNEE}=0.5")
    assert bench.state(KNEE).position == pytest.approx(math.degrees(ROBOT.joint(KNEE).upper_rad + 0.5), rel=1e-6)
    bench.services.clear_faults()
    bench.now(f"joint_inverted:{KNEE}")
    assert bench.state(KNEE).position == -position
    bench.services.clear_faults()
    bench.now(f"joints_swapped:{KNEE},{OTHER}")
    # the knees are at home by 50 and -50 degrees
    assert bench.state(KNEE).position == pytest.approx(-50.0, abs=1e-4)
    assert bench.state(OTHER).position == pytest.approx(50.0, abs=1e-4)
    bench.services.clear_faults()
    bench.now(f"joint_refuses:{KNEE}")
    ask = actuator_pb2.ConfigureActuatorRequest(actuator_id=ROBOT.joint(KNEE).id, kp=1.0)
    assert not bench.services.ConfigureActuator(ask).success


def test_an_inverted_joint_goes_the_other_way_and_a_weak_one_nowhere():
    def moved(*faults: str) -> float:
        bench = Bench(*faults)
        bench.drive(0.0)
        bench.command({YAW: 0.1})
        bench.step(0.1)
        return float(bench.plant.data.qpos[bench.plant.built.qpos_ids][ROBOT.joint_names.index(YAW)])

    plain, weak = moved(), moved(f"joint_weak:{YAW}")
    assert plain > 0.03 and moved(f"joint_inverted:{YAW}") < -0.03 and abs(weak) < 0.5 * plain


def test_a_zero_that_slips_is_the_motors_own_and_can_be_put_back():
    bench = Bench()
    bench.drive(0.02)
    before = bench.state(YAW).position
    bench.now(f"joint_jump:{YAW}=0.2")
    bench.step(0.002)
    assert bench.state(YAW).position - before == pytest.approx(math.degrees(0.2), abs=0.5)
    bench.services.clear_faults()
    assert not bench.plant.offset.any()


def test_a_robot_without_stiffness_is_told_when_every_joint_was_configured():
    bench = Bench()
    bench.drive(0.0)
    assert bench.told == ["stiff"]
    for joint in ROBOT.joints:
        assert bench.told == ["stiff"]
        ask = actuator_pb2.ConfigureActuatorRequest(actuator_id=joint.id, kd=joint.kd, torque_enabled=True)
        bench.services.ConfigureActuator(ask)
    assert bench.told == ["stiff", "limp"]
    for k, joint in enumerate(ROBOT.joints):
        ask = actuator_pb2.ConfigureActuatorRequest(actuator_id=joint.id, kp=float(k > 0), torque_enabled=True)
        bench.services.ConfigureActuator(ask)
    assert bench.told == ["stiff", "limp"], "one has none and the others have"


def test_a_stall_a_lost_read_and_lost_calls():
    async def held(bench: Bench, call: str, within_s: float) -> bool | None:
        try:
            return await asyncio.wait_for(bench.faults.hold(call), within_s)
        except TimeoutError:
            return None

    async def ask() -> None:
        bench = Bench()
        bench.now("server_stall=0.1")
        began = time.monotonic()
        assert await held(bench, "GetValues", 5.0) is False and time.monotonic() - began > 0.09
        bench.services.clear_faults()
        bench.now("reads_lost=2")
        answers = [await held(bench, call, 0.02) for call in ("GetValues", *["GetActuatorsState"] * 3)]
        assert answers == [False, None, None, False]
        bench.services.clear_faults()
        bench.now("calls_lost=0.3")
        lost = [await held(bench, "GetValues", 1.0) for _ in range(1000)]
        assert 250 < sum(map(bool, lost)) < 350

    asyncio.run(ask())


def test_faults_through_the_command_line_and_its_input():
    with spawn_twin("kbot", faults=["gyro_unit"], fault_input=True, lockstep=True) as twin:
        assert twin.process.stdin is not None and twin.process.stdout is not None

        def say(line: str) -> dict:
            twin.process.stdin.write(f"{line}\n")
            twin.process.stdin.flush()
            return json.loads(twin.process.stdout.readline())

        assert json.loads(twin.process.stdout.readline())["event"] == "fault gyro_unit"
        began = time.monotonic()
        told = say("imu_frozen")
        assert told["event"] == "fault imu_frozen" and began <= told["monotonic_s"] <= time.monotonic()
        assert say("imu_frozn")["event"].startswith("refused: fault 'imu_frozn': unknown; did you mean")
        assert say("clear")["event"] == "clear"


def test_a_twin_refuses_a_fault_that_is_none():
    with pytest.raises(TwinFaultError, match="did you mean imu_frozen"):
        Twin("kbot", faults=["imu_frozn"])
