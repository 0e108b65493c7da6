"""kinfer_log.ndjson, which K-Scale's own runtime leaves behind: a JSON object a line, the policy's joints only.

A tick of it reads the joints, then the IMU, then runs the policy, then puts the targets on the bus and reads the
motors' answers; the dt_* figures are how long each took. A joint whose motor does not answer keeps its last reading.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from deploy.errors import LogError
from deploy.log.imports.mapping import Units
from deploy.log.imports.source import MAX_LINE, Garbage, Row, Source, number, require_file, require_names, vector
from toolkit.yaml_file import quote

NAME = "kinfer_log.ndjson"
# A first row that can be used is looked for in so many lines.
HEAD_LINES = 100
VECTORS = {"joint_angles": "position", "joint_velocities": "velocity", "joint_torques": "torque", "action": "target"}
IMU = {"projected_gravity": "gravity_b", "gyroscope": "gyro_b"}
STAGES = {
    "dt_joints_ms": "joints", "dt_imu_ms": "imu", "dt_keyboard_ms": "keyboard", "dt_step_ms": "step",
    "dt_action_ms": "action", "dt_flush_can_busses_ms": "flush_can_busses", "dt_roundtrip_ms": "roundtrip",
    "dt_ms": "tick",
}  # fmt: skip
# What it sets on a K-Bot whatever the policy was trained with, where that is not what metadata.json says:
# (kp [N m/rad], kd [N m s/rad]) as of October 2025.
GAINS = {
    "dof_left_shoulder_yaw_02": (100.0, 2.945), "dof_right_shoulder_yaw_02": (100.0, 2.945),
    "dof_left_elbow_02": (80.0, 2.266), "dof_right_elbow_02": (100.0, 2.266),
}  # fmt: skip


class PyfirmwareLog(Source):
    """A kinfer_log.ndjson, or the folder that it is in."""

    format: ClassVar[str] = "pyfirmware"
    units: ClassVar[Units] = Units(position="rad", velocity="rad/s", torque="N m", gyro="rad/s")
    default_robot: ClassVar[str] = "kbot"
    policy: ClassVar[bool] = True
    told_repeats: ClassVar[bool] = True
    stamps: ClassVar[str] = (
        "a row's time is the start of its tick; state: after dt_joints and dt_imu; command: from the start of "
        "dt_action to the end of dt_flush_can_busses"
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = require_file(path / NAME if (path / NAME).is_file() else path, f"a {NAME} of pyfirmware")
        self.files = (self._file,)
        self.period_s = 0.02
        why = ""
        with self._file.open("rb") as file:
            for at, line in itertools.islice(_lines(file), HEAD_LINES):
                try:
                    data = _object(line)
                    break
                except ValueError as error:
                    why = why or f"line {at}: {error}"
            else:
                raise LogError(f"{self._file}: {why}; expected a JSON object a line, as pyfirmware writes it")
        self.joints = require_names(self._file, data.get("joint_order"), "joint_order")
        self._stages = {key: name for key, name in STAGES.items() if key in data}
        self.stages = tuple(self._stages.values())
        self.has = frozenset(
            [name for key, name in (VECTORS | IMU).items() if name != "position" and data.get(key) is not None]
            + (["command"] if data.get("command") else [])
        )
        command = data.get("command")
        if isinstance(command, dict) and command:
            self.commands = require_names(self._file, list(command), "command")
        elif isinstance(command, list):
            self.commands = tuple(f"command_{k}" for k in range(len(command)))

    def rows(self) -> Iterator[Row | Garbage]:
        size = self._file.stat().st_size
        with self._file.open("rb") as file:
            for at, line in _lines(file):
                self.share = file.tell() / size
                try:
                    yield self._row(at, _object(line))
                except ValueError as error:
                    cut = not line.endswith(b"\n") and self.share >= 1
                    yield Garbage(line=at, reason="breaks off" if cut else str(error), cut=cut)

    def _row(self, at: int, data: dict[str, Any]) -> Row:
        order = data.get("joint_order")
        places: list[int] | None = None
        if order != list(self.joints):
            if not isinstance(order, list):
                raise ValueError(f"joint_order: got {quote(order, 40)}, expected a list of names")
            if sorted(map(str, order)) != sorted(self.joints):
                odd = sorted({str(name) for name in order} ^ set(self.joints)) or ["one twice"]
                raise LogError(
                    f"{self._file}: line {at}: joint_order changes: got {len(order)} joints, expected the "
                    f"{len(self.joints)} of the first line; apart in {quote(', '.join(odd), 100)}; cut the file there"
                )
            places = [order.index(name) for name in self.joints]
        values: dict[str, Any] = {}
        for key, name in VECTORS.items():
            if name == "position" or name in self.has:
                found = vector(data.get(key), len(self.joints), key)
                values[name] = found if places is None else found[places]
        values |= {name: vector(data.get(key), 3, key) for key, name in IMU.items() if name in self.has}
        if "command" in self.has:
            command = data.get("command")
            if isinstance(command, dict):
                command = [command.get(name) for name in self.commands]
            values["command"] = vector(command, len(self.commands), "command")
        told = data.get("joint_temps")
        if isinstance(told, list) and len(told) == len(self.joints):
            found = np.array([_or_nan(t) for t in told])
            values["temperature"] = found if places is None else found[places]
        stages = {name: _or_nan(data.get(key)) for key, name in self._stages.items()}
        state = 1e-3 * (stages.get("joints", np.nan) + stages.get("imu", 0.0))
        trip = 1e-3 * (stages.get("action", np.nan) + stages.get("flush_can_busses", 0.0))
        step = data.get("step_id")
        return Row(
            line=at,
            time_s=number(data.get("timestamp"), "timestamp"),
            number=step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**31 else None,
            stages_ms=stages,
            state_after_s=state,
            state_trip_s=state,
            command_after_s=1e-3 * (stages.get("roundtrip", np.nan) + stages.get("flush_can_busses", 0.0)),
            command_trip_s=trip,
            **values,
        )


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of those with something in them; of one that is too long its beginning, no JSON."""
    at = 0
    while line := file.readline(MAX_LINE):
        at += 1
        while len(line) == MAX_LINE and not line.endswith(b"\n") and (more := file.readline(MAX_LINE)):
            if more.endswith(b"\n"):
                break
        if line.strip():
            yield at, line


def _or_nan(value: Any) -> float:
    """A number; NaN where there is none."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else np.nan


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else " ".join(str(error).split())[:80]
        raise ValueError(f"not JSON ({reason})") from error
    if not isinstance(data, dict):
        raise ValueError(f"got {type(data).__name__}, expected a JSON object")
    return data
