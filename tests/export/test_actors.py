"""Every kind of actor, with everything that a policy may do: its graph agrees with the one policy function."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import numpy as np
import onnx
import pytest

from export import convert, graph
from export.compare import difference, drawn
from ksim.clock import GaitClock
from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig
from ksim.learning.checkpoint import policy_spec
from ksim.learning.normaliser import Normaliser
from ksim.learning.policy import make_model, make_policy
from robots import load_robot

RANGES = {"xvel": (-0.5, 1.0), "yvel": (0.2, 0.2), "grip": (-0.4, 0.6)}
COMMANDS = {name: UniformCommand(name=name, range=span) for name, span in RANGES.items()}
WRIST = "dof_left_wrist_00"
EVERYTHING = {
    "normalise": True,
    "smoothing": 0.2,
    "target_speed": 0.3,
    "hold": ("shoulder",),
    "passthrough": {WRIST: "grip"},
}
ACTORS = {
    "lstm of three layers": {"layers": 3},
    "gru": {"network": "gru"},
    "gru of two layers": {"network": "gru", "layers": 2},
    "mlp": {"network": "mlp", "layers": 2},
    "mlp with history": {"network": "mlp", "history": 3},
    "lstm with everything": EVERYTHING,
    "gru with everything": {"network": "gru", **EVERYTHING},
    "mlp with everything": {"network": "mlp", "history": 2, **EVERYTHING},
    "lstm with a gait clock": {"clock": GaitClock(frequency_hz=1.25), "target_acceleration": 60.0},
}


def made(settings: dict):
    """(policy, spec) with weights that are not small and statistics that are not trivial."""
    config = Config(commands=COMMANDS, policy=PolicyConfig(hidden=16, head=16, **settings))
    robot = load_robot("kbot")
    model = make_model(robot, 5, config, key=jax.random.key(3))
    where = lambda m: m.actor.net.output_layer.weight  # noqa: E731
    model = eqx.tree_at(where, model, 100.0 * where(model))
    if config.policy.normalise:
        size = model.actor.normaliser.mean.shape[0]
        seen = Normaliser.start(size).update(2.0 * jax.random.normal(jax.random.key(4), (50, size)) + 0.5)
        model = eqx.tree_at(lambda m: m.actor.normaliser, model, seen)
    policy = make_policy(model.actor, robot, config)
    return policy, policy_spec(config, robot, policy, "")


@pytest.mark.parametrize("name", ACTORS)
def test_onnx_agrees_with_the_policy_function_of_every_actor(name):
    policy, spec = made(ACTORS[name])
    bundle = convert(policy.step, policy.init_carry(), spec)
    assert bundle.spec.carry_layout == policy.carry_layout and bundle.carry_size == policy.carry_size
    rng = np.random.default_rng(0)
    # a third of the declared range: near its ends the raw action reaches hundreds, where 1e-5 is a rounding error
    inputs = {k: 0.3 * v for k, v in drawn(spec.inputs, 100, rng).items()}
    found = difference(bundle, policy.step, policy.init_carry(), inputs, rng.random(100) < 0.1)
    assert found.of_limit <= 1.0 and found.action_error <= 1e-5
    # nothing is left to compute that does not depend on an input
    step = onnx.load_model_from_string(bundle.step_fn).graph
    constants = {i.name for i in step.initializer} | {""}
    assert not [n.op_type for n in step.node if set(n.input) <= constants]
    assert {n.domain for n in step.node} == {""}


def test_a_policy_with_everything_still_reads_every_input_and_gives_the_same_bytes_twice():
    policy, spec = made(ACTORS["mlp with everything"])
    first, second = (convert(policy.step, policy.init_carry(), spec) for _ in range(2))
    assert first == second
    assert [a.name for a in first.spec.inputs] == [a.name for a in spec.inputs]
    assert graph.operators(onnx.load_model_from_string(first.step_fn))["Clip"] == 2  # the observation, twice


def test_the_spec_tells_the_settings_of_training(trained):
    told = trained.spec.training
    assert (told["task"], told["seed"]) == (trained.config.task, trained.config.seed)
    assert told["policy"]["network"] == "lstm" and told["policy"]["smoothing"] == 0.2
    assert told["events"]["pushes"]["force_n"] == 50.0
    assert told["channels"]["action"]["latency_s"] == [0.003, 0.015]
    assert "steps" not in told  # this checkpoint does not say
    meta = {"progress": {"steps": 5}, "config": trained.config.to_dict()}
    spec = policy_spec(trained.config, trained.spec.robot, trained.policy, "", meta)
    assert spec.training["steps"] == 5
    # a key that is newer than the checkpoint does not make it another
    older = trained.config.to_dict()
    del older["policy"]["network"]
    aged = policy_spec(trained.config, trained.spec.robot, trained.policy, "", {"config": older})
    assert aged.config_digest != spec.config_digest == trained.config.digest
    assert dataclasses.replace(aged, config_digest="") == dataclasses.replace(
        spec, config_digest="", training=aged.training
    )
