"""The machine of a run: every event in every state, walks through it, and what it orders."""

from __future__ import annotations

import itertools
import random

import pytest

from deploy.control.machine import (
    ALWAYS_DAMPED,
    TRANSITIONS,
    Ended,
    Event,
    Machine,
    OnFault,
    Order,
    Phase,
    Plan,
    Reading,
    event_of,
    happen,
    step,
)
from deploy.robot.faults import Fault, FaultKind

PLAN = Plan(ramp_s=2.0, run_s=5.0, rest_s=1.0, soften_s=0.5)
FALL = Fault(kind=FaultKind.FALL, value=1.2, high=1.0)
STALE = Fault(kind=FaultKind.STALE, value=11, high=10)
LOST = Fault(kind=FaultKind.LOST, detail="11 ticks in a row without an answer")
READINGS = {
    Event.FAULT: Reading(faults=(STALE,)),
    Event.STOP_NOW: Reading(stop=Ended.INTERRUPTED, why="SIGINT received", now=True),
    Event.STOP: Reading(stop=Ended.STOPPED, why="space bar"),
    Event.GIVEN_UP: Reading(given_up=True),
    None: Reading(),
}
DONE = Reading(done=True)
NEXT = {
    Phase.DISCONNECTED: (DONE, 0.0),
    Phase.CHECKED: (DONE, 0.0),
    Phase.HOMING: (Reading(), 2.0),
    Phase.READY: (DONE, 2.02),
    Phase.RUNNING: (Reading(), 7.02),
    Phase.STOPPING: (DONE, 8.52),
}


def walked_to(phase: Phase) -> Machine:
    """The machine after a run without incident up to a phase."""
    machine = Machine()
    for here, (reading, now) in NEXT.items():
        if machine.phase is phase:
            break
        assert machine.phase is here
        machine = step(machine, reading, now, PLAN)
    if phase is Phase.FAULT:
        machine = step(walked_to(Phase.RUNNING), READINGS[Event.FAULT], 3.0, PLAN)
    assert machine.phase is phase
    return machine


def test_a_run_without_incident_goes_through_every_phase_and_ends_damped():
    orders, machine = [], Machine()
    for reading, now in NEXT.values():
        machine = step(machine, reading, now, PLAN)
        orders.append((machine.phase, machine.order))
    assert orders == [
        (Phase.CHECKED, Order.STIFFEN),
        (Phase.HOMING, Order.RAMP),
        (Phase.READY, Order.COMPARE),
        (Phase.RUNNING, Order.POLICY),
        (Phase.STOPPING, Order.REST),
        (Phase.DAMPED, Order.WAIT),
    ]
    assert machine.over and machine.ended is Ended.COMPLETED and machine.message == "5 s of the policy"


# the whole table, written out once more by hand: rows are where it is, columns what happens
EXPECTED = {
    # fault, stop now, stop, checked, stiff, ramped, matched, time up, limp, given up
    "disconnected": ("disconnected", "disconnected", "disconnected", "checked", None, None, None, None, None, None),
    "checked": ("fault", "stopping", "stopping", None, "homing", None, None, None, None, None),
    "homing": ("fault", "stopping", "stopping", None, None, "ready", None, None, None, None),
    "ready": ("fault", "stopping", "stopping", None, None, None, "running", None, None, None),
    "running": ("fault", "stopping", "stopping", None, None, None, None, "stopping", None, None),
    "stopping": ("fault", "stopping", "stopping", None, None, None, None, None, "damped", "fault"),
    "damped": (None,) * 10,
    "fault": ("fault", None, None, None, None, None, None, None, "damped", None),
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)), ids=str)
def test_every_event_in_every_state_goes_where_the_table_says(phase, event):
    before = walked_to(phase)
    expected = EXPECTED[phase.value][list(Event).index(event)]
    reading = READINGS.get(event, DONE)
    after = happen(before, event, reading, 9.0, PLAN)
    assert after.phase == (expected or phase.value)
    if expected is None:
        assert after == before  # what the table does not list changes nothing
    assert TRANSITIONS.get((phase, event)) == (None if expected is None else Phase(expected))


@pytest.mark.parametrize("phase", [p for p in Phase if p not in (Phase.DISCONNECTED, Phase.DAMPED)], ids=str)
@pytest.mark.parametrize("event", list(READINGS), ids=str)
def test_a_stiff_robot_is_on_its_way_to_a_safe_state_in_the_very_step(phase, event):
    before = walked_to(phase)
    after = step(before, READINGS[event], before.since_s + 0.02, PLAN)
    if event in (Event.FAULT, Event.STOP_NOW):
        assert after.order is Order.DAMP and after.ended is not None
    if event is Event.STOP and phase in (Phase.HOMING, Phase.READY):
        assert after.order is Order.SOFTEN  # it does not walk, so there is nothing to bring to rest
    if event is Event.STOP and phase is Phase.RUNNING:
        assert after.order is Order.REST and after.ended is Ended.STOPPED


def test_the_stop_rests_softens_and_damps_by_the_clock():
    machine = walked_to(Phase.STOPPING)  # at 7.02 s
    orders = []
    for k in range(80):
        machine = step(machine, Reading(), 7.02 + 0.02 * k, PLAN)
        orders.append(machine.order)
    assert orders == [Order.REST] * 50 + [Order.SOFTEN] * 25 + [Order.DAMP] * 5
    # a second, harder word ends the gentleness at once
    gentle = step(walked_to(Phase.RUNNING), READINGS[Event.STOP], 3.0, PLAN)
    assert gentle.order is Order.REST
    hard = step(gentle, READINGS[Event.STOP_NOW], 3.02, PLAN)
    assert hard.order is Order.DAMP and hard.ended is Ended.STOPPED and hard.message == "space bar"


@pytest.mark.parametrize(
    ("fault", "ended"), [(FALL, Ended.FALL), (STALE, Ended.FAULT), (LOST, Ended.LOST)], ids=lambda v: str(v)[:9]
)
def test_the_first_fault_names_the_end_and_a_fault_in_the_stop_overrides_its_success(fault, ended):
    for phase in (Phase.RUNNING, Phase.STOPPING):
        machine = step(walked_to(phase), Reading(faults=(fault, STALE)), 7.04, PLAN)
        assert machine.phase is Phase.FAULT and machine.ended is ended and machine.faults == (fault, STALE)
        again = step(machine, Reading(faults=(FALL,)), 7.06, PLAN)
        assert again.ended is ended and again.faults == (fault, STALE)


def test_hold_and_off_are_for_faults_that_leave_the_robot_standing():
    for on_fault in OnFault:
        plan = Plan(ramp_s=0, run_s=5, on_fault=on_fault)
        running = walked_to(Phase.RUNNING)
        stale = step(running, Reading(faults=(STALE,)), 3.0, plan)
        assert stale.order == on_fault.value
        assert step(stale, Reading(faults=(FALL,)), 3.02, plan).order == on_fault.value  # decided when it began
        for kind in ALWAYS_DAMPED:
            fault = Fault(kind=kind)
            assert step(running, Reading(faults=(STALE, fault)), 3.0, plan).order is Order.DAMP
        # the operator's stop is none
        assert step(running, READINGS[Event.STOP_NOW], 3.0, plan).order is Order.DAMP


def test_a_robot_that_was_not_touched_is_left_alone():
    for event in (Event.FAULT, Event.STOP, Event.STOP_NOW):
        machine = step(Machine(), READINGS[event], 0.0, PLAN)
        assert machine.phase is Phase.DISCONNECTED and machine.order is Order.WAIT and machine.over


def test_not_able_to_damp_is_a_fault_until_it_is_limp():
    stopping = step(walked_to(Phase.RUNNING), READINGS[Event.STOP_NOW], 3.0, PLAN)
    failed = step(stopping, READINGS[Event.GIVEN_UP], 11.0, PLAN)
    assert failed.phase is Phase.FAULT and failed.order is Order.DAMP and failed.ended is Ended.INTERRUPTED
    assert not failed.over and step(failed, DONE, 12.0, PLAN).over


def test_the_gravest_is_looked_at_first():
    everything = Reading(faults=(FALL,), stop=Ended.STOPPED, now=True, done=True, given_up=True)
    assert event_of(walked_to(Phase.READY), everything, 9.0, PLAN) is Event.FAULT
    assert (
        event_of(walked_to(Phase.READY), Reading(stop=Ended.STOPPED, now=True, done=True), 9.0, PLAN) is Event.STOP_NOW
    )
    assert event_of(walked_to(Phase.RUNNING), Reading(stop=Ended.STOPPED), 9.0, PLAN) is Event.STOP


def test_no_walk_makes_a_robot_stiff_again_after_its_end():
    rng = random.Random(7)
    stiff = {Order.STIFFEN, Order.RAMP, Order.COMPARE, Order.POLICY}
    for _ in range(2000):
        machine, now, ended = Machine(), 0.0, False
        for _ in range(60):
            now += rng.choice([0.0, 0.02, 0.5, 3.0])
            reading = rng.choice([*READINGS.values(), DONE, DONE, Reading(), Reading()])
            machine = step(machine, reading, now, PLAN)
            ended = ended or machine.ended is not None
            if ended:
                assert machine.order not in stiff
