"""Recurrent PPO against numbers worked out by hand and the net called step by step."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ksim.config import PolicyConfig, PpoConfig
from ksim.curriculum import LinearScale
from ksim.learning import ppo
from ksim.learning.policy import Actor, Critic, Model

T, E, OBS, SEEN, ACT = 4, 4, 3, 5, 2


@pytest.fixture(scope="module")
def small() -> Model:
    config = PolicyConfig(hidden=4, layers=2, head=4, critic_hidden=4, critic_head=4, init_std=0.5)
    a, c = jax.random.split(jax.random.key(0))
    return Model(actor=Actor(OBS, ACT, config, key=a), critic=Critic(SEEN, config, key=c))


def test_gae_returns_hand_computed():
    # gamma 0.5, lambda 0.5; the episode ends at the second of three steps
    reward = jnp.asarray([[1.0], [2.0], [3.0]])
    value = jnp.asarray([[0.5], [1.0], [2.0], [4.0]])
    done = jnp.asarray([[0.0], [1.0], [0.0]])
    # backwards: 3 + 0.5 * 4 - 2 = 3; 2 - 1 = 1, nothing from after the end; 1 + 0.5 * 1 - 0.5 + 0.25 * 1 = 1.25
    assert np.allclose(ppo.gae(reward, value, done, 0.5, 0.5), [[1.25], [1.0], [3.0]])
    # without the end the second takes 0.5 * 2 of the value after it and 0.25 * 3 of the advantage
    assert np.allclose(ppo.gae(reward, value, 0 * done, 0.5, 0.5), [[1.6875], [2.75], [3.0]])


def test_log_prob_is_the_sum_of_normal_log_densities():
    action, mean, std = np.array([1.0, -2.0]), np.array([0.5, 0.0]), np.array([0.5, 2.0])
    # z = 1 and -1
    expected = sum(-0.5 - math.log(s) - 0.5 * math.log(2 * math.pi) for s in std)
    assert float(ppo.log_prob(action, mean, np.log(std))) == pytest.approx(expected, rel=1e-6)


def test_value_scale_is_zero_and_one_at_first_then_the_moments_of_the_returns():
    scale = ppo.ValueScale.start()
    assert [float(v) for v in scale.moments()] == [0.0, 1.0]
    returns = jnp.asarray([[1.0, 3.0], [5.0, 7.0]])
    for _ in range(3):  # debiased: the same returns give the same moments after one update and after three
        scale = scale.update(returns)
        assert [float(v) for v in scale.moments()] == pytest.approx([4.0, math.sqrt(5.0)], rel=1e-5)
    scale = ppo.ValueScale.start().update(jnp.zeros(2), rate=0.5).update(jnp.full(2, 3.0), rate=0.5)
    # weights 0.25 and 0.5 of 0.75: mean 2, mean square 6
    assert [float(v) for v in scale.moments()] == pytest.approx([2.0, math.sqrt(2.0)], rel=1e-5)


def test_a_critic_with_a_memory_values_a_rollout_and_what_follows_it_as_step_by_step(small):
    critic = jax.random.normal(jax.random.key(1), (T + 1, E, SEEN))
    start = jax.random.normal(jax.random.key(2), (E, small.critic.net.state_size))
    # episodes begin in mid-rollout, at what follows it, and nowhere
    resets = jnp.zeros((T + 1, E), bool).at[1, 0].set(True).at[T, 1].set(True)
    seen = ppo.Rollout(None, critic, None, None, None, None, None, resets, None, start)
    value, after = ppo.valued(small.critic.net, seen)
    for e in range(E):
        state = start[e]
        for t in range(T + 1):
            if t == T:
                assert np.allclose(after[e], state, atol=1e-6)
            one, state = small.critic.net(critic[t, e], state * (1 - resets[t, e]))
            assert np.allclose(value[t, e], one[0], atol=1e-6)


def test_returns_that_are_all_equal_do_not_divide_by_zero():
    mean, std = ppo.ValueScale.start().update(jnp.full(4, 2.0)).moments()
    assert float(mean) == pytest.approx(2.0) and float(std) == pytest.approx(0.01)


def batch_of(model: Model, ratio: float, advantage: float, target_off: float = 0.0) -> ppo.Batch:
    """A batch where each action's probability has changed by `ratio` since it was sampled."""
    observation = jax.random.normal(jax.random.key(5), (T, E, OBS))
    privileged = jax.random.normal(jax.random.key(6), (T, E, SEEN))
    resets = jnp.zeros((T, E), bool)
    actor_state = jnp.zeros((E, model.actor.net.state_size))
    critic_state = jnp.zeros((E, model.critic.net.state_size))
    mean, _ = model.actor.net.unroll(observation, actor_state, resets)
    value, _ = model.critic.net.unroll(privileged, critic_state, resets)
    log_prob = ppo.log_prob(mean, mean, model.actor.log_std)
    return ppo.Batch(
        observation=observation,
        critic=privileged,
        action=mean,
        log_prob=log_prob - math.log(ratio),
        advantage=jnp.full((T, E), advantage),
        target=value[..., 0] + target_off,
        resets=resets,
        actor_state=actor_state,
        critic_state=critic_state,
        mirror_state=(),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate"),
    [(1.0, 2.0, -2.0), (1.1, 2.0, -2.2), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)],
)
def test_the_surrogate_is_clipped_only_where_that_lowers_it(small, ratio, advantage, surrogate):
    _, figures = ppo.loss(small, batch_of(small, ratio, advantage), PpoConfig(clip=0.2))
    assert float(figures["surrogate"]) == pytest.approx(surrogate, rel=1e-4)
    # Schulman's estimate: ratio - 1 - log ratio
    assert float(figures["kl"]) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-5)


def test_the_loss_is_surrogate_plus_value_error_minus_entropy(small):
    config = PpoConfig(value_coefficient=0.5, entropy=0.1)
    total, figures = ppo.loss(small, batch_of(small, 1.0, 1.0, target_off=3.0), config)
    entropy = 2 * (math.log(0.5) + 0.5 * math.log(2 * math.pi * math.e))
    assert float(figures["value_error"]) == pytest.approx(9.0, rel=1e-4)
    assert float(figures["entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(total) == pytest.approx(-1.0 + 0.5 * 9.0 - 0.1 * entropy, rel=1e-4)


def rollout_of(model: Model, timeout: bool = False) -> ppo.Rollout:
    keys = jax.random.split(jax.random.key(7), 3)
    observation = jax.random.normal(keys[0], (T, E, OBS))
    privileged = jax.random.normal(keys[1], (T + 1, E, SEEN))
    resets = jnp.zeros((T + 1, E), bool).at[3, 1].set(True)
    done = jnp.zeros((T, E), bool).at[2, 1].set(True)
    actor_state = jnp.zeros((E, model.actor.net.state_size))
    mean, _ = model.actor.net.unroll(observation, actor_state, resets[:-1])
    action = mean + jnp.exp(model.actor.log_std) * jax.random.normal(keys[2], mean.shape)
    return ppo.Rollout(
        observation=observation,
        critic=privileged,
        action=action,
        log_prob=ppo.log_prob(action, mean, model.actor.log_std),
        reward=-jnp.sum((action - 1.0) ** 2, axis=-1),  # what pays is an action of 1
        done=done,
        timeout=done & timeout,
        resets=resets,
        actor_state=actor_state,
        critic_state=jnp.zeros((E, model.critic.net.state_size)),
    )


@pytest.fixture(scope="module")
def update():
    return eqx.filter_jit(ppo.update)


def test_updates_move_the_action_to_what_pays_and_lower_the_value_error(small, update):
    config = PpoConfig(epochs=8, minibatches=2, gamma=0.0, entropy=0.0, target_kl=1.0, learning_rate_max=0.01)
    rollout = rollout_of(small)
    state = ppo.optimizer(config).init(eqx.filter(small, eqx.is_inexact_array))
    model, scale, rate = small, ppo.ValueScale.start(), jnp.asarray(0.01)
    errors, first = [], None
    for k in range(8):
        model, state, rate, scale, (critic_state, _), figures = update(
            model, state, rate, scale, rollout, jax.random.key(k), config
        )
        errors.append(float(figures["value_error"]))
        # later rounds see the same rewards less what the critic has learned by heart, which is noise
        first = first or model

    def mean_action(m: Model) -> float:
        mean, _ = m.actor.net.unroll(rollout.observation, rollout.actor_state, rollout.resets[:-1])
        return float(jnp.mean(mean))

    assert mean_action(first) > mean_action(small) + 0.005
    assert errors[-1] < 0.5 * errors[0]
    assert critic_state.shape == (E, small.critic.net.state_size)
    assert all(np.isfinite(float(v)) for v in figures.values())


def test_the_step_size_follows_the_kl_within_its_bounds(small, update):
    rollout, key = rollout_of(small), jax.random.key(0)

    def rate_after(**changes) -> float:
        config = PpoConfig(epochs=1, minibatches=1, **changes)
        state = ppo.optimizer(config).init(eqx.filter(small, eqx.is_inexact_array))
        return float(update(small, state, jnp.asarray(1e-3), ppo.ValueScale.start(), rollout, key, config)[2])

    # the first minibatch of the first epoch has no KL yet, which is far below the target
    assert rate_after(target_kl=1.0, learning_rate_max=1.0) == pytest.approx(1.3e-3, rel=1e-4)
    assert rate_after(target_kl=1.0, learning_rate_max=1.1e-3) == pytest.approx(1.1e-3, rel=1e-4)


def test_the_kl_that_is_wanted_may_follow_the_level(small, update):
    state = ppo.optimizer(PpoConfig()).init(eqx.filter(small, eqx.is_inexact_array))

    def after(level: float, target_kl: float | LinearScale) -> tuple[float, float]:
        config = PpoConfig(epochs=2, minibatches=1, target_kl=target_kl, learning_rate_max=1.0)
        start = (small, state, jnp.asarray(1e-3), ppo.ValueScale.start(), rollout_of(small), jax.random.key(0))
        *_, rate, _, _, figures = update(*start, config, level=level)
        return float(rate), float(figures["kl"])

    _, kl = after(0.0, 1.0)
    wanted = LinearScale(low=100 * kl, high=kl / 100)
    assert kl > 0 and [after(level, wanted)[0] for level in (0.0, 1.0)] == pytest.approx([1.3e-3, 1e-3 / 1.3], rel=1e-4)


def test_an_episode_cut_by_the_clock_keeps_the_value_that_it_would_have_had(small, update):
    config = PpoConfig(epochs=1, minibatches=1, gamma=0.9)
    state = ppo.optimizer(config).init(eqx.filter(small, eqx.is_inexact_array))
    # a critic that knows a value of about -5: what the clock cut off is then worth that much
    scale = ppo.ValueScale.start().update(jnp.asarray([-4.0, -6.0]))

    def mean_return(timeout: bool) -> float:
        new = update(small, state, jnp.asarray(0.0), scale, rollout_of(small, timeout), jax.random.key(0), config)[3]
        return float((new.mean - 0.98 * scale.mean) / 0.02)

    rollout = rollout_of(small)
    value, _ = small.critic.net.unroll(rollout.critic, rollout.critic_state, rollout.resets)
    mean, std = scale.moments()
    kept = 0.9 * float(value[2, 1, 0] * std + mean)
    # added to the reward of step 2; the returns of steps 2, 1 and 0 take it with their share
    share = 1 + 0.9 * 0.95 + (0.9 * 0.95) ** 2
    assert mean_return(True) - mean_return(False) == pytest.approx(kept * share / (T * E), rel=1e-3)


def test_the_statistics_of_the_observation_follow_each_rollout_and_no_optimiser_moves_them(update):
    a, c = jax.random.split(jax.random.key(0))
    config = PolicyConfig(hidden=4, layers=1, head=4, critic_hidden=4, critic_head=4, normalise=True)
    model = Model(actor=Actor(OBS, ACT, config, key=a), critic=Critic(SEEN, config, key=c))
    learn = PpoConfig(epochs=2, minibatches=2, learning_rate_max=0.1)
    rollout = rollout_of(model)
    moved = eqx.filter(model, ppo.trainable(model))
    assert moved.actor.normaliser.mean is None and moved.actor.net.output_layer.weight is not None
    state = ppo.optimizer(learn).init(moved)
    after, *_ = update(model, state, jnp.asarray(0.1), ppo.ValueScale.start(), rollout, jax.random.key(2), learn)
    seen = np.asarray(rollout.observation).reshape(-1, OBS)
    got = after.actor.normaliser
    np.testing.assert_allclose(got.mean, seen.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(got.variance, seen.var(axis=0), rtol=1e-5)
    assert float(got.count) == T * E
    assert np.abs(after.actor.net.output_layer.weight - model.actor.net.output_layer.weight).max() > 1e-3


def test_the_first_updates_may_teach_the_critic_alone(small, update):
    config = PpoConfig(epochs=2, minibatches=2, critic_first=2, learning_rate_max=0.01)
    state = ppo.optimizer(config).init(eqx.filter(small, eqx.is_inexact_array))
    model, scale, rate = small, ppo.ValueScale.start(), jnp.asarray(0.005)
    rollout, models = rollout_of(small), []
    for k in range(3):
        model, state, rate, scale, *_ = update(model, state, rate, scale, rollout, jax.random.key(k), config)
        models.append(model)
        # the actor has not moved, so its KL says nothing about the step size
        assert float(rate) == pytest.approx(0.005) or k == 2
    first, second, third = models
    assert eqx.tree_equal(first.actor, small.actor) and eqx.tree_equal(second.actor, small.actor)
    assert not eqx.tree_equal(first.critic, small.critic) and not eqx.tree_equal(second.critic, first.critic)
    assert not eqx.tree_equal(third.actor, small.actor) and float(rate) != pytest.approx(0.005)


def test_the_spread_of_the_actions_has_a_greatest_value(small, update):
    rollout, config = rollout_of(small), PpoConfig(epochs=1, minibatches=2, std_max=0.3)
    state = ppo.optimizer(config).init(eqx.filter(small, eqx.is_inexact_array))
    rate, scale = jnp.asarray(1e-4), ppo.ValueScale.start()
    taught, *_ = update(small, state, rate, scale, rollout, jax.random.key(0), config)
    assert np.exp(small.actor.log_std).max() == pytest.approx(0.5)
    assert np.exp(taught.actor.log_std).max() == pytest.approx(0.3)


def test_the_mean_of_the_weights_is_of_all_updates_at_first_and_then_keeps_its_share(small):
    config = PpoConfig(epochs=3, minibatches=2, average=0.75)
    start = ppo.optimizer(config).init(eqx.filter(small, ppo.trainable(small)))
    mean, told = eqx.filter(small, ppo.trainable(small)).actor, []
    for update in range(1, 7):
        model = eqx.tree_at(lambda m: m.actor.log_std, small, jnp.full_like(small.actor.log_std, float(update)))
        mean = ppo.averaged(mean, model, optax.tree.set(start, count=jnp.asarray(6 * update)), config)
        told.append(float(mean.log_std[0]))
    assert told == pytest.approx([1.0, 1.5, 2.0, 2.5, 0.75 * 2.5 + 0.25 * 5, 0.75 * 3.125 + 0.25 * 6])


def test_the_weight_of_the_entropy_may_follow_the_level(small):
    batch, config = batch_of(small, 1.0, 1.0), PpoConfig(entropy=LinearScale(low=0.5, high=0.0))
    (first, figures), (last, _) = (ppo.loss(small, batch, config, level=level) for level in (0.0, 1.0))
    assert float(last - first) == pytest.approx(0.5 * float(figures["entropy"]), rel=1e-5)


def test_the_discount_may_follow_the_level(small):
    state = ppo.optimizer(PpoConfig()).init(eqx.filter(small, eqx.is_inexact_array))

    def returns(gamma: float | LinearScale, level: float) -> float:
        config = PpoConfig(epochs=1, minibatches=1, gamma=gamma)
        start, rollout = (small, state, jnp.asarray(0.0), ppo.ValueScale.start()), rollout_of(small)
        return float(ppo.update(*start, rollout, jax.random.key(0), config, level=level)[3].mean)

    scale = LinearScale(low=0.5, high=0.9)
    found = [returns(scale, level) for level in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([returns(gamma, 0.0) for gamma in (0.5, 0.7, 0.9)], rel=1e-5)
    assert found[0] - found[1] > 0.001 * abs(found[0]) and found[1] > found[2], "less is lost of what is nearer"
