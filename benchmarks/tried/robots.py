"""The MJCF files of robots that packages ship: what loading a folder with one needs, and what is understood of it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from robots.description import describe, read_xml
from robots.load import read_robot
from robots.model import build_model
from robots.understood import understood
from toolkit.errors import ToolkitError

ROOT = Path(__file__).parents[2]
# package on PyPI -> its folder
PACKAGES = {
    "playground": "mujoco_playground",
    "mjlab": "mjlab",
    "robosuite-models": "robosuite_models",
    "dm-control": "dm_control",
    "gymnasium": "gymnasium",
}
# scenes around a robot, parts of one, hands and grippers, and what moves in a plane and has no base
SKIPPED = re.compile(
    r"scene|test|gripper|sensor|/common/|hand|cube|peg|fruitfly/|drosophila|floor|arena|schema|/props/"
)
MOTORS_MIN = 6


def files(package: Path) -> list[Path]:
    """The MJCF files of robots with six motors or more."""
    found = []
    for path in sorted(package.rglob("*.xml")):
        if SKIPPED.search(str(path.relative_to(package.parent))):
            continue
        try:
            root = ET.parse(path).getroot()
        except (ET.ParseError, OSError):
            continue
        hinges = sum(1 for joint in root.iter("joint") if joint.get("axis") or joint.get("name"))
        if root.tag == "mujoco" and root.find("worldbody/body") is not None and hinges >= MOTORS_MIN:
            found.append(path)
    return found


def _folder(model: Path, folder: Path) -> None:
    """A robot folder: the model as robot.xml, beside links to all that lies beside it."""
    for beside in model.parent.iterdir():
        if beside.suffix not in (".xml", ".mjcf", ".urdf") or beside == model:
            (folder / ("robot.xml" if beside == model else beside.name)).symlink_to(beside)
    for name in set(re.findall(r'<include\s+file="([^"]+)"', model.read_text(encoding="utf-8"))):
        target = folder / name
        if not target.exists() and (model.parent / name).is_file():
            target.symlink_to(model.parent / name)


def _metadata(folder: Path) -> dict:
    """The least that a folder needs: every hinge with an actuator, with made-up numbers."""
    path = folder / "robot.xml"
    hinges = [h for h in describe(path, read_xml(path)).hinges if not h.follows and not h.undriven]
    return {
        "joint_name_to_metadata": {
            h.name: {"id": k, "kp": 50, "kd": 1, "actuator_type": "any"} for k, h in enumerate(hinges, 1)
        },
        "actuator_type_to_metadata": {"any": {"max_torque": 50, "max_velocity": 20}},
        "control_frequency": 50,
    }


def _said(error: ToolkitError, folder: Path) -> str:
    return str(error).replace(f"{folder}/", "").replace(str(folder), "FOLDER")


def row(model: Path) -> str:
    """What came of one file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / model.parent.name
        folder.mkdir()
        _folder(model, folder)
        try:
            (folder / "metadata.json").write_text(json.dumps(_metadata(folder)), encoding="utf-8")
            read_robot(folder)
            told = understood(build_model(folder))
            told = f"loads | {told.partition('; ')[2]}"
        except ToolkitError as error:
            told = f"refused | {_said(error, folder)}"
        except Exception as error:  # a fault of ours, which the table must show
            told = f"FAULT | {type(error).__name__}: {str(error).splitlines()[0]}"
    return told


def tables(packages: Path) -> Iterator[str]:
    """One table; a package that is not there has a row that says so."""
    yield "\n## Robots\n\n| package | file | with metadata.json | understood, or why not |\n|---|---|---|---|"
    yield f"| this one | kbot | loads | {understood(build_model('kbot')).partition('; ')[2]} |"
    for name, folder in PACKAGES.items():
        if not (packages / folder).is_dir():
            yield f"| {name} | | not tried | it is not in the folder that --packages names |"
            continue
        version = next(
            (
                d.version
                for d in importlib.metadata.distributions(path=[str(packages)])
                if d.name.lower().replace("_", "-") == name
            ),
            "",
        )
        for model in files(packages / folder):
            told = row(model)
            short = "/".join(
                part for part in model.relative_to(packages / folder).parts if part not in ("_src", "xmls")
            )
            yield f"| {name} {version} | {short} | {told} |"
