"""Sizes up a node by its operator's rule, and computes the integers that later sizes depend on."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import numpy as np

import deploy.bundle.graph.sums  # noqa: F401  (adds its rules)
from deploy.bundle.graph.shapes import LOOSE, MAX_FOLDED, RULES, Call, Value, check_size, slice_end

# What happens to constants: elsewhere the rules give sizes, only these compute, to follow sizes that a graph makes
# from integers that it knows.


def _fold_slice(call: Call, v: list[np.ndarray]) -> np.ndarray:
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes, steps = call.integers("axes", 3), call.integers("steps", 4) or [1] * len(starts)
    cut: list[slice] = [slice(None)] * v[0].ndim
    for start, end, axis, step in zip(starts, ends, range(v[0].ndim) if axes is None else axes, steps, strict=False):
        cut[axis] = slice(start, slice_end(end, step, v[0].shape[axis]), step)
    return v[0][tuple(cut)]


def _fold_div(call: Call, v: list[np.ndarray]) -> np.ndarray:
    return np.sign(v[0]) * np.sign(v[1]) * (np.abs(v[0]) // np.abs(v[1]))  # towards zero


def _fold_range(call: Call, v: list[np.ndarray]) -> np.ndarray:
    return np.arange(int(v[0].reshape(())), int(v[1].reshape(())), int(v[2].reshape(())))


_FOLDS: dict[str, Callable[[Call, list[np.ndarray]], Any]] = {
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"), lambda call, v: v[0]),
    "Add": lambda call, v: v[0] + v[1],
    "Sub": lambda call, v: v[0] - v[1],
    "Mul": lambda call, v: v[0] * v[1],
    "Div": _fold_div,
    "Min": lambda call, v: np.minimum.reduce(np.broadcast_arrays(*v)),
    "Max": lambda call, v: np.maximum.reduce(np.broadcast_arrays(*v)),
    "Equal": lambda call, v: v[0] == v[1],
    "Greater": lambda call, v: v[0] > v[1],
    "Less": lambda call, v: v[0] < v[1],
    "GreaterOrEqual": lambda call, v: v[0] >= v[1],
    "LessOrEqual": lambda call, v: v[0] <= v[1],
    "And": lambda call, v: v[0] & v[1],
    "Or": lambda call, v: v[0] | v[1],
    "Not": lambda call, v: ~v[0],
    "Expand": lambda call, v: np.broadcast_to(v[0], np.broadcast_shapes(v[0].shape, tuple(v[1]))),
    "Where": lambda call, v: np.where(v[0], v[1], v[2]),
    "Concat": lambda call, v: np.concatenate(v, axis=call.integer("axis", 0)),
    "Gather": lambda call, v: np.take(v[0], v[1], axis=call.integer("axis", 0)),
    "Slice": _fold_slice,
    "Transpose": lambda call, v: np.transpose(v[0], call.integers("perm")),
    "ReduceProd": lambda call, v: np.prod(v[0]),
    "Range": _fold_range,
}


def _fold(call: Call, out: Value) -> Value:
    """The output with its elements, where all that it is made of is known and integer."""
    known = [v.const for v in call.given if v.const is not None and v.dtype.kind in "iub"]
    if call.op not in _FOLDS or len(known) != len(call.inputs) or out.const is not None or out.size > MAX_FOLDED:
        return out
    if out.dtype.kind not in "iub" or (call.op == "ReduceProd" and out.size != 1):
        return out
    try:
        with np.errstate(all="ignore"):
            made = np.asarray(_FOLDS[call.op](call, known)).astype(out.dtype).reshape(out.shape)
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"constants that do not fit ({' '.join(str(error).split()):.100})") from error
    return Value(dtype=out.dtype, shape=out.shape, const=made)


# Which inputs may be left out by an empty name. Elsewhere ONNX Runtime 1.32 follows a null pointer: Max(x, "").
_OPTIONAL: dict[str, Set[int]] = {
    "Clip": {1, 2}, "Conv": {2}, "Dropout": {1, 2}, "Gemm": {2}, "LayerNormalization": {2}, "Pad": {2, 3},
    "Slice": {3, 4}, "Split": {1}, "Squeeze": {1}, "Trilu": {1},
    **dict.fromkeys(("LSTM", "GRU", "RNN"), frozenset({3, 4, 5, 6, 7})),
    **dict.fromkeys((op for op in RULES if op.startswith("Reduce")), frozenset({1})),
}  # fmt: skip


def size_up(call: Call) -> list[Value]:
    """What a node makes; sets `call.work` and `call.scratch`.

    Raises:
        ValueError: the operator is unknown, its inputs do not fit, or its sizes are not fixed.
    """
    size = RULES.get(call.op)
    if call.op in ("Loop", "Scan"):
        raise ValueError("a loop, which could run without end; unroll it (a loop of Python's)")
    if size is None:
        raise ValueError("an operator that a policy has no use for, or that could run without end")
    left_out = {at for at, value in enumerate(call.inputs) if value is None} - _OPTIONAL.get(call.op, set())
    if left_out:
        raise ValueError(f"input {min(left_out)} is missing")
    if call.op not in LOOSE and not call.exact:
        raise ValueError("a size that depends on values; expected fixed sizes")
    out = size(call)
    if len(out) < call.outputs:
        raise ValueError(f"{call.outputs} outputs; expected at most {len(out)}")
    out = out[: call.outputs]
    for value in out:
        check_size(value.shape)
    call.work += sum(v.size for v in out)
    return [_fold(call, out[0])] if len(out) == 1 else out
