"""`ksim log import` of pyfirmware's kinfer_log.ndjson: number by number, and what is wrong with one is one line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from deploy.errors import LogError
from deploy.log.imports.pyfirmware import GAINS
from deploy.log.tools import main
from robots.bundle import read_bundle, write_bundle
from robots.load import load_robot
from robots.rotation import up_in_frame
from tests.deploy.foreign_logs import column, taken, write_rows
from toolkit.files import shipped_policy


def test_a_field_log_becomes_one_of_ours_number_by_number(field, tmp_path, capsys):
    log = taken(field.path.parent, tmp_path / "a.mcap", "--policy", shipped_policy("stand", ".kinfer"))
    assert log.complete and log.bundle == read_bundle(shipped_policy("stand", ".kinfer"))
    told, trained = log.spec.robot.joint("dof_left_elbow_02"), log.bundle.spec.robot.joint("dof_left_elbow_02")
    assert (told.kp, told.kd, trained.kp) == (80.0, 2.266, 40.0) and told.home_rad == trained.home_rad
    assert log.phase == ["run"] * len(field.rows) and np.array_equal(log.tick, np.arange(len(field.rows)))
    for name, key in (("start_s", "timestamp"), ("joint_position", "joint_angles"), ("joint_torque", "joint_torques"),
                      ("joint_velocity", "joint_velocities"), ("action", "action"), ("sent", "action"),
                      ("gyro_b", "gyroscope")):  # fmt: skip
        assert np.array_equal(getattr(log, name), column(field.rows, key)), name
    assert np.array_equal(log.inputs["joint_angles"], column(field.rows, "joint_angles").astype(np.float32))
    assert np.array_equal(log.stages_ms["flush_can_busses"], column(field.rows, "dt_flush_can_busses_ms"))
    assert set(log.stages_ms) == {"tick", "joints", "imu", "step", "action", "flush_can_busses", "roundtrip"}
    # gravity says how the robot leans, and not which way it faces
    up = -column(field.rows, "projected_gravity") / 9.81
    assert np.allclose(up_in_frame(log.quat_wxyz), up, atol=1e-9) and np.all(log.quat_wxyz[:, 3] == 0)
    about = log.metadata["import"]
    assert about["heading"] == "unknown" and "heading (the orientation is the tilt alone)" in about["missing"]
    assert about["sources"][0]["bytes"] == field.path.stat().st_size and len(about["sources"][0]["sha256"]) == 64
    assert np.isnan(log.accel_b).all() and np.isnan(log.scheduled_s).all()
    joints_s = 1e-3 * (column(field.rows, "dt_joints_ms") + column(field.rows, "dt_imu_ms"))
    assert np.allclose(log.state_s - log.start_s, joints_s, atol=1e-12)
    assert np.allclose(log.command_s - log.start_s, 1e-3 * column(field.rows, "dt_ms"), atol=1e-9)
    assert np.array_equal(log.joint_temperature, column(field.rows, "joint_temps"))
    said = capsys.readouterr().err
    assert "20 joints" in said and "not in it: heading" in said
    assert "warning: gains in force are not those of the policy's training: dof_" in said


def test_readings_that_are_used_again_are_counted_by_joint(field, tmp_path, capsys):
    log = taken(field.path, tmp_path / "a.mcap")
    repeated = log.result["repeated"]
    assert {name: repeated.get(name, 0) for name in field.reused} == field.reused
    assert abs(repeated["imu"] - len(field.rows) / 2) <= 1
    assert "readings that repeat the row before: imu 50%" in capsys.readouterr().err
    assert not log.stale.any()  # no row was old as a whole


def test_the_policy_replays_on_a_field_log_to_the_same_actions(field, tmp_path):
    from deploy.parity.layers import replay_policy

    # the file in another order than the policy's
    keys = ("joint_angles", "joint_velocities", "joint_torques", "action", "joint_order")
    rows = [r | {key: r[key][::-1] for key in keys} for r in field.rows]
    rows = [r | {"command": dict(reversed(r["command"].items()))} for r in rows]
    path = write_rows(tmp_path / "a.ndjson", rows)
    log = taken(path, tmp_path / "a.mcap", "--policy", shipped_policy("stand", ".kinfer"))
    replayed = replay_policy(log)
    assert replayed["steps"] == len(field.rows) and replayed["error_max"] < 1e-6
    assert np.array_equal(log.joint_torque, column(field.rows, "joint_torques"))


def test_without_the_policy_the_log_says_so_and_has_the_gains_of_pyfirmware(field, tmp_path):
    log = taken(field.path, tmp_path / "a.mcap")
    kbot, about = load_robot("kbot"), log.metadata["import"]
    assert log.bundle is None and "the policy" in about["missing"]
    assert log.spec.robot.joint_names == tuple(field.rows[0]["joint_order"])
    assert log.spec.command_names == tuple(field.rows[0]["command"]) and log.spec.control_period_s == 0.02
    for joint in log.spec.robot.joints:
        own = kbot.joint(joint.name)
        assert (joint.kp, joint.kd) == GAINS.get(joint.name, (own.kp, own.kd))


def test_every_tool_reads_an_imported_log(field, tmp_path, capsys):
    log = str(tmp_path / "a.mcap")
    taken(field.path, log)
    capsys.readouterr()
    assert main(["info", log, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ended"] == "imported" and told["imported"]["format"] == "pyfirmware" and told["lost_states"] is None
    assert told["timing"]["skipped"] == 0 and told["timing"]["lateness_p99_ms"] is None
    assert told["timing"]["stages"]["step"]["p50_ms"] == pytest.approx(1.0, abs=0.3)
    assert main(["info", log]) == 0
    assert "lost            not told" in capsys.readouterr().out
    assert main(["csv", log, "-o", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[7]
    assert float(row["start [s]"]) == field.rows[7]["timestamp"] and row["scheduled [s]"] == ""
    assert float(row["stage joints [ms]"]) == field.rows[7]["dt_joints_ms"]
    assert main(["npz", log, "-o", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["sent"], column(field.rows, "action"))
    assert main(["view", log]) == 0
    assert "<h2>Balance" in (tmp_path / "a.html").read_text()


def test_a_field_log_that_was_cut_keeps_its_whole_lines(field, tmp_path, capsys):
    text = field.path.read_text()
    kept = len(field.rows) - 50  # the last second
    whole = "".join(line + "\n" for line in text.splitlines()[:kept])
    (tmp_path / "kinfer_log.ndjson").write_text(whole + text.splitlines()[kept][:400])
    log = taken(tmp_path / "kinfer_log.ndjson", tmp_path / "a.mcap")
    assert len(log.tick) == kept and log.result["cut"] and log.result["left_out"] == {}
    assert "the last line breaks off; it was left out" in capsys.readouterr().err


def test_joints_are_taken_by_name_where_a_line_has_them_in_another_order(field, tmp_path):
    turned = dict(field.rows[5])
    for key in ("joint_angles", "joint_velocities", "joint_torques", "joint_temps", "action", "joint_order"):
        turned[key] = turned[key][::-1]
    path = write_rows(tmp_path / "a.ndjson", [*field.rows[:5], turned, *field.rows[6:20]])
    log = taken(path, tmp_path / "a.mcap")
    assert np.array_equal(log.joint_position, column(field.rows[:20], "joint_angles"))
    gone = dict(field.rows[6]) | {"joint_order": [*field.rows[6]["joint_order"][:-1], "dof_left_toe"]}
    with pytest.raises(LogError, match=r"line 7: joint_order changes: got 20 joints.*dof_left_toe.*; cut the file"):
        taken(write_rows(tmp_path / "b.ndjson", [*field.rows[:6], gone]), tmp_path / "b.mcap")
    assert not (tmp_path / "b.mcap").exists()


def test_a_log_of_the_legs_alone_has_the_legs_alone(field, tmp_path):
    legs = [
        k for k, name in enumerate(field.rows[0]["joint_order"]) if any(p in name for p in ("hip", "knee", "ankle"))
    ]
    keys = ("joint_angles", "joint_velocities", "joint_torques", "action", "joint_order", "joint_temps")
    rows = [r | {key: [r[key][k] for k in legs] for key in keys} for r in field.rows[:30]]
    log = taken(write_rows(tmp_path / "a.ndjson", rows), tmp_path / "a.mcap")
    assert len(log.spec.robot.joints) == 10 and np.array_equal(log.sent, column(rows, "action"))
    assert "dof_left_elbow_02" in log.metadata["import"]["missing"][0]
    from deploy.parity.layers import parity

    # the arms, which it does not have, are held at home
    found = parity(log, closed_loop_runs=0)
    names = tuple(name for name in load_robot("kbot").joint_names if name in log.spec.robot.joint_names)
    assert tuple(found.report["per_joint"]) == names and found.replay.position.shape[2] == 10


def test_times_since_1970_become_times_since_the_start(field, tmp_path):
    rows = [r | {"timestamp": 1_761_214_500.25 + r["timestamp"], "command": [0.1, 0.0]} for r in field.rows[:20]]
    log = taken(write_rows(tmp_path / "a.ndjson", rows), tmp_path / "a.mcap")
    assert log.metadata["started_utc"] == "2025-10-23T10:15:00.250+00:00"
    assert log.start_s[0] == 0 and np.allclose(log.start_s, column(field.rows[:20], "timestamp"), atol=1e-6)
    assert log.spec.command_names == ("command_0", "command_1")
    assert np.array_equal(log.inputs["command"][3], np.float32([0.1, 0.0]))


def test_a_log_that_tells_round_trips_but_not_when_commands_arrived_has_no_arrivals(field, tmp_path):
    rows = [{k: v for k, v in r.items() if k != "dt_roundtrip_ms"} for r in field.rows[:30]]
    log = taken(write_rows(tmp_path / "a.ndjson", rows), tmp_path / "a.mcap")
    assert np.isfinite(log.command_round_trip_s).any() and np.isnan(log.command_s).all()
    from deploy.parity.motion import acknowledged, arrived_at_s

    assert not acknowledged(log) and np.array_equal(arrived_at_s(log), log.start_s)


def test_a_field_log_without_its_figures_of_time_says_what_it_lacks(field, tmp_path):
    rows = [{k: v for k, v in r.items() if not k.startswith("dt_")} for r in field.rows[:30]]
    log = taken(write_rows(tmp_path / "a.ndjson", rows), tmp_path / "a.mcap")
    assert "when commands arrived" in log.metadata["import"]["missing"] and log.stages_ms == {}
    assert np.isnan(log.command_s).all() and np.isnan(log.state_round_trip_s).all()
    some = [*rows[:10], *field.rows[10:20], *rows[20:]]  # the first line decides what there is
    log = taken(write_rows(tmp_path / "b.ndjson", [field.rows[0], *some[1:]]), tmp_path / "b.mcap")
    assert np.isfinite(log.stages_ms["step"]).tolist() == [True] + [False] * 9 + [True] * 10 + [False] * 10


def test_rows_that_cannot_be_used_are_left_out_and_counted(field, tmp_path, capsys):
    rows = list(field.rows[:100])
    rows[50] = "garbage, no JSON"
    rows[60] = rows[60] | {"joint_angles": rows[60]["joint_angles"][:-1]}
    rows[70] = rows[70] | {"timestamp": rows[69]["timestamp"]}
    rows[80] = rows[80] | {"timestamp": 0.5}
    angles = [None, float("nan"), *rows[90]["joint_angles"][2:]]
    rows[90] = rows[90] | {"joint_angles": angles}
    log = taken(write_rows(tmp_path / "a.ndjson", rows), tmp_path / "a.mcap")
    assert len(log.tick) == 96 and log.tick[-1] == 99  # numbers are the file's
    left = log.result["left_out"]
    assert {kind: (one["rows"], one["line"]) for kind, one in left.items()} == {
        "garbage": (2, 51), "same_time": (1, 71), "backwards": (1, 81),
    }  # fmt: skip
    assert log.result["not_numbers"] == {"position": 2} and np.isnan(log.joint_position[86, :2]).all()
    said = capsys.readouterr().err
    assert "2 lines left out; the first is line 51: not JSON" in said
    assert "values that are not numbers, left empty: position 2" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows[:50], *["???"] * 10, *rows[60:100]],
         r"10 of 100 lines cannot be used, expected at most 5%; the first of 10 is line 51: not JSON"),
        (lambda rows: [*rows[:60], *rows[:60]],
         r"60 of 120 lines .* line 61: its time 0 s is before 1\.\d+ s; where a second run begins, cut the file"),
        (lambda rows: [r | {"timestamp": "soon"} for r in rows[:9]], r"9 of 9 lines.*timestamp: got 'soon', expected"),
        (lambda rows: rows[:1], "1 rows that can be used; expected at least 2"),
        (lambda rows: [r | {"timestamp": 20.0 * k} for k, r in enumerate(rows[:9])],
         "times begin at 0 and step by 20, expected seconds, at most 1 .* they look like milliseconds; write them in"),
        (lambda rows: [r | {"timestamp": 1.76e15 + 2e4 * k} for k, r in enumerate(rows[:9])], "look like microseconds"),
        (lambda rows: [r | {"timestamp": 1.76e12 + 0.02 * k} for k, r in enumerate(rows[:9])], "times begin at 1.76e"),
        (lambda rows: ["{}"], "joint_order: got None, expected a list of names"),
        (lambda rows: ["[]", "hello"], "line 1: got list, expected a JSON object; expected a JSON object a line"),
        (lambda rows: ["\x00\x01", "[" * 100_000], "line 1: not JSON"),
        (lambda rows: [r | {"joint_order": ["a\x1b[31m"] * 20} for r in rows[:2]], "joint_order: got the character"),
    ],
)  # fmt: skip
def test_a_field_log_that_makes_no_sense_is_refused_in_one_line(field, tmp_path, change, said):
    path = write_rows(tmp_path / "a.ndjson", change(field.rows))
    with pytest.raises(LogError, match=said) as found:
        taken(path, tmp_path / "a.mcap")
    assert "\n" not in str(found.value) and len(str(found.value)) < 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ndjson"]


def test_a_policy_that_did_not_run_is_refused(field, arm, tmp_path, bundle):
    write_bundle(tmp_path / "other.kinfer", bundle)
    with pytest.raises(LogError, match=r"--policy .*: its joints are not those of"):
        taken(field.path, tmp_path / "a.mcap", "--policy", tmp_path / "other.kinfer")
