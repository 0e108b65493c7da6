"""Configurations of the first version: what their keys are called now.

Checkpoints and YAML files of that version had one class for each room in place of terms. Here each old key names the
new ones that say the same. Nothing else knows that there was an older version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a file without a task meant.
TASK = "kbot_stand"

# section -> key -> where it stands now: dotted keys of the new configuration.
_MOVED: dict[str, dict[str, tuple[str, ...]]] = {
    "reset": {
        "joint_position_rad": ("resets.joint_position.width_rad",),
        "joint_velocity_rad_s": ("resets.joint_velocity.width_rad_s",),
        "tilt_rad": ("resets.tilt.width_rad",),
        "lin_vel_m_s": ("resets.base_velocity.lin_vel_m_s",),
        "ang_vel_rad_s": ("resets.base_velocity.ang_vel_rad_s",),
        "lift_m": ("resets.height.lift_m",),
    },
    "randomization": {
        "payload_kg": ("randomizations.payload.mass_kg",),
        "com_m": ("randomizations.com.width_m",),
        "damping": ("randomizations.damping.damping",),
        "joint_offset_rad": ("randomizations.joint_offset.width_rad",),
        "imu_tilt_rad": ("randomizations.imu_tilt.width_rad",),
        **{
            name: (f"randomizations.{name}.factor",)
            for name in ("friction", "link_mass", "armature", "kp", "kd", "torque_limit", "joint_friction")
        },
    },
    "latency": {
        "action_s": ("channels.action.latency_s",),
        "observation_s": ("channels.joints.latency_s", "channels.imu.latency_s"),
        "jitter_s": tuple(f"channels.{name}.jitter_s" for name in ("action", "joints", "imu")),
        "loss": ("channels.action.loss",),
    },
    "noise": {
        "joint_position_rad": ("observations.joint_angles.noise.std",),
        "joint_velocity_rad_s": ("observations.joint_angular_velocities.noise.std",),
        "gravity_m_s2": ("observations.projected_gravity.noise.std",),
        "gyro_rad_s": ("observations.gyroscope.noise.std",),
        "accel_m_s2": ("observations.accelerometer.noise.std",),
    },
    "pushes": {name: (f"events.pushes.{name}",) for name in ("force_n", "duration_s", "interval_s")},
}
_TERMINATIONS = {
    "height_share": "terminations.base_too_low.height_share",
    "tilt_deg": "terminations.too_tilted.tilt_deg",
}


def _put(data: dict[str, Any], key: str, value: Any, partial: Callable[[], dict[str, Any]] = dict) -> None:
    *parts, last = key.split(".")
    for part in parts:
        data = data.setdefault(part, partial())
    data[last] = value


def translated(data: dict[str, Any]) -> dict[str, Any]:
    """Plain values with the old keys in their new places; new ones are left as they are."""
    data = {k: (type(v)(v) if isinstance(v, dict) else v) for k, v in data.items()}
    out = {k: v for k, v in data.items() if k not in _MOVED}
    for section, keys in _MOVED.items():
        values = data.get(section)
        if not isinstance(values, dict):
            if section in data:
                out[section] = values  # refused with what is expected
            continue
        for name, value in values.items():
            if section == "pushes" and name == "curriculum":
                out["curriculum"] = {"kind": "SurvivalCurriculum" if value else "FixedCurriculum"}
                continue
            for key in keys.get(name, (f"{section}.{name}",)):
                _put(out, key, value)
    ends = out.get("terminations")
    if isinstance(ends, dict):
        out["terminations"] = {k: v for k, v in ends.items() if k not in _TERMINATIONS}
        for name, key in _TERMINATIONS.items():
            if name in ends:
                _put(out, key, ends[name])
    commands = out.get("commands")
    if isinstance(commands, dict) and "commands" in data and _old_commands(commands):
        out["commands"] = _commands(commands)
    return out


def _old_commands(commands: dict[str, Any]) -> bool:
    """A mapping of names to ranges, as the first version had it."""
    return bool(commands) and all(isinstance(v, (list, tuple)) for v in commands.values())


def _commands(commands: dict[str, Any]) -> dict[str, Any]:
    return {name: {"kind": "UniformCommand", "name": name, "range": list(span)} for name, span in commands.items()}
