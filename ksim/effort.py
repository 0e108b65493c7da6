"""Rewards of effort: torque, energy, and how roughly actions and targets change."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ksim.reward import SHARE, Reward, StatefulReward
from ksim.scene import Scene
from ksim.types import GRAVITY, Trajectory
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class TorquePenalty(Reward):
    """Mean squared share of the torque limit."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        limit = trajectory.scene.column("torque_limit_nm")
        return jnp.mean((trajectory.physics.torque / limit) ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class TorqueOverLimitPenalty(Reward):
    """What torques exceed of `share` of their limit, squared and summed, in limits."""

    share: Annotated[float, SHARE] = 0.8

    def get_reward(self, trajectory: Trajectory) -> Any:
        used = jnp.abs(trajectory.physics.torque) / trajectory.scene.column("torque_limit_nm")
        return jnp.sum(jnp.clip(used - self.share, 0.0) ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class EnergyPenalty(Reward):
    """Sum of |torque x velocity| of the joints [W]: what is braked is not won back."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.sum(jnp.abs(trajectory.physics.torque * trajectory.physics.joint_velocity), axis=-1)


@dataclass(frozen=True, kw_only=True)
class CostOfTransportPenalty(EnergyPenalty):
    """Power over weight times horizontal speed, without a unit; 0 where nothing is asked.

    Attributes:
        least_m_s: a slower robot counts as this fast [m/s].
    """

    least_m_s: Annotated[float, Bound(1e-3, 100, "m/s")] = 0.2

    def get_reward(self, trajectory: Trajectory) -> Any:
        speed = jnp.linalg.norm(trajectory.physics.base_lin_vel_w[..., :2], axis=-1)
        weight = trajectory.scene.mass_kg * GRAVITY
        cost = super().get_reward(trajectory) / (weight * jnp.maximum(speed, self.least_m_s))
        return jnp.where(trajectory.moving, cost, 0.0)


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
class DifferencePenalty(StatefulReward, abc.ABC):
    """A penalty of how a signal changes from step to step; none until an episode has the steps that it takes."""

    @property
    @abc.abstractmethod
    def order(self) -> int:
        """How many times the difference of neighbours is taken."""

    @abc.abstractmethod
    def signal(self, trajectory: Trajectory) -> Any:
        """What changes, (T, size)."""

    @abc.abstractmethod
    def size(self, scene: Scene) -> int:
        """Its length."""

    @abc.abstractmethod
    def figure(self, difference: Any, scene: Scene) -> Any:
        """The figure (T,) of differences (T, size), of which each is of `order` + 1 neighbours."""

    def initial_carry(self, scene: Scene) -> Any:
        rows = {"past": jnp.zeros((self.order, self.size(scene))), "first": jnp.zeros(self.order, bool)}
        return rows

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        order, steps = self.order, len(trajectory)
        past = jnp.concatenate([carry["past"], self.signal(trajectory)])
        first = jnp.concatenate([carry["first"], trajectory.first])
        figure = self.figure(jnp.diff(past, order, axis=0), trajectory.scene)
        # an episode that began within the last `order` steps has not the rows yet
        began = jnp.stack([first[order - i : order - i + steps] for i in range(order)])
        kept = {"past": past[steps:], "first": first[steps:]}
        return jnp.where(jnp.any(began, axis=0), 0.0, figure), kept


@dataclass(frozen=True, kw_only=True)
class ActionDifferencePenalty(DifferencePenalty, abc.ABC):
    """Sum of squared differences of the raw action."""

    def signal(self, trajectory: Trajectory) -> Any:
        return trajectory.action.raw

    def size(self, scene: Scene) -> int:
        return scene.actions

    def figure(self, difference: Any, scene: Scene) -> Any:
        return jnp.sum(difference**2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class ActionAccelerationPenalty(ActionDifferencePenalty):
    """Sum of squared second differences of the raw action; none at an episode's first two steps."""

    @property
    def order(self) -> int:
        return 2


@dataclass(frozen=True, kw_only=True)
class ActionJerkPenalty(ActionDifferencePenalty):
    """Sum of squared third differences of the raw action; none at an episode's first three steps."""

    @property
    def order(self) -> int:
        return 3


@dataclass(frozen=True, kw_only=True)
class TargetDifferencePenalty(DifferencePenalty, abc.ABC):
    """A penalty of how the joint targets move."""

    def signal(self, trajectory: Trajectory) -> Any:
        return trajectory.action.target

    def size(self, scene: Scene) -> int:
        return scene.joints


@dataclass(frozen=True, kw_only=True)
class TargetVelocityPenalty(TargetDifferencePenalty):
    """What the targets' speeds exceed of `share` of a joint's no-load speed, squared and summed, in those speeds."""

    share: Annotated[float, SHARE] = 0.0

    @property
    def order(self) -> int:
        return 1

    def figure(self, difference: Any, scene: Scene) -> Any:
        fastest = scene.control_period_s * np.asarray(scene.column("velocity_max_rad_s"))
        return jnp.sum(jnp.clip(jnp.abs(difference) / fastest - self.share, 0.0) ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class TargetAccelerationPenalty(TargetDifferencePenalty):
    """Sum of the targets' squared accelerations [rad^2/s^4]."""

    @property
    def order(self) -> int:
        return 2

    def figure(self, difference: Any, scene: Scene) -> Any:
        return jnp.sum((difference / scene.control_period_s**2) ** 2, axis=-1)
