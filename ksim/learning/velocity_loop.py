"""A slow loop around a policy: what keeps missing to the velocity that is asked for is asked for besides.

An estimator in the policy tells how fast it moves. A robot whose IMU is mounted askew, or whose weight is off its
middle, errs by much the same as long as it walks. A network that was trained on sequences of half a second does not
learn to sum that up over ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from robots.command_names import COMMAND_ALIASES

# A robot takes about so long to follow a command, and an estimator to tell that it does [s].
LAG_S = 1.0


@dataclass(frozen=True, kw_only=True)
class VelocityLoop:
    """An integral of what is missing.

    Its memory is (..., 6): what is asked for besides, and the command as it was lately, each for xvel [m/s],
    yvel [m/s] and yawrate [rad/s].

    Attributes:
        gain: how much of what is missing is asked for besides after a second [1/s].
        limit: at most so much is [m/s, rad/s].
        places: where these three commands stand in the command vector; -1 for one that the task has not.
        commands: length of the command vector.
    """

    gain: float
    limit: float
    places: tuple[int, ...]
    commands: int

    LAYOUT: ClassVar = (("velocity_loop.besides", (3,)), ("velocity_loop.lately", (3,)))

    @classmethod
    def of(cls, names: Sequence[str], told: Sequence[str], gain: float, limit: float) -> VelocityLoop:
        """For a task's commands, by names or older names of them, and what its estimator tells."""
        known = [COMMAND_ALIASES.get(name, name) for name in names]
        places = tuple(known.index(name) if name in known else -1 for name in told)
        return cls(gain=gain, limit=limit, places=places, commands=len(known))

    @property
    def _which(self) -> np.ndarray:
        """(3, commands): one where a command is what the loop is for."""
        out = np.zeros((len(self.places), self.commands), np.float32)
        for row, at in enumerate(self.places):
            if at >= 0:
                out[row, at] = 1.0
        return out

    def asked(self, command: Any, memory: Any, moving: Any) -> Any:
        """The command (..., commands) that the network sees; `moving` (...,): it asks for motion."""
        besides = jnp.where(moving[..., None], memory[..., :3], 0.0)
        return command + besides @ self._which

    def after(self, command: Any, told: Any, memory: Any, moving: Any, period_s: float) -> Any:
        """The memory after one control step.

        Args:
            command: as it was given, (..., commands).
            told: the velocity, by the estimator, (..., 3).
            memory: before, (..., 6).
            moving: motion is asked for, (...,). Where it is not, the sum stays as it is.
            period_s: the control period [s].
        """
        which = self._which
        besides, lately = memory[..., :3], memory[..., 3:]
        lately = lately + min(1.0, period_s / LAG_S) * (command @ which.T - lately)
        missing = (lately - told) * which.sum(axis=1)
        summed = jnp.clip(besides + self.gain * period_s * missing, -self.limit, self.limit)
        return jnp.concatenate([jnp.where(moving[..., None], summed, besides), lately], axis=-1)
