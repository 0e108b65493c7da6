"""Recorded motions as plain arrays in a robot's joint order, from logs of `ksim run` and of what can be imported."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.errors import DeployError, LogError
from deploy.log.imports.command import import_log
from deploy.log.imports.mapping import ImportMap
from deploy.log.recorder import read_head, read_log
from robots.spec import RobotSpec

# Endings of files that are imported; a folder is too.
FOREIGN = (".ndjson", ".jsonl", ".csv", ".parquet")
# A joint that is told or measured to be farther from zero, or faster, is a broken record [rad, rad/s].
FARTHEST = {"target": 1e3, "position": 1e3, "velocity": 1e5}
# Nobody knows what a robot did in a longer time without a row, and it would be simulated step by step [s].
GAP_MAX_S = 60.0


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
        velocity: measured, (T, joints) [rad/s]; None where the log has none.
        gains: stiffness [N m/rad] and damping [N m s/rad] that the controller was told, (2, joints); None: the robot's.
        absent: joints that the log does not have; they stand at home and do not count.
        one_clock: commands and states bear one stamp, so a delay read off them means little.
        digest: SHA-256 of the files it is from; empty where it is from none.
    """

    name: str
    names: tuple[str, ...]
    time_s: np.ndarray
    target: np.ndarray
    position: np.ndarray
    use: np.ndarray
    velocity: np.ndarray | None = None
    gains: np.ndarray | None = None
    absent: tuple[str, ...] = ()
    one_clock: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        rows, joints = len(self.time_s), len(self.names)
        for what in ("target", "position", "velocity"):
            values = getattr(self, what)
            if what == "velocity" and values is None:
                continue
            if values.shape != (rows, joints):
                raise SysidError(f"motion {self.name}: {what}: got shape {values.shape}, expected {(rows, joints)}")
            if not np.isfinite(values).all():
                raise SysidError(f"motion {self.name}: {what}: got values that are not finite; leave those rows out")
            wild = np.argwhere(np.abs(values) > FARTHEST[what])
            if len(wild):
                row, joint = wild[0]
                raise SysidError(
                    f"motion {self.name}: {what}: got {values[row, joint]:.3g} of joint {self.names[joint]} in row "
                    f"{row}, expected up to {FARTHEST[what]:g}; leave that row out, or mend the log"
                )
        if rows < 2:
            raise SysidError(f"motion {self.name}: got {rows} rows, expected 2 or more; record it again")
        apart = np.diff(self.time_s)
        wrong = np.flatnonzero(~((apart > 0) & (apart <= GAP_MAX_S)))
        if len(wrong):
            row, after = wrong[0] + 1, apart[wrong[0]]
            todo = "make a log of each part" if after > 0 else "leave that row out, or mend the log's clock"
            raise SysidError(
                f"motion {self.name}: got row {row} {after:.3g} s after the one before it, expected times that rise, "
                f"by up to {GAP_MAX_S:g} s; {todo}"
            )

    @property
    def period_s(self) -> float:
        """Median time between rows [s]."""
        return float(np.median(np.diff(self.time_s)))

    @property
    def present(self) -> np.ndarray:
        """Which joints the log has, bool (joints,)."""
        return np.array([name not in self.absent for name in self.names])


def read_motion(path: str | Path, robot: RobotSpec, given: ImportMap | None = None) -> Motion:
    """A motion from a log of `ksim run` or `ksim log import`, or from what the latter can import.

    Args:
        path: an .mcap, or another program's log.
        robot: whose log it is.
        given: the map of another program's log; by default the one that a built-in robot has for SAGE's folders.

    Raises:
        SysidError: the joints are not the robot's, or rows are missing.
        LogError: it is no log.
    """
    path = Path(path)
    foreign = path.is_dir() or path.suffix in FOREIGN or given is not None
    if path.suffix == ".mcap" or not foreign:
        return read_run(path, robot)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / f"{path.stem}.mcap"
        import_log(path, log, given, robot=robot)
        return read_run(log, robot)


def joints_of(path: Path, robot: RobotSpec) -> list[str]:
    """The joints that a log's head tells of.

    Raises:
        SysidError: none of them is the robot's.
        LogError: it is no log.
    """
    have = list(read_head(path)[1].robot.joint_names)
    if not set(have) & set(robot.joint_names):
        raise SysidError(
            f"motion {path.stem}: no joint of robot {robot.name} in it (there is: {', '.join(have)[:200]}); "
            "expected a log of it; name its robot with --robot"
        )
    return have


def read_run(path: Path, robot: RobotSpec) -> Motion:
    """A log of `ksim run` or `ksim log import`: what was sent and measured, in the rows that have both.

    A joint that the log does not have is taken to stand at home.
    """
    have = joints_of(path, robot)  # another robot's log is refused before all of it is read
    absent = tuple(name for name in robot.joint_names if name not in have)
    log = read_log(path)
    whole = np.isfinite(log.sent).all(axis=1) & np.isfinite(log.joint_position).all(axis=1) & ~log.stale
    whole &= ~log.mask("damp")  # there the motors have no stiffness
    rows = np.flatnonzero(whole)
    if rows.size < 2:
        raise LogError(f"{path}: {rows.size} ticks with a command and a state; expected a whole motion")

    def ordered(values: np.ndarray, rest: np.ndarray) -> np.ndarray:
        out = np.tile(rest, (rows.size, 1))
        for j, name in enumerate(robot.joint_names):
            if name in have:
                out[:, j] = values[rows, have.index(name)]
        return out

    told = [log.spec.robot.joint(name) if name in have else robot.joint(name) for name in robot.joint_names]
    gains = np.array([[joint.kp for joint in told], [joint.kd for joint in told]])
    home, still = np.asarray(robot.column("home_rad")), np.zeros(len(robot.joints))
    velocity = ordered(log.joint_velocity, still)
    time_s = log.start_s[rows]
    return Motion(
        name=path.stem,
        names=robot.joint_names,
        time_s=time_s - time_s[0],
        target=ordered(log.sent, home),
        position=ordered(log.joint_position, home),
        use=np.ones(rows.size, dtype=bool),
        velocity=velocity if np.isfinite(velocity).all() else None,
        gains=gains,
        absent=absent,
        one_clock=bool((log.state_s[rows] == log.command_s[rows]).all()),
        digest=_digest(path, log.metadata.get("import")),
    )


def _digest(path: Path, imported: dict | None) -> str:
    """Of the log; of the files that an imported one was made of, so that importing it again changes nothing."""
    if imported is None:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256("".join(one["sha256"] for one in imported["sources"]).encode()).hexdigest()
