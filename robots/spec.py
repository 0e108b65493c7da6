"""What a robot and a policy are: frozen, validated, JSON in and out without loss, a digest each.

Everything is in SI and radians, and everything that has an order carries its names.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

from robots.errors import SpecError
from robots.inputs import POLICY_INPUTS
from robots.margins import Margins
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings
from toolkit.strict_json import canonical_json as canonical_json
from toolkit.strict_json import digest as digest

# What a full proof has of recorded steps and of episodes in closed loop; less is easier to pass by chance.
FULL_STEPS, FULL_EPISODES = 10_000, 200
# Elements of one array; what is read from a file may not ask for more memory than this.
MAX_ELEMENTS = 1_000_000


# What no joint of a legged robot exceeds; a figure beyond is a slip of the unit or a damaged file, and the motors
# would get it.
Gain = Annotated[float, Bound(0, 1e5, "N m/rad")]
DampingGain = Annotated[float, Bound(0, 1e4, "N m s/rad")]
Friction = Annotated[float, Bound(0, 1e4, "N m")]
Damping = Annotated[float, Bound(0, 1e4, "N m s/rad")]
Inertia = Annotated[float, Bound(0, 1e3, "kg m^2")]
Torque = Annotated[float, Bound(0, 1e5, "N m")]
Speed = Annotated[float, Bound(0, 1e4, "rad/s")]
Angle = Annotated[float, Bound(-1e3, 1e3, "radians")]


@dataclass(frozen=True, kw_only=True)
class _Spec(Settings):
    """Settings that travel as JSON; a message says whose they are by name."""

    error: ClassVar[type[SettingsError]] = SpecError
    noun: ClassVar[str] = ""
    what: ClassVar[str] = ""

    def who(self) -> str:
        name = getattr(self, "name", None)
        named = f" {name}" if isinstance(name, str) and name else ""
        return f"{self.what}{named}: " if self.what else ""

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values; `from_json` of it is equal to this."""
        return self.to_dict()

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse of `to_json`.

        Raises:
            SpecError: a key is missing, unknown or of the wrong kind.
        """
        if not isinstance(data, dict):
            raise SpecError(f"{cls.__name__}: got {type(data).__name__!r}, expected a JSON object")
        return cls.from_dict(data)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def _require_shape(self, shape: tuple[int, ...]) -> None:
        small = len(shape) <= 8 and all(0 < n <= MAX_ELEMENTS for n in shape) and math.prod(shape) <= MAX_ELEMENTS
        self.require(small, "shape", shape, f"at most 8 positive integers, {MAX_ELEMENTS} elements in all")


@dataclass(frozen=True, kw_only=True)
class JointSpec(_Spec):
    """One actuated hinge.

    Attributes:
        name: the joint's name in the model and in the bundle.
        id: the actuator's id on the bus.
        kp: position gain [N m/rad].
        kd: velocity gain [N m s/rad].
        torque_limit_nm: the limit that the controller sets [N m], at most `torque_max_nm`.
        torque_max_nm: what the actuator can give at standstill [N m].
        velocity_max_rad_s: the speed at which it gives nothing [rad/s].
        armature: rotor inertia seen at the joint [kg m^2].
        friction_nm: Coulomb friction [N m].
        damping: viscous friction [N m s/rad].
        lower_rad: lower position limit [rad].
        upper_rad: upper position limit [rad].
        home_rad: the joint's angle in the home pose [rad].
        actuator_type: the type in the metadata.
    """

    name: str
    id: Annotated[int, Bound(0, 2**32 - 1, "an id")]
    kp: Gain
    kd: DampingGain
    torque_limit_nm: Torque
    torque_max_nm: Torque
    velocity_max_rad_s: Speed
    armature: Inertia
    friction_nm: Friction
    damping: Damping
    lower_rad: Angle
    upper_rad: Angle
    home_rad: float
    actuator_type: str
    what: ClassVar[str] = "joint"

    def check(self) -> None:
        self.require(bool(self.name), "name", self.name, "a non-empty string")
        self.require(
            0 < self.torque_limit_nm <= self.torque_max_nm,
            "torque_limit_nm",
            self.torque_limit_nm,
            f"more than 0 and at most torque_max_nm ({self.torque_max_nm})",
        )
        self.require(self.velocity_max_rad_s > 0, "velocity_max_rad_s", self.velocity_max_rad_s, "more than 0")
        low, high = self.lower_rad, self.upper_rad
        self.require(low < high, "lower_rad and upper_rad", (low, high), "lower below upper")
        self.require(low <= self.home_rad <= high, "home_rad", self.home_rad, f"within the limits [{low}, {high}]")


@dataclass(frozen=True, kw_only=True)
class RobotSpec(_Spec):
    """A robot: its joints in the order that every vector of joints has.

    Attributes:
        name: the robot's name.
        joints: the actuated joints, in order.
        control_period_s: the robot's control period [s].
        mass_kg: total mass [kg], 0 where the description does not give it.
        imu_site: the site (MJCF) or link (URDF) that the IMU sits at; its frame is the IMU's.
        foot_sites: sites or bodies of the feet, one touch sensor each.
        source: digest of the description's files, empty where there are none.
    """

    name: str
    joints: tuple[JointSpec, ...]
    control_period_s: float = 0.02
    mass_kg: float = 0.0
    imu_site: str = ""
    foot_sites: tuple[str, ...] = ()
    source: str = ""
    what: ClassVar[str] = "robot"

    def check(self) -> None:
        self.require(bool(self.joints), "joints", (), "at least one joint")
        for what, values in (("joint names", self.joint_names), ("joint ids", self.joint_ids)):
            twice = sorted({v for v in values if values.count(v) > 1})  # type: ignore[arg-type]
            self.require(not twice, what, twice, "each once")
        self.require(0 < self.control_period_s <= 1, "control_period_s", self.control_period_s, "(0, 1]")
        self.require(self.mass_kg >= 0, "mass_kg", self.mass_kg, "0 or more")

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints, in order."""
        return tuple(j.name for j in self.joints)

    @property
    def joint_ids(self) -> tuple[int, ...]:
        """Actuator ids of the joints, in order."""
        return tuple(j.id for j in self.joints)

    def column(self, field_name: str) -> list[float]:
        """One number per joint, in order: `robot.column("kp")`."""
        return [getattr(j, field_name) for j in self.joints]

    def joint(self, name: str) -> JointSpec:
        """A joint by name.

        Raises:
            SpecError: there is no such joint; the message lists those there are.
        """
        for j in self.joints:
            if j.name == name:
                return j
        raise SpecError(f"robot {self.name}: no joint {name!r}; it has {', '.join(self.joint_names)}")


@dataclass(frozen=True, kw_only=True)
class ArraySpec(_Spec):
    """An array before it exists.

    Attributes:
        name: the .kinfer name.
        shape: its shape.
        unit: unit of its elements, e.g. "rad".
        frame: the frame it is expressed in, e.g. "imu"; empty where that means nothing.
        low: the least value that can be meant, one for all elements or one each.
        high: the greatest value that can be meant, likewise.
    """

    name: str
    shape: tuple[int, ...]
    unit: str
    frame: str = ""
    low: Annotated[tuple[float, ...], Bound(-math.inf, math.inf, "numbers")] = (-math.inf,)
    high: Annotated[tuple[float, ...], Bound(-math.inf, math.inf, "numbers")] = (math.inf,)
    what: ClassVar[str] = "array"

    def __post_init__(self) -> None:
        for what, endless in (("low", -math.inf), ("high", math.inf)):
            values = getattr(self, what)
            if isinstance(values, (list, tuple)):  # JSON has no infinity; None stands for it
                object.__setattr__(self, what, tuple(endless if v is None else v for v in values))
        super().__post_init__()

    def check(self) -> None:
        self.require(bool(self.name), "name", self.name, "a non-empty string")
        self._require_shape(self.shape)
        size = math.prod(self.shape)
        for what, values in (("low", self.low), ("high", self.high)):
            self.require(len(values) in (1, size), what, len(values), f"1 or {size} numbers")
        lows, highs = (v * size if len(v) == 1 else v for v in (self.low, self.high))
        self.require(all(a <= b for a, b in zip(lows, highs, strict=True)), "low", self.low, "low at most high")

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        for what in ("low", "high"):
            data[what] = [v if math.isfinite(v) else None for v in data[what]]
        return data


@dataclass(frozen=True, kw_only=True)
class CommandSpec(_Spec):
    """One element of the command vector, with the range that the policy was trained for."""

    name: str
    low: float
    high: float
    unit: str = ""
    what: ClassVar[str] = "command"

    def check(self) -> None:
        self.require(self.low <= self.high, "low", self.low, f"at most high ({self.high})")


@dataclass(frozen=True, kw_only=True)
class CarrySpec(_Spec):
    """One part of the flat carry; parts follow one another, each in row-major order."""

    name: str
    shape: tuple[int, ...]
    what: ClassVar[str] = "carry part"

    def check(self) -> None:
        self.require(bool(self.name), "name", self.name, "a non-empty string")
        self._require_shape(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class PolicySpec(_Spec):
    """All that training and deployment must agree on; travels in the bundle at full precision.

    Attributes:
        task: the task's name.
        robot: the robot it was trained for, with the gains, limits and home pose of training.
        inputs: what `step` reads, by .kinfer name, without the carry.
        commands: the elements of the input `command`, in order.
        carry_size: length of the flat carry.
        carry_layout: what the flat carry holds, in order; empty where that is not known.
        control_period_s: the period it was trained at [s].
        action_low_rad: least target of each joint [rad].
        action_high_rad: greatest target of each joint [rad].
        observation_latency_s: least and greatest observation latency in training [s].
        action_latency_s: least and greatest action latency in training [s].
        weights_digest: digest of the parameters.
        config_digest: digest of the resolved training configuration.
        versions: versions of the packages that made it.
        training: the settings of training that a user would ask for, by name.
        proofs: figures of the validation, by name; empty when not validated. `failures`, where it is there and
            not empty, lists what did not hold.
        envelope: least and greatest value of each element of each input that the policy met in simulation:
            {input: {"low": [...], "high": [...]}}.
        self_test: inputs of successive steps from the first carry on, and what the policy made of them, for the
            robot's computer to run again: {"inputs": {name: [[...], ...]}, "actions": [[...], ...],
            "carry": [...], "tolerance": number}; `carry` is the one after the last step. Where it is there, "parts"
            names what the steps are, in order: [{"name": ..., "steps": number, "reset": true or false}, ...]; a part
            with `reset` begins with the first carry.
        margins: how late readings and commands may be; None where that was not measured.
    """

    task: str
    robot: RobotSpec
    inputs: tuple[ArraySpec, ...]
    commands: tuple[CommandSpec, ...]
    carry_size: int
    control_period_s: float
    action_low_rad: tuple[float, ...]
    action_high_rad: tuple[float, ...]
    observation_latency_s: tuple[float, ...] = (0.0, 0.0)
    action_latency_s: tuple[float, ...] = (0.0, 0.0)
    weights_digest: str = ""
    config_digest: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    carry_layout: tuple[CarrySpec, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    proofs: dict[str, Any] = field(default_factory=dict)
    envelope: dict[str, Any] = field(default_factory=dict)
    self_test: dict[str, Any] = field(default_factory=dict)
    margins: Margins | None = None

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        if self.margins is None:  # as bundles were written before there were any: their digests stay
            del data["margins"]
        return data

    def check(self) -> None:
        n = len(self.robot.joints)
        self.require(0 <= self.carry_size <= MAX_ELEMENTS, "carry_size", self.carry_size, f"0 to {MAX_ELEMENTS}")
        self.require(0 < self.control_period_s <= 1, "control_period_s", self.control_period_s, "(0, 1]")
        for what in ("action_low_rad", "action_high_rad"):
            count = len(getattr(self, what))
            self.require(count == n, what, f"{count} numbers", f"one for each of the {n} joints")
        pairs = zip(self.action_low_rad, self.action_high_rad, strict=True)
        self.require(all(a <= b for a, b in pairs), "action_low_rad", self.action_low_rad, "at most action_high_rad")
        for what in ("observation_latency_s", "action_latency_s"):
            span = getattr(self, what)
            self.require(len(span) == 2 and 0 <= span[0] <= span[1], what, span, "least and greatest, 0 or more")
        for what, names in (("inputs", [a.name for a in self.inputs]), ("commands", [c.name for c in self.commands])):
            self.require(len(set(names)) == len(names), what, names, "each name once")
        laid_out = sum(part.size for part in self.carry_layout)
        self.require(laid_out in (0, self.carry_size), "carry_layout", f"{laid_out} elements", f"{self.carry_size}")
        command = next((a for a in self.inputs if a.name == "command"), None)
        if command is not None:
            self.require(
                command.shape == (len(self.commands),),
                "input command: shape",
                command.shape,
                f"({len(self.commands)},), one for each command",
            )

    @property
    def command_names(self) -> tuple[str, ...]:
        """Names of the commands, in order."""
        return tuple(c.name for c in self.commands)

    @property
    def validated(self) -> bool:
        """The export was proven to be the policy, and nothing failed."""
        return bool(self.proofs) and not self.proofs.get("failures")

    def reduced(self) -> str:
        """Where the proofs are less than the full ones, what they are; empty where they are full."""

        def steps(value: Any) -> int:
            return value if isinstance(value, int) else 0

        numbers, loops = self.proofs.get("numbers"), self.proofs.get("closed_loop")
        recorded = numbers.get("recorded") if isinstance(numbers, dict) else None
        loops = list(loops.values()) if isinstance(loops, dict) else []
        made = steps(recorded.get("steps")) if isinstance(recorded, dict) else 0
        given = self.proofs.get("recording")
        if isinstance(given, dict):  # fewer are repeated, which proves no more
            made = min(made, steps(given.get("steps")))
        episodes = max((steps(v.get("episodes")) for v in loops if isinstance(v, dict)), default=0)
        if made >= FULL_STEPS and episodes >= FULL_EPISODES:
            return ""
        if not episodes:
            few = "" if made >= FULL_STEPS else f"{made:,} steps in place of {FULL_STEPS:,}, and "
            return f"{few}numbers alone, not run in simulation"
        return f"{made:,} steps and {episodes} episodes, in place of {FULL_STEPS:,} and {FULL_EPISODES}"

    def contract(self) -> PolicySpec:
        """Without what validation adds after the graphs are made: proofs, envelope, self-test, margins."""
        return self.replace(proofs={}, envelope={}, self_test={}, margins=None)


def input_specs(robot: RobotSpec, commands: tuple[CommandSpec, ...], *, old: bool = False) -> dict[str, ArraySpec]:
    """Every input that a .kinfer policy may read, by name, with units, frames and ranges: robots/inputs.py's table.

    Args:
        robot: whose joints and limits they are.
        commands: the elements of the input `command`; without any there is no such input.
        old: with those of files from before kinfer 0.6.
    """
    specs = {}
    for row in POLICY_INPUTS:
        size = row.length(len(robot.joints), len(commands))
        if size and (old or not row.old):
            low, high = row.range_of(robot, commands)
            specs[row.name] = ArraySpec(
                name=row.name, shape=(size,), unit=row.unit, frame=row.frame, low=low, high=high
            )
    return specs
