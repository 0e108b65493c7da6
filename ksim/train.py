"""Training: `ksim train --config configs/kbot_stand.yaml`, also `python -m ksim.train`."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from deploy.cli import Interrupted
from ksim import checkpoint, ppo
from ksim.config import Config
from ksim.curriculum import LevelCurriculum
from ksim.environment import EnvBatch, Environment, Observed
from ksim.errors import CheckpointError, TrainingError
from ksim.folder import locked, remove_parts
from ksim.metrics import Metrics
from ksim.policy import Model, Policy, make_model, make_policy
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


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended; `signum` is the signal that ended it, else 0."""

    checkpoint: Path
    updates: int
    steps: int
    seconds: float
    survival: float
    stopped: str
    signum: int = 0


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


class _Interrupt:
    """The first Ctrl-C, SIGTERM or SIGHUP ends training after the running update, with a checkpoint; a second at once.

    Attributes:
        asked: number of the signal that asked to stop, 0 before one did.
        updating: whether there is an update to end; without one the first signal stops at once.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.updating = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked or not self.updating:
            raise Interrupted(number)
        self.asked = number
        with contextlib.suppress(OSError):  # after SIGHUP there is no terminal
            print("stopping after this update; once more to stop at once", file=sys.stderr, flush=True)

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # there is no SIGHUP on Windows
                nohup = name == "SIGHUP" and number and signal.getsignal(number) is signal.SIG_IGN
                if number is not None and not nohup:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _check_folder(out: Path, resume: bool) -> None:
    if (out / "last.ckpt").exists() and not resume:
        raise TrainingError(f"{out}: holds a run already; use --resume to go on with it, or another --out")
    if resume and not (out / "last.ckpt").exists():
        raise TrainingError(f"{out}: no last.ckpt to resume from; leave out --resume to start there")


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    report: Callable[[Progress, dict[str, float], float], None] | None = None,
) -> TrainResult:
    """Train into a folder: last.ckpt (resumable), model.ckpt, config.yaml, metrics.

    Args:
        config: the run.
        out: its folder.
        resume: go on from `out`/last.ckpt.
        init: a checkpoint whose networks the run starts with; with `resume` it is not read.
        report: called after each update with progress, figures and seconds since the run started, resumes included.

    Raises:
        TrainingError: the folder holds a run and `resume` is false, or the loss is not finite.
        CheckpointError: `init` or the checkpoint to resume from is damaged or does not fit.
        KsimError: another training writes into the folder, or it is a file.
        Interrupted: a signal came before the first update, or a second one.
    """
    # asked before the folder is made, and again when nobody else can write there
    _check_folder(out, resume)
    start = None if resume or init is None else checkpoint.Start.read(init)
    with locked(out, "training"), _Interrupt() as interrupt:
        _check_folder(out, resume)
        return _train(config, out, resume, start, report, interrupt)


def _train(
    config: Config,
    out: Path,
    resume: bool,
    start: checkpoint.Start | None,
    report: Callable[[Progress, dict[str, float], float], None] | None,
    interrupt: _Interrupt,
) -> TrainResult:
    last, final = out / "last.ckpt", out / "model.ckpt"
    began = time.monotonic()
    trainer = Trainer(config)
    if resume:
        remove_parts(out, "last.ckpt", "model.ckpt", "metrics.jsonl", "config.yaml")
        try:
            learner, batch, seen, progress = trainer.restore(last)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise CheckpointError(f"{last}: does not fit its own description ({reason}); start a new run") from error
    elif start is not None:
        learner, batch, seen, progress = trainer.start_from(start)
    else:
        learner, batch, seen, progress = trainer.start()
    stopped, recent = "total_steps", deque(maxlen=20)
    with Metrics(out, config, since_step=progress.steps) as metrics:
        interrupt.updating = True
        while progress.steps < config.run.total_steps:
            tick = time.monotonic()
            learner, batch, seen, progress, figures = trainer.iterate(learner, batch, seen, progress)
            recent.append(time.monotonic() - tick)
            steps = config.ppo.envs * config.ppo.rollout_steps
            figures |= progress._asdict() | {"steps_per_s": steps * len(recent) / sum(recent)}
            seconds = metrics.seconds_before + time.monotonic() - began
            metrics.write(progress.steps, figures, seconds)
            if report is not None:
                with contextlib.suppress(OSError):  # the terminal may be gone; the run is not
                    report(progress, figures, seconds)
            if progress.updates % config.run.save_every_updates == 0:
                trainer.save(last, learner, batch, seen, progress)
            if 0 < config.run.stop_at_survival <= progress.survival and progress.level >= 1.0:
                stopped = "survival"
                break
            if interrupt.asked:
                stopped = "interrupted"
                break
            if 0 < config.run.max_minutes * 60.0 <= seconds:
                stopped = "max_minutes"
                break
    trainer.save(last, learner, batch, seen, progress)
    trainer.save_model(final, learner, progress)
    return TrainResult(
        checkpoint=final,
        updates=progress.updates,
        steps=progress.steps,
        seconds=metrics.seconds_before + time.monotonic() - began,
        survival=progress.survival,
        stopped=stopped,
        signum=interrupt.asked if stopped == "interrupted" else 0,
    )


if __name__ == "__main__":
    from ksim.cli import run_verb
    from ksim.train_command import main

    sys.exit(run_verb("train", main, sys.argv[1:]))
