"""When an episode ends: terms of one environment's State, to a truth value."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp

from ksim.term import Term
from ksim.types import GRAVITY, State
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class Termination(Term, abc.ABC):
    """A reason to end an episode, which counts as a fall."""

    @abc.abstractmethod
    def terminate(self, state: State) -> Any:
        """Whether the episode ends now, ()."""


@dataclass(frozen=True, kw_only=True)
class BaseTooLowTermination(Termination):
    """The base is below a share of its standing height."""

    height_share: Annotated[float, Bound(0, 1, "a share")] = 0.6

    def terminate(self, state: State) -> Any:
        return state.physics.base_position[2] < self.height_share * state.scene.standing_height_m


@dataclass(frozen=True, kw_only=True)
class BaseTooHighTermination(Termination):
    """The base is above a multiple of its standing height: it was thrown, or the physics throws it."""

    height_share: Annotated[float, Bound(1, 1000, "a multiple")] = 1.5

    def terminate(self, state: State) -> Any:
        return state.physics.base_position[2] > self.height_share * state.scene.standing_height_m


@dataclass(frozen=True, kw_only=True)
class DistanceTermination(Termination):
    """The base is farther than this from where the home pose has it, over ground [m]."""

    distance_m: Annotated[float, Bound(0.01, 1e6, "metres")] = 10.0

    def terminate(self, state: State) -> Any:
        if not state.scene.floating:
            return jnp.zeros((), bool)
        home = state.scene.built.home_qpos[state.scene.built.base_position]
        away = state.physics.base_position[:2] - jnp.asarray(home[:2], jnp.float32)
        return jnp.sum(away**2) > self.distance_m**2


@dataclass(frozen=True, kw_only=True)
class TiltTermination(Termination):
    """The IMU leans more than an angle from how it is mounted when the robot stands upright."""

    tilt_deg: Annotated[float, Bound(1, 180, "degrees")] = 60.0

    def terminate(self, state: State) -> Any:
        upright = state.scene.home_gravity_b
        lean = jnp.sum(state.physics.gravity_b * upright) / GRAVITY**2
        return lean < math.cos(math.radians(self.tilt_deg))


@dataclass(frozen=True, kw_only=True)
class NotFiniteTermination(Termination):
    """The physics diverged: a state is not finite, or a velocity is beyond anything real."""

    velocity_max: Annotated[float, Bound(1, 1e9, "rad/s or m/s")] = 1e3

    def terminate(self, state: State) -> Any:
        physics = state.physics
        fine = jnp.all(jnp.isfinite(physics.qpos)) & jnp.all(jnp.abs(physics.qvel) < self.velocity_max)
        return ~fine


@dataclass(frozen=True, kw_only=True)
class JointVelocityTermination(Termination):
    """A joint is faster than a multiple of its motor's no-load speed.

    Attributes:
        speed_share: the multiple.
        joints: words of the joints' names that are looked at; none means all.
    """

    speed_share: Annotated[float, Bound(0.01, 1000, "a multiple")] = 2.0
    joints: tuple[str, ...] = ()

    def terminate(self, state: State) -> Any:
        at, scene = state.scene.joint_ids(self.joints), state.scene
        allowed = self.speed_share * scene.column("velocity_max_rad_s")[at]
        return jnp.any(jnp.abs(state.physics.joint_velocity[at]) > allowed)


@dataclass(frozen=True, kw_only=True)
class JointLimitTermination(Termination):
    """A joint is farther beyond the end of its travel than this [rad].

    Attributes:
        slack_rad: how far it may be beyond.
        joints: words of the joints' names that are looked at; none means all.
    """

    slack_rad: Annotated[float, Bound(0, 10, "radians")] = 0.1
    joints: tuple[str, ...] = ()

    def terminate(self, state: State) -> Any:
        at, scene = state.scene.joint_ids(self.joints), state.scene
        position = state.physics.joint_position[at]
        low, high = scene.column("lower_rad")[at], scene.column("upper_rad")[at]
        return jnp.any(jnp.maximum(low - position, position - high) > self.slack_rad)


@dataclass(frozen=True, kw_only=True)
class IllegalContactTermination(Termination):
    """Something touches that should not: a touch sensor of the model's own file shows a force.

    Attributes:
        touch: names of the sensors; their sites enclose the geoms that must stay free.
        force_n: above this it is a contact [N].
    """

    touch: tuple[str, ...]
    force_n: Annotated[float, Bound(0, 1e6, "newtons")] = 1.0

    @property
    def sensors(self) -> tuple[str, ...]:
        return self.touch

    def check(self) -> None:
        self.require(bool(self.touch), "touch", "nothing", "names of touch sensors of the model")

    def terminate(self, state: State) -> Any:
        forces = [jnp.max(state.physics.sensor(name)) for name in self.touch]
        return jnp.max(jnp.stack(forces)) > self.force_n


@dataclass(frozen=True, kw_only=True)
class FarFromCommandTermination(Termination):
    """The base's velocity over ground, told in its heading, is off the command by more than this [m/s].

    Attributes:
        error_m_s: how far it may be off.
        after_s: not before this time since the episode's start [s]; the robot must get going first.
    """

    error_m_s: Annotated[float, Bound(0.01, 1000, "m/s")] = 2.0
    after_s: Annotated[float, Bound(0, 3600, "seconds")] = 1.0

    def terminate(self, state: State) -> Any:
        asked = jnp.stack([state.command_of("xvel"), state.command_of("yvel")])
        off = state.physics.base_lin_vel_h[:2] - asked
        return (jnp.sum(off**2) > self.error_m_s**2) & (state.time_s >= self.after_s)
