"""The twin through pykos: the K-Bot server's semantics, real time, lock-step, delays and pushes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2
from pykos import KOS

from deploy.plant import Plant, Sample
from deploy.reality import Reality, RealityError, load_reality, parse_reality
from deploy.twin import Twin, TwinError, spawn_twin
from robots.load import load_robot

ROBOT = load_robot("kbot")
IDS = list(ROBOT.joint_ids)
HOME = np.asarray(ROBOT.column("home_rad"))
CONFIGS = Path(__file__).parents[2] / "configs"


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


def driven(reality: Reality, start: str = "hang", seed: int = 0) -> Plant:
    """A plant with its gains on and the home pose commanded."""
    plant = Plant("kbot", reality, seed=seed, start=start)
    for i, j in enumerate(ROBOT.joints):
        plant.configure(i, kp=j.kp, kd=j.kd, max_torque=j.torque_limit_nm, torque_enabled=True)
    zeros = [0.0] * plant.joints
    plant.command(range(plant.joints), HOME.tolist(), zeros, zeros)
    return plant


@pytest.mark.parametrize(
    ("latency_s", "section"), [(0.005, "commands"), (0.05, "commands"), (0.03, "sensors"), (0.0047, "commands")]
)
def test_a_latency_setting_delays_the_measured_response_by_just_that(latency_s: float, section: str) -> None:
    def response(reality: Reality) -> np.ndarray:
        curves = []
        for step in (0.3, 0.0):  # without the step: what the hanging robot does anyway
            plant = driven(reality)
            plant.advance(200)
            plant.command([17], [HOME[17] + step], [0.0], [0.0])
            curve = []
            for _ in range(120):
                plant.advance()
                curve.append(plant.read().position[17])
            curves.append(np.asarray(curve))
        return curves[0] - curves[1]

    reference = response(Reality())
    late = response(parse_reality({section: {"latency_s": latency_s}}))
    times = 0.002 * np.arange(120)
    level = 0.3 * reference.max()
    first, second = (np.interp(level, c[: c.argmax() + 1], times[: c.argmax() + 1]) for c in (reference, late))
    assert second - first == pytest.approx(latency_s, abs=0.0001)


@pytest.mark.parametrize("timestep_s", [0.001, 0.002, 0.005, 0.01])
def test_friction_above_a_load_holds_every_joint_without_torque_and_friction_below_it_does_not(
    timestep_s: float,
) -> None:
    moved = []
    for added in (1.0, 0.0):
        plant = Plant(
            "kbot", parse_reality({"joints": {"friction_add_nm": added}}), start="hang", timestep_s=timestep_s
        )
        plant.data.qfrc_applied[plant.built.dof_ids] = 0.5
        plant.advance(round(1.5 / timestep_s))
        moved.append(plant.read().position)
    give = 0.5 * timestep_s**2 / np.asarray(ROBOT.column("armature"))
    assert np.abs(moved[0] - HOME - give).max() < 1e-4
    # not all: one limb's motion holds back another's
    assert np.sum(moved[1] - HOME > give + 0.1) > 12


def test_encoders_do_not_see_play_and_spring_and_zero_is_the_motors() -> None:
    joint = ROBOT.joint_names.index("dof_left_elbow_02")
    soft = {"play_rad": {"dof_left_elbow_02": 0.04}, "stiffness_nm_rad": {"dof_left_elbow_02": 50.0}}
    plant = driven(parse_reality({"joints": {**soft, "zero_offset_rad": {"dof_left_elbow_02": 0.1}}}))
    plant.data.qfrc_applied[plant.built.dof_ids[joint]] = 1.5
    plant.advance(1500)
    sample, true = plant.read(), plant.truth()["joint_position_rad"][-1]
    # the joint is half the gap and 1.5 / 50 rad beyond the motor, the motor 1.5 / 40 beyond its target but for friction
    assert sample.position[joint] - 0.1 - true[joint] == pytest.approx(-0.02 - 0.03, abs=1e-4)
    assert sample.position[joint] - HOME[joint] == pytest.approx(1.5 / 40, abs=0.1 / 40)
    others = np.arange(plant.joints) != joint
    np.testing.assert_allclose(sample.position[others], true[others], atol=1e-9)
    plant.set_zero(joint)
    assert plant.read().position[joint] == pytest.approx(0.0, abs=1e-12)


def test_a_torque_command_acts_without_a_position_gain_and_a_velocity_command_through_kd() -> None:
    plant = Plant("kbot", start="hang")
    joint = ROBOT.joint_names.index("dof_left_elbow_02")
    plant.configure(joint, kp=0.0, kd=0.5, max_torque=11.9, torque_enabled=True)
    plant.command([joint], [3.0], [0.0], [2.0])
    plant.advance()
    assert plant.read().torque[joint] == pytest.approx(2.0)
    plant.place()
    plant.command([joint], [3.0], [1.5], [0.0])
    plant.advance()
    # 0.5 N m s/rad * 1.5 rad/s
    assert plant.read().torque[joint] == pytest.approx(0.75)
    plant.place()
    plant.command([joint], [3.0], [0.0], [50.0])
    plant.advance()
    assert plant.read().torque[joint] == pytest.approx(11.9)


def arrivals(settings: dict[str, Any], ticks: int = 60) -> tuple[Plant, np.ndarray]:
    """A plant told targets 1, 2, 3, ... [mrad] every 20 ms, and what had arrived in each physics step [mrad]."""
    plant = driven(parse_reality({"commands": settings}), seed=1)
    seen = []
    for k in range(1, ticks + 1):
        plant.command([0], [0.001 * k], [0.0], [0.0])
        for _ in range(10):
            plant.advance()
            seen.append(1000 * plant._arrived[0])
    return plant, np.asarray(seen)


def test_a_command_that_jitter_lets_overtake_is_dropped_or_puts_the_old_target_back() -> None:
    _, ordered = arrivals({"jitter_s": 0.05})
    assert (np.diff(ordered[40:]) > -1e-9).all()
    _, free = arrivals({"jitter_s": 0.05, "ordered": False})
    back = np.diff(free[40:]) < -0.5
    assert 3 <= back.sum() <= 30
    # no target is older than the jitter and the commands that overtook it
    for seen in (ordered[40:], free[40:]):
        sent = 1 + np.arange(40, 600) // 10
        assert (sent - seen).min() > -1e-9
        assert 1 < (sent - seen).max() < 4


def test_a_command_acts_from_its_arrival_within_a_physics_step() -> None:
    plant = driven(parse_reality({"commands": {"jitter_s": 0.01}}))
    plant.advance(20)

    class Half:
        def random(self) -> float:
            return 0.45

    plant._command_rng = Half()  # type: ignore[assignment]
    before = plant._arrived[:2].copy()
    plant.command([0], [1.0], [0.0], [0.0])
    plant.command([1], [2.0], [0.0], [0.0])  # takes nothing from the first
    seen = []
    for _ in range(4):
        plant.advance()
        seen.append((plant._arrived[:2] - before) / (np.asarray([1.0, 2.0]) - before))
    # 4.5 ms: a quarter of the third step of 2 ms is over
    np.testing.assert_allclose(seen, [[0, 0], [0, 0], [0.75, 0.75], [1, 1]], atol=1e-9)


def test_loss_loses_as_many_commands_as_it_says() -> None:
    lossy = driven(parse_reality({"commands": {"loss": 0.5}}))
    zeros = [0.0] * lossy.joints
    for _ in range(200):
        lossy.command(range(lossy.joints), HOME.tolist(), zeros, zeros)
    assert 60 < lossy.commands_lost < 140


def test_a_stall_holds_the_last_command_for_its_duration() -> None:
    # stalls at 0.507, 1.014, 1.521, ... s of 0.1 s each: five commands, every 20 ms, are lost
    plant, seen = arrivals({"stall_interval_s": 0.507, "stall_duration_s": 0.1}, ticks=150)
    lengths = np.unique(seen.round().astype(int), return_counts=True)[1]
    assert sorted(lengths) == [10] * 120 + [60] * 5
    assert plant.commands_lost == 25
    at_random = {"stall_interval_s": [0.3, 0.8], "stall_duration_s": [0.04, 0.12]}
    first, again = (arrivals(at_random)[1].tobytes() for _ in range(2))
    assert first == again != arrivals({})[1].tobytes()


def readings(sensors: dict[str, Any], ticks: int = 300, seed: int = 0) -> list[Sample]:
    """What a standing robot's sensors tell every 20 ms."""
    plant = driven(parse_reality({"sensors": sensors}), start="home", seed=seed)
    told = []
    for _ in range(ticks):
        plant.advance(10)
        told.append(plant.read())
    return told


def imu_bits(sample: Sample) -> bytes:
    return np.concatenate([sample.quat_wxyz, sample.gyro_b, sample.accel_b]).tobytes()


def repeats(bits: list[bytes]) -> np.ndarray:
    return np.asarray([a == b for a, b in itertools.pairwise(bits)])


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_an_imu_of_20_hz_in_a_loop_of_50_hz_repeats_its_bits_and_its_age_is_a_saw_tooth(noise: float) -> None:
    imu = {"rate_hz": 20, "latency_s": 0.015, "phase_s": 0.003, "skew": -0.03}
    told = readings({"latency_s": 0.005, "imu": imu, "gyro_noise_rad_s": noise, "orientation_noise_rad": noise})
    repeated = repeats([imu_bits(s) for s in told])
    # 20 / 0.97 samples a second for 50 readings
    assert 0.57 <= repeated.mean() <= 0.6
    age = np.asarray([s.imu_age_s for s in told])
    assert age.min() == pytest.approx(0.02, abs=0.002) and age.min() >= 0.02 - 5e-5
    assert age.max() == pytest.approx(0.02 + 0.05 * 0.97, abs=0.002) and age.max() <= 0.02 + 0.05 * 0.97
    np.testing.assert_allclose(np.diff(age)[repeated], 0.02)
    assert (np.diff(age)[~repeated] < 0).all()
    # the joints are polled
    assert not repeats([s.position.tobytes() for s in told]).any()
    np.testing.assert_allclose([s.joint_age_s for s in told], 0.005)


def test_a_sample_tells_the_joints_as_they_were_when_it_was_taken() -> None:
    plant = driven(parse_reality({"sensors": {"joints": {"rate_hz": 30, "latency_s": 0.014, "jitter_s": 0.01}}}))
    nominal, truth, ages = driven(Reality()), [], []
    for k in range(150):
        for robot in (plant, nominal):
            robot.command([17], [HOME[17] + 0.3 * math.sin(0.1 * k)], [0.0], [0.0])
            robot.advance()
        truth.append(nominal.read().position[17])
        told = plant.read()
        ages.append(told.joint_age_s)
        if k > 60:
            then = np.interp((k - told.joint_age_s / 0.002), np.arange(len(truth)), truth)
            assert told.position[17] == pytest.approx(then, abs=1e-12)
    assert 0.014 <= min(ages[60:]) < max(ages[60:]) <= 0.024 + 1 / 30


def test_an_answer_that_is_lost_repeats_the_one_before() -> None:
    told = readings({"joints": {"loss": 0.3}, "position_noise_rad": 0.01})
    repeated = repeats([s.position.tobytes() + s.velocity.tobytes() for s in told])
    assert repeated.mean() == pytest.approx(0.3, abs=0.08)
    age = np.asarray([s.joint_age_s for s in told])[1:]
    np.testing.assert_allclose(age[~repeated], 0.0, atol=1e-12)
    assert (age[repeated] > 0.0199).all() and age.max() > 0.039
    assert not repeats([imu_bits(s) for s in told]).any()


def test_lost_samples_of_a_sensor_with_its_own_rate_hold_the_one_before() -> None:
    age = np.asarray([s.imu_age_s for s in readings({"imu": {"rate_hz": 50, "phase_s": 0.01, "loss": 0.2}})])
    # 10 ms old, or 20 ms more for each that was lost
    lost = (age - 0.01) / 0.02
    np.testing.assert_allclose(lost, lost.round(), atol=1e-6)
    assert np.mean(lost.round() > 0) == pytest.approx(0.2, abs=0.07)
    assert lost.max() >= 2


def test_the_same_seed_gives_the_same_ages_and_another_seed_others() -> None:
    sensors = {"imu": {"rate_hz": 20, "jitter_s": 0.02, "loss": 0.1}, "joints": {"jitter_s": 0.01}}
    first, again, other = ([(s.imu_age_s, s.joint_age_s) for s in readings(sensors, 60, k)] for k in (0, 0, 5))
    assert first == again != other


def test_reading_twice_or_more_often_changes_no_sample() -> None:
    settings = {"sensors": {"imu": {"rate_hz": 20, "loss": 0.1, "jitter_s": 0.02}, "gyro_noise_rad_s": 0.1}}
    seldom, often = (driven(parse_reality(settings), start="home") for _ in range(2))
    for _ in range(40):
        seldom.advance(10)
        for _ in range(5):
            often.advance(2)
            often.read()
        assert imu_bits(seldom.read()) == imu_bits(often.read())


def test_pushes_move_the_base_within_their_limits() -> None:
    pushed = driven(parse_reality({"pushes": {"force_max_n": 60, "force_min_n": 40, "start_s": 0.1}}), start="home")
    calm = driven(Reality(), start="home")
    for plant in (pushed, calm):
        plant.advance(300)
    force = np.linalg.norm(pushed.truth()["push_n"], axis=1)
    assert 40 <= force.max() <= 60
    assert force[pushed.truth()["time_s"] < 0.1].max() == 0.0
    difference = pushed.truth()["base_position_m"][-1] - calm.truth()["base_position_m"][-1]
    assert np.linalg.norm(difference[:2]) > 0.01
    assert not calm.truth()["push_n"].any()


def test_the_truth_is_bounded_and_stays_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.plant.TRUTH_ROWS", 64)
    plant = Plant("kbot")
    plant.advance(1000)
    time_s = plant.truth()["time_s"]
    assert 16 <= len(time_s) < 64
    assert time_s[-1] > 1.9
    assert len(set(np.diff(time_s).round(9))) == 1


def test_offsets_masses_noise_and_gains_are_what_the_reality_says() -> None:
    reality = parse_reality(
        {
            "body": {"mass_scale": 1.1, "payload_kg": 2.0},
            "joints": {"zero_offset_rad": {"dof_left_knee_04": 0.05}, "kp_scale": {"all": 0.5}},
            "sensors": {"gyro_bias_rad_s": [0.1, 0.0, 0.0], "velocity_noise_rad_s": 0.2},
        }
    )
    plant = Plant("kbot", reality)
    nominal = Plant("kbot")
    knee = ROBOT.joint_names.index("dof_left_knee_04")
    assert plant.model.body_mass.sum() == pytest.approx(1.1 * nominal.model.body_mass.sum() + 2.0)
    sample = plant.read()
    assert sample.position[knee] - HOME[knee] == pytest.approx(0.05)
    assert sample.gyro_b[0] == pytest.approx(0.1)
    plant.configure(0, kp=100.0, kd=1.0, max_torque=10.0)
    assert plant.params.kp[0] == pytest.approx(50.0)
    noise = []
    for _ in range(200):
        plant.advance()
        noise.append(plant.read().velocity)
    assert np.std(noise) == pytest.approx(0.2, rel=0.1)


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


def test_reality_files_are_checked_and_the_nearest_name_is_told(tmp_path: Path) -> None:
    for text, message in (
        ("comands: {}", "did you mean commands?"),
        ("commands: {latency: 1}", "did you mean commands.latency_s"),
        ("commands: {latency_s: fast}", "commands.latency_s: got 'fast'"),
        ("commands: {loss: 1.5}", "0 to 1 (a share)"),
        ("joints: {stifness_nm_rad: 30}", "did you mean joints.stiffness_nm_rad?"),
        ("joints: {play_rad: {all: -0.1}}", "joints.play_rad.all: got -0.1, expected 0 to 3.14159 (radians)"),
        ("sensors: {gyro_unit: rpm}", "deg/s or rad/s"),
        ("pushes: {duration_s: [0.5, 0.1]}", "low at most high"),
        ("commands: {ordered: 1}", "commands.ordered: got 1, expected true or false"),
        ("commands: {stall_interval_s: [0, 1]}", "commands.stall_interval_s: got [0.0, 1.0], expected a least above 0"),
        ("sensors: {imu: {rate: 20}}", "'sensors.imu.rate' is unknown; did you mean sensors.imu.rate_hz?"),
        ("sensors: {joints: {loss: 2}}", "sensors.joints.loss: got 2, expected 0 to 1 (a share)"),
        ("sensors: {imu: {rate_hz: 0.5}}", "sensors.imu.rate_hz: got 0.5, expected 0 or at least 1"),
        ("sensors: {imu: 20}", "sensors.imu: got 20, expected a mapping"),
        ("[1, 2", "not YAML"),
        ("- 1", "expected a mapping with name, body"),
    ):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(RealityError) as caught:
            load_reality(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(RealityError, match="cannot read"):
        load_reality(tmp_path / "none.yaml")
    with pytest.raises(RealityError, match="did you mean dof_left_knee_04"):
        Plant("kbot", parse_reality({"joints": {"kp_scale": {"left_knee_04": 0.9}}}))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("reality_*.yaml")), ids=lambda p: p.stem)
def test_shipped_realities_load_and_survive_json(path: Path) -> None:
    reality = load_reality(path)
    Plant("kbot", reality)
    assert parse_reality(reality.to_dict()) == reality


def test_channels_survive_json_and_those_left_out_are_polled() -> None:
    reality = parse_reality({"sensors": {"imu": {"rate_hz": 20, "loss": 0.1}}, "commands": {"ordered": False}})
    assert parse_reality(json.loads(json.dumps(reality.to_dict()))) == reality
    assert reality.sensors.imu.rate_hz == 20
    assert reality.sensors.joints == Reality().sensors.joints


def command_line(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.twin", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_0_and_the_truth_is_written(tmp_path: Path, number: signal.Signals) -> None:
    process = command_line("--port", "0", "--truth", str(tmp_path / "truth.npz"))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("twin: kbot on 127.0.0.1:") and "127.0.0.1:0 " not in line
    time.sleep(0.3)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    truth = np.load(tmp_path / "truth.npz")
    assert truth["time_s"][-1] > 0.2
    assert truth["joint_position_rad"].shape == (len(truth["time_s"]), 20)
    assert truth["held"].all()
    assert truth["qpos"].shape == (len(truth["time_s"]), 27)
    np.testing.assert_allclose(truth["qpos"][0, 7:], HOME)


def test_a_port_in_use_is_one_line_and_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = command_line("--port", str(port), "--lockstep")
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert out == ""
        assert errors.startswith(f"ksim twin: port {port} ") and errors.count("\n") == 1
        with pytest.raises(TwinError, match=f"port {port}"), spawn_twin(port=port):
            pass
        with pytest.raises(TwinError, match=f"port {port}"):
            Twin("kbot", port=port).start()


def one_line(*arguments: str) -> str:
    process = command_line("--port", "0", *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "", (process.returncode, out, errors)
    assert errors.startswith("ksim twin: ") and errors.count("\n") == 1, errors
    return errors


def test_a_place_where_the_truth_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here already")
    assert "is a folder; expected a file name ending in .npz" in one_line("--truth", str(tmp_path))
    assert "file" in one_line("--truth", str(file / "truth.npz"))
    assert "No such file or directory; expected a path that exists" in one_line("--truth", "/proc/x/truth.npz")
    assert file.read_text() == "here already"


def test_a_host_that_cannot_be_a_name_is_one_line() -> None:
    for host in ("a..b", "x" * 80 + ".local"):
        assert f"--host: got '{host}', expected an address" in one_line("--host", host)


def test_the_truth_is_written_when_the_terminal_is_gone(tmp_path: Path) -> None:
    process = command_line("--port", "0", "--truth", str(tmp_path / "truth.npz"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=30)
    assert (tmp_path / "truth.npz").exists()
