"""An actor with a second memory that tells the first how fast the base moves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from export.command import export_checkpoint
from ksim.commands import JoystickCommand
from ksim.errors import CheckpointError
from ksim.learning import checkpoint, ppo
from ksim.learning.policy import ESTIMATED, Model
from ksim.learning.trainer import Trainer, moving_mean
from ksim.train import train
from tests.ksim.few_terms import few_terms
from toolkit.errors import SettingsError


@pytest.fixture(scope="module")
def task(config):
    """Of few terms, with an estimator of six units, and a policy whose left is the mirror image of its right."""
    policy = dataclasses.replace(config.policy, estimator=6)
    symmetric = dataclasses.replace(config.ppo, symmetry="exact")
    run = dataclasses.replace(config.run, total_steps=config.ppo.envs * config.ppo.rollout_steps)
    return few_terms(config, policy=policy, ppo=symmetric, run=run, randomizations={})


@pytest.fixture(scope="module")
def started(task):
    """(trainer, learner, batch, progress) before the first update."""
    trainer = Trainer(task)
    return trainer, *trainer.start()


def drawn(model):
    """The model with weights that are not small, so that what the estimator tells matters."""
    keys = iter(jax.random.split(jax.random.key(4), 100))
    louder = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape) if eqx.is_inexact_array(x) else x, model.actor
    )
    return louder


def test_a_rollout_is_what_the_steps_are(started):
    _, learner, _, _ = started
    actor, seen = drawn(learner.model), learner.model.actor.estimator.inputs
    xs = jax.random.normal(jax.random.key(1), (5, 2, seen))
    start = jax.random.normal(jax.random.key(2), (2, actor.state_size))
    resets = jnp.zeros((5, 2), bool).at[3, 0].set(True)
    whole, last, told = actor.unrolled(xs, start, resets)
    assert told.shape == (5, 2, len(ESTIMATED)) and next(n for n, _ in actor.layout).startswith("estimator.")
    for e in range(2):
        state = start[e]
        for t in range(5):
            out, state, _ = actor(xs[t, e], state * (1 - resets[t, e]))
            np.testing.assert_allclose(whole[t, e], out, atol=1e-5)
        np.testing.assert_allclose(last[e], state, atol=1e-5)
    # what it tells matters
    deaf = eqx.tree_at(lambda a: a.estimator.output_layer.weight, actor, 0 * actor.estimator.output_layer.weight)
    assert np.abs(deaf.unroll(xs, start, resets)[0] - whole).max() > 1e-3


def test_the_mirror_image_is_told_the_mirror_image(started):
    trainer, learner, _, _ = started
    mirror, actor = trainer.mirror, drawn(learner.model).even(trainer.mirror)
    xs = jax.random.normal(jax.random.key(1), (5, 2, actor.estimator.inputs))
    nothing, resets = jnp.zeros((2, actor.state_size)), jnp.zeros((5, 2), bool)
    out, _, told = actor.unrolled(xs, nothing, resets)
    image, _, told_image = actor.unrolled(mirror.observation(xs), nothing, resets)
    np.testing.assert_allclose(image, mirror.action(out), atol=1e-4)
    np.testing.assert_allclose(told_image, told * np.array([1.0, -1.0, -1.0]), atol=1e-4)


def test_it_learns_the_velocity(task, tmp_path):
    run = dataclasses.replace(task.run, total_steps=task.ppo.envs * task.ppo.rollout_steps * 100)
    still = {"learning_rate": 1e-8, "learning_rate_min": 1e-8, "learning_rate_max": 1e-8}
    errors = {}
    for rate in (1e-8, 0.02):
        learner = dataclasses.replace(task.ppo, estimator_rate=rate, **still)
        out = tmp_path / f"{rate:g}"
        train(dataclasses.replace(task, run=run, ppo=learner), out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        errors[rate] = np.mean([row["estimate_error"] for row in rows[50:]])
    assert errors[0.02] < 0.85 * errors[1e-8]


def test_the_mean_that_it_learns_goes_on_over_rollouts_and_begins_with_each_episode():
    now = np.arange(12.0, dtype=np.float32).reshape(6, 2, 1)
    first = np.zeros((6, 2), bool)
    first[0] = first[3, 0] = True
    last, means = moving_mean(jnp.full((2, 1), 9.0), now, first, 0.25)
    want = np.zeros(2)
    for t in range(6):
        want = 0.75 * np.where(first[t], 0.0, want) + 0.25 * now[t, :, 0]
        np.testing.assert_allclose(means[t, :, 0], want, rtol=1e-6)
    half, begun = moving_mean(jnp.full((2, 1), 9.0), now[:2], first[:2], 0.25)
    after, rest = moving_mean(half, now[2:], first[2:], 0.25)
    np.testing.assert_allclose(np.concatenate([begun, rest]), means, rtol=1e-6)
    np.testing.assert_allclose(after, last, rtol=1e-6)
    np.testing.assert_array_equal(moving_mean(jnp.zeros((2, 1)), now, first, 1.0)[1], now)


@pytest.mark.parametrize(("time_s", "share"), [(0.4, 0.05), (0.0, 1.0)])
def test_what_an_update_learns_is_the_mean_over_the_time_that_is_asked_for(task, monkeypatch, time_s, share):
    trainer = Trainer(dataclasses.replace(task, ppo=dataclasses.replace(task.ppo, estimator_time_s=time_s)))
    assert task.physics.control_period_s == 0.02
    kept = []
    update = ppo.update

    def watched(model, opt_state, rate, scale, rollout, *rest):
        jax.debug.callback(lambda truth: kept.append(truth), rollout.truth)
        return update(model, opt_state, rate, scale, rollout, *rest)

    monkeypatch.setattr(ppo, "update", watched)
    learner, batch, progress = trainer.start()
    moved = trainer.iterate(learner, batch, progress)[0].moved
    jax.effects_barrier()
    np.testing.assert_allclose(moved, kept[0][-1], rtol=1e-6)
    speed = np.abs(np.diff(kept[0], axis=0)).mean()
    assert speed > 0.01 if share == 1.0 else 0 < speed < 0.01


def test_of_the_reward_it_learns_nothing(started):
    trainer, learner, _, _ = started
    model = eqx.tree_at(lambda m: m.actor, learner.model, drawn(learner.model))
    keys, shape = jax.random.split(jax.random.key(3), 5), (3, 2)
    states = {"actor_state": jnp.zeros((2, model.actor.state_size))}
    states["critic_state"] = jnp.zeros((2, model.critic.net.state_size))

    seen = jax.random.normal(keys[0], (*shape, model.actor.estimator.inputs))
    mean, _ = model.actor.unroll(seen, states["actor_state"], jnp.zeros(shape))
    action = mean + jnp.exp(model.actor.log_std) * jax.random.normal(keys[2], mean.shape)

    def slope(advantage, truth):
        batch = ppo.Batch(
            observation=seen,
            critic=jax.random.normal(keys[1], (*shape, model.critic.net.inputs)),
            action=action,
            log_prob=ppo.log_prob(action, mean, model.actor.log_std),
            advantage=advantage * jax.random.normal(keys[4], shape),
            target=jnp.zeros(shape),
            resets=jnp.zeros(shape, bool),
            mirror_state=(),
            truth=jnp.full((*shape, 3), truth),
            **states,
        )
        found = eqx.filter_grad(lambda m: ppo.loss(m, batch, trainer.config.ppo)[0])(model).actor
        return found.estimator.output_layer.bias, found.net.output_layer.bias

    (one, acts), (same, other), (moved, _) = slope(1.0, 0.5), slope(7.0, 0.5), slope(1.0, 0.9)
    np.testing.assert_allclose(one, same, rtol=1e-5)
    assert np.abs(acts - other).max() > 1e-3 and np.abs(one - moved).max() > 1e-3


def test_what_it_learns_does_not_count_as_a_step_of_the_actor(task):
    still = {"learning_rate": 1e-8, "learning_rate_min": 1e-8, "learning_rate_max": 1e-8}
    trainer = Trainer(dataclasses.replace(task, ppo=dataclasses.replace(task.ppo, estimator_rate=0.05, **still)))
    learner, batch, progress = trainer.start()
    loud = eqx.tree_at(lambda m: m.actor, learner.model, drawn(learner.model).even(trainer.mirror))
    after, _, _, figures = trainer.iterate(learner._replace(model=loud), batch, progress)
    moved = after.model.actor.estimator.output_layer.weight - loud.actor.estimator.output_layer.weight
    assert np.abs(moved).max() > 0.05 and figures["kl"] < 1e-7


def test_it_learns_while_the_actor_waits_for_its_critic(task):
    trainer = Trainer(dataclasses.replace(task, ppo=dataclasses.replace(task.ppo, critic_first=5)))
    learner, batch, progress = trainer.start()
    before = learner.model.actor
    after = trainer.iterate(learner, batch, progress)[0].model.actor
    for old, new in zip(jax.tree.leaves(before.net), jax.tree.leaves(after.net), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-7)
    moved = after.estimator.output_layer.weight - before.estimator.output_layer.weight
    assert np.abs(moved).max() > 1e-4


def test_a_walk_without_one_goes_on_as_it_was_until_it_has_learned(task, tmp_path):
    plain = dataclasses.replace(task, policy=dataclasses.replace(task.policy, estimator=0))
    first = train(plain, tmp_path / "plain").checkpoint
    trainer = Trainer(task)
    learner, *_ = trainer.start_from(checkpoint.Start.read(first))
    old = checkpoint.load_trained(first).policy.actor
    actor = learner.model.actor
    xs = jax.random.normal(jax.random.key(1), (5, 2, actor.estimator.inputs))
    resets = jnp.zeros((5, 2), bool)
    was, _ = old.unroll(xs, jnp.zeros((2, old.state_size)), resets)
    now, _ = actor.unroll(xs, jnp.zeros((2, actor.state_size)), resets)
    np.testing.assert_allclose(now, was, atol=1e-6)
    second = train(task, tmp_path / "with", init=first).checkpoint
    with pytest.raises(CheckpointError, match=r"its policy.estimator: 6; this run has 0"):
        Trainer(plain).start_from(checkpoint.Start.read(second))


@pytest.mark.parametrize("network", ["lstm", "gru", "mlp"])
def test_with_a_gain_it_starts_as_if_what_is_missing_to_a_velocity_were_asked_for_too(task, network):
    ranges = {"xvel": (-0.5, 1.0), "yvel": (-0.4, 0.4), "yawrate": (-2.0, 2.0)}
    plain = dataclasses.replace(
        task,
        commands={"joystick": JoystickCommand(**ranges)},
        policy=dataclasses.replace(task.policy, estimator=0, network=network, history=0),
    )
    before = Trainer(plain).start()[0].model.actor
    loud = eqx.tree_at(lambda a: a.net, before, drawn(Model(before, None)).net)
    policy = dataclasses.replace(plain.policy, estimator=6)
    trainer = Trainer(dataclasses.replace(plain, policy=policy, ppo=dataclasses.replace(plain.ppo, estimator_gain=0.4)))
    arrays = checkpoint.named_leaves(loud, "model.actor")
    start = checkpoint.Start(
        path=Path("x.ckpt"), config=plain, robot=trainer.robot, level=0.0, arrays=arrays, origin={}
    )
    learner, *_ = trainer.start()
    actor = start.networks(learner.model, learner.scale, trainer.config, trainer.env.critic_sizes)[0].actor
    xs = jax.random.uniform(jax.random.key(1), (5, 2, actor.estimator.inputs), minval=-1)
    told = jax.random.normal(jax.random.key(2), (5, 2, 3))
    resets = jnp.zeros((5, 2), bool)
    out, *_ = actor.unrolled(xs, jnp.zeros((2, actor.state_size)), resets, told)
    seen = xs.shape[-1] - out.shape[-1] - 3  # the command stands before the last action
    asked = slice(seen, seen + 3)
    middle = np.array([0.5 * (a + b) for a, b in ranges.values()])
    half = np.array([0.5 * (b - a) for a, b in ranges.values()])
    command = xs[..., asked] * half + middle
    further = (command + 0.4 * (command - told) - middle) / half
    want, _ = loud.unroll(xs.at[..., asked].set(further), jnp.zeros((2, loud.state_size)), resets)
    np.testing.assert_allclose(out, want, atol=2e-5)
    assert np.abs(out - loud.unroll(xs, jnp.zeros((2, loud.state_size)), resets)[0]).max() > 0.05


def test_its_bundle_is_proven_to_be_the_policy(task, tmp_path):
    path = train(task, tmp_path / "run").checkpoint
    proof = {"episodes": 2, "steps": 200, "engines": ("mujoco",), "margin_episodes": 0}
    assert export_checkpoint(path, tmp_path / "policy.kinfer", **proof).kinfer.is_file()
    carried = [part.name for part in checkpoint.load_trained(path).policy.carry_layout]
    assert carried[:2] == ["estimator.lstm0.h", "estimator.lstm0.c"]


def test_it_is_refused_beside_a_normaliser_and_in_a_teacher(task):
    with pytest.raises(SettingsError, match=r"estimator: got 6, expected 0 with policy.sees"):
        dataclasses.replace(task.policy, sees=("joint_position",))
    with pytest.raises(SettingsError, match=r"estimator: got 6, expected 0 with policy.normalise"):
        dataclasses.replace(task.policy, normalise=True)
    with pytest.raises(Exception, match=r"policy.estimator: got 5, expected an even number"):
        dataclasses.replace(task, policy=dataclasses.replace(task.policy, estimator=5))
