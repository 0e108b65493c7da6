"""How a simulated reality differs from the nominal robot: typed settings, read from YAML.

Every default is the nominal robot with a perfect sensor and no delay, so an empty file is the model itself.
Values per joint are a number for all joints, or a mapping from joint name to number with an optional key `all`.
"""

# ruff: noqa: RUF009  (_setting is dataclasses.field)

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deploy.errors import DeployError
from robots.spec import RobotSpec, digest
from toolkit.yaml_file import YamlError, quote, read_yaml

PerJoint = float | Mapping[str, float]
T = TypeVar("T")


class RealityError(DeployError):
    """A reality file cannot be read or holds a value that cannot be true."""


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a finite number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number")
    if not low <= value <= high:
        raise ValueError(f"a number from {low:g} to {high:g}")
    return float(value)


def _scalar(low: float, high: float) -> Callable[[Any], float]:
    return lambda value: _number(value, low, high)


def _vector(greatest: float) -> Callable[[Any], tuple[float, ...]]:
    def check(value: Any) -> tuple[float, ...]:
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise ValueError("a list of 3 numbers")
        return tuple(_number(v, -greatest, greatest) for v in value)

    return check


def _span(greatest: float) -> Callable[[Any], tuple[float, float]]:
    def check(value: Any) -> tuple[float, float]:
        pair = value if isinstance(value, (list, tuple)) else [value, value]
        if len(pair) != 2:
            raise ValueError("a number or a list [least, greatest]")
        low, high = (_number(v, 0.0, greatest) for v in pair)
        if low > high:
            raise ValueError("a list [least, greatest] with the least first")
        return low, high

    return check


def _per_joint(low: float, high: float) -> Callable[[Any], PerJoint]:
    def check(value: Any) -> PerJoint:
        if isinstance(value, Mapping):
            if not all(isinstance(name, str) for name in value):
                raise ValueError("a mapping from joint names to numbers")
            return {name: _number(v, low, high) for name, v in value.items()}
        return _number(value, low, high)

    return check


def _choice(*values: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise ValueError(" or ".join(repr(v) for v in values))
        return value

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("a string of at most 200 characters")
    return value


def _setting(default: Any, check: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


class _Settings:
    """Checks every field with its own check, whether it comes from YAML or from code."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            check = f.metadata.get("check")
            if check is None:
                continue
            value = getattr(self, f.name)
            try:
                object.__setattr__(self, f.name, check(value))
            except ValueError as error:
                raise RealityError(
                    f"{type(self).__name__.lower()}.{f.name}: got {quote(value)}, expected {error}"
                ) from None


@dataclass(frozen=True, kw_only=True)
class Body(_Settings):
    """Masses and the floor.

    Attributes:
        mass_scale: factor on the mass and inertia of every link.
        payload_kg: mass added at the centre of mass of the IMU's body [kg].
        floor_friction: sliding friction of the floor and the feet; negative keeps the model's.
    """

    mass_scale: float = _setting(1.0, _scalar(0.1, 10.0))
    payload_kg: float = _setting(0.0, _scalar(0.0, 1000.0))
    floor_friction: float = _setting(-1.0, _scalar(-1.0, 10.0))


@dataclass(frozen=True, kw_only=True)
class Joints(_Settings):
    """How the motors differ from what the client configures and from the nominal friction.

    Attributes:
        kp_scale: factor on the position gain in force.
        kd_scale: factor on the velocity gain in force.
        torque_scale: factor on the torque limit in force.
        friction_scale: factor on the nominal Coulomb friction.
        friction_add_nm: Coulomb friction added [N m].
        damping_add: viscous friction added [N m s/rad].
        zero_offset_rad: measured minus true position [rad]; the motor's own controller has it too.
        stiction_nm: torque that it takes to break loose, above the Coulomb friction [N m].
        play_rad: full width of the gap between motor and joint, which the encoder does not see [rad].
        stiffness_nm_rad: of the spring between motor and joint, which the encoder does not see; 0 is rigid [N m/rad].
    """

    kp_scale: PerJoint = _setting(1.0, _per_joint(0.0, 100.0))
    kd_scale: PerJoint = _setting(1.0, _per_joint(0.0, 100.0))
    torque_scale: PerJoint = _setting(1.0, _per_joint(0.0, 100.0))
    friction_scale: PerJoint = _setting(1.0, _per_joint(0.0, 1000.0))
    friction_add_nm: PerJoint = _setting(0.0, _per_joint(0.0, 1000.0))
    damping_add: PerJoint = _setting(0.0, _per_joint(0.0, 1000.0))
    zero_offset_rad: PerJoint = _setting(0.0, _per_joint(-math.pi, math.pi))
    stiction_nm: PerJoint = _setting(0.0, _per_joint(0.0, 1000.0))
    play_rad: PerJoint = _setting(0.0, _per_joint(0.0, math.pi))
    stiffness_nm_rad: PerJoint = _setting(0.0, _per_joint(0.0, 1e6))


@dataclass(frozen=True, kw_only=True)
class Commands(_Settings):
    """From the server's answer to the motor.

    Attributes:
        latency_s: from the arrival of a command to its effect [s].
        jitter_s: a further delay of each command, uniform from 0 to this [s]; commands never overtake.
        loss: share of commands that are acknowledged and have no effect.
    """

    latency_s: float = _setting(0.0, _scalar(0.0, 1.0))
    jitter_s: float = _setting(0.0, _scalar(0.0, 1.0))
    loss: float = _setting(0.0, _scalar(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Sensors(_Settings):
    """From the joint and the IMU to the answer; noise is Gaussian, the figure its standard deviation.

    Attributes:
        latency_s: age of every measurement when it is answered [s].
        gyro_unit: unit of the gyro on the wire: "deg/s" as the proto says, or "rad/s".
        position_noise_rad: of joint positions [rad].
        velocity_noise_rad_s: of joint velocities [rad/s].
        gyro_noise_rad_s: of the gyro [rad/s].
        gyro_bias_rad_s: bias of the gyro's three axes [rad/s].
        accelerometer_noise_m_s2: of the accelerometer [m/s^2].
        accelerometer_bias_m_s2: bias of the accelerometer's three axes [m/s^2].
        orientation_noise_rad: of the orientation, a rotation vector in the IMU's frame [rad].
        orientation_bias_rad: constant rotation vector in the IMU's frame, e.g. a tilted mounting [rad].
    """

    latency_s: float = _setting(0.0, _scalar(0.0, 1.0))
    gyro_unit: str = _setting("deg/s", _choice("deg/s", "rad/s"))
    position_noise_rad: float = _setting(0.0, _scalar(0.0, math.pi))
    velocity_noise_rad_s: float = _setting(0.0, _scalar(0.0, 1000.0))
    gyro_noise_rad_s: float = _setting(0.0, _scalar(0.0, 1000.0))
    gyro_bias_rad_s: tuple[float, ...] = _setting((0.0, 0.0, 0.0), _vector(1000.0))
    accelerometer_noise_m_s2: float = _setting(0.0, _scalar(0.0, 10_000.0))
    accelerometer_bias_m_s2: tuple[float, ...] = _setting((0.0, 0.0, 0.0), _vector(10_000.0))
    orientation_noise_rad: float = _setting(0.0, _scalar(0.0, math.pi))
    orientation_bias_rad: tuple[float, ...] = _setting((0.0, 0.0, 0.0), _vector(math.pi))


@dataclass(frozen=True, kw_only=True)
class Network(_Settings):
    """What happens to calls; Reset, Step and the other simulation calls are spared.

    Attributes:
        fail: share of calls that fail with UNAVAILABLE.
        stall: share of calls that are answered late.
        stall_s: how late [s].
    """

    fail: float = _setting(0.0, _scalar(0.0, 1.0))
    stall: float = _setting(0.0, _scalar(0.0, 1.0))
    stall_s: float = _setting(0.05, _scalar(0.0, 60.0))


@dataclass(frozen=True, kw_only=True)
class Pushes(_Settings):
    """Horizontal forces on the IMU's body, in a uniformly random direction.

    Attributes:
        force_max_n: greatest force; each push is uniform from `force_min_n` to this; 0 pushes never [N].
        force_min_n: least force [N].
        duration_s: [least, greatest] duration, uniform [s].
        interval_s: a number or [least, greatest], from the start of one push to the start of the next [s].
        start_s: start of the first push after the robot is released [s].
    """

    force_max_n: float = _setting(0.0, _scalar(0.0, 100_000.0))
    force_min_n: float = _setting(0.0, _scalar(0.0, 100_000.0))
    duration_s: tuple[float, float] = _setting((0.1, 0.5), _span(1e6))
    interval_s: tuple[float, float] = _setting((2.0, 2.0), _span(1e6))
    start_s: float = _setting(1.0, _scalar(0.0, 1e6))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.force_min_n > self.force_max_n:
            raise RealityError(
                f"pushes.force_min_n: got {self.force_min_n:g}, expected at most force_max_n ({self.force_max_n:g})"
            )
        if self.force_max_n > 0 and self.interval_s[0] <= 0:
            raise RealityError(f"pushes.interval_s: got {self.interval_s[0]:g}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Reality:
    """A whole reality: one section for each thing that differs.

    Attributes:
        name: what reports call it.
        body: masses and floor.
        joints: motors and joint friction.
        commands: latency, jitter and loss of commands.
        sensors: latency, noise and bias of measurements.
        network: failing and stalling calls.
        pushes: disturbances.
    """

    name: str = "nominal"
    body: Body = Body()
    joints: Joints = Joints()
    commands: Commands = Commands()
    sensors: Sensors = Sensors()
    network: Network = Network()
    pushes: Pushes = Pushes()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `parse_reality` of it is equal to this."""
        plain = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if dataclasses.is_dataclass(value):
                value = {
                    g.name: list(v) if isinstance(v := getattr(value, g.name), tuple) else v
                    for g in dataclasses.fields(value)
                }
            plain[f.name] = value
        return plain

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.to_json())


SECTIONS: dict[str, Any] = {
    f.name: type(f.default) for f in dataclasses.fields(Reality) if dataclasses.is_dataclass(f.default)
}


def _refuse_unknown(where: str, got: Mapping[Any, Any], known: list[str]) -> None:
    for key in got:
        if key not in known:
            near = difflib.get_close_matches(key if isinstance(key, str) else quote(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise RealityError(f"{where}: unknown key {quote(key)}; {hint}")


def parse_reality(data: Any, where: str = "reality") -> Reality:
    """A reality from a mapping as YAML gives it; `where` begins the error messages.

    Raises:
        RealityError: an unknown key (with the nearest name), or a value of the wrong kind or range.
    """
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        raise RealityError(f"{where}: got {type(data).__name__}, expected sections {', '.join(SECTIONS)}")
    _refuse_unknown(where, data, ["name", *SECTIONS])
    parts: dict[str, Any] = {}
    for name, value in data.items():
        if name == "name":
            try:
                parts[name] = _text(value)
            except ValueError as error:
                raise RealityError(f"{where}: name: got {quote(value)}, expected {error}") from None
            continue
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise RealityError(f"{where}: {name}: got {quote(value)}, expected a mapping of settings")
        _refuse_unknown(f"{where}: {name}", value, [f.name for f in dataclasses.fields(SECTIONS[name])])
        try:
            parts[name] = SECTIONS[name](**value)
        except RealityError as error:
            raise RealityError(f"{where}: {error}") from None
    return Reality(**parts)


def load_reality(path: str | Path | None) -> Reality:
    """The reality in a YAML file; the nominal one for None.

    Raises:
        RealityError: the file is missing, not YAML, or not a reality.
    """
    if path is None:
        return Reality()
    path = Path(path)
    try:
        data = read_yaml(path, "a reality YAML file such as configs/reality_demo.yaml")
    except YamlError as error:
        raise RealityError(str(error)) from error
    reality = parse_reality(data, str(path))
    named = isinstance(data, dict) and "name" in data
    return reality if named else dataclasses.replace(reality, name=path.stem)


def per_joint(what: str, value: PerJoint, robot: RobotSpec, nominal: float) -> np.ndarray:
    """A per-joint setting in the robot's joint order, (joints,).

    Raises:
        RealityError: a joint that the robot does not have (with the nearest name).
    """
    if not isinstance(value, Mapping):
        return np.full(len(robot.joints), float(value))
    _refuse_unknown(f"joints.{what}", value, ["all", *robot.joint_names])
    return np.asarray([value.get(name, value.get("all", nominal)) for name in robot.joint_names], dtype=float)
