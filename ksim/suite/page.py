"""What a suite found: lines for a terminal, and one HTML page with its plots."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from ksim.suite.suite import Asked, asked
from toolkit.charts import Chart
from toolkit.files import atomic_path
from toolkit.page import cell, chip, page, table

# (key, what it is, unit) of the figures that the page and the terminal show for a part with commands.
SHOWN = (
    ("survival", "survival", ""),
    ("velocity_rmse_m_s", "velocity error", "m/s"),
    ("yaw_rate_rmse_rad_s", "yaw rate error", "rad/s"),
    ("xvel_gain", "share of a change of xvel that it follows", ""),
    ("yvel_gain", "share of a change of yvel that it follows", ""),
    ("yawrate_gain", "share of a change of yawrate that it follows", ""),
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
    level = result.get("level", 1.0)
    out = [] if level == 1.0 else [f"At level {level:g} of the curriculum. What is asked for is asked at level 1.", ""]
    out += [f"{r.what:{wide}}  {number(r.value, r.unit):>12}  {'yes' if r.met else 'NO':4}{_limit(r)}" for r in rows]
    if "alone" in result:
        worst = sorted(result["alone"], key=lambda r: (r["survival"], -(r["velocity_rmse_m_s"] or 0.0)))[:3]
        hurts = ", ".join(f"{r['what']} ({r['survival']:.0%})" for r in worst)
        out += ["", f"what hurts most alone: {hurts}"]
    if "imu" in result:
        margins = ", ".join(f"{1e3 * s:.0f} ms at {rate} Hz" for rate, s in result["imu"]["margin_s"].items())
        out.append(f"IMU's age up to which 90 % stay up, whatever the stiction: {margins}")
    return out


def _asked(result: dict[str, Any]) -> str:
    rows = [
        (escape(r.what), cell(number(r.value, r.unit)), cell(_limit(r)), chip(r.met, "yes" if r.met else "no"))
        for r in asked(result)
    ]
    return table(["", "measured", "asked for", "met"], rows)


def _figures(result: dict[str, Any]) -> str:
    parts = [part for part in PARTS if part in result]
    rows = [[escape(what), *(cell(number(result[part].get(key), unit)) for part in parts)] for key, what, unit in SHOWN]
    return table(["", *(PARTS[part] for part in parts)], rows)


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
            cell(f"{r['survival']:.0%}"),
            cell(number(r["velocity_rmse_m_s"], "m/s")),
            cell(number(r["yaw_rate_rmse_rad_s"], "rad/s")),
        ]
        for r in result["alone"]
    ]
    return table(["alone", "survival", "velocity error", "yaw rate error"], rows)


def _imu(result: dict[str, Any]) -> str:
    cells = result["imu"]["cells"]
    ages = sorted({c["age_s"] for c in cells})
    kinds = sorted({(c["rate_hz"], c["stiction_nm"]) for c in cells})
    at = {(c["rate_hz"], c["stiction_nm"], c["age_s"]): c["survival"] for c in cells}
    rows = [[f"{rate:g} Hz, {nm:g} N m", *(cell(f"{at[rate, nm, age]:.0%}") for age in ages)] for rate, nm in kinds]
    return table(["rate, stiction", *(f"{1e3 * age:.0f} ms" for age in ages)], rows)


def _twins(result: dict[str, Any]) -> str:
    rows = [
        [
            f"seed {r['seed']}",
            escape(str(r["ended"])),
            cell(number(r["survived_s"], "s")),
            cell(number(r["state_round_trip_p50_ms"], "ms")),
            cell(str(r["overruns"])),
        ]
        for r in result["twins"]
    ]
    return table(["reality", "ended", "walked for", "state round trip, p50", "late ticks"], rows)


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
    n = result["settings"]
    about = (
        f"{result['task']}, {n['episodes']} episodes of 20 s a part, seed {n['seed']}, MuJoCo C, level "
        f"{result.get('level', 1.0):g} of the curriculum. Velocity errors are root mean squares of means over 0.8 s, "
        "from 2 s after a command changed, without pushes."
    )
    with atomic_path(path) as part:
        text = page(f"{name}: suite walk", about, [(heading, "", html) for heading, html in sections.items()])
        part.write_text(text, encoding="utf-8")
