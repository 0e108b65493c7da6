"""What a suite found: lines for a terminal, and one HTML page with its plots."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ksim.plots import STYLE
from ksim.suite.suite import Asked, asked
from toolkit.charts import Chart
from toolkit.files import atomic_path

MORE_STYLE = """
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--quiet)}td,th{padding:4px 10px 4px 0;border-bottom:1px solid var(--rule)}
td.n,th.n{text-align:right}.yes{color:#1a7f4b;font-weight:600}.no{color:#c0262d;font-weight:600}
@media(prefers-color-scheme:dark){.yes{color:#4cc38a}.no{color:#ff7b80}}
td.cell{text-align:right}
"""

# (key, what it is, unit) of the figures that the page and the terminal show for a part with commands.
SHOWN = (
    ("survival", "survival", ""),
    ("velocity_rmse_m_s", "velocity error", "m/s"),
    ("yaw_rate_rmse_rad_s", "yaw rate error", "rad/s"),
    ("swing_height_median_m", "swing height, median", "m"),
    ("swings_over_4_cm", "swings higher than 4 cm", ""),
    ("slip_m_s", "slip of feet on the floor", "m/s"),
    ("left_right_height", "left-right difference, height", ""),
    ("left_right_time", "left-right difference, time", ""),
    ("cost_of_transport", "cost of transport", "-"),
    ("target_acceleration_rms_rad_s2", "target acceleration, RMS", "rad/s²"),
    ("target_speed_p99", "target speed, 99 %, of no-load speed", ""),
    ("targets_at_limit", "ticks with a target at a limit", ""),
    ("torque_p99", "torque, 99 %, of limit", ""),
    ("joint_margin_min", "least distance from a joint limit, of range", ""),
)
PARTS = {"calm": "no pushes", "pushes_100": "pushes to 100 N", "pushes_200": "to 200 N", "uneven": "uneven ground"}


def number(value: float | None, unit: str) -> str:
    """A figure as text: shares as per cent."""
    if value is None:
        return "-"
    return f"{value:.1%}" if unit == "" else f"{value:.3g} {unit}".removesuffix(" -")


def _limit(row: Asked) -> str:
    return f"{'at least' if row.least else 'at most'} {number(row.limit, row.unit)}"


def lines(result: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""
    rows = asked(result)
    wide = max(len(r.what) for r in rows)
    out = [f"{r.what:{wide}}  {number(r.value, r.unit):>12}  {'yes' if r.met else 'NO':4}{_limit(r)}" for r in rows]
    if "alone" in result:
        worst = sorted(result["alone"], key=lambda r: (r["survival"], -(r["velocity_rmse_m_s"] or 0.0)))[:3]
        hurts = ", ".join(f"{r['what']} ({r['survival']:.0%})" for r in worst)
        out += ["", f"what hurts most alone: {hurts}"]
    if "imu" in result:
        margins = ", ".join(f"{1e3 * s:.0f} ms at {rate} Hz" for rate, s in result["imu"]["margin_s"].items())
        out.append(f"IMU's age up to which 90 % stay up, whatever the stiction: {margins}")
    return out


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th class="{"n" if i else ""}">{escape(h)}</th>' for i, h in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f'<td class="{"n" if i else ""}">{cell}</td>' for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _asked(result: dict[str, Any]) -> str:
    rows = [
        [
            escape(r.what),
            escape(number(r.value, r.unit)),
            escape(_limit(r)),
            '<span class="yes">yes</span>' if r.met else '<span class="no">no</span>',
        ]
        for r in asked(result)
    ]
    return _table(["", "measured", "asked for", "met"], rows)


def _figures(result: dict[str, Any]) -> str:
    parts = [part for part in PARTS if part in result]
    rows = [
        [escape(what), *(escape(number(result[part].get(key), unit)) for part in parts)] for key, what, unit in SHOWN
    ]
    return _table(["", *(PARTS[part] for part in parts)], rows)


def _recovery(result: dict[str, Any]) -> str:
    chart = Chart("force of the push [N]", "survived", height=220, y_zero=True)
    for row in result["pushes_200"]["recovery"]:
        if row["survived"] is not None:
            chart.bar(row["from_n"], row["to_n"], row["survived"], f"{row['survived']:.1%} of {row['pushes']}")
    return chart.svg()


def _alone(result: dict[str, Any]) -> str:
    rows = [
        [
            escape(r["what"]),
            f"{r['survival']:.0%}",
            number(r["velocity_rmse_m_s"], "m/s"),
            number(r["yaw_rate_rmse_rad_s"], "rad/s"),
        ]
        for r in result["alone"]
    ]
    return _table(["alone", "survival", "velocity error", "yaw rate error"], rows)


def _imu(result: dict[str, Any]) -> str:
    cells = result["imu"]["cells"]
    ages = sorted({c["age_s"] for c in cells})
    kinds = sorted({(c["rate_hz"], c["stiction_nm"]) for c in cells})
    at = {(c["rate_hz"], c["stiction_nm"], c["age_s"]): c["survival"] for c in cells}
    rows = [[f"{rate:g} Hz, {nm:g} N m", *(f"{at[rate, nm, age]:.0%}" for age in ages)] for rate, nm in kinds]
    return _table(["rate, stiction", *(f"{1e3 * age:.0f} ms" for age in ages)], rows)


def _twins(result: dict[str, Any]) -> str:
    rows = [
        [
            f"seed {r['seed']}",
            escape(str(r["ended"])),
            number(r["survived_s"], "s"),
            number(r["state_round_trip_p50_ms"], "ms"),
            escape(str(r["overruns"])),
        ]
        for r in result["twins"]
    ]
    return _table(["reality", "ended", "walked for", "state round trip, p50", "late ticks"], rows)


def write_page(path: str | Path, result: dict[str, Any], name: str) -> None:
    """Write the page."""
    sections = {
        "What is asked of it": _asked(result),
        "With everything random": _figures(result),
        "Pushes: the share that it survived, by their force": _recovery(result),
    }
    if "alone" in result:
        sections["Each thing alone: which one hurts?"] = _alone(result)
    if result.get("twins"):
        sections["Twins with drawn realities, over gRPC"] = _twins(result)
    if "imu" in result:
        sections["Survival by the IMU's age, rate and the joints' stiction"] = _imu(result)
    body = "".join(f"<section><h2>{escape(k)}</h2>{v}</section>" for k, v in sections.items())
    n = result["settings"]
    with atomic_path(path) as part:
        part.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(name)}: suite walk</title>'
            f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}{MORE_STYLE}</style>'
            f'</head><body><main><h1>{escape(name)}: suite walk</h1><p class="quiet">{escape(result["task"])}, '
            f"{n['episodes']} episodes of 20 s a part, seed {n['seed']}, MuJoCo C. Velocity errors are root mean "
            "squares of means over 0.8 s, from 2 s after a command changed, without pushes.</p>"
            f"{body}</main></body></html>\n",
            encoding="utf-8",
        )
