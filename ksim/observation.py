"""What the policy and the critic see: one term each, of one environment's State.

A policy input is a term under its .kinfer name. The critic sees the terms of its own table, one after the other. A late
term reads the past of a signal through a channel (ksim/channels.py), and repeats its value to the bit until the
channel has a new packet.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp

from ksim.errors import ConfigError
from ksim.noise import Draw, Noise
from ksim.term import Term
from ksim.types import State
from robots import delay, rotation
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class Observation(Term, abc.ABC):
    """A vector that is seen.

    Attributes:
        noise: what a sensor adds to it; None adds nothing.
        scale: factor that brings it to about 1, for the critic.
    """

    noise: Noise | None = None
    scale: Annotated[float, Bound(-1e6, 1e6, "a factor")] = 1.0

    @abc.abstractmethod
    def observe(self, state: State) -> Any:
        """The true value, (size,)."""

    def seen(self, state: State) -> Any:
        """The value with its noise, (size,)."""
        return self.disturbed(self.observe(state), state, state.key)

    def disturbed(self, value: Any, state: State, key: Any) -> Any:
        """A value with this term's noise."""
        return value if self.noise is None else self.noise.disturb(value, Draw(key, state.episode_key, state.level))


@dataclass(frozen=True, kw_only=True)
class StatefulObservation(Observation, abc.ABC):
    """An observation with a memory, which starts anew with each episode."""

    @abc.abstractmethod
    def initial_carry(self, state: State) -> Any:
        """The memory before an episode's first step."""

    @abc.abstractmethod
    def observe_stateful(self, state: State, carry: Any) -> tuple[Any, Any]:
        """(the value with its noise, the next memory)."""


@dataclass(frozen=True, kw_only=True)
class DelayedObservation(StatefulObservation, abc.ABC):
    """A signal as a channel brings it: late, held until the next packet, noisy once a packet.

    Attributes:
        channel: the channel's name in the task.
    """

    channel: str = "joints"

    @property
    @abc.abstractmethod
    def signal(self) -> str:
        """The signal that it reads: one of ksim.engine.SIGNALS, or a sensor of the model."""

    def turned(self, value: Any, state: State) -> Any:
        """What the mounting of the sensor makes of its value."""
        return value

    def observe(self, state: State) -> Any:
        line, channel = state.physics.history[self.signal], self._reading(state)
        return self.turned(delay.read(line, channel.age_s, state.scene.built.model.opt.timestep, jnp), state)

    def _reading(self, state: State) -> Any:
        if self.channel not in state.channels:
            known = ", ".join(state.channels) or "none"
            raise ConfigError(f"{type(self).__name__}: no channel {self.channel!r}; the task has {known}")
        return state.channels[self.channel]

    def initial_carry(self, state: State) -> Any:
        return jnp.zeros_like(self.observe(state))

    def observe_stateful(self, state: State, carry: Any) -> tuple[Any, Any]:
        value = jnp.where(self._reading(state).fresh, self.seen(state), carry)
        return value, value


@dataclass(frozen=True, kw_only=True)
class DelayedJointPositionObservation(DelayedObservation):
    """Encoder angles through a channel [rad], (joints,): zero offsets, play and compliance are in them."""

    @property
    def signal(self) -> str:
        return "joint_position"


@dataclass(frozen=True, kw_only=True)
class DelayedJointVelocityObservation(DelayedObservation):
    """Encoder velocities through a channel [rad/s], (joints,)."""

    @property
    def signal(self) -> str:
        return "joint_velocity"


@dataclass(frozen=True, kw_only=True)
class ImuObservation(DelayedObservation, abc.ABC):
    """A vector in the IMU's frame, which is mounted askew as PhysicsParams.imu_tilt says."""

    channel: str = "imu"

    def turned(self, value: Any, state: State) -> Any:
        return rotation.rotate(rotation.from_rotvec(state.params.imu_tilt, jnp), value, jnp)


@dataclass(frozen=True, kw_only=True)
class DelayedProjectedGravityObservation(ImuObservation):
    """Gravity in the IMU's frame through a channel [m/s^2], (3,); upright is (0, 0, -9.81)."""

    @property
    def signal(self) -> str:
        return "gravity"


@dataclass(frozen=True, kw_only=True)
class DelayedGyroObservation(ImuObservation):
    """Angular velocity in the IMU's frame through a channel [rad/s], (3,)."""

    @property
    def signal(self) -> str:
        return "gyro"


@dataclass(frozen=True, kw_only=True)
class DelayedAccelerometerObservation(ImuObservation):
    """Proper acceleration in the IMU's frame through a channel [m/s^2], (3,)."""

    @property
    def signal(self) -> str:
        return "accelerometer"


@dataclass(frozen=True, kw_only=True)
class CommandObservation(Observation):
    """The command vector, (commands,)."""

    def observe(self, state: State) -> Any:
        return state.command


@dataclass(frozen=True, kw_only=True)
class TimeObservation(Observation):
    """Time since the episode's start [s], (1,)."""

    def observe(self, state: State) -> Any:
        return jnp.atleast_1d(state.time_s)


@dataclass(frozen=True, kw_only=True)
class BasePositionObservation(Observation):
    """Position of the base in the world [m], (3,)."""

    def observe(self, state: State) -> Any:
        return state.physics.base_position


@dataclass(frozen=True, kw_only=True)
class BaseHeightObservation(Observation):
    """Height of the base above its standing height [m], (1,)."""

    def observe(self, state: State) -> Any:
        return state.physics.base_position[2:3] - state.scene.standing_height_m


@dataclass(frozen=True, kw_only=True)
class BaseLinearVelocityObservation(Observation):
    """Linear velocity of the base [m/s], (3,), in its own frame, or in the world's."""

    world: bool = False

    def observe(self, state: State) -> Any:
        return state.physics.base_lin_vel_w if self.world else state.physics.base_lin_vel_b


@dataclass(frozen=True, kw_only=True)
class JointPositionObservation(Observation):
    """True joint angles [rad], (joints,), or their distance from the home pose."""

    from_home: bool = False

    def observe(self, state: State) -> Any:
        position = state.physics.joint_position
        return position - state.scene.home_rad if self.from_home else position


@dataclass(frozen=True, kw_only=True)
class JointVelocityObservation(Observation):
    """True joint velocities [rad/s], (joints,)."""

    def observe(self, state: State) -> Any:
        return state.physics.joint_velocity


@dataclass(frozen=True, kw_only=True)
class ProjectedGravityObservation(Observation):
    """Gravity in the IMU's frame, now and without misalignment [m/s^2], (3,); upright is (0, 0, -9.81)."""

    def observe(self, state: State) -> Any:
        return state.physics.gravity_b


@dataclass(frozen=True, kw_only=True)
class GyroObservation(Observation):
    """Angular velocity in the IMU's frame, now [rad/s], (3,)."""

    def observe(self, state: State) -> Any:
        return state.physics.gyro_b


@dataclass(frozen=True, kw_only=True)
class FeetForceObservation(Observation):
    """Contact force of each foot [N], (feet,)."""

    def observe(self, state: State) -> Any:
        return state.physics.foot_force


@dataclass(frozen=True, kw_only=True)
class LastActionObservation(Observation):
    """The policy's last raw action, (actions,)."""

    def observe(self, state: State) -> Any:
        return state.action


@dataclass(frozen=True, kw_only=True)
class RandomizationObservation(Observation):
    """What the randomisations drew, one after the other, each about 1; `of` names some of them, none means all."""

    of: tuple[str, ...] = ()

    def observe(self, state: State) -> Any:
        drawn = state.params.drawn
        parts = [jnp.ravel(drawn[name]) for name in self.of or drawn]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)


@dataclass(frozen=True, kw_only=True)
class ChannelAgeObservation(Observation):
    """Age of what each sensor channel holds [s], (channels,)."""

    def observe(self, state: State) -> Any:
        return jnp.stack([jnp.asarray(r.age_s) for r in state.channels.values()]) if state.channels else jnp.zeros(0)


@dataclass(frozen=True, kw_only=True)
class EventObservation(Observation):
    """What an event does now: force [N] and torque [N m] on the base in the base's frame, (6,)."""

    of: str = "pushes"

    def observe(self, state: State) -> Any:
        if self.of not in state.events:
            raise ConfigError(
                f"{type(self).__name__}: no event {self.of!r}; the task has {', '.join(state.events) or 'none'}"
            )
        wrench, quat = state.events[self.of]["wrench_w"], state.physics.base_quat
        return jnp.concatenate([rotation.rotate_inverse(quat, wrench[i : i + 3], jnp) for i in (0, 3)])
