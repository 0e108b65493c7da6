"""What stands between a live source of commands and the policy: range, slew, silence. Arithmetic alone.

A command that is fixed or scheduled does not pass here. It is checked against the same ranges before the run, and given
exactly, because training switches from one command to the next in a step. What a hand or another program sends may
jump to and fro: so it is slewed as K-Scale's pyfirmware does it, 0.05 a tick at 50 Hz.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from deploy.bundle.preflight import command_vector
from deploy.bundle.session import UNKNOWN_RANGE
from robots.command_names import COMMAND_ALIASES
from robots.spec import CommandSpec, PolicySpec

# pyfirmware: 0.05 a tick, 50 ticks a second
SLEW_PER_S = 2.5
# pyfirmware's keyboard: the ends of the velocities [m/s, rad/s], and of all other commands
VELOCITY_MAX, OTHER_MAX = 0.8, 0.3
# from end to end of its range a command takes at least what a velocity takes from -0.8 to 0.8
END_TO_END_S = 2.0 * VELOCITY_MAX / SLEW_PER_S
SILENCE_S = 0.5
_VELOCITY_UNITS = ("m/s", "rad/s")
VELOCITIES = ("xvel", "yvel", "yawrate")


class ChangeKind(enum.Enum):
    """Why a command is not what was asked for."""

    RANGE = "range"
    SILENT = "silent"
    SLEW = "slew"


@dataclass(frozen=True, slots=True)
class Change:
    """One command that the guard changed."""

    command: str
    kind: ChangeKind
    wanted: float
    given: float


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the policy gets at a tick.

    Attributes:
        command: (commands,), float64.
        changes: where it is not what was asked for, and why.
        silent: the source said nothing for too long.
    """

    command: np.ndarray
    changes: tuple[Change, ...] = ()
    silent: bool = False


def keyboard_max(name: str) -> float:
    """How far pyfirmware's keyboard moves a command from 0."""
    return VELOCITY_MAX if COMMAND_ALIASES.get(name, name) in VELOCITIES else OTHER_MAX


def _range(command: CommandSpec) -> tuple[float, float]:
    """The range of training; where the bundle does not tell it, the keyboard's, or half a turn for the arms' joints."""
    if command.high - command.low < UNKNOWN_RANGE:
        return command.low, command.high
    name = COMMAND_ALIASES.get(command.name, command.name)
    end = keyboard_max(name) if name in VELOCITIES or name.startswith("base") else math.pi
    return max(command.low, -end), min(command.high, end)


@dataclass(frozen=True, kw_only=True)
class CommandGuard:
    """Clamps, slews, and brings to rest what a silent source last asked for.

    Attributes:
        names: the commands, in the policy's order.
        low, high: the range of training (commands,).
        rest: 0, or the end of the range next to 0 (commands,).
        slew_per_s: how fast each may change, in its unit a second (commands,).
        silence_s: a source that says nothing for longer is silent [s].
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    rest: np.ndarray
    slew_per_s: np.ndarray
    silence_s: float = SILENCE_S

    @classmethod
    def from_spec(cls, spec: PolicySpec) -> Self:
        """The ranges of a policy. A velocity changes by 2.5 m/s or rad/s a second at most, another command by its
        range in 0.64 s, and by 2.5 at most.
        """
        low, high = np.array([_range(c) for c in spec.commands], dtype=float).reshape(-1, 2).T
        slew = np.minimum(SLEW_PER_S, (high - low) / END_TO_END_S)
        slew[[c.unit in _VELOCITY_UNITS for c in spec.commands]] = SLEW_PER_S
        return cls(names=spec.command_names, low=low, high=high, rest=command_vector(spec, {}), slew_per_s=slew)

    def apply(self, before: np.ndarray, wanted: np.ndarray, age_s: float, dt_s: float) -> Guarded:
        """The command of a tick.

        Args:
            before: that of the tick before (commands,).
            wanted: what the source asked for last (commands,); what is not finite is taken as rest.
            age_s: how long ago.
            dt_s: time since the tick before.
        """
        silent = not age_s <= self.silence_s
        clipped = np.clip(np.where(np.isfinite(wanted), wanted, self.rest), self.low, self.high)
        goal = self.rest if silent else clipped
        most = self.slew_per_s * dt_s
        given = np.clip(goal, before - most, before + most)
        changes = []
        for i in np.flatnonzero(given != wanted):
            if clipped[i] != wanted[i]:
                kind = ChangeKind.RANGE
            elif silent and goal[i] != wanted[i]:
                kind = ChangeKind.SILENT
            else:
                kind = ChangeKind.SLEW
            changes.append(Change(self.names[i], kind, float(wanted[i]), float(given[i])))
        return Guarded(given, tuple(changes), silent)
