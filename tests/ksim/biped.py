"""A robot that is not the K-Bot: two legs of three joints, or of one, whose names say nothing."""

from __future__ import annotations

import json
from pathlib import Path

LEG = """
<body name="{side}_thigh" pos="0 {y} 0"><joint name="{p}1" axis="1 0 0" range="-0.5 0.5"/>
  <inertial pos="0 0 -0.1" mass="1" diaginertia="0.01 0.01 0.002"/>
  <body name="{side}_shin" pos="0 0 -0.2"><joint name="{p}2" axis="0 1 0" range="-1 1"/>
    <inertial pos="0 0 -0.1" mass="1" diaginertia="0.01 0.01 0.002"/>
    <body name="{side}_sole" pos="0 0 -0.25"><joint name="{p}3" axis="0 1 0" range="-0.8 0.8"/>
      <inertial pos="0.02 0 -0.02" mass="0.5" diaginertia="0.002 0.002 0.002"/>
      <geom type="box" size="0.1 0.05 0.02" pos="0.02 0 -0.03" mass="0"/>
      <site name="{side}_foot" pos="0.02 0 -0.05"/>
    </body>
  </body>
</body>
"""
SHORT_LEG = """
<body name="{side}_thigh" pos="0 {y} 0"><joint name="{p}1" axis="0 1 0" range="-0.5 0.5"/>
  <inertial pos="0 0 -0.1" mass="2" diaginertia="0.02 0.02 0.004"/>
  <geom type="sphere" size="0.05" pos="0 0 -0.5" mass="0" contype="0"/>
  <site name="{side}_foot" pos="0 0 -0.55"/>
</body>
"""
XML = """
<mujoco model="trotter"><compiler angle="radian"/><worldbody>
  <body name="trunk" pos="0 0 0.55"><freejoint name="root"/>
    <inertial pos="0 0 0.05" mass="6" diaginertia="0.08 0.06 0.05"/>
    <site name="imu"/>
    {left}{right}
  </body></worldbody>
</mujoco>
"""


def write_biped(folder: Path, joints: int = 3) -> Path:
    """Write the folder of a robot with legs of 3 joints or of 1, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    leg = {1: SHORT_LEG, 3: LEG}[joints]
    left, right = leg.format(side="left", p="L", y=0.1), leg.format(side="right", p="R", y=-0.1)
    (folder / "robot.xml").write_text(XML.format(left=left, right=right))
    names = [f"{side}{i + 1}" for side in "LR" for i in range(joints)]
    about = {
        name: {"id": i + 1, "kp": 60, "kd": 3, "actuator_type": "big", "armature": 0.02, "friction": 0.1}
        for i, name in enumerate(names)
    }
    metadata = {
        "joint_name_to_metadata": about,
        "actuator_type_to_metadata": {"big": {"max_torque": 40, "max_velocity": 20, "armature": 0.02}},
        "control_frequency": 50,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder
