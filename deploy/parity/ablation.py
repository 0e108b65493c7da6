"""Differences put into the simulation one at a time: which of them makes it move as the log says.

A difference is judged by short windows that restart from the measured state. A contact that comes or goes within a
window throws it far off whatever the model is, so large errors count by their logarithm, not by their square.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.log.recorder import RunLog
from deploy.parity.motion import WindowedSimulation
from deploy.parity.symptoms import turned_back
from deploy.twin.reality import Joints, Reality, per_joint
from robots.spec import RobotSpec

# Length and number of the windows: long enough for a joint to answer, short enough that the base is still where it was.
WINDOW_S, WINDOWS = 0.16, 48
ALL = slice(None)
# Sets of restarts' states that are kept.
KEPT = 50
# Errors of this size and below are what the sensors' noise makes of a window [rad, rad/s, rad].
POSITION_RAD, VELOCITY_RAD_S, TILT_RAD = 0.002, 0.06, 0.01


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Which column of a log is which joint, and in which unit, sign and zero.

    Attributes:
        told: what the columns of measured joints are of, (joints,).
        sent: what the columns of targets are for, (joints,).
        told_factor: true angle over measured, (joints,).
        sent_factor: angle that was really asked for over the one in the log, (joints,).
        zero_rad: measured less true, by column (joints,) [rad].
    """

    told: np.ndarray
    sent: np.ndarray
    told_factor: np.ndarray
    sent_factor: np.ndarray
    zero_rad: np.ndarray

    @classmethod
    def plain(cls, joints: int) -> Wiring:
        """As the log says."""
        order, ones = np.arange(joints), np.ones(joints)
        return cls(told=order, sent=order, told_factor=ones, sent_factor=ones, zero_rad=np.zeros(joints))

    def corrected(self, log: RunLog) -> RunLog:
        """The log as it would be without this."""
        into, sent = np.empty_like(log.joint_position), np.empty_like(log.sent)
        position, velocity, torque = into, into.copy(), into.copy()
        sign = np.sign(self.told_factor)
        position[:, self.told] = (log.joint_position - self.zero_rad) * self.told_factor
        velocity[:, self.told] = log.joint_velocity * self.told_factor
        torque[:, self.told] = log.joint_torque * sign
        sent[:, self.sent] = log.sent * self.sent_factor
        return dataclasses.replace(
            log, joint_position=position, joint_velocity=velocity, joint_torque=torque, sent=sent
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What is put into the simulation.

    Attributes:
        joints: of the motors.
        extra_s: more delay from a command to its measured effect [s].
        payload_kg: more mass at the torso [kg].
        wiring: None as the log says.
        imu_z_rad: the IMU is turned about its z axis [rad].
    """

    joints: Joints
    extra_s: float = 0.0
    payload_kg: float = 0.0
    wiring: Wiring | None = None
    imu_z_rad: float = 0.0


def changed(joints: Joints, robot: RobotSpec, what: str, at: int | None, change: Callable[[float], float]) -> Joints:
    """Joints of a reality with one property of one joint, or of all of them, changed."""
    nominal = 1.0 if what.endswith("_scale") else 0.0
    values = per_joint(what, getattr(joints, what), robot, nominal)
    chosen = range(len(values)) if at is None else (at,)
    for j in chosen:
        values[j] = change(float(values[j]))
    return dataclasses.replace(joints, **{what: dict(zip(robot.joint_names, values.tolist(), strict=True))})


class Lab:
    """A log, and the simulation that differences are put into.

    Args as of `WindowedSimulation`; the log's joints are in the robot's order.

    Attributes:
        starts: rows of the windows' restarts; empty where the log has no stretch that is long enough.
        misfit: of the simulation as it is, (windows, cells); see `misfit_of`.
        tried: how many differences were simulated.
        drift_rad: by how much the last of them had each joint ahead at the windows' ends, the median (joints,).
    """

    def __init__(self, robot: str | Path, log: RunLog, reality: Reality, *, hang: bool = False) -> None:
        self._robot, self.log, self.reality, self._hang = robot, log, reality, hang
        self.plain = Difference(joints=reality.joints)
        self._simulations: dict[float, WindowedSimulation] = {}
        self._known: dict[tuple[object, ...], tuple[dict[int, tuple[np.ndarray, np.ndarray]], object]] = {}
        self.horizon = max(3, round(WINDOW_S / log.spec.control_period_s))
        self.starts, self.tried = self._windows(), 0

    def _windows(self) -> np.ndarray:
        """End to end where the run is long enough for that, else overlapping by half."""
        starts = self.simulation.windows(self.horizon)
        if len(starts) < WINDOWS:
            # every tick that so many follow without a gap
            steps = self.simulation.windows(1)
            last = steps[self.horizon - 1 :]
            whole = steps[: len(last)][last - steps[: len(last)] == self.horizon - 1]
            starts = whole[:: max(1, self.horizon // 2)]
        if len(starts) > WINDOWS:
            starts = starts[np.linspace(0, len(starts) - 1, WINDOWS).astype(int)]
        return starts

    def some(self, windows: int) -> slice:
        """About so many of the windows, evenly."""
        return slice(0, None, max(1, round(len(self.starts) / windows)))

    @property
    def spec(self) -> RobotSpec:
        """Of the robot, as the simulation has it."""
        return self.simulation.plant.spec

    def limbs(self) -> list[int]:
        """By joint, the first joint of its branch of the robot."""
        built = self.simulation.plant.built
        model = built.model
        joint_of_body = {int(model.jnt_bodyid[model.dof_jntid[d]]): j for j, d in enumerate(built.dof_ids)}
        out = []
        for body in joint_of_body:
            first = body
            while body > 0:
                first = body if body in joint_of_body else first
                body = int(model.body_parentid[body])
            out.append(joint_of_body[first])
        return out

    @property
    def simulation(self) -> WindowedSimulation:
        """The simulation as it is."""
        return self._of_mass(0.0)

    def _of_mass(self, payload_kg: float) -> WindowedSimulation:
        """One of each mass is kept: they are few."""
        if payload_kg not in self._simulations:
            body = self.reality.body
            heavy = dataclasses.replace(body, payload_kg=max(0.0, body.payload_kg + payload_kg))
            reality = dataclasses.replace(self.reality, body=heavy)
            self._simulations[payload_kg] = WindowedSimulation(self._robot, self.log, reality, hang=self._hang)
        return self._simulations[payload_kg]

    def _simulation(self, difference: Difference) -> WindowedSimulation:
        simulation, log, wiring = self._of_mass(difference.payload_kg), self.log, difference.wiring
        if difference.imu_z_rad:
            log = turned_back(log, "z", difference.imu_z_rad)
        if wiring is not None:
            log = wiring.corrected(log)
        # gains go the way of the targets
        order = range(len(log.spec.robot.joints)) if wiring is None else wiring.sent.tolist()
        for i, joint in zip(order, log.spec.robot.joints, strict=True):
            simulation.plant.configure(i, kp=joint.kp, kd=joint.kd, max_torque=joint.torque_limit_nm)
        simulation.plant.set_joints(difference.joints)
        return simulation if log is self.log else simulation.of(log)

    def _states(
        self, simulation: WindowedSimulation, difference: Difference, rows: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of the restarts at these rows; most differences change nothing in them."""
        params, wiring = simulation.plant.params, difference.wiring
        shape = [np.asarray(v).tobytes() for v in (simulation.plant.offset, params.play, params.compliance)]
        key = (difference.imu_z_rad, None if wiring is None else id(wiring), *shape)
        if key not in self._known:
            if len(self._known) > KEPT:
                self._known.clear()
            # a wiring's id is its own as long as it lives
            self._known[key] = {}, wiring
        known = self._known[key][0]
        known |= {row: simulation.state_of(row) for row in rows.tolist() if row not in known}
        return [known[row] for row in rows.tolist()]

    def misfit_of(self, difference: Difference, part: slice = ALL) -> np.ndarray:
        """How far the simulation is from the log, (windows, cells): position of each joint, then speed, then tilt.

        A cell is log(1 + e^2 / f^2), e the RMS error over the window and f what is noise.

        Args:
            difference: that is put into the simulation.
            part: the windows to simulate.
        """
        self.tried += 1
        simulation, rows = self._simulation(difference), self.starts[part]
        states = self._states(simulation, difference, rows)
        replay = simulation.replay(rows, self.horizon, difference.extra_s, states)
        self.drift_rad = np.median((replay.position_sim - replay.position)[:, -1], axis=0)
        position = np.mean((replay.position_sim - replay.position) ** 2, axis=1) / POSITION_RAD**2
        velocity = np.mean((replay.velocity_sim - replay.velocity) ** 2, axis=1) / VELOCITY_RAD_S**2
        tilt = np.nan_to_num(np.mean(replay.tilt_error_rad**2, axis=1, keepdims=True)) / TILT_RAD**2
        cells = np.concatenate([position, velocity, tilt], axis=1)
        # a simulation that blew up is as far off as can be
        return np.log1p(np.nan_to_num(cells, nan=1e12, posinf=1e12))


def gain_of(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """(share of the misfit that is taken away, how sure: mean over windows by its standard error)."""
    total, per_window = before.sum(), (before - after).sum(axis=1)
    if total <= 0:
        return 0.0, 0.0
    error = per_window.std(ddof=1) / math.sqrt(len(per_window)) if len(per_window) > 1 else math.inf
    return float(per_window.sum() / total), float(per_window.mean() / max(error, 1e-12))


def best_on(
    cost: Callable[[float], float], grid: Sequence[float], at_zero: float, refine: int = 2
) -> tuple[float, float]:
    """(value, cost) of the least on a line: the grid with 0 in it, then parabolas about the best."""
    tried = {0.0: at_zero} | {v: cost(v) for v in grid}
    for _ in range(refine):
        points = sorted(tried)
        i = points.index(min(tried, key=lambda v: tried[v]))
        if points[i] == 0.0:
            break
        if 0 < i < len(points) - 1:
            a, b, c = points[i - 1 : i + 2]
            below = (b - a) * (tried[b] - tried[c]) - (b - c) * (tried[b] - tried[a])
            over = (b - a) ** 2 * (tried[b] - tried[c]) - (b - c) ** 2 * (tried[b] - tried[a])
            guess = b - 0.5 * over / below if abs(below) > 1e-12 else b
            if min(abs(guess - a), abs(guess - b), abs(guess - c)) < 0.02 * (c - a):
                break
        else:
            guess = 1.6 * points[i]
        tried[guess] = cost(guess)
    best = min(tried, key=lambda v: tried[v])
    return best, tried[best]
