"""The command `ksim train`. JAX is imported when the arguments have been read: the help needs none."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ksim.errors import CheckpointError, ConfigError
from ksim.local import cores, started
from ksim.options import KsimOptions
from toolkit.cli import Option, drop_stdout, importing, options
from toolkit.settings import Bound

if TYPE_CHECKING:
    from ksim.config import Config
    from ksim.train import TrainResult


@dataclass(frozen=True, kw_only=True)
class TrainOptions(KsimOptions):
    """The options of `ksim train`."""

    config: Annotated[str, Option("YAML configuration, e.g. configs/kbot_stand.yaml")]
    out: Annotated[str | None, Option("folder of the run (default: runs/TASK-seedN)")] = None
    set: Annotated[tuple[str, ...], Option("override a key, e.g. ppo.envs=64", metavar="KEY=VALUE")] = ()
    resume: Annotated[bool, Option("go on from OUT/last.ckpt, bit for bit on the same machine", group="start")] = False
    init: Annotated[
        str | None, Option("start a new run with the networks of this checkpoint", metavar="CKPT", group="start")
    ] = None
    calibration: Annotated[
        str | None, Option("train on the robot that ksim sysid measured: its calibration.yaml", metavar="FILE")
    ] = None
    parity: Annotated[
        str | None, Option("widen ranges until they hold what ksim parity measured: its report.json", metavar="FILE")
    ] = None
    json: Annotated[bool, Option("print the result as one JSON object on stdout")] = False
    distributed: Annotated[
        bool, Option("one of several processes that train together; SLURM and Kubernetes tell it which")
    ] = False
    coordinator: Annotated[
        str | None, Option("elsewhere: where process 0 is, the same for all processes", metavar="HOST:PORT")
    ] = None
    processes: Annotated[
        int | None,
        Option("how many processes there are; without --distributed they are started here", metavar="N"),
        Bound(1, 100_000, "processes"),
    ] = None
    process: Annotated[int | None, Option("the number of this one, from 0", metavar="I")] = None

    def check(self) -> None:
        for key in ("coordinator", "process"):
            value = getattr(self, key)
            self.require(self.distributed or value is None, key, value, "--distributed too")
        if not self.distributed and self.processes is not None:
            most = len(cores())
            self.require(self.processes <= most, "processes", self.processes, f"at most {most}: a core for each")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        TrainOptions,
        argv,
        "ksim train",
        "Train a policy from scratch or from another's networks, or go on with a run.",
        "ksim train --config configs/kbot_stand.yaml --out runs/stand --set seed=1",
    )
    if args.distributed or (args.processes or 1) == 1:
        return _train(args)
    with importing("train"):
        from ksim.load import load_config

    load_config(args.config, args.set)  # what is wrong is told once, and not by each of them
    with started(argv, args.processes or 1) as coordinator:
        return _train(replace(args, distributed=True, coordinator=coordinator, process=0))


def _train(args: TrainOptions) -> int:
    """One process of the run, or the only one."""
    with importing("train"):
        from ksim.learning import world
        from ksim.load import load_config
        from ksim.progress import TrainingBar
        from ksim.train import train

    if args.distributed:
        world.join(args.coordinator, args.processes, args.process)
    config = load_config(args.config, args.set)
    if args.calibration is not None:
        with importing("train"):
            from ksim.calibration import from_calibration
        config = from_calibration(config, args.calibration)
        print(f"trains on {config.calibration}; other figures as described", file=sys.stderr, flush=True)
    if args.parity is not None:
        config = _widened(config, args)
    out = Path(args.out or f"runs/{config.task}-seed{config.seed}")
    if args.resume and (out / "last.ckpt").exists():
        config = _resumed(config, out / "last.ckpt")
    init = None if args.init is None else Path(args.init)
    if args.init == "":
        raise ConfigError("--init: got an empty name, expected a checkpoint; leave it out to train from scratch")
    if init is not None:
        print(f"starts with the networks of {init}", file=sys.stderr, flush=True)
    result = None
    try:
        with TrainingBar(config) as bar:
            result = train(config, out, resume=args.resume, init=init, report=bar.update, say=bar.say)
    except OSError:
        if result is None:
            raise  # else it is the bar's: the terminal is gone, the run is saved
    assert result is not None
    if args.distributed and not world.World.here().first:
        return 128 + result.signum if result.signum else 0
    if not result.signum:
        _tell(result, out, args.json, bool(config.policy.sees))
        return 0
    try:
        _tell(result, out, args.json, bool(config.policy.sees))
    except OSError:  # the signal that ended it tells that there is no terminal
        drop_stdout()
    return 128 + result.signum


def _widened(config: Config, args: TrainOptions) -> Config:
    """The task whose ranges hold what --parity measured, and each change told."""
    with importing("train"):
        from ksim.from_parity import from_parity
    assert args.parity is not None
    grown = from_parity(config, args.parity, args.calibration)
    for line in grown.changes or ("all that was measured is in its ranges already",):
        print(f"{args.parity}: {line}", file=sys.stderr, flush=True)
    for line in grown.unheld:
        print(f"{args.parity}: no range of this task holds this: {line}", file=sys.stderr, flush=True)
    return grown.config


def _program() -> str:
    """What a person types for this program: ksim, or a script of theirs that is the same with a task more."""
    script = Path(sys.argv[0])
    own = script.suffix == ".py" and getattr(sys.modules.get("__main__"), "__spec__", None) is None
    return f"python {shlex.quote(str(script))}" if own else "ksim"


def _tell(result: TrainResult, out: Path, as_json: bool, teacher: bool) -> None:
    if as_json:
        answer = {
            "checkpoint": str(result.checkpoint),
            "updates": result.updates,
            "steps": result.steps,
            "seconds": result.seconds,
            "survival_training": result.survival,
            "stopped_by": result.stopped,
        }
        print(json.dumps(answer), flush=True)
        return
    program = _program()
    then = f"{program} export {result.checkpoint} -o {out / 'policy.kinfer'}"
    if teacher:  # no robot can run it
        then = f"{program} train --set ppo.teacher={result.checkpoint}"
    print(
        f"{result.steps:,} steps in {result.seconds / 60:.1f} min in all ({result.stopped}), "
        f"survival in training {result.survival:.0%}\nwrote {result.checkpoint}\n"
        f"next: {program} eval {result.checkpoint}   or   {then}",
        flush=True,
    )


def _resumed(config: Config, last: Path) -> Config:
    """The configuration to resume with: what was saved, but for `run`, which may be extended."""
    from deploy.bundle.card import flatten
    from ksim.learning import checkpoint

    meta, _ = checkpoint.read(last, wanted=("nothing",))
    saved = checkpoint.read_config(last, meta)
    if config.command_names != saved.command_names:
        raise CheckpointError(
            f"{last}: its commands are {', '.join(saved.command_names)}, this run's {', '.join(config.command_names)}; "
            "use the same in the same order, or a new --out"
        )
    if config.calibration != saved.calibration:
        ours, theirs = (c.calibration.source[:12] if c.calibration else "without one" for c in (config, saved))
        raise CheckpointError(
            f"{last}: was trained with calibration {theirs}, this run {ours}; use the same --calibration, or a new "
            "--out"
        )
    if replace(config, run=saved.run) != saved:
        ours, theirs = flatten(config.to_dict()), flatten(saved.to_dict())
        keys = [
            k for k in {**ours, **theirs} if not k.startswith("run.") and ours.get(k, theirs) != theirs.get(k, ours)
        ]
        shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        raise CheckpointError(f"{last}: was trained with other values of {shown}; use the same, or a new --out")
    return config
