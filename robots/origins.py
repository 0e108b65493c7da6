"""Where what is known of a robot came from: file, key, rule. What was guessed is called a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where something that a robot folder says was found.

    Attributes:
        how: the rule, in words, to go after its value; empty where file and key say it all.
        guess: nothing in the folder says so outright; the user should look.
        file: name of the file that says it; empty for none.
        key: where in it.
    """

    how: str = ""
    guess: bool = False
    file: str = ""
    key: str = ""

    def __str__(self) -> str:
        """File, key and rule."""
        place = ": ".join(filter(None, (self.file, self.key)))
        rule = f"{'guess: ' if self.guess else ''}{self.how}"
        return f"{place} ({rule})" if place and rule else place or rule


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where what the loader found came from.

    Attributes:
        model: the model's file.
        metadata: metadata.json.
        chosen: why it is this model, of those in the folder.
        name: the robot's name.
        imu: the IMU's site.
        imu_body: the body that it is on.
        feet: the feet's sites.
        foot_bodies: the bodies that they are on.
        home: the home pose.
        home_told: joints whose home the folder says.
        floating: whether the robot has a free base.
        base: the free joint's name; empty for a base that is fixed to the world, or a joint without a name.
        free: the robot has a free base, of the model or added.
        wants_free: it is to be given one where the model has none.
        passive: joints of the robot without a motor, and why.
        passive_rad: where the home pose's keyframe has the hinges without a motor [rad].
        period: the control period.
        mass: the mass.
        joints: of each joint, of each field of its JointSpec.
        others: bodies on the world that are not the robot's.
    """

    model: Path
    metadata: Path
    chosen: Origin
    name: Origin
    imu: Origin
    imu_body: str
    feet: Origin
    foot_bodies: tuple[str, ...]
    home: Origin
    home_told: frozenset[str]
    floating: Origin
    base: str
    free: bool
    wants_free: bool
    period: Origin
    mass: Origin
    passive: Mapping[str, Origin] = field(default_factory=dict)
    passive_rad: Mapping[str, float] = field(default_factory=dict)
    joints: Mapping[str, Mapping[str, Origin]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
