"""Recorded targets through the simulation, in short windows that restart from the measured state.

A long replay of a robot that balances shows only that it falls elsewhere; a short one from the measured state
shows how far the model is from reality, joint by joint and as time goes on.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.log.recorder import RunLog
from deploy.twin.abreast import Abreast
from deploy.twin.plant import Plant
from deploy.twin.reality import Commands, Network, Pushes, Reality, Sensors
from robots import delay, rotation
from robots.motor import wound

# A foot point this close to the lowest one stands on the floor as well [m].
STANCE_M = 0.01
# What contacts at rest give way, so that a window does not begin with a drop: (1 - d) g / (d k) with MuJoCo's
# default impedance d = 0.9 and stiffness k = 1 / (0.95 * 0.02 s)^2 [m].
REST_DEPTH_M = 0.0004
HANG_M = 2.0


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Measured and simulated motion of every window; horizons are the ticks after the restart.

    Attributes:
        first: row in the log of each window's restart, (windows,).
        time_s: time of each compared tick since the first run tick, (windows, horizons) [s].
        position: measured joint positions, (windows, horizons, joints) [rad].
        position_sim: simulated, likewise.
        velocity: measured joint velocities [rad/s].
        velocity_sim: simulated, likewise.
        tilt_error_rad: angle between measured and simulated "up" in the IMU's frame, (windows, horizons).
        start: measured positions at the restart, (windows, joints) [rad].
    """

    first: np.ndarray
    time_s: np.ndarray
    position: np.ndarray
    position_sim: np.ndarray
    velocity: np.ndarray
    velocity_sim: np.ndarray
    tilt_error_rad: np.ndarray
    start: np.ndarray


def measured_at_s(log: RunLog) -> np.ndarray:
    """When the server sampled each tick's state: the answer less half the round trip, (ticks,) [s].

    In lock step the simulator's clock stands still between question and command: both are the tick's start.
    """
    if log.metadata.get("step_lock"):
        return log.start_s
    half = np.where(np.isfinite(log.state_round_trip_s), 0.5 * log.state_round_trip_s, 0.0)
    return log.state_s - half


def acknowledged(log: RunLog) -> bool:
    """Whether the log tells when commands reached the robot. What another program wrote may not."""
    return bool(log.metadata.get("step_lock")) or bool(np.isfinite(log.command_s - log.command_round_trip_s).any())


def arrived_at_s(log: RunLog) -> np.ndarray:
    """When the server got each tick's command, (ticks,) [s]; NaN where it was never acknowledged.

    Of a log that tells of no command when it arrived: the row's stamp.
    """
    if log.metadata.get("step_lock"):
        return np.where(np.isfinite(log.command_s), log.start_s, np.nan)
    if not acknowledged(log) and "import" in log.metadata:
        return np.where(np.isfinite(log.command_s), log.command_s, log.start_s)
    return log.command_s - 0.5 * log.command_round_trip_s


class WindowedSimulation:
    """Replays windows of one log.

    Args:
        robot: name or folder to build the model from.
        log: the log.
        reality: what the simulation is; only its body, its joints and its command latency count, and its command
            and sensor latency together are what the replay assumes.
        hang: the robot hung from its base, feet off the floor.
    """

    def __init__(self, robot: str | Path, log: RunLog, reality: Reality, *, hang: bool = False) -> None:
        self._hang = hang
        self.log = log
        self.observation_latency_s = reality.sensors.latency_s + reality.sensors.joints.latency_s
        self.action_latency_s = reality.commands.latency_s
        still = dataclasses.replace(reality, sensors=Sensors(), network=Network(), pushes=Pushes(), commands=Commands())
        self.plant = Plant(robot, still, start="hang" if hang else "home")
        self._scratch = copy.copy(self.plant.data)
        self._spare: list[Any] = []
        for i, joint in enumerate(log.spec.robot.joints):
            self.plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm, torque_enabled=True)
        rows = np.flatnonzero(log.run)
        self.rows = rows
        self._measured_s = measured_at_s(log)
        arrivals = arrived_at_s(log)
        usable = np.isfinite(arrivals) & np.isfinite(log.sent).all(axis=1)
        self._arrival_s, self._sent = arrivals[usable], log.sent[usable]

    @property
    def base_held(self) -> bool:
        """The base cannot move: no IMU is needed to restart from a tick."""
        return self._hang or self.plant.built.base_body < 0

    def of(self, log: RunLog) -> WindowedSimulation:
        """The same simulation, plant and all, of the log with other columns of joints, targets or IMU."""
        other = copy.copy(self)
        other.log = log
        arrivals = arrived_at_s(log)
        other._sent = log.sent[np.isfinite(arrivals) & np.isfinite(log.sent).all(axis=1)]
        return other

    def windows(self, horizon: int) -> np.ndarray:
        """Rows of the restarts: windows of `horizon` ticks end to end, without gaps, stale or missing states."""
        log, rows = self.log, self.rows
        good = (
            np.isfinite(log.joint_position[rows]).all(axis=1)
            & np.isfinite(log.joint_velocity[rows]).all(axis=1)
            & np.isfinite(self._measured_s[rows])
            & ~log.stale[rows]
        )
        if not self.base_held:
            good &= np.isfinite(log.quat_wxyz[rows]).all(axis=1) & np.isfinite(log.gyro_b[rows]).all(axis=1)
        span_s = 1.5 * horizon * log.spec.control_period_s
        out, at = [], 1  # before the first run tick another controller may have commanded
        while at + horizon < len(rows):
            window = rows[at : at + horizon + 1]
            times = self._measured_s[window]
            if good[at] and good[at : at + horizon + 1].all() and 0 < times[-1] - times[0] < span_s:
                out.append(window[0])
                at += horizon
            else:
                at += 1
        return np.asarray(out, dtype=int)

    def _targets(self, begin_s: float, steps: int, dt: float) -> np.ndarray:
        """Mean target that had arrived during each physics step from `begin_s`, (steps, joints) [rad]."""
        edges = begin_s + dt * np.arange(steps + 1)
        # the integral of a held signal is linear between its changes
        arrival, sent = self._arrival_s, self._sent
        area = np.concatenate([np.zeros((1, sent.shape[1])), np.cumsum(np.diff(arrival)[:, None] * sent[:-1], axis=0)])
        index = np.clip(np.searchsorted(arrival, edges, side="right") - 1, 0, len(arrival) - 1)
        total = area[index] + (edges - arrival[index])[:, None] * sent[index]
        return np.diff(total, axis=0) / dt

    def _torque(self, row: int) -> np.ndarray:
        """Measured torques of a tick, as far as the motors can give them, (joints,) [N m]; 0 where there is none."""
        limit = self.plant.params.torque_limit
        return np.clip(np.nan_to_num(self.log.joint_torque[row], nan=0.0), -limit, limit)

    def state_of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole state (qpos, qvel) that a tick's measurements stand for.

        Joints are the measured ones less the reality's offsets, and less what the measured torque winds up between
        encoder and joint where the reality has play or a spring; the base's orientation is the IMU's with heading 0,
        its height puts the lowest foot point on the floor, its velocity lets the standing feet not slip.
        """
        import mujoco

        library = mujoco
        plant, log, data = self.plant, self.log, self._scratch
        built, model = plant.built, plant.model
        qpos, qvel = built.home_qpos.copy(), np.zeros(model.nv)
        qpos[built.qpos_ids] = log.joint_position[row] - plant.offset - wound(plant.params, self._torque(row))
        qvel[built.dof_ids] = log.joint_velocity[row]
        if built.base_body < 0:
            return qpos, qvel
        position, quat = built.base_position, built.base_quat
        qpos[position], qpos[quat] = 0.0, (1.0, 0.0, 0.0, 0.0)
        data.qpos[:] = qpos
        library.mj_kinematics(model, data)  # type: ignore[attr-defined]
        library.mj_sensorPos(model, data)  # type: ignore[attr-defined]
        relative = data.sensordata[built.sensors["imu_quat"]]
        told = np.isfinite(log.quat_wxyz[row]).all()
        imu = rotation.normalise(log.quat_wxyz[row]) if told else relative  # held, and upright for all that is known
        base = rotation.multiply(imu, rotation.conjugate(relative))
        qpos[quat] = rotation.multiply(rotation.from_yaw(-rotation.yaw_of(base)), base)
        data.qpos[:] = qpos
        library.mj_kinematics(model, data)  # type: ignore[attr-defined]
        library.mj_comPos(model, data)  # type: ignore[attr-defined]
        points = [] if self._hang else _foot_points(plant, data)
        if self._hang:
            qpos[position] += (0.0, 0.0, HANG_M)
        if points:
            lowest = min(p[1][2] for p in points)
            qpos[position] -= (0.0, 0.0, lowest + REST_DEPTH_M)
            data.qpos[:] = qpos
            library.mj_kinematics(model, data)  # type: ignore[attr-defined]
            library.mj_comPos(model, data)  # type: ignore[attr-defined]
            points = _foot_points(plant, data)
        rotate, shift = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        library.mj_jacBody(model, data, None, rotate, built.imu_body)  # type: ignore[attr-defined]
        # the gyro's frame in the world, by the IMU's measured orientation with the heading taken out
        frame = rotation.multiply(qpos[quat], relative)
        turning = rotation.rotate(frame, log.gyro_b[row])
        if self._hang:
            return qpos, qvel
        rest = turning - rotate @ qvel
        qvel[built.base_ang_vel] = np.linalg.solve(rotate[:, built.base_ang_vel], rest)
        if points:
            floor = min(p[1][2] for p in points)
            slips = []
            for body, point in points:
                if point[2] <= floor + STANCE_M:
                    library.mj_jac(model, data, shift, None, point, body)  # type: ignore[attr-defined]
                    slips.append(shift @ qvel)
            qvel[built.base_lin_vel] = -np.mean(slips, axis=0)
        return qpos, qvel

    def replay(
        self,
        starts: np.ndarray,
        horizon: int,
        extra_latency_s: float = 0.0,
        states: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> Replay:
        """Simulate the windows that begin at `starts` for `horizon` ticks each.

        Args:
            starts: rows of the log, (windows,).
            horizon: ticks to compare after each restart.
            extra_latency_s: added to the assumed latency from a command to its effect as measured.
            states: of the restarts where they are known, as `state_of` gives them.
        """
        log, n, plant = self.log, len(self.log.spec.robot.joints), self.plant
        # a state measured with latency is older, so against it commands act later by as much
        latency = max(0.0, self.action_latency_s + self.observation_latency_s + extra_latency_s)
        states = [self.state_of(row) for row in starts] if states is None else states
        ticks = starts[:, None] + np.arange(1, horizon + 1)[None]
        due = self._measured_s[ticks] - self._measured_s[starts][:, None]
        steps = np.ceil(due[:, -1] / plant.dt).astype(int) + 1
        most, torque = int(steps.max(initial=0)), np.empty((len(starts), n))
        command, track = np.empty((len(starts), most, n)), np.empty((len(starts), most + 1, 2 * n + 3))
        for k, row in enumerate(starts):
            command[k] = self._commands(float(self._measured_s[row]), most, latency)
            torque[k] = self._torque(row)
        copies = Abreast(plant, self._spare, states, torque, held=self._hang)
        track[:, 0] = self._row(copies)
        at = np.minimum(due / plant.dt, steps[:, None] - 1e-9)
        low = at.astype(int)
        looked_at = {*low.ravel().tolist(), *(low + 1).ravel().tolist()}
        for i in range(most):
            copies.step(command[:, i])
            if i + 1 in looked_at:
                track[:, i + 1] = self._row(copies)
        share, every = (at - low)[..., None], np.arange(len(starts))[:, None]
        values = track[every, low] + share * (track[every, low + 1] - track[every, low])
        up = values[..., 2 * n :] / np.linalg.norm(values[..., 2 * n :], axis=-1, keepdims=True)
        cosine = np.sum(up * rotation.up_in_frame(log.quat_wxyz[ticks]), axis=-1)
        zero = self._measured_s[self.rows[0]]
        return Replay(
            first=starts,
            time_s=self._measured_s[ticks] - zero,
            position=log.joint_position[ticks],
            position_sim=values[..., :n],
            velocity=log.joint_velocity[ticks],
            velocity_sim=values[..., n : 2 * n],
            tilt_error_rad=np.arccos(np.clip(cosine, -1.0, 1.0)),
            start=log.joint_position[starts],
        )

    def _commands(self, begin_s: float, steps: int, latency_s: float) -> np.ndarray:
        """What the motors are told in each physics step from `begin_s`, `latency_s` late, (steps, joints) [rad]."""
        dt = self.plant.dt
        rows = delay.depth(latency_s, dt)
        targets = self._targets(begin_s - rows * dt, rows + steps, dt)
        if not latency_s:
            return targets[rows:]
        # by step, the line of the targets that are on their way, the newest first
        line = targets[rows + np.arange(steps)[:, None] - np.arange(rows)]
        return delay.read(line, latency_s, dt)

    @staticmethod
    def _row(copies: Abreast) -> np.ndarray:
        position, velocity, quat = copies.measured()
        return np.concatenate([position, velocity, rotation.up_in_frame(rotation.normalise(quat))], axis=-1)


def _foot_points(plant: Plant, data: object) -> list[tuple[int, np.ndarray]]:
    """Candidate contact points of the feet: (body, world point), the lowest of each end of each geom.

    Capsules have two ends and spheres one; of any other shape the lowest point of its bounding sphere's axis.
    """
    model, out = plant.model, []
    for geom in np.atleast_1d(plant.built.foot_geoms):
        centre = data.geom_xpos[geom]  # type: ignore[attr-defined]
        matrix = data.geom_xmat[geom].reshape(3, 3)  # type: ignore[attr-defined]
        size, kind, body = model.geom_size[geom], int(model.geom_type[geom]), int(model.geom_bodyid[geom])
        if kind == 3:  # capsule: radius, half length along z
            ends = [centre + sign * size[1] * matrix[:, 2] for sign in (-1.0, 1.0)]
            out += [(body, end - (0.0, 0.0, size[0])) for end in ends]
        elif kind == 2:  # sphere
            out.append((body, centre - (0.0, 0.0, size[0])))
        else:  # box corners, or those of the bounding box of any other shape
            middle, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
            for corner in np.stack(np.meshgrid(*[(-1.0, 1.0)] * 3), axis=-1).reshape(-1, 3):
                out.append((body, centre + matrix @ (middle + corner * half)))
    return out
