"""What a run shows in a live view."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.robot.faults import ClampKind
from deploy.robot.safety import SafeTarget
from deploy.robot.state import RobotState
from deploy.view.link import View
from deploy.view.message import Setup
from robots.spec import PolicySpec

if TYPE_CHECKING:
    from deploy.control.loop import Counts

PHASES = {"ramp": "going home", "ready": "comparing", "run": "running", "between": "running", "stop": "stopping"}
COLOURS = {
    ClampKind.NOT_FINITE: "#b91c1c",
    ClampKind.SPEED: "#f59e0b",
    ClampKind.TORQUE: "#c2417c",
    ClampKind.POSITION: "#0d9488",
}
_OTHER = "#f59e0b"
_MS = "{:.2f} ms"
FIGURES = (
    ("tick rate", "{:.1f} Hz"),
    ("tick takes", _MS),
    ("state round trip", _MS),
    ("command round trip", _MS),
    ("overruns", "{:.0f}"),
    ("lost states", "{:.0f}"),
    ("lost commands", "{:.0f}"),
    ("stale ticks", "{:.0f}"),
    ("clamped ticks", "{:.0f}"),
    ("tilt", "{:.2f} rad"),
    ("farthest from target", "{:.2f} rad"),
)
PLOTS = (
    ("worst since the frame before [ms]", ("tick takes", "state round trip", "command round trip")),
    ("[rad]", ("tilt", "farthest from target")),
)
_KINDS = {kind: 1 << bit for bit, kind in enumerate(ClampKind)}
_PHASE = {name: number for number, name in enumerate(PHASES)}


def setup_of(spec: PolicySpec, robot: str | Path | None, title: str, port: int) -> Setup:
    """What the page of a run shows.

    Args:
        spec: what the policy and the robot are.
        robot: name of a built-in robot or a folder, for its shapes; None takes the name in `spec`.
        title: of the page.
        port: of the page.
    """
    where = spec.robot.name if robot is None else robot
    return Setup(
        title=title,
        robot=str(where.absolute() if isinstance(where, Path) else where),
        port=port,
        joints=spec.robot.joint_names,
        phases=tuple(PHASES.values()),
        marks=tuple((f"clamped: {kind}", COLOURS.get(kind, _OTHER)) for kind in ClampKind),
        figures=FIGURES + tuple((f"{c.name} asked", f"{{:+.2f}} {c.unit}") for c in spec.commands),
        plots=PLOTS,
    )


class RunView:
    """Told of every tick, it sends at most 25 frames a second and never waits.

    Args:
        view: the page.
        spec: what the policy and the robot are.
    """

    def __init__(self, view: View, spec: PolicySpec) -> None:
        self._view = view
        self._joint = {name: i for i, name in enumerate(spec.robot.joint_names)}
        self._marks = np.zeros(len(self._joint), np.uint16)
        self._worst = (0.0, 0.0, 0.0)
        self._ticks, self._rate, self._since = 0, 0.0, (0, 0.0)
        self._broken = False

    def tick(self, *of_tick: Any) -> None:
        """One tick; arguments as of `_tick`. A mistake of ours here ends the view, not the run."""
        if self._broken:
            return
        try:
            self._tick(*of_tick)
        except Exception:
            self._broken = True

    def _tick(
        self,
        now: float,
        phase: str,
        state: RobotState,
        safe: SafeTarget,
        command: np.ndarray,
        counts: Counts,
        times_s: tuple[float, float, float],
    ) -> None:
        """Note a tick, and send a frame when it is time.

        Args:
            now: of the run's clock [s].
            phase: the log's name of it.
            state: measured.
            safe: the target after safety.
            command: of the policy.
            counts: so far.
            times_s: that the tick took, round trip of the state and of the command [s]; NaN for none.
        """
        self._ticks += 1
        for clamp in safe.clamps:
            self._marks[self._joint[clamp.joint]] |= _KINDS[clamp.kind]
        # in this order a NaN is passed over
        self._worst = tuple(max(a, b) for a, b in zip(self._worst, times_s, strict=True))
        if not self._view.due():
            return
        ticks, since = self._since
        if now - since >= 1.0:
            self._rate = (self._ticks - ticks) / (now - since) if since else 0.0
            self._since = (self._ticks, now)
        figures = (
            self._rate,
            *(1e3 * worst for worst in self._worst),
            *(counts.overruns, counts.lost_states, counts.lost_commands, counts.stale, counts.clamped_ticks),
            state.tilt_rad,
            np.abs(safe.rad - state.joint_position).max(),
            *command,
        )
        self._view.send(
            time_s=now,
            phase=_PHASE[phase],
            position=state.joint_position,
            target=safe.rad,
            quat_wxyz=state.quat_wxyz,
            marks=self._marks,
            figures=figures,
        )
        self._marks[:] = 0
        self._worst = (0.0, 0.0, 0.0)


@contextlib.contextmanager
def viewed(
    port: int | None, spec: PolicySpec, robot: str | Path | None, title: str, say: Callable[[str], None] | None
) -> Iterator[RunView | None]:
    """The view of a run while it goes on; None where none is wanted or to be had.

    Args:
        port: of the page; None for no view.
        spec: what the policy and the robot are.
        robot: as of `setup_of`.
        title: of the page.
        say: called with one line, where the page is or why there is none.
    """
    view = None
    if port is not None:
        view = View.start(setup_of(spec, robot, title, port), say or (lambda line: None))
    try:
        yield None if view is None else RunView(view, spec)
    finally:
        if view is not None:
            view.close()
