"""Walk after a joystick: velocity ahead and aside, yaw rate; stand still where nothing is asked.

How far the robots of training differ is what K-Scale used and what was measured on the legs of a K-Bot: an IMU that
gives a new value only every one to three control steps, stiction, play and springs in the ankles, zeros that are off.
"""

from __future__ import annotations

import dataclasses
import math

from ksim import events, observation, randomization, rewards
from ksim.channels import Channel
from ksim.clock import GaitClock
from ksim.commands import JoystickCommand
from ksim.config import Config, PolicyConfig, PpoConfig, RunConfig
from ksim.curriculum import LinearScale, SurvivalCurriculum
from ksim.noise import UniformNoise
from ksim.observation import GaitPhaseObservation
from ksim.tasks.stand import NEARER, stand

CLOCK = GaitClock(frequency_hz=1.4)


def walk() -> Config:
    """The task: that of standing, with a clock, a joystick, a gait to follow and legs as worn as real ones."""
    base = stand()
    return dataclasses.replace(
        base,
        task="kbot_walk",
        observations=_sensed(),
        critic={
            **base.critic,
            "gait": GaitPhaseObservation(clock=CLOCK),
            "foot_height": observation.FeetHeightObservation(scale=10.0),
        },
        # two of three episodes have one command, the others two: starting and stopping are learned too
        commands={"joystick": JoystickCommand(interval_s=(5.0, 20.0), standing=0.15)},
        channels={
            "action": Channel(latency_s=(0.01, 0.026), jitter_s=0.004, loss=0.05, scale=NEARER),
            "joints": Channel(latency_s=(0.0, 0.018), jitter_s=0.002, scale=NEARER),
            "imu": Channel(latency_s=(0.01, 0.045), jitter_s=0.005, rate_hz=(17.0, 50.0), skew=0.01, scale=NEARER),
        },
        rewards=_rewarded(),
        randomizations={**base.randomizations, **_worn()},
        events={
            "pushes": events.ForcePush(force_n=200.0, interval_s=(1.5, 4.0), scale=LinearScale(low=0.1, begin=0.3)),
            "moment": events.LastingMoment(torque_nm=4.0, scale=NEARER),
            "stall": events.Stall(duration_s=(0.1, 0.1), interval_s=(6.0, 14.0)),
        },
        # standing alone gives a return of about 55. Episodes of all levels up to the one reached keep what was learned
        curriculum=SurvivalCurriculum(rise_above=0.75, fall_below=0.6, return_above=62.0, step=0.001, easier=1.0),
        policy=PolicyConfig(
            hidden=128,
            hold=("shoulder", "elbow", "wrist"),
            clock=CLOCK,
            init_std=0.5,
            # how fast it moves is told by a second memory. What keeps missing may be asked for too (integral), but
            # a walk that learns with that from the start leaves it to that, and follows less
            estimator=64,
        ),
        ppo=PpoConfig(
            envs=256,
            rollout_steps=24,
            # with four the gait takes as many steps, and a step half as long again
            epochs=2,
            learning_rate_max=0.004,
            # large steps find a gait, small ones refine it; and the mean of the last ones is better than the last
            target_kl=LinearScale(low=0.02, high=0.004, begin=0.1, end=0.8),
            average=0.99,
            gamma=0.98,
            # much to find a gait, little to refine it
            entropy=LinearScale(low=0.005, high=0.0005, end=0.5),
            symmetry="exact",
        ),
        run=RunConfig(total_steps=24_000_000, max_minutes=60.0),
    )


def _sensed() -> dict[str, observation.Observation]:
    """The six inputs that every K-Bot runtime gives, with K-Scale's noise: white, uniform, for every packet anew."""
    return {
        "command": observation.CommandObservation(),
        "joint_angles": observation.DelayedJointPositionObservation(
            noise=UniformNoise(width=math.radians(3.0), scale=NEARER)
        ),
        "joint_angular_velocities": observation.DelayedJointVelocityObservation(
            noise=UniformNoise(width=math.radians(15.0), scale=NEARER)
        ),
        "projected_gravity": observation.DelayedProjectedGravityObservation(
            noise=UniformNoise(width=9.81 * math.sin(math.radians(3.0)), scale=NEARER)
        ),
        "gyroscope": observation.DelayedGyroObservation(noise=UniformNoise(width=math.radians(10.0), scale=NEARER)),
    }


def _worn() -> dict[str, randomization.Randomization]:
    """How robots differ, beside what a standing one has."""
    ankles = ("ankle",)
    return {
        "friction": randomization.FloorFrictionRandomization(factor=(0.4, 1.2), scale=NEARER),
        "inertia": randomization.InertiaRandomization(factor=(0.85, 1.15), scale=NEARER),
        "com": randomization.CentreOfMassRandomization(width_m=0.03, scale=NEARER),
        "kp": randomization.KpRandomization(factor=(0.85, 1.15), scale=NEARER),
        "kd": randomization.KdRandomization(factor=(0.85, 1.15), scale=NEARER),
        "joint_offset": randomization.JointOffsetRandomization(width_rad=math.radians(3.0), scale=NEARER),
        "imu_tilt": randomization.ImuTiltRandomization(width_rad=math.radians(2.0), scale=NEARER),
        "stiction": randomization.StictionRandomization(stiction_nm=(0.0, 1.2), scale=NEARER),
        "play": randomization.PlayRandomization(play_rad=(0.0, math.radians(3.0)), joints=ankles, scale=NEARER),
        "compliance": randomization.ComplianceRandomization(
            stiffness_nm_rad=(20.0, 120.0), joints=ankles, rigid=0.3, scale=NEARER
        ),
    }


def _rewarded() -> dict[str, rewards.Reward]:
    """What is rewarded, a second: a gait after the clock, and then the velocities that were asked for."""
    return {
        "linear_velocity": rewards.LinearVelocityTrackingReward(weight=_later(4.0, 2.0), width_m_s=0.5),
        "angular_velocity": rewards.AngularVelocityTrackingReward(weight=_later(2.0, 1.0), width_rad_s=0.5),
        "feet_phase": rewards.FeetPhaseReward(weight=_later(1.5, 4.0), height_m=0.09),
        "contact_phase": rewards.ContactPhaseReward(weight=_later(0.75, 1.5)),
        "motionless": rewards.MotionlessAtRestReward(weight=_later(1.0), width_m_s=0.15, width_rad_s=0.4),
        "feet_at_rest": rewards.FeetAtRestPenalty(weight=_later(-0.5)),
        "target_velocity": rewards.TargetVelocityPenalty(weight=_later(-0.5), share=0.35),
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
        "fall": rewards.FallPenalty(weight=_later(-5.0, -2.0)),
    }


def _later(weight: float, first: float = 0.0) -> LinearScale:
    """A weight that comes when the gait is there."""
    return LinearScale(low=first, high=weight, begin=0.1, end=0.5)
