"""The command line: help for every verb, and one line for every mistake."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ksim.cli import VERBS, main, run_verb
from robots.errors import ToolkitError

ROOT = Path(__file__).parents[1]


def ksim(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksim.cli", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def assert_one_line(done: subprocess.CompletedProcess[str], verb: str, *words: str) -> None:
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"ksim {verb}: "), done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_exits_with_0_and_shows_an_example(verb):
    done = ksim(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: ksim {verb} ")
    assert "example" in done.stdout and f"  ksim {verb} " in done.stdout.split("example")[1]


def test_without_a_verb_the_usage_names_every_verb(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ksim2real ")


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "ksim: unknown verb 'trian'; did you mean 'train'?\n"
    assert main(["xyzzy"]) == 2
    assert "verbs: demo, train" in capsys.readouterr().err


def test_an_unknown_option_is_one_line_that_points_to_the_help():
    done = ksim("eval", "home", "--episode", "3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ksim eval: ") and "ksim eval --help" in done.stderr


def failing(error: BaseException):
    def verb(argv):
        raise error

    return verb


def test_errors_of_the_toolkit_and_of_the_system_become_one_line_and_status_1(capsys):
    assert run_verb("train", failing(ToolkitError("two\n  lines")), []) == 1
    assert capsys.readouterr().err == "ksim train: two lines\n"
    assert run_verb("train", failing(PermissionError(13, "Permission denied", "/x/y")), []) == 1
    assert capsys.readouterr().err == "ksim train: Permission denied: /x/y\n"


def test_a_missing_package_names_the_extra_that_brings_it(capsys):
    assert run_verb("train", failing(ModuleNotFoundError("No module named 'jax'", name="jax.numpy")), []) == 1
    assert "pip install 'ksim2real[train]'" in capsys.readouterr().err


def test_an_interruption_exits_with_130(capsys):
    assert run_verb("train", failing(KeyboardInterrupt()), []) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_verb("train", failing(ZeroDivisionError()), [])


MISTAKES = {
    "eval without its checkpoint": (["eval", "none.ckpt"], ["none.ckpt: no such file"]),
    "export without its checkpoint": (["export", "none.ckpt", "-o", "{tmp}/x.kinfer"], ["none.ckpt", "no such file"]),
    "vis without its checkpoint": (["vis", "--checkpoint", "none.ckpt"], ["none.ckpt: no such file"]),
    "train without its file": (["train", "--config", "none.yaml"], ["none.yaml: no such file"]),
    "train with an unknown key": (
        ["train", "--config", "configs/kbot_stand.yaml", "--set", "ppo.lerning_rate=1"],
        ["'ppo.lerning_rate'", "did you mean ppo.learning_rate"],
    ),
    "train with a value of another type": (
        ["train", "--config", "configs/kbot_stand.yaml", "--set", "ppo.envs=many"],
        ["ppo.envs", "'many'", "an integer"],
    ),
    "train of an unknown task": (
        ["train", "--config", "configs/kbot_stand.yaml", "--out", "{tmp}/run", "--set", "task=kbot_stan"],
        ["task", "'kbot_stan'", "'kbot_stand'"],
    ),
    "run of half a bundle": (["run", "{half}"], ["half.kinfer", "not a readable gzip tar"]),
    "validate of half a bundle": (["validate", "{half}", "--checkpoint", "none.ckpt"], ["half.kinfer"]),
    "eval of half a bundle": (["eval", "{half}"], ["half.kinfer", "not a readable gzip tar"]),
    "run of a missing bundle": (["run", "none.kinfer"], ["none.kinfer"]),
    "parity of a missing log": (["parity", "none.mcap"], ["none.mcap"]),
    "twin of an unknown robot": (["twin", "--robot", "kbott", "--port", "0"], ["kbott"]),
}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A .kinfer file that was cut off."""
    import gzip

    path = tmp_path_factory.mktemp("bundle") / "half.kinfer"
    data = gzip.compress(bytes(range(256)) * 100)
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(name, tmp_path, half):
    argv, words = MISTAKES[name]
    done = ksim(*(a.format(tmp=tmp_path, half=half) for a in argv))
    assert_one_line(done, argv[0], *words)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_one_line_for_the_twin():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_line(ksim("twin", "--port", port), "twin", str(port), "--port")
