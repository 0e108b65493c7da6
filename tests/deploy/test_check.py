"""`ksim check`: findings from numbers by hand, from a real server with faults planted, and from the twin."""

import dataclasses
import io
import json
import math
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from deploy.control.check import CheckOptions, _confirmed, check, findings, main, table
from deploy.control.findings import AMBER, GREEN, RED, Finding, Probe, next_step, worst
from deploy.control.judge_joints import Wiggled, wiggle_findings
from deploy.control.judge_sensors import channel_seen, figures, trained_age_s
from deploy.errors import CheckError, ConnectionLost, OptionError
from deploy.robot.dialects import KBOT, KOS_SIM, TWIN, ZBOT
from deploy.robot.interface import JointSeen
from deploy.robot.safety import Limits
from robots.errors import SpecError
from robots.margins import Ladder, Margins, Rung
from robots.rotation import from_rotvec, multiply, rotate_inverse
from toolkit.files import shipped_policy

TURN_RAD, TURN_RAD_S = 0.3, 3.0


def rocking(time_s, mounting=(0.0, 0.0, 0.0)):
    """Orientation, gyro [rad/s] and accelerometer of an IMU that is rocked about x by hand, mounted askew by a turn."""
    turn = from_rotvec(np.asarray(mounting))
    angle = TURN_RAD * math.sin(TURN_RAD_S * time_s)
    quat = from_rotvec(np.array([angle, 0.0, 0.0]))
    gyro = np.array([TURN_RAD * TURN_RAD_S * math.cos(TURN_RAD_S * time_s), 0.0, 0.0])
    up = rotate_inverse(quat, np.array([0.0, 0.0, 9.81]))
    return quat, rotate_inverse(turn, gyro), rotate_inverse(turn, up)


def make_probe(robot, **changes):
    """A K-Bot's server that answers 50 and then 200 times a second within 2 ms, turned by hand for 4 s."""
    time_s = np.concatenate([np.arange(0, 3, 0.02), np.arange(3, 4, 0.005)])
    seen = [rocking(t) for t in time_s]
    rng = np.random.default_rng(0)
    home = np.asarray(robot.column("home_rad"))
    values = {
        "robot": robot,
        "period_s": 0.02,
        "dialect": KBOT,
        "server": "kbot: by hand",
        "questions": "kbot",
        "gyro_unit": "deg/s",
        "joints": tuple(
            JointSeen(name=j.name, id=j.id, position=j.home_rad, velocity=0.0, temperature=30.0) for j in robot.joints
        ),
        "paced": 150,
        "time_s": time_s,
        "round_trip_s": np.full(len(time_s), 0.002),
        "position": home + 1e-4 * rng.standard_normal((len(time_s), len(home))),
        "velocity": 1e-3 * rng.standard_normal((len(time_s), len(home))),
        "quat_wxyz": np.array([q for q, _, _ in seen]),
        "gyro_b": np.array([g for _, g, _ in seen]),
        "accel_b": np.array([a for _, _, a in seen]) + 0.01 * rng.standard_normal((len(time_s), 3)),
    }
    return Probe(**(values | changes))


def judged(probe, spec=None):
    return findings(probe, spec, Limits.from_spec(probe.robot))


def only(found, level):
    """What is of a level, by group and what."""
    return {(f.group, f.what) for f in found if f.level is level}


def one(found, what, group=None):
    (finding,) = (f for f in found if f.what == what and group in (None, f.group))
    return finding


def seen(probe, name, **changes):
    """The probe with another word on one joint."""
    joints = tuple(dataclasses.replace(j, **changes) if j.name == name else j for j in probe.joints)
    return dataclasses.replace(probe, joints=joints)


def test_a_robot_as_it_should_be_is_green_but_for_gains_that_its_server_does_not_tell(robot, policy_spec_factory):
    found = judged(make_probe(robot), policy_spec_factory(robot))
    assert only(found, RED) == set()
    assert only(found, AMBER) == {("gains", "read back")}
    assert {f.group for f in found} == {"server", "actuators", "gains", "IMU", "channels", "link", "clock"}


@pytest.mark.parametrize(
    ("changes", "what", "level", "words"),
    [
        ({"there": False, "online": False}, "missing", RED, r"knee \(id 12\)"),
        ({"online": False}, "offline", RED, r"knee \(id 12\)"),
        ({"faults": ("Over current",)}, "faults", RED, "knee: Over current"),
        ({"position": None}, "position", RED, "none from knee"),
        ({"position": 1.7}, "outside limits", RED, r"knee at 1.700 rad, limits \[-1.000, 1.500\]"),
        ({"position": 1.55}, "outside limits", AMBER, "knee at 1.550"),
        ({"temperature": 101.0}, "temperature", RED, "hottest is knee, 101 C"),
        ({"temperature": 80.0}, "temperature", AMBER, "hottest is knee, 80 C"),
        ({"voltage": 47.5}, "voltage", GREEN, "47.5 to 47.5 V"),
        ({"lower": -0.5, "upper": 2.0}, "its own limits", AMBER, r"knee \[-0.500, 2.000\]"),
        ({"kp": 40.0, "torque_enabled": True}, "stiff already", AMBER, "knee"),
    ],
)
def test_what_a_joint_tells_is_judged_and_named(robot, changes, what, level, words):
    finding = one(judged(seen(make_probe(robot), "knee", **changes)), what)
    assert finding.level is level and re.search(words, finding.got), finding
    assert finding.do or level is GREEN


def test_a_limp_servo_of_a_z_bot_is_not_offline_and_its_old_faults_are_amber(robot):
    probe = seen(make_probe(robot, dialect=ZBOT, questions="zbot"), "knee", online=False, faults=("no data", "3", "17"))
    found = judged(probe)
    assert only(found, RED) == set()
    assert {("actuators", "faults"), ("gains", "unit"), ("gains", "ignored")} <= only(found, AMBER)
    stiff = judged(seen(probe, "knee", torque_enabled=True))
    assert ("actuators", "offline") in only(stiff, RED)


def test_ids_of_nobody_and_a_server_that_answers_like_another_are_amber(robot):
    found = judged(make_probe(robot, extra=(51, 52), questions="twin"))
    assert "51, 52" in one(found, "extra").got
    assert {("actuators", "extra"), ("server", "kind")} <= only(found, AMBER)


def test_the_gyro_s_unit_is_judged_where_the_robot_was_turned(robot):
    probe = make_probe(robot)
    assert one(judged(probe), "gyro", "IMU").level is GREEN
    wrong = dataclasses.replace(probe, gyro_b=probe.gyro_b * math.pi / 180)
    assert "try --gyro-unit rad/s" in one(judged(wrong), "gyro", "IMU").got
    assert one(judged(wrong), "gyro", "IMU").level is RED
    still = dataclasses.replace(probe, quat_wxyz=np.tile([1.0, 0, 0, 0], (len(probe.time_s), 1)))
    assert one(judged(still), "gyro", "IMU").level is AMBER
    biased = dataclasses.replace(still, gyro_b=np.full_like(probe.gyro_b, 0.2))
    assert "0.35 rad/s while nothing turns" in one(judged(biased), "gyro at rest").got


@pytest.mark.parametrize(
    ("accel", "level", "words"),
    [
        ((0.0, 9.81, 0.0), RED, "up is 90 degrees"),
        ((0.0, 2.9, 9.4), AMBER, "up is 17 degrees"),
        ((0.0, 0.0, -9.81), AMBER, "up is 180 degrees"),
        ((0.0, 0.0, 1.0), AMBER, "it speaks g"),
        ((0.0, 0.0, 9.0), GREEN, "9.00 m/s"),
    ],
)
def test_the_accelerometer_at_rest_is_held_against_gravity(robot, accel, level, words):
    n = len(make_probe(robot).time_s)
    probe = make_probe(robot, quat_wxyz=np.tile([1.0, 0, 0, 0], (n, 1)), accel_b=np.tile(accel, (n, 1)))
    finding = one(judged(probe), "accelerometer", "IMU")
    assert finding.level is level and words in finding.got, finding


def test_an_inverted_accelerometer_is_red_for_a_policy_that_reads_it(robot, policy_spec_factory):
    probe = make_probe(robot)
    probe = dataclasses.replace(probe, accel_b=-probe.accel_b)
    spec = policy_spec_factory(robot, ("joint_angles", "accelerometer"))
    assert one(judged(probe, spec), "accelerometer", "IMU").level is RED


def test_no_orientation_a_fallen_robot_and_a_failed_call_are_red(robot):
    probe = make_probe(robot, errors=("unimplemented ()",))
    assert one(judged(probe), "calls").level is RED
    assert one(judged(dataclasses.replace(probe, quat_wxyz=0 * probe.quat_wxyz)), "orientation", "IMU").level is RED
    lying = dataclasses.replace(
        probe, quat_wxyz=np.tile([math.sqrt(0.5), math.sqrt(0.5), 0, 0], (len(probe.time_s), 1))
    )
    assert one(judged(lying), "tilt").level is RED
    nothing = dataclasses.replace(
        probe, **{k: getattr(probe, k)[:0] for k in ("time_s", "round_trip_s", "quat_wxyz")}, lost=7
    )
    assert one(judged(nothing), "states").got == "none of 7 came in time"


def test_a_channel_s_rate_repeats_and_age_by_hand():
    # asked 50 times a second for 3 s, then 200 times for 2 s; a new value 20 times a second
    time_s = np.concatenate([np.arange(0, 3, 0.02), np.arange(3, 5, 0.005)])
    values = np.floor(time_s * 20.0 + 1e-6)[:, None]
    seen = channel_seen(values, time_s, 150)
    assert seen.rate_hz == pytest.approx(20.0, rel=0.02)
    assert seen.hold_s == pytest.approx(0.05, abs=0.005)
    assert seen.repeats == pytest.approx(0.6, abs=0.01)  # two ticks of five see something new
    fresh = channel_seen(time_s[:, None], time_s, 150)
    assert (fresh.repeats, fresh.hold_s) == (0.0, 0.0)
    assert channel_seen(np.zeros((len(time_s), 1)), time_s, 150).changes == 0


def held(values, time_s, rate_hz):
    """What a sensor with a clock of its own tells at these times."""
    at = np.searchsorted(time_s, np.floor(time_s * rate_hz + 1e-9) / rate_hz - 1e-9)
    return values[at]


def test_a_slow_imu_is_red_unless_the_policy_was_trained_for_it(robot, policy_spec_factory):
    probe = make_probe(robot)
    probe = dataclasses.replace(
        probe, **{k: held(getattr(probe, k), probe.time_s, 20.0) for k in ("quat_wxyz", "gyro_b", "accel_b")}
    )
    spec = policy_spec_factory(robot).replace(observation_latency_s=(0.0, 0.03))
    assert {("channels", c) for c in ("gyro", "orientation", "accelerometer")} <= only(judged(probe, spec), RED)
    assert "60% of ticks repeat" in one(judged(probe, spec), "gyro", "channels").got
    imu = {"latency_s": [0.01, 0.045], "jitter_s": 0.005, "rate_hz": [17.0, 50.0]}
    slow = spec.replace(training={"channels": {"imu": imu}})
    assert trained_age_s(slow, "imu") == pytest.approx(0.05 + 1 / 17)
    assert only(judged(probe, slow), RED) == set()
    # where nobody can tell what it was trained for, half of the ticks without news deserve a look
    for unknown in (None, policy_spec_factory(robot)):
        assert one(judged(probe, unknown), "gyro", "channels").level is AMBER
    assert one(judged(probe), "joints", "channels").level is GREEN


def with_margins(spec, **greatest_s):
    """The policy stands up to these, and falls with twice as much."""
    ladders = {
        name: Ladder(rungs=tuple(Rung(value=v, survived=s, episodes=10) for v, s in ((0.0, 10), (m, 10), (2 * m, 0))))
        for name, m in greatest_s.items()
    }
    return spec.replace(margins=Margins(**ladders))


def test_what_was_measured_is_held_against_the_margins_of_the_bundle(robot, policy_spec_factory):
    probe, spec = make_probe(robot), policy_spec_factory(robot)
    assert not [f for f in judged(probe, spec) if f.group == "margins"]
    good = with_margins(spec, imu_age_s=0.03, joint_age_s=0.001, action_latency_s=0.001)
    told = {f.what: (f.level, f.got) for f in judged(probe, good) if f.group == "margins"}
    # at rest the encoders say nothing of their age
    assert told.keys() == {"IMU", "command"}
    assert told["IMU"] == (GREEN, "IMU readings late by 2 ms: in simulation the policy stands up to 30 ms")
    assert told["command"] == (RED, "commands late by 2 ms: in simulation the policy stands up to 1 ms only")
    # a gyro of 20 Hz is held for 50 ms: 2 to 52 ms old, 27 in the mean
    slow = dataclasses.replace(probe, gyro_b=held(probe.gyro_b, probe.time_s, 20.0))
    for margin_s, level in ((0.02, RED), (0.04, AMBER), (0.08, GREEN)):
        spec = with_margins(policy_spec_factory(robot), imu_age_s=margin_s)
        assert one(judged(slow, spec), "IMU", "margins").level is level


def test_a_server_that_repeats_old_values_is_red_and_a_simulator_that_holds_the_robot_amber(robot):
    n = len(make_probe(robot).time_s)
    still = {
        "position": np.zeros((n, 3)), "velocity": np.zeros((n, 3)), "quat_wxyz": np.tile([1.0, 0, 0, 0], (n, 1)),
        "gyro_b": np.zeros((n, 3)), "accel_b": np.tile([0, 0, 9.81], (n, 1)),
    }  # fmt: skip
    assert one(judged(make_probe(robot, **still)), "all").level is RED
    assert one(judged(make_probe(robot, dialect=TWIN, questions="twin", **still)), "all").level is AMBER
    encoders = {k: still[k] for k in ("position", "velocity")}
    assert one(judged(make_probe(robot, **encoders)), "joints", "channels").level is AMBER
    gyro = one(judged(make_probe(robot, gyro_b=still["gyro_b"])), "gyro", "channels")
    assert gyro.level is RED and "restart it" in gyro.do


def test_a_slow_link_lost_answers_and_a_clock_that_jumps(robot):
    n = len(make_probe(robot).time_s)
    assert one(judged(make_probe(robot, round_trip_s=np.full(n, 0.016))), "round trip").level is RED
    late = np.where(np.arange(n) % 20 == 0, 0.018, 0.002)
    assert one(judged(make_probe(robot, round_trip_s=late)), "round trip").level is AMBER
    assert one(judged(make_probe(robot)), "rate").got.startswith("200 states a second")
    for stretch, level in ((3.0, AMBER), (5.0, RED)):
        slow = make_probe(robot)
        slow = dataclasses.replace(slow, time_s=slow.time_s * stretch)
        assert one(judged(slow), "rate").level is level
    assert one(judged(make_probe(robot, lost=5)), "lost").level is AMBER
    assert one(judged(make_probe(robot, lost=100)), "lost").level is RED
    assert one(judged(make_probe(robot, clock_step_s=-1.2)), "wall clock").level is AMBER


@pytest.mark.parametrize(
    ("moved", "level", "words"),
    [
        ((0.0, 0.048, 0.001), GREEN, "1 joints moved by 0.96 to 0.96"),
        ((0.0, -0.048, 0.0), RED, "moved the other way"),
        ((0.049, 0.0, 0.0), RED, r"hip by \+0.98 of it moved in its place"),
        ((0.0, 0.004, 0.0), RED, "hardly moved"),
        ((0.0, 0.14, 0.0), RED, "moved by 2.80 times as much"),
        ((0.03, 0.048, 0.0), AMBER, r"hip by \+0.60 of it moved as well"),
    ],
)
def test_a_wiggle_is_judged_by_sign_scale_and_who_moved(robot, moved, level, words):
    (finding,) = wiggle_findings([Wiggled(joint="knee", asked_rad=0.05, moved_rad=np.array(moved))], robot.joint_names)
    assert finding.level is level and re.search(words, finding.got), finding


def test_the_summary_says_what_is_next_and_colour_is_only_where_asked_for():
    green, amber, red = (Finding("link", "rate", level, "slow", "fast", "wire") for level in (GREEN, AMBER, RED))
    assert next_step([green], "ksim run x") == "GREEN (1 green): ksim run x"
    assert next_step([green, amber], "ksim run x").endswith("first at link, rate; then ksim run x")
    assert next_step([amber, red], "ksim run x") == "RED (1 amber, 1 red): not to be run. First: link, rate: wire"
    assert worst([green, red, amber]) is RED
    assert "\x1b[31mred  \x1b[0m" in table([red], colour=True) and "\x1b" not in table([red], colour=False)
    assert "slow; expected fast" in table([red], colour=False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "a .kinfer file, or --robot"),
        ({"robot": "kbot", "joint": ("knee",)}, "--wiggle"),
        ({"robot": "kbot", "amplitude_rad": 0.5}, "amplitude_rad"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, words):
    with pytest.raises(OptionError, match=words):
        CheckOptions(**given)


# a real server


@pytest.fixture
def options(kinfer, server, monkeypatch):
    # its joints are there at once
    monkeypatch.setattr("deploy.control.wiggle.OUT_S", 0.1)
    monkeypatch.setattr("deploy.control.wiggle.STILL_S", 0.2)

    def make(**changes):
        values = {"bundle": kinfer, "port": server.port, "probe_s": 0.8, "watchdog_s": 0.0, "yes": True}
        return CheckOptions(**(values | changes))

    return make


def turn_by_hand(server, gyro_scale=180 / math.pi, mounting=(0.0, 0.0, 0.0), rate_hz=0.0):
    """The server's IMU is rocked; its gyro speaks deg/s, and it may have a clock of its own."""
    from kos_protos import imu_pb2

    def now():
        t = time.monotonic()
        return rocking(math.floor(t * rate_hz) / rate_hz if rate_hz else t, mounting)

    def imu():
        server._enter("imu", None)
        _, gyro, accel = now()
        gx, gy, gz = (gyro_scale * gyro).tolist()
        ax, ay, az = accel.tolist()
        return imu_pb2.IMUValuesResponse(gyro_x=gx, gyro_y=gy, gyro_z=gz, accel_x=ax, accel_y=ay, accel_z=az)

    def quaternion():
        server._enter("quaternion", None)
        w, x, y, z = now()[0].tolist()
        return imu_pb2.QuaternionResponse(w=w, x=x, y=y, z=z)

    server.imu, server.quaternion = imu, quaternion


def looked_at(options, good):
    """Findings and probe; looked at again, twice at most, where a busy machine held up the server or the probe."""
    for probe_s in (0.8, 1.6, 3.2):
        found, probe = check(options(probe_s=probe_s))
        if good(found):
            break
    return found, probe


def test_a_robot_that_is_as_trained_is_not_red_and_is_not_touched(options, server):
    turn_by_hand(server)

    def good(found):
        # a busy machine may be slow to answer
        return {g for g, _ in only(found, RED) | only(found, AMBER)} <= {"link"}

    found, probe = looked_at(options, good)
    assert good(found), [f for f in found if f.level is not GREEN]
    assert probe.dialect is KBOT and one(found, "gyro", "IMU").level is GREEN
    assert not [kind for kind, _ in server.requests if kind in ("command", "configure")]


@pytest.mark.parametrize(
    ("plant", "what", "words"),
    [
        (lambda s: s.missing.add(12), "missing", "knee (id 12)"),
        (lambda s: s.offline.add(31), "offline", "hip (id 31)"),
        (lambda s: s.faults.update({25: ["Over current"]}), "faults", "ankle: Over current"),
        (lambda s: s.temperature_c.update({12: 130.0}), "temperature", "hottest is knee, 130 C"),
        (lambda s: s.position_deg.update({31: 120.0}), "outside limits", "hip at 2.094 rad"),
        (lambda s: turn_by_hand(s, gyro_scale=1.0), "gyro", "try --gyro-unit rad/s"),
        (lambda s: turn_by_hand(s, mounting=(math.pi / 2, 0, 0)), "accelerometer", "up is 90 degrees"),
        (lambda s: s.delay_s.update({"state": 0.1}), "round trip", "p50 1"),
    ],
)  # fmt: skip
def test_what_is_planted_in_a_server_is_found(options, server, plant, what, words):
    plant(server)

    def good(found):
        return any(f.level is RED and f.what == what and words in f.got for f in found)

    found, _ = looked_at(options, good)
    assert good(found), found
    assert worst(found) is RED


def test_a_server_that_answers_after_every_deadline_is_red_and_has_no_figures(options, server):
    server.delay_s["imu"] = 2.0
    found, probe = check(options())
    assert one(found, "states").level is RED and len(probe.time_s) == 0
    assert figures(probe)["round_trip_p50_s"] is None and figures(probe)["channels"]["gyro"]["rate_hz"] is None


def test_an_actuator_too_many_is_amber(kinfer, server, options, robot):
    more = dataclasses.replace(robot.joints[0], name="tail", id=77)
    other = type(server)(robot.replace(joints=(*robot.joints, more)))
    try:
        found, probe = check(options(port=other.port))
    finally:
        other.kill()
    assert probe.extra == (77,) and ("actuators", "extra") in only(found, AMBER)


def test_a_wiggle_of_a_good_robot_is_green_and_leaves_it_damped(options, server):
    found, _ = check(options(wiggle=True, probe_s=0.4, amplitude_rad=0.03))
    assert one(found, "sign and scale").got.startswith("3 joints moved by 1.00 to 1.00")
    assert server.damped()
    # where it was, before any gain: gains on an old target would jump there
    kinds = [kind for kind, _ in server.requests if kind in ("command", "configure")]
    assert kinds[:4] == ["command", "configure", "configure", "configure"]
    targets = [[c.position for c in r.commands] for kind, r in server.requests if kind == "command"]
    away = np.abs(np.array(targets) - np.degrees(server.robot.column("home_rad")))
    assert away.max() == pytest.approx(math.degrees(0.03), abs=0.02)
    assert ((away > 0.1).sum(axis=1) <= 1).all(), "one joint at a time"


def geared(server, id_, factor):
    """The motor of a joint moves by another factor than its encoder says."""
    command = server.command

    def wrong(request):
        answer = command(request)
        server.position_deg[id_] = factor * server.target_deg[id_]
        return answer

    server.command = wrong


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda s: s.swap.update({12: 25, 25: 12}), r"ankle by \+1.00 of it moved in its place"),
        (lambda s: geared(s, 12, -1.0), "moved the other way"),
        (lambda s: geared(s, 12, 4.0), "knee by .* went away from the pose"),
        (lambda s: geared(s, 12, 180 / math.pi), "knee by .* (went away from the pose|within .* ms)"),
        (lambda s: setattr(s, "follows_rad", 0.0), "hardly moved"),
    ],
)
def test_swapped_ids_an_inverted_joint_and_a_stuck_one_are_found_by_a_wiggle(options, server, plant, words):
    # equal poses, so that nothing jumps when the two are held
    server.position_deg = dict.fromkeys(server.position_deg, 0.0)
    plant(server)
    found, _ = check(options(wiggle=True, probe_s=0.4, joint=("knee",)))
    red = [f for f in found if f.level is RED and f.group == "wiggle"]
    assert any(re.search(words, f.got) for f in red), found
    assert all(g["kp"] == 0 for g in server.gains.values())


def test_a_robot_that_is_red_is_not_wiggled(options, server):
    server.offline.add(31)
    found, _ = check(options(wiggle=True, probe_s=0.4))
    assert one(found, "not done", "wiggle") and not server.gains


def test_gains_that_do_not_arrive_are_red(options, server):
    server.max_torque_reported = 3.0
    found, _ = check(options(wiggle=True, probe_s=0.4, joint=("knee",)))
    assert "max_torque is 3, sent 20" in one(found, "gains").got and one(found, "gains").level is RED


def command_line(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.control.check", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_a_wiggle_the_robot_is_damped(kinfer, server, signum):
    child = command_line(kinfer, "--port", server.port, "--probe", "0.4", "--wiggle", "--yes", "--watchdog", "2")
    server.wait_for_policy(child)
    child.send_signal(signum)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == (130 if signum == signal.SIGINT else -9)
    assert "Traceback" not in errors
    deadline = time.monotonic() + 30
    while not all(g["kp"] == 0 for g in server.gains.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(server.gains) == 3


def test_nobody_is_moved_without_being_asked(kinfer, server):
    child = command_line(kinfer, "--port", server.port, "--wiggle")
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1 and "add --yes" in errors and errors.count("\n") == 1
    assert not server.requests


def test_the_command_prints_json_and_exits_1_for_red(kinfer, server, capsys):
    arguments = [str(kinfer), "--port", str(server.port), "--probe", "0.5", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["level"] == "amber" and told["exit_code"] == 0 and told["server"] == "kbot"
    assert {"group", "what", "level", "got", "expected", "do"} == set(told["findings"][0])
    assert told["figures"]["channels"]["gyro"]["repeats"] == 0.0 and told["figures"]["round_trip_p50_s"] > 0
    server.offline.add(12)
    assert main(arguments[:-1]) == 1
    said = capsys.readouterr().out
    assert "RED" in said.splitlines()[-1] and "\x1b" not in said


def test_no_server_and_a_joint_that_is_not_there_are_one_line(options, dead_port):
    with pytest.raises(ConnectionLost, match="no KOS server"):
        check(options(port=dead_port))
    with pytest.raises(SpecError, match="no joint 'nose'"):
        check(options(wiggle=True, joint=("nose",)))


def test_an_answer_of_no_is_no(options, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(CheckError, match="not touched"):
        _confirmed(options(wiggle=True, yes=False))
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    _confirmed(options(wiggle=True, yes=False))
    assert "gantry" in capsys.readouterr().err


# the twin


def rock_the_twin(twin):
    """Somebody turns the twin, which hangs, by hand."""
    services, built = twin.services, twin.plant.built
    began = time.monotonic()

    def catch_up():
        t = time.monotonic() - began
        plant = twin.plant
        quat, gyro, _ = rocking(t)
        qpos, qvel = built.home_qpos.copy(), np.zeros(plant.model.nv)
        qpos[built.base_quat] = multiply(built.home_qpos[built.base_quat], quat)
        qvel[built.base_ang_vel] = gyro
        plant.step_count = round(t / plant.dt)
        plant.set_state(qpos, qvel, held=True)
        services._forget()

    services.catch_up = catch_up


def test_a_clean_twin_that_is_turned_by_hand_is_green():
    pytest.importorskip("mujoco")
    from deploy.twin.reality import parse_reality
    from deploy.twin.server import Twin

    noise = {"position_noise_rad": 1e-4, "accelerometer_noise_m_s2": 0.01}
    with Twin("kbot", parse_reality({"sensors": noise}), start="hang") as twin:
        rock_the_twin(twin)
        found, probe = check(CheckOptions(robot="kbot", port=twin.port, probe_s=2.0))
    # a busy machine may be slow to answer
    assert {g for g, _ in only(found, RED) | only(found, AMBER)} <= {"link"}, table(found, False)
    assert probe.dialect is TWIN and len(probe.joints) == 20


def test_a_twin_s_imu_of_20_hz_is_told_by_its_repeats():
    pytest.importorskip("mujoco")
    from deploy.twin.reality import parse_reality
    from deploy.twin.server import Twin

    reality = {"sensors": {"imu": {"rate_hz": 20}, "gyro_noise_rad_s": 0.01, "orientation_noise_rad": 1e-4}}
    bundle = shipped_policy("stand", ".kinfer")
    with Twin("kbot", parse_reality(reality), start="hang", server="kos-sim") as twin:
        found, probe = check(CheckOptions(bundle=bundle, port=twin.port, probe_s=2.0))
    gyro = one(found, "gyro", "channels")
    assert gyro.level is RED and "50 ms old" not in gyro.expected, table(found, False)
    assert float(gyro.got.split(" new values")[0]) == pytest.approx(20, abs=4)
    assert probe.dialect is KOS_SIM


def test_a_hanging_twin_is_wiggled_and_left_damped():
    pytest.importorskip("mujoco")
    from deploy.twin.server import Twin

    with Twin("kbot", start="hang") as twin:
        joints = ("dof_left_knee_04", "dof_right_elbow_02")
        found, _ = check(
            CheckOptions(robot="kbot", port=twin.port, probe_s=0.3, wiggle=True, watchdog_s=2.0, joint=joints)
        )
        kp, enabled = twin.plant.kp.copy(), twin.plant.enabled.copy()
    assert one(found, "sign and scale").got.startswith("2 joints moved by 0."), table(found, False)
    assert not kp.any() and enabled.all()
