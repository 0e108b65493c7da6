"""Faults that a twin can be told to have, one line of text each: what a server says, and what its motors do.

    KIND[:WHERE][=VALUE][@S]       for example  imu_frozen@5   joint_hot:dof_left_knee_04=140   imu_turned:x=90@2

S counts from the first command after torque was enabled [s]. A fault without it begins at once. The physics stays
true: only what the server answers changes, and what it does with a command where the fault is in the motor.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from deploy.errors import DeployError
from robots import rotation
from robots.spec import RobotSpec
from toolkit.errors import SettingsError
from toolkit.settings import nearest

IMU = {"orientation": "quat_wxyz", "gyro": "gyro_b", "accelerometer": "accel_b"}
# A call that is lost is answered no sooner than this; its client has given up long before [s].
NEVER_S = 30.0


class TwinFaultError(DeployError, SettingsError):
    """A text is no fault, or names a joint that the robot does not have."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What can be wrong.

    Attributes:
        does: what it is, for the help.
        where: what may be named.
        value: where none is given; None for a kind that takes none.
        low: least value.
        high: greatest value.
    """

    does: str
    where: Literal["", "sensor", "axis", "joint", "two joints"] = ""
    value: float | None = None
    low: float = -math.inf
    high: float = math.inf


KINDS = {
    "imu_frozen": Kind(does="the IMU, or one sensor of it, repeats its last sample", where="sensor"),
    "imu_zero": Kind(does="it reads 0", where="sensor"),
    "imu_nan": Kind(does="it reads NaN", where="sensor"),
    "gyro_unit": Kind(does="the gyro comes in rad/s in place of deg/s, or the other way round"),
    "imu_turned": Kind(does="the IMU is turned about its x, y or z axis [deg]", where="axis", value=90.0),
    "imu_rate": Kind(does="the IMU has so many new samples a second", value=20.0, low=0.1, high=10_000.0),
    "imu_age": Kind(does="its samples come later and later, by so much each second [s]", value=0.1, low=0.0, high=1.0),
    "joint_offline": Kind(does="the server says that the motor is offline", where="joint"),
    "joint_faulted": Kind(does="the motor reports a fault", where="joint"),
    "joint_hot": Kind(does="the motor reports this temperature [Celsius]", where="joint", value=140.0),
    "joint_beyond": Kind(does="it is told to be so far beyond its range [rad]", where="joint", value=0.5),
    "joint_silent": Kind(does="it is left out of the answer", where="joint"),
    "joint_frozen": Kind(does="its position, speed and torque repeat", where="joint"),
    "joint_inverted": Kind(does="its sign is flipped, in answers and commands", where="joint"),
    "joint_jump": Kind(does="its encoder's zero slips [rad]", where="joint", value=0.2),
    "joint_refuses": Kind(does="it refuses to be configured", where="joint"),
    "joint_weak": Kind(does="its motor gives no torque, and the server does not say so", where="joint"),
    "joints_swapped": Kind(does="the ids of two joints change places", where="two joints"),
    "server_stall": Kind(does="every answer waits until so much time has passed [s]", value=0.1, low=0.0, high=60.0),
    "reads_lost": Kind(does="so many reads of the joints in a row have no answer", value=1.0, low=1.0, high=1e6),
    "calls_lost": Kind(does="so great a share of all calls fails", value=0.3, low=0.0, high=1.0),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        kind: one of `KINDS`.
        where: sensors of the IMU, an axis, or joints; empty for the whole IMU.
        value: how much.
        at_s: after the first command with torque [s]; None: at once.
    """

    kind: str
    where: tuple[str, ...] = ()
    value: float = 0.0
    at_s: float | None = None


def parse_fault(text: str, robot: RobotSpec) -> Fault:
    """A fault from its line of text.

    Raises:
        TwinFaultError: it is none, with what would be.
    """

    def wrong(why: str) -> TwinFaultError:
        return TwinFaultError(f"fault {text!r:.200}: {why}")

    def number(what: str, given: str) -> float:
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise wrong(f"{what}: got {given!r}, expected a number")
        return value

    words, at, when = text.strip().partition("@")
    words, equals, amount = words.partition("=")
    name, _, places = words.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise wrong(f"unknown; {nearest(name, list(KINDS))}")
    if equals and kind.value is None:
        raise wrong(f"{name} takes no value")
    value = number("value", amount) if equals else kind.value or 0.0
    if not kind.low <= value <= kind.high:
        raise wrong(f"value {value:g}: expected {kind.low:g} to {kind.high:g}")
    at_s = number("time", when) if at else None
    if at_s is not None and at_s < 0:
        raise wrong(f"time {at_s:g}: expected 0 or more seconds")
    where = tuple(filter(None, places.split(",")))
    known = {"": (), "sensor": tuple(IMU), "axis": ("x", "y", "z")}.get(kind.where, robot.joint_names)
    for place in where:
        if place not in known:
            raise wrong(f"no {kind.where or 'place'} {place!r}" + (f"; {nearest(place, list(known))}" if known else ""))
    counts = {"": (0, 0), "sensor": (0, 3), "axis": (1, 1), "joint": (1, len(known)), "two joints": (2, 2)}
    least, most = counts[kind.where]
    if not least <= len(set(where)) == len(where) <= most:
        raise wrong(f"expected {name}:WHERE with {kind.where}" if most else f"{name} takes no place")
    return Fault(kind=name, where=where, value=value, at_s=at_s)


def faults_help() -> str:
    """The kinds, one a line."""
    forms = {"": "", "sensor": "[:SENSOR]", "axis": ":AXIS", "joint": ":JOINT", "two joints": ":JOINT,JOINT"}
    rows = [
        (name + forms[kind.where] + ("" if kind.value is None else f"={kind.value:g}"), kind.does)
        for name, kind in KINDS.items()
    ]
    return "\n".join(f"  {form:<30} {does}" for form, does in rows)


@dataclass
class _Live:
    """A fault that has begun: when, and what it remembers."""

    fault: Fault
    began_s: float  # simulated
    clock_s: float  # monotonic
    held: Any = None
    held_s: float = 0.0
    past: deque[tuple[float, Any]] = field(default_factory=deque)
    left: int = 0


class Faults:
    """The faults of one twin, and what they make of its answers. Runs on the twin's thread.

    Args:
        plant: the simulated robot.
        wanted: what shall happen.
        tell: called with each fault that begins and the monotonic time of it [s].
    """

    def __init__(
        self, plant: Any, wanted: Sequence[Fault] = (), tell: Callable[[Fault, float], None] | None = None
    ) -> None:
        self._plant, self._tell = plant, tell
        self._waiting = list(wanted)
        self._live: list[_Live] = []
        self._joint = {name: j for j, name in enumerate(plant.spec.joint_names)}
        degrees = plant.reality.sensors.gyro_unit == "deg/s"
        self._other_unit = math.radians(1.0) if degrees else math.degrees(1.0)
        self._rng = np.random.default_rng([plant.seed, 7])

    def add(self, fault: Fault) -> None:
        """One more; it begins as the next `begin` says."""
        self._waiting.append(fault)

    def clear(self) -> None:
        """None any more."""
        for live in self._live:
            self._motor(live.fault, undo=True)
        self._waiting, self._live = [], []

    def begin(self) -> bool:
        """Begin those whose time has come; whether there was one."""
        due = [f for f in self._waiting if f.at_s is None or self._plant.driven_s >= f.at_s]
        for fault in due:
            self._waiting.remove(fault)
            live = _Live(fault, self._plant.time_s, time.monotonic(), left=round(fault.value))
            self._live.append(live)
            self._motor(fault)
            if self._tell is not None:
                self._tell(fault, live.clock_s)
        return bool(due)

    def _of(self, *kinds: str) -> list[_Live]:
        return [live for live in self._live if live.fault.kind in kinds] if self._live else []

    def _motor(self, fault: Fault, undo: bool = False) -> None:
        """What happens in the motor itself."""
        for name in fault.where:
            if fault.kind == "joint_jump":
                self._plant.offset[self._joint[name]] += -fault.value if undo else fault.value
            elif fault.kind == "joint_weak":
                self._plant.weaken(self._joint[name], 1.0 if undo else 0.0)

    def about(self, joint: int) -> dict[str, float]:
        """What is wrong with a joint: kind to value."""
        name = self._plant.spec.joint_names[joint]
        return {live.fault.kind: live.fault.value for live in self._live if name in live.fault.where}

    def behind(self, joint: int) -> int:
        """The joint that a joint's id reaches."""
        for live in self._of("joints_swapped"):
            pair = [self._joint[name] for name in live.fault.where]
            if joint in pair:
                joint = pair[1 - pair.index(joint)]
        return joint

    def sensed(self, sample: Any) -> Any:
        """The sample as it is told: `deploy.twin.plant.Sample`."""
        for live in self._live:
            change = getattr(self, f"_{live.fault.kind}", None)
            if change is not None:
                sample = dataclasses.replace(sample, **change(live, sample))
        return sample

    def _sensors(self, live: _Live) -> tuple[str, ...]:
        return tuple(IMU[name] for name in live.fault.where or tuple(IMU))

    def _imu_frozen(self, live: _Live, sample: Any) -> dict[str, Any]:
        live.held = live.held or sample
        return {name: getattr(live.held, name) for name in self._sensors(live)}

    def _imu_zero(self, live: _Live, sample: Any) -> dict[str, Any]:
        return {name: np.zeros_like(getattr(sample, name)) for name in self._sensors(live)}

    def _imu_nan(self, live: _Live, sample: Any) -> dict[str, Any]:
        return {name: np.full_like(getattr(sample, name), np.nan) for name in self._sensors(live)}

    def _gyro_unit(self, live: _Live, sample: Any) -> dict[str, Any]:
        return {"gyro_b": sample.gyro_b * self._other_unit}

    def _imu_turned(self, live: _Live, sample: Any) -> dict[str, Any]:
        axis = np.eye(3)["xyz".index(live.fault.where[0])]
        turn = rotation.from_rotvec(math.radians(live.fault.value) * axis)
        return {
            "quat_wxyz": rotation.multiply(sample.quat_wxyz, turn),
            "gyro_b": rotation.rotate_inverse(turn, sample.gyro_b),
            "accel_b": rotation.rotate_inverse(turn, sample.accel_b),
        }

    def _imu_rate(self, live: _Live, sample: Any) -> dict[str, Any]:
        if live.held is None or self._plant.time_s - live.held_s > 1.0 / live.fault.value - 0.5 * self._plant.dt:
            live.held, live.held_s = sample, self._plant.time_s
        return {name: getattr(live.held, name) for name in IMU.values()}

    def _imu_age(self, live: _Live, sample: Any) -> dict[str, Any]:
        now = self._plant.time_s
        live.past.append((now, sample))
        taken_s = now - live.fault.value * (now - live.began_s)
        while len(live.past) > 1 and live.past[1][0] <= taken_s:
            live.past.popleft()
        return {name: getattr(live.past[0][1], name) for name in IMU.values()}

    def _rows(self, live: _Live, sample: Any, change: Callable[[str, np.ndarray, int], float]) -> dict[str, Any]:
        told = {}
        for name in ("position", "velocity", "torque"):
            told[name] = values = getattr(sample, name).copy()
            for joint in live.fault.where:
                j = self._joint[joint]
                values[j] = change(name, values, j)
        return told

    def _joint_frozen(self, live: _Live, sample: Any) -> dict[str, Any]:
        live.held = live.held or sample
        return self._rows(live, sample, lambda name, _, j: getattr(live.held, name)[j])

    def _joint_inverted(self, live: _Live, sample: Any) -> dict[str, Any]:
        return self._rows(live, sample, lambda name, values, j: -values[j])

    def _joint_beyond(self, live: _Live, sample: Any) -> dict[str, Any]:
        spec, value = self._plant.spec.joints, live.fault.value
        return self._rows(
            live, sample, lambda name, values, j: spec[j].upper_rad + value if name == "position" else values[j]
        )

    async def hold(self, call: str) -> bool:
        """Wait as long as the server holds this call; whether it then fails."""
        for live in self._of("server_stall"):
            left = live.clock_s + live.fault.value - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
        for live in self._of("reads_lost") if call == "GetActuatorsState" else ():
            if live.left > 0:
                live.left -= 1
                await asyncio.sleep(NEVER_S)
                return True
        return any(self._rng.random() < live.fault.value for live in self._of("calls_lost"))
