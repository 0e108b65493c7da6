"""Running mean and spread of the observation, learned in training and held in the model."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ksim.learning.world import moments, total

# Added to the variance: an input that hardly moves is raised a hundredfold at most.
FLOOR = 1e-4


class Normaliser(eqx.Module):
    """`(x - mean) / spread` of every element. No optimiser moves it: see `ksim.learning.ppo.trainable`.

    Attributes:
        mean: of all that was seen, (size,).
        variance: likewise.
        count: number of vectors seen.
    """

    mean: Array
    variance: Array
    count: Array

    @classmethod
    def start(cls, size: int) -> Normaliser:
        """Nothing seen yet: it changes next to nothing."""
        return cls(jnp.zeros(size), jnp.ones(size), jnp.zeros(()))

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalised."""
        return (x - self.mean) * jax.lax.rsqrt(self.variance + FLOOR)

    def update(self, x: Float[Array, "*batch size"], spread: bool = False) -> Normaliser:
        """With one more batch taken in; `spread`: it is one device's share of it.

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        rows = x.reshape(-1, x.shape[-1])
        n = total(jnp.asarray(len(rows), jnp.float32), spread)
        count = self.count + n
        mean, deviation = moments(rows, 0, spread)
        variance = deviation**2
        apart = mean - self.mean
        variance = (self.variance * self.count + variance * n + apart**2 * self.count * n / count) / count
        return Normaliser(self.mean + apart * n / count, variance, count)
