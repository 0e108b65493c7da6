"""Noise and bias of an observation, as parts that can be chained."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ksim.curriculum import SHARE, Scale, factor
from ksim.term import fold
from toolkit.settings import Bound, Settings

_SIZE = Bound(0, 10_000, "the observation's unit")
_SHARE = Bound(0, 100, "a share")


class Draw(NamedTuple):
    """Where noise takes its numbers from.

    Attributes:
        key: new for every packet.
        episode_key: fixed for an episode.
        level: the curriculum's level.
    """

    key: Any
    episode_key: Any
    level: Any


@dataclass(frozen=True, kw_only=True)
class Noise(Settings, abc.ABC):
    """What a sensor adds to the truth; `scale` may follow the curriculum."""

    scale: Annotated[float | Scale, SHARE] = 1.0

    @abc.abstractmethod
    def disturb(self, value: Any, draw: Draw) -> Any:
        """The value with noise."""

    def _unit(self, key: Any, value: Any) -> Any:
        return jax.random.uniform(key, jnp.shape(value), minval=-1.0, maxval=1.0)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Noise):
    """Additive white noise of a standard deviation."""

    std: Annotated[float, _SIZE] = 0.0

    def disturb(self, value: Any, draw: Draw) -> Any:
        return value + factor(self.scale, draw.level) * self.std * jax.random.normal(draw.key, jnp.shape(value))


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Noise):
    """Additive white noise between minus and plus a width."""

    width: Annotated[float, _SIZE] = 0.0

    def disturb(self, value: Any, draw: Draw) -> Any:
        return value + factor(self.scale, draw.level) * self.width * self._unit(draw.key, value)


@dataclass(frozen=True, kw_only=True)
class MultiplicativeNoise(Noise):
    """Each element times a factor about 1, new for every packet."""

    width: Annotated[float, _SHARE] = 0.0

    def disturb(self, value: Any, draw: Draw) -> Any:
        return value * (1.0 + factor(self.scale, draw.level) * self.width * self._unit(draw.key, value))


@dataclass(frozen=True, kw_only=True)
class EpisodeBias(Noise):
    """Additive, between minus and plus a width, fixed for an episode."""

    width: Annotated[float, _SIZE] = 0.0

    def disturb(self, value: Any, draw: Draw) -> Any:
        return value + factor(self.scale, draw.level) * self.width * self._unit(draw.episode_key, value)


@dataclass(frozen=True, kw_only=True)
class EpisodeGain(Noise):
    """Each element times a factor about 1, fixed for an episode."""

    width: Annotated[float, _SHARE] = 0.0

    def disturb(self, value: Any, draw: Draw) -> Any:
        return value * (1.0 + factor(self.scale, draw.level) * self.width * self._unit(draw.episode_key, value))


@dataclass(frozen=True, kw_only=True)
class ChainedNoise(Noise):
    """One after the other; each with random numbers of its own."""

    parts: tuple[Noise, ...] = ()

    def disturb(self, value: Any, draw: Draw) -> Any:
        disturbed = value
        for place, part in enumerate(self.parts):
            name = f"{place}"
            own = Draw(fold(draw.key, name), fold(draw.episode_key, name), draw.level)
            disturbed = part.disturb(disturbed, own)
        return value + factor(self.scale, draw.level) * (disturbed - value)
