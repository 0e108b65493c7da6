"""Replays: the same seed gives the same bytes, and a difference that is planted in a layer is found there."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from dataclasses import replace

import jax
import numpy as np
import pytest

from ksim import observation, rewards
from ksim.channels import Channel
from ksim.cli import main
from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig
from ksim.diff import first_parting, settings_apart
from ksim.environment import Environment, make_environment
from ksim.errors import KsimError, ReplayError
from ksim.evaluate import HoldHome, JaxBatchPolicy, evaluate
from ksim.events import ForcePush
from ksim.learning import checkpoint
from ksim.learning.policy import make_model
from ksim.noise import GaussianNoise
from ksim.randomization import FrictionRandomization
from ksim.recording import record
from ksim.replay import KsimNaryaEvent, TrajectorySegment, hash_state, replay_episode, trit, write_log
from ksim.replay_log import LAYERS, Log, validate_log
from ksim.resets import JointPositionReset
from ksim.schema import OBJECTS, acset_instance, acset_schema, attributes, fits
from ksim.terminations import BaseTooLowTermination
from ksim.types import PhysicsState
from robots import load_robot
from robots.motor import MotorState

STEPS = 20
PERIOD_S = 0.02

# 20 control steps of one robot; one push, which begins at 0.3 s whatever the draw.
TASK = Config(
    task="kbot_stand",
    threads=1,
    episode_length_s=STEPS * PERIOD_S,
    observations={
        "joint_angles": observation.DelayedJointPositionObservation(noise=GaussianNoise(std=0.005)),
        "joint_angular_velocities": observation.DelayedJointVelocityObservation(),
        "projected_gravity": observation.DelayedProjectedGravityObservation(channel="imu"),
        "gyroscope": observation.DelayedGyroObservation(channel="imu"),
        "command": observation.CommandObservation(),
    },
    critic={"command": observation.CommandObservation()},
    commands={"xvel": UniformCommand(name="xvel", range=(-0.5, 0.5))},
    channels={name: Channel(latency_s=(0.002, 0.008)) for name in ("action", "joints", "imu")},
    rewards={"alive": rewards.AliveReward(weight=1.0), "upright": rewards.UprightReward(weight=0.5)},
    terminations={"base_too_low": BaseTooLowTermination()},
    resets={"joint_position": JointPositionReset(width_rad=0.05)},
    randomizations={"friction": FrictionRandomization(factor=(0.5, 1.5))},
    events={"pushes": ForcePush(force_n=50.0, interval_s=(0.3, 0.3), duration_s=(0.1, 0.1))},
    policy=PolicyConfig(hidden=8, head=8, hold=("shoulder", "elbow", "wrist")),
)


@pytest.fixture(scope="module")
def model():
    return make_model(load_robot("kbot"), 1, TASK, key=jax.random.key(3))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """`written(config, change)`: a checkpoint of the model on a task; `change` may alter its arrays in place."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(config: Config = TASK, change=lambda arrays: None):
        robot = load_robot("kbot")
        arrays = {name: np.array(value) for name, value in checkpoint.model_arrays(model).items()}
        change(arrays)
        path = folder / f"{len(list(folder.iterdir()))}.ckpt"
        about = {"robot": robot.to_json(), "robot_digest": robot.digest, "critic": 1}
        checkpoint.write(path, {"config": config.to_dict(), **about}, arrays)
        return path

    return write


@pytest.fixture(scope="module")
def path(written):
    return written()


@pytest.fixture(scope="module")
def trained(path):
    return checkpoint.load_trained(path)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment(TASK, 1, "mujoco")


@pytest.fixture(scope="module")
def events(path, environment):
    """The episode of seed 5."""
    return replay_episode(5, path, environment=environment)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(events)`: their log, written and read back."""
    folder = tmp_path_factory.mktemp("logs")

    def save(events) -> Log:
        path = folder / f"{len(list(folder.iterdir()))}.jsonl"
        write_log(events, path)
        return validate_log(path)

    return save


@pytest.fixture(scope="module")
def log(events, saved):
    return saved(events)


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
    # compiled as here, for the same bytes
    alike = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = ksim("replay", "--checkpoint", path, "--seed", 5, "--json", *files, env=alike)
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


# Where two runs part


@pytest.fixture(scope="module")
def played(saved, path):
    """`played(config)`: the log of seed 5 on a changed task."""
    return lambda config: saved(replay_episode(5, path, config=config))


def test_runs_that_are_the_same_do_not_part(log, events, saved):
    assert first_parting(log, saved(events)) is None and settings_apart(log, saved(events)) == []


def test_more_noise_is_found_in_the_observation(log, played):
    louder = observation.DelayedJointPositionObservation(noise=GaussianNoise(std=0.006))
    other = played(replace(TASK, observations={**TASK.observations, "joint_angles": louder}))
    parting = first_parting(log, other)
    assert parting is not None
    assert (parting.step, parting.layer, parting.time_s) == (-1, "observation", 0.0)
    (field,) = parting.fields
    # a fifth of the noise, which is seldom above 3 standard deviations
    assert field.field == "inputs.joint_angles" and 0.0 < field.size < 0.005
    assert field.at in log.birth["names"]["joints"]
    assert settings_apart(log, other) == [("observations.joint_angles.noise.std", 0.005, 0.006)]


def test_one_weight_is_found_in_the_policy(log, saved, written, environment):
    def change(arrays):
        (name,) = (name for name in arrays if name.startswith("model.actor.net") and name.endswith("weight_ih"))
        arrays[name][0, 0] += 0.5

    other = checkpoint.load_trained(written(change=change))
    parting = first_parting(log, saved(replay_episode(5, other, environment=environment)))
    assert parting is not None
    assert (parting.event_id, parting.step, parting.layer, parting.time_s) == ("step_0", 0, "policy", PERIOD_S)
    assert parting.fields[0].field == "raw" and parting.fields[0].size > 0
    assert {"policy", "action path"} <= {field.layer for field in parting.fields}


def test_a_later_action_is_found_in_the_action_path(log, played):
    channels = {**TASK.channels, "action": Channel(latency_s=(0.003, 0.009))}
    parting = first_parting(log, played(replace(TASK, channels=channels)))
    assert parting is not None
    assert (parting.step, parting.layer) == (-1, "action path")
    assert [field.field for field in parting.fields] == ["channel.latency_s"]
    assert parting.fields[0].size == pytest.approx(0.001, abs=1e-6)


def test_a_lazier_target_is_found_in_the_action_path(log, saved, written, environment):
    slow = replace(TASK, policy=replace(TASK.policy, smoothing=0.5))
    other = checkpoint.load_trained(written(slow))
    parting = first_parting(log, saved(replay_episode(5, other, environment=environment)))
    assert parting is not None
    assert (parting.event_id, parting.layer, parting.fields[0].field) == ("step_0", "action path", "target")
    assert parting.fields[0].at in log.birth["names"]["joints"]


def test_another_friction_is_found_in_the_physics(log, played):
    slippery = {"friction": FrictionRandomization(factor=(0.4, 1.6))}
    parting = first_parting(log, played(replace(TASK, randomizations=slippery)))
    assert parting is not None
    assert (parting.step, parting.layer) == (-1, "physics")
    assert parting.fields[0].field == "model.geom_friction"
    assert {field.layer for field in parting.fields} == {"physics"}


def test_a_harder_push_is_found_in_the_physics_at_the_step_at_which_it_begins(log, played):
    pushes = {"pushes": replace(TASK.events["pushes"], force_n=60.0)}
    parting = first_parting(log, played(replace(TASK, events=pushes)))
    assert parting is not None and parting.layer == "physics" and parting.fields[0].field == "wrench_w"
    assert parting.step in (15, 16)  # 0.3 s in steps of 0.02 s, rounded
    pushed = [any(event["layers"]["physics"]["wrench_w"]) for event in log.events[1:]]
    assert pushed.index(True) == parting.step


def test_another_weight_of_a_reward_is_found_in_the_reward(log, played):
    alive = {**TASK.rewards, "alive": rewards.AliveReward(weight=1.5)}
    other = played(replace(TASK, rewards=alive))
    parting = first_parting(log, other)
    assert parting is not None
    assert (parting.event_id, parting.layer) == ("step_0", "reward")
    assert [field.field for field in parting.fields] == ["terms.alive", "sum"]
    assert all(field.size == pytest.approx(0.5 * PERIOD_S) for field in parting.fields)
    assert settings_apart(log, other) == [("rewards.alive.weight", 1.0, 1.5)]


def test_without_raw_actions_another_target_is_the_policys(saved, environment):
    class Leaning(HoldHome):
        def step(self, inputs, carry):
            targets, carry = super().step(inputs, carry)
            return targets + np.float32(0.01), carry

    robot = load_robot("kbot")
    first, second = (saved(replay_episode(5, kind(robot), environment=environment)) for kind in (HoldHome, Leaning))
    assert first.events[1]["layers"]["policy"] == {}
    parting = first_parting(first, second)
    assert parting is not None and (parting.event_id, parting.layer) == ("step_0", "policy")
    assert parting.fields[0].size == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "field", "value", "name"),
    [
        ("given", "command", [0.75], "observation"),
        ("policy", "raw", [1.0], "policy"),
        ("action_path", "command", [[0.0] * 20] * 3, "action path"),
        ("physics", "kick", [0.0] * 6, "physics"),
        ("reward", "terms", {"alive": 0.02, "upright": "NaN"}, "reward"),
        ("observation", "inputs", {}, "observation"),
    ],
)
def test_the_first_layer_that_differs_is_named_whatever_follows_it(log, layer, field, value, name):
    events = [json.loads(json.dumps(event)) for event in log.events]
    for later in LAYERS[LAYERS.index(layer) :]:
        events[3]["layers"][later]["planted"] = [1.0]
    events[3]["layers"][layer][field] = value
    parting = first_parting(log, replace(log, events=tuple(events)))
    if (layer, field) == ("physics", "kick"):  # no push by velocity: nothing but what was planted
        assert parting.fields[0].field == "planted" and parting.fields[0].size is None
    else:
        assert parting.fields[0].field.startswith(field)
    assert (parting.event_id, parting.layer) == ("step_2", name)


def test_the_sign_of_a_zero_and_what_is_not_finite_are_differences(log):
    def parted(*values):
        logs = []
        for value in values:
            events = [json.loads(json.dumps(event)) for event in log.events]
            events[2]["layers"]["physics"]["torque"][3] = value
            events[2]["after_hash"] = str(value)
            logs.append(replace(log, events=tuple(events)))
        return first_parting(*logs)

    (field,) = parted(0.0, -0.0).fields
    assert 0.0 < field.size < 1e-300 and field.at == log.birth["names"]["joints"][3]
    assert parted("NaN", 1.0).fields[0].size == np.inf and parted("NaN", "NaN") is None


def test_true_is_not_the_number_1(log):
    def planted(value):
        events = [json.loads(json.dumps(event)) for event in log.events]
        events[3]["layers"]["physics"]["planted"] = [1, value]
        return replace(log, events=tuple(events))

    parting = first_parting(planted(1), planted(True))
    assert parting is not None and (parting.event_id, parting.layer) == ("step_2", "physics")
    (field,) = parting.fields
    assert (field.field, field.size, field.at, field.first, field.second) == ("planted", None, "1", 1, True)
    assert first_parting(planted(1), planted(1.0)) is None  # the same number
    told = replace(log, birth={**log.birth, "level": True})
    assert settings_apart(log, told) == [("level", 1.0, True)]


def test_runs_of_another_length_part_where_the_shorter_ends(log, capsys, monkeypatch):
    short = replace(log, events=log.events[:8])
    for pair, values in (((log, short), (20, 7)), ((short, log), (7, 20))):
        parting = first_parting(*pair)
        assert parting is not None
        assert (parting.event_id, parting.step, parting.layer) == ("step_7", 7, "length")
        (field,) = parting.fields
        assert (field.field, field.size, (field.first, field.second)) == ("steps", 13, values)
    only_born = first_parting(log, replace(log, events=log.events[:1]))
    assert only_born is not None and only_born.event_id == "step_0"
    monkeypatch.setattr("ksim.replay_log.validate_log", lambda name: short if name == "short" else log)
    assert main(["diff", "long", "short"]) == 1
    assert "the first has 20 steps, the second 7" in capsys.readouterr().out


def test_rows_of_unequal_length_are_a_difference(log):
    def planted(value):
        events = [json.loads(json.dumps(event)) for event in log.events]
        events[3]["layers"]["physics"]["planted"] = value
        return replace(log, events=tuple(events))

    parting = first_parting(planted([[1.0, 2.0], [3.0, 4.0]]), planted([[1.0, 2.0], [3.0]]))
    assert parting is not None
    (field,) = parting.fields
    assert (field.size, field.first, field.second) == (None, "shape (2, 2)", "rows of 1 and 2")
    assert first_parting(planted([[1.0], []]), planted([[1.0], []])) is None
    assert first_parting(planted([]), planted([[]])) is not None


def test_a_position_is_named_by_its_joint_and_coordinate_and_a_sensor_by_its_name(log, environment):
    names, built = log.birth["names"], environment.scene.built
    assert [names["qpos"][at] for at in built.qpos_ids] == list(built.spec.joint_names) == names["joints"]
    assert [names["qvel"][at] for at in built.dof_ids] == list(built.spec.joint_names)
    base = names["qpos"][built.base_position][2]
    assert base.endswith(" z") and names["qpos"][built.base_quat][0].endswith(" qw")
    assert names["sensordata"][built.sensors["imu_gyro"]] == ["imu_gyro 0", "imu_gyro 1", "imu_gyro 2"]
    events = [json.loads(json.dumps(event)) for event in log.events]
    knee = int(built.qpos_ids[3])
    events[3]["layers"]["physics"]["qpos"][knee] += 0.5
    parting = first_parting(log, replace(log, events=tuple(events)))
    assert parting is not None
    assert (parting.fields[0].field, parting.fields[0].at) == ("qpos", built.spec.joint_names[3])


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


def test_the_command_names_the_step_the_layer_and_what_was_told(log, played, capsys, tmp_path):
    other = played(replace(TASK, rewards={**TASK.rewards, "alive": rewards.AliveReward(weight=1.5)}))
    assert main(["diff", str(log.path), str(log.path)]) == 0
    assert capsys.readouterr().out == f"the same to the bit: {STEPS} steps\n"
    assert main(["diff", str(log.path), str(other.path)]) == 1
    text = capsys.readouterr().out
    # what they were told comes first
    told, parting, *_ = text.splitlines()
    assert told == "setting differs: rewards.alive.weight: 1.0 and 1.5"
    assert parting == "the runs part at step_0, t = 0.020 s; likely layer: reward"
    assert "terms.alive by 0.01" in text
    assert main(["diff", "--json", str(log.path), str(other.path)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["equal"], answer["event_id"], answer["step"], answer["layer"]) == (False, "step_0", 0, "reward")
    assert answer["settings"] == [{"key": "rewards.alive.weight", "first": 1.0, "second": 1.5}]
    assert answer["steps"] == [STEPS, STEPS]


# The data model


def test_the_schema_has_the_objects_maps_and_attributes_of_the_types():
    schema = acset_schema()
    assert [row["name"] for row in schema["Ob"]] == ["PhysicsState", "Trajectory", "Observation", "Reward", "Action"]
    maps = {(row["name"], row["dom"], row["codom"]) for row in schema["Hom"]}
    assert maps >= {
        ("step", "Action", "PhysicsState"),
        ("observe", "PhysicsState", "Observation"),
        ("reward", "Trajectory", "Reward"),
    }
    found = {(row["name"], row["dom"], row["codom"]) for row in schema["Attr"]}
    assert found >= {("qpos", "PhysicsState", "Vector"), ("qvel", "PhysicsState", "Vector")}
    assert found >= {
        ("done", "Trajectory", "Flag"),
        ("raw", "Action", "Vector"),
        ("inputs", "Observation", "VectorByName"),
    }
    fields = set(PhysicsState.__dataclass_fields__) - {"motor", "history", "internal", "scene"}
    motor = {f"motor_{name}" for name in MotorState._fields}
    assert set(attributes("PhysicsState")) == fields | motor


def test_the_schema_is_one_that_acsets_can_read():
    """As ACSets.jl parses it: the keys of its JSON schema, names that exist, and each name of a column once."""
    schema = json.loads(json.dumps(acset_schema(), allow_nan=False))
    assert schema["version"]["ACSetSchema"] == "0.0.1" and "ACSets" in schema["version"]
    objects, types = ({row["name"] for row in schema[key]} for key in ("Ob", "AttrType"))
    assert all(row["dom"] in objects and row["codom"] in objects for row in schema["Hom"])
    assert all(row["dom"] in objects and row["codom"] in types for row in schema["Attr"])
    assert types == {row["codom"] for row in schema["Attr"]}
    columns = [row["name"] for key in ("Hom", "Attr") for row in schema[key]]
    assert len(columns) == len(set(columns))
    ends = {row["name"]: (row["dom"], row["codom"]) for row in schema["Hom"]}
    for row in schema["equations"]:
        for path in row["paths"]:
            assert ends[path[0]][0] == row["dom"] and ends[path[-1]][1] == row["codom"]
            assert all(ends[a][1] == ends[b][0] for a, b in itertools.pairwise(path))


def test_a_log_as_tables_fits_the_schema_and_its_equation(log):
    tables, schema = acset_instance(log), acset_schema()
    assert {name: len(rows) for name, rows in tables.items()} == {
        "PhysicsState": STEPS + 1,
        "Observation": STEPS + 1,
        "Trajectory": STEPS,
        "Reward": STEPS,
        "Action": STEPS,
    }
    for ob, rows in tables.items():
        maps = {row["name"]: row["codom"] for row in schema["Hom"] if row["dom"] == ob}
        assert [row["_id"] for row in rows] == list(range(1, len(rows) + 1))
        for row in rows:
            assert set(row) == {"_id", *maps, *attributes(ob)}
            assert all(1 <= row[name] <= len(tables[codomain]) for name, codomain in maps.items())
            assert all(fits(kind, row[name]) for name, kind in attributes(ob).items())
    states, actions = tables["PhysicsState"], tables["Action"]
    assert all(row["physics"] == actions[row["action"] - 1]["step"] for row in tables["Trajectory"])
    assert states[actions[0]["taken_at"] - 1]["qpos"] == log.events[0]["layers"]["physics"]["qpos"]
    assert states[actions[-1]["step"] - 1]["qpos"] == log.events[-1]["layers"]["physics"]["qpos"]
    assert set(tables) == set(OBJECTS)


def changed(line: int, **values):
    """A damage: a line with other values."""

    def damage(lines):
        event = json.loads(lines[line])
        for key, value in values.items():
            at, *path = key.split("__")
            target = event
            for name in path:
                target, at = target[at], name
            target[at] = value
        return [*lines[:line], json.dumps(event), *lines[line + 1 :]]

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: ["# not JSON", *lines[1:]], "line 1: not JSON"),
        (lambda lines: lines[1:], "line 1: no birth of a replay"),
        (lambda lines: ["[1, 2]"], "line 1: list"),
        (lambda lines: [*lines[:5], lines[5][:100]], "line 6: not JSON"),
        (lambda lines: lines[:-3], "the file was cut"),
        (lambda lines: [*lines[:4], *lines[5:]], "line 5: event_id 'step_4'; expected step_3"),
        (lambda lines: [*lines, lines[-1]], "line 21: impact 1"),
        (lambda lines: [*lines[:2], lines[2].replace(":0.0", ":NaN", 1), *lines[3:]], "the number NaN"),
        (changed(0, birth__version=2), "version 2; expected 1"),
        (changed(0, birth__dtypes__qpos="|O"), "birth.dtypes.qpos '|O'"),
        (changed(0, birth__names=None), "birth.names None; expected one of type dict"),
        (changed(0, birth__names={}), "birth.names.joints None; expected a list of names"),
        (changed(0, birth__names__qpos=[1]), "birth.names.qpos [1]; expected a list of names"),
        (changed(0, birth__seed=True), "birth.seed True; expected one of type int"),
        (changed(0, birth__version=True), "version True; expected 1"),
        (changed(0, birth__task=3), "birth.task 3; expected one of type str"),
        (lambda lines: lines[:1], "the episode does not end"),
        (lambda lines: changed(0, impact=1)(lines[:1]), "line 1: impact 1; expected 1 where the episode ends"),
        (changed(20, impact=True), "line 21: impact True"),
        (changed(3, trit=True), "line 4: trit True"),
        (changed(3, delta={"action": [0.0], "reward": 0.03}), "line 4: an action of 1 numbers; expected 20"),
        (changed(3, before_hash="0" * 64), "line 4: before_hash"),
        (changed(3, trit=-1), "line 4: trit -1 for a reward"),
        (changed(3, impact=1), "line 4: impact 1"),
        (changed(3, delta={"action": [True], "reward": 0.0}), "line 4: delta without action and reward"),
        (changed(3, layers__reward__done=True), "line 4: impact 0 where done is True"),
        (changed(3, layers__reward__terms=[0.1]), "line 4: layers, given and reward: terms [0.1]"),
        (changed(3, layers__physics__qpos=[0.0]), "line 4: qpos of 1 numbers; expected 27"),
        (changed(3, layers__physics__torque="x"), "line 4: layers, physics: torque 'x'"),
        (changed(3, layers__physics__torque=[0.5] * 20), "line 4: the state is not the one of after_hash"),
        (changed(3, layers={}), "line 4: layers are missing"),
    ],
)
def test_a_damaged_log_is_refused_in_one_line(log, tmp_path, capsys, damage, words):
    path, lines = tmp_path / "damaged.jsonl", log.path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in damage(lines)))
    with pytest.raises(ReplayError) as error:
        validate_log(path)
    assert words in str(error.value)
    assert main(["diff", str(log.path), str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(f"ksim diff: {path}: ")


def test_a_log_whose_last_line_has_no_end_or_that_is_not_there_is_refused(log, tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_bytes(log.path.read_bytes()[:-1])
    with pytest.raises(ReplayError, match="line 21: the last line has no end"):
        validate_log(path)
    with pytest.raises(ReplayError, match="No such file"):
        validate_log(tmp_path / "none.jsonl")
