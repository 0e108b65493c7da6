"""Reading and writing at computed places, as one lookup in a flat array or as a choice by comparison.

jax2onnx has forms of its own for these, which stop ONNX Runtime where an index is out of bounds, have sizes that are
not fixed, or use operators that no robot's runtime takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_Mode = lax.GatherScatterMode


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def take(operand: Any, at: Any) -> Any:
    """Elements of an array, by their places in it as if it were flat; the shape is that of the places."""
    numbers = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))
    flat, places = lax.reshape(operand, (operand.size,)), lax.reshape(at, (at.size, 1))
    mode = _Mode.PROMISE_IN_BOUNDS
    found = lax.gather_p.bind(
        flat, places, dimension_numbers=numbers, slice_sizes=(1,), indices_are_sorted=False, unique_indices=False,
        mode=mode, fill_value=None,
    )  # fmt: skip
    return lax.reshape(found, at.shape)


def _within(index: Any, top: int) -> tuple[Any, Any]:
    """(an index held within 0 and top, whether it was)."""
    held = lax.min(lax.max(index, lax.full_like(index, 0)), lax.full_like(index, top))
    return held, lax.eq(held, index)


def _first(index: Any, k: int) -> Any:
    return lax.index_in_dim(index, k, -1, keepdims=False)


def known_gather(inputs: list[Any], params: dict[str, Any], run: Any) -> list[Any]:
    """A lookup at known places that are all there: what it would give elsewhere, a NaN, need not be in the graph."""
    operand, indices = inputs
    if not isinstance(indices, jax.core.Tracer):
        dims = params["dimension_numbers"].start_index_map
        top = [operand.shape[dim] - params["slice_sizes"][dim] for dim in dims]
        if ((np.asarray(indices) >= 0) & (np.asarray(indices) <= top)).all():
            params = {**params, "mode": _Mode.PROMISE_IN_BOUNDS, "fill_value": None}
    return [lax.gather_p.bind(operand, indices, **params)]


def gather(inputs: list[Any], params: dict[str, Any]) -> list[Any] | None:
    """lax.gather at computed places, all of its forms."""
    operand, indices = inputs
    numbers, sizes, strides = params["dimension_numbers"], params["slice_sizes"], _strides(operand.shape)
    promised = _Mode.from_any(params["mode"]) is _Mode.PROMISE_IN_BOUNDS
    if operand.size == 0 or (promised and not isinstance(indices, jax.core.Tracer)):
        return None
    indices = lax.convert_element_type(indices, jnp.int32)
    batch = indices.shape[:-1]
    start, valid = jnp.zeros(batch, jnp.int32), None
    for k, dim in enumerate(numbers.start_index_map):
        held, ok = _within(_first(indices, k), operand.shape[dim] - sizes[dim])
        start = start + held * strides[dim]
        valid = ok if valid is None else valid & ok
    for dim, of in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        start = start + lax.broadcasted_iota(jnp.int32, batch, of) * strides[dim]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    window = [dim for dim in range(operand.ndim) if dim not in gone]
    inside = np.zeros([sizes[dim] for dim in window], np.int32)
    for axis, dim in enumerate(window):
        along = [-1 if a == axis else 1 for a in range(len(window))]
        inside = inside + (np.arange(sizes[dim], dtype=np.int32) * strides[dim]).reshape(along)
    rank = len(batch) + len(window)
    outside = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    shape = [0] * rank
    for axis, size in (*zip(numbers.offset_dims, inside.shape, strict=True), *zip(outside, batch, strict=True)):
        shape[axis] = size
    places = lax.broadcast_in_dim(start, shape, outside) + lax.broadcast_in_dim(
        jnp.asarray(inside), shape, numbers.offset_dims
    )
    found = take(operand, places)
    if _Mode.from_any(params["mode"]) is not _Mode.FILL_OR_DROP or valid is None:
        return [found]
    valid = lax.broadcast_in_dim(valid, shape, outside)
    fill = params["fill_value"]
    if fill is None and jnp.issubdtype(operand.dtype, jnp.floating):
        # no graph may have a NaN among its constants; this is 0 where the index is good, else NaN
        one = lax.full_like(found, 1)
        return [found + lax.log(lax.select(valid, one, -one))]
    fill = 0 if fill is None and operand.dtype == bool else fill
    if fill is None:
        fill = jnp.iinfo(operand.dtype).min if jnp.issubdtype(operand.dtype, jnp.signedinteger) else -1
    return [lax.select(valid, found, lax.full_like(found, fill))]


def _clamped(starts: Sequence[Any], shape: Sequence[int], sizes: Sequence[int]) -> list[Any]:
    return [_within(s, n - k)[0] for s, n, k in zip(starts, shape, sizes, strict=True)]


def dynamic_slice(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
    """A slice of fixed sizes at a computed place."""
    operand, *starts = inputs
    sizes = params["slice_sizes"]
    if not any(isinstance(s, jax.core.Tracer) for s in starts):
        first = [min(max(int(s), 0), n - k) for s, n, k in zip(starts, operand.shape, sizes, strict=True)]
        return [lax.slice(operand, first, [s + k for s, k in zip(first, sizes, strict=True)])]
    places = jnp.zeros(sizes, jnp.int32)
    starts = _clamped([lax.convert_element_type(s, jnp.int32) for s in starts], operand.shape, sizes)
    for dim, (start, stride) in enumerate(zip(starts, _strides(operand.shape), strict=True)):
        places = places + (lax.broadcasted_iota(jnp.int32, sizes, dim) + start) * stride
    return [take(operand, places)]


def dynamic_update_slice(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
    """An array with another one written over it at a computed place, which is held within it."""
    operand, update, *starts = inputs
    starts = _clamped([lax.convert_element_type(s, jnp.int32) for s in starts], operand.shape, update.shape)
    places, inside = jnp.zeros(operand.shape, jnp.int32), None
    for dim, (start, stride) in enumerate(zip(starts, _strides(update.shape), strict=True)):
        if operand.shape[dim] == update.shape[dim]:
            places = places + lax.broadcasted_iota(jnp.int32, operand.shape, dim) * stride
            continue
        held, ok = _within(lax.broadcasted_iota(jnp.int32, operand.shape, dim) - start, update.shape[dim] - 1)
        places, inside = places + held * stride, ok if inside is None else inside & ok
    return [update] if inside is None else [_merge(inside, take(update, places), operand)]


def _merge(condition: Any, true: Any, false: Any) -> Any:
    if true.dtype != bool:
        return lax.select(condition, true, false)
    return (condition & true) | (~condition & false)


def scatter(combine: Callable[[Any, Any], Any], reduce: Callable[[Any, tuple[int, ...]], Any], neutral: Any) -> Any:
    """A rule for x.at[places].set and its like.

    Args:
        combine: of what is there and what is written.
        reduce: what several at the same place come to, over axes.
        neutral: what changes nothing; None of a `set`, where the last one stands.
    """

    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
        operand, indices, updates = inputs
        numbers, strides = params["dimension_numbers"], _strides(operand.shape)
        indices = lax.convert_element_type(indices, jnp.int32)
        outside = [axis for axis in range(updates.ndim) if axis not in numbers.update_window_dims]
        gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        window = [dim for dim in range(operand.ndim) if dim not in gone]
        sizes = {dim: updates.shape[axis] for dim, axis in zip(window, numbers.update_window_dims, strict=True)}
        # the place of each element of the updates along each dimension of the operand
        along: list[Any] = [None] * operand.ndim
        for dim, axis in zip(window, numbers.update_window_dims, strict=True):
            along[dim] = lax.broadcasted_iota(jnp.int32, updates.shape, axis)
        for dim, of in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
            along[dim] = lax.broadcasted_iota(jnp.int32, updates.shape, outside[of])
        valid = jnp.ones(updates.shape, bool)
        clip = _Mode.from_any(params["mode"]) is _Mode.CLIP
        for k, dim in enumerate(numbers.scatter_dims_to_operand_dims):
            start = lax.broadcast_in_dim(_first(indices, k), updates.shape, outside)
            held, ok = _within(start, operand.shape[dim] - sizes.get(dim, 1))
            along[dim] = held if along[dim] is None else along[dim] + held
            valid = valid if clip else valid & ok
        places = sum((v * s for v, s in zip(along, strides, strict=True)), start=jnp.zeros(updates.shape, jnp.int32))
        return [_written(operand, places, valid, updates)]

    def _written(operand: Any, places: Any, valid: Any, updates: Any) -> Any:
        count, size = updates.size, operand.size
        if count == 0:
            return operand
        places = lax.reshape(lax.select(valid, places, lax.full_like(places, -1)), (count,))
        flat, new = lax.reshape(operand, (size,)), lax.reshape(updates, (count,))
        hit = lax.eq(
            lax.broadcast_in_dim(places, (count, size), (0,)), lax.broadcasted_iota(jnp.int32, (count, size), 1)
        )
        if neutral is None:
            # which update it is that is the last one here, from 1; 0 is none
            turn = lax.broadcasted_iota(jnp.int32, (count, size), 0) + 1
            last = lax.reduce_max(lax.select(hit, turn, lax.full_like(turn, 0)), (0,))
            taken = take(new, lax.max(last - 1, lax.full_like(last, 0)))
            return lax.reshape(_merge(lax.gt(last, lax.full_like(last, 0)), taken, flat), operand.shape)
        spread = lax.broadcast_in_dim(new, (count, size), (0,))
        whole = reduce(lax.select(hit, spread, lax.full_like(spread, neutral)), (0,))
        return lax.reshape(combine(flat, whole), operand.shape)

    return rule
