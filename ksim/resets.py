"""Where an episode starts: the home pose with uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ksim.config import ResetConfig
from robots.model import BuiltModel
from robots.rotation import from_rotvec, from_yaw, multiply


@dataclass(frozen=True, kw_only=True)
class NoisyHome:
    """The home pose with noise on joints, base orientation and velocities, lifted a little, any yaw."""

    built: BuiltModel
    config: ResetConfig

    def __call__(self, key: Array, share: Any = 1.0) -> tuple[Float[Array, " nq"], Float[Array, " nv"]]:
        """(qpos, qvel); `share` scales the noise, but for the yaw."""
        b, c = self.built, self.config
        n = len(b.spec.joints)
        # one draw for all: each draw costs compile time
        unit = jax.random.uniform(key, (2 * n + 8,), minval=-1.0, maxval=1.0)
        yaw_u, unit = unit[-1:], share * unit
        joints_u, speeds_u, base_u = unit[:n], unit[n : 2 * n], unit[2 * n :]
        qpos = jnp.asarray(b.home_qpos, jnp.float32)
        qvel = jnp.zeros(b.model.nv, jnp.float32)
        joints = qpos[b.qpos_ids] + c.joint_position_rad * joints_u
        low, high = np.asarray(b.spec.column("lower_rad")), np.asarray(b.spec.column("upper_rad"))
        qpos = qpos.at[b.qpos_ids].set(jnp.clip(joints, low, high))
        qvel = qvel.at[b.dof_ids].set(c.joint_velocity_rad_s * speeds_u)
        if b.base_body >= 0:
            tilt = from_rotvec(jnp.concatenate([c.tilt_rad * base_u[:2], jnp.zeros(1)]), jnp)
            yaw = from_yaw(np.pi * yaw_u[0], jnp)
            qpos = qpos.at[3:7].set(multiply(yaw, multiply(tilt, qpos[3:7], jnp), jnp))
            qpos = qpos.at[2].add(c.lift_m)
            qvel = qvel.at[:2].set(c.lin_vel_m_s * base_u[2:4])
            qvel = qvel.at[3:6].set(c.ang_vel_rad_s * base_u[4:7])
        return qpos, qvel
