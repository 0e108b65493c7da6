"""Whole tasks, declared: one line a term."""

from __future__ import annotations

import difflib
from typing import Any

from ksim.actions import JointTargets
from ksim.actuators import CommandChannel
from ksim.commands import UniformCommands
from ksim.config import Config
from ksim.environment import Environment, Task, choose_engine, make_engine
from ksim.errors import ConfigError
from ksim.events import Pushes
from ksim.observation import PolicyInputs, Privileged
from ksim.randomization import (
    Armature,
    Friction,
    ImuTilt,
    JointOffset,
    Latency,
    LinkMass,
    MotorGains,
    Payload,
    nominal,
)
from ksim.resets import NoisyHome
from ksim.rewards import (
    ActionRate,
    Alive,
    BaseHeight,
    BaseSpin,
    BaseVelocity,
    Fall,
    JointDeviation,
    JointLimits,
    JointVelocity,
    Torque,
    Upright,
)
from ksim.terminations import BaseTooLow, NotFinite, TooTilted
from robots.model import BuiltModel, build_model


def stand(config: Config, built: BuiltModel) -> Task:
    """Hold balance at the home pose, in place, under pushes."""
    spec, dt = built.spec, config.physics.control_period_s
    if built.base_body < 0:
        raise ConfigError(f"task kbot_stand: robot {spec.name} is fixed to the world; expected one that can fall")
    height, home = float(built.home_qpos[2]), tuple(spec.column("home_rad"))
    random, w = config.randomization, config.rewards
    base = nominal(built)
    return Task(
        reset=NoisyHome(built=built, config=config.reset),
        randomizations=(
            Friction(random.friction),
            LinkMass(random.link_mass),
            Payload(built.torso_body, random.payload_kg, random.com_m),
            Armature(random.armature, tuple(built.dof_ids.tolist())),
            MotorGains(random),
            JointOffset(random.joint_offset_rad),
            ImuTilt(random.imu_tilt_rad),
            Latency(config.latency),
        ),
        rewards={
            "alive": (w.alive, Alive()),
            "upright": (w.upright, Upright()),
            "base_height": (w.base_height, BaseHeight(height)),
            "base_velocity": (w.base_velocity, BaseVelocity()),
            "base_spin": (w.base_spin, BaseSpin()),
            "joint_deviation": (w.joint_deviation, JointDeviation(home)),
            "joint_velocity": (w.joint_velocity, JointVelocity()),
            "torque": (w.torque, Torque(tuple(spec.column("torque_limit_nm")))),
            "action_rate": (w.action_rate, ActionRate()),
            "joint_limits": (
                w.joint_limits,
                JointLimits(tuple(spec.column("lower_rad")), tuple(spec.column("upper_rad"))),
            ),
            "fall": (w.fall, Fall(dt)),
        },
        terminations={
            "base_too_low": BaseTooLow(config.terminations.height_share * height),
            "too_tilted": TooTilted(config.terminations.tilt_deg),
            "not_finite": NotFinite(),
        },
        commands=UniformCommands.of(config.commands),
        pushes=Pushes(config=config.pushes, control_period_s=dt),
        channel=CommandChannel(config=config.latency),
        inputs=PolicyInputs(
            noise=config.noise,
            latency=config.latency,
            joints=len(spec.joints),
            dt=config.physics.timestep_s,
            control_period_s=dt,
        ),
        privileged=Privileged(
            home=home,
            standing_height_m=height,
            torso=built.torso_body,
            force_n=config.pushes.force_n,
            nominal=base,
        ),
        control_period_s=dt,
        episode_steps=round(config.episode_length_s / dt),
        actions=len(JointTargets.of_config(spec, config).index),
    )


TASKS = {"kbot_stand": stand}


def make_environment(config: Config, envs: int, engine: str | None = None) -> Environment:
    """The environments of a configuration.

    Raises:
        ConfigError: the task is unknown or does not fit the robot.
    """
    if config.task not in TASKS:
        near = difflib.get_close_matches(config.task, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(TASKS)}"
        raise ConfigError(f"configuration key task: got {config.task!r}; {hint}")
    built = build_model(config.robot, config.physics.timestep_s, shapes=False)
    task = TASKS[config.task](config, built)
    arguments: dict[str, Any] = {
        "control_period_s": config.physics.control_period_s,
        "latency_max_s": task.channel.latency_max_s,
        "observation_latency_max_s": task.channel.observation_latency_max_s,
    }
    return Environment(
        task, make_engine(choose_engine(engine or config.engine), built, envs, threads=config.threads, **arguments)
    )
