"""Wrong contracts: the surgery does what it says, and deployment refuses what comes of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deploy.bundle.preflight import prepare
from deploy.bundle.session import OnnxPolicy
from deploy.errors import PolicyError
from export import probes
from export.compare import Onnx, drawn
from robots import write_bundle


@pytest.fixture(scope="module")
def whole(exported_small):
    """The export with its self-test and envelope."""
    return exported_small.bundle


@pytest.fixture(scope="module")
def inputs(whole):
    return drawn(whole.spec.inputs, 20, np.random.default_rng(5))


RESETS = np.arange(20) == 0
JOINTS = ("joint_angles", "joint_angular_velocities")


def test_a_permuted_graph_is_the_policy_on_permuted_joints(whole, inputs):
    order = np.roll(np.arange(20), 3)
    wrong = Onnx(probes.changed(whole, probes.permute(order.tolist()))).run(inputs, RESETS)
    turned = {k: v[:, order] if k in JOINTS else v for k, v in inputs.items()}
    right = Onnx(whole).run(turned, RESETS)
    # what the graph calls joint i is joint order[i] outside
    assert np.array_equal(wrong.actions[:, order], right.actions) and np.array_equal(wrong.carries, right.carries)


def test_a_graph_in_degrees_is_the_policy_on_scaled_inputs(whole, inputs):
    wrong = Onnx(probes.changed(whole, probes.degrees)).run(inputs, RESETS)
    scaled = {
        k: np.float32(v * np.float32(np.pi / 180)) if k in (*JOINTS, "gyroscope") else v for k, v in inputs.items()
    }
    right = Onnx(whole).run(scaled, RESETS)
    np.testing.assert_allclose(wrong.actions, np.degrees(right.actions), rtol=1e-5)


def test_inverted_gravity_and_a_stale_carry_are_what_they_say(whole, inputs):
    wrong = Onnx(probes.changed(whole, probes.inverted_gravity)).run(inputs, RESETS)
    right = Onnx(whole).run(inputs | {"projected_gravity": -inputs["projected_gravity"]}, RESETS)
    assert np.array_equal(wrong.actions, right.actions)
    stale = Onnx(probes.changed(whole, probes.stale_carry)).run(inputs, RESETS)
    assert np.array_equal(stale.carries, np.tile(Onnx(whole).start, (20, 1)))


def test_every_wrong_contract_is_refused_and_by_whom_is_told(exported_small):
    found = exported_small.report.probes
    by = {(p.contract, p.where): set(p.by) for p in found}
    assert by[("permuted joints", "graph")] == {"self-test"}
    assert by[("degrees for radians", "graph")] == {"self-test"}
    assert by[("inverted gravity", "graph")] == {"self-test"}
    assert by[("stale carry", "graph")] == by[("stale carry", "host")] == {"self-test"}
    assert by[("degrees for radians", "robot")] == by[("inverted gravity", "robot")] == {"envelope", "state check"}
    assert all(p.passed for p in found)
    seen = {(p.contract, p.probe, p.where): p for p in found}
    for kind in ("reversed order", "left and right swapped"):
        for where in ("graph", "robot"):
            p = seen["permuted joints", kind, where]
            assert p.different == p.caught == p.tried > 0, (kind, where)


def test_every_adjacent_swap_that_changes_anything_is_refused_by_the_self_test(exported_small):
    pairs = next(p for p in exported_small.report.probes if p.where == "graph" and "adjacent" in p.probe)
    # this policy moves every joint: each of the 19 swaps changes something
    assert (pairs.tried, pairs.different, pairs.caught, pairs.by) == (19, 19, 19, {"self-test": 19})


def test_the_right_contract_is_refused_by_nothing(exported_small):
    right = next(p for p in exported_small.report.probes if p.contract == "none")
    assert right.tried > 0 and right.by == {} and right.passed


@pytest.mark.parametrize("change", [probes.permute([1, 0, *range(2, 20)]), probes.degrees, probes.inverted_gravity])
def test_ksim_run_itself_refuses_the_wrong_bundle(whole, tmp_path, change):
    write_bundle(tmp_path / "wrong.kinfer", probes.changed(whole, change))
    with pytest.raises(PolicyError, match="self-test, step 0: target of dof_"):
        prepare(tmp_path / "wrong.kinfer", "kbot", {})


def test_a_wrong_contract_that_nothing_refuses_is_not_passed(whole, inputs):
    # a self-test at zero gravity cannot tell which way it points
    blind = dataclasses.replace(whole, spec=whole.spec.replace(self_test=_blind(whole)))
    found = probes.graph_probes(blind, inputs, RESETS)
    assert {p.contract for p in found if not p.passed} == {"inverted gravity"}
    (gravity,) = (p for p in found if p.contract == "inverted gravity")
    assert (gravity.different, gravity.caught, gravity.by, gravity.example) == (1, 0, {}, "")


def _blind(whole):
    """A self-test of one step with every input 0."""
    record = whole.spec.self_test
    policy = OnnxPolicy(whole)
    zeros = {name: np.zeros(policy.shapes[name], np.float32) for name in record["inputs"]}
    action = policy.step(zeros)
    return {
        "inputs": {name: [v.tolist()] for name, v in zeros.items()},
        "actions": [action.tolist()],
        "carry": policy.carry.tolist(),
        "tolerance": 1e-4,
    }


def test_a_change_that_changes_nothing_need_not_be_refused(whole, inputs):
    found = probes._in_graph(whole, "none", "nothing", [probes.changed(whole, lambda model: None)], inputs, RESETS)
    assert (found.tried, found.different, found.caught, found.passed) == (1, 0, 0, True)


def test_permutations_are_by_name(whole):
    orders = probes.orders(whole.spec)
    names = whole.spec.robot.joint_names
    (mirrored,) = orders["left and right swapped"]
    assert names[mirrored[0]] == names[0].replace("left", "right")
    assert sorted(mirrored) == list(range(20)) and orders["reversed order"] == [list(range(19, -1, -1))]
    assert len(orders["adjacent joints swapped, each pair"]) == 19


@pytest.mark.parametrize("gravity", [(0.0, 0.0, -9.81), (3.0, 0.0, -9.34), (0.0, -4.0, -8.96), (2.0, 5.0, -8.2)])
def test_the_state_made_of_inputs_has_the_gravity_of_the_inputs(whole, gravity):
    vector = 9.81 * np.asarray(gravity) / np.linalg.norm(gravity)
    state = probes._state({"projected_gravity": vector}, whole.spec)
    np.testing.assert_allclose(state.projected_gravity, vector, atol=1e-9)
    upside = probes._state({"projected_gravity": np.array([0.0, 0.0, 9.81])}, whole.spec)
    assert upside.tilt_rad == pytest.approx(np.pi)
