"""`--host HOST:PORT` means both."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar

from deploy.errors import OptionError


class Addressed(Protocol):
    """Options that name a server."""

    __dataclass_fields__: Any

    @property
    def host(self) -> str:
        """Where it is."""
        ...

    @property
    def port(self) -> int:
        """Its port."""
        ...


A = TypeVar("A", bound=Addressed)


def addressed(options: A) -> A:
    """Options whose host is a host alone: a port behind it is the port.

    Raises:
        OptionError: what is behind the host is no port, or `--port` says another one.
    """
    host, colon, text = options.host.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address has several colons
        return options
    default = next(f.default for f in dataclasses.fields(options) if f.name == "port")
    if not host or not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise OptionError(f"--host {options.host}: expected a host, or HOST:PORT with a port from 1 to 65535")
    if options.port not in (default, int(text)):
        raise OptionError(f"--host {options.host} and --port {options.port}: two ports; expected one of them")
    return dataclasses.replace(options, host=host, port=int(text))
