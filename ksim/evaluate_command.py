"""The command `ksim eval`. JAX is imported when the arguments have been read: the help needs none."""

from __future__ import annotations

import json
import sys

from ksim.bounds import BOUNDS, Bound, check_number
from ksim.cli import parser
from toolkit.cli import importing

EPISODES = Bound(1, 100_000, "episodes")


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
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the task, e.g. robot=FOLDER"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = p.parse_args(argv)
    check_number("--episodes", args.episodes, EPISODES)
    check_number("--seed", args.seed, BOUNDS["seed"])
    with importing("eval"):
        from ksim.engine import choose_engine
        from ksim.evaluate import evaluate, load_policy
        from robots.load import load_robot

    config, policy = load_policy(args.policy, args.config, args.set)
    robot = load_robot(config.robot).name
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
        print(json.dumps({"policy": args.policy, "robot": robot, **figures}))
    else:
        print(
            f"{args.policy} on {robot}: survived {figures['survival']:.1%} of {args.episodes} episodes "
            f"(95 %: {figures['survival_low95']:.1%} to {figures['survival_high95']:.1%}), "
            f"mean length {figures['length_mean_s']:.2f} s, return {figures['return_mean']:.2f}, "
            f"drift {figures['drift_mean_m']:.2f} m, engine {result.engine}, seed {args.seed}"
        )
    return 0


def _progress(step: int, steps: int) -> None:
    if step % 10 == 0 or step == steps:
        print(f"\reval {step}/{steps} steps", end="\n" if step == steps else "", file=sys.stderr, flush=True)
