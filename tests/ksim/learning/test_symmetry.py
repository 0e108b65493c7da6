"""Symmetry: the mirror of the network's vectors, and the two ways in which learning uses it."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.clock import GaitClock
from ksim.commands import JoystickCommand
from ksim.config import PolicyConfig, PpoConfig
from ksim.errors import ConfigError
from ksim.learning import ppo
from ksim.learning.equivariant import even_normaliser
from ksim.learning.normaliser import Normaliser
from ksim.learning.policy import Actor, make_model, make_policy, mirror_of
from ksim.learning.symmetry import NetMirror
from robots.mirror import find_mirror

T, E = 5, 4


@pytest.fixture(scope="module")
def walking(config):
    policy = dataclasses.replace(config.policy, hold=("elbow",), clock=GaitClock(frequency_hz=1.25), smoothing=0.0)
    return dataclasses.replace(config, commands={"joystick": JoystickCommand()}, policy=policy)


@pytest.fixture(scope="module")
def body(built):
    return find_mirror(built)


@pytest.fixture(scope="module")
def mirror(body, built, walking):
    return mirror_of(built.spec, body, walking)


@pytest.fixture(scope="module")
def inputs(built):
    rng = np.random.default_rng(1)
    home = np.asarray(built.spec.column("home_rad"))
    return {
        "joint_angles": np.float32(home + 0.1 * rng.normal(size=20)),
        "joint_angular_velocities": np.float32(rng.normal(size=20)),
        "projected_gravity": np.float32([0.8, -0.5, -9.7]),
        "gyroscope": np.float32([0.3, -0.2, 0.5]),
        "command": np.float32([0.6, 0.2, -0.4]),
    }


def mirrored(inputs, body, names):
    return {
        "joint_angles": body.joint(inputs["joint_angles"]).astype(np.float32),
        "joint_angular_velocities": body.joint_change(inputs["joint_angular_velocities"]).astype(np.float32),
        "projected_gravity": body.polar(inputs["projected_gravity"]).astype(np.float32),
        "gyroscope": body.axial(inputs["gyroscope"]).astype(np.float32),
        "command": body.command(inputs["command"], names).astype(np.float32),
    }


def test_the_mirror_of_an_encoded_observation_is_the_encoding_of_the_mirrored_inputs(
    mirror, body, built, walking, inputs
):
    policy = make_policy(make_model(built.spec, 5, walking, key=jax.random.key(0)).actor, built.spec, walking)
    last = np.float32(np.random.default_rng(2).normal(size=policy.actions))
    phase = jnp.asarray([1.0])
    encoded = policy.encode(inputs, phase, last)
    other = policy.encode(mirrored(inputs, body, walking.command_names), phase + np.pi, mirror.action(last))
    assert np.allclose(mirror.observation(encoded), other, atol=1e-4)
    assert np.allclose(mirror.observation(mirror.observation(encoded)), encoded, atol=1e-4)
    assert not np.allclose(other, encoded, atol=0.05)


NETWORKS = {
    "lstm": {},
    "lstm of two layers": {"layers": 2},
    "gru": {"network": "gru", "layers": 2},
    "mlp": {"network": "mlp", "layers": 2},
    "mlp with history": {"network": "mlp", "history": 3},
    "normalised": {"normalise": True},
}


def exact_of(walking, **settings):
    """The configuration with an exactly symmetric actor."""
    policy, learner = (
        dataclasses.replace(walking.policy, **settings),
        dataclasses.replace(walking.ppo, symmetry="exact"),
    )
    return dataclasses.replace(walking, policy=policy, ppo=learner)


def even_model(built, exact, mirror):
    """A model whose actor is one, with statistics that are not trivial and actions that are not small."""
    model = make_model(built.spec, 5, exact, mirror, key=jax.random.key(0))
    where = lambda m: m.actor.net.output_layer.weight  # noqa: E731
    model = eqx.tree_at(where, model, 50.0 * where(model))
    if exact.policy.normalise:
        seen = model.actor.normaliser.update(2.0 * jax.random.normal(jax.random.key(4), (9, len(mirror.offset))) + 0.5)
        actor = eqx.tree_at(lambda a: a.normaliser, model.actor, seen)
        model = eqx.tree_at(lambda m: m.actor, model, actor.even(mirror))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exactly_symmetric_policy_does_to_the_mirror_image_what_is_the_mirror_image(
    mirror, body, built, walking, inputs, name
):
    exact = exact_of(walking, **NETWORKS[name])
    policy = make_policy(even_model(built, exact, mirror).actor, built.spec, exact)
    image = mirrored(inputs, body, exact.command_names)
    carry = other = policy.init_carry()
    # half a turn apart, as the mirror image of a gait is
    size = policy.actor.state_size
    other = other.at[size].set(np.pi)
    step = eqx.filter_jit(lambda inputs, carry: policy.step(inputs, carry))
    for _ in range(4):
        targets, carry = step(inputs, carry)
        turned, other = step(image, other)
        assert np.allclose(body.joint(np.asarray(targets)), turned, atol=1e-5)
    assert not np.allclose(targets, turned, atol=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_exactly_symmetric_actor_nearest_to_one_that_is_so_is_itself(mirror, built, walking, name):
    actor = even_model(built, exact_of(walking, **NETWORKS[name]), mirror).actor
    for one, other in zip(jax.tree.leaves(actor), jax.tree.leaves(actor.even(mirror)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_exactly_symmetric_actor_starts_with_weights_as_wide_as_any(mirror, built, walking):
    wide = [
        float(jnp.std(make_model(built.spec, 5, config, mirror, key=jax.random.key(0)).actor.net.cells[0].weight_hh))
        for config in (walking, exact_of(walking))
    ]
    assert wide[1] == pytest.approx(wide[0], rel=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_symmetry_has_the_gradient_of_augmentation(mirror, built, walking, name):
    """So half of the work teaches as much."""
    model = even_model(built, exact_of(walking, **NETWORKS[name]), mirror)
    batch = batch_of(model, mirror, 1.0)
    batch = batch._replace(advantage=jax.random.normal(jax.random.key(6), (T, E)))
    arrays, static = eqx.partition(model, ppo.trainable(model))

    def gradient(symmetry):
        of = lambda a: ppo.loss(eqx.combine(a, static), batch, PpoConfig(symmetry=symmetry), mirror)[0]  # noqa: E731
        return jax.tree.leaves(jax.grad(of)(arrays).actor.net)

    for exact, augmented in zip(gradient("exact"), gradient("augment"), strict=True):
        np.testing.assert_allclose(exact, augmented, atol=2e-6)
    assert any(
        not np.allclose(one, other, atol=1e-3) for one, other in zip(gradient("none"), gradient("exact"), strict=True)
    )


# x, y -> 0.5 * y + 0.6, 2 * x - 1.2: about (0.6, 0.0) and with another width, as of two arms of other ranges
ASKEW = NetMirror(matrix=((0.0, 0.5), (2.0, 0.0)), offset=(0.6, -1.2), action_index=(1, 0), action_sign=(-1.0, -1.0))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("network", ["lstm", "gru", "mlp"])
def test_an_input_whose_middle_is_not_zero_is_mirrored_about_it(network, normalise):
    config = PolicyConfig(network=network, hidden=6, head=4, layers=2, normalise=normalise)
    actor = Actor(2, 2, config, key=jax.random.key(0))
    seen = jax.random.normal(jax.random.key(1), (T, E, 2))
    assert np.allclose(ASKEW.observation(ASKEW.observation(seen)), seen, atol=1e-6)
    if normalise:
        actor = eqx.tree_at(lambda a: a.normaliser, actor, actor.normaliser.update(3.0 * seen + 1.0))
    actor = actor.even(ASKEW)
    actor = eqx.tree_at(lambda a: a.net.output_layer.weight, actor, replace_fn=lambda w: 1000.0 * w)
    state, resets = jnp.zeros((E, actor.state_size)), jnp.zeros((T, E), bool)
    out, _ = actor.unroll(seen, state, resets)
    image, _ = actor.unroll(ASKEW.observation(seen), state, resets)
    np.testing.assert_allclose(ASKEW.action(out), image, atol=1e-4)
    assert float(jnp.abs(out).max()) > 0.05


def test_symmetric_statistics_are_those_of_what_was_seen_and_of_its_images():
    seen = 2.0 * jax.random.normal(jax.random.key(1), (50, 2)) + 0.7
    one = even_normaliser(Normaliser.start(2).update(seen), ASKEW)
    both = Normaliser.start(2).update(jnp.concatenate([seen, ASKEW.observation(seen)]))
    np.testing.assert_allclose(one.mean, both.mean, atol=1e-5)
    np.testing.assert_allclose(one.variance, both.variance, rtol=1e-4)


@pytest.mark.parametrize("key", ["hidden", "head"])
def test_a_width_that_has_no_pairs_is_refused(walking, key):
    with pytest.raises(ConfigError, match=rf"policy.{key}: got 33, expected an even number with ppo.symmetry=exact"):
        exact_of(walking, **{key: 33})


def test_a_joint_that_moves_without_its_partner_is_refused(body, built, walking):
    lame = dataclasses.replace(walking, policy=dataclasses.replace(walking.policy, hold=("left_elbow",)))
    with pytest.raises(ConfigError, match=r"the action moves dof_right_elbow_02 and not its mirror image"):
        mirror_of(built.spec, body, lame)


def batch_of(model, mirror, advantage: float) -> ppo.Batch:
    size, acts = len(mirror.offset), len(mirror.action_index)
    keys = jax.random.split(jax.random.key(5), 3)
    seen, critic = jax.random.normal(keys[0], (T, E, size)), jax.random.normal(keys[1], (T, E, 5))
    resets, state = jnp.zeros((T, E), bool), jnp.zeros((E, model.actor.state_size))
    mean, _ = model.actor.unroll(seen, state, resets)
    action = mean + 0.1 * jax.random.normal(keys[2], (T, E, acts))
    log_prob = ppo.log_prob(action, mean, model.actor.log_std)
    value, _ = model.critic.net.unroll(critic, jnp.zeros((E, model.critic.net.state_size)), resets)
    return ppo.Batch(
        observation=seen,
        critic=critic,
        action=action,
        log_prob=log_prob,
        advantage=jnp.full((T, E), advantage),
        target=value[..., 0],
        resets=resets,
        actor_state=state,
        critic_state=jnp.zeros((E, model.critic.net.state_size)),
        mirror_state=state,
    )


def test_augmentation_is_half_the_surrogate_of_the_mirror_image(mirror, built, walking):
    model = make_model(built.spec, 5, walking, key=jax.random.key(0))
    batch, config = batch_of(model, mirror, 1.0), PpoConfig(symmetry="augment", clip=0.2, entropy=0.0)
    total, figures = ppo.loss(model, batch, config, mirror)
    image, _ = model.actor.unroll(mirror.observation(batch.observation), batch.mirror_state, batch.resets)
    std = mirror.spread(model.actor.log_std)
    change = ppo.log_prob(mirror.action(batch.action), image, std) - batch.log_prob
    ratio = np.exp(np.asarray(change))
    mirrored_part = -np.mean(np.minimum(ratio, np.clip(ratio, 0.8, 1.2)))
    assert float(figures["surrogate"]) == pytest.approx(-1.0, rel=1e-5)
    assert float(total) == pytest.approx(0.5 * (-1.0 + mirrored_part), rel=1e-4)


def test_the_steps_of_the_burn_in_teach_nothing(mirror, built, walking):
    model = make_model(built.spec, 5, walking, key=jax.random.key(0))
    batch = batch_of(model, mirror, 1.0)
    early = batch._replace(advantage=batch.advantage.at[:2].set(1e3), target=batch.target.at[:2].set(1e3))
    one, _ = ppo.loss(model, batch, PpoConfig(burn_in=2, rollout_steps=T))
    other, _ = ppo.loss(model, early, PpoConfig(burn_in=2, rollout_steps=T))
    assert float(one) == pytest.approx(float(other), rel=1e-6)
    assert abs(float(ppo.loss(model, early, PpoConfig(rollout_steps=T))[0]) - float(one)) > 10


def test_a_critic_without_memory_has_none(built, walking):
    flat = dataclasses.replace(walking, policy=dataclasses.replace(walking.policy, critic="mlp"))
    net = make_model(built.spec, 7, flat, key=jax.random.key(0)).critic.net
    assert net.state_size == 0 and net.inputs == 7
    out, _ = net.unroll(jnp.ones((T, E, 7)), jnp.zeros((E, 0)), jnp.zeros((T, E), bool))
    assert out.shape == (T, E, 1) and np.allclose(out, out[0, 0])
