"""Walk after a joystick: velocity ahead and aside, yaw rate; stand still where nothing is asked."""

from __future__ import annotations

import dataclasses

from ksim import events, rewards
from ksim.channels import Channel
from ksim.clock import GaitClock
from ksim.commands import JoystickCommand
from ksim.config import Config, PolicyConfig, PpoConfig, RunConfig
from ksim.curriculum import LinearScale
from ksim.observation import GaitPhaseObservation
from ksim.tasks.stand import NEARER, stand

CLOCK = GaitClock(frequency_hz=1.25)


def walk() -> Config:
    """The task: that of standing, with a clock, a joystick and a gait to follow."""
    base = stand()
    return dataclasses.replace(
        base,
        task="kbot_walk",
        critic={**base.critic, "gait": GaitPhaseObservation(clock=CLOCK)},
        commands={"joystick": JoystickCommand()},
        channels={
            **base.channels,
            "action": Channel(latency_s=(0.003, 0.015), jitter_s=0.004, loss=0.03, scale=NEARER),
        },
        rewards={
            "linear_velocity": rewards.LinearVelocityTrackingReward(weight=2.0, width_m_s=0.5),
            "angular_velocity": rewards.AngularVelocityTrackingReward(weight=1.0, width_rad_s=0.5),
            "feet_phase": rewards.FeetPhaseReward(weight=4.0, height_m=0.09),
            "contact_phase": rewards.ContactPhaseReward(weight=1.5),
            "alive": rewards.AliveReward(weight=0.5),
            "upright": rewards.UprightReward(weight=0.5),
            "base_height": rewards.BaseHeightReward(weight=0.2),
            "slip": rewards.FeetSlipPenalty(weight=-0.2),
            "feet_close": rewards.FeetTooClosePenalty(weight=-5.0, least_m=0.17),
            "vertical_velocity": rewards.VerticalVelocityPenalty(weight=-0.5),
            "roll_pitch_rate": rewards.RollPitchRatePenalty(weight=-0.05),
            "hips": rewards.JointDeviationPenalty(weight=-0.7, joints=("hip_roll", "hip_yaw")),
            "rest_pose": rewards.JointDeviationPenalty(weight=-0.3, at_rest=True),
            "torque": rewards.TorquePenalty(weight=-0.1),
            "action_rate": rewards.ActionVelocityPenalty(weight=-0.01),
            "joint_limits": rewards.JointLimitsPenalty(weight=-1.0),
            "fall": rewards.FallPenalty(weight=-2.0),
        },
        events={"pushes": events.ForcePush(force_n=15.0, scale=LinearScale())},
        policy=PolicyConfig(hidden=128, hold=("shoulder", "elbow", "wrist"), clock=CLOCK, init_std=0.5),
        ppo=PpoConfig(envs=256, rollout_steps=24, gamma=0.98, entropy=0.005),
        run=RunConfig(total_steps=24_000_000, max_minutes=60.0),
    )
