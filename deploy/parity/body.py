"""Short windows restarted from the measured state: how far the simulated motion is from the measured one."""

from __future__ import annotations

import math
from typing import Any

from deploy.parity.motion import Replay
from deploy.parity.report import Figure, Layer, LayerName
from deploy.parity.statistics import correlation, rms

# Ours: of the size of the tilt that an IMU is mounted off by.
TILT_GOOD_RAD, TILT_POOR_RAD = 0.03, 0.08


def compare(replay: Replay, names: tuple[str, ...], period_s: float) -> dict[str, Any]:
    """Errors of the simulated motion, simulated minus measured: overall, by joint and by horizon.

    The correlation of positions is that of the motion since each window's restart: whole positions would correlate
    whatever the model is.
    """
    if not replay.position.size:
        return _nothing(names)
    position, velocity = replay.position_sim - replay.position, replay.velocity_sim - replay.velocity
    moved, moved_sim = replay.position - replay.start[:, None], replay.position_sim - replay.start[:, None]
    horizons = replay.position.shape[1]
    per_joint = {
        name: {
            "position_rmse_rad": rms(position[..., j]),
            "position_bias_rad": float(position[..., j].mean()),
            "position_correlation": correlation(moved[..., j], moved_sim[..., j]),
            "velocity_rmse_rad_s": rms(velocity[..., j]),
            "velocity_bias_rad_s": float(velocity[..., j].mean()),
            "velocity_correlation": correlation(replay.velocity[..., j], replay.velocity_sim[..., j]),
            "motion_rms_rad": rms(moved[..., j]),
        }
        for j, name in enumerate(names)
    }
    return {
        "windows": len(replay.first),
        "window_s": horizons * period_s,
        "joint_position_rmse_rad": rms(position),
        "joint_velocity_rmse_rad_s": rms(velocity),
        "joint_position_bias_rad": float(position.mean()),
        "base_tilt_rmse_rad": rms(replay.tilt_error_rad),
        "base_tilt_max_rad": float(replay.tilt_error_rad.max()) if replay.tilt_error_rad.size else math.nan,
        "motion_rms_rad": rms(moved),
        "horizon": {
            "time_s": [(h + 1) * period_s for h in range(horizons)],
            "joint_position_rmse_rad": [rms(position[:, h]) for h in range(horizons)],
            "joint_velocity_rmse_rad_s": [rms(velocity[:, h]) for h in range(horizons)],
            "base_tilt_rmse_rad": [rms(replay.tilt_error_rad[:, h]) for h in range(horizons)],
        },
        "per_joint": per_joint,
    }


def _nothing(names: tuple[str, ...]) -> dict[str, Any]:
    """What `compare` gives where there is no window."""
    joint = (
        *("position_rmse_rad", "position_bias_rad", "position_correlation", "velocity_rmse_rad_s"),
        *("velocity_bias_rad_s", "velocity_correlation", "motion_rms_rad"),
    )
    whole = (
        *("joint_position_rmse_rad", "joint_velocity_rmse_rad_s", "joint_position_bias_rad", "base_tilt_rmse_rad"),
        *("base_tilt_max_rad", "motion_rms_rad"),
    )
    horizon = ("time_s", "joint_position_rmse_rad", "joint_velocity_rmse_rad_s", "base_tilt_rmse_rad")
    return {
        "windows": 0,
        "window_s": 0.0,
        **dict.fromkeys(whole, math.nan),
        "horizon": {key: [] for key in horizon},
        "per_joint": {name: dict.fromkeys(joint, math.nan) for name in names},
    }


def body_layer(motion: dict[str, Any], *, base_held: bool) -> Layer:
    """The layer of what `compare` found: how the base tilts otherwise than in the simulation."""
    if base_held:
        return Layer(name=LayerName.BODY, untold="the base cannot move")
    last = motion["horizon"]["base_tilt_rmse_rad"][-1]
    return Layer(
        name=LayerName.BODY,
        figures=(
            Figure(
                key="base_tilt_rmse_rad",
                what="tilt of the base, RMSE over short windows",
                value=motion["base_tilt_rmse_rad"],
                unit="rad",
                good=TILT_GOOD_RAD,
                poor=TILT_POOR_RAD,
            ),
            Figure(
                key="base_tilt_end_rmse_rad",
                what=f"tilt of the base at the end of windows of {motion['window_s']:.2g} s",
                value=last,
                unit="rad",
                good=1.5 * TILT_GOOD_RAD,
                poor=1.5 * TILT_POOR_RAD,
            ),
            Figure(
                key="base_tilt_max_rad",
                what="tilt of the base, the greatest error",
                value=motion["base_tilt_max_rad"],
                unit="rad",
            ),
        ),
    )
