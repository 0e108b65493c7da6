"""What a KOS server answered to a call, or why it did not: told apart, and short enough for one line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
import grpc.aio

from deploy.errors import FaultError

# No answer came: the server is gone, or too slow.
LOST = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
# Faults named in one message, and how much of what a server says of each.
LISTED, _TEXT_MAX = 6, 300
_UNREAD = "its answer cannot be read; expected a KOS server's; look whether it is another version or program"


def one_line(text: object) -> str:
    """What a server says, short, and without what a terminal would obey."""
    line = " ".join(str(text)[: 4 * _TEXT_MAX].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= _TEXT_MAX else f"{line[:_TEXT_MAX]}..."


def first_few(lines: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return f"{'; '.join(lines[:LISTED])}{more}"


async def answers_of(*calls: Awaitable[Any]) -> list[Any]:
    """What each of concurrent calls gave, or the error; gRPC gives None for bytes that are no such message."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return [FaultError(_UNREAD) if answer is None else answer for answer in answers]


def said_by(error: BaseException) -> str:
    """A call's failure in a few words."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower().replace('_', ' ')} ({one_line(error.details() or '')})"
    return one_line(error) or type(error).__name__


def said_no(answer: BaseException) -> bool:
    """Whether the server itself said no, or something else, and so is there."""
    return isinstance(answer, FaultError) or (isinstance(answer, grpc.aio.AioRpcError) and answer.code() not in LOST)
