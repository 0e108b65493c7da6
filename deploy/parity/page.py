"""The page of a parity report: one HTML file with inline style and SVG, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.parity.motion import measured_at_s
from deploy.parity.overview import STYLE, LogRow, band_charts, log_rows, overview, verdict
from deploy.parity.words import short
from robots.rotation import gravity_in_frame
from toolkit.charts import Chart, bars_by_name, histogram
from toolkit.page import cell, page, table, two
from toolkit.words import count

if TYPE_CHECKING:
    from deploy.log.recorder import RunLog
    from deploy.parity.layers import Parity
    from deploy.parity.report import Judgement

WORST_JOINTS = 4


def _joints(report: dict[str, Any]) -> str:
    per_joint = report["per_joint"]
    order = sorted(per_joint, key=lambda name: -per_joint[name]["position_rmse_rad"])
    values = {short(name): per_joint[name]["position_rmse_rad"] for name in order}

    figures = (
        ("position_rmse_rad", ".4f", "position RMSE [rad]"),
        ("position_bias_rad", "+.4f", "bias [rad]"),
        ("position_correlation", ".2f", "correlation of the motion"),
        ("velocity_rmse_rad_s", ".3f", "velocity RMSE [rad/s]"),
        ("velocity_correlation", ".2f", "correlation"),
        ("motion_rms_rad", ".4f", "motion itself, RMS [rad]"),
    )
    rows = (
        (escape(short(name)), *(_number(per_joint[name][key], digits) for key, digits, _ in figures)) for name in order
    )
    head = ("Joint", *(what for *_, what in figures))
    return (
        bars_by_name(values, "rad", report["joint_position_rmse_rad"])
        + '<p class="quiet">The dashed line is the figure over all joints.</p>'
        + f"<details><summary>All figures</summary>{table(head, rows)}</details>"
    )


def _number(value: float | None, digits: str) -> str:
    return cell("–" if value is None else f"{value:{digits}}")


def _horizon(report: dict[str, Any]) -> str:
    h = report["horizon"]
    position = Chart("time since the restart [s]", "position RMSE [rad]", width=480, height=210, y_zero=True)
    position.line(h["time_s"], h["joint_position_rmse_rad"], "measured")
    if not any(v is not None and math.isfinite(v) for v in h["base_tilt_rmse_rad"]):
        return position.svg()
    tilt = Chart("time since the restart [s]", "tilt RMSE [rad]", width=480, height=210, y_zero=True)
    tilt.line(h["time_s"], h["base_tilt_rmse_rad"], "measured")
    return two(position.svg(), tilt.svg())


def _overlays(result: Parity) -> str:
    log, replay, per_joint = result.log, result.replay, result.report["per_joint"]
    names = log.spec.robot.joint_names
    worst = sorted(range(len(names)), key=lambda j: -per_joint[names[j]]["position_rmse_rad"])[:WORST_JOINTS]
    rows = np.flatnonzero(log.run)
    measured_s = measured_at_s(log)[rows]
    measured_s = measured_s - measured_s[0]
    gap = np.full((len(replay.first), 1), np.nan)
    time = np.concatenate([replay.time_s, gap], axis=1).ravel()
    out = []
    for j in worst:
        chart = Chart("time [s]", "position [rad]", height=190)
        chart.line(measured_s, log.sent[rows, j], "sent", "target sent")
        chart.line(measured_s, log.joint_position[rows, j], "measured", "measured")
        simulated = np.concatenate([replay.position_sim[..., j], gap], axis=1).ravel()
        chart.line(time, simulated, "simulated", "simulated, restarted each window")
        out.append(f"<h3>{escape(short(names[j]))}</h3>{chart.svg()}")
    return "".join(out)


def _delay(report: dict[str, Any]) -> str:
    delay = report["delay_s"]
    fit = Chart(
        "delay from command to measured effect [ms]", "squared position error, relative", width=480, y_zero=True
    )
    fit.line([1e3 * v for v in delay["searched_s"]], delay["searched_error"], "measured")
    fit.mark(1e3 * delay["assumed_s"], "assumed")
    said = "No delay inside the search fits best: the motion does not tell it."
    if delay["estimated_s"] is not None:
        fit.mark(1e3 * delay["estimated_s"], "best")
        said = (
            f"The simulation fits best with {1e3 * delay['estimated_s']:.1f} ms from command to measured effect; "
            f"{1e3 * delay['assumed_s']:.1f} ms were assumed, the middle of the "
            f"{1e3 * delay['trained_s'][0]:.0f} to {1e3 * delay['trained_s'][1]:.0f} ms of training."
        )
    lags = delay["per_joint"]
    if lags:
        both = sorted(lags, key=lambda name: -lags[name]["measured_s"])
        head = ("Joint", "measured [ms]", "simulated [ms]", "correlation")

        def row(name: str) -> tuple[str, ...]:
            lag = lags[name]
            times = (None if v is None else 1e3 * v for v in (lag["measured_s"], lag["simulated_s"]))
            return escape(short(name)), *(_number(v, ".1f") for v in times), _number(lag["correlation"], ".2f")

        behind = table(head, map(row, both))
    else:
        behind = '<p class="quiet">No joint moved enough for a lag behind its target.</p>'
    return f"<p>{said}</p>" + two(
        f"<h3>Replayed at several delays</h3>{fit.svg()}",
        f"<h3>Lag of each joint behind its target</h3>{behind}",
    )


def _timing(result: Parity) -> str:
    log, loop = result.log, result.report["loop"]
    rows = np.flatnonzero(log.run)
    keys = (
        ("period_p50_ms", "period p50"),
        ("period_p99_ms", "p99"),
        ("period_max_ms", "greatest"),
        ("state_round_trip_p50_ms", "state round trip p50"),
        ("state_round_trip_p99_ms", "p99"),
        ("command_round_trip_p50_ms", "command p50"),
        ("command_round_trip_p99_ms", "p99"),
    )
    said = ", ".join(f"{name} {loop[key]:.2f} ms" for key, name in keys if loop[key] is not None)
    return (
        f"<p>{count(loop['ticks'], 'tick')}, {loop['overruns']} of them late, "
        f"{count(loop['skipped'], 'deadline')} skipped, {count(loop['stale'], 'stale state')}: {said}.</p>"
        + two(
            histogram(1e3 * np.diff(log.start_s[rows]), "period [ms]"),
            histogram(1e3 * log.state_round_trip_s[rows], "state round trip [ms]"),
        )
    )


def tilt(log: RunLog) -> str:
    """The chart of the IMU's tilt over the policy's run."""
    rows = np.flatnonzero(log.run)
    good = rows[np.isfinite(log.quat_wxyz[rows]).all(axis=1)]
    gravity = gravity_in_frame(log.quat_wxyz[good])
    angle = np.degrees(np.arccos(np.clip(-gravity[:, 2] / np.linalg.norm(gravity, axis=1), -1, 1)))
    zero = log.start_s[rows[0]]
    chart = Chart("time [s]", "tilt of the IMU [deg]", y_zero=True)
    chart.line(log.start_s[good] - zero, angle, "measured")
    for event in log.events:
        if event["kind"] == "end":
            chart.mark(event["t_s"] - zero, str(event["message"]))
    return chart.svg()


def _safety(report: dict[str, Any]) -> str:
    safety = report["safety"]
    if not safety["kinds"]:
        return "<p>No target was changed on its way to the robot.</p>"
    kinds = table(("What", "times"), ((escape(k), cell(str(n))) for k, n in safety["kinds"].items()))
    joints = {short(name): float(n) for name, n in list(safety["joints"].items())[:10]}
    return (
        f"<p>{safety['ticks_with_intervention']} of {count(report['loop']['ticks'], 'tick')}; the greatest change of a "
        f"target was {safety['change_max_rad'] or 0.0:.3f} rad.</p>{kinds}" + bars_by_name(joints, "times")
    )


def events(log: RunLog) -> str:
    """Events in order; one that repeats is shown once, with how often and until when."""
    shown: list[dict[str, Any]] = []
    for event in log.events:
        same = shown[-1] if shown else None
        if same and (same["kind"], same["message"]) == (event["kind"], event["message"]):
            same["times"], same["last_s"] = same["times"] + 1, event["t_s"]
        else:
            shown.append({**event, "times": 1, "last_s": event["t_s"]})
    if not shown:
        return '<p class="quiet">None.</p>'

    def row(event: dict[str, Any]) -> tuple[str, ...]:
        again = f" &times; {event['times']}, until {event['last_s']:.2f} s" if event["times"] > 1 else ""
        return cell(f"{event['t_s']:.2f} s"), escape(str(event["kind"])), escape(str(event["message"])) + again

    return table((), map(row, shown))


def write_html(path: Path, result: Parity) -> None:
    """Write the page."""
    report = result.report
    incomplete = "" if report["log_complete"] else " The log breaks off; this is what is there."
    window = report["window_s"]
    bands = result.bands
    has_imu = bool(np.isfinite(result.log.quat_wxyz[result.log.run]).any())
    said = "What the simulation does with the same commands, many times over, each with another draw."
    sections = (
        ("", "", verdict(result.judgement)),
        ("Which joints, and which layer", "", overview(result.robot, result.judgement)),
        ("The joints that differ most", "", _overlays(result)),
        *([("Is reality inside the band?", said, band_charts(bands))] if bands else []),
        (
            "Where joints differ",
            f"Recorded targets through the simulation in {report['windows']} windows of {window:.2g} s, each restarted "
            "from the measured state. RMSE of position by joint.",
            _joints(report),
        ),
        (
            "How the error grows",
            "Over all joints and windows, by the time since the restart. A window restarts from what was measured, "
            "noise and zero offsets included, and contacts push back at once: its first ticks show that above all.",
            _horizon(report),
        ),
        ("Delay", "", _delay(report)),
        *([("Balance", "Angle between the IMU's z axis and up.", tilt(result.log))] if has_imu else []),
        ("Timing of the loop", "", _timing(result)),
        ("Safety", "", _safety(report)),
        ("Events", "", events(result.log)),
    )
    ticks, length = report["loop"]["ticks"], report["loop"]["duration_s"]
    title = f"{report['robot']}: measured against simulated"
    ended = (report["result"] or {}).get("ended", "the log breaks off")
    about = (
        f"{report['log']}: task {report['task']}, {count(ticks, 'tick')}, {length:.1f} s, ended: {ended}. "
        f"Compared with the {report['simulation']} simulation.{incomplete}"
    )
    path.write_text(page(title, about, sections, STYLE), encoding="utf-8")


def write_many(path: Path, robot: str | Path, judgement: Judgement, rows: Sequence[LogRow]) -> None:
    """Write the page of several logs of one robot: what holds for all of them, then a row each."""
    name = Path(robot).name
    sections = (
        ("", "", verdict(judgement)),
        ("The logs", "", log_rows(rows)),
        ("Which joints, and which layer", "Of all logs together.", overview(robot, judgement)),
    )
    length = sum(row.duration_s for row in rows)
    about = f"{len(rows)} logs, {length:.1f} s together."
    path.write_text(page(f"{name}: measured against simulated", about, sections, STYLE), encoding="utf-8")
