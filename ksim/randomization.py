"""Domain randomisation: terms that draw at a reset and change one environment's PhysicsParams.

A term draws numbers (`draw`), shows them to the critic and the log about 0 (`shown`), and puts them into the
parameters (`apply`). Its `scale` brings the draw nearer to the nominal robot, and may follow the curriculum.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ksim.curriculum import Scale, factor
from ksim.scene import Scene
from ksim.term import Term
from ksim.types import PhysicsParams
from robots.motor import MotorParams
from toolkit.settings import Bound, Range

_RADIANS = Bound(0, 3.2, "radians")


def nominal(scene: Scene, fields: tuple[str, ...]) -> PhysicsParams:
    """The robot as described, with these MjModel fields to be varied. Unbatched, float32."""
    n, model = scene.joints, scene.built.model
    motor = MotorParams(
        *(jnp.broadcast_to(jnp.asarray(v, jnp.float32), (n,)) for v in MotorParams.of(scene.built.spec))
    )
    return PhysicsParams(
        model={name: jnp.asarray(getattr(model, name), jnp.float32) for name in fields},
        motor=motor,
        joint_offset=jnp.zeros(n),
        target_bias=jnp.zeros(n),
        imu_tilt=jnp.zeros(3),
        drawn={},
    )


@dataclass(frozen=True, kw_only=True)
class Randomization(Term, abc.ABC):
    """What differs from robot to robot."""

    scale: float | Scale = 1.0

    @abc.abstractmethod
    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        """What this episode's robot has, (k,), in the term's own unit; `neutral` where it changes nothing."""

    @abc.abstractmethod
    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        """The parameters with it."""

    @abc.abstractmethod
    def shown(self, drawn: Any) -> Any:
        """What was drawn, about -1 to 1 and 0 for the nominal robot, for the critic and the log."""

    def _uniform(self, key: Any, span: Range, neutral: float, shape: tuple[int, ...], level: Any) -> Any:
        """Uniform draws, brought nearer to what changes nothing where the scale is below 1."""
        return neutral + factor(self.scale, level) * (
            jax.random.uniform(key, shape, minval=span[0], maxval=span[1]) - neutral
        )


def about(drawn: Any, span: Range, neutral: float) -> Any:
    """Draws as shares of the farthest that their range goes from what changes nothing."""
    return (drawn - neutral) / max(abs(span[0] - neutral), abs(span[1] - neutral), 1e-9)


@dataclass(frozen=True, kw_only=True)
class FactorRandomization(Randomization, abc.ABC):
    """Factors, uniform in a range."""

    factor: Annotated[Range, Bound(0, 1000, "factors")] = (1.0, 1.0)

    def size(self, scene: Scene) -> int:
        """How many factors are drawn."""
        return scene.joints

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, self.factor, 1.0, (self.size(scene),), level)

    def shown(self, drawn: Any) -> Any:
        return about(drawn, self.factor, 1.0)


def with_model(params: PhysicsParams, **fields: Any) -> PhysicsParams:
    """The parameters with MjModel fields replaced."""
    return params._replace(model={**params.model, **fields})


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
class LinkMassRandomization(FactorRandomization):
    """A factor on the mass of each body, and on its inertia with it."""

    factor: Annotated[Range, Bound(0.01, 100, "factors")] = (0.9, 1.1)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("body_mass", "body_inertia")

    def size(self, scene: Scene) -> int:
        return scene.built.model.nbody

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        mass, inertia = params.model["body_mass"], params.model["body_inertia"]
        return with_model(params, body_mass=mass * drawn, body_inertia=inertia * drawn[:, None])


@dataclass(frozen=True, kw_only=True)
class PayloadRandomization(Randomization):
    """Mass added to the torso at its centre of mass [kg]; at most half of the torso is taken away."""

    mass_kg: Annotated[Range, Bound(-1000, 1000, "kilograms")] = (-1.0, 2.0)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("body_mass",)

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, self.mass_kg, 0.0, (1,), level)

    def shown(self, drawn: Any) -> Any:
        return about(drawn, self.mass_kg, 0.0)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        mass, torso = params.model["body_mass"], scene.built.torso_body
        added = jnp.maximum(drawn[0], -0.5 * mass[torso])
        return with_model(params, body_mass=mass.at[torso].add(added))


@dataclass(frozen=True, kw_only=True)
class OffsetRandomization(Randomization, abc.ABC):
    """Offsets, uniform between minus and plus a width."""

    @property
    @abc.abstractmethod
    def width(self) -> float:
        """The largest offset."""

    @abc.abstractmethod
    def size(self, scene: Scene) -> int:
        """How many offsets are drawn."""

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, (-self.width, self.width), 0.0, (self.size(scene),), level)

    def shown(self, drawn: Any) -> Any:
        return drawn / max(self.width, 1e-9)


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
class ArmatureRandomization(FactorRandomization):
    """A factor on the rotor inertia of each joint."""

    factor: Annotated[Range, Bound(0.01, 100, "factors")] = (0.95, 1.05)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("dof_armature",)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        armature = params.model["dof_armature"].at[np.asarray(scene.built.dof_ids)].mul(drawn)
        motor = params.motor._replace(armature=params.motor.armature * drawn)
        return with_model(params, dof_armature=armature)._replace(motor=motor)


@dataclass(frozen=True, kw_only=True)
class MotorRandomization(FactorRandomization, abc.ABC):
    """A factor on one parameter of each motor."""

    @property
    @abc.abstractmethod
    def parameter(self) -> str:
        """Its name in robots.motor.MotorParams."""

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        value = getattr(params.motor, self.parameter) * drawn
        return params._replace(motor=params.motor._replace(**{self.parameter: value}))


@dataclass(frozen=True, kw_only=True)
class KpRandomization(MotorRandomization):
    """A factor on each position gain."""

    factor: Annotated[Range, Bound(0, 100, "factors")] = (0.9, 1.1)

    @property
    def parameter(self) -> str:
        return "kp"


@dataclass(frozen=True, kw_only=True)
class KdRandomization(MotorRandomization):
    """A factor on each velocity gain."""

    factor: Annotated[Range, Bound(0, 100, "factors")] = (0.9, 1.1)

    @property
    def parameter(self) -> str:
        return "kd"


@dataclass(frozen=True, kw_only=True)
class TorqueLimitRandomization(MotorRandomization):
    """A factor on each torque limit: the strength of the motor."""

    factor: Annotated[Range, Bound(0, 100, "factors")] = (0.9, 1.0)

    @property
    def parameter(self) -> str:
        return "torque_limit"


@dataclass(frozen=True, kw_only=True)
class JointFrictionRandomization(MotorRandomization):
    """A factor on the Coulomb friction of each joint."""

    factor: Annotated[Range, Bound(0, 1000, "factors")] = (0.5, 2.0)

    @property
    def parameter(self) -> str:
        return "friction"


@dataclass(frozen=True, kw_only=True)
class MotorAddition(Randomization, abc.ABC):
    """Something added to one parameter of each motor, uniform in a range that begins at 0 or above."""

    @property
    @abc.abstractmethod
    def parameter(self) -> str:
        """Its name in robots.motor.MotorParams."""

    @property
    @abc.abstractmethod
    def span(self) -> Range:
        """The range."""

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return self._uniform(key, self.span, 0.0, (scene.joints,), level)

    def shown(self, drawn: Any) -> Any:
        return about(drawn, self.span, 0.0)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        value = getattr(params.motor, self.parameter) + drawn
        return params._replace(motor=params.motor._replace(**{self.parameter: value}))


@dataclass(frozen=True, kw_only=True)
class JointDampingRandomization(MotorAddition):
    """Viscous friction added to each joint [N m s/rad]."""

    damping: Annotated[Range, Bound(0, 1000, "N m s/rad")] = (0.0, 0.2)

    @property
    def parameter(self) -> str:
        return "damping"

    @property
    def span(self) -> Range:
        return self.damping


@dataclass(frozen=True, kw_only=True)
class JointOffsetRandomization(OffsetRandomization):
    """Error of each encoder's zero [rad]."""

    width_rad: Annotated[float, _RADIANS] = 0.02

    @property
    def width(self) -> float:
        return self.width_rad

    def size(self, scene: Scene) -> int:
        return scene.joints

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return params._replace(joint_offset=params.joint_offset + drawn)


@dataclass(frozen=True, kw_only=True)
class ImuTiltRandomization(OffsetRandomization):
    """The IMU is mounted askew by a rotation vector [rad]."""

    width_rad: Annotated[float, _RADIANS] = 0.02

    @property
    def width(self) -> float:
        return self.width_rad

    def size(self, scene: Scene) -> int:
        return 3

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return params._replace(imu_tilt=params.imu_tilt + drawn)
