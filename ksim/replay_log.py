"""A replay's log on disk: JSON lines, read back and checked against the data model. The first line is the birth.

Each line has `event_id`, `before_hash`, `after_hash`, `delta` {action, reward}, `trit` and `impact`, and under `layers`
the values that passed through each layer. Numbers are exact. Those that are not finite are the words NaN, Infinity and
-Infinity, as JSON has no such numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ksim.errors import ReplayError
from ksim.schema import NOT_FINITE, attributes, fits
from toolkit.cli import describe
from toolkit.strict_json import loads

FORMAT, VERSION = "ksim-replay", 1
BIRTH = "birth"
LAYERS = ("given", "policy", "action_path", "physics", "reward", "observation")
_KEYS = ("event_id", "before_hash", "after_hash", "delta", "trit", "impact", "layers")


def plain(value: Any) -> Any:
    """Arrays, tuples by name and dictionaries of them as values of strict JSON, to the last bit."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    array = np.asarray(value)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _words(array.astype(np.float64).tolist())
    return (array.astype(np.float64) if array.dtype.kind == "f" else array).tolist()


def _words(value: Any) -> Any:
    if isinstance(value, list):
        return [_words(inner) for inner in value]
    if np.isfinite(value):
        return value
    return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def hash_arrays(arrays: dict[str, Any]) -> str:
    """SHA-256 of named arrays, as hex: names in order, types, shapes and bytes (little-endian). One bit changes it."""
    out = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)  # one NaN, whatever its payload
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        out.update(f"{name}\0{array.dtype.str}\0{list(np.shape(arrays[name]))}\0".encode())
        out.update(array.tobytes())
    return out.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log that was checked.

    Attributes:
        path: the file.
        birth: what is known before the first step: seed, task, robot, names, settings.
        events: every line, the birth's first.
    """

    path: Path
    birth: dict[str, Any]
    events: tuple[dict[str, Any], ...]


def validate_log(path: str | Path) -> Log:
    """Read a log and check each line against the data model, the states against their hashes, and the chain of them.

    Raises:
        ReplayError: it is damaged, cut, altered, or no log of this format.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ReplayError(f"{path}: is no regular file; expected a log of ksim replay")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReplayError(describe(error)) from error
    if not data:
        raise ReplayError(f"{path}: empty; expected a log of ksim replay")
    events = [_parsed(path, number, line) for number, line in enumerate(data.split(b"\n"), 1) if line or number == 1]
    _check_birth(path, events[0])
    if not data.endswith(b"\n"):
        _refuse(path, len(events), "the last line has no end", "a whole line; the file was cut: replay again")
    birth = events[0]["birth"]
    for number, event in enumerate(events, 1):
        _check_event(path, number, event, events)
        _check_state(path, number, event, birth["dtypes"])
    if len(events) < 2 or events[-1]["impact"] != 1:
        _refuse(path, len(events), "the episode does not end", "impact 1 in the last line; the file was cut")
    return Log(path=path, birth=birth, events=tuple(events))


def _refuse(path: Path, line: int, got: str, expected: str) -> NoReturn:
    raise ReplayError(f"{path}: line {line}: {got}; expected {expected}")


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = loads(line)
    except ValueError as error:
        hint = "a log of ksim replay" if number == 1 else "a whole line of JSON; the file was cut or altered"
        _refuse(path, number, str(error), hint)
    if not isinstance(value, dict):
        _refuse(path, number, type(value).__name__, "an object")
    return value


def _check_birth(path: Path, event: dict[str, Any]) -> None:
    birth = event.get("birth")
    if not isinstance(birth, dict) or birth.get("format") != FORMAT:
        _refuse(path, 1, "no birth of a replay", f"a log of ksim replay, format {FORMAT}")
    if birth.get("version") != VERSION or isinstance(birth["version"], bool):
        _refuse(path, 1, f"version {birth.get('version')!r:.40}", f"{VERSION}; replay again with this version")
    kinds = {"names": dict, "dtypes": dict, "settings": dict, "policy": dict, "versions": dict, "level": float}
    kinds |= {"seed": int, "control_period_s": float, **dict.fromkeys(("task", "robot", "robot_digest", "engine"), str)}
    for name, kind in kinds.items():
        if not isinstance(birth.get(name), kind) or isinstance(birth.get(name), bool):
            _refuse(path, 1, f"birth.{name} {birth.get(name)!r:.40}", f"one of type {kind.__name__}")
    for name, words in ({"joints": None, "commands": None} | birth["names"]).items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            _refuse(path, 1, f"birth.names.{name:.40} {words!r:.40}", "a list of names")
    for name in attributes("PhysicsState"):
        if birth["dtypes"].get(name) not in ("<f4", "<f8"):
            _refuse(path, 1, f"birth.dtypes.{name} {birth['dtypes'].get(name)!r:.40}", "<f4 or <f8")


def _check_event(path: Path, number: int, event: dict[str, Any], events: list[dict[str, Any]]) -> None:
    """The keys and kinds of one line, and that it follows the one before."""
    missing = [key for key in _KEYS if key not in event]
    if missing:
        _refuse(path, number, f"no {', '.join(missing)}", "an event of a replay")
    first = number == 1
    name = BIRTH if first else f"step_{number - 2}"
    if event["event_id"] != name:
        _refuse(path, number, f"event_id {event['event_id']!r:.40}", f"{name}; lines are missing or out of order")
    before = None if first else events[number - 2]["after_hash"]
    if event["before_hash"] != before:
        _refuse(path, number, "before_hash is not the after_hash of the line before", "lines in order, none altered")
    delta, layers = event["delta"], event["layers"]
    if (
        not isinstance(delta, dict)
        or not fits("vector", delta.get("action"))
        or not fits("number", delta.get("reward"))
    ):
        _refuse(path, number, "delta without action and reward", "an action (a vector) and a reward (a number)")
    joints = len(events[0]["birth"]["names"]["joints"])
    if len(delta["action"]) != joints:
        _refuse(path, number, f"an action of {len(delta['action'])} numbers", f"{joints}, one for each joint")
    reward = float(delta["reward"])
    if isinstance(event["trit"], bool) or event["trit"] != (reward > 0) - (reward < 0):
        _refuse(path, number, f"trit {event['trit']!r:.40} for a reward of {reward:g}", "the sign of the reward")
    if not isinstance(layers, dict) or any(not isinstance(layers.get(layer), dict) for layer in LAYERS):
        _refuse(path, number, "layers are missing", f"each of {', '.join(LAYERS)}")
    tables = {"physics": "PhysicsState", "observation": "Observation"}
    for layer, ob in tables.items():
        _check_fields(path, number, layers[layer], layer, attributes(ob), events[0]["layers"][layer])
    impact = event["impact"]
    if isinstance(impact, bool) or impact not in (0, 1) or (impact == 1 and (first or number < len(events))):
        _refuse(path, number, f"impact {impact!r:.40}", "1 where the episode ends, in the last line, else 0")
    if first:
        return
    kinds = {"terms": attributes("Reward")["terms"], **attributes("Trajectory")}
    _check_fields(path, number, {**layers["given"], **layers["reward"]}, "given and reward", kinds, {})
    if layers["reward"]["done"] != bool(impact):
        _refuse(path, number, f"impact {impact} where done is {layers['reward']['done']}", "both the same")


def _check_fields(
    path: Path, number: int, got: dict[str, Any], where: str, kinds: dict[str, str], like: dict[str, Any]
) -> None:
    for name, kind in kinds.items():
        if name not in got or not fits(kind, got[name]):
            _refuse(path, number, f"layers, {where}: {name} {got.get(name)!r:.40}", f"a value of kind {kind}")
        if kind == "vector" and len(got[name]) != len(like.get(name, got[name])):
            _refuse(path, number, f"{name} of {len(got[name])} numbers", f"{len(like[name])}, as at the birth")


def _check_state(path: Path, number: int, event: dict[str, Any], dtypes: dict[str, str]) -> None:
    """That the state's numbers have the hash that the line says."""
    state = event["layers"]["physics"]
    arrays = {name: np.asarray(numbers(state[name]), dtypes[name]) for name in attributes("PhysicsState")}
    if hash_arrays(arrays) != event["after_hash"]:
        _refuse(path, number, "the state is not the one of after_hash", "a line that nobody altered")


def numbers(value: list[Any]) -> list[float]:
    """A vector of a log with its words for what is not finite as numbers."""
    return [float(v) if v in NOT_FINITE else v for v in value]
