"""What the policy and the critic see: one term each, of one environment's State.

A policy input is a term under its .kinfer name. The critic sees the terms of its own table, one after the other.
Here are the terms that see the truth now; what comes late is in ksim/sensing.py, and has its names here too.
Frames: the base's own; the world's; the heading's, which stands upright in the base and looks where it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from ksim.clock import GaitClock, places
from ksim.errors import ConfigError
from ksim.scene import Scene
from ksim.sensing import (
    DelayedAccelerometerObservation,
    DelayedGyroObservation,
    DelayedJointPositionObservation,
    DelayedJointVelocityObservation,
    DelayedObservation,
    DelayedProjectedGravityObservation,
    DelayedSensorObservation,
    ImuObservation,
    Observation,
    StatefulObservation,
    asked_of_model,
)
from ksim.types import PhysicsState, State
from robots import rotation
from toolkit.settings import Bound

__all__ = [
    "AccelerometerObservation",
    "ActuatorForceObservation",
    "BaseAngularVelocityObservation",
    "BaseGravityObservation",
    "BaseHeightObservation",
    "BaseLinearVelocityObservation",
    "BaseOrientationObservation",
    "BasePositionObservation",
    "BaseRollPitchYawObservation",
    "CentreOfMassObservation",
    "CentreOfMassVelocityObservation",
    "ChannelAgeObservation",
    "CommandObservation",
    "DelayedAccelerometerObservation",
    "DelayedGyroObservation",
    "DelayedJointPositionObservation",
    "DelayedJointVelocityObservation",
    "DelayedObservation",
    "DelayedProjectedGravityObservation",
    "DelayedSensorObservation",
    "EventObservation",
    "FeetContactObservation",
    "FeetForceObservation",
    "FeetHeightObservation",
    "FeetOrientationObservation",
    "FeetPositionObservation",
    "FeetVelocityObservation",
    "GaitPhaseObservation",
    "GyroObservation",
    "ImuObservation",
    "JointPositionObservation",
    "JointTargetObservation",
    "JointVelocityObservation",
    "LastActionObservation",
    "NamedCommandObservation",
    "Observation",
    "ProjectedGravityObservation",
    "RandomizationObservation",
    "SensorObservation",
    "StatefulObservation",
    "TimeObservation",
]

Frame = Literal["base", "world", "heading"]


def in_frame(vector_w: Any, physics: PhysicsState, frame: Frame) -> Any:
    """Vectors of the world (..., 3), told in a frame of the robot: its base's, or its heading's."""
    if frame == "world":
        return vector_w
    quat = physics.base_quat if frame == "base" else rotation.from_yaw(physics.heading, jnp)
    return rotation.rotate_inverse(quat, vector_w, jnp)


def _upper(quat: Any) -> Any:
    """The same rotation with w at least 0: one rotation is then one value."""
    return jnp.where(quat[..., :1] < 0.0, -quat, quat)


@dataclass(frozen=True, kw_only=True)
class CommandObservation(Observation):
    """The command vector, (commands,)."""

    serves = ("command",)
    as_input: ClassVar[Mapping[str, Any]] = {"scale": 1.0, "noise": None}

    def observe(self, state: State) -> Any:
        return state.command

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.command(value, scene.command_names)


@dataclass(frozen=True, kw_only=True)
class NamedCommandObservation(Observation):
    """One element of the command vector, (1,).

    Attributes:
        name: of the command, or an older name of it.
    """

    name: Annotated[str, Bound(1, 200, "characters")]

    def observe(self, state: State) -> Any:
        if state.scene.command(self.name) < 0:
            known = ", ".join(state.scene.command_names) or "none"
            raise ConfigError(f"{type(self).__name__}: no command {self.name!r}; the task has {known}")
        return jnp.atleast_1d(state.command_of(self.name))


@dataclass(frozen=True, kw_only=True)
class TimeObservation(Observation):
    """Time since the episode's start [s], (1,)."""

    serves = ("time",)

    def observe(self, state: State) -> Any:
        return jnp.atleast_1d(state.time_s)

    def image(self, value: Any, scene: Scene) -> Any:
        return value


@dataclass(frozen=True, kw_only=True)
class BasePositionObservation(Observation):
    """Position of the base in the world [m], (3,)."""

    def observe(self, state: State) -> Any:
        return state.physics.base_position


@dataclass(frozen=True, kw_only=True)
class BaseHeightObservation(Observation):
    """Height of the base above its standing height [m], (1,)."""

    def observe(self, state: State) -> Any:
        return state.physics.base_position[2:3] - state.scene.standing_height_m

    def image(self, value: Any, scene: Scene) -> Any:
        return value


@dataclass(frozen=True, kw_only=True)
class BaseOrientationObservation(Observation):
    """Orientation of the base in the world as a unit quaternion, w first and not negative, (4,)."""

    def observe(self, state: State) -> Any:
        return _upper(state.physics.base_quat)


@dataclass(frozen=True, kw_only=True)
class BaseRollPitchYawObservation(Observation):
    """Roll, pitch and yaw of the base in the world [rad], (3,); they jump at half a turn."""

    def observe(self, state: State) -> Any:
        return jnp.stack(rotation.roll_pitch_yaw(state.physics.base_quat, jnp), axis=-1)


@dataclass(frozen=True, kw_only=True)
class BaseGravityObservation(Observation):
    """Gravity in the base's frame, whatever the IMU's mounting [m/s^2], (3,); upright is (0, 0, -9.81)."""

    def observe(self, state: State) -> Any:
        return rotation.gravity_in_frame(state.physics.base_quat, xp=jnp)


@dataclass(frozen=True, kw_only=True)
class BaseLinearVelocityObservation(Observation):
    """Linear velocity of the base [m/s], (3,), in its own frame, the world's or the heading's."""

    frame: Frame = "base"

    def observe(self, state: State) -> Any:
        return in_frame(state.physics.base_lin_vel_w, state.physics, self.frame)

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.base_polar(value, self.frame)


@dataclass(frozen=True, kw_only=True)
class BaseAngularVelocityObservation(Observation):
    """Angular velocity of the base [rad/s], (3,), in its own frame, the world's or the heading's."""

    frame: Frame = "base"

    def observe(self, state: State) -> Any:
        # MuJoCo has a free joint's angular velocity in the base's frame already
        physics = state.physics
        return physics.base_ang_vel_b if self.frame == "base" else in_frame(physics.base_ang_vel_w, physics, self.frame)

    def image(self, value: Any, scene: Scene) -> Any:
        return -scene.mirror.base_polar(value, self.frame)


@dataclass(frozen=True, kw_only=True)
class JointPositionObservation(Observation):
    """True joint angles [rad], (joints,), or their distance from the home pose."""

    serves = ("joint_angles",)
    as_input: ClassVar[Mapping[str, Any]] = {"scale": 1.0, "from_home": False}

    from_home: bool = False

    def observe(self, state: State) -> Any:
        position = state.physics.joint_position
        return position - state.scene.home_rad if self.from_home else position

    def image(self, value: Any, scene: Scene) -> Any:
        zero = scene.home_rad if self.from_home else 0.0
        return scene.mirror.joint(value + zero) - zero


@dataclass(frozen=True, kw_only=True)
class JointVelocityObservation(Observation):
    """True joint velocities [rad/s], (joints,)."""

    serves = ("joint_angular_velocities",)

    def observe(self, state: State) -> Any:
        return state.physics.joint_velocity

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.joint_change(value)


@dataclass(frozen=True, kw_only=True)
class ProjectedGravityObservation(Observation):
    """Gravity in the IMU's frame, now and without misalignment [m/s^2], (3,); upright is (0, 0, -9.81)."""

    serves = ("projected_gravity",)

    def observe(self, state: State) -> Any:
        return state.physics.gravity_b

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.polar(value)


@dataclass(frozen=True, kw_only=True)
class GyroObservation(Observation):
    """Angular velocity in the IMU's frame, now [rad/s], (3,)."""

    serves = ("gyroscope",)

    def observe(self, state: State) -> Any:
        return state.physics.gyro_b

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.axial(value)


@dataclass(frozen=True, kw_only=True)
class AccelerometerObservation(Observation):
    """Proper acceleration in the IMU's frame, now [m/s^2], (3,); at rest upright it is (0, 0, 9.81)."""

    serves = ("accelerometer",)

    def observe(self, state: State) -> Any:
        return state.physics.sensor("imu_accelerometer")


@dataclass(frozen=True, kw_only=True)
class SensorObservation(Observation):
    """Any sensor of the model, now, (size,), as the model has it.

    Attributes:
        sensor: its name: `touch_left_foot`, `foot_position_left_foot`, `com_velocity`, or one of the model's own.
    """

    sensor: Annotated[str, Bound(1, 200, "characters")]

    @property
    def sensors(self) -> tuple[str, ...]:
        return asked_of_model(self.sensor)

    def observe(self, state: State) -> Any:
        return state.physics.sensor(self.sensor)


@dataclass(frozen=True, kw_only=True)
class FeetContactObservation(Observation):
    """1 for each foot that touches the ground, 0 for the others, (feet,)."""

    def observe(self, state: State) -> Any:
        return jnp.asarray(state.physics.foot_contact, jnp.float32)

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.feet_of(value)


@dataclass(frozen=True, kw_only=True)
class FeetForceObservation(Observation):
    """Contact force of each foot [N], (feet,)."""

    def observe(self, state: State) -> Any:
        return state.physics.foot_force

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.feet_of(value)


@dataclass(frozen=True, kw_only=True)
class FeetPositionObservation(Observation):
    """From the base to each foot's site [m], (3 feet,), foot after foot."""

    frame: Frame = "heading"

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_position",)

    def observe(self, state: State) -> Any:
        physics = state.physics
        away = physics.of_feet("foot_position") - physics.base_position
        return jnp.ravel(in_frame(away, physics, self.frame))


@dataclass(frozen=True, kw_only=True)
class FeetVelocityObservation(Observation):
    """Velocity of each foot's site in the world, told in a frame [m/s], (3 feet,), foot after foot."""

    frame: Frame = "heading"

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_velocity",)

    def observe(self, state: State) -> Any:
        return jnp.ravel(in_frame(state.physics.of_feet("foot_velocity"), state.physics, self.frame))


@dataclass(frozen=True, kw_only=True)
class FeetOrientationObservation(Observation):
    """Orientation of each foot's site in the heading's frame, quaternions, w first and not negative, (4 feet,)."""

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_quat",)

    def observe(self, state: State) -> Any:
        back = rotation.from_yaw(-state.physics.heading, jnp)
        return jnp.ravel(_upper(rotation.multiply(back, state.physics.of_feet("foot_quat"), jnp)))


@dataclass(frozen=True, kw_only=True)
class FeetHeightObservation(Observation):
    """Height of each foot's site above where it is when the robot stands at home [m], (feet,)."""

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("foot_position",)

    def observe(self, state: State) -> Any:
        return state.physics.of_feet("foot_position")[..., 2] - state.scene.foot_rest_height_m

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.feet_of(value)


@dataclass(frozen=True, kw_only=True)
class CentreOfMassObservation(Observation):
    """From the base to the robot's centre of mass [m], (3,)."""

    frame: Frame = "heading"

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("com_position",)

    def observe(self, state: State) -> Any:
        physics = state.physics
        return in_frame(physics.sensor("com_position") - physics.base_position, physics, self.frame)


@dataclass(frozen=True, kw_only=True)
class CentreOfMassVelocityObservation(Observation):
    """Velocity of the robot's centre of mass in the world, told in a frame [m/s], (3,)."""

    frame: Frame = "heading"

    @property
    def sensors(self) -> tuple[str, ...]:
        return ("com_velocity",)

    def observe(self, state: State) -> Any:
        return in_frame(state.physics.sensor("com_velocity"), state.physics, self.frame)


@dataclass(frozen=True, kw_only=True)
class ActuatorForceObservation(Observation):
    """Drive torque of each joint in the last physics step, before friction [N m], (joints,)."""

    def observe(self, state: State) -> Any:
        return state.physics.torque

    def image(self, value: Any, scene: Scene) -> Any:
        return scene.mirror.joint_change(value)


@dataclass(frozen=True, kw_only=True)
class JointTargetObservation(Observation):
    """The last joint targets [rad], (joints,), or their distance from the home pose."""

    from_home: bool = False

    def observe(self, state: State) -> Any:
        return state.target - state.scene.home_rad if self.from_home else state.target

    def image(self, value: Any, scene: Scene) -> Any:
        zero = scene.home_rad if self.from_home else 0.0
        return scene.mirror.joint(value + zero) - zero


@dataclass(frozen=True, kw_only=True)
class GaitPhaseObservation(Observation):
    """Sine and cosine of the gait clock, (2,), both 0 while the robot is asked to stand.

    Attributes:
        clock: says which commands ask for motion; its frequency is the policy's.
    """

    clock: GaitClock = GaitClock()

    def observe(self, state: State) -> Any:
        moving = self.clock.moving(state.command, places(self.clock, state.scene.command_names))
        return self.clock.features(state.phase, moving)

    def image(self, value: Any, scene: Scene) -> Any:
        return -value  # half a turn later


@dataclass(frozen=True, kw_only=True)
class LastActionObservation(Observation):
    """The policy's last raw action, (actions,)."""

    def observe(self, state: State) -> Any:
        return state.action

    def image(self, value: Any, scene: Scene) -> Any:
        whole = np.zeros((*np.shape(value)[:-1], scene.joints), np.float64)
        whole[..., list(scene.moved)] = value
        return scene.mirror.joint_change(whole)[..., list(scene.moved)]


@dataclass(frozen=True, kw_only=True)
class RandomizationObservation(Observation):
    """What the randomisations drew, one after the other, each about 1.

    Attributes:
        of: their names; none means all that there are.
        leave_out: names of those that it does not show; one that is not there is left out already.
    """

    of: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()

    @property
    def refers(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        return {"of": ("randomizations", self.of)}

    def observe(self, state: State) -> Any:
        drawn = state.params.drawn
        parts = [jnp.ravel(drawn[name]) for name in self.of or drawn if name not in self.leave_out]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)


@dataclass(frozen=True, kw_only=True)
class ChannelAgeObservation(Observation):
    """Age of what each sensor channel holds [s], (channels,)."""

    def observe(self, state: State) -> Any:
        return jnp.stack([jnp.asarray(r.age_s) for r in state.channels.values()]) if state.channels else jnp.zeros(0)

    def image(self, value: Any, scene: Scene) -> Any:
        return value


@dataclass(frozen=True, kw_only=True)
class EventObservation(Observation):
    """What an event does now: force [N] and torque [N m] on the base in the base's frame, (6,)."""

    of: str = "pushes"

    @property
    def refers(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        return {"of": ("events", (self.of,))}

    def observe(self, state: State) -> Any:
        if self.of not in state.events:
            raise ConfigError(
                f"{type(self).__name__}: no event {self.of!r}; the task has {', '.join(state.events) or 'none'}"
            )
        wrench, quat = state.events[self.of]["wrench_w"], state.physics.base_quat
        return jnp.concatenate([rotation.rotate_inverse(quat, wrench[i : i + 3], jnp) for i in (0, 3)])
