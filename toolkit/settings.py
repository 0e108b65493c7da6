"""Typed settings: frozen dataclasses with bounds beside their fields, plain data in and out, overrides over that.

A class of settings says everything once: names, types, defaults, bounds. Construction in Python and loading from YAML
or JSON go through the same check. A field declared with a class takes its subclasses too; plain data name the subclass
under `kind`. toolkit/setting_fields.py reads what a class declares, toolkit/setting_changes.py makes the settings.
"""

from __future__ import annotations

import abc
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from toolkit.errors import SettingsError
from toolkit.setting_changes import Root, resolve, settle
from toolkit.setting_fields import KIND, About, SettingsBase, fields, is_abstract, kinds
from toolkit.setting_values import Bound, Dotted, Names, Range, describe, nearest
from toolkit.strict_json import digest
from toolkit.yaml_file import YamlError, parse_yaml, quote, read_yaml

__all__ = [
    "KIND",
    "About",
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

# Names in one dotted key.
MAX_NAMES = 8
S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings(SettingsBase, abc.ABC):
    """Base of every class of settings; subclasses are frozen dataclasses with keyword-only fields.

    A field is bool, int, float, str, Path, Literal, Range, a tuple or a dict[str, ...] of these, other Settings, or
    one of these or None. `Annotated[float, Bound(...)]` bounds it. `field(metadata={"plain": False})` keeps it out of
    the plain form and unchecked.

    Attributes:
        error: what is raised; the outermost class decides.
        noun: stands before the key in messages.
        shorthand: the field that a bare value sets: `upright: 0.5` for `upright: {weight: 0.5}`.
    """

    def __post_init__(self) -> None:
        root = Root(type(self), None, "", self.who())
        for name, about in fields(type(self)).items():
            value = getattr(self, name)
            settled = settle(about.hint, value, root, name)
            if settled is not value:
                object.__setattr__(self, name, settled)
        self.check()

    def check(self) -> None:
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
            raise Root(type(self), None, "", self.who()).unlike(key, got, expected)

    @classmethod
    def from_dict(cls, data: Any, base: Self | None = None, path: str = "") -> Self:
        """See `from_dict` of this module."""
        return from_dict(cls, data, base, path)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the plain form."""
        return digest(self.to_dict())


def from_dict(cls: type[S], data: Any, base: S | None = None, path: str = "") -> S:
    """Settings from plain values: what `to_dict` gave, or some of it, over `base` or the defaults.

    Without a base, a mapping of named settings is the whole of them; with one it changes them, as `merge` has it.

    Raises:
        SettingsError: a key is unknown (the nearest is named), missing, ill-typed or out of range.
    """
    out = resolve(cls, base, [{} if data is None else data], Root(cls, base, path, cls.noun), path, False)
    return typing.cast("S", out)


def merge(base: S, changes: Any, path: str = "") -> S:
    """`base` with changes.

    Sections and mappings of named settings are changed key by key; null takes a named one out, and a new one says its
    `kind`. Null or `{}` for a whole mapping of named settings empties it; for a section it changes nothing. Lists and
    mappings of plain values are replaced.

    Args:
        base: what to change; it stays as it is.
        changes: plain values by field.
        path: stands before the keys in messages.

    Raises:
        SettingsError: as `from_dict`.
    """
    return _merge(base, [changes], path)


def _merge(base: S, changes: Sequence[Any], path: str = "") -> S:
    return typing.cast("S", resolve(type(base), base, changes, Root(type(base), base, path, base.noun), path, False))


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
    return is_abstract(cls) or any(about.required for about in fields(cls).values())


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
