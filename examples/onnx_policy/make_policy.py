"""Stands for another toolkit: writes a policy as an ONNX file, and what it was given and answered in its simulation.

    python examples/onnx_policy/make_policy.py --out theirs
    ksim export theirs/theirs.onnx --spec examples/onnx_policy/spec.yaml --recorded theirs/recorded.npz -o theirs.kinfer

The file is as rsl_rl writes a recurrent actor: obs, h_in, c_in -> actions, h_out, c_out. The weights are drawn, so the
robot falls. The observation is made here as a training loop makes it; spec.yaml says the same in words.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from robots import load_robot

HIDDEN, EPISODES, STEPS, PERIOD_S = 16, 20, 100, 0.02
LEGS = [
    f"dof_{side}_{joint}"
    for joint in ("hip_pitch_04", "hip_roll_03", "hip_yaw_03", "knee_04", "ankle_02")
    for side in ("left", "right")
]
SIZE = 3 * 3 + 3 + 3 + 10 + 10 + 10 + 4


def policy() -> onnx.ModelProto:
    """A normaliser, an LSTM and a layer."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.normal(0.0, 1.0, shape) / shape[-1] ** 0.5).astype(np.float32)

    weights = {
        "mean": 0.1 * drawn(1, SIZE),
        "std": np.full((1, SIZE), 1.5, np.float32),
        "w": drawn(1, 4 * HIDDEN, SIZE),
        "r": drawn(1, 4 * HIDDEN, HIDDEN),
        "b": drawn(1, 8 * HIDDEN),
        "head": drawn(10, HIDDEN),
        "zero": np.asarray([0], np.int64),
        "zero_one": np.asarray([0, 1], np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["obs", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Unsqueeze", ["normal", "zero"], ["sequence"]),
        helper.make_node(
            "LSTM", ["sequence", "w", "r", "b", "", "h_in", "c_in"], ["y", "h_out", "c_out"], hidden_size=HIDDEN
        ),
        helper.make_node("Squeeze", ["y", "zero_one"], ["latent"]),
        helper.make_node("Gemm", ["latent", "head"], ["actions"], transB=1),
    ]

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = (1, 1, HIDDEN)
    graph = helper.make_graph(
        nodes,
        "actor",
        [value("obs", 1, SIZE), value("h_in", *state), value("c_in", *state)],
        [value("actions", 1, 10), value("h_out", *state), value("c_out", *state)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def record(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Episodes of a simulation that has no physics: sensors wander, and the policy answers."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng, robot = np.random.default_rng(1), load_robot("kbot")
    home = np.asarray([robot.joint(name).home_rad for name in LEGS])
    scale = np.asarray([0.3] * 6 + [0.4] * 2 + [0.2] * 2)
    obs, actions, starts = [], [], []
    for _ in range(EPISODES):
        h = c = np.zeros((1, 1, HIDDEN), np.float32)
        last, gyros, command = np.zeros(10), deque(maxlen=3), rng.uniform([-0.5, -0.3, -1.0], [1.0, 0.3, 1.0])
        angle, velocity = home + rng.normal(0.0, 0.02, 10), np.zeros(10)
        for t in range(STEPS):
            gyro = rng.normal(0.0, 0.2, 3)
            lean = rng.normal(0.0, 0.03, 2)
            gyros.extend([0.25 * gyro] * (3 if t == 0 else 1))
            phase = t * PERIOD_S / 0.8 + np.asarray([0.0, 0.5])
            frame = [
                *gyros,
                np.append(lean, -np.sqrt(1.0 - lean @ lean)),
                command,
                np.clip(angle - home, -1.0, 1.0),
                0.05 * velocity,
                last,
                np.sin(2.0 * np.pi * phase),
                np.cos(2.0 * np.pi * phase),
            ]
            row = np.clip(np.concatenate(frame), -100.0, 100.0).astype(np.float32)
            out, h, c = session.run(None, {"obs": row[None], "h_in": h, "c_in": c})
            obs.append(row)
            actions.append(out.reshape(-1))
            starts.append(t == 0)
            last = np.clip(actions[-1], -5.0, 5.0)
            target = scale * last + home
            velocity = 0.8 * velocity + 1.0 * (target - angle)
            angle = angle + PERIOD_S * velocity
    return {"obs": np.stack(obs), "actions": np.stack(actions), "starts": np.asarray(starts)}


def main(argv: list[str] | None = None) -> int:
    """Write both files."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--out", type=Path, default=Path("theirs"), help="the folder (%(default)s)")
    args = parse.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    model = policy()
    onnx.save(model, args.out / "theirs.onnx")
    np.savez(args.out / "recorded.npz", **record(model))
    print(f"wrote theirs.onnx and recorded.npz in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
