"""Commands over time: one command for a whole run, or a schedule from a YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.preflight import command_vector
from deploy.errors import CheckError
from robots.spec import PolicySpec
from toolkit.yaml_file import YamlError, read_yaml

AT = "at_s"
_EXPECTED = f"a YAML list of commands, such as `- {{{AT}: 2, xvel: 0.4}}`"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is asked of the policy, and from when on.

    Attributes:
        begins_s: when each command begins, from the policy's first tick, rising, the first at 0 [s].
        commands: them, (k, commands).
    """

    begins_s: tuple[float, ...]
    commands: np.ndarray

    @classmethod
    def constant(cls, command: np.ndarray) -> Schedule:
        """The same command (commands,) all the time."""
        return cls(begins_s=(0.0,), commands=np.asarray(command)[None])

    def at(self, time_s: float) -> np.ndarray:
        """The command at a time since the policy's first tick, (commands,)."""
        # half a nanosecond: sums of periods fall short of round times
        place = int(np.searchsorted(self.begins_s, time_s + 5e-10, side="right")) - 1
        return self.commands[max(place, 0)]

    def to_list(self, names: Sequence[str]) -> list[dict[str, float]]:
        """As the file has it, with every command named."""
        rows = zip(self.begins_s, self.commands.tolist(), strict=True)
        return [{AT: at, **dict(zip(names, row, strict=True))} for at, row in rows]


def read_schedule(path: str | Path, spec: PolicySpec) -> Schedule:
    """A schedule from a YAML file; what an entry does not name is 0, or the end of its range next to 0.

    Raises:
        CheckError: the file cannot be read, is no schedule, or asks for what the policy was not trained for.
    """
    try:
        rows = read_yaml(path, _EXPECTED)
    except YamlError as error:
        raise CheckError(str(error)) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise CheckError(f"{path}: got {type(rows).__name__}, expected {_EXPECTED}")
    begins, commands = [], []
    for number, row in enumerate(rows, 1):
        where = f"{path}: entry {number}"
        begin = _number(where, AT, row.get(AT))
        if begins and not begin > begins[-1]:
            raise CheckError(f"{where}: {AT} {begin:g}: expected more than {begins[-1]:g}, that of the entry before")
        if not begins and begin != 0:
            raise CheckError(f"{where}: {AT} {begin:g}: expected 0 in the first entry")
        values = {str(name): _number(where, str(name), value) for name, value in row.items() if name != AT}
        try:
            commands.append(command_vector(spec, values))
        except CheckError as error:
            raise CheckError(f"{where}: {str(error).removeprefix('--command ')}") from error
        begins.append(begin)
    return Schedule(begins_s=tuple(begins), commands=np.stack(commands))


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckError(f"{where}: {name}: got {value!r:.60}, expected a number")
    return float(value)
