"""A description of an ONNX policy resolved by name, in numbers: each value of the observation, each target.

The description, what the file says of itself and the robot's folder must agree; where two of them differ, both are
told. What was taken from the file or the folder is noted, a line each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from export.errors import ExportError
from export.onnx_file import OnnxFile
from export.onnx_metadata import TERMS, Metadata, Rounded
from export.onnx_spec import COMMAND, CONSTANT, GRAVITY, LAST_ACTION, PHASE, History, OnnxSpec, Term
from robots.inputs import BY_NAME, JOINT_ANGLES, JOINTS
from robots.load import load_robot
from robots.rotation import GRAVITY_M_S2
from robots.spec import CommandSpec, PolicySpec, RobotSpec, digest, input_specs
from toolkit.errors import ToolkitError
from toolkit.setting_values import nearest

# Steps of a gait's cycle are counted as whole numbers, which float32 has exactly: period / control period is taken as
# the nearest fraction with a denominator up to this.
_CYCLE_PARTS = 500
_FEW_NAMES = 4
# Numbers of a file's metadata have three decimals.
_ROUNDED = 1e-3


@dataclass(frozen=True, kw_only=True)
class PlannedTerm:
    """A term in numbers: values [index] of a source, divided, less offset, clipped, scaled, remembered.

    Attributes:
        label: for messages: its place, its name in the file, its source.
        source: which input, or last_action, phase, constant.
        index: which elements of it, in order.
        divisor: m/s^2 to a unit vector.
        offset: (k,).
        clip: least and greatest, or None.
        scale: (k,).
        history: its own.
        clock: of `phase`, which clock of the plan.
        starts: of `phase` [cycles].
        form: of `phase`.
    """

    label: str
    source: str
    index: tuple[int, ...]
    divisor: float
    offset: np.ndarray
    clip: tuple[float, float] | None
    scale: np.ndarray
    history: History | None
    clock: int = -1
    starts: tuple[float, ...] = ()
    form: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Values of one step."""
        return len(self.scale)

    @property
    def size(self) -> int:
        """Values in the observation."""
        return self.width * (self.history.length if self.history else 1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the graph does around the file's own.

    Attributes:
        spec: of the bundle, without carry.
        terms: of the observation, in order.
        frame: history of whole observations.
        clip: of the observation.
        cycles: of each clock, (parts that a step adds, parts of a cycle).
        driven: for each action, which joint of the robot.
        action_clip: of the output.
        scale: (actions,).
        offset: (actions,) [rad].
        held: what joints without an action are told, (joints,) [rad].
        target_low: (joints,) [rad], or None where targets are not clipped.
        target_high: likewise.
        notes: what was taken from where, one line each.
    """

    spec: PolicySpec
    terms: tuple[PlannedTerm, ...]
    frame: History | None
    clip: tuple[float, float] | None
    cycles: tuple[tuple[int, int], ...]
    driven: tuple[int, ...]
    action_clip: tuple[float, float] | None
    scale: np.ndarray
    offset: np.ndarray
    held: np.ndarray
    target_low: np.ndarray | None
    target_high: np.ndarray | None
    notes: tuple[str, ...]

    @property
    def frame_width(self) -> int:
        """Values of one step's observation."""
        return sum(term.size for term in self.terms)

    @property
    def size(self) -> int:
        """Values of the observation."""
        return self.frame_width * (self.frame.length if self.frame else 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs that the observation has values of, in the table's order."""
        sources = {term.source for term in self.terms}
        return tuple(name for name in BY_NAME if name in sources)


def _as_tuple(value: Any) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, (int, float)) else tuple(value)


def _spread(value: Any, names: Sequence[str], key: str, each: str) -> np.ndarray:
    """One number for each name: from one, a list, or a mapping of names (with * and ?) to numbers."""
    if isinstance(value, Mapping):
        out, unused = [], set(value)
        for name in names:
            found = [k for k in value if fnmatch.fnmatchcase(name, k)]
            if len(found) != 1:
                got = "twice: by " + ", ".join(found) if found else f"none for {name}"
                raise ExportError(f"key {key}: got {got}, expected one number for each of {_few(names)}")
            out.append(value[found[0]])
            unused -= set(found)
        if unused:
            raise ExportError(f"key {key}: {sorted(unused)[0]!r} is none of them; {nearest(sorted(unused)[0], names)}")
        return np.asarray(out)
    numbers = _as_tuple(value)
    if len(numbers) not in (1, len(names)):
        raise ExportError(f"key {key}: got {len(numbers)} numbers, expected 1 or {len(names)}, one for each {each}")
    return np.asarray(numbers * len(names) if len(numbers) == 1 else numbers, float)


def _few(names: Sequence[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _FEW_NAMES} more" if len(names) > _FEW_NAMES else ""
    return ", ".join(names[:_FEW_NAMES]) + more


@contextlib.contextmanager
def _noted(wrong: list[str]) -> Iterator[None]:
    """What is raised within is noted, so that all of it is told at once."""
    try:
        yield
    except ExportError as error:
        wrong.append(str(error))


class _Planner:
    def __init__(self, spec: OnnxSpec, file: OnnxFile, metadata: Metadata, robot: RobotSpec) -> None:
        self.spec, self.file, self.metadata, self.folder = spec, file, metadata, robot
        self.notes: list[str] = []
        self.cycles: list[tuple[int, int]] = []
        self.joints = self._joint_order()
        self.period = spec.control_period_s or robot.control_period_s
        if spec.control_period_s is None:
            self.notes.append(f"control_period_s is {self.period:g} s, that of robot {robot.name}")
        self.pose = self._pose()
        self.robot = self._trained_robot()
        self.commands = tuple(CommandSpec(name=n, low=r[0], high=r[1]) for n, r in (spec.commands or {}).items())
        self.driven = self._driven()

    # What two places say.

    def _from_file(self, key: str, meta: str, own: Any, names: Sequence[str]) -> np.ndarray | None:
        """Numbers by `names`, from the description, else from the file; None where neither has them.

        Raises:
            ExportError: both have them and differ.
        """
        noted: Rounded | None = self.metadata.numbers.get(meta)
        if noted is not None and len(noted.values) not in (1, len(names)):
            raise ExportError(
                f"{self.file.path}: metadata {meta}: got {len(noted.values)} numbers, expected 1 or {len(names)}, one "
                f"for each of {_few(names)}; export it again"
            )
        mine = None if own is None else _spread(own, names, key, "joint")
        if noted is None:
            return mine
        theirs, slack = (np.resize(np.asarray(v), len(names)) for v in (noted.values, noted.slack))
        if mine is None:
            self.notes.append(
                f"{key} is from the file's metadata {meta}"
                + ("" if noted.exact else ", which is rounded; write the exact numbers into the spec")
            )
            return theirs
        apart = np.abs(mine - theirs) - slack - 1e-9
        if apart.max() > 0:
            i = int(apart.argmax())
            raise ExportError(
                f"key {key}: {names[i]}: the spec says {mine[i]:g}, the file's metadata {meta} {theirs[i]:g}; "
                "expected the same; correct the spec, or take the key out"
            )
        return mine

    def _joint_order(self) -> tuple[str, ...]:
        own, noted = self.spec.joints, self.metadata.joint_names
        if own and noted and own != noted:
            at = next((i for i, pair in enumerate(zip(own, noted, strict=False)) if pair[0] != pair[1]), None)
            which = f"joint {at} is {own[at]} in the spec, {noted[at]} in" if at is not None else (
                f"{len(own)} joints in the spec, {len(noted)} in"
            )  # fmt: skip
            raise ExportError(f"key joints: {which} the file's metadata; expected the same; correct the spec")
        order = own or noted
        if not order:
            self.notes.append(f"the order of joints is that of robot {self.folder.name}")
            return self.folder.joint_names
        if not own:
            self.notes.append("the order of joints is from the file's metadata joint_names")
        return self._known_joints(order, "joints" if own else f"{self.file.path}: metadata joint_names")

    def _known_joints(self, names: Sequence[str], key: str) -> tuple[str, ...]:
        for name in names:
            if name not in self.folder.joint_names:
                hint = nearest(name, self.folder.joint_names)
                raise ExportError(f"key {key}: {name!r} is no joint of robot {self.folder.name}; {hint}")
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ExportError(f"key {key}: {', '.join(twice)} given twice; expected each once")
        return tuple(names)

    def _pose(self) -> dict[str, float]:
        """The default pose of every joint of the robot [rad]."""
        home = dict(zip(self.folder.joint_names, self.folder.column("home_rad"), strict=True))
        found = self._from_file("default_pose", "default_joint_pos", self.spec.default_pose, self.joints)
        if found is None:
            self.notes.append(f"the default pose is the home of robot {self.folder.name}")
            return home
        rest = [name for name in home if name not in self.joints]
        if rest:
            self.notes.append(f"{_few(rest)}: the default pose is the home of robot {self.folder.name}")
        return home | dict(zip(self.joints, found.tolist(), strict=True))

    def _trained_robot(self) -> RobotSpec:
        """The robot with the gains and the home pose of training."""
        columns: dict[str, dict[str, float]] = {"home_rad": self.pose}
        for column, meta in (("kp", "joint_stiffness"), ("kd", "joint_damping")):
            found = self._from_file(f"gains.{column}", meta, getattr(self.spec.gains, column), self.joints)
            columns[column] = {} if found is None else dict(zip(self.joints, found.tolist(), strict=True))
        if not (columns["kp"] and columns["kd"]):
            self.notes.append(f"gains that are not told are those of robot {self.folder.name}")
        joints = []
        for joint in self.folder.joints:
            changes = {column: values[joint.name] for column, values in columns.items() if joint.name in values}
            try:
                joints.append(joint.replace(**changes))
            except ToolkitError as error:
                raise ExportError(f"default_pose or gains: {error}") from error
        trained = self.folder.replace(joints=tuple(joints), control_period_s=self.period)
        if trained != self.folder:
            trained = trained.replace(name=f"{self.folder.name}_{self._task()}")
            self.notes.append(
                f"gains, home or period are not those of robot {self.folder.name}: the bundle has its own, named "
                f"{trained.name}"
            )
        return trained

    def _task(self) -> str:
        return self.spec.task or self.file.path.stem

    # The observation.

    def _terms_of_file(self) -> tuple[Term, ...]:
        """The terms that the file's metadata names, where the description leaves them out."""
        names, meta = self.metadata.observation_names, self.metadata
        if not names:
            raise ExportError(
                "key observation: is missing, and the file's metadata has no observation_names; expected the terms in "
                "order, such as [gyroscope, projected_gravity, joint_angles, joint_angular_velocities, last_action]"
            )
        unknown = [name for name in names if name not in TERMS]
        if unknown:
            raise ExportError(
                f"key observation: is missing, and of the file's terms {', '.join(unknown)} is not one that robots "
                f"have; expected {', '.join(dict.fromkeys(TERMS))}; describe the terms in the spec, or train without"
            )
        self.notes.append(f"the terms are from the file's metadata observation_names: {', '.join(names)}")
        out = []
        for i, name in enumerate(names):
            length = int(meta.term_history[i]) if i < len(meta.term_history) else 0
            clip = meta.term_clip[i] if i < len(meta.term_clip) else None
            out.append(
                Term(
                    input=TERMS[name],
                    scale=meta.term_scale[i] if i < len(meta.term_scale) else 1.0,
                    clip=clip if clip is not None and all(map(math.isfinite, clip)) else None,
                    history=History(length=length) if length > 1 else None,
                )
            )
        if not meta.term_scale:
            self.notes.append("the file's metadata has no scales: each term is taken as it is")
        return tuple(out)

    def _agree(self, terms: Sequence[Term]) -> None:
        """The description's terms are those that the file names, as far as its names tell.

        Raises:
            ExportError: they are in another order.
        """
        names = self.metadata.observation_names
        theirs = [TERMS[name] for name in names if name in TERMS]
        mine = [term.input for term in terms if term.input in theirs]
        if theirs and mine != theirs:
            raise ExportError(
                f"key observation: the spec has {', '.join(t.input for t in terms)}, the file's metadata "
                f"observation_names {', '.join(names)}; expected the same order; correct the spec"
            )

    def _agrees(self, i: int, term: PlannedTerm) -> None:
        """A term in numbers is what the file says of it; only where the file names as many terms.

        Raises:
            ExportError: scale, clip or history are others.
        """
        names, meta = self.metadata.observation_names, self.metadata
        if len(names) != self._count:
            return
        pairs = []
        if i < len(meta.term_scale):
            theirs = np.asarray(_as_tuple(meta.term_scale[i]))
            same = len(theirs) in (1, term.width) and np.abs(term.scale - theirs).max() <= _ROUNDED
            mine = term.scale[:1] if (term.scale == term.scale[0]).all() else term.scale
            pairs.append(("scale", same, mine.tolist(), theirs.tolist()))
        if i < len(meta.term_clip):
            ends = (-math.inf, math.inf) if term.clip is None else term.clip
            same = all(a == b or abs(a - b) <= _ROUNDED for a, b in zip(ends, meta.term_clip[i], strict=True))
            pairs.append(("clip", same, list(ends), list(meta.term_clip[i])))
        if i < len(meta.term_history):
            theirs = max(1, meta.term_history[i])
            mine, frame = term.history.length if term.history else 1, self.spec.history
            if theirs > 1 and frame is not None and frame.of == "frame":
                pairs.append(("history", False, "of: frame", f"{theirs} steps of this term alone (of: terms)"))
            else:
                pairs.append(("history", mine == theirs, f"{mine} steps", theirs))
        for what, same, mine, theirs in pairs:
            if not same:
                raise ExportError(
                    f"key observation[{i}].{what}: the spec says {mine}, the file's metadata for {names[i]} "
                    f"{theirs}; expected the same; correct the spec"
                )

    def _clock(self, period_s: float) -> int:
        """Which clock has this period; a new one where none has."""
        share = Fraction(self.period / period_s).limit_denominator(_CYCLE_PARTS)
        if not 0 < share <= Fraction(1, 2) or abs(float(share) * period_s / self.period - 1.0) > 1e-4:
            raise ExportError(
                f"key period_s: got {period_s:g} s, expected at least two control periods ({2 * self.period:g} s) and "
                f"at most {_CYCLE_PARTS} ({_CYCLE_PARTS * self.period:g} s)"
            )
        cycle = (share.numerator, share.denominator)
        if cycle not in self.cycles:
            self.cycles.append(cycle)
        return self.cycles.index(cycle)

    def _elements(self, term: Term, key: str) -> tuple[list[str], tuple[int, ...]]:
        """(names of the values, which elements of the source they are)."""
        row = BY_NAME.get(term.input)
        if row is not None and row.size == JOINTS:
            names = self.joints if term.joints is None else self._known_joints(term.joints, f"{key}.joints")
            return list(names), tuple(map(self.robot.joint_names.index, names))
        if term.input == COMMAND:
            known = [c.name for c in self.commands]
            if not known:
                raise ExportError(
                    "key commands: is missing; expected a name and the trained range of each element of the command, "
                    "such as commands: {xvel: [-0.5, 1.0], yvel: [-0.3, 0.3], yawrate: [-1.0, 1.0]}"
                )
            chosen = list(known if term.commands is None else term.commands)
            for name in chosen:
                if name not in known:
                    raise ExportError(f"key {key}.commands: {name!r} is unknown; {nearest(name, known)}")
            return chosen, tuple(map(known.index, chosen))
        if term.input == LAST_ACTION:
            return [self.robot.joint_names[i] for i in self.driven], tuple(range(len(self.driven)))
        if term.input == PHASE:
            names = [f"{form}({start:g})" for form in term.form for start in term.starts]
        elif term.input == CONSTANT:
            assert term.value is not None
            names = [str(v) for v in _as_tuple(term.value)]
        else:
            names = ["x", "y", "z"]
        return names, tuple(range(len(names)))

    def _term(self, i: int, term: Term) -> PlannedTerm:
        key = f"observation[{i}]"
        names, index = self._elements(term, key)
        offset = term.offset
        if offset is None and term.input == JOINT_ANGLES:
            offset = "default_pose"
        if term.input == CONSTANT:  # zero less minus the value
            values = -np.asarray(_as_tuple(term.value))  # type: ignore[arg-type]
            values = values + _spread(0.0 if offset is None else offset, names, f"{key}.offset", "value")
        elif offset == "default_pose":
            values = np.asarray([self.pose[name] for name in names])
        else:
            values = _spread(0.0 if offset is None else offset, names, f"{key}.offset", "value")
        whole = self.spec.history
        history = term.history or (whole if whole is not None and whole.of == "terms" else None)
        known = self.metadata.observation_names
        called = f" ({known[i]})" if i < len(known) and len(known) == self._count else ""
        return PlannedTerm(
            label=f"observation[{i}] {term.input}{called}",
            source=term.input,
            index=index,
            divisor=GRAVITY_M_S2 if term.input == GRAVITY and term.unit == "unit_vector" else 1.0,
            offset=values,
            clip=term.clip,
            scale=_spread(term.scale, names, f"{key}.scale", "value"),
            history=history if history is not None and history.length > 1 else None,
            clock=-1 if term.period_s is None else self._clock(term.period_s),
            starts=term.starts,
            form=term.form,
        )

    # The action.

    def _driven(self) -> tuple[int, ...]:
        own = self.spec.action.joints
        names = self.joints if own is None else self._known_joints(own, "action.joints")
        if len(names) != self.file.count:
            raise ExportError(
                f"{self.file.path}: {self.file.actions} has {self.file.count} values, the policy's joints are "
                f"{len(names)} ({_few(names)}); expected one for each; name them in order under action.joints"
            )
        return tuple(map(self.robot.joint_names.index, names))

    def plan(self) -> Plan:
        spec, names = self.spec, [self.robot.joint_names[i] for i in self.driven]
        given = spec.observation or self._terms_of_file()
        if spec.observation:
            self._agree(given)
        self._count = len(given)
        if not given:
            raise ExportError("key observation: got no term, expected one or more")
        wrong: list[str] = []
        terms, scale = [], None
        for i, term in enumerate(given):
            with _noted(wrong):
                planned = self._term(i, term)
                terms.append(planned)
                if spec.observation:
                    self._agrees(i, planned)
        with _noted(wrong):
            scale = self._scale(names)
        with _noted(wrong):
            self._target_ends()
        if wrong:
            raise ExportError("; ".join(dict.fromkeys(wrong)))
        assert scale is not None, "else it is noted"
        terms = tuple(terms)
        frame = spec.history if spec.history is not None and spec.history.of == "frame" else None
        if frame is not None and any(term.history for term in terms):
            raise ExportError("key history: got one of the frame and one of a term, expected one kind")
        action = spec.action
        if action.offset == "default_pose":
            offset = np.asarray([self.pose[name] for name in names])
        else:
            offset = _spread(action.offset, names, "action.offset", "joint")
        low, high = self._target_ends()
        held = [name for name in self.robot.joint_names if name not in names]
        if held:
            self.notes.append(f"{_few(held)}: the policy does not move them; they are held at the default pose")
        known = input_specs(self.robot, self.commands)
        reads = {term.source for term in terms}
        # a K-Bot's own runtime, pyfirmware, wants these six, whether they are read or not
        inputs = tuple(known[n] for n in known if n in reads or (BY_NAME[n].ours and n in known))
        ends = [np.asarray(self.robot.column(f"{end}_rad")) for end in ("lower", "upper")]
        if low is not None and high is not None:
            ends = [np.maximum(ends[0], low), np.minimum(ends[1], high)]
        plan = Plan(
            spec=PolicySpec(
                task=self._task(),
                robot=self.robot,
                inputs=inputs,
                commands=self.commands,
                carry_size=0,
                control_period_s=self.period,
                action_low_rad=tuple(ends[0].tolist()),
                action_high_rad=tuple(ends[1].tolist()),
                weights_digest=digest(self.file.model.SerializeToString(deterministic=True)),
                config_digest=spec.digest,
                training={"by": f"another toolkit, as {self.file.path.name}"},
            ),
            terms=terms,
            frame=frame if frame is not None and frame.length > 1 else None,
            clip=None
            if spec.clip is None
            else (-spec.clip, spec.clip)
            if isinstance(spec.clip, (int, float))
            else spec.clip,
            cycles=tuple(self.cycles),
            driven=self.driven,
            action_clip=action.clip,
            scale=scale,
            offset=offset,
            held=np.asarray([self.pose[name] for name in self.robot.joint_names]),
            target_low=low,
            target_high=high,
            notes=(),
        )
        if plan.size != self.file.size:
            raise ExportError(_sizes(plan, self.file))
        return dataclasses.replace(plan, notes=tuple(self.notes))

    def _scale(self, names: Sequence[str]) -> np.ndarray:
        """Of the action, one for each joint."""
        scale = self._from_file("action.scale", "action_scale", self.spec.action.scale, names)
        if scale is None:
            raise ExportError(
                "key action.scale: is missing, and the file's metadata has no action_scale; expected what an output "
                "of 1 moves the joint by [rad], such as 0.25"
            )
        return scale

    def _target_ends(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Least and greatest target of each joint."""
        clip, joints = self.spec.action.clip_target, self.robot.joint_names
        if clip is None:
            return None, None
        if clip == "joint_limits":
            low, high = (np.asarray(self.robot.column(f"{end}_rad")) for end in ("lower", "upper"))
            return low, high
        names = [joints[i] for i in self.driven]
        low, high = np.full(len(joints), -np.inf), np.full(len(joints), np.inf)
        for end, at in ((low, 0), (high, 1)):
            value = {k: v[at] for k, v in clip.items()} if isinstance(clip, Mapping) else float(clip[at])  # type: ignore
            end[list(self.driven)] = _spread(value, names, "action.clip_target", "joint")
        return low, high


def _sizes(plan: Plan, file: OnnxFile) -> str:
    """What each term gives, where they do not add up."""
    rows = [
        f"{term.label} {term.size}" + (f" ({term.width} x {term.history.length})" if term.history else "")
        for term in plan.terms
    ]
    steps = f", times {plan.frame.length} steps" if plan.frame else ""
    return (
        f"the terms give {plan.size} values, {file.obs} of {file.path.name} takes {file.size}: "
        f"{', '.join(rows)}{steps}; "
        "expected the same number; correct the terms, their joints or their history"
    )


def make_plan(spec: OnnxSpec, file: OnnxFile, metadata: Metadata) -> Plan:
    """Resolve a description.

    Raises:
        ExportError: it does not fit the file, the robot or what the file says of itself.
    """
    return _Planner(spec, file, metadata, load_robot(spec.robot)).plan()
