"""Wrong contracts made on purpose, to show that the checks that deployment runs refuse each of them.

Two families. In the graph: the step graph is changed by ONNX surgery and the bundle is otherwise left as it is; the
checks are those of `ksim run` when it loads a bundle. On the robot: recorded starts of episodes are changed as a
robot with that fault would report them; the checks are those of `ksim run` before the policy's first step.

Joints whose home is the same cannot be told apart by what is measured at home, nor can joints that the policy holds
at one angle be told apart in the graph: there nothing is wrong that could be seen, and a probe says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploy.bundle.envelope import SLACK, SPAN_SHARE, Envelope
from deploy.bundle.session import OnnxPolicy, self_test
from deploy.robot.safety import Limits, check_start
from deploy.robot.state import RobotState
from export import graph
from export.compare import Onnx
from robots.bundle import Bundle
from robots.inputs import (
    ACCELEROMETER,
    ANGLE_INPUTS,
    GRAVITY_INPUT,
    GYROSCOPE,
    JOINT_ANGLES,
    JOINT_INPUTS,
    JOINT_VELOCITIES,
)
from robots.rotation import GRAVITY_M_S2, from_up, normalise
from robots.spec import PolicySpec
from toolkit.errors import ToolkitError

SELF_TEST, ENVELOPE, STATE, GRAPH_CHECK = "self-test", "envelope", "state check", "graph check"
Change = Callable[[onnx.ModelProto], None]
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One wrong contract.

    Attributes:
        contract: which of the four: permuted joints, degrees for radians, inverted gravity, stale carry; or "none":
            nothing was changed, so that what is refused is a false alarm.
        probe: what exactly was done.
        where: "graph", "host" or "robot".
        tried: how many wrong bundles, or starts of episodes, there were.
        different: how many of them differ from the right one in anything that could be seen.
        caught: how many were refused.
        by: how many each check refused; one start may be refused by several.
        example: what one of them was told.
    """

    contract: str
    probe: str
    where: str
    tried: int
    different: int
    caught: int
    by: dict[str, int]
    example: str

    @property
    def passed(self) -> bool:
        """Whatever could be seen was refused."""
        return self.caught == self.different

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "passed": self.passed}


# The surgery.


def _before(model: onnx.ModelProto, name: str, op: str, constant: np.ndarray | None = None) -> None:
    """Every node that read the input `name` reads `op` of it."""
    names = [name] if constant is None else [name, _constant(model, constant, f"probe_{name}")]
    wrong = f"probe_{name}_out"
    for node in graph.nodes(model.graph):
        node.input[:] = [wrong if i == name else i for i in node.input]
    model.graph.node.insert(0, helper.make_node(op, names, [wrong], name=f"probe_{name}_node"))


def _after(model: onnx.ModelProto, op: str, constant: np.ndarray) -> None:
    """The action becomes `op` of it; inside, the carry's own record of it stays as it was."""
    action, right = model.graph.output[0].name, "probe_action_in"
    for node in graph.nodes(model.graph):
        node.input[:] = [right if i == action else i for i in node.input]
        node.output[:] = [right if o == action else o for o in node.output]
    name = _constant(model, constant, "probe_action")
    model.graph.node.append(helper.make_node(op, [right, name], [action], name="probe_action_node"))


def _constant(model: onnx.ModelProto, value: np.ndarray, name: str) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _declared(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    there = {i.name for i in model.graph.input}
    return [name for name in names if name in there]


def permute(order: Sequence[int]) -> Change:
    """A graph that has its joints in another order: what it calls joint i is joint order[i] of the bundle."""
    index = np.asarray(order, np.int64)

    def change(model: onnx.ModelProto) -> None:
        for name in _declared(model, JOINT_INPUTS):
            _before(model, name, "Gather", index)
        _after(model, "Gather", np.argsort(index))

    return change


def degrees(model: onnx.ModelProto) -> None:
    """A graph that reads and gives degrees where the bundle says radians."""
    for name in _declared(model, ANGLE_INPUTS):
        _before(model, name, "Mul", np.array([np.pi / 180], np.float32))
    _after(model, "Mul", np.array([180 / np.pi], np.float32))


def inverted_gravity(model: onnx.ModelProto) -> None:
    """A graph in whose frame gravity points up."""
    for name in _declared(model, (GRAVITY_INPUT,)):
        _before(model, name, "Neg")


def stale_carry(model: onnx.ModelProto) -> None:
    """A graph that gives back the carry that it was given."""
    out = model.graph.output[1].name
    for node in graph.nodes(model.graph):
        node.input[:] = ["probe_carry" if i == out else i for i in node.input]
        node.output[:] = ["probe_carry" if o == out else o for o in node.output]
    model.graph.node.append(helper.make_node("Identity", [graph.CARRY], [out], name="probe_carry_node"))


def changed(bundle: Bundle, change: Change) -> Bundle:
    """The bundle with its step graph changed, and nothing else."""
    model = onnx.load_model_from_string(bundle.step_fn)
    del model.graph.value_info[:]
    change(model)
    return dataclasses.replace(bundle, step_fn=model.SerializeToString(deterministic=True))


class Forgetful(OnnxPolicy):
    """A host that gives every step the first carry."""

    def step(self, inputs: Mapping[str, np.ndarray], *, check_finite: bool = True) -> np.ndarray:
        """One control step; the carry does not go on."""
        action = super().step(inputs, check_finite=check_finite)
        self.reset()
        return action


# In the graph and in the host.


def orders(spec: PolicySpec) -> dict[str, list[list[int]]]:
    """Permutations of the joints by kind: reversed, left and right swapped by name, each adjacent pair swapped."""
    names = spec.robot.joint_names
    n = len(names)
    found: dict[str, list[list[int]]] = {"reversed order": [list(range(n))[::-1]]} if n > 1 else {}
    mirrored = [_mirror(name) for name in names]
    if any(a != b and b in names for a, b in zip(names, mirrored, strict=True)):
        found["left and right swapped"] = [[names.index(m) if m in names else i for i, m in enumerate(mirrored)]]
    pairs = []
    for i in range(n - 1):
        order = list(range(n))
        order[i], order[i + 1] = i + 1, i
        pairs.append(order)
    return found | (
        {"adjacent joints swapped, each pair" if len(pairs) > 1 else "two joints swapped": pairs} if n > 2 else {}
    )


def _mirror(name: str) -> str:
    for a, b in (("left", "right"), ("right", "left")):
        if a in name:
            return name.replace(a, b)
    return name


def _refused(bundle: Bundle, kind: type[OnnxPolicy] = OnnxPolicy) -> tuple[str, str]:
    """(the check that refuses a bundle, what it says), as `ksim run` loads it; empty where none does."""
    assert bundle.spec is not None
    try:
        policy = kind(bundle)
    except ToolkitError as error:
        return GRAPH_CHECK, str(error)
    try:
        self_test(policy, bundle.spec)
    except ToolkitError as error:
        return SELF_TEST, str(error)
    return "", ""


def _differs(right: Onnx, wrong: Bundle | None, inputs: Inputs, resets: np.ndarray, tolerance: float) -> bool:
    """Whether a wrong bundle, or a host that forgets (None), gives another action or carry on these inputs.

    By more than the self-test's tolerance: a policy that is linear in its angles gives the same in degrees but for
    the rounding, and then nothing is wrong.
    """
    expected = right.run(inputs, resets)
    if wrong is None:
        got = right.run(inputs, np.ones(len(resets), bool))
    else:
        try:
            got = Onnx(wrong).run(inputs, resets)
        except Exception:  # a graph that cannot be run is another graph
            return True
    pairs = ((got.actions, expected.actions), (got.carries, expected.carries))
    return not all(np.allclose(a, b, rtol=0.0, atol=tolerance) for a, b in pairs)


def _in_graph(
    bundle: Bundle, contract: str, what: str, wrong: Sequence[Bundle | None], inputs: Inputs, resets: np.ndarray
) -> Probe:
    assert bundle.spec is not None
    tolerance = float(bundle.spec.self_test.get("tolerance", 0.0))
    right, by, example, different, caught = Onnx(bundle), {}, "", 0, 0
    for each in wrong:
        if not _differs(right, each, inputs, resets, tolerance):
            continue
        different += 1
        check, said = _refused(bundle, Forgetful) if each is None else _refused(each)
        if check:
            caught += 1
            by[check] = by.get(check, 0) + 1
            example = example or said
    host = None in wrong
    return Probe(
        contract=contract,
        probe=what,
        where="host" if host else "graph",
        tried=len(wrong),
        different=different,
        caught=caught,
        by=by,
        example=example,
    )


def graph_probes(bundle: Bundle, inputs: Inputs, resets: np.ndarray) -> list[Probe]:
    """The four wrong contracts in the graph, and the carry forgotten by the host.

    Args:
        bundle: with its self-test.
        inputs: by name, each (T, k), that show whether a change of the graph changes anything.
        resets: where the carry starts anew, (T,).
    """
    assert bundle.spec is not None
    found = [
        _in_graph(bundle, "permuted joints", kind, [changed(bundle, permute(o)) for o in some], inputs, resets)
        for kind, some in orders(bundle.spec).items()
    ]
    for contract, what, change in (
        ("degrees for radians", "the graph reads and gives degrees", degrees),
        ("inverted gravity", "gravity points up in the graph's frame", inverted_gravity),
        ("stale carry", "the graph gives back the carry that it was given", stale_carry),
    ):
        found.append(_in_graph(bundle, contract, what, [changed(bundle, change)], inputs, resets))
    found.append(_in_graph(bundle, "stale carry", "the host never feeds the carry back", [None], inputs, resets))
    return found


# On the robot.


def _state(row: Inputs, spec: PolicySpec) -> RobotState:
    """A reading of a robot that gives these inputs: gravity as an orientation, what is not given as at rest."""
    n = len(spec.robot.joints)
    up = -normalise(np.asarray(row.get(GRAVITY_INPUT, [0.0, 0.0, -GRAVITY_M_S2]), np.float64))
    return RobotState(
        joint_position=np.asarray(row.get(JOINT_ANGLES, spec.robot.column("home_rad")), np.float64),
        joint_velocity=np.asarray(row.get(JOINT_VELOCITIES, np.zeros(n)), np.float64),
        joint_torque=np.zeros(n),
        quat_wxyz=from_up(up),
        gyro_b=np.asarray(row.get(GYROSCOPE, np.zeros(3)), np.float64),
        accel_b=np.asarray(row.get(ACCELEROMETER, GRAVITY_M_S2 * up), np.float64),
        time_s=0.0,
        round_trip_s=0.0,
    )


def refusals(row: Inputs, spec: PolicySpec) -> dict[str, str]:
    """What each of deployment's checks before the policy's first step says against these inputs; none: empty."""
    said = {
        ENVELOPE: Envelope.from_spec(spec).outside(row),
        STATE: check_start(_state(row, spec), Limits.from_spec(spec)),
    }
    return {check: str(found[0]) for check, found in said.items() if found}


def _turned(order: Sequence[int]) -> Callable[[Inputs], Inputs]:
    return lambda row: {k: v[list(order)] if k in JOINT_INPUTS else v for k, v in row.items()}


def _in_degrees(row: Inputs) -> Inputs:
    return {k: np.degrees(v) if k in ANGLE_INPUTS else v for k, v in row.items()}


def _upside_down(row: Inputs) -> Inputs:
    return {k: -v if k == GRAVITY_INPUT else v for k, v in row.items()}


def _seen_at_home(spec: PolicySpec, change: Callable[[Inputs], Inputs]) -> bool:
    """Whether a change can be told at home: a joint then reads what lies beyond its margin."""
    home = np.asarray(spec.robot.column("home_rad"))
    span = spec.envelope.get(JOINT_ANGLES)
    if span is None:
        return False
    low, high = np.asarray(span["low"]), np.asarray(span["high"])
    margin = SPAN_SHARE * (high - low) + SLACK[JOINT_ANGLES]
    # a start is not home to the bit: what lies within a tenth of a radian of the margin may go either way
    there = change({JOINT_ANGLES: home})[JOINT_ANGLES]
    return bool(np.any((there < low - margin - 0.1) | (there > high + margin + 0.1)))


def robot_probes(bundle: Bundle, starts: Sequence[Inputs]) -> list[Probe]:
    """The wrong contracts as a robot would report them.

    Args:
        bundle: with its envelope.
        starts: inputs at the starts of episodes, by name, each (k,).
    """
    spec = bundle.spec
    assert spec is not None
    names = {a.name for a in spec.inputs}
    starts = [{k: v for k, v in row.items() if k in names} for row in starts]

    def probe(contract: str, what: str, changes: Sequence[tuple[Callable[[Inputs], Inputs], bool]]) -> Probe:
        by, example, caught, different = {}, "", 0, 0
        for change, seen in changes:
            for row in starts:
                said = refusals(change(row), spec)
                different += seen
                caught += bool(said) and seen
                for check in said:
                    by[check] = by.get(check, 0) + 1
                example = example or next(iter(said.values()), "")
        return Probe(
            contract=contract,
            probe=what,
            where="robot",
            tried=len(changes) * len(starts),
            different=different,
            caught=caught,
            by=by,
            example=example,
        )

    found = [probe("none", "the recorded starts as they are", [(lambda row: row, False)])]
    found += [
        probe("permuted joints", kind, [(_turned(o), _seen_at_home(spec, _turned(o))) for o in some])
        for kind, some in orders(spec).items()
        if JOINT_ANGLES in names
    ]
    if JOINT_ANGLES in names:
        found.append(
            probe("degrees for radians", "the robot reports degrees", [(_in_degrees, _seen_at_home(spec, _in_degrees))])
        )
    if GRAVITY_INPUT in names:
        found.append(probe("inverted gravity", "the IMU is mounted upside down", [(_upside_down, True)]))
    return found
