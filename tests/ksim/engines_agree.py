"""Runs both engines from the same kicked state with the same drives; prints how far apart they get, as JSON.

A program of its own, because JAX's precision is fixed for a process: JAX_ENABLE_X64=1 for double precision.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ksim.engine import MjxEngine, MujocoEngine
from ksim.randomization import nominal
from ksim.types import Drive
from robots.model import build_model

ENVS = 2
PERIOD_S = 0.02


def main(steps: int) -> dict[str, Any]:
    """Largest difference of qpos over joints and environments after each control step."""
    wide = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
    built = build_model("kbot", shapes=False)
    spec, rng = built.spec, np.random.default_rng(0)
    home = np.asarray(spec.column("home_rad"))
    n = len(home)
    one = nominal(built)
    params = jax.tree.map(lambda v: jnp.tile(jnp.asarray(v, wide), (ENVS,) + (1,) * v.ndim), one)
    # a heavier torso, another latency and a bad encoder in the second environment
    params = params._replace(
        action_latency=jnp.asarray([0.0, 0.007], wide),
        joint_offset=params.joint_offset.at[1].set(0.02),
        model={**params.model, "body_mass": params.model["body_mass"].at[1].multiply(1.1)},
    )
    qpos = np.tile(built.home_qpos, (ENVS, 1))
    qpos[1, 2] += 0.03
    qpos[:, built.qpos_ids] += rng.uniform(-0.05, 0.05, (ENVS, n))
    qpos = np.asarray(qpos, np.float32)
    qvel = np.asarray(rng.uniform(-0.3, 0.3, (ENVS, built.model.nv)), np.float32)

    arguments = (built, ENVS, PERIOD_S, 0.02, 0.02)
    cpu, mjx = MujocoEngine(*arguments, threads=1), MjxEngine(*arguments)
    a, b = cpu.init(params, qpos, qvel), jax.jit(mjx.init)(params, qpos, qvel)
    step = jax.jit(mjx.step)
    phase = np.arange(n)
    apart, sensors, low = [], [], []
    for k in range(steps):
        target = home + 0.03 * np.sin(2 * np.pi * 0.5 * k * PERIOD_S + phase)
        # a hand that holds the torso, so that the feet stay at work; the same force for both engines
        force = np.zeros((ENVS, 3))
        force[:, :2] = np.clip(-1500.0 * (a.qpos[:, :2] - qpos[:, :2]) - 150.0 * a.qvel[:, :2], -300.0, 300.0)
        force[0, 0] += 20.0 if k < 10 else 0.0
        drive = Drive(target=np.tile(target, (ENVS, 1)), latency=np.asarray(params.action_latency), force_w=force)
        drive = jax.tree.map(lambda v: jnp.asarray(v, wide), drive)
        a, b = cpu.step(a, drive, params), step(b, drive, params)
        apart.append(float(np.abs(np.asarray(a.qpos, np.float64) - np.asarray(b.qpos, np.float64)).max()))
        sensors.append(float(np.abs(np.asarray(a.sensors.gyro_b) - np.asarray(b.sensors.gyro_b)).max()))
        low.append(float(a.qpos[:, 2].min()))
    return {
        "qpos": apart,
        "gyro": sensors,
        "height": low,
        "moved": float(np.abs(a.qpos - qpos).max()),
        "dtype": str(b.qpos.dtype),
        "envs_differ": float(np.abs(a.qpos[0] - a.qpos[1]).max()),
    }


if __name__ == "__main__":
    result = main(int(sys.argv[1]))
    print(json.dumps(result))
    print(
        f"{len(result['qpos'])} control steps, {result['dtype']}: qpos within {max(result['qpos']):.2g}",
        file=sys.stderr,
    )
