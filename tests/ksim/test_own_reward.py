"""Adding a reward is one class, one line and one test, from outside the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ksim.commands import UniformCommand
from ksim.environment import make_environment
from ksim.rewards import Reward
from ksim.tasks.stand import stand
from ksim.types import Trajectory
from toolkit.settings import Bound, merge


@dataclass(frozen=True, kw_only=True)
class KneesBentReward(Reward):
    """Share of the knees that are bent by `least_rad`, where motion is asked; it takes a sensor of its own."""

    least_rad: Annotated[float, Bound(0, 3, "radians")] = 0.1

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("com_position",)

    def get_reward(self, trajectory: Trajectory) -> Any:
        knees = trajectory.physics.joint_position[..., trajectory.scene.joint_ids(("knee",))]
        standing = trajectory.physics.sensor("com_position")[..., 2] > 0.1
        bent = jnp.mean((jnp.abs(knees) > self.least_rad).astype(jnp.float32), axis=-1)
        return jnp.where(standing & trajectory.moving, bent, 0.0)


def test_a_reward_from_outside_the_package_is_one_class_and_one_line_in_a_task():
    asked = {name: UniformCommand(name=name, range=(0.5, 0.5)) for name in ("xvel",)}
    small = replace(stand(), commands=asked, events={}, randomizations={}, resets={}, critic={}, threads=1)
    task = replace(small, rewards={"knees": KneesBentReward(weight=2.0)})
    task = merge(task, {"rewards": {"knees": {"least_rad": 0.2}}})
    assert task.rewards["knees"] == KneesBentReward(weight=2.0, least_rad=0.2)
    assert merge(replace(small, rewards={}), {"rewards": {"knees": {"kind": "KneesBentReward", "weight": 2.0}}})

    environment = make_environment(task, 2, "mujoco")
    batch, _ = environment.reset(jax.random.key(0))
    still = jnp.zeros((2, environment.scene.actions))
    target = jnp.asarray(environment.scene.home_rad)[None].repeat(2, axis=0)
    _, _, outcome = environment.step(batch, still, target)
    knees = environment.scene.home_rad[environment.scene.joint_ids(("knee",))]
    assert (np.abs(knees) > 0.25).all()
    # weight 2 a second, for one control step
    np.testing.assert_allclose(outcome.reward, 2.0 * environment.scene.control_period_s, rtol=1e-6)
    np.testing.assert_allclose(outcome.terms["knees"], 0.04, rtol=1e-6)

    # where the command asks for nothing, there is no motion to reward
    at_rest = batch._replace(env=batch.env._replace(command=jnp.zeros_like(batch.env.command)))
    _, _, outcome = environment.step(at_rest, still, target)
    np.testing.assert_array_equal(outcome.reward, 0.0)
