"""Domain randomisation: terms that change one environment's PhysicsParams at a reset.

Each term is `(key, params) -> params`, unbatched; `nominal` is the robot as described.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ksim.config import LatencyConfig, RandomizationConfig
from ksim.engine import MODEL_FIELDS
from ksim.types import PhysicsParams
from robots.model import BuiltModel
from robots.motor import MotorParams


def nominal(built: BuiltModel) -> PhysicsParams:
    """The robot as described: no latency, no offsets. Unbatched, float32."""
    n = len(built.spec.joints)
    motor = MotorParams(*(jnp.asarray(v, jnp.float32) for v in MotorParams.of(built.spec)))
    return PhysicsParams(
        model={name: jnp.asarray(getattr(built.model, name), jnp.float32) for name in MODEL_FIELDS},
        motor=motor,
        joint_offset=jnp.zeros(n),
        action_latency=jnp.zeros(()),
        observation_latency=jnp.zeros(()),
        imu_tilt=jnp.zeros(3),
    )


def _uniform(key: Array, bounds: tuple[float, float], shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=bounds[0], maxval=bounds[1])


def _with_model(params: PhysicsParams, **fields: Any) -> PhysicsParams:
    return params._replace(model={**params.model, **fields})


@dataclass(frozen=True)
class Friction:
    """One factor on the sliding friction of every geom."""

    scale: tuple[float, float]

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        friction = params.model["geom_friction"]
        return _with_model(params, geom_friction=friction.at[:, 0].mul(_uniform(key, self.scale)))


@dataclass(frozen=True)
class LinkMass:
    """A factor on the mass and inertia of each body."""

    scale: tuple[float, float]

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        mass, inertia = params.model["body_mass"], params.model["body_inertia"]
        factor = _uniform(key, self.scale, mass.shape)
        return _with_model(params, body_mass=mass * factor, body_inertia=inertia * factor[:, None])


@dataclass(frozen=True)
class Payload:
    """Mass added at the centre of mass of the body that carries the IMU [kg], and that centre moved [m]."""

    body: int
    mass_kg: tuple[float, float]
    com_m: float

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        unit = jax.random.uniform(key, (4,))
        mass, centre = params.model["body_mass"], params.model["body_ipos"]
        added = self.mass_kg[0] + unit[0] * (self.mass_kg[1] - self.mass_kg[0])
        added = jnp.maximum(added, -0.5 * mass[self.body])
        moved = self.com_m * (2.0 * unit[1:] - 1.0)
        return _with_model(params, body_mass=mass.at[self.body].add(added), body_ipos=centre.at[self.body].add(moved))


@dataclass(frozen=True)
class Armature:
    """A factor on the rotor inertia of each joint."""

    scale: tuple[float, float]
    dof_ids: tuple[int, ...]

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        ids = np.asarray(self.dof_ids)
        factor = _uniform(key, self.scale, (len(ids),))
        armature = params.model["dof_armature"].at[ids].mul(factor)
        motor = params.motor._replace(armature=params.motor.armature * factor)
        return _with_model(params, dof_armature=armature)._replace(motor=motor)


@dataclass(frozen=True)
class MotorGains:
    """Factors on gains, torque limit and friction of each joint, and viscous friction [N m s/rad]."""

    config: RandomizationConfig

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        c, m = self.config, params.motor
        ranges = jnp.asarray([c.kp, c.kd, c.torque_limit, c.joint_friction, c.damping])
        unit = jax.random.uniform(key, (5, *m.kp.shape))
        kp, kd, limit, friction, damping = ranges[:, :1] + unit * (ranges[:, 1:] - ranges[:, :1])
        motor = m._replace(
            kp=m.kp * kp,
            kd=m.kd * kd,
            torque_limit=m.torque_limit * limit,
            friction=m.friction * friction,
            damping=m.damping + damping,
        )
        return params._replace(motor=motor)


@dataclass(frozen=True)
class JointOffset:
    """Error of each encoder's zero [rad]."""

    width_rad: float

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        shape = params.joint_offset.shape
        return params._replace(joint_offset=_uniform(key, (-self.width_rad, self.width_rad), shape))


@dataclass(frozen=True)
class ImuTilt:
    """The IMU is mounted askew by a rotation vector [rad]."""

    width_rad: float

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        return params._replace(imu_tilt=_uniform(key, (-self.width_rad, self.width_rad), (3,)))


@dataclass(frozen=True)
class Latency:
    """Mean latencies of the episode [s]."""

    config: LatencyConfig

    def __call__(self, key: Array, params: PhysicsParams) -> PhysicsParams:
        action, observation = jax.random.uniform(key, (2,))
        c = self.config
        return params._replace(
            action_latency=c.action_s[0] + action * (c.action_s[1] - c.action_s[0]),
            observation_latency=c.observation_s[0] + observation * (c.observation_s[1] - c.observation_s[0]),
        )
