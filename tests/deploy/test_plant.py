"""The plant of the twin: latency, friction, play, jitter, loss, stalls, sampling, pushes, offsets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from deploy.twin.plant import Plant, Sample
from deploy.twin.reality import Reality, parse_reality
from robots.load import load_robot

ROBOT = load_robot("kbot")
HOME = np.asarray(ROBOT.column("home_rad"))


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
        plant.model.opt.gravity[:] = 0.0  # the load alone
        for share in np.linspace(0.01, 1.0, 100):  # gently: nothing damps the sway of what friction holds
            plant.data.qfrc_applied[plant.built.dof_ids] = 0.5 * share
            plant.advance(round(0.03 / timestep_s))
        moved.append(plant.read().position)
    give = 0.5 * timestep_s**2 / np.asarray(ROBOT.column("armature"))
    assert np.abs(moved[0] - HOME - give).max() < 2e-4
    # not all: one limb's motion holds back another's
    assert np.sum(moved[1] - HOME > give + 0.1) > 12


def test_encoders_do_not_see_play_and_spring_and_zero_is_the_motors() -> None:
    joint = ROBOT.joint_names.index("dof_left_elbow_02")
    soft = {"play_rad": {"dof_left_elbow_02": 0.04}, "stiffness_nm_rad": {"dof_left_elbow_02": 50.0}}
    plant = driven(parse_reality({"joints": {**soft, "zero_offset_rad": {"dof_left_elbow_02": 0.1}}}))
    plant.model.opt.gravity[:] = 0.0  # the load alone
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


@pytest.mark.parametrize(("shape", "farthest"), [("uniform", 3**0.5), ("gaussian", np.inf)])
def test_noise_is_of_the_spread_that_is_asked_and_a_uniform_one_ends(shape: str, farthest: float) -> None:
    told, calm = (readings({"noise": shape, "position_noise_rad": std}) for std in (0.01, 0.0))
    off = np.concatenate([a.position - b.position for a, b in zip(told, calm, strict=True)]) / 0.01
    assert off.std() == pytest.approx(1.0, rel=0.05)
    assert (np.abs(off).max() <= farthest + 1e-9) and (shape == "uniform" or np.abs(off).max() > 3**0.5)


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
    monkeypatch.setattr("deploy.twin.plant.TRUTH_ROWS", 64)
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


def test_a_robot_that_hangs_carries_the_weight_of_its_limbs() -> None:
    plant, zeros = Plant("kbot", start="hang"), np.zeros(len(HOME))
    for j, joint in enumerate(ROBOT.joints):
        plant.configure(j, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    plant.command(range(len(HOME)), HOME, zeros, zeros)
    plant.advance(1500)
    # with the base at rest this is what gravity asks of the motors
    weight = plant.data.qfrc_bias[plant.built.dof_ids]
    assert np.abs(weight).max() > 2.0
    assert (np.abs(plant.read().torque - weight) <= np.asarray(ROBOT.column("friction_nm")) + 0.02).all()
    base = plant.data.qpos[plant.built.base_position]
    assert np.array_equal(base, plant._held_qpos[plant.built.base_position])
