"""What the tests of the training core share: a built robot, a small environment, a small model, values by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig, PpoConfig, RunConfig
from ksim.environment import Environment, make_environment, term_needs
from ksim.evaluate import load_trained
from ksim.learning import checkpoint
from ksim.learning.policy import Model, Policy, make_model, make_policy
from ksim.randomization import nominal
from ksim.scene import Scene
from ksim.tasks.stand import stand
from ksim.types import Action, PhysicsParams, PhysicsState, Reading, State, Trajectory
from robots import delay, motor
from robots.model import BuiltModel, build_model

ROOT = Path(__file__).parents[2]
ENVS = 4
# Rows of the histories of `physics`: 25 ms at 5 ms a step.
PAST = 6

# Short episodes, a tiny two-layer network, commands that are not all zero.
CONFIG = dataclasses.replace(
    stand(),
    episode_length_s=0.4,
    threads=1,
    commands={
        "xvel": UniformCommand(name="xvel", range=(-0.5, 1.0)),
        "yawrate": UniformCommand(name="yawrate", range=(-1.0, 1.0)),
    },
    policy=PolicyConfig(hidden=8, layers=2, head=8, critic_hidden=8, critic_head=8, smoothing=0.2),
    ppo=PpoConfig(envs=ENVS, rollout_steps=4, epochs=1, minibatches=2),
    run=RunConfig(total_steps=ENVS * 4 * 20, save_every_updates=2),
)


@pytest.fixture(scope="session")
def config() -> Config:
    """The standing task, small."""
    return CONFIG


@pytest.fixture(scope="session")
def built() -> BuiltModel:
    """The K-Bot, compiled."""
    return build_model("kbot", CONFIG.physics.timestep_s, shapes=False)


# A wheel about a vertical axis, so that gravity does nothing: what it does is known by hand. Its inertia is 0.03 of the
# body and 0.02 of the rotor [kg m^2].
WHEEL = """<mujoco><compiler angle="radian"/><worldbody><body name="stand"><site name="imu"/>
  <geom type="box" size="0.1 0.1 0.1" mass="1"/><body name="wheel" pos="0 0 0.5">
  <inertial pos="0 0 0" mass="1" diaginertia="0.02 0.02 0.03"/>
  <joint name="spin" axis="0 0 1" range="-9 9" armature="0.02"/>
  <geom type="cylinder" size="0.1 0.02" contype="0" conaffinity="0"/></body></body></worldbody></mujoco>"""
ABOUT_WHEEL = {
    "joint_name_to_metadata": {"spin": {"id": 1, "kp": "8", "kd": "0.5", "actuator_type": "m"}},
    "actuator_type_to_metadata": {"m": {"max_torque": "4", "max_velocity": "50"}},
    "control_frequency": "50",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a robot of one joint, kp 8, kd 0.5, at most 4 N m, which is fixed to the world."""
    folder = tmp_path_factory.mktemp("robots") / "wheel"
    folder.mkdir()
    (folder / "robot.xml").write_text(WHEEL)
    (folder / "metadata.json").write_text(json.dumps(ABOUT_WHEEL))
    return folder


@pytest.fixture(scope="session")
def scene(environment: Environment) -> Scene:
    """What is static in `environment`."""
    return environment.scene


@pytest.fixture(scope="session")
def environment() -> Environment:
    """Four environments of CONFIG on MuJoCo C."""
    return make_environment(CONFIG, ENVS, "mujoco")


@pytest.fixture(scope="session")
def model(built: BuiltModel) -> Model:
    """An untrained model of CONFIG, whose critic sees five numbers."""
    return eqx.filter_jit(make_model)(built.spec, 5, CONFIG, key=jax.random.key(3))


@pytest.fixture(scope="session")
def policy(model: Model, built: BuiltModel) -> Policy:
    """The policy function of `model`."""
    return make_policy(model.actor, built.spec, CONFIG)


@pytest.fixture(scope="session")
def checkpoint_path(model: Model, built: BuiltModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the untrained model."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    meta = {
        "config": CONFIG.to_dict(),
        "robot": built.spec.to_json(),
        "robot_digest": built.spec.digest,
        "critic": 5,
    }
    checkpoint.write(path, meta, checkpoint.model_arrays(model))
    return path


@pytest.fixture(scope="session")
def trained(checkpoint_path: Path) -> checkpoint.Trained:
    """The untrained model, as read from its checkpoint."""
    return load_trained(checkpoint_path)


@pytest.fixture(scope="session")
def batched(scene: Scene) -> Callable[..., PhysicsParams]:
    """`batched(envs, **changes)`: the robot as described in `envs` environments, numpy, with CONFIG's model fields."""

    def make(envs: int, **changes: Any) -> PhysicsParams:
        one = nominal(scene, term_needs(CONFIG)[1])
        params = jax.tree.map(lambda v: np.broadcast_to(np.asarray(v), (envs, *v.shape)).copy(), one)
        return params._replace(**changes)

    return make


@pytest.fixture(scope="session")
def sensed() -> Callable[..., PhysicsState]:
    """`sensed(physics, imu_gyro=[1, 0, 0])`: the state with other values of sensors, by their names."""

    def change(physics: PhysicsState, **values: Any) -> PhysicsState:
        data = physics.sensordata
        for name, value in values.items():
            data = data.at[..., physics.scene.sensor(name)].set(jnp.asarray(value, jnp.float32))
        return dataclasses.replace(physics, sensordata=data)

    return change


@pytest.fixture(scope="session")
def physics(scene: Scene, sensed: Callable[..., PhysicsState]) -> PhysicsState:
    """One environment at home, upright, at rest, standing on both feet; dataclasses.replace makes others of it."""
    home, joints = jnp.asarray(scene.home_rad), jnp.zeros(scene.joints)
    gravity, zeros = jnp.asarray([0.0, 0.0, -9.81]), jnp.zeros(3)
    signals = {
        "joint_position": home,
        "joint_velocity": joints,
        "gravity": gravity,
        "gyro": zeros,
        "accelerometer": -gravity,
    }
    state = PhysicsState(
        qpos=jnp.asarray(scene.built.home_qpos, jnp.float32),
        qvel=jnp.zeros(scene.built.model.nv),
        torque=joints,
        sensordata=jnp.zeros(scene.built.model.nsensordata),
        motor=motor.rest(nominal(scene, ()).motor, home, jnp),
        history={name: delay.fill(value, PAST, jnp) for name, value in signals.items()},
        internal=(),
        scene=scene,
    )
    left, right = scene.feet
    feet = {f"touch_{left}": [170.0], f"touch_{right}": [180.0]}
    return sensed(state, imu_quat=[1.0, 0.0, 0.0, 0.0], imu_accelerometer=-gravity, **feet)


@pytest.fixture(scope="session")
def state(physics: PhysicsState) -> State:
    """`physics` three steps after the start, asked for xvel 0.5 and yawrate -0.2; channels bring what is new."""
    scene = physics.scene
    now = Reading(packet=jnp.asarray(3), age_s=jnp.zeros(()), fresh=jnp.ones((), bool))
    return State(
        physics=physics,
        params=nominal(scene, ()),
        command=jnp.asarray([0.5, -0.2]),
        action=jnp.zeros(scene.actions),
        target=jnp.asarray(scene.home_rad),
        time_s=jnp.asarray(0.06),
        phase=jnp.zeros(()),
        moving=jnp.ones((), bool),
        channels={name: now for name in CONFIG.channels},
        events={"pushes": {"wrench_w": jnp.zeros(6), "left_s": jnp.zeros(()), "next_s": jnp.ones(())}},
        level=jnp.ones(()),
        key=jax.random.key(0),
        episode_key=jax.random.key(1),
    )


@pytest.fixture(scope="session")
def trajectory(physics: PhysicsState) -> Callable[..., Trajectory]:
    """`trajectory(states, **changes)`: a trajectory by hand.

    `states` is what each step led to, or a number of steps at home. Without changes it is an episode's beginning,
    the command is xvel 0.5 and yawrate -0.2, the action zero, and nothing ends. A change is a field of Trajectory,
    (T, ...).
    """
    scene = physics.scene

    def make(states: int | list[PhysicsState] = 1, **changes: Any) -> Trajectory:
        rows = [physics] * states if isinstance(states, int) else states
        steps, nothing = len(rows), jnp.zeros(len(rows), bool)
        values: dict[str, Any] = {
            "physics": jax.tree.map(lambda *v: jnp.stack(v), *[row.public() for row in rows]),
            "command": jnp.tile(jnp.asarray([0.5, -0.2]), (steps, 1)),
            "action": Action(jnp.zeros((steps, scene.actions)), jnp.tile(jnp.asarray(scene.home_rad), (steps, 1))),
            "phase": jnp.zeros(steps),
            "moving": jnp.ones(steps, bool),
            "first": jnp.arange(steps) == 0,
            "time_s": jnp.arange(steps) * jnp.float32(scene.control_period_s),
            "done": nothing,
            "timeout": nothing,
            "fell": nothing,
            "level": jnp.ones(()),
        }
        return Trajectory(**(values | changes))

    return make


@pytest.fixture(scope="session")
def ksim() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`ksim("train", ...)`: the command in a process of its own."""

    def run(*argv: object, env: dict[str, str] | None = None, wait: bool = True) -> Any:
        command = [sys.executable, "-m", "ksim.cli", *map(str, argv)]
        options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | (env or {}), "text": True}
        if wait:
            return subprocess.run(command, capture_output=True, timeout=600, **options)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    return run
