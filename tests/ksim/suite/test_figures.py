"""Figures of walking, each against a walk made by hand."""

import numpy as np
import pytest

from ksim.environment import make_scene
from ksim.evaluate import wilson
from ksim.load import load_config
from ksim.suite import figures
from ksim.suite.suite import margin
from ksim.suite.walked import Walked

DT = 0.02


@pytest.fixture(scope="module")
def scene():
    return make_scene(load_config("configs/kbot_walk.yaml", []))


def walked(scene, ticks=500, episodes=2, **given):
    """Episodes that stand still at home, but for what is given."""
    shape, joints = (ticks, episodes), (ticks, episodes, scene.joints)
    home = np.broadcast_to(scene.home_rad, joints).copy()
    still = {
        "alive": np.ones(shape, bool),
        "survived": np.ones(episodes, bool),
        "command": np.zeros((*shape, 3)),
        "moving": np.zeros(shape, bool),
        "position": np.zeros((*shape, 3)),
        "heading": np.zeros(shape),
        "velocity": np.zeros((*shape, 2)),
        "yaw_rate": np.zeros(shape),
        "foot_height": np.zeros((*shape, 2)),
        "foot_speed": np.zeros((*shape, 2)),
        "foot_contact": np.ones((*shape, 2), bool),
        "torque": np.zeros(joints),
        "joint_velocity": np.zeros(joints),
        "joint_position": home,
        "target": home.copy(),
        "push_n": np.zeros(shape),
    }
    return Walked(dt_s=DT, scene=scene, **{**still, **given})


def test_survival_has_its_interval(scene):
    w = walked(scene, episodes=100, survived=np.arange(100) < 90)
    figure = figures.survival(w)
    assert figure["survival"] == 0.9
    # Wilson's interval of 90 of 100, from a table
    assert figure["survival_low95"] == pytest.approx(0.8256, abs=1e-4)
    assert figure["survival_high95"] == pytest.approx(0.9448, abs=1e-4)
    assert wilson(5, 5)[1] == 1.0 and wilson(0, 5)[0] == 0.0


def test_errors_are_of_means_from_two_seconds_after_a_change(scene):
    command = np.zeros((500, 2, 3))
    command[250:, :, 0] = 0.5  # at 5 s
    velocity = np.zeros((500, 2, 2))
    velocity[250:350, :, 0] = 9.0  # within 2 s of the change: does not count
    velocity[350:, :, 0] = 0.5
    velocity[350:, 1, 0] = 0.8  # 0.3 too fast in one of two episodes
    # it swings about its mean with the period of a step: that is no error
    velocity[..., 1] = 0.2 * np.sin(2 * np.pi * np.arange(500) * DT / 0.8)[:, None]
    rate = np.where(np.arange(500) >= 350, 0.1, 0.0)[:, None] * np.ones(2)
    figure = figures.tracking(walked(scene, command=command, velocity=velocity, yaw_rate=rate))
    # 3 s after 2 s, twice: 3 windows of 0.8 s each, in each of two episodes
    assert figure["windows"] == 12
    assert figure["xvel_rmse_m_s"] == pytest.approx(np.sqrt(3 * 0.3**2 / 12))
    assert figure["yvel_rmse_m_s"] == pytest.approx(0.0, abs=1e-6)
    assert figure["velocity_rmse_m_s"] == pytest.approx(np.sqrt(3 * 0.3**2 / 12))
    assert figure["yaw_rate_rmse_rad_s"] == pytest.approx(np.sqrt(6 * 0.1**2 / 12))


def test_a_gain_is_the_slope_of_what_is_done_over_what_is_asked(scene):
    command = np.zeros((500, 5, 3))
    command[:, :, 0] = [-0.5, 0.25, 0.5, 1.0, 0.0]  # the last asks for nothing: what it does there is no answer
    command[:, :, 2] = 0.5
    velocity = np.zeros((500, 5, 2))
    velocity[..., 0] = 0.8 * command[..., 0] + 0.05
    velocity[:, 4, 0] = 3.0
    figure = figures.tracking(walked(scene, episodes=5, command=command, velocity=velocity))
    assert figure["xvel_gain"] == pytest.approx(0.8)
    assert figure["yvel_gain"] is None and figure["yawrate_gain"] is None  # never asked for; always the same


def test_a_fall_ends_the_windows(scene):
    alive = np.ones((500, 2), bool)
    alive[100:, 1] = False
    assert figures.tracking(walked(scene, alive=alive))["windows"] == 10  # 8 s / 0.8 s of one episode
    alive[:] = False
    assert figures.tracking(walked(scene, alive=alive))["velocity_rmse_m_s"] is None


def test_swings_have_a_height_a_time_and_a_side(scene):
    contact, height = np.ones((500, 2, 2), bool), np.zeros((500, 2, 2))
    for start, foot, ticks, top in ((50, 0, 20, 0.08), (80, 1, 20, 0.06), (110, 0, 4, 0.2), (490, 1, 10, 0.3)):
        contact[start : start + ticks, 0, foot] = False
        height[start : start + ticks, 0, foot] = top
    asked = {"moving": np.ones((500, 2), bool), "command": np.tile([0.5, 0.0, 0.0], (500, 2, 1))}
    w = walked(scene, foot_contact=contact, foot_height=height, **asked)
    s = figures.swings(w)
    # four ticks are no swing, and the last did not land
    assert s["foot"].tolist() == [0, 1] and s["height_m"].tolist() == [0.08, 0.06]
    assert s["time_s"].tolist() == pytest.approx([0.4, 0.4])
    figure = figures.feet(w)
    assert figure["swings"] == 2 and figure["swings_over_4_cm"] == 1.0
    assert figure["left_right_height"] == pytest.approx(0.02 / 0.07) and figure["left_right_time"] == 0.0
    assert figures.feet(walked(scene, foot_contact=contact, foot_height=height))["swings"] == 0  # nothing was asked


def test_slip_is_of_feet_that_touch_while_motion_is_asked(scene):
    speed, contact = np.full((500, 2, 2), 0.1), np.ones((500, 2, 2), bool)
    contact[..., 1] = False
    speed[..., 1] = 5.0
    moving = np.ones((500, 2), bool)
    w = walked(scene, foot_speed=speed, foot_contact=contact, moving=moving)
    assert figures.feet(w)["slip_m_s"] == pytest.approx(0.1)


def test_effort_by_hand(scene):
    joints = (500, 2, scene.joints)
    torque, speed = np.zeros(joints), np.zeros(joints)
    torque[..., 3], speed[..., 3] = 10.0, 2.0
    target = np.broadcast_to(scene.home_rad, joints).copy()
    target[1::2, :, 3] += 0.1
    command = np.tile([0.5, 0.0, 0.0], (500, 2, 1))
    velocity = np.tile([0.5, 0.0], (500, 2, 1))
    w = walked(scene, torque=torque, joint_velocity=speed, target=target, command=command, velocity=velocity)
    figure = figures.effort(w)
    assert figure["cost_of_transport"] == pytest.approx(20.0 / (scene.mass_kg * 9.81 * 0.5))
    fastest = scene.column("velocity_max_rad_s")[3]
    assert figure["target_speed_p99"] == pytest.approx(0.1 / DT / fastest, rel=1e-3)
    assert figure["target_acceleration_rms_rad_s2"] == pytest.approx(0.2 / DT**2, rel=1e-3)
    assert figure["torque_p99"] == pytest.approx(10.0 / scene.column("torque_limit_nm")[3], rel=1e-6)
    assert figure["targets_at_limit"] == 0.0


def test_standing_tells_drift_turn_and_steps(scene):
    position, heading = np.zeros((500, 2, 3)), np.zeros((500, 2))
    position[:40] = 7.0  # before the first second
    position[300, 0, 0] = 0.04
    heading[300:, 0] = np.radians(3.0)
    heading[:, 1] = np.pi - 1e-3
    heading[300:, 1] = -np.pi + 1e-3  # it passed half a turn by a thousandth
    contact = np.ones((500, 2, 2), bool)
    contact[200:210, 1, 0] = False
    contact[300:303, 0, 0] = False  # a tremble
    figure = figures.standing(walked(scene, position=position, heading=heading, foot_contact=contact))
    assert figure["stood"] == 2
    assert figure["drift_median_m"] == pytest.approx(0.02)
    assert figure["turn_p95_deg"] == pytest.approx(3.0 - 0.05 * (3.0 - np.degrees(2e-3)))
    assert figure["without_a_step"] == 0.5 and figure["steps_mean"] == 0.5
    assert figures.standing(walked(scene, survived=np.zeros(2, bool))) == {"stood": 0}


def test_recovery_sorts_pushes_by_force(scene):
    push, alive = np.zeros((500, 2)), np.ones((500, 2), bool)
    push[100:110, 0], push[300:310, 0], push[100:110, 1] = 30.0, 80.0, 80.0
    alive[200:, 1] = False  # 2 s after its push
    w = walked(scene, push_n=push, alive=alive, survived=np.asarray([True, False]))
    weak, strong = figures.recovery(w, (0.0, 50.0, 100.0))
    assert weak == {"from_n": 0.0, "to_n": 50.0, "pushes": 1, "survived": 1.0}
    assert strong == {"from_n": 50.0, "to_n": 100.0, "pushes": 2, "survived": 0.5}
    alive[200:300, 1] = True  # it fell 4 s after: not the push's
    assert figures.recovery(w, (50.0, 100.0))[0]["survived"] == 1.0
    told = figures.pushes(w)
    assert sorted(told["momentum_n_s"]) == pytest.approx([10 * 30.0 * w.dt_s, 10 * 80.0 * w.dt_s, 10 * 80.0 * w.dt_s])
    assert told["survived"].all() and not len(figures.pushes(walked(scene))["force_n"])


def test_only_keeps_whole_episodes(scene):
    w = walked(scene, episodes=3, survived=np.asarray([True, False, True]))
    assert w.only(w.survived).episodes == 2 and w.only(np.asarray([1])).survived.tolist() == [False]


def test_the_margin_is_where_the_worst_stiction_falls_below_nine_tenths():
    ages = (0.0, 0.02, 0.04)

    def cells(*rows):
        return [
            {"age_s": age, "stiction_nm": nm, "survival": p}
            for nm, row in enumerate(rows)
            for age, p in zip(ages, row, strict=True)
        ]

    assert margin(cells((1.0, 1.0, 1.0), (1.0, 0.95, 0.92)), ages) == 0.04
    assert margin(cells((1.0, 1.0, 1.0), (1.0, 1.0, 0.8)), ages) == pytest.approx(0.03)
    assert margin(cells((1.0, 1.0, 1.0), (0.8, 1.0, 1.0)), ages) == 0.0
