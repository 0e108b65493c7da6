"""Rows in which the arm seems to touch something that the model does not have: a table, a stop.

The signs: the model without contact goes on where the arm stands still, and the arm stands at one level.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.sysid.motion import Motion
from deploy.sysid.simulate import Parameters, Simulator

# The model goes on by this much where the arm stands [m], and at a joint's end [rad].
GAP_M = 0.01
GAP_RAD = 0.05
# The arm stands within this of one level [m], and of a joint's end [rad].
LEVEL_M = 0.01
LEVEL_RAD = 0.02
# A smaller share of a motion's rows says nothing.
LEAST = 0.02
# Nor does a geom that is the lowest in a smaller share of the rows that touch.
LEAST_GEOM = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Touch:
    """A contact that is not in the model.

    Attributes:
        motion: where it is seen.
        what: "plane", or the joint at its stop.
        level: height of the plane [m], or angle of the stop [rad].
        rows: which, bool (T,).
        geoms: of the robot, that are at the plane by name.
    """

    motion: str
    what: str
    level: float
    rows: np.ndarray
    geoms: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the motion's rows."""
        return float(self.rows.mean())


def lowest(simulator: Simulator, position: np.ndarray) -> np.ndarray:
    """Height of the lowest point of the geoms that move, for joint positions (T, joints): (T,) [m]."""
    return _heights(simulator, position).min(axis=1)


def _moving(simulator: Simulator) -> list[int]:
    model = simulator.model
    return [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]] != 0]


def _heights(simulator: Simulator, position: np.ndarray) -> np.ndarray:
    """Of the lowest point of each geom that moves, (T, geoms) [m]."""
    built, model, moving = simulator.built, simulator.model, _moving(simulator)
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = built.home_qpos
    capsule, sphere = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE
    out = np.empty((len(position), len(moving)))
    for row, angles in enumerate(position):
        data.qpos[built.qpos_ids] = angles
        mujoco.mj_kinematics(model, data)
        for column, g in enumerate(moving):
            up = data.geom_xmat[g].reshape(3, 3)[2]
            if model.geom_type[g] == capsule:
                reach = abs(up[2]) * model.geom_size[g, 1] + model.geom_size[g, 0]
            elif model.geom_type[g] == sphere:
                reach = model.geom_size[g, 0]
            else:
                reach = float(np.abs(up) @ model.geom_aabb[g, 3:]) - float(up @ model.geom_aabb[g, :3])
            out[row, column] = data.geom_xpos[g, 2] - reach
    return out


def touches(simulator: Simulator, p: Parameters) -> list[Touch]:
    """What the arm seems to touch beyond what is declared; `p` should be fitted."""
    found: list[Touch] = []
    shown = simulator.run([p])
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    names = [simulator.model.geom(g).name for g in _moving(simulator)]
    which: dict[str, np.ndarray] = {}
    for motion in simulator.motions:
        model = shown[motion.name][0] - p.offset
        each = _heights(simulator, motion.position - p.offset)
        seen[motion.name], which[motion.name] = (each.min(axis=1), lowest(simulator, model)), each.argmin(axis=1)
        found += _stops(motion, simulator, shown[motion.name][0])
    used = {m.name: m.use for m in simulator.motions}
    stands = [real[(real - model > GAP_M) & used[name]] for name, (real, model) in seen.items()]
    pooled = np.concatenate(stands)
    if pooled.size:
        level = float(np.median(pooled))
        for name, (real, model) in seen.items():
            rows = (real - model > GAP_M) & (np.abs(real - level) < LEVEL_M) & used[name]
            if rows.mean() >= LEAST:
                share = np.bincount(which[name][rows], minlength=len(names)) / rows.sum()
                geoms = tuple(n for n, part in zip(names, share, strict=True) if part >= LEAST_GEOM and n)
                found.append(Touch(motion=name, what="plane", level=level, rows=rows, geoms=geoms))
    return found


def _stops(motion: Motion, simulator: Simulator, model: np.ndarray) -> list[Touch]:
    out, real = [], motion.position
    for j, joint in enumerate(simulator.spec.joint_names):
        for end, beyond in ((real[:, j].max(), model[:, j] - real[:, j]), (real[:, j].min(), real[:, j] - model[:, j])):
            rows = (beyond > GAP_RAD) & (np.abs(real[:, j] - end) < LEVEL_RAD) & motion.use
            if rows.mean() >= LEAST:
                out.append(Touch(motion=motion.name, what=joint, level=float(end), rows=rows))
    return out
