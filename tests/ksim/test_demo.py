"""The demo, whole, with a policy that need not be good."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ksim.demo import demo, main
from ksim.demo_stages import Stages, TwinMotion
from ksim.demo_walk import legs_of
from ksim.errors import KsimError
from ksim.suite.twins import COURSE, COURSE_S
from robots import rotation
from robots.model import build_model

KEYS = {
    "survival_policy",
    "survival_baseline",
    "export_recorded",
    "loop_period_error_p99_ms",
    "loop_overruns",
    "parity_joint_rmse_rad",
    "files",
}


@pytest.mark.slow
def test_the_fast_demo_runs_every_stage_and_says_what_it_wrote(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "ksim.cli", "demo", "--fast", "--json", "--out", str(out)]
    # compiled as a user's is, not as the other tests' are
    own = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
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
    assert 0 <= kept["export_recorded"]["action_error"] <= kept["export_recorded"]["action_limit"]
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


# A verb that is a script of Python's: `ksim` is replaced, and the process is real.
SCRIPT = """import json, os, sys, time
what = sys.argv[1]
if what == "fail":
    sys.exit("its own line")
time.sleep(60 if what == "long" else 0.5)
print(json.dumps({"is": what, "cores": sorted(os.sched_getaffinity(0)), "long": "x" * 200_000}))"""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Stages whose commands are SCRIPT."""

    def start(self, verb, arguments, out, said):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=out, stderr=said, text=True)

    monkeypatch.setattr(Stages, "_start", start)
    return Stages(out=tmp_path, console=Console(stderr=True), cache=str(tmp_path))


def test_stages_side_by_side_share_the_cores_and_come_back_in_order(scripted):
    before = os.sched_getaffinity(0)
    one, other = scripted.call_each("train", ("one",), ("other",))
    assert (one["is"], other["is"]) == ("one", "other") and os.sched_getaffinity(0) == before
    if len(before) > 1:
        assert {*one["cores"], *other["cores"]} == before and not {*one["cores"]} & {*other["cores"]}
    assert scripted.seconds.keys() == {"train"} and scripted.seconds["train"] < 10
    assert {*scripted.call("train", "alone")["cores"]} == before


@pytest.mark.parametrize("several", [(("long",), ("fail",)), (("fail",), ("long",))])
def test_a_stage_that_fails_beside_another_ends_it_and_says_its_own_line(scripted, capfd, several):
    began = time.monotonic()
    with pytest.raises(KsimError, match="ksim train ended with status 1; its own message is above"):
        scripted.call_each("train", *several)
    assert time.monotonic() - began < 30
    assert capfd.readouterr().err == "its own line\n"


def test_an_interrupted_stage_leaves_no_process_behind(scripted, monkeypatch):
    started = []
    start = Stages._start
    monkeypatch.setattr(Stages, "_start", lambda *args: started.append(start(*args)) or started[-1])
    monkeypatch.setattr("ksim.demo_stages.time.sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scripted.call_each("train", ("long",), ("long",))
    assert len(started) == 2 and all(process.returncode for process in started)


def test_the_demo_goes_on_with_the_better_of_two_trainings(tmp_path, monkeypatch):
    """Until the export, which is where this demo ends."""
    asked, survives = [], {"one.ckpt": 0.5, "other.ckpt": 0.9}
    for name in survives:
        (tmp_path / name).write_text(name)

    def each(self, verb, *several):
        asked.extend(several)
        names = list(survives)[: len(several)]
        return [{"checkpoint": str(tmp_path / name), "seconds": 360.0, "steps": 7} for name in names]

    def call(self, verb, *arguments, **more):
        if verb == "eval":
            return {"survival": survives[Path(arguments[0]).name]}
        raise KsimError(f"{verb} of {(tmp_path / 'demo' / 'model.ckpt').read_text()}")

    monkeypatch.setattr(Stages, "call_each", each)
    monkeypatch.setattr(Stages, "call", call)
    monkeypatch.setattr("ksim.demo.cores", lambda: [0, 1])
    with pytest.raises(KsimError, match=r"export of other\.ckpt"):
        demo(tmp_path / "demo", fast=False, seed=3, console=Console(stderr=True))
    survives["one.ckpt"] = 0.85
    monkeypatch.setattr("ksim.demo._on_gpu", lambda: True)
    with pytest.raises(KsimError, match=r"export of one\.ckpt"):
        demo(tmp_path / "demo", fast=False, seed=4, console=Console(stderr=True))
    assert [[a for a in one if str(a).startswith("seed=")] for one in asked] == [
        *(["seed=3"], ["seed=5003"]),
        ["seed=4"],
    ]
    assert asked[0][3] != asked[1][3], "each in a folder of its own"


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


def test_the_legs_of_a_course_tell_what_was_asked_and_done_from_a_second_on() -> None:
    time_s = np.arange(0.0, COURSE_S, 0.01)
    # it walks along the world's y, which is ahead, with 0.4 m/s, and turns in the third leg
    turning = (time_s >= 6.0) & (time_s < 9.0)
    heading = np.pi / 2 + np.cumsum(np.where(turning, 0.6, 0.0)) * 0.01
    speed = np.where(time_s < 3.0, 9.0, 0.4)[:, None]  # the first second of a leg does not count
    motion = TwinMotion(
        time_s=time_s,
        dt_s=0.01,
        qpos=np.zeros((len(time_s), 0)),
        position=np.zeros((len(time_s), 3)),
        velocity=speed * np.stack([np.cos(heading), np.sin(heading), 0.0 * heading], axis=-1),
        heading=heading,
        push_n=np.zeros((len(time_s), 3)),
    )
    legs = legs_of(motion)
    assert [leg["at_s"] for leg in legs] == [row["at_s"] for row in COURSE]
    ahead, turn = legs[1], legs[2]
    assert (ahead["xvel_asked"], ahead["yawrate_asked"]) == (0.5, 0.0)
    assert ahead["xvel"] == pytest.approx(0.4) and ahead["yvel"] == pytest.approx(0.0, abs=1e-9)
    assert turn["yawrate_asked"] == 0.6 and turn["yawrate"] == pytest.approx(0.6, abs=0.01)


def test_the_twins_motion_begins_where_it_was_let_go_and_tells_a_fall(tmp_path: Path) -> None:
    rows, built = 300, build_model("kbot")
    qpos = np.tile(built.home_qpos, (rows, 1))
    qpos[:, built.base_quat] = rotation.from_yaw(np.linspace(3.0, 3.4, rows))  # passes half a turn
    position = np.tile([0.0, 0.0, 0.8], (rows, 1))
    position[:, 0] = 0.01 * np.arange(rows)
    position[200:, 2] = 0.3
    saved = {"time_s": 5.0 + 0.01 * np.arange(rows), "held": np.arange(rows) < 100, "push_n": np.zeros((rows, 3))}
    np.savez(tmp_path / "twin.npz", **saved, qpos=qpos, base_position_m=position)
    motion = TwinMotion.read(tmp_path / "twin.npz")
    assert motion is not None and len(motion.time_s) == 200 and motion.time_s[0] == 0.0
    assert motion.dt_s == pytest.approx(0.01) and motion.fell_after() == pytest.approx(1.0)
    assert motion.velocity[:50, 0] == pytest.approx(1.0) and np.abs(np.diff(motion.heading)).max() < 0.01
    assert TwinMotion.read(tmp_path / "none.npz") is None
    np.savez(tmp_path / "held.npz", **{**saved, "held": np.ones(rows, bool)}, qpos=qpos, base_position_m=position)
    assert TwinMotion.read(tmp_path / "held.npz") is None


def test_walk_and_fast_are_not_both_taken(staged: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="--fast: got True, expected either --walk or --fast"):
        main(["--walk", "--fast", "--out", str(tmp_path / "new")])
    assert staged == [] and list(tmp_path.iterdir()) == []
