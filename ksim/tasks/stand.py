"""Hold balance at the home pose, in place, under pushes."""

from __future__ import annotations

from ksim import events, observation, randomization, resets, rewards, terminations
from ksim.channels import Channel
from ksim.commands import UniformCommand
from ksim.config import Config, PolicyConfig, PpoConfig, RunConfig
from ksim.curriculum import LinearScale, SurvivalCurriculum
from ksim.noise import GaussianNoise

# At level 0 the robot is near the nominal one: standing comes before standing on any robot.
NEARER = LinearScale(low=0.2, high=1.0)

# What is drawn for each joint or link: 180 numbers, which cost the critic more than all else that it sees.
OF_EACH_JOINT = (
    *("link_mass", "inertia", "armature", "kp", "kd", "torque_limit", "joint_friction", "stiction", "play"),
    *("compliance", "damping"),
)


def sensed() -> dict[str, observation.Observation]:
    """The inputs that every K-Bot runtime gives, late and noisy, and two that a log has besides."""
    return {
        "joint_angles": observation.DelayedJointPositionObservation(noise=GaussianNoise(std=0.005)),
        "joint_angular_velocities": observation.DelayedJointVelocityObservation(noise=GaussianNoise(std=0.1)),
        "projected_gravity": observation.DelayedProjectedGravityObservation(noise=GaussianNoise(std=0.1)),
        "accelerometer": observation.DelayedAccelerometerObservation(noise=GaussianNoise(std=0.3)),
        "gyroscope": observation.DelayedGyroObservation(noise=GaussianNoise(std=0.05)),
        "command": observation.CommandObservation(),
        "time": observation.TimeObservation(),
    }


def privileged() -> dict[str, observation.Observation]:
    """What the critic sees: the truth, and what was drawn."""
    return {
        "joint_position": observation.JointPositionObservation(from_home=True, scale=4.0),
        "joint_velocity": observation.JointVelocityObservation(scale=0.1),
        "gravity": observation.ProjectedGravityObservation(scale=0.6),
        "gyro": observation.GyroObservation(),
        "base_velocity": observation.BaseLinearVelocityObservation(scale=4.0),
        "base_height": observation.BaseHeightObservation(scale=5.0),
        "foot_force": observation.FeetForceObservation(scale=0.005),
        "last_action": observation.LastActionObservation(),
        "command": observation.CommandObservation(),
        "push": observation.EventObservation(of="pushes", scale=0.02),
        "drawn": observation.RandomizationObservation(leave_out=OF_EACH_JOINT),
        "age": observation.ChannelAgeObservation(scale=50.0),
    }


def drawn() -> dict[str, randomization.Randomization]:
    """How robots differ."""
    return {
        "friction": randomization.FrictionRandomization(scale=NEARER),
        "link_mass": randomization.LinkMassRandomization(scale=NEARER),
        "payload": randomization.PayloadRandomization(scale=NEARER),
        "com": randomization.CentreOfMassRandomization(scale=NEARER),
        "armature": randomization.ArmatureRandomization(scale=NEARER),
        "kp": randomization.KpRandomization(scale=NEARER),
        "kd": randomization.KdRandomization(scale=NEARER),
        "torque_limit": randomization.TorqueLimitRandomization(scale=NEARER),
        "joint_friction": randomization.JointFrictionRandomization(scale=NEARER),
        "stiction": randomization.StictionRandomization(stiction_nm=(0.0, 0.5), scale=NEARER),
        "play": randomization.PlayRandomization(play_rad=(0.0, 0.01), scale=NEARER),
        "damping": randomization.JointDampingRandomization(scale=NEARER),
        "joint_offset": randomization.JointOffsetRandomization(scale=NEARER),
        "imu_tilt": randomization.ImuTiltRandomization(scale=NEARER),
    }


def started() -> dict[str, resets.Reset]:
    """Where an episode starts: about the home pose, lifted a little, looking anywhere."""
    return {
        "joint_position": resets.JointPositionReset(scale=NEARER),
        "joint_velocity": resets.JointVelocityReset(scale=NEARER),
        "tilt": resets.TiltReset(scale=NEARER),
        "heading": resets.HeadingReset(),
        "height": resets.HeightReset(),
        "base_velocity": resets.BaseVelocityReset(scale=NEARER),
    }


def fallen() -> dict[str, terminations.Termination]:
    """What counts as a fall."""
    return {
        "base_too_low": terminations.BaseTooLowTermination(),
        "too_tilted": terminations.TiltTermination(),
        "not_finite": terminations.NotFiniteTermination(),
    }


def stand() -> Config:
    """The task."""
    return Config(
        task="kbot_stand",
        observations=sensed(),
        critic=privileged(),
        commands={name: UniformCommand(name=name) for name in ("xvel", "yvel", "yawrate")},
        channels={
            "action": Channel(latency_s=(0.003, 0.015), jitter_s=0.004, loss=0.03, scale=NEARER),
            "joints": Channel(latency_s=(0.002, 0.02), jitter_s=0.004, scale=NEARER),
            "imu": Channel(latency_s=(0.002, 0.025), jitter_s=0.004, rate_hz=(50.0, 200.0), skew=0.01, scale=NEARER),
        },
        rewards={
            "alive": rewards.AliveReward(weight=1.0),
            "upright": rewards.UprightReward(weight=1.0),
            "base_height": rewards.BaseHeightReward(weight=0.5),
            "base_velocity": rewards.BaseVelocityPenalty(weight=-0.2),
            "base_spin": rewards.BaseSpinPenalty(weight=-0.05),
            "joint_deviation": rewards.JointDeviationPenalty(weight=-0.1),
            "joint_velocity": rewards.JointVelocityPenalty(weight=-0.002),
            "torque": rewards.TorquePenalty(weight=-0.2),
            "action_rate": rewards.ActionVelocityPenalty(weight=-0.02),
            "joint_limits": rewards.JointLimitsPenalty(weight=-1.0),
            "fall": rewards.FallPenalty(weight=-2.0),
        },
        terminations=fallen(),
        resets=started(),
        randomizations=drawn(),
        events={"pushes": events.ForcePush(force_n=50.0, scale=LinearScale())},
        curriculum=SurvivalCurriculum(),
        policy=PolicyConfig(hold=("shoulder", "elbow", "wrist")),
        ppo=PpoConfig(envs=192),
        run=RunConfig(total_steps=6_000_000, max_minutes=20.0),
    )
