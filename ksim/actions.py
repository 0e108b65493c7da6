"""From the network's raw action to joint targets, and back to what the robot may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from ksim.config import Config
from ksim.errors import ConfigError
from robots.spec import RobotSpec

# A target may move by this share less than its speed limit says: what is left covers the rounding of float32, so
# that a check of the same limit in float64 never finds it passed.
SPEED_MARGIN = 1e-5


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which joints the action moves, which follow a command, and which the network sees; indices in order."""

    active: tuple[int, ...]
    passed: tuple[int, ...]
    seen: tuple[int, ...]


def roles(robot: RobotSpec, hold: tuple[str, ...], passthrough: Mapping[str, str]) -> Roles:
    """Who does what: a joint of `passthrough` follows its command, one with a word of `hold` in its name holds.

    Raises:
        ConfigError: a word of `hold` is in no joint's name, a joint is unknown, or none is left to move.
    """
    names = robot.joint_names
    for word in hold:
        if not any(word in name for name in names):
            raise ConfigError(
                f"configuration key policy.hold: {word!r} is in no joint's name; {robot.name} has {', '.join(names)}"
            )
    for name in passthrough:
        if name not in names:
            raise ConfigError(
                f"configuration key policy.passthrough: no joint {name!r}; {robot.name} has {', '.join(names)}"
            )
    passed = tuple(i for i, name in enumerate(names) if name in passthrough)
    seen = tuple(i for i, name in enumerate(names) if i in passed or not any(word in name for word in hold))
    active = tuple(i for i in seen if i not in passed)
    if not active:
        raise ConfigError(
            f"configuration key policy.hold: {list(hold)} leaves no joint of {robot.name} to move"
            + (f" beside those of policy.passthrough ({', '.join(passthrough)})" if passthrough else "")
        )
    return Roles(active=active, passed=passed, seen=seen)


@dataclass(frozen=True, kw_only=True)
class JointTargets:
    """Raw action (n,) -> joint targets [rad] about the home pose, smoothed, as fast as allowed, within the limits.

    Attributes:
        home: home pose [rad].
        scale: radians per unit of action, each joint.
        low: least target [rad].
        high: greatest target [rad].
        smoothing: share of the last target kept.
        active: indices of the joints that the action moves; the others hold home. Empty means all.
        through: (joint, command) indices of the joints whose target is a command [rad].
        step: how far a target may move in one control step [rad], each joint; empty means any distance.
        bend: by how much that move may differ from the last one [rad], each joint; empty means by anything.
    """

    home: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    smoothing: float
    active: tuple[int, ...] = ()
    through: tuple[tuple[int, int], ...] = ()
    step: tuple[float, ...] = ()
    bend: tuple[float, ...] = ()

    @property
    def memory(self) -> tuple[str, ...]:
        """What it must remember, each (n,) [rad]: the last targets, and their last move where acceleration is limited.

        A move and not a velocity: over the control period a rounding error would be fifty times as large.
        """
        return ("last_targets", "last_target_move") if self.bend else ("last_targets",)

    def start(self) -> np.ndarray:
        """The first memory, (memory,): targets at home and at rest."""
        home = np.asarray(self.home, np.float32)
        return np.concatenate([home, np.zeros_like(home)]) if self.bend else home

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
        part = roles(robot, hold, {})
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
            active=part.active if hold else (),
        )

    @classmethod
    def of_config(cls, robot: RobotSpec, config: Config) -> JointTargets:
        """As a configuration says, with its joints that follow a command, its limits of speed and acceleration.

        Raises:
            ConfigError: as `of` and `roles`.
        """
        policy, commands = config.policy, config.command_names
        part = roles(robot, policy.hold, policy.passthrough)
        through = tuple((i, commands.index(policy.passthrough[robot.joint_names[i]])) for i in part.passed)
        base = cls.of(robot, policy.action_scale, policy.smoothing, policy.hold)
        period = config.physics.control_period_s
        fastest, bend = policy.target_speed * period, policy.target_acceleration * period**2
        return replace(
            base,
            active=part.active if policy.hold or through else (),
            through=through,
            step=tuple(fastest * v for v in robot.column("velocity_max_rad_s")) if fastest > 0 else (),
            bend=(bend,) * len(robot.joints) if bend > 0 else (),
        )

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        if self.step:  # rounded inwards, so that the limits are kept in float64 too
            low = np.where(low < np.asarray(self.low), np.nextafter(low, np.float32(np.inf)), low)
            high = np.where(high > np.asarray(self.high), np.nextafter(high, np.float32(-np.inf)), high)
        return low, high

    def _step(self) -> np.ndarray:
        """The greatest move that float32 is asked for, short of `step` by more than a rounding error."""
        widest = np.maximum(np.abs(self.low), np.abs(self.high)).astype(np.float32) + np.float32(1.0)
        return (np.asarray(self.step) * (1.0 - SPEED_MARGIN) - np.spacing(widest)).astype(np.float32)

    def remembered(self, action: Any, memory: Any, command: Any = None) -> tuple[Any, Any]:
        """(targets [rad] (..., n), the next memory) from a memory (..., memory) as `start` and this make it."""
        if not self.bend:
            targets = self(action, memory, command)
            return targets, targets
        last, last_move = memory[..., : len(self.home)], memory[..., len(self.home) :]
        wanted = jnp.clip(self._wanted(action, last, command), *self._bounds())
        move = self._move(wanted - last, last_move)
        # the move as it was meant: that of the rounded targets would sum up their rounding errors
        targets = self._within(last + move, last)
        return targets, jnp.concatenate([targets, move], axis=-1)

    def _move(self, away: Any, last_move: Any) -> Any:
        """A move [rad] that differs from the last by `bend` at most, and can be braked to rest after `away`.

        In units of `bend`: a move v is braked by moves v - 1, v - 2 and so on, over (n + 1) v - n (n + 1) / 2 with
        itself, where n is the whole number below v. Solved for v, that is how fast a target may be at its distance.
        """
        bend = jnp.asarray(self.bend, jnp.float32)
        distance = jnp.abs(away) / bend
        whole = jnp.floor(jnp.sqrt(0.25 + 2.0 * distance) - 0.5)
        fastest = bend * (distance + 0.5 * whole * (whole + 1.0)) / (whole + 1.0)
        if self.step:
            fastest = jnp.minimum(fastest, self._step())
        return jnp.clip(jnp.clip(away, -fastest, fastest), last_move - bend, last_move + bend)

    def __call__(self, action: Any, last_target: Any, command: Any = None) -> Any:
        """Targets [rad], (..., n), without a limit of acceleration, which takes the memory of `remembered`.

        Args:
            action: raw action, (..., active).
            last_target: the last targets [rad], (..., n).
            command: the command vector, (..., commands); read where joints follow commands.
        """
        return self._within(self._wanted(action, last_target, command), last_target)

    def _wanted(self, action: Any, last_target: Any, command: Any) -> Any:
        """What is asked for, before any limit [rad], (..., n)."""
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
        if self.through:
            place = np.arange(len(self.home), dtype=np.int32)
            for joint, at in self.through:
                place[joint] = len(self.home) + at
            wanted = jnp.take(jnp.concatenate([wanted, command], axis=-1), place, axis=-1)
        return wanted

    def _within(self, wanted: Any, last_target: Any) -> Any:
        """Targets no faster than allowed and within the limits [rad], (..., n)."""
        if self.step:
            reach = self._step()
            wanted = jnp.clip(wanted, last_target - reach, last_target + reach)
        return jnp.clip(wanted, *self._bounds())
