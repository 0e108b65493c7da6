"""What lies around a fit is found where slopes lead nowhere: the wrong gap, a whole motor too strong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.sysid import around
from deploy.sysid import calibrate as calibrate_module
from deploy.sysid.around import look_around
from deploy.sysid.calibrate import calibrate
from deploy.sysid.fit import FLOOR_RAD, Fit, Problem, solve
from deploy.sysid.simulate import Parameters, Simulator
from deploy.twin.reality import Reality, parse_reality
from robots.load import load_robot
from tests.deploy.hidden_arm import HIDDEN, excited, recorded, two_links

NOISE_RAD = 3e-4


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> tuple[Problem, Parameters]:
    """An arm whose elbow has play, and its true parameters."""
    arm = two_links(tmp_path_factory.mktemp("robots") / "arm")
    reality = {**HIDDEN, "joints": {**HIDDEN["joints"], "play_rad": {"elbow": 0.02}}}
    seen = recorded(arm, parse_reality(reality), excited(3, 1), NOISE_RAD)
    published = Parameters.of(load_robot(arm))
    truth = published.replace(
        kp=published.kp * [0.7, 1.25],
        kd=published.kd * [1.3, 0.8],
        friction=published.friction + np.array([0.3, 0.15]),
        play=np.array([1e-5, 0.02]),
        delay_s=0.013,
    )
    kinds = ("kp", "kd", "friction", "armature", "play", "delay_s")
    noise = {seen.name: np.full(2, NOISE_RAD)}
    return Problem(Simulator(arm, [seen]), published, kinds, noise, least=FLOOR_RAD, whole=True), truth


def here(_: str, problem: Problem, p: Parameters) -> Fit:
    """A search that goes nowhere: what is found is found by looking around."""
    return dataclasses.replace(solve(problem, p, 0), converged=True)


def test_the_gap_and_a_motor_that_is_too_strong_as_a_whole_are_found_without_slopes(problem, monkeypatch):
    monkeypatch.setattr(around, "ROUNDS", 1)
    problem, truth = problem
    motor = {name: getattr(truth, name) * [1.0, 1.4] for name in ("kp", "kd", "friction", "armature")}
    wrong = here("", problem, truth.replace(**motor, play=np.array([0.012, 0.02])))
    said: list[str] = []
    found = look_around(problem, wrong, here, said.append)
    assert found.cost[-1] < 0.05 * wrong.cost[-1]
    np.testing.assert_allclose(found.parameters.kp, truth.kp, rtol=0.02)
    np.testing.assert_allclose(found.parameters.play, truth.play, atol=0.005)
    # then random values find more: each way does its part
    (wide, near) = (float(line.split()[-1]) for line in said)
    assert wide < 0.1 * wrong.cost[-1] and near < 0.9 * wide


def test_a_search_whose_steps_were_used_up_is_left_as_it_is(problem):
    problem, truth = problem
    wrong = solve(problem, truth.replace(play=np.array([0.012, 0.005])), 0)
    assert look_around(problem, wrong, here) is wrong


@pytest.mark.parametrize("kinds", [("kp", "play"), ("kp",)])
def test_a_calibration_looks_around_where_play_is_fitted(tmp_path, monkeypatch, kinds):
    looked = []

    def look(problem: Problem, fit: Fit, *_) -> Fit:
        looked.append(problem.kinds)
        return fit

    monkeypatch.setattr(calibrate_module, "look_around", look)
    arm = two_links(tmp_path / "arm")
    found = calibrate(arm, [recorded(arm, Reality(), excited(1, 1))], kinds=kinds, timestep_s=0.004, iterations=1)
    assert found.fitted == kinds
    assert [tuple(k) for k in looked] == ([kinds] if "play" in kinds else [])
