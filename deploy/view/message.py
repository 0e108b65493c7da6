"""What a live view is told: once what it shows, as a line of JSON, then frames of one size."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a page shows.

    Attributes:
        title: of the page.
        robot: name of a built-in robot, or a folder.
        port: where the page listens, 0 for any.
        joints: names, in the order of the frames.
        qpos: size of MuJoCo's qpos where all of it is known; 0 where joints and IMU are all that is.
        phases: names of the phases, in the order of their numbers.
        marks: what can be said of a joint, and its colour as #rrggbb; at most 16.
        figures: name and format of each number, in order, e.g. ("tilt", "{:.2f} rad").
        plots: title and names of figures of each plot over time.
    """

    title: str
    robot: str
    port: int
    joints: tuple[str, ...]
    phases: tuple[str, ...]
    marks: tuple[tuple[str, str], ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    plots: tuple[tuple[str, tuple[str, ...]], ...] = ()
    qpos: int = 0

    @property
    def frame(self) -> np.dtype:
        """One frame.

        time_s: of the sender's clock [s]. phase: its number. position, target: (joints,) [rad]. quat_wxyz: of the IMU.
        qpos: (nq,) or empty. marks: a bit for each mark, (joints,). figures: the numbers.
        """
        joints = (len(self.joints),)
        return np.dtype(
            [
                ("time_s", "<f8"),
                ("phase", "<u1"),
                ("position", "<f8", joints),
                ("target", "<f8", joints),
                ("quat_wxyz", "<f8", (4,)),
                ("qpos", "<f8", (self.qpos,)),
                ("marks", "<u2", joints),
                ("figures", "<f8", (len(self.figures),)),
            ]
        )

    def to_line(self) -> bytes:
        """A line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """What `to_line` wrote."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(**{name: tuples(value) for name, value in json.loads(line).items()})


class Newest:
    """Takes the newest whole frame out of a stream of bytes."""

    def __init__(self, setup: Setup) -> None:
        self._type, self._rest = setup.frame, b""

    def of(self, data: bytes) -> np.void | None:
        """The newest frame that `data` completes; None where it completes none."""
        data, size = self._rest + data, self._type.itemsize
        whole = len(data) // size * size
        self._rest = data[whole:]
        return np.frombuffer(data[whole - size : whole], self._type)[0] if whole else None
