"""`ksim log import`: logs of other programs become ours, number by number, and what is wrong with one is one line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import LogError
from deploy.log.imports.command import import_log
from deploy.log.imports.mapping import ImportMap, JointMap, Units, convert
from deploy.log.imports.plain_csv import IMU as PLAIN_IMU
from deploy.log.imports.plain_csv import PlainCsv
from deploy.log.imports.pyfirmware import GAINS, IMU, STAGES, VECTORS
from deploy.log.recorder import read_log
from deploy.log.tools import main
from robots.bundle import read_bundle, write_bundle
from robots.load import load_robot
from robots.rotation import gravity_in_frame, up_in_frame
from toolkit.cli import one_line
from toolkit.files import shipped_policy
from toolkit.settings import fields, from_dict
from toolkit.yaml_file import parse_yaml

# beside the checkout, where they are kept
MOTIONS = Path(__file__).parents[3] / "shared/real/so101/motions"
ARM = ("shoulder_pan", "elbow_flex", "gripper")
LIMITS = {"shoulder_pan": (-1.9, 1.9), "elbow_flex": (-1.7, 1.7), "gripper": (-0.2, 1.8)}
SECONDS = 4.0


def arm_folder(folder: Path) -> Path:
    """A robot folder with an arm of three joints on a fixed base."""
    folder.mkdir()
    bodies, ends = "", ""
    for name, (low, high) in LIMITS.items():
        bodies += f'<body name="{name}_link" pos="0 0 0.1"><joint name="{name}" axis="0 1 0" range="{low} {high}"/>'
        bodies += '<geom type="capsule" fromto="0 0 0 0 0 0.1" size="0.01" mass="0.1"/>'
        ends += "</body>"
    (folder / "robot.xml").write_text(
        f'<mujoco model="arm"><compiler angle="radian"/><worldbody><body name="base">'
        f'<geom size="0.02" mass="0.1"/>{bodies}{ends}</body></worldbody></mujoco>'
    )
    joints = {n: {"id": k + 1, "kp": 20, "kd": 0.5, "actuator_type": "servo"} for k, n in enumerate(LIMITS)}
    types = {"servo": {"max_torque": 3.35, "max_velocity": 4.7}}
    data = {"joint_name_to_metadata": joints, "actuator_type_to_metadata": types, "control_frequency": 50}
    (folder / "metadata.json").write_text(json.dumps(data | {"ksim2real": {"floating": False}}))
    return folder


@pytest.fixture
def arm(tmp_path):
    return arm_folder(tmp_path / "arm")


def mapped(tmp_path, text):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    return path


def taken(path, out, *words):
    """The log that the command makes."""
    assert main(["import", str(path), "-o", str(out), *map(str, words)]) == 0
    return read_log(out)


@dataclasses.dataclass
class FieldRun:
    """A log as pyfirmware writes it, and what its loop saw."""

    path: Path
    rows: list[dict]
    reused: dict[str, int]


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> FieldRun:
    """The stand policy on the twin's plant, by the arithmetic of pyfirmware's loop.

    It sleeps for what is left of 20 ms after its work was measured, so that a period is a little long; a joint whose
    motor does not answer keeps its last reading; the IMU gives a new sample every other tick.
    """
    pytest.importorskip("mujoco")
    from deploy.bundle.session import OnnxPolicy
    from deploy.twin.plant import Plant

    bundle = read_bundle(shipped_policy("stand", ".kinfer"))
    robot, plant, policy = load_robot("kbot"), Plant("kbot"), OnnxPolicy(bundle)
    for j, joint in enumerate(robot.joints):
        kp, kd = GAINS.get(joint.name, (joint.kp, joint.kd))  # whatever the policy was trained with
        plant.configure(j, kp=kp, kd=kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    order = [robot.joint_names.index(name) for name in bundle.joint_names]
    back = np.argsort(order)
    command = {name: 0.0 for name in bundle.command_names}
    rng, rows, reused = np.random.default_rng(3), [], dict.fromkeys(bundle.joint_names, 0)
    now_s, last, imu = 0.0, None, None

    def until(at_s: float) -> None:
        plant.advance(round(at_s / plant.dt) - plant.step_count)

    start = plant.step_count * plant.dt
    while now_s < SECONDS:
        dt = {"joints": rng.uniform(2, 4), "imu": rng.uniform(0.1, 0.3), "step": rng.uniform(0.5, 1.5)}
        dt |= {"action": rng.uniform(2, 3), "flush_can_busses": rng.uniform(1, 2)}
        until(start + now_s)
        read = plant.read()
        fresh = np.stack([read.position, read.velocity, read.torque])[:, order]
        silent = rng.random(len(order)) < 0.02
        if last is not None:
            fresh[:, silent] = last[:, silent]
            for j in np.flatnonzero(silent):
                reused[bundle.joint_names[j]] += 1
        last = fresh
        if imu is None or len(rows) % 2 == 0:
            imu = gravity_in_frame(read.quat_wxyz).tolist(), read.gyro_b.tolist()
        given = {"joint_angles": fresh[0], "joint_angular_velocities": fresh[1], "projected_gravity": imu[0]}
        given |= {"gyroscope": imu[1], "command": list(command.values())}
        action = policy.step({n: np.asarray(given[n], dtype=np.float32) for n in policy.inputs})
        until(start + now_s + 1e-3 * sum(dt.values()))
        plant.command(range(len(order)), action[back].astype(float), np.zeros(len(order)), np.zeros(len(order)))
        work_ms = sum(dt.values())
        rows.append(
            {
                "timestamp": now_s,
                "step_id": len(rows),
                "dt_ms": work_ms,
                **{f"dt_{name}_ms": value for name, value in dt.items()},
                "dt_roundtrip_ms": work_ms - dt["flush_can_busses"],
                "joint_angles": fresh[0].tolist(),
                "joint_velocities": fresh[1].tolist(),
                "joint_torques": fresh[2].tolist(),
                "joint_temps": [30.0 + 0.01 * len(rows)] * len(order),
                "projected_gravity": imu[0],
                "gyroscope": imu[1],
                "command": command,
                "action": action.tolist(),
                "joint_order": list(bundle.joint_names),
            }
        )
        # the print and the log come after the measurement, and a sleep ends late
        now_s += 1e-3 * (max(20.0, work_ms) + rng.uniform(0.1, 0.6))
    path = tmp_path_factory.mktemp("field") / "stand_20251023_101500" / "kinfer_log.ndjson"
    path.parent.mkdir()
    write_rows(path, rows)
    return FieldRun(path=path, rows=rows, reused=reused)


def write_rows(path, rows):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def column(rows, key):
    return np.array([r[key] for r in rows], dtype=float)


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


def test_parity_of_a_field_log_finds_the_plant_that_it_is_of(field, tmp_path):
    from deploy.parity.layers import parity

    path = write_rows(tmp_path / "a.ndjson", field.rows[:90])
    report = parity(taken(path, tmp_path / "a.mcap", "--policy", shipped_policy("stand", ".kinfer"))).report
    assert report["loop"]["ticks"] == 90 and report["loop"]["period_p50_ms"] == pytest.approx(20.35, abs=0.3)
    assert report["joint_position_rmse_rad"] < 0.02 and report["policy_replay_error_max"] < 1e-6


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


def test_a_gap_is_an_event_and_a_hole_in_the_ticks(arm, tmp_path, capsys):
    times = [0.02 * k for k in range(60) if not 20 <= k < 25]
    text = "time_s,elbow_flex.position,elbow_flex.target\n" + "".join(f"{t},0.1,0.2\n" for t in times)
    (tmp_path / "a.csv").write_text(text)
    log = taken(tmp_path / "a.csv", tmp_path / "a.mcap", "--robot", arm)
    assert log.tick.tolist() == [k for k in range(60) if not 20 <= k < 25]
    assert log.result["gaps"] == 1 and log.result["longest_gap_s"] == pytest.approx(0.12)
    assert [(e["kind"], e["message"]) for e in log.events] == [("gap", "no row for 0.12 s")]
    assert log.events[0]["t_s"] == pytest.approx(0.38)
    assert "1 gaps, the longest 0.12 s" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "a.mcap")]) == 0
    assert "5 skipped" in capsys.readouterr().out


# the plain table


def plain(path, columns, rows=40):
    """A table of `rows` rows of 20 ms; columns are functions of the time."""
    lines = [",".join(["time_s", *columns])]
    for k in range(rows):
        lines.append(",".join([repr(0.02 * k), *(repr(float(f(0.02 * k))) for f in columns.values())]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_plain_table_comes_out_as_it_went_in(arm, tmp_path):
    quat = (0.5, 0.5, -0.5, 0.5)
    kinds = ("position", "target", "velocity", "torque")
    columns = {
        f"{j}.{kind}": (lambda t, a=a, b=b: 0.1 * (a + 1) * math.sin(t + b))
        for a, j in enumerate(ARM)
        for b, kind in enumerate(kinds)
    }
    columns |= {f"imu.quat_{axis}": (lambda t, q=q: q) for axis, q in zip("wxyz", quat, strict=True)}
    columns |= {
        f"imu.{what}_{axis}": (lambda t, k=k: k + t) for what in ("gyro", "accel") for k, axis in enumerate("xyz")
    }
    columns |= {"command.xvel": lambda t: 0.3}
    log = taken(plain(tmp_path / "a.csv", columns), tmp_path / "a.mcap", "--robot", arm)
    at = 0.02 * np.arange(40)
    for a, _ in enumerate(ARM):
        for b, name in enumerate(("joint_position", "sent", "joint_velocity", "joint_torque")):
            assert np.array_equal(getattr(log, name)[:, a], [0.1 * (a + 1) * math.sin(t + b) for t in at])
    assert np.array_equal(log.target, log.sent) and np.isnan(log.action).all()
    assert np.allclose(log.quat_wxyz, quat) and np.array_equal(log.gyro_b[:, 2], 2 + at)
    assert np.array_equal(log.accel_b[:, 1], 1 + at) and np.all(log.inputs["command"] == np.float32(0.3))
    assert log.spec.command_names == ("xvel",) and log.spec.robot.joint_names == ARM
    about = log.metadata["import"]
    assert about["heading"] == "told" and about["missing"] == [
        "the policy", "gains (the robot's own are assumed)", "when commands arrived",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("joint", "values", "angles"),
    [
        ("{unit: deg}", (90, -45), (math.pi / 2, -math.pi / 4)),
        ("{unit: deg, sign: -1, zero_rad: 0.5}", (90, 0), (0.5 - math.pi / 2, 0.5)),
        ("{unit: rad, scale: 0.5, zero_rad: -0.1}", (1.0, -1.0), (0.4, -0.6)),
        ("{unit: fraction}", (0, 0.5), (-1.7, 0.0)),
        ("{unit: percent}", (100, 25), (1.7, -0.85)),
        ("{unit: percent, sign: -1}", (100, 25), (-1.7, 0.85)),
        ("{unit: plus_minus_100}", (-100, 50), (-1.7, 0.85)),
        ("{unit: plus_minus_100, sign: -1, zero_rad: 0.1}", (-100, 50), (1.8, -0.75)),
        ("{unit: fraction, range_rad: [-0.2, 2.2]}", (0, 1), (-0.2, 2.2)),
    ],
)
def test_each_unit_becomes_radians(arm, tmp_path, joint, values, angles):
    columns = {"e.position": lambda t: values[round(t / 0.02) % 2], "e.target": lambda t: values[0]}
    columns |= {"e.velocity": lambda t: 10.0, "e.torque": lambda t: 2.0}
    given = joint.replace("{", "{source: e, torque_scale: 0.5, ")
    text = f"check_limits: false\nunits: {{velocity: position}}\njoints: {{elbow_flex: {given}}}\n"
    path = plain(tmp_path / "a.csv", columns)
    log = taken(path, tmp_path / "a.mcap", "--robot", arm, "--map", mapped(tmp_path, text))
    assert log.spec.robot.joint_names == ("elbow_flex",)
    assert np.allclose(log.joint_position[:4, 0], (*angles, *angles), atol=1e-12)
    assert np.allclose(log.sent[:, 0], angles[0])
    slope = (angles[1] - angles[0]) / (values[1] - values[0])
    assert np.allclose(log.joint_velocity, 10 * slope)  # the position's unit a second
    assert np.all(log.joint_torque == (-1.0 if "sign: -1" in joint else 1.0))


@pytest.mark.parametrize(
    ("units", "values", "said"),
    [
        ("{}", lambda t: 40 * math.sin(9 * t), "read as rad.*zero looks wrong; unit deg or plus_minus_100 fits"),
        ("{}", lambda t: 45 + 50 * math.sin(9 * t),
         "unit deg or percent or plus_minus_100 fits; set units.position, or joints.elbow_flex.unit"),
        ("{position: plus_minus_100}", lambda t: 1500 * math.sin(9 * t), "no unit and no zero fits"),
        ("{position: percent}", lambda t: 90 * math.sin(9 * t), "unit deg or plus_minus_100 fits"),
        ("{position: deg}", lambda t: 180 + 40 * math.sin(9 * t), r"no unit fits, a zero near -3\.1\d* rad would"),
    ],
)  # fmt: skip
def test_a_wrong_unit_or_zero_is_refused_with_what_would_fit(arm, tmp_path, units, values, said):
    path = plain(tmp_path / "a.csv", {"elbow_flex.position": values, "shoulder_pan.position": lambda t: 0.1})
    words = [path, tmp_path / "a.mcap", "--robot", arm, "--map", mapped(tmp_path, f"units: {units}\n")]
    with pytest.raises(LogError, match=said) as found:
        taken(*words)
    assert "\n" not in str(found.value) and not (tmp_path / "a.mcap").exists()
    mapped(tmp_path, f"units: {units}\ncheck_limits: false\n")
    assert len(taken(*words).tick) == 40


def test_targets_of_another_unit_than_the_positions_are_told(arm, tmp_path, capsys):
    columns = {"elbow_flex.position": lambda t: 0.5, "elbow_flex.target": lambda t: 2.5}
    taken(plain(tmp_path / "a.csv", columns), tmp_path / "a.mcap", "--robot", arm)
    assert "targets far outside" not in capsys.readouterr().err  # a position loop may be driven so
    columns["elbow_flex.target"] = lambda t: 30.0
    taken(plain(tmp_path / "b.csv", columns), tmp_path / "b.mcap", "--robot", arm)
    assert "targets far outside the limits, perhaps of another unit than the positions: elbow_flex" in (
        capsys.readouterr().err
    )


def test_a_few_readings_beyond_a_limit_are_no_wrong_unit(arm, tmp_path):
    path = plain(tmp_path / "a.csv", {"elbow_flex.position": lambda t: 9.0 if t == 0.4 else 1.8})
    assert len(taken(path, tmp_path / "a.mcap", "--robot", arm).tick) == 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jonts: {}\n", "'jonts' is unknown; did you mean joints?"),
        (
            "units: {position: degrees}\n",
            "units.position: got 'degrees', expected rad, deg, fraction, percent or plus_",
        ),
        ("joints: {elbow: e}\n", "joints.elbow: robot arm has no such joint; did you mean elbow_flex?"),
        ("joints: {elbow_flex: x}\n", "joints.elbow_flex.source: .*a.csv has no joint 'x'; there is e"),
        ("joints: {elbow_flex: e, gripper: e}\n", "joints.gripper.source: 'e' is elbow_flex already"),
        ("joints: {elbow_flex: {source: e, sign: 2}}\n", "joints.elbow_flex.sign: got 2, expected 1 or -1"),
        ("joints: {elbow_flex: {source: e, scale: 0}}\n", "joints.elbow_flex.scale: got 0, expected 1e-09 to 1e"),
        ("joints: {elbow_flex: {source: e, range_rad: [0, 1]}}\n", "range_rad: its unit is rad; expected a share"),
        (
            "joints: {elbow_flex: {source: e, unit: percent, scale: 2}}\n",
            "scale: its unit is percent; expected an angle",
        ),
        ("joints: {elbow_flex: {source: e, sing: -1}}\n", "joints.elbow_flex.sing' is unknown; did you mean .*sign"),
        ("ignore: [e]\n", "none of its joints is used|no column NAME.position"),
        ("{}\n", "robot arm has no joint 'e'; there is shoulder_pan, elbow_flex, gripper; name it under joints"),
        ("format: sage\n", "is no folder; expected a folder of SAGE"),
        ("[1, 2]\n", "expected a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_slip_in_the_map_is_one_line_with_the_nearest_name(arm, tmp_path, text, said):
    path = plain(tmp_path / "a.csv", {"e.position": lambda t: 0.1})
    with pytest.raises(LogError, match=said) as found:
        taken(path, tmp_path / "a.mcap", "--robot", arm, "--map", mapped(tmp_path, text))
    assert "\n" not in str(found.value) and not (tmp_path / "a.mcap").exists()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("t,elbow_flex.position", "no column time_s in 't, elbow_flex.position'"),
        ("time_s;elbow_flex.position", "no column time_s in .*; it has ';' between columns: write it with commas"),
        ("time_s,elbow_flex.pos", "column 'elbow_flex.pos' is unknown; did you mean elbow_flex.position"),
        ("time_s,imu.gyro_q", "column 'imu.gyro_q' is unknown; did you mean imu.gyro_"),
        ("time_s,elbow_flex.target", "no column NAME.position"),
        ("time_s,gripper.position,elbow_flex.target", "no column elbow_flex.position; expected one for each joint"),
        ("time_s,elbow_flex.position,imu.gyro_x,imu.gyro_z", "no column imu.gyro_y; expected all of gyro_x, gyro_y"),
        ("time_s,elbow_flex.position,elbow_flex.position", "got elbow_flex.position twice, expected each once"),
    ],
)
def test_a_slip_in_a_header_is_one_line_with_the_nearest_name(arm, tmp_path, head, said):
    (tmp_path / "a.csv").write_text(head + "\n" + "".join(f"{k},{','.join('0' * head.count(','))}\n" for k in range(9)))
    with pytest.raises(LogError, match=said):
        taken(tmp_path / "a.csv", tmp_path / "a.mcap", "--robot", arm)


def test_cells_may_be_empty_and_lines_may_be_garbage(arm, tmp_path):
    path = plain(tmp_path / "a.csv", {"elbow_flex.position": lambda t: 0.1, "elbow_flex.torque": lambda t: 1.0}, 60)
    lines = path.read_text().splitlines()
    lines[5], lines[9], lines[20] = lines[5].rsplit(",", 1)[0] + ",", "a,b,c", lines[20].replace("0.1", "inf")
    path.write_text("\r\n".join(lines) + "\r\n0.9")
    log = taken(path, tmp_path / "a.mcap", "--robot", arm)
    assert len(log.tick) == 59 and log.result["cut"] and log.result["left_out"]["garbage"]["line"] == 10
    assert np.isnan(log.joint_torque[4, 0]) and log.result["not_numbers"] == {"position": 1, "torque": 1}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: (p / "x.ndjson").touch() or p / "x.ndjson", "is empty; expected a kinfer_log.ndjson"),
        (lambda p: (p / "x.csv").touch() or p / "x.csv", "is empty; expected a CSV table"),
        (lambda p: p / "none.csv", "no such file; expected kinfer_log.ndjson of pyfirmware"),
        (lambda p: (p / "d").mkdir() or p / "d", "a folder with none of the logs that are known"),
        (lambda p: (p / "d.csv").mkdir() or p / "d.csv", "a folder with none of the logs that are known"),
        (lambda p: (p / "d" / "kinfer_log.ndjson").mkdir(parents=True) or p / "d", "is a folder; expected a file"),
        (lambda p: (p / "x.bag").write_text("x") and p / "x.bag", "of a kind that is not known; expected"),
        (lambda p: (p / "x.parquet").write_text("x") and p / "x.parquet", "a file of a LeRobot data set; expected its"),
        (lambda p: (p / "d" / "meta").mkdir(parents=True) or ((p / "d/meta/info.json").write_text("{") and p / "d"),
         "not that of a LeRobot data set"),
    ],
)  # fmt: skip
def test_what_is_no_log_is_one_line_and_status_1(tmp_path, make, said):
    path = make(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-m", "deploy.log.tools", "import", str(path), "-o", str(tmp_path / "a.mcap")]
    done = subprocess.run([*command, "--robot", "kbot"], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == there


def test_a_file_that_is_there_is_kept_unless_force_is_given(arm, tmp_path):
    path = plain(tmp_path / "a.csv", {"elbow_flex.position": lambda t: 0.1})
    (tmp_path / "a.mcap").write_text("mine")
    with pytest.raises(LogError, match="it exists; expected a new file; name another or add --force"):
        taken(path, tmp_path / "a.mcap", "--robot", arm)
    assert (tmp_path / "a.mcap").read_text() == "mine"
    assert len(taken(path, tmp_path / "a.mcap", "--robot", arm, "--force").tick) == 40
    with pytest.raises(LogError, match="it is the log to read"):
        main(["import", str(path), "-o", str(path), "--robot", str(arm), "--force"])
    with pytest.raises(LogError, match="no robot; expected one with --robot, or robot in the map"):
        main(["import", str(path), "-o", str(tmp_path / "b.mcap")])


def test_a_policy_that_did_not_run_is_refused(field, arm, tmp_path, bundle):
    write_bundle(tmp_path / "other.kinfer", bundle)
    with pytest.raises(LogError, match=r"--policy .*: its joints are not those of"):
        taken(field.path, tmp_path / "a.mcap", "--policy", tmp_path / "other.kinfer")


def test_memory_does_not_grow_with_the_log(arm, tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr("deploy.log.imports.check.KEPT", 64)
    most = []
    for rows in (100, 1000, 4000):  # the first one imports modules
        path = plain(tmp_path / f"{rows}.csv", {f"{j}.position": lambda t: 0.1 * math.sin(t) for j in ARM}, rows)
        tracemalloc.start()
        import_log(path, tmp_path / f"{rows}.mcap", ImportMap(robot=str(arm)))
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[2] < most[1] + 200_000, most


# SAGE


def sage(folder, rows=60, **files):
    """A folder of SAGE with two joints; commands come 5 ms after states."""
    folder.mkdir(parents=True)
    states, commands = io.StringIO(), io.StringIO()
    state, command = csv.writer(states), csv.writer(commands)
    state.writerow(["type", "timestamp", "positions", "velocities", "torques"])
    command.writerow(["type", "timestamp", "positions"])
    for k in range(rows):
        state.writerow(["STATE_MOTOR", 20_000.0 * k, [0.01 * k, 0.5], [0.5, 0.0], [0.1, 0.2]])
        command.writerow(["CONTROL", 20_000.0 * k + 5000, [0.02 * k, 0.5]])
    (folder / "state_motor.csv").write_text(states.getvalue())
    (folder / "control.csv").write_text(commands.getvalue())
    (folder / "joint_list.txt").write_text("Elbow\nJaw\n")
    (folder / "event.csv").write_text("type,timestamp,event\nEVENT,0,MOTION_START\n")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


SAGE_MAP = "joints: {elbow_flex: Elbow, gripper: {source: Jaw, unit: fraction}}\nunits: {torque: unsigned}\n"


def test_a_folder_of_sage_has_the_last_command_before_each_state(arm, tmp_path):
    given = mapped(tmp_path, SAGE_MAP + f"robot: {arm}\n")
    log = taken(sage(tmp_path / "move"), tmp_path / "a.mcap", "--map", given)
    assert log.spec.robot.joint_names == ("elbow_flex", "gripper") and len(log.tick) == 60
    assert np.isnan(log.sent[0]).all() and np.allclose(log.sent[1:, 0], 0.02 * np.arange(59))
    assert np.allclose(log.joint_position[:, 0], 0.01 * np.arange(60)) and np.allclose(log.joint_position[:, 1], 0.8)
    assert np.allclose(log.start_s, 0.02 * np.arange(60)) and np.all(log.joint_velocity[:, 0] == 0.5)
    # the size of a current is no torque
    assert np.isnan(log.joint_torque).all() and any("torques" in m for m in log.metadata["import"]["missing"])
    assert log.events == [{"t_s": 0.0, "kind": "source", "message": "MOTION_START"}]
    assert [s["name"] for s in log.metadata["import"]["sources"]] == [
        "control.csv", "state_motor.csv", "joint_list.txt", "event.csv",
    ]  # fmt: skip


def test_parity_of_positions_and_targets_alone_tells_of_the_joints_and_says_what_it_lacks(arm, tmp_path):
    from deploy.parity.layers import parity

    log = taken(plain(tmp_path / "a.csv", {f"{j}.{k}": math.sin for j in ARM for k in ("position", "target")}),
                tmp_path / "a.mcap", "--robot", arm)  # fmt: skip
    found = parity(log, arm)
    layers = {layer.name.value: layer for layer in found.judgement.layers}
    assert "does not hold the policy" in layers["policy"].untold and "cannot move" in layers["body"].untold
    assert layers["actuators"].figures and found.report["one_clock"] and found.report["windows"] > 0
    told = {figure.key for figure in layers["sensing"].figures}
    assert "joints_new_hz" in told and not any(key.startswith(("gyro", "orientation")) for key in told)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"joint_list__txt": "Elbow\n"}, r"60 of 60 lines.*positions: got 2 numbers, expected 1"),
        ({"joint_list__txt": "Elbow\nElbow\n"}, "joints: got Elbow twice"),
        ({"joint_list__txt": ""}, "joint_list.txt: is empty"),
        ({"state_motor__csv": "a,b\n1,2\n"}, "state_motor.csv: no column timestamp, positions; expected timestamp"),
        (
            {"state_motor__csv": "type,timestamp,positions\n" + "S,x,hello\n" * 9},
            r"9 of 9 lines.*positions: got 'hello'",
        ),
        ({"control__csv": "type,timestamp,positions\n" + "C,0,[1]\n" * 9}, "control.csv: positions: got 1 numbers"),
    ],
)
def test_a_folder_of_sage_that_makes_no_sense_is_refused_in_one_line(arm, tmp_path, files, said):
    given = SAGE_MAP if "joint_list__txt" not in files else "joints: {elbow_flex: Elbow}\n"
    with pytest.raises(LogError, match=said):
        taken(sage(tmp_path / "move", **files), tmp_path / "a.mcap", "--map", mapped(tmp_path, given), "--robot", arm)


def test_a_file_of_a_sage_folder_says_to_name_the_folder(arm, tmp_path):
    folder = sage(tmp_path / "move")
    with pytest.raises(LogError, match=r"a file of a SAGE folder; expected the folder; name .*move"):
        taken(folder / "state_motor.csv", tmp_path / "a.mcap", "--robot", arm)
    (folder / "control.csv").unlink()
    (folder / "control.csv").mkdir()
    with pytest.raises(LogError, match=r"control.csv: is a folder; expected a file"):
        taken(folder, tmp_path / "a.mcap", "--robot", arm)


REAL_MAP = """
units: {torque: unsigned}
joints:
  shoulder_pan: Rotation
  shoulder_lift: Pitch
  elbow_flex: Elbow
  wrist_flex: Wrist_Pitch
  wrist_roll: Wrist_Roll
  gripper: {source: Jaw, unit: fraction, range_rad: [-0.17, 2.17]}
"""


@pytest.fixture(scope="module")
def so101(tmp_path_factory):
    """The SO-101 as a robot folder."""
    folder = tmp_path_factory.mktemp("so101") / "so101"
    folder.mkdir()
    shutil.copy(MOTIONS.parent / "so101.xml", folder / "robot.xml")
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    joints = {n: {"id": k + 1, "kp": 998.22, "kd": 2.731, "actuator_type": "sts3215"} for k, n in enumerate(names)}
    types = {"sts3215": {"max_torque": 3.35, "max_velocity": 4.7, "armature": 0.028, "frictionloss": 0.052}}
    data = {"joint_name_to_metadata": joints, "actuator_type_to_metadata": types, "control_frequency": 50}
    (folder / "metadata.json").write_text(json.dumps(data | {"ksim2real": {"floating": False}}))
    return folder


@pytest.mark.skipif(not MOTIONS.is_dir(), reason="the recorded motions are not here")
@pytest.mark.parametrize(
    "motion",
    [
        "chirp_sweep", "hold_under_gravity", "multisine", "random_waypoints", "single_joint_elbow",
        "single_joint_rotation", "step_response",
    ],
)  # fmt: skip
def test_a_recorded_motion_comes_out_as_it_is(so101, tmp_path, motion):
    log = taken(MOTIONS / motion, tmp_path / "a.mcap", "--robot", so101, "--map", mapped(tmp_path, REAL_MAP))
    with (MOTIONS / motion / "state_motor.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (MOTIONS / motion / "control.csv").open(newline="") as file:
        wanted = np.array([json.loads(r["positions"]) for r in csv.DictReader(file)])
    position, velocity = (np.array([json.loads(r[k]) for r in rows]) for k in ("positions", "velocities"))
    assert len(log.tick) == len(rows) and log.result["left_out"] == {} and log.result["gaps"] == 0
    assert np.array_equal(log.joint_position[:, :5], position[:, :5]) and np.array_equal(log.sent[:, :5], wanted[:, :5])
    assert np.allclose(log.joint_position[:, 5], -0.17 + 2.34 * position[:, 5], atol=1e-12)
    assert np.array_equal(log.joint_velocity, velocity)
    assert np.allclose(log.start_s, [1e-6 * float(r["timestamp"]) for r in rows], atol=1e-12)
    assert log.spec.control_period_s == pytest.approx(0.02006, abs=1e-5) and np.all(np.diff(log.tick) == 1)


# LeRobot


def lerobot(folder, version, episodes=3, frames=25, names=None, tamper=None):
    """A data set with an episode a file (2.1), or all in one file of two row groups (3.0)."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = names or [f"{joint}.pos" for joint in ARM]
    feature = {"dtype": "float32", "shape": [3], "names": names}
    info = {"codebase_version": version, "robot_type": "so101_follower", "fps": 30, "total_episodes": episodes}
    info["features"] = {"observation.state": feature, "action": feature}
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info if tamper is None else tamper(info)))
    tables = []
    for episode in range(episodes):
        state = [[10.0 * episode + k, -50.0, 25.0] for k in range(frames)]
        tables.append(
            pa.table(
                {
                    "observation.state": pa.array(state, pa.list_(pa.float32(), 3)),
                    "action": pa.array([[s + 1 for s in row] for row in state], pa.list_(pa.float32())),
                    "timestamp": pa.array([k / 30 for k in range(frames)], pa.float32()),
                    "frame_index": pa.array(range(frames), pa.int64()),
                    "episode_index": pa.array([episode] * frames, pa.int64()),
                }
            )
        )
        if version == "v2.1":
            pq.write_table(tables[-1], folder / f"data/chunk-000/episode_{episode:06d}.parquet")
    if version != "v2.1":
        whole = pa.concat_tables([t.cast(tables[0].schema) for t in tables])
        pq.write_table(whole, folder / "data/chunk-000/file-000.parquet", row_group_size=40)
    return folder


LEROBOT_MAP = "units: {position: plus_minus_100}\njoints: {gripper: {unit: percent}}\n"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_of_a_data_set_is_found_in_both_layouts(arm, tmp_path, version):
    folder, given = lerobot(tmp_path / "set", version), mapped(tmp_path, LEROBOT_MAP)
    words = ["--robot", arm, "--map", given]
    log = taken(folder, tmp_path / "a.mcap", *words, "--episode", "1")
    assert log.spec.robot.joint_names == ARM and len(log.tick) == 25
    assert np.allclose(log.joint_position[:, 0], 1.9 / 100 * (10.0 + np.arange(25)))
    assert np.allclose(log.joint_position[:, 1], -0.85) and np.allclose(log.joint_position[:, 2], -0.2 + 0.25 * 2.0)
    assert np.allclose(log.sent[:, 0] - log.joint_position[:, 0], 1.9 / 100)
    assert np.allclose(np.diff(log.start_s), 1 / 30, atol=1e-6) and log.spec.control_period_s == 1 / 30
    about = log.metadata["import"]
    assert (about["codebase_version"], about["episode"], about["robot_type"]) == (version, 1, "so101_follower")
    assert [s["name"] for s in about["sources"]] == [
        "info.json", "episode_000001.parquet" if version == "v2.1" else "file-000.parquet",
    ]  # fmt: skip
    with pytest.raises(LogError, match=r"3 episodes; expected one; name it with --episode, from 0"):
        taken(folder, tmp_path / "b.mcap", *words)
    with pytest.raises(LogError, match=r"no (episode 7; it has 3|rows)"):
        taken(folder, tmp_path / "b.mcap", *words, "--episode", "7")
    with pytest.raises(LogError, match=r"does not say the unit of its positions; set units\.position in the map"):
        taken(folder, tmp_path / "b.mcap", "--robot", arm, "--episode", "0")


def test_names_of_an_older_data_set_and_of_a_damaged_one(arm, tmp_path):
    named = {"motors": list(ARM)}
    folder = lerobot(tmp_path / "a", "v2.1", episodes=1, names=named)
    given = mapped(tmp_path, LEROBOT_MAP)
    assert taken(folder, tmp_path / "a.mcap", "--robot", arm, "--map", given).spec.robot.joint_names == ARM
    bare = lerobot(tmp_path / "b", "v2.1", episodes=1, tamper=lambda i: i | {"features": {"observation.state": {}}})
    with pytest.raises(LogError, match=r"names of observation\.state: got None, expected a list of names"):
        taken(bare, tmp_path / "b.mcap", "--robot", arm, "--map", given)
    (folder / "data/chunk-000/episode_000000.parquet").write_bytes(b"PAR1 no more than that")
    with pytest.raises(LogError, match="not a parquet file"):
        taken(folder, tmp_path / "c.mcap", "--robot", arm, "--map", given)


def test_what_to_install_for_a_data_set_is_one_line(arm, tmp_path, monkeypatch):
    (tmp_path / "set/meta").mkdir(parents=True)
    feature = {"names": list(ARM)}
    info = {"fps": 30, "total_episodes": 1, "features": {"observation.state": feature, "action": feature}}
    (tmp_path / "set/meta/info.json").write_text(json.dumps(info))
    (tmp_path / "set/data/chunk-000").mkdir(parents=True)
    (tmp_path / "set/data/chunk-000/episode_000000.parquet").write_bytes(b"x")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as found:
        taken(tmp_path / "set", tmp_path / "a.mcap", "--robot", arm)
    assert one_line("log", found.value) == "needs pyarrow; install it with: pip install 'ksim2real[import]'"


# the page

PAGE = Path(__file__).parents[2] / "docs/log_import.md"


def test_every_map_of_the_page_loads_and_every_key_is_on_it():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    maps = [from_dict(ImportMap, parse_yaml(block)) for block in blocks]
    assert len(maps) == 3
    whole = maps[0]
    keys = set(parse_yaml(blocks[0])) | set(parse_yaml(blocks[0])["units"])
    assert keys == {*fields(ImportMap), *fields(Units)}
    assert all(f"`{name}`" in text for name in fields(JointMap))
    # it fits the robot that it names
    names = [how.source for how in whole.joints.values()]
    found = convert(whole, PlainCsv.units, names, load_robot("kbot"), "table.csv")
    assert found.robot.joint_names == tuple(whole.joints) and found.robot.joint("dof_left_elbow_02").kp == 80


def test_every_key_that_is_read_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    keys = [*VECTORS, *IMU, *STAGES, "timestamp", "step_id", "joint_order", "command", "joint_temps"]
    keys += [f"imu.{axis}" for axes in PLAIN_IMU.values() for axis in axes]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_table_of_the_page_is_taken(arm, tmp_path):
    (block,) = re.findall(r"^```csv\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "a.csv").write_text(block)
    assert taken(tmp_path / "a.csv", tmp_path / "a.mcap", "--robot", arm).joint_position.tolist() == [[0.101], [0.104]]
