"""Rows of another program's log as ticks of ours, and what was seen on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.log.imports.check import Turning
from deploy.log.imports.mapping import Conversion
from deploy.log.imports.source import Row, Source
from deploy.log.tick import Tick
from robots.inputs import ACCELEROMETER, GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.rotation import GRAVITY_M_S2, from_up, up_in_frame

# A row that comes later than this many periods after the one before leaves a gap.
GAP_PERIODS = 2.5
# A joint that keeps its reading over so many rows or more is an event.
STUCK_ROWS = 5
# The vertical part of "up" in the IMU's frame: below this the robot stands on its head, whichever way it leans.
UPSIDE_DOWN = -0.5
# Events of one kind that are kept; the rest are counted.
EVENTS_MAX = 100


@dataclass(kw_only=True)
class Seen:
    """What was seen in the rows.

    Attributes:
        rows: how many became ticks.
        gaps: how many, and the longest [s].
        longest_gap_s: 0 where there is none.
        missing: values that are not numbers, by quantity.
        repeated: rows in which a joint, or `imu`, told the bits of the row before, by its name.
        gravity_off: rows whose gravity is not within a tenth of 9.81 m/s^2.
        upside_down: rows in which the robot would stand on its head.
        turning: gyro against orientation.
        events: (time [s], kind, message).
    """

    rows: int = 0
    gaps: int = 0
    longest_gap_s: float = 0.0
    missing: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    gravity_off: int = 0
    upside_down: int = 0
    turning: Turning = field(default_factory=Turning)
    events: list[tuple[float, str, str]] = field(default_factory=list)
    _told: Counter[str] = field(default_factory=Counter)

    def event(self, at_s: float, kind: str, message: str) -> None:
        """Keep an event, unless there are many of its kind."""
        self._told[kind] += 1
        if self._told[kind] <= EVENTS_MAX:
            self.events.append((at_s, kind, message))
        elif self._told[kind] == EVENTS_MAX + 1:
            self.events.append((at_s, kind, f"more of these are counted alone; the first {EVENTS_MAX} are listed"))


class Ticks:
    """Makes a tick of each row, in order.

    Args:
        source: the log.
        conversion: its map, resolved.
        period_s: nominal [s].
        zero_s: the time that becomes 0 [s].
        inputs: names of the policy's inputs in the log.
        commands: places of the command's elements in the file's, in the order of the log.
    """

    def __init__(
        self,
        source: Source,
        conversion: Conversion,
        *,
        period_s: float,
        zero_s: float,
        inputs: Collection[str],
        commands: list[int],
    ) -> None:
        self._source, self._conversion = source, conversion
        self._period_s, self._zero_s, self._given, self._commands = period_s, zero_s, inputs, commands
        self._number = -1
        self._last: Row | None = None
        self._stuck = np.zeros(len(conversion.columns), dtype=int)
        self._none = np.full(len(conversion.columns), np.nan)
        self.seen = Seen()

    def _angle(self, values: np.ndarray | None) -> np.ndarray:
        found = self._conversion
        return self._none if values is None else values[found.columns] * found.factor + found.offset

    def _times(self, values: np.ndarray | None, factor: np.ndarray | None) -> np.ndarray:
        return self._none if values is None or factor is None else values[self._conversion.columns] * factor

    def _count(self, row: Row, start_s: float) -> None:
        """Gap and number since the row before."""
        last, seen = self._last, self.seen
        steps = 1
        if last is not None:
            since = row.time_s - last.time_s
            steps = max(1, round(since / self._period_s))
            if since > GAP_PERIODS * self._period_s:
                seen.gaps, seen.longest_gap_s = seen.gaps + 1, max(seen.longest_gap_s, since)
                seen.event(start_s - since, "gap", f"no row for {since:.4g} s")
        told = row.number
        self._number = told if told is not None and told > self._number else self._number + steps

    def _repeats(self, row: Row, start_s: float) -> bool:
        """Whether nothing in the row is new; counts what is not."""
        last, found, seen = self._last, self._conversion, self.seen
        if last is None or not self._source.told_repeats:
            return False
        same = np.ones(len(found.columns), dtype=bool)
        for name in ("position", "velocity", "torque"):
            now, before = getattr(row, name), getattr(last, name)
            if now is not None and before is not None:
                same &= (now == before)[found.columns]
        imu = [(getattr(row, n), getattr(last, n)) for n in ("gravity_b", "gyro_b", "quat_wxyz", "accel_b")]
        imu = [(a, b) for a, b in imu if a is not None and b is not None]
        imu_same = bool(imu) and all(np.array_equal(a, b) for a, b in imu)
        for j in np.flatnonzero(same):
            seen.repeated[found.robot.joint_names[j]] += 1
        seen.repeated["imu"] += imu_same
        for j in np.flatnonzero(~same & (self._stuck >= STUCK_ROWS)).tolist():
            self._say_stuck(j, start_s)
        self._stuck = np.where(same, self._stuck + 1, 0)
        return bool(same.all()) and (imu_same or not imu)

    def _say_stuck(self, j: int, until_s: float) -> None:
        since = until_s - self._stuck[j] * self._period_s
        name, rows = self._conversion.robot.joint_names[j], self._stuck[j]
        self.seen.event(since, "repeat", f"{name} repeats its last reading over {rows} rows")

    def tick(self, row: Row) -> Tick:
        """The tick of a row."""
        found, seen = self._conversion, self.seen
        start_s = row.time_s - self._zero_s
        self._count(row, start_s)
        stale = self._repeats(row, start_s)
        seen.rows += 1
        for name in ("position", *self._source.has):
            values = getattr(row, name)
            if values is not None and np.isnan(values).any():
                used = values[found.columns] if len(values) == len(self._source.joints) else values
                seen.missing[name] += int(np.isnan(used).sum())
        self._last = row
        target = self._angle(row.target) if row.target is not None else None
        quat = self._orientation(row)
        gyro = np.full(3, np.nan) if row.gyro_b is None else row.gyro_b * found.gyro
        up = up_in_frame(quat)
        seen.upside_down += bool(up[2] < UPSIDE_DOWN)
        seen.turning.add(start_s, up, gyro)
        return Tick(
            tick=self._number,
            phase="run",
            scheduled_s=np.nan,
            start_s=start_s,
            state_s=start_s + row.state_after_s,
            command_s=start_s + row.command_after_s,
            state_round_trip_s=row.state_trip_s,
            command_round_trip_s=row.command_trip_s,
            inputs=self._inputs(row),
            action=target if self._source.policy else None,
            target=target,
            sent=self._none if target is None else target,
            joint_position=self._angle(row.position),
            joint_velocity=self._times(row.velocity, found.velocity),
            joint_torque=self._times(row.torque, found.torque),
            joint_temperature=None if row.temperature is None else row.temperature[found.columns],
            quat_wxyz=quat,
            gyro_b=gyro,
            accel_b=np.full(3, np.nan) if row.accel_b is None else row.accel_b,
            stale=stale,
            stages_ms=row.stages_ms,
        )

    def _orientation(self, row: Row) -> np.ndarray:
        if row.quat_wxyz is not None:
            length = float(np.linalg.norm(row.quat_wxyz))
            return row.quat_wxyz / length if length > 0.1 else np.full(4, np.nan)
        if row.gravity_b is None:
            return np.full(4, np.nan)
        length = float(np.linalg.norm(row.gravity_b))
        self.seen.gravity_off += not abs(length - GRAVITY_M_S2) < 0.1 * GRAVITY_M_S2
        # of which way it faces gravity says nothing: it is the tilt alone
        up = row.gravity_b if self._conversion.units.gravity == "up" else -row.gravity_b
        return from_up(up / length) if length > 0.1 else np.full(4, np.nan)

    def _inputs(self, row: Row) -> dict[str, np.ndarray]:
        """What the policy was given, as the file has it: nothing of the map is applied."""
        at, given = self._conversion.columns, {}
        if self._source.policy:
            given = {JOINT_ANGLES: row.position[at]}
            given |= {JOINT_VELOCITIES: row.velocity[at]} if row.velocity is not None else {}
            given |= {GRAVITY_INPUT: row.gravity_b} if row.gravity_b is not None else {}
            given |= {ACCELEROMETER: row.accel_b} if row.accel_b is not None else {}
            given |= {GYROSCOPE: row.gyro_b} if row.gyro_b is not None else {}
        if row.command is not None:
            given["command"] = row.command[self._commands]
        return {name: np.asarray(values, dtype=np.float32) for name, values in given.items() if name in self._given}

    def closing(self) -> dict[str, Any]:
        """The figures, plain JSON values, for the log's result."""
        if self._last is not None:
            for j in np.flatnonzero(self._stuck >= STUCK_ROWS).tolist():
                self._say_stuck(j, self._last.time_s - self._zero_s)
        seen = self.seen
        return {
            "rows": seen.rows,
            "gaps": seen.gaps,
            "longest_gap_s": seen.longest_gap_s,
            "not_numbers": dict(seen.missing),
            "repeated": dict(seen.repeated) if self._source.told_repeats else None,
            "gravity_off": seen.gravity_off,
            "upside_down": seen.upside_down,
            "gyro_seen": seen.turning.slope,
        }
