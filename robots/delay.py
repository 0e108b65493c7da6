"""Delay: latency in seconds, fractional, longer than a control step; jitter, lost packets, sample and hold.

Written once against an array namespace: `xp` is numpy or jax.numpy.

A line (`fill`, `push`, `read`) is the past of a signal that is sampled every `dt`: a plain array of shape
(..., depth, channels), newest first. Between two samples it interpolates.

`Packets` are what was sent to a receiver that holds the last packet it got: each has its own latency, may be lost, and
may overtake. Arrival is exact within a step: a step's value is the mean of what was in force during it.

`Sampling` is a sensor that takes samples by its own clock. `newest` tells which one a reader holds at a time, and when
it was taken; the line tells what was measured then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Arrivals closer than this to now or to each other are together [s]: the rounding of a second in float32 steps.
SAME_ARRIVAL_S = 1e-6
# Reads and arrivals closer than this are the same time [s]: float32 at 100 s is good to some 30 us.
SAME_TIME_S = 5e-5
# Older than any arrival [s].
LONG_S = 1e30
# A channel that loses everything is taken to lose this many in a row, so that a history of it stays short.
LOST_IN_A_ROW = 20


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


class Packets(NamedTuple):
    """What is in force and in flight at a receiver that holds the last packet it got; leading axes are environments.

    Attributes:
        value: of each packet, (..., slots, channels); the packet sent last comes first.
        arrival_s: when each arrives, counted from now, (..., slots) [s]; 0 and below: has arrived; +inf: an empty slot.
    """

    value: Any
    arrival_s: Any


def slots(latency_max_s: float, period_s: float) -> int:
    """Slots for packets that are sent every `period_s` and take at most `latency_max_s`, jitter included.

    One is in force, ceil(latency / period) are in flight, and one is to spare.
    """
    return depth(latency_max_s, period_s)


def hold(value: Any, slots: int, xp: Any = np) -> Packets:
    """One packet (..., channels) in force for ever, and nothing in flight."""
    value = xp.asarray(value)
    if not xp.issubdtype(value.dtype, xp.floating):
        value = value.astype(float)
    values = fill(value, slots, xp)
    arrival = xp.where(xp.arange(slots) == 0, -xp.inf, xp.inf).astype(value.dtype)
    return Packets(values, xp.broadcast_to(arrival, values.shape[:-1]).copy())


def send(
    packets: Packets, value: Any, latency_s: Any, lost: Any = False, xp: Any = np, *, ordered: Any = False
) -> Packets:
    """One packet sent now.

    The packet in force is never dropped, however many are lost. When every slot is in use, the packet that would
    arrive last makes room.

    Args:
        packets: what is in force and in flight.
        value: what is sent, (..., channels).
        latency_s: until it arrives, (...,) [s]; below 0 counts as 0.
        lost: true where it never arrives, (...,).
        xp: numpy or jax.numpy.
        ordered: true for a receiver that drops a packet which comes after one that was sent later, (...,). Otherwise
            the packet that arrives last is in force, however old it is.
    """
    arrival, count = packets.arrival_s, packets.arrival_s.shape[-1]
    lost = xp.broadcast_to(xp.asarray(lost), arrival.shape[:-1])
    due = xp.maximum(xp.asarray(latency_s, dtype=arrival.dtype), 0.0)
    due = xp.where(lost, xp.inf, due)[..., None]
    # one that rounding puts just before another arrives with it, and stays
    together = (arrival >= due) & (arrival < due + SAME_ARRIVAL_S)
    due = xp.max(xp.where(together, arrival, due), axis=-1, keepdims=True)
    index = xp.arange(count)
    superseded = (arrival <= 0) & (index != _in_force(arrival, xp)[..., None])
    overtaken = xp.asarray(ordered)[..., None] & (arrival > due)
    arrival = xp.where(superseded | overtaken, xp.inf, arrival)
    # an empty slot is at +inf and the packet in force at 0 or below: the latest one is the one to give up
    given_up = xp.where(lost, -1, xp.argmax(arrival, axis=-1))
    moves = index <= given_up[..., None]
    value = xp.broadcast_to(xp.asarray(value, dtype=packets.value.dtype), packets.value[..., 0, :].shape)
    values = xp.concatenate([value[..., None, :], packets.value[..., :-1, :]], axis=-2)
    arrivals = xp.concatenate([due, arrival[..., :-1]], axis=-1)
    return Packets(xp.where(moves[..., None], values, packets.value), xp.where(moves, arrivals, arrival))


def in_force(packets: Packets, start_s: Any, dt: float, xp: Any = np) -> Any:
    """The mean over [start_s, start_s + dt) from now of what is in force, (..., channels).

    A packet that arrives within the step counts for the share of the step that is left. Where one packet is in force
    for the whole step, the mean is its value to the bit.
    """
    arrival = packets.arrival_s
    share = xp.clip((arrival - start_s) / dt, 0.0, 1.0)
    this, other = arrival[..., :, None], arrival[..., None, :]
    index = xp.arange(arrival.shape[-1])
    # of two that arrive together, the one sent later stays
    after = (other > this) | ((other == this) & (index[None, :] < index[:, None]))
    until = xp.min(xp.where(after, share[..., None, :], 1.0), axis=-1)
    weight = xp.maximum(until - share, 0.0).astype(packets.value.dtype)
    return xp.sum(packets.value * weight[..., None], axis=-2)


def now(packets: Packets, xp: Any = np) -> Any:
    """What is in force at this instant, (..., channels)."""
    index = _in_force(packets.arrival_s, xp)
    return xp.take_along_axis(packets.value, index[..., None, None], axis=-2)[..., 0, :]


def advance(packets: Packets, seconds: Any, xp: Any = np) -> Packets:
    """The same packets, `seconds` later."""
    arrival = packets.arrival_s - seconds
    # 0.05 less ten times 0.005 is not 0 in floating point, and means now
    return packets._replace(arrival_s=xp.where(xp.abs(arrival) < SAME_ARRIVAL_S, 0.0, arrival))


def _in_force(arrival_s: Any, xp: Any) -> Any:
    """Slot of the packet that has arrived last, (...,); the first slot, sent last, of those that arrived together."""
    return xp.argmax(xp.where(arrival_s <= 0, xp.maximum(arrival_s, -LONG_S), -xp.inf), axis=-1)


class Sampling(NamedTuple):
    """How a channel samples and sends; each (...,). The sensor's clock has always run: indices may be negative.

    Attributes:
        period_s: between two samples by the sensor's own clock [s]; 0: a sample is taken at each read.
        phase_s: when sample 0 is taken [s].
        skew: share by which the sensor's clock is slow: samples are `period_s` x (1 + skew) apart.
        latency_s: from a sample to the receiver [s].
        jitter_s: a further delay of each packet, uniform from 0 to this [s].
        loss: probability that a packet never arrives.
    """

    period_s: Any = 0.0
    phase_s: Any = 0.0
    skew: Any = 0.0
    latency_s: Any = 0.0
    jitter_s: Any = 0.0
    loss: Any = 0.0


Draw = Callable[[Any], tuple[Any, Any]]


def newest(
    sampling: Sampling,
    time_s: Any,
    draw: Draw,
    reach: int,
    xp: Any = np,
    *,
    tick: Any = 0,
    tick_s: Any = 0.0,
    ordered: bool = False,
) -> tuple[Any, Any]:
    """The packet that the receiver holds: its index (...,) int32 and when its sample was taken (...,) [s].

    A pure function of time: nothing is stored. Times closer than SAME_TIME_S are the same time, so float32 tells the
    packets apart to the index for more than 100 s. Where none of the last `reach` packets has come, the oldest of
    them counts as received: no reading is older than `reach_s`.

    Args:
        sampling: of the channel.
        time_s: of the read, (...,) [s].
        draw: from a packet's index (...,) int32 to two numbers in [0, 1), (...,) each: `late`, its share of the
            jitter, and `luck`, which loses it where it is below the loss. Always the same for the same index.
        reach: how many packets back may matter; see `reach_of`.
        xp: numpy or jax.numpy.
        tick: number of this read, (...,): the packet's index where the channel is polled.
        tick_s: time between reads [s]; where the channel is polled, a lost answer leaves the one before in force.
        ordered: true for a receiver that drops a packet which comes after one sent later.
    """
    time = xp.asarray(time_s)
    if not xp.issubdtype(time.dtype, xp.floating):
        time = time.astype(float)
    period, phase, skew, latency, jitter, loss = (xp.asarray(v, dtype=time.dtype) for v in sampling)
    polled = period <= 0
    step = xp.where(polled, 1.0, period * (1.0 + skew))
    first = xp.floor((time - phase - latency + SAME_TIME_S) / step).astype("int32")
    first = xp.where(polled, xp.asarray(tick, dtype="int32"), first)
    best = found = None
    for back in range(reach):
        index = first - back
        late, luck = draw(index)
        delay = latency + jitter * xp.asarray(late, dtype=time.dtype)
        asked = time - back * tick_s
        taken = xp.where(polled, asked - delay, phase + index.astype(time.dtype) * step)
        arrival = xp.where(polled, asked, taken + delay)
        came = (arrival <= time + SAME_TIME_S) & (xp.asarray(luck, dtype=time.dtype) >= loss)
        if best is None or found is None:
            best, found = (index, taken, arrival), came
            continue
        better = came & ~found if ordered else came & (~found | (arrival > best[2]))
        if back == reach - 1:
            better = better | ~found
        best = tuple(xp.where(better, a, b) for a, b in zip((index, taken, arrival), best, strict=True))
        found = found | came
    if best is None:
        raise ValueError(f"newest: got a reach of {reach} packets, expected 1 or more")
    return best[0], best[1]


def keep(index: Any, last_index: Any, value: Any, last: Any, xp: Any = np) -> Any:
    """What a reader holds, (..., channels): `value` where the packet's index (...,) is new, else `last` to the bit."""
    return xp.where((xp.asarray(index) != xp.asarray(last_index))[..., None], value, last)


def reach_of(sampling: Sampling, odds: float = 1e-6) -> int:
    """How many packets back `newest` must look, for the greatest values of `sampling`.

    Jitter may hold back or reorder some; more losses in a row than this finds are less likely than `odds`.
    """
    period, _, skew, _, jitter, loss = (np.asarray(v, dtype=float) for v in np.broadcast_arrays(*sampling))
    if np.any(loss < 0) or np.any(loss > 1):
        raise ValueError(f"reach_of: got a loss of {loss.max():g}, expected 0 to 1")
    sampled = period > 0
    spans = np.where(sampled, jitter, 0.0) / np.where(sampled, period * (1 + skew), 1.0)
    late = np.ceil(np.round(spans, 9)) + np.floor(spans)
    most = float(loss.max())
    runs = 0 if most == 0 else LOST_IN_A_ROW if most == 1 else math.ceil(math.log(odds) / math.log(most))
    return 1 + int(late.max()) + min(runs, LOST_IN_A_ROW)


def reach_s(sampling: Sampling, reach: int | None = None, tick_s: float = 0.0) -> float:
    """The oldest that a reading of `newest` can be [s]: what a history line must hold."""
    count = reach_of(sampling) if reach is None else reach
    period, _, skew, latency, jitter, _ = (np.asarray(v, dtype=float) for v in sampling)
    sampled = latency + count * period * (1 + skew)
    polled = latency + jitter + (count - 1) * tick_s
    return float(np.max(np.where(period > 0, sampled, polled)))


def draws(seed: Any, xp: Any = np) -> Draw:
    """A `draw` for `newest` from a seed (...,): the same numbers in numpy and in jax.numpy.

    The hash is "lowbias32" of C. Wellons' hash prospector, twice.
    """
    key = _mix(xp.asarray(seed).astype("uint32"), xp)

    def draw(index: Any) -> tuple[Any, Any]:
        word = _mix(xp.asarray(index).astype("uint32") ^ key, xp)
        late, luck = (_mix(word ^ np.uint32(salt), xp) for salt in (0x9E3779B9, 0x85EBCA6B))
        # 24 bits are what a float32 holds
        return tuple((v >> np.uint32(8)).astype("float32") * np.float32(2.0**-24) for v in (late, luck))

    return draw


def _mix(word: Any, xp: Any) -> Any:
    with np.errstate(over="ignore"):
        word = (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D)
        word = (word ^ (word >> np.uint32(15))) * np.uint32(0x846CA68B)
        return word ^ (word >> np.uint32(16))
