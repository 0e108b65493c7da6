"""What the policy reads (the named .kinfer inputs, delayed and noisy) and what the critic sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ksim.config import LatencyConfig, NoiseConfig
from ksim.types import GRAVITY, EnvState, PhysicsParams, PhysicsState, Sensors
from robots import delay
from robots.rotation import from_rotvec, rotate, rotate_inverse


@dataclass(frozen=True, kw_only=True)
class PolicyInputs:
    """The sensors as the policy gets them: late, tilted, noisy; by .kinfer name, in SI."""

    noise: NoiseConfig
    latency: LatencyConfig
    joints: int
    dt: float
    control_period_s: float

    def __call__(self, key: Array, physics: PhysicsState, params: PhysicsParams, env: EnvState) -> dict[str, Array]:
        late_key, noise_key = jax.random.split(key)
        late = params.observation_latency + jax.random.uniform(late_key, (), maxval=self.latency.jitter_s)
        seen = Sensors.unflat(delay.read(physics.sensor_line, late, self.dt, jnp), self.joints)
        tilt, std = from_rotvec(params.imu_tilt, jnp), self.noise
        # one draw for all channels: each draw costs compile time
        noise = Sensors.unflat(jax.random.normal(noise_key, (2 * self.joints + 9,)), self.joints)
        return {
            "joint_angles": seen.joint_position + std.joint_position_rad * noise.joint_position,
            "joint_angular_velocities": seen.joint_velocity + std.joint_velocity_rad_s * noise.joint_velocity,
            "projected_gravity": rotate(tilt, seen.gravity_b, jnp) + std.gravity_m_s2 * noise.gravity_b,
            "accelerometer": rotate(tilt, seen.accel_b, jnp) + std.accel_m_s2 * noise.accel_b,
            "gyroscope": rotate(tilt, seen.gyro_b, jnp) + std.gyro_rad_s * noise.gyro_b,
            "command": env.command,
            "time": jnp.full((1,), env.step, jnp.float32) * self.control_period_s,
        }


@dataclass(frozen=True, kw_only=True)
class Privileged:
    """What the critic sees: the true state, and what was randomised. Scaled to about 1."""

    home: tuple[float, ...]
    standing_height_m: float
    torso: int
    force_n: float
    nominal: PhysicsParams

    def __call__(self, physics: PhysicsState, params: PhysicsParams, env: EnvState) -> Float[Array, " privileged"]:
        quat, qvel = physics.qpos[3:7], physics.qvel
        motor, base = params.motor, self.nominal

        def ratio(a: Any, b: Any) -> Array:
            return jnp.atleast_1d(a / b - 1.0)

        parts = [
            4.0 * (physics.joint_position - jnp.asarray(self.home, jnp.float32)),
            0.1 * physics.joint_velocity,
            6.0 * (physics.sensors.gravity_b / GRAVITY + jnp.asarray([0.0, 0.0, 1.0], jnp.float32)),
            1.0 * physics.sensors.gyro_b,
            4.0 * rotate_inverse(quat, qvel[:3], jnp),
            5.0 * jnp.atleast_1d(physics.qpos[2] - self.standing_height_m),
            physics.foot_force / 200.0,
            env.action,
            env.command,
            rotate_inverse(quat, env.event.force_w, jnp) / max(self.force_n, 1.0),
            jnp.atleast_1d(env.event.left_s) * 2.0,
            ratio(params.model["geom_friction"][-1, 0], base.model["geom_friction"][-1, 0]),
            ratio(jnp.sum(params.model["body_mass"]), jnp.sum(base.model["body_mass"])) * 5.0,
            20.0 * (params.model["body_ipos"] - base.model["body_ipos"])[self.torso],
            ratio(jnp.mean(motor.kp / base.motor.kp), 1.0),
            20.0 * params.joint_offset,
            jnp.atleast_1d(params.action_latency) * 50.0,
            jnp.atleast_1d(params.observation_latency) * 50.0,
            20.0 * params.imu_tilt,
        ]
        return jnp.clip(jnp.concatenate(parts), -20.0, 20.0)
