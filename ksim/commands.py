"""Commands: what a person asks of the policy, drawn uniformly in training."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from robots.spec import CommandSpec

UNITS = {"vx": "m/s", "vy": "m/s", "yaw_rate": "rad/s", "yaw": "rad", "height": "m"}


@dataclass(frozen=True, kw_only=True)
class UniformCommands:
    """One uniform draw per element at each reset."""

    specs: tuple[CommandSpec, ...]

    @classmethod
    def of(cls, ranges: dict[str, tuple[float, float]]) -> UniformCommands:
        """From the configuration's mapping of name to range."""
        return cls(
            specs=tuple(CommandSpec(name=n, low=lo, high=hi, unit=UNITS.get(n, "")) for n, (lo, hi) in ranges.items())
        )

    def __call__(self, key: Array) -> Float[Array, " commands"]:
        low = jnp.asarray([c.low for c in self.specs], jnp.float32)
        high = jnp.asarray([c.high for c in self.specs], jnp.float32)
        return jax.random.uniform(key, (len(self.specs),), minval=low, maxval=high)
