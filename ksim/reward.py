"""What every reward is: of one environment's Trajectory, one number a step.

A term gives a plain figure; its sign and size are its weight, per second of simulation. All steps of a rollout are
computed at once. A stateful term carries what it must remember from rollout to rollout.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from ksim.curriculum import Scale
from ksim.scene import Scene
from ksim.term import Term
from ksim.types import Trajectory
from toolkit.settings import Bound

WEIGHT = Bound(-1000, 1000, "a weight")
WIDTH = Bound(1e-6, 1e6, "a width")
METRES = Bound(0, 100, "metres")
SHARE = Bound(0, 1, "a share")
SECONDS = Bound(0, 3600, "seconds")


def exp_kernel(error: Any, width: float) -> Any:
    """exp(-error / width^2) of a squared error: 1 at none, 0.37 where the error is `width` squared."""
    return jnp.exp(-error / width**2)


def per_step(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any, first: Any, initial: Any
) -> tuple[Any, Any]:
    """A scan over steps whose memory starts anew with each episode.

    Args:
        function: (carry, row) -> (carry, value).
        carry: the memory before the first row.
        rows: a tree of (T, ...).
        first: the row is an episode's first, (T,).
        initial: the memory at an episode's start.

    Returns:
        (the memory after the last row, values (T, ...)).
    """

    def step(memory: Any, now: Any) -> tuple[Any, Any]:
        row, new = now
        memory = jax.tree.map(lambda a, b: jnp.where(new, a, b), initial, memory)
        return function(memory, row)

    return jax.lax.scan(step, carry, (rows, first))


@dataclass(frozen=True, kw_only=True)
class Reward(Term, abc.ABC):
    """A reward.

    Attributes:
        weight: what it counts per second; its sign lives here. A Scale lets it follow the curriculum.
    """

    shorthand: ClassVar[str] = "weight"
    weight: Annotated[float | Scale, WEIGHT] = 1.0

    @abc.abstractmethod
    def get_reward(self, trajectory: Trajectory) -> Any:
        """The plain figure of each step, (T,)."""


@dataclass(frozen=True, kw_only=True)
class StatefulReward(Reward, abc.ABC):
    """A reward with a memory that outlasts a rollout."""

    @abc.abstractmethod
    def initial_carry(self, scene: Scene) -> Any:
        """The memory before an episode's first step."""

    @abc.abstractmethod
    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        """(the plain figure of each step (T,), the memory after the last)."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        """The figures of a trajectory that begins with an episode."""
        return self.get_reward_stateful(trajectory, self.initial_carry(trajectory.scene))[0]
