"""Take the stiffness out of a robot, joint by joint, until each has acknowledged it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.errors import DeployError
from deploy.robot.interface import Robot
from deploy.robot.safety import Gains

# How long the joints of the first round may take to acknowledge, and how long to wait before the next round [s].
TIMEOUT_S, AGAIN_S = 0.5, 0.05
# No round waits longer: the watchdog hears of each, and takes over where it hears nothing for 2 s.
PATIENCE_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Damping:
    """How it went.

    Attributes:
        joints: number of joints that acknowledged.
        left: joints that did not, and what was said of each last.
        took_s: from the first request to the last acknowledgement, or until it was given up [s].
    """

    joints: int
    left: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def done(self) -> bool:
        """Whether every joint acknowledged."""
        return not self.left

    @property
    def message(self) -> str:
        """One line."""
        if self.done:
            return f"damped: kp 0, kd nominal on {self.joints} joints, {1e3 * self.took_s:.0f} ms"
        why = "; ".join(f"{name}: {reason}" for name, reason in list(self.left.items())[:4])
        more = f"; and {len(self.left) - 4} more" if len(self.left) > 4 else ""
        return (
            f"NOT damped: {len(self.left)} of {self.joints + len(self.left)} joints keep their last gains and "
            f"target: {why}{more}"
        )


async def _still_stiff(robot: Robot) -> dict[str, str]:
    try:
        return await robot.stiff(TIMEOUT_S)
    except Exception:  # it acknowledged, and cannot be asked
        return {}


async def damp_joints(
    robot: Robot, gains: Gains, for_s: float, *, on_round: Callable[[], None] | None = None, settle_s: float = 0.0
) -> Damping:
    """Send gains to every joint, then again to those that did not acknowledge, for `for_s` at most.

    A joint that refuses, or a server that is slow with each joint, keeps no other joint stiff. Each round waits twice
    as long as the one before: a server that works through what it was asked, one joint after the other, would only be
    asked for more. What acknowledged is read back, where the server tells gains.

    Args:
        robot: whether connected or not; without a connection it is sought in each round.
        gains: of `deploy.robot.safety.damp`.
        for_s: how long to try [s]. There is one round at least.
        on_round: called before each round.
        settle_s: other gains may have been on their way before: what is read back counts only after this time [s].
    """
    began = time.monotonic()
    left = dict.fromkeys(robot.spec.joint_names, "not asked yet")
    patience = TIMEOUT_S
    while True:
        if on_round is not None:
            on_round()
        try:
            within = max(TIMEOUT_S, min(patience, for_s - (time.monotonic() - began)))
            if not robot.connected:
                await robot.connect(within)
            left = await robot.configure_each(gains, tuple(left), within)
        except Exception as error:  # whatever it is, the robot may be stiff: the next round tries again
            text = str(error) if isinstance(error, DeployError) else f"{type(error).__name__}: {error}"
            left = dict.fromkeys(left, " ".join(text.split())[:300])
        patience = min(2.0 * patience, PATIENCE_S)
        if not left:
            wait = settle_s - (time.monotonic() - began)
            if wait > 0:
                await asyncio.sleep(wait)
            left = await _still_stiff(robot)
        took = time.monotonic() - began
        if not left or took > for_s:
            return Damping(joints=len(robot.spec.joints) - len(left), left=left, took_s=took)
        await asyncio.sleep(AGAIN_S)
