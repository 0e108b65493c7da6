"""`ksim average`: the mean of networks that went on from the same ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ksim.average import average
from ksim.cli import main
from ksim.errors import CheckpointError
from ksim.evaluate import evaluate, load_policy
from ksim.learning import checkpoint
from ksim.train import train
from tests.ksim.few_terms import few_terms


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """(first, second), which went on from it, and one with a wider network."""
    out = tmp_path_factory.mktemp("runs")
    one = dataclasses.replace(config.run, total_steps=config.ppo.envs * config.ppo.rollout_steps)
    task = few_terms(config, run=one)
    first = train(task, out / "first").checkpoint
    second = train(dataclasses.replace(task, seed=3), out / "second", init=first).checkpoint
    wide = dataclasses.replace(task, policy=dataclasses.replace(task.policy, hidden=12))
    return first, second, train(wide, out / "wide").checkpoint


def arrays(path):
    return checkpoint.read(path)[1]


def test_the_mean_counts_a_checkpoint_as_often_as_it_is_named(runs, tmp_path):
    first, second, _ = runs
    average([first, second, second], tmp_path / "mean.ckpt")
    mean, a, b = arrays(tmp_path / "mean.ckpt"), arrays(first), arrays(second)
    assert mean.keys() == a.keys()
    moved = [name for name in a if not np.array_equal(a[name], b[name])]
    assert moved
    for name in a:
        np.testing.assert_allclose(mean[name], (a[name] + 2.0 * b[name]) / 3.0, rtol=1e-6, atol=1e-9)
        assert mean[name].dtype == a[name].dtype


def test_the_mean_is_run_like_any_checkpoint_and_says_what_it_is_of(runs, tmp_path, capsys):
    first, second, _ = map(str, runs)
    out = tmp_path / "mean.ckpt"
    last = runs[1].parent / "last.ckpt"
    assert main(["average", first, str(last), "-o", str(out)]) == 0
    assert capsys.readouterr().err == f"wrote {out}\n"
    config, policy = load_policy(str(out))
    assert evaluate(config, policy, episodes=2, seed=1).lengths_s.min() > 0.0
    meta, _ = checkpoint.read(out)
    digests = [checkpoint.Start.read(path).origin["weights_digest"] for path in (first, second)]
    assert meta["mean_of"] == digests
    # the first gives the rest; and one of a run's state gives the networks alone
    assert main(["average", str(last), first, "-o", str(out)]) == 0
    assert arrays(out).keys() == arrays(first).keys()


def test_networks_of_another_shape_are_refused_and_nothing_is_written(runs, tmp_path, capsys):
    first, _, wide = runs
    out = tmp_path / "mean.ckpt"
    with pytest.raises(CheckpointError, match=r"its policy.hidden: 12; that of .*: 8; they must be the same"):
        average([first, wide], out)
    louder = tmp_path / "louder.ckpt"
    meta, networks = checkpoint.read(first)
    policy = {**meta["config"]["policy"], "action_scale": 0.5}
    kept = {k: v for k, v in meta.items() if k != "format"} | {"config": {**meta["config"], "policy": policy}}
    checkpoint.write(louder, kept, networks)
    with pytest.raises(CheckpointError, match=r"louder.ckpt: its policy.action_scale: 0.5; that of .*: 1.0; they must"):
        average([first, louder], out)
    with pytest.raises(SystemExit):
        main(["average", str(first), "-o", str(out)])
    assert "got one checkpoint" in capsys.readouterr().err
    assert main(["average", str(first), str(tmp_path / "none.ckpt"), "-o", str(out)]) == 1
    assert "no such file" in capsys.readouterr().err and not out.exists()
    # of two robots or of other commands there is no mean, and the line names the two files
    other = {
        **meta["config"],
        "commands": {"xvel": {**next(iter(meta["config"]["commands"].values())), "range": [0, 2]}},
    }
    checkpoint.write(louder, kept | {"config": other}, networks)
    with pytest.raises(CheckpointError, match=rf"louder.ckpt: its commands: .*; {first} has .*; they must be the same"):
        average([first, louder], out)


def test_a_folder_in_place_of_the_file_is_named_as_it_was_given(runs, tmp_path, capsys):
    first, *_ = runs
    assert main(["average", str(first), str(first), "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"ksim average: {tmp_path}: Is a directory; expected a file")
    assert not list(tmp_path.iterdir())
