"""`ksim log`: what a log says, and the log in other forms."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from mcap.records import Attachment, Channel, Footer, Header, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import Writer

from deploy.errors import LogError, OptionError
from deploy.log.recorder import BROKEN, RunLog, no_log, read_log
from deploy.log.summary import Summary, facts, facts_as_text, lost_as_text, summary
from deploy.log.tick import COLUMNS, TIMES, VECTORS
from deploy.robot.state import JOINTS
from toolkit.cli import Option, options, parser, run_verb
from toolkit.errors import SettingsError
from toolkit.files import atomic_path
from toolkit.settings import Settings

LAYOUT = Path(__file__).parent / "foxglove_layout.json"


@dataclass(frozen=True, kw_only=True)
class LogOptions(Settings):
    """The options of a tool that reads a log."""

    log: Annotated[Path, Option("a log of ksim run", positional=True)]
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(LogOptions):
    """The options of `ksim log info`."""

    json: Annotated[bool, Option("print it as one JSON object")] = False


@dataclass(frozen=True, kw_only=True)
class OutOptions(LogOptions):
    """The options of a tool that makes a file of a log."""

    out: Annotated[Path, Option("the file to write", metavar="FILE", short="-o")]


@dataclass(frozen=True, kw_only=True)
class ViewOptions(LogOptions):
    """The options of `ksim log view`."""

    out: Annotated[Path | None, Option("the page (default: beside the log)", metavar="FILE", short="-o")] = None


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(Settings):
    """The options of `ksim log layout`."""

    out: Annotated[Path, Option("the file to write", metavar="FILE", short="-o")]
    error: ClassVar[type[SettingsError]] = OptionError
    noun: ClassVar[str] = ""


def _plain(value: Any) -> Any:
    """JSON values; null for what is not finite."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(log: RunLog, found: Summary) -> list[str]:
    def ms(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.2f}"

    timing, told = found.timing, facts_as_text(log)
    started = told.pop("started_utc", "at a time that is not told")
    clamps = ", ".join(f"{kind} {n}" for kind, n in found.clamps.items()) or "none"
    stages = ", ".join(f"{name} {ms(p50)} ({ms(p99)})" for name, (p50, p99) in timing.stages.items())
    ticks = ", ".join(f"{phase} {n}" for phase, n in found.ticks.items()) or "none"
    rate = (
        "no rate: fewer than two ticks of the policy" if math.isnan(found.rate_hz) else f"{found.rate_hz:.2f} a second"
    )
    rows = {
        "log": f"{log.path}, {log.path.stat().st_size:,} bytes{'' if found.complete else ', BREAKS OFF'}",
        "started": f"{started}; {found.duration_s:.2f} s to the last tick",
        "ended": f"{found.ended}: {found.message}",
        **told,
        "ticks": f"{len(log.tick)}: {ticks}; {rate}",
        "period": f"{ms(timing.period_ms)} ms nominal; p50 {ms(timing.period_p50_ms)}, p99 {ms(timing.period_p99_ms)}, "
        f"max {ms(timing.period_max_ms)}; error p99 {ms(timing.period_error_p99_ms)}; {timing.skipped} skipped",
        "round trip": f"state p50 {ms(timing.state_round_trip_p50_ms)}, p99 {ms(timing.state_round_trip_p99_ms)} ms; "
        f"command p50 {ms(timing.command_round_trip_p50_ms)}, p99 {ms(timing.command_round_trip_p99_ms)} ms",
        "stages": f"p50 (p99) in ms: {stages}" if stages else "not told",
        "lost": lost_as_text(found),
        "clamped": f"{found.clamped} ticks ({clamps})",
        "events": ", ".join(f"{kind} {n}" for kind, n in found.events.items()) or "none",
    }
    return [f"{name:<16}{value}" for name, value in rows.items()]


def info(argv: list[str]) -> int:
    """When a run was, how long, how it ended, how well it kept time."""
    args = options(InfoOptions, argv, "ksim log info", "What a log says.", "ksim log info run.mcap")
    log = read_log(args.log)
    found = summary(log)
    if args.json:
        values = {"log": str(log.path), "bytes": log.path.stat().st_size, **facts(log)}
        values |= asdict(found) | {"timing": found.timing.to_json()}
        print(json.dumps(_plain(values), allow_nan=False))
    else:
        print("\n".join(_lines(log, found)))
    return 0


def columns(log: RunLog) -> Iterator[tuple[str, list[Any]]]:
    """The log as named columns of plain values, one a tick; numbers that are not there are None."""

    def numbers(values: np.ndarray) -> list[float | None]:
        return [None if not math.isfinite(v) else v for v in values.tolist()]

    yield "tick", log.tick.tolist()
    yield "phase", log.phase
    for name in TIMES:
        yield f"{name.removesuffix('_s')} [s]", numbers(getattr(log, name))
    for name, values in log.stages_ms.items():
        yield f"stage {name} [ms]", numbers(values)
    for name, values in log.ages_s.items():
        yield f"age {name} [s]", numbers(values)
    for name in VECTORS:
        unit = f" [{COLUMNS[name].unit}]" if COLUMNS[name].unit else ""
        parts = log.spec.robot.joint_names if COLUMNS[name].parts == JOINTS else COLUMNS[name].parts
        for part, values in zip(parts, getattr(log, name).T, strict=True):
            yield f"{name.removesuffix('_wxyz')} {part}{unit}", numbers(values)
    sizes = {array.name: array for array in log.spec.inputs}
    for name, values in log.inputs.items():
        unit = f" [{sizes[name].unit}]" if name in sizes and sizes[name].unit else ""
        for k, column in enumerate(values.T):
            yield f"input {name} {k}{unit}", numbers(column)
    yield "safety", ["; ".join(map(str, reasons)) for reasons in log.safety]
    yield "stale", [int(stale) for stale in log.stale]


def to_csv(argv: list[str]) -> int:
    """A row a tick, named columns with units."""
    args = options(OutOptions, argv, "ksim log csv", "A row a tick.", "ksim log csv run.mcap -o run.csv")
    _other(args.log, args.out)
    names, values = zip(*columns(read_log(args.log)), strict=True)
    with atomic_path(args.out) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*values, strict=True))
    return _wrote(args.out, f"{len(values[0])} ticks, {len(names)} columns")


def to_npz(argv: list[str]) -> int:
    """Arrays for numpy, without pickles."""
    args = options(OutOptions, argv, "ksim log npz", "Arrays for numpy.", "ksim log npz run.mcap -o run.npz")
    _other(args.log, args.out)
    log = read_log(args.log)
    arrays: dict[str, Any] = {name: getattr(log, name) for name in ("tick", *COLUMNS, "stale")}
    arrays |= {f"input.{name}": values for name, values in log.inputs.items()}
    for key in ("ages_s", "stages_ms"):
        arrays |= {f"{key}.{name}": values for name, values in getattr(log, key).items()}
    # text as numpy's own fixed width, which needs no pickle
    texts = {"phase": log.phase, "safety": ["; ".join(map(str, reasons)) for reasons in log.safety]}
    texts |= {"joint_names": log.spec.robot.joint_names, "events": [json.dumps(event) for event in log.events]}
    texts |= {"metadata": json.dumps(log.metadata), "result": json.dumps(log.result)}
    texts |= {"spec": json.dumps(log.spec.to_json())}
    arrays |= {name: np.array(text, dtype=np.str_) for name, text in texts.items()}
    with atomic_path(args.out) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return _wrote(args.out, f"{len(log.tick)} ticks, {len(arrays)} arrays")


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What was in a file that breaks off.

    Attributes:
        ticks: whole ones.
        events: whole ones.
        whole: it did not break off after all.
    """

    ticks: int
    events: int
    whole: bool


def recover_log(broken: Path, good: Path) -> Recovered:
    """Copy every whole record of a log into a file that is complete; keeps one record at a time in memory.

    Raises:
        LogError: it is no log, or its head is damaged.
    """
    counts, whole = {"/tick": 0, "/event": 0}, False
    channels: dict[int, tuple[int, str]] = {}
    schemas = {0: 0}
    metadata: set[str] = set()
    with broken.open("rb") as source, good.open("wb") as target:
        writer = Writer(target)
        reader = StreamReader(source, validate_crcs=True, record_size_limit=max(broken.stat().st_size, 1))
        records = iter(reader.records)
        while True:
            try:
                record = next(records)
            except StopIteration:
                break
            except BROKEN as error:
                if "run" not in metadata:
                    raise no_log(broken, error) from error
                break
            if isinstance(record, Header):
                writer.start(record.profile, record.library)
            elif isinstance(record, Schema) and record.id not in schemas:
                schemas[record.id] = writer.register_schema(record.name, record.encoding, record.data)
            elif isinstance(record, Channel) and record.id not in channels:
                encoding, schema = record.message_encoding, schemas.get(record.schema_id, 0)
                new = writer.register_channel(record.topic, encoding, schema, record.metadata)
                channels[record.id] = new, record.topic
            elif isinstance(record, Message) and record.channel_id in channels:
                new, topic = channels[record.channel_id]
                writer.add_message(new, record.log_time, record.data, record.publish_time, record.sequence)
                counts[topic] = counts.get(topic, 0) + 1
            elif isinstance(record, Metadata):
                metadata.add(record.name)
                writer.add_metadata(record.name, record.metadata)
            elif isinstance(record, Attachment):
                args = record.create_time, record.log_time, record.name, record.media_type, record.data
                writer.add_attachment(*args)
            whole = isinstance(record, Footer)
        if "run" not in metadata:
            raise LogError(f"{broken}: no metadata record 'run'; expected a log of ksim run")
        writer.finish()
    return Recovered(ticks=counts["/tick"], events=counts["/event"], whole=whole)


def recover(argv: list[str]) -> int:
    """A whole file of one that breaks off."""
    args = options(
        OutOptions,
        argv,
        "ksim log recover",
        "Make a whole MCAP file of one that breaks off, or that has something else at its end. How the run ended is\n"
        "not known afterwards: other programs open the file, and ours still say that the run breaks off.",
        "ksim log recover broken.mcap -o good.mcap",
    )
    if not args.log.is_file():
        raise LogError(f"{args.log}: no such file; expected a log of ksim run")
    if args.out.exists():
        raise LogError(f"{args.out}: it exists; expected a new file; name another")
    with atomic_path(args.out) as part:
        found = recover_log(args.log, part)
    said = f"{found.ticks} ticks and {found.events} events saved"
    return _wrote(args.out, f"{said}; the log was whole already" if found.whole else said)


def view(argv: list[str]) -> int:
    """A page of plots."""
    from deploy.log.page import html

    args = options(ViewOptions, argv, "ksim log view", "A page of plots, in one file.", "ksim log view run.mcap")
    out = args.out or args.log.with_suffix(".html")
    _other(args.log, out)
    text = html(read_log(args.log))
    with atomic_path(out) as part:
        part.write_text(text, encoding="utf-8")
    return _wrote(out, "open it in a browser")


def layout(argv: list[str]) -> int:
    """A layout for Foxglove."""
    args = options(
        LayoutOptions, argv, "ksim log layout", "Write the layout for Foxglove.", "ksim log layout -o ksim.json"
    )
    with atomic_path(args.out) as part:
        shutil.copyfile(LAYOUT, part)
    return _wrote(args.out, "in Foxglove: Layouts, Import from file")


def _other(log: Path, out: Path) -> None:
    if out.exists() and log.exists() and out.samefile(log):
        raise LogError(f"{out}: it is the log; expected another file; name one")


def _wrote(path: Path, what: str) -> int:
    print(f"wrote {path}: {what}", file=sys.stderr)
    return 0


def import_(argv: list[str]) -> int:
    """The log of another program as one of ours."""
    from deploy.log.imports.command import main as importing

    return importing(argv)


TOOLS: dict[str, Callable[[list[str]], int]] = {
    "import": import_,
    "info": info,
    "csv": to_csv,
    "npz": to_npz,
    "recover": recover,
    "view": view,
    "layout": layout,
}
_DESCRIPTION = """\
What a log of ksim run says, and the log in other forms.

  import LOG -o FILE         the log of another program, as one of ksim run
                             [--map FILE] [--robot R] [--policy FILE] [--episode N] [--force] [--json]
  info LOG [--json]          when, how long, how it ended and why, rates, losses, clamps, digests
  csv LOG -o FILE            a row a tick, named columns with units
  npz LOG -o FILE            arrays for numpy, without pickles
  recover LOG -o FILE        a whole MCAP file of one that breaks off
  view LOG [-o FILE]         a page of plots, in one file
  layout -o FILE             a layout for Foxglove
"""


def main(argv: list[str] | None = None) -> int:
    """The command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parse = parser("ksim log", _DESCRIPTION, "ksim log info run.mcap")
    parse.add_argument("tool", choices=TOOLS, help="what to do; ksim log TOOL --help says more")
    tool = parse.parse_args(argv[:1]).tool
    return TOOLS[tool](argv[1:])


if __name__ == "__main__":
    sys.exit(run_verb("log", main, sys.argv[1:]))
