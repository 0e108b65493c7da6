"""Identification: the replay is the twin's, the fit finds what was hidden, contacts are noticed, the file is read."""

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
from deploy.sysid.calibration import CalibrationError, Estimate, load_calibration, write_calibration
from deploy.sysid.contacts import Contacts, ContactsError, Plane
from deploy.sysid.fit import Problem, first_guess, solve
from deploy.sysid.intervals import intervals
from deploy.sysid.lag import fit_lag
from deploy.sysid.model import write_model
from deploy.sysid.motion import Motion, SysidError, read_motion
from deploy.sysid.simulate import Parameters, Simulator
from deploy.sysid.state import State
from deploy.sysid.touch import lowest, touches
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality, parse_reality
from robots.load import load_robot
from robots.model import build_model
from robots.spec import PolicySpec
from tests.calibrations import calibration_of
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
    plant = Plant(arm, reality, seed=1)
    zeros = [0.0] * plant.joints
    for i, joint in enumerate(plant.spec.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    plant.release()
    plant.drive(targets[0])
    plant.advance(1000)
    rows = []
    for target in targets:
        rows.append(plant.read())
        plant.command(range(plant.joints), target.tolist(), zeros, zeros)
        plant.advance(10)
    position = np.array([row.position for row in rows])
    return Motion(
        name=name,
        names=plant.spec.joint_names,
        time_s=0.02 * np.arange(len(targets)),
        target=targets,
        position=position + noise_rad * np.random.default_rng(5).normal(size=position.shape),
        velocity=np.array([row.velocity for row in rows]),
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
    guess = first_guess(problem)
    fit = solve(problem, guess, 12)
    assert fit.converged and not solve(problem, guess, 1).converged
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


def test_a_joint_that_stands_still_in_all_motions_keeps_its_published_values(arm):
    targets = excited(4, 3)
    targets[:, 1] = 0.0
    motion = recorded(arm, parse_reality({"joints": {"kp_scale": {"shoulder": 0.8}}}), targets)
    still = dataclasses.replace(motion, position=motion.position * [1, 0], velocity=motion.velocity * [1, 0])
    heard: list[str] = []
    found = calibrate(arm, [still], kinds=["kp", "kd", "friction"], iterations=3, say=heard.append)
    assert "stand still in all motions, and are not fitted: elbow" in heard
    published = Parameters.of(load_robot(arm))
    elbow = found.joints["elbow"]
    assert elbow.kp.value == pytest.approx(published.kp[1], rel=1e-12) and not elbow.kp.known
    assert elbow.friction.value == pytest.approx(published.friction[1], rel=1e-12) and not elbow.friction.known
    assert found.joints["shoulder"].kp.value == pytest.approx(0.8 * published.kp[0], rel=0.1)


def test_a_heavier_link_is_found_where_the_gains_are_known(arm):
    hidden = {"joints": {"link_mass_scale": {"shoulder": 1.3, "elbow": 0.7}, "friction_add_nm": 0.1}}
    seen = recorded(arm, parse_reality(hidden), excited(8, 1), 3e-4)
    published = Parameters.of(load_robot(arm))
    problem = Problem(
        Simulator(arm, [seen]), published, ("mass", "friction"), {seen.name: np.full(2, 0.02)}, whole=True
    )
    fit = solve(problem, published, 12)
    sure = intervals(problem, fit)
    assert fit.parameters.mass == pytest.approx([1.3, 0.7], rel=0.03)
    assert (sure.low["mass"] <= [1.3, 0.7]).all() and (sure.high["mass"] >= [1.3, 0.7]).all()
    assert fit.parameters.friction == pytest.approx(published.friction + 0.1, rel=0.1)


def test_friction_that_grows_with_the_load_is_found(arm):
    hidden = {"joints": {"load_friction": {"shoulder": 0.2, "elbow": 0.1}, "friction_add_nm": 0.1}}
    seen = recorded(arm, parse_reality(hidden), excited(8, 1), 1e-4)
    published = Parameters.of(load_robot(arm))
    begin = published.replace(load_friction=np.full(2, 0.05))
    kinds = ("friction", "load_friction")
    problem = Problem(Simulator(arm, [seen]), begin, kinds, {seen.name: np.full(2, 0.02)}, whole=True)
    fit = solve(problem, begin, 12)
    sure = intervals(problem, fit)
    assert fit.parameters.load_friction == pytest.approx([0.2, 0.1], rel=0.1)
    assert (sure.low["load_friction"] <= [0.2, 0.1]).all() and (sure.high["load_friction"] >= [0.2, 0.1]).all()


def test_masses_and_stiffness_together_are_refused(arm):
    motion = recorded(arm, parse_reality({}), excited(1, 0))
    with pytest.raises(SysidError, match="got kp and mass, of which motions show the ratio alone"):
        calibrate(arm, [motion], kinds=("kp", "mass"))


def test_a_calibration_is_carried_to_another_step(arm):
    targets = excited(8, 4)
    motion = dataclasses.replace(recorded(arm, parse_reality({}), targets), velocity=None)
    p = Parameters.of(load_robot(arm))
    p = p.replace(kd=3 * p.kd, friction=np.full(2, 1e-4), delay_s=0.01)
    fitted = {name: Estimate(value=v, low=v, high=v) for name, v in (("armature", 0.02), ("delay_s", 0.01))}
    found = calibration_of(arm, p, timestep_s=0.001, delay_s=fitted["delay_s"])
    joints = {n: dataclasses.replace(j, armature=fitted["armature"]) for n, j in found.joints.items()}
    found = dataclasses.replace(found, joints=joints)
    shown = [
        Simulator(arm, [motion], timestep_s=step).watch([c.parameters(load_robot(arm))])["motion"][0]
        for step, c in ((0.001, found), (0.005, found), (0.005, found.at_step(0.005)))
    ]
    as_it_is, carried = (np.sqrt(np.mean((s - shown[0]).reshape(-1, 2, 2) ** 2, axis=(0, 2))) for s in shown[1:])
    assert (carried < [0.2, 0.25] * as_it_is).all() and found.at_step(0.001) == found


def test_nothing_is_known_of_a_joint_that_stood_still(arm):
    reality = parse_reality(HIDDEN)
    still = recorded(arm, reality, np.zeros((60, 2)))
    found = calibrate(arm, [still], kinds=["kp"], iterations=1, timestep_s=0.004)
    assert not any(joint.kp.known for joint in found.joints.values())


def test_a_lag_with_play_is_found_and_is_no_arm(arm):
    motion = recorded(arm, parse_reality(HIDDEN), excited(8, 3))
    lag = fit_lag([motion])
    error = lag.rmse([motion])[motion.name]
    still = np.sqrt(np.mean((motion.target - motion.position) ** 2, axis=0))
    assert (error < 0.8 * still).all()
    assert (error > 1e-3).all()


def test_an_arm_that_stands_on_a_table_is_noticed_and_explained_by_a_declared_plane(arm):
    table = Contacts(plane=Plane(height_m=0.1, geoms=("lower", "upper")))
    published = Parameters.of(load_robot(arm), table.plane)
    targets = np.repeat([[0.0, 0.0], [1.2, 0.3], [0.2, 0.3], [1.2, 0.0]], 60, axis=0)
    motion = dataclasses.replace(recorded(arm, Reality(), targets), name="pressed")
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
    assert solve(problem, problem.start, 6).parameters.plane_m == pytest.approx(0.1, abs=0.001)
    with pytest.raises(ContactsError, match=r"no geom 'hand'; expected some of .*lower"):
        Simulator(arm, [pressed], contacts=Contacts(plane=Plane(height_m=0.1, geoms=("hand",))))


def test_a_plane_that_gives_way_is_a_spring_and_its_give_is_found(arm):
    def table(give: float) -> Contacts:
        return Contacts(plane=Plane(height_m=0.1, geoms=("lower", "upper"), friction=0.2, give_m_n=give))

    published = Parameters.of(load_robot(arm), table(2e-4).plane)
    assert published.plane_give == 2e-4
    targets = np.repeat([[0.0, 0.0], [1.2, 0.3], [0.2, 0.3], [1.2, 0.0]], 60, axis=0)
    motion = dataclasses.replace(recorded(arm, Reality(), targets), name="pressed")
    soft = Simulator(arm, [motion], contacts=table(2e-4))
    tried = [published, published.replace(plane_give=1e-4), published.replace(plane_give=1e-5)]
    deep = [0.1 - lowest(soft, one[119:120])[0] for one in soft.run(tried)["pressed"]]  # it stands pressed
    # it presses with some 100 N: the spring carries it, twice as stiff it gives way half as much
    assert 0.005 < deep[0] < 0.05
    assert deep[1] == pytest.approx(0.5 * deep[0], rel=0.3)
    assert deep[2] < 0.002
    pressed = dataclasses.replace(motion, position=soft.run([published])["pressed"][0])
    found = calibrate(arm, [pressed], contacts=table(5e-5), kinds=("plane_give",), iterations=8, timestep_s=0.002)
    assert found.contacts.plane.give_m_n == pytest.approx(2e-4, rel=0.1)
    assert found.plane_m.value == pytest.approx(0.1, abs=0.001)
    assert found.parameters(load_robot(arm)).plane_give == found.contacts.plane.give_m_n
    # another fit begins at the height that was found, and at all else as it is declared now; without a plane as it is
    now = dataclasses.replace(table(3e-4).plane, height_m=0.3)
    robot = load_robot(arm)
    begun = found.begin(robot, Contacts(plane=now))
    assert (begun.plane_m, begun.plane_give) == (found.plane_m.value, 3e-4)
    assert found.begin(robot, Contacts(plane=dataclasses.replace(now, fit=False))).plane_m == 0.3
    assert dataclasses.replace(found, contacts=Contacts()).begin(robot, Contacts(plane=now)).plane_m == 0.3


def test_rows_that_touch_what_is_not_declared_are_not_fitted_but_judged_and_the_plane_to_declare_is_told(arm):
    table = Contacts(plane=Plane(height_m=0.1, geoms=("lower", "upper"), friction=0.2))
    robot = load_robot(arm)
    real = Parameters.of(robot, table.plane).replace(kp=np.array([45.0, 24.0]))
    targets = np.repeat([[0.0, 0.0], [-0.4, 0.4], [0.2, 0.3], [1.2, 0.3], [0.3, -0.2]], 50, axis=0)
    motion = dataclasses.replace(recorded(arm, Reality(), targets), name="pressed", velocity=None)
    pressed = dataclasses.replace(motion, position=Simulator(arm, [motion], contacts=table).run([real])["pressed"][0])
    how = {"kinds": ("kp",), "iterations": 4, "timestep_s": 0.005}
    found = calibrate(arm, [pressed], **how)
    bent = calibrate(arm, [pressed], leave_out=False, **how)
    off = {one: np.abs(c.parameters(robot).kp / real.kp - 1).max() for one, c in (("left", found), ("bent", bent))}
    assert off["left"] < 0.1 < 0.5 < off["bent"]
    score = found.seen["pressed"]
    assert 0.2 < score.left_out < 0.6 and bent.seen["pressed"].left_out == 0
    assert max(score.fitted_rad.values()) > 0.05  # the rows left out count in it
    told = command.lines(found)
    assert any("rows, which were not fitted; the model does not" in line for line in told)
    lines = [line[2:] for line in told[told.index("  plane:") : told.index("  plane:") + 4]]
    (tmp := Path(str(arm) + "_contacts.yaml")).write_text("\n".join(lines) + "\n")
    plane = load(Contacts, tmp).plane
    assert plane.height_m == pytest.approx(0.1, abs=0.005)
    assert plane.geoms == ("lower",)


def test_one_motion_that_the_model_cannot_follow_does_not_bend_the_fit_of_the_others(arm):
    robot = load_robot(arm)

    def motion(seed: int, scale: float) -> Motion:
        real = parse_reality({"joints": {"kp_scale": {"shoulder": 0.6, "elbow": scale}}})
        return dataclasses.replace(recorded(arm, real, excited(4, seed), name=f"seen{seed}"), velocity=None)

    seen = [motion(seed, scale) for seed, scale in ((1, 0.6), (2, 0.6), (3, 0.25))]
    found = calibrate(arm, seen, kinds=("kp",), iterations=8, timestep_s=0.004).parameters(robot)
    np.testing.assert_allclose(found.kp / Parameters.of(robot).kp, 0.6, rtol=0.05)


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


def test_a_joint_that_friction_holds_stands_still_at_the_greatest_damping_that_a_step_carries(arm):
    time_s = 0.02 * np.arange(150)
    targets = np.stack([0.3 * np.sin(3 * time_s), np.full(150, 0.02)], axis=1)
    still = Motion(
        name="still",
        names=("shoulder", "elbow"),
        time_s=time_s,
        target=targets,
        position=np.zeros((150, 2)),
        use=np.ones(150, dtype=bool),
    )
    simulator = Simulator(arm, [still], timestep_s=0.004)
    p = Parameters.of(load_robot(arm)).replace(friction=np.array([0.1, 3.0]))
    most = Problem(simulator, p, ("kp", "kd"), {"still": np.ones(2)}).damped(p)
    # 0.6 N m of the controller and what the shoulder's motion does, against 3 N m
    elbow = simulator.run([p.replace(kd=np.array([2.0, most[1]]))])["still"][0, :, 1]
    assert np.abs(np.diff(elbow[10:])).max() < 2e-3
    assert np.ptp(elbow[10:]) < 2e-3


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


def test_the_command_writes_a_calibration_a_page_and_a_model_and_refuses_another_robot(tmp_path, capsys, arm):
    seen, unseen = write_sage(tmp_path / "seen"), write_sage(tmp_path / "unseen", 50)
    out, model = tmp_path / "calibration.yaml", tmp_path / "arm.xml"
    options = ["--robot", "so101", "--iterations", "2", "--timestep", "0.004", "-o", str(out)]
    assert command.main([str(seen), "--unseen", str(unseen), *options, "--model", str(model)]) == 0
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
