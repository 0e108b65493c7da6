"""What forbids going on, and what safety changed in a target: values, whose text is made here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deploy.errors import ConnectionLost, DeployError, FaultError


class FaultKind(StrEnum):
    """Why a run may not go on."""

    NOT_FINITE = "not finite"
    FALL = "fall"
    OUT_OF_RANGE = "joint out of range"
    OVER_SPEED = "over-speed"
    OVER_TORQUE = "over-torque"
    SPIN = "spin"
    TOO_HOT = "too hot"
    JUMPED = "jumped"
    TURNED = "orientation jumped"
    STALE = "stale"
    FROZEN = "frozen"
    FROZEN_JOINT = "frozen joint"
    TOO_SLOW = "too slow"
    CLAMPED = "clamped"
    GAINS = "gains"
    GYRO = "gyro"
    ENVELOPE = "envelope"
    WATCHDOG = "watchdog"
    IMU = "imu"
    WILD = "wild policy"
    ROBOT = "robot"  # what the server itself tells: an actuator that is offline, a sensor without data
    LOST = "lost"
    ERROR = "error"  # no fault of the robot: a full disk, a policy that gives NaN, a bug


_TEXT = {
    FaultKind.NOT_FINITE: "not finite: {detail} of {where}",
    FaultKind.FALL: "tilt {value:.2f} rad, limit {high:.2f} rad",
    FaultKind.OUT_OF_RANGE: "joint out of range: {where} at {value:.3f} rad, limits [{low:.3f}, {high:.3f}] rad",
    FaultKind.OVER_SPEED: "over-speed: {where} at {value:.1f} rad/s, limit {high:.1f} rad/s",
    FaultKind.OVER_TORQUE: "over-torque: {where} at {value:.1f} N m, limit {high:.1f} N m",
    FaultKind.SPIN: "spin: the IMU turns at {value:.1f} rad/s, limit {high:g} rad/s; if the robot does not, "
    "try --gyro-unit deg/s",
    FaultKind.TOO_HOT: "too hot: {where} at {value:.0f} C, limit {high:g} C",
    FaultKind.JUMPED: "jumped: {where} by {value:+.2f} rad {detail}",
    FaultKind.TURNED: "orientation jumped: by {value:.2f} rad {detail}",
    FaultKind.WILD: "policy: asks for {value:.4g} rad of {where}{detail}, limits [{low:.3f}, {high:.3f}] rad",
    FaultKind.STALE: "stale: nothing new measured for {value:g} ticks, limit {high:g}",
    FaultKind.FROZEN: "frozen: {where} gave the same values for {value:g} ticks",
    FaultKind.IMU: "IMU: up by its accelerometer is {value:.0f} degrees away from up by its orientation: one of them "
    "is in another frame, or the robot is being moved",
    FaultKind.FROZEN_JOINT: "frozen: {where} gave the same position for {value:g} ticks after its target had moved by "
    "{detail}",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One reason why a run may not go on.

    Attributes:
        kind: of the fault.
        where: a joint, or a channel of the IMU; empty for the whole robot.
        value: what was seen; NaN where it is no number.
        low: the least that is allowed, in the value's unit.
        high: the greatest that is allowed, in the value's unit.
        detail: what the text needs besides.
    """

    kind: FaultKind
    where: str = ""
    value: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    detail: str = ""

    def __str__(self) -> str:
        """One line for a person."""
        text = _TEXT.get(self.kind, "{detail}")
        return text.format(where=self.where, value=self.value, low=self.low, high=self.high, detail=self.detail)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite is left out."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        values = {name: float(v) for name, v in numbers.items() if math.isfinite(v)}
        return {"kind": self.kind.value, "where": self.where, **values, "message": str(self)}


def text_of(faults: Sequence[Fault], listed: int = 6) -> str:
    """Faults in one line, the first few by name."""
    more = f"; and {len(faults) - listed} more" if len(faults) > listed else ""
    return "; ".join(str(fault) for fault in faults[:listed]) + more


def faults_of(error: Exception) -> tuple[Fault, ...]:
    """What an exception says, as values."""
    if isinstance(error, FaultError):
        return error.faults or (Fault(kind=FaultKind.ROBOT, detail=str(error)),)
    if isinstance(error, ConnectionLost):
        return (Fault(kind=FaultKind.LOST, detail=str(error)),)
    if isinstance(error, DeployError):
        return (Fault(kind=FaultKind.ERROR, detail=str(error)),)
    # a full disk, a bug: the robot comes first, and the user gets one line
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return (Fault(kind=FaultKind.ERROR, detail=text),)


class ClampKind(StrEnum):
    """Why safety changed a target."""

    NOT_FINITE = "not finite"
    SPEED = "target speed"
    TORQUE = "torque"
    POSITION = "position limit"


@dataclass(frozen=True)
class Clamp:
    """One change of one joint's target.

    Attributes:
        joint: its name.
        kind: which bound it met.
    """

    joint: str
    kind: ClampKind

    def __str__(self) -> str:
        """As the log has it."""
        return f"{self.joint}: {self.kind}"
