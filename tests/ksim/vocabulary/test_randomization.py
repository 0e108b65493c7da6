"""Randomisation: what each term draws, where it goes, and that both engines take it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from ksim import randomization
from ksim.actuators import PositionActuators
from ksim.curriculum import LinearScale
from ksim.engine import MjxEngine, MujocoEngine
from ksim.errors import ConfigError
from ksim.measured import MeasuredRandomization
from ksim.randomization import nominal
from ksim.scene import Scene
from ksim.tasks import task_config
from ksim.types import Drive

DRAWS = 200
DEGREE = math.pi / 180


@pytest.fixture(scope="module")
def plain(scene, posed):
    """The robot as described, with every field that a term may vary."""
    return posed().params


@pytest.fixture(scope="module")
def drawn(scene):
    """`drawn(term, level)`: many draws, (draws, k)."""

    def draw(term, level=1.0):
        keys = jax.random.split(jax.random.key(3), DRAWS)
        return np.asarray(jax.vmap(lambda key: term.draw(key, scene, level))(keys))

    return draw


def changed(before, after):
    """Names of what differs between two parameters."""
    parts = {f"model.{k}": (v, after.model[k]) for k, v in before.model.items()}
    parts |= {f"motor.{k}": (v, getattr(after.motor, k)) for k, v in before.motor._asdict().items()}
    parts |= {k: (getattr(before, k), getattr(after, k)) for k in ("joint_offset", "target_bias", "imu_tilt")}
    return {name for name, (a, b) in parts.items() if not np.array_equal(a, b)}


# term, what it changes, and how far it draws: (least, greatest)
R = randomization
TERMS = [
    (R.FrictionRandomization(factor=(0.5, 2.0)), {"model.geom_friction"}, (0.5, 2.0)),
    (R.FloorFrictionRandomization(factor=(0.5, 2.0)), {"model.geom_friction"}, (0.5, 2.0)),
    (R.LinkMassRandomization(), {"model.body_mass", "model.body_subtreemass", "model.body_inertia"}, (0.9, 1.1)),
    (R.InertiaRandomization(), {"model.body_inertia"}, (0.85, 1.15)),
    (R.PayloadRandomization(), {"model.body_mass", "model.body_subtreemass"}, (-1.0, 2.0)),
    (R.CentreOfMassRandomization(width_m=0.05), {"model.body_ipos"}, (-0.05, 0.05)),
    (R.ArmatureRandomization(), {"model.dof_armature", "motor.armature"}, (0.95, 1.05)),
    (R.KpRandomization(), {"motor.kp"}, (0.9, 1.1)),
    (R.KdRandomization(), {"motor.kd"}, (0.9, 1.1)),
    (R.TorqueLimitRandomization(), {"motor.torque_limit"}, (0.9, 1.0)),
    (R.JointFrictionRandomization(), {"motor.friction"}, (0.5, 2.0)),
    (R.JointDampingRandomization(), {"motor.damping"}, (0.0, 0.2)),
    (R.StictionRandomization(), {"motor.stiction"}, (0.0, 0.9)),
    (R.PlayRandomization(), {"motor.play"}, (0.0, 0.035)),
    (R.ComplianceRandomization(), {"motor.compliance"}, (1 / 52, 1 / 23)),
    (R.JointOffsetRandomization(width_rad=3 * DEGREE), {"joint_offset"}, (-3 * DEGREE, 3 * DEGREE)),
    (R.TargetBiasRandomization(), {"target_bias"}, (-0.02, 0.02)),
    (R.ImuTiltRandomization(), {"imu_tilt"}, (-0.02, 0.02)),
    (R.ImuPositionRandomization(), {"model.site_pos"}, (-0.01, 0.01)),
    (R.GravityRandomization(), {"model.opt.gravity"}, (-0.1, 0.1)),
    (R.FootShapeRandomization(), {"model.geom_size", "model.geom_rbound"}, (0.95, 1.05)),
]
IDS = [type(term).__name__ for term, _, _ in TERMS]


@pytest.mark.parametrize(("term", "touched", "span"), TERMS, ids=IDS)
def test_a_term_draws_its_whole_range_and_changes_what_it_says_and_nothing_else(
    scene, plain, drawn, term, touched, span
):
    values = drawn(term)
    least, greatest = span
    room = 0.05 * (greatest - least)
    assert values.min() >= least - 1e-6 and values.max() <= greatest + 1e-6
    assert values.min() < least + room and values.max() > greatest - room
    after = term.apply(plain, jnp.asarray(values[0]), scene)
    assert changed(plain, after) == touched
    assert {f"model.{name}" for name in term.fields} == {name for name in touched if name.startswith("model.")}


@pytest.mark.parametrize(("term", "touched", "span"), TERMS, ids=IDS)
def test_what_is_shown_is_about_one_at_most_and_zero_for_the_nominal_robot(scene, plain, drawn, term, touched, span):
    shown = np.asarray(term.shown(drawn(term)))
    assert np.abs(shown).max() <= 1.0 + 1e-5 and np.abs(shown).max() > 0.8
    neutral = dataclasses.replace(term, scale=0.0)
    same = neutral.draw(jax.random.key(0), scene, 1.0)
    assert np.abs(np.asarray(neutral.shown(same))).max() < 1e-6
    if not isinstance(term, R.FloorFrictionRandomization):  # which takes the greatest of both sides
        after = term.apply(plain, same, scene)
        for name in touched:
            room, _, field = name.partition(".")
            pair = [
                p.model[field] if room == "model" else getattr(p.motor, field) if room == "motor" else getattr(p, room)
                for p in (plain, after)
            ]
            np.testing.assert_allclose(pair[1], pair[0], rtol=1e-5, atol=1e-9)


def test_every_randomisation_that_can_be_made_is_in_the_table():
    made = {type(term) for term, _, _ in TERMS}
    todo, found = [R.Randomization], set()
    while todo:
        one = todo.pop()
        todo += one.__subclasses__()
        if not getattr(one, "__abstractmethods__", None) and one.__module__.startswith("ksim."):
            found.add(one)
    # the K-Bot's description says of no joint that it is damped, so a factor on that would change nothing; that of a
    # calibration is tested with it
    assert found - made <= {R.DampingFactorRandomization, MeasuredRandomization}


def test_a_factor_on_damping_multiplies_what_there_is(scene, plain):
    damped = plain._replace(motor=plain.motor._replace(damping=jnp.full(scene.joints, 0.4)))
    after = R.DampingFactorRandomization().apply(damped, jnp.full(scene.joints, 2.5), scene)
    np.testing.assert_allclose(after.motor.damping, 1.0, rtol=1e-6)


def test_a_scale_brings_the_draw_nearer_to_the_nominal_robot(scene):
    key = jax.random.key(0)
    far, near = (
        np.asarray(R.KpRandomization(scale=LinearScale(low=0.25, high=1.0)).draw(key, scene, level))
        for level in (1.0, 0.0)
    )
    np.testing.assert_allclose(near - 1.0, 0.25 * (far - 1.0), rtol=1e-3, atol=1e-6)
    full, half = (R.ComplianceRandomization(scale=s).draw(key, scene, 1.0) for s in (1.0, 0.5))
    np.testing.assert_allclose(half, 0.5 * np.asarray(full), rtol=1e-6)


def test_a_share_of_the_robots_has_no_springs_at_all_and_the_others_have_one_in_every_joint(drawn):
    soft = drawn(R.ComplianceRandomization(rigid=0.25)) > 0
    assert (soft.all(axis=1) | ~soft.any(axis=1)).all()
    assert 0.6 < soft.all(axis=1).mean() < 0.9


@pytest.mark.parametrize(
    ("kind", "neutral"),
    [
        ("KpRandomization", 1.0),
        ("StictionRandomization", 0.0),
        ("PlayRandomization", 0.0),
        ("ComplianceRandomization", 0.0),
        ("JointOffsetRandomization", 0.0),
        ("TargetBiasRandomization", 0.0),
        ("ArmatureRandomization", 1.0),
    ],
)
def test_joints_are_chosen_by_words_and_the_draws_of_the_others_do_not_move(scene, kind, neutral):
    every, some = getattr(R, kind)(), getattr(R, kind)(joints=("ankle", "left_knee"))
    all_of_them, chosen = (np.asarray(t.draw(jax.random.key(1), scene, 1.0)) for t in (every, some))
    mine = [i for i, name in enumerate(scene.joint_names) if "ankle" in name or "left_knee" in name]
    assert len(mine) == 3
    assert np.array_equal(chosen[mine], all_of_them[mine])
    assert (np.delete(chosen, mine) == neutral).all()
    with pytest.raises(ConfigError, match="no joint's name contains 'tail'"):
        getattr(R, kind)(joints=("tail",)).draw(jax.random.key(1), scene, 1.0)


def test_a_body_that_weighs_more_has_more_inertia_and_what_it_hangs_on_carries_more(scene, plain):
    model = scene.built.model
    factors = jnp.where(jnp.asarray(scene.built.bodies) == scene.built.torso_body, 2.0, 1.0)
    after = R.LinkMassRandomization().apply(plain, factors, scene)
    torso = scene.built.torso_body
    assert after.model["body_mass"][torso] == pytest.approx(2 * model.body_mass[torso], rel=1e-5)
    np.testing.assert_allclose(after.model["body_inertia"][torso], 2 * model.body_inertia[torso], rtol=1e-5)
    # the base carries all of it, a foot none
    more = np.asarray(after.model["body_subtreemass"]) - model.body_subtreemass
    assert more[scene.built.base_body] == pytest.approx(model.body_mass[torso], rel=1e-4)
    foot = model.geom_bodyid[scene.built.foot_geoms[0]]
    assert abs(more[foot]) < 1e-4
    np.testing.assert_allclose(
        R.with_mass(plain, plain.model["body_mass"], scene).model["body_subtreemass"],
        model.body_subtreemass,
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_payload_takes_at_most_half_of_the_torso_away(scene, plain):
    torso = scene.built.torso_body
    mass = float(scene.built.model.body_mass[torso])
    light = R.PayloadRandomization(mass_kg=(-100.0, 0.0)).apply(plain, jnp.asarray([-100.0]), scene)
    assert light.model["body_mass"][torso] == pytest.approx(0.5 * mass, rel=1e-5)


def test_floor_friction_is_the_greatest_of_both_sides_times_the_factor(scene, plain):
    built = scene.built
    rough = plain.model["geom_friction"].at[built.floor_geom, 0].set(0.4).at[built.foot_geoms, 0].set(0.8)
    params = R.with_model(plain, geom_friction=rough)
    after = R.FloorFrictionRandomization().apply(params, jnp.asarray([0.5]), scene).model["geom_friction"]
    np.testing.assert_allclose(after[jnp.asarray([built.floor_geom, *built.foot_geoms]), 0], 0.4, rtol=1e-6)
    assert np.array_equal(after[:, 1:], rough[:, 1:])


def test_what_a_robot_has_not_is_refused(arm, plain):
    meshed = Scene(built=dataclasses.replace(arm, floor_geom=-1))
    with pytest.raises(ConfigError, match="stands on no floor"):
        R.FloorFrictionRandomization().apply(plain, jnp.ones(1), meshed)
    # a plane as a foot has no size that counts
    flat = Scene(built=dataclasses.replace(arm, geoms_by_foot={"sole": np.asarray([arm.floor_geom])}))
    params = nominal(flat, ("geom_size", "geom_rbound"))
    with pytest.raises(ConfigError, match="is a mesh or a plane, expected one of sphere"):
        R.FootShapeRandomization().apply(params, jnp.ones(1), flat)


def test_the_imu_moves_and_no_other_site_does(scene, plain):
    moved = R.ImuPositionRandomization().apply(plain, jnp.asarray([0.01, -0.02, 0.03]), scene)
    away = np.asarray(moved.model["site_pos"] - plain.model["site_pos"])
    rows = np.flatnonzero(np.abs(away).max(axis=1) > 0)
    names = [scene.built.model.site(int(i)).name for i in rows]
    assert names == [scene.built.spec.imu_site]
    np.testing.assert_allclose(away[rows[0]], [0.01, -0.02, 0.03], atol=1e-6)


# What was published of K-Scale's own sim2real settings, in our terms: all of it can be said.


def test_every_published_setting_of_kscale_can_be_said():
    terms = {
        "joint_offset": R.JointOffsetRandomization(width_rad=3 * DEGREE),
        "friction": R.FloorFrictionRandomization(factor=(0.5, 2.0)),
        "armature": R.ArmatureRandomization(factor=(0.95, 1.05)),
        "damping": R.DampingFactorRandomization(factor=(0.5, 2.5)),
        "com": R.CentreOfMassRandomization(width_m=0.05),
        "inertia": R.InertiaRandomization(factor=(0.85, 1.15)),
    }
    config = dataclasses.replace(task_config("kbot_stand"), randomizations=terms)
    assert type(config).from_dict(config.to_dict()) == config


# The engines. The first environment is nominal; the second has larger feet, no gravity and a payload.

GROWN = (
    (R.FootShapeRandomization(factor=(0.5, 2.0)), [1.5, 1.5]),
    (R.GravityRandomization(width_m_s2=9.81), [0.0, 0.0, 9.81]),
    (R.PayloadRandomization(mass_kg=(0.0, 10.0)), [10.0]),
)
GROWN_FIELDS = tuple(dict.fromkeys(name for term, _ in GROWN for name in term.fields))


@pytest.fixture(scope="module")
def two(scene):
    """The parameters of both environments."""
    first = second = nominal(scene, GROWN_FIELDS)
    for term, value in GROWN:
        second = term.apply(second, jnp.asarray(value, jnp.float32), scene)
    return jax.tree.map(lambda a, b: np.stack([np.asarray(a), np.asarray(b)]), first, second)


@pytest.mark.parametrize("kind", [MujocoEngine, pytest.param(MjxEngine, marks=pytest.mark.slow)])
def test_both_engines_take_a_larger_foot_another_gravity_and_a_payload(scene, two, kind):
    built = scene.built
    engine = kind(scene, 2, PositionActuators(), fields=GROWN_FIELDS)
    init = jax.jit(engine.init) if kind is MjxEngine else engine.init

    def lifted(by_m):
        qpos = np.tile(built.home_qpos, (2, 1))
        qpos[:, scene.base_qpos + 2] += by_m
        return init(two, qpos, np.zeros((2, built.model.nv)))

    # the mass-weighted mean of the bodies, whatever they weigh
    data = mujoco.MjData(built.model)
    data.qpos[:] = built.home_qpos
    mujoco.mj_kinematics(built.model, data)
    mass = two.model["body_mass"][:, built.bodies, None]
    mean = (mass * data.xipos[built.bodies]).sum(1) / mass.sum(1)
    com = np.asarray(lifted(0.0).sensor("com_position"))
    np.testing.assert_allclose(com, mean, atol=2e-5)
    assert np.abs(com[1] - com[0]).max() > 0.01
    # capsules of radius 20 mm have grown by 10 mm downwards: at 9 mm they touch, at 11 mm not
    for lift, touches in ((0.009, True), (0.011, False)):
        force = np.asarray(lifted(lift).foot_force)
        assert (force[0] == 0).all() and ((force[1] > 1.0) == touches).all()
    # nothing pulls the second
    state = lifted(0.5)
    if kind is MjxEngine:
        fall = np.asarray(state.internal.qacc)[:, built.base_lin_vel][:, 2]
    else:
        home = np.tile(scene.home_rad, (2, engine.substeps, 1))
        state = engine.step(state, Drive(command=home, wrench_w=np.zeros((2, 6)), kick=np.zeros((2, 6))), two)
        fall = np.asarray(state.sensor("com_velocity"))[:, 2] / scene.control_period_s
    assert fall == pytest.approx([-9.81, 0.0], abs=0.01)
