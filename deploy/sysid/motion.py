"""Recorded motions as plain arrays in a robot's joint order, from logs and from SAGE's folders of CSV files."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.errors import DeployError, LogError
from deploy.log.recorder import read_log
from robots.spec import RobotSpec

# SAGE's names of the SO-101's joints: (ours, rad per unit, rad at 0). Its gripper is a fraction of its range.
SAGE_SO101 = {
    "Rotation": ("shoulder_pan", 1.0, 0.0),
    "Pitch": ("shoulder_lift", 1.0, 0.0),
    "Elbow": ("elbow_flex", 1.0, 0.0),
    "Wrist_Pitch": ("wrist_flex", 1.0, 0.0),
    "Wrist_Roll": ("wrist_roll", 1.0, 0.0),
    "Jaw": ("gripper", 2.34, -0.174533),
}


class SysidError(DeployError):
    """Motions, contacts or a calibration that cannot be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """One recorded motion.

    Attributes:
        name: of the motion.
        names: the joints, in the order of the columns.
        time_s: of each row, from 0, (T,) [s].
        target: where each joint was told to go at that time, (T, joints) [rad].
        position: measured, (T, joints) [rad].
        use: rows that count, bool (T,); the simulation runs through the others all the same.
        one_clock: commands and states bear one stamp, so a delay read off them means little.
        digest: SHA-256 of the files it is from; empty where it is from none.
    """

    name: str
    names: tuple[str, ...]
    time_s: np.ndarray
    target: np.ndarray
    position: np.ndarray
    use: np.ndarray
    one_clock: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        rows, joints = len(self.time_s), len(self.names)
        for what in ("target", "position"):
            got = getattr(self, what).shape
            if got != (rows, joints):
                raise SysidError(f"motion {self.name}: {what}: got shape {got}, expected {(rows, joints)}")
            if not np.isfinite(getattr(self, what)).all():
                raise SysidError(f"motion {self.name}: {what}: got values that are not finite; leave those rows out")
        if rows < 2 or not (np.diff(self.time_s) > 0).all():
            raise SysidError(f"motion {self.name}: got {rows} rows whose times do not all rise, expected 2 or more")

    @property
    def period_s(self) -> float:
        """Median time between rows [s]."""
        return float(np.median(np.diff(self.time_s)))


def read_motion(path: str | Path, robot: RobotSpec) -> Motion:
    """A motion from a log of `ksim run`, or from a folder of SAGE's CSV files.

    Raises:
        SysidError: the joints are not the robot's, or rows are missing.
        LogError: it is no log.
    """
    path = Path(path)
    return read_sage(path, robot) if path.is_dir() else read_run(path, robot)


def _in_order(name: str, have: list[str], robot: RobotSpec) -> list[int]:
    missing = [joint for joint in robot.joint_names if joint not in have]
    if missing:
        raise SysidError(
            f"motion {name}: no joint {', '.join(missing)} (there is: {', '.join(have)}); expected all of {robot.name}"
        )
    return [have.index(joint) for joint in robot.joint_names]


def read_run(path: Path, robot: RobotSpec) -> Motion:
    """A log of `ksim run`: what was sent against what was measured, from the first row that has both."""
    log = read_log(path)
    order = _in_order(path.stem, list(log.spec.robot.joint_names), robot)
    whole = np.isfinite(log.sent).all(axis=1) & np.isfinite(log.joint_position).all(axis=1) & ~log.stale
    rows = np.flatnonzero(whole)
    if rows.size < 2:
        raise LogError(f"{path}: {rows.size} ticks with a command and a state; expected a whole motion")
    time_s = log.start_s[rows]
    return Motion(
        name=path.stem,
        names=robot.joint_names,
        time_s=time_s - time_s[0],
        target=log.sent[rows][:, order],
        position=log.joint_position[rows][:, order],
        use=np.ones(rows.size, dtype=bool),
        digest=_digest(path),
    )


def read_sage(folder: Path, robot: RobotSpec) -> Motion:
    """A folder of SAGE: control.csv, state_motor.csv, joint_list.txt; stamps in microseconds."""
    files = [folder / name for name in ("joint_list.txt", "control.csv", "state_motor.csv")]
    for file in files:
        if not file.is_file():
            raise SysidError(f"{folder}: no {file.name}; expected a log of ksim run, or a folder with SAGE's CSV files")
    theirs = files[0].read_text(encoding="utf-8").split()
    unknown = [name for name in theirs if name not in SAGE_SO101]
    if unknown:
        raise SysidError(f"{files[0]}: joint {unknown[0]}: unknown; expected some of {', '.join(SAGE_SO101)}")
    joints, scale, zero = zip(*(SAGE_SO101[name] for name in theirs), strict=True)
    order = _in_order(folder.name, list(joints), robot)
    sent_s, target = _sage_table(files[1], len(joints))
    state_s, position = _sage_table(files[2], len(joints))
    rows = min(len(sent_s), len(state_s))
    if not np.array_equal(sent_s[:rows], state_s[:rows]):
        raise SysidError(f"{folder}: control.csv and state_motor.csv have other stamps; expected one loop's")
    convert = np.asarray(scale), np.asarray(zero)
    return Motion(
        name=folder.name,
        names=robot.joint_names,
        time_s=state_s[:rows] - state_s[0],
        target=(target[:rows] * convert[0] + convert[1])[:, order],
        position=(position[:rows] * convert[0] + convert[1])[:, order],
        use=np.ones(rows, dtype=bool),
        one_clock=True,
        digest=_digest(*files),
    )


def _sage_table(file: Path, joints: int) -> tuple[np.ndarray, np.ndarray]:
    """(times [s], positions (T, joints) in the file's units)."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        time_s = np.array([float(row["timestamp"]) * 1e-6 for row in rows])
        values = np.array([json.loads(row["positions"]) for row in rows], dtype=float)
    except (KeyError, TypeError, ValueError) as error:
        raise SysidError(f"{file}: not SAGE's table ({error}); expected columns timestamp and positions") from error
    if values.shape != (len(time_s), joints) or not all(map(math.isfinite, time_s)):
        raise SysidError(f"{file}: got positions of shape {values.shape}, expected {joints} in each row")
    return time_s, values


def _digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()
