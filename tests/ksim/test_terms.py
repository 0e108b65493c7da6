"""Rewards, terminations, commands, channel and curriculum: one hand-computed test a term."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import rewards
from ksim.actuators import CommandChannel
from ksim.commands import UniformCommands
from ksim.config import LatencyConfig
from ksim.curriculum import LevelCurriculum
from ksim.rewards import Transition
from ksim.terminations import BaseTooLow, NotFinite, TooTilted


@pytest.fixture
def step(physics, env_state):
    """`step(fell=..., qpos=..., action=...)`: a transition with some fields changed."""

    def make(fell: float = 0.0, **changes) -> Transition:
        inner = {k: v for k, v in changes.items() if k in env_state._fields}
        outer = {k: v for k, v in changes.items() if k in physics._fields}
        return Transition(physics._replace(**outer), env_state._replace(**inner), jnp.asarray(fell))

    return make


def gravity(physics, x: float, y: float, z: float):
    return physics.sensors._replace(gravity_b=jnp.asarray([x, y, z]))


def test_alive_is_one_and_fall_is_a_sum_whatever_the_period(step):
    assert float(rewards.Alive()(step())) == 1.0
    # weight * period * term is then weight, once
    assert float(rewards.Fall(0.02)(step(fell=1.0))) * 0.02 == pytest.approx(1.0)
    assert float(rewards.Fall(0.02)(step(fell=0.0))) == 0.0


def test_upright_is_one_when_upright_and_exp_of_minus_one_at_its_width(step, physics):
    assert float(rewards.Upright()(step())) == 1.0
    # (0.1 g)^2 + (0.2 g)^2 over g^2 is 0.05
    leaning = gravity(physics, 0.981, 1.962, -9.5)
    assert float(rewards.Upright(width=0.05)(step(sensors=leaning))) == pytest.approx(math.exp(-1), rel=1e-5)


def test_base_height_is_one_at_standing_height_and_exp_of_minus_four_two_widths_off(step, physics):
    height = float(physics.qpos[2])
    term = rewards.BaseHeight(height, width_m=0.08)
    assert float(term(step())) == pytest.approx(1.0)
    for off in (0.16, -0.16):
        assert float(term(step(qpos=physics.qpos.at[2].add(off)))) == pytest.approx(math.exp(-4), rel=1e-4)


def test_base_velocity_is_horizontal_and_base_spin_is_all_three_axes(step, physics):
    qvel = physics.qvel.at[:6].set(jnp.asarray([3.0, 4.0, 100.0, 1.0, 2.0, 2.0])).at[6:].set(50.0)
    assert float(rewards.BaseVelocity()(step(qvel=qvel))) == 25.0
    assert float(rewards.BaseSpin()(step(qvel=qvel))) == 9.0


def test_joint_deviation_and_velocity_are_sums_of_squares(step, physics, built):
    home = tuple(built.spec.column("home_rad"))
    off = physics.joint_position.at[jnp.asarray([2, 7])].add(jnp.asarray([0.3, -0.4]))
    assert float(rewards.JointDeviation(home)(step())) == pytest.approx(0.0, abs=1e-12)
    assert float(rewards.JointDeviation(home)(step(joint_position=off))) == pytest.approx(0.25, rel=1e-5)
    assert float(rewards.JointVelocity()(step(joint_velocity=physics.joint_velocity.at[:2].set(2.0)))) == 8.0


def test_torque_is_the_mean_squared_share_of_each_joints_limit(step, built):
    limit = tuple(built.spec.column("torque_limit_nm"))
    half = jnp.asarray(limit) * jnp.asarray([0.5, -0.5] * 10)
    assert float(rewards.Torque(limit)(step(torque=half))) == pytest.approx(0.25)


def test_action_rate_is_the_squared_change_of_the_raw_action(step):
    a, b = jnp.zeros(20).at[0].set(1.0).at[5].set(2.0), jnp.zeros(20).at[0].set(4.0).at[5].set(-2.0)
    assert float(rewards.ActionRate()(step(action=a, action_before=b))) == 25.0


def test_joint_limits_counts_what_exceeds_the_inner_95_percent(step, physics):
    term = rewards.JointLimits(lower=(-1.0,), upper=(3.0,))  # range 4, margin 0.1: free from -0.9 to 2.9
    for q, excess in ((0.0, 0.0), (2.9, 0.0), (-0.9, 0.0), (2.95, 0.05), (3.5, 0.6), (-1.0, 0.1)):
        value = float(term(step(joint_position=jnp.asarray([q]))))
        assert value == pytest.approx(excess, abs=1e-6), q


def test_too_low_and_too_tilted_end_at_their_thresholds(physics):
    def at(height: float):
        return physics._replace(qpos=physics.qpos.at[2].set(height))

    assert not bool(BaseTooLow(0.5)(at(0.51))) and bool(BaseTooLow(0.5)(at(0.49)))

    def leaning(degrees: float):
        angle = math.radians(degrees)
        return physics._replace(sensors=gravity(physics, 9.81 * math.sin(angle), 0.0, -9.81 * math.cos(angle)))

    assert not bool(TooTilted(60.0)(leaning(59.0))) and bool(TooTilted(60.0)(leaning(61.0)))
    assert bool(TooTilted(60.0)(leaning(180.0)))


def test_not_finite_ends_on_nan_infinity_and_absurd_velocity(physics):
    term = NotFinite()
    assert not bool(term(physics))
    assert not bool(term(physics._replace(qvel=physics.qvel.at[9].set(-999.0))))
    for bad in (jnp.nan, jnp.inf):
        assert bool(term(physics._replace(qpos=physics.qpos.at[4].set(bad))))
    for bad in (jnp.nan, jnp.inf, 1001.0, -1001.0):
        assert bool(term(physics._replace(qvel=physics.qvel.at[9].set(bad))))


def test_commands_keep_order_units_and_ranges():
    commands = UniformCommands.of({"vx": (-0.5, 1.0), "yaw_rate": (2.0, 3.0), "wave": (0.0, 0.0)})
    assert [(c.name, c.unit) for c in commands.specs] == [("vx", "m/s"), ("yaw_rate", "rad/s"), ("wave", "")]
    draws = np.asarray(jax.vmap(commands)(jax.random.split(jax.random.key(0), 500)))
    assert draws.shape == (500, 3)
    assert (draws >= [-0.5, 2.0, 0.0]).all() and (draws <= [1.0, 3.0, 0.0]).all()
    # uniform: the mean of 500 is within 5 standard errors of the middle
    assert np.abs(draws[:, :2].mean(0) - [0.25, 2.5]).max() < 5 * 1.5 / math.sqrt(12 * 500)
    assert np.array_equal(commands(jax.random.key(4)), commands(jax.random.key(4)))


def test_no_commands_are_an_empty_vector():
    assert UniformCommands.of({})(jax.random.key(0)).shape == (0,)


def channel(**changes) -> CommandChannel:
    return CommandChannel(config=LatencyConfig(**{"jitter_s": 0.0, "loss": 0.0, **changes}))


def test_a_lost_packet_holds_the_target_before_it():
    new, old = jnp.asarray([1.0, 2.0]), jnp.asarray([-1.0, -2.0])
    keys = jax.random.split(jax.random.key(0), 2000)

    def through(loss: float):
        send = channel(loss=loss)
        return np.asarray(jax.vmap(lambda k: send(k, new, old, jnp.asarray(0.01))[0])(keys))

    assert np.array_equal(through(0.0), np.tile(new, (2000, 1)))
    arrived = through(0.3)
    held = (arrived == np.asarray(old)).all(axis=1)
    assert (held | (arrived == np.asarray(new)).all(axis=1)).all()  # never half of each
    assert abs(held.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 2000)


def test_jitter_adds_between_nothing_and_its_width_to_the_latency():
    target, keys = jnp.zeros(1), jax.random.split(jax.random.key(1), 1000)

    def latencies(jitter: float):
        send = channel(jitter_s=jitter)
        return np.asarray(jax.vmap(lambda k: send(k, target, target, jnp.asarray(0.01))[1])(keys))

    assert (latencies(0.0) == np.float32(0.01)).all()
    drawn = latencies(0.004)
    assert 0.01 <= drawn.min() < 0.0102 and 0.0138 < drawn.max() <= 0.014001


def test_the_channel_knows_the_longest_latencies():
    send = channel(action_s=(0.003, 0.015), observation_s=(0.002, 0.02), jitter_s=0.004)
    assert send.latency_max_s == pytest.approx(0.019)
    assert send.observation_latency_max_s == pytest.approx(0.024)


def test_the_level_rises_with_survival_falls_without_and_rests_between():
    level = LevelCurriculum(rise_above=0.75, fall_below=0.4, step=0.1)
    assert level.start() == 0.0
    assert level(0.5, 0.76) == pytest.approx(0.6)
    assert level(0.5, 0.39) == pytest.approx(0.4)
    assert level(0.5, 0.75) == level(0.5, 0.4) == 0.5
    assert level(0.95, 1.0) == 1.0 and level(0.05, 0.0) == 0.0


def test_without_a_curriculum_the_level_is_one():
    level = LevelCurriculum(enabled=False)
    assert level.start() == 1.0 and level(0.2, 0.0) == 1.0
