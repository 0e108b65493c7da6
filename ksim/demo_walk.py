"""`ksim demo --walk`: the shipped walking policy, driven through a course on a twin over KOS. Nothing is trained."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from ksim.demo_stages import MARKER, Stages, check_folder, fall_time, twin_video
from ksim.errors import KsimError
from ksim.suite.twins import COURSE, COURSE_S
from robots import rotation
from toolkit.files import atomic_path, locked, shipped_config, shipped_policy

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
    bundle, course, log, truth = (
        shipped_policy(SHIPPED, ".kinfer"),
        out / "course.yaml",
        out / "run.mcap",
        out / "twin.npz",
    )
    with atomic_path(course) as part:
        part.write_text(yaml.safe_dump([dict(row) for row in COURSE], sort_keys=False), encoding="utf-8")
    stages.say(f"\n[cyan]1/3 run[/cyan] a course of {COURSE_S:g} s over KOS, on a twin whose reality is not the model")
    ran = _run(stages, bundle, course, log, truth, seed)
    stages.say("\n[cyan]2/3 parity[/cyan] of the recorded run with the simulation")
    parity = stages.call("parity", log, "--out", out)
    stages.say("\n[cyan]3/3 video[/cyan]")
    video = twin_video(stages, truth, out / "run.mp4", TASK)
    files = [course, log, truth, out / "report.json", out / "report.html", *([Path(video)] if video else [])]
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise KsimError(f"not written: {', '.join(missing)}")
    loop = parity["loop"]
    result = {
        "policy": bundle.name,
        "twin_run_s": ran["survived_s"],
        "twin_fell_after_s": fall_time(truth),
        "run_ended": ran["ended"],
        "course": _legs(truth),
        "loop_period_error_p99_ms": loop["period_error_p99_ms"],
        "loop_overruns": loop["overruns"],
        "state_round_trip_p50_ms": loop["state_round_trip_p50_ms"],
        "parity_joint_rmse_rad": parity["joint_position_rmse_rad"],
        "parity_policy_replay_error_max": parity["policy_replay_error_max"],
        "seconds": {k: round(v, 1) for k, v in stages.seconds.items()},
        "seed": seed,
        "files": [str(f) for f in [*files, out / "demo.json"]],
    }
    with atomic_path(out / "demo.json") as part:
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _run(stages: Stages, bundle: Path, course: Path, log: Path, truth: Path, seed: int) -> dict[str, Any]:
    from deploy.twin import spawn_twin

    reality = shipped_config("reality_demo.yaml")
    with spawn_twin("kbot", reality=reality, seed=seed, truth=truth) as twin:
        where = f"--port {twin.port} --reality {reality} --seed {seed} --truth {truth}"
        stages.say(f"[bold]$ ksim twin --robot kbot {where} &[/bold]")
        return stages.call(
            "run",
            bundle,
            *("--host", "127.0.0.1", "--port", twin.port),
            *("--duration", COURSE_S, "--schedule", course, "--log", log, "--force"),
            may_fail=True,
        )


def _legs(truth: Path) -> list[dict[str, float]]:
    """Of each command of the course: what was asked, and the mean velocity in the heading's frame from 1 s after."""
    saved = np.load(truth)
    free = ~saved["held"].astype(bool)
    time_s, base = saved["time_s"][free], saved["base_position_m"][free]
    if len(time_s) < 2:
        return []
    time_s = time_s - time_s[0]
    quat = saved["qpos"][free][:, 3:7]
    yaw = np.unwrap(rotation.yaw_of(quat))
    step = np.gradient(time_s)
    world = np.gradient(base, axis=0) / step[:, None]
    ahead = rotation.rotate_inverse(rotation.from_yaw(yaw), world)
    rate = np.gradient(yaw) / step
    ends = [row["at_s"] for row in COURSE[1:]] + [COURSE_S]
    legs = []
    for row, end in zip(COURSE, ends, strict=True):
        inside = (time_s >= row["at_s"] + 1.0) & (time_s < end)
        if not inside.any():
            continue
        found = {"xvel": ahead[inside, 0].mean(), "yvel": ahead[inside, 1].mean(), "yawrate": rate[inside].mean()}
        legs.append({"at_s": row["at_s"], **{f"{k}_asked": row.get(k, 0.0) for k in found}, **_plain(found)})
    return legs


def _plain(values: dict[str, Any]) -> dict[str, float]:
    return {k: round(float(v), 3) for k, v in values.items()}


def walk_table(result: dict[str, Any]) -> Table:
    """The closing table."""
    t = Table(title="a course over KOS, on this machine", show_header=False, title_style="bold")
    t.add_column("what", style="cyan", no_wrap=True)
    t.add_column("figure", overflow="fold")
    fell = result["twin_fell_after_s"]
    walked = f"walked for {result['twin_run_s']:.1f} s" if fell is None else f"fell after {fell:.1f} s"
    t.add_row("run on the twin", f"{walked} ({result['run_ended']})")
    for leg in result["course"]:
        asked = ", ".join(f"{k} {leg[f'{k}_asked']:+.2f}" for k in ("xvel", "yvel", "yawrate"))
        did = ", ".join(f"{leg[k]:+.2f}" for k in ("xvel", "yvel", "yawrate"))
        t.add_row(f"at {leg['at_s']:g} s: {asked}", did)
    t.add_row(
        "loop period error, p99", f"{result['loop_period_error_p99_ms']:.2f} ms, {result['loop_overruns']} overruns"
    )
    t.add_row("state round trip, p50", f"{result['state_round_trip_p50_ms']:.1f} ms")
    t.add_row("parity: replayed actions differ by at most", f"{result['parity_policy_replay_error_max']:.1e} rad")
    t.add_row("parity: joint error, twin against simulation", f"{result['parity_joint_rmse_rad']:.4f} rad RMS")
    names = [Path(f).name for f in result["files"]]
    t.add_row(f"files in {os.path.relpath(Path(result['files'][-1]).parent)}", ", ".join(names))
    return t
