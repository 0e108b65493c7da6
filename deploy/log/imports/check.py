"""Whether rows make sense: times that rise, few that are left out, positions that the robot can have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.errors import LogError
from deploy.log.imports.mapping import ANGLES, SHARES, Conversion, to_rad
from deploy.log.imports.source import Garbage, Row, Source

# Rows that may be left out, besides one or two.
SHARE_MAX, FEW = 0.05, 2
# Beyond a limit by more than this is far: zero offsets and play are less [rad].
FAR_RAD = 0.35
# Positions that are kept for judging the unit.
KEPT = 2048
# A position loop drives a joint by a target beyond where it can go, and by less than this [rad].
FAR_TARGET_RAD = 3.0
# The gyro is compared with the orientation over so long [s], where this turns so much or more [rad].
STRETCH_S, TURN_MIN_RAD = 0.2, 0.005
# A correlation that is no chance.
AGREE_MIN = 0.7
# The longest step and the latest time that are taken for seconds: in the year 2286.
STEP_MAX_S, LATEST_S = 1.0, 1e10


@dataclass(kw_only=True)
class Left:
    """Rows of one kind that were left out.

    Attributes:
        rows: how many.
        line: the first one's.
        reason: why that one was.
    """

    rows: int
    line: int
    reason: str


@dataclass(kw_only=True)
class Ordered:
    """The rows of a source whose times rise; the others are counted.

    Attributes:
        source: the log.
        seen: rows that came, a last one that breaks off aside.
        left: those left out, by kind.
        cut: the last row breaks off.
    """

    source: Source
    seen: int = 0
    left: dict[str, Left] = field(default_factory=dict)
    cut: bool = False

    def __iter__(self) -> Iterator[Row]:
        last = -np.inf
        for row in self.source.rows():
            if isinstance(row, Garbage) and row.cut:
                self.cut = True
                continue
            self.seen += 1
            if isinstance(row, Garbage):
                self._leave("garbage", row.line, row.reason)
            elif row.time_s < last:
                said = f"its time {row.time_s:.6g} s is before {last:.6g} s; where a second run begins, cut the file"
                self._leave("backwards", row.line, said)
            elif row.time_s == last:
                self._leave("same_time", row.line, f"its time {row.time_s:.6g} s is that of the row before")
            else:
                last = row.time_s
                yield row
        self.refuse(FEW)

    def _leave(self, kind: str, line: int, reason: str) -> None:
        self.left.setdefault(kind, Left(rows=0, line=line, reason=reason)).rows += 1
        if self.rows_left % KEPT == 0:
            self.refuse(KEPT // 2)

    @property
    def rows_left(self) -> int:
        """Rows left out."""
        return sum(left.rows for left in self.left.values())

    def refuse(self, few: int) -> None:
        """Refuse where too many are left out.

        Raises:
            LogError: more than a few, and more than a share.
        """
        if self.rows_left <= max(few, SHARE_MAX * self.seen):
            return
        worst = max(self.left.values(), key=lambda left: left.rows)
        raise LogError(
            f"{self.source.path}: {self.rows_left} of {self.seen} {self.source.word}s cannot be used, expected at most "
            f"{SHARE_MAX:.0%}; the first of {worst.rows} is {self.source.word} {worst.line}: {worst.reason}"
        )


def check_times(where: str, times_s: Sequence[float]) -> None:
    """Refuse times that are no seconds.

    Raises:
        LogError: they step by more than any control period, or are later than any clock.
    """
    step = float(np.median(np.diff(times_s)))
    if step <= STEP_MAX_S and abs(times_s[0]) < LATEST_S:
        return
    fits = [name for name, unit in (("milli", 1e-3), ("micro", 1e-6), ("nano", 1e-9)) if 1e-3 <= step * unit <= 0.2]
    looks = f"they look like {' or '.join(fits)}seconds" if fits else "they are no seconds of a control loop"
    raise LogError(
        f"{where}: times begin at {times_s[0]:.10g} and step by {step:.6g}, expected seconds, at most "
        f"{STEP_MAX_S:g} from row to row: {looks}; write them in seconds"
    )


class Turning:
    """Whether the gyro tells the turning that the orientation shows, over stretches of STRETCH_S."""

    def __init__(self) -> None:
        self._begun: tuple[float, np.ndarray] | None = None
        self._last: tuple[float, np.ndarray] | None = None
        self._told = np.zeros(3)
        # sums over the stretches: told x shown, told^2, shown^2
        self._sums, self._stretches = np.zeros(3), 0

    def add(self, at_s: float, up: np.ndarray, gyro: np.ndarray) -> None:
        """One row: "up" in the IMU's frame, (3,), and what the gyro tells, (3,) [rad/s]."""
        if not (np.isfinite(up).all() and np.isfinite(gyro).all()):
            self._begun = self._last = None
            return
        if self._last is not None:
            since = at_s - self._last[0]
            self._told += since * self._last[1]
            if since > STRETCH_S:
                self._begun = None
        if self._begun is not None and at_s - self._begun[0] >= STRETCH_S:
            told, shown = self._told, up - self._begun[1]
            self._sums += told @ shown, told @ told, shown @ shown
            self._stretches += 1
            self._begun = None
        if self._begun is None:
            self._begun, self._told = (at_s, up), np.zeros(3)
        self._last = at_s, -np.cross(gyro, up)  # what stands still in the world turns the other way in the frame

    @property
    def slope(self) -> float | None:
        """How much of what the gyro tells is seen, 1 where both agree; None where too little moves, or it is noise."""
        both, told, shown = self._sums
        if not told or shown < self._stretches * TURN_MIN_RAD**2 or both**2 < AGREE_MIN**2 * told * shown:
            return None
        return float(both / told)


class Positions:
    """Positions as the file has them, some of all, evenly.

    Args:
        conversion: what makes angles of them.
        far_rad: beyond a limit by more than this is far.
    """

    def __init__(self, conversion: Conversion, far_rad: float = FAR_RAD) -> None:
        self._conversion, self._far_rad = conversion, far_rad
        self._kept: list[np.ndarray] = []
        self._every, self._seen = 1, 0

    def add(self, position: np.ndarray) -> None:
        """One row (joints of the log,), in the file's units."""
        if self._seen % self._every == 0:
            self._kept.append(position)
            if len(self._kept) == 2 * KEPT:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self._seen += 1

    def _far(self, j: int, values: np.ndarray, factor: float, offset: float) -> float:
        """Share of a joint's values that are far outside its limits."""
        joint = self._conversion.robot.joints[j]
        angle = values * factor + offset
        out = (angle < joint.lower_rad - self._far_rad) | (angle > joint.upper_rad + self._far_rad)
        return float(out.mean()) if len(out) else 0.0

    def far(self) -> list[str]:
        """Joints that are far outside their limits."""
        found, columns = self._conversion, np.array(self._kept).T if self._kept else []
        return [
            found.robot.joint_names[j]
            for j, values in enumerate(columns)
            if self._far(j, values[np.isfinite(values)], found.factor[j], found.offset[j]) > SHARE_MAX
        ]

    def check(self, where: str) -> None:
        """Refuse where a joint is far outside its limits, and say what would fit.

        Raises:
            LogError: unit, zero or sign look wrong.
        """
        if not self._kept:
            return
        all_values, found = np.array(self._kept), self._conversion
        columns = [v[np.isfinite(v)] for v in all_values.T]
        shares = [self._far(j, v, found.factor[j], found.offset[j]) for j, v in enumerate(columns)]
        j = int(np.argmax(shares))
        if shares[j] <= SHARE_MAX:
            return
        joint, how, values = found.robot.joints[j], found.how[j], columns[j]
        others = [found.robot.joint_names[k] for k, share in enumerate(shares) if share > SHARE_MAX and k != j]
        also = f" (also {', '.join(others)[:120]})" if others else ""
        low, high = np.percentile(values * found.factor[j] + found.offset[j], [1, 99])
        fits = [
            unit
            for unit in (*ANGLES, *SHARES)
            if unit != found.unit[j] and self._far(j, values, *to_rad(unit, joint, how)) <= SHARE_MAX
        ]
        span = joint.upper_rad - joint.lower_rad
        if fits:
            remedy = f"unit {' or '.join(fits)} fits; set units.position, or joints.{joint.name}.unit, in the map"
        elif self._far(j, values, -found.factor[j], found.offset[j]) <= SHARE_MAX:
            remedy = f"the other sign fits; set joints.{joint.name}.sign in the map"
        elif high - low <= span + FAR_RAD:
            by = 0.5 * (joint.lower_rad + joint.upper_rad) - 0.5 * (low + high) + how.zero_rad
            remedy = f"no unit fits, a zero near {by:.3g} rad would; set joints.{joint.name}.zero_rad in the map"
        else:
            remedy = f"no unit and no zero fits; look at what it is, or name {joint.name} under ignore"
        raise LogError(
            f"{where}: joint {joint.name} is at {low:.3g} to {high:.3g} rad (read as {found.unit[j]}), {shares[j]:.0%} "
            f"of it far outside its limits [{joint.lower_rad:.3g}, {joint.upper_rad:.3g}]{also}: unit or zero looks "
            f"wrong; {remedy}"
        )
