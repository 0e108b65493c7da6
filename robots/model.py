"""Compiles a robot for MuJoCo, the same way for training, the twin, parity and identification.

With robots/scene.py, robots/meshes.py and robots/standing.py all of the package that needs MuJoCo; it is imported
inside the functions, so that the robot's own computer can load the rest.
"""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import math
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robots.description import read_xml
from robots.errors import RobotLoadError
from robots.ground import Ground
from robots.load import Origins, read_robot, robot_folder
from robots.meshes import load_meshes, meshes_apart, places
from robots.scene import find_or_add_floor, lay_ground
from robots.spec import JointSpec, RobotSpec
from robots.standing import colliding_geoms, height_of, stand_at_home

if TYPE_CHECKING:
    import mujoco

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


# Sensors on request: of each foot one, named <what>_<foot>; position, velocity and orientation of the foot's site in
# the world. And of the robot as a whole, of the tree of its base, in the world.
_FOOT_SENSORS = {
    "foot_position": "mjSENS_FRAMEPOS",
    "foot_velocity": "mjSENS_FRAMELINVEL",
    "foot_quat": "mjSENS_FRAMEQUAT",
    "foot_angular_velocity": "mjSENS_FRAMEANGVEL",
}
_TREE_SENSORS = {
    "com_position": "mjSENS_SUBTREECOM",
    "com_velocity": "mjSENS_SUBTREELINVEL",
    "angular_momentum": "mjSENS_SUBTREEANGMOM",
}
# How much higher a robot that is held hangs than its file has it, clear of the floor [m].
HELD_M = 0.5
_BUILT_MAX = 16
_built: dict[tuple[object, ...], BuiltModel] = {}
_built_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltModel:
    """A compiled robot on a floor, with every index resolved from names. Two are equal if they are one object.

    What else the file has (a crate, a table) is in the model too; of it nothing is told but where it starts.

    Attributes:
        model: the compiled model. One motor actuator per joint, in the order of `spec.joints`, gear 1,
            no limits: its control is the joint's net torque [N m] of robots/motor.py. Joint damping and
            friction loss are zero, because the motor law has them; armature stays in the model. It is shared by
            all who built the same: nobody writes into it but who asked for a fresh one.
        spec: the robot.
        qpos_ids: index in qpos of each joint, (joints,).
        dof_ids: index in qvel of each joint, (joints,).
        home_qpos: qpos of the home pose with the lowest foot point on the floor, (nq,); all else as in the file.
        sensors: slice of sensordata of each sensor, by name: `imu_quat` (w, x, y, z), `imu_gyro` [rad/s],
            `imu_accelerometer` [m/s^2], one `touch_<foot site>` [N] per foot, and those asked for. On a body that
            is fixed to the world MuJoCo's accelerometer reads zero, not gravity.
        base_body: the body with the free joint; -1 for a robot that is fixed to the world.
        base_joint: name of that joint; empty for a robot that is fixed to the world.
        base_qpos: where its 7 numbers begin in qpos, -1 where there are none: position and orientation in the world.
        base_qvel: where its 6 numbers begin in qvel, -1 where there are none: linear velocity in the world, then
            angular velocity in the base's own frame.
        bodies: the robot's own bodies, (bodies,).
        mass_kg: of these alone [kg].
        imu_body: the body that carries the IMU.
        torso_body: the heaviest body of the robot rigidly joined to it; payloads sit on it.
        push_body: the body that pushes act on: the base, or the torso of a robot that is fixed to the world.
        floor_geom: the floor, -1 where there is none.
        foot_names: the feet, in the order of `spec.foot_sites`.
        foot_geoms: the geoms of the feet that touch the floor.
        geoms_by_foot: the same of each foot, by its name.
        standing_height_m: of the base in the world in the home pose; of the first body of a robot that is fixed.
        origins: where what the loader had to look for came from; robots/understood.py tells it.
        meshes: the file that each mesh was read from, by the mesh's name.
        guessed_meshes: of these, the names of those that are not where the model says.
        missing_meshes: files of meshes that are only to be seen, and were left out because they are not there.
        floor_added: the file had no floor.
        base_added: the file had no free joint for the base.
    """

    model: mujoco.MjModel
    spec: RobotSpec
    qpos_ids: np.ndarray
    dof_ids: np.ndarray
    home_qpos: np.ndarray
    sensors: dict[str, slice]
    base_body: int
    base_joint: str
    base_qpos: int
    base_qvel: int
    bodies: np.ndarray
    mass_kg: float
    imu_body: int
    torso_body: int
    push_body: int
    floor_geom: int
    foot_names: tuple[str, ...]
    foot_geoms: np.ndarray
    geoms_by_foot: dict[str, np.ndarray]
    standing_height_m: float
    origins: Origins
    meshes: Mapping[str, Path] = field(default_factory=dict)
    guessed_meshes: tuple[str, ...] = ()
    missing_meshes: tuple[str, ...] = ()
    floor_added: bool = False
    base_added: bool = False

    @property
    def base_position(self) -> slice:
        """Of qpos: the base's position in the world [m].

        Raises:
            RobotLoadError: the robot is fixed to the world; so do the three that follow.
        """
        return self._base(self.base_qpos, 0, 3)

    @property
    def base_quat(self) -> slice:
        """Of qpos: the base's orientation in the world, w first."""
        return self._base(self.base_qpos, 3, 7)

    @property
    def base_lin_vel(self) -> slice:
        """Of qvel: the base's velocity in the world [m/s]."""
        return self._base(self.base_qvel, 0, 3)

    @property
    def base_ang_vel(self) -> slice:
        """Of qvel: the base's angular velocity in its own frame [rad/s]."""
        return self._base(self.base_qvel, 3, 6)

    def _base(self, at: int, first: int, end: int) -> slice:
        if at < 0:
            raise RobotLoadError(
                f"robot {self.spec.name} is fixed to the world: it has no base that moves; expected one with a free "
                "joint"
            )
        return slice(at + first, at + end)


def build_model(
    robot: str | Path,
    timestep_s: float = 0.005,
    *,
    shapes: bool = True,
    sensors: Sequence[str] = (),
    ground: Ground | None = None,
    solver: str = "newton",
    held: bool = False,
    fresh: bool = False,
) -> BuiltModel:
    """Compile a built-in robot or a robot folder; the same files and arguments give the same object.

    What the file says of bodies, geoms, joint axes and ranges stays. Its actuators, sensors, keyframes
    and solver options go, and ours come: see BuiltModel. A robot without a floor gets one, a robot with
    feet and without a free joint gets one.

    Args:
        robot: name of a built-in robot, or a folder; a Path is always a folder.
        timestep_s: the physics step [s].
        shapes: keep the geoms that are only to be seen. Without them the motion is the same to the bit,
            a physics step of the K-Bot takes 5 % less, and the state on an accelerator is smaller.
        sensors: more of them, in any order: foot_position, foot_velocity, foot_quat, foot_angular_velocity (of each
            foot, named <what>_<foot>), com_position, com_velocity, angular_momentum (of the whole robot), all in the
            world; or names of sensors that the model's own file has, which stay as they are.
        ground: makes the floor uneven; None leaves it as it is.
        solver: MuJoCo's, of contacts and limits: newton, cg or pgs.
        held: fix the base to the world, HELD_M above where the file has it: a robot that hangs from a rigid stand. It
            has no free joint then; all else is as of a robot that is fixed to the world.
        fresh: compile it anew, for one who will change the model.

    Raises:
        RobotLoadError: the robot cannot be loaded, a mesh that must collide is not there, a floating
            robot has nothing to stand on, a sensor is not known, or MuJoCo refuses the model.
    """
    folder = robot_folder(robot)
    spec, origins = read_robot(folder)
    path = origins.model
    root = read_xml(path)
    wanted = tuple(sorted(set(sensors)))
    if fresh:
        return _build(path, root, spec, origins, timestep_s, shapes, wanted, ground, solver, held)
    how = (timestep_s, shapes, wanted, ground, solver, held)
    key = (folder.resolve(), _fingerprint(path, root), spec.digest, *how)
    with _built_lock:
        built = _built.pop(key, None) or _build(path, root, spec, origins, *how)
        _built[key] = built  # last used, last to go
        while len(_built) > _BUILT_MAX:
            del _built[next(iter(_built))]
        return built


def _fingerprint(path: Path, root: ET.Element) -> str:
    """Digest of the model with its included files, and of size and date of the files that it names."""
    found = hashlib.sha256(ET.tostring(root))
    files = [element.get("file") or element.get("filename") for element in root.iter()]
    for name in dict.fromkeys(filter(None, files)):
        for file in places(path, root, name):
            if file.is_file():
                about = file.stat()
                found.update(f"{file} {about.st_size} {about.st_mtime_ns}".encode())
    return found.hexdigest()


def _build(
    path: Path,
    xml: ET.Element,
    spec: RobotSpec,
    origins: Origins,
    timestep_s: float,
    shapes: bool,
    sensors: tuple[str, ...],
    ground: Ground | None,
    solver: str,
    held: bool,
) -> BuiltModel:
    import mujoco

    told, files = meshes_apart(xml)
    try:
        mjspec = mujoco.MjSpec.from_string(ET.tostring(told, encoding="unicode"))
    except ValueError as error:
        raise _refused(path, error) from error
    for mesh in mjspec.meshes:
        mesh.file = files.get(mesh.file, mesh.file)
    mjspec.modelfiledir = str(path.parent.resolve())  # where its textures are
    colliding = _colliding(mjspec)
    mjspec.assets, meshes, guessed, missing = load_meshes(mjspec, path, xml, colliding)
    if not shapes:
        _drop_shapes(mjspec, colliding)
    own = _own_sensors(mjspec, path, spec, sensors)
    for element in [*mjspec.actuators, *(s for s in mjspec.sensors if s.name not in own), *mjspec.keys]:
        mjspec.delete(element)
    # URDF models would lose the links that the IMU and the feet are named after
    mjspec.compiler.fusestatic = False
    _set_options(mjspec, timestep_s, solver)
    for joint in spec.joints:
        _set_joint(mjspec, joint)
    root = _root(mjspec, spec)
    if held:
        base_joint, base_added = _hold_root(mjspec, root), False
    else:
        base_joint, base_added = _free_root(mjspec, root, spec, wanted=origins.wants_free)
    imu = _site(mjspec, root, spec.imu_site)
    foot_sites = [_site(mjspec, root, name) for name in spec.foot_sites]
    feet = [_touch_site(site, path, colliding, bool(base_joint)) for site in foot_sites]
    _add_sensors(mjspec, imu.name, feet)
    _add_wanted(mjspec, root.name, [site.name for site in foot_sites], sensors)
    floor, floor_added = find_or_add_floor(mjspec, root)
    floor_m = float(mjspec.geom(floor).pos[2])
    if ground is not None:
        lay_ground(mjspec, floor, ground)
    try:
        model = mjspec.compile()
    except ValueError as error:
        raise _refused(path, error) from error

    ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in spec.joint_names]
    root_body = model.body(root.name).id
    base_body = root_body if base_joint else -1
    floor_geom = model.geom(floor).id
    qpos_ids, dof_ids = model.jnt_qposadr[ids].copy(), model.jnt_dofadr[ids].copy()
    imu_body = int(model.site_bodyid[model.site(imu.name).id])
    # the trees that carry the robot's joints: an arm may stand on the world beside another
    trees = np.unique(model.body_rootid[model.jnt_bodyid[ids]])
    bodies = np.flatnonzero(np.isin(model.body_rootid, trees))
    torso = _torso(model, imu_body, bodies)
    base = model.joint(base_joint).id if base_joint else -1
    base_qpos = int(model.jnt_qposadr[base]) if base_joint else -1
    home_qpos = stand_at_home(model, spec, qpos_ids, base_qpos, base_body, floor_m, origins.passive_rad)
    geoms = _foot_geoms(model, feet)
    for array in (qpos_ids, dof_ids, home_qpos, bodies, *geoms):
        array.setflags(write=False)
    return BuiltModel(
        model=model,
        spec=spec,
        qpos_ids=qpos_ids,
        dof_ids=dof_ids,
        home_qpos=home_qpos,
        sensors={
            model.sensor(i).name: slice(int(model.sensor_adr[i]), int(model.sensor_adr[i] + model.sensor_dim[i]))
            for i in range(model.nsensor)
        },
        base_body=base_body,
        base_joint=base_joint,
        base_qpos=base_qpos,
        base_qvel=int(model.jnt_dofadr[base]) if base_joint else -1,
        bodies=bodies,
        mass_kg=float(model.body_mass[bodies].sum()),
        imu_body=imu_body,
        torso_body=torso,
        push_body=base_body if base_body >= 0 else torso,
        floor_geom=floor_geom,
        foot_names=spec.foot_sites,
        foot_geoms=np.unique(np.concatenate([np.zeros(0, int), *geoms])),
        geoms_by_foot=dict(zip(spec.foot_sites, geoms, strict=True)),
        standing_height_m=height_of(model, home_qpos, root_body),
        origins=origins,
        meshes=meshes,
        guessed_meshes=guessed,
        missing_meshes=missing,
        floor_added=floor_added,
        base_added=base_added,
    )


def _refused(path: Path, error: ValueError) -> RobotLoadError:
    reason = " ".join(str(error).split())
    return RobotLoadError(f"{path}: MuJoCo refuses the model: {reason}; correct the file")


def _colliding(mjspec: mujoco.MjSpec) -> Callable[[mujoco.MjsGeom], bool]:
    """Whether a geom can touch anything: by its bits, or in a contact pair."""
    paired = {name for pair in mjspec.pairs for name in (pair.geomname1, pair.geomname2)}
    return lambda geom: bool(geom.contype or geom.conaffinity or geom.name in paired)


def _drop_shapes(mjspec: mujoco.MjSpec, colliding: Callable[[mujoco.MjsGeom], bool]) -> None:
    for body in mjspec.bodies:
        for geom in list(body.geoms):
            if body.explicitinertial and not colliding(geom):
                mjspec.delete(geom)


def _set_options(mjspec: mujoco.MjSpec, timestep_s: float, solver: str) -> None:
    """MuJoCo's defaults for all but the world's gravity and medium, and what is given."""
    import mujoco

    defaults = mujoco.MjSpec().option
    for name in _SOLVER_OPTIONS:
        setattr(mjspec.option, name, getattr(defaults, name))
    mjspec.option.timestep = timestep_s
    mjspec.option.solver = getattr(mujoco.mjtSolver, f"mjSOL_{solver.upper()}")


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


def _root(mjspec: mujoco.MjSpec, spec: RobotSpec) -> mujoco.MjsBody:
    """The outermost body that carries the first joint."""
    body = mjspec.joint(spec.joint_names[0]).parent
    while body.parent is not None and body.parent.name != "world":
        body = body.parent
    body.name = body.name or "base"
    return body


def _free_root(mjspec: mujoco.MjSpec, root: mujoco.MjsBody, spec: RobotSpec, *, wanted: bool) -> tuple[str, bool]:
    """(name of the robot's free joint, empty where it is fixed; whether it was added, because the model had none)."""
    import mujoco

    name = "base" if mjspec.joint("base") is None else f"{root.name}_base"
    for joint in root.joints:
        if joint.type == mujoco.mjtJoint.mjJNT_FREE:
            joint.name = joint.name or name
            return joint.name, False
    if wanted and root.joints:
        raise RobotLoadError(
            f"robot {spec.name}: body {root.name} has joints of its own, so that no free joint can be added; "
            'put the robot into a body without joints, or set "floating": false in metadata.json'
        )
    if wanted:
        root.add_freejoint(name=name)
    return (name, True) if wanted else ("", False)


def _hold_root(mjspec: mujoco.MjSpec, root: mujoco.MjsBody) -> str:
    """Takes the robot's free joint away, if it has one, and lifts it; the name of its base's joint: none."""
    import mujoco

    for joint in root.joints:
        if joint.type == mujoco.mjtJoint.mjJNT_FREE:
            mjspec.delete(joint)
            root.pos[2] += HELD_M
    return ""


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


def _own_sensors(mjspec: mujoco.MjSpec, path: Path, spec: RobotSpec, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the wanted sensors are the file's own."""
    named = {**_FOOT_SENSORS, **_TREE_SENSORS}
    always = ("imu_quat", "imu_gyro", "imu_accelerometer", *(f"touch_{name}" for name in spec.foot_sites))
    own = {s.name for s in mjspec.sensors if s.name} - set(always)
    for name in wanted:
        if name not in named and name not in own and name not in always:
            raise RobotLoadError(
                f"{path}: sensor {name!r}: no such sensor; expected some of {', '.join(named)}, "
                f"or of the file's own: {', '.join(sorted(own)) or 'none'}"
            )
        if name in _FOOT_SENSORS and not spec.foot_sites:
            raise RobotLoadError(f"{path}: sensor {name!r}: robot {spec.name} has no feet; name them in foot_sites")
    return tuple(name for name in wanted if name in own and name not in named)


def _add_wanted(mjspec: mujoco.MjSpec, root: str, feet: list[str], wanted: tuple[str, ...]) -> None:
    """Adds the sensors that were asked for and are not the file's own."""
    import mujoco

    kinds, site, body = mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_SITE, mujoco.mjtObj.mjOBJ_BODY
    for what, kind in _FOOT_SENSORS.items():
        for foot in feet if what in wanted else ():
            mjspec.add_sensor(name=f"{what}_{foot}", type=getattr(kinds, kind), objtype=site, objname=foot)
    for what, kind in _TREE_SENSORS.items():
        if what in wanted:
            mjspec.add_sensor(name=what, type=getattr(kinds, kind), objtype=body, objname=root)


def _foot_geoms(model: mujoco.MjModel, feet: list[tuple[str, str]]) -> list[np.ndarray]:
    """The geoms of each foot that can touch."""
    touching = colliding_geoms(model)
    return [np.flatnonzero((model.geom_bodyid == model.body(body).id) & touching) for _, body in feet]


def _torso(model: mujoco.MjModel, imu_body: int, bodies: np.ndarray) -> int:
    """The robot's heaviest body that is rigidly joined to the IMU."""
    welded = bodies[model.body_weldid[bodies] == model.body_weldid[imu_body]]
    return int(welded[np.argmax(model.body_mass[welded])]) if welded.size else imu_body
