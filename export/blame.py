"""Which operation of a policy it is that has no form in a graph, or another one: each is converted alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx

from deploy.bundle.graph import OPERATORS
from export import graph
from export.compare import session
from export.errors import ExportError
from export.lowering import Values, where
from export.rewrites import rewrite

LIMIT = 1e-5
# What to write in place of operations that are often asked for, by JAX's primitive.
_CONSTANT = "do it in training, and keep the result as a constant"
REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(
        ("lu", "custom_linear_solve", "triangular_solve", "cholesky"),
        f"of a constant matrix {_CONSTANT}; write two or three unknowns out by Cramer's rule, with jnp.cross",
    ),
    **dict.fromkeys(("svd", "eigh", "eig", "qr", "schur"), _CONSTANT),
    **dict.fromkeys(
        ("and", "or", "xor", "not", "shift_left", "shift_right_logical", "shift_right_arithmetic"),
        "take bits of an integer apart by // and %",
    ),
}


def culprit(
    function: Callable[..., Any],
    arguments: Sequence[np.ndarray],
    to_model: Callable[[Callable[..., Any], Sequence[Any]], onnx.ModelProto],
) -> str:
    """What is wrong with the first operation that is no good alone, with its name, the user's line and a remedy.

    Args:
        function: of the arrays, as `lowering.lower` gives it.
        arguments: values of a step in which something was wrong, or any.
        to_model: converts a function of arrays of these shapes.

    Returns:
        Words for a message; empty where each operation alone is right.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    values = Values(closed.jaxpr, closed.consts, arguments)
    moving, seen = set(map(id, closed.jaxpr.invars)), set()
    for eqn in closed.jaxpr.eqns:
        inputs = values.of(eqn.invars)
        found = values.keep(eqn, eqn.primitive.bind(*inputs, **eqn.params))
        free = [k for k, atom in enumerate(eqn.invars) if id(atom) in moving]
        if not free:
            continue
        moving.update(map(id, eqn.outvars))
        key = (eqn.primitive.name, str(eqn.params), tuple(str(atom.aval) for atom in eqn.invars), tuple(free))
        why = None if key in seen else _alone(eqn, inputs, free, found, to_model)
        seen.add(key)
        if why:
            name = eqn.primitive.name
            return f"{name}: {why}{where(eqn.source_info.traceback)}; {REMEDIES.get(name, _ANOTHER)}"
    return ""


_ANOTHER = "write it with other operations"


def _alone(eqn: Any, inputs: list[Any], free: list[int], expected: Sequence[Any], to_model: Any) -> str:
    """What is wrong with one operation of these values; empty where nothing is."""

    def one(*args: Any) -> Any:
        given = dict(zip(free, args, strict=True))
        return eqn.primitive.bind(*(given.get(k, v) for k, v in enumerate(inputs)), **eqn.params)

    given = [inputs[k] for k in free]
    try:
        model = to_model(one, [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given])
    except Exception as error:  # jax2onnx's have no common root
        return f"jax2onnx cannot convert it ({type(error).__name__})"
    try:
        with contextlib.suppress(Exception):
            rewrite(model)
        graph.check_graph(model, "it")
        refused = sorted({node.op_type for node in graph.nodes(model.graph)} - OPERATORS)
        if refused:
            return f"becomes ONNX's {', '.join(refused)}, which ksim run refuses"
        names = [i.name for i in model.graph.input]
        got = session(model.SerializeToString()).run(None, dict(zip(names, map(np.asarray, given), strict=True)))
    except ExportError as error:
        return str(error).split(";")[0].split(" ==>")[0].removeprefix("it: ")
    except Exception as error:
        return f"ONNX Runtime cannot run it ({type(error).__name__})"
    for ours, theirs in zip(got, expected, strict=True):
        truth = np.asarray(theirs, np.float64)
        apart = np.abs(ours - truth) / np.maximum(1.0, np.abs(truth))
        if not (apart <= LIMIT).all():
            at = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=np.inf))), truth.shape)
            return f"gives {ours[at]:.6g} in ONNX and {truth[at]:.6g} in JAX"
    return ""
