"""One policy, two forms, the same inputs: how far apart the ONNX graph and the JAX function are.

Differences are found twice: `carried`, each form with its own carry from the last reset on, as the robot runs it;
and `step`, both from the carry that the JAX form had, so that what one step adds is seen alone. The limits:
- action [rad] and carry: 1e-5, carried and step, on inputs that were recorded in simulation or drawn from the declared
  range. A policy with a long memory adds up the rounding of many steps. So where carried is beyond 1e-5 and no step
  is, the JAX form is run once more with a carry that is moved in each step by the greatest step difference, up or down
  at random. As far as that takes carry and action, no order of sums can be told from another: those are the limits;
- both on extreme inputs: step alone. A cell state that grows to 300 in two thousand steps of one input, and back,
  adds up the rounding of them all, and a policy that swings by itself when all inputs are zero never forgets it:
  1e-3 then is what float32 does with any order of the sums. What is carried is reported and has no limit; a graph that
  is wrong is wrong in one step.
- elements of the carry beyond 10, counted apart as `large`: one millionth of the value, step alone. The simulation
  gives none; a raw action far out in the declared range is 20 to 40. Neighbouring float32 numbers are 4e-6 apart at
  40 and 6e-5 at 1000, so that 1e-5 cannot be held there; a millionth is 8 to 17 such neighbours.
- an element of a step beyond its limit: how far the JAX form itself moves when each number that it is given moves to a
  neighbour, four times over. Attention over large scores, or a division by little, makes more of a rounding than 1e-5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

from export import graph
from export.errors import ExportError
from export.function import Step
from robots.bundle import Bundle
from robots.spec import ArraySpec

# Stands for an infinite end of an input's declared range when inputs are drawn.
OPEN_RANGE = 1000.0
# Greatest difference of action [rad] and carry. Float32 with another order of sums differs by some 1e-6; a weight
# that is off by 1e-3 differs by 1e-4 and more.
ERROR_LIMIT = 1e-5
LARGE_VALUE, LARGE_LIMIT = 10.0, 1e-6
# The compiled loop over a sequence against the compiled step called once for each.
SCAN_LIMIT = 1e-6
SCAN_STEPS = 200
WINDOWS = 20
# Draws of a rounding of all that a step is given, and how many times as far as that an order of sums may take it.
NUDGES, NUDGE, ROUNDINGS = 4, 2.0**-23, 4.0
THREADS = (1, 2, 4)
_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def session(
    model: bytes | str, what: str = "graph", *, threads: int = 1, level: str = "all"
) -> onnxruntime.InferenceSession:
    """ONNX Runtime as the robot runs a model, or a file: one thread, every optimisation, unless told otherwise.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = _LEVELS[level]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common root
        raise ExportError(f"{what}: ONNX Runtime refuses it ({' '.join(str(error).split())}); export again") from error


def initial_carry(bundle: Bundle) -> np.ndarray:
    """What init_fn gives, (carry,)."""
    return np.asarray(session(bundle.init_fn, "init_fn").run(None, {})[0])


def _float32(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value, np.float32) for name, value in inputs.items()}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a policy made of a sequence.

    Attributes:
        actions: (T, joints) [rad].
        carries: the carry after each step, (T, carry).
        before: the carry that each step began with, (T, carry).
    """

    actions: np.ndarray
    carries: np.ndarray
    before: np.ndarray


class Onnx:
    """A bundle's graphs in ONNX Runtime.

    Args:
        bundle: its own init_fn gives the first carry.
        threads: of ONNX Runtime.
        level: its graph optimisation, one of all, extended, basic, disabled.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, level: str = "all") -> None:
        self._session = session(bundle.step_fn, "step_fn", threads=threads, level=level)
        names = [i.name for i in self._session.get_inputs()]
        self.inputs = tuple(name for name in names if name != graph.CARRY)
        self._takes_carry = graph.CARRY in names
        self.start = initial_carry(bundle)

    def run(self, inputs: Mapping[str, np.ndarray], resets: np.ndarray, before: np.ndarray | None = None) -> Trace:
        """Step after step through a sequence.

        Args:
            inputs: by name, each (T, k); more than the graph reads is fine.
            resets: (T,) bool: start anew before this step.
            before: the carry to begin each step with, (T, carry); its own where none is given.

        Raises:
            ExportError: an input is missing.
        """
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ExportError(
                f"step_fn: inputs {missing}: not recorded; the simulation gives {', '.join(sorted(inputs))}"
            )
        rows = _float32({name: inputs[name] for name in self.inputs})
        carry, actions, carries, begun = self.start, [], [], []
        for t in range(len(resets)):
            if before is not None:
                carry = before[t]
            elif resets[t]:
                carry = self.start
            begun.append(carry)
            feed = {name: value[t] for name, value in rows.items()}
            if self._takes_carry:
                feed[graph.CARRY] = carry
            action, carry = self._session.run(None, feed)
            actions.append(action)
            carries.append(carry)
        return Trace(actions=np.stack(actions), carries=np.stack(carries), before=np.stack(begun))


class Reference:
    """The JAX form, in full float32 (no TF32 of a GPU, no bfloat16), a whole sequence in one compiled loop.

    Args:
        step: `(inputs, carry) -> (action, carry)`.
        start: the first carry, (carry,).
        stepwise: one compiled step called once for each, in place of the loop.
    """

    def __init__(self, step: Step, start: Any, *, stepwise: bool = False) -> None:
        self.start, self._step, self._stepwise = np.asarray(start, np.float32), step, stepwise

    @cached_property
    def _loop(self) -> Any:
        def one(carry: Any, row: Any) -> Any:
            inputs, reset, shift = row
            before = jnp.where(reset, self.start, carry) + shift
            action, after = self._step(inputs, before)
            return after, (action, after, before)

        return jax.jit(lambda *rows: jax.lax.scan(one, jnp.asarray(self.start), rows)[1])

    @cached_property
    def _once(self) -> Any:
        return jax.jit(lambda inputs, carry: self._step(inputs, carry))

    def run(self, inputs: Mapping[str, np.ndarray], resets: np.ndarray, moved: np.ndarray | None = None) -> Trace:
        """The sequence; arguments as for `Onnx.run`. `moved`, (T, carry), is added to the carry before each step."""
        rows = _float32(inputs)
        shift = np.zeros((len(resets), len(self.start)), np.float32) if moved is None else np.asarray(moved, np.float32)
        with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.default_matmul_precision("highest"):
            if not self._stepwise:
                actions, carries, begun = map(np.asarray, self._loop(rows, resets, shift))
                return Trace(actions=actions, carries=carries, before=begun)
            carry, out = self.start, []
            for t, reset in enumerate(resets):
                before = (self.start if reset else carry) + shift[t]
                action, carry = map(np.asarray, self._once({k: v[t] for k, v in rows.items()}, before))
                out.append((action, carry, before))
        actions, carries, begun = map(np.stack, zip(*out, strict=True))
        return Trace(actions=actions, carries=carries, before=begun)

    def moved(self, inputs: Mapping[str, np.ndarray], before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far (action, carry) of each step move when all that it is given moves to a neighbour, element by element.

        Args:
            inputs: by name, each (T, k).
            before: the carry that each step begins with, (T, carry).
        """
        step = jax.jit(lambda *rows: jax.lax.map(lambda row: self._step(*row), rows))
        given, rng = (_float32(inputs), np.asarray(before, np.float32)), np.random.default_rng(0)
        with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.default_matmul_precision("highest"):
            truth = step(*given)
            far = [np.zeros(np.shape(v)) for v in truth]
            for _ in range(NUDGES):
                other = jax.tree.map(lambda v: nudged(v, rng), given)
                far = [np.maximum(f, differences(a, b)) for f, a, b in zip(far, step(*other), truth, strict=True)]
        return far[0], far[1]

    def check(self, inputs: Mapping[str, np.ndarray], resets: np.ndarray) -> tuple[Reference, float]:
        """(what to trust, difference of the loop and the step called one by one, of the value where that is beyond 1).

        The loop may be compiled to another order of sums; where that shows, the slow way is the reference.
        """
        rows, starts = {k: v[:SCAN_STEPS] for k, v in inputs.items()}, resets[:SCAN_STEPS]
        slow = Reference(self._step, self.start, stepwise=True)
        a, b = self.run(rows, starts), slow.run(rows, starts)
        pairs = ((a.actions, b.actions), (a.carries, b.carries))
        apart = max(float((differences(x, y) / np.maximum(1.0, np.abs(y))).max(initial=0.0)) for x, y in pairs)
        return (self if apart <= SCAN_LIMIT else slow), apart


def nudged(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each value moved to a neighbour, up or down."""
    return values * (1 + NUDGE * rng.choice(np.asarray([-1, 1], np.float32), values.shape))


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far each value is from its other, in double precision."""
    return np.abs(np.subtract(a, b, dtype=np.float64))


def _greatest(a: np.ndarray, b: np.ndarray) -> float:
    return float(differences(a, b).max(initial=0.0))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """ONNX against JAX over one sequence; see the module's docstring for `carried` and `step`.

    Attributes:
        steps: length of the sequence.
        resets: how often both carries started anew.
        action_error: greatest absolute difference of the action, carried [rad].
        carry_error: greatest absolute difference of the carry, of elements up to 10, carried.
        step_action_error: greatest absolute difference of the action, step by step [rad].
        step_carry_error: greatest absolute difference of the carry, of elements up to 10, step by step.
        large_carry_error: greatest absolute difference of elements of the carry beyond 10, carried.
        large_step_share: greatest difference of those, step by step, as a share of the value.
        carry_max: greatest absolute value in the carry.
        carry_limited: whether what is carried has a limit: the carry, and with it the action.
        carry_limit: that limit.
        action_limit: that of the carried action [rad].
        worst_step: the step that was nearest to its limit, or farthest beyond.
        of_limit: how near: the difference as a share of its limit; 1 and less is within.
        windows: greatest carried difference of action or carry (elements up to 10) in each of 20 equal parts: how
            it grows.
        step_limit: the widest limit of an element of a step that was needed.
    """

    steps: int
    resets: int
    action_error: float
    carry_error: float
    step_action_error: float
    step_carry_error: float
    large_carry_error: float
    large_step_share: float
    carry_max: float
    carry_limited: bool
    carry_limit: float
    action_limit: float
    worst_step: int
    of_limit: float
    windows: tuple[float, ...]
    step_limit: float = ERROR_LIMIT

    @property
    def error(self) -> float:
        """The greatest of the four absolute errors."""
        return max(self.action_error, self.carry_error, self.step_action_error, self.step_carry_error)

    @property
    def limits_told(self) -> str:
        """The limits of what is carried in words, where they are not that of a single step."""
        wider = {"one step": self.step_limit, "carried action": self.action_limit, "carried carry": self.carry_limit}
        return "".join(f", {what} {limit:.1e}" for what, limit in wider.items() if limit > ERROR_LIMIT)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "windows": list(self.windows)}


def compare(
    onnx: Onnx,
    reference: Reference,
    inputs: Mapping[str, np.ndarray],
    resets: np.ndarray,
    *,
    carry_limited: bool = True,
) -> Difference:
    """Run both through the same inputs.

    Args:
        onnx: the ONNX form.
        reference: the JAX form.
        inputs: by name, each (T, k); more than the policy reads is fine.
        resets: (T,) bool: start both anew before this step.
        carry_limited: whether what is carried has a limit; false for extreme inputs.

    Raises:
        ExportError: an input is missing, or a value is not finite.
    """
    inputs = _float32(inputs)
    carried = onnx.run(inputs, resets)
    truth = reference.run(inputs, resets)
    alone = onnx.run(inputs, resets, truth.before)
    size = np.abs(truth.carries.astype(np.float64))
    small = size <= LARGE_VALUE

    def greatest(values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """(T,): over the elements of each step, those that `where` names; what is not finite counts anywhere."""
        kept = values if where is None else np.where(where | ~np.isfinite(values), values, 0.0)
        return kept.max(axis=1, initial=0.0)

    action, step_action = (greatest(differences(t.actions, truth.actions)) for t in (carried, alone))
    apart, step_apart = (differences(t.carries, truth.carries) for t in (carried, alone))
    action_apart = differences(alone.actions, truth.actions)
    carry, step_carry, large = greatest(apart, small), greatest(step_apart, small), greatest(apart, ~small)
    large_share = greatest(step_apart / np.maximum(size, LARGE_VALUE), ~small)
    found = np.stack([action, step_action, carry, step_carry, large, large_share])
    if not np.isfinite(found).all():
        at = int(np.argmax(~np.isfinite(found).all(axis=0)))
        raise ExportError(f"step_fn against the JAX policy: got a value that is not finite at step {at}, expected none")
    share = np.maximum(np.maximum(step_action, step_carry) / ERROR_LIMIT, large_share / LARGE_LIMIT)
    step_limit = ERROR_LIMIT
    if share.max() > 1.0:
        # is it more than a rounding of what the step is given?
        own = (np.full_like(action_apart, ERROR_LIMIT), np.where(small, ERROR_LIMIT, LARGE_LIMIT * size))
        wide = [np.maximum(o, ROUNDINGS * m) for o, m in zip(own, reference.moved(inputs, truth.before), strict=True)]
        pairs = list(zip((action_apart, step_apart), own, wide, strict=True))
        share = np.maximum(*(greatest(gap / limits) for gap, _, limits in pairs))
        step_limit = max(float(limits[gap > o].max(initial=ERROR_LIMIT)) for gap, o, limits in pairs)
    limit = action_limit = ERROR_LIMIT
    if carry_limited:
        # no step is wrong: it is what they add up to
        if share.max() <= 1.0 and max(action.max(), carry.max()) > ERROR_LIMIT:
            signs = np.random.default_rng(0).choice([-1.0, 1.0], apart.shape)
            other = reference.run(inputs, resets, signs * step_apart.max(axis=0))
            limit = max(limit, float(greatest(differences(other.carries, truth.carries), small).max()))
            action_limit = max(action_limit, _greatest(other.actions, truth.actions))
        share = np.maximum(share, np.maximum(carry / limit, action / action_limit))
    parts = np.array_split(np.maximum(action, carry), min(WINDOWS, len(resets)))
    return Difference(
        steps=len(resets),
        resets=int(np.sum(resets)),
        action_error=float(action.max()),
        carry_error=float(carry.max()),
        step_action_error=float(step_action.max()),
        step_carry_error=float(step_carry.max()),
        large_carry_error=float(large.max()),
        large_step_share=float(large_share.max()),
        carry_max=float(size.max(initial=0.0)),
        carry_limited=carry_limited,
        carry_limit=limit,
        action_limit=action_limit,
        worst_step=int(share.argmax()),
        of_limit=float(share.max()),
        windows=tuple(float(part.max()) for part in parts),
        step_limit=step_limit,
    )


def difference(
    bundle: Bundle,
    step: Step,
    init_carry: Any,
    inputs: Mapping[str, np.ndarray],
    resets: np.ndarray,
    *,
    carry_limited: bool = True,
) -> Difference:
    """`compare` of a bundle and the function `step` that it was made from, with the first carry of the latter."""
    return compare(Onnx(bundle), Reference(step, init_carry), inputs, resets, carry_limited=carry_limited)


def _hash(trace: Trace) -> str:
    return hashlib.sha256(trace.actions.tobytes() + trace.carries.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Determinism:
    """The same inputs again, and otherwise.

    Attributes:
        steps: length of the sequence.
        runs_equal: a second run, and one of a session made anew, give the same bytes.
        threads_equal: so do sessions of 2 and 4 threads.
        optimisation: greatest difference of action or carry from ONNX Runtime's full optimisation, by level.
    """

    steps: int
    runs_equal: bool
    threads_equal: bool
    optimisation: dict[str, float]


def determinism(bundle: Bundle, inputs: Mapping[str, np.ndarray], resets: np.ndarray) -> Determinism:
    """Run a sequence again, in sessions of other thread counts and other optimisation levels."""
    first = Onnx(bundle)
    base = first.run(inputs, resets)
    again = [_hash(first.run(inputs, resets)), _hash(Onnx(bundle).run(inputs, resets))]
    threaded = [_hash(Onnx(bundle, threads=n).run(inputs, resets)) for n in THREADS[1:]]
    others = {}
    for level in list(_LEVELS)[1:]:
        trace = Onnx(bundle, level=level).run(inputs, resets)
        others[level] = max(_greatest(trace.actions, base.actions), _greatest(trace.carries, base.carries))
    return Determinism(
        steps=len(resets),
        runs_equal=set(again) == {_hash(base)},
        threads_equal=set(threaded) == {_hash(base)},
        optimisation=others,
    )


def sequence(
    inputs: Mapping[str, np.ndarray], starts: np.ndarray, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One sequence of `steps` out of a recording: episode after episode, each to its end, from the first again.

    Args:
        inputs: recorded inputs by name, each (M, k), episode after episode.
        starts: where an episode starts, (M,).
        steps: length of the sequence.
        rng: draws resets in the middle of episodes, one in about 100 steps.

    Returns:
        The inputs by name, each (steps, k), and where both carries start anew, (steps,).
    """
    at = np.arange(steps) % len(starts)
    return {name: value[at] for name, value in inputs.items()}, starts[at] | (rng.random(steps) < 0.01)


def _ranges(spec: ArraySpec) -> tuple[np.ndarray, np.ndarray]:
    size = int(np.prod(spec.shape))
    low, high = (np.clip(np.resize(v, size), -OPEN_RANGE, OPEN_RANGE) for v in (spec.low, spec.high))
    return low, high


def drawn(specs: tuple[ArraySpec, ...], steps: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs drawn uniformly from their declared ranges, each (steps, k)."""
    out = {}
    for spec in specs:
        low, high = _ranges(spec)
        out[spec.name] = rng.uniform(low, high, (steps, len(low))).astype(np.float32)
    return out


def extreme(
    specs: tuple[ArraySpec, ...], steps: int, rng: np.random.Generator
) -> dict[str, tuple[dict[str, np.ndarray], np.ndarray]]:
    """Inputs at the ends of their declared ranges, in five kinds, each with its resets, (steps,).

    `corners`: each element at an end of its range, drawn anew at each step, with resets at random times;
    `alternating`: all elements at their greatest, then all at their least; `zeros`: 0, or the nearest that is in
    range; `one input`: one input at an end for 50 steps from the first carry on, the others at 0, in turns;
    `constant`: all at their greatest for half of the steps, then all at their least from the first carry on.
    """
    ranges = {spec.name: _ranges(spec) for spec in specs}
    zeros = {name: np.clip(0.0, low, high) for name, (low, high) in ranges.items()}
    t = np.arange(steps)
    turn = t // 50
    half = (t >= steps // 2)[:, None]

    def rows(pick: Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.broadcast_to(pick(i, low, high, zeros[name]), (steps, len(low))).astype(np.float32)
            for i, (name, (low, high)) in enumerate(ranges.items())
        }

    def one_input(i: int, low: np.ndarray, high: np.ndarray, zero: np.ndarray) -> np.ndarray:
        mine, up = (turn % len(ranges) == i)[:, None], (turn // len(ranges) % 2 == 0)[:, None]
        return np.where(mine, np.where(up, high, low), zero)

    return {
        "corners": (
            rows(lambda i, low, high, zero: np.where(rng.random((steps, len(low))) < 0.5, low, high)),
            rng.random(steps) < 0.02,
        ),
        "alternating": (rows(lambda i, low, high, zero: np.where((t % 2 == 0)[:, None], high, low)), t == 0),
        "zeros": (rows(lambda i, low, high, zero: zero), t == 0),
        "one input": (rows(one_input), t % 50 == 0),
        "constant": (rows(lambda i, low, high, zero: np.where(half, low, high)), t % max(1, steps // 2) == 0),
    }
