"""The control loop's own clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.log.timing import LoopTiming


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
