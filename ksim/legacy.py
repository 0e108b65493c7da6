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


# What is no setting any more: (section, key) -> (the value that meant nothing, what to give in place of any other).
_GONE: dict[tuple[str, str], tuple[Any, str]] = {
    ("policy", "symmetric"): (False, "ppo.symmetry: exact, and a training of its own"),
    ("ppo", "symmetry_weight"): (1.0, "ppo.symmetry: exact or augment"),
    ("ppo", "predict"): (0.0, "policy.estimator"),
}

# Of these only training knew: a checkpoint is read whatever they were.
_TRAINING_ONLY = (("ppo", "predict"),)

# What takes the thing out now, for an old section that holds nothing.
_OUT = {
    "reset": "resets",
    "randomization": "randomizations",
    "latency": "channels.NAME",
    "noise": "observations.NAME.noise=null",
    "pushes": "events.pushes=null",
}


def translated(changes: Sequence[Mapping[Any, Any]], known: Sequence[str]) -> list[dict[Any, Any]]:
    """Plain values with the old keys in their new places; new ones are left as they are.

    Args:
        changes: what a file, a checkpoint or overrides say, one after the other.
        known: names of the commands that they change.

    Raises:
        ConfigError: an old section is no mapping or holds nothing, an old key and a new one say the same thing, or
            the old switch of the curriculum is neither true nor false.
    """
    out, names, whole = [], list(known), set()
    for change in changes:
        moved = _placed(_kept(change))
        commands = moved.get("commands")
        if isinstance(commands, Mapping):
            moved["commands"] = _commands(commands, names, whole)
            names += [name for name, value in moved["commands"].items() if value is not None and name not in names]
            names = [name for name in names if moved["commands"].get(name, "") is not None]
        if "commands" in moved and not commands:
            names = []
        out.append(moved)
    return out


def of_checkpoint(config: Any) -> Any:
    """The configuration in a checkpoint without what was for training alone and is no setting any more."""
    if not isinstance(config, Mapping):
        return config
    out = dict(config)
    for section, key in _TRAINING_ONLY:
        if isinstance(out.get(section), dict):
            out[section] = {k: v for k, v in out[section].items() if k != key}
    return out


def _kept(changes: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """One change without what is no setting any more."""
    for (section, key), (nothing, instead) in _GONE.items():
        values = changes.get(section)
        if not isinstance(values, dict) or key not in values:
            continue
        if values[key] != nothing:
            got = quote(values[key])
            raise ConfigError(f"configuration key {section}.{key}: got {got}; it is gone, expected {instead}")
        rest = type(values)({k: v for k, v in values.items() if k != key})
        changes = (type(changes) if isinstance(changes, dict) else dict)({**changes, section: rest})
    return changes


def _placed(changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """One change with its old keys in their new places."""
    kind = type(changes) if isinstance(changes, dict) else dict
    out: dict[Any, Any] = kind({k: v for k, v in changes.items() if k not in _MOVED})
    ends = out.get("terminations")
    ends = {name: ends[name] for name in _TERMINATIONS if name in ends} if isinstance(ends, Mapping) else {}
    if ends:
        out["terminations"] = kind({k: v for k, v in out["terminations"].items() if k not in ends})
        if not out["terminations"]:
            del out["terminations"]
    made: set[int] = set()  # mappings that are this function's own, by identity

    def put(old: str, key: str, value: Any) -> None:
        *parts, last = key.split(".")
        place, so_far = out, ""
        for part in parts:
            so_far = f"{so_far}.{part}" if so_far else part
            if part not in place:
                place[part] = kind()
            elif not isinstance(place[part], dict) or not place[part]:  # what it empties does not come back
                raise _twice(old, so_far)
            elif id(place[part]) not in made:
                place[part] = kind(place[part])
            place = place[part]
            made.add(id(place))
        if last in place:
            raise _twice(old, key)
        place[last] = value

    for section, keys in _MOVED.items():
        if section not in changes:
            continue
        values = changes[section]
        if not isinstance(values, Mapping) or not values:
            raise ConfigError(
                f"configuration key {section!r}: got {quote(values)}, expected a mapping of {', '.join(keys)}; "
                f"it is an old key, the new one is {_OUT[section]}"
            )
        for name, value in values.items():
            if (section, name) == ("pushes", "curriculum"):
                if not isinstance(value, bool):
                    got = quote(value)
                    raise ConfigError(f"configuration key pushes.curriculum: got {got}, expected true or false")
                put("pushes.curriculum", "curriculum", {"kind": "SurvivalCurriculum" if value else "FixedCurriculum"})
            elif name in keys:
                for key in keys[name]:
                    put(f"{section}.{name}", key, value)
            else:
                out[section] = {**out.get(section, {}), name: value}  # refused, with what there is
    for name, value in ends.items():
        put(f"terminations.{name}", _TERMINATIONS[name], value)
    return out


def _twice(old: str, new: str) -> ConfigError:
    return ConfigError(f"configuration keys {old} and {new} are the old name and the new one of the same; give one")


def _commands(commands: Mapping[Any, Any], known: Sequence[str], whole: set[str]) -> dict[Any, Any]:
    """A mapping of names to ranges is the whole of the commands, as it was; dotted keys change one.

    Two such mappings are one whole: `whole` has the names of those before, and gets these.
    """
    if isinstance(commands, Dotted):
        return Dotted(
            {known_as(name, known) if isinstance(name, str) else name: value for name, value in commands.items()}
        )
    if not commands or not all(isinstance(v, (list, tuple)) for v in commands.values()):
        return dict(commands)
    gone = {name: None for name in known if name not in commands and name not in whole}
    ranges = {
        name: span if name in known else {"kind": "UniformCommand", "name": name, "range": span}
        for name, span in commands.items()
    }
    whole.update(commands)
    return {**gone, **ranges}
