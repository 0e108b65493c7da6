"""Channels that no longer change, though their answers keep coming.

A server that goes on publishing old values looks alive: its calls answer, and nothing carries a time stamp. So each
channel is judged by its values. A sensor of a moving robot never gives the same bits for long; the slowest IMU seen on
K-Bots gives a new value every third tick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.robot.faults import Fault, FaultKind
from deploy.robot.state import RobotState

# What is judged as a whole, and the fields of a reading that make it up.
CHANNELS = {
    "joints": ("joint_position", "joint_velocity"),
    "orientation": ("quat_wxyz",),
    "gyro": ("gyro_b",),
}


@dataclass(frozen=True, kw_only=True)
class FrozenLimits:
    """When a channel counts as frozen.

    Attributes:
        channel_ticks: a whole channel gave the same bits for more ticks than this.
        joint_ticks: one joint kept its position for more ticks than this since
        joint_moved_rad: its target had moved by more than this [rad].
        rest_rad: joints whose targets moved by less than this may all repeat their bits: quantised encoders at rest do.
        base_fixed: the base cannot move, as on a simulator that holds it: the IMU is not judged.
    """

    channel_ticks: int = 7
    joint_ticks: int = 25
    joint_moved_rad: float = 0.1
    rest_rad: float = 0.05
    base_fixed: bool = False


class FrozenChannels:
    """Counts, tick by tick, for how long each channel has not changed.

    Args:
        names: of the joints.
        limits: when that is a fault.
    """

    def __init__(self, names: tuple[str, ...], limits: FrozenLimits) -> None:
        self._names, self._limits = names, limits
        self._last: RobotState | None = None
        self.ticks = dict.fromkeys(CHANNELS, 0)
        self._same = 0  # readings in a row in which nothing at all was new
        self._joint = np.zeros(len(names), int)
        self._anchor = self._reach = np.zeros(len(names))

    @property
    def resting(self) -> bool:
        """The base is fixed and no target has moved since its joint came to rest: then nothing new need be measured."""
        return self._limits.base_fixed and bool(self._reach.max(initial=0.0) <= self._limits.rest_rad)

    def add(self, state: RobotState, target: np.ndarray) -> tuple[Fault, ...]:
        """One more reading, and the targets that were in force before it (joints,) [rad]; returns what is frozen."""
        last, self._last = self._last, state
        if last is None:
            self._anchor = target.copy()
            return ()
        self._same = self._same + 1 if state.same_reading(last) else 0
        for channel, fields in CHANNELS.items():
            same = all(np.array_equal(getattr(state, f), getattr(last, f)) for f in fields)
            self.ticks[channel] = self.ticks[channel] + 1 if same else 0
        # of each joint: the target when it came to rest, how far it went since, and for how long it has been far
        still = state.joint_position == last.joint_position
        self._anchor = np.where(still, self._anchor, target)
        self._reach = np.where(still, np.maximum(self._reach, np.abs(target - self._anchor)), 0.0)
        self._joint = np.where(self._reach > self._limits.joint_moved_rad, self._joint + 1, 0)
        return self._faults()

    def _faults(self) -> tuple[Fault, ...]:
        limits = self._limits
        if self._same > limits.channel_ticks // 2:
            return ()  # a stale robot, and told as such
        judged = ("joints",) if limits.base_fixed else tuple(CHANNELS)
        frozen = [c for c in judged if self.ticks[c] > limits.channel_ticks]
        if self._reach.max() <= limits.rest_rad:
            frozen = [c for c in frozen if c != "joints"]
        joints = [] if "joints" in frozen else np.flatnonzero(self._joint > limits.joint_ticks)
        return (
            *(
                Fault(kind=FaultKind.FROZEN, where=channel, value=self.ticks[channel], high=limits.channel_ticks)
                for channel in frozen
            ),
            *(
                Fault(
                    kind=FaultKind.FROZEN_JOINT,
                    where=self._names[i],
                    value=self._joint[i],
                    high=limits.joint_ticks,
                    detail=f"{limits.joint_moved_rad:g} rad",
                )
                for i in joints
            ),
        )
