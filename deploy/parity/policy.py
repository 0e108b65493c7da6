"""The policy: do the recorded inputs give the recorded actions?"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.bundle.session import OnnxPolicy
from deploy.errors import PolicyError
from deploy.log.recorder import RunLog
from deploy.parity.errors import ParityError
from deploy.parity.report import Figure, Layer, LayerName


def replay_policy(log: RunLog) -> dict[str, Any]:
    """The recorded inputs through the recorded bundle from its first carry, against the recorded actions.

    Returns:
        `error_max` and `error_rms` [rad], `steps`; the errors are None where the log has no bundle.
    """
    rows = np.flatnonzero(log.run & np.isfinite(log.action).all(axis=1))
    if log.bundle is None or not len(rows):
        return {"error_max": None, "error_rms": None, "steps": 0}
    policy = OnnxPolicy(log.bundle)
    missing = [name for name in policy.inputs if name not in log.inputs]
    if missing:
        raise ParityError(f"{log.path}: inputs {missing} of the policy are not in the log; record the run again")
    errors = []
    try:
        for row in rows:
            action = policy.step({name: log.inputs[name][row] for name in policy.inputs})
            errors.append(action.astype(np.float64) - log.action[row])
    except PolicyError as error:
        raise ParityError(f"{log.path}: the recorded inputs do not pass through the policy again: {error}") from error
    all_errors = np.asarray(errors)
    return {
        "error_max": float(np.abs(all_errors).max()),
        "error_rms": float(np.sqrt(np.mean(all_errors**2))),
        "steps": len(rows),
    }


def policy_layer(found: dict[str, Any]) -> Layer:
    """The layer of what `replay_policy` found."""
    if found["error_max"] is None:
        return Layer(name=LayerName.POLICY, untold="the log does not hold the policy that ran, or no action of it")
    return Layer(
        name=LayerName.POLICY,
        figures=(
            Figure(
                key="policy_replay_error_max",
                what="greatest difference of a replayed action",
                value=found["error_max"],
                unit="rad",
                good=1e-5,
                poor=1e-4,
            ),
            Figure(
                key="policy_replay_error_rms",
                what="difference of replayed actions",
                value=found["error_rms"],
                unit="rad",
            ),
        ),
    )
