"""Commands over time: one command for a whole run, or a schedule from a YAML or CSV file.

They are given exactly, without slew: training switches from one command to the next in a step. Nothing here falls
silent. What the policy was not trained for is refused before the run.
"""

from __future__ import annotations

import csv
import io
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.preflight import command_vector
from deploy.control.commands.source import CommandSource
from deploy.errors import CheckError
from robots.spec import PolicySpec
from toolkit.yaml_file import YamlError, read_yaml

AT = "at_s"
_EXPECTED = f"a YAML list of commands, such as `- {{{AT}: 2, xvel: 0.4}}`"
_EXPECTED_CSV = f"a CSV file with a header such as `{AT},xvel,yawrate`, and a line for each command"
CSV_MAX_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Schedule(CommandSource):
    """What is asked of the policy, and from when on.

    Attributes:
        begins_s: when each command begins, from the policy's first tick, rising, the first at 0 [s].
        commands: them, (k, commands).
        kind: "schedule", or "command" for one that stays.
    """

    begins_s: tuple[float, ...]
    commands: np.ndarray
    kind: str = "schedule"

    @classmethod
    def constant(cls, command: np.ndarray) -> Schedule:
        """The same command (commands,) all the time."""
        return cls(begins_s=(0.0,), commands=np.asarray(command)[None], kind="command")

    def at(self, time_s: float) -> np.ndarray:
        """The command at a time since the policy's first tick, (commands,)."""
        # half a nanosecond: sums of periods fall short of round times
        return self.commands[max(bisect_right(self.begins_s, time_s + 5e-10) - 1, 0)]

    def to_list(self, names: Sequence[str]) -> list[dict[str, float]]:
        """As the file has it, with every command named."""
        rows = zip(self.begins_s, self.commands.tolist(), strict=True)
        return [{AT: at, **dict(zip(names, row, strict=True))} for at, row in rows]


def read_schedule(path: str | Path, spec: PolicySpec) -> Schedule:
    """A schedule from a CSV file, if its name ends in .csv, or a YAML file; what an entry does not name is 0, or the
    end of its range next to 0.

    Raises:
        CheckError: the file cannot be read, is no schedule, or asks for what the policy was not trained for.
    """
    rows = _csv_rows(Path(path)) if Path(path).suffix.lower() == ".csv" else _yaml_rows(path)
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


def _yaml_rows(path: str | Path) -> list[Mapping[str, Any]]:
    try:
        rows = read_yaml(path, _EXPECTED)
    except YamlError as error:
        raise CheckError(str(error)) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise CheckError(f"{path}: got {type(rows).__name__}, expected {_EXPECTED}")
    return rows


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """One dict a line, without its empty cells; a cell that is no number stays text."""
    try:
        with path.open("rb") as file:
            data = file.read(CSV_MAX_BYTES + 1)
        if len(data) > CSV_MAX_BYTES:
            raise CheckError(f"{path}: more than {CSV_MAX_BYTES} bytes; expected {_EXPECTED_CSV}")
        lines = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(data.decode("utf-8-sig")))]
    except (OSError, ValueError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckError(f"{path}: cannot read it ({reason}); expected {_EXPECTED_CSV}") from error
    header, *rows = [row for row in lines if any(row)] or [[]]
    if AT not in header or not all(header) or len(set(header)) < len(header) or not rows:
        raise CheckError(
            f"{path}: got the header {','.join(header)!r:.80} and {len(rows)} lines, expected {_EXPECTED_CSV}"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise CheckError(f"{path}: entry {number}: {len(row)} cells, expected {len(header)} as in the header")
    return [{name: _cell(cell) for name, cell in zip(header, row, strict=True) if cell} for row in rows]


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise CheckError(f"{where}: {name}: got {value!r:.60}, expected a number")
    return float(value)
