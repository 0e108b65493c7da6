"""The process that serves a live view: `python -m deploy.view.page FD`, where FD is its end of a socket.

It reads a `Setup`, answers with the page's address or with what is in the way, and shows the newest frame until the
other end closes. It draws nothing while nobody looks.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import json
import os
import select
import socket
import sys
import time
from collections import deque
from typing import Any

import numpy as np

from deploy.errors import DeployError
from deploy.view import scene
from deploy.view.message import Newest, Setup
from robots import rotation
from robots.model import build_model
from toolkit.cli import one_line

LOOK_S, TEXT_S = 0.1, 0.25
# A mark that lasts a tick is to be seen; frames that stop for longer than this are told of.
HOLD_S, SILENT_S = 0.5, 1.0
WINDOW_S = 10.0
# A target that is nearer than this to the body itself is not drawn: it would flicker on its surface.
NEAR_M, NEAR_RAD = 0.004, 0.03
TARGET_RGB, TARGET_OPACITY = (37, 99, 235), 0.35


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


class Pose:
    """A frame's joints, base and targets in a model.

    Args:
        setup: whose frames.

    Attributes:
        built: the model.
        measured: MuJoCo's data of the measured pose; home before the first frame.
        wanted: the same of the targets.

    Raises:
        ToolkitError: there is no such robot, or it has other joints.
    """

    def __init__(self, setup: Setup) -> None:
        self._mujoco: Any = importlib.import_module("mujoco")
        self.built = built = build_model(setup.robot)
        missing = [name for name in setup.joints if name not in built.spec.joint_names]
        if missing:
            raise DeployError(
                f"robot {setup.robot}: no joint {', '.join(missing[:3])}; expected those of the run; name its folder "
                "with --robot"
            )
        if setup.qpos not in (0, built.model.nq):
            raise DeployError(f"robot {setup.robot}: got a pose of {setup.qpos} numbers, expected {built.model.nq}")
        order = [built.spec.joint_names.index(name) for name in setup.joints]
        self._ids = built.qpos_ids[order]
        joint_of = {int(at): joint for joint, at in enumerate(built.model.jnt_qposadr)}
        self.bodies = [int(built.model.jnt_bodyid[joint_of[int(at)]]) for at in self._ids]
        self._site = int(built.model.sensor("imu_quat").objid[0])
        self.measured, self.wanted = (self._mujoco.MjData(built.model) for _ in range(2))
        self.measured.qpos[:] = built.home_qpos
        self._mujoco.mj_kinematics(built.model, self.measured)

    def take(self, frame: np.void) -> None:
        """Both poses of a frame; a base that nobody knows stands at its place and turns as the IMU does."""
        built, model = self.built, self.built.model
        qpos = frame["qpos"].copy() if frame["qpos"].size else built.home_qpos.copy()
        if not frame["qpos"].size:
            qpos[self._ids] = frame["position"]
            if built.base_body >= 0:
                qpos[built.base_quat] = self._base_quat(qpos, frame["quat_wxyz"])
        for data in (self.measured, self.wanted):
            data.qpos[:] = qpos
            self._mujoco.mj_kinematics(model, data)
            qpos[self._ids] = frame["target"]

    def _base_quat(self, qpos: np.ndarray, imu_quat: np.ndarray) -> np.ndarray:
        data, own = self.measured, np.zeros(4)
        data.qpos[:] = qpos
        data.qpos[self.built.base_quat] = (1.0, 0.0, 0.0, 0.0)
        self._mujoco.mj_kinematics(self.built.model, data)
        self._mujoco.mju_mat2Quat(own, data.site_xmat[self._site])
        return rotation.multiply(imu_quat, rotation.conjugate(own))

    def apart(self, body: int) -> bool:
        """Whether a body's target is to be told from the body."""
        far = np.linalg.norm(self.measured.xpos[body] - self.wanted.xpos[body])
        turned = 2.0 * np.arccos(min(1.0, abs(self.measured.xquat[body] @ self.wanted.xquat[body])))
        return bool(far > NEAR_M or turned > NEAR_RAD)


class Page:
    """What the browser shows.

    Args:
        server: viser's.
        setup: what is told of.
    """

    def __init__(self, server: Any, setup: Setup) -> None:
        self._server, self._setup, self._pose = server, setup, Pose(setup)
        built = self._pose.built
        self._world = scene.world(server, built.standing_height_m)
        self._robot = scene.Robot(server, built.model, "/world/robot")
        self._targets = scene.Robot(
            server,
            built.model,
            "/world/targets",
            bodies=built.bodies,
            colour=TARGET_RGB,
            opacity=TARGET_OPACITY,
        )
        for frame in self._targets.frames.values():
            frame.visible = False
        self._robot.place(self._pose.measured)
        self._frame: np.void | None = None
        self._came = time.monotonic()
        self._seen = np.full((len(setup.joints), len(setup.marks)), -np.inf)
        self._colours = [_rgb(colour) for _, colour in setup.marks]
        self._painted: list[tuple[int, int, int] | None] = [None] * len(setup.joints)
        names = [name for name, _ in setup.figures]
        self._lines = [[names.index(name) for name in lines] for _, lines in setup.plots]
        self._past: deque[tuple[float, np.ndarray]] = deque()
        gui = server.gui
        gui.set_panel_label(setup.title)
        self._text = gui.add_html("")
        self._show_targets = gui.add_checkbox("targets", True, hint="where the joints were told to go, in blue")
        self._follow = gui.add_checkbox("follow the robot", True, visible=bool(setup.qpos))
        empty = np.zeros(1)
        self._plots = [
            scene.add_plot(server, title, lines, (empty,) * (1 + len(lines)), aspect=2.2)
            for title, lines in setup.plots
        ]
        self.tell()

    def take(self, frame: np.void) -> None:
        """A new frame."""
        now = time.monotonic()
        self._frame, self._came = frame, now
        bits = frame["marks"][:, None] >> np.arange(len(self._setup.marks))
        self._seen[(bits & 1).astype(bool)] = now
        self._past.append((float(frame["time_s"]), frame["figures"]))
        while self._past[0][0] < frame["time_s"] - WINDOW_S:
            self._past.popleft()

    def draw(self) -> None:
        """The newest frame in the scene."""
        if self._frame is None:
            return
        pose, wanted = self._pose, self._show_targets.value
        pose.take(self._frame)
        with self._server.atomic():
            shift = np.zeros(3)
            if pose.built.base_body >= 0 and self._follow.value:
                shift[:2] = -pose.measured.qpos[pose.built.base_position][:2]
            self._world.position = tuple(map(float, shift))
            self._robot.place(pose.measured)
            self._targets.place(pose.wanted)
            for body, frame in self._targets.frames.items():
                shown = bool(wanted and pose.apart(body))
                if frame.visible != shown:
                    frame.visible = shown
            self._paint()

    def _marked(self) -> np.ndarray:
        return time.monotonic() - self._seen < HOLD_S

    def _paint(self) -> None:
        for joint, marks in enumerate(self._marked()):
            colour = self._colours[int(np.argmax(marks))] if marks.any() else None
            if colour != self._painted[joint]:
                self._painted[joint] = colour
                self._robot.paint(self._pose.bodies[joint], colour)

    def tell(self) -> None:
        """The words, numbers and plots beside it."""
        self._text.content = self._words()
        if not self._past:
            return
        times = np.array([t for t, _ in self._past])
        values = np.array([v for _, v in self._past])
        for plot, lines in zip(self._plots, self._lines, strict=True):
            plot.data = (times - times[-1], *values[:, lines].T)

    def _words(self) -> str:
        setup, frame = self._setup, self._frame
        silent_s = time.monotonic() - self._came
        if frame is None:
            return _table([("phase", "nothing yet")])
        phase = setup.phases[int(frame["phase"])]
        if silent_s > SILENT_S:
            phase += f" <b style='color:#b91c1c'>(silent for {silent_s:.0f} s)</b>"
        rows = [("phase", phase)]
        rows += [
            (html.escape(name), html.escape(form.format(value)))
            for (name, form), value in zip(setup.figures, frame["figures"], strict=True)
        ]
        marked = self._marked()
        for mark, (name, colour) in enumerate(setup.marks):
            square = f"<span style='color:{colour}'>&#9632;</span> {html.escape(name)}"
            joints = [setup.joints[i] for i in np.flatnonzero(marked[:, mark])]
            few = ", ".join(map(html.escape, joints[:3])) + (f" and {len(joints) - 3} more" if joints[3:] else "")
            rows.append((square, few or "-"))
        return _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td style='color:#6b7280;padding-right:1em;white-space:nowrap;vertical-align:top'>{name}</td>"
        f"<td style='font-variant-numeric:tabular-nums'>{value}</td></tr>"
        for name, value in rows
    )
    return f"<table style='font-size:0.85em;line-height:1.45;margin:0 0.75em'>{cells}</table>"


def _setup(link: socket.socket) -> Setup:
    got = b""
    while not got.endswith(b"\n"):
        more = link.recv(65536)
        if not more:
            os._exit(0)  # nobody wants it any more
        got += more
    return Setup.from_line(got)


def _serve(link: socket.socket, newest: Newest, page: Page, server: Any) -> None:
    """Show what comes until the other end closes."""
    told, looking = 0.0, 0
    while True:
        frame = None
        if select.select([link], [], [], LOOK_S)[0]:
            data = link.recv(2**20)
            if not data:
                return
            frame = newest.of(data)
            if frame is not None:
                page.take(frame)
        before, looking = looking, len(server.get_clients())
        if looking and (frame is not None or looking != before):
            page.draw()
        if looking and time.monotonic() - told > TEXT_S:
            told = time.monotonic()
            page.tell()


def main() -> None:
    """The process. It is less urgent than whatever it tells of."""
    link = socket.socket(fileno=int(sys.argv[1]))
    os.nice(10)
    with contextlib.suppress(OSError):
        setup = _setup(link)
        try:
            with scene.page(setup.title, setup.port) as server:
                page = Page(server, setup)
                link.sendall(json.dumps({"address": scene.address(server)}).encode())
                _serve(link, Newest(setup), page, server)
        except Exception as error:
            problem = one_line("view", error) or f"{type(error).__name__}: {error}"
            link.sendall(json.dumps({"problem": problem[:2000]}).encode())
    os._exit(0)  # viser's threads may still be busy with a browser that is gone


if __name__ == "__main__":
    main()
