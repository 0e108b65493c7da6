"""The control loop's own clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.log.timing import LoopTiming
from deploy.parity.report import Figure, Layer, LayerName

# Ours: a tenth and a quarter of a period of 50 Hz.
PERIOD_GOOD_S, PERIOD_POOR_S = 0.002, 0.005


def loop_timing(log: RunLog) -> dict[str, Any]:
    """The control loop's timing over the run phase, in ms.

    `overruns` counts ticks that ended after the next one was due, as the run itself counted them, ramp included;
    where the log has no end, those whose command came that late.
    """
    rows, simulated = np.flatnonzero(log.run), bool(log.metadata.get("step_lock"))
    start, period = log.start_s[rows], log.spec.control_period_s
    ended = np.where(np.isfinite(log.command_s[rows]), log.command_s[rows], start)
    overruns = (log.result or {}).get("overruns")
    if not isinstance(overruns, int):
        overruns = 0 if simulated else int(np.sum(ended > log.scheduled_s[rows] + period))
    timing = LoopTiming.of(
        period_s=period,
        tick=log.tick[rows],
        scheduled_s=log.scheduled_s[rows],
        start_s=start,
        state_round_trip_s=log.state_round_trip_s[rows],
        command_round_trip_s=log.command_round_trip_s[rows],
        simulated=simulated,
    )
    return timing.to_json() | {
        "duration_s": float(start[-1] - start[0]),
        "overruns": overruns,
        "stale": int(log.stale[rows].sum()),
        "commands_unacknowledged": int(np.sum(~np.isfinite(log.command_s[rows]))),
    }


def few(ticks: int) -> tuple[int, int]:
    """One tick in a thousand, and one in a hundred, in whole ticks; one is always allowed."""
    return max(1, round(0.001 * ticks)), max(1, round(0.01 * ticks))


def timing_layer(loop: dict[str, Any], *, imported: bool = False) -> Layer:
    """The layer of what `loop_timing` found.

    Args:
        loop: the figures; NaN or None where nothing was measured.
        imported: another program wrote the log: it tells of no deadlines.
    """
    error = loop["period_error_p99_ms"]
    if error is None:
        return Layer(name=LayerName.TIMING, untold="the run was in lock step: its clock is the simulator's")
    late_good, late_poor = few(loop["ticks"])
    figures = [
        Figure(
            key="period_error_p99_s",
            what="error of the loop's period, 99 %",
            value=1e-3 * error,
            unit="s",
            good=PERIOD_GOOD_S,
            poor=PERIOD_POOR_S,
        ),
        Figure(
            key="skipped_ticks",
            what="deadlines skipped",
            value=float(loop["skipped"]),
            unit="ticks",
            good=0.0 if not imported else float(late_good),
            poor=float(late_poor),
        ),
    ]
    if not imported:
        figures.append(
            Figure(
                key="late_ticks",
                what="ticks that ended late",
                value=float(loop["overruns"]),
                unit="ticks",
                good=float(late_good),
                poor=float(late_poor),
            )
        )
    figures += [
        Figure(key=f"{name}_round_trip_p99_s", what=f"{name} round trip, 99 %", value=1e-3 * trip, unit="s")
        for name in ("state", "command")
        if (trip := loop[f"{name}_round_trip_p99_ms"]) is not None
    ]
    return Layer(name=LayerName.TIMING, figures=tuple(figures))
