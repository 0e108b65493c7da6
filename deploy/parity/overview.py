"""The top of a parity report: verdict, suspects, the robot, the layers, the bands; and the row of each log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.parity import words
from deploy.parity.figure import robot_figure
from deploy.parity.report import Figure, Judgement, Suspect
from robots.errors import RobotLoadError
from toolkit.charts import Chart, bars_by_name
from toolkit.page import cell, chip, prose, table

if TYPE_CHECKING:
    from deploy.parity.closed_loop import Band

STYLE = """
ol.suspects{margin:16px 0 0;padding:0;list-style:none;counter-reset:k}
ol.suspects li{counter-increment:k;border-top:1px solid var(--rule);padding:12px 0 2px 34px;position:relative}
ol.suspects li::before{content:counter(k);position:absolute;left:0;top:12px;width:24px;height:24px;border-radius:99px;
background:var(--rule);text-align:center;font-weight:600;font-size:14px;line-height:24px}
.explains{display:inline-block;width:90px;height:8px;border-radius:4px;background:var(--rule);margin-right:8px}
.explains i{display:block;height:8px;border-radius:4px;background:var(--b)}
.overview{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr));gap:10px 34px;
align-items:start}.overview>*{min-width:0}
svg.robot{max-width:520px;margin:0 auto}.shape{fill:var(--ink);fill-opacity:.09;stroke:none}
.limb{stroke:var(--quiet);stroke-width:3;stroke-linecap:round;stroke-opacity:.45}
.joint{stroke:var(--card);stroke-width:1.5}.lead{stroke:var(--quiet);stroke-width:.8}
.name{font-size:12.5px;font-weight:600;fill:var(--ink)}
.overview .legend{margin:10px 0;justify-content:center;font-size:12px;gap:2px 14px}
details.layer{border-bottom:1px solid var(--rule);padding:8px 0}details.layer:last-child{border:0}
details.layer summary{list-style-position:outside;margin-left:16px;color:var(--ink)}
details.layer summary b{display:inline-block;min-width:116px}details.layer summary .quiet{display:block;font-size:14px}
details.layer>*:not(summary){margin:8px 0 4px 16px}
"""

# How many joints have their band shown at once, and the letters that fit beside a chart.
BANDS, NAME_MAX = 3, 10


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One of several logs.

    Attributes:
        name: of the log.
        duration_s: of its run [s].
        judgement: of this log alone.
        page: its own page, as seen from the page of all; empty where there is none.
    """

    name: str
    duration_s: float
    judgement: Judgement
    page: str = ""


def verdict(judgement: Judgement) -> str:
    """Mark, sentence, and the suspects with what to do next."""
    mark = chip(judgement.mark.value, words.conclusion(judgement))
    top = f'<p class="verdict">{mark}{prose(words.verdict(judgement))}</p>'
    items = "".join(f"<li>{_suspect(s)}</li>" for s in judgement.suspects)
    return top + (f'<ol class="suspects">{items}</ol>' if items else "")


def _suspect(suspect: Suspect) -> str:
    size = 100 * min(1.0, max(0.0, suspect.explains))
    bar = "" if suspect.direct else f'<span class="explains"><i style="width:{size:.0f}%"></i></span>'
    return (
        f"<b>{prose(words.said(suspect))}</b><br>{bar}"
        f'<span class="quiet">{prose(words.capital(words.why(suspect)))}. Layer: {suspect.layer.value}.</span>'
        f"<p>{_code(words.next_step(suspect))}</p>"
    )


def _code(text: str) -> str:
    """Text as HTML; what stands between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))


def picture(robot: str | Path, shares: Mapping[str, float], where: Mapping[str, str]) -> str:
    """The robot, its joints coloured; a sentence of a robot that cannot be built here."""
    try:
        return robot_figure(robot, shares, where)
    except RobotLoadError as error:
        return f'<p class="quiet">No picture of the robot: {escape(str(error))}</p>'


def overview(robot: str | Path, judgement: Judgement) -> str:
    """The robot, and beside it the layers."""
    worst = words.worst_joints(judgement)
    drawn = picture(robot, {j: v for j, v, _ in worst}, {j: layer.value for j, _, layer in worst})
    return f'<div class="overview"><div>{drawn}</div><div>{layers(judgement)}</div></div>'


def layers(judgement: Judgement) -> str:
    """A line a layer; its figures and joints open below it."""
    out = []
    for layer in judgement.layers:
        headline = words.headline(layer)
        inside = table(("", "found", "good", ""), map(_figure, layer.figures)) if layer.figures else ""
        joints = {words.short(j): v for j, v in sorted(layer.joints.items(), key=lambda item: -item[1])}
        if joints:
            inside += f"<h3>Joints, in shares of the bound</h3>{bars_by_name(joints, '', 1.0)}"
        head = (
            f"<b>{escape(words.capital(layer.name.value))}</b>{chip(layer.mark.value, words.MARKS[layer.mark])}"
            f'<span class="quiet">{prose(headline)}</span>'
        )
        inside = inside or '<p class="quiet">Nothing measured.</p>'
        out.append(f'<details class="layer"><summary>{head}</summary>{inside}</details>')
    return "".join(out)


def _figure(figure: Figure) -> tuple[str, ...]:
    mark = chip(figure.mark.value, words.MARKS[figure.mark])
    good = f'<td class="n quiet">{escape(words.bound(figure))}</td>'
    return escape(words.capital(figure.what)), cell(words.told(figure)), good, mark


def band_charts(bands: Sequence[Band]) -> str:
    """A chart a signal: where the simulations go, and where reality went.

    The base's signals and the joints that are least inside come first; the other joints open below.
    """
    base = [band for band in bands if band.unit != "rad" or band.signal == "tilt"]
    joints = sorted((band for band in bands if band not in base), key=lambda band: band.inside)
    shown, rest = joints[:BANDS], joints[BANDS:]
    more = f"<details><summary>The other joints</summary>{''.join(map(_band, rest))}</details>" if rest else ""
    return "".join(map(_band, [*base, *shown])) + more


def _band(band: Band) -> str:
    name = words.short(band.signal)
    chart = Chart("time [s]", f"{name if len(name) < NAME_MAX else 'position'} [{band.unit}]", height=190)
    chart.band(band.time_s, band.low, band.high, "simulated, 5 to 95 %")
    chart.line(band.time_s, band.middle, "simulated", "their median")
    chart.line(band.time_s, band.measured, "measured", "measured")
    inside = f"{100 * band.inside:.0f} % of the time inside" if math.isfinite(band.inside) else "cannot be told"
    return f"<h3>{escape(name)}<span>{inside}</span></h3>{chart.svg()}"


def log_rows(rows: Sequence[LogRow]) -> str:
    """A row a log."""

    def cells(row: LogRow) -> tuple[str, ...]:
        judgement, worst = row.judgement, words.worst_joints(row.judgement)[:1]
        name = f'<a href="{escape(row.page)}">{escape(row.name)}</a>' if row.page else escape(row.name)
        first = words.said(judgement.suspects[0]) if judgement.suspects else "&ndash;"
        return (
            f'<td class="name">{name}</td>',
            cell(f"{row.duration_s:.1f} s"),
            chip(judgement.mark.value, words.conclusion(judgement)),
            escape(first) if judgement.suspects else first,
            cell(f"{words.short(worst[0][0])}: {worst[0][1]:.2g}" if worst else "–"),
        )

    return table(("Log", "length", "", "First suspect", "Worst joint, shares of the bound"), map(cells, rows))
