"""The one policy function: carry, encoding, targets."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deploy.robot.safety import Limits, limit
from deploy.robot.state import RobotState
from ksim.actions import JointTargets
from ksim.commands import UniformCommand
from ksim.errors import ConfigError
from ksim.learning.policy import INPUTS, OBSERVATION_CLIP, make_model, make_policy
from toolkit.errors import SettingsError

NO_CLOCK = jnp.zeros(0)


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
    names = [(p.name, p.shape) for p in policy.carry_layout]
    assert names == [
        *((f"lstm{i}.{part}", (8,)) for i in (0, 1) for part in "hc"), ("last_action", (20,)), ("last_targets", (20,))
    ]  # fmt: skip
    assert policy.carry_size == 2 * 2 * 8 + 20 + 20 == policy.init_carry().shape[0]
    state, _, action, targets = policy.split(jnp.arange(72.0))
    assert (state[0], state[-1], action[0], action[-1], targets[0], targets[-1]) == (0, 31, 32, 51, 52, 71)


def test_the_first_carry_is_zero_but_for_targets_at_home(policy, built):
    state, _, action, targets = policy.split(policy.init_carry())
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
        "command": jnp.asarray([0.25, 0.0]),  # the middle of their ranges
    }
    vector = policy.encode(calm, NO_CLOCK, jnp.zeros(n))
    assert vector.shape == (3 * 20 + 6 + 2,)
    assert np.allclose(vector, 0.0, atol=1e-6)


def test_encode_puts_each_input_in_its_place_and_clips(policy, inputs):
    last = jnp.linspace(0.0, 1.0, 20)
    base = np.asarray(policy.encode(inputs, NO_CLOCK, last))
    places = {
        "joint_angles": slice(0, 20),
        "joint_angular_velocities": slice(20, 40),
        "projected_gravity": slice(40, 43),
        "gyroscope": slice(43, 46),
        "command": slice(46, 48),
    }
    for name, place in places.items():
        moved = np.asarray(policy.encode({**inputs, name: inputs[name] + 0.01}, NO_CLOCK, last)) - base
        assert (moved[place] > 0).all() and not np.delete(moved, np.arange(68)[place]).any(), name
        huge = np.asarray(policy.encode({**inputs, name: inputs[name] + 1e9}, NO_CLOCK, last))
        assert (huge[place] == OBSERVATION_CLIP).all(), name
    assert np.allclose(base[48:], last)


def test_step_is_encode_net_and_act_by_hand(policy, inputs, step):
    carry = policy.init_carry() + 0.05 * jnp.sin(jnp.arange(72.0))
    state, phase, last_action, last_targets = policy.split(carry)
    mean, new_state = policy.actor.net(policy.encode(inputs, phase, last_action), state)
    targets, new_carry = policy.act(inputs, mean, jnp.zeros(0), new_state, phase, last_targets)
    got, got_carry = step(policy, inputs, carry)
    assert np.allclose(got, targets, atol=1e-6) and np.allclose(got_carry, new_carry, atol=1e-6)
    # the carry holds what was done, for the next step
    kept_state, _, kept_action, kept_targets = policy.split(new_carry)
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


@pytest.fixture(scope="module")
def variant(built, config):
    """`variant(hidden=4)`: a policy with other settings of the actor, its last layer made loud."""

    def make(**changes):
        changed = dataclasses.replace(config, policy=dataclasses.replace(config.policy, **changes))
        model = make_model(built.spec, 5, changed, key=jax.random.key(3))
        return loud(make_policy(model.actor, built.spec, changed), 100.0)

    return make


NETWORKS = {
    "gru": {"network": "gru", "layers": 2},
    "mlp": {"network": "mlp", "layers": 2},
    "mlp with history": {"network": "mlp", "layers": 1, "history": 3},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_makes_a_policy_whose_carry_is_as_its_layout_says(name, variant, inputs, step):
    policy = variant(**NETWORKS[name])
    carry = policy.init_carry()
    assert carry.shape == (policy.carry_size,) == (sum(p.size for p in policy.carry_layout),)
    targets, after = step(policy, inputs, carry)
    state, phase, last_action, last_targets = policy.split(carry)
    mean, new_state, told = policy.actor(policy.encode(inputs, phase, last_action), state)
    by_hand, new_carry = policy.act(inputs, mean, told, new_state, phase, last_targets)
    assert np.allclose(targets, by_hand, atol=1e-5) and np.allclose(after, new_carry, atol=1e-5)
    if name == "mlp with history":
        assert policy.carry_layout[0].shape == (3, 3 * 20 + 6 + 2)
        assert np.allclose(after[:68], policy.encode(inputs, phase, last_action), atol=1e-5)


def test_commands_are_seen_as_shares_of_their_trained_range(policy, inputs):
    # xvel from -0.5 to 1, yawrate from -1 to 1
    for command, expected in (([-0.5, -1.0], [-1, -1]), ([0.25, 0.0], [0, 0]), ([1.0, 0.5], [1, 0.5])):
        vector = policy.encode({**inputs, "command": jnp.asarray(command)}, NO_CLOCK, jnp.zeros(20))
        assert np.allclose(vector[46:48], expected, atol=1e-6)


def test_a_command_whose_range_is_a_point_says_nothing(built, config, inputs):
    config = dataclasses.replace(
        config,
        commands={
            "xvel": UniformCommand(name="xvel", range=(0.5, 0.5)),
            "yawrate": UniformCommand(name="yawrate", range=(-1.0, 1.0)),
        },
    )
    model = make_model(built.spec, 5, config, key=jax.random.key(3))
    policy = make_policy(model.actor, built.spec, config)
    vector = policy.encode({**inputs, "command": jnp.asarray([0.9, 1.0])}, NO_CLOCK, jnp.zeros(20))
    assert np.allclose(vector[46:48], [0.0, 1.0])


WRIST, ELBOW = "dof_left_wrist_00", "dof_left_elbow_02"


def test_a_joint_passed_through_follows_its_command_within_its_limits_and_the_network_does_not_see_it(
    built, variant, inputs
):
    policy = variant(passthrough={WRIST: "yawrate"}, hold=("wrist", "shoulder"), smoothing=0.5)
    n, wrist = 20 - 2 - 6, built.spec.joint_names.index(WRIST)  # the other wrist and six shoulder joints hold
    assert (policy.actions, policy.encoding.size) == (n - 1 + 1, 2 * (n + 1) + 6 + 1 + n)
    last = policy.init_carry()
    for command, target in ((0.3, 0.3), (-0.2, -0.2), (1e9, built.spec.joint(WRIST).upper_rad)):
        targets, _ = policy.step({**inputs, "command": jnp.asarray([0.25, command])}, last)
        assert float(targets[wrist]) == pytest.approx(target, abs=1e-6)
    seen = [policy.encode({**inputs, "command": jnp.asarray([0.25, c])}, NO_CLOCK, jnp.zeros(n)) for c in (0.0, 0.7)]
    assert np.array_equal(*seen)
    # its own angle is seen: it moves the arm's weight about
    angles = inputs["joint_angles"].at[wrist].add(0.1)
    assert np.abs(policy.encode({**inputs, "joint_angles": angles}, NO_CLOCK, jnp.zeros(n)) - seen[0]).max() > 0.1
    # the other wrist stays at home
    other = built.spec.joint_names.index("dof_right_wrist_00")
    assert float(targets[other]) == pytest.approx(built.spec.joints[other].home_rad)


def test_passing_through_an_unknown_joint_or_command_is_refused(variant, config):
    with pytest.raises(ConfigError, match=r"policy\.passthrough: no joint 'tail'; kbot has dof_left_hip_pitch_04"):
        variant(passthrough={"tail": "xvel"})
    with pytest.raises(SettingsError, match=r"policy\.passthrough\..*: got 'grip', expected one of the commands \("):
        dataclasses.replace(config, policy=dataclasses.replace(config.policy, passthrough={WRIST: "grip"}))


def limits_and_state(built, position):
    zeros = np.zeros(20)
    state = RobotState(
        time_s=0.0,
        round_trip_s=0.0,
        joint_position=np.asarray(position, np.float64),
        joint_velocity=zeros,
        joint_torque=zeros,
        quat_wxyz=np.array([1.0, 0, 0, 0]),
        gyro_b=np.zeros(3),
        accel_b=np.array([0, 0, 9.81]),
    )
    limits = Limits.from_spec(built.spec)
    # torque is not what is tested
    return dataclasses.replace(limits, torque_limit=np.full(20, 1e6)), state


@pytest.mark.parametrize("speed", [1.0, 0.25])
def test_targets_move_no_faster_than_allowed_so_that_the_safety_layer_never_clamps_their_speed(
    built, variant, inputs, step, speed
):
    policy = variant(target_speed=speed, passthrough={WRIST: "yawrate"})
    policy = loud(policy, 100.0)
    limits, state = limits_and_state(built, built.spec.column("home_rad"))
    rng, carry = np.random.default_rng(0), policy.init_carry()
    last = np.float64(policy.split(carry)[3])
    allowed, fastest = speed * 0.02 * np.array(built.spec.column("velocity_max_rad_s")), np.zeros(20)
    for _ in range(200):
        shaken = {k: v + jnp.asarray(rng.normal(size=v.shape), jnp.float32) for k, v in inputs.items()}
        targets, carry = step(policy, shaken, carry)
        target = np.float64(targets)
        safe, clamps = limit(target, last, state, limits, 0.02)
        assert clamps == () and np.array_equal(safe, target)
        fastest = np.maximum(fastest, np.abs(target - last))
        last = target
    assert (fastest <= allowed).all()
    # and it is that limit that holds them back
    assert (fastest >= 0.999 * np.minimum(allowed, 0.9 * (limits.upper - limits.lower))).sum() > 15
    wrist = built.spec.joint_names.index(WRIST)
    assert fastest[wrist] >= 0.999 * allowed[wrist]


def test_without_a_speed_limit_the_safety_layer_would_clamp(built, variant, inputs, step):
    policy = loud(variant(), 100.0)
    limits, state = limits_and_state(built, built.spec.column("home_rad"))
    targets, _ = step(policy, inputs, policy.init_carry())
    _, clamps = limit(np.float64(targets), np.array(built.spec.column("home_rad")), state, limits, 0.02)
    assert any(clamp.kind == "target speed" for clamp in clamps)
