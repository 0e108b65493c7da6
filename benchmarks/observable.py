"""How well a robot's inputs tell its velocity: what no policy can follow better, as far as this network can tell.

    python benchmarks/observable.py robots/kbot/policies/walk.ckpt --levels 0.25 0.5 1

The policy walks the course of the suite, without pushes. An LSTM then learns to tell the mean velocity of the last
0.8 s from all that the policy has seen and done. Its error in episodes that it has not learned from stands beside the
error of walking, both over the ticks from 2.8 s after a command changed. A command is known, so what the inputs do not
tell of the velocity is part of the error of walking. Half an hour of one core for three levels.
"""

from __future__ import annotations

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from ksim.curriculum import at_level
from ksim.environment import make_environment
from ksim.evaluate import BatchPolicy, load_policy
from ksim.learning.nets import RecurrentNet
from ksim.suite import conditions
from ksim.suite.figures import MEAN_S, SETTLED_S, since_change
from ksim.suite.walked import walk

CHUNK = 50  # ticks of a gradient


class Watched:
    """A policy, and what it saw and did."""

    def __init__(self, policy: BatchPolicy):
        self.policy, self.rows = policy, []

    def init(self, envs: int) -> Any:
        return self.policy.init(envs)

    def step(self, inputs: dict[str, Any], carry: Any) -> tuple[Any, Any]:
        targets, carry = self.policy.step(inputs, carry)
        self.rows.append(np.concatenate([*(np.asarray(inputs[k]) for k in sorted(inputs)), targets], axis=1))
        return targets, carry


def walked(path: str, level: float, episodes: int, seed: int) -> tuple[np.ndarray, ...]:
    """(seen (T, N, k), mean velocity (T, N, 3), command (T, N, 3), which ticks count (T, N))."""
    config, policy = load_policy(path)
    task = conditions.course(at_level(config, level), pushes=False)
    watched = Watched(policy)
    w, _ = walk(task, watched, make_environment(task, episodes, "mujoco"), seed=seed)
    now = np.concatenate([w.velocity, w.yaw_rate[..., None]], axis=-1)
    span = round(MEAN_S / w.dt_s)
    sums = np.concatenate([np.zeros((span, *now.shape[1:])), np.cumsum(now, axis=0, dtype=np.float64)])
    mean = ((sums[span:] - sums[:-span]) / span).astype(np.float32)
    counts = w.alive & (since_change(w) >= round((SETTLED_S + MEAN_S) / w.dt_s))
    return np.stack(watched.rows), mean, w.command, counts


def learned(seen: np.ndarray, mean: np.ndarray, counts: np.ndarray, rounds: int) -> RecurrentNet:
    """The network that tells `mean` from `seen`."""
    net = RecurrentNet(seen.shape[-1], 3, 128, 1, 128, 1.0, key=jax.random.key(0))
    steps = rounds * (len(seen) // CHUNK)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, steps)))
    memory = adam.init(eqx.filter(net, eqx.is_inexact_array))

    @eqx.filter_jit
    def one(net: RecurrentNet, memory: Any, state: Any, x: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        def error(net: RecurrentNet) -> tuple[Any, Any]:
            told, after = net.unroll(x, state, jnp.zeros(x.shape[:2], bool))
            return jnp.sum(weight[..., None] * (told - y) ** 2) / jnp.maximum(jnp.sum(weight), 1.0), after

        (_, after), gradient = eqx.filter_value_and_grad(error, has_aux=True)(net)
        change, memory = adam.update(gradient, memory)
        return eqx.apply_updates(net, change), memory, after

    for _ in range(rounds):
        state = jnp.zeros((seen.shape[1], net.state_size))
        for t in range(0, len(seen) - CHUNK + 1, CHUNK):
            part = slice(t, t + CHUNK)
            net, memory, state = one(net, memory, state, seen[part], mean[part], counts[part].astype(np.float32))
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a checkpoint or a bundle that walks")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="of the curriculum")
    parser.add_argument("--episodes", type=int, default=512, help="of 20 s, to learn from")
    parser.add_argument("--rounds", type=int, default=40, help="passes over them")
    args = parser.parse_args()
    table = Table("level", "error of walking", "", "what the inputs do not tell", "", title=args.policy)
    table.add_row("", "m/s", "rad/s", "m/s", "rad/s")
    for level in args.levels:
        seen, mean, command, counts = walked(args.policy, level, args.episodes, seed=1)
        middle, spread = seen.mean(axis=(0, 1)), seen.std(axis=(0, 1)) + 1e-3
        net = learned((seen - middle) / spread, mean, counts, args.rounds)
        seen, mean, command, counts = walked(args.policy, level, max(args.episodes // 4, 1), seed=2)
        told, _ = net.unroll(
            jnp.asarray((seen - middle) / spread), jnp.zeros((seen.shape[1], net.state_size)), jnp.zeros(counts.shape)
        )
        row = []
        for apart in (mean - command, mean - np.asarray(told)):
            square = np.mean(apart[counts] ** 2, axis=0)
            row += [f"{np.sqrt(square[0] + square[1]):.3f}", f"{np.sqrt(square[2]):.3f}"]
        table.add_row(f"{level:g}", *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
