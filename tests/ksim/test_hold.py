"""Joints that hold the home pose: named in the configuration, left out of the action."""

import jax.numpy as jnp
import numpy as np
import pytest

from ksim.actions import JointTargets
from ksim.errors import ConfigError
from robots import load_robot


def test_held_joints_stay_home_and_the_action_moves_the_others_in_order() -> None:
    law = JointTargets(
        home=(0.1, 0.2, 0.3, 0.4), scale=(1.0, 1.0, 10.0, 0.5), low=(-9.0,) * 4, high=(9.0,) * 4, smoothing=0.0,
        active=(0, 3),
    )  # fmt: skip
    targets = law(jnp.asarray([0.01, 0.2]), jnp.zeros(4))
    assert np.allclose(targets, [0.11, 0.2, 0.3, 0.5], atol=1e-6)


def test_words_of_hold_are_found_in_joint_names_and_a_wrong_one_is_refused() -> None:
    robot = load_robot("kbot")
    law = JointTargets.of(robot, 1.0, 0.0, ("shoulder", "elbow", "wrist"))
    moved = [robot.joint_names[i] for i in law.index]
    assert len(moved) == 10 and all(any(w in n for w in ("hip", "knee", "ankle")) for n in moved)
    with pytest.raises(ConfigError, match="'tail' is in no joint's name"):
        JointTargets.of(robot, 1.0, 0.0, ("tail",))
    with pytest.raises(ConfigError, match="leaves no joint"):
        JointTargets.of(robot, 1.0, 0.0, ("dof",))
