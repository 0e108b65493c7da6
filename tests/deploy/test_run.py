"""A whole run against a real server: how it goes, how it ends, and what it leaves behind."""

import math
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle.session import OnnxPolicy
from deploy.control.run import run
from deploy.control.smooth import smooth
from deploy.errors import CheckError
from deploy.log.recorder import read_log
from deploy.log.summary import summary
from robots.bundle import write_bundle


def test_a_completed_run_ends_damped_with_a_whole_log(options, server):
    report = run(options(command={"vx": 0.5}))
    assert report.ended == "completed" and report.exit_code == 0 and report.damped
    assert server.damped()
    log = read_log(report.log)
    assert report.survived_s == pytest.approx(0.02 * log.run.sum()) and np.ptp(log.tick[log.run]) <= 24
    assert log.complete and log.result["ended"] == "completed" and log.bundle is not None
    # one tick to compare with training, a second at rest because it was asked to move, 0.3 s to let go
    assert log.run.sum() == report.ticks - report.ramp_ticks - report.stop_ticks
    assert report.ramp_ticks == 1 and log.mask("stop").sum() == report.stop_ticks and report.stop_ticks > 40
    # letting go runs no policy; on a slow machine ticks are skipped, so it begins at fewer rows than its time says
    stopping = log.inputs["command"][log.mask("stop")]
    at_rest = stopping[~np.isnan(stopping).any(axis=1)]
    assert log.inputs["command"][log.run, 0].min() == 0.5 and len(at_rest) > 10 and not at_rest.any()
    assert log.phase[-1] == "damp"
    assert np.allclose(log.action[log.run], np.array([0.3, -0.5, 0.0]) + 0.05, atol=1e-6)
    assert np.array_equal(log.inputs["command"][log.run], np.tile(np.float32([0.5, 0.0]), (log.run.sum(), 1)))
    assert log.metadata["command"] == {"vx": 0.5, "yaw": 0.0}


def test_the_log_alone_replays_to_the_same_actions(options):
    log = read_log(run(options()).log)
    policy = OnnxPolicy(log.bundle)
    for row in np.flatnonzero(log.run):
        action = policy.step({name: values[row] for name, values in log.inputs.items()})
        assert np.array_equal(action, log.action[row].astype(np.float32))


def test_the_first_command_holds_the_measured_pose_before_any_gain_is_set(options, server):
    server.position_deg = {31: 40.0, 12: -10.0, 25: 5.0}
    run(options(ramp_s=0.2))
    kinds = [kind for kind, _ in server.requests if kind in ("command", "configure")]
    assert kinds[:4] == ["command", "configure", "configure", "configure"]
    first = next(r for kind, r in server.requests if kind == "command").commands
    assert np.allclose([c.position for c in first], [40.0, -10.0, 5.0], atol=0.01)


def test_the_ramp_goes_smoothly_from_the_measured_pose_to_home(options, server):
    server.position_deg = {31: 40.0, 12: -10.0, 25: 5.0}
    log = read_log(run(options(ramp_s=0.4, duration_s=0.1)).log)
    ramp = log.sent[log.mask("ramp")]
    start, home = np.radians([40.0, -10.0, 5.0]), np.array([0.3, -0.5, 0.0])
    ticks = log.tick[log.mask("ramp")]
    assert 3 <= len(ramp) <= 20 and ticks.max() <= 19  # a busy machine skips ticks
    expected = start + np.array([smooth((k + 1) / 20) for k in ticks])[:, None] * (home - start)
    assert np.allclose(ramp, expected, atol=1e-3)
    assert np.isnan(log.action[log.mask("ramp")]).all()


def test_a_pose_that_is_home_needs_no_ramp(options):
    report = run(options(ramp_s=3.0))
    assert report.ramp_ticks == 1 and report.ticks > 5


def test_minimum_jerk_by_hand():
    assert [smooth(s) for s in (-1, 0, 0.5, 1, 2)] == [0, 0, 0.5, 1, 1]
    assert smooth(0.25) == pytest.approx(10 / 64 - 15 / 256 + 6 / 1024)


def test_every_target_is_clamped_and_says_why(tmp_path, robot, bundle_factory, options, server):
    write_bundle(tmp_path / "wild.kinfer", bundle_factory(robot, constant=3.0))
    server.follows_rad = 0.1
    report = run(options(bundle=tmp_path / "wild.kinfer", ramp_s=0.0))
    log = read_log(report.log)
    assert report.clamped_ticks >= log.run.sum() and report.clamps["position limit"] > 0
    assert log.sent[log.run].max() == 1.5 and log.action[log.run].min() > 2
    first = int(np.flatnonzero(log.run)[0])
    assert "hip: target speed" in map(str, log.safety[first])
    steps = np.diff(log.sent[log.run], axis=0)
    assert (np.abs(steps) <= 0.3 * np.diff(log.tick[log.run])[:, None] + 1e-9).all()


def test_ticks_keep_to_the_grid(options):
    report = run(options(duration_s=1.0))
    log = read_log(report.log)
    at = log.scheduled_s[log.run] - log.scheduled_s[0]
    assert np.allclose(at, log.tick[log.run] * 0.02, atol=1e-9)
    assert (log.start_s[log.run] >= log.scheduled_s[log.run] - 1e-6).all()
    assert report.timing.period_p50_ms == pytest.approx(20.0, abs=6.0)  # a busy machine is late, not another rate


def test_a_slow_server_is_lost_after_the_ticks_allowed(options, server):
    def slow(count):
        server.delay_s["state"] = 0.06 if count == 10 else server.delay_s.get("state", 0.0)

    server.on_tick = slow
    report = run(options(duration_s=5.0, lost_ticks_max=4))
    assert report.ended == "lost" and report.exit_code == 1 and report.lost_states >= 5
    assert "5 ticks in a row without an answer" in report.message and "deadline exceeded" in report.message
    assert report.damped and server.damped(), "0.06 s is slow for a tick and in time for damping"
    log = read_log(report.log)
    assert log.stale[log.run].sum() == report.stale_ticks >= 4


def test_a_silence_as_long_as_the_watchdog_allows_ends_the_run_before_the_ticks_do(options, server):
    def silent(count):
        if count == 10:  # a tick without a state and without an acknowledgement takes two periods
            server.delay_s |= {"state": 0.06, "command": 0.06}

    server.on_tick = silent
    report = run(options(duration_s=5.0, lost_ticks_max=100, watchdog_s=0.2))
    ticks, silence = re.match(r"(\d) ticks in a row without an answer, (0\.\d\d) s: ", report.message).groups()
    assert report.ended == "lost" and report.damped and server.damped()
    assert int(ticks) < 8 and 0.2 <= float(silence) < 0.4


def test_one_lost_answer_is_ridden_through_with_the_state_before(options, server):
    def hiccup(count):
        server.delay_s["imu"] = 0.03 if count == 8 else 0.0

    server.on_tick = hiccup
    report = run(options())
    assert report.ended == "completed" and report.lost_states >= 1
    log = read_log(report.log)
    # a busy machine may lose the first answer too, and before that there is no row
    row = 1 + int(np.flatnonzero(np.isnan(log.state_round_trip_s[1:]))[0])
    assert log.stale[row] and np.array_equal(log.joint_position[row], log.joint_position[row - 1])
    assert [e["kind"] for e in log.events].count("lost") >= 1


def test_a_tick_that_is_late_by_more_than_half_a_period_skips_a_deadline(options, server):
    def stall(count):
        # the tick of command 9 loses its state (15 ms) and its command (20 ms): 15 ms into the next one
        server.delay_s = {8: {"imu": 0.05}, 9: {"command": 0.05}}.get(count, {})

    server.on_tick = stall
    report = run(options())
    assert report.ended == "completed" and report.overruns >= 1 and report.timing.skipped >= 1
    log = read_log(report.log)
    lost_state, lost_command = np.isnan(log.state_round_trip_s[log.run]), np.isnan(log.command_round_trip_s[log.run])
    row = int(np.flatnonzero(log.run)[np.flatnonzero(lost_state & lost_command)[0]])
    assert np.isnan(log.command_s[row])
    assert log.tick[row + 1] - log.tick[row] >= 2
    assert np.diff(log.start_s[log.run]).min() > 0.005, "no burst to catch up"
    begun, done = log.start_s[log.run][0], log.start_s[log.run][-1] + 0.02  # ramp and damp may lose some of their own
    lost = sum(e["kind"] == "lost" and begun <= e["t_s"] < done for e in log.events)
    assert lost == (lost_state | lost_command).sum(), "a tick that loses both counts once"


def test_readings_that_never_change_are_a_fault(options, server):
    server.frozen = True
    report = run(options(duration_s=5.0))
    assert report.ended == "fault" and "stale: nothing new measured for 8 ticks" in report.message
    assert server.damped()


def tilt(server, gyro_deg_s):
    """By 1.2 rad at once, which a gyro may explain or not."""
    server.quat_wxyz, server.gyro = [math.cos(0.6), math.sin(0.6), 0, 0], [gyro_deg_s, 0.0, 0.0]


@pytest.mark.parametrize(
    ("break_it", "ended", "words"),
    [
        (lambda s: tilt(s, 500.0), "fall", "tilt 1.20 rad"),
        (lambda s: tilt(s, 0.0), "fault", "orientation jumped: by 1.20 rad"),
        (lambda s: s.missing.add(12), "fault", "knee (id 12) is missing"),
        (lambda s: s.faults.update({31: ["over temperature"]}), "fault", "hip (id 31) reports over temperature"),
        (lambda s: setattr(s, "quat_wxyz", [0.0] * 4), "fault", "the IMU has no data"),
        (lambda s: s.temperature_c.update({12: 140.0, 31: 40.0}), "fault", "too hot: knee at 140 C, limit 100 C"),
        (lambda s: s.slip_deg.update({25: 12.0}), "fault", "jumped: ankle by +0.2"),
        (lambda s: s.swap.update({31: 12, 12: 31}), "fault", "jumped: hip by -0.8"),
    ],
)
def test_a_fall_or_a_fault_ends_the_run_damped(options, server, break_it, ended, words):
    server.on_tick = lambda count: break_it(server) if count == 12 else None
    report = run(options(duration_s=5.0))
    assert report.ended == ended and words in report.message and report.exit_code == 1
    assert 0.1 < report.survived_s < 1.0
    assert report.damped and all(gains["kp"] == 0.0 for gains in server.gains.values())
    # its target is where it says that it is, and some of them do not say the truth
    assert server.damped() or server.slip_deg or server.swap
    log = read_log(report.log)
    assert log.complete and [e["kind"] for e in log.events[-3:]] == ["damp", "phase", "end"]
    assert any(e["kind"] == "end" and words in e["message"] for e in log.events)


def test_an_action_that_is_not_finite_ends_the_run_damped(tmp_path, robot, bundle_factory, options, server):
    write_bundle(tmp_path / "nan.kinfer", bundle_factory(robot, divide_by_carry=True))
    server.follows_rad = 0.1
    report = run(options(bundle=tmp_path / "nan.kinfer"))
    assert report.ended == "error" and "not finite" in report.message and report.exit_code == 1
    assert server.damped() and read_log(report.log).complete


def test_a_wrong_gyro_unit_is_found_while_running(options, server):
    def rock(count):
        angle = 0.3 * math.sin(count / 5)
        server.quat_wxyz = [math.cos(angle / 2), math.sin(angle / 2), 0, 0]
        server.gyro = [0.3 / 5 / 0.02 * math.cos(count / 5), 0, 0]  # rad/s

    server.on_tick = rock
    report = run(options(duration_s=3.0))
    assert report.ended == "fault" and "try --gyro-unit rad/s" in report.message
    report = run(options(duration_s=1.0, gyro_unit="rad/s", force=True))
    assert report.ended == "completed"
    assert any("gyro: ok" in e["message"] for e in read_log(report.log).events)
    assert "\ngyro       ok (" in report.summary()


def test_a_server_that_dies_is_lost_and_said_to_be_not_damped(options, server):
    server.on_tick = lambda count: threading.Thread(target=server.kill).start() if count == 10 else None
    report = run(options(duration_s=5.0))
    assert report.ended == "lost" and not report.damped and report.exit_code == 1
    assert "NOT DAMPED" in report.summary()
    log = read_log(report.log)
    assert log.complete and log.run.sum() == report.ticks - report.ramp_ticks
    assert any(e["kind"] == "damp" and "NOT damped" in e["message"] for e in log.events)


def test_damping_is_tried_again_when_it_does_not_get_through(options, server):
    def stall(count):
        if count == 10:
            server.missing.add(12)
            server.delay_s["configure"] = 0.7  # beyond the deadline of the first attempt
            threading.Timer(0.6, server.delay_s.clear).start()

    server.on_tick = stall
    report = run(options(duration_s=5.0))
    assert report.ended == "fault" and report.damped and server.damped()


def test_a_joint_that_refuses_its_gains_is_not_damped_and_the_others_are(options, server):
    server.refuse_configure = {12}
    report = run(options())
    assert report.ended == "fault" and "configure refused: knee (id 12)" in report.message
    assert not report.damped and report.exit_code == 1
    assert all(server.gains[id_]["kp"] == 0 for id_ in (31, 25))


def test_gains_that_the_server_changed_are_a_warning(options, server):
    server.max_torque_reported = 17.0
    report = run(options(duration_s=0.1))
    assert len(report.warnings) == 1 and "hip: max_torque is 17, sent 20; knee: max_torque" in report.warnings[0]
    assert "warning    " in report.summary()


def test_gains_that_another_program_changes_during_the_run_end_it(options, server):
    def meddle(commands):
        if commands == 10:
            server.gains[31]["kp"] = 0.0

    server.on_tick = meddle
    report = run(options(duration_s=4.0))
    assert report.ended == "fault" and report.damped
    assert "gains changed during the run: hip: kp is 0, sent 50" in report.message


def test_lock_step_advances_one_period_a_tick_and_its_times_are_exact(options, server):
    server.lockstep = True
    report = run(options(step_lock=True, duration_s=0.4))
    assert report.ended == "completed" and report.survived_s == 0.4 and math.isnan(report.timing.period_p50_ms)
    assert np.allclose(server.steps, 0.02) and len(server.steps) == report.ticks == 1 + 20 + 15
    log = read_log(report.log)
    assert np.allclose(log.start_s[log.run], np.arange(1, 21) * 0.02, atol=1e-12)
    # the way out too: its tick follows the last one, however long the server took
    assert log.phase[-1] == "damp" and log.start_s[-1] == pytest.approx(0.02 * report.ticks)
    assert summary(log).duration_s == pytest.approx(0.02 * report.ticks) and "gyro   " not in report.summary()


def test_lock_step_tells_how_far_it_is_once_a_second(options, server):
    server.lockstep, server.delay_s = True, {"state": 0.03}
    lines = []
    report = run(options(step_lock=True, duration_s=1.0, on_second=lines.append))
    assert report.ended == "completed" and lines and ": tick " in lines[0]


def test_real_time_scheduling_is_put_back_and_its_refusal_is_no_error(options):
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    report = run(options(realtime=True, duration_s=0.1))
    assert report.exit_code == 0 and isinstance(read_log(report.log).metadata["realtime"]["priority"], bool)
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before


def test_a_loop_that_is_much_slower_than_trained_ends_damped(options, server, monkeypatch):
    # answers that take long, and are not lost: each tick waits for both
    monkeypatch.setattr("deploy.control.loop.READ_SHARE", 20.0)
    monkeypatch.setattr("deploy.control.loop.COMMAND_SHARE", 20.0)
    server.delay_s = {"command": 0.015, "state": 0.015}
    report = run(options(duration_s=5.0, late_max=0.1))
    assert (report.ended, report.damped) == ("fault", True) and server.damped()
    assert re.match(r"too slow: [123]\d\.\d ticks a second over the last [1-9]\.\d s, 50 are due ", report.message)
    # and with more room it goes on
    assert run(options(duration_s=1.5, log=report.log.with_name("b.mcap"), late_max=3.0)).ended == "completed"


def test_a_policy_whose_every_target_is_clamped_for_a_second_is_ended(tmp_path, robot, bundle_factory, options, server):
    write_bundle(tmp_path / "wild.kinfer", bundle_factory(robot, constant=3.0))
    server.follows_rad = 0.1
    report = run(options(bundle=tmp_path / "wild.kinfer", duration_s=5.0))
    assert (report.ended, report.damped) == ("fault", True) and 1.0 <= report.survived_s < 2.0
    assert report.message.startswith("safety changed the targets of more than half of the joints for 1 s")


def test_between_two_steps_of_the_policy_the_robot_is_looked_at_and_its_target_sent_again(options, server):
    server.lockstep = True
    report = run(options(step_lock=True, duration_s=0.4, rate_hz=150.0))
    log = read_log(report.log)
    assert report.ended == "completed" and report.survived_s == 0.4
    run_rows, between = np.flatnonzero(log.run), np.flatnonzero(log.mask("between"))
    assert len(run_rows) == 20 and len(between) == 40 and np.allclose(server.steps, 0.02 / 3)
    assert np.allclose(np.diff(log.start_s[run_rows]), 0.02) and (np.diff(log.tick[run_rows]) == 1).all()
    assert np.array_equal(log.sent[run_rows + 1], log.sent[run_rows]) and np.isnan(log.action[between]).all()
    with pytest.raises(CheckError, match=r"--rate 70: the policy has 50 steps a second; expected a whole multiple"):
        run(options(rate_hz=70.0, force=True))


def test_a_processor_of_its_own_is_kept_to_and_given_back(options):
    before = os.sched_getaffinity(0)
    report = run(options(cpu=min(before)))
    assert report.ended == "completed" and report.granted.cpu == min(before) and os.sched_getaffinity(0) == before
    with pytest.raises(CheckError, match=r"--cpu 4096: this process may use "):
        run(options(cpu=4096, force=True))


@pytest.mark.parametrize(("on_fault", "kp", "enabled"), [("hold", 50.0, True), ("off", 0.0, False)])
def test_a_fault_leaves_the_robot_as_asked_and_a_fall_damped(options, server, on_fault, kp, enabled):
    server.on_tick = lambda count: server.faults.update({31: ["over temperature"]}) if count == 12 else None
    report = run(options(duration_s=5.0, on_fault=on_fault, watchdog_s=2.0))
    assert report.ended == "fault" and report.exit_code == 1 and report.damped is (on_fault == "off")
    assert (report.left, server.gains[31]["kp"], server.gains[31]["torque_enabled"]) == (
        {"hold": "held", "off": "off"}[on_fault], kp, enabled,
    )  # fmt: skip
    assert {"hold": "HELD", "off": "off: no torque"}[on_fault] in report.summary()
    server.faults.clear()
    server.on_tick = lambda count: setattr(server, "quat_wxyz", [math.cos(0.6), 0, math.sin(0.6), 0])
    report = run(options(duration_s=5.0, on_fault=on_fault, force=True))
    assert report.ended == "fall" and report.left == "damped" and report.faults[0].kind == "fall"
    assert server.gains[31]["kp"] == 0.0 and server.gains[31]["torque_enabled"]


def test_the_memory_that_a_run_locks_is_given_back(options):
    def locked_kb() -> int:
        return int(re.search(r"VmLck:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    before = locked_kb()
    report = run(options(realtime=True, duration_s=0.1))
    assert report.exit_code == 0 and locked_kb() <= before
