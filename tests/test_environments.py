"""Environments beside ours: of processes that want the same one, one makes it."""

from __future__ import annotations

import sys
import threading

from tests import environments


def test_an_environment_that_another_process_makes_is_waited_for_and_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path / "cache")
    home = tmp_path / "cache" / f"kinfer-1-py{sys.version_info.major}.{sys.version_info.minor}"
    found = []
    waits = threading.Thread(target=lambda: found.append(environments.python_with("kinfer", "1")), daemon=True)
    with environments.alone(home):
        waits.start()
        waits.join(0.5)
        assert waits.is_alive() and not home.exists()
        home.mkdir()
        (home / "installed").touch()
    waits.join(60)
    assert found == [home / "bin" / "python"]
    assert [path.name for path in home.iterdir()] == ["installed"]
