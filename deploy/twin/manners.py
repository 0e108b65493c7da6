"""The twin with the manners of another server: the K-Bot's, kos-sim's or kos-zbot's, as deploy/robot/dialects.py tells.

What is not a field of a dialect is in the comments "kos-sim:" and "kos-zbot:"; source: their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from kos_protos import actuator_pb2, common_pb2, sim_pb2

from deploy.robot.dialects import KOS_SIM, TWIN, Dialect, named
from deploy.twin.faults import Faults
from deploy.twin.plant import Plant
from deploy.twin.services import CALLS, OK, Services

_GAINS = ("kp", "kd", "max_torque", "torque_enabled", "min_position", "max_position")
_REGISTER_MAX = 255


class Aborted(Exception):
    """A call ends with a status of gRPC in place of an answer."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class Imitation(Services):
    """The answers of another server. Args as of `Services`, and which it is."""

    def __init__(
        self,
        plant: Plant,
        lockstep: bool,
        dialect: Dialect,
        faults: Faults | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(plant, lockstep, faults, tell)
        self.dialect = dialect
        self._deaf_until_s = -math.inf
        if "rad/s" in (dialect.gyro_unit, plant.reality.sensors.gyro_unit):
            self._gyro_scale = 1.0
        if "torque_enabled" in dialect.ignores:  # kos-sim: the motors are on from the start, with the gains of the file
            for i, j in enumerate(plant.spec.joints):
                plant.configure(i, kp=j.kp, kd=j.kd, max_torque=j.torque_limit_nm, torque_enabled=True)

    def CommandActuators(self, request: Any) -> Any:
        self.catch_up()
        if self.plant.time_s < self._deaf_until_s:  # kos-zbot: no target goes to the bus so soon after a configuration
            return actuator_pb2.CommandActuatorsResponse()
        answer = super().CommandActuators(request)
        if self.dialect.lists_all:  # kos-sim, kos-zbot: no word on any of them
            del answer.results[:]
        return answer

    def ConfigureActuator(self, request: Any) -> Any:
        joint, plant = self._joint_of.get(request.actuator_id), self.plant
        told: Any = actuator_pb2.ConfigureActuatorRequest()
        told.CopyFrom(request)
        for field in self.dialect.ignores:
            told.ClearField(field)
        if self.dialect.register_gains:
            for field in ("kp", "kd"):
                if told.HasField(field):
                    setattr(told, field, float(int(getattr(told, field))))
                if getattr(told, field) > _REGISTER_MAX:
                    return common_pb2.ActionResponse(success=False)
        if self.dialect.keeps_left_out and joint is not None:
            for field, values in (("kp", plant.kp), ("kd", plant.kd), ("max_torque", plant.max_torque)):
                if not told.HasField(field):
                    setattr(told, field, float(values[joint]))
        answer = super().ConfigureActuator(told)
        self._deaf_until_s = self.plant.time_s + self.dialect.settle_s
        return answer

    def GetActuatorsState(self, request: Any) -> Any:
        d, ids = self.dialect, list(request.actuator_ids)
        if d.lists_all and not ids:
            ids = list(self._joint_of)
        unknown = [i for i in ids if i not in self._joint_of] if d.lists_all else []
        if unknown and d is KOS_SIM:
            raise Aborted(grpc.StatusCode.INTERNAL, f"'Joint ID {unknown[0]} not found in config mappings'")
        answer = super().GetActuatorsState(actuator_pb2.GetActuatorsStateRequest(actuator_ids=ids))
        for state in answer.states:
            for field in () if d.tells_gains else _GAINS:
                state.ClearField(field)
            for field in () if d.tells_torque else ("torque", "temperature"):
                state.ClearField(field)
            if d.online_is_torque:
                state.online = bool(self.plant.enabled[self._joint_of[state.actuator_id]])
        for i in unknown:
            answer.states.add(actuator_id=i, position=0.0, velocity=0.0, faults=["servo not registered"])
        return answer

    def Reset(self, request: Any) -> Any:
        """kos-sim: joints go to 0 whatever is asked, the base where it is asked to, left out to the origin."""
        plant = self.plant
        place = (request.pos.x, request.pos.y, request.pos.z)
        quat = np.array([request.quat.w, request.quat.x, request.quat.y, request.quat.z])
        plant.place(place, quat, np.zeros(plant.joints))
        self._forget()
        self._anchor()
        return OK

    def SetPaused(self, request: Any) -> Any:
        """kos-sim: says yes, and does nothing."""
        return OK

    def Step(self, request: Any) -> Any:
        """kos-sim: has none."""
        raise Aborted(grpc.StatusCode.UNKNOWN, "Step is not implemented")

    def GetParameters(self, request: Any) -> Any:
        """kos-sim: gravity with its sign."""
        answer = super().GetParameters(request)
        parameters = sim_pb2.SimulationParameters(
            time_scale=answer.parameters.time_scale, gravity=-math.fabs(answer.parameters.gravity)
        )
        return sim_pb2.GetParametersResponse(parameters=parameters)


def services_as(
    server: str,
    plant: Plant,
    lockstep: bool,
    faults: Faults | None = None,
    tell: Callable[[str], None] | None = None,
) -> Services:
    """The answers of a kind of server over a plant; the rest as of `Services`.

    Raises:
        OptionError: there is no server of that name.
    """
    dialect = named(server)
    if dialect is TWIN:
        return Services(plant, lockstep, faults, tell)
    return Imitation(plant, lockstep, dialect, faults, tell)


def calls_as(server: str) -> dict[str, dict[str, Any]]:
    """The calls that a kind of server answers, by service."""
    simulates = named(server).simulates
    return {service: calls for service, calls in CALLS.items() if simulates or "sim" not in service}
