"""Small robots written to disk, whole or broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Two legs with a knee each; everything that MuJoCo lets a file say in more than one way is said in one of the odd ways.
BIPED_XML = """
<mujoco model="biped">
  <compiler angle="degree"/>
  <default>
    <joint damping="0.5"/>
    <default class="leg">
      <joint armature="0.03" frictionloss="0.4" range="-90 90"/>
      <default class="knee">
        <joint range="-10 120" damping="0.7"/>
      </default>
    </default>
  </default>
  <worldbody>
    <body name="pelvis" pos="0 0 1" childclass="leg">
      <freejoint/>
      <inertial pos="0 0 0" mass="5" diaginertia="0.05 0.05 0.05"/>
      <site name="imu"/>
      <body name="left_thigh" pos="0 0.1 0">
        <joint name="left_hip" axis="0 1 0"/>
        <inertial pos="0 0 -0.2" mass="2" diaginertia="0.02 0.02 0.002"/>
        <frame pos="0 0 -0.4">
          <body name="left_shin">
            <joint name="left_knee" axis="0 1 0" class="knee"/>
            <geom name="left_sole" type="box" size="0.1 0.05 0.02" pos="0.05 0 -0.38" mass="1"/>
            <site name="left_foot" pos="0 0 -0.4"/>
          </body>
        </frame>
      </body>
      <body name="right_thigh" pos="0 -0.1 0">
        <joint name="right_hip" axis="0 1 0"/>
        <inertial pos="0 0 -0.2" mass="2" diaginertia="0.02 0.02 0.002"/>
        <body name="right_shin" pos="0 0 -0.4">
          <joint name="right_knee" axis="0 1 0" class="knee" range="-20 100"/>
          <geom name="right_sole" type="box" size="0.1 0.05 0.02" pos="0.05 0 -0.38" mass="1"/>
          <site name="right_foot" pos="0 0 -0.4"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor name="a" joint="left_hip" ctrlrange="-5 5"/>
    <position name="b" joint="right_knee" kp="7"/>
    <motor name="c" joint="right_hip"/>
    <motor name="d" joint="left_knee"/>
  </actuator>
  <sensor>
    <touch name="t" site="left_foot"/>
    <gyro name="g" site="imu" noise="0.1"/>
  </sensor>
  <keyframe>
    <key name="home" qpos="0 0 1 1 0 0 0  0.1 0.2 -0.1 0.3"/>
  </keyframe>
</mujoco>
"""

BIPED_METADATA: dict[str, Any] = {
    "joint_name_to_metadata": {
        "left_hip": {"id": 1, "kp": "80.0", "kd": "2.5", "actuator_type": "big", "soft_torque_limit": "30"},
        "left_knee": {"id": 2, "kp": 60, "kd": 2, "actuator_type": "big", "min_angle_deg": "0", "max_angle_deg": "150"},
        "right_hip": {"id": 3, "kp": "80.0", "kd": "2.5", "actuator_type": "big", "armature": "0.011"},
        "right_knee": {"id": "4", "kp": "60", "kd": "2", "actuator_type": "small", "friction": "0.25"},
    },
    "actuator_type_to_metadata": {
        "big": {"max_torque": "50", "max_velocity": "10", "armature": "0.02", "frictionloss": "0.2"},
        "small": {"max_torque": "20", "max_velocity": "15", "armature": None, "frictionloss": None},
    },
    "control_frequency": "50",
}


@pytest.fixture
def write_robot(tmp_path: Path) -> Callable[..., Path]:
    """Writes a robot folder; `edit` changes a copy of the metadata in place, `text` stands for the model."""

    def write(
        text: str = BIPED_XML,
        edit: Callable[[dict[str, Any]], Any] | None = None,
        name: str = "biped",
        model: str = "robot.xml",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        metadata = copy.deepcopy(BIPED_METADATA)
        if edit is not None:
            edit(metadata)
        (folder / model).write_text(text)
        (folder / "metadata.json").write_text(json.dumps(metadata))
        return folder

    return write


@pytest.fixture
def biped_xml() -> str:
    """The model file of the small robot."""
    return BIPED_XML


CRATE = """<worldbody>
    <body name="foot_crate" pos="50 0 30"><freejoint/><site name="foot_mark"/><site name="imu_mark"/>
      <geom type="box" size="0.1 0.1 0.1" mass="7"/></body>"""


@pytest.fixture
def crate_xml() -> str:
    """The same robot after a crate with a free joint, far off in the air, whose names say feet and IMU."""
    text = BIPED_XML.replace("<worldbody>", CRATE)
    return text.replace('qpos="0 0 1', 'qpos="50 0 30 1 0 0 0  0 0 1')
