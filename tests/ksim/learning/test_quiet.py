"""Less noise on the actions where the gait clock rests, and episodes that are easier: what a run does with both."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.clock import GaitClock
from ksim.config import PpoConfig
from ksim.curriculum import FixedCurriculum
from ksim.errors import ConfigError
from ksim.learning import ppo
from ksim.learning.trainer import Trainer
from tests.ksim.few_terms import few_terms


@pytest.fixture(scope="module")
def trainer(config):
    """Of a task with a clock, whose actions have a tenth of their spread at rest."""
    policy = dataclasses.replace(config.policy, clock=GaitClock(frequency_hz=1.25))
    quiet = dataclasses.replace(config.ppo, std_at_rest=0.1)
    easier = FixedCurriculum(first_level=1.0, easier=0.5)
    return Trainer(few_terms(config, policy=policy, ppo=quiet, curriculum=easier, randomizations={}))


def test_actions_vary_less_at_rest_and_their_probability_is_that_of_what_was_drawn(trainer):
    learner, batch, _ = trainer.start()
    command = jnp.zeros_like(batch.env.command).at[::2, 0].set(0.5)  # every other one is to move
    env, level = batch.env._replace(command=command), jnp.ones(())
    *_, kept = trainer.tick(learner.model, batch.physics, batch.params, env, learner.carry, jax.random.key(0), level)
    actor = learner.model.actor
    mean, *_ = jax.vmap(actor)(kept.observation, jnp.zeros((len(command), actor.state_size)))
    std = np.exp(np.asarray(learner.model.actor.log_std)) * np.array([1.0, 0.1] * (len(command) // 2))[:, None]
    apart = (np.asarray(kept.action.raw) - np.asarray(mean)) / std
    assert 0.7 < np.sqrt(np.mean(apart[::2] ** 2)) < 1.3 and 0.7 < np.sqrt(np.mean(apart[1::2] ** 2)) < 1.3
    np.testing.assert_allclose(kept.log_prob, ppo.log_prob(kept.action.raw, mean, np.log(std)), rtol=1e-4)


def test_an_update_reads_the_probability_with_the_spread_that_drew(trainer):
    learner, *_ = trainer.start()
    model = learner.model
    keys, shape = jax.random.split(jax.random.key(3), 3), (3, 2)
    seen = jax.random.normal(keys[0], (*shape, model.actor.net.inputs))
    states = {f"{k}_state": jnp.zeros((2, getattr(model, k).net.state_size)) for k in ("actor", "critic")}
    resets, quiet = jnp.zeros(shape, bool), jnp.where(jnp.arange(2) == 0, 0.0, jnp.log(0.1))[None, :, None]
    mean, _ = model.actor.unroll(seen, states["actor_state"], resets)
    std = model.actor.log_std + jnp.broadcast_to(quiet, (*shape, 1))
    action = mean + jnp.exp(std) * jax.random.normal(keys[1], mean.shape)
    batch = ppo.Batch(
        observation=seen,
        critic=jax.random.normal(keys[2], (*shape, model.critic.net.inputs)),
        action=action,
        log_prob=ppo.log_prob(action, mean, std),
        advantage=jnp.ones(shape),
        target=jnp.zeros(shape),
        resets=resets,
        mirror_state=(),
        quiet=std - model.actor.log_std,
        **states,
    )
    _, figures = ppo.loss(model, batch, trainer.config.ppo)
    # the networks that drew the actions: each probability is what it was
    assert figures["kl"] == pytest.approx(0.0, abs=1e-5) and figures["surrogate"] == pytest.approx(-1.0, abs=1e-4)


def test_training_has_easier_episodes_where_its_curriculum_says_so(trainer):
    assert trainer.env.training and trainer.env.config.curriculum.easier == 0.5


def test_without_a_clock_there_is_no_rest_to_be_quiet_at(config):
    with pytest.raises(ConfigError, match=r"ppo.std_at_rest: got 0.5, expected 1 where policy.clock.frequency_hz is 0"):
        dataclasses.replace(config, ppo=PpoConfig(std_at_rest=0.5))
