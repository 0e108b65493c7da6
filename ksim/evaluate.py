"""`ksim eval`: survival and return of a checkpoint, a bundle, or the bare PD hold of the home pose.

Every policy runs in the same environments from the same seed, with all randomisation, latency, noise
and pushes on, for one full episode each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ksim.checkpoint import load_trained
from ksim.cli import parser
from ksim.config import Config, apply_overrides, load_config
from ksim.environment import Environment, choose_engine
from ksim.errors import KsimError
from ksim.paths import shipped_config
from ksim.policy import Policy
from ksim.tasks import make_environment
from robots import Bundle, load_robot, read_bundle
from robots.spec import RobotSpec


class BatchPolicy(Protocol):
    """A policy over E environments."""

    def init(self, envs: int) -> Any:
        """The first carry of E environments."""
        ...

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        """(targets (E, n) [rad], next carry)."""
        ...


class JaxBatchPolicy:
    """The policy function, vmapped and compiled."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self._step = eqx.filter_jit(lambda policy, inputs, carry: jax.vmap(policy.step)(inputs, carry))

    def init(self, envs: int) -> Any:
        return jnp.tile(self._policy.init_carry(), (envs, 1))

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        return self._step(self._policy, inputs, carry)


class OnnxBatchPolicy:
    """A bundle in onnxruntime, one environment at a time, as the robot runs it."""

    def __init__(self, bundle: Bundle):
        from deploy.policy import OnnxPolicy

        self._policy = OnnxPolicy(bundle)

    def init(self, envs: int) -> Any:
        self._policy.reset()
        return np.tile(self._policy.carry, (envs, 1))

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        rows = {k: np.asarray(v, np.float32) for k, v in inputs.items()}
        targets, carries = [], []
        for i in range(len(carry)):
            self._policy.carry = carry[i]
            targets.append(self._policy.step({k: v[i] for k, v in rows.items()}))
            carries.append(self._policy.carry)
        return np.stack(targets), np.stack(carries)


class HoldHome:
    """The same PD controller holding the home pose, without a policy: the baseline."""

    def __init__(self, robot: RobotSpec):
        self._home = np.asarray(robot.column("home_rad"), np.float32)

    def init(self, envs: int) -> Any:
        return np.zeros((envs, 0), np.float32)

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        return np.tile(self._home, (len(carry), 1)), carry


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a policy did in N episodes.

    Attributes:
        episodes: N.
        seed: the seed.
        engine: mujoco or mjx.
        survived: whether each episode lasted to the end, (N,).
        returns: sum of rewards of each, (N,).
        lengths_s: how long each lasted [s], (N,).
        drift_m: horizontal distance of the base from its start, at the end of each, (N,).
        tracking_m_s: mean distance of the base's horizontal velocity, in its own heading, from the command vx, vy
            (0 where the task has no such command) over each, (N,).
        inputs: where recorded, the policy's inputs by name, (T, N, k).
        targets: where recorded, its targets [rad], (T, N, n).
        alive: where recorded, whether each episode was still running at each step, (T, N).
        qpos: where recorded, (T, N, nq).
        force_w: where recorded, the push during each step [N], (T, N, 3).
    """

    episodes: int
    seed: int
    engine: str
    survived: np.ndarray
    returns: np.ndarray
    lengths_s: np.ndarray
    drift_m: np.ndarray
    tracking_m_s: np.ndarray
    inputs: dict[str, np.ndarray] | None = None
    targets: np.ndarray | None = None
    alive: np.ndarray | None = None
    qpos: np.ndarray | None = None
    force_w: np.ndarray | None = None

    @property
    def survival(self) -> float:
        """Share of the episodes that lasted to the end."""
        return float(np.mean(self.survived))

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON."""
        n, p = self.episodes, self.survival
        # Wilson score interval, 95 %
        z = 1.959963984540054
        centre, width = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
        width *= float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
        return {
            "episodes": n,
            "seed": self.seed,
            "engine": self.engine,
            "survival": p,
            "survival_low95": centre - width if p > 0.0 else 0.0,
            "survival_high95": centre + width if p < 1.0 else 1.0,
            "return_mean": float(np.mean(self.returns)),
            "length_mean_s": float(np.mean(self.lengths_s)),
            "drift_mean_m": float(np.mean(self.drift_m)),
            "tracking_mean_m_s": float(np.mean(self.tracking_m_s)),
        }


def _off_command(qpos: np.ndarray, qvel: np.ndarray, command: np.ndarray, names: list[str]) -> np.ndarray:
    """Distance of each base's horizontal velocity, in its own heading, from the command, (N,) [m/s]."""
    w, x, y, z = qpos[:, 3:7].T
    yaw = np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
    ahead = np.cos(yaw) * qvel[:, 0] + np.sin(yaw) * qvel[:, 1]
    aside = np.cos(yaw) * qvel[:, 1] - np.sin(yaw) * qvel[:, 0]
    vx, vy = (command[:, names.index(name)] if name in names else 0.0 for name in ("vx", "vy"))
    return np.hypot(ahead - vx, aside - vy)


def evaluate(
    config: Config,
    policy: BatchPolicy,
    *,
    episodes: int,
    seed: int,
    engine: str = "mujoco",
    record: bool = False,
    environment: Environment | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a policy for one episode in each of `episodes` environments.

    Args:
        config: the task, with its randomisation.
        policy: what to run.
        episodes: number of environments.
        seed: of the environments; training uses other keys whatever the number.
        engine: mujoco or mjx.
        record: keep inputs and targets.
        environment: one to use again, with `episodes` environments.
        progress: called with (step, steps).
    """
    env = environment or make_environment(config, episodes, engine)
    if env.envs != episodes:
        raise KsimError(f"evaluation: got an environment of {env.envs}, expected {episodes}")
    batch, seen = env.reset(jax.random.fold_in(jax.random.key(seed), 0x65766131))
    carry, zeros = policy.init(episodes), np.zeros((episodes, env.task.actions), np.float32)
    alive = np.ones(episodes, bool)
    returns, lengths, drift, off = (np.zeros(episodes) for _ in range(4))
    names = [c.name for c in env.task.commands.specs]
    survived = np.zeros(episodes, bool)
    start = np.asarray(batch.physics.qpos)[:, :2]
    kept: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for step in range(env.task.episode_steps):
        inputs = {k: np.asarray(v) for k, v in seen.inputs.items()}
        targets, carry = policy.step(inputs, carry)
        before = np.asarray(batch.physics.qpos)
        off += alive * _off_command(before, np.asarray(batch.physics.qvel), np.asarray(batch.env.command), names)
        if record:
            force = np.asarray(batch.env.event.force_w)
            kept.append(
                (inputs, {"targets": np.asarray(targets), "alive": alive.copy(), "qpos": before, "force_w": force})
            )
        batch, seen, outcome = env.step(batch, zeros, jnp.asarray(targets, jnp.float32))
        done = np.asarray(outcome.done)
        returns += alive * np.asarray(outcome.reward)
        lengths += alive
        ended = alive & done
        drift[ended] = np.linalg.norm(before[:, :2] - start, axis=1)[ended]
        survived[ended] = np.asarray(outcome.timeout)[ended]
        alive &= ~done
        if progress is not None:
            progress(step + 1, env.task.episode_steps)
        if not alive.any() and not record:
            break
    inputs_kept = kept[0][0] if kept else {}
    return Evaluation(
        episodes=episodes,
        seed=seed,
        engine=engine,
        survived=survived,
        returns=returns,
        lengths_s=lengths * config.physics.control_period_s,
        drift_m=drift,
        tracking_m_s=off / np.maximum(lengths, 1.0),
        inputs={k: np.stack([row[0][k] for row in kept]) for k in inputs_kept} if record else None,
        **({k: np.stack([row[1][k] for row in kept]) for k in kept[0][1]} if kept else {}),
    )


def load_policy(name: str, config: str | None = None) -> tuple[Config, BatchPolicy]:
    """(task, policy) of a .ckpt, a .kinfer or the word `home`, the PD hold without a policy.

    Args:
        name: what to run.
        config: the task to run it in; by default the checkpoint's own, or for a bundle the shipped
            one of the task that it names.

    Raises:
        KsimError: there is no task for it.
    """
    if name == "home":
        task = load_config(config or shipped_config("kbot_stand.yaml"))
        return task, HoldHome(load_robot(task.robot))
    if Path(name).suffix == ".kinfer":
        bundle = read_bundle(name)
        if config is None and bundle.spec is None:
            raise KsimError(f"{name}: the bundle names no task; give a configuration with --config")
        task = load_config(config or shipped_config(f"{bundle.spec.task}.yaml"))  # type: ignore[union-attr]
        return task, OnnxBatchPolicy(bundle)
    trained = load_trained(name)
    return load_config(config) if config else trained.config, JaxBatchPolicy(trained.policy)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    p = parser(
        "ksim eval",
        "Survival and return of a checkpoint or a bundle over N episodes with pushes and randomisation.",
        "ksim eval robots/kbot/policies/kbot_stand.kinfer --episodes 200 --seed 1000",
    )
    p.add_argument("policy", help="a .ckpt, a .kinfer, or the word 'home': the PD hold without a policy")
    p.add_argument("--episodes", type=int, default=100, help="number of episodes (default 100)")
    p.add_argument("--seed", type=int, default=1000, help="seed of the episodes (default 1000)")
    p.add_argument("--engine", choices=("auto", "mujoco", "mjx"), default="auto")
    p.add_argument("--config", help="task to evaluate in (default: the checkpoint's; for a bundle its task's)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the task")
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = p.parse_args(argv)
    if args.episodes < 1:
        raise KsimError(f"--episodes: got {args.episodes}, expected 1 or more")
    config, policy = load_policy(args.policy, args.config)
    config = apply_overrides(config, args.set)
    result = evaluate(
        config,
        policy,
        episodes=args.episodes,
        seed=args.seed,
        engine=choose_engine(args.engine),
        progress=_progress if sys.stderr.isatty() else None,
    )
    figures = result.summary()
    if args.json:
        print(json.dumps({"policy": args.policy, **figures}))
    else:
        print(
            f"{args.policy}: survived {figures['survival']:.1%} of {args.episodes} episodes "
            f"(95 %: {figures['survival_low95']:.1%} to {figures['survival_high95']:.1%}), "
            f"mean length {figures['length_mean_s']:.2f} s, return {figures['return_mean']:.2f}, "
            f"drift {figures['drift_mean_m']:.2f} m, engine {result.engine}, seed {args.seed}"
        )
    return 0


def _progress(step: int, steps: int) -> None:
    if step % 10 == 0 or step == steps:
        print(f"\reval {step}/{steps} steps", end="\n" if step == steps else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from ksim.cli import run_verb

    sys.exit(run_verb("eval", main, sys.argv[1:]))
