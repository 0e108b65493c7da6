"""What the tests of replays share: a policy, its episode of seed 5, and that episode's log."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ksim.config import Config
from ksim.environment import Environment, make_environment
from ksim.learning import checkpoint
from ksim.learning.policy import make_model
from ksim.replay import replay_episode, write_log
from ksim.replay_log import Log, validate_log
from robots import load_robot
from tests.ksim.replay.short_task import TASK


@pytest.fixture(scope="module")
def model():
    return make_model(load_robot("kbot"), 1, TASK, key=jax.random.key(3))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """`written(config, change)`: a checkpoint of the model on a task; `change` may alter its arrays in place."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(config: Config = TASK, change=lambda arrays: None):
        robot = load_robot("kbot")
        arrays = {name: np.array(value) for name, value in checkpoint.model_arrays(model).items()}
        change(arrays)
        path = folder / f"{len(list(folder.iterdir()))}.ckpt"
        about = {"robot": robot.to_json(), "robot_digest": robot.digest, "critic": 1}
        checkpoint.write(path, {"config": config.to_dict(), **about}, arrays)
        return path

    return write


@pytest.fixture(scope="module")
def path(written):
    return written()


@pytest.fixture(scope="module")
def trained(path):
    return checkpoint.load_trained(path)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment(TASK, 1, "mujoco")


@pytest.fixture(scope="module")
def events(path, environment):
    """The episode of seed 5."""
    return replay_episode(5, path, environment=environment)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(events)`: their log, written and read back."""
    folder = tmp_path_factory.mktemp("logs")

    def save(events) -> Log:
        path = folder / f"{len(list(folder.iterdir()))}.jsonl"
        write_log(events, path)
        return validate_log(path)

    return save


@pytest.fixture(scope="module")
def log(events, saved):
    return saved(events)


@pytest.fixture(scope="module")
def played(saved, path):
    """`played(config)`: the log of seed 5 on a changed task."""
    return lambda config: saved(replay_episode(5, path, config=config))
