"""The `ksim` command: finds the verb, imports its module, prints an error as one line."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from robots.errors import ToolkitError

# verb -> (module:function, what it does)
VERBS = {
    "demo": ("ksim.demo:main", "the whole path on this machine: train, export, prove, run, record, compare"),
    "train": ("ksim.train:main", "train a policy"),
    "eval": ("ksim.evaluate:main", "survival and return of a checkpoint or a bundle"),
    "vis": ("ksim.vis:main", "show a policy: a window, or a video file"),
    "export": ("export.command:main", "checkpoint -> policy.kinfer and policy.onnx, proven"),
    "validate": ("export.validate:main", "prove that a bundle is its checkpoint"),
    "inspect": ("deploy.inspect:main", "what a bundle is, or how two differ"),
    "twin": ("deploy.twin:main", "a KOS server over a simulated robot"),
    "run": ("deploy.run:main", "run a bundle on a robot over KOS"),
    "parity": ("deploy.parity:main", "compare a recorded run with the simulation"),
}
# what to install for a verb that finds one of these modules missing
_EXTRAS = {"train": "train", "eval": "train", "vis": "train", "export": "export", "validate": "export"}
_EXTRAS |= {"twin": "sim", "parity": "sim"}
_EXTRA_MODULES = {
    *("equinox", "imageio_ffmpeg", "jax", "jax2onnx", "jaxtyping", "mujoco", "onnx", "optax", "plotly", "tensorboardX"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends in an example and whose errors are one line."""
    return _Parser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_verb(verb: str, function: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a verb; its errors become one line on stderr and exit status 1."""
    try:
        return function(argv)
    except ToolkitError as error:
        print(f"ksim {verb}: {' '.join(str(error).split())}", file=sys.stderr)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in _EXTRA_MODULES:
            raise
        extra = _EXTRAS.get(verb, "all")
        print(f"ksim {verb}: needs {name}; install it with: pip install 'ksim2real[{extra}]'", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"ksim {verb}: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
    except KeyboardInterrupt:
        print(f"ksim {verb}: interrupted", file=sys.stderr)
        return 130
    return 1


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        ["usage: ksim VERB [options]   (ksim VERB --help for each)", "", *lines, "", "example:\n  ksim demo"]
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"ksim2real {importlib.metadata.version('ksim2real')}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"verbs: {', '.join(VERBS)}"
        print(f"ksim: unknown verb {verb!r}; {hint}", file=sys.stderr)
        return 2
    target = VERBS[verb][0]

    def call(arguments: list[str]) -> int:
        module, function = target.split(":")
        return getattr(importlib.import_module(module), function)(arguments)

    return run_verb(verb, call, rest)


if __name__ == "__main__":
    sys.exit(main())
