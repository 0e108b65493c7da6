"""A small untrained policy on the K-Bot, its export, and ways to damage a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import onnx
import pytest

from export import convert
from export.command import Exported, export_checkpoint
from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig
from ksim.environment import Environment, make_environment
from ksim.learning import checkpoint
from ksim.learning.policy import make_model
from ksim.tasks.stand import stand
from robots import Bundle, load_robot
from tests.environments import python_with

# Short episodes, and commands that are not all zero, so that every weight matters.
RANGES = {"xvel": (-0.5, 1.0), "yvel": (-0.3, 0.3), "yawrate": (-1.0, 1.0)}
CONFIG = dataclasses.replace(
    stand(),
    episode_length_s=0.4,
    commands={name: UniformCommand(name=name, range=span) for name, span in RANGES.items()},
    policy=PolicyConfig(hidden=16, layers=2, head=16, critic_hidden=4, critic_head=4, smoothing=0.2),
)

KINFER = "0.6.1"


def write_untrained(path: Path, config: Config) -> Path:
    """A checkpoint of an untrained model whose actions are not small."""
    robot = load_robot(config.robot)
    model = make_model(robot, 5, config, key=jax.random.key(3))
    where = lambda m: m.actor.net.output_layer.weight  # noqa: E731
    model = eqx.tree_at(where, model, 100.0 * where(model))
    meta = {"config": config.to_dict(), "robot": robot.to_json(), "robot_digest": robot.digest, "critic": 5}
    checkpoint.write(path, meta, checkpoint.model_arrays(model))
    return path


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory) -> Path:
    """A checkpoint of an untrained model whose actions are not small."""
    return write_untrained(tmp_path_factory.mktemp("checkpoint") / "model.ckpt", CONFIG)


@pytest.fixture
def untrained(tmp_path_factory) -> Callable[..., Path]:
    """`untrained(*names)`: a checkpoint of a policy with commands of these names."""

    def make(*names: str) -> Path:
        commands = {name: UniformCommand(name=name, range=(-0.5, 0.5)) for name in names}
        folder = tmp_path_factory.mktemp("untrained")
        return write_untrained(folder / "model.ckpt", dataclasses.replace(CONFIG, commands=commands))

    return make


@pytest.fixture(scope="session")
def kinfer_python() -> Path:
    """The interpreter of an environment that has kinfer."""
    return python_with("kinfer", KINFER, "--only-binary", ":all:")


@pytest.fixture(scope="session")
def trained(checkpoint_path) -> checkpoint.Trained:
    """The checkpoint's policy."""
    return checkpoint.load_trained(checkpoint_path)


@pytest.fixture(scope="session")
def bundle(trained) -> Bundle:
    """Its export."""
    return convert(trained.policy.step, trained.policy.init_carry(), trained.spec)


@pytest.fixture
def damage() -> Callable[..., Bundle]:
    """`damage(bundle, change)`: the bundle with `change(model)` done to its step graph (or `member`)."""

    def apply(bundle: Bundle, change: Callable[[onnx.ModelProto], None], member: str = "step_fn") -> Bundle:
        model = onnx.load_model_from_string(getattr(bundle, member))
        change(model)
        return dataclasses.replace(bundle, **{member: model.SerializeToString(deterministic=True)})

    return apply


@pytest.fixture(scope="session")
def exported_small(checkpoint_path, _one_environment, tmp_path_factory) -> Exported:
    """The whole export, once, on few episodes and steps: files on disk and the report."""
    path = tmp_path_factory.mktemp("exported") / "policy.kinfer"
    return export_checkpoint(checkpoint_path, path, episodes=3, steps=500, margin_episodes=0)


@pytest.fixture(scope="session", autouse=True)
def _one_environment():
    """Compile the simulation of each configuration once for all tests."""
    made: dict[tuple, Environment] = {}

    def once(config: Config, envs: int, engine: str | None = None) -> Environment:
        key = (config.digest, envs, engine)
        if key not in made:
            made[key] = make_environment(config, envs, engine)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.validate.make_environment", once)
        yield
