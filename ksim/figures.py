"""The plots beside a robot in OpenGL: rewards and torque over the last seconds, drawn by MuJoCo itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ksim.recording import Recording
from toolkit.charts import nice_ticks

# What a plot shows at most, and for how long [s].
LINES, WINDOW_S = 5, 5.0
TOTAL = "total"
# MuJoCo's figures hold 1001 points a line; half of them are plenty for a small picture.
POINTS = 500


def largest(series: dict[str, np.ndarray], count: int = LINES) -> dict[str, np.ndarray]:
    """The series that say most: those of the largest mean size, the largest first."""
    size = {name: float(np.mean(np.abs(values))) if len(values) else 0.0 for name, values in series.items()}
    return {name: series[name] for name in sorted(series, key=lambda name: -size[name])[:count]}


def reward_lines(recording: Recording) -> dict[str, np.ndarray]:
    """The sum of the rewards and the largest terms [1/s]."""
    terms = recording.rewards
    total = np.sum(list(terms.values()), axis=0) if terms else np.zeros(len(recording))
    return {TOTAL: total, **largest(terms)}


def torque_lines(recording: Recording) -> dict[str, np.ndarray]:
    """The share of its limit of each of the most loaded joints, without sign."""
    share = np.abs(recording.torque_share)
    return largest({name: share[:, i] for i, name in enumerate(recording.joint_names)})


def caption(recording: Recording, i: int) -> tuple[str, str]:
    """(names, values) of time and command at row `i`, one a line."""
    ahead, aside = recording.velocity_h[i]
    rows = {"time": f"{recording.time_s[i]:.2f} s", "velocity": f"{ahead:+.2f} {aside:+.2f} m/s"}
    rows |= {name: f"{values[i]:+.2f}" for name, values in list(recording.commands.items())[:6]}
    return "\n".join(rows), "\n".join(rows.values())


def round_marks(lines: dict[str, np.ndarray], top: float) -> list[float]:
    """Round numbers, equally far apart, from below the least value and 0 to above the greatest and `top`."""
    values = np.concatenate([*lines.values(), np.zeros(1)])
    low, high = min(0.0, float(np.nanmin(values))), max(top, float(np.nanmax(values)))
    step = float(np.diff(nice_ticks(low, high, 4)[:2])[0])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


class Figures:
    """The two plots of a recording, for MuJoCo's renderer."""

    COLOURS = (
        (0.95, 0.95, 0.95),
        (0.36, 0.68, 1.00),
        (1.00, 0.60, 0.25),
        (0.45, 0.85, 0.45),
        (0.95, 0.45, 0.60),
        (0.75, 0.60, 1.00),
    )

    def __init__(self, mujoco: Any, recording: Recording):
        self._time = recording.time_s
        rewards, torque = reward_lines(recording), torque_lines(recording)
        self._plots = [
            (self._empty(mujoco, "reward [1/s]", rewards, 0, 1e-3), list(rewards.values())),
            (self._empty(mujoco, "torque / limit", torque, 1, 1.0), list(torque.values())),
        ]

    def _empty(self, mujoco: Any, title: str, lines: dict[str, np.ndarray], first: int, top: float) -> Any:
        figure = mujoco.MjvFigure()
        mujoco.mjv_defaultFigure(figure)
        figure.title, figure.xlabel, figure.xformat, figure.yformat = title, "time [s]", "%.1f", "%.2g"
        figure.flg_legend = 1
        figure.flg_ticklabel[:] = 1
        figure.gridrgb[:] = (0.28, 0.30, 0.34)
        figure.figurergba[:] = (0.10, 0.11, 0.13, 1.0)
        figure.panergba[:] = (0.13, 0.145, 0.17, 1.0)
        figure.legendrgba[:] = (0.10, 0.11, 0.13, 0.6)
        figure.textrgb[:] = (0.82, 0.84, 0.88)
        figure.linewidth = 2.0
        for k, name in enumerate(lines):
            figure.linename[k] = name[-30:]
            figure.linergb[k] = self.COLOURS[(k + first) % len(self.COLOURS)]
        figure.flg_extend = 0
        marks = round_marks(lines, top)
        figure.range[1] = (marks[0], marks[-1])
        figure.gridsize[:] = (6, len(marks))
        return figure

    def at(self, i: int) -> list[Any]:
        """The plots up to row `i`."""
        now = float(self._time[i])
        first = int(np.searchsorted(self._time, now - WINDOW_S))
        stride = -(-(i + 1 - first) // POINTS)
        rows = np.arange(i, first - 1, -stride)[::-1]
        for figure, lines in self._plots:
            figure.range[0] = (max(0.0, now - WINDOW_S), max(now, WINDOW_S))
            for k, values in enumerate(lines):
                figure.linepnt[k] = len(rows)
                figure.linedata[k, : 2 * len(rows)] = np.stack([self._time[rows], values[rows]], axis=-1).ravel()
        return [figure for figure, _ in self._plots]
