"""The mirror image of what the network sees and does, from the mirror map that physics has checked (robots/mirror.py).

The encoding is affine in its inputs, so the mirror image of an encoded vector is affine in that vector. It is found by
decoding, mirroring and encoding again, so no second table of signs exists.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ksim.errors import ConfigError
from robots.mirror import MirrorMap
from robots.spec import RobotSpec

if TYPE_CHECKING:
    from ksim.learning.policy import Encoding
    from ksim.observation import Observation
    from ksim.scene import Scene


@dataclass(frozen=True, kw_only=True)
class NetMirror:
    """Mirror images of the network's vectors. Twice is the identity, but for a command that is a point.

    Attributes:
        matrix: of the observation, (obs, obs): rows of numbers.
        offset: likewise, (obs,).
        action_index: source of each element of the raw action.
        action_sign: its sign.
    """

    matrix: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...]
    action_index: tuple[int, ...]
    action_sign: tuple[float, ...]

    def observation(self, vector: Any) -> Any:
        """The encoded observation of the mirrored robot, (..., obs)."""
        matrix, offset = np.asarray(self.matrix, np.float32), np.asarray(self.offset, np.float32)
        return vector @ matrix.T + offset

    def action(self, raw: Any) -> Any:
        """The raw action of the mirrored robot, (..., actions)."""
        return jnp.take(raw, np.asarray(self.action_index, np.int32), axis=-1) * np.asarray(
            self.action_sign, np.float32
        )

    def beside(self, signs: tuple[float, ...]) -> NetMirror:
        """The same of an observation with more numbers after it, which change their signs alone."""
        seen, more = len(self.offset), len(signs)
        rows = [(*row, *(0.0,) * more) for row in self.matrix]
        rows += [(*(0.0,) * (seen + i), sign, *(0.0,) * (more - 1 - i)) for i, sign in enumerate(signs)]
        return dataclasses.replace(self, matrix=tuple(rows), offset=(*self.offset, *(0.0,) * more))

    def spread(self, log_std: Any) -> Any:
        """The spread of the mirrored action, (..., actions)."""
        return jnp.take(log_std, np.asarray(self.action_index, np.int32), axis=-1)


def net_mirror(
    mirror: MirrorMap, robot: RobotSpec, encoding: Encoding, commands: Sequence[str], active: Sequence[int], clock: bool
) -> NetMirror:
    """The mirror of a policy's vectors.

    Args:
        mirror: of the robot.
        robot: it.
        encoding: what the network sees.
        commands: names of the command vector's elements.
        active: joints that the raw action moves, in its order.
        clock: whether the network sees a gait clock.

    Raises:
        ConfigError: the action moves a joint and not its partner, or what is seen is not closed under the mirror.
    """
    active, names = tuple(active), robot.joint_names
    sizes = _Sizes(len(names), encoding, len(commands), len(active), clock)

    def image(vectors: np.ndarray) -> np.ndarray:
        parts = sizes.decoded(vectors, np.asarray(robot.column("home_rad")))
        whole = np.zeros((len(vectors), len(names)))
        whole[:, active] = parts["action"]
        mirrored = {
            "joint_angles": mirror.joint(parts["joint_angles"]),
            "joint_angular_velocities": mirror.joint_change(parts["joint_angular_velocities"]),
            "projected_gravity": mirror.polar(parts["projected_gravity"]),
            "gyroscope": mirror.axial(parts["gyroscope"]),
            "command": mirror.command(parts["command"], list(commands)) if commands else parts["command"],
            "clock": -parts["clock"],  # half a turn later
            "action": mirror.joint_change(whole)[:, active],
        }
        return sizes.encoded(mirrored)

    return _found(image, sizes.scale != 0.0, mirror, active)


def critic_mirror(scene: Scene, critic: Mapping[str, Observation], sizes: Mapping[str, int]) -> NetMirror:
    """The mirror of a policy that sees terms of the critic.

    Args:
        scene: the robot, and the joints that the raw action moves.
        critic: the terms that it sees, in order.
        sizes: length of each.

    Raises:
        ConfigError: as `net_mirror`, or a term's mirror image is not known.
        MirrorError: the robot or a command has no mirror image.
    """
    ends = list(itertools.accumulate(sizes[name] for name in critic))

    def image(vectors: np.ndarray) -> np.ndarray:
        parts = np.split(vectors, ends[:-1], axis=-1)
        terms = zip(critic.values(), parts, strict=True)
        return np.concatenate([t.scale * np.asarray(t.image(v / (t.scale or 1.0), scene)) for t, v in terms], axis=-1)

    used = np.repeat([t.scale != 0.0 for t in critic.values()], [sizes[name] for name in critic])
    return _found(image, used, scene.mirror, scene.moved)


def _found(
    image: Callable[[np.ndarray], np.ndarray], used: np.ndarray, mirror: MirrorMap, active: tuple[int, ...]
) -> NetMirror:
    """The mirror whose observations are mapped by `image`, (rows, obs); `used` says which of them tell something."""
    names = mirror.joint_names
    for joint in active:
        if mirror.joints[joint] not in active:
            raise ConfigError(
                f"symmetry: the action moves {names[joint]} and not its mirror image {names[mirror.joints[joint]]}; "
                "expected both in policy.hold, or neither"
            )
    total = len(used)
    offset = image(np.zeros((1, total)))[0]
    matrix = (image(np.eye(total)) - offset).T
    matrix[np.abs(matrix) < 1e-9] = 0.0
    offset[np.abs(offset) < 1e-9] = 0.0
    made = NetMirror(
        matrix=tuple(tuple(row) for row in matrix.tolist()),
        offset=tuple(offset.tolist()),
        action_index=tuple(active.index(mirror.joints[joint]) for joint in active),
        action_sign=tuple(mirror.joint_sign[joint] for joint in active),
    )
    probe = np.random.default_rng(0).normal(size=(4, total))
    twice = (probe @ matrix.T + offset) @ matrix.T + offset
    if not np.allclose(twice[:, used], probe[:, used], atol=1e-5):
        raise ConfigError("symmetry: the image of the image is another; expected ranges and holds that match")
    return made


class _Sizes:
    """Where each part of the encoded vector stands, and what encodes it."""

    def __init__(self, joints: int, encoding: Encoding, commands: int, actions: int, clock: bool):
        self.joints = np.asarray(encoding.joints or range(joints), np.int32)
        self.commands = np.asarray(encoding.commands, np.int32)
        self.all_joints, self.all_commands = joints, commands
        seen = len(self.joints)
        self.parts = {
            "joint_angles": seen,
            "joint_angular_velocities": seen,
            "projected_gravity": 3,
            "gyroscope": 3,
            "command": len(self.commands),
            "clock": 2 if clock else 0,
            "action": actions,
        }
        self.total = sum(self.parts.values())
        self.divisor, self.offset, self.scale = (
            np.asarray(v, np.float64) for v in (encoding.divisor, encoding.offset, encoding.scale)
        )

    def decoded(self, vectors: np.ndarray, home: np.ndarray) -> dict[str, np.ndarray]:
        scale = np.where(self.scale == 0.0, 1.0, self.scale)
        raw = (vectors / scale - self.offset) * self.divisor
        out, at = {}, 0
        for name, size in self.parts.items():
            out[name] = raw[:, at : at + size]
            at += size
        rows = len(vectors)
        rest = {"joint_angles": home, "joint_angular_velocities": np.zeros(self.all_joints)}
        for name, values in rest.items():
            full = np.tile(values, (rows, 1))
            full[:, self.joints] = out[name]
            out[name] = full
        full = np.zeros((rows, self.all_commands))
        full[:, self.commands] = out["command"]
        out["command"] = full
        return out

    def encoded(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        chosen = {
            **parts,
            "joint_angles": parts["joint_angles"][:, self.joints],
            "joint_angular_velocities": parts["joint_angular_velocities"][:, self.joints],
            "command": parts["command"][:, self.commands],
        }
        raw = np.concatenate([chosen[name] for name in self.parts], axis=1)
        return (raw / self.divisor + self.offset) * self.scale
