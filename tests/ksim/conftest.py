"""What the tests of the training core share: one built robot, one small environment, one small model.

Compiling is most of their time: compiled programs are kept in pytest's cache folder, for child processes too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim.config import Config, PolicyConfig, PpoConfig, RunConfig
from ksim.environment import Environment
from ksim.evaluate import load_trained
from ksim.learning import checkpoint
from ksim.learning.policy import Model, Policy, make_model, make_policy
from ksim.randomization import nominal
from ksim.tasks import make_environment
from ksim.types import EnvState, Event, PhysicsParams, PhysicsState, Sensors
from robots.model import BuiltModel, build_model

ROOT = Path(__file__).parents[2]
ENVS = 4

# Short episodes, a tiny two-layer network, commands that are not all zero.
CONFIG = Config(
    episode_length_s=0.4,
    threads=1,
    commands={"vx": (-0.5, 1.0), "yaw_rate": (-1.0, 1.0)},
    policy=PolicyConfig(hidden=8, layers=2, head=8, critic_hidden=8, critic_head=8, smoothing=0.2),
    ppo=PpoConfig(envs=ENVS, rollout_steps=4, epochs=1, minibatches=2),
    run=RunConfig(total_steps=ENVS * 4 * 20, save_every_updates=2),
)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(request: pytest.FixtureRequest) -> str:
    """The folder of compiled programs."""
    folder = str(request.config.cache.mkdir("jax"))  # type: ignore[union-attr]
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return folder


@pytest.fixture(scope="session")
def config() -> Config:
    return CONFIG


@pytest.fixture(scope="session")
def built() -> BuiltModel:
    return build_model("kbot", shapes=False)


@pytest.fixture(scope="session")
def environment() -> Environment:
    """Four environments of CONFIG on MuJoCo C."""
    return make_environment(CONFIG, ENVS, "mujoco")


@pytest.fixture(scope="session")
def model(built: BuiltModel) -> Model:
    """An untrained model of CONFIG."""
    make = jax.jit(lambda key: make_model(built.spec, 2, 5, CONFIG.policy, key=key))
    return make(jax.random.key(3))


@pytest.fixture(scope="session")
def policy(model: Model, built: BuiltModel) -> Policy:
    return make_policy(model.actor, built.spec, CONFIG)


@pytest.fixture(scope="session")
def checkpoint_path(model: Model, built: BuiltModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the untrained model."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    meta = {"config": CONFIG.to_dict(), "robot": built.spec.to_json(), "privileged": 5}
    checkpoint.write(path, meta, checkpoint.model_arrays(model))
    return path


@pytest.fixture(scope="session")
def trained(checkpoint_path: Path) -> checkpoint.Trained:
    return load_trained(checkpoint_path)


@pytest.fixture(scope="session")
def batched(built: BuiltModel) -> Callable[..., PhysicsParams]:
    """`batched(envs, **changes)`: nominal parameters of `envs` environments, numpy."""

    def make(envs: int, **changes: Any) -> PhysicsParams:
        one = nominal(built)
        params = jax.tree.map(lambda v: np.broadcast_to(np.asarray(v), (envs, *v.shape)).copy(), one)
        return params._replace(**changes)

    return make


@pytest.fixture
def physics(built: BuiltModel) -> PhysicsState:
    """One environment at home, upright, at rest, with empty delay lines."""
    home = jnp.asarray(built.spec.column("home_rad"), jnp.float32)
    zeros = jnp.zeros(20)
    sensors = Sensors(home, zeros, jnp.asarray([0.0, 0.0, -9.81]), jnp.zeros(3), jnp.asarray([0.0, 0.0, 9.81]))
    return PhysicsState(
        qpos=jnp.asarray(built.home_qpos, jnp.float32),
        qvel=jnp.zeros(26),
        joint_position=home,
        joint_velocity=zeros,
        torque=zeros,
        sensors=sensors,
        foot_force=jnp.asarray([170.0, 180.0]),
        command_line=jnp.tile(home, (6, 1)),
        sensor_line=jnp.tile(sensors.flat(jnp), (6, 1)),
    )


@pytest.fixture
def env_state(built: BuiltModel) -> EnvState:
    """One environment before its first step."""
    home = jnp.asarray(built.spec.column("home_rad"), jnp.float32)
    event = Event(force_w=jnp.zeros(3), left_s=jnp.zeros(()), next_s=jnp.ones(()))
    zeros = jnp.zeros(20)
    return EnvState(
        key=jax.random.key(0),
        step=jnp.asarray(3),
        command=jnp.asarray([0.5, -0.2]),
        target=home,
        action=zeros,
        action_before=zeros,
        event=event,
    )


@pytest.fixture(scope="session")
def ksim(compiled_programs: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`ksim("train", ...)`: the command in a process of its own."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": compiled_programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }

    def run(*argv: object, env: dict[str, str] | None = None, wait: bool = True) -> Any:
        command = [sys.executable, "-m", "ksim.cli", *map(str, argv)]
        options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | variables | (env or {}), "text": True}
        if wait:
            return subprocess.run(command, capture_output=True, timeout=600, **options)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    return run
