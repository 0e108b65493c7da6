"""Other graphs of the same recurrent policy, for benchmarks/inference.py: what writing them by hand would gain.

All compute what `Policy.step` computes; the benchmark checks that before it times them.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnx
from onnx import helper, numpy_helper

from ksim.learning.policy import OBSERVATION_CLIP, Policy
from robots import PolicySpec

INF = np.finfo(np.float32).max


def ordinary(policy: Policy) -> Any:
    """The policy as one would write it at first: part by part, with the carry sliced where it is needed."""
    e, net, n, width = policy.encoding, policy.actor.net, policy.joints, policy.actor.net.width
    columns = [np.asarray(v, np.float32) for v in (e.divisor, e.offset, e.scale)]

    def encoded(part: Any, at: int) -> Any:
        """One input, with no operation that would change nothing."""
        divisor, offset, scale = (v[at : at + len(part)] for v in columns)
        part = part / divisor[0] if (divisor != 1.0).any() else part
        part = part + offset if offset.any() else part
        return part * scale[0] if (scale != 1.0).any() else part

    def step(inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        last = 2 * width * len(net.cells)
        parts = [inputs[k] for k in ("joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope")]
        parts += [inputs["command"]] if policy.commands else []
        parts.append(carry[last : last + n])
        seen, at = [], 0
        for part in parts:
            seen.append(encoded(part, at))
            at += len(part)
        x = jnp.clip(jnp.concatenate(seen), -OBSERVATION_CLIP, OBSERVATION_CLIP)
        signal, state = x, []
        for i, cell in enumerate(net.cells):
            begin = 2 * width * i
            h, c = carry[begin : begin + width], carry[begin + width : begin + 2 * width]
            signal, c = cell(signal, (h, c))
            state += [signal, c]
        action = net.output_layer(jax.nn.elu(net.hidden_layer(jnp.concatenate([x, signal]))))
        targets = policy.targets(action, carry[-n:])
        return targets, jnp.concatenate([*state, action, targets])

    return step


def like_k_scale(layers: int, width: int) -> onnx.ModelProto:
    """An untrained actor like that of K-Scale's K-Bot example, through jax2onnx as K-Scale's export goes.

    A layer in front, LSTM cells, a layer behind that gives means and spreads, the home pose and the arms' commands
    added to the means, a low-pass over them. Twenty joints, six commands and ten of the arms (kbot-joystick, train.py).
    """
    keys = jax.random.split(jax.random.key(0), layers + 2)
    front, back = eqx.nn.Linear(62, width, key=keys[0]), eqx.nn.Linear(width, 40, key=keys[1])
    cells = [eqx.nn.LSTMCell(width, width, key=key) for key in keys[2:]]
    home, kept = jnp.linspace(-1.0, 1.0, 20), 0.7

    def step(angles: Any, velocities: Any, gravity: Any, command: Any, gyroscope: Any, carry: Any, low: Any) -> Any:
        seen = jnp.concatenate([angles, velocities, gravity, gyroscope, command])
        signal, after = front(seen), []
        for i, cell in enumerate(cells):
            signal, c = cell(signal, (carry[i, 0], carry[i, 1]))
            after.append(jnp.stack([signal, c]))
        means = back(signal)[:20] + home + jnp.concatenate([command[-10:], jnp.zeros(10)])
        low = kept * low + (1.0 - kept) * means
        return low, jnp.stack(after), low

    sizes = [(20,), (20,), (3,), (16,), (3,), (layers, 2, width), (20,)]
    return jax2onnx.to_onnx(step, sizes, model_name="like_k_scale", opset=17)


class _Writer:
    """Nodes and constants of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, kind: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, kind), name))
        return name

    def sizes(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def __call__(self, op: str, *inputs: str, outs: int = 1, names: list[str] | None = None, **attributes: Any) -> Any:
        names = names or [f"v{len(self.nodes)}_{i}" for i in range(outs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if len(names) == 1 else names

    def model(self, spec: PolicySpec, outputs: dict[str, int]) -> bytes:
        def value(name: str, size: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size])

        inputs = [value(a.name, a.shape[0]) for a in spec.inputs] + [value("carry", spec.carry_size)]
        graph = helper.make_graph(self.nodes, "step", inputs, [value(*o) for o in outputs.items()], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def _numpy(tree: Any) -> Any:
    return jax.tree.map(lambda v: np.asarray(v, np.float64) if eqx.is_array(v) else v, tree)


def by_hand(policy: Policy, spec: PolicySpec, operator: bool) -> bytes:
    """Written node by node, every constant folded.

    Args:
        policy: an LSTM policy whose action moves all joints, without smoothing.
        spec: of it.
        operator: the ONNX LSTM operator; else two products a layer, one for the sigmoids and one for the tanh, which
            ONNX Runtime fuses with their activations.
    """
    g, e, n = _Writer(), policy.encoding, policy.joints
    net = _numpy(policy.actor.net)
    width, layers = net.width, len(net.cells)
    *state, last, _ = g("Split", "carry", g.sizes(*[width] * (2 * layers), n, n), outs=2 * layers + 2, axis=0)
    divisor, offset, scale = (np.asarray(v) for v in (e.divisor, e.offset, e.scale))
    x = g("Concat", *(a.name for a in spec.inputs), last, axis=0)
    x = g("Add", g("Mul", x, g.constant(scale / divisor)), g.constant(offset * scale))
    x = g("Clip", x, g.constant(-OBSERVATION_CLIP), g.constant(OBSERVATION_CLIP))
    rank = [1, 1] if operator else [1]
    x = signal = g("Reshape", x, g.sizes(*rank, e.size))
    after: list[str] = []
    for i, cell in enumerate(net.cells):
        ih, hh, bias = ([np.split(v, 4)[k] for k in (0, 1, 3, 2)] for v in (cell.weight_ih, cell.weight_hh, cell.bias))
        h = g("Reshape", state[2 * i], g.sizes(*rank, width))
        if operator:  # its gates are in, out, forget, cell; ours now in, forget, out, cell
            order = (0, 2, 1, 3)
            w, r, b = (np.concatenate([v[k] for k in order])[None] for v in (ih, hh, bias))
            c = g("Reshape", state[2 * i + 1], g.sizes(1, 1, width))
            names = ["", f"h{i}", f"c{i}"]
            bias_both = g.constant(np.concatenate([b, 0 * b], axis=1))
            g("LSTM", signal, g.constant(w), g.constant(r), bias_both, "", h, c, names=names, hidden_size=width)
            signal, c = names[1:]
        else:
            c, both = state[2 * i + 1], g("Concat", signal, h, axis=1)
            w = np.concatenate([np.concatenate(ih), np.concatenate(hh)], axis=1).T
            b = np.concatenate(bias)
            gates = g("Sigmoid", g("Gemm", both, g.constant(w[:, : 3 * width]), g.constant(b[: 3 * width])))
            new = g("Tanh", g("Gemm", both, g.constant(w[:, 3 * width :]), g.constant(b[3 * width :])))
            i_, f_, o_ = g("Split", gates, outs=3, axis=1)
            c = g("Add", g("Mul", f_, c), g("Mul", i_, new))
            signal = g("Mul", o_, g("Tanh", c))
        after += [signal, c]
    both = g("Concat", x, signal, axis=len(rank))
    if operator:
        both = g("Reshape", both, g.sizes(1, e.size + width))
    hidden, out, law = net.hidden_layer, net.output_layer, policy.targets
    features = g("Elu", g("Gemm", both, g.constant(hidden.weight.T), g.constant(hidden.bias)))
    to_target, home = np.asarray(law.scale), np.asarray(law.home)
    weight = np.concatenate([out.weight.T, out.weight.T * to_target], axis=1)
    y = g("Gemm", features, g.constant(weight), g.constant(np.concatenate([out.bias, home + to_target * out.bias])))
    y = g("Max", y, g.constant(np.concatenate([np.full(n, -INF), law.low])))
    y = g("Min", y, g.constant(np.concatenate([np.full(n, INF), law.high])))
    if operator:
        y = g("Reshape", y, g.sizes(1, 1, 2 * n))
    size = spec.carry_size
    g("Reshape", g("Concat", *after, y, axis=len(rank)), g.sizes(size), names=["carry_out"])
    g("Slice", "carry_out", g.sizes(size - n), g.sizes(size), names=["action"])
    return g.model(spec, {"action": n, "carry_out": size})


def optimised(model: onnx.ModelProto, tool: str) -> onnx.ModelProto | None:
    """The graph as a stand-alone optimiser leaves it; None where that is not installed."""
    try:
        if tool == "onnxsim":
            import onnxsim

            return onnxsim.simplify(model)[0]
        if tool == "onnxoptimizer":
            import onnxoptimizer

            return onnxoptimizer.optimize(model, onnxoptimizer.get_fuse_and_elimination_passes())
        if tool == "onnxslim":
            import onnxslim

            return onnxslim.slim(model)
        import onnxscript.optimizer

        return onnxscript.optimizer.optimize(model)
    except ImportError:
        return None
