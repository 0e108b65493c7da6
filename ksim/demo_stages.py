"""What the demos share: stages that are commands, what a twin's truth file tells, and the folder they write into."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ksim.errors import KsimError
from robots import rotation
from toolkit.files import LOCK

if TYPE_CHECKING:
    from ksim.recording import Recording

MARKER = ".ksim-demo"


@dataclass
class Stages:
    """Runs the stages and keeps their times. Everything for people goes to stderr."""

    out: Path
    console: Console
    cache: str
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """One line for a person."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def call(self, verb: str, *arguments: object, may_fail: bool = False, label: str | None = None) -> dict[str, Any]:
        """Run a verb with --json; its object. Its stderr passes through.

        Raises:
            KsimError: it failed, and `may_fail` is false or it printed nothing.
        """
        words = [str(a) for a in arguments]
        self.say(f"[bold]$ ksim {verb} {shlex.join(words)}[/bold]")
        began = time.monotonic()
        command = [sys.executable, "-m", "ksim.cli", verb, *words, "--json"]
        # stages compile the same programs
        env = {
            "JAX_COMPILATION_CACHE_DIR": self.cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            **os.environ,
        }
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=env)
        label = label or verb
        self.seconds[label] = self.seconds.get(label, 0.0) + time.monotonic() - began
        lines = done.stdout.strip().splitlines()
        if (done.returncode != 0 and not may_fail) or not lines:
            raise KsimError(f"ksim {verb} ended with status {done.returncode}; its own message is above")
        return json.loads(lines[-1])


def fall_time(truth: Path, start_height_share: float = 0.6) -> float | None:
    """When the twin's robot truly fell [s of the twin], or None."""
    if not truth.is_file():
        return None
    saved = np.load(truth)
    height, held = saved["base_position_m"][:, 2], saved["held"].astype(bool)
    free = np.flatnonzero(~held)
    if not len(free):
        return None
    low = free[height[free] < start_height_share * height[free[0]]]
    return float(saved["time_s"][low[0]] - saved["time_s"][free[0]]) if len(low) else None


def twin_video(stages: Stages, truth: Path, out: Path, task: str) -> str | None:
    """A video of the twin's motion, or None with one line that says why."""
    from ksim.video import REMEDY, render

    began = time.monotonic()
    try:
        saved = np.load(truth)
        free = ~saved["held"].astype(bool)
        dt = float(np.median(np.diff(saved["time_s"])))
        done = render(out, _seen(saved["qpos"][free], saved["base_position_m"][free], saved["push_n"][free], dt, task))
    except (KsimError, OSError, KeyError, subprocess.SubprocessError) as error:
        stages.say(f"no video: {error}")
        return None
    stages.seconds["video"] = time.monotonic() - began
    if not done:
        stages.say(f"no video: {REMEDY}")
        return None
    return str(out)


def _seen(qpos: np.ndarray, base: np.ndarray, push: np.ndarray, dt: float, task: str) -> Recording:
    """What the twin's truth file tells, as a recording: its motion and the pushes."""
    from ksim.recording import Recording

    rows = len(qpos)
    none = np.zeros((rows, 3))
    velocity, heading = np.gradient(base, dt, axis=0) if rows > 1 else none, rotation.yaw_of(qpos[:, 3:7])
    return Recording(
        robot="kbot", task=task, seed=0, dt_s=dt, survived=True, weight_n=356.0, clearance_m=0.7,
        joint_names=(), foot_names=(), qpos=qpos, base_position=base, base_velocity_w=velocity, heading=heading,
        commands={}, push_w=push, kick_w=none, push_point=base, foot_position=np.zeros((rows, 0, 3)),
        foot_force=np.zeros((rows, 0)), torque_share=np.zeros((rows, 0)), rewards={},
    )  # fmt: skip


def check_folder(out: Path) -> None:
    """Only an empty folder or an earlier demo's is written into: the demo replaces what it finds.

    Raises:
        KsimError: the folder holds something else.
    """
    if not out.is_dir() or (out / MARKER).is_file():
        return
    # what is left where a demo was killed before its first file
    if not {p.name for p in out.iterdir()} - {LOCK}:
        return
    try:  # a demo from before there was a marker
        data = json.loads((out / "demo.json").read_text(encoding="utf-8"))
        if isinstance(data, dict) and {"policy_source", "twin_run_s", "parity_joint_rmse_rad"} <= set(data):
            return
    except (OSError, ValueError, RecursionError):
        pass
    raise KsimError(
        f"--out {out}: the folder holds other files, which the demo would replace; "
        "expected a new or empty folder, or an earlier demo's; name another"
    )
