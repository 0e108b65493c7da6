"""Logs as other programs write them, made for tests, and what the tests of their import share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from deploy.log.imports.pyfirmware import GAINS
from deploy.log.recorder import read_log
from deploy.log.tools import main
from robots.bundle import read_bundle
from robots.load import load_robot
from robots.rotation import gravity_in_frame
from toolkit.files import shipped_policy

ARM = ("shoulder_pan", "elbow_flex", "gripper")
LIMITS = {"shoulder_pan": (-1.9, 1.9), "elbow_flex": (-1.7, 1.7), "gripper": (-0.2, 1.8)}
SECONDS = 4.0


def arm_folder(folder: Path) -> Path:
    """A robot folder with an arm of three joints on a fixed base."""
    folder.mkdir()
    bodies, ends = "", ""
    for name, (low, high) in LIMITS.items():
        bodies += f'<body name="{name}_link" pos="0 0 0.1"><joint name="{name}" axis="0 1 0" range="{low} {high}"/>'
        bodies += '<geom type="capsule" fromto="0 0 0 0 0 0.1" size="0.01" mass="0.1"/>'
        ends += "</body>"
    (folder / "robot.xml").write_text(
        f'<mujoco model="arm"><compiler angle="radian"/><worldbody><body name="base">'
        f'<geom size="0.02" mass="0.1"/>{bodies}{ends}</body></worldbody></mujoco>'
    )
    joints = {n: {"id": k + 1, "kp": 20, "kd": 0.5, "actuator_type": "servo"} for k, n in enumerate(LIMITS)}
    types = {"servo": {"max_torque": 3.35, "max_velocity": 4.7, "armature": 0.01, "frictionloss": 0.02}}
    data = {"joint_name_to_metadata": joints, "actuator_type_to_metadata": types, "control_frequency": 50}
    (folder / "metadata.json").write_text(json.dumps(data | {"ksim2real": {"floating": False}}))
    return folder


def mapped(tmp_path, text):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    return path


def taken(path, out, *words):
    """The log that the command makes."""
    assert main(["import", str(path), "-o", str(out), *map(str, words)]) == 0
    return read_log(out)


@dataclasses.dataclass
class FieldRun:
    """A log as pyfirmware writes it, and what its loop saw."""

    path: Path
    rows: list[dict]
    reused: dict[str, int]


def field_run(folder: Path, start: str = "home", seconds: float = SECONDS) -> FieldRun:
    """The stand policy on the twin's plant, standing or with start "hang", by the arithmetic of pyfirmware's loop.

    It sleeps for what is left of 20 ms after its work was measured, so that a period is a little long; a joint whose
    motor does not answer keeps its last reading; the IMU gives a new sample every other tick.
    """
    pytest.importorskip("mujoco")
    from deploy.bundle.session import OnnxPolicy
    from deploy.twin.plant import Plant

    bundle = read_bundle(shipped_policy("stand", ".kinfer"))
    robot, plant, policy = load_robot("kbot"), Plant("kbot", start=start), OnnxPolicy(bundle)
    for j, joint in enumerate(robot.joints):
        kp, kd = GAINS.get(joint.name, (joint.kp, joint.kd))  # whatever the policy was trained with
        plant.configure(j, kp=kp, kd=kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    order = [robot.joint_names.index(name) for name in bundle.joint_names]
    back = np.argsort(order)
    command = {name: 0.0 for name in bundle.command_names}
    rng, rows, reused = np.random.default_rng(3), [], dict.fromkeys(bundle.joint_names, 0)
    now_s, last, imu = 0.0, None, None

    def until(at_s: float) -> None:
        plant.advance(round(at_s / plant.dt) - plant.step_count)

    start = plant.step_count * plant.dt
    while now_s < seconds:
        dt = {"joints": rng.uniform(2, 4), "imu": rng.uniform(0.1, 0.3), "step": rng.uniform(0.5, 1.5)}
        dt |= {"action": rng.uniform(2, 3), "flush_can_busses": rng.uniform(1, 2)}
        until(start + now_s)
        read = plant.read()
        fresh = np.stack([read.position, read.velocity, read.torque])[:, order]
        silent = rng.random(len(order)) < 0.02
        if last is not None:
            fresh[:, silent] = last[:, silent]
            for j in np.flatnonzero(silent):
                reused[bundle.joint_names[j]] += 1
        last = fresh
        if imu is None or len(rows) % 2 == 0:
            imu = gravity_in_frame(read.quat_wxyz).tolist(), read.gyro_b.tolist()
        given = {"joint_angles": fresh[0], "joint_angular_velocities": fresh[1], "projected_gravity": imu[0]}
        given |= {"gyroscope": imu[1], "command": list(command.values())}
        action = policy.step({n: np.asarray(given[n], dtype=np.float32) for n in policy.inputs})
        until(start + now_s + 1e-3 * sum(dt.values()))
        plant.command(range(len(order)), action[back].astype(float), np.zeros(len(order)), np.zeros(len(order)))
        work_ms = sum(dt.values())
        rows.append(
            {
                "timestamp": now_s,
                "step_id": len(rows),
                "dt_ms": work_ms,
                **{f"dt_{name}_ms": value for name, value in dt.items()},
                "dt_roundtrip_ms": work_ms - dt["flush_can_busses"],
                "joint_angles": fresh[0].tolist(),
                "joint_velocities": fresh[1].tolist(),
                "joint_torques": fresh[2].tolist(),
                "joint_temps": [30.0 + 0.01 * len(rows)] * len(order),
                "projected_gravity": imu[0],
                "gyroscope": imu[1],
                "command": command,
                "action": action.tolist(),
                "joint_order": list(bundle.joint_names),
            }
        )
        # the print and the log come after the measurement, and a sleep ends late
        now_s += 1e-3 * (max(20.0, work_ms) + rng.uniform(0.1, 0.6))
    path = folder / "stand_20251023_101500" / "kinfer_log.ndjson"
    path.parent.mkdir()
    write_rows(path, rows)
    return FieldRun(path=path, rows=rows, reused=reused)


def write_rows(path, rows):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def column(rows, key):
    return np.array([r[key] for r in rows], dtype=float)


def plain(path, columns, rows=40):
    """A table of `rows` rows of 20 ms; columns are functions of the time."""
    lines = [",".join(["time_s", *columns])]
    for k in range(rows):
        lines.append(",".join([repr(0.02 * k), *(repr(float(f(0.02 * k))) for f in columns.values())]))
    path.write_text("\n".join(lines) + "\n")
    return path
