"""A joint without dynamics: its command, late, through a first-order lag and a gap. What a real fit must beat."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.sysid.motion import Motion

DELAYS_S = (0.0, 0.02, 0.04)
LAGS_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16)
GAPS_RAD = (0.0, 0.003, 0.01, 0.02, 0.03, 0.05, 0.08)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lag:
    """Of each joint, (joints,).

    Attributes:
        delay_s: of the command [s].
        lag_s: time constant [s].
        gap_rad: full width of the gap [rad].
        sag_rad: added to the end [rad].
    """

    delay_s: np.ndarray
    lag_s: np.ndarray
    gap_rad: np.ndarray
    sag_rad: np.ndarray

    def run(self, motion: Motion) -> np.ndarray:
        """What it makes of a motion's commands and first state, (T, joints) [rad]."""
        return _run(motion, self.delay_s, self.lag_s, self.gap_rad, self.sag_rad)

    def rmse(self, motions: Sequence[Motion]) -> dict[str, np.ndarray]:
        """RMSE by motion, (joints,) [rad]; absent joints are NaN."""
        off = {m: np.sqrt(np.mean((self.run(m) - m.position)[m.use] ** 2, axis=0)) for m in motions}
        return {m.name: np.where(m.present, values, np.nan) for m, values in off.items()}


def _run(
    motion: Motion, delay_s: np.ndarray, lag_s: np.ndarray, gap_rad: np.ndarray, sag_rad: np.ndarray
) -> np.ndarray:
    """(T, ..., joints) for arguments of shape (..., joints)."""
    shape = np.broadcast_shapes(*(np.shape(v) for v in (delay_s, lag_s, gap_rad, sag_rad)), (len(motion.names),))
    start = np.broadcast_to(motion.position[0] - sag_rad, shape)
    slow, end = start.copy(), start.copy()
    out = np.empty((len(motion.time_s), *shape))
    rows = np.round(np.broadcast_to(delay_s, shape) / motion.period_s).astype(int)
    joints = np.broadcast_to(np.arange(shape[-1]), shape)
    half, period = 0.5 * np.broadcast_to(gap_rad, shape), motion.period_s
    share = 1.0 - np.exp(-period / np.broadcast_to(lag_s, shape))
    for i in range(len(out)):
        out[i] = end
        goal = np.where(i >= rows, motion.target[np.maximum(i - rows, 0), joints], slow)
        slow = slow + share * (goal - slow)
        end = np.clip(end, slow - half, slow + half)
    return out + sag_rad


def fit_lag(motions: Sequence[Motion]) -> Lag:
    """The best on a grid, joint by joint, with the sag that leaves no mean error."""
    tried = np.array(list(itertools.product(DELAYS_S, LAGS_S, GAPS_RAD)))
    joints = len(motions[0].names)
    delay, lag, gap = (np.repeat(v[:, None], joints, axis=1) for v in tried.T)
    sag = np.zeros((len(tried), joints))
    for _ in range(2):  # the gap makes the sag's effect no plain shift
        off = [(_run(m, delay, lag, gap, sag) - m.position[:, None])[m.use] for m in motions]
        apart = np.concatenate(off)
        cost, sag = np.var(apart, axis=0), sag - apart.mean(axis=0)
    best, at = np.argmin(cost, axis=0), np.arange(joints)
    return Lag(delay_s=delay[best, at], lag_s=lag[best, at], gap_rad=gap[best, at], sag_rad=sag[best, at])
