"""The control loop: one grid of absolute deadlines from the first tick of the ramp to the last of the policy.

Named behaviour when time or the network misbehave:
- slow: fewer ticks in a second than training had, by more than a share, end the run;
- late: a tick that ends after the next deadline is an overrun; the next tick starts at once if that is
  less than half a period late, else it is skipped, so that ticks never come in a burst;
- lost: an answer that does not come within the tick counts as lost; the policy goes on with the state
  before (stale) and the robot with the target before; too many in a row end the run;
- stale: readings equal to the bit to the ones before count as stale; too many in a row end the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.bundle.envelope import Envelope
from deploy.bundle.session import OnnxPolicy, observe
from deploy.control.commands import Schedule
from deploy.control.watchdog import Watchdog
from deploy.errors import ConnectionLost, DeployError, FaultError
from deploy.log.recorder import Recorder, Tick
from deploy.robot.damping import damp_joints
from deploy.robot.frozen import FrozenChannels, FrozenLimits
from deploy.robot.kos import GyroCheck, KosRobot
from deploy.robot.safety import (
    FALL,
    Limits,
    SafeTarget,
    check_action,
    check_motion,
    check_state,
    damp,
    hold,
    limit,
    nominal,
)
from deploy.robot.state import RobotState
from robots.spec import PolicySpec

# Shares of the period that a state may take to come, and a command to be acknowledged.
READ_SHARE, COMMAND_SHARE = 0.75, 1.0
# asyncio wakes up to a millisecond late (epoll counts in milliseconds), sleep up to a tenth of one.
COARSE_S, FINE_S = 0.0016, 0.0002
# A server that restarts is back within seconds, its motors still stiff.
DAMP_FOR_S = 8.0
DAMP_TIMEOUT_S = 0.5
SETTLE_S = 1.0
# The policy may have more than this share of its targets changed by safety for so long, without a pause.
CLAMPED_SHARE, CLAMPED_S = 0.5, 1.0
# How often the gains that the server reports are compared with those it was sent.
GAINS_S = 0.1
_NAN = float("nan")


class Fall(FaultError):
    """The robot tilted beyond the limit."""


class Stopped(Exception):
    """A signal asked for the end; carries its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass
class Stop:
    """Set by a signal handler, looked at once a tick."""

    signum: int = 0
    event: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, signum: int) -> None:
        """Ask for the end; the first signal counts."""
        self.signum = self.signum or signum
        self.event.set()

    def check(self) -> None:
        """Raise Stopped when the end was asked for."""
        if self.signum:
            raise Stopped(self.signum)


@dataclass
class Counts:
    """What happened in a run, counted."""

    ramp_ticks: int = 0
    run_ticks: int = 0
    overruns: int = 0
    skipped: int = 0
    lost_states: int = 0
    lost_commands: int = 0
    stale: int = 0
    clamped_ticks: int = 0
    clamps: Counter[str] = field(default_factory=Counter)
    starts: list[tuple[int, float, float]] = field(default_factory=list)
    state_round_trips: list[float] = field(default_factory=list)
    command_round_trips: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The collector stops the world for milliseconds; a run allocates little and without cycles."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


def smooth(share: float) -> float:
    """Minimum-jerk profile from 0 to 1: speed and acceleration are 0 at both ends."""
    s = min(max(share, 0.0), 1.0)
    return s * s * s * (10.0 + s * (6.0 * s - 15.0))


class ControlLoop:
    """One run on one robot.

    Args:
        robot: connected.
        spec: what the policy and the robot are.
        policy: loaded.
        schedule: what is asked of the policy over time.
        limits: of the robot.
        recorder: open.
        stop: where signals arrive.
        ramp_s: time to go to the home pose [s].
        duration_s: time to run the policy [s].
        step_lock: advance a simulator by a period after each tick, in place of waiting.
        lost_ticks_max: more lost ticks in a row than this end the run.
        home_tolerance_rad: a pose that is this near to home needs no ramp [rad].
        damp_for_s: how long to try to damp a robot that does not answer [s].
        on_second: called about once a second with a line to show.
        watchdog: told of every tick; None runs without one.
        late_max: the loop may be slower than in training by this share, over a second.
        base_fixed: the base cannot move: an IMU that always says the same is none that hangs.

    Attributes:
        left_stiff: names of the joints that did not acknowledge to be damped at the end.
    """

    def __init__(
        self,
        *,
        robot: KosRobot,
        spec: PolicySpec,
        policy: OnnxPolicy,
        schedule: Schedule,
        limits: Limits,
        recorder: Recorder,
        stop: Stop,
        ramp_s: float,
        duration_s: float,
        step_lock: bool = False,
        lost_ticks_max: int = 7,
        home_tolerance_rad: float = 0.1,
        damp_for_s: float = DAMP_FOR_S,
        on_second: Callable[[str], None] | None = None,
        watchdog: Watchdog | None = None,
        base_fixed: bool = False,
        late_max: float = 0.25,
    ) -> None:
        self._late_max = late_max
        self._recent: deque[float] = deque(maxlen=1 + max(2, round(1.0 / spec.control_period_s)))
        self._watchdog = watchdog
        self.left_stiff: tuple[str, ...] = ()
        self._robot, self._spec, self._policy, self._schedule = robot, spec, policy, schedule
        self._limits, self._recorder, self._stop = limits, recorder, stop
        self._ramp_s, self._duration_s, self._step_lock = ramp_s, duration_s, step_lock
        self._lost_max, self._tolerance, self._on_second = lost_ticks_max, home_tolerance_rad, on_second
        self._damp_for_s = damp_for_s
        self.period_s = spec.control_period_s
        self._gains_due = self._gains_every = max(1, round(GAINS_S / self.period_s))
        # a simulator in lock step waits for us, so we can wait for it
        self._patience = 500.0 if step_lock else 1.0
        self.counts = Counts()
        self._names = tuple(a.name for a in spec.inputs)
        self._envelope = Envelope.from_spec(spec)
        self._home = np.asarray(spec.robot.column("home_rad"))
        self._gyro = GyroCheck(robot.gyro_unit)
        self._frozen = FrozenChannels(limits.names, FrozenLimits(base_fixed=base_fixed))
        self._gyro_done = False
        self._lost_in_row = self._stale_in_row = self._clamped_in_row = 0
        self._heading = self._heard = 0.0
        self._epoch = time.monotonic()
        self._touched = self._configuring = False
        self._tick_done = -1
        self._ramp_ticks = 0

    @property
    def survived_s(self) -> float:
        """How long the policy ran [s]: periods begun and not ended by a fault."""
        return self.counts.run_ticks * self.period_s

    def _now(self) -> float:
        return time.monotonic() - self._epoch

    def event(self, kind: str, message: str) -> None:
        """Write an event to the log; where that fails the next tick's writing ends the run, this does not."""
        with contextlib.suppress(OSError):
            self._recorder.event(self._now(), kind, message)

    async def run(self, first: RobotState) -> None:
        """Configure, ramp, run the policy to the end of its time.

        Raises:
            DeployError: what ended the run early.
            Stopped: a signal did.
        """
        self._state = first
        self._from = first.joint_position
        self._sent, self._sent_tick = first.joint_position, -1
        far = float(np.max(np.abs(first.joint_position - self._home)))
        ramp_ticks = 0 if far <= self._tolerance else round(self._ramp_s / self.period_s)
        run_ticks = max(1, round(self._duration_s / self.period_s))
        self._touched = True
        if self._watchdog is not None:
            self._watchdog.touched()
        # The target first: gains on an old target would jump there.
        await self._robot.command(hold(first))
        self._configuring = True
        if self._watchdog is not None:
            self._watchdog.check()
        await self._robot.configure(nominal(self._limits))
        self._configuring = False
        if self._watchdog is not None:
            self._watchdog.check()  # it may have damped the robot while this process hung
        different = await self._robot.gain_differences(nominal(self._limits))
        self._gains_at_first = different
        if different:
            self.event("gains", "; ".join(different))
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            self.counts.warnings.append(
                f"the server reports other gains than it was sent: {'; '.join(different[:3])}{more}"
            )
        self._ramp_ticks = ramp_ticks
        self.event("phase", f"ramp: {ramp_ticks} ticks, {far:.3f} rad from home; then {run_ticks} ticks of the policy")
        with _no_garbage_collection():
            await self._grid(ramp_ticks + run_ticks)

    async def _grid(self, ticks: int) -> None:
        period, k = self.period_s, 0
        t0 = self._now() + 0.5 * period
        shown = self._heard = t0
        while k < ticks:
            self._stop.check()
            scheduled = k * period if self._step_lock else t0 + k * period
            if not self._step_lock:
                await self._wait_until(scheduled)
            await self._tick(k, scheduled)
            self._check_rate(k)
            following = k + 1
            if self._step_lock:
                await self._robot.step_simulation(period)
            else:
                now = self._now()
                late = now - (t0 + following * period)
                self.counts.overruns += late > 0
                if late > 0.5 * period:
                    following = math.floor((now - t0) / period) + 1
                    self.counts.skipped += following - (k + 1)
                if self._on_second is not None and now - shown >= 1.0:
                    shown = now
                    self._on_second(f"{now - t0:.0f} s: tick {k}, tilt {self._state.tilt_rad:.2f} rad")
            k = following
        if not self._step_lock:
            await self._wait_until(t0 + ticks * period)
        if not self._gyro_done:
            self.event("gyro", self._gyro.message)

    async def _wait_until(self, deadline: float) -> None:
        """Sleep, then nap, then spin to a deadline of this run's clock."""
        left = deadline - self._now()
        if left > COARSE_S:
            await asyncio.sleep(left - COARSE_S)
            left = deadline - self._now()
        if left > FINE_S:
            time.sleep(left - FINE_S)  # nothing of ours is in flight between ticks
        while self._now() < deadline:
            pass

    async def _read(self) -> tuple[RobotState, bool, float]:
        """(state, stale, round trip); the state before where none came in time."""
        try:
            state = await self._robot.read(READ_SHARE * self.period_s * self._patience)
        except ConnectionLost as error:
            self.counts.lost_states += 1
            self._lost(error)
            return self._state, True, _NAN
        self.counts.state_round_trips.append(state.round_trip_s)
        return state, state.same_reading(self._state), state.round_trip_s

    def _check_rate(self, k: int) -> None:
        """Over the last second the loop was about as fast as in training."""
        if self._step_lock:
            return
        self._recent.append(self._now())
        took = self._recent[-1] - self._recent[0]
        nominal = (len(self._recent) - 1) * self.period_s
        if len(self._recent) == self._recent.maxlen and took > (1.0 + self._late_max) * nominal:
            rate = (len(self._recent) - 1) / took
            raise FaultError(
                f"too slow: {rate:.1f} ticks a second over the last {took:.1f} s, {1.0 / self.period_s:g} were trained "
                f"(state round trip {1e3 * self._state.round_trip_s:.0f} ms); look at the link and what else runs here"
            )

    def _lost(self, error: ConnectionLost) -> None:
        self._lost_in_row += 1
        self._recent.clear()  # a tick that waits for an answer is long, and told of as lost
        self.event("lost", str(error))
        self._check_lost(error)

    def _check_lost(self, error: ConnectionLost) -> None:
        """Neither too many ticks in a row, nor for as long as a loop may be silent, without an answer."""
        silent = self._now() - self._heard
        limit_s = math.inf if self._watchdog is None else self._watchdog.limit_s
        if self._lost_in_row > self._lost_max or silent > limit_s:
            if self._watchdog is not None:
                self._watchdog.check()  # where this process was held up, it was not the link
            ticks = f"{self._lost_in_row} tick{'s' * (self._lost_in_row > 1)} in a row"
            raise ConnectionLost(f"{ticks} without an answer, {silent:.2f} s: {error}") from error

    def _check_gyro(self, state: RobotState) -> None:
        self._gyro.add(state)
        if self._gyro.verdict == "not enough motion":
            return
        self._gyro_done = True
        self.event("gyro", self._gyro.message)
        if self._gyro.verdict == "wrong":
            raise FaultError(self._gyro.message)

    def _check_gains(self) -> None:
        """The gains that the server reports are still those it reported when they were set."""
        different = self._robot.gains_seen(nominal(self._limits))
        known = {line.partition(" is ")[0] for line in self._gains_at_first}
        changed = [line for line in different if line.partition(" is ")[0] not in known]
        if changed:
            raise FaultError(
                f"gains changed during the run: {'; '.join(changed[:3])}; another program commands this robot: stop it"
            )

    async def _tick(self, k: int, scheduled: float) -> None:
        if self._watchdog is not None:
            self._watchdog.beat()
        start = scheduled if self._step_lock else self._now()
        lost_before = self._lost_in_row
        before = self._state
        state, stale, state_round_trip = await self._read()
        self._state = state
        self._stale_in_row = self._stale_in_row + 1 if stale else 0
        self.counts.stale += stale
        state_s = start + state_round_trip if self._step_lock else state.time_s - self._epoch
        faults = check_state(state, self._limits, self._stale_in_row)
        if not math.isnan(state_round_trip):
            dt = self.period_s if self._step_lock else state.time_s - before.time_s
            # a jump comes first: what it is of can no longer say whether the robot fell
            faults = check_motion(state, before, dt, self._limits) + faults
            faults = faults or self._frozen.add(state, self._sent)
        if faults:
            kind = Fall if faults[0].startswith(FALL) else FaultError
            raise kind("; ".join(faults).removeprefix(FALL))
        if not self._gyro_done and not stale and not self._step_lock:
            self._check_gyro(state)
        if k >= self._gains_due and not stale:
            self._gains_due = k + self._gains_every
            self._check_gains()

        phase, inputs, action, target = self._decide(k, state)
        # how far the target may move counts from the last one that the robot acknowledged
        safe = limit(target, self._sent, state, self._limits, (k - self._sent_tick) * self.period_s)
        command_s = command_round_trip = _NAN
        try:
            command_round_trip = await self._robot.command(safe, COMMAND_SHARE * self.period_s * self._patience)
            command_s = start + command_round_trip if self._step_lock else self._now()
            self._sent, self._sent_tick = safe.rad, k
            self.counts.command_round_trips.append(command_round_trip)
            if self._lost_in_row == lost_before:
                self._lost_in_row, self._heard = 0, self._now()
        except ConnectionLost as error:
            self.counts.lost_commands += 1
            if self._lost_in_row == lost_before:
                self._lost(error)
            else:  # a tick that lost both counts once
                self._check_lost(error)
        finally:
            self._recorder.tick(
                self._record(
                    state,
                    tick=k,
                    phase=phase,
                    scheduled_s=scheduled,
                    start_s=start,
                    state_s=state_s,
                    command_s=command_s,
                    state_round_trip_s=state_round_trip,
                    command_round_trip_s=command_round_trip,
                    inputs=inputs,
                    action=action,
                    sent=safe.rad,
                    safety=safe.reasons,
                    stale=stale,
                )
            )
            self._count(k, phase, scheduled, start, safe)

    def _decide(self, k: int, state: RobotState) -> tuple[str, dict[str, np.ndarray], np.ndarray | None, np.ndarray]:
        """(phase, inputs, action, target) of a tick."""
        if self._clamped_in_row * self.period_s > CLAMPED_S:
            raise FaultError(
                f"safety changed the targets of more than half of the joints for {CLAMPED_S:g} s without a pause: the "
                "policy asks for what this robot may not do; look at its robot, its units and its inputs"
            )
        if k < self._ramp_ticks:
            share = smooth((k + 1) / self._ramp_ticks)
            return "ramp", {}, None, self._from + share * (self._home - self._from)
        if self.counts.run_ticks == 0:
            self._policy.reset()
            self._heading = state.heading_rad
        time_s = (k - self._ramp_ticks) * self.period_s
        inputs = observe(self._names, state, self._schedule.at(time_s), time_s, self._heading)
        if self.counts.run_ticks == 0:
            self._check_envelope(inputs)
        action = self._policy.step(inputs)
        wild = check_action(action, self._limits)
        if wild:
            raise FaultError("; ".join(wild))
        return "run", inputs, action, action

    def _check_envelope(self, inputs: dict[str, np.ndarray]) -> None:
        """What is measured before the policy's first step is what it met in training."""
        outside = self._envelope.outside(inputs)
        if outside:
            more = f"; and {len(outside) - 3} more" if len(outside) > 3 else ""
            raise FaultError(
                f"the policy was not started: {'; '.join(outside[:3])}{more}; "
                "check joint order, zero offsets, units and how the robot hangs"
            )

    def _count(self, k: int, phase: str, scheduled: float, start: float, safe: SafeTarget) -> None:
        counts = self.counts
        joints = {reason.partition(": ")[0] for reason in safe.reasons}
        many = phase == "run" and len(joints) > CLAMPED_SHARE * len(self._home)
        self._clamped_in_row = self._clamped_in_row + 1 if many else 0
        self._tick_done = k
        counts.starts.append((k, scheduled, start))
        counts.ramp_ticks += phase == "ramp"
        counts.run_ticks += phase == "run"
        counts.clamped_ticks += bool(safe.reasons)
        counts.clamps.update(reason.rpartition(": ")[2] for reason in safe.reasons)

    @staticmethod
    def _record(state: RobotState, **values: Any) -> Tick:
        names = ("joint_position", "joint_velocity", "joint_torque", "quat_wxyz", "gyro_b", "accel_b")
        return Tick(**values, **{name: getattr(state, name) for name in names})

    async def damp(self) -> bool:
        """Leave the robot damped: no stiffness, nominal damping, the measured position as target.

        Tries again and again for `damp_for_s`. Does nothing to a robot that was not touched.

        Returns:
            Whether every joint acknowledged its gains; without stiffness a target has no force.
        """
        if not self._touched:
            return True
        leaving = None if self._watchdog is None else self._watchdog.leaving
        # gains that were not acknowledged may still be on their way
        settle_s = SETTLE_S if self._configuring else 0.0
        gains = damp(self._limits)
        result = await damp_joints(self._robot, gains, self._damp_for_s, on_round=leaving, settle_s=settle_s)
        self.left_stiff = tuple(result.left)
        message = result.message
        if result.done:
            try:
                await self._hold()
                message += ", target at the measured position"
            except DeployError as error:  # a target has no force without stiffness
                message += f"; the target could not be set to the measured position: {error}"
        self.event("damp", message)
        return result.done

    async def _hold(self) -> None:
        start = self._now()
        # What ended the run is often a fault or a silent sensor: then the last good reading has to do.
        fresh = False
        with contextlib.suppress(DeployError):
            self._state = await self._robot.read(DAMP_TIMEOUT_S)
            fresh = True
        target = hold(self._state)
        took = await self._robot.command(target, DAMP_TIMEOUT_S)
        self._tick_done += 1
        record = self._record(
            self._state,
            tick=self._tick_done,
            phase="damp",
            scheduled_s=start,
            start_s=start,
            state_s=self._state.time_s - self._epoch,
            command_s=self._now(),
            state_round_trip_s=self._state.round_trip_s if fresh else _NAN,
            command_round_trip_s=took,
            inputs={},
            action=None,
            sent=target.rad,
            stale=not fresh,
        )
        with contextlib.suppress(OSError):  # a full disk may be what ended the run
            self._recorder.tick(record)
