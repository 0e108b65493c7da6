"""What is drawn at a reset (start, randomisation), what happens later (pushes), and what is seen (observation)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ksim import randomization as rand
from ksim.config import LatencyConfig, NoiseConfig, PushConfig, RandomizationConfig, ResetConfig
from ksim.engine import MODEL_FIELDS
from ksim.events import Pushes
from ksim.observation import PolicyInputs
from ksim.resets import NoisyHome
from ksim.types import Event, Sensors

STILL = ResetConfig(
    joint_position_rad=0.0, joint_velocity_rad_s=0.0, tilt_rad=0.0, lin_vel_m_s=0.0, ang_vel_rad_s=0.0, lift_m=0.0
)
KEYS = jax.random.split(jax.random.key(0), 64)


def many(term, params):
    """The term's draw for each of 64 keys."""
    return jax.jit(jax.vmap(lambda k: term(k, params)))(KEYS)


def names_changed(drawn, base) -> set[str]:
    """Leaves that differ from `base` for any key."""
    old = jax.tree_util.tree_leaves_with_path(base)
    new = jax.tree.leaves(drawn)
    return {
        jax.tree_util.keystr(path) for (path, a), b in zip(old, new, strict=True) if not np.array_equal(a + 0 * b, b)
    }


def test_nominal_parameters_are_the_model_and_the_spec(built):
    base = rand.nominal(built)
    assert set(base.model) == set(MODEL_FIELDS)
    for name, value in base.model.items():
        assert np.array_equal(value, np.float32(getattr(built.model, name))), name
    assert np.array_equal(base.motor.kp, np.float32(built.spec.column("kp")))
    assert np.array_equal(base.motor.torque_limit, np.float32(built.spec.column("torque_limit_nm")))
    assert not base.joint_offset.any() and not base.imu_tilt.any()
    assert float(base.action_latency) == float(base.observation_latency) == 0.0


CASES = {
    "friction": (rand.Friction((0.5, 1.5)), {".model['geom_friction']"}),
    "link mass": (rand.LinkMass((0.9, 1.1)), {".model['body_mass']", ".model['body_inertia']"}),
    "payload": (rand.Payload(1, (-1.0, 2.0), 0.02), {".model['body_mass']", ".model['body_ipos']"}),
    "armature": (rand.Armature((0.5, 2.0), tuple(range(6, 26))), {".model['dof_armature']", ".motor.armature"}),
    "gains": (
        rand.MotorGains(RandomizationConfig()),
        {f".motor.{n}" for n in ("kp", "kd", "torque_limit", "friction", "damping")},
    ),
    "offset": (rand.JointOffset(0.03), {".joint_offset"}),
    "tilt": (rand.ImuTilt(0.03), {".imu_tilt"}),
    "latency": (
        rand.Latency(LatencyConfig(action_s=(0.003, 0.015), observation_s=(0.002, 0.02))),
        {".action_latency", ".observation_latency"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_randomization_changes_only_what_it_says_and_repeats_for_the_same_key(built, name):
    term, expected = CASES[name]
    base = rand.nominal(built)
    drawn = many(term, base)
    assert names_changed(drawn, base) == expected
    again = many(term, base)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(again), strict=True))


def within(values, low, high):
    """All within the range, and spread over at least 4/5 of it."""
    values = np.asarray(values, np.float64)
    slack = 1e-5 * (1 + abs(low) + abs(high))
    assert values.min() >= low - slack and values.max() <= high + slack
    assert np.ptp(values) > 0.8 * (high - low)


def test_friction_scales_sliding_only_by_one_factor_for_all_geoms(built):
    base = rand.nominal(built).model["geom_friction"]
    drawn = many(rand.Friction((0.5, 1.5)), rand.nominal(built)).model["geom_friction"]
    factor = np.asarray(drawn[:, :, 0] / base[:, 0])
    assert np.allclose(factor, factor[:, :1], rtol=1e-5)
    within(factor[:, 0], 0.5, 1.5)
    assert np.array_equal(drawn[:, :, 1:], np.tile(base[:, 1:], (64, 1, 1)))


def test_link_mass_scales_mass_and_inertia_of_a_body_by_the_same_factor(built):
    base = rand.nominal(built).model
    drawn = many(rand.LinkMass((0.9, 1.1)), rand.nominal(built)).model
    heavy = np.asarray(base["body_mass"]) > 0
    factor = np.asarray(drawn["body_mass"])[:, heavy] / np.asarray(base["body_mass"])[heavy]
    within(factor, 0.9, 1.1)
    assert factor.std(axis=1).min() > 0.01  # its own for each body
    spin = np.asarray(drawn["body_inertia"])[:, heavy] / np.asarray(base["body_inertia"])[heavy]
    assert np.allclose(spin, factor[:, :, None], rtol=1e-5)


def test_payload_adds_mass_to_one_body_and_moves_its_centre(built):
    torso = built.torso_body
    base = rand.nominal(built).model
    drawn = many(rand.Payload(torso, (-1.0, 2.0), 0.02), rand.nominal(built)).model
    added, moved = drawn["body_mass"] - base["body_mass"], drawn["body_ipos"] - base["body_ipos"]
    within(added[:, torso], -1.0, 2.0)
    within(moved[:, torso], -0.02, 0.02)
    others = np.arange(built.model.nbody) != torso
    assert not np.asarray(added)[:, others].any() and not np.asarray(moved)[:, others].any()


def test_a_payload_never_takes_more_than_half_of_the_bodys_mass(built):
    mass = float(built.model.body_mass[1])
    drawn = many(rand.Payload(1, (-10 * mass, -5 * mass), 0.0), rand.nominal(built)).model
    assert np.allclose(drawn["body_mass"][:, 1], mass / 2)


def test_armature_is_the_same_in_the_model_and_in_the_motor_law(built):
    base = rand.nominal(built)
    drawn = many(rand.Armature((0.5, 2.0), tuple(built.dof_ids.tolist())), base)
    within(drawn.motor.armature / base.motor.armature, 0.5, 2.0)
    assert np.array_equal(drawn.model["dof_armature"][:, built.dof_ids], drawn.motor.armature)
    assert np.array_equal(drawn.model["dof_armature"][:, :6], np.zeros((64, 6)))


def test_motor_gains_scale_by_their_ranges_and_damping_is_added(built):
    config = RandomizationConfig(
        kp=(0.5, 0.6), kd=(0.7, 0.8), torque_limit=(0.9, 1.0), joint_friction=(2.0, 3.0), damping=(0.1, 0.4)
    )
    base = rand.nominal(built).motor
    drawn = many(rand.MotorGains(config), rand.nominal(built)).motor
    for name, (low, high) in {
        "kp": config.kp, "kd": config.kd, "torque_limit": config.torque_limit, "friction": config.joint_friction
    }.items():  # fmt: skip
        old = np.asarray(getattr(base, name))
        within((np.asarray(getattr(drawn, name)) / np.where(old > 0, old, 1.0))[:, old > 0], low, high)
    within(drawn.damping - base.damping, 0.1, 0.4)


def test_offsets_tilts_and_latencies_stay_in_their_ranges(built):
    base = rand.nominal(built)
    within(many(CASES["offset"][0], base).joint_offset, -0.03, 0.03)
    within(many(CASES["tilt"][0], base).imu_tilt, -0.03, 0.03)
    late = many(CASES["latency"][0], base)
    within(late.action_latency, 0.003, 0.015)
    within(late.observation_latency, 0.002, 0.02)


def start(built, share=1.0, **changes):
    term = NoisyHome(built=built, config=ResetConfig(**{**vars(STILL), **changes}))
    return (np.asarray(v) for v in jax.jit(jax.vmap(lambda k: term(k, share)))(KEYS))


def test_without_noise_a_start_is_home_at_any_yaw(built):
    qpos, qvel = start(built)
    home = np.float32(built.home_qpos)
    assert not qvel.any()
    assert np.allclose(np.delete(qpos, [3, 6], axis=1), np.delete(home, [3, 6]), atol=1e-6)
    assert np.allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1.0, atol=1e-6)
    yaw = 2 * np.arctan2(qpos[:, 6], qpos[:, 3])
    assert np.ptp(np.mod(yaw + np.pi, 2 * np.pi)) > 5.0


def test_a_lift_raises_the_base_and_nothing_else(built):
    (low, _), (high, _) = start(built), start(built, lift_m=0.25)
    assert np.allclose(high[:, 2] - low[:, 2], 0.25, atol=1e-6)
    assert np.array_equal(np.delete(high, 2, axis=1), np.delete(low, 2, axis=1))


def test_noise_at_a_start_has_its_width_and_its_own_joint(built):
    qpos, qvel = start(built, joint_position_rad=0.08, joint_velocity_rad_s=0.5, lin_vel_m_s=0.2, ang_vel_rad_s=0.3)
    home = np.float32(built.home_qpos)[built.qpos_ids]
    off = qpos[:, built.qpos_ids] - home
    free = (np.float32(built.spec.column("lower_rad")) < home - 0.08) & (
        np.float32(built.spec.column("upper_rad")) > home + 0.08
    )
    within(off[:, free], -0.08, 0.08)
    within(qvel[:, built.dof_ids], -0.5, 0.5)
    within(qvel[:, :2], -0.2, 0.2)
    within(qvel[:, 3:6], -0.3, 0.3)
    assert not qvel[:, 2].any()


def test_the_share_scales_the_noise_but_not_the_yaw(built):
    width = {"joint_velocity_rad_s": 0.5, "tilt_rad": 0.0}
    (all_q, all_v), (some_q, some_v) = start(built, **width), start(built, share=0.2, **width)
    assert np.allclose(some_v, 0.2 * all_v, atol=1e-6) and all_v.any()
    assert np.allclose(some_q, all_q, atol=1e-6)


def test_a_start_is_clipped_to_the_joint_limits(built):
    qpos, _ = start(built, joint_position_rad=10.0)
    joints = qpos[:, built.qpos_ids]
    low, high = np.float32(built.spec.column("lower_rad")), np.float32(built.spec.column("upper_rad"))
    assert (joints >= low).all() and (joints <= high).all()
    assert (joints == low).any(axis=0).all() and (joints == high).any(axis=0).all()


def test_a_tilt_leans_by_at_most_its_width_about_each_horizontal_axis(built):
    qpos, _ = start(built, tilt_rad=0.06)
    _, x, y, _ = qpos[:, 3:7].T
    lean = np.arccos(np.clip(1 - 2 * (x * x + y * y), -1, 1))
    assert 0.05 < lean.max() <= 0.06 * math.sqrt(2) + 1e-3


DT = 0.02
PUSHES = Pushes(config=PushConfig(force_n=50.0, duration_s=(0.1, 0.1), interval_s=(1.0, 1.0)), control_period_s=DT)


def run(pushes: Pushes, event: Event, steps: int, level: float = 1.0, seed: int = 0):
    """The events of `steps` control steps: forces (steps, 3)."""

    def one(event, key):
        event = pushes(key, event, level)
        return event, event.force_w

    return np.asarray(
        jax.jit(lambda e, k: jax.lax.scan(one, e, k))(event, jax.random.split(jax.random.key(seed), steps))[1]
    )


def waiting(next_s: float) -> Event:
    return Event(force_w=jnp.zeros(3), left_s=jnp.zeros(()), next_s=jnp.asarray(next_s, jnp.float32))


def test_a_push_waits_lasts_as_long_as_drawn_and_stays_the_same():
    # 0.05 s of waiting is used up after three steps, so the push begins in the fourth
    force = run(PUSHES, waiting(0.05), 40)
    acting = np.flatnonzero(np.abs(force).max(axis=1) > 0)
    assert acting.tolist() == [3, 4, 5, 6, 7]
    assert (force[acting] == force[3]).all()


def test_pushes_are_horizontal_of_every_size_up_to_the_largest_in_every_direction():
    first = jax.jit(jax.vmap(lambda k: PUSHES(k, waiting(0.0), 1.0).force_w))(jax.random.split(jax.random.key(0), 500))
    first = np.asarray(first)
    size = np.linalg.norm(first, axis=1)
    assert not first[:, 2].any()
    within(size, 0.0, 50.0)
    assert abs(size.mean() - 25.0) < 5 * 50.0 / math.sqrt(12 * 500)
    quarters = np.floor(np.arctan2(first[:, 1], first[:, 0]) / (math.pi / 2))
    assert np.unique(quarters, return_counts=True)[1].min() > 80


def test_the_level_scales_the_force_and_level_zero_gives_none():
    full, half = run(PUSHES, waiting(0.0), 20), run(PUSHES, waiting(0.0), 20, level=0.5)
    assert np.allclose(half, 0.5 * full) and full.any()
    assert not run(PUSHES, waiting(0.0), 20, level=0.0).any()


def test_the_first_push_comes_within_one_interval_and_not_at_once():
    wait = np.asarray(jax.vmap(PUSHES.start)(KEYS).next_s)
    assert wait.min() >= 0.3 and wait.max() <= 1.0 and np.ptp(wait) > 0.5


QUIET = NoiseConfig(joint_position_rad=0.0, joint_velocity_rad_s=0.0, gravity_m_s2=0.0, gyro_rad_s=0.0, accel_m_s2=0.0)


def inputs(noise: NoiseConfig = QUIET, jitter_s: float = 0.0) -> PolicyInputs:
    latency = LatencyConfig(jitter_s=jitter_s)
    return PolicyInputs(noise=noise, latency=latency, joints=20, dt=0.005, control_period_s=0.02)


def test_an_observation_is_as_old_as_its_latency(built, physics, env_state):
    # sample k of the line holds the value k everywhere
    line = jnp.tile(jnp.arange(6.0)[:, None], (1, 49))
    physics, key = physics._replace(sensor_line=line), jax.random.key(0)
    for steps in (0, 1, 3, 2.5):
        params = rand.nominal(built)._replace(observation_latency=jnp.asarray(0.005 * steps))
        seen = inputs()(key, physics, params, env_state)
        for name in ("joint_angles", "joint_angular_velocities", "gyroscope", "accelerometer", "projected_gravity"):
            assert np.allclose(seen[name], steps, atol=1e-5), (name, steps)


def test_jitter_makes_an_observation_older_by_at_most_its_width(built, physics, env_state):
    line = jnp.tile(jnp.arange(6.0)[:, None], (1, 49))
    term, params = inputs(jitter_s=0.01), rand.nominal(built)._replace(observation_latency=jnp.asarray(0.005))
    physics = physics._replace(sensor_line=line)
    age = jax.vmap(lambda k: term(k, physics, params, env_state)["joint_angles"][0])(KEYS)
    within(age, 1.0, 3.0)


def test_noise_has_the_standard_deviation_of_its_sensor(built, physics, env_state):
    noise = NoiseConfig(
        joint_position_rad=0.01, joint_velocity_rad_s=0.2, gravity_m_s2=0.3, gyro_rad_s=0.1, accel_m_s2=0.5
    )
    params, keys = rand.nominal(built), jax.random.split(jax.random.key(0), 400)
    clean = inputs()(keys[0], physics, params, env_state)
    seen = jax.jit(jax.vmap(lambda k: inputs(noise)(k, physics, params, env_state)))(keys)
    for name, std in {
        "joint_angles": 0.01, "joint_angular_velocities": 0.2, "projected_gravity": 0.3, "gyroscope": 0.1,
        "accelerometer": 0.5,
    }.items():  # fmt: skip
        error = np.asarray(seen[name] - clean[name])
        # 1200 draws or more: 5 standard errors of a standard deviation are 10 %
        assert error.std() == pytest.approx(std, rel=0.1), name
        assert abs(error.mean()) < 5 * std / math.sqrt(error.size), name
    assert np.array_equal(seen["command"], jnp.tile(env_state.command, (400, 1)))


def test_an_imu_mounted_askew_turns_what_it_measures(built, physics, env_state):
    sensors = Sensors(
        physics.joint_position, physics.joint_velocity, jnp.asarray([0.0, 0.0, -9.81]), jnp.asarray([1.0, 0.0, 0.0]),
        jnp.asarray([0.0, 2.0, 0.0]),
    )  # fmt: skip
    physics = physics._replace(sensor_line=jnp.tile(sensors.flat(jnp), (6, 1)))
    params = rand.nominal(built)._replace(imu_tilt=jnp.asarray([math.pi / 2, 0.0, 0.0]))
    seen = inputs()(jax.random.key(0), physics, params, env_state)
    # a quarter turn about x: y -> z, z -> -y
    assert np.allclose(seen["projected_gravity"], [0.0, 9.81, 0.0], atol=1e-5)
    assert np.allclose(seen["gyroscope"], [1.0, 0.0, 0.0], atol=1e-5)
    assert np.allclose(seen["accelerometer"], [0.0, 0.0, 2.0], atol=1e-5)
    assert np.allclose(seen["joint_angles"], physics.joint_position)


def test_time_is_the_step_times_the_control_period(built, physics, env_state):
    seen = inputs()(jax.random.key(0), physics, rand.nominal(built), env_state)
    assert np.allclose(seen["time"], [0.06])
