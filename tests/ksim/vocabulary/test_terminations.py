"""Terminations: each at its threshold."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import pytest

from ksim import terminations
from ksim.errors import ConfigError
from ksim.scene import Scene
from toolkit.errors import SettingsError


def ends(term, state):
    return bool(term.terminate(state))


def at_height(posed, scene, share):
    return posed(base=(0.0, 0.0, share * scene.standing_height_m))


def test_too_low_and_too_high_are_shares_of_the_standing_height(posed, scene):
    low = terminations.BaseTooLowTermination(height_share=0.5)
    assert not ends(low, at_height(posed, scene, 0.51)) and ends(low, at_height(posed, scene, 0.49))
    high = terminations.BaseTooHighTermination(height_share=1.5)
    assert not ends(high, at_height(posed, scene, 1.49)) and ends(high, at_height(posed, scene, 1.51))


def test_tilt_is_the_angle_of_the_imu_whichever_way_it_leans(posed):
    term = terminations.TiltTermination(tilt_deg=60.0)

    def leaning(degrees, axis):
        half = math.radians(degrees) / 2
        return posed(quat=(math.cos(half), *(math.sin(half) * a for a in axis)))

    for axis in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.6, -0.8, 0.0)):
        assert not ends(term, leaning(59.5, axis)) and ends(term, leaning(60.5, axis))
    assert not ends(term, leaning(170.0, (0.0, 0.0, 1.0)))  # a turn of the heading is no lean
    assert ends(term, leaning(180.0, (1.0, 0.0, 0.0)))


def test_not_finite_ends_on_nan_on_infinity_and_beyond_any_real_velocity(posed):
    term = terminations.NotFiniteTermination(velocity_max=100.0)
    state = posed()
    assert not ends(term, state)

    def changed(**fields):
        return dataclasses.replace(state, physics=dataclasses.replace(state.physics, **fields))

    for bad in (jnp.nan, jnp.inf):
        assert ends(term, changed(qpos=state.physics.qpos.at[-1].set(bad)))
    for bad in (jnp.nan, jnp.inf, 101.0, -101.0):
        assert ends(term, changed(qvel=state.physics.qvel.at[-1].set(bad)))
    assert not ends(term, changed(qvel=state.physics.qvel.at[-1].set(-99.0)))


def test_a_joint_that_is_too_fast_for_its_motor_ends_the_episode(posed, scene):
    term = terminations.JointVelocityTermination(speed_share=1.5)
    knee = scene.joint_names.index("dof_left_knee_04")
    top = float(scene.column("velocity_max_rad_s")[knee])
    state = posed()

    def moving(speed):
        qvel = state.physics.qvel.at[scene.built.dof_ids[knee]].set(speed)
        return dataclasses.replace(state, physics=dataclasses.replace(state.physics, qvel=qvel))

    assert not ends(term, moving(1.49 * top))
    assert ends(term, moving(1.51 * top)) and ends(term, moving(-1.51 * top))
    assert not ends(terminations.JointVelocityTermination(speed_share=1.5, joints=("hip",)), moving(2.0 * top))


def test_a_joint_beyond_its_limit_ends_the_episode_after_the_slack(posed, scene):
    term = terminations.JointLimitTermination(slack_rad=0.1)
    name = "dof_left_knee_04"
    low = float(scene.column("lower_rad")[scene.joint_names.index(name)])
    high = float(scene.column("upper_rad")[scene.joint_names.index(name)])
    for angle, expected in ((low - 0.09, False), (low - 0.11, True), (high + 0.09, False), (high + 0.11, True)):
        assert ends(term, posed(joints={name: angle})) is expected, angle
    elsewhere = terminations.JointLimitTermination(slack_rad=0.1, joints=("ankle",))
    assert not ends(elsewhere, posed(joints={name: high + 1.0}))
    with pytest.raises(ConfigError, match="'tail'"):
        ends(terminations.JointLimitTermination(joints=("tail",)), posed())


def test_distance_is_over_ground_and_not_upwards(posed):
    term = terminations.DistanceTermination(distance_m=5.0)
    assert not ends(term, posed(base=(2.9, 4.0, 50.0)))
    assert ends(term, posed(base=(-3.1, 4.0, 0.7)))


def test_a_contact_of_a_named_sensor_ends_the_episode(posed):
    term = terminations.IllegalContactTermination(touch=("touch_left_foot", "touch_right_foot"), force_n=2.0)
    assert term.sensors == ("touch_left_foot", "touch_right_foot")
    free = {"touch_left_foot": 1.9, "touch_right_foot": 0.0}
    assert not ends(term, posed(sensors=free))
    assert ends(term, posed(sensors={**free, "touch_right_foot": 2.1}))
    with pytest.raises(SettingsError, match="touch"):
        terminations.IllegalContactTermination(touch=())


def test_far_from_the_command_ends_after_a_while(posed):
    term = terminations.FarFromCommandTermination(error_m_s=1.0, after_s=1.0)
    quarter = (math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5))  # looks along y

    def moving(velocity, time_s=1.0):
        command = jnp.asarray([0.5, 0.0, 0.0, 0.0])
        return posed(quat=quarter, lin_vel_w=velocity, command=command, time_s=jnp.asarray(time_s))

    assert not ends(term, moving((0.0, 1.4, 0.0)))  # 0.9 m/s too fast, forward
    assert ends(term, moving((0.0, 1.6, 0.0)))
    assert ends(term, moving((1.1, 0.5, 0.0)))  # sideways
    assert not ends(term, moving((0.0, 1.6, 0.0), time_s=0.98))


def test_a_robot_that_is_fixed_to_the_world_goes_nowhere(posed, scene, arm):
    term = terminations.DistanceTermination(distance_m=0.01)
    state = posed()
    fixed = dataclasses.replace(state.physics, scene=Scene(built=arm))
    assert not ends(term, dataclasses.replace(state, physics=fixed))
