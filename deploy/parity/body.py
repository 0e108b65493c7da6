"""Short windows restarted from the measured state: how far the simulated motion is from the measured one."""

from __future__ import annotations

from typing import Any

from deploy.parity.motion import Replay
from deploy.parity.statistics import correlation, rms


def compare(replay: Replay, names: tuple[str, ...], period_s: float) -> dict[str, Any]:
    """Errors of the simulated motion, simulated minus measured: overall, by joint and by horizon.

    The correlation of positions is that of the motion since each window's restart: whole positions would correlate
    whatever the model is.
    """
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
        "base_tilt_max_rad": float(replay.tilt_error_rad.max()),
        "motion_rms_rad": rms(moved),
        "horizon": {
            "time_s": [(h + 1) * period_s for h in range(horizons)],
            "joint_position_rmse_rad": [rms(position[:, h]) for h in range(horizons)],
            "joint_velocity_rmse_rad_s": [rms(velocity[:, h]) for h in range(horizons)],
            "base_tilt_rmse_rad": [rms(replay.tilt_error_rad[:, h]) for h in range(horizons)],
        },
        "per_joint": per_joint,
    }
