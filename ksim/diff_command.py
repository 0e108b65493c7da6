"""The command `ksim diff`."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from ksim.errors import ReplayError
from toolkit.cli import importing, parser

if TYPE_CHECKING:
    from ksim.diff import Difference, Parting

# fields and settings that a person is shown
SHOWN = 8


def main(argv: list[str] | None = None) -> int:
    """The command: 0 where the runs are the same, 1 where they part, 2 where a log cannot be read."""
    p = parser(
        "ksim diff",
        "The first step at which two logged episodes part, what differs there, by how much, and the likely layer.\n"
        "Exit status: 0 the same, 1 they part, 2 a log cannot be read.",
        "ksim diff before.jsonl after.jsonl",
    )
    p.add_argument("first", help="a log of ksim replay")
    p.add_argument("second", help="another, of the same seed")
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = p.parse_args(argv)
    with importing("diff"):
        from ksim.diff import first_parting, settings_apart
        from ksim.replay_log import validate_log
    try:
        first, second = validate_log(args.first), validate_log(args.second)
    except ReplayError as error:
        print(f"ksim diff: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    parting, told = first_parting(first, second), settings_apart(first, second)
    if args.json:
        settings = [{"key": key, "first": a, "second": b} for key, a, b in told]
        found = {} if parting is None else _strict(parting.to_json())
        steps = [len(log.events) - 1 for log in (first, second)]
        answer = {"equal": parting is None, "settings": settings, "steps": steps, **found}
        print(json.dumps(answer, allow_nan=False))
    else:
        for key, a, b in told[:SHOWN]:
            print(f"setting differs: {key}: {_short(a)} and {_short(b)}")
        if len(told) > SHOWN:
            print(f"setting differs: and {len(told) - SHOWN} more")
        print(_text(parting, len(first.events) - 1, len(second.events) - 1))
    return 0 if parting is None else 1


def _short(value: Any) -> str:
    """A value in at most 60 characters; of a digest its beginning."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        value = f"{value[:12]}..."
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _strict(found: dict[str, Any]) -> dict[str, Any]:
    """A size that is not finite as the word for it."""
    for field in found["fields"]:
        field["size"] = "Infinity" if field["size"] == math.inf else field["size"]
    return found


def _text(parting: Parting | None, steps: int, others: int) -> str:
    if parting is None:
        return f"the same to the bit: {steps} steps"
    where = "at the birth" if parting.step < 0 else f"at {parting.event_id}, t = {parting.time_s:.3f} s"
    lines = [f"the runs part {where}; likely layer: {parting.layer}"]
    first = [field for field in parting.fields if field.layer == parting.layer]
    lines += [f"  {_field(field)}" for field in first[:SHOWN]]
    if len(first) > SHOWN:
        lines.append(f"  and {len(first) - SHOWN} more")
    later = list(dict.fromkeys(field.layer for field in parting.fields if field.layer != parting.layer))
    if later:
        lines.append(f"  and with it: {', '.join(later)}")
    if steps != others:
        lines.append(f"  the first has {steps} steps, the second {others}")
    return "\n".join(lines)


def _field(field: Difference) -> str:
    at = f" at {field.at}" if field.at else ""
    size = at if field.size is None else f" by {field.size:.3g}{at}"
    return f"{field.layer}: {field.field}{size}: {field.first!r:.40} and {field.second!r:.40}"
