"""Observations: hand-computed numbers of posed robots."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from ksim import observation
from ksim.clock import GaitClock
from ksim.errors import ConfigError
from ksim.noise import EpisodeBias

HALF = math.sqrt(0.5)
LEFT_TURN = (HALF, 0.0, 0.0, HALF)  # a quarter turn to the left: looks along y
ROLLED = (HALF, HALF, 0.0, 0.0)  # a quarter turn about x: lies on its right side


def seen(term, state):
    return np.asarray(term.observe(state), np.float64)


def close(got, expected, atol=2e-5):
    np.testing.assert_allclose(got, expected, atol=atol)


def test_every_public_name_is_importable_from_the_one_module():
    for name in observation.__all__:
        assert getattr(observation, name).__name__ == name


def test_base_position_and_height_are_metres_in_the_world_and_above_standing(posed, scene):
    height = scene.standing_height_m
    state = posed(base=(1.0, -2.0, height + 0.25))
    close(seen(observation.BasePositionObservation(), state), [1.0, -2.0, height + 0.25])
    close(seen(observation.BaseHeightObservation(), state), [0.25])


def test_base_orientation_has_one_value_for_one_rotation(posed):
    term = observation.BaseOrientationObservation()
    close(seen(term, posed(quat=LEFT_TURN)), LEFT_TURN)
    close(seen(term, posed(quat=[-v for v in LEFT_TURN])), LEFT_TURN)


def test_roll_pitch_and_yaw_are_in_that_order(posed):
    term = observation.BaseRollPitchYawObservation()
    close(seen(term, posed(quat=LEFT_TURN)), [0.0, 0.0, math.pi / 2])
    close(seen(term, posed(quat=ROLLED)), [math.pi / 2, 0.0, 0.0])
    pitched = (math.cos(0.1), 0.0, math.sin(0.1), 0.0)
    close(seen(term, posed(quat=pitched)), [0.0, 0.2, 0.0])


def test_gravity_in_the_base_points_down_upright_and_to_the_right_when_it_lies_on_its_right_side(posed):
    term = observation.BaseGravityObservation()
    close(seen(term, posed(quat=LEFT_TURN)), [0.0, 0.0, -9.81])
    # rolled by +90 degrees the base's y axis points up: gravity is along minus y
    close(seen(term, posed(quat=ROLLED)), [0.0, -9.81, 0.0])


def test_linear_velocity_is_told_in_three_frames(posed):
    state = posed(quat=ROLLED, lin_vel_w=(1.0, 2.0, 3.0))

    def of(frame):
        return seen(observation.BaseLinearVelocityObservation(frame=frame), state)

    close(of("world"), [1.0, 2.0, 3.0])
    close(of("base"), [1.0, 3.0, -2.0])  # the base's y is the world's z, its z is minus the world's y
    close(of("heading"), [1.0, 2.0, 3.0])  # it looks along x
    turned = posed(quat=LEFT_TURN, lin_vel_w=(1.0, 2.0, 3.0))
    close(seen(observation.BaseLinearVelocityObservation(frame="heading"), turned), [2.0, -1.0, 3.0])


def test_angular_velocity_is_in_the_base_already_and_is_turned_for_the_world(posed):
    state = posed(quat=ROLLED, ang_vel_b=(0.1, 0.2, 0.3))
    close(seen(observation.BaseAngularVelocityObservation(), state), [0.1, 0.2, 0.3])
    # the base's y is the world's z, its z is minus the world's y
    close(seen(observation.BaseAngularVelocityObservation(frame="world"), state), [0.1, -0.3, 0.2])
    both = posed(quat=LEFT_TURN, ang_vel_b=(0.1, 0.2, 0.3))
    close(seen(observation.BaseAngularVelocityObservation(frame="heading"), both), [0.1, 0.2, 0.3])


def test_the_gyro_agrees_with_the_base_where_the_imu_is_turned_with_it(posed, scene):
    state = posed(ang_vel_b=(0.1, 0.2, 0.3))
    gyro = seen(observation.GyroObservation(), state)
    assert np.linalg.norm(gyro) == pytest.approx(math.sqrt(0.14), rel=1e-4)


def test_the_accelerometer_shows_gravity_upwards_in_the_sense_of_a_resting_imu(posed):
    state = posed(sensors={"imu_accelerometer": (0.5, 0.0, 9.81)})
    close(seen(observation.AccelerometerObservation(), state), [0.5, 0.0, 9.81])


def test_joint_terms_show_angles_velocities_targets_and_torques(posed, scene):
    state = posed(joints={"dof_left_knee_04": 1.0}, torque=np.arange(scene.joints))
    knee = scene.joint_names.index("dof_left_knee_04")
    away = seen(observation.JointPositionObservation(from_home=True), state)
    assert away[knee] == pytest.approx(1.0 - math.radians(50.0), abs=1e-6)
    assert np.abs(np.delete(away, knee)).max() < 1e-6
    assert seen(observation.ActuatorForceObservation(), state)[3] == 3.0
    target = dataclasses.replace(state, target=jnp.asarray(scene.home_rad) + 0.25)
    close(seen(observation.JointTargetObservation(from_home=True), target), np.full(scene.joints, 0.25), 1e-6)
    close(seen(observation.JointTargetObservation(), target), scene.home_rad + 0.25, 1e-6)


def test_feet_show_contact_and_force(posed):
    state = posed(sensors={"touch_left_foot": 120.0, "touch_right_foot": 0.5})
    close(seen(observation.FeetForceObservation(), state), [120.0, 0.5])
    close(seen(observation.FeetContactObservation(), state), [1.0, 0.0])


def test_feet_stand_left_and_right_below_the_base_wherever_it_looks(posed, scene):
    term = observation.FeetPositionObservation()
    left, right = seen(term, posed()).reshape(2, 3)
    assert left[1] > 0.05 and right[1] < -0.05 and left[1] == pytest.approx(-right[1], abs=1e-3)
    assert -scene.standing_height_m < left[2] < -0.5
    turned = seen(term, posed(base=(3.0, 4.0, 1.0), quat=LEFT_TURN)).reshape(2, 3)
    close(turned, [left, right])
    world = seen(observation.FeetPositionObservation(frame="world"), posed(quat=LEFT_TURN)).reshape(2, 3)
    # a quarter turn to the left: what was to the left is now behind
    close(world[0], [-left[1], left[0], left[2]])


def test_feet_height_is_zero_at_home_and_rises_with_the_base(posed, scene):
    term = observation.FeetHeightObservation()
    close(seen(term, posed()), [0.0, 0.0], 1e-6)
    close(seen(term, posed(base=(0.0, 0.0, scene.standing_height_m + 0.1))), [0.1, 0.1], 1e-6)


def test_feet_and_centre_of_mass_move_with_the_base(posed):
    state = posed(quat=LEFT_TURN, lin_vel_w=(1.0, 2.0, 3.0))
    close(seen(observation.FeetVelocityObservation(), state).reshape(2, 3), [[2.0, -1.0, 3.0]] * 2)
    close(seen(observation.CentreOfMassVelocityObservation(), state), [2.0, -1.0, 3.0])
    close(seen(observation.CentreOfMassVelocityObservation(frame="world"), state), [1.0, 2.0, 3.0])


def test_feet_orientation_forgets_the_heading(posed):
    term = observation.FeetOrientationObservation()
    home = seen(term, posed()).reshape(2, 4)
    assert (home[:, 0] >= 0).all()
    close(np.linalg.norm(home, axis=1), [1.0, 1.0])
    close(seen(term, posed(quat=LEFT_TURN)).reshape(2, 4), home)


def test_the_centre_of_mass_is_the_mass_weighted_mean_of_the_bodies(posed, scene):
    built = scene.built
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    mujoco.mj_kinematics(built.model, data)
    mass = built.model.body_mass[built.bodies]
    mean = (mass[:, None] * data.xipos[built.bodies]).sum(0) / mass.sum()
    expected = mean - built.home_qpos[built.base_position]
    close(seen(observation.CentreOfMassObservation(), posed()), expected)
    # in the heading's frame it is the same wherever the robot looks and stands
    close(seen(observation.CentreOfMassObservation(), posed(base=(1.0, 1.0, 1.0), quat=LEFT_TURN)), expected)


def test_any_sensor_is_read_by_its_name_and_asks_for_what_the_model_builder_knows(posed):
    state = posed(sensors={"touch_left_foot": 7.0, "foot_position_right_foot": (1.0, 2.0, 3.0)})
    close(seen(observation.SensorObservation(sensor="touch_left_foot"), state), [7.0])
    foot = observation.SensorObservation(sensor="foot_position_right_foot")
    close(seen(foot, state), [1.0, 2.0, 3.0])
    assert foot.sensors == ("foot_position",)
    assert observation.SensorObservation(sensor="com_velocity").sensors == ("com_velocity",)
    with pytest.raises(ConfigError, match=r"no sensor 'nose'; .* has imu_quat"):
        seen(observation.SensorObservation(sensor="nose"), state)


def test_command_terms_show_all_or_one_by_new_or_old_name(posed):
    state = posed(command=jnp.asarray([0.5, -0.25, 1.0, -0.1]))
    close(seen(observation.CommandObservation(), state), [0.5, -0.25, 1.0, -0.1])
    close(seen(observation.NamedCommandObservation(name="yawrate"), state), [1.0])
    close(seen(observation.NamedCommandObservation(name="yaw_rate"), state), [1.0])
    with pytest.raises(ConfigError, match=r"no command 'jump'; the task has xvel, yvel"):
        seen(observation.NamedCommandObservation(name="jump"), state)


def test_gait_phase_is_sine_and_cosine_while_asked_to_move_and_rests_otherwise(posed):
    term = observation.GaitPhaseObservation()
    phase = jnp.asarray(math.pi / 6)
    walking = posed(phase=phase, command=jnp.asarray([0.0, 0.0, 0.5, 0.0]))
    close(seen(term, walking), [0.5, math.sqrt(0.75)], 1e-6)
    # a height asks for no motion
    standing = posed(phase=phase, command=jnp.asarray([0.0, 0.0, 0.01, -0.2]))
    close(seen(term, standing), [0.0, 0.0], 0.0)
    lazy = observation.GaitPhaseObservation(clock=GaitClock(at_rest=1.0))
    close(seen(lazy, walking), [0.0, 0.0], 0.0)


def test_last_action_time_age_and_draws_are_shown_as_they_are(posed):
    state = posed(action=jnp.arange(10.0), time_s=jnp.asarray(1.5))
    close(seen(observation.LastActionObservation(), state), np.arange(10.0))
    close(seen(observation.TimeObservation(), state), [1.5])
    close(seen(observation.ChannelAgeObservation(), state), [0.0, 0.0])
    params = state.params._replace(drawn={"a": jnp.asarray([0.5]), "b": jnp.asarray([-1.0, 1.0])})
    state = dataclasses.replace(state, params=params)
    close(seen(observation.RandomizationObservation(), state), [0.5, -1.0, 1.0])
    close(seen(observation.RandomizationObservation(of=("b",)), state), [-1.0, 1.0])
    close(seen(observation.RandomizationObservation(leave_out=("b", "none such")), state), [0.5])


def test_an_event_is_shown_in_the_bases_frame(posed):
    events = {"pushes": {"wrench_w": jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])}}
    state = posed(quat=LEFT_TURN, events=events)
    close(seen(observation.EventObservation(), state), [2.0, -1.0, 3.0, 5.0, -4.0, 6.0])
    with pytest.raises(ConfigError, match="no event 'kicks'; the task has pushes"):
        seen(observation.EventObservation(of="kicks"), state)


# Late terms. The physics step is 5 ms: a row of a history is 5 ms older than the one before it.


@pytest.mark.parametrize(
    ("term", "channel", "signal"),
    [
        (observation.DelayedJointPositionObservation(), "joints", "joint_position"),
        (observation.DelayedJointVelocityObservation(), "joints", "joint_velocity"),
        (observation.DelayedProjectedGravityObservation(), "imu", "gravity"),
        (observation.DelayedGyroObservation(), "imu", "gyro"),
        (observation.DelayedAccelerometerObservation(), "imu", "accelerometer"),
        (
            observation.DelayedSensorObservation(channel="joints", sensor="touch_left_foot"),
            "joints",
            "touch_left_foot",
        ),
    ],
    ids=lambda v: type(v).__name__ if hasattr(v, "observe") else str(v),
)
def test_a_late_term_reads_its_own_signal_as_old_as_its_channel_says(posed, late, term, channel, signal):
    rows = [[0.0] * 3, [10.0] * 3, [20.0] * 3, [30.0] * 3]
    # 12.5 ms is half way between the third row and the fourth
    value, carry = term.observe_stateful(late(posed(), channel, signal, rows, 0.0125), jnp.zeros(3))
    close(value, [25.0] * 3)
    assert np.array_equal(value, carry)


def test_a_late_term_repeats_its_bits_until_there_is_a_new_packet(posed, late):
    term = observation.DelayedGyroObservation()
    old = jnp.asarray([1.0, 2.0, 1.0 / 3.0])
    value, carry = term.observe_stateful(late(posed(), "imu", "gyro", [[9.0] * 3] * 2, 0.0, fresh=False), old)
    assert np.array_equal(value, old) and np.array_equal(carry, old)


@pytest.mark.parametrize(
    ("term", "signal"),
    [
        (observation.DelayedProjectedGravityObservation(), "gravity"),
        (observation.DelayedGyroObservation(), "gyro"),
        (observation.DelayedAccelerometerObservation(), "accelerometer"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_misaligned_imu_turns_what_it_senses(posed, late, term, signal):
    state = late(posed(), "imu", signal, [[0.0, 0.0, -9.81]] * 2, 0.0)
    params = state.params._replace(imu_tilt=jnp.asarray([0.1, 0.0, 0.0]))
    value, _ = term.observe_stateful(dataclasses.replace(state, params=params), jnp.zeros(3))
    # a turn by 0.1 rad about x takes minus z towards plus y
    close(value, [0.0, 9.81 * math.sin(0.1), -9.81 * math.cos(0.1)])
    upright, _ = term.observe_stateful(state, jnp.zeros(3))
    close(upright, [0.0, 0.0, -9.81], 1e-6)


def test_a_bias_of_the_gravity_stays_for_an_episode_and_differs_between_episodes(posed, late):
    term = observation.DelayedProjectedGravityObservation(noise=EpisodeBias(width=0.5))
    state = late(posed(), "imu", "gravity", [[0.0, 0.0, -9.81]] * 2, 0.0)
    first, _ = term.observe_stateful(state, jnp.zeros(3))
    later, _ = term.observe_stateful(dataclasses.replace(state, key=jax.random.key(9)), jnp.zeros(3))
    other, _ = term.observe_stateful(dataclasses.replace(state, episode_key=jax.random.key(9)), jnp.zeros(3))
    assert np.array_equal(first, later) and not np.array_equal(first, other)
    assert np.abs(np.asarray(first) - [0.0, 0.0, -9.81]).max() <= 0.5


def test_a_late_term_of_an_unknown_channel_names_the_channels(posed):
    with pytest.raises(ConfigError, match="no channel 'can3'; the task has imu, joints"):
        observation.DelayedGyroObservation(channel="can3").observe(late_none(posed()))


def late_none(state):
    physics = dataclasses.replace(state.physics, history={"gyro": jnp.zeros((2, 3))})
    return dataclasses.replace(state, physics=physics)


IMAGED = (
    observation.CommandObservation(),
    observation.TimeObservation(),
    observation.BaseHeightObservation(),
    *(observation.BaseLinearVelocityObservation(frame=frame) for frame in ("base", "world", "heading")),
    *(observation.BaseAngularVelocityObservation(frame=frame) for frame in ("base", "world", "heading")),
    observation.JointPositionObservation(),
    observation.JointPositionObservation(from_home=True),
    observation.JointVelocityObservation(),
    observation.ProjectedGravityObservation(),
    observation.GyroObservation(),
    observation.FeetContactObservation(),
    observation.FeetForceObservation(),
    observation.FeetHeightObservation(),
    observation.ActuatorForceObservation(),
    observation.JointTargetObservation(),
    observation.JointTargetObservation(from_home=True),
    observation.GaitPhaseObservation(clock=GaitClock(frequency_hz=1.25)),
    observation.LastActionObservation(),
)


@pytest.fixture(scope="module")
def leaning(posed, scene):
    """A state that is not its own mirror image in anything, and its mirror image."""
    rng, built, mirror = np.random.default_rng(3), scene.built, scene.mirror
    moved = dataclasses.replace(scene, moved=tuple(range(scene.joints)))
    qpos = np.array(built.home_qpos)
    qpos[built.base_quat] = np.array([1.0, 0.15, -0.05, 0.3]) / np.linalg.norm([1.0, 0.15, -0.05, 0.3])
    qpos[built.qpos_ids] += rng.uniform(-0.1, 0.1, scene.joints)
    qpos[built.base_position] = [0.3, -0.2, scene.standing_height_m - 0.02]
    qvel = rng.uniform(-1.0, 1.0, built.model.nv)
    joints = {name: rng.uniform(-1.0, 1.0, scene.joints) for name in ("torque", "target", "action")}
    command, phase = np.array([0.6, 0.2, -0.4, 0.1]), 0.7

    def state(qpos, qvel, torque, target, action, command, phase):
        data = mujoco.MjData(built.model)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(built.model, data)
        told = {"qpos": data.qpos, "qvel": data.qvel, "torque": torque, "sensordata": data.sensordata}
        told = {name: jnp.asarray(np.array(value), jnp.float32) for name, value in told.items()}
        physics = dataclasses.replace(posed().physics, scene=moved, **told)
        now = {"target": target, "action": action, "command": command, "phase": phase}
        return dataclasses.replace(posed(), physics=physics, **{k: jnp.asarray(v) for k, v in now.items()})

    there = {
        "qpos": mirror.qpos(qpos),
        "qvel": mirror.qvel(qvel, qpos),
        "torque": mirror.joint_change(joints["torque"]),
        "target": mirror.joint(joints["target"]),
        "action": mirror.joint_change(joints["action"]),
        "command": command * np.array([1.0, -1.0, -1.0, 1.0]),
        "phase": phase + math.pi,
    }
    return state(qpos, qvel, **joints, command=command, phase=phase), state(**there)


@pytest.mark.parametrize("term", IMAGED, ids=lambda term: f"{type(term).__name__}-{getattr(term, 'frame', '')}")
def test_the_image_of_what_is_seen_is_what_the_mirror_image_of_the_robot_sees(leaning, term):
    here, there = (seen(term, state) for state in leaning)
    # the contact of a foot and of its image is solved to a thousandth
    close(
        term.image(here, leaning[0].scene),
        there,
        atol=2e-4 + 2e-3 * isinstance(term, observation.FeetForceObservation) * there.max(),
    )
    same = isinstance(term, observation.TimeObservation | observation.BaseHeightObservation)
    assert same or np.abs(here - there).max() > 0.01


def test_an_observation_of_no_known_image_says_so(scene):
    with pytest.raises(ConfigError, match="BasePositionObservation: its mirror image is not known"):
        observation.BasePositionObservation().image(np.zeros(3), scene)
