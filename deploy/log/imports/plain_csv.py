"""A table with a row a sample: `time_s`, and columns `NAME.position`, `NAME.target`, `imu.gyro_x` and so on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploy.errors import LogError
from deploy.log.imports.mapping import Units
from deploy.log.imports.source import MAX_LINE, Garbage, Row, Source, require_file, require_names
from toolkit.settings import nearest
from toolkit.yaml_file import quote

TIME = "time_s"
JOINT = ("position", "target", "velocity", "torque")
IMU = {
    "quat_wxyz": ("quat_w", "quat_x", "quat_y", "quat_z"),
    "gyro_b": ("gyro_x", "gyro_y", "gyro_z"),
    "accel_b": ("accel_x", "accel_y", "accel_z"),
    "gravity_b": ("gravity_x", "gravity_y", "gravity_z"),
}
COMMAND = "command"


class PlainCsv(Source):
    """A CSV file with named columns."""

    format: ClassVar[str] = "csv"
    units: ClassVar[Units] = Units(position="rad", velocity="rad/s", torque="N m", gyro="rad/s")
    stamps: ClassVar[str] = "one time for the whole row, as the file has it"

    def __init__(self, path: Path, ignore: Sequence[str] = ()) -> None:
        super().__init__(path)
        what = f"a CSV table with {TIME} and NAME.position (docs/log_import.md)"
        self.files = (require_file(path, what),)
        with path.open("rb") as file:
            head = file.readline(MAX_LINE).decode("utf-8-sig", errors="replace")
        try:
            header = [name.strip() for name in next(csv.reader([head.replace("\0", "?")]), [])]
        except csv.Error as error:
            raise LogError(f"{path}: its header is not CSV ({error}); expected {what}") from error
        if TIME not in header:
            other = next((mark for mark in (";", "\t", "|") if mark in header[0]), "") if len(header) == 1 else ""
            hint = f"; it has {other!r} between columns: write it with commas" if other else ""
            raise LogError(f"{path}: no column {TIME} in {quote(', '.join(header), 100)}; expected {what}{hint}")
        header = list(require_names(path, header, "the header"))
        self._width, self._time = len(header), header.index(TIME)
        places: dict[str, dict[str, int]] = {kind: {} for kind in JOINT}
        imu: dict[str, int] = {}
        self._command: list[int] = []
        known_imu = [f"imu.{axis}" for axes in IMU.values() for axis in axes]
        for at, name in enumerate(header):
            joint, dot, kind = name.rpartition(".")
            if name == TIME or name in ignore or joint in ignore:
                continue
            if name in known_imu:
                imu[kind] = at
            elif name.startswith(f"{COMMAND}."):
                self._command.append(at)
                self.commands += (name.removeprefix(f"{COMMAND}."),)
            elif dot and joint and joint != "imu" and kind in JOINT:
                places[kind][joint] = at
            else:
                meant = known_imu if name.startswith("imu.") else [f"{joint or 'NAME'}.{k}" for k in JOINT]
                raise LogError(
                    f"{path}: column {quote(name, 100)} is unknown; {nearest(name, meant)}; rename it, or name it "
                    "under ignore in the map (--map)"
                )
        self.joints = tuple(places["position"])
        if not self.joints:
            raise LogError(f"{path}: no column NAME.position; expected {what}")
        alone = sorted({joint for kind in JOINT for joint in places[kind]} - set(self.joints))
        if alone:
            raise LogError(f"{path}: no column {alone[0]}.position; expected one for each joint that has others")
        self._joint = {
            kind: [(j, places[kind][name]) for j, name in enumerate(self.joints) if name in places[kind]]
            for kind in JOINT
            if places[kind]
        }
        self._imu: dict[str, list[int]] = {}
        for name, axes in IMU.items():
            there = [axis for axis in axes if axis in imu]
            if there and len(there) < len(axes):
                gone = next(axis for axis in axes if axis not in imu)
                raise LogError(f"{path}: no column imu.{gone}; expected all of {', '.join(axes)}, or none")
            if there:
                self._imu[name] = [imu[axis] for axis in axes]
        if "quat_wxyz" in self._imu and "gravity_b" in self._imu:
            raise LogError(f"{path}: both imu.quat_w and imu.gravity_x; expected one of the two; name one under ignore")
        self.has = frozenset([k for k in self._joint if k != "position"]) | frozenset(self._imu)
        self.has |= {COMMAND} if self._command else frozenset()

    def rows(self) -> Iterator[Row | Garbage]:
        size, (path,) = self.path.stat().st_size, self.files
        with path.open("rb") as file:
            file.readline(MAX_LINE)
            at = 1
            while line := file.readline(MAX_LINE):
                at, self.share = at + 1, file.tell() / size
                text = line.decode("utf-8", errors="replace").strip()
                if not text:
                    continue
                try:
                    yield self._row(at, text)
                except (ValueError, csv.Error) as error:
                    cut = not line.endswith(b"\n") and self.share >= 1
                    yield Garbage(line=at, reason="breaks off" if cut else str(error)[:200], cut=cut)

    def _row(self, at: int, text: str) -> Row:
        cells = next(csv.reader([text.replace("\0", "?")]))
        if len(cells) != self._width:
            raise ValueError(f"{len(cells)} cells, expected {self._width} as in the header")
        numbers = np.array([_number(cell) for cell in cells])
        if np.isnan(numbers[self._time]):
            raise ValueError(f"{TIME}: got {quote(cells[self._time], 40)}, expected a number")
        values: dict[str, Any] = {}
        for kind, places in self._joint.items():
            values[kind] = np.full(len(self.joints), np.nan)
            for j, place in places:
                values[kind][j] = numbers[place]
        values |= {name: numbers[places] for name, places in self._imu.items()}
        if self._command:
            values[COMMAND] = numbers[self._command]
        return Row(line=at, time_s=float(numbers[self._time]), state_after_s=0.0, command_after_s=0.0, **values)


def _number(cell: str) -> float:
    """NaN for an empty cell and for what is not finite."""
    if not cell.strip():
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"got {quote(cell, 40)}, expected a number or nothing") from None
    return value if np.isfinite(value) else np.nan
