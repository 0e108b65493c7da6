"""The typed, immutable configuration: dataclasses, a YAML file over them, `--set key=value` over that."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ksim.bounds import check_bounds
from ksim.errors import ConfigError
from robots.spec import digest
from toolkit.yaml_file import YamlError, parse_yaml, quote, read_yaml

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PhysicsConfig:
    """Physics step [s] and how often the policy runs [s]."""

    timestep_s: float = 0.005
    control_period_s: float = 0.02


@dataclass(frozen=True, kw_only=True)
class ResetConfig:
    """Half-widths of the uniform noise about the home pose at a start."""

    joint_position_rad: float = 0.05
    joint_velocity_rad_s: float = 0.3
    tilt_rad: float = 0.04
    lin_vel_m_s: float = 0.1
    ang_vel_rad_s: float = 0.2
    lift_m: float = 0.01


@dataclass(frozen=True, kw_only=True)
class RandomizationConfig:
    """Drawn uniformly at each reset. Ranges of factors, or half-widths where a unit says so."""

    friction: Range = (0.5, 1.5)
    link_mass: Range = (0.9, 1.1)
    payload_kg: Range = (-1.0, 2.0)
    com_m: float = 0.02
    armature: Range = (0.95, 1.05)
    kp: Range = (0.9, 1.1)
    kd: Range = (0.9, 1.1)
    torque_limit: Range = (0.9, 1.0)
    joint_friction: Range = (0.5, 2.0)
    damping: Range = (0.0, 0.2)
    joint_offset_rad: float = 0.02
    imu_tilt_rad: float = 0.02


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Latency drawn at each reset, jitter and loss at each control step."""

    action_s: Range = (0.003, 0.015)
    observation_s: Range = (0.002, 0.02)
    jitter_s: float = 0.004
    loss: float = 0.03


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Standard deviation of the white noise on each sensor."""

    joint_position_rad: float = 0.005
    joint_velocity_rad_s: float = 0.1
    gravity_m_s2: float = 0.1
    gyro_rad_s: float = 0.05
    accel_m_s2: float = 0.3


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Pushes on the base: size drawn from 0 to `force_n`, direction horizontal, at random times."""

    force_n: float = 50.0
    duration_s: Range = (0.1, 0.5)
    interval_s: Range = (1.5, 2.5)
    curriculum: bool = True


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weight of each reward term per second of simulation; a sign lives here."""

    alive: float = 1.0
    upright: float = 1.0
    base_height: float = 0.5
    base_velocity: float = -0.2
    base_spin: float = -0.05
    joint_deviation: float = -0.1
    joint_velocity: float = -0.002
    torque: float = -0.2
    action_rate: float = -0.02
    joint_limits: float = -1.0
    fall: float = -2.0


@dataclass(frozen=True, kw_only=True)
class TerminationConfig:
    """A fall is a base below this share of its standing height, or a tilt beyond this."""

    height_share: float = 0.6
    tilt_deg: float = 60.0


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The actor and the critic.

    `network`: the actor is an lstm, a gru or an mlp, of `layers` layers of width `hidden`; `head` is the width of
    the recurrent ones' last hidden layer.
    `history`: how many past observations an mlp sees beside the last.
    `normalise`: learn mean and spread of the observation, and normalise by them.
    `action_scale`: targets move by this share of torque_limit / kp per unit of action.
    `smoothing`: share of the last target kept in the new one, a first-order low-pass.
    `target_speed`: share of a joint's no-load speed that its target moves at, at most; 0 means any speed.
    `hold`: joints whose name contains one of these words hold the home pose.
    `passthrough`: {joint: command}; the joint's target is that command [rad], which the network does not see.
    """

    network: str = "lstm"
    hidden: int = 64
    layers: int = 1
    head: int = 128
    history: int = 0
    normalise: bool = False
    critic_hidden: int = 64
    critic_head: int = 128
    action_scale: float = 1.0
    smoothing: float = 0.0
    target_speed: float = 0.0
    hold: tuple[str, ...] = ()
    passthrough: dict[str, str] = field(default_factory=dict, hash=False)
    init_std: float = 0.3


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Proximal policy optimisation over truncated sequences."""

    envs: int = 256
    rollout_steps: int = 24
    epochs: int = 4
    minibatches: int = 4
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    learning_rate: float = 5e-4
    learning_rate_min: float = 3e-5
    learning_rate_max: float = 2e-3
    target_kl: float = 0.025
    entropy: float = 0.002
    value_coefficient: float = 1.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long to train and how often to save. A limit of 0 means none; resumes count as one run."""

    total_steps: int = 6_000_000
    max_minutes: float = 0.0
    save_every_updates: int = 50
    stop_at_survival: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole training run."""

    task: str = "kbot_stand"
    robot: str = "kbot"
    seed: int = 0
    engine: str = "auto"
    threads: int = 0
    episode_length_s: float = 10.0
    commands: dict[str, Range] = field(
        default_factory=lambda: {"vx": (0.0, 0.0), "vy": (0.0, 0.0), "yaw_rate": (0.0, 0.0)}
    )
    physics: PhysicsConfig = PhysicsConfig()
    reset: ResetConfig = ResetConfig()
    randomization: RandomizationConfig = RandomizationConfig()
    latency: LatencyConfig = LatencyConfig()
    noise: NoiseConfig = NoiseConfig()
    pushes: PushConfig = PushConfig()
    rewards: RewardConfig = RewardConfig()
    terminations: TerminationConfig = TerminationConfig()
    policy: PolicyConfig = PolicyConfig()
    ppo: PpoConfig = PpoConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        check_bounds(self)
        _require(self.engine in ("auto", "mujoco", "mjx"), "engine", self.engine, "auto, mujoco or mjx")
        _require(self.ppo.envs % self.ppo.minibatches == 0, "ppo.envs", self.ppo.envs, "a multiple of ppo.minibatches")
        _require(0 <= self.latency.loss < 1, "latency.loss", self.latency.loss, "[0, 1)")
        _require(0 <= self.policy.smoothing < 1, "policy.smoothing", self.policy.smoothing, "[0, 1)")
        _require(
            self.policy.network in ("lstm", "gru", "mlp"), "policy.network", self.policy.network, "lstm, gru or mlp"
        )
        wide = self.policy.network == "mlp"
        _require(
            self.policy.history >= 0 and (wide or not self.policy.history),
            "policy.history",
            self.policy.history,
            "0 or more" if wide else f"0 for {self.policy.network}, whose memory is its state",
        )
        _require(0 <= self.policy.target_speed <= 1, "policy.target_speed", self.policy.target_speed, "0 to 1")
        for joint, command in self.policy.passthrough.items():
            known = f"one of the commands ({', '.join(self.commands) or 'there are none'})"
            _require(command in self.commands, f"policy.passthrough.{joint}", command, known)
        _require(self.policy.hidden >= 1 and self.policy.layers >= 1, "policy.hidden", self.policy.hidden, "1 or more")
        period, step = self.physics.control_period_s, self.physics.timestep_s
        substeps = round(period / step)
        whole = substeps >= 1 and abs(substeps * step - period) <= 1e-9  # as the engines have it
        _require(whole, "physics.control_period_s", period, f"a multiple of physics.timestep_s ({step:g})")
        _require(
            self.episode_length_s >= period, "episode_length_s", self.episode_length_s, f"a control period ({period:g})"
        )
        least, most = self.ppo.learning_rate_min, self.ppo.learning_rate_max
        _require(least <= most, "ppo.learning_rate_min", least, f"at most ppo.learning_rate_max ({most:g})")
        ranges = {f"commands.{name}": value for name, value in self.commands.items()}
        for section in ("randomization", "latency", "pushes"):
            inside = getattr(self, section)
            ranges |= {f"{section}.{f.name}": getattr(inside, f.name) for f in dataclasses.fields(inside)}
        for key, value in ranges.items():
            if isinstance(value, tuple):
                _require(value[0] <= value[1], key, list(value), "low at most high")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, resolved."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return plain(dataclasses.asdict(self))

    @property
    def digest(self) -> str:
        """Digest of the resolved configuration."""
        return digest(self.to_dict())


def _require(ok: bool, key: str, got: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"configuration key {key}: got {quote(got)}, expected {expected}")


def _typed(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`, or a ConfigError that says what was expected."""
    if dataclasses.is_dataclass(kind):
        return _merge(kind(), value, key)  # type: ignore[operator]
    origin = typing.get_origin(kind)
    if origin is dict:
        inner = typing.get_args(kind)[1]
        what = "a mapping of names" if inner is str else "a mapping of name to [low, high]"
        _require(isinstance(value, dict), key, value, what)
        return {str(k): _typed(inner, v, f"{key}.{k}") for k, v in value.items()}
    if origin is tuple:
        args = typing.get_args(kind)
        if args[-1] is Ellipsis:
            _require(isinstance(value, (list, tuple)), key, value, "a list")
            args = (args[0],) * len(value)
        _require(isinstance(value, (list, tuple)) and len(value) == len(args), key, value, f"a list of {len(args)}")
        return tuple(_typed(a, v, f"{key}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if isinstance(kind, types.UnionType):  # pragma: no cover - no key is optional
        raise ConfigError(f"configuration key {key}: unions are not supported")
    if kind is bool:
        _require(isinstance(value, bool), key, value, "true or false")
        return value
    if kind is int:
        whole = isinstance(value, float) and value.is_integer()
        _require((isinstance(value, int) and not isinstance(value, bool)) or whole, key, value, "an integer")
        return int(value)
    if kind is float:
        try:  # YAML 1.1 reads 1e-3 as a string; an integer may be too large for a float
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        _require(math.isfinite(number), key, value, "a number")
        return number
    _require(isinstance(value, str), key, value, "a string")
    return value


def _keys(kind: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration class."""
    out = []
    for name, hint in typing.get_type_hints(kind).items():
        key = f"{prefix}{name}"
        out += [key, *(_keys(hint, f"{key}.") if dataclasses.is_dataclass(hint) else [])]
    return out


def _nearest(name: str, prefix: str, hints: dict[str, Any]) -> str:
    """What may have been meant: the same name in another section, else the nearest one in this section."""
    elsewhere = [key for key in _keys(Config) if key.rpartition(".")[2] == name]
    near = [f"{prefix}.{n}" if prefix else n for n in difflib.get_close_matches(name, hints, n=1, cutoff=0.5)]
    found = elsewhere or near
    return f"did you mean {' or '.join(found)}?" if found else f"known keys: {', '.join(hints)}"


def _merge(base: Any, changes: Any, prefix: str) -> Any:
    if changes is None:
        return base
    _require(isinstance(changes, dict), prefix or "(file)", changes, "a mapping")
    hints = typing.get_type_hints(type(base))
    out = {}
    for name, value in changes.items():
        word = name if isinstance(name, str) else quote(name)
        key = f"{prefix}.{word}" if prefix else word
        if name not in hints:
            hint = _nearest(word, prefix, hints)
            raise ConfigError(f"configuration key {quote(key)} is unknown; {hint}")
        current = getattr(base, name)
        out[name] = (
            _merge(current, value, key) if dataclasses.is_dataclass(current) else _typed(hints[name], value, key)
        )
    return dataclasses.replace(base, **out)


def from_dict(data: Any, base: Config | None = None) -> Config:
    """A configuration from plain values over `base` (the defaults).

    Raises:
        ConfigError: a key is unknown (the nearest is named), ill-typed or out of range.
    """
    return _merge(base or Config(), data, "")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file, with `key=value` overrides (dotted keys, YAML values).

    Raises:
        ConfigError: the file is missing or not YAML, or a key is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file; expected a YAML configuration such as configs/kbot_stand.yaml")
    try:
        data = read_yaml(path, "a YAML configuration such as configs/kbot_stand.yaml")
        config = from_dict({} if data is None else data)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return apply_overrides(config, overrides)


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `key=value` overrides.

    Raises:
        ConfigError: an override has no `=`, or its key or value is wrong.
    """
    sections = {f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default)}
    changes: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {quote(text)}: expected key=value, for example --set ppo.envs=64")
        try:
            nested: Any = parse_yaml(value)
        except YamlError as error:
            raise ConfigError(f"--set {quote(text)}: the value is {error}") from error
        first, *parts = key.strip().split(".")
        if len(parts) > 3:
            raise ConfigError(f"--set {quote(text)}: {len(parts) + 1} names deep; expected a key such as ppo.envs")
        for part in reversed(parts):
            nested = {part: nested}
        # checked as one: ppo.envs=10 may need the ppo.minibatches=5 that follows
        before = changes.get(first)
        if first in sections and isinstance(before, dict) and isinstance(nested, dict):
            nested = {**before, **nested}
        changes[first] = nested
    return from_dict(changes, config) if changes else config
