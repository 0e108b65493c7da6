"""Shows a policy: `python -m ksim.vis --checkpoint path/to/model.ckpt`, in a window, a browser or a video file."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ksim.errors import ConfigError, KsimError
from ksim.options import SEED, SEED_MAX, ShownPolicy
from toolkit.cli import Option, importing, options
from toolkit.settings import Bound

if TYPE_CHECKING:
    from ksim.recording import Recording

# What the plots have of a window's width, and their least size [pixels].
PLOTS_SHARE, PLOTS_MIN = 0.3, 240
# Length of an episode that is shown [s].
SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class VisOptions(ShownPolicy):
    """The options of `ksim vis`."""

    seed: Annotated[int, Option("of the episode"), SEED] = 0
    seconds: Annotated[
        float | None,
        Option(f"length [s] (default: {SECONDS:g}, or what --set episode_length_s says)"),
        Bound(0.01, 3600, "seconds"),
    ] = None
    out: Annotated[str | None, Option("write this .mp4 instead of opening a window")] = None
    plots: Annotated[str | None, Option("write the plots of the episode as this .html")] = None
    live: Annotated[bool, Option("watch it: in a window where there is a screen, else in a browser")] = False
    browser: Annotated[bool, Option("as --live, but in a browser wherever it is")] = False
    port: Annotated[int, Option("of the page in the browser, 0 for any"), Bound(0, 65535, "a port")] = 8080
    set: Annotated[tuple[str, ...], Option("override a key of the task", metavar="KEY=VALUE")] = ()
    json: Annotated[bool, Option("print one JSON object on stdout")] = False

    def check(self) -> None:
        super().check()
        self.require(self.checkpoint is not None, "policy", None, "a policy to show; name a .ckpt or a .kinfer")


def _overrides(args: VisOptions) -> list[str]:
    """The task's overrides, the length of the episode among them."""
    told = [text for text in args.set if text.partition("=")[0].strip() == "episode_length_s"]
    if told and args.seconds is not None:
        raise ConfigError(f"--seconds: got {args.seconds:g} beside --set {told[-1]}, expected one of them")
    return list(args.set) if told else [*args.set, f"episode_length_s={args.seconds or SECONDS}"]


def has_screen() -> bool:
    """Whether a window can be opened here."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    args = options(
        VisOptions,
        argv,
        "ksim vis",
        "Run a policy in simulation and show it with command, velocity, pushes, contact forces, rewards and torque: "
        "in a window where there is a screen, else as a video file; or live in a browser.",
        "ksim vis runs/kbot_stand-seed0/model.ckpt --out stand.mp4 --plots stand.html",
    )
    live = args.live or args.browser
    window = has_screen() and not args.browser and (live or args.out is None)
    browser = live and not window
    if browser and importlib.util.find_spec("viser") is None:
        raise ModuleNotFoundError("viser", name="viser")  # before the episode, not after it
    with importing("vis"):
        from ksim.environment import make_environment
        from ksim.evaluate import load_policy
        from ksim.recording import record

    assert args.checkpoint is not None
    config, policy = load_policy(args.checkpoint, overrides=_overrides(args))
    environment = make_environment(config, 1, "mujoco")

    def episode(seed: int) -> Recording:
        return record(config, policy, seed=seed % (SEED_MAX + 1), environment=environment)

    recording = episode(args.seed)
    out = args.out or (None if window or browser else f"{Path(args.checkpoint).stem}.mp4")
    if out is not None:
        from ksim.video import REMEDY, render

        if not render(out, recording):
            raise KsimError(f"{out}: not written: {REMEDY}")
    if args.plots is not None:
        from ksim.plots import write_plots

        write_plots(args.plots, recording, args.checkpoint, out)
    figures = {"survived": recording.survived, "length_s": recording.length_s, "video": out, "plots": args.plots}

    def answer(address: str | None = None) -> None:
        if args.json:
            print(json.dumps(figures | {"address": address}), flush=True)
            return
        end = "still standing" if recording.survived else "fell"
        wrote = "".join(f"; wrote {path}" for path in (out, args.plots) if path)
        where = f"; open {address} (Ctrl-C ends)" if address else ""
        print(f"{args.checkpoint}: {end} after {recording.length_s:.2f} s{wrote}{where}", flush=True)

    if browser:
        from ksim.live import serve

        serve(recording, args.port, answer, episode)
        return 0
    answer()
    if window:
        _window(recording)
    return 0


def _window(recording: Recording) -> None:
    """Play a recording again and again in MuJoCo's window, until it is closed."""
    from ksim.arrows import arrows
    from ksim.figures import Figures
    from ksim.video import add_arrows
    from robots.model import build_model

    mujoco: Any = importlib.import_module("mujoco")
    built = build_model(recording.robot, fresh=True)  # a window lets its user change it
    data, shown, plots = mujoco.MjData(built.model), arrows(recording), Figures(mujoco, recording)
    with importlib.import_module("mujoco.viewer").launch_passive(built.model, data) as viewer:
        while viewer.is_running():
            start = time.monotonic()
            for i, row in enumerate(recording.qpos):
                if not viewer.is_running():
                    return
                data.qpos[:] = row
                mujoco.mj_forward(built.model, data)
                with viewer.lock():
                    viewer.user_scn.ngeom = 0
                    add_arrows(mujoco, viewer.user_scn, shown, i)
                rect = viewer.viewport
                if rect is not None and rect.width > 4 * PLOTS_MIN:
                    wide, high = max(PLOTS_MIN, int(PLOTS_SHARE * rect.width)), max(1, rect.height // 3)
                    left = rect.left + rect.width - wide
                    places = [mujoco.MjrRect(left, rect.bottom + k * high, wide, high) for k in (1, 0)]
                    viewer.set_figures(list(zip(places, plots.at(i), strict=True)))
                viewer.sync()
                time.sleep(max(0.0, start + (i + 1) * recording.dt_s - time.monotonic()))


if __name__ == "__main__":
    from ksim.cli import run_verb

    sys.exit(run_verb("vis", main, sys.argv[1:]))
