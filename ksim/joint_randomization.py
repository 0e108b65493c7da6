"""Randomisation of joints and motors: gains, limits, friction, play, compliance, encoders, targets.

A term with `joints` looks at those whose name contains one of its words; none means all. The draws of one joint do not
depend on which are chosen.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np

from ksim.curriculum import factor
from ksim.draws import RADIANS, FactorRandomization, OffsetRandomization, Randomization, about, of_joints, with_model
from ksim.scene import Scene
from ksim.types import PhysicsParams
from toolkit.settings import Bound, Range


@dataclass(frozen=True, kw_only=True)
class JointFactorRandomization(FactorRandomization, abc.ABC):
    """Factors, one a joint."""

    joints: tuple[str, ...] = ()

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return of_joints(super().draw(key, scene, level), 1.0, self.joints, scene)


@dataclass(frozen=True, kw_only=True)
class JointOffsets(OffsetRandomization, abc.ABC):
    """Offsets, one a joint [rad]."""

    width_rad: Annotated[float, RADIANS] = 0.02
    joints: tuple[str, ...] = ()

    @property
    def width(self) -> float:
        return self.width_rad

    def size(self, scene: Scene) -> int:
        return scene.joints

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        return of_joints(super().draw(key, scene, level), 0.0, self.joints, scene)


@dataclass(frozen=True, kw_only=True)
class ArmatureRandomization(JointFactorRandomization):
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
class MotorRandomization(JointFactorRandomization, abc.ABC):
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
class DampingFactorRandomization(MotorRandomization):
    """A factor on the viscous friction of each joint; where there is none, JointDampingRandomization adds some."""

    factor: Annotated[Range, Bound(0, 1000, "factors")] = (0.5, 2.5)

    @property
    def parameter(self) -> str:
        return "damping"


@dataclass(frozen=True, kw_only=True)
class MotorAddition(Randomization, abc.ABC):
    """Something added to one parameter of each motor, uniform in a range that begins at 0 or above."""

    joints: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def parameter(self) -> str:
        """Its name in robots.motor.MotorParams."""

    @property
    @abc.abstractmethod
    def span(self) -> Range:
        """The range."""

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        drawn = self._uniform(key, self.span, 0.0, (scene.joints,), level)
        return of_joints(drawn, 0.0, self.joints, scene)

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
class StictionRandomization(MotorAddition):
    """Breakaway torque above the friction of each joint [N m]. The range was measured on ankles of a K-Bot."""

    stiction_nm: Annotated[Range, Bound(0, 1000, "N m")] = (0.0, 0.9)

    @property
    def parameter(self) -> str:
        return "stiction"

    @property
    def span(self) -> Range:
        return self.stiction_nm


@dataclass(frozen=True, kw_only=True)
class PlayRandomization(MotorAddition):
    """Width of the gap between each motor and its joint [rad]. The range was measured on ankles of a K-Bot."""

    play_rad: Annotated[Range, Bound(0, 1, "radians")] = (0.0, 0.035)

    @property
    def parameter(self) -> str:
        return "play"

    @property
    def span(self) -> Range:
        return self.play_rad


@dataclass(frozen=True, kw_only=True)
class ComplianceRandomization(Randomization):
    """A spring between each motor and its joint, uniform in stiffness [N m/rad].

    `scale` brings its compliance nearer to 0. The range was measured on ankles of a K-Bot. A policy that meets springs
    in every episode leans on them: without them, on the nominal robot, it does not come to rest. So give some of the
    robots none, by `rigid`.
    """

    stiffness_nm_rad: Annotated[Range, Bound(0.1, 1e9, "N m/rad")] = (23.0, 52.0)
    joints: tuple[str, ...] = ()
    rigid: Annotated[float, Bound(0, 1, "a share of the robots")] = 0.0

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        unit = jax.random.uniform(
            key, (scene.joints,), minval=self.stiffness_nm_rad[0], maxval=self.stiffness_nm_rad[1]
        )
        soft = jax.random.uniform(jax.random.fold_in(key, 1)) >= self.rigid
        return of_joints(soft * factor(self.scale, level) / unit, 0.0, self.joints, scene)

    def shown(self, drawn: Any) -> Any:
        return drawn * self.stiffness_nm_rad[0]

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return params._replace(motor=params.motor._replace(compliance=params.motor.compliance + drawn))


@dataclass(frozen=True, kw_only=True)
class JointOffsetRandomization(JointOffsets):
    """Error of each encoder's zero [rad]."""

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return params._replace(joint_offset=params.joint_offset + drawn)


@dataclass(frozen=True, kw_only=True)
class TargetBiasRandomization(JointOffsets):
    """What each motor's controller adds to its targets [rad]; the encoder does not show it."""

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return params._replace(target_bias=params.target_bias + drawn)
