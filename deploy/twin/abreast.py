"""Many copies of a plant's robot that step side by side, each from a state of its own.

Python's share of a physics step is greater than MuJoCo's, and most of it is the motor law: here the law is one call for
all copies. What each of them does is what `Plant` does with the same targets, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy.twin.plant import Plant
from robots import motor
from robots.motor import SoftJoints


class Abreast:
    """Copies of the robot of a plant with the motors that the plant has now, whose sensors and commands are not late.

    Args:
        plant: the robot; it stays as it is.
        spare: data of its model to use again; those that are missing are added.
        states: (qpos, qvel) of each copy.
        torque: that the joints' shafts carry, (copies, joints) [N m].
        held: the bases do not move.
    """

    def __init__(
        self,
        plant: Plant,
        spare: list[Any],
        states: Sequence[tuple[np.ndarray, np.ndarray]],
        torque: np.ndarray,
        *,
        held: bool,
    ) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self._plant, self._held, model = plant, held and plant.built.base_body >= 0, plant.model
        spare += [self._mujoco.MjData(model) for _ in range(len(states) - len(spare))]
        self._data = spare[: len(states)]
        # views of MuJoCo's memory: to ask for one takes as long as to copy it
        self._qpos, self._qvel = [d.qpos for d in self._data], [d.qvel for d in self._data]
        self._ctrl, self._sensed = [d.ctrl for d in self._data], [d.sensordata for d in self._data]
        for data, (qpos, qvel) in zip(self._data, states, strict=True):
            self._mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = qpos, qvel
            self._mujoco.mj_forward(model, data)
        self._start, self._soft = self._gathered(self._qpos), SoftJoints.of(plant.params)
        self._motor = motor.rest(plant.params, self._start[:, plant.built.qpos_ids], torque=torque)

    def _gathered(self, parts: list[np.ndarray]) -> np.ndarray:
        return np.array(parts) if parts else np.empty((0, max(self._plant.model.nq, self._plant.model.nsensordata)))

    def step(self, target: np.ndarray) -> None:
        """One physics step towards targets (copies, joints) [rad]."""
        plant, built, lib = self._plant, self._plant.built, self._mujoco
        position = self._gathered(self._qpos)[:, built.qpos_ids]
        velocity = self._gathered(self._qvel)[:, built.dof_ids]
        asked = target - plant.offset
        _, net, self._motor = motor.step(
            plant.params, self._motor, position, velocity, asked, plant.dt, soft=self._soft
        )
        for k, data in enumerate(self._data):
            self._ctrl[k][:] = net[k]
            # the second half first, as the plant does
            lib.mj_step2(plant.model, data)
            if self._held:
                for part in (built.base_position, built.base_quat):
                    self._qpos[k][part] = self._start[k, part]
                for part in (built.base_lin_vel, built.base_ang_vel):
                    self._qvel[k][part] = 0.0
            lib.mj_step1(plant.model, data)

    def measured(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the sensors tell: positions [rad] and velocities [rad/s] (copies, joints), orientation (copies, 4)."""
        plant, built = self._plant, self._plant.built
        position = self._gathered(self._qpos)[:, built.qpos_ids]
        velocity = self._gathered(self._qvel)[:, built.dof_ids]
        position, velocity = motor.encoder(plant.params, self._motor, position, velocity)
        return position + plant.offset, velocity, self._gathered(self._sensed)[:, built.sensors["imu_quat"]]
