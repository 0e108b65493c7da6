"""Noise and bias of an observation: each part by hand, chained, and over an episode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.curriculum import LinearScale
from ksim.noise import (
    ChainedNoise,
    Draw,
    EpisodeBias,
    EpisodeGain,
    GaussianNoise,
    MultiplicativeNoise,
    Noise,
    UniformNoise,
)

VALUE = jnp.asarray([2.0, -4.0, 0.0])


def many(noise: Noise, level: float = 1.0) -> np.ndarray:
    """VALUE with noise, for each of 2000 packets of one episode, (2000, 3)."""
    keys = jax.random.split(jax.random.key(0), 2000)
    return np.asarray(jax.vmap(lambda key: noise.disturb(VALUE, Draw(key, jax.random.key(9), level)))(keys))


def test_gaussian_noise_adds_its_standard_deviation():
    error = many(GaussianNoise(std=0.3)) - np.asarray(VALUE)
    # 2000 draws: five standard errors
    assert error.std(axis=0) == pytest.approx([0.3] * 3, rel=5 / np.sqrt(2 * 2000))
    assert np.abs(error.mean(axis=0)).max() < 5 * 0.3 / np.sqrt(2000)


def test_uniform_noise_stays_within_its_width_and_fills_it():
    error = many(UniformNoise(width=0.5)) - np.asarray(VALUE)
    assert -0.5001 <= error.min() < -0.49 and 0.49 < error.max() <= 0.5001


def test_multiplicative_noise_is_a_share_of_the_value():
    share = many(MultiplicativeNoise(width=0.1))[:, :2] / np.asarray(VALUE)[:2]
    assert 0.9 <= share.min() < 0.902 and 1.098 < share.max() <= 1.1001
    assert not many(MultiplicativeNoise(width=0.1))[:, 2].any()


@pytest.mark.parametrize("noise", [EpisodeBias(width=0.5), EpisodeGain(width=0.5)])
def test_bias_and_gain_stay_for_an_episode_and_differ_between_episodes(noise):
    assert (many(noise) == many(noise)[0]).all()
    keys = jax.random.split(jax.random.key(1), 500)
    other = np.asarray(jax.vmap(lambda key: noise.disturb(VALUE, Draw(jax.random.key(0), key, 1.0)))(keys))
    factor = np.asarray([1.0, 1.0, 1.0]) if isinstance(noise, EpisodeBias) else np.abs(np.asarray(VALUE))
    away = np.abs(other - np.asarray(VALUE))
    assert (away <= 0.5 * factor + 1e-5).all() and (away.max(axis=0) >= 0.49 * factor).all()


def test_a_scale_follows_the_level():
    noise = GaussianNoise(std=0.6, scale=LinearScale(low=0.0, high=1.0))
    assert (many(noise, level=0.0) == np.asarray(VALUE)).all()
    assert many(noise, level=1.0).std(axis=0) == pytest.approx([0.6] * 3, rel=0.08)


def test_a_chain_disturbs_part_after_part_each_with_numbers_of_its_own():
    two = many(ChainedNoise(parts=(UniformNoise(width=0.5), UniformNoise(width=0.5)))) - np.asarray(VALUE)
    # independent ones have a variance of 2 x 0.5^2 / 3, two that are the same twice as much
    assert two.var(axis=0) == pytest.approx([2 * 0.25 / 3] * 3, rel=0.1)
    half = ChainedNoise(parts=(EpisodeBias(width=0.5), EpisodeGain(width=0.5)), scale=0.5)
    full = ChainedNoise(parts=(EpisodeBias(width=0.5), EpisodeGain(width=0.5)))
    assert np.allclose(many(half) - np.asarray(VALUE), 0.5 * (many(full) - np.asarray(VALUE)), atol=1e-6)
    assert (many(ChainedNoise()) == np.asarray(VALUE)).all()
