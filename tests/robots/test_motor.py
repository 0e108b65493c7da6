"""The motor law against values worked out by hand, in numpy and in jax.numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robots.load import load_robot
from robots.motor import KNEE, MotorParams, MotorState, SoftJoints, drive_torque, encoder, rest, step


def params(**changes) -> MotorParams:
    """One joint: kp 40, kd 2, 10 N m, 20 rad/s, friction 0.5 N m, damping 0.1 N m s/rad, armature 0.01 kg m^2."""
    values = {
        "kp": 40.0,
        "kd": 2.0,
        "torque_limit": 10.0,
        "velocity_max": 20.0,
        "friction": 0.5,
        "damping": 0.1,
        "armature": 0.01,
    }
    return MotorParams(**{k: np.array([v]) for k, v in {**values, **changes}.items()})


def drive(position: float, velocity: float, target: float, **changes) -> float:
    arrays = (np.array([v]) for v in (position, velocity, target))
    return float(drive_torque(params(**changes), *arrays)[0])


def friction(velocity: float, dt: float = 0.005, **changes) -> float:
    """What a joint feels of its friction in the first step from rest, without a drive [N m]."""
    law, zero = params(**{"kp": 0.0, "kd": 0.0, **changes}), np.zeros(1)
    return float(step(law, rest(law, zero), zero, np.array([velocity]), zero, dt)[1][0])


def test_below_the_limit_it_is_a_pd_controller():
    # 40 * (0.3 - 0.1) - 2 * 0.5
    assert drive(0.1, 0.5, 0.3) == pytest.approx(7.0)
    assert drive(0.1, -0.5, 0.3) == pytest.approx(9.0)
    assert drive(0.3, 0.0, 0.1) == pytest.approx(-8.0)


def test_torque_is_clipped_at_the_limit_on_both_sides():
    assert drive(0.0, 0.0, 1.0) == 10.0
    assert drive(0.0, 0.0, -1.0) == -10.0


def test_driving_torque_falls_linearly_from_the_knee_to_zero_at_the_no_load_speed():
    assert KNEE == 0.5
    # 3/4 of the no-load speed is half way down the slope
    for velocity, limit in ((10.0, 10.0), (15.0, 5.0), (17.5, 2.5), (20.0, 0.0), (25.0, 0.0)):
        assert drive(0.0, velocity, 9.0) == pytest.approx(limit), velocity
        assert drive(0.0, -velocity, -9.0) == pytest.approx(-limit), -velocity


def test_braking_torque_keeps_the_full_limit_at_any_speed():
    assert drive(0.0, 15.0, -9.0) == -10.0
    assert drive(0.0, -15.0, 9.0) == 10.0
    assert drive(0.0, 40.0, 0.0) == -10.0


def test_friction_is_coulomb_plus_viscous_and_opposes_the_motion():
    assert friction(3.0) == pytest.approx(-0.5 - 0.3)
    assert friction(-3.0) == pytest.approx(0.5 + 0.3)
    assert friction(0.0) == 0.0


def test_friction_grows_by_its_share_of_what_the_controller_gives():
    def joint_feels(target: float, **changes) -> float:
        law, zero = params(kd=0.0, damping=0.0, load_friction=0.2, **changes), np.zeros(1)
        moving = np.array([2.0])  # fast enough that the bristle slides at once
        return float(step(law, rest(law, zero), zero, moving, np.array([target]), 0.005)[1][0])

    # 40 * 0.2 less 0.5 and a fifth of 8; at the limit a fifth of 10
    assert joint_feels(0.2) == pytest.approx(8.0 - 0.5 - 1.6)
    assert joint_feels(1.0) == pytest.approx(10.0 - 0.5 - 2.0)
    assert joint_feels(-0.2) == pytest.approx(-8.0 - 0.5 - 1.6)


def test_friction_near_standstill_stops_the_rotor_in_one_step_and_does_not_reverse_it():
    # 0.01 kg m^2 * 0.1 rad/s / 0.005 s = 0.2 N m, below the 0.5 N m of Coulomb friction
    dt, velocity = 0.005, 0.1
    torque = friction(velocity, dt, damping=0.0)
    assert torque == pytest.approx(-0.2)
    assert velocity + torque / 0.01 * dt == pytest.approx(0.0)


def test_a_rotor_under_friction_comes_to_rest_and_stays_for_any_friction():
    for level in (0.01, 0.5, 50.0):
        law = params(kp=0.0, kd=0.0, friction=level)
        position, velocity = np.zeros(1), np.full(1, 2.0)
        memory = rest(law, position)
        for _ in range(2000):
            _, net, memory = step(law, memory, position, velocity, position, 0.005)
            velocity = velocity + net / 0.01 * 0.005
            position = position + velocity * 0.005
        assert abs(velocity[0]) < 1e-6, level


def test_the_joint_feels_the_drive_less_friction_and_a_sensor_shows_the_drive():
    position, velocity, target = (np.array([v]) for v in (0.1, 0.5, 0.3))
    shown, felt, _ = step(params(), rest(params(), position), position, velocity, target, 0.005)
    assert shown[0] == pytest.approx(7.0)
    assert felt[0] == pytest.approx(7.0 - 0.5 - 0.05)


def test_parameters_come_from_the_robot_by_joint():
    robot = load_robot("kbot")
    nominal = MotorParams.of(robot)
    knee = robot.joint_names.index("dof_left_knee_04")
    figures = [float(column[knee]) for column in nominal]
    assert figures == [150.0, 8.654, 84.0, 17.488, 0.2, 0.0, 0.04, 0.0, 0.0, 0.0, 0.0]
    assert all(column.shape == (20,) and column.dtype == np.float64 for column in nominal)


def test_numpy_and_jax_agree_in_batches():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(3)
    nominal = MotorParams.of(load_robot("kbot"))
    scaled = MotorParams(*(p * rng.uniform(0.5, 1.5, (64, 20)) for p in nominal))
    position, target = rng.uniform(-2, 2, (2, 64, 20))
    velocity = rng.normal(0, 12, (64, 20))
    velocity[0] = 0.0
    *expected, _ = step(scaled, rest(scaled, position), position, velocity, target, 0.004)
    single = MotorParams(*(p.astype(np.float32) for p in scaled))
    inputs = [v.astype(np.float32) for v in (position, velocity, target)]
    law = jax.jit(lambda p, q, v, t: step(p, rest(p, q, jax.numpy), q, v, t, 0.004, jax.numpy)[:2])
    with jax.numpy_dtype_promotion("strict"):
        results = law(single, *inputs)
    for ours, theirs in zip(expected, results, strict=True):
        # 120 N m in single precision, with positions to 2 rad and gains to 300 N m/rad
        np.testing.assert_allclose(np.asarray(theirs), ours, rtol=2e-5, atol=2e-4)


# friction that holds


def pendulum(dt: float, integrator: str = "Euler", armature: float = 0.03, gravity: float = 9.81):
    """A motor that turns a rod of 1 kg and 0.2 m, which hangs down at 0: gravity pulls with 0.981 N m * sin(q)."""
    mujoco = pytest.importorskip("mujoco")
    return mujoco, mujoco.MjModel.from_xml_string(f"""
      <mujoco><option timestep="{dt}" integrator="{integrator}" gravity="0 0 {-gravity}"/><worldbody><body>
        <joint name="hinge" type="hinge" axis="0 1 0" armature="{armature}"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.2" size="0.01" mass="1" contype="0" conaffinity="0"/>
      </body></worldbody><actuator><motor joint="hinge"/></actuator></mujoco>""")


def swing(law: MotorParams, dt: float, seconds: float, start: float = 0.0, target=None, **model):
    """Positions and velocities of the pendulum under the law, and the encoder's positions, each (steps,)."""
    mujoco, built = pendulum(dt, **model)
    data = mujoco.MjData(built)
    data.qpos[:] = start
    memory = rest(law, data.qpos)
    rows = []
    for i in range(round(seconds / dt)):
        goal = data.qpos if target is None else np.array([target(i * dt)])
        _, net, memory = step(law, memory, data.qpos, data.qvel, goal, dt)
        data.ctrl[:] = net
        mujoco.mj_step(built, data)
        rows.append((data.qpos[0], data.qvel[0], encoder(law, memory, data.qpos, data.qvel)[0][0]))
    return np.array(rows).T


STEPS_S = (0.0005, 0.001, 0.002, 0.005, 0.01)


@pytest.mark.parametrize("dt", STEPS_S)
@pytest.mark.parametrize("integrator", ["Euler", "implicitfast"])
def test_friction_above_the_load_holds_the_joint_and_below_it_lets_go(dt, integrator):
    # 1 kg at 0.1 m and 30 degrees pulls with 0.49 N m; friction 0.7 N m holds it, 0.3 N m does not
    angle, limp = math.pi / 6, {"kp": 0.0, "kd": 0.0, "damping": 0.0, "armature": 0.03}
    position, velocity, _ = swing(params(friction=0.7, **limp), dt, 0.8, start=angle, integrator=integrator)
    # it gives way by load * dt^2 / armature until the bristle carries it, at most half as much again on the way
    given = 0.4905 * dt**2 / 0.03
    assert abs(velocity[-1]) < 1e-6
    assert angle - position[-1] == pytest.approx(given, rel=0.02)
    assert angle - position.min() < 1.9 * given
    position, _, _ = swing(params(friction=0.3, **limp), dt, 0.8, start=angle, integrator=integrator)
    assert angle - position[-1] > 0.2


@pytest.mark.parametrize("dt", [0.001, 0.005, 0.01])
@pytest.mark.parametrize("armature", [0.0004, 0.0042, 0.05])
def test_under_pd_a_joint_stops_within_friction_over_kp_of_its_target_and_stays(dt, armature):
    # 0.4 / 20 = 0.02 rad; without gravity, so that the target is where the drive is zero
    law = params(kp=20.0, kd=0.6, friction=0.4, damping=0.0, armature=armature)
    reach = 0.4 * dt**2 / armature
    for begin in (-0.015, 0.3):
        position, velocity, _ = swing(law, dt, 2.0, begin, lambda _: 0.0, armature=armature, gravity=0.0)
        assert abs(velocity[-50:]).max() < 1e-6
        assert abs(position[-1] - position[-50]) < 1e-7
        assert abs(position[-1]) <= 0.02 + 1e-6
        if begin == -0.015 and reach < 0.002:
            # inside the band it stays where it is but for the bristle's give
            assert abs(position[-1] - begin) < 2 * reach
            assert abs(position[-1]) > 0.01


def test_it_breaks_loose_at_friction_plus_stiction_and_then_slides_with_friction_alone():
    law = params(kp=0.0, kd=0.0, friction=0.5, stiction=0.3, damping=0.0, armature=0.01)
    dt, inertia = 0.001, 0.05
    position, velocity, memory = np.zeros(1), np.zeros(1), rest(law, np.zeros(1))
    loose = None
    for i in range(2000):
        load = 0.5 * i * dt  # reaches 0.8 N m at 1.6 s
        _, net, memory = step(law, memory, position, velocity, position, dt)
        velocity = velocity + dt * (net + load) / inertia
        position = position + dt * velocity
        if loose is None and memory.slip[0] > 0:
            loose = load
        if loose is not None and velocity[0] > 2.0:
            break
    assert loose == pytest.approx(0.8, abs=0.002)
    # at 2 rad/s stiction is down to 0.3 / (1 + 20^2)
    assert net[0] == pytest.approx(-0.5, abs=0.002)


def test_friction_gives_no_energy():
    # a limp pendulum let go at a right angle: kinetic and potential energy never rise by more than the integrator's own
    law = params(kp=0.0, kd=0.0, friction=0.1, stiction=0.1, damping=0.0, armature=0.01)
    for dt in (0.001, 0.01):
        position, velocity, _ = swing(law, dt, 4.0, start=math.pi / 2, armature=0.01)
        # rod: m l^2 / 3 = 0.0133 kg m^2, by the capsule's round ends a little more
        energy = 0.5 * (0.0133 + 0.01) * velocity**2 - 0.981 * np.cos(position)
        assert energy.max() < 0.981 * 0.02 + 0.981 * 3 * dt, dt
        assert energy[-1] < -0.9
        assert abs(velocity[-1]) < 1e-6, dt


# play and the spring


def hang(law: MotorParams, load: float, target: float = 0.0, dt: float = 0.002) -> tuple[float, float, float]:
    """A joint of 0.02 kg m^2 at rest under a load: (joint, encoder, drive torque)."""
    memory = rest(law, np.zeros(1))
    position, velocity = np.zeros(1), np.zeros(1)
    for _ in range(round(3.0 / dt)):
        drive, net, memory = step(law, memory, position, velocity, np.array([target]), dt)
        # 0.3 N m s/rad of damping of the joint's own, so that it comes to rest
        velocity = velocity + dt * (net + load - 0.3 * velocity) / 0.02
        position = position + dt * velocity
    assert abs(velocity[0]) < 1e-6
    return float(position[0]), float(encoder(law, memory, position, velocity)[0][0]), float(drive[0])


ANKLE = {"kp": 40.0, "kd": 0.99, "friction": 0.0, "damping": 0.0, "armature": 0.0042, "torque_limit": 11.9}


@pytest.mark.parametrize("stiffness", [20.0, 120.0])
@pytest.mark.parametrize("dt", [0.001, 0.01])
def test_the_joint_gives_way_by_gap_and_spring_and_the_encoder_sees_the_motor_alone(stiffness, dt):
    law = params(play=0.03, compliance=1 / stiffness, **ANKLE)
    joint, motor, drive = hang(law, 2.0, 0.1, dt)
    # 2 N m turn the motor back by 2 / 40 rad, the shaft by half the gap and 2 / stiffness more
    assert motor == pytest.approx(0.1 + 2 / 40, abs=1e-6)
    assert joint == pytest.approx(motor + 0.015 + 2 / stiffness, abs=1e-6)
    assert drive == pytest.approx(-2.0, abs=1e-6)
    joint, motor, _ = hang(law, -2.0, 0.1, dt)
    assert joint == pytest.approx(motor - 0.015 - 2 / stiffness, abs=1e-6)


def test_inside_the_gap_the_joint_feels_nothing_and_at_its_edge_what_the_motor_gives():
    law = params(play=0.03, **ANKLE)
    memory = rest(law, np.zeros(1))
    for at, felt, motor in ((0.014, 0.0, 0.0), (0.02, -40 * 0.005, 0.005)):
        for _ in range(300):
            _, net, memory = step(law, memory, np.array([at]), np.zeros(1), np.zeros(1), 0.002)
        assert net[0] == pytest.approx(felt, abs=1e-9)
        assert encoder(law, memory, np.array([at]), np.zeros(1))[0] == pytest.approx(motor, abs=1e-9)


def test_a_slow_sweep_of_the_motor_leaves_a_loop_as_wide_as_the_play_and_frictions_share():
    """The motor lags by 2 f / kp and the joint by the play more; a little friction of the joint's own trails it."""
    law = params(play=0.02, compliance=1 / 35, **{**ANKLE, "friction": 0.4})
    dt, period = 0.002, 6.0
    memory, position, velocity, rows = rest(law, np.zeros(1)), np.zeros(1), np.zeros(1), []
    for i in range(round(2 * period / dt)):
        target = 0.3 * math.sin(2 * math.pi * i * dt / period)
        _, net, memory = step(law, memory, position, velocity, np.array([target]), dt)
        drag = np.clip(velocity * 0.02 / dt, -0.05, 0.05)
        velocity = velocity + dt * (net - drag) / 0.02
        position = position + dt * velocity
        soon = 0.3 * math.sin(2 * math.pi * (i + 1) * dt / period)
        rows.append((soon, position[0], encoder(law, memory, position, velocity)[0][0]))
    target, joint, motor = np.array(rows[len(rows) // 2 :]).T
    rising = np.gradient(target) > 0
    middle = np.abs(target) < 0.05
    lost_motor = np.mean((target - motor)[rising & middle]) - np.mean((target - motor)[~rising & middle])
    lost_joint = np.mean((target - joint)[rising & middle]) - np.mean((target - joint)[~rising & middle])
    # motor: 2 (0.4 + 0.05) / 40; joint: the play and 2 * 0.05 / 35 more; kd adds 2 kd / kp * the speed
    dragged = 2 * 0.99 / 40 * 0.3 * 2 * math.pi / period
    assert lost_motor == pytest.approx(2 * 0.45 / 40 + dragged, rel=0.03)
    assert lost_joint - lost_motor == pytest.approx(0.02 + 2 * 0.05 / 35, rel=0.05)


def test_a_link_on_its_spring_stops_ringing_while_friction_holds_the_motor():
    law = params(compliance=1 / 50, **{**ANKLE, "friction": 3.0})
    for dt in (0.001, 0.005):
        memory, position, velocity = rest(law, np.zeros(1)), np.zeros(1), np.ones(1)
        peaks = [], []
        for i in range(round(1.0 / dt)):
            _, net, memory = step(law, memory, position, velocity, np.zeros(1), dt)
            velocity = velocity + dt * net / 0.02
            position = position + dt * velocity
            peaks[i * dt > 0.5].append(abs(position[0]))
        # 1 rad/s at 50 rad/s swings by 0.02 rad; 0.002 s are 5 % of critical damping:
        # exp(-0.05 * 50 * 0.5) = 0.29 after half a second
        assert max(peaks[1]) == pytest.approx(0.29 * 0.02, rel=0.35)


def test_torques_balance_whatever_is_cut_off():
    """At random states drive, friction and spring add up to nothing, with drive and friction at their limits or not."""
    rng = np.random.default_rng(5)
    shape = (4000,)
    law = MotorParams(
        kp=rng.uniform(0, 200, shape),
        kd=rng.uniform(0, 20, shape),
        torque_limit=rng.uniform(0, 5, shape),
        velocity_max=np.full(shape, 1e6),
        friction=rng.uniform(0, 3, shape),
        damping=rng.uniform(0.01, 1, shape),
        armature=rng.uniform(0.0004, 0.05, shape),
        play=rng.uniform(0, 0.1, shape),
        compliance=1 / rng.uniform(20, 120, shape),
    )
    dt = 0.004
    before = rng.normal(0, 0.1, shape)
    position, target = rng.normal(0, 0.3, (2, *shape))
    velocity = rng.normal(0, 2, shape)
    anchor = position + rng.normal(0, 0.05, shape)
    zero = np.zeros(shape)
    drive, net, after = step(law, MotorState(anchor, zero, before, zero), position, velocity, target, dt)
    motor, rate = position + after.twist, velocity + after.twist_rate
    asked = np.clip(law.kp * (target - motor) - law.kd * rate, -law.torque_limit, law.torque_limit)
    held = np.clip(law.armature / dt**2 * (motor - anchor + dt * rate), -law.friction, law.friction)
    half, lag = 0.5 * law.play, 0.002 / 0.006  # 2 ms of the spring's own damping, steps of 4 ms
    before -= np.clip(before, -half, half)
    bent = after.twist - np.clip(after.twist, np.minimum(lag * before, 0) - half, np.maximum(lag * before, 0) + half)
    np.testing.assert_allclose(drive, asked, atol=1e-7)
    np.testing.assert_allclose(net, bent / law.compliance / (1 - lag), atol=1e-6)
    np.testing.assert_allclose(asked - held - law.damping * rate, net, atol=1e-6)
    at_limit = np.abs(asked) == law.torque_limit
    sliding = np.abs(held) == law.friction
    for cases in (at_limit & sliding, at_limit & ~sliding, ~at_limit & sliding, ~at_limit & ~sliding, net == 0):
        assert cases.sum() > 20


# one law


def test_without_friction_play_and_spring_it_is_a_pd_controller_with_viscous_friction():
    rng = np.random.default_rng(3)
    nominal = MotorParams.of(load_robot("kbot"))
    law = MotorParams(*(p * rng.uniform(0.5, 1.5, (64, 20)) for p in nominal))
    law = law._replace(friction=0.0 * law.friction, damping=rng.uniform(0, 1, (64, 20)))
    position, target = rng.uniform(-2, 2, (2, 64, 20))
    velocity = rng.normal(0, 12, (64, 20))
    drive, net, memory = step(law, rest(law, position), position, velocity, target, 0.004)
    assert np.array_equal(drive, drive_torque(law, position, velocity, target))
    np.testing.assert_allclose(net, drive - law.damping * velocity, rtol=1e-15, atol=1e-13)
    assert np.array_equal(encoder(law, memory, position, velocity), [position, velocity])
    # one joint with play turns the whole batch to the other branch, and changes nothing of the rest
    mixed = law._replace(play=np.where(np.arange(20) == 3, 0.02, 0.0), friction=0.3, stiction=0.1)
    _, expected, _ = step(
        law._replace(friction=0.3, stiction=0.1), rest(law, position), position, velocity, target, 0.004
    )
    _, others, _ = step(mixed, rest(mixed, position), position, velocity, target, 0.004)
    rigid = np.arange(20) != 3
    np.testing.assert_allclose(others[:, rigid], expected[:, rigid], rtol=1e-12, atol=1e-12)


def test_a_velocity_target_and_a_torque_act_inside_the_limit():
    state = rest(params(), np.array([0.1]))
    more = {"target_velocity": np.array([1.5]), "feedforward": np.array([-3.0])}
    # 40 * (0.3 - 0.1) - 2 * (0.5 - 1.5) - 3
    drive, _, _ = step(params(), state, np.array([0.1]), np.array([0.5]), np.array([0.3]), 0.002, **more)
    assert drive[0] == pytest.approx(7.0)
    drive, _, _ = step(
        params(kp=0.0, kd=0.0), state, np.array([0.1]), np.zeros(1), np.zeros(1), 0.002, feedforward=99.0
    )
    assert drive[0] == 10.0


def test_numpy_and_jax_agree_in_batches_over_many_steps():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(3)
    nominal = MotorParams.of(load_robot("kbot"))
    scaled = MotorParams(*(p * rng.uniform(0.5, 1.5, (16, 20)) for p in nominal))
    soft = scaled._replace(
        stiction=np.full((16, 20), 0.2),
        play=rng.uniform(0, 0.03, (16, 20)) * (rng.random((16, 20)) > 0.3),
        compliance=1 / rng.uniform(20, 120, (16, 20)) * (rng.random((16, 20)) > 0.3),
    )
    dt, inertia = 0.004, 0.3
    for law, given in ((soft, 0.0), (scaled, 0.7)):
        single = jax.tree.map(lambda v: jax.numpy.asarray(v, "float32"), law)
        position = rng.uniform(-0.3, 0.3, (16, 20))
        velocity, memory = 0.0 * position, rest(law, position)
        target = rng.uniform(-0.3, 0.3, (16, 20))

        @jax.jit
        @jax.vmap
        def theirs(law, memory, position, velocity, target, given=given):
            return step(
                law, memory, position, velocity, target, dt, jax.numpy, target_velocity=given, feedforward=given
            )

        with jax.numpy_dtype_promotion("strict"):
            for _ in range(50):
                inputs = jax.tree.map(lambda v: jax.numpy.asarray(v, "float32"), (memory, position, velocity, target))
                results = theirs(single, *inputs)
                drive, net, memory = step(
                    law, memory, position, velocity, target, dt, target_velocity=given, feedforward=given
                )
                for ours, other in zip((drive, net, *memory), (*results[:2], *results[2]), strict=True):
                    assert other.dtype == np.float32
                    # relative to the stiffest line in it, 0.06 / 0.004^2 N m/rad, on positions to 1 rad
                    np.testing.assert_allclose(np.asarray(other), ours, rtol=1e-4, atol=5e-3)
                velocity = velocity + dt * net / inertia
                position = position + dt * velocity


def test_the_held_joint_holds_in_mjx_as_in_mujoco():
    jax = pytest.importorskip("jax")
    mjx = pytest.importorskip("mujoco.mjx")
    jnp, dt = jax.numpy, 0.005
    law = params(kp=0.0, kd=0.0, friction=0.7, damping=0.0, armature=0.03)
    _, built = pendulum(dt)
    model = mjx.put_model(built)
    single = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), law)
    start = mjx.make_data(model).replace(qpos=jnp.array([math.pi / 6], jnp.float32))

    def one(carry, _):
        data, memory = carry
        _, net, memory = step(single, memory, data.qpos, data.qvel, data.qpos, dt, jnp)
        data = mjx.step(model, data.replace(ctrl=net))
        return (data, memory), (data.qpos[0], data.qvel[0])

    memory = rest(single, start.qpos, jnp)
    _, (position, velocity) = jax.jit(lambda c: jax.lax.scan(one, c, None, length=300))((start, memory))
    reference, _, _ = swing(law, dt, 1.5, start=math.pi / 6)
    # one unit in the last place a step is 1.2e-5 rad/s
    assert abs(float(velocity[-1])) < 1e-5
    assert abs(float(position[-1] - position[-100])) < 1e-7
    assert float(position[-1]) == pytest.approx(math.pi / 6 - 0.4905 * dt**2 / 0.03, abs=1e-5)
    np.testing.assert_allclose(np.asarray(position), reference, atol=1e-5)


def test_soft_joints_that_were_found_before_give_the_same_bits_as_those_found_anew():
    rng, n = np.random.default_rng(2), 6
    soft = np.arange(n) % 3 == 0
    law = MotorParams(
        *(
            rng.uniform(low, high, n)
            for low, high in ((10, 90), (1, 4), (5, 40), (5, 20), (0, 1), (0, 0.3), (0.01, 0.05))
        ),
        stiction=rng.uniform(0, 1, n),
        play=np.where(soft, 0.02, 0.0),
        compliance=np.where(soft, 0.02, 0.0),
    )
    found = SoftJoints.of(law)
    assert found.index.tolist() == [0, 3] and np.array_equal(found.params.kp, law.kp[[0, 3]])
    assert SoftJoints.of(law._replace(play=np.full(n, 0.01))).index is None, "all of them"
    position, velocity = rng.uniform(-1, 1, n), rng.uniform(-2, 2, n)
    first = second = rest(law, position)
    for _ in range(50):
        target = position + rng.uniform(-0.5, 0.5, n)
        *one, first = step(law, first, position, velocity, target, 0.002)
        *other, second = step(law, second, position, velocity, target, 0.002, soft=found)
        assert all(np.array_equal(a, b) for a, b in zip((*one, *first), (*other, *second), strict=True))
        velocity = velocity + 0.002 * one[1] / 0.05
        position = position + 0.002 * velocity
