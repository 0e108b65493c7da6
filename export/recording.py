"""Recorded inputs of a policy, checked: what a proof runs through both forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.bundle.envelope import SLACK
from export.errors import ExportError
from robots.inputs import GRAVITY_INPUT
from robots.rotation import GRAVITY_M_S2
from robots.spec import PolicySpec


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a policy was given, episode after episode; each began with the first carry.

    Attributes:
        inputs: by name, (M, k), float32.
        starts: where an episode starts, (M,).
        healthy: which rows show the robot as it should be: they make the envelope, (M,).
        unseen: inputs whose values stand for ones that nobody recorded: of these there is no envelope.
    """

    inputs: Mapping[str, np.ndarray]
    starts: np.ndarray
    healthy: np.ndarray
    unseen: frozenset[str] = frozenset()

    def first_rows(self, most: int | None = None) -> list[dict[str, np.ndarray]]:
        """The first row of each episode, of at most so many."""
        return [{name: rows[at] for name, rows in self.inputs.items()} for at in np.flatnonzero(self.starts)[:most]]

    @property
    def first_length(self) -> int:
        """Steps of the first episode."""
        later = np.flatnonzero(self.starts)[1:2]
        return int(later[0]) if later.size else len(self.starts)

    @classmethod
    def of_episodes(cls, spec: PolicySpec, episodes: Sequence[Mapping[str, Any]]) -> Recording:
        """Of a list of episodes, each a dict of arrays (T, k) by the names of the spec's inputs.

        Raises:
            ExportError: there is none, an input is missing, or an array has another shape or is not finite.
        """
        if not isinstance(episodes, (list, tuple)) or not episodes:
            raise ExportError(
                f"episodes: got {_kind(episodes)}, expected a list of dicts, one for each recorded episode: "
                "{input: array (T, size)}"
            )
        rows = [_episode(spec, episode, f"episode {i}") for i, episode in enumerate(episodes)]
        starts = np.concatenate([np.arange(_length(row)) == 0 for row in rows])
        inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return cls(inputs=inputs, starts=starts, healthy=np.ones(len(starts), bool))


def _kind(value: Any) -> str:
    return "an empty list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


def _length(rows: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))


def _episode(spec: PolicySpec, episode: Any, what: str) -> dict[str, np.ndarray]:
    names = [a.name for a in spec.inputs]
    if not isinstance(episode, Mapping) or any(name not in episode for name in names):
        got = ", ".join(map(str, episode)) if isinstance(episode, Mapping) else type(episode).__name__
        raise ExportError(f"{what}: got {got or 'nothing'}; expected a dict with arrays of {', '.join(names)}")
    rows: dict[str, np.ndarray] = {}
    for array in spec.inputs:
        size = int(np.prod(array.shape))
        try:
            value = np.asarray(episode[array.name], np.float32)
        except (TypeError, ValueError):
            value = np.zeros(0, np.float32)  # refused below
        if value.size == 0 or np.shape(value) != (len(value), size) or not np.isfinite(value).all():
            raise ExportError(
                f"{what}, {array.name}: got shape {np.shape(value)}, expected (T, {size}), T at least 1, all finite"
            )
        low, high = (np.broadcast_to(v, size) for v in (array.low, array.high))
        slack = SLACK.get(array.name, 1e-5)
        worst = np.maximum(low - slack - value, value - high - slack)
        t, i = np.unravel_index(int(worst.argmax()), worst.shape)
        if worst[t, i] > 0:
            unit = "" if array.unit == "mixed" else f" {array.unit}"
            raise ExportError(
                f"{what}, {array.name}, step {t}, element {i}: got {value[t, i]:.6g}{unit}, declared "
                f"{low[i]:.6g} to {high[i]:.6g}; record in SI, or declare the range in the spec's inputs"
            )
        gravity = np.linalg.norm(value, axis=1) if array.name == GRAVITY_INPUT else np.full(1, GRAVITY_M_S2)
        if not abs(float(np.median(gravity)) - GRAVITY_M_S2) < 1.0:
            raise ExportError(
                f"{what}, {array.name}: got vectors of length {np.median(gravity):.3g}, expected about "
                f"{GRAVITY_M_S2:g}: gravity in the IMU's frame [m/s^2], upright (0, 0, -{GRAVITY_M_S2:g})"
            )
        rows[array.name] = value
    lengths = {name: len(value) for name, value in rows.items()}
    if len(set(lengths.values())) > 1:
        raise ExportError(f"{what}: its inputs are of different lengths {lengths}; expected the same T for all")
    return rows
