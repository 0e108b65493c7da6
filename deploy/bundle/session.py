"""The policy on the robot's computer: two ONNX graphs, their carry, and the inputs that they declare.

Everything that is done to an input or an action is inside the graph; here raw values in SI go in and
target angles come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from deploy.bundle.graph import CARRY, known_inputs, read_graphs
from deploy.errors import PolicyError
from deploy.robot.state import RobotState
from robots.bundle import Bundle
from robots.inputs import BY_NAME
from robots.spec import CommandSpec, PolicySpec, RobotSpec, input_specs

# a command whose range the bundle does not tell
UNKNOWN_RANGE = 1e6
# Bounds of what a bundle may ask of the self-test: its own word must not make the test pass, or last.
SELF_TEST_TOLERANCE_MAX = 1e-3
SELF_TEST_STEPS_MAX = 1000


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _session(what: str, model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # one thread: a policy is small, and a pool of threads costs jitter
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime has no common root
        raise PolicyError(
            f"{what}: not a model that ONNX Runtime {ort.__version__} loads ({_one_line(error)})"
        ) from error


class OnnxPolicy:
    """A bundle's policy with its carry.

    Args:
        bundle: the bundle; its own specification, where it has one, must agree with the graphs.

    Attributes:
        facts: what init_fn and step_fn are.
        inputs: names that `step` wants, in the graph's order, without the carry.
        shapes: of every input that a policy of this robot may have, by name.
        carry: the carry before the next step, float32, of the bundle's `carry_shape`.

    Raises:
        PolicyError: the graphs are not what the bundle says.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.facts = read_graphs(bundle)
        self._init = _session("init_fn.onnx", bundle.init_fn)
        self._step = _session("step_fn.onnx", bundle.step_fn)
        self._n = len(bundle.joint_names)
        self._carry_shape = bundle.carry_shape
        self.shapes = known_inputs(self._n, len(bundle.command_names), bundle.carry_shape)
        self._check_graphs(bundle)
        declared = [i.name for i in self._step.get_inputs()]
        self._takes_carry = CARRY in declared
        self.inputs = tuple(name for name in declared if name != CARRY)
        self._bind()
        first = self._run("init_fn.onnx", self._init, [self._init.get_outputs()[0].name], {})[0]
        self._start = self._checked("init_fn.onnx: the carry", first, self._carry_shape)
        self.carry = self._start
        # the first call of a session allocates; it also shows what the output's shapes are
        self.step({name: np.zeros(self.shapes[name], dtype=np.float32) for name in self.inputs}, check_finite=False)
        self.reset()

    def _bind(self) -> None:
        """Buffers of our own for every input and output, known to ONNX Runtime once: handing over arrays by name at
        each step costs as much as the arithmetic of a small policy (benchmarks/inference.py).
        """
        self._binding, self._buffers = self._step.io_binding(), {}
        for value in self._step.get_inputs():
            buffer = self._buffers[value.name] = np.zeros(self.shapes[value.name], np.float32)
            self._binding.bind_input(value.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        shapes = self.facts[1].outputs
        results = []
        for value, what, shape in zip(
            self._step.get_outputs(), ("action", "carry"), ((self._n,), self._carry_shape), strict=True
        ):
            # the shape as the graph makes it: ONNX Runtime writes into the buffer
            if shapes.get(value.name) != shape:
                raise PolicyError(
                    f"{what}: float32 of shape {shapes.get(value.name)}, expected {shape}; export the policy again"
                )
            buffer = np.zeros(shape, np.float32)
            self._binding.bind_output(value.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            results.append(buffer)
        self._action_out, self._carry_out = results
        self._feed = [(name, self._buffers[name]) for name in self.inputs]
        self._results = list(zip(("action", "carry"), results, strict=True))

    def _check_graphs(self, bundle: Bundle) -> None:
        if self._init.get_inputs():
            names = [i.name for i in self._init.get_inputs()]
            raise PolicyError(f"init_fn.onnx: inputs {names}, expected none; export the policy again")
        if len(self._init.get_outputs()) != 1 or len(self._step.get_outputs()) != 2:
            got = len(self._init.get_outputs()), len(self._step.get_outputs())
            raise PolicyError(f"init_fn and step_fn: {got} outputs, expected 1 (carry) and 2 (action, carry)")
        for declared in self._step.get_inputs():
            shape = self.shapes.get(declared.name)
            if shape is None:
                raise PolicyError(
                    f"step_fn.onnx: input {declared.name!r} is unknown; expected some of {', '.join(self.shapes)}"
                )
            if declared.type != "tensor(float)" or tuple(declared.shape) != shape:
                raise PolicyError(
                    f"step_fn.onnx: input {declared.name}: {declared.type} of shape {list(declared.shape)}, "
                    f"expected tensor(float) of shape {list(shape)}"
                )
        if bundle.spec is not None:
            names = {i.name for i in self._step.get_inputs()} - {CARRY}
            promised = {a.name for a in bundle.spec.inputs}
            if names != promised:
                raise PolicyError(
                    f"step_fn.onnx: inputs {sorted(names)}, its specification has {sorted(promised)}; "
                    "export the policy again"
                )

    def _run(self, what: str, session: ort.InferenceSession, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
        try:
            return list(session.run(outputs, feed))
        except Exception as error:  # onnxruntime has no common root
            raise PolicyError(f"{what}: cannot be run ({_one_line(error)})") from error

    @staticmethod
    def _checked(what: str, value: Any, shape: tuple[int, ...], check_finite: bool = True) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype != np.float32 or array.shape != shape:
            raise PolicyError(f"{what}: {array.dtype} of shape {array.shape}, expected float32 of shape {shape}")
        if check_finite and not np.isfinite(array).all():
            raise PolicyError(
                f"{what}: got a value that is not finite at {np.flatnonzero(~np.isfinite(array)).tolist()}"
            )
        return array

    def reset(self) -> None:
        """Go back to the first carry."""
        self.carry = self._start

    def step(self, inputs: Mapping[str, np.ndarray], *, check_finite: bool = True) -> np.ndarray:
        """One control step; the carry goes on.

        Args:
            inputs: float32 arrays by .kinfer name; more than the graph declares is left out.
            check_finite: refuse an action or a carry that is not finite.

        Returns:
            Target joint angles, float32 (joints,) [rad], in the order of the bundle's joint names.

        Raises:
            PolicyError: an input is missing or of another shape, or the action is not finite.
        """
        for name, buffer in self._feed:
            value = inputs.get(name)
            if value is None:
                raise PolicyError(f"input {name}: missing; the policy reads {', '.join(self.inputs)}")
            if value.dtype != buffer.dtype or value.shape != buffer.shape:
                raise PolicyError(
                    f"input {name}: {value.dtype} of shape {value.shape}, expected float32 of shape {buffer.shape}"
                )
            buffer[:] = value
        if self._takes_carry:
            self._buffers[CARRY][:] = self.carry
        try:
            self._step.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime has no common root
            raise PolicyError(f"step_fn.onnx: cannot be run ({_one_line(error)})") from error
        if check_finite:
            for what, out in self._results:
                if np.count_nonzero(np.isfinite(out)) < out.size:  # half the time of all()
                    self._checked(what, out, out.shape)
        self.carry = self._carry_out.copy()
        return self._action_out.copy()


def _resets(record: Mapping[str, Any], steps: int) -> set[int]:
    """The steps of a self-test that begin with the first carry: step 0, and those that its parts say."""
    found, at = {0}, 0
    for part in record.get("parts", ()):
        if part["reset"]:
            found.add(at)
        at += part["steps"]
    if at not in (0, steps):
        raise ValueError(f"parts of {at} steps, expected {steps}")
    return found


def _recorded(
    policy: OnnxPolicy, spec: PolicySpec
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float, set[int]]:
    """(inputs, actions, last carry, tolerance, steps that begin with the first carry) of the self-test in a spec."""
    record = spec.self_test
    try:
        inputs = {name: np.asarray(rows, dtype=np.float32) for name, rows in record["inputs"].items()}
        actions, carry = (np.asarray(record[name], dtype=np.float64) for name in ("actions", "carry"))
        tolerance = float(record["tolerance"])
        resets = _resets(record, len(actions) if actions.ndim else 0)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PolicyError(f"self-test: not readable ({_one_line(error)}); export the policy again") from error
    steps = len(actions) if actions.ndim else 0
    shapes = {name: (steps, *policy.shapes[name]) for name in policy.inputs}
    whole = np.isfinite(actions).all() and np.isfinite(carry).all() and 0.0 < tolerance <= SELF_TEST_TOLERANCE_MAX
    if (
        not whole
        or not 0 < steps <= SELF_TEST_STEPS_MAX
        or actions.shape != (steps, len(spec.robot.joints))
        or carry.shape != (spec.carry_size,)
        or {name: rows.shape for name, rows in inputs.items()} != shapes
    ):
        raise PolicyError(
            f"self-test: got {steps} actions of shape {actions.shape} and inputs {', '.join(sorted(inputs))}, "
            f"expected 1 to {SELF_TEST_STEPS_MAX} steps of what the graph reads, all finite; export the policy again"
        )
    return inputs, actions, carry, tolerance, resets


def self_test(policy: OnnxPolicy, spec: PolicySpec) -> float:
    """Run the steps again that validation recorded: this computer, this graph and this host make the same of them.

    Catches another graph, joints or units permuted in the graph, a carry that is not fed back, a processor or a
    runtime that computes otherwise.

    Args:
        policy: loaded; it is left at its first carry.
        spec: with a self-test.

    Returns:
        The greatest difference of an action [rad] or of the last carry.

    Raises:
        PolicyError: a difference beyond the recorded tolerance, or a record that is not one.
    """
    inputs, actions, carry, tolerance, resets = _recorded(policy, spec)
    remedy = "this is not the graph that was validated, or this computer computes otherwise; export the policy again"
    greatest = 0.0
    for t, expected in enumerate(actions):
        if t in resets:
            policy.reset()
        action = policy.step({name: rows[t] for name, rows in inputs.items()})
        apart = np.abs(action - expected)
        at = int(np.argmax(apart))
        if apart[at] > tolerance:
            raise PolicyError(
                f"self-test, step {t}: target of {spec.robot.joint_names[at]} is {action[at]:.6g} rad, "
                f"{expected[at]:.6g} rad when it was validated (tolerance {tolerance:g}): {remedy}"
            )
        greatest = max(greatest, float(apart[at]))
    apart = np.abs(policy.carry - carry)
    policy.reset()
    at = int(np.argmax(apart)) if apart.size else -1
    if at >= 0 and apart[at] > tolerance:
        raise PolicyError(
            f"self-test, after {len(actions)} steps: element {at} of the carry is off by {apart[at]:.3g} "
            f"(tolerance {tolerance:g}): {remedy}"
        )
    return max(greatest, float(apart[at])) if at >= 0 else greatest


def observe(
    names: tuple[str, ...], state: RobotState, command: np.ndarray, time_s: float, initial_heading_rad: float
) -> dict[str, np.ndarray]:
    """The inputs called for by name, float32, exactly as the policy is to be given them.

    Args:
        names: .kinfer names.
        state: measured.
        command: (commands,).
        time_s: since the policy's first step [s].
        initial_heading_rad: yaw at the policy's first step [rad].
    """
    told = {"command": command, "time": [time_s], "initial_heading": [initial_heading_rad]}
    return {
        name: np.asarray(told[name] if name in told else getattr(state, BY_NAME[name].reading), dtype=np.float32)
        for name in names
    }


def spec_without_exporter(bundle: Bundle, policy: OnnxPolicy, robot: RobotSpec) -> PolicySpec:
    """What can be said of a bundle that another exporter wrote, with the robot that it is to run on.

    Args:
        bundle: without a specification.
        policy: of the bundle.
        robot: its joints are in the bundle's order.
    """
    commands = tuple(CommandSpec(name=n, low=-UNKNOWN_RANGE, high=UNKNOWN_RANGE) for n in bundle.command_names)
    known = input_specs(robot, commands, old=True)
    return PolicySpec(
        task="unknown",
        robot=robot,
        inputs=tuple(known[name] for name in policy.inputs),
        commands=commands,
        carry_size=bundle.carry_size,
        control_period_s=robot.control_period_s,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
    )
