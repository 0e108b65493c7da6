"""From targets to what reaches the motors in one control step: latency, jitter, lost packets.

The law that turns targets into torque is robots/motor.py; the engines call it at the physics rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ksim.config import LatencyConfig


@dataclass(frozen=True, kw_only=True)
class CommandChannel:
    """The way of a target to the motors; jitter and loss are drawn at each control step.

    A lost packet leaves the target before it in force, as on a robot whose server holds the last one.
    """

    config: LatencyConfig

    def __call__(
        self, key: Array, target: Float[Array, " n"], last_target: Float[Array, " n"], latency_s: Float[Array, ""]
    ) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """(target that arrives, its latency [s])."""
        luck, late = jax.random.uniform(key, (2,))
        lost = luck < self.config.loss
        return jnp.where(lost, last_target, target), latency_s + self.config.jitter_s * late

    @property
    def latency_max_s(self) -> float:
        """The longest latency of a command [s]."""
        return self.config.action_s[1] + self.config.jitter_s

    @property
    def observation_latency_max_s(self) -> float:
        """The longest latency of an observation [s]."""
        return self.config.observation_s[1] + self.config.jitter_s
