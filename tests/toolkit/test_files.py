"""Files that are written beside and renamed."""

from __future__ import annotations

import errno

import pytest

from toolkit.cli import one_line
from toolkit.files import atomic_path
from toolkit.words import count


def test_a_full_disk_names_the_file_that_it_was_to_hold_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "report.html"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write to an open file does
    told = one_line("parity", caught.value)
    assert told is not None and told.startswith(f"{tmp_path / 'report.html'}: No space left on device; expected room")
    assert list(tmp_path.iterdir()) == []


def test_one_is_one_and_others_are_many():
    assert [count(n, "tick") for n in (0, 1, 2, 1000)] == ["0 ticks", "1 tick", "2 ticks", "1,000 ticks"]
