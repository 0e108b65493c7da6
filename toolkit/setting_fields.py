"""What a class of settings declares: its fields and its kinds, and their plain form."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from toolkit.errors import SettingsError
from toolkit.setting_values import stripped

KIND = "kind"
B = TypeVar("B", bound="SettingsBase")
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class SettingsBase:
    """What the checks need to know of a class of settings; toolkit.settings.Settings says what each is."""

    error: ClassVar[type[SettingsError]] = SettingsError
    noun: ClassVar[str] = "configuration key "
    shorthand: ClassVar[str] = ""

    @classmethod
    def translated(cls, changes: Sequence[Mapping[Any, Any]], base: SettingsBase | None) -> Sequence[Mapping[Any, Any]]:
        """Plain changes, one after the other, with the keys of older versions in their new places; for subclasses."""
        return changes

    def bounded(self) -> Mapping[str, float]:
        """Numbers, by name, that a Bound beside a field of these settings holds for; for subclasses."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, resolved; `from_dict` of it is equal to this."""
        return {name: plain(about.hint, getattr(self, name)) for name, about in fields(type(self)).items()}


class About(NamedTuple):
    """What is known of a field.

    Attributes:
        hint: its type.
        bare: the type without annotations and without None.
        section: its class where it is settings.
        terms: the class of its values where it is a mapping of named settings.
        names: it is a mapping, or may be.
        optional: it may be None.
        required: it has no default.
        default: its default; None where it has none.
    """

    hint: Any
    bare: Any
    section: type[SettingsBase] | None
    terms: type[SettingsBase] | None
    names: bool
    optional: bool
    required: bool
    default: Any

    def marker(self, kind: type[M]) -> M | None:
        """The first of the field's annotations that is of a kind."""
        return next((m for m in getattr(self.hint, "__metadata__", ()) if isinstance(m, kind)), None)


def is_settings(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, SettingsBase)


@functools.cache
def fields(cls: type[SettingsBase]) -> dict[str, About]:
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
            section=bare if is_settings(bare) else None,
            terms=inner if is_settings(inner) else None,
            names=inner is not None,
            optional=optional,
            required=default is dataclasses.MISSING,
            default=None if default is dataclasses.MISSING else default,
        )
    return out


def is_abstract(cls: type) -> bool:
    return bool(getattr(cls, "__abstractmethods__", None))


def kinds(cls: type[B]) -> dict[str, type[B]]:
    """A class and its subclasses that can be made, by name.

    Raises:
        SettingsError: two of them share a name.
    """
    out: dict[str, type[B]] = {}
    todo = [cls]
    while todo:
        one = todo.pop()
        todo += one.__subclasses__()
        if is_abstract(one):
            continue
        other = out.setdefault(one.__name__, one)
        if other is not one and (other.__module__, other.__qualname__) != (one.__module__, one.__qualname__):
            raise cls.error(
                f"two kinds of {cls.__name__} have the name {one.__name__}: in {other.__module__} and in "
                f"{one.__module__}; expected one of each name; rename one"
            )
        out[one.__name__] = one
    return dict(sorted(out.items()))


def plain(hint: Any, value: Any) -> Any:
    hint = stripped(hint)[0]
    args = typing.get_args(hint)
    if isinstance(value, SettingsBase):
        data = value.to_dict()
        return data if type(value) is hint else {KIND: type(value).__name__, **data}
    if isinstance(value, tuple):
        each = [Any] * len(value)
        if typing.get_origin(hint) is tuple:
            each = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return [plain(a, v) for a, v in zip(each, value, strict=True)]
    if isinstance(value, Mapping):
        inner = args[1] if typing.get_origin(hint) is dict else Any
        return {k: plain(inner, v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value
