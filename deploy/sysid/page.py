"""The page of an identification: one HTML file that says what was found, how sure it is, and how far it takes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from deploy.sysid.calibration import Calibration, Estimate, MotionScore
from deploy.sysid.kinds import KINDS
from deploy.sysid.motion import Motion
from toolkit.charts import Chart, bars_by_name
from toolkit.files import atomic_path
from toolkit.page import page, table
from toolkit.words import count

# Of the published model's error: what is good, and what is poor.
GOOD, POOR = 0.25, 0.4
OVERLAYS = 4
# A target that moves slower than this is at rest [rad/s].
REST_RAD_S = 0.02


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    return table(head, ([f'<td class="n">{cell}</td>' for cell in row] for row in rows))


def _chip(mark: str, text: str) -> str:
    return f'<span class="chip {mark}">{escape(text)}</span>'


def _ratio(value: float) -> str:
    mark = "good" if value <= GOOD else "look" if value <= POOR else "bad"
    return _chip(mark, f"{value:.3f}")


def _value(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{one.value:.4g}"
    mark = "" if one.known else " " + _chip("look", "?")
    return f'{one.value:.4g}{mark}<br><span class="quiet">{one.low:.4g} to {one.high:.4g}</span>'


def _verdict(found: Calibration) -> str:
    judged = found.unseen or found.seen
    ratio, lag = found.ratio, float(np.mean([m.lag_ratio for m in judged.values()]))
    told = "motions that were not fitted" if found.unseen else "the fitted motions: none was kept to judge by"
    rows = [["Error left of the published model's", _ratio(ratio), f"mean of {escape(told)}"]]
    if not found.converged:
        rows.insert(0, ["The search", _chip("bad", "not at its end"), "do not train with it; go on with --begin"])
    worst = max(judged, key=lambda name: judged[name].ratio)
    rows.append(["Worst motion", _ratio(judged[worst].ratio), escape(worst)])
    better = _chip("good", f"{lag:.3f}") if ratio < lag else _chip("bad", f"{lag:.3f}")
    rows.append(["A lag with play, without dynamics", better, "the fit should be below it"])
    unknown = len(_unknown(found))
    rows.append(
        [
            "Values that the motions do not tell",
            _chip("good" if not unknown else "look", str(unknown)),
            "marked ?; do not build on them",
        ]
    )
    return _table([], rows)


def _unknown(found: Calibration) -> list[str]:
    out = [
        f"{name}: {kind}"
        for name, joint in found.joints.items()
        for kind in found.fitted
        if not KINDS[kind].shared and not getattr(joint, kind).known
    ]
    return out + (["the delay"] if "delay_s" in found.fitted and not found.delay_s.known else [])


def _values(found: Calibration) -> str:
    kinds = [kind for kind in found.fitted if not KINDS[kind].shared]
    rows = [[escape(name), *(_value(getattr(joint, kind)) for kind in kinds)] for name, joint in found.joints.items()]
    out = _table(["joint", *(f"{kind} [{KINDS[kind].unit}]" for kind in kinds)], rows)
    if "delay_s" in found.fitted:
        one = found.delay_s
        out += f"<p>Delay {one.value * 1e3:.2f} ms, {(one.low or 0) * 1e3:.2f} to {(one.high or 0) * 1e3:.2f} ms."
        if found.one_clock:
            out += " Commands and states bear one stamp: this is not the transport's delay. Do not train with it."
        out += "</p>"
    if not found.converged:
        out += "<p>The search had not come to its end when its iterations were used up. Do not train with it.</p>"
    return out


def _scores(table: dict[str, MotionScore]) -> str:
    rows = []
    for name, score in table.items():
        before, after = (1e3 * np.mean(list(v.values())) for v in (score.published_rad, score.fitted_rad))
        notes = [f"touching in {score.touching:.0%}"] if score.touching else []
        notes += [f"{score.left_out:.0%} left out"] if score.left_out else []
        told = [escape(name), f"{before:.1f}", f"{after:.1f}", _ratio(score.ratio), f"{score.lag_ratio:.3f}"]
        rows.append([*told, ", ".join(notes)])
    head = ["motion", "published [mrad]", "fitted [mrad]", "left", "lag alone", ""]
    return _table(head, rows)


def _shares(motions: Sequence[Motion], shown: dict[str, np.ndarray]) -> str:
    """Where the squared error is: constant, at rest, on the move; and the joint with the most of it."""
    rows = []
    for m in motions:
        error = (shown[m.name] - m.position)[m.use]
        rest = (np.abs(np.gradient(m.target, m.time_s, axis=0)) < REST_RAD_S)[m.use]
        mean, apart = error.mean(axis=0), error - error.mean(axis=0)
        total = max(float(np.sum(error**2)), 1e-12)
        by_joint = np.sum(error**2, axis=0)
        constant, still = len(error) * float(np.sum(mean**2)) / total, float(np.sum(apart[rest] ** 2)) / total
        j = int(np.argmax(by_joint))
        rows.append(
            [
                escape(m.name),
                f"{constant:.0%}",
                f"{still:.0%}",
                f"{max(0.0, 1 - constant - still):.0%}",
                f"{escape(m.names[j])} ({by_joint[j] / total:.0%})",
            ]
        )
    return _table(["motion", "constant", "at rest", "on the move", "most of it"], rows)


def _overlays(motions: Sequence[Motion], shown: dict[str, np.ndarray]) -> str:
    worst = sorted(
        (
            (float(np.sqrt(np.mean((shown[m.name] - m.position)[m.use, j] ** 2))), m, j)
            for m in motions
            for j in np.flatnonzero(m.present)
        ),
        key=lambda one: -one[0],
    )
    out = []
    for size, m, j in worst[:OVERLAYS]:
        chart = Chart("time [s]", f"{m.names[j]} [rad]", height=220)
        chart.line(m.time_s, m.target[:, j], "sent", "command")
        chart.line(m.time_s, m.position[:, j], "measured", "measured")
        chart.line(m.time_s, shown[m.name][:, j], "simulated", "simulated from commands alone")
        out.append(f"<h3>{escape(m.names[j])} in {escape(m.name)}, {1e3 * size:.1f} mrad</h3>{chart.svg()}")
    return "".join(out)


def _sensitivity(found: Calibration) -> str:
    """By kind the joint that it matters most in."""
    out = {}
    for kind in found.fitted:
        if KINDS[kind].shared:
            continue
        seen = {name: getattr(joint, kind).sensitivity or 0.0 for name, joint in found.joints.items()}
        best = max(seen, key=lambda name: seen[name])
        out[f"{kind}, {best}"[:28]] = seen[best]
    return bars_by_name(out, "of what is left", 1.0)


def _line(text: str) -> str:
    """A line of code with its indent."""
    return escape(text).replace("  ", "&nbsp;&nbsp;")


def _contacts(found: Calibration) -> str:
    told = []
    if found.contacts.plane is not None:
        plane, height = found.contacts.plane, _value(found.plane_m)
        give = f"gives way by {1e3 * plane.give_m_n:.2g} mm/N" if plane.give_m_n else "hard"
        told.append(f"Declared: a plane at {height} m, friction {plane.friction:g}, {give}.")
    for touch in found.touching:
        where = f"a plane at {touch.level:.3f} m" if touch.what == "plane" else f"{touch.what} at {touch.level:.3f} rad"
        fitted = "; these rows were not fitted" if touch.left_out else ""
        told.append(
            f"{escape(touch.motion)}: {escape(where)} in {touch.share:.0%} of the rows, not in the model{fitted}."
        )
    if plane := found.declaration():
        code = "<br>".join(map(_line, plane))
        told.append(f"To declare it, name a file of these lines with --contacts:<br><code>{code}</code>")
    return "".join(f"<p>{one}</p>" for one in told) or "<p>None declared, none found.</p>"


def write_page(
    path: Path, found: Calibration, motions: Sequence[Motion], shown: dict[str, np.ndarray], took_s: float
) -> None:
    """Write the page.

    Args:
        path: of it.
        found: the calibration.
        motions: those to show: the unseen ones, or the fitted where there are none.
        shown: their replay by the calibrated model, by name, (T, joints) [rad].
        took_s: how long the fit took [s].
    """
    unknown = _unknown(found)
    missing = ", ".join(map(escape, unknown)) or "Everything that was fitted is told by the motions."
    about = f"{found.robot}{', its base held' if found.held else ''}; {count(len(found.seen), 'motion')} fitted in "
    about += f"{took_s:.0f} s"
    one = "RMSE of a full open-loop replay: the commands and the first measured state alone go in."
    sections = [
        ("", "", _verdict(found)),
        ("Values", "In SI, with 95 % intervals. ? marks what the motions do not tell.", _values(found)),
        ("Motions that were not fitted", one, _scores(found.unseen)) if found.unseen else ("", "", ""),
        ("Fitted motions", one, _scores(found.seen)),
        ("Where the rest comes from", "Shares of the squared error.", _shares(motions, shown)),
        ("The worst joints", "Measured, and simulated from the commands alone.", _overlays(motions, shown)),
        ("Contacts", "An arm that touches what the model does not have bends every fit.", _contacts(found)),
        ("Not identified", "The motions do not tell these values.", f"<p>{missing}</p>"),
        (
            "Sensitivity",
            "What a value off by 10 % (an offset by 1 mrad) changes, over the error that is left: the joint of each "
            "kind in which it shows most. Below 1 it drowns in single rows; many rows still tell it.",
            _sensitivity(found),
        ),
    ]
    text = page(f"Identification of {found.robot}", about, [s for s in sections if s[2]])
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
