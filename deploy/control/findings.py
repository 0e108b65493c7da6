"""What a look at a robot says about it: recorded numbers, findings, and what they come to. Values; nothing is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from deploy.robot.dialects import Dialect
from deploy.robot.interface import JointSeen
from deploy.robot.state import RobotState
from robots.spec import RobotSpec


class Level(StrEnum):
    """How good a finding is."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"


GREEN, AMBER, RED = Level


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: what it belongs to.
        what: was looked at.
        level: how good it is.
        got: what was seen.
        expected: what should be, where that is not what was seen.
        do: what to do about it.
    """

    group: str
    what: str
    level: Level
    got: str
    expected: str = ""
    do: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was recorded while the robot was left alone. N readings; the first `paced` at the control rate, as the
    control loop asks, the rest as fast as the link allows.

    Attributes:
        robot: whose joints.
        period_s: control period [s].
        dialect: of the server.
        server: which it is and why, in one line.
        questions: the kind of server that its answers speak of, whatever `--server` says.
        gyro_unit: that the gyro is taken to speak.
        joints: what was told of each joint, in the robot's order.
        extra: ids that are there and not the robot's.
        paced: number of readings at the control rate.
        lost: number of readings besides that did not come in time.
        errors: what calls that failed said, each once.
        time_s: (N,) monotonic clock at each answer [s].
        round_trip_s: (N,) from question to answer [s].
        position: (N, joints) [rad].
        velocity: (N, joints) [rad/s].
        quat_wxyz: (N, 4) as they came.
        gyro_b: (N, 3) [rad/s].
        accel_b: (N, 3) [m/s^2].
        clock_step_s: by how much the wall clock moved against the monotonic one [s].
    """

    robot: RobotSpec
    period_s: float
    dialect: Dialect
    server: str
    questions: str
    gyro_unit: str
    joints: tuple[JointSeen, ...]
    extra: tuple[int, ...] = ()
    paced: int
    lost: int = 0
    errors: tuple[str, ...] = ()
    time_s: np.ndarray
    round_trip_s: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    clock_step_s: float = 0.0

    def state(self, k: int) -> RobotState:
        """Reading k as the control loop has it."""
        return RobotState(
            joint_position=self.position[k],
            joint_velocity=self.velocity[k],
            joint_torque=np.zeros(len(self.joints)),
            quat_wxyz=self.quat_wxyz[k] / np.linalg.norm(self.quat_wxyz[k]),
            gyro_b=self.gyro_b[k],
            accel_b=self.accel_b[k],
            time_s=float(self.time_s[k]),
            round_trip_s=float(self.round_trip_s[k]),
        )


def listed(names: Sequence[object], most: int = 6) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(n) for n in names[:most]) + more


def worst(found: Sequence[Finding]) -> Level:
    """The worst level of all."""
    order = list(Level)
    return max((f.level for f in found), key=order.index, default=GREEN)


def next_step(found: Sequence[Finding], command: str) -> str:
    """The line that says what to do now."""
    counts = {level: sum(f.level is level for f in found) for level in Level}
    said = ", ".join(f"{n} {level}" for level, n in counts.items() if n)
    if counts[RED]:
        first = next(f for f in found if f.level is RED)
        return f"RED ({said}): not to be run. First: {first.group}, {first.what}: {first.do or first.got}"
    if counts[AMBER]:
        first = next(f for f in found if f.level is AMBER)
        return f"AMBER ({said}): look at what is amber, first at {first.group}, {first.what}; then {command}"
    return f"GREEN ({said}): {command}"


def to_json(found: Sequence[Finding], **more: Any) -> dict[str, Any]:
    """All as plain JSON values."""
    level = worst(found)
    return {
        "level": str(level),
        "exit_code": 1 if level is RED else 0,
        **more,
        "findings": [f.to_json() for f in found],
    }
