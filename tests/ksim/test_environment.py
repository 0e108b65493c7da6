"""The environment: what a row of a trajectory is, whose random numbers are whose, and that a crate does not count.

Most of it runs a wheel with a constant inertia, because it compiles quickly and each number is known by hand.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.actuators import TorqueActuators
from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig
from ksim.curriculum import FixedCurriculum, LinearScale
from ksim.environment import RENEWED_AT_ONCE, Environment, make_environment
from ksim.events import ForcePush, Stall
from ksim.noise import GaussianNoise
from ksim.observation import (
    CommandObservation,
    JointPositionObservation,
    JointVelocityObservation,
    LastActionObservation,
    TimeObservation,
)
from ksim.randomization import KdRandomization, KpRandomization
from ksim.resets import JointPositionReset, JointVelocityReset
from ksim.rewards import AliveReward, JointVelocityPenalty
from ksim.tasks.stand import stand
from ksim.types import Action, Trajectory

ENVS, STEPS = 3, 25
INERTIA, DT, PERIOD_S = 0.05, 0.005, 0.02
# Control steps of an episode.
LENGTH = 10


@pytest.fixture(scope="session")
def task(wheel: Path) -> Config:
    """The wheel told torques, with a command that changes every two control steps and episodes of ten."""
    return Config(
        robot=str(wheel),
        threads=1,
        episode_length_s=LENGTH * PERIOD_S,
        actuators=TorqueActuators(),
        observations={
            "command": CommandObservation(),
            "time": TimeObservation(),
            "joint_angles": JointPositionObservation(noise=GaussianNoise(std=0.01)),
        },
        critic={"action": LastActionObservation(), "speed": JointVelocityObservation()},
        commands={"xvel": UniformCommand(name="xvel", range=(-1.0, 1.0), interval_s=(0.04, 0.04))},
        rewards={"alive": AliveReward(weight=2.0), "speed": JointVelocityPenalty(weight=-3.0)},
        randomizations={"kp": KpRandomization(factor=(0.5, 2.0))},
        resets={"joint_velocity": JointVelocityReset(width_rad_s=0.5)},
    )


@pytest.fixture(scope="session")
def wheels(task: Config) -> Environment:
    return make_environment(task, ENVS, "mujoco")


def rollout(env: Environment, seed: int = 0) -> tuple[Trajectory, list[dict[str, np.ndarray]], np.ndarray, np.ndarray]:
    """(rows (T, E, ...), what was seen before each action, the critic's, rewards (T, E)) of torques that vary."""
    batch, seen = env.reset(jax.random.key(seed))
    settle, rows, inputs, critic, rewards = jax.jit(env.settle), [], [], [], []
    for t in range(STEPS):
        raw = jnp.asarray(0.01 * (1 + t) * np.arange(1, ENVS + 1)[:, None], jnp.float32)
        inputs.append(jax.tree.map(np.asarray, seen.inputs))
        critic.append(np.asarray(seen.critic))
        # the halves of a control step, as training takes them
        after, drive = env._drive(batch.physics, batch.params, batch.env, raw, raw, 1.0)
        physics = env.engine.step(batch.physics, drive, batch.params)
        env_state, ended = settle(physics, batch.params, after, 1.0)
        rows.append(env.row(physics, batch.env, Action(raw, raw), ended, 1.0))
        physics, params, env_state = env.renew_ended(physics, batch.params, env_state, ended.done, 1.0)
        env_state, seen = env._look(physics, params, env_state, 1.0)
        batch = batch._replace(physics=physics, params=params, env=env_state)
    whole = jax.tree.map(lambda *v: np.stack([np.asarray(x) for x in v]), *rows)
    total, _, _ = env.rewards(jax.tree.map(jnp.asarray, whole), env.initial_rewards())
    rewards = np.asarray(total)
    return whole, inputs, np.stack(critic), rewards


@pytest.fixture(scope="session")
def rolled(wheels: Environment) -> tuple[Trajectory, list[dict[str, np.ndarray]], np.ndarray, np.ndarray]:
    return rollout(wheels)


def test_the_action_of_a_row_moves_the_state_of_the_same_row(rolled):
    trajectory, *_ = rolled
    speed, first = trajectory.physics.joint_velocity[..., 0], trajectory.first
    gained = 4 * DT * trajectory.action.target[..., 0] / INERTIA
    for t in range(1, STEPS):
        for e in range(ENVS):
            if not first[t, e]:
                assert speed[t, e] - speed[t - 1, e] == pytest.approx(gained[t, e], rel=2e-3), (t, e)


def test_command_and_time_of_a_row_are_what_the_policy_saw(rolled):
    trajectory, inputs, *_ = rolled
    for t in range(STEPS):
        assert np.array_equal(trajectory.command[t], inputs[t]["command"])
        assert np.array_equal(trajectory.time_s[t], inputs[t]["time"][:, 0])
    # drawn anew every second step, within an episode: 0, 1 | 2, 3 | ...
    command = trajectory.command[:LENGTH, 0, 0]
    assert np.array_equal(command[0::2], command[1::2]) and len(set(command.tolist())) == LENGTH // 2
    assert np.allclose(trajectory.time_s[:LENGTH, 0], PERIOD_S * np.arange(LENGTH), atol=1e-6)


def test_a_row_that_ends_an_episode_holds_the_state_before_the_next_one_starts(rolled):
    trajectory, inputs, critic, _ = rolled
    ends = [LENGTH - 1, 2 * LENGTH - 1]
    assert [np.flatnonzero(trajectory.done[:, e]).tolist() for e in range(ENVS)] == [ends] * ENVS
    assert np.array_equal(trajectory.timeout, trajectory.done) and not trajectory.fell.any()
    assert np.flatnonzero(trajectory.first[:, 0]).tolist() == [0, LENGTH, 2 * LENGTH]
    speed = trajectory.physics.joint_velocity[..., 0]
    for end in ends:
        # the last step turned it faster still, and what is seen next is a new start at rest or nearly
        assert (speed[end] > speed[end - 1]).all()
        assert (np.abs(critic[end + 1, :, 1]) <= 0.5).all() and not critic[end + 1, :, 0].any()
        assert (inputs[end + 1]["time"] == 0.0).all()


def test_the_state_of_a_row_is_what_is_seen_before_the_next_action(rolled):
    trajectory, _, critic, _ = rolled
    speed, raw = trajectory.physics.joint_velocity[..., 0], trajectory.action.raw[..., 0]
    for t in range(STEPS - 1):
        if not trajectory.done[t].any():
            assert np.array_equal(critic[t + 1], np.stack([raw[t], speed[t]], axis=1))


def test_rewards_are_weights_times_figures_times_the_control_period(rolled):
    trajectory, *_, rewards = rolled
    speed = trajectory.physics.joint_velocity[..., 0]
    assert np.allclose(rewards, PERIOD_S * (2.0 - 3.0 * speed**2), rtol=1e-5, atol=1e-6)


def test_a_step_gives_what_its_halves_give(wheels, rolled):
    trajectory, _, critic, rewards = rolled
    batch, seen = wheels.reset(jax.random.key(0))
    for t in range(STEPS):
        assert np.array_equal(seen.critic, critic[t])
        batch, seen, outcome = wheels.step(batch, trajectory.action.raw[t], trajectory.action.target[t])
        assert np.array_equal(outcome.done, trajectory.done[t]) and np.array_equal(outcome.fell, trajectory.fell[t])
        assert np.allclose(outcome.reward, rewards[t], rtol=1e-6)


def parts(env: Environment, seed: int) -> dict[str, Any]:
    """What an environment draws: start, parameters, commands, and noise of two steps."""
    batch, seen = env.reset(jax.random.key(seed))
    zero = jnp.zeros((ENVS, 1))
    out: dict[str, Any] = {"kp": batch.params.motor.kp, "qpos": batch.physics.qpos, "qvel": batch.physics.qvel}
    for t in range(4):
        out |= {f"command {t}": batch.env.command[:, :1], f"noise {t}": seen.inputs["joint_angles"]}
        batch, seen, _ = env.step(batch, zero, zero)
    return {name: np.asarray(value) for name, value in out.items()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(wheels):
    first, again, other = parts(wheels, 1), parts(wheels, 1), parts(wheels, 2)
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in again.items()}
    for name in ("kp", "qvel", "command 0", "command 2", "noise 0", "noise 3"):
        assert (first[name] != other[name]).all(), name


def test_a_new_term_in_each_room_changes_no_draw_of_the_others(task, wheels):
    more = dataclasses.replace(
        task,
        # before the terms that were there, so that their places change too
        observations={"speed": JointVelocityObservation(noise=GaussianNoise(std=0.1)), **task.observations},
        critic={"late": TimeObservation(noise=GaussianNoise(std=0.1)), **task.critic},
        commands={**task.commands, "wave": UniformCommand(name="wave", range=(0.0, 1.0), interval_s=(0.02, 0.02))},
        randomizations={"kd": KdRandomization(factor=(0.5, 2.0)), **task.randomizations},
        resets={"joint_position": JointPositionReset(width_rad=0.1), **task.resets},
        events={"stalls": Stall(), "pushes": ForcePush(force_n=5.0)},
        rewards={"again": AliveReward(), **task.rewards},
    )
    old, new = parts(wheels, 1), parts(make_environment(more, ENVS, "mujoco"), 1)
    for name in ("kp", "qvel", *(f"command {t}" for t in range(4))):
        assert old[name].tobytes() == new[name].tobytes(), name
    assert not np.array_equal(old["qpos"], new["qpos"])  # the new reset does something
    # the joint starts elsewhere, so the noise is what is left: the same to a rounding of the sum
    moved = new["qpos"] - old["qpos"]
    assert np.allclose(new["noise 0"] - moved, old["noise 0"], atol=1e-6)


LEG = """<body name="{0}_thigh" pos="0 {1} 0"><joint name="{0}_hip" axis="0 1 0" range="-1.5 1.5" armature="0.02"/>
    <geom type="capsule" size="0.02" fromto="0 0 0 0 0 -0.2" mass="1"/>
    <body name="{0}_foot" pos="0 0 -0.2"><joint name="{0}_knee" axis="0 1 0" range="0 2" armature="0.02"/>
    <geom type="box" size="0.06 0.03 0.1" pos="0 0 -0.1" mass="0.5"/></body></body>"""
TRUNK = """<body name="trunk" pos="0 0 0.5"><freejoint name="root"/><site name="imu"/>
    <geom type="box" size="0.1 0.1 0.05" mass="3"/>{}</body>""".format(LEG.format("l", 0.08) + LEG.format("r", -0.08))
CRATE = """<body name="crate" pos="90 0 50"><freejoint/><geom type="box" size="0.1 0.1 0.1" mass="2"/></body>"""
JOINTS = ("l_hip", "l_knee", "r_hip", "r_knee")
METADATA = {
    "joint_name_to_metadata": {
        name: {"id": i + 1, "kp": 40, "kd": 2, "actuator_type": "m"} for i, name in enumerate(JOINTS)
    },
    "actuator_type_to_metadata": {"m": {"max_torque": 40, "max_velocity": 30}},
    "control_frequency": 50,
}


def walker(path: Path, bodies: str, home: str) -> Path:
    """A robot whose keyframe is `home`."""
    path.mkdir()
    key = f'<keyframe><key name="home" qpos="{home} -0.4 0.8 -0.4 0.8"/></keyframe>'
    text = f'<mujoco><compiler angle="radian"/><worldbody>{bodies}</worldbody>{key}</mujoco>'
    (path / "robot.xml").write_text(text)
    (path / "metadata.json").write_text(json.dumps(METADATA))
    return path


@pytest.mark.slow
def test_a_crate_before_the_robot_changes_no_observation_reward_or_end(tmp_path):
    base = "0 0 0.5 1 0 0 0"
    alone = walker(tmp_path / "alone", TRUNK, base)
    after = walker(tmp_path / "after", CRATE + TRUNK, f"90 0 50 1 0 0 0 {base}")
    pushes = ForcePush(force_n=30.0, interval_s=(0.1, 0.1))
    config = dataclasses.replace(stand(), threads=1, episode_length_s=0.5, events={"pushes": pushes})
    config = dataclasses.replace(config, policy=PolicyConfig())
    results = []
    for robot in (alone, after):
        env = make_environment(dataclasses.replace(config, robot=str(robot)), 2, "mujoco")
        batch, seen = env.reset(jax.random.key(3))
        home, rows = env.scene.home_rad, []
        assert env.scene.base_qpos == (7 if robot == after else 0)
        for t in range(30):
            target = np.tile(home + np.float32(0.05) * np.sin(np.float32(0.3) * t + np.arange(4)), (2, 1))
            values = {**seen.inputs, "critic": seen.critic}
            batch, seen, outcome = env.step(batch, np.zeros((2, 4), np.float32), target.astype(np.float32))
            values |= {"reward": outcome.reward, "done": outcome.done, "fell": outcome.fell}
            rows.append(jax.tree.map(np.asarray, values))
        results.append(rows)
        assert any(row["done"].any() for row in rows)  # a renewal too finds its base
    for t, (one, other) in enumerate(zip(*results, strict=True)):
        for name, value in one.items():
            assert np.allclose(value, other[name], rtol=1e-4, atol=1e-4), (t, name)


def test_many_that_end_at_once_are_renewed_as_all_would_be(config):
    env = make_environment(config, 20)
    batch, _ = env.reset(jax.random.key(4))
    mask = np.arange(20) % 3 != 0  # 13: more than one call of RENEWED_AT_ONCE
    assert mask.sum() > RENEWED_AT_ONCE
    level = jnp.ones(())
    whole_env, whole_params, qpos, _ = env._renew(batch.env, batch.params, jnp.asarray(mask), level, jnp.asarray(False))
    physics, params, renewed = env.renew_ended(batch.physics, batch.params, batch.env, mask, level)
    for a, b in zip(jax.tree.leaves((whole_env, whole_params)), jax.tree.leaves((renewed, params)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        # programs of two widths, as tests compile them, may round in another order
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(physics.qpos)[mask], np.asarray(qpos)[mask], rtol=1e-5, atol=1e-5)
    # and the engine's own parameters are the new ones
    wide = env.engine._numpy(params).wide
    np.testing.assert_array_equal(wide.motor.kp.astype(np.float32), np.asarray(params.motor.kp))


def test_who_looks_again_before_the_first_step_sees_what_the_sensors_have_sent(environment):
    """Training does: the first rows of a run would be zeros until each sensor's next packet."""
    batch, first = environment.reset(jax.random.key(4))
    _, again = environment.look(batch.physics, batch.params, batch.env, jnp.ones(()))
    for name in ("joint_angles", "projected_gravity"):
        assert np.abs(again.inputs[name]).max() > 0.1
        np.testing.assert_allclose(again.inputs[name], first.inputs[name], atol=1.0)


def test_an_easier_episode_is_drawn_and_measured_as_at_a_level_of_its_own(task: Config):
    grows = LinearScale(low=0.0, high=1.0)
    harder = dataclasses.replace(
        task,
        curriculum=FixedCurriculum(easier=0.75),
        observations=task.observations
        | {"joint_angles": JointPositionObservation(noise=GaussianNoise(std=0.01, scale=grows))},
        randomizations={
            "kp": KpRandomization(factor=(0.5, 2.0), scale=grows),
            "kd": KdRandomization(factor=(0.5, 2.0), scale=grows),
        },
    )
    # as ksim eval, and as ksim train
    plain, easier = (make_environment(harder, 64, "mujoco", training=training) for training in (False, True))
    drawn = []
    for env in (plain, easier):
        batch, seen = env.reset(jax.random.key(1))
        apart = {k: np.asarray(v)[:, 0] for k, v in batch.params.drawn.items()}
        drawn.append(apart | {"noise": seen.inputs["joint_angles"][:, 0] - batch.physics.qpos[:, 0]})
    shares = {name: drawn[1][name] / drawn[0][name] for name in drawn[0]}
    # of one episode all have the same share, and no two episodes have
    np.testing.assert_allclose(shares["kd"], shares["kp"], rtol=1e-3)
    np.testing.assert_allclose(shares["noise"], shares["kp"], rtol=1e-2)
    assert 0.25 <= shares["kp"].min() < 0.35 and 0.9 < shares["kp"].max() <= 1.0
    assert shares["kp"].mean() == pytest.approx(0.625, abs=0.1)
