"""The typed configuration: YAML and overrides over defaults, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksim.channels import Channel
from ksim.commands import JoystickCommand, UniformCommand
from ksim.config import Config, PpoConfig
from ksim.curriculum import FixedCurriculum, LinearScale
from ksim.errors import ConfigError
from ksim.events import ForcePush, Stall
from ksim.load import from_dict, load_config
from ksim.noise import ChainedNoise, EpisodeBias, GaussianNoise
from ksim.observation import DelayedGyroObservation, JointPositionObservation, TimeObservation
from ksim.rewards import Reward
from ksim.tasks import task_config
from ksim.tasks.stand import stand
from toolkit.errors import FileError
from toolkit.files import shipped_config
from toolkit.settings import Bound, Settings, apply_overrides

ROOT = Path(__file__).parents[2]


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_an_empty_file_is_the_standing_task(yaml_file):
    assert load_config(yaml_file("")) == stand() == from_dict({})


def test_a_file_changes_what_it_names_and_nothing_else(yaml_file):
    text = """
seed: 7
ppo: {envs: 64, gamma: 0.5}
channels:
  action: {latency_s: [0.001, 0.002]}
rewards:
  upright: 0.25
  fall: null
policy:
"""
    base = stand()
    rewards = {k: v for k, v in base.rewards.items() if k != "fall"}
    assert load_config(yaml_file(text)) == dataclasses.replace(
        base,
        seed=7,
        ppo=dataclasses.replace(base.ppo, envs=64, gamma=0.5),
        channels={
            **base.channels,
            "action": dataclasses.replace(base.channels["action"], latency_s=(0.001, 0.002)),
        },
        rewards={**rewards, "upright": dataclasses.replace(rewards["upright"], weight=0.25)},
    )


def test_an_override_wins_over_the_file(yaml_file):
    config = load_config(
        yaml_file("seed: 7\nppo: {envs: 64}\n"), ["ppo.envs=32", "seed = 9", "events.pushes.force_n=5"]
    )
    assert (config.ppo.envs, config.seed, config.events["pushes"].force_n) == (32, 9, 5.0)


def test_two_overrides_of_one_mapping_both_hold_under_old_names_and_new_ones():
    for forward, left in (("vx", "vy"), ("xvel", "yvel")):
        both = [f"commands.{forward}=[0.5,0.5]", f"commands.{left}=[0,0.25]"]
        config = apply_overrides(stand(), both)
        ranges = {spec.name: (spec.low, spec.high) for spec in config.command_specs}
        assert ranges == {"xvel": (0.5, 0.5), "yvel": (0.0, 0.25), "yawrate": (0.0, 0.0)}


def test_a_bare_number_is_a_rewards_weight_and_null_takes_it_out():
    config = apply_overrides(stand(), ["rewards.upright=1.5", "rewards.torque.weight=-0.5", "rewards.alive=null"])
    assert config.rewards["upright"].weight == 1.5 and config.rewards["torque"].weight == -0.5
    assert list(config.rewards) == [name for name in stand().rewards if name != "alive"]


def test_a_weight_may_follow_the_curriculum():
    text = "rewards.upright.weight={kind: LinearScale, low: 0.5, high: 2}"
    assert apply_overrides(stand(), [text]).rewards["upright"].weight == LinearScale(low=0.5, high=2.0)


def test_one_number_of_such_a_scale_may_be_changed_alone():
    config = apply_overrides(stand(), ["randomizations.kp.scale.low=0.5", "randomizations.kp.scale.end=0.75"])
    assert config.randomizations["kp"].scale == LinearScale(low=0.5, high=1.0, begin=0.0, end=0.75)


def test_a_new_term_says_its_kind_and_one_of_another_package_is_known_as_ours_are():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class QuarterReward(Reward):
        """A quarter for each step."""

        def get_reward(self, trajectory: Any) -> Any:
            return 0.25 * trajectory.first

    config = apply_overrides(stand(), ["rewards.quarter={kind: QuarterReward, weight: 3}"])
    assert config.rewards["quarter"] == QuarterReward(weight=3.0)
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rewards.air_time=1", ["'rewards.air_time'", "unknown", "there is alive, upright", "a new one needs a kind"]),
        ("rewards.uprigt=1", ["did you mean rewards.upright?"]),
        ("rewards.air_time=null", ["'rewards.air_time'", "unknown", "there is alive, upright"]),
        ("rewards.x={kind: UprightRewad}", ["rewards.x.kind", "'UprightRewad'", "did you mean UprightReward?"]),
        ("events.push.force_n=3", ["'events.push'", "did you mean events.pushes?"]),
        ("events.pushes.force=3", ["'events.pushes.force'", "did you mean events.pushes.force_n?"]),
        ("observations.gyroscope.noise={kind: Loud}", ["observations.gyroscope.noise.kind", "'Loud'", "GaussianNoise"]),
        ("observations.gyroscope.channel=gps", ["observations.gyroscope.channel", "'gps'", "action, joints, imu"]),
        ("channels.action=null", ["channels", "one of the name action"]),
        ("commands.vz=[0,1]", ["'commands.vz'", "there is xvel, yvel, yawrate"]),
        ("commands.again={kind: UniformCommand, name: xvel}", ["commands", "xvel", "once"]),
        ("policy.passthrough={dof_left_knee_04: bend}", ["policy.passthrough.dof_left_knee_04", "xvel, yvel, yawrate"]),
        ("channels.imu.rate_hz=[0, 20]", ["channels.imu.rate_hz", "both above 0, or both 0"]),
        ("commands.again={kind: UniformCommand, name: vx}", ["commands", "vx, xvel", "once, under one name"]),
        ("commands.again={kind: UniformCommand, name: ''}", ["commands.again.name", "1 to 200 characters"]),
        ("commands.again={kind: UniformCommand}", ["commands.again.name", "is missing"]),
        ("critic.drawn.of=[nope]", ["critic.drawn.of", "'nope'", "one of the randomizations (friction, link_mass"]),
        ("critic.push.of=kicks", ["critic.push.of", "'kicks'", "one of the events (pushes)"]),
        ("events=null", ["critic.push.of", "'pushes'", "one of the events (there are none)"]),
        ("channels={}", ["channels", "one of the name action"]),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_what_there_is(text, words):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(stand(), [text])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("table", ["rewards", "critic", "randomizations", "resets", "terminations", "commands"])
def test_null_or_nothing_empties_a_table_whichever_it_is(table):
    # the critic of this task looks at a push, so events go together with that
    for value in ("null", "{}"):
        assert getattr(apply_overrides(stand(), [f"{table}={value}"]), table) == {}
        assert apply_overrides(stand(), [f"events={value}", "critic.push=null"]).events == {}
    assert getattr(from_dict({table: {}}), table) == {}


def test_two_mappings_of_commands_in_a_row_both_hold_and_the_later_one_wins():
    config = apply_overrides(stand(), ["commands={a: [0, 1], b: [0, 2]}", "commands={c: [0, 3], a: [0, 4]}"])
    assert {spec.name: spec.high for spec in config.command_specs} == {"a": 4.0, "b": 2.0, "c": 3.0}
    config = apply_overrides(stand(), ["commands={vx: [0, 1]}", "commands={}", "commands={yvel: [0, 2]}"])
    assert {spec.name: spec.high for spec in config.command_specs} == {"yvel": 2.0}
    config = apply_overrides(stand(), ["commands={vx: [0, 1]}", "commands.xvel=[0, 2]"])
    assert {spec.name: spec.high for spec in config.command_specs} == {"vx": 2.0}


INPUT = "configuration key observations."


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["joint_angles.kind=GyroObservation"],
            "joint_angles.kind: got 'GyroObservation', expected a class that serves joint_angles "
            "(DelayedJointPositionObservation, JointPositionObservation)",
        ),
        (
            ["joint_angles={kind: JointPositionObservation, from_home: true}"],
            "joint_angles.from_home: got True, expected false: a robot gives joint_angles as it is",
        ),
        (["gyroscope.scale=2"], "gyroscope.scale: got 2.0, expected 1.0: a robot gives gyroscope as it is"),
        (
            ["command.noise={kind: GaussianNoise, std: 1}"],
            "command.noise: got {'scale': 1.0, 'std': 1.0}, expected null: a robot gives command as it is",
        ),
        (["joint_angles=null"], "joint_angles: got None, expected an observation: every policy reads it"),
        (["command=null"], "command: got None, expected an observation: every policy reads it"),
    ],
)
def test_what_the_policy_reads_is_what_a_robot_gives(texts, message):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(stand(), [f"observations.{text}" for text in texts])
    assert str(caught.value) == INPUT + message


def test_the_truth_and_ones_own_kind_of_an_input_may_serve_it_and_a_log_may_have_more():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SlowGyroObservation(DelayedGyroObservation):
        """The same."""

    texts = [
        "observations.gyroscope.kind=SlowGyroObservation",
        "observations.joint_angles={kind: JointPositionObservation}",
        "observations.feet={kind: FeetForceObservation, scale: 0.01}",
        "observations.time=null",
    ]
    inputs = apply_overrides(stand(), texts).observations
    assert inputs["gyroscope"] == SlowGyroObservation()
    assert inputs["joint_angles"] == JointPositionObservation() and "time" not in inputs


@pytest.mark.parametrize(
    "key",
    ["randomizations.link_mass", "channels.imu", "commands.xvel", "resets.tilt", "events.pushes"],
)
def test_a_scale_is_a_share_whether_it_is_a_number_or_follows_the_level(key):
    for value in ("-0.1", "1.5"):
        for text in (f"{key}.scale={value}", f"{key}.scale={{kind: LinearScale, low: 0.5, high: {value}}}"):
            with pytest.raises(ConfigError, match=rf"{key}\.scale.*got {value}.* 0 to 1 \(a share of the whole\)"):
                apply_overrides(stand(), [text])


def test_a_scale_cannot_pass_the_bound_of_a_weight():
    for text in (
        "{kind: LinearScale, high: 5000}",
        "{kind: StepScale, before: 5000}",
        "{kind: ConstantScale, value: 5000}",
    ):
        with pytest.raises(ConfigError, match=r"rewards\.upright\.weight\.\w+: got 5000.*-1000 to 1000 \(a weight\)"):
            apply_overrides(stand(), [f"rewards.upright.weight={text}"])


def test_a_smaller_command_stays_in_its_range():
    with pytest.raises(
        ConfigError, match=r"commands\.xvel\.scale: got 0\.5, expected 1, or a range of xvel that holds 0"
    ):
        apply_overrides(stand(), ["commands.xvel={range: [0.5, 1], scale: 0.5}"])
    assert apply_overrides(stand(), ["commands.xvel={range: [0, 1], scale: 0.5}"]).commands["xvel"].scale == 0.5


def test_the_latency_that_a_bundle_says_has_the_scale_of_its_channels_in_it():
    config = apply_overrides(stand(), ["channels.action={latency_s: [0.01, 0.02], jitter_s: 0.004, scale: 0.5}"])
    assert config.latency_s("action") == pytest.approx((0.005, 0.012))


def test_a_range_of_stiction_play_or_friction_may_be_for_some_joints_and_another_one_for_others():
    new = "{kind: StictionRandomization, stiction_nm: [0.3, 0.9], joints: [ankle]}"
    texts = ["randomizations.play.joints=[ankle]", "randomizations.joint_friction.joints=[knee]"]
    drawn: dict[str, Any] = apply_overrides(stand(), [*texts, f"randomizations.ankle_stiction={new}"]).randomizations
    assert [drawn[n].joints for n in ("play", "joint_friction", "stiction", "ankle_stiction")] == [
        ("ankle",), ("knee",), (), ("ankle",)
    ]  # fmt: skip


def test_numbers_are_settled_to_the_declared_type():
    config = apply_overrides(stand(), ["ppo.learning_rate=1e-3", "ppo.envs=64.0", "ppo.gamma=1"])
    assert (config.ppo.learning_rate, config.ppo.envs, config.ppo.gamma) == (0.001, 64, 1.0)
    assert type(config.ppo.envs) is int and type(config.ppo.gamma) is float


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"seeed": 1}, ["'seeed'", "unknown", "did you mean seed?"]),
        ({"ppo": {"learning_rat": 1}}, ["'ppo.learning_rat'", "did you mean ppo.learning_rate?"]),
        ({"zzz": 1}, ["'zzz'", "known keys", "episode_length_s"]),
        ({"seed": "three"}, ["seed", "'three'", "an integer"]),
        ({"seed": True}, ["seed", "True", "an integer"]),
        ({"seed": 1.5}, ["seed", "1.5", "an integer"]),
        ({"ppo": {"lam": "fast"}}, ["ppo.lam", "'fast'", "a number"]),
        ({"ppo": {"lam": float("nan")}}, ["ppo.lam", "nan", "a number"]),
        ({"rewards": {"alive": float("inf")}}, ["rewards.alive.weight", "inf", "-1000 to 1000 (a weight)"]),
        ({"policy": {"normalise": 1}}, ["policy.normalise", "true or false"]),
        ({"task": 3}, ["task", "got 3", "known tasks: kbot_stand"]),
        ({"task": [1]}, ["task", "got [1]", "known tasks: kbot_stand"]),
        ({**stand().to_dict(), "task": [1]}, ["task", "got [1]", "a string"]),
        ({"rewards": {"\udcff": {"kind": "AliveReward"}}}, ["rewards.", "udcff", "plain text"]),
        ({"rewards": {"x" * 201: {"kind": "AliveReward"}}}, ["rewards.x", "201 characters", "at most 200"]),
        ({"events": {"": {"kind": "Stall"}}}, ["events.", "a name that is not empty"]),
        ({"ppo": 3}, ["ppo", "3", "a mapping"]),
        ({"seed": {"a": 1}}, ["seed", "an integer"]),
        ([1, 2], ["(file)", "a mapping"]),
        ({"commands": [0, 1]}, ["commands", "a mapping"]),
        ({"commands": {"xvel": 1}}, ["commands.xvel.range", "a list of 2"]),
        ({"channels": {"imu": {"latency_s": [0.1]}}}, ["channels.imu.latency_s", "a list of 2"]),
        ({"channels": {"imu": {"latency_s": [0.1, "x"]}}}, ["channels.imu.latency_s", "a number"]),
        ({"channels": {"imu": {"latency_s": [0.2, 0.1]}}}, ["latency_s", "[0.2, 0.1]", "low at most high"]),
        ({"channels": {"action": {"loss": 1.0}}}, ["channels.action.loss", "1.0", "0 to 0.99 (a share)"]),
        ({"policy": {"smoothing": -0.1}}, ["policy.smoothing", "-0.1"]),
        ({"ppo": {"envs": 10, "minibatches": 4}}, ["ppo.envs", "10", "multiple of ppo.minibatches"]),
        ({"ppo": {"epochs": 0}}, ["ppo.epochs", "got 0", "expected 1 to 1000"]),
        ({"engine": "bullet"}, ["engine", "'bullet'", "auto, mujoco or mjx"]),
        ({"episode_length_s": 0}, ["episode_length_s", "got 0", "expected 0.01 to 3600 (seconds)"]),
    ],
)
def test_a_wrong_value_is_one_line_that_names_key_value_and_remedy(data, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(data)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("text", ["seed", "=3", " =3"])
def test_an_override_without_key_or_value_says_how_to_write_one(text):
    with pytest.raises(ConfigError, match=r"expected key=value, for example --set ppo\.envs=64"):
        apply_overrides(stand(), [text])


def test_an_override_that_is_not_yaml_is_one_line():
    with pytest.raises(ConfigError, match="the value is not YAML") as caught:
        apply_overrides(stand(), ["seed=[1,"])
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_file_that_is_not_yaml_are_one_line_each(yaml_file, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    for text in ("seed: [1\nppo: }", "a: b: c"):
        with pytest.raises(ConfigError, match="not YAML") as caught:
            load_config(yaml_file(text))
        assert "\n" not in str(caught.value)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(binary)


def mixed() -> Config:
    """The standing task with terms that hold others."""
    noise = ChainedNoise(parts=(GaussianNoise(std=0.1), EpisodeBias(width=0.2, scale=LinearScale(low=0.5))))
    base = stand()
    return dataclasses.replace(
        base,
        seed=5,
        ppo=PpoConfig(envs=8),
        observations={**base.observations, "time": TimeObservation(noise=noise)},
        channels={**base.channels, "camera": Channel(rate_hz=(20.0, 20.0), scale=0.5)},
        commands={"joystick": JoystickCommand(xvel=(-1.0, 2.0)), "wave": UniformCommand(name="wave", range=(0.0, 1.0))},
        events={"pushes": ForcePush(force_n=3.0), "stalls": Stall()},
        curriculum=FixedCurriculum(first_level=0.5),
    )


@pytest.mark.parametrize("make", [stand, mixed, Config])
def test_the_resolved_values_give_the_same_configuration_and_digest(make):
    config = make()
    again = from_dict(config.to_dict())
    assert again == config and again.digest == config.digest and again.to_dict() == config.to_dict()
    assert again.digest != dataclasses.replace(config, seed=6).digest


def test_a_whole_configuration_keeps_the_terms_that_it_has_whatever_its_task_gains():
    config = dataclasses.replace(stand(), rewards={"alive": stand().rewards["alive"]})
    assert list(from_dict(config.to_dict()).rewards) == ["alive"]


def test_the_digest_is_that_of_the_plain_values_whatever_their_order():
    values = mixed().to_dict()
    turned = {room: values[room] for room in reversed(values)}
    text = json.dumps(turned, sort_keys=True, separators=(",", ":"))
    assert mixed().digest == from_dict(turned).digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_configuration_is_frozen():
    for owner, name in ((stand(), "seed"), (stand().ppo, "envs"), (stand().rewards["alive"], "weight")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, name, 1)


def test_the_shipped_configuration_loads_and_an_unknown_one_lists_those_there_are():
    assert load_config(shipped_config("kbot_stand.yaml")).task == "kbot_stand"
    with pytest.raises(FileError, match=r"kbot_stand\.yaml"):
        shipped_config("kbot_fly.yaml")


def test_a_key_in_the_wrong_section_is_found_in_the_right_one():
    with pytest.raises(ConfigError, match=r"ppo\.max_minutes.* did you mean run\.max_minutes\?"):
        apply_overrides(stand(), ["ppo.max_minutes=1"])
    with pytest.raises(ConfigError, match=r"did you mean ppo\.envs\?"):
        apply_overrides(stand(), ["ppo.env=64"])


def numbers(section: Settings, prefix: str = "") -> Iterator[tuple[str, Bound | None]]:
    """(key, bound) of every number and range of numbers in a configuration."""
    hints = typing.get_type_hints(type(section), include_extras=True)
    for f in dataclasses.fields(section):
        value, key = getattr(section, f.name), f"{prefix}{f.name}"
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from numbers(inner, f"{key}.{name}.") if isinstance(inner, Settings) else ()
        elif isinstance(value, Settings):
            yield from numbers(value, f"{key}.")
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in _flat(value)):
            yield key, next((m for m in getattr(hints[f.name], "__metadata__", ()) if isinstance(m, Bound)), None)


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) and value else (value,)


# What a Scale has is held to the bound of the field that it stands in.
NUMBERS = dict(numbers(stand()))


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_bounds_and_neither_more_nor_less_is_taken(key):
    bound = NUMBERS[key]
    assert bound is not None, f"{key} has no Bound"
    pair = isinstance(_value(stand(), key), tuple)
    for off in (bound.least - max(1.0, abs(bound.least)), bound.greatest * 2 + 1, 10**400):
        value = int(off) if isinstance(bound.least, int) else off
        text = f"[{value}, {value}]" if pair else f"{value}"
        with pytest.raises(ConfigError) as caught:
            apply_overrides(stand(), [f"{key}={text}"])
        message = str(caught.value)
        assert key in message and "\n" not in message and len(message) < 600


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


def test_values_that_nothing_could_be_done_with_are_refused_with_their_key():
    for text, words in (
        ("ppo.minibatches=0", "expected 1 to"),
        ("physics.control_period_s=0", "expected 0.0001 to 1 (seconds)"),
        ("physics.control_period_s=0.0213", "expected a multiple of physics.timestep_s (0.005)"),
        ("physics.control_period_s=0.001", "expected a multiple"),
        ("seed=99999999999999999999", "expected 0 to 4294967295 (a seed)"),
        ("seed=-1", "got -1, expected 0 to"),
        ("policy.init_std=0", "expected 0.0001 to"),
        ("channels.action.latency_s=[-1, -1]", "got [-1, -1], expected 0 to 2 (seconds)"),
        ("randomizations.link_mass.factor=[-1, -1]", "expected 0.01 to 100 (factors)"),
        ("events.pushes.interval_s=[0, 0]", "expected 0.001 to"),
        ("commands.xvel=[1, -1]", "commands.xvel.range: got [1.0, -1.0], expected low at most high"),
        ("episode_length_s=0.015", "expected a control period (0.02)"),
        ("ppo.learning_rate_min=0.1", "at most ppo.learning_rate_max"),
    ):
        with pytest.raises(ConfigError) as caught:
            apply_overrides(stand(), [text])
        assert text.split("=")[0] in str(caught.value) and words in str(caught.value)


def test_overrides_that_need_each_other_are_checked_together():
    config = apply_overrides(stand(), ["ppo.envs=10", "ppo.minibatches=5", "ppo.envs=20"])
    assert (config.ppo.envs, config.ppo.minibatches) == (20, 5)
    both = apply_overrides(stand(), ["physics.timestep_s=0.008", "physics.control_period_s=0.016"])
    assert both.physics == dataclasses.replace(stand().physics, timestep_s=0.008, control_period_s=0.016)


@pytest.mark.parametrize("text", ["[]", "false", "0", "''", "[1]", "abc"])
def test_a_file_that_holds_no_mapping_is_refused_by_name(yaml_file, text):
    path = yaml_file(text)
    with pytest.raises(ConfigError, match=rf"^{path}: .*expected a mapping"):
        load_config(path)


def test_a_wrong_key_of_a_file_names_the_file(yaml_file):
    path = yaml_file("ppo: {minibatches: 0}")
    with pytest.raises(ConfigError, match=rf"^{path}: configuration key ppo\.minibatches: got 0"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"^configuration key seed"):
        load_config(yaml_file(""), ["seed=x"])


@pytest.mark.parametrize(
    "value", ["2020-13-45", "!!int abc", "9" * 5000, "[" * 5000, "[" * 100 + "]" * 100, "!!bool x"]
)
def test_what_yaml_itself_stumbles_over_is_one_short_line(yaml_file, value):
    path = yaml_file(f"seed: {value}")
    for load in (lambda: load_config(path), lambda: apply_overrides(stand(), [f"seed={value}"])):
        with pytest.raises(ConfigError) as caught:
            load()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_keys_of_absurd_length_or_depth_are_one_short_line():
    for text in ("a" * 10_000 + "=1", "a." * 3000 + "a=1", "commands." + "a." * 3000 + "a=1", "1=2"):
        with pytest.raises(ConfigError) as caught:
            apply_overrides(stand(), [text])
        assert len(str(caught.value)) < 1000


def test_the_latency_of_the_bundle_is_that_of_the_channels_that_the_policy_reads_through():
    base = task_config("kbot_stand")
    slow = Channel(latency_s=(0.5, 0.6))
    read = dataclasses.replace(base.observations["joint_angles"], channel="slow")
    config = dataclasses.replace(
        base,
        channels={**base.channels, "slow": slow},
        observations={**base.observations, "joint_angles": read},
    )
    assert set(config.sensing_channels) == {"slow", "joints", "imu"}
    assert config.latency_s(*config.sensing_channels)[1] == pytest.approx(0.6)
    late = dataclasses.replace(base.observations["joint_angles"], channel="action")
    with pytest.raises(
        ConfigError, match=r"observations\.joint_angles\.channel: got 'action', expected the channel of a"
    ):
        dataclasses.replace(base, observations={**base.observations, "joint_angles": late})
