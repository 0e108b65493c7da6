"""A loop around the policy that asks for what keeps missing to the velocity."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from export.command import export_checkpoint
from ksim.clock import GaitClock
from ksim.commands import JoystickCommand
from ksim.learning import checkpoint
from ksim.learning.policy import ESTIMATED
from ksim.learning.trainer import Trainer
from ksim.learning.velocity_loop import LAG_S, VelocityLoop
from ksim.train import train
from tests.ksim.few_terms import few_terms
from toolkit.errors import SettingsError

PERIOD_S = 0.02
ALL = VelocityLoop.of(ESTIMATED, ESTIMATED, 0.25, 0.3)


def walked(loop, command, robot, seconds, memory=None, moving=True):
    """(velocities (T, 3), memory) of a robot that moves at `robot(asked)` and is told so."""
    memory, seen = jnp.zeros(6) if memory is None else memory, []
    command, moving = jnp.asarray(command, jnp.float32), jnp.asarray(moving)

    @jax.jit
    def tick(memory):
        velocity = robot(loop.asked(command, memory, moving))
        return velocity, loop.after(command, velocity, memory, moving, PERIOD_S)

    for _ in range(round(seconds / PERIOD_S)):
        velocity, memory = tick(memory)
        seen.append(velocity)
    return np.asarray(seen), memory


def test_a_robot_that_always_errs_by_the_same_comes_to_follow_and_the_next_command_too():
    def askew(asked):
        return 0.9 * asked + jnp.asarray([0.1, -0.05, 0.12])

    seen, memory = walked(ALL, [0.4, 0.1, -0.3], askew, 25.0)
    assert np.abs(seen[0] - askew(np.array([0.4, 0.1, -0.3]))).max() < 1e-6
    np.testing.assert_allclose(seen[-1], [0.4, 0.1, -0.3], atol=5e-3)
    # what it has summed up is kept, and nearly right: of xvel -0.067, where the next command takes -0.056
    seen, _ = walked(ALL, [0.5, 0.0, 0.0], askew, 0.1, memory)
    assert np.abs(seen[-1] - [0.5, 0.0, 0.0]).max() < 0.04


def test_what_it_asks_for_besides_is_the_integral_of_what_is_missing_and_has_a_limit():
    stuck = jnp.zeros(3)
    asked, time_s = 0.2, 4.0
    _, memory = walked(ALL, [asked, 0.0, 0.0], lambda _: stuck, time_s)
    # of a command that comes at once, the sum begins when it is about LAG_S old
    since = time_s - LAG_S * (1 - np.exp(-time_s / LAG_S))
    np.testing.assert_allclose(memory[:3], [0.25 * asked * since, 0.0, 0.0], rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(memory[3], asked * (1 - np.exp(-time_s / LAG_S)), rtol=0.01)
    _, memory = walked(ALL, [1.0, -1.0, 0.0], lambda _: stuck, 60.0)
    np.testing.assert_allclose(memory[:3], [0.3, -0.3, 0.0], atol=1e-6)


def test_at_rest_it_asks_for_nothing_and_keeps_what_it_knows():
    kept = jnp.asarray([0.1, -0.05, 0.2, 0.5, 0.0, 0.0])
    seen, memory = walked(ALL, [0.0, 0.0, 0.0], lambda asked: asked + 0.07, 5.0, kept, moving=False)
    np.testing.assert_allclose(seen, 0.07, atol=1e-7)
    np.testing.assert_allclose(memory[:3], kept[:3])
    assert np.abs(memory[3:]).max() < 0.01


def test_it_finds_its_commands_by_name_and_leaves_the_others_alone():
    loop = VelocityLoop.of(("baseheight", "yawrate", "xvel"), ESTIMATED, 1.0, 0.5)
    memory = jnp.asarray([0.1, 0.2, 0.3, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(
        loop.asked(jnp.asarray([0.7, 0.0, 0.0]), memory, jnp.asarray(True)), [0.7, 0.3, 0.1], atol=1e-7
    )
    # nobody asks for yvel, so nothing is missing to it
    after = loop.after(jnp.asarray([0.7, 0.0, 0.0]), jnp.ones(3), jnp.zeros(6), jnp.asarray(True), PERIOD_S)
    np.testing.assert_allclose(after[:3], [-PERIOD_S, 0.0, -PERIOD_S], atol=1e-7)


@pytest.fixture(scope="module")
def task(config):
    """Of few terms, with a clock, an estimator and the loop."""
    policy = dataclasses.replace(config.policy, estimator=6, integral=2.0, clock=GaitClock(frequency_hz=1.25))
    run = dataclasses.replace(config.run, total_steps=2 * config.ppo.envs * config.ppo.rollout_steps)
    joystick = {"joystick": JoystickCommand(standing=0.0)}
    return few_terms(config, policy=policy, run=run, commands=joystick, randomizations={})


def test_training_runs_it_and_the_bundle_has_it(task, tmp_path):
    path = train(task, tmp_path / "run").checkpoint
    policy = checkpoint.load_trained(path).policy
    assert policy.loop is not None and policy.loop.places == (0, 1, 2)
    proof = {"episodes": 2, "steps": 200, "engines": ("mujoco",), "margin_episodes": 0}
    assert export_checkpoint(path, tmp_path / "policy.kinfer", **proof).kinfer.is_file()


def test_a_rollout_sums_up_and_begins_anew_with_an_episode(task):
    trainer = Trainer(task)
    learner, batch, _ = trainer.start()
    policy = trainer.policy(learner.model)
    carry = learner.carry + 0.1  # of an episode before
    args = (batch.physics, batch.params, batch.env._replace(started=jnp.arange(trainer.env.envs) == 0))
    _, _, carry, _, kept = trainer.tick(learner.model, *args, carry, learner.key, 1.0)
    after = policy.split(carry)[1][:, 1:4]
    # the first began at nothing; the others had 0.1 and go on from there, and were asked for so much more
    assert np.abs(after[0]).max() <= 2.0 * PERIOD_S and np.abs(after[1:] - 0.1).max() <= 3.0 * PERIOD_S
    at = policy.encoding.of_commands(task.command_names, policy.joints)["xvel"]
    e, command = policy.encoding, np.asarray(batch.env.command)
    seen = kept.observation[:, at] / e.scale[at] - e.offset[at] - command[:, 0]
    np.testing.assert_allclose(seen, [0.0] + [0.1] * (len(seen) - 1), atol=1e-5)


def test_it_is_refused_without_an_estimator(task):
    with pytest.raises(SettingsError, match=r"integral: got 2.0, expected 0 without policy.estimator"):
        dataclasses.replace(task.policy, estimator=0)
