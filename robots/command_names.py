"""Command names: K-Scale's, which its keyboard and its UDP sender use, and older ones of ours for the same."""

from __future__ import annotations

from collections.abc import Sequence

COMMAND_ALIASES = {"vx": "xvel", "vy": "yvel", "yaw_rate": "yawrate", "height": "baseheight"}


def known_as(name: str, known: Sequence[str]) -> str:
    """The name among `known` that means the same; the name itself where there is none."""
    if name in known:
        return name
    newer = COMMAND_ALIASES.get(name, name)
    others = [newer, *(old for old, new in COMMAND_ALIASES.items() if new == newer)]
    return next((other for other in others if other in known), name)
