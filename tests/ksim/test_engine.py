"""The engines: resets, snapshots, kicks, wrenches, histories, actuators, names; and that the two are one physics."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from ksim.actuators import Actuators, PositionActuators, PositionVelocityActuators, TorqueActuators
from ksim.engine import MjxEngine, MujocoEngine, PhysicsEngine, make_engine
from ksim.environment import term_needs
from ksim.errors import ConfigError, KsimError
from ksim.randomization import nominal
from ksim.scene import Scene
from ksim.tasks.stand import stand
from ksim.types import Drive, PhysicsState
from robots import rotation
from robots.load import robot_folder
from robots.model import BuiltModel, build_model
from tests.ksim.biped import write_biped

FIELDS = term_needs(stand())[1]
HISTORY = {"joint_position": 0.02, "gyro": 0.02}


def make(built: BuiltModel, envs: int, period: float = 0.02) -> MujocoEngine:
    scene = Scene(built=built, control_period_s=period)
    return MujocoEngine(scene, envs, PositionActuators(), threads=1, fields=FIELDS, history=HISTORY)


def kicked(built: BuiltModel, envs: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Home, each environment with velocities of its own."""
    rng = np.random.default_rng(1)
    qpos = np.tile(built.home_qpos, (envs, 1))
    qpos[:, built.base_position][:, 2] += lift
    return qpos, rng.uniform(-0.3, 0.3, (envs, built.model.nv))


def drive(
    engine: PhysicsEngine,
    force: Any = (0.0, 0.0, 0.0),
    torque: Any = (0.0, 0.0, 0.0),
    kick: Any = (0.0,) * 6,
    change: Any = 0.0,
) -> Drive:
    """Targets at home or `change` [rad] from it, and what acts on the base, the same in all environments."""
    target = np.float32(engine.scene.home_rad) + np.float32(change)
    envs = engine.envs
    return Drive(
        command=np.tile(target, (envs, engine.substeps, 1)),
        wrench_w=np.tile(np.float64([*force, *torque]), (envs, 1)),
        kick=np.tile(np.float64(kick), (envs, 1)),
    )


def public(state: PhysicsState) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_a_masked_reset_leaves_the_others_as_if_it_had_not_been(built, batched):
    params, (qpos, qvel) = batched(3), kicked(built, 3)
    whole, mixed = make(built, 3), make(built, 3)
    a, b = whole.init(params, qpos, qvel), mixed.init(params, qpos, qvel)
    for k in range(8):
        if k == 4:
            before = public(b)
            b = mixed.reset(b, np.array([False, True, False]), params, qpos + 0.0, qvel * 0.0)
            for old, new in zip(before, public(b), strict=True):
                assert np.array_equal(old[[0, 2]], new[[0, 2]])
            assert np.array_equal(b.qpos[1], np.float32(qpos[1])) and not b.qvel[1].any() and not b.torque[1].any()
            rows = b.history["joint_position"][1]
            assert np.array_equal(rows, np.tile(b.joint_position[1], (len(rows), 1)))
            assert np.array_equal(b.motor.anchor[1], qpos[1][built.qpos_ids])
        a = whole.step(a, drive(whole, force=(5.0, 0.0, 0.0)), params)
        b = mixed.step(b, drive(mixed, force=(5.0, 0.0, 0.0)), params)
    for old, new in zip(public(a), public(b), strict=True):
        assert np.array_equal(old[[0, 2]], new[[0, 2]])
    assert not np.array_equal(a.qpos[1], b.qpos[1])


def test_a_reset_of_nobody_is_the_same_state(built, batched):
    engine, params = make(built, 2), batched(2)
    state = engine.init(params, *kicked(built, 2))
    assert engine.reset(state, np.zeros(2, bool), params, *kicked(built, 2)) is state


def test_going_on_from_a_snapshot_gives_the_bits_of_an_unbroken_run(built, batched):
    params, force = batched(2), (30.0, -10.0, 0.0)
    params.motor.stiction[:] = 0.2  # so that the slip is remembered too
    engine, other = make(built, 2), make(built, 2)
    state = engine.init(params, *kicked(built, 2))
    for _ in range(6):
        state = engine.step(state, drive(engine, force, change=0.05), params)
    saved = {k: v.copy() for k, v in engine.snapshot(state).items()}
    here = public(state)
    again = other.restore(saved, params)
    assert all(np.array_equal(x, y) for x, y in zip(here, public(again), strict=True))
    for _ in range(6):
        state = engine.step(state, drive(engine, force), params)
        again = other.step(again, drive(other, force), params)
        assert all(np.array_equal(x, y) for x, y in zip(public(state), public(again), strict=True))
    assert state.foot_force.max() > 50.0  # it stood on the floor, where the warm start matters


def momentum(built: BuiltModel, qpos: Any, qvel: Any) -> tuple[np.ndarray, np.ndarray]:
    """(velocity of the robot's centre of mass [m/s], angular momentum about it [kg m^2/s])."""
    data = mujoco.MjData(built.model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_forward(built.model, data)
    mujoco.mj_subtreeVel(built.model, data)
    return data.subtree_linvel[built.base_body].copy(), data.subtree_angmom[built.base_body].copy()


def test_in_free_fall_a_wrench_moves_the_robot_as_newton_and_euler_say(built, batched):
    engine, params = make(built, 1), batched(1)
    qpos, _ = kicked(built, 1, lift=3.0)
    torque, mass = np.array([2.0, -1.0, 3.0]), built.mass_kg
    state = engine.init(params, qpos, np.zeros((1, built.model.nv)))
    for _ in range(5):  # 0.1 s
        state = engine.step(state, drive(engine, torque=torque), params)
    velocity, spin = momentum(built, state.qpos[0], state.qvel[0])
    assert np.allclose(velocity, [0.0, 0.0, -0.981], atol=2e-3)
    assert np.allclose(spin, 0.1 * torque, rtol=0.01, atol=2e-3)

    force = np.array([40.0, -30.0, 20.0])
    state = engine.init(params, qpos, np.zeros((1, built.model.nv)))
    for _ in range(5):
        state = engine.step(state, drive(engine, force), params)
    velocity, _ = momentum(built, state.qpos[0], state.qvel[0])
    # the explicit integrator keeps momentum to first order in the step
    assert np.allclose(velocity, 0.1 * (force / mass + [0.0, 0.0, -9.81]), rtol=0.01, atol=2e-3)
    assert not state.foot_force.any()


def test_a_wrench_ends_with_its_drive(built, batched):
    engine, params = make(built, 1), batched(1)
    qpos, _ = kicked(built, 1, lift=3.0)
    state = engine.init(params, qpos, np.zeros((1, built.model.nv)))
    state = engine.step(state, drive(engine, force=(100.0, 0.0, 0.0)), params)
    before, _ = momentum(built, state.qpos[0], state.qvel[0])
    state = engine.step(state, drive(engine), params)
    after, _ = momentum(built, state.qpos[0], state.qvel[0])
    assert before[0] == pytest.approx(100.0 * 0.02 / built.mass_kg, rel=0.01)
    assert after[0] == pytest.approx(before[0], abs=2e-4)


def test_a_kick_is_added_to_the_bases_velocity_linear_in_the_world_and_angular_in_the_body(built, batched):
    engine, params = make(built, 2, period=0.005), batched(2)
    qpos, _ = kicked(built, 2, lift=3.0)
    quarter = rotation.from_yaw(np.pi / 2)
    qpos[1, built.base_quat] = rotation.multiply(quarter, qpos[1, built.base_quat])
    still = np.zeros((2, built.model.nv))
    state = engine.step(engine.init(params, qpos, still), drive(engine, kick=(0.5, -0.25, 0.75, 0, 0, 0)), params)
    # one step of 5 ms of free fall; the joints are asked for what they are
    assert np.allclose(state.base_lin_vel_w, [[0.5, -0.25, 0.75 - 0.005 * 9.81]] * 2, atol=1e-4)

    state = engine.step(engine.init(params, qpos, still), drive(engine, kick=(0, 0, 0, 0.1, -0.2, 0.3)), params)
    assert np.allclose(state.base_ang_vel_b, [[0.1, -0.2, 0.3]] * 2, atol=5e-3)
    # a quarter turn about the vertical: x -> y, y -> -x
    assert np.allclose(state.base_ang_vel_w[1], [0.2, 0.1, 0.3], atol=5e-3)
    # once: the next step adds nothing
    later = engine.step(state, drive(engine), params)
    assert np.allclose(later.base_ang_vel_b, state.base_ang_vel_b, atol=5e-3)


def test_a_randomised_mass_is_the_mass_that_moves(built, batched):
    params = batched(2)
    params.model["body_mass"][1, built.torso_body] += 10.0
    engine = make(built, 2)
    qpos, _ = kicked(built, 2)
    state = engine.init(params, qpos, np.zeros((2, built.model.nv)))
    for _ in range(25):
        state = engine.step(state, drive(engine), params)
    light, heavy = state.foot_force.sum(axis=1)
    assert heavy > light + 40.0


def test_each_physics_step_has_a_command_of_its_own(built, batched):
    engine, params = make(built, 2), batched(2)
    qpos, _ = kicked(built, 2, lift=2.0)
    state = engine.init(params, qpos, np.zeros((2, built.model.nv)))
    steps = drive(engine)
    steps.command[0, 3:] += np.float32(0.02)
    state = engine.step(state, steps, params)
    # PD about the target, all else still equal: kp times 0.02 rad in the last of four steps
    kp = np.asarray(built.spec.column("kp"))
    assert np.allclose(state.torque[0] - state.torque[1], 0.02 * kp, rtol=1e-4)


def test_an_encoder_with_a_bad_zero_shows_its_offset_and_the_motor_follows_the_encoder(built, batched):
    params = batched(1)
    params.joint_offset[:] = 0.03
    engine = make(built, 1, period=0.005)
    qpos, _ = kicked(built, 1, lift=2.0)
    state = engine.init(params, qpos, np.zeros((1, built.model.nv)))
    seen = state.history["joint_position"][:, 0]
    assert np.allclose(seen - state.joint_position, 0.03, atol=1e-6)
    state = engine.step(state, drive(engine), params)
    kp = np.array(built.spec.column("kp"))
    assert np.allclose(state.torque[0], -0.03 * kp, rtol=1e-4)
    # what the controller adds to its target counts beside it
    params.target_bias[:] = 0.05
    other = make(built, 1, period=0.005)
    state = other.step(other.init(params, qpos, np.zeros((1, built.model.nv))), drive(other), params)
    assert np.allclose(state.torque[0], 0.02 * kp, rtol=1e-4)


def test_a_history_holds_one_sample_a_physics_step_newest_first(built, batched):
    slow, fast, params = make(built, 1), make(built, 1, period=0.005), batched(1)
    qpos, qvel = kicked(built, 1)
    a, b = slow.init(params, qpos, qvel), fast.init(params, qpos, qvel)
    assert a.history["gyro"].shape == (1, 6, 3) and a.history["joint_position"].shape == (1, 6, 20)  # 20 ms, and two
    start = a.gyro_b[0]
    a = slow.step(a, drive(slow), params)
    gyro, joints = [], []
    for _ in range(4):
        b = fast.step(b, drive(fast), params)
        gyro.append(b.gyro_b[0])
        joints.append(b.joint_position[0])
    assert np.array_equal(a.qpos, b.qpos)
    assert np.array_equal(a.history["gyro"][0], [*gyro[::-1], start, start])
    assert np.array_equal(a.history["joint_position"][0, :4], joints[::-1])


def test_a_history_of_a_name_that_no_sensor_has_is_refused(built, batched):
    engine = MujocoEngine(Scene(built=built), 1, PositionActuators(), threads=1, history={"nose": 0.0})
    params = nominal(engine.scene, ())
    params = jax.tree.map(lambda v: np.asarray(v)[None], params)
    with pytest.raises(ConfigError, match=r"no sensor 'nose'; kbot has imu_quat, imu_gyro"):
        engine.init(params, *kicked(built, 1))


def test_a_physics_step_that_does_not_divide_the_control_period_is_refused(built):
    with pytest.raises(KsimError, match=r"got 0\.005 s, expected a divisor of the control period 0\.012 s"):
        make(built, 1, period=0.012)


# Of the wheel.
INERTIA, KP, KD, LIMIT, DT = 0.05, 8.0, 0.5, 4.0, 0.005


@functools.cache
def resting_wheel(wheel: Path, kind: str) -> tuple[Scene, Any]:
    """(scene, an engine's init on it, which is the same whatever the actuators)."""
    scene = Scene(built=build_model(wheel, DT))
    engine = make_engine(kind, scene, 1, PositionActuators(), threads=1)
    return scene, jax.jit(engine.init) if isinstance(engine, MjxEngine) else None


@functools.cache
def of_wheel(wheel: Path, kind: str, actuators: Actuators) -> tuple[PhysicsEngine, Any, Any]:
    """(engine, its init, its step): compiled once."""
    scene, init = resting_wheel(wheel, kind)
    engine = make_engine(kind, scene, 1, actuators, threads=1)
    compiled = jax.jit if isinstance(engine, MjxEngine) else lambda function: function
    return engine, init or engine.init, compiled(engine.step)


def turn(
    wheel: Path, kind: str, actuators: Actuators, commands: np.ndarray, **motor: float
) -> tuple[PhysicsState, PhysicsEngine]:
    """The wheel from rest at 0 after one control step of 20 ms, told `commands` (physics steps, channels)."""
    engine, init, step = of_wheel(wheel, kind, actuators)
    params = jax.tree.map(lambda v: np.asarray(v)[None], nominal(engine.scene, ()))
    law = params.motor._replace(**{name: np.full((1, 1), value, np.float32) for name, value in motor.items()})
    params = params._replace(motor=law)
    steps = Drive(command=np.float32(commands)[None], wrench_w=np.zeros((1, 6)), kick=np.zeros((1, 6)))
    return step(init(params, np.zeros((1, 1)), np.zeros((1, 1))), steps, params), engine


def by_hand(asked: Any, hold: int = 1) -> tuple[float, float, float]:
    """(angle, speed, torque) of four steps of 5 ms: `asked(angle, speed, i)` is the torque before its limit."""
    q = v = torque = 0.0
    for i in range(4):
        if i % hold == 0:
            torque = float(np.clip(asked(q, v, i), -LIMIT, LIMIT))
        v += DT * torque / INERTIA
        q += DT * v
    return q, v, torque


def read(state: PhysicsState) -> tuple[float, float, float]:
    return float(state.joint_position[0, 0]), float(state.joint_velocity[0, 0]), float(state.torque[0, 0])


KINDS = ("mujoco", pytest.param("mjx", marks=pytest.mark.slow))


@pytest.mark.parametrize("kind", KINDS)
def test_position_actuators_are_a_pd_controller_within_its_limit(wheel, kind):
    state, engine = turn(wheel, kind, PositionActuators(), np.full((4, 1), 0.25))
    assert isinstance(engine, MjxEngine) == (kind == "mjx")
    assert read(state) == pytest.approx(by_hand(lambda q, v, i: KP * (0.25 - q) - KD * v), rel=1e-4)
    state, _ = turn(wheel, kind, PositionActuators(), np.full((4, 1), 3.0))
    assert read(state) == pytest.approx(by_hand(lambda q, v, i: LIMIT), rel=1e-4)  # 24 N m are asked for


@pytest.mark.parametrize("kind", KINDS)
def test_torque_actuators_give_the_torque_that_they_are_told(wheel, kind):
    told = np.array([[1.0], [-0.5], [2.0], [9.0]])
    state, _ = turn(wheel, kind, TorqueActuators(), told)
    assert read(state) == pytest.approx(by_hand(lambda q, v, i: told[i, 0]), rel=1e-4)
    assert float(state.joint_velocity[0, 0]) == pytest.approx(DT * (1.0 - 0.5 + 2.0 + 4.0) / INERTIA, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_position_velocity_actuators_brake_towards_the_speed_of_the_target(wheel, kind):
    actuators = PositionVelocityActuators()
    # a target that moved from 0.1 to 0.2 within 20 ms moves at 5 rad/s
    command = np.asarray(actuators.command(np.array([0.2]), np.array([0.1]), 0.02, np))
    assert command == pytest.approx([0.2, 5.0])
    state, _ = turn(wheel, kind, actuators, np.tile(command, (4, 1)))
    assert read(state) == pytest.approx(by_hand(lambda q, v, i: KP * (0.2 - q) + KD * (5.0 - v)), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_controller_that_is_slower_than_the_physics_holds_its_torque(wheel, kind):
    def asked(q: float, v: float, i: int) -> float:
        return KP * (0.25 - q) - KD * v

    state, _ = turn(wheel, kind, PositionActuators(update_period_s=0.01), np.full((4, 1), 0.25))
    assert read(state) == pytest.approx(by_hand(asked, hold=2), rel=1e-4)
    assert by_hand(asked, hold=2)[2] > 1.01 * by_hand(asked)[2]  # the test can tell them apart


@pytest.mark.parametrize("kind", KINDS)
def test_friction_holds_a_joint_that_is_pushed_with_less(wheel, kind):
    held, _ = turn(wheel, kind, TorqueActuators(), np.full((4, 1), 0.4), friction=0.5)
    # gives way by load x dt^2 / armature, and stays
    assert abs(float(held.joint_position[0, 0])) < 2 * 0.4 * DT**2 / 0.02
    free, _ = turn(wheel, kind, TorqueActuators(), np.full((4, 1), 1.5), friction=0.5)
    assert float(free.joint_velocity[0, 0]) == pytest.approx(4 * DT * (1.5 - 0.5) / INERTIA, rel=0.2)


def test_an_update_period_that_is_no_multiple_of_the_physics_step_is_refused(wheel):
    with pytest.raises(ConfigError, match=r"actuators\.update_period_s: got 0\.008, expected a multiple .* 0\.005 s"):
        turn(wheel, "mujoco", PositionActuators(update_period_s=0.008), np.zeros((4, 1)))


def test_what_mjx_does_not_have_is_refused_with_what_has_it(wheel):
    scene = Scene(built=build_model(wheel, DT, solver="pgs"))
    with pytest.raises(KsimError, match=r"engine mjx: it has no .*PGS; use engine=mujoco, or change .*solver"):
        make_engine("mjx", scene, 1, PositionActuators(), threads=1)
    make_engine("mujoco", scene, 1, PositionActuators(), threads=1)


@pytest.mark.slow
def test_mjx_resets_only_the_masked_and_goes_on_from_a_snapshot_to_the_bit(wheel):
    engine = MjxEngine(Scene(built=build_model(wheel, DT)), 3, PositionActuators(), history={"joint_position": 0.01})
    params = jax.tree.map(lambda v: jnp.tile(v, (3,) + (1,) * v.ndim), nominal(engine.scene, ()))
    qpos, qvel = jnp.asarray([[0.1], [0.2], [0.3]]), jnp.ones((3, 1))
    steps = Drive(command=jnp.full((3, 4, 1), 0.25), wrench_w=jnp.zeros((3, 6)), kick=jnp.zeros((3, 6)))
    step = jax.jit(engine.step)
    state = step(jax.jit(engine.init)(params, qpos, qvel), steps, params)
    mask = jnp.asarray([False, True, False])
    fresh = jax.jit(engine.reset)(state, mask, params, qpos * 0.0, qvel * 0.0)
    for old, new in zip(public(state), public(fresh), strict=True):
        assert np.array_equal(old[[0, 2]], new[[0, 2]])
    assert not fresh.qpos[1].any() and not fresh.qvel[1].any() and not fresh.torque[1].any()
    assert not fresh.history["joint_position"][1].any() and fresh.history["joint_position"][0].any()

    again = engine.restore(engine.snapshot(fresh), params)
    here, there = step(fresh, steps, params), step(again, steps, params)
    assert all(np.array_equal(x, y) for x, y in zip(public(here), public(there), strict=True))


def test_a_model_with_its_limbs_in_another_order_moves_the_same_by_name(built, batched, tmp_path):
    folder = tmp_path / "kbot"
    shutil.copytree(robot_folder("kbot"), folder)
    tree = ET.parse(folder / "robot.xml")
    names = [joint.get("name") for joint in tree.find("worldbody").iter("joint")]
    for body in tree.iter("body"):
        limbs = body.findall("body")
        for limb in limbs:
            body.remove(limb)
        body.extend(reversed(limbs))
    key = tree.find("keyframe/key")  # the home pose follows its joints
    pose = key.get("qpos").split()
    angle = dict(zip(names, pose[-len(names) :], strict=True))
    order = [joint.get("name") for joint in tree.find("worldbody").iter("joint")]
    assert order != names
    key.set("qpos", " ".join([*pose[: -len(names)], *(angle[name] for name in order)]))
    tree.write(folder / "robot.xml")
    other = build_model(folder, shapes=False)
    here = [other.spec.joint_names.index(name) for name in built.spec.joint_names]
    back = np.argsort(here)
    a, b = make(built, 1), make(other, 1)
    qpos, _ = kicked(built, 1)
    x = a.init(batched(1), qpos, np.zeros((1, built.model.nv)))
    one = jax.tree.map(lambda v: np.asarray(v)[None], nominal(b.scene, FIELDS))
    y = b.init(one, other.home_qpos[None], np.zeros((1, built.model.nv)))
    step = drive(a, change=np.linspace(-0.05, 0.05, 20))
    for _ in range(10):
        x = a.step(x, step, batched(1))
        y = b.step(y, step._replace(command=step.command[..., back]), one)
    assert np.abs(x.joint_position - a.scene.home_rad).max() > 0.01
    assert np.allclose(x.base_position, y.base_position, atol=1e-5)
    assert np.allclose(x.base_quat, y.base_quat, atol=1e-5)
    assert np.allclose(x.joint_position, y.joint_position[:, here], atol=1e-5)


# Largest difference of qpos between the engines, several times what was measured. In double precision it is the
# rounding of the public state to single precision (measured 6.3e-8) for two seconds on the feet; in single precision
# contacts amplify rounding from 3e-7 in the first step to 4.3e-4 within 25, so half a second is compared.
DOUBLE_TOLERANCE = 1e-6
SINGLE_TOLERANCE = 1e-2
SINGLE_TYPICAL = 2e-4


def agree(steps: int, x64: bool, robot: object) -> dict:
    program = Path(__file__).with_name("engines_agree.py")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(x64))}
    done = subprocess.run(
        [sys.executable, str(program), str(steps), str(robot)],
        env=env,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_engines_agree_for_two_seconds_in_double_precision(tmp_path):
    # of the K-Bot too, which takes longer to compile
    result = agree(100, x64=True, robot=write_biped(tmp_path / "hopper", joints=1))
    assert result["dtype"] == "float64" and len(result["qpos"]) == 100
    assert max(result["qpos"]) < DOUBLE_TOLERANCE
    # the public state is in single precision: 2e-7 of a sensor's value, which reaches tens of rad/s at a kick
    assert max(result["gyro"]) < 1e-4 and max(result["history"]) < 1e-4
    # it moved, stood, and the two environments were not the same
    assert result["moved"] > 0.05 and min(result["height"]) > 0.5 and result["envs_differ"] > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_engines_agree_for_half_a_second_in_single_precision():
    result = agree(25, x64=False, robot="kbot")
    assert result["dtype"] == "float32"
    # a foot that lands a physics step earlier in one of them takes them farther apart than rounding does
    assert max(result["qpos"]) < SINGLE_TOLERANCE and np.median(result["qpos"]) < SINGLE_TYPICAL
