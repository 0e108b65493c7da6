"""Every term there is keeps the promises of its room: jit, vmap, shape, finite, repeatable, plain data."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from ksim.actuators import Actuators
from ksim.channels import Channel
from ksim.commands import Command
from ksim.curriculum import Curriculum, Scale, Success
from ksim.engine import SIGNALS
from ksim.events import NOTHING, Event
from ksim.noise import Draw, EpisodeBias, GaussianNoise, Noise
from ksim.observation import DelayedObservation, Observation, StatefulObservation
from ksim.randomization import Randomization, nominal
from ksim.resets import Pose, Reset
from ksim.rewards import Reward, StatefulReward
from ksim.scene import Scene
from ksim.tasks import TASKS, task_config
from ksim.term import Term
from ksim.terminations import Termination
from ksim.types import Action, PhysicsState, Reading, State, Trajectory
from robots import delay, motor
from robots.model import build_model
from toolkit.settings import KIND, Settings

ENVS, STEPS, ROWS = 2, 5, 4
ROOMS = (Observation, Reward, Termination, Reset, Randomization, Event, Command, Channel, Noise, Scale, Curriculum)
# Classes that need values to be made, by name.
EXAMPLES: dict[str, dict[str, Any]] = {
    "SensorObservation": {"sensor": "touch_left_foot"},
    "DelayedSensorObservation": {"sensor": "com_velocity"},
    "NamedCommandObservation": {"name": "xvel"},
    "IllegalContactTermination": {"touch": ("touch_left_foot",)},
    "UniformCommand": {"name": "xvel", "range": (0.1, 0.5)},
    "ChainedNoise": {"parts": (GaussianNoise(std=0.1), EpisodeBias(width=0.2))},
    "PosesReset": {"path": "poses.csv"},
    "JointTrackingReward": {"joints": {"dof_left_elbow_02": "basepitch"}},
}
DRAWN = sorted({name for task in TASKS for name in task_config(task).randomizations})
COMMANDS = ("xvel", "yvel", "yawrate", "baseheight", "baseroll", "basepitch")


def concrete(base: type) -> list[type]:
    """Every class of the product under a base that can be made."""
    found, todo = [], [base]
    while todo:
        one = todo.pop()
        todo += one.__subclasses__()
        if not getattr(one, "__abstractmethods__", None) and one.__module__.startswith("ksim"):
            found.append(one)
    return sorted(set(found), key=lambda one: one.__name__)


def every_term() -> list[Any]:
    """One of each class, and every term of every task."""
    terms = [(one.__name__, one(**EXAMPLES.get(one.__name__, {}))) for room in ROOMS for one in concrete(room)]
    for task in TASKS:
        config = task_config(task)
        for field in dataclasses.fields(config):
            room = getattr(config, field.name)
            named = room if isinstance(room, dict) else {"": room}
            terms += [
                (f"{task}-{field.name}-{name}", term)
                for name, term in named.items()
                if isinstance(term, (*ROOMS, Term)) and not isinstance(term, Actuators)
            ]
    once = {}
    for name, term in terms:
        once.setdefault((type(term), term), name)
    return [pytest.param(term, id=name) for (_, term), name in once.items()]


TERMS = every_term()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what terms read from files."""
    folder = tmp_path_factory.mktemp("terms")
    (folder / "poses.csv").write_text("dof_left_knee_04\n0.8\n1.0\n")
    return folder


@pytest.fixture(scope="module")
def stage():
    """The K-Bot with all that any term asks of a model."""
    terms = [p.values[0] for p in TERMS if isinstance(p.values[0], Term)]
    sensors = tuple(dict.fromkeys(name for term in terms for name in term.sensors))
    scene = Scene(
        built=build_model("kbot", shapes=False, sensors=sensors), command_names=COMMANDS, moved=tuple(range(10))
    )
    fields = tuple(dict.fromkeys(name for term in terms for name in term.fields))
    signals = [*SIGNALS, *(t.signal for t in terms if isinstance(t, DelayedObservation) and t.signal not in SIGNALS)]
    return scene, fields, signals


def physics_of(stage, seed: int) -> PhysicsState:
    """A robot that falls and turns, with sensors as MuJoCo C has them."""
    scene, fields, signals = stage
    built, random = scene.built, np.random.default_rng(seed)
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    data.qpos[built.qpos_ids] += random.uniform(-0.02, 0.02, scene.joints)
    data.qpos[built.base_quat] = (0.98, 0.1, -0.15, 0.08)  # leans: upright, a slope of leaning would be 0
    data.qpos[built.base_quat] /= np.linalg.norm(data.qpos[built.base_quat])
    data.qvel[:] = random.uniform(-0.5, 0.5, built.model.nv)
    mujoco.mj_forward(built.model, data)
    params = nominal(scene, fields)
    position = jnp.asarray(data.qpos[built.qpos_ids], jnp.float32)
    sizes = {
        "joint_position": scene.joints,
        "joint_velocity": scene.joints,
        "gravity": 3,
        "gyro": 3,
        "accelerometer": 3,
    }
    return PhysicsState(
        qpos=jnp.asarray(data.qpos, jnp.float32),
        qvel=jnp.asarray(data.qvel, jnp.float32),
        torque=jnp.asarray(random.uniform(-1, 1, scene.joints), jnp.float32),
        sensordata=jnp.asarray(data.sensordata, jnp.float32),
        motor=motor.rest(params.motor, position, jnp),
        history={
            name: delay.fill(jnp.asarray(random.uniform(-1, 1, sizes.get(name, 3)), jnp.float32), ROWS, jnp)
            for name in signals
        },
        internal=(),
        scene=scene,
    )


def state_of(stage, seed: int) -> State:
    """One environment at one instant, by a seed."""
    scene, fields, _ = stage
    random = np.random.default_rng(seed)
    reading = Reading(jnp.asarray(seed), jnp.asarray(0.004, jnp.float32), jnp.asarray(True))
    return State(
        physics=physics_of(stage, seed),
        params=nominal(scene, fields)._replace(
            drawn={name: jnp.asarray(random.uniform(-1, 1, 3), jnp.float32) for name in DRAWN}
        ),
        command=jnp.asarray(random.uniform(-1, 1, len(COMMANDS)), jnp.float32),
        action=jnp.asarray(random.uniform(-1, 1, scene.actions), jnp.float32),
        target=jnp.asarray(scene.home_rad),
        time_s=jnp.asarray(0.5, jnp.float32),
        phase=jnp.asarray(1.0, jnp.float32),
        moving=jnp.ones((), bool),
        channels={"joints": reading, "imu": reading},
        events={"pushes": {"wrench_w": jnp.asarray(random.uniform(-9, 9, 6), jnp.float32)}},
        level=jnp.asarray(0.5, jnp.float32),
        key=jax.random.key(seed),
        episode_key=jax.random.key(100 + seed),
    )


def trajectory_of(stage, seed: int) -> Trajectory:
    """Steps of one environment, with an episode that ends and one that begins."""
    scene, _, _ = stage
    random = np.random.default_rng(seed)
    rows = [physics_of(stage, 10 * seed + i).public() for i in range(STEPS)]
    ends = jnp.arange(STEPS) == 2
    return Trajectory(
        physics=jax.tree.map(lambda *v: jnp.stack(v), *rows),
        command=jnp.asarray(random.uniform(-1, 1, (STEPS, len(COMMANDS))), jnp.float32),
        action=Action(
            jnp.asarray(random.uniform(-1, 1, (STEPS, scene.actions)), jnp.float32),
            jnp.tile(jnp.asarray(scene.home_rad), (STEPS, 1)),
        ),
        phase=jnp.asarray(random.uniform(0, 6, STEPS), jnp.float32),
        moving=jnp.arange(STEPS) % 2 == 0,
        first=jnp.arange(STEPS) % 3 == 0,
        time_s=jnp.arange(STEPS) * jnp.float32(0.02),
        done=ends,
        timeout=jnp.zeros(STEPS, bool),
        fell=ends,
        level=jnp.asarray(0.5, jnp.float32),
    )


@pytest.fixture(scope="module")
def two_states(stage):
    return jax.tree.map(lambda *v: jnp.stack(v), *(state_of(stage, i) for i in range(ENVS)))


@pytest.fixture(scope="module")
def two_trajectories(stage):
    return jax.tree.map(lambda *v: jnp.stack(v), *(trajectory_of(stage, i) for i in range(ENVS)))


def check(function, batch, shape=None):
    """Under jit and vmap: the shape; finite; the same twice, and the same as one at a time without jit."""
    both = jax.jit(jax.vmap(function))
    first, again = both(batch), both(batch)
    alone = function(jax.tree.map(lambda v: v[0], batch))
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, alone)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            continue
        a, b, c = np.asarray(a), np.asarray(b), np.asarray(c)
        assert a.shape == (ENVS, *c.shape)
        assert a.tobytes() == b.tobytes()
        assert not np.isnan(a.astype(float)).any() and not np.isneginf(a.astype(float)).any()  # inf: never
        np.testing.assert_allclose(a[0].astype(float), c.astype(float), rtol=1e-3, atol=1e-4)
    if shape is not None:
        assert jnp.shape(jax.tree.leaves(first)[0]) == (ENVS, *shape)
    return first


def same_carry(before, after):
    """A memory keeps its structure, its shapes and its kinds of numbers, so that a scan can carry it."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert jnp.shape(a) == jnp.shape(b) and jnp.asarray(a).dtype == jnp.asarray(b).dtype


def of_observation(term, stage, states, trajectories):
    if isinstance(term, StatefulObservation):
        carries = jax.vmap(term.initial_carry)(states)
        values, later = check(lambda pair: term.observe_stateful(*pair), (states, carries))
        same_carry(carries, later)
    else:
        values = check(term.seen, states)
    assert jnp.ndim(values) == 2 and values.dtype == jnp.float32


def of_reward(term, stage, states, trajectories):
    if isinstance(term, StatefulReward):
        start = term.initial_carry(stage[0])
        carries = jax.tree.map(lambda v: jnp.broadcast_to(v, (ENVS, *jnp.shape(v))), start)
        values, later = check(lambda pair: term.get_reward_stateful(*pair), (trajectories, carries))
        same_carry(carries, later)
        assert values.shape == (ENVS, STEPS)
    else:
        check(term.get_reward, trajectories, (STEPS,))


def of_termination(term, stage, states, trajectories):
    ends = check(term.terminate, states, ())
    assert ends.dtype == bool


def of_reset(term, stage, states, trajectories):
    scene = stage[0]
    home = Pose(jnp.asarray(scene.built.home_qpos, jnp.float32), jnp.zeros(scene.built.model.nv))
    keys = jax.random.split(jax.random.key(0), ENVS)
    after = check(lambda key: term.reset(home, scene, key, 0.5), keys)
    same_carry(home, jax.tree.map(lambda v: v[0], after))


def of_randomization(term, stage, states, trajectories):
    scene, fields, _ = stage
    params = nominal(scene, fields)
    keys = jax.random.split(jax.random.key(0), ENVS)

    def draw(key):
        drawn = term.draw(key, scene, 0.5)
        return drawn, term.shown(drawn), term.apply(params, drawn, scene)

    drawn, shown, after = check(draw, keys)
    assert drawn.ndim == 2 and drawn.shape == shown.shape and jnp.abs(shown).max() <= 1.0 + 1e-5
    same_carry(params, jax.tree.map(lambda v: v[0], after))


def of_event(term, stage, states, trajectories):
    carries = jax.vmap(term.initial_carry)(states.key)
    effect, later = check(lambda pair: term.happen(*pair), (states, carries))
    same_carry(carries, later)
    assert carries["wrench_w"].shape == (ENVS, 6)
    for mine, nothing in zip(effect, NOTHING, strict=True):
        assert jnp.broadcast_shapes(jnp.shape(mine)[1:], jnp.shape(nothing)) == jnp.shape(nothing)


def of_command(term, stage, states, trajectories):
    carries = check(lambda key: term.initial_carry(key, 0.5), states.key)
    later = check(lambda pair: term.next_command(*pair), (states, carries))
    same_carry(carries, later)
    assert carries["value"].shape == (ENVS, len(term.specs))
    low, high = (np.asarray([getattr(s, side) for s in term.specs]) for side in ("low", "high"))
    assert (carries["value"] >= np.minimum(low, 0)).all() and (carries["value"] <= np.maximum(high, 0)).all()


def of_channel(term, stage, states, trajectories):
    carries = check(lambda key: term.draw(key, 0.5), states.key)
    reading, later = check(lambda carry: term.read(carry, 7, 0.02), carries)
    same_carry(carries, later)
    assert (reading.age_s >= 0).all()


def of_noise(term, stage, states, trajectories):
    value = jnp.arange(5.0)
    check(lambda keys: term.disturb(value, Draw(*keys, 0.5)), (states.key, states.episode_key), (5,))


def of_scale(term, stage, states, trajectories):
    check(term, jnp.asarray([0.25, 0.75]), ())


def of_curriculum(term, stage, states, trajectories):
    for survival in (0.0, 0.5, 1.0):
        level = term.next_level(0.5, Success(survival=survival))
        assert 0.0 <= level <= 1.0 and level == term.next_level(0.5, Success(survival=survival))


CHECKS = {
    **{Observation: of_observation, Reward: of_reward, Termination: of_termination, Reset: of_reset},
    **{Randomization: of_randomization, Event: of_event, Command: of_command, Channel: of_channel},
    **{Noise: of_noise, Scale: of_scale, Curriculum: of_curriculum},
}


@pytest.mark.parametrize("term", TERMS)
def test_a_term_keeps_the_promises_of_its_room(term, stage, two_states, two_trajectories, place, monkeypatch):
    monkeypatch.chdir(place)
    room = next(base for base in ROOMS if isinstance(term, base))
    CHECKS[room](term, stage, two_states, two_trajectories)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_plain_data_and_comes_back_equal(term):
    room = next(base for base in ROOMS if isinstance(term, base))
    assert room.from_dict({KIND: type(term).__name__, **term.to_dict()}) == term
    assert hash(term) == hash(dataclasses.replace(term)) and isinstance(term, Settings)


@pytest.mark.parametrize("kind", [k for k in concrete(Reward) if "exp_kernel" in k.get_reward.__code__.co_names])
def test_a_reward_with_a_kernel_is_differentiable_in_the_physics(kind, two_trajectories):
    one = jax.tree.map(lambda v: v[0], two_trajectories)
    term = kind(**EXAMPLES.get(kind.__name__, {}))

    def total(qpos, qvel, sensordata):
        physics = dataclasses.replace(one.physics, qpos=qpos, qvel=qvel, sensordata=sensordata)
        return jnp.sum(term.get_reward(dataclasses.replace(one, physics=physics)))

    slopes = jax.grad(total, argnums=(0, 1, 2))(one.physics.qpos, one.physics.qvel, one.physics.sensordata)
    assert all(np.isfinite(s).all() for s in slopes) and any(np.abs(s).max() > 0 for s in slopes)


def test_the_walk_finds_every_room_and_would_find_a_new_term():
    named = {room: {one.__name__ for one in concrete(room)} for room in ROOMS}
    assert all(named.values())
    assert "BaseHeightObservation" in named[Observation] and "AliveReward" in named[Reward]
    assert set(EXAMPLES) <= {name for names in named.values() for name in names}
