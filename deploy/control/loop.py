"""The control loop: one grid of absolute deadlines from the first tick to the last.

What is done in a tick is said by deploy/control/machine.py; this module looks, does it and keeps time. Named behaviour
when time or the network misbehave:
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
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deploy.bundle.envelope import Envelope
from deploy.bundle.margins import link_warnings
from deploy.bundle.preflight import command_vector
from deploy.bundle.session import OnnxPolicy, observe
from deploy.control.commands import CommandSource
from deploy.control.machine import Machine, Order, Plan, Reading, step
from deploy.control.monitor import Monitor
from deploy.control.realtime import no_garbage_collection
from deploy.control.smooth import smooth
from deploy.control.stop import Stop
from deploy.control.watchdog import DAMP_FOR_S, SETTLE_S, Watchdog
from deploy.errors import ConnectionLost, DeployError, FaultError, LogError
from deploy.log.recorder import Recorder, Tick
from deploy.log.timing import STAGES, TickTimes
from deploy.robot.damping import damp_joints
from deploy.robot.faults import Fault, FaultKind, faults_of, text_of
from deploy.robot.gyro import GyroCheck
from deploy.robot.interface import Robot
from deploy.robot.safety import Limits, SafeTarget, check_action, damp, hold, limit, nominal, off
from deploy.robot.state import MEASURED, RobotState
from deploy.view.run import RunView
from robots.spec import PolicySpec

# Shares of the period that a state may take to come, and a command to be acknowledged.
READ_SHARE, COMMAND_SHARE = 0.75, 1.0
# asyncio wakes up to a millisecond late (epoll counts in milliseconds), sleep up to a tenth of one.
COARSE_S, FINE_S = 0.0016, 0.0002
DAMP_TIMEOUT_S = 0.5
# How often the gains that the server reports are compared with those it was sent.
GAINS_S = 0.1
_NAN = float("nan")
_PHASES = {
    Order.RAMP: "ramp",
    Order.COMPARE: "ready",
    Order.POLICY: "run",
    Order.REST: "stop",
    Order.SOFTEN: "stop",
}


@dataclass
class Counts:
    """What happened in a run, counted."""

    ramp_ticks: int = 0
    run_ticks: int = 0
    between_ticks: int = 0
    stop_ticks: int = 0
    overruns: int = 0
    lost_states: int = 0
    lost_commands: int = 0
    lost_in_row_max: int = 0
    stale: int = 0
    clamped_ticks: int = 0
    clamps: Counter[str] = field(default_factory=Counter)
    times: TickTimes = field(default_factory=TickTimes)
    warnings: list[str] = field(default_factory=list)


class ControlLoop:
    """One run on one robot.

    Args:
        robot: connected.
        spec: what the policy and the robot are.
        policy: loaded.
        commands: where the policy's commands come from.
        limits: of the robot.
        recorder: open.
        stop: where the wish for the end arrives.
        plan: how long each phase takes.
        step_lock: advance a simulator by a period after each tick, in place of waiting.
        lost_ticks_max: more lost ticks in a row than this end the run.
        home_tolerance_rad: a pose that is this near to home needs no ramp [rad].
        damp_for_s: how long to try to damp a robot that does not answer [s].
        on_second: called about once a second with a line to show.
        watchdog: told of every tick; None runs without one.
        late_max: the loop may be slower than in training by this share, over a second.
        base_fixed: the base cannot move: an IMU that always says the same is none that hangs.
        every: ticks for each step of the policy. In those between, the robot is looked at, and the policy's last target
            is sent again after safety.
        on_warning: called, in a thread of its own, with what a person should know before the policy starts.
        view: shown what each tick did; None for no view.

    Attributes:
        machine: where the run is.
        counts: what happened.
        left_stiff: names of the joints that did not acknowledge the safe stop.
        off: the motors have no torque.
    """

    def __init__(
        self,
        *,
        robot: Robot,
        spec: PolicySpec,
        policy: OnnxPolicy,
        commands: CommandSource,
        limits: Limits,
        recorder: Recorder,
        stop: Stop,
        plan: Plan,
        step_lock: bool = False,
        lost_ticks_max: int = 7,
        home_tolerance_rad: float = 0.1,
        damp_for_s: float = DAMP_FOR_S,
        on_second: Callable[[str], None] | None = None,
        watchdog: Watchdog | None = None,
        base_fixed: bool = False,
        late_max: float = 0.25,
        every: int = 1,
        on_warning: Callable[[str], None] | None = None,
        view: RunView | None = None,
    ) -> None:
        self._robot, self._spec, self._policy, self._commands = robot, spec, policy, commands
        self._limits, self._recorder, self._stop, self._plan = limits, recorder, stop, plan
        self._step_lock, self._tolerance, self._on_second = step_lock, home_tolerance_rad, on_second
        self._damp_for_s, self._watchdog, self._view = damp_for_s, watchdog, view
        self._on_warning = on_warning
        self.period_s, self._every = spec.control_period_s / every, every
        self._gains_due = self._gains_every = max(1, round(GAINS_S / self.period_s))
        # a simulator in lock step waits for us, so we can wait for it
        self._patience = 500.0 if step_lock else 1.0
        self._monitor = Monitor(
            limits,
            GyroCheck(robot.gyro_unit),
            period_s=self.period_s,
            base_fixed=base_fixed,
            late_max=late_max,
            lost_max=lost_ticks_max * every,
            silent_max_s=math.inf if watchdog is None else watchdog.limit_s,
            every=every,
            simulated=step_lock,
        )
        self.machine = Machine()
        self.counts = Counts()
        self.left_stiff: tuple[str, ...] = ()
        self.off = False
        self._names = tuple(a.name for a in spec.inputs)
        self._envelope = Envelope.from_spec(spec)
        self._home = np.asarray(spec.robot.column("home_rad"))
        self._heading = 0.0
        self._epoch = time.monotonic()
        self._touched = self._configuring = False
        self._tick_done = -1
        self._run_from = self._due = 0
        self._started_s = 0.0  # of the newest tick
        self._action = self._home
        # seen after the step of a tick, for the next one
        self._pending: tuple[Fault, ...] = ()
        self._compared = self._gyro_told = False
        self._rest = self._command = command_vector(spec, {})

    @property
    def survived_s(self) -> float:
        """How long the policy ran [s]: periods begun and not ended by a fault."""
        return self.counts.run_ticks * self._spec.control_period_s

    @property
    def gyro(self) -> str:
        """What is known of the gyro's unit and frame."""
        return self._monitor.gyro.message.removeprefix("gyro: ")

    def _now(self) -> float:
        return time.monotonic() - self._epoch

    def event(self, kind: str, message: str) -> None:
        """Write an event to the log; where that fails the next tick's writing ends the run, this does not."""
        self._recorder.event(self._now(), kind, message)

    def _step(self, reading: Reading, now: float) -> Order:
        """The machine's next state, told to the log where it is another phase."""
        # a policy that is at rest has nothing to come to rest from
        resting = np.array_equal(self._command, self._rest)
        plan = replace(self._plan, rest_s=0.0) if resting else self._plan
        before, self.machine = self.machine, step(self.machine, reading, now, plan)
        if self.machine.phase is not before.phase:
            why = f": {self.machine.ended}: {self.machine.message}" if self.machine.ended != before.ended else ""
            self.event("phase", f"{before.phase} to {self.machine.phase}{why}")
        return self.machine.order

    def _reading(self, faults: tuple[Fault, ...] = (), **values: Any) -> Reading:
        self._stop.ask()
        return Reading(faults=faults, stop=self._stop.ended, why=self._stop.why, now=self._stop.now, **values)

    def fail(self, error: Exception) -> None:
        """Something that is no reading ended the run."""
        self._step(Reading(faults=faults_of(error)), self.machine.since_s)

    async def run(self, first: RobotState) -> None:
        """Stiffen, ramp, run the policy to the end of its time, stop; what ended it is in `machine`."""
        try:
            if await self._start(first):
                with no_garbage_collection():
                    await self._grid()
        except Exception as error:
            self.fail(error)

    async def _start(self, first: RobotState) -> bool:
        """Stiffen; False where the end was asked for before, and the robot is left untouched."""
        self._state = first
        self._from = first.joint_position
        self._sent, self._sent_tick = first.joint_position, -1
        steps = max(1, round(self._plan.run_s / self._spec.control_period_s))
        if self._step(self._reading(done=True), 0.0) is not Order.STIFFEN:
            return False
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
        await self._settle()
        different = await self._robot.gain_differences(nominal(self._limits))
        self._gains_known = set(different)
        if different:
            self.event("gains", "; ".join(different))
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            self.counts.warnings.append(
                f"the server reports other gains than it was sent: {'; '.join(different[:3])}{more}"
            )
        # limp legs may have fallen since the first look
        far = max(float(np.max(np.abs(s.joint_position - self._home))) for s in (first, self._state))
        ramp_ticks = 0 if far <= self._tolerance else round(self._plan.ramp_s / self.period_s)
        run_s = steps * self._spec.control_period_s
        self._plan = replace(self._plan, ramp_s=ramp_ticks * self.period_s, run_s=run_s)
        self.event("plan", f"ramp: {ramp_ticks} ticks, {far:.3f} rad from home; then {steps} steps of the policy")
        self._step(self._reading(done=True), 0.0)
        return True

    async def _settle(self) -> None:
        """Look at the robot, now stiff where it was found: once, and on until its server lets targets through.

        A ramp that began before would reach the motors as one jump.
        """
        until = self._now() + self._robot.settle_s
        while self._stop.ended is None:
            if self._watchdog is not None:
                self._watchdog.touched()
                self._watchdog.check()
            with contextlib.suppress(ConnectionLost):  # the watchdog counts the silence
                self._state = await self._robot.read(self.period_s)
            if self._now() >= until:
                break
            await asyncio.sleep(self.period_s)
            self._stop.ask()

    async def _grid(self) -> None:
        period, k = self.period_s, 0
        t0 = self._now() + 0.5 * period
        shown = t0
        self._monitor.heard(t0)
        while True:
            scheduled = k * period if self._step_lock else t0 + k * period
            if not self._step_lock:
                await self._wait_until(scheduled)
            if not await self._tick(k, scheduled):
                break
            following = k + 1
            if self._step_lock:
                await self._robot.step_simulation(period)
            else:
                now = self._now()
                late = now - (t0 + following * period)
                self.counts.overruns += late > 0
                if late > 0.5 * period:
                    following = math.floor((now - t0) / period) + 1
            if self._on_second is not None and (now := self._now()) - shown >= 1.0:
                shown = now
                passed = scheduled if self._step_lock else now - t0
                asked = f", {said}" if (said := self._commands.status()) else ""
                self._on_second(f"{passed:.0f} s: tick {k}, tilt {self._state.tilt_rad:.2f} rad{asked}")
            k = following
        if not self._monitor.gyro_done and not self._step_lock:
            self.event("gyro", self._monitor.gyro.message)

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

    async def _read(self) -> tuple[RobotState, bool, float, tuple[Fault, ...]]:
        """(state, stale, round trip, faults); the state before where none came in time."""
        try:
            state = await self._robot.read(READ_SHARE * self.period_s * self._patience)
        except ConnectionLost as error:
            self.counts.lost_states += 1
            return self._state, True, _NAN, self._lost(error)
        except FaultError as error:
            return self._state, True, _NAN, faults_of(error)
        return state, state.same_reading(self._state), state.round_trip_s, ()

    def _lost(self, error: ConnectionLost, *, again: bool = False) -> tuple[Fault, ...]:
        if not again:
            self.event("lost", str(error))
        faults = self._monitor.lost(error, self._now(), again=again)
        if faults and self._watchdog is not None:
            try:
                self._watchdog.check()  # where this process was held up, it was not the link
            except FaultError as held_up:
                faults = held_up.faults
        self.counts.lost_in_row_max = max(self.counts.lost_in_row_max, self._monitor.lost_in_row)
        return faults

    def _gains_changed(self, k: int, stale: bool) -> tuple[Fault, ...]:
        """The gains that the server reports are still those it reported when they were set."""
        if k < self._gains_due or stale:
            return ()
        self._gains_due = k + self._gains_every
        different = self._robot.gains_seen(nominal(self._limits))
        changed = [line for line in different if line not in self._gains_known]
        self._gains_known &= set(different)  # what was taken late and is lost again is a change
        if not changed:
            return ()
        detail = f"gains changed during the run: {'; '.join(changed[:3])}; another program commands this robot: stop it"
        return (Fault(kind=FaultKind.GAINS, value=len(changed), high=0.0, detail=detail),)

    async def _tick(self, k: int, scheduled: float) -> bool:
        """One tick; whether there is another one."""
        start = self._started_s = scheduled if self._step_lock else self._now()
        mark = time.monotonic()
        stages = dict.fromkeys(STAGES, 0.0)

        def took(stage: str) -> None:
            nonlocal mark
            now = time.monotonic()
            stages[stage] += now - mark
            mark = now

        alone: tuple[Fault, ...] = ()
        if self._watchdog is not None:
            try:
                self._watchdog.beat()
            except FaultError as error:
                alone = error.faults
        before = self._state
        state, stale, state_round_trip, unread = await self._read()
        took("read")
        answered = not math.isnan(state_round_trip)
        self._state = state
        faults = alone or unread or self._pending
        faults = faults or self._monitor.look(state, before, self._sent, answered=answered, stale=stale)
        faults = faults or self._gains_changed(k, stale)
        if self._monitor.gyro_done and not self._gyro_told:
            self._gyro_told = True
            self.event("gyro", self._monitor.gyro.message)
        now = k * self.period_s
        order = self._step(self._reading(faults, done=self._compared), now)
        if order not in _PHASES:
            return False
        self.counts.stale += stale
        took("guard")
        inputs, action, target = self._decide(order, k, now, state)
        phase = "between" if action is None and order in (Order.POLICY, Order.REST) else _PHASES[order]
        took("infer")
        # how far the target may move counts from the last one that the robot acknowledged
        safe = limit(target, self._sent, state, self._limits, (k - self._sent_tick) * self.period_s)
        took("guard")
        command_s = command_round_trip = _NAN
        lost: tuple[Fault, ...] = ()
        try:
            command_round_trip = await self._robot.command(safe, COMMAND_SHARE * self.period_s * self._patience)
            command_s = start + command_round_trip if self._step_lock else self._now()
            self._sent, self._sent_tick = safe.rad, k
            if answered:
                self._monitor.heard(self._now())
        except ConnectionLost as error:
            self.counts.lost_commands += 1
            lost = self._lost(error, again=not answered)  # a tick that lost both counts once
        finally:
            took("write")
            self._recorder.tick(
                self._record(
                    state,
                    tick=k // self._every,
                    phase=phase,
                    scheduled_s=scheduled,
                    start_s=start,
                    state_s=start + state_round_trip if self._step_lock else state.time_s - self._epoch,
                    command_s=command_s,
                    state_round_trip_s=state_round_trip,
                    command_round_trip_s=command_round_trip,
                    inputs=inputs,
                    action=action,
                    target=target,
                    sent=safe.rad,
                    safety=safe.clamps,
                    stale=stale,
                    stages_ms={name: 1e3 * taken for name, taken in stages.items()},
                )
            )
            self._count(k, phase, safe)
            self.counts.times.add(k, scheduled, start, state_round_trip, command_round_trip, stages)
        if self._view is not None:
            times_s = (sum(stages.values()), state_round_trip, command_round_trip)
            self._view.tick(self._now(), phase, state, safe, self._command, self.counts, times_s)
        sent = self._monitor.sent(safe.clamps, by_policy=order is Order.POLICY)
        self._pending = self._pending or lost or sent or self._monitor.ended(self._now(), state.round_trip_s)
        return True

    def _decide(
        self, order: Order, k: int, now: float, state: RobotState
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray]:
        """(inputs, action, target) of a tick."""
        if order is Order.RAMP:
            share = smooth((now + self.period_s) / self._plan.ramp_s)
            return {}, None, self._from + share * (self._home - self._from)
        if order is Order.COMPARE:
            self._heading, self._run_from, self._due = state.heading_rad, k + 1, k + 1
            self._pending = self._outside(observe(self._names, state, self._commands.at(0.0), 0.0, self._heading))
            self._compared = True
            self._compare_margins()
            return {}, None, self._sent
        self._compared = False
        if order is Order.SOFTEN:
            # the target goes to the measured position: the motors' torque fades with the distance
            since = self.machine.since_s + self.machine.rest_s
            share = smooth((now - since + self.period_s) / self.machine.soften_s)
            return {}, None, self._sent + share * (state.joint_position - self._sent)
        if self.counts.run_ticks == 0:
            self._policy.reset()
            self._heading = state.heading_rad
        if k < self._due:
            return {}, None, self._action
        self._due = k + self._every - (k - self._run_from) % self._every
        time_s = (k - self._run_from) * self.period_s
        self._command = self._rest if order is Order.REST else self._commands.at(time_s)
        for line in self._commands.news():
            self.event("command", line)
        inputs = observe(self._names, state, self._command, time_s, self._heading)
        self._action = self._policy.step(inputs)
        wild = check_action(self._action, self._limits)
        if wild:
            raise FaultError(text_of(wild), wild)
        return inputs, self._action, self._action

    def _outside(self, inputs: dict[str, np.ndarray]) -> tuple[Fault, ...]:
        """What is measured before the policy's first step is what it met in training."""
        outside = self._envelope.outside(inputs)
        if not outside:
            return ()
        more = f"; and {len(outside) - 3} more" if len(outside) > 3 else ""
        detail = (
            f"the policy was not started: {'; '.join(outside[:3])}{more}; "
            "check joint order, zero offsets, units and how the robot hangs"
        )
        return (Fault(kind=FaultKind.ENVELOPE, detail=detail),)

    def _compare_margins(self) -> None:
        """Warn where the link, as the ramp found it, is beyond what the policy bears."""
        counts = self.counts
        if self._step_lock:
            return
        for line in link_warnings(self._spec.margins, *counts.times.round_trips_s(), counts.lost_in_row_max):
            counts.warnings.append(line)
            self.event("margin", line)
            if self._on_warning is not None:  # what it writes to may take its time
                threading.Thread(target=self._on_warning, args=(line,), daemon=True, name="warning").start()

    def _count(self, k: int, phase: str, safe: SafeTarget) -> None:
        counts = self.counts
        self._tick_done = k // self._every
        counts.ramp_ticks += phase in ("ramp", "ready")
        counts.run_ticks += phase == "run"
        counts.between_ticks += phase == "between"
        counts.stop_ticks += phase == "stop"
        counts.clamped_ticks += bool(safe.clamps)
        counts.clamps.update(clamp.kind.value for clamp in safe.clamps)

    @staticmethod
    def _record(state: RobotState, **values: Any) -> Tick:
        return Tick(**values, **{name: getattr(state, name) for name in MEASURED})

    async def finish(self) -> bool:
        """Leave the robot as the machine says: damped (no stiffness, nominal damping), off, or held.

        Tries again and again for `damp_for_s`. Does nothing to a robot that was not touched.

        Returns:
            Whether every joint acknowledged to be without stiffness; then a target has no force.
        """
        if not self._touched:
            return True
        if self.machine.order not in (Order.DAMP, Order.OFF, Order.HOLD):
            self.fail(DeployError("the run was cancelled"))
        if self.machine.order is Order.HOLD:
            if self._watchdog is not None:
                self._watchdog.leaving()
            self.event("hold", "the last gains and the last target stay in force")
            return False
        leaving = None if self._watchdog is None else self._watchdog.leaving
        # gains that were not acknowledged may still be on their way
        settle_s = SETTLE_S if self._configuring else 0.0
        self.off = self.machine.order is Order.OFF
        gains = off(self._limits) if self.off else damp(self._limits)
        result = await damp_joints(self._robot, gains, self._damp_for_s, on_round=leaving, settle_s=settle_s)
        self.left_stiff = tuple(result.left)
        message = result.message
        if result.done:
            try:
                await self._hold()
                message += ", target at the measured position"
            except Exception as error:  # a target has no force without stiffness
                message += f"; the target could not be set to the measured position: {error}"
        self.event("damp", message)
        self._step(Reading(done=result.done, given_up=not result.done), self.machine.since_s)
        return result.done

    async def _hold(self) -> None:
        # in lock step the simulator's clock stands still meanwhile
        began = self._now()
        start = self._started_s if self._step_lock else began
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
            state_s=self._state.time_s - self._epoch + start - began,
            command_s=self._now() + start - began,
            state_round_trip_s=self._state.round_trip_s if fresh else _NAN,
            command_round_trip_s=took,
            inputs={},
            action=None,
            target=None,
            sent=target.rad,
            stale=not fresh,
        )
        with contextlib.suppress(LogError):  # a full disk may be what ended the run
            self._recorder.tick(record)
