"""The command line: help for every verb, and one line for every mistake."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ksim import cli
from ksim.cli import VERBS, main, run_verb
from toolkit.cli import Interrupted
from toolkit.errors import FileError, ToolkitError
from toolkit.files import atomic_path

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


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_of_any_verb_is_one_line(verb, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([verb, "--no-such-option"])
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"ksim {verb}: ") and err.count("\n") == 1, err
    assert err.endswith(f"; see ksim {verb} --help\n")


EXTRA = (
    *("jax", "jaxlib", "equinox", "optax", "mujoco", "jax2onnx", "onnx", "jaxtyping", "rich", "tensorboardX"),
    *("imageio_ffmpeg", "viser", "evdev"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_an_example_and_needs_no_package_of_an_extra(verb):
    """As on the base install: these may not be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRA})); "
        f"from ksim.cli import main; sys.exit(main(['{verb}', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: ksim {verb} ")
    assert "example" in done.stdout and f"  ksim {verb} " in done.stdout.split("example")[1]


@pytest.mark.parametrize("arguments", [["train", "--config", "configs/kbot_stand.yaml"], ["eval", "home"]])
def test_without_the_extra_a_verb_says_what_to_install(arguments):
    code = (
        "import sys; sys.modules['jax'] = sys.modules['equinox'] = None; "
        f"from ksim.cli import main; sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert_one_line(done, arguments[0], "install it with: pip install 'ksim2real[train]'")


CLOSED = """
import os, sys
for number in {numbers}:
    os.close(number)
os.execv(sys.executable, [sys.executable, "-m", "ksim.cli", *{arguments!r}])
"""


@pytest.mark.parametrize("numbers", [(2,), (1,), (0, 1, 2)])
def test_a_verb_goes_on_where_standard_streams_are_closed(numbers, tmp_path):
    # an error, told to nobody; and a result
    for arguments, status in ((["parity", "none.mcap"], 1), (["--version"], 0), (["eval", "--help"], 0), ([], 2)):
        code = CLOSED.format(numbers=numbers, arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, (arguments, done)
        if 2 in numbers:
            assert done.stderr == ""
        else:
            assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_an_answer_that_cannot_be_written_is_one_line(arguments):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "ksim.cli", *arguments],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    who = "ksim" if arguments[0].startswith("-") else f"ksim {arguments[0]}"
    assert done.stderr.startswith(f"{who}: No space left on device; expected room to write; free some")
    assert done.stderr.count("\n") == 1


def test_a_file_opened_later_does_not_become_standard_error(tmp_path):
    code = (
        "import os\nos.close(2)\nimport sys\nsys.stderr = None\n"
        "from toolkit.cli import fill_streams\nfill_streams()\n"
        f"file = open({str(tmp_path / 'data')!r}, 'w')\nos.write(2, b'noise of a library')\n"
        "print('to nobody', file=sys.stderr)\nsys.exit(file.fileno())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode > 2 and (tmp_path / "data").read_text() == ""


@pytest.mark.parametrize("coding", ["ascii", "latin-1", "utf-8"])
def test_an_answer_with_letters_that_its_encoding_lacks_is_no_traceback(coding):
    code = (
        "import sys\nfrom toolkit.cli import run_verb\n"
        "sys.exit(run_verb('log', lambda _: print('a\\u4e2d\\udcff') or 0, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": coding}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udcff" in done.stdout


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.4])
def test_control_c_in_the_first_moments_is_one_line(after_s):
    """Whatever is being imported; before Python reads our first line there is nothing that we could do."""
    command = [sys.executable, "-c", "print(flush=True); from ksim.cli import main; raise SystemExit(main())"]
    command += ["eval", "home", "--episodes", "100000", "--set", "episode_length_s=1000"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors == "ksim eval: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_finaliser_is_not_lost(number):
    """Python prints what is raised there, and goes on."""
    code = (
        "import os, sys, time\n"
        "from toolkit.cli import run_verb\n"
        "class Dying:\n"
        f"    def __del__(self): os.kill(os.getpid(), {int(number)}); time.sleep(0.01)\n"
        "def verb(argv):\n"
        "    Dying()\n"
        "    for _ in range(500): time.sleep(0.02)\n"
        "    return 0\n"
        "sys.exit(run_verb('train', verb, []))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (128 + number, "ksim train: interrupted\n")


def failing(error: BaseException):
    def verb(argv):
        raise error

    return verb


def test_errors_of_the_toolkit_and_of_the_system_become_one_line_and_status_1(capsys):
    assert run_verb("train", failing(ToolkitError("two\n  lines")), []) == 1
    assert capsys.readouterr().err == "ksim train: two lines\n"
    for number, name, words in (
        (errno.EACCES, "/x/y", "/x/y: Permission denied; expected a path that may be read or written; change its"),
        (
            errno.EEXIST,
            "/etc/passwd",
            "/etc/passwd: File exists; expected a folder, or a path that is free; name another",
        ),
        (errno.ENOTDIR, "/etc/passwd/x", "/etc/passwd/x: Not a directory; expected a folder; name another path"),
        (errno.ENOSPC, None, "No space left on device; expected room to write; free some, or name a path on another"),
        (errno.EXDEV, "/x", "/x: Invalid cross-device link"),
    ):
        assert run_verb("train", failing(OSError(number, os.strerror(number), name)), []) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"ksim train: {words}") and said.count("\n") == 1
    assert run_verb("train", failing(OSError("no number")), []) == 1
    assert capsys.readouterr().err == "ksim train: no number\n"


def test_too_little_memory_is_one_line_and_status_1(capsys):
    for error in (MemoryError(), ValueError("std::bad_alloc"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")):
        assert run_verb("eval", failing(error), []) == 1
        assert capsys.readouterr().err.startswith("ksim eval: not enough memory; ")


def test_a_missing_package_names_the_extra_that_brings_it(capsys):
    assert run_verb("train", failing(ModuleNotFoundError("No module named 'jax'", name="jax.numpy")), []) == 1
    assert "pip install 'ksim2real[train]'" in capsys.readouterr().err


def test_an_interruption_exits_with_130(capsys):
    assert run_verb("train", failing(KeyboardInterrupt()), []) == 130
    assert "interrupted" in capsys.readouterr().err
    assert run_verb("train", failing(Interrupted(signal.SIGTERM)), []) == 143
    assert capsys.readouterr().err == "ksim train: interrupted\n"


def test_an_interruption_that_an_import_turned_into_an_error_is_still_one(capsys):
    def verb(argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    assert run_verb("twin", verb, []) == 130
    assert capsys.readouterr().err == "ksim twin: interrupted\n"
    with pytest.raises(ImportError):
        run_verb("twin", failing(ImportError("initialization failed")), [])


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
    "train into a file": (
        ["train", "--config", "configs/kbot_stand.yaml", "--out", "LICENSE"],
        ["LICENSE: is a file; expected a folder"],
    ),
    "twin of a seed below 0": (["twin", "--seed", "-1", "--port", "0"], ["--seed: got -1, expected 0 to"]),
    "demo into a folder with files": (["demo", "--out", "configs"], ["--out configs: the folder holds other files"]),
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
def test_a_mistake_is_one_line_and_leaves_nothing_behind(name, tmp_path, half, capsys, monkeypatch):
    argv, words = MISTAKES[name]
    monkeypatch.chdir(ROOT)
    argv = [a.format(tmp=tmp_path, half=half) for a in argv]
    assert_one_line(subprocess.CompletedProcess(argv, main(argv), *capsys.readouterr()), argv[0], *words)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_one_line_for_the_twin():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_line(ksim("twin", "--port", port), "twin", str(port), "--port")


SLOW = """
import sys, time
from toolkit.cli import importing, run_verb

def verb(argv):
    with importing("replay"):
        print("ready", flush=True)
        if argv == ["import"]:
            time.sleep(60)
    print("ready", flush=True)
    time.sleep(60)
    return 0

sys.exit(run_verb("replay", verb, sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize("when", ["import", "run"])
def test_a_signal_ends_any_verb_with_one_line_and_its_status(number, when):
    command = [sys.executable, "-c", SLOW, when]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(1 if when == "import" else 2):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (128 + number, "ksim replay: interrupted\n")


def test_a_verb_leaves_the_handlers_of_signals_as_they_were_and_ignored_ones_ignored():
    seen = []

    def verb(argv):
        seen.append([signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)])
        return 0

    before = signal.getsignal(signal.SIGTERM)
    hung = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_verb("eval", verb, []) == 0
        assert signal.getsignal(signal.SIGTERM) == before and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hung)
    ((term, hup),) = seen
    assert term != signal.SIG_DFL and hup == signal.SIG_IGN


def test_a_file_of_ones_own_is_imported_before_the_verb(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_hopping.py").write_text("import ksim.cli\nksim.cli.loaded_for_test = True\n")
    (tmp_path / "own_broken.py").write_text("nobody\n")
    (tmp_path / "json.py").touch()
    monkeypatch.setattr(cli, "_load", lambda verb: lambda argv: 7 if cli.loaded_for_test else 0)
    monkeypatch.setattr(cli, "loaded_for_test", False, raising=False)
    assert cli.main(["--with", str(tmp_path / "own_hopping.py"), "eval", "x"]) == 7
    for name, words in (
        ("own_missing.py", "no such file; expected one that registers a task"),
        ("own_broken.py", "cannot be imported (NameError: name 'nobody' is not defined); correct it"),
        ("json.py", "there is a module of that name already"),
    ):
        assert cli.main(["--with", str(tmp_path / name), "eval", "x"]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"ksim eval: --with {tmp_path / name}: {words}") and said.count("\n") == 1
    assert cli.main(["--with"]) == 2
    assert "got no file, expected FILE.py and a verb" in capsys.readouterr().err


def test_a_device_is_not_replaced_by_a_file_and_a_link_is_followed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is no regular file"), atomic_path(tmp_path / "pipe"):
        pass
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_file_of_one_s_own_that_leaves_python_is_one_line(tmp_path):
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    command = [sys.executable, "-m", "ksim.cli", "--with", str(tmp_path / "leaves.py"), "diff", "a", "b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "cannot be imported (SystemExit: 0)" in done.stderr
