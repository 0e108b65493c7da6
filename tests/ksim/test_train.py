"""Training as a person runs it: what it writes, what it refuses, and that a killed run goes on to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
import types

import jax
import numpy as np
import pytest
import yaml

from ksim.curriculum import FixedCurriculum
from ksim.errors import CheckpointError, ConfigError, TrainingError
from ksim.learning import checkpoint, ppo
from ksim.learning.policy import make_model
from ksim.learning.trainer import Progress, Trainer
from ksim.load import load_config
from ksim.metrics import seconds_until
from ksim.train import train
from ksim.train_command import _program, _resumed
from tests.ksim.few_terms import few_terms
from toolkit.errors import FileError
from toolkit.files import locked, shipped_policy
from toolkit.settings import apply_overrides

UPDATES = 20


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def few_file(config, tmp_path_factory):
    """The task with few terms: for runs that are ended."""
    path = tmp_path_factory.mktemp("config") / "few.yaml"
    path.write_text(yaml.safe_dump(few_terms(config, randomizations={}).to_dict()))
    return path


@pytest.fixture(scope="module")
def whole(ksim, config_file, tmp_path_factory):
    """An unbroken run: (folder, finished process)."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, ksim("train", "--config", config_file, "--out", out, "--json")


def test_a_run_writes_its_checkpoints_figures_and_configuration(whole, config, config_file):
    out, done = whole
    assert done.returncode == 0, done.stderr
    assert {"model.ckpt", "last.ckpt", "metrics.jsonl", "config.yaml", "tensorboard"} == {p.name for p in out.iterdir()}
    assert load_config(out / "config.yaml") == config == load_config(config_file)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [16 * (i + 1) for i in range(UPDATES)]
    assert all(np.isfinite(row["loss"]) and "reward/alive" in row for row in rows)
    assert any(p.name.startswith("events.out.tfevents") and p.stat().st_size for p in (out / "tensorboard").iterdir())
    trained = checkpoint.load_trained(out / "model.ckpt")
    assert trained.meta["progress"]["updates"] == UPDATES and trained.config == config


def test_stdout_is_exactly_one_json_object(whole):
    out, done = whole
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert answer["checkpoint"] == str(out / "model.ckpt")
    assert (answer["updates"], answer["steps"], answer["stopped_by"]) == (UPDATES, 16 * UPDATES, "total_steps")


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_resumed_ends_in_the_bytes_of_an_unbroken_run(
    whole, ksim, config_file, tmp_path
):
    reference, _ = whole
    out = tmp_path / "killed"
    arguments = ("train", "--config", config_file, "--out", out)
    # long enough that it is killed in the middle; run.* is not part of what is learned, nor of what is compared
    process = ksim(*arguments, "--set", "run.total_steps=1000000", wait=False)
    rows, deadline = out / "metrics.jsonl", time.monotonic() + 500
    try:
        while not (out / "last.ckpt").exists() or rows.read_text().count("\n") < 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = checkpoint.read(out / "last.ckpt")[0]["progress"]["updates"]
    assert saved >= 2 and not (out / "model.ckpt").exists()
    if saved >= UPDATES:
        pytest.fail(f"killed too late: {saved} updates were saved")
    done = ksim(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    for name in ("model.ckpt", "last.ckpt"):
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    steps = [json.loads(line)["steps"] for line in rows.read_text().splitlines()]
    assert steps == [16 * (i + 1) for i in range(UPDATES)]
    assert not list(out.glob(".*.part"))


def test_a_folder_that_holds_a_run_is_not_overwritten(whole, config):
    out, _ = whole
    before = (out / "model.ckpt").read_bytes()
    with pytest.raises(TrainingError, match="use --resume"):
        train(config, out)
    assert (out / "model.ckpt").read_bytes() == before


def test_there_must_be_something_to_resume(config, tmp_path):
    with pytest.raises(TrainingError, match=r"no last\.ckpt to resume from"):
        train(config, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_resuming_with_another_configuration_names_the_key(whole, ksim, config_file):
    out, _ = whole
    done = ksim(
        "train", "--config", config_file, "--out", out, "--resume", "--set", "observations.gyroscope.noise.std=0.7"
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "other values of observations.gyroscope.noise.std; use" in done.stderr and done.stderr.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run_with_its_update_and_a_remedy(config, environment):
    trainer = Trainer(config, environment)
    learner, batch, progress = trainer.start()
    learner = learner._replace(scale=learner.scale._replace(mean=np.float32(np.nan), weight=np.float32(1.0)))
    with pytest.raises(
        TrainingError, match=r"update 1: the loss is nan; expected a finite number: lower ppo"
    ) as caught:
        trainer.iterate(learner, batch, progress)
    assert "\n" not in str(caught.value)


def test_progress_counts_survival_over_ended_episodes(config, environment):
    trainer = Trainer(config, environment)
    # one fell at half length with a return of 1, one lasted with 2, 3 m away: each counts 0.5 / 4
    sums = {
        "ended": 2.0,
        "ended/length_share": 1.5,
        "ended/survival": 1.0,
        "ended/episode_return": 3.0,
        "ended/distance_m": 3.0,
    }
    # the first average is of these two alone, and too few to move the level
    first = trainer._progress(Progress(told=0.0, level=0.3), {**sums, "ended/survival": 2.0})
    assert first.survival == pytest.approx(1.0) and first.length_share == pytest.approx(0.75)
    few = trainer._progress(Progress(told=0.0, level=0.3), {**sums, "ended": 1.0, "ended/survival": 1.0})
    assert few.told == pytest.approx(0.125) and few.level == 0.3 and first.level > 0.3
    after = trainer._progress(Progress(), sums)
    weight = 1 - (1 - 0.125) ** 2
    assert after.survival == pytest.approx(0.5 * weight) and after.length_share == pytest.approx(0.75 * weight)
    assert after.episode_return == pytest.approx(1.5 * weight) and after.distance_m == pytest.approx(1.5 * weight)
    assert (after.updates, after.steps) == (1, 16)


def test_a_finished_run_is_told_at_once_and_nothing_is_compiled(whole, config, tmp_path, monkeypatch):
    import shutil

    out, said = tmp_path / "finished", []
    shutil.copytree(whole[0], out)
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    (out / "model.ckpt").unlink()  # as where a run was killed just before it
    monkeypatch.setattr("ksim.train.Trainer", lambda _: pytest.fail("compiled"))
    result = train(config, out, resume=True, say=said.append)
    assert (result.updates, result.steps, result.stopped) == (UPDATES, 16 * UPDATES, "total_steps")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == files
    (line,) = said
    assert "this run is finished" in line and line.endswith("to go on: --set run.total_steps=MORE")
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert result.seconds == rows[-1]["seconds"]
    brief = dataclasses.replace(config.run, total_steps=10**6, max_minutes=1e-6)
    result = train(dataclasses.replace(config, run=brief), out, resume=True, say=said.append)
    assert result.stopped == "max_minutes" and said[-1].endswith("--set run.max_minutes=MORE")


def test_a_name_that_no_checkpoint_can_hold_is_no_configuration(config):
    for robot in ("\udcff", "x\x1b"):
        with pytest.raises(ConfigError, match=r"configuration key robot: got the character .* expected plain text"):
            dataclasses.replace(config, robot=robot)


def test_the_next_command_is_that_of_the_program_that_trained(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/bin/ksim", "train"])
    assert _program() == "ksim"
    monkeypatch.setattr(sys, "argv", ["own tasks.py", "train"])
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert _program() == "python 'own tasks.py'"


def test_extending_a_finished_run_goes_on_from_where_it_ended(whole, ksim, config_file, tmp_path, config):
    import shutil

    out = tmp_path / "longer"
    shutil.copytree(whole[0], out)
    more = 16 * (UPDATES + 2)
    done = ksim(
        "train", "--config", config_file, "--out", out, "--resume", "--set", f"run.total_steps={more}", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["updates"] == UPDATES + 2
    assert checkpoint.load_trained(out / "model.ckpt").config == dataclasses.replace(
        config, run=dataclasses.replace(config.run, total_steps=more)
    )


def running(ksim, config_file, out, rows=3, **options):
    """A training process that has written some rows."""
    arguments = ("train", "--config", config_file, "--out", out, "--set", "run.total_steps=1000000")
    process = ksim(*arguments, wait=False, **options)
    figures, deadline = out / "metrics.jsonl", time.monotonic() + 500
    while not figures.exists() or figures.read_text().count("\n") < rows:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_training_after_the_update_with_a_checkpoint_to_go_on_from(ksim, few_file, tmp_path, number):
    out = tmp_path / "stopped"
    process = running(ksim, few_file, out)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    done = [json.loads(line)["updates"] for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    for name in ("last.ckpt", "model.ckpt"):
        assert checkpoint.read(out / name)[0]["progress"]["updates"] == done
    assert not (out / ".lock").exists()


def test_a_terminal_that_goes_away_does_not_take_the_run_with_it(ksim, few_file, tmp_path):
    out = tmp_path / "hung_up"
    process = running(ksim, few_file, out)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert (out / "model.ckpt").exists()


def test_a_second_training_into_a_folder_is_refused_until_the_first_ends_however_it_ends(ksim, few_file, tmp_path):
    out = tmp_path / "shared"
    process = running(ksim, few_file, out)
    try:
        while not (out / "last.ckpt").exists():
            time.sleep(0.01)
        done = ksim("train", "--config", few_file, "--out", out, "--set", "run.total_steps=1000000", "--resume")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "another training is writing here" in done.stderr
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    # nobody removed the lock's file, and what was being written may lie there
    assert (out / ".lock").exists()
    (out / ".last.ckpt.abc123.part").write_bytes(b"half")
    steps = 16 * (checkpoint.read(out / "last.ckpt")[0]["progress"]["updates"] + 1)
    done = ksim("train", "--config", few_file, "--out", out, "--resume", "--set", f"run.total_steps={steps}")
    assert done.returncode == 0, done.stderr
    assert not list(out.glob(".*"))


def test_two_in_one_process_are_kept_apart_too_and_an_empty_folder_does_not_stay(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder, "training"):
        assert (folder / ".lock").exists()
        with pytest.raises(FileError, match="another training is writing here"), locked(folder, "training"):
            pass
        assert (folder / ".lock").exists()
    assert not (tmp_path / "a").exists()
    with locked(folder, "training"):
        (folder / "kept").touch()
    assert [p.name for p in folder.iterdir()] == ["kept"]
    with pytest.raises(FileError, match="kept: is a file; expected a folder"), locked(folder / "kept", "training"):
        pass
    with pytest.raises(NotADirectoryError), locked(folder / "kept" / "c", "training"):
        pass


def test_an_out_that_is_a_file_is_refused_before_anything_is_compiled(config, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("here already")
    monkeypatch.setattr("ksim.train.Trainer", lambda _: pytest.fail("compiled"))
    with pytest.raises(FileError, match="is a file; expected a folder; name another --out"):
        train(config, path)
    assert path.read_text() == "here already"


def test_a_checkpoint_that_does_not_fit_its_own_description_is_one_line(whole, config, tmp_path):
    import shutil

    out = tmp_path / "altered"
    shutil.copytree(whole[0], out)
    meta, arrays = checkpoint.read(out / "last.ckpt")
    del meta["format"], arrays["physics.rows"]
    checkpoint.write(out / "last.ckpt", meta, arrays)
    longer = dataclasses.replace(config, run=dataclasses.replace(config.run, total_steps=10**6))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: does not fit its own description \(KeyError: 'rows'\)"):
        train(longer, out, resume=True)
    checkpoint.write(out / "last.ckpt", {**meta, "config": {"seed": "x"}}, arrays)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        _resumed(config, out / "last.ckpt")


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "gru", "layers": 2, "target_speed": 0.5},
        {"network": "mlp", "layers": 1, "history": 2, "normalise": True},
    ],
    ids=lambda settings: settings["network"],
)
def test_every_network_trains_and_its_checkpoint_gives_the_same_policy(config, environment, tmp_path, settings):
    ppo_config = dataclasses.replace(config.ppo, average=0.75)
    changed = dataclasses.replace(config, policy=dataclasses.replace(config.policy, **settings), ppo=ppo_config)
    trainer = Trainer(changed, environment)
    state = trainer.start()
    passed = [checkpoint.model_arrays(state[0].model)]
    for _ in range(2):
        *state, _ = trainer.iterate(*state)
        passed.append(checkpoint.model_arrays(state[0].model))
    (learner, batch, progress), (before, first, after) = state, passed
    still = [k for k in before if np.array_equal(before[k], after[k])]
    assert still == [], "every weight moves"
    if settings.get("normalise"):
        assert float(learner.model.actor.normaliser.count) == 2 * 4 * 4  # updates, steps, environments
    trainer.save_model(tmp_path / "model.ckpt", learner, progress)
    saved = checkpoint.read(tmp_path / "model.ckpt")[1]
    for name, last in after.items():
        # the mean of both updates, though 0.75 is asked for: there are only two; what is counted is counted to the end
        steady = "actor" in name and "normaliser" not in name
        np.testing.assert_allclose(saved[name], 0.5 * (first[name] + last) if steady else last, atol=1e-7)
    policy = checkpoint.load_trained(tmp_path / "model.ckpt").policy
    _, seen = trainer.env.look(batch.physics, batch.params, batch.env, 1.0)
    inputs = {k: v[0] for k, v in seen.inputs.items()}
    ours, theirs = (p.step(inputs, p.init_carry())[0] for p in (trainer.policy(learner.steady), policy))
    np.testing.assert_array_equal(ours, theirs)
    # and a run of it goes on
    trainer.save(tmp_path / "last.ckpt", learner, batch, progress)
    again, *_ = trainer.restore(tmp_path / "last.ckpt")
    np.testing.assert_array_equal(again.carry, learner.carry)
    np.testing.assert_array_equal(again.mean.log_std, learner.mean.log_std)


def test_a_run_starts_with_the_networks_of_another_and_says_so_to_the_bundle(whole, config, environment, tmp_path):
    first, _ = whole
    origin = checkpoint.load_trained(first / "model.ckpt")
    # what a start may change: how targets are limited, rewards, physics; the resumable file has the same networks
    slower = dataclasses.replace(config, policy=dataclasses.replace(config.policy, target_speed=0.5), seed=5)
    for name in ("model.ckpt", "last.ckpt"):
        trainer = Trainer(slower, environment)
        learner, batch, progress = trainer.start_from(checkpoint.Start.read(first / name))
        assert checkpoint.weights_digest(checkpoint.model_arrays(learner.model)) == origin.spec.weights_digest
        assert float(learner.scale.weight) > 0, "the critic's values keep their scale"
        saved = checkpoint.read(first / "model.ckpt")[0]["progress"]
        assert progress.level == saved["level"] > 0 and (progress.steps, progress.updates) == (0, 0)
    fixed = dataclasses.replace(checkpoint.Start.read(first / name).config, curriculum=FixedCurriculum())
    given = dataclasses.replace(checkpoint.Start.read(first / name), config=fixed)
    assert trainer.start_from(given)[2].level == 0.0, "a level that was fixed was not reached"
    learner, batch, progress, _ = trainer.iterate(learner, batch, progress)
    trainer.save_model(tmp_path / "model.ckpt", learner, progress)
    trainer.save(tmp_path / "last.ckpt", learner, batch, progress)
    told = {"weights_digest": origin.spec.weights_digest, "steps": saved["steps"]}
    trained = checkpoint.load_trained(tmp_path / "model.ckpt")
    assert trained.spec.training["started_from"] == told and trained.spec.training["steps"] == progress.steps
    assert "started_from" not in origin.spec.training
    # a resumed run keeps where it started, and a start from it tells both
    resumed = Trainer(slower, environment)
    resumed.restore(tmp_path / "last.ckpt")
    assert resumed.meta(learner, progress)["started_from"] == told
    third = checkpoint.Start.read(tmp_path / "model.ckpt").origin
    assert third["started_from"] == told and third["steps"] == progress.steps


@pytest.mark.parametrize("critic", ["lstm", "mlp"])
def test_a_critic_that_sees_more_or_one_term_less_keeps_what_it_learned(config, built, tmp_path, critic):
    """By the value itself, on a vector in which the terms stand in other places."""
    old = dataclasses.replace(config, policy=dataclasses.replace(config.policy, critic=critic))
    sizes = {"joint_position": 20, "command": 3, "push": 3, "gyro": 3}
    vector = {name: np.random.default_rng(7).normal(size=size).astype(np.float32) for name, size in sizes.items()}

    def start_of(*names):
        task = dataclasses.replace(old, critic={name: config.critic[name] for name in names})
        width = sum(sizes[name] for name in names)
        return task, make_model(built.spec, width, task, None, key=jax.random.key(len(names)))

    def value(model, names):
        x = np.concatenate([vector[name] for name in names])
        return float(model.critic.net(x, np.zeros(model.critic.net.state_size, np.float32))[0][0])

    had = ("joint_position", "command", "gyro")
    task, model = start_of(*had)
    arrays = checkpoint.model_arrays(model)
    start = checkpoint.Start(path=tmp_path / "m", config=task, robot=built.spec, level=0.0, arrays=arrays, origin={})

    def carried(*names):
        task, fresh = start_of(*names)
        out, _, told = start.networks(fresh, ppo.ValueScale.start(), task, {name: sizes[name] for name in names})
        return out, told

    more = ("gyro", "push", "joint_position", "command")
    out, told = carried(*more)
    assert value(out, more) == pytest.approx(value(model, had), abs=1e-5) and told == "new to the critic: push"
    turned, told = carried("gyro", "command", "joint_position")
    assert value(turned, ("gyro", "command", "joint_position")) == pytest.approx(value(model, had), abs=1e-5)
    assert not told, "the same terms in another order are the same"
    less, told = carried("joint_position", "gyro")
    vector["command"] = np.zeros(3, np.float32)
    assert value(less, ("joint_position", "gyro")) == pytest.approx(value(model, had), abs=1e-5) and not told
    # of two that are gone, which column was whose cannot be told: it starts anew, and a person is told
    fresh, told = carried("joint_position", "push")
    assert told.startswith("the critic starts anew") and "(command, gyro)" in told
    assert value(fresh, ("joint_position", "push")) == value(
        start_of("joint_position", "push")[1], ("joint_position", "push")
    )


def test_a_start_that_does_not_fit_is_one_line_and_leaves_nothing(whole, ksim, config, config_file, tmp_path):
    model = whole[0] / "model.ckpt"
    (tmp_path / "half.ckpt").write_bytes(model.read_bytes()[:3000])
    meta, arrays = checkpoint.read(model)
    del meta["format"]
    broken = {k: v * np.float32(np.nan) if k.startswith("model") else v for k, v in arrays.items()}
    checkpoint.write(tmp_path / "nan.ckpt", meta, broken)
    checkpoint.write(tmp_path / "level.ckpt", {**meta, "progress": {**meta["progress"], "level": 3.0}}, arrays)
    out = tmp_path / "out"
    for init, sets, why in (
        (tmp_path / "none.ckpt", (), "no such file"),
        (tmp_path / "half.ckpt", (), "may be truncated"),
        (whole[0], (), r"is a folder, expected a checkpoint; did you mean .*model\.ckpt"),
        (tmp_path, (), "is a folder, expected a checkpoint; name a file in it"),
        (shipped_policy("stand", ".kinfer"), (), "is a .kinfer bundle; expected a checkpoint"),
        (tmp_path / "nan.ckpt", (), "not finite"),
        (tmp_path / "level.ckpt", (), "level 3.0, expected 0 to 1"),
        (model, ("policy.hidden=9",), "its policy.hidden: 8; this run has 9"),
        (model, ("policy.hold=[wrist]",), "its policy.hold"),
        (model, ("commands={xvel: [0, 1]}",), r"its commands: \['xvel', 'yawrate'\]"),
    ):
        with pytest.raises(CheckpointError, match=why) as caught:
            train(apply_overrides(config, sets), out, init=init)
        assert "\n" not in str(caught.value) and str(init) in str(caught.value)
        assert not out.exists()
    for flags, code in ((("--init", model, "--resume"), 2), (("--init", ""), 1)):
        done = ksim("train", "--config", config_file, "--out", out, *flags)
        assert done.returncode == code and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert not out.exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "model.ckpt"])
def test_a_file_that_training_would_replace_keeps_it_out_of_the_folder(config, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(TrainingError, match=f"holds {name}, which training would replace; name another --out"):
        train(config, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_damaged_rows_of_the_figures_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    odd = [
        b"[1]",
        b"3",
        b"null",
        b'{"a": 1}',
        b'{"steps": "x", "seconds": 1}',
        b'{"steps": 1, "seconds": null}',
        b"\xff",
    ]
    path.write_bytes(b"\n".join([b'{"steps": 16, "seconds": 2.5}', *odd, b'{"steps": 32, "seconds": 5.0}', b""]))
    assert seconds_until(path, 16) == (2.5, ['{"steps": 16, "seconds": 2.5}'])
    assert seconds_until(path, 99)[0] == 5.0
