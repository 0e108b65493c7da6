"""A run that is spread over devices and processes: the same update, one set of files, and an end when one is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from ksim.errors import ConfigError
from ksim.learning import checkpoint
from ksim.learning.world import World
from ksim.local import cores
from ksim.tasks import task_config
from tests.ksim.biped import write_biped
from tests.ksim.few_terms import few_terms
from tests.ksim.test_other_robot import SMALL

# Sums of float32 in another order: after the first update, and after four, in which each goes on from the one before.
FIRST, LATER = 1e-4, 5e-3
STEPS = 8 * 6
FIGURES = ("loss", "value_error", "kl", "gradient", "entropy", "explained_variance", "reward/alive", "std")


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    return write_biped(tmp_path_factory.mktemp("robots") / "hopper", joints=1)


def command_of(config):
    """The command line of a run; one minibatch, because which environments share one differs between devices."""
    sets = [*SMALL, "ppo.minibatches=1", "run.save_every_updates=2", "policy.normalise=true", "ppo.average=0.9"]
    return [sys.executable, "-m", "ksim.train", "--config", str(config), *(a for s in sets for a in ("--set", s))]


@pytest.fixture(scope="module")
def command(robot):
    """A run of the task as it is."""
    path = robot.parent / "run.yaml"
    path.write_text(f"task: kbot_stand\nrobot: {robot}\n")
    return command_of(path)


def with_few_terms(robot, name, **more):
    path = robot.parent / name
    config = dataclasses.replace(task_config("kbot_stand"), robot=str(robot))
    path.write_text(yaml.safe_dump(few_terms(config, **more).to_dict()))
    return command_of(path)


@pytest.fixture(scope="module")
def short(robot):
    """A run with few terms."""
    return with_few_terms(robot, "few.yaml")


@pytest.fixture(scope="module")
def bare(robot):
    """A run that draws nothing either: for runs of which only the end counts."""
    return with_few_terms(robot, "bare.yaml", randomizations={})


def start(command, out, *more, devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*command, "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
    )


def ended(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-2000:]
    return out, err


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def both(command, out, *more):
    """Two processes of one run."""
    shared = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", *more)
    return [start(command, out, *shared, "--process", str(i)) for i in range(2)]


def others_of(out):
    """The processes that have this folder on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(out).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(ours, theirs):
    assert [r["steps"] for r in ours] == [r["steps"] for r in theirs]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in FIGURES:
            assert a[name] == pytest.approx(b[name], rel=FIRST if i == 0 else LATER, abs=1e-5), (i, name)


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The run on one device."""
    out = tmp_path_factory.mktemp("alone") / "run"
    ended(start(command, out, "--set", f"run.total_steps={4 * STEPS}"))
    return out


@pytest.fixture(scope="module")
def together(command, tmp_path_factory):
    """The same by two processes."""
    out = tmp_path_factory.mktemp("together") / "run"
    steps = ("--set", f"run.total_steps={4 * STEPS}")
    if len(cores()) > 1:
        said, err = ended(start(command, out, *steps, "--processes", "2"))
        assert "Traceback" not in err
    else:
        first, second = both(command, out, *steps)
        said, _ = ended(first)
        assert ended(second)[0] == ""
    assert "wrote" in said
    return out


def test_two_devices_of_one_process_give_the_update_of_one(command, alone, tmp_path):
    ended(start(command, tmp_path / "run", "--set", f"run.total_steps={4 * STEPS}", devices=2))
    assert_same(rows(tmp_path / "run"), rows(alone))


@pytest.mark.slow
def test_two_devices_give_the_update_of_one_on_mjx_too(short, tmp_path):
    more = ("--set", "engine=mjx", "--set", f"run.total_steps={2 * STEPS}")
    for devices in (1, 2):
        ended(start(short, tmp_path / str(devices), *more, devices=devices))
    assert_same(rows(tmp_path / "2"), rows(tmp_path / "1"))


def test_two_processes_give_the_update_of_one_and_write_one_set_of_files(together, alone):
    assert_same(rows(together), rows(alone))
    assert {p.name for p in together.iterdir()} == {p.name for p in alone.iterdir()}
    ours, theirs = (checkpoint.read(out / "last.ckpt")[1] for out in (together, alone))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    # every environment began with the draws that it has on one device
    drawn = [k for k in ours if k.startswith("world") and "episode_key" in k]
    assert drawn and all(np.array_equal(ours[k], theirs[k]) for k in drawn)


def test_a_run_of_two_processes_goes_on_with_one_and_the_other_way_round(command, together, alone, tmp_path):
    for source, name in ((together, "one"), (alone, "two")):
        out = tmp_path / name
        out.mkdir()
        for file in ("last.ckpt", "metrics.jsonl", "config.yaml"):
            (out / file).write_bytes((source / file).read_bytes())
        more = ("--resume", "--set", f"run.total_steps={6 * STEPS}")
        for process in both(command, out, *more) if name == "two" else [start(command, out, *more)]:
            ended(process)
    assert_same(rows(tmp_path / "two"), rows(tmp_path / "one"))


def test_processes_of_two_tasks_refuse_to_begin(short, tmp_path):
    shared = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2")
    shared += ("--set", f"run.total_steps={STEPS}")  # if they began, it would soon be over
    out = tmp_path / "run"
    several = [
        start(short, out, *shared, "--process", str(i), "--set", f"randomizations.kp.factor=[0.9,1.{i + 1}]")
        for i in range(2)
    ]
    said = [ended(process, 1)[1].strip().splitlines()[-1] for process in several]
    assert sorted("has another task than the others" in line for line in said) == [False, True]
    assert sum("another process of this run refuses to begin" in line for line in said) == 1
    assert not (out / "last.ckpt").exists()


@pytest.mark.skipif(len(cores()) < 2, reason="a core for each of two processes")
def test_processes_that_are_started_here_say_once_what_is_wrong_and_leave_none_behind(command, alone, tmp_path):
    _, err = ended(start(command, alone, "--processes", "2"), 1)
    assert err.count("holds a run already") == 1 and "another process" not in err
    most = len(cores())
    for more, why in (
        (("--processes", "2", "--set", "ppo.envz=3"), "'ppo.envz' is unknown"),
        (("--processes", str(most + 1)), f"--processes: got {most + 1}, expected at most {most}: a core for each"),
        (("--process", "1"), "--process: got 1, expected --distributed too"),
    ):
        _, err = ended(start(command, tmp_path / "run", *more), 1)
        assert err.count("ksim train: ") == 1 and why in err
    assert not (tmp_path / "run").exists() and others_of(tmp_path) == others_of(alone) == []


@pytest.mark.skipif(len(cores()) < 2, reason="a core for each of two processes")
@pytest.mark.parametrize("which", ["the other", "the first"])
def test_ctrl_c_and_a_death_of_one_that_was_started_here_end_both(bare, tmp_path, which):
    out = tmp_path / "run"
    first = start(bare, out, "--set", f"run.total_steps={10**6 * STEPS}", "--processes", "2")
    until = time.monotonic() + 200
    while not (out / "last.ckpt").exists():
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.2)
    (other,) = (pid for pid in others_of(out) if pid != first.pid)
    assert not set(os.sched_getaffinity(first.pid)) & set(os.sched_getaffinity(other)), "each has cores of its own"
    if which == "the first":
        first.send_signal(signal.SIGINT)
        ended(first, 128 + signal.SIGINT)
    else:
        os.kill(other, signal.SIGKILL)
        _, err = ended(first, 1)
        assert "a process of this run is gone" in err.strip().splitlines()[-1]
    assert others_of(out) == []


def test_a_process_that_dies_ends_the_run_with_one_line_and_a_checkpoint_that_goes_on(bare, tmp_path):
    out = tmp_path / "run"
    first, second = both(bare, out, "--set", f"run.total_steps={10**6 * STEPS}")
    until = time.monotonic() + 200
    while not (out / "last.ckpt").exists():
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.2)
    os.kill(second.pid, signal.SIGKILL)
    _, err = ended(first, 1)
    second.communicate()
    line = err.strip().splitlines()[-1]
    assert line.startswith("ksim train: a process of this run is gone") and "--resume" in line
    assert "Traceback" not in err
    meta, _ = checkpoint.read(out / "last.ckpt")
    steps = meta["progress"]["steps"]
    assert steps and steps % STEPS == 0


def test_what_one_process_refuses_ends_all_of_them(command, alone):
    first, second = both(command, alone)
    _, err = ended(first, 1)
    assert "holds a run already" in err.strip().splitlines()[-1]
    _, err = ended(second, 1)
    assert "another process of this run refuses to begin" in err.strip().splitlines()[-1]


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(bare, tmp_path):
    out = tmp_path / "run"
    processes = both(bare, out, "--set", f"run.total_steps={10**6 * STEPS}")
    until = time.monotonic() + 200
    while not (out / "last.ckpt").exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        ended(process, 128 + signal.SIGTERM)
    assert (out / "model.ckpt").exists()


def test_environments_that_cannot_be_shared_out_are_refused(short, tmp_path):
    _, err = ended(start(short, tmp_path / "run", "--set", "ppo.envs=9", devices=2), 1)
    assert "ppo.envs: got 9, expected a multiple of the 2 devices" in err
    with pytest.raises(ConfigError, match="multiple"):
        World(mesh=_Three()).local(8)


class _Three:
    size = 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--process", "1"), "process: got 1, expected --distributed too"),
        (("--distributed",), "--coordinator HOST:PORT --processes N --process I"),
    ],
)
def test_who_a_process_is_has_to_be_told(command, tmp_path, options, said):
    _, err = ended(start(command, tmp_path / "run", *options), 1)
    assert said in err.strip().splitlines()[-1]
