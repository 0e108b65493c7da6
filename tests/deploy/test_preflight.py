"""What `ksim run` refuses or warns of before the policy's first step: what does not fit, proofs, self-test."""

import dataclasses
import math

import numpy as np
import pytest

from deploy.bundle.envelope import Envelope
from deploy.bundle.preflight import command_vector, differences, in_bundle_order, parse_commands, prepare
from deploy.control.run import RunOptions, main, run
from deploy.errors import CheckError, ConnectionLost, FaultError, LogError, PolicyError, SafetyError
from deploy.log.recorder import read_log
from robots.bundle import write_bundle
from robots.errors import BundleError, RobotLoadError
from robots.load import load_robot


@pytest.fixture
def written(tmp_path, bundle):
    """`written(**changes)`: the path of the bundle with its specification changed."""

    def write(**changes):
        path = tmp_path / "changed.kinfer"
        write_bundle(path, dataclasses.replace(bundle, spec=bundle.spec.replace(**changes)))
        return path

    return write


def test_a_proven_bundle_with_its_checks_is_prepared_without_a_warning(kinfer):
    assert prepare(kinfer, None, {}).warnings == ()


@pytest.mark.parametrize(
    ("proofs", "why"),
    [
        ({}, "it holds no proofs"),
        ({"failures": ["recorded inputs: error 0.3", "another"]}, "it failed: recorded inputs: error 0.3"),
        ({"failures": "everything"}, "it holds no proofs"),
    ],
)
def test_a_bundle_that_is_not_validated_runs_only_when_told_to(written, proofs, why):
    path = written(proofs=proofs)
    with pytest.raises(CheckError, match=rf"not validated \({why}\).*--unvalidated") as caught:
        prepare(path, None, {})
    assert "\n" not in str(caught.value)
    ready = prepare(path, None, {}, unvalidated=True)
    assert ready.warnings == (f"the bundle is not validated ({why}); it runs because of --unvalidated",)


def test_unvalidated_is_a_warning_on_stderr_and_stands_in_the_log(written, server, tmp_path, capsys):
    log = tmp_path / "run.mcap"
    words = [str(written(proofs={})), "--port", str(server.port), "--log", str(log), "--duration", "0.1"]
    with pytest.raises(CheckError):
        main(words)
    assert server.requests == []
    assert main([*words, "--unvalidated"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("ksim run: warning: the bundle is not validated (it holds no proofs)")
    assert "warning    the bundle is not validated" in out
    assert read_log(log).metadata["unvalidated"] is True


def test_the_flag_says_nothing_of_a_bundle_that_is_validated(kinfer, server, tmp_path):
    report = run(
        RunOptions(bundle=kinfer, port=server.port, log=tmp_path / "run.mcap", duration_s=0.1, unvalidated=True)
    )
    assert report.warnings == () and read_log(report.log).metadata["unvalidated"] is False


def test_a_bundle_whose_graph_was_changed_after_its_validation_is_refused(tmp_path, robot, bundle_factory):
    right, other = bundle_factory(robot), bundle_factory(robot, constant=0.2)
    write_bundle(tmp_path / "p.kinfer", dataclasses.replace(right, step_fn=other.step_fn))
    with pytest.raises(PolicyError, match="self-test, step 0"):
        prepare(tmp_path / "p.kinfer", None, {})


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"self_test": {}}, "no self-test:"),
        ({"envelope": {}}, "no envelope of inputs:"),
        ({"self_test": {}, "envelope": {}}, "no self-test and no envelope of inputs:"),
    ],
)
def test_what_a_bundle_does_not_let_us_check_is_a_warning(written, changes, missing):
    (line,) = prepare(written(**changes), None, {}).warnings
    assert line.startswith(f"the bundle has {missing}") and "\n" not in line


def test_a_bundle_of_another_exporter_runs_with_the_warning(tmp_path, bundle_factory):
    write_bundle(tmp_path / "k.kinfer", bundle_factory(load_robot("kbot"), with_spec=False))
    (line,) = prepare(tmp_path / "k.kinfer", "kbot", {}).warnings
    assert "no self-test and no envelope" in line


# the envelope


def narrow(bundle, **spans):
    """The specification with an envelope: name -> (low, high)."""
    return bundle.spec.replace(envelope={k: {"low": list(v[0]), "high": list(v[1])} for k, v in spans.items()})


def test_a_reading_may_lie_a_quarter_of_the_span_and_the_slack_outside(bundle):
    # hip 0.2 to 0.6 rad: a quarter of 0.4 is 0.1, and 0.1 rad of slack: 0.0 to 0.8
    envelope = Envelope.from_spec(narrow(bundle, joint_angles=([0.2, -1.0, -1.0], [0.6, 1.0, 1.0])))
    for hip, inside in ((0.001, True), (0.799, True), (-0.001, False), (0.801, False), (math.nan, False)):
        assert (envelope.outside({"joint_angles": np.array([hip, 0.0, 0.0])}) == []) is inside, hip
    (line,) = envelope.outside({"joint_angles": np.array([1.5, 0.0, 0.0])})
    assert line == "joint_angles of hip: 1.5 rad measured, 0.2 to 0.6 rad in training"


def test_gravity_that_points_up_is_outside_and_is_named_by_its_axis(bundle):
    envelope = Envelope.from_spec(narrow(bundle, projected_gravity=([-1, -1, -10], [1, 1, -9])))
    assert envelope.outside({"projected_gravity": np.array([0.5, -2.0, -9.5])}) == []
    (line,) = envelope.outside({"projected_gravity": np.array([0.0, 0.0, 9.81])})
    assert line == "projected_gravity along the z axis: 9.81 m/s^2 measured, -10 to -9 m/s^2 in training"


def test_time_and_command_have_no_envelope(bundle):
    envelope = Envelope.from_spec(narrow(bundle, time=([0], [1]), command=([0, 0], [0, 0])))
    assert envelope.spans == {}


@pytest.mark.parametrize(
    "span",
    [{"low": [0.0]}, {"low": [0.0], "high": [1.0]}, {"low": "x", "high": "y"}, {"low": [0, 0, math.nan]}, [1, 2], None],
    ids=str,
)
def test_an_envelope_that_does_not_fit_the_input_is_refused(bundle, span):
    with pytest.raises(CheckError, match="envelope of input joint_angles: expected low and high, 3 numbers each"):
        Envelope.from_spec(bundle.spec.replace(envelope={"joint_angles": span}))


def run_with(bundle, tmp_path, server, *, ramp_s=0.2, **spans):
    path = tmp_path / "narrow.kinfer"
    write_bundle(path, dataclasses.replace(bundle, spec=narrow(bundle, **spans)))
    log = tmp_path / "run.mcap"
    return run(
        RunOptions(bundle=path, port=server.port, log=log, duration_s=0.2, ramp_s=ramp_s, watchdog_s=0.0, late_max=10.0)
    )


def test_a_robot_outside_the_envelope_is_ramped_home_and_damped_and_the_policy_never_runs(bundle, tmp_path, server):
    server.position_deg = {31: 40.0, 12: -10.0, 25: 5.0}
    # training had the hip near 0.9 rad; home is 0.3
    report = run_with(bundle, tmp_path, server, ramp_s=1.0, joint_angles=([0.8, -0.6, -0.1], [1.0, -0.4, 0.1]))
    assert report.ended == "fault" and report.exit_code == 1 and report.damped and server.damped()
    assert report.message.startswith("the policy was not started: joint_angles of hip: 0.3")
    assert "0.8 to 1 rad in training; check joint order, zero offsets, units" in report.message
    log = read_log(report.log)
    assert report.survived_s == 0.0 and report.ramp_ticks > 3 and not log.run.any() and log.phase[-1] == "damp"


def test_the_envelope_is_looked_at_after_the_ramp_not_before(bundle, tmp_path, server):
    server.position_deg = {31: 40.0, 12: -10.0, 25: 5.0}
    spans = ([0.2, -0.6, -0.1], [0.4, -0.4, 0.1])  # about home; 40 degrees is far out
    report = run_with(bundle, tmp_path, server, ramp_s=1.0, joint_angles=spans)  # a slow machine's pause is no jump
    assert report.ended == "completed", report.message


def test_only_the_start_is_held_against_the_envelope(bundle, tmp_path, server):
    def lean(count):
        if count == 5:
            server.quat_wxyz = [math.cos(0.25), math.sin(0.25), 0, 0]  # 0.5 rad: gravity y is -4.7

    server.on_tick = lean
    spans = ([-0.5, -0.5, -10], [0.5, 0.5, -9])
    assert run_with(bundle, tmp_path, server, projected_gravity=spans).ended == "completed"


def test_a_specification_that_was_changed_after_the_export_is_refused(tmp_path, bundle):
    joints = list(bundle.spec.robot.joints)
    joints[0] = joints[0].replace(kp=2 * joints[0].kp)
    changed = bundle.spec.replace(robot=bundle.spec.robot.replace(joints=tuple(joints)))
    write_bundle(tmp_path / "p.kinfer", dataclasses.replace(bundle, spec=changed))
    with pytest.raises(CheckError, match="gains, limits, names or ranges were changed"):
        prepare(tmp_path / "p.kinfer", None, {})


def test_a_bundle_for_a_built_in_robot_is_compared_with_it_unasked(tmp_path, bundle_factory, robot):
    kbot = load_robot("kbot")
    path = tmp_path / "p.kinfer"
    write_bundle(path, bundle_factory(kbot))
    assert prepare(path, None, {}).compared == "kbot"
    stiff = kbot.replace(joints=tuple(j.replace(kp=1.5 * j.kp) for j in kbot.joints))
    write_bundle(path, bundle_factory(stiff))
    with pytest.raises(CheckError, match="trained for another robot than kbot"):
        prepare(path, None, {})
    write_bundle(path, bundle_factory(robot))
    assert prepare(path, None, {}).compared == ""


def test_a_bundle_whose_proof_was_cut_short_runs_with_a_warning(written, bundle):
    short = bundle.spec.proofs | {"closed_loop": {"mujoco": {"episodes": 4}}}
    (line,) = prepare(written(proofs=short), None, {}).warnings
    assert line == "the bundle's proofs are reduced: 10,000 steps and 4 episodes, in place of 10,000 and 200"


# what is refused before the robot is touched


def untouched(server):
    return not [kind for kind, _ in server.requests if kind in ("command", "configure")]


def test_a_robot_that_may_not_start_is_not_touched(options, server, tmp_path):
    server.position_deg[31] = 100.0
    with pytest.raises(SafetyError, match=r"may not start: joint out of range: hip at 1.745 rad"):
        run(options())
    server.position_deg[31] = 0.0
    server.quat_wxyz = [math.cos(0.6), 0, math.sin(0.6), 0]
    with pytest.raises(SafetyError, match=r"may not start: tilt 1.20 rad"):
        run(options())
    server.quat_wxyz = [1.0, 0, 0, 0]
    server.offline.add(25)
    with pytest.raises(FaultError, match=r"ankle .* is offline"):
        run(options())
    assert untouched(server) and not (tmp_path / "run.mcap").exists()


def test_an_existing_log_is_refused_before_the_robot_is_reached(options, server, tmp_path):
    (tmp_path / "run.mcap").write_text("mine")
    with pytest.raises(LogError, match=r"it exists.*--force"):
        run(options())
    assert server.requests == [] and (tmp_path / "run.mcap").read_text() == "mine"
    assert run(options(force=True)).exit_code == 0


def test_the_bundle_is_not_overwritten_by_the_log(kinfer, server):
    before = kinfer.read_bytes()
    with pytest.raises(LogError, match="it is the bundle"):
        run(RunOptions(bundle=kinfer, port=server.port, log=kinfer, force=True, duration_s=0.1))
    assert kinfer.read_bytes() == before


def test_commands_are_checked_by_name_and_range(bundle):
    spec = bundle.spec
    assert command_vector(spec, {"yaw": -0.5}).tolist() == [0.0, -0.5]
    with pytest.raises(CheckError, match=r"--command vz: unknown; this policy takes vx, yaw"):
        command_vector(spec, {"vz": 0.0})
    with pytest.raises(CheckError, match=r"--command vx=2: expected -0.5 to 1 m/s"):
        command_vector(spec, {"vx": 2.0})
    above = spec.replace(commands=(spec.commands[0].replace(low=0.2), spec.commands[1]))
    assert command_vector(above, {}).tolist() == [0.2, 0.0], "0 is outside: the nearest end of the range"
    assert parse_commands(["vx=0.5", "yaw=-1e-1"]) == {"vx": 0.5, "yaw": -0.1}
    for bad in ("vx", "vx=", "vx=fast", "=1", "vx=nan"):
        with pytest.raises(CheckError, match=r"expected NAME=NUMBER"):
            parse_commands([bad])
    with pytest.raises(CheckError, match=r"given twice"):
        parse_commands(["vx=1", "vx=2"])


def test_differences_between_bundle_and_robot_are_listed(robot):
    assert differences(robot, robot) == []
    shuffled = robot.replace(joints=robot.joints[::-1])
    assert differences(robot, shuffled) == []
    hip = robot.joints[0].replace(kp=55.0, id=7)
    other = robot.replace(joints=(hip, *robot.joints[1:]), control_period_s=0.01)
    assert differences(robot, other) == [
        "hip: id 7 on the robot, 31 in the bundle",
        "hip: kp 55 on the robot, 50 in the bundle",
        "control_period_s 0.01 on the robot, 0.02 trained",
    ]
    renamed = robot.replace(joints=(robot.joints[0].replace(name="toe"), *robot.joints[1:]))
    assert differences(robot, renamed) == ["no joint hip", "joint toe is unknown to the policy"]


def test_a_bundle_for_another_robot_is_refused(kinfer):
    with pytest.raises(CheckError, match=r"trained for another robot than .*: no joint hip; no joint knee"):
        prepare(kinfer, "kbot", {})


def test_a_bundle_of_another_exporter_needs_a_robot(tmp_path, robot, bundle_factory):
    write_bundle(tmp_path / "k.kinfer", bundle_factory(robot, with_spec=False))
    with pytest.raises(CheckError, match=r"names only.*--robot kbot"):
        prepare(tmp_path / "k.kinfer", None, {})
    with pytest.raises(CheckError, match=r"the robot has no hip, knee, ankle"):
        prepare(tmp_path / "k.kinfer", "kbot", {})
    bundle = bundle_factory(robot, with_spec=False)
    shuffled = robot.replace(joints=robot.joints[::-1])
    assert in_bundle_order(bundle, shuffled).joint_names == robot.joint_names


def test_a_kbot_bundle_of_another_exporter_takes_the_kbot_s_gains(tmp_path, bundle_factory):
    kbot = load_robot("kbot")
    reverse = kbot.replace(joints=kbot.joints[::-1])
    write_bundle(tmp_path / "k.kinfer", bundle_factory(reverse, with_spec=False))
    ready = prepare(tmp_path / "k.kinfer", "kbot", {"vx": 3.0})
    assert ready.spec.robot.joint_names == kbot.joint_names[::-1]
    assert ready.spec.robot.column("kp") == kbot.column("kp")[::-1] and ready.spec.control_period_s == 0.02


def test_bad_files_and_names_are_one_line(options, tmp_path, kinfer):
    (tmp_path / "cut.kinfer").write_bytes(kinfer.read_bytes()[:200])
    for changes, kind in (
        ({"bundle": tmp_path / "none.kinfer"}, BundleError),
        ({"bundle": tmp_path / "cut.kinfer"}, BundleError),
        ({"robot": "nobot"}, RobotLoadError),
    ):
        with pytest.raises(kind) as caught:
            run(options(**changes))
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckError, match=r"duration_s: got -1"):
        options(duration_s=-1)
    assert not (tmp_path / "run.mcap").exists()


def test_no_server_is_refused_and_leaves_no_log(options, tmp_path, dead_port):
    with pytest.raises(ConnectionLost, match=rf"no KOS server at 127.0.0.1:{dead_port} "):
        run(options(port=dead_port, connect_timeout_s=0.3))
    assert not (tmp_path / "run.mcap").exists()


def test_an_imu_that_is_turned_is_refused_before_the_robot_is_touched(options, server):
    server.accel = [0.0, 9.81, 0.0]
    with pytest.raises(SafetyError, match="up by its accelerometer is 90 degrees away"):
        run(options())
    assert not [kind for kind, _ in server.requests if kind in ("command", "configure")]
