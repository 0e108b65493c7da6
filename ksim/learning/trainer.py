"""One training run: collect a rollout, update, keep all that a checkpoint needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ksim.config import Config
from ksim.curriculum import LevelCurriculum
from ksim.environment import EnvBatch, Environment, Observed
from ksim.errors import CheckpointError, TrainingError
from ksim.learning import checkpoint, ppo
from ksim.learning.policy import Model, Policy, make_model, make_policy
from ksim.tasks import make_environment


class Learner(NamedTuple):
    """All that training carries from one update to the next, but the physics and the environments."""

    model: Model
    opt_state: Any
    rate: Any
    scale: ppo.ValueScale
    key: Any
    carry: Any
    critic_state: Any
    resets: Any


class Progress(NamedTuple):
    """Where a run is; plain numbers that a checkpoint keeps."""

    updates: int = 0
    steps: int = 0
    level: float = 0.0
    length_share: float = 0.0
    survival: float = 0.0
    episode_return: float = 0.0


class Acted(NamedTuple):
    """What the actor gives for one step."""

    observation: Any
    action: Any
    target: Any
    log_prob: Any
    carry: Any
    key: Any


def act(policy: Policy, inputs: dict[str, Any], carry: Any, resets: Any, first_carry: Any, key: Any) -> Acted:
    """Sampled actions of all environments; where `resets`, from the first carry."""
    key, noise_key = jax.random.split(key)
    carry = jnp.where(resets[:, None], first_carry, carry)
    state, last_action, last_target = policy.split(carry)
    observation = jax.vmap(policy.encode)(inputs, last_action)
    mean, state = jax.vmap(policy.actor)(observation, state)
    log_std = policy.actor.log_std
    action = mean + jnp.exp(log_std) * jax.random.normal(noise_key, mean.shape)
    target, carry = policy.act(inputs, action, state, last_target)
    return Acted(observation, action, target, ppo.log_prob(action, mean, log_std), carry, key)


class Trainer:
    """One training run over one batch of environments."""

    def __init__(self, config: Config, environment: Environment | None = None):
        self.config = config
        self.started_from: dict[str, Any] | None = None
        self.env = environment or make_environment(config, config.ppo.envs)
        self.robot = self.env.engine.built.spec
        self.curriculum = LevelCurriculum(enabled=config.pushes.curriculum)
        self.privileged = 0
        self._act = eqx.filter_jit(act)
        self._update = eqx.filter_jit(ppo.update)
        self._lengths = np.zeros(config.ppo.envs)
        self._returns = np.zeros(config.ppo.envs)

    def policy(self, model: Model) -> Policy:
        """The policy function of a model."""
        return make_policy(model.actor, self.robot, self.config)

    def start(self) -> tuple[Learner, EnvBatch, Observed, Progress]:
        """A fresh run from the configuration's seed."""
        config = self.config
        key, model_key, env_key = jax.random.split(jax.random.key(config.seed), 3)
        level = self.curriculum.start()
        batch, seen = self.env.reset(env_key, stagger=True, level=level)
        self.privileged = int(seen.privileged.shape[-1])
        # compiled as one: op by op its random draws take longer than all of them
        fresh = eqx.filter_jit(make_model)
        model = fresh(self.robot, len(config.commands), self.privileged, config.policy, key=model_key)
        carry = jnp.tile(self.policy(model).init_carry(), (config.ppo.envs, 1))
        learner = Learner(
            model=model,
            opt_state=ppo.optimizer(config.ppo).init(eqx.filter(model, ppo.trainable(model))),
            rate=jnp.asarray(config.ppo.learning_rate, jnp.float32),
            scale=ppo.ValueScale.start(),
            key=key,
            carry=carry,
            critic_state=jnp.zeros((config.ppo.envs, model.critic.net.state_size)),
            resets=jnp.ones(config.ppo.envs, bool),
        )
        return learner, batch, seen, Progress(level=level)

    def start_from(self, found: checkpoint.Start) -> tuple[Learner, EnvBatch, Observed, Progress]:
        """A fresh run with the networks of a checkpoint, at the curriculum's level that it had reached.

        Raises:
            CheckpointError: its networks do not fit the configuration or the robot.
        """
        found.check(self.robot, self.config)
        learner, batch, seen, progress = self.start()
        model, scale = found.networks(learner.model, learner.scale)
        self.started_from = found.origin
        level = found.level if self.config.pushes.curriculum else progress.level
        return learner._replace(model=model, scale=scale), batch, seen, progress._replace(level=level)

    def iterate(
        self, learner: Learner, batch: EnvBatch, seen: Observed, progress: Progress
    ) -> tuple[Learner, EnvBatch, Observed, Progress, dict[str, float]]:
        """One rollout and its update."""
        c = self.config.ppo
        policy = self.policy(learner.model)
        first = policy.init_carry()
        carry, key, resets = learner.carry, learner.key, learner.resets
        actor_state, _, _ = policy.split(carry)
        rows: list[tuple] = []
        ended: list[tuple[float, float, bool]] = []
        terms: dict[str, float] = {}
        for _ in range(c.rollout_steps):
            acted = self._act(policy, seen.inputs, carry, resets, first, key)
            privileged = seen.privileged
            batch, seen, outcome = self.env.step(batch, acted.action, acted.target, progress.level)
            rows.append((acted, privileged, outcome.reward, outcome.done, outcome.timeout, resets))
            carry, key, resets = acted.carry, acted.key, outcome.done
            self._lengths += 1
            self._returns += np.asarray(outcome.reward)
            done, timeout = np.asarray(outcome.done), np.asarray(outcome.timeout)
            for i in np.flatnonzero(done):
                ended.append((float(self._lengths[i]), float(self._returns[i]), bool(timeout[i])))
            self._lengths[done] = 0.0
            self._returns[done] = 0.0
            for name, value in outcome.terms.items():
                terms[name] = terms.get(name, 0.0) + float(value) / c.rollout_steps
        rollout = ppo.Rollout(
            observation=np.stack([r[0].observation for r in rows]),
            privileged=np.stack([*(r[1] for r in rows), seen.privileged]),
            action=np.stack([r[0].action for r in rows]),
            log_prob=np.stack([r[0].log_prob for r in rows]),
            reward=np.stack([r[2] for r in rows]),
            done=np.stack([r[3] for r in rows]),
            timeout=np.stack([r[4] for r in rows]),
            resets=np.stack([*(r[5] for r in rows), resets]),
            actor_state=actor_state,
            critic_state=learner.critic_state,
        )
        key, update_key = jax.random.split(key)
        model, opt_state, rate, scale, critic_state, figures = self._update(
            learner.model, learner.opt_state, learner.rate, learner.scale, rollout, update_key, c
        )
        figures = {k: float(v) for k, v in figures.items()}
        if not np.isfinite(figures["loss"]):
            raise TrainingError(
                f"update {progress.updates + 1}: the loss is {figures['loss']}; expected a finite number: "
                "lower ppo.learning_rate, or look at the last rewards in metrics.jsonl"
            )
        learner = Learner(model, opt_state, rate, scale, key, carry, critic_state, resets)
        progress = self._progress(progress, ended)
        figures |= {f"reward/{k}": v / self.config.physics.control_period_s for k, v in terms.items()}
        return learner, batch, seen, progress, figures

    def _progress(self, old: Progress, ended: list[tuple[float, float, bool]]) -> Progress:
        full = self.env.task.episode_steps
        share, survival, returned = old.length_share, old.survival, old.episode_return
        for length, total, timeout in ended:
            # about the last 2 E episodes; a clock that started late counts for nothing
            weight = 0.5 / self.env.envs
            share += weight * (min(1.0, length / full if not timeout else 1.0) - share)
            survival += weight * (float(timeout) - survival)
            returned += weight * (total - returned)
        level = self.curriculum(old.level, survival)
        c = self.config.ppo
        return Progress(old.updates + 1, old.steps + c.envs * c.rollout_steps, level, share, survival, returned)

    def meta(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "config": self.config.to_dict(),
            "robot": self.robot.to_json(),
            "robot_digest": self.robot.digest,
            "privileged": self.privileged,
            "progress": progress._asdict(),
            "versions": checkpoint.versions(),
            **({} if self.started_from is None else {"started_from": self.started_from}),
        }

    def save(self, path: Path, learner: Learner, batch: EnvBatch, seen: Observed, progress: Progress) -> None:
        """Write all that `restore` needs."""
        arrays = checkpoint.model_arrays(learner.model)
        arrays |= checkpoint.named_leaves(learner._replace(model=None), "learner")
        arrays |= checkpoint.named_leaves((batch.params, batch.env, seen), "world")
        arrays |= {f"physics.{k}": v for k, v in self.env.engine.snapshot(batch.physics).items()}
        arrays |= {"lengths": self._lengths, "returns": self._returns}
        checkpoint.write(path, self.meta(progress), arrays)

    def save_model(self, path: Path, learner: Learner, progress: Progress) -> None:
        """Write the model, and the scale of its critic's values."""
        arrays = checkpoint.model_arrays(learner.model) | checkpoint.named_leaves(learner.scale, "learner.scale")
        checkpoint.write(path, self.meta(progress), arrays)

    def restore(self, path: Path) -> tuple[Learner, EnvBatch, Observed, Progress]:
        """The run that `save` wrote, to the bit on the same machine.

        Raises:
            CheckpointError: the file is damaged or does not fit the configuration or the robot.
        """
        meta, arrays = checkpoint.read(path)
        if meta.get("robot_digest") != self.robot.digest:
            raise CheckpointError(f"{path}: robot {self.robot.name} has changed since; start a new run")
        learner, batch, seen, _ = self.start()
        model = checkpoint.fill(learner.model, "model", arrays)
        learner = checkpoint.fill(learner._replace(model=None), "learner", arrays)._replace(model=model)
        params, env, seen = checkpoint.fill((batch.params, batch.env, seen), "world", arrays)
        saved = {k.removeprefix("physics."): v for k, v in arrays.items() if k.startswith("physics.")}
        physics = self.env.engine.restore(saved, params)
        self._lengths, self._returns = arrays["lengths"].copy(), arrays["returns"].copy()
        self.started_from = meta.get("started_from")
        return learner, EnvBatch(physics, params, env), seen, Progress(**meta["progress"])
