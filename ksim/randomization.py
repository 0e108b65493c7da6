"""Domain randomisation: how robots and worlds differ.

Here are bodies, contacts, the IMU and gravity. The bases are in ksim/draws.py and what concerns joints and motors in
ksim/joint_randomization.py; their names are here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ksim.draws import (
    RADIANS,
    FactorRandomization,
    OffsetRandomization,
    Randomization,
    about,
    nominal,
    with_model,
)
from ksim.errors import ConfigError
from ksim.joint_randomization import (
    ArmatureRandomization,
    ComplianceRandomization,
    DampingFactorRandomization,
    JointDampingRandomization,
    JointFactorRandomization,
    JointFrictionRandomization,
    JointOffsetRandomization,
    JointOffsets,
    KdRandomization,
    KpRandomization,
    MotorAddition,
    MotorRandomization,
    PlayRandomization,
    StictionRandomization,
    TargetBiasRandomization,
    TorqueLimitRandomization,
)
from ksim.scene import Scene
from ksim.types import PhysicsParams
from toolkit.settings import Bound, Range

__all__ = [
    "ArmatureRandomization",
    "CentreOfMassRandomization",
    "ComplianceRandomization",
    "DampingFactorRandomization",
    "FactorRandomization",
    "FloorFrictionRandomization",
    "FootShapeRandomization",
    "FrictionRandomization",
    "GravityRandomization",
    "ImuPositionRandomization",
    "ImuTiltRandomization",
    "InertiaRandomization",
    "JointDampingRandomization",
    "JointFactorRandomization",
    "JointFrictionRandomization",
    "JointOffsetRandomization",
    "JointOffsets",
    "KdRandomization",
    "KpRandomization",
    "LinkMassRandomization",
    "MotorAddition",
    "MotorRandomization",
    "OffsetRandomization",
    "PayloadRandomization",
    "PlayRandomization",
    "Randomization",
    "StictionRandomization",
    "TargetBiasRandomization",
    "TorqueLimitRandomization",
    "about",
    "nominal",
    "with_mass",
    "with_model",
]


# mjtGeom of the shapes that are as large as their size says.
_SIZED = {2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box"}


def with_mass(params: PhysicsParams, mass: Any, scene: Scene) -> PhysicsParams:
    """The parameters with other masses of the bodies, (bodies,), and of what hangs on each: sensors divide by that."""
    parents = scene.built.model.body_parentid
    hangs = np.eye(len(parents), dtype=np.float32)  # row: the body, column: what hangs on it
    for body in range(len(parents) - 1, 0, -1):
        hangs[parents[body]] += hangs[body]
    return with_model(params, body_mass=mass, body_subtreemass=jnp.sum(hangs * mass, axis=1))


@dataclass(frozen=True, kw_only=True)
class FrictionRandomization(FactorRandomization):
    """One factor on the sliding friction of every geom."""

    factor: Annotated[Range, Bound(0, 100, "factors")] = (0.5, 1.5)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("geom_friction",)

    def size(self, scene: Scene) -> int:
        return 1

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        friction = params.model["geom_friction"]
        return with_model(params, geom_friction=friction.at[:, 0].mul(drawn[0]))


@dataclass(frozen=True, kw_only=True)
class FloorFrictionRandomization(FactorRandomization):
    """One factor on the sliding friction between floor and feet, and of nothing else.

    MuJoCo takes the greater friction of two geoms, so both sides get the greatest of theirs, times the factor.
    """

    factor: Annotated[Range, Bound(0, 100, "factors")] = (0.5, 2.0)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("geom_friction",)

    def size(self, scene: Scene) -> int:
        return 1

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        built, friction = scene.built, params.model["geom_friction"]
        if built.floor_geom < 0:
            raise ConfigError(f"{type(self).__name__}: {built.spec.name} stands on no floor; take the term out")
        at = np.asarray([built.floor_geom, *built.foot_geoms], np.int32)
        return with_model(params, geom_friction=friction.at[at, 0].set(drawn[0] * jnp.max(friction[at, 0])))


@dataclass(frozen=True, kw_only=True)
class LinkMassRandomization(FactorRandomization):
    """A factor on the mass of each body of the robot, and on its inertia with it."""

    factor: Annotated[Range, Bound(0.01, 100, "factors")] = (0.9, 1.1)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("body_mass", "body_subtreemass", "body_inertia")

    def size(self, scene: Scene) -> int:
        return len(scene.built.bodies)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        at, mass, inertia = scene.built.bodies, params.model["body_mass"], params.model["body_inertia"]
        params = with_mass(params, mass.at[at].mul(drawn), scene)
        return with_model(params, body_inertia=inertia.at[at].mul(drawn[:, None]))


@dataclass(frozen=True, kw_only=True)
class InertiaRandomization(FactorRandomization):
    """A factor on the rotational inertia of each body of the robot; its mass stays."""

    factor: Annotated[Range, Bound(0.01, 100, "factors")] = (0.85, 1.15)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("body_inertia",)

    def size(self, scene: Scene) -> int:
        return len(scene.built.bodies)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return with_model(params, body_inertia=params.model["body_inertia"].at[scene.built.bodies].mul(drawn[:, None]))


@dataclass(frozen=True, kw_only=True)
class PayloadRandomization(Randomization):
    """Mass added to the torso at its centre of mass [kg]; at most half of the torso is taken away."""

    mass_kg: Annotated[Range, Bound(-1000, 1000, "kilograms")] = (-1.0, 2.0)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("body_mass", "body_subtreemass")

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, self.mass_kg, 0.0, (1,), level)

    def shown(self, drawn: Any) -> Any:
        return about(drawn, self.mass_kg, 0.0)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        mass, torso = params.model["body_mass"], scene.built.torso_body
        added = jnp.maximum(drawn[0], -0.5 * mass[torso])
        return with_mass(params, mass.at[torso].add(added), scene)


@dataclass(frozen=True, kw_only=True)
class CentreOfMassRandomization(OffsetRandomization):
    """The torso's centre of mass is moved [m]."""

    width_m: Annotated[float, Bound(0, 1, "metres")] = 0.02

    @property
    def fields(self) -> tuple[str, ...]:
        return ("body_ipos",)

    @property
    def width(self) -> float:
        return self.width_m

    def size(self, scene: Scene) -> int:
        return 3

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return with_model(params, body_ipos=params.model["body_ipos"].at[scene.built.torso_body].add(drawn))


@dataclass(frozen=True, kw_only=True)
class ImuTiltRandomization(OffsetRandomization):
    """The IMU is mounted askew by a rotation vector [rad]."""

    width_rad: Annotated[float, RADIANS] = 0.02

    @property
    def width(self) -> float:
        return self.width_rad

    def size(self, scene: Scene) -> int:
        return 3

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return params._replace(imu_tilt=params.imu_tilt + drawn)


@dataclass(frozen=True, kw_only=True)
class ImuPositionRandomization(OffsetRandomization):
    """The IMU sits elsewhere, along each axis of its body [m]: its accelerometer feels another part of a turn."""

    width_m: Annotated[float, Bound(0, 1, "metres")] = 0.01

    @property
    def fields(self) -> tuple[str, ...]:
        return ("site_pos",)

    @property
    def width(self) -> float:
        return self.width_m

    def size(self, scene: Scene) -> int:
        return 3

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        model = scene.built.model
        site = int(model.sensor_objid[model.sensor("imu_quat").id])
        return with_model(params, site_pos=params.model["site_pos"].at[site].add(drawn))


@dataclass(frozen=True, kw_only=True)
class GravityRandomization(OffsetRandomization):
    """Gravity differs along each axis of the world [m/s^2]; sideways it is a slope that the IMU does not show."""

    width_m_s2: Annotated[float, Bound(0, 20, "m/s^2")] = 0.1

    @property
    def fields(self) -> tuple[str, ...]:
        return ("opt.gravity",)

    @property
    def width(self) -> float:
        return self.width_m_s2

    def size(self, scene: Scene) -> int:
        return 3

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return with_model(params, **{"opt.gravity": params.model["opt.gravity"] + drawn})


@dataclass(frozen=True, kw_only=True)
class FootShapeRandomization(FactorRandomization):
    """A factor on the size of each foot's geoms, which stay where they are: all its lengths, thickness too."""

    factor: Annotated[Range, Bound(0.1, 10, "factors")] = (0.95, 1.05)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("geom_size", "geom_rbound")

    def size(self, scene: Scene) -> int:
        return len(scene.feet)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        built, names = scene.built, self.fields
        grown = {name: params.model[name] for name in names}
        for place, geoms in enumerate(built.geoms_by_foot.values()):
            for geom in geoms:
                if int(built.model.geom_type[geom]) not in _SIZED:
                    raise ConfigError(
                        f"{type(self).__name__}: geom {built.model.geom(int(geom)).name or geom} of a foot of "
                        f"{built.spec.name} is a mesh or a plane, expected one of {', '.join(_SIZED.values())}"
                    )
            at = np.asarray(geoms, np.int32)
            grown = {name: value.at[at].mul(drawn[place]) for name, value in grown.items()}
        return with_model(params, **grown)
