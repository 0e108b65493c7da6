"""Each policy exported and compared with JAX: a row of the table, and a bundle for the runtimes."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import export.tracing
from export import ExportError, convert
from export.compare import Onnx, Reference, compare
from export.function import flatten
from robots.bundle import write_bundle
from tried.case import Case, rows, spec

LINE = re.compile(r" \((\w+\.py):\d+(?:: .*)?\)(?=;|$)")
PACKAGES = ("jax", "flax", "equinox", "jax2onnx", "onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a policy.

    Attributes:
        works: exported, and its steps are JAX's.
        said: by which way around, or why not.
        error: greatest difference of a step, where it was compared.
    """

    works: bool
    said: str = ""
    error: float = 0.0


def attempt(case: Case, path: Path | None = None) -> Tried:
    """Export a policy, compare its steps, write the bundle and its inputs and actions beside one another."""
    ways: list[bool] = []
    plain, lower, around = export.tracing._convert, export.tracing.lower, frozenset[str]()

    def convert_told(flat, spec, opset, lowered):  # type: ignore[no-untyped-def]
        ways.append(lowered)
        return plain(flat, spec, opset, lowered)

    def lower_told(function, arguments):  # type: ignore[no-untyped-def]
        nonlocal around
        found = lower(function, arguments)
        around = found.around
        return found

    step, carry = case.make()
    export.tracing._convert, export.tracing.lower = convert_told, lower_told
    try:
        bundle = convert(step, carry, spec())
    except ExportError as error:
        return Tried(works=False, said=LINE.sub("", str(error).removeprefix("policy function: ")))
    finally:
        export.tracing._convert, export.tracing.lower = plain, lower
    given, flat, onnx = rows(), flatten(step, carry), Onnx(bundle)
    resets = np.zeros(len(given["time"]), bool)
    try:
        found = compare(onnx, Reference(flat.step, flat.carry), given, resets, carry_limited=False)
    except ExportError as error:
        return Tried(works=False, said=str(error))
    error = max(found.step_action_error, found.step_carry_error)
    if not found.of_limit <= 1.0:
        return Tried(works=False, said=f"wrong by {error:.2g} in a step", error=error)
    if path is not None:
        write_bundle(path.with_suffix(".kinfer"), bundle)
        np.savez(
            path.with_suffix(".npz"), actions=onnx.run(given, resets).actions, **{k: given[k] for k in onnx.inputs}
        )
    said = ""
    if ways[-1]:
        said = f"around {', '.join(f'`{name}`' for name in sorted(around))}" if around else "by JAX's primitives"
    return Tried(works=True, said=said, error=error)


def tables(cases: Sequence[Case], folder: Path) -> Iterator[str]:
    """A table for each part."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    yield f"## Layers and operations\n\n{versions}."
    total = {True: 0, False: 0}
    for number, (group, some) in enumerate(itertools.groupby(cases, key=lambda case: case.group)):
        yield f"\n### {group}\n\n| policy | result |\n|---|---|"
        for k, case in enumerate(some):
            found = attempt(case, folder / f"{number:02d}_{k:03d}")
            total[found.works] += 1
            result = "works" if found.works else "refused"
            said = found.said.replace("|", "\\|")
            name = case.name if group == "Whole policies" else f"`{case.name}`"
            yield f"| {name.replace('|', chr(92) + '|')} | {result}{said and f': {said}'} |"
    yield f"\n{total[True]} work, {total[False]} are refused."
