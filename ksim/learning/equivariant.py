"""Actors that are exactly symmetric by their weights: what one does mirrored is what it does to the mirror image.

Hidden units stand in pairs, unit i and unit i + width / 2: the mirror image of what one of them holds is what the other
holds. Each layer is the mean of itself and of its mirror image. Such a network is a plain one: it runs, is exported and
is deployed like any other, and to learn from its steps is to learn from their mirror images too.

Source: the group of two elements in Cohen, Welling, "Group equivariant convolutional networks", arXiv 1602.07576.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ksim.learning.nets import HistoryNet, RecurrentNet
from ksim.learning.normaliser import FLOOR, Normaliser
from ksim.learning.symmetry import NetMirror

Image = Callable[[Array], Array]


def even_normaliser(normaliser: Normaliser, mirror: NetMirror) -> Normaliser:
    """The statistics of what was seen and of its mirror images."""
    image = mirror.observation(normaliser.mean)
    variance = normaliser.variance @ (np.asarray(mirror.matrix, np.float32) ** 2).T
    between = 0.25 * (normaliser.mean - image) ** 2
    return Normaliser(
        0.5 * (normaliser.mean + image), 0.5 * (normaliser.variance + variance) + between, normaliser.count
    )


def even_net(
    net: RecurrentNet | HistoryNet, mirror: NetMirror, normaliser: Normaliser | None = None
) -> RecurrentNet | HistoryNet:
    """The exactly symmetric network nearest to one.

    Args:
        net: an actor's, of even width.
        mirror: of what it sees and does.
        normaliser: of what it sees, itself symmetric.
    """
    seen = _Inputs.of(mirror, normaliser)
    return _even_history(net, seen, mirror) if isinstance(net, HistoryNet) else _even_recurrent(net, seen, mirror)


@dataclass(frozen=True)
class _Inputs:
    """The mirror image of an input of the network: `matrix @ x + offset`."""

    matrix: Array
    offset: Array

    @classmethod
    def of(cls, mirror: NetMirror, normaliser: Normaliser | None) -> _Inputs:
        matrix, offset = jnp.asarray(mirror.matrix, jnp.float32), jnp.asarray(mirror.offset, jnp.float32)
        if normaliser is None:
            return cls(matrix, offset)
        std = jnp.sqrt(normaliser.variance + FLOOR)
        return cls(matrix * std / std[:, None], jnp.zeros_like(offset))

    def seen(self, weight: Float[Array, "rows columns"], times: int = 1) -> tuple[Array, Array]:
        """(weights, share of the bias) of a layer that sees the images of its inputs, and hidden units after them."""
        end = times * len(self.offset)
        parts = jnp.split(weight[:, :end], times, axis=1)
        images = [part @ self.matrix for part in parts] + [_swapped(weight[:, end:].T).T]
        return jnp.concatenate(images, axis=1), jnp.sum(jnp.stack([part @ self.offset for part in parts]), axis=0)


def _swapped(rows: Float[Array, "rows ..."], groups: int = 1) -> Array:
    """The rows of each unit and of its partner exchanged, in each of the groups: the gates of a cell."""
    return rows.reshape(groups, 2, -1, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def _even_linear(layer: eqx.nn.Linear, seen: tuple[Array, Array], image: Image) -> eqx.nn.Linear:
    """The mean of a layer and of its mirror image; `seen` is the layer as it sees images, `image` is of its outputs."""
    weight, shift = seen
    assert layer.bias is not None
    both = 0.5 * (layer.weight + image(weight)), 0.5 * (layer.bias + image(layer.bias + shift))
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, both)


def _hidden(weight: Array) -> tuple[Array, Array]:
    return _swapped(weight.T).T, jnp.zeros(len(weight))


def _moved(mirror: NetMirror) -> Image:
    return lambda rows: mirror.action(rows.T).T


def _even_recurrent(net: RecurrentNet, seen: _Inputs, mirror: NetMirror) -> RecurrentNet:
    cells = []
    for i, cell in enumerate(net.cells):
        gates = 4 if isinstance(cell, eqx.nn.LSTMCell) else 3

        def image(rows: Array, gates: int = gates) -> Array:
            return _swapped(rows, gates)

        given, shift = seen.seen(cell.weight_ih) if i == 0 else _hidden(cell.weight_ih)
        assert cell.bias is not None
        parts = {
            "weight_ih": 0.5 * (cell.weight_ih + image(given)),
            "weight_hh": 0.5 * (cell.weight_hh + image(_hidden(cell.weight_hh)[0])),
            "bias": 0.5 * (cell.bias + image(cell.bias + shift)),
        }
        if isinstance(cell, eqx.nn.GRUCell):
            assert cell.bias_n is not None
            parts["bias_n"] = 0.5 * (cell.bias_n + _swapped(cell.bias_n))
        cells.append(eqx.tree_at(lambda c, p=parts: [getattr(c, name) for name in p], cell, list(parts.values())))
    hidden = _even_linear(net.hidden_layer, seen.seen(net.hidden_layer.weight), _swapped)
    last = _even_linear(net.output_layer, _hidden(net.output_layer.weight), _moved(mirror))
    return eqx.tree_at(lambda n: (n.cells, n.hidden_layer, n.output_layer), net, (tuple(cells), hidden, last))


def _even_history(net: HistoryNet, seen: _Inputs, mirror: NetMirror) -> HistoryNet:
    first, *others = net.hidden_layers
    layers = [_even_linear(first, seen.seen(first.weight, 1 + net.history), _swapped)]
    layers += [_even_linear(layer, _hidden(layer.weight), _swapped) for layer in others]
    last = _even_linear(net.output_layer, _hidden(net.output_layer.weight), _moved(mirror))
    return eqx.tree_at(lambda n: (n.hidden_layers, n.output_layer), net, (tuple(layers), last))
