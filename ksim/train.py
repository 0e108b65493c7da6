"""Training: `ksim train --config configs/kbot_stand.yaml`, also `python -m ksim.train`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksim.config import Config
from ksim.errors import CheckpointError, TrainingError
from ksim.learning import checkpoint
from ksim.learning.description import described
from ksim.learning.trainer import Progress, Trainer
from ksim.learning.world import World, together
from ksim.metrics import Metrics, NoMetrics, seconds_until
from robots.understood import understood
from toolkit.cli import stop
from toolkit.errors import ToolkitError
from toolkit.files import locked, remove_parts

# what a result says of a key of `run` that ended it
_STOPPED = {"stop_at_survival": "survival"}
# what `_ended` may say
_ENDS = ("", "stop_at_survival", "total_steps", "max_minutes")


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
            stop(number, frame)
            return
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


def _ended(config: Config, progress: Progress, seconds: float) -> str:
    """The key of `run` that a run has come to the end of; empty while it has not."""
    run = config.run
    if 0 < run.stop_at_survival <= progress.survival and progress.level >= 1.0:
        return "stop_at_survival"
    if progress.steps >= run.total_steps:
        return "total_steps"
    return "max_minutes" if 0 < run.max_minutes * 60.0 <= seconds else ""


def _finished(config: Config, out: Path, say: Callable[[str], None] | None) -> TrainResult | None:
    """What a run has come to that has nothing left to do; None for another."""
    last, final = out / "last.ckpt", out / "model.ckpt"
    meta, _ = checkpoint.read(last, wanted=("nothing",))
    try:
        progress = Progress(**meta["progress"])
    except (KeyError, TypeError):
        return None  # whoever restores it tells
    seconds, _ = seconds_until(out / "metrics.jsonl", progress.steps)
    key = _ended(config, progress, seconds)
    if not key:
        return None
    if not final.exists():
        checkpoint.model_of(last, final)
    if say is not None:
        with contextlib.suppress(OSError):
            say(
                f"{out}: this run is finished: {progress.steps:,} steps, {seconds / 60:.1f} min, survival "
                f"{progress.survival:.0%} (run.{key}={getattr(config.run, key):g}); to go on: --set run.{key}=MORE"
            )
    return TrainResult(
        checkpoint=final,
        updates=progress.updates,
        steps=progress.steps,
        seconds=seconds,
        survival=progress.survival,
        stopped=_STOPPED.get(key, key),
    )


def _check_folder(out: Path, resume: bool) -> None:
    if (out / "last.ckpt").exists() and not resume:
        raise TrainingError(f"{out}: holds a run already; use --resume to go on with it, or another --out")
    others = [name for name in ("config.yaml", "metrics.jsonl", "model.ckpt") if (out / name).exists()]
    if others and not resume:
        raise TrainingError(
            f"{out}: holds {' and '.join(others)}, which training would replace; name another --out, or move them away"
        )
    if resume and not (out / "last.ckpt").exists():
        raise TrainingError(f"{out}: no last.ckpt to resume from; leave out --resume to start there")


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    report: Callable[[Progress, dict[str, float], float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train into a folder: last.ckpt (resumable), model.ckpt, config.yaml, metrics.

    Args:
        config: the run.
        out: its folder.
        resume: go on from `out`/last.ckpt; where that run is finished, tell so and do nothing.
        init: a checkpoint whose networks the run starts with; with `resume` it is not read.
        report: called after each update with progress, figures and seconds since the run started, resumes included.
        say: told what was understood of the robot, before anything is compiled.

    Raises:
        TrainingError: the folder holds a run and `resume` is false, or the loss is not finite.
        CheckpointError: `init` or the checkpoint to resume from is damaged or does not fit.
        KsimError: another training writes into the folder, or it is a file.
        Interrupted: a signal came before the first update, or a second one.
    """
    described({"config": config.to_dict()})  # what no checkpoint can say would lose the run at its first
    world = World.here()
    start = None if resume or init is None else checkpoint.Start.read(init)
    if world.processes == 1:
        with _alone(out, resume), _Interrupt() as interrupt:
            done = _finished(config, out, say) if resume else None
            return done or _train(config, out, resume, start, report, say, interrupt, world)
    with together(out), contextlib.ExitStack() as held, _Interrupt() as interrupt:
        refused, done = None, None
        # of another file, or another word, it would train on in silence
        told = json.dumps(config.to_dict(), sort_keys=True, default=str).encode()
        own = int(hashlib.sha256(told).hexdigest()[:7], 16)
        if world.agreed(own) != own:
            refused = TrainingError(
                "this process has another task than the others of the run; expected the same; give each the same words "
                "and the same files (--config, --parity, --calibration)"
            )
        try:
            if world.first and refused is None:
                held.enter_context(_alone(out, resume))
                done = _finished(config, out, say) if resume else None
        except ToolkitError as error:
            refused = error
        if world.agreed(refused is not None):
            raise refused or TrainingError("another process of this run refuses to begin; it says why")
        if world.agreed(done is not None):
            finished = done or _finished(config, out, None)
            assert finished is not None
            return finished
        quiet = (report, say) if world.first else (None, None)
        return _train(config, out, resume, start, *quiet, interrupt, world)


@contextlib.contextmanager
def _alone(out: Path, resume: bool) -> Iterator[None]:
    """The folder is fit for a run, and nobody else's while it lasts."""
    # asked before the folder is made, and again when nobody else can write there
    _check_folder(out, resume)
    with locked(out, "training"):
        _check_folder(out, resume)
        yield


def _train(
    config: Config,
    out: Path,
    resume: bool,
    start: checkpoint.Start | None,
    report: Callable[[Progress, dict[str, float], float], None] | None,
    say: Callable[[str], None] | None,
    interrupt: _Interrupt,
    world: World,
) -> TrainResult:
    last, final = out / "last.ckpt", out / "model.ckpt"
    began = time.monotonic()
    trainer = Trainer(config, world=world)
    if say is not None:
        with contextlib.suppress(OSError):
            say(understood(trainer.env.scene.built))
    if resume:
        if world.first:
            remove_parts(out, "last.ckpt", "model.ckpt", "metrics.jsonl", "config.yaml")
        try:
            learner, batch, progress = trainer.restore(last)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise CheckpointError(f"{last}: does not fit its own description ({reason}); start a new run") from error
    elif start is not None:
        learner, batch, progress = trainer.start_from(start)
        if say is not None and trainer.about_critic:
            with contextlib.suppress(OSError):
                say(trainer.about_critic)
    else:
        learner, batch, progress = trainer.start()
    stopped, signum, recent = "total_steps", 0, deque(maxlen=20)
    with Metrics(out, config, since_step=progress.steps) if world.first else NoMetrics() as metrics:
        interrupt.updating = True
        while progress.steps < config.run.total_steps:
            tick = time.monotonic()
            learner, batch, progress, figures = trainer.iterate(learner, batch, progress)
            recent.append(time.monotonic() - tick)
            steps = config.ppo.envs * config.ppo.rollout_steps
            figures |= progress._asdict() | {"steps_per_s": steps * len(recent) / sum(recent)}
            seconds = metrics.seconds_before + time.monotonic() - began
            metrics.write(progress.steps, figures, seconds)
            if report is not None:
                with contextlib.suppress(OSError):  # the terminal may be gone; the run is not
                    report(progress, figures, seconds)
            if progress.updates % config.run.save_every_updates == 0:
                trainer.save(last, learner, batch, progress)
            # clocks differ between processes, and a signal comes to one: they end together
            asked = world.agreed(interrupt.asked)
            ended = _ENDS[world.agreed(_ENDS.index(_ended(config, progress, seconds)) if world.first else 0)]
            if asked and ended != "stop_at_survival":
                stopped, signum = "interrupted", asked
                break
            if ended:
                stopped = _STOPPED.get(ended, ended)
                break
    trainer.save(last, learner, batch, progress)
    trainer.save_model(final, learner, progress)
    return TrainResult(
        checkpoint=final,
        updates=progress.updates,
        steps=progress.steps,
        seconds=metrics.seconds_before + time.monotonic() - began,
        survival=progress.survival,
        stopped=stopped,
        signum=signum,
    )


if __name__ == "__main__":
    from ksim.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
