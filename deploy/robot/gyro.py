"""Is the gyro's unit and frame the orientation's?"""

from __future__ import annotations

import math

import numpy as np

from deploy.robot.state import RobotState
from robots.rotation import rotvec_between

GYRO_UNITS = {"deg/s": math.pi / 180.0, "rad/s": 1.0}


class GyroCheck:
    """Verifies the gyro's unit and frame: integrates it against the change of orientation.

    Feed it readings; as soon as there was enough motion it has a verdict. The regression of the
    orientation's change on the integrated gyro has slope 1 when the unit is right, 57.3 when the server
    speaks rad/s and deg/s was set, 1/57.3 the other way round, and is negative when the frames disagree.

    Args:
        gyro_unit: the unit that was set, for the message.
        motion_rad: path length of the orientation that is enough to judge by [rad].
    """

    def __init__(self, gyro_unit: str, motion_rad: float = 0.15) -> None:
        self._unit = gyro_unit
        self._enough = motion_rad
        self._last: RobotState | None = None
        self._qq = self._qg = self._gg = self.motion_rad = 0.0
        self.samples = 0

    def add(self, state: RobotState) -> None:
        """One more reading; one that repeats the last is left out."""
        last = self._last
        if last is not None and last.same_reading(state):
            return
        self._last = state
        if last is None:
            return
        dt = state.time_s - last.time_s
        if not 0.0 < dt < 0.2:
            return
        turned = rotvec_between(last.quat_wxyz, state.quat_wxyz)
        gyro = 0.5 * (last.gyro_b + state.gyro_b) * dt
        self._qq += float(turned @ turned)
        self._qg += float(turned @ gyro)
        self._gg += float(gyro @ gyro)
        self.motion_rad += float(np.linalg.norm(turned))
        self.samples += 1

    @property
    def slope(self) -> float:
        """Orientation's change over integrated gyro; NaN without any."""
        return self._qg / self._gg if self._gg > 0 else math.nan

    @property
    def correlation(self) -> float:
        """Of the two, from -1 to 1; 0 without motion."""
        scale = math.sqrt(self._qq * self._gg)
        return self._qg / scale if scale > 0 else 0.0

    @property
    def verdict(self) -> str:
        """One of "ok", "wrong" and "not enough motion"."""
        if self.samples < 8 or self.motion_rad < self._enough or abs(self.correlation) < 0.8:
            return "not enough motion"
        return "ok" if 0.2 < self.slope < 5.0 else "wrong"

    @property
    def message(self) -> str:
        """The verdict as one line."""
        figures = f"{self.motion_rad:.2f} rad of motion"
        if math.isfinite(self.slope):
            figures = f"orientation over gyro {self.slope:.3g}, correlation {self.correlation:.2f}, {figures}"
        if self.verdict != "wrong":
            return f"gyro: {self.verdict} ({figures}, unit set to {self._unit})"
        if self.slope < 0:
            return f"gyro: it turns against the orientation ({figures}); its frame or the quaternion's is another"
        other = next(unit for unit in GYRO_UNITS if unit != self._unit)
        return f"gyro: {self._unit} is the wrong unit ({figures}); try --gyro-unit {other}"
