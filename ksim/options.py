"""What the options of the commands of ksim have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ksim.errors import ConfigError
from toolkit.cli import Option
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings

SEED_MAX = 2**32 - 1
SEED = Bound(0, SEED_MAX, "a seed")


@dataclass(frozen=True, kw_only=True)
class KsimOptions(Settings):
    """Options whose errors are those of ksim."""

    error: ClassVar[type[SettingsError]] = ConfigError


@dataclass(frozen=True, kw_only=True)
class ShownPolicy(KsimOptions):
    """Options of a policy that may stand alone or be named; `checkpoint` then holds it."""

    policy: Annotated[str | None, Option("a .ckpt, a .kinfer, or the word 'home': the PD hold", positional=True)] = None
    checkpoint: Annotated[str | None, Option("the same, named", metavar="POLICY")] = None

    def check(self) -> None:
        one = self.policy is None or self.checkpoint in (None, self.policy)
        self.require(one, "checkpoint", self.checkpoint, f"one policy; {self.policy} is one already")
        if self.policy is not None:
            object.__setattr__(self, "checkpoint", self.policy)
