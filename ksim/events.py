"""What happens to the robot from outside, and to its loop: pushes, moments, stalls."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ksim.curriculum import SHARE, Scale, factor
from ksim.term import Term
from ksim.types import State
from toolkit.settings import Bound, Range

_DURATION = Bound(0, 3600, "seconds")
_INTERVAL = Bound(0.001, 1e6, "seconds")


class Effect(NamedTuple):
    """What an event does during one control step.

    Attributes:
        wrench_w: force [N] and torque [N m] on the base in the world's frame, (6,).
        kick: added to the base's linear (world) and angular (body) velocity at the start, (6,).
        stalled: the policy's command is not sent.
    """

    wrench_w: Any
    kick: Any
    stalled: Any


NOTHING = Effect(wrench_w=np.zeros(6, np.float32), kick=np.zeros(6, np.float32), stalled=np.zeros((), bool))


@dataclass(frozen=True, kw_only=True)
class Event(Term, abc.ABC):
    """An event. Its memory is a dict with `wrench_w` (6,), what acts now, and what else it needs."""

    scale: Annotated[float | Scale, SHARE] = 1.0

    @abc.abstractmethod
    def initial_carry(self, key: Any) -> dict[str, Any]:
        """The memory at an episode's start."""

    @abc.abstractmethod
    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        """(what acts during the next control step, the next memory)."""


@dataclass(frozen=True, kw_only=True)
class Recurring(Event, abc.ABC):
    """An event that begins after a random pause and lasts for a random time."""

    duration_s: Annotated[Range, _DURATION] = (0.1, 0.5)
    interval_s: Annotated[Range, _INTERVAL] = (1.5, 2.5)

    def initial_carry(self, key: Any) -> dict[str, Any]:
        # the first comes after at most one interval
        wait = jax.random.uniform(key, (), minval=0.3, maxval=max(0.3, self.interval_s[1]))
        return {"wrench_w": jnp.zeros(6), "left_s": jnp.zeros(()), "next_s": wait}

    def _clock(self, state: State, carry: dict[str, Any]) -> tuple[Any, Any, Any]:
        """(it begins now, how long it lasts still, the time to the next)."""
        length, pause = jax.random.uniform(jax.random.fold_in(state.key, 1), (2,))
        period = state.scene.control_period_s
        lasts = self.duration_s[0] + length * (self.duration_s[1] - self.duration_s[0])
        wait = self.interval_s[0] + pause * (self.interval_s[1] - self.interval_s[0])
        begins = carry["next_s"] <= 0.0
        left = jnp.where(begins, lasts, jnp.maximum(carry["left_s"] - period, 0.0))
        return begins, left, jnp.where(begins, wait, carry["next_s"] - period)


@dataclass(frozen=True, kw_only=True)
class ForcePush(Recurring):
    """A horizontal force on the base of random size, direction, length and time [N]."""

    force_n: Annotated[float, Bound(0, 100_000, "newtons")] = 50.0

    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        begins, left, following = self._clock(state, carry)
        size, turn = jax.random.uniform(state.key, (2,))
        angle = 2.0 * np.pi * turn
        force = factor(self.scale, state.level) * self.force_n * size * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        wrench: Any = jnp.where(begins, jnp.concatenate([force, jnp.zeros(4)]), carry["wrench_w"])
        wrench = jnp.where(left > 0.0, wrench, 0.0)
        return NOTHING._replace(wrench_w=wrench), {"wrench_w": wrench, "left_s": left, "next_s": following}


@dataclass(frozen=True, kw_only=True)
class TorquePush(Recurring):
    """A torque on the base of random size, axis, length and time [N m]."""

    torque_nm: Annotated[float, Bound(0, 100_000, "N m")] = 10.0

    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        begins, left, following = self._clock(state, carry)
        size_key, axis_key = jax.random.split(state.key)
        # a direction of a normal vector is uniform on the sphere
        axis = jax.random.normal(axis_key, (3,))
        axis = axis / jnp.maximum(jnp.linalg.norm(axis), 1e-6)
        torque = factor(self.scale, state.level) * self.torque_nm * jax.random.uniform(size_key) * axis
        wrench: Any = jnp.where(begins, jnp.concatenate([jnp.zeros(3), torque]), carry["wrench_w"])
        wrench = jnp.where(left > 0.0, wrench, 0.0)
        return NOTHING._replace(wrench_w=wrench), {"wrench_w": wrench, "left_s": left, "next_s": following}


@dataclass(frozen=True, kw_only=True)
class VelocityPush(Recurring):
    """The base's velocity changes at once: horizontally [m/s], and about the vertical [rad/s]."""

    lin_vel_m_s: Annotated[float, Bound(0, 100, "m/s")] = 0.5
    ang_vel_rad_s: Annotated[float, Bound(0, 100, "rad/s")] = 0.0

    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        begins, left, following = self._clock(state, carry)
        size, turn, spin = jax.random.uniform(state.key, (3,))
        share, angle = factor(self.scale, state.level), 2.0 * np.pi * turn
        flat = share * self.lin_vel_m_s * size * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        about = share * self.ang_vel_rad_s * (2.0 * spin - 1.0)
        kick = jnp.concatenate([flat, jnp.zeros(3), about[None]]) * begins
        return NOTHING._replace(kick=kick), {"wrench_w": jnp.zeros(6), "left_s": left, "next_s": following}


@dataclass(frozen=True, kw_only=True)
class LastingMoment(Event):
    """A torque about a random axis on the base for the whole episode [N m]: a cable, a load, a slope."""

    torque_nm: Annotated[float, Bound(0, 10_000, "N m")] = 3.0

    def initial_carry(self, key: Any) -> dict[str, Any]:
        return {"wrench_w": jnp.zeros(6), "unit": jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)}

    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        torque = factor(self.scale, state.level) * self.torque_nm * carry["unit"]
        wrench = jnp.concatenate([jnp.zeros(3), torque])
        return NOTHING._replace(wrench_w=wrench), {**carry, "wrench_w": wrench}


@dataclass(frozen=True, kw_only=True)
class Stall(Recurring):
    """The loop hangs: for some ticks no command is sent, and the last one stays in force."""

    duration_s: Annotated[Range, _DURATION] = (0.1, 0.1)
    interval_s: Annotated[Range, _INTERVAL] = (5.0, 15.0)

    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        _, left, following = self._clock(state, carry)
        effect = NOTHING._replace(stalled=left > 0.0)
        return effect, {"wrench_w": jnp.zeros(6), "left_s": left, "next_s": following}
