"""What a look at a robot says about it: pure functions from recorded numbers to findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from deploy.robot.dialects import Dialect
from deploy.robot.interface import JointSeen
from deploy.robot.kos import GyroCheck
from deploy.robot.safety import FRAME_MAX_RAD, START_SLACK_RAD, Limits, gravity_error_rad
from deploy.robot.state import RobotState
from robots.rotation import GRAVITY_M_S2
from robots.spec import PolicySpec, RobotSpec

# The share of a period within which the loop waits for a state; as in deploy/control/loop.py.
READ_SHARE = 0.75
# A motor that is warmer than this share of its limit deserves a look before a run.
WARM_SHARE = 0.7
# The orientation of a robot at rest moves by less than this, and its gyro reads less [rad, rad/s].
REST_RAD, REST_GYRO_RAD_S = 0.02, 0.1
# Up by accelerometer and by orientation are nearer than this where mounting and bias are as they should be [rad].
FRAME_GOOD_RAD = 0.2
# What a joint may move, of what it was asked to, and what no other may [share].
MOVED, OTHER = (0.4, 1.6), 0.4


class Level(StrEnum):
    """How good a finding is."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: what it belongs to.
        what: was looked at.
        level: how good it is.
        got: what was seen.
        expected: what should be, where that is not what was seen.
        do: what to do about it.
    """

    group: str
    what: str
    level: Level
    got: str
    expected: str = ""
    do: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was recorded while the robot was left alone. N readings; the first `paced` at the control rate, as the
    control loop asks, the rest as fast as the link allows.

    Attributes:
        robot: whose joints.
        period_s: control period [s].
        dialect: of the server.
        server: which it is and why, in one line.
        questions: the kind of server that its answers speak of, whatever `--server` says.
        gyro_unit: that the gyro is taken to speak.
        joints: what was told of each joint, in the robot's order.
        extra: ids that are there and not the robot's.
        paced: number of readings at the control rate.
        lost: number of readings besides that did not come in time.
        errors: what calls that failed said, each once.
        time_s: (N,) monotonic clock at each answer [s].
        round_trip_s: (N,) from question to answer [s].
        position: (N, joints) [rad].
        velocity: (N, joints) [rad/s].
        quat_wxyz: (N, 4) as they came.
        gyro_b: (N, 3) [rad/s].
        accel_b: (N, 3) [m/s^2].
        clock_step_s: by how much the wall clock moved against the monotonic one [s].
    """

    robot: RobotSpec
    period_s: float
    dialect: Dialect
    server: str
    questions: str
    gyro_unit: str
    joints: tuple[JointSeen, ...]
    extra: tuple[int, ...] = ()
    paced: int
    lost: int = 0
    errors: tuple[str, ...] = ()
    time_s: np.ndarray
    round_trip_s: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    clock_step_s: float = 0.0

    def state(self, k: int) -> RobotState:
        """Reading k as the control loop has it."""
        return RobotState(
            joint_position=self.position[k],
            joint_velocity=self.velocity[k],
            joint_torque=np.zeros(len(self.joints)),
            quat_wxyz=self.quat_wxyz[k] / np.linalg.norm(self.quat_wxyz[k]),
            gyro_b=self.gyro_b[k],
            accel_b=self.accel_b[k],
            time_s=float(self.time_s[k]),
            round_trip_s=float(self.round_trip_s[k]),
        )


@dataclass(frozen=True, kw_only=True)
class ChannelSeen:
    """How often a channel gave new values.

    Attributes:
        repeats: share of readings at the control rate that have the bits of the one before.
        rate_hz: new values a second, as far as the readings are dense enough to tell; NaN without any.
        hold_s: how long one value was told, 95 of 100 of them at most [s]; 0 where each reading had a new one.
        changes: how many new values came.
    """

    repeats: float
    rate_hz: float
    hold_s: float
    changes: int


def channel_seen(values: np.ndarray, time_s: np.ndarray, paced: int) -> ChannelSeen:
    """What readings (N, k) at times (N,) tell of a channel's own rate; the first `paced` are at the control rate."""
    new = (values[1:] != values[:-1]).any(axis=1)
    at_rate = new[: max(paced - 1, 0)]
    fast = slice(paced, None) if len(values) - paced > 8 else slice(0, None)
    times, fresh = time_s[fast], new[fast.start :]
    came = times[1:][fresh[: len(times) - 1]]
    gaps = np.diff(came)
    # a value that is new each time is as old as its call, no older
    always = fresh.size > 0 and bool(fresh.mean() > 0.98)
    return ChannelSeen(
        repeats=float(1.0 - at_rate.mean()) if at_rate.size else math.nan,
        rate_hz=float((len(came) - 1) / (came[-1] - came[0])) if len(came) > 2 else math.nan,
        hold_s=0.0 if always else float(np.percentile(gaps, 95)) if len(gaps) else math.inf,
        changes=int(new.sum()),
    )


def _listed(names: Sequence[object], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(n) for n in names[:most]) + more


def server_findings(p: Probe) -> Iterator[Finding]:
    """Which server it is."""
    if p.questions != p.dialect.name:
        yield Finding(
            group="server", what="kind", level=Level.AMBER, got=p.server, expected=f"its answers are {p.questions}'s",
            do="leave --server out, unless you know better",
        )  # fmt: skip
    else:
        yield Finding(group="server", what="kind", level=Level.GREEN, got=p.server)


def actuator_findings(p: Probe, limits: Limits) -> Iterator[Finding]:
    """Each actuator against the robot's specification."""

    def red(what: str, got: str, expected: str, do: str, level: Level = Level.RED) -> Finding:
        return Finding(group="actuators", what=what, level=level, got=got, expected=expected, do=do)

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
        yield red("missing", _listed(missing), "every joint answers", "power, wiring, ids; is it this robot?")
    if offline:
        yield red("offline", _listed(offline), "every joint is online", "power and wiring of these")
    if faulted and d.faults_are_history:
        yield red("faults", _listed(faulted), "none", "these were once; restart the server to clear them", Level.AMBER)
    elif faulted:
        yield red("faults", _listed(faulted), "none", "put right what it says, then power it up again")
    if mute:
        yield red("position", f"none from {_listed(mute)}", "a number from each joint", "calibrate or replace these")
    if p.extra:
        which = f"ids {_listed(p.extra)} are none of {p.robot.name}'s"
        yield red("extra", which, "no others", "see that the bundle is for this robot", Level.AMBER)
    if not (missing or offline or faulted or mute):
        yield Finding(
            group="actuators", what="all there", level=Level.GREEN, got=f"{len(there)} answer, none reports a fault"
        )
    yield from _position_findings(p, limits)
    yield from _temperature_findings(there, limits)
    volts = [j.voltage for j in there if j.voltage is not None]
    if volts:
        got = f"{min(volts):.1f} to {max(volts):.1f} V"
        yield Finding(group="actuators", what="voltage", level=Level.GREEN, got=got)


def _position_findings(p: Probe, limits: Limits) -> Iterator[Finding]:
    beyond: dict[Level, list[str]] = {Level.RED: [], Level.AMBER: []}
    narrow, far = [], ("", 0.0)
    for j, spec in zip(p.joints, p.robot.joints, strict=True):
        if j.position is None or not math.isfinite(j.position):
            continue
        by = max(spec.lower_rad - j.position, j.position - spec.upper_rad)
        if by > 0:
            where = f"{j.name} at {j.position:.3f} rad, limits [{spec.lower_rad:.3f}, {spec.upper_rad:.3f}]"
            beyond[Level.RED if by > START_SLACK_RAD else Level.AMBER].append(where)
        if abs(j.position - spec.home_rad) >= abs(far[1]):
            far = (j.name, j.position - spec.home_rad)
        if j.lower is not None and j.upper is not None:
            inside = j.lower > spec.lower_rad + 1e-3 or j.upper < spec.upper_rad - 1e-3
            narrow += [f"{j.name} [{j.lower:.3f}, {j.upper:.3f}]"] if inside and j.lower < j.upper else []
    for level, where in beyond.items():
        if where:
            yield Finding(
                group="actuators", what="outside limits", level=level, got=_listed(where, 3),
                expected="every joint within its limits", do="move it by hand; if it looks right, set its zero anew",
            )  # fmt: skip
    if not any(beyond.values()):
        got = f"within limits; farthest from home is {far[0]}, by {far[1]:+.2f} rad"
        yield Finding(group="actuators", what="pose", level=Level.GREEN, got=got)
    if narrow:
        yield Finding(
            group="actuators", what="its own limits", level=Level.AMBER, got=_listed(narrow, 3),
            expected="at least those of the bundle's robot", do="targets beyond them are not reached",
        )  # fmt: skip


def _temperature_findings(there: Sequence[JointSeen], limits: Limits) -> Iterator[Finding]:
    told = [(j.temperature, j.name) for j in there if j.temperature is not None]
    if not told:
        yield Finding(group="actuators", what="temperature", level=Level.GREEN, got="not told by this server")
        return
    most, name = max(told)
    level = Level.GREEN
    if most > WARM_SHARE * limits.temperature_max_c:
        level = Level.RED if most > limits.temperature_max_c else Level.AMBER
    yield Finding(
        group="actuators", what="temperature", level=level, got=f"hottest is {name}, {most:.0f} C",
        expected="" if level is Level.GREEN else f"at most {WARM_SHARE * limits.temperature_max_c:.0f} C",
        do="" if level is Level.GREEN else "let it cool down",
    )  # fmt: skip


def gain_findings(p: Probe) -> Iterator[Finding]:
    """Gains as they are, and what this server makes of those that it will be sent."""
    d = p.dialect
    if d.register_gains:
        yield Finding(
            group="gains", what="unit", level=Level.AMBER, got="whole numbers from 0 to 255 of the servo's registers",
            expected="kp in N m/rad and kd in N m s/rad", do="a policy trained for its gains in SI meets others here",
        )  # fmt: skip
    told = [j for j in p.joints if j.kp is not None]
    stiff = [j.name for j in told if j.torque_enabled and j.kp and j.kp > 1e-3]
    if stiff:
        yield Finding(
            group="gains", what="stiff already", level=Level.AMBER, got=_listed(stiff), expected="a limp or damped robot",
            do="see that no other program drives it; ksim damp takes the stiffness out",
        )  # fmt: skip
    if d.ignores:
        got = f"the server does nothing with {', '.join(d.ignores)}"
        yield Finding(
            group="gains", what="ignored", level=Level.AMBER, got=got, expected="kp, kd, torque limit and torque obeyed",
            do="a torque limit of the motors' own has to do" if "max_torque" in d.ignores else "it is always on",
        )  # fmt: skip
    if not told and not stiff:
        got = "not told by this server: what is set cannot be read back"
        yield Finding(group="gains", what="read back", level=Level.AMBER, got=got, do="--wiggle shows whether joints obey")
    elif not stiff:
        got = f"told by {len(told)} joints; compared when they are set"
        yield Finding(group="gains", what="read back", level=Level.GREEN, got=got)


def imu_findings(p: Probe, limits: Limits, reads_accelerometer: bool) -> Iterator[Finding]:
    """Units and frames of the IMU."""
    if p.errors:
        yield Finding(
            group="IMU", what="calls", level=Level.RED, got=_listed(p.errors, 2), expected="answers without an error",
            do="see the server's own log",
        )  # fmt: skip
    size = np.linalg.norm(p.quat_wxyz, axis=1)
    good = np.isfinite(size) & (size > 0.5) & (size < 2.0) & np.isfinite(p.gyro_b).all(axis=1)
    if not good.any():
        got = "no quaternion of unit length" if not len(size) else f"quaternion of length {size[0]:.3g}"
        yield Finding(
            group="IMU", what="orientation", level=Level.RED, got=got, expected="unit length",
            do="the IMU has no data: its wiring, its driver in the server",
        )  # fmt: skip
        return
    off = float(np.abs(size[good] - 1.0).max())
    if off > 0.01 or not good.all():
        bad = f"; {int((~good).sum())} of {len(good)} readings had none" if not good.all() else ""
        yield Finding(
            group="IMU", what="orientation", level=Level.AMBER, got=f"length off by up to {off:.3g}{bad}",
            expected="unit length in every reading", do="see the IMU's driver",
        )  # fmt: skip
    states = [p.state(k) for k in np.flatnonzero(good)]
    yield _tilt(states, limits)
    yield _up(states, reads_accelerometer, p.dialect)
    yield from _gyro(p, states)


def _tilt(states: Sequence[RobotState], limits: Limits) -> Finding:
    tilt = max(s.tilt_rad for s in states)
    fallen = tilt > limits.tilt_max_rad
    return Finding(
        group="IMU", what="tilt", level=Level.RED if fallen else Level.GREEN, got=f"{math.degrees(tilt):.0f} degrees",
        expected=f"at most {math.degrees(limits.tilt_max_rad):.0f}" if fallen else "",
        do="put it upright; if it is, the IMU's frame is not the robot's" if fallen else "",
    )  # fmt: skip


def _up(states: Sequence[RobotState], read: bool, dialect: Dialect) -> Finding:
    """Accelerometer at rest against gravity."""
    what, sizes = "accelerometer", [float(np.linalg.norm(s.accel_b)) for s in states]
    size, errors = float(np.median(sizes)), [e for s in states if (e := gravity_error_rad(s)) is not None]
    if not errors:
        level = Level.RED if read and not dialect.simulates else Level.AMBER
        held = "; a simulator that holds the base has it so" if size < 1e-3 and dialect.simulates else ""
        unit = "; it speaks g" if 0.9 < size < 1.1 else ""
        return Finding(
            group="IMU", what=what, level=level, got=f"{size:.3g} m/s^2{unit or held}", expected="9.81 m/s^2 at rest",
            do="the server has to send m/s^2" if unit else "leave the robot alone while it is probed",
        )  # fmt: skip
    error = float(np.median(errors))
    got = f"{size:.2f} m/s^2; up is {math.degrees(error):.0f} degrees from up by the orientation"
    if error < FRAME_GOOD_RAD and abs(size / GRAVITY_M_S2 - 1.0) < 0.1:
        return Finding(group="IMU", what=what, level=Level.GREEN, got=got)
    inverted = error > math.pi - FRAME_MAX_RAD
    red = read if inverted else error > FRAME_MAX_RAD
    do = "gravity is told in place of the specific force" if inverted else "see how the IMU is mounted, and its axes"
    return Finding(
        group="IMU", what=what, level=Level.RED if red else Level.AMBER, got=got,
        expected="9.81 m/s^2, the same up", do=do,
    )  # fmt: skip


def _gyro(p: Probe, states: Sequence[RobotState]) -> Iterator[Finding]:
    """The gyro's unit and frame by integration, where the robot was turned; its bias where it was not."""
    check, last = GyroCheck(p.gyro_unit), None
    for state in states:
        if last is None or not (
            np.array_equal(state.gyro_b, last.gyro_b) and np.array_equal(state.quat_wxyz, last.quat_wxyz)
        ):
            check.add(state)
            last = state
    if check.verdict == "wrong":
        yield Finding(
            group="IMU", what="gyro", level=Level.RED, got=check.message, expected="what the orientation turns by",
            do="set --gyro-unit, or see the IMU's axes",
        )  # fmt: skip
        return
    rate = float(np.linalg.norm(np.mean([s.gyro_b for s in states], axis=0)))
    if check.motion_rad < REST_RAD and rate > REST_GYRO_RAD_S:
        yield Finding(
            group="IMU", what="gyro at rest", level=Level.AMBER, got=f"{rate:.2f} rad/s while nothing turns",
            expected=f"less than {REST_GYRO_RAD_S:g}", do="calibrate it, or see its unit",
        )  # fmt: skip
    if check.verdict == "ok":
        yield Finding(group="IMU", what="gyro", level=Level.GREEN, got=check.message)
    else:
        yield Finding(
            group="IMU", what="gyro", level=Level.AMBER, got=f"not judged: {check.message}",
            do="turn the robot by hand while it is probed, by 10 degrees and back",
        )  # fmt: skip


def trained_age_s(spec: PolicySpec | None, channel: str) -> float | None:
    """How old a channel ("joints" or "imu") may have been in training [s]; None where nobody can tell.

    This is the one place that says how much is allowed: a margin that was measured for the bundle belongs here.
    """
    if spec is None:
        return None
    channels = spec.training.get("channels")
    trained = channels.get(channel) if isinstance(channels, dict) else None
    try:
        slowest = trained["rate_hz"][0]
        return float(trained["latency_s"][1] + trained["jitter_s"] + (1.0 / slowest if slowest > 0 else 0.0))
    except (KeyError, TypeError, IndexError):
        return spec.observation_latency_s[1]


def channel_findings(p: Probe, spec: PolicySpec | None) -> Iterator[Finding]:
    """Each channel's own rate, repeats, and what they say of its age."""
    seen = {
        "joints": channel_seen(np.hstack([p.position, p.velocity]), p.time_s, p.paced),
        "gyro": channel_seen(p.gyro_b, p.time_s, p.paced),
        "accelerometer": channel_seen(p.accel_b, p.time_s, p.paced),
        "orientation": channel_seen(p.quat_wxyz, p.time_s, p.paced),
    }
    trip = float(np.median(p.round_trip_s))
    if not any(c.changes for c in seen.values()):
        simulated = p.dialect.simulates
        yield Finding(
            group="channels", what="all", level=Level.AMBER if simulated else Level.RED,
            got=f"not one value changed in {len(p.time_s)} readings",
            expected="sensors never give the same bits for long",
            do="a simulator that holds the robot: rates cannot be told" if simulated else "the server gives old values",
        )  # fmt: skip
        return
    for name, channel in seen.items():
        allowed = trained_age_s(spec, "joints" if name == "joints" else "imu")
        yield _channel(name, channel, trip, allowed, p)


def _channel(name: str, c: ChannelSeen, trip_s: float, allowed_s: float | None, p: Probe) -> Finding:
    if not c.changes:
        # quantised encoders of a robot at rest do, and so does an accelerometer that nobody reads
        level = Level.RED if name in ("gyro", "orientation") and not p.dialect.simulates else Level.AMBER
        do = "the server repeats old values: restart it" if level is Level.RED else "move it by hand while it is probed"
        return Finding(
            group="channels", what=name, level=level, got="it never changed", expected="new values", do=do
        )
    age = c.hold_s + trip_s
    dense = "at least " if c.hold_s == 0.0 else ""
    got = (
        f"{dense}{c.rate_hz:.0f} new values a second; {c.repeats:.0%} of ticks repeat; "
        f"by hold and round trip up to {1e3 * age:.0f} ms old"
    )
    slow = 0.25 * p.period_s
    if name == "joints" and math.isinf(age):
        return Finding(group="channels", what=name, level=Level.AMBER, got="it changed once", do="move it by hand")
    if allowed_s is None:
        level, expected = (Level.AMBER if c.repeats > 0.3 else Level.GREEN), "a new value each tick"
    else:
        level, expected = Level.GREEN, f"trained for up to {1e3 * allowed_s:.0f} ms"
        if age > allowed_s + slow:
            level = Level.RED if c.repeats > 0.5 or age > allowed_s + p.period_s + slow else Level.AMBER
        elif age > allowed_s and c.repeats > 0.3:
            level = Level.RED if c.repeats > 0.5 else Level.AMBER
    if level is Level.GREEN:
        return Finding(group="channels", what=name, level=level, got=got, expected=expected if allowed_s else "")
    # an encoder at rest repeats its bits though each is new
    if name == "joints" and level is Level.RED and float(np.ptp(p.position, axis=0).max(initial=0.0)) < 0.01:
        level = Level.AMBER
    return Finding(
        group="channels", what=name, level=level, got=got, expected=expected,
        do="make the sensor's driver faster, or train with a channel this slow (channels.imu.rate_hz)",
    )  # fmt: skip


def link_findings(p: Probe) -> Iterator[Finding]:
    """Round trips, and the rate that the link can hold."""
    p50, p99 = (float(np.percentile(p.round_trip_s, q)) for q in (50, 99))
    budget, wanted = READ_SHARE * p.period_s, 1.0 / p.period_s
    level, do = Level.GREEN, ""
    if p50 > budget:
        level, do = Level.RED, "most states would come too late: another link, or run it on the robot's own computer"
    elif p99 > budget:
        level, do = Level.AMBER, "some states would be lost: look at the link and what else runs on both machines"
    yield Finding(
        group="link", what="round trip", level=level, got=f"of a state: p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms",
        expected=f"p99 at most {1e3 * budget:.0f} ms", do=do,
    )  # fmt: skip
    fast = np.diff(p.time_s[p.paced :])
    if len(fast) > 8:
        rate = 1.0 / float(np.median(fast))
        # a command follows each state, and takes about as long
        level = Level.RED if rate < wanted else Level.AMBER if rate < 2.0 * wanted else Level.GREEN
        yield Finding(
            group="link", what="rate", level=level, got=f"{rate:.0f} states a second, one after the other",
            expected=f"{2.0 * wanted:.0f}: {wanted:.0f} ticks, each a state and a command",
            do="" if level is Level.GREEN else "another link, or run it on the robot's own computer",
        )  # fmt: skip
    if p.lost:
        share = p.lost / max(p.lost + len(p.time_s), 1)
        yield Finding(
            group="link", what="lost", level=Level.RED if share > 0.05 else Level.AMBER, expected="none",
            got=f"{p.lost} of {p.lost + len(p.time_s)} states did not come in time", do="look at the link",
        )  # fmt: skip


def clock_findings(p: Probe) -> Iterator[Finding]:
    """The wall clock of this machine."""
    stepped = abs(p.clock_step_s) > 0.05
    yield Finding(
        group="clock", what="wall clock", level=Level.AMBER if stepped else Level.GREEN,
        got=f"moved by {1e3 * p.clock_step_s:+.1f} ms against the monotonic one",
        expected="less than 50 ms" if stepped else "",
        do="logs of several machines will not line up: wait until it is synchronised" if stepped else "",
    )  # fmt: skip


def findings(p: Probe, spec: PolicySpec | None, limits: Limits) -> list[Finding]:
    """All that a robot left alone tells; `spec` is what the bundle's policy was trained for."""
    found = [*server_findings(p), *actuator_findings(p, limits), *gain_findings(p)]
    if not len(p.time_s):
        found.append(
            Finding(
                group="link", what="states", level=Level.RED, got=f"none of {p.lost} came in time", expected="answers",
                do="look at the link, and at the server",
            )
        )  # fmt: skip
        return found
    reads = spec is not None and any(a.name == "accelerometer" for a in spec.inputs)
    found += [*imu_findings(p, limits, reads), *channel_findings(p, spec), *link_findings(p), *clock_findings(p)]
    return found


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

    def red(joint: str, got: str, do: str, level: Level = Level.RED) -> None:
        expected = "it alone moves, by what it is asked to"
        found.append(Finding(group="wiggle", what=joint, level=level, got=got, expected=expected, do=do))

    for w in wiggled:
        share = w.moved_rad / w.asked_rad
        row = list(names).index(w.joint)
        own, rest = float(share[row]), np.abs(np.delete(share, row))
        others = [n for n in names if n != w.joint]
        also = [(others[i], float(np.delete(share, row)[i])) for i in np.flatnonzero(rest > OTHER)]
        told = ", ".join(f"{name} by {s:+.2f} of it" for name, s in also[:3])
        if also and own < MOVED[0]:
            red(w.joint, f"{told} moved in its place (itself {own:+.2f})", "ids are swapped: see the ids in the metadata")
        elif own < -OTHER:
            red(w.joint, f"moved the other way ({own:+.2f})", "its sign is inverted: see the motor's direction")
        elif own < MOVED[0]:
            red(w.joint, f"hardly moved ({own:+.2f})", "stuck, limp, or its gains did not arrive")
        elif own > MOVED[1]:
            red(w.joint, f"moved by {own:.2f} times as much", "the unit or the gear ratio is another")
        elif also:
            red(w.joint, f"{told} moved as well", "it is pushed by it, or linked", Level.AMBER)
        else:
            shares.append(own)
    if shares:
        got = f"{len(shares)} joints moved by {min(shares):.2f} to {max(shares):.2f} of what they were asked to, alone"
        found.insert(0, Finding(group="wiggle", what="sign and scale", level=Level.GREEN, got=got))
    return found


def worst(found: Sequence[Finding]) -> Level:
    """The worst level of all."""
    order = list(Level)
    return max((f.level for f in found), key=order.index, default=Level.GREEN)


def next_step(found: Sequence[Finding], command: str) -> str:
    """The line that says what to do now."""
    counts = {level: sum(f.level is level for f in found) for level in Level}
    said = ", ".join(f"{n} {level}" for level, n in counts.items() if n)
    if counts[Level.RED]:
        first = next(f for f in found if f.level is Level.RED)
        return f"RED ({said}): not to be run. First: {first.group}, {first.what}: {first.do or first.got}"
    if counts[Level.AMBER]:
        first = next(f for f in found if f.level is Level.AMBER)
        return f"AMBER ({said}): it can be run; look at what is amber, first at {first.group}, {first.what}. Then: {command}"
    return f"GREEN ({said}): {command}"


def to_json(found: Sequence[Finding], **more: Any) -> dict[str, Any]:
    """All as plain JSON values."""
    level = worst(found)
    return {
        "level": str(level),
        "exit_code": 1 if level is Level.RED else 0,
        **more,
        "findings": [f.to_json() for f in found],
    }
