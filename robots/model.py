"""Compiles a robot for MuJoCo, the same way for training, the twin, parity and identification.

The only module of the package that needs MuJoCo; it is imported inside `build_model`, so that the
robot's own computer can load the rest.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robots.description import read_xml
from robots.errors import RobotLoadError
from robots.load import EXTRA_KEY, load_robot, model_file, robot_folder
from robots.spec import JointSpec, RobotSpec

if TYPE_CHECKING:
    import mujoco

# Rubber on a hard floor; a foot with a higher priority brings its own.
FLOOR_FRICTION = (1.0, 0.005, 0.0001)
_SOLVER_OPTIONS = (
    "integrator",
    "cone",
    "jacobian",
    "solver",
    "iterations",
    "tolerance",
    "ls_iterations",
    "ls_tolerance",
    "noslip_iterations",
    "noslip_tolerance",
    "ccd_iterations",
    "ccd_tolerance",
    "impratio",
    "disableflags",
    "enableflags",
    "disableactuator",
    "o_margin",
)


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A compiled robot on a floor, with every index resolved from names.

    Attributes:
        model: the compiled model. One motor actuator per joint, in the order of `spec.joints`, gear 1,
            no limits: its control is the joint's net torque [N m] of robots/motor.py. Joint damping and
            friction loss are zero, because the motor law has them; armature stays in the model.
        spec: the robot.
        qpos_ids: index in qpos of each joint, (joints,).
        dof_ids: index in qvel of each joint, (joints,).
        home_qpos: qpos of the home pose with the lowest foot point on the floor, (nq,).
        sensors: slice of sensordata of each sensor, by name: `imu_quat` (w, x, y, z), `imu_gyro` [rad/s],
            `imu_accelerometer` [m/s^2], and one `touch_<foot site>` [N] per foot. On a body that is fixed to
            the world MuJoCo's accelerometer reads zero, not gravity.
        base_body: the body with the free joint; -1 for a robot that is fixed to the world.
        imu_body: the body that carries the IMU.
        torso_body: the heaviest body rigidly joined to it; payloads sit on it.
        push_body: the body that pushes act on: the base, or the torso of a robot that is fixed to the world.
        floor_geom: the floor, -1 where there is none.
        foot_geoms: the geoms of the feet that touch the floor.
    """

    model: mujoco.MjModel
    spec: RobotSpec
    qpos_ids: np.ndarray
    dof_ids: np.ndarray
    home_qpos: np.ndarray
    sensors: dict[str, slice]
    base_body: int
    imu_body: int
    torso_body: int
    push_body: int
    floor_geom: int
    foot_geoms: np.ndarray


def build_model(robot: str | Path, timestep_s: float = 0.005, *, shapes: bool = True) -> BuiltModel:
    """Compile a built-in robot or a robot folder.

    What the file says of bodies, geoms, joint axes and ranges stays. Its actuators, sensors, keyframes
    and solver options go, and ours come: see BuiltModel. A robot without a floor gets one, a robot with
    feet and without a free joint gets one.

    Args:
        robot: name of a built-in robot, or a folder.
        timestep_s: the physics step [s].
        shapes: keep the geoms that are only to be seen. Without them the motion is the same to the bit,
            a physics step of the K-Bot takes 5 % less, and the state on an accelerator is smaller.

    Raises:
        RobotLoadError: the robot cannot be loaded, a mesh that must collide is not there, a floating
            robot has nothing to stand on, or MuJoCo refuses the model.
    """
    import mujoco

    spec = load_robot(robot)
    folder = robot_folder(robot)
    path = model_file(folder)
    text = ET.tostring(read_xml(path), encoding="unicode")
    try:
        mjspec = mujoco.MjSpec.from_string(text)
    except ValueError as error:
        raise _refused(path, error) from error
    mjspec.modelfiledir = str(path.parent.resolve())  # where its textures are
    colliding = _colliding(mjspec)
    mjspec.assets = _load_meshes(mjspec, path, colliding)
    if not shapes:
        _drop_shapes(mjspec, colliding)
    for element in [*mjspec.actuators, *mjspec.sensors, *mjspec.keys]:
        mjspec.delete(element)
    # URDF models would lose the links that the IMU and the feet are named after
    mjspec.compiler.fusestatic = False
    _set_options(mjspec, timestep_s)
    for joint in spec.joints:
        _set_joint(mjspec, joint)
    root = _root(mjspec, spec)
    floating = _free_root(root, spec, wanted=_wants_free_root(folder, spec))
    imu = _site(mjspec, root, spec.imu_site)
    feet = [_touch_site(_site(mjspec, root, name), path, colliding, floating) for name in spec.foot_sites]
    _add_sensors(mjspec, imu.name, feet)
    floor = _floor(mjspec, root)
    try:
        model = mjspec.compile()
    except ValueError as error:
        raise _refused(path, error) from error

    ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in spec.joint_names]
    base_body = model.body(root.name).id if floating else -1
    floor_geom = -1 if floor is None else model.geom(floor).id
    qpos_ids, dof_ids = model.jnt_qposadr[ids].copy(), model.jnt_dofadr[ids].copy()
    imu_body = int(model.site_bodyid[model.site(imu.name).id])
    torso = _torso(model, imu_body)
    return BuiltModel(
        model=model,
        spec=spec,
        qpos_ids=qpos_ids,
        dof_ids=dof_ids,
        home_qpos=_home_qpos(model, spec, qpos_ids, base_body, floor_geom),
        sensors={
            model.sensor(i).name: slice(int(model.sensor_adr[i]), int(model.sensor_adr[i] + model.sensor_dim[i]))
            for i in range(model.nsensor)
        },
        base_body=base_body,
        imu_body=imu_body,
        torso_body=torso,
        push_body=base_body if base_body >= 0 else torso,
        floor_geom=floor_geom,
        foot_geoms=_foot_geoms(model, feet),
    )


def _refused(path: Path, error: ValueError) -> RobotLoadError:
    reason = " ".join(str(error).split())
    return RobotLoadError(f"{path}: MuJoCo refuses the model: {reason}; correct the file")


def _colliding(mjspec: mujoco.MjSpec) -> Callable[[mujoco.MjsGeom], bool]:
    """Whether a geom can touch anything: by its bits, or in a contact pair."""
    paired = {name for pair in mjspec.pairs for name in (pair.geomname1, pair.geomname2)}
    return lambda geom: bool(geom.contype or geom.conaffinity or geom.name in paired)


def _touching(model: mujoco.MjModel) -> np.ndarray:
    """The same of a compiled model: a mask, (geoms,)."""
    mask = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    mask[model.pair_geom1] = mask[model.pair_geom2] = True
    return mask


def _drop_shapes(mjspec: mujoco.MjSpec, colliding: Callable[[mujoco.MjsGeom], bool]) -> None:
    for body in mjspec.bodies:
        for geom in list(body.geoms):
            if body.explicitinertial and not colliding(geom):
                mjspec.delete(geom)


def _load_meshes(mjspec: mujoco.MjSpec, path: Path, colliding: Callable[[mujoco.MjsGeom], bool]) -> dict[str, bytes]:
    """Contents of the mesh files by name; meshes that are only to be seen may be missing."""
    import mujoco

    assets: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    folders = [path.parent / mjspec.meshdir, path.parent, path.parent / "meshes"]
    for number, mesh in enumerate(mjspec.meshes):
        if not mesh.file:
            continue
        mesh.name = mesh.name or Path(mesh.file).stem  # as MuJoCo names it, but only when it compiles
        # ROS names a file by its package, whose folder is the robot's own
        name = mesh.file.split("://", 1)[-1]
        tries = [folder / part for part in (name, Path(name).name) for folder in folders]
        found = next((p for p in tries if p.is_file()), None)
        if found is None:
            missing[mesh.name] = mesh.file
        else:
            mesh.file = f"{number}{found.suffix.lower()}"
            assets[mesh.file] = found.read_bytes()
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
    return assets


def _set_options(mjspec: mujoco.MjSpec, timestep_s: float) -> None:
    """MuJoCo's defaults for all but the world's gravity and medium."""
    import mujoco

    defaults = mujoco.MjSpec().option
    for name in _SOLVER_OPTIONS:
        setattr(mjspec.option, name, getattr(defaults, name))
    mjspec.option.timestep = timestep_s


def _set_joint(mjspec: mujoco.MjSpec, joint: JointSpec) -> None:
    import mujoco

    element = mjspec.joint(joint.name)
    element.armature = joint.armature
    element.damping[:] = 0
    element.frictionloss = 0
    element.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE
    if element.limited == mujoco.mjtLimited.mjLIMITED_FALSE or element.range[0] >= element.range[1]:
        degrees = bool(mjspec.compiler.degree)
        element.range = [math.degrees(v) if degrees else v for v in (joint.lower_rad, joint.upper_rad)]
    element.limited = mujoco.mjtLimited.mjLIMITED_TRUE
    # whatever the file's default class says of actuators, this one is a plain torque
    no = mujoco.mjtLimited.mjLIMITED_FALSE
    motor = mjspec.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    motor.set_to_motor()
    motor.gear = [1, 0, 0, 0, 0, 0]
    motor.ctrllimited, motor.forcelimited, motor.actlimited = no, no, no
    motor.ctrlrange, motor.forcerange = [0, 0], [0, 0]


def _wants_free_root(folder: Path, spec: RobotSpec) -> bool:
    extra = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get(EXTRA_KEY, {})
    return bool(extra.get("floating", spec.foot_sites))


def _root(mjspec: mujoco.MjSpec, spec: RobotSpec) -> mujoco.MjsBody:
    """The outermost body that carries the first joint."""
    body = mjspec.joint(spec.joint_names[0]).parent
    while body.parent is not None and body.parent.name != "world":
        body = body.parent
    body.name = body.name or "base"
    return body


def _free_root(root: mujoco.MjsBody, spec: RobotSpec, *, wanted: bool) -> bool:
    """Whether the robot floats; where that is wanted and the model has no free joint, one is added."""
    import mujoco

    if any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in root.joints):
        return True
    if wanted and root.joints:
        raise RobotLoadError(
            f"robot {spec.name}: body {root.name} has joints of its own, so that no free joint can be added; "
            'put the robot into a body without joints, or set "floating": false in metadata.json'
        )
    if wanted:
        root.add_freejoint()
    return wanted


def _site(mjspec: mujoco.MjSpec, root: mujoco.MjsBody, name: str) -> mujoco.MjsSite:
    """The site of that name, or a new one at the origin of the body of that name; no name is the root."""
    site = mjspec.site(name)
    if site is not None:
        return site
    return (mjspec.body(name) if name else root).add_site(name=name or "imu")


def _touch_site(
    foot: mujoco.MjsSite, path: Path, colliding: Callable[[mujoco.MjsGeom], bool], floating: bool
) -> tuple[str, str]:
    """Adds a site that encloses all of a foot, so that its touch sensor misses no contact: (site, body)."""
    import mujoco

    body = foot.parent
    # a link that only marks the foot is fixed to the one that has its geoms
    while not any(map(colliding, body.geoms)) and not body.joints and body.parent.name != "world":
        body = body.parent
    if floating and not any(map(colliding, body.geoms)):
        raise RobotLoadError(
            f"{path}: foot {foot.name}: body {body.name} has no geom that collides; give it one, the robot stands on it"
        )
    body.name = body.name or f"{foot.name}_body"
    site = body.add_site(
        name=f"touch_{foot.name}", type=mujoco.mjtGeom.mjGEOM_SPHERE, pos=[0, 0, 0], size=[1, 0, 0], group=5
    )
    return site.name, body.name


def _add_sensors(mjspec: mujoco.MjSpec, imu: str, feet: list[tuple[str, str]]) -> None:
    import mujoco

    kinds, site = mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_SITE
    sensors = [
        ("imu_quat", kinds.mjSENS_FRAMEQUAT, imu),
        ("imu_gyro", kinds.mjSENS_GYRO, imu),
        ("imu_accelerometer", kinds.mjSENS_ACCELEROMETER, imu),
        *((name, kinds.mjSENS_TOUCH, name) for name, _ in feet),
    ]
    for name, kind, at in sensors:
        mjspec.add_sensor(name=name, type=kind, objtype=site, objname=at)


def _floor(mjspec: mujoco.MjSpec, root: mujoco.MjsBody) -> str | None:
    """Name of the floor, which is added with a sky and a light where there is none."""
    import mujoco

    flat = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    floor = next((geom for geom in mjspec.worldbody.geoms if geom.type in flat), None)
    if floor is not None:
        floor.name = floor.name or "floor"
        return floor.name
    builtin = mujoco.mjtBuiltin
    if not any(t.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX for t in mjspec.textures):
        mjspec.add_texture(
            name="sky",
            type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
            builtin=builtin.mjBUILTIN_GRADIENT,
            rgb1=[0.62, 0.68, 0.74],
            rgb2=[0.93, 0.94, 0.95],
            width=64,
            height=384,
        )
    mjspec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=builtin.mjBUILTIN_CHECKER,
        mark=mujoco.mjtMark.mjMARK_EDGE,
        rgb1=[0.66, 0.68, 0.7],
        rgb2=[0.6, 0.62, 0.64],
        markrgb=[0.74, 0.76, 0.78],
        width=128,
        height=128,
    )
    material = mjspec.add_material(name="floor", texrepeat=[1, 1], texuniform=True, reflectance=0.05)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    # Only the light from straight above casts shadows, slanted ones speckle the floor; both follow the robot.
    for direction, brightness, shadow in (([0, 0, -1], 0.35, True), ([-0.65, 0.4, -0.65], 0.45, False)):
        root.add_light(
            pos=[0, 0, 3],
            dir=direction,
            mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            diffuse=[brightness] * 3,
            specular=[0.15, 0.15, 0.15],
            castshadow=shadow,
        )
    # MuJoCo's defaults, named because the file's own default class may say otherwise
    mjspec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 0.05],
        material="floor",
        rgba=[0.5, 0.5, 0.5, 1],
        group=0,
        contype=1,
        conaffinity=1,
        condim=3,
        priority=0,
        friction=FLOOR_FRICTION,
        solmix=1,
        solref=[0.02, 1],
        solimp=[0.9, 0.95, 0.001, 0.5, 2],
        margin=0,
        gap=0,
    )
    return "floor"


def _home_qpos(
    model: mujoco.MjModel, spec: RobotSpec, qpos_ids: np.ndarray, base_body: int, floor_geom: int
) -> np.ndarray:
    """The home pose; a floating robot stands with its lowest point on the floor."""
    import mujoco

    qpos = model.qpos0.copy()
    qpos[qpos_ids] = spec.column("home_rad")
    if base_body < 0:
        return qpos
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    own = model.body_rootid[model.geom_bodyid] == base_body
    touching = np.flatnonzero(own & _touching(model))
    if not touching.size:
        raise RobotLoadError(f"robot {spec.name}: no geom of it collides; a robot with a free joint needs one")
    lowest = min(_lowest_point(model, data, int(geom)) for geom in touching)
    floor = 0.0 if floor_geom < 0 else float(model.geom_pos[floor_geom, 2])
    qpos[model.jnt_qposadr[model.body_jntadr[base_body]] + 2] += floor - lowest
    return qpos


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


def _foot_geoms(model: mujoco.MjModel, feet: list[tuple[str, str]]) -> np.ndarray:
    bodies = [model.body(body).id for _, body in feet]
    return np.flatnonzero(np.isin(model.geom_bodyid, bodies) & _touching(model))


def _torso(model: mujoco.MjModel, imu_body: int) -> int:
    welded = np.flatnonzero(model.body_weldid == model.body_weldid[imu_body])
    return int(welded[np.argmax(model.body_mass[welded])])
