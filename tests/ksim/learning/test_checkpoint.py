"""Checkpoints: what is written comes back to the bit, and what is damaged is one line."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

from ksim.clock import GaitClock
from ksim.commands import UniformCommand
from ksim.errors import CheckpointError, KsimError
from ksim.learning import checkpoint
from ksim.learning.description import described
from ksim.learning.policy import make_model
from ksim.load import from_dict
from robots.spec import RobotSpec, digest

# what the first version of this toolkit shipped
FIRST = Path(__file__).parents[2] / "first_version"

ARRAYS = {
    "model.w": np.array([[1.5, -0.0], [np.float32(1e-40), np.inf]], np.float32),
    "world.key": np.array([1, 2**32 - 1], np.uint32),
    "scalar": np.array(0.1),
    "empty": np.zeros((0, 3), np.float32),
    "flag": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "a.ckpt"
    checkpoint.write(target, {"name": "x", "numbers": [0.1, 2]}, ARRAYS)
    return target


def test_what_is_written_comes_back_to_the_bit(path):
    meta, arrays = checkpoint.read(path)
    # the digest is of the rest, as JSON without spaces
    weights = checkpoint.weights_digest(ARRAYS)
    said = b'{"format":2,"name":"x","numbers":[0.1,2],"weights":"' + weights.encode() + b'"}'
    digest = hashlib.sha256(said).hexdigest()
    assert meta == {"format": 2, "name": "x", "numbers": [0.1, 2], "weights": weights, "digest": digest}
    assert set(arrays) == set(ARRAYS)
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype and arrays[name].shape == value.shape
        assert arrays[name].tobytes() == value.tobytes()


def test_the_same_content_is_the_same_bytes_in_whatever_order_the_arrays_are_given(path, tmp_path):
    other = tmp_path / "b.ckpt"
    checkpoint.write(other, {"name": "x", "numbers": [0.1, 2]}, dict(reversed(ARRAYS.items())))
    assert other.read_bytes() == path.read_bytes()
    checkpoint.write(other, {"name": "x", "numbers": [0.1, 3]}, ARRAYS)
    assert other.read_bytes() != path.read_bytes()


def test_reading_the_model_only_leaves_the_rest_in_the_file(path):
    assert set(checkpoint.read(path, wanted=("model",))[1]) == {"model.w"}


def rewritten(path, change):
    """The checkpoint with `change(members)` done to its files."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


DAMAGE = {
    "missing": lambda p: p.unlink(),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "empty": lambda p: p.write_bytes(b""),
    "garbage": lambda p: p.write_bytes(b"garbage" * 100),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "without its last byte": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "without meta": lambda p: rewritten(p, lambda m: m.pop("meta.json")),
    "meta not JSON": lambda p: rewritten(p, lambda m: m.update({"meta.json": b"{"})),
    "meta a list": lambda p: rewritten(p, lambda m: m.update({"meta.json": b"[]"})),
    "another format": lambda p: rewritten(p, lambda m: m.update({"meta.json": json.dumps({"format": 3}).encode()})),
    "no format": lambda p: rewritten(p, lambda m: m.update({"meta.json": b"{}"})),
    "an array cut short": lambda p: rewritten(
        p, lambda m: m.update({"arrays/model.w.npy": m["arrays/model.w.npy"][:-1]})
    ),
    "a pickled array": lambda p: rewritten(p, lambda m: m.update({"arrays/model.w.npy": pickled()})),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_that_names_the_file(path, name):
    DAMAGE[name](path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_flipped_bit_in_an_array_is_found(path):
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("arrays/model.w.npy")
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        checkpoint.read(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"[Oo]bject arrays|pickle"):
        checkpoint.write(path, {}, {"bad": np.array([object()], dtype=object)})
    with pytest.raises(CheckpointError, match="could not be read again"):
        checkpoint.write(path, {"bad": float("nan")}, {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_fill_gives_the_leaves_back_with_random_keys_and_refuses_what_does_not_fit():
    tree = {"a": np.arange(3.0, dtype=np.float32), "key": jax.random.key(7), "text": "kept"}
    arrays = checkpoint.named_leaves(tree, "t")
    blank = {"a": np.zeros(3, np.float32), "key": jax.random.key(0), "text": "kept"}
    again = checkpoint.fill(blank, "t", arrays)
    assert np.array_equal(again["a"], tree["a"]) and again["text"] == "kept"
    assert np.array_equal(jax.random.key_data(again["key"]), jax.random.key_data(tree["key"]))
    for name, value in (("t['a']", np.zeros(4, np.float32)), ("t['a']", np.zeros(3, np.float64))):
        with pytest.raises(CheckpointError, match="expected"):
            checkpoint.fill(blank, "t", {**arrays, name: value})
    with pytest.raises(CheckpointError, match=r"no array t\['a'\]"):
        checkpoint.fill(blank, "t", {k: v for k, v in arrays.items() if k != "t['a']"})


def test_a_trained_policy_comes_back_with_its_weights_spec_and_configuration(trained, model, config, built):
    ours, theirs = checkpoint.model_arrays(model), checkpoint.named_leaves(trained.policy.actor, "model.actor")
    assert theirs and all(np.array_equal(ours[name], value) for name, value in theirs.items())
    assert trained.config == config
    spec = trained.spec
    assert spec.robot == built.spec and spec.command_names == ("xvel", "yawrate") and spec.carry_size == 72
    assert spec.config_digest == config.digest and spec.weights_digest == checkpoint.weights_digest(ours)
    assert spec.action_low_rad == tuple(built.spec.column("lower_rad"))


def test_the_weights_digest_changes_with_any_weight_and_with_nothing_else(model):
    arrays = checkpoint.model_arrays(model)
    digest = checkpoint.weights_digest(arrays)
    assert digest == checkpoint.weights_digest({**dict(reversed(arrays.items())), "lengths": np.ones(3)})
    where = lambda m: m.critic.net.output_layer.bias  # noqa: E731
    nudged = eqx.tree_at(where, model, where(model) + 1e-7)
    assert digest != checkpoint.weights_digest(checkpoint.model_arrays(nudged))


def test_a_checkpoint_of_another_shape_or_of_no_policy_is_one_line(checkpoint_path, tmp_path):
    meta, arrays = checkpoint.read(checkpoint_path)
    del meta["format"]
    bad = tmp_path / "bad.ckpt"
    for change in (
        {"config": {**meta["config"], "policy": {**meta["config"]["policy"], "hidden": 9}}},
        {"config": {"ppoo": 1}},
        {"robot": {}},
    ):
        checkpoint.write(bad, {**meta, **change}, arrays)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_trained(bad)
        assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    checkpoint.write(bad, {k: v for k, v in meta.items() if k != "robot"}, arrays)
    with pytest.raises(CheckpointError, match="robot"):
        checkpoint.load_trained(bad)


def deflated(path, change):
    """The file with `change(bytes, start of the first array's compressed data, directory entry)` done to it."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("arrays/model.w.npy")
    start = info.header_offset + 30 + len(info.filename)
    entry = data.rindex(info.filename.encode()) - 46
    change(data, start, entry)
    path.write_bytes(data)


ZIP_DAMAGE = {
    # 7 in the first byte: a last block of a kind that there is not
    "a block of no kind (zlib.error)": lambda d, start, entry: d.__setitem__(start, 7),
    "a compression that there is not (NotImplementedError)": lambda d, start, entry: (
        d.__setitem__(entry + 10, 99), d.__setitem__(entry + 11, 0)
    ),
    "marked as encrypted (RuntimeError)": lambda d, start, entry: d.__setitem__(entry + 8, 1),
    "an offset beyond the file": lambda d, start, entry: d.__setitem__(
        slice(entry + 42, entry + 46), b"\xff\xff\xff\x7f"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIP_DAMAGE)
def test_whatever_a_damaged_zip_makes_its_reader_raise_is_one_line(path, name):
    deflated(path, ZIP_DAMAGE[name])
    with pytest.raises(CheckpointError, match="not a readable checkpoint") as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_every_single_flipped_bit_is_either_harmless_or_one_line(path):
    whole = path.read_bytes()
    reference = checkpoint.read(path)
    for at in range(0, len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
        try:
            meta, arrays = checkpoint.read(path)
        except CheckpointError:
            continue
        assert meta == reference[0]
        assert all(np.array_equal(arrays[k], reference[1][k], equal_nan=True) for k in arrays)


def altered(meta, **changes):
    out = json.loads(json.dumps({k: v for k, v in meta.items() if k != "format"}))
    for place, value in changes.items():
        *above, last = place.split("__")
        inside = out
        for name in above:
            inside = inside[name]
        inside[last] = value
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config__policy__head": -1}, "policy.head: got -1"),
        ({"config__ppo__minibatches": 0}, "ppo.minibatches: got 0"),
        ({"config__seed": 10**19}, "seed: got 1000"),
        ({"config": []}, "expected a mapping"),
        ({"robot_digest": "0" * 64}, "is altered"),
        ({"robot": None}, "expected a JSON object"),
    ],
)
def test_an_altered_description_is_one_line_that_names_the_file_and_what_it_holds(
    checkpoint_path, tmp_path, changes, words
):
    meta, arrays = checkpoint.read(checkpoint_path)
    bad = tmp_path / "bad.ckpt"
    checkpoint.write(bad, altered(meta, **changes), arrays)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_trained(bad)
    message = str(caught.value)
    assert message.startswith(str(bad)) and words in message and "\n" not in message and len(message) < 900


def test_a_checkpoint_whose_robot_lost_a_joint_is_not_run_on_the_whole_one(checkpoint_path, tmp_path):
    from ksim.evaluate import load_policy

    meta, arrays = checkpoint.read(checkpoint_path)
    out = altered(meta)
    out["robot"]["joints"].pop()
    out["robot_digest"] = digest(out["robot"])
    bad = tmp_path / "bad.ckpt"
    checkpoint.write(bad, out, arrays)
    with pytest.raises(KsimError, match=r"bad\.ckpt") as caught:
        load_policy(str(bad))
    assert "\n" not in str(caught.value)
    # and not where the networks fit: a joint that holds home is in none of them
    held = altered(meta, config__policy__hold=["wrist"])
    model = make_model(RobotSpec.from_json(held["robot"]), 5, from_dict(held["config"]), key=jax.random.key(0))
    last = held["robot"]["joints"].pop()
    held["robot_digest"] = digest(held["robot"])
    assert "wrist" in last["name"]
    checkpoint.write(bad, held, checkpoint.model_arrays(model))
    with pytest.raises(KsimError, match=f"trained for another robot than kbot: joint {last['name']} is unknown"):
        load_policy(str(bad))


def test_commands_come_back_in_the_order_in_which_the_policy_learned_them(built, config, tmp_path):
    spans = {"yawrate": (-1.0, 1.0), "xvel": (0.0, 1.0)}
    commands = {name: UniformCommand(name=name, range=span) for name, span in spans.items()}
    turned = dataclasses.replace(config, commands=commands)
    model = make_model(built.spec, 5, turned, key=jax.random.key(0))
    path = tmp_path / "model.ckpt"
    meta = {"config": turned.to_dict(), "robot": built.spec.to_json(), "robot_digest": built.spec.digest, "critic": 5}
    checkpoint.write(path, meta, checkpoint.model_arrays(model))
    back = checkpoint.load_trained(path)
    assert back.config.command_names == ["yawrate", "xvel"] == list(back.spec.command_names)


def described_anew(path, change, *, sign=True):
    """The file's description with `change(meta)` done to it; its digest anew, or left as it was."""

    def alter(members):
        meta = json.loads(members["meta.json"])
        change(meta)
        members["meta.json"] = described(meta) if sign else json.dumps(meta).encode()

    rewritten(path, alter)


def turned(meta):
    """The commands in another order; all else is the same."""
    commands = meta["config"]["commands"]
    meta["config"]["commands"] = dict(reversed(commands.items()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (turned, "not the digest"),
        (lambda m: m["config"]["policy"].update(action_scale=2.0), "not the digest"),
        (lambda m: m["robot"].update(mass_kg=99.0), "not the digest"),
        (lambda m: m.update(mirror={}), "not the digest"),
        (lambda m: m.pop("robot_digest"), "not the digest"),
        (lambda m: m.pop("digest"), "no digest in a checkpoint of format 2"),
        (lambda m: m.update(format=1), "a digest in a checkpoint of format 1"),
        (lambda m: m.update(format=True), "checkpoint format True"),
    ],
)
@pytest.mark.parametrize("reader", [checkpoint.load_trained, checkpoint.Start.read])
def test_a_description_that_was_altered_is_refused_in_one_line(checkpoint_path, tmp_path, change, words, reader):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(checkpoint_path.read_bytes())
    described_anew(bad, change, sign=False)
    with pytest.raises(CheckpointError, match=words) as caught:
        reader(bad)
    assert str(caught.value).startswith(f"{bad}: ") and "\n" not in str(caught.value)


def test_the_spaces_of_a_description_are_not_in_its_digest(checkpoint_path, tmp_path):
    same = tmp_path / "same.ckpt"
    same.write_bytes(checkpoint_path.read_bytes())
    described_anew(same, lambda m: None, sign=False)
    assert checkpoint.load_trained(same).meta == checkpoint.load_trained(checkpoint_path).meta


def test_a_checkpoint_of_the_first_format_has_no_digest_and_is_read():
    meta, _ = checkpoint.read(FIRST / "kbot_stand.ckpt", wanted=("nothing",))
    assert meta["format"] == 1 and "digest" not in meta


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ([1], r"progress \[1\], expected an object"),
        ({"steps": 1.5, "level": 0.0}, "steps 1.5, expected a whole number"),
        ({"steps": True, "level": 0.0}, "steps True, expected a whole number"),
        ({"steps": -1, "level": 0.0}, "steps -1, expected 0 or more"),
        ({"steps": 1, "level": "x"}, "level 'x', expected a number"),
        ({"steps": 1, "level": 1.5}, "level 1.5, expected 0 to 1"),
    ],
)
def test_progress_that_is_none_is_one_line(checkpoint_path, tmp_path, progress, words):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(checkpoint_path.read_bytes())
    described_anew(bad, lambda m: m.update(progress=progress))
    for reader in (checkpoint.load_trained, checkpoint.Start.read):
        with pytest.raises(CheckpointError, match=words):
            reader(bad)
    described_anew(bad, lambda m: m.update(progress={}))
    with pytest.raises(CheckpointError, match="its progress has no level, steps"):
        checkpoint.Start.read(bad)
    huge = lambda m: m.update({"meta.json": m["meta.json"].replace(b'"progress":{}', b'"progress":{"steps":1e999}')})  # noqa: E731
    rewritten(bad, huge)
    with pytest.raises(CheckpointError, match="the number 1e999"):
        checkpoint.read(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_whoever_reads_it(checkpoint_path, tmp_path, value):
    meta, arrays = checkpoint.read(checkpoint_path)
    name = next(n for n in arrays if n.startswith("model.actor.net") and arrays[n].size)
    arrays[name] = np.array(arrays[name])
    arrays[name].flat[0] = value
    bad = tmp_path / "bad.ckpt"
    checkpoint.write(bad, {**meta, "progress": {"level": 0.5, "steps": 1}}, arrays)
    for reader in (checkpoint.load_trained, checkpoint.Start.read):
        with pytest.raises(CheckpointError, match="holds numbers that are not finite"):
            reader(bad)


def test_the_robot_in_a_checkpoint_must_be_the_one_of_its_digest_for_a_start_too(checkpoint_path, tmp_path):
    bad = tmp_path / "bad.ckpt"
    progress = {"level": 0.5, "steps": 1}
    for change, words in (
        (lambda m: m.update(progress=progress, robot_digest="0" * 64), "is altered"),
        (lambda m: m.pop("robot_digest"), "is without its digest"),
    ):
        bad.write_bytes(checkpoint_path.read_bytes())
        described_anew(bad, change)
        for reader in (checkpoint.load_trained, checkpoint.Start.read):
            with pytest.raises(CheckpointError, match=words):
                reader(bad)


def test_a_run_that_is_exactly_symmetric_starts_with_networks_that_are(checkpoint_path):
    trained = checkpoint.load_trained(checkpoint_path)
    config, robot = trained.config, trained.spec.robot
    found = checkpoint.Start(path=checkpoint_path, config=config, robot=robot, level=0.0, arrays={}, origin={})
    exact = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, symmetry="exact"))
    with pytest.raises(CheckpointError, match=r"its ppo.symmetry: 'none'; this run has 'exact'; they must be the same"):
        found.check(robot, exact)
    # an actor that is so is a plain one: it may go on as any
    dataclasses.replace(found, config=exact).check(robot, config)


def test_a_gait_goes_on_with_a_clock_of_another_speed_and_of_no_other_meaning(checkpoint_path):
    trained = checkpoint.load_trained(checkpoint_path)
    clock = GaitClock(frequency_hz=1.25, commands=("xvel",), at_rest=0.05)

    def with_clock(**changes):
        policy = dataclasses.replace(trained.config.policy, clock=dataclasses.replace(clock, **changes))
        return dataclasses.replace(trained.config, policy=policy)

    robot = trained.spec.robot
    found = checkpoint.Start(path=checkpoint_path, config=with_clock(), robot=robot, level=0.0, arrays={}, origin={})
    found.check(robot, with_clock(frequency_hz=1.6))
    for other in ({"frequency_hz": 0.0}, {"at_rest": 0.1}, {"commands": ("yawrate",)}):
        with pytest.raises(CheckpointError, match=r"its policy.clock: .*; they must be the same to start"):
            found.check(robot, with_clock(**other))


def test_a_class_of_the_task_that_is_not_loaded_is_named_with_the_way_to_load_it(checkpoint_path, tmp_path):
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(checkpoint_path.read_bytes())
    described_anew(bad, lambda m: m["config"]["rewards"].update(even={"kind": "EvenlyReward", "weight": 1.0}))
    for reader in (checkpoint.load_trained, checkpoint.Start.read):
        with pytest.raises(CheckpointError) as caught:
            reader(bad)
        text = str(caught.value)
        assert text.startswith(f"{bad}: the class EvenlyReward (rewards.even) is not loaded; load the file")
        assert "ksim --with FILE.py" in text and "\n" not in text


def test_networks_that_are_not_those_of_the_description_are_refused(checkpoint_path, tmp_path):
    """Another run's arrays of the same shape, or the same halved."""
    target = tmp_path / "half.ckpt"
    with zipfile.ZipFile(checkpoint_path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.startswith("arrays/model") and "output_layer" in name:
                value = np.lib.format.read_array(io.BytesIO(data))
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, 0.5 * value)
                data = buffer.getvalue()
            new.writestr(name, data)
    with pytest.raises(CheckpointError, match=r"half\.ckpt: its networks are not those that it was written with"):
        checkpoint.load_trained(target)
    with pytest.raises(CheckpointError, match="are not those"):
        checkpoint.Start.read(target)
