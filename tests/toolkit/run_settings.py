"""Settings of every kind, which the tests of the settings are about."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from toolkit.errors import SettingsError
from toolkit.settings import Bound, Range, Settings, apply_overrides


@dataclass(frozen=True, kw_only=True)
class Noise(Settings):
    """A base that nobody makes."""

    @abc.abstractmethod
    def spread(self) -> float:
        """How wide."""


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Noise):
    """Bell."""

    std: Annotated[float, Bound(0, 10, "rad")] = 0.1

    def spread(self) -> float:
        return self.std


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Noise):
    """Box."""

    span: Annotated[Range, Bound(-10, 10, "rad")] = (-1.0, 1.0)

    def spread(self) -> float:
        return self.span[1] - self.span[0]


@dataclass(frozen=True, kw_only=True)
class ChainedNoise(Noise):
    """One after the other."""

    parts: tuple[Noise, ...] = ()

    def spread(self) -> float:
        return sum(part.spread() for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Reward(Settings):
    """A term that can be made itself, and has kinds."""

    weight: Annotated[float, Bound(-1000, 1000, "a weight")] = 1.0
    shorthand: ClassVar[str] = "weight"


@dataclass(frozen=True, kw_only=True)
class AirTime(Reward):
    """A kind with a field of its own."""

    threshold_s: Annotated[float, Bound(0, 10, "seconds")] = 0.4


@dataclass(frozen=True, kw_only=True)
class Ppo(Settings):
    """A section with a rule across fields."""

    envs: Annotated[int, Bound(1, 131_072, "environments")] = 256
    minibatches: Annotated[int, Bound(1, 131_072, "minibatches")] = 4
    rate: Annotated[float, Bound(0, 1, "a step size")] = 5e-4
    # a section of the whole has this name too
    noise_std: float = 0.0

    def check(self) -> None:
        self.require(self.envs % self.minibatches == 0, "envs", self.envs, "a multiple of minibatches")


def _terms() -> dict[str, Reward]:
    return {"alive": Reward(), "air_time": AirTime(weight=0.5)}


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """The whole."""

    task: str = "stand"
    name: Annotated[str, Bound(0, 8, "characters")] = ""
    engine: Literal["auto", "mujoco", "mjx"] = "auto"
    seed: Annotated[int, Bound(0, 2**32 - 1, "a seed")] = 0
    fast: bool = False
    limit_s: Annotated[float, Bound(0, math.inf, "seconds")] = math.inf
    scale: Annotated[float | dict[str, float], Bound(0, 100, "a factor")] = 1.0
    hold: tuple[str, ...] = ()
    sizes: tuple[Annotated[int, Bound(1, 64, "units")], ...] = (8, 8)
    folder: Path = Path("runs")
    duration_s: Annotated[Range, Bound(0, 3600, "seconds")] = (0.1, 0.5)
    commands: Annotated[dict[str, Range], Bound(-10, 10, "m/s")] = field(default_factory=lambda: {"vx": (0.0, 0.0)})
    words: dict[str, str] = field(default_factory=dict)
    ppo: Ppo = Ppo(envs=128)
    noise: Noise = GaussianNoise()
    extra: Noise | None = None
    rewards: dict[str, Reward] = field(default_factory=_terms)
    cache: list[int] = field(default_factory=list, metadata={"plain": False}, compare=False)


@dataclass(frozen=True, kw_only=True)
class Sums(Settings):
    """Has a required field and counts how often it is checked."""

    name: str
    parts: tuple[float, ...] = ()
    checked: ClassVar[int] = 0

    def check(self) -> None:
        type(self).checked += 1
        self.require(sum(self.parts) <= 1, "parts", self.parts, "a sum of at most 1")


RUN = Run()


def refused(overrides: list[str] | str, settings: Settings = RUN) -> str:
    """The one line about overrides that are refused."""
    with pytest.raises(SettingsError) as caught:
        apply_overrides(settings, [overrides] if isinstance(overrides, str) else overrides)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text
