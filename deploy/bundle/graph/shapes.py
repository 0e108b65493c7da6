"""What each operator of a policy's graph makes: type and size of its outputs, and what it costs, before it is run.

One rule an operator. Sizes are upper bounds: where the size of a slice depends on values, its input's size stands
for it, and the result is marked as not exact. An operator without a rule is refused, and with it all that could
run without end, ask for memory by value, draw random numbers or call code: Loop, Scan, Range of an input,
Resize, RandomNormal, functions, other domains.

Why not ONNX's own shape inference: it is C++ that follows a hostile graph without a bound on time or memory (a
constant and 24 times `Concat(x, x)`, a file of 1 kB, took onnx 1.23 21 s and 4.5 GiB), and would have to run in a
process of its own.

Source of the rules: the operators' descriptions in the ONNX specification, opsets 7 to 23; a test compares each
with what ONNX Runtime makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_ELEMENTS = 2**24
MAX_FOLDED = 4096
INT64, FLOAT, BOOL = np.dtype("<i8"), np.dtype("<f4"), np.dtype("?")


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a name in the graph stands for.

    Attributes:
        dtype: type of the elements.
        shape: number of elements along each axis, or the most there can be.
        const: the elements themselves where they do not depend on an input and are few.
        exact: the shape is not only a bound.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    const: np.ndarray | None = None
    exact: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(kw_only=True)
class Call:
    """One node, about to be sized.

    Attributes:
        op: the operator.
        inputs: None where one is left out.
        attributes: by name: int, float, bytes, arrays, lists.
        outputs: how many it is asked for.
        opset: version of the operators.
        work: multiplications and additions, and elements written; set by the rule.
        scratch: elements that it needs besides its outputs; set by the rule.
    """

    op: str
    inputs: list[Value | None]
    attributes: dict[str, Any]
    outputs: int
    opset: int
    work: int = 0
    scratch: int = 0

    @property
    def given(self) -> list[Value]:
        """The inputs that are there."""
        return [v for v in self.inputs if v is not None]

    @property
    def exact(self) -> bool:
        """No input's shape is only a bound."""
        return all(v.exact for v in self.given)

    def value(self, at: int) -> Value:
        """An input that must be there."""
        found = self.inputs[at] if at < len(self.inputs) else None
        if found is None:
            raise ValueError(f"input {at} is missing")
        return found

    def one_type(self) -> None:
        """All inputs hold elements of one type."""
        kinds = {str(v.dtype) for v in self.given}
        if len(kinds) > 1:
            raise ValueError(f"inputs of {' and '.join(sorted(kinds))}; expected one type")

    def has(self, at: int) -> bool:
        """An input is given."""
        return at < len(self.inputs) and self.inputs[at] is not None

    def constant(self, at: int) -> np.ndarray:
        """The elements of an input that sizes depend on."""
        found = self.value(at).const
        if found is None:
            raise ValueError(f"a size that depends on values (its input {at}); expected fixed sizes")
        return found

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        found = self.attributes.get(name, default)
        if not isinstance(found, int):
            raise ValueError(f"attribute {name}; expected an integer")
        return found

    def integers(self, name: str, at: int | None = None) -> list[int] | None:
        """A list from an attribute, or from a constant input (the form of later opsets); None where neither is."""
        found = self.attributes.get(name)
        given = at is not None and self.has(at)
        if found is not None and given:
            raise ValueError(f"{name} as attribute and as input; expected one of them")
        if given:
            found = self.constant(at)  # type: ignore[arg-type]
            if found.dtype.kind not in "iu" or found.ndim > 1:
                raise ValueError(f"{name} of {found.dtype} {found.shape}; expected a list of integers")
            return [int(v) for v in found.reshape(-1)]
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(v, int) for v in found):
            raise ValueError(f"attribute {name}; expected a list of integers")
        return found


Rule = Callable[[Call], list[Value]]
RULES: dict[str, Rule] = {}
LOOSE: set[str] = set()


def rule(*ops: str, loose: bool = False) -> Callable[[Rule], Rule]:
    """The function below sizes these operators; `loose`: it takes bounds in place of sizes."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        if loose:
            LOOSE.update(ops)
        return function

    return add


def find_axis(axis: int, rank: int) -> int:
    """An axis counted from 0.

    Raises:
        ValueError: there is none.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}; expected {-rank} to {rank - 1}")
    return axis % rank


def find_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from 0, each once."""
    found = [find_axis(a, rank) for a in axes]
    if len(set(found)) != len(found):
        raise ValueError(f"axes {list(axes)[:8]}; expected each once")
    return found


def broadcast(values: Sequence[Value]) -> tuple[int, ...]:
    """The shape that all of these fit into."""
    rank = max((len(v.shape) for v in values), default=0)
    exact = all(v.exact for v in values)
    out = []
    for column in zip(*((1,) * (rank - len(v.shape)) + v.shape for v in values), strict=True):
        wide = {n for n in column if n != 1}
        if len(wide) > 1 and exact:
            raise ValueError(f"shapes {', '.join(str(v.shape) for v in values)}; they do not broadcast")
        out.append(max(wide) if wide else 1)
    return tuple(out)


def same_kind(call: Call, dtype: np.dtype | None = None, shape: tuple[int, ...] | None = None) -> list[Value]:
    """Outputs like the first input, but for what is given."""
    first = call.value(0)
    shape = first.shape if shape is None else shape
    return [Value(dtype=dtype or first.dtype, shape=shape, exact=call.exact)] * call.outputs


# Element by element.


@rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "CumSum", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "LeakyRelu", "Log", "LogSoftmax",
    "LpNormalization", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softmax", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu", "Clip", "MeanVarianceNormalization",
    "Trilu", loose=True,
)  # fmt: skip
def _unary(call: Call) -> list[Value]:
    call.scratch = call.value(0).size
    return same_kind(call)


@rule("Not", "IsNaN", "IsInf", loose=True)
def _unary_bool(call: Call) -> list[Value]:
    return same_kind(call, BOOL)


@rule("Cast", loose=True)
def _cast(call: Call) -> list[Value]:
    from deploy.bundle.graph.wire import element_type

    return same_kind(call, element_type(call.integer("to", 0)))


@rule("CastLike", loose=True)
def _cast_like(call: Call) -> list[Value]:
    return same_kind(call, call.value(1).dtype)


@rule("Dropout")
def _dropout(call: Call) -> list[Value]:
    if call.has(2) and call.constant(2).any():
        raise ValueError("it draws random numbers; expected a graph for inference")
    return [*same_kind(call)[:1], *same_kind(call, BOOL)[:1]][: call.outputs]


@rule("Add", "Sub", "Mul", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "And", "Or", "Xor", loose=True)
@rule("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", loose=True)
def _elementwise(call: Call) -> list[Value]:
    call.value(0)
    if call.op not in ("Pow", "PRelu"):
        call.one_type()
    return same_kind(call, shape=broadcast(call.given))


@rule("Div", "Mod", loose=True)
def _division(call: Call) -> list[Value]:
    if call.value(0).dtype.kind in "iu":
        # an integer divided by zero, or the least one by -1, ends the process
        divisor = call.value(1).const
        if divisor is None or np.isin(divisor, (0, -1)).any():
            raise ValueError("integers divided by what may be 0 or -1; expected a constant divisor")
    return _elementwise(call)


@rule("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", loose=True)
def _comparison(call: Call) -> list[Value]:
    call.value(1)
    call.one_type()
    return same_kind(call, BOOL, broadcast(call.given))


@rule("Where", loose=True)
def _where(call: Call) -> list[Value]:
    return same_kind(call, call.value(1).dtype, broadcast([call.value(i) for i in range(3)]))


@rule("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization")
@rule("RMSNormalization")
def _normalization(call: Call) -> list[Value]:
    first = call.value(0)
    call.scratch = 2 * first.size
    if call.integer("training_mode", 0) or (call.op == "BatchNormalization" and call.outputs != 1):
        raise ValueError("it is set up for training; expected a graph for inference")
    for other in call.inputs[1:]:
        if other is not None and other.size > max(first.size, 1):
            raise ValueError("a scale larger than what it scales")
    return same_kind(call)


# Shapes and constants.


@rule("Shape")
def _shape(call: Call) -> list[Value]:
    shape = call.value(0).shape
    rank = len(shape)
    start, end = (
        min(max(v + rank if v < 0 else v, 0), rank) for v in (call.integer("start", 0), call.integer("end", rank))
    )
    return [_const(np.asarray(shape[start:end], INT64))]


@rule("Size")
def _size(call: Call) -> list[Value]:
    return [_const(np.asarray(call.value(0).size, INT64))]


def _const(array: np.ndarray) -> Value:
    return Value(dtype=array.dtype, shape=array.shape, const=array if array.size <= MAX_FOLDED else None)


def constant(array: np.ndarray) -> Value:
    """A value that is known: an initializer or the like."""
    return _const(array)


@rule("Constant")
def _constant(call: Call) -> list[Value]:
    forms = {
        "value": lambda v: v,
        "value_float": lambda v: np.asarray(v, FLOAT),
        "value_floats": lambda v: np.asarray(v, FLOAT),
        "value_int": lambda v: np.asarray(v, INT64),
        "value_ints": lambda v: np.asarray(v, INT64),
    }
    found = [name for name in call.attributes if name in forms]
    if len(found) != 1 or len(call.attributes) != 1:
        raise ValueError(f"attributes {sorted(call.attributes)[:4]}; expected one of {', '.join(forms)}")
    return [_const(np.asarray(forms[found[0]](call.attributes[found[0]])))]


@rule("ConstantOfShape")
def _constant_of_shape(call: Call) -> list[Value]:
    shape = tuple(int(n) for n in call.constant(0).reshape(-1))
    fill = call.attributes.get("value", np.zeros(1, FLOAT))
    if not isinstance(fill, np.ndarray) or fill.size != 1:
        raise ValueError("attribute value; expected one element")
    shape = check_size(shape)
    if math.prod(shape) <= MAX_FOLDED:
        return [_const(np.full(shape, fill.reshape(-1)[0], fill.dtype))]
    return [Value(dtype=fill.dtype, shape=shape)]


@rule("Range")
def _range(call: Call) -> list[Value]:
    start, limit, delta = (call.constant(i).reshape(-1) for i in range(3))
    if not (start.size == limit.size == delta.size == 1) or delta[0] == 0:
        raise ValueError("expected a start, a limit, and a step that is not 0")
    if not max(abs(float(v[0])) for v in (start, limit, delta)) < 2**53:
        raise ValueError("a range without end, or one whose length overflows")
    length = float(limit[0] - start[0]) / float(delta[0])  # subtracted in the type of the elements
    count = max(math.ceil(length), 0)
    return [Value(dtype=call.value(0).dtype, shape=check_size((count,)))]


@rule("EyeLike")
def _eye_like(call: Call) -> list[Value]:
    from deploy.bundle.graph.wire import element_type

    kind = call.integer("dtype", 0)
    return same_kind(call, element_type(kind) if kind else None)


@rule("OneHot")
def _one_hot(call: Call) -> list[Value]:
    indices, depth = call.value(0).shape, call.constant(1).reshape(-1)
    if depth.size != 1:
        raise ValueError("expected one depth")
    rank = len(indices) + 1
    axis = find_axis(call.integer("axis", -1), rank)
    return [Value(dtype=call.value(2).dtype, shape=check_size((*indices[:axis], int(depth[0]), *indices[axis:])))]


def check_size(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that a policy may have.

    Raises:
        ValueError: it is absurd.
    """
    shape = tuple(shape)
    if len(shape) > 8 or any(n < 0 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"{shape[:9]!s:.200} elements; expected at most 8 axes and {MAX_ELEMENTS} elements")
    return shape


# Moving elements about.


@rule("Reshape", loose=True)
def _reshape(call: Call) -> list[Value]:
    data, target = call.value(0), call.integers("shape", 1)
    if target is None:
        raise ValueError("no shape")
    fixed = data.exact or (-1 not in target and 0 not in target)
    if not call.integer("allowzero", 0):
        if any(n == 0 and i >= len(data.shape) for i, n in enumerate(target)):
            raise ValueError("a 0 in the shape where the input has no axis")
        target = [data.shape[i] if n == 0 else n for i, n in enumerate(target)]
    if target.count(-1) > 1 or any(n < -1 for n in target):
        raise ValueError(f"shape {target[:8]}; expected sizes and at most one -1")
    if -1 in target:
        rest = math.prod(n for n in target if n != -1)
        target[target.index(-1)] = data.size // rest if rest else 0
    if math.prod(target) != data.size and data.exact:
        raise ValueError(f"{data.size} elements as {target[:8]}")
    # where only a bound was known, ONNX Runtime finds this size or fails
    return [Value(dtype=data.dtype, shape=tuple(target), exact=fixed)]


@rule("Flatten", loose=True)
def _flatten(call: Call) -> list[Value]:
    shape = call.value(0).shape
    axis = call.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise ValueError(f"axis {axis} of {len(shape)}")
    axis += len(shape) if axis < 0 else 0
    return same_kind(call, shape=(math.prod(shape[:axis]), math.prod(shape[axis:])))


@rule("Squeeze", loose=True)
def _squeeze(call: Call) -> list[Value]:
    data = call.value(0)
    axes = call.integers("axes", 1)
    if axes is None:
        if not data.exact:
            raise ValueError("a number of axes that depends on values; expected fixed sizes")
        axes = [i for i, n in enumerate(data.shape) if n == 1]
    gone = find_axes(axes, len(data.shape))
    if data.exact and any(data.shape[i] != 1 for i in gone):
        raise ValueError(f"axes {gone} of {data.shape}; expected axes of one element")
    return same_kind(call, shape=tuple(n for i, n in enumerate(data.shape) if i not in gone))


@rule("Unsqueeze", loose=True)
def _unsqueeze(call: Call) -> list[Value]:
    data, axes = call.value(0), call.integers("axes", 1)
    if axes is None:
        raise ValueError("no axes")
    rank = len(data.shape) + len(axes)
    rest, new = iter(data.shape), find_axes(axes, rank)
    return same_kind(call, shape=tuple(1 if i in new else next(rest) for i in range(rank)))


@rule("Transpose", loose=True)
def _transpose(call: Call) -> list[Value]:
    shape = call.value(0).shape
    order = call.integers("perm") or list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"perm {order[:8]}; expected each of the {len(shape)} axes once")
    return same_kind(call, shape=tuple(shape[i] for i in order))


@rule("Concat", loose=True)
def _concat(call: Call) -> list[Value]:
    call.one_type()
    shapes = [v.shape for v in call.given]
    if not shapes:
        raise ValueError("no inputs")
    rank = len(shapes[0])
    axis = find_axis(call.integer("axis", 0), rank)
    others = {s[:axis] + s[axis + 1 :] for s in shapes}
    if len({len(s) for s in shapes}) != 1 or (len(others) != 1 and call.exact):
        raise ValueError(f"shapes {', '.join(str(s) for s in shapes[:4])}; they do not fit together")
    out = [max(s[i] for s in shapes) for i in range(rank)]
    out[axis] = sum(s[axis] for s in shapes)
    return same_kind(call, shape=tuple(out))


@rule("Split")
def _split(call: Call) -> list[Value]:
    data = call.value(0)
    axis = find_axis(call.integer("axis", 0), len(data.shape))
    length, parts = data.shape[axis], call.integers("split", 1)
    if parts is None:
        count = call.integer("num_outputs", call.outputs)
        if count != call.outputs or not count:
            raise ValueError(f"{count} parts for {call.outputs} outputs")
        each = -(-length // count)
        parts = [each] * (count - 1) + [length - each * (count - 1)]
    if len(parts) != call.outputs or sum(parts) != length or min(parts) < 0:
        raise ValueError(f"{length} elements in parts {parts[:8]} for {call.outputs} outputs")
    shape = data.shape
    return [Value(dtype=data.dtype, shape=(*shape[:axis], n, *shape[axis + 1 :])) for n in parts]


@rule("Slice", loose=True)
def _slice(call: Call) -> list[Value]:
    data = call.value(0)
    if call.opset >= 10 and any(call.has(at) and call.value(at).const is None for at in (1, 2)):
        # where it begins depends on values: at most all of it
        for at in (3, 4):
            if call.has(at):
                call.constant(at)
        return [Value(dtype=data.dtype, shape=data.shape, exact=False)]
    starts, ends = call.integers("starts", 1), call.integers("ends", 2)
    if starts is None or ends is None:
        raise ValueError("no starts or no ends")
    axes, steps = call.integers("axes", 3), call.integers("steps", 4) or [1] * len(starts)
    axes = find_axes(list(range(len(starts))) if axes is None else axes, len(data.shape))
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ValueError("starts, ends, axes and steps; expected as many of each, and no step of 0")
    out = list(data.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if data.exact:
            out[axis] = len(range(*slice(start, slice_end(end, step, out[axis]), step).indices(out[axis])))
    return same_kind(call, shape=tuple(out))


def slice_end(end: int, step: int, length: int) -> int | None:
    """ONNX's end as Python's: going down, the least one means past the first element."""
    return None if step < 0 and end < -length else end


@rule("Gather", loose=True)
def _gather(call: Call) -> list[Value]:
    data, indices = call.value(0), call.value(1)
    axis = find_axis(call.integer("axis", 0), len(data.shape))
    return same_kind(call, shape=check_size(data.shape[:axis] + indices.shape + data.shape[axis + 1 :]))


@rule("NonZero")
def _non_zero(call: Call) -> list[Value]:
    where = np.nonzero(call.constant(0))
    return [_const(np.asarray(where, INT64).reshape(len(call.value(0).shape), -1))]


@rule("GatherElements")
def _gather_elements(call: Call) -> list[Value]:
    if len(call.value(0).shape) != len(call.value(1).shape):
        raise ValueError("data and indices of another number of axes")
    return same_kind(call, shape=call.value(1).shape)


@rule("GatherND")
def _gather_nd(call: Call) -> list[Value]:
    data, indices, batch = call.value(0).shape, call.value(1).shape, call.integer("batch_dims", 0)
    if not indices or not 0 <= batch < min(len(data), len(indices)) or data[:batch] != indices[:batch]:
        raise ValueError(f"data {data}, indices {indices}, batch_dims {batch}")
    if not 1 <= indices[-1] <= len(data) - batch:
        raise ValueError(f"indices of {indices[-1]} axes into {len(data) - batch}")
    return same_kind(call, shape=check_size(indices[:-1] + data[batch + indices[-1] :]))


@rule("ScatterElements", "Scatter")
def _scatter_elements(call: Call) -> list[Value]:
    data, indices, updates = (call.value(i).shape for i in range(3))
    find_axis(call.integer("axis", 0), len(data))
    if indices != updates or len(data) != len(indices) or any(a > b for a, b in zip(indices, data, strict=True)):
        raise ValueError(f"data {data}, indices {indices}, updates {updates}")
    return same_kind(call)


@rule("ScatterND")
def _scatter_nd(call: Call) -> list[Value]:
    data, indices, updates = (call.value(i).shape for i in range(3))
    if not indices or not 1 <= indices[-1] <= len(data) or updates != indices[:-1] + data[indices[-1] :]:
        raise ValueError(f"data {data}, indices {indices}, updates {updates}")
    call.work = math.prod(indices) + math.prod(updates)
    return same_kind(call)


@rule("ReverseSequence")
def _reverse_sequence(call: Call) -> list[Value]:
    shape = call.value(0).shape
    batch, time = call.integer("batch_axis", 1), call.integer("time_axis", 0)
    if len(shape) < 2 or {batch, time} != {0, 1} or call.value(1).shape != (shape[batch],):
        raise ValueError(f"data {shape}, lengths {call.value(1).shape}; expected one length for each of the batch")
    return same_kind(call)


@rule("Expand")
def _expand(call: Call) -> list[Value]:
    target = check_size(call.integers("shape", 1) or [])
    return same_kind(call, shape=broadcast([call.value(0), Value(dtype=INT64, shape=target)]))


@rule("Tile")
def _tile(call: Call) -> list[Value]:
    shape, repeats = call.value(0).shape, call.integers("repeats", 1) or []
    if len(repeats) != len(shape) or any(n < 0 for n in repeats):
        raise ValueError(f"repeats {repeats[:8]} of {shape}")
    return same_kind(call, shape=check_size([a * b for a, b in zip(shape, repeats, strict=True)]))


@rule("Pad")
def _pad(call: Call) -> list[Value]:
    shape, pads = call.value(0).shape, call.integers("pads", 1) or []
    axes = find_axes(call.integers("axes", 3) if call.has(3) else range(len(shape)), len(shape))  # type: ignore[arg-type]
    if len(pads) != 2 * len(axes) or any(n < 0 for n in pads):
        raise ValueError(f"pads {pads[:8]} of {shape}; expected two for each axis, none negative")
    if call.attributes.get("mode", b"constant") not in (b"constant", b"edge"):
        raise ValueError("another mode than constant or edge")
    if 0 in shape and call.attributes.get("mode", b"constant") == b"edge":
        raise ValueError("the edge of nothing")
    out = list(shape)
    for i, axis in enumerate(axes):
        out[axis] += pads[i] + pads[i + len(axes)]
    return same_kind(call, shape=check_size(out))
