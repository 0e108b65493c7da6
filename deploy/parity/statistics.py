"""Small statistics that several layers share."""

from __future__ import annotations

import math

import numpy as np

# Third differences that one estimate of noise is made of; the quiet ones of all estimates count.
NOISE_WINDOW = 20
QUIET_PERCENT = 25
# Of white noise of 1: the standard deviation of its third difference.
_THIRD = math.sqrt(20.0)
# A median of absolute values to a standard deviation.
_MAD = 1.4826
# Of the differences: how alike those of one step are, and how many there must be of it.
_STEP_LIKE, _STEP_SHARE = 0.02, 0.01


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-12 else math.nan


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two series, whose means are left in; NaN where one is 0."""
    a, b = a.ravel(), b.ravel()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-12 else math.nan


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else math.nan


def percentile(values: np.ndarray, percent: float) -> float:
    """Of the finite ones; NaN where there are none."""
    values = values[np.isfinite(values)]
    return float(np.percentile(values, percent)) if values.size else math.nan


def noise_std(values: np.ndarray) -> float:
    """Standard deviation of the white part of a series (T,); NaN where it is too short.

    From third differences, which motion hardly shows in, over short windows: the lower quartile of the windows, so that
    impacts do not count. Of white noise alone it finds some 15 % too little.
    """
    third = np.abs(np.diff(values[np.isfinite(values)], 3))
    count = len(third) // NOISE_WINDOW
    if not count:
        return math.nan
    windows = np.median(third[: count * NOISE_WINDOW].reshape(count, NOISE_WINDOW), axis=1)
    return float(_MAD * np.percentile(windows, QUIET_PERCENT) / _THIRD)


def quantum(values: np.ndarray) -> float:
    """The step of a series that has steps (T,): the smallest difference that comes again; NaN where there is none."""
    all_steps = np.abs(np.diff(values[np.isfinite(values)]))
    steps = np.sort(all_steps[all_steps > 1e-9])
    least = max(5, math.ceil(_STEP_SHARE * len(steps)))
    if len(steps) < 2 * least:
        return math.nan
    high = np.searchsorted(steps, steps * (1.0 + _STEP_LIKE), side="right")
    often = np.flatnonzero(high - np.arange(len(steps)) >= least)
    if not len(often):
        return math.nan
    step = float(np.median(steps[often[0] : high[often[0]]]))
    multiples = steps / step
    whole = np.abs(multiples - np.round(multiples)) < 0.1
    # an even ramp has one difference too: a step shows in repeats, or in its double
    repeats, doubles = np.mean(all_steps <= 1e-9), np.mean(np.round(multiples[whole]) == 2) if whole.any() else 0.0
    return step if whole.mean() > 0.9 and max(repeats, doubles) > _STEP_LIKE else math.nan
