"""Training as a person runs it: what it writes, what it refuses, and that a killed run goes on to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
import yaml

from ksim import checkpoint
from ksim.config import load_config
from ksim.errors import TrainingError
from ksim.train import Trainer, train

UPDATES = 20


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
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
    done = ksim("train", "--config", config_file, "--out", out, "--resume", "--set", "noise.gyro_rad_s=0.7")
    assert done.returncode == 1 and done.stdout == ""
    assert "noise" in done.stderr and done.stderr.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run_with_its_update_and_a_remedy(config, environment):
    trainer = Trainer(config, environment)
    learner, batch, seen, progress = trainer.start()
    learner = learner._replace(scale=learner.scale._replace(mean=np.float32(np.nan), weight=np.float32(1.0)))
    with pytest.raises(
        TrainingError, match=r"update 1: the loss is nan; expected a finite number: lower ppo"
    ) as caught:
        trainer.iterate(learner, batch, seen, progress)
    assert "\n" not in str(caught.value)


def test_progress_counts_survival_over_ended_episodes(config, environment):
    trainer = Trainer(config, environment)
    full = environment.task.episode_steps
    _, _, _, progress = trainer.start()
    # weight 0.5 / 4: one fall at half length, then one that lasted
    after = trainer._progress(progress, [(full / 2, 1.0, False), (full / 2, 2.0, True)])
    assert after.survival == pytest.approx(0.125)
    assert after.length_share == pytest.approx(0.0625 + 0.125 * (1 - 0.0625))
    assert after.episode_return == pytest.approx(0.125 + 0.125 * (2 - 0.125))
    assert (after.updates, after.steps) == (1, 16)


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


def test_control_c_ends_training_after_the_update_with_a_checkpoint_to_go_on_from(ksim, config_file, tmp_path):
    out = tmp_path / "stopped"
    arguments = ("train", "--config", config_file, "--out", out)
    process = ksim(*arguments, "--set", "run.total_steps=1000000", wait=False)
    rows, deadline = out / "metrics.jsonl", time.monotonic() + 500
    while not rows.exists() or rows.read_text().count("\n") < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    done = [json.loads(line)["updates"] for line in rows.read_text().splitlines()][-1]
    for name in ("last.ckpt", "model.ckpt"):
        assert checkpoint.read(out / name)[0]["progress"]["updates"] == done


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "gru", "layers": 2, "target_speed": 0.5},
        {"network": "mlp", "layers": 1, "history": 2, "normalise": True},
    ],
    ids=lambda settings: settings["network"],
)
def test_every_network_trains_and_its_checkpoint_gives_the_same_policy(config, environment, tmp_path, settings):
    changed = dataclasses.replace(config, policy=dataclasses.replace(config.policy, **settings))
    trainer = Trainer(changed, environment)
    state = trainer.start()
    before = checkpoint.model_arrays(state[0].model)
    for _ in range(2):
        *state, _ = trainer.iterate(*state)
    learner, batch, seen, progress = state
    after = checkpoint.model_arrays(learner.model)
    still = [k for k in before if np.array_equal(before[k], after[k])]
    assert still == [], "every weight moves"
    if settings.get("normalise"):
        assert float(learner.model.actor.normaliser.count) == 2 * 4 * 4  # updates, steps, environments
    trainer.save_model(tmp_path / "model.ckpt", learner, progress)
    policy = checkpoint.load_trained(tmp_path / "model.ckpt").policy
    inputs = {k: v[0] for k, v in seen.inputs.items()}
    ours, theirs = (p.step(inputs, p.init_carry())[0] for p in (trainer.policy(learner.model), policy))
    np.testing.assert_array_equal(ours, theirs)
    # and a run of it goes on
    trainer.save(tmp_path / "last.ckpt", learner, batch, seen, progress)
    again, *_ = trainer.restore(tmp_path / "last.ckpt")
    np.testing.assert_array_equal(again.carry, learner.carry)
