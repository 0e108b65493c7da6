"""A traced function with what jax2onnx, or a robot's runtime, does not take written another way.

JAX traces the policy to its primitives. First every call, loop and branch is written out, so that one list of
primitives is left, and what nothing reads is dropped. Then the primitives are bound again one by one, so that jax2onnx
sees no layer of flax or equinox and no function of jax.numpy, for which it has forms of its own that are wrong for
arrays without a batch axis. `UNFOLD` and `RULES` are the lists of what is gone around; tests/export/test_lowering.py
says when an entry is no longer needed.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from export import indexing
from export.errors import ExportError

# A loop of more turns would make a graph too long to read.
UNROLL_MAX = 64
# Files whose lines are not the user's own.
_LIBRARY = re.compile(
    r"[/\\]site-packages[/\\](?:jax|jaxlib|jax2onnx|flax|equinox|jaxtyping|beartype)[/\\]|^"
    + re.escape(str(Path(__file__).parent))
)
_TEXT_MAX = 90

Run = Callable[[Any, Sequence[Any]], list[Any]]
Unfold = Callable[[list[Any], dict[str, Any], Run], list[Any]]
# None: there is nothing to go around
Rule = Callable[[list[Any], dict[str, Any]], list[Any] | None]


class Refused(Exception):
    """What has no form in a graph, and what to do."""


class LoweringError(ExportError):
    """The same, with the line of the user's code."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A function of arrays, to a tuple of arrays, without what is gone around.

    Attributes:
        function: the same function.
        around: the entries of `RULES` that it needed.
    """

    function: Callable[..., tuple[Any, ...]]
    around: frozenset[str]


def lower(function: Callable[..., Any], arguments: Sequence[jax.ShapeDtypeStruct]) -> Lowered:
    """The same function of the same arrays, without what `UNFOLD` and `RULES` name.

    Args:
        function: of arrays, to a tuple of arrays.
        arguments: their shapes.

    Raises:
        LoweringError: something has no form in a graph; the message has the line of the user's code.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    flat = jax.make_jaxpr(lambda *args: _unfolded(closed.jaxpr, closed.consts, args, None))(*arguments)
    around: set[str] = set()

    def lowered(*args: Any) -> tuple[Any, ...]:
        return tuple(_bound(flat.jaxpr, flat.consts, args, around))

    jax.eval_shape(lowered, *arguments)
    return Lowered(function=lowered, around=frozenset(around))


def where(at: Any) -> str:
    """The user's line that asks for an operation, as (file:line: text); empty where JAX does not tell."""
    try:
        from jax._src import source_info_util

        frames = [f for f in source_info_util.user_frames(at) if not _LIBRARY.search(f.file_name)]
    except Exception:  # JAX's own, and may change
        return ""
    return _told(frames[0].file_name, frames[0].start_line) if frames else ""


def raised(error: BaseException) -> str:
    """The user's line that an exception came from, in the same words."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _LIBRARY.search(f.filename)]
    return _told(frames[-1].filename, frames[-1].lineno or 0) if frames else ""


def _told(file: str, line: int) -> str:
    text = " ".join(linecache.getline(file, line).split())
    text = f"{text[: _TEXT_MAX - 3]}..." if len(text) > _TEXT_MAX else text
    return f" ({Path(file).name}:{line}{text and f': {text}'})"


def _as_of(at: Any) -> Any:
    """What is bound in it keeps the user's line."""
    try:
        from jax._src import source_info_util

        return source_info_util.user_context(at)
    except Exception:  # JAX's own, and may change
        return contextlib.nullcontext()


def _of_jax(jaxpr: Any) -> bool:
    """A function of JAX's own: its trace is kept, and has the line of whoever called it first."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return bool(_LIBRARY.search(str(getattr(info, "func_filename", "") or getattr(info, "func_src_info", ""))))


class Values:
    """The values of a trace while it is gone through."""

    def __init__(self, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> None:
        self._known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def of(self, atoms: Sequence[Any]) -> list[Any]:
        """The values of these, in order."""
        return [atom.val if isinstance(atom, core.Literal) else self._known[atom] for atom in atoms]

    def keep(self, eqn: Any, found: Any) -> Sequence[Any]:
        """Take up what an equation gave; its values."""
        outputs = found if eqn.primitive.multiple_results or isinstance(found, (list, tuple)) else [found]
        self._known.update(zip(eqn.outvars, outputs, strict=True))
        return outputs


def _unfolded(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], caller: Any) -> list[Any]:
    """Every primitive, with those of calls, loops and branches in their place."""
    values = Values(jaxpr, consts, args)
    for eqn in jaxpr.eqns:
        at = caller or eqn.source_info.traceback

        def run(inner: Any, inputs: Sequence[Any], at: Any = at) -> list[Any]:
            return _unfolded(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", []), inputs, at if _of_jax(inner) else caller
            )

        inputs, rule = values.of(eqn.invars), UNFOLD.get(eqn.primitive.name)
        with _as_of(at), jax.ensure_compile_time_eval() if _constant(eqn, inputs) else contextlib.nullcontext():
            try:
                found = rule(inputs, eqn.params, run) if rule else eqn.primitive.bind(*inputs, **eqn.params)
            except Refused as refused:
                raise LoweringError(f"policy function: {refused}{where(at)}") from refused
        values.keep(eqn, found)
    return values.of(jaxpr.outvars)


def _constant(eqn: Any, inputs: Sequence[Any]) -> bool:
    """Weights of another precision that are cast, and indices that are known: no business of the graph's."""
    if any(isinstance(v, jax.core.Tracer) for v in inputs):
        return False
    kinds = [getattr(atom.aval, "dtype", jnp.float32) for atom in eqn.outvars]
    return any(map(_imprecise, [*eqn.invars, *eqn.outvars])) or all(kind in (jnp.int32, bool) for kind in kinds)


def _imprecise(atom: Any) -> str:
    """The name of a type that a policy's graph does not have."""
    kind = getattr(atom.aval, "dtype", None)
    if kind is None or jnp.issubdtype(kind, jax.dtypes.extended) or not jnp.issubdtype(kind, jnp.inexact):
        return ""
    return "" if kind == jnp.float32 else str(kind)


def _bound(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], around: set[str]) -> list[Any]:
    """The primitives that something reads, those of `RULES` another way; which ones is added to `around`."""
    values = Values(jaxpr, consts, args)
    for eqn in _read(jaxpr):
        at, rule = eqn.source_info.traceback, RULES.get(eqn.primitive.name)
        with _as_of(at):
            try:
                for kind in filter(None, map(_imprecise, [*eqn.invars, *eqn.outvars])):
                    raise Refused(f"{kind} in {eqn.primitive.name}; {_PRECISION.get(kind, _CAST)}")
                inputs = values.of(eqn.invars)
                found = rule(inputs, eqn.params) if rule else None
            except Refused as refused:
                raise LoweringError(f"policy function: {refused}{where(at)}") from refused
            if found is None:
                found = eqn.primitive.bind(*inputs, **eqn.params)
            else:
                around.add(eqn.primitive.name)
        values.keep(eqn, found)
    return values.of(jaxpr.outvars)


def _read(jaxpr: core.Jaxpr) -> list[Any]:
    """The equations that something reads, or that do something besides."""
    wanted, kept = set(map(id, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(v) in wanted for v in eqn.outvars):
            wanted.update(map(id, eqn.invars))
            kept.append(eqn)
    return kept[::-1]


_CAST = "a policy computes in float32: cast to it before"
_HALF = "a policy computes in float32: leave the cast out, and give layers dtype=jnp.float32"
_PRECISION = {
    "bfloat16": _HALF,
    "float16": _HALF,
    "float64": "a policy computes in float32: leave jax_enable_x64 off, or cast its inputs with .astype(jnp.float32)",
    "complex64": "a graph has no complex numbers: compute real and imaginary part as two arrays",
}


def _inline(key: str) -> Unfold:
    """A call of a function that was traced: its primitives in its place."""
    return lambda inputs, params, run: run(params[key], inputs)


def _scan(inputs: list[Any], params: dict[str, Any], run: Run) -> list[Any]:
    """A loop of a fixed number of turns, unrolled."""
    turns, n_consts, n_carry = params["length"], params["num_consts"], params["num_carry"]
    if turns > UNROLL_MAX:
        raise Refused(
            f"a loop of {turns} turns (lax.scan, fori_loop): at most {UNROLL_MAX} are unrolled; compute it over "
            "a whole axis at once, or spread it over control steps by the carry"
        )
    body = params["jaxpr"]
    consts, carry, rows = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]
    collected: list[list[Any]] = []
    order = range(turns)[::-1] if params["reverse"] else range(turns)
    for turn in order:
        found = run(body, [*consts, *carry, *(lax.index_in_dim(row, turn, keepdims=False) for row in rows)])
        carry = found[:n_carry]
        collected.append([lax.expand_dims(v, (0,)) for v in found[n_carry:]])
    if params["reverse"]:
        collected.reverse()
    if not collected:
        return [*carry, *(jnp.zeros((0, *a.shape), a.dtype) for a in body.out_avals[n_carry:])]
    return [*carry, *(lax.concatenate(column, 0) for column in zip(*collected, strict=True))]


def _cond(inputs: list[Any], params: dict[str, Any], run: Run) -> list[Any]:
    """One of several branches: all are computed, and one is taken."""
    index, operands = inputs[0], inputs[1:]
    if not isinstance(index, jax.core.Tracer):
        return run(params["branches"][min(max(int(index), 0), len(params["branches"]) - 1)], operands)
    found = [run(branch, operands) for branch in params["branches"]]
    chosen = found[0]
    for number, branch in enumerate(found[1:], 1):
        here = index if index.dtype == bool else lax.ge(index, lax.full_like(index, number))
        chosen = [lax.select_n(here, c, b) for b, c in zip(branch, chosen, strict=True)]
    return chosen


# Calls, that the rules may reach what is in them; loops, of which jax2onnx makes a Loop, which no robot's runtime
# should meet; branches, of which jax2onnx takes two and not more.
UNFOLD: dict[str, Unfold] = {
    "jit": _inline("jaxpr"),
    "pjit": _inline("jaxpr"),
    "closed_call": _inline("call_jaxpr"),
    "core_call": _inline("call_jaxpr"),
    "custom_jvp_call": _inline("call_jaxpr"),
    "custom_vjp_call": _inline("call_jaxpr"),
    "remat2": _inline("jaxpr"),
    "checkpoint": _inline("jaxpr"),
    "scan": _scan,
    "cond": _cond,
    "gather": indexing.known_gather,
}


def _refused(why: str) -> Rule:
    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
        raise Refused(why)

    return rule


def _in_total_order(compare: Callable[[Any, Any], Any]) -> Rule:
    """A comparison by which -0 is less than 0; of NaN, which a policy has no use for, it says no."""

    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
        a, b = inputs
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return [compare(a, b)]
        zeros = lax.eq(lax.abs(a) + lax.abs(b), lax.full_like(a, 0))
        return [_choose(zeros, compare(1 / a, 1 / b), compare(a, b))]

    return rule


def _choose(condition: Any, true: Any, false: Any) -> Any:
    """One of two arrays of bools."""
    return lax.bitwise_or(lax.bitwise_and(condition, true), lax.bitwise_and(lax.bitwise_not(condition), false))


def _unusual(kind: Any) -> bool:
    """An integer that ONNX Runtime 1.20 does not compute with, as those that jnp.searchsorted counts with."""
    return jnp.issubdtype(kind, jnp.integer) and kind not in (jnp.int32, jnp.int64)


def _as_int32(bind: Callable[..., Any]) -> Rule:
    """The same operation, of int32."""

    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any] | None:
        kind = inputs[0].dtype
        if not _unusual(kind):
            return None
        return [lax.convert_element_type(bind(*(lax.convert_element_type(v, jnp.int32) for v in inputs)), kind)]

    return rule


def _select_n(inputs: list[Any], params: dict[str, Any]) -> list[Any] | None:
    """ONNX Runtime has no Where of bools, and before 1.31 none of unsigned integers."""
    condition, *cases = inputs
    if _unusual(cases[0].dtype):
        whole = lax.select_n(condition, *(lax.convert_element_type(case, jnp.int32) for case in cases))
        return [lax.convert_element_type(whole, cases[0].dtype)]
    if cases[0].dtype != bool or condition.dtype != bool or len(cases) != 2:
        return None
    condition = condition if condition.ndim else lax.broadcast(condition, cases[0].shape)
    return [_choose(condition, cases[1], cases[0])]


def _atan2(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
    """jax2onnx's leaves out the signs of zeros: which side of the cut a heading is on."""
    shape = np.broadcast_shapes(*(v.shape for v in inputs))  # one of them may be a scalar
    y, x = (lax.broadcast(v, shape) if v.shape != shape else v for v in inputs)
    zero, pi = lax.full_like(x, 0), lax.full_like(x, jnp.pi)

    def negative(v: Any) -> Any:
        return lax.lt(lax.select(lax.eq(v, zero), 1 / v, v), zero)

    flat = lax.eq(y, zero)
    slope = lax.atan(lax.select(flat, zero, y / x))  # of x = 0 it is that of infinity
    turned = lax.select(negative(x), lax.select(negative(y), -pi, pi), zero)
    # of x = 0 and y not, the slope has the sign of both
    return [lax.select(lax.eq(x, zero) & ~flat, lax.select(negative(y), -pi, pi) / 2, slope + turned)]


def _pad(inputs: list[Any], params: dict[str, Any]) -> list[Any] | None:
    """What is put between elements, as the gradient of a convolution and associative_scan do."""
    operand, value = inputs
    config = params["padding_config"]
    if not any(inner for _, _, inner in config):
        return None
    shape = jax.eval_shape(lambda v, w: lax.pad(v, w, config), operand, value).shape
    places, inside = np.zeros(shape, np.int32), np.ones(shape, bool)
    for dim, (low, _, inner) in enumerate(config):
        along = [-1 if axis == dim else 1 for axis in range(len(shape))]
        at, rest = np.divmod(np.arange(shape[dim]) - low, inner + 1)
        here = (rest == 0) & (at >= 0) & (at < operand.shape[dim])
        places = places * operand.shape[dim] + np.where(here, at, 0).astype(np.int32).reshape(along)
        inside &= here.reshape(along)
    found = indexing.take(operand, jnp.asarray(places))
    return [lax.select(jnp.asarray(inside), found, lax.broadcast(value, shape))]


def _conv(inputs: list[Any], params: dict[str, Any]) -> list[Any] | None:
    """A transposed convolution is a plain one of what it reads with zeros between."""
    if all(d == 1 for d in params["lhs_dilation"]):
        return None
    lhs, rhs = inputs
    config = [(0, 0, 0)] * lhs.ndim
    for dim, dilation in zip(params["dimension_numbers"].lhs_spec[2:], params["lhs_dilation"], strict=True):
        config[dim] = (0, 0, dilation - 1)
    spread = _pad([lhs, lax.full((), 0, lhs.dtype)], {"padding_config": config})
    params = {**params, "lhs_dilation": (1,) * len(params["lhs_dilation"])}
    return [lax.conv_general_dilated_p.bind(spread[0] if spread else lhs, rhs, **params)]


def _running(combine: Callable[[Any, Any], Any]) -> Rule:
    """A running product and the like, step by step: ONNX has none up to opset 21, or one that overflows."""

    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
        (x,), axis = inputs, params["axis"]
        if x.shape[axis] > UNROLL_MAX:
            raise Refused(
                f"a running product or log-sum over {x.shape[axis]} elements: at most {UNROLL_MAX} are written out; "
                "use jnp.cumsum, of logarithms where it is a product"
            )
        rows = [lax.slice_in_dim(x, k, k + 1, axis=axis) for k in range(x.shape[axis])]
        rows = list(accumulate(rows[::-1] if params["reverse"] else rows, combine))
        return [lax.concatenate(rows[::-1] if params["reverse"] else rows, axis)]

    return rule


def _integer_pow(inputs: list[Any], params: dict[str, Any]) -> list[Any] | None:
    """The power of an integer, as products."""
    (x,), power = inputs, params["y"]
    if not jnp.issubdtype(x.dtype, jnp.integer) or not 0 < power <= UNROLL_MAX:
        return None
    return [list(accumulate([x] * power, lax.mul))[-1]]


def _log_add(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b))."""
    most, least = lax.max(a, b), lax.min(a, b)
    return most + lax.log1p(lax.exp(lax.select(lax.eq(most, least), lax.full_like(a, 0), least - most)))


_MOST = float(np.finfo(np.float32).max)
RULES: dict[str, Rule] = {
    "select_n": _select_n,
    "add": _as_int32(lax.add),
    "sub": _as_int32(lax.sub),
    "mul": _as_int32(lax.mul),
    "div": _as_int32(lax.div),
    "max": _as_int32(lax.max),
    "min": _as_int32(lax.min),
    "atan2": _atan2,
    "gather": indexing.gather,
    "dynamic_slice": indexing.dynamic_slice,
    "dynamic_update_slice": indexing.dynamic_update_slice,
    "scatter": indexing.scatter(None, None, None),
    lax.scatter_add_p.name: indexing.scatter(lax.add, lax.reduce_sum, 0),
    lax.scatter_sub_p.name: indexing.scatter(lax.sub, lax.reduce_sum, 0),
    lax.scatter_mul_p.name: indexing.scatter(lax.mul, lax.reduce_prod, 1),
    lax.scatter_min_p.name: indexing.scatter(lax.min, lax.reduce_min, _MOST),
    lax.scatter_max_p.name: indexing.scatter(lax.max, lax.reduce_max, -_MOST),
    "pad": _pad,
    "conv_general_dilated": _conv,
    "integer_pow": _integer_pow,
    "cumprod": _running(lax.mul),
    "cumlogsumexp": _running(_log_add),
    "while": _refused(
        "a loop that ends when something is so (lax.while_loop); use a Python loop, or lax.fori_loop with fixed bounds"
    ),
    # a search in a sorted table (searchsorted, digitize, interp)
    "lt_to": _in_total_order(lax.lt),
    "le_to": _in_total_order(lax.le),
    # what no graph has
    **dict.fromkeys(
        ("random_bits", "random_seed", "random_wrap", "threefry2x32"),
        _refused("random numbers; a policy that is deployed is the mean of its distribution: leave the noise out"),
    ),
    **dict.fromkeys(
        ("pure_callback", "io_callback", "debug_callback", "debug_print"),
        _refused("a call back to Python, which a graph does not have; leave it out"),
    ),
}
