"""A robot as it was measured: what its joints are in place of the robot's description, and how sure that is.

ksim/calibration.py makes these of a calibration. The gains that are commanded stay the description's: a figure here is
what the servo makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from ksim.draws import FactorRandomization, Randomization, with_model
from ksim.errors import ConfigError
from ksim.joint_randomization import ComplianceRandomization, JointOffsets, KpRandomization, MotorAddition
from ksim.randomization import with_mass
from ksim.scene import Scene
from ksim.term import Term
from ksim.types import PhysicsParams
from toolkit.settings import Bound, Range

_TABLE = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class MeasuredRobot(Term):
    """Figures of the motor law by joint, in SI; a joint that is left out is as described.

    Attributes:
        source: digest of the calibration that they are from.
        robot: whose joints.
        kp: stiffness [N m/rad].
        kd: damping [N m s/rad].
        torque_limit: greatest torque [N m].
        velocity_max: speed at which there is none [rad/s].
        friction: Coulomb friction [N m].
        damping: viscous friction [N m s/rad].
        armature: rotor inertia [kg m^2].
        stiction: breakaway torque above the friction [N m].
        play: full width of the gap [rad].
        compliance: of the spring between motor and joint [rad/(N m)].
        load_friction: friction that is more by this share of the controller's torque.
        offset: measured less true position [rad].
        mass: factor on the mass and inertia of the link that the joint moves.
    """

    source: str = ""
    robot: str = ""
    kp: Annotated[_TABLE, Bound(0, 1e5, "N m/rad")] = field(default_factory=dict)
    kd: Annotated[_TABLE, Bound(0, 1e4, "N m s/rad")] = field(default_factory=dict)
    torque_limit: Annotated[_TABLE, Bound(0, 1e5, "N m")] = field(default_factory=dict)
    velocity_max: Annotated[_TABLE, Bound(1e-3, 1e4, "rad/s")] = field(default_factory=dict)
    friction: Annotated[_TABLE, Bound(0, 1e4, "N m")] = field(default_factory=dict)
    damping: Annotated[_TABLE, Bound(0, 1e4, "N m s/rad")] = field(default_factory=dict)
    armature: Annotated[_TABLE, Bound(0, 1e3, "kg m^2")] = field(default_factory=dict)
    stiction: Annotated[_TABLE, Bound(0, 1e4, "N m")] = field(default_factory=dict)
    play: Annotated[_TABLE, Bound(0, 3.2, "radians")] = field(default_factory=dict)
    compliance: Annotated[_TABLE, Bound(0, 10, "rad/(N m)")] = field(default_factory=dict)
    load_friction: Annotated[_TABLE, Bound(0, 0.9, "a share")] = field(default_factory=dict)
    offset: Annotated[_TABLE, Bound(-3.2, 3.2, "radians")] = field(default_factory=dict)

    mass: Annotated[_TABLE, Bound(0.1, 10, "factors")] = field(default_factory=dict)

    @property
    def fields(self) -> tuple[str, ...]:
        masses = ("body_mass", "body_subtreemass", "body_inertia") if self.mass else ()
        return (*(("dof_armature",) if self.armature else ()), *masses)

    def __str__(self) -> str:
        """What it holds, in a line."""
        tables = {name: value for name, value in vars(self).items() if isinstance(value, dict) and value}
        held = ", ".join(f"{name} of {len(table)}" for name, table in tables.items())
        return f"calibration {self.source[:12]} of {self.robot}: {held or 'no figure of any'} joints"

    def apply(self, params: PhysicsParams, scene: Scene) -> PhysicsParams:
        """The parameters with what was measured; of one robot, before anything is drawn.

        Raises:
            ConfigError: the scene's robot is another.
        """
        names = scene.joint_names

        def put(values: Any, table: _TABLE) -> Any:
            for name in table:
                if name not in names:
                    raise ConfigError(
                        f"calibration: no joint {name!r} of robot {scene.built.spec.name}; expected a calibration of "
                        f"it (it is {self.robot}'s)"
                    )
            at = np.asarray([names.index(name) for name in table], np.int32)
            return values.at[at].set(np.asarray(list(table.values()), np.float32)) if table else values

        law = {name: put(value, getattr(self, name)) for name, value in params.motor._asdict().items()}
        params = params._replace(motor=type(params.motor)(**law), joint_offset=put(params.joint_offset, self.offset))
        dofs = np.asarray(scene.built.dof_ids)
        if self.armature:
            params = with_model(params, dof_armature=params.model["dof_armature"].at[dofs].set(law["armature"]))
        if self.mass:
            links, factor = scene.built.model.dof_bodyid[dofs], put(jnp.ones(len(names)), self.mass)
            params = with_mass(params, params.model["body_mass"].at[links].mul(factor), scene)
            inertia = params.model["body_inertia"].at[links].mul(factor[:, None])
            params = with_model(params, body_inertia=inertia)
        return params


@dataclass(frozen=True, kw_only=True)
class MeasuredRandomization(Randomization):
    """A randomisation of joints, with a range of its own for each that was measured.

    Attributes:
        of: what draws for the other joints, and what puts the draws in.
        spans: by joint, in the unit in which `of` draws: factors, or what is added.
    """

    of: Randomization = KpRandomization()
    spans: Annotated[dict[str, Range], Bound(-1000, 1000, "factors, or what is added")] = field(default_factory=dict)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.of.fields

    @property
    def sensors(self) -> tuple[str, ...]:
        return self.of.sensors

    def draw(self, key: Any, scene: Scene, level: Any) -> Any:
        others = self.of.draw(key, scene, level)
        if not self.spans:
            return others
        neutral = 1.0 if isinstance(self.of, FactorRandomization) else 0.0
        whole = [self.spans.get(name, (neutral, neutral)) for name in scene.joint_names]
        low, high = np.asarray(whole, np.float32).T
        drawn = self._uniform(key, (low, high), neutral, (scene.joints,), level)
        return jnp.where(np.asarray([name in self.spans for name in scene.joint_names]), drawn, others)

    def shown(self, drawn: Any) -> Any:
        return self.of.shown(drawn)

    def apply(self, params: PhysicsParams, drawn: Any, scene: Scene) -> PhysicsParams:
        return self.of.apply(params, drawn, scene)


def range_at(term: Randomization, joint: str) -> Range:
    """The range in which a term of joints draws for one of them, in the unit in which it draws."""
    if isinstance(term, MeasuredRandomization):
        return term.spans.get(joint) or range_at(term.of, joint)
    neutral, words = 1.0 if isinstance(term, FactorRandomization) else 0.0, getattr(term, "joints", ())
    if words and not any(word in joint for word in words):
        return neutral, neutral
    if isinstance(term, FactorRandomization):
        return term.factor
    if isinstance(term, JointOffsets):
        return -term.width, term.width
    if isinstance(term, ComplianceRandomization):
        return 0.0 if term.rigid else 1.0 / term.stiffness_nm_rad[1], 1.0 / term.stiffness_nm_rad[0]
    assert isinstance(term, MotorAddition), term
    return term.span
