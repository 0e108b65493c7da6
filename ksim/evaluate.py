"""`ksim eval`: survival and return of a checkpoint, a bundle, or the bare PD hold of the home pose.

Every policy runs in the same environments from the same seed, with all randomisation, latency, noise
and pushes on, for one full episode each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ksim.actions import roles
from ksim.config import Config
from ksim.environment import EnvBatch, Environment, make_environment
from ksim.errors import KsimError
from ksim.learning.checkpoint import load_trained
from ksim.learning.policy import Policy
from ksim.load import from_dict, load_config
from ksim.scene import Scene
from ksim.types import Drive, EnvState, PhysicsParams, PhysicsState
from robots import Bundle, RobotLoadError, load_robot, read_bundle, rotation
from robots.command_names import COMMAND_ALIASES
from robots.load import robot_folder
from robots.spec import PolicySpec, RobotSpec
from toolkit.errors import FileError, SettingsError
from toolkit.files import packaged, shipped_config
from toolkit.settings import apply_overrides


class BatchPolicy(Protocol):
    """A policy over E environments.

    One that knows its raw action has a method `raw` too: next carry -> (the joints that it moves, (k,); it, (E, k)).
    """

    def init(self, envs: int) -> Any:
        """The first carry of E environments."""
        ...

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        """(targets (E, n) [rad], next carry)."""
        ...


class JaxBatchPolicy:
    """The policy function, vmapped and compiled."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self._step = eqx.filter_jit(lambda policy, inputs, carry: jax.vmap(policy.step)(inputs, carry))

    def init(self, envs: int) -> Any:
        return jnp.tile(self._policy.init_carry(), (envs, 1))

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        return self._step(self._policy, inputs, carry)

    def raw(self, carry: Any) -> tuple[np.ndarray, np.ndarray]:
        return self._policy.targets.index, np.asarray(self._policy.split(carry)[2])


class OnnxBatchPolicy:
    """A bundle in onnxruntime, one environment at a time, as the robot runs it."""

    def __init__(self, bundle: Bundle):
        from deploy.bundle.session import OnnxPolicy

        self._policy = OnnxPolicy(bundle)
        self._raw = None if bundle.spec is None else _raw_places(bundle.spec)

    def init(self, envs: int) -> Any:
        self._policy.reset()
        return np.stack([self._policy.carry] * envs)

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        rows = {k: np.asarray(v, np.float32) for k, v in inputs.items()}
        targets, carries = [], []
        for i in range(len(carry)):
            self._policy.carry = carry[i]
            targets.append(self._policy.step({k: v[i] for k, v in rows.items()}))
            carries.append(self._policy.carry)
        return np.stack(targets), np.stack(carries)

    def raw(self, carry: Any) -> tuple[np.ndarray, np.ndarray] | None:
        return None if self._raw is None else (self._raw[0], np.asarray(carry)[:, self._raw[1]])


def _raw_places(spec: PolicySpec) -> tuple[np.ndarray, np.ndarray] | None:
    """(joints that a bundle's raw action moves, where it stands in the carry); None where the bundle does not say."""
    settings, at = spec.training.get("policy", {}), 0
    for part in spec.carry_layout:
        if part.name == "last_action":
            moved = roles(spec.robot, tuple(settings.get("hold", ())), settings.get("passthrough", {})).active
            return (np.asarray(moved), at + np.arange(part.size)) if part.size == len(moved) else None
        at += part.size
    return None


def moved_joints(config: Config, robot: RobotSpec) -> np.ndarray:
    """The joints that the raw action of a task's environment moves, in its order."""
    return np.asarray(roles(robot, config.policy.hold, config.policy.passthrough).active)


def raw_action(policy: BatchPolicy, carry: Any, moved: np.ndarray) -> np.ndarray | None:
    """The raw action that a policy took, as the environment has it, (E, actions).

    Args:
        policy: the policy.
        carry: its carry after the step.
        moved: the joints that the environment's raw action moves.

    Returns:
        None where the policy does not tell it, or moves other joints.
    """
    told = getattr(policy, "raw", lambda _: None)(carry)
    if told is None or set(told[0].tolist()) != set(moved.tolist()):
        return None
    order = [told[0].tolist().index(joint) for joint in moved.tolist()]
    return np.asarray(told[1], np.float32)[:, order]


class HoldHome:
    """The same PD controller holding the home pose, without a policy: the baseline."""

    def __init__(self, robot: RobotSpec):
        self._home = np.asarray(robot.column("home_rad"), np.float32)

    def init(self, envs: int) -> Any:
        return np.zeros((envs, 0), np.float32)

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        return np.tile(self._home, (len(carry), 1)), carry


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval); all of it where there was nothing to count."""
    if n == 0:
        return (0.0, 1.0)
    p, z = successes / n, 1.959963984540054
    centre, width = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    width *= float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return (centre - width if successes else 0.0, centre + width if successes < n else 1.0)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a policy did in N episodes.

    Attributes:
        episodes: N.
        seed: the seed.
        engine: mujoco or mjx.
        survived: whether each episode lasted to the end, (N,).
        returns: sum of rewards of each, (N,).
        lengths_s: how long each lasted [s], (N,).
        drift_m: horizontal distance of the base from its start, at the end of each, (N,).
        tracking_m_s: mean distance of the base's horizontal velocity, in its own heading, from the command vx, vy
            (0 where the task has no such command) over each, (N,).
        inputs: where recorded, the policy's inputs by name, (T, N, k).
        targets: where recorded, its targets [rad], (T, N, n).
        alive: where recorded, whether each episode was still running at each step, (T, N).
        qpos: where recorded, (T, N, nq).
        force_w: where recorded, the push during each step [N], (T, N, 3).
    """

    episodes: int
    seed: int
    engine: str
    survived: np.ndarray
    returns: np.ndarray
    lengths_s: np.ndarray
    drift_m: np.ndarray
    tracking_m_s: np.ndarray
    inputs: dict[str, np.ndarray] | None = None
    targets: np.ndarray | None = None
    alive: np.ndarray | None = None
    qpos: np.ndarray | None = None
    force_w: np.ndarray | None = None

    @property
    def survival(self) -> float:
        """Share of the episodes that lasted to the end."""
        return float(np.mean(self.survived))

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON."""
        low, high = wilson(int(np.sum(self.survived)), self.episodes)
        return {
            "episodes": self.episodes,
            "seed": self.seed,
            "engine": self.engine,
            "survival": self.survival,
            "survival_low95": low,
            "survival_high95": high,
            "return_mean": float(np.mean(self.returns)),
            "length_mean_s": float(np.mean(self.lengths_s)),
            "drift_mean_m": float(np.mean(self.drift_m)),
            "tracking_mean_m_s": float(np.mean(self.tracking_m_s)),
        }


def _off_command(physics: PhysicsState, command: np.ndarray, scene: Scene) -> np.ndarray:
    """Distance of each base's horizontal velocity, in its own heading, from the command, (N,) [m/s]."""
    # base_lin_vel_h on the host: op by op, JAX takes longer over it than over the rest of the step
    quat, velocity = np.asarray(physics.base_quat), np.asarray(physics.base_lin_vel_w)
    ahead, aside, _ = rotation.rotate_inverse(rotation.from_yaw(rotation.yaw_of(quat)), velocity).T
    places = (scene.command("xvel"), scene.command("yvel"))
    wanted = [command[:, place] if place >= 0 else 0.0 for place in places]
    return np.hypot(ahead - wanted[0], aside - wanted[1])


def start_key(seed: int) -> Any:
    """The random key of the episodes of a seed; training uses others whatever its seed."""
    return jax.random.fold_in(jax.random.key(seed), 0x65766131)


def evaluate(
    config: Config,
    policy: BatchPolicy,
    *,
    episodes: int,
    seed: int,
    engine: str = "mujoco",
    record: bool = False,
    environment: Environment | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[EnvBatch, np.ndarray, Drive, np.ndarray], None] | None = None,
    alter: Callable[[EnvState, PhysicsParams], tuple[EnvState, PhysicsParams]] | None = None,
) -> Evaluation:
    """Run a policy for one episode in each of `episodes` environments.

    Args:
        config: the task, with its randomisation.
        policy: what to run.
        episodes: number of environments.
        seed: of the environments; training uses other keys whatever the number.
        engine: mujoco or mjx.
        record: keep inputs and targets.
        environment: one to use again, with `episodes` environments.
        progress: called with (step, steps).
        watch: called at each step with (what the policy saw, its targets, what acted, which episodes still ran).
        alter: changes what was drawn for the episodes, before they begin.
    """
    env = environment or make_environment(config, episodes, engine)
    if env.envs != episodes:
        raise KsimError(f"evaluation: got an environment of {env.envs}, expected {episodes}")
    batch, seen = env.reset(start_key(seed), alter=alter)
    carry, zeros = policy.init(episodes), np.zeros((episodes, env.scene.actions), np.float32)
    moved = moved_joints(env.config, env.scene.built.spec)
    alive = np.ones(episodes, bool)
    returns, lengths, drift, off = (np.zeros(episodes) for _ in range(4))
    survived = np.zeros(episodes, bool)
    start = np.asarray(batch.physics.base_position)
    kept: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for step in range(env.episode_steps):
        inputs = {k: np.asarray(v) for k, v in seen.inputs.items()}
        targets, carry = policy.step(inputs, carry)
        before = np.asarray(batch.physics.qpos)
        place = np.asarray(batch.physics.base_position)
        off += alive * _off_command(batch.physics, np.asarray(batch.env.command), env.scene)
        raw = raw_action(policy, carry, moved)
        act = (zeros if raw is None else raw, jnp.asarray(targets, jnp.float32))
        running = alive.copy()
        last, (batch, drive, seen, outcome) = batch, env.driven(batch, *act)
        if watch is not None:
            watch(last, np.asarray(targets), drive, running)
        if record:
            force = np.asarray(drive.wrench_w)[:, :3]
            kept.append((inputs, {"targets": np.asarray(targets), "alive": running, "qpos": before, "force_w": force}))
        done = np.asarray(outcome.done)
        returns += alive * np.asarray(outcome.reward)
        lengths += alive
        ended = alive & done
        drift[ended] = np.hypot(*(place - start).T[:2])[ended]
        survived[ended] = np.asarray(outcome.timeout)[ended]
        alive &= ~done
        if progress is not None:
            progress(step + 1, env.episode_steps)
        if not alive.any() and not record:
            break
    inputs_kept = kept[0][0] if kept else {}
    return Evaluation(
        episodes=episodes,
        seed=seed,
        engine=engine,
        survived=survived,
        returns=returns,
        lengths_s=lengths * config.physics.control_period_s,
        drift_m=drift,
        tracking_m_s=off / np.maximum(lengths, 1.0),
        inputs={k: np.stack([row[0][k] for row in kept]) for k in inputs_kept} if record else None,
        **({k: np.stack([row[1][k] for row in kept]) for k in kept[0][1]} if kept else {}),
    )


class ByName:
    """A policy whose joints or commands stand in another order than the environment's.

    Args:
        policy: the policy.
        joints: for each of its joints, the joint's place in the environment, (n,).
        commands: for each of its commands, the command's place in the environment, (commands,).
    """

    def __init__(self, policy: BatchPolicy, joints: np.ndarray, commands: np.ndarray):
        self._policy, self._joints, self._commands = policy, joints, commands
        self._back = np.argsort(joints)

    def init(self, envs: int) -> Any:
        return self._policy.init(envs)

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        places = {
            "joint_angles": self._joints,
            "joint_angular_velocities": self._joints,
            "command": self._commands,
        }
        ordered = {k: np.asarray(v)[:, places[k]] if k in places else v for k, v in inputs.items()}
        targets, carry = self._policy.step(ordered, carry)
        return np.asarray(targets)[:, self._back], carry

    def raw(self, carry: Any) -> tuple[np.ndarray, np.ndarray] | None:
        told = getattr(self._policy, "raw", lambda _: None)(carry)
        return None if told is None else (self._joints[told[0]], told[1])


def _places(path: str, what: str, trained: Sequence[str], there: Sequence[str]) -> np.ndarray:
    """For each name of the policy, its place in the environment."""
    if set(trained) != set(there):
        missing = ", ".join(n for n in trained if n not in there) or "none"
        extra = ", ".join(n for n in there if n not in trained) or "none"
        raise KsimError(
            f"{path}: {what} that the task has not: {missing}; {what} that the policy has not: {extra}; "
            "expected the same in both"
        )
    return np.asarray([list(there).index(name) for name in trained], dtype=np.intp)


def _fitted(
    path: str, policy: BatchPolicy, config: Config, spec: PolicySpec | None, joints: Sequence[str], names: Sequence[str]
) -> BatchPolicy:
    """The policy in the order of the configuration's robot and commands.

    Args:
        path: for messages.
        policy: of `joints` and `names`.
        config: the task.
        spec: what the policy was trained for, where it says.
        joints: the policy's joints, in its order.
        names: the policy's commands, in its order.

    Raises:
        KsimError: it was trained for another robot, other commands or another control period.
    """
    robot = load_robot(config.robot)
    if spec is not None:
        found = []
        if spec.robot.digest != robot.digest:
            from deploy.bundle.preflight import differences

            found = differences(spec.robot, robot)
        if found:
            raise KsimError(
                f"{path}: trained for another robot than {robot.name}: {'; '.join(found[:6])}"
                f"{f'; and {len(found) - 6} more' if len(found) > 6 else ''}; "
                "name the folder of its own: --set robot=FOLDER"
            )
        period = config.physics.control_period_s
        if abs(spec.control_period_s - period) > 1e-9:
            raise KsimError(
                f"{path}: configuration key physics.control_period_s: got {period:g}, expected "
                f"{spec.control_period_s:g}, the period that it was trained at"
            )
    ours = [COMMAND_ALIASES.get(name, name) for name in config.command_names]
    names = [COMMAND_ALIASES.get(name, name) for name in names]
    if spec is None and len(names) == len(ours) and set(names) != set(ours):
        names = ours  # files before kinfer 0.6 number their commands
    places = (
        _places(path, "joints", joints, robot.joint_names),
        _places(path, "commands", names, ours),
    )
    same = all((p == np.arange(len(p))).all() for p in places)
    return policy if same else ByName(policy, *places)


# of what a bundle tells of its training, the sections of a configuration
_TOLD = ("physics", "policy", "events", "randomizations", "channels", "observations", "resets", "rewards", "actuators")


def _as_trained(name: str, shipped: Config, spec: PolicySpec, *, whole: bool) -> Config:
    """The shipped task with what a bundle says of its training.

    Args:
        name: of the bundle.
        shipped: the task.
        spec: of the bundle.
        whole: all that it says, for a robot that is not the task's own. Else the gait clock alone: it runs in the
            policy, and what is told of the gait follows it.

    Raises:
        KsimError: what it says is not of this version.
    """
    data, said = shipped.to_dict(), spec.training
    if not whole:
        policy = said.get("policy")
        said = {"policy": {"clock": policy["clock"]}} if isinstance(policy, dict) and "clock" in policy else {}
    for room in _TOLD:
        told = said.get(room, data[room])
        # of the policy it leaves the critic out
        data[room] = {**data[room], **told} if room == "policy" and isinstance(told, dict) else told
    data["episode_length_s"] = said.get("episode_length_s", shipped.episode_length_s)
    try:
        return from_dict(data)
    except SettingsError as error:
        raise KsimError(
            f"{name}: what it says of its training does not fit this version ({' '.join(str(error).split())[:300]}); "
            "name its task with --config"
        ) from error


def _bundle_task(name: str, bundle: Bundle, config: str | None, overrides: Sequence[str]) -> Config:
    """The task of a bundle: what is given, else the shipped one of its name, on the robot that it names.

    Of another robot than the shipped task's it is the task as the bundle says that it was trained in.
    """
    if config is not None:
        return load_config(config, overrides)
    if bundle.spec is None:
        raise KsimError(f"{name}: the bundle names no task; give a configuration with --config")
    task, robot = bundle.spec.task, bundle.spec.robot.name
    if Path(task).name != task:
        raise KsimError(f"{name}: task {task!r:.100} is no name; give a configuration with --config")
    try:
        shipped = load_config(shipped_config(f"{task}.yaml"))
    except (FileError, SettingsError) as error:
        raise KsimError(
            f"{name}: its task {task!r:.100} is not one of ours ({' '.join(str(error).split())}); evaluate it in your "
            "own simulation, or name a task of ksim train that has its commands with --config"
        ) from error
    own = shipped.robot
    if not any(text.partition("=")[0].strip() == "robot" for text in overrides):
        try:
            if Path(robot).name != robot:
                raise RobotLoadError("expected a name")
            robot_folder(robot)
        except RobotLoadError:
            raise KsimError(
                f"{name}: trained for robot {robot!r:.100}, which is neither built in nor a folder here; "
                "name the folder of its description: --set robot=FOLDER"
            ) from None
        shipped = replace(shipped, robot=robot)
    shipped = _as_trained(name, shipped, bundle.spec, whole=robot != own)
    return apply_overrides(shipped, overrides)


def load_policy(name: str, config: str | None = None, overrides: Sequence[str] = ()) -> tuple[Config, BatchPolicy]:
    """(task, policy) of a .ckpt, a .kinfer or the word `home`, the PD hold without a policy.

    The policy's joints and commands are brought into the task's order by name.

    Args:
        name: what to run.
        config: the task to run it in; by default the checkpoint's own, or for a bundle the shipped
            one of the task that it names, on the robot that it names.
        overrides: `key=value` over the task; `robot=FOLDER` says where the policy's robot lies.

    Raises:
        KsimError: there is no task for it, or it was trained for another robot than the task's.
    """
    name = str(packaged(name))
    if name == "home":
        task = load_config(config or shipped_config("kbot_stand.yaml"), overrides)
        return task, HoldHome(load_robot(task.robot))
    if Path(name).suffix == ".kinfer":
        bundle = read_bundle(name)
        task = _bundle_task(name, bundle, config, overrides)
        policy: BatchPolicy = OnnxBatchPolicy(bundle)
        return task, _fitted(name, policy, task, bundle.spec, bundle.joint_names, bundle.command_names)
    trained = load_trained(name)
    task = load_config(config, overrides) if config else apply_overrides(trained.config, overrides)
    spec, trained_with = trained.spec, trained.config.policy
    # another task may have another policy beside it; what this one sees it has to give
    for key in ("sees",) if config else (f.name for f in fields(trained_with)):
        got, expected = getattr(task.policy, key), getattr(trained_with, key)
        if got != expected:
            raise KsimError(
                f"{name}: policy.{key}: got {_words(got)}, expected what it was trained with: {_words(expected)}; "
                "training changes it (ksim train --init)"
            )
    policy = JaxBatchPolicy(trained.policy)
    return task, _fitted(name, policy, task, spec, spec.robot.joint_names, spec.command_names)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) or "nothing" if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    from ksim.cli import main

    sys.exit(main(["eval", *sys.argv[1:]]))
