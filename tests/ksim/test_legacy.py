"""Configurations of the first version: YAML files, overrides and the shipped checkpoint say what they said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ksim import legacy
from ksim.config import Config
from ksim.curriculum import FixedCurriculum, SurvivalCurriculum
from ksim.errors import ConfigError
from ksim.learning import checkpoint
from ksim.learning.description import read_config
from ksim.load import from_dict, load_config
from ksim.tasks.stand import stand
from toolkit.settings import apply_overrides

ROOT = Path(__file__).parents[2]
# what the first version of this toolkit shipped
FIRST = ROOT / "tests" / "first_version"


def at(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


# Every key of the first version, with a value that no task has, and the keys that hold it now.
RANGE = (0.25, 0.5)
ROWS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "reset.joint_position_rad": (0.31, ("resets.joint_position.width_rad",)),
    "reset.joint_velocity_rad_s": (0.31, ("resets.joint_velocity.width_rad_s",)),
    "reset.tilt_rad": (0.31, ("resets.tilt.width_rad",)),
    "reset.lin_vel_m_s": (0.31, ("resets.base_velocity.lin_vel_m_s",)),
    "reset.ang_vel_rad_s": (0.31, ("resets.base_velocity.ang_vel_rad_s",)),
    "reset.lift_m": (0.31, ("resets.height.lift_m",)),
    "randomization.friction": (RANGE, ("randomizations.friction.factor",)),
    "randomization.link_mass": (RANGE, ("randomizations.link_mass.factor",)),
    "randomization.payload_kg": (RANGE, ("randomizations.payload.mass_kg",)),
    "randomization.com_m": (0.31, ("randomizations.com.width_m",)),
    "randomization.armature": (RANGE, ("randomizations.armature.factor",)),
    "randomization.kp": (RANGE, ("randomizations.kp.factor",)),
    "randomization.kd": (RANGE, ("randomizations.kd.factor",)),
    "randomization.torque_limit": (RANGE, ("randomizations.torque_limit.factor",)),
    "randomization.joint_friction": (RANGE, ("randomizations.joint_friction.factor",)),
    "randomization.damping": (RANGE, ("randomizations.damping.damping",)),
    "randomization.joint_offset_rad": (0.31, ("randomizations.joint_offset.width_rad",)),
    "randomization.imu_tilt_rad": (0.31, ("randomizations.imu_tilt.width_rad",)),
    "latency.action_s": (RANGE, ("channels.action.latency_s",)),
    "latency.observation_s": (RANGE, ("channels.joints.latency_s", "channels.imu.latency_s")),
    "latency.jitter_s": (0.31, ("channels.action.jitter_s", "channels.joints.jitter_s", "channels.imu.jitter_s")),
    "latency.loss": (0.31, ("channels.action.loss",)),
    "noise.joint_position_rad": (0.31, ("observations.joint_angles.noise.std",)),
    "noise.joint_velocity_rad_s": (0.31, ("observations.joint_angular_velocities.noise.std",)),
    "noise.gravity_m_s2": (0.31, ("observations.projected_gravity.noise.std",)),
    "noise.gyro_rad_s": (0.31, ("observations.gyroscope.noise.std",)),
    "noise.accel_m_s2": (0.31, ("observations.accelerometer.noise.std",)),
    "pushes.force_n": (0.31, ("events.pushes.force_n",)),
    "pushes.duration_s": (RANGE, ("events.pushes.duration_s",)),
    "pushes.interval_s": (RANGE, ("events.pushes.interval_s",)),
    "terminations.height_share": (0.31, ("terminations.base_too_low.height_share",)),
    "terminations.tilt_deg": (31.0, ("terminations.too_tilted.tilt_deg",)),
    **{
        f"rewards.{name}": (0.31, (f"rewards.{name}.weight",))
        for name in (
            *("alive", "upright", "base_height", "base_velocity", "base_spin", "joint_deviation", "joint_velocity"),
            *("torque", "action_rate", "joint_limits", "fall"),
        )
    },
}


@pytest.mark.parametrize("key", ROWS)
def test_an_old_key_sets_what_it_set_from_a_file_and_from_an_override_and_nothing_else(key):
    value, now = ROWS[key]
    section, name = key.split(".")
    plain = list(value) if isinstance(value, tuple) else value
    for config in (from_dict({section: {name: plain}}), apply_overrides(stand(), [f"{key}={plain}"])):
        assert [at(config, k) for k in now] == [value] * len(now)
        before, after = stand().to_dict(), config.to_dict()
        assert changed(before, after) == set(now)


def changed(old: Any, new: Any, prefix: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return set() if old == new else {prefix}
    keys = {*old, *new}
    return set().union(*(changed(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k) for k in keys))


def test_the_table_has_no_row_that_is_not_tested_here():
    moved = {f"{section}.{name}" for section, keys in legacy._MOVED.items() for name in keys}
    assert moved | {f"terminations.{name}" for name in legacy._TERMINATIONS} == {
        key for key in ROWS if not key.startswith("rewards.")
    }


def test_the_old_switch_of_the_curriculum_is_one_of_two_kinds():
    assert from_dict({"pushes": {"curriculum": False}}).curriculum == FixedCurriculum()
    assert from_dict({"pushes": {"curriculum": True}}).curriculum == SurvivalCurriculum()
    assert FixedCurriculum().first_level == 1.0  # as it was without a curriculum


def test_an_old_mapping_of_commands_is_the_whole_of_them_in_its_order():
    config = from_dict({"commands": {"yaw_rate": [-1, 1], "vx": [0, 0.5]}})
    assert [(c.name, c.low, c.high, c.unit) for c in config.command_specs] == [
        ("yaw_rate", -1.0, 1.0, "rad/s"),
        ("vx", 0.0, 0.5, "m/s"),
    ]
    assert from_dict({"commands": {}}).command_specs == ()


def test_an_override_finds_a_command_under_its_other_name_whichever_the_configuration_has():
    old = from_dict({"commands": {"vx": [0, 0], "yaw_rate": [0, 0]}})
    for name in ("vx", "xvel"):
        config = apply_overrides(old, [f"commands.{name}=[0.5, 0.75]"])
        assert [(c.name, c.low, c.high) for c in config.command_specs] == [("vx", 0.5, 0.75), ("yaw_rate", 0.0, 0.0)]


def test_old_keys_and_new_ones_may_stand_in_one_file():
    config = from_dict(
        {
            "reset": {"tilt_rad": 0.1},
            "resets": {"height": {"lift_m": 0.2}},
            "terminations": {"tilt_deg": 45, "not_finite": None},
        }
    )
    assert at(config, "resets.tilt.width_rad") == 0.1 and at(config, "resets.height.lift_m") == 0.2
    assert list(config.terminations) == ["base_too_low", "too_tilted"]
    assert at(config, "terminations.too_tilted.tilt_deg") == 45.0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"pushes": {"forc_n": 1}}, ["'pushes'", "events.pushes"]),
        ({"randomization": {"mass": [1, 1]}}, ["'randomization'", "randomizations"]),
        ({"reset": 3}, ["'reset'", "resets"]),
        ({"latency": {"action_s": [0.2, 0.1]}}, ["channels.action.latency_s", "low at most high"]),
        ({"noise": {"gyro_rad_s": -1}}, ["observations.gyroscope.noise.std", "got -1"]),
        ({"pushes": {"curriculum": "often"}}, ["pushes.curriculum", "'often'", "true or false"]),
        ({"pushes": None}, ["'pushes'", "got None", "a mapping of force_n", "events.pushes=null"]),
        ({"noise": None}, ["'noise'", "got None", "observations.NAME.noise=null"]),
        ({"latency": {}}, ["'latency'", "got {}", "channels.NAME"]),
        ({"randomization": {}}, ["'randomization'", "randomizations"]),
        ({"pushes": {"force_n": 3}, "events": {"pushes": {"force_n": 4}}}, ["pushes.force_n", "events.pushes.force_n"]),
        ({"pushes": {"force_n": 3}, "events": {"pushes": None}}, ["pushes.force_n and events.pushes are"]),
        ({"pushes": {"force_n": 3}, "events": None}, ["pushes.force_n and events are"]),
        ({"pushes": {"force_n": 3}, "events": {}}, ["pushes.force_n and events are"]),
        (
            {"terminations": {"tilt_deg": 45, "too_tilted": None}},
            ["terminations.tilt_deg and terminations.too_tilted are"],
        ),
        (
            {"pushes": {"curriculum": True}, "curriculum": {"kind": "FixedCurriculum"}},
            ["pushes.curriculum and curriculum are"],
        ),
    ],
)
def test_a_mistake_in_an_old_key_is_one_line_that_names_what_it_is_now(data, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(data)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# What a run of the first version wrote as its config.yaml says of the task as it is now.
SHIPPED_DIFFERS = {
    "seed": 2,
    "policy.target_speed": 1.0,
    "run.total_steps": 30_000_000,
    "run.max_minutes": 60.0,
    "run.save_every_updates": 100,
}


def test_the_shipped_runs_old_configuration_is_todays_task_with_what_it_set():
    old = load_config(FIRST / "kbot_stand.yaml")
    values = {key: at(old, key) for key in SHIPPED_DIFFERS}
    assert values == SHIPPED_DIFFERS
    assert [(c.name, c.low, c.high, c.unit) for c in old.command_specs] == [
        ("vx", 0.0, 0.0, "m/s"),
        ("vy", 0.0, 0.0, "m/s"),
        ("yaw_rate", 0.0, 0.0, "rad/s"),
    ]
    base = stand()
    # all else that it does not name is as the task has it today, and what it names is as it says
    late = {name: dataclasses.replace(c, latency_s=(0.002, 0.02), jitter_s=0.004) for name, c in base.channels.items()}
    late["action"] = dataclasses.replace(base.channels["action"], latency_s=(0.003, 0.015), jitter_s=0.004, loss=0.03)
    assert old == dataclasses.replace(
        base,
        seed=2,
        commands=old.commands,
        channels=late,
        policy=dataclasses.replace(base.policy, target_speed=1.0),
        run=dataclasses.replace(base.run, total_steps=30_000_000, max_minutes=60.0, save_every_updates=100),
    )
    assert at(old, "observations.accelerometer.noise.std") == 0.3


def test_the_shipped_checkpoints_configuration_is_that_of_its_file():
    meta, _ = checkpoint.read(FIRST / "kbot_stand.ckpt", wanted=("nothing",))
    assert "randomization" in meta["config"]  # it was written by the first version
    assert from_dict(meta["config"]) == load_config(FIRST / "kbot_stand.yaml")


def test_what_is_no_setting_any_more_may_still_say_that_it_is_not_used():
    assert from_dict({"policy": {"symmetric": False, "hidden": 32}, "ppo": {"symmetry_weight": 1.0}}) == from_dict(
        {"policy": {"hidden": 32}}
    )
    for change in ({"policy": {"symmetric": True}}, {"ppo": {"symmetry_weight": 2.0}}):
        with pytest.raises(ConfigError, match=r"got (True|2.0); it is gone, expected ppo.symmetry: exact"):
            from_dict(change)


def test_a_checkpoint_is_read_whatever_was_for_training_alone():
    meta, _ = checkpoint.read(FIRST / "kbot_stand.ckpt", wanted=("nothing",))
    taught = {**meta["config"], "ppo": {**meta["config"]["ppo"], "predict": 3.0}}
    assert read_config("old.ckpt", {"config": taught}) == from_dict(meta["config"])
    with pytest.raises(ConfigError, match=r"ppo.predict: got 3.0; it is gone, expected policy.estimator"):
        from_dict(taught)


# configs/kbot_stand.yaml as the first version shipped it.
FIRST_FORM = """
task: kbot_stand
robot: kbot
seed: 0
engine: auto
episode_length_s: 10.0
pushes:
  force_n: 40.0
  duration_s: [0.1, 0.5]
  interval_s: [1.5, 2.25]
policy:
  hold: [shoulder, elbow, wrist]
ppo:
  envs: 192
  rollout_steps: 24
run:
  total_steps: 6000000
  max_minutes: 20.0
"""


def test_the_first_form_of_the_shipped_file_still_loads(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(FIRST_FORM)
    config = load_config(path, ["latency.loss=0.5"])
    assert at(config, "events.pushes.force_n") == 40.0 and at(config, "events.pushes.interval_s") == (1.5, 2.25)
    assert at(config, "channels.action.loss") == 0.5
    assert config == apply_overrides(
        stand(), ["events.pushes.force_n=40", "events.pushes.interval_s=[1.5, 2.25]", "channels.action.loss=0.5"]
    )
