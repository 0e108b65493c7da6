"""`ksim demo`: the whole path on this machine, no robot and no GPU.

Each stage is the command that a person would type, run as a process of its own: train, eval, export, twin,
run, parity. What the demo adds is the order, the choice of policy, and one table.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ksim.demo_stages import (
    MARKER,
    Stages,
    TwinMotion,
    check_folder,
    close,
    closing_table,
    finish,
    run_figures,
    run_on_twin,
    twin_video,
)
from ksim.errors import KsimError
from ksim.local import cores
from ksim.options import SEED_MAX, KsimOptions
from toolkit.cli import Option, options
from toolkit.files import locked, shipped_config, shipped_policy
from toolkit.settings import Bound

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GOOD_ENOUGH = 0.8
# The second training has a seed so much greater.
OTHER_SEED = 5000
TASK, SHIPPED = "kbot_stand", "stand"
# evaluations take seeds some thousands on
SEEDS = Bound(0, SEED_MAX - 10_000, "a seed")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything."""

    train: tuple[str, ...]
    choose_episodes: int
    survival_episodes: int
    export: tuple[str, ...]
    run_s: float


FULL = Plan(
    train=("run.max_minutes=6", "run.stop_at_survival=0.92"),
    choose_episodes=48,
    survival_episodes=100,
    export=("--episodes", "64", "--margin-episodes", "0"),
    run_s=20.0,
)
FAST = Plan(
    train=("run.total_steps=2048", "ppo.envs=32", "ppo.rollout_steps=16", "policy.hidden=16", "policy.head=32"),
    choose_episodes=0,
    survival_episodes=8,
    export=("--episodes", "2", "--steps", "2000", "--margin-episodes", "0"),
    run_s=5.0,
)


def demo(out: Path, *, fast: bool, seed: int, console: Console) -> dict[str, Any]:
    """Run all stages into a folder.

    Returns:
        What demo.json holds.

    Raises:
        KsimError: a stage failed, or the folder holds something else than an earlier demo.
    """
    check_folder(out)
    with locked(out, "demo"):
        (out / MARKER).touch()
        with tempfile.TemporaryDirectory() as cache:
            return _demo(Stages(out=out, console=console, cache=cache), fast=fast, seed=seed)


def _on_gpu() -> bool:
    """Whether training would be on a GPU, of which one training takes all; asked in a process that ends at once."""
    code = "from ksim.engine import choose_engine; print(choose_engine('auto'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.split()[-1:] == ["mjx"]


def _demo(stages: Stages, *, fast: bool, seed: int) -> dict[str, Any]:
    plan, out = FAST if fast else FULL, stages.out
    config = shipped_config(f"{TASK}.yaml")
    folders = [out / "train", out / "train_other"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # an earlier demo's own
    several = ""
    if fast or len(cores()) < 2 or _on_gpu():
        folders.pop()
    else:
        several = ", two of them side by side, to keep the better one"
    stages.say(f"\n[cyan]1/6 train[/cyan] from scratch{'' if fast else f', at most 6 minutes{several}'}")
    settings = [word for s in plan.train for word in ("--set", s)]
    runs = [
        ("--config", config, "--out", folder, "--set", f"seed={seed + OTHER_SEED * i}", *settings)
        for i, folder in enumerate(folders)
    ]
    trained, source = stages.call_each("train", *runs), "trained here"
    best, survival_trained = 0, None
    if not fast:
        quick = ("--episodes", plan.choose_episodes, "--seed", seed + 2000)
        survived = [stages.call("eval", t["checkpoint"], *quick, label="eval")["survival"] for t in trained]
        best = survived.index(max(survived))
        survival_trained = survived[best]
    chosen = trained[best]
    checkpoint = Path(chosen["checkpoint"])
    if survival_trained is not None and survival_trained < GOOD_ENOUGH:
        checkpoint, source = shipped_policy(SHIPPED, ".ckpt"), "shipped"
        stages.say(
            f"survival {survival_trained:.0%} after {chosen['seconds'] / 60:.1f} minutes is below "
            f"{GOOD_ENOUGH:.0%}: going on with the shipped policy, which was trained for longer"
        )
    shutil.copyfile(checkpoint, out / "model.ckpt")
    checkpoint = out / "model.ckpt"

    stages.say("\n[cyan]2/6 export and prove[/cyan]")
    bundle = out / "policy.kinfer"
    exported = stages.call("export", checkpoint, "-o", bundle, *plan.export)

    stages.say("\n[cyan]3/6 survival[/cyan] under pushes: the exported policy, and the same PD controller without one")
    many = ("--episodes", plan.survival_episodes, "--seed", seed + 1000)
    policy = stages.call("eval", bundle, *many, label="survival")
    baseline = stages.call("eval", "home", *many, label="survival")

    stages.say(f"\n[cyan]4/6 run[/cyan] {plan.run_s:g} s over KOS, on a twin whose reality is not the training model")
    log, truth = out / "run.mcap", out / "twin.npz"
    asked = ("--command", "xvel=0")
    ran = run_on_twin(stages, bundle, log, truth, seed=seed, duration_s=plan.run_s, asked=asked)
    motion = TwinMotion.read(truth)

    stages.say("\n[cyan]5/6 parity[/cyan] of the recorded run with the simulation")
    parity = stages.call("parity", log, "--out", out, "--exit-zero")

    stages.say("\n[cyan]6/6 video[/cyan]")
    named = ("policy.onnx", "policy.report.html", "run.mcap", "report.json", "report.html", "twin.npz")
    files = [checkpoint, bundle, *(out / name for name in named)]
    files += twin_video(stages, motion, out / "run.mp4", TASK)
    recorded = exported["numbers"]["recorded"]
    result = {
        "survival_policy": policy["survival"],
        "survival_baseline": baseline["survival"],
        "survival_trained_here": policy["survival"] if survival_trained is None else survival_trained,
        "policy_source": source,
        "training_minutes": chosen["seconds"] / 60.0,
        "training_steps": chosen["steps"],
        "training_seed": seed + OTHER_SEED * best,
        "trainings": len(trained),
        "export_recorded": {name: recorded[name] for name in ("action_error", "action_limit", "resets")},
        **run_figures(ran, parity, motion),
        "fast": fast,
        "seed": seed,
    }
    return finish(stages, result, files)


def table(result: dict[str, Any]) -> Table:
    """The closing table."""
    t = closing_table("from training to parity, on this machine")
    if result["policy_source"] == "shipped":
        t.add_row(
            "policy",
            f"shipped: the one trained here in {result['training_minutes']:.1f} min survives "
            f"{result['survival_trained_here']:.0%}, below {GOOD_ENOUGH:.0%}",
        )
    else:
        of = ", the better of two" if result["trainings"] > 1 else ""
        steps, minutes = result["training_steps"], result["training_minutes"]
        t.add_row("policy", f"trained here: {steps:,} steps, {minutes:.1f} min{of}")
    t.add_row("survival under pushes, policy", f"{result['survival_policy']:.0%} of ten-second episodes")
    t.add_row("survival under pushes, PD hold alone", f"{result['survival_baseline']:.0%}")
    recorded = result["export_recorded"]
    t.add_row(
        "export error, ONNX against JAX, recorded inputs",
        f"{recorded['action_error']:.1e} rad (limit {recorded['action_limit']:.0e})",
    )
    fell = result["twin_fell_after_s"]
    stood = f"stood {result['twin_run_s']:.1f} s under pushes" if fell is None else f"fell after {fell:.1f} s"
    t.add_row("run on the twin over KOS", f"{stood} ({result['run_ended']})")
    return close(t, result)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(KsimOptions):
    """The options of `ksim demo`."""

    out: Annotated[str, Option("folder for everything it writes")] = "runs/demo"
    walk: Annotated[bool, Option("drive the shipped walking policy through a course; nothing is trained")] = False
    fast: Annotated[bool, Option("every stage in under 90 s, with a policy that need not be good")] = False
    seed: Annotated[int, Option("of training, twin and pushes"), SEEDS] = 0
    json: Annotated[bool, Option("print the figures as one JSON object on stdout")] = False

    def check(self) -> None:
        self.require(not (self.walk and self.fast), "fast", True, "either --walk or --fast: --walk trains nothing")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        DemoOptions,
        argv,
        "ksim demo",
        "Train, export, prove, run over KOS on a simulated robot, record, compare. No robot, no GPU, 10 minutes.",
        "ksim demo --out runs/demo",
    )
    check_folder(Path(args.out))
    for module in ("jax", "jax2onnx", "onnx", "mujoco", "rich"):
        if importlib.util.find_spec(module) is None:
            raise KsimError(f"needs {module}; install it with: pip install 'ksim2real[all]'")
    from rich.console import Console

    console = Console(stderr=True)
    if args.walk:
        from ksim.demo_walk import demo_walk, walk_table

        result, shown = demo_walk(Path(args.out), seed=args.seed, console=console), walk_table
    else:
        result, shown = demo(Path(args.out), fast=args.fast, seed=args.seed, console=console), table
    if args.json:
        print(json.dumps(result))
    else:
        Console().print(shown(result))
    return 0


if __name__ == "__main__":
    from ksim.cli import run_verb

    sys.exit(run_verb("demo", main, sys.argv[1:]))
