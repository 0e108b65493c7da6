"""Renders recorded motion to a video file, where headless OpenGL works.

MuJoCo chooses its OpenGL when it is first imported, and a broken driver can end the process, so the
drawing happens in a process of its own: `render` starts it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ksim.errors import KsimError
from toolkit.files import atomic_path

BACKENDS = ("egl", "osmesa")
REMEDY = "no headless OpenGL; install it with: apt-get install libegl1 libosmesa6 (any one of them will do)"
# Small, and without shadows: software OpenGL takes 0.2 s for a large frame with them.
FPS, WIDTH, HEIGHT = 20, 480, 360


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


def render(path: str | Path, robot: str, qpos: np.ndarray, dt_s: float, force_w: np.ndarray | None = None) -> bool:
    """Write a video of `qpos` (T, nq) sampled every `dt_s`, pushes (T, 3) drawn as arrows.

    Returns:
        Whether it was written: false where headless OpenGL does not work.

    Raises:
        KsimError: the drawing failed.
    """
    backend = headless_backend()
    if backend is None:
        return False
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as part:
        data = Path(folder) / "motion.npz"
        force = np.zeros((len(qpos), 3)) if force_w is None else force_w
        np.savez(data, qpos=qpos, force=force, dt=dt_s)
        done = subprocess.run(
            [sys.executable, "-m", "ksim.video", str(robot), str(data), str(part)],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise KsimError(f"{path}: drawing with {backend} failed: {lines[-1]}")
    return True


def _arrow(mujoco: Any, scene: Any, start: np.ndarray, end: np.ndarray) -> None:
    if scene.ngeom >= scene.maxgeom:
        return
    geom = scene.geoms[scene.ngeom]
    colour = np.array([0.9, 0.25, 0.1, 1.0], np.float32)
    mujoco.mjv_initGeom(geom, mujoco.mjtGeom.mjGEOM_ARROW, np.zeros(3), np.zeros(3), np.zeros(9), colour)
    mujoco.mjv_connector(geom, mujoco.mjtGeom.mjGEOM_ARROW, 0.02, start, end)
    scene.ngeom += 1


def _draw(robot: str, data_path: str, out: str) -> None:
    import imageio_ffmpeg

    from robots.model import build_model

    mujoco: Any = importlib.import_module("mujoco")
    built = build_model(robot, fresh=True)  # its picture gets a size
    saved = np.load(data_path)
    qpos, force, dt = saved["qpos"], saved["force"], float(saved["dt"])
    model, data = built.model, mujoco.MjData(built.model)
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    camera = mujoco.MjvCamera()
    camera.distance, camera.azimuth, camera.elevation = 2.6, 50.0, -12.0
    writer = imageio_ffmpeg.write_frames(
        out, (WIDTH, HEIGHT), fps=FPS, codec="libx264", quality=7, output_params=["-f", "mp4"]
    )
    writer.send(None)
    base = built.base_body if built.base_body >= 0 else int(built.bodies[0])
    frames = np.round(np.arange(0, len(qpos) * dt, 1.0 / FPS) / dt).astype(int)
    for i in frames[frames < len(qpos)]:
        data.qpos[:] = qpos[i]
        mujoco.mj_forward(model, data)
        follow = data.xpos[base]
        camera.lookat[:] = [follow[0], follow[1], 0.65]
        renderer.update_scene(data, camera)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        if np.linalg.norm(force[i]) > 1.0:
            end = data.xipos[built.push_body].copy()
            _arrow(mujoco, renderer.scene, end - 0.01 * force[i], end)
        writer.send(np.ascontiguousarray(renderer.render()))
    writer.close()


if __name__ == "__main__":
    _draw(*sys.argv[1:4])
