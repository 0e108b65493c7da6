"""ksim sysid: what it reads, what it writes, what it refuses, and that it goes on where it was broken off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.errors import DeployError
from deploy.log.imports.command import import_log
from deploy.log.recorder import Recorder
from deploy.log.tick import Tick
from deploy.sysid import command
from deploy.sysid.calibrate import _cut, calibrate
from deploy.sysid.calibration import CalibrationError, load_calibration, write_calibration
from deploy.sysid.contacts import Contacts
from deploy.sysid.fit import Problem
from deploy.sysid.model import write_model
from deploy.sysid.motion import Motion, SysidError, read_motion
from deploy.sysid.simulate import Parameters, Simulator
from deploy.sysid.state import State
from deploy.twin.reality import parse_reality
from robots.load import load_robot
from robots.model import build_model
from robots.spec import PolicySpec
from tests.calibrations import calibration_of
from tests.deploy.hidden_arm import HIDDEN, METADATA, excited, recorded, two_links
from toolkit.settings import load

REAL = Path(__file__).parents[3] / "shared" / "real" / "so101" / "motions"


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    return two_links(tmp_path_factory.mktemp("robots") / "arm")


THEIRS = ("Rotation", "Pitch", "Elbow", "Wrist_Pitch", "Wrist_Roll", "Jaw")


def write_sage(folder: Path, rows: int = 60) -> Path:
    folder.mkdir()
    (folder / "joint_list.txt").write_text("\n".join(THEIRS))
    time_us = 20_000.0 * np.arange(rows)
    target = 0.1 * np.sin(np.arange(rows)[:, None] / 8 + np.arange(6)) + 0.3
    target[:, 5] = 0.5
    for name, values in (("control", target), ("state_motor", target)):
        lines = [f'CONTROL,{t},"{json.dumps(list(v))}"' for t, v in zip(time_us, values, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["type,timestamp,positions", *lines]) + "\n")
    return folder


def test_a_sage_folder_is_read_with_its_gripper_as_a_share_of_its_range(tmp_path):
    robot = load_robot("so101")
    motion = read_motion(write_sage(tmp_path / "wave"), robot)
    assert motion.name == "wave"
    assert motion.names == robot.joint_names
    assert motion.one_clock
    assert motion.velocity is None
    assert motion.time_s[:3] == pytest.approx([0, 0.02, 0.04])
    assert motion.target[0, 0] == pytest.approx(0.3)
    assert motion.target[0, 5] == pytest.approx(0.5 * 2.34 - 0.174533)
    # imported first, it is the same
    log = tmp_path / "wave.mcap"
    import_log(tmp_path / "wave", log, robot="so101")
    again = read_motion(log, robot)
    assert again.digest == motion.digest
    np.testing.assert_array_equal(again.position, motion.position)
    np.testing.assert_array_equal(again.target, motion.target)
    with pytest.raises(SysidError, match=r"no joint of robot kbot in it .there is: shoulder_pan"):
        read_motion(log, load_robot("kbot"))


def write_log(path: Path, arm: Path, names: tuple[str, ...], rows: int = 20, kp: float = 30.0) -> Path:
    """A log as ksim run writes it, its joints in some order; tick 2 is stale, 4 has no state, the last is limp."""
    robot = load_robot(arm)
    robot = robot.replace(joints=tuple(robot.joint(n).replace(**({"kp": kp} if n == "elbow" else {})) for n in names))
    spec = PolicySpec(
        task="test",
        robot=robot,
        inputs=(),
        commands=(),
        carry_size=0,
        control_period_s=0.02,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
    )
    angle = {"shoulder": 0.1, "elbow": -0.2}
    with Recorder(path, spec=spec, bundle=b"", settings={}, patient=True) as recorder:
        for k in range(rows):
            values = np.array([angle[name] + 0.01 * k for name in names])
            start_s = 5.0 + 0.02 * k
            recorder.tick(
                Tick(
                    tick=k,
                    phase="run" if k < rows - 1 else "damp",
                    scheduled_s=start_s,
                    start_s=start_s,
                    state_s=start_s + 0.001,
                    command_s=start_s + 0.004,
                    state_round_trip_s=0.001,
                    command_round_trip_s=0.001,
                    inputs={},
                    action=None,
                    target=None,
                    sent=values + 1.0,
                    joint_position=values if k != 4 else np.full(len(names), np.nan),
                    joint_velocity=-values,
                    joint_torque=np.zeros(len(names)),
                    joint_temperature=None,
                    quat_wxyz=np.array([1.0, 0, 0, 0]),
                    gyro_b=np.zeros(3),
                    accel_b=np.zeros(3),
                    stale=k == 2,
                    stages_ms={},
                )
            )
        recorder.close({})
    return path


def test_a_log_of_a_run_is_read_by_name_without_the_ticks_that_have_no_state(tmp_path, arm):
    robot = load_robot(arm)
    motion = read_motion(write_log(tmp_path / "run.mcap", arm, ("elbow", "shoulder")), robot)
    assert motion.names == ("shoulder", "elbow")
    kept = np.array([k for k in range(20) if k not in (2, 4, 19)])
    np.testing.assert_allclose(motion.time_s, 0.02 * kept, atol=1e-9)
    np.testing.assert_allclose(motion.position, np.array([0.1, -0.2]) + 0.01 * kept[:, None])
    np.testing.assert_allclose(motion.target, motion.position + 1.0)
    np.testing.assert_allclose(motion.velocity, -motion.position)
    assert not motion.one_clock
    assert motion.absent == ()
    assert len(motion.digest) == 64
    assert motion.gains.tolist() == [[60, 30], [2, 1]]


def test_the_gains_in_force_are_the_published_models_and_must_be_those_of_all_logs(tmp_path, arm):
    robot, heard = load_robot(arm), []
    weak = read_motion(write_log(tmp_path / "weak.mcap", arm, ("shoulder", "elbow"), kp=20), robot)
    found = calibrate(arm, [weak], kinds=("friction",), iterations=1, say=heard.append)
    assert found.joints["elbow"].kp.value == 20
    assert any("gains in the logs are not the robot's: elbow;" in text for text in heard)
    own = read_motion(write_log(tmp_path / "own.mcap", arm, ("shoulder", "elbow")), robot)
    with pytest.raises(SysidError, match="motion own: joint elbow has other gains than in weak"):
        calibrate(arm, [weak, own], kinds=("friction",), say=heard.append)


def test_a_joint_that_the_log_does_not_have_stands_at_home_and_does_not_count(tmp_path, arm):
    motion = read_motion(write_log(tmp_path / "run.mcap", arm, ("elbow",)), load_robot(arm))
    assert motion.absent == ("shoulder",)
    assert (motion.position[:, 0] == 0).all()
    found = calibrate(arm, [motion], kinds=("kp", "friction"), iterations=1, say=lambda _: None)
    assert found.joints["shoulder"].kp.value == pytest.approx(60)
    assert not found.joints["shoulder"].kp.known
    assert found.seen["run"].fitted_rad.keys() == {"elbow"}


TWIN_ARMS = """
<mujoco model="arms">
  <worldbody>
    <geom name="floor" type="plane" size="5 5 0.1"/>
    <body name="torso" pos="0 0 1">
      FREE
      <geom name="torso" type="sphere" size="0.1" mass="5"/>
      <site name="imu"/>
      LEFT
      RIGHT
    </body>
  </worldbody>
</mujoco>
"""
LIMB = """
      <body name="SIDE_upper" pos="0 Y 0">
        <joint name="SIDE_shoulder" axis="0 1 0" range="-150 150"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.8" contype="0" conaffinity="0"/>
        <body name="SIDE_lower" pos="0.3 0 0">
          <joint name="SIDE_elbow" axis="0 1 0" range="-150 150"/>
          <geom type="capsule" fromto="0 0 0 0.25 0 0" size="0.02" mass="0.4" contype="0" conaffinity="0"/>
        </body>
      </body>
"""


def two_arms(folder: Path, *, floating: bool) -> Path:
    """A torso with two arms of two joints."""
    folder.mkdir()
    xml = TWIN_ARMS.replace("FREE", "<freejoint/>" if floating else "")
    for side, y in (("left", "0.2"), ("right", "-0.2")):
        xml = xml.replace(side.upper(), LIMB.replace("SIDE", side).replace("Y", y))
    (folder / "robot.xml").write_text(xml)
    joints = METADATA["joint_name_to_metadata"]
    names = [f"{side}_{name}" for side in ("left", "right") for name in ("shoulder", "elbow")]
    data = METADATA | {
        "joint_name_to_metadata": {n: joints[n.split("_")[1]] | {"id": k + 1} for k, n in enumerate(names)},
        "ksim2real": {"floating": floating, "imu_site": "imu"},
    }
    (folder / "metadata.json").write_text(json.dumps(data))
    return folder


def test_a_floating_robot_is_refused_unless_its_base_was_held_and_then_moves_as_one_that_is_fixed(tmp_path):
    floating, fixed = (two_arms(tmp_path / n, floating=n == "floating") for n in ("floating", "fixed"))
    wave = 0.3 * np.sin(np.arange(60)[:, None] / 6 + np.arange(4))
    motion = recorded(fixed, parse_reality({"joints": {"kp_scale": 0.8}}), wave)
    with pytest.raises(SysidError, match=r"its base floats; .*--held"):
        Simulator(floating, [motion])
    simulator = Simulator(floating, [motion], held=True)
    published = Parameters.of(load_robot(floating))
    shown = simulator.watch([published.replace(kp=0.8 * published.kp)])[motion.name][0]
    np.testing.assert_allclose(shown, np.hstack([motion.position, motion.velocity]), atol=1e-6)
    # one joint of each arm is moved at a time, and the slopes are those of moving each alone
    ones = {motion.name: np.ones(4)}
    late = published.replace(kp=0.8 * published.kp, delay_s=0.004)
    problem = Problem(simulator, late, ("kd", "delay_s"), ones, speed_scale=ones)
    assert [list(group) for group in problem.together(True)] == [[0, 2], [1, 3], [4]]
    x = problem.vector(late)
    here = problem.residual(x)
    steps = x[:, None] + np.diag(problem.steps(x))
    alone = (problem.residual(steps) - here) / problem.steps(x)
    slopes = problem.jacobian(x, here[:, 0])
    np.testing.assert_allclose(slopes, alone, atol=1e-6)
    # and so are those along the axes of each arm's valley
    axes = problem.axes(x, here[:, 0], slopes)
    assert (axes[np.ix_([0, 1], [2, 3, 4])] == 0).all()
    assert np.linalg.norm(problem.along(x, axes) - alone) < 0.1 * np.linalg.norm(alone)


def test_a_fit_that_was_broken_off_goes_on_to_the_same_end(tmp_path, arm):
    motion = recorded(arm, parse_reality(HIDDEN), excited(2, 0))
    state, heard = tmp_path / "state.json", []

    def fit(say=heard.append, kinds: tuple[str, ...] = ("kp", "kd"), kept: Path | None = state):
        return calibrate(arm, [motion], kinds=kinds, iterations=2, timestep_s=0.004, state=kept, say=say)

    def until(words: str):
        def say(text: str) -> None:
            heard.append(text)
            if text.startswith(words):
                raise KeyboardInterrupt

        return say

    once = fit(kept=None)
    for words in ("step 2", "with velocities", "judging"):  # each time it comes farther
        with pytest.raises(KeyboardInterrupt):
            fit(until(words))
    heard.clear()
    assert fit() == once
    assert not any(text.startswith("step") for text in heard)
    with pytest.raises(SysidError, match=r"state.json: the state of another fit"):
        fit(kinds=("kp",))
    state.write_text("{")
    with pytest.raises(SysidError, match=r"state.json: not the state of a fit"):
        fit()


def test_a_model_has_the_links_masses(tmp_path, arm):
    p = Parameters.of(load_robot(arm))
    write_model(tmp_path / "arm.xml", arm, calibration_of(arm, p.replace(mass=np.array([1.0, 1.5]))))
    import mujoco

    ours, theirs = mujoco.MjModel.from_xml_path(str(tmp_path / "arm.xml")), build_model(arm, 0.002).model
    heavier = ours.body_mass[1:] / theirs.body_mass[1:]
    which = ours.jnt_bodyid[ours.joint("elbow").id]
    assert heavier[which - 1] == pytest.approx(1.5) and np.delete(heavier, which - 1) == pytest.approx(1.0)
    assert ours.body_inertia[which] == pytest.approx(1.5 * theirs.body_inertia[which], rel=1e-5)
    assert ours.body_ipos[which] == pytest.approx(theirs.body_ipos[which])


def test_a_model_names_what_the_motions_do_not_tell(tmp_path, arm):
    found = calibration_of(arm, Parameters.of(load_robot(arm)))
    write_model(tmp_path / "all.xml", arm, found)
    assert "(marked ? in the report): none. -->" in (tmp_path / "all.xml").read_text()
    elbow, shoulder = found.joints["elbow"], found.joints["shoulder"]
    guess = dataclasses.replace(elbow.friction, low=0.0, high=9.0)
    joints = {
        "elbow": dataclasses.replace(elbow, friction=guess),
        "shoulder": dataclasses.replace(shoulder, kp=dataclasses.replace(shoulder.kp, low=1.0, high=99.0, known=True)),
    }
    write_model(tmp_path / "some.xml", arm, dataclasses.replace(found, joints=joints))
    assert "(marked ? in the report): elbow: friction. -->" in (tmp_path / "some.xml").read_text()


def test_the_command_writes_a_calibration_a_page_and_a_model_and_refuses_another_robot(tmp_path, capsys, arm):
    seen, unseen = write_sage(tmp_path / "seen"), write_sage(tmp_path / "unseen", 50)
    out, model = tmp_path / "calibration.yaml", tmp_path / "arm.xml"
    options = ["--robot", "so101", "--iterations", "2", "--timestep", "0.004", "-o", str(out)]
    (tmp_path / "contacts.yaml").write_text("leave_out: {seen: [[0.0, 0.1]], sene: [[0.0, 0.1]]}\n")
    options += ["--contacts", str(tmp_path / "contacts.yaml")]
    assert command.main([str(seen), "--unseen", str(unseen), *options, "--model", str(model)]) == 0
    text, said = capsys.readouterr()
    assert "contacts.yaml: leave_out names sene, which is none of these motions" in said
    assert "do not train with it" in text
    assert "unseen mean: " in text
    calibration = load_calibration(out)
    assert calibration.unseen.keys() == {"unseen"}
    assert calibration.one_clock
    assert not calibration.delay_s.known
    assert calibration.model == load_robot("so101").source
    p = calibration.parameters(load_robot("so101"))
    joint = calibration.joints["elbow_flex"]
    assert p.kp[2] == joint.kp.value
    assert joint.kp.low <= joint.kp.value <= joint.kp.high
    assert joint.kp.sensitivity > 0
    assert joint.play.low is None
    assert not joint.play.known
    with pytest.raises(CalibrationError, match=r"no joint 'shoulder' of robot arm; .*it is so101"):
        calibration.parameters(load_robot(arm))
    again = tmp_path / "again.yaml"
    write_calibration(again, calibration)
    assert load_calibration(again) == calibration
    with pytest.raises(SysidError, match="it is fitted too"):
        command.main([str(seen), "--unseen", str(seen), *options])

    page = out.with_suffix(".html").read_text()
    assert "Identification of so101" in page
    assert "Do not train with it" in page
    assert page.count('class="simulated"') >= 4
    assert f"{joint.kp.value:.4g}" in page

    import mujoco

    built = mujoco.MjModel.from_xml_path(str(model))
    j, a = built.joint("elbow_flex"), built.actuator("elbow_flex")
    assert built.dof_armature[j.dofadr[0]] == pytest.approx(joint.armature.value, rel=1e-5)
    assert built.dof_frictionloss[j.dofadr[0]] == pytest.approx(joint.friction.value, rel=1e-5)
    assert a.gainprm[0] == pytest.approx(joint.kp.value, rel=1e-5)
    assert a.biasprm[:3] == pytest.approx([0, -joint.kp.value, -joint.kd.value], rel=1e-5)
    assert a.forcerange[1] == pytest.approx(joint.torque_limit.value, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "seen.csv"], "--out seen.csv: it is a log too"),
        (["-o", "found.html"], "--page found.html: it is --out too"),
        (["-o", "found.yaml", "--model", "found.yaml"], "--model found.yaml: it is --out too"),
        (["-o", "found.yaml", "--state", "seen.csv"], "--state seen.csv: it is a log too"),
        (["-o", "found.yaml", "--begin", "x.json", "--state", "x.json"], "--begin x.json: it is --state too"),
        (["-o", "seen.csv/found.yaml"], "--out seen.csv/found.yaml: cannot be written .*is a file, not a folder"),
        (["-o", "."], "--out .: "),
    ],
)
def test_what_is_written_at_the_end_destroys_nothing_and_has_its_place_before_the_fit(
    tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    Path("seen.csv").write_text("kept")
    with pytest.raises(DeployError, match=words):
        command.main(["seen.csv", "--robot", "so101", *options])
    assert [p.name for p in tmp_path.iterdir()] == ["seen.csv"] and Path("seen.csv").read_text() == "kept"


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("position", 1e300, r"position: got 1e\+300 of joint elbow in row 3, expected up to 1000"),
        ("time", 1e9, "got row 3 1e\\+09 s after the one before it, .* make a log of each part"),
        ("time", -1.0, "got row 3 -1 s after the one before it, .* mend the log's clock"),
        ("time", 0.0, "got row 3 0 s after the one before it, .* mend the log's clock"),
    ],
)
def test_rows_that_no_robot_made_are_refused_before_anything_is_simulated(what, value, words):
    position, time_s = np.zeros((6, 2)), 0.02 * np.arange(6.0)
    if what == "time":
        time_s[3:] = time_s[2] + value + time_s[:3]
    else:
        position[3, 1] = value
    with pytest.raises(SysidError, match=words):
        Motion(
            name="m",
            names=("shoulder", "elbow"),
            time_s=time_s,
            target=np.zeros((6, 2)),
            position=position,
            use=np.ones(6, dtype=bool),
        )


def test_a_report_of_parity_is_no_calibration(tmp_path):
    (tmp_path / "report.json").write_text('{"log": "run.mcap", "robot": "kbot", "layers": [], "suspects": []}')
    with pytest.raises(CalibrationError, match=r"report\.json: .*log"):
        load_calibration(tmp_path / "report.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"format": 1, "digest": "", "stages": {"a": {"x": [NaN], "damping": [1], "cost": [], "done": 0}}}',
    ],
)
def test_a_state_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "state").write_text(text)
    with pytest.raises(SysidError, match="not the state of a fit"):
        State(tmp_path / "state", {})
    with pytest.raises(SysidError, match="Is a directory"):
        State(tmp_path, {})


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the real motions are not here")
def test_a_short_fit_of_real_motions_leaves_less_than_half_of_the_published_error_on_one_that_it_has_not_seen():
    contacts = load(Contacts, Path(__file__).parents[2] / "configs" / "so101_table.yaml")
    robot = load_robot("so101")
    seen = [read_motion(REAL / name, robot) for name in ("step_response", "hold_under_gravity")]
    seen = [_cut(m, 40.0) for m in seen]
    unseen = [read_motion(REAL / "random_waypoints", robot)]
    found = calibrate("so101", seen, unseen, contacts=contacts, timestep_s=0.004, iterations=3)
    assert found.ratio < 0.45
    assert found.unseen["random_waypoints"].touching > 0.02
