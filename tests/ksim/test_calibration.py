"""A task on a measured robot: nominal values, ranges, what is not known, the bundle's gains, another robot refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import yaml

from deploy.sysid.calibration import CalibrationError
from ksim.calibration import DELAY_FLOOR_S, FACTOR_FLOOR, _nominal, from_calibration
from ksim.environment import make_environment
from ksim.errors import CheckpointError, ConfigError
from ksim.evaluate import load_trained
from ksim.load import load_config
from ksim.measured import MeasuredRandomization, MeasuredRobot
from ksim.train_command import _resumed, main
from robots.load import load_robot
from tests.calibrations import ANKLE, KNEE, WRIST, calibration, calibration_file, known
from tests.ksim.few_terms import few_terms
from toolkit.settings import apply_overrides

ROBOT = load_robot("kbot")
# the calibration is of steps of 2 ms, the task has 5: kd h / 2 more
ARMATURE, DELAY_S = 0.05 + 7.0 * 0.0015, 0.02 + 0.0015
KNEE_AT, WRIST_AT, ANKLE_AT = (ROBOT.joint_names.index(name) for name in (KNEE, WRIST, ANKLE))


@pytest.fixture(scope="module")
def config(config):
    """The standing task, small."""
    return few_terms(config)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return calibration_file(tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def measured(config, path):
    return from_calibration(config, path)


@pytest.fixture(scope="module")
def drawn(measured):
    """The parameters of many environments at the greatest level."""
    env = make_environment(measured, 64, "mujoco")
    keys = jax.random.split(jax.random.key(0), 64)
    return env, jax.vmap(lambda key: env._fresh(key, False, 1.0)[1])(keys)


def test_the_engine_steps_the_measured_joint_and_the_described_others(drawn):
    env, params = drawn
    nominal = env.nominal.motor
    told = {name: float(value[KNEE_AT]) for name, value in nominal._asdict().items()}
    expected = {"kp": 120.0, "kd": 7.0, "torque_limit": 70.0, "velocity_max": 15.0, "friction": 0.5, "damping": 0.0}
    expected |= {"armature": ARMATURE, "stiction": 0.4, "play": 0.02, "compliance": 0.01}
    expected |= {"load_friction": 0.1}
    assert told == pytest.approx(expected, rel=1e-6)
    assert float(env.nominal.joint_offset[KNEE_AT]) == pytest.approx(0.05)
    others = np.delete(np.asarray(nominal.kp), KNEE_AT)
    assert others == pytest.approx(np.delete(np.asarray(ROBOT.column("kp")), KNEE_AT))
    dof = int(env.scene.built.dof_ids[KNEE_AT])
    assert float(env.nominal.model["dof_armature"][dof]) == pytest.approx(ARMATURE)
    links = env.scene.built.model.dof_bodyid[env.scene.built.dof_ids]
    for field in ("body_mass", "body_inertia"):
        heavier = np.asarray(env.nominal.model[field])[links] / getattr(env.scene.built.model, field)[links]
        assert heavier[KNEE_AT] == pytest.approx(1.25) and np.delete(heavier, KNEE_AT, axis=0) == pytest.approx(1.0)
    # what the engine is given, and so the model that it steps
    ratio = np.asarray(params.model["dof_armature"])[:, dof] / np.asarray(params.motor.armature)[:, KNEE_AT]
    assert ratio == pytest.approx(1.0)


def test_what_is_known_is_drawn_from_its_interval_and_no_tighter_than_the_floor(drawn):
    _, params = drawn
    motor, at = params.motor, KNEE_AT
    for name, low, high in (
        ("kp", 114.0, 126.0),
        ("kd", 6.3, 7.7),
        ("torque_limit", 66.5, 73.5),
        ("friction", 0.4, 0.6),
        ("armature", ARMATURE * (1 - FACTOR_FLOOR), ARMATURE * (1 + FACTOR_FLOOR)),
        ("stiction", 0.3, 0.5),
        ("play", 0.018, 0.022),
    ):
        values = np.asarray(getattr(motor, name))[:, at]
        assert low - 1e-5 <= values.min() < values.max() <= high + 1e-5, name
        assert np.ptp(values) > 0.8 * (high - low), name
    offset = np.asarray(params.joint_offset)[:, at]
    assert 0.047 - 1e-6 <= offset.min() < offset.max() <= 0.053 + 1e-6
    # compliance is varied by no term of this task
    assert np.asarray(motor.compliance)[:, at] == pytest.approx(0.01)


def test_what_is_not_known_keeps_its_range_to_the_bit(drawn, config, measured):
    _, params = drawn
    plain = make_environment(config, 64, "mujoco")
    keys = jax.random.split(jax.random.key(0), 64)
    before = jax.vmap(lambda key: plain._fresh(key, False, 1.0)[1])(keys)
    for name in ("kp", "kd", "friction", "stiction"):
        now, then = (np.asarray(getattr(p.motor, name)) for p in (params, before))
        assert np.array_equal(now[:, [WRIST_AT, ANKLE_AT]], then[:, [WRIST_AT, ANKLE_AT]]), name
        assert not np.array_equal(now[:, KNEE_AT], then[:, KNEE_AT])
    assert WRIST not in measured.calibration.kp
    assert measured.randomizations["payload"] == config.randomizations["payload"]
    # nothing of the ankle was fitted: the task is as it was
    assert (
        set(measured.randomizations["kp"].spans) == {KNEE}
        and measured.randomizations["kp"].of == (config.randomizations["kp"])
    )


def test_a_delay_goes_on_the_way_to_the_motors_unless_it_is_one_clocks(measured, config, tmp_path):
    assert measured.channels["action"].latency_s == pytest.approx((DELAY_S - DELAY_FLOOR_S, DELAY_S + DELAY_FLOOR_S))
    assert measured.channels["action"].jitter_s == config.channels["action"].jitter_s
    for changes in ({"one_clock": True}, {"delay_s": dataclasses.replace(known(0.02), known=False)}):
        other = from_calibration(config, calibration_file(tmp_path, **changes))
        assert other.channels == config.channels


def test_a_parameter_that_two_terms_vary_is_varied_once(config, path, tmp_path):
    found = calibration()
    joints = {**found.joints, KNEE: dataclasses.replace(found.joints[KNEE], damping=known(0.2, width=0.05))}
    both = apply_overrides(config, ["randomizations.more_damping.kind=DampingFactorRandomization"])
    after = from_calibration(both, calibration_file(tmp_path, joints=joints))
    assert after.calibration.damping == {KNEE: 0.2}
    assert after.randomizations["damping"].spans[KNEE] == pytest.approx((-0.05, 0.05))
    assert after.randomizations["more_damping"].spans[KNEE] == (1.0, 1.0)


def test_viscous_friction_that_is_in_kd_is_not_counted_twice():
    joint = dataclasses.replace(ROBOT.joints[KNEE_AT], damping=0.3)
    robot = ROBOT.replace(joints=tuple(joint if j.name == KNEE else j for j in ROBOT.joints))
    assert _nominal(calibration(), robot).damping == {KNEE: 0.0}


def test_a_calibrated_run_trains_and_holds_all_of_it_and_its_bundle_commands_the_described_gains(
    config, path, tmp_path, measured, capsys
):
    small = dataclasses.replace(config, run=dataclasses.replace(config.run, total_steps=32))
    file, out = tmp_path / "tiny.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(small.to_dict()))
    assert main(["--config", str(file), "--out", str(out), "--calibration", str(path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["updates"] == 2
    assert f"trains on calibration {calibration().digest[:12]} of kbot: kp of 1, kd of 1, " in told.err
    written = load_config(out / "config.yaml")
    assert written == dataclasses.replace(measured, run=small.run)
    assert written.calibration.source == calibration().digest
    trained = load_trained(out / "model.ckpt")
    assert trained.config == written and trained.spec.robot == ROBOT
    assert trained.spec.action_latency_s[1] == pytest.approx(
        DELAY_S + DELAY_FLOOR_S + config.channels["action"].jitter_s
    )
    longer = dataclasses.replace(measured, run=dataclasses.replace(small.run, total_steps=48))
    assert _resumed(longer, out / "last.ckpt") == longer
    with pytest.raises(CheckpointError, match=r"with calibration [0-9a-f]{12}, this run without one; use the same"):
        _resumed(small, out / "last.ckpt")


def test_a_calibration_of_another_robot_is_refused_with_one_line(ksim, config, tmp_path):
    path = calibration_file(tmp_path, robot="so101")
    with pytest.raises(CalibrationError, match="it is of robot so101, expected kbot"):
        from_calibration(config, path)
    done = ksim("train", "--config", "configs/kbot_stand.yaml", "--out", tmp_path / "run", "--calibration", path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "it is of robot so101" in done.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(CalibrationError, match=r"none\.yaml: no such file; expected a calibration"):
        from_calibration(config, tmp_path / "none.yaml")


def test_a_calibration_whose_search_had_not_come_to_its_end_is_refused(config, tmp_path):
    with pytest.raises(CalibrationError, match=r"had not come to its end.*--begin"):
        from_calibration(config, calibration_file(tmp_path, converged=False))


def test_a_configuration_that_was_measured_on_another_robot_is_refused(config, environment):
    other = MeasuredRobot(robot="so101", kp={"gripper": 1.0})
    with pytest.raises(ConfigError, match="no joint 'gripper' of robot kbot; expected a calibration of it"):
        other.apply(environment.nominal, environment.scene)


def test_a_configuration_without_a_calibration_is_written_as_before(config):
    assert "calibration" not in config.to_dict()
    assert not any(isinstance(term, MeasuredRandomization) for term in config.randomizations.values())
