"""The page of one log: what was sent and measured, how the loop kept time, what safety did."""

from __future__ import annotations

from html import escape

import numpy as np

from deploy.log.recorder import RunLog
from deploy.log.summary import Summary, facts_as_text, lost_as_text, summary
from deploy.parity.page import events, tilt
from deploy.parity.words import short
from toolkit.charts import Chart, bars_by_name, histogram
from toolkit.page import cell, facts, page, table, two


def _head(log: RunLog, found: Summary) -> str:
    rows = {"ended": f"{found.ended}: {found.message}"}
    rows |= facts_as_text(log)
    rows["ticks"] = ", ".join(f"{phase} {n}" for phase, n in found.ticks.items()) or "none"
    rows["lost"] = lost_as_text(found)
    return facts((name, escape(v)) for name, v in rows.items())


def _joints(log: RunLog, at_s: np.ndarray) -> str:
    out = []
    for j, name in enumerate(log.spec.robot.joint_names):
        angle = Chart("time [s]", "position [rad]", width=480, height=190)
        angle.line(at_s, log.target[:, j], "simulated", "target before safety")
        angle.line(at_s, log.sent[:, j], "sent", "sent")
        angle.line(at_s, log.joint_position[:, j], "measured", "measured")
        torque = Chart("time [s]", "torque [N m]", width=480, height=190)
        torque.line(at_s, log.joint_torque[:, j], "measured", "measured")
        out.append(f"<h3>{escape(short(name))}</h3>{two(angle.svg(), torque.svg())}")
    return "".join(out)


def _timing(log: RunLog, found: Summary) -> str:
    rows = np.flatnonzero(log.run | log.mask("between"))
    said = ", ".join(f"{name} p50 {p50:.2f}, p99 {p99:.2f} ms" for name, (p50, p99) in found.timing.stages.items())
    return f"<p>{found.rate_hz:.2f} ticks a second, {found.timing.skipped} deadlines skipped. {escape(said)}</p>" + two(
        histogram(1e3 * np.diff(log.start_s[rows]), "period [ms]"),
        histogram(1e3 * log.state_round_trip_s[rows], "state round trip [ms]"),
    )


def _safety(found: Summary) -> str:
    if not found.clamps:
        return "<p>No target was changed on its way to the robot.</p>"
    kinds = table(("What", "times"), ((escape(k), cell(str(n))) for k, n in found.clamps.items()))
    joints = {short(name): float(n) for name, n in found.clamped_joints.items()}
    return kinds + bars_by_name(joints, "times")


def html(log: RunLog) -> str:
    """The page as text."""
    found = summary(log)
    at_s = log.start_s - (log.start_s[0] if len(log.start_s) else 0.0)
    sections = [("", "", _head(log, found))]
    if np.isfinite(log.quat_wxyz[log.run]).any():
        sections.append(("Balance", "Angle between the IMU's z axis and up, while the policy ran.", tilt(log)))
    if log.run.any():
        sections.append(("Timing of the loop", "While the policy ran.", _timing(log, found)))
    sections += [
        ("Safety", "", _safety(found)),
        ("Joints", "All phases, from the first tick.", _joints(log, at_s)),
        ("Events", "", events(log)),
    ]
    incomplete = "" if log.complete else " The log breaks off; this is what is there."
    about = f"{log.path.name}: task {log.spec.task}, {len(log.tick)} ticks, {found.duration_s:.1f} s.{incomplete}"
    return page(f"{log.spec.robot.name}: a run", about, sections)
