"""Which robots a walk errs on, and which pushes it falls from: what was drawn, beside what it did.

    python benchmarks/which_robots.py robots/kbot/policies/walk.kinfer [--episodes 384]

The policy walks the course of the suite at the widest ranges. Without pushes, the mean error under each command is
compared with that under the next command of the same robot, and with all that was drawn for the robot: a correlation
near 1 says that this is what makes it err. What is left is an error that comes and goes. With pushes, falls are
counted by the momentum that a push gives. Four minutes of two cores.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ksim.curriculum import at_level
from ksim.environment import make_environment
from ksim.evaluate import load_policy
from ksim.suite import conditions
from ksim.suite.figures import MEAN_S, SETTLED_S, pushes, since_change
from ksim.suite.walked import Walked, walk

WORDS = ("forward [m/s]", "left [m/s]", "yaw rate [rad/s]")


def walked(path: str, episodes: int, part: str, level: float) -> tuple[Walked, dict[str, np.ndarray]]:
    """One part of the suite's course, and each number that was drawn, by name, (episodes,)."""
    config, policy = load_policy(path)
    task = conditions.course(at_level(config, level))
    environment, kept = make_environment(task, episodes, "mujoco"), {}
    of_part = conditions.parts(environment, [part] * episodes)

    def alter(env: Any, params: Any) -> tuple[Any, Any]:
        env, params = of_part(env, params)
        channels = {name: carry["sampling"] for name, carry in env.carries["channels"].items()}
        told = {"": params.drawn, "channel ": channels, "event ": env.carries["events"]}
        for kind, tree in told.items():
            for at, value in jax.tree_util.tree_leaves_with_path(tree):
                name = kind + ".".join(str(getattr(k, "key", getattr(k, "name", k))) for k in at)
                for i, column in enumerate(np.asarray(value, float).reshape(episodes, -1).T):
                    if column.std() > 1e-9:
                        kept[f"{name}[{i}]"] = column
        return env, params

    return walk(task, policy, environment, seed=1000, alter=alter)[0], kept


def lasting(w: Walked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(episode, mean error from SETTLED_S on, variance about it) of each command that asks for motion and was survived.

    Shapes (n,), (n, 3), (n, 3). The variance is of means over MEAN_S.
    """
    error = np.concatenate([w.velocity, w.yaw_rate[..., None]], axis=-1) - w.command
    since, settled, length = since_change(w), round(SETTLED_S / w.dt_s), round(MEAN_S / w.dt_s)
    who, rows, varies = [], [], []
    for episode in range(w.episodes):
        begins = [*np.flatnonzero(since[:, episode] == 0), len(since)]
        for begin, end in itertools.pairwise(begins):
            inside = slice(begin + settled, end)
            if end - begin > 2 * settled and w.alive[inside, episode].all() and w.moving[begin + settled, episode]:
                who.append(episode)
                of_one = error[inside, episode]
                rows.append(of_one.mean(axis=0))
                windows = of_one[: len(of_one) // length * length].reshape(-1, length, 3).mean(axis=1)
                varies.append(windows.var(axis=0, ddof=1))
    return np.asarray(who), np.asarray(rows), np.asarray(varies)


def ranked(drawn: dict[str, np.ndarray], value: np.ndarray, who: np.ndarray) -> list[tuple[float, str]]:
    """Correlations of a value with what was drawn, the strongest first."""
    found = [(float(np.corrcoef(column[who], value)[0, 1]), name) for name, column in drawn.items()]
    return sorted(found, key=lambda pair: -abs(pair[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a checkpoint or a bundle that walks")
    parser.add_argument("--episodes", type=int, default=384, help="of 20 s, of each part (%(default)s)")
    parser.add_argument("--level", type=float, default=1.0, help="of the curriculum (%(default)s)")
    args = parser.parse_args()
    console = Console(width=120)
    w, drawn = walked(args.policy, args.episodes, "calm", args.level)
    who, errors, varies = lasting(w)
    again = np.flatnonzero(who[1:] == who[:-1])
    heads = ("error", "that lasts, RMS", "that comes and goes", "the lasting one and the next command's")
    table = Table(*heads, "with what was drawn", title=args.policy)
    for i, word in enumerate(WORDS):
        size, same = np.sqrt(np.mean(errors[:, i] ** 2)), np.corrcoef(errors[again, i], errors[again + 1, i])[0, 1]
        most = ", ".join(f"{name} {share:+.2f}" for share, name in ranked(drawn, errors[:, i], who)[:4])
        table.add_row(word, f"{size:.3f}", f"{np.sqrt(varies[:, i].mean()):.3f}", f"{same:.2f}", most)
    console.print(table)
    w, drawn = walked(args.policy, args.episodes, "pushes_200", args.level)
    fell = ", ".join(f"{n} {c:+.2f}" for c, n in ranked(drawn, ~w.survived, np.arange(w.episodes))[:4])
    console.print(f"survival under pushes to 200 N {w.survived.mean():.0%}; falls with what was drawn: {fell}")
    told = pushes(w)
    momentum, gone = told["momentum_n_s"], ~told["survived"]
    table = Table("momentum of a push [N s]", "pushes", "fell", f"speed that it gives {w.scene.mass_kg:.0f} kg")
    for low in range(0, 100, 10):
        inside = (momentum >= low) & (momentum < low + 10)
        if inside.any():
            speed = f"{low / w.scene.mass_kg:.1f} to {(low + 10) / w.scene.mass_kg:.1f} m/s"
            table.add_row(f"{low} to {low + 10}", f"{inside.sum()}", f"{gone[inside].mean():.0%}", speed)
    console.print(table)


if __name__ == "__main__":
    main()
