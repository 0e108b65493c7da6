"""Poses in a file: rows of joint angles by name, with the base's height and orientation where it has them.

A .csv file has one column a joint, in radians, and may have base_height_m, and base_qw, base_qx, base_qy, base_qz.
A .npz file has joint_names (joints,) and joint_position (poses, joints) [rad], and may have base_height_m (poses,)
and base_quat (poses, 4), w first.
"""

from __future__ import annotations

import csv
import functools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ksim.errors import ConfigError
from ksim.scene import Scene
from toolkit.settings import nearest

_HEIGHT = "base_height_m"
_QUAT = ("base_qw", "base_qx", "base_qy", "base_qz")
# Beyond the end of a joint's travel a pose may be this far, for rounding [rad]; it is then clipped.
_SLACK_RAD = 0.01


class Poses(NamedTuple):
    """What a file has, float32. `joints`: places of the joints that it names. Height and quat may be None."""

    joints: np.ndarray
    position: np.ndarray
    height_m: np.ndarray | None
    quat: np.ndarray | None


def load_poses(path: str | Path, scene: Scene) -> Poses:
    """The poses of a .csv or .npz file for a robot; joints that it does not name are not in them.

    Raises:
        ConfigError: the file is missing or unreadable, names what the robot has not, or has a number that cannot be.
    """
    path = Path(path)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"{path}: no such file; expected poses as .csv or .npz") from error
    return _checked(path, changed, scene)


@functools.lru_cache(maxsize=16)
def _checked(path: Path, changed: int, scene: Scene) -> Poses:
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: got a file of kind {path.suffix or 'none'!r}, expected .csv or .npz")
    columns = readers[path.suffix](path)
    heights, quats = columns.pop(_HEIGHT, None), [columns.pop(name, None) for name in _QUAT]
    for name in columns:
        if name not in scene.joint_names:
            known = [*scene.joint_names, _HEIGHT, *_QUAT]
            raise ConfigError(f"{path}: {scene.built.spec.name} has no joint {name!r}; {nearest(name, known)}")
    if not columns:
        raise ConfigError(f"{path}: got no joint, expected a column for at least one of {', '.join(scene.joint_names)}")
    given = [q for q in quats if q is not None]
    if given and len(given) < len(_QUAT):
        raise ConfigError(f"{path}: got some of {', '.join(_QUAT)}, expected all of them or none")
    joints = np.asarray([scene.joint_names.index(name) for name in columns], np.int32)
    position = np.stack(list(columns.values()), axis=1).astype(np.float32)
    low, high = scene.column("lower_rad")[joints], scene.column("upper_rad")[joints]
    beyond = (position < low - _SLACK_RAD) | (position > high + _SLACK_RAD)
    if beyond.any():
        row, at = np.argwhere(beyond)[0]
        raise ConfigError(
            f"{path}: pose {row + 1}: joint {list(columns)[at]}: got {position[row, at]:g} rad, expected "
            f"{low[at]:g} to {high[at]:g}"
        )
    quat = None
    if given:
        quat = np.stack(given, axis=1)
        length = np.linalg.norm(quat, axis=1, keepdims=True)
        if (abs(length - 1.0) > 0.01).any():
            row = int(np.argmax(abs(length[:, 0] - 1.0)))
            raise ConfigError(
                f"{path}: pose {row + 1}: the base's quaternion has length {length[row, 0]:g}, expected 1"
            )
        quat = (quat / length).astype(np.float32)
    height = None if heights is None else heights.astype(np.float32)
    return Poses(joints, np.clip(position, low, high), height, quat)


def _finite(path: Path, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = {len(v) for v in columns.values()}
    if rows in (set(), {0}):
        raise ConfigError(f"{path}: got no pose, expected at least one row")
    for name, values in columns.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ConfigError(f"{path}: pose {row + 1}: {name}: got {values[row]}, expected a finite number")
    return columns


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as .csv: {' '.join(str(error).split())}") from error
    names = [name.strip() for name in rows[0]] if rows else []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: column {twice[0]!r} is there twice, expected each name once")
    values = np.empty((max(len(rows) - 1, 0), len(names)))
    for number, row in enumerate(rows[1:]):
        if len(row) != len(names):
            raise ConfigError(f"{path}: pose {number + 1}: got {len(row)} numbers, expected {len(names)}")
        for place, cell in enumerate(row):
            try:
                values[number, place] = float(cell)
            except ValueError as error:
                raise ConfigError(
                    f"{path}: pose {number + 1}: {names[place]}: got {cell!r:.50}, expected a number"
                ) from error
    return _finite(path, dict(zip(names, values.T, strict=True)))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read as .npz: {' '.join(str(error).split())}") from error
    known = ("joint_names", "joint_position", _HEIGHT, "base_quat")
    for name in arrays:
        if name not in known:
            raise ConfigError(f"{path}: array {name!r} is unknown; {nearest(name, known)}")
    for name in known[:2]:
        if name not in arrays:
            raise ConfigError(f"{path}: got no array {name}, expected {', '.join(known[:2])}")
    names = [str(name) for name in np.atleast_1d(arrays.pop("joint_names"))]
    rows = np.shape(arrays["joint_position"])[:1]
    wanted = {"joint_position": (*rows, len(names)), _HEIGHT: rows, "base_quat": (*rows, 4)}
    for name, array in arrays.items():
        if array.shape != wanted[name] or array.dtype.kind not in "fiu":
            raise ConfigError(
                f"{path}: {name}: got {array.dtype} of shape {array.shape}, expected numbers of shape {wanted[name]}"
            )
    columns = dict(zip(names, np.asarray(arrays["joint_position"], float).T, strict=True))
    if len(columns) < len(names):
        raise ConfigError(f"{path}: joint_names: a joint is there twice, expected each once")
    if _HEIGHT in arrays:
        columns[_HEIGHT] = np.asarray(arrays[_HEIGHT], float)
    if "base_quat" in arrays:
        columns |= dict(zip(_QUAT, np.asarray(arrays["base_quat"], float).T, strict=True))
    return _finite(path, columns)
