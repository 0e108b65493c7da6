"""How somebody else's log is to be understood: typed settings, read from a small YAML file.

angle [rad] = zero_rad + sign * scale * value, for values in rad or deg (which are made rad first). Values that are a
share of a joint's range count from its lower end, with `sign: -1` from its upper one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from deploy.errors import LogError
from robots.spec import JointSpec, RobotSpec
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Range, Settings, from_dict, nearest
from toolkit.yaml_file import YamlError, quote, read_yaml

Format = Literal["pyfirmware", "sage", "lerobot", "csv"]
Unit = Literal["rad", "deg", "fraction", "percent", "plus_minus_100"]
# Of a share of the range: (the value at the lower end, at the upper end).
SHARES = {"fraction": (0.0, 1.0), "percent": (0.0, 100.0), "plus_minus_100": (-100.0, 100.0)}
ANGLES = {"rad": 1.0, "deg": math.pi / 180}
Factor = Annotated[float, Bound(1e-9, 1e9, "a factor")]
Gain = Annotated[float, Bound(0, 1e5, "a gain")]


class MapError(LogError, SettingsError):
    """A map cannot be read, or does not fit the log or the robot."""


@dataclass(frozen=True, kw_only=True)
class _Settings(Settings):
    error: ClassVar[type[SettingsError]] = MapError
    noun: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class Units(_Settings):
    """Units of the file; what is left out is as the format has it.

    Attributes:
        position: of positions and targets: an angle, or a share of the joint's range.
        velocity: `position`: the position's unit a second; `none`: leave them out.
        torque: `unsigned`: a size without a sign, such as a current, which is left out; `none`: leave them out.
        gyro: of the IMU's gyro.
        gravity: which way a vector of gravity points; `up`: it is turned round.
    """

    position: Unit | None = None
    velocity: Literal["rad/s", "deg/s", "position", "none"] | None = None
    torque: Literal["N m", "unsigned", "none"] | None = None
    gyro: Literal["rad/s", "deg/s"] | None = None
    gravity: Literal["down", "up"] | None = None


@dataclass(frozen=True, kw_only=True)
class JointMap(_Settings):
    """One joint of the robot.

    Attributes:
        source: its name in the file; empty: the same.
        unit: of its positions and targets; None: that of all.
        range_rad: its angles at the ends of a range that the unit is a share of; None: the robot's limits [rad].
        sign: which way it counts.
        scale: factor on positions, targets and velocities that are angles.
        zero_rad: its angle where the file says zero, or added to a share of the range [rad].
        torque_scale: factor on torques.
        kp: gain that was in force; None: the robot's own [N m/rad].
        kd: likewise [N m s/rad].
    """

    source: str = ""
    unit: Unit | None = None
    range_rad: Range | None = None
    sign: Literal[1, -1] = 1
    scale: Factor = 1.0
    zero_rad: Annotated[float, Bound(-100, 100, "radians")] = 0.0
    torque_scale: Factor = 1.0
    kp: Gain | None = None
    kd: Gain | None = None
    shorthand: ClassVar[str] = "source"


@dataclass(frozen=True, kw_only=True)
class ImportMap(_Settings):
    """A whole map.

    Attributes:
        robot: a built-in robot or a robot folder.
        format: of the log; None: by what the files are.
        units: of the file.
        joints: by the robot's name of each; joints with the same name in both need no entry.
        ignore: joints or columns of the file that are left out.
        rate_hz: nominal rows a second; None: the file's, or the median of its first rows.
        check_limits: refuse positions far outside the robot's limits.
    """

    robot: str | None = None
    format: Format | None = None
    units: Units = Units()
    joints: dict[str, JointMap] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    rate_hz: Annotated[float, Bound(0.1, 10_000, "hertz")] | None = None
    check_limits: bool = True


def load_map(path: str | Path | None) -> ImportMap:
    """The map in a YAML file; the empty one for None.

    Raises:
        MapError: the file is missing, not YAML, or not a map; the message names the key and the nearest one.
    """
    if path is None:
        return ImportMap()
    try:
        return from_dict(ImportMap, read_yaml(path, "a YAML map (docs/log_import.md)"))
    except YamlError as error:
        raise MapError(str(error)) from error
    except MapError as error:
        raise MapError(f"{path}: {error}") from None


def to_rad(unit: str, joint: JointSpec, how: JointMap) -> tuple[float, float]:
    """(factor, offset) that make an angle of a value in a unit."""
    if unit in ANGLES:
        return how.sign * how.scale * ANGLES[unit], how.zero_rad
    least, most = SHARES[unit]
    low, high = how.range_rad or (joint.lower_rad, joint.upper_rad)
    factor = how.sign * (high - low) / (most - least)
    return factor, (low if how.sign > 0 else high) - factor * least + how.zero_rad


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A map resolved for a file and a robot: everything by the log's joint order.

    Attributes:
        robot: the robot, of its joints those that the file has, with the gains that were in force.
        columns: where each joint is in the file.
        units: resolved.
        unit: of each joint's positions.
        how: each joint's part of the map.
        factor, offset: of positions and targets.
        velocity: factor of velocities; None where they are left out.
        torque: factor of torques; None where they are left out.
        gyro: factor of the gyro.
        absent: joints of the robot that the file does not have.
    """

    robot: RobotSpec
    columns: np.ndarray
    units: Units
    unit: tuple[str, ...]
    how: tuple[JointMap, ...]
    factor: np.ndarray
    offset: np.ndarray
    velocity: np.ndarray | None
    torque: np.ndarray | None
    gyro: float
    absent: tuple[str, ...]


def _sources(given: ImportMap, names: Sequence[str], robot: RobotSpec, where: str) -> dict[str, str]:
    """The robot's name of each of the file's joints that is used.

    Raises:
        MapError: a joint that one of the two does not have, or one that is used twice.
    """
    known = {n: "" for n in robot.joint_names}
    used: dict[str, str] = {}
    for name, how in given.joints.items():
        if name not in known:
            raise MapError(f"joints.{quote(name)[1:-1]}: robot {robot.name} has no such joint; {nearest(name, known)}")
        source = how.source or name
        if source not in names:
            raise MapError(f"joints.{name}.source: {where} has no joint {quote(source)}; {nearest(source, names)}")
        if source in used:
            raise MapError(f"joints.{name}.source: {quote(source)} is {used[source]} already; expected each joint once")
        used[source] = name
    for name in names:
        if name in used or name in given.ignore:
            continue
        if name not in known:
            raise MapError(
                f"{where}: robot {robot.name} has no joint {quote(name)}; {nearest(name, known)}; "
                "name it under joints in the map (--map), or under ignore"
            )
        if name in given.joints:
            raise MapError(
                f"{where}: joint {name} would be itself, but joints.{name} takes {given.joints[name].source}; "
                "name it under joints in the map, or under ignore"
            )
        used[name] = name
    if not used:
        raise MapError(f"{where}: none of its joints is used; expected at least one; take some out of ignore")
    return used


def convert(
    given: ImportMap,
    defaults: Units,
    names: Sequence[str],
    robot: RobotSpec,
    where: str,
    *,
    order: Sequence[str] | None = None,
    gains: dict[str, tuple[float, float]] | None = None,
) -> Conversion:
    """Resolve a map.

    Args:
        given: the map.
        defaults: units of the format.
        names: the file's joints, in its order.
        robot: whose log it is.
        where: the file, for messages.
        order: the robot's names in the order of the log to make; None: the file's order.
        gains: (kp, kd) that the program that wrote the file sets, by the robot's names.

    Raises:
        MapError: they do not fit; the message names the joint, and the nearest one there is.
    """
    used = _sources(given, names, robot, where)
    back = {joint: source for source, joint in used.items()}
    chosen = [used[n] for n in names if n in used] if order is None else list(order)
    units = Units(**{k: v if v is not None else getattr(defaults, k) for k, v in given.units.to_dict().items()})
    joints, hows, kinds = [], [], []
    for name in chosen:
        how, joint = given.joints.get(name, JointMap()), robot.joint(name)
        unit = how.unit or units.position
        if unit is None:
            raise MapError(
                f"{where}: does not say the unit of its positions; set units.position in the map (--map) to one of "
                f"{', '.join([*ANGLES, *SHARES])}"
            )
        if unit in ANGLES and how.range_rad is not None:
            raise MapError(f"joints.{name}.range_rad: its unit is {unit}; expected a share of the range; take it out")
        if unit in SHARES and how.scale != 1:
            raise MapError(f"joints.{name}.scale: its unit is {unit}; expected an angle; give range_rad instead")
        kp, kd = (gains or {}).get(name, (joint.kp, joint.kd))
        joints.append(joint.replace(kp=kp if how.kp is None else how.kp, kd=kd if how.kd is None else how.kd))
        hows.append(how)
        kinds.append(unit)
    pairs = np.array([to_rad(u, j, h) for u, j, h in zip(kinds, joints, hows, strict=True)])
    turn = np.array([h.sign * h.scale for h in hows])
    speeds = {"rad/s": turn, "deg/s": turn * ANGLES["deg"], "position": pairs[:, 0]}
    torque = np.array([h.sign * h.torque_scale for h in hows])
    return Conversion(
        robot=robot.replace(joints=tuple(joints)),
        columns=np.array([list(names).index(back[name]) for name in chosen]),
        units=units,
        unit=tuple(kinds),
        how=tuple(hows),
        factor=pairs[:, 0],
        offset=pairs[:, 1],
        velocity=speeds.get(units.velocity or ""),
        torque=torque if units.torque == "N m" else None,
        gyro=ANGLES["deg"] if units.gyro == "deg/s" else 1.0,
        absent=tuple(n for n in robot.joint_names if n not in chosen),
    )
