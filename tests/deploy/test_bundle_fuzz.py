"""A short run of the fuzz target, with a fixed seed: benchmarks/fuzz_bundle.py runs long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INPUTS = 600


def test_damaged_bundles_give_our_own_errors_and_nothing_else():
    command = [sys.executable, "benchmarks/fuzz_bundle.py", "--inputs", str(INPUTS), "--seed", "2026", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == INPUTS and report["failures"] == []
    # every layer was reached, and the inner ones past the outer
    assert all(sum(counts.values()) > 10 for counts in report["layers"].values())
    assert outcomes["PolicyError"] > 100 and outcomes["BundleError"] > 100 and outcomes["accepted"] > 10
    assert outcomes["PolicyError, from ONNX Runtime"] > 5
    assert report["largest_mib"] < 256
