"""Teachers: policies that see what no robot gives, and those that learn from one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from export.command import export_checkpoint
from ksim.curriculum import LinearScale
from ksim.environment import make_environment
from ksim.errors import CheckpointError, ConfigError, KsimError
from ksim.evaluate import evaluate, load_policy, start_key
from ksim.learning import checkpoint, ppo
from ksim.learning.trainer import Trainer
from ksim.noise import GaussianNoise
from ksim.train import TrainResult, train
from ksim.train_command import _tell
from tests.ksim.few_terms import few_terms
from toolkit.errors import SettingsError

SEES = ("joint_position", "gravity", "command", "last_action")


@pytest.fixture(scope="module")
def task(config):
    """A task of few terms whose critic sees what a teacher may see."""
    critic = {name: config.critic[name] for name in ("joint_position", "drawn", "gravity", "command", "last_action")}
    run = dataclasses.replace(config.run, total_steps=config.ppo.envs * config.ppo.rollout_steps * 2)
    return few_terms(config, critic=critic, randomizations={"link_mass": config.randomizations["link_mass"]}, run=run)


@pytest.fixture(scope="module")
def taught(task, tmp_path_factory):
    """(the task of a teacher, its checkpoint)."""
    policy = dataclasses.replace(task.policy, network="mlp", sees=SEES)
    ppo = dataclasses.replace(task.ppo, symmetry="augment")
    teaching = dataclasses.replace(task, policy=policy, ppo=ppo)
    return teaching, train(teaching, tmp_path_factory.mktemp("runs") / "teacher").checkpoint


def student(task, path, **more):
    return dataclasses.replace(task, ppo=dataclasses.replace(task.ppo, teacher=str(path), **more))


def test_a_teacher_sees_the_terms_that_it_names_in_their_order(taught):
    teaching, _ = taught
    trainer = Trainer(teaching)
    learner, batch, _ = trainer.start()
    level = jnp.zeros(())
    _, seen = trainer.env.look(batch.physics, batch.params, batch.env, level)
    *_, kept = trainer.tick(
        learner.model, batch.physics, batch.params, batch.env, learner.carry, jax.random.key(0), level
    )
    sizes = {"joint_position": 20, "drawn": trainer.env.critic_sizes["drawn"], "gravity": 3, "command": 2}
    ends = np.cumsum([*sizes.values(), trainer.env.scene.actions])
    parts = dict(zip((*sizes, "last_action"), np.split(np.asarray(seen.critic), ends[:-1], axis=1), strict=True))
    np.testing.assert_array_equal(kept.observation, np.concatenate([parts[name] for name in SEES], axis=1))
    assert trainer.mirror is not None and len(trainer.mirror.offset) == kept.observation.shape[1]


def test_no_robot_can_run_a_teacher_and_its_file_says_so(taught):
    _, path = taught
    with pytest.raises(CheckpointError, match=r"model.ckpt: a teacher: it sees joint_position, .*, which no robot"):
        checkpoint.load_trained(path, teachers=False)
    with pytest.raises(CheckpointError, match="a teacher"):
        export_checkpoint(path, path.with_suffix(".kinfer"))


def test_a_teacher_is_evaluated_where_its_sight_is_given(taught, tmp_path):
    teaching, path = taught
    config, policy = load_policy(str(path))
    assert config == teaching
    done = evaluate(config, policy, episodes=2, seed=1)
    assert done.lengths_s.min() > 0.0
    with pytest.raises(
        KsimError, match=r"policy\.sees: got gravity, expected what it was trained with: joint_position, gravity"
    ):
        load_policy(str(path), overrides=["policy.sees=[gravity]"])


@pytest.mark.parametrize("symmetry", ["none", "augment", "exact"])
def test_a_student_comes_nearer_to_what_its_teacher_does(task, taught, tmp_path, symmetry):
    run = dataclasses.replace(task.run, total_steps=task.ppo.envs * task.ppo.rollout_steps * 30)
    fixed = {"learning_rate": 0.01, "learning_rate_min": 0.01, "learning_rate_max": 0.01}
    learning = dataclasses.replace(student(task, taught[1], symmetry=symmetry, epochs=2, **fixed), run=run)
    out = tmp_path / "student"
    train(learning, out)
    rows = [json.loads(line)["distillation_error"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert 0.0 < np.mean(rows[-3:]) < 0.5 * np.mean(rows[:3])
    meta, _ = checkpoint.read(out / "last.ckpt")
    assert meta["taught_by"] == checkpoint.Start.read(taught[1]).origin
    # it sees what a robot gives, and its file needs no teacher
    assert checkpoint.load_trained(out / "model.ckpt").spec.inputs


def test_a_policy_of_a_robots_inputs_may_teach_a_network_of_another_kind(task, tmp_path):
    first = train(task, tmp_path / "first").checkpoint
    smaller = dataclasses.replace(task, policy=dataclasses.replace(task.policy, network="mlp", layers=1, history=2))
    train(student(smaller, first), tmp_path / "second")
    assert checkpoint.load_trained(tmp_path / "second" / "model.ckpt").config.policy.network == "mlp"


def test_what_the_teacher_did_is_what_its_network_says_step_by_step(task, taught):
    trainer = Trainer(student(task, taught[1]))
    teacher = trainer.teacher
    learner, batch, progress = trainer.start()
    learner, *_ = trainer.iterate(learner, batch, progress)
    assert teacher.sees == SEES and learner.teacher_state.shape == (task.ppo.envs, teacher.policy.actor.state_size)
    seen = jax.random.normal(jax.random.key(1), (3, 2, teacher.policy.actor.net.inputs))
    whole, _ = teacher.policy.actor.unroll(seen, jnp.zeros((2, teacher.policy.actor.state_size)), jnp.zeros((3, 2)))
    one, *_ = jax.vmap(teacher.policy.actor)(seen[2], jnp.zeros((2, teacher.policy.actor.state_size)))
    np.testing.assert_allclose(whole[2], one, atol=1e-6)


def test_what_a_teacher_sees_of_a_robots_inputs_is_as_late_and_has_no_noise(task):
    loud = {
        name: dataclasses.replace(term, noise=GaussianNoise(std=0.3)) if name != "command" else term
        for name, term in task.observations.items()
    }
    slow = {**task.channels, "imu": dataclasses.replace(task.channels["imu"], rate_hz=(17.0, 20.0), scale=1.0)}
    quiet = {name: dataclasses.replace(term, noise=None) for name, term in loud.items()}

    def watched(observations):
        env = make_environment(dataclasses.replace(task, channels=slow, observations=observations), 4, "mujoco")
        look, noiseless, send = jax.jit(env.look), jax.jit(env.noiseless), jax.jit(env.drive)
        level, rows = jnp.ones(()), []
        batch, _ = env.reset(start_key(3))
        physics, params, now = batch.physics, batch.params, batch.env
        home = jnp.asarray(np.tile(env.scene.home_rad, (4, 1)))
        for _ in range(12):
            clean = noiseless(physics, params, now, level)
            now, seen = look(physics, params, now, level)
            rows.append((seen.inputs, clean))
            now, drive = send(physics, params, now, jnp.zeros((4, env.scene.actions)), home, level)
            physics = env.engine.step(physics, drive, params)
        return rows

    for noisy, silent in zip(watched(loud), watched(quiet), strict=True):
        for name in task.observations:
            np.testing.assert_allclose(noisy[1][name], silent[0][name], atol=1e-5, err_msg=name)
        assert np.abs(noisy[0]["gyroscope"] - noisy[1]["gyroscope"]).max() > 0.1


def batch_of(model, config, key):
    """Three steps of two environments, made up; the teacher did something else."""
    keys = iter(jax.random.split(key, 8))
    seen, size = model.actor.net.inputs, model.actor.log_std.shape[0]
    rest = {"resets": jnp.zeros((3, 2)), "mirror_state": ()}
    states = {f"{k}_state": jnp.zeros((2, getattr(model, k).net.state_size)) for k in ("actor", "critic")}
    made = {
        "observation": jax.random.normal(next(keys), (3, 2, seen)),
        "critic": jax.random.normal(next(keys), (3, 2, 5)),
        "action": jax.random.normal(next(keys), (3, 2, size)),
        "log_prob": -jnp.abs(jax.random.normal(next(keys), (3, 2))),
        "advantage": jax.random.normal(next(keys), (3, 2)),
        "target": jnp.zeros((3, 2)),
        "taught": jax.random.normal(next(keys), (3, 2, size)),
    }
    return ppo.Batch(**made, **rest, **states)


def test_the_share_of_distillation_is_of_the_actors_loss_and_may_follow_the_level(config, model):
    batch = batch_of(model, config, jax.random.key(5))

    def losses(share, level):
        told = dataclasses.replace(config.ppo, teacher="x", distillation=share, value_coefficient=0.0)
        total, figures = ppo.loss(model, batch, told, level=level)
        return float(total), float(figures["distillation_error"])

    (alone, error), (none, _) = losses(1.0, 0.0), losses(0.0, 0.0)
    plain, _ = ppo.loss(model, batch, dataclasses.replace(config.ppo, value_coefficient=0.0), level=0.0)
    mean, *_ = model.actor.unroll(batch.observation, batch.actor_state, batch.resets)
    apart = (np.asarray(mean) - np.asarray(batch.taught)) / np.exp(np.asarray(model.actor.log_std))
    assert alone == pytest.approx(error) == pytest.approx(np.mean(0.5 * np.sum(apart**2, axis=-1)), rel=1e-5)
    assert none == pytest.approx(float(plain)) and alone != pytest.approx(none)
    falling = LinearScale(low=1.0, high=0.0)
    assert losses(falling, 0.0)[0] == pytest.approx(alone)
    assert losses(falling, 0.25)[0] == pytest.approx(0.75 * alone + 0.25 * none)
    assert losses(falling, 1.0)[0] == pytest.approx(none)


def test_a_run_goes_on_with_its_own_teacher_alone(task, taught, tmp_path):
    out = tmp_path / "run"
    learning = student(task, taught[1])
    whole = train(learning, tmp_path / "whole")
    half = dataclasses.replace(learning.run, total_steps=learning.run.total_steps // 2)
    train(dataclasses.replace(learning, run=half), out)
    train(learning, out, resume=True)
    assert (out / "model.ckpt").read_bytes() == whole.checkpoint.read_bytes()
    meta, arrays = checkpoint.read(taught[1])
    name = "model.actor.log_std"
    other = tmp_path / "other.ckpt"
    checkpoint.write(other, {k: v for k, v in meta.items() if k != "format"}, {**arrays, name: arrays[name] + 0.1})
    longer = dataclasses.replace(learning.run, total_steps=learning.run.total_steps * 2)
    swapped = dataclasses.replace(student(task, other), run=longer)
    trainer = Trainer(swapped)
    with pytest.raises(CheckpointError, match=r"its teacher was another than .*other\.ckpt"):
        trainer.restore(out / "last.ckpt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": {"action_scale": 0.5}}, r"policy.action_scale: 1.0; this run has 0.5"),
        ({"policy": {"hold": ("elbow",)}}, r"policy.hold: .*; this run has \('elbow',\)"),
        ({"critic": {"gravity": None}}, r"critic.gravity: ProjectedGravity.*; this run has None"),
    ],
)
def test_a_teacher_whose_actions_or_sight_mean_something_else_is_refused(task, taught, change, said):
    policy = dataclasses.replace(task.policy, **change.get("policy", {}))
    gone = change.get("critic", {})
    critic = {name: term for name, term in task.critic.items() if name not in gone}
    with pytest.raises(CheckpointError, match=said):
        Trainer(student(dataclasses.replace(task, policy=policy, critic=critic), taught[1]))


def test_what_cannot_be_seen_is_refused_by_its_name(task):
    with pytest.raises(ConfigError, match=r"policy.sees: got 'foot_force', expected terms of the critic \(joint_pos"):
        dataclasses.replace(task, policy=dataclasses.replace(task.policy, sees=("foot_force",)))
    with pytest.raises(SettingsError, match=r"sees: got \['gravity', 'gravity'\], expected each term once"):
        dataclasses.replace(task.policy, sees=("gravity", "gravity"))


def test_a_term_without_a_mirror_image_is_refused_where_one_is_needed(task):
    policy = dataclasses.replace(task.policy, sees=("drawn",))
    learner = dataclasses.replace(task.ppo, symmetry="augment")
    with pytest.raises(ConfigError, match="RandomizationObservation: its mirror image is not known"):
        Trainer(dataclasses.replace(task, policy=policy, ppo=learner))
    assert Trainer(dataclasses.replace(task, policy=policy)).mirror is None


def test_a_teacher_starts_from_another_of_the_same_sight_alone(task, taught, tmp_path):
    teaching, path = taught
    train(teaching, tmp_path / "on", init=path)
    policy = dataclasses.replace(teaching.policy, sees=(*SEES[1:], SEES[0]))
    with pytest.raises(CheckpointError, match=r"its policy.sees: .*; they must be the same to start"):
        train(dataclasses.replace(teaching, policy=policy), tmp_path / "other", init=path)


@pytest.mark.parametrize(("teacher", "then"), [(True, "train --set ppo.teacher=m.ckpt"), (False, "export m.ckpt -o")])
def test_a_finished_run_says_what_can_be_done_with_it(capsys, teacher, then):
    done = TrainResult(checkpoint=Path("m.ckpt"), updates=1, steps=8, seconds=6.0, survival=0.5, stopped="total_steps")
    _tell(done, Path("out"), as_json=False, teacher=teacher)
    said = capsys.readouterr().out
    assert then in said and ("export" in said) != teacher
