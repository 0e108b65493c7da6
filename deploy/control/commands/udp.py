"""Commands from another program, as JSON over UDP.

Followed: pyfirmware's firmware/commands/udp_listener.py. A datagram is one JSON object of commands by name, or holds
it under "commands": `{"xvel": 0.3, "yawrate": -0.1}` or `{"commands": {"xvel": 0.3}}`. `{"type": "reset"}` takes all to
zero. A name that is not in it keeps its value. Port 10000. Names are K-Scale's; capitals do not matter, since its older
senders write XVel.

Ours beside: on loopback unless told otherwise (theirs listens on every interface); a sender that was silent for as long
as the guard allows starts again from zero; a datagram that is no such object, is longer than 4096 bytes, has no command
of the policy, or for one of them a value that is no finite number, is ignored as a whole, and is no sign of life.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
from typing import Any

from deploy.control.commands.guard import CommandGuard
from deploy.control.commands.source import WAIT_S, LiveSource
from deploy.errors import CheckError
from robots.command_names import known_as
from toolkit.strict_json import loads

HOST, PORT = "127.0.0.1", 10000
DATAGRAM_MAX = 4096
# so many datagrams in a row, then a pause: whatever is sent, the control loop gets the interpreter
BATCH, PAUSE_S = 8, 0.002
UNKNOWN_MAX = 16


def parse_address(text: str) -> tuple[str, int]:
    """`""`, `"HOST"`, `"PORT"` or `"HOST:PORT"`; an IPv6 host in square brackets.

    Raises:
        CheckError: it is none of these.
    """
    host, port = text, str(PORT)
    if text.isdigit():
        host, port = "", text
    elif text.count(":") == 1 or "]:" in text:
        host, _, port = text.rpartition(":")
    if (
        not port.isdigit()
        or len(port) > 5
        or not 1 <= int(port) <= 65535
        or (":" in host and host[0] + host[-1] != "[]")
    ):
        raise CheckError(f"--command-from udp:{text[:80]}: expected udp, udp:PORT, udp:HOST or udp:HOST:PORT")
    return host.strip("[]") or HOST, int(port)


class Datagrams:
    """What datagrams make of the command. Arithmetic alone.

    Attributes:
        values: what is asked for now (commands,).
        unknown: names that the policy does not take, the first few.
    """

    def __init__(self, guard: CommandGuard) -> None:
        self._guard, self.values = guard, guard.rest.copy()
        self.unknown: list[str] = []

    def reset(self) -> None:
        """All commands to zero."""
        self.values = self._guard.rest.copy()

    def take(self, data: bytes) -> str:
        """Take a datagram; why it is ignored, empty where it is not.

        Never raises, whatever it is.
        """
        if len(data) > DATAGRAM_MAX:
            return f"more than {DATAGRAM_MAX} bytes"
        try:
            message: Any = loads(data)
        except ValueError as error:
            return str(error)
        if not isinstance(message, dict):
            return f"a JSON {type(message).__name__}; expected an object of commands by name"
        if message.get("type") == "reset":
            self.reset()
            return ""
        commands = message.get("commands", message)
        if not isinstance(commands, dict):
            return f"commands is a {type(commands).__name__}; expected an object of commands by name"
        values, known = self.values.copy(), 0
        for sent, value in commands.items():
            name = known_as(sent.lower(), self._guard.names)
            if name not in self._guard.names:
                if sent not in self.unknown and len(self.unknown) < UNKNOWN_MAX:
                    self.unknown.append(sent)
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                return f"{name}: got {value!r:.40}, expected a finite number"
            values[self._guard.names.index(name)] = value
            known += 1
        if not known:
            return f"no command of this policy in it ({', '.join(self._guard.names)})"
        self.values = values
        return ""


class UdpCommands(LiveSource):
    """A socket that listens for datagrams.

    Args:
        guard: between the sender and the policy.
        host: where to listen.
        port: its port.

    Raises:
        CheckError: it cannot listen there.
    """

    kind = "udp"

    def __init__(self, guard: CommandGuard, host: str = HOST, port: int = PORT) -> None:
        super().__init__(guard)
        self._datagrams, self._told_ignored, self._told_unknown = Datagrams(guard), False, 0
        where = f"{host}:{port}"
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            try:
                self._socket.bind(address)
            except OSError:
                self._socket.close()
                raise
        except OSError as error:
            raise CheckError(
                f"--command-from udp: cannot listen on {where} ({error.strerror or error}); expected a free port of "
                "this machine; end the program that has it, or name another: --command-from udp:HOST:PORT"
            ) from error
        self._socket.settimeout(WAIT_S)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        if not ipaddress.ip_address(self.address[0].split("%")[0]).is_loopback:
            self.warning = f"commands come by UDP on {where}: everybody who can reach that drives the robot"
        self._thread.start()

    def _read(self) -> None:
        for _ in range(BATCH):
            try:
                data = self._socket.recv(DATAGRAM_MAX + 1)
            except TimeoutError:
                return
            if self._clock() - self._newest[1] > self.guard.silence_s:
                self._datagrams.reset()
            ignored = self._datagrams.take(data)
            if not ignored:
                self._put(self._datagrams.values)
            self._tell(ignored)
        self._closing.wait(PAUSE_S)

    def _tell(self, ignored: str) -> None:
        if ignored and not self._told_ignored:
            self._told_ignored = True
            self.tell(f"a datagram is ignored: {ignored} (told once)")
        unknown = self._datagrams.unknown
        if len(unknown) > self._told_unknown:
            self.tell(f"not commands of this policy, ignored: {', '.join(unknown[self._told_unknown :])}")
            self._told_unknown = len(unknown)

    def close(self) -> None:
        """End the thread and free the port."""
        super().close()
        with contextlib.suppress(OSError):
            self._socket.close()
