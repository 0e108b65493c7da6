"""A traced function with what jax2onnx, or a robot's runtime, does not take written another way.

JAX traces the policy to its primitives; here they are bound again one by one, so that jax2onnx sees no layer of flax or
equinox and no function of jax.numpy, for which it has forms of its own that are wrong for arrays without a batch axis.
`RULES` is the list of what is gone around; tests/export/test_lowering.py says when an entry is no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from export.errors import ExportError

# A loop of more turns would make a graph too long to read.
UNROLL_MAX = 64
Rule = Callable[[list[Any], dict[str, Any]], list[Any]]


class Refused(Exception):
    """What has no form in a graph, and what to do."""


def lower(function: Callable[..., Any], arguments: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., tuple[Any, ...]]:
    """The same function of the same arrays, without what `RULES` names.

    Args:
        function: of arrays, to a tuple of arrays.
        arguments: their shapes.

    The result raises ExportError, with the line of the user's code, where something has no form in a graph.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return lambda *args: tuple(_run(closed.jaxpr, closed.consts, args))


def _line(eqn: Any) -> str:
    """Where the user's code asks for an operation; empty where JAX does not tell."""
    try:
        from jax._src import source_info_util

        frame = source_info_util.user_frame(eqn.source_info.traceback)
        return "" if frame is None else f" ({Path(frame.file_name).name}, line {frame.start_line})"
    except Exception:  # JAX's own, and may change
        return ""


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        inputs, rule = [value(atom) for atom in eqn.invars], RULES.get(eqn.primitive.name)
        try:
            found = rule(inputs, eqn.params) if rule is not None else eqn.primitive.bind(*inputs, **eqn.params)
        except Refused as refused:
            raise ExportError(f"policy function: {refused}{_line(eqn)}") from refused
        outputs = found if eqn.primitive.multiple_results or isinstance(found, (list, tuple)) else [found]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _inline(key: str) -> Rule:
    """A call of a function that was traced: its primitives in its place."""

    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
        inner = params[key]
        return _run(inner.jaxpr, inner.consts, inputs) if hasattr(inner, "consts") else _run(inner, [], inputs)

    return rule


def _scan(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
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
        found = _run(body.jaxpr, body.consts, [*consts, *carry, *(row[turn] for row in rows)])
        carry = found[:n_carry]
        collected.append(found[n_carry:])
    if params["reverse"]:
        collected.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*collected, strict=True))]


def _refused(why: str) -> Rule:
    def rule(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
        raise Refused(why)

    return rule


def _cond(inputs: list[Any], params: dict[str, Any]) -> list[Any]:
    """One of several branches: all are computed, and one is taken."""
    index, operands = inputs[0], inputs[1:]
    found = [_run(branch.jaxpr, branch.consts, operands) for branch in params["branches"]]
    chosen = found[0]
    for number, branch in enumerate(found[1:], 1):
        last = number == len(found) - 1
        here = index.astype(bool) if index.dtype == bool else (index >= number if last else index == number)
        chosen = [jnp.where(here, b, c) for b, c in zip(branch, chosen, strict=True)]
    return chosen


RULES: dict[str, Rule] = {
    # calls, that the rules may reach what is in them
    "jit": _inline("jaxpr"),
    "pjit": _inline("jaxpr"),
    "closed_call": _inline("call_jaxpr"),
    "custom_jvp_call": _inline("call_jaxpr"),
    "custom_vjp_call": _inline("call_jaxpr"),
    "remat2": _inline("jaxpr"),
    "checkpoint": _inline("jaxpr"),
    # jax2onnx makes a Loop of it, which no robot's runtime should meet
    "scan": _scan,
    "while": _refused(
        "a loop that ends when something is so (lax.while_loop); use a Python loop, or lax.fori_loop with fixed bounds"
    ),
    # jax2onnx takes two branches, not more
    "cond": _cond,
    # a search among floats that may be NaN
    **dict.fromkeys(
        ("lt_to", "le_to"),
        _refused(
            "a search in a sorted table (jnp.searchsorted, digitize, interp) beside layers that JAX traces first; "
            'say method="compare_all", or count jnp.sum(table < x)'
        ),
    ),
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
