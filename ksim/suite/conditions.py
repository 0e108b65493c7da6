"""What the parts of a suite run in: the task with a fixed course, and changes of what was drawn for its episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ksim.channels import Channel
from ksim.commands import JoystickCommand
from ksim.config import Config
from ksim.environment import Environment
from ksim.errors import KsimError
from ksim.events import ForcePush
from ksim.rewards import FeetPhaseReward, FeetSlipPenalty
from ksim.term import fold
from ksim.types import EnvState, PhysicsParams, pick

EPISODE_S = 20.0
# A new command comes after a time in this range [s].
COMMAND_S = (4.0, 8.0)
PUSH_S, PUSH_EVERY_S = (0.1, 0.5), (4.0, 8.0)
# No event comes so late [s].
NEVER_S = 1e9

Alter = Callable[[EnvState, PhysicsParams], tuple[EnvState, PhysicsParams]]


def course(config: Config, *, pushes_n: float = 0.0, standing: bool = False, noise: bool = True) -> Config:
    """The task as a suite runs it: episodes of 20 s, commands that switch, everything random.

    Args:
        config: the task.
        pushes_n: greatest force of the pushes [N]; 0 for none.
        standing: ask for nothing, from start to end.
        noise: sensors are noisy.

    Raises:
        KsimError: the task has no joystick.
    """
    joystick = next((name for name, term in config.commands.items() if isinstance(term, JoystickCommand)), None)
    if joystick is None:
        raise KsimError(
            f"--suite walk: task {config.task} has no JoystickCommand ({', '.join(config.command_names) or 'none'}); "
            "expected a task that walks after a joystick, such as kbot_walk"
        )
    share = {"standing": 1.0} if standing else {"standing": 0.15, "straight": 0.35}
    command = dataclasses.replace(config.commands[joystick], interval_s=COMMAND_S, scale=1.0, **share)
    events = {name: term for name, term in config.events.items() if not isinstance(term, ForcePush)}
    critic = {name: term for name, term in config.critic.items() if not _of_events(term)}
    if pushes_n > 0:
        events["pushes"] = ForcePush(force_n=pushes_n, duration_s=PUSH_S, interval_s=PUSH_EVERY_S)
    observations = config.observations
    if not noise:
        observations = {name: dataclasses.replace(term, noise=None) for name, term in observations.items()}
    return dataclasses.replace(
        config,
        episode_length_s=EPISODE_S,
        commands={**config.commands, joystick: command},
        events=events,
        observations=observations,
        critic=critic,
        # rewards are not read; these ask for the sensors of the feet
        rewards={"feet_phase": FeetPhaseReward(), "slip": FeetSlipPenalty()},
    )


def _of_events(term: Any) -> bool:
    return any(table == "events" for table, _ in term.refers.values())


def conditions_alone(config: Config) -> list[str]:
    """Names of what `alone` can switch on, one by one; the first is nothing at all."""
    rooms = {"randomizations": config.randomizations, "channels": config.channels, "events": config.events}
    return ["nothing", *(f"{room}.{name}" for room, terms in rooms.items() for name in terms)]


def alone(environment: Environment, groups: Sequence[str]) -> Alter:
    """A change that leaves each environment one thing that is random.

    Args:
        environment: of a task without noise.
        groups: for each environment, a name of `conditions_alone`.
    """
    config, scene, where = environment.config, environment.scene, np.asarray(groups)

    def spread(value: Any) -> Any:
        return jnp.broadcast_to(value, (environment.envs, *jnp.shape(value)))

    def alter(env: EnvState, params: PhysicsParams) -> tuple[EnvState, PhysicsParams]:
        level = jnp.ones(())
        nominal = environment.nominal
        out = jax.tree.map(spread, nominal._replace(drawn={}))
        for name, term in config.randomizations.items():
            mask = jnp.asarray(where == f"randomizations.{name}")

            def one(key: Any, term: Any = term, name: str = name) -> PhysicsParams:
                drawn = term.draw(fold(key, f"randomizations/{name}"), scene, level)
                return term.apply(nominal, drawn, scene)._replace(drawn={})

            out = pick(mask, jax.jit(jax.vmap(one))(env.episode_key), out)
        out = out._replace(drawn=jax.tree.map(jnp.zeros_like, params.drawn))
        channels, events = dict(env.carries["channels"]), dict(env.carries["events"])
        for name in channels:
            mask = jnp.asarray(where == f"channels.{name}")
            sampling = channels[name]["sampling"]
            ideal = jax.tree.map(jnp.zeros_like, sampling)
            channels[name] = {**channels[name], "sampling": pick(mask, sampling, ideal)}
        for name in events:
            mask = jnp.asarray(where == f"events.{name}")
            still = {k: jnp.full_like(v, NEVER_S if k == "next_s" else 0.0) for k, v in events[name].items()}
            events[name] = pick(mask, events[name], still)
        return env._replace(carries={**env.carries, "channels": channels, "events": events}), out

    return alter


def imu_channel(config: Config, ages_s: Sequence[float], rates_hz: Sequence[float]) -> Config:
    """The task with an IMU channel that is wide enough for `imu` to set any of these ages and rates."""
    wide = Channel(latency_s=(0.0, max(ages_s)), rate_hz=(min(rates_hz), max(rates_hz)), skew=0.01)
    return dataclasses.replace(config, channels={**config.channels, "imu": wide})


def imu(ages_s: np.ndarray, rates_hz: np.ndarray, stiction_nm: np.ndarray) -> Alter:
    """A change that gives each environment an IMU of a known age and rate, and all its joints a known stiction.

    Args:
        ages_s: age of a value when it comes, (E,) [s].
        rates_hz: how often one comes, (E,) [Hz].
        stiction_nm: breakaway torque above the friction, (E,) [N m].
    """

    def alter(env: EnvState, params: PhysicsParams) -> tuple[EnvState, PhysicsParams]:
        channels = env.carries["channels"]
        old = channels["imu"]["sampling"]
        period = jnp.asarray(1.0 / rates_hz, jnp.float32)
        phase = old.phase_s / jnp.maximum(old.period_s, 1e-9) * period
        sampling = old._replace(
            period_s=period,
            phase_s=phase,
            latency_s=jnp.asarray(ages_s, jnp.float32),
            jitter_s=jnp.zeros_like(old.jitter_s),
            loss=jnp.zeros_like(old.loss),
        )
        held = {**channels, "imu": {**channels["imu"], "sampling": sampling}}
        stiction = jnp.broadcast_to(jnp.asarray(stiction_nm, jnp.float32)[:, None], params.motor.stiction.shape)
        params = params._replace(motor=params.motor._replace(stiction=stiction))
        return env._replace(carries={**env.carries, "channels": held}), params

    return alter
