"""The demo, whole, with a policy that need not be good."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ksim.demo import demo, main
from ksim.errors import KsimError

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
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles in half the time
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quick)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)  # exactly one object
    kept = json.loads((out / "demo.json").read_text())
    assert said == kept
    assert set(kept) >= KEYS
    names = {Path(f).name for f in kept["files"]}
    expected = {
        "model.ckpt",
        "policy.kinfer",
        "policy.onnx",
        "policy.report.html",
        "run.mcap",
        "report.json",
        "report.html",
        "demo.json",
    }
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


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that the demo's stages would have worked in, which is not done here."""
    reached: list[Path] = []
    monkeypatch.setattr("ksim.demo._demo", lambda stages, **_: reached.append(stages.out))
    return reached


def run_in(out: Path) -> None:
    demo(out, fast=True, seed=0, console=Console(stderr=True))


def test_a_folder_with_anything_else_in_it_is_left_as_it_is(tmp_path: Path, staged: list[Path]) -> None:
    out = tmp_path / "mine"
    (out / "train").mkdir(parents=True)
    (out / "train" / "thesis.txt").write_text("years of work")
    for text in (None, "[]", "not JSON", '{"policy_source": "of another kind"}'):
        if text is not None:
            (out / "demo.json").write_text(text)
        with pytest.raises(KsimError, match=r"holds other files, which the demo would replace; .* name another"):
            run_in(out)
    assert staged == [] and (out / "train" / "thesis.txt").read_text() == "years of work"
    assert {p.name for p in out.iterdir()} == {"train", "demo.json"}


def test_the_command_refuses_such_a_folder_and_a_negative_seed_before_it_does_anything(
    tmp_path: Path, staged: list[Path]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KsimError, match="holds other files"):
        main(["--out", str(tmp_path)])
    for seed in (-1, 2**32, 10**30):
        with pytest.raises(KsimError, match=f"--seed: got {seed}, expected 0 to "):
            main(["--out", str(tmp_path / "new"), "--seed", str(seed)])
    assert staged == [] and [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_new_or_empty_folder_and_an_earlier_demos_are_written_into(tmp_path: Path, staged: list[Path]) -> None:
    new, empty, old = (tmp_path / name for name in ("a/new", "empty", "old"))
    empty.mkdir()
    old.mkdir()
    keys = ("policy_source", "twin_run_s", "parity_joint_rmse_rad")
    (old / "demo.json").write_text(json.dumps(dict.fromkeys(keys)))
    (old / "model.ckpt").write_text("of the demo before")
    for out in (new, new, empty, old):
        run_in(out)
        assert (out / ".ksim-demo").is_file() and not (out / ".lock").exists()
    assert staged == [new, new, empty, old]
