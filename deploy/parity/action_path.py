"""From the policy's action to the motor: what safety changed, what was lost, how late it came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.parity.motion import acknowledged, arrived_at_s, measured_at_s
from deploy.parity.report import Figure, Layer, LayerName
from deploy.parity.statistics import noise_std, percentile, quantum
from deploy.parity.trained import delay_s
from deploy.robot.faults import ClampKind

# A target that lay still for so many ticks, within STILL_RAD, and then goes by STEP_RAD in one is a step.
STILL_TICKS, STILL_RAD, STEP_RAD = 5, 0.002, 0.01
# Motion begins where a joint is farther than this from where it lay; more where it is noisy or has steps [rad].
BEGUN_RAD = 0.002
# What comes later is no answer to the step [s].
ANSWER_S = 0.4
# Ours: ticks in a thousand, in four. Bounding torque is left out: the motor has that limit too.
CHANGED_GOOD, CHANGED_POOR = 0.001, 0.25
LOST_GOOD, LOST_POOR = 0.001, 0.01
# A search on simulated windows tells a delay to some milliseconds.
DELAY_GOOD_S, DELAY_POOR_S = 0.002, 0.010


def safety_counts(log: RunLog) -> dict[str, Any]:
    """How many ticks of the run had each kind of intervention."""
    kinds: dict[str, int] = {}
    joints: dict[str, int] = {}
    rows = np.flatnonzero(log.run)
    for row in rows:
        for reason in log.safety[row]:
            kinds[reason.kind.value] = kinds.get(reason.kind.value, 0) + 1
            joints[reason.joint] = joints.get(reason.joint, 0) + 1
    changed = np.abs(log.sent[rows] - log.action[rows])
    # bounding the torque asked for leaves the torque given as it is: the motor has the same limit
    others = [any(reason.kind is not ClampKind.TORQUE for reason in log.safety[row]) for row in rows]
    return {
        "ticks_with_intervention": sum(bool(log.safety[row]) for row in rows),
        "ticks_with_other_than_torque": sum(others),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "joints": dict(sorted(joints.items(), key=lambda item: -item[1])),
        "change_max_rad": float(np.nanmax(changed)) if np.isfinite(changed).any() else math.nan,
    }


def first_motion_s(arrived_s: np.ndarray, sent: np.ndarray, measured_s: np.ndarray, position: np.ndarray) -> np.ndarray:
    """From each step of a joint's target to the first motion that answers it, (steps that are answered,) [s].

    A step is a target that lay still and then jumped. Motion is told between samples, by a line through two.

    Args:
        arrived_s: when each target reached the robot, (T,) [s].
        sent: targets (T,) [rad].
        measured_s: when each position was measured, (T,) [s].
        position: (T,) [rad].
    """
    noise, step = noise_std(position), quantum(position)
    begun = max(BEGUN_RAD, 4.0 * np.nan_to_num(noise), 1.5 * np.nan_to_num(step))
    jumps, found = np.diff(sent, prepend=sent[:1]), []
    for k in np.flatnonzero(np.abs(jumps) > STEP_RAD):
        if k <= STILL_TICKS or not np.isfinite(arrived_s[k]):
            continue
        before, lying = sent[k - STILL_TICKS - 1 : k], position[k - STILL_TICKS : k + 1]
        if np.ptp(before) > STILL_RAD or not np.ptp(lying) < 2.0 * begun or np.abs(jumps[k]) < 2.0 * begun:
            continue
        # what was measured before the target came is no answer to it
        after = np.flatnonzero((measured_s >= arrived_s[k]) & (measured_s < arrived_s[k] + ANSWER_S))
        moved = np.sign(jumps[k]) * (position[after] - lying.mean())
        far = np.flatnonzero(moved > begun)
        if not len(far):
            continue
        first = after[far[0]]
        # where the line through the first two samples of the motion left it, after the sample before
        a, b = (float(np.sign(jumps[k]) * (position[min(i, len(sent) - 1)] - lying.mean())) for i in (first, first + 1))
        since = measured_s[first + 1] - measured_s[first] if first + 1 < len(sent) else 0.0
        slope = (b - a) / since if since > 0 else 0.0
        at = measured_s[first] - ((a - begun) / slope if slope > 0 else 0.0)
        at = max(at, measured_s[first - 1])
        found.append(max(0.0, at - arrived_s[k]))
    return np.asarray(found)


def _clamps(log: RunLog, rows: np.ndarray) -> tuple[list[Figure], dict[str, float]]:
    figures, names = [], log.spec.robot.joint_names
    ticks: dict[ClampKind, int] = dict.fromkeys(ClampKind, 0)
    per_joint = dict.fromkeys(names, 0)
    for row in rows:
        reasons = log.safety[row]
        for kind in {reason.kind for reason in reasons}:
            ticks[kind] += 1
        for joint in {reason.joint for reason in reasons if reason.kind is not ClampKind.TORQUE}:
            per_joint[joint] += 1
    worst = max(per_joint, key=lambda name: per_joint[name])
    for kind in ClampKind:
        good, poor = (None, None) if kind is ClampKind.TORQUE else (CHANGED_GOOD, CHANGED_POOR)
        key = f"changed_{kind.value.replace(' ', '_')}_share"
        what = f"ticks in which safety changed a target: {kind.value}"
        figures.append(Figure(key=key, what=what, value=ticks[kind] / len(rows), unit="share", good=good, poor=poor))
    change = np.abs(log.sent[rows] - log.target[rows])
    size = float(np.nanmax(change)) if np.isfinite(change).any() else None
    figures.append(
        Figure(
            key="changed_max_rad",
            what="greatest change of a target",
            value=size,
            unit="rad",
            where=worst if per_joint[worst] else "",
        )
    )
    return figures, {name: n / len(rows) / CHANGED_GOOD for name, n in per_joint.items() if n}


def _first_motions(log: RunLog, rows: np.ndarray, told: bool) -> list[Figure]:
    arrived_s, measured_s = arrived_at_s(log)[rows], measured_at_s(log)[rows]
    names = log.spec.robot.joint_names
    by_joint = {
        name: first_motion_s(arrived_s, log.sent[rows, j], measured_s, log.joint_position[rows, j])
        for j, name in enumerate(names)
    }
    moves = np.concatenate(list(by_joint.values()))
    longest, good, poor = delay_s(log.spec)[1], None, None
    if longest > 0 and told:  # a sample may come a period after motion began
        good, poor = (longest + periods * log.spec.control_period_s for periods in (1.0, 2.5))
    figures = [
        Figure(
            key="first_motion_s",
            what="command to first motion after a target that lay still, median",
            value=percentile(moves, 50) if len(moves) else None,
            unit="s",
            good=good,
            poor=poor,
        )
    ]
    if len(moves):
        figures += [
            Figure(
                key=f"first_motion_p{share}_s",
                what=f"command to first motion, {share} % are sooner",
                value=percentile(moves, share),
                unit="s",
            )
            for share in (10, 90)
        ]
        figures += [
            Figure(
                key="first_motion_joint_s",
                what=f"command to first motion, median of {len(found)}",
                value=percentile(found, 50),
                unit="s",
                good=good,
                poor=poor,
                where=name,
            )
            for name, found in by_joint.items()
            if len(found) >= 2
        ]
    return figures


def action_path_layer(log: RunLog, delay: dict[str, Any] | None) -> Layer:
    """The layer.

    Args:
        log: the log.
        delay: of `fit_delay` and `joint_lags`; None where nothing was replayed.
    """
    rows = np.flatnonzero(log.run)
    if not np.isfinite(log.sent[rows]).any():
        return Layer(name=LayerName.ACTION_PATH, untold="the log has no targets")
    told, locked = acknowledged(log), bool(log.metadata.get("step_lock"))
    changes, joints = _clamps(log, rows) if "import" not in log.metadata else ([], {})
    figures = [*(_delay(delay, told) if delay is not None else ()), *_first_motions(log, rows, told)]
    if told:
        lost = float(np.mean(~np.isfinite(log.command_s[rows])))
        what = "commands that were not acknowledged"
        figures.append(
            Figure(key="commands_lost_share", what=what, value=lost, unit="share", good=LOST_GOOD, poor=LOST_POOR)
        )
    if told and not locked:
        age, period = arrived_at_s(log)[rows] - measured_at_s(log)[rows], log.spec.control_period_s
        figures += [
            Figure(
                key="reading_to_command_s",
                what="age of the reading when its command arrives, median",
                value=percentile(age, 50),
                unit="s",
                good=0.5 * period,
                poor=period,
            ),
            Figure(
                key="reading_to_command_p99_s",
                what="age of the reading when its command arrives, 99 %",
                value=percentile(age, 99),
                unit="s",
                good=period,
                poor=2.0 * period,
            ),
        ]
    return Layer(name=LayerName.ACTION_PATH, figures=(*figures, *changes), joints=joints)


def _delay(delay: dict[str, Any], told: bool) -> list[Figure]:
    estimated, trained = delay["estimated_s"], max(delay["trained_s"]) > 0 and told
    return [
        Figure(
            key="delay_beyond_s",
            what="by how much the delay to the measured effect is longer than the longest of training",
            value=None if estimated is None else max(0.0, estimated - delay["trained_s"][1]),
            unit="s",
            good=DELAY_GOOD_S if trained else None,
            poor=DELAY_POOR_S if trained else None,
        ),
        Figure(
            key="delay_s",
            what="delay from a command to its measured effect that fits best",
            value=estimated,
            unit="s",
        ),
        Figure(
            key="lag_s",
            what="lag of the joints behind their targets by correlation, median",
            value=delay["lag_measured_s"],
            unit="s",
        ),
    ]
