"""A tick of a run as a value, as bytes between two processes, and as the log's JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

PHASES = ("ramp", "ready", "run", "between", "stop", "damp")
TIMES = ("scheduled_s", "start_s", "state_s", "command_s", "state_round_trip_s", "command_round_trip_s")
JOINTS = ("action", "target", "sent", "joint_position", "joint_velocity", "joint_torque")
BODY = {"quat_wxyz": 4, "gyro_b": 3, "accel_b": 3}
_VECTORS = (*JOINTS, *BODY)
_HEAD = struct.Struct("<I")
_times, _vectors = attrgetter(*TIMES), attrgetter(*_VECTORS)
_EMPTY = np.empty(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """One control tick. Times are monotonic seconds from the run's start; vectors are in joint order.

    Attributes:
        tick: number on the grid of the policy's steps, over all phases; a skipped deadline leaves a gap.
        phase: "ramp", "ready" (at home, compared with training), "run" (a step of the policy), "between" (two of
            them), "stop" (the policy at rest, then the stiffness blended out) or "damp".
        scheduled_s: the deadline that the tick was due at.
        start_s: when it began.
        state_s: when the state's answer was complete.
        command_s: when the command was acknowledged; NaN where it was not.
        state_round_trip_s: question to answer; NaN where none came.
        command_round_trip_s: command to acknowledgement; NaN where none came.
        inputs: what the policy was given, float32, by .kinfer name; empty outside "run".
        action: the policy's output (joints,) [rad]; None outside "run".
        target: what was wanted before safety (joints,) [rad]; None in "damp".
        sent: the target after safety (joints,) [rad].
        joint_position: measured (joints,) [rad].
        joint_velocity: measured (joints,) [rad/s].
        joint_torque: measured (joints,) [N m].
        quat_wxyz: (4,).
        gyro_b: (3,) [rad/s].
        accel_b: (3,) [m/s^2].
        safety: what was clamped, one string each.
        stale: the state is an earlier tick's, or equal to it to the bit.
        stages_ms: time that each stage of the tick took, by its name [ms].
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
    target: np.ndarray | None = None
    sent: np.ndarray
    joint_position: np.ndarray
    joint_velocity: np.ndarray
    joint_torque: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    safety: tuple[str, ...] = ()
    stale: bool = False
    stages_ms: Mapping[str, float] = field(default_factory=dict)


def pack(tick: Tick) -> bytes:
    """The tick as bytes. Costs the loop a few microseconds: the numbers are copied, not written out."""
    vectors = [*tick.inputs.values(), *(_EMPTY if v is None else v for v in _vectors(tick))]
    head = [
        int(tick.tick),
        tick.phase,
        bool(tick.stale),
        tick.safety,
        list(tick.inputs),
        list(tick.stages_ms),
        [len(v) for v in vectors],
    ]
    text = json.dumps(head).encode()
    numbers = np.concatenate([_times(tick), list(tick.stages_ms.values()), *vectors], dtype="<f8")
    return b"".join([_HEAD.pack(len(text)), text, numbers.tobytes()])


def _numbers(values: np.ndarray) -> Sequence[float | None]:
    # float32 to float64 is exact, and JSON's shortest repr reads back to the same float64
    return [None if v != v or v in (np.inf, -np.inf) else v for v in values.tolist()]


def unpack(data: bytes) -> dict[str, Any]:
    """The log's JSON values of what `pack` made; null for what is not finite."""
    (size,) = _HEAD.unpack_from(data)
    at = _HEAD.size + size
    tick, phase, stale, safety, inputs, stages, sizes = json.loads(data[_HEAD.size : at])
    numbers = _numbers(np.frombuffer(data, dtype="<f8", offset=at))
    ends = np.cumsum([len(TIMES), len(stages), *sizes]).tolist()
    times, stages_ms, *vectors = (numbers[a:b] for a, b in zip([0, *ends], ends, strict=False))
    return {
        "tick": tick,
        "phase": phase,
        **dict(zip(TIMES, times, strict=True)),
        "inputs": dict(zip(inputs, vectors, strict=False)),
        **dict(zip(_VECTORS, vectors[len(inputs) :], strict=True)),
        "safety": safety,
        "stale": stale,
        "stages_ms": dict(zip(stages, stages_ms, strict=True)),
    }


def _tick_schema() -> dict[str, Any]:
    number = {"type": ["number", "null"]}
    numbers = {"type": "array", "items": number}
    properties: dict[str, Any] = {"tick": {"type": "integer"}, "phase": {"type": "string", "enum": list(PHASES)}}
    properties |= dict.fromkeys(TIMES, number)
    properties["inputs"] = {"type": "object", "additionalProperties": numbers}
    properties |= dict.fromkeys(_VECTORS, numbers)
    properties["safety"] = {"type": "array", "items": {"type": "string"}}
    properties["stale"] = {"type": "boolean"}
    properties["stages_ms"] = {"type": "object", "additionalProperties": number}
    return {"type": "object", "properties": properties, "required": list(properties)}


# topic -> (name, JSON schema)
SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "/tick": ("Tick", _tick_schema()),
    "/event": (
        "Event",
        {
            "type": "object",
            "properties": {"t_s": {"type": "number"}, "kind": {"type": "string"}, "message": {"type": "string"}},
            "required": ["t_s", "kind", "message"],
        },
    ),
}
