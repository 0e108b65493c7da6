"""Measures a bundle's margins (robots/margins.py): in closed loop through the bundle, and its answer to soft joints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from deploy.bundle.preflight import command_vector
from deploy.bundle.session import OnnxPolicy, observe
from deploy.robot.state import RobotState
from ksim.channels import Channel
from ksim.config import Config
from ksim.curriculum import Scale
from ksim.environment import make_environment
from ksim.evaluate import OnnxBatchPolicy, evaluate
from ksim.events import NOTHING, Effect, Recurring
from ksim.types import EnvState, PhysicsParams, State
from robots.bundle import Bundle
from robots.margins import Answer, Ladder, Margins, Rung
from robots.rotation import GRAVITY_M_S2
from robots.spec import PolicySpec
from toolkit.settings import Bound, Settings

# Each ladder, and the channel of the task whose latency it is.
CHANNELS = {"imu_age_s": "imu", "joint_age_s": "joints", "action_latency_s": "action"}
HELD = "held"
# From one hang of the loop to the next [s].
HELD_EVERY_S = (0.7, 1.3)
# A target so near to an end of its range is at it [rad].
AT_LIMIT_RAD = 1e-3
_SECONDS = Bound(0, 2, "seconds")


@dataclass(frozen=True, kw_only=True)
class MarginSettings(Settings):
    """How much is run.

    Attributes:
        episodes: of each value.
        episode_s: their length [s].
        seed: of all of them.
        imu_age_s, joint_age_s, action_latency_s: the values [s].
        held_ticks: the values.
        shares: of what is asked that the joints move.
        answer_s: how long each answer is looked at [s].
    """

    episodes: Annotated[int, Bound(1, 100_000, "episodes")] = 32
    episode_s: Annotated[float, Bound(0.1, 3600, "seconds")] = 8.0
    seed: Annotated[int, Bound(0, 2**32 - 1, "a seed")] = 1
    imu_age_s: Annotated[tuple[float, ...], _SECONDS] = (0.0, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12)
    joint_age_s: Annotated[tuple[float, ...], _SECONDS] = (0.0, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12)
    action_latency_s: Annotated[tuple[float, ...], _SECONDS] = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
    held_ticks: Annotated[tuple[int, ...], Bound(0, 1000, "ticks")] = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)
    shares: Annotated[tuple[float, ...], Bound(0, 1, "a share")] = (0.0, 0.2, 0.5, 1.0)
    answer_s: Annotated[float, Bound(2, 3600, "seconds")] = 5.0


@dataclass(frozen=True, kw_only=True)
class HeldTicks(Recurring):
    """Again and again no command is sent for as long as the memory's `lasts_s` says: 0, never, until that is set."""

    def initial_carry(self, key: Any) -> dict[str, Any]:
        return {**super().initial_carry(key), "lasts_s": jnp.zeros(())}

    def happen(self, state: State, carry: dict[str, Any]) -> tuple[Effect, dict[str, Any]]:
        begins, left, following = self._clock(state, carry)
        left = jnp.where(begins, carry["lasts_s"], left)
        return NOTHING._replace(stalled=left > 0.0), {**carry, "left_s": left, "next_s": following}


def _middle_s(channel: Channel) -> float:
    """The middle of the latencies of training, at its full scale [s]."""
    share = float(channel.scale(1.0)) if isinstance(channel.scale, Scale) else channel.scale
    return share * (channel.latency_s[0] + channel.latency_s[1]) / 2.0


def calm(config: Config, settings: MarginSettings) -> Config:
    """The task on the nominal robot, without pushes, with channels wide enough for every value.

    Args:
        config: the task.
        settings: the values.
    """
    channels = {}
    for name, channel in config.channels.items():
        values = [v for ladder, of in CHANNELS.items() if of == name for v in getattr(settings, ladder)]
        channels[name] = Channel(latency_s=(0.0, max([_middle_s(channel), *values])))
    return dataclasses.replace(
        config,
        episode_length_s=settings.episode_s,
        channels=channels,
        events={HELD: HeldTicks(interval_s=HELD_EVERY_S)},
        randomizations={},
        critic={},
        rewards={},
    )


def rungs(config: Config, settings: MarginSettings) -> list[tuple[str, float]]:
    """(ladder, value) of everything that is run: ladders whose channel the policy's inputs do not come by are left out.

    Args:
        config: the task.
        settings: the values.
    """
    known = {*config.sensing_channels, "action"}
    names = [name for name, channel in CHANNELS.items() if channel in known]
    return [(name, float(v)) for name in (*names, "held_ticks") for v in getattr(settings, name)]


def _alter(
    config: Config, every: Sequence[tuple[str, float]], period_s: float
) -> Callable[[EnvState, PhysicsParams], tuple[EnvState, PhysicsParams]]:
    """A change that gives each environment one (ladder, value); the rest is as the task has it in the middle."""
    latency = {name: np.full(len(every), _middle_s(channel)) for name, channel in config.channels.items()}
    held_s = np.zeros(len(every))
    for i, (ladder, value) in enumerate(every):
        if ladder == "held_ticks":
            held_s[i] = max(0.0, (value - 0.5) * period_s)  # half a tick less: a sum of ticks is not exact
        else:
            latency[CHANNELS[ladder]][i] = value

    def alter(env: EnvState, params: PhysicsParams) -> tuple[EnvState, PhysicsParams]:
        channels, events = dict(env.carries["channels"]), dict(env.carries["events"])
        for name, carry in channels.items():
            sampling = carry["sampling"]._replace(latency_s=jnp.asarray(latency[name], jnp.float32))
            channels[name] = {**carry, "sampling": sampling}
        events[HELD] = {**events[HELD], "lasts_s": jnp.asarray(held_s, jnp.float32)}
        return env._replace(carries={**env.carries, "channels": channels, "events": events}), params

    return alter


def ladders(bundle: Bundle, config: Config, settings: MarginSettings) -> dict[str, Ladder]:
    """Every ladder, all values side by side in MuJoCo C through the bundle.

    Args:
        bundle: with a spec.
        config: the task that it was trained on.
        settings: how much is run.
    """
    todo, task = rungs(config, settings), calm(config, settings)
    every = [rung for rung in todo for _ in range(settings.episodes)]
    environment = make_environment(task, len(every), "mujoco")
    result = evaluate(
        task,
        OnnxBatchPolicy(bundle),
        episodes=len(every),
        seed=settings.seed,
        environment=environment,
        alter=_alter(config, every, config.physics.control_period_s),
    )
    survived = result.survived.reshape(len(todo), settings.episodes).sum(axis=1)
    found: dict[str, list[Rung]] = {}
    for (name, value), count in zip(todo, survived, strict=True):
        found.setdefault(name, []).append(Rung(value=value, survived=int(count), episodes=settings.episodes))
    return {name: Ladder(rungs=tuple(each)) for name, each in found.items()}


def _hanging(spec: PolicySpec, position: np.ndarray, velocity: np.ndarray) -> RobotState:
    """A robot that hangs upright and still, whatever its joints do."""
    return RobotState(
        joint_position=position,
        joint_velocity=velocity,
        joint_torque=np.zeros(len(position)),
        quat_wxyz=np.array([1.0, 0.0, 0.0, 0.0]),
        gyro_b=np.zeros(3),
        accel_b=np.array([0.0, 0.0, GRAVITY_M_S2]),
        time_s=0.0,
        round_trip_s=0.0,
    )


def answer(policy: OnnxPolicy, spec: PolicySpec, share: float, seconds: float) -> Answer:
    """What a policy asks of joints that move a share of what it asks; its command is nothing. See `Answer`.

    Args:
        policy: loaded; it is left at its first carry.
        spec: its own.
        share: 0 to 1.
        seconds: how long it is looked at; more than 1 [s].
    """
    home = np.asarray(spec.robot.column("home_rad"))
    low, high = np.asarray(spec.action_low_rad), np.asarray(spec.action_high_rad)
    names, command = tuple(a.name for a in spec.inputs), command_vector(spec, {})
    ticks, last = round(seconds / spec.control_period_s), round(1.0 / spec.control_period_s)
    position, velocity = home, np.zeros_like(home)
    pulls, at_limit = [], []
    policy.reset()
    for tick in range(ticks):
        state = _hanging(spec, position, velocity)
        target = policy.step(observe(names, state, command, tick * spec.control_period_s, 0.0)).astype(float)
        pulls.append(np.abs(target - position))
        at_limit.append((target <= low + AT_LIMIT_RAD) | (target >= high - AT_LIMIT_RAD))
        moved = home + share * (target - home)
        position, velocity = moved, (moved - position) / spec.control_period_s
    policy.reset()
    pull = np.asarray(pulls)
    return Answer(
        share=share,
        earlier_rad=float(pull[:-last].max()),
        last_rad=float(pull[-last:].max()),
        joint=spec.robot.joint_names[int(pull.max(axis=0).argmax())],
        at_limit=float(np.mean(at_limit[-last:])),
    )


def measure(bundle: Bundle, config: Config, settings: MarginSettings | None = None) -> Margins:
    """All margins of a bundle.

    Args:
        bundle: with a spec.
        config: the task that it was trained on.
        settings: how much is run.
    """
    settings = settings or MarginSettings()
    assert bundle.spec is not None
    policy = OnnxPolicy(bundle)
    # where nothing counts as a fall, everything stands
    found = ladders(bundle, config, settings) if config.terminations else {}
    return Margins(
        imu_age_s=found.get("imu_age_s"),
        joint_age_s=found.get("joint_age_s"),
        action_latency_s=found.get("action_latency_s"),
        held_ticks=found.get("held_ticks"),
        answers=tuple(answer(policy, bundle.spec, share, settings.answer_s) for share in settings.shares),
        seed=settings.seed,
        episode_s=settings.episode_s,
        others_s={name: _middle_s(channel) for name, channel in config.channels.items()},
        answer_s=settings.answer_s,
    )
