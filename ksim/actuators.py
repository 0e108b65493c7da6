"""From joint targets to torque: what the motors' controllers are told, and the law that they follow.

The law itself is robots/motor.py, one for training, twin, parity and identification. Latency is ksim/channels.py.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from ksim.errors import ConfigError
from ksim.term import Term
from robots import motor
from toolkit.settings import Bound


@dataclass(frozen=True, kw_only=True)
class Actuators(Term, abc.ABC):
    """Motors with a controller each.

    Attributes:
        update_period_s: how often the controllers renew their torque [s]; 0 means at each physics step.
    """

    update_period_s: Annotated[float, Bound(0, 1, "seconds, 0 for each physics step")] = 0.0

    def hold_steps(self, dt: float) -> int:
        """Physics steps of `dt` [s] for which a torque stays.

        Raises:
            ConfigError: the period is no multiple of the physics step.
        """
        steps = max(1, round(self.update_period_s / dt))
        if self.update_period_s > 0 and abs(steps * dt - self.update_period_s) > 1e-9:
            raise ConfigError(
                f"actuators.update_period_s: got {self.update_period_s:g}, expected a multiple of the physics step "
                f"{dt:g} s"
            )
        return steps

    def command(self, target: Any, last_target: Any, period_s: float, xp: Any) -> Any:
        """What is sent for one control step, (..., channels): the targets themselves."""
        return target

    @abc.abstractmethod
    def told(self, params: motor.MotorParams, command: Any, shift: Any) -> tuple[motor.MotorParams, dict[str, Any]]:
        """(the law's parameters, its targets) for what was sent; `shift` [rad] moves every position target."""

    def torque(
        self,
        params: motor.MotorParams,
        memory: motor.MotorState,
        position: Any,
        velocity: Any,
        command: Any,
        shift: Any,
        dt: float,
        xp: Any = np,
        soft: motor.SoftJoints | None = None,
    ) -> tuple[Any, Any, motor.MotorState]:
        """(drive torque, net torque on the joint, memory) of one physics step, [N m]; `soft`: of these parameters."""
        own, told = self.told(params, command, shift)
        found = soft if own is params else None
        return motor.step(own, memory, position, velocity, dt=dt, xp=xp, soft=found, **told)

    def drive(
        self,
        params: motor.MotorParams,
        memory: motor.MotorState,
        position: Any,
        velocity: Any,
        command: Any,
        shift: Any,
        xp: Any = np,
    ) -> Any:
        """The torque that the controller would give now, before friction [N m]."""
        params, told = self.told(params, command, shift)
        return motor.drive_torque(params, *motor.encoder(params, memory, position, velocity, xp=xp), xp=xp, **told)

    def hold(
        self,
        params: motor.MotorParams,
        memory: motor.MotorState,
        position: Any,
        velocity: Any,
        torque: Any,
        dt: float,
        xp: Any = np,
    ) -> tuple[Any, Any, motor.MotorState]:
        """As `torque`, with a drive torque that was computed before."""
        free = params._replace(kp=params.kp * 0.0, kd=params.kd * 0.0)
        return motor.step(free, memory, position, velocity, position, dt=dt, xp=xp, feedforward=torque)


@dataclass(frozen=True, kw_only=True)
class PositionActuators(Actuators):
    """PD about a position target, as K-Scale's motors run policies."""

    def told(self, params: motor.MotorParams, command: Any, shift: Any) -> tuple[motor.MotorParams, dict[str, Any]]:
        return params, {"target": command + shift}


@dataclass(frozen=True, kw_only=True)
class TorqueActuators(Actuators):
    """The command is a torque [N m]; no gains act."""

    def told(self, params: motor.MotorParams, command: Any, shift: Any) -> tuple[motor.MotorParams, dict[str, Any]]:
        free = params._replace(kp=params.kp * 0.0, kd=params.kd * 0.0)
        return free, {"target": shift * 0.0, "feedforward": command}


@dataclass(frozen=True, kw_only=True)
class PositionVelocityActuators(Actuators):
    """PD about a position target and the speed at which it moves: `kd (target speed - speed)`."""

    def command(self, target: Any, last_target: Any, period_s: float, xp: Any) -> Any:
        return xp.concatenate([target, (target - last_target) / period_s], axis=-1)

    def told(self, params: motor.MotorParams, command: Any, shift: Any) -> tuple[motor.MotorParams, dict[str, Any]]:
        joints = shift.shape[-1]
        return params, {"target": command[..., :joints] + shift, "target_velocity": command[..., joints:]}
