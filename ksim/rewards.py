"""Reward terms: one small class each, of one environment's Transition, to a scalar.

A term gives a plain figure; its sign and size are the weight in the configuration, per second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ksim.types import GRAVITY, EnvState, PhysicsState


class Transition(NamedTuple):
    """One control step of one environment.

    Attributes:
        physics: the state after it.
        env: the environment with the step's action and target in it.
        fell: whether the episode ended by a fall.
    """

    physics: PhysicsState
    env: EnvState
    fell: Any


@dataclass(frozen=True)
class Alive:
    """1 for each step."""

    def __call__(self, t: Transition) -> Any:
        return jnp.ones(())


@dataclass(frozen=True)
class Fall:
    """1 on the step that falls, undone by the step's length so that its weight is a sum."""

    control_period_s: float

    def __call__(self, t: Transition) -> Any:
        return t.fell / self.control_period_s


@dataclass(frozen=True)
class Upright:
    """exp of minus the squared horizontal part of gravity in the IMU frame over `width`."""

    width: float = 0.05

    def __call__(self, t: Transition) -> Any:
        flat = t.physics.sensors.gravity_b[:2] / GRAVITY
        return jnp.exp(-jnp.sum(flat**2) / self.width)


@dataclass(frozen=True)
class BaseHeight:
    """exp of minus the squared distance of the base from its standing height over `width_m` squared."""

    height_m: float
    width_m: float = 0.08

    def __call__(self, t: Transition) -> Any:
        return jnp.exp(-(((t.physics.qpos[2] - self.height_m) / self.width_m) ** 2))


@dataclass(frozen=True)
class BaseVelocity:
    """Squared horizontal velocity of the base [m^2/s^2]."""

    def __call__(self, t: Transition) -> Any:
        return jnp.sum(t.physics.qvel[:2] ** 2)


@dataclass(frozen=True)
class BaseSpin:
    """Squared angular velocity of the base [rad^2/s^2]."""

    def __call__(self, t: Transition) -> Any:
        return jnp.sum(t.physics.qvel[3:6] ** 2)


@dataclass(frozen=True)
class JointDeviation:
    """Sum of squared distances of the joints from the home pose [rad^2]."""

    home: tuple[float, ...]

    def __call__(self, t: Transition) -> Any:
        return jnp.sum((t.physics.joint_position - jnp.asarray(self.home, jnp.float32)) ** 2)


@dataclass(frozen=True)
class JointVelocity:
    """Sum of squared joint velocities [rad^2/s^2]."""

    def __call__(self, t: Transition) -> Any:
        return jnp.sum(t.physics.joint_velocity**2)


@dataclass(frozen=True)
class Torque:
    """Mean squared share of the torque limit."""

    limit: tuple[float, ...]

    def __call__(self, t: Transition) -> Any:
        return jnp.mean((t.physics.torque / jnp.asarray(self.limit, jnp.float32)) ** 2)


@dataclass(frozen=True)
class ActionRate:
    """Sum of squared changes of the raw action since the step before."""

    def __call__(self, t: Transition) -> Any:
        return jnp.sum((t.env.action - t.env.action_before) ** 2)


@dataclass(frozen=True)
class JointLimits:
    """Sum of what the joints exceed of the inner 95 % of their range [rad]."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __call__(self, t: Transition) -> Any:
        low, high = np.asarray(self.lower), np.asarray(self.upper)
        margin = 0.025 * (high - low)
        q = t.physics.joint_position
        return jnp.sum(jnp.clip(q - (high - margin), 0.0) + jnp.clip((low + margin) - q, 0.0))
