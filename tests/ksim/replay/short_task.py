"""A task of 20 control steps, whose episodes the tests of replays play."""

from __future__ import annotations

from ksim import observation, rewards
from ksim.channels import Channel
from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig
from ksim.events import ForcePush
from ksim.noise import GaussianNoise
from ksim.randomization import FrictionRandomization
from ksim.resets import JointPositionReset
from ksim.terminations import BaseTooLowTermination

STEPS = 20
PERIOD_S = 0.02

# 20 control steps of one robot; one push, which begins at 0.3 s whatever the draw.
TASK = Config(
    task="kbot_stand",
    threads=1,
    episode_length_s=STEPS * PERIOD_S,
    observations={
        "joint_angles": observation.DelayedJointPositionObservation(noise=GaussianNoise(std=0.005)),
        "joint_angular_velocities": observation.DelayedJointVelocityObservation(),
        "projected_gravity": observation.DelayedProjectedGravityObservation(channel="imu"),
        "gyroscope": observation.DelayedGyroObservation(channel="imu"),
        "command": observation.CommandObservation(),
    },
    critic={"command": observation.CommandObservation()},
    commands={"xvel": UniformCommand(name="xvel", range=(-0.5, 0.5))},
    channels={name: Channel(latency_s=(0.002, 0.008)) for name in ("action", "joints", "imu")},
    rewards={"alive": rewards.AliveReward(weight=1.0), "upright": rewards.UprightReward(weight=0.5)},
    terminations={"base_too_low": BaseTooLowTermination()},
    resets={"joint_position": JointPositionReset(width_rad=0.05)},
    randomizations={"friction": FrictionRandomization(factor=(0.5, 1.5))},
    events={"pushes": ForcePush(force_n=50.0, interval_s=(0.3, 0.3), duration_s=(0.1, 0.1))},
    policy=PolicyConfig(hidden=8, head=8, hold=("shoulder", "elbow", "wrist")),
)
