"""Operations of jax.numpy, jax.nn and jax.lax, as a policy calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tried.case import Case, Made, at_time, of
from tried.layers import table, whole

CLIP = jnp.asarray(np.float32(0.3 * np.sin(np.arange(60)[:, None] * [0.1, 0.2])))
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(0, 0.3, (5, 4)).astype(np.float32))
KNOTS, VALUES = jnp.linspace(-2, 2, 7), jnp.linspace(0, 2, 7) ** 2


def _frame(t: jax.Array) -> jax.Array:
    return jnp.int32(t / 0.02)


def _quat(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a unit quaternion (w, x, y, z), a vector) of five numbers."""
    q = jnp.concatenate([jnp.ones(1), x[:3]])
    return q / jnp.linalg.norm(q), x[2:]


def _rotate(x: jax.Array) -> jax.Array:
    q, v = _quat(x)
    t = 2 * jnp.cross(q[1:], v)
    return v + q[0] * t + jnp.cross(q[1:], t)


def _euler(x: jax.Array) -> jax.Array:
    (w, i, j, k), _ = _quat(x)
    return jnp.stack(
        [
            jnp.arctan2(2 * (w * i + j * k), 1 - 2 * (i * i + j * j)),
            jnp.arcsin(jnp.clip(2 * (w * j - k * i), -1, 1)),
            jnp.arctan2(2 * (w * k + i * j), 1 - 2 * (j * j + k * k)),
        ]
    )


def _sum_until(x: jax.Array) -> jax.Array:
    return lax.while_loop(lambda v: v[0] < 1, lambda v: v + 1, x)


X = dict[str, Callable[[jax.Array], Any]]
ARITHMETIC: X = {
    "+, -, *, / of vectors": lambda x: (x + 1) * x - x / 3,
    "x / (1 + y * y)": lambda x: x / (1 + x[::-1] ** 2),
    "x ** 2, x ** 3, x ** -2": lambda x: (x**2, x**3, (1 + jnp.abs(x)) ** -2),
    "jnp.power(abs(x), 0.7)": lambda x: jnp.power(jnp.abs(x), 0.7),
    "2.0 ** x, jnp.exp2": lambda x: (2.0 ** jnp.clip(x, -9, 3), jnp.exp2(jnp.clip(x, -9, 3))),
    "x % 2, jnp.mod": lambda x: (x % 2, jnp.mod(x, -1.5)),
    "jnp.remainder of two vectors": lambda x: jnp.remainder(x, 1 + jnp.abs(x[::-1])),
    "jnp.fmod, lax.rem": lambda x: (jnp.fmod(x, 2.0), lax.rem(x, jnp.full(5, 1.5))),
    "jnp.divmod": lambda x: jnp.divmod(x, 2.0),
    "x // 2, jnp.floor_divide": lambda x: (x // 2, jnp.floor_divide(x, -1.5)),
    "jnp.floor, ceil, trunc": lambda x: (jnp.floor(x), jnp.ceil(x), jnp.trunc(x)),
    "jnp.round, jnp.rint": lambda x: (jnp.round(x), jnp.rint(x)),
    "jnp.round(x, 2)": lambda x: jnp.round(jnp.clip(x, -9, 9), 2),
    "jnp.sign, jnp.copysign": lambda x: (jnp.sign(x), jnp.copysign(2.0, x)),
    "jnp.heaviside": lambda x: jnp.heaviside(x, 0.5),
    "jnp.abs, fabs, negative, reciprocal": lambda x: (jnp.abs(x), jnp.fabs(x), -x, jnp.reciprocal(1 + jnp.abs(x))),
    "jnp.sqrt, lax.rsqrt, jnp.cbrt": lambda x: (jnp.sqrt(jnp.abs(x)), lax.rsqrt(1 + jnp.abs(x)), jnp.cbrt(x)),
    "jnp.square, jnp.hypot": lambda x: (jnp.square(x), jnp.hypot(x, x[::-1])),
    "jnp.exp, expm1": lambda x: (jnp.exp(jnp.clip(x, -9, 3)), jnp.expm1(jnp.clip(x, -9, 3))),
    "jnp.log, log1p, log2, log10": lambda x: [f(1 + jnp.abs(x)) for f in (jnp.log, jnp.log1p, jnp.log2, jnp.log10)],
    "jnp.logaddexp": lambda x: jnp.logaddexp(x, x[::-1]),
    "jnp.maximum, minimum, clip": lambda x: (jnp.maximum(x, 0.1), jnp.minimum(x, x[::-1]), jnp.clip(x, -1.0, 1.0)),
    "jnp.clip between vectors": lambda x: jnp.clip(x, -jnp.abs(x[::-1]), jnp.abs(x[::-1])),
    "jnp.nan_to_num": lambda x: jnp.nan_to_num(jnp.where(x > 1, jnp.nan, x)),
    "jnp.isnan, isfinite, isinf": lambda x: [
        f(jnp.where(x > 1, jnp.inf, x)) for f in (jnp.isnan, jnp.isfinite, jnp.isinf)
    ],
    "jnp.deg2rad, rad2deg": lambda x: (jnp.deg2rad(x), jnp.rad2deg(x)),
    "jnp.interp": lambda x: jnp.interp(x, KNOTS, VALUES),
    "jnp.interp(left=, right=)": lambda x: jnp.interp(x, KNOTS, VALUES, left=-1.0, right=9.0),
    "jnp.polyval": lambda x: jnp.polyval(jnp.array([1.0, 2.0, 3.0]), x),
    "jnp.float_power": lambda x: jnp.float_power(1 + jnp.abs(x), 1.5),
    "jnp.sinc": lambda x: jnp.sinc(jnp.clip(x, -3, 3)),
}
TRIGONOMETRY: X = {
    "jnp.sin, cos": lambda x: (jnp.sin(x), jnp.cos(x)),
    "jnp.tan": lambda x: jnp.tan(jnp.clip(x, -1, 1)),
    "jnp.arcsin, arccos, arctan": lambda x: [f(jnp.clip(x, -1, 1)) for f in (jnp.arcsin, jnp.arccos, jnp.arctan)],
    "jnp.arctan2": lambda x: jnp.arctan2(x, x[::-1]),
    "jnp.sinh, cosh, tanh": lambda x: [f(jnp.clip(x, -3, 3)) for f in (jnp.sinh, jnp.cosh, jnp.tanh)],
    "jnp.arcsinh, arccosh, arctanh": lambda x: (
        jnp.arcsinh(x), jnp.arccosh(1.5 + jnp.abs(x)), jnp.arctanh(jnp.clip(x, -0.9, 0.9))
    ),
    "jnp.unwrap": lambda x: jnp.unwrap(x),
    "wrap to pi: arctan2(sin, cos)": lambda x: jnp.arctan2(jnp.sin(x), jnp.cos(x)),
    "wrap to pi: (x + pi) % (2 pi) - pi": lambda x: (jnp.clip(x, -3, 3) + jnp.pi) % (2 * jnp.pi) - jnp.pi,
}  # fmt: skip
REDUCTIONS: X = {
    "jnp.sum, prod over axes": lambda x: (
        jnp.sum(table(x), 0),
        jnp.sum(table(x), (0, 1)),
        jnp.prod(jnp.tanh(table(x)), 1),
    ),
    "jnp.mean, with keepdims": lambda x: (jnp.mean(table(x), 0), jnp.mean(table(x), -1, keepdims=True), jnp.mean(x)),
    "jnp.mean(where=)": lambda x: jnp.mean(x, where=jnp.arange(5) < 3),
    "jnp.std, var": lambda x: (jnp.std(x), jnp.var(x), jnp.std(table(x), 0), jnp.var(table(x), 1)),
    "jnp.std(ddof=1)": lambda x: jnp.std(x, ddof=1),
    "jnp.median": lambda x: (jnp.median(x), jnp.median(table(x), 0)),
    "jnp.percentile, quantile": lambda x: (jnp.percentile(x, 30.0), jnp.quantile(x, 0.75)),
    "jnp.max, min over axes": lambda x: (jnp.max(table(x), 0), jnp.min(table(x), 1), jnp.max(x)),
    "jnp.argmax, argmin": lambda x: (jnp.argmax(x), jnp.argmin(x), jnp.argmax(table(x), 0)),
    "jnp.all, any": lambda x: (jnp.all(x > 0), jnp.any(table(x) > 1, 0)),
    "jnp.count_nonzero": lambda x: jnp.count_nonzero(x > 0),
    "jnp.cumsum, cumprod": lambda x: (jnp.cumsum(x), jnp.cumprod(jnp.tanh(x)), jnp.cumsum(table(x), axis=0)),
    "lax.cummax, lax.cumsum(reverse=True)": lambda x: (lax.cummax(x), lax.cumsum(x, reverse=True)),
    "lax.cumlogsumexp": lambda x: lax.cumlogsumexp(x),
    "jnp.diff, ediff1d, gradient": lambda x: (jnp.diff(x), jnp.ediff1d(x), jnp.gradient(x)),
    "jnp.ptp, nanmean, nansum": lambda x: (jnp.ptp(x), jnp.nanmean(x), jnp.nansum(x)),
    "jnp.average(weights=)": lambda x: jnp.average(x, weights=jnp.arange(1.0, 6.0)),
    "jnp.cov, corrcoef": lambda x: jnp.cov(table(x)),
    "jax.nn.logsumexp": lambda x: (jax.nn.logsumexp(x), jax.nn.logsumexp(table(x), 0)),
    "jnp.linalg.norm": lambda x: (jnp.linalg.norm(x), jnp.linalg.norm(table(x), axis=1, keepdims=True)),
    "jnp.linalg.norm(ord=1), (ord=inf)": lambda x: (jnp.linalg.norm(x, ord=1), jnp.linalg.norm(x, ord=jnp.inf)),
    "x / norm(x), safely": lambda x: x / jnp.maximum(jnp.linalg.norm(x), 1e-6),
    "jax.ops.segment_sum": lambda x: jax.ops.segment_sum(x, jnp.array([0, 0, 1, 2, 2]), 3),
    "jnp.histogram": lambda x: jnp.histogram(x, bins=jnp.array([-1.0, 0.0, 1.0]))[0],
    "jnp.bincount": lambda x: jnp.bincount(whole(x), length=7),
}
ORDER: X = {
    "jnp.sort": lambda x: (jnp.sort(x), jnp.sort(table(x), 0)),
    "jnp.sort(descending=True)": lambda x: jnp.sort(x, descending=True),
    "jnp.argsort": lambda x: (jnp.argsort(x), x[jnp.argsort(x)]),
    "lax.sort of keys and values": lambda x: lax.sort((x, x[::-1]), num_keys=1),
    "jnp.lexsort": lambda x: jnp.lexsort((x[::-1], x)),
    "lax.top_k": lambda x: lax.top_k(x, 2),
    "jnp.searchsorted": lambda x: jnp.searchsorted(KNOTS, x),
    'jnp.searchsorted(side="right")': lambda x: jnp.searchsorted(KNOTS, x, side="right"),
    'jnp.searchsorted(method="compare_all")': lambda x: jnp.searchsorted(KNOTS, x, method="compare_all"),
    "jnp.digitize": lambda x: jnp.digitize(x, KNOTS),
    "jnp.unique(size=)": lambda x: jnp.unique(jnp.round(x), size=5, fill_value=0),
    "jnp.flip, x[::-1], x[::2]": lambda x: (jnp.flip(x), x[::-1], x[::2]),
    "jnp.roll by a number": lambda x: (jnp.roll(x, 2), jnp.roll(table(x), -1, 0)),
    "jnp.roll by a computed number": lambda x: jnp.roll(x, jnp.int32(x[0])),
    "jnp.nonzero(size=)": lambda x: jnp.nonzero(x > 0, size=5)[0],
    "jnp.partition": lambda x: jnp.sort(jnp.partition(x, 2)[:2]),
}
INDEXING: X = {
    "x[2], x[1:3], x[-1]": lambda x: (x[2], x[1:3], x[-1]),
    "x[jnp.array([3, 0])]": lambda x: x[jnp.array([3, 0])],
    "table[k] at a computed index": lambda x: VALUES[whole(x)[0]],
    "table[k], k negative or too large": lambda x: VALUES[jnp.int32(x[0])],
    "table[ks] of several": lambda x: VALUES[whole(x)],
    "rows[i, j] of two computed indices": lambda x: table(x)[whole(x)[0] % 4, whole(x)[1] % 5],
    "x[:, k]": lambda x: table(x)[:, whole(x)[0] % 5],
    "table.at[k].get(mode='fill')": lambda x: VALUES.at[jnp.int32(x[0])].get(mode="fill", fill_value=-1.0),
    "table.at[k].get(mode='clip')": lambda x: VALUES.at[jnp.int32(x[0])].get(mode="clip"),
    "jnp.take(mode='clip')": lambda x: jnp.take(VALUES, jnp.int32(x), mode="clip"),
    "jnp.take(mode='wrap')": lambda x: jnp.take(VALUES, jnp.int32(x), mode="wrap"),
    "jnp.take(axis=1)": lambda x: jnp.take(table(x), whole(x) % 5, axis=1, mode="clip"),
    "jnp.take_along_axis": lambda x: jnp.take_along_axis(table(x), jnp.argsort(table(x), 0), 0),
    "jnp.choose, jnp.select": lambda x: jnp.select([x > 1, x > 0], [x, 2 * x], -1.0),
    "jnp.compress(size=)": lambda x: jnp.compress(x > 0, x, size=5),
    "lax.dynamic_slice": lambda x: lax.dynamic_slice(VALUES, (whole(x)[0],), (3,)),
    "lax.dynamic_slice beyond the end": lambda x: lax.dynamic_slice(VALUES, (jnp.int32(x[0]),), (3,)),
    "lax.dynamic_slice_in_dim of rows": lambda x: lax.dynamic_slice_in_dim(CLIP, jnp.int32(3 * x[0]), 2),
    "lax.dynamic_index_in_dim": lambda x: lax.dynamic_index_in_dim(CLIP, whole(x)[0], keepdims=False),
    "lax.dynamic_update_slice": lambda x: lax.dynamic_update_slice(table(x), x[None], (whole(x)[0] % 4, 0)),
    "lax.dynamic_update_slice beyond the end": lambda x: lax.dynamic_update_slice(x, x[:2], (jnp.int32(x[0]),)),
    "lax.dynamic_update_index_in_dim": lambda x: lax.dynamic_update_index_in_dim(table(x), x, whole(x)[0] % 4, 0),
    "x.at[2].set(1.0)": lambda x: x.at[2].set(1.0),
    "x.at[1:3].set, .at[::2].multiply": lambda x: (x.at[1:3].set(0.0), x.at[::2].multiply(2.0)),
    "x.at[k].set at a computed index": lambda x: x.at[whole(x)[0] % 5].set(9.0),
    "x.at[k].set, k negative or too large": lambda x: x.at[jnp.int32(x[0])].set(9.0),
    "x.at[ks].add": lambda x: x.at[jnp.array([0, 0, 3])].add(1.0),
    "x.at[ks].add at computed indices": lambda x: jnp.zeros(7).at[whole(x)].add(x[:3]),
    "x.at[k].max, .min": lambda x: (x.at[whole(x)[0] % 5].max(0.5), x.at[1].min(0.0)),
    "rows.at[k].set(row)": lambda x: table(x).at[whole(x)[0] % 4].set(x),
    "rows.at[:, k].set(column)": lambda x: table(x).at[:, whole(x)[0] % 5].set(jnp.arange(4.0)),
    "one_hot(k) @ table": lambda x: jax.nn.one_hot(whole(x)[0], 7) @ VALUES,
    "jnp.where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "jnp.where with a NaN that is not taken": lambda x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), 0.0),
    "jnp.where(x > 0, jnp.sqrt(x), 0.0)": lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0),
    "jnp.piecewise": lambda x: jnp.piecewise(x, [x < 0, x >= 1], [lambda v: -v, lambda v: v * v, lambda v: 0 * v]),
}
SHAPES: X = {
    "jnp.concatenate, stack, hstack, vstack": lambda x: (
        jnp.concatenate([x, x]), jnp.stack([x, x], 1), jnp.hstack([x, x]), jnp.vstack([x, 2 * x])
    ),
    "jnp.split, array_split": lambda x: (*jnp.split(x, [2, 4]), *jnp.array_split(x, 2)),
    "jnp.reshape, x.T, jnp.transpose": lambda x: (table(x).reshape(5, 4), table(x).T, jnp.transpose(table(x), (1, 0))),
    "jnp.tile, repeat": lambda x: (jnp.tile(x, 2), jnp.repeat(x, 2), jnp.repeat(table(x), 2, axis=0)),
    "jnp.pad, also mode='edge'": lambda x: (jnp.pad(x, 1), jnp.pad(x, (1, 2), mode="edge")),
    "jnp.broadcast_to, x[None], expand_dims, squeeze": lambda x: (
        jnp.broadcast_to(x, (2, 5)), x[None], jnp.expand_dims(x, 1), jnp.squeeze(x[None], 0)
    ),
    "jnp.swapaxes, moveaxis": lambda x: (jnp.swapaxes(table(x), 0, 1), jnp.moveaxis(table(x)[None], 0, 2)),
    "jnp.rot90, triu, tril, diag": lambda x: (jnp.rot90(table(x)), jnp.triu(table(x)), jnp.tril(table(x)), jnp.diag(x)),
    "jnp.meshgrid": lambda x: jnp.meshgrid(x, x[:2]),
    "jnp.arange, linspace, eye": lambda x: x * jnp.arange(5) + jnp.linspace(0, 1, 5) + jnp.ones_like(x) @ jnp.eye(5),
    "jnp.insert, append, delete": lambda x: (jnp.insert(x, 1, 9.0), jnp.append(x, 1.0), jnp.delete(x, 2)),
    "jax.flatten_util.ravel_pytree": lambda x: jax.flatten_util.ravel_pytree({"a": x, "b": x[:2]})[0],
}  # fmt: skip
ALGEBRA: X = {
    "x @ W, W.T @ x, jnp.dot": lambda x: (x @ WEIGHTS, WEIGHTS.T @ x, jnp.dot(x, x)),
    "matrix @ matrix, of inputs": lambda x: table(x) @ table(x).T,
    "jnp.einsum": lambda x: (jnp.einsum("a,ab->b", x, WEIGHTS), jnp.einsum("ta,sa->ts", table(x), table(x))),
    "jnp.einsum('ijk,ikl->ijl')": lambda x: jnp.einsum("ijk,ikl->ijl", table(x)[None], table(x).T[None]),
    "jnp.outer, inner, vdot, kron": lambda x: (jnp.outer(x, x), jnp.inner(x, x), jnp.vdot(x, x), jnp.kron(x, x[:2])),
    "jnp.tensordot, jnp.matmul of stacks": lambda x: (
        jnp.tensordot(table(x), table(x), ((0, 1), (0, 1))), jnp.matmul(table(x)[None], WEIGHTS[None])
    ),
    "lax.dot_general": lambda x: lax.dot_general(table(x), WEIGHTS, (((1,), (0,)), ((), ()))),
    "jnp.cross": lambda x: jnp.cross(x[:3], x[2:]),
    "rotate by a quaternion": _rotate,
    "quaternion to Euler angles": _euler,
    "jnp.trace, jnp.diagonal": lambda x: (jnp.trace(table(x)), jnp.diagonal(table(x))),
    "jnp.linalg.det, inv of 3 x 3": lambda x: (
        jnp.linalg.det(jnp.eye(3) * 2 + jnp.outer(jnp.sin(x[:3]), jnp.cos(x[2:]))),
        jnp.linalg.inv(jnp.eye(3) * 2 + jnp.outer(jnp.sin(x[:3]), jnp.cos(x[2:]))),
    ),
    "jnp.linalg.solve": lambda x: jnp.linalg.solve(jnp.eye(5) * 2 + jnp.outer(jnp.sin(x), jnp.cos(x)), x),
    "jnp.linalg.cholesky": lambda x: jnp.linalg.cholesky(jnp.eye(5) + jnp.outer(jnp.tanh(x), jnp.tanh(x))),
    "jnp.linalg.svd, eigh": lambda x: jnp.linalg.svd(table(jnp.tanh(x)), compute_uv=False),
    "jnp.linalg.pinv": lambda x: jnp.linalg.pinv(table(jnp.tanh(x))),
    "lax.conv_general_dilated": lambda x: lax.conv_general_dilated(
        table(x)[None], WEIGHTS[:2].reshape(2, 4, 1), (1,), "VALID"
    ),
    "jnp.convolve": lambda x: jnp.convolve(x, jnp.array([0.5, 0.3, 0.2]), mode="valid"),
    "lax.reduce_window": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID"),
    "jnp.fft.rfft": lambda x: jnp.abs(jnp.fft.rfft(x)),
}  # fmt: skip
NEURAL: X = {
    f"jax.nn.{f.__name__}": lambda x, f=f: f(x)
    for f in (
        jax.nn.relu, jax.nn.elu, jax.nn.selu, jax.nn.celu, jax.nn.gelu, jax.nn.silu, jax.nn.mish, jax.nn.softplus,
        jax.nn.sigmoid, jax.nn.log_sigmoid, jax.nn.soft_sign, jax.nn.leaky_relu, jax.nn.hard_tanh, jax.nn.hard_sigmoid,
        jax.nn.hard_swish, jax.nn.relu6, jax.nn.squareplus, jax.nn.softmax, jax.nn.log_softmax, jax.nn.standardize,
        jax.nn.sparse_plus,
    )
}  # fmt: skip
NEURAL |= {
    "jax.nn.gelu(approximate=False)": lambda x: jax.nn.gelu(x, approximate=False),
    "jax.nn.glu": lambda x: jax.nn.glu(x[:4]),
    "jax.nn.softmax(axis=0, where=)": lambda x: jax.nn.softmax(table(x), 0, where=table(x) > -1),
    "jax.nn.one_hot": lambda x: jax.nn.one_hot(whole(x), 7),
    "jax.nn.dot_product_attention": lambda x: jax.nn.dot_product_attention(
        *(table(x).reshape(4, 1, 5) for _ in range(3))
    ),
    "jax.scipy.special.erf, erfc": lambda x: (jax.scipy.special.erf(x), jax.scipy.special.erfc(x)),
    "jax.scipy.special.ndtr, jax.lax.erf_inv": lambda x: (jax.scipy.special.ndtr(x), lax.erf_inv(0.9 * jnp.tanh(x))),
    "jax.scipy.special.gammaln, digamma": lambda x: jax.scipy.special.gammaln(1.5 + jnp.abs(jnp.tanh(x))),
    "jax.scipy.special.i0e": lambda x: jax.scipy.special.i0e(x),
    "jax.numpy.vectorize": lambda x: jnp.vectorize(lambda v: v * v + 1)(x),
}
CONTROL: X = {
    "lax.cond": lambda x: lax.cond(x[0] > 0, lambda v: v, lambda v: 2 * v, x),
    "lax.cond with operands of several kinds": lambda x: lax.cond(
        x[0] > 0, lambda a, k: a[k], lambda a, k: -a[0], x, whole(x)[1] % 5
    ),
    "lax.cond in a lax.cond": lambda x: lax.cond(
        x[0] > 0, lambda v: lax.cond(v[1] > 0, jnp.sin, jnp.cos, v), lambda v: v, x
    ),
    "lax.switch": lambda x: lax.switch(
        jnp.int32(x[0]), [lambda v: v, lambda v: 2 * v, lambda v: -v, lambda v: v * v], x
    ),
    "lax.select, lax.select_n": lambda x: (lax.select(x > 0, x, -x), lax.select_n(whole(x)[0] % 3, x, 2 * x, 3 * x)),
    "lax.scan": lambda x: lax.scan(lambda s, u: (0.5 * s + u, s), 0.0, x),
    "lax.scan(reverse=True)": lambda x: lax.scan(lambda s, u: (0.5 * s + u, s), 0.0, x, reverse=True),
    "lax.scan without xs": lambda x: lax.scan(lambda s, _: (jnp.tanh(s + 1), s[0]), x, None, length=4),
    "lax.scan over nothing": lambda x: lax.scan(lambda s, _: (s + 1, s), x, None, length=0)[0],
    "lax.scan in a lax.scan": lambda x: lax.scan(
        lambda s, u: (lax.scan(lambda a, b: (0.5 * a + b * u, None), s, x)[0], s), 0.0, x
    ),
    "lax.fori_loop": lambda x: lax.fori_loop(0, 3, lambda k, v: 0.5 * v + x * k, x),
    "lax.fori_loop that indexes by its turn": lambda x: lax.fori_loop(0, 5, lambda k, v: v.at[k].set(v[k] + v[0]), x),
    "lax.fori_loop of 65 turns": lambda x: lax.fori_loop(0, 65, lambda k, v: 0.5 * v + 1, x),
    "lax.fori_loop to a computed end": lambda x: lax.fori_loop(0, whole(x)[0], lambda k, v: 0.5 * v, x),
    "lax.while_loop": _sum_until,
    "lax.map": lambda x: lax.map(lambda v: v * v + 1, x),
    "lax.associative_scan": lambda x: lax.associative_scan(jnp.add, x),
    "jax.vmap": lambda x: jax.vmap(lambda v: jnp.tanh(v @ WEIGHTS))(table(x)),
    "jax.vmap of a table lookup": lambda x: jax.vmap(lambda k: CLIP[k])(whole(x)),
    "jax.vmap of lax.cond": lambda x: jax.vmap(lambda v: lax.cond(v > 0, jnp.sin, jnp.cos, v))(x),
    "jax.vmap of lax.dynamic_slice": lambda x: jax.vmap(lambda k: lax.dynamic_slice(VALUES, (k,), (2,)))(whole(x)),
    "jax.jit in the policy": lambda x: jax.jit(lambda v: jnp.tanh(v) + 1)(x),
    "jax.checkpoint": lambda x: jax.checkpoint(lambda v: jnp.tanh(v) + 1)(x),
    "jax.grad": lambda x: jax.grad(lambda v: jnp.sum(jnp.tanh(v) ** 2))(x),
    "jax.jvp, jax.jacobian": lambda x: jax.jacobian(lambda v: jnp.tanh(v @ WEIGHTS))(x),
    "jax.custom_jvp": lambda x: _with_jvp(x),
    "jax.custom_vjp": lambda x: _with_vjp(x),
    "lax.stop_gradient": lambda x: lax.stop_gradient(x) * 2,
    "jax.named_scope, jax.named_call": lambda x: jax.named_call(jnp.tanh, name="inner")(x),
    "lax.optimization_barrier": lambda x: lax.optimization_barrier(x * 2),
    "Python loop, list comprehension": lambda x: sum(x[k] * k for k in range(5)),
    "jax.lax.platform_dependent": lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
    "jax.debug.print": lambda x: _printed(x),
    "jax.pure_callback": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((5,), jnp.float32), x),
    "jax.random.normal": lambda x: x + jax.random.normal(jax.random.key(0), (5,)),
    "jax.random.PRNGKey, uniform": lambda x: x + jax.random.uniform(jax.random.PRNGKey(0), (5,)),
}
KINDS: X = {
    "integers: +, *, //, %": lambda x: ((k := jnp.int32(x)) * 3 + 1, k // 2, k % 3, -k),
    "float to int32 and back": lambda x: x.astype(jnp.int32).astype(jnp.float32),
    "int8, uint8, int16": lambda x: jnp.clip(x, 0, 9).astype(jnp.uint8).astype(jnp.float32),
    "bool: &, |, ~, ^": lambda x: ((x > 0) & (x < 1), (x > 0) | (x < -1), ~(x > 0), (x > 0) ^ (x > 1)),
    "bool to float, bool * float": lambda x: ((x > 0).astype(jnp.float32), (x > 0) * x),
    "==, !=, <, <=, >, >=": lambda x: (x == 1, x != 1, x < 1, x <= 1, x > 1, x >= 1),
    "jnp.logical_and, not, xor": lambda x: (jnp.logical_and(x > 0, x < 1), jnp.logical_not(x > 0)),
    "integers: &, |, <<, >>": lambda x: (jnp.int32(x) & 1, jnp.int32(x) << 1),
    "integer ** 2, jnp.abs, jnp.sign of integers": lambda x: (jnp.int32(x) ** 2, jnp.sign(jnp.int32(x))),
    "x == round(x)": lambda x: x == jnp.round(x),
    "bfloat16": lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
    "float16": lambda x: (x.astype(jnp.float16) * 2).astype(jnp.float32),
    "float64 without jax_enable_x64": lambda x: (x.astype(float) * np.float64(2)).astype(jnp.float32),
    "float64 with jax_enable_x64": lambda x: _double(x),
    "complex numbers": lambda x: jnp.abs(x + 1j * x[::-1]),
    "weights of numpy, float64": lambda x: x @ np.random.default_rng(0).normal(size=(5, 3)),
}
TIME: dict[str, Callable[[], Made]] = {
    "motion[k], k = int32(time / 0.02)": lambda: at_time(lambda t: CLIP[_frame(t)]),
    "motion[jnp.clip(k, 0, 59)]": lambda: at_time(lambda t: CLIP[jnp.clip(_frame(t), 0, 59)]),
    "motion[k % 60]": lambda: at_time(lambda t: CLIP[_frame(t) % 60]),
    "between two frames, by phase": lambda: at_time(
        lambda t: (1 - (t / 0.02) % 1) * CLIP[_frame(t) % 60] + ((t / 0.02) % 1) * CLIP[(_frame(t) + 1) % 60]
    ),
    "jnp.interp over the motion's time": lambda: at_time(
        lambda t: jnp.stack([jnp.interp(t, 0.02 * jnp.arange(60.0), CLIP[:, j]) for j in range(2)])
    ),
    "jax.vmap(jnp.interp) over the joints": lambda: at_time(
        lambda t: jax.vmap(lambda c: jnp.interp(t, 0.02 * jnp.arange(60.0), c))(CLIP.T)
    ),
    "lax.dynamic_slice of the next 5 frames": lambda: at_time(
        lambda t: lax.dynamic_slice(CLIP, (_frame(t), 0), (5, 2)).ravel()
    ),
    "sin, cos of the phase": lambda: at_time(lambda t: jnp.stack([jnp.sin(2 * jnp.pi * t), jnp.cos(2 * jnp.pi * t)])),
}


@jax.custom_jvp
def _with_jvp(x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


_with_jvp.defjvp(lambda primals, tangents: (jnp.tanh(primals[0]), tangents[0]))


@jax.custom_vjp
def _with_vjp(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -1, 1)


_with_vjp.defvjp(lambda x: (jnp.clip(x, -1, 1), None), lambda _, g: (g,))


def _printed(x: jax.Array) -> jax.Array:
    jax.debug.print("x {}", x[0])
    return x


def _double(x: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        return (x.astype(jnp.float64) * 2).astype(jnp.float32)


CASES = [
    Case(group=group, name=name, make=lambda f=f: of(f))
    for group, cases in {
        "Arithmetic": ARITHMETIC,
        "Trigonometry": TRIGONOMETRY,
        "Sums and statistics": REDUCTIONS,
        "Sorting and searching": ORDER,
        "Indexing and tables": INDEXING,
        "Shapes": SHAPES,
        "Linear algebra": ALGEBRA,
        "jax.nn and special functions": NEURAL,
        "Control flow and transformations": CONTROL,
        "Types": KINDS,
    }.items()
    for name, f in cases.items()
] + [Case(group="Motion by time", name=name, make=make) for name, make in TIME.items()]
