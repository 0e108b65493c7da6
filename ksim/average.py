"""The mean of the weights of several checkpoints, and the command `ksim average`.

Networks that went on from the same one may be averaged: the mean is often better than each, and lies between them in
what each is good at. Networks that were trained apart may not: their hidden units mean different things.

Source: Wortsman et al., "Model soups", arXiv 2203.05482.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ksim.errors import CheckpointError
from toolkit.cli import importing, parser


def average(paths: Sequence[str | Path], out: str | Path) -> None:
    """Write the mean of the networks of checkpoints.

    Args:
        paths: model.ckpt or last.ckpt of runs; one that is named twice counts twice. The first gives all but weights.
        out: the file to write, networks alone as model.ckpt has them.

    Raises:
        CheckpointError: a file is damaged, or its networks are not those of the first with other weights.
    """
    from ksim.learning import checkpoint

    starts = {path: checkpoint.Start.read(path) for path in dict.fromkeys(map(str, paths))}
    first, *others = starts
    whole, config = starts[first].arrays, starts[first].config
    for path in others:
        for room in ("policy", "critic"):
            _same(path, first, room, getattr(starts[path].config, room), getattr(config, room))
        symmetry = {"symmetry": starts[path].config.ppo.symmetry}, {"symmetry": config.ppo.symmetry}
        _same(path, first, "ppo", *symmetry)
        starts[path].check(starts[first].robot, config, f"{first} has")
        arrays = starts[path].arrays
        names = sorted(name for name in whole.keys() | arrays.keys() if name.startswith("model"))
        differ = next((name for name in names if _shape(whole, name) != _shape(arrays, name)), None)
        if differ is not None:
            raise CheckpointError(
                f"{path}: its {differ} is {_shape(arrays, differ)}; that of {first} is {_shape(whole, differ)}; "
                "expected networks of one shape: runs that went on from the same checkpoint"
            )
    # without the scale of the critic's values a file is whole too
    every = [name for name in whole if all(name in start.arrays for start in starts.values())]
    total = {name: np.zeros(whole[name].shape, np.float64) for name in every}
    for path in map(str, paths):
        for name in every:
            total[name] += starts[path].arrays[name]
    mean = {name: (value / len(paths)).astype(whole[name].dtype) for name, value in total.items()}
    meta, _ = checkpoint.read(first, wanted=())
    kept: dict[str, Any] = {name: value for name, value in meta.items() if name not in ("format", "weights")}
    kept["mean_of"] = [starts[str(path)].origin["weights_digest"] for path in paths]
    checkpoint.write(out, kept, mean)


def _same(path: str, first: str, room: str, theirs: Any, ours: Any) -> None:
    """That what the networks see and do means the same in both files."""
    a, b = (part if isinstance(part, dict) else part.to_dict() for part in (theirs, ours))
    # the spread at the start is gone
    differ = next((k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and k != "init_std"), None)
    if differ is not None:
        raise CheckpointError(
            f"{path}: its {room}.{differ}: {a.get(differ)!r:.200}; that of {first}: {b.get(differ)!r:.200}; "
            "they must be the same for a mean"
        )


def _shape(arrays: dict[str, np.ndarray], name: str) -> str:
    return f"{arrays[name].dtype} {list(arrays[name].shape)}" if name in arrays else "not there"


def main(argv: list[str] | None = None) -> int:
    """The command."""
    p = parser(
        "ksim average",
        "The mean of the weights of checkpoints that went on from the same one.\n"
        "Named twice, a checkpoint counts twice. The configuration is the first one's.",
        "ksim average runs/a/model.ckpt runs/b/model.ckpt -o runs/mean.ckpt",
    )
    p.add_argument("checkpoint", nargs="+", help="model.ckpt or last.ckpt of a run, two or more")
    p.add_argument("-o", "--out", required=True, metavar="FILE", help="the checkpoint to write")
    args = p.parse_args(argv)
    if len(args.checkpoint) < 2:
        p.error(f"got one checkpoint, {args.checkpoint[0]}; expected two or more")
    with importing("average"):
        import ksim.learning.checkpoint  # noqa: F401
    average(args.checkpoint, args.out)
    print(f"wrote {args.out}", file=sys.stderr)
    return 0
