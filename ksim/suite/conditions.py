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
from robots.ground import Ground

EPISODE_S = 20.0
# A new command comes after a time in this range [s].
COMMAND_S = (4.0, 8.0)
# Greatest force of the pushes of each part [N]; how long one lasts, and when the next comes [s].
PUSHES_N = {"pushes_100": 100.0, "pushes_200": 200.0}
PUSH_S, PUSH_EVERY_S = (0.1, 0.5), (4.0, 8.0)
# The parts that run side by side: commands alone, with pushes, nothing asked, and nothing random but noise.
PARTS = ("calm", *PUSHES_N, "standing", "noise")
# No event and no new command comes so late [s].
NEVER_S = 1e9

Alter = Callable[[EnvState, PhysicsParams], tuple[EnvState, PhysicsParams]]


def course(config: Config, *, pushes: bool = True, noise: bool = True) -> Config:
    """The task as a suite runs it: episodes of 20 s, commands that switch, everything random.

    Args:
        config: the task.
        pushes: with the pushes of each part, of which `parts` leaves one.
        noise: sensors are noisy.

    Raises:
        KsimError: the task has no joystick.
    """
    joystick = _joystick(config)
    command = dataclasses.replace(
        config.commands[joystick], interval_s=COMMAND_S, scale=1.0, standing=0.15, straight=0.35
    )
    events = {name: term for name, term in config.events.items() if not isinstance(term, ForcePush)}
    if pushes:
        push = {"duration_s": PUSH_S, "interval_s": PUSH_EVERY_S}
        events |= {name: ForcePush(force_n=force, **push) for name, force in PUSHES_N.items()}
    observations = config.observations
    if not noise:
        observations = {name: dataclasses.replace(term, noise=None) for name, term in observations.items()}
    return dataclasses.replace(
        config,
        episode_length_s=EPISODE_S,
        commands={**config.commands, joystick: command},
        events=events,
        observations=observations,
        critic={name: config.critic[name] for name in config.policy.sees},
        # rewards are not read; these ask for the sensors of the feet
        rewards={"feet_phase": FeetPhaseReward(), "slip": FeetSlipPenalty()},
    )


def uneven(config: Config) -> Config:
    """The course without pushes on bumps of 3 cm and slopes to 5 degrees."""
    calm = course(config, pushes=False)
    return dataclasses.replace(calm, physics=dataclasses.replace(calm.physics, ground=Ground()))


def _joystick(config: Config) -> str:
    found = next((name for name, term in config.commands.items() if isinstance(term, JoystickCommand)), None)
    if found is None:
        raise KsimError(
            f"--suite walk: task {config.task} has no JoystickCommand ({', '.join(config.command_names) or 'none'}); "
            "expected a task that walks after a joystick, such as kbot_walk"
        )
    return found


def parts(environment: Environment, groups: Sequence[str]) -> Alter:
    """A change that makes each environment one of a part.

    Args:
        environment: of a `course`.
        groups: for each environment, a name of PARTS.
    """
    where = np.asarray(groups)
    nothing = alone(environment, ["nothing"] * environment.envs)

    def alter(env: EnvState, params: PhysicsParams) -> tuple[EnvState, PhysicsParams]:
        quiet = jnp.asarray(where == "noise")
        still_env, still_params = nothing(env, params)
        params = pick(quiet, still_params, params)
        events = {
            name: carry if name not in PUSHES_N else pick(jnp.asarray(where == name), carry, _never(carry))
            for name, carry in env.carries["events"].items()
        }
        events = pick(quiet, still_env.carries["events"], events)
        channels = pick(quiet, still_env.carries["channels"], env.carries["channels"])
        commands = dict(env.carries["commands"])
        name, mask = _joystick(environment.config), jnp.asarray(where == "standing")
        rest = {
            "value": jnp.zeros_like(commands[name]["value"]),
            "left_s": jnp.full_like(commands[name]["left_s"], NEVER_S),
        }
        commands[name] = pick(mask, rest, commands[name])
        carries = {**env.carries, "events": events, "channels": channels, "commands": commands}
        asked = jnp.concatenate([carry["value"] for carry in commands.values()], axis=-1)
        return env._replace(carries=carries, command=asked), params

    return alter


def _never(carry: dict[str, Any]) -> dict[str, Any]:
    """The memory of an event that does not come."""
    return {k: jnp.full_like(v, NEVER_S if k == "next_s" else 0.0) for k, v in carry.items()}


def conditions_alone(config: Config) -> list[str]:
    """Names of what `alone` can switch on, one by one; the first is nothing at all."""
    rooms = {"randomizations": config.randomizations, "channels": config.channels, "events": config.events}
    return ["nothing", *(f"{room}.{name}" for room, terms in rooms.items() for name in terms)]


def alone(environment: Environment, groups: Sequence[str]) -> Alter:
    """A change that leaves each environment one thing that is random.

    Args:
        environment: of a `course`; noise stays where it has some.
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
            events[name] = pick(mask, events[name], _never(events[name]))
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
