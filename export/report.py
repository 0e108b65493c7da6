"""The validation report: a table for the terminal, report.json for programs, report.html for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.bundle.margins import NOT_MEASURED, answer_rows, conditions, ladder_rows
from deploy.bundle.margins import to_json as margins_json
from export.closed_loop import DEVIATION_LIMIT_RAD, ENGINES, ClosedLoop, Paired
from export.compare import ERROR_LIMIT, LARGE_LIMIT, LARGE_VALUE, Difference
from export.probes import Probe
from robots.bundle import Bundle
from robots.spec import PolicySpec
from toolkit.charts import Chart
from toolkit.files import atomic_path
from toolkit.page import cell, chip, facts, quiet, table
from toolkit.page import page as html

if TYPE_CHECKING:
    from export.proof import Report

ENGINE_NAMES = {"mujoco": "MuJoCo C", "mjx": "MJX"}
METRICS = {
    "survival": "survival",
    "returns": "return",
    "tracking": "off the command",
    "drift": "drift",
}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One row: what was asked, what was found, what is allowed, whether it holds."""

    what: str
    found: str
    limit: str
    holds: bool


def _errors(d: Difference) -> str:
    if d.carry_limited:
        return f"action {d.action_error:.1e} rad, carry {d.carry_error:.1e}"
    return f"action {d.step_action_error:.1e} rad, carry {d.step_carry_error:.1e} in one step"


def proofs(report: Report) -> list[Proof]:
    """The rows of the summary."""
    rows = [
        Proof(
            what="Graph: opset, IR version, float32, static shapes, plain ONNX",
            found=f"opset {report.opset}, IR {report.ir_version}, {report.nodes} nodes"
            if report.nodes
            else "refused by the checks",
            limit="up to opset 21, IR 10",
            holds=bool(report.nodes),
        )
    ]
    numbers = report.numbers
    if numbers is not None:
        rows.append(
            Proof(
                what="First carry (init_fn)",
                found=f"{numbers.init_error:g}",
                limit="0: the same bits",
                holds=numbers.init_error == 0.0,
            )
        )
        for name, d in numbers.sequences().items():
            steps = f"{d.steps:,} steps, {d.resets} reset{'s' if d.resets != 1 else ''}"
            rows.append(
                Proof(
                    what=f"{name[0].upper()}{name[1:]}: {steps}",
                    found=_errors(d),
                    limit=f"{ERROR_LIMIT:g}{d.limits_told}",
                    holds=d.of_limit <= 1.0,
                )
            )
        again = numbers.determinism
        levels = max(again.optimisation.values(), default=0.0)
        rows += [
            Proof(
                what="Same bytes again, and with 2 and 4 threads",
                found="same" if again.runs_equal and again.threads_equal else "other bytes",
                limit="same",
                holds=again.runs_equal and again.threads_equal,
            ),
            Proof(
                what="Other optimisation levels of ONNX Runtime",
                found=f"{levels:.1e}",
                limit=f"{ERROR_LIMIT:g}",
                holds=levels <= ERROR_LIMIT,
            ),
        ]
    for loop in report.closed_loops:
        m = loop.survival
        rows.append(
            Proof(
                what=f"Closed loop in {ENGINE_NAMES[loop.engine]}: {loop.episodes} episodes of each",
                found=f"survival {m.onnx:.1%} and {m.jax:.1%}, "
                f"95 %: {100 * m.low95:+.1f} to {100 * m.high95:+.1f} points",
                limit=f"within {100 * m.margin:g} points, or 0 in 99.9 %",
                holds=not loop.failures(),
            )
        )
    if report.probes:
        wrong = [p for p in report.probes if p.contract != "none"]
        rows.append(
            Proof(
                what="Wrong contracts refused by deployment's own checks",
                found=f"{sum(p.caught for p in wrong)} of {sum(p.different for p in wrong)} bundles and starts; "
                f"{sum(p.tried - p.different for p in wrong)} alike",
                limit="all",
                holds=all(p.passed for p in wrong),
            )
        )
    return rows


def verdict(report: Report) -> str:
    """One sentence."""
    if report.failures:
        n = len(report.failures)
        return f"Not proven: {n} thing{'s do' if n > 1 else ' does'} not hold; the first: {report.failures[0]}."
    assert report.numbers is not None
    d = report.numbers.recorded
    loops = [
        f"it survives {loop.survival.onnx:.1%} of {loop.episodes} episodes in {ENGINE_NAMES[loop.engine]} "
        f"where the checkpoint survives {loop.survival.jax:.1%}"
        for loop in report.closed_loops
    ]
    return (
        f"Proven: over {d.steps:,} recorded steps its actions are within {d.action_error:.1e} rad of the checkpoint's, "
        f"{' and '.join(loops)}{', ' if loops else ''}and deployment refuses every wrong contract that was tried."
    )


def not_run(report: Report) -> list[str]:
    """What was not looked at, one line each."""
    done = {loop.engine for loop in report.closed_loops}
    lines = [
        f"Closed loop in {ENGINE_NAMES[engine]}: not run (ksim validate --engines mujoco,mjx)"
        for engine in ENGINES
        if engine not in done
    ]
    lines += [f"Margins: {NOT_MEASURED} (ksim validate --margin-episodes 32)"] if report.margins is None else []
    return lines + (["Numbers: not complete"] if report.numbers is None else [])


def to_json(name: str, bundle: Bundle, report: Report, latency: Mapping[str, float] | None) -> dict[str, Any]:
    """What report.json holds: the proofs, and what they are of."""
    spec = bundle.spec
    assert spec is not None
    return {
        "bundle": name,
        "verdict": verdict(report),
        "validated": not report.failures,
        "not_run": not_run(report),
        **report.to_json(),
        "latency_us": latency,
        "task": spec.task,
        "robot": spec.robot.name,
        "digests": _digests(bundle, spec),
        "versions": spec.versions,
        "training": spec.training,
        "envelope": report.envelope,
        "margins": None if report.margins is None else margins_json(report.margins),
    }


def _digests(bundle: Bundle, spec: PolicySpec) -> dict[str, str]:
    return {
        "bundle": bundle.digest,
        "contract": spec.contract().digest,
        "robot": spec.robot.digest,
        "weights": spec.weights_digest,
        "config": spec.config_digest,
    }


def write_report(
    folder: Path,
    name: str,
    bundle: Bundle,
    report: Report,
    latency: Mapping[str, float] | None,
    stem: str = "report",
) -> list[Path]:
    """Write `stem`.json and `stem`.html into a folder.

    Args:
        folder: made where it is not there.
        name: of the bundle's file.
        bundle: with a spec.
        report: its proofs.
        latency: p50 and p99 of a step [us], where measured.
        stem: of both file names.
    """
    pages = {
        ".json": json.dumps(to_json(name, bundle, report, latency), indent=1, allow_nan=False) + "\n",
        ".html": page(name, bundle, report, latency),
    }
    files = []
    for suffix, text in pages.items():
        path = folder / f"{stem}{suffix}"
        with atomic_path(path) as part:
            part.write_text(text, encoding="utf-8")
        files.append(path)
    return files


def show(title: str, report: Report, latency: Mapping[str, float] | None, files: Sequence[Path] = ()) -> None:
    """The closing table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=True)
    for heading in ("proof", "found", "limit", ""):
        table.add_column(heading)
    for row in proofs(report):
        table.add_row(row.what, row.found, row.limit, "[green]holds[/green]" if row.holds else "[red]FAILS[/red]")
    for what, margin, tried in () if report.margins is None else ladder_rows(report.margins):
        table.add_row(f"Margin: {what}", margin, f"survival: {tried}", "")
    if latency is not None:
        table.add_row("One step, one thread", f"p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us", "", "")
    for line in not_run(report):
        what, _, rest = line.partition(": ")
        table.add_row(what, rest, "", "-")
    # a pipe has no width of its own; 80 columns would break most rows
    console = Console()
    console = Console(width=None if console.is_terminal else 140)
    console.print(table)
    for failure in report.failures:
        console.print(f"FAILS: {failure}", highlight=False, markup=False)
    if files:
        console.print(f"report: {', '.join(str(f) for f in files)}", highlight=False, markup=False)


# The page.


def _summary(report: Report) -> str:
    return table(
        ("Proof", "Found", "Allowed", ""),
        (
            (
                escape(p.what),
                cell(p.found),
                quiet(p.limit),
                chip(p.holds, _mark(p.holds)),
            )
            for p in proofs(report)
        ),
    )


def _mark(holds: bool) -> str:
    return "holds" if holds else "fails"


def _growth(report: Report) -> str:
    numbers = report.numbers
    if numbers is None:
        return '<p class="quiet">No numbers: an earlier check failed.</p>'
    chart = Chart("step", "greatest error in the part [1e-6]", height=230, y_zero=True)
    for style, name, d in (
        ("measured", "one carry from beginning to end", numbers.unbroken),
        ("simulated", "with resets at random times", numbers.recorded),
        ("sent", "inputs drawn from the whole range", numbers.drawn),
    ):
        part = d.steps / len(d.windows)
        chart.line([(i + 0.5) * part for i in range(len(d.windows))], [1e6 * v for v in d.windows], style, name)

    def free(text: str, limited: bool) -> str:
        return cell(text) if limited else f'<td class="n quiet">{text}</td>'

    rows = (
        (
            escape(name),
            free(f"{d.action_error:.1e}", d.carry_limited),
            cell(f"{d.step_action_error:.1e}"),
            free(f"{d.carry_error:.1e}", d.carry_limited),
            cell(f"{d.step_carry_error:.1e}"),
            free(f"{d.large_carry_error:.1e}" if d.large_carry_error else "&ndash;", False),
            f'<td class="n">{d.large_step_share:.1e}</td>' if d.large_step_share else '<td class="n">&ndash;</td>',
            cell(f"{d.carry_max:.0f}" if d.carry_max >= LARGE_VALUE else f"{d.carry_max:.2g}"),
            cell(f"{d.of_limit:.0%}" if d.of_limit <= 1.0 else f"{d.of_limit:.2g} times"),
        )
        for name, d in numbers.sequences().items()
    )
    head = (
        *("Inputs", "action [rad]", "in one step", "carry", "in one step"),
        *(f"carry beyond {LARGE_VALUE:g}", "in one step, share", "greatest carry", "of its limit"),
    )
    return (
        f"{chart.svg()}{table(head, rows)}"
        f'<p class="quiet">&ldquo;In one step&rdquo;: both from the same carry. The limit is {ERROR_LIMIT:g} absolute '
        f"on action and carry. Elements of the carry beyond {LARGE_VALUE:g}, which only inputs at the ends of their "
        f"ranges bring about, are held to {LARGE_LIMIT:g} of their value in one step: float32 has no finer numbers "
        "there. Grey figures have no limit: a state that takes in a thousand steps adds up the rounding of them all."
        "</p>"
    )


def _whisker(m: Paired) -> str:
    """The interval of the difference against the margin of equivalence."""
    width, height = 220, 26
    reach = 1.15 * max(m.margin, abs(m.low95), abs(m.high95), 1e-12)

    def px(value: float) -> float:
        return width / 2 * (1 + value / reach)

    middle = height / 2
    return (
        f'<td class="plot"><svg viewBox="0 0 {width} {height}" role="img" aria-label="interval of the difference">'
        f'<rect class="zone" x="{px(-m.margin):.1f}" y="4" width="{px(m.margin) - px(-m.margin):.1f}" '
        f'height="{height - 8}" rx="3"/><line class="axis" x1="{px(0):.1f}" x2="{px(0):.1f}" y1="2" y2="{height - 2}"/>'
        f'<line class="whisker" x1="{px(m.low95):.1f}" x2="{px(m.high95):.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="dot" cx="{px(m.difference):.1f}" cy="{middle}" r="4"/></svg></td>'
    )


def _loop(loop: ClosedLoop) -> str:
    def number(value: float, m: Paired, sign: str = "") -> str:
        return f"{100 * value:{sign}.1f} %" if m is loop.survival else f"{value:{sign}.3g} {m.unit}".rstrip()

    rows = (
        (
            cell(METRICS[name]),
            cell(number(m.jax, m)),
            cell(number(m.onnx, m)),
            cell(number(m.difference, m, "+")),
            cell(f"{number(m.low95, m, '+')} to {number(m.high95, m, '+')}"),
            _whisker(m),
            cell(f"± {number(m.margin, m)}"),
            chip(m.verdict != "different", m.verdict),
        )
        for name, m in loop.metrics.items()
    )
    head = ("", "checkpoint (JAX)", "bundle (ONNX)", "difference", "95 % interval", "", "margin", "")
    return (
        f"<h3>{ENGINE_NAMES[loop.engine]}: {loop.episodes} episodes of each, seed {loop.seed}</h3>{table(head, rows)}"
        f'<p class="quiet">{loop.parted} of {loop.episodes} episodes were survived by one form alone. In the first '
        f"second the joints of half of the episodes differ by at most {loop.joint_deviation_rad:.1e} rad (limit "
        f"{DEVIATION_LIMIT_RAD:g}), of all by {loop.joint_deviation_max_rad:.1e} rad. &ldquo;No difference&rdquo;: the "
        "99.9 % interval contains 0.</p>"
    )


def _loops(report: Report) -> str:
    left_out = "".join(f"<p>{escape(line)}.</p>" for line in not_run(report) if line.startswith("Closed loop"))
    return "".join(_loop(loop) for loop in report.closed_loops) + left_out


def _probe_row(p: Probe) -> tuple[str, ...]:
    by = ", ".join(p.by) or "&ndash;"
    if p.contract == "none":
        refused, shown = f"{sum(p.by.values())} of {p.tried}", ""
    elif p.different == 0:
        refused, shown = f"{sum(p.by.values())} of {p.tried}", chip("none", "cannot be told")
    else:
        same = f", {p.tried - p.different} alike" if p.different < p.tried else ""
        refused, shown = f"{p.caught} of {p.different}{same}", chip(p.passed, "refused" if p.passed else "not refused")
    told = p.example.partition(": this is")[0]  # the remedy is the same for all
    said = escape(told if len(told) <= 170 else told[:167] + "...")
    contract = "right contract" if p.contract == "none" else p.contract
    return escape(contract), escape(p.probe), p.where, cell(refused), by, f'<td class="said">{said}</td>', shown


def _probes(report: Report) -> str:
    if not report.probes:
        return '<p class="quiet">Not tried: an earlier check failed.</p>'
    head = ("Contract", "What was done", "Where", "Refused", "By", "The first was told", "")
    return table(head, map(_probe_row, report.probes))


def _margins(report: Report) -> str:
    margins = report.margins
    if margins is None:
        said = next(line for line in not_run(report) if line.startswith("Margins"))
        return f'<p class="quiet">{escape(said)}.</p>'
    chart = Chart("late by [ms]", "episodes that last [%]", height=230, y_zero=True)
    for style, name, what in (
        ("measured", "imu_age_s", "IMU readings"),
        ("simulated", "joint_age_s", "joint readings"),
        ("sent", "action_latency_s", "commands"),
    ):
        ladder = margins.ladders.get(name)
        if ladder is not None:
            chart.line([1e3 * r.value for r in ladder.rungs], [100 * r.survival for r in ladder.rungs], style, what)
    tried = ((escape(what), cell(margin), quiet(t)) for what, margin, t in ladder_rows(margins))
    answered = ((escape(what), quiet(said)) for what, said in answer_rows(margins.answers))
    return (
        f"{chart.svg()}{table(('', 'margin', 'survival at each'), tried)}"
        f'<p class="quiet">{escape(conditions(margins))}</p>'
        f"{table(('Soft joints', 'The policy'), answered)}"
        '<p class="quiet">The robot hangs upright and still, nothing is asked. Its joints are measured at home plus a '
        "share of the way to the target of the tick before. Pull: greatest distance of a target from its joint. It "
        f"winds up where the pull still grows in the last of {margins.answer_s:g} s.</p>"
    )


def _about(bundle: Bundle, spec: PolicySpec, report: Report, latency: Mapping[str, float] | None) -> str:
    operators = ", ".join(f"{name} {count}" for name, count in report.operators.items())
    rows = [
        ("Task, robot", escape(f"{spec.task}, {spec.robot.name} with {len(spec.robot.joints)} joints")),
        ("Inputs", escape(", ".join(f"{a.name} [{a.unit}]" for a in spec.inputs))),
        ("Commands", escape(", ".join(f"{c.name} {c.low:g} to {c.high:g} {c.unit}".rstrip() for c in spec.commands))),
        ("Carry", f"{spec.carry_size} numbers"),
        ("Control period", f"{spec.control_period_s:g} s"),
        ("Graph", escape(f"opset {report.opset}, IR {report.ir_version}, {report.step_bytes:,} bytes")),
        ("Operators", escape(f"{report.nodes} nodes: {operators}")),
    ]
    if latency is not None:
        took = f"p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us (this machine, one thread)"
        rows.append(("One step", took))
    rows += [(f"Digest: {name}", f"<code>{escape(value)}</code>") for name, value in _digests(bundle, spec).items()]
    rows.append(("Digest: step graph", f"<code>{escape(report.step_digest)}</code>"))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(spec.versions.items()))
    rows.append(("Versions", escape(versions)))
    return facts(rows)


def _envelope(spec: PolicySpec, report: Report) -> str:
    rows = []
    for array in spec.inputs:
        span = report.envelope.get(array.name)
        if span is None:
            continue
        names = spec.robot.joint_names if len(span["low"]) == len(spec.robot.joints) else ("x", "y", "z")
        rows += [
            (escape(array.name), escape(name), cell(f"{low:.3g}"), cell(f"{high:.3g}"), escape(array.unit))
            for name, low, high in zip(names, span["low"], span["high"], strict=False)
        ]
    return (
        "<details><summary>Least and greatest of each input in simulation, while the robot stood</summary>"
        f"{table(('Input', '', 'least', 'greatest', 'unit'), rows)}</details>"
    )


def page(name: str, bundle: Bundle, report: Report, latency: Mapping[str, float] | None) -> str:
    """The page: one file, nothing to load."""
    spec = bundle.spec
    assert spec is not None
    word, _, sentence = verdict(report).partition(":")
    if len(report.failures) > 1:  # all of them follow
        sentence = sentence.partition(";")[0] + "."
    failed = "".join(f"<li>{escape(line)}</li>" for line in report.failures)
    mark = "bad" if report.failures else "good"
    top = f'<p class="verdict">{chip(mark, word)}{escape(sentence)}</p>'
    sections = (
        ("", "", top + (f"<ul>{failed}</ul>" if len(report.failures) > 1 else "")),
        ("Proofs", "", _summary(report)),
        (
            "Error over time",
            "ONNX Runtime against JAX on the same inputs, in 20 equal parts of each sequence.",
            _growth(report),
        ),
        (
            "Closed loop",
            "Both forms from the same seeds: same pushes, noise and masses. Contacts multiply a difference of 1e-7 "
            "until motions part, so the means are compared, with a paired interval; grey is the margin of equivalence. "
            "Off the command: distance of the base's velocity from it. Drift: distance from the start at the end.",
            _loops(report),
        ),
        (
            "Wrong contracts",
            "Made wrong on purpose; what ksim run checks has to refuse each. In the graph: the bundle with its step "
            "graph changed. On the robot: starts of episodes as a robot with the fault would report them; joints with "
            "the same home cannot be told apart there.",
            _probes(report),
        ),
        (
            "Margins",
            "How late readings and commands may be, and how many ticks may be lost, before the policy falls. A margin "
            "is no proof: a policy may have any.",
            _margins(report),
        ),
        ("The bundle", "", _about(bundle, spec, report, latency) + _envelope(spec, report)),
    )
    title = f"{name}: is it the policy that was trained?"
    about = f"{spec.task} on {spec.robot.name}, weights {spec.weights_digest[:12]}"
    return html(title, about, sections)
