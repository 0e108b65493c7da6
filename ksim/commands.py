"""Commands: what a person asks of the policy. Each term gives some elements of the command vector, by name.

The names are K-Scale's, so that its keyboard and its UDP sender drive our policies: xvel, yvel [m/s], yawrate [rad/s],
baseheight [m] above the standing height, baseroll, basepitch [rad], and joints of the arms [rad].
Source of the names: K-Scale's pyfirmware, 2025-10.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ksim.curriculum import SHARE, Scale, factor
from ksim.errors import ConfigError
from ksim.term import Term
from ksim.types import State
from robots.spec import CommandSpec
from toolkit.settings import Bound, Range

# K-Scale's names of arm joints, in its order, and the words that a joint's name then has.
ARM_WORDS = {
    f"{side[0]}{name}": (side, *words)
    for side in ("right", "left")
    for name, words in {
        "shoulderpitch": ("shoulder", "pitch"),
        "shoulderroll": ("shoulder", "roll"),
        "shoulderyaw": ("shoulder", "yaw"),
        "elbowpitch": ("elbow",),
        "wristroll": ("wrist",),
    }.items()
}
UNITS = {
    **dict.fromkeys(ARM_WORDS, "rad"),
    **{"xvel": "m/s", "yvel": "m/s", "yawrate": "rad/s", "baseheight": "m", "baseroll": "rad", "basepitch": "rad"},
    **{"vx": "m/s", "vy": "m/s", "yaw_rate": "rad/s", "yaw": "rad", "height": "m"},
}


def _between(key: Any, ranges: Sequence[Range]) -> Any:
    """Uniform in each range, (ranges,)."""
    low, high = jnp.asarray(ranges, jnp.float32).T
    return low + jax.random.uniform(key, low.shape) * (high - low)


def _specs(ranges: Mapping[str, Range]) -> tuple[CommandSpec, ...]:
    return tuple(CommandSpec(name=n, low=lo, high=hi, unit=UNITS.get(n, "")) for n, (lo, hi) in ranges.items())


@dataclass(frozen=True, kw_only=True)
class Command(Term, abc.ABC):
    """Some elements of the command vector.

    Attributes:
        interval_s: a new command is drawn after a random time in this range [s]; 0 and 0 means once an episode.
        scale: factor on what is drawn; may follow the curriculum. Where it is below 1 each range holds 0.
    """

    interval_s: Annotated[Range, Bound(0, 3600, "seconds, 0 for once an episode")] = (0.0, 0.0)
    scale: Annotated[float | Scale, SHARE] = 1.0

    def check(self) -> None:
        shares = self.scale.bounded().values() if isinstance(self.scale, Scale) else (self.scale,)
        if all(share == 1.0 for share in shares):
            return
        for spec in self.specs:
            whole = f"1, or a range of {spec.name} that holds 0 (it is {spec.low:g} to {spec.high:g})"
            self.require(spec.low <= 0.0 <= spec.high, "scale", min(shares), whole)

    @property
    @abc.abstractmethod
    def specs(self) -> tuple[CommandSpec, ...]:
        """Its elements: names, ranges, units."""

    @abc.abstractmethod
    def sample(self, key: Any, level: Any) -> Any:
        """A command, (elements,)."""

    def initial_carry(self, key: Any, level: Any) -> dict[str, Any]:
        """A first command, and when the next comes."""
        value_key, wait_key = jax.random.split(key)
        return {"value": self.sample(value_key, level), "left_s": self._wait(wait_key)}

    def _wait(self, key: Any) -> Any:
        if self.interval_s[1] == 0:
            return jnp.asarray(jnp.inf)
        return jax.random.uniform(key, (), minval=self.interval_s[0], maxval=self.interval_s[1])

    def next_command(self, state: State, carry: dict[str, Any]) -> dict[str, Any]:
        """The memory one control step later: another command where it is time."""
        if self.interval_s[1] == 0:
            return carry
        left = carry["left_s"] - state.scene.control_period_s
        fresh = self.initial_carry(state.key, state.level)
        return jax.tree.map(lambda a, b: jnp.where(left <= 0.0, a, b), fresh, {**carry, "left_s": left})


@dataclass(frozen=True, kw_only=True)
class UniformCommand(Command):
    """One element of any name, uniform in a range."""

    shorthand = "range"
    name: Annotated[str, Bound(1, 200, "characters")]
    range: Annotated[Range, Bound(-1000, 1000, "[low, high] of a command in SI")] = (0.0, 0.0)

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        return _specs({self.name: self.range})

    def sample(self, key: Any, level: Any) -> Any:
        value = jax.random.uniform(key, (1,), minval=self.range[0], maxval=self.range[1])
        return factor(self.scale, level) * value


@dataclass(frozen=True, kw_only=True)
class JoystickCommand(Command):
    """Velocity in the heading's frame and yaw rate, with standing and straight ahead as shares.

    Attributes:
        xvel: forward [m/s].
        yvel: to the left [m/s].
        yawrate: [rad/s].
        standing: share of the commands that are zero.
        straight: share of the others that have neither yvel nor yawrate.
    """

    xvel: Annotated[Range, Bound(-100, 100, "m/s")] = (-0.5, 1.0)
    yvel: Annotated[Range, Bound(-100, 100, "m/s")] = (-0.4, 0.4)
    yawrate: Annotated[Range, Bound(-100, 100, "rad/s")] = (-1.0, 1.0)
    standing: Annotated[float, Bound(0, 1, "a share")] = 0.15
    straight: Annotated[float, Bound(0, 1, "a share")] = 0.35

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        return _specs({"xvel": self.xvel, "yvel": self.yvel, "yawrate": self.yawrate})

    def sample(self, key: Any, level: Any) -> Any:
        unit = jax.random.uniform(key, (5,))
        ranges = jnp.asarray([self.xvel, self.yvel, self.yawrate], jnp.float32)
        value = ranges[:, 0] + unit[:3] * (ranges[:, 1] - ranges[:, 0])
        value = jnp.where(unit[3] < self.straight, value * jnp.asarray([1.0, 0.0, 0.0]), value)
        return factor(self.scale, level) * jnp.where(unit[4] < self.standing, 0.0, value)


@dataclass(frozen=True, kw_only=True)
class BaseHeightCommand(Command):
    """Height of the base above its standing height [m]; below is negative.

    Attributes:
        baseheight: the range.
        upright: share of the commands that are 0.
    """

    shorthand = "baseheight"
    baseheight: Annotated[Range, Bound(-10, 10, "metres")] = (-0.15, 0.0)
    upright: Annotated[float, Bound(0, 1, "a share")] = 0.3

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        return _specs({"baseheight": self.baseheight})

    def sample(self, key: Any, level: Any) -> Any:
        value_key, share_key = jax.random.split(key)
        value = factor(self.scale, level) * _between(value_key, [self.baseheight])
        return jnp.where(jax.random.uniform(share_key) < self.upright, 0.0, value)


@dataclass(frozen=True, kw_only=True)
class BaseTiltCommand(Command):
    """Roll and pitch of the base [rad].

    Attributes:
        baseroll: to the right is positive.
        basepitch: forward is positive.
        upright: share of the commands that are 0.
    """

    baseroll: Annotated[Range, Bound(-1.5, 1.5, "radians")] = (-0.15, 0.15)
    basepitch: Annotated[Range, Bound(-1.5, 1.5, "radians")] = (-0.2, 0.2)
    upright: Annotated[float, Bound(0, 1, "a share")] = 0.3

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        return _specs({"baseroll": self.baseroll, "basepitch": self.basepitch})

    def sample(self, key: Any, level: Any) -> Any:
        value_key, share_key = jax.random.split(key)
        value = factor(self.scale, level) * _between(value_key, [self.baseroll, self.basepitch])
        return jnp.where(jax.random.uniform(share_key) < self.upright, 0.0, value)


def _kbot_arms() -> dict[str, Range]:
    """Half a radian about the K-Bot's home pose, within its limits."""
    return {
        **{"rshoulderpitch": (-0.5, 0.5), "rshoulderroll": (-0.65, 0.3), "rshoulderyaw": (-0.5, 0.5)},
        **{"relbowpitch": (1.07, 2.07), "rwristroll": (-0.5, 0.5)},
        **{"lshoulderpitch": (-0.5, 0.5), "lshoulderroll": (-0.3, 0.65), "lshoulderyaw": (-0.5, 0.5)},
        **{"lelbowpitch": (-2.07, -1.07), "lwristroll": (-0.5, 0.5)},
    }


@dataclass(frozen=True, kw_only=True)
class ArmCommand(Command):
    """Targets of arm joints [rad], which policy.passthrough gives to the joints; see `arm_joints`.

    `scale` brings a target nearer to the middle of its range: 0 may be out of the joint's reach.

    Attributes:
        joints: the range of each target, by K-Scale's name; the order is the command vector's.
        resting: share of the commands that are the middle of every range.
    """

    joints: Annotated[dict[str, Range], Bound(-6.3, 6.3, "radians")] = field(default_factory=_kbot_arms)
    resting: Annotated[float, Bound(0, 1, "a share")] = 0.3

    def check(self) -> None:
        self.require(bool(self.joints), "joints", "nothing", "at least one arm joint")

    @property
    def specs(self) -> tuple[CommandSpec, ...]:
        return _specs(self.joints)

    def sample(self, key: Any, level: Any) -> Any:
        value_key, share_key = jax.random.split(key)
        ranges = list(self.joints.values())
        middle = jnp.asarray(ranges, jnp.float32).mean(axis=1)
        value = middle + factor(self.scale, level) * (_between(value_key, ranges) - middle)
        return jnp.where(jax.random.uniform(share_key) < self.resting, middle, value)


def arm_joints(joint_names: Sequence[str]) -> dict[str, str]:
    """{joint: K-Scale's command of it} of a robot's arms, for policy.passthrough; other joints are not in it.

    Raises:
        ConfigError: a command fits more than one joint.
    """
    out: dict[str, str] = {}
    for command, words in ARM_WORDS.items():
        fitting = [name for name in joint_names if all(word in name for word in words)]
        if len(fitting) > 1:
            raise ConfigError(
                f"command {command}: fits {', '.join(fitting)}, expected one joint; name it in policy.passthrough"
            )
        out |= dict.fromkeys(fitting, command)
    return out
