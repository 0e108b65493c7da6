"""Packets in an environment: delays to the physics step, held values to the bit, losses, stalls.

The robot is a wheel about a vertical axis with a constant torque, so each angle is known by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.actuators import TorqueActuators
from ksim.channels import Channel
from ksim.config import Config
from ksim.environment import Environment, make_environment
from ksim.events import Stall
from ksim.noise import GaussianNoise
from ksim.observation import (
    DelayedGyroObservation,
    DelayedJointPositionObservation,
    DelayedJointVelocityObservation,
    DelayedProjectedGravityObservation,
)

# Inertia of the wheel about its axis [kg m^2]; a physics step is 5 ms, a control step 20 ms.
INERTIA, DT, SUBSTEPS, TORQUE = 0.05, 0.005, 4, 0.02
ENVS, TICKS = 4, 150


class Run(NamedTuple):
    """What was seen, (T, E, ...): row t is what is known after t control steps; `speed` is the truth [rad/s]."""

    inputs: dict[str, np.ndarray]
    critic: np.ndarray
    speed: np.ndarray
    torque: np.ndarray
    fresh: dict[str, np.ndarray]


def run(env: Environment, torque: Any, ticks: int) -> Run:
    """`ticks` control steps, told the torque `torque(t)` [N m] at tick t."""
    batch, seen = env.reset(jax.random.key(5))
    rows = []
    packets = [{name: carry["packet"] for name, carry in batch.env.carries["channels"].items()}]
    for t in range(ticks + 1):
        speed, drive = np.asarray(batch.physics.joint_velocity), np.asarray(batch.physics.torque)
        rows.append((jax.tree.map(np.asarray, seen.inputs), np.asarray(seen.critic), speed, drive))
        told = jnp.full((env.envs, 1), torque(t), jnp.float32)
        batch, seen, _ = env.step(batch, told, told)
        packets.append({name: carry["packet"] for name, carry in batch.env.carries["channels"].items()})
    inputs, critic, speed, drive = jax.tree.map(lambda *v: np.stack(v), *rows)
    numbers = {name: np.stack([np.asarray(row[name]) for row in packets[:-1]]) for name in packets[0]}
    fresh = {name: np.concatenate([np.ones((1, env.envs), bool), n[1:] != n[:-1]]) for name, n in numbers.items()}
    return Run(inputs, critic, speed, drive, fresh)


@pytest.fixture(scope="session")
def spun(wheel: Path) -> Run:
    """The wheel under a constant torque, each sense through a channel of its own; the command through another."""
    config = Config(
        robot=str(wheel),
        threads=1,
        actuators=TorqueActuators(),
        channels={
            "action": Channel(latency_s=(0.05, 0.05)),
            "joints": Channel(latency_s=(0.05, 0.05)),
            "between": Channel(latency_s=(0.0125, 0.0125)),
            "slow": Channel(rate_hz=(20.0, 20.0)),
            "lossy": Channel(loss=0.3),
        },
        observations={
            "joint_angles": DelayedJointPositionObservation(channel="joints"),
            "joint_angular_velocities": DelayedJointVelocityObservation(channel="slow"),
            "gyroscope": DelayedGyroObservation(channel="slow", noise=GaussianNoise(std=0.1)),
            "projected_gravity": DelayedProjectedGravityObservation(channel="lossy", noise=GaussianNoise(std=0.1)),
        },
        critic={"angle": DelayedJointPositionObservation(channel="between")},
    )
    return run(make_environment(config, ENVS, "mujoco"), lambda t: TORQUE, TICKS)


# The command is 50 ms late, which is ten physics steps.
LATE = 10


def speed_at(step: Any) -> Any:
    """Speed after a number of physics steps [rad/s]."""
    return DT * TORQUE / INERTIA * np.maximum(np.asarray(step) - LATE, 0)


def angle_at(step: Any) -> Any:
    """Angle after a number of physics steps [rad]: the sum of the speeds before."""
    pushed = np.maximum(np.asarray(step, float) - LATE, 0)
    return DT**2 * TORQUE / INERTIA * pushed * (pushed + 1) / 2


def test_a_command_is_in_force_two_and_a_half_control_steps_after_it_was_sent(spun):
    steps = SUBSTEPS * np.arange(TICKS + 1)
    assert np.allclose(spun.speed[:, :, 0], speed_at(steps)[:, None], rtol=1e-4, atol=1e-7)
    # after three control steps two physics steps have had it: the hand-computed number
    assert spun.speed[3, 0, 0] == pytest.approx(2 * 0.005 * 0.02 / 0.05, rel=1e-4)
    assert not spun.speed[:3].any()


def test_an_observation_is_two_and_a_half_control_steps_old(spun):
    steps = SUBSTEPS * np.arange(TICKS + 1)
    seen = spun.inputs["joint_angles"][:, :, 0]
    assert np.allclose(seen, angle_at(steps - 10)[:, None], rtol=1e-4, atol=1e-7)
    # a step more or less would be seen
    assert np.abs(seen - angle_at(steps - 9)[:, None]).max() > 100 * np.abs(seen - angle_at(steps - 10)[:, None]).max()


def test_a_delay_between_two_physics_steps_is_read_between_them(spun):
    steps = SUBSTEPS * np.arange(TICKS + 1)
    between = 0.5 * (angle_at(steps - 2) + angle_at(steps - 3))
    assert np.allclose(spun.critic[:, :, 0], between[:, None], rtol=1e-4, atol=1e-7)


def test_a_sensor_of_20_hz_in_a_loop_of_50_repeats_its_bits_in_three_ticks_of_five(spun):
    fresh, speed = spun.fresh["slow"][1:], spun.inputs["joint_angular_velocities"]
    assert abs(1.0 - fresh.mean() - 0.6) < 0.01
    held = ~fresh
    assert np.array_equal(speed[1:][held], speed[:-1][held])
    moving = speed[:-1, :, 0] > 0  # once it turns, each packet has another speed
    assert (speed[1:, :, 0] > speed[:-1, :, 0])[fresh & moving].all()
    # what is held is never older than its period and a tick, and is a speed that the wheel had
    age = (speed_at(SUBSTEPS * np.arange(TICKS + 1))[:, None] - speed[:, :, 0]) / (TORQUE / INERTIA)
    assert age.min() > -1e-4 and 0.03 < age.max() < 0.05 + 1e-4


def test_two_senses_of_one_channel_are_of_the_same_packet(spun):
    gyro, speed = spun.inputs["gyroscope"], spun.inputs["joint_angular_velocities"]
    late = slice(20, None)  # the wheel turns
    changed = (gyro[1:] != gyro[:-1]).any(axis=2)[late]
    assert np.array_equal(changed, (speed[1:, :, 0] != speed[:-1, :, 0])[late]) and changed.any()


def test_noise_is_drawn_once_for_each_packet(spun):
    # the IMU stands still, so what it says is noise alone
    gyro = spun.inputs["gyroscope"]
    for env in range(ENVS):
        values = gyro[:, env, 0]
        assert len(np.unique(values)) == spun.fresh["slow"][:, env].sum()
    assert gyro.std() == pytest.approx(0.1, rel=0.15)


def test_a_lost_packet_leaves_the_one_before_to_the_bit(spun):
    fresh, gravity = spun.fresh["lossy"][1:], spun.inputs["projected_gravity"]
    lost = ~fresh
    # 600 draws: five standard errors
    assert abs(lost.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / lost.size)
    assert np.array_equal(gravity[1:][lost], gravity[:-1][lost])
    assert (gravity[1:][fresh] != gravity[:-1][fresh]).any(axis=1).all()
    assert np.allclose(gravity.mean(axis=(0, 1)), [0.0, 0.0, -9.81], atol=0.05)


def test_environments_sample_at_times_of_their_own(spun):
    fresh = spun.fresh["slow"]
    assert len({tuple(fresh[:, env]) for env in range(ENVS)}) > 1


@pytest.fixture(scope="session")
def stalled(wheel: Path) -> Run:
    """Another torque at each tick, with a stall of 60 ms every 200 ms."""
    config = Config(
        robot=str(wheel),
        threads=1,
        actuators=TorqueActuators(),
        events={"stalls": Stall(duration_s=(0.06, 0.06), interval_s=(0.2, 0.2))},
    )
    return run(make_environment(config, ENVS, "mujoco"), lambda t: 1e-3 * (t + 1), 60)


def test_a_stall_holds_the_last_command_for_its_ticks(stalled):
    # row t + 1 has the torque of tick t
    torque = stalled.torque[1:, :, 0]
    told = 1e-3 * (np.arange(len(torque)) + 1)
    for env in range(ENVS):
        held = ~np.isclose(torque[:, env], told, atol=1e-6)
        assert np.allclose(torque[:, env][1:][held[1:]], torque[:, env][:-1][held[1:]], atol=1e-7)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]]).astype(int)))
        lengths = np.diff(edges)[::2]
        assert len(lengths) >= 3 and (lengths[:-1] == 3).all(), lengths
        begins = edges[::2]
        assert (np.diff(begins) >= 10).all()  # 0.2 s apart


def draws(channel: Channel, level: float = 1.0) -> Any:
    keys = jax.random.split(jax.random.key(0), 500)
    return jax.tree.map(np.asarray, jax.vmap(lambda key: channel.draw(key, level)["sampling"])(keys))


def test_ranges_are_drawn_for_an_episode_and_the_phase_is_any_of_a_period():
    drawn = draws(Channel(latency_s=(0.003, 0.015), rate_hz=(20.0, 25.0), skew=0.01))
    assert 0.003 <= drawn.latency_s.min() < 0.0035 and 0.0145 < drawn.latency_s.max() <= 0.015
    assert 1 / 25 <= drawn.period_s.min() < 0.0405 and 0.0495 < drawn.period_s.max() <= 1 / 20
    share = drawn.phase_s / drawn.period_s
    assert 0.0 <= share.min() < 0.01 and 0.99 < share.max() <= 1.0
    assert -0.01 <= drawn.skew.min() < -0.0098 and 0.0098 < drawn.skew.max() <= 0.01


def test_a_channels_scale_brings_latency_jitter_and_loss_nearer_to_none():
    full = draws(Channel(latency_s=(0.02, 0.03), jitter_s=0.004, loss=0.2))
    half = draws(Channel(latency_s=(0.02, 0.03), jitter_s=0.004, loss=0.2, scale=0.5))
    for name in ("latency_s", "jitter_s", "loss"):
        assert np.allclose(getattr(half, name), 0.5 * getattr(full, name)), name


def test_a_packet_is_late_by_its_latency_and_up_to_its_jitter_and_lost_as_often_as_said():
    channel = Channel(latency_s=(0.01, 0.01), jitter_s=0.004, loss=0.3)
    carry = channel.draw(jax.random.key(0), 1.0)
    late, lost = jax.vmap(lambda key: channel.late(carry, key))(jax.random.split(jax.random.key(1), 2000))
    assert 0.01 <= late.min() < 0.0101 and 0.0139 < late.max() <= 0.014001
    assert abs(lost.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)
