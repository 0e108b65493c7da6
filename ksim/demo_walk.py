"""`ksim demo --walk`: the shipped walking policy, driven through a course on a twin over KOS. Nothing is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

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
from ksim.suite.twins import COURSE, COURSE_S
from robots import rotation
from toolkit.files import atomic_path, locked, shipped_policy

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TASK, SHIPPED = "kbot_walk", "walk"


def demo_walk(out: Path, *, seed: int, console: Console) -> dict[str, Any]:
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
            return _stages(Stages(out=out, console=console, cache=cache), seed)


def _stages(stages: Stages, seed: int) -> dict[str, Any]:
    out = stages.out
    bundle, course = shipped_policy(SHIPPED, ".kinfer"), out / "course.yaml"
    log, truth = out / "run.mcap", out / "twin.npz"
    with atomic_path(course) as part:
        part.write_text(yaml.safe_dump([dict(row) for row in COURSE], sort_keys=False), encoding="utf-8")
    stages.say(f"\n[cyan]1/3 run[/cyan] a course of {COURSE_S:g} s over KOS, on a twin whose reality is not the model")
    asked = ("--schedule", course)
    ran = run_on_twin(stages, bundle, log, truth, seed=seed, duration_s=COURSE_S, asked=asked)
    motion = TwinMotion.read(truth)
    stages.say("\n[cyan]2/3 parity[/cyan] of the recorded run with the simulation")
    parity = stages.call("parity", log, "--out", out, "--exit-zero")
    stages.say("\n[cyan]3/3 video[/cyan]")
    files = [course, log, truth, out / "report.json", out / "report.html"]
    files += twin_video(stages, motion, out / "run.mp4", TASK)
    legs = [] if motion is None else legs_of(motion)
    result = {"policy": bundle.name, "course": legs, **run_figures(ran, parity, motion), "seed": seed}
    return finish(stages, result, files)


def legs_of(motion: TwinMotion) -> list[dict[str, float]]:
    """Of each command of the course: what was asked, and the mean velocity in the heading's frame from 1 s after."""
    ahead = rotation.rotate_inverse(rotation.from_yaw(motion.heading), motion.velocity)
    rate = np.gradient(motion.heading, motion.time_s)
    ends = [row["at_s"] for row in COURSE[1:]] + [COURSE_S]
    legs = []
    for row, end in zip(COURSE, ends, strict=True):
        inside = (motion.time_s >= row["at_s"] + 1.0) & (motion.time_s < end)
        if inside.any():
            did = {"xvel": ahead[inside, 0], "yvel": ahead[inside, 1], "yawrate": rate[inside]}
            asked = {f"{name}_asked": row.get(name, 0.0) for name in did}
            legs.append({"at_s": row["at_s"], **asked, **{name: float(v.mean()) for name, v in did.items()}})
    return legs


def walk_table(result: dict[str, Any]) -> Table:
    """The closing table."""
    t = closing_table("a course over KOS, on this machine")
    fell = result["twin_fell_after_s"]
    walked = f"walked for {result['twin_run_s']:.1f} s" if fell is None else f"fell after {fell:.1f} s"
    t.add_row("run on the twin", f"{walked} ({result['run_ended']})")
    for leg in result["course"]:
        asked = ", ".join(f"{k} {leg[f'{k}_asked']:+.2f}" for k in ("xvel", "yvel", "yawrate"))
        did = ", ".join(f"{leg[k]:+.2f}" for k in ("xvel", "yvel", "yawrate"))
        t.add_row(f"at {leg['at_s']:g} s: {asked}", did)
    return close(t, result)
