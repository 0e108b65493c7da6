"""The ONNX policy: what it declares is checked, what it computes is what the graph says."""

import dataclasses
import io
import json
import math
import tarfile

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle.session import OnnxPolicy, observe, self_test, spec_without_exporter
from deploy.errors import PolicyError
from deploy.robot.state import RobotState
from robots.bundle import read_bundle
from robots.errors import BundleError

STATE = RobotState(
    joint_position=np.array([0.1, 0.2, 0.3]),
    joint_velocity=np.array([1.0, 2.0, 3.0]),
    joint_torque=np.zeros(3),
    quat_wxyz=np.array([math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]),
    gyro_b=np.array([4.0, 5.0, 6.0]),
    accel_b=np.array([7.0, 8.0, 9.0]),
    time_s=0.0,
    round_trip_s=0.0,
)


def zeros(policy):
    return {name: np.zeros(policy.shapes[name], dtype=np.float32) for name in policy.inputs}


def test_a_step_computes_the_graph_and_carries_on(bundle):
    policy = OnnxPolicy(bundle)
    inputs = zeros(policy) | {"command": np.array([0.5, 0.0], dtype=np.float32)}
    assert policy.carry.tolist() == [0.0, 0.0], "loading leaves no trace in the carry"
    # home [0.3, -0.5, 0] plus 0.1 x 0.5
    assert np.allclose(policy.step(inputs), [0.35, -0.45, 0.05], atol=1e-7)
    policy.step(inputs)
    assert policy.carry.tolist() == [2.0, 2.0]
    policy.reset()
    assert policy.carry.tolist() == [0.0, 0.0]


def test_only_declared_inputs_are_asked_for(robot, bundle_factory):
    policy = OnnxPolicy(bundle_factory(robot, used=("joint_angles", "command")))
    assert policy.inputs == ("joint_angles", "command")
    inputs = observe(policy.inputs, STATE, np.zeros(2), 0.0, 0.0)
    assert set(inputs) == {"joint_angles", "command"}
    assert policy.step(inputs | {"gyroscope": np.zeros(3, dtype=np.float32)}).shape == (3,)


def test_old_inputs_are_fed_the_quaternion_with_w_first_and_the_heading(robot, bundle_factory):
    bundle = bundle_factory(robot, used=("joint_angles", "quaternion", "initial_heading"), with_spec=False)
    policy = OnnxPolicy(bundle)
    inputs = observe(policy.inputs, STATE, np.zeros(2), 1.5, STATE.heading_rad)
    assert np.allclose(inputs["quaternion"], [math.sqrt(0.5), 0, 0, math.sqrt(0.5)])
    assert np.allclose(inputs["initial_heading"], [math.pi / 2])
    policy.step(inputs)
    spec = spec_without_exporter(bundle, policy, robot)
    assert [a.name for a in spec.inputs] == list(policy.inputs) and spec.command_names == ("vx", "yaw")


def test_every_input_is_the_measured_value_in_float32():
    names = ("joint_angles", "joint_angular_velocities", "projected_gravity", "accelerometer", "gyroscope", "time")
    inputs = observe((*names, "command"), STATE, np.array([0.5, -0.5]), 0.04, 0.0)
    assert all(v.dtype == np.float32 for v in inputs.values())
    assert np.allclose(inputs["joint_angles"], [0.1, 0.2, 0.3])
    assert np.allclose(inputs["joint_angular_velocities"], [1, 2, 3])
    assert np.allclose(inputs["projected_gravity"], [0, 0, -9.81])
    assert np.allclose(inputs["accelerometer"], [7, 8, 9]) and np.allclose(inputs["gyroscope"], [4, 5, 6])
    assert np.allclose(inputs["time"], [0.04]) and np.allclose(inputs["command"], [0.5, -0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"used": ("joint_angles", "lidar"), "with_spec": False}, "input 'lidar' is unknown; expected some of joint_"),
        ({"shapes": {"gyroscope": [4]}}, r"input gyroscope: .* shape \[4\], expected .* shape \[3\]"),
        ({"shapes": {"joint_angles": [1, 3]}}, r"input joint_angles: .* shape \[1, 3\], expected .* shape \[3\]"),
    ],
)
def test_a_graph_that_declares_something_else_is_refused(robot, bundle_factory, options, message):
    with pytest.raises(PolicyError, match=message) as caught:
        OnnxPolicy(bundle_factory(robot, **options))
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_not_what_the_specification_promises_is_refused(robot, bundle_factory):
    one, other = bundle_factory(robot), bundle_factory(robot, used=("joint_angles", "command"))
    with pytest.raises(PolicyError, match="its specification has"):
        OnnxPolicy(dataclasses.replace(one, step_fn=other.step_fn))
    with pytest.raises(PolicyError, match=r"carry: .* shape \[3\]|init_fn.onnx: the carry: .* expected .* \(2,\)"):
        OnnxPolicy(dataclasses.replace(one, init_fn=bundle_factory(robot, carry_size=3).init_fn))
    with pytest.raises(PolicyError, match="not a model"):
        OnnxPolicy(dataclasses.replace(one, step_fn=b"garbage"))
    with pytest.raises(PolicyError, match="expected none"):
        OnnxPolicy(dataclasses.replace(one, init_fn=one.step_fn))


def test_a_missing_or_misshaped_input_is_named(bundle):
    policy = OnnxPolicy(bundle)
    inputs = zeros(policy)
    with pytest.raises(PolicyError, match="input gyroscope: missing"):
        policy.step({k: v for k, v in inputs.items() if k != "gyroscope"})
    with pytest.raises(PolicyError, match="input time: float64"):
        policy.step(inputs | {"time": np.zeros(1)})
    with pytest.raises(PolicyError, match=r"input command: float32 of shape \(3,\)"):
        policy.step(inputs | {"command": np.zeros(3, dtype=np.float32)})


def test_an_action_that_is_not_finite_is_an_error(robot, bundle_factory):
    policy = OnnxPolicy(bundle_factory(robot, divide_by_carry=True))
    inputs = zeros(policy)
    policy.step(inputs)
    policy.step(inputs)
    with pytest.raises(PolicyError, match="action: got a value that is not finite"):
        policy.step(inputs)


# the self-test


def test_the_self_test_runs_the_recorded_steps_and_leaves_the_first_carry(bundle):
    policy = OnnxPolicy(bundle)
    policy.step(zeros(policy))
    # 0.35 in float32 is 1.2e-8 off
    assert self_test(policy, bundle.spec) < 1e-7
    assert policy.carry.tolist() == [0.0, 0.0]


def test_another_graph_fails_the_self_test_and_names_the_joint(robot, bundle_factory):
    right, other = bundle_factory(robot), bundle_factory(robot, constant=0.001)
    changed = dataclasses.replace(right, step_fn=other.step_fn)
    with pytest.raises(PolicyError, match=r"self-test, step 0: target of \w+ is .* when it was validated") as caught:
        self_test(OnnxPolicy(changed), changed.spec)
    assert "\n" not in str(caught.value)


def test_a_carry_that_is_not_fed_back_fails_the_self_test(bundle):
    class Forgetful(OnnxPolicy):
        def step(self, inputs, *, check_finite=True):
            action = super().step(inputs, check_finite=check_finite)
            self.reset()
            return action

    # this policy's actions do not depend on the carry; the last carry does: 0 in place of 2
    with pytest.raises(PolicyError, match=r"after 2 steps: element 0 of the carry is off by 2"):
        self_test(Forgetful(bundle), bundle.spec)


def test_a_part_with_a_reset_begins_with_the_first_carry(bundle):
    # the carry counts the steps: 2 after two of them, 1 after a reset and one
    parts = [{"name": name, "steps": 1, "reset": True} for name in ("start", "reset")]
    record = bundle.spec.self_test | {"carry": [1.0] * bundle.carry_size, "parts": parts}
    self_test(OnnxPolicy(bundle), bundle.spec.replace(self_test=record))
    through = record | {"parts": [parts[0], parts[1] | {"reset": False}]}
    with pytest.raises(PolicyError, match="after 2 steps: element 0 of the carry is off by 1"):
        self_test(OnnxPolicy(bundle), bundle.spec.replace(self_test=through))


def test_a_difference_within_the_tolerance_passes_and_beyond_it_does_not(bundle):
    def off(by):
        record = dict(bundle.spec.self_test)
        record["actions"] = [[a + by for a in row] for row in record["actions"]]
        return bundle.spec.replace(self_test=record)

    assert self_test(OnnxPolicy(bundle), off(9e-6)) == pytest.approx(9e-6, rel=0.05)
    with pytest.raises(PolicyError, match=r"tolerance 1e-05"):
        self_test(OnnxPolicy(bundle), off(1.2e-5))


@pytest.mark.parametrize(
    "change",
    [
        {"actions": []},
        {"actions": [[0.0, 0.0]]},
        {"actions": "x"},
        {"carry": [1.0]},
        {"carry": [math.nan, 0.0]},
        {"tolerance": 1e9},  # the bundle's own word must not make its test pass
        {"tolerance": -1.0},
        {"tolerance": None},
        {"inputs": {}},
        {"inputs": None},
        {"inputs": {"joint_angles": [[0.0]]}},
        {"parts": [{"name": "start", "steps": 1, "reset": True}]},  # of two steps
        {"parts": [{"name": "start", "steps": "2", "reset": True}]},
        {"parts": [{}]},
        {"parts": None},
    ],
    ids=str,
)
def test_a_self_test_that_is_none_is_refused(bundle, change):
    spec = bundle.spec.replace(self_test=dict(bundle.spec.self_test) | change)
    with pytest.raises(PolicyError, match=r"self-test: .* export the policy again"):
        self_test(OnnxPolicy(bundle), spec)


def test_a_self_test_without_its_parts_is_refused(bundle):
    with pytest.raises(PolicyError, match="self-test: not readable"):
        self_test(OnnxPolicy(bundle), bundle.spec.replace(self_test={"steps": 3}))


@pytest.mark.parametrize(("written", "shape"), [([2, 3], (2, 3)), ([6], (6,)), (6, (6,)), ([2, 1, 3], (2, 1, 3))])
def test_a_carry_of_any_shape_is_run_as_k_scales_files_have_it(tmp_path, written, shape):
    # the carry of kscalelabs' published walking policies is an array of two layers; ours are flat
    ones = numpy_helper.from_array(np.ones(shape, np.float32), "one")
    zeros = numpy_helper.from_array(np.zeros(shape, np.float32), "zero")
    value = lambda name, s: helper.make_tensor_value_info(name, TensorProto.FLOAT, s)  # noqa: E731
    step = [
        helper.make_node("Add", ["carry", "one"], ["carry_out"]),
        helper.make_node("ReduceSum", ["carry"], ["sum"], keepdims=0),
        helper.make_node("Add", ["joint_angles", "sum"], ["action"]),
    ]
    outputs = [value("action", [2]), value("carry_out", shape)]
    graphs = {
        "init_fn.onnx": ([helper.make_node("Identity", ["zero"], ["carry"])], [], [value("carry", shape)], [zeros]),
        "step_fn.onnx": (step, [value("joint_angles", [2]), value("carry", shape)], outputs, [ones]),
    }
    told = {"joint_names": ["a", "b"], "command_names": [], "carry_size": written}
    members = {"metadata.json": json.dumps(told).encode()}
    for name, (nodes, inputs, outs, weights) in graphs.items():
        graph = helper.make_graph(nodes, "g", inputs, outs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        members[name] = model.SerializeToString()
    path = tmp_path / "theirs.kinfer"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("init_fn.onnx", "step_fn.onnx", "metadata.json"):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    bundle = read_bundle(path)
    assert bundle.carry_shape == shape and bundle.carry_size == 6
    policy = OnnxPolicy(bundle)
    angles = {"joint_angles": np.float32([0.5, -0.5])}
    assert policy.step(angles).tolist() == [0.5, -0.5] and policy.carry.shape == shape
    assert policy.step(angles).tolist() == [6.5, 5.5]
    policy.reset()
    assert not policy.carry.any()


@pytest.mark.parametrize("written", [[], [2, -1], [2, 0.5], ["2"], [1000, 1001], [1] * 9, None, {"a": 1}])
def test_a_carry_that_is_no_shape_is_refused_in_one_line(tmp_path, written, kinfer):
    with tarfile.open(kinfer) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    data = json.loads(members["metadata.json"]) | {"carry_size": written}
    members["metadata.json"] = json.dumps(data).encode()
    path = tmp_path / "p.kinfer"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BundleError, match="carry_size: got") as caught:
        read_bundle(path)
    assert "\n" not in str(caught.value)
