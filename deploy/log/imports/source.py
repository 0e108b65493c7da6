"""What a reader of somebody else's log gives: rows in the file's own units and order, one at a time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploy.errors import LogError
from deploy.log.imports.mapping import Units
from toolkit.strict_json import check_text
from toolkit.yaml_file import quote

# Of a line that is looked at: a K-Bot's have 3 kB.
MAX_LINE = 1 << 20
MAX_NAME = 128
MAX_JOINTS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row. Joints are in the file's order and units; all else is SI; None where the row does not have it.

    Attributes:
        line: where it is in the file, from 1.
        time_s: as the file has it [s].
        position, target, velocity, torque: (joints,).
        temperature: of the motors, (joints,) [Celsius].
        quat_wxyz: (4,).
        gravity_b: gravity in the IMU's frame, (3,) [m/s^2].
        gyro_b: (3,), in the file's unit.
        accel_b: (3,) [m/s^2].
        command: what the policy was asked for, (commands,).
        number: the file's own number of the row.
        stages_ms: time that each of the source's stages took, by name; NaN where this row does not tell it [ms].
        state_after_s, command_after_s: from the row's time to the state and to the command's acknowledgement [s].
        state_trip_s, command_trip_s: question to answer, command to acknowledgement [s].
    """

    line: int
    time_s: float
    position: np.ndarray
    target: np.ndarray | None = None
    velocity: np.ndarray | None = None
    torque: np.ndarray | None = None
    temperature: np.ndarray | None = None
    quat_wxyz: np.ndarray | None = None
    gravity_b: np.ndarray | None = None
    gyro_b: np.ndarray | None = None
    accel_b: np.ndarray | None = None
    command: np.ndarray | None = None
    number: int | None = None
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    state_after_s: float = np.nan
    state_trip_s: float = np.nan
    command_after_s: float = np.nan
    command_trip_s: float = np.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """A row that cannot be used.

    Attributes:
        line: where it is in the file, from 1.
        reason: why.
        cut: it is the last one, and breaks off.
    """

    line: int
    reason: str
    cut: bool = False


# What a row may have besides positions.
QUANTITIES = (
    "target", "velocity", "torque", "quat_wxyz", "gravity_b", "gyro_b", "accel_b", "command",
)  # fmt: skip


class Source(abc.ABC):
    """A log of another program, its head read.

    Attributes:
        format: the name of the format.
        units: of positions and the rest where the map does not say; None for position: the map must say it.
        default_robot: whose logs these are; empty where they may be any robot's.
        policy: targets are a policy's output, and the row holds its inputs.
        told_repeats: a joint that answers gives new bits, so equal ones are a reading used again.
        word: what a row is called: "line".
        stamps: what the times are, in words.
        path: what the user named.
        files: what is read, for digests.
        joints: names in the file, in its order.
        has: those of QUANTITIES that rows have.
        commands: names of the elements of the command.
        stages: names of the stages that every row tells the time of.
        period_s: nominal, None where the file does not say it [s].
        facts: what the file says of itself.
        events: (time [s], kind, message).
        share: how much has been read.
    """

    format: ClassVar[str]
    units: ClassVar[Units]
    default_robot: ClassVar[str] = ""
    policy: ClassVar[bool] = False
    told_repeats: ClassVar[bool] = False
    word: ClassVar[str] = "line"
    stamps: ClassVar[str]

    path: Path
    files: tuple[Path, ...]
    joints: tuple[str, ...]
    has: frozenset[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: tuple[str, ...] = ()
        self.stages: tuple[str, ...] = ()
        self.period_s: float | None = None
        self.facts: dict[str, Any] = {}
        self.events: list[tuple[float, str, str]] = []
        self.share = 0.0

    @abc.abstractmethod
    def rows(self) -> Iterator[Row | Garbage]:
        """Every row in the file's order."""


def require_file(path: Path, what: str) -> Path:
    """The path, if it is a file with something in it.

    Raises:
        LogError: it is not.
    """
    if path.is_dir():
        raise LogError(f"{path}: is a folder; expected a file, {what}; name the file")
    if not path.is_file():
        raise LogError(f"{path}: no such file; expected {what}; check how it is written")
    if not path.stat().st_size:
        raise LogError(f"{path}: is empty; expected {what}; name another")
    with path.open("rb") as file:
        head = file.read(4)
    # with a mark, or as any text that begins with plain letters
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0\0" in (head[::2], head[1::2]):
        raise LogError(f"{path}: is text in UTF-16; expected UTF-8; write it again so (iconv -f UTF-16 -t UTF-8)")
    return path


def require_names(path: Path, names: Any, what: str) -> tuple[str, ...]:
    """Names that are given once each and can be printed.

    Raises:
        LogError: they are something else.
    """
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
        raise LogError(f"{path}: {what}: got {quote(names, 100)}, expected a list of names; repair the file")
    if len(names) > MAX_JOINTS:
        raise LogError(f"{path}: {what}: got {len(names)} names, expected at most {MAX_JOINTS}; repair the file")
    for name in names:
        try:
            check_text(name, MAX_NAME)
        except ValueError as error:
            raise LogError(f"{path}: {what}: got {error}; repair the file") from error
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise LogError(f"{path}: {what}: got {', '.join(twice)} twice, expected each once; repair the file")
    return tuple(names)


def vector(values: Any, size: int, what: str) -> np.ndarray:
    """So many numbers as an array; null and what is not finite are NaN.

    Raises:
        ValueError: it is something else; the message is one line.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{what}: got {quote(values, 40)}, expected {size} numbers")
    if len(values) != size:
        raise ValueError(f"{what}: got {len(values)} numbers, expected {size}")
    try:
        out = np.array([np.nan if v is None else v for v in values], dtype=float)
    except (TypeError, ValueError, OverflowError):
        out = np.empty((0, 0))
    if out.shape != (size,) or any(isinstance(v, (str, bool)) for v in values):
        raise ValueError(f"{what}: got {quote(values, 40)}, expected {size} numbers")
    return np.where(np.isfinite(out), out, np.nan)


def number(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"{what}: got {quote(value, 40)}, expected a number")
    return float(value)
