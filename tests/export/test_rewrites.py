"""Each rewrite of a graph, on a graph small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.compare import session
from export.graph import drop_unused, operators
from export.rewrites import rewrite


def model(nodes, inputs: dict[str, int], outputs: dict[str, int], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    def values(shapes):
        return [helper.make_tensor_value_info(name, 1, [n]) for name, n in shapes.items()]

    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    rewrite(model)
    drop_unused(model, keep="")
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, **feed: list[float]) -> list[list[float]]:
    out = session(model.SerializeToString()).run(None, {k: np.float32(v) for k, v in feed.items()})
    return [v.tolist() for v in out]


def test_what_does_not_depend_on_the_inputs_is_computed_once():
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["m", "two"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"]),
        helper.make_node("Split", ["b"], ["left", "right"], axis=0),
        helper.make_node("MatMul", ["x", "left"], ["y"]),
    ]
    got = rewritten(model(nodes, {"x": 1}, {"y": 2}, {"m": [[1, 2], [3, 4]]}))
    assert operators(got) == {"MatMul": 1} and [i.name for i in got.graph.initializer] == ["left"]
    # the first row of the transposed matrix, doubled
    assert run(got, x=[10]) == [[20.0, 60.0]]


def einsum(matrix: str, vector: str, out: str) -> onnx.NodeProto:
    return helper.make_node("Einsum", [matrix, vector], [out], name=out, equation="ab,b->a")


W, U = np.arange(6).reshape(2, 3), np.array([[10.0], [20.0]])


def test_a_matrix_times_a_vector_becomes_one_matmul_with_the_transposed_constant():
    got = rewritten(model([einsum("w", "x", "y")], {"x": 3}, {"y": 2}, {"w": W}))
    assert [n.op_type for n in got.graph.node] == ["MatMul"]
    # (0*1 + 1*2 + 2*3, 3*1 + 4*2 + 5*3)
    assert run(got, x=[1, 2, 3]) == [[8.0, 26.0]]


def test_the_sum_of_two_products_becomes_one_product_of_both_vectors():
    nodes = [einsum("w", "x", "a"), einsum("u", "h", "b"), helper.make_node("Add", ["a", "b"], ["y"], name="sum")]
    got = rewritten(model(nodes, {"x": 3, "h": 1}, {"y": 2}, {"w": W, "u": U}))
    assert operators(got) == {"Concat": 1, "MatMul": 1}
    assert [i.name for i in got.graph.initializer] == ["y_weights"]
    # 8 + 10*5, 26 + 20*5
    assert run(got, x=[1, 2, 3], h=[5]) == [[58.0, 126.0]]


def test_products_that_something_else_reads_are_not_merged():
    nodes = [einsum("w", "x", "a"), einsum("u", "h", "b"), helper.make_node("Add", ["a", "b"], ["y"], name="sum")]
    got = rewritten(model(nodes, {"x": 3, "h": 1}, {"y": 2, "a": 2}, {"w": W, "u": U}))
    assert operators(got) == {"Add": 1, "MatMul": 2}
    assert run(got, x=[1, 2, 3], h=[5]) == [[58.0, 126.0], [8.0, 26.0]]


def chain(*steps: tuple[str, str, str]) -> list[onnx.NodeProto]:
    """(operator, its inputs with `_` for the last value): a chain from x to y."""
    nodes, last = [], "x"
    for i, (op, left, right) in enumerate(steps):
        out = "y" if i == len(steps) - 1 else f"v{i}"
        inputs = [last if n == "_" else n for n in (left, right)]
        nodes.append(helper.make_node(op, inputs, [out], name=f"n{i}"))
        last = out
    return nodes


def test_a_chain_of_sums_and_products_with_constants_becomes_one_of_each():
    steps = chain(("Div", "_", "d"), ("Sub", "c", "_"), ("Mul", "m", "_"), ("Add", "_", "c"))
    got = rewritten(model(steps, {"x": 2}, {"y": 2}, {"d": [2, 4], "c": [1.0], "m": [3, 5]}))
    assert operators(got) == {"Add": 1, "Mul": 1}
    # 3 (1 - 8/2) + 1, 5 (1 - 8/4) + 1
    assert run(got, x=[8, 8]) == [[-8.0, -4.0]]


@pytest.mark.parametrize(
    "steps",
    [
        (("Mul", "_", "m"), ("Add", "_", "c")),  # short as it is
        (("Div", "m", "_"), ("Add", "_", "c"), ("Mul", "_", "m")),  # not affine
        (("Mul", "_", "x"), ("Add", "_", "c"), ("Mul", "_", "m")),  # not a constant
        (("Div", "_", "z"), ("Add", "_", "c"), ("Mul", "_", "m")),  # not finite
    ],
)
def test_what_is_not_such_a_chain_stays(steps):
    before = model(chain(*steps), {"x": 2}, {"y": 2}, {"m": [3, 5], "c": [1.0], "z": [0.0, 1.0]})
    expected, ops = run(before, x=[2, 4]), operators(before)
    got = rewritten(before)
    assert operators(got) == ops and run(got, x=[2, 4]) == expected


def test_a_chain_is_cut_where_something_else_reads_its_value():
    nodes = chain(("Mul", "_", "m"), ("Add", "_", "c"), ("Mul", "_", "m"), ("Add", "_", "c"))
    got = rewritten(model(nodes, {"x": 2}, {"y": 2, "v1": 2}, {"m": [3, 5], "c": [1.0]}))
    assert run(got, x=[1, 1]) == [[13.0, 31.0], [4.0, 6.0]]


def test_a_chain_that_is_floored_stays_exact():
    steps = (("Mul", "_", "m"), ("Add", "_", "c"), ("Mul", "_", "m"))
    floored = [*chain(*steps), helper.make_node("Floor", ["y"], ["frame"]), helper.make_node("Neg", ["y"], ["z"])]
    got = rewritten(model(floored, {"x": 1}, {"frame": 1, "z": 1}, {"m": [0.1], "c": [0.3]}))
    assert operators(got) == {"Add": 1, "Floor": 1, "Mul": 2, "Neg": 1}
    whole = [*chain(*steps[:2], ("Div", "_", "m")), helper.make_node("Cast", ["y"], ["k"], to=onnx.TensorProto.INT32)]
    whole.append(helper.make_node("Cast", ["k"], ["frame"], to=onnx.TensorProto.FLOAT))
    got = rewritten(model(whole, {"x": 1}, {"frame": 1}, {"m": [0.1], "c": [0.3]}))
    assert operators(got) == {"Add": 1, "Cast": 2, "Div": 1, "Mul": 1}
    assert run(got, x=[7]) == [[10.0]]  # (0.7 + 0.3) / 0.1


def bad(got: onnx.ModelProto) -> list[str]:
    """Constants that hold more than one infinity, or a NaN."""
    arrays = {i.name: numpy_helper.to_array(i) for i in got.graph.initializer}
    return [k for k, v in arrays.items() if v.dtype == np.float32 and not np.isfinite(v).all() and (v.size, 0) > (1, 0)]


def test_a_mask_of_infinities_is_chosen_from_one():
    mask = np.array([0.0, -np.inf, np.inf])
    got = rewritten(model([helper.make_node("Add", ["x", "mask"], ["y"])], {"x": 3}, {"y": 3}, {"mask": mask}))
    assert bad(got) == []
    assert run(got, x=[1, 2, 3]) == [[1.0, -np.inf, np.inf]]


def test_a_nan_that_a_choice_may_give_is_computed():
    nodes = [helper.make_node("Less", ["x", "zero"], ["c"]), helper.make_node("Where", ["c", "nan", "x"], ["y"])]
    got = rewritten(model(nodes, {"x": 2}, {"y": 2}, {"zero": [0.0], "nan": [np.nan, np.nan]}))
    assert not any(np.isnan(numpy_helper.to_array(i)).any() for i in got.graph.initializer if i.data_type == 1)
    (out,) = run(got, x=[1, -1])
    assert out[0] == 1.0 and np.isnan(out[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay_what_they_are(value):
    weights = np.array([[1.0, value], [0.0, 2.0]])
    got = rewritten(model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": 2}, {"y": 2}, {"w": weights}))
    assert bad(got) == ["w"]
