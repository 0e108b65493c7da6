# ruff: noqa: B008 (a layer is made once, with its policy)
"""Layers of flax (linen, nnx) and equinox, as a policy calls them: on one observation, without a batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tried.case import Case, Made, cell, of

KEY = jax.random.key(0)


def _linen(module: Any, look: Callable[[jax.Array], jax.Array] = lambda x: x, **more: Any) -> Made:
    """A module of linen on what `look` makes of the observation."""
    params = module.init(KEY, look(jnp.zeros(5)), **more)
    return of(lambda x: module.apply(params, look(x), **more))


def _linen_cell(module: Any) -> Made:
    carry = module.initialize_carry(KEY, (5,))
    params = module.init(KEY, carry, jnp.zeros(5))
    return cell(lambda c, x: module.apply(params, c, x), carry)


def _nnx_cell(module: Any) -> Made:
    return cell(module, module.initialize_carry((5,), nnx.Rngs(0)))


def _eqx_lstm() -> Made:
    lstm = eqx.nn.LSTMCell(5, 8, key=KEY)

    def step(carry: Any, x: jax.Array) -> Any:
        carry = lstm(x, carry)
        return carry, carry[0]

    return cell(step, (jnp.zeros(8), jnp.zeros(8)))


def _eqx_gru() -> Made:
    gru = eqx.nn.GRUCell(5, 8, key=KEY)

    def step(carry: Any, x: jax.Array) -> Any:
        carry = gru(x, carry)
        return carry, carry

    return cell(step, jnp.zeros(8))


def _eqx_batch_norm() -> Made:
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, axis_name="batch", mode="ema")
    norm = eqx.nn.inference_mode(norm)
    return of(lambda x: norm(x, state)[0])


def _eqx_spectral() -> Made:
    norm, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
        eqx.nn.Linear(5, 4, key=KEY), weight_name="weight", key=KEY
    )
    norm = eqx.nn.inference_mode(norm)
    return of(lambda x: norm(x, state)[0])


def table(x: jax.Array) -> jax.Array:
    """A history of four rows that an observation makes, (4, 5)."""
    return jnp.stack([x, 0.5 * x, jnp.roll(x, 1), -x])


def whole(x: jax.Array) -> jax.Array:
    """Three indices from 0 to 6, (3,)."""
    return jnp.clip(jnp.int32(x[:3] + 3), 0, 6)


_rngs = lambda: nnx.Rngs(0)  # noqa: E731
LINEN: dict[str, Callable[[], Made]] = {
    "nn.Dense": lambda: _linen(nn.Dense(4)),
    "nn.Dense(use_bias=False)": lambda: _linen(nn.Dense(4, use_bias=False)),
    "nn.DenseGeneral((2, 3))": lambda: _linen(nn.DenseGeneral((2, 3))),
    "nn.DenseGeneral(axis=(0, 1))": lambda: _linen(nn.DenseGeneral(4, axis=(0, 1)), table),
    "nn.Einsum": lambda: _linen(nn.Einsum((5, 3), "a,ab->b", use_bias=False)),
    "nn.Conv over a history": lambda: _linen(nn.Conv(3, (2,)), table),
    "nn.Conv(padding='CAUSAL', kernel_dilation=2)": lambda: _linen(
        nn.Conv(3, (2,), padding="CAUSAL", kernel_dilation=2), table
    ),
    "nn.Conv(strides=2, feature_group_count=5)": lambda: _linen(
        nn.Conv(5, (2,), strides=2, feature_group_count=5), table
    ),
    "nn.ConvTranspose": lambda: _linen(nn.ConvTranspose(3, (2,), strides=(2,)), table),
    "nn.ConvLocal": lambda: _linen(nn.ConvLocal(3, (2,)), table),
    "nn.LayerNorm": lambda: _linen(nn.LayerNorm()),
    "nn.LayerNorm over a history": lambda: _linen(nn.LayerNorm(), table),
    "nn.RMSNorm": lambda: _linen(nn.RMSNorm()),
    "nn.GroupNorm": lambda: _linen(nn.Sequential([nn.Dense(8), nn.GroupNorm(4)])),
    "nn.InstanceNorm over a history": lambda: _linen(nn.InstanceNorm(), lambda x: table(x)[None]),
    "nn.BatchNorm(use_running_average=True)": lambda: _linen(nn.BatchNorm(use_running_average=True)),
    "nn.WeightNorm(nn.Dense)": lambda: _linen(nn.WeightNorm(nn.Dense(4))),
    "nn.SpectralNorm(nn.Dense)": lambda: _linen(nn.SpectralNorm(nn.Dense(4)), update_stats=False),
    "nn.Dropout(deterministic=True)": lambda: _linen(nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=True)])),
    "nn.Embed at a computed index": lambda: _linen(nn.Embed(7, 4), whole),
    "nn.PReLU": lambda: _linen(nn.PReLU()),
    "nn.LSTMCell": lambda: _linen_cell(nn.LSTMCell(8)),
    "nn.OptimizedLSTMCell": lambda: _linen_cell(nn.OptimizedLSTMCell(8)),
    "nn.GRUCell": lambda: _linen_cell(nn.GRUCell(8)),
    "nn.MGUCell": lambda: _linen_cell(nn.MGUCell(8)),
    "nn.SimpleCell": lambda: _linen_cell(nn.SimpleCell(8)),
    "nn.RNN(nn.LSTMCell) over a history": lambda: _linen(nn.RNN(nn.LSTMCell(8)), table),
    "nn.RNN(nn.GRUCell, reverse=True)": lambda: _linen(nn.RNN(nn.GRUCell(8), reverse=True, keep_order=True), table),
    "nn.MultiHeadDotProductAttention over a history": lambda: _linen(
        nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8), table
    ),
    "nn.SelfAttention": lambda: _linen(nn.SelfAttention(num_heads=2, qkv_features=8), table),
    "nn.dot_product_attention": lambda: of(
        lambda x: nn.dot_product_attention(*(table(x).reshape(4, 1, 5) for _ in range(3)))
    ),
    "nn.avg_pool": lambda: of(lambda x: nn.avg_pool(table(x)[None], (2,), strides=(2,))),
    "nn.max_pool": lambda: of(lambda x: nn.max_pool(table(x)[None], (2,), strides=(1,), padding="SAME")),
    "nn.scan over layers": lambda: _linen(_Deep()),
    "nn.remat(nn.Dense)": lambda: _linen(nn.remat(nn.Dense)(4)),
    "nn.vmap(nn.Dense) over a history": lambda: _linen(
        nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(3), table
    ),
}


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> Any:
        return x + nn.tanh(nn.Dense(5)(x)), None


class _Deep(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        deep = nn.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return deep()(x, None)[0]


NNX: dict[str, Callable[[], Made]] = {
    "nnx.Linear": lambda: of(nnx.Linear(5, 4, rngs=_rngs())),
    "nnx.Linear(use_bias=False)": lambda: of(nnx.Linear(5, 4, use_bias=False, rngs=_rngs())),
    "nnx.LinearGeneral": lambda: of(nnx.LinearGeneral(5, (2, 3), rngs=_rngs())),
    "nnx.Einsum": lambda: of(nnx.Einsum("a,ab->b", (5, 3), (3,), rngs=_rngs())),
    "nnx.Conv over a history": lambda: of(lambda x, m=nnx.Conv(5, 3, (2,), rngs=_rngs()): m(table(x))),
    "nnx.ConvTranspose": lambda: of(lambda x, m=nnx.ConvTranspose(5, 3, (2,), rngs=_rngs()): m(table(x))),
    "nnx.LayerNorm": lambda: of(nnx.LayerNorm(5, rngs=_rngs())),
    "nnx.RMSNorm": lambda: of(nnx.RMSNorm(5, rngs=_rngs())),
    "nnx.GroupNorm": lambda: of(lambda x, m=nnx.GroupNorm(5, num_groups=5, rngs=_rngs()): m(table(x)[None])),
    "nnx.BatchNorm(use_running_average=True)": lambda: of(nnx.BatchNorm(5, use_running_average=True, rngs=_rngs())),
    "nnx.Dropout(deterministic=True)": lambda: of(nnx.Dropout(0.5, deterministic=True, rngs=_rngs())),
    "nnx.Embed at a computed index": lambda: of(lambda x, m=nnx.Embed(7, 4, rngs=_rngs()): m(whole(x))),
    "nnx.PReLU": lambda: of(nnx.PReLU()),
    "nnx.LoRALinear": lambda: of(nnx.LoRALinear(5, 4, lora_rank=2, rngs=_rngs())),
    "nnx.LSTMCell": lambda: _nnx_cell(nnx.LSTMCell(5, 8, rngs=_rngs())),
    "nnx.OptimizedLSTMCell": lambda: _nnx_cell(nnx.OptimizedLSTMCell(5, 8, rngs=_rngs())),
    "nnx.GRUCell": lambda: _nnx_cell(nnx.GRUCell(5, 8, rngs=_rngs())),
    "nnx.SimpleCell": lambda: _nnx_cell(nnx.SimpleCell(5, 8, rngs=_rngs())),
    "nnx.RNN(nnx.GRUCell) over a history, nnx.clone in the step": lambda: of(
        lambda x, m=nnx.RNN(nnx.GRUCell(5, 8, rngs=_rngs()), rngs=_rngs()): nnx.clone(m)(table(x))
    ),
    "nnx.MultiHeadAttention over a history": lambda: of(
        lambda x, m=nnx.MultiHeadAttention(2, 5, 8, decode=False, rngs=_rngs()): m(table(x))
    ),
    "nnx.avg_pool": lambda: of(lambda x: nnx.avg_pool(table(x)[None], (2,), strides=(2,))),
    "nnx.max_pool": lambda: of(lambda x: nnx.max_pool(table(x)[None], (2,))),
    "nnx.jit(nnx.Linear), nnx.clone in the step": lambda: of(
        lambda x, m=nnx.Linear(5, 4, rngs=_rngs()): nnx.jit(lambda m, x: m(x))(nnx.clone(m), x)
    ),
}

EQUINOX: dict[str, Callable[[], Made]] = {
    "eqx.nn.Linear": lambda: of(eqx.nn.Linear(5, 4, key=KEY)),
    "eqx.nn.MLP": lambda: of(eqx.nn.MLP(5, 3, 8, 2, key=KEY)),
    "eqx.nn.MLP(out_size='scalar')": lambda: of(eqx.nn.MLP(5, "scalar", 8, 1, key=KEY)),
    "eqx.nn.LayerNorm": lambda: of(eqx.nn.LayerNorm(5)),
    "eqx.nn.RMSNorm": lambda: of(eqx.nn.RMSNorm(5)),
    "eqx.nn.GroupNorm": lambda: of(lambda x, m=eqx.nn.GroupNorm(2, 4): m(table(x))),
    "eqx.nn.BatchNorm in inference mode": _eqx_batch_norm,
    "eqx.nn.WeightNorm": lambda: of(eqx.nn.WeightNorm(eqx.nn.Linear(5, 4, key=KEY))),
    "eqx.nn.SpectralNorm in inference mode": _eqx_spectral,
    "eqx.nn.Conv1d over a history": lambda: of(lambda x, m=eqx.nn.Conv1d(4, 3, 2, key=KEY): m(table(x))),
    "eqx.nn.ConvTranspose1d": lambda: of(lambda x, m=eqx.nn.ConvTranspose1d(4, 3, 2, key=KEY): m(table(x))),
    "eqx.nn.AvgPool1d": lambda: of(lambda x, m=eqx.nn.AvgPool1d(2): m(table(x))),
    "eqx.nn.MaxPool1d": lambda: of(lambda x, m=eqx.nn.MaxPool1d(2): m(table(x))),
    "eqx.nn.AdaptiveAvgPool1d": lambda: of(lambda x, m=eqx.nn.AdaptiveAvgPool1d(2): m(table(x))),
    "eqx.nn.Dropout(inference=True)": lambda: of(eqx.nn.Dropout(0.5, inference=True)),
    "eqx.nn.Embedding at a computed index": lambda: of(
        lambda x, m=eqx.nn.Embedding(7, 4, key=KEY): jax.vmap(m)(whole(x))
    ),
    "eqx.nn.PReLU": lambda: of(eqx.nn.PReLU()),
    "eqx.nn.LSTMCell": _eqx_lstm,
    "eqx.nn.GRUCell": _eqx_gru,
    "eqx.nn.MultiheadAttention over a history": lambda: of(
        lambda x, m=eqx.nn.MultiheadAttention(1, 5, key=KEY): m(*(table(x) for _ in range(3)))
    ),
    "eqx.nn.MultiheadAttention, causal mask": lambda: of(
        lambda x, m=eqx.nn.MultiheadAttention(1, 5, key=KEY): m(
            *(table(x) for _ in range(3)), mask=jnp.tril(jnp.ones((4, 4), bool))
        )
    ),
    "eqx.nn.RotaryPositionalEmbedding": lambda: of(lambda x, m=eqx.nn.RotaryPositionalEmbedding(4): m(table(x)[:, :4])),
    "eqx.nn.Sequential, eqx.nn.Lambda": lambda: of(
        eqx.nn.Sequential([eqx.nn.Linear(5, 4, key=KEY), eqx.nn.Lambda(jnp.tanh)])
    ),
    "eqx.filter_jit": lambda: of(eqx.filter_jit(eqx.nn.Linear(5, 4, key=KEY))),
    "jax.vmap(eqx.nn.Linear) over a history": lambda: of(
        lambda x, m=eqx.nn.Linear(5, 3, key=KEY): jax.vmap(m)(table(x))
    ),
}
CASES = [
    Case(group=group, name=name, make=make)
    for group, cases in (("flax linen", LINEN), ("flax nnx", NNX), ("equinox", EQUINOX))
    for name, make in cases.items()
]
