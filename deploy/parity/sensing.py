"""What the sensors told: how old, how often anew, what was missing, how noisy, how biased, in what steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.log.recorder import RunLog
from deploy.parity.motion import measured_at_s
from deploy.parity.report import Figure, Layer, LayerName
from deploy.parity.statistics import noise_std, percentile, quantum
from deploy.parity.trained import channel_rate_hz, noise
from deploy.robot.frozen import CHANNELS
from robots import rotation
from robots.inputs import GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.model import BuiltModel

# A rate counts as that of training down to this share of it; below half of that it is another sensor.
RATE_GOOD, RATE_POOR = 0.9, 0.45
# Encoders with steps tell the same while the robot rests: joints count where any moves by MOVED_RAD within MOVED_TICKS
# before and within as many after [rad].
MOVED_RAD, MOVED_TICKS = 0.004, 4
# Ours: states that are not new, values that are no numbers.
STALE_GOOD, STALE_POOR = 0.01, 0.05
MISSING_GOOD, MISSING_POOR = 0.0, 0.01
# Ours: a joint that keeps its reading while its target moves by FROZEN_RAD; as long as `ksim run` bears it is bad.
FROZEN_RAD, FROZEN_GOOD_S, FROZEN_POOR_S = 0.1, 0.2, 0.5
# Noise above that of training is to be looked at; above twice that it is bad.
NOISE_POOR = 2.0
# Ours, for a gyro that a policy balances by, for steps of an encoder, and for the way that an IMU is mounted.
BIAS_GOOD_RAD_S, BIAS_POOR_RAD_S = 0.05, 0.15
SCALE_GOOD, SCALE_POOR = 0.15, 0.5
QUANTUM_GOOD_RAD, QUANTUM_POOR_RAD = 0.005, 0.02
TILT_GOOD_RAD, TILT_POOR_RAD = 0.05, 0.15
# Up turns by at least this, root mean square, or the gyro's scale cannot be told [rad/s].
TURNING_RAD_S = 0.05
# Samples that are averaged for it [s].
TOGETHER_S = 0.2
# Both feet have one opinion of which way is up, within this [rad]: then both stand flat.
FLAT_RAD, FLAT_LEAST = 0.03, 20
# What of the training's channels has the values, and the margin that bears their age.
_CHANNEL = {"joints": ("joints", "joint_age_s"), "orientation": ("imu", "imu_age_s"), "gyro": ("imu", "imu_age_s")}


def is_new(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Whether anything differs from the row before, to the bit, (T - 1,) bool; columns are (T, k)."""
    new = np.zeros(len(columns[0]) - 1, dtype=bool)
    for column in columns:
        before, after = column[:-1], column[1:]
        new |= ((before != after) & ~(np.isnan(before) & np.isnan(after))).any(axis=1)
    return new


def ages_s(new: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """Time since the last new values at each row, (T,) [s]; the first row counts as new."""
    at = np.concatenate([[True], new])
    last = np.maximum.accumulate(np.where(at, np.arange(len(at)), 0))
    return time_s - time_s[last]


def in_motion(position: np.ndarray) -> np.ndarray:
    """Of each row but the first, whether joints move before and after it, (T - 1,) bool; positions are (T, joints)."""
    padded = np.pad(np.nan_to_num(position), ((MOVED_TICKS, MOVED_TICKS), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, MOVED_TICKS + 1, axis=0)
    moves = np.ptp(windows, axis=-1).max(axis=1) > MOVED_RAD
    return (moves[: len(position)] & moves[MOVED_TICKS:])[1:]


def frozen_s(sent: np.ndarray, position: np.ndarray, time_s: np.ndarray) -> float:
    """The longest time that a joint kept its reading to the bit while its target moved by FROZEN_RAD [s]; else 0.

    Args:
        sent: (T,) [rad].
        position: (T,) [rad].
        time_s: (T,).
    """
    ends = np.flatnonzero(np.diff(position) != 0) + 1
    longest = 0.0
    for begin, end in zip([0, *ends], [*ends, len(position)], strict=True):
        if end - begin > 2 and np.ptp(sent[begin:end]) > FROZEN_RAD:
            longest = max(longest, float(time_s[end - 1] - time_s[begin]))
    return longest


def gyro_against_orientation(
    quat: np.ndarray, gyro: np.ndarray, time_s: np.ndarray
) -> tuple[np.ndarray, tuple[float, float]]:
    """(bias (3,) [rad/s], (least, greatest) scale) of a gyro by the turn of up in its frame, which is up x turn.

    Scale is 1 where the gyro is in rad/s. With noise its two ends are apart: the regression of gyro on turn gives too
    little, the other way round too much. NaN where up hardly turns. The bias about up itself cannot be told, and is
    given as 0; all of it is NaN where the scale is another.

    Args:
        quat: orientations of the IMU (T, 4).
        gyro: (T, 3).
        time_s: (T,) [s].
    """
    up, dt = rotation.up_in_frame(quat), np.diff(time_s)[:, None]
    turn, middle, rate = np.diff(up, axis=0) / dt, 0.5 * (up[1:] + up[:-1]), 0.5 * (gyro[1:] + gyro[:-1])
    told = np.cross(middle, rate)
    zero, (x, y, z) = np.zeros(len(middle)), middle.T
    cross = np.stack([np.stack(r, axis=-1) for r in ((zero, -z, y), (z, zero, -x), (-y, x, zero))], axis=1)
    # several samples together: what falls between two of them averages out
    span = max(1, round(TOGETHER_S / max(float(np.median(dt)), 1e-6)))
    rows = len(told) // span * span
    unknown = np.full(3, np.nan), (np.nan, np.nan)
    if not rows:
        return unknown
    turn, told, cross = (a[:rows].reshape(-1, span, *a.shape[1:]).mean(axis=1) for a in (turn, told, cross))
    # turn = up x (gyro - bias)
    bias = np.linalg.lstsq(cross.reshape(-1, 3), (told - turn).reshape(-1), rcond=0.05)[0]
    turn, told = turn - turn.mean(axis=0), told - told.mean(axis=0)
    both, turns, tells = float(np.sum(turn * told)), float(np.sum(turn**2)), float(np.sum(told**2))
    scale = (np.nan, np.nan)
    if turns > len(turn) * TURNING_RAD_S**2 and both != 0.0:
        ends = sorted((both / turns, tells / both))
        scale = (ends[0], ends[1])
    other = scale[0] > 1.0 + SCALE_POOR or scale[1] < 1.0 - SCALE_POOR
    return unknown[0] if other else bias, scale


def feet_up(built: BuiltModel, position: np.ndarray) -> np.ndarray:
    """Up in the IMU's frame if each foot stood flat, as at home: joint positions (T, joints) -> (T, feet, 3)."""
    import mujoco

    library = mujoco
    model = built.model
    data = library.MjData(model)  # type: ignore[attr-defined]
    feet = [int(model.geom_bodyid[np.atleast_1d(g)[0]]) for g in built.geoms_by_foot.values()]
    data.qpos[:] = built.home_qpos
    library.mj_kinematics(model, data)  # type: ignore[attr-defined]
    flat = [data.xmat[foot].reshape(3, 3).T @ (0.0, 0.0, 1.0) for foot in feet]
    out = np.empty((len(position), len(feet), 3))
    for row, angles in enumerate(position):
        data.qpos[built.qpos_ids] = angles
        library.mj_kinematics(model, data)  # type: ignore[attr-defined]
        library.mj_sensorPos(model, data)  # type: ignore[attr-defined]
        imu = data.sensordata[built.sensors["imu_quat"]]
        for k, foot in enumerate(feet):
            out[row, k] = rotation.rotate(rotation.conjugate(imu), data.xmat[foot].reshape(3, 3) @ flat[k])
    return out


def tilt_against_feet(built: BuiltModel, position: np.ndarray, quat: np.ndarray) -> float:
    """Angle between up by the IMU and up by flat feet, median [rad]; NaN where the feet do not stand flat together."""
    if len(built.geoms_by_foot) < 2:
        return np.nan
    up = feet_up(built, position)
    mean = up.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    apart = np.arccos(np.clip(np.sum(up * mean[:, None], axis=-1), -1.0, 1.0)).max(axis=1)
    stands = apart < FLAT_RAD
    if stands.sum() < FLAT_LEAST:
        return np.nan
    # the mean of vectors: a robot that sways rocks about where its feet are flat
    measured = rotation.up_in_frame(quat[stands]).mean(axis=0)
    wanted = mean[stands].mean(axis=0)
    cosine = float(measured @ wanted) / float(np.linalg.norm(measured) * np.linalg.norm(wanted))
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)))


def _channel(log: RunLog, rows: np.ndarray, channel: str, moving: np.ndarray) -> list[Figure]:
    """Age, rate, repeats and gaps of one channel; `moving`: ticks that count, (T - 1,)."""
    columns = [getattr(log, name)[rows] for name in CHANNELS[channel]]
    there = [np.isfinite(c).all(axis=1) for c in columns if np.isfinite(c).any()]
    if not there:
        return []
    time_s, period = measured_at_s(log)[rows], log.spec.control_period_s
    new = is_new(columns)
    counted = new[moving] if channel == "joints" else new
    told = log.ages_s.get(channel)
    age = ages_s(new, time_s) if told is None or not np.isfinite(told[rows]).any() else told[rows]
    if channel == "joints":  # what rested before is not old
        began = np.concatenate([[False], moving])
        since = np.maximum.accumulate(np.where(began, 0, np.arange(len(began))))
        age = np.minimum(age, time_s - time_s[since])[1:][moving]
    source, margin = _CHANNEL[channel]
    trained = channel_rate_hz(log.spec, source)
    wanted = min(trained, 1.0 / period) if trained > 0 else 1.0 / period
    steps = np.diff(log.tick[rows])
    # new values a second, by the clock of the loop, of ticks that count
    lasting = float(np.sum(steps[moving] if channel == "joints" else steps)) * period
    rate = float(counted.sum()) / lasting if lasting > 0 else None
    oldest = max(1.0 / wanted, period)
    ladders = log.spec.margins.ladders if log.spec.margins is not None else {}
    borne = ladders[margin].margin if margin in ladders else None
    figures = [
        Figure(
            key=f"{channel}_new_hz",
            what=f"{channel}: new values a second",
            value=rate,
            unit="Hz",
            good=RATE_GOOD * wanted,
            poor=RATE_POOR * wanted,
            at_least=True,
            where=channel,
        ),
        Figure(
            key=f"{channel}_repeated_share",
            what=f"{channel}: samples that repeat the one before to the bit",
            value=1.0 - float(counted.mean()) if len(counted) else None,
            unit="share",
            where=channel,
        ),
        Figure(
            key=f"{channel}_age_p99_s",
            what=f"{channel}: time since the values changed, 99 %",
            value=percentile(age, 99),
            unit="s",
            good=2.0 * oldest,
            poor=max(4.0 * oldest, borne or 0.0),
            where=channel,
        ),
        Figure(
            key=f"{channel}_missing_share",
            what=f"{channel}: ticks with a value that is no number",
            value=1.0 - float(np.all(there, axis=0).mean()),
            unit="share",
            good=MISSING_GOOD,
            poor=MISSING_POOR,
            where=channel,
        ),
    ]
    return figures


def _noise(key: str, what: str, values: np.ndarray, new: np.ndarray, trained: float, unit: str, where: str) -> Figure:
    """The noisiest of columns (T, k), of the rows that are new."""
    found = [noise_std(column[np.concatenate([[True], new])]) for column in values.T]
    value = float(np.nanmax(found)) if np.isfinite(found).any() else None
    return Figure(key=key, what=what, value=value, unit=unit, good=trained, poor=NOISE_POOR * trained, where=where)


def _joint_figures(log: RunLog, rows: np.ndarray, time_s: np.ndarray) -> tuple[list[Figure], dict[str, float]]:
    names, figures = log.spec.robot.joint_names, []
    position, velocity, sent = log.joint_position[rows], log.joint_velocity[rows], log.sent[rows]
    trained = {name: noise(log.spec, name) for name in (JOINT_ANGLES, JOINT_VELOCITIES)}
    noisy = {name: noise_std(position[:, j]) for j, name in enumerate(names)}
    told = ~log.stale[rows]  # what did not come is no joint's fault
    frozen = {name: frozen_s(sent[told, j], position[told, j], time_s[told]) for j, name in enumerate(names)}
    steps = {name: quantum(position[:, j]) for j, name in enumerate(names)}
    rough = {name: noise_std(velocity[:, j]) for j, name in enumerate(names) if np.isfinite(velocity[:, j]).any()}

    def worst(values: dict[str, float]) -> tuple[str, float | None]:
        known = {name: v for name, v in values.items() if np.isfinite(v)}
        name = max(known, key=lambda n: known[n]) if known else ""
        return name, known.get(name)

    for key, what, values, unit, good, poor in (
        (
            *("joint_position_noise_rad", "noise of the joint positions, the noisiest", noisy, "rad"),
            *(trained[JOINT_ANGLES], NOISE_POOR * trained[JOINT_ANGLES]),
        ),
        (
            *("joint_velocity_noise_rad_s", "noise of the joint velocities, the noisiest", rough, "rad/s"),
            *(trained[JOINT_VELOCITIES], NOISE_POOR * trained[JOINT_VELOCITIES]),
        ),
        (
            *("joint_quantum_rad", "step of the joint positions, the greatest", steps, "rad"),
            *(QUANTUM_GOOD_RAD, QUANTUM_POOR_RAD),
        ),
        (
            *("joint_frozen_s", "longest time that a joint kept its reading while its target moved", frozen, "s"),
            *(FROZEN_GOOD_S, FROZEN_POOR_S),
        ),
    ):
        name, value = worst(values)
        where = name if value else ""
        figures.append(Figure(key=key, what=what, value=value, unit=unit, good=good, poor=poor, where=where))
    shares = {
        name: max(np.nan_to_num(noisy[name]) / trained[JOINT_ANGLES], frozen[name] / FROZEN_GOOD_S) for name in names
    }
    return figures, {name: float(share) for name, share in shares.items()}


def _imu_figures(log: RunLog, rows: np.ndarray, time_s: np.ndarray, built: BuiltModel | None) -> list[Figure]:
    quat, gyro, figures = log.quat_wxyz[rows], log.gyro_b[rows], []
    up = rotation.up_in_frame(quat)
    for key, what, values, trained, unit, where in (
        ("orientation_noise_rad", "noise of the tilt", up[:, :2], noise(log.spec, GRAVITY_INPUT), "rad", "orientation"),
        ("gyro_noise_rad_s", "noise of the gyro", gyro, noise(log.spec, GYROSCOPE), "rad/s", "gyro"),
    ):
        if np.isfinite(values).any():
            figures.append(_noise(key, what, values, is_new([values]), trained, unit, where))
    good = np.isfinite(quat).all(axis=1) & np.isfinite(gyro).all(axis=1) & np.isfinite(time_s) & ~log.stale[rows]
    if good.sum() > FLAT_LEAST:
        bias, (least, most) = gyro_against_orientation(quat[good], gyro[good], time_s[good])
        off = least - 1.0 if least > 1.0 else min(most - 1.0, 0.0)
        figures += [
            Figure(
                key="gyro_bias_rad_s",
                what="bias of the gyro against the turn of the orientation, not about up",
                value=float(np.linalg.norm(bias)) if np.isfinite(bias).all() else None,
                unit="rad/s",
                good=BIAS_GOOD_RAD_S,
                poor=BIAS_POOR_RAD_S,
                where="gyro",
            ),
            Figure(
                key="gyro_scale_error",
                what="the gyro against the turn of the orientation: its scale less 1, as far as noise allows it",
                value=float(off) if np.isfinite(least) else None,
                unit="",
                good=SCALE_GOOD,
                poor=SCALE_POOR,
                where="gyro",
            ),
        ]
    if built is not None and good.sum() > FLAT_LEAST:
        some = np.flatnonzero(good & np.isfinite(log.joint_position[rows]).all(axis=1))
        some = some[:: max(1, len(some) // 400)]
        tilt = tilt_against_feet(built, log.joint_position[rows[some]], quat[some])
        figures.append(
            Figure(
                key="imu_tilt_rad",
                what="up by the IMU against up by feet that stand flat",
                value=tilt if np.isfinite(tilt) else None,
                unit="rad",
                good=TILT_GOOD_RAD,
                poor=TILT_POOR_RAD,
                where="orientation",
            )
        )
    return figures


def sensing_layer(log: RunLog, built: BuiltModel | None = None, *, base_held: bool = False) -> Layer:
    """The layer.

    Args:
        log: the log.
        built: the robot, to compare the IMU with the feet; None where they say nothing.
        base_held: the base cannot move, so that an IMU which repeats itself is none that hangs.
    """
    rows = np.flatnonzero(log.run)
    time_s = measured_at_s(log)[rows]
    moving = in_motion(log.joint_position[rows])
    figures = [
        Figure(
            key="stale_share",
            what="ticks whose state was not new",
            value=float(np.mean(log.stale[rows])),
            unit="share",
            good=STALE_GOOD,
            poor=STALE_POOR,
        )
    ]
    for channel in CHANNELS if not base_held else ("joints",):
        figures += _channel(log, rows, channel, moving)
    of_joints, joints = _joint_figures(log, rows, time_s)
    figures += of_joints
    if not base_held:
        figures += _imu_figures(log, rows, time_s, built)
    return Layer(name=LayerName.SENSING, figures=tuple(figures), joints=joints)
