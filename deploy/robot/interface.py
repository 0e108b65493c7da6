"""What the control loop, damping, watchdog and check need of a robot. A KOS server is one: deploy/robot/kos.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deploy.robot.safety import Gains, SafeTarget
from deploy.robot.state import RobotState
from robots.spec import RobotSpec


class Robot(Protocol):
    """A robot in SI, its joints in the order of its specification.

    Every call has a deadline and may raise `ConnectionLost`; what the robot says against going on is a `FaultError`.
    """

    spec: RobotSpec
    address: str

    @property
    def gyro_unit(self) -> str:
        """What its gyro speaks on the wire, for messages."""
        ...

    @property
    def settle_s(self) -> float:
        """For how long after gains were set a target moves nothing [s]."""
        ...

    @property
    def connected(self) -> bool:
        """Whether there is a connection; the robot behind it may be gone."""
        ...

    async def connect(self, timeout_s: float = 3.0) -> None:
        """Reach the robot."""
        ...

    async def close(self) -> None:
        """Let go of the connection; the robot keeps the last gains and target that it was given."""
        ...

    async def read(self, timeout_s: float = 0.5) -> RobotState:
        """Joints and IMU now."""
        ...

    async def command(self, target: SafeTarget, timeout_s: float = 0.5) -> float:
        """Send a target to every joint; how long the acknowledgement took [s]."""
        ...

    async def configure(self, gains: Gains, timeout_s: float = 0.5) -> None:
        """Set kp, kd, torque limit and torque of every joint."""
        ...

    async def configure_each(self, gains: Gains, joints: Sequence[str], timeout_s: float = 0.5) -> dict[str, str]:
        """Set them of some joints; those that did not acknowledge, and why."""
        ...

    async def gain_differences(self, gains: Gains, timeout_s: float = 0.5) -> list[str]:
        """Where the robot reports other gains; empty where it reports none."""
        ...

    def gains_seen(self, gains: Gains) -> list[str]:
        """The same of the last reading; asks the robot nothing."""
        ...

    async def stiff(self, timeout_s: float = 0.5) -> dict[str, str]:
        """Joints that report a stiffness, and what they say."""
        ...

    async def step_simulation(self, duration_s: float, timeout_s: float = 10.0) -> None:
        """Advance a simulator that runs in lock step."""
        ...


@dataclass(frozen=True, kw_only=True)
class JointSeen:
    """What a robot tells of one joint, taken at its word; None is what it does not tell.

    Attributes:
        name: of the joint.
        id: of its actuator.
        there: it answered.
        online: it says that it is.
        faults: what it reports.
        position: [rad].
        velocity: [rad/s].
        temperature: of the motor [Celsius].
        voltage: [V].
        kp: [N m/rad].
        kd: [N m s/rad].
        max_torque: [N m].
        torque_enabled: whether it may push.
        lower: its own least position [rad].
        upper: its own greatest position [rad].
    """

    name: str
    id: int
    there: bool = True
    online: bool = True
    faults: tuple[str, ...] = ()
    position: float | None = None
    velocity: float | None = None
    temperature: float | None = None
    voltage: float | None = None
    kp: float | None = None
    kd: float | None = None
    max_torque: float | None = None
    torque_enabled: bool | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One look at a robot that raises no fault: what does not fit is for the one who looks to say.

    Attributes:
        position: (joints,) [rad]; NaN where nothing is told.
        velocity: (joints,) [rad/s], likewise.
        quat_wxyz: as it comes, (4,); NaN where the call failed.
        gyro_b: (3,) [rad/s] by the unit that was set, likewise.
        accel_b: (3,) [m/s^2], likewise.
        time_s: monotonic clock when the answer was complete [s].
        round_trip_s: from the question to the complete answer [s].
        errors: what the calls that failed said.
    """

    position: np.ndarray
    velocity: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    time_s: float
    round_trip_s: float
    errors: tuple[str, ...] = ()
