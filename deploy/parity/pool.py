"""Several logs of one robot as one judgement: each figure at its worst, with its mean; suspects by how often."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy.parity.layers import Parity, judged
from deploy.parity.report import Figure, Judgement, Layer, LayerName, Mark, Suspect

_ORDER = (Mark.BAD, Mark.LOOK, Mark.GOOD, Mark.NONE)


def _distance(figure: Figure) -> tuple[int, float]:
    """How bad it is: by its mark, then by its size."""
    value = figure.value if figure.value is not None and math.isfinite(figure.value) else None
    size = -math.inf if value is None else -value if figure.at_least else abs(value)
    return -_ORDER.index(figure.mark), size


def pooled_figure(figures: Sequence[Figure]) -> Figure:
    """The worst of one figure of several logs, with the mean of all."""
    values = [f.value for f in figures if f.value is not None and math.isfinite(f.value)]
    return dataclasses.replace(max(figures, key=_distance), mean=float(np.mean(values)) if values else None)


def pooled_layer(layers: Sequence[Layer]) -> Layer:
    """One layer of several logs."""
    by_key: dict[tuple[str, str], list[Figure]] = {}
    seen: dict[str, int] = {}
    for layer in layers:
        for figure in layer.figures:
            # the worst of a figure may sit at another joint in each log; one that comes several times is of each joint
            alone = sum(f.key == figure.key for f in layer.figures) == 1
            by_key.setdefault((figure.key, "" if alone else figure.where), []).append(figure)
            seen.setdefault(figure.key, len(seen))
    figures = [pooled_figure(found) for _, found in sorted(by_key.items(), key=lambda item: seen[item[0][0]])]
    joints: dict[str, float] = {}
    for layer in layers:
        for name, share in layer.joints.items():
            joints[name] = max(joints.get(name, 0.0), share)
    untold = "" if figures else "; ".join(dict.fromkeys(layer.untold for layer in layers if layer.untold))
    return Layer(name=layers[0].name, figures=tuple(figures), joints=joints, untold=untold)


def pooled_suspects(lists: Sequence[Sequence[Suspect]]) -> tuple[Suspect, ...]:
    """What is suspected in any log; it explains the mean over the logs, 0 where it is not suspected."""
    found: dict[tuple[Any, ...], list[Suspect]] = {}
    for suspects in lists:
        for suspect in suspects:
            found.setdefault((suspect.cause, suspect.places), []).append(suspect)
    out = []
    for same in found.values():
        first = max(same, key=lambda s: s.explains)
        share = sum(s.explains for s in same) / len(lists)
        out.append(dataclasses.replace(first, explains=share, direct=all(s.direct for s in same)))
    return tuple(sorted(out, key=lambda s: -s.explains))


def pooled(results: Sequence[Parity]) -> Judgement:
    """The judgement of several logs together."""
    layers = tuple(
        pooled_layer([next(la for la in r.judgement.layers if la.name is name) for r in results]) for name in LayerName
    )
    return Judgement(layers=layers, suspects=pooled_suspects([r.judgement.suspects for r in results]))


def pooled_report(results: Sequence[Parity], judgement: Judgement) -> dict[str, Any]:
    """What report.json holds of several logs: the judgement, and under `logs` that of each."""
    logs = [
        {"log": r.report["log"], "log_complete": r.report["log_complete"], "duration_s": r.report["loop"]["duration_s"]}
        | judged(r.judgement)
        for r in results
    ]
    return {
        "robot": results[0].report["robot"],
        "simulation": results[0].report["simulation"],
        "simulation_sha256": results[0].report.get("simulation_sha256"),
        **judged(judgement),
        "logs": logs,
    }
