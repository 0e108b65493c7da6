"""One compiled robot serves all who built the same: engines vary it in copies of their own."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np

from ksim.actuators import PositionActuators
from ksim.engine import MujocoEngine
from ksim.types import Drive
from robots.model import build_model


def test_an_engine_that_varies_the_robot_writes_nothing_into_the_shared_model(scene, batched):
    built = build_model("kbot", shapes=False)
    scene = dataclasses.replace(scene, built=built)

    def contents() -> bytes:
        out = np.zeros(mujoco.mj_sizeModel(built.model), np.uint8)
        mujoco.mj_saveModel(built.model, None, out)
        return out.tobytes()

    before = contents()
    params = batched(2)
    params = params._replace(model={name: 1.1 * value for name, value in params.model.items()})
    engine = MujocoEngine(scene, 2, PositionActuators(), threads=1, fields=tuple(params.model))
    qpos, qvel = np.tile(built.home_qpos, (2, 1)), np.zeros((2, built.model.nv))
    state = engine.init(params, qpos, qvel)
    command = np.tile(scene.home_rad, (2, engine.substeps, 1))
    engine.step(state, Drive(command=command, wrench_w=np.full((2, 6), 9.0), kick=np.full((2, 6), 0.1)), params)
    assert contents() == before
    assert build_model("kbot", shapes=False) is built
