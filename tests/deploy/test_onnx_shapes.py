"""Sizes that the rules foresee are those that ONNX Runtime makes, operator by operator."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle.graph.check import _Walk
from deploy.bundle.graph.shapes import RULES, Call, Value
from deploy.bundle.graph.size_up import size_up
from deploy.bundle.graph.wire import parse

RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return RNG.uniform(0.1, 0.9, shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def s(value, kind=np.int64) -> np.ndarray:
    return np.asarray(value, kind)


def b(*shape: int) -> np.ndarray:
    return RNG.uniform(size=shape) > 0.5


UNARY = [
    "Abs", "Acos", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor",
    "HardSigmoid", "HardSwish", "Hardmax", "Identity", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Neg",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu", "IsNaN", "IsInf", "Trilu",
]  # fmt: skip

# (operator, inputs, attributes, which inputs are constants, opset, outputs)
CASES: list[tuple] = [
    *((op, [f(2, 3)], {}, (), 17, 1) for op in UNARY),
    *((op, [f(2, 3)], {}, (), 20, 1) for op in ("Gelu",)),
    *((op, [f(2, 3)], {}, (), 18, 1) for op in ("Mish",)),
    ("Acosh", [1 + f(3)], {}, (), 17, 1),
    ("MeanVarianceNormalization", [f(1, 2, 3, 4)], {}, (), 17, 1),
    ("Not", [b(4)], {}, (), 17, 1),
    ("Clip", [f(2, 3), s(0, np.float32), s(1, np.float32)], {}, (), 17, 1),
    ("CumSum", [f(2, 3), s(1)], {}, (), 17, 1),
    ("Cast", [f(3)], {"to": TensorProto.INT64}, (), 17, 1),
    ("CastLike", [f(3), i(1)], {}, (), 17, 1),
    ("Dropout", [f(3)], {}, (), 17, 2),
    *((op, [f(2, 1, 3), f(4, 1)], {}, (), 17, 1) for op in ("Add", "Sub", "Mul", "Div", "Pow", "PRelu")),
    *((op, [f(2, 3), f(3)], {}, (), 17, 1) for op in ("Min", "Max", "Sum", "Mean", "Equal", "Greater", "Less")),
    *((op, [f(3), f(2, 1)], {}, (), 17, 1) for op in ("GreaterOrEqual", "LessOrEqual")),
    ("Mod", [f(3), f(3)], {"fmod": 1}, (), 17, 1),
    ("Div", [i(7, 8), i(2)], {}, (1,), 17, 1),
    *((op, [b(2, 3), b(3)], {}, (), 17, 1) for op in ("And", "Or", "Xor")),
    *((op, [i(1, 2), i(3, 4)], {}, (), 18, 1) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    ("BitShift", [s([1, 2], np.uint64), s([1, 1], np.uint64)], {"direction": "LEFT"}, (), 17, 1),
    ("Where", [b(3), f(2, 1), f(3)], {}, (), 17, 1),
    ("LayerNormalization", [f(2, 3), f(3), f(3)], {}, (), 17, 1),
    ("BatchNormalization", [f(2, 3), f(3), f(3), f(3), f(3)], {}, (), 17, 1),
    ("InstanceNormalization", [f(2, 3, 4), f(3), f(3)], {}, (), 17, 1),
    ("GroupNormalization", [f(2, 4, 3), f(4), f(4)], {"num_groups": 2}, (), 21, 1),
    ("RMSNormalization", [f(2, 3), f(3)], {}, (), 23, 1),
    ("Shape", [f(2, 3, 4)], {"start": 1}, (), 17, 1),
    ("Shape", [f(2, 3, 4)], {"start": -2, "end": -1}, (), 17, 1),
    ("Size", [f(2, 3)], {}, (), 17, 1),
    ("Constant", [], {"value": numpy_helper.from_array(f(2, 2))}, (), 17, 1),
    ("Constant", [], {"value_floats": [1.0, 2.0]}, (), 17, 1),
    ("Constant", [], {"value_int": 3}, (), 17, 1),
    ("ConstantOfShape", [i(2, 0, 3)], {}, (0,), 17, 1),
    ("ConstantOfShape", [i(2)], {"value": numpy_helper.from_array(i(5))}, (0,), 17, 1),
    ("Range", [s(1), s(8), s(3)], {}, (0, 1, 2), 17, 1),
    ("Range", [s(8), s(1), s(-3)], {}, (0, 1, 2), 17, 1),
    ("Range", [s(1, np.float32), s(0.1, np.float32), s(-0.3, np.float32)], {}, (0, 1, 2), 17, 1),
    ("EyeLike", [f(2, 3)], {}, (), 17, 1),
    ("EyeLike", [f(2, 3)], {"dtype": TensorProto.INT64}, (), 17, 1),
    ("OneHot", [i(1, 2), s(4), s([0, 1], np.float32)], {"axis": 0}, (1,), 17, 1),
    ("Reshape", [f(2, 3, 4), i(0, -1)], {}, (1,), 17, 1),
    ("Reshape", [f(1), i()], {}, (1,), 17, 1),
    ("Flatten", [f(2, 3, 4)], {"axis": -1}, (), 17, 1),
    ("Flatten", [f(2, 3, 4)], {"axis": 0}, (), 17, 1),
    ("Squeeze", [f(1, 3, 1), i(-1)], {}, (1,), 17, 1),
    ("Squeeze", [f(1, 3, 1)], {}, (), 17, 1),
    ("Squeeze", [f(1, 3, 1)], {"axes": [0]}, (), 11, 1),
    ("Unsqueeze", [f(3), i(0, -1)], {}, (1,), 17, 1),
    ("Unsqueeze", [f(3)], {"axes": [1]}, (), 11, 1),
    ("Transpose", [f(2, 3, 4)], {"perm": [1, 2, 0]}, (), 17, 1),
    ("Transpose", [f(2, 3)], {}, (), 17, 1),
    ("Concat", [f(2, 3), f(2, 1)], {"axis": -1}, (), 17, 1),
    ("Split", [f(2, 7), i(3, 4)], {"axis": 1}, (1,), 17, 2),
    ("Split", [f(6)], {}, (), 17, 3),
    ("Split", [f(7)], {"num_outputs": 3}, (), 18, 3),
    ("Split", [f(4)], {"split": [1, 3]}, (), 11, 2),
    ("Slice", [f(5, 6), i(1, -1), i(4, -9), i(0, 1), i(2, -2)], {}, (1, 2, 3, 4), 17, 1),
    ("Slice", [f(5), i(4), i(-6), i(0), i(-1)], {}, (1, 2, 3, 4), 17, 1),
    ("Slice", [f(5), i(3), i(2**63 - 1)], {}, (1, 2), 17, 1),
    ("Slice", [f(5), i(9), i(12)], {}, (1, 2), 17, 1),
    ("Slice", [f(5, 6)], {"starts": [1, 0], "ends": [3, -1]}, (), 9, 1),
    ("Gather", [f(5, 6), s([[0, 1], [2, 3]])], {"axis": 1}, (), 17, 1),
    ("Gather", [f(5, 6), s(2)], {}, (), 17, 1),
    ("NonZero", [s([[0, 2], [3, 0]])], {}, (0,), 17, 1),
    ("GatherElements", [f(5, 6), s([[0, 1], [2, 3]])], {}, (), 17, 1),
    ("GatherND", [f(5, 6, 7), s([[0, 1], [2, 3], [1, 1]])], {}, (), 17, 1),
    ("GatherND", [f(2, 6, 7), s([[1], [3]])], {"batch_dims": 1}, (), 17, 1),
    ("ScatterElements", [f(5), i(1, 2), f(2)], {}, (), 17, 1),
    ("Scatter", [f(5), i(1, 2), f(2)], {}, (), 9, 1),
    ("ScatterND", [f(5, 3), s([[1], [2]]), f(2, 3)], {}, (), 17, 1),
    ("ReverseSequence", [f(4, 2), i(1, 2)], {}, (), 17, 1),
    ("Expand", [f(3, 1), i(2, 1, 4)], {}, (1,), 17, 1),
    ("Tile", [f(2, 3), i(2, 3)], {}, (1,), 17, 1),
    ("Pad", [f(2, 3), i(0, 1, 2, 3)], {}, (1,), 17, 1),
    ("Pad", [f(2, 3), i(1, 2), None, i(1)], {}, (1, 3), 18, 1),
    ("Pad", [f(2, 3)], {"pads": [0, 1, 2, 3]}, (), 10, 1),
    *((op, [f(2, 3, 4)], {"axes": [1], "keepdims": 0}, (), 13, 1) for op in (
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSumSquare")),
    ("ReduceSum", [f(2, 3, 4), i(0, -1)], {}, (1,), 17, 1),
    ("ReduceSum", [f(2, 3)], {"keepdims": 0}, (), 17, 1),
    ("ReduceMax", [f(2, 3), i(1)], {}, (1,), 18, 1),
    ("ReduceSum", [f(2, 3)], {"noop_with_empty_axes": 1}, (), 17, 1),
    ("ArgMax", [f(2, 3)], {"axis": 1, "keepdims": 0}, (), 17, 1),
    ("ArgMin", [f(2, 3)], {}, (), 17, 1),
    ("TopK", [f(2, 5), i(3)], {}, (1,), 17, 2),
    ("TopK", [f(2, 5)], {"k": 2}, (), 9, 2),
    ("MatMul", [f(3), f(3, 4)], {}, (), 17, 1),
    ("MatMul", [f(2, 1, 5, 3), f(6, 3, 4)], {}, (), 17, 1),
    ("MatMul", [f(3), f(3)], {}, (), 17, 1),
    ("MatMul", [f(4, 3), f(3)], {}, (), 17, 1),
    ("Gemm", [f(3, 2), f(4, 3), f(4)], {"transA": 1, "transB": 1}, (), 17, 1),
    ("Einsum", [f(3, 4), f(4)], {"equation": "ab,b->a"}, (), 17, 1),
    ("Einsum", [f(2), f(3), f(2, 3)], {"equation": "a,b,ab->ba"}, (), 17, 1),
    ("LSTM", [f(2, 1, 5), f(1, 12, 5), f(1, 12, 3), f(1, 24), None, f(1, 1, 3), f(1, 1, 3), f(1, 9)],
     {"hidden_size": 3}, (), 17, 3),
    ("GRU", [f(2, 1, 5), f(2, 9, 5), f(2, 9, 3)], {"hidden_size": 3, "direction": "bidirectional"}, (), 17, 2),
    ("RNN", [f(2, 1, 5), f(1, 3, 5), f(1, 3, 3)], {"hidden_size": 3}, (), 17, 2),
    ("Conv", [f(1, 4, 9), f(6, 2, 3), f(6)], {"group": 2, "pads": [1, 1], "strides": [2]}, (), 17, 1),
    ("Conv", [f(1, 2, 9, 8), f(3, 2, 3, 2)], {"dilations": [2, 1]}, (), 17, 1),
    ("AveragePool", [f(1, 2, 9)], {"kernel_shape": [2], "strides": [2]}, (), 17, 1),
    ("MaxPool", [f(1, 2, 9)], {"kernel_shape": [3], "pads": [1, 1]}, (), 17, 1),
    ("GlobalAveragePool", [f(1, 2, 9)], {}, (), 17, 1),
    ("GlobalMaxPool", [f(1, 2, 9)], {}, (), 17, 1),
]  # fmt: skip


def model(case) -> tuple[bytes, dict[str, np.ndarray], dict[bytes, Value]]:
    """A graph of the one node, what to feed it, and the same as sizes."""
    op, inputs, attributes, constants, opset, outputs = case
    names = ["" if v is None else f"in{at}" for at, v in enumerate(inputs)]
    fed = {names[at]: v for at, v in enumerate(inputs) if v is not None and at not in constants}
    node = helper.make_node(op, names, [f"out{k}" for k in range(outputs)], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in fed.items()],
        [helper.make_empty_tensor_value_info(f"out{k}") for k in range(outputs)],
        [numpy_helper.from_array(inputs[at], names[at]) for at in constants],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    sizes = {n.encode(): Value(dtype=v.dtype, shape=v.shape) for n, v in fed.items()}
    return made.SerializeToString(), fed, sizes


def foreseen(data: bytes, sizes: dict[bytes, Value]) -> list[Value]:
    parsed = parse(data, "test")
    return [value for _, value in _Walk(parsed).graph(parsed["graph"], {}, sizes)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[4]}")
def test_the_sizes_foreseen_are_those_that_onnx_runtime_makes(case):
    data, fed, sizes = model(case)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    made = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, fed)
    found = foreseen(data, sizes)
    assert [(v.shape, v.dtype, v.exact) for v in found] == [(v.shape, v.dtype, True) for v in made]
    for value, real in zip(found, made, strict=True):
        if value.const is not None:
            np.testing.assert_array_equal(value.const, real)


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)


def known(value: np.ndarray) -> Value:
    return Value(dtype=value.dtype, shape=value.shape, const=value)


FOLDED = [
    ("Add", [i(2, 3), i(4, 5)], {}), ("Sub", [i(2, 3), i(4, 5)], {}), ("Mul", [i(2, 3), i(4, 5)], {}),
    ("Div", [i(-7, 7), i(2)], {}), ("Min", [i(2, 6), i(4, 5)], {}), ("Max", [i(2, 6), i(4, 5)], {}),
    ("Equal", [i(2, 5), i(4, 5)], {}), ("Greater", [i(2, 5), i(4)], {}), ("Less", [i(2, 5), i(4)], {}),
    ("GreaterOrEqual", [i(4, 3), i(4)], {}), ("LessOrEqual", [i(4, 5), i(4)], {}), ("Expand", [i(4), i(2, 3)], {}),
    ("And", [np.asarray([True, False]), np.asarray([True])], {}), ("NonZero", [i(0, 3, 0, 1)], {}),
    ("Or", [np.asarray([True, False]), np.asarray([False])], {}),
    ("Not", [np.asarray([True, False])], {}), ("Where", [np.asarray([True, False]), i(1, 2), i(3, 4)], {}),
    ("Concat", [i(2, 3), i(4)], {"axis": 0}), ("Gather", [i(7, 8, 9), s(-1)], {}), ("Cast", [i(300)], {"to": 2}),
    ("Slice", [i(1, 2, 3, 4), i(3), i(-9), i(0), i(-2)], {}), ("Transpose", [s([[1, 2], [3, 4]])], {}),
    ("ReduceProd", [i(2, 3, 4)], {"keepdims": 0}), ("Range", [s(9), s(1), s(-3)], {}), ("Identity", [i(4)], {}),
    ("Squeeze", [s([[4]])], {}), ("Unsqueeze", [i(4), i(0)], {}), ("Reshape", [i(1, 2, 3, 4), i(2, 2)], {}),
    ("Flatten", [s([[1, 2], [3, 4]])], {"axis": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "attributes"), FOLDED, ids=lambda v: v if isinstance(v, str) else "")
def test_integers_that_sizes_depend_on_are_followed_exactly(op, inputs, attributes):
    data, fed, _ = model((op, inputs, attributes, tuple(range(len(inputs))), 17, 1))
    real = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, fed)[0]
    (value,) = foreseen(data, {})
    assert value.const is not None and value.const.dtype == real.dtype
    np.testing.assert_array_equal(value.const, real)


ABSURD = [
    ("ConstantOfShape", [i(2**20, 2**20)], {}, (0,), "at most 8 axes and 16777216 elements"),
    ("ConstantOfShape", [i(2)], {}, (), "a size that depends on values"),
    ("Expand", [f(1), i(2**40)], {}, (1,), "16777216 elements"),
    ("Expand", [f(1), i(2)], {}, (), "depends on values"),
    ("Tile", [f(9), i(2**60)], {}, (1,), "16777216 elements"),
    ("Tile", [f(9), i(-1)], {}, (1,), "repeats"),
    ("Range", [s(0), s(2**40), s(1)], {}, (0, 1, 2), "16777216 elements"),
    ("Range", [s(2**63 - 1), s(-(2**63) + 10**9), s(1)], {}, (0, 1, 2), "whose length overflows"),
    ("Range", [s(0), s(5), s(0)], {}, (0, 1, 2), "a step that is not 0"),
    ("Range", [s(0), s(5), s(1)], {}, (), "depends on values"),
    ("Pad", [f(3), i(0, 2**40)], {}, (1,), "16777216 elements"),
    ("Pad", [f(3), i(-9, 0)], {}, (1,), "none negative"),
    ("OneHot", [i(1, 2), s(2**40), s([0, 1], np.float32)], {}, (1,), "16777216 elements"),
    ("Add", [f(5000, 1), f(1, 5000)], {}, (), "16777216 elements"),
    ("MatMul", [f(5000, 1), f(1, 5000)], {}, (), "16777216 elements"),
    ("Gather", [f(5000), np.zeros((5000, 5000), np.int64)], {}, (), "16777216 elements"),
    ("Einsum", [f(999), f(999), f(999)], {"equation": "a,b,c->abc"}, (), "elements"),
    ("Einsum", [f(999), f(999), f(999)], {"equation": "a,b,c->"}, (), ""),
    ("Div", [i(1), i(0)], {}, (1,), "integers divided by what may be 0 or -1"),
    ("Div", [i(1), i(2)], {}, (), "integers divided by what may be 0 or -1"),
    ("Mod", [i(-(2**63)), i(-1)], {}, (1,), "integers divided by what may be 0 or -1"),
    ("LSTM", [f(1, 1, 2), f(1, 4, 2), f(1, 4, 1)], {"hidden_size": 2**40}, (), "hidden_size"),
    ("LSTM", [f(1, 1, 2), f(1, 4, 3), f(1, 4, 1)], {"hidden_size": 1}, (), r"input 1 of shape \(1, 4, 3\)"),
    ("RandomNormal", [], {"shape": [3]}, (), "a policy has no use for"),
    ("NonZero", [f(3)], {}, (), "a size that depends on values"),
    ("Resize", [f(1, 1, 3), None, s([1, 1, 1e9], np.float32)], {}, (2,), "a policy has no use for"),
    ("Dropout", [f(3), s(0.5, np.float32), s(True, bool)], {}, (2,), "draws random numbers"),
    ("ReduceMean", [np.zeros((0,), np.int64)], {}, (), "a reduction of nothing"),
    ("Gather", [f(3), i(1)], {"axis": 7}, (), "axis 7 of 1"),
    ("Transpose", [f(3, 2)], {"perm": [0, 0]}, (), "each of the 2 axes once"),
    ("Concat", [f(3, 2), f(3)], {"axis": 0}, (), "do not fit together"),
    ("Reshape", [f(6), i(4)], {}, (1,), "6 elements as"),
]


@pytest.mark.parametrize("case", ABSURD, ids=lambda c: c[0])
def test_what_asks_for_absurd_memory_or_could_end_the_process_is_refused(case):
    *head, message = case
    data, _, sizes = model((*head, 17, 1))
    if not message:  # the product over all letters is 10^9, but no more than 999 are there at once
        assert foreseen(data, sizes)[0].shape == ()
        return
    with pytest.raises(ValueError, match=message) as caught:
        foreseen(data, sizes)
    assert "\n" not in str(caught.value)


def test_a_slice_that_begins_at_a_value_is_bounded_by_what_it_is_cut_from():
    data, _, sizes = model(("Slice", [f(5, 6), i(1), i(3)], {}, (), 17, 1))
    (value,) = foreseen(data, sizes)
    assert value.shape == (5, 6) and not value.exact
    data, _, sizes = model(("Slice", [f(5, 6), i(1), i(3), i(0), i(1)], {}, (3,), 17, 1))
    with pytest.raises(ValueError, match="depends on values"):
        foreseen(data, sizes)


def test_a_bound_becomes_a_size_only_where_a_shape_says_so_in_full():
    some = Value(dtype=np.dtype(np.float32), shape=(6,), exact=False)
    for target, exact in ((i(2, 3), True), (i(3), True), (i(-1), False), (i(0), False)):
        call = Call(op="Reshape", inputs=[some, known(target)], attributes={}, outputs=1, opset=17)
        (value,) = size_up(call)
        assert (value.exact, value.shape) == (exact, tuple(target) if exact else (6,))
    call = Call(op="Expand", inputs=[some, known(i(6))], attributes={}, outputs=1, opset=17)
    with pytest.raises(ValueError, match="depends on values"):
        size_up(call)
