"""Reward terms: one class each, of one environment's Trajectory, to one number a step.

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
from ksim.types import GRAVITY, Trajectory
from toolkit.settings import Bound

_WEIGHT = Bound(-1000, 1000, "a weight")
_WIDTH = Bound(1e-6, 1e6, "a width")
_METRES = Bound(0, 100, "metres")


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
    weight: Annotated[float | Scale, _WEIGHT] = 1.0

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


@dataclass(frozen=True, kw_only=True)
class AliveReward(Reward):
    """1 for each step."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.ones(len(trajectory))


@dataclass(frozen=True, kw_only=True)
class FallPenalty(Reward):
    """1 on the step that falls, undone by the step's length, so that its weight is a sum."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return trajectory.fell.astype(jnp.float32) / trajectory.scene.control_period_s


@dataclass(frozen=True, kw_only=True)
class UprightReward(Reward):
    """exp of minus the squared horizontal part of gravity in the IMU's frame over `width` squared."""

    width: Annotated[float, _WIDTH] = 0.22360679774997896

    def get_reward(self, trajectory: Trajectory) -> Any:
        flat = trajectory.physics.gravity_b[..., :2] / GRAVITY
        return exp_kernel(jnp.sum(flat**2, axis=-1), self.width)


@dataclass(frozen=True, kw_only=True)
class BaseHeightReward(Reward):
    """exp of minus the squared distance of the base from its standing height over `width_m` squared.

    Attributes:
        width_m: the distance at which the reward is 0.37 [m].
        below_standing_m: what it should be lower than in the home pose [m].
        command: the command that is added to the height, where the task has it.
    """

    width_m: Annotated[float, _WIDTH] = 0.08
    below_standing_m: Annotated[float, _METRES] = 0.0
    command: str = "baseheight"

    def get_reward(self, trajectory: Trajectory) -> Any:
        wanted = trajectory.scene.standing_height_m - self.below_standing_m + trajectory.command_of(self.command)
        return exp_kernel((trajectory.physics.base_position[..., 2] - wanted) ** 2, self.width_m)


@dataclass(frozen=True, kw_only=True)
class BaseVelocityPenalty(Reward):
    """Squared horizontal velocity of the base [m^2/s^2]."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.sum(trajectory.physics.base_lin_vel_w[..., :2] ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class BaseSpinPenalty(Reward):
    """Squared angular velocity of the base [rad^2/s^2]."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.sum(trajectory.physics.base_ang_vel_b**2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class JointDeviationPenalty(Reward):
    """Sum of squared distances of joints from the home pose [rad^2].

    Attributes:
        joints: words in the names of the joints that count; none means all.
    """

    joints: tuple[str, ...] = ()

    def get_reward(self, trajectory: Trajectory) -> Any:
        at = trajectory.scene.joint_ids(self.joints)
        away = trajectory.physics.joint_position - trajectory.scene.home_rad
        return jnp.sum(away[..., at] ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class JointVelocityPenalty(Reward):
    """Sum of squared joint velocities [rad^2/s^2]."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.sum(trajectory.physics.joint_velocity**2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class TorquePenalty(Reward):
    """Mean squared share of the torque limit."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        limit = trajectory.scene.column("torque_limit_nm")
        return jnp.mean((trajectory.physics.torque / limit) ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class ActionVelocityPenalty(StatefulReward):
    """Sum of squared changes of the raw action since the step before; none at an episode's first step."""

    def initial_carry(self, scene: Scene) -> Any:
        return jnp.zeros(scene.actions)

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        raw = trajectory.action.raw
        before = jnp.concatenate([carry[None], raw[:-1]])
        change = jnp.sum((raw - before) ** 2, axis=-1)
        return jnp.where(trajectory.first, 0.0, change), raw[-1]


@dataclass(frozen=True, kw_only=True)
class JointLimitsPenalty(Reward):
    """Sum of what the joints exceed of the inner share of their range [rad]."""

    inner: Annotated[float, Bound(0, 1, "a share")] = 0.95

    def get_reward(self, trajectory: Trajectory) -> Any:
        low, high = (trajectory.scene.column(name) for name in ("lower_rad", "upper_rad"))
        margin = 0.5 * (1.0 - self.inner) * (high - low)
        position = trajectory.physics.joint_position
        over = jnp.clip(position - (high - margin), 0.0) + jnp.clip((low + margin) - position, 0.0)
        return jnp.sum(over, axis=-1)
