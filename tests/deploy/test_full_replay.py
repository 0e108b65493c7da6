"""`ksim parity --full`: the replay is the truth where the parameters are, and says how far off it is where not."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

import deploy.parity.full as full_module
from deploy.log.tools import main as log_tool
from deploy.parity.command import main
from deploy.parity.full import JointFigures, replay_full
from deploy.sysid import simulate
from deploy.sysid.calibration import load_calibration, write_calibration
from deploy.sysid.contacts import Contacts
from deploy.sysid.motion import Motion
from deploy.sysid.simulate import Parameters, Simulator
from robots.load import load_robot
from tests.calibrations import calibration_of
from tests.deploy.foreign_logs import ARM, plain
from toolkit.cli import one_line

MOTIONS = Path(__file__).parents[3] / "shared/real/so101/motions"
ROWS = 200


def hidden(robot) -> Parameters:
    """What the arm really is; nobody published it."""
    p = Parameters.of(robot)
    return p.replace(kp=0.4 * p.kp, kd=1.5 * p.kd, friction=p.friction + 0.02, armature=p.armature + 0.01)


def motion_of(folder: Path, name: str, rows: int = ROWS) -> Motion:
    """What the hidden arm makes of swings of three joints."""
    robot, time_s = load_robot(folder), 0.02 * np.arange(rows)
    target = 0.4 * np.sin(2 * np.pi * np.array([0.5, 0.8, 1.1]) * time_s[:, None])
    motion = Motion(
        name=name,
        names=robot.joint_names,
        time_s=time_s,
        target=target,
        position=np.zeros_like(target),
        use=np.ones(rows, dtype=bool),
    )
    return dataclasses.replace(motion, position=Simulator(folder, [motion]).run([hidden(robot)])[name][0])


def log_of(folder: Path, motion: Motion, to: Path) -> Path:
    """The motion as a table, imported."""
    series = {"position": motion.position, "target": motion.target}
    columns = {
        f"{joint}.{kind}": (lambda t, v=values[:, j]: v[round(t / 0.02)])
        for kind, values in series.items()
        for j, joint in enumerate(motion.names)
    }
    to.mkdir(exist_ok=True)
    table = plain(to / f"{motion.name}.csv", columns, len(motion.time_s))
    out = to / f"{motion.name}.mcap"
    assert log_tool(["import", str(table), "-o", str(out), "--robot", str(folder)]) == 0
    return out


def test_the_hidden_arm_is_replayed_without_error_and_the_published_one_is_not(arm, tmp_path, capsys):
    log = log_of(arm, motion_of(arm, "swing"), tmp_path / "logs")
    write_calibration(tmp_path / "c.yaml", calibration_of(arm, hidden(load_robot(arm))))
    words = [str(log), "--full", "--robot", str(arm), "--out", str(tmp_path / "out")]
    assert main([*words, "--calibration", str(tmp_path / "c.yaml")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3 and table[1].split()[0] == "swing" and " 0.000 " in table[1]
    report = json.loads((tmp_path / "out/full.json").read_text())
    found = report["motions"]["swing"]
    assert report["robot"] == "arm" and report["calibration"] == "c.yaml" and report["ratio"] == found["ratio"] < 1e-4
    for joint in found["joints"].values():
        assert joint["calibrated"]["rmse_rad"] < 1e-6 < 0.02 < joint["published"]["rmse_rad"]
        assert joint["calibrated"]["correlation"] == pytest.approx(1.0)
        assert 0.02 < joint["published"]["mae_rad"] <= joint["published"]["rmse_rad"]
    with np.load(tmp_path / "out" / found["npz"]) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            "time_s": (ROWS,), "use": (ROWS,), "names": (3,),
            **dict.fromkeys(("measured", "simulated", "published", "target"), (ROWS, 3)),
        }  # fmt: skip
        assert tuple(arrays["names"]) == ARM and np.allclose(arrays["time_s"], 0.02 * np.arange(ROWS))
        off = np.sqrt(np.mean((arrays["published"] - arrays["measured"]) ** 2, axis=0))
        assert np.allclose(off, [j["published"]["rmse_rad"] for j in found["joints"].values()], rtol=1e-12)
        assert np.abs(arrays["simulated"] - arrays["measured"]).max() < 1e-5
    # without a calibration the published model is what is simulated
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] is None and report["motions"]["swing"]["joints"]["gripper"]["calibrated"] is None
    with np.load(tmp_path / "out/swing.npz") as arrays:
        assert np.array_equal(arrays["simulated"], arrays["published"])


def test_contacts_of_the_calibration_hold_and_rows_that_it_leaves_out_do_not_count(arm, tmp_path):
    motion = motion_of(arm, "swing", 100)
    log, out = log_of(arm, motion, tmp_path / "logs"), tmp_path / "out"
    contacts = Contacts(stops_rad={"elbow_flex": (-0.1, 0.1)}, leave_out={"swing": ((0.99, 2.0),)})
    write_calibration(tmp_path / "c.yaml", calibration_of(arm, hidden(load_robot(arm)), contacts=contacts))
    words = [str(log), "--full", "--robot", str(arm), "--out", str(out), "--calibration", str(tmp_path / "c.yaml")]
    assert main(words) == 0
    with np.load(out / "swing.npz") as arrays:
        elbow = {name: np.abs(arrays[name][:, 1]).max() for name in ("measured", "simulated", "published")}
        assert elbow["simulated"] < 0.15 < 0.2 < min(elbow["measured"], elbow["published"])
        assert arrays["use"].tolist() == [True] * 50 + [False] * 50
        off = np.sqrt(np.mean((arrays["simulated"] - arrays["measured"])[:50] ** 2, axis=0))
    found = json.loads((out / "full.json").read_text())["motions"]["swing"]
    assert found["left_out"] == 0.5
    assert [j["calibrated"]["rmse_rad"] for j in found["joints"].values()] == pytest.approx(off.tolist())


def test_motions_in_several_batches_come_out_as_alone(arm, monkeypatch):
    motions = [motion_of(arm, f"m{rows}", rows) for rows in (40, 60, 50)]
    monkeypatch.setattr(full_module, "LANES", 2)
    assert [[m.name for m in b] for b in full_module._batches(motions)] == [["m60", "m50"], ["m40"]]
    some = replay_full(arm, motions)
    monkeypatch.setattr(full_module, "LANES", 1)
    assert [len(b) for b in full_module._batches(motions)] == [1, 1, 1]
    for one, alone, motion in zip(some, replay_full(arm, motions), motions, strict=True):
        assert one.motion is motion and np.array_equal(one.simulated, alone.simulated)


def test_a_long_motion_is_replayed_by_chunks_of_steps_and_comes_out_the_same(arm, monkeypatch):
    published = Parameters.of(load_robot(arm))
    both = [published.replace(delay_s=0.003), published.replace(delay_s=0.021)]
    simulator = Simulator(arm, [motion_of(arm, "long", 90), motion_of(arm, "short", 40)], timestep_s=0.005)
    whole = simulator.watch(both)
    monkeypatch.setattr(simulate, "CHUNK", 7)
    for name, values in simulator.watch(both).items():
        assert np.array_equal(values, whole[name])
    monkeypatch.undo()
    # twenty rows in 190 s
    sparse = motion_of(arm, "sparse", 20)
    sparse = dataclasses.replace(sparse, time_s=500.0 * sparse.time_s)
    simulator = Simulator(arm, [sparse], timestep_s=0.01)
    tracemalloc.start()
    simulator.watch([published] * 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 8 * (190.0 / 0.01) * 8 * 2 * len(sparse.names)


def test_what_diverges_or_stands_still_has_no_figures():
    measured = np.sin(np.arange(50.0))
    assert JointFigures.of(np.full(50, math.nan), measured) == JointFigures(
        rmse_rad=None, mae_rad=None, correlation=None
    )
    still = JointFigures.of(np.zeros(50), measured)
    assert still.correlation is None and still.rmse_rad == pytest.approx(np.sqrt(np.mean(measured**2)))


def test_a_calibration_that_is_no_better_than_the_published_figures_ends_with_another_status(arm, tmp_path):
    log = log_of(arm, motion_of(arm, "swing", 50), tmp_path / "logs")
    robot = load_robot(arm)
    write_calibration(tmp_path / "c.yaml", calibration_of(arm, Parameters.of(robot).replace(kp=0.1 * hidden(robot).kp)))
    words = [str(log), "--full", "--calibration", str(tmp_path / "c.yaml"), "--robot", str(arm)]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 3 and main([*words, "--exit-zero"]) == 0
    assert json.loads((tmp_path / "out/full.json").read_text())["ratio"] > 1.0


@pytest.fixture
def short(arm, tmp_path):
    return log_of(arm, motion_of(arm, "swing", 10), tmp_path / "logs")


def said(*words) -> str:
    """The one line that the command ends with."""
    with pytest.raises(Exception) as found:
        main([*map(str, words)])
    line = one_line("parity", found.value)
    assert line and "\n" not in line
    return line


def test_what_cannot_be_replayed_is_one_line(arm, short, tmp_path):
    out, robot = ["--out", tmp_path / "out"], ["--robot", arm]
    assert "motion swing: no joint " in said(short, "--full", "--robot", "kbot", *out)
    write_calibration(tmp_path / "c.yaml", calibration_of(arm, hidden(load_robot(arm))))
    other = ["--calibration", tmp_path / "c.yaml"]
    assert "no joint 'shoulder_lift' of robot so101; expected a calibration of it (it is arm's)" in said(
        short, "--full", "--robot", "so101", *other, *out
    )
    assert "none.yaml" in said(short, "--full", *robot, "--calibration", tmp_path / "none.yaml", *out)
    assert "no such file" in said(tmp_path / "none", "--full", *robot, *out)
    assert "a folder does not say its robot; expected it with --robot" in said(tmp_path, "--full", *out)
    assert "name its folder with --robot" in said(short, "--full", *out)
    assert "both are named swing; expected another name for each" in said(short, short, "--full", *robot, *out)
    assert "--out: got nothing, expected the folder" in said(short, "--full", *robot)
    assert "--out: got a.html, expected the folder" in said(short, "--full", *robot, "--out", "a.html")
    assert "is for --full" in said(short, *other, *robot, *out)
    assert not (tmp_path / "out").exists()


def test_a_calibration_of_an_older_model_is_told(arm, short, tmp_path, capsys):
    write_calibration(tmp_path / "c.yaml", calibration_of(arm, hidden(load_robot(arm)), model="0" * 64))
    words = [str(short), "--full", "--robot", str(arm), "--out", str(tmp_path), "--calibration"]
    assert main([*words, str(tmp_path / "c.yaml")]) == 0
    assert "c.yaml was made with another arm model" in capsys.readouterr().err
    assert load_calibration(tmp_path / "c.yaml").model == "0" * 64


@pytest.mark.skipif(not MOTIONS.is_dir(), reason="the recorded motions are not here")
def test_a_recorded_motion_is_replayed_from_its_folder(tmp_path):
    folder = tmp_path / "random_waypoints"
    folder.mkdir()
    for name in ("control.csv", "state_motor.csv", "joint_list.txt"):
        text = (MOTIONS / "random_waypoints" / name).read_text().splitlines()[:301]
        (folder / name).write_text("\n".join(text) + "\n")
    assert main([str(folder), "--full", "--robot", "so101", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/full.json").read_text())
    (found,) = report["motions"].values()
    assert found["rows"] == 300 and 5.9 < found["span_s"] < 6.1 and found["one_clock"]
    # the published servo follows its command; the real one lags and sags
    lift = found["joints"]["shoulder_lift"]["published"]
    assert 0.02 < lift["rmse_rad"] < 0.1 and lift["correlation"] > 0.9
    with np.load(tmp_path / "out/random_waypoints.npz") as arrays:
        assert np.array_equal(arrays["simulated"][0], arrays["measured"][0])
        assert np.sqrt(np.mean((arrays["simulated"] - arrays["target"])[:, 1] ** 2)) < lift["rmse_rad"]


def test_a_robot_without_rotor_figures_is_replayed_too(arm):
    motion = motion_of(arm, "swing", 60)
    about = json.loads((arm / "metadata.json").read_text())
    for name in ("armature", "frictionloss"):
        del about["actuator_type_to_metadata"]["servo"][name]
    for joint in about["joint_name_to_metadata"].values():
        joint |= {"kp": 5, "kd": 0.1}  # light links want less damping
    (arm / "metadata.json").write_text(json.dumps(about))
    (found,) = replay_full(arm, [motion])
    assert np.corrcoef(found.simulated[:, 0], motion.target[:, 0])[0, 1] > 0.9


def test_rows_a_microsecond_apart_change_nothing_and_take_no_memory(arm):
    motion = motion_of(arm, "swing", 60)
    twice = np.sort(np.concatenate([motion.time_s, motion.time_s + 1e-6]))
    doubled = {what: np.repeat(getattr(motion, what), 2, axis=0) for what in ("target", "position", "use")}
    tracemalloc.start()
    (found,) = replay_full(arm, [dataclasses.replace(motion, time_s=twice, **doubled)])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (once,) = replay_full(arm, [motion])
    assert np.abs(found.simulated[::2] - once.simulated).max() < 1e-5 and most < 50e6
