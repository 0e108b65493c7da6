"""From the policy's action to the motor: what safety changed, what was lost, how late it came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.robot.faults import ClampKind


def safety_counts(log: RunLog) -> dict[str, Any]:
    """How many ticks of the run had each kind of intervention."""
    kinds: dict[str, int] = {}
    joints: dict[str, int] = {}
    rows = np.flatnonzero(log.run)
    for row in rows:
        for reason in log.safety[row]:
            kinds[reason.kind.value] = kinds.get(reason.kind.value, 0) + 1
            joints[reason.joint] = joints.get(reason.joint, 0) + 1
    changed = np.abs(log.sent[rows] - log.action[rows])
    # bounding the torque asked for leaves the torque given as it is: the motor has the same limit
    others = [any(reason.kind is not ClampKind.TORQUE for reason in log.safety[row]) for row in rows]
    return {
        "ticks_with_intervention": sum(bool(log.safety[row]) for row in rows),
        "ticks_with_other_than_torque": sum(others),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "joints": dict(sorted(joints.items(), key=lambda item: -item[1])),
        "change_max_rad": float(np.nanmax(changed)) if np.isfinite(changed).any() else math.nan,
    }
