"""One .ckpt file: a zip of .npy arrays and one JSON document. No pickle, written atomically.

Same content, same bytes: members are sorted, dates fixed. `last.ckpt` holds all that `--resume` needs;
`model.ckpt` holds the model alone. The document holds a digest of the rest of it, the order of its keys included.
Files of format 1, the first version's, have none.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import platform
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ksim.config import Config
from ksim.errors import CheckpointError
from ksim.learning.description import FIRST_FORMAT, check_description, described, read_config, read_robot
from ksim.learning.policy import ESTIMATED, INPUTS, Encoding, Model, Policy, make_model, make_policy
from robots.command_names import COMMAND_ALIASES
from robots.errors import SpecError
from robots.spec import PolicySpec, RobotSpec, digest, input_specs
from toolkit.errors import SettingsError
from toolkit.file_kind import FileKind, mistaken
from toolkit.files import atomic_path
from toolkit.strict_json import loads

# of the policy's settings, those that say what its networks are made of, and what they see and move
_SHAPES = (*("network", "hidden", "layers", "head", "history", "normalise", "hold", "passthrough", "clock"), "sees")
# and those that say what a raw action means
_ACTS = ("hold", "passthrough", "clock", "action_scale", "smoothing", "target_speed", "target_acceleration")
_DATE = (1980, 1, 1, 0, 0, 0)
_REMEDIES = {
    FileKind.BUNDLE: "name the checkpoint that it was exported from; the name of a bundle ends in .kinfer",
    FileKind.LOG: "ksim log info {path} tells what it says",
}


def named_leaves(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Array leaves of a pytree by path; random keys as their bits."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not eqx.is_array_like(leaf):
            continue
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        out[prefix + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return out


def fill(template: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    """The template with its array leaves taken from `arrays`.

    Raises:
        CheckpointError: an array is missing or of another shape or type.
    """

    def one(path: Any, leaf: Any) -> Any:
        if not eqx.is_array_like(leaf):
            return leaf
        name = prefix + jax.tree_util.keystr(path)
        if name not in arrays:
            raise CheckpointError(f"checkpoint: no array {name}; it was written by another version or task")
        value = arrays[name]
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        shape, kind = np.shape(expected), np.dtype(getattr(expected, "dtype", np.asarray(expected).dtype))
        if value.shape != shape or value.dtype != kind:
            raise CheckpointError(f"checkpoint: array {name}: got {value.shape} {value.dtype}, expected {shape} {kind}")
        return jax.random.wrap_key_data(jnp.asarray(value)) if is_key else jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(one, template)


def write(path: str | Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a checkpoint beside `path`, then rename it there."""
    members = {"meta.json": described({**meta, "weights": weights_digest(arrays)})}
    for name in sorted(arrays):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(arrays[name], order="C"), allow_pickle=False)
        members[f"arrays/{name}.npy"] = buffer.getvalue()
    # whole before there is a file: a signal within would leave zipfile half open
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    with atomic_path(path) as part:
        part.write_bytes(whole.getbuffer())


def read(path: str | Path, wanted: tuple[str, ...] = ("",)) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays) of a checkpoint; of its arrays those whose name starts with one of `wanted`.

    Raises:
        CheckpointError: the file is missing, truncated, altered or not a checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "model.ckpt"
        hint = f"did you mean {inside}?" if inside.is_file() else "name a file in it"
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint; {hint}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint (ksim train writes model.ckpt)")
    try:
        with zipfile.ZipFile(path) as archive:
            meta = loads(archive.read("meta.json"))
            arrays = {}
            for name in archive.namelist():
                if not name.startswith("arrays/"):
                    continue
                key = name.removeprefix("arrays/").removesuffix(".npy")
                if key.startswith(wanted):
                    data = io.BytesIO(archive.read(name))
                    arrays[key] = np.lib.format.read_array(data, allow_pickle=False)
    except Exception as error:  # zipfile, zlib and numpy have no common root for what a damaged file makes them raise
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        other = mistaken(path, "a checkpoint of ksim train (.ckpt)", {FileKind.CHECKPOINT, FileKind.UNKNOWN}, _REMEDIES)
        raise CheckpointError(
            other or f"{path}: not a readable checkpoint ({reason}); it may be truncated or altered"
        ) from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: its description is {type(meta).__name__}, expected an object")
    check_description(path, meta)
    whole = any("model".startswith(prefix) for prefix in wanted)
    if whole and meta["format"] != FIRST_FORMAT and meta.get("weights") != weights_digest(arrays):
        raise CheckpointError(
            f"{path}: its networks are not those that it was written with; it was altered; use another"
        )
    return meta, arrays


def check_finite(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """That every number of the networks is one.

    Raises:
        CheckpointError: it names the array.
    """
    for name, value in arrays.items():
        if name.startswith("model") and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CheckpointError(f"{path}: array {name} holds numbers that are not finite; use another")


def model_of(path: str | Path, target: str | Path) -> None:
    """Write model.ckpt from last.ckpt: what is in it of the model, to the byte as training would write it."""
    meta, arrays = read(path, wanted=("model", "learner.scale"))
    write(target, meta, arrays)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained policy with all that export needs."""

    policy: Policy
    spec: PolicySpec
    config: Config
    meta: dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of what makes a checkpoint or a bundle."""
    names = ("ksim2real", "jax", "jaxlib", "equinox", "optax", "mujoco", "mujoco-mjx", "numpy")
    out = {"python": platform.python_version()}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def training_settings(config: Config, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of the policy would ask about its training; `steps` only where the checkpoint tells them."""
    settings = config.to_dict()
    policy = settings["policy"]
    steps = meta.get("progress", {}).get("steps")
    rooms = ("physics", "events", "randomizations", "channels", "observations", "resets", "rewards", "actuators")
    return {
        "task": config.task,
        "seed": config.seed,
        **({} if steps is None else {"steps": steps}),
        **({"started_from": meta["started_from"]} if "started_from" in meta else {}),
        "episode_length_s": config.episode_length_s,
        "policy": {k: v for k, v in policy.items() if not k.startswith("critic")},
        **{room: settings[room] for room in rooms},
    }


def policy_spec(
    config: Config, robot: RobotSpec, policy: Policy, weights: str, meta: Mapping[str, Any] | None = None
) -> PolicySpec:
    """What the bundle says about a policy of this configuration.

    Args:
        config: the resolved configuration.
        robot: the robot that it was trained on.
        policy: the policy function.
        weights: digest of its parameters.
        meta: what the checkpoint says about itself.
    """
    meta = meta or {}
    commands = config.command_specs
    known = input_specs(robot, commands)
    return PolicySpec(
        task=config.task,
        robot=robot,
        inputs=tuple(known[name] for name in INPUTS if name in known),
        commands=commands,
        carry_size=policy.carry_size,
        carry_layout=policy.carry_layout,
        control_period_s=config.physics.control_period_s,
        action_low_rad=policy.targets.low,
        action_high_rad=policy.targets.high,
        observation_latency_s=config.latency_s(*config.sensing_channels),
        action_latency_s=config.latency_s("action"),
        weights_digest=weights,
        # of the configuration as it was written: a key that is newer than the checkpoint changes nothing
        config_digest=digest(meta["config"]) if "config" in meta else config.digest,
        versions=versions(),
        training=training_settings(config, meta),
    )


def model_arrays(model: Model) -> dict[str, np.ndarray]:
    """The model's arrays as a checkpoint names them."""
    return named_leaves(model, "model")


def weights_digest(arrays: dict[str, np.ndarray]) -> str:
    """Digest of the model's parameters: names, shapes, bytes."""
    items = {k: [list(v.shape), digest(np.ascontiguousarray(v).tobytes())] for k, v in arrays.items()}
    return digest({k: v for k, v in items.items() if k.startswith("model")})


# The arrays of a network whose first columns are its inputs, by the end of their names.
_SEES_INPUTS = (".hidden_layers[0].weight", ".cells[0].weight_ih", ".hidden_layer.weight")


@dataclass(frozen=True, kw_only=True)
class Start:
    """The networks of a checkpoint, for another run to start with.

    Attributes:
        path: the file.
        config: its configuration.
        robot: the robot that it was trained on.
        level: the curriculum's level that it had reached, 0 to 1.
        arrays: its arrays by name.
        origin: what the new run's checkpoints say about it: weights_digest, steps, and its own start where it had one.
    """

    path: Path
    config: Config
    robot: RobotSpec
    level: float
    arrays: dict[str, np.ndarray]
    origin: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Start:
        """Read a checkpoint, model.ckpt or last.ckpt.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        meta, arrays = read(path, wanted=("model", "learner.scale"))
        config, robot = read_config(path, meta), read_robot(path, meta)
        progress = meta.get("progress", {})
        missing = [name for name in ("level", "steps") if name not in progress]
        if missing:
            raise CheckpointError(f"{path}: its progress has no {', '.join(missing)}; use another checkpoint")
        level, steps = float(progress["level"]), progress["steps"]
        check_finite(path, arrays)
        origin: dict[str, Any] = {"weights_digest": weights_digest(arrays), "steps": steps}
        if isinstance(meta.get("started_from"), dict):
            origin["started_from"] = meta["started_from"]
        return cls(path=Path(path), config=config, robot=robot, level=level, arrays=arrays, origin=origin)

    def check(self, robot: RobotSpec, config: Config, other: str = "this run has") -> None:
        """Whether each number that the networks see and give means the same in the new run.

        Args:
            robot: of the new run.
            config: likewise.
            other: what a message calls the new run.

        Raises:
            CheckpointError: what differs.
        """
        old, new = self.config.policy, config.policy
        pairs: dict[str, tuple[Any, Any]] = {
            "robot's joints": (list(self.robot.joint_names), list(robot.joint_names)),
            "commands": (_current(self.config.command_names), _current(config.command_names)),
        }
        pairs |= {f"critic.{name}": (self.config.critic.get(name), config.critic[name]) for name in new.sees}
        if config.ppo.symmetry == "exact":  # of another the nearest is not near
            pairs["ppo.symmetry"] = (self.config.ppo.symmetry, "exact")
        for key in _SHAPES:
            pairs[f"policy.{key}"] = (getattr(old, key), getattr(new, key))
        if old.clock.frequency_hz > 0 and new.clock.frequency_hz > 0:  # a phase means the same at any speed
            pairs["policy.clock"] = (replace(old.clock, frequency_hz=1.0), replace(new.clock, frequency_hz=1.0))
        if old.estimator:  # a new one may come to networks without
            pairs["policy.estimator"] = (old.estimator, new.estimator)
        for name, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise CheckpointError(
                    f"{self.path}: its {name}: {theirs!r:.200}; {other} {ours!r:.200}; they must be the same to "
                    "start with its networks"
                )

    def networks(self, model: Model, scale: Any, config: Config, sizes: Mapping[str, int]) -> tuple[Model, Any, str]:
        """The fresh model, and the scale of its critic's values, filled; the scale only where the file has it.

        The critic comes along term by term: what is new to it starts with weights of zero. Where it has another shape,
        or more than one term is gone, it stays fresh: the actor is what matters.

        Args:
            model: the fresh model.
            scale: of its critic's values.
            config: of the new run.
            sizes: length of each term of the new critic, in order.

        Returns:
            (model, scale, what a person should know about the critic, in one line, or nothing).

        Raises:
            CheckpointError: an array of the actor is missing or of another shape.
        """
        try:
            actor = fill(model.actor, "model.actor", self._actor_of(model, config))
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        model = eqx.tree_at(lambda m: m.actor, model, actor)
        own = self.config.critic
        new = [name for name, term in config.critic.items() if own.get(name) != term]
        try:
            same = list(own.items()) == list(config.critic.items())
            arrays = self.arrays if same else self._critic_of(model, new, sizes)
            model = eqx.tree_at(lambda m: m.critic, model, fill(model.critic, "model.critic", arrays))
        except CheckpointError:
            gone = ", ".join(name for name in own if name in new or name not in config.critic)
            anew = (
                f"the critic starts anew: that of {self.path} is of another shape, or saw what this one does not "
                f"({gone or 'nothing'}). Until it is as good, learning makes the policy worse. Leave it as it is"
            )
            return model, scale, anew
        with contextlib.suppress(CheckpointError):
            if any(name.startswith("learner.scale") for name in self.arrays):
                scale = fill(scale, "learner.scale", self.arrays)
        return model, scale, f"new to the critic: {', '.join(new)}" if new else ""

    def _actor_of(self, model: Model, config: Config) -> dict[str, np.ndarray]:
        """The actor's arrays; a new estimator is the fresh one, and counts as `ppo.estimator_gain` says."""
        if model.actor.estimator is None or self.config.policy.estimator:
            return self.arrays
        fresh = {name: np.asarray(value) for name, value in named_leaves(model.actor, "model.actor").items()}
        out = {name: value for name, value in fresh.items() if name.startswith("model.actor.estimator")} | self.arrays
        told, gain = len(ESTIMATED), config.ppo.estimator_gain
        seen = model.actor.net.inputs - told
        encoding = Encoding.of(self.robot, config.command_specs, config.policy)
        places = encoding.of_commands(config.command_names, len(self.robot.joints))
        for name in fresh:
            if not (name.startswith("model.actor.net") and name.endswith(_SEES_INPUTS) and name in out):
                continue
            weight = np.insert(out[name], [seen] * told, 0.0, axis=1)
            bias = name.removesuffix("weight_ih").removesuffix("weight") + "bias"
            for i, command in enumerate(ESTIMATED):
                if command in places:  # the network sees (command + offset) * scale
                    at = places[command]
                    per_unit = gain * encoding.scale[at] * weight[:, at]
                    weight[:, seen + i] -= per_unit
                    weight[:, at] *= 1.0 + gain
                    out[bias] = out[bias] - encoding.offset[at] * per_unit
            out[name] = weight
        return out

    def _critic_of(self, model: Model, new: Sequence[str], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The critic's arrays with the columns of its first layers where the new run has their terms.

        Raises:
            CheckpointError: which column belongs to which term cannot be told.
        """
        fresh = {name: np.zeros_like(value) for name, value in named_leaves(model.critic, "model.critic").items()}
        first = {name: self.arrays[name] for name in fresh if name.endswith(_SEES_INPUTS) and name in self.arrays}
        width = min((value.shape[1] for value in first.values() if value.ndim == 2), default=0)
        gone = [name for name in self.config.critic if name in new or name not in sizes]
        rest = width - sum(sizes[name] for name in self.config.critic if name not in gone)
        if len(gone) > 1 or rest < 0 or (rest > 0) != bool(gone):
            raise CheckpointError(f"{self.path}: its critic has other inputs")
        places, at = {}, 0
        for name, size in sizes.items():
            places[name] = slice(at, at + size)
            at += size
        out = dict(self.arrays)
        for array, value in first.items():
            moved, begin = fresh[array].copy(), 0
            for name in self.config.critic:
                size = rest if name in gone else sizes[name]
                if name not in gone:
                    moved[:, places[name]] = value[:, begin : begin + size]
                begin += size
            # what is no input: the layer's own memory
            if moved.shape[1] - at != value.shape[1] - width:
                raise CheckpointError(f"{self.path}: its critic is of another size")
            moved[:, at:] = value[:, width:]
            out[array] = moved
        return out


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A policy whose actions another learns.

    Attributes:
        policy: the policy function.
        sees: names of the critic's terms that it sees, in order; empty where it sees what a robot gives.
        origin: weights_digest and steps, for the checkpoints of its student.
    """

    policy: Policy
    sees: tuple[str, ...]
    origin: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path, robot: RobotSpec, config: Config, sizes: Mapping[str, int]) -> Teacher:
        """The teacher of a run.

        Args:
            path: its checkpoint.
            robot: the robot of the run.
            config: its configuration.
            sizes: length of each of its critic's terms.

        Raises:
            CheckpointError: the file is damaged, or what it sees or does means something else in the run.
        """
        start = Start.read(path)
        own, new = start.config, config
        pairs: dict[str, tuple[Any, Any]] = {
            "robot's joints": (list(start.robot.joint_names), list(robot.joint_names)),
            "commands": (_current(own.command_names), _current(new.command_names)),
            "physics.control_period_s": (own.physics.control_period_s, new.physics.control_period_s),
        }
        pairs |= {f"policy.{key}": (getattr(own.policy, key), getattr(new.policy, key)) for key in _ACTS}
        pairs |= {f"critic.{name}": (own.critic[name], new.critic.get(name)) for name in own.policy.sees}
        for name, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise CheckpointError(
                    f"{path}: its {name}: {theirs!r:.200}; this run has {ours!r:.200}; they must be the same to learn "
                    "from it"
                )
        trained = load_trained(path)
        for name, size in _sizes(path, trained.meta, own).items():
            if sizes[name] != size:
                raise CheckpointError(f"{path}: its critic.{name} is of {size} numbers; this run's is of {sizes[name]}")
        return cls(policy=trained.policy, sees=own.policy.sees, origin=start.origin)


def _current(names: Sequence[str]) -> list[str]:
    return [COMMAND_ALIASES.get(name, name) for name in names]


def _sizes(path: str | Path, meta: Mapping[str, Any], config: Config) -> dict[str, int]:
    """Length of each of the critic's terms that a teacher sees; empty for a policy of a robot's inputs.

    Raises:
        CheckpointError: it is not told.
    """
    told, sees = meta.get("sees", {}), config.policy.sees
    fit = isinstance(told, dict) and set(told) == set(sees)
    if not fit or not all(type(size) is int and 0 <= size <= 100_000 for size in told.values()):
        raise CheckpointError(f"{path}: sees: {told!r:.200}; expected the lengths of {', '.join(sees) or 'nothing'}")
    return {name: told[name] for name in sees}


def load_trained(path: str | Path, *, teachers: bool = True) -> Trained:
    """The policy of a checkpoint, with its spec and configuration.

    Args:
        path: the file.
        teachers: it may be a teacher, which sees what no robot gives.

    Raises:
        CheckpointError: the file is missing, damaged, altered, or does not fit its own description.
    """
    meta, arrays = read(path, wanted=("model",))
    config, robot = read_config(path, meta), read_robot(path, meta)
    if config.policy.sees and not teachers:
        raise CheckpointError(
            f"{path}: a teacher: it sees {', '.join(config.policy.sees)}, which no robot gives; expected a policy of a "
            f"robot's inputs; train one with --set ppo.teacher={path}"
        )
    check_finite(path, arrays)
    try:
        # the critic stays in the file: its length is all that the actor's template needs
        sees = sum(_sizes(path, meta, config).values())
        template = make_model(robot, 1, config, sees=sees, key=jax.random.key(0))
        actor = fill(template.actor, "model.actor", arrays)
    except (SettingsError, SpecError) as error:
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(f"{path}: not a checkpoint of this version: {reason}; use another") from error
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    policy = make_policy(actor, robot, config)
    spec = policy_spec(config, robot, policy, weights_digest(arrays), meta)
    return Trained(policy=policy, spec=spec, config=config, meta=meta)
