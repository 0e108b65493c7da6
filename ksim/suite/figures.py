"""Figures of walking, from what was recorded. Pure functions of ksim.suite.walked.Walked; each says its definition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ksim.evaluate import wilson
from ksim.suite.walked import Walked
from ksim.types import GRAVITY

# How long after a change of the command its velocity counts, and over what it is averaged: two steps [s].
SETTLED_S, MEAN_S = 2.0, 0.8
# A velocity that is asked for is above this [m/s, rad/s].
ASKED = 1e-3
# A foot that is off the floor for less than this did not swing [s].
SWING_S = 0.1
# A fall within this after a push is the push's [s].
RECOVERY_S = 3.0


def survival(w: Walked) -> dict[str, Any]:
    """Share of the episodes that lasted to the end, with its 95 % interval."""
    alive, n = int(w.survived.sum()), w.episodes
    low, high = wilson(alive, n)
    return {"episodes": n, "survival": alive / max(n, 1), "survival_low95": low, "survival_high95": high}


def since_change(w: Walked) -> np.ndarray:
    """Ticks since the command changed or the episode began, (T, N)."""
    ticks = np.zeros(w.alive.shape, int)
    for t in range(1, len(ticks)):
        same = (w.command[t] == w.command[t - 1]).all(axis=-1)
        ticks[t] = np.where(same, ticks[t - 1] + 1, 0)
    return ticks


def _windows(w: Walked, values: np.ndarray) -> np.ndarray:
    """Means of `values` (T, N, k) over MEAN_S of one command, from SETTLED_S after it came, (windows, k).

    Windows of one command follow each other; those in which the robot fell do not count.
    """
    length, settled = max(1, round(MEAN_S / w.dt_s)), round(SETTLED_S / w.dt_s)
    since = since_change(w)
    ends = (since >= settled + length - 1) & ((since - settled + 1) % length == 0) & w.alive
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0, dtype=np.float64)])
    at, who = np.nonzero(ends)
    return (sums[at + 1, who] - sums[at + 1 - length, who]) / length


def tracking(w: Walked) -> dict[str, Any]:
    """Root mean square error of the velocity (length of the error in the plane) and of the yaw rate.

    A gain is how much more the robot moves where one more is asked, by least squares over the commands that ask for
    motion: 1 is right, below it the robot is too slow. None where a command does not vary.
    """
    moved = np.concatenate([w.velocity, w.yaw_rate[..., None]], axis=-1)
    rows = _windows(w, np.concatenate([moved, w.command], axis=-1))
    if not len(rows):
        return {"windows": 0, "velocity_rmse_m_s": None, "yaw_rate_rmse_rad_s": None}
    means, asked = rows[:, :3], rows[:, 3:]
    square = np.mean((means - asked) ** 2, axis=0)
    return {
        **{f"{name}_gain": _gain(means[:, i], asked[:, i]) for i, name in enumerate(("xvel", "yvel", "yawrate"))},
        "windows": len(means),
        "velocity_rmse_m_s": float(np.sqrt(square[0] + square[1])),
        "xvel_rmse_m_s": float(np.sqrt(square[0])),
        "yvel_rmse_m_s": float(np.sqrt(square[1])),
        "yaw_rate_rmse_rad_s": float(np.sqrt(square[2])),
    }


def _gain(moved: np.ndarray, asked: np.ndarray) -> float | None:
    going = np.abs(asked) > ASKED
    spread = np.var(asked[going]) if going.any() else 0.0
    return float(np.cov(asked[going], moved[going], bias=True)[0, 1] / spread) if spread > ASKED**2 else None


def swings(w: Walked) -> dict[str, np.ndarray]:
    """Each swing that was whole, while motion was asked: its foot, episode, greatest height [m], and time [s]."""
    off = ~w.foot_contact & w.alive[..., None]
    least = max(1, round(SWING_S / w.dt_s))
    found: list[tuple[int, int, float, int, int]] = []
    for foot in range(off.shape[2]):
        padded = np.zeros((len(off) + 2, off.shape[1]), np.int8)
        padded[1:-1] = off[..., foot]
        turns = np.diff(padded, axis=0)
        for episode in range(off.shape[1]):
            begins, ends = np.flatnonzero(turns[:, episode] == 1), np.flatnonzero(turns[:, episode] == -1)
            last = int(w.alive[:, episode].sum())
            for begin, end in zip(begins, ends, strict=True):
                whole = begin > 0 and end < last and end - begin >= least
                if whole and w.moving[begin:end, episode].all():
                    height = float(w.foot_height[begin:end, episode, foot].max())
                    found.append((foot, episode, height, end - begin, begin))
    columns = np.asarray(found, float).reshape(-1, 5).T
    return {
        "foot": columns[0].astype(int),
        "episode": columns[1].astype(int),
        "height_m": columns[2],
        "time_s": columns[3] * w.dt_s,
        "begin": columns[4].astype(int),
    }


def feet(w: Walked) -> dict[str, Any]:
    """Swing height, slip and left-right difference, while motion is asked.

    Slip is the mean horizontal speed of feet that touch the floor. The difference is that of the first two feet over
    their mean, in swing height and in swing time, where straight ahead is asked.
    """
    s = swings(w)
    touching = w.foot_contact & (w.alive & w.moving)[..., None]
    slip = float(w.foot_speed[touching].mean()) if touching.any() else None
    out: dict[str, Any] = {"swings": len(s["foot"]), "slip_m_s": slip}
    if not len(s["foot"]):
        return out | {"swing_height_median_m": None, "swing_height_p5_m": None, "swings_over_4_cm": None}
    out |= {
        "swing_height_median_m": float(np.median(s["height_m"])),
        "swing_height_p5_m": float(np.percentile(s["height_m"], 5)),
        "swings_over_4_cm": float(np.mean(s["height_m"] > 0.04)),
        "swing_time_mean_s": float(s["time_s"].mean()),
    }
    straight = (np.abs(w.command[s["begin"], s["episode"], 1:]) < 0.05).all(axis=-1)
    for name in ("height_m", "time_s"):
        of = [s[name][straight & (s["foot"] == foot)] for foot in (0, 1)]
        if all(len(values) for values in of):
            a, b = (float(np.mean(values)) for values in of)
            out[f"left_right_{name.split('_')[0]}"] = abs(a - b) / max(0.5 * (a + b), 1e-9)
    return out


def effort(w: Walked) -> dict[str, Any]:
    """Cost of transport, smoothness, and how near joints, torques and targets come to their limits.

    Cost of transport: sum of |torque x velocity| over weight times way, where 0.2 m/s or more is asked. Smoothness:
    root mean square of the targets' acceleration. Speeds of targets are shares of the joints' no-load speeds.
    """
    scene, n = w.scene, w.alive.sum()
    limit, fastest = scene.column("torque_limit_nm"), scene.column("velocity_max_rad_s")
    low, high = scene.column("lower_rad"), scene.column("upper_rad")
    walking = w.alive & (np.linalg.norm(w.command[..., :2], axis=-1) >= 0.2)
    power = np.abs(w.torque * w.joint_velocity).sum(axis=-1)
    way = np.linalg.norm(w.velocity, axis=-1)[walking].sum()
    both = w.alive[1:] & w.alive[:-1]
    moves = np.abs(np.diff(w.target, axis=0))[both] / w.dt_s
    three = w.alive[2:] & w.alive[:-2]
    bends = np.diff(w.target, 2, axis=0)[three] / w.dt_s**2
    moved = moves.max(axis=0, initial=0.0) > 0  # joints that hold home say nothing
    share = np.abs(w.torque[w.alive]) / limit
    margin = np.minimum(w.joint_position - low, high - w.joint_position)[w.alive] / (high - low)
    at_limit = ((w.target <= low + 1e-6) | (w.target >= high - 1e-6))[w.alive][:, moved]
    return {
        "cost_of_transport": float(power[walking].sum() / (scene.mass_kg * GRAVITY * way)) if way > 0 else None,
        "target_acceleration_rms_rad_s2": float(np.sqrt(np.mean(bends[:, moved] ** 2))) if moved.any() else 0.0,
        "target_speed_p99": float(np.percentile((moves / fastest)[:, moved], 99)) if moved.any() else 0.0,
        "targets_at_limit": float(at_limit.any(axis=-1).mean()) if n and moved.any() else 0.0,
        "torque_p99": float(np.percentile(share[:, moved], 99)) if moved.any() else 0.0,
        "torque_max": float(share.max(initial=0.0)),
        "joint_margin_min": float(margin[:, moved].min(initial=1.0)),
    }


def standing(w: Walked, from_s: float = 1.0) -> dict[str, Any]:
    """Of episodes that ask for nothing: drift, turn and steps from `from_s` to the end; of those that did not fall.

    Drift is the greatest distance of the base from where it was at `from_s`, turn the greatest angle.
    """
    first, who = round(from_s / w.dt_s), w.survived
    if not who.any():
        return {"stood": 0}
    place, heading = w.position[first:, who, :2], np.unwrap(w.heading[first:, who], axis=0)
    drift = np.linalg.norm(place - place[:1], axis=-1).max(axis=0)
    turn = np.degrees(np.abs(heading - heading[:1]).max(axis=0))
    off = ~w.foot_contact[first:, who]
    least = max(1, round(SWING_S / w.dt_s))
    # lifted for `least` ticks in a row
    run = np.lib.stride_tricks.sliding_window_view(off, least, axis=0).all(axis=-1)
    steps = (np.diff(run.astype(np.int8), axis=0) == 1).sum(axis=(0, 2)) + run[0].sum(axis=-1)
    return {
        "stood": int(who.sum()),
        "drift_median_m": float(np.median(drift)),
        "drift_p95_m": float(np.percentile(drift, 95)),
        "turn_median_deg": float(np.median(turn)),
        "turn_p95_deg": float(np.percentile(turn, 95)),
        "without_a_step": float(np.mean(steps == 0)),
        "steps_mean": float(np.mean(steps)),
    }


def pushes(w: Walked) -> dict[str, np.ndarray]:
    """Each push: its force [N], the momentum that it gave [N s], and whether the robot survived it.

    A push counts as survived if the robot is up RECOVERY_S after its end, or at the episode's end.
    """
    on = (w.push_n > 0) & w.alive
    begins = on & ~np.concatenate([np.zeros((1, w.episodes), bool), on[:-1]])
    wait, ticks = round(RECOVERY_S / w.dt_s), len(on)
    alive_until = w.alive.sum(axis=0)
    found = []
    for t, episode in zip(*np.nonzero(begins), strict=True):
        stop = t + int(np.argmin(np.append(on[t:, episode], False)))
        up = w.survived[episode] or alive_until[episode] > min(stop + wait, ticks - 1)
        found.append((w.push_n[t, episode], w.push_n[t:stop, episode].sum() * w.dt_s, up))
    force, momentum, up = np.asarray(found, float).reshape(-1, 3).T
    return {"force_n": force, "momentum_n_s": momentum, "survived": up.astype(bool)}


def recovery(w: Walked, edges: tuple[float, ...]) -> list[dict[str, Any]]:
    """Of each size of push [N]: how many there were, and the share that the robot survived, as `pushes` has it."""
    told, out = pushes(w), []
    for low, high in itertools.pairwise(edges):
        inside = (told["force_n"] >= low) & (told["force_n"] < high)
        n, good = int(inside.sum()), int(told["survived"][inside].sum())
        out.append({"from_n": low, "to_n": high, "pushes": n, "survived": good / n if n else None})
    return out
