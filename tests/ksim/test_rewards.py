"""Rewards: one hand-computed test a term; those with a memory over rollouts and episodes."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import rewards
from ksim.curriculum import LinearScale
from ksim.errors import ConfigError
from ksim.gait import swing_height
from ksim.randomization import nominal
from ksim.rewards import Reward, StatefulReward, exp_kernel
from ksim.scene import Scene
from ksim.types import GRAVITY, Action, PhysicsState, Trajectory
from robots import motor, rotation
from robots.model import build_model

COMMANDS = ("xvel", "yvel", "yawrate", "baseheight", "baseroll", "basepitch", "lelbowpitch")
LEFT_KNEE, RIGHT_KNEE = "dof_left_knee_04", "dof_right_knee_04"
E1 = math.exp(-1.0)
Make = Callable[..., Trajectory]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """The K-Bot with the sensors of its feet."""
    built = build_model("kbot", 0.005, shapes=False, sensors=("foot_position", "foot_velocity", "foot_quat"))
    return Scene(built=built, control_period_s=0.02, command_names=COMMANDS, moved=tuple(range(20)))


def feet_at_home(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(positions, orientations) of the feet's sites in the home pose, from MuJoCo."""
    import mujoco

    library: Any = mujoco
    data = library.MjData(scene.built.model)
    data.qpos[:] = scene.built.home_qpos
    library.mj_forward(scene.built.model, data)
    parts = [[data.sensordata[scene.sensor(f"foot_{k}_{f}")] for f in scene.feet] for k in ("position", "quat")]
    return np.asarray(parts[0]), np.asarray(parts[1])


@pytest.fixture(scope="module")
def make(scene: Scene) -> Make:
    """`make(steps, ...)`: a trajectory that stands at home on both feet, asked for nothing, but for what is named.

    Arguments are (T, ...) or what broadcasts to it: `joints`, `joint_vel` and `command` by name; `position`, `quat`,
    `lin_vel_w`, `ang_vel_b` of the base; `foot_position`, `foot_velocity`, `foot_quat`, `touch` of the feet;
    `gravity_quat` of the IMU; fields of Trajectory.
    """
    home_feet = feet_at_home(scene)
    asked = dict.fromkeys(COMMANDS, 0.0)

    def build(steps: int = 1, **given: Any) -> Trajectory:
        def rows(name: str, default: Any, shape: tuple[int, ...] = ()) -> Any:
            return np.broadcast_to(np.asarray(given.pop(name, default), np.float32), (steps, *shape))

        qpos = np.tile(np.asarray(scene.built.home_qpos, np.float32), (steps, 1))
        qvel = np.zeros((steps, scene.built.model.nv), np.float32)
        at, to = scene.base_qpos, scene.base_qvel
        qpos[:, at : at + 3] = rows("position", qpos[0, at : at + 3], (3,))
        qpos[:, at + 3 : at + 7] = rows("quat", qpos[0, at + 3 : at + 7], (4,))
        qvel[:, to : to + 3], qvel[:, to + 3 : to + 6] = rows("lin_vel_w", 0, (3,)), rows("ang_vel_b", 0, (3,))
        for vector, ids, name in ((qpos, scene.built.qpos_ids, "joints"), (qvel, scene.built.dof_ids, "joint_vel")):
            for joint, value in given.pop(name, {}).items():
                vector[:, ids[scene.joint_names.index(joint)]] = value
        sensors = np.zeros((steps, scene.built.model.nsensordata), np.float32)
        sensors[:, scene.sensor("imu_quat")] = rows("gravity_quat", [1, 0, 0, 0], (4,))
        defaults = {"foot_position": home_feet[0], "foot_quat": home_feet[1], "foot_velocity": np.zeros((2, 3))}
        for prefix, default in (defaults | {"touch": np.full((2, 1), 170.0)}).items():
            shape = (2, default.shape[-1])
            value = given.pop(prefix, default)
            value = np.asarray(value, np.float32)[..., None] if prefix == "touch" and np.ndim(value) < 3 else value
            value = np.broadcast_to(np.asarray(value, np.float32).reshape((-1, *shape)), (steps, *shape))
            for foot, name in enumerate(scene.feet):
                sensors[:, scene.sensor(f"{prefix}_{name}")] = value[:, foot]
        torque = rows("torque", 0, (20,))
        command = asked | given.pop("command", {})
        columns = [np.broadcast_to(np.asarray(v, np.float32), (steps,)) for v in command.values()]
        action = Action(*(jnp.asarray(rows(k, d, (20,))) for k, d in (("raw", 0.0), ("target", scene.home_rad))))
        physics = PhysicsState(
            qpos=jnp.asarray(qpos),
            qvel=jnp.asarray(qvel),
            torque=jnp.asarray(torque),
            sensordata=jnp.asarray(sensors),
            motor=jax.tree.map(
                lambda v: jnp.tile(v, (steps, 1)),
                motor.rest(nominal(scene, ()).motor, jnp.asarray(scene.home_rad), jnp),
            ),
            history={},
            internal=(),
            scene=scene,
        )
        no = np.zeros(steps, bool)
        values = {
            "command": np.stack(columns, axis=-1),
            "phase": np.zeros(steps, np.float32),
            "moving": no,
            "first": np.arange(steps) == 0,
            "time_s": np.arange(steps, dtype=np.float32) * 0.02,
            **{"done": no, "timeout": no, "fell": no, "level": np.float32(1.0)},
        }
        for name in values:
            if name in given:
                values[name] = np.broadcast_to(np.asarray(given.pop(name), values[name].dtype), values[name].shape)
        assert not given, f"unknown: {list(given)}"
        return Trajectory(physics=physics, action=action, **{k: jnp.asarray(v) for k, v in values.items()})

    return build


def of(term: Reward, trajectory: Trajectory) -> list[float]:
    """The figures of a trajectory."""
    values = np.asarray(term.get_reward(trajectory))
    assert values.shape == (len(trajectory),)
    return values.tolist()


def test_exp_kernel_is_one_at_no_error_and_exp_of_minus_four_at_two_widths():
    assert float(exp_kernel(jnp.asarray(0.0), 0.5)) == 1.0
    assert float(exp_kernel(jnp.asarray(1.0**2), 0.5)) == pytest.approx(math.exp(-4))


def test_alive_is_one_and_a_fall_is_a_sum_whatever_the_period(make: Make):
    fell = make(2, fell=[False, True])
    assert of(rewards.AliveReward(), fell) == [1.0, 1.0]
    # weight x period x figure is then the weight, once
    assert [0.02 * v for v in of(rewards.FallPenalty(), fell)] == pytest.approx([0.0, 1.0])


def test_upright_is_one_when_upright_and_exp_of_minus_one_at_the_tilt_of_its_width(make: Make):
    tilted = rotation.from_rotvec(np.asarray([math.asin(0.2), 0.0, 0.0]))
    turned = rotation.from_yaw(1.0)
    trajectory = make(2, gravity_quat=[tilted, turned])
    assert of(rewards.UprightReward(width=0.2), trajectory) == pytest.approx([E1, 1.0], rel=1e-5)


def test_base_height_follows_its_command(make: Make, scene: Scene):
    x, y, z = scene.built.home_qpos[scene.base_qpos :][:3]
    trajectory = make(3, position=[(x, y, z), (x, y, z - 0.16), (x, y, z - 0.08)], command={"baseheight": -0.08})
    expected = [E1, E1, 1.0]
    assert of(rewards.BaseHeightReward(width_m=0.08), trajectory) == pytest.approx(expected, rel=1e-3)
    lower = rewards.BaseHeightReward(width_m=0.08, below_standing_m=0.08)
    assert of(lower, trajectory) == pytest.approx([math.exp(-4), 1.0, E1], rel=1e-3, abs=1e-6)


def test_base_velocity_is_horizontal_vertical_velocity_is_the_rest(make: Make):
    trajectory = make(1, lin_vel_w=(0.3, -0.4, 0.5))
    assert of(rewards.BaseVelocityPenalty(), trajectory) == pytest.approx([0.25])
    assert of(rewards.VerticalVelocityPenalty(), trajectory) == pytest.approx([0.25])


def test_spin_has_three_axes_and_roll_and_pitch_rate_those_that_are_horizontal_in_the_world(make: Make):
    # rolled by a quarter turn, the body's y axis is the world's up
    rolled = rotation.from_rotvec(np.asarray([math.pi / 2, 0.0, 0.0]))
    trajectory = make(2, quat=[rolled, (1, 0, 0, 0)], ang_vel_b=(1.0, 2.0, 3.0))
    assert of(rewards.BaseSpinPenalty(), trajectory) == pytest.approx([14.0, 14.0])
    assert of(rewards.RollPitchRatePenalty(), trajectory) == pytest.approx([10.0, 5.0], rel=1e-5)


def test_velocity_is_tracked_in_the_frame_of_the_heading(make: Make):
    # the robot looks along the world's y, and goes there with 0.5 m/s
    turned = {"quat": rotation.from_yaw(math.pi / 2), "lin_vel_w": (0.0, 0.5, 0.3)}
    trajectory = make(3, **turned, command={"xvel": [0.5, 0.0, 0.5], "yvel": [0.0, 0.0, -0.5]})
    assert of(rewards.LinearVelocityTrackingReward(width_m_s=0.5), trajectory) == pytest.approx([1.0, E1, E1], rel=1e-5)


def test_yaw_rate_is_tracked_about_the_worlds_vertical(make: Make):
    rolled = rotation.from_rotvec(np.asarray([math.pi / 2, 0.0, 0.0]))
    trajectory = make(2, quat=rolled, ang_vel_b=(0.0, 0.3, 7.0), command={"yawrate": [0.3, 0.8]})
    assert of(rewards.AngularVelocityTrackingReward(width_rad_s=0.5), trajectory) == pytest.approx([1.0, E1], rel=1e-5)


def test_a_mean_velocity_forgets_what_sways_and_comes_near_with_its_time(make: Make):
    # 0.02 s a step: with a time of 0.08 s the mean goes a quarter of the way each step
    swaying = make(4, lin_vel_w=np.asarray([[0.4, 0, 0], [-0.4, 0, 0], [0.4, 0, 0], [-0.4, 0, 0]]))
    term = rewards.MeanLinearVelocityTrackingReward(time_s=0.08, width_m_s=0.1)
    means = [0.1, -0.025, 0.08125, -0.0390625]
    assert of(term, swaying) == pytest.approx([math.exp(-((m / 0.1) ** 2)) for m in means], rel=1e-4)
    # the error, not the velocity, is what is averaged: with the right command there is none
    right = make(3, lin_vel_w=(0.5, 0.0, 0.0), command={"xvel": [0.5, 0.5, 0.5]})
    assert of(term, right) == pytest.approx([1.0, 1.0, 1.0])
    term = rewards.MeanAngularVelocityTrackingReward(time_s=0.04, width_rad_s=0.2)
    turning = make(2, ang_vel_b=(0.0, 0.0, 0.3), command={"yawrate": [-0.1, -0.1]})
    assert of(term, turning) == pytest.approx([E1, math.exp(-(1.5**2))], rel=1e-4)


def test_roll_and_pitch_follow_their_commands_whatever_the_heading(make: Make):
    pitched = rotation.multiply(rotation.from_yaw(2.0), rotation.from_rotvec(np.asarray([0.0, 0.2, 0.0])))
    trajectory = make(3, quat=pitched, command={"basepitch": [0.2, 0.0, 0.2], "baseroll": [0.0, 0.0, 0.2]})
    expected = [1.0, E1, E1]
    assert of(rewards.BaseOrientationTrackingReward(width_rad=0.2), trajectory) == pytest.approx(expected, rel=1e-4)


def test_joints_follow_the_commands_that_the_task_has(make: Make):
    elbow = "dof_left_elbow_02"
    term = rewards.JointTrackingReward(
        width_rad=0.3, joints={elbow: "lelbowpitch", "dof_right_elbow_02": "relbowpitch"}
    )
    trajectory = make(2, joints={elbow: [-1.5, -1.2]}, command={"lelbowpitch": -1.5})
    assert of(term, trajectory) == pytest.approx([1.0, E1], rel=1e-4)
    assert of(rewards.JointTrackingReward(), trajectory) == [1.0, 1.0]
    with pytest.raises(ConfigError, match="no joint 'elbow'"):
        rewards.JointTrackingReward(joints={"elbow": "lelbowpitch"}).get_reward(trajectory)


def test_a_swing_rises_half_way_at_a_quarter_and_is_flat_at_its_top_and_its_ends():
    heights = swing_height(jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0]), 0.08)
    np.testing.assert_allclose(heights, [0.0, 0.04, 0.08, 0.04, 0.0], atol=1e-7)
    slope = jax.vmap(jax.grad(lambda s: swing_height(s, 1.0)))(jnp.asarray([1e-4, 0.4999, 0.9999]))
    np.testing.assert_allclose(slope, 0.0, atol=3e-3)


def lifted(scene: Scene, *by: tuple[float, float]) -> np.ndarray:
    """Positions of the feet (T, 2, 3), so much above where they stand."""
    home = feet_at_home(scene)[0]
    return np.stack([home + np.asarray([[0.0, 0.0, a], [0.0, 0.0, b]]) for a, b in by])


def test_feet_follow_the_clock_half_a_turn_apart_and_stand_while_it_rests(make: Make, scene: Scene):
    up, down, half = (0.09, 0.0), (0.0, 0.09), (0.045, 0.0)
    quarter, miss = math.pi / 2, math.exp(-2 * (0.09 / 0.1) ** 2)
    cases = [  # phase, moving, heights of the feet, reward
        (quarter, True, up, 1.0),
        (quarter, True, down, miss),
        (3 * quarter, True, down, 1.0),
        (3 * quarter, True, up, miss),
        (quarter / 2, True, half, 1.0),
        (0.0, False, (0.0, 0.0), 1.0),
        (0.0, False, (0.0, 0.1), E1),
    ]
    phase, moving, heights, expected = zip(*cases, strict=True)
    trajectory = make(len(cases), phase=phase, moving=moving, foot_position=lifted(scene, *heights))
    term = rewards.FeetPhaseReward(height_m=0.09, width_m=0.1)
    assert of(term, trajectory) == pytest.approx(expected, rel=1e-4)


def test_a_shorter_swing_leaves_both_feet_on_the_floor_between_the_steps(make: Make, scene: Scene):
    # at 0.45 of a turn a swing of 0.4 is over, and the other foot's begins at 0.5
    trajectory = make(1, phase=0.45 * 2 * math.pi, moving=True)
    assert of(rewards.FeetPhaseReward(swing=0.4), trajectory) == pytest.approx([1.0], rel=1e-5)
    assert of(rewards.ContactPhaseReward(swing=0.4), trajectory) == [1.0]
    assert of(rewards.ContactPhaseReward(swing=0.5), trajectory) == [0.5]


def test_contact_after_the_clock_counts_the_feet_that_are_right(make: Make):
    first, both, none = (0.0, 200.0), (200.0, 200.0), (0.0, 0.0)
    trajectory = make(
        5,
        phase=[1.0, 1.0, 4.0, 0.0, 0.0],
        moving=[True, True, True, False, False],
        touch=[first, both, first, both, none],
    )
    assert of(rewards.ContactPhaseReward(), trajectory) == [1.0, 0.5, 0.0, 1.0, 0.0]


def test_slip_counts_the_feet_that_touch(make: Make):
    trajectory = make(1, touch=[(100.0, 0.0)], foot_velocity=[[(0.3, 0.4, 1.0), (2.0, 0.0, 0.0)]])
    assert of(rewards.FeetSlipPenalty(), trajectory) == pytest.approx([0.25])


def test_feet_are_too_close_sideways_in_the_headings_frame_and_more_so_when_crossed(make: Make):
    # looking along the world's y, left is the world's -x
    feet = [[(-x, 0.0, 0.02), (x, 0.3, 0.02)] for x in (0.05, -0.02, 0.2)]
    trajectory = make(3, quat=rotation.from_yaw(math.pi / 2), foot_position=feet)
    assert of(rewards.FeetTooClosePenalty(least_m=0.17), trajectory) == pytest.approx([0.07, 0.21, 0.0], abs=1e-6)


def test_feet_are_flat_as_at_home_and_may_turn(make: Make, scene: Scene):
    home = feet_at_home(scene)[1]
    tilted = rotation.multiply(rotation.from_rotvec(np.asarray([0.2, 0.0, 0.0])), home[0])
    turned = rotation.multiply(rotation.from_yaw(0.7), home[1])
    trajectory = make(2, foot_quat=[home, (tilted, turned)])
    expected = [0.0, 2 * (1 - math.cos(0.2))]
    assert of(rewards.FeetOrientationPenalty(), trajectory) == pytest.approx(expected, abs=1e-6)


def test_a_foot_that_is_low_and_fast_is_not_clear(make: Make, scene: Scene):
    trajectory = make(1, foot_position=lifted(scene, (0.05, 0.0)), foot_velocity=[[(0.16, 0.0, 3.0), (0.0, 0.0, 0.0)]])
    # 0.04^2 m^2 of height that lacks, times the root of 0.16 m/s; the foot that stands counts nothing
    assert of(rewards.FeetClearancePenalty(height_m=0.09), trajectory) == pytest.approx([0.0016 * 0.4], rel=1e-4)


def test_a_foots_force_counts_from_so_many_weights_on(make: Make, scene: Scene):
    weight = scene.mass_kg * GRAVITY
    trajectory = make(1, touch=[(1.5 * weight, 1.0 * weight)])
    assert of(rewards.FeetForcePenalty(body_weights=1.2), trajectory) == pytest.approx([0.3], rel=1e-4)


def stepping(*contacts: int) -> np.ndarray:
    """Forces of the feet (T, 2): the left one in contact where 1, the right one throughout."""
    return np.stack([(200.0 * c, 200.0) for c in contacts])


def test_air_time_counts_at_the_touch_down_once_and_not_before_the_foot_has_stood(make: Make):
    touch = stepping(0, 1, 0, 0, 0, 1, 1)
    term = rewards.FeetAirTimeReward(threshold_s=0.04)
    moving = make(7, touch=touch, moving=True)
    # three steps of 0.02 s in the air, 0.02 s more than asked; a figure over one period is that, once
    assert [0.02 * v for v in of(term, moving)] == pytest.approx([0, 0, 0, 0, 0, 0.02, 0], abs=1e-6)
    assert of(term, make(7, touch=touch, moving=False)) == [0.0] * 7


def test_clearance_is_the_top_of_the_swing_at_its_touch_down_and_at_most_one(make: Make, scene: Scene):
    heights = [(h, 0.0) for h in (0.0, 0.03, 0.045, 0.02, 0.0, 0.2, 0.0)]
    trajectory = make(7, touch=stepping(1, 0, 0, 0, 1, 0, 1), foot_position=lifted(scene, *heights))
    figures = [0.02 * v for v in of(rewards.FeetClearanceReward(height_m=0.09), trajectory)]
    assert figures == pytest.approx([0, 0, 0, 0, 0.5, 0, 1.0], abs=1e-4)


def test_a_landing_is_as_hard_as_the_speed_before_it(make: Make):
    vertical = [[(0.0, 0.0, v), (0.0, 0.0, -9.0)] for v in (0.0, 0.4, -0.5, 0.0)]
    trajectory = make(4, touch=stepping(1, 0, 0, 1), foot_velocity=vertical)
    assert [0.02 * v for v in of(rewards.SoftLandingPenalty(), trajectory)] == pytest.approx([0, 0, 0, 0.25])


def test_a_single_contact_holds_for_its_grace_and_rest_is_right_anyhow(make: Make):
    touch = stepping(0, 1, 1, 1, 0)
    term = rewards.SingleContactReward(grace_s=0.04)
    assert of(term, make(5, touch=touch, moving=True)) == [1, 1, 1, 0, 1]
    assert of(term, make(5, touch=touch, moving=False)) == [1] * 5


def test_standing_still_counts_joints_and_lifted_feet_at_rest_alone(make: Make):
    trajectory = make(2, joint_vel={LEFT_KNEE: 2.0}, touch=[(0.0, 200.0)], moving=[False, True])
    # 2^2 over 20 joints, and half the feet
    assert of(rewards.StandStillPenalty(lifted=3.0), trajectory) == pytest.approx([0.2 + 1.5, 0.0])


def test_feet_move_at_rest(make: Make):
    trajectory = make(2, foot_velocity=[[(0.3, 0.0, 0.4), (0.0, 0.1, 0.0)]], moving=[False, True])
    assert of(rewards.FeetAtRestPenalty(), trajectory) == pytest.approx([0.26, 0.0])


def test_motionless_at_rest_is_one_without_motion_and_none_while_motion_is_asked(make: Make):
    trajectory = make(
        4,
        lin_vel_w=[(0, 0, 0), (0, 0, 0.1), (0, 0, 0), (0, 0, 0)],
        ang_vel_b=[(0, 0, 0), (0, 0, 0), (0.3, 0, 0), (0, 0, 0)],
        moving=[False, False, False, True],
    )
    term = rewards.MotionlessAtRestReward(width_m_s=0.1, width_rad_s=0.3)
    assert of(term, trajectory) == pytest.approx([1.0, E1, E1, 0.0], rel=1e-5)


def test_joint_deviation_sums_the_named_joints_and_may_count_at_rest_alone(make: Make, scene: Scene):
    home = dict(zip(scene.joint_names, scene.home_rad.tolist(), strict=True))
    moved = {LEFT_KNEE: home[LEFT_KNEE] + 0.2, RIGHT_KNEE: home[RIGHT_KNEE] - 0.1}
    trajectory = make(2, joints=moved, moving=[True, False])
    assert of(rewards.JointDeviationPenalty(), trajectory) == pytest.approx([0.05, 0.05], rel=1e-4)
    assert of(rewards.JointDeviationPenalty(joints=("right",)), trajectory) == pytest.approx([0.01, 0.01], rel=1e-4)
    assert of(rewards.JointDeviationPenalty(at_rest=True), trajectory) == pytest.approx([0.0, 0.05], rel=1e-4)


def test_posture_has_a_width_per_joint_and_narrower_ones_at_rest(make: Make, scene: Scene):
    home = dict(zip(scene.joint_names, scene.home_rad.tolist(), strict=True))
    moved = {LEFT_KNEE: home[LEFT_KNEE] + 0.5, "dof_left_hip_yaw_03": home["dof_left_hip_yaw_03"] + 0.2}
    trajectory = make(2, joints=moved, moving=[True, False])
    # (0.5/0.25)^2 + (0.2/0.1)^2 over 20 joints is 0.4; widths of half the size make it 1.6
    term = rewards.PostureReward(widths_rad={"knee": 0.25, "hip": 0.1}, width_rad=1.0, at_rest=0.5)
    assert of(term, trajectory) == pytest.approx([math.exp(-0.4), math.exp(-1.6)], rel=1e-4)
    # only the four joints of knees and hip yaws count: 8 over 4
    some = rewards.PostureReward(widths_rad={"knee": 0.25, "hip_yaw": 0.1}, width_rad=0.0, at_rest=1.0)
    assert of(some, trajectory) == pytest.approx([math.exp(-2.0)] * 2, rel=1e-4)
    # the first word that fits is the one
    first = rewards.PostureReward(widths_rad={"hip_yaw": 0.1, "hip": 9.0, "knee": 0.25}, width_rad=1.0, at_rest=1.0)
    assert of(first, trajectory) == pytest.approx([math.exp(-0.4)] * 2, rel=1e-3)
    with pytest.raises(ConfigError, match="no joint's name contains 'toe'"):
        rewards.PostureReward(widths_rad={"toe": 0.1}).get_reward(trajectory)


def test_joint_velocity_is_a_sum_of_squares(make: Make):
    trajectory = make(1, joint_vel={LEFT_KNEE: 2.0, RIGHT_KNEE: -1.0})
    assert of(rewards.JointVelocityPenalty(), trajectory) == pytest.approx([5.0])


def test_joint_limits_count_from_the_inner_share_of_the_range_on(make: Make, scene: Scene):
    knee = scene.built.spec.joint(LEFT_KNEE)
    middle, half = 0.5 * (knee.lower_rad + knee.upper_rad), 0.5 * (knee.upper_rad - knee.lower_rad)
    trajectory = make(3, joints={LEFT_KNEE: [middle + 0.9 * half, middle - half, middle]})
    rest = of(rewards.JointLimitsPenalty(inner=0.8), trajectory)
    # what the other joints' home poses exceed is the same in each step
    assert np.asarray(rest) - rest[2] == pytest.approx([0.1 * half, 0.2 * half, 0.0], abs=1e-5)


def torques(scene: Scene, share: float, *joints: str) -> np.ndarray:
    """So much of the torque limit at some joints, (20,)."""
    limit = scene.column("torque_limit_nm")
    return np.where([name in joints for name in scene.joint_names], share * limit, 0.0)


def test_torque_counts_as_a_share_of_its_limit(make: Make, scene: Scene):
    trajectory = make(1, torque=torques(scene, 0.9, LEFT_KNEE, RIGHT_KNEE))
    assert of(rewards.TorquePenalty(), trajectory) == pytest.approx([2 * 0.81 / 20])
    assert of(rewards.TorqueOverLimitPenalty(share=0.7), trajectory) == pytest.approx([2 * 0.04], rel=1e-4)


def test_energy_is_power_whichever_way_it_flows_and_transport_costs_it_over_weight_and_speed(make: Make, scene: Scene):
    torque = np.where([n == LEFT_KNEE for n in scene.joint_names], 10.0, 0.0)
    torque = torque - np.where([n == RIGHT_KNEE for n in scene.joint_names], 5.0, 0.0)
    trajectory = make(
        3,
        torque=torque,
        joint_vel={LEFT_KNEE: 2.0, RIGHT_KNEE: 4.0},
        lin_vel_w=[(0.3, 0.4, 9.0), (0.0, 0.0, 0.0), (0.5, 0.0, 0.0)],
        moving=[True, True, False],
    )
    assert of(rewards.EnergyPenalty(), trajectory) == pytest.approx([40.0] * 3)
    weight = scene.mass_kg * GRAVITY
    expected = [40 / (weight * 0.5), 40 / (weight * 0.2), 0.0]
    assert of(rewards.CostOfTransportPenalty(least_m_s=0.2), trajectory) == pytest.approx(expected, rel=1e-4)


def powers(order: int, steps: int = 6) -> np.ndarray:
    """t^order in the first of 20 channels, zero in the others, (T, 20)."""
    out = np.zeros((steps, 20))
    out[:, 0] = np.arange(steps, dtype=float) ** order
    return out


def test_changes_of_the_action_are_differences_of_first_second_and_third_order(make: Make):
    # the n-th difference of t^n is n!; an episode's first n steps have none
    assert of(rewards.ActionVelocityPenalty(), make(6, raw=powers(1))) == pytest.approx([0, 1, 1, 1, 1, 1])
    assert of(rewards.ActionAccelerationPenalty(), make(6, raw=powers(2))) == pytest.approx([0, 0, 4, 4, 4, 4])
    assert of(rewards.ActionJerkPenalty(), make(6, raw=powers(3))) == pytest.approx([0, 0, 0, 36, 36, 36])
    assert of(rewards.ActionAccelerationPenalty(), make(6, raw=powers(1) + 5.0)) == pytest.approx([0] * 6)


def test_targets_have_a_speed_as_a_share_of_the_joints_and_an_acceleration(make: Make, scene: Scene):
    fastest = float(scene.column("velocity_max_rad_s")[0])
    # from step to step 0.75 of what the joint could go
    trajectory = make(3, target=0.75 * fastest * 0.02 * powers(1, 3))
    assert of(rewards.TargetVelocityPenalty(), trajectory) == pytest.approx([0, 0.5625, 0.5625], rel=1e-4)
    assert of(rewards.TargetVelocityPenalty(share=0.5), trajectory) == pytest.approx([0, 0.0625, 0.0625], rel=1e-4)
    # a second difference of 2 x 1e-3 rad over 0.02 s squared is 5 rad/s^2
    bent = make(4, target=1e-3 * powers(2, 4))
    assert of(rewards.TargetAccelerationPenalty(), bent) == pytest.approx([0, 0, 25, 25], rel=1e-3)


def test_symmetry_compares_each_joint_with_its_mirror_image_over_time(make: Make, scene: Scene):
    home = dict(zip(scene.joint_names, scene.home_rad.tolist(), strict=True))
    # time_s of one step: the means are the values themselves
    term = rewards.SymmetryReward(time_s=0.02, width_rad=0.1, width_rad_s=1.0)
    one = {LEFT_KNEE: home[LEFT_KNEE] + 0.1}
    both = one | {RIGHT_KNEE: home[RIGHT_KNEE] + float(scene.mirror.joint_sign[0]) * 0.1}
    assert of(term, make(1, joints=both)) == pytest.approx([1.0], rel=1e-5)
    # two of twenty joints, left and right, differ by one width
    assert of(term, make(1, joints=one)) == pytest.approx([math.exp(-0.1)], rel=1e-4)
    assert of(term, make(1, joint_vel={RIGHT_KNEE: -2.0})) == pytest.approx([math.exp(-0.4)], rel=1e-4)
    assert of(term, make(1, joints=one, command={"yvel": 0.3})) == [1.0]
    # with a longer memory, alternating knees are equal on average
    slow = dataclasses.replace(term, time_s=0.04)
    values = of(slow, make(2, joints={LEFT_KNEE: home[LEFT_KNEE] + np.asarray([0.2, 0.0])}))
    # means of 0.1, then 0.05: the second counts a quarter of the first
    assert values == pytest.approx([math.exp(-0.1), math.exp(-0.025)], rel=1e-4)


def every(kind: type[Reward]) -> Iterator[type[Reward]]:
    """All subclasses that can be made, of this package."""
    for sub in kind.__subclasses__():
        if not inspect.isabstract(sub) and sub.__module__.startswith("ksim."):
            yield sub
        yield from every(sub)


def test_every_reward_is_importable_from_ksim_rewards():
    for kind in every(Reward):
        assert getattr(rewards, kind.__name__) is kind
        assert kind.__name__ in rewards.__all__


def test_a_weight_may_follow_the_curriculum():
    term = rewards.FeetAirTimeReward(weight=LinearScale(low=0.0, high=0.5), threshold_s=0.4)
    assert rewards.FeetAirTimeReward.from_dict(term.to_dict()) == term


@pytest.fixture(scope="module")
def wild(make: Make, scene: Scene) -> Trajectory:
    """Twelve steps of everything at random; the second episode begins at the seventh."""
    rng = np.random.default_rng(5)
    names = (LEFT_KNEE, RIGHT_KNEE, "dof_left_hip_roll_03")
    return make(
        12,
        first=[t in (0, 7) for t in range(12)],
        moving=rng.random(12) < 0.8,
        touch=np.where(rng.random((12, 2)) < 0.5, 0.0, 200.0),
        foot_position=feet_at_home(scene)[0] + rng.normal(0, 0.05, (12, 2, 3)),
        foot_velocity=rng.normal(-0.5, 1, (12, 2, 3)),
        joints={name: rng.normal(0, 0.5, 12) for name in names},
        joint_vel={name: rng.normal(0, 2, 12) for name in names},
        raw=rng.normal(0, 1, (12, 20)),
        target=rng.normal(0, 1, (12, 20)),
        lin_vel_w=rng.normal(0, 0.5, (12, 3)),
        ang_vel_b=rng.normal(0, 0.5, (12, 3)),
    )


def cut(trajectory: Trajectory, begin: int, end: int) -> Trajectory:
    """Some of its steps."""
    part = jax.tree.map(lambda v: v[begin:end], dataclasses.replace(trajectory, level=trajectory.first))
    return dataclasses.replace(part, level=trajectory.level)


STATEFUL = sorted(every(StatefulReward), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", STATEFUL)
def test_rollouts_in_a_row_are_as_one_long_one_and_an_episode_starts_without_memory(
    kind: type[StatefulReward], wild: Trajectory, scene: Scene
):
    short = {"SingleContactReward": {"grace_s": 0.02}, "FeetAirTimeReward": {"threshold_s": 0.01}}
    term = kind(**short.get(kind.__name__, {}))
    start = term.initial_carry(scene)
    rollout = jax.jit(term.get_reward_stateful)
    whole, last = rollout(wild, start)
    assert np.ptp(np.asarray(whole)) > 0.0
    for begin, expected in ((0, whole), (7, whole[7:])):
        carry, values = start, []
        for at in range(begin, 12):
            value, carry = rollout(cut(wild, at, at + 1), carry)
            values.append(value)
        np.testing.assert_allclose(np.concatenate(values), expected, rtol=1e-5, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry, last)
