"""Commands: names, ranges, shares, and when they change."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import commands
from ksim.clock import GaitClock, places
from ksim.curriculum import LinearScale
from ksim.errors import ConfigError
from ksim.scene import Scene
from toolkit.errors import SettingsError

DRAWS = 2000


def drawn(term, level=1.0):
    keys = jax.random.split(jax.random.key(5), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: term.sample(key, level)))(keys))


def five_errors(share):
    return 5.0 * math.sqrt(share * (1.0 - share) / DRAWS)


def test_one_command_of_any_name_is_uniform_in_its_range():
    term = commands.UniformCommand(name="baseheight", range=(-0.2, 0.1))
    values = drawn(term)[:, 0]
    assert values.min() >= -0.2 and values.max() <= 0.1
    assert abs(values.mean() + 0.05) < 5 * 0.3 / math.sqrt(12 * DRAWS)
    (spec,) = term.specs
    assert (spec.name, spec.low, spec.high, spec.unit) == ("baseheight", -0.2, 0.1, "m")
    assert commands.UniformCommand(name="wave").specs[0].unit == ""


def test_the_joystick_stands_and_goes_straight_as_often_as_it_is_told():
    term = commands.JoystickCommand(xvel=(0.5, 1.0), yvel=(0.1, 0.4), yawrate=(-1.0, -0.5), standing=0.25, straight=0.5)
    assert [s.name for s in term.specs] == ["xvel", "yvel", "yawrate"]
    values = drawn(term)
    standing = (values == 0).all(axis=1)
    straight = ~standing & (values[:, 1:] == 0).all(axis=1)
    assert abs(standing.mean() - 0.25) < five_errors(0.25)
    assert abs(straight.mean() - 0.375) < five_errors(0.375)
    moving = values[~standing]
    assert moving[:, 0].min() >= 0.5 and moving[:, 0].max() <= 1.0
    turning = values[~standing & ~straight]
    assert turning[:, 2].min() >= -1.0 and turning[:, 2].max() <= -0.5


def test_a_command_follows_the_level_where_its_scale_does():
    term = commands.JoystickCommand(standing=0.0, straight=0.0, scale=LinearScale(low=0.1, high=1.0))
    full, tenth = drawn(term, 1.0), drawn(term, 0.0)
    np.testing.assert_allclose(tenth, 0.1 * full, rtol=1e-5)


def test_height_is_zero_as_often_as_it_is_told_and_below_standing_otherwise():
    values = drawn(commands.BaseHeightCommand(baseheight=(-0.2, -0.1), upright=0.5))[:, 0]
    assert abs((values == 0).mean() - 0.5) < five_errors(0.5)
    low = values[values != 0]
    assert low.min() >= -0.2 and low.max() <= -0.1


def test_roll_and_pitch_come_together_in_their_ranges():
    term = commands.BaseTiltCommand(baseroll=(0.1, 0.2), basepitch=(-0.4, -0.3), upright=0.25)
    assert [(s.name, s.unit) for s in term.specs] == [("baseroll", "rad"), ("basepitch", "rad")]
    values = drawn(term)
    none = (values == 0).all(axis=1)
    assert abs(none.mean() - 0.25) < five_errors(0.25)
    assert (values[~none] >= [0.1, -0.4]).all() and (values[~none] <= [0.2, -0.3]).all()


def test_arm_targets_have_kscales_names_in_its_order_and_lie_within_the_robots_limits(scene):
    term = commands.ArmCommand()
    sides = ("shoulderpitch", "shoulderroll", "shoulderyaw", "elbowpitch", "wristroll")
    assert [s.name for s in term.specs] == [f"{side}{name}" for side in "rl" for name in sides]
    assert {s.unit for s in term.specs} == {"rad"}
    joints = {command: joint for joint, command in commands.arm_joints(scene.joint_names).items()}
    low = dict(zip(scene.joint_names, scene.column("lower_rad"), strict=True))
    high = dict(zip(scene.joint_names, scene.column("upper_rad"), strict=True))
    home = dict(zip(scene.joint_names, scene.home_rad, strict=True))
    for spec in term.specs:
        joint = joints[spec.name]
        assert low[joint] <= spec.low < home[joint] < spec.high <= high[joint], spec.name


def test_arms_rest_in_the_middle_and_a_scale_brings_them_nearer_to_it():
    term = commands.ArmCommand(joints={"relbowpitch": (1.0, 2.0)}, resting=0.5, scale=LinearScale(low=0.1, high=1.0))
    far, near = drawn(term, 1.0)[:, 0], drawn(term, 0.0)[:, 0]
    assert abs((far == 1.5).mean() - 0.5) < five_errors(0.5)
    assert far.min() < 1.05 and far.max() > 1.95
    np.testing.assert_allclose(near - 1.5, 0.1 * (far - 1.5), atol=1e-6)


def test_arm_joints_are_found_by_their_words_and_two_that_fit_are_refused(scene):
    found = commands.arm_joints(scene.joint_names)
    assert len(found) == 10
    assert found["dof_right_elbow_02"] == "relbowpitch" and found["dof_left_wrist_00"] == "lwristroll"
    assert not any("knee" in joint for joint in found)
    assert commands.arm_joints(["left_knee"]) == {}
    with pytest.raises(ConfigError, match="command relbowpitch: fits right_elbow_1, right_elbow_2, expected one"):
        commands.arm_joints(["right_elbow_1", "right_elbow_2"])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: commands.ArmCommand(joints={}), "joints"),
        (lambda: commands.ArmCommand(joints={"relbowpitch": (2.0, 1.0)}), "joints"),
        (lambda: commands.BaseTiltCommand(baseroll=(-3.0, 0.0)), "baseroll"),
        (lambda: commands.JoystickCommand(standing=1.5), "standing"),
    ],
)
def test_ranges_that_cannot_be_are_refused(make, key):
    with pytest.raises(SettingsError, match=key):
        make()


def test_a_command_changes_after_its_interval_and_not_before(posed, scene):
    term = commands.UniformCommand(name="xvel", range=(0.0, 1.0), interval_s=(0.05, 0.05))
    carry = term.initial_carry(jax.random.key(0), 1.0)
    values = [float(carry["value"][0])]
    for step in range(6):
        carry = term.next_command(posed(key=jax.random.key(100 + step)), carry)
        values.append(float(carry["value"][0]))
    # 20 ms a step: what is drawn holds for two steps and changes at the third, after 60 ms
    assert values[0] == values[1] == values[2] != values[3]
    assert values[3] == values[4] == values[5] != values[6]


def test_a_command_without_an_interval_stays_for_the_episode(posed):
    term = commands.UniformCommand(name="xvel", range=(0.0, 1.0))
    carry = term.initial_carry(jax.random.key(0), 1.0)
    for _ in range(3):
        after = term.next_command(posed(key=jax.random.key(7)), carry)
        assert after is carry
        carry = after


def test_the_waits_of_two_draws_differ_within_their_range():
    term = commands.UniformCommand(name="xvel", interval_s=(2.0, 4.0))
    waits = [float(term.initial_carry(jax.random.key(i), 1.0)["left_s"]) for i in range(50)]
    assert min(waits) >= 2.0 and max(waits) <= 4.0 and max(waits) - min(waits) > 1.0


@pytest.mark.parametrize("old", ["vx", "vy", "yaw_rate"])
def test_policies_of_the_old_names_are_read_by_the_new_ones_and_the_other_way_round(scene, old):
    new = {"vx": "xvel", "vy": "yvel", "yaw_rate": "yawrate"}[old]
    older = Scene(built=scene.built, command_names=("vx", "vy", "yaw_rate"))
    assert older.command(new) == older.command(old) == ("vx", "vy", "yaw_rate").index(old)
    assert scene.command(old) == scene.command(new) == scene.command_names.index(new)
    assert places(GaitClock(commands=(new,)), older.command_names) == (older.command(old),)


def test_a_command_term_is_written_and_read_back():
    term = commands.ArmCommand(joints={"relbowpitch": (1.0, 2.0)}, interval_s=(1.0, 2.0))
    assert commands.Command.from_dict({"kind": "ArmCommand", **term.to_dict()}) == term
    assert dataclasses.replace(term, resting=0.0) != term
    assert jnp.shape(term.sample(jax.random.key(0), 1.0)) == (1,)
