"""What the options of the commands of ksim have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ksim.errors import ConfigError
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings

SEED_MAX = 2**32 - 1
SEED = Bound(0, SEED_MAX, "a seed")


@dataclass(frozen=True, kw_only=True)
class KsimOptions(Settings):
    """Options whose errors are those of ksim."""

    error: ClassVar[type[SettingsError]] = ConfigError
