"""Margins measured for real, small: a policy whose margins are known because it tests for lateness and then falls."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deploy.bundle.margins import conditions
from deploy.bundle.session import OnnxPolicy
from export import convert
from export.margins import MarginSettings, _alter, answer, calm, measure, rungs
from ksim.channels import Channel
from ksim.config import Config
from ksim.environment import make_environment
from ksim.evaluate import OnnxBatchPolicy, evaluate
from ksim.tasks.stand import stand
from robots import load_robot
from robots.margins import STANDS
from robots.spec import CommandSpec, PolicySpec, input_specs

ROBOT = load_robot("kbot")
HOME = np.asarray(ROBOT.column("home_rad"), np.float32)
N = len(HOME)
ARM = ROBOT.joint_names.index("dof_left_shoulder_pitch_03")
# Nothing random but the pushes that the task has, and a sensor channel that is late by 20 ms in the middle.
TASK = dataclasses.replace(
    stand(),
    observations={
        name: dataclasses.replace(term, noise=None) if hasattr(term, "noise") else term
        for name, term in stand().observations.items()
    },
    resets={},
    channels={"action": Channel(), "joints": Channel(), "imu": Channel(latency_s=(0.01, 0.03), rate_hz=(20.0, 20.0))},
)
SMALL = MarginSettings(
    episodes=2,
    episode_s=0.8,
    imu_age_s=(0.0, 0.1),
    joint_age_s=(0.0, 0.02, 0.06, 0.08),
    action_latency_s=(0.0, 0.02, 0.06),
    held_ticks=(0, 1, 5),
)


def spec_of(*names: str) -> PolicySpec:
    commands = tuple(CommandSpec(name=name, low=0.0, high=0.0) for name in ("xvel", "yvel", "yawrate"))
    known = input_specs(ROBOT, commands)
    return PolicySpec(
        task="kbot_stand", robot=ROBOT, inputs=tuple(known[n] for n in names), commands=commands, carry_size=0,
        control_period_s=0.02, action_low_rad=tuple(ROBOT.column("lower_rad")),
        action_high_rad=tuple(ROBOT.column("upper_rad")),
    )  # fmt: skip


def raises_an_arm_and_looks(inputs, carry):
    """Holds home with an arm on its way up; an arm that is not seen to move within 60 ms makes it collapse."""
    tick, late = carry["tick"], carry["late"]
    unmoved = inputs["joint_angles"][ARM] - HOME[ARM] < 0.02
    late = jnp.where((tick == 3.0) & unmoved, 1.0, late)
    low = jnp.asarray(ROBOT.column("lower_rad"), jnp.float32)
    raised = jnp.asarray(HOME).at[ARM].add(0.5)
    return jnp.where(late > 0.0, low, raised), {"tick": tick + 1.0, "late": late}


FIRST = {"tick": np.zeros(1, np.float32), "late": np.zeros(1, np.float32)}


@pytest.fixture(scope="module")
def looks():
    return convert(raises_an_arm_and_looks, FIRST, spec_of("joint_angles"))


@pytest.fixture(scope="module")
def measured(looks):
    return measure(looks, TASK, SMALL)


def test_the_ladders_have_the_margins_that_the_policy_was_built_with(measured):
    assert measured.joint_age_s.margin == 0.02 and not measured.joint_age_s.at_least
    assert measured.action_latency_s.margin == 0.02 and not measured.action_latency_s.at_least
    # it reads no IMU, and its target never changes
    assert measured.imu_age_s.margin == 0.1 and measured.imu_age_s.at_least
    assert measured.held_ticks.margin == 5 and measured.held_ticks.at_least
    survived = [rung.survived for rung in measured.joint_age_s.rungs]
    assert survived == [2, 2, 0, 0] and STANDS == 0.9


def test_what_it_was_measured_in_is_told(measured):
    assert (measured.engine, measured.seed, measured.episode_s) == ("mujoco", 1, 0.8)
    assert measured.others_s == {"action": 0.0, "joints": 0.0, "imu": pytest.approx(0.02)}
    assert {rung.episodes for ladder in measured.ladders.values() for rung in ladder.rungs} == {2}
    assert [a.share for a in measured.answers] == [0.0, 0.2, 0.5, 1.0]


def ramp(inputs, carry):
    """Joints that bend by 0.02 rad a tick, whatever is seen."""
    tick = carry["tick"]
    return jnp.asarray(HOME) - 0.02 * tick + 0.0 * inputs["joint_angles"], {"tick": tick + 1.0}


@pytest.fixture(scope="module")
def driven():
    """(ladder, value) of each environment, its joint readings and the commands in force, both (T, E, N)."""
    bundle = convert(ramp, {"tick": np.zeros(1, np.float32)}, spec_of("joint_angles"))
    settings = dataclasses.replace(SMALL, episodes=1, episode_s=1.5, joint_age_s=(0.0, 0.04), held_ticks=(0, 1, 5))
    todo, task = rungs(TASK, settings), dataclasses.replace(calm(TASK, settings), terminations={})
    told: list[np.ndarray] = []
    result = evaluate(
        task,
        OnnxBatchPolicy(bundle),
        episodes=len(todo),
        seed=1,
        record=True,
        environment=make_environment(task, len(todo), "mujoco"),
        alter=_alter(TASK, todo, 0.02),
        watch=lambda before, targets, drive, running: told.append(np.asarray(drive.command)[:, -1]),
    )
    assert result.inputs is not None
    return todo, result.inputs["joint_angles"], np.stack(told)


def test_readings_are_late_by_the_rung_and_by_nothing_else(driven):
    todo, seen, _ = driven
    fresh, late = todo.index(("joint_age_s", 0.0)), todo.index(("joint_age_s", 0.04))
    np.testing.assert_allclose(seen[2:15, late], seen[:13, fresh], atol=1e-6)
    assert np.abs(seen[2:15, late] - seen[2:15, fresh]).max() > 1e-3


def test_commands_are_late_by_the_rung(driven):
    todo, _, sent = driven
    at_once, late = todo.index(("action_latency_s", 0.0)), todo.index(("action_latency_s", 0.06))
    np.testing.assert_array_equal(sent[3:20, late], sent[:17, at_once])


def test_a_command_is_held_for_as_many_ticks_as_the_rung_says(driven):
    todo, _, sent = driven
    for ticks in (0, 1, 5):
        one = sent[:70, todo.index(("held_ticks", float(ticks))), 0]
        still = np.flatnonzero(np.diff(one) == 0.0)
        hangs = np.split(still, np.flatnonzero(np.diff(still) > 1) + 1)
        # the first comes within 1.3 s
        assert [len(hang) for hang in hangs] == ([0] if ticks == 0 else [ticks] * len(hangs)), ticks


def test_ladders_of_channels_that_bring_the_policy_nothing_are_left_out():
    bare = Config(channels={"action": Channel(), "imu": Channel()})
    assert {name for name, _ in rungs(bare, SMALL)} == {"action_latency_s", "held_ticks"}


def test_a_task_in_which_nothing_falls_has_no_ladders_but_answers(looks):
    found = measure(looks, dataclasses.replace(TASK, terminations={}), dataclasses.replace(SMALL, answer_s=2.0))
    assert found.ladders == {} and len(found.answers) == 4
    assert conditions(found) == "not measured: nothing in the task counts as a fall"


def winds(gain: float):
    """The target moves on from the last one by what it was not followed: an integrator."""

    def step(inputs, carry):
        target = carry["target"] + gain * (carry["target"] + 0.01 - inputs["joint_angles"])
        low, high = (jnp.asarray(ROBOT.column(end), jnp.float32) for end in ("lower_rad", "upper_rad"))
        target = jnp.clip(target, low, high)
        return target, {"target": target}

    return convert(step, {"target": HOME.copy()}, spec_of("joint_angles"))


def test_an_integrator_winds_up_on_joints_that_do_not_follow_and_not_on_those_that_do():
    bundle = winds(0.003)
    policy = OnnxPolicy(bundle)
    blocked, free = (answer(policy, bundle.spec, share, 5.0) for share in (0.0, 1.0))
    # blocked: x' = x + g (x + 0.01), from 0: 0.01 ((1 + g)^250 - 1) after 250 ticks, and 200 ticks before the last
    assert blocked.earlier_rad == pytest.approx(0.01 * (1.003**200 - 1), rel=0.02)
    assert blocked.last_rad == pytest.approx(0.01 * (1.003**250 - 1), rel=0.02)
    assert not free.winds_up and free.pull_rad == pytest.approx(0.003 * 0.01, rel=0.05)
    steep = winds(0.02)
    found = answer(OnnxPolicy(steep), steep.spec, 0.0, 3.0)
    assert found.winds_up and found.last_rad == pytest.approx(0.01 * (1.02**150 - 1), rel=0.02)


def test_a_policy_that_holds_home_is_not_pulled_and_at_no_limit():
    bundle = convert(lambda inputs, carry: (HOME + 0.0 * inputs["joint_angles"], carry), FIRST, spec_of("joint_angles"))
    found = answer(OnnxPolicy(bundle), bundle.spec, 0.2, 2.0)
    assert found.pull_rad < 1e-6 and not found.winds_up and found.at_limit == 0.0
