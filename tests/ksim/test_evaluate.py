"""Evaluation: the same seed gives the same figures, the baseline falls, and both kinds of policy run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ksim.config import load_config
from ksim.errors import KsimError
from ksim.evaluate import Evaluation, HoldHome, JaxBatchPolicy, _off_command, evaluate, load_policy
from ksim.paths import shipped_config


@pytest.fixture(scope="module")
def run(config, trained, environment):
    def go(seed: int, **options) -> Evaluation:
        policy = options.pop("policy", None) or JaxBatchPolicy(trained.policy)
        return evaluate(config, policy, episodes=4, seed=seed, environment=environment, **options)

    return go


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(run):
    first, again, other = run(5), run(5), run(6)
    assert first.summary() == again.summary()
    assert np.array_equal(first.returns, again.returns) and np.array_equal(first.drift_m, again.drift_m)
    assert not np.array_equal(first.returns, other.returns)


def test_short_episodes_are_survived_and_all_of_them_last_to_the_end(run, config):
    # 0.4 s are too short to fall in
    result = run(5)
    assert result.survival == 1.0 and np.allclose(result.lengths_s, config.episode_length_s)
    assert (result.returns > 0).all() and (result.drift_m < 0.5).all()


def test_a_record_holds_what_the_policy_saw_and_did(run, built):
    seen = []
    result = run(5, record=True, progress=lambda k, n: seen.append((k, n)))
    steps = 20
    assert seen == [(k + 1, steps) for k in range(steps)]
    assert result.inputs["joint_angles"].shape == result.targets.shape == (steps, 4, 20)
    assert result.qpos.shape == (steps, 4, built.model.nq) and result.force_w.shape == (steps, 4, 3)
    assert result.alive.all()
    assert (result.targets >= np.float32(built.spec.column("lower_rad"))).all()
    assert np.array_equal(result.inputs["time"][:, 0, 0], np.float32(0.02) * np.arange(steps, dtype=np.float32))


def test_the_checkpoints_policy_runs_as_the_policy_function_itself(run, checkpoint_path, config):
    task, policy = load_policy(str(checkpoint_path))
    assert task == config and isinstance(policy, JaxBatchPolicy)
    assert np.array_equal(run(5, policy=policy).returns, run(5).returns)


def test_home_is_the_pose_of_the_shipped_task(built):
    task, policy = load_policy("home")
    assert task == load_config(shipped_config("kbot_stand.yaml")) and isinstance(policy, HoldHome)
    targets, _ = policy.step({}, policy.init(3))
    assert np.array_equal(targets, np.tile(np.float32(built.spec.column("home_rad")), (3, 1)))


def test_an_environment_of_another_size_is_refused(config, trained, environment):
    with pytest.raises(KsimError, match="got an environment of 4, expected 5"):
        evaluate(config, JaxBatchPolicy(trained.policy), episodes=5, seed=0, environment=environment)


def test_the_summary_has_the_wilson_interval():
    def of(survived: int) -> dict:
        ones = np.ones(10)
        return Evaluation(
            episodes=10, seed=0, engine="mujoco", survived=np.arange(10) < survived, returns=2 * ones,
            lengths_s=ones, drift_m=ones, tracking_m_s=0.5 * ones,
        ).summary()  # fmt: skip

    assert of(5)["tracking_mean_m_s"] == 0.5
    # 8 of 10: the textbook interval 0.490 to 0.943
    assert of(8)["survival"] == 0.8
    assert of(8)["survival_low95"] == pytest.approx(0.4902, abs=1e-3)
    assert of(8)["survival_high95"] == pytest.approx(0.9433, abs=1e-3)
    # none and all reach the end of the scale: 1 - 3.8415 / 13.8415
    assert of(0)["survival_low95"] == 0.0 and of(10)["survival_high95"] == 1.0
    assert of(10)["survival_low95"] == pytest.approx(1 - 3.8415 / 13.8415, abs=1e-3)


def test_tracking_is_the_distance_of_the_velocity_in_the_bases_own_heading_from_the_command():
    # a base that heads along world y (90 degrees of yaw) and moves 0.5 m/s along it and 0.3 m/s to its left
    half = np.sqrt(0.5)
    qpos, qvel = np.array([[7.0, 8.0, 1.0, half, 0.0, 0.0, half]]), np.array([[-0.3, 0.5, 9.0, 9.0, 9.0, 9.0]])
    for command, names, expected in (
        ([0.5, 0.3], ["vx", "vy"], 0.0),
        ([0.3, 0.5], ["vy", "vx"], 0.0),
        ([0.1, 0.0], ["vx", "vy"], 0.5),  # 0.4 and 0.3 off
        ([0.5], ["vx"], 0.3),
        ([7.0], ["yaw_rate"], np.hypot(0.5, 0.3)),
    ):
        found = _off_command(qpos, qvel, np.array([command]), names)
        assert found == pytest.approx([expected], abs=1e-12), names


def test_tracking_is_averaged_over_the_running_steps(run):
    result = run(5, record=True)
    moved = np.linalg.norm(np.diff(result.qpos[:, :, :2], axis=0), axis=-1) / 0.02
    command = result.inputs["command"][0, :, 0]  # vx alone of the test task
    # between standing still and twice the mean speed on top of the command
    assert (result.tracking_m_s > 0).all()
    assert (result.tracking_m_s <= np.abs(command) + 2.0 * moved.mean(axis=0) + 0.1).all()


def test_holding_home_falls_under_pushes_and_the_command_prints_one_json_object(ksim):
    done = ksim("eval", "home", "--episodes", "4", "--seed", "3", "--set", "episode_length_s=6", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert answer["policy"] == "home" and answer["episodes"] == 4 and answer["seed"] == 3
    assert answer["survival"] < 0.5 and 0.2 < answer["length_mean_s"] < 6.0


def test_no_episodes_are_refused(ksim):
    done = ksim("eval", "home", "--episodes", "0")
    assert done.returncode == 1 and done.stderr == "ksim eval: --episodes: got 0, expected 1 or more\n"


def test_the_pushes_of_an_evaluation_are_at_full_level(config, trained, environment):
    calm = dataclasses.replace(config, pushes=dataclasses.replace(config.pushes, curriculum=False))
    a = evaluate(config, JaxBatchPolicy(trained.policy), episodes=4, seed=1, environment=environment)
    b = evaluate(calm, JaxBatchPolicy(trained.policy), episodes=4, seed=1, environment=environment)
    assert np.array_equal(a.returns, b.returns)  # the curriculum is training's alone
