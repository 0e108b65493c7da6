"""`ksim inspect`: the card of a bundle, or how two bundles differ. Knows how to print; card.py knows what."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any

from deploy.bundle.card import Card, Difference, compare, flatten, graph_relations, make_card
from deploy.bundle.graph import GraphFacts
from deploy.bundle.margins import NOT_MEASURED, answer_rows, conditions, ladder_rows
from deploy.bundle.targets import rows as fit_rows
from robots.margins import Margins
from robots.robot_card import inspect_robot, is_robot
from robots.spec import ArraySpec
from toolkit.cli import Option, options
from toolkit.settings import Settings

# of a pipe, which has no width of its own
WIDTH = 100
# no column is folded below this
NARROW = 8
UNKNOWN = "not told"
_JOINTS = "joints: kp [N m/rad], kd [N m s/rad], torque limit/at most [N m], speed [rad/s], angles [rad]"
# More figures of the proofs than this are told in one line.
PROOFS_LISTED = 8
_STATES = {
    "validated": "validated",
    "forced": "NOT validated: written with --force although checks failed",
    "unvalidated": "NOT validated",
    "unknown": "not told whether it was validated: another exporter wrote it",
}


def _number(value: Any) -> str:
    """Short, for reading; --json has every digit."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000 else str(value)
    )


def _span(low: Sequence[float], high: Sequence[float]) -> str:
    """A range of one element, or the widest of many."""
    a, b = min(low), max(high)
    if math.isinf(a) and math.isinf(b):
        return "any"
    many = len(set(low)) > 1 or len(set(high)) > 1
    ends = f"{'any' if math.isinf(a) else _number(a)} to {'any' if math.isinf(b) else _number(b)}"
    return f"{ends}, each its own" if many else ends


def _leaf(value: Any) -> str:
    """A setting or figure in a few words."""
    if isinstance(value, (list, tuple)):
        numbers = [v for v in value if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) == len(value) > 6:
            return f"{len(value)} numbers, {_number(min(numbers))} to {_number(max(numbers))}"
        return ", ".join(_leaf(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_leaf(v)}" for k, v in value.items()) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return _number(value) if isinstance(value, (int, float)) else str(value)


class _Page:
    """Tables one below the other, at the width of the terminal or of a page."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._width = shutil.get_terminal_size().columns if terminal else WIDTH
        self._styled = "\x1b[{}m{}\x1b[0m" if terminal else "{1}"

    def _rows(self, rows: Sequence[Sequence[str]], right: Sequence[int], kept: Sequence[int]) -> list[str]:
        """Lines of a table: columns of numbers stand right; those that are not `kept` whole are folded to fit."""
        columns = [[row[i].split("\n") for row in rows] for i in range(len(rows[0]))] if rows else []
        widths = [max(len(line) for cell in column for line in cell) for column in columns]
        folded = [i for i in range(len(columns)) if i not in kept]
        while folded and sum(widths) + 2 * (len(widths) - 1) > self._width:
            widest = max(folded, key=lambda i: widths[i])
            if widths[widest] <= NARROW:
                break
            widths[widest] -= 1
        out = []
        for cells in zip(*columns, strict=True):
            parts = [
                [part for line in cell for part in textwrap.wrap(line, max(width, 1), break_on_hyphens=False) or [""]]
                for cell, width in zip(cells, widths, strict=True)
            ]
            for line in zip_longest(*parts, fillvalue=""):
                placed = (f"{text:{'>' if i in right else '<'}{widths[i]}}" for i, text in enumerate(line))
                out.append("  ".join(placed).rstrip())
        return out

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> None:
        """A table; columns named in `right` hold numbers."""
        numbers = [i for i, column in enumerate(columns) if column in right.split(", ")]
        head, *lines = self._rows([columns, *(tuple(map(str, row)) for row in rows)], numbers, numbers)
        self.text("\n".join([self._styled.format(1, title), self._styled.format(4, head), *lines, ""]))

    def pairs(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what they stand for."""
        self.text("\n".join([self._styled.format(1, title), *self._rows(rows, (), (0,)), ""]))

    def text(self, text: str) -> None:
        """As it is."""
        print(text)


def _head(card: Card) -> list[tuple[str, str]]:
    spec = card.spec
    rows = [("file", f"{card.path}, {card.size:,} bytes")]
    if spec is None:
        rows += [("robot", f"{UNKNOWN}; {len(card.bundle.joint_names)} joints by name")]
    else:
        robot = spec.robot
        mass = f", {robot.mass_kg:.4g} kg" if robot.mass_kg else ""
        rows += [
            ("task", spec.task),
            ("robot", f"{robot.name}, {len(robot.joints)} joints{mass}, IMU at {robot.imu_site or UNKNOWN}"),
            ("control period", f"{1e3 * spec.control_period_s:g} ms ({1 / spec.control_period_s:g} Hz)"),
        ]
        for what, span in (("observation", spec.observation_latency_s), ("action", spec.action_latency_s)):
            told = (
                f"{1e3 * span[0]:g} to {1e3 * span[1]:g} ms in training"
                if span[1] > 0 or "latency" in spec.training
                else UNKNOWN
            )
            rows.append((f"{what} latency", told))
    if card.stamp == "another":
        rows.append(("proof", "CHANGED since its export: ksim run refuses it"))
    else:
        reduced = spec.reduced() if spec is not None and card.state == "validated" else ""
        rows.append(("proof", _STATES[card.state] + (f" (reduced: {reduced})" if reduced else "")))
    if spec is not None:
        failures = spec.proofs.get("failures") or []
        rows += [("failed", _leaf(each)) for each in (failures if isinstance(failures, (list, tuple)) else [failures])]
        parts = f": {', '.join(card.self_test_parts)}" if card.self_test_parts else ""
        tested = (
            f"{card.self_test_steps} steps{parts}" if card.self_test_steps else "none: a wrong contract is found later"
        )
        met = ", ".join(spec.envelope) or "none: inputs at the start are not compared with training"
        rows += [("self-test", tested), ("envelope", met)]
    rows.append(("runs here", f"no: {card.runs}" if card.runs else "yes"))
    if card.stamp != "the same":
        rows.append(
            ("graphs' own notes", {"none": "no specification in them", "another": "ANOTHER specification"}[card.stamp])
        )
    return rows


def _joints(page: _Page, card: Card) -> None:
    spec = card.spec
    if spec is None:
        home = card.bundle.joint_biases
        told = f"joints (ids, gains, limits{'' if home else ', home'}: {UNKNOWN})"
        if home:
            page.table(
                told,
                ("name", "home [rad]"),
                zip(card.bundle.joint_names, map(_number, home), strict=True),
                "home [rad]",
            )
        else:
            page.pairs(told, [("", ", ".join(card.bundle.joint_names))])
        return
    names = ("name", "id", "kp", "kd", "torque", "speed", "lower", "upper", "home", "actuator")
    rows = []
    for j in spec.robot.joints:
        limit, most = _number(j.torque_limit_nm), _number(j.torque_max_nm)
        numbers = (_number(v) for v in (j.velocity_max_rad_s, j.lower_rad, j.upper_rad, j.home_rad))
        torque = limit if limit == most else f"{limit}/{most}"
        rows.append((j.name, j.id, _number(j.kp), _number(j.kd), torque, *numbers, j.actuator_type))
    page.table(_JOINTS, names, rows, ", ".join(names[1:-1]))
    targets = (spec.action_low_rad, spec.action_high_rad)
    if targets == (tuple(spec.robot.column("lower_rad")), tuple(spec.robot.column("upper_rad"))):
        return
    rows = [(n, _number(a), _number(b)) for n, a, b in zip(spec.robot.joint_names, *targets, strict=True)]
    page.table("targets [rad], narrower than the limits", ("name", "lowest", "highest"), rows, "lowest, highest")


def _ranges(array: ArraySpec) -> str:
    return _span(array.low, array.high)


def _interface(page: _Page, card: Card) -> None:
    spec = card.spec
    names = ("input", "size", "unit", "frame", "range")
    if spec is None:
        shapes = [(n, s[0], UNKNOWN, UNKNOWN, UNKNOWN) for n, s in card.step.inputs.items() if n != "carry"]
        page.table("inputs", names, shapes, "size")
        commands = [(n, UNKNOWN, UNKNOWN) for n in card.bundle.command_names]
        layout = []
    else:
        rows = [(a.name, "x".join(map(str, a.shape)), a.unit, a.frame, _ranges(a)) for a in spec.inputs]
        page.table("inputs", names, rows, "size")
        commands = [(c.name, _span([c.low], [c.high]), c.unit) for c in spec.commands]
        layout, at = [], 0
        for part in spec.carry_layout:
            layout.append((part.name, "x".join(map(str, part.shape)), f"{at} to {at + part.size - 1}"))
            at += part.size
    if commands:
        page.table("commands", ("name", "range in training", "unit"), commands)
    if layout:
        page.table(f"carry: {card.bundle.carry_size} numbers", ("part", "shape", "elements"), layout, "shape")
    else:
        told = "" if spec is None or not spec.carry_size else f"; what each is: {UNKNOWN}"
        shape = card.bundle.carry_shape
        told = f", an array of {'x'.join(map(str, shape))}{told}" if len(shape) > 1 else told
        page.text(f"carry: {card.bundle.carry_size} numbers{told}\n")


def _groups(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested values, one row for each at the top: its leaves by name."""
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    rows = [("", "; ".join(f"{k} {_leaf(v)}" for k, v in plain.items()))] if plain else []
    for key, value in values.items():
        if isinstance(value, dict):
            rows.append((key, "; ".join(f"{k} {_leaf(v)}" for k, v in flatten(value).items() if k) or "none"))
    return rows


def _sequences(values: Mapping[str, Any], name: str = "") -> list[tuple[str, str]]:
    """One row for each comparison over a sequence, wherever it is nested."""
    if {"steps", "action_error", "carry_error", "of_limit"} <= values.keys():
        limited = values.get("carry_limited", True)  # else the limit is that of one step
        action, carry = (values.get(f"{'' if limited else 'step_'}{what}_error") for what in ("action", "carry"))
        errors = f"action {_leaf(action)} rad, carry {_leaf(carry)}{'' if limited else ' in one step'}"
        share = values["of_limit"]
        used = f"; {100 * share:.0f} % of the limit used" if isinstance(share, (int, float)) else ""
        return [(name, f"{_leaf(values['steps'])} steps: {errors}{used}")]
    return [row for key, v in values.items() if isinstance(v, dict) for row in _sequences(v, f"{name} {key}".strip())]


def _closed_loop(engines: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Bundle, checkpoint and the 95 % interval of their difference in each engine."""
    rows = []
    for engine, run in engines.items():
        if not isinstance(run, dict):
            continue
        parts = [
            f"{what} {_leaf(v['onnx'])} (checkpoint {_leaf(v['jax'])}, {_leaf(v['low95'])} to {_leaf(v['high95'])})"
            for what, v in run.items()
            if isinstance(v, dict) and {"onnx", "jax", "low95", "high95"} <= v.keys()
        ]
        rows.append((f"closed loop, {engine}", f"{_leaf(run.get('episodes'))} episodes: {'; '.join(parts)}"))
    return rows


def _probes(probes: Sequence[Any]) -> list[tuple[str, str]]:
    """How many wrong contracts of each kind were refused."""
    counts: dict[str, list[int]] = {}
    for probe in probes:
        if isinstance(probe, dict) and all(isinstance(probe.get(k), int) for k in ("caught", "different")):
            count = counts.setdefault(str(probe.get("contract")), [0, 0])
            count[0] += probe["caught"]
            count[1] += probe["different"]
    said = [f"{name} {caught} of {tried}" for name, (caught, tried) in counts.items() if tried]
    return [("refused when wrong", "; ".join(said))] if said else []


def _proofs(proofs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The proofs in a line or two each; what is not known here, by name."""
    known = {"numbers": (_sequences, dict), "closed_loop": (_closed_loop, dict), "probes": (_probes, (list, tuple))}
    rows, rest = [], {}
    for key, value in proofs.items():
        show, kind = known.get(key, (None, object))
        found = show(value) if show is not None and isinstance(value, kind) else []
        rows += found
        if not found and key not in ("failures", "graph"):
            rest[key] = value
    return rows + _groups(rest)


def _margins(page: _Page, margins: Margins | None) -> None:
    """How late things may be, and what soft joints are asked."""
    if margins is None:
        page.pairs("margins", [("", f"{NOT_MEASURED}: how late readings and commands may be")])
        return
    rows = [(what, f"{margin} ({tried})") for what, margin, tried in ladder_rows(margins)]
    page.pairs("margins", [*rows, ("measured", conditions(margins)), *answer_rows(margins.answers)])


def _graph_row(facts: GraphFacts) -> str:
    operators = ", ".join(
        f"{name} {count}" for name, count in sorted(facts.operators.items(), key=lambda p: (-p[1], p[0]))
    )
    nodes = f"{facts.nodes} {'node' if facts.nodes == 1 else 'nodes'}"
    size = f"{facts.bytes:,} bytes, {nodes}, {facts.weights:,} weights, {facts.work:,} operations"
    by = f", by {facts.producer}" if facts.producer else ""
    return f"{size}, opset {facts.opset}, IR {facts.ir_version}{by}\n{operators}"


def show_card(card: Card) -> None:
    """Print everything that a bundle tells."""
    page, spec = _Page(), card.spec
    page.pairs(f"{card.path.name}", _head(card))
    page.pairs("runtimes", fit_rows(card.fits))
    _joints(page, card)
    _interface(page, card)
    if spec is not None:
        page.pairs("training", _groups(spec.training) or [("", UNKNOWN)])
        page.pairs("proofs", _proofs(spec.proofs) or [("", "none")])
        _margins(page, spec.margins)
    page.pairs("graphs", [("step_fn", _graph_row(card.step)), ("init_fn", _graph_row(card.init))])
    page.pairs("SHA-256", [(what, value or UNKNOWN) for what, value in card.digests.items()])
    versions = spec.versions if spec is not None else {}
    page.pairs("versions", [("", ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) or UNKNOWN)])


def _side(value: Any, other: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) and len(value) == 64 and value.isalnum():
        return value[:12]
    if isinstance(value, float) and isinstance(other, float) and f"{value:.4g}" == f"{other:.4g}":
        return repr(value)
    return _leaf(value)


def _proof_size(card: Card) -> str:
    """How much was proven."""
    if card.spec is None or not card.spec.validated:
        return _STATES[card.state]
    return card.spec.reduced().partition(", in place")[0] or "full"


def show_differences(a: Card, b: Card, found: list[Difference]) -> None:
    """Print how two bundles differ."""
    page = _Page()
    relations = graph_relations(a, b)
    if not found:
        files = "the same file" if a.file_digest == b.file_digest else "packed differently"
        page.text(f"{a.path.name} and {b.path.name} are the same policy ({files})")
        return
    page.pairs(f"{a.path.name} (A) and {b.path.name} (B)", [(k, f"{v} in both" if v == "the same bytes" else v)
                                                           for k, v in relations.items()])  # fmt: skip
    rows = [(d.field, _side(d.a, d.b), _side(d.b, d.a)) for d in found]
    figures = [row for row in rows if row[0].startswith("proofs.")]
    if len(figures) > PROOFS_LISTED:  # another run of the proofs differs in every figure
        rows = [row for row in rows if row not in figures]
        rows.append((f"proofs: {len(figures)} figures, listed by --json", _proof_size(a), _proof_size(b)))
    title = "1 difference" if len(found) == 1 else f"{len(found)} differences"
    page.table(title, ("field", "A", "B"), rows)


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Settings):
    """The options of `ksim inspect`."""

    bundle: Annotated[str, Option("a .kinfer file, a robot's folder, or a built-in robot", positional=True)]
    other: Annotated[str | None, Option("another, to compare it with", positional=True)] = None
    json: Annotated[bool, Option("print one JSON object, every number in full")] = False


def main(argv: list[str] | None = None) -> int:
    """`ksim inspect`."""
    args = options(
        InspectOptions,
        argv,
        "ksim inspect",
        "Print what a bundle is: robot, joints, inputs, commands, training, proofs, graphs, digests.\n"
        "With a second bundle: how the two differ. Exit status 0: read, or the same; 1: they differ, or an error.\n"
        "Of a robot's folder: what was understood of it and where each value is from, or all that it lacks.",
        "ksim inspect policy.kinfer\n  ksim inspect old.kinfer new.kinfer\n  ksim inspect path/to/robot",
    )
    if args.other is None and is_robot(args.bundle):
        return inspect_robot(args.bundle, _Page(), as_json=args.json)
    card = make_card(args.bundle)
    if args.other is None:
        print(json.dumps(card.to_json())) if args.json else show_card(card)
        return 0
    other = make_card(args.other)
    found = compare(card, other)
    if args.json:
        rows = [{"field": d.field, "a": d.a, "b": d.b} for d in found]
        print(json.dumps({"a": str(card.path), "b": str(other.path), "same": not found, "differences": rows}))
    else:
        show_differences(card, other, found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
