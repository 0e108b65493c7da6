"""What a newcomer types first does what was meant, or says in one line what to do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.control.check import CheckOptions
from deploy.control.damp import DampOptions
from deploy.control.run import RunOptions
from deploy.errors import LogError, OptionError
from deploy.log.place import check_place
from deploy.robot.address import addressed
from ksim.cli import main
from toolkit.files import packaged

ROOT = Path(__file__).parents[1]
POLICIES = ROOT / "robots/kbot/policies"


@pytest.fixture
def ksim(tmp_path, monkeypatch, capsys):
    """`ksim("damp")`: a command in a folder that is no clone."""
    monkeypatch.chdir(tmp_path)

    def command(*argv: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, main([*map(str, argv)]), *capsys.readouterr())

    return command


def test_a_port_behind_the_host_is_the_port():
    for options in (
        RunOptions(bundle=Path("p"), host="10.0.0.7:6000"),
        CheckOptions(robot="kbot", host="10.0.0.7:6000"),
    ):
        told = addressed(options)
        assert (told.host, told.port) == ("10.0.0.7", 6000)
    assert addressed(DampOptions(host="robot.local")).host == "robot.local"
    # addresses of IPv6 have colons of their own
    assert addressed(DampOptions(host="::1")).host == "::1"
    both = addressed(DampOptions(host="[::1]:6000"))
    assert (both.host, both.port) == ("[::1]", 6000)
    assert addressed(DampOptions(host="robot:6000", port=6000)).port == 6000
    for host, port, words in (
        ("robot:x", 50051, "expected a host, or HOST:PORT with a port from 1 to 65535"),
        ("robot:70000", 50051, "expected a host, or HOST:PORT"),
        (":6000", 50051, "expected a host, or HOST:PORT"),
        ("robot:6000", 6001, "--host robot:6000 and --port 6001: two ports; expected one of them"),
    ):
        with pytest.raises(OptionError, match=words):
            addressed(DampOptions(host=host, port=port))


@pytest.mark.parametrize("verb", ["damp", "check", "run"])
def test_the_verbs_take_a_port_behind_the_host(verb, ksim):
    first = {"damp": [], "check": ["--robot", "kbot"], "run": [POLICIES / "stand.kinfer", "--log", "x.mcap"]}[verb]
    argv = [verb, *first, "--host", "127.0.0.1:1", *(["--for", "0"] if verb == "damp" else [])]
    done = ksim(*argv)
    assert done.returncode == 1 and "no KOS server at 127.0.0.1:1 within" in done.stderr, done.stderr


def test_a_log_that_cannot_be_written_is_refused_before_the_bundle_is_looked_at(tmp_path, ksim):
    (tmp_path / "file").touch()
    for log, words in (
        (tmp_path, "it is a folder; expected a file; name one in it, for example .*/run.mcap"),
        (tmp_path / "file" / "run.mcap", "/file is a file, not a folder"),
        (Path("/proc/nowhere/run.mcap"), "/proc: "),
    ):
        with pytest.raises(LogError, match=words):
            check_place(log)
    check_place(tmp_path / "new" / "deep" / "run.mcap")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    done = ksim("run", "none.kinfer", "--log", tmp_path)
    assert done.returncode == 1 and f"log {tmp_path}: it is a folder" in done.stderr


def test_a_file_of_the_package_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged("configs/kbot_walk.yaml").samefile(ROOT / "configs/kbot_walk.yaml")
    assert packaged("robots/kbot/policies/stand.kinfer").samefile(POLICIES / "stand.kinfer")
    for path in ("configs/none.yaml", "kbot_walk.yaml", "../configs/kbot_walk.yaml", "/configs/kbot_walk.yaml", ""):
        assert packaged(path) == Path(path)
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs/kbot_stand.yaml", "configs/kbot_walk.yaml")  # one's own goes first
    assert packaged("configs/kbot_walk.yaml") == Path("configs/kbot_walk.yaml")


def test_a_configuration_of_the_package_is_named_in_an_empty_folder(tmp_path, ksim):
    done = ksim("train", "--config", "configs/kbot_walk.yaml", "--set", "ppo.envs=many")
    assert "ppo.envs: got 'many', expected an integer" in done.stderr
    done = ksim("twin", "--reality", "configs/reality_demo.yaml", "--robot", "nobody")
    assert "robot 'nobody': no such folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["vis", "replay"])
def test_a_policy_needs_no_flag(verb, ksim):
    for argv in (["none.ckpt"], ["--checkpoint", "none.ckpt"], ["none.ckpt", "--checkpoint", "none.ckpt"]):
        done = ksim(verb, *argv)
        assert done.returncode == 1 and "none.ckpt: no such file; expected a checkpoint" in done.stderr, done.stderr
    done = ksim(verb, "a.ckpt", "--checkpoint", "b.ckpt")
    assert "got 'b.ckpt', expected one policy; a.ckpt is one already" in done.stderr
    assert "got None, expected a policy" in ksim(verb).stderr or verb == "replay"
