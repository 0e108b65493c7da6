"""How a run went: its figures, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """How a run went. Times of the loop are over all its ticks; None in lock step, where time is simulated.

    Attributes:
        ended: "completed", "fall", "fault", "lost", "interrupted", "terminated" or "error".
        message: one line about the end.
        damped: every joint acknowledged the gains of a safe stop.
        left_stiff: the joints that did not.
        log: the log's file; None when the robot was not reached.
        duration_s: asked for [s].
        signum: the signal that ended it, 0 for none.
        server: which kind of server it was, and how that is known; empty where it was not reached.
        compared: name of the robot that the bundle was compared with before; empty for none.
        warnings: what a person should look at, one line each.
        survived_s: how long the policy ran [s].
        ticks: ticks of ramp and policy.
        ramp_ticks: of the ramp.
        overruns: ticks that ended after the next one was due.
        skipped: deadlines left out because a tick was late by more than half a period.
        lost_states: ticks without a state in time.
        lost_commands: commands without an acknowledgement in time.
        stale_ticks: ticks without anything newly measured, the lost ones among them.
        clamped_ticks: ticks in which safety changed a target.
        clamps: how often, by reason.
        period_ms: nominal control period [ms].
        period_p50_ms, period_p99_ms, period_max_ms: from start to start of successive ticks [ms].
        loop_period_error_p99_ms: 99th percentile of |period - nominal| [ms].
        lateness_p99_ms: 99th percentile of start - deadline [ms].
        state_round_trip_p50_ms, state_round_trip_p99_ms: question to complete answer [ms].
        command_round_trip_p50_ms, command_round_trip_p99_ms: command to acknowledgement [ms].
    """

    ended: str
    message: str
    damped: bool
    log: Path | None
    duration_s: float
    signum: int = 0
    left_stiff: tuple[str, ...] = ()
    server: str = ""
    compared: str = ""
    warnings: tuple[str, ...] = ()
    survived_s: float = 0.0
    ticks: int = 0
    ramp_ticks: int = 0
    overruns: int = 0
    skipped: int = 0
    lost_states: int = 0
    lost_commands: int = 0
    stale_ticks: int = 0
    clamped_ticks: int = 0
    clamps: Mapping[str, int] = field(default_factory=dict)
    period_ms: float = 0.0
    period_p50_ms: float | None = None
    period_p99_ms: float | None = None
    period_max_ms: float | None = None
    loop_period_error_p99_ms: float | None = None
    lateness_p99_ms: float | None = None
    state_round_trip_p50_ms: float | None = None
    state_round_trip_p99_ms: float | None = None
    command_round_trip_p50_ms: float | None = None
    command_round_trip_p99_ms: float | None = None

    @property
    def exit_code(self) -> int:
        """0 only when the time was completed and the robot was left damped; 128 and its number after a signal."""
        if self.ended == "completed":
            return 0 if self.damped else 1
        return 128 + self.signum if self.signum else 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with `exit_code`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {
            "log": None if self.log is None else str(self.log),
            "clamps": dict(self.clamps),
            "warnings": list(self.warnings),
            "left_stiff": list(self.left_stiff),
            "exit_code": self.exit_code,
        }

    @property
    def _not_damped(self) -> str:
        named = ", ".join(self.left_stiff[:6]) + (" and more" if len(self.left_stiff) > 6 else "")
        return f"NOT DAMPED: {named or 'it'} keeps the last gains and target; try ksim damp"

    def summary(self) -> str:
        """Lines for a person."""

        def ms(value: float | None) -> str:
            return "-" if value is None else f"{value:.2f}"

        clamps = ", ".join(f"{k} {v}" for k, v in sorted(self.clamps.items())) or "none"
        lines = [
            f"ended      {self.ended}: {self.message}",
            f"robot      {'damped' if self.damped else self._not_damped}",
            *([f"server     {self.server}"] if self.server else []),
            f"compared   {self.compared or 'with no robot: name yours with --robot FOLDER'}",
            f"policy     {self.survived_s:.2f} of {self.duration_s:g} s; "
            f"{self.ticks} ticks, {self.ramp_ticks} of them in the ramp",
            f"period     {self.period_ms:g} ms nominal; p50 {ms(self.period_p50_ms)}, p99 {ms(self.period_p99_ms)}, "
            f"max {ms(self.period_max_ms)}; error p99 {ms(self.loop_period_error_p99_ms)}; "
            f"{self.overruns} overruns, {self.skipped} skipped",
            f"round trip state p50 {ms(self.state_round_trip_p50_ms)}, p99 {ms(self.state_round_trip_p99_ms)} ms; "
            f"command p50 {ms(self.command_round_trip_p50_ms)}, p99 {ms(self.command_round_trip_p99_ms)} ms; "
            f"lost {self.lost_states} and {self.lost_commands}, stale {self.stale_ticks}",
            f"clamped    {self.clamped_ticks} ticks ({clamps})",
            f"log        {self.log if self.log is not None else 'none'}",
            *(f"warning    {line}" for line in self.warnings),
        ]
        return "\n".join(lines)
