"""The rows of docs/faults.md: each fault made for real, and how the run ends. Times are the benchmark's."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from injection import rig
    from injection.rig import Result, Row, Scene, TooBusy, measure
    from injection.rows import GROUPS
finally:
    sys.path.pop(0)

ROWS = [row for rows in GROUPS.values() for row in rows]
# a test machine is busy
PATIENT = ("--watchdog", "2", "--max-late", "10")
LEAD_S, SHORT_S, TRIES = 0.5, 2.5, 3


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene


def param(row: Row) -> Any:
    marks = [pytest.mark.slow] if row.damped is None or row.ends == ("lost",) else []
    marks += [pytest.mark.skip(reason=row.needs)] if row.needs else []
    return pytest.param(row, marks=marks, id=row.what)


def made(row: Row, scene: Scene) -> Result:
    more = (*PATIENT, "--duration", f"{min(row.seconds, SHORT_S):g}") if row.seconds < 60 else PATIENT
    for left in reversed(range(TRIES)):
        try:
            return measure(row, scene, more, LEAD_S)
        except TooBusy:
            if not left:
                raise
        finally:
            if not row.fresh:
                scene.clear()
    raise AssertionError


def as_the_row_says(row: Row, result: Result) -> bool:
    ended = result.ended in row.ends if row.ends else not result.report
    return ended and re.search(row.says, result.said) is not None


@pytest.mark.parametrize("row", [param(row) for row in ROWS])
def test_a_fault_ends_as_its_row_says(row: Row, request: pytest.FixtureRequest) -> None:
    for left in reversed(range(1 if row.fresh else TRIES)):
        if row.fresh:
            with Scene() as scene:
                result = made(row, scene)
        else:
            result = made(row, request.getfixturevalue("shared"))
        # once is once too often
        if row.damped is True:
            assert result.ms is not None, result
        # a run that says that the robot is damped is right, and one that says it is not
        if result.ended in row.ends and row.damped is not None:
            assert result.report["damped"] == (row.damped or result.ended == "completed"), result
        assert (result.code == 0) == (result.ended == "completed"), result
        # a machine that does much besides may lose a run to another end
        if as_the_row_says(row, result) or not left:
            break
    assert as_the_row_says(row, result), result


def test_a_bad_ticks_time_is_tied_to_the_event_that_follows_the_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [(0.0, "phase", "disconnected to checked"), (0.03, "plan", "ramp"), (0.04, "phase", "checked to homing")]
    log = SimpleNamespace(
        run=np.array([False, True, True]),
        scheduled_s=np.array([0.06, 0.08, 0.1]),
        events=[{"t_s": t, "kind": kind, "message": message} for t, kind, message in events],
        spec=SimpleNamespace(control_period_s=0.02),
    )
    monkeypatch.setattr(rig, "read_log", lambda path: log)
    run: Any = SimpleNamespace(log="run.mcap", stiff=100.0)
    # stiff at 0.04 of the log, so tick 0 of the policy was due 0.04 s later, and tick 50 a second after it
    assert rig._bad_tick(run, 50) == pytest.approx(101.04)


def test_the_document_has_every_row() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert [row.what for row in ROWS if f"| {row.what}" not in text] == []


def test_nothing_that_decides_reads_the_clock_of_the_day() -> None:
    """A clock that is stepped changes nothing: every duration is of time.monotonic."""
    found = []
    for name in ("control/loop", "control/watchdog", "robot/kos", "robot/safety", "robot/frozen", "robot/damping"):
        for node in ast.walk(ast.parse((ROOT / "deploy" / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found += [(name, f"{node.value.id}.{node.attr}")]
    calls = {call for _, call in found if call.partition(".")[0] in ("time", "datetime")}
    # the last two are the watchdog's note: when it acted, for people
    assert calls == {"time.monotonic", "time.sleep", "time.strftime", "time.gmtime"}
    assert {name for name, call in found if call == "time.gmtime"} == {"control/watchdog"}
