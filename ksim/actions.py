"""From the network's raw action to joint targets, and back to what the robot may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ksim.errors import ConfigError
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
        active: indices of the joints that the action moves; the others hold home. Empty means all.
    """

    home: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    smoothing: float
    active: tuple[int, ...] = ()

    @property
    def index(self) -> np.ndarray:
        """Indices of the joints that the action moves, in the action's order."""
        return np.asarray(self.active or range(len(self.home)), dtype=np.int32)

    @classmethod
    def of(cls, robot: RobotSpec, action_scale: float, smoothing: float, hold: tuple[str, ...] = ()) -> JointTargets:
        """Scaled so that one unit of action asks for `action_scale` of the torque limit at home.

        Joints whose name contains one of `hold` stay at home.

        Raises:
            ConfigError: a word of `hold` is in no joint's name, or no joint is left.
        """
        for word in hold:
            if not any(word in name for name in robot.joint_names):
                raise ConfigError(
                    f"configuration key policy.hold: {word!r} is in no joint's name; "
                    f"{robot.name} has {', '.join(robot.joint_names)}"
                )
        active = tuple(i for i, name in enumerate(robot.joint_names) if not any(word in name for word in hold))
        if not active:
            raise ConfigError(f"configuration key policy.hold: {list(hold)} leaves no joint of {robot.name} to move")
        limit, kp = np.asarray(robot.column("torque_limit_nm")), np.asarray(robot.column("kp"))
        if not (kp > 0).all():
            passive = [j.name for j in robot.joints if j.kp <= 0]
            raise ConfigError(f"joints {passive}: kp is 0, expected a position gain above 0 for a joint that acts")
        return cls(
            home=tuple(robot.column("home_rad")),
            scale=tuple((action_scale * limit / kp).tolist()),
            low=tuple(robot.column("lower_rad")),
            high=tuple(robot.column("upper_rad")),
            smoothing=smoothing,
            active=active if hold else (),
        )

    def __call__(self, action: Any, last_target: Any) -> Any:
        """Targets [rad], (..., n), from the raw action (..., active) and the last targets."""
        f32 = jnp.float32
        if self.active:
            # a joint that holds takes the zero appended to the action
            place = np.full(len(self.home), len(self.active), np.int32)
            place[self.index] = np.arange(len(self.active))
            padded = jnp.concatenate([action, jnp.zeros_like(action[..., :1])], axis=-1)
            action = jnp.take(padded, place, axis=-1)
        wanted = jnp.asarray(self.home, f32) + jnp.asarray(self.scale, f32) * action
        if self.smoothing > 0:
            wanted = self.smoothing * last_target + (1.0 - self.smoothing) * wanted
        return jnp.clip(wanted, jnp.asarray(self.low, f32), jnp.asarray(self.high, f32))
