"""The charts of every report."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np

from toolkit.charts import Chart, bars_by_name, histogram, nice_ticks


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert nice_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-0.3, 0.34, 4) == [-0.2, 0.0, 0.2]
    assert nice_ticks(3.0, 3.0) == [3.0]


def test_a_chart_is_well_formed_and_a_gap_breaks_the_line() -> None:
    chart = Chart("time [s] <&>", "angle", width=200, height=100)
    chart.line([0, 1, 2, 3], [0.0, 1.0, np.nan, 2.0], "measured", "measured & more")
    chart.mark(1.0, "here")
    root = ET.fromstring(f"<div>{chart.svg()}</div>")
    paths = [p.get("d") for p in root.iter("path") if p.get("class") == "measured"]
    assert paths[0] is not None and paths[0].count("M") == 2 and paths[0].count("L") == 1


def test_a_band_goes_along_its_top_and_back_along_its_bottom_and_sets_the_range() -> None:
    chart = Chart("x", "y", width=178, height=152)
    chart.line([0, 4], [0.0, 0.0], "measured", "measured")
    chart.band([0, 1, 2, 3, 4], [-1.0, -0.5, np.nan, -0.5, -1.0], [1.0, 0.5, 0.5, 0.5, 1.0], "5 to 95 %")
    root = ET.fromstring(f"<div>{chart.svg()}</div>")
    bands = [p.get("d") or "" for p in root.iter("path") if p.get("class") == "band"]
    # -1 to 1 and 6 % of it at either end are 100 pixels high; NaN parts the band in two
    assert bands[0] == "M0.0 5.4L25.0 27.7L25.0 72.3L0.0 94.6Z" and len(bands) == 3  # the third is the legend's
    lines = [p.get("class") for p in root.iter("path")]
    assert lines.index("band") < lines.index("measured")  # it lies behind
    assert [s.tail for s in root.iter("svg") if s.get("class") == "key"] == ["measured", "5 to 95 %"]


def test_a_gap_stays_a_gap_where_a_long_line_has_fewer_points() -> None:
    x = np.arange(16 * 400.0)
    chart = Chart("x", "y")
    chart.line(x, np.where(x % 16 == 15, np.nan, 1.0), "measured")
    path = next(p.get("d") or "" for p in ET.fromstring(f"<div>{chart.svg()}</div>").iter("path"))
    assert path.count("M") == 400 and path.count("L") < 1600


def test_a_line_spans_the_inner_width_and_height() -> None:
    chart = Chart("x", "y", width=178, height=152, y_zero=True)
    chart.line([0, 10], [0.0, 1.0], "measured")
    path = next(p.get("d") for p in ET.fromstring(f"<div>{chart.svg()}</div>").iter("path"))
    # 62 left and 16 right of it, 12 above and 40 below are for labels; 6 % of the range is left free at the top
    assert path == "M0.0 100.0L100.0 5.7"


def test_bars_have_the_lengths_of_their_values() -> None:
    root = ET.fromstring(f"<div>{bars_by_name({'a': 1.0, 'b': 0.5, 'c': float('nan')}, 'rad', 0.75)}</div>")
    assert [r.get("width") for r in root.iter("rect")] == ["100.00%", "50.00%", "0.00%"]
    assert next(line.get("x1") for line in root.iter("line")) == "75.00%"
    assert "<line" not in bars_by_name({"a": float("nan")}, "rad", float("nan"))


def test_a_histogram_counts_every_finite_value_even_when_all_are_equal() -> None:
    for values in (np.r_[np.random.default_rng(0).normal(size=200), np.nan], np.full(200, 20.0)):
        root = ET.fromstring(f"<div>{histogram(values, 'x')}</div>")
        counts = [int((t.text or "").split()[0]) for t in root.iter("title")]
        assert sum(counts) == 200
    assert "nothing measured" in histogram(np.full(3, np.nan), "x")


def test_a_histogram_takes_values_that_differ_by_rounding_alone() -> None:
    text = histogram(20.0 + 4e-15 * np.arange(100), "period [ms]")
    assert sum(int(part.rpartition(">")[2]) for part in text.split(" of 100")[:-1]) == 100
