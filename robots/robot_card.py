"""`ksim inspect FOLDER`: all that was understood of a robot, with the source of each value, or all that it lacks."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from robots.description import describe, read_xml
from robots.errors import RobotLoadError
from robots.load import built_in_robots, model_file, read_robot, robot_folder
from robots.metadata import EXTRA_KEY, as_text, draft
from robots.origins import Origin, Origins
from robots.problems import Problem
from robots.spec import RobotSpec
from robots.understood import Fact, facts

if TYPE_CHECKING:
    from robots.model import BuiltModel

_GAINS = {
    "name": "name", "id": "id", "kp": "kp", "kd": "kd", "torque_limit_nm": "torque", "torque_max_nm": "at most",
    "velocity_max_rad_s": "speed", "lower_rad": "lower", "upper_rad": "upper", "home_rad": "home",
}  # fmt: skip
_ROTORS = {
    "name": "name", "armature": "armature", "friction_nm": "friction", "damping": "damping",
    "actuator_type": "actuator",
}  # fmt: skip
_TABLES = (
    ("joints: kp [N m/rad], kd [N m s/rad], torque limit/at most [N m], speed [rad/s], angles [rad]", _GAINS),
    ("joints: armature [kg m^2], friction [N m], damping [N m s/rad]", _ROTORS),
)
NO_MUJOCO = "not looked at: MuJoCo is not installed (pip install 'ksim2real[sim]'): meshes, floor, height at home"


class Page(Protocol):
    """What prints tables."""

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> None:
        """A table; columns named in `right` hold numbers."""
        ...

    def pairs(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what they stand for."""
        ...

    def text(self, text: str) -> None:
        """As it is."""
        ...


def is_robot(name: str) -> bool:
    """Whether a word names a robot: a folder that is not called as a bundle, or a built-in one and no file."""
    path = Path(name)
    return (path.is_dir() and path.suffix != ".kinfer") or (name in built_in_robots() and not path.exists())


def inspect_robot(name: str, page: Page, *, as_json: bool) -> int:
    """Print what was understood of a robot, or what it lacks; 0, or 1 where it cannot be used as it is."""
    try:
        spec, origins = read_robot(name)
        built = None
        if importlib.util.find_spec("mujoco") is not None:
            from robots.model import build_model

            built = build_model(name)
    except RobotLoadError as error:
        _lacks(robot_folder(name), error.problems or (Problem(what=str(error)),), page, as_json)
        return 1
    found = facts(spec, origins, built)
    if as_json:
        print(json.dumps(_values(spec, origins, found, built)))
        return 0
    rows = [("model", str(origins.model), str(origins.chosen)), ("metadata", str(origins.metadata), "")]
    rows += [(f.what, f.said, "" if f.origin is None else str(f.origin)) for f in found if f.said]
    rows.append(("control rate", f"{1 / spec.control_period_s:g} Hz", str(origins.period)))
    page.table(f"robot {spec.name}", ("what", "value", "source"), rows)
    for title, fields in _TABLES:
        joints = [[_short(getattr(joint, field)) for field in fields] for joint in spec.joints]
        numbers = [column for column in fields.values() if column not in ("name", "actuator")]
        page.table(title, tuple(fields.values()), joints, ", ".join(numbers))
    page.pairs("where each is from", _sources(spec, origins))
    guesses = _guesses(spec, origins)
    if guesses:
        page.pairs(f"guessed; to say it, write under {EXTRA_KEY} in metadata.json", guesses)
    if origins.passive:
        page.pairs("passive joints", [(joint or "unnamed", str(why)) for joint, why in origins.passive.items()])
    if built is None:
        page.text(NO_MUJOCO)
    elif built.meshes:
        page.pairs("meshes", [(mesh, str(file)) for mesh, file in built.meshes.items()])
    return 0


def _guesses(spec: RobotSpec, origins: Origins) -> list[tuple[str, str]]:
    """What was guessed, and the line of metadata.json that says it."""
    home = {j.name: round(math.degrees(j.home_rad), 3) for j in spec.joints}
    lines = (
        ("base", origins.floating, {"floating": origins.free}),
        ("IMU", origins.imu, {"imu_site": spec.imu_site}),
        ("feet", origins.feet, {"foot_sites": list(spec.foot_sites)}),
        ("home", origins.home, {"home_deg": home}),
    )
    rows = [(what, json.dumps(line)[1:-1]) for what, origin, line in lines if origin.guess]
    none = "; or in the list one site or body of each foot"
    return [(what, line + none if what == "feet" and not spec.foot_sites else line) for what, line in rows]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sources(spec: RobotSpec, origins: Origins) -> list[tuple[str, str]]:
    """Of each field of the joints where it is from: of all in one word, or of which joints."""
    rows = []
    for field, column in (_GAINS | _ROTORS).items():
        if field == "name":
            continue
        places: dict[str, list[str]] = {}
        for joint in spec.joints:
            origin = origins.joints[joint.name][field]
            key = origin.key.replace(f".{joint.name}.", ".JOINT.").replace(f"joint {joint.name}:", "joint JOINT:")
            key = key.replace(f".{joint.actuator_type}.", ".TYPE.")
            places.setdefault(str(Origin(how=origin.how, guess=origin.guess, file=origin.file, key=key)), []).append(
                joint.name
            )
        told = list(places) if len(places) == 1 else [f"{where}: {', '.join(of)}" for where, of in places.items()]
        rows.append((column, "\n".join(told)))
    return rows


def _origin(value: Any, origin: Origin | None) -> dict[str, Any]:
    told = {"value": value}
    if origin is not None:
        told |= {"file": origin.file, "key": origin.key, "rule": origin.how, "guess": origin.guess}
    return told


def _values(spec: RobotSpec, origins: Origins, found: list[Fact], built: BuiltModel | None) -> dict[str, Any]:
    """Everything, at full precision."""
    return {
        "robot": spec.name,
        "folder": str(origins.metadata.parent),
        "model": _origin(str(origins.model), origins.chosen),
        "metadata": str(origins.metadata),
        "understood": {fact.what: _origin(fact.said, fact.origin) for fact in found if fact.said},
        "control_period_s": _origin(spec.control_period_s, origins.period),
        "mass_kg": spec.mass_kg if built is None else built.mass_kg,
        "joints": {
            joint.name: {field: _origin(getattr(joint, field), origin) for field, origin in where.items()}
            for joint, where in ((joint, origins.joints[joint.name]) for joint in spec.joints)
        },
        "passive_joints": {joint: str(why) for joint, why in origins.passive.items()},
        "meshes": None if built is None else {mesh: str(file) for mesh, file in built.meshes.items()},
        "meshes_left_out": None if built is None else list(built.missing_meshes),
    }


def _draft(folder: Path) -> Mapping[str, Any] | None:
    """A metadata.json to start with, where there is none; None where there is one, or no model to read."""
    if (folder / "metadata.json").exists():
        return None
    try:
        model = model_file(folder)
        return draft(describe(model, read_xml(model)).hinges)
    except RobotLoadError:
        return None


def _lacks(folder: Path, problems: Sequence[Problem], page: Page, as_json: bool) -> None:
    """What is missing or wrong, one after the other, each with lines to paste."""
    start = _draft(folder)
    if as_json:
        rows = [
            {"what": p.what, "file": str(p.file or ""), "kind": p.kind, "names": p.names, "place": p.place,
             "examples": p.examples}
            for p in problems
        ]  # fmt: skip
        print(json.dumps({"folder": str(folder), "problems": rows, "draft": start}))
        return
    many = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
    lines = [f"{folder}: {many} missing or wrong"]
    for i, problem in enumerate(problems, 1):
        bare = Problem(what=problem.what, file=problem.file, kind=problem.kind, names=problem.names)
        lines.append(f"  {i}. {bare}")
        if problem.examples:
            lines.append(f"     for example, {problem.place}:")
            lines += [f"       {line}" for line in problem.examples]
    if start is not None:
        lines += [
            f"{folder / 'metadata.json'} to start with; put your robot's numbers in place of each null "
            "(id on the bus, kp [N m/rad], kd [N m s/rad], max_torque [N m], max_velocity [rad/s], angles [deg]):",
            as_text(start),
        ]
    page.text("\n".join(lines))
