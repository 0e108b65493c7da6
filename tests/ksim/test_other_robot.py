"""Any robot folder trains with the same tasks: a few updates on one that is not the K-Bot, in both engines."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from ksim.learning import checkpoint
from ksim.learning.trainer import Trainer
from ksim.tasks import task_config
from robots import MirrorError
from robots.understood import understood
from tests.ksim.biped import write_biped
from toolkit.settings import apply_overrides

SMALL = (
    *("ppo.envs=8", "ppo.minibatches=2", "ppo.rollout_steps=6", "ppo.epochs=2", "policy.hold=[]"),
    *("policy.hidden=8", "policy.head=8", "policy.critic_hidden=8", "policy.critic_head=8"),
    *("threads=1", "episode_length_s=0.4"),
)


def small(task: str, folder, *more: str):
    config = dataclasses.replace(task_config(task), robot=str(folder))
    named = ("rewards.hips", "randomizations.play", "randomizations.compliance")  # of joints that it has not
    walking = [f"{key}=null" for key in named] if task == "kbot_walk" else ()
    return apply_overrides(config, [*SMALL, *walking, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_biped(tmp_path_factory.mktemp("robots") / "trotter")


def unevenness(actor, mirror) -> float:
    """How far the actor is from the nearest that is exactly symmetric."""
    pairs = zip(jax.tree.leaves(actor), jax.tree.leaves(actor.even(mirror)), strict=True)
    return max(float(np.abs(np.asarray(one) - np.asarray(other)).max()) for one, other in pairs)


@pytest.mark.parametrize(("task", "symmetry"), [("kbot_stand", "augment"), ("kbot_walk", "exact")])
def test_a_robot_of_another_kind_trains_a_few_updates_and_its_checkpoint_runs(folder, task, symmetry, tmp_path):
    # the walk has an estimator, beside which no normaliser fits
    own = "policy.estimator=8" if task == "kbot_walk" else "policy.normalise=true"
    trainer = Trainer(small(task, folder, f"ppo.symmetry={symmetry}", own))
    assert trainer.env.scene.joints == 6 and trainer.env.scene.feet == ("left_foot", "right_foot")
    state = trainer.start()
    before = checkpoint.model_arrays(state[0].model)
    even = [unevenness(state[0].model.actor, trainer.mirror) < 1e-5]
    for _ in range(3):
        *state, figures = trainer.iterate(*state)
    assert all(np.isfinite(v) for v in figures.values())
    after = checkpoint.model_arrays(state[0].model)
    assert [k for k in before if np.array_equal(before[k], after[k])] == []
    trainer.save_model(tmp_path / "model.ckpt", state[0], state[2])
    trained = checkpoint.load_trained(tmp_path / "model.ckpt")
    even.append(unevenness(trained.policy.actor, trainer.mirror) < 1e-5)
    assert even == [symmetry == "exact"] * 2
    assert trained.spec.robot.joint_names == ("L1", "L2", "L3", "R1", "R2", "R3")
    line = understood(trainer.env.scene.built)
    assert "free joint root" in line and "imu on body trunk" in line and "left_foot, right_foot" in line


@pytest.mark.slow
def test_on_mjx_the_rollout_and_its_update_are_one_compiled_function_that_gives_finite_figures(tmp_path):
    folder = write_biped(tmp_path / "hopper", joints=1)  # compiles in half the time
    trainer = Trainer(small("kbot_stand", folder, "engine=mjx", "ppo.envs=4", "ppo.rollout_steps=2", "ppo.epochs=1"))
    state = trainer.start()
    for _ in range(2):
        *state, figures = trainer.iterate(*state)
    assert all(np.isfinite(v) for v in figures.values())
    assert state[2].steps == 2 * 4 * 2
    assert trainer._whole._cached._cache_size() == 1, "one program, compiled once"


def test_a_word_that_is_in_no_joint_of_this_robot_is_refused_with_the_joints_that_there_are(folder):
    with pytest.raises(Exception, match="no joint's name contains 'hip_roll'; trotter has L1, L2, L3, R1, R2, R3"):
        trainer = Trainer(
            apply_overrides(
                small("kbot_walk", folder), ["rewards.hips={kind: JointDeviationPenalty, joints: [hip_roll]}"]
            )
        )
        trainer.iterate(*trainer.start())


def test_a_robot_whose_sides_differ_is_refused_with_what_trains_it_all_the_same(tmp_path):
    lame = write_biped(tmp_path / "lame")
    metadata = json.loads((lame / "metadata.json").read_text())
    metadata["joint_name_to_metadata"]["R1"]["kp"] = 80
    (lame / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(MirrorError, match=r"joint R3 .*; to train without symmetry: --set ppo.symmetry=none$"):
        Trainer(small("kbot_stand", lame, "ppo.symmetry=augment"))
    assert Trainer(small("kbot_stand", lame, "ppo.symmetry=none")).mirror is None
