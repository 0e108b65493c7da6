"""The description of a policy that came as an ONNX file: what its observation holds and what its action means.

The file itself says only `obs` [1, N] -> `actions` [1, A]. docs/policies_from_elsewhere.md explains every key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from export.errors import ExportError
from export.onnx_metadata import TERMS
from robots.inputs import BY_NAME, COMMANDS, JOINTS
from toolkit.errors import SettingsError
from toolkit.setting_values import nearest
from toolkit.settings import Bound, Range, Settings

LAST_ACTION, PHASE, CONSTANT, COMMAND = "last_action", "phase", "constant", "command"
GRAVITY = "projected_gravity"
# What a robot measures or is told, and what the policy knows by itself. There is no `time`: K-Bots do not give it.
MEASURED = tuple(row.name for row in BY_NAME.values() if not row.old and row.name != "time")
SOURCES = (*MEASURED, LAST_ACTION, PHASE, CONSTANT)
# Names that other toolkits give terms which no robot of ours can measure.
_UNMEASURED = ("base_lin_vel", "base_height", "height_scan", "foot_contact", "body_lin_vel")

Numbers = float | tuple[float, ...] | dict[str, float]
_ANY = Bound(-1e6, 1e6, "in the term's unit")


class SpecFileError(ExportError, SettingsError):
    """A description of an ONNX file is wrong in itself."""


@dataclass(frozen=True, kw_only=True)
class _OnnxSettings(Settings):
    error: ClassVar[type[SettingsError]] = SpecFileError
    noun: ClassVar[str] = "key "


@dataclass(frozen=True, kw_only=True)
class History(_OnnxSettings):
    """The same values of several steps, the present one included.

    Attributes:
        length: how many steps.
        order: which comes first.
        fill: what stands for the steps before the first: the first values themselves, or zeros.
        of: at the top of the file: `terms`, each term's own history in its place; `frame`, whole observations one
            after the other. Under a term it means nothing.
    """

    length: Annotated[int, Bound(1, 1000, "steps")]
    order: Literal["oldest_first", "newest_first"] = "oldest_first"
    fill: Literal["first", "zeros"] = "first"
    of: Literal["terms", "frame"] = "terms"


@dataclass(frozen=True, kw_only=True)
class Term(_OnnxSettings):
    """Some values of the observation that follow one another: `clip(x - offset) * scale`.

    Attributes:
        input: which of the policy's inputs it is, or last_action, phase, constant.
        joints: of a vector of joints, which ones in which order; by default `joints` of the file.
        commands: of `command`, which ones in which order; by default all.
        unit: of projected_gravity: unit_vector (0, 0, -1 upright), or m/s^2.
        offset: is taken off first: numbers, or default_pose; by default default_pose for joint_angles, else 0.
        clip: least and greatest value after that, before the scale, as Isaac Lab and mjlab have it.
        scale: one number, or one for each value.
        period_s: of `phase`, how long a cycle takes [s].
        starts: of `phase`, where in the cycle each clock begins [cycles]: [0, 0.5] is two feet in turn.
        form: of `phase`, what is made of the clocks; each form of all clocks, then the next form.
        value: of `constant`.
        history: of this term alone.
    """

    shorthand: ClassVar[str] = "input"

    input: str
    joints: tuple[str, ...] | None = None
    commands: tuple[str, ...] | None = None
    unit: Literal["unit_vector", "m/s^2"] = "unit_vector"
    offset: Annotated[Literal["default_pose"] | Numbers | None, _ANY] = None
    clip: Annotated[Range | None, _ANY] = None
    scale: Annotated[Numbers, _ANY] = 1.0
    period_s: Annotated[float | None, Bound(1e-3, 1e3, "seconds")] = None
    starts: Annotated[tuple[float, ...], Bound(0, 1, "cycles")] = (0.0,)
    form: tuple[Literal["sin", "cos", "phase"], ...] = ("sin", "cos")
    value: Annotated[float | tuple[float, ...] | None, _ANY] = None
    history: History | None = None

    def check(self) -> None:
        if self.input not in SOURCES:
            hint = nearest(self.input, SOURCES)
            if any(word in self.input for word in _UNMEASURED):
                hint = "no robot of ours measures it; train the actor without it"
            elif self.input in TERMS:
                hint = f"it is {TERMS[self.input]} here"
            raise SpecFileError(f"got {self.input!r}; {hint}", key="input", noun=self.noun)
        for key, given, of in (
            ("joints", self.joints is not None, [i for i in MEASURED if BY_NAME[i].size == JOINTS]),
            ("commands", self.commands is not None, [i for i in MEASURED if BY_NAME[i].size == COMMANDS]),
            ("unit", self.unit != "unit_vector", [GRAVITY]),
            ("period_s", self.period_s is not None, [PHASE]),
            ("value", self.value is not None, [CONSTANT]),
        ):
            self.require(not given or self.input in of, key, f"one for {self.input}", f"it for {' or '.join(of)} alone")
        self.require(self.input != PHASE or self.period_s is not None, "period_s", None, "the cycle's length [s]")
        self.require(self.input != PHASE or bool(self.starts and self.form), "starts and form", "none", "one or more")
        self.require(self.input != CONSTANT or self.value is not None, "value", None, "a number or a list")
        pose = self.offset == "default_pose"
        self.require(not pose or self.input == "joint_angles", "offset", self.offset, "default_pose for joint_angles")


@dataclass(frozen=True, kw_only=True)
class Action(_OnnxSettings):
    """What the policy's output means: target = clip(output) * scale + offset [rad].

    Attributes:
        joints: which ones in which order; by default `joints` of the file.
        clip: least and greatest value of the output; last_action is the output after it.
        scale: one number, or one for each joint.
        offset: likewise [rad]; by default default_pose.
        clip_target: least and greatest target [rad]: of all, by joint, or joint_limits.
    """

    joints: tuple[str, ...] | None = None
    clip: Annotated[Range | None, Bound(-1e6, 1e6, "of the output")] = None
    scale: Annotated[Numbers | None, Bound(-100, 100, "radians")] = None
    offset: Annotated[Literal["default_pose"] | Numbers, Bound(-10, 10, "radians")] = "default_pose"
    clip_target: Annotated[Literal["joint_limits"] | Range | dict[str, Range] | None, Bound(-10, 10, "radians")] = None


@dataclass(frozen=True, kw_only=True)
class Gains(_OnnxSettings):
    """Gains of training, where they are not the robot's: one number, a list in the order of `joints`, or by joint.

    Attributes:
        kp: [N m/rad].
        kd: [N m s/rad].
    """

    kp: Annotated[Numbers | None, Bound(0, 1e5, "N m/rad")] = None
    kd: Annotated[Numbers | None, Bound(0, 1e4, "N m s/rad")] = None


@dataclass(frozen=True, kw_only=True)
class OnnxSpec(_OnnxSettings):
    """All of a description.

    Attributes:
        robot: name or folder.
        task: what to call the policy; by default the file's name.
        control_period_s: at which it was trained [s]; by default the robot's.
        joints: the order that joints have in training; by default the file's own metadata, else the robot's.
        default_pose: by joint [rad], or in the order of `joints`; by default the metadata, else the robot's home.
        gains: see Gains; by default the metadata, else the robot's.
        commands: name and trained range of each element of the command, in order.
        observation: the terms in order; by default the metadata's observation_names.
        history: of all terms or of the whole observation.
        clip: of the whole observation at the end, as legged_gym has it; one number is both ends.
        action: see Action.
        states: names of recurrent inputs and the outputs that follow them, where they are not X_in and X_out.
    """

    robot: str = "kbot"
    task: str = ""
    control_period_s: Annotated[float | None, Bound(1e-4, 1, "seconds")] = None
    joints: tuple[str, ...] | None = None
    default_pose: Annotated[tuple[float, ...] | dict[str, float] | None, Bound(-10, 10, "radians")] = None
    gains: Gains = Gains()
    commands: Annotated[dict[str, Range] | None, Bound(-1e4, 1e4, "in the command's unit")] = None
    observation: tuple[Term, ...] | None = None
    history: History | None = None
    clip: Annotated[float | Range | None, Bound(-1e6, 1e6, "of the observation")] = None
    action: Action = Action()
    states: dict[str, str] | None = None
