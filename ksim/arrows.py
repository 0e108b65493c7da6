"""The arrows of a recording: command, velocity, pushes and contact forces, in the world [m].

Their lengths: a velocity of 1 m/s is 1 m, so that a command of 0.5 m/s forward is an arrow of 0.5 m along the heading.
A force of 100 N on the robot is 1 m. A foot that carries the whole robot has one of 0.5 m.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ksim.recording import Recording

METRES_PER_M_S = 1.0
METRES_PER_N = 0.01
METRES_PER_WEIGHT = 0.5
# Shorter arrows are not drawn.
SHORTEST_M = 0.02
# A kick changes the velocity at once; its arrow stays for so long [s].
KICK_SHOWN_S = 0.3
# The command's arrow stands so far above the robot, and the velocity's so far below that [m].
ABOVE_M, BELOW_M = 0.16, 0.08

# A contact's arrow stands so far outside its foot [m].
BESIDE_M = 0.12

# Red, green and blue of each kind of arrow.
COLOURS = {
    "command": (0.15, 0.75, 0.30),
    "velocity": (0.20, 0.50, 0.95),
    "push": (0.92, 0.25, 0.10),
    "contact": (0.95, 0.62, 0.00),
}


class Arrows(NamedTuple):
    """`A` arrows in each of T rows; one whose end is its start is not there.

    Attributes:
        start: their tails [m], (T, A, 3).
        end: their heads [m], (T, A, 3).
        kinds: what each shows, of COLOURS, (A,).
    """

    start: np.ndarray
    end: np.ndarray
    kinds: tuple[str, ...]


def _fading(kick: np.ndarray, rows: int) -> np.ndarray:
    """Each kick for some rows, until another comes, (T, 3)."""
    out, left = kick.copy(), 0
    for t in range(len(kick)):
        if np.any(kick[t]):
            left = rows
        elif left > 1 and t > 0:
            left -= 1
            out[t] = out[t - 1]
    return out


def _outwards(feet: np.ndarray) -> np.ndarray:
    """From the middle of the feet (T, feet, 3) to beside each, horizontally, BESIDE_M long."""
    away = (feet - feet.mean(axis=1, keepdims=True)) * np.asarray([1.0, 1.0, 0.0])
    return BESIDE_M * away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-6)


def arrows(recording: Recording) -> Arrows:
    """The arrows of a recording.

    Command and velocity stand above the robot, horizontally: the command in the frame of the base's heading, the
    velocity as it is. A push ends where it acts. A contact force stands beside its foot, as the
    leg would hide it, and points up.
    """
    r = recording
    flat = np.zeros((len(r), 3))
    ahead, aside = r.command("xvel", "vx"), r.command("yvel", "vy")
    c, s = np.cos(r.heading), np.sin(r.heading)
    wanted = np.stack([c * ahead - s * aside, s * ahead + c * aside, flat[:, 0]], axis=-1)
    over = r.base_position + np.asarray([0.0, 0.0, r.clearance_m + ABOVE_M])
    under = over - np.asarray([0.0, 0.0, BELOW_M])
    moving = r.base_velocity_w * np.asarray([1.0, 1.0, 0.0])
    kick = METRES_PER_M_S * _fading(r.kick_w, max(1, round(KICK_SHOWN_S / r.dt_s)))
    push = METRES_PER_N * r.push_w
    starts = [over, under, r.push_point - push, r.push_point - kick]
    ends = [over + METRES_PER_M_S * wanted, under + METRES_PER_M_S * moving, r.push_point, r.push_point]
    kinds = ["command", "velocity", "push", "push"]
    outwards = _outwards(r.foot_position)
    for foot in range(r.foot_force.shape[1]):
        at = r.foot_position[:, foot] + outwards[:, foot]
        up = np.zeros_like(at)
        up[:, 2] = METRES_PER_WEIGHT * r.foot_force[:, foot] / r.weight_n
        starts.append(at)
        ends.append(at + up)
        kinds.append("contact")
    start, end = np.stack(starts, axis=1), np.stack(ends, axis=1)
    short = np.linalg.norm(end - start, axis=-1) < SHORTEST_M
    return Arrows(start=start, end=np.where(short[..., None], start, end), kinds=tuple(kinds))
