"""What the demos share: stages that are commands, what a twin's truth file tells, and the folder they write into."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ksim.errors import KsimError
from ksim.local import cores, keep_to, shares
from robots import rotation
from toolkit.files import LOCK, atomic_path, shipped_config

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ksim.recording import Recording

MARKER, ROBOT = ".ksim-demo", "kbot"


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
        return self._each(verb, (arguments,), may_fail, label or verb)[0]

    def call_each(self, verb: str, *several: Sequence[object]) -> list[dict[str, Any]]:
        """Run a verb several times side by side, each with its share of the cores; their objects.

        Where one fails, or this process is interrupted, the others are told to end.

        Args:
            verb: what to run.
            several: the arguments of each. The stderr of the first passes through; that of another is kept, and its
                last line shown where it fails.

        Raises:
            KsimError: one of them failed.
        """
        return self._each(verb, several, False, verb)

    def _each(self, verb: str, several: Sequence[Sequence[object]], may_fail: bool, label: str) -> list[dict[str, Any]]:
        began, whole, of = time.monotonic(), cores(), shares(len(several))
        running: list[tuple[subprocess.Popen[str], IO[str], IO[str] | None]] = []
        with ExitStack() as files:
            try:
                for share, arguments in zip(of, several, strict=True):
                    keep_to(share or whole)  # a child keeps to what its parent keeps to
                    out = files.enter_context(tempfile.TemporaryFile("w+"))
                    said = files.enter_context(tempfile.TemporaryFile("w+")) if running else None
                    running.append((self._start(verb, arguments, out, said), out, said))
                keep_to(whole)
                failed: list[Any] = []
                while any(process.poll() is None for process, _, _ in running) and not failed:
                    time.sleep(0.02)
                    failed = [one for one in running if one[0].poll() and not may_fail]
            finally:
                keep_to(whole)
                for process, _, _ in running:
                    if process.poll() is None:
                        process.terminate()
                for process, _, _ in running:
                    process.wait()
            self.seconds[label] = self.seconds.get(label, 0.0) + time.monotonic() - began
            # one that failed first: another may have been told to end because of it
            return [self._told(verb, *one, may_fail) for one in failed or running]

    def _start(self, verb: str, arguments: Sequence[object], out: IO[str], said: IO[str] | None) -> Any:
        words = [str(a) for a in arguments]
        self.say(f"[bold]$ ksim {verb} {shlex.join(words)}[/bold]")
        command = [sys.executable, "-m", "ksim.cli", verb, *words, "--json"]
        # stages compile the same programs
        env = {
            "JAX_COMPILATION_CACHE_DIR": self.cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            **os.environ,
        }
        return subprocess.Popen(command, stdout=out, stderr=said, text=True, env=env)

    @staticmethod
    def _told(
        verb: str, process: subprocess.Popen[str], out: IO[str], said: IO[str] | None, may_fail: bool
    ) -> dict[str, Any]:
        """What one printed."""
        out.seek(0)
        lines, code = out.read().strip().splitlines(), process.returncode
        if (code != 0 and not may_fail) or not lines:
            if said is not None:
                said.seek(0)
                sys.stderr.writelines(said.readlines()[-1:])
            raise KsimError(f"ksim {verb} ended with status {code}; its own message is above")
        return json.loads(lines[-1])


@dataclass(frozen=True, kw_only=True)
class TwinMotion:
    """How the twin's robot truly moved once it was let go, as its truth file tells; T rows, world frame.

    Attributes:
        time_s: since it was let go [s], (T,).
        dt_s: between two rows [s].
        qpos: (T, nq).
        position: of the body that carries the IMU [m], (T, 3).
        velocity: of that body [m/s], (T, 3).
        heading: yaw of the base [rad], without jumps, (T,).
        push_n: force on it [N], (T, 3).
    """

    time_s: np.ndarray
    dt_s: float
    qpos: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    heading: np.ndarray
    push_n: np.ndarray

    @classmethod
    def read(cls, truth: Path) -> TwinMotion | None:
        """From a twin's .npz; None where there is none, or it was never let go."""
        from robots.model import build_model

        if not truth.is_file():
            return None
        saved = np.load(truth)
        free = ~saved["held"].astype(bool)
        if np.count_nonzero(free) < 2:
            return None
        time_s, position, qpos = (saved[key][free] for key in ("time_s", "base_position_m", "qpos"))
        return cls(
            time_s=time_s - time_s[0],
            dt_s=float(np.median(np.diff(time_s))),
            qpos=qpos,
            position=position,
            velocity=np.gradient(position, time_s, axis=0),
            heading=np.unwrap(rotation.yaw_of(qpos[:, build_model(ROBOT).base_quat])),
            push_n=saved["push_n"][free],
        )

    def fell_after(self, within_s: float = math.inf, height_share: float = 0.6) -> float | None:
        """When the robot fell [s]: when it was below a share of its first height; None where it never was.

        Args:
            within_s: what comes later does not count: in the end every robot is let go of [s].
            height_share: of the first height.
        """
        height = self.position[self.time_s <= within_s, 2]
        low = np.flatnonzero(height < height_share * height[0])
        return float(self.time_s[low[0]]) if len(low) else None


def run_on_twin(
    stages: Stages, bundle: Path, log: Path, truth: Path, *, seed: int, duration_s: float, asked: tuple[object, ...]
) -> dict[str, Any]:
    """Run a bundle on a twin whose reality is the demo's: what `ksim run` reports.

    Args:
        stages: runs it.
        bundle: the policy.
        log: file for the log.
        truth: file for what really happened.
        seed: of the twin.
        duration_s: how long the policy runs [s].
        asked: the options of `ksim run` that say what is asked of the policy.
    """
    from deploy.twin.server import spawn_twin

    reality = shipped_config("reality_demo.yaml")
    with spawn_twin(ROBOT, reality=reality, seed=seed, truth=truth) as twin:
        where = f"--port {twin.port} --reality {reality} --seed {seed} --truth {truth}"
        stages.say(f"[bold]$ ksim twin --robot {ROBOT} {where} &[/bold]")
        return stages.call(
            "run",
            bundle,
            *("--host", "127.0.0.1", "--port", twin.port, "--duration", duration_s),
            # the twin has its share of this machine: a loop that waits for it is no loop that hangs
            *(*asked, "--watchdog", 2, "--max-late", 2, "--log", log, "--force"),
            may_fail=True,
        )


def run_figures(ran: dict[str, Any], parity: dict[str, Any], motion: TwinMotion | None) -> dict[str, Any]:
    """What both demos tell of a run on the twin and of its parity."""
    loop = parity["loop"]
    within_s = ran["survived_s"] if ran["ended"] == "completed" else math.inf
    return {
        "twin_run_s": ran["survived_s"],
        "twin_fell_after_s": None if motion is None else motion.fell_after(within_s),
        "run_ended": ran["ended"],
        "loop_period_error_p99_ms": loop["period_error_p99_ms"],
        "loop_overruns": loop["overruns"],
        "state_round_trip_p50_ms": loop["state_round_trip_p50_ms"],
        "parity_joint_rmse_rad": parity["joint_position_rmse_rad"],
        "parity_policy_replay_error_max": parity["policy_replay_error_max"],
    }


def finish(stages: Stages, result: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    """Write demo.json and give what it holds.

    Raises:
        KsimError: a file that a stage should have written is not there.
    """
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise KsimError(f"not written: {', '.join(missing)}")
    told = stages.out / "demo.json"
    result = {
        **result,
        "seconds": {k: round(v, 1) for k, v in stages.seconds.items()},
        "files": [str(f) for f in [*files, told]],
    }
    with atomic_path(told) as part:
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def closing_table(title: str) -> Table:
    """An empty table of what was found."""
    from rich.table import Table

    table = Table(title=title, show_header=False, title_style="bold")
    table.add_column("what", style="cyan", no_wrap=True)
    table.add_column("figure", overflow="fold")
    return table


def close(table: Table, result: dict[str, Any]) -> Table:
    """The table with the rows that both demos end with."""
    table.add_row("loop period error, p99", f"{result['loop_period_error_p99_ms']:.2f} ms")
    table.add_row("loop overruns", f"{result['loop_overruns']}")
    table.add_row("state round trip, p50", f"{result['state_round_trip_p50_ms']:.1f} ms")
    table.add_row("parity: replayed actions differ by at most", f"{result['parity_policy_replay_error_max']:.1e} rad")
    table.add_row("parity: joint error, twin against simulation", f"{result['parity_joint_rmse_rad']:.4f} rad RMS")
    names = [Path(f).name for f in result["files"]]
    table.add_row(f"files in {os.path.relpath(Path(result['files'][-1]).parent)}", ", ".join(names))
    return table


def twin_video(stages: Stages, motion: TwinMotion | None, out: Path, task: str) -> list[Path]:
    """A video of the twin's motion: its file; none, with one line that says why, where it cannot be drawn."""
    from ksim.video import REMEDY, render

    began = time.monotonic()
    try:
        if motion is None:
            raise KsimError("the twin never let its robot go")
        done = render(out, _seen(motion, task))
    except (KsimError, OSError, subprocess.SubprocessError) as error:
        stages.say(f"no video: {error}")
        return []
    stages.seconds["video"] = time.monotonic() - began
    if not done:
        stages.say(f"no video: {REMEDY}")
    return [out] if done else []


def _seen(motion: TwinMotion, task: str) -> Recording:
    """The twin's motion and its pushes as a recording."""
    from ksim.recording import Recording

    rows = len(motion.time_s)
    return Recording(
        robot=ROBOT, task=task, seed=0, dt_s=motion.dt_s, survived=True, weight_n=356.0, clearance_m=0.7,
        joint_names=(), foot_names=(), qpos=motion.qpos, base_position=motion.position,
        base_velocity_w=motion.velocity, heading=motion.heading, commands={}, push_w=motion.push_n,
        kick_w=np.zeros((rows, 3)), push_point=motion.position, foot_position=np.zeros((rows, 0, 3)),
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
