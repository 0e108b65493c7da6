"""Reads metadata.json, K-Scale's schema: joints, actuator types, control frequency, and our own key."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robots.description import Description, Hinge
from robots.errors import RobotLoadError, SpecError
from robots.origins import Origin
from robots.problems import Problem, Problems
from robots.spec import JointSpec
from toolkit.setting_values import nearest

EXTRA_KEY = "ksim2real"  # our own key in metadata.json
EXTRA_KEYS = ("name", "model", "imu_site", "foot_sites", "home_deg", "floating", "passive_joints")
JOINTS, TYPES, FREQUENCY = "joint_name_to_metadata", "actuator_type_to_metadata", "control_frequency"
# What each entry of a table must have: its unit, and a number that a robot may have.
JOINT_KEYS = {"id": ("the actuator's id on the bus", 1), "kp": ("N m/rad", 40), "kd": ("N m s/rad", 2)}
TYPE_KEYS = {"max_torque": ("N m", 40), "max_velocity": ("rad/s", 20)}
# What may stand there and is read besides; K-Scale's own files have more, which is their server's.
JOINT_MORE = ("actuator_type", "soft_torque_limit", "torque_limit_nm", "armature", "friction", "damping")
JOINT_MORE += ("min_angle_deg", "max_angle_deg")
TYPE_MORE = ("armature", "frictionloss", "damping")
# A key that is as much like one that is read, and is not there, is that one with a slip (difflib's ratio).
SLIP = 0.75
_AT_THE_TOP = "at its top"


def read_metadata(path: Path) -> tuple[dict[str, Any], bytes]:
    """metadata.json, and its bytes.

    Raises:
        RobotLoadError: it is not there, or no JSON object.
    """
    if not path.is_file():
        raise RobotLoadError(
            f"robot folder {path.parent}: no metadata.json; expected one in the K-Scale schema; "
            f"ksim inspect {path.parent} prints one to start with, for the joints of its model"
        )
    try:
        data = path.read_bytes()
        metadata = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
    except OSError as error:
        raise RobotLoadError(f"{path}: cannot be read ({error.strerror}); expected the robot's metadata") from error
    except (ValueError, RecursionError) as error:
        raise RobotLoadError(f"{path}: not JSON ({error}); repair the file") from error
    if not isinstance(metadata, dict):
        raise RobotLoadError(f"{path}: got {type(metadata).__name__}, expected a JSON object")
    return metadata, data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"keys given twice: {', '.join(twice)}")
    return dict(pairs)


def motor_row(number: int) -> dict[str, Any]:
    """The entry of a joint, with numbers that stand for its own."""
    return {**{key: example for key, (_, example) in JOINT_KEYS.items()}, "id": number, "actuator_type": "motor"}


def _line(key: str, value: Any) -> str:
    return f"{json.dumps(key)}: {json.dumps(value)}"


class Metadata:
    """metadata.json while it is read. What is wrong with it is noted, and reading goes on.

    Args:
        path: the file.
        data: what it holds.
        found: where problems go.
    """

    def __init__(self, path: Path, data: dict[str, Any], found: Problems) -> None:
        self.path, self._found = path, found
        self.joints: dict[str, dict[str, Any]] = {}
        self.joints = self._table(data, JOINTS)
        self.types = self._table(data, TYPES)
        if JOINTS in data and data[JOINTS] == {}:
            self._wrong(f"{JOINTS} is empty; expected the actuated joints", place=f"in {JOINTS}")
        self._slips(data, (JOINTS, TYPES, FREQUENCY, EXTRA_KEY))
        extra = data.get(EXTRA_KEY, {})
        if not isinstance(extra, dict):
            self._wrong(f"{EXTRA_KEY}: got {type(extra).__name__}, expected an object")
            extra = {}
        if not isinstance(extra.get("floating", True), bool):
            self._wrong(f"{EXTRA_KEY}: floating: got {extra['floating']!r:.100}, expected true or false")
        for key in extra:
            if key not in EXTRA_KEYS:
                self._wrong(f"{EXTRA_KEY}: key {key!r:.60} is unknown; {nearest(key, EXTRA_KEYS)}")
        self.extra: dict[str, Any] = extra
        self.frequency = self._frequency(data)
        self._incomplete: set[str] = set()
        for name, row in self.joints.items():
            before = found.met
            self._entry(name, row)
            if found.met > before:
                self._incomplete.add(name)
        for name, row in self.types.items():
            self._slips(row, (*TYPE_KEYS, *TYPE_MORE), "actuator type", name)

    def _wrong(self, what: str, kind: str = "", name: str = "", place: str = "", *examples: str) -> None:
        names = (name,) if name else ()
        self._found.add(Problem(file=self.path, what=what, kind=kind, names=names, place=place, examples=examples))

    def _table(self, data: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
        table = data.get(key)
        if isinstance(table, dict) and all(isinstance(row, dict) for row in table.values()):
            return table
        got = "nothing" if table is None else "no table of objects"
        row = {name: example for name, (_, example) in TYPE_KEYS.items()}
        named = [kind for joint in self.joints.values() if isinstance(kind := joint.get("actuator_type"), str)]
        example = dict.fromkeys(named or ["motor"], row) if key == TYPES else {"left_hip": motor_row(1)}
        what = f"{key}: got {got}, expected an object of objects, one for each name"
        self._wrong(what, "", "", _AT_THE_TOP, _line(key, example))
        return {}

    def _slips(self, row: Mapping[str, Any], read: Sequence[str], kind: str = "", name: str = "") -> None:
        """Note keys that are nearly one that is read and is not there; others are another program's."""
        absent = [key for key in read if key not in row]
        for key in row:
            meant = [] if key in read else difflib.get_close_matches(key, absent, 1, SLIP)
            if meant:
                self._wrong(
                    f"key {key!r:.60} is not read; did you mean {meant[0]}? write it so, or take it out", kind, name
                )

    def _frequency(self, data: dict[str, Any]) -> float:
        value, known = self.number(data, FREQUENCY)
        if known and (value is None or value <= 0):
            what = f"{FREQUENCY}: got {value}, expected a frequency in Hz"
            self._wrong(what, "", "", _AT_THE_TOP, _line(FREQUENCY, 50))
        return value if value is not None and value > 0 else 50.0

    def number(
        self, row: Mapping[str, Any], key: str, kind: str = "", name: str = "", under: str = ""
    ) -> tuple[float | None, bool]:
        """(a number that may be a string, None where it is absent or null; whether there is no word against it)."""
        value = row.get(key)
        if value is None or value == "":
            return None, True
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):  # JSON's integers have no end
            number = float("nan")
        if math.isfinite(number):
            return number, True
        self._wrong(f"{under}{key}: got {value!r:.100}, expected a finite number", kind, name)
        return None, False

    def _needed(self, row: Mapping[str, Any], key: str, kind: str, name: str, table: str, example: Any) -> float | None:
        value, known = self.number(row, key, kind, name)
        if value is None and known:
            unit = (JOINT_KEYS | TYPE_KEYS)[key][0]
            what = f"{key} is missing; expected a number, {unit}"
            line = _line(key, example)
            line = f"{json.dumps(name)}: {{{line}, ...}}" if key == "id" else line  # each its own
            self._wrong(what, kind, name, f"in {table}" if key == "id" else f"in its entry of {table}", line)
        return value

    def driven(self, model_path: Path, description: Description) -> list[Hinge]:
        """The hinges that have a motor: those of the metadata. Each of the others is passive by a rule.

        A joint is passive that follows another one (mimic, equality), that the model has no actuator for while it has
        them for others, or that `passive_joints` names.
        """
        names = [hinge.name for hinge in description.hinges]
        twice = sorted({name for name in names if names.count(name) > 1})
        sliding = [name for name in description.slides if name in self.joints]
        missing = [name for name in self.joints if name not in names and name not in sliding]
        told = self.extra.get("passive_joints", [])
        if not isinstance(told, list) or not all(name in names for name in told):
            self._wrong(
                f"{EXTRA_KEY}: passive_joints: got {told!r:.100}, expected a list of hinges of the model: "
                f"{', '.join(names)}"
            )
            told = []
        both = [h for h in description.hinges if h.name in self.joints and (h.follows or h.name in told)]
        free = {h.name for h in description.hinges if h.follows or h.undriven} | set(told)
        unknown = [name for name in dict.fromkeys(names) if name not in self.joints and name not in free]

        def of_model(what: str) -> None:
            self._found.add(Problem(file=model_path, what=what))

        if twice:
            of_model(f"joints given twice: {', '.join(twice)}; expected each name once")
        if sliding:
            of_model(f"joints that are not hinges: {', '.join(sliding)}; expected hinges only")
        if missing:
            there = ", ".join(names) or "none"
            self._wrong(f"joints that {model_path.name} does not have: {', '.join(missing)}; it has {there}")
        if both:
            why = ", ".join(f"{h.name} (follows {h.follows})" if h.follows else h.name for h in both)
            self._wrong(f"joints without a motor of their own: {why}; take them out of {JOINTS}")
        if unknown:
            taken = [row.get("id") for row in self.joints.values()]
            ids = (i for i in range(1, 10**6) if i not in taken and str(i) not in taken)
            self._wrong(
                f"no entry for these joints of {model_path.name}: {', '.join(unknown)}; add those with a "
                f"motor to {JOINTS}, those without to passive_joints under {EXTRA_KEY}",
                "", "", f"in {JOINTS}", *(_line(name, motor_row(next(ids))) for name in unknown),
            )  # fmt: skip
        return [] if twice else [hinge for hinge in description.hinges if hinge.name in self.joints]

    def passive(self, description: Description) -> dict[str, Origin]:
        """The robot's joints without a motor, and why."""
        file, told = self.path.name, self.extra.get("passive_joints", [])
        why = {}
        for hinge in description.hinges:
            if hinge.of_robot and hinge.name not in self.joints:
                if hinge.follows:
                    why[hinge.name] = Origin(how=f"follows {hinge.follows}")
                elif isinstance(told, list) and hinge.name in told:
                    why[hinge.name] = Origin(file=file, key=f"{EXTRA_KEY}.passive_joints")
                else:
                    why[hinge.name] = Origin(how="no actuator in the model, which has them for others")
        return why | {name: Origin(how="no hinge") for name in description.slides}

    def _entry(self, name: str, row: Mapping[str, Any]) -> None:
        """Note what an entry and its actuator type lack, whatever the model is, and what is misspelt."""
        self._slips(row, (*JOINT_KEYS, *JOINT_MORE), "joint", name)
        for key, (_, example) in JOINT_KEYS.items():
            number = 1 + list(self.joints).index(name) if key == "id" else example
            self._needed(row, key, "joint", name, JOINTS, number)
        kind = row.get("actuator_type")
        if not isinstance(kind, str) or (self.types and kind not in self.types):
            known = ", ".join(self.types) or f"those of {TYPES}"
            what = f"actuator_type: got {kind!r:.100}, expected one of {known}"
            example = _line("actuator_type", next(iter(self.types), "motor"))
            self._wrong(what, "joint", name, f"in its entry of {JOINTS}", example)
        elif kind in self.types:
            for key, (_, example) in TYPE_KEYS.items():
                self._needed(self.types[kind], key, "actuator type", kind, TYPES, example)

    def joint(
        self, model: str, hinge: Hinge, home: tuple[float, Origin] | None
    ) -> tuple[JointSpec, dict[str, Origin]] | None:
        """The specification of one joint, and where each of its fields is from; None where something is wrong with it.

        Args:
            model: name of the model's file.
            hinge: of the model.
            home: its angle in the home pose [rad], and where that is from; None where nothing says it.
        """
        name, row, before = hinge.name, self.joints[hinge.name], self._found.met
        limits = self._limits(model, hinge, row)
        kind, file = row.get("actuator_type"), self.path.name
        motor = self.types.get(kind, {}) if isinstance(kind, str) else {}
        values: dict[str, float] = {}
        origins: dict[str, Origin] = {"actuator_type": Origin(file=file, key=f"{JOINTS}.{name}.actuator_type")}

        def first(
            field: str, own: tuple[str, ...], of_type: str = "", of_model: tuple[float, str] | None = None
        ) -> None:
            """The first that is told: of the joint, of its actuator type, of the model."""
            places = [(row, key, "joint", name, JOINTS) for key in own]
            places += [(motor, of_type, "actuator type", str(kind), TYPES)] if of_type else []
            for table, key, what, who, room in places:
                value, known = self.number(table, key, what, who)
                if value is not None or not known:
                    values[field] = value or 0.0
                    origins[field] = Origin(file=file, key=f"{room}.{who}.{key}")
                    return
            value, key = of_model or (0.0, "")
            values[field] = value
            origins[field] = (
                Origin(file=model, key=f"joint {name}: {key}") if value else Origin(how="nothing says it: 0")
            )

        first("id", ("id",))
        first("kp", ("kp",))
        first("kd", ("kd",))
        first("torque_limit_nm", ("soft_torque_limit", "torque_limit_nm"), "max_torque")
        first("torque_max_nm", (), "max_torque")
        first("velocity_max_rad_s", (), "max_velocity")
        first("armature", ("armature",), "armature", (hinge.armature, "armature"))
        first("friction_nm", ("friction",), "frictionloss", (hinge.friction_nm, "frictionloss"))
        first("damping", ("damping",), "damping", (hinge.damping, "damping"))
        if values["id"] != int(values["id"]):
            self._wrong(f"id: got {row['id']!r:.100}, expected an integer", "joint", name)
        if limits is None or self._found.met > before or name in self._incomplete or kind not in self.types:
            return None
        (lower, upper), limited = limits
        at = min(max(0.0, lower), upper) if home is None else home[0]
        # a keyframe written with fewer digits than the limits may stand a hair outside
        at = min(max(at, lower), upper) if lower - 1e-5 <= at <= upper + 1e-5 else at
        if home is not None and not lower <= at <= upper:
            self._wrong(
                f"home is {math.degrees(at):.6g} degrees (of {home[1].file}, {home[1].key}), expected within the "
                f"limits [{math.degrees(lower):.6g}, {math.degrees(upper):.6g}]; correct the home or the limits",
                "joint", name,
            )  # fmt: skip
            return None
        origins |= limited
        nowhere = Origin(how="nothing says it: 0, or the nearest within the limits", guess=True)
        origins["home_rad"] = nowhere if home is None else home[1]
        bus_id = int(values.pop("id"))
        try:
            spec = JointSpec(
                name=name, id=bus_id, lower_rad=lower, upper_rad=upper, home_rad=at, actuator_type=str(kind), **values
            )
        except SpecError as error:
            self._wrong(str(error))
            return None
        return spec, origins

    def _limits(
        self, model: str, hinge: Hinge, row: Mapping[str, Any]
    ) -> tuple[tuple[float, float], dict[str, Origin]] | None:
        """Its least and greatest angle [rad], of metadata and model the narrower, and where they are from."""
        name, file = hinge.name, self.path.name
        (low, low_known), (high, high_known) = (
            self.number(row, key, "joint", name) for key in ("min_angle_deg", "max_angle_deg")
        )
        ends: dict[str, list[tuple[float, Origin]]] = {"lower_rad": [], "upper_rad": []}
        ranges = []
        for field, value, key in (("lower_rad", low, "min_angle_deg"), ("upper_rad", high, "max_angle_deg")):
            if value is not None:
                ends[field].append((math.radians(value), Origin(file=file, key=f"{JOINTS}.{name}.{key}")))
        if low is not None or high is not None:
            ranges.append((-math.inf if low is None else low, math.inf if high is None else high))
        if hinge.range_rad is not None:
            ranges.append((math.degrees(hinge.range_rad[0]), math.degrees(hinge.range_rad[1])))
            for field, value in zip(ends, hinge.range_rad, strict=True):
                ends[field].append((value, Origin(file=model, key=f"joint {name}: range")))
        if not (low_known and high_known):
            return None
        if not all(ends.values()):
            self._wrong(
                "no position limits; give min_angle_deg and max_angle_deg, or a range in the model",
                "joint", name, f"in its entry of {JOINTS}", '"min_angle_deg": -90, "max_angle_deg": 90',
            )  # fmt: skip
            return None
        lower, upper = max(ends["lower_rad"], key=lambda e: e[0]), min(ends["upper_rad"], key=lambda e: e[0])
        if lower[0] >= upper[0]:
            spans = " and ".join(f"[{a:.6g}, {b:.6g}]" for a, b in ranges)
            self._wrong(
                f"limits of metadata and model do not overlap: {spans} degrees; correct one of them", "joint", name
            )
            return None
        return (lower[0], upper[0]), {"lower_rad": lower[1], "upper_rad": upper[1]}


def draft(hinges: tuple[Hinge, ...]) -> dict[str, Any]:
    """A metadata.json to start with, for the hinges of a model: what only the robot's owner knows is null."""
    driven = [h for h in hinges if h.of_robot and not h.follows and not h.undriven]
    empty = dict.fromkeys(JOINT_KEYS)
    bounds = {"min_angle_deg": None, "max_angle_deg": None}
    joints = {
        h.name: {**empty, "actuator_type": "motor", **({} if h.range_rad is not None else bounds)} for h in driven
    }
    return {JOINTS: joints, TYPES: {"motor": dict.fromkeys(TYPE_KEYS)}, FREQUENCY: 50, EXTRA_KEY: {}}


def as_text(metadata: Mapping[str, Any]) -> str:
    """JSON with one line for each entry of a table."""
    parts = []
    for key, value in metadata.items():
        rows = ",\n".join(f"    {_line(name, row)}" for name, row in value.items()) if isinstance(value, dict) else ""
        parts.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}" if rows else f"  {_line(key, value)}")
    return "{\n" + ",\n".join(parts) + "\n}"
