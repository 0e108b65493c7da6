"""Where two runs part: a difference that is planted in a layer is found there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ksim import observation, rewards
from ksim.channels import Channel
from ksim.cli import main
from ksim.diff import first_parting, settings_apart
from ksim.evaluate import HoldHome
from ksim.learning import checkpoint
from ksim.noise import GaussianNoise
from ksim.randomization import FrictionRandomization
from ksim.replay import replay_episode
from ksim.replay_log import LAYERS
from robots import load_robot
from tests.ksim.replay.short_task import PERIOD_S, STEPS, TASK


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
