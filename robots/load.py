"""A robot by name (a folder of this package) or by folder: MJCF or URDF + metadata.json.

Reads XML and JSON with the standard library: the robot's own computer has no MuJoCo.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robots.description import Description, Hinge, describe, read_xml
from robots.errors import RobotLoadError, SpecError
from robots.spec import JointSpec, RobotSpec

HERE = Path(__file__).parent
MODEL_SUFFIXES = (".xml", ".mjcf", ".urdf")
EXTRA_KEY = "ksim2real"  # our own key in metadata.json


def built_in_robots() -> list[str]:
    """Names of the robots that come with the package."""
    return sorted(p.parent.name for p in HERE.glob("*/metadata.json"))


def robot_folder(name_or_folder: str | Path) -> Path:
    """The folder of a robot: the built-in one of this name, else this folder.

    A bare name is the built-in robot, whatever lies in the current folder. `./name` is always a folder. So is a
    Path, which forgets its `./`: the answer of this function, asked again, is the same folder.

    Raises:
        RobotLoadError: there is neither a built-in robot nor a folder of that name.
    """
    name, folder = str(name_or_folder), Path(name_or_folder)
    bare = isinstance(name_or_folder, str) and "/" not in name
    if bare and name not in ("", ".", "..") and (HERE / name / "metadata.json").is_file():
        return HERE / name
    if folder.is_dir():
        return folder
    known = ", ".join(built_in_robots())
    raise RobotLoadError(
        f"robot {name!r}: no such folder from {Path.cwd().name}/ and no such built-in robot (there is: {known}); "
        "give the path of its folder"
    )


def model_file(folder: Path) -> Path:
    """The folder's model: robot.xml, robot.mjcf or robot.urdf, else its only model file.

    Raises:
        RobotLoadError: there is none, or more than one and none is called robot.
    """
    for suffix in MODEL_SUFFIXES:
        if (folder / f"robot{suffix}").is_file():
            return folder / f"robot{suffix}"
    found = sorted(p for p in folder.iterdir() if p.suffix in MODEL_SUFFIXES)
    if len(found) != 1:
        got = ", ".join(p.name for p in found) or "none"
        raise RobotLoadError(
            f"robot folder {folder}: model files: {got}; expected robot.xml, robot.mjcf or robot.urdf, "
            "or exactly one file with one of these suffixes"
        )
    return found[0]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where something that a robot folder says was found.

    Attributes:
        how: in words, to go after its value.
        guess: nothing in the folder says so outright; the user should look.
    """

    how: str
    guess: bool = False


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where what the loader had to look for came from.

    Attributes:
        imu: the IMU's site.
        feet: the feet's sites.
        home: the home pose.
        floating: whether the robot has a free base.
        passive_rad: where the home pose's keyframe has the hinges without a motor [rad].
    """

    imu: Origin
    feet: Origin
    home: Origin
    floating: Origin
    passive_rad: dict[str, float] = field(default_factory=dict)


def load_robot(name_or_folder: str | Path) -> RobotSpec:
    """Read a robot: a built-in one by name, or a folder with metadata.json and a model; see `read_robot`."""
    return read_robot(name_or_folder)[0]


def read_robot(name_or_folder: str | Path) -> tuple[RobotSpec, Origins]:
    """A robot, and where what was looked for came from.

    Joints come in the order of the model file. Gains, limits and ids are the metadata's; position
    limits are the intersection of the metadata's and the model's; rotor inertia and friction are the
    joint's own, else its actuator type's, else the model's. The keys `offset` and `flipped` belong to
    the robot's server, which applies them.

    Raises:
        RobotLoadError: something is missing or contradicts itself; the message says what, and where.
    """
    folder = robot_folder(name_or_folder)
    metadata_path = folder / "metadata.json"
    metadata, metadata_bytes = _read_metadata(metadata_path)
    model_path = model_file(folder)
    description = describe(model_path, read_xml(model_path))
    extra = metadata.get(EXTRA_KEY, {})
    if not isinstance(extra, dict):
        raise RobotLoadError(f"{metadata_path}: {EXTRA_KEY}: got {type(extra).__name__}, expected an object")
    reader = _Metadata(metadata_path, metadata)
    hinges = reader.driven(model_path, description, extra)
    home, home_from = _home(reader, description, extra)
    imu, imu_from = _imu_site(metadata_path, model_path, description, extra)
    feet, feet_from = _foot_sites(metadata_path, model_path, description, extra)
    joints = tuple(reader.joint(hinge, home.get(hinge.name)) for hinge in hinges)
    frequency = reader.number(metadata, "control_frequency", "")
    if frequency is None or frequency <= 0:
        raise RobotLoadError(f"{metadata_path}: control_frequency: got {frequency}, expected a frequency in Hz")
    source = hashlib.sha256()
    for data in (model_path.read_bytes(), metadata_bytes):
        source.update(len(data).to_bytes(8, "little"))
        source.update(data)
    try:
        spec = RobotSpec(
            name=str(extra.get("name", folder.resolve().name)),
            joints=joints,
            control_period_s=1.0 / frequency,
            mass_kg=description.mass_kg,
            imu_site=imu,
            foot_sites=feet,
            source=source.hexdigest(),
        )
    except SpecError as error:
        raise RobotLoadError(f"{metadata_path}: {error}") from error
    floating = Origin(how="of the model") if description.floating else _floating_from(extra, feet)
    passive = {name: position for name, position in home.items() if name not in spec.joint_names}
    return spec, Origins(imu=imu_from, feet=feet_from, home=home_from, floating=floating, passive_rad=passive)


def _read_metadata(path: Path) -> tuple[dict[str, Any], bytes]:
    if not path.is_file():
        raise RobotLoadError(f"robot folder {path.parent}: no metadata.json; expected one in the K-Scale schema")
    try:
        data = path.read_bytes()
        metadata = json.loads(data.decode(), object_pairs_hook=_unique)
    except OSError as error:
        raise RobotLoadError(f"{path}: cannot be read ({error.strerror}); expected the robot's metadata") from error
    except (ValueError, RecursionError) as error:
        raise RobotLoadError(f"{path}: not JSON ({error}); repair the file") from error
    if not isinstance(metadata, dict):
        raise RobotLoadError(f"{path}: got {type(metadata).__name__}, expected a JSON object")
    return metadata, data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"keys given twice: {', '.join(twice)}")
    return dict(pairs)


class _Metadata:
    """metadata.json while it is read."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path = path
        self.joints = self._table(metadata, "joint_name_to_metadata")
        self.types = self._table(metadata, "actuator_type_to_metadata")
        if not self.joints:
            raise RobotLoadError(f"{path}: joint_name_to_metadata is empty; expected the actuated joints")

    def _table(self, metadata: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
        table = metadata.get(key)
        if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
            got = "nothing" if table is None else "no table of objects"
            raise RobotLoadError(f"{self.path}: {key}: got {got}, expected an object of objects, one for each name")
        return table

    def driven(self, model_path: Path, description: Description, extra: dict[str, Any]) -> list[Hinge]:
        """The hinges that have a motor: those of the metadata. Each of the others is passive by a rule.

        A joint is passive that follows another one (mimic, equality), that the model has no actuator for while it has
        them for others, or that `passive_joints` names.
        """
        names = [hinge.name for hinge in description.hinges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RobotLoadError(f"{model_path}: joints given twice: {', '.join(twice)}; expected each name once")
        sliding = [name for name in description.slides if name in self.joints]
        if sliding:
            raise RobotLoadError(
                f"{model_path}: joints that are not hinges: {', '.join(sliding)}; expected hinges only"
            )
        missing = [name for name in self.joints if name not in names]
        if missing:
            raise RobotLoadError(
                f"{self.path}: joints that {model_path.name} does not have: {', '.join(missing)}; "
                f"it has {', '.join(names) or 'none'}"
            )
        told = extra.get("passive_joints", [])
        if not isinstance(told, list) or not all(name in names for name in told):
            raise RobotLoadError(
                f"{self.path}: {EXTRA_KEY}: passive_joints: got {told!r:.100}, expected a list of hinges of the model: "
                f"{', '.join(names)}"
            )
        both = [h for h in description.hinges if h.name in self.joints and (h.follows or h.name in told)]
        if both:
            why = ", ".join(f"{h.name} (follows {h.follows})" if h.follows else h.name for h in both)
            raise RobotLoadError(
                f"{self.path}: joints without a motor of their own: {why}; take them out of joint_name_to_metadata"
            )
        free = {h.name for h in description.hinges if h.follows or h.undriven} | set(told)
        unknown = [name for name in names if name not in self.joints and name not in free]
        if unknown:
            raise RobotLoadError(
                f"{self.path}: no entry for these joints of {model_path.name}: {', '.join(unknown)}; add those with a "
                f"motor to joint_name_to_metadata, those without to passive_joints under {EXTRA_KEY}"
            )
        return [hinge for hinge in description.hinges if hinge.name in self.joints]

    def number(self, row: dict[str, Any], key: str, who: str) -> float | None:
        """A number that may be a string; None where it is absent or null."""
        value = row.get(key)
        if value is None or value == "":
            return None
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):  # JSON's integers have no end
            number = float("nan")
        if not math.isfinite(number):
            raise RobotLoadError(f"{self.path}: {who}{key}: got {value!r:.100}, expected a finite number")
        return number

    def _required(self, row: dict[str, Any], key: str, who: str) -> float:
        value = self.number(row, key, who)
        if value is None:
            raise RobotLoadError(f"{self.path}: {who}{key} is missing; expected a number")
        return value

    def joint(self, hinge: Hinge, home_rad: float | None) -> JointSpec:
        """The specification of one joint."""
        row, who = self.joints[hinge.name], f"joint {hinge.name}: "
        kind = row.get("actuator_type")
        if not isinstance(kind, str) or kind not in self.types:
            known = ", ".join(self.types) or "none"
            raise RobotLoadError(f"{self.path}: {who}actuator_type: got {kind!r:.100}, expected one of {known}")
        motor, what = self.types[kind], f"actuator type {kind}: "
        bus_id = self._required(row, "id", who)
        if bus_id != int(bus_id):
            raise RobotLoadError(f"{self.path}: {who}id: got {row['id']!r:.100}, expected an integer")

        def first(*values: float | None) -> float:
            return next((v for v in values if v is not None), 0.0)

        torque_max = self._required(motor, "max_torque", what)
        lower, upper = self._limits(hinge, row, who)
        home = min(max(0.0, lower), upper) if home_rad is None else home_rad
        # a keyframe written with fewer digits than the limits may stand a hair outside
        home = min(max(home, lower), upper) if lower - 1e-5 <= home <= upper + 1e-5 else home
        try:
            return JointSpec(
                name=hinge.name,
                id=int(bus_id),
                kp=self._required(row, "kp", who),
                kd=self._required(row, "kd", who),
                torque_limit_nm=first(
                    self.number(row, "soft_torque_limit", who), self.number(row, "torque_limit_nm", who), torque_max
                ),
                torque_max_nm=torque_max,
                velocity_max_rad_s=self._required(motor, "max_velocity", what),
                armature=first(self.number(row, "armature", who), self.number(motor, "armature", what), hinge.armature),
                friction_nm=first(
                    self.number(row, "friction", who), self.number(motor, "frictionloss", what), hinge.friction_nm
                ),
                damping=first(self.number(row, "damping", who), self.number(motor, "damping", what), hinge.damping),
                lower_rad=lower,
                upper_rad=upper,
                home_rad=home,
                actuator_type=kind,
            )
        except SpecError as error:
            raise RobotLoadError(f"{self.path}: {error}") from error

    def _limits(self, hinge: Hinge, row: dict[str, Any], who: str) -> tuple[float, float]:
        ranges = [] if hinge.range_rad is None else [hinge.range_rad]
        low, high = (self.number(row, key, who) for key in ("min_angle_deg", "max_angle_deg"))
        if low is not None or high is not None:
            low_rad = -math.inf if low is None else math.radians(low)
            ranges.append((low_rad, math.inf if high is None else math.radians(high)))
        lower = max((r[0] for r in ranges), default=-math.inf)
        upper = min((r[1] for r in ranges), default=math.inf)
        if not (math.isfinite(lower) and math.isfinite(upper)):
            raise RobotLoadError(
                f"{self.path}: {who}no position limits; give min_angle_deg and max_angle_deg, or a range in the model"
            )
        if lower >= upper:
            spans = " and ".join(f"[{math.degrees(a):.6g}, {math.degrees(b):.6g}]" for a, b in reversed(ranges))
            raise RobotLoadError(
                f"{self.path}: {who}limits of metadata and model do not overlap: {spans} degrees; correct one of them"
            )
        return lower, upper


def _floating_from(extra: dict[str, Any], feet: tuple[str, ...]) -> Origin:
    if "floating" in extra:
        return Origin(how="as metadata.json says")
    why = "because it has feet" if feet else "because it has no feet"
    return Origin(how=f"{why} and nothing says otherwise", guess=True)


def _home(reader: _Metadata, description: Description, extra: dict[str, Any]) -> tuple[dict[str, float], Origin]:
    keys = dict(reversed(description.keyframes))  # of two with one name the first
    if "home" in keys:
        return keys["home"], Origin(how="of keyframe home")
    table = extra.get("home_deg", {})
    if not isinstance(table, dict):
        raise RobotLoadError(
            f"{reader.path}: {EXTRA_KEY}: home_deg: got {table!r:.100}, expected joint names with degrees"
        )
    unknown = sorted(set(table) - set(reader.joints))
    if unknown:
        raise RobotLoadError(f"{reader.path}: {EXTRA_KEY}: home_deg: no such joints: {', '.join(unknown)}")
    values = {name: reader.number(table, name, f"{EXTRA_KEY}: home_deg: ") for name in table}
    home = {name: math.radians(value) for name, value in values.items() if value is not None}
    if home:
        left = len(reader.joints) - len(home)
        zero = f", {left} joints that it does not name at zero" if left else ""
        return home, Origin(how=f"of home_deg in metadata.json{zero}", guess=bool(left))
    if "stand" in keys:
        return keys["stand"], Origin(how="of keyframe stand")
    if len(description.keyframes) == 1:
        ((name, positions),) = description.keyframes
        return positions, Origin(how=f"of the only keyframe, {name}")
    others = f" (keyframes {', '.join(name for name, _ in description.keyframes)} are not looked at)" if keys else ""
    how = (
        f"all zeros, or the nearest within the limits, as there is neither keyframe home or stand nor home_deg{others}"
    )
    return home, Origin(how=how, guess=True)


def _imu_site(path: Path, model_path: Path, description: Description, extra: dict[str, Any]) -> tuple[str, Origin]:
    sites = [site for site, _ in description.sites]
    if "imu_site" in extra:
        return _known(path, description, "imu_site", extra["imu_site"]), Origin(how="as metadata.json says")
    for name in ("imu_site", "imu"):
        if name in sites:
            return name, Origin(how="by its name")
    ways = (
        ("the one site called so", [site for site in sites if "imu" in site.lower()]),
        ("the one site on a body called so", [site for site, body in description.sites if "imu" in body.lower()]),
        ("the one body called so", [body for body in description.bodies if "imu" in body.lower()]),
    )
    for how, found in ways:
        if len(found) > 1:
            raise RobotLoadError(
                f"{model_path}: more than one place that may be the IMU's: {', '.join(found)}; name one of them as "
                f"imu_site under {EXTRA_KEY} in {path.name}"
            )
        if found:
            return found[0], Origin(how=how)
    how = "the first body's own frame, as no site or body has imu in its name and imu_site is not set"
    return description.root, Origin(how=how, guess=True)


def _foot_sites(
    path: Path, model_path: Path, description: Description, extra: dict[str, Any]
) -> tuple[tuple[str, ...], Origin]:
    if "foot_sites" in extra:
        names = extra["foot_sites"]
        if not isinstance(names, list):
            raise RobotLoadError(f"{path}: {EXTRA_KEY}: foot_sites: got {names!r:.100}, expected a list of names")
        feet = tuple(_known(path, description, "foot_sites", name) for name in names)
        return feet, Origin(how="as metadata.json says")
    sites = [(site, body) for site, body in description.sites if "foot" in site.lower()]
    bodies = [body for _, body in sites]
    if len(set(bodies)) < len(bodies):
        raise RobotLoadError(
            f"{model_path}: more than one site of a foot on one body: {', '.join(site for site, _ in sites)}; name one "
            f"for each foot as foot_sites under {EXTRA_KEY} in {path.name}"
        )
    if sites:
        return tuple(site for site, _ in sites), Origin(how="all sites called so")
    bodies = [body for body in description.bodies if "foot" in body.lower()]
    return tuple(bodies), Origin(how="all bodies called so" if bodies else "nothing is called so", guess=True)


def _known(path: Path, description: Description, key: str, name: object) -> str:
    names = [site for site, _ in description.sites] + [body for body in description.bodies if body]
    if not isinstance(name, str) or name not in names:
        raise RobotLoadError(
            f"{path}: {EXTRA_KEY}: {key}: got {name!r:.100}, expected a site or body of the model: {', '.join(names)}"
        )
    return name
