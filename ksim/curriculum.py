"""How hard an environment is: a level from 0 to 1 that follows the robot's success.

The level scales the pushes (ksim/events.py) and the randomisation drawn at a reset (ksim/environment.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LevelCurriculum:
    """The level rises while most episodes last to the end, and falls while few do.

    Attributes:
        enabled: off means level 1 from the start.
        rise_above: survival above which the level rises.
        fall_below: survival below which it falls.
        step: change of the level at one update.
    """

    enabled: bool = True
    rise_above: float = 0.45
    fall_below: float = 0.15
    step: float = 0.005

    def start(self) -> float:
        """The level at the start of training."""
        return 0.0 if self.enabled else 1.0

    def __call__(self, level: float, survival: float) -> float:
        """The next level, from the share of recent episodes that lasted to the end."""
        if not self.enabled:
            return 1.0
        change = self.step * ((survival > self.rise_above) - (survival < self.fall_below))
        return min(1.0, max(0.0, level + change))
