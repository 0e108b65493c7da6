"""A bad link: a TCP proxy that delays, jitters, loses, cuts and restores while it runs. Bytes pass through unread."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

# What TCP waits at least before it sends a segment again (Linux), and what its wait doubles to at most [s].
RETRANSMIT_S, RETRANSMIT_MAX_S = 0.2, 3.0


@dataclass
class Way:
    """One direction of the link; change its fields while it runs.

    Attributes:
        delay_s: of every byte [s].
        jitter_s: a further delay, uniform from 0 to this [s]; bytes stay in order.
        loss: share of segments that are lost. TCP sends such a one again after 0.2 s, then 0.4 s and so on; all that
            comes after it waits.
        cut: nothing passes and the connection stays open. What was sent meanwhile passes as soon as this ends; TCP
            itself would take up to twice as long as the cut.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    cut: bool = False

    def takes_s(self) -> float:
        """How long the next segment takes [s]."""
        took, wait = self.delay_s + random.uniform(0.0, self.jitter_s), RETRANSMIT_S
        while random.random() < self.loss:
            took, wait = took + wait, min(2.0 * wait, RETRANSMIT_MAX_S)
        return took


class Proxy:
    """A link from `port` to a server.

    Attributes:
        port: where clients connect.
        there: to the server.
        back: to the client.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self.there, self.back = Way(), Way()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="proxy").start()
        self._ready.wait()

    def reset(self) -> None:
        """Close every connection; new ones are let through."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """Close every connection, and the port."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._stop = asyncio.Event()
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._abort()
        ours = asyncio.all_tasks() - {asyncio.current_task()}
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        both = (writer, far_writer)
        self._writers.update(both)
        ways = [(reader, far_writer, self.there), (far_reader, writer, self.back)]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(self._pass(*way) for way in ways))
        self._writers.difference_update(both)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        segments: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def take() -> None:
            due = 0.0
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    due = max(due, time.monotonic() + way.takes_s())
                    segments.put_nowait((due, data))
            segments.put_nowait((due, b""))

        taking = asyncio.ensure_future(take())
        with contextlib.suppress(OSError):
            while True:
                due, data = await segments.get()
                while way.cut or time.monotonic() < due:
                    await asyncio.sleep(0.002 if way.cut else due - time.monotonic())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        taking.cancel()
        writer.close()


@contextlib.contextmanager
def link(host: str, port: int) -> Iterator[Proxy]:
    """A link to a server, closed after the block."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
