"""A judgement for a terminal, up to 100 columns: verdict, suspects, layers, and the joints that are worst."""

from __future__ import annotations

import textwrap

from deploy.parity import words
from deploy.parity.report import Judgement, Mark

COLUMNS, JOINTS = 100, 5
_ANSI = {Mark.GOOD: "32", Mark.LOOK: "33", Mark.BAD: "31", Mark.NONE: "2"}


def judgement_lines(judgement: Judgement, *, colour: bool = False) -> list[str]:
    """The lines; `colour` is for a terminal, not for a file."""

    def painted(mark: Mark, text: str) -> str:
        return f"\x1b[{_ANSI[mark]}m{text}\x1b[0m" if colour else text

    def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
        return textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=rest)

    lines = [painted(judgement.mark, words.conclusion(judgement).upper()), *wrapped(words.verdict(judgement))]
    for k, suspect in enumerate(judgement.suspects, start=1):
        lines += ["", *wrapped(f"{words.said(suspect)} {words.capital(words.why(suspect))}.", f"{k:2} ", "   ")]
        lines += wrapped(words.next_step(suspect), "   To do: ", "   ")
    lines.append("")
    for layer in judgement.layers:
        rows = wrapped(words.headline(layer), " " * 26, " " * 26)
        mark = painted(layer.mark, f"{words.MARKS[layer.mark]:12}")
        lines += [f"{layer.name.value:14}{mark}{rows[0].strip()}", *rows[1:]]
    joints = words.worst_joints(judgement)[:JOINTS]
    if joints:
        lines += ["", "The worst joints, in shares of the bound:"]
        lines += [f"  {words.short(joint):30}{share:8.2f}  {layer.value}" for joint, share, layer in joints]
    return lines
