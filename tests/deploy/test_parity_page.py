"""The parity report: what it says of each fault, the robot's picture, the page in a browser, the terminal."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import types
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.log.page import html as log_html
from deploy.parity import words
from deploy.parity.figure import robot_figure, step
from deploy.parity.layers import Parity, parity
from deploy.parity.overview import LogRow
from deploy.parity.page import write_html, write_many
from deploy.parity.report import Cause, Figure, Judgement, Layer, LayerName, Suspect
from deploy.parity.terminal import judgement_lines
from robots.load import load_robot
from tests.browser import assert_readable, look, needs_chromium, text_of
from tests.deploy.test_other_body import TRUNK, folder
from tests.deploy.test_parity import WEAK, record

KNEE, HIP = "dof_right_knee_04", "dof_left_hip_roll_03"
STICKY = Suspect(cause=Cause.STICKY, layer=LayerName.ACTUATORS, places=(KNEE,), value=2.1, unit="N m", explains=0.84)
SLOW = Suspect(
    cause=Cause.IMU_RATE, layer=LayerName.SENSING, places=("imu",), value=20.0, unit="Hz", explains=1.0, direct=True
)


def layer(name: LayerName, value: float | None, **more: Any) -> Layer:
    """A layer whose one figure is good up to 1 and bad beyond 2."""
    figure = Figure(key="inside_x", what=f"Figure of {name.value}", value=value, unit="rad", good=1.0, poor=2.0, **more)
    return Layer(name=name, figures=(figure,))


def judged(suspects: tuple[Suspect, ...] = (), **values: float | None) -> Judgement:
    """Every layer with one figure: 0.5, or what is told of the layer."""
    layers = [layer(name, values.get(name.name, 0.5)) for name in LayerName]
    at = [n.name for n in LayerName].index("ACTUATORS")
    layers[at] = dataclasses.replace(layers[at], joints={KNEE: 5.25, HIP: 1.5, "dof_left_knee_04": 0.3})
    return Judgement(layers=tuple(layers), suspects=suspects)


# of no size, or of one without a unit
SIZELESS = (Cause.JOINTS_SWAPPED, Cause.JOINT_INVERTED, Cause.UNIT, Cause.GUARD)


@pytest.mark.parametrize("cause", Cause, ids=lambda c: c.name)
def test_every_cause_is_one_sentence_and_has_a_next_step(cause):
    for value in (None, 0.5, -0.5):
        for places in ((), ("dof_a",), ("dof_a", "dof_b"), tuple(f"dof_{k}" for k in "abcde")):
            suspect = Suspect(cause=cause, layer=LayerName.BODY, places=places, value=value, unit="s", explains=0.5)
            for text in (words.said(suspect), words.next_step(suspect)):
                assert re.fullmatch(r"[A-Z`].*[^.\s]\.", text), text
                assert not re.search(r"None|nan|  |dof_", text), text
            assert value is None or cause in SIZELESS or "500 ms" in words.said(suspect)


def test_the_commands_of_the_next_steps_are_verbs_that_there_are():
    from ksim.cli import VERBS

    steps = [words.next_step(Suspect(cause=c, layer=LayerName.BODY, places=("a",))) for c in Cause]
    named = {verb for text in steps for verb in re.findall(r"`ksim ([a-z]+)", text)}
    assert {"sysid", "train", "check"} <= named <= set(VERBS) | {"excite"}


def test_a_delay_that_is_shorter_than_in_training_is_no_search_for_where_it_waits():
    late, early = (Suspect(cause=Cause.DELAY, layer=LayerName.ACTION_PATH, value=v, unit="s") for v in (0.02, -0.01))
    assert "where it waits" in words.next_step(late) and "where it waits" not in words.next_step(early)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cause": Cause.GAINS, "places": (HIP,), "value": 0.7, "unit": ""}, "differ: 0.7 times the model's."),
        ({"cause": Cause.IMU_TURNED, "places": ("z",), "value": math.pi / 2, "unit": "rad"}, "turned by 90° about z"),
        ({"cause": Cause.DELAY, "value": 0.02, "unit": "s"}, "Commands act 20 ms later than in the simulation."),
        ({"cause": Cause.DELAY, "value": -0.004, "unit": "s"}, "Commands act 4 ms earlier than in the simulation."),
        (
            {"cause": Cause.IMU_TURNED, "places": ("gyro", "x"), "value": 1.5708, "unit": "rad"},
            "The gyro is turned by 90° ab",
        ),
        ({"cause": Cause.UNIT, "places": ("sent",), "value": 57.3, "unit": "factor"}, "The targets are in degrees wh"),
        ({"cause": Cause.UNIT, "places": (KNEE,), "value": 1 / 57.3, "unit": "factor"}, "04 is in radians where deg"),
        (
            {"cause": Cause.FROZEN, "places": ("imu",), "value": 2.0, "unit": "s"},
            "IMU is frozen: the same reading for 2 s.",
        ),
        ({"cause": Cause.MASS, "places": ("torso",), "value": 3.0, "unit": "kg"}, "Torso is 3 kg heavier than"),
        ({"cause": Cause.LOOSE, "places": (KNEE,), "value": 0.035, "unit": "rad"}, "is loose: play of 2.01°."),
        ({"cause": Cause.LOOSE, "places": (KNEE,), "value": 23.0, "unit": "N m/rad"}, "a spring of 23 N m/rad."),
        ({"cause": Cause.IMU_RATE, "value": 20.0, "unit": "Hz"}, "The IMU gives new readings at only 20 Hz."),
        ({"cause": Cause.JOINTS_SWAPPED, "places": (KNEE, HIP)}, "Joints right_knee_04 and left_hip_roll_03 are swapp"),
        ({"cause": Cause.GUARD, "value": 6.574, "unit": "times"}, "by up to 6.57 times what the policy moves them."),
    ],
)
def test_sizes_are_in_the_field_s_units(changes, said):
    suspect = Suspect(**({"layer": LayerName.BODY} | changes))
    assert said in words.said(suspect)


def test_a_small_size_has_no_exponent_that_a_line_could_break_at_and_one_is_one():
    assert words.told(Figure(key="a", what="a", value=1.04e-5, unit="rad")) == "0.0000104 rad"
    assert words.size(2e-8, "s") == "0.00002 ms" and words.size(12345.0, "N m") == "1.23e+04 N m"
    assert words.size(1.0, "ticks") == "1 tick" and words.size(0.0, "ticks") == "0 ticks"


def test_the_verdict_says_what_dominates_where_and_whether_reality_is_inside():
    assert words.verdict(judged()) == (
        "Nothing is wrong: every figure that could be told is inside its bound. Reality is inside the simulated band."
    )
    first = words.verdict(judged((STICKY, SLOW), CLOSED_LOOP=3.0))
    assert first.startswith("Joint right_knee_04 sticks: 2.1 N m of friction more. That is in the actuators layer.")
    assert "1 more suspect below." in first and first.endswith("Reality is outside the simulated band.")
    alone = words.verdict(judged(ACTUATORS=2.5, BODY=1.5, CLOSED_LOOP=None))
    assert "stands out is the actuators layer: Figure of actuators: 2.5 rad, wanted up to 1 rad." in alone
    assert "the actuators layer" in words.verdict(judged(ACTUATORS=1.5, CLOSED_LOOP=3.0))  # closed loop is no reason
    assert "the closed loop layer" in words.verdict(judged(CLOSED_LOOP=3.0))
    assert "Beyond their bound: right_knee_04 and left_hip_roll_03." in alone and "band" not in alone
    falling = dataclasses.replace(
        layer(LayerName.CLOSED_LOOP, 0.5),
        figures=(
            *layer(LayerName.CLOSED_LOOP, 0.5).figures,
            Figure(key="falls_apart_share", what="falls", value=0.5, unit="share", good=0.25, poor=0.75),
        ),
    )
    assert "is inside the simulated band" in words.verdict(Judgement(layers=(falling,))), "falls are no signal"
    nothing = Judgement(layers=tuple(Layer(name=name, untold="no") for name in LayerName))
    assert words.verdict(nothing).startswith("Nothing could be told")
    assert words.conclusion(nothing) == "not told" and words.conclusion(judged()) == "agrees"


def test_the_figure_that_tells_most_is_the_worst_and_of_those_the_nearest_to_its_bound():
    def figure(value: float | None, good: float | None, *, at_least: bool = False) -> Figure:
        return Figure(key="", what=f"{value}", value=value, unit="", good=good, poor=good, at_least=at_least)

    good = (figure(None, 1.0), figure(7.0, None), figure(0.1, 1.0), figure(20.0, 10.0, at_least=True), figure(0.0, 0.0))
    for figures, told in ((good[:2], "None"), (good, "20.0"), ((*good, figure(2.0, 1.0), figure(-9.0, 1.0)), "-9.0")):
        most = words.telling(Layer(name=LayerName.BODY, figures=figures))
        assert most is not None and most.what == told
    assert words.telling(Layer(name=LayerName.BODY)) is None


def test_the_terminal_has_verdict_suspects_layers_and_joints_in_100_columns():
    lines = judgement_lines(judged((STICKY, SLOW), SENSING=3.0, TIMING=None))
    assert max(map(len, lines)) <= 100 and not any("\x1b" in line for line in lines)
    text = "\n".join(lines)
    order = ["SUSPECT FOUND", " 1 Joint right", "takes away 84 %", "ksim excite", " 2 The IMU", "worst joints"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    rows = {line[:14].strip(): line[14:26].strip() for line in lines}
    assert {name.value: rows.get(name.value) for name in LayerName} == {
        "policy": "good", "action path": "good", "sensing": "bad", "actuators": "good", "body": "good",
        "closed loop": "good", "timing": "not told",
    }  # fmt: skip
    assert re.search(r"right_knee_04 +5\.25  actuators\n  left_hip_roll_03 +1\.50", text)
    painted = judgement_lines(judged((STICKY, SLOW)), colour=True)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == judgement_lines(judged((STICKY, SLOW)))
    assert painted[0].startswith("\x1b[31m")


def svg_of(text: str) -> ET.Element:
    """The picture's SVG."""
    return next(e for e in ET.fromstring(f"<div>{text}</div>") if e.get("class") == "robot")


def circles(svg: ET.Element) -> dict[str, tuple[float, float, float, str]]:
    """By joint: x, y, radius and colour."""
    out = {}
    for c in svg.iter("circle"):
        name = (c.findtext("title") or "").partition(":")[0]
        colour = re.search(r"--(h.)\)", c.get("style", ""))
        assert colour
        out[name] = (float(c.get("cx", "")), float(c.get("cy", "")), float(c.get("r", "")), colour.group(1))
    return out


@pytest.fixture
def biped(tmp_path: Path) -> Path:
    return folder(tmp_path / "biped", TRUNK, "0 0 0.5 1 0 0 0 {}")


@pytest.mark.parametrize("robot", ["kbot", "so101", "biped"])
def test_a_robot_s_picture_has_each_joint_once_inside_it_and_apart(robot, request):
    robot = request.getfixturevalue("biped") if robot == "biped" else robot
    names = load_robot(robot).joint_names
    shares = {name: 0.3 * 1.7**k for k, name in enumerate(names[:-1])}
    text = robot_figure(robot, shares, dict.fromkeys(names, "actuators"))
    svg, found = svg_of(text), circles(svg_of(text))
    assert set(found) == {words.short(n) for n in names}
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for name in names:
        x, y, radius, colour = found[words.short(name)]
        assert radius <= x <= width - radius and radius <= y <= height - radius
        assert colour == (f"h{step(shares[name])}" if name in shares else "h-")
    every = np.asarray([c[:3] for c in found.values()])
    for k, (x, y, radius) in enumerate(every):
        gaps = np.hypot(every[k + 1 :, 0] - x, every[k + 1 :, 1] - y) - every[k + 1 :, 2] - radius
        assert (gaps > -1.0).all()
    labels = [t for t in svg.iter("text") if t.get("class") == "tick"]
    worst = sorted(shares.values())[-5:]
    assert len(labels) == min(5, sum(v > 1 for v in shares.values()) or 2)
    assert f"{worst[-1]:.2g} × bound" in {t.text for t in labels}
    for side in ("start", "end"):
        rows = sorted(float(t.get("y", "")) for t in svg.iter("text") if t.get("text-anchor") == side)
        assert all(b - a > 11 for a, b in itertools.pairwise(rows)) and all(0 < y < height for y in rows)
    for name in (t for t in svg.iter("text") if t.get("class") == "name"):
        wide, x, y = 7.5 * len(name.text or ""), float(name.get("x", "")), float(name.get("y", ""))
        left = x - wide if name.get("text-anchor") == "end" else x
        beside = (every[:, 0] + every[:, 2] < left) | (every[:, 0] - every[:, 2] > left + wide)
        assert (beside | (np.abs(every[:, 1] - y + 4) > every[:, 2] + 6)).all(), name.text
    assert f"{words.short(names[-1])}: not told (actuators)" in text and "times the bound (actuators)" in text


@pytest.mark.parametrize(("along", "second", "third"), [("x", "0 0.2 0", "0 0 0.2"), ("y", "0 0 0.2", "0.2 0 0"),
                                                        ("z", "0.2 0 0", "0 0.2 0")])  # fmt: skip
def test_a_flat_robot_is_seen_from_where_it_is_not_flat(tmp_path, along, second, third):
    geom = '<geom type="sphere" size="0.01" mass="0.1"/>'
    arm = "".join(
        f'<body name="{name}" pos="{at}"><joint name="{name}" axis="0 1 0" range="-1 1"/>{geom}'
        for name, at in (("l_hip", "0 0 0.3"), ("l_knee", second), ("r_hip", third), ("r_knee", second))
    )
    robot = folder(tmp_path / "arm", f"{arm}{'</body>' * 4}", "{}")
    home = re.sub("qpos=.*?/>", 'qpos="0 0 0 0"/>', (robot / "robot.xml").read_text())
    (robot / "robot.xml").write_text(home)
    assert f"seen along its {along} axis" in robot_figure(robot, {})


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    """A short run of a robot with weak motors; what is said of it is what each test says."""
    log = record(tmp_path_factory.mktemp("weak"), WEAK, duration_s=1.5, hang=True)
    return parity(log, hang=True, closed_loop_runs=0, search=False)


def bands() -> list[Any]:
    """Bands of the closed loop as the page reads them: of the base, and of more joints than are shown at once."""
    t = np.linspace(0.0, 2.0, 40)
    low, high = np.sin(t) - 0.1, np.where(t < 1.5, np.sin(t) + 0.1, np.nan)  # then none stands any more
    series = {"time_s": t, "low": low, "middle": np.sin(t), "high": high, "measured": np.cos(t)}
    names = {"tilt": 0.7, "dof_a": 0.9, "dof_b": 0.31, "dof_c": math.nan, "dof_d": 0.8, "dof_e": 1.0}
    return [types.SimpleNamespace(signal=name, unit="rad", inside=inside, **series) for name, inside in names.items()]


def page_of(weak: Parity, path: Path, judgement: Judgement, bands: Sequence[Any] = (), **more: Any) -> str:
    """The page of a run with a judgement."""
    result = dataclasses.replace(weak, judgement=judgement, bands=tuple(bands), **more)
    write_html(path / "report.html", result)
    return (path / "report.html").read_text(encoding="utf-8")


def test_the_page_begins_with_verdict_suspects_robot_and_layers(weak, tmp_path):
    page = page_of(weak, tmp_path, judged((STICKY, SLOW), SENSING=3.0), bands=bands())
    text = text_of(page)
    order = [
        "suspect found", "Joint right_knee_04 sticks", "takes away 84\u00a0% of the gap", "ksim excite",
        "at only 20\u00a0Hz", "kbot in its home pose", "5.2 × bound", "Policy", "Closed loop",
        "The joints that differ most", "tilt", "70 % of the time inside", "31 % of the time inside", "The other joints",
        "100 % of the time inside",
        "How the error grows", "Timing of the loop", "Events",
    ]  # fmt: skip
    places = [text.find(part) for part in order]
    assert -1 not in places and places == sorted(places), dict(zip(order, places, strict=True))
    assert page.count('class="layer"') == 7 and 'class="band"' in page
    assert "Same actions when the policy is replayed" not in text  # that is a layer's now


def test_a_log_without_an_imu_has_no_empty_charts_of_it(weak, tmp_path):
    log = dataclasses.replace(weak.log, quat_wxyz=np.full_like(weak.log.quat_wxyz, np.nan))
    report = weak.report | {"horizon": weak.report["horizon"] | {"base_tilt_rmse_rad": [None, math.nan]}}
    assert "Balance" in page_of(weak, tmp_path, judged()) and "tilt RMSE" in page_of(weak, tmp_path, judged())
    blind = dataclasses.replace(weak, log=log, report=report)
    assert "Balance" not in page_of(blind, tmp_path, judged()) and "tilt RMSE" not in page_of(blind, tmp_path, judged())


def test_a_robot_that_is_not_here_leaves_the_rest_of_the_page(weak, tmp_path):
    text = text_of(page_of(weak, tmp_path, judged(), robot="no_such_robot"))
    assert "No picture of the robot: " in text and "Nothing is wrong" in text and "Closed loop" in text


def test_names_from_a_log_are_text_not_html(weak, tmp_path):
    evil = "<b>&\"'</b>"
    suspect = dataclasses.replace(STICKY, places=(evil,))
    text_of(page_of(weak, tmp_path, judged((suspect,))))
    path = tmp_path / "many.html"
    write_many(path, "kbot", judged((suspect,)), [LogRow(name=evil, duration_s=1.0, judgement=judged(), page=evil)])
    assert evil not in path.read_text() and evil in text_of(path.read_text())


def test_several_logs_have_a_row_each(tmp_path):
    rows = [
        LogRow(name="a.mcap", duration_s=3.0, judgement=judged((STICKY,)), page="a.html"),
        LogRow(name="b.mcap", duration_s=4.5, judgement=judged()),
    ]
    write_many(tmp_path / "many.html", "kbot", judged((STICKY,)), rows)
    page = (tmp_path / "many.html").read_text(encoding="utf-8")
    text = text_of(page)
    assert "2 logs, 7.5 s together" in text and '<a href="a.html">a.mcap</a>' in page
    one, other = re.findall(r"<tr>(?:(?!</tr>).)*?mcap.*?</tr>", page)
    assert "suspect found" in one and "sticks" in one and "right_knee_04: 5.2" in one
    assert "agrees" in other and "&ndash;" in other


@needs_chromium
def test_the_pages_can_be_read_on_a_desk_and_on_a_phone(weak, tmp_path):
    long = "a_log_with_a_name_that_is_rather_long_20261128_1412.mcap"
    judgement = judged((STICKY, SLOW), SENSING=3.0, TIMING=None)
    write_many(tmp_path / "many.html", "so101", judgement, [LogRow(name=long, duration_s=3.0, judgement=judgement)])
    assert_readable(page_of(weak, tmp_path, judgement, bands=bands()), tmp_path)
    assert_readable((tmp_path / "many.html").read_text(encoding="utf-8"), tmp_path)
    assert_readable(log_html(weak.log), tmp_path)


@needs_chromium
def test_what_sticks_out_and_what_is_faint_is_found(tmp_path):
    found = look('<p style="width:500px;color:#aaa;font-size:7px">wide</p>', tmp_path, dark=False)[1]
    assert found["scroll_width"] > 500 > found["width"] and len(found["out"]) == 1
    assert found["small"][0][1] == found["faint"][0][1] == "wide"
