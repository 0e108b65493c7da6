"""Commands: what a person asks of the policy. Each term gives some elements of the command vector, by name.

The names are K-Scale's (facts of their keyboard and UDP sender): xvel, yvel [m/s], yawrate [rad/s], baseheight [m],
baseroll, basepitch [rad], and joints of the arms [rad].
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ksim.curriculum import Scale, factor
from ksim.term import Term
from ksim.types import State
from robots.spec import CommandSpec
from toolkit.settings import Bound, Range

UNITS = {
    **{"xvel": "m/s", "yvel": "m/s", "yawrate": "rad/s", "baseheight": "m", "baseroll": "rad", "basepitch": "rad"},
    **{"vx": "m/s", "vy": "m/s", "yaw_rate": "rad/s", "yaw": "rad", "height": "m"},
}


@dataclass(frozen=True, kw_only=True)
class Command(Term, abc.ABC):
    """Some elements of the command vector.

    Attributes:
        interval_s: a new command is drawn after a random time in this range [s]; 0 and 0 means once an episode.
        scale: factor on what is drawn; may follow the curriculum.
    """

    interval_s: Annotated[Range, Bound(0, 3600, "seconds, 0 for once an episode")] = (0.0, 0.0)
    scale: float | Scale = 1.0

    @property
    @abc.abstractmethod
    def specs(self) -> tuple[CommandSpec, ...]:
        """Its elements: names, ranges, units."""

    @abc.abstractmethod
    def sample(self, key: Any, level: Any) -> Any:
        """A command, (elements,)."""

    def initial_carry(self, key: Any, level: Any) -> dict[str, Any]:
        """A first command, and when the next comes."""
        value_key, wait_key = jax.random.split(key)
        return {"value": self.sample(value_key, level), "left_s": self._wait(wait_key)}

    def _wait(self, key: Any) -> Any:
        if self.interval_s[1] == 0:
            return jnp.asarray(jnp.inf)
        return jax.random.uniform(key, (), minval=self.interval_s[0], maxval=self.interval_s[1])

    def next_command(self, state: State, carry: dict[str, Any]) -> dict[str, Any]:
        """The memory one control step later: another command where it is time."""
        if self.interval_s[1] == 0:
            return carry
        left = carry["left_s"] - state.scene.control_period_s
        fresh = self.initial_carry(state.key, state.level)
        return jax.tree.map(lambda a, b: jnp.where(left <= 0.0, a, b), fresh, {**carry, "left_s": left})


@dataclass(frozen=True, kw_only=True)
class UniformCommand(Command):
    """One element of any name, uniform in a range."""

    shorthand = "range"
    name: str = ""
    range: Annotated[Range, Bound(-1000, 1000, "[low, high] of a command in SI")] = (0.0, 0.0)

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        low, high = self.range
        return (CommandSpec(name=self.name, low=low, high=high, unit=UNITS.get(self.name, "")),)

    def sample(self, key: Any, level: Any) -> Any:
        value = jax.random.uniform(key, (1,), minval=self.range[0], maxval=self.range[1])
        return factor(self.scale, level) * value


@dataclass(frozen=True, kw_only=True)
class JoystickCommand(Command):
    """Velocity in the heading's frame and yaw rate, with standing and straight ahead as shares.

    Attributes:
        xvel: forward [m/s].
        yvel: to the left [m/s].
        yawrate: [rad/s].
        standing: share of the commands that are zero.
        straight: share of the others that have neither yvel nor yawrate.
    """

    xvel: Annotated[Range, Bound(-100, 100, "m/s")] = (-0.5, 1.0)
    yvel: Annotated[Range, Bound(-100, 100, "m/s")] = (-0.4, 0.4)
    yawrate: Annotated[Range, Bound(-100, 100, "rad/s")] = (-1.0, 1.0)
    standing: Annotated[float, Bound(0, 1, "a share")] = 0.15
    straight: Annotated[float, Bound(0, 1, "a share")] = 0.35

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        ranges = {"xvel": self.xvel, "yvel": self.yvel, "yawrate": self.yawrate}
        return tuple(CommandSpec(name=n, low=lo, high=hi, unit=UNITS[n]) for n, (lo, hi) in ranges.items())

    def sample(self, key: Any, level: Any) -> Any:
        unit = jax.random.uniform(key, (5,))
        ranges = jnp.asarray([self.xvel, self.yvel, self.yawrate], jnp.float32)
        value = ranges[:, 0] + unit[:3] * (ranges[:, 1] - ranges[:, 0])
        value = jnp.where(unit[3] < self.straight, value * jnp.asarray([1.0, 0.0, 0.0]), value)
        return factor(self.scale, level) * jnp.where(unit[4] < self.standing, 0.0, value)
