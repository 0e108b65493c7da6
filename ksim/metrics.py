"""Figures of a run: metrics.jsonl, TensorBoard events, and the resolved configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType

import yaml
from tensorboardX import SummaryWriter

from ksim.config import Config
from toolkit.files import atomic_path


def seconds_until(path: Path, step: int) -> tuple[float, list[str]]:
    """(how long a run took until a step [s], the rows until then) of its metrics.jsonl; damaged rows are left out."""
    seconds, kept = 0.0, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            at, took = int(row["steps"]), float(row["seconds"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        if at <= step and math.isfinite(took):
            kept.append(line)
            seconds = took
    return seconds, kept


class Metrics:
    """Writes one row per update. After a resume, rows beyond the checkpoint's step are dropped.

    Attributes:
        seconds_before: how long the run took before this process [s].
    """

    def __init__(self, out: Path, config: Config, since_step: int = 0):
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "metrics.jsonl"
        self.seconds_before, kept = seconds_until(self._path, since_step) if since_step else (0.0, [])
        with atomic_path(self._path) as part:
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        with atomic_path(out / "config.yaml") as part:
            part.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=since_step or None)

    def write(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """One row; `seconds` since the run started, resumes included."""
        self._file.write(json.dumps({"steps": step, "seconds": seconds, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._board.close()


class NoMetrics:
    """In place of Metrics, where another process of the run writes them."""

    seconds_before = 0.0

    def write(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Nothing."""

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None
