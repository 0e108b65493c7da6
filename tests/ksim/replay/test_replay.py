"""Replays: the same seed gives the same bytes, and a log that tells what was."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace

import jax
import numpy as np
import pytest

from ksim import rewards
from ksim.cli import main
from ksim.environment import make_environment
from ksim.errors import KsimError, ReplayError
from ksim.evaluate import HoldHome, JaxBatchPolicy, evaluate
from ksim.recording import record
from ksim.replay import KsimNaryaEvent, TrajectorySegment, hash_state, replay_episode, trit, write_log
from ksim.schema import acset_instance, acset_schema
from ksim.types import PhysicsState
from robots import load_robot
from robots.motor import MotorState
from tests.ksim.replay.short_task import PERIOD_S, STEPS, TASK


def by_hand(qpos=(1.0, 2.0), joint: float = 0.25) -> PhysicsState:
    """A state of one joint, not of a robot."""
    one = np.array([joint], np.float32)
    motor = MotorState(anchor=one, slip=one, twist=one, twist_rate=one)
    return PhysicsState(np.array(qpos, np.float32), one, one, one, motor, {}, (), None)  # type: ignore[arg-type]


# Events


def test_the_hash_of_a_state_is_the_sha256_of_its_arrays_with_names_types_and_shapes():
    joint = struct.pack("<f", 0.25)
    names = ("motor_anchor", "motor_slip", "motor_twist", "motor_twist_rate", "qpos", "qvel", "sensordata", "torque")
    data = b"".join(
        name.encode() + b"\0<f4\0" + (b"[2]\0" + struct.pack("<ff", 1, 2) if name == "qpos" else b"[1]\0" + joint)
        for name in names
    )
    assert hash_state(by_hand()) == hashlib.sha256(data).hexdigest()


def test_the_hash_reacts_to_one_bit_to_a_type_and_to_a_shape():
    first = hash_state(by_hand())
    assert first == hash_state(by_hand())
    others = [
        by_hand(qpos=(np.nextafter(np.float32(1), np.float32(2)), 2.0)),
        by_hand(joint=-0.25),
        by_hand(qpos=(1.0, 2.0, 0.0)),
        replace(by_hand(), qpos=np.array([1.0, 2.0])),
        replace(by_hand(), qpos=np.array([[1.0, 2.0]], np.float32)),
        replace(by_hand(), motor=by_hand().motor._replace(twist=np.float32([1.0]))),
    ]
    assert len({first, *map(hash_state, others)}) == 1 + len(others)


def test_what_only_the_engine_keeps_is_not_in_the_hash():
    assert hash_state(replace(by_hand(), history={"gyro": np.ones(3)}, internal=(1,))) == hash_state(by_hand())


@pytest.mark.parametrize(
    ("reward", "done", "sign", "impact"), [(-0.5, False, -1, 0), (0.0, True, 0, 1), (2.5e-8, False, 1, 0)]
)
def test_a_line_has_the_hashes_the_action_the_reward_its_sign_and_whether_the_episode_ended(reward, done, sign, impact):
    before, after = by_hand(), by_hand(joint=0.5)
    segment = TrajectorySegment(np.array([0.1, -0.0], np.float32), reward, done, {})
    event = KsimNaryaEvent("step_7", before, after, segment, trit(reward))
    assert (event.trit, event.impact) == (sign, impact)
    line = event.to_jsonl()
    assert "\n" not in line
    assert json.loads(line) == {
        "event_id": "step_7",
        "before_hash": hash_state(before),
        "after_hash": hash_state(after),
        "delta": {"action": [float(np.float32(0.1)), 0.0], "reward": reward},
        "trit": sign,
        "impact": impact,
    }
    assert '"action":[0.10000000149011612,-0.0]' in line


def test_numbers_that_are_not_finite_are_words_and_the_line_stays_strict():
    segment = TrajectorySegment(np.array([np.nan, np.inf, -np.inf, 1.0]), 0.0, True, {})
    line = KsimNaryaEvent("step_0", by_hand(), by_hand(), segment, 0).to_jsonl()
    assert '"action":["NaN","Infinity","-Infinity",1.0]' in line
    assert hash_state(by_hand(joint=np.nan)) == hash_state(by_hand(joint=-np.nan)) != hash_state(by_hand())


# An episode


def test_an_episode_begins_with_its_birth_and_ends_once(events):
    birth, *steps = events
    assert [event.event_id for event in events] == ["birth", *(f"step_{i}" for i in range(STEPS))]
    assert birth.before is None and birth.delta.reward == 0.0 and birth.trit == birth.impact == 0
    assert [event.impact for event in steps] == [0] * (STEPS - 1) + [1]
    for before, event in zip(events, steps, strict=False):
        assert event.before is before.after
    # alive gives 0.02 a step, upright at most 0.01
    assert all(event.trit == 1 and 0.02 < event.delta.reward <= 0.03001 for event in steps)


def test_the_birth_says_what_was_drawn_and_what_the_run_was(events, environment):
    line = json.loads(events[0].to_jsonl())
    assert line["before_hash"] is None and line["after_hash"] == hash_state(events[0].after)
    physics, birth = line["layers"]["physics"], line["birth"]
    share = physics["drawn"]["friction"][0]
    nominal = environment.scene.built.model.geom_friction[:, 0]
    assert -1.0 <= share <= 1.0
    assert np.allclose(np.array(physics["model"]["geom_friction"])[:, 0], nominal * (1.0 + 0.5 * share))
    assert physics["qpos"] == events[0].after.qpos.astype(float).tolist()
    assert 0.002 <= line["layers"]["action_path"]["channel"]["latency_s"] <= 0.008
    assert (birth["seed"], birth["task"], birth["robot"]) == (5, "kbot_stand", "kbot")
    assert birth["settings"]["randomizations"]["friction"]["factor"] == [0.5, 1.5]
    assert birth["names"]["commands"] == ["xvel"] and birth["control_period_s"] == PERIOD_S


def test_the_log_holds_the_raw_action_that_the_policy_function_gives(events, trained):
    carry, seen = trained.policy.init_carry(), events[0].delta.info["layers"]["observation"]["inputs"]
    step = jax.jit(lambda inputs, carry: trained.policy.step(inputs, carry))
    for event in events[1:4]:
        inputs = {name: np.array(value, np.float32) for name, value in seen.items()}
        targets, carry = step(inputs, carry)
        assert np.allclose(event.delta.info["layers"]["policy"]["raw"], trained.policy.split(carry)[2], atol=1e-6)
        assert np.allclose(event.delta.action, targets, atol=1e-6)
        seen = event.delta.info["layers"]["observation"]["inputs"]


def test_a_replay_is_the_first_episode_of_an_evaluation_with_its_seed(events, trained, environment):
    result = evaluate(TASK, JaxBatchPolicy(trained.policy), episodes=1, seed=5, environment=environment)
    assert result.survived[0]
    assert result.returns[0] == pytest.approx(sum(event.delta.reward for event in events), abs=1e-12)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(events, path, trained, environment):
    lines = [event.to_jsonl() for event in events]
    other = replay_episode(6, trained, environment=environment)
    again = replay_episode(5, path, environment=environment)
    assert [event.to_jsonl() for event in again] == lines
    assert hash_state(other[0].after) != hash_state(events[0].after)


def test_another_process_writes_the_same_bytes_and_the_schema_and_the_tables(path, ksim, log, tmp_path):
    out, schema, tables = (tmp_path / name for name in ("a.jsonl", "schema.json", "tables.json"))
    files = ("--out", out, "--schema", schema, "--acset", tables)
    done = ksim("replay", "--checkpoint", path, "--seed", 5, "--json", *files)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["steps"], figures["fell"], figures["after_hash"]) == (STEPS, False, log.events[-1]["after_hash"])
    assert out.read_bytes() == log.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "schema.json", "tables.json"]
    assert json.loads(schema.read_text()) == acset_schema()
    assert json.loads(tables.read_text()) == acset_instance(log)


def test_a_policy_without_a_task_needs_one_and_an_environment_holds_one_robot(trained):
    with pytest.raises(KsimError, match="names no task"):
        replay_episode(1, HoldHome(load_robot("kbot")))
    with pytest.raises(KsimError, match="of 2 robots, expected 1"):
        replay_episode(1, trained, environment=make_environment(TASK, 2, "mujoco"))


def test_without_a_policy_or_a_schema_there_is_nothing_to_do():
    assert main(["replay", "--seed", "1"]) == 1


def test_files_that_are_there_are_replaced_only_with_force_and_never_the_policy(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ksim.replay.replay_episode", lambda *_, **__: pytest.fail("played"))
    there, new = tmp_path / "there.jsonl", tmp_path / "new.jsonl"
    there.write_text("kept")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "episode-seed7.jsonl").touch()
    for arguments, words in (
        (["--out", there], "--out {there}: it exists; expected a new file; name another or add --force"),
        (["--seed", "7"], "--out episode-seed7.jsonl: it exists"),
        (["--out", new, "--acset", there], "--acset {there}: it exists"),
        (["--out", new, "--schema", there], "--schema {there}: it exists"),
        (["--out", new, "--acset", new], "--acset {new}: it is the file of --out; expected another"),
        (["--out", path, "--force"], "--out {path}: it is the policy; expected another file"),
    ):
        assert main(["replay", "--checkpoint", str(path), *map(str, arguments)]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"ksim replay: {words.format(there=there, new=new, path=path)}"), said
        assert said.count("\n") == 1
    assert there.read_text() == "kept" and not new.exists()


@pytest.mark.parametrize("flag", ["--out", "--acset", "--config", "--set"])
def test_what_only_an_episode_has_is_refused_without_a_policy(flag, tmp_path, capsys):
    schema = tmp_path / "schema.json"
    assert main(["replay", "--schema", str(schema), flag, "x=1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ksim replay: {flag}: got ") and "without --checkpoint" in said and said.count("\n") == 1
    assert not schema.exists()


def test_a_log_that_could_not_be_read_again_is_not_begun(trained, environment, monkeypatch):
    other = replace(environment.config)
    # a configuration refuses such a name; a robot's joint may have one
    object.__setattr__(other, "rewards", {**TASK.rewards, "r" * 300: rewards.AliveReward(weight=1.0)})
    monkeypatch.setattr(environment, "config", other)
    monkeypatch.setattr(environment, "advance", lambda *_: pytest.fail("stepped"))
    with pytest.raises(ReplayError, match="text of 300 characters; expected at most 256"):
        replay_episode(5, trained, environment=environment)


def test_a_log_of_no_whole_episode_is_not_written(events, tmp_path):
    path = tmp_path / "half.jsonl"
    with pytest.raises(ReplayError, match=r"half\.jsonl: line 6: the episode does not end"):
        write_log(events[:6], path)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_gives_the_rewards_the_raw_actions_as_a_replay_does(trained, path):
    priced = replace(TASK, rewards={"rate": rewards.ActionVelocityPenalty(weight=-1.0)})
    one = make_environment(priced, 1, "mujoco")
    result = evaluate(priced, JaxBatchPolicy(trained.policy), episodes=1, seed=5, environment=one)
    played = replay_episode(5, path, environment=one)
    total = sum(event.delta.reward for event in played)
    assert total < 0.0 and result.returns[0] == pytest.approx(total, abs=1e-9)
    recorded = record(priced, JaxBatchPolicy(trained.policy), seed=5, environment=one)
    assert PERIOD_S * recorded.rewards["rate"].sum() == pytest.approx(total, rel=1e-5)


def test_the_force_of_an_evaluation_is_the_one_that_acts_during_the_step(log, trained, environment):
    policy = JaxBatchPolicy(trained.policy)
    result = evaluate(TASK, policy, episodes=1, seed=5, environment=environment, record=True)
    acted = [event["layers"]["physics"]["wrench_w"][:3] for event in log.events[1:]]
    assert np.any(acted) and np.allclose(result.force_w[:, 0], acted, atol=1e-5)
