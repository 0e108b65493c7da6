"""A recorded episode in a browser, served by viser on this machine: the robot, arrows, a time line and plots."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.view import scene
from ksim.arrows import COLOURS, arrows
from ksim.figures import WINDOW_S, reward_lines, torque_lines
from ksim.recording import Recording
from robots.model import build_model

PICTURES_HZ, PLOTS_HZ = 30.0, 4.0
SPEEDS = ("0.1", "0.25", "0.5", "1", "2")


@dataclass
class Player:
    """Where a picture is in an episode that is played again and again.

    Attributes:
        length_s: of the episode [s].
        time_s: now [s].
    """

    length_s: float
    time_s: float = 0.0

    def advance(self, passed_s: float, speed: float) -> None:
        """Let time pass; at its end the episode begins again."""
        self.time_s += passed_s * speed
        if self.time_s >= self.length_s:
            self.time_s = 0.0

    def row(self, dt_s: float) -> int:
        """The row of the recording that is shown."""
        return min(int(self.time_s / dt_s + 1e-6), round(self.length_s / dt_s) - 1)


class Stage:
    """What a browser shows of a recording."""

    def __init__(self, server: Any, recording: Recording):
        self._server, self._mujoco = server, importlib.import_module("mujoco")
        built = build_model(recording.robot)
        self._model, self._data = built.model, self._mujoco.MjData(built.model)
        self._world = scene.world(server, built.standing_height_m)
        self._robot = scene.Robot(server, self._model, "/world")
        self._kinds: dict[str, tuple[Any, Any]] = {}
        self.show(recording)

    def show(self, recording: Recording) -> None:
        """Take another recording of the same robot."""
        self.recording, self._arrows = recording, arrows(recording)

    def draw(self, i: int, kinds: set[str], follow: bool) -> None:
        """Show row `i` with the arrows of `kinds`."""
        r, data = self.recording, self._data
        data.qpos[:] = r.qpos[i]
        self._mujoco.mj_kinematics(self._model, data)
        with self._server.atomic():
            shift = r.base_position[i] * np.asarray([-1.0, -1.0, 0.0]) if follow else np.zeros(3)
            self._world.position = tuple(map(float, shift))
            self._robot.place(data)
            for kind in COLOURS:
                self._draw_arrows(i, kind, kind in kinds)

    def _draw_arrows(self, i: int, kind: str, wanted: bool) -> None:
        """The arrows of one kind are one node of the browser's scene."""
        shown = self._arrows
        pairs = np.stack([shown.start[i], shown.end[i]], axis=1)[[k == kind for k in shown.kinds]]
        there = np.any(pairs[:, 0] != pairs[:, 1], axis=-1)
        name = f"/world/arrows_{kind}"
        if not wanted or not there.any():
            self._server.scene.remove_by_name(name)
            return
        colour = tuple(round(255 * v) for v in COLOURS[kind])
        self._server.scene.add_arrows(
            name, pairs[there], colour, shaft_radius=0.012, head_radius=0.03, head_length=0.06
        )


class Plots:
    """The plots in the panel: the last seconds of rewards and torque."""

    def __init__(self, server: Any, recording: Recording):
        self._server, self._handles = server, []
        self.show(recording)

    def show(self, recording: Recording) -> None:
        """Take another recording."""
        for handle, _ in self._handles:
            handle.remove()
        self._time, self._handles = recording.time_s, []
        for title, lines in (("reward [1/s]", reward_lines(recording)), ("torque / limit", torque_lines(recording))):
            values = tuple(np.asarray(v, np.float64) for v in lines.values())
            handle = scene.add_plot(self._server, title, lines, self._part(values, 0))
            self._handles.append((handle, values))

    def _part(self, values: tuple[np.ndarray, ...], i: int) -> tuple[np.ndarray, ...]:
        first = int(np.searchsorted(self._time, self._time[i] - WINDOW_S))
        return (self._time[first : i + 1], *(v[first : i + 1] for v in values))

    def draw(self, i: int) -> None:
        """Show them up to row `i`."""
        for handle, values in self._handles:
            handle.data = self._part(values, i)


class Panel:
    """What a person sets: pause, speed, time, arrows."""

    def __init__(self, server: Any, recording: Recording, another: bool):
        gui = server.gui
        self.wants_another = threading.Event()
        self._said = gui.add_markdown("")
        self._playing = gui.add_checkbox("play", True)
        self._speed = gui.add_dropdown("speed", SPEEDS, initial_value="1")
        self._time = gui.add_slider("time [s]", 0.0, recording.length_s, recording.dt_s, 0.0)
        self._follow = gui.add_checkbox("follow the robot", True)
        self._kinds = {kind: gui.add_checkbox(f"{kind} arrows", True) for kind in COLOURS}
        if another:
            gui.add_button("another episode").on_click(lambda _: self.wants_another.set())
        self.show(recording)

    def show(self, recording: Recording) -> None:
        """Take another recording."""
        end = "still standing" if recording.survived else "fell"
        self._said.content = f"**{recording.task}**, seed {recording.seed}: {end} after {recording.length_s:.2f} s"
        self._time.max = recording.length_s
        self._shown = self._time.value = 0.0

    def advance(self, player: Player, passed_s: float) -> None:
        """Move the player as the panel says: to where its slider was drawn, else on while it plays."""
        if self._time.value != self._shown:
            player.time_s = float(self._time.value)
        elif self._playing.value:
            player.advance(passed_s, float(self._speed.value))
        self._time.value = round(player.time_s, 3)
        self._shown = self._time.value

    @property
    def kinds(self) -> set[str]:
        """The arrows that are wanted."""
        return {kind for kind, box in self._kinds.items() if box.value}

    @property
    def follow(self) -> bool:
        """The robot stays in the middle."""
        return bool(self._follow.value)


def serve(
    recording: Recording,
    port: int,
    ready: Callable[[str], None],
    another: Callable[[int], Recording] | None = None,
) -> None:
    """Show a recording in a browser until the process is interrupted.

    Args:
        recording: what is shown.
        port: where to listen on this machine alone; 0 for any. The next free one where it is taken.
        ready: called with the address.
        another: records the episode of another seed, for a button.
    """
    with scene.page("ksim", port) as server:
        stage, panel = Stage(server, recording), Panel(server, recording, another is not None)
        plots, player = Plots(server, recording), Player(recording.length_s)
        stage.draw(0, panel.kinds, panel.follow)
        ready(scene.address(server))
        drawn, plotted, last = None, 0.0, time.monotonic()
        while True:
            time.sleep(1.0 / PICTURES_HZ)
            if another is not None and panel.wants_another.is_set():
                recording = another(recording.seed + 1)
                panel.wants_another.clear()
                player, last = Player(recording.length_s), time.monotonic()
                for part in (stage, plots, panel):
                    part.show(recording)
            now = time.monotonic()
            panel.advance(player, now - last)
            last = now
            wanted = (player.row(recording.dt_s), panel.kinds, panel.follow, recording.seed)
            if wanted != drawn:
                stage.draw(*wanted[:3])
                if now - plotted >= 1.0 / PLOTS_HZ:
                    plots.draw(wanted[0])
                    plotted = now
            drawn = wanted
