"""What a robot and a policy are: frozen, validated, JSON in and out without loss, a digest each.

Everything is in SI and radians, and everything that has an order carries its names.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from robots.errors import SpecError
from toolkit.strict_json import canonical_json as canonical_json
from toolkit.strict_json import digest as digest

# What a full proof has of recorded steps and of episodes in closed loop; less is easier to pass by chance.
FULL_STEPS, FULL_EPISODES = 10_000, 200
# Elements of one array; what is read from a file may not ask for more memory than this.
MAX_ELEMENTS = 1_000_000


def _check_shape(who: str, shape: tuple[int, ...]) -> None:
    small = len(shape) <= 8 and all(0 < n <= MAX_ELEMENTS for n in shape) and math.prod(shape) <= MAX_ELEMENTS
    _check(small, f"{who}: shape", shape, f"at most 8 positive integers, {MAX_ELEMENTS} elements in all")


def _check(ok: bool, what: str, got: object, expected: str) -> None:
    if not ok:
        said = repr(got) if not isinstance(got, int) or abs(got) < 10**40 else "an integer beyond 10^40"
        said = said if len(said) <= 400 else f"{said[:400]} ..."
        raise SpecError(f"{what}: got {said}, expected {expected}")


def _finite(what: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # an integer beyond every float is none
    _check(number and abs(value) <= sys.float_info.max, what, value, "a finite number")  # type: ignore[operator]


def _settle_value(what: str, kind: str, value: Any, kinds: dict[str, type]) -> Any:
    """A value of the declared type, integers made floats where floats are declared."""
    if kind.startswith("tuple["):
        _check(isinstance(value, tuple), what, value, "a tuple")
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_settle_value(what, inner, v, kinds) for v in value)
    if kind.startswith("dict["):
        _check(isinstance(value, dict) and all(isinstance(k, str) for k in value), what, value, "a dict of names")
        inner = kind.removeprefix("dict[str, ").removesuffix("]")
        return (
            value if inner == "Any" else {k: _settle_value(f"{what}: {k}", inner, v, kinds) for k, v in value.items()}
        )
    if kind == "float":
        _finite(what, value)
        return float(value)
    if kind == "int":
        _check(isinstance(value, int) and not isinstance(value, bool), what, value, "an integer")
    elif kind == "str":
        _check(isinstance(value, str), what, value, "text")
    else:
        _check(isinstance(value, kinds[kind]), what, value, f"a {kind}")
    return value


class _Json:
    """JSON in and out for frozen dataclasses of numbers, strings, tuples and each other."""

    _nested: ClassVar[dict[str, type[_Json]]] = {}

    def _settle(self, who: str, skip: tuple[str, ...] = ()) -> None:
        """Check every field against its declared type."""
        kinds: dict[str, type] = {kind.__name__: kind for kind in self._nested.values()}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            if f.name not in skip:
                value = _settle_value(f"{who}{f.name}", str(f.type), getattr(self, f.name), kinds)
                object.__setattr__(self, f.name, value)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values; `from_json` of it is equal to this."""

        def plain(value: Any) -> Any:
            if isinstance(value, _Json):
                return value.to_json()
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return value

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse of `to_json`.

        Raises:
            SpecError: a key is missing, unknown or of the wrong kind.
        """
        _check(isinstance(data, dict), cls.__name__, type(data).__name__, "a JSON object")
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(data) - set(fields))
        _check(not unknown, f"{cls.__name__} keys", unknown, f"only {sorted(fields)}")
        required = {
            n
            for n, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - set(data))
        _check(not missing, f"{cls.__name__} keys", f"none of {missing}", "all of them")

        def rich(name: str, value: Any) -> Any:
            kind = cls._nested.get(name)
            if kind is None:
                return tuple(value) if isinstance(value, list) else value
            if not str(fields[name].type).startswith("tuple["):
                return kind.from_json(value)
            _check(isinstance(value, list), f"{cls.__name__}: {name}", value, "a list")
            return tuple(kind.from_json(v) for v in value)

        try:
            return cls(**{n: rich(n, v) for n, v in data.items()})
        except (TypeError, AttributeError) as error:
            raise SpecError(f"{cls.__name__}: {error}") from error

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.to_json())


# What no joint of a legged robot exceeds; a figure beyond is a slip of the unit or a damaged file, and the motors
# would get it.
_JOINT_BOUNDS = {
    **{"kp": 1e5, "kd": 1e4, "armature": 1e3, "friction_nm": 1e4, "damping": 1e4, "torque_max_nm": 1e5},
    **{"velocity_max_rad_s": 1e4, "lower_rad": 1e3, "upper_rad": 1e3},
}


@dataclass(frozen=True, kw_only=True)
class JointSpec(_Json):
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
    id: int
    kp: float
    kd: float
    torque_limit_nm: float
    torque_max_nm: float
    velocity_max_rad_s: float
    armature: float
    friction_nm: float
    damping: float
    lower_rad: float
    upper_rad: float
    home_rad: float
    actuator_type: str

    def __post_init__(self) -> None:
        _check(isinstance(self.name, str) and bool(self.name), "joint name", self.name, "a non-empty string")
        who = f"joint {self.name}"
        self._settle(f"{who}: ")
        _check(0 <= self.id < 2**32, f"{who}: id", self.id, "an integer from 0 to 2^32-1")
        for name, most in _JOINT_BOUNDS.items():
            value = getattr(self, name)
            low = -most if name.endswith("_rad") else 0.0
            _check(low <= value <= most, f"{who}: {name}", value, f"{low:g} to {most:g}")
        _check(
            0 < self.torque_limit_nm <= self.torque_max_nm,
            f"{who}: torque_limit_nm",
            self.torque_limit_nm,
            f"more than 0 and at most torque_max_nm ({self.torque_max_nm})",
        )
        _check(self.velocity_max_rad_s > 0, f"{who}: velocity_max_rad_s", self.velocity_max_rad_s, "more than 0")
        _check(
            self.lower_rad < self.upper_rad,
            f"{who}: lower_rad and upper_rad",
            (self.lower_rad, self.upper_rad),
            "lower below upper",
        )
        _check(
            self.lower_rad <= self.home_rad <= self.upper_rad,
            f"{who}: home_rad",
            self.home_rad,
            f"within the limits [{self.lower_rad}, {self.upper_rad}]",
        )


@dataclass(frozen=True, kw_only=True)
class RobotSpec(_Json):
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
    _nested: ClassVar[dict[str, type[_Json]]] = {"joints": JointSpec}

    def __post_init__(self) -> None:
        self._settle(f"robot {self.name}: ")
        _check(bool(self.joints), f"robot {self.name}: joints", (), "at least one joint")
        for what, values in (("joint names", self.joint_names), ("joint ids", self.joint_ids)):
            twice = sorted({v for v in values if values.count(v) > 1})  # type: ignore[arg-type]
            _check(not twice, f"robot {self.name}: {what}", twice, "each once")
        _check(0 < self.control_period_s <= 1, f"robot {self.name}: control_period_s", self.control_period_s, "(0, 1]")
        _check(self.mass_kg >= 0, f"robot {self.name}: mass_kg", self.mass_kg, "0 or more")

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
class ArraySpec(_Json):
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
    low: tuple[float, ...] = (-math.inf,)
    high: tuple[float, ...] = (math.inf,)

    def __post_init__(self) -> None:
        _check(isinstance(self.name, str) and bool(self.name), "array name", self.name, "a non-empty string")
        who = f"array {self.name}"
        self._settle(f"{who}: ", skip=("low", "high"))
        _check_shape(who, self.shape)
        size = math.prod(self.shape)
        for what in ("low", "high"):
            values = getattr(self, what)
            known = isinstance(values, tuple) and all(
                v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in values
            )
            _check(known, f"{who}: {what}", values, "a tuple of numbers")
            # JSON has no infinity; None stands for it
            values = tuple((-math.inf if what == "low" else math.inf) if v is None else float(v) for v in values)
            object.__setattr__(self, what, values)
            _check(len(values) in (1, size), f"{who}: {what}", len(values), f"1 or {size} numbers")
        lows, highs = (v * size if len(v) == 1 else v for v in (self.low, self.high))
        _check(all(a <= b for a, b in zip(lows, highs, strict=True)), f"{who}: low", self.low, "low at most high")

    def to_json(self) -> dict[str, Any]:
        data = super().to_json()
        for what in ("low", "high"):
            data[what] = [v if math.isfinite(v) else None for v in data[what]]
        return data


@dataclass(frozen=True, kw_only=True)
class CommandSpec(_Json):
    """One element of the command vector, with the range that the policy was trained for."""

    name: str
    low: float
    high: float
    unit: str = ""

    def __post_init__(self) -> None:
        self._settle(f"command {self.name}: ")
        _check(self.low <= self.high, f"command {self.name}: low", self.low, f"at most high ({self.high})")


@dataclass(frozen=True, kw_only=True)
class CarrySpec(_Json):
    """One part of the flat carry; parts follow one another, each in row-major order."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self._settle(f"carry part {self.name}: ")
        _check(bool(self.name), "carry part: name", self.name, "a non-empty string")
        _check_shape(f"carry part {self.name}", self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class PolicySpec(_Json):
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
            "carry": [...], "tolerance": number}; `carry` is the one after the last step.
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
    _nested: ClassVar[dict[str, type[_Json]]] = {
        "robot": RobotSpec,
        "inputs": ArraySpec,
        "commands": CommandSpec,
        "carry_layout": CarrySpec,
    }

    def __post_init__(self) -> None:
        self._settle("")
        n = len(self.robot.joints)
        _check(0 <= self.carry_size <= MAX_ELEMENTS, "carry_size", self.carry_size, f"0 to {MAX_ELEMENTS}")
        _check(0 < self.control_period_s <= 1, "control_period_s", self.control_period_s, "(0, 1]")
        for what in ("action_low_rad", "action_high_rad"):
            count = len(getattr(self, what))
            _check(count == n, what, f"{count} numbers", f"one for each of the {n} joints")
        pairs = zip(self.action_low_rad, self.action_high_rad, strict=True)
        _check(all(a <= b for a, b in pairs), "action_low_rad", self.action_low_rad, "at most action_high_rad")
        for what in ("observation_latency_s", "action_latency_s"):
            span = getattr(self, what)
            _check(len(span) == 2 and 0 <= span[0] <= span[1], what, span, "least and greatest, 0 or more")
        for what, names in (("inputs", [a.name for a in self.inputs]), ("commands", [c.name for c in self.commands])):
            _check(len(set(names)) == len(names), what, names, "each name once")
        laid_out = sum(part.size for part in self.carry_layout)
        _check(laid_out in (0, self.carry_size), "carry_layout", f"{laid_out} elements", f"{self.carry_size}")
        command = next((a for a in self.inputs if a.name == "command"), None)
        if command is not None:
            _check(
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
        """Without what validation adds after the graphs are made: proofs, envelope, self-test."""
        return self.replace(proofs={}, envelope={}, self_test={})


def input_specs(robot: RobotSpec, commands: tuple[CommandSpec, ...]) -> dict[str, ArraySpec]:
    """Every input that a .kinfer policy may read, by name, with units, frames and ranges.

    Source: the kinfer 0.6 contract; ranges are the robot's limits with a margin, or the sensor's.
    """
    n = len(robot.joints)
    fast = tuple(1.5 * v for v in robot.column("velocity_max_rad_s"))
    slack = 0.2  # zero offsets and limit overshoot [rad]
    specs = [
        ArraySpec(
            name="joint_angles",
            shape=(n,),
            unit="rad",
            low=tuple(v - slack for v in robot.column("lower_rad")),
            high=tuple(v + slack for v in robot.column("upper_rad")),
        ),
        ArraySpec(
            name="joint_angular_velocities",
            shape=(n,),
            unit="rad/s",
            low=tuple(-v for v in fast),
            high=fast,
        ),
        ArraySpec(name="projected_gravity", shape=(3,), unit="m/s^2", frame="imu", low=(-9.82,), high=(9.82,)),
        ArraySpec(name="accelerometer", shape=(3,), unit="m/s^2", frame="imu", low=(-160.0,), high=(160.0,)),
        ArraySpec(name="gyroscope", shape=(3,), unit="rad/s", frame="imu", low=(-35.0,), high=(35.0,)),
        ArraySpec(name="time", shape=(1,), unit="s", low=(0.0,)),
    ]
    if commands:
        specs.append(
            ArraySpec(
                name="command",
                shape=(len(commands),),
                unit="mixed",
                low=tuple(c.low for c in commands),
                high=tuple(c.high for c in commands),
            )
        )
    return {s.name: s for s in specs}
