"""The twin through pykos: the K-Bot server's semantics, real time, lock-step, delays and pushes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2
from pykos import KOS

from deploy.twin.reality import parse_reality
from deploy.twin.server import Twin, spawn_twin
from robots.load import load_robot

ROBOT = load_robot("kbot")
IDS = list(ROBOT.joint_ids)
HOME = np.asarray(ROBOT.column("home_rad"))


def talk(port: int, what: Callable[[KOS], Awaitable[Any]]) -> Any:
    """Run a conversation with the twin and close the channel."""

    async def main() -> Any:
        kos = KOS(ip="127.0.0.1", port=port)
        try:
            return await asyncio.wait_for(what(kos), 60)
        finally:
            await kos.close()

    return asyncio.run(main())


async def torque_on(kos: KOS, kp_scale: float = 1.0) -> None:
    for j in ROBOT.joints:
        done = await kos.actuator.configure_actuator(
            actuator_id=j.id, kp=j.kp * kp_scale, kd=j.kd, max_torque=j.torque_limit_nm, torque_enabled=True
        )
        assert done.success


async def send(kos: KOS, target_rad: np.ndarray) -> Any:
    degrees = np.degrees(target_rad).tolist()
    commands: Any = [
        {"actuator_id": i, "position": p, "velocity": 0.0, "torque": 0.0} for i, p in zip(IDS, degrees, strict=True)
    ]
    return await kos.actuator.command_actuators(commands)


async def positions(kos: KOS) -> np.ndarray:
    states = await kos.actuator.get_actuators_state(IDS)
    by_id = {s.actuator_id: s.position for s in states.states}
    return np.radians([by_id[i] for i in IDS])


@contextlib.contextmanager
def reality_file(folder: Path, text: str) -> Iterator[Path]:
    path = folder / "reality.yaml"
    path.write_text(text)
    yield path


@pytest.fixture(scope="module")
def lockstep() -> Iterator[int]:
    with spawn_twin(lockstep=True) as twin:
        yield twin.port


def test_state_is_in_degrees_and_empty_or_unknown_ids_give_nothing(lockstep: int) -> None:
    async def ask(kos: KOS) -> tuple[Any, Any, Any]:
        await kos.sim.reset()
        stub = kos.actuator.stub
        some = await kos.actuator.get_actuators_state([IDS[1], IDS[0], 99])
        return some, await stub.GetActuatorsState(actuator_pb2.GetActuatorsStateRequest()), await positions(kos)

    some, none, measured = talk(lockstep, ask)
    assert [s.actuator_id for s in some.states] == [IDS[1], IDS[0]]
    assert len(none.states) == 0
    np.testing.assert_allclose(measured, HOME, atol=1e-9)
    assert some.states[0].online
    assert some.states[0].position == pytest.approx(math.degrees(HOME[1]))


def test_a_gain_left_out_becomes_zero_and_a_torque_limit_120(lockstep: int) -> None:
    async def ask(kos: KOS) -> tuple[Any, Any]:
        await kos.sim.reset()
        await kos.actuator.configure_actuator(actuator_id=IDS[0], kp=50.0, kd=2.0, max_torque=30.0, torque_enabled=True)
        before = (await kos.actuator.get_actuators_state([IDS[0]])).states[0]
        await kos.actuator.configure_actuator(actuator_id=IDS[0], torque_enabled=False)
        return before, (await kos.actuator.get_actuators_state([IDS[0]])).states[0]

    before, after = talk(lockstep, ask)
    assert (before.kp, before.kd, before.max_torque, before.torque_enabled) == (50.0, 2.0, 30.0, True)
    assert (after.kp, after.kd, after.max_torque, after.torque_enabled) == (0.0, 0.0, 120.0, False)


def test_unknown_ids_and_non_finite_numbers_are_answered_with_errors(lockstep: int) -> None:
    async def ask(kos: KOS) -> tuple[Any, Any, Any]:
        bad: Any = [
            {"actuator_id": 99, "position": 1.0},
            {"actuator_id": IDS[0], "position": float("nan")},
            {"actuator_id": IDS[1], "position": 0.0},
        ]
        return (
            await kos.actuator.command_actuators(bad),
            await kos.actuator.configure_actuator(actuator_id=99, kp=1.0),
            await kos.sim.reset(joints=[{"name": "no_such_joint", "pos": 0.0}]),
        )

    commanded, configured, reset = talk(lockstep, ask)
    assert [(r.actuator_id, r.success) for r in commanded.results] == [(99, False), (IDS[0], False), (IDS[1], True)]
    assert "99" in commanded.results[0].error.message
    assert not configured.success and "99" in configured.error.message
    assert not reset.success and "no_such_joint" in reset.error.message


def test_a_position_left_out_of_a_command_is_zero_degrees(lockstep: int) -> None:
    async def ask(kos: KOS) -> float:
        await kos.sim.reset()
        await torque_on(kos)
        await send(kos, HOME)
        elbow = ROBOT.joint_names.index("dof_left_elbow_02")
        await kos.actuator.command_actuators([{"actuator_id": IDS[elbow], "velocity": 0.0}])
        await kos.sim.step(300)
        return float((await positions(kos))[elbow])

    # home is -90 degrees
    assert abs(talk(lockstep, ask)) < 0.3


def test_the_robot_is_held_until_torque_is_on_and_a_command_has_come(lockstep: int) -> None:
    async def ask(kos: KOS) -> list[np.ndarray]:
        await kos.sim.reset()
        seen = []
        for i in IDS:
            await kos.actuator.configure_actuator(actuator_id=i, torque_enabled=False)
        await send(kos, HOME)
        await kos.sim.step(100)
        seen.append(await positions(kos))  # a command, but no torque
        await torque_on(kos)
        await kos.sim.step(100)
        seen.append(await positions(kos))  # torque, but no command since
        await send(kos, HOME)
        await kos.sim.step(100)
        seen.append(await positions(kos))
        return seen

    no_torque, no_command, free = talk(lockstep, ask)
    np.testing.assert_allclose(no_torque, HOME, atol=1e-9)
    np.testing.assert_allclose(no_command, HOME, atol=1e-9)
    assert np.abs(free - HOME).max() > 1e-3


def test_imu_reads_gravity_deg_per_second_and_x_y_z_w(lockstep: int) -> None:
    async def ask(kos: KOS) -> tuple[Any, Any, Any, Any]:
        await kos.sim.reset()
        await torque_on(kos)
        await send(kos, HOME)
        await kos.sim.step(50)
        quats, gyro = [], []
        for _ in range(2):
            quats.append(await kos.imu.stub.GetQuaternion(Empty()))
            gyro.append(await kos.imu.stub.GetValues(Empty()))
            await kos.sim.step(5)
        return quats, gyro, None, None

    quats, gyro, *_ = talk(lockstep, ask)
    before, after = (np.asarray([q.w, q.x, q.y, q.z]) for q in quats)
    assert np.linalg.norm(before) == pytest.approx(1.0)
    # small rotation over 5 steps of 2 ms: 2 * conj(before) * after, vector part
    w, v = before[0], -before[1:]
    turned = 2 * (w * after[1:] + after[0] * v + np.cross(v, after[1:])) / 0.01
    told = np.asarray([[g.gyro_x, g.gyro_y, g.gyro_z] for g in gyro]).mean(axis=0)
    # the fall has begun; degrees/s and rad/s differ by 57
    assert np.linalg.norm(np.degrees(turned)) > 1.0
    np.testing.assert_allclose(told, np.degrees(turned), rtol=0.15, atol=0.5)


def test_reset_places_base_and_joints_and_an_absent_quaternion_is_upright(lockstep: int) -> None:
    async def ask(kos: KOS) -> tuple[np.ndarray, Any, Any]:
        knee = ROBOT.joint_names[0]
        upright = await kos.sim.reset(pos={"x": 1.0, "y": 2.0, "z": 1.5}, joints=[{"name": knee, "pos": 10.0}])
        assert upright.success
        first = await kos.imu.stub.GetQuaternion(Empty())
        half = math.sqrt(0.5)
        await kos.sim.reset(quat={"x": half, "y": 0.0, "z": 0.0, "w": half})
        rolled = await kos.imu.stub.GetQuaternion(Empty())
        await kos.sim.reset(joints=[{"name": knee, "pos": 10.0}])
        at = await positions(kos)
        await kos.sim.reset()
        return at, first, rolled

    at, first, rolled = talk(lockstep, ask)
    assert at[0] == pytest.approx(math.radians(10.0), abs=1e-6)
    np.testing.assert_allclose(at[1:], HOME[1:], atol=1e-9)
    up = 1 - 2 * (first.x**2 + first.y**2)
    assert up == pytest.approx(1.0, abs=1e-6)
    assert 1 - 2 * (rolled.x**2 + rolled.y**2) == pytest.approx(0.0, abs=1e-6)


def test_step_refuses_a_size_that_is_no_multiple_of_the_physics_step(lockstep: int) -> None:
    async def ask(kos: KOS) -> tuple[Any, Any]:
        return await kos.sim.step(1, 0.003), await kos.sim.step(1, 0.02)

    odd, even = talk(lockstep, ask)
    assert not odd.success and "multiple" in odd.error.message
    assert even.success


def test_gravity_can_be_set_and_read_back(lockstep: int) -> None:
    async def ask(kos: KOS) -> float:
        await kos.sim.set_parameters(gravity=1.62)
        got = (await kos.sim.get_parameters()).parameters.gravity
        await kos.sim.set_parameters(gravity=9.81)
        return got

    assert talk(lockstep, ask) == pytest.approx(1.62, rel=1e-6)


def conversation(seed: int) -> bytes:
    """What a twin with noise, losses, jitter and pushes answers to a fixed sequence of commands."""
    noisy = parse_reality(
        {
            "commands": {"latency_s": 0.005, "jitter_s": 0.01, "loss": 0.1},
            "sensors": {"latency_s": 0.003, "position_noise_rad": 0.01, "orientation_noise_rad": 0.01},
            "pushes": {"force_max_n": 80, "start_s": 0.0},
        }
    )

    async def ask(kos: KOS) -> bytes:
        await torque_on(kos)
        answers = b""
        for k in range(15):
            await send(kos, HOME + 0.05 * math.sin(k))
            await kos.sim.step(1, 0.02)
            # gathered, so that the order of arrival is not fixed
            for answer in await asyncio.gather(
                kos.imu.stub.GetQuaternion(Empty()),
                kos.imu.stub.GetValues(Empty()),
                kos.actuator.get_actuators_state(IDS),
            ):
                answers += answer.SerializeToString(deterministic=True)
        return answers

    with Twin("kbot", noisy, seed=seed, lockstep=True) as twin:
        return talk(twin.port, ask)


def test_lockstep_same_seed_and_commands_give_the_same_bytes() -> None:
    first = conversation(3)
    assert conversation(3) == first
    assert conversation(4) != first


def test_real_time_runs_by_the_clock_pauses_and_refuses_step() -> None:
    with Twin("kbot") as twin:

        async def ask(kos: KOS) -> tuple[float, float, float, Any, Any]:
            clock, steps = time.monotonic(), twin.plant.step_count
            await asyncio.sleep(0.5)
            await kos.imu.stub.GetQuaternion(Empty())
            ran = (twin.plant.step_count - steps) * twin.plant.dt / (time.monotonic() - clock)
            refused = await kos.sim.step(1)
            await kos.sim.set_paused(True)
            steps = twin.plant.step_count
            await asyncio.sleep(0.2)
            await kos.imu.stub.GetQuaternion(Empty())
            paused = twin.plant.step_count - steps
            stepped = await kos.sim.step(7)
            return ran, paused, twin.plant.step_count - steps, refused, stepped

        ran, paused, after, refused, stepped = talk(twin.port, ask)
    assert ran == pytest.approx(1.0, abs=0.1)
    assert paused == 0
    assert stepped.success and after == 7
    assert not refused.success and "lockstep" in refused.error.message


def test_a_dead_client_leaves_the_last_target_in_force() -> None:
    elbow = ROBOT.joint_names.index("dof_left_elbow_02")
    target = HOME.copy()
    target[elbow] += 0.6
    with Twin("kbot", start="hang") as twin:

        async def command(kos: KOS) -> None:
            await torque_on(kos)
            await send(kos, target)

        talk(twin.port, command)  # and the channel is closed: nobody is there any more
        time.sleep(1.0)
        late = talk(twin.port, positions)
    assert late[elbow] == pytest.approx(target[elbow], abs=0.15)
    assert abs(late[elbow] - HOME[elbow]) > 0.3


def test_calls_fail_and_stall_as_often_as_the_reality_says() -> None:
    import grpc

    reality = parse_reality({"network": {"fail": 0.3, "stall": 0.2, "stall_s": 0.05}})
    with Twin("kbot", reality, lockstep=True) as twin:

        async def ask(kos: KOS) -> tuple[int, int]:
            failed = slow = 0
            for _ in range(100):
                start = time.monotonic()
                try:
                    await kos.imu.stub.GetQuaternion(Empty())
                except grpc.aio.AioRpcError as error:
                    assert error.code() == grpc.StatusCode.UNAVAILABLE
                    failed += 1
                slow += time.monotonic() - start >= 0.05
            return failed, slow

        failed, slow = talk(twin.port, ask)
    assert 12 <= failed <= 50
    assert 5 <= slow <= 60
