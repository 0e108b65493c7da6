"""What a twin shows in a live view: what is true, not what its sensors tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from deploy.twin.services import Services
from deploy.view.link import View
from deploy.view.message import Setup
from robots.rotation import GRAVITY_M_S2, gravity_in_frame

PHASES = ("free", "held", "paused")
LIMP, FULL = 1, 2
MARKS = (("no stiffness", "#6b7280"), ("at its torque limit", "#e4572e"))
FIGURES = (
    ("simulated time", "{:.2f} s"),
    ("tilt", "{:.2f} rad"),
    ("base height", "{:.3f} m"),
    ("farthest from target", "{:.2f} rad"),
    ("push", "{:.0f} N"),
    ("joints with torque", "{:.0f}"),
    ("commands lost", "{:.0f}"),
    ("behind the clock", "{:.1f} s"),
)
PLOTS = (("[rad]", ("tilt", "farthest from target")), ("base height [m]", ("base height",)))


class TwinView:
    """Looks at a twin at most 25 times a second.

    Args:
        view: the page.
        services: the twin's.
    """

    def __init__(self, view: View, services: Services) -> None:
        self.view, self._services = view, services

    @classmethod
    def start(cls, robot: str | Path, services: Services, port: int, say: Callable[[str], None]) -> Self | None:
        """Serve the page on a port, 0 for any; None where there is no page, and `say` is told why."""
        spec = services.plant.spec
        setup = Setup(
            title=f"ksim twin: {spec.name}",
            robot=str(robot),
            port=port,
            joints=spec.joint_names,
            phases=PHASES,
            marks=MARKS,
            figures=FIGURES,
            plots=PLOTS,
            qpos=services.plant.model.nq,
        )
        view = View.start(setup, say)
        return None if view is None else cls(view, services)

    def look(self) -> None:
        """Send what is true now, when it is time."""
        if not self.view.due():
            return
        services, plant = self._services, self._services.plant
        built, data = plant.built, plant.data
        quat = data.sensordata[built.sensors["imu_quat"]]
        position, target = data.qpos[built.qpos_ids], plant.target
        down = -gravity_in_frame(quat)[2] / GRAVITY_M_S2
        self.view.send(
            time_s=plant.time_s,
            phase=2 if services.paused else int(plant.held),
            position=position,
            target=target,
            quat_wxyz=quat,
            qpos=data.qpos,
            marks=LIMP * plant.limp + FULL * plant.at_limit,
            figures=(
                plant.time_s,
                np.arccos(np.clip(down, -1.0, 1.0)),
                data.xpos[built.imu_body][2],
                np.abs(target - position).max(),
                np.linalg.norm(data.xfrc_applied[built.push_body, :3]),
                plant.enabled.sum(),
                plant.commands_lost,
                services.slipped_s,
            ),
        )
