"""The policy that ships: it is what its files say, and it does what the README says."""

import pytest

from ksim.checkpoint import load_trained
from ksim.evaluate import HoldHome, evaluate, load_policy
from ksim.paths import shipped_policy
from robots import load_robot, read_bundle

CHECKPOINT, BUNDLE = shipped_policy("kbot_stand", ".ckpt"), shipped_policy("kbot_stand", ".kinfer")


def test_the_shipped_bundle_is_the_shipped_checkpoint_on_the_shipped_robot() -> None:
    trained, bundle = load_trained(CHECKPOINT), read_bundle(BUNDLE)
    assert bundle.spec is not None
    assert bundle.spec.weights_digest == trained.spec.weights_digest
    assert bundle.spec.config_digest == trained.spec.config_digest
    assert bundle.spec.robot == load_robot("kbot")
    assert bundle.spec.proofs, "a shipped bundle is a proven one"


@pytest.mark.slow
def test_the_shipped_bundle_survives_ninety_percent_of_200_pushed_episodes() -> None:
    # other seeds than training, everything randomised, through ONNX Runtime in MuJoCo C
    config, policy = load_policy(str(BUNDLE))
    result = evaluate(config, policy, episodes=200, seed=4242)
    assert config.pushes.force_n == 50.0 and config.episode_length_s == 10.0
    assert result.survival >= 0.9, result.summary()


@pytest.mark.slow
def test_the_same_pd_controller_without_a_policy_survives_none() -> None:
    config, _ = load_policy(str(BUNDLE))
    result = evaluate(config, HoldHome(load_robot("kbot")), episodes=50, seed=4242)
    assert result.survival == 0.0 and result.lengths_s.mean() < 3.0
