"""The motor law against values worked out by hand, in numpy and in jax.numpy."""

from __future__ import annotations

import numpy as np
import pytest

from robots.load import load_robot
from robots.motor import KNEE, MotorParams, drive_torque, friction_torque, joint_torque


def params(**changes) -> MotorParams:
    """One joint: kp 40, kd 2, 10 N m, 20 rad/s, friction 0.5 N m, damping 0.1 N m s/rad, armature 0.01 kg m^2."""
    values = {
        "kp": 40.0,
        "kd": 2.0,
        "torque_limit": 10.0,
        "velocity_max": 20.0,
        "friction": 0.5,
        "damping": 0.1,
        "armature": 0.01,
    }
    return MotorParams(**{k: np.array([v]) for k, v in {**values, **changes}.items()})


def drive(position: float, velocity: float, target: float, **changes) -> float:
    arrays = (np.array([v]) for v in (position, velocity, target))
    return float(drive_torque(params(**changes), *arrays)[0])


def friction(velocity: float, dt: float = 0.005, **changes) -> float:
    return float(friction_torque(params(**changes), np.array([velocity]), dt)[0])


def test_below_the_limit_it_is_a_pd_controller():
    # 40 * (0.3 - 0.1) - 2 * 0.5
    assert drive(0.1, 0.5, 0.3) == pytest.approx(7.0)
    assert drive(0.1, -0.5, 0.3) == pytest.approx(9.0)
    assert drive(0.3, 0.0, 0.1) == pytest.approx(-8.0)


def test_torque_is_clipped_at_the_limit_on_both_sides():
    assert drive(0.0, 0.0, 1.0) == 10.0
    assert drive(0.0, 0.0, -1.0) == -10.0


def test_driving_torque_falls_linearly_from_the_knee_to_zero_at_the_no_load_speed():
    assert KNEE == 0.5
    # 3/4 of the no-load speed is half way down the slope
    for velocity, limit in ((10.0, 10.0), (15.0, 5.0), (17.5, 2.5), (20.0, 0.0), (25.0, 0.0)):
        assert drive(0.0, velocity, 9.0) == pytest.approx(limit), velocity
        assert drive(0.0, -velocity, -9.0) == pytest.approx(-limit), -velocity


def test_braking_torque_keeps_the_full_limit_at_any_speed():
    assert drive(0.0, 15.0, -9.0) == -10.0
    assert drive(0.0, -15.0, 9.0) == 10.0
    assert drive(0.0, 40.0, 0.0) == -10.0


def test_friction_is_coulomb_plus_viscous_and_opposes_the_motion():
    assert friction(3.0) == pytest.approx(-0.5 - 0.3)
    assert friction(-3.0) == pytest.approx(0.5 + 0.3)
    assert friction(0.0) == 0.0


def test_friction_near_standstill_stops_the_rotor_in_one_step_and_does_not_reverse_it():
    # 0.01 kg m^2 * 0.1 rad/s / 0.005 s = 0.2 N m, below the 0.5 N m of Coulomb friction
    dt, velocity = 0.005, 0.1
    torque = friction(velocity, dt, damping=0.0)
    assert torque == pytest.approx(-0.2)
    assert velocity + torque / 0.01 * dt == pytest.approx(0.0)


def test_a_rotor_under_friction_comes_to_rest_and_stays_for_any_friction():
    for level in (0.01, 0.5, 50.0):
        velocity = 2.0
        for _ in range(2000):
            velocity += friction(velocity, 0.005, friction=level) / 0.01 * 0.005
        assert abs(velocity) < 1e-6, level


def test_the_joint_feels_the_drive_less_friction_and_a_sensor_shows_the_drive():
    one = [np.array([v]) for v in (0.1, 0.5, 0.3)]
    shown, felt = joint_torque(params(), *one, 0.005)
    assert shown[0] == pytest.approx(7.0)
    assert felt[0] == pytest.approx(7.0 - 0.5 - 0.05)


def test_parameters_come_from_the_robot_by_joint():
    robot = load_robot("kbot")
    nominal = MotorParams.of(robot)
    knee = robot.joint_names.index("dof_left_knee_04")
    figures = [float(column[knee]) for column in nominal]
    assert figures == [150.0, 8.654, 84.0, 17.488, 0.2, 0.0, 0.04, 0.0, 0.0, 0.0]
    assert all(column.shape == (20,) and column.dtype == np.float64 for column in nominal)


def test_numpy_and_jax_agree_in_batches():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(3)
    nominal = MotorParams.of(load_robot("kbot"))
    scaled = MotorParams(*(p * rng.uniform(0.5, 1.5, (64, 20)) for p in nominal))
    position, target = rng.uniform(-2, 2, (2, 64, 20))
    velocity = rng.normal(0, 12, (64, 20))
    velocity[0] = 0.0
    expected = joint_torque(scaled, position, velocity, target, 0.004)
    single = MotorParams(*(p.astype(np.float32) for p in scaled))
    inputs = [v.astype(np.float32) for v in (position, velocity, target)]
    law = jax.jit(lambda p, q, v, t: joint_torque(p, q, v, t, 0.004, jax.numpy))
    with jax.numpy_dtype_promotion("strict"):
        results = law(single, *inputs)
    for ours, theirs in zip(expected, results, strict=True):
        # 120 N m in single precision, with positions to 2 rad and gains to 300 N m/rad
        np.testing.assert_allclose(np.asarray(theirs), ours, rtol=2e-5, atol=2e-4)
