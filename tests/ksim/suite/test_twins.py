"""Realities of the suite's twins: drawn from what the task says, and what a twin takes."""

import dataclasses

import numpy as np
import pytest

from deploy.twin.reality import parse_reality
from ksim.calibration import from_calibration
from ksim.load import load_config
from ksim.noise import GaussianNoise
from ksim.suite.twins import COURSE, COURSE_S, draw_reality
from robots import load_robot
from tests.calibrations import ANKLE, KNEE, WRIST, calibration_file
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


def test_with_a_calibration_a_joint_is_drawn_about_what_was_measured_and_the_others_as_without(config, tmp_path):
    robot = load_robot("kbot")
    task, knee = from_calibration(config, calibration_file(tmp_path)), robot.joint(KNEE)
    drawn = [parse_reality(draw_reality(task, robot, seed)).joints for seed in range(30)]
    for what, described, low, high in (
        ("kp_scale", knee.kp, 114, 126),
        ("kd_scale", knee.kd, 6.3, 7.7),
        ("torque_scale", knee.torque_limit_nm, 66.5, 73.5),
        ("friction_add_nm", 1.0, 0.4, 0.6),
        ("stiction_nm", 1.0, 0.3, 0.5),
        ("play_rad", 1.0, 0.018, 0.022),
        ("stiffness_nm_rad", 1.0, 1 / 0.011, 1 / 0.009),
        ("zero_offset_rad", 1.0, 0.047, 0.053),
    ):
        values = [described * getattr(one, what)[KNEE] for one in drawn]
        assert low <= min(values) < low + 0.2 * (high - low) and high - 0.2 * (high - low) < max(values) <= high, what
    (one,) = {
        tuple(getattr(j, what)[KNEE] for what in ("load_friction", "link_mass_scale", "velocity_scale")) for j in drawn
    }
    assert one == (0.1, 1.25, 15.0 / knee.velocity_max_rad_s)
    # measured at the twin's own step, carried to training's and back
    assert drawn[0].armature_scale[KNEE] * knee.armature == pytest.approx(0.05)
    wrist, ankle = ([one.kp_scale[name] for one in drawn] for name in (WRIST, ANKLE))
    assert 0.85 <= min(wrist + ankle) < 0.9 and 1.1 < max(wrist + ankle) <= 1.15
    assert drawn[0].armature_scale[WRIST] == drawn[0].link_mass_scale[WRIST] == 1.0


def test_noise_has_the_spread_of_training(config):
    one = parse_reality(draw_reality(config, load_robot("kbot"), 0))
    assert one.sensors.position_noise_rad == pytest.approx(np.radians(3.0) / np.sqrt(3.0))
    assert one.sensors.noise == "uniform"
    white = {
        name: o if o.noise is None else dataclasses.replace(o, noise=GaussianNoise(std=0.1))
        for name, o in config.observations.items()
    }
    other = parse_reality(draw_reality(dataclasses.replace(config, observations=white), load_robot("kbot"), 0))
    assert other.sensors.noise == "gaussian" and other.sensors.position_noise_rad == pytest.approx(0.1)


def test_the_course_begins_and_ends_standing():
    times = [row["at_s"] for row in COURSE]
    assert times == sorted(set(times)) and times[0] == 0.0 and times[-1] < COURSE_S
    assert COURSE[0] == {"at_s": 0.0} and set(COURSE[-1]) == {"at_s"}
