"""How well a control loop kept time: each figure in one place, for the run's own report and for a log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

STAGES = ("read", "infer", "guard", "write")


def percentile_ms(values_s: np.ndarray, share: float) -> float:
    """Of the finite values [s], in ms; NaN where there is none."""
    finite = values_s[np.isfinite(values_s)]
    return float(np.percentile(finite, share)) * 1e3 if finite.size else math.nan


class TickTimes:
    """The times of the last ticks of a loop, in memory that does not grow.

    Args:
        room: how many ticks.

    Attributes:
        ticks: how many there were.
    """

    def __init__(self, room: int = 2**16) -> None:
        self._rows = np.full((room, 5 + len(STAGES)), np.nan)
        self.ticks = 0

    def add(
        self,
        tick: int,
        scheduled_s: float,
        start_s: float,
        state_round_trip_s: float,
        command_round_trip_s: float,
        stages_s: Mapping[str, float],
    ) -> None:
        """One more tick; arguments as of `LoopTiming.of`."""
        stages = (stages_s[name] for name in STAGES)
        row = self._rows[self.ticks % len(self._rows)]
        row[:] = (tick, scheduled_s, start_s, state_round_trip_s, command_round_trip_s, *stages)
        self.ticks += 1

    def round_trips_s(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the ticks that are kept: those of states and those of commands that were answered [s]."""
        state, command = self._rows[: self.ticks, 3], self._rows[: self.ticks, 4]
        return state[np.isfinite(state)], command[np.isfinite(command)]

    def timing(self, period_s: float, *, simulated: bool) -> LoopTiming:
        """Of the ticks that are kept."""
        at = self.ticks % len(self._rows) if self.ticks > len(self._rows) else 0
        tick, scheduled, start, state, command, *stages = np.roll(self._rows, -at, axis=0)[: self.ticks].T
        return LoopTiming.of(
            period_s=period_s,
            tick=tick.astype(np.int64),
            scheduled_s=scheduled,
            start_s=start,
            state_round_trip_s=state,
            command_round_trip_s=command,
            stages_s=dict(zip(STAGES, stages, strict=True)),
            simulated=simulated,
        )


@dataclass(frozen=True, kw_only=True)
class LoopTiming:
    """Times of a loop over some of its ticks; NaN where nothing was measured, as in lock step.

    Attributes:
        ticks: how many.
        period_ms: nominal control period [ms].
        period_p50_ms, period_p99_ms, period_max_ms: from start to start of successive ticks [ms].
        period_error_p50_ms, period_error_p99_ms, period_error_p999_ms, period_error_max_ms: |period - nominal|, where
            deadlines that were left out count as nominal [ms].
        lateness_p99_ms: start - deadline [ms].
        skipped: deadlines left out because a tick was late by more than half a period.
        state_round_trip_p50_ms, state_round_trip_p99_ms: question to complete answer [ms].
        command_round_trip_p50_ms, command_round_trip_p99_ms: command to acknowledgement [ms].
        stages: of each stage of a tick, its median and 99th percentile [ms].
    """

    ticks: int
    period_ms: float
    period_p50_ms: float = math.nan
    period_p99_ms: float = math.nan
    period_max_ms: float = math.nan
    period_error_p50_ms: float = math.nan
    period_error_p99_ms: float = math.nan
    period_error_p999_ms: float = math.nan
    period_error_max_ms: float = math.nan
    lateness_p99_ms: float = math.nan
    skipped: int = 0
    state_round_trip_p50_ms: float = math.nan
    state_round_trip_p99_ms: float = math.nan
    command_round_trip_p50_ms: float = math.nan
    command_round_trip_p99_ms: float = math.nan
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        period_s: float,
        tick: np.ndarray,
        scheduled_s: np.ndarray,
        start_s: np.ndarray,
        state_round_trip_s: np.ndarray,
        command_round_trip_s: np.ndarray,
        stages_s: Mapping[str, np.ndarray] | None = None,
        simulated: bool = False,
    ) -> LoopTiming:
        """From one row a tick.

        Args:
            period_s: nominal [s].
            tick: number on the grid of deadlines (T,).
            scheduled_s: deadlines (T,) [s].
            start_s: when each tick began (T,) [s].
            state_round_trip_s: NaN where no answer came (T,) [s].
            command_round_trip_s: NaN where no acknowledgement came (T,) [s].
            stages_s: time that each stage took, by its name, (T,) each [s].
            simulated: the loop was in lock step; its time says nothing of the machine.
        """
        values: dict[str, Any] = {}
        steps = np.diff(tick)
        if not simulated and len(tick) > 1:
            periods = np.diff(start_s)
            error = np.abs(periods - steps * period_s)
            shares = {"p50": 50, "p99": 99, "max": 100}
            values |= {f"period_{name}_ms": percentile_ms(periods, share) for name, share in shares.items()}
            shares["p999"] = 99.9
            values |= {f"period_error_{name}_ms": percentile_ms(error, share) for name, share in shares.items()}
            values["lateness_p99_ms"] = percentile_ms(start_s - scheduled_s, 99)
        for name, trips in (("state", state_round_trip_s), ("command", command_round_trip_s)):
            values |= {f"{name}_round_trip_p{share}_ms": percentile_ms(trips, share) for share in (50, 99)}
        stages = {} if simulated else stages_s or {}
        return cls(
            ticks=len(tick),
            period_ms=1e3 * period_s,
            skipped=int(np.sum(steps - 1)),
            stages={name: (percentile_ms(taken, 50), percentile_ms(taken, 99)) for name, taken in stages.items()},
            **values,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where nothing was measured."""
        values = asdict(self)
        stages = {name: {"p50_ms": p50, "p99_ms": p99} for name, (p50, p99) in values.pop("stages").items()}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()} | {
            "stages": stages
        }
