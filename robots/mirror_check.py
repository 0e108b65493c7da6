"""Checks a mirror map by physics: a mirrored state, stepped, is the mirrored next state."""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robots.mirror_map import MirrorMap
from robots.model import BuiltModel

if TYPE_CHECKING:
    import mujoco

_KICK_EVERY = 5


def check_mirror(built: BuiltModel, mirror: MirrorMap, *, steps: int = 20, seed: int = 0) -> float:
    """How far a mirrored state, stepped, is from the mirrored next state.

    Kicked states near the home pose, turned to any heading and pressed into the floor, are stepped with random
    torques, and so are their images. Every fifth step starts from a new kick.

    Args:
        built: the robot.
        mirror: the map to check.
        steps: steps to compare.
        seed: of the random states.

    Returns:
        The largest relative error: of each element's change in qpos and qvel over a step, of each sensor's reading
        and of how far each joint's body is turned on its parent; root mean square of the difference over that
        of the value, over all steps.
    """
    import mujoco

    model, rng = built.model, np.random.default_rng(seed)
    one, two, still = (mujoco.MjData(model) for _ in range(3))
    limit = np.asarray(built.spec.column("torque_limit_nm"))
    differences: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, list[np.ndarray]] = {}
    qpos, qvel = built.home_qpos, np.zeros(model.nv)
    for step in range(steps):
        if step % _KICK_EVERY == 0:
            qpos, qvel = _kicked(built, rng)
        torque = rng.uniform(-0.3, 0.3, len(limit)) * limit
        start = mirror.qpos(qpos), mirror.qvel(qvel, qpos)
        _step(one, model, qpos, qvel, torque)
        _step(two, model, *start, mirror.joint_change(torque))
        image = mirror.qpos(one.qpos), mirror.qvel(one.qvel, one.qpos)
        compared = {
            "qpos": (two.qpos - image[0], two.qpos - start[0]),
            "qvel": (two.qvel - image[1], two.qvel - start[1]),
            **_readings(built, mirror, one, two),
            **_turns(built, mirror, still, qpos),
        }
        for name, (difference, size) in compared.items():
            differences.setdefault(name, []).append(difference.copy())
            sizes.setdefault(name, []).append(size.copy())
        qpos, qvel = one.qpos.copy(), one.qvel.copy()
    worst = 0.0
    for name, values in differences.items():
        misses, readings = np.array(values), np.array(sizes[name])
        off, size, image = (np.sqrt(np.mean(np.square(v), axis=0)) for v in (misses, readings, readings - misses))
        # the elements of a vector share a scale, joints do not
        for block in _blocks(built, mirror, name, len(off)):
            scale = max(np.linalg.norm(size[block]), np.linalg.norm(image[block]), 1e-9)
            miss = float(off[block].max() / scale)
            # what is not a number is as wrong as can be, and compares with nothing
            worst = max(worst, miss if np.isfinite(miss) else np.inf)
    return worst


def _readings(
    built: BuiltModel, mirror: MirrorMap, one: mujoco.MjData, two: mujoco.MjData
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(difference, value) of each sensor."""
    maps = {"imu_quat": mirror.imu_quat, "imu_gyro": mirror.axial, "imu_accelerometer": mirror.polar}
    out = {}
    for name, convert in maps.items():
        reading = two.sensordata[built.sensors[name]]
        image = convert(one.sensordata[built.sensors[name]])
        if name == "imu_accelerometer":
            image = image + _lever(built, mirror, two)
        out[name] = (reading - image, reading)
    touch = [built.sensors[f"touch_{name}"].start for name in built.spec.foot_sites]
    if touch:
        out["touch"] = (two.sensordata[touch] - mirror.feet_of(one.sensordata[touch]), two.sensordata[touch])
    return out


def _turns(
    built: BuiltModel, mirror: MirrorMap, data: mujoco.MjData, qpos: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(difference, value) of how far each joint's body is turned on its parent since the home pose.

    A round hand that spins the wrong way round moves its neighbours hardly at all; where it points shows it.
    """
    import mujoco

    model = built.model
    bodies = model.jnt_bodyid[[model.joint(name).id for name in mirror.joint_names]]
    turns = []
    for pose, home in ((qpos, built.home_qpos), (mirror.qpos(qpos), mirror.qpos(built.home_qpos))):
        frames = []
        for at in (pose, home):
            data.qpos[:] = at
            mujoco.mj_kinematics(model, data)
            frames.append(data.xmat.reshape(-1, 3, 3).copy())
        now, then = frames
        parents = model.body_parentid[bodies]
        turns.append(then[parents] @ _flip(now[parents]) @ now[bodies] @ _flip(then[bodies]))
    reflect = np.eye(3) - 2 * np.outer(mirror.world_normal, mirror.world_normal)
    image = reflect @ turns[0][list(mirror.joints)] @ reflect
    return {
        f"turn of {name}": ((turns[1][k] - image[k]).ravel(), (turns[1][k] - np.eye(3)).ravel())
        for k, name in enumerate(mirror.joint_names)
    }


def _flip(matrices: np.ndarray) -> np.ndarray:
    """The transpose of each."""
    return matrices.transpose(0, 2, 1)


def _lever(built: BuiltModel, mirror: MirrorMap, data: mujoco.MjData) -> np.ndarray:
    """What the accelerometer feels where it is and not where its image is, in its frame [m/s^2]."""
    turn = data.site_xmat[built.model.sensor("imu_accelerometer").objid[0]].reshape(3, 3)
    lever = turn @ (-2 * mirror.imu_offset_m * np.asarray(mirror.imu_normal))
    spin, change = data.cvel[built.imu_body, :3], data.cacc[built.imu_body, :3]
    return turn.T @ (np.cross(change, lever) + np.cross(spin, np.cross(spin, lever)))


def _blocks(built: BuiltModel, mirror: MirrorMap, name: str, size: int) -> list[list[int]]:
    """Elements that share one scale."""
    if name not in ("qpos", "qvel"):
        return [list(range(size))]
    out = []
    for free in mirror.free:
        at, parts = (free.qpos, (3, 4)) if name == "qpos" else (free.dof, (3, 3))
        for length in parts:
            out.append(list(range(at, at + length)))
            at += length
    rest = set(range(size)) - {i for block in out for i in block}
    return out + [[i] for i in sorted(rest)]


def _step(data: mujoco.MjData, model: mujoco.MjModel, qpos: np.ndarray, qvel: np.ndarray, torque: np.ndarray) -> None:
    import mujoco

    mujoco.mj_resetData(model, data)  # the solver's warm start would be another one
    data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, torque
    mujoco.mj_step(model, data)


def _kicked(built: BuiltModel, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A state near home with every velocity: (qpos, qvel)."""
    import mujoco

    model = built.model
    qpos, qvel = built.home_qpos.copy(), rng.normal(0, 1.0, model.nv)
    lower, upper = (np.asarray(built.spec.column(c)) for c in ("lower_rad", "upper_rad"))
    qpos[built.qpos_ids] = np.clip(qpos[built.qpos_ids] + rng.normal(0, 0.1, len(lower)), lower + 0.01, upper - 0.01)
    if built.base_body >= 0:
        joint = model.body_jntadr[built.base_body]
        at, dof = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
        yaw = np.zeros(4)
        mujoco.mju_axisAngle2Quat(yaw, np.array([0, 0, 1.0]), rng.uniform(-np.pi, np.pi))
        mujoco.mju_mulQuat(qpos[at + 3 : at + 7], yaw, qpos[at + 3 : at + 7].copy())
        qpos[at : at + 2] += rng.normal(0, 1, 2)
        qpos[at + 2] -= rng.uniform(0.0, 0.02)
        qvel[dof : dof + 6] = rng.normal(0, 0.5, 6)
    return qpos, qvel
