"""States by hand for the vocabulary: a real K-Bot with every sensor, posed, its sensors as MuJoCo C has them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from ksim.randomization import nominal
from ksim.scene import Scene
from ksim.types import PhysicsState, Reading, State
from robots import motor
from robots.model import BuiltModel, build_model

SENSORS = (
    *("foot_position", "foot_velocity", "foot_quat", "foot_angular_velocity"),
    *("com_position", "com_velocity", "angular_momentum"),
)
COMMANDS = ("xvel", "yvel", "yawrate", "baseheight")
# Model fields of every randomisation that there is.
FIELDS = (
    *("geom_friction", "body_mass", "body_subtreemass", "body_inertia", "body_ipos", "dof_armature"),
    *("site_pos", "opt.gravity", "geom_size", "geom_rbound"),
)


@pytest.fixture(scope="session")
def scene() -> Scene:
    """The K-Bot with every sensor that can be asked for, at 50 Hz."""
    return Scene(
        built=build_model("kbot", shapes=False, sensors=SENSORS), command_names=COMMANDS, moved=tuple(range(10))
    )


@pytest.fixture(scope="session")
def posed(scene: Scene) -> Callable[..., State]:
    """`posed(base=..., quat=..., joints={...}, lin_vel_w=..., ang_vel_b=..., **fields)`: a State by hand.

    Without arguments it is the home pose at rest, asked for nothing. `fields` are fields of State.
    """
    built = scene.built

    def make(
        base: Any = None,
        quat: Any = (1.0, 0.0, 0.0, 0.0),
        joints: dict[str, float] | None = None,
        lin_vel_w: Any = (0.0, 0.0, 0.0),
        ang_vel_b: Any = (0.0, 0.0, 0.0),
        torque: Any = None,
        sensors: dict[str, Any] | None = None,
        **fields: Any,
    ) -> State:
        data = mujoco.MjData(built.model)
        data.qpos[:] = built.home_qpos
        if base is not None:
            data.qpos[built.base_position] = base
        data.qpos[built.base_quat] = quat
        for name, angle in (joints or {}).items():
            data.qpos[built.qpos_ids[scene.joint_names.index(name)]] = angle
        data.qvel[built.base_lin_vel], data.qvel[built.base_ang_vel] = lin_vel_w, ang_vel_b
        mujoco.mj_forward(built.model, data)
        values = np.array(data.sensordata)
        for name, value in (sensors or {}).items():
            values[scene.sensor(name)] = value
        params = nominal(scene, FIELDS)
        home = jnp.asarray(data.qpos[built.qpos_ids], jnp.float32)
        physics = PhysicsState(
            qpos=jnp.asarray(data.qpos, jnp.float32),
            qvel=jnp.asarray(data.qvel, jnp.float32),
            torque=jnp.zeros(scene.joints) if torque is None else jnp.asarray(torque, jnp.float32),
            sensordata=jnp.asarray(values, jnp.float32),
            motor=motor.rest(params.motor, home, jnp),
            history={},
            internal=(),
            scene=scene,
        )
        now = Reading(packet=jnp.asarray(0), age_s=jnp.zeros(()), fresh=jnp.ones((), bool))
        state = State(
            physics=physics,
            params=params,
            command=jnp.zeros(len(COMMANDS)),
            action=jnp.zeros(scene.actions),
            target=jnp.asarray(scene.home_rad),
            time_s=jnp.asarray(0.0),
            phase=jnp.zeros(()),
            moving=jnp.zeros((), bool),
            channels={"imu": now, "joints": now},
            events={},
            level=jnp.ones(()),
            key=jax.random.key(0),
            episode_key=jax.random.key(1),
        )
        return dataclasses.replace(state, **fields)

    return make


@pytest.fixture(scope="session")
def late() -> Callable[..., State]:
    """`late(state, channel, signal, rows, age_s, fresh)`: the state with a signal's past, newest row first."""

    def change(state: State, channel: str, signal: str, rows: Any, age_s: float, fresh: bool = True) -> State:
        line = jnp.asarray(rows, jnp.float32)
        reading = Reading(packet=jnp.asarray(0), age_s=jnp.asarray(age_s), fresh=jnp.asarray(fresh))
        physics = dataclasses.replace(state.physics, history={signal: line})
        return dataclasses.replace(state, physics=physics, channels={**state.channels, channel: reading})

    return change


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    """One joint on the world: a robot without base and feet."""
    folder = tmp_path_factory.mktemp("arm")
    (folder / "robot.xml").write_text(
        '<mujoco><worldbody><body name="link"><joint name="elbow" range="-60 60"/>'
        '<geom type="capsule" size="0.02 0.1"/></body></worldbody></mujoco>'
    )
    metadata = {
        "joint_name_to_metadata": {"elbow": {"id": 1, "kp": "10", "kd": "1", "actuator_type": "small"}},
        "actuator_type_to_metadata": {"small": {"max_torque": "5", "max_velocity": "10", "armature": "0.01"}},
        "control_frequency": "50",
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return build_model(folder)
