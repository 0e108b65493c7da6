"""Renders a recorded episode to a video file, where headless OpenGL works.

MuJoCo chooses its OpenGL when it is first imported, and a broken driver can end the process, so the
drawing happens in a process of its own: `render` starts it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ksim.arrows import COLOURS, Arrows, arrows
from ksim.errors import KsimError
from ksim.figures import Figures, caption
from ksim.recording import Recording
from toolkit.files import atomic_path

BACKENDS = ("egl", "osmesa")
REMEDY = "no headless OpenGL; install it with: apt-get install libegl1 libosmesa6 (any one of them will do)"
# Small, and without shadows: software OpenGL takes 0.2 s for a large frame with them. x264 wants multiples of 16.
FPS, WIDTH, HEIGHT = 20, 960, 544
# What the plots have of the width.
PLOTS = 400
ARROW_RADIUS_M = 0.014


def headless_backend() -> str | None:
    """The OpenGL backend that can draw here without a screen, or None."""
    probe = (
        "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); "
        "mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), 0)"
    )
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else BACKENDS:
        done = subprocess.run(
            [sys.executable, "-c", probe],
            env={**os.environ, "MUJOCO_GL": backend},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        if done.returncode == 0:
            return backend
    return None


def render(path: str | Path, recording: Recording) -> bool:
    """Write a video of a recording, with its arrows and plots.

    Returns:
        Whether it was written: false where headless OpenGL does not work.

    Raises:
        KsimError: the drawing failed.
    """
    backend = headless_backend()
    if backend is None:
        return False
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as part:
        data = Path(folder) / "recording.npz"
        recording.save(data)
        done = subprocess.run(
            [sys.executable, "-m", "ksim.video", str(data), str(part)],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise KsimError(f"{path}: drawing with {backend} failed: {lines[-1]}")
    return True


def add_arrows(mujoco: Any, scene: Any, shown: Arrows, i: int) -> None:
    """Add the arrows of row `i` to a scene of MuJoCo's, as far as it has room."""
    for start, end, kind in zip(shown.start[i], shown.end[i], shown.kinds, strict=True):
        if np.array_equal(start, end) or scene.ngeom >= scene.maxgeom:
            continue
        geom, colour = scene.geoms[scene.ngeom], np.asarray([*COLOURS[kind], 1.0], np.float32)
        mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_ARROW, np.zeros(3), np.zeros(3), np.zeros(9), colour)
        mujoco.mjv_connector(geom, mujoco.mjtGeom.mjGEOM_ARROW, ARROW_RADIUS_M, start, end)
        # seen from any side: light alone would leave the far side of a thin arrow dark
        geom.emission = 0.4
        scene.ngeom += 1


def frames(recording: Recording) -> Iterator[np.ndarray]:
    """Pictures of a recording, FPS a second, (HEIGHT, WIDTH, 3); needs the OpenGL of MUJOCO_GL."""
    from robots.model import build_model

    mujoco: Any = importlib.import_module("mujoco")
    built = build_model(recording.robot, fresh=True)  # its picture gets a size
    model, data = built.model, mujoco.MjData(built.model)
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    model.vis.quality.offsamples = 4
    gl = mujoco.GLContext(WIDTH, HEIGHT)
    gl.make_current()
    try:
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        scene, option = mujoco.MjvScene(model, 2000), mujoco.MjvOption()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            scene.flags[flag] = 0
        camera = mujoco.MjvCamera()
        camera.distance, camera.azimuth, camera.elevation = 2.7, 225.0, -10.0
        # what a twin recorded has neither rewards nor torques: no panels then
        plotted = bool(recording.rewards) or recording.torque_share.size > 0
        view, side = WIDTH - PLOTS * plotted, HEIGHT // 2
        shown, plots = arrows(recording), Figures(mujoco, recording) if plotted else None
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        at = np.round(np.arange(0, recording.length_s, 1.0 / FPS) / recording.dt_s).astype(int)
        for i in at[at < len(recording)]:
            data.qpos[:] = recording.qpos[i]
            mujoco.mj_forward(model, data)
            camera.lookat[:] = [*recording.base_position[i, :2], 0.85 * built.standing_height_m]
            mujoco.mjv_updateScene(model, data, option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
            add_arrows(mujoco, scene, shown, i)
            rect = mujoco.MjrRect(0, 0, view, HEIGHT)
            mujoco.mjr_render(rect, scene, context)
            place = mujoco.mjtGridPos.mjGRID_TOPLEFT
            mujoco.mjr_overlay(mujoco.mjtFont.mjFONT_NORMAL, place, rect, *caption(recording, i), context)
            for k, figure in enumerate(() if plots is None else plots.at(i)):
                mujoco.mjr_figure(mujoco.MjrRect(view, HEIGHT - (k + 1) * side, PLOTS, side), figure, context)
            mujoco.mjr_readPixels(picture, None, mujoco.MjrRect(0, 0, WIDTH, HEIGHT), context)
            yield np.ascontiguousarray(picture[::-1])
    finally:
        gl.free()


def _write(recording: Recording, out: str) -> None:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        out, (WIDTH, HEIGHT), fps=FPS, codec="libx264", quality=7, output_params=["-f", "mp4"]
    )
    writer.send(None)
    try:
        for picture in frames(recording):
            writer.send(picture)
    finally:
        writer.close()  # before an error is told, so that its line is the last


if __name__ == "__main__":
    _write(Recording.load(sys.argv[1]), sys.argv[2])
