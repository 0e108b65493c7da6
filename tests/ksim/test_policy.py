"""The one policy function: carry, encoding, targets."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.actions import JointTargets
from ksim.policy import INPUTS, OBSERVATION_CLIP


@pytest.fixture(scope="module")
def inputs(built):
    home = np.float32(built.spec.column("home_rad"))
    return {
        "joint_angles": jnp.asarray(home + 0.1),
        "joint_angular_velocities": jnp.linspace(-1.0, 1.0, 20),
        "projected_gravity": jnp.asarray([0.3, -0.2, -9.8]),
        "gyroscope": jnp.asarray([0.1, -0.2, 0.3]),
        "command": jnp.asarray([0.5, -0.5]),
    }


@pytest.fixture(scope="module")
def step():
    return eqx.filter_jit(lambda policy, inputs, carry: policy.step(inputs, carry))


def loud(policy, factor: float):
    """The policy with its last layer times `factor`."""
    return eqx.tree_at(lambda p: p.actor.net.output_layer.weight, policy, replace_fn=lambda w: w * factor)


def test_the_carry_is_states_then_last_action_then_last_targets(policy, built):
    # two layers of eight, h and c each; then twenty and twenty
    assert policy.carry_size == 2 * 2 * 8 + 20 + 20 == policy.init_carry().shape[0]
    state, action, targets = policy.split(jnp.arange(72.0))
    assert (state[0], state[-1], action[0], action[-1], targets[0], targets[-1]) == (0, 31, 32, 51, 52, 71)


def test_the_first_carry_is_zero_but_for_targets_at_home(policy, built):
    state, action, targets = policy.split(policy.init_carry())
    assert not state.any() and not action.any()
    assert np.array_equal(targets, np.float32(built.spec.column("home_rad")))
    assert policy.init_carry().dtype == jnp.float32


def test_encode_is_zero_at_home_upright_at_rest_and_as_long_as_it_says(policy, built):
    n = 20
    calm = {
        "joint_angles": jnp.asarray(built.spec.column("home_rad"), jnp.float32),
        "joint_angular_velocities": jnp.zeros(n),
        "projected_gravity": jnp.asarray([0.0, 0.0, -9.81]),
        "gyroscope": jnp.zeros(3),
        "command": jnp.zeros(2),
    }
    vector = policy.encode(calm, jnp.zeros(n))
    assert vector.shape == (3 * 20 + 6 + 2,)
    assert np.allclose(vector, 0.0, atol=1e-6)


def test_encode_puts_each_input_in_its_place_and_clips(policy, inputs):
    last = jnp.linspace(0.0, 1.0, 20)
    base = np.asarray(policy.encode(inputs, last))
    places = {
        "joint_angles": slice(0, 20),
        "joint_angular_velocities": slice(20, 40),
        "projected_gravity": slice(40, 43),
        "gyroscope": slice(43, 46),
        "command": slice(46, 48),
    }
    for name, place in places.items():
        moved = np.asarray(policy.encode({**inputs, name: inputs[name] + 0.01}, last)) - base
        assert (moved[place] > 0).all() and not np.delete(moved, np.arange(68)[place]).any(), name
        huge = np.asarray(policy.encode({**inputs, name: inputs[name] + 1e9}, last))
        assert (huge[place] == OBSERVATION_CLIP).all(), name
    assert np.allclose(base[48:], last)


def test_step_is_encode_net_and_act_by_hand(policy, inputs, step):
    carry = policy.init_carry() + 0.05 * jnp.sin(jnp.arange(72.0))
    state, last_action, last_targets = policy.split(carry)
    mean, new_state = policy.actor.net(policy.encode(inputs, last_action), state)
    targets, new_carry = policy.act(inputs, mean, new_state, last_targets)
    got, got_carry = step(policy, inputs, carry)
    assert np.allclose(got, targets, atol=1e-6) and np.allclose(got_carry, new_carry, atol=1e-6)
    # the carry holds what was done, for the next step
    kept_state, kept_action, kept_targets = policy.split(new_carry)
    assert np.array_equal(kept_state, new_state) and np.array_equal(kept_action, mean)
    assert np.array_equal(kept_targets, targets)


def test_targets_are_home_plus_scaled_action_smoothed_and_clipped():
    law = JointTargets(home=(0.5, -1.0), scale=(0.1, 0.2), low=(-1.0, -1.5), high=(1.0, 1.5), smoothing=0.25)
    last = jnp.asarray([0.9, 0.2])
    # 0.25 * 0.9 + 0.75 * (0.5 + 0.1 * 2), 0.25 * 0.2 + 0.75 * (-1 + 0.2 * -1)
    assert np.allclose(law(jnp.asarray([2.0, -1.0]), last), [0.75, -0.85])
    plain = dataclasses.replace(law, smoothing=0.0)
    assert np.allclose(plain(jnp.asarray([2.0, -1.0]), last), [0.7, -1.2])
    assert np.allclose(law(jnp.asarray([1e9, -1e9]), last), [1.0, -1.5])


def test_a_unit_of_action_asks_for_its_share_of_the_torque_limit(built):
    law = JointTargets.of(built.spec, action_scale=0.5, smoothing=0.0)
    moved = np.asarray(law(jnp.ones(20), jnp.zeros(20))) - np.float32(built.spec.column("home_rad"))
    wanted = 0.5 * np.array(built.spec.column("torque_limit_nm"))
    free = np.abs(moved - np.float32(law.scale)) < 1e-6  # not clipped
    assert free.sum() > 10
    assert np.allclose((moved * np.array(built.spec.column("kp")))[free], wanted[free], rtol=1e-4)


@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_targets_stay_within_the_joint_limits_whatever_the_network_says(policy, inputs, step, built, factor):
    absurd = loud(policy, factor)
    carry = absurd.init_carry()
    for _ in range(4):
        targets, carry = step(absurd, inputs, carry)
        assert (targets >= np.float32(built.spec.column("lower_rad"))).all()
        assert (targets <= np.float32(built.spec.column("upper_rad"))).all()
    assert np.isfinite(carry).all()


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_matters_and_a_missing_one_is_a_key_error(policy, inputs, step, name):
    clear = loud(policy, 100.0)
    carry = clear.init_carry()
    a, _ = step(clear, inputs, carry)
    b, _ = step(clear, {**inputs, name: inputs[name] + 0.3}, carry)
    assert np.abs(a - b).max() > 1e-5
    with pytest.raises(KeyError, match=name):
        policy.step({k: v for k, v in inputs.items() if k != name}, carry)


def test_the_gradient_reaches_every_weight_of_the_actor_but_its_spread(policy, inputs):
    clear = loud(policy, 10.0)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(policy):
        _, carry = policy.step(inputs, policy.init_carry())
        targets, _ = policy.step(inputs, carry)
        return jnp.sum(targets**2)

    leaves = jax.tree_util.tree_leaves_with_path(gradient(clear).actor)
    assert len(leaves) == 2 * 3 + 2 * 2 + 1  # two cells, two linear layers, the spread
    silent = {jax.tree_util.keystr(path) for path, leaf in leaves if not np.abs(leaf).any()}
    assert silent == {".log_std"}
