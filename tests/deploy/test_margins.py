"""A robot's delays against margins: the verdicts by hand, and what `ksim run` and `ksim inspect` say of them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from deploy.bundle.inspect import main
from deploy.bundle.margins import Measured, Verdict, compare, link_warnings
from deploy.control.run import RunOptions, run
from deploy.log.recorder import read_log
from robots.bundle import write_bundle
from robots.margins import Answer, Ladder, Margins, Rung


def ladder(*rungs: tuple[float, int]) -> Ladder:
    return Ladder(rungs=tuple(Rung(value=v, survived=n, episodes=32) for v, n in rungs))


MARGINS = Margins(
    imu_age_s=ladder((0.0, 32), (0.02, 31), (0.04, 12)),
    action_latency_s=ladder((0.0, 32), (0.02, 32)),
    held_ticks=ladder((0, 20), (1, 10)),
    answers=(
        Answer(share=0.0, earlier_rad=0.3, last_rad=0.9, joint="dof_left_knee_04", at_limit=0.25),
        Answer(share=1.0, earlier_rad=0.3, last_rad=0.2, joint="dof_left_ankle_02", at_limit=0.0),
    ),
    seed=3,
    episode_s=8.0,
    others_s={"imu": 0.0275, "action": 0.0},
    answer_s=5.0,
)


def verdicts(measured: Measured, margins: Margins | None = MARGINS) -> dict[str, Verdict]:
    return {f.ladder: f.verdict for f in compare(margins, measured)}


def test_what_was_not_measured_is_not_compared():
    assert compare(MARGINS, Measured()) == [] and compare(None, Measured()) == []
    assert list(verdicts(Measured(held_ticks=0))) == ["held_ticks"]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ({"imu_age_s": 0.02}, Verdict.WITHIN),
        ({"imu_age_s": 0.021}, Verdict.BEYOND),  # nobody ran 0.021, and 0.04 falls
        ({"command_age_s": 0.0}, Verdict.WITHIN),
        ({"command_age_s": 0.03}, Verdict.UNTESTED),
        ({"joint_age_s": 0.001}, Verdict.UNKNOWN),
        ({"held_ticks": 0}, Verdict.BEYOND),  # it falls without
    ],
)
def test_a_value_lies_within_beyond_or_where_nobody_looked(measured, verdict):
    assert list(verdicts(Measured(**measured)).values()) == [verdict]


def test_a_bundle_without_margins_knows_nothing():
    found = compare(None, Measured(imu_age_s=0.01, held_ticks=2))
    assert [(f.verdict, f.margin) for f in found] == [(Verdict.UNKNOWN, None)] * 2
    assert found[0].text == "IMU readings late by 10 ms: what the policy bears was not measured"


def test_a_finding_is_told_in_milliseconds_with_what_the_policy_bears():
    late, command, held = compare(MARGINS, Measured(imu_age_s=0.05, command_age_s=0.05, held_ticks=3))
    assert late.text == "IMU readings late by 50 ms: in simulation the policy stands up to 20 ms only"
    assert command.text.endswith("in simulation the policy stands up to 20 ms; more was not tried")
    assert held.text == "ticks in a row without a command 3: in simulation the policy falls whatever they are"


def test_a_run_is_warned_of_what_its_link_shows_to_be_beyond():
    calm = dataclasses.replace(MARGINS, held_ticks=ladder((0, 32), (1, 32), (2, 3)))
    assert link_warnings(calm, [0.003] * 10, [0.03] * 10, 1) == []  # more was not tried: no warning
    (one,) = link_warnings(calm, [0.003] * 5 + [0.03] * 6, [0.002] * 11, 1)
    assert one.startswith("IMU readings late by 30 ms")  # its median
    assert link_warnings(calm, [0.03] * 9, [], 1) == []  # too few to say
    (two,) = link_warnings(calm, [], [], 2)
    assert two == "ticks in a row without a command 2: in simulation the policy stands up to 1 only"
    assert link_warnings(None, [0.03] * 10, [0.03] * 10, 9) == []


def printed(capsys, *argv: object) -> str:
    assert main([str(a) for a in argv]) in (0, 1)
    return capsys.readouterr().out


@pytest.fixture
def write(tmp_path, bundle):
    def make(name: str, **changes):
        path = tmp_path / f"{name}.kinfer"
        write_bundle(path, dataclasses.replace(bundle, spec=bundle.spec.replace(**changes)))
        return path

    return make


def test_the_card_shows_each_margin_and_where_it_fell(capsys, write):
    text = " ".join(printed(capsys, write("a", margins=MARGINS)).split())
    assert "IMU readings late by 20 ms (0: 100 %, 20: 97 %, 40: 38 %)" in text
    assert "commands late by at least 20 ms (0: 100 %, 20: 100 %)" in text
    assert "ticks in a row without a command none: falls at 0 (0: 62 %, 1: 31 %)" in text
    assert "joint readings" not in text
    assert "32 episodes of 8 s" in text and "(imu 27.5 ms)" in text and "seed 3" in text
    assert (
        "joints move 0 % of what is asked pull up to 0.9 rad (dof_left_knee_04), 0.9 in the last second: WINDS" in text
    )
    assert "0.2 in the last second: does not wind up" in text


def test_the_card_in_json_has_the_margins_and_every_rung(capsys, write):
    told = json.loads(printed(capsys, write("a", margins=MARGINS), "--json"))["margins"]
    assert told["imu_age_s"]["margin"] == 0.02 and told["imu_age_s"]["at_least"] is False
    assert told["action_latency_s"]["at_least"] is True and told["held_ticks"]["margin"] is None
    assert told["imu_age_s"]["rungs"][2] == {"value": 0.04, "survived": 12, "episodes": 32}
    assert [a["winds_up"] for a in told["answers"]] == [True, False] and told["joint_age_s"] is None


def test_a_bundle_without_margins_says_so(capsys, write):
    path = write("old")
    assert "not measured: how late readings and commands may be" in printed(capsys, path)
    assert json.loads(printed(capsys, path, "--json"))["margins"] is None


def test_bundles_that_differ_in_their_margins_differ(capsys, write):
    out = printed(capsys, write("old"), write("new", margins=MARGINS))
    assert [line.split() for line in out.splitlines() if line.startswith("margins")] == [["margins", "none", "another"]]


# the run


@pytest.fixture
def warned(write, server, tmp_path):
    """`warned(margins)`: (report, log, lines told while it ran) of a run with a ramp in which one tick is lost."""

    def go(margins: Margins):
        def hiccup(count: int) -> None:
            server.delay_s["imu"] = 0.1 if count == 5 else 0.0

        server.position_deg = {31: 27.0, 12: -20.0, 25: 5.0}
        server.on_tick = hiccup
        told: list[str] = []
        report = run(
            RunOptions(
                bundle=write("p", margins=margins),
                port=server.port,
                duration_s=0.2,
                ramp_s=0.6,
                log=tmp_path / "run.mcap",
                watchdog_s=0.0,
                late_max=10.0,
                lost_ticks_max=1000,
                on_warning=told.append,
            )
        )
        assert (report.ended, report.ramp_ticks > 0) == ("completed", True), report.message
        return report, read_log(report.log), told

    return go


def test_a_run_warns_before_the_policy_starts_of_more_lost_ticks_than_it_bears(warned):
    report, log, told = warned(Margins(held_ticks=ladder((0, 32), (1, 3))))
    (line,) = [line for line in report.warnings if line.startswith("ticks in a row without a command")]
    assert line.endswith("in simulation the policy stands up to 0 only") and line in told
    (event,) = [e for e in log.events if e["kind"] == "margin"]
    assert event["message"] == line and event["t_s"] <= log.start_s[log.run][0] + 0.2


def test_a_run_within_the_margins_warns_of_none(warned):
    report, log, told = warned(Margins(held_ticks=ladder((0, 32), (999, 32)), imu_age_s=ladder((0.0, 32), (9.0, 32))))
    assert not [line for line in (*report.warnings, *told) if "in simulation" in line]
    assert "margin" not in [e["kind"] for e in log.events]
