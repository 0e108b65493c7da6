"""The paired comparison of two evaluations, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from export.closed_loop import bootstrap, closed_loop, deviation, matched_proportions
from ksim.evaluate import Evaluation


def evaluation(n: int = 200, *, survived=None, returns=None, angles=None, alive=None, **changes) -> Evaluation:
    zeros = np.zeros(n)
    angles = np.zeros((2, n)) if angles is None else np.asarray(angles, float)
    values = {
        "survived": np.ones(n, bool) if survived is None else survived,
        "returns": 10.0 + zeros if returns is None else returns,
        "drift_m": zeros,
        "tracking_m_s": zeros,
        "inputs": {"joint_angles": angles[..., None]},
        "alive": np.ones_like(angles, bool) if alive is None else np.array(alive, bool),
    } | changes
    return Evaluation(episodes=n, seed=0, engine="mujoco", lengths_s=zeros, **values)


def test_the_interval_of_matched_shares_leaves_a_doubt_where_every_episode_ends_alike():
    # Agresti and Min: 0.5 in each cell, n + 2: 1.96 * sqrt((1 / 202) / 202) = 0.0097
    low, high = matched_proportions(np.ones(200, bool), np.ones(200, bool))
    assert (low, high) == pytest.approx((-0.00970, 0.00970), abs=1e-5)


def test_the_interval_of_matched_shares_by_hand():
    # 100 episodes: 9 survived by the first alone, 2 by the second alone
    a, b = np.ones(100, bool), np.ones(100, bool)
    a[:2], b[2:11] = False, False
    # centre (9.5 - 2.5) / 102; width 1.96 * sqrt((12 / 102 - 0.06863^2) / 102)
    centre, width = 7 / 102, 1.959964 * np.sqrt((12 / 102 - (7 / 102) ** 2) / 102)
    assert matched_proportions(a, b) == pytest.approx((centre - width, centre + width), abs=1e-6)


def test_the_bootstrap_interval_is_that_of_the_mean_and_the_same_again():
    differences = np.random.default_rng(1).normal(0.3, 1.0, 400)
    low, high = bootstrap(differences, 0)
    mean, error = differences.mean(), differences.std() / 20
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.01)
    assert bootstrap(differences, 0) == (low, high) != bootstrap(differences, 1)
    assert bootstrap(np.zeros(10), 0) == (0.0, 0.0)
    assert bootstrap(differences, 0, 0.999) == pytest.approx((mean - 3.29 * error, mean + 3.29 * error), abs=0.03)


def test_equal_evaluations_are_equivalent_in_every_metric():
    found = closed_loop(evaluation(), evaluation(), 0.02)
    assert {m.verdict for m in found.metrics.values()} == {"equivalent"} and found.failures() == []
    assert found.parted == 0 and found.returns.margin == pytest.approx(0.5)  # 5 % of 10


def test_a_policy_that_falls_in_a_tenth_of_the_episodes_is_different():
    falls = np.arange(200) >= 20
    found = closed_loop(evaluation(survived=falls), evaluation(), 0.02)
    assert found.survival.verdict == "different" and found.survival.difference == pytest.approx(-0.1)
    (line,) = found.failures()
    assert line.startswith("closed loop in mujoco: survival: ONNX 0.9, JAX 1") and found.parted == 20


def test_a_difference_that_is_certain_and_too_small_to_matter_is_equivalent():
    found = closed_loop(evaluation(returns=np.full(200, 10.01)), evaluation(), 0.02)
    assert found.returns.low95 > 0 and found.returns.verdict == "equivalent"
    found = closed_loop(evaluation(returns=np.full(200, 10.6)), evaluation(), 0.02)
    assert found.returns.verdict == "different"


def test_right_bundles_are_not_refused_for_what_one_metric_in_twenty_does():
    rng, apart = np.random.default_rng(3), []
    for _ in range(100):
        found = closed_loop(
            evaluation(64, drift_m=rng.normal(2.0, 0.3, 64)), evaluation(64, drift_m=2 + np.zeros(64)), 1
        )
        apart.append((found.drift.low95 > 0 or found.drift.high95 < 0, bool(found.failures())))
    beyond, refused = np.sum(apart, axis=0)
    assert beyond >= 2 and refused == 0


def test_few_episodes_that_scatter_show_no_difference_and_no_equivalence():
    noise = np.random.default_rng(0).normal(0, 5.0, 8)
    found = closed_loop(evaluation(8, returns=10 + noise), evaluation(8), 0.02)
    assert found.returns.verdict == found.survival.verdict == "no difference" and found.failures() == []


def test_motions_that_part_in_the_first_second_fail():
    found = closed_loop(evaluation(3, angles=[[0, 0, 0], [0, 0.1, 0.2]]), evaluation(3), 0.02)
    assert found.failures() == [
        "closed loop in mujoco: joint deviation in the first second, median: got 0.1 rad, expected at most 0.005"
    ]


def test_one_episode_that_contacts_have_parted_is_told_and_does_not_fail():
    found = closed_loop(evaluation(3, angles=[[0, 0, 0], [0, 0, 0.2]]), evaluation(3), 0.02)
    assert (found.joint_deviation_rad, found.joint_deviation_max_rad) == (0.0, 0.2) and found.failures() == []


def test_joint_deviation_looks_only_where_both_still_stand():
    a = evaluation(2, angles=[[0, 0], [0, 0], [0, 0]], alive=[[1, 1], [1, 0], [1, 0]])
    b = evaluation(2, angles=[[0.25, 0], [0, 8], [9, 9]])
    assert deviation(a, b, 2).tolist() == [0.25, 0.0]  # 8: one has fallen; 9: after two steps
