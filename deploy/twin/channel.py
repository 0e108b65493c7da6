"""One channel of the simulated sensors: which sample an answer tells, by the reality's rate, latency and losses."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from deploy.twin.reality import Channel
from robots import delay


class SensorChannel:
    """Which sample of a channel an answer tells, and what the last answer told.

    Attributes:
        index: of the packet that the last answer told; of the physics step at which it was polled.
        age_s: of that packet's sample at that answer [s].
        longest_s: the greatest age [s].
    """

    def __init__(self, settings: Channel, latency_s: float, seed: int) -> None:
        self.sampling = delay.Sampling(
            period_s=1.0 / settings.rate_hz if settings.rate_hz else 0.0,
            phase_s=settings.phase_s,
            skew=settings.skew,
            latency_s=latency_s + settings.latency_s,
            jitter_s=settings.jitter_s,
            loss=settings.loss,
        )
        self._polled, self._plain = not settings.rate_hz, not (settings.jitter_s or settings.loss)
        # a poll that is lost leaves the last answer, which is kept here: no packet before it matters
        self._reach = 1 if self._polled else delay.reach_of(self.sampling)
        self._draw = delay.draws(np.uint32(seed))
        self.longest_s = delay.reach_s(self.sampling, self._reach)
        self.forget()

    def forget(self) -> None:
        self.index, self.age_s = 0, 0.0
        self._step, self._taken_s, self._held = 0, 0.0, None

    def tell(self, samples: deque[np.ndarray], dt: float, step: int) -> np.ndarray:
        """What is answered at a physics step from the samples of each step, newest first: (channels,)."""
        if self._held is not None and step == self._step:
            return self._held
        self._step, time_s = step, step * dt
        if self._polled and self._plain:
            index, taken_s = step, time_s - self.sampling.latency_s
        elif self._polled and self._held is not None and self._draw(step)[1] < self.sampling.loss:
            index, taken_s = self.index, self._taken_s
        else:
            told = delay.newest(self.sampling, time_s, self._draw, self._reach, tick=step)
            index, taken_s = int(told[0]), float(told[1])
        self.age_s = time_s - taken_s
        if self._held is None or index != self.index:
            if self._polled and self._plain and not self.sampling.latency_s:
                self._held = samples[0]
            else:
                # from the time of the sample, not from its age: a sample's bits do not depend on when it is read
                at = taken_s / dt
                first = min(max(step - math.floor(at) - 1, 0), len(samples) - 2)
                pair = np.stack([samples[first], samples[first + 1]])
                self._held = delay.read(pair, (step - first - at) * dt, dt)
            self.index, self._taken_s = index, taken_s
        return self._held
