"""Identification: the replay is the twin's, the fit finds what was hidden, contacts are noticed, the file is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.sysid import command
from deploy.sysid.calibration import CalibrationError, load_calibration, write_calibration
from deploy.sysid.contacts import Contacts, ContactsError, Plane
from deploy.sysid.fit import Problem, first_guess, solve
from deploy.sysid.intervals import intervals
from deploy.sysid.lag import fit_lag
from deploy.sysid.motion import Motion, SysidError, read_motion
from deploy.sysid.simulate import Parameters, Simulator
from deploy.sysid.touch import touches
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality, parse_reality
from robots.load import load_robot
from toolkit.settings import load

REAL = Path(__file__).parents[3] / "shared" / "real" / "so101" / "motions"
ARM = """
<mujoco model="arm">
  <worldbody>
    <body name="upper" pos="0 0 0.5">
      <joint name="shoulder" axis="0 1 0" range="-150 150"/>
      <geom name="upper" type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.8" contype="0" conaffinity="0"/>
      <site name="imu"/>
      <body name="lower" pos="0.3 0 0">
        <joint name="elbow" axis="0 1 0" range="-150 150"/>
        <geom name="lower" type="capsule" fromto="0 0 0 0.25 0 0" size="0.02" mass="0.4" contype="0" conaffinity="0"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
METADATA = {
    "joint_name_to_metadata": {
        "shoulder": {"id": 1, "kp": 60, "kd": 2.0, "actuator_type": "servo"},
        "elbow": {"id": 2, "kp": 30, "kd": 1.0, "actuator_type": "servo"},
    },
    "actuator_type_to_metadata": {
        "servo": {"max_torque": 30, "max_velocity": 50, "armature": 0.02, "frictionloss": 0.1}
    },
    "control_frequency": 50,
    "ksim2real": {"floating": False, "imu_site": "imu", "home_deg": {"shoulder": 0, "elbow": 0}},
}


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robots") / "arm"
    folder.mkdir()
    (folder / "robot.xml").write_text(ARM)
    (folder / "metadata.json").write_text(json.dumps(METADATA))
    return folder


def excited(seconds: float, seed: int) -> np.ndarray:
    """Steps, then a multisine, at 50 Hz, (T, 2) [rad]."""
    draw, time_s = np.random.default_rng(seed), np.arange(0, seconds, 0.02)
    levels = draw.uniform(-0.5, 0.5, (int(seconds / 2 / 0.8) + 1, 2))
    steps = levels[(time_s / 0.8).astype(int) % len(levels)]
    sines = sum(0.12 * np.sin(2 * np.pi * f * time_s[:, None] + draw.uniform(0, 6, 2)) for f in (0.3, 0.9, 2.1, 3.7))
    return np.where(time_s[:, None] < seconds / 2, steps, sines)


def recorded(arm: Path, reality: Reality, targets: np.ndarray, noise_rad: float = 0.0, name: str = "motion") -> Motion:
    """What a log of the twin has: each row is the state just before its command."""
    plant, zeros = Plant(arm, reality, seed=1), [0.0, 0.0]
    for i, joint in enumerate(plant.spec.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    plant.release()
    plant.drive(targets[0])
    plant.advance(1000)
    rows = []
    for target in targets:
        rows.append(plant.read().position)
        plant.command(range(2), target.tolist(), zeros, zeros)
        plant.advance(10)
    position = np.array(rows)
    position = position + noise_rad * np.random.default_rng(5).normal(size=position.shape)
    time_s = 0.02 * np.arange(len(targets))
    return Motion(
        name=name,
        names=plant.spec.joint_names,
        time_s=time_s,
        target=targets,
        position=position,
        use=np.ones(len(targets), dtype=bool),
    )


HIDDEN = {
    "commands": {"latency_s": 0.013},
    "joints": {
        "kp_scale": {"shoulder": 0.7, "elbow": 1.25},
        "kd_scale": {"shoulder": 1.3, "elbow": 0.8},
        "friction_add_nm": {"shoulder": 0.3, "elbow": 0.15},
    },
}


def test_the_replay_is_the_twins_own_motion_where_the_parameters_are_its_own(arm):
    motion = recorded(arm, parse_reality(HIDDEN), excited(4, 0))
    robot = load_robot(arm)
    truth = Parameters.of(robot)
    truth = truth.replace(
        kp=truth.kp * [0.7, 1.25],
        kd=truth.kd * [1.3, 0.8],
        friction=truth.friction + np.array([0.3, 0.15]),
        delay_s=0.013,
    )
    shown = Simulator(arm, [motion]).run([truth, Parameters.of(robot)])[motion.name]
    assert np.abs(shown[0] - motion.position).max() < 1e-6
    assert np.abs(shown[1] - motion.position).max() > 0.05


def test_hidden_parameters_are_found_and_lie_in_their_intervals(arm):
    seen = [recorded(arm, parse_reality(HIDDEN), excited(8, seed), 3e-4, f"seen{seed}") for seed in (1, 2)]
    robot, kinds = load_robot(arm), ("kp", "kd", "friction", "armature", "delay_s")
    scale = {m.name: np.full(2, 0.02) for m in seen}
    published = Parameters.of(robot)
    problem = Problem(Simulator(arm, seen), published, kinds, scale, whole=True)
    fit = solve(problem, first_guess(problem), 12)
    found, sure = fit.parameters, intervals(problem, fit)
    truth = {
        "kp": published.kp * [0.7, 1.25],
        "kd": published.kd * [1.3, 0.8],
        "friction": published.friction + np.array([0.3, 0.15]),
        "armature": published.armature,
    }
    held = []
    for kind, value in truth.items():
        np.testing.assert_allclose(getattr(found, kind), value, rtol=0.05, err_msg=kind)
        held += list((sure.low[kind] <= value) & (value <= sure.high[kind]))
        assert (sure.high[kind] - sure.low[kind] < 0.1 * value).all()
    assert found.delay_s == pytest.approx(0.013, abs=0.001)
    assert np.mean(held) >= 0.75


def test_a_lag_with_play_is_found_and_is_no_arm(arm):
    motion = recorded(arm, parse_reality(HIDDEN), excited(8, 3))
    lag = fit_lag([motion])
    error = lag.rmse([motion])[motion.name]
    still = np.sqrt(np.mean((motion.target - motion.position) ** 2, axis=0))
    assert (error < 0.8 * still).all()
    assert (error > 1e-3).all()


def test_an_arm_that_stands_on_a_table_is_noticed_and_explained_by_a_declared_plane(arm):
    robot, published = load_robot(arm), Parameters.of(load_robot(arm), table.plane)
    targets = np.repeat([[0.0, 0.0], [1.2, 0.3], [0.2, 0.3], [1.2, 0.0]], 100, axis=0)
    motion = dataclasses.replace(recorded(arm, Reality(), targets), name="pressed")
    table = Contacts(plane=Plane(height_m=0.1, geoms=("lower", "upper")))
    stands = Simulator(arm, [motion], contacts=table).run([published])["pressed"][0]
    pressed = dataclasses.replace(motion, position=stands)
    free = Simulator(arm, [pressed])
    (touch,) = touches(free, published)
    assert touch.what == "plane"
    assert touch.level == pytest.approx(0.1, abs=0.003)
    assert 0.3 < touch.share < 0.6
    assert touches(Simulator(arm, [pressed], contacts=table), published) == []
    # the height is found from two centimetres off
    problem = Problem(
        Simulator(arm, [pressed], contacts=table),
        published.replace(plane_m=0.12),
        ("plane_m",),
        {"pressed": np.ones(2)},
    )
    assert solve(problem, problem.start, 8).parameters.plane_m == pytest.approx(0.1, abs=0.001)
    with pytest.raises(ContactsError, match=r"no geom 'hand'; expected some of .*lower"):
        Simulator(arm, [pressed], contacts=Contacts(plane=Plane(height_m=0.1, geoms=("hand",))))
    assert robot.name == "arm"


def test_friction_holds_an_arm_that_stands_still(arm):
    targets = np.zeros((150, 2))
    still = Motion(
        name="still",
        names=("shoulder", "elbow"),
        time_s=0.02 * np.arange(150),
        target=targets,
        position=targets + 0.01,
        use=np.ones(150, dtype=bool),
    )
    p = Parameters.of(load_robot(arm))
    shown = Simulator(arm, [still]).run([p.replace(friction=np.full(2, 6.0)), p])["still"]
    assert np.ptp(shown[0], axis=0).max() < 1e-6
    assert np.ptp(shown[1], axis=0).max() > 5e-3


def write_sage(folder: Path, rows: int = 60) -> Path:
    folder.mkdir()
    names = list(SAGE_SO101)
    (folder / "joint_list.txt").write_text("\n".join(names))
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
    assert motion.names == robot.joint_names
    assert motion.one_clock
    assert motion.time_s[:3] == pytest.approx([0, 0.02, 0.04])
    assert motion.target[0, 0] == pytest.approx(0.3)
    assert motion.target[0, 5] == pytest.approx(0.5 * 2.34 - 0.174533)
    with pytest.raises(SysidError, match=r"no joint dof_left_hip_pitch_04.*expected all of kbot"):
        read_motion(tmp_path / "wave", load_robot("kbot"))


def test_the_command_writes_a_calibration_that_is_read_back_and_refused_for_another_robot(tmp_path, capsys, arm):
    seen, unseen = write_sage(tmp_path / "seen"), write_sage(tmp_path / "unseen", 50)
    out = tmp_path / "calibration.yaml"
    options = ["--robot", "so101", "--iterations", "2", "--timestep", "0.004", "-o", str(out)]
    assert command.main([str(seen), "--unseen", str(unseen), *options]) == 0
    text = capsys.readouterr().out
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
    assert joint.play.low is None
    assert not joint.play.known
    with pytest.raises(CalibrationError, match=r"no joint 'shoulder' of robot arm; .*it is so101"):
        calibration.parameters(load_robot(arm))
    again = tmp_path / "again.yaml"
    write_calibration(again, calibration)
    assert load_calibration(again) == calibration
    with pytest.raises(SysidError, match="it is fitted too"):
        command.main([str(seen), "--unseen", str(seen), *options])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the real motions are not here")
def test_a_short_fit_of_real_motions_leaves_less_than_half_of_the_published_error_on_one_that_it_has_not_seen():
    contacts = load(Contacts, Path(__file__).parents[2] / "configs" / "so101_table.yaml")
    robot = load_robot("so101")
    seen = [read_motion(REAL / name, robot) for name in ("step_response", "hold_under_gravity")]
    seen = [command._cut(m, 50.0) for m in seen]
    unseen = [read_motion(REAL / "random_waypoints", robot)]
    found = command.calibrate("so101", seen, unseen, contacts=contacts, timestep_s=0.004, iterations=5)
    assert found.ratio < 0.45
    assert found.unseen["random_waypoints"].touching > 0.02
