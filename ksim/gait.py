"""Rewards of the feet: after the gait clock, in contact, in the air, beside each other.

Foot i is i/feet of a turn behind the clock. While the robot is asked for nothing the clock rests, and every foot
belongs on the floor. Heights are above where a foot stands in the home pose.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ksim.clock import TURN
from ksim.reward import METRES, SECONDS, WIDTH, Reward, StatefulReward, exp_kernel, per_step
from ksim.scene import Scene
from ksim.types import GRAVITY, PhysicsState, Trajectory
from robots import rotation
from toolkit.settings import Bound


def foot_height(physics: PhysicsState) -> Any:
    """How far each foot is above where it stands in the home pose [m], (..., feet); takes sensor foot_position."""
    return physics.of_feet("foot_position")[..., 2] - physics.scene.foot_rest_height_m


def swing_at(phase: Any, moving: Any, feet: int, swing: float) -> Any:
    """How far each foot is through its swing, 0 to 1, (..., feet); 0 for a foot that belongs on the floor.

    Args:
        phase: the gait clock [rad], (...,).
        moving: whether it runs, (...,).
        feet: number of feet.
        swing: share of a turn that a foot is in the air.
    """
    behind = TURN * np.arange(feet, dtype=np.float32) / max(feet, 1)
    turn = jnp.mod(phase[..., None] + jnp.asarray(behind, jnp.float32), TURN) / TURN
    return jnp.where(moving[..., None] & (turn < swing), turn / swing, 0.0)


def swing_height(through: Any, height_m: float) -> Any:
    """Height of a foot in its swing [m]: up to `height_m` half way, with no vertical speed there and at both ends.

    Source: the cubic of MuJoCo Playground's gait.get_rz, 2025, run through within the swing alone.
    """
    up = 1.0 - jnp.abs(2.0 * through - 1.0)
    return height_m * up * up * (3.0 - 2.0 * up)


@dataclass(frozen=True, kw_only=True)
class FeetPhaseReward(Reward):
    """exp of minus the feet's squared distances from their height after the clock, summed, over `width_m` squared.

    Attributes:
        height_m: height of a foot in the middle of its swing [m].
        swing: share of a turn that a foot is in the air.
        width_m: the distance at which the reward is 0.37 [m].
    """

    height_m: Annotated[float, METRES] = 0.09
    swing: Annotated[float, Bound(0.01, 1, "a share")] = 0.5
    width_m: Annotated[float, WIDTH] = 0.063

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_position",)

    def get_reward(self, trajectory: Trajectory) -> Any:
        feet = len(trajectory.scene.feet)
        wanted = swing_height(swing_at(trajectory.phase, trajectory.moving, feet, self.swing), self.height_m)
        return exp_kernel(jnp.sum((foot_height(trajectory.physics) - wanted) ** 2, axis=-1), self.width_m)


@dataclass(frozen=True, kw_only=True)
class ContactPhaseReward(Reward):
    """Share of the feet that touch the floor when the clock has them stand, and do not when it has them swing."""

    swing: Annotated[float, Bound(0.01, 1, "a share")] = 0.5

    def get_reward(self, trajectory: Trajectory) -> Any:
        feet = len(trajectory.scene.feet)
        stand = swing_at(trajectory.phase, trajectory.moving, feet, self.swing) == 0.0
        return jnp.mean((trajectory.physics.foot_contact == stand).astype(jnp.float32), axis=-1)


@dataclass(frozen=True, kw_only=True)
class FeetSlipPenalty(Reward):
    """Squared horizontal speed of the feet that touch the floor, summed [m^2/s^2]."""

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_velocity",)

    def get_reward(self, trajectory: Trajectory) -> Any:
        speed = jnp.sum(trajectory.physics.of_feet("foot_velocity")[..., :2] ** 2, axis=-1)
        return jnp.sum(jnp.where(trajectory.physics.foot_contact, speed, 0.0), axis=-1)


@dataclass(frozen=True, kw_only=True)
class FeetTooClosePenalty(Reward):
    """By how much feet are nearer to each other than `least_m`, sideways in the heading's frame, summed [m].

    Feet that have crossed are nearer still: the distance has the sign that makes it positive in the home pose. Pairs
    count that stand at least half of `least_m` apart there.
    """

    least_m: Annotated[float, METRES] = 0.17

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_position",)

    def get_reward(self, trajectory: Trajectory) -> Any:
        physics, home = trajectory.physics, trajectory.scene.foot_home_m[:, 1]
        turn = rotation.from_yaw(physics.heading, jnp)[..., None, :]
        sideways = rotation.rotate_inverse(turn, physics.of_feet("foot_position"), jnp)[..., 1]
        total = jnp.zeros(sideways.shape[:-1])
        for i in range(len(home)):
            for j in range(i + 1, len(home)):
                apart = home[i] - home[j]
                if abs(apart) >= max(0.5 * self.least_m, 1e-3):
                    distance = np.sign(apart) * (sideways[..., i] - sideways[..., j])
                    total = total + jnp.clip(self.least_m - distance, 0.0)
        return total


@dataclass(frozen=True, kw_only=True)
class FeetOrientationPenalty(Reward):
    """How far the feet are from flat, summed: 2 (1 - cos) of each foot's tilt against the home pose, about rad^2."""

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_quat",)

    def get_reward(self, trajectory: Trajectory) -> Any:
        up = rotation.up_in_frame(trajectory.physics.of_feet("foot_quat"), jnp)
        return jnp.sum((up - trajectory.scene.foot_home_up) ** 2, axis=(-2, -1))


@dataclass(frozen=True, kw_only=True)
class FeetClearancePenalty(Reward):
    """Squared distance of a foot from `height_m`, times the root of its horizontal speed, summed: low feet stand still.

    Source: Ji et al., Concurrent training of a control policy and a state estimator, 2022, table of rewards.
    """

    height_m: Annotated[float, METRES] = 0.09

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_position", "foot_velocity")

    def get_reward(self, trajectory: Trajectory) -> Any:
        speed = jnp.linalg.norm(trajectory.physics.of_feet("foot_velocity")[..., :2], axis=-1)
        return jnp.sum((foot_height(trajectory.physics) - self.height_m) ** 2 * jnp.sqrt(speed), axis=-1)


@dataclass(frozen=True, kw_only=True)
class FeetForcePenalty(Reward):
    """What each foot's force exceeds of `body_weights` times the robot's weight, summed, in weights."""

    body_weights: Annotated[float, Bound(0, 1000, "weights of the robot")] = 1.2

    def get_reward(self, trajectory: Trajectory) -> Any:
        share = trajectory.physics.foot_force / (trajectory.scene.mass_kg * GRAVITY)
        return jnp.sum(jnp.clip(share - self.body_weights, 0.0), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Landing(StatefulReward, abc.ABC):
    """A reward of touch-downs. Each counts once: undone by the step's length, so that the weight is one a landing.

    The first contact of a foot in an episode is no landing: the robot is put down then.
    """

    @abc.abstractmethod
    def swung(self, trajectory: Trajectory) -> Any:
        """What is followed while a foot is in the air, (T, feet)."""

    @abc.abstractmethod
    def followed(self, kept: Any, value: Any, period_s: float) -> Any:
        """What is kept of it after one more step in the air, (feet,); it starts at 0 with the swing."""

    @abc.abstractmethod
    def landed(self, kept: Any) -> Any:
        """The figure of a foot that touches down, (feet,)."""

    def initial_carry(self, scene: Scene) -> Any:
        feet = len(scene.feet)
        return {"kept": jnp.zeros(feet), "air": jnp.zeros(feet, bool), "stood": jnp.zeros(feet, bool)}

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        period = trajectory.scene.control_period_s

        def step(memory: Any, row: Any) -> tuple[Any, Any]:
            contact, value = row
            landing = contact & memory["air"] & memory["stood"]
            figure = jnp.sum(landing * self.landed(memory["kept"])) / period
            kept = jnp.where(contact, 0.0, self.followed(memory["kept"], value, period))
            return {"kept": kept, "air": ~contact, "stood": memory["stood"] | contact}, figure

        rows = (trajectory.physics.foot_contact, self.swung(trajectory))
        carry, values = per_step(step, carry, rows, trajectory.first, self.initial_carry(trajectory.scene))
        return values, carry


@dataclass(frozen=True, kw_only=True)
class FeetAirTimeReward(Landing):
    """At each touch-down, how much longer than `threshold_s` the foot was in the air [s]; 0 where nothing is asked.

    Source: Rudin et al., Learning to walk in minutes, 2021, feet air time.
    """

    threshold_s: Annotated[float, SECONDS] = 0.4

    def swung(self, trajectory: Trajectory) -> Any:
        return jnp.zeros(trajectory.physics.foot_contact.shape)

    def followed(self, kept: Any, value: Any, period_s: float) -> Any:
        return kept + period_s

    def landed(self, kept: Any) -> Any:
        return kept - self.threshold_s

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        values, carry = super().get_reward_stateful(trajectory, carry)
        return jnp.where(trajectory.moving, values, 0.0), carry


@dataclass(frozen=True, kw_only=True)
class FeetClearanceReward(Landing):
    """At each touch-down, the greatest height of the swing as a share of `height_m`, at most 1."""

    height_m: Annotated[float, Bound(1e-4, 100, "metres")] = 0.09

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_position",)

    def swung(self, trajectory: Trajectory) -> Any:
        return foot_height(trajectory.physics)

    def followed(self, kept: Any, value: Any, period_s: float) -> Any:
        return jnp.maximum(kept, value)

    def landed(self, kept: Any) -> Any:
        return jnp.minimum(kept / self.height_m, 1.0)


@dataclass(frozen=True, kw_only=True)
class SoftLandingPenalty(Landing):
    """At each touch-down, the squared speed at which the foot came down one step before [m^2/s^2]."""

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_velocity",)

    def swung(self, trajectory: Trajectory) -> Any:
        return trajectory.physics.of_feet("foot_velocity")[..., 2]

    def followed(self, kept: Any, value: Any, period_s: float) -> Any:
        return value

    def landed(self, kept: Any) -> Any:
        return jnp.clip(kept, None, 0.0) ** 2


@dataclass(frozen=True, kw_only=True)
class SingleContactReward(StatefulReward):
    """1 where exactly one foot touched the floor within the last `grace_s`, and where nothing is asked.

    Source: van Marum et al., Revisiting reward design for standing and walking, 2024: the grace lets feet change.
    """

    grace_s: Annotated[float, SECONDS] = 0.2

    def initial_carry(self, scene: Scene) -> Any:
        return jnp.zeros(())

    def get_reward_stateful(self, trajectory: Trajectory, carry: Any) -> tuple[Any, Any]:
        period = trajectory.scene.control_period_s

        def step(since: Any, single: Any) -> tuple[Any, Any]:
            since = jnp.where(single, 0.0, since + period)
            return since, since

        single = jnp.sum(trajectory.physics.foot_contact, axis=-1) == 1
        carry, since = per_step(step, carry, single, trajectory.first, self.initial_carry(trajectory.scene))
        # half a period: sums of float32 must not decide
        good = (since <= self.grace_s + 0.5 * period) | ~trajectory.moving
        return good.astype(jnp.float32), carry


@dataclass(frozen=True, kw_only=True)
class StandStillPenalty(Reward):
    """Where nothing is asked: mean squared joint velocity [rad^2/s^2], and the share of the feet that are lifted.

    Attributes:
        lifted: what a lifted foot counts, against 1 for each rad^2/s^2.
    """

    lifted: Annotated[float, Bound(0, 1000, "a factor")] = 1.0

    def get_reward(self, trajectory: Trajectory) -> Any:
        physics = trajectory.physics
        joints = jnp.mean(physics.joint_velocity**2, axis=-1)
        feet = 1.0 - physics.foot_contact.astype(jnp.float32)
        lifted = jnp.mean(feet, axis=-1) if trajectory.scene.feet else 0.0
        return jnp.where(trajectory.moving, 0.0, joints + self.lifted * lifted)


@dataclass(frozen=True, kw_only=True)
class FeetAtRestPenalty(Reward):
    """Where nothing is asked: squared speed of the feet, summed [m^2/s^2]."""

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_velocity",)

    def get_reward(self, trajectory: Trajectory) -> Any:
        speed = jnp.sum(trajectory.physics.of_feet("foot_velocity") ** 2, axis=(-2, -1))
        return jnp.where(trajectory.moving, 0.0, speed)
