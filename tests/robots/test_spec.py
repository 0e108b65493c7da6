"""Specifications refuse what cannot be true, and travel through JSON without loss."""

from __future__ import annotations

import dataclasses
import json
import math
import tarfile
import zipfile
from pathlib import Path

import pytest

from robots.errors import SpecError
from robots.load import load_robot
from robots.spec import (
    ArraySpec,
    CarrySpec,
    CommandSpec,
    JointSpec,
    PolicySpec,
    RobotSpec,
    canonical_json,
    digest,
    input_specs,
)
from toolkit.errors import ToolkitError
from toolkit.files import shipped_policy

# what the first version of this toolkit shipped
FIRST = Path(__file__).parents[1] / "first_version"

JOINT = JointSpec(
    name="knee",
    id=7,
    kp=0.1 + 0.2,
    kd=1 / 3,
    torque_limit_nm=11.9,
    torque_max_nm=17.0,
    velocity_max_rad_s=37.699,
    armature=0.0042,
    friction_nm=0.1,
    damping=0.0,
    lower_rad=-1.0471975511965976,
    upper_rad=2.216568,
    home_rad=0.3490658503988659,
    actuator_type="rs02",
)
ROBOT = RobotSpec(
    name="leg",
    joints=(JOINT, JOINT.replace(name="hip", id=8)),
    mass_kg=36.3436,
    imu_site="imu",
    foot_sites=("left", "right"),
    source="ab",
)
COMMANDS = (CommandSpec(name="vx", low=-0.5, high=1.0, unit="m/s"), CommandSpec(name="yaw", low=-1.0, high=1.0))
POLICY = PolicySpec(
    task="stand",
    robot=ROBOT,
    inputs=tuple(input_specs(ROBOT, COMMANDS).values()),
    commands=COMMANDS,
    carry_size=512,
    control_period_s=0.02,
    action_low_rad=(-1.0, -1.1),
    action_high_rad=(1.0, 1.1),
    observation_latency_s=(0.0, 0.04),
    versions={"jax": "0.9.2"},
    proofs={"onnx_error_max": 3.2e-7},
)


@pytest.mark.parametrize("spec", [JOINT, ROBOT, *COMMANDS, *POLICY.inputs, POLICY], ids=lambda s: type(s).__name__)
def test_json_round_trip_is_lossless_and_keeps_the_digest(spec):
    text = canonical_json(spec.to_json())
    back = type(spec).from_json(json.loads(text))
    assert back == spec
    assert back.digest == spec.digest
    assert canonical_json(back.to_json()) == text


def test_the_kbot_round_trips():
    robot = load_robot("kbot")
    assert RobotSpec.from_json(json.loads(json.dumps(robot.to_json()))) == robot


def test_every_bit_of_a_number_changes_the_digest():
    assert JOINT.replace(kp=math.nextafter(JOINT.kp, 1)).digest != JOINT.digest


def test_the_digest_is_the_same_in_every_process_and_version():
    assert digest({"b": 1.5, "a": [0.1, "ü"]}) == "503306bb5af751025664ea59d116ad3bf8caccb0d6eefd2a75f4e4b933bf74f6"
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_integers_for_floats_give_the_same_spec_and_digest():
    assert JOINT.replace(kp=2) == JOINT.replace(kp=2.0)
    assert JOINT.replace(kp=2).digest == JOINT.replace(kp=2.0).digest
    assert ROBOT.replace(mass_kg=36).digest == ROBOT.replace(mass_kg=36.0).digest
    assert COMMANDS[0].replace(low=-1).digest == COMMANDS[0].replace(low=-1.0).digest
    assert POLICY.replace(action_low_rad=(-1, -1)).digest == POLICY.replace(action_low_rad=(-1.0, -1.0)).digest


def test_infinite_bounds_survive_json():
    spec = ArraySpec(name="time", shape=(1,), unit="s", low=(0.0,))
    assert spec.to_json()["high"] == [None]
    assert ArraySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.high == (math.inf,)


def test_specs_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        JOINT.kp = 3.0  # type: ignore[misc]


def test_columns_and_joints_by_name():
    assert ROBOT.column("kp") == [JOINT.kp, JOINT.kp]
    assert (ROBOT.joint_names, ROBOT.joint_ids) == (("knee", "hip"), (7, 8))
    assert ROBOT.joint("hip").id == 8
    with pytest.raises(SpecError, match="robot leg: no joint 'toe'; it has knee, hip"):
        ROBOT.joint("toe")


def test_input_specs_have_the_shapes_and_ranges_of_the_robot():
    specs = input_specs(ROBOT, COMMANDS)
    assert specs["joint_angles"].shape == (2,)
    assert specs["joint_angles"].low == (JOINT.lower_rad - 0.2,) * 2
    assert specs["joint_angular_velocities"].high == (1.5 * 37.699,) * 2
    assert specs["command"].low == (-0.5, -1.0)
    assert "command" not in input_specs(ROBOT, ())


BAD = {
    "empty name": (lambda: JOINT.replace(name=""), "joint: name: got ''"),
    "negative id": (lambda: JOINT.replace(id=-1), "joint knee: id: got -1"),
    "true for an id": (lambda: JOINT.replace(id=True), "joint knee: id: got True"),
    "half an id": (lambda: JOINT.replace(id=1.5), "joint knee: id: got 1.5"),
    "nan": (lambda: JOINT.replace(kp=math.nan), "joint knee: kp: got nan, expected a number"),
    "infinity": (lambda: JOINT.replace(upper_rad=math.inf), "joint knee: upper_rad: got inf"),
    "text": (lambda: JOINT.replace(kd="3"), "joint knee: kd: got '3'"),
    "true": (lambda: JOINT.replace(kd=True), "joint knee: kd: got True"),
    "negative damping": (lambda: JOINT.replace(damping=-0.1), "joint knee: damping: got -0.1, expected 0 to 10000"),
    "no torque": (lambda: JOINT.replace(torque_limit_nm=0.0), "torque_limit_nm: got 0.0, expected more than 0"),
    "limit above the motor": (lambda: JOINT.replace(torque_limit_nm=18), r"at most torque_max_nm \(17.0\)"),
    "no speed": (lambda: JOINT.replace(velocity_max_rad_s=0), "velocity_max_rad_s: got 0.0"),
    "limits crossed": (lambda: JOINT.replace(lower_rad=3.0), "lower_rad and upper_rad: got"),
    "home outside": (lambda: JOINT.replace(home_rad=3.0), r"home_rad: got 3.0, expected within the limits \["),
    "no joints": (lambda: ROBOT.replace(joints=()), "robot leg: joints: got"),
    "names twice": (lambda: ROBOT.replace(joints=(JOINT, JOINT)), r"joint names: got \['knee'\], expected each once"),
    "ids twice": (lambda: ROBOT.replace(joints=(JOINT, JOINT.replace(name="a"))), r"joint ids: got \[7\]"),
    "no period": (lambda: ROBOT.replace(control_period_s=0), "control_period_s: got 0"),
    "long period": (lambda: ROBOT.replace(control_period_s=2.0), "control_period_s: got 2.0"),
    "negative mass": (lambda: ROBOT.replace(mass_kg=-1.0), "mass_kg: got -1.0"),
    "text for mass": (lambda: ROBOT.replace(mass_kg="heavy"), "mass_kg: got 'heavy'"),
    "zero size": (lambda: ArraySpec(name="a", shape=(0,), unit="m"), "array a: shape: got"),
    "true for a size": (lambda: ArraySpec(name="a", shape=(True,), unit="m"), r"array a: shape\[0\]: got True"),
    "bounds of another size": (
        lambda: ArraySpec(name="a", shape=(3,), unit="m", low=(0.0, 0.0)),
        "array a: low: got 2, expected 1 or 3 numbers",
    ),
    "bounds crossed": (lambda: ArraySpec(name="a", shape=(1,), unit="m", low=(2.0,), high=(1.0,)), "array a: low: got"),
    "nan for a bound": (lambda: ArraySpec(name="a", shape=(1,), unit="m", low=(math.nan,)), "array a: low: got"),
    "text for a bound": (lambda: ArraySpec(name="a", shape=(1,), unit="m", low=("x",)), "array a: low: got"),
    "command range crossed": (lambda: CommandSpec(name="vx", low=1.0, high=0.0), "command vx: low: got 1.0"),
    "command range open": (lambda: CommandSpec(name="vx", low=0.0, high=math.inf), "command vx: high: got inf"),
    "negative carry": (lambda: POLICY.replace(carry_size=-1), "carry_size: got -1"),
    "true for a carry": (lambda: POLICY.replace(carry_size=True), "carry_size: got True"),
    "actions short": (
        lambda: POLICY.replace(action_low_rad=(0.0,)),
        "action_low_rad: got '1 numbers', expected one for",
    ),
    "action nan": (lambda: POLICY.replace(action_high_rad=(0.0, math.nan)), r"action_high_rad\[1\]: got nan"),
    "actions crossed": (lambda: POLICY.replace(action_low_rad=(2.0, 0.0)), "action_low_rad: got"),
    "inputs twice": (lambda: POLICY.replace(inputs=POLICY.inputs + POLICY.inputs[:1]), "inputs: got"),
    "command of another size": (lambda: POLICY.replace(commands=COMMANDS[:1]), r"input command: shape: got \[2\]"),
    "commands twice": (lambda: POLICY.replace(commands=(COMMANDS[0],) * 2), "commands: got"),
    "latency crossed": (lambda: POLICY.replace(action_latency_s=(0.2, 0.1)), "action_latency_s: got"),
    "negative latency": (lambda: POLICY.replace(observation_latency_s=(-0.1, 0.1)), "observation_latency_s: got"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_true_is_refused_by_name(case):
    make, message = BAD[case]
    with pytest.raises(SpecError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ToolkitError)


def mutate(path, value):
    data = json.loads(json.dumps(POLICY.to_json()))
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return data


BAD_JSON = {
    "a list": ([], "PolicySpec: got 'list', expected a JSON object"),
    "an unknown key": (mutate(["speed"], 3), "'speed' is unknown; known keys: task, robot"),
    "an unknown key inside": (mutate(["robot", "legs"], 2), "'robot.legs' is unknown; known keys: name, joints"),
    "a joint that is a number": (mutate(["robot", "joints", 0], 5), r"robot\.joints\[0\]: got 5, expected a mapping"),
    "joints that are one joint": (
        mutate(["robot", "joints"], JOINT.to_json()),
        r"robot\.joints: got .* expected a list",
    ),
    "a robot that is a list": (mutate(["robot"], []), r"robot: got \[\], expected a mapping"),
    "a robot that is null": (mutate(["robot"], None), "robot: got None, expected a mapping"),
    "actions that are text": (mutate(["action_low_rad"], "ab"), "action_low_rad: got"),
    "actions that are a number": (mutate(["action_low_rad"], 3), "action_low_rad: got 3"),
    "text among the latencies": (mutate(["action_latency_s"], ["a", 1]), r"action_latency_s\[0\]: got 'a'"),
    "a task that is a number": (mutate(["task"], 4), "task: got 4, expected a string"),
    "versions that are a list": (mutate(["versions"], [1]), "versions: got"),
    "shape with text": (
        mutate(["inputs", 0, "shape"], ["2"]),
        r"inputs\[0\]\.shape\[0\]: got '2'",
    ),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_of_another_kind_is_refused(case):
    data, message = BAD_JSON[case]
    with pytest.raises(SpecError, match=message):
        PolicySpec.from_json(data)


def test_a_missing_key_is_named():
    data = POLICY.to_json()
    del data["carry_size"]
    with pytest.raises(SpecError, match="carry_size: is missing, expected an integer"):
        PolicySpec.from_json(data)


def test_a_carry_layout_must_add_up_to_the_carry():
    n = POLICY.carry_size
    laid_out = POLICY.replace(carry_layout=(CarrySpec(name="h", shape=(n,)),))
    assert PolicySpec.from_json(laid_out.to_json()) == laid_out
    with pytest.raises(SpecError, match="carry_layout"):
        POLICY.replace(carry_layout=(CarrySpec(name="h", shape=(n + 1,)),))


def test_a_failed_or_missing_proof_is_not_validated():
    bare = POLICY.replace(proofs={})
    assert not bare.validated
    assert bare.replace(proofs={"error_max": 0.0}).validated
    assert not bare.replace(proofs={"error_max": 1.0, "failures": ["error"]}).validated


@pytest.mark.parametrize("bundle", [shipped_policy("stand", ".kinfer"), FIRST / "kbot_stand.kinfer"])
def test_a_shipped_bundle_says_again_byte_for_byte_what_it_was_read_from(bundle):
    with tarfile.open(bundle) as archive:
        member = archive.extractfile("metadata.json")
        assert member is not None
        stamped = json.loads(member.read())["ksim2real"]
    spec = PolicySpec.from_json(stamped)
    assert canonical_json(spec.to_json()) == canonical_json(stamped)
    fields = [f.name for f in dataclasses.fields(PolicySpec) if f.name != "margins" or spec.margins is not None]
    assert list(spec.to_json()) == fields
    assert spec.digest == digest(stamped) and spec.robot.digest == digest(stamped["robot"])


@pytest.mark.parametrize("path", [shipped_policy("stand", ".ckpt"), FIRST / "kbot_stand.ckpt"])
def test_the_robot_of_a_shipped_checkpoint_keeps_its_bytes_and_its_digest(path):
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("meta.json"))
    robot = RobotSpec.from_json(meta["robot"])
    assert canonical_json(robot.to_json()) == canonical_json(meta["robot"])
    assert robot.digest == digest(meta["robot"])
