"""The figures of each layer by hand, on series whose answer is known; then whole runs, ours and another program's."""

# MuJoCo's bindings carry no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.log.imports.command import main as log_import
from deploy.log.recorder import RunLog, read_log
from deploy.parity import command
from deploy.parity.action_path import action_path_layer, first_motion_s
from deploy.parity.actuators import dead_travel, in_force, replayed, static_offsets, two_way, two_way_motion
from deploy.parity.closed_loop import JOINT_RAD, ClosedLoop, bands, closed_loop_layer, randomised
from deploy.parity.layers import Parity, parity, write_reports
from deploy.parity.motion import Replay, WindowedSimulation
from deploy.parity.pool import pooled_layer, pooled_suspects
from deploy.parity.report import EXIT_BAD, Cause, Figure, Layer, LayerName, Mark, Suspect
from deploy.parity.sensing import ages_s, frozen_s, gyro_against_orientation, in_motion, is_new, sensing_layer
from deploy.parity.sensing import tilt_against_feet as against_feet
from deploy.parity.statistics import noise_std, quantum
from deploy.parity.timing import timing_layer
from deploy.parity.trained import channel_rate_hz, noise
from deploy.robot.faults import Clamp, ClampKind
from deploy.twin.reality import Reality, Sensors, parse_reality
from robots.inputs import GYROSCOPE, JOINT_ANGLES
from robots.load import load_robot
from robots.model import build_model
from robots.rotation import from_rotvec, multiply
from tests.deploy.test_parity import record, shortened

MOTIONS = Path(__file__).parents[3] / "shared/real/so101/motions"
SO101_MAP = """
robot: so101
joints:
  shoulder_pan: Rotation
  shoulder_lift: Pitch
  elbow_flex: Elbow
  wrist_flex: Wrist_Pitch
  wrist_roll: Wrist_Roll
  gripper: {source: Jaw, unit: fraction}
units: {torque: unsigned}
"""
DT = 0.02


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> RunLog:
    return record(tmp_path_factory.mktemp("hung"), {}, duration_s=2.0, hang=True)


def figure(layer: Layer, key: str, where: str | None = None) -> Figure:
    return next(f for f in layer.figures if f.key == key and where in (None, f.where))


def layer_of(result: Parity, name: LayerName) -> Layer:
    return next(layer for layer in result.judgement.layers if layer.name is name)


# statistics


def test_noise_is_told_from_motion_and_steps_from_noise() -> None:
    time = np.arange(0, 20, DT)
    motion = 0.3 * np.sin(2 * np.pi * 0.7 * time)
    draw = np.random.default_rng(0).normal(size=len(time))
    assert noise_std(motion + 0.005 * draw) == pytest.approx(0.005, rel=0.3)
    assert noise_std(motion) < 1e-4 and math.isnan(noise_std(motion[:10]))
    assert quantum(np.round(motion / 0.0015) * 0.0015) == pytest.approx(0.0015, rel=1e-6)
    # neither noise nor an even ramp has steps
    assert math.isnan(quantum(motion + 0.005 * draw)) and math.isnan(quantum(0.01 * time))


# sensing


def test_new_values_and_their_ages_are_the_hand_computed_ones() -> None:
    values = np.asarray([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [1.0, 3.0], [np.nan, 3.0], [np.nan, 3.0]])
    new = is_new([values])
    assert new.tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(ages_s(new, DT * np.arange(6)), [0.0, DT, 0.0, DT, 0.0, DT], atol=1e-12)


def test_a_joint_is_frozen_while_its_target_moves_and_not_while_it_rests() -> None:
    time, position = DT * np.arange(100), 0.01 * np.arange(100.0)
    position[40:60] = position[40]
    assert frozen_s(np.full(100, 0.3), position, time) == 0.0
    assert frozen_s(0.01 * np.arange(100.0), position, time) == pytest.approx(19 * DT)


def test_joints_that_rest_are_not_asked_for_new_values() -> None:
    position = np.zeros((60, 2))
    position[20:40, 1] = 0.01 * np.arange(1, 21)
    position[40:, 1] = position[39, 1]
    moving = in_motion(position)
    assert moving[21:38].all() and not moving[:15].any() and not moving[45:].any()


def rocking(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(orientations, turn in the body's frame) of a body that rolls and pitches, one after the other."""
    roll, pitch = 0.2 * np.sin(3.0 * time), 0.15 * np.sin(2.0 * time)
    quat = np.stack(
        [multiply(from_rotvec([0, b, 0.0]), from_rotvec([a, 0, 0.0])) for a, b in zip(roll, pitch, strict=True)]
    )
    turn_x, turn_y = 0.6 * np.cos(3.0 * time), 0.3 * np.cos(2.0 * time)
    return quat, np.stack([turn_x, turn_y * np.cos(roll), -turn_y * np.sin(roll)], axis=1)


def test_a_gyro_s_bias_and_unit_show_against_the_orientation() -> None:
    time = np.arange(0, 12, DT)
    quat, turn = rocking(time)
    bias, scale = gyro_against_orientation(quat, turn, time)
    np.testing.assert_allclose(bias, 0.0, atol=2e-3)
    assert scale == pytest.approx((1.0, 1.0), abs=0.01)
    bias, _ = gyro_against_orientation(quat, turn + np.asarray([0.08, -0.05, 0.0]), time)
    np.testing.assert_allclose(bias[:2], (0.08, -0.05), atol=5e-3)
    bias, scale = gyro_against_orientation(quat, np.degrees(turn), time)
    assert np.isnan(bias).all() and scale == pytest.approx((57.3, 57.3), rel=0.02)
    # with noise the true scale lies between its ends
    noisy = turn + np.random.default_rng(1).normal(0.0, 0.3, turn.shape)
    _, (least, most) = gyro_against_orientation(quat, noisy, time)
    assert least - 0.05 < 1.0 < most + 0.05
    assert np.isnan(gyro_against_orientation(np.tile(quat[0], (len(time), 1)), 0.0 * turn, time)[1]).all()


def test_an_imu_that_is_turned_shows_against_feet_that_stand_flat() -> None:
    built = build_model("kbot", 0.002)
    home = np.tile(built.home_qpos[built.qpos_ids], (40, 1))
    quat = np.tile(from_rotvec([0.0, 0.0, 0.7]), (40, 1))
    straight = against_feet(built, home, quat)
    turned = against_feet(built, home, multiply(quat, np.tile(from_rotvec([0.3, 0.0, 0.0]), (40, 1))))
    assert straight < 0.02 and turned == pytest.approx(0.3, abs=0.02)
    # one foot is lifted: which of the two is flat cannot be told
    home[:, load_robot("kbot").joint_names.index("dof_left_ankle_02")] += 0.3
    assert math.isnan(against_feet(built, home, quat))


def test_a_channel_that_repeats_is_counted_and_judged_by_what_the_bundle_tells_of_training(hung: RunLog) -> None:
    rows = np.flatnonzero(hung.run)
    quat, gyro = hung.quat_wxyz.copy(), hung.gyro_b.copy()
    swayed = rocking(DT * np.arange(len(rows)))
    quat[rows], gyro[rows] = swayed[0], swayed[1]
    whole = dataclasses.replace(hung, quat_wxyz=quat, gyro_b=gyro, ages_s={})
    assert sensing_layer(whole).mark is Mark.GOOD
    quat[rows[1::2]] = quat[rows[::2]][: len(rows[1::2])]
    gyro[rows[5:7]] = np.nan
    found = sensing_layer(dataclasses.replace(whole, quat_wxyz=quat, gyro_b=gyro))
    rate = figure(found, "orientation_new_hz")
    assert rate.value == pytest.approx(25.0, abs=0.5) and rate.mark is Mark.LOOK and rate.where == "orientation"
    assert figure(found, "orientation_repeated_share").value == pytest.approx(0.5, abs=0.01)
    assert figure(found, "gyro_missing_share").value == pytest.approx(2 / len(rows))
    assert figure(found, "gyro_missing_share").mark is Mark.BAD
    trained = whole.spec.replace(training={"channels": {"imu": {"rate_hz": [17.0, 50.0]}}})
    slow = sensing_layer(dataclasses.replace(whole, spec=trained, quat_wxyz=quat))
    assert figure(slow, "orientation_new_hz").mark is Mark.GOOD
    assert "gyro_new_hz" not in {f.key for f in sensing_layer(whole, base_held=True).figures}


def test_noise_is_held_against_that_of_training(hung: RunLog) -> None:
    position = hung.joint_position + np.random.default_rng(2).normal(0, 0.02, hung.joint_position.shape)
    spec = hung.spec.replace(training={"observations": {JOINT_ANGLES: {"noise": {"width": 0.05}}}})
    assert noise(spec, JOINT_ANGLES) == pytest.approx(0.05 / math.sqrt(3)) and noise(spec, GYROSCOPE) == 0.05
    assert channel_rate_hz(spec.replace(training={"channels": {"imu": {"rate_hz": "fast"}}}), "imu") == 0.0
    for found, mark in ((hung.spec, Mark.BAD), (spec, Mark.GOOD)):
        layer = sensing_layer(dataclasses.replace(hung, spec=found, joint_position=position), base_held=True)
        assert figure(layer, "joint_position_noise_rad").value == pytest.approx(0.02, rel=0.5)
        assert figure(layer, "joint_position_noise_rad").mark is mark


# action path


def test_the_first_motion_after_a_step_is_found_between_samples() -> None:
    time = DT * np.arange(200)
    sent = np.where(time >= 2.0, 0.3, 0.0)
    # it begins 53 ms later, at 1 rad/s, and is seen when it is BEGUN_RAD (2 mm of arc) away
    position = np.clip(time - 2.053, 0.0, 0.3)
    assert first_motion_s(time, sent, time, position) == pytest.approx([0.055], abs=0.004)
    assert len(first_motion_s(time, sent, time, np.zeros(200))) == 0  # it never moves
    moving = 0.05 * np.sin(9.0 * time)
    assert len(first_motion_s(time, sent + moving, time, position + moving)) == 0  # the target did not lie still


def test_what_safety_changed_and_what_was_lost_is_counted(hung: RunLog) -> None:
    rows = np.flatnonzero(hung.run)
    safety, sent, command_s = list(hung.safety), hung.target.copy(), hung.command_s.copy()
    name = hung.spec.robot.joint_names[4]
    for row in rows[10:25]:
        safety[row] = (Clamp(name, ClampKind.POSITION), Clamp("dof_left_elbow_02", ClampKind.TORQUE))
        sent[row, 4] -= 0.2
    command_s[rows[:3]] = np.nan
    found = action_path_layer(dataclasses.replace(hung, safety=safety, sent=sent, command_s=command_s), None)
    assert figure(found, "changed_position_limit_share").value == pytest.approx(15 / len(rows))
    assert figure(found, "changed_position_limit_share").mark is Mark.LOOK
    assert figure(found, "changed_torque_share").mark is Mark.NONE
    assert (
        figure(found, "changed_max_rad").value == pytest.approx(0.2) and figure(found, "changed_max_rad").where == name
    )
    assert figure(found, "commands_lost_share").value == pytest.approx(3 / len(rows))
    assert figure(found, "commands_lost_share").mark is Mark.BAD
    assert list(found.joints) == [name]


def test_the_age_of_a_reading_counts_half_of_both_round_trips(hung: RunLog) -> None:
    start = hung.start_s
    real = dataclasses.replace(
        hung, metadata={}, state_s=start + 0.004, state_round_trip_s=0.004 + 0 * start,
        command_s=start + 0.016, command_round_trip_s=0.002 + 0 * start,
    )  # fmt: skip
    found = figure(action_path_layer(real, None), "reading_to_command_s")
    assert found.value == pytest.approx(0.015 - 0.002) and found.mark is Mark.LOOK


# actuators


def test_two_way_friction_is_half_of_what_up_and_down_differ_by() -> None:
    time = np.arange(0, 20, DT)
    position, way = np.sin(time), np.sign(np.cos(time))
    torque = 4.0 * position + 0.7 * way
    assert two_way(position, way, torque) == pytest.approx(0.7, abs=0.02)
    assert math.isnan(two_way(position[:70], way[:70], torque[:70]))  # up alone


def test_dead_travel_is_the_width_of_the_play() -> None:
    target = 0.3 * np.sin(0.8 * np.arange(0, 40, DT))
    position = np.zeros_like(target)
    for i in range(1, len(target)):  # the joint is dragged by the edges of a gap of 0.05 rad
        position[i] = np.clip(position[i - 1], target[i] - 0.025, target[i] + 0.025)
    assert dead_travel(target, position) == pytest.approx(0.05, abs=0.004)
    assert dead_travel(target, target) == pytest.approx(0.0, abs=0.004)
    assert math.isnan(dead_travel(target[:200], position[:200]))  # it turns too seldom
    # the loop of position over target is as wide
    assert -2.0 * two_way(target, np.sign(np.gradient(target)), position) == pytest.approx(0.05, abs=0.004)


def test_the_target_in_force_is_the_last_that_had_arrived(hung: RunLog) -> None:
    rows = np.flatnonzero(hung.run)[20:40]
    np.testing.assert_array_equal(in_force(hung, rows, 0.0), hung.sent[rows])
    np.testing.assert_array_equal(in_force(hung, rows, 0.03), hung.sent[rows - 2])


def test_sag_is_explained_by_gravity_and_what_is_left_is_an_offset(hung: RunLog) -> None:
    robot = load_robot("kbot")
    simulation = WindowedSimulation("kbot", hung, Reality(), hang=True)
    built = simulation.plant.built
    import mujoco

    data = mujoco.MjData(simulation.plant.model)
    data.qpos[:] = built.home_qpos
    home = data.qpos[built.qpos_ids].copy()
    mujoco.mj_forward(simulation.plant.model, data)
    load = data.qfrc_bias[built.dof_ids]
    joint = robot.joint_names.index("dof_left_shoulder_roll_03")
    position = np.tile(home, (len(hung.tick), 1))
    sent = position + load / np.asarray(robot.column("kp"))
    sent[:, joint] += 0.04
    still = dataclasses.replace(hung, joint_position=position, joint_velocity=0 * position, sent=sent)
    found = static_offsets(still, simulation)
    assert len(found) == len(robot.joints) and abs(load[joint]) > 0.5
    for j, name in enumerate(robot.joint_names):
        sag, left = found[name]
        assert sag == pytest.approx(load[j] / robot.joints[j].kp + (0.04 if j == joint else 0.0), abs=1e-9)
        # the model's friction may hold a joint where it is
        held = robot.joints[j].friction_nm / robot.joints[j].kp
        assert left == pytest.approx(0.04 - held if j == joint else 0.0, abs=1e-9)
        assert held > 1e-4


def test_torque_at_its_limit_says_nothing_of_friction(hung: RunLog) -> None:
    simulation = WindowedSimulation("kbot", hung, Reality(), hang=True)
    time = hung.start_s[:, None]
    position = 0.3 * np.sin(2.0 * time) + np.zeros(hung.sent.shape)
    velocity = 0.6 * np.cos(2.0 * time) + np.zeros(hung.sent.shape)
    way = np.sign(velocity)
    none = np.full(hung.sent.shape, np.nan)
    kp = simulation.plant.params.kp

    def friction(torque: np.ndarray, error: np.ndarray) -> dict[str, float]:
        log = dataclasses.replace(
            hung, joint_position=position, joint_velocity=velocity, joint_torque=torque, sent=position + error
        )
        return two_way_motion(log, simulation, 0.0)["dof_left_elbow_02"]

    assert friction(3.0 * way, 0 * way)["friction_nm"] == pytest.approx(3.0, abs=0.01)
    found = friction(none, 2.0 * way / kp + simulation.plant.params.kd * velocity / kp)
    assert found["friction_nm"] == pytest.approx(2.0, abs=0.1)
    limit = simulation.plant.params.torque_limit
    assert math.isnan(friction(none, 2.0 * limit * way / kp)["friction_nm"])


def test_the_figures_of_a_replay_are_the_hand_computed_ones() -> None:
    measured = np.asarray([[[0.0, 0.1], [0.1, 0.1]]])
    simulated = np.asarray([[[0.0, 0.2], [0.2, 0.0]]])
    zero = np.zeros((1, 2, 2))
    replay = Replay(
        first=np.zeros(1, int), time_s=np.zeros((1, 2)), position=measured, position_sim=simulated, velocity=zero,
        velocity_sim=zero, tilt_error_rad=np.zeros((1, 2)), start=np.zeros((1, 2)),
    )  # fmt: skip
    found = replayed(replay, ("a", "b"))
    assert found["a"]["rmse"] == pytest.approx(math.sqrt(0.005)) and found["a"]["mae"] == pytest.approx(0.05)
    assert found["a"]["correlation"] == pytest.approx(1.0) and found["a"]["cosine"] == pytest.approx(1.0)
    assert found["b"]["rmse"] == pytest.approx(0.1) and math.isnan(found["b"]["correlation"])
    assert found["b"]["cosine"] == pytest.approx(0.02 / (math.sqrt(0.02) * 0.2))


# closed loop


def test_coverage_is_the_share_of_ticks_inside_the_widened_band() -> None:
    time = DT * np.arange(100)
    runs = np.zeros((21, 100, 3))
    runs[..., 0] = 0.1 * np.arange(21)[:, None]  # 5 % is 0.1, 95 % is 1.9
    runs[:, 50:, 2] = np.nan  # all have fallen
    measured = np.zeros((100, 3))
    # outside, inside by what the band is widened by, inside
    measured[:, 0] = np.where(time < 0.5, 0.085, np.where(time < 1.0, 0.095, 1.0))
    measured[:, 2] = np.where(time < 0.5, 0.9 * JOINT_RAD, 1.1 * JOINT_RAD)
    tilt, turn, joint = bands(("a",), time, measured, runs, 10)
    assert (tilt.low[0], tilt.middle[0], tilt.high[0]) == pytest.approx((0.1, 1.0, 1.9))
    assert tilt.inside == pytest.approx(0.75) and turn.inside == 1.0 and joint.inside == pytest.approx(0.5)


@pytest.mark.parametrize(("fell", "share", "mark"), [(False, 0.25, Mark.GOOD), (True, 0.75, Mark.LOOK)])
def test_simulations_that_end_otherwise_than_the_robot_are_counted(fell: bool, share: float, mark: Mark) -> None:
    zero = np.zeros((20, 3))
    found = ClosedLoop(bands=bands(("a",), DT * np.arange(20), zero, zero[None], 5), runs=8, fell=0.25)
    layer = closed_loop_layer(found, fell)
    assert figure(layer, "falls_apart_share").value == share and figure(layer, "falls_apart_share").mark is mark
    assert figure(layer, "inside_tilt_share").value == 1.0 and layer.joints == {"a": 0.6}
    # a band of few runs is too narrow to judge by
    assert figure(layer, "inside_tilt_share").mark is Mark.NONE
    enough = closed_loop_layer(dataclasses.replace(found, runs=16), fell)
    assert figure(enough, "inside_tilt_share").mark is Mark.GOOD


def test_draws_stay_inside_the_ranges_of_training_and_differ(hung: RunLog) -> None:
    training = {
        "randomizations": {"kp": {"factor": [0.8, 0.9]}, "joint_offset": {"width_rad": 0.01}},
        "channels": {"imu": {"latency_s": [0.01, 0.03], "rate_hz": [20.0, 50.0]}},
    }
    spec = hung.spec.replace(training=training, action_latency_s=(0.004, 0.012))
    drawn = [randomised(spec, load_robot("kbot"), None, 1.0, seed) for seed in range(20)]
    scales = np.asarray([list(d.joints.kp_scale.values()) for d in drawn])  # type: ignore[union-attr]
    offsets = np.asarray([list(d.joints.zero_offset_rad.values()) for d in drawn])  # type: ignore[union-attr]
    assert 0.8 <= scales.min() < 0.81 and 0.89 < scales.max() <= 0.9
    assert np.abs(offsets).max() <= 0.01 and offsets.min() < 0 < offsets.max()
    assert all(0.004 <= d.commands.latency_s <= 0.012 and 0.01 <= d.sensors.imu.latency_s <= 0.03 for d in drawn)
    assert all(20 <= d.sensors.imu.rate_hz <= 50 for d in drawn) and len({d.body.mass_scale for d in drawn}) == 20
    known = Reality(sensors=Sensors(latency_s=0.02))
    assert randomised(spec, load_robot("kbot"), known, 1.0, 0).sensors == known.sensors


def test_a_layer_that_was_not_measured_says_why() -> None:
    assert closed_loop_layer("no policy", False).untold == "no policy"
    loop = dict.fromkeys(("state_round_trip_p99_ms", "command_round_trip_p99_ms"))
    loop |= {"ticks": 1000, "skipped": 2, "overruns": 30, "period_error_p99_ms": None}
    assert "lock step" in timing_layer(loop).untold
    found = timing_layer(loop | {"period_error_p99_ms": 3.0})
    assert figure(found, "period_error_p99_s").value == pytest.approx(0.003)
    assert [figure(found, k).mark for k in ("period_error_p99_s", "skipped_ticks", "late_ticks")] == [
        Mark.LOOK, Mark.LOOK, Mark.BAD,
    ]  # fmt: skip
    assert "late_ticks" not in {f.key for f in timing_layer(loop | {"period_error_p99_ms": 3.0}, imported=True).figures}


# several logs


def test_several_logs_have_the_worst_and_the_mean_of_each_figure() -> None:
    def of(value: float | None, where: str, share: float) -> Layer:
        figures = (
            Figure(key="a", what="a", value=value, unit="rad", good=0.1, poor=0.2, where=where),
            Figure(key="b", what="b", value=value, unit="share", good=0.5, poor=0.01, at_least=True),
        )
        return Layer(name=LayerName.ACTUATORS, figures=figures, joints={where: share})

    found = pooled_layer([of(0.05, "x", 0.5), of(-0.3, "y", 3.0), of(None, "x", 0.7)])
    assert (figure(found, "a").value, figure(found, "a").where, figure(found, "a").mark) == (-0.3, "y", Mark.BAD)
    assert figure(found, "a").mean == pytest.approx(-0.125) and len(found.figures) == 2
    assert figure(found, "b").value == -0.3 and found.joints == {"x": 0.7, "y": 3.0}
    untold = pooled_layer([Layer(name=LayerName.BODY, untold="fixed"), Layer(name=LayerName.BODY, untold="fixed")])
    assert untold.untold == "fixed" and untold.mark is Mark.NONE


def test_a_suspect_of_one_log_explains_less_than_one_of_all() -> None:
    def of(cause: Cause, explains: float) -> Suspect:
        return Suspect(cause=cause, layer=LayerName.ACTUATORS, explains=explains)

    found = pooled_suspects([[of(Cause.GAINS, 0.9)], [of(Cause.DELAY, 0.6)], [of(Cause.DELAY, 0.8)]])
    assert [s.cause for s in found] == [Cause.DELAY, Cause.GAINS]
    assert found[0].explains == pytest.approx(1.4 / 3) and found[1].explains == pytest.approx(0.3)


# whole runs


@pytest.fixture(scope="module")
def clean(hung: RunLog) -> Parity:
    return parity(hung, hang=True, closed_loop_runs=3)


def test_a_clean_run_is_good_in_every_layer_that_can_be_told(clean: Parity) -> None:
    assert [layer.name for layer in clean.judgement.layers] == list(LayerName)
    marks = {layer.name: layer.mark for layer in clean.judgement.layers}
    assert marks[LayerName.BODY] is marks[LayerName.TIMING] is Mark.NONE  # it hangs, in lock step
    assert {marks[n] for n in LayerName if n not in (LayerName.BODY, LayerName.TIMING)} == {Mark.GOOD}
    assert clean.judgement.mark is Mark.GOOD
    joints = figure(layer_of(clean, LayerName.CLOSED_LOOP), "inside_joints_share")
    assert joints.value is not None and joints.value > 0.6
    assert [band.signal for band in clean.bands] == ["tilt", "gyro", *clean.log.spec.robot.joint_names]
    report = json.loads(json.dumps(clean.to_json(), allow_nan=False))
    assert report["verdict"] == {"mark": "good", "bad_layers": []} and report["suspects"] == []
    assert [layer["name"] for layer in report["layers"]] == [name.value for name in LayerName]
    assert report["layers"][3]["figures"][0]["mark"] == "good" and report["layers"][4]["untold"]


def test_weak_motors_and_a_late_command_show_in_their_layers(hung: RunLog, tmp_path: Path) -> None:
    weak = record(tmp_path, {"joints": {"kp_scale": {"dof_left_elbow_02": 0.3, "all": 1.0}}}, duration_s=1.2, hang=True)
    found = layer_of(parity(weak, hang=True, closed_loop_runs=0, search=False), LayerName.ACTUATORS)
    assert found.mark is not Mark.GOOD and max(found.joints, key=lambda n: found.joints[n]) == "dof_left_elbow_02"
    late = record(tmp_path, {"commands": {"latency_s": 0.04}}, duration_s=1.6, hang=True, name="late")
    spec = late.spec.replace(action_latency_s=(0.0, 0.01))
    result = parity(dataclasses.replace(late, spec=spec), hang=True, closed_loop_runs=0, search=False)
    path = layer_of(result, LayerName.ACTION_PATH)
    assert figure(path, "delay_s").value == pytest.approx(0.04, abs=0.002)
    assert figure(path, "delay_beyond_s").value == pytest.approx(0.03, abs=0.002) and path.mark is Mark.BAD
    # the joints are judged with the delay taken out
    assert figure(layer_of(result, LayerName.ACTUATORS), "position_rmse_rad").mark is Mark.GOOD
    assert figure(layer_of(result, LayerName.ACTUATORS), "unaligned_position_rmse_rad").mark is Mark.NONE


@pytest.mark.slow
def test_the_status_is_that_of_the_verdict_and_several_logs_are_one_report(
    hung: RunLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = {"joints": {"kp_scale": {"dof_left_elbow_02": 0.03, "all": 1.0}}}
    weak_log = record(tmp_path, weak, duration_s=1.2, hang=True, name="weak")
    common = ["--held", "--closed-loop", "0", "--out", str(tmp_path / "out")]
    assert command.main([str(weak_log.path), *common, "--exit-zero"]) == 0
    capsys.readouterr()
    assert command.main([str(hung.path), str(weak_log.path), *common, "--json"]) == EXIT_BAD
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["verdict"]["bad_layers"] == ["actuators"]
    assert [(log["log"], log["verdict"]["mark"]) for log in report["logs"]] == [
        ("run.mcap", "good"), ("weak.mcap", "bad"),
    ]  # fmt: skip
    worst = next(f for f in report["layers"][3]["figures"] if f["key"] == "position_rmse_worst_rad")
    assert worst["where"] == "dof_left_elbow_02" and worst["mean"] < worst["value"]
    assert (tmp_path / "out" / "run.html").is_file() and (tmp_path / "out" / "weak.html").is_file()


def test_a_robot_on_its_feet_without_an_imu_is_judged_as_far_as_it_goes(hung: RunLog, tmp_path: Path) -> None:
    blind = dataclasses.replace(
        hung,
        quat_wxyz=np.full_like(hung.quat_wxyz, np.nan),
        gyro_b=np.full_like(hung.gyro_b, np.nan),
        metadata=hung.metadata | {"import": {"missing": ["orientation"]}},
    )
    result = parity(blind, closed_loop_runs=2)
    assert "no orientation" in layer_of(result, LayerName.ACTUATORS).untold
    assert layer_of(result, LayerName.BODY).untold and layer_of(result, LayerName.CLOSED_LOOP).untold
    assert layer_of(result, LayerName.SENSING).figures and layer_of(result, LayerName.POLICY).mark is Mark.GOOD
    files = write_reports(result, tmp_path)
    assert json.loads(files["json"].read_text())["per_joint"]["dof_left_elbow_02"]["position_rmse_rad"] is None
    assert files["html"].is_file()
    # held, nothing of an IMU is needed
    assert layer_of(parity(blind, hang=True, closed_loop_runs=0, search=False), LayerName.ACTUATORS).mark is Mark.GOOD


@pytest.mark.skipif(not MOTIONS.is_dir(), reason="the recorded motions are not here")
def test_a_recorded_motion_of_a_real_arm_is_judged_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(SO101_MAP)
    out = tmp_path / "hold.mcap"
    log_import([str(MOTIONS / "hold_under_gravity"), "-o", str(out), "--map", str(tmp_path / "map.yaml")])
    result = parity(shortened(read_log(out), 1000))
    untold = {layer.name for layer in result.judgement.layers if layer.untold}
    assert untold == {LayerName.POLICY, LayerName.BODY, LayerName.CLOSED_LOOP}
    assert result.report["one_clock"] is True
    # its rows are 20.06 ms apart, by a clock that is none of the robot's
    assert not any("control_period_s" in text for text in result.report["robot_differences"])
    assert not any(s.cause is Cause.DELAY for s in result.judgement.suspects)
    actuators, sensing = layer_of(result, LayerName.ACTUATORS), layer_of(result, LayerName.SENSING)
    # the published gains hold the arm where it is told to be; the real one sags
    assert figure(actuators, "static_offset_rad").where == "elbow_flex"
    assert figure(actuators, "static_offset_rad").mark is Mark.BAD and result.judgement.mark is Mark.BAD
    assert figure(sensing, "joint_quantum_rad").value == pytest.approx(2 * math.pi / 4096, rel=0.01)
    assert sensing.mark is Mark.GOOD
    # a delay is not to be read off stamps of one loop
    path = layer_of(result, LayerName.ACTION_PATH)
    assert path.mark is Mark.NONE and "commands_lost_share" not in {f.key for f in path.figures}


def test_a_reality_that_is_known_is_the_middle_of_the_simulations(hung: RunLog) -> None:
    sagging: dict[str, Any] = {"joints": {"kp_scale": 0.3}}
    off = parity(hung, reality=parse_reality(sagging), hang=True, closed_loop_runs=3, search=False)
    joints = figure(layer_of(off, LayerName.CLOSED_LOOP), "inside_joints_share")
    assert joints.value is not None and joints.value < 0.6
