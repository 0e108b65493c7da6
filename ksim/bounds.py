"""What each number of a configuration may be: one table, least and greatest.

The bounds are wide: beyond them a value is a slip of the pen, has no meaning (a negative mass, a learning rate of -1)
or asks for more than any machine has. What suits a robot is for the configuration to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from ksim.errors import ConfigError
from toolkit.yaml_file import quote

SEED_MAX = 2**32 - 1


class Bound(NamedTuple):
    """A number, or both ends of a range.

    Attributes:
        least: the least value.
        greatest: the greatest value.
        what: what it is, with its unit.
    """

    least: float
    greatest: float
    what: str


BOUNDS = {
    "seed": Bound(0, SEED_MAX, "a seed"),
    "threads": Bound(0, 1024, "threads, 0 for all there are"),
    "episode_length_s": Bound(0.01, 3600, "seconds"),
    "commands": Bound(-1000, 1000, "[low, high] of a command in SI"),
    "physics.timestep_s": Bound(1e-5, 0.1, "seconds"),
    "physics.control_period_s": Bound(1e-4, 1, "seconds"),
    "reset.joint_position_rad": Bound(0, 3.2, "radians"),
    "reset.joint_velocity_rad_s": Bound(0, 100, "rad/s"),
    "reset.tilt_rad": Bound(0, 3.2, "radians"),
    "reset.lin_vel_m_s": Bound(0, 100, "m/s"),
    "reset.ang_vel_rad_s": Bound(0, 100, "rad/s"),
    "reset.lift_m": Bound(0, 10, "metres"),
    "randomization.friction": Bound(0, 100, "factors"),
    "randomization.link_mass": Bound(0.01, 100, "factors"),
    "randomization.payload_kg": Bound(-1000, 1000, "kilograms"),
    "randomization.com_m": Bound(0, 1, "metres"),
    "randomization.armature": Bound(0.01, 100, "factors"),
    "randomization.kp": Bound(0, 100, "factors"),
    "randomization.kd": Bound(0, 100, "factors"),
    "randomization.torque_limit": Bound(0, 100, "factors"),
    "randomization.joint_friction": Bound(0, 1000, "factors"),
    "randomization.damping": Bound(0, 1000, "N m s/rad"),
    "randomization.joint_offset_rad": Bound(0, 3.2, "radians"),
    "randomization.imu_tilt_rad": Bound(0, 3.2, "radians"),
    "latency.action_s": Bound(0, 1, "seconds"),
    "latency.observation_s": Bound(0, 1, "seconds"),
    "latency.jitter_s": Bound(0, 1, "seconds"),
    "latency.loss": Bound(0, 1, "a share"),
    "noise.joint_position_rad": Bound(0, 3.2, "radians"),
    "noise.joint_velocity_rad_s": Bound(0, 1000, "rad/s"),
    "noise.gravity_m_s2": Bound(0, 1000, "m/s^2"),
    "noise.gyro_rad_s": Bound(0, 1000, "rad/s"),
    "noise.accel_m_s2": Bound(0, 10_000, "m/s^2"),
    "pushes.force_n": Bound(0, 100_000, "newtons"),
    "pushes.duration_s": Bound(0, 3600, "seconds"),
    "pushes.interval_s": Bound(0.001, 1e6, "seconds"),
    "rewards.alive": Bound(-1000, 1000, "a weight"),
    "rewards.upright": Bound(-1000, 1000, "a weight"),
    "rewards.base_height": Bound(-1000, 1000, "a weight"),
    "rewards.base_velocity": Bound(-1000, 1000, "a weight"),
    "rewards.base_spin": Bound(-1000, 1000, "a weight"),
    "rewards.joint_deviation": Bound(-1000, 1000, "a weight"),
    "rewards.joint_velocity": Bound(-1000, 1000, "a weight"),
    "rewards.torque": Bound(-1000, 1000, "a weight"),
    "rewards.action_rate": Bound(-1000, 1000, "a weight"),
    "rewards.joint_limits": Bound(-1000, 1000, "a weight"),
    "rewards.fall": Bound(-1000, 1000, "a weight"),
    "terminations.height_share": Bound(0, 1, "a share"),
    "terminations.tilt_deg": Bound(1, 180, "degrees"),
    "policy.hidden": Bound(1, 8192, "units"),
    "policy.layers": Bound(1, 16, "layers"),
    "policy.head": Bound(1, 8192, "units"),
    "policy.history": Bound(0, 1000, "observations"),
    "policy.critic_hidden": Bound(1, 8192, "units"),
    "policy.critic_head": Bound(1, 8192, "units"),
    "policy.action_scale": Bound(1e-4, 1000, "a factor"),
    "policy.smoothing": Bound(0, 1, "a share"),
    "policy.target_speed": Bound(0, 1, "a share"),
    "policy.init_std": Bound(1e-4, 100, "a standard deviation"),
    "ppo.envs": Bound(1, 131_072, "environments"),
    "ppo.rollout_steps": Bound(1, 10_000, "steps"),
    "ppo.epochs": Bound(1, 1000, "epochs"),
    "ppo.minibatches": Bound(1, 131_072, "minibatches"),
    "ppo.gamma": Bound(0, 1, "a discount"),
    "ppo.lam": Bound(0, 1, "a discount"),
    "ppo.clip": Bound(1e-6, 100, "a change of probability"),
    "ppo.learning_rate": Bound(0, 1, "a step size"),
    "ppo.learning_rate_min": Bound(0, 1, "a step size"),
    "ppo.learning_rate_max": Bound(0, 1, "a step size"),
    "ppo.target_kl": Bound(1e-9, 1000, "nats"),
    "ppo.entropy": Bound(0, 1000, "a weight"),
    "ppo.value_coefficient": Bound(0, 1000, "a weight"),
    "ppo.max_grad_norm": Bound(1e-9, 1e9, "a norm"),
    "run.total_steps": Bound(1, 10**15, "steps"),
    "run.max_minutes": Bound(0, 1e6, "minutes, 0 for no limit"),
    "run.save_every_updates": Bound(1, 10**9, "updates"),
    "run.stop_at_survival": Bound(0, 1, "a share, 0 for never"),
}


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def check_bounds(section: Any, prefix: str = "") -> None:
    """Check every number of a configuration, or of a section of one, against the table.

    Raises:
        ConfigError: a number is outside its bounds.
    """
    for f in dataclasses.fields(section):
        key, value = f"{prefix}{f.name}", getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{key}.")
            continue
        for number in _numbers(value):
            check_number(f"configuration key {key}", number, BOUNDS[key], value)


def check_number(what: str, number: float, bound: Bound, got: Any = None) -> None:
    """Check one number.

    Args:
        what: begins the message.
        number: the number.
        bound: what it may be.
        got: what the message shows; by default the number.

    Raises:
        ConfigError: the number is outside its bounds.
    """
    if not bound.least <= number <= bound.greatest:
        shown = quote(number if got is None else list(got) if isinstance(got, tuple) else got)
        raise ConfigError(
            f"{what}: got {shown}, expected {_shown(bound.least)} to {_shown(bound.greatest)} ({bound.what})"
        )
