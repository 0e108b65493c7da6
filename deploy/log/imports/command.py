"""`ksim log import`: a log of another program, as the log that `ksim run` writes.

Rows are read, checked and written one at a time: what it takes in memory does not grow with the log.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from deploy.errors import LogError, OptionError
from deploy.log.imports.check import FAR_TARGET_RAD, Ordered, Positions, check_times
from deploy.log.imports.lerobot import INFO, LeRobotEpisode
from deploy.log.imports.mapping import ANGLES, Conversion, ImportMap, convert, load_map
from deploy.log.imports.plain_csv import PlainCsv
from deploy.log.imports.pyfirmware import GAINS, NAME, PyfirmwareLog
from deploy.log.imports.sage import CONTROL, SageFolder
from deploy.log.imports.source import Row, Source
from deploy.log.imports.ticks import Ticks
from deploy.log.recorder import NotWritten, Recorder
from robots.bundle import Bundle, read_bundle
from robots.inputs import ACCELEROMETER, GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.load import HERE, load_robot
from robots.spec import CommandSpec, PolicySpec, RobotSpec, input_specs
from toolkit.cli import Option, options
from toolkit.errors import SettingsError
from toolkit.files import atomic_path
from toolkit.settings import Bound, Settings

# Rows that the nominal period is the median of, where neither the file nor the map says it.
PERIOD_ROWS = 200
# A time beyond this is since 1970 [s].
EPOCH_S = 1e8
# A built-in robot's own map of SAGE's folders, beside its metadata.json.
SAGE_MAP = "sage.yaml"
# How often the bar is drawn [s].
BAR_S = 0.2


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Settings):
    """The options of `ksim log import`."""

    source: Annotated[Path, Option("the log: a file, or its folder", positional=True)]
    out: Annotated[Path, Option("the log to write", metavar="FILE", short="-o")]
    map: Annotated[Path | None, Option("YAML: robot, units, joints (docs/log_import.md)", metavar="FILE")] = None
    robot: Annotated[str | None, Option("built-in robot or robot folder (default: the map's)")] = None
    policy: Annotated[Path | None, Option("the .kinfer that ran, to be kept in the log", metavar="FILE")] = None
    episode: Annotated[int | None, Bound(0, 2**31, "a number"), Option("of a LeRobot data set, from 0")] = None
    force: Annotated[bool, Option("replace a file that is there")] = False
    json: Annotated[bool, Option("print what was found as one JSON object")] = False
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""


def open_source(path: Path, given: ImportMap, episode: int | None = None) -> Source:
    """The reader of a log, by the map's format or by what the files are.

    Raises:
        LogError: it is none that can be read, or its head is damaged.
    """
    kind = given.format or _kind(path)
    if episode is not None and kind != "lerobot":
        raise LogError(f"--episode {episode}: {path} is no LeRobot data set; expected none; leave it out")
    if kind == "pyfirmware":
        return PyfirmwareLog(path)
    if kind == "sage":
        return SageFolder(path)
    return LeRobotEpisode(path, episode) if kind == "lerobot" else PlainCsv(path, given.ignore)


def _kind(path: Path) -> str:
    expected = f"{NAME} of pyfirmware, a folder of SAGE ({CONTROL}), one of a LeRobot data set ({INFO}), or a .csv"
    if path.is_dir():
        for name, kind in ((NAME, "pyfirmware"), (CONTROL, "sage"), (INFO, "lerobot")):
            if (path / name).exists():
                return kind
        raise LogError(f"{path}: a folder with none of the logs that are known; expected {expected}")
    if not path.exists():
        raise LogError(f"{path}: no such file; expected {expected}; check how it is written")
    if path.suffix in (".ndjson", ".jsonl"):
        return "pyfirmware"
    if path.suffix == ".csv":
        if (path.parent / CONTROL).exists() and path.name in (CONTROL, "state_motor.csv", "event.csv"):
            raise LogError(f"{path}: a file of a SAGE folder; expected the folder; name {path.parent}")
        return "csv"
    if path.suffix == ".parquet":
        raise LogError(f"{path}: a file of a LeRobot data set; expected its folder, which has {INFO}; name that")
    raise LogError(f"{path}: of a kind that is not known; expected {expected}; or set format in the map (--map)")


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _spec(
    source: Source, found: Conversion, bundle: Bundle | None, commands: Sequence[str], period_s: float
) -> PolicySpec:
    """What is known of the policy and the robot: the bundle's own word where there is one, but for the gains."""
    from deploy.bundle.session import UNKNOWN_RANGE

    if bundle is not None and bundle.spec is not None:
        robot = bundle.spec.robot
        pairs = zip(robot.joints, found.robot.joints, strict=True)
        joints = tuple(joint.replace(kp=force.kp, kd=force.kd) for joint, force in pairs)
        return bundle.spec.replace(robot=robot.replace(joints=joints))
    ranges = tuple(CommandSpec(name=n, low=-UNKNOWN_RANGE, high=UNKNOWN_RANGE) for n in commands)
    known = input_specs(found.robot, ranges)
    has = {"gravity_b": GRAVITY_INPUT, "gyro_b": GYROSCOPE, "velocity": JOINT_VELOCITIES, "accel_b": ACCELEROMETER}
    named = [JOINT_ANGLES, *(name for quantity, name in has.items() if quantity in source.has)] if source.policy else []
    named += ["command"] if commands else []
    return PolicySpec(
        task="unknown" if source.policy else "recorded motion",
        robot=found.robot.replace(control_period_s=period_s),
        inputs=tuple(known[name] for name in named),
        commands=ranges,
        carry_size=0 if bundle is None else bundle.carry_size,
        control_period_s=period_s,
        action_low_rad=tuple(found.robot.column("lower_rad")),
        action_high_rad=tuple(found.robot.column("upper_rad")),
    )


def _commands(source: Source, bundle: Bundle | None) -> tuple[tuple[str, ...], list[int]]:
    """(names of the command's elements in the log, their places in the file)."""
    names = source.commands
    if bundle is None or "command" not in source.has:
        return names, list(range(len(names)))
    if all(name.startswith("command_") for name in names) and len(names) == len(bundle.command_names):
        return bundle.command_names, list(range(len(names)))  # a list, which is in the policy's order
    missing = [name for name in bundle.command_names if name not in names]
    if missing:
        raise LogError(
            f"--policy: its commands {', '.join(missing)[:100]} are not in {source.path}, which has "
            f"{', '.join(names)[:200]}; name the policy that ran"
        )
    return bundle.command_names, [names.index(name) for name in bundle.command_names]


def _missing(source: Source, found: Conversion, given: ImportMap, bundle: Bundle | None, gains: bool) -> list[str]:
    """What the log to be made does not have, in words."""
    out = [f"joints ({', '.join(found.absent)})"] if found.absent else []
    out += ["targets"] if "target" not in source.has else []
    out += ["velocities"] if "velocity" not in source.has or found.velocity is None else []
    if "torque" not in source.has or found.torque is None:
        out.append("torques" + (" (a size without a sign was left out)" if found.units.torque == "unsigned" else ""))
    if "gravity_b" in source.has:
        out.append("heading (the orientation is the tilt alone)")
    elif "quat_wxyz" not in source.has:
        out.append("orientation")
    out += ["gyroscope"] if "gyro_b" not in source.has else []
    out += ["accelerometer"] if "accel_b" not in source.has else []
    out += ["the policy"] if bundle is None else []
    out += (
        ["gains (the robot's own are assumed)"]
        if not gains
        and not all(name in given.joints and given.joints[name].kp is not None for name in found.robot.joint_names)
        else []
    )
    return out + ([] if {"action", "roundtrip"} <= set(source.stages) else ["when commands arrived"])


class _Bar:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        self._live, self._last, self._shown = sys.stderr.isatty(), time.monotonic(), False

    def __call__(self, share: float, rows: int) -> None:
        now = time.monotonic()
        if self._live and now - self._last > BAR_S:
            self._last, self._shown = now, True
            done = round(30 * share)
            print(f"\rimport [{'=' * done}{' ' * (30 - done)}] {share:4.0%} {rows} rows", end="", file=sys.stderr)

    def close(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was made of a log.

    Attributes:
        about: the metadata record's `import`.
        result: the closing figures.
        joints: how many the log has.
        span_s: from the first row to the last [s].
        warnings: what a user should look at, one line each.
    """

    about: dict[str, Any]
    result: dict[str, Any]
    joints: int
    span_s: float
    warnings: tuple[str, ...]


def import_log(
    path: Path,
    out: Path,
    given: ImportMap | None = None,
    *,
    robot: str | RobotSpec | None = None,
    policy: Path | None = None,
    episode: int | None = None,
    progress: Any = None,
) -> Imported:
    """Make a log of ours of another program's; `out` is written as it is, so name a part of it.

    Args:
        path: the other program's log.
        out: the file to write.
        given: the map; None for the one that a built-in robot has for SAGE's folders, else for none.
        robot: a built-in robot, a robot folder, or what was loaded of one; None: the map's, else the format's.
        policy: the .kinfer that ran; it is kept in the log.
        episode: of a LeRobot data set.
        progress: called with (share, rows).

    Raises:
        LogError: the log cannot be read, or does not make sense; the message is one line.
    """
    mapped = given is not None
    given = given or ImportMap()
    source = open_source(path, given, episode)
    name = robot or given.robot or source.default_robot
    if not name:
        raise LogError(f"{path}: no robot; expected one with --robot, or robot in the map (--map); for example kbot")
    bundle = None if policy is None else read_bundle(policy)
    spec = name if isinstance(name, RobotSpec) else load_robot(name)
    if not mapped and source.format == "sage" and (built_in := HERE / spec.name / SAGE_MAP).is_file():
        given = load_map(built_in)
    gains = GAINS if source.format == "pyfirmware" and spec.name == "kbot" else {}
    found = convert(given, source.units, source.joints, spec, str(path), gains=gains)
    if bundle is not None:
        odd = set(bundle.joint_names) ^ set(found.robot.joint_names)
        if odd:
            told = ", ".join(sorted(odd))[:120]
            raise LogError(f"--policy {policy}: its joints are not those of {path}: {told}; name the policy that ran")
        found = convert(given, source.units, source.joints, spec, str(path), order=bundle.joint_names, gains=gains)
    commands, places = _commands(source, bundle)

    ordered = Ordered(source=source)
    rows = iter(ordered)
    head: list[Row] = list(itertools.islice(rows, PERIOD_ROWS))
    if len(head) < 2:
        raise LogError(f"{path}: {len(head)} rows that can be used; expected at least 2; name another")
    check_times(str(path), [row.time_s for row in head])
    period_s, how = source.period_s, "as the format has it"
    if bundle is not None and bundle.spec is not None:
        period_s, how = bundle.spec.control_period_s, "the policy's"
    elif given.rate_hz is not None:
        period_s, how = 1 / given.rate_hz, "rate_hz of the map"
    elif period_s is None:
        period_s = float(np.median(np.diff([row.time_s for row in head])))
        how = f"median of the first {len(head)} rows"
    zero_s = head[0].time_s if abs(head[0].time_s) > EPOCH_S else 0.0
    missing = _missing(source, found, given, bundle, bool(gains))
    about = {
        "format": source.format,
        "path": path.resolve().name,
        "sources": [_digest(file) for file in source.files],
        "map": given.to_dict(),
        "map_digest": given.digest,
        "units": found.units.to_dict(),
        "joints": dict(zip(found.robot.joint_names, (source.joints[k] for k in found.columns), strict=True)),
        "missing": missing,
        "heading": "told" if "quat_wxyz" in source.has else "unknown",
        "gains": "of pyfirmware, October 2025" if gains else "of the robot, or of the map",
        "period": how,
        "stamps": source.stamps,
        **source.facts,
    }
    settings: dict[str, Any] = {"import": about} | ({"stages": source.stages} if source.stages else {})
    if zero_s:
        started = datetime.datetime.fromtimestamp(zero_s, datetime.UTC)
        settings["started_utc"] = started.isoformat(timespec="milliseconds")
    if policy is not None and bundle is not None:
        settings |= {"bundle": policy.name, "bundle_digest": bundle.digest}
    policy_spec, positions = _spec(source, found, bundle, commands, period_s), Positions(found)
    targets = Positions(found, FAR_TARGET_RAD)
    inputs = [array.name for array in policy_spec.inputs]
    ticks = Ticks(source, found, period_s=period_s, zero_s=zero_s, inputs=inputs, commands=places)
    recorder = Recorder(
        out,
        spec=policy_spec,
        bundle=b"" if policy is None else policy.read_bytes(),
        settings=settings,
        force=True,
        patient=True,
    )
    row = head[0]
    with recorder:
        for row in itertools.chain(head, rows):
            positions.add(row.position[found.columns])
            if row.target is not None:
                targets.add(row.target[found.columns])
            recorder.tick(ticks.tick(row))
            if progress is not None:
                progress(source.share, ticks.seen.rows)
        if given.check_limits:
            positions.check(str(path))
        figures = ticks.closing()
        left = {kind: asdict(one) for kind, one in ordered.left.items()}
        events = sorted([(t - zero_s, kind, text) for t, kind, text in source.events] + ticks.seen.events)
        for at_s, kind, message in events:
            recorder.event(at_s, kind, message)
        result = {
            "ended": "imported",
            "message": f"{figures['rows']} rows of {path.resolve().name} ({source.format})",
            **figures,
            "left_out": left,
            "cut": ordered.cut,
        }
        recorder.close(result)
    other = []
    if bundle is not None and bundle.spec is not None:
        pairs = zip(bundle.spec.robot.joints, found.robot.joints, strict=True)
        other = [a.name for a, b in pairs if (a.kp, a.kd) != (b.kp, b.kd)]
    said = [f"gains in force are not those of the policy's training: {', '.join(other)[:200]}"] if other else []
    far = targets.far() if given.check_limits else []
    if far:
        told = ", ".join(far)[:200]
        said.append(f"targets far outside the limits, perhaps of another unit than the positions: {told}")
    return Imported(
        about=about,
        result=result,
        joints=len(found.columns),
        span_s=row.time_s - head[0].time_s,
        warnings=(*said, *_warnings(source, result)),
    )


def _warnings(source: Source, result: dict[str, Any]) -> list[str]:
    word, rows = source.word, result["rows"]
    out = [
        f"{left['rows']} {word}s left out; the first is {word} {left['line']}: {left['reason']}"
        for left in result["left_out"].values()
    ]
    out += [f"the last {word} breaks off; it was left out"] if result["cut"] else []
    if result["gaps"]:
        out.append(f"{result['gaps']} gaps, the longest {result['longest_gap_s']:.4g} s")
    if result["not_numbers"]:
        told = ", ".join(f"{name} {n}" for name, n in sorted(result["not_numbers"].items()))
        out.append(f"values that are not numbers, left empty: {told}")
    often = {name: n / rows for name, n in (result["repeated"] or {}).items() if n > 0.01 * rows}
    if often:
        worst = sorted(often, key=lambda name: -often[name])
        told = ", ".join(f"{name} {often[name]:.0%}" for name in worst[:4])
        more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
        out.append(f"readings that repeat the row before: {told}{more}")
    if result["gravity_off"] > 0.05 * rows:
        out.append(f"projected_gravity is not 9.81 m/s^2 long in {result['gravity_off']} rows; its direction is used")
    if result["upside_down"] > 0.5 * rows:
        told = "gravity has the other sign: set units.gravity: up in the map (--map)"
        if "quat_wxyz" in source.has:
            told = "look at the order and the frame of the quaternion"
        share = result["upside_down"] / rows
        out.append(f"the robot stands on its head in {share:.0%} of the {word}s; where it did not, {told}")
    return out + _gyro_warnings(result["gyro_seen"])


def _gyro_warnings(seen: float | None) -> list[str]:
    """What the gyro's size and sign against the orientation say; `seen` as Turning.slope."""
    if seen is None or 0.5 < seen < 2:
        return []
    for unit, factor in (("deg/s", ANGLES["deg"]), ("rad/s", 1 / ANGLES["deg"])):
        if 0.5 < seen / factor < 2:
            said = f"the gyro turns {1 / seen:.2g} times as much as the orientation: its unit looks like {unit}"
            return [f"{said}; set units.gyro: {unit} in the map (--map)"]
    if -2 < seen < -0.5:
        return ["the gyro turns against the orientation; one of them has the other sign: look at the axes of both"]
    return [f"the gyro turns {1 / seen:.2g} times as much as the orientation; look at the unit and the axes of both"]


def main(argv: list[str]) -> int:
    """The command."""
    args = options(
        ImportOptions,
        argv,
        "ksim log import",
        "Make the log that ksim run writes of another program's: pyfirmware's kinfer_log.ndjson, a folder of SAGE,\n"
        "an episode of a LeRobot data set, or a CSV table with named columns. docs/log_import.md has each.",
        "ksim log import ~/kinfer-logs/walk_20251023_101500 -o walk.mcap",
    )
    if args.out.exists() and not args.force:
        raise LogError(f"{args.out}: it exists; expected a new file; name another or add --force")
    if args.out.is_dir():
        raise LogError(f"{args.out}: is a folder; expected a file to write; name one in it")
    if args.source.is_file() and args.out.exists() and args.out.samefile(args.source):
        raise LogError(f"{args.out}: it is the log to read; expected another file; name one")
    bar = _Bar()
    try:
        with atomic_path(args.out) as part:
            found = import_log(
                args.source,
                part,
                None if args.map is None else load_map(args.map),
                robot=args.robot,
                policy=args.policy,
                episode=args.episode,
                progress=bar,
            )
    except NotWritten as error:  # what was written of it is gone
        raise LogError(
            f"{args.out}: cannot be written ({error.why}); expected room for it; make some, or name a file on another "
            "disk"
        ) from None
    finally:
        bar.close()
    for line in found.warnings:
        print(f"ksim log import: warning: {line}", file=sys.stderr)
    rows = found.result["rows"]
    rate = (rows - 1) / found.span_s
    said = f"{rows} ticks of {found.joints} joints, {found.span_s:.2f} s, {rate:.2f} a second"
    print(f"wrote {args.out}: {said}; not in it: {', '.join(found.about['missing'])}", file=sys.stderr)
    if args.json:
        print(json.dumps({"log": str(args.out), "import": found.about, "result": found.result}, allow_nan=False))
    return 0
