"""A robot's MuJoCo model in a browser, drawn by viser on this machine."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

HOST = "127.0.0.1"
# MuJoCo's viewer shows the groups below this one; by custom the others are for contacts.
GROUPS = 3
# MuJoCo's own default of a geom's colour: where a geom has it, its material's counts.
DEFAULT_RGBA = (0.5, 0.5, 0.5, 1.0)
SHADES = ("#1f2937", "#2563eb", "#e4572e", "#1a9a55", "#c2417c", "#7c5cd6")


@contextlib.contextmanager
def page(label: str, port: int) -> Iterator[Any]:
    """A server of viser, for this machine alone.

    Args:
        label: of the page.
        port: 0 for any; the next free one where it is taken.
    """
    viser: Any = importlib.import_module("viser")
    with contextlib.redirect_stdout(io.StringIO()):  # our answer is one line; viser draws a box
        server = viser.ViserServer(HOST, port, label=label, verbose=False)
    # its button for sharing would show the page to everybody, by way of a server elsewhere
    server.gui.configure_theme(show_share_button=False, show_logo=False)
    try:
        yield server
    finally:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its end, too
            server.stop()


def address(server: Any) -> str:
    """Where the page is."""
    return f"http://{HOST}:{server.get_port()}"


def world(server: Any, height_m: float) -> Any:
    """The frame of the world, with light, a floor and a camera for a robot as tall as this; all hangs from it."""
    scene = server.scene
    scene.set_up_direction("+z")
    scene.configure_default_lights()
    server.initial_camera.position = (1.5, 1.35, 1.3 * height_m)
    server.initial_camera.look_at = (0, 0, 0.8 * height_m)
    frame = scene.add_frame("/world", show_axes=False)
    scene.add_grid("/world/floor", width=40.0, height=40.0, cell_size=0.5, section_size=1.0, plane_opacity=0.3)
    return frame


def series(names: Iterable[str]) -> tuple[dict[str, Any], ...]:
    """The lines of a plot over time, as viser wants them."""
    lines = [{"label": n, "stroke": SHADES[k % len(SHADES)], "width": 1.5} for k, n in enumerate(names)]
    return ({"label": "time [s]"}, *lines)


def add_plot(server: Any, title: str, names: Iterable[str], values: tuple[np.ndarray, ...], aspect: float = 1.6) -> Any:
    """A plot over time in the panel.

    Args:
        server: viser's.
        title: above it.
        names: of its lines.
        values: times, then those of each line; its `data` are set in the same way later.
        aspect: width by height.
    """
    return server.gui.add_uplot(
        values,
        series(names),
        title=title,
        scales={"x": {"time": False}, "y": {"auto": True}},
        legend={"show": True},
        aspect=aspect,
    )


def geom_shape(model: Any, geom: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(vertices (V, 3) [m], triangles (F, 3)) of a geom in its own frame; None for a plane or a height field."""
    import mujoco
    import trimesh

    kinds: Any = mujoco.mjtGeom  # pyright: ignore[reportAttributeAccessIssue]
    kind, size = int(model.geom_type[geom]), model.geom_size[geom]
    if kind in (int(kinds.mjGEOM_MESH), int(kinds.mjGEOM_SDF)):
        mesh = int(model.geom_dataid[geom])
        first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        return np.array(model.mesh_vert[first : first + count]), np.array(model.mesh_face[face : face + faces])
    if kind == int(kinds.mjGEOM_BOX):
        shape = trimesh.creation.box(extents=2.0 * size)
    elif kind == int(kinds.mjGEOM_SPHERE):
        shape = trimesh.creation.icosphere(subdivisions=2, radius=float(size[0]))
    elif kind == int(kinds.mjGEOM_ELLIPSOID):
        shape = trimesh.creation.icosphere(subdivisions=2, radius=1.0)
        shape.apply_scale(size)
    elif kind == int(kinds.mjGEOM_CAPSULE):
        shape = trimesh.creation.capsule(height=2.0 * float(size[1]), radius=float(size[0]), count=(16, 16))
    elif kind == int(kinds.mjGEOM_CYLINDER):
        shape = trimesh.creation.cylinder(radius=float(size[0]), height=2.0 * float(size[1]), sections=24)
    else:
        return None
    shape.apply_translation(-shape.bounds.mean(axis=0))  # of a capsule trimesh has the middle elsewhere
    return np.asarray(shape.vertices), np.asarray(shape.faces)


def geom_colour(model: Any, geom: int) -> tuple[tuple[int, int, int], float]:
    """(red, green and blue, 0 to 255; opacity) of a geom, as MuJoCo shows it."""
    rgba, material = np.asarray(model.geom_rgba[geom]), int(model.geom_matid[geom])
    if material >= 0 and np.allclose(rgba, DEFAULT_RGBA):
        rgba = np.asarray(model.mat_rgba[material])
    red, green, blue = (round(255 * float(v)) for v in rgba[:3])
    return (red, green, blue), float(rgba[3])


class Robot:
    """The bodies of a model.

    Args:
        server: viser's.
        model: the model.
        name: of its place in viser's scene.
        bodies: those that are drawn; None for all.
        colour: of all of it, red, green and blue to 255; None for the model's own.
        opacity: of all of it; None for the model's own.
    """

    def __init__(
        self,
        server: Any,
        model: Any,
        name: str,
        *,
        bodies: Iterable[int] | None = None,
        colour: tuple[int, int, int] | None = None,
        opacity: float | None = None,
    ) -> None:
        self._scene, self._model, self._name = server.scene, model, name
        self._colour, self._opacity = colour, opacity
        # body -> its meshes and their own colours
        self._meshes: dict[int, list[tuple[Any, tuple[int, int, int]]]] = {}
        shown = set(map(int, model.geom_bodyid)) & set(map(int, range(model.nbody) if bodies is None else bodies))
        self.frames = {body: self._body(body) for body in sorted(shown)}

    def _body(self, body: int) -> Any:
        model, place = self._model, f"{self._name}/body_{body}"
        frame, self._meshes[body] = self._scene.add_frame(place, show_axes=False), []
        for geom in map(int, np.flatnonzero(model.geom_bodyid == body)):
            shape = geom_shape(model, geom) if model.geom_group[geom] < GROUPS else None
            if shape is None:
                continue
            own, opacity = geom_colour(model, geom)
            own, opacity = self._colour or own, opacity if self._opacity is None else self._opacity
            mesh = self._scene.add_mesh_simple(
                f"{place}/geom_{geom}",
                *shape,
                color=own,
                opacity=None if opacity >= 1.0 else opacity,
                wxyz=model.geom_quat[geom],
                position=model.geom_pos[geom],
            )
            self._meshes[body].append((mesh, own))
        return frame

    def place(self, data: Any) -> None:
        """Put the bodies where MuJoCo's kinematics has them."""
        for body, frame in self.frames.items():
            frame.position, frame.wxyz = data.xpos[body].copy(), data.xquat[body].copy()

    def paint(self, body: int, colour: tuple[int, int, int] | None) -> None:
        """Colour a body; None gives it its own colours back."""
        for mesh, own in self._meshes.get(body, ()):
            mesh.color = colour or own
