"""Where a KOS server is and of which kind: what `ksim run`, `excite`, `check` and `damp` are told of it alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, TypeVar

from deploy.errors import OptionError
from deploy.robot.dialects import GyroUnit, Server
from toolkit.cli import Option
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings, fields


@dataclass(frozen=True, kw_only=True)
class AtServer(Settings):
    """A server's place.

    Attributes:
        host: its address or name.
        port: its port.
    """

    host: Annotated[str, Option("where the KOS server is")] = "127.0.0.1"
    port: Annotated[int, Option("its port"), Bound(1, 65535, "a port")] = 50051
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class KnownServer(AtServer):
    """A server's place and kind.

    Attributes:
        server: which kind it is, see deploy/robot/dialects.py; "auto" finds out.
        gyro_unit: what its gyro speaks, "deg/s" or "rad/s"; None takes what its kind speaks.
    """

    server: Annotated[Server, Option("which KOS server it is")] = "auto"
    gyro_unit: Annotated[GyroUnit | None, Option("what the server sends (default: what its kind sends)")] = None


@dataclass(frozen=True, kw_only=True)
class DrivenServer(KnownServer):
    """A server that a control loop drives.

    Attributes:
        step_lock: it is a simulator in lock step; time is then the simulator's.
        late_max: the loop may be slower than in training by this share, over a second; more ends the run.
        watchdog_s: a process of its own damps the robot when the loop has missed its beat for so long [s], or has
            died; at least three control periods. 0 runs without it, as lock step always does.
    """

    step_lock: Annotated[bool, Option("advance a twin in lock step (ksim twin --lockstep)")] = False
    late_max: Annotated[
        float,
        Option("the loop may be slower by this share, over a second", flag="--max-late", metavar="SHARE"),
        Bound(0, 1000, "a share"),
    ] = 0.25
    watchdog_s: Annotated[
        float,
        Option(
            "damp the robot when the loop hangs or hears nothing for so long; 0: never", flag="--watchdog", metavar="S"
        ),
        Bound(0, 60, "seconds"),
    ] = 0.15


S = TypeVar("S", bound=AtServer)


def addressed(options: S) -> S:
    """Options whose `host` is a host alone: a port behind it is their `port`.

    Raises:
        OptionError: what is behind the host is no port, or `--port` says another one.
    """
    host, colon, text = options.host.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address has several colons
        return options
    if not host or not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise OptionError(f"--host {options.host}: expected a host, or HOST:PORT with a port from 1 to 65535")
    if options.port not in (fields(type(options))["port"].default, int(text)):
        raise OptionError(f"--host {options.host} and --port {options.port}: two ports; expected one of them")
    return replace(options, host=host, port=int(text))
