"""What the arm touches while it is recorded, and what does not count: declared by the user in a YAML file."""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from deploy.errors import DeployError
from robots.model import BuiltModel
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings

# Sliding friction of a plane of which nothing else is said: plastic on a smooth table.
PLANE_FRICTION = 0.2
# A contact that gives way is a spring and a damper: MuJoCo's constraint of this stiffness [1/s^2] and damping [1/s],
# with the impedance that makes the spring as stiff as it should be. Their time constant is MuJoCo's own, 20 ms.
SPRING, DAMPER = 2500.0, 100.0
# A stop may be so far outside the model's range, as angles are written [rad].
ROUNDED_RAD = 1e-3


class ContactsError(DeployError, SettingsError):
    """Contacts that cannot be read, or that name what the model does not have."""


@dataclass(frozen=True, kw_only=True)
class Plane(Settings):
    """A level plane, a table for example.

    Attributes:
        height_m: of the plane in the world; with `fit` where the search begins [m].
        geoms: which of the robot's geoms may touch it.
        friction: sliding friction.
        give_m_n: how far the contact gives way, the robot's links and base with it [m/N]; 0 is hard.
        fit: find the height.
    """

    height_m: Annotated[float, Bound(-10, 10, "metres")]
    geoms: tuple[str, ...]
    friction: Annotated[float, Bound(0, 10, "a coefficient")] = PLANE_FRICTION
    give_m_n: Annotated[float, Bound(0, 0.1, "metres a newton")] = 0.0
    fit: bool = True
    error: ClassVar[type[SettingsError]] = ContactsError
    noun: ClassVar[str] = ""

    def check(self) -> None:
        self.require(bool(self.geoms), "geoms", list(self.geoms), "one or more of the robot's geoms")


@dataclass(frozen=True, kw_only=True)
class Contacts(Settings):
    """What may be touched, and what does not count.

    Attributes:
        plane: a level plane under the robot; None for none.
        stops_rad: by joint name, [low, high] of a hard stop, which may be narrower than the model's range [rad].
        leave_out: by motion, stretches [from, to] whose rows do not count [s]: a person in the way, a supply that sags.
    """

    plane: Plane | None = None
    stops_rad: dict[str, tuple[float, float]] | None = None
    leave_out: dict[str, tuple[tuple[float, float], ...]] | None = None
    error: ClassVar[type[SettingsError]] = ContactsError
    noun: ClassVar[str] = ""


def apply_contacts(built: BuiltModel, contacts: Contacts) -> int:
    """Turn the declared contacts on, and all others of the floor off; `built` is fresh. Returns the plane's geom or -1.

    Raises:
        ContactsError: a geom or a joint is not the model's, or a stop is where its joint does not come.
    """
    import mujoco  # here, so that a calibration's file needs none

    model = built.model
    for name, (low, high) in (contacts.stops_rad or {}).items():
        if name not in built.spec.joint_names:
            known = ", ".join(built.spec.joint_names)
            raise ContactsError(f"contacts.stops_rad: no joint {name!r}; expected some of {known}")
        joint = model.joint(name).id
        least, most = model.jnt_range[joint]
        if not least - ROUNDED_RAD <= low < high <= most + ROUNDED_RAD:
            raise ContactsError(
                f"contacts.stops_rad: joint {name}: got [{low:g}, {high:g}], expected low below high, within the "
                f"model's range [{least:.6g}, {most:.6g}] rad; give radians, or widen the range in the model's file"
            )
        model.jnt_range[joint] = low, high
    if contacts.plane is None:
        return -1
    floor = built.floor_geom
    names = [model.geom(i).name for i in range(model.ngeom)]
    for name in contacts.plane.geoms:
        if name not in names:
            known = ", ".join(filter(None, names))
            raise ContactsError(f"contacts.plane.geoms: no geom {name!r}; expected some of {known}")
    ids = [names.index(name) for name in contacts.plane.geoms]
    # bit 2 is the table's alone: the robot goes on not to touch itself
    model.geom_contype[floor], model.geom_conaffinity[floor] = 4, 0
    model.geom_conaffinity[ids] = 4
    for body in np.unique(model.geom_bodyid[[floor, *ids]]):
        own = np.flatnonzero(model.geom_bodyid == body)
        model.body_contype[body] = np.bitwise_or.reduce(model.geom_contype[own])
        model.body_conaffinity[body] = np.bitwise_or.reduce(model.geom_conaffinity[own])
    model.geom_priority[floor] = 1  # its friction is the pair's
    model.geom_friction[floor, 0] = contacts.plane.friction
    model.geom_sameframe[floor] = 0  # MuJoCo would take its body's place for its own
    model.geom_pos[floor, 2] = contacts.plane.height_m
    if contacts.plane.give_m_n > 0:
        # a pyramid's stiffness hangs on its friction, and friction must not give way as the spring does
        model.opt.cone, model.opt.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 100.0
        model.geom_solref[floor], model.geom_solimp[floor, :2] = spring(built, contacts.plane, contacts.plane.give_m_n)
    return floor


def spring(built: BuiltModel, plane: Plane, give_m_n: float) -> tuple[np.ndarray, float]:
    """MuJoCo's solref (2,) and impedance of a contact with the plane that gives way by so much [m/N].

    MuJoCo takes the inverse mass at a contact from the model as it is compiled, so one figure holds in all postures:
    that of the first of the plane's geoms.
    """
    model = built.model
    inverse = model.body_invweight0[model.geom(plane.geoms[0]).bodyid[0], 0]
    share = 1.0 / (1.0 + SPRING * give_m_n / inverse)
    # MuJoCo divides both by the impedance
    return -share * np.array([SPRING, DAMPER]), share
