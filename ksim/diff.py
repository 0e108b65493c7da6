"""Where two logged episodes part: the first event that is not the same in both, and the layer that parted first in it.

Within a step the layers come one after the other: what was asked, the policy, the action path, the physics, the reward,
and what is seen then. The first of them that differs is where the cause is; those after it follow from it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from ksim.replay_log import BIRTH, LAYERS, Log
from ksim.schema import NOT_FINITE

# Layers as a person reads them. A command that differs is an observation that differs.
NAMES = {
    "given": "observation",
    "policy": "policy",
    "action_path": "action path",
    "physics": "physics",
    "reward": "reward",
    "observation": "observation",
}
# The layer of runs of which one goes on where the other has ended, though no step says why.
LENGTH = "length"
# At the birth the first targets follow from the state, and what is seen from both.
_BIRTH_ORDER = ("given", "physics", "action_path", "policy", "reward", "observation")
# Fields with one number for each joint.
_OF_JOINTS = ("target", "torque", "motor", "joint_angles", "joint_angular_velocities", "joint_offset", "target_bias")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One field that is not the same in both.

    Attributes:
        layer: observation, policy, action path, physics, reward or length.
        field: its name.
        size: the greatest difference; None where it is not a matter of numbers.
        at: the element with that difference, by its name or its place; empty for a single number.
        first: its value in the first log.
        second: its value in the second.
    """

    layer: str
    field: str
    size: float | None
    at: str
    first: Any
    second: Any


@dataclass(frozen=True, kw_only=True)
class Parting:
    """Where two runs part.

    Attributes:
        event_id: the first event that is not the same in both.
        step: its control step, counted from 0; -1 is the birth.
        time_s: time since the episode's start at the end of that step [s].
        layer: the likely layer.
        fields: what differs in that event, in the order in which the layers come.
    """

    event_id: str
    step: int
    time_s: float
    layer: str
    fields: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "fields": [asdict(field) for field in self.fields]}


def first_parting(first: Log, second: Log) -> Parting | None:
    """Where two runs part; None where all that happened is the same to the bit, and as long."""
    period = first.birth["control_period_s"]
    for step, (a, b) in enumerate(zip(first.events, second.events, strict=False), -1):
        if json.dumps(a) == json.dumps(b):  # as text: 0 is not -0, and true is not 1
            continue
        left, right = _layers(a), _layers(b)
        order = _BIRTH_ORDER if step < 0 else LAYERS
        found = [d for layer in order for d in _compared(layer, left[layer], right[layer], first.birth)]
        if not found:
            continue  # what is left is what the runs were told, and the birth's versions
        return Parting(
            event_id=a["event_id"], step=step, time_s=(step + 1) * period, layer=found[0].layer, fields=tuple(found)
        )
    lengths = len(first.events) - 1, len(second.events) - 1
    if lengths[0] == lengths[1]:
        return None
    step, longer = min(lengths), max(first, second, key=lambda log: len(log.events))
    apart = Difference(
        layer=LENGTH, field="steps", size=abs(lengths[0] - lengths[1]), at="", first=lengths[0], second=lengths[1]
    )
    event_id = longer.events[step + 1]["event_id"]
    return Parting(event_id=event_id, step=step, time_s=(step + 1) * period, layer=LENGTH, fields=(apart,))


def settings_apart(first: Log, second: Log) -> list[tuple[str, Any, Any]]:
    """What the two runs were told differently: (key, in the first, in the second), the policy and the seed included."""
    keys = ("seed", "task", "robot", "robot_digest", "engine", "level", "names", "policy", "settings", "versions")
    a, b = ({k: log.birth.get(k) for k in keys} for log in (first, second))
    left, right = _flat(a), _flat(b)
    names = list(dict.fromkeys([*left, *right]))
    out = [(n, left.get(n), right.get(n)) for n in names if _apart(left.get(n), right.get(n))[0] != 0.0]
    return [(n.removeprefix("settings."), x, y) for n, x, y in out]


def _layers(event: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields of each layer, the action and the reward of `delta` among them."""
    layers = {name: dict(event["layers"][name]) for name in LAYERS}
    target, birth = {"target": event["delta"]["action"]}, event["event_id"] == BIRTH
    # without raw actions in the log, the targets are all that the policy says
    decides = "action_path" if birth or layers["policy"] else "policy"
    layers[decides] = {**target, **layers[decides]}
    layers["reward"] |= {"sum": event["delta"]["reward"]}
    return layers


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= _flat(inner, f"{name}.{key}" if name else str(key))
    return out


def _compared(layer: str, a: dict[str, Any], b: dict[str, Any], birth: dict[str, Any]) -> list[Difference]:
    left, right = _flat(a), _flat(b)
    out = []
    for field in dict.fromkeys([*left, *right]):
        x, y = left.get(field), right.get(field)
        size, place, x, y = _apart(x, y)
        if size == 0.0:
            continue
        out.append(
            Difference(
                layer=NAMES[layer],
                field=field,
                size=size,
                at=_place(field, place, birth["names"]),
                first=x,
                second=y,
            )
        )
    return out


def _place(field: str, place: tuple[int, ...], names: dict[str, list[str]]) -> str:
    if place and field in names and place[-1] < len(names[field]):
        return names[field][place[-1]]
    words = field.replace("_", ".").split(".")
    of_joints = any(name in field or name in words for name in _OF_JOINTS)
    if of_joints and place and place[-1] < len(names["joints"]):
        return names["joints"][place[-1]]
    return ", ".join(map(str, place))


def _form(value: Any) -> str:
    """The shape of nested lists, in words."""
    sizes = []
    rows = [value]
    while all(isinstance(row, list) for row in rows):
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            return f"rows of {' and '.join(map(str, sorted(lengths)))}"
        sizes += lengths
        rows = [inner for row in rows for inner in row]
        if not rows:
            break
    return f"shape ({', '.join(map(str, sizes))})"


def _elements(value: Any, place: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], Any]]:
    if not isinstance(value, list) or not value:  # an empty list has no elements, and is something
        return [(place, value)]
    return [leaf for i, inner in enumerate(value) for leaf in _elements(inner, (*place, i))]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _apart(x: Any, y: Any) -> tuple[float | None, tuple[int, ...], Any, Any]:
    """(the greatest difference, where, the two values there); 0 where they are the same to the bit."""
    left, right = _elements(x), _elements(y)
    if [place for place, _ in left] != [place for place, _ in right]:
        return None, (), None if x is None else _form(x), None if y is None else _form(y)
    worst: tuple[float | None, tuple[int, ...], Any, Any] = (0.0, (), None, None)
    for (place, a), (_, b) in zip(left, right, strict=True):
        plain = _number(a) and _number(b)
        same = a == b and isinstance(a, bool) == isinstance(b, bool)
        if same and not (plain and a == 0 and math.copysign(1, a) != math.copysign(1, b)):
            continue
        # a sign of 0 is a difference, if the smallest there is
        size = max(abs(a - b), math.ulp(0.0)) if plain else math.inf if a in NOT_FINITE or b in NOT_FINITE else None
        if size is None or size > (worst[0] or 0.0):
            worst = (size, place, a, b)
        if size is None:
            break
    return worst
