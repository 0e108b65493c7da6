"""What every term is: a frozen, typed settings class whose method is the arithmetic."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import jax

from toolkit.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Term(Settings):
    """A part of a task. Its fields are what a YAML file and `--set` may change."""

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that it asks of the model, as robots.model.build_model names them."""
        return ()

    @property
    def fields(self) -> tuple[str, ...]:
        """MjModel fields that it varies."""
        return ()


def fold(key: Any, name: str) -> Any:
    """A key of a term's own: another term that comes or goes changes none of its draws."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
