"""The KOS boundary against a real gRPC server with the K-Bot's semantics."""

import asyncio
import dataclasses
import math
import socket
import subprocess
import sys

import numpy as np
import pytest

from deploy.errors import ConnectionLost, DeployError, FaultError, SafetyError
from deploy.robot.gyro import GyroCheck
from deploy.robot.kos import KosRobot
from deploy.robot.safety import Limits, damp, hold, limit, nominal
from deploy.robot.state import RobotState


def on(server, work, **options):
    """Run `work(robot)` on a connected robot."""

    async def session():
        async with KosRobot(server.robot, "127.0.0.1", server.port, **options) as robot:
            return await work(robot)

    with asyncio.Runner() as runner:
        return runner.run(session())


def read(server, **options):
    return on(server, lambda robot: robot.read(), **options)


def test_a_reading_is_in_radians_and_in_the_specification_s_order(server):
    # the server answers in ascending id: 12, 25, 31; the specification has 31, 12, 25
    server.position_deg = {31: 90.0, 12: -45.0, 25: 10.0}
    state = read(server)
    assert np.allclose(state.joint_position, np.radians([90.0, -45.0, 10.0]), atol=1e-4)
    assert np.allclose(state.joint_velocity, np.radians([31.0, 12.0, 25.0]))
    assert np.allclose(state.joint_torque, [3.1, 1.2, 2.5])
    assert 0 < state.round_trip_s < 1


@pytest.mark.parametrize("order", [sorted, lambda ids: sorted(ids, reverse=True), list])
def test_the_order_of_the_answer_does_not_matter(server, order):
    server.position_deg = {31: 1.0, 12: 2.0, 25: 3.0}
    server.order = order
    assert np.allclose(np.degrees(read(server).joint_position), [1.0, 2.0, 3.0], atol=0.01)


def test_the_wire_s_quaternion_is_reordered_and_normalised(server):
    server.quat_wxyz = [0.9, 0.0, 0.9, 0.0]
    state = read(server)
    half = math.sqrt(0.5)
    assert np.allclose(state.quat_wxyz, [half, 0, half, 0])
    assert np.allclose(state.projected_gravity, [9.81, 0, 0])


@pytest.mark.parametrize(("unit", "factor"), [("deg/s", math.pi / 180), ("rad/s", 1.0)])
def test_the_gyro_s_unit_is_a_setting(server, unit, factor):
    server.gyro = [1.0, -2.0, 3.0]
    assert np.allclose(read(server, gyro_unit=unit).gyro_b, np.array([1.0, -2.0, 3.0]) * factor)


def test_an_unknown_gyro_unit_is_refused(robot):
    with pytest.raises(DeployError, match="expected one of deg/s, rad/s"):
        KosRobot(robot, gyro_unit="rpm")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: s.missing.add(12), r"knee \(id 12\) is missing"),
        (lambda s: s.offline.add(31), r"hip \(id 31\) is offline"),
        (lambda s: s.faults.update({25: ["over temperature", "stall"]}), r"ankle \(id 25\) reports over temp.*, stall"),
        (lambda s: s.position_deg.update({12: math.nan}), "knee: got a value that is not finite"),
        (lambda s: setattr(s, "quat_wxyz", [0.0] * 4), "orientation: got quaternion .* the IMU has no data"),
        (lambda s: setattr(s, "quat_wxyz", [math.nan, 0, 0, 1]), "orientation"),
        (lambda s: setattr(s, "accel", [0.0] * 3), "accelerometer: .* the IMU has no data"),
        (lambda s: setattr(s, "gyro", [math.inf, 0, 0]), "gyro: got"),
    ],
)
def test_a_robot_without_data_is_a_fault_that_names_the_part(server, break_it, message):
    break_it(server)
    with pytest.raises(FaultError, match=message) as caught:
        read(server)
    assert "\n" not in str(caught.value)


def test_an_accelerometer_of_zeros_is_a_fault_only_where_somebody_reads_it(server):
    server.accel = [0.0] * 3
    assert not read(server, accelerometer=False).accel_b.any()
    server.accel = [math.nan, 0.0, 0.0]
    with pytest.raises(FaultError, match=r"accelerometer: .* the IMU has no data"):
        read(server, accelerometer=False)


def test_a_command_is_sent_in_degrees_with_velocity_and_torque(server):
    limits = Limits.from_spec(server.robot)

    async def work(robot):
        state = await robot.read()
        target = limit([0.2, -0.4, 0.1], state.joint_position, state, limits, 0.02)
        return await robot.command(target)

    assert 0 < on(server, work) < 1
    sent = next(r for kind, r in server.requests if kind == "command").commands
    assert [c.actuator_id for c in sent] == [31, 12, 25]
    assert np.allclose([c.position for c in sent], np.degrees([0.2, -0.4, 0.1]))
    assert all(c.HasField("velocity") and c.HasField("torque") for c in sent)
    assert all(c.velocity == 0 and c.torque == 0 for c in sent)


def test_configure_sends_all_four_settings_for_every_joint(server):
    limits = Limits.from_spec(server.robot)
    on(server, lambda robot: robot.configure(nominal(limits)))
    for joint in server.robot.joints:
        assert server.gains[joint.id] == {"kp": joint.kp, "kd": 2.0, "max_torque": 20.0, "torque_enabled": True}
    on(server, lambda robot: robot.configure(damp(limits)))
    for _, request in server.requests:
        assert all(request.HasField(f) for f in ("kp", "kd", "max_torque", "torque_enabled"))
        assert not request.HasField("zero_position") and not request.HasField("new_actuator_id")
    assert all(g["kp"] == 0 and g["kd"] == 2 and g["torque_enabled"] for g in server.gains.values())


def test_gains_that_the_server_did_not_take_are_reported(server):
    limits = Limits.from_spec(server.robot)

    async def work(robot):
        await robot.configure(nominal(limits))
        before = await robot.gain_differences(nominal(limits))
        server.gains[12]["kp"] = 7.0
        return before, await robot.gain_differences(nominal(limits))

    assert on(server, work) == ([], ["knee: kp is 7, sent 40"])


def test_a_refused_command_or_configuration_names_the_joint(server):
    server.refuse = {12}
    limits = Limits.from_spec(server.robot)

    async def command(robot):
        await robot.command(hold(await robot.read()))

    with pytest.raises(FaultError, match=r"command refused: knee \(id 12\): no such actuator"):
        on(server, command)
    with pytest.raises(FaultError, match=r"configure refused: knee \(id 12\): bus error"):
        on(server, lambda robot: robot.configure(nominal(limits)))
    assert set(server.gains) == {31, 25}, "the other joints are configured all the same"


def test_only_what_the_safety_layer_made_can_be_sent(server):
    async def work(robot):
        with pytest.raises(SafetyError, match="expected a SafeTarget"):
            await robot.command(np.zeros(3))
        with pytest.raises(SafetyError, match="expected Gains"):
            await robot.configure({"kp": 1.0})
        return True

    assert on(server, work)
    assert [kind for kind, _ in server.requests if kind in ("command", "configure")] == []


@pytest.mark.parametrize("what", ["state", "imu", "quaternion"])
def test_a_late_answer_is_a_lost_connection_within_the_deadline(server, what):
    server.delay_s[what] = 1.0
    with pytest.raises(ConnectionLost, match="deadline exceeded"):
        on(server, lambda robot: robot.read(timeout_s=0.05))


def test_a_killed_server_is_a_lost_connection(server):
    async def work(robot):
        await robot.read()
        server.kill()
        await robot.read()

    with pytest.raises(ConnectionLost, match="unavailable") as caught:
        on(server, work)
    assert "\n" not in str(caught.value)


def test_no_server_is_one_line_within_the_time_given(robot):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def work():
            await KosRobot(robot, "127.0.0.1", port).connect(timeout_s=0.3)

        with pytest.raises(ConnectionLost, match=f"no KOS server at 127.0.0.1:{port} within 0.3 s; .*ksim twin"):
            asyncio.run(work())


def test_lock_step_is_asked_for_in_periods_and_its_refusal_says_what_to_do(server):
    with pytest.raises(FaultError, match=r"not in lock step.*--lockstep"):
        on(server, lambda robot: robot.step_simulation(0.02))
    server.lockstep = True
    on(server, lambda robot: robot.step_simulation(0.02))
    assert server.steps == [pytest.approx(0.02)]


def test_asyncio_is_not_patched_by_connecting(server):
    code = f"""
import asyncio
from deploy.robot.kos import KosRobot
from robots.spec import RobotSpec
import json
spec = RobotSpec.from_json(json.loads({__import__("json").dumps(server.robot.to_json())!r}))
async def main():
    async with KosRobot(spec, "127.0.0.1", {server.port}) as robot:
        await robot.read()
asyncio.run(main())
assert not hasattr(asyncio, "_nest_patched")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def turning(rate_rad_s, gyro_scale, seconds=1.0, dt=0.02, noise=0.0):
    """Readings of an IMU that rocks about x, with a gyro off by a factor."""
    rng = np.random.default_rng(0)
    for k in range(round(seconds / dt)):
        t = k * dt
        angle = rate_rad_s / 6.0 * math.sin(6.0 * t)
        rate = rate_rad_s * math.cos(6.0 * t)
        yield RobotState(
            joint_position=np.zeros(1),
            joint_velocity=np.zeros(1),
            joint_torque=np.zeros(1),
            quat_wxyz=np.array([math.cos(angle / 2), math.sin(angle / 2), 0, 0]),
            gyro_b=np.array([rate * gyro_scale, 0, 0]) + noise * rng.standard_normal(3),
            accel_b=np.array([0, 0, 9.81]),
            time_s=t,
            round_trip_s=0.001,
        )


@pytest.mark.parametrize(
    ("unit", "scale", "verdict", "words"),
    [
        ("deg/s", 1.0, "ok", "unit set to deg/s"),
        ("deg/s", math.pi / 180, "wrong", "try --gyro-unit rad/s"),
        ("rad/s", 180 / math.pi, "wrong", "try --gyro-unit deg/s"),
        ("deg/s", -1.0, "wrong", "turns against the orientation"),
    ],
)
def test_the_gyro_check_finds_a_wrong_unit_or_frame(unit, scale, verdict, words):
    check = GyroCheck(unit)
    for state in turning(0.5, scale):
        check.add(state)
    assert check.verdict == verdict and words in check.message
    # the slope is what the gyro has to be multiplied by; the trapezoid loses less than 1 % here
    assert check.slope == pytest.approx(1 / scale, rel=0.01)


def test_the_gyro_check_does_not_judge_a_robot_at_rest_or_noise():
    rest, noise = GyroCheck("deg/s"), GyroCheck("deg/s")
    for state in turning(0.0, 1.0):
        rest.add(state)
    for state in turning(0.05, 0.0, seconds=4.0, noise=0.5):
        noise.add(state)
    assert rest.verdict == noise.verdict == "not enough motion"
    assert "not enough motion" in rest.message
    assert GyroCheck("deg/s").message == "gyro: not enough motion (0.00 rad of motion, unit set to deg/s)"  # no nan


def test_the_gyro_check_leaves_out_repeated_readings():
    check = GyroCheck("deg/s")
    for state in turning(0.5, 1.0):
        check.add(state)
        check.add(dataclasses.replace(state, time_s=state.time_s + 0.005))
    assert check.verdict == "ok" and check.samples == 49
    assert check.slope == pytest.approx(1.0, rel=0.01)
