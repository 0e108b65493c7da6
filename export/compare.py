"""One policy, two forms, the same inputs: how far apart the ONNX graph and the JAX function are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
import onnxruntime

from export import graph
from export.errors import ExportError
from export.tracing import Step
from robots.bundle import Bundle
from robots.spec import ArraySpec

# Stands for an infinite end of an input's declared range when inputs are drawn.
OPEN_RANGE = 1000.0


def session(model: bytes, what: str = "graph") -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread, as the robot runs it.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common root
        raise ExportError(f"{what}: ONNX Runtime refuses it ({' '.join(str(error).split())}); export again") from error


def initial_carry(bundle: Bundle) -> np.ndarray:
    """What init_fn gives, (carry,)."""
    return np.asarray(session(bundle.init_fn, "init_fn").run(None, {})[0])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """ONNX against JAX over one sequence, each with its own carry.

    Attributes:
        steps: length of the sequence.
        resets: how often both carries started anew.
        action_error: greatest absolute difference of the action [rad].
        carry_error: greatest absolute difference of the carry.
        relative_error: greatest difference of action or carry, divided by the value where that is beyond 1.
        worst_step: the step at which the greatest difference occurred.
        early_error: greatest difference of action or carry in the first tenth.
        late_error: the same in the last tenth; far above `early_error` means that errors grow.
    """

    steps: int
    resets: int
    action_error: float
    carry_error: float
    relative_error: float
    worst_step: int
    early_error: float
    late_error: float

    @property
    def error(self) -> float:
        """The greater of the two errors."""
        return max(self.action_error, self.carry_error)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def difference(
    bundle: Bundle, step: Step, init_carry: Any, inputs: Mapping[str, np.ndarray], resets: np.ndarray
) -> Difference:
    """Run both through the same inputs.

    Args:
        bundle: the ONNX form; its own init_fn gives its first carry.
        step: the JAX form.
        init_carry: the first carry of the JAX form, (carry,).
        inputs: recorded inputs by name, each (T, k); more than the policy reads is fine.
        resets: (T,) bool: start both anew before this step.

    Raises:
        ExportError: an input is missing, or a value is not finite.
    """
    run = session(bundle.step_fn, "step_fn")
    wanted = [i.name for i in run.get_inputs() if i.name != graph.CARRY]
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise ExportError(f"step_fn: inputs {missing}: not recorded; the simulation gives {', '.join(sorted(inputs))}")
    onnx_start, jax_start = initial_carry(bundle), np.asarray(init_carry, np.float32)
    onnx_carry, jax_carry = onnx_start, jax_start
    errors, relative = np.zeros((len(resets), 2)), 0.0
    # The reference is computed in full float32: no TF32 of a GPU, no bfloat16.
    with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.default_matmul_precision("highest"):
        jitted = jax.jit(lambda i, c: step(i, c))
        for t, reset in enumerate(resets):
            if reset:
                onnx_carry, jax_carry = onnx_start, jax_start
            row = {name: np.ascontiguousarray(value[t], np.float32) for name, value in inputs.items()}
            feed = {**{n: row[n] for n in wanted}, graph.CARRY: onnx_carry}
            onnx_action, onnx_carry = (np.asarray(v) for v in run.run(None, feed))
            jax_action, jax_carry = (np.asarray(v) for v in jitted(row, jax_carry))
            for i, (a, b) in enumerate(((onnx_action, jax_action), (onnx_carry, jax_carry))):
                apart = np.abs(np.subtract(a, b, dtype=np.float64))
                errors[t, i] = np.max(apart, initial=0.0)
                relative = max(relative, float(np.max(apart / np.maximum(1.0, np.abs(b)), initial=0.0)))
    if not np.isfinite(errors).all():
        at = int(np.argmax(~np.isfinite(errors).all(axis=1)))
        raise ExportError(f"step_fn against the JAX policy: got a value that is not finite at step {at}, expected none")
    both, tenth = errors.max(axis=1), max(1, len(errors) // 10)
    return Difference(
        steps=len(resets),
        resets=int(np.sum(resets)),
        action_error=float(errors[:, 0].max()),
        carry_error=float(errors[:, 1].max()),
        relative_error=relative,
        worst_step=int(both.argmax()),
        early_error=float(both[:tenth].max()),
        late_error=float(both[-tenth:].max()),
    )


def sequence(
    inputs: Mapping[str, np.ndarray], alive: np.ndarray, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One sequence of `steps` out of a recording: episode after episode, each to its end, from the first again.

    Args:
        inputs: recorded inputs by name, each (T, E, k).
        alive: whether each episode was still running, (T, E).
        steps: length of the sequence.
        rng: draws resets in the middle of episodes, one in about 100 steps.

    Returns:
        The inputs by name, each (steps, k), and where both carries start anew, (steps,).
    """
    kept = alive.T.reshape(-1)
    at = np.flatnonzero(kept)[np.arange(steps) % max(1, kept.sum())]
    starts = np.arange(kept.size) % len(alive) == 0
    return {k: np.swapaxes(v, 0, 1).reshape(-1, v.shape[-1])[at] for k, v in inputs.items()}, (
        starts[at] | (rng.random(steps) < 0.01)
    )


def drawn(specs: tuple[ArraySpec, ...], steps: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs drawn uniformly from their declared ranges, each (steps, k)."""
    out = {}
    for spec in specs:
        size = int(np.prod(spec.shape))
        low = np.clip(np.resize(spec.low, size), -OPEN_RANGE, OPEN_RANGE)
        high = np.clip(np.resize(spec.high, size), -OPEN_RANGE, OPEN_RANGE)
        out[spec.name] = rng.uniform(low, high, (steps, size)).astype(np.float32)
    return out
