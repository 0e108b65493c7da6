"""What a checkpoint says about itself: one JSON document, with a digest of the rest of it, the order of keys included.

Documents of format 1, the first version's, have no digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ksim import legacy
from ksim.config import Config
from ksim.errors import CheckpointError
from ksim.load import from_dict
from robots.errors import SpecError
from robots.spec import RobotSpec, digest
from toolkit.errors import SettingsError
from toolkit.settings import KIND
from toolkit.strict_json import loads

FORMAT = 2
# of the first version, whose files have no digest of their description
FIRST_FORMAT = 1


def _text(meta: Mapping[str, Any]) -> bytes:
    """As JSON, in the order given: the order of the commands is that of the command vector."""
    return json.dumps(meta, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def described(meta: Mapping[str, Any]) -> bytes:
    """What a checkpoint says about itself, with the digest of it.

    Raises:
        CheckpointError: it could not be read again, for example because a name in it is no text.
    """
    body = {"format": FORMAT, **{k: v for k, v in meta.items() if k not in ("format", "digest")}}
    try:
        text = _text({**body, "digest": hashlib.sha256(_text(body)).hexdigest()})
        loads(text)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"checkpoint: its description could not be read again ({reason}); correct it") from error
    return text


def check_description(path: Path, meta: dict[str, Any]) -> None:
    """That it is of a format that we know, is the one that was written, and says where the run was in numbers."""
    found = meta.get("format")
    if isinstance(found, bool) or found not in (FIRST_FORMAT, FORMAT):
        raise CheckpointError(f"{path}: checkpoint format {found!r:.40}, expected {FORMAT} or {FIRST_FORMAT}")
    first = found == FIRST_FORMAT
    if first == ("digest" in meta):
        had = "a digest" if first else "no digest"
        raise CheckpointError(f"{path}: {had} in a checkpoint of format {found}; it was altered; use another")
    body = _text({k: v for k, v in meta.items() if k != "digest"})
    if not first and hashlib.sha256(body).hexdigest() != meta["digest"]:
        raise CheckpointError(
            f"{path}: what it says of its configuration, robot and mirror has not the digest that was written with it; "
            "it was altered; use another"
        )
    try:
        _check_progress(meta)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a checkpoint of this version: {error}; use another") from error


def _check_progress(meta: Mapping[str, Any]) -> None:
    for name in ("progress", "started_from"):
        if not isinstance(meta.get(name, {}), dict):
            raise ValueError(f"{name} {meta[name]!r:.40}, expected an object")
    for name, value in meta.get("progress", {}).items():
        whole = name in ("updates", "steps")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} {value!r:.40}, expected {'a whole number' if whole else 'a number'}")
        if whole and value < 0:
            raise ValueError(f"{name} {value}, expected 0 or more")
        if name == "level" and not 0.0 <= value <= 1.0:
            raise ValueError(f"level {value}, expected 0 to 1")


def read_config(path: str | Path, meta: Mapping[str, Any]) -> Config:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: there is none of this version, or a class of its terms is not loaded.
    """
    try:
        return from_dict(legacy.of_checkpoint(meta["config"]))
    except (KeyError, SettingsError, TypeError) as error:
        key = error.key.rpartition(".")[2] if isinstance(error, SettingsError) else ""
        if isinstance(error, SettingsError) and key == KIND and error.problem.startswith("got "):
            name = error.problem.removeprefix("got ").split(";")[0].split(",")[0].strip("'")
            raise CheckpointError(
                f"{path}: the class {name} ({error.key.removesuffix(f'.{KIND}')}) is not loaded; load the file that "
                "has it: ksim --with FILE.py VERB ..., or run that file in place of ksim"
            ) from error
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(f"{path}: not a checkpoint of this version: {reason}; use another") from error


def read_robot(path: str | Path, meta: Mapping[str, Any]) -> RobotSpec:
    """The robot of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is not the one that the policy was trained on.
    """
    try:
        robot = RobotSpec.from_json(meta["robot"])
    except (KeyError, SpecError, TypeError) as error:
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(f"{path}: not a checkpoint of this version: robot: {reason}; use another") from error
    if meta.get("robot_digest") != digest(meta["robot"]):
        got = "altered" if "robot_digest" in meta else "without its digest"
        raise CheckpointError(f"{path}: the robot in it is {got}; expected the one that it was trained on; use another")
    return robot
