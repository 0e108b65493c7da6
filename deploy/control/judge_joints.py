"""Actuators, gains and a wiggle of each joint, judged: pure functions from what was recorded to findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.control.findings import AMBER, GREEN, RED, Finding, Level, Probe, listed
from deploy.robot.interface import JointSeen
from deploy.robot.safety import START_SLACK_RAD, Limits

# A motor that is warmer than this share of its limit deserves a look before a run.
WARM_SHARE = 0.7
# What a joint may move, of what it was asked to, and what no other may [share].
MOVED, OTHER = (0.4, 1.6), 0.4


def server_findings(p: Probe) -> Iterator[Finding]:
    """Which server it is."""
    if p.questions != p.dialect.name:
        yield Finding(
            "server",
            "kind",
            AMBER,
            p.server,
            f"its answers are {p.questions}'s",
            "leave --server out, unless you know better",
        )
    else:
        yield Finding("server", "kind", GREEN, p.server)


def actuator_findings(p: Probe, limits: Limits) -> Iterator[Finding]:
    """Each actuator against the robot's specification."""

    def red(what: str, got: str, expected: str, do: str, level: Level = RED) -> Finding:
        return Finding("actuators", what, level, got, expected, do)

    d = p.dialect
    there = [j for j in p.joints if j.there]
    missing = [f"{j.name} (id {j.id})" for j in p.joints if not j.there]
    # a limp joint of such a server seems to be offline
    offline = [
        f"{j.name} (id {j.id})" for j in there if not j.online and not (d.online_is_torque and not j.torque_enabled)
    ]
    faulted = [f"{j.name}: {', '.join(j.faults)}" for j in there if j.faults]
    mute = [j.name for j in there if j.position is None or not math.isfinite(j.position)]
    if missing:
        yield red("missing", listed(missing), "every joint answers", "power, wiring, ids; is it this robot?")
    if offline:
        yield red("offline", listed(offline), "every joint is online", "power and wiring of these")
    if faulted and d.faults_are_history:
        yield red("faults", listed(faulted), "none", "these were once; restart the server to clear them", AMBER)
    elif faulted:
        yield red("faults", listed(faulted), "none", "put right what it says, then power it up again")
    if mute:
        yield red("position", f"none from {listed(mute)}", "a number from each joint", "calibrate or replace these")
    if p.extra:
        which = f"ids {listed(p.extra)} are none of {p.robot.name}'s"
        yield red("extra", which, "no others", "see that the bundle is for this robot", AMBER)
    if not (missing or offline or faulted or mute):
        yield Finding("actuators", "all there", GREEN, f"{len(there)} answer, none reports a fault")
    yield from _position_findings(p, limits)
    yield from _temperature_findings(there, limits)
    volts = [j.voltage for j in there if j.voltage is not None]
    if volts:
        got = f"{min(volts):.1f} to {max(volts):.1f} V"
        yield Finding("actuators", "voltage", GREEN, got)


def _position_findings(p: Probe, limits: Limits) -> Iterator[Finding]:
    beyond: dict[Level, list[str]] = {RED: [], AMBER: []}
    narrow, far = [], ("", 0.0)
    for j, spec in zip(p.joints, p.robot.joints, strict=True):
        if j.position is None or not math.isfinite(j.position):
            continue
        by = max(spec.lower_rad - j.position, j.position - spec.upper_rad)
        if by > 0:
            where = f"{j.name} at {j.position:.3f} rad, limits [{spec.lower_rad:.3f}, {spec.upper_rad:.3f}]"
            beyond[RED if by > START_SLACK_RAD else AMBER].append(where)
        if abs(j.position - spec.home_rad) >= abs(far[1]):
            far = (j.name, j.position - spec.home_rad)
        if j.lower is not None and j.upper is not None:
            inside = j.lower > spec.lower_rad + 1e-3 or j.upper < spec.upper_rad - 1e-3
            narrow += [f"{j.name} [{j.lower:.3f}, {j.upper:.3f}]"] if inside and j.lower < j.upper else []
    for level, where in beyond.items():
        if where:
            yield Finding(
                "actuators",
                "outside limits",
                level,
                listed(where, 3),
                "every joint within its limits",
                "move it by hand; if it looks right, set its zero anew",
            )
    if not any(beyond.values()):
        got = f"within limits; farthest from home is {far[0]}, by {far[1]:+.2f} rad"
        yield Finding("actuators", "pose", GREEN, got)
    if narrow:
        yield Finding(
            "actuators",
            "its own limits",
            AMBER,
            listed(narrow, 3),
            "at least those of the bundle's robot",
            "targets beyond them are not reached",
        )


def _temperature_findings(there: Sequence[JointSeen], limits: Limits) -> Iterator[Finding]:
    told = [(j.temperature, j.name) for j in there if j.temperature is not None]
    if not told:
        yield Finding("actuators", "temperature", GREEN, "not told by this server")
        return
    most, name = max(told)
    level = GREEN
    if most > WARM_SHARE * limits.temperature_max_c:
        level = RED if most > limits.temperature_max_c else AMBER
    yield Finding(
        "actuators",
        "temperature",
        level,
        f"hottest is {name}, {most:.0f} C",
        "" if level is GREEN else f"at most {WARM_SHARE * limits.temperature_max_c:.0f} C",
        "" if level is GREEN else "let it cool down",
    )


def gain_findings(p: Probe) -> Iterator[Finding]:
    """Gains as they are, and what this server makes of those that it will be sent."""
    d = p.dialect
    if d.register_gains:
        yield Finding(
            "gains",
            "unit",
            AMBER,
            "whole numbers from 0 to 255 of the servo's registers",
            "kp in N m/rad and kd in N m s/rad",
            "a policy trained for its gains in SI meets others here",
        )
    told = [j for j in p.joints if j.kp is not None]
    stiff = [j.name for j in told if j.torque_enabled and j.kp and j.kp > 1e-3]
    if stiff:
        yield Finding(
            "gains",
            "stiff already",
            AMBER,
            listed(stiff),
            "a limp or damped robot",
            "see that no other program drives it; ksim damp takes the stiffness out",
        )
    if d.ignores:
        got = f"the server does nothing with {', '.join(d.ignores)}"
        yield Finding(
            "gains",
            "ignored",
            AMBER,
            got,
            "kp, kd, torque limit and torque obeyed",
            "a torque limit of the motors' own has to do" if "max_torque" in d.ignores else "it is always on",
        )
    if not told and not stiff:
        got = "not told by this server: what is set cannot be read back"
        yield Finding("gains", "read back", AMBER, got, do="--wiggle shows whether joints obey")
    elif not stiff:
        got = f"told by {len(told)} joints; compared when they are set"
        yield Finding("gains", "read back", GREEN, got)


@dataclass(frozen=True, kw_only=True)
class Wiggled:
    """What one joint's wiggle did.

    Attributes:
        joint: that was asked to move.
        asked_rad: by how much [rad].
        moved_rad: how far each joint went, (joints,) [rad].
    """

    joint: str
    asked_rad: float
    moved_rad: np.ndarray


def wiggle_findings(wiggled: Sequence[Wiggled], names: Sequence[str]) -> list[Finding]:
    """Sign and scale of each joint that was moved, and whether another moved in its place."""
    found, shares = [], []

    def red(joint: str, got: str, do: str, level: Level = RED) -> None:
        expected = "it alone moves, by what it is asked to"
        found.append(Finding("wiggle", joint, level, got, expected, do))

    for w in wiggled:
        share = w.moved_rad / w.asked_rad
        row = list(names).index(w.joint)
        own, rest = float(share[row]), np.abs(np.delete(share, row))
        others = [n for n in names if n != w.joint]
        also = [(others[i], float(np.delete(share, row)[i])) for i in np.flatnonzero(rest > OTHER)]
        told = ", ".join(f"{name} by {s:+.2f} of it" for name, s in also[:3])
        if also and own < MOVED[0]:
            red(
                w.joint,
                f"{told} moved in its place (itself {own:+.2f})",
                "ids are swapped: see the ids in the metadata",
            )
        elif own < -OTHER:
            red(w.joint, f"moved the other way ({own:+.2f})", "its sign is inverted: see the motor's direction")
        elif own < MOVED[0]:
            red(w.joint, f"hardly moved ({own:+.2f})", "stuck, limp, or its gains did not arrive")
        elif own > MOVED[1]:
            red(w.joint, f"moved by {own:.2f} times as much", "the unit or the gear ratio is another")
        elif also:
            red(w.joint, f"{told} moved as well", "it is pushed by it, or linked", AMBER)
        else:
            shares.append(own)
    if shares:
        got = f"{len(shares)} joints moved by {min(shares):.2f} to {max(shares):.2f} of what they were asked to, alone"
        found.insert(0, Finding("wiggle", "sign and scale", GREEN, got))
    return found
