"""The command `ksim eval`. JAX is imported when the arguments have been read: the help needs none."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ksim.options import SEED, KsimOptions
from toolkit.cli import Option, importing, options
from toolkit.files import atomic_path, locked
from toolkit.settings import Bound

if TYPE_CHECKING:
    from ksim.config import Config
    from ksim.evaluate import BatchPolicy


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(KsimOptions):
    """The options of `ksim eval`."""

    policy: Annotated[
        str, Option("a .ckpt, a .kinfer, or the word 'home': the PD hold without a policy", positional=True)
    ]
    episodes: Annotated[
        int | None,
        Option("number of episodes (default 100); of a suite, in each of its main parts"),
        Bound(1, 100_000, "episodes"),
    ] = None
    seed: Annotated[int, Option("seed of the episodes"), SEED] = 1000
    engine: Annotated[Literal["auto", "mujoco", "mjx"], Option("what steps the physics")] = "auto"
    config: Annotated[
        str | None, Option("task to evaluate in (default: the checkpoint's; for a bundle its task's)")
    ] = None
    set: Annotated[tuple[str, ...], Option("override a key of the task, e.g. robot=FOLDER", metavar="KEY=VALUE")] = ()
    level: Annotated[
        float, Option("how random: a level of the curriculum, 1 is the widest"), Bound(0, 1, "a level from 0 to 1")
    ] = 1.0
    suite: Annotated[
        Literal["none", "walk"], Option("run a whole suite instead: its parts, what it asks for, plots")
    ] = "none"
    quick: Annotated[bool, Option("of a suite: an eighth of the episodes")] = False
    twins: Annotated[
        int,
        Option("of a suite: also walk a .kinfer through a course on this many twins over gRPC"),
        Bound(0, 1000, "twins"),
    ] = 0
    out: Annotated[str | None, Option("of a suite: folder for its files (default runs/suite)")] = None
    json: Annotated[bool, Option("print one JSON object on stdout")] = False

    def check(self) -> None:
        if self.suite == "none":
            for name, given in (("quick", self.quick), ("twins", self.twins), ("out", self.out is not None)):
                self.require(not given, name, getattr(self, name), "--suite walk with it: it is a suite's")
        bundle = not self.twins or self.policy.endswith(".kinfer")
        self.require(bundle, "twins", self.twins, f"a .kinfer, which a robot runs; {self.policy} is none")
        on_c = self.suite == "none" or self.engine != "mjx"
        self.require(on_c, "engine", self.engine, "mujoco: a suite runs in MuJoCo C")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        EvaluateOptions,
        argv,
        "ksim eval",
        "Survival and return of a checkpoint or a bundle over N episodes with pushes and randomisation.",
        "ksim eval robots/kbot/policies/stand.kinfer --episodes 200 --seed 1000",
    )
    with importing("eval"):
        from ksim.curriculum import at_level
        from ksim.engine import choose_engine
        from ksim.environment import make_scene
        from ksim.evaluate import evaluate, load_policy
        from robots.understood import understood

    config, policy = load_policy(args.policy, args.config, args.set)
    config = config if args.level == 1.0 else at_level(config, args.level)
    built = make_scene(config).built
    robot = built.spec.name
    print(understood(built), file=sys.stderr, flush=True)
    if args.suite != "none":
        return _suite(args, config, policy)
    episodes = args.episodes or 100
    result = evaluate(
        config,
        policy,
        episodes=episodes,
        seed=args.seed,
        engine=choose_engine(args.engine),
        progress=_progress if sys.stderr.isatty() else None,
    )
    figures = result.summary()
    if args.json:
        print(json.dumps({"policy": args.policy, "robot": robot, "level": args.level, **figures}))
    else:
        print(
            f"{args.policy} on {robot}: survived {figures['survival']:.1%} of {episodes} episodes "
            f"(95 %: {figures['survival_low95']:.1%} to {figures['survival_high95']:.1%})"
            f"{'' if args.level == 1.0 else f' at level {args.level:g}'}, "
            f"mean length {figures['length_mean_s']:.2f} s, return {figures['return_mean']:.2f}, "
            f"drift {figures['drift_mean_m']:.2f} m, engine {result.engine}, seed {args.seed}"
        )
    return 0


def _suite(args: EvaluateOptions, config: Config, policy: BatchPolicy) -> int:
    """Run a suite, write its files, say what it found."""
    from ksim.suite.page import lines, write_page
    from ksim.suite.suite import SuiteSettings, quick, run_suite
    from ksim.suite.twins import walk_twins
    from robots import load_robot

    settings = SuiteSettings(seed=args.seed)
    settings = quick(settings) if args.quick else settings
    if args.episodes is not None:
        settings = dataclasses.replace(settings, episodes=args.episodes)
    out, told = Path(args.out or "runs/suite"), _part if sys.stderr.isatty() else None
    with locked(out, "suite"):  # before the work, which takes minutes
        result = {"policy": args.policy, "level": args.level, **run_suite(config, policy, settings, told)}
        if args.twins:
            twin = None if told is None else (lambda done, of: told("twins", done, of))
            result["twins"] = walk_twins(
                Path(args.policy), config, load_robot(config.robot), args.twins, args.seed, twin
            )
        with atomic_path(out / "suite.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_page(out / "suite.html", result, Path(args.policy).name)
    print(json.dumps(result) if args.json else "\n".join(lines(result)))
    print(f"wrote {out / 'suite.json'} and {out / 'suite.html'}", file=sys.stderr)
    return 0


def _part(name: str, step: int, steps: int) -> None:
    if step % 10 == 0 or step == steps:
        end = "\n" if step == steps else ""
        print(f"\r{name:16} {step}/{steps} steps", end=end, file=sys.stderr, flush=True)


def _progress(step: int, steps: int) -> None:
    if step % 10 == 0 or step == steps:
        print(f"\reval {step}/{steps} steps", end="\n" if step == steps else "", file=sys.stderr, flush=True)
