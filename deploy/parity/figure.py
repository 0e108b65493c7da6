"""The robot as a picture: its links, and each joint a circle in the colour and size of its error.

Made from whatever model the robot is compiled from, seen along the axis that shows most of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from deploy.parity.words import short
from robots.model import BuiltModel, build_model

WIDTH, HEIGHT, EDGE = 420, 440, 12
LABEL_PX, LINE_PX, LABELS_MAX = 7.9, 14, 5
LABEL_STEP = 3 * LINE_PX + 6
OUTLINE = 20
# Shares of the bound up to which a joint has a colour; the last is of all beyond. The colours are in toolkit/page.py.
STEPS = ((0.5, "to half of it"), (1.0, "to the bound"), (2.0, "to twice"), (4.0, "to four times"), (math.inf, "beyond"))
VIEWS = {"x": ((0, 1, 0), (0, 0, 1)), "y": ((1, 0, 0), (0, 0, 1)), "z": ((0, -1, 0), (1, 0, 0))}


def step(share: float) -> int:
    """Which colour a share of the bound has."""
    return next(k for k, (top, _) in enumerate(STEPS) if share <= top)


def _support(kind: int, size: np.ndarray, vertices: np.ndarray | None, direction: np.ndarray) -> np.ndarray:
    """The point of a geom that is farthest in a direction, both in the geom's own frame."""
    x, y, z = direction
    if vertices is not None:
        return vertices[int(np.argmax(vertices @ direction))]
    flat = np.array([x, y, 0.0]) / max(math.hypot(x, y), 1e-9)
    match kind:
        case 2:  # sphere
            return size[0] * direction
        case 3:  # capsule
            return size[0] * direction + np.array([0, 0, math.copysign(size[1], z)])
        case 4:  # ellipsoid
            scaled = size * direction
            return size * scaled / max(float(np.linalg.norm(scaled)), 1e-12)
        case 5:  # cylinder
            return size[0] * flat + np.array([0, 0, math.copysign(size[1], z)])
        case 6:  # box
            return np.copysign(size, direction)
    return np.zeros(3)


def _outlines(built: BuiltModel, data: Any, axes: np.ndarray) -> list[np.ndarray]:
    """The robot's shapes as seen, convex: (points, 2) each."""
    model, out = built.model, []
    turn = np.linspace(0, 2 * math.pi, OUTLINE, endpoint=False)
    seen = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ axes  # directions in the world
    for geom in np.flatnonzero(np.isin(model.geom_bodyid, built.bodies)):
        matrix, kind = data.geom_xmat[geom].reshape(3, 3), int(model.geom_type[geom])
        vertices = None
        if kind == 7:  # mesh
            first, count = model.mesh_vertadr[model.geom_dataid[geom]], model.mesh_vertnum[model.geom_dataid[geom]]
            vertices = model.mesh_vert[first : first + count]
        points = [_support(kind, model.geom_size[geom], vertices, matrix.T @ way) for way in seen]
        out.append((data.geom_xpos[geom] + np.asarray(points) @ matrix.T) @ axes.T)
    return out


def _links(built: BuiltModel, data: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """From each joint's parent to it, and from the last ones to the farthest shape they move: ends in the world."""
    model, out = built.model, []
    ids = [model.joint(name).id for name in built.spec.joint_names]
    by_body: dict[int, list[int]] = {}
    for j in sorted(ids):
        by_body.setdefault(int(model.jnt_bodyid[j]), []).append(j)

    def above(body: int) -> int | None:
        """The last joint of the nearest body above that has one."""
        while body > 0:
            if body in by_body:
                return by_body[body][-1]
            body = int(model.body_parentid[body])
        return None

    ends = set(ids)
    for body, joints in by_body.items():
        parent = int(model.body_parentid[body])
        for before, j in zip([above(parent), *joints[:-1]], joints, strict=True):
            if before is not None:
                out.append((data.xanchor[before], data.xanchor[j]))
                ends.discard(before)
            elif parent > 0:
                out.append((data.xpos[parent], data.xanchor[j]))
    for j in ends:
        shapes = [g for g in range(model.ngeom) if above(int(model.geom_bodyid[g])) == j]
        if shapes:
            start = data.xanchor[j]
            out.append(
                (start, max((data.geom_xpos[g] for g in shapes), key=lambda p: float(np.linalg.norm(p - start))))
            )
    return out


def _apart(places: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Circles pushed off each other, (joints, 2)."""
    places = places.copy()
    for _ in range(40):
        for a in range(len(places)):
            for b in range(a):
                gap = places[a] - places[b]
                far, want = float(np.hypot(*gap)), float(radii[a] + radii[b] + 2)
                if far < want:
                    way = gap / far if far > 1e-6 else np.array([0.6, 0.8])
                    places[a] += 0.5 * (want - far) * way
                    places[b] -= 0.5 * (want - far) * way
    return places


def _halves(name: str) -> tuple[str, str]:
    """A joint's name on two lines, broken where a word ends."""
    text = short(name)
    ends = [k + 1 for k, letter in enumerate(text) if letter in "_-. "]
    if len(text) <= 14 or not ends:
        return text, ""
    at = min(ends, key=lambda k: max(k, len(text) - k))
    return text[:at], text[at:]


def _labels(named: Sequence[tuple[str, float]], places: Mapping[str, np.ndarray], high: float) -> list[str]:
    """The worst joints by name, at the side that they are on, with a line to each."""
    sides: dict[bool, list[tuple[float, str, float]]] = {False: [], True: []}
    for name, share in named:
        x, y = places[name]
        sides[bool(x > WIDTH / 2)].append((float(y), name, share))
    out = []
    for right, rows in sides.items():
        rows.sort()
        ys: list[float] = []
        for y, _, _ in rows:
            ys.append(max(y, ys[-1] + LABEL_STEP if ys else 10.0))
        over = max(0.0, ys[-1] - (high - 2.6 * LINE_PX)) if ys else 0.0
        for at, (_, name, share) in zip(ys, rows, strict=True):
            y, x, anchor = at - over, WIDTH - 2 if right else 2, "end" if right else "start"
            first, second = _halves(name)
            reach = x + (-1 if right else 1) * (LABEL_PX * len(first) + 4)
            cx, cy = places[name]
            lines = [(first, "name"), (second, "name"), (f"{share:.2g} × bound", "tick")]
            out.append(f'<line class="lead" x1="{reach:.1f}" y1="{y:.1f}" x2="{cx:.1f}" y2="{cy:.1f}"/>')
            for k, (text, kind) in enumerate(row for row in lines if row[0]):
                at_y = f"{y + 4 + k * LINE_PX:.1f}"
                out.append(f'<text class="{kind}" x="{x}" y="{at_y}" text-anchor="{anchor}">{escape(text)}</text>')
    return out


def _view(points: np.ndarray) -> tuple[str, np.ndarray]:
    """The axis to look along so that most is seen, and what is then right and up, (2, 3)."""
    views = {name: np.asarray(axes, dtype=float) for name, axes in VIEWS.items()}
    return max(views.items(), key=lambda view: float(np.prod(np.ptp(points @ view[1].T, axis=0) + 1e-3)))


def robot_figure(robot: str | Path, shares: Mapping[str, float], where: Mapping[str, str] | None = None) -> str:
    """The picture as HTML.

    Args:
        robot: name of a built-in robot, or a folder.
        shares: by joint, its error as a share of what is good; a joint that is not there is grey.
        where: by joint, a word on which error that is.

    Raises:
        RobotLoadError: there is no such robot, or it does not compile.
    """
    import mujoco

    built = build_model(robot)
    library: Any = mujoco
    data = library.MjData(built.model)
    data.qpos[:] = built.home_qpos
    library.mj_kinematics(built.model, data)
    names = built.spec.joint_names
    anchors = np.asarray([data.xanchor[built.model.joint(name).id] for name in names])
    links = _links(built, data)
    points = np.concatenate([anchors, *(np.asarray(link) for link in links)])
    along, axes = _view(points)
    outlines = _outlines(built, data, axes)

    known = {n: shares[n] for n in names if n in shares and math.isfinite(shares[n])}
    order = sorted(known, key=lambda n: -known[n])
    named = [(n, known[n]) for n in order if known[n] > 1.0][:LABELS_MAX] or [(n, known[n]) for n in order[:2]]
    margin = EDGE + LABEL_PX * max((len(half) for n, _ in named for half in _halves(n)), default=0)

    flat = np.concatenate([points @ axes.T, *outlines])
    low, high = flat.min(axis=0), flat.max(axis=0)
    room = np.array([WIDTH - 2 * margin, HEIGHT - 2 * EDGE])
    scale = float(min(room / np.maximum(high - low, 1e-6)))
    tall = scale * float(high[1] - low[1]) + 2 * EDGE
    tall = max(tall, 40.0 + LABEL_STEP * len(named))

    def place(at: np.ndarray) -> np.ndarray:
        middle = at - 0.5 * (low + high)
        return np.stack([WIDTH / 2 + scale * middle[..., 0], tall / 2 - scale * middle[..., 1]], axis=-1)

    out = [f'<svg class="robot" viewBox="0 0 {WIDTH} {tall:.0f}" role="img">']
    out.append(f"<title>{escape(built.spec.name)} in its home pose, seen along its {along} axis</title>")
    for outline in outlines:
        text = "L".join(f"{x:.1f} {y:.1f}" for x, y in place(outline))
        out.append(f'<path class="shape" d="M{text}Z"/>')
    for a, b in links:
        (x1, y1), (x2, y2) = place(np.asarray(a) @ axes.T), place(np.asarray(b) @ axes.T)
        out.append(f'<line class="limb" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    radii = np.asarray([5.0 + (1.5 * step(known[n]) if n in known else 0.0) for n in names])
    spots = dict(zip(names, _apart(place(anchors @ axes.T), radii), strict=True))
    out += _labels(named, spots, tall)
    for n, radius in sorted(zip(names, radii, strict=True), key=lambda pair: known.get(pair[0], -1.0)):
        told = "not told" if n not in known else f"{known[n]:.2g} times the bound"
        said = f"{short(n)}: {told}{f' ({where[n]})' if where and n in where else ''}"
        colour = f"h{step(known[n])}" if n in known else "h-"
        out.append(
            f'<circle class="joint" style="fill:var(--{colour})" cx="{spots[n][0]:.1f}" cy="{spots[n][1]:.1f}" '
            f'r="{radius:g}"><title>{escape(said)}</title></circle>'
        )
    out.append("</svg>")
    keys = "".join(
        f'<span><svg class="key" viewBox="0 0 22 8"><rect width="22" height="8" rx="4" style="fill:var(--h{k})"/></svg>'
        f"{escape(text)}</span>"
        for k, (_, text) in enumerate(STEPS)
    )
    about = "<span>Error of a joint, as a share of what is good:</span>"
    return f'{"".join(out)}<div class="legend">{about}{keys}</div>'
