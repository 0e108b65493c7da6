"""The data model of a run as an ACSet schema: objects, the maps between them, and their attributes.

It is made from the types themselves: a field that is another object's type becomes a map, any other an attribute, whose
kind stands beside the field in ksim/types.py. The JSON is what ACSets.jl reads (`read_json_acset_schema`), and a table
of rows with ids from 1 is what `read_json_acset` reads.
Source: AlgebraicJulia/ACSets.jl, src/serialization/JSONACSets.jl; version 0.0.1 of the schema format.
"""

from __future__ import annotations

import functools
import typing
from typing import Any

from ksim.environment import Observed, Outcome
from ksim.types import Action, PhysicsState, Trajectory

# Object -> the type whose fields it has. A row of Trajectory is one control step.
OBJECTS: dict[str, type] = {
    "PhysicsState": PhysicsState,
    "Trajectory": Trajectory,
    "Observation": Observed,
    "Reward": Outcome,
    "Action": Action,
}
# The maps that are functions and no fields: an action is taken at a state and leads to the next.
MAPS = (
    ("step", "Action", "PhysicsState"),
    ("taken_at", "Action", "PhysicsState"),
    ("observe", "PhysicsState", "Observation"),
    ("reward", "Trajectory", "Reward"),
)
# The state of a control step is the one that its action led to.
EQUATIONS = (("row_is_after_step", "Trajectory", "PhysicsState", (("physics",), ("action", "step"))),)
# What only an engine or the critic needs, and what another object has already.
_LEFT_OUT = {
    "PhysicsState": {"history", "internal", "scene"},
    "Observation": {"critic"},
    "Reward": {"done", "timeout", "fell"},
}
# A map has this name already, and in an ACSet each name stands once.
_RENAMED = {("Reward", "reward"): "value"}
# Kind of a field -> name of its attribute type.
ATTRIBUTE_TYPES = {
    "number": "Number",
    "flag": "Flag",
    "vector": "Vector",
    "numbers": "NumberByName",
    "vectors": "VectorByName",
}


@functools.cache
def _hints(ob: str) -> dict[str, Any]:
    hints = typing.get_type_hints(OBJECTS[ob], include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in _LEFT_OUT.get(ob, ())}


@functools.cache
def attributes(ob: str) -> dict[str, str]:
    """The attributes of an object and the kind of each: number, flag, vector, numbers or vectors.

    A field that is itself a tuple of arrays gives one attribute for each: `motor_anchor`.
    """
    out = {}
    for name, hint in _hints(ob).items():
        if hint in OBJECTS.values():
            continue
        if hasattr(hint, "_fields"):
            out |= {f"{name}_{part}": "vector" for part in hint._fields}
        else:
            out[_RENAMED.get((ob, name), name)] = hint.__metadata__[0]
    return out


def values(ob: str, value: Any) -> dict[str, Any]:
    """The attributes of an object, taken from a value of its type."""
    out = {}
    for name, hint in _hints(ob).items():
        held = getattr(value, name)
        if hint in OBJECTS.values():
            continue
        if hasattr(hint, "_fields"):
            out |= {f"{name}_{part}": getattr(held, part) for part in hint._fields}
        else:
            out[_RENAMED.get((ob, name), name)] = held
    return out


def maps() -> tuple[tuple[str, str, str], ...]:
    """(name, domain, codomain) of every map."""
    names = {kind: ob for ob, kind in OBJECTS.items()}
    fields = [(n, ob, names[h]) for ob in OBJECTS for n, h in _hints(ob).items() if h in names]
    return (*MAPS, *fields)


def acset_schema() -> dict[str, Any]:
    """The schema, as the JSON that ACSets.jl reads."""
    kinds = {ob: attributes(ob) for ob in OBJECTS}
    used = {kind for table in kinds.values() for kind in table.values()}
    return {
        "version": {"ACSetSchema": "0.0.1", "ACSets": "0.0.0"},
        "Ob": [{"name": ob} for ob in OBJECTS],
        "Hom": [{"name": n, "dom": a, "codom": b} for n, a, b in maps()],
        "AttrType": [{"name": name} for kind, name in ATTRIBUTE_TYPES.items() if kind in used],
        "Attr": [
            {"name": name, "dom": ob, "codom": ATTRIBUTE_TYPES[kind]}
            for ob, table in kinds.items()
            for name, kind in table.items()
        ],
        "equations": [
            {"name": name, "dom": a, "codom": b, "paths": [list(path) for path in paths]}
            for name, a, b, paths in EQUATIONS
        ],
    }


def _is_number(value: Any) -> bool:
    """A number of JSON, or the word for one that is not finite."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value in NOT_FINITE


def fits(kind: str, value: Any) -> bool:
    """Whether a value of JSON is of a kind."""
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "number":
        return _is_number(value)
    if kind == "vector":
        return isinstance(value, list) and all(map(_is_number, value))
    return isinstance(value, dict) and all(fits(kind.removesuffix("s"), v) for v in value.values())


# JSON has no such numbers; protocol buffers write them so too.
NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def acset_instance(log: Any) -> dict[str, list[dict[str, Any]]]:
    """A log (ksim.replay_log.Log) as tables: one state and one observation more than actions, for the birth's."""
    tables: dict[str, list[dict[str, Any]]] = {ob: [] for ob in OBJECTS}
    for row, event in enumerate(log.events):
        layers = event["layers"]
        state = {name: layers["physics"][name] for name in attributes("PhysicsState")}
        tables["PhysicsState"].append({"_id": row + 1, **state, "observe": row + 1})
        seen = {name: layers["observation"][name] for name in attributes("Observation")}
        tables["Observation"].append({"_id": row + 1, **seen})
        if row == 0:
            continue
        action = {"raw": layers["policy"].get("raw", []), "target": event["delta"]["action"]}
        tables["Action"].append({"_id": row, **action, "step": row + 1, "taken_at": row})
        tables["Reward"].append({"_id": row, "value": event["delta"]["reward"], "terms": layers["reward"]["terms"]})
        known = {**layers["given"], **layers["reward"]}
        step = {name: known[name] for name in attributes("Trajectory")}
        tables["Trajectory"].append({"_id": row, **step, "physics": row + 1, "action": row, "reward": row})
    return tables
