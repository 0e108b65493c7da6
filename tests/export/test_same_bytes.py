"""The same checkpoint gives the same files, byte for byte, whatever the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robots import read_bundle

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_exports_in_fresh_processes_give_the_same_bytes(checkpoint_path, tmp_path):
    """With the proofs in them; Python's hashes, on which the order of sets depends, differ between the two."""
    running = []
    for seed in ("1", "271828"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-m", "ksim.cli", "export", checkpoint_path, "-o", folder / "policy.kinfer"]
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command += ["--episodes", "2", "--steps", "500", "--margin-episodes", "1"]
        command += ["--target", "all" if seed == "1" else "pyfirmware"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=folder, env=env, **pipes))
    answers = []
    for process in running:
        out, said = process.communicate(timeout=550)
        assert process.returncode == 0, said
        answers.append([line for line in out.splitlines() if ": fits" in line])
    every = ["kos (ksim run): fits", "kinfer 0.6.1: fits", "pyfirmware (2025-10-23): fits"]
    assert answers == [every, every[2:]]
    one, other = (tmp_path / seed for seed in ("1", "271828"))
    for name in ("policy.kinfer", "policy.onnx"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    spec = read_bundle(one / "policy.kinfer").spec
    assert spec is not None and spec.proofs and spec.margins is not None, "proofs and margins are among the bytes"
