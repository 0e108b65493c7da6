"""What a policy did in N episodes, tick by tick: what the figures of a suite are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import equinox as eqx
import numpy as np

from ksim.clock import GaitClock, places
from ksim.config import Config
from ksim.environment import EnvBatch, Environment
from ksim.evaluate import BatchPolicy, Evaluation, evaluate
from ksim.scene import Scene
from ksim.types import Drive, PhysicsState

# Sensors that the figures take; the tasks of a suite must have terms that ask for them.
SENSORS = ("foot_position", "foot_velocity")


@dataclass(frozen=True, kw_only=True)
class Walked:
    """N episodes of T ticks. Row t is what the policy saw at tick t, and what it then did.

    Attributes:
        dt_s: the control period [s].
        alive: the episode was still running, (T, N).
        survived: it lasted to the end, (N,).
        command: xvel [m/s], yvel [m/s], yawrate [rad/s], (T, N, 3).
        moving: the command asks for motion, (T, N).
        position: of the base in the world [m], (T, N, 3).
        heading: its yaw [rad], (T, N).
        velocity: of the base in the frame of its heading: forward, left [m/s], (T, N, 2).
        yaw_rate: about the vertical [rad/s], (T, N).
        foot_height: of each foot above where it stands in the home pose [m], (T, N, feet).
        foot_speed: its horizontal speed [m/s], (T, N, feet).
        foot_contact: it touches the floor, (T, N, feet).
        torque: of each motor [N m], (T, N, joints).
        joint_velocity: true [rad/s], (T, N, joints).
        joint_position: true [rad], (T, N, joints).
        target: what the policy asks for [rad], (T, N, joints).
        push_n: size of the horizontal push [N], (T, N).
        scene: the robot.
    """

    dt_s: float
    alive: np.ndarray
    survived: np.ndarray
    command: np.ndarray
    moving: np.ndarray
    position: np.ndarray
    heading: np.ndarray
    velocity: np.ndarray
    yaw_rate: np.ndarray
    foot_height: np.ndarray
    foot_speed: np.ndarray
    foot_contact: np.ndarray
    torque: np.ndarray
    joint_velocity: np.ndarray
    joint_position: np.ndarray
    target: np.ndarray
    push_n: np.ndarray
    scene: Scene

    @property
    def episodes(self) -> int:
        """N."""
        return self.alive.shape[1]

    def only(self, which: np.ndarray) -> Walked:
        """Some of the episodes, by index or mask."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in kept.items():
            if isinstance(value, np.ndarray):
                kept[name] = value[which] if value.ndim == 1 else value[:, which]
        return Walked(**kept)


@eqx.filter_jit
def _told(state: PhysicsState) -> dict[str, Any]:
    """What the figures take of the physics, but for what it holds as it is: op by op, most of a tick's time."""
    return {
        "heading": state.heading,
        "velocity": state.base_lin_vel_h[:, :2],
        "yaw_rate": state.base_ang_vel_w[:, 2],
        "feet": state.of_feet("foot_position"),
        "foot_velocity": state.of_feet("foot_velocity"),
        "foot_contact": state.foot_contact,
        "joint_velocity": state.joint_velocity,
        "joint_position": state.joint_position,
    }


class _Watch:
    """Takes a row at each tick of an evaluation."""

    def __init__(self, scene: Scene, clock: GaitClock):
        self.scene, self.clock, self.rows = scene, clock, []
        self._asked = [scene.command(name) for name in ("xvel", "yvel", "yawrate")]
        self._moves = places(clock, scene.command_names)

    def __call__(self, before: EnvBatch, targets: np.ndarray, drive: Drive, running: np.ndarray) -> None:
        state, command = before.physics, np.asarray(before.env.command)
        asked = [command[:, at] if at >= 0 else np.zeros(len(command), np.float32) for at in self._asked]
        told = {name: np.asarray(value) for name, value in _told(state.public()).items()}
        feet, speed = told.pop("feet"), told.pop("foot_velocity")
        self.rows.append(
            {
                **told,
                "alive": running,
                "command": np.stack(asked, axis=-1),
                "moving": np.asarray(self.clock.moving(command, self._moves)),
                "position": np.asarray(state.base_position),
                "foot_height": feet[..., 2] - self.scene.foot_rest_height_m,
                "foot_speed": np.linalg.norm(speed[..., :2], axis=-1),
                "torque": np.asarray(state.torque),
                "target": np.asarray(targets, np.float32),
                "push_n": np.linalg.norm(np.asarray(drive.wrench_w)[:, :2], axis=-1),
            }
        )


def walk(
    config: Config,
    policy: BatchPolicy,
    environment: Environment,
    *,
    seed: int,
    alter: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Walked, Evaluation]:
    """Run a policy for one episode in each environment.

    Args:
        config: the task.
        policy: what to run.
        environment: of the task.
        seed: of the episodes.
        alter: (environments, parameters) as drawn -> as they shall be.
        progress: called with (step, steps).
    """
    watch = _Watch(environment.scene, config.policy.clock)
    result = evaluate(
        config,
        policy,
        episodes=environment.envs,
        seed=seed,
        environment=environment,
        watch=watch,
        alter=alter,
        progress=progress,
    )
    rows = {name: np.stack([row[name] for row in watch.rows]) for name in watch.rows[0]}
    walked = Walked(dt_s=config.physics.control_period_s, survived=result.survived, scene=environment.scene, **rows)
    return walked, result
