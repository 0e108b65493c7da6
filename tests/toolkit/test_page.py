"""Sentences of a report's page."""

from __future__ import annotations

from toolkit.page import prose


def test_a_line_does_not_break_between_a_figure_and_its_unit():
    assert prose("0.3 s at 50 Hz & 12 % of it") == "0.3\u00a0s at 50\u00a0Hz &amp; 12\u00a0% of it"


def test_what_only_begins_like_a_unit_is_a_word():
    assert prose("2 motions, 3 simulations") == "2 motions, 3 simulations"
