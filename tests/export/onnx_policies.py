"""Policies as other toolkits write them into ONNX files, their description, and inputs of a K-Bot for them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.onnx_spec import OnnxSpec
from robots.load import load_robot
from toolkit.settings import from_dict

KBOT = load_robot("kbot")
COMMANDS = {"xvel": [-0.5, 1.0], "yvel": [-0.3, 0.3], "yawrate": [-1.0, 1.0]}
TERMS = [
    {"input": "gyroscope", "scale": 0.25},
    "projected_gravity",
    "command",
    "joint_angles",
    {"input": "joint_angular_velocities", "scale": 0.05},
    "last_action",
]
PLAIN = {"commands": COMMANDS, "observation": TERMS, "action": {"scale": 0.25}}
SIZE = 3 + 3 + 3 + 20 + 20 + 20
HIDDEN = 8


def write_policy(path, size=SIZE, actions=20, *, rnn="", opset=17, dtype=np.float32, batch=1, layers=1, props=None):
    """A normaliser, perhaps an LSTM or GRU, and two layers; as torch's exporter makes them at that opset."""
    rng = np.random.default_rng(3)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def drawn(*shape):
        return (rng.normal(0.0, 1.0, shape) / shape[-1] ** 0.5).astype(dtype)

    constants = {"mean": 0.1 * drawn(size), "std": np.full(size, 1.5, dtype)}
    nodes = [
        helper.make_node("Sub", ["obs", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["x"]),
    ]
    inputs = [helper.make_tensor_value_info("obs", kind, [size] if batch is None else [batch, size])]
    outputs = [helper.make_tensor_value_info("actions", kind, [actions] if batch is None else [batch, actions])]
    latent, width = "x", size
    if rnn:
        gates, names = {"LSTM": (4, ["h", "c"]), "GRU": (3, ["h"])}[rnn]
        for name in names:
            inputs.append(helper.make_tensor_value_info(f"{name}_in", kind, [layers, batch, HIDDEN]))
            outputs.append(helper.make_tensor_value_info(f"{name}_out", kind, [layers, batch, HIDDEN]))
        modern = opset >= 13
        constants |= {"axis": np.asarray([0], np.int64)} if modern else {}

        def over(op, value, out):
            extra, how = (["axis"], {}) if modern else ([], {"axes": [0]})
            nodes.append(helper.make_node(op, [value, *extra], [out], **how))

        over("Unsqueeze", "x", "sequence")
        wide = size
        for i in range(layers):
            shapes = {"w": (1, gates * HIDDEN, wide), "r": (1, gates * HIDDEN, HIDDEN), "b": (1, 2 * gates * HIDDEN)}
            constants |= {f"{name}{i}": drawn(*shape) for name, shape in shapes.items()}
            first = []
            for name in names:
                if opset > 9:
                    constants |= {f"from{i}": np.asarray([i], np.int64), f"to{i}": np.asarray([i + 1], np.int64)}
                ends = (
                    ([f"from{i}", f"to{i}"], {}) if opset > 9 else ([], {"starts": [i], "ends": [i + 1], "axes": [0]})
                )
                nodes.append(helper.make_node("Slice", [f"{name}_in", *ends[0]], [f"{name}_in{i}"], **ends[1]))
                first.append(f"{name}_in{i}")
            out = [f"y{i}", *(f"{name}_out{i}" for name in names)]
            how = {"linear_before_reset": 1} if rnn == "GRU" else {}
            before = "sequence" if i == 0 else f"flat{i - 1}"
            weights = [before, f"w{i}", f"r{i}", f"b{i}", "", *first]
            nodes.append(helper.make_node(rnn, weights, out, hidden_size=HIDDEN, **how))
            constants["axis1"] = np.asarray([1], np.int64)
            if modern:
                nodes.append(helper.make_node("Squeeze", [f"y{i}", "axis1"], [f"flat{i}"]))
            else:
                nodes.append(helper.make_node("Squeeze", [f"y{i}"], [f"flat{i}"], axes=[1]))
            wide = HIDDEN
        if not modern:
            del constants["axis1"]
        for name in names:
            nodes.append(helper.make_node("Concat", [f"{name}_out{i}" for i in range(layers)], [f"{name}_out"], axis=0))
        over("Squeeze", f"flat{layers - 1}", "latent")
        latent, width = "latent", HIDDEN
    constants |= {"w_a": drawn(width, 16), "b_a": drawn(16), "w_b": drawn(16, actions)}
    nodes += [
        helper.make_node("MatMul", [latent, "w_a"], ["m"]),
        helper.make_node("Add", ["m", "b_a"], ["n"]),
        helper.make_node("Elu", ["n"], ["e"]),
        helper.make_node("MatMul", ["e", "w_b"], ["actions"]),
    ]
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "main", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", opset)]
    )
    model.ir_version = 10 if opset > 17 else 8
    helper.set_model_props(model, props or {})
    onnx.save(model, path)
    return path


def spec(**changes):
    return from_dict(OnnxSpec, {**PLAIN, **changes})


def rows_of(bundle, steps, seed=0):
    """Inputs of a robot about home, by name."""
    rng = np.random.default_rng(seed)
    out = {"joint_angles": np.asarray(KBOT.column("home_rad")) + rng.normal(0.0, 0.3, (steps, 20))}
    out["joint_angular_velocities"] = rng.normal(0.0, 2.0, (steps, 20))
    out["gyroscope"] = rng.normal(0.0, 0.5, (steps, 3))
    gravity = rng.normal(0.0, 0.2, (steps, 3)) + np.asarray([0.0, 0.0, -1.0])
    out["projected_gravity"] = 9.81 * gravity / np.linalg.norm(gravity, axis=1, keepdims=True)
    out["command"] = rng.uniform(-0.3, 0.3, (steps, len(bundle.command_names)))
    return {name: rows.astype(np.float32) for name, rows in out.items()}
