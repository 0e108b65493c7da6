"""Typed settings: frozen dataclasses with bounds beside their fields, plain data in and out, overrides over that.

A class of settings says everything once: names, types, defaults, bounds. Construction in Python and loading from YAML
or JSON go through the same check. A field declared with a class takes its subclasses too; plain data name the subclass
under `kind`.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from toolkit.errors import SettingsError
from toolkit.setting_values import Bound, Dotted, Names, Range, describe, nearest, shown, stripped
from toolkit.strict_json import digest
from toolkit.yaml_file import YamlError, parse_yaml, quote, read_yaml

__all__ = [
    "Bound",
    "Names",
    "Range",
    "Settings",
    "apply_overrides",
    "describe",
    "fields",
    "from_dict",
    "kinds",
    "load",
    "merge",
    "nearest",
]

KIND = "kind"
# Names in one dotted key.
MAX_NAMES = 8
S = TypeVar("S", bound="Settings")
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Settings(abc.ABC):  # noqa: B024  (its subclasses may have abstract methods)
    """Base of every class of settings; subclasses are frozen dataclasses with keyword-only fields.

    A field is bool, int, float, str, Path, Literal, Range, a tuple or a dict[str, ...] of these, other Settings, or
    one of these or None. `Annotated[float, Bound(...)]` bounds it. `field(metadata={"plain": False})` keeps it out of
    the plain form and unchecked.

    Attributes:
        error: what is raised; the outermost class decides.
        noun: stands before the key in messages.
        shorthand: the field that a bare value sets: `upright: 0.5` for `upright: {weight: 0.5}`.
    """

    error: ClassVar[type[SettingsError]] = SettingsError
    noun: ClassVar[str] = "configuration key "
    shorthand: ClassVar[str] = ""

    def __post_init__(self) -> None:
        root = _Root(type(self), None, "", self.who())
        for name, about in fields(type(self)).items():
            value = getattr(self, name)
            settled = _settle(about.hint, value, root, name)
            if settled is not value:
                object.__setattr__(self, name, settled)
        self.check()

    def check(self) -> None:  # noqa: B027  (not every class has such rules)
        """Rules that join several fields; for subclasses, which call `require`."""

    def who(self) -> str:
        """Stands before the key in messages about these settings alone; the fields may not be checked yet."""
        return self.noun

    def require(self, ok: bool, key: str, got: object, expected: str) -> None:
        """Refuse unless `ok`.

        Raises:
            SettingsError: or the class's own, naming the key.
        """
        if not ok:
            raise _Root(type(self), None, "", self.who()).unlike(key, got, expected)

    @classmethod
    def translated(cls, changes: Mapping[Any, Any], base: Settings | None) -> Mapping[Any, Any]:
        """Plain changes with the keys of older versions in their new places; for subclasses."""
        return changes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, resolved; `from_dict` of it is equal to this."""
        return {name: _plain(about.hint, getattr(self, name)) for name, about in fields(type(self)).items()}

    @classmethod
    def from_dict(cls, data: Any, base: Self | None = None, path: str = "") -> Self:
        """See `from_dict` of this module."""
        return from_dict(cls, data, base, path)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the plain form."""
        return digest(self.to_dict())


class _Root(NamedTuple):
    """Whose settings are being made: its class begins messages, its keys are what may have been meant."""

    cls: type[Settings]
    base: Settings | None
    path: str
    noun: str

    def wrong(self, key: str, problem: str) -> SettingsError:
        key = key if key.isprintable() else quote(key)[1:-1]
        return self.cls.error(problem, key=key or "(file)", noun=self.noun)

    def unlike(self, key: str, got: object, expected: str) -> SettingsError:
        return self.wrong(key, f"got {quote(_listed(got))}, expected {expected}")

    def unknown(self, key: str, hint: str) -> SettingsError:
        return self.cls.error(f"{self.noun}{quote(key)} is unknown; {hint}")


class About(NamedTuple):
    """What is known of a field.

    Attributes:
        hint: its type.
        bare: the type without annotations and without None.
        section: its class where it is Settings.
        terms: the class of its values where it is a mapping of named Settings.
        names: it is a mapping, or may be.
        optional: it may be None.
        required: it has no default.
        default: its default; None where it has none.
    """

    hint: Any
    bare: Any
    section: type[Settings] | None
    terms: type[Settings] | None
    names: bool
    optional: bool
    required: bool
    default: Any

    def marker(self, kind: type[M]) -> M | None:
        """The first of the field's annotations that is of a kind."""
        return next((m for m in getattr(self.hint, "__metadata__", ()) if isinstance(m, kind)), None)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Settings)


@functools.cache
def fields(cls: type[Settings]) -> dict[str, About]:
    """What a class declares, in order, without what stays out of the plain form."""
    hints = typing.get_type_hints(cls, include_extras=True)
    out = {}
    for f in dataclasses.fields(cls):
        if not f.init or f.metadata.get("plain") is False:
            continue
        bare, optional = stripped(hints[f.name])
        mapping = next((a for a in (bare, *typing.get_args(bare)) if typing.get_origin(a) is dict), None)
        inner = None if mapping is None else stripped(typing.get_args(mapping)[1])[0]
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        out[f.name] = About(
            hint=hints[f.name],
            bare=bare,
            section=bare if _is_settings(bare) else None,
            terms=inner if _is_settings(inner) else None,
            names=inner is not None,
            optional=optional,
            required=default is dataclasses.MISSING,
            default=None if default is dataclasses.MISSING else default,
        )
    return out


def _abstract(cls: type) -> bool:
    return bool(getattr(cls, "__abstractmethods__", None))


def kinds(cls: type[S]) -> dict[str, type[S]]:
    """A class and its subclasses that can be made, by name.

    Raises:
        SettingsError: two of them share a name.
    """
    out: dict[str, type[S]] = {}
    todo = [cls]
    while todo:
        one = todo.pop()
        todo += one.__subclasses__()
        if _abstract(one):
            continue
        other = out.setdefault(one.__name__, one)
        if other is not one and (other.__module__, other.__qualname__) != (one.__module__, one.__qualname__):
            raise cls.error(
                f"two kinds of {cls.__name__} have the name {one.__name__}: in {other.__module__} and in "
                f"{one.__module__}; expected one of each name; rename one"
            )
        out[one.__name__] = one
    return dict(sorted(out.items()))


def _kind(declared: type[Settings], name: object, root: _Root, path: str) -> type[Settings]:
    known = kinds(declared)
    if isinstance(name, str) and name in known:
        return known[name]
    raise root.wrong(f"{path}.{KIND}" if path else KIND, f"got {quote(name)}; {nearest(name, known)}")


def _number(hint: type, value: Any, root: _Root, key: str, bound: Bound | None, got: Any) -> float:
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
    if origin is dict or _is_settings(hint):
        return isinstance(value, Mapping) or (isinstance(origin, type) and isinstance(value, origin))
    return isinstance(value, hint) if isinstance(hint, type) else hint is Any


def _settle(hint: Any, value: Any, root: _Root, key: str, bound: Bound | None = None, got: Any = None) -> Any:
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
                return _settle(one, value, root, key, bound, got)
        known = [a for a in args if a is not types.NoneType]
        if len(known) == 1:  # X | None: what X says of it is clearer
            return _settle(known[0], value, root, key, bound, got)
        raise root.unlike(key, value, describe(hint))
    if _is_settings(hint):
        return value if isinstance(value, hint) else _resolve(hint, None, [value], root, key, False)
    if origin is tuple:
        many = args[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or (not many and len(value) != len(args)):
            raise root.unlike(key, value, "a list" if many else f"a list of {len(args)}")
        each = (args[0],) * len(value) if many else args
        out = tuple(
            _settle(a, v, root, f"{key}[{i}]" if bound is None else key, bound, got)
            for i, (a, v) in enumerate(zip(each, value, strict=True))
        )
        if hint == Range and not out[0] <= out[1]:
            raise root.unlike(key, out, "low at most high")
        return out
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise root.unlike(key, value, describe(hint))
        return Names({k: _settle(args[1], v, root, f"{key}.{k}", bound) for k, v in value.items()})
    if origin is typing.Literal:
        if not _shaped(hint, value):
            raise root.unlike(key, value, describe(hint))
        return value
    if hint in (int, float):
        return _number(hint, value, root, key, bound, got)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is str and bound is not None and not (isinstance(value, str) and len(value) <= bound.greatest):
        raise root.unlike(key, value, f"a string of at most {shown(bound.greatest)} {bound.what}")
    if not isinstance(value, hint):
        raise root.unlike(key, value, describe(hint))
    return value


def _plain(hint: Any, value: Any) -> Any:
    hint = stripped(hint)[0]
    args = typing.get_args(hint)
    if isinstance(value, Settings):
        data = value.to_dict()
        return data if type(value) is hint else {KIND: type(value).__name__, **data}
    if isinstance(value, tuple):
        each = [Any] * len(value)
        if typing.get_origin(hint) is tuple:
            each = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return [_plain(a, v) for a, v in zip(each, value, strict=True)]
    if isinstance(value, Mapping):
        inner = args[1] if typing.get_origin(hint) is dict else Any
        return {k: _plain(inner, v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _keys(cls: type[Settings], base: Settings | None, prefix: str, seen: tuple[type, ...] = ()) -> Iterator[str]:
    """Every dotted key of settings, or of a class."""
    for name, about in fields(cls).items():
        yield f"{prefix}{name}"
        value = about.default if base is None else getattr(base, name)
        inside = {name: value} if about.section else {f"{name}.{k}": v for k, v in value.items()} if about.terms else {}
        for key, one in inside.items():
            if key != name:
                yield f"{prefix}{key}"
            kind = type(one) if isinstance(one, Settings) else about.section
            if kind is not None and kind not in seen:
                yield from _keys(kind, one, f"{prefix}{key}.", (*seen, cls))


def _hint(word: str, path: str, known: Sequence[str], root: _Root) -> str:
    """What may have been meant: the same name in another section, else the nearest one in this section."""
    prefix = f"{root.path}." if root.path else ""
    here = f"{path}.{word}" if path else word  # a key of the kind that is being replaced
    elsewhere = [k for k in _keys(root.cls, root.base, prefix) if k.rpartition(".")[2] == word and k != here]
    near = [f"{path}.{n}" if path else n for n in difflib.get_close_matches(word, known, n=1, cutoff=0.5)]
    found = elsewhere or near
    return f"did you mean {' or '.join(found)}?" if found else f"known keys: {', '.join(known)}"


def _resolve(
    declared: type[Settings], current: Settings | None, changes: Sequence[Any], root: _Root, path: str, optional: bool
) -> Settings | None:
    """Settings of a declared class or a subclass, from changes one after the other; checked once, at the end."""
    cls = declared if current is None else type(current)
    base, pending, nothing, named = current, [], current is None and optional, False
    for change in changes:
        if change is None:  # an empty section changes nothing
            if optional:
                cls, base, pending, nothing = declared, None, [], True
            continue
        nothing = False
        if isinstance(change, Settings):
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
    about: About, current: Mapping[str, Settings], changes: Sequence[Any], root: _Root, path: str, fresh: bool
) -> dict[str, Any]:
    """A mapping of named settings: a mapping changes one, null takes it out, a new one says its kind."""
    given: dict[str, list[Any]] = {}
    for change in changes:
        if change is not None and not isinstance(change, Mapping):
            raise root.unlike(path, change, "a mapping")
        for name, value in (change or {}).items():
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
        new = isinstance(first, Settings) or (isinstance(first, Mapping) and KIND in first)
        assert about.terms is not None
        if have is None and not new and (not fresh or _abstract(about.terms)):
            raise root.unknown(key, f"{nearest(name, out, path)}; a new one needs a {KIND}, one of "
                               f"{', '.join(kinds(about.terms)) or 'none'}")  # fmt: skip
        made = _resolve(about.terms, have, pending, root, key, False)
        out[name] = typing.cast("Settings", made)
    return out


def _names(current: Any, changes: Sequence[Any], root: _Root, path: str) -> Any:
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


def _last(hint: Any, current: Any, changes: Sequence[Any], root: _Root, path: str) -> Any:
    """The last of several values; where the one before is settings of a union, a mapping changes that."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    declared = next((a for a in typing.get_args(hint) if _is_settings(a)), None)
    for change in changes:
        inside = declared is not None and isinstance(current, declared) and isinstance(change, Mapping)
        current = _resolve(declared, current, [change], root, path, False) if declared and inside else change
    return current


def _build(
    cls: type[Settings], base: Settings | None, changes: Sequence[Mapping[Any, Any]], root: _Root, path: str
) -> Settings:
    """Settings of exactly this class: `base`, or the defaults, with changes. Nested ones are built first."""
    if _abstract(cls):
        raise root.wrong(path, f"got no {KIND}, expected a mapping with a {KIND}, one of {', '.join(kinds(cls))}")
    known = fields(cls)
    given: dict[str, list[Any]] = {}
    for change in changes:
        for name, value in cls.translated(change, base).items():
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
            if base is None and type(current) is not about.section and not _abstract(about.section):
                current = None
            whole = first is not None and not isinstance(first, (Mapping, Settings)) and current is None
            if whole and not about.section.shorthand:
                raise root.unlike(key, first, describe(about.hint))
            values[name] = _resolve(about.section, current, several, root, key, about.optional)
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


def from_dict(cls: type[S], data: Any, base: S | None = None, path: str = "") -> S:
    """Settings from plain values: what `to_dict` gave, or some of it, over `base` or the defaults.

    Without a base, a mapping of named settings is the whole of them; with one it changes them, as `merge` has it.

    Raises:
        SettingsError: a key is unknown (the nearest is named), missing, ill-typed or out of range.
    """
    out = _resolve(cls, base, [{} if data is None else data], _Root(cls, base, path, cls.noun), path, False)
    return typing.cast("S", out)


def merge(base: S, changes: Any, path: str = "") -> S:
    """`base` with changes.

    Sections and mappings of named settings are changed key by key; null takes a named one out, and a new one says its
    `kind`. Lists and mappings of plain values are replaced.

    Args:
        base: what to change; it stays as it is.
        changes: plain values by field.
        path: stands before the keys in messages.

    Raises:
        SettingsError: as `from_dict`.
    """
    return _merge(base, [changes], path)


def _merge(base: S, changes: Sequence[Any], path: str = "") -> S:
    return typing.cast("S", _resolve(type(base), base, changes, _Root(type(base), base, path, base.noun), path, False))


def load(
    base: type[S] | S,
    path: str | Path,
    overrides: Sequence[str] = (),
    expected: str = "a YAML configuration such as configs/kbot_stand.yaml",
) -> S:
    """Settings from a YAML file over a class's defaults or over given ones, with overrides over that.

    Args:
        base: a class, or settings.
        path: the file.
        overrides: see `apply_overrides`.
        expected: what the file should be, for messages.

    Raises:
        SettingsError: the file is missing or not YAML, or a key is wrong; the message names the file.
    """
    path = Path(path)
    error_class = base.error
    if not path.exists():
        raise error_class(f"{path}: no such file; expected {expected}")
    try:
        data = read_yaml(path, expected)
        settings = from_dict(base, data) if isinstance(base, type) and _needs(base) else merge(_made(base), data)
    except YamlError as error:
        raise error_class(str(error)) from error
    except SettingsError as error:
        raise error_class(f"{path}: {error}") from error
    return apply_overrides(settings, overrides)


def _needs(cls: type[Settings]) -> bool:
    return _abstract(cls) or any(about.required for about in fields(cls).values())


def _made(base: type[S] | S) -> S:
    return base() if isinstance(base, type) else base


def apply_overrides(settings: S, overrides: Sequence[str]) -> S:
    """Settings with `key=value` overrides (dotted keys, YAML values), merged first and checked as one.

    Raises:
        SettingsError: an override has no `=`, or its key or value is wrong.
    """
    changes: list[Any] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise settings.error(f"--set {quote(text)}: expected key=value, for example --set ppo.envs=64")
        try:
            nested: Any = parse_yaml(value)
        except YamlError as error:
            raise settings.error(f"--set {quote(text)}: the value is {error}") from error
        names = key.strip().split(".")
        if len(names) > MAX_NAMES:
            raise settings.error(f"--set {quote(text)}: {len(names)} names deep; expected a key such as ppo.envs")
        for name in reversed(names):
            nested = Dotted({name: nested})
        changes.append(nested)
    return _merge(settings, changes) if changes else settings
