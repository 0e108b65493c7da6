"""`ksim log import` of a plain table, its units and its map; what is wrong with one is one line."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploy.errors import LogError
from deploy.log.tools import main
from robots.rotation import up_in_frame
from tests.deploy.foreign_logs import ARM, mapped, plain, taken


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


def rocking(gyro=1.0, gravity=1.0):
    """A robot that rocks about y by 0.3 rad, as columns; its gyro and its gravity as a factor makes them."""
    lean = {"value": lambda t: 0.3 * math.sin(3 * t), "rate": lambda t: 0.9 * math.cos(3 * t)}
    columns = {"elbow_flex.position": lambda t: 0.1, "imu.gyro_x": lambda t: 0.0, "imu.gyro_z": lambda t: 0.0}
    columns |= {"imu.gyro_y": lambda t: gyro * lean["rate"](t), "imu.gravity_y": lambda t: 0.0}
    columns |= {"imu.gravity_x": lambda t: gravity * 9.81 * math.sin(lean["value"](t))}
    return columns | {"imu.gravity_z": lambda t: -gravity * 9.81 * math.cos(lean["value"](t))}


@pytest.mark.parametrize(
    ("factors", "units", "said"),
    [
        ({}, "{}", ""),
        ({"gyro": 180 / math.pi}, "{}", "57 times as much as the orientation: its unit looks like deg/s; set units"),
        ({"gyro": 180 / math.pi}, "{gyro: deg/s}", ""),
        ({}, "{gyro: deg/s}", "0.018 times as much as the orientation: its unit looks like rad/s; set units.gyro"),
        ({"gyro": -1}, "{}", "the gyro turns against the orientation; one of them has the other sign"),
        ({"gyro": 5}, "{}", "5 times as much as the orientation; look at the unit and the axes"),
        ({"gravity": -1}, "{}", "on its head in 100% of the lines; where it did not, gravity has the other sign: set"),
        ({"gravity": -1}, "{gravity: up}", ""),
    ],
)
def test_an_imu_of_another_unit_or_sign_is_told_with_the_key_of_the_map(arm, tmp_path, capsys, factors, units, said):
    path = plain(tmp_path / "a.csv", rocking(**factors), 200)
    log = taken(path, tmp_path / "a.mcap", "--robot", arm, "--map", mapped(tmp_path, f"units: {units}\n"))
    found = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(found) == bool(said) and said in "".join(found), found
    up = up_in_frame(log.quat_wxyz)[:, 2]
    assert np.allclose(up, np.cos(0.3 * np.sin(3 * log.start_s)) * (-1 if "on its head" in said else 1), atol=1e-9)


def test_of_a_robot_that_stands_still_the_gyro_says_nothing(arm, tmp_path, capsys):
    columns = {name: (lambda t, value=value: value(0.2)) for name, value in rocking().items()}
    taken(plain(tmp_path / "a.csv", columns, 200), tmp_path / "a.mcap", "--robot", arm)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_table_in_utf_16_says_so(arm, tmp_path, encoding):
    path = plain(tmp_path / "a.csv", {"elbow_flex.position": lambda t: 0.1})
    path.write_text(path.read_text(), encoding=encoding)
    with pytest.raises(LogError, match=r"a\.csv: is text in UTF-16; expected UTF-8; write it again so \(iconv -f UTF"):
        taken(path, tmp_path / "a.mcap", "--robot", arm)


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
