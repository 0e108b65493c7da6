"""Rewards for doing what the command asks: velocity, yaw rate, height, tilt, joints; and for not moving at rest."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ksim.errors import ConfigError
from ksim.reward import METRES, WIDTH, Reward, StatefulReward, exp_kernel, per_step
from ksim.scene import Scene
from ksim.types import Trajectory
from robots import rotation
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class LinearVelocityTrackingReward(Reward):
    """exp of minus the squared error of the base's horizontal velocity over `width_m_s` squared.

    Attributes:
        width_m_s: the error at which the reward is 0.37 [m/s].
        forward: the command of the velocity ahead, in the frame of the base's heading.
        left: the command of the velocity to the left.
    """

    width_m_s: Annotated[float, WIDTH] = 0.5
    forward: str = "xvel"
    left: str = "yvel"

    def get_reward(self, trajectory: Trajectory) -> Any:
        wanted = jnp.stack([trajectory.command_of(self.forward), trajectory.command_of(self.left)], axis=-1)
        error = trajectory.physics.base_lin_vel_h[..., :2] - wanted
        return exp_kernel(jnp.sum(error**2, axis=-1), self.width_m_s)


@dataclass(frozen=True, kw_only=True)
class AngularVelocityTrackingReward(Reward):
    """exp of minus the squared error of the base's rate about the vertical over `width_rad_s` squared.

    Attributes:
        width_rad_s: the error at which the reward is 0.37 [rad/s].
        command: the command of the yaw rate.
    """

    width_rad_s: Annotated[float, WIDTH] = 0.5
    command: str = "yawrate"

    def get_reward(self, trajectory: Trajectory) -> Any:
        error = trajectory.physics.base_ang_vel_w[..., 2] - trajectory.command_of(self.command)
        return exp_kernel(error**2, self.width_rad_s)


@dataclass(frozen=True, kw_only=True)
class MeanTrackingReward(StatefulReward, abc.ABC):
    """exp of minus a velocity's squared mean error over a squared width: a base that sways with its steps is right.

    Attributes:
        time_s: time constant of the mean [s]; half a turn of the gait clock is a good one.
    """

    time_s: Annotated[float, Bound(1e-3, 3600, "seconds")] = 0.4

    @abc.abstractmethod
    def error(self, trajectory: Trajectory) -> Any:
        """The errors of each step, (T, size)."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many they are."""

    @property
    @abc.abstractmethod
    def width(self) -> float:
        """The mean error at which the reward is 0.37."""

    def initial_carry(self, scene: Scene) -> Any:
        return jnp.zeros(self.size)

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        share = min(trajectory.scene.control_period_s / self.time_s, 1.0)

        def step(mean: Any, error: Any) -> tuple[Any, Any]:
            mean = (1.0 - share) * mean + share * error
            return mean, exp_kernel(jnp.sum(mean**2), self.width)

        start = self.initial_carry(trajectory.scene)
        carry, values = per_step(step, carry, self.error(trajectory), trajectory.first, start)
        return values, carry


@dataclass(frozen=True, kw_only=True)
class MeanLinearVelocityTrackingReward(MeanTrackingReward):
    """As LinearVelocityTrackingReward, of the mean error.

    Attributes:
        width_m_s: the mean error at which the reward is 0.37 [m/s].
        forward: the command of the velocity ahead, in the frame of the base's heading.
        left: the command of the velocity to the left.
    """

    width_m_s: Annotated[float, WIDTH] = 0.2
    forward: str = "xvel"
    left: str = "yvel"

    @property
    def size(self) -> int:
        return 2

    @property
    def width(self) -> float:
        return self.width_m_s

    def error(self, trajectory: Trajectory) -> Any:
        wanted = jnp.stack([trajectory.command_of(self.forward), trajectory.command_of(self.left)], axis=-1)
        return trajectory.physics.base_lin_vel_h[..., :2] - wanted


@dataclass(frozen=True, kw_only=True)
class MeanAngularVelocityTrackingReward(MeanTrackingReward):
    """As AngularVelocityTrackingReward, of the mean error.

    Attributes:
        width_rad_s: the mean error at which the reward is 0.37 [rad/s].
        command: the command of the yaw rate.
    """

    width_rad_s: Annotated[float, WIDTH] = 0.2
    command: str = "yawrate"

    @property
    def size(self) -> int:
        return 1

    @property
    def width(self) -> float:
        return self.width_rad_s

    def error(self, trajectory: Trajectory) -> Any:
        return (trajectory.physics.base_ang_vel_w[..., 2] - trajectory.command_of(self.command))[..., None]


@dataclass(frozen=True, kw_only=True)
class BaseHeightReward(Reward):
    """exp of minus the squared distance of the base from its standing height over `width_m` squared.

    Attributes:
        width_m: the distance at which the reward is 0.37 [m].
        below_standing_m: what it should be lower than in the home pose [m].
        command: the command that is added to the height, where the task has it.
    """

    width_m: Annotated[float, WIDTH] = 0.08
    below_standing_m: Annotated[float, METRES] = 0.0
    command: str = "baseheight"

    def get_reward(self, trajectory: Trajectory) -> Any:
        wanted = trajectory.scene.standing_height_m - self.below_standing_m + trajectory.command_of(self.command)
        return exp_kernel((trajectory.physics.base_position[..., 2] - wanted) ** 2, self.width_m)


@dataclass(frozen=True, kw_only=True)
class BaseOrientationTrackingReward(Reward):
    """exp of minus the squared errors of the base's roll and pitch against the home pose over `width_rad` squared.

    Attributes:
        width_rad: the error at which the reward is 0.37 [rad].
        roll: the command of the roll; to the right is positive.
        pitch: the command of the pitch; forward is positive.
    """

    width_rad: Annotated[float, WIDTH] = 0.15
    roll: str = "baseroll"
    pitch: str = "basepitch"

    def get_reward(self, trajectory: Trajectory) -> Any:
        home = trajectory.scene.home_quat
        # what turns the upright, forward-looking frame of the home pose into the base's
        mounted = rotation.multiply(rotation.conjugate(home), rotation.from_yaw(rotation.yaw_of(home)))
        upright = jnp.asarray(mounted, jnp.float32)
        roll, pitch, _ = rotation.roll_pitch_yaw(rotation.multiply(trajectory.physics.base_quat, upright, jnp), jnp)
        error = (roll - trajectory.command_of(self.roll)) ** 2 + (pitch - trajectory.command_of(self.pitch)) ** 2
        return exp_kernel(error, self.width_rad)


@dataclass(frozen=True, kw_only=True)
class JointTrackingReward(Reward):
    """exp of minus the mean squared error of joints that follow commands, as arms do, over `width_rad` squared.

    Attributes:
        width_rad: the error at which the reward is 0.37 [rad].
        joints: {joint: the command of its angle [rad]}; a joint whose command the task has not is passed over.
    """

    width_rad: Annotated[float, WIDTH] = 0.3
    joints: dict[str, str] = field(default_factory=dict)

    def get_reward(self, trajectory: Trajectory) -> Any:
        scene = trajectory.scene
        for name in self.joints:
            if name not in scene.joint_names:
                known = ", ".join(scene.joint_names)
                raise ConfigError(f"{type(self).__name__}: no joint {name!r}; {scene.built.spec.name} has {known}")
        told = {j: c for j, c in self.joints.items() if scene.command(c) >= 0}
        if not told:
            return jnp.ones(len(trajectory))
        at = np.asarray([scene.joint_names.index(name) for name in told], np.int32)
        wanted = jnp.stack([trajectory.command_of(command) for command in told.values()], axis=-1)
        error = jnp.mean((trajectory.physics.joint_position[..., at] - wanted) ** 2, axis=-1)
        return exp_kernel(error, self.width_rad)


@dataclass(frozen=True, kw_only=True)
class MotionlessAtRestReward(Reward):
    """Where nothing is asked: exp of minus the base's squared velocities over their squared widths; 0 elsewhere.

    Attributes:
        width_m_s: linear velocity at which the reward is 0.37 [m/s].
        width_rad_s: angular velocity at which it is [rad/s].
    """

    width_m_s: Annotated[float, WIDTH] = 0.1
    width_rad_s: Annotated[float, WIDTH] = 0.3

    def get_reward(self, trajectory: Trajectory) -> Any:
        physics = trajectory.physics
        linear = jnp.sum(physics.base_lin_vel_w**2, axis=-1) / self.width_m_s**2
        angular = jnp.sum(physics.base_ang_vel_b**2, axis=-1) / self.width_rad_s**2
        return jnp.where(trajectory.moving, 0.0, exp_kernel(linear + angular, 1.0))
