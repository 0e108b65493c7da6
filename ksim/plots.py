"""The plots of a recording as one HTML page: rewards, torque, velocity and contact forces. Nothing to load."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ksim.recording import Recording
from toolkit.charts import Chart, bars_by_name
from toolkit.files import atomic_path
from toolkit.page import page, two

SMALL_WIDTH, SMALL_HEIGHT = 480, 170


def _small(recording: Recording, name: str, said: str, unit: str, values: np.ndarray, zero: bool = False) -> str:
    chart = Chart("time [s]", unit, width=SMALL_WIDTH, height=SMALL_HEIGHT, y_zero=zero)
    chart.line(recording.time_s, values, "measured")
    return f"<h3>{escape(name)}<span>{escape(said)}</span></h3>{chart.svg()}"


def _rewards(r: Recording) -> str:
    total = np.sum(list(r.rewards.values()), axis=0) if r.rewards else np.zeros(len(r))
    chart = Chart("time [s]", "sum of all [1/s]")
    chart.line(r.time_s, total, "measured")
    terms = sorted(r.rewards.items(), key=lambda pair: -abs(float(np.mean(pair[1]))))
    small = [_small(r, name, f"mean {np.mean(v):+.3g}", "reward [1/s]", v) for name, v in terms]
    return f"{chart.svg()}{two(*small)}"


def _torque(r: Recording) -> str:
    share = np.abs(r.torque_share)
    order = np.argsort(-share.max(axis=0), kind="stable")
    peaks = {r.joint_names[i]: 100.0 * float(share[:, i].max()) for i in order}
    small = [
        _small(r, r.joint_names[i], f"peak {share[:, i].max():.0%}", "torque / limit", r.torque_share[:, i])
        for i in order
    ]
    bars = bars_by_name(peaks, "%", reference=100.0)
    return f"<h3>peak of each joint<span>the line is its limit</span></h3>{bars}{two(*small)}"


def _motion(r: Recording) -> str:
    forward, left = r.velocity_h.T
    parts = []
    for name, old, values in (("xvel", "vx", forward), ("yvel", "vy", left)):
        chart = Chart("time [s]", f"{name} [m/s]", width=SMALL_WIDTH, height=SMALL_HEIGHT)
        chart.line(r.time_s, values, "measured", "of the base")
        if name in r.commands or old in r.commands:
            chart.line(r.time_s, r.command(name, old), "wanted", "command")
        parts.append(chart.svg())
    others = [n for n in r.commands if n not in ("xvel", "vx", "yvel", "vy")]
    parts += [_small(r, f"command {name}", "", name, r.commands[name]) for name in others]
    return two(*parts)


def _forces(r: Recording) -> str:
    parts = [
        _small(r, name, "", "contact force [N]", r.foot_force[:, i], zero=True) for i, name in enumerate(r.foot_names)
    ]
    parts.append(_small(r, "push", "", "force on the robot [N]", np.linalg.norm(r.push_w, axis=-1), zero=True))
    return two(*parts)


def write_plots(path: str | Path, recording: Recording, name: str, video: str | None = None) -> None:
    """Write the page.

    Args:
        path: the .html.
        recording: what it shows.
        name: of the policy.
        video: a video of it, which the page then plays from where it lies.
    """
    r, path = recording, Path(path)
    title = f"{Path(name).name}: {r.task}"
    end = "still standing" if r.survived else "fell"
    clip = []
    if video is not None:
        source = quote(Path(os.path.relpath(video, path.parent)).as_posix())
        clip = [("", "", f'<video src="{escape(source)}" controls loop muted></video>')]
    sections = [
        *clip,
        ("Rewards, each with its weight", "", _rewards(r)),
        ("Torque, as a share of each joint's limit", "", _torque(r)),
        ("Velocity in the frame of the heading, and command", "", _motion(r)),
        ("Forces", "", _forces(r)),
    ]
    about = f"robot {Path(r.robot).name}, seed {r.seed}: {end} after {r.length_s:.2f} s."
    with atomic_path(path) as part:
        part.write_text(page(title, about, sections), encoding="utf-8")
