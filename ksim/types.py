"""The values that the rooms of ksim exchange.

Names of axes: E environments, T control steps, n joints, S physics steps in a control step. Terms see one
environment; the environment vmaps them. A State is one instant. A Trajectory is T control steps, time first.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ksim.scene import Scene
from robots import rotation
from robots.motor import MotorParams, MotorState

GRAVITY = 9.81

# What an array is for one environment at one instant. The schema of logs is made from these (ksim/schema.py).
Number = Annotated[Any, "number"]
Flag = Annotated[Any, "flag"]
Vector = Annotated[Any, "vector"]


class PhysicsParams(NamedTuple):
    """What differs between environments and stays for an episode.

    Attributes:
        model: MjModel fields by name, each (E, *field shape): those that a randomisation varies.
        motor: parameters of the motor law, each (E, n).
        joint_offset: error of the encoder's zero [rad], (E, n): encoder = joint + offset. The motor
            regulates the encoder's angle, as the real one does.
        target_bias: what the motor's controller adds to each target [rad], (E, n).
        imu_tilt: rotation vector by which the IMU is mounted askew [rad], (E, 3).
        drawn: what each randomisation drew, by its name: numbers about 0, (E, k), for the critic and the log.
    """

    model: dict[str, Any]
    motor: MotorParams
    joint_offset: Any
    target_bias: Any
    imu_tilt: Any
    drawn: dict[str, Any]


class PhysicsState(eqx.Module):
    """The state after a control step, the same for every engine. Leading axes may be E, T or none.

    Attributes:
        qpos: generalised positions, (..., nq).
        qvel: generalised velocities, (..., nv). A free joint's angular velocity is in the body's frame.
        torque: drive torque of the last physics step, before friction [N m], (..., n).
        sensordata: the model's sensors, without noise; `sensor(name)` finds one.
        motor: memory of the motor law, each (..., n).
        history: past values of what late observations read, by signal, newest first, one per physics step.
        internal: what the engine keeps besides; () or a pytree.
        scene: what is static.
    """

    qpos: Vector
    qvel: Vector
    torque: Vector
    sensordata: Vector
    motor: MotorState
    history: dict[str, Any]
    internal: Any
    scene: Scene = eqx.field(static=True)

    def public(self) -> PhysicsState:
        """Without what only the engine and late observations need."""
        return PhysicsState(self.qpos, self.qvel, self.torque, self.sensordata, self.motor, {}, (), self.scene)

    def sensor(self, name: str) -> Any:
        """A sensor's values by its name, (..., size)."""
        return self.sensordata[..., self.scene.sensor(name)]

    @property
    def joint_position(self) -> Any:
        """True joint angles [rad], (..., n)."""
        return self.qpos[..., self.scene.built.qpos_ids]

    @property
    def joint_velocity(self) -> Any:
        """True joint velocities [rad/s], (..., n)."""
        return self.qvel[..., self.scene.built.dof_ids]

    @property
    def base_position(self) -> Any:
        """Position of the base in the world [m], (..., 3); zero for a robot fixed to the world."""
        at = self.scene.base_qpos
        return self.qpos[..., at : at + 3] if at >= 0 else jnp.zeros((*self.qpos.shape[:-1], 3), self.qpos.dtype)

    @property
    def base_quat(self) -> Any:
        """Orientation of the base in the world, w first, (..., 4)."""
        at = self.scene.base_qpos
        if at >= 0:
            return self.qpos[..., at + 3 : at + 7]
        return jnp.broadcast_to(jnp.asarray([1.0, 0.0, 0.0, 0.0], self.qpos.dtype), (*self.qpos.shape[:-1], 4))

    @property
    def base_lin_vel_w(self) -> Any:
        """Linear velocity of the base in the world's frame [m/s], (..., 3)."""
        at = self.scene.base_qvel
        return self.qvel[..., at : at + 3] if at >= 0 else jnp.zeros((*self.qvel.shape[:-1], 3), self.qvel.dtype)

    @property
    def base_ang_vel_b(self) -> Any:
        """Angular velocity of the base in its own frame [rad/s], (..., 3)."""
        at = self.scene.base_qvel
        return self.qvel[..., at + 3 : at + 6] if at >= 0 else jnp.zeros((*self.qvel.shape[:-1], 3), self.qvel.dtype)

    @property
    def base_lin_vel_b(self) -> Any:
        """Linear velocity of the base in its own frame [m/s], (..., 3)."""
        return rotation.rotate_inverse(self.base_quat, self.base_lin_vel_w, jnp)

    @property
    def base_ang_vel_w(self) -> Any:
        """Angular velocity of the base in the world's frame [rad/s], (..., 3)."""
        return rotation.rotate(self.base_quat, self.base_ang_vel_b, jnp)

    @property
    def heading(self) -> Any:
        """Yaw of the base [rad], (...,)."""
        return rotation.yaw_of(self.base_quat, jnp)

    @property
    def base_lin_vel_h(self) -> Any:
        """Linear velocity of the base in the frame of its heading: forward, left, up [m/s], (..., 3)."""
        return rotation.rotate_inverse(rotation.from_yaw(self.heading, jnp), self.base_lin_vel_w, jnp)

    @property
    def gravity_b(self) -> Any:
        """Gravity in the IMU's frame [m/s^2], (..., 3); upright is (0, 0, -9.81) where the IMU's z points up."""
        return rotation.gravity_in_frame(self.sensor("imu_quat"), xp=jnp)

    @property
    def gyro_b(self) -> Any:
        """Angular velocity in the IMU's frame [rad/s], (..., 3)."""
        return self.sensor("imu_gyro")

    def of_feet(self, prefix: str) -> Any:
        """A sensor that each foot has, (..., feet, size): `of_feet("foot_position")`."""
        values = [self.sensor(f"{prefix}_{name}") for name in self.scene.feet]
        if not values:
            return jnp.zeros((*self.qpos.shape[:-1], 0, 1), self.qpos.dtype)
        return jnp.stack(values, axis=-2)

    @property
    def foot_force(self) -> Any:
        """Contact force of each foot [N], (..., feet)."""
        return self.of_feet("touch")[..., 0]

    @property
    def foot_contact(self) -> Any:
        """Whether each foot touches the ground, (..., feet)."""
        return self.foot_force > 1.0


class Action(NamedTuple):
    """What the policy decided: the network's raw action (..., actions), and the joint targets that follow [rad]."""

    raw: Vector
    target: Vector


class Drive(NamedTuple):
    """What acts on the robot during one control step.

    Attributes:
        command: what the motors' controllers are told at each physics step, (E, S, channels): latency is in it. For
            PositionActuators these are joint targets [rad].
        wrench_w: force [N] and torque [N m] on the base in the world's frame, (E, 6).
        kick: what is added to the base's linear (world) and angular (body) velocity at the start, (E, 6).
    """

    command: Any
    wrench_w: Any
    kick: Any


class Reading(NamedTuple):
    """What a channel holds at this control step.

    Attributes:
        packet: number of the packet, (...,).
        age_s: time since its sample was taken [s], (...,).
        fresh: whether it is another packet than at the step before, (...,).
    """

    packet: Any
    age_s: Any
    fresh: Any


class State(eqx.Module):
    """One environment at one instant, as terms see it: after the physics, before the policy acts.

    Attributes:
        physics: the physics.
        params: what was randomised.
        command: the command vector, (commands,).
        action: the policy's last raw action, (actions,).
        target: the last joint targets [rad], (n,).
        time_s: time since the episode's start [s].
        phase: the gait clock [rad], (); see ksim/clock.py.
        moving: the command asks for motion, as the gait clock has it, ().
        channels: what each sensor channel holds, by its name.
        events: memory of the events, by name.
        level: the curriculum's level, 0 to 1.
        key: random numbers of the term that is asked, and of no other; new at each step.
        episode_key: likewise, fixed for the episode.
    """

    physics: PhysicsState
    params: PhysicsParams
    command: Any
    action: Any
    target: Any
    time_s: Any
    phase: Any
    moving: Any
    channels: dict[str, Reading]
    events: dict[str, Any]
    level: Any
    key: Any
    episode_key: Any

    @property
    def scene(self) -> Scene:
        """What is static."""
        return self.physics.scene

    def command_of(self, name: str) -> Any:
        """One element of the command vector by its name; 0 where there is no such command."""
        return _element(self.command, self.scene.command(name))


class Trajectory(eqx.Module):
    """T control steps of one environment, time first.

    Row t is one control step. `command`, `phase`, `moving`, `first` and `time_s` are from before the action; `physics`,
    `done`, `timeout` and `fell` are from after it, before an ended episode is started anew.

    Attributes:
        physics: the state after the step, (T, ...).
        command: the command that the policy saw, (T, commands).
        action: what it decided.
        phase: the gait clock that it saw [rad], (T,).
        moving: the command asks for motion, as the gait clock has it, (T,).
        first: the step is an episode's first, (T,).
        time_s: time since the episode's start before the step [s], (T,).
        done: the episode ended with this step, (T,).
        timeout: it ended by the clock, (T,).
        fell: it ended by a termination, (T,).
        level: the curriculum's level, ().
    """

    physics: PhysicsState
    command: Vector
    action: Action
    phase: Number
    moving: Flag
    first: Flag
    time_s: Number
    done: Flag
    timeout: Flag
    fell: Flag
    level: Number

    @property
    def scene(self) -> Scene:
        """What is static."""
        return self.physics.scene

    def command_of(self, name: str) -> Any:
        """One element of the command vector by its name, (T,); 0 where there is no such command."""
        return _element(self.command, self.scene.command(name))

    def __len__(self) -> int:
        return self.first.shape[0]


def _element(vector: Any, place: int) -> Any:
    return vector[..., place] if place >= 0 else jnp.zeros(vector.shape[:-1], jnp.float32)


# Memory of the stateful rewards, by name.
RewardState = dict[str, Any]


class EnvState(NamedTuple):
    """One environment between two control steps, without its physics.

    Attributes:
        key: random key of this environment.
        episode_key: random key of this episode; what is fixed for an episode is drawn from it.
        step: control steps since the reset.
        command: the command vector, (commands,).
        action: the policy's last raw action, (actions,).
        target: targets of the last step [rad], (n,).
        phase: the gait clock [rad].
        packets: commands on their way to the motors.
        started: this is the first tick of its episode.
        carries: memory of stateful terms, {room: {name: carry}}.
    """

    key: Any
    episode_key: Any
    step: Any
    command: Any
    action: Any
    target: Any
    phase: Any
    packets: Any
    started: Any
    carries: dict[str, dict[str, Any]]


def pick(mask: Any, new: Any, old: Any) -> Any:
    """Trees of (E, ...): `new` where the mask (E,) is true."""

    def one(a: Any, b: Any) -> Any:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(one, new, old)
