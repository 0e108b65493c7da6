"""A robot by name (a folder of this package) or by folder: MJCF or URDF + metadata.json.

Reads XML and JSON with the standard library: the robot's own computer has no MuJoCo.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from robots.description import Description, describe, included, read_xml
from robots.errors import RobotLoadError, SpecError
from robots.metadata import EXTRA_KEY, FREQUENCY, Metadata, read_metadata
from robots.origins import Origin, Origins
from robots.problems import Problem, Problems, refusal
from robots.spec import JointSpec, RobotSpec

__all__ = [
    "EXTRA_KEY",
    "Origin",
    "Origins",
    "built_in_robots",
    "load_robot",
    "model_file",
    "read_robot",
    "robot_folder",
    "with_home_of",
]

HERE = Path(__file__).parent
MODEL_SUFFIXES = (".xml", ".mjcf", ".urdf")


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


def model_file(folder: Path, named: object = None) -> Path:
    """The folder's model.

    It is the one that `model` in metadata.json names, else robot.xml, robot.mjcf or robot.urdf, else the only model
    file, else the only one that no other of them includes.

    Args:
        folder: of the robot.
        named: what metadata.json says.

    Raises:
        RobotLoadError: there is none, or there are several and none is preferred.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix in MODEL_SUFFIXES)
    got = ", ".join(p.name for p in found) or "none"
    if named is not None:
        if named not in [p.name for p in found]:
            raise RobotLoadError(
                f"{folder / 'metadata.json'}: {EXTRA_KEY}: model: got {named!r:.100}, expected a model file of the "
                f"folder: {got}"
            )
        return folder / str(named)
    for suffix in MODEL_SUFFIXES:
        if (folder / f"robot{suffix}").is_file():
            return folder / f"robot{suffix}"
    inside = set().union(*map(included, found)) if len(found) > 1 else set()
    tops = [p for p in found if p.resolve() not in inside]
    if len(tops) == 1:
        return tops[0]
    what = (
        f"robot folder {folder}: model files: {got}; expected robot.xml, robot.mjcf or robot.urdf, or exactly one file "
        "with one of these suffixes"
    )
    if not found:
        raise RobotLoadError(what)
    place = f"under {EXTRA_KEY} in metadata.json names one"
    raise refusal(Problem(what=what, place=place, examples=(f'"model": "{(tops or found)[0].name}"',)))


def _why_model(path: Path, named: object) -> Origin:
    """Why it is this model file."""
    if named is not None:
        return Origin(how="as metadata.json says", file="metadata.json", key=f"{EXTRA_KEY}.model")
    if path.stem == "robot":
        return Origin(how="by its name")
    inside = included(path)
    others = [p.name for p in sorted(path.parent.iterdir()) if p.suffix in MODEL_SUFFIXES and p.resolve() in inside]
    return Origin(how=f"it includes {', '.join(others)}" if others else "the only model file")


def load_robot(name_or_folder: str | Path) -> RobotSpec:
    """Read a robot: a built-in one by name, or a folder with metadata.json and a model; see `read_robot`."""
    return read_robot(name_or_folder)[0]


def read_robot(name_or_folder: str | Path) -> tuple[RobotSpec, Origins]:
    """A robot, and where what is known of it came from.

    Joints come in the order of the model file. Gains, limits and ids are the metadata's; position
    limits are the intersection of the metadata's and the model's; rotor inertia and friction are the
    joint's own, else its actuator type's, else the model's. The keys `offset` and `flipped` belong to
    the robot's server, which applies them.

    Raises:
        RobotLoadError: something is missing or contradicts itself; the message says all of it, and where.
    """
    folder = robot_folder(name_or_folder)
    found = Problems(folder)
    path = folder / "metadata.json"
    metadata: dict[str, Any] | None = None
    metadata_bytes = b""
    with found.noted():
        metadata, metadata_bytes = read_metadata(path)
    reader = None if metadata is None else Metadata(path, metadata, found)
    model_path, description = Path(), None
    named = None if reader is None else reader.extra.get("model")
    with found.noted():
        model_path = model_file(folder, named)
        description = describe(model_path, read_xml(model_path), reader.joints if reader else ())
    if description is None:
        found.check()
    assert description is not None, "what is missing was told"
    imu, feet = ("", Origin()), ((), Origin())
    extra = {} if reader is None else reader.extra
    with found.noted():
        imu = _imu_site(path, model_path, description, extra)
    with found.noted():
        feet = _foot_sites(path, model_path, description, extra)
    if reader is None:
        found.check()
    assert reader is not None, "what is missing was told"
    model = model_path.name
    hinges = reader.driven(model_path, description)
    home, home_from = {}, Origin()
    with found.noted():
        home, home_from = _home(reader, model, description)
    told: dict[str, tuple[JointSpec, dict[str, Origin]]] = {}
    for hinge in hinges:
        at = (home[hinge.name], home_from) if hinge.name in home else None
        one = reader.joint(model, hinge, at)
        if one is not None:
            told[hinge.name] = one
    source = hashlib.sha256()
    for data in (model_path.read_bytes(), metadata_bytes):
        source.update(len(data).to_bytes(8, "little"))
        source.update(data)
    found.check()
    try:
        spec = RobotSpec(
            name=str(extra.get("name", folder.resolve().name)),
            joints=tuple(joint for joint, _ in told.values()),
            control_period_s=1.0 / reader.frequency,
            mass_kg=description.mass_kg,
            imu_site=imu[0],
            foot_sites=feet[0],
            source=source.hexdigest(),
        )
    except SpecError as error:
        raise RobotLoadError(f"{path}: {error}") from error
    wanted = bool(extra.get("floating", spec.foot_sites))
    return spec, Origins(
        model=model_path,
        metadata=path,
        chosen=_why_model(model_path, named),
        name=Origin(file=path.name, key=f"{EXTRA_KEY}.name") if "name" in extra else Origin(how="of the folder"),
        imu=imu[1],
        imu_body=_body_of(description, imu[0]),
        feet=feet[1],
        foot_bodies=tuple(_body_of(description, foot) for foot in feet[0]),
        home=home_from,
        home_told=frozenset(home),
        floating=_floating_from(path, model, description, extra, feet[0]),
        base=description.free_joint,
        free=description.floating or wanted,
        wants_free=wanted,
        period=Origin(file=path.name, key=FREQUENCY),
        mass=Origin(file=model, how="bodies that its joints hang on"),
        passive=reader.passive(description),
        passive_rad={name: position for name, position in home.items() if name not in spec.joint_names},
        joints={name: origins for name, (_, origins) in told.items()},
        others=description.others,
    )


def with_home_of(robot: RobotSpec, origins: Origins, trained: RobotSpec) -> RobotSpec:
    """The robot, with the home of `trained` where its folder says none."""
    homes = {j.name: j.home_rad for j in trained.joints if j.name not in origins.home_told}
    return robot.replace(
        joints=tuple(
            j.replace(home_rad=homes[j.name]) if j.lower_rad <= homes.get(j.name, math.nan) <= j.upper_rad else j
            for j in robot.joints
        )
    )


def _body_of(description: Description, name: str) -> str:
    """The body that a site is on; a body is its own."""
    return dict(description.sites).get(name, name)


def _floating_from(
    path: Path, model: str, description: Description, extra: dict[str, Any], feet: tuple[str, ...]
) -> Origin:
    if description.floating:
        return Origin(how="of the model", file=model)
    if "floating" in extra:
        return Origin(how="as metadata.json says", file=path.name, key=f"{EXTRA_KEY}.floating")
    why = "because it has feet" if feet else "because it has no feet"
    return Origin(how=f"{why} and nothing says otherwise", guess=True)


def _home(reader: Metadata, model: str, description: Description) -> tuple[dict[str, float], Origin]:
    keys = dict(reversed(description.keyframes))  # of two with one name the first
    if "home" in keys:
        return keys["home"], Origin(how="of keyframe home", file=model, key="keyframe home")
    table, where = reader.extra.get("home_deg", {}), f"{EXTRA_KEY}: home_deg"
    if not isinstance(table, dict):
        raise RobotLoadError(f"{reader.path}: {where}: got {table!r:.100}, expected joint names with degrees")
    unknown = sorted(set(table) - set(reader.joints))
    if unknown:
        raise RobotLoadError(f"{reader.path}: {where}: no such joints: {', '.join(unknown)}")
    values = {name: reader.number(table, name, under=f"{where}: ")[0] for name in table}
    home = {name: math.radians(value) for name, value in values.items() if value is not None}
    key = f"{EXTRA_KEY}.home_deg"
    if home:
        left = len(reader.joints) - len(home)
        zero = f", {left} joints that it does not name at zero" if left else ""
        how = f"of home_deg in metadata.json{zero}"
        return home, Origin(how=how, guess=bool(left), file=reader.path.name, key=key)
    if "stand" in keys:
        return keys["stand"], Origin(how="of keyframe stand", file=model, key="keyframe stand")
    if len(description.keyframes) == 1:
        ((name, positions),) = description.keyframes
        return positions, Origin(how=f"of the only keyframe, {name}", file=model, key=f"keyframe {name}")
    others = f" (keyframes {', '.join(name for name, _ in description.keyframes)} are not looked at)" if keys else ""
    how = (
        f"all zeros, or the nearest within the limits, as there is neither keyframe home or stand nor home_deg{others}"
    )
    return home, Origin(how=how, guess=True)


def _imu_site(path: Path, model_path: Path, description: Description, extra: dict[str, Any]) -> tuple[str, Origin]:
    sites = [site for site, _ in description.sites]
    if "imu_site" in extra:
        told = Origin(how="as metadata.json says", file=path.name, key=f"{EXTRA_KEY}.imu_site")
        return _known(path, description, "imu_site", extra["imu_site"]), told
    named = [name for name in ("imu_site", "imu") if name in sites]
    if len(named) == 1:
        return named[0], Origin(how="by its name", file=model_path.name)
    ways = (
        ("the one site called so", [site for site in sites if _says("imu", site)]),
        ("the one site on a body called so", [site for site, body in description.sites if _says("imu", body)]),
        ("the one body called so", [body for body in description.bodies if _says("imu", body)]),
    )
    for how, found in ways:
        if len(found) > 1:
            what = f"more than one place that may be the IMU's: {', '.join(found)}; name one of them as imu_site"
            raise refusal(
                Problem(
                    file=model_path, what=what, place=f"under {EXTRA_KEY} in {path.name}",
                    examples=(f'"imu_site": "{found[-1]}"',),
                )
            )  # fmt: skip
        if found:
            return found[0], Origin(how=how, file=model_path.name)
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
        return feet, Origin(how="as metadata.json says", file=path.name, key=f"{EXTRA_KEY}.foot_sites")
    sites = [(site, body) for site, body in description.sites if _says("foot", site)]
    bodies = [body for _, body in sites]
    if len(set(bodies)) < len(bodies):
        one = {body: site for site, body in reversed(sites)}
        what = (
            f"more than one site of a foot on one body: {', '.join(site for site, _ in sites)}; name one for each foot"
        )
        line = f'"foot_sites": {json.dumps(list(reversed(one.values())))}'
        raise refusal(
            Problem(
                file=model_path,
                what=f"{what} as foot_sites",
                place=f"under {EXTRA_KEY} in {path.name}",
                examples=(line,),
            )
        )
    if sites:
        return tuple(site for site, _ in sites), Origin(how="all sites called so", file=model_path.name)
    bodies = [body for body in description.bodies if _says("foot", body)]
    return tuple(bodies), Origin(how="all bodies called so" if bodies else "nothing is called so", guess=True)


def _says(word: str, name: str) -> bool:
    """Whether a name says foot or imu, and not by a longer word: ROS calls a robot's place on the floor footprint."""
    return word in re.sub("footprint|football|simul|stimul|imum", "-", name.lower())


def _known(path: Path, description: Description, key: str, name: object) -> str:
    names = [site for site, _ in description.sites] + [body for body in description.bodies if body]
    if not isinstance(name, str) or name not in names:
        raise RobotLoadError(
            f"{path}: {EXTRA_KEY}: {key}: got {name!r:.100}, expected a site or body of the model: {', '.join(names)}"
        )
    return name
