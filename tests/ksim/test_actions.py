"""Actions: limits of speed and acceleration of the joint targets, and one policy function for training and export."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.actions import JointTargets
from ksim.clock import GaitClock
from ksim.commands import Command, UniformCommand
from ksim.config import Config, PolicyConfig
from ksim.learning.policy import Policy, make_model, make_policy
from robots import load_robot

# One joint about 0, as far as it likes; a move of a target may change by 0.01 rad from step to step.
FREE = JointTargets(home=(0.0,), scale=(1.0,), low=(-9.0,), high=(9.0,), smoothing=0.0, bend=(0.01,))


def follow(law: JointTargets, wanted: list[float] | np.ndarray) -> np.ndarray:
    """The targets of the first joint, step by step, from home at rest."""
    memory, out = jnp.asarray(law.start()), []
    step = jax.jit(law.remembered)
    for value in wanted:
        targets, memory = step(jnp.full(len(law.home), value, jnp.float32), memory)
        out.append(float(targets[0]))
    return np.asarray(out)


def test_a_target_speeds_up_and_brakes_step_by_step_and_rests_where_it_is_wanted():
    # moves of 1, 2, then braked: 2, 1, 0 hundredths; 0.03 is what a move of two takes to brake, itself included
    assert follow(FREE, [0.06] * 6) == pytest.approx([0.01, 0.03, 0.05, 0.06, 0.06, 0.06], abs=1e-6)
    assert follow(FREE, [-0.06] * 5) == pytest.approx([-0.01, -0.03, -0.05, -0.06, -0.06], abs=1e-6)


def test_a_target_that_must_turn_back_brakes_first():
    # two steps up make a speed of 0.02; then a move of 0.01, none, and back
    assert follow(FREE, [1.0, 1.0, -1.0, -1.0, -1.0, -1.0]) == pytest.approx(
        [0.01, 0.03, 0.04, 0.04, 0.03, 0.01], abs=1e-6
    )


def test_no_target_passes_its_limits_of_acceleration_speed_or_position_whatever_is_wanted():
    law = dataclasses.replace(FREE, low=(-0.3,), high=(0.5,), step=(0.03,))
    rng = np.random.default_rng(2)
    wanted = np.repeat(rng.normal(0.0, 1.0, 60), rng.integers(1, 12, 60))
    targets = follow(law, wanted)
    moves = np.diff(np.concatenate([[0.0], targets]))
    bends = np.diff(np.concatenate([[0.0], moves]))
    assert np.abs(bends).max() <= 0.01 + 1e-6
    assert np.abs(moves).max() <= 0.03 and np.abs(moves).max() > 0.0299
    assert targets.min() >= -0.3 and targets.max() <= 0.5
    assert targets.min() < -0.299 and targets.max() > 0.499  # the limits were met


def test_the_memory_is_the_last_targets_and_their_last_move_where_acceleration_is_limited():
    plain = dataclasses.replace(FREE, bend=())
    assert plain.memory == ("last_targets",) and plain.start().tolist() == [0.0]
    assert FREE.memory == ("last_targets", "last_target_move") and FREE.start().tolist() == [0.0, 0.0]
    targets, memory = FREE.remembered(jnp.ones(1), jnp.asarray([0.5, 0.005]))
    np.testing.assert_allclose(targets, [0.515], rtol=1e-6)
    np.testing.assert_allclose(memory, [0.515, 0.015], rtol=1e-4)


def test_the_settings_are_shares_of_the_joints_speeds_and_rad_per_s2():
    robot = load_robot("kbot")
    settings = PolicyConfig(target_speed=0.5, target_acceleration=50.0)
    law = JointTargets.of_config(robot, Config(policy=settings))
    np.testing.assert_allclose(law.step, 0.5 * 0.02 * np.asarray(robot.column("velocity_max_rad_s")))
    np.testing.assert_allclose(law.bend, 50.0 * 0.02**2)
    assert JointTargets.of_config(robot, Config()).bend == ()


def policy_of(**settings: Any) -> Policy:
    """An untrained policy on the K-Bot whose actions are not small."""
    commands: dict[str, Command] = {n: UniformCommand(name=n, range=(-1.0, 1.0)) for n in ("xvel", "lift")}
    config = Config(commands=commands, policy=PolicyConfig(hidden=8, head=8, **settings))
    robot = load_robot("kbot")
    model = eqx.filter_jit(make_model)(robot, 3, config, key=jax.random.key(1))
    where = lambda m: m.actor.net.output_layer.weight  # noqa: E731
    return make_policy(eqx.tree_at(where, model, 100.0 * where(model)).actor, robot, config)


def test_a_policy_without_the_limit_has_the_carry_that_it_had():
    names = [part.name for part in policy_of().carry_layout]
    assert names[-2:] == ["last_action", "last_targets"]


@pytest.mark.parametrize(("network", "loop"), [("lstm", {}), ("mlp", {}), ("lstm", {"estimator": 4, "integral": 2.0})])
def test_what_is_exported_and_what_training_runs_give_the_same_numbers(network: str, loop: dict):
    policy = policy_of(
        network=network,
        target_acceleration=50.0,
        target_speed=0.5,
        smoothing=0.2,
        hold=("shoulder",),
        passthrough={"dof_left_wrist_00": "lift"},
        clock=GaitClock(frequency_hz=1.25),
        **loop,
    )
    carried = {"gait_phase": 1} | ({"velocity_loop.besides": 3, "velocity_loop.lately": 3} if loop else {})
    carried |= {"last_action": policy.actions, "last_targets": 20, "last_target_move": 20}
    tail = policy.carry_layout[-len(carried) :]
    assert [(part.name, part.shape) for part in tail] == [(name, (size,)) for name, size in carried.items()]
    rng = np.random.default_rng(7)
    exported = eqx.filter_jit(lambda inputs, carry: policy.step(inputs, carry))

    @eqx.filter_jit
    def trained(inputs: dict, carry: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As a rollout does it: batched, the network's mean in the place of a sample."""
        batch = jax.tree.map(lambda v: v[None], inputs)
        state, phase, last_action, memory = policy.split(carry[None])
        observation = jax.vmap(policy.encode)(batch, phase, last_action)
        mean, state, told = jax.vmap(policy.actor)(observation, state)
        targets, carry = policy.act(batch, mean, told, state, phase, memory)
        return targets[0], carry[0]

    one = other = policy.init_carry()
    home = np.asarray(policy.targets.home, np.float32)
    move = np.zeros(20)
    last = home.astype(np.float64)
    for _ in range(12):
        inputs = {
            "joint_angles": jnp.asarray(home + rng.normal(0, 0.3, 20), jnp.float32),
            "joint_angular_velocities": jnp.asarray(rng.normal(0, 1, 20), jnp.float32),
            "projected_gravity": jnp.asarray([0.3, -0.2, -9.8]),
            "gyroscope": jnp.asarray(rng.normal(0, 1, 3), jnp.float32),
            "command": jnp.asarray(rng.uniform(-1, 1, 2), jnp.float32),
        }
        first, one = exported(inputs, one)
        second, other = trained(inputs, other)
        np.testing.assert_allclose(first, second, atol=1e-5)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        moved = np.asarray(first, np.float64) - last
        np.testing.assert_allclose(policy.split(one)[3], np.concatenate([first, moved]), atol=1e-6)
        assert np.abs(moved - move).max() <= 50.0 * 0.02**2 + 1e-5
        move, last = moved, np.asarray(first, np.float64)
    assert np.abs(move).max() > 0.01
