"""The command `ksim eval`. JAX is imported when the arguments have been read: the help needs none."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from ksim.options import SEED, KsimOptions
from toolkit.cli import Option, importing, options
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(KsimOptions):
    """The options of `ksim eval`."""

    policy: Annotated[
        str, Option("a .ckpt, a .kinfer, or the word 'home': the PD hold without a policy", positional=True)
    ]
    episodes: Annotated[int, Option("number of episodes"), Bound(1, 100_000, "episodes")] = 100
    seed: Annotated[int, Option("seed of the episodes"), SEED] = 1000
    engine: Annotated[Literal["auto", "mujoco", "mjx"], Option("what steps the physics")] = "auto"
    config: Annotated[
        str | None, Option("task to evaluate in (default: the checkpoint's; for a bundle its task's)")
    ] = None
    set: Annotated[tuple[str, ...], Option("override a key of the task, e.g. robot=FOLDER", metavar="KEY=VALUE")] = ()
    json: Annotated[bool, Option("print one JSON object on stdout")] = False


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        EvaluateOptions,
        argv,
        "ksim eval",
        "Survival and return of a checkpoint or a bundle over N episodes with pushes and randomisation.",
        "ksim eval robots/kbot/policies/kbot_stand.kinfer --episodes 200 --seed 1000",
    )
    with importing("eval"):
        from ksim.engine import choose_engine
        from ksim.environment import make_scene
        from ksim.evaluate import evaluate, load_policy
        from robots.understood import understood

    config, policy = load_policy(args.policy, args.config, args.set)
    built = make_scene(config).built
    robot = built.spec.name
    print(understood(built), file=sys.stderr, flush=True)
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
