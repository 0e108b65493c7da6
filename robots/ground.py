"""Uneven ground: a height field of bumps on hills, in place of a flat floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from toolkit.settings import Bound, Settings

# Side of the square [m], and of its cells [m].
SIDE_M, CELL_M = 48.0, 0.1
# About the middle it is flat out to here, and wholly itself from there on [m]: a robot starts on its own feet.
FLAT_M, WHOLE_M = 0.6, 1.6


@dataclass(frozen=True, kw_only=True)
class Ground(Settings):
    """How uneven the ground is.

    Attributes:
        bumps_m: bumps are this much above or below the hills at most [m].
        bump_size_m: how far it is from bump to bump, about [m].
        slope_rad: greatest slope of the hills [rad].
        hill_size_m: length of a hill from top to top [m].
        seed: of the bumps and the hills.
    """

    bumps_m: Annotated[float, Bound(0, 1, "metres")] = 0.03
    bump_size_m: Annotated[float, Bound(0.2, 10, "metres")] = 0.4
    slope_rad: Annotated[float, Bound(0, 0.7, "radians")] = 0.0873
    hill_size_m: Annotated[float, Bound(1, 40, "metres")] = 6.0
    seed: Annotated[int, Bound(0, 2**32 - 1, "a seed")] = 0

    def heights(self) -> np.ndarray:
        """Heights of the corners of the cells [m], (rows along y, columns along x); 0 in the middle."""
        cells = round(SIDE_M / CELL_M)
        along = (np.arange(cells + 1) / cells - 0.5) * SIDE_M
        x, y = np.meshgrid(along, along)
        rng = np.random.default_rng(self.seed)
        turn, *phase = rng.uniform(0.0, 2.0 * np.pi, 3)
        wave = 2.0 * np.pi / self.hill_size_m
        # two waves across each other, whose slopes add up to the greatest where both are steepest
        high = np.tan(self.slope_rad) / wave / np.sqrt(2.0)
        u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        hills = high * (np.sin(wave * u + phase[0]) + np.sin(wave * v + phase[1]))
        knots = round(SIDE_M / self.bump_size_m)
        rough = rng.uniform(-self.bumps_m, self.bumps_m, (knots + 1, knots + 1))
        share = np.clip((np.hypot(x, y) - FLAT_M) / (WHOLE_M - FLAT_M), 0.0, 1.0)
        return share * (hills + _between(rough, cells + 1))


def _between(knots: np.ndarray, size: int) -> np.ndarray:
    """A square of values, spread evenly over `size` points a side: linear between them, so nowhere beyond them."""
    at = np.linspace(0.0, len(knots) - 1.0, size)
    known = np.arange(len(knots))
    rows = np.stack([np.interp(at, known, row) for row in knots])
    return np.stack([np.interp(at, known, column) for column in rows.T]).T
