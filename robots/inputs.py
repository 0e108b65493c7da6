"""The one table of what a policy may read: training, export and the robot's side look here and nowhere else.

A new input is one row here, and in training the observation that fills it.
Source of names, sizes and units: the kinfer 0.6 contract; the last two rows are of older files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robots.rotation import GRAVITY_M_S2

JOINTS, COMMANDS = "joints", "commands"
# Zero offsets, and what a joint gives way at the end of its travel [rad].
LIMIT_SLACK_RAD = 0.2
# An encoded value of a policy of ours is kept within this, either way.
OBSERVATION_CLIP = 20.0


@dataclass(frozen=True, kw_only=True)
class JointBound:
    """One end of a range that each joint has for itself: `factor * column + margin`.

    Attributes:
        column: field of robots.spec.JointSpec.
        factor: times this.
        margin: and this more, in the input's unit.
    """

    column: str
    factor: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What brings an input to about 1 in use: `(raw / divisor + offset) * scale`, fixed, so that nothing is estimated.

    Attributes:
        scale: the last factor.
        divisor: the first divisor, in the input's unit.
        offset: of each element; empty means 0.
        about_home: the offset is less the home pose.
    """

    scale: float
    divisor: float = 1.0
    offset: tuple[float, ...] = ()
    about_home: bool = False


@dataclass(frozen=True, kw_only=True)
class PolicyInput:
    """One array that a policy may read.

    Attributes:
        name: the .kinfer name.
        size: number of elements, or what there is one of for each: "joints" or "commands".
        unit: of its elements.
        frame: that it is expressed in; empty where that means nothing.
        low: the least value that can be meant.
        high: the greatest.
        slack: what a reading before the first step may lie beyond the values of training, besides a share of their
            span, in the input's unit; None where it is not looked at.
        encoding: of policies of ours; None where they do not read it, or where a command's own range says it.
        reading: attribute of deploy's RobotState; empty where it is not measured.
        ours: every policy of ours reads it, and so every task has an observation of it.
        old: read by files from before kinfer 0.6 alone; no bundle of ours has it.
    """

    name: str
    size: int | str
    unit: str
    frame: str = ""
    low: float | JointBound = -math.inf
    high: float | JointBound = math.inf
    slack: float | None = None
    encoding: Encoding | None = None
    reading: str = ""
    ours: bool = False
    old: bool = False

    def length(self, joints: int, commands: int) -> int:
        """Number of elements for that many joints and commands."""
        return {JOINTS: joints, COMMANDS: commands}.get(self.size, self.size)  # type: ignore[arg-type,return-value]

    @property
    def of_joints(self) -> bool:
        """Whether its elements are the joints, in their order."""
        return self.size == JOINTS

    def range_of(self, robot: Any, commands: Sequence[Any] = ()) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high) for a RobotSpec and CommandSpecs: one number for all elements, or one each."""
        if self.size == COMMANDS:
            return tuple(c.low for c in commands), tuple(c.high for c in commands)

        def end(bound: float | JointBound) -> tuple[float, ...]:
            if isinstance(bound, JointBound):
                return tuple(bound.factor * v + bound.margin for v in robot.column(bound.column))
            return (bound,)

        return end(self.low), end(self.high)


# In the order in which they are listed everywhere.
POLICY_INPUTS = (
    PolicyInput(
        name="joint_angles",
        size=JOINTS,
        unit="rad",
        low=JointBound(column="lower_rad", margin=-LIMIT_SLACK_RAD),
        high=JointBound(column="upper_rad", margin=LIMIT_SLACK_RAD),
        # zero offsets of 3 degrees (0.05 rad, usual on the K-Bot) and a sag of as much on a gantry
        slack=0.1,
        encoding=Encoding(scale=4.0, about_home=True),
        reading="joint_position",
        ours=True,
    ),
    PolicyInput(
        name="joint_angular_velocities",
        size=JOINTS,
        unit="rad/s",
        low=JointBound(column="velocity_max_rad_s", factor=-1.5),
        high=JointBound(column="velocity_max_rad_s", factor=1.5),
        slack=1.0,  # a robot that swings on its gantry
        encoding=Encoding(scale=0.1),
        reading="joint_velocity",
        ours=True,
    ),
    PolicyInput(
        name="projected_gravity",
        size=3,
        unit="m/s^2",
        frame="imu",
        low=-9.82,
        high=9.82,
        slack=1.0,  # 6 degrees of tilt
        # its scale decides how fast balance is learned: a lean of 0.05 rad must already move the motors
        encoding=Encoding(scale=6.0, divisor=GRAVITY_M_S2, offset=(0.0, 0.0, 1.0)),
        reading="projected_gravity",
        ours=True,
    ),
    PolicyInput(
        name="accelerometer",
        size=3,
        unit="m/s^2",
        frame="imu",
        low=-160.0,
        high=160.0,
        slack=5.0,
        encoding=Encoding(scale=1.0, divisor=GRAVITY_M_S2),
        reading="accel_b",
    ),
    PolicyInput(
        name="gyroscope",
        size=3,
        unit="rad/s",
        frame="imu",
        low=-35.0,
        high=35.0,
        slack=0.5,  # a gyro's bias, and the gantry
        encoding=Encoding(scale=1.0),
        reading="gyro_b",
        ours=True,
    ),
    PolicyInput(name="time", size=1, unit="s", low=0.0),
    PolicyInput(name="command", size=COMMANDS, unit="mixed", ours=True),
    PolicyInput(name="quaternion", size=4, unit="1", frame="world", low=-1.0, high=1.0, reading="quat_wxyz", old=True),
    PolicyInput(name="initial_heading", size=1, unit="rad", low=-7.0, high=7.0, old=True),
)
BY_NAME = {i.name: i for i in POLICY_INPUTS}
OUR_INPUTS = tuple(i.name for i in POLICY_INPUTS if i.ours)
JOINT_INPUTS = tuple(i.name for i in POLICY_INPUTS if i.of_joints)
# Those that a careless server gives in degrees.
ANGLE_INPUTS = tuple(i.name for i in POLICY_INPUTS if i.unit in ("rad", "rad/s") and not i.old)
GRAVITY_INPUT = "projected_gravity"
JOINT_ANGLES, JOINT_VELOCITIES = JOINT_INPUTS
GYROSCOPE, ACCELEROMETER = "gyroscope", "accelerometer"
