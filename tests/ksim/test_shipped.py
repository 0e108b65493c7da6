"""The policy that ships: it is what its files say, and it does what the README says."""

from pathlib import Path

import jax
import numpy as np
import pytest

from deploy.bundle.session import OnnxPolicy
from ksim.environment import Environment, make_environment
from ksim.evaluate import HoldHome, evaluate, load_policy
from ksim.events import ForcePush
from ksim.learning import checkpoint
from ksim.learning.checkpoint import load_trained
from ksim.load import load_config
from robots import load_robot, read_bundle
from toolkit.files import shipped_policy

CHECKPOINT, BUNDLE = shipped_policy("stand", ".ckpt"), shipped_policy("stand", ".kinfer")
WALK = shipped_policy("walk", ".ckpt")
# what the first version of this toolkit shipped
FIRST = Path(__file__).parents[1] / "first_version"


@pytest.mark.parametrize("path", [CHECKPOINT, WALK], ids=["stand", "walk"])
def test_a_shipped_bundle_is_the_shipped_checkpoint_on_the_shipped_robot(path: Path) -> None:
    trained, bundle = load_trained(path), read_bundle(path.with_suffix(".kinfer"))
    assert bundle.spec is not None
    assert bundle.spec.weights_digest == trained.spec.weights_digest
    assert bundle.spec.config_digest == trained.spec.config_digest
    assert bundle.spec.robot == load_robot("kbot")
    assert bundle.spec.proofs and not bundle.spec.proofs["failures"], "a shipped bundle is a proven one"
    assert bundle.spec.margins is not None


@pytest.mark.parametrize("path", sorted(CHECKPOINT.parent.glob("*.ckpt")), ids=lambda path: path.name)
def test_a_shipped_checkpoint_is_the_networks_alone(path: Path) -> None:
    _, arrays = checkpoint.read(path)
    assert {name.split(".")[0] for name in arrays} <= {"model", "learner"}, "no environments, no physics"
    assert all(name.startswith("learner.scale") for name in arrays if name.startswith("learner"))


@pytest.mark.parametrize("path", [CHECKPOINT, WALK, FIRST / "kbot_stand.ckpt"], ids=["stand", "walk", "first version"])
def test_a_shipped_checkpoint_still_acts_as_the_bundle_that_was_made_of_it(path: Path) -> None:
    # the bundle holds the actions of the day of its export
    trained, bundle = load_trained(path), OnnxPolicy(read_bundle(path.with_suffix(".kinfer")))
    rng, home = np.random.default_rng(0), np.float32(trained.spec.robot.column("home_rad"))
    step, carry = jax.jit(lambda inputs, carry: trained.policy.step(inputs, carry)), trained.policy.init_carry()
    for _ in range(100):
        inputs = {
            "joint_angles": home + rng.normal(scale=0.2, size=20).astype(np.float32),
            "joint_angular_velocities": rng.normal(scale=2.0, size=20).astype(np.float32),
            "projected_gravity": np.float32([0, 0, -9.8]) + rng.normal(size=3).astype(np.float32),
            "gyroscope": rng.normal(size=3).astype(np.float32),
            "command": np.zeros(3, np.float32),
        }
        targets, carry = step(inputs, carry)
        np.testing.assert_allclose(bundle.step(inputs), targets, atol=1e-5)
        np.testing.assert_allclose(bundle.carry, carry, atol=1e-5)


def test_the_shipped_checkpoint_was_trained_on_todays_task_with_the_names_of_the_field() -> None:
    trained = load_trained(CHECKPOINT)
    assert [c.name for c in trained.config.command_specs] == ["xvel", "yvel", "yawrate"]
    assert trained.config == load_config(CHECKPOINT.with_suffix(".yaml"))
    assert {"stiction", "play"} <= set(trained.config.randomizations)
    assert trained.config.channels["imu"].rate_hz[0] > 0, "an IMU with a clock of its own"


@pytest.fixture(scope="module")
def hundred() -> Environment:
    """A hundred environments of the bundle's task."""
    return make_environment(load_policy(str(BUNDLE))[0], 100, "mujoco")


@pytest.mark.slow
def test_the_shipped_bundle_survives_ninety_percent_of_100_pushed_episodes(hundred: Environment) -> None:
    # other seeds than training, everything randomised, through ONNX Runtime in MuJoCo C
    config, policy = load_policy(str(BUNDLE))
    result = evaluate(config, policy, episodes=100, seed=4242, environment=hundred)
    pushes = config.events["pushes"]
    assert isinstance(pushes, ForcePush) and pushes.force_n == 50.0 and config.episode_length_s == 10.0
    assert result.survival >= 0.9, result.summary()


@pytest.mark.slow
def test_the_same_pd_controller_without_a_policy_survives_none(hundred: Environment) -> None:
    config, _ = load_policy(str(BUNDLE))
    result = evaluate(config, HoldHome(load_robot("kbot")), episodes=100, seed=4242, environment=hundred)
    assert result.survival == 0.0 and result.lengths_s.mean() < 3.0
