"""The log of a run: MCAP with JSON messages, readable while it grows and after a kill -9.

Channels `/tick` (one message a control tick) and `/event`; a metadata record `run` with the policy's
specification and the settings, one `result` when the run ended in order; the bundle's own bytes as
the attachment `policy.kinfer`, so that the log alone is enough for a replay. Every message is a chunk
of its own and is handed to the operating system at once: a killed process loses at most the tick that
it was writing. In JSON a number that is not finite is null.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from mcap.exceptions import McapError
from mcap.records import Attachment, Channel, Footer, Message, Metadata
from mcap.stream_reader import CRCValidationError, StreamReader
from mcap.writer import CompressionType, Writer

from deploy.errors import LogError
from robots.bundle import Bundle, read_bundle
from robots.errors import BundleError, SpecError
from robots.spec import PolicySpec

FORMAT = 1
PHASES = ("ramp", "ready", "run", "between", "stop", "damp")
BUNDLE_NAME = "policy.kinfer"
_TIMES = ("scheduled_s", "start_s", "state_s", "command_s", "state_round_trip_s", "command_round_trip_s")
_JOINTS = ("action", "sent", "joint_position", "joint_velocity", "joint_torque")
_BODY = {"quat_wxyz": 4, "gyro_b": 3, "accel_b": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """One control tick. Times are monotonic seconds from the run's start; vectors are in joint order.

    Attributes:
        tick: number on the grid of the policy's steps, over all phases; a skipped deadline leaves a gap.
        phase: "ramp", "ready" (at home, compared with training), "run" (a step of the policy), "between" (two of
            them), "stop" (the policy at rest, then the stiffness
            blended out) or "damp".
        scheduled_s: the deadline that the tick was due at.
        start_s: when it began.
        state_s: when the state's answer was complete.
        command_s: when the command was acknowledged; NaN where it was not.
        state_round_trip_s: question to answer; NaN where none came.
        command_round_trip_s: command to acknowledgement; NaN where none came.
        inputs: what the policy was given, float32, by .kinfer name; empty outside "run".
        action: the policy's output (joints,) [rad]; None outside "run".
        sent: the target after safety (joints,) [rad].
        joint_position: measured (joints,) [rad].
        joint_velocity: measured (joints,) [rad/s].
        joint_torque: measured (joints,) [N m].
        quat_wxyz: (4,).
        gyro_b: (3,) [rad/s].
        accel_b: (3,) [m/s^2].
        safety: what was clamped, one string each.
        stale: the state is an earlier tick's, or equal to it to the bit.
    """

    tick: int
    phase: str
    scheduled_s: float
    start_s: float
    state_s: float
    command_s: float
    state_round_trip_s: float
    command_round_trip_s: float
    inputs: Mapping[str, np.ndarray]
    action: np.ndarray | None
    sent: np.ndarray
    joint_position: np.ndarray
    joint_velocity: np.ndarray
    joint_torque: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    safety: tuple[str, ...] = ()
    stale: bool = False


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _numbers(values: np.ndarray | None) -> Sequence[float | None]:
    if values is None:
        return []
    # float32 to float64 is exact, and JSON's shortest repr reads back to the same float64
    array = np.asarray(values, dtype=np.float64).ravel()
    return array.tolist() if np.isfinite(array).all() else [_number(v) for v in array]


def _tick_schema() -> dict[str, Any]:
    number = {"type": ["number", "null"]}
    numbers = {"type": "array", "items": number}
    properties: dict[str, Any] = {"tick": {"type": "integer"}, "phase": {"type": "string", "enum": list(PHASES)}}
    properties |= dict.fromkeys(_TIMES, number)
    properties["inputs"] = {"type": "object", "additionalProperties": numbers}
    properties |= dict.fromkeys((*_JOINTS, *_BODY), numbers)
    properties["safety"] = {"type": "array", "items": {"type": "string"}}
    properties["stale"] = {"type": "boolean"}
    return {"type": "object", "properties": properties, "required": list(properties)}


_EVENT_SCHEMA = {
    "type": "object",
    "properties": {"t_s": {"type": "number"}, "kind": {"type": "string"}, "message": {"type": "string"}},
    "required": ["t_s", "kind", "message"],
}


class Recorder:
    """Writes a log as the run goes. Use it as a context manager, or call `close`.

    Args:
        path: the log; it must not exist unless `force`.
        spec: what the policy and the robot are.
        bundle: the .kinfer file's bytes.
        settings: plain JSON values about the run, kept in the metadata record.
        force: replace a file that is there.

    Raises:
        LogError: the file exists, or cannot be written.
    """

    def __init__(
        self, path: str | Path, *, spec: PolicySpec, bundle: bytes, settings: Mapping[str, Any], force: bool = False
    ) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb" if force else "xb")
        except OSError as error:
            if isinstance(error, FileExistsError) and self.path.exists():
                raise LogError(
                    f"log {self.path}: it exists; expected a new file; name another or add --force"
                ) from None
            raise LogError(
                f"log {self.path}: cannot be written ({error.strerror}); name a file in a folder of yours"
            ) from error
        self._epoch_ns = time.time_ns()
        self._closed = False
        try:
            self._begin(spec, bundle, settings)
        except OSError as error:
            self._closed = True
            with contextlib.suppress(OSError):
                self._file.close()
            raise LogError(f"log {self.path}: cannot be written ({error.strerror}); make room for it") from error

    def _begin(self, spec: PolicySpec, bundle: bytes, settings: Mapping[str, Any]) -> None:
        # chunk_size=1 closes a chunk after each message
        self._writer = Writer(self._file, chunk_size=1, compression=CompressionType.NONE)
        self._writer.start(profile="", library="ksim2real")
        values = {"format": FORMAT, "spec": spec.to_json(), **settings}
        self._writer.add_metadata("run", {k: json.dumps(v) for k, v in values.items()})
        self._writer.add_attachment(self._epoch_ns, self._epoch_ns, BUNDLE_NAME, "application/gzip", bundle)
        self._channels = {}
        for topic, name, schema in (("/tick", "Tick", _tick_schema()), ("/event", "Event", _EVENT_SCHEMA)):
            schema_id = self._writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
            self._channels[topic] = self._writer.register_channel(topic, "json", schema_id)
        self._file.flush()

    def _add(self, topic: str, at_s: float, sequence: int, value: dict[str, Any]) -> None:
        at_ns = self._epoch_ns + max(0, round(at_s * 1e9))
        data = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        self._writer.add_message(self._channels[topic], at_ns, data, at_ns, sequence)
        self._file.flush()

    def tick(self, tick: Tick) -> None:
        """Append a tick."""
        value: dict[str, Any] = {"tick": tick.tick, "phase": tick.phase}
        value |= {name: _number(getattr(tick, name)) for name in _TIMES}
        value["inputs"] = {name: _numbers(v) for name, v in tick.inputs.items()}
        value |= {name: _numbers(getattr(tick, name)) for name in (*_JOINTS, *_BODY)}
        value["safety"] = list(tick.safety)
        value["stale"] = bool(tick.stale)
        self._add("/tick", tick.start_s, max(tick.tick, 0), value)

    def event(self, t_s: float, kind: str, message: str) -> None:
        """Append an event."""
        self._add("/event", t_s, 0, {"t_s": float(t_s), "kind": kind, "message": message})

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Write the result and the index, and close the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with self._file:
            if result is not None:
                self._writer.add_metadata("result", {k: json.dumps(v) for k, v in result.items()})
            self._writer.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """A log in memory; arrays have one row a tick, NaN where there was no value.

    Attributes:
        path: the file.
        metadata: the settings of the run, without the specification.
        result: the run's own closing figures; None when it did not end in order.
        spec: what the policy and the robot are.
        bundle: the policy that ran; None when the file does not hold it.
        tick: number of the tick on the grid of deadlines, over all phases, int64 (T,).
        phase: (T,) of those of a Tick.
        scheduled_s, start_s, state_s, command_s, state_round_trip_s, command_round_trip_s: float64 (T,) [s].
        inputs: what the policy was given, by .kinfer name, float32 (T, k); NaN outside "run".
        action: the policy's output, float64 (T, joints) [rad]; exact float32 values.
        sent: target after safety, (T, joints) [rad].
        joint_position, joint_velocity, joint_torque: measured, (T, joints) [rad, rad/s, N m].
        quat_wxyz: (T, 4).
        gyro_b: (T, 3) [rad/s].
        accel_b: (T, 3) [m/s^2].
        safety: what was clamped at each tick.
        stale: bool (T,).
        events: dicts with t_s, kind, message.
        complete: the file was closed in order.
    """

    path: Path
    metadata: dict[str, Any]
    result: dict[str, Any] | None
    spec: PolicySpec
    bundle: Bundle | None
    tick: np.ndarray
    phase: list[str]
    scheduled_s: np.ndarray
    start_s: np.ndarray
    state_s: np.ndarray
    command_s: np.ndarray
    state_round_trip_s: np.ndarray
    command_round_trip_s: np.ndarray
    inputs: dict[str, np.ndarray]
    action: np.ndarray
    sent: np.ndarray
    joint_position: np.ndarray
    joint_velocity: np.ndarray
    joint_torque: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    safety: list[tuple[str, ...]]
    stale: np.ndarray
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
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    bundle: bytes | None = None
    ticks: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False


def _scan(path: Path) -> _Raw:
    """Every whole record up to the end, or up to where the file breaks off."""
    raw = _Raw()
    topics: dict[int, str] = {}
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for record in StreamReader(file, validate_crcs=True, record_size_limit=max(size, 1)).records:
                if isinstance(record, Channel):
                    topics[record.id] = record.topic
                elif isinstance(record, Metadata):
                    raw.metadata[record.name] = record.metadata
                elif isinstance(record, Attachment) and record.name == BUNDLE_NAME:
                    raw.bundle = record.data
                elif isinstance(record, Message) and topics.get(record.channel_id) == "/tick":
                    raw.ticks.append(json.loads(record.data))
                elif isinstance(record, Message) and topics.get(record.channel_id) == "/event":
                    raw.events.append(json.loads(record.data))
                elif isinstance(record, Footer):
                    raw.complete = True
    except (McapError, CRCValidationError, struct.error, EOFError, ValueError, IndexError) as error:
        # The rest is missing or damaged; what came before it stands, if it is enough.
        raw.complete = False
        if not raw.metadata:
            raise LogError(f"{path}: not a log of ksim run ({str(error) or 'it breaks off at its head'})") from error
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}); expected a log of ksim run") from error
    return raw


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


def _rows(ticks: list[dict[str, Any]], name: str, width: int, dtype: Any = np.float64) -> np.ndarray:
    out = np.full((len(ticks), width), np.nan, dtype=dtype)
    for row, tick in enumerate(ticks):
        values = tick.get(name) or ()
        if len(values) == width:
            out[row] = [np.nan if v is None else v for v in values]
    return out


def read_log(path: str | Path) -> RunLog:
    """Read a log; a truncated one gives every tick that was written whole.

    Raises:
        LogError: there is no such file, it is not a log of `ksim run`, or its head is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise LogError(f"{path}: no such file; expected a log of ksim run (ksim run policy.kinfer --log {path.name})")
    raw = _scan(path)
    if "spec" not in raw.metadata.get("run", {}):
        raise LogError(f"{path}: no metadata record 'run'; expected a log of ksim run")
    try:
        metadata = {k: json.loads(v) for k, v in raw.metadata["run"].items()}
        if metadata.get("format") != FORMAT:
            raise LogError(
                f"{path}: log format {metadata.get('format')!r}, expected {FORMAT}; read it with the release it is from"
            )
        spec = PolicySpec.from_json(metadata.pop("spec"))
        result = raw.metadata.get("result")
        result = None if result is None else {k: json.loads(v) for k, v in result.items()}
    except (ValueError, SpecError) as error:
        raise LogError(f"{path}: metadata record 'run' is damaged ({error})") from error
    try:
        return _in_memory(path, raw, metadata, result, spec)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
        raise LogError(f"{path}: its ticks are not those of ksim run ({reason}); record the run again") from error


def _in_memory(
    path: Path, raw: _Raw, metadata: dict[str, Any], result: dict[str, Any] | None, spec: PolicySpec
) -> RunLog:
    ticks, n = raw.ticks, len(spec.robot.joints)
    if any(t["phase"] not in PHASES for t in ticks):
        raise ValueError(f"a phase other than {', '.join(PHASES)}")
    widths: dict[str, int] = {}
    for t in ticks:
        for name, values in t.get("inputs", {}).items():
            widths.setdefault(name, len(values))
    inputs = [t.get("inputs", {}) for t in ticks]
    times = {name: _rows([{name: [t.get(name)]} for t in ticks], name, 1)[:, 0] for name in _TIMES}
    return RunLog(
        path=path,
        metadata=metadata,
        result=result,
        spec=spec,
        bundle=_bundle_of(raw.bundle),
        tick=np.array([t["tick"] for t in ticks], dtype=np.int64),
        phase=[t["phase"] for t in ticks],
        **times,
        inputs={name: _rows(inputs, name, width, np.float32) for name, width in widths.items()},
        **{name: _rows(ticks, name, n) for name in _JOINTS},
        **{name: _rows(ticks, name, width) for name, width in _BODY.items()},
        safety=[tuple(str(reason) for reason in t.get("safety", ())) for t in ticks],
        stale=np.array([bool(t.get("stale")) for t in ticks], dtype=bool),
        events=raw.events,
        complete=raw.complete,
    )
