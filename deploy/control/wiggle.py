"""Moves one joint at a time by a little, everything else held, and records what moved. Damps the robot at the end.

The robot hangs on its gantry. Every joint is stiff at the pose it was found in; a joint that leaves that pose by more
than a wiggle should ends it, so a wrong unit or sign is met within the first hundredths of a radian.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from deploy.control.judge_joints import Wiggled
from deploy.control.smooth import smooth
from deploy.control.stop import Stop
from deploy.control.watchdog import DAMP_FOR_S, SETTLE_S, Watchdog
from deploy.errors import FaultError
from deploy.robot.damping import Damping, damp_joints
from deploy.robot.faults import text_of
from deploy.robot.interface import Robot
from deploy.robot.safety import Limits, check_motion, check_state, damp, hold, limit, nominal
from deploy.robot.state import RobotState

# Out, still, and back [s]. A K-Bot's knee follows within kd/kp = 0.13 s, its hip roll within 0.17 s.
OUT_S, STILL_S = 0.4, 0.6
# The mean of so long before, and at the end of being still, is what a joint moved [s].
MEAN_S = 0.1
# How often it may leave its pose by what a wiggle is, before the wiggle is ended.
FAR = 3.0


class Wiggle:
    """Wiggles joints of one robot.

    Args:
        robot: connected.
        limits: of the robot.
        period_s: control period [s].
        amplitude_rad: how far a joint goes [rad].
        stop: where signals arrive.
        watchdog: told of every tick; None goes without.
        on_joint: called with the name of each joint before it moves.

    Attributes:
        done: what the joints that were moved did.
        gains: where the robot reports other gains than it was sent.
        ended: what ended it early; empty where nothing did.
    """

    def __init__(
        self,
        robot: Robot,
        limits: Limits,
        period_s: float,
        amplitude_rad: float,
        *,
        stop: Stop,
        watchdog: Watchdog | None = None,
        on_joint: Callable[[str], None] | None = None,
    ) -> None:
        self._robot, self._limits, self._period_s = robot, limits, period_s
        self._amplitude, self._stop, self._watchdog, self._on_joint = amplitude_rad, stop, watchdog, on_joint
        self._touched = self._configuring = False
        self.done: list[Wiggled] = []
        self.gains: list[str] = []
        self.ended = ""

    async def run(self, first: RobotState, joints: Sequence[str]) -> None:
        """Make the robot stiff where it is, and wiggle joints by name.

        Raises:
            DeployError: what ended it early.
            Stopped: a signal did.
        """
        self._state, self._pose, self._sent = first, np.array(first.joint_position), np.array(first.joint_position)
        self._due = time.monotonic()
        self._touched = True
        if self._watchdog is not None:
            self._watchdog.touched()
        # the target first: gains on an old target would jump there
        await self._robot.command(hold(first))
        self._configuring = True
        await self._robot.configure(nominal(self._limits))
        self._configuring = False
        self.gains = await self._robot.gain_differences(nominal(self._limits))
        self._due = time.monotonic()
        await self._hold(STILL_S + self._robot.settle_s)
        for name in joints:
            if self._on_joint is not None:
                self._on_joint(name)
            await self._wiggle(self._limits.names.index(name))

    async def damp(self) -> Damping | None:
        """Leave the robot damped; None where it was not touched."""
        if not self._touched:
            return None
        leaving = None if self._watchdog is None else self._watchdog.leaving
        settle_s = SETTLE_S if self._configuring else 0.0  # gains that were not acknowledged may be on their way
        result = await damp_joints(self._robot, damp(self._limits), DAMP_FOR_S, on_round=leaving, settle_s=settle_s)
        with contextlib.suppress(Exception):  # a target has no force without stiffness
            await self._robot.command(hold(await self._robot.read()))
        return result

    async def _wiggle(self, row: int) -> None:
        limits, pose = self._limits, self._pose
        # away from the nearer end of its range
        up = limits.upper[row] - pose[row] > pose[row] - limits.lower[row]
        asked = self._amplitude if up else -self._amplitude
        before = await self._hold(MEAN_S)
        ticks = max(1, round(OUT_S / self._period_s))
        for k in range(ticks):
            await self._tick(row, asked * smooth((k + 1) / ticks))
        await self._hold(STILL_S - MEAN_S, row, asked)
        moved = await self._hold(MEAN_S, row, asked) - before
        self.done.append(Wiggled(joint=limits.names[row], asked_rad=asked, moved_rad=moved))
        for k in range(ticks):
            await self._tick(row, asked * smooth(1.0 - (k + 1) / ticks))
        await self._hold(STILL_S - MEAN_S)

    async def _hold(self, for_s: float, row: int = 0, offset: float = 0.0) -> np.ndarray:
        """Stay; the mean of what was measured (joints,) [rad]."""
        seen = []
        for _ in range(max(1, round(for_s / self._period_s))):
            await self._tick(row, offset)
            seen.append(self._state.joint_position)
        return np.mean(seen, axis=0)

    async def _tick(self, row: int, offset: float) -> None:
        self._stop.check()
        if self._watchdog is not None:
            self._watchdog.beat()
        before, self._state = self._state, await self._robot.read()
        dt = self._state.time_s - before.time_s
        faults = check_state(self._state, self._limits) + check_motion(self._state, before, dt, self._limits)
        if faults:
            raise FaultError(text_of(faults), faults)
        self._check_far(row, offset)
        target = self._pose.copy()
        target[row] += offset
        safe = limit(target, self._sent, self._state, self._limits, self._period_s)
        await self._robot.command(safe)
        self._sent = safe.rad
        self._due = max(self._due + self._period_s, time.monotonic())
        await asyncio.sleep(self._due - time.monotonic())

    def _check_far(self, row: int, offset: float) -> None:
        """No joint is farther from its pose than a wiggle takes it, and sags a little under its own weight."""
        away = self._state.joint_position - self._pose
        far = np.flatnonzero(np.abs(away) > FAR * self._amplitude)
        if far.size:
            names = self._limits.names
            told = ", ".join(f"{names[i]} by {away[i]:+.3f} rad" for i in far[:3])
            asked = f"{names[row]} was asked to by {offset:+.3f} rad" if offset else "nothing was asked to move"
            raise FaultError(f"{told} went away from the pose, where {asked}: its unit, sign or id is another")
