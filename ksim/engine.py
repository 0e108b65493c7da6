"""One interface, two engines: MuJoCo C on a thread pool, and MJX.

Both run the same loop at the physics rate: delay line, motor law (robots/), one physics step, sensor
line. They differ only in who integrates. All arrays are batched, (E, ...).
"""

from __future__ import annotations

import abc
import contextlib
import functools
import io
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from ksim.errors import KsimError
from ksim.types import Drive, PhysicsParams, PhysicsState, Sensors
from robots import delay, motor
from robots.model import BuiltModel
from robots.rotation import gravity_in_frame

# MjModel fields that may differ between environments.
MODEL_FIELDS = ("geom_friction", "body_mass", "body_inertia", "body_ipos", "dof_armature")

_NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE.value)  # pyright: ignore[reportAttributeAccessIssue]
_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL.value)  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def load_mjx() -> ModuleType:
    """MJX, imported when first needed; without the notice that it prints where Warp is not installed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from mujoco import mjx
    return mjx


class PhysicsEngine(abc.ABC):
    """Physics of a batch of environments.

    Attributes:
        built: the compiled robot.
        envs: number of environments.
        substeps: physics steps in a control step.
        dt: physics step [s].
    """

    def __init__(
        self,
        built: BuiltModel,
        envs: int,
        control_period_s: float,
        latency_max_s: float,
        observation_latency_max_s: float,
    ):
        self.built = built
        self.envs = envs
        self.dt = float(built.model.opt.timestep)
        self.substeps = round(control_period_s / self.dt)
        if abs(self.substeps * self.dt - control_period_s) > 1e-9 or self.substeps < 1:
            raise KsimError(
                f"physics step: got {self.dt} s, expected a divisor of the control period {control_period_s} s"
            )
        self.control_period_s = control_period_s
        self.command_depth = delay.depth(latency_max_s, self.dt)
        self.sensor_depth = delay.depth(observation_latency_max_s, self.dt)
        self.foot_slices = [s for name, s in built.sensors.items() if name.startswith("touch_")]

    @abc.abstractmethod
    def init(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        """A fresh state of every environment, from qpos (E, nq) and qvel (E, nv), at rest in its lines."""

    @abc.abstractmethod
    def reset(self, state: PhysicsState, mask: Any, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        """The state with the environments in `mask` (E,) started anew; the others untouched."""

    @abc.abstractmethod
    def step(self, state: PhysicsState, drive: Drive, params: PhysicsParams) -> PhysicsState:
        """The state one control step later."""

    @abc.abstractmethod
    def snapshot(self, state: PhysicsState) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on to the bit, as named arrays."""

    @abc.abstractmethod
    def restore(self, saved: dict[str, np.ndarray], params: PhysicsParams) -> PhysicsState:
        """The state that `snapshot` saved."""

    def _sensors(self, params: PhysicsParams, qpos: Any, qvel: Any, sensordata: Any, xp: Any) -> Sensors:
        b = self.built
        return Sensors(
            joint_position=qpos[..., b.qpos_ids] + params.joint_offset,
            joint_velocity=qvel[..., b.dof_ids],
            gravity_b=gravity_in_frame(sensordata[..., b.sensors["imu_quat"]], xp=xp),
            gyro_b=sensordata[..., b.sensors["imu_gyro"]],
            accel_b=sensordata[..., b.sensors["imu_accelerometer"]],
        )

    def _foot_force(self, sensordata: Any, xp: Any) -> Any:
        if not self.foot_slices:
            return sensordata[..., :0]
        return xp.concatenate([sensordata[..., s] for s in self.foot_slices], axis=-1)

    def _torque(self, params: PhysicsParams, line: Any, latency: Any, qpos: Any, qvel: Any, xp: Any) -> tuple[Any, Any]:
        b = self.built
        target = delay.read(line, latency, self.dt, xp)
        position = qpos[..., b.qpos_ids] + params.joint_offset
        return motor.joint_torque(params.motor, position, qvel[..., b.dof_ids], target, self.dt, xp)


class MujocoEngine(PhysicsEngine):
    """MuJoCo C through mujoco.batch: the default where there is no GPU.

    The batch holds the live state, so a state may be stepped once; `snapshot` and `restore` go back.
    """

    def __init__(self, *args: Any, threads: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # persistent: the velocity stage after a step is the next step's own work, so sensors that
        # are current cost nothing
        self._batch = mujoco.batch.Batch(self.built.model, self.envs, threads, persistent=True)
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl, self._force = self._batch.bind("ctrl"), self._batch.bind("xfrc_applied")
        self._sensordata = self._batch.bind("sensordata")
        self._fields = {name: self._batch.expand(name) for name in MODEL_FIELDS}
        self._stage = _VELOCITY_STAGE
        self._cached: tuple[Any, PhysicsParams] | None = None

    def _numpy(self, params: PhysicsParams) -> PhysicsParams:
        if self._cached is None or self._cached[0] is not params:
            wide = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
            self._cached = (params, wide)
        return self._cached[1]

    def _write(self, mask: np.ndarray, wide: PhysicsParams) -> None:
        for name, values in wide.model.items():
            self._fields[name][mask] = values[mask]

    def _start(self, ids: np.ndarray, qpos: Any, qvel: Any) -> None:
        self._batch.reset(ids, stage=_NO_STAGE)
        self._qpos[ids] = np.asarray(qpos, np.float64)[ids]
        self._qvel[ids] = np.asarray(qvel, np.float64)[ids]
        self._batch.forward(ids)

    def init(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        wide = self._numpy(params)
        everyone = np.arange(self.envs, dtype=np.int32)
        self._write(everyone, wide)
        self._start(everyone, qpos, qvel)
        sensors = self._sensors(wide, self._qpos, self._qvel, self._sensordata, np)
        line = delay.fill(sensors.flat(np), self.sensor_depth).astype(np.float32)
        commands = delay.fill(sensors.joint_position, self.command_depth).astype(np.float32)
        return self._state(wide, np.zeros_like(sensors.joint_position), commands, line)

    def reset(self, state: PhysicsState, mask: Any, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        mask = np.asarray(mask)
        if not mask.any():
            return state
        wide = self._numpy(params)
        ids = np.flatnonzero(mask).astype(np.int32)
        self._write(ids, wide)
        self._start(ids, qpos, qvel)
        sensors = self._sensors(wide, self._qpos, self._qvel, self._sensordata, np)
        line, commands = np.array(state.sensor_line), np.array(state.command_line)
        line[ids] = delay.fill(sensors.flat(np), self.sensor_depth)[ids]
        commands[ids] = delay.fill(sensors.joint_position, self.command_depth)[ids]
        torque = np.array(state.torque)
        torque[ids] = 0.0
        return self._state(wide, torque, commands, line)

    def step(self, state: PhysicsState, drive: Drive, params: PhysicsParams) -> PhysicsState:
        wide = self._numpy(params)
        target, latency = np.asarray(drive.target), np.asarray(drive.latency)
        commands, line = np.asarray(state.command_line), np.asarray(state.sensor_line)
        self._force[:, self.built.push_body, :3] = drive.force_w
        torque = state.torque
        for _ in range(self.substeps):
            commands = delay.push(commands, target)
            torque, net = self._torque(wide, commands, latency, self._qpos, self._qvel, np)
            self._ctrl[:] = net
            self._batch.step(stage=self._stage)
            sensors = self._sensors(wide, self._qpos, self._qvel, self._sensordata, np)
            line = delay.push(line, sensors.flat(np).astype(np.float32))
        return self._state(wide, torque, commands, line)

    def _state(self, wide: PhysicsParams, torque: Any, commands: Any, line: Any) -> PhysicsState:
        qpos, qvel = self._qpos.astype(np.float32), self._qvel.astype(np.float32)
        sensors = self._sensors(wide, self._qpos, self._qvel, self._sensordata, np)
        return PhysicsState(
            qpos=qpos,
            qvel=qvel,
            joint_position=qpos[:, self.built.qpos_ids],
            joint_velocity=qvel[:, self.built.dof_ids],
            torque=np.asarray(torque, np.float32),
            sensors=Sensors(*(v.astype(np.float32) for v in sensors)),
            foot_force=self._foot_force(self._sensordata, np).astype(np.float32),
            command_line=commands,
            sensor_line=line,
        )

    def snapshot(self, state: PhysicsState) -> dict[str, np.ndarray]:
        return {
            "rows": np.array(self._batch.state),
            "sensordata": np.array(self._sensordata),
            "torque": np.asarray(state.torque),
            "command_line": np.asarray(state.command_line),
            "sensor_line": np.asarray(state.sensor_line),
        }

    def restore(self, saved: dict[str, np.ndarray], params: PhysicsParams) -> PhysicsState:
        wide = self._numpy(params)
        self._write(np.arange(self.envs), wide)
        self._batch.state[:] = saved["rows"]
        # forward() would replace the warm start, on which the next step's bits depend
        self._batch.forward(stage=self._stage)
        self._batch.state[:] = saved["rows"]
        state = self._state(wide, saved["torque"], saved["command_line"], saved["sensor_line"])
        sensors = self._sensors(wide, self._qpos, self._qvel, saved["sensordata"], np)
        return state._replace(
            sensors=Sensors(*(v.astype(np.float32) for v in sensors)),
            foot_force=self._foot_force(saved["sensordata"], np).astype(np.float32),
        )


class MjxEngine(PhysicsEngine):
    """MJX: the same step in JAX, for a GPU. Pure functions; a state may be stepped many times."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._lib = load_mjx()
        self._mjx = self._lib.put_model(self.built.model)
        self._blank = self._lib.make_data(self._mjx)

    def _model(self, fields: dict[str, Any]) -> Any:
        return self._mjx.tree_replace(fields)

    def _sense(self, model: Any, data: Any) -> Any:
        """Position and velocity sensors at the state that the last step left."""
        lib = self._lib
        data = lib.fwd_velocity(model, lib.fwd_position(model, data))
        return lib.sensor_vel(model, lib.sensor_pos(model, data))

    def _fresh(self, fields: dict[str, Any], qpos: Any, qvel: Any) -> Any:
        data = self._blank.replace(qpos=qpos, qvel=qvel)
        return self._lib.forward(self._model(fields), data)

    def init(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        # the precision that JAX runs in: float32 unless x64 is enabled
        kind = self._blank.qpos.dtype
        qpos, qvel = jnp.asarray(qpos, kind), jnp.asarray(qvel, kind)
        data = jax.vmap(self._fresh)(params.model, qpos, qvel)
        sensors = self._sensors(params, data.qpos, data.qvel, data.sensordata, jnp)
        line = delay.fill(sensors.flat(jnp), self.sensor_depth, jnp)
        commands = delay.fill(sensors.joint_position, self.command_depth, jnp)
        return self._state(params, data, jnp.zeros_like(sensors.joint_position), commands, line)

    def reset(self, state: PhysicsState, mask: Any, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        def fresh(_: Any) -> PhysicsState:
            new = self.init(params, qpos, qvel)

            def pick(a: Any, b: Any) -> Any:
                return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

            return jax.tree.map(pick, new, state)

        return jax.lax.cond(jnp.any(mask), fresh, lambda _: state, None)

    def step(self, state: PhysicsState, drive: Drive, params: PhysicsParams) -> PhysicsState:
        data = state.internal
        force = data.xfrc_applied.at[:, self.built.push_body, :3].set(drive.force_w)
        data = data.replace(xfrc_applied=force)

        def substep(loop: Any, _: Any) -> Any:
            data, commands, line, _ = loop
            commands = delay.push(commands, drive.target, xp=jnp)
            torque, net = self._torque(params, commands, drive.latency, data.qpos, data.qvel, jnp)

            def one(fields: dict[str, Any], data: Any) -> Any:
                model = self._model(fields)
                return self._sense(model, self._lib.step(model, data))

            data = jax.vmap(one)(params.model, data.replace(ctrl=net))
            sensors = self._sensors(params, data.qpos, data.qvel, data.sensordata, jnp)
            line = delay.push(line, sensors.flat(jnp), xp=jnp)
            return (data, commands, line, torque), None

        start = (data, state.command_line, state.sensor_line, state.torque)
        (data, commands, line, torque), _ = jax.lax.scan(substep, start, None, length=self.substeps)
        return self._state(params, data, torque, commands, line)

    def _state(self, params: PhysicsParams, data: Any, torque: Any, commands: Any, line: Any) -> PhysicsState:
        return PhysicsState(
            qpos=data.qpos,
            qvel=data.qvel,
            joint_position=data.qpos[:, self.built.qpos_ids],
            joint_velocity=data.qvel[:, self.built.dof_ids],
            torque=torque,
            sensors=self._sensors(params, data.qpos, data.qvel, data.sensordata, jnp),
            foot_force=self._foot_force(data.sensordata, jnp),
            command_line=commands,
            sensor_line=line,
            internal=data,
        )

    def snapshot(self, state: PhysicsState) -> dict[str, np.ndarray]:
        return {f"leaf_{i}": np.asarray(v) for i, v in enumerate(jax.tree.leaves(state))}

    def restore(self, saved: dict[str, np.ndarray], params: PhysicsParams) -> PhysicsState:
        zeros = jnp.zeros((self.envs, self.built.model.nq)), jnp.zeros((self.envs, self.built.model.nv))
        shape = jax.eval_shape(self.init, params, *zeros)
        leaves = [jnp.asarray(saved[f"leaf_{i}"]) for i in range(len(jax.tree.leaves(shape)))]
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)
