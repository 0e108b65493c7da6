"""The options that `ksim export` and `ksim validate` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from toolkit.cli import Option
from toolkit.settings import Bound, Settings

EPISODES = 200
STEPS = 10_000
MARGIN_EPISODES = 32


@dataclass(frozen=True, kw_only=True)
class ProofOptions(Settings):
    """How much is proven, and how the answer is given."""

    episodes: Annotated[int, Option("closed-loop episodes of each form"), Bound(1, 100_000, "episodes")] = EPISODES
    engines: Annotated[
        str,
        Option("engines of the closed loop: mujoco, or mujoco,mjx; MJX takes long without a GPU", metavar="NAMES"),
    ] = "mujoco"
    mjx_episodes: Annotated[
        int | None, Option("the same in MJX (default: as --episodes)", metavar="N"), Bound(1, 100_000, "episodes")
    ] = None
    steps: Annotated[int, Option("length of each sequence of inputs"), Bound(1, 10_000_000, "steps")] = STEPS
    margin_episodes: Annotated[
        int,
        Option("episodes of each value of the margins; 0: do not measure them", metavar="N"),
        Bound(0, 10_000, "episodes"),
    ] = MARGIN_EPISODES
    seed: Annotated[int, Option("seed of the simulation"), Bound(0, 2**32 - 1, "a seed")] = 1
    json: Annotated[bool, Option("print one JSON object")] = False

    def arguments(self) -> dict[str, Any]:
        """As arguments of `validate`."""
        engines = tuple(dict.fromkeys(name for name in self.engines.split(",") if name))
        return {
            "episodes": self.episodes,
            "mjx_episodes": self.mjx_episodes,
            "engines": engines,
            "margin_episodes": self.margin_episodes,
            "seed": self.seed,
            "steps": self.steps,
        }
