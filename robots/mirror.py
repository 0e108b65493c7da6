"""Finds the mirror map of a compiled robot by its geometry, and checks it by physics.

No names are read: a joint's partner is the one whose axis, driven mass and limits are its reflection. The
plane is searched for as well, so the lateral axis may be x, y or neither, and base and IMU may be turned.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from robots.errors import MirrorError
from robots.mirror_check import check_mirror
from robots.mirror_map import FreeMirror, MirrorMap, Vector
from robots.model import BuiltModel

if TYPE_CHECKING:
    import mujoco

__all__ = ["MirrorMap", "check_mirror", "find_mirror"]

# What two halves may differ by and still be called mirror images; the physics decides in the end. The K-Bot's
# published joints are off by 0.9 mm; its upper arms weigh 0.753 and 0.867 kg, their centres are off by 5.2 mm and
# their inertias by 9 %; its legs differ by less than 0.1 %.
ANCHOR_M, AXIS, CENTRE_M, MASS, INERTIA = 0.002, 0.005, 0.008, 0.2, 0.15
LIMIT_RAD, GAIN, FOOT_M = 0.01, 0.01, 0.005
# What a mirrored state, stepped, may miss the mirrored next state by. The K-Bot's shoulders miss it by 5 to 6 %,
# because of its upper arms, all else by 1 %; a symmetric robot by 1e-6, or by 1 % where its base lies beside the
# plane or its zeros differ. On the K-Bot a wrong sign or axis misses by 65 % and more, an IMU 6 degrees askew by 14 %.
TOLERANCE = 0.1
_NONE = 1e3  # the misfit of what is no mirror image at all
_GAINS = (
    *("kp", "kd", "torque_limit_nm", "torque_max_nm"),
    *("velocity_max_rad_s", "armature", "friction_nm", "damping"),
)
# Of several planes that fit, the one with the lateral axis y wins, then x: x is forward by convention.
_PREFER_Y, _PREFER_X, _OBLIQUE = 0.0, 0.05, 0.1


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The robot's movable parts in one pose, in the world: one row per joint.

    Attributes:
        joints: their ids.
        anchor: a point on each axis [m].
        axis: unit direction.
        slide: whether it slides.
        parent: row of the joint before it in the chain, -1 for none.
        mass, centre, inertia: of what is rigidly joined to the driven body [kg, m, kg m^2].
        base: mass, centre and inertia of the base, None where that is the world.
    """

    joints: np.ndarray
    anchor: np.ndarray
    axis: np.ndarray
    slide: np.ndarray
    parent: np.ndarray
    mass: np.ndarray
    centre: np.ndarray
    inertia: np.ndarray
    base: tuple[float, np.ndarray, np.ndarray] | None


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """A candidate and how well it fits: the greatest misfit in units of what is allowed, and where."""

    normal: np.ndarray
    offset: float
    partner: np.ndarray
    sign: np.ndarray
    misfit: float
    worst: str


def _parts(built: BuiltModel, qpos: np.ndarray) -> tuple[_Parts, np.ndarray, np.ndarray]:
    """(movable parts, position and rotation of the body that carries them all) in a pose."""
    import mujoco

    model = built.model
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    roots = {int(model.body_rootid[model.jnt_bodyid[j]]) for j in _spec_ids(built)}
    # arms on a wall hang on nothing but the world
    root = min(roots) if len(roots) == 1 else 0
    free, hinge, slide = (int(getattr(mujoco.mjtJoint, f"mjJNT_{kind}")) for kind in ("FREE", "HINGE", "SLIDE"))
    own = [j for j in range(model.njnt) if model.body_rootid[model.jnt_bodyid[j]] in roots]
    own = [j for j in own if model.jnt_type[j] != free]
    for j in own:
        if model.jnt_type[j] not in (hinge, slide):
            raise MirrorError(
                f"robot {built.spec.name}: joint {model.joint(j).name} is a ball joint; "
                "only hinges and slides can be mirrored"
            )
    row = {j: k for k, j in enumerate(own)}
    parent, mass, centre, inertia = [], [], [], []
    for j in own:
        body = model.jnt_bodyid[j]
        before = j - 1 if j > model.body_jntadr[body] else _carrier(model, int(model.body_parentid[body]))
        parent.append(row.get(before, -1))
        m, c, i = _lump(model, data, body)
        mass.append(m)
        centre.append(c)
        inertia.append(i)
    parts = _Parts(
        joints=np.array(own),
        anchor=data.xanchor[own].copy(),
        axis=data.xaxis[own].copy(),
        slide=model.jnt_type[own] == slide,
        parent=np.array(parent),
        mass=np.array(mass),
        centre=np.array(centre),
        inertia=np.array(inertia),
        base=_lump(model, data, root) if model.body_weldid[root] else None,
    )
    return parts, data.xpos[root].copy(), data.xmat[root].reshape(3, 3).copy()


def _carrier(model: mujoco.MjModel, body: int) -> int:
    """The last joint that moves a body, -1 for none."""
    while body > 0 and not model.body_jntnum[body]:
        body = int(model.body_parentid[body])
    return int(model.body_jntadr[body] + model.body_jntnum[body] - 1) if body > 0 else -1


def _spec_ids(built: BuiltModel) -> list[int]:
    return [built.model.joint(name).id for name in built.spec.joint_names]


def _lump(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> tuple[float, np.ndarray, np.ndarray]:
    """(mass, centre, inertia about it) of all that is rigidly joined to a body, in the world."""
    bodies = np.flatnonzero(model.body_weldid == model.body_weldid[body])
    mass = model.body_mass[bodies]
    total = float(mass.sum())
    centre = mass @ data.xipos[bodies] / max(total, 1e-12)
    inertia = np.zeros((3, 3))
    for m, b in zip(mass, bodies, strict=True):
        turn, arm = data.ximat[b].reshape(3, 3), data.xipos[b] - centre
        inertia += turn @ np.diag(model.body_inertia[b]) @ turn.T + m * (arm @ arm * np.eye(3) - np.outer(arm, arm))
    return total, centre, inertia


def find_mirror(built: BuiltModel) -> MirrorMap:
    """Derive the mirror map of a robot from its compiled model, and check it by physics.

    Partners are sought in the pose of zeros, and where that is not symmetric in the home pose.

    Raises:
        MirrorError: the robot is not symmetric: which joint has no partner and by how much it is off, or by how
            much a mirrored state, stepped, misses the mirrored next state.
    """
    zeros = built.home_qpos.copy()
    zeros[built.qpos_ids] = 0.0
    plane, qpos = _fit(built, zeros), zeros
    if plane.misfit > 1:
        other = _fit(built, built.home_qpos)
        if other.misfit < plane.misfit:
            plane, qpos = other, built.home_qpos
    if plane.misfit > 1:
        raise MirrorError(f"robot {built.spec.name}: no plane of symmetry: {plane.worst}; correct the model")
    mirror = _map(built, plane, qpos)
    error = check_mirror(built, mirror)
    if error > TOLERANCE:
        raise MirrorError(
            f"robot {built.spec.name}: a mirrored state, stepped, misses the mirrored next state by {error:.1%}, "
            f"expected at most {TOLERANCE:.0%}: what touches the floor, armature or IMU differs between the halves"
        )
    return dataclasses.replace(mirror, asymmetry=error)


def _fit(built: BuiltModel, qpos: np.ndarray) -> _Plane:
    """The vertical plane that fits best in a pose."""
    parts, at, turn = _parts(built, qpos)
    best: _Plane | None = None
    least = np.inf
    for normal, offset, handicap in _candidates(parts, at, turn):
        plane = _match(built, parts, qpos, normal, offset)
        if plane.misfit + handicap < least:
            best, least = plane, plane.misfit + handicap
    if best is None:
        raise MirrorError(
            f"robot {built.spec.name}: no plane of symmetry: its base has no level axis in the home pose and no two "
            "parts are alike; correct the home pose"
        )
    return best


def _candidates(parts: _Parts, at: np.ndarray, turn: np.ndarray) -> Iterator[tuple[np.ndarray, float, float]]:
    """Planes to try: (normal, offset, handicap)."""
    axes = []
    for column, handicap in ((1, _PREFER_Y), (0, _PREFER_X), (2, _OBLIQUE)):
        flat = turn[:, column] * (1, 1, 0)
        # a base that leans in its home pose still has a vertical plane if its lateral axis is level
        if np.linalg.norm(flat) > 0.99:
            axes.append((flat / np.linalg.norm(flat), handicap))
    for normal, handicap in axes:
        yield normal, float(normal @ at), handicap
    seen: list[tuple[np.ndarray, float]] = []
    for i in range(len(parts.mass)):
        for j in range(i):
            gap = parts.centre[i] - parts.centre[j]
            width = float(np.hypot(gap[0], gap[1]))
            like = abs(parts.mass[i] - parts.mass[j]) <= MASS * parts.mass[i]
            if not like or abs(gap[2]) > CENTRE_M or width < CENTRE_M:
                continue
            normal = gap * (1, 1, 0) / width
            near = next((n for n, _ in axes if abs(normal @ n) > 1 - CENTRE_M**2 / width**2), None)
            handicap = _OBLIQUE
            if near is not None:
                # a base's own axis is exact where the centres are rounded
                handicap = next(h for n, h in axes if n is near) + 0.01
                normal = near
            offset = float(normal @ (parts.centre[i] + parts.centre[j]) / 2)
            if any(abs(normal @ n) > 1 - 1e-6 and abs(offset - np.sign(normal @ n) * o) < 1e-4 for n, o in seen):
                continue
            seen.append((normal, offset))
            yield normal, offset, handicap


def _match(built: BuiltModel, parts: _Parts, qpos: np.ndarray, normal: np.ndarray, offset: float) -> _Plane:
    """Partners of the joints in one plane, and the worst misfit."""
    names = [built.model.joint(j).name for j in parts.joints]
    mirror = np.eye(3) - 2 * np.outer(normal, normal)
    anchor = parts.anchor @ mirror + 2 * offset * normal
    axis, centre = parts.axis @ mirror, parts.centre @ mirror + 2 * offset * normal
    gap = anchor[:, None] - parts.anchor[None]
    # a hinge's anchor may be anywhere on its axis
    gap -= (gap * parts.axis[None]).sum(-1, keepdims=True) * parts.axis[None] * ~parts.slide[None, :, None]
    cosine = axis @ parts.axis.T
    far = {
        "axis is off by {:.1f} mm": (np.linalg.norm(gap, axis=-1), ANCHOR_M, 1e3),
        "axis is turned by {:.2f} rad": (np.sqrt(np.clip(1 - cosine**2, 0, None)), AXIS, 1),
        "its mass sits {:.1f} mm off": (np.linalg.norm(centre[:, None] - parts.centre[None], axis=-1), CENTRE_M, 1e3),
    }
    cost = sum(d / allowed for d, allowed, _ in far.values())
    cost = cost + 1e3 * (parts.slide[:, None] != parts.slide[None])
    partner = np.argmin(cost, axis=1)
    along = np.take_along_axis(cosine, partner[:, None], 1)[:, 0]
    # a reflected turn goes the other way round
    sign = np.where(parts.slide, 1.0, -1.0) * np.where(along < 0, -1.0, 1.0)
    # each is how far something is off, in units of what is allowed, and the words for it
    faults = [(0.0, "")]
    for k in range(len(names)):
        other = int(partner[k])
        them = "it is not its own" if other == k else f"the nearest is {names[other]}"
        who = f"joint {names[k]} has no mirror image, {them}: "
        for text, (d, allowed, unit) in far.items():
            faults.append((float(d[k, other]) / allowed, who + text.format(d[k, other] * unit)))
        unlike = _unlike(mirror, parts.mass[k], parts.inertia[k], parts.mass[other], parts.inertia[other])
        faults += [(value, who + text) for value, text in unlike]
        up, image = parts.parent[k], parts.parent[other]
        chain = (up < 0) == (image < 0) and (up < 0 or partner[up] == image)
        if partner[other] != k or not chain:
            faults.append((_NONE, who + "its place in the robot is another"))
        faults += [(value, who + text) for value, text in _unlike_limits(built, names, qpos, k, other, sign[k])]
    if parts.base is not None:
        mass, middle, inertia = parts.base
        off = float(abs(2 * (normal @ middle - offset)))
        who = "the base is not its own mirror image: "
        faults.append((off / CENTRE_M, who + f"its mass sits {off * 1e3:.1f} mm off"))
        faults += [(value, who + text) for value, text in _unlike(mirror, mass, inertia, mass, inertia)]
    misfit, worst = max(faults)
    return _Plane(normal=normal, offset=offset, partner=partner, sign=sign, misfit=misfit, worst=worst)


def _unlike(
    mirror: np.ndarray, mass: float, inertia: np.ndarray, other_mass: float, other_inertia: np.ndarray
) -> list[tuple[float, str]]:
    """How far a mass and its inertia are from those of the partner."""
    heavier = abs(mass - other_mass) / max(mass, other_mass, 1e-12)
    part = float(np.abs(mirror @ inertia @ mirror - other_inertia).max() / max(np.trace(inertia), 1e-12))
    return [
        (heavier / MASS, f"mass is {other_mass:.3f} kg against {mass:.3f} kg"),
        (part / INERTIA, f"inertia differs by {part:.0%}"),
    ]


def _unlike_limits(
    built: BuiltModel, names: list[str], qpos: np.ndarray, here: int, there: int, sign: float
) -> list[tuple[float, str]]:
    """How far limits and gains are from those of the partner."""
    model, spec = built.model, built.spec
    ours, theirs = model.joint(names[here]), model.joint(names[there])
    offset = float(qpos[ours.qposadr[0]] - sign * qpos[theirs.qposadr[0]])
    driven = [name in spec.joint_names for name in (names[here], names[there])]
    if driven[0] != driven[1]:
        return [(_NONE, "only one of them has a motor")]
    if not driven[0]:
        low, high = ours.range
        image = sign * theirs.range + offset
        gains = [("armature", ours.armature[0], theirs.armature[0])]
    else:
        a, b = spec.joint(names[here]), spec.joint(names[there])
        low, high = a.lower_rad, a.upper_rad
        image = sign * np.array([b.lower_rad, b.upper_rad]) + offset
        gains = [(gain, getattr(a, gain), getattr(b, gain)) for gain in _GAINS]
    off = float(max(abs(image.min() - low), abs(image.max() - high)))
    said = f"limits are [{image.min():.3f}, {image.max():.3f}] when mirrored, against [{low:.3f}, {high:.3f}]"
    out = [(off / LIMIT_RAD, said)]
    for gain, mine, other in gains:
        part = abs(mine - other) / max(abs(mine), abs(other), 1e-12)
        out.append((part / GAIN, f"{gain} is {other:g} against {mine:g}"))
    return out


def _map(built: BuiltModel, plane: _Plane, qpos: np.ndarray) -> MirrorMap:
    """The tables of a plane."""
    import mujoco

    model, spec = built.model, built.spec
    parts, at, turn = _parts(built, qpos)
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    imu = int(model.sensor("imu_quat").objid[0])
    normal = plane.normal
    row = {int(j): k for k, j in enumerate(parts.joints)}
    mine = [row[j] for j in _spec_ids(built)]
    carrier = _carrier(model, built.imu_body)
    if carrier in row and plane.partner[row[carrier]] != row[carrier]:
        raise MirrorError(
            f"robot {spec.name}: the IMU moves with joint {model.joint(carrier).name}, which is on one side, "
            "so that its readings have no mirror image; name an IMU site between the sides in metadata.json"
        )
    qpos_index, qvel_index = np.arange(model.nq), np.arange(model.nv)
    qpos_sign, qvel_sign, qpos_offset = np.ones(model.nq), np.ones(model.nv), np.zeros(model.nq)
    qpos_of, dof_of = model.jnt_qposadr[parts.joints], model.jnt_dofadr[parts.joints]
    qpos_index[qpos_of], qvel_index[dof_of] = qpos_of[plane.partner], dof_of[plane.partner]
    qpos_sign[qpos_of] = qvel_sign[dof_of] = plane.sign
    offset = qpos[qpos_of] - plane.sign * qpos[qpos_of[plane.partner]]
    # rounding of degrees to radians is no offset
    offset[np.abs(offset) < 1e-9] = 0.0
    qpos_offset[qpos_of] = offset

    free = []
    if built.base_body >= 0:
        joint = int(model.body_jntadr[built.base_body])
        free.append(_free(model, joint, turn.T @ normal, plane.offset - float(normal @ at)))
    for joint in range(model.njnt):
        if joint in row or (built.base_body >= 0 and joint == model.body_jntadr[built.base_body]):
            continue
        if model.jnt_type[joint] != int(mujoco.mjtJoint.mjJNT_FREE):
            raise MirrorError(
                f"robot {spec.name}: joint {model.joint(joint).name!r} of the scene is not free; "
                "only free bodies beside the robot can be mirrored, take it out"
            )
        free.append(_crate(built, joint, normal))
    heading = turn[:, 0] * (1, 1, 0)
    along = abs(float(heading @ normal)) / max(float(np.linalg.norm(heading)), 1e-12)
    lateral = "" if np.linalg.norm(heading) < 0.1 else "y" if along < LIMIT_RAD else "x" if along > 0.9999 else ""
    return MirrorMap(
        joint_names=spec.joint_names,
        joints=tuple(mine.index(plane.partner[k]) for k in mine),
        joint_sign=tuple(float(plane.sign[k]) for k in mine),
        joint_offset=tuple(float(offset[k]) for k in mine),
        feet=_feet(built, data, plane),
        imu_normal=_vector(data.site_xmat[imu].reshape(3, 3).T @ normal),
        imu_offset_m=plane.offset - float(normal @ data.site_xpos[imu]),
        world_normal=_vector(normal),
        world_offset_m=plane.offset,
        free=tuple(free),
        qpos_index=tuple(qpos_index.tolist()),
        qpos_sign=tuple(qpos_sign.tolist()),
        qpos_offset=tuple(qpos_offset.tolist()),
        qvel_index=tuple(qvel_index.tolist()),
        qvel_sign=tuple(qvel_sign.tolist()),
        lateral=lateral,
    )


def _vector(normal: np.ndarray) -> Vector:
    """A unit vector without the rounding of a frame that is turned by right angles."""
    rounded = np.where(np.abs(normal) < 1e-5, 0.0, normal)
    rounded = rounded / np.linalg.norm(rounded)
    return (float(rounded[0]), float(rounded[1]), float(rounded[2]))


def _free(model: mujoco.MjModel, joint: int, normal: np.ndarray, offset: float) -> FreeMirror:
    return FreeMirror(
        qpos=int(model.jnt_qposadr[joint]),
        dof=int(model.jnt_dofadr[joint]),
        normal=_vector(normal),
        offset_m=0.0 if abs(offset) < 1e-6 else offset,
    )


def _crate(built: BuiltModel, joint: int, normal: np.ndarray) -> FreeMirror:
    """A free body beside the robot: symmetric about a plane through its own centre, as a box or a ball is."""
    model = built.model
    body = int(model.jnt_bodyid[joint])
    turn, inertial = _matrix(model.body_quat[body]), _matrix(model.body_iquat[body])
    own = turn.T @ normal
    inertia = inertial @ np.diag(model.body_inertia[body]) @ inertial.T
    reflect = np.eye(3) - 2 * np.outer(own, own)
    lopsided = np.abs(reflect @ inertia @ reflect - inertia).max() > INERTIA * np.trace(inertia)
    if lopsided or (model.body_rootid == model.body_rootid[body]).sum() > 1:
        raise MirrorError(
            f"robot {built.spec.name}: the free body {model.body(body).name!r} beside it has no plane of symmetry "
            "along the robot's; turn it or take it out"
        )
    return _free(model, joint, own, float(own @ model.body_ipos[body]))


def _matrix(quat: np.ndarray) -> np.ndarray:
    import mujoco

    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, quat)
    return out.reshape(3, 3)


def _feet(built: BuiltModel, data: mujoco.MjData, plane: _Plane) -> tuple[int, ...]:
    """Each foot's partner, from where the feet are."""
    names = built.spec.foot_sites
    at = np.array([data.site(name).xpos for name in names]).reshape(-1, 3)
    image = at - 2 * np.outer(at @ plane.normal - plane.offset, plane.normal)
    gap = np.linalg.norm(image[:, None] - at[None], axis=-1)
    partner = [int(np.argmin(row)) for row in gap]
    for foot, other in enumerate(partner):
        if gap[foot, other] > FOOT_M or partner[other] != foot:
            raise MirrorError(
                f"robot {built.spec.name}: foot {names[foot]} has no mirror image, the nearest is {names[other]}, "
                f"{gap[foot, other] * 1e3:.1f} mm off; name the feet of both sides in metadata.json"
            )
    return tuple(partner)
