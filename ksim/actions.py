"""From the network's raw action to joint targets, and back to what the robot may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from robots.spec import RobotSpec


@dataclass(frozen=True, kw_only=True)
class JointTargets:
    """Raw action (n,) -> joint targets [rad] about the home pose, smoothed, within the joint limits.

    Attributes:
        home: home pose [rad].
        scale: radians per unit of action, each joint.
        low: least target [rad].
        high: greatest target [rad].
        smoothing: share of the last target kept.
    """

    home: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    smoothing: float

    @classmethod
    def of(cls, robot: RobotSpec, action_scale: float, smoothing: float) -> JointTargets:
        """Scaled so that one unit of action asks for `action_scale` of the torque limit at home."""
        limit, kp = np.asarray(robot.column("torque_limit_nm")), np.asarray(robot.column("kp"))
        if not (kp > 0).all():
            passive = [j.name for j in robot.joints if j.kp <= 0]
            raise ValueError(f"joints {passive}: kp is 0, expected a position gain above 0 for a joint that acts")
        return cls(
            home=tuple(robot.column("home_rad")),
            scale=tuple((action_scale * limit / kp).tolist()),
            low=tuple(robot.column("lower_rad")),
            high=tuple(robot.column("upper_rad")),
            smoothing=smoothing,
        )

    def __call__(self, action: Any, last_target: Any) -> Any:
        """Targets [rad], (..., n), from the raw action and the last targets."""
        f32 = jnp.float32
        wanted = jnp.asarray(self.home, f32) + jnp.asarray(self.scale, f32) * action
        if self.smoothing > 0:
            wanted = self.smoothing * last_target + (1.0 - self.smoothing) * wanted
        return jnp.clip(wanted, jnp.asarray(self.low, f32), jnp.asarray(self.high, f32))
