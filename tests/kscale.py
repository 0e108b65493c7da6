"""Files as K-Scale's exporters leave them, written with onnx and tarfile and with nothing of ours, and pyfirmware's
way of starting one, written from what facts there are of it.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

LEGS = [f"dof_{side}_{joint}" for side in ("left", "right") for joint in
        ("hip_pitch_04", "hip_roll_03", "hip_yaw_03", "knee_04", "ankle_02")]  # fmt: skip
ARMS = [f"dof_{side}_{joint}" for side in ("right", "left") for joint in
        ("shoulder_pitch_03", "shoulder_roll_03", "shoulder_yaw_02", "elbow_02", "wrist_00")]  # fmt: skip
JOINTS = [*ARMS, *LEGS]  # arms first, as theirs
# the home pose that K-Scale publishes [degrees]
HOME_DEG = {
    **{"left_hip_pitch": 20, "right_hip_pitch": -20, "left_knee": 50, "right_knee": -50},
    **{"left_ankle": -30, "right_ankle": 30, "left_shoulder_roll": 10, "right_shoulder_roll": -10},
    **{"left_elbow": -90, "right_elbow": 90},
}
HOME = [math.radians(HOME_DEG.get(name[4:-3], 0)) for name in JOINTS]
COMMANDS = ["xvel", "yvel", "yawrate", "baseheight", "baseroll", "basepitch"]
SIX = ("joint_angles", "joint_angular_velocities", "projected_gravity", "gyroscope", "command", "carry")
# before kinfer 0.6
OLD = ("joint_angles", "joint_angular_velocities", "quaternion", "initial_heading", "command", "carry")
ORDER = ("init_fn.onnx", "step_fn.onnx", "metadata.json")


def write(
    path: Path,
    *,
    inputs: tuple[str, ...] = SIX,
    joints: list[str] = JOINTS,
    carry: tuple[int, ...] = (2, 128),
    order: tuple[str, ...] = ORDER,
    opset: int = 17,
    ir_version: int = 8,
    commands: int = len(COMMANDS),
    **metadata: Any,
) -> Path:
    """A policy that stays near the home pose, with a state that every input moves. `...` leaves a key out."""
    from onnx import TensorProto, helper, numpy_helper

    told = {"joint_names": joints, "command_names": COMMANDS, "carry_size": list(carry), "joint_biases": HOME}
    told = {k: v for k, v in (told | metadata).items() if v is not ...}
    sizes = {"joint_angles": len(joints), "joint_angular_velocities": len(joints), "command": commands, "time": 1}
    sizes |= {"projected_gravity": 3, "accelerometer": 3, "gyroscope": 3, "quaternion": 4, "initial_heading": 1}

    def tensor(name: str, shape: tuple[int, ...]):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def const(name: str, values: Any):
        return numpy_helper.from_array(np.asarray(values, np.float32), name)

    nodes, last = [], "zero"
    for k, name in enumerate(i for i in inputs if i != "carry"):
        nodes.append(helper.make_node("ReduceSum", [name], [f"sum{k}"], keepdims=0))
        nodes.append(helper.make_node("Mul", [f"sum{k}", "small"], [f"part{k}"]))
        nodes.append(helper.make_node("Add", [last, f"part{k}"], [f"drive{k}"]))
        last = f"drive{k}"
    state = "carry" if "carry" in inputs else "start"
    nodes.append(helper.make_node("Add", [state, last], ["moved"]))
    nodes.append(helper.make_node("Tanh", ["moved"], ["carry_out"]))
    nodes.append(helper.make_node("ReduceMax", ["carry_out"], ["most"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["most", "little"], ["sway"]))
    nodes.append(helper.make_node("Add", ["home", "sway"], ["action"]))
    weights = [const("zero", 0.0), const("small", 0.01), const("little", 0.02), const("home", HOME[: len(joints)])]
    start = const("start", np.zeros(carry))

    def model(graph) -> bytes:
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        return made.SerializeToString()

    first = helper.make_node("Identity", ["start"], ["carry"])
    given = [tensor(name, carry if name == "carry" else (sizes[name],)) for name in inputs]
    made = [tensor("action", (len(joints),)), tensor("carry_out", carry)]
    files = {
        "init_fn.onnx": model(helper.make_graph([first], "init", [], [tensor("carry", carry)], [start])),
        "step_fn.onnx": model(helper.make_graph(nodes, "step", given, made, [*weights, start])),
        "metadata.json": json.dumps(told).encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name in order:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return path


KNOWN_JOINTS = {*JOINTS, "dof_left_wrist_gripper_05", "dof_right_wrist_gripper_05"}


class Refused(Exception):
    """pyfirmware would not run it."""


def start_as_pyfirmware(path: Path, ticks: int = 5) -> np.ndarray:
    """What pyfirmware does with a file up to its first ticks, at the home pose: its actions (ticks, joints).

    Raises:
        Exception: whatever it is that fails.
    """
    import onnxruntime

    if path.suffix != ".kinfer":
        raise Refused("a name")
    with tarfile.open(path, "r:gz") as tar:
        if tar.getnames() != list(ORDER):
            raise Refused("the members")
        init, step, text = (tar.extractfile(name).read() for name in ORDER)  # type: ignore[union-attr]
    init, step = onnxruntime.InferenceSession(init), onnxruntime.InferenceSession(step)
    metadata = json.loads(text)
    for _ in range(100):  # warm up
        step.run(None, {i.name: np.zeros(i.shape, np.float32) for i in step.get_inputs()})
    carry = init.run(None, {})[0]
    joints, commands = metadata["joint_names"], dict.fromkeys(metadata.get("command_names", []), 0.0)
    if not set(joints) <= KNOWN_JOINTS:
        raise Refused("a joint")
    home = metadata.get("joint_biases") or HOME
    pose = {name: float(angle) for name, angle in zip(joints, home, strict=True)}
    if any(abs(angle) > 2.0 for angle in pose.values()):
        raise Refused("a joint is far from zero")
    for key in ("xvel", "yvel", "yawrate"):  # the keys of its keyboard
        commands[key] = commands[key] + 0.1
    actions = []
    for _ in range(ticks):
        read = {
            "joint_angles": list(pose.values()),
            "joint_angular_velocities": [0.0] * len(joints),
            "projected_gravity": [0.0, 0.0, -9.81],
            "gyroscope": [0.0, 0.0, 0.0],
            "command": list(commands.values()),
        }
        feed = {name: np.array(values, dtype=np.float32) for name, values in read.items()}
        action, carry = step.run(None, {**feed, "carry": carry})
        assert action.shape == (len(joints),) and np.isfinite(action).all()
        actions.append(action)
    return np.stack(actions)
