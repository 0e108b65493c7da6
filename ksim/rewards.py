"""Reward terms: one class each, of one environment's Trajectory, to one number a step.

A term gives a plain figure; its sign and size are its weight, per second of simulation. All steps of a rollout are
computed at once. A stateful term carries what it must remember from rollout to rollout. Here are the terms of the base
and the posture, and by their names those of the other rooms: ksim.tracking (commands), ksim.gait (feet),
ksim.effort (torque and smoothness).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ksim.effort import (
    ActionAccelerationPenalty,
    ActionJerkPenalty,
    ActionVelocityPenalty,
    CostOfTransportPenalty,
    EnergyPenalty,
    TargetAccelerationPenalty,
    TargetVelocityPenalty,
    TorqueOverLimitPenalty,
    TorquePenalty,
)
from ksim.gait import (
    ContactPhaseReward,
    FeetAirTimeReward,
    FeetAtRestPenalty,
    FeetClearancePenalty,
    FeetClearanceReward,
    FeetForcePenalty,
    FeetOrientationPenalty,
    FeetPhaseReward,
    FeetSlipPenalty,
    FeetTooClosePenalty,
    Landing,
    SingleContactReward,
    SoftLandingPenalty,
    StandStillPenalty,
)
from ksim.reward import WIDTH, Reward, StatefulReward, exp_kernel, per_step
from ksim.scene import Scene
from ksim.tracking import (
    AngularVelocityTrackingReward,
    BaseHeightReward,
    BaseOrientationTrackingReward,
    JointTrackingReward,
    LinearVelocityTrackingReward,
    MeanAngularVelocityTrackingReward,
    MeanLinearVelocityTrackingReward,
    MeanTrackingReward,
    MotionlessAtRestReward,
)
from ksim.types import GRAVITY, Trajectory
from toolkit.settings import Bound

__all__ = [
    "ActionAccelerationPenalty",
    "ActionJerkPenalty",
    "ActionVelocityPenalty",
    "AliveReward",
    "AngularVelocityTrackingReward",
    "BaseHeightReward",
    "BaseOrientationTrackingReward",
    "BaseSpinPenalty",
    "BaseVelocityPenalty",
    "ContactPhaseReward",
    "CostOfTransportPenalty",
    "EnergyPenalty",
    "FallPenalty",
    "FeetAirTimeReward",
    "FeetAtRestPenalty",
    "FeetClearancePenalty",
    "FeetClearanceReward",
    "FeetForcePenalty",
    "FeetOrientationPenalty",
    "FeetPhaseReward",
    "FeetSlipPenalty",
    "FeetTooClosePenalty",
    "JointDeviationPenalty",
    "JointLimitsPenalty",
    "JointTrackingReward",
    "JointVelocityPenalty",
    "Landing",
    "LinearVelocityTrackingReward",
    "MeanAngularVelocityTrackingReward",
    "MeanLinearVelocityTrackingReward",
    "MeanTrackingReward",
    "MotionlessAtRestReward",
    "PostureReward",
    "Reward",
    "RollPitchRatePenalty",
    "SingleContactReward",
    "SoftLandingPenalty",
    "StandStillPenalty",
    "StatefulReward",
    "SymmetryReward",
    "TargetAccelerationPenalty",
    "TargetVelocityPenalty",
    "TorqueOverLimitPenalty",
    "TorquePenalty",
    "UprightReward",
    "VerticalVelocityPenalty",
    "exp_kernel",
    "per_step",
]


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

    width: Annotated[float, WIDTH] = 0.22360679774997896

    def get_reward(self, trajectory: Trajectory) -> Any:
        flat = trajectory.physics.gravity_b[..., :2] / GRAVITY
        return exp_kernel(jnp.sum(flat**2, axis=-1), self.width)


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
class VerticalVelocityPenalty(Reward):
    """Squared vertical velocity of the base [m^2/s^2]."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return trajectory.physics.base_lin_vel_w[..., 2] ** 2


@dataclass(frozen=True, kw_only=True)
class RollPitchRatePenalty(Reward):
    """Squared angular velocity of the base about the horizontal axes [rad^2/s^2]."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.sum(trajectory.physics.base_ang_vel_w[..., :2] ** 2, axis=-1)


@dataclass(frozen=True, kw_only=True)
class JointDeviationPenalty(Reward):
    """Sum of squared distances of joints from the home pose [rad^2].

    Attributes:
        joints: words in the names of the joints that count; none means all.
        at_rest: count only where nothing is asked.
    """

    joints: tuple[str, ...] = ()
    at_rest: bool = False

    def get_reward(self, trajectory: Trajectory) -> Any:
        at = trajectory.scene.joint_ids(self.joints)
        away = trajectory.physics.joint_position - trajectory.scene.home_rad
        total = jnp.sum(away[..., at] ** 2, axis=-1)
        return jnp.where(trajectory.moving, 0.0, total) if self.at_rest else total


@dataclass(frozen=True, kw_only=True)
class JointVelocityPenalty(Reward):
    """Sum of squared joint velocities [rad^2/s^2]."""

    def get_reward(self, trajectory: Trajectory) -> Any:
        return jnp.sum(trajectory.physics.joint_velocity**2, axis=-1)


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


@dataclass(frozen=True, kw_only=True)
class PostureReward(Reward):
    """exp of minus the mean squared distance of the joints from the home pose, each over its own width.

    Attributes:
        widths_rad: {word: width [rad]}; a joint has the width of the first word that is in its name.
        width_rad: width of the joints that no word names [rad]; 0 leaves them out.
        at_rest: factor on the widths where nothing is asked.
    """

    widths_rad: Annotated[dict[str, float], WIDTH] = field(
        default_factory=lambda: {"hip_roll": 0.15, "hip_yaw": 0.15, "hip_pitch": 0.5, "knee": 0.6, "ankle": 0.4}
    )
    width_rad: Annotated[float, Bound(0, 1e6, "a width, 0 for none")] = 0.3
    at_rest: Annotated[float, Bound(1e-3, 1000, "a factor")] = 0.5

    def _widths(self, scene: Scene) -> np.ndarray:
        """One width for each joint, (joints,); infinite for one that is left out.

        Raises:
            ConfigError: a word is in no joint's name.
        """
        none = self.width_rad if self.width_rad > 0 else np.inf
        widths = np.full(scene.joints, none, np.float32)
        for word, width in reversed(self.widths_rad.items()):
            widths[scene.joint_ids((word,))] = width
        return widths

    def get_reward(self, trajectory: Trajectory) -> Any:
        widths = self._widths(trajectory.scene)
        away = (trajectory.physics.joint_position - trajectory.scene.home_rad) / widths
        counted = max(int(np.isfinite(widths).sum()), 1)
        error = jnp.sum(away**2, axis=-1) / counted
        return exp_kernel(jnp.where(trajectory.moving, error, error / self.at_rest**2), 1.0)


@dataclass(frozen=True, kw_only=True)
class SymmetryReward(StatefulReward):
    """1 where left and right do the same over some steps: exp of minus what joints and their mirror images differ by.

    Two figures of each joint are followed as means over `time_s`: its distance from home, over `width_rad`, and its
    speed, over `width_rad_s`. While a turn or a sidestep is asked nothing is wrong with a difference: it is 1 there.

    Attributes:
        time_s: time constant of the means [s]; two steps of each foot or more.
        width_rad: mean difference in angle at which the reward is 0.37 [rad].
        width_rad_s: mean difference in speed at which it is [rad/s].
        straight: commands that must be near 0 for a difference to count.
        at_rest: how near.
    """

    time_s: Annotated[float, Bound(1e-3, 3600, "seconds")] = 1.6
    width_rad: Annotated[float, WIDTH] = 0.1
    width_rad_s: Annotated[float, WIDTH] = 1.0
    straight: tuple[str, ...] = ("yvel", "yawrate")
    at_rest: Annotated[float, Bound(0, 10, "the command's unit")] = 0.05

    def initial_carry(self, scene: Scene) -> Any:
        return {"away": jnp.zeros(scene.joints), "speed": jnp.zeros(scene.joints)}

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        scene, physics = trajectory.scene, trajectory.physics
        share = min(scene.control_period_s / self.time_s, 1.0)
        partner = np.asarray(scene.mirror.joints, np.int32)
        home = scene.home_rad

        def step(memory: Any, row: Any) -> tuple[Any, Any]:
            memory = {name: (1.0 - share) * memory[name] + share * row[name] for name in memory}
            away = memory["away"] - scene.mirror.joint_change(memory["away"], jnp)
            speed = memory["speed"] - memory["speed"][partner]
            error = jnp.mean((away / self.width_rad) ** 2) + jnp.mean((speed / self.width_rad_s) ** 2)
            return memory, exp_kernel(error, 1.0)

        rows = {"away": physics.joint_position - home, "speed": jnp.abs(physics.joint_velocity)}
        carry, values = per_step(step, carry, rows, trajectory.first, self.initial_carry(scene))
        aside = [jnp.abs(trajectory.command_of(name)) > self.at_rest for name in self.straight]
        for asked in aside:
            values = jnp.where(asked, 1.0, values)
        return values, carry
