"""From a checkpoint, or any JAX policy, to a .kinfer bundle with proof. Heavy imports happen in the modules.

`export.convert(step, init_carry, spec)` is the call for policies that were trained elsewhere, and
`export.prove(bundle, step, init_carry, episodes)` proves what it gave on recorded inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import ExportError

if TYPE_CHECKING:
    from export.proof import prove
    from export.tracing import convert

__all__ = ["ExportError", "convert", "prove"]


def __getattr__(name: str) -> Any:
    if name == "convert":
        from export.tracing import convert

        return convert
    if name == "prove":
        from export.proof import prove

        return prove
    raise AttributeError(f"module 'export' has no attribute {name!r}")
