"""`--host HOST:PORT` means both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from deploy.errors import OptionError
from toolkit.settings import Settings, fields

S = TypeVar("S", bound=Settings)


def addressed(options: S) -> S:
    """Options whose `host` is a host alone: a port behind it is their `port`.

    Raises:
        OptionError: what is behind the host is no port, or `--port` says another one.
    """
    told: Any = options
    host, colon, text = told.host.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address has several colons
        return options
    if not host or not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise OptionError(f"--host {told.host}: expected a host, or HOST:PORT with a port from 1 to 65535")
    if told.port not in (fields(type(options))["port"].default, int(text)):
        raise OptionError(f"--host {told.host} and --port {told.port}: two ports; expected one of them")
    return replace(options, host=host, port=int(text))
