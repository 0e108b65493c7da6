"""Parity on real runs against twins: small where nothing differs, larger where something does, and by how much."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.writer import Writer

from deploy.control.run import RunOptions, run
from deploy.errors import LogError
from deploy.log.recorder import Recorder, RunLog, read_log
from deploy.log.tools import recover_log
from deploy.parity import layers
from deploy.parity.body import compare
from deploy.parity.command import main
from deploy.parity.delay import lag_s
from deploy.parity.layers import ParityError, write_reports
from deploy.parity.motion import Replay, WindowedSimulation
from deploy.parity.policy import replay_policy
from deploy.parity.timing import loop_timing
from deploy.sysid.calibration import write_calibration
from deploy.sysid.simulate import Parameters
from deploy.twin.reality import parse_reality
from deploy.twin.server import Twin, spawn_twin
from robots.bundle import Bundle, write_bundle
from robots.load import load_robot
from robots.rotation import multiply, up_in_frame
from robots.spec import PolicySpec, input_specs
from tests.calibrations import calibration_of
from toolkit.errors import ToolkitError

# the run through its policy is in test_parity_layers.py, the search for suspects there and in test_suspects.py
parity = partial(layers.parity, closed_loop_runs=0, search=False)
ROBOT = load_robot("kbot")
N = len(ROBOT.joints)
USED = ("projected_gravity", "gyroscope", "time")


def make_kbot_bundle(amplitude_rad: float, balance: bool = True, period_s: float = 0.02) -> Bundle:
    """A policy that balances with ankles and hips, and swings the arms and the hips' yaw (all joints if not).

    action = home + gravity @ A + gyro @ B + bias + amplitude * sin(time * w + phase); next carry = carry + 1.
    The balance gains were found by trial on the nominal model, which they keep up for eight seconds.
    """
    from onnx import TensorProto, helper, numpy_helper

    gravity, gyro = np.zeros((3, N)), np.zeros((3, N))
    bias = np.asarray(ROBOT.column("home_rad")).copy()
    swing = np.full(N, amplitude_rad)
    names = list(ROBOT.joint_names)
    if balance:
        for side, sign in (("left", 1.0), ("right", -1.0)):
            for joint, share in (("ankle_02", 1.0), ("hip_pitch_04", -0.155)):
                j = names.index(f"dof_{side}_{joint}")
                gravity[1, j] = sign * share * -6.903 / 9.81
                gyro[0, j] = sign * share * -0.1515
                bias[j] -= sign * share * -6.903 * 0.09757
        for j, name in enumerate(names):
            if not any(part in name for part in ("shoulder", "elbow", "wrist")):
                swing[j] = 0.0
    rate = 2 * math.pi * (0.6 + 0.07 * np.arange(N))

    def const(name: str, values: Any) -> Any:
        return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)

    def tensor(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])

    steps = [
        ("MatMul", ["projected_gravity", "A"], "a"),
        ("MatMul", ["gyroscope", "B"], "b"),
        ("Mul", ["time", "rate"], "angle"),
        ("Sin", ["angle"], "sine"),
        ("Mul", ["sine", "swing"], "wave"),
        ("Add", ["a", "b"], "ab"),
        ("Add", ["ab", "wave"], "abw"),
        ("Add", ["abw", "bias"], "action"),
        ("Add", ["carry", "one"], "next_carry"),
    ]
    weights = [const("A", gravity), const("B", gyro), const("rate", rate), const("swing", swing)]
    weights += [const("bias", bias), const("one", [1.0])]
    sizes = {"projected_gravity": 3, "gyroscope": 3, "time": 1, "carry": 1}

    def model(nodes: Any, inputs: list[Any], outputs: list[Any], constants: list[Any]) -> bytes:
        graph = helper.make_graph(nodes, "policy", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    known = input_specs(ROBOT, ())
    spec = PolicySpec(
        task="swing",
        robot=ROBOT,
        inputs=tuple(known[name] for name in USED),
        commands=(),
        carry_size=1,
        control_period_s=period_s,
        action_low_rad=tuple(ROBOT.column("lower_rad")),
        action_high_rad=tuple(ROBOT.column("upper_rad")),
    )
    return Bundle(
        joint_names=ROBOT.joint_names,
        command_names=(),
        carry_shape=(1,),
        init_fn=model(
            [helper.make_node("Identity", ["start"], ["carry"])], [], [tensor("carry", 1)], [const("start", [0])]
        ),
        step_fn=model(
            [helper.make_node(op, inputs, [output]) for op, inputs, output in steps],
            [tensor(name, size) for name, size in sizes.items()],
            [tensor("action", N), tensor("next_carry", 1)],
            weights,
        ),
        spec=spec,
    )


def record(
    folder: Path, reality: dict[str, Any], *, duration_s: float, hang: bool, step_lock: bool = True, name: str = "run"
) -> RunLog:
    """A run of the test policy against a twin of a reality."""
    bundle, log = folder / "policy.kinfer", folder / f"{name}.mcap"
    # ten times a second in real time: what is tested is the path, not how busy this machine is
    write_bundle(bundle, make_kbot_bundle(0.15, balance=not hang, period_s=0.02 if step_lock else 0.1))
    # in real time in a process of its own, as on a robot; in lock step sharing this one costs nothing
    settings: Any = {"lockstep": step_lock, "start": "hang" if hang else "home"}
    with Twin("kbot", parse_reality(reality), **settings) if step_lock else spawn_twin(**settings) as twin:
        if hang and not step_lock:
            time.sleep(2.0)  # its limbs fall, and come to rest
        report = run(
            RunOptions(
                bundle=bundle,
                port=twin.port,
                duration_s=duration_s,
                log=log,
                step_lock=step_lock,
                ramp_s=0.5,
                robot="kbot" if step_lock else None,
                unvalidated=True,
                base_fixed=hang,
                watchdog_s=0.0,
                late_max=10.0,
            )
        )
    assert report.ended == "completed", report.message
    return read_log(log)


LATE_S = 0.03
WEAK = {"joints": {"kp_scale": 0.6, "kd_scale": 1.5}}


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunLog]:
    folder = tmp_path_factory.mktemp("hung")
    realities = {"nominal": {}, "late": {"commands": {"latency_s": LATE_S}}, "weak": WEAK}
    return {name: record(folder, r, duration_s=3.0, hang=True, name=name) for name, r in realities.items()}


@pytest.fixture(scope="module")
def reports(hung: dict[str, RunLog]) -> dict[str, dict[str, Any]]:
    return {name: parity(log, hang=True).report for name, log in hung.items()}


def test_a_nominal_twin_on_the_gantry_is_the_simulation(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["nominal"]
    assert report["policy_replay_error_max"] == 0.0
    assert report["policy_replay_steps"] == 150
    assert report["motion_rms_rad"] > 0.02
    assert report["joint_position_rmse_rad"] < 2e-4
    assert report["joint_velocity_rmse_rad_s"] < 1e-2
    assert abs(report["delay_s"]["difference_s"]) < 0.001


def test_added_latency_shows_in_the_errors_and_moves_the_delay_by_as_much(reports: dict[str, dict[str, Any]]) -> None:
    nominal, late = reports["nominal"], reports["late"]
    assert late["joint_position_rmse_rad"] > 10 * nominal["joint_position_rmse_rad"]
    moved = late["delay_s"]["estimated_s"] - nominal["delay_s"]["estimated_s"]
    assert moved == pytest.approx(LATE_S, abs=0.001)
    # the policy of this log was trained without any latency
    assert late["delay_s"]["trained_s"] == [0.0, 0.0]
    assert late["delay_s"]["outside_s"] == pytest.approx(late["delay_s"]["estimated_s"])
    # the lag of motion behind target says the same without a model
    moved = late["delay_s"]["lag_measured_s"] - nominal["delay_s"]["lag_measured_s"]
    assert moved == pytest.approx(LATE_S, abs=0.006)
    assert late["delay_s"]["lag_difference_s"] == pytest.approx(LATE_S, abs=0.012)


def test_wrong_gains_show_in_the_errors_and_the_right_reality_takes_them_away(
    hung: dict[str, RunLog], reports: dict[str, dict[str, Any]]
) -> None:
    nominal, weak = reports["nominal"], reports["weak"]
    known = parity(hung["weak"], reality=parse_reality(WEAK), hang=True).report
    assert weak["joint_position_rmse_rad"] > 10 * nominal["joint_position_rmse_rad"]
    assert known["joint_position_rmse_rad"] < 0.1 * weak["joint_position_rmse_rad"]


def test_standing_in_lock_step_against_a_nominal_twin_is_close_to_the_simulation(tmp_path: Path) -> None:
    log = record(tmp_path, {}, duration_s=3.0, hang=False)
    report = parity(log).report
    assert report["joint_position_rmse_rad"] < 0.004
    assert report["base_tilt_rmse_rad"] < 0.01


def test_real_time_against_the_twin_is_close_too_and_the_reports_are_whole(tmp_path: Path) -> None:
    log = record(tmp_path, {}, duration_s=4.0, hang=True, step_lock=False)
    result = parity(log, hang=True)
    report = result.report
    assert report["policy_replay_error_max"] == 0.0
    assert report["joint_position_rmse_rad"] < 0.05
    loop = report["loop"]
    assert loop["ticks"] > 20
    assert loop["period_p50_ms"] == pytest.approx(100.0, abs=20.0)
    assert loop["state_round_trip_p50_ms"] > 0
    files = write_reports(result, tmp_path / "out")
    assert json.loads(files["json"].read_text()) == report
    page = files["html"].read_text()
    assert page.count("<svg") > 8 and "<script" not in page and "http" not in page
    assert len(page) < 2_000_000


def test_what_was_measured_in_lock_step_is_drawn_by_the_simulator_s_clock(
    hung: dict[str, RunLog], tmp_path: Path
) -> None:
    log, pages = hung["nominal"], []
    for late_s in (0.0, 0.2):  # a machine that is busy now and then
        asked = np.where(np.arange(len(log.tick)) % 7 == 0, late_s, 0.0)
        result = parity(dataclasses.replace(log, state_s=log.start_s + asked), hang=True)
        page = write_reports(result, tmp_path / f"{late_s}")["html"].read_text()
        pages.append(page.partition("The joints that differ most")[2].partition("Delay</h2>")[0])
    assert pages[0].count("<svg") > 1 and pages[0] == pages[1]


def test_the_command_prints_one_json_object_and_works_with_a_truncated_log(
    hung: dict[str, RunLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, small = tmp_path / "broken.mcap", tmp_path / "small.mcap"
    # a chunk holds a second of the clock, which in lock step is most of the run
    monkeypatch.setattr("deploy.log.tools.Writer", partial(Writer, chunk_size=10_000))
    recover_log(hung["nominal"].path, small)
    whole = small.read_bytes()
    broken.write_bytes(whole[: int(0.7 * len(whole))])
    command = [
        sys.executable,
        "-m",
        "deploy.parity.command",
        str(broken),
        "--json",
        "--hang",
        "--closed-loop",
        "0",
        "--exit-zero",
        "--out",
        str(tmp_path / "p.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["log_complete"] is False
    assert 50 < report["loop"]["ticks"] < 150
    assert "breaks off" in done.stderr
    assert (tmp_path / "p.html").is_file() and (tmp_path / "p.json").is_file()


def shortened(log: RunLog, ticks: int, phase: str | None = None) -> RunLog:
    """The first ticks of a log, perhaps all of one phase."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(log):
        value = getattr(log, f.name)
        if isinstance(value, np.ndarray) and len(value) == len(log.phase):
            changes[f.name] = value[:ticks]
    changes["inputs"] = {k: v[:ticks] for k, v in log.inputs.items()}
    changes["safety"] = log.safety[:ticks]
    changes["phase"] = log.phase[:ticks] if phase is None else [phase] * min(ticks, len(log.phase))
    return dataclasses.replace(log, **changes)


def test_logs_that_cannot_be_compared_are_refused_in_one_line(hung: dict[str, RunLog], tmp_path: Path) -> None:
    log = hung["nominal"]
    first = int(np.flatnonzero(log.run)[0])
    for bad, message in (
        (shortened(log, 20, "ramp"), "no tick in which the policy ran"),
        (shortened(log, first + 4), "4 ticks in which the policy ran, expected at least 6"),
    ):
        with pytest.raises(ParityError) as caught:
            parity(bad)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    position = log.joint_position.copy()
    position[first, 1] = 1e300
    with pytest.raises(ParityError, match=r"joint_position: got 1e\+300 of joint .* expected up to 1e\+06; mend"):
        parity(dataclasses.replace(log, joint_position=position))
    with pytest.raises(LogError, match=r"--out .*: cannot be written .* is a file, not a folder"):
        main([str(tmp_path / "none.mcap"), "--out", str(Path(__file__) / "out")])  # before the log is looked at
    with pytest.raises(ParityError, match="no such built-in robot"):
        parity(log, "no_such_robot")
    missing = subprocess.run(
        [sys.executable, "-m", "deploy.parity.command", str(tmp_path / "none.mcap")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr.count("\n") == 1 and "no such file" in missing.stderr


def test_a_clock_that_runs_back_is_refused_and_stamps_that_repeat_are_told(
    hung: dict[str, RunLog], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = hung["nominal"]
    first = int(np.flatnonzero(log.run)[0])
    start_s = log.start_s.copy()
    start_s[first + 60 :] -= 1.0
    with pytest.raises(
        ParityError, match=rf"its clock runs back: got row {first + 60} 0\.98 s before .*\(1 such row\)"
    ):
        parity(dataclasses.replace(log, start_s=start_s), hang=True)
    start_s = log.start_s.copy()
    start_s[[first + 40, first + 41]] = start_s[first + 39]
    # without velocities, which are then the slopes of the positions
    repeated = dataclasses.replace(log, start_s=start_s, joint_velocity=np.full_like(log.joint_velocity, np.nan))
    report = parity(repeated, hang=True).report
    assert report["stamps_repeated"] == 2 and report["windows"] > 5
    assert 1e-6 < report["joint_velocity_rmse_rad_s"] < 1.0
    assert parity(log, hang=True).report["stamps_repeated"] == 0
    monkeypatch.setattr("deploy.parity.command.read_log", lambda path: repeated)
    monkeypatch.setattr("deploy.parity.command.read_head", lambda path: (log.metadata, log.spec))
    monkeypatch.setattr("deploy.parity.command.parity", parity)
    main(["run.mcap", "--held", "--closed-loop", "0", "--out", str(tmp_path / "p.html")])
    assert "2 rows of 167 have the stamp of the row before" in capsys.readouterr().err


def test_what_the_head_of_a_log_tells_is_refused_before_its_ticks_are_read(
    hung: dict[str, RunLog], arm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: object) -> RunLog:
        raise AssertionError("its ticks are read")

    for place in ("deploy.parity.command", "deploy.sysid.motion"):
        monkeypatch.setattr(f"{place}.read_log", read)
    log, out = str(hung["nominal"].path), ["--out", str(tmp_path / "out")]
    calibration = tmp_path / "c.yaml"
    write_calibration(calibration, calibration_of(arm, Parameters.of(load_robot(arm))))
    for words, said in (
        (["--robot", str(arm)], "whose joints differ"),
        (["--robot", "no_such_robot"], "no such built-in robot"),
        (["--reality", str(calibration)], "robot"),
        (["--full", "--robot", str(arm)], "no joint of robot"),
        (["--full"], "its base floats"),
        (["--full", "--calibration", str(calibration), "--robot", "kbot"], "robot"),
        (["--full", "--held", "--out", str(calibration / "out")], "is a file, not a folder"),
    ):
        with pytest.raises(ToolkitError, match=said):
            main([log, *out, *words])
    other = tmp_path / "other.mcap"
    other.write_bytes(hung["nominal"].path.read_bytes()[:100])
    with pytest.raises(ToolkitError, match=r"other\.mcap: not a log"):
        main([log, str(other), *out])
    spec = hung["nominal"].spec
    spec = spec.replace(robot=spec.robot.replace(name="another"))
    with Recorder(other, spec=spec, bundle=b"", settings={}, force=True):
        pass
    with pytest.raises(ToolkitError, match=r"logs of another, kbot: expected logs of one robot; compare"):
        main([log, str(other), *out])


def test_a_log_of_the_legs_alone_says_what_it_lacks_and_the_older_word_for_a_held_base_is_known(
    hung: dict[str, RunLog], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = hung["nominal"]
    legs = tuple(name for name in ROBOT.joint_names if any(part in name for part in ("hip", "knee", "ankle")))
    few = dataclasses.replace(
        layers._in_order(log, legs), metadata=log.metadata | {"import": {"missing": []}}, bundle=None
    )
    monkeypatch.setattr("deploy.parity.command.read_log", lambda path: few)
    monkeypatch.setattr("deploy.parity.command.read_head", lambda path: (few.metadata, few.spec))
    monkeypatch.setattr("deploy.parity.command.parity", parity)
    # it says of the base only what is so: a free one would have fallen
    main(["legs.mcap", "--hang", "--closed-loop", "0", "--out", str(tmp_path / "p.html")])
    said = capsys.readouterr().err
    assert "legs.mcap: it has 10 of the robot's 20 joints" in said and "unknown to" not in said
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["robot_differences"] == [] and sorted(report["joints_absent"]) == sorted(
        set(ROBOT.joint_names) - set(legs)
    )
    assert next(layer for layer in report["layers"] if layer["name"] == "body")["untold"]


def test_a_changed_action_in_the_log_shows_in_the_policy_replay(hung: dict[str, RunLog]) -> None:
    log = hung["nominal"]
    action = log.action.copy()
    row = int(np.flatnonzero(log.run)[5])
    action[row, 3] += 0.25
    found = replay_policy(dataclasses.replace(log, action=action))
    assert found["error_max"] == pytest.approx(0.25)
    assert replay_policy(dataclasses.replace(log, bundle=None))["error_max"] is None


def test_lag_is_found_between_samples() -> None:
    command_s = np.arange(0, 6, 0.02)
    motion_s = np.arange(0, 6, 0.013)

    def signal(t: np.ndarray) -> np.ndarray:
        return 0.1 * np.sin(2 * np.pi * 0.8 * t) + 0.05 * np.sin(2 * np.pi * 1.7 * t + 1)

    # a command held for 20 ms is itself 10 ms late on average
    for late in (0.05, 0.0637):
        lag, score = lag_s(command_s, signal(command_s), motion_s, signal(motion_s - late))
        assert lag == pytest.approx(late - 0.01, abs=0.001)
        assert score > 0.99
    lag, _ = lag_s(command_s, 0 * command_s, motion_s, signal(motion_s))
    assert math.isnan(lag)


def test_errors_are_the_hand_computed_ones() -> None:
    # one window, two horizons, two joints
    position = np.zeros((1, 2, 2))
    sim = np.asarray([[[0.1, 0.0], [0.3, -0.2]]])
    replay = Replay(
        first=np.asarray([0]),
        time_s=np.asarray([[0.02, 0.04]]),
        position=position,
        position_sim=sim,
        velocity=position,
        velocity_sim=2 * sim,
        tilt_error_rad=np.asarray([[0.0, 0.2]]),
        start=np.zeros((1, 2)),
    )
    found = compare(replay, ("a", "b"), 0.02)
    assert found["joint_position_rmse_rad"] == pytest.approx(math.sqrt((0.01 + 0.09 + 0.04) / 4))
    assert found["joint_velocity_rmse_rad_s"] == pytest.approx(2 * math.sqrt((0.01 + 0.09 + 0.04) / 4))
    assert found["per_joint"]["a"]["position_rmse_rad"] == pytest.approx(math.sqrt(0.05))
    assert found["per_joint"]["a"]["position_bias_rad"] == pytest.approx(0.2)
    assert found["per_joint"]["b"]["position_bias_rad"] == pytest.approx(-0.1)
    assert found["horizon"]["joint_position_rmse_rad"] == pytest.approx([math.sqrt(0.005), math.sqrt(0.065)])
    assert found["base_tilt_rmse_rad"] == pytest.approx(math.sqrt(0.02))


def test_loop_timing_counts_gaps_and_errors(hung: dict[str, RunLog]) -> None:
    log = hung["nominal"]
    rows = np.flatnonzero(log.run)
    start, tick = log.start_s.copy(), log.tick.copy()
    start[rows] = 0.02 * np.arange(len(rows))
    start[rows[10:]] += 0.021  # one tick left out, and 1 ms late ever after
    tick[rows[10:]] += 1
    scheduled, command = log.scheduled_s.copy(), log.command_s.copy()
    scheduled[rows] = 0.02 * (tick[rows] - tick[rows[0]])
    command[rows] = start[rows] + 0.002
    command[rows[9]] = scheduled[rows[9]] + 0.035  # the tick before took too long
    cut = dataclasses.replace(
        log, start_s=start, tick=tick, scheduled_s=scheduled, command_s=command, metadata={"step_lock": False},
        result=None,
    )  # fmt: skip
    found = loop_timing(cut)
    assert found["overruns"] == 1 and found["skipped"] == 1
    # a run that ended in order has counted them itself, to the ends of its ticks
    assert loop_timing(dataclasses.replace(cut, result={"overruns": 3}))["overruns"] == 3
    assert found["period_p50_ms"] == pytest.approx(20.0)
    assert found["period_max_ms"] == pytest.approx(41.0)
    assert found["period_error_max_ms"] == pytest.approx(1.0)


def test_restart_state_stands_on_the_floor_and_turns_as_the_gyro_says(hung: dict[str, RunLog]) -> None:

    log = hung["nominal"]
    row = int(np.flatnonzero(log.run)[20])
    half = math.radians(5)  # rolled by ten degrees, heading 40 degrees
    yaw = math.radians(20)
    roll = np.asarray([math.cos(half), math.sin(half), 0, 0])
    turn = np.asarray([math.cos(yaw), 0, 0, math.sin(yaw)])
    quat = log.quat_wxyz.copy()
    quat[row] = multiply(turn, roll)
    gyro = log.gyro_b.copy()
    gyro[row] = (0.3, -0.2, 0.1)
    simulation = WindowedSimulation("kbot", dataclasses.replace(log, quat_wxyz=quat, gyro_b=gyro), parse_reality({}))
    qpos, qvel = simulation.state_of(row)
    plant = simulation.plant
    plant.set_state(qpos, qvel)
    sample = plant.read()
    np.testing.assert_allclose(up_in_frame(sample.quat_wxyz), up_in_frame(quat[row]), atol=1e-9)
    np.testing.assert_allclose(sample.gyro_b, gyro[row], atol=1e-9)
    np.testing.assert_allclose(sample.position, log.joint_position[row])
    lowest = min(
        plant.data.geom_xpos[g][2]
        - plant.model.geom_size[g][0]
        - plant.model.geom_size[g][1] * abs(plant.data.geom_xmat[g].reshape(3, 3)[2, 2])
        for g in plant.built.foot_geoms
    )
    assert lowest == pytest.approx(-0.0004, abs=1e-9)


def test_a_soft_joint_restarts_wound_up_by_its_measured_torque(hung: dict[str, RunLog]) -> None:
    log = hung["nominal"]
    row = int(np.flatnonzero(log.run)[20])
    joint = log.spec.robot.joint_names.index("dof_left_ankle_02")
    torque = log.joint_torque.copy()
    torque[row, joint] = -1.5
    soft = {"play_rad": {"dof_left_ankle_02": 0.02}, "stiffness_nm_rad": {"dof_left_ankle_02": 30.0}}
    simulation = WindowedSimulation(
        "kbot", dataclasses.replace(log, joint_torque=torque), parse_reality({"joints": soft}), hang=True
    )
    qpos, qvel = simulation.state_of(row)
    plant = simulation.plant
    true, measured = qpos[plant.built.qpos_ids], log.joint_position[row]
    # the joint is half the gap and 1.5 / 30 rad beyond the motor
    assert true[joint] - measured[joint] == pytest.approx(0.01 + 0.05)
    np.testing.assert_array_equal(np.delete(true, joint), np.delete(measured, joint))
    plant.set_state(qpos, qvel, torque=torque[row])
    np.testing.assert_allclose(plant.read().position, measured, atol=1e-12)
