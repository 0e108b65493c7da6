"""The safety layer, against values worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from deploy.errors import SafetyError
from deploy.robot.safety import (
    Gains,
    Limits,
    SafeTarget,
    check_action,
    check_imu,
    check_motion,
    check_start,
    check_state,
    damp,
    hold,
    limit,
    nominal,
)
from deploy.robot.state import RobotState


@pytest.fixture
def limits(robot):
    return Limits.from_spec(robot)


def make_state(**changes):
    values = {
        "joint_position": np.zeros(3),
        "joint_velocity": np.zeros(3),
        "joint_torque": np.zeros(3),
        "quat_wxyz": np.array([1.0, 0.0, 0.0, 0.0]),
        "gyro_b": np.zeros(3),
        "accel_b": np.array([0.0, 0.0, 9.81]),
        "time_s": 0.0,
        "round_trip_s": 0.0,
    }
    return RobotState(**(values | {k: np.asarray(v, dtype=float) for k, v in changes.items()}))


def told(values):
    """Faults or clamps as a person reads them."""
    return tuple(str(value) for value in values)


def test_a_target_within_every_limit_passes_unchanged(limits):
    safe, clamps = limit([0.1, -0.1, 0.2], np.zeros(3), make_state(), limits, 0.02)
    assert safe.tolist() == [0.1, -0.1, 0.2] and clamps == ()


def test_the_position_limit_has_the_last_word(limits):
    state = make_state(joint_position=[1.45, -0.95, 0.0])
    safe, clamps = limit([1.7, -1.2, 0.0], np.array([1.45, -0.95, 0.0]), state, limits, 0.02)
    assert safe.tolist() == [1.5, -1.0, 0.0]
    assert told(clamps) == ("hip: position limit", "knee: position limit")


def test_the_target_moves_at_most_at_the_no_load_speed(limits):
    # 15 rad/s for 0.02 s is 0.3 rad
    safe, clamps = limit([0.5, -0.5, 0.1], np.zeros(3), make_state(), limits, 0.02)
    assert np.allclose(safe, [0.3, -0.3, 0.1]) and told(clamps) == ("hip: target speed", "knee: target speed")


def test_the_target_stays_as_near_as_the_torque_limit_over_kp(limits):
    # 20 N m over 50, 40 and 20 N m/rad is 0.4, 0.5 and 1 rad
    previous = np.array([0.6, -0.6, 0.9])
    safe, clamps = limit([0.6, -0.6, 0.9], previous, make_state(), limits, 0.02)
    assert np.allclose(safe, [0.4, -0.5, 0.9]) and told(clamps) == ("hip: torque", "knee: torque")


def test_a_speed_that_torque_bounds_anyway_is_no_intervention(limits):
    # the last target was bounded by torque to 0.4 of the 0.9 asked for; the same again is 0.5 away, 0.3 allowed
    previous = np.array([0.4, 0.0, 0.0])
    safe, clamps = limit([0.9, 0.0, 0.0], previous, make_state(), limits, 0.02)
    assert safe[0] == pytest.approx(0.4) and told(clamps) == ("hip: torque",)
    # where the step ends at that bound to the bit, it is the torque's doing all the same
    safe, clamps = limit([0.9, 0.0, 0.0], np.array([0.4 - 0.3, 0.0, 0.0]), make_state(), limits, 0.02)
    assert safe[0] == pytest.approx(0.4) and told(clamps) == ("hip: torque",)
    # and where speed holds it back further than torque does, it is named, alone
    safe, clamps = limit([0.9, 0.0, 0.0], np.array([0.0, 0.0, 0.0]), make_state(), limits, 0.02)
    assert safe[0] == pytest.approx(0.3) and told(clamps) == ("hip: target speed",)


def test_what_damping_takes_widens_the_torque_bound_on_the_moving_side_only(limits):
    # hip: kd v = 2 x 5 = 10 N m, so (20 + 10) / 50 = 0.6 rad ahead and 0.4 rad behind
    state = make_state(joint_velocity=[5.0, 0.0, 0.0])
    ahead, _ = limit([0.9, 0, 0], np.array([0.9, 0, 0]), state, limits, 0.02)
    behind, _ = limit([-0.9, 0, 0], np.array([-0.9, 0, 0]), state, limits, 0.02)
    assert ahead[0] == pytest.approx(0.6) and behind[0] == pytest.approx(-0.4)


def test_the_torque_bound_does_not_change_what_the_motor_law_gives(limits, robot):
    from robots.motor import MotorParams, drive_torque

    rng = np.random.default_rng(3)
    params = MotorParams.of(robot)
    changed = 0
    for _ in range(200):
        state = make_state(joint_position=rng.uniform(-0.3, 0.3, 3), joint_velocity=rng.uniform(-6, 6, 3))
        asked = rng.uniform(-0.9, 1.4, 3)
        safe, clamps = limit(asked, asked, state, limits, 0.02)
        changed += bool(clamps)
        args = (params, state.joint_position, state.joint_velocity)
        assert np.allclose(drive_torque(*args, safe), drive_torque(*args, asked), atol=1e-9)
    assert changed > 100


def test_a_target_that_is_not_finite_holds_the_previous_one(limits):
    previous = np.array([0.1, 0.2, 0.3])
    safe, clamps = limit([math.nan, math.inf, -math.inf], previous, make_state(), limits, 0.02)
    assert safe.tolist() == [0.1, 0.2, 0.3]
    assert told(clamps) == ("hip: not finite", "knee: not finite", "ankle: not finite")


def test_whatever_is_asked_for_the_target_is_finite_and_within_the_position_limits(limits):
    rng = np.random.default_rng(0)
    pool = np.array([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, 5.0, -5.0])
    for _ in range(300):
        state = make_state(joint_position=rng.uniform(-2, 2, 3), joint_velocity=rng.uniform(-50, 50, 3))
        safe, _ = limit(rng.choice(pool, 3), rng.uniform(-1, 1.5, 3), state, limits, 0.02)
        assert np.isfinite(safe).all() and (safe >= limits.lower).all() and (safe <= limits.upper).all()


def test_a_target_of_another_length_is_refused(limits):
    with pytest.raises(SafetyError, match=r"shape \(2,\), expected \(3,\)"):
        limit([0.0, 0.0], np.zeros(3), make_state(), limits, 0.02)


def test_no_target_and_no_gains_can_be_made_by_hand(limits):
    with pytest.raises(SafetyError, match="made by hand"):
        SafeTarget(np.zeros(3))
    with pytest.raises(SafetyError, match="made by hand"):
        Gains(limits.kp, limits.kd, limits.torque_limit, True)
    with pytest.raises(SafetyError, match="made by hand"):
        dataclasses.replace(hold(make_state()), rad=np.ones(3), _key=None)
    with pytest.raises(ValueError, match="read-only"):
        hold(make_state()).rad[0] = 1.0


def test_damped_gains_have_no_stiffness_nominal_damping_and_limited_torque(limits):
    gains, full = damp(limits), nominal(limits)
    assert gains.kp.tolist() == [0, 0, 0] and gains.kd.tolist() == [2, 2, 2]
    assert gains.max_torque.tolist() == [20, 20, 20] and gains.torque_enabled
    assert full.kp.tolist() == [50, 40, 20] and full.kd.tolist() == [2, 2, 2] and full.torque_enabled


def test_a_sound_state_has_no_faults(limits):
    assert told(check_state(make_state(), limits, stale_ticks=7)) == ()


def test_tilt_beyond_the_limit_is_a_fall(limits):
    def tilted(angle):
        return make_state(quat_wxyz=[math.cos(angle / 2), 0, math.sin(angle / 2), 0])

    assert tilted(0.7).tilt_rad == pytest.approx(0.7)
    assert told(check_state(tilted(0.99), limits)) == ()
    assert told(check_state(tilted(1.01), limits))[0].startswith("tilt 1.01 rad")


def test_an_imu_that_turns_faster_than_a_robot_does_is_a_fault(limits):
    assert not check_state(make_state(gyro_b=[9.0, 12.0, 0.0]), limits)
    (fault,) = check_state(make_state(gyro_b=[9.1, 12.0, 0.0]), limits)
    assert (
        str(fault) == "spin: the IMU turns at 15.1 rad/s, limit 15 rad/s; if the robot does not, try --gyro-unit deg/s"
    )


def test_each_fault_names_its_joint(limits):
    assert "out of range: knee at -1.300 rad" in told(check_state(make_state(joint_position=[0, -1.3, 0]), limits))[0]
    assert "over-speed: ankle at 23.0 rad/s" in told(check_state(make_state(joint_velocity=[0, 0, 23]), limits))[0]
    # 1.5 times 30 N m
    assert (
        "over-torque: knee at -45.1 N m, limit 45.0"
        in told(check_state(make_state(joint_torque=[0, -45.1, 0]), limits))[0]
    )
    assert not check_state(make_state(joint_torque=[45.0, -45.0, 0]), limits)
    assert told(check_state(make_state(joint_velocity=[0, 0, 22]), limits)) == ()
    assert told(check_state(make_state(joint_torque=[math.nan, 0, 0]), limits)) == ("not finite: joint_torque of hip",)
    assert told(check_state(make_state(gyro_b=[math.inf, 0, 0]), limits)) == ("not finite: gyro_b of IMU",)
    assert told(check_state(make_state(), limits, stale_ticks=8))[0].startswith("stale: nothing new measured for 8")


def test_starting_allows_a_zero_offset_and_no_more(limits):
    assert told(check_start(make_state(joint_position=[1.55, 0, 0]), limits)) == ()
    assert len(check_start(make_state(joint_position=[1.6, 0, 0]), limits)) == 1
    assert len(check_start(make_state(joint_position=[1.8, 0, 0]), limits)) == 1


def test_gravity_and_heading_of_a_state_by_hand():
    half = math.sqrt(0.5)
    # pitched a quarter turn about y (nose down): down is the frame's +x
    pitched = make_state(quat_wxyz=[half, 0, half, 0])
    assert np.allclose(pitched.projected_gravity, [9.81, 0, 0]) and pitched.tilt_rad == pytest.approx(math.pi / 2)
    assert make_state(quat_wxyz=[half, 0, 0, half]).heading_rad == pytest.approx(math.pi / 2)


def test_a_joint_that_is_where_its_speed_cannot_have_taken_it_has_jumped(limits):
    def moved(by, speeds=(0.0, 0.0), dt=0.02):
        before = make_state(joint_velocity=[speeds[0], 0, 0])
        after = make_state(joint_position=[by, 0, 0], joint_velocity=[speeds[1], 0, 0])
        return check_motion(after, before, dt, limits)

    assert told(moved(0.14)) == () and told(moved(-0.14)) == ()
    assert told(moved(0.2)) == ("jumped: hip by +0.20 rad within 20 ms, at +0.0 rad/s",)
    # 10 rad/s for 20 ms is 0.2 rad; one that speeds up from 0 to 20 rad/s moves by 0 to 0.4
    assert told(moved(0.2, (10.0, 10.0))) == () and told(moved(0.6, (10.0, 10.0))) != ()
    assert told(moved(0.5, (0.0, 20.0))) == () and told(moved(1.0, (0.0, 20.0))) != ()
    # a feedback that is told twice, and the one after it
    assert told(moved(0.0, (15.0, 15.0))) == () and told(moved(0.6, (15.0, 15.0))) == ()
    # after a gap nothing can be said
    assert told(moved(2.0, dt=0.1)) == () and told(moved(2.0, dt=0.0)) == ()


def test_a_hot_motor_is_named_and_one_that_tells_no_temperature_is_not(limits):
    state = dataclasses.replace(make_state(), joint_temperature=np.array([99.0, 101.0, np.nan]))
    assert told(check_state(state, limits)) == ("too hot: knee at 101 C, limit 100 C",)
    assert told(check_state(make_state(), limits)) == ()


@pytest.mark.parametrize(
    ("accel", "reads", "refused"),
    [
        ((0.0, 0.0, 9.81), True, False),
        ((0.0, 9.81, 0.0), False, True),
        ((0.0, 0.0, -9.81), False, False),
        ((0.0, 0.0, -9.81), True, True),
        ((0.0, 0.0, 0.0), True, False),  # the reading itself refuses it, where somebody reads it
        ((0.0, 20.0, 0.0), True, False),  # shaken
    ],
)
def test_an_imu_whose_parts_have_other_frames_may_not_start(accel, reads, refused):
    found = check_imu(make_state(accel_b=accel), reads)
    assert len(found) == refused and all("degrees away from up" in str(fault) for fault in found)


def test_an_orientation_that_the_gyro_does_not_explain_has_jumped(limits):
    def turned(by, spin=0.0, sign=1.0, dt=0.02):
        # about z, which leaves gravity where it is
        quat = sign * np.array([math.cos(by / 2), 0, 0, math.sin(by / 2)])
        before = make_state(gyro_b=[0, 0, spin])
        return told(check_motion(make_state(quat_wxyz=quat, gyro_b=[0, 0, spin]), before, dt, limits))

    # 0.5 rad, and what the gyro says for 0.12 s
    assert turned(0.49) == () and turned(0.85, spin=3.0) == ()
    assert turned(0.51) == ("orientation jumped: by 0.51 rad within 20 ms, at 0.0 rad/s",)
    assert turned(0.87, spin=3.0) == ("orientation jumped: by 0.87 rad within 20 ms, at 3.0 rad/s",)
    assert len(turned(math.pi / 2)) == 1 and turned(math.pi / 2, dt=0.19) and turned(math.pi / 2, dt=0.21) == ()
    # a quaternion and its negative are one orientation
    assert turned(0.1, sign=-1.0) == ()


def test_a_policy_that_asks_for_half_a_turn_beyond_the_range_has_gone_wrong(limits):
    # limits -1 and 1.5 rad: from -4.14 to 4.64 rad
    assert told(check_action(np.array([4.6, -4.1, 0.0]), limits)) == ()
    assert told(check_action(np.array([0.0, 4.7, 0.0]), limits)) == (
        "policy: asks for 4.7 rad of knee, limits [-1.000, 1.500] rad",
    )
    assert told(check_action(np.array([-1e6, 1e6, 0.0]), limits)) == (
        "policy: asks for -1e+06 rad of hip and 1 more joints, limits [-1.000, 1.500] rad",
    )
