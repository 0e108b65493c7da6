"""A tick of a run as a value, and as the log's message.

The messages are protobuf. What they are is in the log: a reader takes the descriptors from there, ours too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP

from deploy.log.timing import STAGES
from deploy.robot.faults import Clamp
from deploy.robot.frozen import CHANNELS
from deploy.robot.state import Column, Measured, columns_of

PHASES = ("ramp", "ready", "run", "between", "stop", "damp")
# What ages by itself, and the fields that make it up.
AGES = CHANNELS | {"accelerometer": ("accel_b",)}
Number = TypeVar("Number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record(Measured, Generic[Number]):
    """The numbers of a tick, of one or of many. Times are monotonic seconds from the run's start.

    Attributes:
        scheduled_s: the deadline that the tick was due at.
        start_s: when it began.
        state_s: when the state's answer was complete.
        command_s: when the command was acknowledged; NaN where it was not.
        state_round_trip_s: question to answer; NaN where none came.
        command_round_trip_s: command to acknowledgement; NaN where none came.
        action: the policy's output (joints,) [rad]; exact float32 values; None outside "run".
        target: what was wanted before safety (joints,) [rad]; None in "damp".
        sent: the target after safety (joints,) [rad].
    """

    scheduled_s: Annotated[Number, Column("s", "")]
    start_s: Annotated[Number, Column("s", "")]
    state_s: Annotated[Number, Column("s", "")]
    command_s: Annotated[Number, Column("s", "")]
    state_round_trip_s: Annotated[Number, Column("s", "")]
    command_round_trip_s: Annotated[Number, Column("s", "")]
    action: Annotated[np.ndarray | None, Column("rad")]
    target: Annotated[np.ndarray | None, Column("rad")]
    sent: Annotated[np.ndarray, Column("rad")]


COLUMNS = columns_of(Record)
TIMES = tuple(name for name, column in COLUMNS.items() if not column.parts)
VECTORS = tuple(name for name, column in COLUMNS.items() if column.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick(Record[float]):
    """One control tick.

    Attributes:
        tick: number on the grid of the policy's steps, over all phases; a skipped deadline leaves a gap.
        phase: "ramp", "ready" (at home, compared with training), "run" (a step of the policy), "between" (two of
            them), "stop" (the policy at rest, then the stiffness blended out) or "damp".
        inputs: what the policy was given, float32, by .kinfer name; empty outside "run".
        safety: what was changed on the way from `target` to `sent`.
        stale: the state is an earlier tick's, or equal to it to the bit.
        stages_ms: time that each of STAGES took [ms]; empty where that is not told.
    """

    tick: int
    phase: str
    inputs: Mapping[str, np.ndarray]
    safety: tuple[Clamp, ...] = ()
    stale: bool = False
    stages_ms: Mapping[str, float] = field(default_factory=dict)


_F = FieldDescriptorProto
EVENT = "foxglove.Log"
# How grave an event of a kind is; others are information.
GRAVE = {"lost": "WARNING", "gains": "WARNING", "margin": "WARNING", "log": "WARNING"}


def _add(message: Any, names: Iterable[str], kind: Any, type_name: str | None = None, *, many: bool = False) -> None:
    """Fields of one kind; `type_name` is that of a message or an enum."""
    label = _F.LABEL_REPEATED if many else _F.LABEL_OPTIONAL
    for name in names:
        message.field.add(name=name, number=len(message.field) + 1, type=kind, label=label, type_name=type_name)


def _tick_file(inputs: Iterable[str], stages: Iterable[str]) -> FileDescriptorProto:
    file = FileDescriptorProto(name="ksim2real.proto", package="ksim2real", syntax="proto3")
    tick = file.message_type.add(name="Tick")
    _add(tick, ["tick"], _F.TYPE_INT32)
    _add(tick, ["phase"], _F.TYPE_STRING)
    _add(tick, TIMES, _F.TYPE_DOUBLE)
    _add(tick, VECTORS, _F.TYPE_DOUBLE, many=True)
    _add(tick, ["stale"], _F.TYPE_BOOL)
    for key, names, kind in (
        ("safety", ("joint", "kind"), _F.TYPE_STRING),
        ("inputs", inputs, _F.TYPE_FLOAT),
        ("ages_s", (*AGES, "call"), _F.TYPE_DOUBLE),
        ("stages_ms", stages, _F.TYPE_DOUBLE),
    ):
        inner = tick.nested_type.add(name=key.removesuffix("_s").removesuffix("_ms").title())
        _add(inner, names, kind, many=key == "inputs")
        _add(tick, [key], _F.TYPE_MESSAGE, f".ksim2real.Tick.{inner.name}", many=key == "safety")
    return file


def _event_file() -> FileDescriptorProto:
    """Foxglove's schema of a line of a log, which its log panel and Rerun's show; and our time in seconds."""
    file = FileDescriptorProto(name="foxglove/Log.proto", package="foxglove", syntax="proto3")
    file.dependency.append(TIMESTAMP.name)
    log = file.message_type.add(name="Log")
    levels = log.enum_type.add(name="Level")
    for number, name in enumerate(("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL")):
        levels.value.add(name=name, number=number)
    _add(log, ["timestamp"], _F.TYPE_MESSAGE, ".google.protobuf.Timestamp")
    _add(log, ["level"], _F.TYPE_ENUM, ".foxglove.Log.Level")
    _add(log, ["message", "name", "file"], _F.TYPE_STRING)
    _add(log, ["line"], _F.TYPE_FIXED32)
    _add(log, ["t_s"], _F.TYPE_DOUBLE)
    return file


def schemas(inputs: Iterable[str], stages: Iterable[str] = STAGES) -> dict[str, tuple[str, bytes]]:
    """The messages of a log whose policy has these inputs, by topic: (name, FileDescriptorSet)."""
    stamp = FileDescriptorProto.FromString(TIMESTAMP.serialized_pb)
    return {
        "/tick": ("ksim2real.Tick", FileDescriptorSet(file=[_tick_file(inputs, stages)]).SerializeToString()),
        "/event": (EVENT, FileDescriptorSet(file=[stamp, _event_file()]).SerializeToString()),
    }


def message_of(name: str, schema: bytes) -> Any:
    """The class of a message that a FileDescriptorSet has.

    Raises:
        TypeError, KeyError, DecodeError: it has none of that name.
    """
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(schema).file:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(name))


class Packer:
    """Makes the messages of a log.

    Args:
        inputs: names of the policy's.
    """

    def __init__(self, inputs: Iterable[str], stages: Iterable[str] = STAGES) -> None:
        self.schemas = schemas(inputs, stages)
        self._tick, self._event = (message_of(*self.schemas[topic]) for topic in ("/tick", "/event"))
        self._since: dict[str, tuple[Any, float]] = {}

    def pack(self, tick: Tick) -> bytes:
        """The tick's message, but for its ages."""
        values: dict[str, Any] = {name: getattr(tick, name) for name in TIMES}
        values |= {name: v.tolist() for name in VECTORS if (v := getattr(tick, name)) is not None}
        if tick.inputs:
            values["inputs"] = {name: v.tolist() for name, v in tick.inputs.items()}
        if tick.stages_ms:
            values["stages_ms"] = tick.stages_ms
        if tick.safety:
            values["safety"] = [{"joint": clamp.joint, "kind": clamp.kind.value} for clamp in tick.safety]
        return self._tick(tick=int(tick.tick), phase=tick.phase, stale=bool(tick.stale), **values).SerializeToString()

    def complete(self, packed: bytes) -> Any:
        """The next tick's message from its bytes, with how old each channel is.

        KOS sends no stamps. So a channel's age is the time since its values last changed to the bit; "call" is the age
        of the answer.
        """
        message = self._tick.FromString(packed)
        now = max(message.start_s, message.state_s)
        for name, fields in AGES.items():
            values = [getattr(message, f)[:] for f in fields]
            if self._since.get(name, (None,))[0] != values:
                self._since[name] = values, now
            setattr(message.ages_s, name, now - self._since[name][1])
        message.ages_s.call = now - message.state_s
        return message

    def event(self, at_ns: int, t_s: float, kind: str, message: str) -> Any:
        """An event's message."""
        level = GRAVE.get(kind, "INFO")
        line = self._event(level=level, message=message, name=kind, t_s=t_s)
        line.timestamp.FromNanoseconds(at_ns)
        return line


def _values(message: Any) -> dict[str, Any]:
    """A message as plain values; messages that are not set are left out."""
    out: dict[str, Any] = {}
    for entry in message.DESCRIPTOR.fields:
        value = getattr(message, entry.name)
        if hasattr(value, "extend"):
            out[entry.name] = [_values(v) for v in value] if entry.message_type else value[:]
        elif entry.message_type is None:
            out[entry.name] = value
        elif message.HasField(entry.name):
            out[entry.name] = _values(value)
    return out


def reader_of(encoding: str, name: str, schema: bytes) -> Callable[[bytes], dict[str, Any]]:
    """What gives a message's values by name, whichever release wrote it; JSON is of the first.

    Raises:
        TypeError, KeyError, DecodeError: the schema is damaged.
    """
    if encoding == "json":
        return json.loads
    kind = message_of(name, schema)

    def read(data: bytes) -> dict[str, Any]:
        message = kind.FromString(data)
        if name == EVENT:
            return {"t_s": message.t_s, "kind": message.name, "message": message.message}
        return _values(message)

    return read
