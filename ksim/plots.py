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

STYLE = """
:root{--ink:#1d2430;--quiet:#677083;--page:#f5f6f8;--card:#fff;--rule:#e2e5ea;--a:#2563eb;--b:#1a9a55}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#98a1b3;--page:#12151b;--card:#1b2029;--rule:#2c3340;
--a:#6ea0ff;--b:#4cc38a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:17px;margin:0 0 6px}h3{font-size:14px;margin:10px 0 0;font-weight:600}
h3 span{color:var(--quiet);font-weight:400;margin-left:8px}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin:16px 0}
p{margin:4px 0 10px}.quiet{color:var(--quiet)}
video{width:100%;border-radius:6px}
svg{display:block;width:100%;height:auto;max-width:100%}
svg.key{display:inline-block;width:22px;height:8px;margin-right:6px;vertical-align:middle}
.grid{stroke:var(--rule)}.axis{stroke:var(--quiet)}.mark{stroke:var(--quiet);stroke-dasharray:3 3}
.tick{font-size:11px;fill:var(--quiet)}.label{font-size:12px;fill:var(--ink)}
.bar{fill:var(--a)}path{fill:none;stroke-linejoin:round}
path.value{stroke:var(--a);stroke-width:1.6}path.wanted{stroke:var(--b);stroke-width:1.6}
.legend{display:flex;gap:20px;font-size:13px;color:var(--quiet);margin:2px 0 6px 62px;flex-wrap:wrap}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:4px 20px}
"""
SMALL_WIDTH, SMALL_HEIGHT = 480, 170


def _small(recording: Recording, name: str, said: str, unit: str, values: np.ndarray, zero: bool = False) -> str:
    chart = Chart("time [s]", unit, width=SMALL_WIDTH, height=SMALL_HEIGHT, y_zero=zero)
    chart.line(recording.time_s, values, "value")
    return f"<div><h3>{escape(name)}<span>{escape(said)}</span></h3>{chart.svg()}</div>"


def _rewards(r: Recording) -> str:
    total = np.sum(list(r.rewards.values()), axis=0) if r.rewards else np.zeros(len(r))
    chart = Chart("time [s]", "sum of all [1/s]")
    chart.line(r.time_s, total, "value")
    terms = sorted(r.rewards.items(), key=lambda pair: -abs(float(np.mean(pair[1]))))
    small = [_small(r, name, f"mean {np.mean(v):+.3g}", "reward [1/s]", v) for name, v in terms]
    return f'{chart.svg()}<div class="two">{"".join(small)}</div>'


def _torque(r: Recording) -> str:
    share = np.abs(r.torque_share)
    order = np.argsort(-share.max(axis=0), kind="stable")
    peaks = {r.joint_names[i]: 100.0 * float(share[:, i].max()) for i in order}
    small = [
        _small(r, r.joint_names[i], f"peak {share[:, i].max():.0%}", "torque / limit", r.torque_share[:, i])
        for i in order
    ]
    bars = bars_by_name(peaks, "%", reference=100.0)
    return f'<h3>peak of each joint<span>the line is its limit</span></h3>{bars}<div class="two">{"".join(small)}</div>'


def _motion(r: Recording) -> str:
    forward, left = r.velocity_h.T
    parts = []
    for name, old, values in (("xvel", "vx", forward), ("yvel", "vy", left)):
        chart = Chart("time [s]", f"{name} [m/s]", width=SMALL_WIDTH, height=SMALL_HEIGHT)
        chart.line(r.time_s, values, "value", "of the base")
        if name in r.commands or old in r.commands:
            chart.line(r.time_s, r.command(name, old), "wanted", "command")
        parts.append(f"<div>{chart.svg()}</div>")
    others = [n for n in r.commands if n not in ("xvel", "vx", "yvel", "vy")]
    parts += [_small(r, f"command {name}", "", name, r.commands[name]) for name in others]
    return f'<div class="two">{"".join(parts)}</div>'


def _forces(r: Recording) -> str:
    parts = [
        _small(r, name, "", "contact force [N]", r.foot_force[:, i], zero=True) for i, name in enumerate(r.foot_names)
    ]
    parts.append(_small(r, "push", "", "force on the robot [N]", np.linalg.norm(r.push_w, axis=-1), zero=True))
    return f'<div class="two">{"".join(parts)}</div>'


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
    clip = ""
    if video is not None:
        source = quote(Path(os.path.relpath(video, path.parent)).as_posix())
        clip = f'<section><video src="{escape(source)}" controls loop muted></video></section>'
    sections = {
        "Rewards, each with its weight": _rewards(r),
        "Torque, as a share of each joint's limit": _torque(r),
        "Velocity in the frame of the heading, and command": _motion(r),
        "Forces": _forces(r),
    }
    body = "".join(f"<section><h2>{escape(k)}</h2>{v}</section>" for k, v in sections.items())
    with atomic_path(path) as part:
        part.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
            f'<main><h1>{escape(title)}</h1><p class="quiet">robot {escape(Path(r.robot).name)}, seed {r.seed}: '
            f"{end} after {r.length_s:.2f} s.</p>{clip}{body}</main></body></html>\n",
            encoding="utf-8",
        )
