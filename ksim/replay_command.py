"""The command `ksim replay`. JAX is imported when the arguments have been read: the help needs none."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ksim.errors import ConfigError
from ksim.options import SEED, ShownPolicy
from toolkit.cli import Option, importing, options


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(ShownPolicy):
    """The options of `ksim replay`."""

    seed: Annotated[int, Option("seed of the episode"), SEED] = 1000
    out: Annotated[
        str | None, Option("where the log goes, as JSON lines (default: episode-seedN.jsonl)", metavar="FILE")
    ] = None
    engine: Annotated[Literal["auto", "mujoco", "mjx"], Option("engine")] = "mujoco"
    config: Annotated[str | None, Option("task to play in (default: the checkpoint's; for a bundle its task's)")] = None
    set: Annotated[tuple[str, ...], Option("override a key of the task, e.g. robot=FOLDER", metavar="KEY=VALUE")] = ()
    schema: Annotated[
        str | None, Option("write the data model too, as an ACSet schema for ACSets.jl", metavar="FILE")
    ] = None
    acset: Annotated[str | None, Option("write the episode too, as an ACSet of that schema", metavar="FILE")] = None
    force: Annotated[bool, Option("replace files that are there")] = False
    json: Annotated[bool, Option("print one JSON object on stdout")] = False


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        ReplayOptions,
        argv,
        "ksim replay",
        "Play one episode again and log every step: same seed, same bytes. Two logs are compared by ksim diff.",
        "ksim replay runs/stand/model.ckpt --seed 3 --out episode.jsonl",
    )
    if not args.checkpoint and not args.schema:
        raise ConfigError("policy: got none; expected a policy to play; name a .ckpt or a .kinfer")
    out = args.out or f"episode-seed{args.seed}.jsonl"
    _check_files(args, out)
    with importing("replay"):
        from ksim.engine import choose_engine
        from ksim.replay import load_player, replay_episode, write_log
        from ksim.schema import acset_instance, acset_schema

    if args.schema:
        _write(args.schema, acset_schema())
    if not args.checkpoint:
        return 0
    config, player = load_player(args.checkpoint, args.config, args.set)
    progress = _progress if sys.stderr.isatty() else None
    events = replay_episode(args.seed, player, config=config, engine=choose_engine(args.engine), progress=progress)
    log = write_log(events, out)
    if args.acset:
        _write(args.acset, acset_instance(log))
    last = log.events[-1]
    figures = {
        "log": out,
        "policy": args.checkpoint,
        "robot": log.birth["robot"],
        "seed": args.seed,
        "steps": len(events) - 1,
        "length_s": (len(events) - 1) * log.birth["control_period_s"],
        "return": sum(event.delta.reward for event in events),
        "fell": last["layers"]["reward"]["fell"],
        "after_hash": last["after_hash"],
    }
    if args.json:
        print(json.dumps(figures))
    else:
        end = "fell" if figures["fell"] else "lasted to the end"
        print(
            f"{out}: {figures['steps']} steps, {figures['length_s']:.2f} s, {end}, return {figures['return']:.3f}, "
            f"last state {figures['after_hash'][:16]}"
        )
    return 0


def _check_files(args: ReplayOptions, out: str) -> None:
    """That each file is wanted, is another one, and replaces none unless it may."""
    if not args.checkpoint:
        for flag in ("out", "acset", "config", "set"):
            if getattr(args, flag):
                got = getattr(args, flag)
                raise ConfigError(f"--{flag}: got {got!r:.100} without --checkpoint, expected a policy to play with it")
    given = {"--out": out if args.checkpoint else None, "--schema": args.schema, "--acset": args.acset}
    files = {flag: Path(path) for flag, path in given.items() if path}
    seen: dict[Path, str] = {}
    for flag, path in files.items():
        other = seen.setdefault(path.resolve(), flag)
        if other != flag:
            raise ConfigError(f"{flag} {path}: it is the file of {other}; expected another")
        if not path.exists():
            continue
        if args.checkpoint and Path(args.checkpoint).exists() and path.samefile(args.checkpoint):
            raise ConfigError(f"{flag} {path}: it is the policy; expected another file")
        if not args.force:
            raise ConfigError(f"{flag} {path}: it exists; expected a new file; name another or add --force")


def _write(path: str, value: object) -> None:
    from toolkit.files import atomic_path

    with atomic_path(path) as part:
        part.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")


def _progress(step: int, steps: int) -> None:
    if step % 10 == 0 or step == steps:
        print(f"\rreplay {step}/{steps} steps", end="\n" if step == steps else "", file=sys.stderr, flush=True)
