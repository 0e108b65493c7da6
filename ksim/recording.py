"""One episode as it is shown: what each control step led to, for the window, the video, the browser and the plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from robots.model import BuiltModel, build_model

GRAVITY = 9.81


@dataclass(frozen=True, kw_only=True)
class Recording:
    """T control steps of one episode. Row t is after step t, but for the command, which the policy saw before it.

    Attributes:
        robot: its name or folder.
        task: the task's name.
        seed: of the episode.
        dt_s: control period [s].
        survived: whether the episode lasted to its end.
        weight_n: weight of the robot [N].
        clearance_m: height of the robot's highest point above its base, at home [m].
        joint_names: the joints, (n,).
        foot_names: the feet, (feet,).
        qpos: generalised positions, (T, nq).
        base_position: position of the base in the world [m], (T, 3).
        base_velocity_w: its linear velocity in the world's frame [m/s], (T, 3).
        heading: its yaw [rad], (T,).
        commands: each element of the command, by name, (T,).
        push_w: force of all events on the robot in the world's frame [N], (T, 3).
        kick_w: what events added to the base's linear velocity [m/s], (T, 3).
        push_point: where pushes act, in the world [m], (T, 3).
        foot_position: each foot's site in the world [m], (T, feet, 3).
        foot_force: each foot's contact force [N], (T, feet).
        torque_share: drive torque of each joint, as a share of its limit, (T, n).
        rewards: each weighted reward term [1/s], by name, (T,).
    """

    robot: str
    task: str
    seed: int
    dt_s: float
    survived: bool
    weight_n: float
    clearance_m: float
    joint_names: tuple[str, ...]
    foot_names: tuple[str, ...]
    qpos: np.ndarray
    base_position: np.ndarray
    base_velocity_w: np.ndarray
    heading: np.ndarray
    commands: dict[str, np.ndarray]
    push_w: np.ndarray
    kick_w: np.ndarray
    push_point: np.ndarray
    foot_position: np.ndarray
    foot_force: np.ndarray
    torque_share: np.ndarray
    rewards: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.qpos)

    @property
    def time_s(self) -> np.ndarray:
        """Time since the episode's start of each row [s], (T,)."""
        return self.dt_s * np.arange(1, len(self) + 1)

    @property
    def length_s(self) -> float:
        """How long it lasted [s]."""
        return self.dt_s * len(self)

    @property
    def velocity_h(self) -> np.ndarray:
        """Velocity of the base in the frame of its heading: forward, left [m/s], (T, 2)."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        x, y = self.base_velocity_w[:, 0], self.base_velocity_w[:, 1]
        return np.stack([c * x + s * y, c * y - s * x], axis=-1)

    def command(self, *names: str) -> np.ndarray:
        """The first of these commands that there is, (T,); zero where there is none."""
        found = [self.commands[name] for name in names if name in self.commands]
        return found[0] if found else np.zeros(len(self))

    def save(self, path: str | Path) -> None:
        """Write it as .npz, without pickles."""
        flat: dict[str, Any] = {}
        for about in fields(self):
            value = getattr(self, about.name)
            if isinstance(value, dict):
                flat |= {f"{about.name}/{name}": row for name, row in value.items()}
            else:
                flat[about.name] = np.asarray(value)
        np.savez(path, **flat)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as saved:
            flat = dict(saved)
        values: dict[str, Any] = {"commands": {}, "rewards": {}}
        for key, value in flat.items():
            room, _, name = key.partition("/")
            if name:
                values[room][name] = value
            else:
                values[room] = value.item() if value.ndim == 0 else value
        for names in ("joint_names", "foot_names"):
            values[names] = tuple(str(name) for name in values[names])
        return cls(**values)


def clearance(robot: str) -> float:
    """Height of the robot's highest point above its base in the home pose [m]; what is only to be seen counts too."""
    import mujoco

    built = build_model(robot)
    library: Any = mujoco
    model, data = built.model, library.MjData(built.model)
    data.qpos[:] = built.home_qpos
    library.mj_kinematics(model, data)
    own = np.isin(model.geom_bodyid, built.bodies)
    tops = data.geom_xpos[own, 2] + model.geom_rbound[own]
    return float(max(tops.max(initial=built.standing_height_m) - built.standing_height_m, 0.1))


def _places(built: BuiltModel, qpos: np.ndarray) -> dict[str, np.ndarray]:
    """Where base, feet and pushes are in each row [m]."""
    import mujoco

    library: Any = mujoco
    model, data = built.model, library.MjData(built.model)
    base = built.base_body if built.base_body >= 0 else int(built.bodies[0])
    sites = [model.site(name).id for name in built.foot_names]
    rows: dict[str, list[np.ndarray]] = {"base_position": [], "push_point": [], "foot_position": []}
    for row in qpos:
        data.qpos[:] = row
        library.mj_kinematics(model, data)
        rows["base_position"].append(data.xpos[base].copy())
        rows["push_point"].append(data.xipos[built.push_body].copy())
        rows["foot_position"].append(data.site_xpos[sites].reshape(-1, 3).copy())
    return {name: np.stack(values) for name, values in rows.items()}


def record(
    config: Any,
    policy: Any,
    *,
    seed: int,
    engine: str = "mujoco",
    environment: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Run a policy for one episode, until it ends: the first episode that `evaluate` runs with one of this seed.

    Args:
        config: the task (ksim.config.Config), with its randomisation.
        policy: what to run (ksim.evaluate.BatchPolicy).
        seed: of the episode.
        engine: mujoco or mjx.
        environment: one to use again, with one environment.
        progress: called with (step, steps).

    Raises:
        KsimError: the environment is not of one.
    """
    import jax
    import jax.numpy as jnp

    from ksim.environment import make_environment
    from ksim.errors import KsimError
    from ksim.evaluate import moved_joints, raw_action, start_key

    env = environment or make_environment(config, 1, engine)
    if env.envs != 1:
        raise KsimError(f"recording: got an environment of {env.envs}, expected 1")
    scene, dt = env.scene, env.scene.control_period_s
    batch, seen = env.reset(start_key(seed))
    carry, zeros = policy.init(1), np.zeros((1, scene.actions), np.float32)
    moved = moved_joints(env.config, scene.built.spec)
    rows: list[dict[str, np.ndarray]] = []
    rewards: dict[str, list[float]] = {name: [] for name in config.rewards}
    survived = False
    for step in range(env.episode_steps):
        command = np.asarray(batch.env.command)[0]
        targets, carry = policy.step({k: np.asarray(v) for k, v in seen.inputs.items()}, carry)
        # what ended stays as it ended: the fall is to be seen
        raw = raw_action(policy, carry, moved)
        act = (zeros if raw is None else raw, jnp.asarray(targets, jnp.float32))
        batch, drive, seen, outcome = env.advance(batch, *act)
        # of the one environment
        physics, acted = jax.tree.map(lambda v: np.array(v[0]), (batch.physics.public(), drive))
        rows.append(
            {
                "qpos": physics.qpos,
                "base_velocity_w": np.array(physics.base_lin_vel_w),
                "heading": np.array(physics.heading),
                "push_w": acted.wrench_w[:3],
                "kick_w": acted.kick[:3],
                "foot_force": np.array(physics.foot_force),
                "torque_share": physics.torque / scene.column("torque_limit_nm"),
                "command": command,
            }
        )
        for name, value in outcome.terms.items():
            rewards[name].append(float(value) / dt)
        if progress is not None:
            progress(step + 1, env.episode_steps)
        if np.asarray(outcome.done)[0]:
            survived = bool(np.asarray(outcome.timeout)[0])
            break
    kept = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    commands = kept.pop("command")
    return Recording(
        robot=str(config.robot),
        task=config.task,
        seed=seed,
        dt_s=dt,
        survived=survived,
        weight_n=scene.mass_kg * GRAVITY,
        clearance_m=clearance(str(config.robot)),
        joint_names=scene.joint_names,
        foot_names=scene.feet,
        commands={name: commands[:, i] for i, name in enumerate(scene.command_names)},
        rewards={name: np.asarray(values) for name, values in rewards.items()},
        **kept,
        **_places(scene.built, kept["qpos"]),
    )
