"""How a target moves from one pose to another: without a jump in speed or acceleration."""

from __future__ import annotations


def smooth(share: float) -> float:
    """Minimum-jerk profile from 0 to 1: speed and acceleration are 0 at both ends."""
    s = min(max(share, 0.0), 1.0)
    return s * s * s * (10.0 + s * (6.0 * s - 15.0))
