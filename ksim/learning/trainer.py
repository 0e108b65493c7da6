"""One training run: collect a rollout, update, keep all that a checkpoint needs.

Per control step there are two compiled functions: `tick` looks, acts and sends; `settle` ends episodes. On MuJoCo C the
physics runs between them on the host. On MJX the steps, the rewards and the update are one compiled function.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ksim.config import Config
from ksim.curriculum import FixedCurriculum, Success
from ksim.engine import MjxEngine
from ksim.environment import Ended, EnvBatch, Environment, make_environment
from ksim.errors import CheckpointError, TrainingError
from ksim.learning import checkpoint, ppo
from ksim.learning.policy import ESTIMATED, Model, Policy, make_model, make_policy, mirror_of
from ksim.learning.symmetry import NetMirror, critic_mirror
from ksim.learning.world import CUT, LATER_CUT, WHOLE, World, everywhere, total
from ksim.reward import per_step
from ksim.types import Action, Drive, EnvState, PhysicsParams, PhysicsState, RewardState, Trajectory
from robots import MirrorError

# The level stays until the averages are of about half as many episodes as there are environments: those that end first
# had a clock that started late.
_ENOUGH = 0.2


class Learner(NamedTuple):
    """All that training carries from one update to the next, but the physics and the environments.

    Attributes:
        model: the networks.
        opt_state: of the optimiser.
        rate: step size.
        scale: of the critic's values.
        key: random key.
        carry: the policy's carry, (E, carry).
        critic_state: of the critic's network, (E, state).
        rewards: memory of the stateful rewards.
        returns: sum of rewards of each running episode, (E,).
        mirror_state: of the actor that sees the mirror images, (E, state); empty without `ppo.symmetry`.
        teacher_state: of the teacher's network, (E, state); empty without `ppo.teacher`.
        mean: of the actor's weights over the last updates; empty without `ppo.average`.
        moved: the mean velocity that an estimator is to tell, (E, 3); empty without one.
    """

    model: Model
    opt_state: Any
    rate: Any
    scale: ppo.ValueScale
    key: Any
    carry: Any
    critic_state: Any
    rewards: RewardState
    returns: Any
    mirror_state: Any = ()
    teacher_state: Any = ()
    mean: Any = ()
    moved: Any = ()

    @property
    def steady(self) -> Model:
        """The networks, the actor with the mean of its weights where there is one."""
        if not self.mean:
            return self.model
        return eqx.tree_at(lambda m: m.actor, self.model, eqx.combine(self.mean, self.model.actor))


class Progress(NamedTuple):
    """Where a run is; plain numbers that a checkpoint keeps.

    Length share to distance are averages over the episodes that ended last. `told` is how much of an average's weight
    such episodes have: 0 before the first ended.
    """

    updates: int = 0
    steps: int = 0
    level: float = 0.0
    length_share: float = 0.0
    survival: float = 0.0
    episode_return: float = 0.0
    distance_m: float = 0.0
    told: float = 1.0


# How a Learner is cut over devices, and what `learn` takes.
_PLACES: dict[str, Any] = {
    **dict.fromkeys(("model", "opt_state", "rate", "scale", "key", "mean"), WHOLE),
    **dict.fromkeys(("carry", "critic_state", "rewards", "returns", "mirror_state", "teacher_state", "moved"), CUT),
}
_LEARNER = Learner(**_PLACES)
# What a checkpoint calls all that has a row for each environment.
_CUT_NAMES = ("world", "physics.", *(f"learner.{k}" for k, v in _PLACES.items() if v is CUT))
_LEARNS = (_LEARNER, LATER_CUT, CUT, LATER_CUT, LATER_CUT, CUT, WHOLE)


class Tick(NamedTuple):
    """What one control step leaves for the update, each (E, ...); `taught` is what the teacher saw."""

    observation: Any
    critic: Any
    action: Action
    log_prob: Any
    first: Any
    before: EnvState
    taught: Any
    quiet: Any


def moving_mean(moved: Any, now: Any, first: Any, share: float) -> tuple[Any, Any]:
    """Exponential mean of T rows, from 0 at each episode's first: (the last, all).

    Args:
        moved: before the first row, (E, k).
        now: what is averaged, (T, E, k).
        first: rows that are an episode's first, (T, E).
        share: of a row in the mean; 1 is no mean.
    """

    def step(mean: Any, row: Any) -> tuple[Any, Any]:
        mean = mean + share * (row - mean)
        return mean, mean

    return per_step(step, moved, now, first[..., None], jnp.zeros_like(moved))


def _velocity(physics: PhysicsState) -> Any:
    """What an estimator tells the mean of, (..., 3), see ksim.learning.policy.ESTIMATED."""
    return jnp.concatenate([physics.base_lin_vel_h[..., :2], physics.base_ang_vel_w[..., 2:]], axis=-1)


class Trainer:
    """One training run over one batch of environments, which may be spread over devices and processes."""

    def __init__(self, config: Config, environment: Environment | None = None, world: World | None = None):
        self.config = config
        self.world = world or World.here()
        self.started_from: dict[str, Any] | None = None
        self.about_critic = ""
        self.env = environment or make_environment(config, self.world.local(config.ppo.envs), training=True)
        self.robot = self.env.scene.built.spec
        self.teacher = None
        if config.ppo.teacher:
            self.teacher = checkpoint.Teacher.read(config.ppo.teacher, self.robot, config, self.env.critic_sizes)
        self.mirror = self._mirror()
        self._tick = eqx.filter_jit(self.tick)
        self._settle = jax.jit(self.env.settle)
        self._learn = eqx.filter_jit(self.learn)
        self._whole = eqx.filter_jit(self._iterate_mjx)
        self._spread = self.world.devices > 1
        # on MJX all of a batch is on the devices; MuJoCo C has each process's own on its host
        self._on_devices = self._spread and isinstance(self.env.engine, MjxEngine)
        if self._spread:
            self._learn_on_all = self.world.spread(self.learn, _LEARNS, (_LEARNER, WHOLE))
            self._whole_on_all = self.world.spread(self._iterate_mjx, (_LEARNER, CUT, WHOLE), (_LEARNER, CUT, WHOLE))

    @property
    def _sizes(self) -> dict[str, int]:
        """Length of each of the critic's terms that the actor sees, in order; empty for one of a robot's inputs."""
        return {name: self.env.critic_sizes[name] for name in self.config.policy.sees}

    def _mirror(self) -> NetMirror | None:
        """The mirror of what the policy sees and does, where the configuration asks for one."""
        config = self.config
        if config.ppo.symmetry == "none":
            return None
        try:
            if config.policy.sees:
                seen = {name: config.critic[name] for name in config.policy.sees}
                return critic_mirror(self.env.scene, seen, self._sizes)
            return mirror_of(self.robot, self.env.scene.mirror, config)
        except MirrorError as error:
            raise MirrorError(f"{error}; to train without symmetry: --set ppo.symmetry=none") from error

    def policy(self, model: Model) -> Policy:
        """The policy function of a model."""
        return make_policy(model.actor, self.robot, self.config)

    def start(self) -> tuple[Learner, EnvBatch, Progress]:
        """A fresh run from the configuration's seed."""
        learner, batch, progress = self._fresh()
        return *self._placed(learner, batch), progress

    def _placed(self, learner: Learner, batch: EnvBatch) -> tuple[Learner, EnvBatch]:
        """On all devices, where that is where they live."""
        return self.world.shared((learner, batch), (_LEARNER, CUT)) if self._on_devices else (learner, batch)

    def _fresh(self) -> tuple[Learner, EnvBatch, Progress]:
        config, envs = self.config, self.env.envs
        key, model_key, env_key = jax.random.split(jax.random.key(config.seed), 3)
        level = config.curriculum.first_level
        keys = jax.random.split(env_key, config.ppo.envs)[self.world.rows(config.ppo.envs)]
        batch, seen = self.env.reset(keys, stagger=True, level=level)
        # compiled as one: op by op its random draws take longer than all of them
        fresh = eqx.filter_jit(make_model)
        sees = sum(self._sizes.values())
        model = fresh(self.robot, seen.critic.shape[-1], config, self.mirror, sees=sees, key=model_key)
        learner = Learner(
            model=model,
            opt_state=ppo.optimizer(config.ppo).init(eqx.filter(model, ppo.trainable(model))),
            rate=jnp.asarray(config.ppo.learning_rate, jnp.float32),
            scale=ppo.ValueScale.start(),
            key=key,
            carry=jnp.tile(self.policy(model).init_carry(), (envs, 1)),
            critic_state=jnp.zeros((envs, model.critic.net.state_size)),
            rewards=batch.rewards,
            returns=jnp.zeros(envs),
            mirror_state=jnp.zeros((envs, model.actor.state_size)) if config.ppo.symmetry == "augment" else (),
            teacher_state=() if self.teacher is None else jnp.zeros((envs, self.teacher.policy.actor.state_size)),
            mean=eqx.filter(model, ppo.trainable(model)).actor if config.ppo.average else (),
            moved=() if model.actor.estimator is None else jnp.zeros((envs, len(ESTIMATED))),
        )
        return learner, batch, Progress(level=level, told=0.0)

    def start_from(self, found: checkpoint.Start) -> tuple[Learner, EnvBatch, Progress]:
        """A fresh run with the networks of a checkpoint, at the curriculum's level that it had reached.

        A level that was fixed was not reached: from one, or to one, it is the first level of the configuration.

        Raises:
            CheckpointError: its networks do not fit the configuration or the robot.
        """
        found.check(self.robot, self.config)
        learner, batch, progress = self._fresh()
        model, scale, self.about_critic = found.networks(
            learner.model, learner.scale, self.config, self.env.critic_sizes
        )
        self.started_from = found.origin
        # a level that was fixed was given, not reached
        given = any(isinstance(c.curriculum, FixedCurriculum) for c in (found.config, self.config))
        level = progress.level if given else found.level
        learner = learner._replace(model=model, scale=scale)
        return *self._placed(learner, batch), progress._replace(level=level)

    def tick(
        self,
        model: Model,
        physics: PhysicsState,
        params: PhysicsParams,
        env: EnvState,
        carry: Any,
        key: Any,
        level: Any,
    ) -> tuple[EnvState, Drive, Any, Any, Tick]:
        """Look, act with noise, send: (env, drive, carry, key, what the update needs)."""
        policy = self.policy(model)
        key, noise_key = jax.random.split(key)
        before, seen = self.env.look(physics, params, env, level)
        carry = jnp.where(env.started[:, None], policy.init_carry(), carry)
        state, own, last_action, last_target = policy.split(carry)
        observation = jax.vmap(policy.encode)(seen.inputs, own, last_action)
        mean, state, told = jax.vmap(policy.actor)(observation, state)
        quiet = ()
        if self.config.ppo.std_at_rest < 1:
            moving = self.env.moving(before.command)[:, None]
            quiet = jnp.where(moving, 0.0, math.log(self.config.ppo.std_at_rest))
        log_std = ppo.quieted(policy.actor.log_std, quiet)
        raw = mean + jnp.exp(log_std) * self._noise(noise_key, mean)
        target, carry = policy.act(seen.inputs, raw, told, state, own, last_target)
        after, drive = self.env.drive(physics, params, before, raw, target, level)
        log_prob = ppo.log_prob(raw, mean, log_std)
        slim = before._replace(key=(), episode_key=(), packets=(), carries={})
        taught = ()
        if self.teacher is not None:
            if self.teacher.sees:
                inputs = {"critic": seen.critic[:, self.env.critic_places(self.teacher.sees)]}
            else:
                inputs = self.env.noiseless(physics, params, env, level)
            taught = jax.vmap(self.teacher.policy.encode)(inputs, own[:, : int(policy.clocked)], last_action)
        kept = Tick(observation, seen.critic, Action(raw, target), log_prob, env.started, slim, taught, quiet)
        return after, drive, carry, key, kept

    def _noise(self, key: Any, like: Any) -> Any:
        """Of the same environments the same, on however many devices they are."""
        every = self.config.ppo.envs if self._spread else len(like)
        noise = jax.random.normal(key, (every, *like.shape[1:]))
        return self.world.drawn(noise, every, spread=self._on_devices)

    def learn(
        self,
        learner: Learner,
        ticks: Tick,
        last: Tick,
        physics: PhysicsState,
        ended: Ended,
        actor_state: Any,
        level: Any,
    ) -> tuple[Learner, dict[str, Any]]:
        """Rewards of a rollout and its update.

        Args:
            learner: with the carry and key after the rollout.
            ticks: of its T steps, (T, E, ...).
            last: what follows them, (E, ...).
            physics: after each step, (T, E, ...).
            ended: what each step ended, (T, E).
            actor_state: the actor's network state before the first step, (E, state).
            level: the curriculum's level.

        Returns:
            (the learner afterwards, figures).
        """
        c = self.config.ppo
        trajectory = self.env.row(physics, ticks.before, ticks.action, ended, level)
        trajectory = eqx.tree_at(lambda t: t.first, trajectory, ticks.first)
        reward, terms, rewards = self.env.rewards(trajectory, learner.rewards)

        def along(sums: Any, now: Any) -> tuple[Any, Any]:
            given, over = now
            sums = sums + given
            return jnp.where(over, 0.0, sums), sums

        returns, sums = jax.lax.scan(along, learner.returns, (reward, ended.done))
        taught, teacher_state = (), ()
        if self.teacher is not None:
            actor = self.teacher.policy.actor
            taught, teacher_state = actor.unroll(ticks.taught, learner.teacher_state, ticks.first)
        period = self.config.physics.control_period_s
        truth, moved = (), learner.moved
        if learner.model.actor.estimator is not None:
            share = min(1.0, period / c.estimator_time_s) if c.estimator_time_s > 0 else 1.0
            moved, truth = moving_mean(moved, _velocity(trajectory.physics), ticks.first, share)
        rollout = ppo.Rollout(
            observation=ticks.observation,
            critic=jnp.concatenate([ticks.critic, last.critic[None]]),
            action=ticks.action.raw,
            log_prob=ticks.log_prob,
            reward=reward,
            done=ended.done,
            timeout=ended.timeout,
            resets=jnp.concatenate([ticks.first, last.first[None]]),
            actor_state=actor_state,
            critic_state=learner.critic_state,
            mirror_state=learner.mirror_state,
            taught=taught,
            quiet=ticks.quiet,
            truth=truth,
        )
        key, update_key = jax.random.split(learner.key)
        model, opt_state, rate, scale, states, figures = ppo.update(
            learner.model,
            learner.opt_state,
            learner.rate,
            learner.scale,
            rollout,
            update_key,
            c,
            self.mirror,
            level,
            self._spread,
        )
        figures |= self._ended(trajectory, sums)
        given = everywhere({name: jnp.mean(value) for name, value in terms.items()}, self._spread)
        figures |= {f"reward/{name}": value / period for name, value in given.items()}
        critic_state, mirror_state = states
        mean = ppo.averaged(learner.mean, model, opt_state, c) if c.average else ()
        kept = (learner.carry, critic_state, rewards, returns, mirror_state, teacher_state, mean, moved)
        return Learner(model, opt_state, rate, scale, key, *kept), figures

    def _ended(self, trajectory: Trajectory, sums: Any) -> dict[str, Any]:
        """Sums over the episodes that ended, for the averages of Progress."""
        done = trajectory.done.astype(jnp.float32)
        period = self.env.scene.control_period_s
        share = jnp.minimum(1.0, (trajectory.time_s + period) / self.env.scene.episode_length_s)
        home = self.env.scene.built.home_qpos[self.env.scene.base_qpos : self.env.scene.base_qpos + 2]
        away = jnp.zeros_like(done)
        if self.env.scene.floating:
            flat = trajectory.physics.base_position[..., :2] - jnp.asarray(home, jnp.float32)
            away = jnp.sqrt(jnp.sum(flat**2, axis=-1))
        # a clock that started late counts for nothing
        length = jnp.where(trajectory.timeout, 1.0, share)
        kinds = {"length_share": length, "survival": trajectory.timeout, "episode_return": sums, "distance_m": away}
        sums = {"ended": jnp.sum(done)} | {f"ended/{k}": jnp.sum(done * v) for k, v in kinds.items()}
        return total(sums, self._spread)

    def iterate(
        self, learner: Learner, batch: EnvBatch, progress: Progress
    ) -> tuple[Learner, EnvBatch, Progress, dict[str, float]]:
        """One rollout and its update."""
        level = jnp.asarray(progress.level, jnp.float32)
        whole = self._whole_on_all if self._on_devices else self._whole
        run = whole if isinstance(self.env.engine, MjxEngine) else self._iterate_mujoco
        learner, batch, figures = run(learner, batch, level)
        told = {k: float(v) for k, v in jax.device_get(figures).items()}
        if not np.isfinite(told["loss"]):
            raise TrainingError(
                f"update {progress.updates + 1}: the loss is {told['loss']}; expected a finite number: "
                "lower ppo.learning_rate, or look at the last rewards in metrics.jsonl"
            )
        progress = self._progress(progress, told)
        return learner, batch, progress, {k: v for k, v in told.items() if not k.startswith("ended")}

    def _iterate_mujoco(self, learner: Learner, batch: EnvBatch, level: Any) -> tuple[Learner, EnvBatch, Any]:
        model, env, params, physics = learner.model, batch.env, batch.params, batch.physics
        carry, key = learner.carry, learner.key
        actor_state = self.policy(model).split(carry)[0]
        ticks, states, ends = [], [], []
        for _ in range(self.config.ppo.rollout_steps):
            env, drive, carry, key, kept = self._tick(model, physics, params, env, carry, key, level)
            physics = self.env.engine.step(physics, drive, params)
            states.append(physics.public())
            env, ended = self._settle(states[-1], params, env, level)
            physics, params, env = self.env.renew_ended(physics, params, env, ended.done, level)
            ticks.append(kept)
            ends.append(ended)
        *_, last = self._tick(model, physics, params, env, carry, key, level)

        def stacked(*rows: Any) -> np.ndarray:
            return np.stack([np.asarray(row) for row in rows])

        learner = learner._replace(carry=carry, key=key)
        whole = (jax.tree.map(stacked, *rows) for rows in (ticks, states, ends))
        ticks, states, ends = whole
        rows = (learner, ticks, last, states, ends, actor_state, level)
        learner, figures = self._learn_spread(rows) if self._spread else self._learn(*rows)
        return learner, EnvBatch(physics, params, env, learner.rewards), figures

    def _learn_spread(self, rows: tuple) -> tuple[Learner, Any]:
        """As `learn`, of what this process collected and the others did."""
        learner, figures = self._learn_on_all(*self.world.shared(rows, _LEARNS))
        return self.world.own(learner), figures

    def _iterate_mjx(self, learner: Learner, batch: EnvBatch, level: Any) -> tuple[Learner, EnvBatch, Any]:
        model, engine = learner.model, self.env.engine
        actor_state = self.policy(model).split(learner.carry)[0]

        def step(loop: Any, _: Any) -> tuple[Any, Any]:
            physics, params, env, carry, key = loop
            env, drive, carry, key, kept = self.tick(model, physics, params, env, carry, key, level)
            physics = engine.step(physics, drive, params)
            state = physics.public()
            env, ended = self.env.settle(state, params, env, level)
            physics, params, env = self.env.renewed(physics, params, env, ended.done, level)
            return (physics, params, env, carry, key), (kept, state, ended)

        start = (batch.physics, batch.params, batch.env, learner.carry, learner.key)
        loop, rows = jax.lax.scan(step, start, None, length=self.config.ppo.rollout_steps)
        physics, params, env, carry, key = loop
        *_, last = self.tick(model, physics, params, env, carry, key, level)
        learner = learner._replace(carry=carry, key=key)
        ticks, states, ends = rows
        learner, figures = self.learn(learner, ticks, last, states, ends, actor_state, level)
        return learner, EnvBatch(physics, params, env, learner.rewards), figures

    def _progress(self, old: Progress, figures: dict[str, float]) -> Progress:
        # about the last 2 E episodes
        count = figures["ended"]
        weight = 1.0 - (1.0 - 0.5 / self.config.ppo.envs) ** count
        told = old.told + weight * (1.0 - old.told)
        averages = {}
        for name in ("length_share", "survival", "episode_return", "distance_m"):
            mean = figures[f"ended/{name}"] / max(count, 1.0)
            averages[name] = getattr(old, name) + weight / max(told, 1e-9) * (mean - getattr(old, name))
        c = self.config.ppo
        steps = old.steps + c.envs * c.rollout_steps
        level = old.level
        if told >= _ENOUGH:
            level = self.config.curriculum.next_level(level, Success(**averages, steps=steps))
        return Progress(updates=old.updates + 1, steps=steps, level=level, told=told, **averages)

    def meta(self, learner: Learner, progress: Progress) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "config": self.config.to_dict(),
            "robot": self.robot.to_json(),
            "robot_digest": self.robot.digest,
            "critic": learner.model.critic.net.inputs,
            "progress": progress._asdict(),
            "versions": checkpoint.versions(),
            **({} if self.started_from is None else {"started_from": self.started_from}),
            **({"sees": self._sizes} if self.config.policy.sees else {}),
            **({} if self.teacher is None else {"taught_by": self.teacher.origin}),
        }

    def save(self, path: Path, learner: Learner, batch: EnvBatch, progress: Progress) -> None:
        """Write all that `restore` needs: of all processes, by the first of them."""
        if self._on_devices:
            learner, batch = self.world.own((learner, batch))
        arrays = checkpoint.named_leaves(learner._replace(model=None), "learner")
        arrays |= checkpoint.named_leaves((batch.params, batch.env), "world")
        arrays |= {f"physics.{k}": v for k, v in self.env.engine.snapshot(batch.physics).items()}
        arrays |= self.world.gathered({k: v for k, v in arrays.items() if k.startswith(_CUT_NAMES)})
        if self.world.first:
            checkpoint.write(path, self.meta(learner, progress), arrays | checkpoint.model_arrays(learner.model))
        self.world.wait()  # it is there for all

    def save_model(self, path: Path, learner: Learner, progress: Progress) -> None:
        """Write the model, with the mean of the actor's weights where there is one, and the scale of its values."""
        if not self.world.first:
            return
        if self._on_devices:
            learner = self.world.own(learner)
        arrays = checkpoint.model_arrays(learner.steady) | checkpoint.named_leaves(learner.scale, "learner.scale")
        checkpoint.write(path, self.meta(learner, progress), arrays)

    def restore(self, path: Path) -> tuple[Learner, EnvBatch, Progress]:
        """The run that `save` wrote, to the bit on the same machine.

        Raises:
            CheckpointError: the file is damaged or does not fit the configuration or the robot.
        """
        meta, arrays = checkpoint.read(path)
        checkpoint.check_finite(path, arrays)
        if meta.get("robot_digest") != self.robot.digest:
            raise CheckpointError(f"{path}: robot {self.robot.name} has changed since; start a new run")
        if self.teacher is not None and meta.get("taught_by") != self.teacher.origin:
            raise CheckpointError(f"{path}: its teacher was another than {self.config.ppo.teacher}; name that one")
        learner, batch, _ = self._fresh()
        rows = self.world.rows(self.config.ppo.envs)
        arrays |= {k: v[rows] for k, v in arrays.items() if k.startswith(_CUT_NAMES)}
        model = checkpoint.fill(learner.model, "model", arrays)
        learner = checkpoint.fill(learner._replace(model=None), "learner", arrays)._replace(model=model)
        params, env = checkpoint.fill((batch.params, batch.env), "world", arrays)
        saved = {k.removeprefix("physics."): v for k, v in arrays.items() if k.startswith("physics.")}
        physics = self.env.engine.restore(saved, params)
        self.started_from = meta.get("started_from")
        batch = EnvBatch(physics, params, env, learner.rewards)
        return *self._placed(learner, batch), Progress(**meta["progress"])
