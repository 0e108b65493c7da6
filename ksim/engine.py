"""One interface, two engines: MuJoCo C on a thread pool, and MJX.

Both run the same loop at the physics rate: motor law (robots/motor.py), one physics step, sensor history. They differ
only in who integrates. All arrays are batched, (E, ...).
"""

from __future__ import annotations

import abc
import contextlib
import copy
import functools
import io
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from ksim.actuators import Actuators
from ksim.errors import KsimError
from ksim.local import cores
from ksim.scene import Scene
from ksim.types import Drive, PhysicsParams, PhysicsState, pick
from robots import delay, motor, rotation

_NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE.value)  # pyright: ignore[reportAttributeAccessIssue]
_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL.value)  # pyright: ignore[reportAttributeAccessIssue]

_WHOLE_FLOATS = functools.partial(jax.default_matmul_precision, "highest")

# Signals that late observations may ask for beside the model's sensors.
SIGNALS = ("joint_position", "joint_velocity", "gravity", "gyro", "accelerometer")


@functools.cache
def load_mjx() -> ModuleType:
    """MJX, imported when first needed; without the notice that it prints where Warp is not installed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from mujoco import mjx
    return mjx


class PhysicsEngine(abc.ABC):
    """Physics of a batch of environments.

    Attributes:
        scene: what is static.
        envs: number of environments.
        actuators: what turns targets into torque.
        substeps: physics steps in a control step.
        dt: physics step [s].
        depths: rows of the history of each signal, by its name.
    """

    def __init__(
        self,
        scene: Scene,
        envs: int,
        actuators: Actuators,
        *,
        fields: tuple[str, ...] = (),
        history: Mapping[str, float] | None = None,
    ):
        """An engine.

        Args:
            scene: what is static.
            envs: number of environments.
            actuators: what turns targets into torque.
            fields: MjModel fields that may differ between environments.
            history: how far back each signal is asked for [s], by name: one of SIGNALS, or a sensor of the model.

        Raises:
            KsimError: the physics step does not divide the control period.
        """
        self.scene, self.envs, self.actuators, self.fields = scene, envs, actuators, tuple(fields)
        self.dt = float(scene.built.model.opt.timestep)
        self.substeps = round(scene.control_period_s / self.dt)
        if abs(self.substeps * self.dt - scene.control_period_s) > 1e-9 or self.substeps < 1:
            raise KsimError(
                f"physics step: got {self.dt} s, expected a divisor of the control period {scene.control_period_s} s"
            )
        self.hold = actuators.hold_steps(self.dt)
        self.depths = {name: delay.depth(reach, self.dt) for name, reach in (history or {}).items()}

    @abc.abstractmethod
    def init(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        """A fresh state of every environment, from qpos (E, nq) and qvel (E, nv), with a past in which it rested."""

    @abc.abstractmethod
    def reset(self, state: PhysicsState, mask: Any, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        """The state with the environments in `mask` (E,) started anew; the others untouched, their parameters too."""

    @abc.abstractmethod
    def step(self, state: PhysicsState, drive: Drive, params: PhysicsParams) -> PhysicsState:
        """The state one control step later."""

    @abc.abstractmethod
    def snapshot(self, state: PhysicsState) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on to the bit, as named arrays."""

    @abc.abstractmethod
    def restore(self, saved: dict[str, np.ndarray], params: PhysicsParams) -> PhysicsState:
        """The state that `snapshot` saved."""

    def at_rest(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        """One environment's state in shape, before any physics: its sensors read nothing."""
        position, _ = self._joints(qpos, qvel)
        memory, sensordata = motor.rest(params.motor, position, jnp), jnp.zeros(self.scene.built.model.nsensordata)
        signals = self._signals(params, memory, qpos, qvel, sensordata, jnp)
        history = {name: delay.fill(value, self.depths[name], jnp) for name, value in signals.items()}
        return PhysicsState(qpos, qvel, jnp.zeros_like(position), sensordata, memory, history, (), self.scene)

    def _joints(self, qpos: Any, qvel: Any) -> tuple[Any, Any]:
        built = self.scene.built
        return qpos[..., built.qpos_ids], qvel[..., built.dof_ids]

    def _signals(
        self, params: PhysicsParams, memory: motor.MotorState, qpos: Any, qvel: Any, sensordata: Any, xp: Any
    ) -> dict[str, Any]:
        """The signals that have a history, now."""
        position, velocity = motor.encoder(params.motor, memory, *self._joints(qpos, qvel), xp=xp)
        known = {
            "joint_position": lambda: position + params.joint_offset,
            "joint_velocity": lambda: velocity,
            "gravity": lambda: rotation.gravity_in_frame(sensordata[..., self.scene.sensor("imu_quat")], xp=xp),
            "gyro": lambda: sensordata[..., self.scene.sensor("imu_gyro")],
            "accelerometer": lambda: sensordata[..., self.scene.sensor("imu_accelerometer")],
        }
        return {n: known[n]() if n in known else sensordata[..., self.scene.sensor(n)] for n in self.depths}

    def _torque(
        self,
        params: PhysicsParams,
        memory: motor.MotorState,
        torque: Any,
        command: Any,
        qpos: Any,
        qvel: Any,
        step: Any,
        xp: Any,
        soft: motor.SoftJoints | None = None,
    ) -> tuple[Any, Any, motor.MotorState]:
        """(drive torque, net torque on the joints, memory) of physics step `step` in a control step."""
        position, velocity = self._joints(qpos, qvel)
        # the motor regulates its encoder, whose zero is off
        shift = params.target_bias - params.joint_offset
        if self.hold == 1:
            return self.actuators.torque(params.motor, memory, position, velocity, command, shift, self.dt, xp, soft)
        renewed = self.actuators.drive(params.motor, memory, position, velocity, command, shift, xp)
        held = xp.where(step % self.hold == 0, renewed, torque)
        return self.actuators.hold(params.motor, memory, position, velocity, held, self.dt, xp)


class _Wide(NamedTuple):
    """Parameters as they came, in numpy float64, and which joints of them are soft."""

    params: PhysicsParams
    wide: PhysicsParams
    soft: motor.SoftJoints


class MujocoEngine(PhysicsEngine):
    """MuJoCo C through mujoco.batch: the default where there is no GPU.

    The batch holds the live state, so a state may be stepped once; `snapshot` and `restore` go back.
    """

    def __init__(self, *args: Any, threads: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # persistent: the velocity stage after a step is the next step's own work, so sensors that
        # are current cost nothing
        self._batch = mujoco.batch.Batch(self._model(), self.envs, threads or len(cores()), persistent=True)
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl, self._force = self._batch.bind("ctrl"), self._batch.bind("xfrc_applied")
        self._sensordata = self._batch.bind("sensordata")
        self._fields = {name: self._batch.expand(name) for name in self.fields}
        self._stage = _VELOCITY_STAGE
        self._cached: _Wide | None = None

    def _model(self) -> Any:
        """The model of the batch. Where shapes differ, it looks for contacts without boxes about whole bodies.

        MuJoCo's midphase has these boxes from the nominal shapes: it would miss the contacts of a larger one.
        """
        model = self.scene.built.model
        if "geom_size" in self.fields or "geom_pos" in self.fields:
            model = copy.copy(model)
            model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE.value)  # pyright: ignore
        return model

    def _numpy(self, params: PhysicsParams, rows: np.ndarray | None = None) -> _Wide:
        """The parameters in float64; `rows`: the environments whose parameters differ from those seen last."""
        cached = self._cached
        if cached is not None and cached.params is params:
            return cached
        slim = params._replace(drawn={})
        if cached is None or rows is None:
            wide = jax.tree.map(lambda v: np.array(v, np.float64), slim)
        else:
            wide = cached.wide

            def renewed(old: np.ndarray, new: Any) -> None:
                old[rows] = np.asarray(new)[rows]

            jax.tree.map(renewed, wide, slim)
        self._cached = _Wide(params, wide, motor.SoftJoints.of(wide.motor))
        return self._cached

    def _write(self, mask: np.ndarray, wide: PhysicsParams) -> None:
        for name, values in self._fields.items():
            values[mask] = wide.model[name][mask]

    def _start(self, ids: np.ndarray, qpos: Any, qvel: Any) -> None:
        self._batch.reset(ids, stage=_NO_STAGE)
        self._qpos[ids] = np.asarray(qpos, np.float64)[ids]
        self._qvel[ids] = np.asarray(qvel, np.float64)[ids]
        self._batch.forward(ids)

    def _rest(self, wide: PhysicsParams) -> tuple[motor.MotorState, dict[str, np.ndarray]]:
        position, _ = self._joints(self._qpos, self._qvel)
        memory = motor.rest(wide.motor, position)
        signals = self._signals(wide, memory, self._qpos, self._qvel, self._sensordata, np)
        return memory, {n: delay.fill(v.astype(np.float32), self.depths[n]) for n, v in signals.items()}

    def init(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        wide = self._numpy(params).wide
        everyone = np.arange(self.envs, dtype=np.int32)
        self._write(everyone, wide)
        self._start(everyone, qpos, qvel)
        memory, history = self._rest(wide)
        return self._state(np.zeros((self.envs, self.scene.joints)), memory, history)

    def reset(self, state: PhysicsState, mask: Any, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        mask = np.asarray(mask)
        if not mask.any():
            return state
        ids = np.flatnonzero(mask).astype(np.int32)
        wide = self._numpy(params, ids).wide
        self._write(ids, wide)
        self._start(ids, qpos, qvel)
        fresh = self._rest(wide)

        def started(old: Any, new: Any) -> np.ndarray:
            both = np.array(old)
            both[ids] = new[ids]
            return both

        memory, history = jax.tree.map(started, (state.motor, state.history), fresh)
        return self._state(started(state.torque, np.zeros_like(state.torque)), memory, history)

    def step(self, state: PhysicsState, drive: Drive, params: PhysicsParams) -> PhysicsState:
        _, wide, soft = self._numpy(params)
        command = np.asarray(drive.command, np.float64)
        self._force[:, self.scene.built.push_body] = np.asarray(drive.wrench_w)
        self._kick(np.asarray(drive.kick))
        memory, history, torque = state.motor, state.history, state.torque
        for i in range(self.substeps):
            torque, net, memory = self._torque(wide, memory, torque, command[:, i], self._qpos, self._qvel, i, np, soft)
            self._ctrl[:] = net
            self._batch.step(stage=self._stage)
            signals = self._signals(wide, memory, self._qpos, self._qvel, self._sensordata, np)
            history = {n: delay.push(history[n], v.astype(np.float32)) for n, v in signals.items()}
        return self._state(torque, memory, history)

    def _kick(self, kick: np.ndarray) -> None:
        at = self.scene.base_qvel
        ids = np.flatnonzero(kick.any(axis=1)).astype(np.int32)
        if at < 0 or not len(ids):
            return
        self._qvel[ids, at : at + 6] += kick[ids]
        self._batch.forward(ids)  # what the last step computed of velocities no longer holds

    def _state(self, torque: Any, memory: motor.MotorState, history: dict[str, Any]) -> PhysicsState:
        return PhysicsState(
            qpos=self._qpos.astype(np.float32),
            qvel=self._qvel.astype(np.float32),
            torque=np.asarray(torque, np.float32),
            sensordata=self._sensordata.astype(np.float32),
            motor=memory,
            history=history,
            internal=(),
            scene=self.scene,
        )

    def snapshot(self, state: PhysicsState) -> dict[str, np.ndarray]:
        kept = {f"motor.{k}": np.asarray(v) for k, v in state.motor._asdict().items()}
        kept |= {f"history.{k}": np.asarray(v) for k, v in state.history.items()}
        return kept | {
            "rows": np.array(self._batch.state),
            "sensordata": np.array(self._sensordata),
            "torque": np.asarray(state.torque),
        }

    def restore(self, saved: dict[str, np.ndarray], params: PhysicsParams) -> PhysicsState:
        wide = self._numpy(params).wide
        self._write(np.arange(self.envs), wide)
        self._batch.state[:] = saved["rows"]
        # forward() would replace the warm start, on which the next step's bits depend
        self._batch.forward(stage=self._stage)
        self._batch.state[:] = saved["rows"]
        memory = motor.MotorState(**{k: saved[f"motor.{k}"] for k in motor.MotorState._fields})
        history = {k: saved[f"history.{k}"] for k in self.depths}
        state = self._state(saved["torque"], memory, history)
        return PhysicsState(
            **{k: getattr(state, k) for k in ("qpos", "qvel", "torque", "motor", "history", "internal", "scene")},
            sensordata=saved["sensordata"].astype(np.float32),
        )


class MjxEngine(PhysicsEngine):
    """MJX: the same step in JAX, for a GPU. Pure functions; a state may be stepped many times.

    Matrix products are in whole float32: a GPU's faster ones keep 10 bits, too few for a solver.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._lib = load_mjx()
        model = copy.copy(self.scene.built.model)
        # the whole batch waits for its slowest, and in single precision none gains by more
        model.opt.iterations, model.opt.ls_iterations = min(model.opt.iterations, 16), min(model.opt.ls_iterations, 16)
        try:
            self._mjx = self._lib.put_model(model)
        except NotImplementedError as error:
            raise KsimError(
                f"engine mjx: it has no {error}; use engine=mujoco, or change the model or physics.solver"
            ) from error
        self._blank = self._lib.make_data(self._mjx)

    def _model(self, fields: dict[str, Any]) -> Any:
        return self._mjx.tree_replace(fields)

    def _sensed(self, model: Any, data: Any) -> Any:
        """The data with position and velocity sensors at the state that the last step left.

        Nothing else is kept: the next step computes it anyway, and the compiler leaves out what no sensor reads.
        """
        lib = self._lib
        moved = lib.fwd_velocity(model, lib.fwd_position(model, data))
        return data.replace(sensordata=lib.sensor_vel(model, lib.sensor_pos(model, moved)).sensordata)

    def _fresh(self, fields: dict[str, Any], qpos: Any, qvel: Any) -> Any:
        data = self._blank.replace(qpos=qpos, qvel=qvel)
        return self._lib.forward(self._model(fields), data)

    def init(self, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        # the precision that JAX runs in: float32 unless x64 is enabled
        kind = self._blank.qpos.dtype
        qpos, qvel = jnp.asarray(qpos, kind), jnp.asarray(qvel, kind)
        with _WHOLE_FLOATS():
            data = jax.vmap(self._fresh)(params.model, qpos, qvel)
        position, _ = self._joints(data.qpos, data.qvel)
        memory = motor.rest(params.motor, position, jnp)
        signals = self._signals(params, memory, data.qpos, data.qvel, data.sensordata, jnp)
        history = {n: delay.fill(v, self.depths[n], jnp) for n, v in signals.items()}
        return self._state(data, jnp.zeros_like(position), memory, history)

    def reset(self, state: PhysicsState, mask: Any, params: PhysicsParams, qpos: Any, qvel: Any) -> PhysicsState:
        def fresh(_: Any) -> PhysicsState:
            return pick(mask, self.init(params, qpos, qvel), state)

        return jax.lax.cond(jnp.any(mask), fresh, lambda _: state, None)

    def step(self, state: PhysicsState, drive: Drive, params: PhysicsParams) -> PhysicsState:
        data, at = state.internal, self.scene.base_qvel
        force = data.xfrc_applied.at[:, self.scene.built.push_body].set(drive.wrench_w)
        qvel = data.qvel.at[:, at : at + 6].add(drive.kick) if at >= 0 else data.qvel
        data = data.replace(xfrc_applied=force, qvel=qvel)

        def substep(loop: Any, now: Any) -> Any:
            data, memory, history, torque = loop
            i, command = now
            torque, net, memory = self._torque(params, memory, torque, command, data.qpos, data.qvel, i, jnp)

            def one(fields: dict[str, Any], data: Any) -> Any:
                model = self._model(fields)
                return self._sensed(model, self._lib.step(model, data))

            data = jax.vmap(one)(params.model, data.replace(ctrl=net))
            signals = self._signals(params, memory, data.qpos, data.qvel, data.sensordata, jnp)
            history = {n: delay.push(history[n], v, xp=jnp) for n, v in signals.items()}
            return (data, memory, history, torque), None

        start = (data, state.motor, state.history, state.torque)
        commands = jnp.swapaxes(drive.command, 0, 1)
        with _WHOLE_FLOATS():
            (data, memory, history, torque), _ = jax.lax.scan(substep, start, (jnp.arange(self.substeps), commands))
        return self._state(data, torque, memory, history)

    def _state(self, data: Any, torque: Any, memory: motor.MotorState, history: dict[str, Any]) -> PhysicsState:
        return PhysicsState(data.qpos, data.qvel, torque, data.sensordata, memory, history, data, self.scene)

    def snapshot(self, state: PhysicsState) -> dict[str, np.ndarray]:
        return {f"leaf_{i}": np.asarray(v) for i, v in enumerate(jax.tree.leaves(state))}

    def restore(self, saved: dict[str, np.ndarray], params: PhysicsParams) -> PhysicsState:
        model = self.scene.built.model
        zeros = jnp.zeros((self.envs, model.nq)), jnp.zeros((self.envs, model.nv))
        shape = jax.eval_shape(self.init, params, *zeros)
        leaves = [jnp.asarray(saved[f"leaf_{i}"]) for i in range(len(jax.tree.leaves(shape)))]
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)


def choose_engine(name: str) -> str:
    """`auto` is MJX where JAX has a GPU, MuJoCo C elsewhere."""
    if name != "auto":
        return name
    return "mjx" if jax.default_backend() == "gpu" else "mujoco"


def make_engine(kind: str, *args: Any, threads: int = 0, **kwargs: Any) -> PhysicsEngine:
    """An engine by name: mujoco, mjx or auto."""
    if choose_engine(kind) == "mjx":
        return MjxEngine(*args, **kwargs)
    return MujocoEngine(*args, threads=threads, **kwargs)
