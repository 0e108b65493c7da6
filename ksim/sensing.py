"""Observations as a term: its bases, and those that come late, through a channel.

A late term reads the past of a signal through a channel (ksim/channels.py), and repeats its value to the bit until the
channel has a new packet. ksim/observation.py has the others, and gives these names too.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp

from ksim.errors import ConfigError
from ksim.noise import Draw, Noise
from ksim.scene import Scene
from ksim.term import Term
from ksim.types import State
from robots import delay, rotation
from toolkit.settings import Bound

# Sensors that each foot has, which the model builder is asked for without the foot's name.
FOOT_SENSORS = ("foot_position", "foot_velocity", "foot_quat", "foot_angular_velocity")


def asked_of_model(sensor: str) -> tuple[str, ...]:
    """What the model builder is asked for so that the model has a sensor of this name."""
    return (next((kind for kind in FOOT_SENSORS if sensor.startswith(f"{kind}_")), sensor),)


@dataclass(frozen=True, kw_only=True)
class Observation(Term, abc.ABC):
    """A vector that is seen.

    Attributes:
        serves: the policy inputs of robots/inputs.py that it may be in `observations`; a subclass serves them too.
        as_input: what fields must be there, so that the policy reads what the robot will give.
        noise: what a sensor adds to it; None adds nothing.
        scale: factor that brings it to about 1, for the critic.
    """

    serves: ClassVar[tuple[str, ...]] = ()
    as_input: ClassVar[Mapping[str, Any]] = {"scale": 1.0}
    noise: Noise | None = None
    scale: Annotated[float, Bound(-1e6, 1e6, "a factor")] = 1.0

    @property
    def refers(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """{field: (table of the task, names in it)} of the terms that it looks up by name."""
        return {}

    @abc.abstractmethod
    def observe(self, state: State) -> Any:
        """The true value, (size,)."""

    def image(self, value: Any, scene: Scene) -> Any:
        """What it would be of the mirror image of the robot, (..., size): affine in its value.

        Raises:
            ConfigError: that is not known of this class.
        """
        raise ConfigError(
            f"{type(self).__name__}: its mirror image is not known; expected a class with a method `image`; leave the "
            "term out of policy.sees, or train without symmetry: --set ppo.symmetry=none"
        )

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
    def refers(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        return {"channel": ("channels", (self.channel,))}

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

    serves = ("joint_angles",)

    @property
    def signal(self) -> str:
        return "joint_position"


@dataclass(frozen=True, kw_only=True)
class DelayedJointVelocityObservation(DelayedObservation):
    """Encoder velocities through a channel [rad/s], (joints,)."""

    serves = ("joint_angular_velocities",)

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

    serves = ("projected_gravity",)

    @property
    def signal(self) -> str:
        return "gravity"


@dataclass(frozen=True, kw_only=True)
class DelayedGyroObservation(ImuObservation):
    """Angular velocity in the IMU's frame through a channel [rad/s], (3,)."""

    serves = ("gyroscope",)

    @property
    def signal(self) -> str:
        return "gyro"


@dataclass(frozen=True, kw_only=True)
class DelayedAccelerometerObservation(ImuObservation):
    """Proper acceleration in the IMU's frame through a channel [m/s^2], (3,)."""

    serves = ("accelerometer",)

    @property
    def signal(self) -> str:
        return "accelerometer"


@dataclass(frozen=True, kw_only=True)
class DelayedSensorObservation(DelayedObservation):
    """Any sensor of the model through a channel, (size,), as the model has it.

    Attributes:
        sensor: its name: `touch_left_foot`, `foot_position_left_foot`, `com_velocity`, or one of the model's own.
    """

    sensor: Annotated[str, Bound(1, 200, "characters")]

    @property
    def sensors(self) -> tuple[str, ...]:
        return asked_of_model(self.sensor)

    @property
    def signal(self) -> str:
        return self.sensor
