"""The typed configuration: YAML and overrides over defaults, and one line for each mistake."""

from __future__ import annotations

import dataclasses

import pytest

from ksim.bounds import BOUNDS
from ksim.config import Config, LatencyConfig, PpoConfig, apply_overrides, from_dict, load_config
from ksim.errors import ConfigError
from toolkit.files import shipped_config


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_an_empty_file_is_the_defaults(yaml_file):
    assert load_config(yaml_file("")) == Config() == from_dict({})


def test_a_file_changes_what_it_names_and_nothing_else(yaml_file):
    path = yaml_file("seed: 7\nppo: {envs: 64, gamma: 0.5}\nlatency:\n  action_s: [0.001, 0.002]\npolicy:\n")
    config = load_config(path)
    base = Config()
    assert config == dataclasses.replace(
        base,
        seed=7,
        ppo=dataclasses.replace(base.ppo, envs=64, gamma=0.5),
        latency=dataclasses.replace(base.latency, action_s=(0.001, 0.002)),
    )


def test_an_override_wins_over_the_file(yaml_file):
    config = load_config(
        yaml_file("seed: 7\nppo: {envs: 64}\n"), ["ppo.envs=32", "seed = 9", "pushes.curriculum=false"]
    )
    assert (config.ppo.envs, config.seed, config.pushes.curriculum) == (32, 9, False)


def test_commands_are_a_mapping_that_an_override_replaces():
    config = apply_overrides(Config(), ["commands={vx: [-1, 1]}"])
    assert config.commands == {"vx": (-1.0, 1.0)}


def test_numbers_are_settled_to_the_declared_type():
    config = from_dict({"ppo": {"learning_rate": "1e-3", "envs": 64.0, "gamma": 1}})
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
        ({"ppo": {"gamma": "fast"}}, ["ppo.gamma", "'fast'", "a number"]),
        ({"ppo": {"gamma": float("nan")}}, ["ppo.gamma", "nan", "a number"]),
        ({"rewards": {"alive": float("inf")}}, ["rewards.alive", "inf", "a number"]),
        ({"pushes": {"curriculum": 1}}, ["pushes.curriculum", "true or false"]),
        ({"task": 3}, ["task", "3", "a string"]),
        ({"ppo": 3}, ["ppo", "3", "a mapping"]),
        ({"seed": {"a": 1}}, ["seed", "an integer"]),
        ([1, 2], ["(file)", "a mapping"]),
        ({"commands": [0, 1]}, ["commands", "a mapping"]),
        ({"commands": {"vx": 1}}, ["commands.vx", "a list of 2"]),
        ({"latency": {"action_s": [0.1]}}, ["latency.action_s", "a list of 2"]),
        ({"latency": {"action_s": [0.1, "x"]}}, ["latency.action_s[1]", "a number"]),
        ({"latency": {"action_s": [0.2, 0.1]}}, ["action_s", "[0.2, 0.1]", "low at most high"]),
        ({"latency": {"loss": 1.0}}, ["latency.loss", "1.0", "[0, 1)"]),
        ({"policy": {"smoothing": -0.1}}, ["policy.smoothing", "-0.1"]),
        ({"ppo": {"envs": 10, "minibatches": 4}}, ["ppo.envs", "10", "multiple of ppo.minibatches"]),
        ({"ppo": {"epochs": 0}}, ["ppo.epochs", "got 0", "expected 1 to 1000"]),
        ({"engine": "bullet"}, ["engine", "'bullet'", "auto, mujoco or mjx"]),
        ({"episode_length_s": 0}, ["episode_length_s", "got 0.0", "expected 0.01 to 3600 (seconds)"]),
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
        apply_overrides(Config(), [text])


def test_an_override_that_is_not_yaml_is_one_line():
    with pytest.raises(ConfigError, match="the value is not YAML") as caught:
        apply_overrides(Config(), ["seed=[1,"])
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


def test_the_resolved_values_give_the_same_configuration_and_digest():
    config = Config(
        seed=5, ppo=PpoConfig(envs=8), latency=LatencyConfig(action_s=(0.0, 0.1)), commands={"vx": (0.0, 1.0)}
    )
    again = from_dict(config.to_dict())
    assert again == config and again.digest == config.digest
    assert again.digest != dataclasses.replace(config, seed=6).digest


def test_a_configuration_is_frozen():
    for owner, name in ((Config(), "seed"), (Config().ppo, "envs")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, name, 1)


def test_the_shipped_configuration_loads_and_an_unknown_one_lists_those_there_are():
    assert load_config(shipped_config("kbot_stand.yaml")).task == "kbot_stand"
    with pytest.raises(ConfigError, match=r"kbot_stand\.yaml"):
        shipped_config("kbot_fly.yaml")


def test_a_key_in_the_wrong_section_is_found_in_the_right_one():
    with pytest.raises(ConfigError, match=r"ppo\.max_minutes.* did you mean run\.max_minutes\?"):
        apply_overrides(Config(), ["ppo.max_minutes=1"])
    with pytest.raises(ConfigError, match=r"did you mean ppo\.envs\?"):
        apply_overrides(Config(), ["ppo.env=64"])


PAIRS = {f.name for s in (Config().randomization, Config().latency, Config().pushes) for f in dataclasses.fields(s)
         if isinstance(getattr(s, f.name), tuple)}  # fmt: skip


def numeric_keys(section, prefix=""):
    """Every key of a configuration that holds numbers, with one that it may not hold."""
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            yield from numeric_keys(value, f"{prefix}{f.name}.")
        elif f.name == "commands":
            yield "commands.vx"
        elif f.name in PAIRS or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield f"{prefix}{f.name}"


@pytest.mark.parametrize("key", list(numeric_keys(Config())))
def test_every_number_has_bounds_and_neither_more_nor_less_is_taken(key):
    bound = BOUNDS["commands" if key.startswith("commands") else key]
    pair = key.startswith("commands") or key.split(".")[-1] in PAIRS
    for off in (bound.least - max(1.0, abs(bound.least)), bound.greatest * 2 + 1, 10**400):
        value = int(off) if isinstance(bound.least, int) else off
        text = f"[{value}, {value}]" if pair else f"{value}"
        with pytest.raises(ConfigError) as caught:
            apply_overrides(Config(), [f"{key}={text}"])
        message = str(caught.value)
        assert key.rpartition(".vx")[0] or key in message
        assert "\n" not in message and len(message) < 600


def test_values_that_nothing_could_be_done_with_are_refused_with_their_key():
    for text, words in (
        ("ppo.minibatches=0", "expected 1 to"),
        ("physics.control_period_s=0", "expected 0.0001 to 1 (seconds)"),
        ("physics.control_period_s=0.0213", "expected a multiple of physics.timestep_s (0.005)"),
        ("physics.control_period_s=0.001", "expected a multiple"),
        ("seed=99999999999999999999", "expected 0 to 4294967295 (a seed)"),
        ("seed=-1", "got -1, expected 0 to"),
        ("policy.init_std=0", "expected 0.0001 to"),
        ("latency.action_s=[-1, -1]", "got [-1.0, -1.0], expected 0 to 1 (seconds)"),
        ("randomization.link_mass=[-1, -1]", "expected 0.01 to 100 (factors)"),
        ("pushes.interval_s=[0, 0]", "expected 0.001 to"),
        ("commands={vx: [1, -1]}", "commands.vx: got [1.0, -1.0], expected low at most high"),
        ("episode_length_s=0.015", "expected a control period (0.02)"),
        ("ppo.learning_rate_min=0.1", "at most ppo.learning_rate_max"),
    ):
        with pytest.raises(ConfigError) as caught:
            apply_overrides(Config(), [text])
        assert text.split("=")[0] in str(caught.value) and words in str(caught.value)


def test_overrides_that_need_each_other_are_checked_together():
    config = apply_overrides(Config(), ["ppo.envs=10", "ppo.minibatches=5", "ppo.envs=20"])
    assert (config.ppo.envs, config.ppo.minibatches) == (20, 5)
    both = apply_overrides(Config(), ["physics.timestep_s=0.008", "physics.control_period_s=0.016"])
    assert both.physics == dataclasses.replace(Config().physics, timestep_s=0.008, control_period_s=0.016)
    # commands are one mapping, which an override replaces
    assert apply_overrides(Config(), ["commands.a=[0, 1]", "commands.b=[0, 1]"]).commands == {"b": (0.0, 1.0)}


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
    for load in (lambda: load_config(path), lambda: apply_overrides(Config(), [f"seed={value}"])):
        with pytest.raises(ConfigError) as caught:
            load()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_keys_of_absurd_length_or_depth_are_one_short_line():
    for text in ("a" * 10_000 + "=1", "a." * 3000 + "a=1", "commands." + "a." * 3000 + "a=1", "1=2"):
        with pytest.raises(ConfigError) as caught:
            apply_overrides(Config(), [text])
        assert len(str(caught.value)) < 1000
