"""Configurations of the first version: what their keys are called now.

Checkpoints and YAML files of that version had one class for each room in place of terms. Here each old key names the
new ones that say the same. Nothing else knows that there was an older version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksim.errors import ConfigError
from robots.command_names import known_as
from toolkit.setting_values import Dotted
from toolkit.yaml_file import quote

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


def translated(changes: Mapping[Any, Any], known: Sequence[str]) -> dict[Any, Any]:
    """Plain values with the old keys in their new places; new ones are left as they are.

    Args:
        changes: what a file, a checkpoint or an override says.
        known: names of the commands that it changes.

    Raises:
        ConfigError: the old switch of the curriculum is neither true nor false.
    """
    kind = type(changes) if isinstance(changes, dict) else dict
    out: dict[Any, Any] = kind({k: v for k, v in changes.items() if k not in _MOVED})

    def put(key: str, value: Any) -> None:
        *parts, last = key.split(".")
        place = out
        for part in parts:
            place[part] = kind(place[part]) if isinstance(place.get(part), dict) else kind()
            place = place[part]
        place[last] = value

    for section, keys in _MOVED.items():
        values = changes.get(section)
        if not isinstance(values, Mapping):
            if values is not None:
                out[section] = values  # refused, with what there is
            continue
        for name, value in values.items():
            if (section, name) == ("pushes", "curriculum"):
                if not isinstance(value, bool):
                    got = quote(value)
                    raise ConfigError(f"configuration key pushes.curriculum: got {got}, expected true or false")
                put("curriculum", {"kind": "SurvivalCurriculum" if value else "FixedCurriculum"})
                continue
            for key in keys.get(name, (f"{section}.{name}",)):
                put(key, value)
    ends = changes.get("terminations")
    ends = ends if isinstance(ends, Mapping) else {}
    for name in _TERMINATIONS:
        if name in ends:
            out["terminations"] = {k: v for k, v in out["terminations"].items() if k != name}
            put(_TERMINATIONS[name], ends[name])
    commands = changes.get("commands")
    if isinstance(commands, Mapping):
        out["commands"] = _commands(commands, known)
    return out


def _commands(commands: Mapping[Any, Any], known: Sequence[str]) -> dict[Any, Any]:
    """A mapping of names to ranges is the whole of the commands, as it was; dotted keys change one."""
    if isinstance(commands, Dotted):
        return Dotted(
            {known_as(name, known) if isinstance(name, str) else name: value for name, value in commands.items()}
        )
    if not all(isinstance(v, (list, tuple)) for v in commands.values()):
        return dict(commands)
    gone = {name: None for name in known if name not in commands}
    ranges = {
        name: span if name in known else {"kind": "UniformCommand", "name": name, "range": span}
        for name, span in commands.items()
    }
    return {**gone, **ranges}
