"""`ksim log import` of any format: what is no log, files that are there, memory, and the page."""

from __future__ import annotations

import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import LogError
from deploy.log.imports.command import import_log
from deploy.log.imports.mapping import ImportMap, JointMap, Units, convert
from deploy.log.imports.plain_csv import IMU as PLAIN_IMU
from deploy.log.imports.plain_csv import PlainCsv
from deploy.log.imports.pyfirmware import IMU, STAGES, VECTORS
from deploy.log.recorder import read_log
from deploy.log.tools import main
from robots.load import load_robot
from tests.deploy.foreign_logs import ARM, plain, taken
from toolkit.settings import fields, from_dict
from toolkit.yaml_file import parse_yaml

PAGE = Path(__file__).parents[2] / "docs/log_import.md"


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


@pytest.mark.parametrize("share", [0.01, 0.9])  # full when it is opened, and at its end
def test_a_full_disk_names_the_log_that_there_is_none_of_and_advises_no_recovery(arm, tmp_path, share):
    path = plain(tmp_path / "a.csv", {"elbow_flex.position": lambda t: 0.1 * math.sin(t)}, 400)
    assert len(taken(path, tmp_path / "whole.mcap", "--robot", arm).tick) == 400
    room = int(share * (tmp_path / "whole.mcap").stat().st_size)
    there, out = sorted(tmp_path.iterdir()), tmp_path / "b.mcap"
    done = subprocess.run(
        [sys.executable, "-m", "deploy.log.tools", "import", str(path), "-o", str(out), "--robot", str(arm)],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # it would keep half of a module
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{out}: cannot be written (File too large); expected room for it; make some" in done.stderr
    assert sorted(tmp_path.iterdir()) == there


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


def test_a_folder_in_place_of_a_log_of_ours_is_told_what_makes_one(tmp_path):
    with pytest.raises(LogError, match=r"a folder; expected a log of ksim run; ksim log import makes one of others"):
        read_log(tmp_path)
