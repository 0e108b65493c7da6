"""What of other people works: layers and operations of their policies, their robots, their runtimes.

Run: python benchmarks/compatibility.py [--only lax.scan] [--packages FOLDER] [--markdown docs/compatibility.md]

Each policy of benchmarks/tried is exported by export.convert, and its steps are compared with JAX's on drawn inputs and
on such at which operations differ. The robots are the MJCF files of packages that lie in FOLDER, which
    pip install --no-deps --target FOLDER playground mjlab robosuite-models dm-control gymnasium
fills. Each version of ONNX Runtime that pip finds for this Python is put into a folder of its own, as kinfer is.
What a machine lacks is said in its row.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from tried import export_all, robots, runtimes
from tried.case import Case

jax.config.update("jax_disable_most_optimizations", True)


def cases(only: str) -> list[Case]:
    """The policies whose name, or part of the table, holds a word."""
    try:
        from tried import layers, operations, policies
    except ImportError as error:
        raise SystemExit(f"{error}; pip install '.[export]' brings all that is needed") from error
    every = [*policies.CASES, *layers.CASES, *operations.CASES]
    return [case for case in every if only in case.name or only in case.group]


def tables(only: str, packages: Path, folder: Path) -> Iterator[str]:
    """The page's lines."""
    yield from export_all.tables(cases(only), folder)
    if not only:
        yield from robots.tables(packages)
        yield from runtimes.tables(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", help="policies whose name, or part of the table, holds this; no others")
    parser.add_argument("--packages", type=Path, default=Path(".cache/robots"), help="folder of packages with robots")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file, between its two marks")
    args = parser.parse_args()
    if args.only and args.markdown:
        parser.error("--markdown writes all tables; leave --only out")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for line in tables(args.only, args.packages, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if args.markdown is not None:
        before, _, rest = args.markdown.read_text(encoding="utf-8").partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end of table -->")
        table = "\n".join(lines)
        args.markdown.write_text(f"{before}<!-- table -->\n{table}\n\n<!-- end of table -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
