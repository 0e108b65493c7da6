"""The networks: one step and a whole rollout give the same numbers, whatever the network."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.learning.nets import HistoryNet, RecurrentNet
from ksim.learning.normaliser import Normaliser

T, OBS, ACT = 4, 3, 2
KEY = jax.random.key(1)
NETS = {
    "lstm": lambda: RecurrentNet(OBS, ACT, 4, 1, 6, 1.0, key=KEY),
    "two lstm": lambda: RecurrentNet(OBS, ACT, 4, 2, 6, 1.0, key=KEY),
    "gru": lambda: RecurrentNet(OBS, ACT, 4, 1, 6, 1.0, key=KEY, cell=eqx.nn.GRUCell),
    "three gru": lambda: RecurrentNet(OBS, ACT, 4, 3, 6, 1.0, key=KEY, cell=eqx.nn.GRUCell),
    "mlp": lambda: HistoryNet(OBS, ACT, 5, 2, 0, 1.0, key=KEY),
    "mlp that sees the last": lambda: HistoryNet(OBS, ACT, 5, 1, 1, 1.0, key=KEY),
    "mlp that sees longer than the rollout": lambda: HistoryNet(OBS, ACT, 5, 1, 6, 1.0, key=KEY),
}


@pytest.mark.parametrize("name", NETS)
def test_unroll_is_the_net_called_step_by_step_with_resets_in_the_middle(name):
    net = NETS[name]()
    xs = jax.random.normal(jax.random.key(2), (T, 3, OBS))
    state = start = jax.random.normal(jax.random.key(3), (3, net.state_size))
    resets = jnp.asarray([[False, True, False], [False] * 3, [True, False, False], [False, True, False]])
    outputs = []
    for t in range(T):
        state = jnp.where(resets[t][:, None], 0.0, state)
        out, state = jax.vmap(net)(xs[t], state)
        outputs.append(out)
    got, last = jax.jit(lambda xs, start, resets: net.unroll(xs, start, resets))(xs, start, resets)
    assert np.allclose(got, jnp.stack(outputs), atol=1e-6)
    assert np.allclose(last, state, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NETS if n != "mlp"])
def test_hidden_states_align_with_trajectory_starts(name):
    net = NETS[name]()
    xs = jax.random.normal(jax.random.key(2), (T, 1, OBS))
    noise = jax.random.normal(jax.random.key(3), (1, net.state_size))
    reset_at_2 = jnp.zeros((T, 1), bool).at[2].set(True)
    got, _ = net.unroll(xs, noise, reset_at_2)
    # what follows the reset is a fresh trajectory, and what precedes it is not
    fresh, _ = net.unroll(xs[2:], jnp.zeros_like(noise), jnp.zeros((2, 1), bool))
    assert np.allclose(got[2:], fresh, atol=1e-6)
    other, _ = net.unroll(xs, 0 * noise, reset_at_2)
    assert np.allclose(got[2:], other[2:], atol=1e-6) and np.abs(got[:2] - other[:2]).max() > 1e-3


def test_the_state_is_laid_out_by_layer():
    names = {name: [n for n, _ in make().layout] for name, make in NETS.items()}
    assert names["two lstm"] == ["lstm0.h", "lstm0.c", "lstm1.h", "lstm1.c"]
    assert names["three gru"] == ["gru0.h", "gru1.h", "gru2.h"]
    assert NETS["mlp that sees longer than the rollout"]().layout == (("history", (6, OBS)),)
    assert names["mlp"] == [] and NETS["mlp"]().state_size == 0
    # in the order that `advance` takes and gives
    net = NETS["two lstm"]()
    _, parts = net.advance(jnp.ones(OBS), tuple(jnp.zeros(4) for _ in range(4)))
    h, c = net.cells[0](jnp.ones(OBS), (jnp.zeros(4), jnp.zeros(4)))
    assert np.allclose(parts[0], h) and np.allclose(parts[1], c)


def test_an_mlp_sees_the_newest_observation_first_and_forgets_the_oldest():
    net = HistoryNet(1, 1, 4, 1, 2, 1.0, key=KEY)
    state = jnp.asarray([20.0, 10.0])
    out, state = net(jnp.asarray([30.0]), state)
    assert state.tolist() == [30.0, 20.0]
    layer, last = net.hidden_layers[0], net.output_layer
    by_hand = last.weight @ jax.nn.elu(layer.weight @ jnp.asarray([30.0, 20.0, 10.0]) + layer.bias) + last.bias
    assert np.allclose(out, by_hand, rtol=1e-6)


def test_the_normaliser_gathers_the_moments_of_all_that_was_seen_in_whatever_batches():
    x = np.float32([[1, 10], [3, 30], [5, 20], [7, 0], [9, 40]])
    fresh = Normaliser.start(2)
    assert np.allclose(fresh(jnp.asarray([2.0, -3.0])), [2.0, -3.0], rtol=1e-4)
    parts = fresh.update(jnp.asarray(x[:2])).update(jnp.asarray(x[2:].reshape(3, 1, 2)))
    np.testing.assert_allclose(parts.mean, [5.0, 20.0], rtol=1e-6)
    np.testing.assert_allclose(parts.variance, [8.0, 200.0], rtol=1e-6)
    # (9 - 5) / sqrt(8), (20 - 20) / ..
    assert np.allclose(parts(jnp.asarray([9.0, 20.0])), [4 / np.sqrt(8), 0.0], rtol=1e-4)


def test_an_input_that_never_moves_is_not_blown_up():
    still = Normaliser.start(1).update(jnp.full((10, 1), 3.0))
    # its spread counts as 0.01
    assert float(still(jnp.asarray([3.5]))[0]) == pytest.approx(50.0, rel=1e-4)
