"""Where a fit stands, in a file: killed and started again it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from deploy.sysid.fit import Search
from deploy.sysid.motion import SysidError
from toolkit.files import atomic_path

FORMAT = 1


class State:
    """The searches of a fit by the name of their stage, kept in a JSON file at full precision.

    Args:
        path: the file; None keeps nothing.
        about: what is fitted to what and how, plain JSON values. A file that is of something else is refused.

    Raises:
        SysidError: the file cannot be read, or is of another fit.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self._path = path
        self._digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self._stages: dict[str, Search] = {}
        if path is None or not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}")
            same = data["digest"] == self._digest
            self._stages = {name: _search(one) for name, one in data["stages"].items()}
        except OSError as error:
            raise SysidError(
                f"{path}: {error.strerror or error}; expected a file that keeps where the fit stands; name another"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise SysidError(
                f"{path}: not the state of a fit ({str(error)[:80]}); expected one that ksim sysid wrote; remove it"
            ) from error
        if not same:
            raise SysidError(
                f"{path}: the state of another fit; expected one of the same robot, motions, contacts and options; "
                "name another file, or remove it to begin anew"
            )

    def get(self, stage: str) -> Search | None:
        """Where a stage stands; None where it has not begun."""
        return self._stages.get(stage)

    def put(self, stage: str, search: Search) -> None:
        """Keep where a stage stands."""
        self._stages[stage] = search
        if self._path is None:
            return
        stages = {
            name: dataclasses.asdict(one) | {"x": one.x.tolist(), "damping": one.damping.tolist()}
            for name, one in self._stages.items()
        }
        with atomic_path(self._path) as part:
            part.write_text(json.dumps({"format": FORMAT, "digest": self._digest, "stages": stages}), encoding="utf-8")


def _search(data: dict[str, Any]) -> Search:
    x, damping = np.array(data["x"], dtype=float), np.array(data["damping"], dtype=float)
    if x.ndim != 1 or x.shape != damping.shape:
        raise ValueError(f"x of shape {x.shape}, damping of shape {damping.shape}")
    cost = tuple(map(float, data["cost"]))
    if not (np.isfinite(x).all() and np.isfinite(damping).all() and np.isfinite(cost).all()):
        raise ValueError("values that are not finite")
    return Search(x=x, damping=damping, cost=cost, done=bool(data["done"]))
