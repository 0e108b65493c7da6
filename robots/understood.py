"""What was understood of a robot folder: each value with its source, in one line or in full. A guess is called one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robots.origins import Origin, Origins
from robots.rotation import GRAVITY_M_S2
from robots.spec import RobotSpec

if TYPE_CHECKING:
    from robots.model import BuiltModel


# Gravity differs by this much over the earth [m/s^2].
_GRAVITY_SPREAD = 0.05


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that was understood.

    Attributes:
        what: a word or two.
        said: its value; empty where there is nothing to say.
        origin: where it is from; None where that goes without saying.
        line: how it stands in the line, where that is not "what: said (origin)".
    """

    what: str
    said: str
    origin: Origin | None = None
    line: str = ""

    def __str__(self) -> str:
        rule = "" if self.origin is None or not self.origin.how else self.origin.how
        guess = "guess: " if self.origin is not None and self.origin.guess else ""
        return self.line or f"{self.what}: {self.said}{f' ({guess}{rule})' if rule else ''}"


def understood(built: BuiltModel) -> str:
    """One line: base, IMU, feet, home pose, motors, passive joints, mass, meshes, and what else is in the file."""
    return as_line(facts(built.spec, built.origins, built))


def as_line(found: list[Fact]) -> str:
    """Facts in one line."""
    return "; ".join(" ".join(str(fact).split()) for fact in found if fact.said)


def facts(spec: RobotSpec, origins: Origins, built: BuiltModel | None = None) -> list[Fact]:
    """What was understood; with the compiled model also what only MuJoCo knows."""
    base, mass, height, more = origins.base, spec.mass_kg, "", []
    others, passive = origins.others, [*origins.passive]
    if built is not None:
        base, mass, height = built.base_joint, built.mass_kg, f"base at {built.standing_height_m:.3f} m"
        model = built.model
        others = tuple(
            model.body(i).name or "unnamed" for i in range(1, model.nbody)
            if i not in built.bodies and model.body_parentid[i] == 0
        )  # fmt: skip
        more = [
            Fact(what="floor", said="added" if built.floor_added else ""),
            Fact(
                what="meshes",
                said=f"{len(built.meshes)} read" if built.meshes else "",
                line="" if built.missing_meshes else "all meshes are there",
            ),
            Fact(
                what="meshes not where the model says",
                said=", ".join(f"{name} read from {built.meshes[name]}" for name in built.guessed_meshes),
                origin=Origin(how="files of these names lie there", guess=True),
            ),
            Fact(what="meshes left out", said=", ".join(built.missing_meshes)),
            *_weight(built),
        ]
    free = built.base_body >= 0 if built is not None else origins.free
    joint = f"free joint {base}".rstrip() if base or built is not None else "free"
    imu = f"{spec.imu_site} on body {origins.imu_body}" if spec.imu_site else "the base's own frame"
    motors = f"{len(spec.joints)} motors"
    kilograms = f"{mass:.2f} kg"
    return [
        Fact(what="robot", said=spec.name, origin=origins.name, line=f"robot {spec.name}"),
        Fact(what="base", said=joint if free else "fixed to the world", origin=origins.floating),
        Fact(what="IMU", said=imu, origin=origins.imu),
        Fact(what="feet", said=", ".join(spec.foot_sites) or "none", origin=origins.feet),
        Fact(what="home", said=height or "each joint's", origin=origins.home, line=_home(origins, height)),
        Fact(what="motors", said=motors, line=motors),
        Fact(what="passive joints", said=", ".join(name or "unnamed" for name in passive) or "none"),
        Fact(what="mass", said=kilograms if mass else "", origin=origins.mass, line=kilograms),
        *more,
        Fact(what="beside the robot", said=", ".join(others)),
    ]


def _weight(built: BuiltModel) -> list[Fact]:
    """Where the model takes weight away that a robot has: as arms' models do whose controller carries it."""
    model = built.model
    pull = [float(v) for v in model.opt.gravity]
    usual = abs(pull[2] + GRAVITY_M_S2) < _GRAVITY_SPREAD and not pull[0] and not pull[1]
    light = [model.body(i).name or "unnamed" for i in built.bodies if model.body_gravcomp[i]]
    took = Origin(how="of the model; a robot in the world is pulled by 9.81", file=built.origins.model.name)
    return [
        Fact(what="gravity", said="" if usual else f"{' '.join(f'{v:g}' for v in pull)} m/s^2", origin=took),
        Fact(
            what="weight carried by the model",
            said=f"of {', '.join(light)}" if light else "",
            origin=Origin(how="gravcomp; a robot's motors carry it", file=built.origins.model.name),
        ),
    ]


def _home(origins: Origins, height: str) -> str:
    """The home pose; without a height its source alone."""
    guess = "guess: " if origins.home.guess else ""
    return f"home: {height} ({guess}{origins.home.how})" if height else f"home: {guess}{origins.home.how}"


def told_by_bundle(spec: RobotSpec) -> str:
    """One line of the robot that a bundle was made for, where its folder is not at hand."""
    feet = ", ".join(spec.foot_sites) or "none"
    mass = f"; {spec.mass_kg:.2f} kg" if spec.mass_kg else ""
    return (
        f"robot {spec.name}, as the bundle says: IMU: {spec.imu_site or 'not told'}; feet: {feet}; home: the bundle's; "
        f"{len(spec.joints)} motors{mass}"
    )
