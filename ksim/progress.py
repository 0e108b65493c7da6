"""What a person sees while something runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ksim.config import Config


class TrainingBar:
    """Steps done, steps/s, return, episode length, survival, level; on stderr."""

    def __init__(self, config: Config, every_s: float = 15.0):
        self._console = Console(stderr=True)
        self._full_s = config.episode_length_s
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(bar_width=24 if self._console.width > 118 else 8),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._total = config.run.total_steps
        self._minutes = config.run.max_minutes
        self._task = self._bar.add_task("train", total=1.0, text="compiling")
        self._every_s, self._said = every_s, -1e9

    def update(self, progress: Any, figures: dict[str, float], seconds: float) -> None:
        """Show one update."""
        share = progress.steps / self._total
        if self._minutes > 0:
            share = max(share, seconds / (60.0 * self._minutes))
        share = min(share, 1.0)  # an update may go beyond the last step asked for
        length = progress.length_share * self._full_s
        text = (
            f"{progress.steps / 1e6:.2f} M steps  {figures['steps_per_s']:,.0f} steps/s  "
            f"return {progress.episode_return:.1f}  length {length:.1f} s  "
            f"survival {progress.survival:.0%}  level {progress.level:.0%}"
        )
        # the whole line needs some 118 columns; a narrow terminal gets what matters most
        short = f"{figures['steps_per_s']:,.0f}/s  return {progress.episode_return:.1f}  length {length:.1f} s"
        self._bar.update(self._task, completed=min(1.0, share), text=text if self._console.width > 118 else short)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > self._every_s:
            self._said = now
            print(f"train {share:4.0%}  {seconds:5.0f} s  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
