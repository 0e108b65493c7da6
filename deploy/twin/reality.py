"""How a simulated reality differs from the nominal robot: typed settings, read from YAML.

Every default is the nominal robot with a perfect sensor and no delay, so an empty file is the model itself.
Values per joint are a number for all joints, or a mapping from joint name to number with an optional key `all`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from deploy.errors import DeployError
from robots.spec import RobotSpec
from toolkit.errors import SettingsError
from toolkit.files import packaged
from toolkit.settings import Bound, Range, Settings, from_dict, nearest
from toolkit.yaml_file import YamlError, quote, read_yaml

PerJoint = float | dict[str, float]
Vector = tuple[float, float, float]
Share = Annotated[float, Bound(0, 1, "a share")]
Delay = Annotated[float, Bound(0, 1, "seconds")]
Span = Annotated[Range, Bound(0, 1e6, "seconds")]


class RealityError(DeployError, SettingsError):
    """A reality file cannot be read or holds a value that cannot be true."""


@dataclass(frozen=True, kw_only=True)
class _Settings(Settings):
    """Settings of a reality; where a span [least, greatest] is declared, a number is both ends."""

    error: ClassVar[type[SettingsError]] = RealityError
    noun: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type == "Span" and isinstance(value, (int, float)):
                object.__setattr__(self, f.name, (value, value))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Body(_Settings):
    """Masses and the floor.

    Attributes:
        mass_scale: factor on the mass and inertia of every link.
        payload_kg: mass added at the centre of mass of the IMU's body [kg].
        floor_friction: sliding friction of the floor and the feet; negative keeps the model's.
    """

    mass_scale: Annotated[float, Bound(0.1, 10, "a factor")] = 1.0
    payload_kg: Annotated[float, Bound(0, 1000, "kilograms")] = 0.0
    floor_friction: Annotated[float, Bound(-1, 10, "a coefficient")] = -1.0


@dataclass(frozen=True, kw_only=True)
class Joints(_Settings):
    """How the motors differ from what the client configures and from the nominal friction.

    Attributes:
        kp_scale: factor on the position gain in force.
        kd_scale: factor on the velocity gain in force.
        torque_scale: factor on the torque limit in force.
        velocity_scale: factor on the no-load speed.
        armature_scale: factor on the rotor's inertia.
        friction_scale: factor on the nominal Coulomb friction.
        friction_add_nm: Coulomb friction added [N m].
        damping_add: viscous friction added, or taken from the nominal one as far as there is any [N m s/rad].
        zero_offset_rad: measured minus true position [rad]; the motor's own controller has it too.
        load_friction: Coulomb friction that is more by this share of the controller's torque.
        stiction_nm: torque that it takes to break loose, above the Coulomb friction [N m].
        play_rad: full width of the gap between motor and joint, which the encoder does not see [rad].
        stiffness_nm_rad: of the spring between motor and joint, which the encoder does not see; 0 is rigid [N m/rad].
        link_mass_scale: factor on the mass and inertia of the link that the joint moves.
    """

    kp_scale: Annotated[PerJoint, Bound(0, 100, "a factor")] = 1.0
    kd_scale: Annotated[PerJoint, Bound(0, 100, "a factor")] = 1.0
    torque_scale: Annotated[PerJoint, Bound(0, 100, "a factor")] = 1.0
    velocity_scale: Annotated[PerJoint, Bound(0.01, 100, "a factor")] = 1.0
    armature_scale: Annotated[PerJoint, Bound(0.01, 100, "a factor")] = 1.0
    friction_scale: Annotated[PerJoint, Bound(0, 1000, "a factor")] = 1.0
    friction_add_nm: Annotated[PerJoint, Bound(0, 1000, "N m")] = 0.0
    damping_add: Annotated[PerJoint, Bound(-1000, 1000, "N m s/rad")] = 0.0
    zero_offset_rad: Annotated[PerJoint, Bound(-math.pi, math.pi, "radians")] = 0.0
    load_friction: Annotated[PerJoint, Bound(0, 1, "a share")] = 0.0
    stiction_nm: Annotated[PerJoint, Bound(0, 1000, "N m")] = 0.0
    play_rad: Annotated[PerJoint, Bound(0, math.pi, "radians")] = 0.0
    stiffness_nm_rad: Annotated[PerJoint, Bound(0, 1e6, "N m/rad")] = 0.0
    link_mass_scale: Annotated[PerJoint, Bound(0.1, 10, "a factor")] = 1.0


@dataclass(frozen=True, kw_only=True)
class Commands(_Settings):
    """From the server's answer to the motor.

    Attributes:
        latency_s: from the arrival of a command to its effect [s].
        jitter_s: a further delay of each command, uniform from 0 to this [s].
        loss: share of commands that are acknowledged and have no effect.
        ordered: a command that comes after a later one is dropped; false puts the older target back in force.
        stall_interval_s: a number or [least, greatest], from the start of one stall to the start of the next [s]; in a
            stall every command is acknowledged and lost, so that the last one is held; 0 stalls never.
        stall_duration_s: a number or [least, greatest], how long a stall lasts, uniform [s].
    """

    latency_s: Delay = 0.0
    jitter_s: Delay = 0.0
    loss: Share = 0.0
    ordered: bool = True
    stall_interval_s: Span = (0.0, 0.0)
    stall_duration_s: Span = (0.1, 0.1)

    def check(self) -> None:
        least, greatest = self.stall_interval_s
        expected = "a least above 0, or 0 alone for never"
        self.require(least > 0 or greatest == 0, "stall_interval_s", self.stall_interval_s, expected)


@dataclass(frozen=True, kw_only=True)
class Channel(_Settings):
    """How the samples of one kind of sensor come to the answer.

    Attributes:
        latency_s: from a sample to the answer that may tell it [s], beside the latency of all sensors.
        jitter_s: a further delay of each sample, uniform from 0 to this [s].
        loss: share of samples that never come; the one before is told again, to the bit.
        rate_hz: samples a second of a sensor with a clock of its own, each told until the next one comes; 0: a sample
            is taken for each answer.
        phase_s: when that clock's sample 0 is taken [s].
        skew: share by which that clock is slow.
    """

    latency_s: Delay = 0.0
    jitter_s: Delay = 0.0
    loss: Share = 0.0
    rate_hz: Annotated[float, Bound(0, 10_000, "hertz")] = 0.0
    phase_s: Annotated[float, Bound(-10, 10, "seconds")] = 0.0
    skew: Annotated[float, Bound(-0.5, 0.5, "a share")] = 0.0

    def check(self) -> None:
        self.require(self.rate_hz == 0 or self.rate_hz >= 1, "rate_hz", self.rate_hz, "0 or at least 1")


@dataclass(frozen=True, kw_only=True)
class Sensors(_Settings):
    """From the joint and the IMU to the answer; the figure of a noise is its standard deviation.

    Attributes:
        noise: gaussian, or uniform, which goes no farther than 1.73 times its standard deviation.
        latency_s: age of every measurement when it is answered [s].
        joints: the channel of positions, velocities and torques.
        imu: the channel of orientation, gyro and accelerometer.
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

    latency_s: Delay = 0.0
    joints: Channel = Channel()
    imu: Channel = Channel()
    gyro_unit: Literal["deg/s", "rad/s"] = "deg/s"
    noise: Literal["gaussian", "uniform"] = "gaussian"
    position_noise_rad: Annotated[float, Bound(0, math.pi, "radians")] = 0.0
    velocity_noise_rad_s: Annotated[float, Bound(0, 1000, "rad/s")] = 0.0
    gyro_noise_rad_s: Annotated[float, Bound(0, 1000, "rad/s")] = 0.0
    gyro_bias_rad_s: Annotated[Vector, Bound(-1000, 1000, "rad/s")] = (0.0, 0.0, 0.0)
    accelerometer_noise_m_s2: Annotated[float, Bound(0, 10_000, "m/s^2")] = 0.0
    accelerometer_bias_m_s2: Annotated[Vector, Bound(-10_000, 10_000, "m/s^2")] = (0.0, 0.0, 0.0)
    orientation_noise_rad: Annotated[float, Bound(0, math.pi, "radians")] = 0.0
    orientation_bias_rad: Annotated[Vector, Bound(-math.pi, math.pi, "radians")] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Network(_Settings):
    """What happens to calls; Reset, Step and the other simulation calls are spared.

    Attributes:
        fail: share of calls that fail with UNAVAILABLE.
        stall: share of calls that are answered late.
        stall_s: how late [s].
    """

    fail: Share = 0.0
    stall: Share = 0.0
    stall_s: Annotated[float, Bound(0, 60, "seconds")] = 0.05


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

    force_max_n: Annotated[float, Bound(0, 100_000, "newtons")] = 0.0
    force_min_n: Annotated[float, Bound(0, 100_000, "newtons")] = 0.0
    duration_s: Span = (0.1, 0.5)
    interval_s: Span = (2.0, 2.0)
    start_s: Annotated[float, Bound(0, 1e6, "seconds")] = 1.0

    def check(self) -> None:
        most = f"at most force_max_n ({self.force_max_n:g})"
        self.require(self.force_min_n <= self.force_max_n, "force_min_n", self.force_min_n, most)
        often = self.force_max_n > 0 and self.interval_s[0] <= 0
        self.require(not often, "interval_s", self.interval_s, "more than 0")


@dataclass(frozen=True, kw_only=True)
class Reality(_Settings):
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

    name: Annotated[str, Bound(0, 200, "characters")] = "nominal"
    body: Body = Body()
    joints: Joints = Joints()
    commands: Commands = Commands()
    sensors: Sensors = Sensors()
    network: Network = Network()
    pushes: Pushes = Pushes()


def parse_reality(data: Any, where: str = "reality") -> Reality:
    """A reality from a mapping as YAML gives it; `where` begins the error messages.

    Raises:
        RealityError: an unknown key (with the nearest name), or a value of the wrong kind or range.
    """
    try:
        return from_dict(Reality, data)
    except RealityError as error:
        raise RealityError(f"{where}: {error}") from None


def load_reality(path: str | Path | None) -> Reality:
    """The reality in a YAML file; the nominal one for None.

    Raises:
        RealityError: the file is missing, not YAML, or not a reality.
    """
    if path is None:
        return Reality()
    path = packaged(path)
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
    known = ["all", *robot.joint_names]
    for name in value:
        if name not in known:
            raise RealityError(f"joints.{what}: no joint {quote(name)}; {nearest(name, known)}")
    return np.asarray([value.get(name, value.get("all", nominal)) for name in robot.joint_names], dtype=float)
