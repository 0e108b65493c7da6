"""A folder of SAGE: control.csv and state_motor.csv, lists in the order of joint_list.txt, times in microseconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploy.errors import LogError
from deploy.log.imports.mapping import Units
from deploy.log.imports.source import MAX_LINE, Garbage, Row, Source, require_file, require_names, vector
from toolkit.yaml_file import quote

CONTROL, STATE, JOINTS, EVENTS = "control.csv", "state_motor.csv", "joint_list.txt", "event.csv"
COLUMNS = {"velocities": "velocity", "torques": "torque"}


class SageFolder(Source):
    """A folder with a recorded motion. A state's target is the last command that is not later than it."""

    format: ClassVar[str] = "sage"
    units: ClassVar[Units] = Units(position="rad", velocity="rad/s", torque="N m", gyro="rad/s")
    stamps: ClassVar[str] = (
        "the recorder's own, one for a row of commands and one for a row of states; how long each call took is not told"
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        what = f"a folder of SAGE with {CONTROL}, {STATE} and {JOINTS}"
        if not path.is_dir():
            raise LogError(f"{path}: is no folder; expected {what}; name the folder")
        self._control, self._state = (require_file(path / n, f"{n} of {what}") for n in (CONTROL, STATE))
        joints = require_file(path / JOINTS, f"{JOINTS} of {what}")
        self.files = (self._control, self._state, joints)
        names = [line.strip() for line in joints.read_text(encoding="utf-8", errors="replace").splitlines()]
        self.joints = require_names(joints, [n for n in names if n], "joints")
        header = self._header(self._state, ("timestamp", "positions"))
        self._header(self._control, ("timestamp", "positions"))
        self.has = frozenset(["target", *(name for column, name in COLUMNS.items() if column in header)])
        if (path / EVENTS).is_file():
            self.files += (path / EVENTS,)
            with (path / EVENTS).open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    try:
                        self.events.append((_time_s(row), "source", str(row.get("event"))[:200]))
                    except ValueError:
                        continue

    def _header(self, path: Path, needed: tuple[str, ...]) -> list[str]:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            header = next(csv.reader(file), [])
        missing = [name for name in needed if name not in header]
        if missing:
            raise LogError(
                f"{path}: no column {', '.join(missing)}; expected {', '.join(needed)} as SAGE writes them; it has "
                f"{quote(', '.join(header), 100)}"
            )
        return header

    def rows(self) -> Iterator[Row | Garbage]:
        size = self._state.stat().st_size
        commands = self._read(self._control, {"positions": "target"})
        target, due = np.full(len(self.joints), np.nan), next(commands, None)
        with self._state.open("rb") as whole:
            for row in self._read(self._state, {"positions": "position"} | COLUMNS, whole):
                self.share = whole.tell() / size
                if isinstance(row, Garbage):
                    yield row
                    continue
                at, time_s, values = row
                while due is not None and (isinstance(due, Garbage) or due[1] <= time_s):
                    if isinstance(due, Garbage):
                        yield Garbage(line=due.line, reason=f"{CONTROL}: {due.reason}", cut=due.cut)
                    else:
                        target = due[2]["target"]
                    due = next(commands, None)
                yield Row(line=at, time_s=time_s, target=target, state_after_s=0.0, command_after_s=0.0, **values)

    def _read(
        self, path: Path, columns: dict[str, str], whole: Any = None
    ) -> Iterator[tuple[int, float, dict[str, Any]] | Garbage]:
        """(line, time [s], vectors by name) of each row of a file."""
        with path.open("rb") if whole is None else whole as file:
            reader = csv.DictReader(_text(file))
            while True:
                try:
                    row = next(reader)
                    values: dict[str, Any] = {}
                    for column, name in columns.items():
                        if name in self.has or name == "position":
                            values[name] = vector(_list(row.get(column), column), len(self.joints), column)
                    yield reader.line_num, _time_s(row), values
                except StopIteration:
                    return
                except (ValueError, csv.Error) as error:
                    yield Garbage(line=reader.line_num, reason=str(error)[:200])


def _text(file: Any) -> Iterator[str]:
    """Lines; reading one at a time lets the file say how far it is."""
    while line := file.readline(MAX_LINE):
        yield line.decode("utf-8", errors="replace").replace("\0", "?")


def _time_s(row: dict[str, Any]) -> float:
    try:
        micros = float(row.get("timestamp") or "")
    except (TypeError, ValueError):
        micros = np.nan
    if not np.isfinite(micros):
        raise ValueError(f"timestamp: got {quote(row.get('timestamp'), 40)}, expected microseconds")
    return micros * 1e-6


def _list(text: Any, column: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{column}: got {quote(text, 40)}, expected a list of numbers") from None
