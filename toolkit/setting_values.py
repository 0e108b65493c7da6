"""What a setting's value may be, in types and in words. toolkit/settings.py checks by it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from toolkit.strict_json import MAX_TEXT, check_text
from toolkit.yaml_file import quote

# Characters of a name: of a term, of a command, of anything that is a key of a mapping.
NAME = 200
# [low, high], low at most high
Range = tuple[float, float]


class Bound(NamedTuple):
    """What a number may be, or both ends of a range, or each number of a list or mapping; of a string, its length.

    Attributes:
        least: the least value.
        greatest: the greatest value.
        what: what it is, with its unit.
    """

    least: float
    greatest: float
    what: str

    def __str__(self) -> str:
        """As messages have it: `0 to 1 (a share)`."""
        return f"{shown(self.least)} to {shown(self.greatest)} ({self.what})"


def shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def name_problem(name: str) -> str:
    """Why a name cannot stand in a file or a log; empty for one that can."""
    return "expected a name that is not empty" if not name else text_problem(name, NAME)


def text_problem(text: str, limit: int = MAX_TEXT) -> str:
    """Why a text cannot stand in a file or a log; empty for one that can."""
    try:
        check_text(text, limit)
    except ValueError as error:
        return f"got {error}"
    return ""


class Names(dict[str, Any]):
    """A mapping that stays as it is, and so has a hash; equal to a dict of the same items."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _fixed(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("settings do not change; make new ones with dataclasses.replace or toolkit.settings.merge")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _fixed  # type: ignore

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return Names, (dict(self),)


class Dotted(dict[str, Any]):
    """Keys that were named one by one: in a mapping of plain values they change those and leave the others."""


def stripped(hint: Any) -> tuple[Any, bool]:
    """A hint without Annotated and without None, and whether it had None."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [h for h in typing.get_args(hint) if h is not types.NoneType]
        if len(inner) < len(typing.get_args(hint)) and len(inner) == 1:
            return stripped(inner[0])[0], True
    return hint, False


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def describe(hint: Any) -> str:
    """What a field of this type takes, for messages."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _or([str(a) for a in args])
    if origin in (types.UnionType, typing.Union):
        return _or([describe(a) for a in args])
    if origin is tuple:
        return "a list" if args[-1] is Ellipsis else "[low, high]" if hint == Range else f"a list of {len(args)}"
    if origin is dict:
        return "a mapping of names" if args[1] is str else f"a mapping of name to {describe(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "a mapping"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path"}
    return words.get(hint, "null" if hint is types.NoneType else str(hint))


def nearest(name: object, known: Iterable[str], path: str = "") -> str:
    """What may have been meant, and what there is, for messages; `path` stands before the name meant."""
    known = list(known)
    near = difflib.get_close_matches(name if isinstance(name, str) else quote(name), known, n=1, cutoff=0.5)
    meant = f"did you mean {path}.{near[0]}? ".replace(" .", " ") if near else ""
    return f"{meant}there is {', '.join(known) or 'none'}"
