"""The gait clock: a phase that runs while the robot is asked to move, and rests at zero command.

The policy keeps the phase in its carry, since no robot gives it one. The environment keeps the same phase from the same
commands, so that rewards and the critic know it whatever policy runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from robots.command_names import COMMAND_ALIASES
from toolkit.settings import Bound, Settings

TURN = 2.0 * np.pi


@dataclass(frozen=True, kw_only=True)
class GaitClock(Settings):
    """One turn of the phase is one step with each foot.

    Attributes:
        frequency_hz: turns a second while the robot is asked to move; 0 means that there is no clock.
        commands: the commands that ask it to move, by name; those that the task has not are passed over.
        at_rest: a command below this asks for nothing.
    """

    frequency_hz: Annotated[float, Bound(0, 20, "hertz, 0 for none")] = 0.0
    commands: tuple[str, ...] = ("xvel", "yvel", "yawrate")
    at_rest: Annotated[float, Bound(0, 10, "the command's unit")] = 0.05

    def moving(self, command: Any, places: tuple[int, ...]) -> Any:
        """Whether a command vector (..., commands) asks for motion, (...,); `places` are where the commands stand."""
        if not places:
            return jnp.zeros(command.shape[:-1], bool)
        return jnp.max(jnp.abs(jnp.take(command, np.asarray(places, np.int32), axis=-1)), axis=-1) > self.at_rest

    def features(self, phase: Any, moving: Any) -> Any:
        """Sine and cosine of the phase, both zero at rest, (..., 2)."""
        both = jnp.stack([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        return jnp.where(moving[..., None], both, 0.0)

    def advance(self, phase: Any, moving: Any, period_s: float) -> Any:
        """The phase after one control step [rad], 0 to 2 pi; 0 where it rests."""
        later = phase + jnp.float32(TURN * self.frequency_hz * period_s)
        later = jnp.where(later >= TURN, later - jnp.float32(TURN), later)
        return jnp.where(moving, later, 0.0)


def places(clock: GaitClock, command_names: tuple[str, ...]) -> tuple[int, ...]:
    """Where the commands that ask for motion stand in a command vector, by their names or older names of them."""
    return tuple(i for i, name in enumerate(command_names) if COMMAND_ALIASES.get(name, name) in clock.commands)
