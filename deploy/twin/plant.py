"""A robot in a reality: MuJoCo C, the motor law and the delay lines at the physics rate. SI, no network.

The twin serves one over KOS; the parity report replays a log through one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.twin.channel import SensorChannel
from deploy.twin.reality import Joints, Reality, per_joint
from robots import delay, motor, rotation
from robots.load import load_robot
from robots.model import BuiltModel, build_model
from robots.motor import MotorParams, SoftJoints

TRUTH_ROWS = 60_000
TRUTH_PERIOD_S = 0.01
HANG_HEIGHT_M = 0.3
# What holds a base that hangs: inertia beside which the robot's is nothing [kg, kg m^2].
GANTRY = 1e9
TIMESTEP_S = 0.002
# Commands to one joint that jitter may have under way at once: what a client at 200 Hz sends, and no more than this.
COMMAND_PERIOD_S = 0.005
COMMANDS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the sensors answer, in joint order and SI.

    Attributes:
        position: joint positions [rad].
        velocity: joint velocities [rad/s].
        torque: motor torques [N m].
        quat_wxyz: orientation of the IMU, (w, x, y, z), normalised.
        gyro_b: angular velocity in the IMU's frame [rad/s].
        accel_b: specific force in the IMU's frame [m/s^2].
        joint_age_s: how long ago the joints were measured [s]; no answer on the wire tells it.
        imu_age_s: how long ago the IMU was measured [s]; no answer on the wire tells it.
    """

    position: np.ndarray
    velocity: np.ndarray
    torque: np.ndarray
    quat_wxyz: np.ndarray
    gyro_b: np.ndarray
    accel_b: np.ndarray
    joint_age_s: float
    imu_age_s: float


class Plant:
    """One simulated robot; not thread-safe, the caller owns the lock.

    Time is a whole number of physics steps, so the same seed and the same calls between the same steps give the
    same numbers. Noise is a function of seed, time and sensor: reading twice or in another order changes nothing.
    """

    def __init__(
        self,
        robot: str | Path,
        reality: Reality | None = None,
        *,
        seed: int = 0,
        start: str = "home",
        timestep_s: float = TIMESTEP_S,
    ) -> None:
        """Compile a robot and put it at home, held.

        Args:
            robot: a built-in robot's name or a robot folder.
            reality: how it differs from nominal.
            seed: of noise, losses and pushes.
            start: "home" holds the whole robot still, feet on the floor, until it is driven; "hang" fixes the base
                above the floor for good, with the joints free: limbs that nothing drives fall.
            timestep_s: physics step [s].

        Raises:
            RobotLoadError: there is no such robot.
            RealityError: the reality names a joint that the robot does not have.
        """
        self.spec = load_robot(robot)
        self.reality = reality or Reality()
        self.start = start
        self.seed = seed
        self.dt = timestep_s
        self.built = build_model(robot, timestep_s, fresh=True)  # its masses are this reality's
        self._apply_body(self.built)
        import mujoco

        self._mujoco: Any = mujoco
        self.model = self.built.model
        if start == "hang" and self.built.base_body >= 0:
            # a base that were put back after each step would fall within it, and its joints would weigh nothing
            for part in (self.built.base_lin_vel, self.built.base_ang_vel):
                self.model.dof_armature[part] = GANTRY
        self.data = self._mujoco.MjData(self.model)
        n = len(self.spec.joints)
        self.joints = n
        self._nominal = MotorParams.of(self.spec)
        self._torque_max = np.asarray(self.spec.column("torque_max_nm"))
        self.kp, self.kd = np.zeros(n), np.zeros(n)
        self.max_torque = np.asarray(self.spec.column("torque_limit_nm"))
        self.enabled = np.zeros(n, dtype=bool)
        self._strength = np.ones(n)
        self.set_joints(self.reality.joints)

        commands, sensors = self.reality.commands, self.reality.sensors
        self._command_rows = delay.depth(commands.latency_s, self.dt)
        self._slots = min(delay.slots(commands.jitter_s, COMMAND_PERIOD_S), COMMANDS_AT_ONCE)
        words = np.random.SeedSequence([seed, 1]).generate_state(2)
        self._joint_channel = SensorChannel(sensors.joints, sensors.latency_s, int(words[0]))
        self._imu_channel = SensorChannel(sensors.imu, sensors.latency_s, int(words[1]))
        longest = max(self._joint_channel.longest_s, self._imu_channel.longest_s)
        self._sensor_rows = delay.depth(longest, self.dt)
        self._tilt = rotation.from_rotvec(np.asarray(sensors.orientation_bias_rad))
        self._tilted = any(sensors.orientation_bias_rad)
        self._noisy = any(v for name, v in vars(sensors).items() if "_noise_" in name)
        self._gyro_bias = np.asarray(sensors.gyro_bias_rad_s)
        self._accel_bias = np.asarray(sensors.accelerometer_bias_m_s2)
        streams = np.random.SeedSequence(seed).spawn(3)
        generators = (np.random.Generator(np.random.Philox(s)) for s in streams)
        self._command_rng, self._push_rng, self._stall_rng = generators
        self.step_count = 0
        self.commands_lost = 0
        self._truth = _Truth(self.built, self.dt)
        self.place()

    def _apply_body(self, built: BuiltModel) -> None:
        body, model = self.reality.body, built.model
        model.body_mass[built.bodies] *= body.mass_scale
        model.body_inertia[built.bodies] *= body.mass_scale
        own = per_joint("link_mass_scale", self.reality.joints.link_mass_scale, self.spec, 1.0)
        links = model.dof_bodyid[built.dof_ids]
        model.body_mass[links] *= own
        model.body_inertia[links] *= own[:, None]
        model.body_mass[built.torso_body] += body.payload_kg
        self._rotors = per_joint("armature_scale", self.reality.joints.armature_scale, self.spec, 1.0)
        model.dof_armature[built.dof_ids] *= self._rotors
        if body.floor_friction >= 0:
            geoms = [*np.atleast_1d(built.foot_geoms), *([built.floor_geom] if built.floor_geom >= 0 else [])]
            model.geom_friction[np.asarray(geoms, dtype=int), 0] = body.floor_friction
        import mujoco

        library: Any = mujoco
        library.mj_setConst(model, library.MjData(model))  # the masses changed

    def set_joints(self, settings: Joints) -> None:
        """Change how the motors differ, but for their rotors; `place` or `set_state`, which forget, have to follow."""
        n = self.joints

        def column(what: str, nominal: float) -> np.ndarray:
            return per_joint(what, getattr(settings, what), self.spec, nominal)

        self._scale = {what: column(f"{what}_scale", 1.0) for what in ("kp", "kd", "torque", "velocity")}
        self._friction = self._nominal.friction * column("friction_scale", 1.0) + column("friction_add_nm", 0.0)
        self._damping = self._nominal.damping + column("damping_add", 0.0)
        # off everywhere is a plain 0.0, for which the law does nothing
        soft = column("stiffness_nm_rad", 0.0)
        compliance = np.divide(1.0, soft, out=np.zeros(n), where=soft > 0)
        shaft = {"stiction": column("stiction_nm", 0.0), "play": column("play_rad", 0.0), "compliance": compliance}
        shaft["load_friction"] = column("load_friction", 0.0)
        self._shaft: dict[str, Any] = {what: values if values.any() else 0.0 for what, values in shaft.items()}
        self.offset = column("zero_offset_rad", 0.0)
        self._touch_gains()

    def _touch_gains(self) -> None:
        limit = np.where(self.enabled, np.minimum(np.abs(self.max_torque), self._torque_max), 0.0)
        self.params = MotorParams(
            kp=self.kp * self._scale["kp"],
            kd=self.kd * self._scale["kd"],
            torque_limit=limit * self._scale["torque"] * self._strength,
            velocity_max=self._nominal.velocity_max * self._scale["velocity"],
            friction=self._friction,
            damping=np.maximum(self._damping, 0.0),
            armature=self._nominal.armature * self._rotors,
            **self._shaft,
        )
        self._soft = SoftJoints.of(self.params)

    @property
    def time_s(self) -> float:
        """Simulated time since the start [s]; runs on while the robot is held and through resets."""
        return self.step_count * self.dt

    @property
    def target(self) -> np.ndarray:
        """Where the joints were last told to go, in true angles (joints,) [rad]."""
        return self._arrived[: self.joints] - self.offset

    @property
    def limp(self) -> np.ndarray:
        """Which joints have no stiffness (joints,)."""
        return ~self.enabled | (self.kp == 0.0)

    @property
    def at_limit(self) -> np.ndarray:
        """Which motors give all the torque that they may (joints,)."""
        return self.enabled & (np.abs(self._drive) >= 0.999 * self.params.torque_limit)

    @property
    def driven_s(self) -> float:
        """Simulated time since the first command after torque was enabled [s]; negative before."""
        return -1.0 if self._driven_step is None else (self.step_count - self._driven_step) * self.dt

    def weaken(self, joint: int, share: float) -> None:
        """Leave a motor this share of its torque limit, whatever it is told."""
        self._strength[joint] = share
        self._touch_gains()

    def configure(
        self, joint: int, *, kp: float, kd: float, max_torque: float, torque_enabled: bool | None = None
    ) -> None:
        """Set a joint's controller; `torque_enabled` None keeps it."""
        self.kp[joint], self.kd[joint], self.max_torque[joint] = kp, kd, max_torque
        if torque_enabled is not None:
            self.enabled[joint] = torque_enabled
        self._touch_gains()

    def set_zero(self, joint: int) -> None:
        """Make a joint's present position its zero, as the encoder tells it."""
        self.offset[joint] -= self._measured()[0][joint]
        self._fill_samples()

    def command(
        self, joints: Sequence[int], position: Sequence[float], velocity: Sequence[float], torque: Sequence[float]
    ) -> None:
        """A command arrives: targets [rad], velocity targets [rad/s] and feed-forward torques [N m] of some joints.

        It acts after the latency of the reality, or never when it is lost. It releases a robot that is held at
        home once any joint has torque.
        """
        settings, n = self.reality.commands, self.joints
        if self._driven_step is None and self.enabled.any():
            self._driven_step = self.step_count
        if self.held and self.start != "hang" and self.enabled.any():
            self.release()
        lost = bool(settings.loss) and self._command_rng.random() < settings.loss
        if self._stalled() or lost:
            self.commands_lost += 1
            return
        index = np.asarray(joints, dtype=int)
        if not settings.jitter_s:  # it is there at once, and some clients send each joint by itself
            arrived = self._arrived.copy()
            arrived[index], arrived[n + index], arrived[2 * n + index] = position, velocity, torque
            self._arrived, self._settling = arrived, self._command_rows
            return
        named, target = np.zeros(n, dtype=bool), np.zeros((n, 3))
        named[index] = True
        target[index] = np.stack([position, velocity, torque], axis=-1)
        late = settings.jitter_s * self._command_rng.random() if settings.jitter_s else 0.0
        # each joint is a receiver of its own, which a command to others does not reach
        self._packets = delay.advance(self._packets, (self.step_count - self._packets_step) * self.dt)
        self._packets = delay.send(self._packets, target, late, ~named, ordered=settings.ordered)
        self._packets_step = self.step_count
        self._arriving_until = self.step_count + math.ceil(settings.jitter_s / self.dt) + 1

    def _stalled(self) -> bool:
        settings, now = self.reality.commands, self.time_s
        if not settings.stall_interval_s[1]:
            return False
        while now >= self._next_stall_s:
            self._stall_end_s = self._next_stall_s + self._stall_rng.uniform(*settings.stall_duration_s)
            self._next_stall_s += self._stall_rng.uniform(*settings.stall_interval_s)
        return now < self._stall_end_s

    def set_command_latency(self, latency_s: float) -> None:
        """Change the latency of commands; to be followed by `place` or `set_state`, which fill the line anew."""
        self.reality = dataclasses.replace(
            self.reality, commands=dataclasses.replace(self.reality.commands, latency_s=latency_s)
        )
        self._command_rows = delay.depth(latency_s, self.dt)

    def drive(self, target: np.ndarray) -> None:
        """Put a target (joints,) [rad] on the line as arrived now, with no velocity and torque; none of the above."""
        self._arrived[: self.joints] = target
        self._arriving_until = 0
        self._settling = self._command_rows

    def release(self) -> None:
        """Let go of a robot that is held; pushes count from here."""
        if self.held:
            self.held = False
            self._released_step = self.step_count
            self._next_push_s = self.time_s + self.reality.pushes.start_s

    def place(
        self,
        position: Sequence[float] | None = None,
        quat_wxyz: Sequence[float] | np.ndarray | None = None,
        joint_position: np.ndarray | None = None,
        joint_velocity: np.ndarray | None = None,
    ) -> None:
        """Put the robot somewhere and hold it there: home where nothing is given.

        Args:
            position: of the base [m]; default home.
            quat_wxyz: of the base; default upright.
            joint_position: true positions, (joints,) [rad]; default home.
            joint_velocity: (joints,) [rad/s]; default 0.
        """
        model, data, built = self.model, self.data, self.built
        self._mujoco.mj_resetData(model, data)
        data.qpos[:] = built.home_qpos
        if built.base_body >= 0:
            data.qpos[built.base_quat] = (1.0, 0.0, 0.0, 0.0) if quat_wxyz is None else quat_wxyz
            if position is not None:
                data.qpos[built.base_position] = position
            elif self.start == "hang":
                data.qpos[built.base_position] += (0.0, 0.0, HANG_HEIGHT_M)
        if joint_position is not None:
            data.qpos[built.qpos_ids] = joint_position
        if joint_velocity is not None:
            data.qvel[built.dof_ids] = joint_velocity
        self.held = True
        self._begin()

    def set_state(
        self,
        qpos: np.ndarray,
        qvel: np.ndarray,
        targets: Sequence[np.ndarray] = (),
        *,
        held: bool = False,
        torque: np.ndarray | float = 0.0,
    ) -> None:
        """Start from a whole state.

        Args:
            qpos: positions of the model, (nq,).
            qvel: velocities of the model, (nv,).
            targets: joint targets that were in force, newest first, each (joints,) [rad] and one physics step long;
                those missing are taken as the oldest given, or as the measured position.
            held: hold it: with start "hang" the base only, else all of it.
            torque: that the joints' shafts carry, (joints,) [N m]; it says how far a soft one is wound up.
        """
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        self.held = held
        self._begin(torque)
        for row, target in enumerate(targets):
            self._command_line[row:, : self.joints] = target
        if targets:
            self._arrived[: self.joints] = targets[0]
            self._packets = delay.hold(self._arrived.reshape(3, -1).T, self._slots)
            self._settling = self._command_rows

    def _begin(self, torque: np.ndarray | float = 0.0) -> None:
        n = self.joints
        self._mujoco.mj_forward(self.model, self.data)
        self._held_qpos = self.data.qpos.copy()
        self._drive = np.zeros(n)
        self._motor = motor.rest(self.params, self.data.qpos[self.built.qpos_ids], torque=torque)
        self._arrived = np.concatenate([self._measured()[0], np.zeros(2 * n)])
        self._packets, self._packets_step = delay.hold(self._arrived.reshape(3, n).T, self._slots), self.step_count
        self._arriving_until = 0
        self._command_line = delay.fill(self._arrived, self._command_rows)
        self._settling = 0
        self._quat = self.data.sensordata[self.built.sensors["imu_quat"]].copy()
        self._fill_samples()
        self._stall_end_s = -1.0
        self._next_stall_s = self.time_s + self._stall_rng.uniform(*self.reality.commands.stall_interval_s)
        self._push_end_s = -1.0
        self._next_push_s = self.time_s + self.reality.pushes.start_s
        self._released_step = self.step_count
        self._driven_step: int | None = None

    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities as the motors' encoders tell them."""
        built, data = self.built, self.data
        shown = motor.encoder(self.params, self._motor, data.qpos[built.qpos_ids], data.qvel[built.dof_ids])
        return shown[0] + self.offset, shown[1]

    def _sense(self) -> np.ndarray:
        sensors, values = self.built.sensors, self.data.sensordata
        quat = values[sensors["imu_quat"]]
        # a quaternion and its negative are one orientation; the delay line blends neighbours, so keep the sign
        self._quat = -quat if quat @ self._quat < 0 else quat.copy()
        accel = values[sensors["imu_accelerometer"]]
        if self.held:  # what holds it carries it, and MuJoCo knows nothing of that
            accel = np.linalg.norm(self.model.opt.gravity) * rotation.up_in_frame(self._quat)
        return np.concatenate(
            [
                *self._measured(),
                self._drive,
                self._quat,
                values[sensors["imu_gyro"]],
                accel,
            ]
        )

    def _fill_samples(self) -> None:
        self._samples = deque([self._sense()] * self._sensor_rows, maxlen=self._sensor_rows)
        self._joint_channel.forget()
        self._imu_channel.forget()

    def advance(self, steps: int = 1, *, sense: bool = True) -> None:
        """Physics steps of `dt` each.

        Args:
            steps: how many.
            sense: False leaves out what the sensors see, which takes time: for who reads only after a step with it,
                and has sensors without latency.
        """
        for _ in range(steps):
            self._step(sense)

    def _step(self, sense: bool) -> None:
        n, data = self.joints, self.data
        if self.step_count < self._arriving_until:
            begin = (self.step_count - self._packets_step) * self.dt
            self._arrived = delay.in_force(self._packets, begin, self.dt).T.ravel()
            self._settling = self._command_rows
        if self.held and self.start != "hang":
            self.step_count += 1
            self._truth.add(self)
            return
        latency, command = self.reality.commands.latency_s, self._arrived
        if latency and self._settling:  # else the whole line holds what arrived, and reads as that
            self._command_line = delay.push(self._command_line, self._arrived)
            command = delay.read(self._command_line, latency, self.dt)
            self._settling -= 1
        # no look into zeros at every step
        more = {"target_velocity": command[n : 2 * n], "feedforward": command[2 * n :]} if command[n:].any() else {}
        position, velocity = data.qpos[self.built.qpos_ids], data.qvel[self.built.dof_ids]
        target = command[:n] - self.offset
        self._drive, net, self._motor = motor.step(
            self.params, self._motor, position, velocity, target, self.dt, soft=self._soft, **more
        )
        data.ctrl[:] = net
        if self.reality.pushes.force_max_n:
            self._push()
        # the second half first: positions, velocities and the sensors on them are then those of the new time
        self._mujoco.mj_step2(self.model, data)
        if self.held:
            self._hold_base()
        self._mujoco.mj_step1(self.model, data)
        self.step_count += 1
        if sense:
            self._samples.appendleft(self._sense())
        self._truth.add(self)

    def _hold_base(self) -> None:
        built = self.built
        if built.base_body < 0:
            return
        for part in (built.base_position, built.base_quat):
            self.data.qpos[part] = self._held_qpos[part]
        for part in (built.base_lin_vel, built.base_ang_vel):
            self.data.qvel[part] = 0.0

    def _push(self) -> None:
        now, settings = self.time_s, self.reality.pushes
        wrench = self.data.xfrc_applied[self.built.push_body]
        if now >= self._next_push_s:
            heading, size = self._push_rng.uniform(0, 2 * np.pi), self._push_rng.uniform(0, 1)
            force = settings.force_min_n + size * (settings.force_max_n - settings.force_min_n)
            wrench[:2] = force * np.cos(heading), force * np.sin(heading)
            self._push_end_s = now + self._push_rng.uniform(*settings.duration_s)
            self._next_push_s += self._push_rng.uniform(*settings.interval_s)
        elif now >= self._push_end_s:
            wrench[:] = 0.0

    def _noise(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Noise of spread 1 of the samples told: position, velocity, gyro, accelerometer, orientation."""
        n, uniform = self.joints, self.reality.sensors.noise == "uniform"

        def of(channel: SensorChannel) -> np.ndarray:
            bits = np.random.Philox(key=self.seed, counter=(channel.index % 2**64) << 64)
            draw = np.random.Generator(bits)
            return draw.uniform(-(3**0.5), 3**0.5, 2 * n + 9) if uniform else draw.standard_normal(2 * n + 9)

        noise = np.concatenate([of(self._joint_channel)[: 2 * n], of(self._imu_channel)[2 * n :]])
        return noise[:n], noise[n : 2 * n], noise[-9:-6], noise[-6:-3], noise[-3:]

    def read(self) -> Sample:
        """What the sensors answer now, with the reality's latency, bias and noise."""
        settings, n = self.reality.sensors, self.joints
        told = (c.tell(self._samples, self.dt, self.step_count) for c in (self._joint_channel, self._imu_channel))
        joints, imu = told
        values = np.concatenate([joints[: 3 * n], imu[3 * n :]])
        position, velocity, torque = values[:n], values[n : 2 * n], values[2 * n : 3 * n]
        quat, gyro, accel = values[3 * n : 3 * n + 4], values[3 * n + 4 : 3 * n + 7], values[3 * n + 7 :]
        if self._tilted:
            quat = rotation.multiply(quat, self._tilt)
        gyro += self._gyro_bias
        accel += self._accel_bias
        if self._noisy:
            noise = self._noise()
            position += settings.position_noise_rad * noise[0]
            velocity += settings.velocity_noise_rad_s * noise[1]
            gyro += settings.gyro_noise_rad_s * noise[2]
            accel += settings.accelerometer_noise_m_s2 * noise[3]
            quat = rotation.multiply(quat, rotation.from_rotvec(settings.orientation_noise_rad * noise[4]))
        return Sample(
            position=position,
            velocity=velocity,
            torque=torque,
            quat_wxyz=rotation.normalise(quat),
            gyro_b=gyro,
            accel_b=accel,
            joint_age_s=self._joint_channel.age_s,
            imu_age_s=self._imu_channel.age_s,
        )

    def truth(self) -> dict[str, np.ndarray]:
        """What really happened: see `_Truth`."""
        return {**self._truth.arrays(), "joint_names": np.asarray(self.spec.joint_names)}


class _Truth:
    """True states at a fixed period; when it is full, every second row goes and the period doubles.

    Arrays: time_s [T], held [T], base_position_m [T, 3] and base_quat_wxyz [T, 4] of the body that carries the IMU,
    qpos [T, nq], qvel [T, nv], joint_position_rad [T, joints], joint_velocity_rad_s [T, joints], push_n [T, 3].
    """

    def __init__(self, built: BuiltModel, dt: float) -> None:
        self.built = built
        self.every = max(1, round(TRUTH_PERIOD_S / dt))
        self.rows: list[np.ndarray] = []

    def add(self, plant: Plant) -> None:
        if plant.step_count % self.every:
            return
        body, data = self.built.imu_body, plant.data
        head = (plant.time_s, plant.held)
        push = data.xfrc_applied[self.built.push_body, :3]
        self.rows.append(np.concatenate([head, data.xpos[body], data.xquat[body], push, data.qpos, data.qvel]))
        if len(self.rows) >= TRUTH_ROWS:
            self.rows = self.rows[1::2]  # those at multiples of the doubled period
            self.every *= 2

    def arrays(self) -> dict[str, np.ndarray]:
        built = self.built
        nq, nv = built.model.nq, built.model.nv
        table = np.asarray(self.rows).reshape(-1, 12 + nq + nv)
        time_s, held, position, quat, push, qpos, qvel = np.split(table, np.cumsum([1, 1, 3, 4, 3, nq]), axis=1)
        return {
            "time_s": time_s[:, 0],
            "held": held[:, 0] > 0.5,
            "base_position_m": position,
            "base_quat_wxyz": quat,
            "qpos": qpos,
            "qvel": qvel,
            "joint_position_rad": qpos[:, built.qpos_ids],
            "joint_velocity_rad_s": qvel[:, built.dof_ids],
            "push_n": push,
        }
