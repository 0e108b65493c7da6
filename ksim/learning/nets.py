"""The networks: LSTM or GRU layers with a head, and an MLP over past observations.

Each has two forms that give the same numbers: one step, which the robot runs, and `unroll` over a whole rollout,
which training runs. Its state is a few vectors, as `layout` says; training and the carry hold them as one.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Layout = tuple[tuple[str, tuple[int, ...]], ...]


def split(flat: Float[Array, "*envs size"], sizes: list[int]) -> list[Array]:
    """A flat vector in parts of the given sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(flat, ends, axis=-1)


def linear(layer: eqx.nn.Linear, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """The layer on a batch."""
    assert layer.bias is not None
    return x @ layer.weight.T + layer.bias


def _last_layer(inputs: int, outputs: int, gain: float, key: Array) -> eqx.nn.Linear:
    last = eqx.nn.Linear(inputs, outputs, key=key)
    return eqx.tree_at(lambda m: (m.weight, m.bias), last, (last.weight * gain, jnp.zeros(outputs)))


class Net(eqx.Module):
    """A network with a state."""

    @property
    @abc.abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the parts of the state, in order."""

    @abc.abstractmethod
    def advance(
        self, x: Float[Array, " inputs"], parts: tuple[Array, ...]
    ) -> tuple[Float[Array, " outputs"], tuple[Array, ...]]:
        """One step: inputs and the flat parts of the state -> outputs and the next parts."""

    output_layer: eqx.AbstractVar[eqx.nn.Linear]

    @abc.abstractmethod
    def features(
        self, xs: Float[Array, "T E inputs"], state: Float[Array, "E state"], resets: Float[Array, "T E"]
    ) -> tuple[Float[Array, "T E features"], Float[Array, "E state"]]:
        """What the last layer sees in T steps, with the state zero before each step that `resets` names."""

    def unroll(
        self, xs: Float[Array, "T E inputs"], state: Float[Array, "E state"], resets: Float[Array, "T E"]
    ) -> tuple[Float[Array, "T E outputs"], Float[Array, "E state"]]:
        """T steps, with the state zero before each step that `resets` names: what calling it step by step gives."""
        seen, state = self.features(xs, state, resets)
        return linear(self.output_layer, seen), state

    @property
    def sizes(self) -> list[int]:
        """Length of each part of the state."""
        return [math.prod(shape) for _, shape in self.layout]

    @property
    def state_size(self) -> int:
        """Length of the flat state."""
        return sum(self.sizes)

    def __call__(
        self, x: Float[Array, " inputs"], state: Float[Array, " state"]
    ) -> tuple[Float[Array, " outputs"], Float[Array, " state"]]:
        """One step over the flat state."""
        if not self.layout:
            return self.advance(x, ())[0], state
        out, parts = self.advance(x, tuple(split(state, self.sizes)))
        return out, jnp.concatenate(parts)


class RecurrentNet(Net):
    """LSTM or GRU layers, then a two-layer head that sees the input and the last layer's output."""

    cells: tuple[eqx.nn.LSTMCell | eqx.nn.GRUCell, ...]
    hidden_layer: eqx.nn.Linear
    output_layer: eqx.nn.Linear
    width: int = eqx.field(static=True)
    inputs: int = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        layers: int,
        head: int,
        gain: float,
        *,
        key: Array,
        cell: type[eqx.nn.LSTMCell] | type[eqx.nn.GRUCell] = eqx.nn.LSTMCell,
    ):
        keys = jax.random.split(key, layers + 2)
        self.cells = tuple(cell(inputs if i == 0 else width, width, key=keys[i]) for i in range(layers))
        self.hidden_layer = eqx.nn.Linear(inputs + width, head, key=keys[-2])
        self.output_layer = _last_layer(head, outputs, gain, keys[-1])
        self.width, self.inputs = width, inputs

    @property
    def layout(self) -> Layout:
        parts: list[tuple[str, tuple[int, ...]]] = []
        for i, cell in enumerate(self.cells):
            names = (f"lstm{i}.h", f"lstm{i}.c") if isinstance(cell, eqx.nn.LSTMCell) else (f"gru{i}.h",)
            parts += [(name, (self.width,)) for name in names]
        return tuple(parts)

    def advance(self, x: Array, parts: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        signal, new, at = x, [], 0
        for cell in self.cells:
            if isinstance(cell, eqx.nn.LSTMCell):
                signal, c = cell(signal, (parts[at], parts[at + 1]))
                new += [signal, c]
            else:
                signal = cell(signal, parts[at])
                new.append(signal)
            at = len(new)
        features = jax.nn.elu(self.hidden_layer(jnp.concatenate([x, signal])))
        return self.output_layer(features), tuple(new)

    def features(self, xs: Array, state: Array, resets: Array) -> tuple[Array, Array]:
        # The input's share of the gates and the head do not depend on the recurrence, so each is one product
        # over all steps.
        keep = 1.0 - resets.astype(xs.dtype)[..., None]
        parts, signal, finals = split(state, self.sizes), xs, []
        for cell in self.cells:
            assert cell.bias is not None
            given = signal @ cell.weight_ih.T + cell.bias
            scan = _lstm_step if isinstance(cell, eqx.nn.LSTMCell) else _gru_step
            start = tuple(parts.pop(0) for _ in range(2 if isinstance(cell, eqx.nn.LSTMCell) else 1))
            last, signal = jax.lax.scan(lambda s, now, c=cell, f=scan: f(c, s, *now), start, (given, keep))
            finals += last
        features = jax.nn.elu(linear(self.hidden_layer, jnp.concatenate([xs, signal], axis=-1)))
        return features, jnp.concatenate(finals, axis=-1)


def _lstm_step(cell: Any, state: tuple[Array, ...], given: Array, kept: Array) -> tuple[tuple, Array]:
    h, c = (s * kept for s in state)
    i_, f_, g_, o_ = jnp.split(given + h @ cell.weight_hh.T, 4, axis=-1)
    c = jax.nn.sigmoid(f_) * c + jax.nn.sigmoid(i_) * jnp.tanh(g_)
    h = jax.nn.sigmoid(o_) * jnp.tanh(c)
    return (h, c), h


def _gru_step(cell: Any, state: tuple[Array, ...], given: Array, kept: Array) -> tuple[tuple, Array]:
    h = state[0] * kept
    r_in, z_in, n_in = jnp.split(given, 3, axis=-1)
    r_h, z_h, n_h = jnp.split(h @ cell.weight_hh.T, 3, axis=-1)
    new = jnp.tanh(n_in + jax.nn.sigmoid(r_in + r_h) * (n_h + cell.bias_n))
    h = new + jax.nn.sigmoid(z_in + z_h) * (h - new)
    return (h,), h


class HistoryNet(Net):
    """Fully connected layers that see the input and the last `history` inputs, newest first."""

    hidden_layers: tuple[eqx.nn.Linear, ...]
    output_layer: eqx.nn.Linear
    inputs: int = eqx.field(static=True)
    history: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, width: int, layers: int, history: int, gain: float, *, key: Array):
        keys = jax.random.split(key, layers + 1)
        seen = inputs * (1 + history)
        self.hidden_layers = tuple(eqx.nn.Linear(seen if i == 0 else width, width, key=keys[i]) for i in range(layers))
        self.output_layer = _last_layer(width, outputs, gain, keys[-1])
        self.inputs, self.history = inputs, history

    @property
    def layout(self) -> Layout:
        return (("history", (self.history, self.inputs)),) if self.history else ()

    def advance(self, x: Array, parts: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        window = jnp.concatenate([x, *parts])
        signal = window
        for layer in self.hidden_layers:
            signal = jax.nn.elu(layer(signal))
        return self.output_layer(signal), (window[: self.inputs * self.history],) if self.history else ()

    def features(self, xs: Array, state: Array, resets: Array) -> tuple[Array, Array]:
        steps, envs = xs.shape[:2]
        past = state.reshape(envs, self.history, self.inputs).swapaxes(0, 1)
        line = jnp.concatenate([past[::-1], xs])  # oldest first; step t is at history + t
        # with one more step, whose past is the state afterwards; an input is seen until the first reset after it
        keep = jnp.concatenate([1.0 - resets.astype(xs.dtype), jnp.ones((1, envs), xs.dtype)])
        valid, pasts = jnp.ones_like(keep), []
        for age in range(1, self.history + 1):
            before = jnp.ones((age - 1, envs), xs.dtype)
            valid = valid * jnp.concatenate([before, keep])[: steps + 1]
            at = self.history - age
            pasts.append(line[at : at + steps + 1] * valid[..., None])
        seen = [xs, *(p[:-1] for p in pasts)]
        signal = jnp.concatenate(seen, axis=-1)
        for layer in self.hidden_layers:
            signal = jax.nn.elu(linear(layer, signal))
        return signal, jnp.concatenate([state[:, :0], *(p[-1] for p in pasts)], axis=-1)
