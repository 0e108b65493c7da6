"""How well the control loop keeps time against the twin, beside a plain asyncio.sleep loop: a table and histograms.

Run: python benchmarks/loop.py --markdown docs/loop.md --figure docs/loop.svg

The loop is `ksim run` itself, with the standing policy; 100 and 200 Hz are asked for by --rate. The plain loop makes
the same calls with the same clients and then sleeps for one period, as a first script does. Both take turns within one
process, against one twin each time. "busy" is a process that keeps one core busy at the same priority.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2

from deploy.control.run import RunOptions, run
from deploy.log.recorder import read_log
from deploy.robot.kos import KosRobot
from deploy.twin.server import spawn_twin
from robots.load import load_robot

POLICY = Path(__file__).parents[1] / "robots/kbot/policies/stand.kinfer"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One loop in one condition; per tick, in ms.

    Attributes:
        error: |period - nominal|; a deadline that was left out counts as nominal.
        round_trip: state and command.
        skipped: deadlines left out.
        ended: how it ended.
    """

    error: np.ndarray
    round_trip: np.ndarray
    skipped: int
    ended: str


def ours(rate_hz: float, seconds: float) -> Measured:
    """`ksim run` for a while."""
    with spawn_twin("kbot") as twin, tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "run.mcap"
        report = run(
            RunOptions(
                bundle=POLICY,
                port=twin.port,
                robot="kbot",
                duration_s=seconds,
                rate_hz=rate_hz,
                log=log_path,
                realtime=True,
                watchdog_s=2.0,
                late_max=100.0,
                lost_ticks_max=10**6,
            )
        )
        log = read_log(log_path)
    rows = np.flatnonzero(log.run | log.mask("between"))
    start, due = log.start_s[rows], log.scheduled_s[rows]
    steps = np.round(np.diff(due) * rate_hz)
    return Measured(
        error=1e3 * np.abs(np.diff(start) - steps / rate_hz),
        round_trip=1e3 * (log.state_round_trip_s[rows] + log.command_round_trip_s[rows]),
        skipped=int((steps - 1).sum()),
        ended=report.ended,
    )


async def _plain(port: int, rate_hz: float, seconds: float) -> Measured:
    robot = load_robot("kbot")
    ids = list(robot.joint_ids)
    home = np.degrees(robot.column("home_rad")).tolist()
    ask = actuator_pb2.GetActuatorsStateRequest(actuator_ids=ids)
    tell = actuator_pb2.CommandActuatorsRequest(
        commands=[
            actuator_pb2.ActuatorCommand(actuator_id=i, position=p, velocity=0.0, torque=0.0)
            for i, p in zip(ids, home, strict=True)
        ]
    )
    starts, trips = [], []
    async with KosRobot(robot, port=port) as client:
        actuator, imu = client._actuator, client._imu
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            starts.append(time.monotonic())
            await actuator.GetActuatorsState(ask)
            await imu.GetValues(Empty())
            await imu.GetQuaternion(Empty())
            await actuator.CommandActuators(tell)
            trips.append(time.monotonic() - starts[-1])
            await asyncio.sleep(1.0 / rate_hz)
    return Measured(
        error=1e3 * np.abs(np.diff(starts) - 1.0 / rate_hz), round_trip=1e3 * np.array(trips), skipped=0, ended="-"
    )


def plain(rate_hz: float, seconds: float) -> Measured:
    """The first script that one writes."""
    with spawn_twin("kbot") as twin, asyncio.Runner() as runner:
        return runner.run(_plain(twin.port, rate_hz, seconds))


def _burn() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """One core busy."""
    if not wanted:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_burn, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def row(name: str, measured: Measured) -> str:
    """Of the table."""
    e, trip = measured.error, measured.round_trip[np.isfinite(measured.round_trip)]
    lost = len(measured.round_trip) - len(trip)
    figures = " | ".join(f"{np.percentile(e, share):.2f}" for share in (50, 99, 99.9, 100))
    trips = " | ".join(f"{np.percentile(trip, share):.1f}" for share in (50, 99)) if len(trip) else "- | -"
    return f"| {name} | {len(e) + 1} | {figures} | {trips} | {lost} | {measured.skipped} |"


HEAD = (
    "| loop | ticks | period error p50 | p99 | p99.9 | max | round trip p50 | p99 | ticks with a lost answer "
    "| deadlines skipped |\n|---|---|---|---|---|---|---|---|---|---|"
)


WIDTH, HEIGHT, LEFT, COLUMN = 880, 92, 28, 420
COLOURS = {"ksim run": "#2563eb", "asyncio.sleep": "#d97706"}


def _plot(values: list[np.ndarray], x: float, y: float) -> str:
    """Histograms over one logarithmic axis, each in its own colour, with the axis below."""
    values = [np.clip(v[np.isfinite(v)], 1e-3, None) for v in values]
    low, high = min(v.min() for v in values), max(v.max() for v in values) * 1.01
    edges = np.geomspace(low, high, 61)
    wide, tall = COLUMN - 40, HEIGHT - 40
    place = lambda v: x + wide * np.log(v / low) / np.log(high / low)  # noqa: E731
    drawn = []
    for v, colour in zip(values, COLOURS.values(), strict=True):
        share = np.histogram(v, edges)[0] / len(v)
        tops = y + tall * (1 - np.sqrt(share / max(share.max(), 1e-9)))
        points = [(place(edges[0]), y + tall)]
        for top, a, b in zip(tops, edges[:-1], edges[1:], strict=True):
            points += [(place(a), top), (place(b), top)]
        points.append((place(edges[-1]), y + tall))
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        drawn.append(f'<polygon points="{path}" fill="{colour}" fill-opacity="0.45" stroke="{colour}"/>')
    steps = [m * 10.0**e for e in range(-3, 4) for m in ((1, 2, 5) if high / low < 300 else (1,))]
    for value in (step for step in steps if low <= step <= high):
        at = place(value)
        drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y + tall}" y2="{y + tall + 4}" stroke="#888"/>')
        drawn.append(f'<text x="{at:.1f}" y="{y + tall + 15}" text-anchor="middle">{value:g} ms</text>')
    return "".join(drawn)


def figure(path: Path, found: dict[str, tuple[Measured, Measured]]) -> None:
    """Histograms of both loops in each condition, as SVG; the heights are square roots of shares."""
    drawn = []
    for place, (name, pair) in enumerate(found.items()):
        y = 52 + place * HEIGHT
        drawn.append(f'<text x="{LEFT}" y="{y - 4}" font-weight="bold">{name}</text>')
        for column, field in enumerate(("error", "round_trip")):
            drawn.append(_plot([getattr(m, field) for m in pair], LEFT + column * COLUMN, y))
    heads = (("|period - nominal|", LEFT), ("round trip of state and command", LEFT + COLUMN))
    legend = "".join(f'<text x="{x}" y="16">{text}</text>' for text, x in heads) + "".join(
        f'<text x="{LEFT + 560 + 110 * i}" y="32" fill="{colour}">{name}</text>'
        for i, (name, colour) in enumerate(COLOURS.items())
    )
    tall = 52 + len(found) * HEIGHT
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" font-family="sans-serif" font-size="11">'
        f'<rect width="{WIDTH}" height="{tall}" fill="#fff"/>{legend}{"".join(drawn)}</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each loop")
    parser.add_argument("--long", type=float, default=0.0, help="one more row: 50 Hz idle for so long [s]")
    parser.add_argument("--rates", type=float, nargs="+", default=[50.0, 100.0, 200.0])
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its two marks")
    parser.add_argument("--figure", type=Path, help="write histograms into this SVG file")
    args = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines, found = [HEAD], {}
    print(f"{machine}\n{HEAD}", flush=True)
    for loaded in (False, True):
        for rate in args.rates:
            name = f"{rate:g} Hz, {'one core busy' if loaded else 'idle'}"
            with busy(loaded):
                found[name] = (ours(rate, args.seconds), plain(rate, args.seconds))
            for label, measured in zip(("ksim run", "asyncio.sleep"), found[name], strict=True):
                lines.append(row(f"{name}, {label}", measured))
                print(lines[-1], flush=True)
    if args.long:
        lines.append(row(f"50 Hz, idle, ksim run for {args.long:g} s", ours(50.0, args.long)))
        print(lines[-1], flush=True)
    if args.figure is not None:
        figure(args.figure, found)
    if args.markdown is not None:
        text = args.markdown.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end of table -->")
        body = "\n".join(lines)
        args.markdown.write_text(
            f"{before}<!-- table -->\n{body}\n\nMeasured on: {machine}.\n<!-- end of table -->{after}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
