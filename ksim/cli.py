"""The `ksim` command: finds the verb, imports its module, prints an error as one line.

`ksim --with FILE.py VERB ...` imports a file first: one that registers a task, with the classes of its terms.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from toolkit.cli import importing, parser, run_verb

__all__ = ["VERBS", "main", "parser", "run_verb"]

# verb -> (module:function, what it does)
VERBS = {
    "demo": ("ksim.demo:main", "the whole path on this machine: train, export, prove, run, record, compare"),
    "train": ("ksim.train_command:main", "train a policy"),
    "eval": ("ksim.evaluate_command:main", "survival and return of a checkpoint or a bundle"),
    "average": ("ksim.average:main", "the mean of the weights of checkpoints that went on from the same one"),
    "vis": ("ksim.vis:main", "show a policy: a window, or a video file"),
    "replay": ("ksim.replay_command:main", "play one episode again and log every step of it"),
    "diff": ("ksim.diff_command:main", "the first step at which two logged episodes part, and the likely layer"),
    "export": ("export.command:main", "checkpoint -> policy.kinfer and policy.onnx, proven"),
    "validate": ("export.validate_command:main", "prove that a bundle is its checkpoint"),
    "inspect": (
        "deploy.bundle.inspect:main",
        "what a bundle is, or how two differ; what was understood of a robot's folder",
    ),
    "twin": ("deploy.twin.server:main", "a KOS server over a simulated robot"),
    "check": ("deploy.control.check:main", "look at a robot before a policy runs on it: green, amber or red"),
    "run": ("deploy.control.run:main", "run a bundle on a robot over KOS"),
    "damp": ("deploy.control.damp:main", "take the stiffness out of a robot now, whatever state it is in"),
    "log": ("deploy.log.tools:main", "what a log says; the log as a table, arrays or a page; a whole one of a cut one"),
    "excite": ("deploy.sysid.excite:main", "move a hung robot's joints with signals for sysid, one log each"),
    "sysid": ("deploy.sysid.command:main", "what a robot's joints really are, from recorded motions"),
    "parity": ("deploy.parity.command:main", "compare a recorded run with the simulation"),
}


# what brings one's own tasks and terms
WITH = "--with"


def load_module(name: str) -> None:
    """Import a file, as `python FILE` finds it, or a module by its dotted name.

    Raises:
        KsimError: there is none, or it cannot be imported.
    """
    from ksim.errors import KsimError

    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise KsimError(f"{WITH} {name}: no such file; expected one that registers a task; check how it is written")
        there = getattr(sys.modules.get(path.stem), "__file__", None)
        if path.stem in sys.modules and (there is None or not path.samefile(there)):
            raise KsimError(f"{WITH} {name}: there is a module of that name already; expected another; rename the file")
        sys.path.insert(0, str(path.resolve().parent))
    try:
        importlib.import_module(path.stem if path.suffix == ".py" else name)
    except (Exception, SystemExit) as error:  # the file is its author's, and so is what it raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise KsimError(f"{WITH} {name}: cannot be imported ({reason}); correct it") from error


def _with(argv: list[str]) -> tuple[list[str], list[str]]:
    """(modules to import, the rest) of a command line."""
    modules = []
    while argv[:1] == [WITH] and len(argv) > 1:
        modules.append(argv[1])
        argv = argv[2:]
    return modules, argv


def _load(verb: str) -> Callable[[list[str]], int]:
    """The function of a verb."""
    module, function = VERBS[verb][0].split(":")
    with importing(verb):
        return getattr(importlib.import_module(module), function)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "usage: ksim [--with FILE.py] VERB [options]   (ksim VERB --help for each)",
            "",
            *lines,
            "",
            "  --with FILE.py  import this file first: one's own task, with the classes of its terms",
            "",
            "example:\n  ksim demo",
        ]
    )


def _answer(argv: list[str]) -> int:
    """What is said without a verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        import importlib.metadata

        print(f"ksim2real {importlib.metadata.version('ksim2real')}")
        return 0
    if argv[0] == WITH:
        print(f"ksim: {WITH}: got no file, expected FILE.py and a verb", file=sys.stderr)
        return 2
    import difflib

    near = difflib.get_close_matches(argv[0], VERBS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"verbs: {', '.join(VERBS)}"
    print(f"ksim: unknown verb {argv[0]!r:.100}; {hint}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    modules, argv = _with(argv)
    if not argv or argv[0] not in VERBS:
        return run_verb("", _answer, argv)
    verb, rest = argv[0], argv[1:]

    def run(arguments: list[str]) -> int:
        with importing(verb):
            for name in modules:
                load_module(name)
        return _load(verb)(arguments)

    return run_verb(verb, run, rest)


if __name__ == "__main__":
    sys.exit(main())
