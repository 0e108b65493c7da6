"""How a compiled robot stands: at home, its lowest point on the floor. MuJoCo is imported inside the functions."""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping
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
    model: mujoco.MjModel,
    spec: RobotSpec,
    qpos_ids: np.ndarray,
    base_qpos: int,
    base_body: int,
    floor_m: float,
    passive_rad: Mapping[str, float],
) -> np.ndarray:
    """The home pose; a floating robot stands with its lowest point on the floor. All else is as in the file.

    Joints without a motor are where the home pose's keyframe has them; one that follows another is where that takes it.
    """
    import mujoco

    qpos = model.qpos0.copy()
    for name, position in passive_rad.items():
        qpos[model.joint(name).qposadr[0]] = position
    qpos[qpos_ids] = spec.column("home_rad")
    equalities = np.flatnonzero((model.eq_type == mujoco.mjtEq.mjEQ_JOINT) & model.eq_active0)
    for equality in [*equalities] * len(equalities):  # a joint may follow one that follows
        follower, leader = model.eq_obj1id[equality], model.eq_obj2id[equality]
        own, other = model.jnt_qposadr[follower], model.jnt_qposadr[leader]
        factors = model.eq_data[equality, :5]
        if own in qpos_ids and leader >= 0 and other not in qpos_ids:  # it has the motor: the other one follows it
            if factors[1] and not factors[2:].any():
                qpos[other] = model.qpos0[other] + (qpos[own] - model.qpos0[own] - factors[0]) / factors[1]
            continue
        moved = 0.0 if leader < 0 else qpos[other] - model.qpos0[other]
        qpos[own] = model.qpos0[own] + np.polynomial.polynomial.polyval(moved, factors)
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
