"""Reads YAML that a person wrote: small, plain, each key once, and one line about what is wrong with it.

PyYAML's safe loader runs nothing, but it raises whatever its constructors raise (`!!int x` a ValueError, `!!bool x` a
KeyError, deep nesting a RecursionError), keeps the last of a key given twice, and lets aliases grow a few bytes into
gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ToolkitError

MAX_BYTES = 256 * 2**10
MAX_DEPTH = 32
MAX_SCALAR = 4096
QUOTED = 300


class YamlError(ToolkitError):
    """A text is not YAML, or YAML that has no place in a settings file."""


def quote(value: object, limit: int = QUOTED) -> str:
    """How a message shows a value: its repr, cut at `limit` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to write integers of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else f"{text[:limit]}..."


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, of bounded depth, with each key once."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise YamlError(f"line {event.start_mark.line + 1}: an alias (*); expected the value itself")
        if self._depth >= MAX_DEPTH:
            raise YamlError(f"nested more than {MAX_DEPTH} deep; expected settings in sections")
        self._depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_SCALAR:
            line = node.start_mark.line + 1
            raise YamlError(f"line {line}: a value of {len(node.value)} characters; expected at most {MAX_SCALAR}")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # the base class says so
            if key in seen:
                line = key_node.start_mark.line + 1
                raise YamlError(f"line {line}: key {quote(key)} is given twice; expected each once")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text, YAML 1.2 as the number that was meant
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """The one document of a text; None for an empty one.

    Raises:
        YamlError: the text is not YAML, too large, too deep, or has aliases or a key given twice.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES} characters; expected a short text")
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except YamlError:
        raise
    except Exception as error:  # see above: the constructors have no common root
        reason = " ".join(str(error).split()) or type(error).__name__
        raise YamlError(f"not YAML: {reason[:QUOTED]}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: str | Path, expected: str) -> Any:
    """The one document of a file; None for an empty one.

    Args:
        path: the file.
        expected: what it should be, for messages: "a YAML file of ...".

    Raises:
        YamlError: the file cannot be read or is not what `parse_yaml` takes; the message names it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise YamlError(f"{path}: cannot read it ({reason}); expected {expected}") from error
    if len(data) > MAX_BYTES:
        raise YamlError(f"{path}: more than {MAX_BYTES} bytes; expected {expected}")
    try:
        return parse_yaml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not YAML: {error}; expected {expected} in UTF-8") from error
    except YamlError as error:
        raise YamlError(f"{path}: {error}") from error
