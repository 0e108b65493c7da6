"""The delay from a command to its measured effect: by correlation, and by replay at several delays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.parity.motion import Replay, WindowedSimulation, arrived_at_s, measured_at_s
from deploy.parity.statistics import correlation

# The search for the delay that explains the motion best, beside the assumed one and none at all [s].
DELAY_GRID_S = (-0.04, -0.02, -0.01, 0.0, 0.01, 0.02, 0.04, 0.07)
DELAY_WINDOW_S = 0.16
DELAY_WINDOWS = 40
LAG_MAX_S = 0.3
LAG_STEP_S = 0.005
# A held command on a coarse grid would seem early by half a cell.
GRID_S = 0.001
# Below this spread of its target or of its motion a joint says nothing about delay [rad].
MOTION_MIN_RAD = 0.004
CORRELATION_MIN = 0.5


def lag_s(command_s: np.ndarray, command: np.ndarray, motion_s: np.ndarray, motion: np.ndarray) -> tuple[float, float]:
    """By how much a motion follows its command: (lag [s], correlation there).

    Both are put on one fine grid, the command held between its changes, and cross-correlated; the greatest
    correlation is placed between the samples by a parabola.

    Args:
        command_s: when each command came, ascending (T,) [s].
        command: (T,) [rad].
        motion_s: when each motion was measured, ascending (S,) [s].
        motion: (S,) [rad].

    Returns:
        NaN and NaN where either hardly moves or the series are shorter than the greatest lag sought.
    """
    begin = max(command_s[0], motion_s[0] - LAG_MAX_S)
    grid = np.arange(begin, motion_s[-1], GRID_S)
    longest, stride = round(LAG_MAX_S / GRID_S), round(LAG_STEP_S / GRID_S)
    if len(grid) < 3 * longest:
        return math.nan, math.nan
    held = command[np.searchsorted(command_s, grid, side="right") - 1]
    there = np.interp(grid, motion_s, motion)[longest:]
    if np.std(held) < MOTION_MIN_RAD or np.std(there) < MOTION_MIN_RAD:
        return math.nan, math.nan
    lags = np.arange(0, longest + 1, stride)
    scores = [correlation(held[longest - lag : len(held) - lag], there) for lag in lags]
    best = int(np.argmax(scores))
    if not 0 < best < len(lags) - 1:
        return best * LAG_STEP_S, scores[best]
    left, middle, right = scores[best - 1 : best + 2]
    curve = left - 2 * middle + right
    offset = 0.5 * (left - right) / curve if curve < 0 else 0.0
    return (best + offset) * LAG_STEP_S, middle


def joint_lags(log: RunLog, replay: Replay) -> dict[str, Any]:
    """Lag of each joint behind its target, measured and simulated; joints that hardly move are left out."""
    rows = np.flatnonzero(log.run & np.isfinite(arrived_at_s(log)))
    measured_s, arrived_s = measured_at_s(log), arrived_at_s(log)
    flat = replay.time_s.ravel()
    zero = measured_s[np.flatnonzero(log.run)[0]]
    order = np.argsort(flat)
    out: dict[str, Any] = {}
    for j, name in enumerate(log.spec.robot.joint_names):
        command_s, command = arrived_s[rows], log.sent[rows, j]
        real, score = lag_s(command_s, command, measured_s[rows], log.joint_position[rows, j])
        if not score >= CORRELATION_MIN:
            continue
        sim, sim_score = lag_s(command_s - zero, command, flat[order], replay.position_sim[..., j].ravel()[order])
        out[name] = {"measured_s": real, "simulated_s": sim, "correlation": score, "correlation_simulated": sim_score}
    return out


def fit_delay(simulation: WindowedSimulation, period_s: float) -> dict[str, Any]:
    """The delay from command to measured effect that makes the simulated positions fit best.

    Under feedback the target follows the motion as much as the motion the target, so a correlation alone cannot
    tell the delay of the plant; replaying at several delays can.

    Returns:
        `assumed_s`, `trained_s` (least and greatest of training), `estimated_s` (None where no delay fits best inside
        the search; 0 where none at all does), `difference_s` from the assumed one, `outside_s`: how far it lies outside
        the range of training, `improvement`: the share of the squared error that the estimated delay takes away, and
        the curve that was searched.
    """
    horizon = max(2, round(DELAY_WINDOW_S / period_s))
    starts = simulation.windows(horizon)
    if len(starts) > DELAY_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, DELAY_WINDOWS).astype(int)]
    assumed = simulation.action_latency_s + simulation.observation_latency_s

    def cost(extra_s: float) -> float:
        replay = simulation.replay(starts, horizon, extra_s)
        # positions: each held target kicks the velocities, whose error has a dip wherever the kicks happen to agree
        error = replay.position_sim - replay.position
        # each joint by its own motion, so that the large ones do not decide alone
        moved = (replay.position - replay.start[:, None]).reshape(-1, error.shape[-1])
        spread = np.maximum(np.sqrt(np.mean(moved**2, axis=0)), MOTION_MIN_RAD)
        return float(np.mean((error / spread) ** 2))

    tried = {extra: cost(extra) for extra in DELAY_GRID_S if extra >= -assumed} if len(starts) else {}
    if tried and -assumed not in tried and -assumed > DELAY_GRID_S[0]:
        tried[-assumed] = cost(-assumed)
    for _ in range(3):
        points = sorted(tried)
        best = min(tried, key=lambda extra: tried[extra]) if tried else math.nan
        if not tried or best in (points[0], points[-1]):
            break
        i = points.index(best)
        guess = _vertex(points[i - 1 : i + 2], [tried[p] for p in points[i - 1 : i + 2]])
        if min(abs(guess - p) for p in points) < 0.0005:
            break
        tried[guess] = cost(guess)
    points = sorted(tried)
    inside = bool(tried) and min(tried, key=lambda extra: tried[extra]) != points[-1]
    best = min(tried, key=lambda extra: tried[extra]) if tried else math.nan
    spec = simulation.log.spec
    low, high = (a + b for a, b in zip(spec.action_latency_s, spec.observation_latency_s, strict=True))
    estimated = max(0.0, assumed + best)
    return {
        "assumed_s": assumed,
        "trained_s": [low, high],
        "estimated_s": estimated if inside else None,
        "outside_s": max(low - estimated, estimated - high, 0.0) if inside else None,
        "difference_s": best if inside else None,
        "improvement": 1.0 - tried[best] / tried[0.0] if inside and tried[0.0] > 0 else None,
        "searched_s": [assumed + p for p in points],
        "searched_error": [tried[p] for p in points],
    }


def _vertex(x: list[float], y: list[float]) -> float:
    """Where the parabola through three points is least; the middle point where it opens downwards."""
    (a, b, c), (fa, fb, fc) = x, y
    below = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    if abs(below) < 1e-15:
        return b
    at = b - 0.5 * ((b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)) / below
    return float(min(max(at, a), c))
