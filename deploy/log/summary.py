"""What a log says in figures, each computed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.log.tick import PHASES
from deploy.log.timing import LoopTiming


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A log in figures.

    Attributes:
        ended: how the run ended; "unknown" where the log does not hold it.
        message: why.
        complete: the run ended in order, and the file is whole.
        duration_s: from the first tick to the last [s].
        ticks: of each phase.
        rate_hz: of the loop while the policy ran, deadlines that were left out not counted; NaN for fewer than 2 ticks.
        timing: of the loop while the policy ran.
        lost_states: ticks without a state in time; None in a log from elsewhere.
        lost_commands: ticks whose command was not acknowledged; None in a log from elsewhere.
        stale: ticks without anything newly measured.
        clamped: ticks in which safety changed a target.
        clamps: how often, by reason.
        clamped_joints: how often, by joint.
        events: how many, by kind.
    """

    ended: str
    message: str
    complete: bool
    duration_s: float
    ticks: dict[str, int]
    rate_hz: float
    timing: LoopTiming
    lost_states: int | None
    lost_commands: int | None
    stale: int
    clamped: int
    clamps: dict[str, int]
    clamped_joints: dict[str, int]
    events: dict[str, int]


def summary(log: RunLog) -> Summary:
    """The figures of a log."""
    rows = np.flatnonzero(log.run | log.mask("between"))
    at = log.start_s[rows]
    simulated = bool(log.metadata.get("step_lock"))
    # the loop's own grid: between two steps of the policy the number of the step stays
    due, grid, period_s = log.scheduled_s[rows], log.tick[rows], log.spec.control_period_s
    if np.isfinite(due).all():  # a log from elsewhere knows no deadlines
        if len(rows) > 1:  # the nearest two ticks are one period apart, or one of them was left out too
            period_s /= max(1, round(period_s / max(float(np.diff(due).min()), 1e-4)))
        grid = np.round((due - due[:1]) / period_s).astype(np.int64)
    joints, kinds = Counter[str](), Counter[str]()
    for reasons in log.safety:
        for reason in reasons:
            joints[reason.joint] += 1
            kinds[reason.kind.value] += 1
    result = log.result or {}
    imported = "import" in log.metadata
    loop = np.array([phase != "damp" for phase in log.phase], dtype=bool)
    return Summary(
        ended=str(result.get("ended", "unknown")),
        message=str(result.get("message", "the log breaks off")),
        complete=log.complete,
        duration_s=float(log.start_s[-1] - log.start_s[0]) if len(log.tick) else 0.0,
        ticks={phase: n for phase in PHASES if (n := int(log.mask(phase).sum()))},
        rate_hz=float((len(rows) - 1) / (at[-1] - at[0])) if len(rows) > 1 else float("nan"),
        timing=LoopTiming.of(
            period_s=period_s,
            tick=grid,
            scheduled_s=log.scheduled_s[rows],
            start_s=at,
            state_round_trip_s=log.state_round_trip_s[rows],
            command_round_trip_s=log.command_round_trip_s[rows],
            stages_s={name: 1e-3 * values[rows] for name, values in log.stages_ms.items()},
            simulated=simulated,
        ),
        lost_states=None if imported else int(np.isnan(log.state_round_trip_s[loop]).sum()),
        lost_commands=None if imported else int(np.isnan(log.command_round_trip_s[loop]).sum()),
        stale=int(log.stale[loop].sum()),
        clamped=sum(bool(reasons) for reasons in log.safety),
        clamps=dict(kinds.most_common()),
        clamped_joints=dict(joints.most_common()),
        events=dict(Counter(str(event["kind"]) for event in log.events).most_common()),
    )


def facts(log: RunLog) -> dict[str, Any]:
    """What ran on what, by the log's own words; what an older log does not tell is left out."""
    told = {name: log.metadata.get(name) for name in ("started_utc", "bundle", "bundle_digest", "host", "port")}
    told |= {
        name: log.metadata.get(name) for name in ("command_source", "command", "gyro_unit", "step_lock", "versions")
    }
    made = log.metadata.get("import", {})
    told |= {"imported": {name: made[name] for name in ("format", "path", "missing") if name in made}}
    spec = {"robot": log.spec.robot.name, "task": log.spec.task, "weights_digest": log.spec.weights_digest}
    return {name: value for name, value in (spec | told).items() if value not in (None, "", {})}


def facts_as_text(log: RunLog) -> dict[str, str]:
    """The same for a person."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return f"({', '.join(map(text, value))})"
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(v)}" for name, v in value.items())
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

    return {name: text(value) for name, value in facts(log).items()}


def lost_as_text(found: Summary) -> str:
    """States and commands that were lost, for a person."""
    if found.lost_states is None:
        return f"not told; {found.stale} stale"
    return f"{found.lost_states} states, {found.lost_commands} commands; {found.stale} stale"
