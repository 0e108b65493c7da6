"""The validation report: complete, honest about what was not run, nothing to load."""

from __future__ import annotations

import dataclasses
import json

import pytest

from export.report import not_run, page, proofs, to_json, verdict, write_report
from robots.margins import Answer, Ladder, Margins, Rung
from tests.browser import assert_readable, needs_chromium, text_of

LATENCY = {"p50": 20.0, "p99": 30.0}


@pytest.fixture(scope="module")
def text(exported_small) -> str:
    return text_of(page("policy.kinfer", exported_small.bundle, exported_small.report, LATENCY))


@needs_chromium
def test_the_page_can_be_read_on_a_desk_and_on_a_phone(exported_small, tmp_path):
    assert_readable(page("policy.kinfer", exported_small.bundle, exported_small.report, LATENCY), tmp_path)


def test_the_verdict_is_one_sentence_with_the_figures(exported_small, text):
    report = exported_small.report
    said = verdict(report)
    assert said.startswith("Proven: over 500 recorded steps its actions are within ")
    assert f"{report.numbers.recorded.action_error:.1e} rad" in said and "100.0% of 3 episodes in MuJoCo C" in said
    assert said.removeprefix("Proven:") in text


def test_every_proof_and_every_probe_has_its_row(exported_small, text):
    rows = proofs(exported_small.report)
    # graph, first carry, 3 + 5 sequences, bytes, optimisation, closed loop, probes
    assert len(rows) == 14 and all(row.holds for row in rows)
    for row in rows:
        assert row.what in text and row.found in text
    for probe in exported_small.report.probes:
        assert probe.probe in text
    assert exported_small.bundle.spec.weights_digest in text and exported_small.report.step_digest in text


def test_what_was_not_run_is_said_not_to_have_run(exported_small, text):
    assert not_run(exported_small.report) == [
        "Closed loop in MJX: not run (ksim validate --engines mujoco,mjx)",
        "Margins: not measured (ksim validate --margin-episodes 32)",
    ]
    assert "Closed loop in MJX: not run" in text and "Margins: not measured" in text
    assert to_json("p", exported_small.bundle, exported_small.report, None)["margins"] is None


def test_margins_have_a_chart_and_a_row_each(exported_small):
    def ladder(*survived: int) -> Ladder:
        return Ladder(rungs=tuple(Rung(value=0.02 * i, survived=n, episodes=32) for i, n in enumerate(survived)))

    answer = Answer(share=0.2, earlier_rad=0.1, last_rad=0.5, joint="<knee>", at_limit=0.0)
    margins = Margins(imu_age_s=ladder(32, 32, 8), action_latency_s=ladder(32, 30), answers=(answer,), answer_s=5.0)
    report = dataclasses.replace(exported_small.report, margins=margins)
    text = text_of(page("policy.kinfer", exported_small.bundle, report, None))
    assert "Margins" not in " ".join(not_run(report))
    for said in (
        "IMU readings late by",
        "20 ms",
        "at least 20 ms",
        "0: 100 %, 20: 100 %, 40: 25 %",
        "<knee>",
        "WINDS UP",
    ):
        assert said in text, said
    told = to_json("p", exported_small.bundle, report, None)["margins"]
    assert told["imu_age_s"]["margin"] == 0.02 and told["action_latency_s"]["at_least"] is True
    assert report.attach(exported_small.bundle).spec.margins == margins


def test_a_failure_turns_the_verdict_and_its_row(exported_small):
    report = exported_small.report
    wrong = dataclasses.replace(report.numbers.recorded, of_limit=3.0)
    bad = dataclasses.replace(
        report, numbers=dataclasses.replace(report.numbers, recorded=wrong), failures=("<first>", "second")
    )
    assert verdict(bad) == "Not proven: 2 things do not hold; the first: <first>."
    assert [row.what.split(":")[0] for row in proofs(bad) if not row.holds] == ["Recorded inputs"]
    html = page("policy.kinfer", exported_small.bundle, bad, None)
    assert "&lt;first&gt;" in html and "<first>" not in html and "<li>second</li>" in html


def test_a_bundle_whose_graph_was_refused_has_a_page_too(exported_small):
    report = dataclasses.replace(
        exported_small.report, nodes=0, numbers=None, closed_loops=(), probes=(), failures=("step_fn: opset: got 99",)
    )
    html = page("policy.kinfer", exported_small.bundle, report, None)
    assert "Not proven" in html and "refused by the checks" in html and "Not tried" in html
    assert to_json("p", exported_small.bundle, report, None)["not_run"][-1] == "Numbers: not complete"


def test_both_files_are_written_under_the_name_that_was_asked_for(exported_small, tmp_path):
    files = write_report(
        tmp_path / "new", "p.kinfer", exported_small.bundle, exported_small.report, LATENCY, "a.report"
    )
    assert [f.name for f in files] == ["a.report.json", "a.report.html"]
    data = json.loads(files[0].read_text())
    assert data["bundle"] == "p.kinfer" and data["latency_us"] == LATENCY and data["validated"] is True
    assert data["digests"]["bundle"] == exported_small.bundle.digest
    assert files[1].read_text().startswith("<!doctype html>")
