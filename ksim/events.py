"""What happens to the robot from outside: pushes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ksim.config import PushConfig
from ksim.types import Event


@dataclass(frozen=True, kw_only=True)
class Pushes:
    """Horizontal forces of random size, direction, length and time, on the robot's base."""

    config: PushConfig
    control_period_s: float

    def start(self, key: Array) -> Event:
        """No push yet; the first comes after at most one interval."""
        wait = jax.random.uniform(key, (), minval=0.3, maxval=max(0.3, self.config.interval_s[1]))
        return Event(force_w=jnp.zeros(3), left_s=jnp.zeros(()), next_s=wait)

    def __call__(self, key: Array, event: Event, level: Any) -> Event:
        """The event during the next control step; `level` in [0, 1] scales the force."""
        c = self.config
        unit = jax.random.uniform(key, (4,))
        size, turn, length, pause = unit[0], unit[1], unit[2], unit[3]
        angle = 2.0 * np.pi * turn
        force: Any = level * c.force_n * size * jnp.stack([jnp.cos(angle), jnp.sin(angle), jnp.zeros(())])
        lasts = c.duration_s[0] + length * (c.duration_s[1] - c.duration_s[0])
        wait = c.interval_s[0] + pause * (c.interval_s[1] - c.interval_s[0])
        begin = event.next_s <= 0.0
        left: Any = jnp.where(begin, lasts, jnp.maximum(event.left_s - self.control_period_s, 0.0))
        kept: Any = jnp.where(left > 0.0, event.force_w, jnp.zeros(3))
        return Event(
            force_w=jnp.where(begin, force, kept),
            left_s=left,
            next_s=jnp.where(begin, wait, event.next_s - self.control_period_s),
        )
