"""`export.prove`: a policy that was trained elsewhere, proven on inputs that its owner recorded."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deploy.bundle.session import OnnxPolicy, self_test
from deploy.errors import PolicyError
from export import ExportError, convert, probes, prove
from export.recording import Recording
from robots import CommandSpec, JointSpec, PolicySpec, RobotSpec
from robots.spec import input_specs

N, HIDDEN = 3, 4
FIRST = {"h": np.zeros(HIDDEN, np.float32)}


def arm(home=(0.2, -0.5, 0.8)):
    joints = tuple(
        JointSpec(
            name=f"joint_{i}", id=i + 1, kp=40.0, kd=1.5, torque_limit_nm=12.0, torque_max_nm=17.0,
            velocity_max_rad_s=18.0, armature=0.008, friction_nm=0.1, damping=0.0, lower_rad=-1.5, upper_rad=1.5,
            home_rad=h, actuator_type="servo",
        )
        for i, h in enumerate(home)
    )  # fmt: skip
    return RobotSpec(name="arm", joints=joints, control_period_s=0.02)


def spec_of(robot):
    commands = (CommandSpec(name="reach", low=-1.0, high=1.0, unit="m"),)
    known = input_specs(robot, commands)
    return PolicySpec(
        task="reach", robot=robot, inputs=tuple(known[n] for n in ("joint_angles", "projected_gravity", "command")),
        commands=commands, carry_size=0, control_period_s=0.02, action_low_rad=(-1.5,) * N, action_high_rad=(1.5,) * N,
    )  # fmt: skip


def policy(scale=1.0):
    rng = np.random.default_rng(1)
    into, out = (np.float32(rng.normal(0, 0.4, shape)) for shape in ((N + 3 + 1 + HIDDEN, HIDDEN), (HIDDEN, N)))

    def step(inputs, carry):
        seen = [inputs["joint_angles"], inputs["projected_gravity"] / 9.81, inputs["command"], carry["h"]]
        h = jnp.tanh(jnp.concatenate(seen) @ (scale * into))
        return jnp.clip(h @ out, -1.5, 1.5), {"h": h}

    return step


def recorded(robot, lengths=(30, 7, 50)):
    rng = np.random.default_rng(0)
    home = np.asarray(robot.column("home_rad"))
    return [
        {
            "joint_angles": home + rng.uniform(-0.1, 0.1, (t, N)),
            "projected_gravity": np.array([0.0, 0.0, -9.81]) + rng.normal(0.0, 0.1, (t, 3)),
            "command": rng.uniform(-1, 1, (t, 1)),
            "not read": np.zeros((t, 2)),
        }
        for t in lengths
    ]


@pytest.fixture(scope="module")
def robot():
    return arm()


@pytest.fixture(scope="module")
def bundle(robot):
    return convert(policy(), FIRST, spec_of(robot))


@pytest.fixture(scope="module")
def proven(bundle, robot):
    said: list[str] = []
    return prove(bundle, policy(), FIRST, recorded(robot), steps=300, log=said.append), said


def test_it_is_proven_but_for_the_closed_loop_and_says_so(proven, bundle, robot):
    whole, said = proven
    spec = whole.spec
    assert said == ["drawn and extreme inputs: 300 steps each", "recorded inputs: 300 steps", "wrong contracts"]
    assert spec.validated and spec.proofs["failures"] == [] and spec.proofs["closed_loop"] == {}
    assert spec.proofs["recording"] == {"episodes": 3, "steps": 87}
    assert spec.reduced().startswith("87 steps in place of 10,000, and numbers alone")
    numbers = spec.proofs["numbers"]
    assert 0.0 < numbers["recorded"]["action_error"] < 1e-5 and numbers["recorded"]["resets"] > 300 * 3 / 87 - 2
    assert all(p["passed"] for p in spec.proofs["probes"])
    told = {p["contract"]: p["different"] for p in spec.proofs["probes"] if p["where"] == "robot"}
    assert told["degrees for radians"] == told["inverted gravity"] == 3 and told["permuted joints"] > 0
    # the envelope holds the whole recording
    rows = np.concatenate([e["joint_angles"] for e in recorded(robot)]).astype(np.float32)
    np.testing.assert_array_equal(np.float32(spec.envelope["joint_angles"]["low"]), rows.min(axis=0))
    np.testing.assert_array_equal(np.float32(spec.envelope["joint_angles"]["high"]), rows.max(axis=0))
    assert "command" not in spec.envelope
    # the graphs are those of convert, and what the robot checks again is there
    assert (whole.step_fn, whole.init_fn) == (bundle.step_fn, bundle.init_fn)
    self_test(OnnxPolicy(whole), spec)
    broken = {**spec.self_test, "actions": [[0.0] * N for _ in spec.self_test["actions"]]}
    with pytest.raises(PolicyError, match="self-test, step 0"):
        self_test(OnnxPolicy(whole), spec.replace(self_test=broken))


def test_the_same_recording_gives_the_same_bytes(proven, bundle, robot):
    again = prove(bundle, policy(), FIRST, recorded(robot), steps=300)
    assert again.digest == proven[0].digest


@pytest.mark.parametrize(
    ("step", "first", "why"),
    [
        (policy(1.001), FIRST, "drawn inputs, step"),
        (policy(), {"h": np.full(HIDDEN, 1e-7, np.float32)}, "init_fn against the JAX initial carry"),
        (policy(), {"h": np.zeros(HIDDEN + 1, np.float32)}, "got 5 elements, expected 4"),
    ],
)
def test_another_function_is_refused(bundle, robot, step, first, why):
    with pytest.raises(ExportError, match=why):
        prove(bundle, step, first, recorded(robot), steps=50)


def test_a_recording_that_does_not_fit_is_one_line(bundle, robot):
    good = recorded(robot, (5,))[0]
    short = {**good, "command": good["command"][:3]}
    for episodes, why in (
        ([], "got an empty list, expected a list"),
        (good, "got a dict, expected a list"),
        (iter([good]), "got a list_iterator, expected a list"),
        ([good, None], "episode 1: got NoneType"),
        ([{}], "episode 0: got nothing; expected a dict with arrays of joint_angles, projected_gravity, command"),
        ([{**good, "command": good["command"][:, 0]}], r"episode 0, command: got shape \(5,\), expected \(T, 1\)"),
        ([{**good, "joint_angles": good["joint_angles"] * np.nan}], "episode 0, joint_angles.*all finite"),
        ([{**good, "joint_angles": "angles"}], "episode 0, joint_angles"),
        ([{k: v[:0] for k, v in good.items()}], "T at least 1"),
        ([short], "different lengths"),
        (
            [{**good, "joint_angles": np.degrees(good["joint_angles"])}],
            r"episode 0, joint_angles, step \d, element \d: got .* rad, declared -1.7 to 1.7; record in SI",
        ),
        ([{**good, "command": np.full((5, 1), 1.001)}], "episode 0, command, step 0, element 0: got 1.001, declared"),
        ([{**good, "projected_gravity": good["projected_gravity"] / 9.81}], "vectors of length 1, expected about 9.8"),
        (
            [{**good, "projected_gravity": -good["projected_gravity"]}],
            "ksim run would refuse the start of each: tilt 3.1",
        ),
    ):
        with pytest.raises(ExportError, match=why) as caught:
            prove(bundle, policy(), FIRST, episodes, steps=50)
        assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="steps: got 0"):
        prove(bundle, policy(), FIRST, [good], steps=0)
    with pytest.raises(ExportError, match="no ksim2real entry"):
        prove(dataclasses.replace(bundle, spec=None), policy(), FIRST, [good])
    with pytest.raises(ExportError, match=r"expected what export\.convert returns"):
        prove("policy.kinfer", policy(), FIRST, [good])


def test_degrees_at_a_home_of_zeros_cannot_be_told_and_are_not_asked_for():
    robot = arm((0.0, 0.0, 0.0))
    whole = prove(convert(policy(), FIRST, spec_of(robot)), policy(), FIRST, recorded(robot), steps=50)
    found = {(p["contract"], p["where"]): p for p in whole.spec.proofs["probes"]}
    assert found["degrees for radians", "robot"]["different"] == 0
    assert found["degrees for radians", "graph"]["caught"] == 1
    starts = Recording.of_episodes(whole.spec, recorded(robot)).first_rows(2)
    assert len(starts) == 2 and probes.refusals(starts[0], whole.spec) == {}


def test_a_policy_that_reads_nothing_has_nothing_to_be_proven_on(robot):
    def step(inputs, carry):
        return 0.9 * carry, 0.9 * carry

    first = np.ones(N, np.float32)
    with pytest.raises(ExportError, match="reads no input"):
        prove(convert(step, first, spec_of(robot)), step, first, recorded(robot), steps=50)


def test_a_policy_that_is_linear_in_its_angles_is_the_same_in_degrees(robot):
    def step(inputs, carry):
        return 0.5 * inputs["joint_angles"], carry

    bundle = convert(step, (), spec_of(robot))
    whole = prove(bundle, step, (), recorded(robot), steps=50)
    found = {(p["contract"], p["where"]): p for p in whole.spec.proofs["probes"]}
    assert found["degrees for radians", "graph"]["different"] == 0
    # and whole numbers are numbers, but these are not a robot at home
    with pytest.raises(ExportError, match=r"joint_angles of joint_0: 0.2 rad at home, 1 to 1 rad in the recording"):
        prove(bundle, step, (), [{"joint_angles": np.ones((50, N), int)}], steps=50)
