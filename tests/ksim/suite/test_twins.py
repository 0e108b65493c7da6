"""Realities of the suite's twins: drawn from what the task says, and what a twin takes."""

import dataclasses

import numpy as np
import pytest

from deploy.twin.reality import parse_reality
from ksim.load import load_config
from ksim.suite.twins import COURSE, COURSE_S, draw_reality
from robots import load_robot
from toolkit.settings import apply_overrides


@pytest.fixture(scope="module")
def config():
    return load_config("configs/kbot_walk.yaml", [])


def test_a_reality_is_a_robot_of_training_and_a_seed_is_a_reality(config):
    robot = load_robot("kbot")
    drawn = [parse_reality(draw_reality(config, robot, seed)) for seed in range(30)]
    assert drawn[3] == parse_reality(draw_reality(config, robot, 3)) != drawn[4]
    action, imu = config.channels["action"], config.channels["imu"]
    for one in drawn:
        assert action.latency_s[0] <= one.commands.latency_s <= action.latency_s[1]
        assert imu.rate_hz[0] <= one.sensors.imu.rate_hz <= imu.rate_hz[1]
        assert 0.4 <= one.body.floor_friction <= 1.2
        kp = one.joints.kp_scale
        assert set(kp) == set(robot.joint_names) and all(0.85 <= v <= 1.15 for v in kp.values())
        ankles = {name for name in robot.joint_names if "ankle" in name}
        assert ankles == {name for name, play in one.joints.play_rad.items() if play > 0}
        assert {n for n, k in one.joints.stiffness_nm_rad.items() if k > 0} in (ankles, set())
    rigid = sum(not any(one.joints.stiffness_nm_rad.values()) for one in drawn)
    assert 3 <= rigid <= 16  # of 30, where 0.3 have no springs
    frictions = [one.body.floor_friction for one in drawn]
    assert min(frictions) < 0.55 and max(frictions) > 1.05  # the whole of the range


def test_what_the_task_does_not_vary_is_nominal(config):
    plain = apply_overrides(config, ["randomizations.kp=null", "randomizations.play=null", "events.stall=null"])
    quiet = dataclasses.replace(
        plain, observations={n: dataclasses.replace(t, noise=None) for n, t in plain.observations.items()}
    )
    one = parse_reality(draw_reality(quiet, load_robot("kbot"), 0))
    assert set(one.joints.kp_scale.values()) == {1.0} and set(one.joints.play_rad.values()) == {0.0}
    assert one.commands.stall_interval_s == (0.0, 0.0) and one.sensors.position_noise_rad == 0.0


def test_noise_has_the_spread_of_training(config):
    one = parse_reality(draw_reality(config, load_robot("kbot"), 0))
    assert one.sensors.position_noise_rad == pytest.approx(np.radians(3.0) / np.sqrt(3.0))


def test_the_course_begins_and_ends_standing():
    times = [row["at_s"] for row in COURSE]
    assert times == sorted(set(times)) and times[0] == 0.0 and times[-1] < COURSE_S
    assert COURSE[0] == {"at_s": 0.0} and set(COURSE[-1]) == {"at_s"}
