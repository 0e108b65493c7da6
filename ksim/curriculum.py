"""How hard an environment is: a level from 0 to 1, what moves it, and what follows it.

A Curriculum moves the level after each update. A Scale turns the level into a factor: of a reward's weight, of noise,
of a randomisation, of a command's range, of a push.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import jax.numpy as jnp

from toolkit.settings import Bound, Settings

S = TypeVar("S", bound=Settings)

_FACTOR = Bound(-1e6, 1e6, "a factor")
# A `scale` brings what is drawn nearer to nothing: what it scales keeps its own bounds then.
SHARE = Bound(0, 1, "a share of the whole")
_LEVEL = Bound(0, 1, "a level")


@dataclass(frozen=True, kw_only=True)
class Scale(Settings, abc.ABC):
    """A factor that follows the curriculum's level; the bound of the field that it stands in holds for all of it."""

    @abc.abstractmethod
    def bounded(self) -> Mapping[str, float]:
        """Its least and its greatest factor, by the name of the field that says them."""

    @abc.abstractmethod
    def __call__(self, curriculum_level: Any) -> Any:
        """The factor at a level."""


@dataclass(frozen=True, kw_only=True)
class ConstantScale(Scale):
    """The same factor at every level."""

    value: Annotated[float, _FACTOR] = 1.0

    def bounded(self) -> Mapping[str, float]:
        return {"value": self.value}

    def __call__(self, curriculum_level: Any) -> Any:
        return jnp.asarray(self.value, jnp.float32)


@dataclass(frozen=True, kw_only=True)
class LinearScale(Scale):
    """From `low` at level `begin` to `high` at level `end`, constant outside."""

    low: Annotated[float, _FACTOR] = 0.0
    high: Annotated[float, _FACTOR] = 1.0
    begin: Annotated[float, _LEVEL] = 0.0
    end: Annotated[float, _LEVEL] = 1.0

    def check(self) -> None:
        self.require(self.begin < self.end, "begin", self.begin, f"below end ({self.end:g})")

    def bounded(self) -> Mapping[str, float]:
        return {"low": self.low, "high": self.high}

    def __call__(self, curriculum_level: Any) -> Any:
        share = jnp.clip((curriculum_level - self.begin) / (self.end - self.begin), 0.0, 1.0)
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True, kw_only=True)
class StepScale(Scale):
    """`before` below level `at`, `after` from there on."""

    before: Annotated[float, _FACTOR] = 0.0
    after: Annotated[float, _FACTOR] = 1.0
    at: Annotated[float, _LEVEL] = 0.5

    def bounded(self) -> Mapping[str, float]:
        return {"before": self.before, "after": self.after}

    def __call__(self, curriculum_level: Any) -> Any:
        return jnp.where(curriculum_level < self.at, self.before, self.after)


def at_level(settings: S, level: float) -> S:
    """Settings in which each Scale, however deep, is the number that it is at a level: a task that is always as hard.

    Args:
        settings: of a task or of a part of it.
        level: the curriculum's level, 0 to 1.
    """

    def fixed(value: Any) -> Any:
        if isinstance(value, Scale):
            return float(value(level))
        if isinstance(value, Settings):
            parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            changed = {name: new for name, part in parts.items() if (new := fixed(part)) is not part}
            return dataclasses.replace(value, **changed) if changed else value
        if isinstance(value, Mapping):
            return {name: fixed(part) for name, part in value.items()}
        return tuple(fixed(part) for part in value) if isinstance(value, tuple) else value

    return fixed(settings)


def factor(scale: float | Scale, level: Any) -> Any:
    """The factor of a field that is a number or a Scale."""
    return scale(level) if isinstance(scale, Scale) else jnp.asarray(scale, jnp.float32)


class Success(NamedTuple):
    """How the robot does, for a curriculum: averages over recent episodes.

    Attributes:
        survival: share of the episodes that lasted to the end.
        length_share: mean length as a share of the longest.
        distance_m: mean distance of the base from its start at the end [m].
        episode_return: mean sum of rewards.
        steps: control steps so far.
    """

    survival: float = 0.0
    length_share: float = 0.0
    distance_m: float = 0.0
    episode_return: float = 0.0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Curriculum(Settings, abc.ABC):
    """What moves the level.

    Attributes:
        first_level: the level at the start.
        easier: share by which an episode of training may be easier. Its robot, noise, delays and events are drawn as at
            a level of its own, uniformly between (1 - easier) of the level and the level. Rewards follow the level.
    """

    first_level: Annotated[float, _LEVEL] = 0.0
    easier: Annotated[float, SHARE] = 0.0

    @abc.abstractmethod
    def next_level(self, level: float, success: Success) -> float:
        """The level after one more update."""


def _moved(level: float, step: float, up: bool, down: bool) -> float:
    return min(1.0, max(0.0, level + step * (up - down)))


@dataclass(frozen=True, kw_only=True)
class FixedCurriculum(Curriculum):
    """Always the first level."""

    first_level: Annotated[float, _LEVEL] = 1.0

    def next_level(self, level: float, success: Success) -> float:
        return self.first_level


@dataclass(frozen=True, kw_only=True)
class SurvivalCurriculum(Curriculum):
    """Up while most episodes last to the end, down while few do.

    Whoever only stands survives too: `return_above` keeps the level until the task is done as well. It is the return of
    an episode that lasts to the end, so a fall does not count twice.
    """

    rise_above: Annotated[float, Bound(0, 1, "a share")] = 0.45
    fall_below: Annotated[float, Bound(0, 1, "a share")] = 0.15
    return_above: Annotated[float, Bound(-1e9, 1e9, "a sum of rewards of a whole episode")] = -1e9
    step: Annotated[float, Bound(0, 1, "a change of level at one update")] = 0.005

    def next_level(self, level: float, success: Success) -> float:
        whole = success.episode_return / max(success.length_share, 1e-3)
        up = success.survival > self.rise_above and whole > self.return_above
        return _moved(level, self.step, up, success.survival < self.fall_below)


@dataclass(frozen=True, kw_only=True)
class LinearCurriculum(Curriculum):
    """In proportion to the control steps done, 1 at `steps`."""

    steps: Annotated[int, Bound(1, 10**15, "control steps")] = 10_000_000

    def next_level(self, level: float, success: Success) -> float:
        return min(1.0, self.first_level + (1.0 - self.first_level) * success.steps / self.steps)


@dataclass(frozen=True, kw_only=True)
class EpisodeLengthCurriculum(Curriculum):
    """Up while episodes are long, down while they are short; shares of the longest."""

    rise_above: Annotated[float, Bound(0, 1, "a share")] = 0.8
    fall_below: Annotated[float, Bound(0, 1, "a share")] = 0.3
    step: Annotated[float, Bound(0, 1, "a change of level at one update")] = 0.005

    def next_level(self, level: float, success: Success) -> float:
        return _moved(level, self.step, success.length_share > self.rise_above, success.length_share < self.fall_below)


@dataclass(frozen=True, kw_only=True)
class DistanceCurriculum(Curriculum):
    """Up while episodes end far from their start, down while they end near it."""

    rise_above_m: Annotated[float, Bound(0, 1e6, "metres")] = 3.0
    fall_below_m: Annotated[float, Bound(0, 1e6, "metres")] = 1.0
    step: Annotated[float, Bound(0, 1, "a change of level at one update")] = 0.005

    def next_level(self, level: float, success: Success) -> float:
        far, near = success.distance_m > self.rise_above_m, success.distance_m < self.fall_below_m
        return _moved(level, self.step, far, near)


@dataclass(frozen=True, kw_only=True)
class SaturationCurriculum(Curriculum):
    """A whole step up when survival has reached `saturated`; never down. `levels` steps from first to last."""

    saturated: Annotated[float, Bound(0, 1, "a share")] = 0.9
    levels: Annotated[int, Bound(1, 10_000, "steps")] = 10

    def next_level(self, level: float, success: Success) -> float:
        return _moved(level, (1.0 - self.first_level) / self.levels, success.survival >= self.saturated, False)
