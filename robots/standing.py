"""How a compiled robot stands: at home, its lowest point on the floor. MuJoCo is imported inside the functions."""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from robots.errors import RobotLoadError
from robots.spec import RobotSpec

if TYPE_CHECKING:
    import mujoco


def colliding_geoms(model: mujoco.MjModel) -> np.ndarray:
    """The same of a compiled model: a mask, (geoms,)."""
    mask = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    mask[model.pair_geom1] = mask[model.pair_geom2] = True
    return mask


def stand_at_home(
    model: mujoco.MjModel, spec: RobotSpec, qpos_ids: np.ndarray, base_qpos: int, base_body: int, floor_m: float
) -> np.ndarray:
    """The home pose; a floating robot stands with its lowest point on the floor. All else is as in the file."""
    import mujoco

    qpos = model.qpos0.copy()
    qpos[qpos_ids] = spec.column("home_rad")
    if base_body < 0:
        return qpos
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    own = model.body_rootid[model.geom_bodyid] == base_body
    touching = np.flatnonzero(own & colliding_geoms(model))
    if not touching.size:
        raise RobotLoadError(f"robot {spec.name}: no geom of it collides; a robot with a free joint needs one")
    lowest = min(_lowest_point(model, data, int(geom)) for geom in touching)
    qpos[base_qpos + 2] += floor_m - lowest
    return qpos


def height_of(model: mujoco.MjModel, qpos: np.ndarray, body: int) -> float:
    """Height of a body in the world [m]."""
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return float(data.xpos[body, 2])


def _lowest_point(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> float:
    """Height of a geom's lowest point [m]."""
    import mujoco

    kinds = mujoco.mjtGeom
    kind, size, height = model.geom_type[geom], model.geom_size[geom], data.geom_xpos[geom, 2]
    up = data.geom_xmat[geom].reshape(3, 3)[2]  # the world's z axis in the geom's frame
    if kind == kinds.mjGEOM_SPHERE:
        below = size[0]
    elif kind == kinds.mjGEOM_CAPSULE:
        below = size[0] + size[1] * abs(up[2])
    elif kind == kinds.mjGEOM_CYLINDER:
        below = size[0] * math.hypot(up[0], up[1]) + size[1] * abs(up[2])
    elif kind == kinds.mjGEOM_BOX:
        below = float(np.abs(up) @ size)
    elif kind == kinds.mjGEOM_ELLIPSOID:
        below = float(np.linalg.norm(up * size))
    elif kind == kinds.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first = model.mesh_vertadr[mesh]
        below = -float((model.mesh_vert[first : first + model.mesh_vertnum[mesh]] @ up).min())
    else:
        below = model.geom_rbound[geom]
    return float(height - below)
