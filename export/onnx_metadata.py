"""What mjlab and exporters like it note in an ONNX file: names and numbers between commas, most with three decimals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.errors import ExportError

# mjlab's, Isaac Lab's and their examples' names of terms, and what they are here.
TERMS = {
    "base_ang_vel": "gyroscope",
    "imu_ang_vel": "gyroscope",
    "projected_gravity": "projected_gravity",
    "command": "command",
    "velocity_commands": "command",
    "generated_commands": "command",
    "joint_pos": "joint_angles",
    "joint_pos_rel": "joint_angles",
    "joint_vel": "joint_angular_velocities",
    "joint_vel_rel": "joint_angular_velocities",
    "actions": "last_action",
    "last_action": "last_action",
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Numbers as a file's text has them.

    Attributes:
        values: the numbers.
        slack: how far each may lie from what was meant: half of its last decimal.
    """

    values: tuple[float, ...]
    slack: tuple[float, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing was rounded away: they have more than six decimals, or none that says anything."""
        return all(s < 1e-6 or v == round(v, 1) for v, s in zip(self.values, self.slack, strict=True))


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a file says of its policy; empty or None where it does not.

    Attributes:
        joint_names: all joints, in the order of training.
        observation_names: of the terms, in order.
        numbers: joint_stiffness, joint_damping, default_joint_pos, action_scale.
        term_scale: of each term.
        term_history: of each term; 0 and 1 are none.
        term_clip: of each term.
    """

    joint_names: tuple[str, ...] = ()
    observation_names: tuple[str, ...] = ()
    numbers: Mapping[str, Rounded] = field(default_factory=dict)
    term_scale: tuple[float | tuple[float, ...], ...] = ()
    term_history: tuple[int, ...] = ()
    term_clip: tuple[tuple[float, float], ...] = ()


def _items(text: str) -> list[str]:
    """What stands between the commas of a text."""
    return [item.strip().strip("'\"") for item in text.strip().strip("[]").split(",")] if text else []


def _rounded(path: Path, key: str, items: Sequence[str]) -> Rounded:
    bad = next((item for item in items if not _NUMBER.match(item)), None)
    if bad is not None:
        raise ExportError(f"{path}: metadata {key}: got {bad[:40]!r}, expected numbers between commas; export it again")
    slack = [0.5 * 10.0 ** -len(item.partition(".")[2]) if "e" not in item.lower() else 0.0 for item in items]
    return Rounded(values=tuple(map(float, items)), slack=tuple(slack))


def _pair(path: Path, key: str, item: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in item.strip("[]()").split(","))
    except ValueError:
        raise ExportError(f"{path}: metadata {key}: got {item[:40]!r}, expected numbers; export it again") from None


def read_metadata(path: Path, properties: Mapping[str, str]) -> Metadata:
    """What is known of a file's properties; others are passed over.

    Raises:
        ExportError: one of them does not hold what its name says.
    """

    def texts(key: str) -> tuple[str, ...]:
        return tuple(item for item in _items(properties.get(key, "")) if item)

    numbers = {
        key: _rounded(path, key, texts(key))
        for key in ("joint_stiffness", "joint_damping", "default_joint_pos", "action_scale")
        if texts(key)
    }
    # brackets around each term's own list: "[-inf, inf],[-1.0, 1.0]"
    clips = re.findall(r"[\[(][^\[\]()]*[\])]", properties.get("observation_terms_clip", ""))
    scale_text = properties.get("observation_terms_scale", "")
    scales = [_pair(path, "observation_terms_scale", item) for item in _scale_items(scale_text)]
    histories = texts("observation_terms_history_length")
    return Metadata(
        joint_names=texts("joint_names"),
        observation_names=texts("observation_names"),
        numbers=numbers,
        term_scale=tuple(s[0] if len(s) == 1 else s for s in scales),
        term_history=tuple(int(v) for v in _rounded(path, "observation_terms_history_length", histories).values),
        term_clip=tuple(_pair(path, "observation_terms_clip", item)[:2] for item in clips),  # type: ignore[misc]
    )


def _scale_items(text: str) -> list[str]:
    return [item for item in re.findall(r"\[[^\]]*\]|[^,\[\]]+", text) if item.strip()]
