"""Recurrent PPO: GAE, loss, update. Pure functions.

Shapes: T steps, E environments. `resets[t]` says that step t is the first of an episode, so the
recurrent state is zero before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ksim.config import PpoConfig
from ksim.curriculum import factor
from ksim.learning.nets import Net
from ksim.learning.policy import Model
from ksim.learning.symmetry import NetMirror
from ksim.learning.world import AXIS, everywhere, moments


class Rollout(NamedTuple):
    """T steps of E environments, and what starts and follows them.

    Attributes:
        observation: encoded policy inputs, (T, E, obs).
        critic: the critic's inputs, (T + 1, E, critic); the last row follows the last step.
        action: raw sampled actions, (T, E, n).
        log_prob: their log-probabilities when they were sampled, (T, E).
        reward: (T, E).
        done: the episode ended at this step, (T, E).
        timeout: it ended by the clock, (T, E).
        resets: this step is an episode's first, (T + 1, E).
        actor_state: recurrent state of the actor before step 0, (E, state).
        mirror_state: the same of the actor that saw the mirror images, (E, state), with `ppo.symmetry=augment`.
        critic_state: recurrent state of the critic before step 0, (E, state).
        taught: what the teacher would have done, (T, E, n); empty without one.
        truth: what an estimator should tell, (T, E, 3).
        quiet: logarithm of the share of the spread that the actions had, (T, E, 1); empty where it is 1.
    """

    observation: Any
    critic: Any
    action: Any
    log_prob: Any
    reward: Any
    done: Any
    timeout: Any
    resets: Any
    actor_state: Any
    critic_state: Any
    mirror_state: Any = ()
    taught: Any = ()
    quiet: Any = ()
    truth: Any = ()


class ValueScale(NamedTuple):
    """Running mean and mean square of the returns; the critic predicts normalised values."""

    mean: Any
    square: Any
    weight: Any

    @classmethod
    def start(cls) -> ValueScale:
        """Nothing seen yet: mean 0, spread 1."""
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    def moments(self) -> tuple[Array, Array]:
        """(mean, standard deviation), (0, 1) before the first update."""
        weight = jnp.maximum(self.weight, 1e-6)
        mean = self.mean / weight
        std = jnp.sqrt(jnp.maximum(self.square / weight - mean**2, 1e-4))
        return mean, jnp.where(self.weight > 0, std, 1.0)

    def update(self, returns: Array, rate: float = 0.02, spread: bool = False) -> ValueScale:
        """Exponential averages, debiased by their weight."""

        def average(old: Array, new: Array) -> Array:
            return (1.0 - rate) * old + rate * new

        return ValueScale(
            average(self.mean, everywhere(jnp.mean(returns), spread)),
            average(self.square, everywhere(jnp.mean(returns**2), spread)),
            average(self.weight, jnp.ones(())),
        )


def trainable(model: Model) -> Any:
    """Which leaves of the model the optimiser moves: all arrays but the observation's statistics."""
    moved = jax.tree.map(eqx.is_inexact_array, model)
    if model.actor.normaliser is None:
        return moved
    still = jax.tree.map(lambda _: False, model.actor.normaliser)
    return eqx.tree_at(lambda m: m.actor.normaliser, moved, still)


def quieted(log_std: Array, quiet: Any) -> Array:
    """Logarithm of the spread where a share of it is used; `quiet` as in Rollout."""
    return log_std if isinstance(quiet, tuple) else log_std + quiet


def log_prob(action: Array, mean: Array, log_std: Array) -> Array:
    """Log-density of a diagonal Gaussian, summed over the last axis."""
    z = (action - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z**2 - log_std - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def gae(
    reward: Float[Array, "T E"],
    value: Float[Array, "T+1 E"],
    done: Float[Array, "T E"],
    gamma: float | Array,
    lam: float,
) -> Float[Array, "T E"]:
    """Generalised advantage estimation; an ended episode takes nothing from what follows.

    Source: Schulman et al., arXiv 1506.02438.
    """
    alive = 1.0 - done.astype(value.dtype)

    def back(later: Array, now: Any) -> tuple[Array, Array]:
        r, v, v_next, a = now
        advantage = r + gamma * a * v_next - v + gamma * lam * a * later
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(value[0]), (reward, value[:-1], value[1:], alive), reverse=True)
    return advantages


def valued(net: Net, rollout: Rollout) -> tuple[Float[Array, "T+1 E"], Float[Array, "E state"]]:
    """The critic's normalised values of a rollout and of what follows it, and its state before what follows."""
    value, state = net.unroll(rollout.critic[:-1], rollout.critic_state, rollout.resets[:-1])
    after, _ = net.unroll(rollout.critic[-1:], state, rollout.resets[-1:])
    return jnp.concatenate([value, after])[..., 0], state


class Batch(NamedTuple):
    """What the loss reads, (T, E', ...) and (E', state); `heard` is what the actor heard from its estimator."""

    observation: Any
    critic: Any
    action: Any
    log_prob: Any
    advantage: Any
    target: Any
    resets: Any
    actor_state: Any
    critic_state: Any
    mirror_state: Any
    taught: Any = ()
    quiet: Any = ()
    truth: Any = ()
    heard: Any = None


def loss(
    model: Model,
    batch: Batch,
    config: PpoConfig,
    mirror: NetMirror | None = None,
    level: Any = 1.0,
    spread: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Clipped surrogate, squared value error in normalised units, entropy bonus as at a level of the curriculum.

    An estimator learns to tell the velocity (Ji et al., arXiv 2202.05481).
    With `ppo.symmetry=augment` the mirror image of each step is one more sample of the same advantage (Mittal et al.,
    arXiv 2403.04359). Of an actor that is exactly symmetric both samples have the same gradient.
    With a teacher a share of the actor's loss is the distance to its actions, in the student's own episodes (Ross et
    al., arXiv 1011.0686).
    """
    if mirror is not None and config.symmetry == "exact":
        model = eqx.tree_at(lambda m: m.actor, model, model.actor.even(mirror))
    mean, _, told = model.actor.unrolled(batch.observation, batch.actor_state, batch.resets, batch.heard)
    value, _ = model.critic.net.unroll(batch.critic, batch.critic_state, batch.resets)
    log_std = quieted(model.actor.log_std, batch.quiet)
    learned = jnp.arange(mean.shape[0])[:, None] >= config.burn_in
    weight = jnp.broadcast_to(learned, batch.log_prob.shape) / jnp.sum(jnp.broadcast_to(learned, batch.log_prob.shape))

    def surrogate_of(change: Array) -> tuple[Array, Array]:
        ratio = jnp.exp(jnp.clip(change, -20.0, 20.0))
        clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
        gained = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
        # second-order estimate of KL(old, new), never negative: Schulman, "Approximating KL Divergence"
        return -jnp.sum(weight * gained), jnp.sum(weight * (ratio - 1.0 - jnp.clip(change, -20.0, 20.0)))

    surrogate, kl = surrogate_of(log_prob(batch.action, mean, log_std) - batch.log_prob)
    total = surrogate
    image: Any = None
    if mirror is not None and config.symmetry == "augment":
        image, _ = model.actor.unroll(mirror.observation(batch.observation), batch.mirror_state, batch.resets)
        mirrored = log_prob(mirror.action(batch.action), image, mirror.spread(log_std))
        total = 0.5 * (surrogate + surrogate_of(mirrored - batch.log_prob)[0])
    value_error = jnp.sum(weight * (value[..., 0] - batch.target) ** 2)
    entropy = jnp.sum(model.actor.log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e))
    figures = {"surrogate": surrogate, "value_error": value_error, "entropy": entropy, "kl": kl}
    total = total - factor(config.entropy, level) * entropy
    if config.teacher:

        def away(mean: Array, taught: Array) -> Array:
            # of the logarithm of the taught action's probability, what moves the mean
            apart = (mean - taught) * jnp.exp(-jax.lax.stop_gradient(log_std))
            return jnp.sum(weight * jnp.sum(0.5 * apart**2, axis=-1))

        figures["distillation_error"] = apart = away(mean, batch.taught)
        if image is not None and mirror is not None:
            apart = 0.5 * (apart + away(image, mirror.action(batch.taught)))
        share = factor(config.distillation, level)
        total = share * apart + (1.0 - share) * total
    total = total + config.value_coefficient * value_error
    if told is not None:
        figures["estimate_error"] = jnp.sum(weight * jnp.sum((told - batch.truth) ** 2, axis=-1))
        total = total + figures["estimate_error"]
    return total, figures


def averaged(mean: Any, model: Model, opt_state: Any, config: PpoConfig) -> Any:
    """The mean of the actor's weights after one more update: of all updates at first, then of the last ones.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """
    done = optax.tree.get(opt_state, "count") // (config.epochs * config.minibatches)
    moved = eqx.filter(model, trainable(model)).actor
    return optax.incremental_update(moved, mean, jnp.maximum(1.0 - config.average, 1.0 / jnp.maximum(done, 1)))


def optimizer(config: PpoConfig) -> optax.GradientTransformation:
    """Clipped Adam without its step size, which follows the KL."""
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=1e-5))


def update(
    model: Model,
    opt_state: Any,
    rate: Array,
    scale: ValueScale,
    rollout: Rollout,
    key: Array,
    config: PpoConfig,
    mirror: NetMirror | None = None,
    level: Any = 1.0,
    spread: bool = False,
) -> tuple[Model, Any, Array, ValueScale, tuple[Array, Any], dict[str, Array]]:
    """All epochs of one rollout.

    Args:
        model: the networks.
        opt_state: of the optimiser.
        rate: step size.
        scale: of the critic's values.
        rollout: what was collected.
        key: random key.
        config: the settings.
        mirror: of the actor, for `config.symmetry`.
        level: the curriculum's level.
        spread: the rollout is one device's share of it, see ksim/learning/world.py: each minibatch is made of as many
            environments of every device.

    Returns:
        (model, optimiser state, step size, value scale, the states of the critic and of the mirrored actor after the
        rollout, figures).
    """
    mean, std = scale.moments()
    normal, critic_state = valued(model.critic.net, rollout)
    value = normal * std + mean
    # an episode cut by the clock goes on in truth: its last reward takes the value with it
    gamma = factor(config.gamma, level)
    reward = rollout.reward + gamma * rollout.timeout * value[:-1]
    advantage = gae(reward, value, rollout.done, gamma, config.lam)
    returns = advantage + value[:-1]
    scale = scale.update(returns, spread=spread)
    mean, std = scale.moments()
    middle, width = moments(advantage, (0, 1), spread)
    heard = None
    if model.actor.estimator is not None:  # who learns to tell better does not change what was heard
        _, _, heard = model.actor.unrolled(rollout.observation, rollout.actor_state, rollout.resets[:-1])
    batch = Batch(
        observation=rollout.observation,
        critic=rollout.critic[:-1],
        action=rollout.action,
        log_prob=rollout.log_prob,
        advantage=(advantage - middle) / (width + 1e-6),
        target=(returns - mean) / std,
        resets=rollout.resets[:-1],
        actor_state=rollout.actor_state,
        critic_state=rollout.critic_state,
        mirror_state=rollout.mirror_state,
        taught=rollout.taught,
        quiet=rollout.quiet,
        truth=rollout.truth,
        heard=heard,
    )
    envs = reward.shape[1]
    if spread:
        key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    groups = jnp.concatenate([jax.random.permutation(k, envs) for k in jax.random.split(key, config.epochs)])
    groups = groups.reshape(config.epochs * config.minibatches, -1)
    transform = optimizer(config)
    arrays, static = eqx.partition(model, trainable(model))
    done = optax.tree.get(opt_state, "count") // len(groups)
    acts = jnp.where(done < config.critic_first, 0.0, 1.0)

    def pick(ids: Array) -> Batch:
        whole = batch._asdict()

        def rows(name: str, value: Any) -> Any:
            return jax.tree.map(lambda x: x[ids] if name.endswith("_state") else x[:, ids], value)

        return Batch(**{name: rows(name, value) for name, value in whole.items()})

    def one(carry: Any, ids: Array) -> Any:
        arrays, opt_state = carry

        def of_arrays(a: Any) -> Any:
            return loss(eqx.combine(a, static), pick(ids), config, mirror, level, spread)

        (total, figures), gradient = everywhere(jax.value_and_grad(of_arrays, has_aux=True)(arrays), spread)
        steps, opt_state = transform.update(gradient, opt_state, arrays)
        estimator = steps.actor.estimator
        steps = eqx.tree_at(lambda m: m.actor, steps, replace_fn=lambda part: jax.tree.map(lambda s: acts * s, part))
        if estimator is not None:  # it learns while the actor waits for its critic, at its own rate
            own = jax.tree.map(lambda s: config.estimator_rate / rate * s, estimator)
            steps = eqx.tree_at(lambda m: m.actor.estimator, steps, own)
        arrays = jax.tree.map(lambda p, s: p - rate * s, arrays, steps)
        most = jnp.log(config.std_max)
        arrays = eqx.tree_at(lambda m: m.actor.log_std, arrays, jnp.minimum(arrays.actor.log_std, most))
        return (arrays, opt_state), {**figures, "loss": total, "gradient": optax.tree.norm(gradient)}

    (arrays, opt_state), figures = jax.lax.scan(one, (arrays, opt_state), groups)
    figures |= {"kl": figures["kl"][-config.minibatches :]}
    figures = {k: jnp.mean(v) for k, v in figures.items()}
    # the next rollout's step size follows the last epoch's KL, as in Rudin et al., arXiv 2109.11978
    wanted = factor(config.target_kl, level)
    changed = jnp.where(figures["kl"] > 1.5 * wanted, rate / 1.3, rate)
    changed = jnp.where(figures["kl"] < wanted / 1.5, rate * 1.3, changed)
    changed = jnp.clip(changed, config.learning_rate_min, config.learning_rate_max)
    rate = jnp.where(acts > 0, changed, rate)
    unexplained, varied = (moments(v, (0, 1), spread)[1] ** 2 for v in (returns - value[:-1], returns))
    explained = 1.0 - unexplained / (varied + 1e-8)
    figures |= {"rate": rate, "explained_variance": explained, "std": jnp.mean(jnp.exp(model.actor.log_std))}
    model = eqx.combine(arrays, static)
    mirror_state: Any = ()
    if mirror is not None and config.symmetry == "augment":
        seen = mirror.observation(rollout.observation)
        _, mirror_state = model.actor.unroll(seen, rollout.mirror_state, rollout.resets[:-1])
    if model.actor.normaliser is not None:
        # all epochs saw the statistics that the rollout saw; the next rollout sees these
        seen = model.actor.normaliser.update(rollout.observation, spread)
        model = eqx.tree_at(lambda m: m.actor.normaliser, model, seen)
    if mirror is not None and config.symmetry == "exact":
        model = eqx.tree_at(lambda m: m.actor, model, model.actor.even(mirror))
    return model, opt_state, rate, scale, (critic_state, mirror_state), figures
