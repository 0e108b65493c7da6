"""Settings from changes one after the other: each value settled to its type, each mistake one line.

toolkit/settings.py says what the rules are and has the functions for everybody else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import SettingsError
from toolkit.setting_fields import KIND, About, SettingsBase, fields, is_abstract, is_settings, kinds
from toolkit.setting_values import (
    Bound,
    Dotted,
    Names,
    Range,
    describe,
    name_problem,
    nearest,
    shown,
    stripped,
    text_problem,
)
from toolkit.yaml_file import quote


class Root(NamedTuple):
    """Whose settings are being made: its class begins messages, its keys are what may have been meant."""

    cls: type[SettingsBase]
    base: SettingsBase | None
    path: str
    noun: str

    def wrong(self, key: str, problem: str) -> SettingsError:
        key = key if key.isprintable() else quote(key)[1:-1]
        return self.cls.error(problem, key=key or "(file)", noun=self.noun)

    def unlike(self, key: str, got: object, expected: str) -> SettingsError:
        return self.wrong(key, f"got {quote(_listed(got))}, expected {expected}")

    def unknown(self, key: str, hint: str) -> SettingsError:
        return self.cls.error(f"{self.noun}{quote(key)} is unknown; {hint}")


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _kind(declared: type[SettingsBase], name: object, root: Root, path: str) -> type[SettingsBase]:
    known = kinds(declared)
    if isinstance(name, str) and name in known:
        return known[name]
    raise root.wrong(f"{path}.{KIND}" if path else KIND, f"got {quote(name)}; {nearest(name, known)}")


def _number(hint: type, value: Any, root: Root, key: str, bound: Bound | None, got: Any) -> float:
    whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or (hint is int and not whole):
        raise root.unlike(key, value, describe(hint))
    real: Any = value
    try:
        number = int(real) if hint is int else float(real)
    except OverflowError:  # an integer may be too large for a float
        number = math.inf if real > 0 else -math.inf
    finite = hint is int or math.isfinite(number)
    if bound is not None and (finite or not math.isnan(number)) and not bound.least <= number <= bound.greatest:
        raise root.unlike(key, got, str(bound))
    if not finite and (bound is None or math.isnan(number)):
        raise root.unlike(key, value, "a number")
    return number


def _shaped(hint: Any, value: Any) -> bool:
    """Whether a value looks as if it were meant for this alternative of a union."""
    hint = stripped(hint)[0]
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return any(type(a) is type(value) and a == value for a in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if hint in (int, float):
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if origin is dict or is_settings(hint):
        return isinstance(value, Mapping) or (isinstance(origin, type) and isinstance(value, origin))
    return isinstance(value, hint) if isinstance(hint, type) else hint is Any


def settle(hint: Any, value: Any, root: Root, key: str, bound: Bound | None = None, got: Any = None) -> Any:
    """A value as the declared type, or an error that says what was expected.

    Args:
        hint: the type.
        value: typed or plain.
        root: whose settings these are.
        key: the dotted key.
        bound: of every number in it.
        got: the whole value, for messages; by default `value`.
    """
    while hasattr(hint, "__metadata__"):
        own = next((m for m in hint.__metadata__ if isinstance(m, Bound)), None)
        bound, got = (bound, got) if own is None else (own, value)
        hint = hint.__origin__
    got = value if got is None else got
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        for one in args:
            if _shaped(one, value):
                return settle(one, value, root, key, bound, got)
        known = [a for a in args if a is not types.NoneType]
        if len(known) == 1:  # X | None: what X says of it is clearer
            return settle(known[0], value, root, key, bound, got)
        raise root.unlike(key, value, describe(hint))
    if is_settings(hint):
        made = value if isinstance(value, hint) else resolve(hint, None, [value], root, key, False)
        for name, number in made.bounded().items() if bound is not None and made is not None else ():
            _number(float, number, root, f"{key}.{name}", bound, number)
        return made
    if origin is tuple:
        many = args[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or (not many and len(value) != len(args)):
            raise root.unlike(key, value, "a list" if many else f"a list of {len(args)}")
        each = (args[0],) * len(value) if many else args
        out = tuple(
            settle(a, v, root, f"{key}[{i}]" if bound is None else key, bound, got)
            for i, (a, v) in enumerate(zip(each, value, strict=True))
        )
        if hint == Range and not out[0] <= out[1]:
            raise root.unlike(key, out, "low at most high")
        return out
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise root.unlike(key, value, describe(hint))
        for name in value:
            if problem := name_problem(name):
                raise root.wrong(f"{key}.{name[:40]}", problem)
        return Names({k: settle(args[1], v, root, f"{key}.{k}", bound) for k, v in value.items()})
    if origin is typing.Literal:
        if not _shaped(hint, value):
            raise root.unlike(key, value, describe(hint))
        return value
    if hint in (int, float):
        return _number(hint, value, root, key, bound, got)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (
        hint is str
        and bound is not None
        and not (isinstance(value, str) and bound.least <= len(value) <= bound.greatest)
    ):
        length = f"{shown(bound.least)} to" if bound.least else "at most"
        raise root.unlike(key, value, f"a string of {length} {shown(bound.greatest)} {bound.what}")
    if hint is str and isinstance(value, str) and (problem := text_problem(value)):
        raise root.wrong(key, problem)
    if not isinstance(value, hint):
        raise root.unlike(key, value, describe(hint))
    return value


# Of more keys than these none is likelier to be meant than another.
MOST_MEANT = 3


def _keys(
    cls: type[SettingsBase], base: SettingsBase | None, prefix: str, seen: tuple[type, ...] = ()
) -> Iterator[str]:
    """Every dotted key of settings, or of a class."""
    for name, about in fields(cls).items():
        yield f"{prefix}{name}"
        value = about.default if base is None else getattr(base, name)
        terms = {f"{name}.{k}": v for k, v in (value or {}).items()} if about.terms else {}
        inside = {name: value} if about.section else terms
        for key, one in inside.items():
            if key != name:
                yield f"{prefix}{key}"
            kind = type(one) if isinstance(one, SettingsBase) else about.section
            if kind is not None and kind not in seen:
                yield from _keys(kind, one, f"{prefix}{key}.", (*seen, cls))


def _hint(word: str, path: str, known: Sequence[str], root: Root) -> str:
    """What may have been meant: the same name in another section, else the nearest one in this section.

    A name that stands in many sections tells nothing.
    """
    prefix = f"{root.path}." if root.path else ""
    here = f"{path}.{word}" if path else word  # a key of the kind that is being replaced
    elsewhere = [k for k in _keys(root.cls, root.base, prefix) if k.rpartition(".")[2] == word and k != here]
    near = [f"{path}.{n}" if path else n for n in difflib.get_close_matches(word, known, n=1, cutoff=0.5)]
    found = elsewhere if 0 < len(elsewhere) <= MOST_MEANT else near
    return f"did you mean {' or '.join(found)}?" if found else f"known keys: {', '.join(known)}"


def resolve(
    declared: type[SettingsBase],
    current: SettingsBase | None,
    changes: Sequence[Any],
    root: Root,
    path: str,
    optional: bool,
) -> SettingsBase | None:
    """Settings of a declared class or a subclass, from changes one after the other; checked once, at the end."""
    cls = declared if current is None else type(current)
    base, pending, nothing, named = current, [], current is None and optional, False
    for change in changes:
        if change is None:  # an empty section changes nothing
            if optional:
                cls, base, pending, nothing = declared, None, [], True
            continue
        nothing = False
        if isinstance(change, SettingsBase):
            if not isinstance(change, declared):
                raise root.unlike(path, change, f"a {declared.__name__}")
            cls, base, pending = type(change), change, []
            continue
        if not isinstance(change, Mapping):
            if not cls.shorthand:
                inside = "" if path else f" with {', '.join(fields(cls))}"
                raise root.unlike(path, change, f"a mapping{inside}")
            change = {cls.shorthand: change}
        if KIND in change:
            found = _kind(declared, change[KIND], root, path)
            if found is not cls:  # what an earlier change said of another kind by name goes with it
                cls, base, pending = found, None, [] if named else pending
            named = True
            change = {k: v for k, v in change.items() if k != KIND}
        pending.append(change)
    if nothing:
        return None
    return base if base is not None and not pending else _build(cls, base, pending, root, path)


def _terms(
    about: About, current: Mapping[str, SettingsBase], changes: Sequence[Any], root: Root, path: str, fresh: bool
) -> dict[str, Any]:
    """A mapping of named settings: a mapping changes one, null takes it out, a new one says its kind.

    Null or a mapping of nothing for the whole takes all out.
    """
    given: dict[str, list[Any]] = {}
    for change in changes:
        if change is not None and not isinstance(change, Mapping):
            raise root.unlike(path, change, "a mapping")
        if not change:
            current, given = {}, {}
            continue
        for name, value in change.items():
            if not isinstance(name, str):
                raise root.unlike(f"{path}.{quote(name)}", name, "a name")
            given.setdefault(name, []).append(value)
    out = {} if fresh else dict(current)
    for name, values in given.items():
        key, have, pending = f"{path}.{name}", out.get(name), []
        for value in values:
            if value is not None:
                pending.append(value)
                continue
            if have is None and not pending:
                raise root.unknown(key, nearest(name, out, path))
            have, pending = None, []
            out.pop(name, None)
        if not pending:
            continue
        first = pending[0]
        new = isinstance(first, SettingsBase) or (isinstance(first, Mapping) and KIND in first)
        assert about.terms is not None
        if have is None and not new and (not fresh or is_abstract(about.terms)):
            raise root.unknown(key, f"{nearest(name, out, path)}; a new one needs a {KIND}, one of "
                               f"{', '.join(kinds(about.terms)) or 'none'}")  # fmt: skip
        made = resolve(about.terms, have, pending, root, key, False)
        out[name] = typing.cast("SettingsBase", made)
    return out


def _names(current: Any, changes: Sequence[Any], root: Root, path: str) -> Any:
    """A mapping of plain values: a whole one replaces it, keys named one by one change those alone."""
    for change in changes:
        if not isinstance(change, Dotted):
            current = change
            continue
        current = dict(current) if isinstance(current, Mapping) else {}
        for name, value in change.items():
            if value is not None:
                current[name] = value
            elif name in current:
                del current[name]
            else:
                raise root.unknown(f"{path}.{name}", nearest(name, current, path))
    return current


def _last(hint: Any, current: Any, changes: Sequence[Any], root: Root, path: str) -> Any:
    """The last of several values; where the one before is settings of a union, a mapping changes that."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    declared = next((a for a in typing.get_args(hint) if is_settings(a)), None)
    for change in changes:
        inside = declared is not None and isinstance(current, declared) and isinstance(change, Mapping)
        current = resolve(declared, current, [change], root, path, False) if declared and inside else change
    return current


def _build(
    cls: type[SettingsBase], base: SettingsBase | None, changes: Sequence[Mapping[Any, Any]], root: Root, path: str
) -> SettingsBase:
    """Settings of exactly this class: `base`, or the defaults, with changes. Nested ones are built first."""
    if is_abstract(cls):
        raise root.wrong(path, f"got no {KIND}, expected a mapping with a {KIND}, one of {', '.join(kinds(cls))}")
    known = fields(cls)
    given: dict[str, list[Any]] = {}
    for change in cls.translated(changes, base):
        for name, value in change.items():
            if not isinstance(name, str) or name not in known:
                word = name if isinstance(name, str) else quote(name)
                key = f"{path}.{word}" if path else word
                raise root.unknown(key, _hint(word, path, list(known), root))
            given.setdefault(name, []).append(value)
    values: dict[str, Any] = {}
    for name, several in given.items():
        about, key = known[name], f"{path}.{name}" if path else name
        current = about.default if base is None else getattr(base, name)
        if about.section is not None:
            if not about.optional:  # an empty section changes nothing
                several = [v for v in several if v is not None]
                if not several and about.required and base is None:
                    raise root.unlike(key, None, "a mapping")
                if not several:
                    continue
            first = several[0]
            # without a kind, data that are whole mean the declared class; see to_dict
            if base is None and type(current) is not about.section and not is_abstract(about.section):
                current = None
            whole = first is not None and not isinstance(first, (Mapping, SettingsBase)) and current is None
            if whole and not about.section.shorthand:
                raise root.unlike(key, first, describe(about.hint))
            values[name] = resolve(about.section, current, several, root, key, about.optional)
        elif about.terms is not None:
            values[name] = _terms(about, current or {}, several, root, key, base is None)
        elif about.names:
            values[name] = _names(current, several, root, key)
        else:
            values[name] = _last(about.hint, current, several, root, key)
    missing = [n for n, about in known.items() if about.required and base is None and n not in values]
    if missing:
        key = f"{path}.{missing[0]}" if path else missing[0]
        raise root.wrong(key, f"is missing, expected {describe(known[missing[0]].hint)}")
    try:
        return cls(**values) if base is None else dataclasses.replace(base, **values)
    except SettingsError as error:
        if not error.key:
            raise
        raise root.wrong(f"{path}.{error.key}" if path else error.key, error.problem) from None
