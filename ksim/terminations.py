"""When an episode ends: terms of one environment's physics, to a truth value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ksim.types import GRAVITY, PhysicsState


@dataclass(frozen=True)
class BaseTooLow:
    """The base is below a height [m]."""

    height_m: float

    def __call__(self, physics: PhysicsState) -> Any:
        return physics.qpos[2] < self.height_m


@dataclass(frozen=True)
class TooTilted:
    """The IMU leans more than an angle [deg] from upright."""

    tilt_deg: float

    def __call__(self, physics: PhysicsState) -> Any:
        return physics.sensors.gravity_b[2] > -GRAVITY * math.cos(math.radians(self.tilt_deg))


@dataclass(frozen=True)
class NotFinite:
    """The physics diverged: a state is not finite, or a velocity is beyond anything real."""

    velocity_max: float = 1e3

    def __call__(self, physics: PhysicsState) -> Any:
        fine = jnp.all(jnp.isfinite(physics.qpos)) & jnp.all(jnp.abs(physics.qvel) < self.velocity_max)
        return ~fine
