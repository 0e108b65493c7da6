"""`ksim replay`: one episode, played again from its seed, as a list of events that can be compared.

The first event is the birth: the state that the reset gave, with what the randomisation drew. Each further event is one
control step. The same seed gives the same bytes on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ksim.config import Config
from ksim.environment import Ended, EnvBatch, Environment, Observed, Outcome, make_environment
from ksim.errors import KsimError, ReplayError
from ksim.evaluate import BatchPolicy, JaxBatchPolicy, load_policy, moved_joints, raw_action, start_key
from ksim.learning.checkpoint import Trained, load_trained, versions
from ksim.replay_log import BIRTH, FORMAT, VERSION, Log, hash_arrays, plain, validate_log
from ksim.schema import values
from ksim.types import Action, Drive, PhysicsState
from robots import read_bundle
from robots.model import BuiltModel
from robots.spec import PolicySpec, canonical_json
from toolkit.files import atomic_path
from toolkit.strict_json import loads

# What the numbers of a joint are, in qpos and in qvel, by how many it has in qpos: hinges and slides, balls, free ones.
_COORDINATES = {
    1: (("",), ("",)),
    4: (("qw", "qx", "qy", "qz"), ("wx", "wy", "wz")),
    7: (("x", "y", "z", "qw", "qx", "qy", "qz"), ("vx", "vy", "vz", "wx", "wy", "wz")),
}


def hash_state(state: PhysicsState) -> str:
    """SHA-256 of a state, as hex: qpos, qvel, torque, sensors and the motors' memory, with names, types and shapes."""
    return hash_arrays(values("PhysicsState", state))


@dataclass(frozen=True)
class TrajectorySegment:
    """What happened between two states.

    Attributes:
        action: joint targets that the policy decided [rad], (n,); at the birth those that hold at the reset.
        reward: sum of the weighted rewards of the step.
        done: the episode ended with it.
        info: `layers`, the values that passed through each layer; the birth's also has `birth`, what the run was.
    """

    action: np.ndarray
    reward: float
    done: bool
    info: dict[str, Any]


@dataclass(frozen=True)
class KsimNaryaEvent:
    """One transition of one robot, or its birth.

    Attributes:
        event_id: `birth`, `step_0`, `step_1`, ...
        before: the state before; None at the birth.
        after: the state after, before anything is started anew.
        delta: what was done and what it gave.
        trit: the sign of the reward: -1, 0 or 1.
    """

    event_id: str
    before: PhysicsState | None
    after: PhysicsState
    delta: TrajectorySegment
    trit: int

    @property
    def impact(self) -> int:
        """1 where the episode ended, else 0."""
        return int(self.delta.done)

    def to_jsonl(self) -> str:
        """One line of strict JSON, every number exact."""
        line = {
            "event_id": self.event_id,
            "before_hash": None if self.before is None else hash_state(self.before),
            "after_hash": hash_state(self.after),
            "delta": {"action": plain(self.delta.action), "reward": plain(self.delta.reward)},
            "trit": self.trit,
            "impact": self.impact,
            **self.delta.info,
        }
        return json.dumps(line, allow_nan=False, separators=(",", ":"))


def trit(reward: float) -> int:
    """The sign of a reward: -1, 0 or 1."""
    return int(reward > 0) - int(reward < 0)


@dataclass(frozen=True, kw_only=True)
class Player:
    """A policy with what is known of it.

    Attributes:
        policy: what decides.
        name: what it was called.
        spec: what it says about itself; None where it says nothing.
    """

    policy: BatchPolicy
    name: str
    spec: PolicySpec | None = None


def load_player(
    policy: str | Path | Trained, config: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Config, Player]:
    """(task, policy) of a checkpoint, a bundle, the word `home`, or what `load_trained` gave."""
    if isinstance(policy, Trained):
        return policy.config, Player(policy=JaxBatchPolicy(policy.policy), name="trained", spec=policy.spec)
    name = str(policy)
    task, batched = load_policy(name, config, overrides)
    if name == "home":
        spec = None
    elif Path(name).suffix == ".kinfer":
        spec = read_bundle(name).spec
    else:
        spec = load_trained(name).spec
    return task, Player(policy=batched, name=Path(name).name, spec=spec)


def replay_episode(
    seed: int,
    policy: BatchPolicy | Trained | Player | str | Path,
    *,
    config: Config | None = None,
    engine: str = "mujoco",
    level: float = 1.0,
    environment: Environment | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[KsimNaryaEvent]:
    """One episode from its birth to its end: as the first of `ksim eval` with this seed.

    Args:
        seed: of all that is random.
        policy: a batch policy, a checkpoint or a bundle, loaded or by its path.
        config: the task; by default the policy's own. A policy that names none needs it.
        engine: mujoco, mjx or auto.
        level: the curriculum's level, 0 to 1.
        environment: one to use again, of one robot and of this task and engine.
        progress: called with (step, steps).

    Raises:
        KsimError: there is no task for the policy.
        ReplayError: a name in the task is one that no log may have: too long, or no plain text.
    """
    if isinstance(policy, (str, Path, Trained)):
        own, policy = load_player(policy)
        config = config or own
    player = policy if isinstance(policy, Player) else Player(policy=policy, name=type(policy).__name__)
    config = environment.config if environment is not None else config
    if config is None:
        raise KsimError("replay: the policy names no task; expected a configuration; give it with config=")
    env = environment if environment is not None else make_environment(config, 1, engine)
    if env.envs != 1:
        raise KsimError(f"replay: got an environment of {env.envs} robots, expected 1")
    batch, seen = env.reset(start_key(seed), level=level)
    moved = moved_joints(env.config, env.scene.built.spec)
    after, carry = _one(batch.physics.public()), player.policy.init(1)
    header = _header(seed, env, player, after, level)
    info = {"birth": header, "layers": _birth_layers(batch, seen, after)}
    events = [KsimNaryaEvent(BIRTH, None, after, TrajectorySegment(_one(batch.env.target), 0.0, False, info), 0)]
    _check_names(events[0])
    for step in range(env.episode_steps):
        inputs = {k: np.asarray(v) for k, v in seen.inputs.items()}
        targets, carry = player.policy.step(inputs, carry)
        known = raw_action(player.policy, carry, moved)
        raw = np.zeros((1, env.scene.actions), np.float32) if known is None else known
        target = np.asarray(targets, np.float32)
        before, given = after, batch
        batch, drive, seen, outcome = env.advance(batch, raw, target, level)
        after, reward = _one(batch.physics.public()), float(np.asarray(outcome.reward)[0])
        decided = {} if known is None else {"raw": plain(raw[0])}
        layers = _step_layers(env, given, batch, drive, seen, outcome, decided, level)
        done = bool(np.asarray(outcome.done)[0])
        segment = TrajectorySegment(target[0], reward, done, {"layers": layers})
        events.append(KsimNaryaEvent(f"step_{step}", before, after, segment, trit(reward)))
        if progress is not None:
            progress(step + 1, env.episode_steps)
        if done:
            break
    return events


def write_log(events: Sequence[KsimNaryaEvent], path: str | Path) -> Log:
    """Write events as JSON lines beside `path`, read them back and check them, then rename the file there.

    Raises:
        ReplayError: they are no whole episode.
    """
    with atomic_path(path) as part:
        part.write_text("".join(f"{event.to_jsonl()}\n" for event in events), encoding="utf-8")
        try:
            log = validate_log(part)
        except ReplayError as error:
            raise ReplayError(str(error).replace(str(part), str(path))) from error
    return replace(log, path=Path(path))


def _check_names(birth: KsimNaryaEvent) -> None:
    """All names are in the birth; whoever reads the log bounds them."""
    try:
        loads(birth.to_jsonl().encode())
    except ValueError as error:
        raise ReplayError(
            f"replay: its log could not be read again: {error}; choose other names in the task"
        ) from error


def _one(tree: Any) -> Any:
    """The first environment of a batch, as numpy arrays of its own."""
    return jax.tree.map(lambda v: np.array(np.asarray(v)[0]), tree)


def _header(seed: int, env: Environment, player: Player, state: PhysicsState, level: float) -> dict[str, Any]:
    """What the run was: enough to play it again, and to name what two runs were told differently."""
    scene, config = env.scene, env.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ("ppo", "run", "threads", "critic")}
    return {
        "format": FORMAT,
        "version": VERSION,
        "seed": seed,
        "task": config.task,
        "robot": scene.built.spec.name,
        "robot_digest": scene.built.spec.digest,
        "engine": type(env.engine).__name__,
        "level": float(level),
        "control_period_s": scene.control_period_s,
        "policy": {"name": player.name, "weights": player.spec.weights_digest if player.spec else ""},
        "names": {
            "joints": list(scene.joint_names),
            "commands": list(scene.command_names),
            **_element_names(scene.built),
        },
        "dtypes": {name: np.asarray(v).dtype.str for name, v in values("PhysicsState", state).items()},
        "settings": json.loads(canonical_json(settings)),  # in one order, whatever the order they were given in
        "versions": versions(),
    }


def _element_names(built: BuiltModel) -> dict[str, list[str]]:
    """What each element of qpos, qvel and sensordata is, by the names of joints and sensors."""
    model = built.model
    out = {"qpos": [""] * model.nq, "qvel": [""] * model.nv, "sensordata": [""] * model.nsensordata}

    def put(field: str, at: int, name: str, parts: Sequence[str]) -> None:
        out[field][at : at + len(parts)] = [f"{name} {part}".strip() for part in parts]

    for j in range(model.njnt):
        joint = model.joint(j)
        size, name = joint.qpos0.size, joint.name or f"joint {j}"
        put("qpos", int(joint.qposadr[0]), name, _COORDINATES[size][0])
        put("qvel", int(joint.dofadr[0]), name, _COORDINATES[size][1])
    for i in range(model.nsensor):
        sensor = model.sensor(i)
        size = int(sensor.dim[0])
        put("sensordata", int(sensor.adr[0]), sensor.name, [""] if size == 1 else [str(k) for k in range(size)])
    return out


def _birth_layers(batch: EnvBatch, seen: Observed, state: PhysicsState) -> dict[str, Any]:
    params, carries = _one(batch.params), _one({k: batch.env.carries[k] for k in ("channels", "events")})
    channels = {name: plain(carry["sampling"]) for name, carry in carries["channels"].items()}
    drawn = {"model": params.model, "motor": params.motor, "joint_offset": params.joint_offset}
    drawn |= {"target_bias": params.target_bias, "drawn": params.drawn, "events": carries["events"]}
    return {
        "given": {},
        "policy": {},
        "action_path": {"channel": channels.pop("action")},
        "physics": {**plain(drawn), **plain(values("PhysicsState", state))},
        "reward": {},
        "observation": {
            "imu_tilt": plain(params.imu_tilt),
            "channels": channels,
            **plain(values("Observation", _one(Observed(seen.inputs, ())))),
        },
    }


def _step_layers(
    env: Environment,
    given: EnvBatch,
    batch: EnvBatch,
    drive: Drive,
    seen: Observed,
    outcome: Outcome,
    decided: dict[str, Any],
    level: float,
) -> dict[str, Any]:
    """What passed through each layer in one control step; `given` and `batch` are before and after it."""
    ended = Ended(outcome.done, outcome.timeout, outcome.fell)
    raw, target = batch.env.action, batch.env.target
    row = values("Trajectory", _one(env.row(batch.physics, given.env, Action(raw, target), ended, level)))
    ends = ("done", "timeout", "fell")
    acted = _one(drive)
    return {
        "given": plain({name: value for name, value in row.items() if name not in ends}),
        "policy": decided,
        "action_path": {"command": plain(acted.command)},
        "physics": plain(
            {
                "wrench_w": acted.wrench_w,
                "kick": acted.kick,
                **values("PhysicsState", _one(batch.physics.public())),
            }
        ),
        "reward": plain({"terms": outcome.terms, **{name: row[name] for name in ends}}),
        "observation": plain(values("Observation", _one(Observed(seen.inputs, ())))),
    }
