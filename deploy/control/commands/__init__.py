"""Commands of a run: fixed, from a schedule, or live from a keyboard, a gamepad or another program."""

from __future__ import annotations

from deploy.control.commands.guard import CommandGuard
from deploy.control.commands.schedule import Schedule, read_schedule
from deploy.control.commands.source import CommandSource, LiveSource
from robots.spec import PolicySpec

__all__ = ["LIVE", "CommandSource", "LiveSource", "Schedule", "live_kind", "open_live", "read_schedule"]

LIVE = ("keyboard", "gamepad", "udp")


def live_kind(text: str) -> str:
    """The kind of a live source: what stands before the colon in `udp:HOST:PORT`, `gamepad:DEVICE` or `keyboard`;
    empty where it is none of them.
    """
    kind, colon, _ = text.partition(":")
    return kind if kind in LIVE and not (kind == "keyboard" and colon) else ""


def open_live(text: str, spec: PolicySpec) -> LiveSource:
    """Open the live source that `--command-from` names.

    Raises:
        CheckError: it is not to be had; one line says why.
        ModuleNotFoundError: a package for it is not installed.
    """
    kind, _, where = text.partition(":")
    guard = CommandGuard.from_spec(spec)
    # imported here: termios is Unix's alone
    if kind == "keyboard":
        from deploy.control.commands.keyboard import Keyboard

        return Keyboard(guard)
    if kind == "gamepad":
        from deploy.control.commands.gamepad import Gamepad

        return Gamepad(guard, where)
    from deploy.control.commands.udp import UdpCommands, parse_address

    return UdpCommands(guard, *parse_address(where))
