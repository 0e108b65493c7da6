"""What is watched from tick to tick: each look at the robot, at the loop's own rate and at what safety changed."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import numpy as np

from deploy.errors import ConnectionLost
from deploy.robot.faults import Clamp, Fault, FaultKind
from deploy.robot.frozen import FrozenChannels, FrozenLimits
from deploy.robot.gyro import GyroCheck
from deploy.robot.safety import Limits, check_motion, check_state
from deploy.robot.state import RobotState

# The policy may have more than this share of its targets changed by safety for so long, without a pause.
CLAMPED_SHARE, CLAMPED_S = 0.5, 1.0
# Over how long the loop's rate is looked at.
SLOW_S = 1.0


class Monitor:
    """Counts what may happen for a while and not for long.

    Args:
        limits: of the robot.
        gyro: verdict on the gyro's unit and frame.
        period_s: of the loop [s].
        base_fixed: the base cannot move: an IMU that always says the same is none that hangs.
        late_max: the loop may be slower than in training by this share, over a second.
        lost_max: more ticks in a row without an answer are a fault.
        silent_max_s: no whole answer for longer than this is a fault [s].
        every: ticks for each step of the policy; what is judged by ticks is judged by steps.
        simulated: time is the simulator's.
    """

    def __init__(
        self,
        limits: Limits,
        gyro: GyroCheck,
        *,
        period_s: float,
        base_fixed: bool,
        late_max: float,
        lost_max: int,
        silent_max_s: float,
        every: int,
        simulated: bool,
    ) -> None:
        self._limits = replace(limits, stale_ticks_max=limits.stale_ticks_max * every)
        self._period_s, self._simulated = period_s, simulated
        self._late_max, self._lost_max = late_max, lost_max
        self._silent_max_s, self._heard_s = silent_max_s, math.inf
        frozen = FrozenLimits(base_fixed=base_fixed)
        frozen = replace(frozen, channel_ticks=frozen.channel_ticks * every, joint_ticks=frozen.joint_ticks * every)
        self._frozen = FrozenChannels(limits.names, frozen)
        self._recent: deque[float] = deque()
        self.gyro, self.gyro_done = gyro, False
        self.lost_in_row = self._stale_in_row = self._clamped_in_row = 0

    def look(
        self, state: RobotState, before: RobotState, target: np.ndarray, *, answered: bool, stale: bool
    ) -> tuple[Fault, ...]:
        """A tick's look at the robot.

        Args:
            state: newest that is known.
            before: of the tick before.
            target: in force between the two (joints,) [rad].
            answered: the robot was heard in this tick.
            stale: nothing new was measured.
        """
        rests = answered and self._frozen.resting
        self._stale_in_row = self._stale_in_row + 1 if stale and not rests else 0
        faults = check_state(state, self._limits, self._stale_in_row)
        if not answered:
            return faults
        dt = self._period_s if self._simulated else state.time_s - before.time_s
        # a jump comes first: what it is of can no longer say whether the robot fell
        faults = check_motion(state, before, dt, self._limits) + faults
        return faults or self._frozen.add(state, target) or self._turned(state, stale)

    def _turned(self, state: RobotState, stale: bool) -> tuple[Fault, ...]:
        if self.gyro_done or stale or self._simulated:
            return ()
        self.gyro.add(state)
        if self.gyro.verdict == "not enough motion":
            return ()
        self.gyro_done = True
        wrong = self.gyro.verdict == "wrong"
        return (Fault(kind=FaultKind.GYRO, where="gyro", detail=self.gyro.message),) if wrong else ()

    def heard(self, now: float) -> None:
        """Everything that was asked in a tick was answered, by now [s]."""
        self.lost_in_row, self._heard_s = 0, now

    def lost(self, error: ConnectionLost, now: float, *, again: bool = False) -> tuple[Fault, ...]:
        """A tick in which an answer did not come: neither too many in a row, nor for as long as a loop may be silent.

        Args:
            error: what was said.
            now: the time [s].
            again: of a tick that has lost an answer already.
        """
        self.lost_in_row += not again
        silent = now - self._heard_s
        if self.lost_in_row <= self._lost_max and silent <= self._silent_max_s:
            return ()
        ticks = f"{self.lost_in_row} tick{'s' * (self.lost_in_row > 1)} in a row"
        detail = f"{ticks} without an answer, {silent:.2f} s: {error}"
        return (Fault(kind=FaultKind.LOST, value=self.lost_in_row, high=self._lost_max, detail=detail),)

    def ended(self, now: float, round_trip_s: float) -> tuple[Fault, ...]:
        """The end of a tick [s]: over the last second the loop was about as fast as in training."""
        if self._simulated:
            return ()
        recent = self._recent
        recent.append(now)
        while len(recent) > 2 and recent[1] <= now - SLOW_S:
            recent.popleft()
        took = now - recent[0]
        nominal = (len(recent) - 1) * self._period_s
        if took < SLOW_S or took <= (1.0 + self._late_max) * nominal:
            return ()
        rate, wanted = (len(recent) - 1) / took, 1.0 / self._period_s
        detail = (
            f"too slow: {rate:.1f} ticks a second over the last {took:.1f} s, {wanted:g} are due "
            f"(state round trip {1e3 * round_trip_s:.0f} ms); look at the link and what else runs here"
        )
        return (Fault(kind=FaultKind.TOO_SLOW, value=rate, low=wanted / (1.0 + self._late_max), detail=detail),)

    def sent(self, clamps: tuple[Clamp, ...], *, by_policy: bool) -> tuple[Fault, ...]:
        """A target was sent after safety had changed this of it."""
        share = len({clamp.joint for clamp in clamps}) / len(self._limits.names)
        self._clamped_in_row = self._clamped_in_row + 1 if by_policy and share > CLAMPED_SHARE else 0
        if self._clamped_in_row * self._period_s <= CLAMPED_S:
            return ()
        detail = (
            f"safety changed the targets of more than half of the joints for {CLAMPED_S:g} s without a pause: the "
            "policy asks for what this robot may not do; look at its robot, its units and its inputs"
        )
        return (Fault(kind=FaultKind.CLAMPED, value=share, high=CLAMPED_SHARE, detail=detail),)
