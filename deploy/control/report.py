"""How a run went: its figures, and how they are told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.control.machine import Ended
from deploy.control.realtime import Granted
from deploy.log.timing import LoopTiming
from deploy.robot.faults import Fault


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """How a run went.

    Attributes:
        ended: why it is over.
        message: one line about the end.
        damped: every joint acknowledged to be without stiffness.
        left_stiff: the joints that did not.
        log: the log's file; None when the robot was not reached.
        duration_s: asked for [s].
        signum: the signal that ended it, 0 for none.
        server: which kind of server it was, and how that is known; empty where it was not reached.
        compared: name of the robot that the bundle was compared with before; empty for none.
        warnings: what a person should look at, one line each.
        survived_s: how long the policy ran [s].
        ticks: of all phases.
        ramp_ticks: of the way home and the look before the policy's first step.
        overruns: ticks that ended after the next one was due.
        lost_states: ticks without a state in time.
        lost_commands: commands without an acknowledgement in time.
        stale_ticks: ticks without anything newly measured, the lost ones among them.
        clamped_ticks: ticks in which safety changed a target.
        clamps: how often, by reason.
        stop_ticks: of the stop.
        faults: what ended it, as values.
        left: what the robot was left in: "damped", "off", "held" (the last gains and target), "untouched" or "unknown".
        gyro: whether its unit and frame fit the orientation; empty in lock step, where nobody looks.
        granted: what the system allowed the loop.
        timing: of the loop over its last 65,536 ticks.
    """

    ended: Ended
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
    lost_states: int = 0
    lost_commands: int = 0
    stale_ticks: int = 0
    clamped_ticks: int = 0
    clamps: Mapping[str, int] = field(default_factory=dict)
    stop_ticks: int = 0
    faults: tuple[Fault, ...] = ()
    left: str = "untouched"
    gyro: str = ""
    granted: Granted = Granted()
    timing: LoopTiming = LoopTiming(ticks=0, period_ms=math.nan)

    @property
    def exit_code(self) -> int:
        """0 only when the time was completed, or the operator stopped the run by the source of its commands, and the
        robot was left damped; 128 and its number after a signal. A run that was stopped before it began is a failure.
        """
        if self.ended in (Ended.COMPLETED, Ended.STOPPED):
            return 0 if self.damped and self.log is not None else 1
        return 128 + self.signum if self.signum else 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with `exit_code`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {
            "timing": self.timing.to_json(),
            "granted": asdict(self.granted),
            "faults": [fault.to_json() for fault in self.faults],
            "log": None if self.log is None else str(self.log),
            "clamps": dict(self.clamps),
            "warnings": list(self.warnings),
            "left_stiff": list(self.left_stiff),
            "exit_code": self.exit_code,
        }

    @property
    def _robot(self) -> str:
        named = ", ".join(self.left_stiff[:6]) + (" and more" if len(self.left_stiff) > 6 else "")
        return {
            "damped": "damped",
            "off": "off: no torque",
            "held": "HELD: it keeps the last gains and target; end that with ksim damp",
            "untouched": "untouched",
        }.get(self.left, f"NOT DAMPED: {named or 'it'} keeps the last gains and target; try ksim damp")

    def summary(self) -> str:
        """Lines for a person."""

        def ms(value: float) -> str:
            return "-" if math.isnan(value) else f"{value:.2f}"

        timing = self.timing
        clamps = ", ".join(f"{k} {v}" for k, v in sorted(self.clamps.items())) or "none"
        stages = ", ".join(f"{name} {ms(p50)} ({ms(p99)})" for name, (p50, p99) in timing.stages.items())
        lines = [
            f"ended      {self.ended}: {self.message}",
            f"robot      {self._robot}",
            *([f"server     {self.server}"] if self.server else []),
            f"compared   {self.compared or 'with no robot: name yours with --robot FOLDER'}",
            f"policy     {self.survived_s:.2f} of {self.duration_s:g} s; "
            f"{self.ticks} ticks, {self.ramp_ticks} of them before it, {self.stop_ticks} of them in the stop",
            f"period     {ms(timing.period_ms)} ms nominal; p50 {ms(timing.period_p50_ms)}, "
            f"p99 {ms(timing.period_p99_ms)}, max {ms(timing.period_max_ms)}; "
            f"error p99 {ms(timing.period_error_p99_ms)}; {self.overruns} overruns, {timing.skipped} skipped",
            f"round trip state p50 {ms(timing.state_round_trip_p50_ms)}, p99 {ms(timing.state_round_trip_p99_ms)} ms; "
            f"command p50 {ms(timing.command_round_trip_p50_ms)}, p99 {ms(timing.command_round_trip_p99_ms)} ms; "
            f"lost {self.lost_states} and {self.lost_commands}, stale {self.stale_ticks}",
            *([f"gyro       {self.gyro}"] if self.gyro else []),
            f"system     {self.granted}",
            *([f"tick       p50 (p99) in ms: {stages}"] if stages else []),
            f"clamped    {self.clamped_ticks} ticks ({clamps})",
            f"log        {self.log if self.log is not None else 'none'}",
            *(f"warning    {line}" for line in self.warnings),
        ]
        return "\n".join(lines)
