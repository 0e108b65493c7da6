"""The ways of packets between robot and policy: latency, jitter, loss, a rate and a clock of their own.

The arithmetic is robots/delay.py, which the twin uses too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ksim.curriculum import SHARE, Scale, factor
from ksim.term import Term
from ksim.types import Reading
from robots import delay
from toolkit.settings import Bound, Range

_SECONDS = Bound(0, 2, "seconds")
NO_PACKET = -(2**31)


@dataclass(frozen=True, kw_only=True)
class Channel(Term):
    """One channel. What is a range is drawn for each episode; jitter and loss for each packet.

    Attributes:
        latency_s: mean latency [s].
        jitter_s: a packet is late by 0 to this besides [s].
        loss: share of the packets that never arrive.
        rate_hz: how often the sensor gives a new value, on a clock of its own; 0 and 0 means when it is asked.
        skew: its clock is fast or slow by up to this share.
        scale: factor on latency, jitter and loss; may follow the curriculum.
    """

    latency_s: Annotated[Range, _SECONDS] = (0.0, 0.0)
    jitter_s: Annotated[float, _SECONDS] = 0.0
    loss: Annotated[float, Bound(0, 0.99, "a share")] = 0.0
    rate_hz: Annotated[Range, Bound(0, 100_000, "hertz, 0 for when it is asked")] = (0.0, 0.0)
    skew: Annotated[float, Bound(0, 0.1, "a share")] = 0.0
    scale: Annotated[float | Scale, SHARE] = 1.0

    def check(self) -> None:
        self.require(self.rate_hz[0] > 0 or self.rate_hz[1] == 0, "rate_hz", self.rate_hz, "both above 0, or both 0")

    def _greatest(self) -> delay.Sampling:
        slowest = 1.0 / self.rate_hz[0] if self.rate_hz[0] > 0 else 0.0
        return delay.Sampling(
            period_s=slowest, skew=self.skew, latency_s=self.latency_s[1], jitter_s=self.jitter_s, loss=self.loss
        )

    @property
    def packets(self) -> int:
        """How many packets back may still matter; more losses in a row happen once in a thousand."""
        fastest = 1.0 / self.rate_hz[1] if self.rate_hz[1] > 0 else 0.0
        return delay.reach_of(self._greatest()._replace(period_s=fastest, skew=-self.skew), odds=1e-3)

    def reach_s(self, tick_s: float) -> float:
        """How old what it holds may be [s], where a control step takes `tick_s` [s]."""
        return delay.reach_s(self._greatest(), self.packets, tick_s)

    def slots(self, tick_s: float) -> int:
        """Packets in flight at most, where one is sent at each control step of `tick_s` [s]."""
        return delay.slots(self.latency_s[1] + self.jitter_s, tick_s)

    def draw(self, key: Any, level: Any) -> dict[str, Any]:
        """What is fixed for an episode, and that no packet has come yet."""
        unit_key, seed_key = jax.random.split(key)
        unit = jax.random.uniform(unit_key, (4,))
        share = factor(self.scale, level)

        def between(span: tuple[float, float], u: Any) -> Any:
            return span[0] + u * (span[1] - span[0])

        period = 1.0 / between(self.rate_hz, unit[0]) if self.rate_hz[0] > 0 else jnp.zeros(())
        sampling = delay.Sampling(
            period_s=period,
            phase_s=unit[1] * period,
            skew=self.skew * (2.0 * unit[2] - 1.0),
            latency_s=share * between(self.latency_s, unit[3]),
            jitter_s=share * jnp.asarray(self.jitter_s, jnp.float32),
            loss=share * jnp.asarray(self.loss, jnp.float32),
        )
        return {
            "sampling": sampling,
            "seed": jax.random.bits(seed_key, (), jnp.uint32),
            "packet": jnp.asarray(NO_PACKET, jnp.int32),
        }

    def read(self, carry: dict[str, Any], tick: Any, tick_s: float) -> tuple[Reading, dict[str, Any]]:
        """(what the receiver holds at a control step, the next memory).

        Args:
            carry: of `draw`, or of the step before.
            tick: number of the control step in the episode.
            tick_s: its length [s].
        """
        now = tick * jnp.float32(tick_s)
        draw = delay.draws(carry["seed"], jnp)
        packet, taken_s = delay.newest(carry["sampling"], now, draw, self.packets, jnp, tick=tick, tick_s=tick_s)
        return Reading(packet, now - taken_s, packet != carry["packet"]), {**carry, "packet": packet}

    def late(self, carry: dict[str, Any], key: Any) -> tuple[Any, Any]:
        """(latency [s], whether it is lost) of one packet that is sent now."""
        sampling, unit = carry["sampling"], jax.random.uniform(key, (2,))
        return sampling.latency_s + unit[0] * sampling.jitter_s, unit[1] < sampling.loss
