"""JSON from a file that nobody vouches for: one meaning, bounded, and safe to print.

`json` of the standard library takes NaN, 1e999, a key given twice, text that cannot be encoded and, where the
stack lets it, any depth. Here each of these is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 32
MAX_TEXT = 65_536
MAX_KEY = 256
# enough for 64 bits with a sign; Python's own integers have no end
_MAX_DIGITS = 20
# Control characters (a terminal obeys them), line separators, characters that reorder text, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and shortest-round-trip floats: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, or of bytes, as hex."""
    data = value if isinstance(value, bytes) else canonical_json(value).encode()
    return hashlib.sha256(data).hexdigest()


def _constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text}; expected finite numbers")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}; expected finite numbers")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits; expected at most {_MAX_DIGITS}")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:40]!r} twice in one object")
    return data


def check_text(text: str, limit: int) -> None:
    """Text that is short enough, can be encoded and does nothing to a terminal.

    Raises:
        ValueError: it is not.
    """
    if len(text) > limit:
        raise ValueError(f"text of {len(text)} characters; expected at most {limit}")
    found = _UNPRINTABLE.search(text)
    if found:
        raise ValueError(f"the character {found.group()!a} in {text[:40]!a}; expected plain text")


def loads(data: bytes) -> Any:
    """The value that the JSON text says.

    Raises:
        ValueError: it is not JSON, or one of the things that this module refuses; the message is one line.
    """
    try:
        value = json.loads(
            data.decode(), parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
        )
    except RecursionError as error:
        raise ValueError(f"nested too deep; expected at most {MAX_DEPTH} levels") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON ({error})") from error
    todo: list[tuple[Any, int]] = [([value], 0)]
    while todo:
        item, depth = todo.pop()
        if isinstance(item, dict):
            for key in item:
                check_text(key, MAX_KEY)
            item = item.values()
        for inner in item:
            if isinstance(inner, str):
                check_text(inner, MAX_TEXT)
            elif isinstance(inner, (dict, list)):
                if depth == MAX_DEPTH:
                    raise ValueError(f"nested too deep; expected at most {MAX_DEPTH} levels")
                todo.append((inner, depth + 1))
    return value
