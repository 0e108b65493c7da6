"""Whole small policies, as a user of flax, equinox or plain JAX would write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from tried.case import Case, Made, see
from tried.operations import CLIP

KEY = jax.random.key(0)
HOME = jnp.array([0.2, -0.4])
ROWS = 6


def _random(*shape: int) -> jax.Array:
    return 0.3 * jax.random.normal(jax.random.fold_in(KEY, sum(shape)), shape)


def _lstm_actor() -> Made:
    class Actor(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed, self.norm = nnx.Linear(5, 16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
            self.cell, self.head = nnx.LSTMCell(16, 12, rngs=rngs), nnx.Linear(12, 2, rngs=rngs)

        def __call__(self, carry: Any, x: jax.Array) -> Any:
            carry, y = self.cell(carry, nnx.elu(self.norm(self.embed(x))))
            return carry, HOME + 0.3 * jnp.tanh(self.head(y))

    actor = Actor(nnx.Rngs(0))

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        carry, action = actor(carry, see(inputs))
        return action, carry

    return step, actor.cell.initialize_carry((16,), nnx.Rngs(0))


class _GruNet(nn.Module):
    @nn.compact
    def __call__(self, carry: Any, x: jax.Array) -> Any:
        x = nn.LayerNorm()(nn.swish(nn.Dense(16)(x)))
        carry, y = nn.GRUCell(12)(carry, x)
        mean = nn.Dense(2, kernel_init=nn.initializers.orthogonal(0.01))(nn.LayerNorm()(y))
        return carry, mean, jnp.exp(self.param("log_std", nn.initializers.zeros, (2,)))


def _gru_with_layer_norm() -> Made:
    net = _GruNet()
    params = net.init(KEY, jnp.zeros(12), jnp.zeros(5))

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        carry, mean, _ = net.apply(params, carry, see(inputs))
        return jnp.clip(HOME + 0.5 * mean, -1.2, 1.2), carry

    return step, jnp.zeros(12)


def _attention_over_history() -> Made:
    attention = eqx.nn.MultiheadAttention(2, 8, key=KEY)
    embed, head = eqx.nn.Linear(5, 8, key=KEY), eqx.nn.Linear(8, 2, key=KEY)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        x = jnp.clip(see(inputs), -5, 5)
        rows, seen = jnp.roll(carry["rows"], -1, axis=0).at[-1].set(x), jnp.minimum(carry["seen"] + 1, ROWS)
        tokens = jax.vmap(embed)(rows)
        mask = jnp.broadcast_to(jnp.arange(ROWS) >= ROWS - seen, (ROWS, ROWS))
        return 0.5 * jnp.tanh(head(attention(tokens, tokens, tokens, mask=mask)[-1])), {"rows": rows, "seen": seen}

    return step, {"rows": jnp.zeros((ROWS, 5)), "seen": jnp.zeros(())}


def _motion_by_phase() -> Made:
    def step(inputs: dict[str, Any], phase: jax.Array) -> Any:
        at = phase * len(CLIP)
        low = jnp.floor(at).astype(jnp.int32)
        share = at - low
        pose = (1 - share) * CLIP[low % len(CLIP)] + share * CLIP[(low + 1) % len(CLIP)]
        return pose + 0.1 * (HOME - inputs["joint_angles"]), jnp.mod(phase + 0.0137, 1.0)

    return step, jnp.zeros(())


def _running_normaliser() -> Made:
    w = _random(5, 2)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        count, mean, m2 = carry
        x = see(inputs)
        count = jnp.minimum(count + 1, 1000.0)
        delta = x - mean
        mean = mean + delta / count
        m2 = m2 + delta * (x - mean)
        std = jnp.sqrt(jnp.maximum(m2 / jnp.maximum(count - 1, 1), 1e-4))
        return 0.3 * jnp.tanh(jnp.clip((x - mean) / std, -5, 5) @ w), (count, mean, m2)

    return step, (jnp.zeros(()), jnp.zeros(5), jnp.zeros(5))


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y, mask=nn.make_causal_mask(jnp.ones(len(x))))
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class _Transformer(nn.Module):
    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        x = nn.Dense(8)(rows) + nn.Embed(ROWS, 8)(jnp.arange(ROWS))
        for _ in range(2):
            x = _Block()(x)
        return nn.Dense(2)(nn.LayerNorm()(x)[-1])


def _transformer() -> Made:
    net = _Transformer()
    params = net.init(KEY, jnp.zeros((ROWS, 5)))

    def step(inputs: dict[str, Any], rows: jax.Array) -> Any:
        rows = jnp.concatenate([rows[1:], jnp.clip(see(inputs), -5, 5)[None]])
        return 0.3 * jnp.tanh(net.apply(params, rows)), rows

    return step, jnp.zeros((ROWS, 5))


def _experts_by_switch() -> Made:
    experts = [eqx.nn.MLP(5, 2, 8, 1, key=jax.random.fold_in(KEY, k)) for k in range(3)]
    gate = eqx.nn.Linear(5, 3, key=KEY)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        x = see(inputs)
        return 0.3 * jnp.tanh(lax.switch(jnp.argmax(gate(x)), [lambda x, e=e: e(x) for e in experts], x)), carry

    return step, ()


def _experts_by_weight() -> Made:
    experts = eqx.filter_vmap(lambda key: eqx.nn.MLP(5, 2, 8, 1, key=key))(jax.random.split(KEY, 4))
    gate = eqx.nn.Linear(5, 4, key=KEY)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        x = see(inputs)
        each = eqx.filter_vmap(lambda expert: expert(x))(experts)
        best, which = lax.top_k(gate(x), 2)
        return 0.3 * jnp.tanh(jax.nn.softmax(best) @ each[which]), carry

    return step, ()


def _rotary() -> Made:
    q, k, v = (_random(5, 8 + n)[:, :8] for n in range(3))
    rate = 1.0 / 100.0 ** (jnp.arange(0, 8, 2) / 8)

    def turned(x: jax.Array) -> jax.Array:
        angle = jnp.arange(ROWS)[:, None] * rate
        a, b = x[:, 0::2], x[:, 1::2]
        rotated = (a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle))
        return jnp.stack(rotated, -1).reshape(ROWS, 8)

    def step(inputs: dict[str, Any], rows: jax.Array) -> Any:
        rows = jnp.concatenate([rows[1:], jnp.clip(see(inputs), -3, 3)[None]])
        scores = turned(rows @ q) @ turned(rows @ k).T / jnp.sqrt(8.0)
        scores = jnp.where(jnp.tril(jnp.ones((ROWS, ROWS), bool)), scores, -jnp.inf)
        return 0.3 * jnp.tanh((jax.nn.softmax(scores, axis=-1) @ (rows @ v))[-1, :2]), rows

    return step, jnp.zeros((ROWS, 5))


def _cpg() -> Made:
    def step(inputs: dict[str, Any], phase: jax.Array) -> Any:
        speed = 2 * jnp.pi * (1.2 + 0.1 * jnp.tanh(inputs["gyroscope"][0]))
        phase = jnp.mod(phase + 0.02 * speed + jnp.pi, 2 * jnp.pi) - jnp.pi
        return HOME + 0.2 * jnp.stack([jnp.sin(phase[0]), jnp.maximum(0.0, jnp.cos(phase[1]))]), phase

    return step, jnp.array([0.0, 3.0])


def _low_pass() -> Made:
    w = _random(5, 2)

    def step(inputs: dict[str, Any], last: jax.Array) -> Any:
        action = last + 0.3 * (jnp.tanh(see(inputs) @ w) - last)
        action = last + jnp.clip(action - last, -0.05, 0.05)
        return action, action

    return step, HOME


def _residual_on_the_pose() -> Made:
    net = eqx.nn.MLP(5, 2, 16, 2, activation=jax.nn.elu, key=KEY)
    low, high = jnp.array([-1.0, -0.8]), jnp.array([0.9, 1.1])

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        x = jnp.concatenate([inputs["joint_angles"] - HOME, inputs["gyroscope"]])
        return jnp.clip(HOME + 0.25 * net(x), low, high), carry

    return step, ()


def _ring_of_actions() -> Made:
    w = _random(5 + 8, 2)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        ring, at = carry
        k = at.astype(jnp.int32)
        order = (k + jnp.arange(4)) % 4  # the oldest first
        action = 0.4 * jnp.tanh(jnp.concatenate([see(inputs), ring[order].ravel()]) @ w)
        return action, (ring.at[k].set(action), jnp.mod(at + 1, 4))

    return step, (jnp.zeros((4, 2)), jnp.zeros(()))


def _convolution_over_history() -> Made:
    conv, head = eqx.nn.Conv1d(5, 4, 3, key=KEY), eqx.nn.Linear(4 * (ROWS - 2), 2, key=KEY)

    def step(inputs: dict[str, Any], rows: jax.Array) -> Any:
        rows = jnp.concatenate([rows[1:], see(inputs)[None]])
        return 0.3 * jnp.tanh(head(jax.nn.relu(conv(rows.T)).ravel())), rows

    return step, jnp.zeros((ROWS, 5))


def _heading_of_gravity() -> Made:
    def step(inputs: dict[str, Any], carry: jax.Array) -> Any:
        heading = carry[0] + 0.02 * inputs["gyroscope"][2]
        heading = jnp.arctan2(jnp.sin(heading), jnp.cos(heading))
        error = jnp.arctan2(jnp.sin(0.5 - heading), jnp.cos(0.5 - heading))
        return 0.3 * jnp.stack([error, -error]), heading[None]

    return step, jnp.zeros(1)


def _mixture_of_gaussians() -> Made:
    net = eqx.nn.Linear(5, 3 * (1 + 2 + 2), key=KEY)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        logits, mean, _ = jnp.split(net(see(inputs)), [3, 9])
        best = jnp.argmax(jax.nn.log_softmax(logits))
        return 0.3 * jnp.tanh(jnp.take(mean.reshape(3, 2), best, axis=0)), carry

    return step, ()


def _discrete_phase_machine() -> Made:
    def step(inputs: dict[str, Any], carry: Any) -> Any:
        phase, left = carry["phase"].astype(jnp.int32), carry["left"] - 1
        pose = jnp.array([[0.0, 0.0], [0.3, -0.1], [-0.2, 0.4]])[phase]
        done = left <= 0
        after = jnp.where(done, (phase + 1) % 3, phase)
        left = lax.cond(done, lambda: jnp.array([5.0, 8.0, 3.0])[after], lambda: left)
        return pose + 0.1 * inputs["joint_angles"], {"phase": after.astype(jnp.float32), "left": left}

    return step, {"phase": jnp.zeros(()), "left": jnp.float32(4)}


def _delta_of_observations() -> Made:
    w = _random(10, 2)

    def step(inputs: dict[str, Any], carry: Any) -> Any:
        x = see(inputs)
        first = carry["count"] == 0
        last = jnp.where(first, x, carry["last"])
        return 0.3 * jnp.tanh(jnp.concatenate([x, x - last]) @ w), {"last": x, "count": carry["count"] + 1}

    return step, {"last": jnp.zeros(5), "count": jnp.zeros(())}


POLICIES: dict[str, Callable[[], Made]] = {
    "flax nnx LSTM actor with layer norm": _lstm_actor,
    "flax linen GRU with layer norm, clipped about home": _gru_with_layer_norm,
    "equinox attention over a history, with a mask": _attention_over_history,
    "flax linen transformer over a history, causal": _transformer,
    "rotary embedding, mask of -inf": _rotary,
    "motion clip, between frames by a phase in the carry": _motion_by_phase,
    "running mean and std in the carry": _running_normaliser,
    "mixture of experts by lax.switch": _experts_by_switch,
    "mixture of experts by top_k and eqx.filter_vmap": _experts_by_weight,
    "mixture of Gaussians, the likeliest mean": _mixture_of_gaussians,
    "oscillators with sin, cos and mod": _cpg,
    "low-pass filter and rate limit in the carry": _low_pass,
    "residual on the default pose": _residual_on_the_pose,
    "ring of actions, its index in the carry": _ring_of_actions,
    "convolution over a history": _convolution_over_history,
    "heading by integration, wrapped by arctan2": _heading_of_gravity,
    "phases with a countdown, lax.cond": _discrete_phase_machine,
    "difference to the last observation, none at first": _delta_of_observations,
}
CASES = [Case(group="Whole policies", name=name, make=make) for name, make in POLICIES.items()]
