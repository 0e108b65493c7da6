"""Numbers as a person writes them."""

from __future__ import annotations


def count(number: int, word: str) -> str:
    """So many of something: "1 motion", "2 motions", "1,000 motions"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
