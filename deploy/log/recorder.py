"""The log of a run: the loop's side of writing it, and reading it.

Written by a process of its own (deploy/log/writer.py), to which the loop hands each tick over without waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from google.protobuf.message import DecodeError
from mcap.exceptions import McapError
from mcap.records import Attachment, Channel, Footer, Message, Metadata, Schema
from mcap.stream_reader import CRCValidationError, StreamReader
from zstandard import ZstdError

from deploy.child import start_child
from deploy.errors import LogError
from deploy.log.tick import COLUMNS, PHASES, TIMES, VECTORS, Packer, Record, Tick, reader_of
from deploy.log.timing import STAGES
from deploy.log.writer import BUNDLE_NAME, CLOSE, EVENT, FORMAT, FRAME, HEAD, OPEN, TICK
from deploy.robot.faults import Clamp, ClampKind
from deploy.robot.state import JOINTS
from robots.bundle import Bundle, read_bundle
from robots.errors import BundleError, SpecError
from robots.spec import PolicySpec
from toolkit.file_kind import FileKind, kind_of

# How long the writer may take: to come up; to take what waits for it in memory; to finish [s].
READY_S, HELD_S, CLOSE_S = 20.0, 10.0, 10.0
# At most so many frames wait; at most so many are handed over in one tick.
HELD_MAX, AT_ONCE = 20_000, 32
# What the system holds between the two [bytes]: about a second of a K-Bot's ticks. All else waits in this process.
BUFFER = 1 << 16
TOPICS = ("/tick", "/event")
# Ticks that are read at a time.
PART = 1000
# What reading a file that breaks off, or that is none of ours, may raise.
BROKEN = (McapError, CRCValidationError, ZstdError, struct.error, EOFError, ValueError, IndexError, MemoryError)


class NotWritten(LogError):
    """A log that is being written cannot be.

    Attributes:
        why: in a few words, as the system says it.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class LogProcess:
    """The writer's process, started and not waited for."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.process = start_child("deploy.log.writer", theirs)

    def close(self) -> None:
        """Nothing more is to be written; a second call does nothing. A writer that hangs is left to itself."""
        if self.link.fileno() >= 0:
            self.link.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)


class Recorder:
    """Writes a log as the run goes. Use it as a context manager, or call `close`.

    Args:
        path: the log; it must not exist unless `force`.
        spec: what the policy and the robot are.
        bundle: the .kinfer file's bytes.
        settings: plain JSON values about the run, kept in the metadata record.
        force: replace a file that is there.
        patient: wait for the writer where it falls behind; for a loop whose clock is a simulator's.
        process: the writer, started before; None starts one.

    Raises:
        LogError: the file exists, or cannot be written (NotWritten).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        spec: PolicySpec,
        bundle: bytes,
        settings: Mapping[str, Any],
        force: bool = False,
        patient: bool = False,
        process: LogProcess | None = None,
    ) -> None:
        self.path, self._patient = Path(path), patient
        self._process = process or LogProcess()
        self._link = self._process.link
        self._link.setblocking(False)
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._heard = b""
        self._pack = Packer((array.name for array in spec.inputs), settings.get("stages", STAGES)).pack
        self._ticks = self._written = 0
        self._open = self._closed = self._finished = self._lost = False
        self._failure = ""
        absolute = Path(os.path.abspath(self.path))  # the writer has another current folder  # noqa: PTH100
        head = {
            "path": str(absolute),
            "force": force,
            "epoch_ns": time.time_ns(),
            "head": {"spec": spec.to_json(), **settings},
        }
        self._put(HEAD, json.dumps(head).encode())
        self._put(OPEN, bundle)
        self._wait(lambda: self._open or self._failure, READY_S)
        if self._open:
            return
        self._closed = True
        self._process.close()
        if self._failure == "exists":
            raise LogError(f"log {self.path}: it exists; expected a new file; name another or add --force")
        why = self._failure or "its writer did not come up"
        raise NotWritten(
            f"log {self.path}: cannot be written ({why}); name a file in a folder of yours, with room for it", why
        )

    def _put(self, kind: int, body: bytes) -> None:
        """Hand a frame over, or keep it until the writer takes it."""
        if self._lost or len(self._waiting) >= HELD_MAX:
            return
        self._waiting.append((time.monotonic(), FRAME.pack(len(body), kind) + body))
        self._push()

    def _push(self) -> None:
        """What the writer takes now, without waiting for it."""
        try:
            for _ in range(min(AT_ONCE, len(self._waiting))):
                since, frame = self._waiting[0]
                sent = self._link.send(frame)
                if sent < len(frame):
                    self._waiting[0] = since, frame[sent:]
                    break
                self._waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._gone()
        if self._waiting and not self._failure and time.monotonic() - self._waiting[0][0] > HELD_S:
            self._failure, self._lost = f"its writer has taken nothing for {HELD_S:g} s", True

    def _listen(self) -> None:
        """What the writer says."""
        try:
            heard = self._link.recv(65536)
            if not heard:
                self._gone()
        except BlockingIOError:
            return
        except OSError:
            self._gone()
            return
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._open = self._open or "open" in said
            self._finished = self._finished or "closed" in said
            self._written = said.get("written", self._written)
            self._failure = self._failure or ("exists" if said.get("exists") else said.get("error", ""))

    def _gone(self) -> None:
        self._lost = True
        self._failure = self._failure or "its writer's process is gone"

    def _wait(self, done: Callable[[], Any], limit_s: float, on_wait: Callable[[], None] | None = None) -> None:
        """Until `done`, the writer is gone, or `limit_s` has passed."""
        until = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            key = selector.register(self._link, selectors.EVENT_READ)
            while not done() and not self._lost and time.monotonic() < until:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
                if key.events != events:
                    key = selector.modify(self._link, events)
                selector.select(0.1)
                if on_wait is not None:
                    on_wait()
                self._push()
                self._listen()

    def tick(self, tick: Tick) -> None:
        """Append a tick.

        Raises:
            NotWritten: the log cannot be written any more; this tick may be missing.
        """
        self._ticks += 1
        self._put(TICK, self._pack(tick))
        self._listen()
        if self._patient and self._waiting:
            self._wait(lambda: not self._waiting, HELD_S)
        if self._failure:
            why = self._failure
            raise NotWritten(f"log {self.path}: cannot be written ({why}); no run goes on without its log", why)

    def event(self, t_s: float, kind: str, message: str) -> None:
        """Append an event; where that fails, the next tick says so."""
        self._put(EVENT, json.dumps({"t_s": float(t_s), "kind": kind, "message": message}).encode())

    def close(self, result: Mapping[str, Any] | None = None, on_wait: Callable[[], None] | None = None) -> None:
        """Have the result and the index written and the file closed; a second call does nothing.

        Args:
            result: the run's closing figures, plain JSON values.
            on_wait: called again and again while the writer is waited for.

        Raises:
            NotWritten: the file is not whole; the message says what is missing.
        """
        if self._closed:
            return
        self._closed = True
        failed = self._failure
        self._failure = ""  # a disk that was full may have room again
        self._put(CLOSE, json.dumps(None if result is None else dict(result)).encode())
        self._wait(lambda: self._finished or self._failure, CLOSE_S, on_wait)
        self._process.close()
        if self._finished:
            return
        why = self._failure or failed or f"its writer was not done within {CLOSE_S:g} s; it goes on by itself"
        missing = self._ticks - self._written
        raise NotWritten(
            f"log {self.path}: it could not be finished ({why}); {missing} of {self._ticks} ticks may be missing; "
            "ksim log recover makes a whole file of what is there",
            why,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(*([LogError] if error is not None else [])):
            self.close()


@dataclass(frozen=True, kw_only=True)
class RunLog(Record[np.ndarray]):
    """A log in memory; arrays have one row a tick, NaN where there was no value.

    What a Tick has in vectors is (T, joints) or (T, parts) here, what it has in times is (T,).

    Attributes:
        path: the file.
        metadata: the settings of the run, without the specification.
        result: the run's own closing figures; None when it did not end in order.
        spec: what the policy and the robot are.
        bundle: the policy that ran; None when the file does not hold it.
        tick: as of a Tick, int64 (T,).
        phase: as of a Tick, (T,).
        inputs: what the policy was given, by .kinfer name, float32 (T, k); NaN outside "run".
        safety: what was changed at each tick.
        stale: bool (T,).
        ages_s: time since the values of each channel last changed, and since the answer ("call"), by name, (T,) each
            [s]; empty in logs of format 1.
        stages_ms: time that each stage of the tick took, by its name, (T,) each [ms]; empty in older logs.
        events: dicts with t_s, kind, message.
        complete: the run ended in order, and the file is whole.
    """

    path: Path
    metadata: dict[str, Any]
    result: dict[str, Any] | None
    spec: PolicySpec
    bundle: Bundle | None
    tick: np.ndarray
    phase: list[str]
    inputs: dict[str, np.ndarray]
    action: np.ndarray
    target: np.ndarray
    joint_temperature: np.ndarray
    safety: list[tuple[Clamp, ...]]
    stale: np.ndarray
    ages_s: dict[str, np.ndarray]
    stages_ms: dict[str, np.ndarray]
    events: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    def mask(self, phase: str) -> np.ndarray:
        """Ticks of a phase, bool (T,)."""
        return np.array([p == phase for p in self.phase], dtype=bool)

    @property
    def run(self) -> np.ndarray:
        """Ticks in which the policy ran, bool (T,)."""
        return self.mask("run")


@dataclass
class _Raw:
    """What a log holds besides its ticks."""

    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    bundle: bytes | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    footer: bool = False


def _ticks(path: Path, raw: _Raw) -> Iterator[dict[str, Any]]:
    """Every whole tick up to the end, or up to where the file breaks off; what else there is goes into `raw`."""
    schemas: dict[int, Schema] = {}
    channels: dict[int, tuple[str, Callable[[bytes], dict[str, Any]]]] = {}
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for record in StreamReader(file, validate_crcs=True, record_size_limit=max(size, 1)).records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel) and record.topic in TOPICS:
                    schema = schemas[record.schema_id]
                    channels[record.id] = record.topic, reader_of(record.message_encoding, schema.name, schema.data)
                elif isinstance(record, Metadata):
                    raw.metadata[record.name] = record.metadata
                elif isinstance(record, Attachment) and record.name == BUNDLE_NAME:
                    raw.bundle = record.data
                elif isinstance(record, Message) and record.channel_id in channels:
                    topic, read = channels[record.channel_id]
                    if topic == "/event":
                        raw.events.append(read(record.data))
                    else:
                        yield read(record.data)
                elif isinstance(record, Footer):
                    raw.footer = True
    except BROKEN as error:
        # The rest is missing or damaged; what came before it stands, if it is enough.
        raw.footer = False
        if not raw.metadata:
            raise no_log(path, error) from error
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}); expected a log of ksim run") from error


def no_log(path: Path, error: Exception) -> LogError:
    """What to say of a file that holds no log: what it is, where that can be told."""
    kind = kind_of(path)
    told = str(error) or "it breaks off at its head"
    told = told if kind in (FileKind.LOG, FileKind.UNKNOWN) else f"it is {kind.value}"
    return LogError(f"{path}: not a log of ksim run ({told})")


def _bundle_of(data: bytes | None) -> Bundle | None:
    if data is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / BUNDLE_NAME
        path.write_bytes(data)
        try:
            return read_bundle(path)
        except BundleError:
            return None


def _rows(values: Sequence[Sequence[float | None] | None], width: int, dtype: Any = np.float64) -> np.ndarray:
    out = np.full((len(values), width), np.nan, dtype=dtype)
    for row, numbers in enumerate(values):
        if numbers is not None and len(numbers) == width:
            out[row] = numbers
    return out


def _named(ticks: list[dict[str, Any]], key: str) -> dict[str, np.ndarray]:
    """A column that is an object: by name, (T, k)."""
    objects = [{k: v if isinstance(v, list) else [v] for k, v in t.get(key, {}).items()} for t in ticks]
    widths = {name: len(values) for found in reversed(objects) for name, values in found.items()}
    return {name: _rows([found.get(name) for found in objects], width) for name, width in widths.items()}


def _clamp(value: Any) -> Clamp:
    joint, kind = (value["joint"], value["kind"]) if isinstance(value, dict) else value.rsplit(": ", 1)
    return Clamp(joint, ClampKind(kind))


def _columns(ticks: list[dict[str, Any]], joints: int) -> dict[str, Any]:
    """Some ticks as columns."""
    widths = {column.parts: len(column.parts) for column in COLUMNS.values()} | {JOINTS: joints}
    if any(t["phase"] not in PHASES for t in ticks):
        raise ValueError(f"a phase other than {', '.join(PHASES)}")
    return {
        "tick": np.array([t["tick"] for t in ticks], dtype=np.int64),
        "phase": [t["phase"] for t in ticks],
        **{name: _rows([[t.get(name)] for t in ticks], 1)[:, 0] for name in TIMES},
        **{name: _rows([t.get(name) for t in ticks], widths[COLUMNS[name].parts]) for name in VECTORS},
        "safety": [tuple(map(_clamp, t.get("safety", ()))) for t in ticks],
        "stale": np.array([bool(t.get("stale")) for t in ticks], dtype=bool),
        **{name: _named(ticks, name) for name in ("inputs", "ages_s", "stages_ms")},
    }


def _joined(parts: list[dict[str, Any]], name: str) -> Any:
    """A column of all parts."""
    values = [part[name] for part in parts]
    if isinstance(values[0], list):
        return [v for value in values for v in value]
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    widths = {key: array.shape[1] for value in reversed(values) for key, array in value.items()}
    out = {}
    for key, width in widths.items():
        arrays = []
        for part, value in zip(parts, values, strict=True):
            here = value.get(key)
            missing = here is None or here.shape[1] != width
            arrays.append(np.full((len(part["tick"]), width), np.nan) if missing else here)
        out[key] = np.concatenate(arrays)
    return out


def _head(path: Path, raw: _Raw) -> tuple[dict[str, Any], PolicySpec]:
    """(settings, what the policy and the robot are)."""
    if "spec" not in raw.metadata.get("run", {}):
        raise LogError(f"{path}: no metadata record 'run'; expected a log of ksim run")
    try:
        metadata = {k: json.loads(v) for k, v in raw.metadata["run"].items()}
        if metadata.get("format") not in range(1, FORMAT + 1):
            raise LogError(
                f"{path}: log format {metadata.get('format')!r}, expected up to {FORMAT}; "
                "read it with the release it is from"
            )
        return metadata, PolicySpec.from_json(metadata.pop("spec"))
    except (ValueError, SpecError) as error:
        raise LogError(f"{path}: metadata record 'run' is damaged ({error})") from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise LogError(f"{path}: a folder; expected a log of ksim run; ksim log import makes one of others")
    if not path.is_file():
        raise LogError(f"{path}: no such file; expected a log of ksim run (ksim run policy.kinfer --log {path.name})")


def read_head(path: str | Path) -> tuple[dict[str, Any], PolicySpec]:
    """A log's settings, and what its policy and robot are, without its ticks: an hour of them takes most of a minute.

    Raises:
        LogError: there is no such file, it is not a log of `ksim run`, or its head is damaged.
    """
    path, raw = Path(path), _Raw()
    _check_file(path)
    # a damaged tick is read_log's matter
    with contextlib.suppress(DecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError):
        next(_ticks(path, raw), None)
    return _head(path, raw)


def read_log(path: str | Path) -> RunLog:
    """Read a log; a truncated one gives every tick that was written whole.

    Raises:
        LogError: there is no such file, it is not a log of `ksim run`, or its head is damaged.
    """
    path = Path(path)
    _check_file(path)
    raw, some, parts = _Raw(), [], []
    try:
        # by parts: numbers in Python's lists take several times the room of arrays
        for tick in _ticks(path, raw):
            some.append(tick)
            if len(some) == PART:
                parts.append(_columns(some, len(_head(path, raw)[1].robot.joints)))
                some = []
        metadata, spec = _head(path, raw)
        parts.append(_columns(some, len(spec.robot.joints)))
        columns = {name: _joined(parts, name) for name in parts[0]}
    except (DecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
        raise LogError(f"{path}: its ticks are not those of ksim run ({reason}); record the run again") from error
    columns["inputs"] = {name: values.astype(np.float32) for name, values in columns["inputs"].items()}
    for key in ("ages_s", "stages_ms"):
        columns[key] = {name: values[:, 0] for name, values in columns[key].items()}
    try:
        result = {k: json.loads(v) for k, v in raw.metadata["result"].items()} if "result" in raw.metadata else None
    except ValueError as error:
        raise LogError(f"{path}: metadata record 'result' is damaged ({error})") from error
    return RunLog(
        path=path,
        metadata=metadata,
        result=result,
        spec=spec,
        bundle=_bundle_of(raw.bundle),
        **columns,
        events=raw.events,
        complete=raw.footer and result is not None,
    )
