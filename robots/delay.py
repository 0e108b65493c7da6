"""The delay line: latency in seconds, fractional, longer than a control step, jitter, lost packets.

A line is a plain array of shape (..., depth, channels): the last `depth` samples, taken every `dt`,
newest first. Written once against an array namespace: `xp` is numpy or jax.numpy. Between two
samples the line interpolates, so for a held signal (a command) the value over one step is the mean
of what was in force during it, and latency is exact whatever `dt` is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def depth(latency_max_s: float, dt: float) -> int:
    """Samples a line must hold to delay by `latency_max_s` when it is pushed every `dt`."""
    if latency_max_s < 0 or dt <= 0:
        raise ValueError(f"delay line: got latency {latency_max_s} s and dt {dt} s, expected 0 or more and above 0")
    return math.ceil(round(latency_max_s / dt, 9)) + 2


def fill(value: Any, samples: int, xp: Any = np) -> Any:
    """A line that has always held `value` (..., channels): shape (..., samples, channels)."""
    value = xp.asarray(value)
    return xp.repeat(value[..., None, :], samples, axis=-2)


def push(line: Any, value: Any, lost: Any = False, xp: Any = np) -> Any:
    """The line after one more sample; where `lost` (...,) is true the newest sample is held.

    Losing a packet means that the receiver goes on with the last one it got.
    """
    newest = line[..., 0, :]
    value = xp.where(xp.asarray(lost)[..., None], newest, value)
    return xp.concatenate([value[..., None, :], line[..., :-1, :]], axis=-2)


def read(line: Any, latency_s: Any, dt: float, xp: Any = np) -> Any:
    """The signal as it was `latency_s` ago, (..., channels).

    `latency_s` is (...,) or, for channels that lag differently, (..., channels). A latency beyond
    the line's depth reads its oldest sample; a negative one its newest.
    """
    latency = xp.asarray(latency_s, dtype=line.dtype)
    if latency.ndim < line.ndim - 1:
        latency = latency[..., None]
    steps = xp.clip(latency / dt, 0.0, line.shape[-2] - 1.0)
    steps = xp.broadcast_to(steps, line.shape[:-2] + line.shape[-1:])
    whole = xp.floor(steps)
    share = steps - whole
    early = whole.astype("int32")
    late = xp.minimum(early + 1, line.shape[-2] - 1)
    new = xp.take_along_axis(line, early[..., None, :], axis=-2)[..., 0, :]
    old = xp.take_along_axis(line, late[..., None, :], axis=-2)[..., 0, :]
    return new + share * (old - new)
