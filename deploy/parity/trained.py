"""What a policy met in training, as its bundle tells it: the bounds of sensing and delay come from here."""

from __future__ import annotations

import math
from typing import Any

from robots.inputs import GRAVITY_INPUT, GYROSCOPE, JOINT_ANGLES, JOINT_VELOCITIES
from robots.rotation import GRAVITY_M_S2
from robots.spec import PolicySpec

# What stands for the noise that a bundle does not tell: of the size that the shipped tasks train with.
NOISE = {JOINT_ANGLES: 0.005, JOINT_VELOCITIES: 0.1, GYROSCOPE: 0.05, GRAVITY_INPUT: 0.1 / GRAVITY_M_S2}
_OLD_NOISE = {
    JOINT_ANGLES: "joint_position_rad",
    JOINT_VELOCITIES: "joint_velocity_rad_s",
    GYROSCOPE: "gyro_rad_s",
    GRAVITY_INPUT: "gravity_m_s2",
}


def told(spec: PolicySpec, *keys: str) -> Any:
    """A setting of training by its keys; None where the bundle does not tell it."""
    value: Any = spec.training
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def span(value: Any) -> tuple[float, float] | None:
    """(least, greatest) of a setting that is a range."""
    numbers = value if isinstance(value, (list, tuple)) else ()
    if len(numbers) != 2 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
        return None
    return float(numbers[0]), float(numbers[1])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def delay_s(spec: PolicySpec) -> tuple[float, float]:
    """Least and greatest delay from a command to its measured effect; 0 and 0 where nothing is told."""
    low, high = (a + b for a, b in zip(spec.action_latency_s, spec.observation_latency_s, strict=True))
    return low, high


def channel_rate_hz(spec: PolicySpec, channel: str) -> float:
    """The least rate of new values of "joints" or "imu"; 0 where each tick has new ones, or nothing is told."""
    found = span(told(spec, "channels", channel, "rate_hz"))
    return found[0] if found is not None else 0.0


def channel_latency_s(spec: PolicySpec, channel: str) -> tuple[float, float]:
    """Least and greatest latency of "joints" or "imu"."""
    found = span(told(spec, "channels", channel, "latency_s"))
    return spec.observation_latency_s[:2] if found is None else found  # type: ignore[return-value]


def noise(spec: PolicySpec, name: str) -> float:
    """Standard deviation of an input's noise in training, by its .kinfer name; gravity's as an angle [rad]."""
    unit = GRAVITY_M_S2 if name == GRAVITY_INPUT else 1.0
    old = _number(told(spec, "noise", _OLD_NOISE[name]))
    if old is not None:
        return old / unit
    found = told(spec, "observations", name, "noise")
    if not isinstance(found, dict):
        return NOISE[name]
    std, width = _number(found.get("std")), _number(found.get("width"))
    if std is None and width is not None:
        std = width / math.sqrt(3.0)
    return NOISE[name] if std is None else std / unit
