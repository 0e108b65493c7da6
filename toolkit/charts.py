"""Small static SVG charts for reports: no library, no script, readable offline and in print.

They wear the style of toolkit/page.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 62, 16, 12, 40
POINTS_MAX = 1500
# Letters of a mark that half a chart has room for on a phone.
MARK_MAX = 22


def _text(value: float) -> str:
    return f"{value:.4g}"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that divide [low, high] into about `count` parts."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass
class Chart:
    """A chart with linear axes; series are added, then `svg` draws them.

    Attributes:
        x_label, y_label: what the axes show, with unit.
        width, height: size in pixels; a page that is narrower or wider stretches the width.
        y_zero: the y axis begins at 0.
    """

    x_label: str
    y_label: str
    width: int = 980
    height: int = 240
    y_zero: bool = False
    _lines: list[tuple[np.ndarray, np.ndarray, str, str]] = field(default_factory=list)
    _bars: list[tuple[float, float, float, str]] = field(default_factory=list)
    _bands: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]] = field(default_factory=list)
    _marks: list[tuple[float, str]] = field(default_factory=list)

    def line(
        self, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, style: str, name: str = ""
    ) -> None:
        """A line; NaN breaks it. Series of equal `name` and `style` share an entry in the legend."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        keep = ~np.isfinite(x + y)  # every gap, of the rest no more than can be seen
        keep[:: max(1, len(x) // POINTS_MAX)] = True
        self._lines.append((x[keep], y[keep], style, name))

    def bar(self, left: float, right: float, top: float, tip: str) -> None:
        """A bar from 0 to `top` between two x values."""
        self._bars.append((left, right, top, tip))

    def band(
        self,
        x: Sequence[float] | np.ndarray,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        name: str = "",
    ) -> None:
        """An area between two lines, behind all lines; NaN breaks it."""
        keep = slice(None, None, max(1, len(x) // POINTS_MAX))
        x, low, high = (np.asarray(v, dtype=float)[keep] for v in (x, low, high))
        self._bands.append((x, low, high, name))

    def mark(self, x: float, text: str) -> None:
        """A vertical line with a text."""
        self._marks.append((x, text))

    def _range(self) -> tuple[float, float, float, float]:
        xs = [v for x, *_ in (*self._lines, *self._bands) for v in x] + [v for b in self._bars for v in b[:2]]
        ys = [v for _, y, *_ in self._lines for v in y] + [b[2] for b in self._bars]
        ys += [v for _, low, high, _ in self._bands for v in (*low, *high)]
        xs, ys = ([v for v in values if math.isfinite(v)] or [0.0, 1.0] for values in (xs, ys))
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        if self.y_zero or self._bars:
            y0 = min(0.0, y0)
        x1 = x1 if x1 > x0 else x0 + 1.0
        pad = 0.06 * (y1 - y0) if y1 > y0 else 0.5 * abs(y1) or 1.0
        return x0, x1, y0 if y0 == 0.0 else y0 - pad, y1 + pad

    def svg(self) -> str:
        """The chart as HTML: it fills the width that there is, and its text stays as large as it is."""
        x0, x1, y0, y1 = self._range()
        wide, high = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM

        def px(x: float) -> float:
            return (x - x0) / (x1 - x0) * wide

        def share(x: float) -> str:
            return f"{100 * (x - x0) / (x1 - x0):.2f}%"

        def py(y: float) -> float:
            return (y1 - y) / (y1 - y0) * high

        out = [
            f'<div class="chart" style="--high:{high}px"><svg class="plot" role="img" '
            f'aria-label="{escape(self.y_label)} over {escape(self.x_label)}">'
        ]
        for y in nice_ticks(y0, y1):
            out.append(f'<line class="grid" x1="0" x2="100%" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
            out.append(f'<text class="tick" x="-7" y="{py(y) + 4:.1f}" text-anchor="end">{_text(y)}</text>')
        for k, x in enumerate(nice_ticks(x0, x1, 8)):
            out.append(f'<line class="axis" x1="{share(x)}" x2="{share(x)}" y1="{high}" y2="{high + 4}"/>')
            kind = "tick every-other" if k % 2 else "tick"
            out.append(f'<text class="{kind}" x="{share(x)}" y="{high + 17}" text-anchor="middle">{_text(x)}</text>')
        out.append(f'<line class="axis" x1="0" x2="100%" y1="{high}" y2="{high}"/>')
        out.append(
            f'<text class="label" x="50%" y="{high + 35}" text-anchor="middle">{escape(self.x_label)}</text>'
            f'<text class="label" transform="translate(-46 {high / 2:g}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        out.append(f'<svg viewBox="0 0 {wide} {high}" preserveAspectRatio="none">')  # stretched; strokes are not
        for left, right, top, tip in self._bars:
            a, b, y = px(left), px(right), py(top)
            out.append(
                f'<rect class="bar" x="{a + 0.5:.1f}" y="{y:.1f}" width="{max(0.5, b - a - 1):.1f}" '
                f'height="{max(0.0, py(0) - y):.1f}"><title>{escape(tip)}</title></rect>'
            )
        for x, lower, upper, _ in self._bands:
            for part in _stretches(np.isfinite(x) & np.isfinite(lower) & np.isfinite(upper)):
                edge = [*zip(x[part], upper[part], strict=True), *zip(x[part][::-1], lower[part][::-1], strict=True)]
                out.append(f'<path class="band" d="M{"L".join(f"{px(a):.1f} {py(b):.1f}" for a, b in edge)}Z"/>')
        for x, y, style, _ in self._lines:
            parts = _stretches(np.isfinite(x) & np.isfinite(y))
            lines = ("L".join(f"{px(a):.1f} {py(b):.1f}" for a, b in zip(x[p], y[p], strict=True)) for p in parts)
            out.append(f'<path class="{style}" d="{"".join(f"M{line}" for line in lines)}"/>')
        out.append("</svg>")
        for x, text in self._marks:
            if x0 <= x <= x1:
                out.append(f'<line class="mark" x1="{share(x)}" x2="{share(x)}" y1="0" y2="{high}"/>')
                side, shift = ("end", -4) if px(x) > wide / 2 else ("start", 4)
                shown = text if len(text) <= MARK_MAX else f"{text[: MARK_MAX - 1].rstrip()}…"
                place = f'x="{share(x)}" dx="{shift}" y="10" text-anchor="{side}"'
                out.append(f'<text class="tick" {place}>{escape(shown)}<title>{escape(text)}</title></text>')
        out.append("</svg></div>")
        return "".join(out) + self._legend()

    def _legend(self) -> str:
        lines = dict.fromkeys((name, style, "M0 4L22 4") for *_, style, name in self._lines if name)
        bands = dict.fromkeys((name, "band", "M0 0H22V8H0Z") for *_, name in self._bands if name)
        items = (
            f'<span><svg class="key" viewBox="0 0 22 8"><path class="{style}" d="{drawn}"/></svg>{escape(name)}</span>'
            for name, style, drawn in (lines | bands)
        )
        return f'<div class="legend">{"".join(items)}</div>' if lines or bands else ""


def _stretches(good: np.ndarray) -> list[slice]:
    """The stretches of True in (T,)."""
    edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(int)))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def bars_by_name(values: dict[str, float], unit: str, reference: float | None = None) -> str:
    """Horizontal bars, one a name; a thin line marks `reference`."""
    step = 19
    line = reference if reference and math.isfinite(reference) else None
    top = max([v for v in values.values() if math.isfinite(v)] + ([line] if line else []) + [1e-12])
    high = step * len(values) + 8
    out = [f'<div class="bars" style="--high:{high}px"><svg role="img">']
    for k, (name, value) in enumerate(values.items()):
        y, size = 4 + k * step, f"{100 * value / top if math.isfinite(value) else 0.0:.2f}%"
        out.append(f'<text class="label" x="-8" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect class="bar" x="0" y="{y + 2}" width="{size}" height="{step - 5}" rx="2"/>')
        out.append(f'<text class="tick" x="{size}" dx="6" y="{y + 13}">{_text(value)} {escape(unit)}</text>')
    if line:
        x = f"{100 * line / top:.2f}%"
        out.append(f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="{high}"/>')
    out.append("</svg></div>")
    return "".join(out)


def histogram(values: np.ndarray, x_label: str, bins: int = 50, width: int = 480, height: int = 220) -> str:
    """A histogram of finite values; the two per mille beyond either end go into the outermost bars."""
    values = values[np.isfinite(values)]
    if not len(values):
        return '<p class="quiet">nothing measured</p>'
    low, high = np.percentile(values, [0.2, 99.8])
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all the same but for rounding, as periods in lock step
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    chart = Chart(x_label, "ticks", width=width, height=height)
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        chart.bar(float(a), float(b), float(count), f"{count} of {len(values)}: {a:.3g} to {b:.3g}")
    return chart.svg()
