"""Which runtimes an export fits: asked before it is written, and told after."""

from __future__ import annotations

from pathlib import Path

from deploy.bundle.graph import read_graphs
from deploy.bundle.targets import TITLES, Finding, Target, fits, judge, rows
from export.errors import ExportError
from robots.bundle import Bundle


def judged(bundle: Bundle, path: str | Path, target: Target | None = None) -> dict[Target, tuple[Finding, ...]]:
    """What each runtime, or one of them, does not take of a bundle of that file name.

    Raises:
        ExportError: one is named, and it does not run the bundle.
    """
    found = judge(bundle, *read_graphs(bundle), Path(path).name)
    if target is None:
        return found
    if not fits(found[target]):
        why = "; ".join(f.text for f in found[target] if f.blocks)
        raise ExportError(
            f"--target {target.value}: {TITLES[target]} would not run it: {why}; "
            "expected a policy that fits; train one that does, or leave --target out"
        )
    return {target: found[target]}


def show_fits(found: dict[Target, tuple[Finding, ...]]) -> None:
    """Print what each runtime says of a bundle, a line for each thing."""
    for name, told in rows(found):
        print("\n".join(f"{name}: {line}" for line in told.split("\n")))
