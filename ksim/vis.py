"""Shows a policy: `python -m ksim.vis --checkpoint path/to/model.ckpt`, a window or a video file."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ksim.errors import KsimError
from ksim.options import SEED, KsimOptions
from toolkit.cli import Option, importing, options
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class VisOptions(KsimOptions):
    """The options of `ksim vis`."""

    checkpoint: Annotated[str, Option("a .ckpt or a .kinfer")]
    seed: Annotated[int, Option("of the episode"), SEED] = 0
    seconds: Annotated[float, Option("length [s]"), Bound(0.01, 3600, "seconds")] = 10.0
    out: Annotated[str | None, Option("write this .mp4 instead of opening a window")] = None
    set: Annotated[tuple[str, ...], Option("override a key of the task", metavar="KEY=VALUE")] = ()
    json: Annotated[bool, Option("print one JSON object on stdout")] = False


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        VisOptions,
        argv,
        "ksim vis",
        "Run a policy in simulation and show it: in a window where there is a screen, else as a video file.",
        "ksim vis --checkpoint runs/kbot_stand-seed0/model.ckpt --out stand.mp4",
    )
    with importing("vis"):
        from ksim.evaluate import evaluate, load_policy

    config, policy = load_policy(args.checkpoint, overrides=[*args.set, f"episode_length_s={args.seconds}"])
    result = evaluate(config, policy, episodes=1, seed=args.seed, record=True)
    assert result.qpos is not None and result.force_w is not None
    qpos, force = result.qpos[: int(result.alive.sum()), 0], result.force_w[:, 0]  # type: ignore[union-attr]
    dt = config.physics.control_period_s
    has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin")
    out = args.out
    if out is None and has_screen:
        _window(config.robot, qpos, dt)
    else:
        from ksim.video import REMEDY, render

        out = out or f"{Path(args.checkpoint).stem}.mp4"
        if not render(out, config.robot, qpos, dt, force[: len(qpos)]):
            raise KsimError(f"{out}: not written: {REMEDY}")
    figures = {"survived": bool(result.survived[0]), "length_s": float(result.lengths_s[0]), "video": out}
    if args.json:
        print(json.dumps(figures))
    else:
        end = "still standing" if figures["survived"] else "fell"
        print(f"{args.checkpoint}: {end} after {figures['length_s']:.2f} s" + (f"; wrote {out}" if out else ""))
    return 0


def _window(robot: str, qpos: np.ndarray, dt: float) -> None:
    from robots.model import build_model

    mujoco: Any = importlib.import_module("mujoco")
    built = build_model(robot, fresh=True)  # a window lets its user change it
    data = mujoco.MjData(built.model)
    with importlib.import_module("mujoco.viewer").launch_passive(built.model, data) as viewer:
        while viewer.is_running():
            start = time.monotonic()
            for i, row in enumerate(qpos):
                if not viewer.is_running():
                    return
                data.qpos[:] = row
                mujoco.mj_forward(built.model, data)
                viewer.sync()
                time.sleep(max(0.0, start + (i + 1) * dt - time.monotonic()))


if __name__ == "__main__":
    from ksim.cli import run_verb

    sys.exit(run_verb("vis", main, sys.argv[1:]))
