"""What a log shows by itself, before anything is simulated: suspects that need no proof.

Each function looks for one thing and gives its suspects; a thing that cannot be told from this log gives none.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from deploy.bundle.session import OnnxPolicy
from deploy.errors import PolicyError
from deploy.log.recorder import RunLog
from deploy.log.timing import LoopTiming
from deploy.parity.motion import measured_at_s
from deploy.parity.report import Cause, LayerName, Suspect
from deploy.robot.frozen import CHANNELS, FrozenLimits
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality
from robots import rotation

# Actions of one graph on two computers differ by less than this; those of another carry or graph by more [rad].
SAME_RAD, OTHER_RAD = 1e-4, 0.01
# A channel is slow if it has fewer new values than this share of what the simulation has.
RATE_MIN = 0.7
# Between a number in degrees and the same in radians; a ratio this close to it in its logarithm is meant.
DEGREES = 180.0 / math.pi
UNIT_WITHIN = math.log(1.6)
# Below this a joint, its target or a turn says nothing [rad, rad/s].
MOVED_RAD, TURNED_RAD_S = 0.02, 0.05
# Another frame of the gyro is named if it leaves less than this share of the squared difference; of the IMU, if "up"
# was this far off and comes this near (squared distance of unit vectors).
FRAME_SHARE, FRAME_FAR, FRAME_NEAR = 0.35, 0.6, 0.12
EARLY_S = 0.3
LATE_PERIOD, LATE_SHARE = 1.1, 0.02
# Safety changed a joint's targets by as much as the policy moves them.
GUARD_SHARE = 1.0


def _seen(cause: Cause, layer: LayerName, *places: str, value: float | None = None, unit: str = "") -> Suspect:
    return Suspect(
        cause=cause,
        layer=layer,
        places=places,
        value=None if value is None else float(value),
        unit=unit,
        explains=1.0,
        direct=True,
    )


def policy(log: RunLog) -> tuple[Suspect, ...]:
    """The recorded inputs through the recorded graph: with the carry as it should be, else with a stale one.

    A stale carry is one that was not advanced at some steps, or is handed on a step late, or is always the first.
    """
    rows = np.flatnonzero(log.run & np.isfinite(log.action).all(axis=1))
    if log.bundle is None or not len(rows):
        return ()
    try:
        session = OnnxPolicy(log.bundle)
    except PolicyError:
        return ()
    if any(name not in log.inputs for name in session.inputs):
        return ()
    # the log may be in another order than the policy's
    action_of = log.action[:, [log.spec.robot.joint_names.index(name) for name in log.bundle.joint_names]]

    def replay(follow: bool) -> tuple[np.ndarray, int]:
        """(RMS error of each step, steps whose carry was not that of the step before)."""
        session.reset()
        first = used = before = session.carry
        errors, stale = np.empty(len(rows)), 0
        for i, row in enumerate(rows):
            inputs = {name: log.inputs[name][row] for name in session.inputs}
            tried = []
            # the right one first: a tie is no fault
            for carry in (session.carry, used, before, first) if follow else (session.carry,):
                session.carry = carry
                action = session.step(inputs)
                error = float(np.sqrt(np.mean((action - action_of[row]) ** 2)))
                tried.append((error, carry, session.carry))
                if error <= SAME_RAD:
                    break
            best = min(range(len(tried)), key=lambda k: tried[k][0])
            stale += best > 0
            errors[i], before, used, session.carry = tried[best][0], tried[0][1], *tried[best][1:]
        return errors, stale

    try:
        right, _ = replay(False)
        late = right[len(right) // 2 :]  # the first carry of a log that begins in mid-run is not known
        if not late.max() > SAME_RAD or np.sqrt(np.mean(late**2)) <= SAME_RAD:
            return ()
        followed, stale = replay(True)
    except PolicyError:
        return ()
    if stale and np.sqrt(np.mean(followed**2)) < 0.1 * np.sqrt(np.mean(right**2)):
        return (_seen(Cause.STALE_CARRY, LayerName.POLICY, "carry", value=stale / len(rows), unit="share"),)
    rms = float(np.sqrt(np.mean(late**2)))
    return (_seen(Cause.OTHER_POLICY, LayerName.POLICY, value=rms, unit="rad"),) if rms > OTHER_RAD else ()


def _repeats(values: np.ndarray) -> np.ndarray:
    """Which rows repeat the one before to the bit, (rows - 1,)."""
    return (values[1:] == values[:-1]).all(axis=1)


def _longest(same: np.ndarray) -> int:
    """The longest stretch."""
    edges = np.flatnonzero(~np.concatenate([[False], same, [False]]))
    return int(np.diff(edges).max()) - 1


def frozen(log: RunLog, *, hang: bool) -> tuple[Suspect, ...]:
    """Channels and joints that repeat their bits while others change. The limits are those of the run's own check."""
    limits, rows = FrozenLimits(), np.flatnonzero(log.run)
    if len(rows) < 3:
        return ()
    # a run that ends by it goes on to record while the robot is damped
    rows = np.arange(rows[0], min(rows[-1] + 2 * limits.channel_ticks, len(log.phase)))
    rows = rows[np.isfinite(log.joint_position[rows]).all(axis=1)]
    if len(rows) < 3:
        return ()
    period, out = log.spec.control_period_s, []
    same = {name: _repeats(np.hstack([getattr(log, f)[rows] for f in fields])) for name, fields in CHANNELS.items()}
    everything = np.logical_and.reduce(list(same.values()))
    for name, repeats in same.items():
        fresh = int(np.sum(~repeats))
        # a base that is held still repeats for ever; one that changed before and stopped has no excuse
        if name == "joints" or (hang and fresh < 10):
            continue
        longest = _longest(repeats & ~everything)
        usual = len(repeats) / max(fresh, 1)
        if longest > max(limits.channel_ticks, 4 * usual) or (not fresh and len(repeats) > limits.channel_ticks):
            out.append(_seen(Cause.FROZEN, LayerName.SENSING, name, value=longest * period, unit="s"))
    for j, joint in enumerate(log.spec.robot.joint_names):
        columns = np.stack([log.joint_position[rows, j], log.joint_velocity[rows, j]], axis=1)
        repeats = _repeats(columns) & ~everything
        longest = _longest(repeats)
        if longest <= limits.joint_ticks:
            continue
        end = int(np.flatnonzero(np.convolve(repeats, np.ones(longest), "valid") > longest - 0.5)[0])
        reach = np.ptp(log.sent[rows[end : end + longest + 1], j])
        # before and after it hardly a reading repeats, and other joints go on: no quantised encoder at rest
        noisy = np.mean(np.delete(repeats, slice(end, end + longest))) < 0.05 if longest < len(repeats) else False
        others = np.ptp(log.joint_position[rows[end : end + longest + 1]], axis=0) > 0
        if reach > limits.joint_moved_rad or (noisy and others.mean() > 0.75):
            out.append(_seen(Cause.FROZEN, LayerName.SENSING, joint, value=longest * period, unit="s"))
    return tuple(sorted(out, key=lambda s: -(s.value or 0.0)))


def imu_rate(log: RunLog, reality: Reality, *, hang: bool) -> tuple[Suspect, ...]:
    """How many new samples the IMU has a second, against what the simulation has."""
    rows = np.flatnonzero(log.run & ~log.stale)
    if len(rows) < 10:
        return ()
    same = _repeats(np.hstack([log.quat_wxyz[rows], log.gyro_b[rows]]))
    seconds = float(measured_at_s(log)[rows[-1]] - measured_at_s(log)[rows[0]])
    channel = reality.sensors.imu
    asked = len(same) / max(seconds, 1e-9)
    expected = min(asked, channel.rate_hz or math.inf) * (1.0 - channel.loss)
    rate = float(np.sum(~same)) / max(seconds, 1e-9)
    still = hang and np.sum(~same) < 10
    gyro = log.gyro_b[rows]
    moves = bool(np.isfinite(gyro).any()) and float(np.nanstd(gyro, axis=0).max()) > 1e-3
    if still or not moves or rate >= RATE_MIN * expected or not np.any(~same):
        return ()
    return (_seen(Cause.IMU_RATE, LayerName.SENSING, "imu", value=rate, unit="Hz"),)


# Turns by quarters and halves about the axes: (axis, angle, matrix).
TURNS = [
    (axis, angle, rotation.matrix(rotation.from_rotvec(angle * np.eye(3)["xyz".index(axis)])))
    for axis in "xyz"
    for angle in (0.5 * math.pi, -0.5 * math.pi, math.pi)
]


def turned_back(log: RunLog, axis: str, angle: float) -> RunLog:
    """The log of an IMU that was turned, as it would be without that."""
    back = rotation.from_rotvec(-angle * np.eye(3)["xyz".index(axis)])
    quat = rotation.multiply(log.quat_wxyz, np.broadcast_to(back, log.quat_wxyz.shape))
    vectors = {name: getattr(log, name) @ rotation.matrix(back) for name in ("gyro_b", "accel_b")}
    return dataclasses.replace(log, quat_wxyz=quat, **vectors)


def _turn(expected: np.ndarray, told: np.ndarray) -> tuple[float, float, str, float]:
    """(squared difference before, after, axis, angle): the turn of a sensor that makes vectors (T, 3) of what it tells.

    A sensor that is turned by R tells R^T v of a vector v.
    """
    before = float(np.mean(np.sum((expected - told) ** 2, axis=1)))
    left = [float(np.mean(np.sum((expected @ turn - told) ** 2, axis=1))) for _, _, turn in TURNS]
    best = int(np.argmin(left))
    return before, left[best], *TURNS[best][:2]


def imu_frame(log: RunLog, plant: Plant) -> tuple[tuple[Suspect, ...], RunLog]:
    """(an IMU that is turned, or a gyro of another frame or unit than the orientation; the log put right).

    Before a run a robot stands or hangs about as at home. A turn about the vertical does not show in that.
    """
    good = np.isfinite(log.quat_wxyz).all(axis=1) & np.isfinite(log.gyro_b).all(axis=1)
    rows = np.flatnonzero(log.run & good)
    if len(rows) < 10 or plant.built.base_body < 0:
        return (), log
    out: list[Suspect] = []
    early = np.flatnonzero(good[: rows[0] + max(1, round(EARLY_S / log.spec.control_period_s))])
    up = np.median(rotation.up_in_frame(log.quat_wxyz[early]), axis=0, keepdims=True)
    before, left, axis, angle = _turn(_home_up(plant), up / np.linalg.norm(up))
    if before > FRAME_FAR and left < FRAME_NEAR:
        out.append(_seen(Cause.IMU_TURNED, LayerName.SENSING, axis, value=angle, unit="rad"))
        log = turned_back(log, axis, angle)
    return (*out, *_gyro(log, rows)), log


def _home_up(plant: Plant) -> np.ndarray:
    """Up in the IMU's frame with the robot at home, (1, 3)."""
    import mujoco

    library: Any = mujoco
    data = library.MjData(plant.model)
    data.qpos[:] = plant.built.home_qpos
    library.mj_forward(plant.model, data)
    return np.atleast_2d(rotation.up_in_frame(data.sensordata[plant.built.sensors["imu_quat"]]))


def _gyro(log: RunLog, rows: np.ndarray) -> tuple[Suspect, ...]:
    """The gyro against the orientation's change, over stretches that are long enough for a slow IMU."""
    time_s, stride = measured_at_s(log), max(1, round(0.1 / log.spec.control_period_s))
    ticks = rows[:-stride:stride], rows[stride::stride]
    n = min(len(t) for t in ticks)
    first, last = (t[:n] for t in ticks)
    span = time_s[last] - time_s[first]
    whole = (span > 0) & (last - first == stride)
    if whole.sum() < 8:
        return ()
    total = np.cumsum(log.gyro_b, axis=0)
    mean = (total[last] - total[first])[whole] / stride
    turned = (rotation.rotvec_between(log.quat_wxyz[first], log.quat_wxyz[last]))[whole] / span[whole][:, None]
    size, told = (float(np.sqrt(np.mean(np.sum(v**2, axis=1)))) for v in (turned, mean))
    if size < TURNED_RAD_S:
        return ()
    for factor in (DEGREES, 1.0 / DEGREES):
        if abs(math.log(max(told, 1e-9) / (size * factor))) < UNIT_WITHIN:
            return (_seen(Cause.UNIT, LayerName.SENSING, "gyro", value=factor, unit="factor"),)
    before, left, axis, angle = _turn(turned, mean)
    if left > FRAME_SHARE * before or before - left < TURNED_RAD_S**2:
        return ()
    return (_seen(Cause.IMU_TURNED, LayerName.SENSING, "gyro", axis, value=angle, unit="rad"),)


def _factor(ratio: np.ndarray, judged: np.ndarray) -> float | None:
    """Degrees over radians, or the other way round, where that is what the ratios (joints,) are; else None."""
    if not judged.any():
        return None
    found = np.log(np.maximum(ratio[judged], 1e-12))
    for factor in (DEGREES, 1.0 / DEGREES):
        if np.mean(np.abs(found - math.log(factor)) < UNIT_WITHIN) >= 0.5:
            return factor
    return None


def units(log: RunLog) -> tuple[tuple[Suspect, ...], dict[str, np.ndarray]]:
    """(columns in degrees for radians; by column, what its numbers are to be divided by, (joints,)).

    Positions are judged by their targets, speeds by the change of the positions, targets by the actions.
    """
    rows = np.flatnonzero(log.run)
    names = np.asarray(log.spec.robot.joint_names)
    out, by_column = [], {}

    def rms(values: np.ndarray) -> np.ndarray:
        """By joint; NaN where there is no value at all."""
        there = np.isfinite(values)
        total = np.sum(np.square(np.where(there, values, 0.0)), axis=0)
        return np.sqrt(np.divide(total, there.sum(axis=0), out=np.full(len(names), np.nan), where=there.any(axis=0)))

    seconds = np.maximum(np.diff(measured_at_s(log)[rows])[:, None], 1e-6)

    def right(column: str) -> np.ndarray:
        """A column as far as it was put right."""
        return getattr(log, column)[rows] / by_column.get(column, 1.0)

    # each is judged by the one before it
    for column, wanted_of, least in (
        ("sent", lambda: log.action[rows], MOVED_RAD),
        ("joint_position", lambda: right("sent"), 3 * MOVED_RAD),
        ("joint_velocity", lambda: np.diff(right("joint_position"), axis=0) / seconds, 3 * TURNED_RAD_S),
    ):
        told, wanted = rms(getattr(log, column)[rows]), rms(wanted_of())
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = told / wanted
        judged = np.isfinite(ratio) & (np.nan_to_num(wanted) > least)
        whole = _factor(ratio, judged)
        if whole is not None:
            factors = np.full(len(names), whole)
            places: tuple[str, ...] = (column,)
        else:
            alone = [_factor(ratio[j : j + 1], judged[j : j + 1]) for j in range(len(names))]
            factors = np.asarray([1.0 if f is None else f for f in alone])
            places = tuple(names[factors != 1.0])
        if places:
            layer = LayerName.ACTION_PATH if column == "sent" else LayerName.SENSING
            value = float(factors[factors != 1.0][0])
            out.append(_seen(Cause.UNIT, layer, *places, value=value, unit="factor"))
            by_column[column] = factors
    return tuple(out), by_column


def loop_late(log: RunLog) -> tuple[Suspect, ...]:
    """A loop whose period is longer than the policy's, all the time or again and again."""
    rows, period = np.flatnonzero(log.run), log.spec.control_period_s
    if log.metadata.get("step_lock") or len(rows) < 10:
        return ()
    timing = LoopTiming.of(
        period_s=period,
        tick=log.tick[rows],
        scheduled_s=log.scheduled_s[rows],
        start_s=log.start_s[rows],
        state_round_trip_s=log.state_round_trip_s[rows],
        command_round_trip_s=log.command_round_trip_s[rows],
    )
    late = float(np.mean(np.diff(log.start_s[rows]) > 1.5 * period))
    if timing.period_p50_ms <= LATE_PERIOD * timing.period_ms and late <= LATE_SHARE:
        return ()
    return (_seen(Cause.LOOP_LATE, LayerName.TIMING, value=1e-3 * timing.period_p99_ms, unit="s"),)


def guard(log: RunLog) -> tuple[Suspect, ...]:
    """Targets that safety changed by much of what the policy asked for."""
    rows = np.flatnonzero(log.run & np.isfinite(log.action).all(axis=1) & np.isfinite(log.sent).all(axis=1))
    if not len(rows):
        return ()
    change = np.sqrt(np.mean((log.sent[rows] - log.action[rows]) ** 2, axis=0))
    share = change / np.maximum(np.std(log.action[rows], axis=0), MOVED_RAD)
    names = np.asarray(log.spec.robot.joint_names)[share > GUARD_SHARE]
    if not len(names):
        return ()
    return (_seen(Cause.GUARD, LayerName.ACTION_PATH, *names, value=float(share.max()), unit="times"),)
