"""Evaluation: the same seed gives the same figures, the baseline falls, and both kinds of policy run."""

from __future__ import annotations

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
import yaml

from deploy.bundle.session import OnnxPolicy
from ksim import evaluate_command
from ksim.curriculum import FixedCurriculum, LinearScale
from ksim.environment import make_environment
from ksim.errors import KsimError
from ksim.evaluate import (
    ByName,
    Evaluation,
    HoldHome,
    JaxBatchPolicy,
    OnnxBatchPolicy,
    _off_command,
    evaluate,
    load_policy,
)
from ksim.learning import checkpoint
from ksim.learning.policy import make_model
from ksim.load import load_config
from ksim.tasks import task_config
from robots import Bundle, load_robot, read_bundle, write_bundle
from robots.spec import CommandSpec, PolicySpec, input_specs
from tests import kscale
from tests.ksim.few_terms import few_terms
from toolkit.files import shipped_config, shipped_policy


@pytest.fixture(scope="module")
def run(config, trained, environment):
    def go(seed: int, **options) -> Evaluation:
        policy = options.pop("policy", None) or JaxBatchPolicy(trained.policy)
        return evaluate(config, policy, episodes=4, seed=seed, environment=environment, **options)

    return go


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(run):
    first, again, other = run(5), run(5), run(6)
    assert first.summary() == again.summary()
    assert np.array_equal(first.returns, again.returns) and np.array_equal(first.drift_m, again.drift_m)
    assert not np.array_equal(first.returns, other.returns)


def test_short_episodes_are_survived_and_all_of_them_last_to_the_end(run, config):
    # 0.4 s are too short to fall in
    result = run(5)
    assert result.survival == 1.0 and np.allclose(result.lengths_s, config.episode_length_s)
    assert (result.returns > 0).all() and (result.drift_m < 0.5).all()


def test_a_record_holds_what_the_policy_saw_and_did(run, built):
    seen = []
    result = run(5, record=True, progress=lambda k, n: seen.append((k, n)))
    steps = 20
    assert seen == [(k + 1, steps) for k in range(steps)]
    assert result.inputs["joint_angles"].shape == result.targets.shape == (steps, 4, 20)
    assert result.qpos.shape == (steps, 4, built.model.nq) and result.force_w.shape == (steps, 4, 3)
    assert result.alive.all()
    assert (result.targets >= np.float32(built.spec.column("lower_rad"))).all()
    assert np.array_equal(result.inputs["time"][:, 0, 0], np.float32(0.02) * np.arange(steps, dtype=np.float32))


def test_what_a_policy_was_trained_with_cannot_be_set_afterwards(checkpoint_path):
    with pytest.raises(KsimError, match=r"policy\.target_speed: got 0\.5, expected what it was trained with: 0\.0; "):
        load_policy(str(checkpoint_path), overrides=["policy.target_speed=0.5"])
    assert load_policy(str(checkpoint_path), overrides=["episode_length_s=2"])[0].episode_length_s == 2.0


def test_the_checkpoints_policy_runs_as_the_policy_function_itself(run, checkpoint_path, config):
    task, policy = load_policy(str(checkpoint_path))
    assert task == config and isinstance(policy, JaxBatchPolicy)
    assert np.array_equal(run(5, policy=policy).returns, run(5).returns)


def test_home_is_the_pose_of_the_shipped_task(built):
    task, policy = load_policy("home")
    assert task == load_config(shipped_config("kbot_stand.yaml")) and isinstance(policy, HoldHome)
    targets, _ = policy.step({}, policy.init(3))
    assert np.array_equal(targets, np.tile(np.float32(built.spec.column("home_rad")), (3, 1)))


def test_an_environment_of_another_size_is_refused(config, trained, environment):
    with pytest.raises(KsimError, match="got an environment of 4, expected 5"):
        evaluate(config, JaxBatchPolicy(trained.policy), episodes=5, seed=0, environment=environment)


def test_the_summary_has_the_wilson_interval():
    def of(survived: int) -> dict:
        ones = np.ones(10)
        return Evaluation(
            episodes=10, seed=0, engine="mujoco", survived=np.arange(10) < survived, returns=2 * ones,
            lengths_s=ones, drift_m=ones, tracking_m_s=0.5 * ones,
        ).summary()  # fmt: skip

    assert of(5)["tracking_mean_m_s"] == 0.5
    # 8 of 10: the textbook interval 0.490 to 0.943
    assert of(8)["survival"] == 0.8
    assert of(8)["survival_low95"] == pytest.approx(0.4902, abs=1e-3)
    assert of(8)["survival_high95"] == pytest.approx(0.9433, abs=1e-3)
    # none and all reach the end of the scale: 1 - 3.8415 / 13.8415
    assert of(0)["survival_low95"] == 0.0 and of(10)["survival_high95"] == 1.0
    assert of(10)["survival_low95"] == pytest.approx(1 - 3.8415 / 13.8415, abs=1e-3)


def test_tracking_is_the_distance_of_the_velocity_in_the_bases_own_heading_from_the_command(physics, built):
    # a base that heads along world y (90 degrees of yaw) and moves 0.5 m/s along it and 0.3 m/s to its left
    half = np.sqrt(0.5)
    qpos, qvel = np.array(physics.qpos)[None], np.array(physics.qvel)[None]
    qpos[:, built.base_quat], qvel[:, built.base_lin_vel] = [half, 0.0, 0.0, half], [-0.3, 0.5, 9.0]
    for command, names, expected in (
        ([0.5, 0.3], ("xvel", "yvel"), 0.0),
        ([0.3, 0.5], ("vy", "vx"), 0.0),  # older names of the same
        ([0.1, 0.0], ("xvel", "yvel"), 0.5),  # 0.4 and 0.3 off
        ([0.5], ("xvel",), 0.3),
        ([7.0], ("yawrate",), np.hypot(0.5, 0.3)),
    ):
        scene = dataclasses.replace(physics.scene, command_names=names)
        moving = dataclasses.replace(physics, qpos=qpos, qvel=qvel, scene=scene)
        found = _off_command(moving, np.array([command]), scene)
        assert found == pytest.approx([expected], abs=1e-6), names


def test_tracking_is_averaged_over_the_running_steps(run):
    result = run(5, record=True)
    moved = np.linalg.norm(np.diff(result.qpos[:, :, :2], axis=0), axis=-1) / 0.02
    command = result.inputs["command"][0, :, 0]  # vx alone of the test task
    # between standing still and twice the mean speed on top of the command
    assert (result.tracking_m_s > 0).all()
    assert (result.tracking_m_s <= np.abs(command) + 2.0 * moved.mean(axis=0) + 0.1).all()


def test_holding_home_falls_under_pushes_and_the_command_prints_one_json_object(ksim):
    done = ksim("eval", "home", "--episodes", "4", "--seed", "3", "--set", "episode_length_s=6", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert answer["policy"] == "home" and answer["episodes"] == 4 and answer["seed"] == 3
    assert answer["robot"] == "kbot" and answer["level"] == 1.0
    assert answer["survival"] < 0.5 and 0.2 < answer["length_mean_s"] < 6.0


def test_no_episodes_are_refused(ksim):
    done = ksim("eval", "home", "--episodes", "0")
    assert done.returncode == 1 and done.stderr == "ksim eval: --episodes: got 0, expected 1 to 100000 (episodes)\n"


def test_the_level_and_the_episodes_that_were_asked_for_reach_the_evaluation_and_the_suite(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("ksim.evaluate.load_policy", lambda *_: (task_config("kbot_walk"), None))

    def stop(config, *args, **options):
        given.append((config, options.get("episodes") or args[1].episodes))
        raise KsimError("seen")

    monkeypatch.setattr("ksim.evaluate.evaluate", stop)
    monkeypatch.setattr("ksim.suite.suite.run_suite", stop)
    suite = ("--suite", "walk", "--out", str(tmp_path / "suite"))
    for words in ((), ("--level", "0.5"), ("--episodes", "7"), suite, (*suite, "--quick", "--episodes", "7")):
        with pytest.raises(KsimError, match="seen"):
            evaluate_command.main(["home", *words])
    scales = [config.randomizations["kp"].scale for config, _ in given]
    assert scales[1] == pytest.approx(0.6) and all(isinstance(s, LinearScale) for s in scales[:1] + scales[2:])
    assert [episodes for _, episodes in given] == [100, 100, 7, 512, 7]


def test_the_pushes_of_an_evaluation_are_at_full_level(config, trained, environment):
    calm = dataclasses.replace(config, curriculum=FixedCurriculum())
    a = evaluate(config, JaxBatchPolicy(trained.policy), episodes=4, seed=1, environment=environment)
    b = evaluate(calm, JaxBatchPolicy(trained.policy), episodes=4, seed=1, environment=environment)
    assert np.array_equal(a.returns, b.returns)  # the curriculum is training's alone


@pytest.fixture(scope="module")
def biped(tmp_path_factory):
    """A folder with a robot of four joints that stands on two boxes."""
    folder = tmp_path_factory.mktemp("robots") / "biped"
    folder.mkdir()

    def leg(side: str, y: float) -> str:
        return f"""
        <body name="{side}_thigh" pos="0 {y} 0">
          <joint name="{side}_hip" axis="0 1 0" range="-90 90" armature="0.02"/>
          <inertial pos="0 0 -0.2" mass="2" diaginertia="0.02 0.02 0.002"/>
          <body name="{side}_shin" pos="0 0 -0.4">
            <joint name="{side}_knee" axis="0 1 0" range="-30 120" armature="0.02"/>
            <geom name="{side}_sole" type="box" size="0.1 0.05 0.02" pos="0.05 0 -0.38" mass="1"/>
            <site name="{side}_foot" pos="0 0 -0.4"/>
          </body>
        </body>"""

    (folder / "robot.xml").write_text(
        f"""<mujoco><worldbody><body name="pelvis" pos="0 0 0.8"><freejoint/><site name="imu"/>
        <inertial pos="0 0 0" mass="5" diaginertia="0.05 0.05 0.05"/>{leg("left", 0.1)}{leg("right", -0.1)}
        </body></worldbody></mujoco>"""
    )
    joints = {
        name: {"id": i, "kp": 60 + i, "kd": 2, "actuator_type": "big"}
        for i, name in enumerate(("left_hip", "left_knee", "right_hip", "right_knee"))
    }
    motor = {"max_torque": 40, "max_velocity": 10}
    metadata = {
        "joint_name_to_metadata": joints, "actuator_type_to_metadata": {"big": motor}, "control_frequency": 50,
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


GAIN = {"left_hip": 0.9, "left_knee": -0.5, "right_hip": 0.3, "right_knee": -0.2}
RATES = {"vx": 0.4, "yaw_rate": -0.7}


def bundle_of(robot, commands=("vx", "yaw_rate"), task="kbot_stand", with_spec=True):
    """A real graph that is not the same for any two joints: gain * angle + velocity / 50 + rates . command."""
    from onnx import TensorProto, helper, numpy_helper

    n, floats = len(robot.joints), TensorProto.FLOAT
    specs = tuple(CommandSpec(name=name, low=-1.0, high=1.0) for name in commands)
    names = ("joint_angles", "joint_angular_velocities", "command")

    def value(name, size):
        return helper.make_tensor_value_info(name, floats, [size])

    def model(nodes, inputs, outputs, constants):
        graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    def constant(name, values):
        return numpy_helper.from_array(np.asarray(values, np.float32), name)

    node = helper.make_node
    step = model(
        [
            node("Mul", ["joint_angles", "gain"], ["a"]),
            node("Mul", ["joint_angular_velocities", "slow"], ["b"]),
            node("MatMul", ["command", "rates"], ["c"]),
            node("Sum", ["a", "b", "c"], ["action"]),
            node("Identity", ["carry"], ["next"]),
        ],
        [*(value(name, {"command": len(commands)}.get(name, n)) for name in names), value("carry", 1)],
        [value("action", n), value("next", 1)],
        [
            constant("gain", [GAIN[name] for name in robot.joint_names]),
            constant("slow", [0.02 * (1 + GAIN[name]) for name in robot.joint_names]),
            constant("rates", [[RATES[c] * GAIN[name] for name in robot.joint_names] for c in commands]),
        ],
    )
    init = model([node("Identity", ["zero"], ["first"])], [], [value("first", 1)], [constant("zero", [0.0])])
    known = input_specs(robot, specs)
    spec = PolicySpec(
        task=task,
        robot=robot,
        inputs=tuple(known[name] for name in names),
        commands=specs,
        carry_size=1,
        control_period_s=0.02,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
    )
    return Bundle(
        joint_names=robot.joint_names, command_names=commands, carry_shape=(1,), init_fn=init, step_fn=step,
        spec=spec if with_spec else None,
    )  # fmt: skip


BIPED_TASK = (
    "policy.hold=[]", "episode_length_s=1", "threads=1", "commands={vx: [-1, 1], yaw_rate: [-1, 1]}",
)  # fmt: skip


@pytest.fixture
def loaded(biped, tmp_path):
    """`loaded(bundle)`: what load_policy makes of it on the biped."""

    def load(bundle, *overrides, config=None):
        write_bundle(tmp_path / "p.kinfer", bundle)
        return load_policy(str(tmp_path / "p.kinfer"), config, [f"robot={biped}", *BIPED_TASK, *overrides])

    return load


def test_a_policy_with_its_joints_and_commands_in_another_order_does_the_same(biped, loaded):
    robot = load_robot(biped)
    task, policy = loaded(bundle_of(robot))
    assert task.robot == str(biped) and isinstance(policy, OnnxBatchPolicy)
    env = make_environment(task, 4, "mujoco")
    first = evaluate(task, policy, episodes=4, seed=2, environment=env)
    order = (2, 0, 3, 1)  # no permutation of two: its inverse is another
    other = robot.replace(joints=tuple(robot.joints[i] for i in order))
    for with_spec in (True, False):
        bundle = bundle_of(other, commands=("yaw_rate", "vx"), with_spec=with_spec)
        task, mapped = loaded(bundle, config=None if with_spec else shipped_config("kbot_stand.yaml"))
        assert isinstance(mapped, ByName)
        again = evaluate(task, mapped, episodes=4, seed=2, environment=env)
        assert np.array_equal(first.survived, again.survived)
        assert np.allclose(first.returns, again.returns, rtol=1e-5) and np.allclose(first.lengths_s, again.lengths_s)
    # the order matters: by position it does something else
    swapped = evaluate(task, OnnxBatchPolicy(bundle), episodes=4, seed=2, environment=env)
    assert not np.allclose(first.returns, swapped.returns, rtol=1e-3)


def test_the_clock_of_a_bundle_is_the_one_that_runs_in_it(tmp_path):
    bundle = read_bundle(shipped_policy("walk", ".kinfer"))
    said = bundle.spec.training
    policy = {**said["policy"], "clock": {**said["policy"]["clock"], "frequency_hz": 2.0}, "hidden": 7}
    task = load_config(shipped_config("kbot_walk.yaml"))
    for training, speed in (
        ({**said, "policy": policy}, 2.0),
        ({k: v for k, v in said.items() if k != "policy"}, task.policy.clock.frequency_hz),
    ):
        write_bundle(tmp_path / "p.kinfer", dataclasses.replace(bundle, spec=bundle.spec.replace(training=training)))
        found, _ = load_policy(str(tmp_path / "p.kinfer"))
        clock = dataclasses.replace(task.policy.clock, frequency_hz=speed)
        assert found == dataclasses.replace(task, policy=dataclasses.replace(task.policy, clock=clock))
    broken = bundle.spec.replace(training={"policy": {"clock": {"frequency_hz": "fast"}}})
    write_bundle(tmp_path / "p.kinfer", dataclasses.replace(bundle, spec=broken))
    with pytest.raises(KsimError, match=r"what it says of its training does not fit this version .*frequency_hz"):
        load_policy(str(tmp_path / "p.kinfer"))


def test_a_checkpoints_policy_is_mapped_by_name_too(biped, config, tmp_path):
    robot = load_robot(biped)
    task = dataclasses.replace(config, robot=str(biped))
    model = eqx.filter_jit(make_model)(robot, 5, task, key=jax.random.key(1))
    orders = ((0, 1, 2, 3), (2, 0, 3, 1))
    inputs = {k: np.random.default_rng(0).normal(size=(2, n)).astype(np.float32) for k, n in
              (("joint_angles", 4), ("joint_angular_velocities", 4), ("projected_gravity", 3), ("gyroscope", 3),
               ("command", 2))}  # fmt: skip
    for order in orders:
        other = robot.replace(joints=tuple(robot.joints[i] for i in order))
        path = tmp_path / "p.ckpt"
        meta = {"config": task.to_dict(), "robot": other.to_json(), "robot_digest": other.digest, "critic": 5}
        checkpoint.write(path, meta, checkpoint.model_arrays(model))
        _, policy = load_policy(str(path))
        targets, _ = policy.step(inputs, policy.init(2))
        if order == orders[0]:
            assert isinstance(policy, JaxBatchPolicy)
            continue
        assert isinstance(policy, ByName)
        # what its own joints would get from its own inputs, by name
        inner = JaxBatchPolicy(checkpoint.load_trained(path).policy)
        places = list(order)
        own = {k: v[:, places] if k.startswith("joint") else v for k, v in inputs.items()}
        expected, _ = inner.step(own, inner.init(2))
        assert np.array_equal(targets[:, places], np.asarray(expected))


def test_a_policy_of_another_robot_other_commands_or_another_rate_is_refused_in_one_line(biped, loaded, tmp_path):
    robot = load_robot(biped)
    stiff = robot.replace(joints=(robot.joints[0].replace(kp=10.0), *robot.joints[1:]))
    renamed = robot.replace(joints=(robot.joints[0].replace(name="left_hip_2"), *robot.joints[1:]))
    GAIN["left_hip_2"] = 0.1
    no_spec = bundle_of(renamed, with_spec=False)
    for bundle, overrides, words in (
        (bundle_of(stiff), [], "trained for another robot than biped: left_hip: kp 60 on the robot, 10 in the bundle"),
        (bundle_of(renamed), [], "no joint left_hip_2; joint left_hip is unknown to the policy"),
        (bundle_of(robot), ["robot=kbot"], "trained for another robot than kbot: no joint left_hip"),
        (bundle_of(robot), ["physics.control_period_s=0.01"], "got 0.01, expected 0.02"),
        (bundle_of(robot, task="../../w/tiny"), [], "task '../../w/tiny' is no name"),
        (no_spec, [], "the bundle names no task"),
    ):
        with pytest.raises(KsimError) as caught:
            loaded(bundle, *overrides)
        message = str(caught.value)
        assert words in message and message.startswith(str(tmp_path)) and "\n" not in message, message
    with pytest.raises(KsimError, match="joints that the task has not: left_hip_2; joints that the policy has not: "):
        loaded(no_spec, config=shipped_config("kbot_stand.yaml"))


def test_a_bundles_robot_is_the_one_that_it_names(biped, tmp_path):
    path = tmp_path / "p.kinfer"
    for name in ("biped", "../biped"):
        write_bundle(path, bundle_of(load_robot(biped).replace(name=name)))
        with pytest.raises(KsimError, match=rf"trained for robot '{name}', which is neither .*--set robot=FOLDER"):
            load_policy(str(path))


def test_the_answer_names_the_robot_and_bad_numbers_are_refused_before_anything_is_loaded(config, tmp_path, capsys):
    from ksim.evaluate_command import main

    for option, value in (("--seed", "99999999999999999999"), ("--seed", "-1"), ("--episodes", "1000000000")):
        with pytest.raises(KsimError, match=rf"{option}: got {value}, expected"):
            main(["none.ckpt", option, value])
    few = tmp_path / "few.yaml"
    few.write_text(yaml.safe_dump(few_terms(config, randomizations={}).to_dict()))
    assert main(["home", "--config", str(few), "--episodes", "1", "--set", "episode_length_s=0.1"]) == 0
    assert capsys.readouterr().out.startswith("home on kbot: survived ")


def test_a_carry_of_more_axes_stays_with_its_environment(tmp_path) -> None:
    bundle = read_bundle(kscale.write(tmp_path / "p.kinfer", carry=(2, 5)))
    batch, alone = OnnxBatchPolicy(bundle), OnnxPolicy(bundle)
    rng = np.random.default_rng(0)
    shapes = {name: alone.shapes[name] for name in alone.inputs}
    rows = [{name: rng.normal(size=(3, *s)).astype(np.float32) for name, s in shapes.items()} for _ in range(4)]
    carry = batch.init(3)
    assert carry.shape == (3, 2, 5)
    for row in rows:
        targets, carry = batch.step(row, carry)
    for env in range(3):
        alone.reset()
        for row in rows:
            action = alone.step({name: values[env] for name, values in row.items()})
        np.testing.assert_array_equal(targets[env], action)
        np.testing.assert_array_equal(carry[env], alone.carry)
