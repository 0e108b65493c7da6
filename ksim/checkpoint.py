"""One .ckpt file: a zip of .npy arrays and one JSON document. No pickle, written atomically.

Same content, same bytes: members are sorted, dates fixed. `last.ckpt` holds all that `--resume` needs;
`model.ckpt` holds the model alone.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ksim.commands import UniformCommands
from ksim.config import Config, from_dict
from ksim.errors import CheckpointError, ConfigError
from ksim.policy import INPUTS, Model, Policy, make_model, make_policy
from robots.bundle import atomic_path
from robots.errors import SpecError
from robots.spec import PolicySpec, RobotSpec, canonical_json, digest, input_specs

FORMAT = 1
PRIVILEGED_MAX = 100_000
_DATE = (1980, 1, 1, 0, 0, 0)


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
    with atomic_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        members = {"meta.json": canonical_json({"format": FORMAT, **meta}).encode()}
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name], order="C"), allow_pickle=False)
            members[f"arrays/{name}.npy"] = buffer.getvalue()
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def read(path: str | Path, model_only: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays) of a checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint (ksim train writes model.ckpt)")
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read("meta.json"))
            arrays = {}
            for name in archive.namelist():
                if not name.startswith("arrays/"):
                    continue
                key = name.removeprefix("arrays/").removesuffix(".npy")
                if not model_only or key.startswith("model"):
                    data = io.BytesIO(archive.read(name))
                    arrays[key] = np.lib.format.read_array(data, allow_pickle=False)
    except Exception as error:  # zipfile, zlib and numpy have no common root for what a damaged file makes them raise
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}); it may be truncated") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        got = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise CheckpointError(f"{path}: checkpoint format {got!r}, expected {FORMAT}")
    return meta, arrays


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


def policy_spec(config: Config, robot: RobotSpec, policy: Policy, weights: str) -> PolicySpec:
    """What the bundle says about a policy of this configuration."""
    commands = UniformCommands.of(config.commands).specs
    known = input_specs(robot, commands)
    latency = config.latency
    return PolicySpec(
        task=config.task,
        robot=robot,
        inputs=tuple(known[name] for name in INPUTS if name in known),
        commands=commands,
        carry_size=policy.carry_size,
        control_period_s=config.physics.control_period_s,
        action_low_rad=policy.targets.low,
        action_high_rad=policy.targets.high,
        observation_latency_s=(latency.observation_s[0], latency.observation_s[1] + latency.jitter_s),
        action_latency_s=(latency.action_s[0], latency.action_s[1] + latency.jitter_s),
        weights_digest=weights,
        config_digest=config.digest,
        versions=versions(),
    )


def model_arrays(model: Model) -> dict[str, np.ndarray]:
    """The model's arrays as a checkpoint names them."""
    return named_leaves(model, "model")


def weights_digest(arrays: dict[str, np.ndarray]) -> str:
    """Digest of the model's parameters: names, shapes, bytes."""
    items = {k: [list(v.shape), digest(np.ascontiguousarray(v).tobytes())] for k, v in arrays.items()}
    return digest({k: v for k, v in items.items() if k.startswith("model")})


def load_trained(path: str | Path) -> Trained:
    """The policy of a checkpoint, with its spec and configuration.

    Raises:
        CheckpointError: the file is missing, damaged, or does not fit its own description.
    """
    meta, arrays = read(path, model_only=True)
    try:
        config = from_dict(meta["config"])
        robot = RobotSpec.from_json(meta["robot"])
        if meta.get("robot_digest", digest(meta["robot"])) != digest(meta["robot"]):
            raise CheckpointError("the robot in it is not the one that it was trained on; it was altered")
        privileged = meta["privileged"]
        if not isinstance(privileged, int) or isinstance(privileged, bool) or not 1 <= privileged <= PRIVILEGED_MAX:
            raise CheckpointError(
                f"privileged: got {privileged!r:.100}, expected an integer from 1 to {PRIVILEGED_MAX}"
            )
        template = make_model(robot, len(config.commands), privileged, config.policy, key=jax.random.key(0))
        model = fill(template, "model", arrays)
    except (KeyError, ConfigError, SpecError, TypeError) as error:
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(f"{path}: not a checkpoint of this version: {reason}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    policy = make_policy(model.actor, robot, len(config.commands), config.policy)
    spec = policy_spec(config, robot, policy, weights_digest(arrays))
    return Trained(policy=policy, spec=spec, config=config, meta=meta)
