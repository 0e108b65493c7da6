"""What a policy function is: `(inputs, carry) -> (action, carry)`, and the same over one flat carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from export.errors import ExportError
from robots.spec import CarrySpec

Step = Callable[[dict[str, Any], Any], tuple[Any, Any]]
# The part of the carry of a policy that has none: .kinfer wants one, so it gets a zero that goes round.
UNUSED = "unused"


@dataclass(frozen=True, kw_only=True)
class FlatPolicy:
    """A policy function over one flat carry.

    Attributes:
        step: `(inputs, carry) -> (action, carry)` with carries of shape (size,).
        carry: the first carry, (size,), float32.
        layout: what the flat carry holds, in order.
    """

    step: Step
    carry: np.ndarray
    layout: tuple[CarrySpec, ...]


def _is_key(leaf: Any) -> bool:
    kind = getattr(leaf, "dtype", None)
    return kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key)


def _remedy(leaf: np.ndarray) -> str:
    if leaf.dtype.kind in "iu":
        return "; count in float32, which has whole numbers up to 2^24, and cast where one is needed"
    if leaf.dtype.kind == "b":
        return "; keep it as 0.0 and 1.0, and compare with 0.5"
    return "; write jnp.float32(...) or .astype(jnp.float32)" if leaf.dtype.kind == "f" and leaf.itemsize != 4 else ""


def flatten(step: Step, init_carry: Any) -> FlatPolicy:
    """Lay the parts of a carry, any pytree of float32 arrays, one after the other, named by their paths in it.

    Raises:
        ExportError: a part is not float32 or not finite, or `step` returns a carry of another structure.
    """
    found, tree = jax.tree_util.tree_flatten_with_path(init_carry)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    keys = [n for n, (_, leaf) in zip(names, found, strict=True) if _is_key(leaf)]
    if keys:
        raise ExportError(
            f"initial carry{keys[0] and f', part {keys[0]}'}: got a key of random numbers, expected float32; a policy "
            "that is deployed is the mean of its distribution: leave the noise and its key out"
        )
    leaves = [np.asarray(leaf) for _, leaf in found]
    for name, leaf in zip(names, leaves, strict=True):
        if leaf.dtype != np.float32 or leaf.size == 0 or not np.isfinite(leaf).all():
            raise ExportError(
                f"initial carry{name and f', part {name}'}: got shape {leaf.shape} {leaf.dtype}, "
                f"expected float32, not empty, all finite{_remedy(leaf)}"
            )
    shapes = [leaf.shape for leaf in leaves]
    sizes = [leaf.size for leaf in leaves]
    layout = tuple(CarrySpec(name=n or "carry", shape=s) for n, s in zip(names, shapes, strict=True))
    if not leaves:
        layout = (CarrySpec(name=UNUSED, shape=(1,)),)

    def flat_step(inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        flat = jnp.split(carry, np.cumsum(sizes)[:-1]) if len(sizes) > 1 else [carry][: len(sizes)]
        parts = [v if len(s) == 1 else v.reshape(s) for v, s in zip(flat, shapes, strict=True)]
        out = step(inputs, jax.tree_util.tree_unflatten(tree, parts))
        if not isinstance(out, tuple) or len(out) != 2:
            raise ExportError(f"policy function: returns {type(out).__name__}, expected (action, carry)")
        action, after = out
        after_leaves, after_tree = jax.tree_util.tree_flatten(after)
        got = [(np.shape(v), str(getattr(v, "dtype", type(v).__name__))) for v in after_leaves]
        if after_tree != tree or got != [(s, "float32") for s in shapes]:
            raise ExportError(
                f"policy function: returns a carry of {after_tree} {got}, expected that of the initial carry, "
                f"{tree} {shapes} float32"
            )
        if not after_leaves:
            return action, carry
        rows = [v if len(s) == 1 else v.reshape(-1) for v, s in zip(after_leaves, shapes, strict=True)]
        return action, jnp.concatenate(rows) if len(rows) > 1 else rows[0]

    start = np.concatenate([leaf.reshape(-1) for leaf in leaves]) if leaves else np.zeros(1, np.float32)
    return FlatPolicy(step=flat_step, carry=start, layout=layout)
