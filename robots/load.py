"""A robot by name (a folder of this package) or by folder: MJCF or URDF + metadata.json.

Reads XML and JSON with the standard library: the robot's own computer has no MuJoCo.
"""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from robots.errors import RobotLoadError, SpecError
from robots.spec import JointSpec, RobotSpec

HERE = Path(__file__).parent
MODEL_SUFFIXES = (".xml", ".mjcf", ".urdf")


def robot_folder(name_or_folder: str | Path) -> Path:
    """The folder of a robot.

    Raises:
        RobotLoadError: there is neither a built-in robot nor a folder of that name.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    built_in = HERE / str(name_or_folder)
    if "/" not in str(name_or_folder) and (built_in / "metadata.json").is_file():
        return built_in
    known = ", ".join(sorted(p.parent.name for p in HERE.glob("*/metadata.json")))
    raise RobotLoadError(f"robot {str(name_or_folder)!r}: no such folder and no such built-in robot (there is: {known})")


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
