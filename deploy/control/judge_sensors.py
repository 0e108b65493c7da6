"""IMU, channels, link and clock, judged: pure functions from what was recorded to findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.bundle.margins import Measured, Verdict, compare
from deploy.control.findings import AMBER, GREEN, RED, Finding, Probe, listed
from deploy.control.loop import READ_SHARE
from deploy.robot.dialects import Dialect
from deploy.robot.gyro import GyroCheck
from deploy.robot.safety import FRAME_MAX_RAD, Limits, gravity_error_rad
from deploy.robot.state import RobotState
from robots.rotation import GRAVITY_M_S2
from robots.spec import PolicySpec

# The orientation of a robot at rest moves by less than this, and its gyro reads less [rad, rad/s].
REST_RAD, REST_GYRO_RAD_S = 0.02, 0.1
# Up by accelerometer and by orientation are nearer than this where mounting and bias are as they should be [rad].
FRAME_GOOD_RAD = 0.2
_LADDERS = {"imu_age_s": "IMU", "joint_age_s": "joints", "action_latency_s": "command"}


def imu_findings(p: Probe, limits: Limits, reads_accelerometer: bool) -> Iterator[Finding]:
    """Units and frames of the IMU."""
    if p.errors:
        yield Finding("IMU", "calls", RED, listed(p.errors, 2), "answers without an error", "see the server's own log")
    size = np.linalg.norm(p.quat_wxyz, axis=1)
    good = np.isfinite(size) & (size > 0.5) & (size < 2.0) & np.isfinite(p.gyro_b).all(axis=1)
    if not good.any():
        got = "no quaternion of unit length" if not len(size) else f"quaternion of length {size[0]:.3g}"
        yield Finding(
            "IMU", "orientation", RED, got, "unit length", "the IMU has no data: its wiring, its driver in the server"
        )
        return
    off = float(np.abs(size[good] - 1.0).max())
    if off > 0.01 or not good.all():
        bad = f"; {int((~good).sum())} of {len(good)} readings had none" if not good.all() else ""
        yield Finding(
            "IMU",
            "orientation",
            AMBER,
            f"length off by up to {off:.3g}{bad}",
            "unit length in every reading",
            "see the IMU's driver",
        )
    states = [p.state(int(k)) for k in np.flatnonzero(good)]
    yield _tilt(states, limits)
    yield _up(states, reads_accelerometer, p.dialect)
    yield from _gyro(p, states)


def _tilt(states: Sequence[RobotState], limits: Limits) -> Finding:
    tilt = max(s.tilt_rad for s in states)
    fallen = tilt > limits.tilt_max_rad
    return Finding(
        "IMU",
        "tilt",
        RED if fallen else GREEN,
        f"{math.degrees(tilt):.0f} degrees",
        f"at most {math.degrees(limits.tilt_max_rad):.0f}" if fallen else "",
        "put it upright; if it is, the IMU's frame is not the robot's" if fallen else "",
    )


def _up(states: Sequence[RobotState], read: bool, dialect: Dialect) -> Finding:
    """Accelerometer at rest against gravity."""
    what, sizes = "accelerometer", [float(np.linalg.norm(s.accel_b)) for s in states]
    size, errors = float(np.median(sizes)), [e for s in states if (e := gravity_error_rad(s)) is not None]
    if not errors:
        level = RED if read and not dialect.simulates else AMBER
        held = "; a simulator that holds the base has it so" if size < 1e-3 and dialect.simulates else ""
        unit = "; it speaks g" if 0.9 < size < 1.1 else ""
        return Finding(
            "IMU",
            what,
            level,
            f"{size:.3g} m/s^2{unit or held}",
            "9.81 m/s^2 at rest",
            "the server has to send m/s^2" if unit else "leave the robot alone while it is probed",
        )
    error = float(np.median(errors))
    got = f"{size:.2f} m/s^2; up is {math.degrees(error):.0f} degrees from up by the orientation"
    if error < FRAME_GOOD_RAD and abs(size / GRAVITY_M_S2 - 1.0) < 0.1:
        return Finding("IMU", what, GREEN, got)
    inverted = error > math.pi - FRAME_MAX_RAD
    red = read if inverted else error > FRAME_MAX_RAD
    do = "gravity is told in place of the specific force" if inverted else "see how the IMU is mounted, and its axes"
    return Finding("IMU", what, RED if red else AMBER, got, "9.81 m/s^2, the same up", do)


def _gyro(p: Probe, states: Sequence[RobotState]) -> Iterator[Finding]:
    """The gyro's unit and frame by integration, where the robot was turned; its bias where it was not."""
    check, last = GyroCheck(p.gyro_unit), None
    for state in states:
        if last is None or not (
            np.array_equal(state.gyro_b, last.gyro_b) and np.array_equal(state.quat_wxyz, last.quat_wxyz)
        ):
            check.add(state)
            last = state
    said = check.message.removeprefix("gyro: ")
    if check.verdict == "wrong":
        yield Finding(
            "IMU", "gyro", RED, said, "what the orientation turns by", "set --gyro-unit, or see the IMU's axes"
        )
        return
    rate = float(np.linalg.norm(np.mean([s.gyro_b for s in states], axis=0)))
    if check.motion_rad < REST_RAD and rate > REST_GYRO_RAD_S:
        yield Finding(
            "IMU",
            "gyro at rest",
            AMBER,
            f"{rate:.2f} rad/s while nothing turns",
            f"less than {REST_GYRO_RAD_S:g}",
            "calibrate it, or see its unit",
        )
    if check.verdict == "ok":
        yield Finding("IMU", "gyro", GREEN, said)
    else:
        yield Finding(
            "IMU",
            "gyro",
            AMBER,
            f"not judged: {said}",
            do="turn the robot by hand while it is probed, by 10 degrees and back",
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


def trained_age_s(spec: PolicySpec | None, channel: str) -> float | None:
    """How old a channel ("joints" or "imu") may have been in training [s]; None where nobody can tell.

    What the policy bears beyond that is told by its margins: `margin_findings`.
    """
    if spec is None or not (spec.training or spec.observation_latency_s[1]):
        return None  # another exporter's bundle says nothing of its training
    channels = spec.training.get("channels")
    trained = channels.get(channel, {}) if isinstance(channels, dict) else {}
    try:
        slowest = trained["rate_hz"][0]
        return float(trained["latency_s"][1] + trained["jitter_s"] + (1.0 / slowest if slowest > 0 else 0.0))
    except (KeyError, TypeError, IndexError):
        return spec.observation_latency_s[1]


def channels_seen(p: Probe) -> dict[str, ChannelSeen]:
    """Each channel, by name."""
    return {
        "joints": channel_seen(np.hstack([p.position, p.velocity]), p.time_s, p.paced),
        "gyro": channel_seen(p.gyro_b, p.time_s, p.paced),
        "accelerometer": channel_seen(p.accel_b, p.time_s, p.paced),
        "orientation": channel_seen(p.quat_wxyz, p.time_s, p.paced),
    }


def figures(p: Probe) -> dict[str, Any]:
    """The numbers that were measured, for a program to read; None is one that could not be."""

    def plain(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    trips = p.round_trip_s if len(p.round_trip_s) else np.array([math.nan])
    channels = {name: {k: plain(v) for k, v in asdict(c).items()} for name, c in channels_seen(p).items()}
    return {
        "readings": len(p.time_s),
        "lost": p.lost,
        "round_trip_p50_s": plain(np.percentile(trips, 50)),
        "round_trip_p99_s": plain(np.percentile(trips, 99)),
        "clock_step_s": p.clock_step_s,
        "channels": channels,
    }


def channel_findings(p: Probe, spec: PolicySpec | None) -> Iterator[Finding]:
    """Each channel's own rate, repeats, and what they say of its age."""
    seen = channels_seen(p)
    trip = float(np.median(p.round_trip_s))
    if not any(c.changes for c in seen.values()):
        simulated = p.dialect.simulates
        yield Finding(
            "channels",
            "all",
            AMBER if simulated else RED,
            f"not one value changed in {len(p.time_s)} readings",
            "sensors never give the same bits for long",
            "a simulator that holds the robot: rates cannot be told" if simulated else "the server gives old values",
        )
        return
    for name, channel in seen.items():
        allowed = trained_age_s(spec, "joints" if name == "joints" else "imu")
        yield _channel(name, channel, trip, allowed, p)


def _channel(name: str, c: ChannelSeen, trip_s: float, allowed_s: float | None, p: Probe) -> Finding:
    if not c.changes:
        # quantised encoders of a robot at rest do, and so does an accelerometer that nobody reads
        level = RED if name in ("gyro", "orientation") and not p.dialect.simulates else AMBER
        do = "the server repeats old values: restart it" if level is RED else "move it by hand while it is probed"
        return Finding("channels", name, level, "it never changed", "new values", do)
    age = c.hold_s + trip_s
    dense = "at least " if c.hold_s == 0.0 else ""
    got = (
        f"{dense}{c.rate_hz:.0f} new values a second; {c.repeats:.0%} of ticks repeat; "
        f"by hold and round trip up to {1e3 * age:.0f} ms old"
    )
    slow = 0.25 * p.period_s
    if name == "joints" and math.isinf(age):
        return Finding("channels", name, AMBER, "it changed once", do="move it by hand")
    if allowed_s is None:
        level, expected = (AMBER if c.repeats > 0.3 else GREEN), "a new value each tick"
    else:
        level, expected = GREEN, f"trained for up to {1e3 * allowed_s:.0f} ms"
        if age > allowed_s + slow:
            level = RED if c.repeats > 0.5 or age > allowed_s + p.period_s + slow else AMBER
        elif age > allowed_s and c.repeats > 0.3:
            level = RED if c.repeats > 0.5 else AMBER
    if level is GREEN:
        return Finding("channels", name, level, got, expected if allowed_s else "")
    # an encoder at rest repeats its bits though each is new
    if name == "joints" and level is RED and not moved(p):
        level = AMBER
    return Finding(
        "channels",
        name,
        level,
        got,
        expected,
        "make the sensor's driver faster, or train with a channel this slow (channels.imu.rate_hz)",
    )


def margin_findings(p: Probe, spec: PolicySpec | None) -> Iterator[Finding]:
    """What was measured against what the policy bears in simulation, where its bundle tells (robots/margins.py).

    A margin is of readings that are all equally late. So red is a channel that is beyond it by its mean age, amber one
    that is so by its greatest. How old a value was when the server got it is in neither.
    """
    if spec is None or spec.margins is None:
        return
    trip = float(np.median(p.round_trip_s))
    held = {name: c.hold_s for name, c in channels_seen(p).items() if c.changes and math.isfinite(c.hold_s)}
    holds = {
        "imu_age_s": [held[name] for name in ("gyro", "orientation") if name in held],
        # encoders at rest repeat their bits though each reading is new
        "joint_age_s": [held["joints"]] if "joints" in held and moved(p) else [],
    }

    def measured(share: float) -> Measured:
        ages = {name: max(values) * share + trip for name, values in holds.items() if values}
        return Measured(**ages, command_age_s=trip)

    worst = {f.ladder: f for f in compare(spec.margins, measured(1.0))}
    for mean in compare(spec.margins, measured(0.5)):
        most = worst[mean.ladder]
        if most.verdict is Verdict.UNKNOWN:
            continue
        beyond = RED if mean.verdict is Verdict.BEYOND else AMBER
        level = GREEN if most.verdict is Verdict.WITHIN else beyond
        expected, do = "", ""
        if level is not GREEN:
            expected = "at most what it stands"
            do = "a faster sensor or link, or a policy that was trained for this"
        yield Finding("margins", _LADDERS[mean.ladder], level, most.text, expected, do)


def moved(p: Probe) -> bool:
    """Some joint moved while it was probed."""
    return float(np.ptp(p.position, axis=0).max(initial=0.0)) >= 0.01


def link_findings(p: Probe) -> Iterator[Finding]:
    """Round trips, and the rate that the link can hold."""
    p50, p99 = (float(np.percentile(p.round_trip_s, q)) for q in (50, 99))
    budget, wanted = READ_SHARE * p.period_s, 1.0 / p.period_s
    level, do = GREEN, ""
    if p50 > budget:
        level, do = RED, "most states would come too late: another link, or run it on the robot's own computer"
    elif p99 > budget:
        level, do = AMBER, "some states would be lost: look at the link and what else runs on both machines"
    yield Finding(
        "link",
        "round trip",
        level,
        f"of a state: p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms",
        f"p99 at most {1e3 * budget:.0f} ms",
        do,
    )
    fast = np.diff(p.time_s[p.paced :])
    if len(fast) > 8:
        rate = 1.0 / float(np.median(fast))
        # a command follows each state, and takes about as long
        level = RED if rate < wanted else AMBER if rate < 2.0 * wanted else GREEN
        yield Finding(
            "link",
            "rate",
            level,
            f"{rate:.0f} states a second, one after the other",
            f"{2.0 * wanted:.0f}: {wanted:.0f} ticks, each a state and a command",
            "" if level is GREEN else "another link, or run it on the robot's own computer",
        )
    if p.lost:
        share = p.lost / max(p.lost + len(p.time_s), 1)
        yield Finding(
            "link",
            "lost",
            RED if share > 0.05 else AMBER,
            f"{p.lost} of {p.lost + len(p.time_s)} states did not come in time",
            "none",
            "look at the link",
        )


def clock_findings(p: Probe) -> Iterator[Finding]:
    """The wall clock of this machine."""
    stepped = abs(p.clock_step_s) > 0.05
    yield Finding(
        "clock",
        "wall clock",
        AMBER if stepped else GREEN,
        f"moved by {1e3 * p.clock_step_s:+.1f} ms against the monotonic one",
        "less than 50 ms" if stepped else "",
        "logs of several machines will not line up: wait until it is synchronised" if stepped else "",
    )
