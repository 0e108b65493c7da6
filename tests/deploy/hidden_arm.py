"""An arm of two links, a twin of which hides how its joints differ, and what a log of it has."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from deploy.sysid.motion import Motion
from deploy.twin.plant import Plant
from deploy.twin.reality import Reality

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    from sysid import recorded as log_of
finally:
    sys.path.pop(0)

ARM = """
<mujoco model="arm">
  <worldbody>
    <body name="upper" pos="0 0 0.5">
      <joint name="shoulder" axis="0 1 0" range="-150 150"/>
      <geom name="upper" type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.8" contype="0" conaffinity="0"/>
      <site name="imu"/>
      <body name="lower" pos="0.3 0 0">
        <joint name="elbow" axis="0 1 0" range="-150 150"/>
        <geom name="lower" type="capsule" fromto="0 0 0 0.25 0 0" size="0.02" mass="0.4" contype="0" conaffinity="0"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
METADATA = {
    "joint_name_to_metadata": {
        "shoulder": {"id": 1, "kp": 60, "kd": 2.0, "actuator_type": "servo"},
        "elbow": {"id": 2, "kp": 30, "kd": 1.0, "actuator_type": "servo"},
    },
    "actuator_type_to_metadata": {
        "servo": {"max_torque": 30, "max_velocity": 50, "armature": 0.02, "frictionloss": 0.1}
    },
    "control_frequency": 50,
    "ksim2real": {"floating": False, "imu_site": "imu", "home_deg": {"shoulder": 0, "elbow": 0}},
}


def two_links(folder: Path) -> Path:
    """The arm as a robot folder."""
    folder.mkdir()
    (folder / "robot.xml").write_text(ARM)
    (folder / "metadata.json").write_text(json.dumps(METADATA))
    return folder


def excited(seconds: float, seed: int) -> np.ndarray:
    """Steps, then a multisine, at 50 Hz, (T, 2) [rad]."""
    draw, time_s = np.random.default_rng(seed), np.arange(0, seconds, 0.02)
    levels = draw.uniform(-0.5, 0.5, (int(seconds / 2 / 0.8) + 1, 2))
    steps = levels[(time_s / 0.8).astype(int) % len(levels)]
    sines = sum(0.12 * np.sin(2 * np.pi * f * time_s[:, None] + draw.uniform(0, 6, 2)) for f in (0.3, 0.9, 2.1, 3.7))
    return np.where(time_s[:, None] < seconds / 2, steps, sines)


def recorded(arm: Path, reality: Reality, targets: np.ndarray, noise_rad: float = 0.0, name: str = "motion") -> Motion:
    """What a log of the twin has: each row is the state just before its command."""
    plant = Plant(arm, reality, seed=1)
    for i, joint in enumerate(plant.spec.joints):
        plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
    motion = log_of(name, plant, targets)
    noise = noise_rad * np.random.default_rng(5).normal(size=targets.shape)
    return dataclasses.replace(motion, position=motion.position + noise)


HIDDEN = {
    "commands": {"latency_s": 0.013},
    "joints": {
        "kp_scale": {"shoulder": 0.7, "elbow": 1.25},
        "kd_scale": {"shoulder": 1.3, "elbow": 0.8},
        "friction_add_nm": {"shoulder": 0.3, "elbow": 0.15},
    },
}
