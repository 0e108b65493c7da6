"""Composes the terms into reset and step, over either engine.

A control step has two halves in JAX with the physics between them. `drive` sends what the policy decided on its way and
lets events happen. After the physics, `settle` ends episodes and draws new ones, and `look` gives what is seen next.
Training joins `look`, the policy and `drive` into one compiled function; on MJX all of a rollout is one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ksim.actions import roles
from ksim.clock import places
from ksim.config import Config
from ksim.curriculum import factor
from ksim.engine import MjxEngine, PhysicsEngine, make_engine
from ksim.errors import ConfigError
from ksim.events import NOTHING
from ksim.observation import DelayedObservation, Observation, StatefulObservation
from ksim.randomization import nominal
from ksim.resets import Pose
from ksim.rewards import StatefulReward
from ksim.scene import Scene
from ksim.term import Term, fold
from ksim.types import (
    Action,
    Drive,
    EnvState,
    Flag,
    Number,
    PhysicsParams,
    PhysicsState,
    Reading,
    RewardState,
    State,
    Trajectory,
    Vector,
    pick,
)
from robots import delay
from robots.model import build_model

# Environments that are started anew by one call of a compiled function on the host; a step of training ends few.
RENEWED_AT_ONCE = 8


class EnvBatch(NamedTuple):
    """All environments between two control steps; leading axis E everywhere. `rewards`: memory of stateful rewards."""

    physics: PhysicsState
    params: PhysicsParams
    env: EnvState
    rewards: RewardState


class Observed(NamedTuple):
    """What is seen: named policy inputs (E, ...), and the critic's vector (E, critic).

    With `policy.sees` the inputs have a row `critic` besides: what a teacher sees of that vector.
    """

    inputs: Annotated[dict[str, Any], "vectors"]
    critic: Vector


class Ended(NamedTuple):
    """Which episodes a step ended, each (E,): at all, by the clock, by a termination."""

    done: Any
    timeout: Any
    fell: Any


class Outcome(NamedTuple):
    """What a step gave, each (E,): reward, and as Ended; and the mean of each reward term."""

    reward: Number
    done: Flag
    timeout: Flag
    fell: Flag
    terms: Annotated[dict[str, Any], "numbers"]


def term_needs(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sensors, MjModel fields) that the terms of a task ask for, each once."""
    rooms: list[Any] = [
        *(config.observations, config.critic, config.rewards, config.terminations, config.randomizations),
        *(config.resets, config.events, config.commands, config.channels, {"actuators": config.actuators}),
        {} if config.calibration is None else {"calibration": config.calibration},
    ]
    terms: list[Term] = [term for room in rooms for term in room.values()]
    sensors = dict.fromkeys(name for term in terms for name in term.sensors)
    return tuple(sensors), tuple(dict.fromkeys(name for term in terms for name in term.fields))


class Environment:
    """A batch of environments of one task.

    Attributes:
        config: the task.
        engine: the physics.
        scene: what is static.
        envs: number of environments.
        episode_steps: control steps of a full episode.
        nominal: the robot as described, before anything is drawn; of one environment.
        critic_sizes: length of each of the critic's terms, in the order of its vector.
        training: each episode has a level of its own, where the curriculum says so.
    """

    def __init__(self, config: Config, engine: PhysicsEngine, training: bool = False):
        self.training = training
        self.config, self.engine, self.scene, self.envs = config, engine, engine.scene, engine.envs
        self.episode_steps = round(self.scene.episode_length_s / self.scene.control_period_s)
        self._places = places(config.policy.clock, self.scene.command_names)
        self.nominal = nominal(self.scene, engine.fields)
        if config.calibration is not None:
            self.nominal = config.calibration.apply(self.nominal, self.scene)
        self._blanks: dict[str, dict[str, Any]] = {"observations": {}, "critic": {}}
        self._blanks, self.critic_sizes = self._measure()
        self._renew = jax.jit(self.renew)
        self._renew_some = jax.jit(self._renew_at)
        self._look = jax.jit(self.look)
        self._drive = jax.jit(self.drive)
        self._judge = jax.jit(self._judge_all)
        self._mjx_step = jax.jit(self._mjx_step_all) if isinstance(engine, MjxEngine) else None
        self._physics_step = jax.jit(engine.step) if isinstance(engine, MjxEngine) else engine.step

    # One environment; vmapped below.

    def _state(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any, readings: dict[str, Reading]
    ) -> State:
        return State(
            physics=physics,
            params=params,
            command=env.command,
            action=env.action,
            target=env.target,
            time_s=env.step * jnp.float32(self.scene.control_period_s),
            phase=env.phase,
            moving=self.moving(env.command),
            channels=readings,
            events=env.carries["events"],
            level=self._own(level, env.episode_key),
            key=env.key,
            episode_key=env.episode_key,
        )

    def moving(self, command: Any) -> Any:
        """Whether a command asks for motion: the gait clock runs, (E,)."""
        return self.config.policy.clock.moving(command, self._places)

    def _own(self, level: Any, episode_key: Any) -> Any:
        """The level of an episode."""
        easier = self.config.curriculum.easier if self.training else 0.0
        if not easier:
            return level
        return level * (1.0 - easier * jax.random.uniform(fold(episode_key, "level")))

    @staticmethod
    def _for(state: State, room: str, name: str) -> State:
        """The state with random numbers of a term's own."""
        values = {k: getattr(state, k) for k in State.__dataclass_fields__}
        where = f"{room}/{name}"
        values |= {"key": fold(state.key, where), "episode_key": fold(state.episode_key, where)}
        return State(**values)

    def _fresh(self, key: Any, stagger: Any, level: Any) -> tuple[EnvState, PhysicsParams, Any, Any]:
        c, scene = self.config, self.scene
        key, episode_key, clock_key = jax.random.split(key, 3)
        level = self._own(level, episode_key)
        params, drawn = self.nominal, {}
        for name, term in c.randomizations.items():
            drawn[name] = term.draw(fold(episode_key, f"randomizations/{name}"), scene, level)
            params = term.apply(params, drawn[name], scene)
        params = params._replace(drawn={n: c.randomizations[n].shown(v) for n, v in drawn.items()})
        pose = Pose(jnp.asarray(scene.built.home_qpos, jnp.float32), jnp.zeros(scene.built.model.nv))
        for name, term in c.resets.items():
            pose = term.reset(pose, scene, fold(episode_key, f"resets/{name}"), level)
        commands = {n: t.initial_carry(fold(episode_key, f"commands/{n}"), level) for n, t in c.commands.items()}
        channels = {n: t.draw(fold(episode_key, f"channels/{n}"), level) for n, t in c.channels.items()}
        target = pose.qpos[scene.built.qpos_ids] + params.joint_offset
        sent = c.actuators.command(target, target, scene.control_period_s, jnp)
        late = jax.random.randint(clock_key, (), 0, self.episode_steps)
        env = EnvState(
            key=key,
            episode_key=episode_key,
            step=jnp.where(stagger, late, 0),
            command=self._command(commands),
            action=jnp.zeros(scene.actions),
            target=target,
            phase=jnp.zeros(()),
            packets=delay.hold(sent, c.channels["action"].slots(scene.control_period_s), jnp),
            started=jnp.ones((), bool),
            carries={
                "commands": commands,
                "channels": channels,
                "events": {n: t.initial_carry(fold(episode_key, f"events/{n}")) for n, t in c.events.items()},
                **self._blanks,
            },
        )
        return env, params, pose.qpos, pose.qvel

    @staticmethod
    def _command(carries: dict[str, Any]) -> Any:
        parts = [carry["value"] for carry in carries.values()]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)

    def _drive_one(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, action: Any, target: Any, level: Any
    ) -> tuple[EnvState, Drive]:
        c, period = self.config, self.scene.control_period_s
        key, now = jax.random.split(env.key)
        state = self._state(physics, params, env._replace(key=now), level, {})
        wrench, kick, stalled, events = NOTHING.wrench_w, NOTHING.kick, NOTHING.stalled, {}
        for name, term in c.events.items():
            effect, events[name] = term.happen(self._for(state, "events", name), env.carries["events"][name])
            wrench, kick, stalled = wrench + effect.wrench_w, kick + effect.kick, stalled | effect.stalled
        late, lost = c.channels["action"].late(env.carries["channels"]["action"], fold(now, "action"))
        sent = c.actuators.command(target, env.target, period, jnp)
        packets = delay.send(env.packets, sent, late, lost | stalled, jnp)
        starts = [i * self.engine.dt for i in range(self.engine.substeps)]
        command = jnp.stack([delay.in_force(packets, start, self.engine.dt, jnp) for start in starts])
        env = env._replace(
            key=key,
            step=env.step + 1,
            action=action,
            target=target,
            phase=c.policy.clock.advance(env.phase, self.moving(env.command), period),
            packets=delay.advance(packets, period, jnp),
            started=jnp.zeros((), bool),
            carries={**env.carries, "events": events},
        )
        return env, Drive(command=command, wrench_w=jnp.asarray(wrench), kick=jnp.asarray(kick))

    def _settle_one(self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any) -> tuple:
        key, now = jax.random.split(env.key)
        state = self._state(physics, params, env._replace(key=now), level, {})
        fell = jnp.zeros((), bool)
        for name, term in self.config.terminations.items():
            fell = fell | term.terminate(self._for(state, "terminations", name))
        timeout = (env.step >= self.episode_steps) & ~fell
        commands = {
            name: term.next_command(self._for(state, "commands", name), env.carries["commands"][name])
            for name, term in self.config.commands.items()
        }
        env = env._replace(key=key, command=self._command(commands), carries={**env.carries, "commands": commands})
        return env, Ended(done=fell | timeout, timeout=timeout, fell=fell)

    def _look_one(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any
    ) -> tuple[EnvState, Observed]:
        c = self.config
        key, now = jax.random.split(env.key)
        readings, channels = self._read(env)
        state = self._state(physics, params, env._replace(key=now), level, readings)
        inputs, carries = self._seen(state, "observations", c.observations, env)
        critic, critic_carries = self._seen(state, "critic", c.critic, env)
        parts = [jnp.clip(c.critic[n].scale * jnp.ravel(v), -20.0, 20.0) for n, v in critic.items()]
        env = env._replace(
            key=key,
            carries={**env.carries, "channels": channels, "observations": carries, "critic": critic_carries},
        )
        whole = jnp.concatenate(parts) if parts else jnp.zeros(0)
        if c.policy.sees:
            inputs = {**inputs, "critic": whole[self.critic_places(c.policy.sees)]}
        return env, Observed(inputs=inputs, critic=whole)

    def _read(self, env: EnvState) -> tuple[dict[str, Reading], dict[str, Any]]:
        """(what each channel brings now, its next memory)."""
        readings, channels = {}, {}
        for name, channel in self.config.channels.items():
            carry = env.carries["channels"][name]
            reading, channels[name] = channel.read(carry, env.step, self.scene.control_period_s)
            # whoever looks twice before the first step sees the same twice
            readings[name] = reading._replace(fresh=reading.fresh | env.started)
        return readings, channels

    def _noiseless_one(self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any) -> dict[str, Any]:
        state = self._state(physics, params, env, level, self._read(env)[0])
        terms = self.config.observations
        return {name: term.observe(self._for(state, "observations", name)) for name, term in terms.items()}

    def _seen(self, state: State, room: str, terms: dict[str, Observation], env: EnvState) -> tuple[dict, dict]:
        values, carries = {}, {}
        for name, term in terms.items():
            own = self._for(state, room, name)
            if isinstance(term, StatefulObservation):
                old = env.carries[room][name]
                carry = jax.tree.map(lambda a, b: jnp.where(env.started, a, b), term.initial_carry(own), old)
                values[name], carries[name] = term.observe_stateful(own, carry)
            else:
                values[name] = term.seen(own)
        return values, carries

    # All environments.

    def drive(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, action: Any, target: Any, level: Any
    ) -> tuple[EnvState, Drive]:
        """Send raw actions (E, actions) and joint targets [rad] (E, n) on their way, and let events happen."""
        return jax.vmap(self._drive_one, in_axes=(0, 0, 0, 0, 0, None))(physics, params, env, action, target, level)

    def settle(self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any) -> tuple[EnvState, Ended]:
        """Which episodes end now; the commands of the others go on."""
        return jax.vmap(self._settle_one, in_axes=(0, 0, 0, None))(physics, params, env, level)

    def renew(
        self, env: EnvState, params: PhysicsParams, mask: Any, level: Any, stagger: Any
    ) -> tuple[EnvState, PhysicsParams, Any, Any]:
        """Draw new episodes where `mask` (E,): (env, params, qpos, qvel); the last two hold there only."""
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(env.key)
        new_env, new_params, qpos, qvel = jax.vmap(self._fresh, in_axes=(0, None, None))(keys, stagger, level)
        return pick(mask, new_env, env), pick(mask, new_params, params), qpos, qvel

    def look(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any
    ) -> tuple[EnvState, Observed]:
        """What is seen now."""
        return jax.vmap(self._look_one, in_axes=(0, 0, 0, None))(physics, params, env, level)

    def noiseless(self, physics: PhysicsState, params: PhysicsParams, env: EnvState, level: Any) -> dict[str, Any]:
        """The policy's inputs as `look` sees them of the same environments, as late but without noise, (E, ...)."""
        return jax.vmap(self._noiseless_one, in_axes=(0, 0, 0, None))(physics, params, env, level)

    def rewards(self, trajectory: Trajectory, carry: RewardState) -> tuple[Any, dict[str, Any], RewardState]:
        """Rewards of T steps of all environments, (T, E, ...) throughout.

        Returns:
            (sum of the weighted terms (T, E), each weighted term (T, E), the memory of the stateful terms).
        """

        def one(trajectory: Trajectory, carry: RewardState) -> tuple[Any, dict[str, Any], RewardState]:
            terms, later = {}, {}
            for name, term in self.config.rewards.items():
                if isinstance(term, StatefulReward):
                    value, later[name] = term.get_reward_stateful(trajectory, carry[name])
                else:
                    value = term.get_reward(trajectory)
                weight = factor(term.weight, trajectory.level) * self.scene.control_period_s
                terms[name] = jnp.nan_to_num(weight * value, posinf=0.0, neginf=0.0)
            total = sum(terms.values()) if terms else jnp.zeros(len(trajectory))
            return jnp.asarray(total), terms, later

        return jax.vmap(one, in_axes=(1, 0), out_axes=(1, 1, 0))(trajectory, carry)

    def initial_rewards(self) -> RewardState:
        """The memory of the stateful rewards before the first step, (E, ...)."""
        terms = {n: t for n, t in self.config.rewards.items() if isinstance(t, StatefulReward)}
        start = {name: term.initial_carry(self.scene) for name, term in terms.items()}
        return jax.tree.map(lambda v: jnp.broadcast_to(v, (self.envs, *jnp.shape(v))), start)

    def row(self, physics: PhysicsState, before: EnvState, action: Action, ended: Ended, level: Any) -> Trajectory:
        """One step of a trajectory, (E, ...).

        Args:
            physics: after the step.
            before: the environment as the policy saw it.
            action: what it decided.
            ended: what the step ended.
            level: the curriculum's level.
        """
        return Trajectory(
            physics=physics.public(),
            command=before.command,
            action=action,
            phase=before.phase,
            moving=self.moving(before.command),
            first=before.started,
            time_s=before.step * jnp.float32(self.scene.control_period_s),
            done=ended.done,
            timeout=ended.timeout,
            fell=ended.fell,
            level=jnp.broadcast_to(jnp.asarray(level, jnp.float32), ended.done.shape),
        )

    def reset(
        self,
        key: Any,
        *,
        stagger: bool = False,
        level: float = 1.0,
        alter: Callable[[EnvState, PhysicsParams], tuple[EnvState, PhysicsParams]] | None = None,
    ) -> tuple[EnvBatch, Observed]:
        """Fresh environments.

        Args:
            key: of all that is random; or one for each environment, (E,).
            stagger: their clocks start at random times, as in a long run.
            level: the curriculum's, 0 to 1, see ksim/curriculum.py.
            alter: changes what was drawn for these episodes, before they begin; later ones are drawn as ever.
        """
        at = jnp.asarray(level, jnp.float32)
        # the same compiled function as for a renewal, with everything renewed
        keys = key if jnp.ndim(key) else jax.random.split(key, self.envs)
        shapes = jax.eval_shape(jax.vmap(self._fresh, in_axes=(0, None, None)), keys, False, at)[:2]
        blank = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0]._replace(key=(), episode_key=()), shapes[1])
        )
        env, params = blank[0]._replace(key=keys, episode_key=keys), blank[1]
        everyone = jnp.ones(self.envs, bool)
        env, params, qpos, qvel = self._renew(env, params, everyone, at, jnp.asarray(stagger))
        if alter is not None:
            env, params = alter(env, params)
        init = jax.jit(self.engine.init) if isinstance(self.engine, MjxEngine) else self.engine.init
        physics = init(params, qpos, qvel)
        env, seen = self._look(physics, params, env, at)
        return EnvBatch(physics, params, env, self.initial_rewards()), seen

    def step(self, batch: EnvBatch, action: Any, target: Any, level: Any = 1.0) -> tuple[EnvBatch, Observed, Outcome]:
        """One control step: raw actions (E, actions) and joint targets [rad], (E, n).

        Environments that end are started anew; what is observed then is the new start.
        """
        batch, _, seen, outcome = self.driven(batch, action, target, level)
        return batch, seen, outcome

    def driven(
        self, batch: EnvBatch, action: Any, target: Any, level: Any = 1.0
    ) -> tuple[EnvBatch, Drive, Observed, Outcome]:
        """One control step as `step` takes it, told with what acted on each robot during it."""
        level, act = jnp.asarray(level, jnp.float32), Action(jnp.asarray(action), jnp.asarray(target))
        if self._mjx_step is not None:
            return self._mjx_step(batch, act, level)
        env, drive = self._drive(batch.physics, batch.params, batch.env, *act, level)
        physics = self.engine.step(batch.physics, drive, batch.params)
        env, outcome, rewards = self._judge(physics, batch, env, act, level)
        physics, params, env = self.renew_ended(physics, batch.params, env, outcome.done, level)
        env, seen = self._look(physics, params, env, level)
        return EnvBatch(physics, params, env, rewards), drive, seen, outcome

    def advance(
        self, batch: EnvBatch, action: Any, target: Any, level: Any = 1.0
    ) -> tuple[EnvBatch, Drive, Observed, Outcome]:
        """One control step as `step` takes it, but what ends stays as it ended: no environment is started anew.

        Returns:
            (all environments, what acted on each robot, what is seen after the step, what the step gave).
        """
        level, act = jnp.asarray(level, jnp.float32), Action(jnp.asarray(action), jnp.asarray(target))
        env, drive = self._drive(batch.physics, batch.params, batch.env, *act, level)
        physics = self._physics_step(batch.physics, drive, batch.params)
        env, outcome, rewards = self._judge(physics, batch, env, act, level)
        env, seen = self._look(physics, batch.params, env, level)
        return EnvBatch(physics, batch.params, env, rewards), drive, seen, outcome

    def renew_ended(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, done: Any, level: Any
    ) -> tuple[PhysicsState, PhysicsParams, EnvState]:
        """On the host: start anew what ended. Where nothing did, the parameters stay the same object."""
        mask = np.asarray(done)
        if not mask.any():
            return physics, params, env
        ids, qpos, qvel = np.flatnonzero(mask), np.zeros(physics.qpos.shape), np.zeros(physics.qvel.shape)
        for first in range(0, len(ids), RENEWED_AT_ONCE):
            some = ids[first : first + RENEWED_AT_ONCE]
            places = np.pad(some, (0, RENEWED_AT_ONCE - len(some)), mode="edge")
            env, params, pose, speed = self._renew_some(env, params, places, level)
            qpos[places], qvel[places] = np.asarray(pose), np.asarray(speed)
        return self.engine.reset(physics, mask, params, qpos, qvel), params, env

    def _renew_at(
        self, env: EnvState, params: PhysicsParams, places: Any, level: Any
    ) -> tuple[EnvState, PhysicsParams, Any, Any]:
        """As `renew`, of some environments by their places, (k,); qpos and qvel are theirs alone, (k, ...)."""
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(env.key[places])
        new_env, new_params, qpos, qvel = jax.vmap(self._fresh, in_axes=(0, None, None))(keys, False, level)
        mask = jnp.zeros(self.envs, bool).at[places].set(True)
        source = jnp.zeros(self.envs, jnp.int32).at[places].set(jnp.arange(len(places)))
        new_env, new_params = jax.tree.map(lambda new: jnp.take(new, source, axis=0), (new_env, new_params))
        return pick(mask, new_env, env), pick(mask, new_params, params), qpos, qvel

    def renewed(
        self, physics: PhysicsState, params: PhysicsParams, env: EnvState, done: Any, level: Any
    ) -> tuple[PhysicsState, PhysicsParams, EnvState]:
        """The same in JAX."""

        def anew(_: Any) -> tuple[PhysicsState, PhysicsParams, EnvState]:
            new_env, new_params, qpos, qvel = self.renew(env, params, done, level, False)
            return self.engine.reset(physics, done, new_params, qpos, qvel), new_params, new_env

        return jax.lax.cond(jnp.any(done), anew, lambda _: (physics, params, env), None)

    def _judge_all(self, physics: PhysicsState, batch: EnvBatch, env: EnvState, act: Action, level: Any) -> tuple:
        env, ended = self.settle(physics, batch.params, env, level)
        row = self.row(physics, batch.env, act, ended, level)
        total, terms, rewards = self.rewards(jax.tree.map(lambda v: jnp.asarray(v)[None], row), batch.rewards)
        means = {name: jnp.mean(value) for name, value in terms.items()}
        return env, Outcome(total[0], ended.done, ended.timeout, ended.fell, means), rewards

    def _mjx_step_all(self, batch: EnvBatch, act: Action, level: Any) -> tuple:
        env, drive = self.drive(batch.physics, batch.params, batch.env, *act, level)
        physics = self.engine.step(batch.physics, drive, batch.params)
        env, outcome, rewards = self._judge_all(physics, batch, env, act, level)
        physics, params, env = self.renewed(physics, batch.params, env, outcome.done, level)
        env, seen = self.look(physics, params, env, level)
        return EnvBatch(physics, params, env, rewards), drive, seen, outcome

    def _measure(self) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
        """(zeros in the shape of each stateful observation's memory, which `look` fills at an episode's first tick;
        the length of each of the critic's terms).
        """
        rooms = {"observations": self.config.observations, "critic": self.config.critic}

        def measured(key: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
            env, params, qpos, qvel = self._fresh(key, False, 0.0)
            period, kept = self.scene.control_period_s, env.carries["channels"]
            readings = {n: c.read(kept[n], env.step, period)[0] for n, c in self.config.channels.items()}
            state = self._state(self.engine.at_rest(params, qpos, qvel), params, env, jnp.zeros(()), readings)
            carries = {
                room: {
                    name: term.initial_carry(self._for(state, room, name))
                    for name, term in terms.items()
                    if isinstance(term, StatefulObservation)
                }
                for room, terms in rooms.items()
            }
            critic = {n: jnp.ravel(t.observe(self._for(state, "critic", n))) for n, t in self.config.critic.items()}
            return carries, critic

        carries, critic = jax.eval_shape(measured, jax.random.key(0))
        blanks = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), carries)
        return blanks, {name: critic[name].shape[0] for name in self.config.critic}  # JAX sorts a dict's names

    def critic_places(self, names: Sequence[str]) -> np.ndarray:
        """Where the numbers of some of the critic's terms stand in its vector, in the order of the names."""
        ends = dict(zip(self.critic_sizes, itertools.accumulate(self.critic_sizes.values()), strict=True))
        return np.concatenate([np.arange(ends[n] - self.critic_sizes[n], ends[n]) for n in names]).astype(np.int32)


def make_scene(config: Config) -> Scene:
    """What is static in the environments of a configuration.

    Raises:
        ConfigError: the task does not fit the robot.
    """
    sensors, _ = term_needs(config)
    physics = config.physics
    built_as = functools.partial(
        build_model, config.robot, physics.timestep_s, shapes=False, sensors=sensors, solver=physics.solver
    )
    flat = built_as()
    built = flat if physics.ground is None else built_as(ground=physics.ground)
    if built.base_body < 0 and config.needs_free_base:
        raise ConfigError(
            f"task {config.task}: robot {built.spec.name} is fixed to the world; expected one that can fall; "
            f"ksim inspect {config.robot} says why (foot_sites, floating)"
        )
    return Scene(
        built=built,
        control_period_s=config.physics.control_period_s,
        episode_length_s=config.episode_length_s,
        command_names=tuple(config.command_names),
        moved=tuple(roles(built.spec, config.policy.hold, config.policy.passthrough).active),
        flat=flat,
    )


def make_environment(config: Config, envs: int, engine: str | None = None, training: bool = False) -> Environment:
    """The environments of a configuration.

    Args:
        config: the task.
        envs: number of environments.
        engine: mujoco, mjx or auto, in place of the configuration's.
        training: each episode has a level of its own, where the curriculum says so.

    Raises:
        ConfigError: the task does not fit the robot.
    """
    scene, (_, fields) = make_scene(config), term_needs(config)
    history: dict[str, float] = {}
    for term in (*config.observations.values(), *config.critic.values()):
        if isinstance(term, DelayedObservation):
            reach = config.channels[term.channel].reach_s(scene.control_period_s)
            history[term.signal] = max(reach, history.get(term.signal, 0.0))
    kind = engine or config.engine
    arguments = {"fields": fields, "history": history}
    made = make_engine(kind, scene, envs, config.actuators, threads=config.threads, **arguments)
    return Environment(config, made, training)
