"""Sizes and costs of operators that sum: products, recurrent cells, convolutions, reductions. See shapes.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deploy.bundle.graph.shapes import (
    INT64,
    MAX_ELEMENTS,
    Call,
    Value,
    broadcast,
    check_size,
    find_axes,
    find_axis,
    rule,
    same_kind,
)


@rule("MatMul", loose=True)
def _matmul(call: Call) -> list[Value]:
    a, b = call.value(0).shape, call.value(1).shape
    call.one_type()
    if len(a) == 0 or len(b) == 0:
        raise ValueError("a product with a single number; expected vectors or matrices")
    rows, left = (a[-2:-1], a[:-2]) if len(a) > 1 else ((), ())
    columns, right = (b[-1:], b[:-2]) if len(b) > 1 else ((), ())
    inner = b[-2] if len(b) > 1 else b[0]
    if (a[-1] != inner) and call.exact:
        raise ValueError(f"shapes {a} and {b}; they do not multiply")
    first, second = (Value(dtype=v.dtype, shape=s) for v, s in zip(call.given, (left, right), strict=True))
    shape = (*broadcast([first, second]), *rows, *columns)
    call.work = math.prod(shape) * max(a[-1], inner)
    call.scratch = call.value(0).size + call.value(1).size  # packed operands
    return same_kind(call, shape=shape)


@rule("Gemm")
def _gemm(call: Call) -> list[Value]:
    a, b = call.value(0).shape, call.value(1).shape
    call.one_type()
    if len(a) != 2 or len(b) != 2:
        raise ValueError(f"shapes {a} and {b}; expected matrices")
    (m, k), (j, n) = (a[::-1] if call.integer("transA", 0) else a), (b[::-1] if call.integer("transB", 0) else b)
    if k != j:
        raise ValueError(f"shapes {a} and {b}; they do not multiply")
    if call.has(2) and broadcast([Value(dtype=call.value(0).dtype, shape=(m, n)), call.value(2)]) != (m, n):
        raise ValueError(f"bias {call.value(2).shape} of {(m, n)}")
    call.work = m * n * k
    call.scratch = call.value(0).size + call.value(1).size
    return same_kind(call, shape=(m, n))


@rule("Einsum")
def _einsum(call: Call) -> list[Value]:
    equation = call.attributes.get("equation")
    if not isinstance(equation, bytes):
        raise ValueError("no equation")
    call.one_type()
    text = equation.decode("ascii", "replace").replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    letters = left.replace(",", "")
    if not arrow or len(terms) != len(call.inputs) or not (letters + right).isalpha() or not text.isascii():
        raise ValueError(f"equation {text:.60}; expected letters, one term for each input, and ->")
    if any(len(set(t)) != len(t) for t in [*terms, right]) or not set(right) <= set(letters):
        raise ValueError(f"equation {text:.60}; expected each letter once in a term, and none new on the right")
    sizes: dict[str, int] = {}
    for at, term in enumerate(terms):
        shape = call.value(at).shape
        if len(shape) != len(term):
            raise ValueError(f"equation {text:.60}: term {term} of shape {shape}")
        for letter, n in zip(term, shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise ValueError(f"equation {text:.60}: {letter} is {sizes[letter]} and {n}")

    def size(labels: set[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    # in pairs from the left, as ONNX Runtime does; a label stays while something later reads it
    so_far = set(terms[0])
    for at, term in enumerate(terms):
        union = so_far | set(term)
        call.work += size(union)
        so_far = {label for label in union if label in right or any(label in later for later in terms[at + 1 :])}
        call.scratch += 2 * (_bounded(size(so_far)) + call.value(at).size)
    return same_kind(call, shape=tuple(sizes[label] for label in right))


def _bounded(count: int) -> int:
    if count > MAX_ELEMENTS:
        raise ValueError(f"{count} elements on the way; expected at most {MAX_ELEMENTS}")
    return count


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def _recurrent(call: Call) -> list[Value]:
    gates, shapes = _GATES[call.op], [None if v is None else v.shape for v in call.inputs]
    x, batch_first = call.value(0).shape, call.integer("layout", 0)
    if len(x) != 3 or batch_first not in (0, 1):
        raise ValueError(f"input {x}; expected time, batch and features")
    time, batch, features = (x[1], x[0], x[2]) if batch_first else x
    directions = 2 if call.attributes.get("direction", b"forward") == b"bidirectional" else 1
    hidden = call.integer("hidden_size", 0)
    if hidden < 1 or hidden > MAX_ELEMENTS or not time or not batch:
        raise ValueError(f"hidden_size {hidden}, time {time}, batch {batch}; expected at least 1 of each")
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    expected = {
        1: (directions, gates * hidden, features),
        2: (directions, gates * hidden, hidden),
        3: (directions, 2 * gates * hidden),
        4: (batch,),
        5: state,
        6: state,
        7: (directions, 3 * hidden),
    }
    for at, shape in enumerate(shapes[1:], 1):
        if (shape is None and at < 3) or (shape is not None and shape != expected.get(at)):
            raise ValueError(f"input {at} of shape {shape}; expected {expected.get(at, 'none')}")
    call.work = time * batch * directions * gates * hidden * (features + hidden)
    call.scratch = (
        _bounded(time * batch * directions * gates * hidden) + 2 * call.value(1).size + 2 * call.value(2).size
    )
    sequence = (batch, time, directions, hidden) if batch_first else (time, directions, batch, hidden)
    kinds = [Value(dtype=call.value(0).dtype, shape=s) for s in (sequence, state, state)]
    return kinds[: 3 if call.op == "LSTM" else 2]


def _window(call: Call, spatial: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Sizes after a window has moved over each axis."""
    rank = len(spatial)
    strides, dilations = (call.integers(name) or [1] * rank for name in ("strides", "dilations"))
    pads = call.integers("pads") or [0] * 2 * rank
    auto = call.attributes.get("auto_pad", b"NOTSET")
    if not len(strides) == len(dilations) == len(kernel) == rank or len(pads) != 2 * rank:
        raise ValueError(f"strides, dilations, pads or kernel of another number of axes than {rank}")
    if min((*strides, *dilations, *kernel), default=1) < 1 or min(pads, default=0) < 0 or max(pads, default=0) > 4096:
        raise ValueError("strides, dilations or kernel below 1, or pads beyond 0 to 4096")
    if max((*strides, *dilations, *kernel), default=1) > MAX_ELEMENTS or auto not in (b"NOTSET", b"VALID"):
        raise ValueError("a huge window, or padding by auto_pad; expected explicit pads")
    if call.integer("ceil_mode", 0):
        raise ValueError("ceil_mode; expected whole windows")
    out = []
    for i, n in enumerate(spatial):
        wide = dilations[i] * (kernel[i] - 1) + 1
        if wide > n + pads[i] + pads[i + rank]:
            raise ValueError(f"a window of {wide} over {n} elements")
        if max(pads[i], pads[i + rank]) >= wide:
            raise ValueError(f"pads of a whole window ({wide})")
        out.append((n + pads[i] + pads[i + rank] - wide) // strides[i] + 1)
    return out


@rule("Conv")
def _conv(call: Call) -> list[Value]:
    x, w, group = call.value(0).shape, call.value(1).shape, call.integer("group", 1)
    if not 3 <= len(x) == len(w) <= 5 or group < 1 or w[0] % group or w[1] * group != x[1] or 0 in x or 0 in w:
        raise ValueError(f"input {x}, weights {w}, group {group}")
    if (call.integers("kernel_shape") or list(w[2:])) != list(w[2:]):
        raise ValueError("kernel_shape; expected that of the weights")
    if call.has(2) and call.value(2).shape != w[:1]:
        raise ValueError(f"bias {call.value(2).shape}; expected {w[:1]}")
    shape = check_size((x[0], w[0], *_window(call, x[2:], w[2:])))
    call.work = math.prod(shape) * math.prod(w[1:])
    call.scratch = _bounded(math.prod(shape[2:]) * math.prod(w[2:]) * x[1]) + call.value(0).size
    return same_kind(call, shape=shape)


@rule("AveragePool", "MaxPool")
def _pool(call: Call) -> list[Value]:
    x, kernel = call.value(0).shape, call.integers("kernel_shape") or []
    if not 3 <= len(x) <= 5 or 0 in x or call.outputs != 1:
        raise ValueError(f"input {x}; expected batch, channels and 1 to 3 axes")
    shape = check_size((*x[:2], *_window(call, x[2:], kernel)))
    call.work = math.prod(shape) * math.prod(kernel)
    return same_kind(call, shape=shape)


@rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> list[Value]:
    x = call.value(0).shape
    if not 3 <= len(x) <= 5 or 0 in x:
        raise ValueError(f"input {x}; expected batch, channels and 1 to 3 axes")
    call.work = math.prod(x)
    return same_kind(call, shape=x[:2] + (1,) * (len(x) - 2))


# Reductions.


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", loose=True,
)  # fmt: skip
def _reduce(call: Call) -> list[Value]:
    data, axes = call.value(0), call.integers("axes", 1)
    call.work = call.scratch = data.size
    if not data.size:
        raise ValueError("a reduction of nothing")
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return same_kind(call)
        axes = list(range(len(data.shape)))
    gone, keep = find_axes(axes, len(data.shape)), call.integer("keepdims", 1)
    kept = ((1 if i in gone else n) for i, n in enumerate(data.shape) if keep or i not in gone)
    return same_kind(call, shape=tuple(kept))


@rule("ArgMax", "ArgMin")
def _arg(call: Call) -> list[Value]:
    shape = call.value(0).shape
    axis = find_axis(call.integer("axis", 0), len(shape))
    call.work = math.prod(shape)
    if shape[axis] == 0:
        raise ValueError("the greatest of nothing")
    kept = (1,) if call.integer("keepdims", 1) else ()
    return same_kind(call, INT64, (*shape[:axis], *kept, *shape[axis + 1 :]))


@rule("TopK")
def _top_k(call: Call) -> list[Value]:
    data, k = call.value(0), call.attributes.get("k")
    k = [k] if isinstance(k, int) else call.integers("k", 1)
    axis = find_axis(call.integer("axis", -1), len(data.shape))
    if k is None or len(k) != 1 or not 0 <= k[0] <= data.shape[axis]:
        raise ValueError(f"k of {data.shape[axis]} elements")
    call.work, call.scratch = 20 * data.size, 2 * data.size
    shape = (*data.shape[:axis], k[0], *data.shape[axis + 1 :])
    return [Value(dtype=data.dtype, shape=shape), Value(dtype=INT64, shape=shape)][: call.outputs]
