"""From a checkpoint, or any JAX policy, to a .kinfer bundle with proof. Heavy imports happen in the modules.

`export.convert(step, init_carry, spec)` is the call for policies that were trained elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import ExportError

if TYPE_CHECKING:
    from export.tracing import convert

__all__ = ["ExportError", "convert"]


def __getattr__(name: str) -> Any:
    if name != "convert":
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    from export.tracing import convert

    return convert
