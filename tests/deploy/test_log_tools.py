"""`ksim log`: each form of a log holds its numbers, and a broken one is made whole."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from mcap.reader import make_reader

from deploy.errors import LogError
from deploy.log.recorder import read_log
from deploy.log.summary import summary
from deploy.log.tick import message_of
from deploy.log.tools import LAYOUT, main
from robots.load import load_robot
from tests.deploy.test_log_writer import writer_of
from tests.deploy.test_recorder import log_file, record, tick
from toolkit.files import shipped_policy


@pytest.fixture
def log(tmp_path, kinfer):
    """A tick before the policy, four of it with a deadline left out, one of the end."""
    first = tick(0, phase="ramp", inputs={}, action=None)
    last = tick(6, phase="damp", inputs={}, action=None, target=None, stages_ms={})
    lost = tick(3, state_round_trip_s=float("nan"), command_round_trip_s=float("nan"), command_s=float("nan"))
    record(tmp_path / "a.mcap", kinfer, [first, tick(1), tick(2), lost, tick(5), last])
    return tmp_path / "a.mcap"


def test_info_says_how_a_run_went(log, capsys):
    assert main(["info", str(log), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ended"], told["complete"], told["robot"], told["host"]) == ("completed", True, "leg", "h")
    assert told["ticks"] == {"ramp": 1, "run": 4, "damp": 1} and told["bytes"] == log.stat().st_size
    # 4 ticks in 0.08 s, one deadline of 20 ms left out
    assert told["rate_hz"] == pytest.approx(3 / 0.08) and told["timing"]["skipped"] == 1
    assert (told["lost_states"], told["lost_commands"], told["stale"]) == (1, 1, 1)
    assert told["clamps"] == {"position limit": 3} and told["clamped_joints"] == {"hip": 3}
    assert told["timing"]["stages"]["read"] == {"p50_ms": pytest.approx(1.5), "p99_ms": pytest.approx(1.5)}
    assert main(["info", str(log)]) == 0
    text = capsys.readouterr().out
    assert "ended           completed" in text and "6: ramp 1, run 4, damp 1; 37.50 a second" in text


def test_info_of_a_loop_that_left_out_every_second_deadline(tmp_path, kinfer, capsys):
    record(tmp_path / "a.mcap", kinfer, [tick(k) for k in (0, 2, 3, 5, 7, 9, 11)])
    assert main(["info", str(tmp_path / "a.mcap"), "--json"]) == 0
    timing = json.loads(capsys.readouterr().out)["timing"]
    assert timing["period_ms"] == pytest.approx(20.0) and timing["skipped"] == 5
    record(tmp_path / "b.mcap", kinfer, [tick(k) for k in (0, 2, 4)])
    assert main(["info", str(tmp_path / "b.mcap"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timing"]["skipped"] == 2


def test_info_of_a_log_without_ticks_and_without_an_end_is_no_error(tmp_path, kinfer, capsys):
    log_file(tmp_path / "a.mcap", kinfer, [])
    assert main(["info", str(tmp_path / "a.mcap")]) == 0
    text = capsys.readouterr().out
    assert "BREAKS OFF" in text and "0: none; no rate" in text
    assert main(["info", str(tmp_path / "a.mcap"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rate_hz"] is None
    for tool in ("csv", "npz"):
        assert main([tool, str(tmp_path / "a.mcap"), "-o", str(tmp_path / "out")]) == 0
    assert main(["view", str(tmp_path / "a.mcap")]) == 0


def test_a_table_has_every_number_to_the_bit_under_its_name_and_unit(log, tmp_path):
    assert main(["csv", str(log), "-o", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    read = read_log(log)
    assert len(rows) == 6 and rows[2]["phase"] == "run" and rows[1]["safety"] == "hip: position limit"
    for k, row in enumerate(rows):
        assert float(row["start [s]"]) == read.start_s[k] and int(row["tick"]) == read.tick[k]
        assert float(row["joint_velocity knee [rad/s]"]) == read.joint_velocity[k, 1]
        assert float(row["joint_temperature ankle [C]"]) == 50.0 + int(row["tick"])
        assert float(row["quat w"]) == 1.0 and float(row["gyro_b z [rad/s]"]) == read.gyro_b[k, 2]
    assert np.float32(rows[2]["input joint_angles 1 [rad]"]) == read.inputs["joint_angles"][2, 1]
    assert rows[0]["action ankle [rad]"] == "" and rows[3]["command [s]"] == "" and rows[3]["stale"] == "1"
    assert float(rows[4]["stage infer [ms]"]) == 0.5
    assert float(rows[4]["age orientation [s]"]) == read.ages_s["orientation"][4] > 0.09


def test_arrays_hold_no_pickle_and_every_number(log, tmp_path):
    assert main(["npz", str(log), "-o", str(tmp_path / "a.npz")]) == 0
    read = read_log(log)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        for name in ("tick", "start_s", "target", "sent", "joint_torque", "joint_temperature", "quat_wxyz", "stale"):
            assert np.array_equal(arrays[name], getattr(read, name), equal_nan=name == "target")
        assert arrays["input.joint_angles"].dtype == np.float32
        assert np.array_equal(arrays["stages_ms.infer"], read.stages_ms["infer"], equal_nan=True)
        assert np.array_equal(arrays["ages_s.call"], read.ages_s["call"])
        assert arrays["joint_names"].tolist() == ["hip", "knee", "ankle"] and arrays["phase"][0] == "ramp"
        assert json.loads(str(arrays["result"])) == {"ended": "completed"}
        assert json.loads(arrays["events"][0]) == {"t_s": 0.5, "kind": "note", "message": "text"}


@pytest.mark.parametrize("garbage", [0, 3000])
def test_a_file_that_breaks_off_is_made_whole(tmp_path, kinfer, garbage, capsys):
    ticks = [tick(k) for k in range(20)]
    log_file(tmp_path / "a.mcap", kinfer, ticks, a_chunk=5)
    rubbish = np.random.default_rng(0).integers(0, 256, garbage, dtype=np.uint8).tobytes()
    cut = (tmp_path / "a.mcap").read_bytes()[:-300]  # of the fourth chunk
    (tmp_path / "b.mcap").write_bytes(cut + rubbish)
    assert main(["recover", str(tmp_path / "b.mcap"), "-o", str(tmp_path / "c.mcap")]) == 0
    assert "15 ticks and 0 events saved" in capsys.readouterr().err
    read = read_log(tmp_path / "c.mcap")
    assert np.array_equal(read.sent, [t.sent for t in ticks[:15]]) and not read.complete
    assert read.spec == read_log(tmp_path / "a.mcap").spec and read.bundle is not None
    with (tmp_path / "c.mcap").open("rb") as file:
        reader = make_reader(file)
        assert reader.get_summary().statistics.message_count == 15
        assert len(list(reader.iter_messages(topics=["/tick"]))) == 15
        assert [a.name for a in reader.iter_attachments()] == ["policy.kinfer"]
    with pytest.raises(LogError, match="it exists; expected a new file"):
        main(["recover", str(tmp_path / "b.mcap"), "-o", str(tmp_path / "c.mcap")])


def test_a_whole_log_stays_what_it_is(log, tmp_path, capsys):
    assert main(["recover", str(log), "-o", str(tmp_path / "b.mcap")]) == 0
    assert "6 ticks and 1 events saved; the log was whole already" in capsys.readouterr().err
    read = read_log(tmp_path / "b.mcap")
    assert read.complete and read.events == read_log(log).events and read.result == {"ended": "completed"}


def test_what_is_no_log_is_refused_in_one_line_and_leaves_nothing(tmp_path, log):
    (tmp_path / "text").write_text("hello world, not a log")
    for name, said in (("text", "not a log of ksim run"), ("none", "no such file")):
        with pytest.raises(LogError, match=said):
            main(["recover", str(tmp_path / name), "-o", str(tmp_path / "b.mcap")])
    with pytest.raises(LogError, match="it is the log; expected another file"):
        main(["csv", str(log), "-o", str(log)])
    assert not (tmp_path / "b.mcap").exists() and not list(tmp_path.glob("*.part"))


def test_the_page_needs_nothing_else_and_shows_every_joint(log, tmp_path):
    assert main(["view", str(log)]) == 0
    text = (tmp_path / "a.html").read_text()
    assert text.startswith("<!doctype html>") and "completed" in text
    assert all(f"<h3>{joint}</h3>" in text for joint in ("hip", "knee", "ankle"))
    assert not re.search(r"<script|<link|src=|url\(|https?://(?!www\.w3\.org)", text)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The log of a run on the twin that was killed together with its log's writer."""
    pytest.importorskip("mujoco")
    from deploy.twin.server import spawn_twin
    from tests.deploy.test_run_on_twin import start

    log = tmp_path_factory.mktemp("killed") / "run.mcap"
    with spawn_twin("kbot") as twin:
        child = start(shipped_policy("stand", ".kinfer"), twin.port, log)
        for pid in (writer_of(child.pid), child.pid):
            os.kill(pid, signal.SIGKILL)
        child.communicate(timeout=30)
    return log


def test_a_run_that_is_killed_with_its_writer_is_recovered(killed, tmp_path):
    saved = len(read_log(killed).tick)
    assert saved >= 10
    command = [sys.executable, "-m", "deploy.log.tools", "recover", str(killed), "-o", str(tmp_path / "good.mcap")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f": {saved} ticks and " in done.stderr and "already" not in done.stderr
    with (tmp_path / "good.mcap").open("rb") as file:
        assert make_reader(file).get_summary().statistics.message_count >= saved
    found = summary(read_log(tmp_path / "good.mcap"))
    assert (found.ended, found.complete) == ("unknown", False) and found.ticks["run"] >= 10


def test_every_path_of_the_layout_leads_to_a_value_of_a_real_log(tmp_path, killed):
    assert main(["layout", "-o", str(tmp_path / "layout.json")]) == 0
    assert (tmp_path / "layout.json").read_bytes() == LAYOUT.read_bytes()
    assert main(["recover", str(killed), "-o", str(tmp_path / "good.mcap")]) == 0
    with (tmp_path / "good.mcap").open("rb") as file:
        found = list(make_reader(file).iter_messages())
    kinds = {channel.topic: message_of(schema.name, schema.data) for schema, channel, _ in found}
    messages = [(channel.topic, kinds[channel.topic].FromString(message.data)) for _, channel, message in found]
    layout = json.loads(LAYOUT.read_text())
    paths, labels = [], {}
    for panel in layout["configById"].values():
        paths += [p["value"] for p in panel.get("paths", [])] + list(filter(None, [panel.get("topicPath")]))
        labels |= {p["value"]: p["label"] for p in panel.get("paths", []) if "label" in p}
        assert (
            panel.get("topicToRender", "/event") == "/event" and kinds["/event"].DESCRIPTOR.full_name == "foxglove.Log"
        )
    assert len(paths) > 50
    for path in paths:
        topic, *steps = re.findall(r"^/\w+|\.\w+|\[\d+\]", path)
        assert "".join([topic, *steps]) == path
        values = [value for name, value in messages if name == topic]
        for step in steps:
            values = [v[int(step[1:-1])] if step[0] == "[" else getattr(v, step[1:]) for v in values]
        assert len(values) > 10, path
    for j, joint in enumerate(load_robot("kbot").joint_names[:10]):
        assert labels[f"/tick.sent[{j}]"] == f"{joint.removeprefix('dof_')} sent"
    placed = re.findall(r'"(?:first|second)": "([^"]+)"', LAYOUT.read_text())
    assert sorted(placed) == sorted(layout["configById"])
