"""Channels that no longer change, though their answers keep coming.

A server that goes on publishing old values looks alive: its calls answer, and nothing carries a time stamp. So each
channel is judged by its values. A sensor of a moving robot never gives the same bits for long; the slowest IMU seen on
K-Bots gives a new value every third tick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
        joint_ticks: one joint gave the same position for more ticks than this, while
        joint_moved_rad: its target moved by more than this within them [rad].
        base_fixed: the base cannot move, as on a simulator that holds it: the IMU is not judged.
    """

    channel_ticks: int = 10
    joint_ticks: int = 25
    joint_moved_rad: float = 0.1
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
        self._joint = np.zeros(len(names), int)
        self._low = self._high = np.zeros(len(names))

    def add(self, state: RobotState, target: np.ndarray) -> list[str]:
        """One more reading, and the targets that were in force before it (joints,) [rad].

        Returns:
            What is frozen, one line each; empty when nothing is.
        """
        last, self._last = self._last, state
        if last is None:
            self._low, self._high = target.copy(), target.copy()
            return []
        for channel, fields in CHANNELS.items():
            same = all(np.array_equal(getattr(state, f), getattr(last, f)) for f in fields)
            self.ticks[channel] = self.ticks[channel] + 1 if same else 0
        still = state.joint_position == last.joint_position
        self._joint = np.where(still, self._joint + 1, 0)
        self._low = np.where(still, np.minimum(self._low, target), target)
        self._high = np.where(still, np.maximum(self._high, target), target)
        return self._faults()

    def _faults(self) -> list[str]:
        limits, found = self._limits, []
        moved = self._high - self._low
        judged = ("joints",) if limits.base_fixed else tuple(CHANNELS)
        frozen = [c for c in judged if self.ticks[c] > limits.channel_ticks]
        if min(self.ticks.values()) > limits.channel_ticks // 2:
            return []  # nothing at all is new: that is a stale robot, and told as such
        for channel in frozen:
            # quantised encoders of a robot at rest repeat their bits too
            if channel == "joints" and moved.max() <= limits.joint_moved_rad / 2:
                continue
            found.append(f"frozen: {channel} gave the same values for {self.ticks[channel]} ticks")
        if "joints" not in frozen:
            for i in np.flatnonzero((self._joint > limits.joint_ticks) & (moved > limits.joint_moved_rad)):
                found.append(
                    f"frozen: {self._names[i]} gave the same position for {self._joint[i]} ticks, "
                    f"while its target moved by {moved[i]:.2f} rad"
                )
        return found
