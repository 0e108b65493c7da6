"""When an episode ends: terms of one environment's State, to a truth value."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp

from ksim.term import Term
from ksim.types import GRAVITY, State
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class Termination(Term, abc.ABC):
    """A reason to end an episode, which counts as a fall."""

    @abc.abstractmethod
    def terminate(self, state: State) -> Any:
        """Whether the episode ends now, ()."""


@dataclass(frozen=True, kw_only=True)
class BaseTooLowTermination(Termination):
    """The base is below a share of its standing height."""

    height_share: Annotated[float, Bound(0, 1, "a share")] = 0.6

    def terminate(self, state: State) -> Any:
        return state.physics.base_position[2] < self.height_share * state.scene.standing_height_m


@dataclass(frozen=True, kw_only=True)
class TiltTermination(Termination):
    """The IMU leans more than an angle from how it is mounted when the robot stands upright."""

    tilt_deg: Annotated[float, Bound(1, 180, "degrees")] = 60.0

    def terminate(self, state: State) -> Any:
        upright = state.scene.home_gravity_b
        lean = jnp.sum(state.physics.gravity_b * upright) / GRAVITY**2
        return lean < math.cos(math.radians(self.tilt_deg))


@dataclass(frozen=True, kw_only=True)
class NotFiniteTermination(Termination):
    """The physics diverged: a state is not finite, or a velocity is beyond anything real."""

    velocity_max: Annotated[float, Bound(1, 1e9, "rad/s or m/s")] = 1e3

    def terminate(self, state: State) -> Any:
        physics = state.physics
        fine = jnp.all(jnp.isfinite(physics.qpos)) & jnp.all(jnp.abs(physics.qvel) < self.velocity_max)
        return ~fine
