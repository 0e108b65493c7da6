"""The machine of a run, pure: state, what is known, time -> state, what to do.

`TRANSITIONS` is all of it. What it does not list changes nothing. Times are those of the grid of ticks, from the
first tick [s].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from deploy.robot.faults import Fault, FaultKind, text_of


class Phase(StrEnum):
    """Where a run is."""

    DISCONNECTED = "disconnected"
    CHECKED = "checked"  # the robot answers and may start
    HOMING = "homing"  # stiff, on its way to the home pose
    READY = "ready"  # at home; what is measured is compared with training
    RUNNING = "running"  # the policy has the robot
    STOPPING = "stopping"  # the policy at rest, then the stiffness blended out
    DAMPED = "damped"
    FAULT = "fault"  # on the way to a safe state, or not able to reach it


class Event(StrEnum):
    """What can happen to a run; `event_of` says in which order they are looked at."""

    FAULT = "fault"
    STOP_NOW = "stop now"
    STOP = "stop"
    CHECKED = "checked"
    STIFF = "stiff"
    RAMPED = "ramped"
    MATCHED = "matched"
    TIME_UP = "time up"
    LIMP = "limp"
    GIVEN_UP = "given up"


class Order(StrEnum):
    """What the loop has to do until the next step."""

    WAIT = "wait"
    STIFFEN = "stiffen"
    RAMP = "ramp"
    COMPARE = "compare"
    POLICY = "policy"
    REST = "rest"
    SOFTEN = "soften"
    DAMP = "damp"
    HOLD = "hold"
    OFF = "off"


class OnFault(StrEnum):
    """What a fault leaves the robot in."""

    DAMP = "damp"
    HOLD = "hold"
    OFF = "off"


class Ended(StrEnum):
    """Why a run is over."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    TERMINATED = "terminated"
    FALL = "fall"
    FAULT = "fault"
    LOST = "lost"
    ERROR = "error"


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.DISCONNECTED, Event.CHECKED): Phase.CHECKED,
    (Phase.CHECKED, Event.STIFF): Phase.HOMING,
    (Phase.HOMING, Event.RAMPED): Phase.READY,
    (Phase.READY, Event.MATCHED): Phase.RUNNING,
    (Phase.RUNNING, Event.TIME_UP): Phase.STOPPING,
    (Phase.STOPPING, Event.LIMP): Phase.DAMPED,
    (Phase.STOPPING, Event.GIVEN_UP): Phase.FAULT,
    (Phase.FAULT, Event.LIMP): Phase.DAMPED,
    # a robot that is being made stiff may be stiff
    **{
        (phase, event): Phase.STOPPING
        for phase in (Phase.CHECKED, Phase.HOMING, Phase.READY, Phase.RUNNING, Phase.STOPPING)
        for event in (Event.STOP, Event.STOP_NOW)
    },
    **{
        (phase, Event.FAULT): Phase.FAULT
        for phase in (Phase.CHECKED, Phase.HOMING, Phase.READY, Phase.RUNNING, Phase.STOPPING, Phase.FAULT)
    },
    # a robot that was not touched is left as it is
    **{
        (Phase.DISCONNECTED, event): Phase.DISCONNECTED for event in (Event.FAULT, Event.STOP, Event.STOP_NOW)
    },
}  # fmt: skip

# Stiffness would do more harm than damping: on the floor, and in a motor that burns.
ALWAYS_DAMPED = frozenset({FaultKind.FALL, FaultKind.TOO_HOT, FaultKind.OVER_SPEED, FaultKind.WATCHDOG})
_ENDED = {FaultKind.FALL: Ended.FALL, FaultKind.LOST: Ended.LOST, FaultKind.ERROR: Ended.ERROR}
_ORDERS = {
    Phase.DISCONNECTED: Order.WAIT,
    Phase.CHECKED: Order.STIFFEN,
    Phase.HOMING: Order.RAMP,
    Phase.READY: Order.COMPARE,
    Phase.RUNNING: Order.POLICY,
    Phase.DAMPED: Order.WAIT,
}
# half a nanosecond: sums of periods fall short of round times
_ROUND_S = 5e-10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long each phase takes, and what a fault does.

    Attributes:
        ramp_s: from the measured pose to home [s].
        run_s: of the policy [s].
        rest_s: of the policy at zero command, before the stiffness goes [s].
        soften_s: over which the stiffness goes in the end [s].
        on_fault: what the robot is left in after a fault.
    """

    ramp_s: float
    run_s: float
    rest_s: float = 0.0
    soften_s: float = 0.0
    on_fault: OnFault = OnFault.DAMP


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is known since the step before.

    Attributes:
        faults: why the run may not go on.
        stop: somebody wants the end: how it is to be called.
        why: in words.
        now: without a gentle stop.
        done: what was ordered before was done: the robot checked, stiff, compared, limp.
        given_up: what was ordered could not be done.
    """

    faults: tuple[Fault, ...] = ()
    stop: Ended | None = None
    why: str = ""
    now: bool = False
    done: bool = False
    given_up: bool = False


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The state of a run.

    Attributes:
        phase: where it is.
        since_s: when that began [s].
        ended: why the run is over; None while it is not.
        message: of its end.
        faults: that ended it.
        rest_s: how long the policy is still at rest in this stop [s].
        soften_s: how long the stiffness takes to go in this stop [s].
        order: what to do.
    """

    phase: Phase = Phase.DISCONNECTED
    since_s: float = 0.0
    ended: Ended | None = None
    message: str = ""
    faults: tuple[Fault, ...] = ()
    rest_s: float = 0.0
    soften_s: float = 0.0
    order: Order = Order.WAIT

    @property
    def over(self) -> bool:
        """Nothing more will come of itself."""
        return self.phase is Phase.DAMPED or (self.phase is Phase.DISCONNECTED and self.ended is not None)


_DONE = {
    Phase.DISCONNECTED: Event.CHECKED,
    Phase.CHECKED: Event.STIFF,
    Phase.READY: Event.MATCHED,
    Phase.STOPPING: Event.LIMP,
    Phase.FAULT: Event.LIMP,
}


def event_of(machine: Machine, reading: Reading, now: float, plan: Plan) -> Event | None:
    """What happened, the gravest first; None for nothing."""
    passed = now - machine.since_s + _ROUND_S
    if reading.faults:
        return Event.FAULT
    if reading.stop is not None:
        return Event.STOP_NOW if reading.now else Event.STOP
    if reading.given_up:
        return Event.GIVEN_UP
    if machine.phase is Phase.HOMING and passed >= plan.ramp_s:
        return Event.RAMPED
    if machine.phase is Phase.RUNNING and passed >= plan.run_s:
        return Event.TIME_UP
    return _DONE.get(machine.phase) if reading.done else None


def step(machine: Machine, reading: Reading, now: float, plan: Plan) -> Machine:
    """The next state; its `order` says what to do.

    Args:
        machine: the state before.
        reading: what is known since.
        now: time of the grid [s].
        plan: of the run.
    """
    event = None if machine.over else event_of(machine, reading, now, plan)
    after = machine if event is None else happen(machine, event, reading, now, plan)
    return replace(after, order=_order(after, reading, now, plan))


def happen(machine: Machine, event: Event, reading: Reading, now: float, plan: Plan) -> Machine:
    """The state after an event, by the table; an event that the table does not list changes nothing."""
    phase = TRANSITIONS.get((machine.phase, event))
    if phase is None:
        return machine
    entered = phase is not machine.phase
    after = replace(machine, phase=phase, since_s=now if entered else machine.since_s)
    if event is Event.TIME_UP:
        after = replace(after, ended=Ended.COMPLETED, message=f"{plan.run_s:g} s of the policy")
    elif event in (Event.STOP, Event.STOP_NOW) and machine.ended is None:
        after = replace(after, ended=reading.stop, message=reading.why)
    elif event is Event.FAULT and machine.phase is not Phase.FAULT:
        ended = _ENDED.get(reading.faults[0].kind, Ended.FAULT)
        after = replace(after, ended=ended, message=text_of(reading.faults), faults=reading.faults)
    if phase is Phase.STOPPING and event is Event.STOP_NOW:
        return replace(after, rest_s=0.0, soften_s=0.0)
    if phase is Phase.STOPPING and entered:
        stiff = machine.phase is not Phase.CHECKED
        rest_s = plan.rest_s if machine.phase is Phase.RUNNING else 0.0
        return replace(after, rest_s=rest_s, soften_s=plan.soften_s if stiff else 0.0)
    return after


def _order(machine: Machine, reading: Reading, now: float, plan: Plan) -> Order:
    if machine.phase is Phase.STOPPING:
        passed = now - machine.since_s + _ROUND_S
        if passed < machine.rest_s:
            return Order.REST
        return Order.SOFTEN if passed < machine.rest_s + machine.soften_s else Order.DAMP
    if machine.phase is Phase.FAULT:
        if machine.order in (Order.DAMP, Order.HOLD, Order.OFF):
            return machine.order  # decided when it began
        grave = any(fault.kind in ALWAYS_DAMPED for fault in reading.faults)
        return Order.DAMP if grave else Order(plan.on_fault)
    return _ORDERS[machine.phase]
