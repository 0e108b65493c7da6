"""Where the files lie that a model names, and its meshes as MuJoCo takes them.

ROS names files by packages, other programs by folders that are not there any more: what is found by a guess is told.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from robots.errors import RobotLoadError

if TYPE_CHECKING:
    import mujoco

# What other programs call meshes.
_NOT_MESHES = (".dae", ".fbx", ".glb", ".gltf", ".step", ".stp", ".wrl", ".blend", ".3mf")


def _folders(path: Path, root: ET.Element) -> list[Path]:
    """The folders that the model's compiler names."""
    told = [c.get(key, "") for c in root.iter("compiler") for key in ("meshdir", "assetdir", "texturedir")]
    return [path.parent / folder for folder in told if folder]


def _said(path: Path, root: ET.Element, name: str) -> set[Path]:
    """Where the model says that a file lies; the folder of a package is the robot's own, or one in it."""
    if "://" in name:
        rest = name.partition("://")[2]
        return {path.parent / rest, path.parent / rest.partition("/")[2]}
    return {folder / name for folder in _folders(path, root) or [path.parent]}


def places(path: Path, root: ET.Element, name: str) -> list[Path]:
    """Where a file that the model names may lie, the likeliest first."""
    # ROS names a file by its package, whose folder is the robot's own. Of the path as much is kept as there is: in
    # subfolders of their own two meshes may have one name.
    parts = [part for part in name.split("://", 1)[-1].split("/") if part]
    names = [name.split("://", 1)[-1], *("/".join(parts[i:]) for i in range(1, len(parts))), Path(name).name]
    folders = dict.fromkeys([*_folders(path, root), path.parent, path.parent / "meshes"])
    return [folder / part for part in dict.fromkeys(names) for folder in folders]


def meshes_apart(xml: ET.Element) -> tuple[ET.Element, dict[str, str]]:
    """(the model for MuJoCo, the file that each changed name stands for).

    Of a URDF MuJoCo calls a mesh by its file's name without folder and takes the first one wherever a name comes
    again: each file with each scale gets a name of its own.
    """
    used = [mesh for mesh in xml.iter("mesh") if mesh.get("filename")] if xml.tag == "robot" else []
    stems: dict[str, list[tuple[str, str]]] = {}
    for mesh in used:
        one = (mesh.attrib["filename"], mesh.get("scale", ""))
        same = stems.setdefault(Path(one[0]).stem, [])
        if one not in same:
            same.append(one)
    if all(len(same) == 1 for same in stems.values()):
        return xml, {}
    told, files = copy.deepcopy(xml), {}
    for mesh in told.iter("mesh"):
        name = mesh.get("filename", "")
        number = stems[Path(name).stem].index((name, mesh.get("scale", ""))) if name else 0
        if number:
            alias = f"{Path(name).stem}_mesh_{number + 1}{Path(name).suffix}"
            files[alias] = name
            mesh.set("filename", alias)
    return told, files


def load_meshes(
    mjspec: mujoco.MjSpec, path: Path, xml: ET.Element, colliding: Callable[[mujoco.MjsGeom], bool]
) -> tuple[dict[str, bytes], dict[str, Path], tuple[str, ...], tuple[str, ...]]:
    """(contents of the mesh files by name, the file of each mesh, meshes whose file is not where the model says, files
    that are only to be seen and are missing).
    """
    import mujoco

    assets: dict[str, bytes] = {}
    files: dict[str, Path] = {}
    guessed: list[str] = []
    missing: dict[str, str] = {}
    strange: set[str] = set()
    for number, mesh in enumerate(mjspec.meshes):
        if not mesh.file:
            continue
        mesh.name = mesh.name or Path(mesh.file).stem  # as MuJoCo names it, but only when it compiles
        said = _said(path, xml, mesh.file)
        found = next((p for p in places(path, xml, mesh.file) if p.is_file()), None)
        if found is None:
            missing[mesh.name] = mesh.file
        elif found.suffix.lower() in _NOT_MESHES:
            strange.add(found.name)
        else:
            mesh.file = f"{number}{found.suffix.lower()}"
            assets[mesh.file] = found.read_bytes()
            files[mesh.name] = found
            if found not in said:
                guessed.append(mesh.name)
    if strange:
        raise RobotLoadError(
            f"{path}: meshes of kinds that MuJoCo does not read: {', '.join(sorted(strange))}; expected STL, OBJ or "
            "MSH; convert them and name the new files in the model"
        )
    mjspec.meshdir = ""
    needed = set()
    for body in mjspec.bodies:
        for geom in list(body.geoms):
            if geom.type != mujoco.mjtGeom.mjGEOM_MESH or geom.meshname not in missing:
                continue
            if colliding(geom) or not body.explicitinertial:
                needed.add(missing[geom.meshname])
            else:
                mjspec.delete(geom)
    if needed:
        raise RobotLoadError(
            f"{path}: meshes that collide or give mass are not there: {', '.join(sorted(needed))}; "
            "put them beside the model or replace them by primitive shapes"
        )
    for mesh in [m for m in mjspec.meshes if m.name in missing]:
        mjspec.delete(mesh)
    return assets, files, tuple(guessed), tuple(sorted(missing.values()))
