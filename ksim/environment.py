"""Composes the terms into reset and step, over either engine.

A step is: drive (command channel, pushes) -> physics -> judge (rewards, terminations) -> renew the
environments that ended -> observe. Everything but the physics of MuJoCo C is pure JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ksim.actuators import CommandChannel
from ksim.commands import UniformCommands
from ksim.engine import MjxEngine, MujocoEngine, PhysicsEngine
from ksim.events import Pushes
from ksim.observation import PolicyInputs, Privileged
from ksim.randomization import nominal
from ksim.rewards import Transition
from ksim.types import Drive, EnvState, PhysicsParams, PhysicsState

# Share of the randomisation that an environment of level 0 has.
RANDOMIZED_AT_LEVEL_0 = 0.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """A whole task: the terms of every room, and the weight of each reward per second."""

    reset: Callable[..., Any]
    randomizations: tuple[Callable[..., PhysicsParams], ...]
    rewards: Mapping[str, tuple[float, Callable[[Transition], Any]]]
    terminations: Mapping[str, Callable[[PhysicsState], Any]]
    commands: UniformCommands
    pushes: Pushes
    channel: CommandChannel
    inputs: PolicyInputs
    privileged: Privileged
    control_period_s: float
    episode_steps: int
    actions: int


class EnvBatch(NamedTuple):
    """All environments between two control steps; leading axis E everywhere."""

    physics: PhysicsState
    params: PhysicsParams
    env: EnvState


class Observed(NamedTuple):
    """What is seen: named policy inputs (E, ...), and the critic's vector (E, privileged)."""

    inputs: dict[str, Any]
    privileged: Any


class Outcome(NamedTuple):
    """What a step gave, each (E,): reward, whether the episode ended, by the clock, by a fall; and the
    mean of each reward term.
    """

    reward: Any
    done: Any
    timeout: Any
    fell: Any
    terms: dict[str, Any]


def choose_engine(name: str) -> str:
    """`auto` is MJX where JAX has a GPU, MuJoCo C elsewhere."""
    if name != "auto":
        return name
    return "mjx" if jax.default_backend() == "gpu" else "mujoco"


class Environment:
    """A batch of environments of one task.

    Attributes:
        task: the terms.
        engine: the physics.
        envs: number of environments.
    """

    def __init__(self, task: Task, engine: PhysicsEngine):
        self.task, self.engine, self.envs = task, engine, engine.envs
        self._nominal = nominal(engine.built)
        self._drive = jax.jit(self._drive_all)
        self._judge = jax.jit(self._judge_all)
        self._renew = jax.jit(self._renew_all)
        self._observe = jax.jit(self._observe_all)
        self._mjx_step = jax.jit(self._mjx_step_all) if isinstance(engine, MjxEngine) else None

    # One environment; vmapped below.

    def _fresh(self, key: Array, stagger: Any, level: Any) -> tuple[EnvState, PhysicsParams, Array, Array]:
        keys = jax.random.split(key, 6)
        params = self._nominal
        for term, k in zip(
            self.task.randomizations, jax.random.split(keys[0], max(1, len(self.task.randomizations))), strict=False
        ):
            params = term(k, params)
        # at a low level the robot is near the nominal one: standing comes before standing on any robot
        share = RANDOMIZED_AT_LEVEL_0 + (1.0 - RANDOMIZED_AT_LEVEL_0) * level
        params = jax.tree.map(lambda n, r: n + share * (r - n), self._nominal, params)
        qpos, qvel = self.task.reset(keys[1], share)
        n = self.task.actions
        late = jax.random.randint(keys[4], (), 0, self.task.episode_steps)
        env = EnvState(
            key=keys[5],
            step=jnp.where(stagger, late, 0),
            command=self.task.commands(keys[2]),
            target=qpos[self.engine.built.qpos_ids] + params.joint_offset,
            action=jnp.zeros(n),
            action_before=jnp.zeros(n),
            event=self.task.pushes.start(keys[3]),
        )
        return env, params, qpos, qvel

    def _drive_one(self, env: EnvState, params: PhysicsParams, action: Any, target: Any, level: Any) -> tuple:
        key, channel_key, push_key = jax.random.split(env.key, 3)
        arrived, latency = self.task.channel(channel_key, target, env.target, params.action_latency)
        event = self.task.pushes(push_key, env.event, level)
        env = env._replace(
            key=key, step=env.step + 1, target=arrived, action=action, action_before=env.action, event=event
        )
        return env, Drive(target=arrived, latency=latency, force_w=event.force_w)

    def _judge_one(self, physics: PhysicsState, env: EnvState) -> tuple[Outcome, dict[str, Any]]:
        fell = jnp.zeros((), bool)
        for term in self.task.terminations.values():
            fell = fell | term(physics)
        timeout = (env.step >= self.task.episode_steps) & ~fell
        step = Transition(physics=physics, env=env, fell=fell.astype(jnp.float32))
        terms = {
            name: jnp.nan_to_num(weight * self.task.control_period_s * term(step), posinf=0.0, neginf=0.0)
            for name, (weight, term) in self.task.rewards.items()
        }
        reward = jnp.asarray(sum(terms.values()))
        return Outcome(reward=reward, done=fell | timeout, timeout=timeout, fell=fell, terms={}), terms

    def _observe_one(self, physics: PhysicsState, params: PhysicsParams, env: EnvState) -> tuple[EnvState, Observed]:
        key, noise_key = jax.random.split(env.key)
        env = env._replace(key=key)
        inputs = self.task.inputs(noise_key, physics, params, env)
        return env, Observed(inputs=inputs, privileged=self.task.privileged(physics, params, env))

    # All environments.

    def _drive_all(self, env: EnvState, params: PhysicsParams, action: Any, target: Any, level: Any) -> tuple:
        return jax.vmap(self._drive_one, in_axes=(0, 0, 0, 0, None))(env, params, action, target, level)

    def _judge_all(self, physics: PhysicsState, env: EnvState) -> Outcome:
        outcome, terms = jax.vmap(self._judge_one)(physics, env)
        return outcome._replace(terms={k: jnp.mean(v) for k, v in terms.items()})

    def _renew_all(self, env: EnvState, params: PhysicsParams, mask: Any, level: Any, stagger: Any) -> tuple:
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(env.key)
        fresh_env, fresh_params, qpos, qvel = jax.vmap(self._fresh, in_axes=(0, None, None))(keys, stagger, level)

        def pick(new: Any, old: Any) -> Any:
            return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)

        env = jax.tree.map(pick, fresh_env, env)
        return env, jax.tree.map(pick, fresh_params, params), qpos, qvel

    def _observe_all(self, physics: PhysicsState, params: PhysicsParams, env: EnvState) -> tuple[EnvState, Observed]:
        return jax.vmap(self._observe_one)(physics, params, env)

    def reset(self, key: Any, *, stagger: bool = False, level: float = 1.0) -> tuple[EnvBatch, Observed]:
        """Fresh environments; with `stagger` their clocks start at random times, as in a long run.

        `level` in [0, 1] scales the randomisation, see ksim/curriculum.py.
        """
        # the same compiled function as for a renewal, with everything renewed
        keys = jax.random.split(key, self.envs)
        shapes = jax.eval_shape(jax.vmap(self._fresh, in_axes=(0, None, None)), keys, False, 1.0)[:2]
        env, params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0]._replace(key=()), shapes[1]))
        everyone = jnp.ones(self.envs, bool)
        env, params, qpos, qvel = self._renew(
            env._replace(key=keys), params, everyone, jnp.asarray(level, jnp.float32), jnp.asarray(stagger)
        )
        init = jax.jit(self.engine.init) if isinstance(self.engine, MjxEngine) else self.engine.init
        physics = init(params, qpos, qvel)
        env, seen = self._observe(physics._replace(internal=()), params, env)
        return EnvBatch(physics, params, env), seen

    def step(self, batch: EnvBatch, action: Any, target: Any, level: Any = 1.0) -> tuple[EnvBatch, Observed, Outcome]:
        """One control step: raw actions (E, actions) and joint targets [rad], (E, n).

        Environments that end are started anew; what is observed then is the new start.
        """
        level = jnp.asarray(level, jnp.float32)
        if self._mjx_step is not None:
            return self._mjx_step(batch, action, target, level)
        env, drive = self._drive(batch.env, batch.params, action, target, level)
        physics = self.engine.step(batch.physics, drive, batch.params)
        outcome = self._judge(physics, env)
        params, done = batch.params, np.asarray(outcome.done)
        if done.any():
            env, params, qpos, qvel = self._renew(env, params, outcome.done, level, jnp.asarray(False))
            physics = self.engine.reset(physics, done, params, qpos, qvel)
        env, seen = self._observe(physics, params, env)
        return EnvBatch(physics, params, env), seen, outcome

    def _mjx_step_all(self, batch: EnvBatch, action: Any, target: Any, level: Any) -> tuple:
        env, drive = self._drive_all(batch.env, batch.params, action, target, level)
        physics = self.engine.step(batch.physics, drive, batch.params)
        public = physics._replace(internal=())
        outcome = self._judge_all(public, env)
        env, params, qpos, qvel = self._renew_all(env, batch.params, outcome.done, level, False)
        physics = self.engine.reset(physics, outcome.done, params, qpos, qvel)
        env, seen = self._observe_all(physics._replace(internal=()), params, env)
        return EnvBatch(physics, params, env), seen, outcome


def make_engine(kind: str, *args: Any, threads: int = 0, **kwargs: Any) -> PhysicsEngine:
    """An engine by name: mujoco or mjx."""
    if kind == "mjx":
        return MjxEngine(*args, **kwargs)
    return MujocoEngine(*args, threads=threads, **kwargs)
