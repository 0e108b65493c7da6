"""Excitation: signals within limits and speed, through a twin over gRPC, with logs that identification reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.errors import OptionError
from deploy.log.recorder import read_log
from deploy.sysid.excite import KINDS, ExciteOptions, excite
from deploy.sysid.motion import read_run
from deploy.sysid.signals import LEAD_S, SPEED_SHARE, chosen, excitation, sets_of
from deploy.twin.server import spawn_twin
from robots.load import load_robot

ROBOT = load_robot("kbot")
LOWER, UPPER, HOME = (np.asarray(ROBOT.column(c)) for c in ("lower_rad", "upper_rad", "home_rad"))
SPEED = np.asarray(ROBOT.column("velocity_max_rad_s"))
PERIOD_S = ROBOT.control_period_s
EVERY = list(range(len(ROBOT.joints)))


def played(kind: str, sets: list[list[int]] | None = None, **changes) -> np.ndarray:
    settings = {"seconds": 20.0, "amplitude_rad": 0.2, "seed": 0} | changes
    return excitation(ROBOT, kind, [EVERY] if sets is None else sets, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amplitude_rad", [0.2, 1.5])
def test_every_signal_stays_within_limits_and_speed_and_begins_and_ends_at_home(kind, amplitude_rad):
    targets = played(kind, amplitude_rad=amplitude_rad)
    assert (targets >= LOWER).all() and (targets <= UPPER).all()
    jump = 0.5 * SPEED * PERIOD_S + 1e-9 if kind == "steps" else 1.05 * SPEED_SHARE * SPEED * PERIOD_S
    assert (np.abs(np.diff(targets, axis=0)) <= jump).all()
    assert np.allclose(targets[[0, -1]], HOME) and np.ptp(targets, axis=0).min() > 0.02


def test_the_same_seed_gives_the_same_signal_and_another_seed_another():
    assert np.array_equal(played("multisine"), played("multisine"))
    assert not np.allclose(played("multisine"), played("multisine", seed=1))
    assert not np.allclose(played("steps"), played("steps", seed=1))


def test_one_at_a_time_moves_one_joint_and_holds_the_others_at_home():
    sets = sets_of(ROBOT, chosen(ROBOT, ["knee"]), "one")
    targets = played("chirp", sets, seconds=6.0)
    knees = [ROBOT.joint_names.index(f"dof_{side}_knee_04") for side in ("left", "right")]
    moved = np.abs(targets - HOME) > 1e-9
    assert sets == [[knees[0]], [knees[1]]] and set(np.flatnonzero(moved.any(axis=0))) == set(knees)
    assert not (moved[:, knees[0]] & moved[:, knees[1]]).any()
    assert len(targets) == 2 * round((6.0 + 2 * LEAD_S) / PERIOD_S)


def test_sides_move_by_themselves_and_a_word_that_no_joint_has_is_refused():
    left, right = sets_of(ROBOT, EVERY, "side")
    assert {ROBOT.joint_names[i].split("_")[1] for i in left} == {"left"} and len(left) == len(right) == 10
    with pytest.raises(OptionError, match=r"--joints toe: it is in no joint's name; .*there is dof_left"):
        chosen(ROBOT, ["toe"])


def test_a_chirp_goes_from_a_tenth_to_ten_hertz_and_back():
    knee = 3
    wave = played("chirp", [[knee]])[:, knee]
    wave = (wave - wave[round(LEAD_S / PERIOD_S)])[round(LEAD_S / PERIOD_S) : -round(LEAD_S / PERIOD_S)]
    crossings = np.flatnonzero(np.diff(np.sign(wave)) != 0) * PERIOD_S
    between = np.diff(crossings)
    assert between.min() == pytest.approx(0.05, abs=0.011) and between.max() > 2.0  # half periods
    assert 9.0 < crossings[np.argmin(between)] < 11.0


def test_a_multisine_has_a_low_peak_and_nothing_above_ten_hertz():
    joint = ROBOT.joint_names.index("dof_left_wrist_00")
    wave = played("multisine", [[joint]])[:, joint][50:-50]
    assert np.abs(wave).max() / wave.std() < 2.4
    power = np.abs(np.fft.rfft(wave - wave.mean())) ** 2
    hertz = np.fft.rfftfreq(len(wave), PERIOD_S)
    assert power[hertz > 10.5].sum() < 1e-3 * power.sum()


def test_steps_are_of_three_sizes_both_ways_and_sweeps_go_both_ways_at_three_speeds():
    knee = 3
    wave = played("steps", [[knee]])[:, knee]
    jumps = np.abs(np.diff(wave)[60:-60])
    assert len(set(np.round(jumps[jumps > 0.01], 4))) == 3 and (np.diff(wave)[60:-60] < -0.01).any()
    speeds = np.diff(played("sweeps", [[knee]])[:, knee])[52:-52] / PERIOD_S
    steady = np.round(speeds[np.abs(np.diff(speeds, prepend=0)) < 1e-6], 3)
    assert sorted(set(np.abs(steady))) == pytest.approx([0.07, 0.14, 0.28], abs=1e-3)
    assert {-0.07, 0.07} <= set(steady)


def test_a_hung_twin_follows_every_signal_no_target_is_clamped_and_the_logs_are_motions(tmp_path):
    with spawn_twin(lockstep=True, start="hang") as twin:
        options = ExciteOptions(
            out=tmp_path, port=twin.port, step_lock=True, suspended=True, at_once="all", seconds=5.0, amplitude_rad=0.2
        )
        reports = excite(options)
    assert [r.log.name for r in reports] == [f"{kind}.mcap" for kind in KINDS]
    for kind, report in zip(KINDS, reports, strict=True):
        assert report.exit_code == 0 and report.left == "damped" and report.clamped_ticks == 0, report
        log = read_log(report.log)
        assert log.complete and log.spec.training["kind"] == kind and log.spec.training["seed"] == 0
        asked = excitation(ROBOT, kind, [EVERY], seconds=5.0, amplitude_rad=0.2, seed=0)
        assert np.array_equal(log.sent[log.run], asked.astype(np.float32))
        motion = read_run(report.log, ROBOT)
        assert np.diff(motion.time_s) == pytest.approx(PERIOD_S) and len(motion.time_s) >= len(asked)
        knee = 3
        assert np.ptp(motion.position[:, knee]) > 0.05


def test_the_command_wants_to_be_told_that_the_robot_hangs_and_keeps_logs_that_are_there(tmp_path):
    def ksim(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "ksim.cli", "excite", "--port", "1", "--out", str(tmp_path), *more]
        return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

    refused = ksim()
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "nobody is there to be asked; add --suspended once it hangs" in refused.stderr
    (tmp_path / "steps.mcap").write_bytes(b"mine")
    kept = ksim("--suspended", "--kinds", "steps")
    assert kept.returncode == 1 and "it exists; expected a new file; name another --out or add --force" in kept.stderr
    unknown = ksim("--suspended", "--kinds", "wobble")
    assert unknown.returncode != 0 and "wobble" in unknown.stderr and "chirp" in unknown.stderr


def test_the_command_drives_a_twin_and_tells_what_became_of_it_as_json(tmp_path):
    with spawn_twin(lockstep=True, start="hang") as twin:
        words = [
            "--port",
            str(twin.port),
            "--out",
            str(tmp_path),
            "--step-lock",
            "--suspended",
            "--joints",
            "left_knee",
        ]
        words += ["--kinds", "steps", "--seconds", "5", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "ksim.cli", "excite", *words], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["runs"]
    assert told["ended"] == "completed" and Path(told["log"]) == tmp_path / "steps.mcap"
    log = read_log(told["log"])
    assert set(np.flatnonzero(np.ptp(log.sent[log.run], axis=0))) == {3}
    assert "next: ksim sysid " in done.stderr


def test_a_twin_in_lock_step_that_nobody_steps_is_named_as_the_cause(tmp_path):
    with spawn_twin(lockstep=True, start="hang") as twin:
        options = ExciteOptions(
            out=tmp_path, port=twin.port, suspended=True, kinds=("steps",), at_once="all", watchdog_s=2.0, late_max=10.0
        )
        (report,) = excite(options)
    assert report.exit_code == 1 and report.left == "damped" and report.message.startswith("stale: ")
    assert "the server's time stands" in report.message and "--step-lock" in report.message


def test_ctrl_c_damps_the_robot_and_plays_no_further_signal(tmp_path):
    with spawn_twin(lockstep=True, start="hang") as twin:
        words = ["--port", str(twin.port), "--out", str(tmp_path), "--step-lock", "--suspended", "--at-once", "all"]
        words += ["--kinds", "sweeps", "steps", "--seconds", "3000", "--json"]
        child = subprocess.Popen(
            [sys.executable, "-m", "ksim.cli", "excite", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not (tmp_path / "sweeps.mcap").exists() or (tmp_path / "sweeps.mcap").stat().st_size < 50_000:
            assert child.poll() is None and time.monotonic() < deadline, child.communicate()
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    (told,) = json.loads(out)["runs"]
    assert told["ended"] == "interrupted" and told["left"] == "damped" and not (tmp_path / "steps.mcap").exists()
    assert read_log(tmp_path / "sweeps.mcap").run.any()
