"""Curriculum: what moves the level, and what follows it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import curriculum as c
from ksim import events, noise, rewards
from ksim.channels import Channel
from ksim.commands import UniformCommand
from ksim.config import Config
from ksim.load import from_dict
from ksim.randomization import KpRandomization
from ksim.resets import JointPositionReset, Pose
from ksim.tasks import task_config
from toolkit.errors import SettingsError

HALF = c.LinearScale(low=0.5, high=1.0)


def moved(term, level=0.5, **success):
    return term.next_level(level, c.Success(**success))


def test_a_fixed_curriculum_stays_at_its_level():
    assert c.FixedCurriculum().first_level == 1.0
    assert moved(c.FixedCurriculum(first_level=0.3), survival=1.0) == 0.3


def test_survival_moves_the_level_up_and_down_and_rests_between():
    term = c.SurvivalCurriculum(rise_above=0.75, fall_below=0.4, step=0.1)
    assert moved(term, survival=0.76) == pytest.approx(0.6)
    assert moved(term, survival=0.39) == pytest.approx(0.4)
    assert moved(term, survival=0.75) == moved(term, survival=0.4) == 0.5
    assert moved(term, 0.95, survival=1.0) == 1.0 and moved(term, 0.05, survival=0.0) == 0.0


def test_survival_alone_moves_no_level_where_a_return_is_asked_for_too():
    term = c.SurvivalCurriculum(rise_above=0.75, fall_below=0.4, return_above=10.0, step=0.1)
    assert moved(term, survival=0.9, length_share=1.0, episode_return=10.0) == 0.5  # it stands, and that is all
    assert moved(term, survival=0.9, length_share=1.0, episode_return=10.1) == pytest.approx(0.6)
    assert moved(term, survival=0.3, length_share=1.0, episode_return=20.0) == pytest.approx(0.4)


def test_the_return_that_is_asked_for_is_that_of_an_episode_that_lasts():
    term = c.SurvivalCurriculum(rise_above=0.75, fall_below=0.4, return_above=10.0, step=0.1)
    assert moved(term, survival=0.8, length_share=0.8, episode_return=8.1) == pytest.approx(0.6)
    assert moved(term, survival=0.8, length_share=0.8, episode_return=7.9) == 0.5
    assert moved(term, survival=0.8, length_share=0.0, episode_return=0.0) == 0.5


def test_linear_is_in_proportion_to_the_steps_done_whatever_the_robot_does():
    term = c.LinearCurriculum(first_level=0.2, steps=1000)
    assert moved(term, steps=0) == pytest.approx(0.2)
    assert moved(term, steps=500, survival=0.0) == pytest.approx(0.6)
    assert moved(term, steps=2000) == 1.0


def test_episode_length_moves_the_level():
    term = c.EpisodeLengthCurriculum(rise_above=0.8, fall_below=0.3, step=0.1)
    assert moved(term, length_share=0.9, survival=0.0) == pytest.approx(0.6)
    assert moved(term, length_share=0.2) == pytest.approx(0.4)
    assert moved(term, length_share=0.5) == 0.5


def test_distance_moves_the_level():
    term = c.DistanceCurriculum(rise_above_m=3.0, fall_below_m=1.0, step=0.1)
    assert moved(term, distance_m=3.5) == pytest.approx(0.6)
    assert moved(term, distance_m=0.5) == pytest.approx(0.4)
    assert moved(term, distance_m=2.0) == 0.5


def test_saturation_steps_up_when_it_is_reached_and_never_down():
    term = c.SaturationCurriculum(first_level=0.2, saturated=0.9, levels=4)
    assert moved(term, 0.2, survival=0.9) == pytest.approx(0.4)
    assert moved(term, 0.4, survival=0.89) == moved(term, 0.4, survival=0.0) == 0.4
    level = 0.2
    for _ in range(6):
        level = moved(term, level, survival=1.0)
    assert level == 1.0


def test_a_linear_scale_goes_from_low_to_high_between_its_levels():
    scale = c.LinearScale(low=2.0, high=4.0, begin=0.25, end=0.75)
    for level, value in ((0.0, 2.0), (0.25, 2.0), (0.5, 3.0), (0.75, 4.0), (1.0, 4.0)):
        assert float(scale(level)) == pytest.approx(value)
    with pytest.raises(SettingsError, match="begin"):
        c.LinearScale(begin=0.5, end=0.5)


def test_a_step_scale_switches_at_its_level_and_a_constant_one_never():
    scale = c.StepScale(before=0.1, after=0.9, at=0.5)
    assert float(scale(0.49)) == pytest.approx(0.1) and float(scale(0.5)) == pytest.approx(0.9)
    assert float(c.ConstantScale(value=3.0)(0.0)) == float(c.ConstantScale(value=3.0)(1.0)) == 3.0


def test_a_number_is_a_scale_that_follows_nothing():
    assert float(c.factor(0.25, 0.0)) == float(c.factor(0.25, 1.0)) == 0.25
    assert float(c.factor(HALF, 0.0)) == 0.5


# What follows the level: each at level 0 has half of what it has at level 1.


def of_noise(level):
    return noise.GaussianNoise(std=1.0, scale=HALF).disturb(
        jnp.zeros(5), noise.Draw(jax.random.key(0), jax.random.key(1), level)
    )


def of_command(level):
    return UniformCommand(name="xvel", range=(0.0, 2.0), scale=HALF).sample(jax.random.key(0), level)


def of_latency(level):
    return (
        Channel(latency_s=(0.02, 0.04), jitter_s=0.01, loss=0.5, scale=HALF)
        .draw(jax.random.key(0), level)["sampling"]
        .latency_s
    )


@pytest.mark.parametrize("follows", [of_noise, of_command, of_latency], ids=["noise", "command", "latency"])
def test_noise_commands_and_latency_follow_the_level(follows):
    full = np.asarray(follows(1.0))
    assert np.abs(full).min() > 0
    np.testing.assert_allclose(follows(0.0), 0.5 * full, rtol=1e-6)


def test_randomisation_follows_the_level(scene):
    term = KpRandomization(scale=HALF)
    full, half = (np.asarray(term.draw(jax.random.key(0), scene, level)) for level in (1.0, 0.0))
    np.testing.assert_allclose(half - 1.0, 0.5 * (full - 1.0), atol=1e-6)


def test_resets_follow_the_level(scene):
    built = scene.built
    pose = Pose(jnp.asarray(built.home_qpos, jnp.float32), jnp.zeros(built.model.nv))
    term = JointPositionReset(width_rad=0.02, scale=HALF)
    hip = scene.joint_names.index("dof_left_hip_yaw_03")
    full, half = (
        float(term.reset(pose, scene, jax.random.key(0), level).qpos[built.qpos_ids][hip]) for level in (1.0, 0.0)
    )
    assert half == pytest.approx(0.5 * full, rel=1e-4) and full != 0


def test_pushes_follow_the_level(posed):
    term = events.ForcePush(scale=HALF)
    begun = {"wrench_w": jnp.zeros(6), "left_s": jnp.zeros(()), "next_s": jnp.zeros(())}
    full, half = (np.asarray(term.happen(posed(level=jnp.asarray(v)), begun)[0].wrench_w) for v in (1.0, 0.0))
    assert full.any()
    np.testing.assert_allclose(half, 0.5 * full, rtol=1e-6)


def test_the_weight_of_a_penalty_follows_the_level_and_is_written_to_a_file():
    term = rewards.FallPenalty(weight=c.LinearScale(low=-1.0, high=-3.0))
    assert float(c.factor(term.weight, 0.5)) == -2.0
    config = dataclasses.replace(task_config("kbot_stand"), rewards={"fall": term})
    assert Config.from_dict(config.to_dict()) == config
    plain = from_dict({"task": "kbot_stand", "rewards": {"fall": {"weight": {"kind": "LinearScale", "low": -1.0}}}})
    assert plain.rewards["fall"].weight == c.LinearScale(low=-1.0)


def test_a_task_at_a_level_has_the_numbers_of_that_level_however_deep_they_stand():
    task = task_config("kbot_walk")
    half = c.at_level(task, 0.5)
    assert "LinearScale" in str(task.to_dict()) and "Scale" not in str(half.to_dict())
    pushes = task.events["pushes"].scale
    assert half.events["pushes"].scale == pytest.approx(float(pushes(0.5))) != pytest.approx(float(pushes(1.0)))
    assert half.observations["gyroscope"].noise.scale == pytest.approx(0.6)
    chained = noise.ChainedNoise(parts=(noise.GaussianNoise(std=1.0, scale=HALF),))
    assert c.at_level(chained, 0.0).parts[0].scale == 0.5
    assert task.events["pushes"].scale is pushes, "what was given stays"
    calm = c.FixedCurriculum()
    assert c.at_level(calm, 0.5) is calm
