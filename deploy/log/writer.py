"""The log's writer: a process of its own, so that neither writing numbers out nor a slow disk holds the control loop.

The loop starts it in a session of its own: Ctrl-C in the terminal does not reach it. They share a socket. The loop
sends frames, and never waits for them to be taken; the writer answers with what is on disk, and with what went wrong.
Where the loop's end closes without a word, as after `kill -9`, the writer writes what has come and closes the file.

The file is MCAP with the protobuf messages of deploy/log/tick.py; a metadata record `run` with the policy's
specification and the settings, one `result` when the run ended in order; the bundle's own bytes as the attachment
`policy.kinfer`, so that the log alone is enough for a replay. A chunk goes to the system once a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcap.writer import Writer

from deploy.log.tick import Packer
from deploy.log.timing import STAGES

FORMAT = 2
BUNDLE_NAME = "policy.kinfer"
# What the loop sends: the head; the bundle, upon which the file is opened; a tick; an event; the end.
HEAD, OPEN, TICK, EVENT, CLOSE = range(5)
FRAME = struct.Struct("<IB")
FLUSH_S = 1.0
# What comes is taken so often: to wake a process that waits for it would cost the loop as much as all else of a tick's
# log. More than so many bytes at once are a loop that is faster than the clock.
POLL_S, FAST = 0.02, 1 << 14
# Bytes of messages in a chunk, about a second of a K-Bot's: a run in lock step is faster than the clock.
CHUNK = 1 << 18
MOVED = "it was deleted or moved while it was being written"


class _Output:
    """A file to which everything that was written goes at once at a flush, or nothing of it."""

    def __init__(self, handle: int) -> None:
        self._handle, self._done, self._held = handle, 0, bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def tell(self) -> int:
        return self._done + len(self._held)

    def flush(self) -> None:
        """Hand it to the system. What a full disk did not take is cut off again, and kept for the next time."""
        at = 0
        try:
            while at < len(self._held):
                with memoryview(self._held) as held:
                    at += os.write(self._handle, held[at:])
        except OSError:
            with contextlib.suppress(OSError):  # a device
                os.ftruncate(self._handle, self._done)
                os.lseek(self._handle, self._done, os.SEEK_SET)
            raise
        self._done += at
        self._held.clear()


class LogFile:
    """A log on disk.

    Args:
        path: the file.
        epoch_ns: the run's start, since 1970.
        head: the metadata record `run`, plain JSON values.
        bundle: the .kinfer file's bytes.
        force: replace a file that is there.

    Raises:
        OSError: it is there, or cannot be written; as every method.
    """

    def __init__(
        self, path: str | Path, *, epoch_ns: int, head: Mapping[str, Any], bundle: bytes, force: bool = False
    ) -> None:
        self._path, self._epoch_ns = Path(path), epoch_ns
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb" if force else "xb", buffering=0)
        try:
            self._output = _Output(self._file.fileno())
            self._writer = Writer(self._output, chunk_size=CHUNK)  # type: ignore[arg-type]
            self._writer.start(profile="", library="ksim2real")
            self._writer.add_metadata("run", {k: json.dumps(v) for k, v in {"format": FORMAT, **head}.items()})
            self._writer.add_attachment(epoch_ns, epoch_ns, BUNDLE_NAME, "application/gzip", bundle)
            self._channels = {}
            self._packer = Packer((array["name"] for array in head["spec"]["inputs"]), head.get("stages", STAGES))
            for topic, (name, schema) in self._packer.schemas.items():
                schema_id = self._writer.register_schema(name, "protobuf", schema)
                self._channels[topic] = self._writer.register_channel(topic, "protobuf", schema_id)
            self.flush()
        except OSError:
            self._file.close()
            raise

    def add(self, topic: str, at_ns: int, sequence: int, data: bytes) -> None:
        """Append a message; it goes to the system with the next flush."""
        self._writer.add_message(self._channels[topic], at_ns, data, at_ns, sequence)

    def _at_ns(self, at_s: float) -> int:
        return self._epoch_ns + max(0, round(at_s * 1e9))

    def tick(self, packed: bytes) -> float:
        """Append a tick, as `Packer.pack` gives it; when it began [s]."""
        message = self._packer.complete(packed)
        self.add("/tick", self._at_ns(message.start_s), max(message.tick, 0), message.SerializeToString())
        return message.start_s

    def event(self, t_s: float, kind: str, message: str) -> None:
        """Append an event."""
        at_ns = self._at_ns(t_s)
        self.add("/event", at_ns, 0, self._packer.event(at_ns, t_s, kind, message).SerializeToString())

    def flush(self) -> None:
        """Hand everything to the system."""
        self._writer.flush()

    def moved(self) -> bool:
        """Whether the path no longer leads to this file."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return True

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Write the result and the index, and close the file."""
        with self._file:
            if result is not None:
                self.flush()
                self._writer.add_metadata("result", {k: json.dumps(v) for k, v in result.items()})
            self._writer.finish()
            self._output.flush()


class _Service:
    """What the writer does with each frame."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._log: LogFile | None = None
        self._head: dict[str, Any] = {}
        self._ticks, self._last_s, self._flushed = 0, 0.0, time.monotonic()
        self._broken = self.closed = False

    def say(self, **values: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more, or not yet
            self._link.send(json.dumps(values).encode() + b"\n")

    def frame(self, kind: int, body: bytes) -> None:
        """One frame."""
        if kind == HEAD:
            self._head = json.loads(body)
        elif kind == OPEN:
            self._open(body)
        elif self._log is None:
            return
        elif kind == TICK:
            self._ticks, self._last_s = self._ticks + 1, self._log.tick(body)
        elif kind == EVENT:
            self._log.event(**json.loads(body))
        elif kind == CLOSE:
            self.close(json.loads(body))

    def _open(self, bundle: bytes) -> None:
        try:
            self._log = LogFile(**self._head, bundle=bundle)
        except OSError as error:
            exists = isinstance(error, FileExistsError) and Path(self._head["path"]).exists()
            self.say(error=error.strerror, exists=exists)
        else:
            self.say(open=True)

    def look(self) -> None:
        """Once a second: hand the chunk to the system, and look whether the file is still there."""
        now = time.monotonic()
        if self._log is None or self._broken or now - self._flushed < FLUSH_S:
            return
        self._flushed = now
        why = ""
        try:
            self._log.flush()
            why = MOVED if self._log.moved() else ""
        except OSError as error:
            why = str(error.strerror)
        self._broken = bool(why)
        self.say(**({"error": why} if why else {"written": self._ticks}))

    def close(self, result: dict[str, Any] | None) -> None:
        """The end of the run."""
        log, self._log, self.closed = self._log, None, True
        if log is None:
            return
        moved = log.moved()
        try:
            log.close(result)
        except OSError as error:
            self.say(error=error.strerror)
        else:
            self.say(**({"error": MOVED} if moved else {"written": self._ticks, "closed": True}))

    def abandoned(self) -> None:
        """The loop's process ended without a word."""
        if self._log is not None:
            said = "nothing more came from the run; the log's writer closed the file"
            self._log.event(self._last_s, "log", said)
            self.close(None)


def serve(link: socket.socket) -> None:
    """Write what comes until the end of it."""
    service, got = _Service(link), bytearray()
    link.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        while not service.closed:
            if selector.select(FLUSH_S):
                try:
                    more = link.recv(1 << 18)
                except OSError:
                    more = b""
                if not more:
                    service.abandoned()
                    return
                got += more
                if len(more) < FAST:
                    time.sleep(POLL_S)
            at = 0
            while len(got) - at >= FRAME.size:
                size, kind = FRAME.unpack_from(got, at)
                end = at + FRAME.size + size
                if len(got) < end:
                    break
                service.frame(kind, bytes(got[at + FRAME.size : end]))
                at = end
            del got[:at]
            service.look()


def main() -> int:
    """The process: its argument is the number of its end of the socket."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # whoever starts it may have a priority and a processor of its own, which are the loop's
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    link = socket.socket(fileno=int(sys.argv[1]))
    os.chdir("/")  # it keeps no folder busy
    with link:
        serve(link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
