"""Identification: the replay is the twin's, the fit finds what was hidden, contacts are noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from deploy.sysid import command
from deploy.sysid.calibrate import calibrate
from deploy.sysid.calibration import Estimate
from deploy.sysid.contacts import Contacts, ContactsError, Plane, apply_contacts
from deploy.sysid.fit import Problem, first_guess, solve
from deploy.sysid.intervals import intervals
from deploy.sysid.lag import fit_lag
from deploy.sysid.motion import Motion, SysidError
from deploy.sysid.simulate import Parameters, Simulator
from deploy.sysid.touch import lowest, touches
from deploy.twin.reality import Reality, parse_reality
from robots.load import load_robot
from robots.model import build_model
from tests.calibrations import calibration_of
from tests.deploy.hidden_arm import HIDDEN, excited, recorded, two_links
from toolkit.settings import load


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    return two_links(tmp_path_factory.mktemp("robots") / "arm")


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


@pytest.mark.parametrize("stop", [(-2.7, 1.0), (-1.0, 90.0), (3.0, 4.0), (1.0, 1.0)])
def test_a_stop_where_its_joint_does_not_come_is_refused_with_the_range(arm, stop):
    built = build_model(arm, fresh=True)
    said = rf"joint elbow: got \[{stop[0]:g}, {stop[1]:g}\], expected .*range \[-2\.61799, 2\.61799\] rad; give radians"
    with pytest.raises(ContactsError, match=said):
        apply_contacts(built, Contacts(stops_rad={"elbow": stop}))
    apply_contacts(built, Contacts(stops_rad={"elbow": (-1.0, 2.6181)}))  # as a person writes 150 degrees
    assert built.model.joint("elbow").range.tolist() == [-1.0, 2.6181]


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
