"""A bundle of another robot is evaluated in the task that it says it was trained in: only the folder is asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ksim.config import Config
from ksim.errors import KsimError
from ksim.evaluate import load_policy
from ksim.learning.checkpoint import training_settings
from ksim.tasks import task_config
from robots.bundle import Bundle, write_bundle
from robots.load import load_robot
from robots.spec import PolicySpec, input_specs
from tests.ksim.biped import write_biped
from toolkit.settings import apply_overrides

pytest.importorskip("onnx")

# what a person has to change of the shipped tasks for a robot whose joints have other names
WALK = ("rewards.hips=null", "randomizations.play=null", "randomizations.compliance=null", "policy.hold=[]")


@pytest.fixture
def folder(tmp_path):
    return write_biped(tmp_path / "trotter")


def write(tmp_path, folder, config: Config) -> str:
    """A bundle as `ksim export` describes it; its graph gives the measured angles back."""
    from onnx import TensorProto, helper, numpy_helper

    robot, commands = load_robot(folder), config.command_specs
    n = len(robot.joints)
    known = input_specs(robot, commands)
    spec = PolicySpec(
        task=config.task, robot=robot, inputs=(known["joint_angles"], known["command"]), commands=commands,
        carry_size=1, control_period_s=config.physics.control_period_s, training=training_settings(config, {}),
        action_low_rad=tuple(robot.column("lower_rad")), action_high_rad=tuple(robot.column("upper_rad")),
    )  # fmt: skip

    def value(name, size):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])

    def model(nodes, inputs, outputs, constants=()):
        graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    step = model(
        [helper.make_node("Identity", ["joint_angles"], ["a"]), helper.make_node("Identity", ["carry"], ["c"])],
        [value("joint_angles", n), value("command", len(commands)), value("carry", 1)], [value("a", n), value("c", 1)],
    )  # fmt: skip
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    init = model([helper.make_node("Identity", ["zero"], ["first"])], [], [value("first", 1)], [zero])
    path = tmp_path / "p.kinfer"
    names = tuple(c.name for c in commands)
    bundle = Bundle(
        joint_names=robot.joint_names, command_names=names, carry_shape=(1,), init_fn=init, step_fn=step, spec=spec
    )
    write_bundle(path, bundle)
    return str(path)


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("kbot_stand", ("policy.hold=[]", "physics.control_period_s=0.01", "episode_length_s=3")),
        ("kbot_walk", WALK),
    ],
)
def test_all_but_the_folder_is_taken_from_the_bundle(tmp_path, folder, task, changes):
    trained = apply_overrides(dataclasses.replace(task_config(task), robot=str(folder)), changes)
    told, _ = load_policy(write(tmp_path, folder, trained), overrides=[f"robot={folder}"])
    rooms = ("physics", "policy", "events", "randomizations", "rewards", "observations", "resets", "channels")
    for room in (*rooms, "actuators", "episode_length_s", "robot"):
        assert getattr(told, room) == getattr(trained, room), room


def test_what_is_given_beside_goes_before_the_bundle(tmp_path, folder):
    trained = apply_overrides(dataclasses.replace(task_config("kbot_stand"), robot=str(folder)), ["policy.hold=[]"])
    told, _ = load_policy(write(tmp_path, folder, trained), overrides=[f"robot={folder}", "episode_length_s=2"])
    assert told.episode_length_s == 2


def test_a_bundle_of_another_version_is_refused_in_one_line(tmp_path, folder):
    trained = apply_overrides(dataclasses.replace(task_config("kbot_stand"), robot=str(folder)), ["policy.hold=[]"])
    path = write(tmp_path, folder, trained)
    from robots.bundle import read_bundle

    bundle = read_bundle(path)
    odd = {**bundle.spec.training, "rewards": {"jump": {"kind": "JumpReward"}}}
    write_bundle(path, dataclasses.replace(bundle, spec=bundle.spec.replace(training=odd)))
    with pytest.raises(KsimError, match=r"what it says of its training does not fit this version \(.*JumpReward"):
        load_policy(path, overrides=[f"robot={folder}"])
