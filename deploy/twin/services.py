"""What a twin answers to KOS calls: the K-Bot server's semantics over a Plant.

Degrees and the order x, y, z, w are this module's, as they are deploy/robot/kos.py's: it is the other end of the wire.
What a K-Bot's server does is in the comments "K-Bot:"; source: kos-kbot and pykos 0.7.10.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.empty_pb2 import Empty
from kos_protos import actuator_pb2, common_pb2, imu_pb2, sim_pb2

from deploy.twin.faults import Faults
from deploy.twin.plant import Plant
from robots import rotation

# Behind by more than this (a stopped process), simulated time slips instead of racing.
SLIP_S = 1.0
AMBIENT_C = 25.0
DEFAULT_MAX_TORQUE_NM = 120.0


def _error(message: str, code: Any = common_pb2.INVALID_ARGUMENT) -> common_pb2.Error:
    return common_pb2.Error(code=code, message=message)


def _refused(message: str, code: Any = common_pb2.INVALID_ARGUMENT) -> common_pb2.ActionResponse:
    return common_pb2.ActionResponse(success=False, error=_error(message, code))


OK = common_pb2.ActionResponse(success=True)


class Services:
    """The answers: one method a call, plain functions of the request over a Plant. Runs on one thread.

    Args:
        plant: the simulated robot.
        lockstep: time advances through Step only.
        faults: what is wrong with it.
        tell: called with "stiff" when every joint has been given a stiffness, and with "limp" when every joint has been
            configured and none has any.
    """

    def __init__(
        self,
        plant: Plant,
        lockstep: bool,
        faults: Faults | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.plant = plant
        self.faults = faults or Faults(plant)
        self._tell, self._configured = tell, set()
        self.lockstep = lockstep
        self.paused = False
        self.time_scale = 1.0
        self.slipped_s = 0.0
        self._joint_of = {joint_id: i for i, joint_id in enumerate(plant.spec.joint_ids)}
        self._gyro_scale = math.degrees(1.0) if plant.reality.sensors.gyro_unit == "deg/s" else 1.0
        self._sampled: tuple[int, Any] = (-1, None)
        self._anchor()

    # time

    def start(self) -> None:
        """Simulated time begins to run now."""
        self._anchor()

    def _anchor(self) -> None:
        self._wall_s, self._from_step = time.monotonic(), self.plant.step_count

    def catch_up(self) -> None:
        """Bring physics to the present; in lock-step or paused it stays where it is."""
        if self.faults.begin():
            self._forget()
        if self.lockstep or self.paused:
            return
        plant = self.plant
        due = int((time.monotonic() - self._wall_s) * self.time_scale / plant.dt) - (plant.step_count - self._from_step)
        limit = int(SLIP_S * self.time_scale / plant.dt)
        if due > limit:
            self.slipped_s += due * plant.dt / self.time_scale
            self._anchor()
        elif due > 0:
            plant.advance(due)

    def _sample(self) -> Any:
        # the calls of one gathered read share the sample of one physics step
        if self._sampled[0] != self.plant.step_count:
            self._sampled = (self.plant.step_count, self.faults.sensed(self.plant.read()))
        return self._sampled[1]

    def clear_faults(self) -> None:
        """Nothing is wrong any more."""
        self.faults.clear()
        self._forget()

    def _forget(self) -> None:
        self._sampled = (-1, None)

    # ActuatorService

    def CommandActuators(self, request: Any) -> Any:
        joints, position, velocity, torque, results = [], [], [], [], []
        for c in request.commands:
            joint = self._joint_of.get(c.actuator_id)
            finite = math.isfinite(c.position) and math.isfinite(c.velocity) and math.isfinite(c.torque)
            if joint is None or not finite:
                why = f"actuator {c.actuator_id} is not on the bus" if joint is None else "the command is not finite"
                results.append(
                    common_pb2.ActionResult(actuator_id=c.actuator_id, success=False, error=_error(why)),
                )
                continue
            joint = self.faults.behind(joint)
            sign = -1.0 if "joint_inverted" in self.faults.about(joint) else 1.0
            joints.append(joint)
            # K-Bot: a position, velocity or torque left out is 0, which is what an absent field reads as
            position.append(sign * math.radians(c.position))
            velocity.append(sign * math.radians(c.velocity))
            torque.append(sign * c.torque)
            results.append(common_pb2.ActionResult(actuator_id=c.actuator_id, success=True))
        if joints:
            self.plant.command(joints, position, velocity, torque)
        return actuator_pb2.CommandActuatorsResponse(results=results)

    def ConfigureActuator(self, request: Any) -> Any:
        joint = self._joint_of.get(request.actuator_id)
        if joint is None:
            return _refused(f"actuator {request.actuator_id} is not on the bus")
        if request.HasField("new_actuator_id"):
            return _refused("a twin's ids do not change", common_pb2.NOT_IMPLEMENTED)
        joint = self.faults.behind(joint)
        if "joint_refuses" in self.faults.about(joint):
            return _refused("bus error", common_pb2.HARDWARE_FAILURE)
        # K-Bot: a gain left out is set to 0 and a torque limit left out to 120 N m; they are not kept
        kp, kd = request.kp, request.kd
        limit = request.max_torque if request.HasField("max_torque") else DEFAULT_MAX_TORQUE_NM
        if not all(math.isfinite(v) and v >= 0 for v in (kp, kd, limit)):
            return _refused(f"actuator {request.actuator_id}: kp, kd, max_torque: expected numbers of 0 or more")
        enabled = request.torque_enabled if request.HasField("torque_enabled") else None
        self.plant.configure(joint, kp=kp, kd=kd, max_torque=limit, torque_enabled=enabled)
        if request.zero_position:
            self.plant.set_zero(joint)
            self._forget()
        self._configured.add(joint)
        if self._tell is not None and len(self._configured) == self.plant.joints:
            stiff = self.plant.kp > 0
            if stiff.all() or not stiff.any():
                self._configured.clear()
                self._tell("stiff" if stiff.all() else "limp")
        return OK

    def GetActuatorsState(self, request: Any) -> Any:
        plant, states = self.plant, []
        sample = self._sample()
        # K-Bot: no ids gives no states, and an id without feedback is left out
        joints = [(i, self.faults.behind(self._joint_of[i])) for i in request.actuator_ids if i in self._joint_of]
        position = np.degrees(sample.position).tolist()
        velocity = np.degrees(sample.velocity).tolist()
        torque = sample.torque.tolist()
        for actuator_id, j in joints:
            spec, wrong = plant.spec.joints[j], self.faults.about(j)
            if "joint_silent" in wrong:
                continue
            states.append(
                actuator_pb2.ActuatorStateResponse(
                    actuator_id=actuator_id,
                    online="joint_offline" not in wrong,
                    position=position[j],
                    velocity=velocity[j],
                    torque=torque[j],
                    temperature=wrong.get("joint_hot", AMBIENT_C),
                    faults=["over current"] if "joint_faulted" in wrong else [],
                    torque_enabled=bool(plant.enabled[j]),
                    kp=float(plant.kp[j]),
                    kd=float(plant.kd[j]),
                    max_torque=float(plant.max_torque[j]),
                    min_position=math.degrees(spec.lower_rad),
                    max_position=math.degrees(spec.upper_rad),
                )
            )
        return actuator_pb2.GetActuatorsStateResponse(states=states)

    # IMUService

    def GetValues(self, request: Any) -> Any:
        sample = self._sample()
        ax, ay, az = sample.accel_b.tolist()
        gx, gy, gz = (self._gyro_scale * sample.gyro_b).tolist()
        return imu_pb2.IMUValuesResponse(accel_x=ax, accel_y=ay, accel_z=az, gyro_x=gx, gyro_y=gy, gyro_z=gz)

    def GetQuaternion(self, request: Any) -> Any:
        w, x, y, z = self._sample().quat_wxyz.tolist()
        return imu_pb2.QuaternionResponse(x=x, y=y, z=z, w=w)

    def GetEuler(self, request: Any) -> Any:
        roll, pitch, yaw = np.degrees(rotation.roll_pitch_yaw(self._sample().quat_wxyz)).tolist()
        return imu_pb2.EulerAnglesResponse(roll=roll, pitch=pitch, yaw=yaw)

    def GetAdvancedValues(self, request: Any) -> Any:
        sample = self._sample()
        down = rotation.gravity_in_frame(sample.quat_wxyz)
        lin = sample.accel_b + down
        return imu_pb2.IMUAdvancedValuesResponse(
            lin_acc_x=lin[0], lin_acc_y=lin[1], lin_acc_z=lin[2], grav_x=down[0], grav_y=down[1], grav_z=down[2]
        )

    # SimulationService

    def Reset(self, request: Any) -> Any:
        """Pick the robot up: joints by name in degrees and degrees/s, an absent quaternion is upright."""
        plant = self.plant
        home = np.asarray(plant.spec.column("home_rad"))
        position, velocity = home.copy(), np.zeros(plant.joints)
        for value in request.joints.values:
            if value.name not in plant.spec.joint_names:
                return _refused(f"no joint {value.name!r}; there is {', '.join(plant.spec.joint_names)}")
            j = plant.spec.joint_names.index(value.name)
            position[j], velocity[j] = math.radians(value.pos), math.radians(value.vel)
        place, quat = None, None
        if request.HasField("pos"):
            place = (request.pos.x, request.pos.y, request.pos.z)
        if request.HasField("quat"):
            quat = np.asarray([request.quat.w, request.quat.x, request.quat.y, request.quat.z])
            norm = float(np.linalg.norm(quat))
            if not norm > 1e-6:
                return _refused("the quaternion is zero; leave it out for upright")
            quat = quat / norm
        if not all(np.isfinite(v).all() for v in (position, velocity, place or 0.0, 0.0 if quat is None else quat)):
            return _refused("the pose is not finite")
        plant.place(place, quat, position, velocity)
        self._forget()
        self._anchor()
        return OK

    def SetPaused(self, request: Any) -> Any:
        """Stop simulated time, or let it run; going on also releases a robot that is held."""
        if not request.paused:
            self.plant.release()
        self.paused = request.paused
        self._anchor()
        return OK

    def Step(self, request: Any) -> Any:
        """Advance by num_steps of step_size, a multiple of the physics step (the default)."""
        if not (self.lockstep or self.paused):
            return _refused("time runs by itself; start the twin with --lockstep, or pause it first")
        dt = self.plant.dt
        # the proto's float: 0.02 comes as 0.0199999996
        size = round(request.step_size, 7) if request.HasField("step_size") else dt
        ratio = size / dt if math.isfinite(size) else 0.0
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-4:
            return _refused(f"step_size {size:g} s: expected a multiple of the physics step {dt:g} s")
        self.plant.advance(request.num_steps * round(ratio))
        return OK

    def SetParameters(self, request: Any) -> Any:
        """Time scale [simulated s/s] and gravity [m/s^2], downwards whatever its sign."""
        p = request.parameters
        if p.HasField("time_scale"):
            if not (math.isfinite(p.time_scale) and 0 < p.time_scale <= 100):
                return _refused(f"time_scale {p.time_scale:g}: expected more than 0 and at most 100")
            self._anchor()
            self.time_scale = p.time_scale
        if p.HasField("gravity"):
            if not math.isfinite(p.gravity):
                return _refused("gravity is not finite")
            self.plant.model.opt.gravity[:] = (0.0, 0.0, -abs(p.gravity))
        return OK

    def GetParameters(self, request: Any) -> Any:
        gravity = float(np.linalg.norm(self.plant.model.opt.gravity))
        return sim_pb2.GetParametersResponse(
            parameters=sim_pb2.SimulationParameters(time_scale=self.time_scale, gravity=gravity)
        )


CALLS: dict[str, dict[str, Any]] = {
    "kos.actuator.ActuatorService": {
        "CommandActuators": actuator_pb2.CommandActuatorsRequest,
        "ConfigureActuator": actuator_pb2.ConfigureActuatorRequest,
        "GetActuatorsState": actuator_pb2.GetActuatorsStateRequest,
    },
    "kos.imu.IMUService": {
        "GetValues": Empty,
        "GetQuaternion": Empty,
        "GetEuler": Empty,
        "GetAdvancedValues": Empty,
    },
    "kos.sim.SimulationService": {
        "Reset": sim_pb2.ResetRequest,
        "SetPaused": sim_pb2.SetPausedRequest,
        "Step": sim_pb2.StepRequest,
        "SetParameters": sim_pb2.SetParametersRequest,
        "GetParameters": Empty,
    },
}
"""What the twin answers; any other call of KOS is UNIMPLEMENTED."""
