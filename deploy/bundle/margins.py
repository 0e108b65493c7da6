"""A robot's delays against the margins of a bundle (robots/margins.py), and how margins are told. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robots.margins import STANDS, Answer, Ladder, Margins, Rung

NOT_MEASURED = "not measured"
# The median of fewer round trips says nothing.
TRIPS_LEAST = 10
# (what, unit, factor from SI) of each ladder.
_TOLD = {
    "imu_age_s": ("IMU readings late by", "ms", 1e3),
    "joint_age_s": ("joint readings late by", "ms", 1e3),
    "action_latency_s": ("commands late by", "ms", 1e3),
    "held_ticks": ("ticks in a row without a command", "", 1.0),
}


class Verdict(enum.Enum):
    """How a measured value lies to a ladder.

    WITHIN: at most the margin. BEYOND: more, and some value that was run did not stand. UNTESTED: more than any value
    that was run, and all of these stood. UNKNOWN: the bundle has no such ladder.
    """

    WITHIN = "within"
    BEYOND = "beyond"
    UNTESTED = "untested"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a robot and its link; None where it was not.

    Attributes:
        imu_age_s: age of the IMU's values when the policy reads them [s].
        joint_age_s: the same of the joints' [s].
        command_age_s: from the policy's step until the motors have its command [s].
        held_ticks: most ticks in a row that were lost.
    """

    imu_age_s: float | None = None
    joint_age_s: float | None = None
    command_age_s: float | None = None
    held_ticks: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measured value against its ladder.

    Attributes:
        ladder: its name in Margins.
        measured: in the ladder's unit.
        margin: greatest value with which the policy stands; None where it falls at the least, or nobody knows.
        verdict: how they lie to each other.
    """

    ladder: str
    measured: float
    margin: float | None
    verdict: Verdict

    @property
    def text(self) -> str:
        """One line."""
        what, unit, factor = _TOLD[self.ladder]
        said = f"{what} {_number(self.measured * factor, unit)}"
        if self.verdict is Verdict.UNKNOWN:
            return f"{said}: what the policy bears was not measured"
        if self.margin is None:
            return f"{said}: in simulation the policy falls whatever they are"
        bears = _number(self.margin * factor, unit)
        told = {
            Verdict.WITHIN: f"in simulation the policy stands up to {bears}",
            Verdict.BEYOND: f"in simulation the policy stands up to {bears} only",
            Verdict.UNTESTED: f"in simulation the policy stands up to {bears}; more was not tried",
        }
        return f"{said}: {told[self.verdict]}"


def _number(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip()


def _verdict(ladder: Ladder | None, value: float) -> Verdict:
    if ladder is None:
        return Verdict.UNKNOWN
    margin = ladder.margin
    if margin is not None and value <= margin:
        return Verdict.WITHIN
    return Verdict.UNTESTED if ladder.at_least else Verdict.BEYOND


def compare(margins: Margins | None, measured: Measured) -> list[Finding]:
    """Each value that was measured against its ladder.

    Args:
        margins: of the bundle; None where it has none.
        measured: of the robot.
    """
    values = {
        "imu_age_s": measured.imu_age_s,
        "joint_age_s": measured.joint_age_s,
        "action_latency_s": measured.command_age_s,
        "held_ticks": measured.held_ticks,
    }
    found = []
    for name, value in values.items():
        if value is None:
            continue
        ladder: Ladder | None = None if margins is None else getattr(margins, name)
        margin = None if ladder is None else ladder.margin
        finding = Finding(ladder=name, measured=float(value), margin=margin, verdict=_verdict(ladder, float(value)))
        found.append(finding)
    return found


def link_warnings(
    margins: Margins | None, state_s: Sequence[float], command_s: Sequence[float], lost_in_row: int
) -> list[str]:
    """What is beyond the margins, as far as the link tells: whole round trips, so readings are at most so old.

    How old a value is when the server gives it is not in it: `ksim check` measures that.

    Args:
        margins: of the bundle; None where it has none.
        state_s: round trips of readings [s]; fewer than TRIPS_LEAST say nothing.
        command_s: round trips of commands [s]; likewise.
        lost_in_row: most ticks in a row without an answer.
    """
    if margins is None:
        return []
    state, command = (float(np.median(v)) if len(v) >= TRIPS_LEAST else None for v in (state_s, command_s))
    measured = Measured(imu_age_s=state, joint_age_s=state, command_age_s=command, held_ticks=lost_in_row)
    return [finding.text for finding in compare(margins, measured) if finding.verdict is Verdict.BEYOND]


# How they are told.


def _share(rung: Rung) -> str:
    return f"{100 * rung.survival:.0f} %"


def ladder_rows(margins: Margins) -> list[tuple[str, str, str]]:
    """(what, the margin, survival at each value) of each ladder."""
    rows = []
    for name, ladder in margins.ladders.items():
        what, unit, factor = _TOLD[name]
        margin = ladder.margin
        if margin is None:
            said = f"none: falls at {_number(ladder.rungs[0].value * factor, unit)}"
        else:
            said = f"{'at least ' if ladder.at_least else ''}{_number(margin * factor, unit)}"
        tried = ", ".join(f"{rung.value * factor:.4g}: {_share(rung)}" for rung in ladder.rungs)
        rows.append((what, said, tried))
    return rows


def answer_rows(answers: tuple[Answer, ...]) -> list[tuple[str, str]]:
    """(how far the joints move, what the policy does) of each answer."""
    return [
        (
            f"joints move {100 * a.share:.0f} % of what is asked",
            f"pull up to {a.pull_rad:.3g} rad ({a.joint}), {a.last_rad:.3g} in the last second: "
            f"{'WINDS UP' if a.winds_up else 'does not wind up'}; "
            f"{100 * a.at_limit:.0f} % of the targets at an end of their range",
        )
        for a in answers
    ]


def conditions(margins: Margins) -> str:
    """In what the ladders were run, two sentences; where none was, that."""
    if not margins.ladders:
        return f"{NOT_MEASURED}: nothing in the task counts as a fall"
    episodes = max((rung.episodes for ladder in margins.ladders.values() for rung in ladder.rungs), default=0)
    rest = _latencies(margins.others_s)
    return (
        f"Share of {episodes} episodes of {margins.episode_s:g} s that last, one thing late at a time; the margin is "
        f"the greatest value up to which it is {100 * STANDS:.0f} % or more. Nominal robot in {margins.engine}, seed "
        f"{margins.seed}, no pushes; starts, commands and noise of the task; the rest {rest}."
    )


def _latencies(others_s: Mapping[str, float]) -> str:
    late = [f"{name} {1e3 * value:.3g} ms" for name, value in sorted(others_s.items()) if value > 0]
    return f"late as in the middle of training ({', '.join(late)})" if late else "not late"


def to_json(margins: Margins) -> dict[str, object]:
    """The margins as plain values, with what follows from them."""
    data: dict[str, object] = dict(margins.to_dict())
    for name, ladder in margins.ladders.items():
        data[name] = {**ladder.to_dict(), "margin": ladder.margin, "at_least": ladder.at_least}
    data["answers"] = [{**a.to_dict(), "pull_rad": a.pull_rad, "winds_up": a.winds_up} for a in margins.answers]
    return data
