"""The demo, whole, with a policy that need not be good."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KEYS = {
    "survival_policy",
    "survival_baseline",
    "export_error_max",
    "loop_period_error_p99_ms",
    "loop_overruns",
    "parity_joint_rmse_rad",
    "files",
}


@pytest.mark.slow
def test_the_fast_demo_runs_every_stage_and_says_what_it_wrote(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "ksim.cli", "demo", "--fast", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)  # exactly one object
    kept = json.loads((out / "demo.json").read_text())
    assert said == kept
    assert set(kept) >= KEYS
    names = {Path(f).name for f in kept["files"]}
    expected = {"model.ckpt", "policy.kinfer", "policy.onnx", "run.mcap", "report.json", "report.html", "demo.json"}
    assert names >= expected
    assert all(Path(f).stat().st_size > 0 for f in kept["files"])
    assert 0 <= kept["export_error_max"] <= 1e-5
    assert kept["survival_baseline"] == 0.0  # the PD hold alone falls within two seconds
    assert kept["parity_policy_replay_error_max"] == 0.0
    assert ("run.mp4" in names) or "no video:" in done.stderr


def test_a_demo_that_cannot_write_says_so_in_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("here already")
    command = [sys.executable, "-m", "ksim.cli", "demo", "--fast", "--out", str(blocked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0 and "file" in done.stderr.lower()
    assert blocked.read_text() == "here already"
