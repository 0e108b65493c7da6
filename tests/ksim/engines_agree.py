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

from ksim.actuators import PositionActuators
from ksim.engine import MjxEngine, MujocoEngine
from ksim.randomization import nominal
from ksim.scene import Scene
from ksim.types import Drive
from robots.model import build_model

ENVS = 2
PERIOD_S = 0.02
FIELDS = ("body_mass", "body_inertia", "geom_friction", "dof_armature")


def main(steps: int, robot: str) -> dict[str, Any]:
    """Largest difference of qpos over joints and environments after each control step."""
    wide = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
    built = build_model(robot, shapes=False)
    scene, rng = Scene(built=built, control_period_s=PERIOD_S), np.random.default_rng(0)
    home = np.asarray(scene.column("home_rad"), np.float64)
    n = len(home)
    one = nominal(scene, FIELDS)
    params = jax.tree.map(lambda v: jnp.tile(jnp.asarray(v, wide), (ENVS,) + (1,) * v.ndim), one)
    motor, model = params.motor, params.model
    # the second environment: a heavier torso, another floor, heavier rotors, a bad encoder, weak and sticky motors
    params = params._replace(
        joint_offset=params.joint_offset.at[1].set(0.02),
        motor=motor._replace(
            friction=motor.friction.at[1].add(0.5),
            stiction=motor.stiction.at[1].set(0.3),
            damping=motor.damping.at[1].add(0.1),
            kp=motor.kp.at[1].multiply(0.9),
            armature=motor.armature.at[1].multiply(1.05),
        ),
        model={
            **model,
            "body_mass": model["body_mass"].at[1, built.torso_body].multiply(1.1),
            "body_inertia": model["body_inertia"].at[1, built.torso_body].multiply(1.1),
            "geom_friction": model["geom_friction"].at[1, :, 0].multiply(0.8),
            "dof_armature": model["dof_armature"].at[1].multiply(1.05),
        },
    )
    qpos = np.tile(built.home_qpos, (ENVS, 1))
    qpos[1, built.base_position][2] += 0.03
    qpos[:, built.qpos_ids] += rng.uniform(-0.05, 0.05, (ENVS, n))
    qpos = np.asarray(qpos, np.float32)
    qvel = np.asarray(rng.uniform(-0.3, 0.3, (ENVS, built.model.nv)), np.float32)

    common: Any = {"fields": FIELDS, "history": {"gyro": 0.02, "joint_position": 0.02}}
    arguments = (scene, ENVS, PositionActuators())
    cpu, mjx = MujocoEngine(*arguments, threads=1, **common), MjxEngine(*arguments, **common)
    a, b = cpu.init(params, qpos, qvel), jax.jit(mjx.init)(params, qpos, qvel)
    step = jax.jit(mjx.step)
    phase = np.arange(n)
    apart, gyro, late, low = [], [], [], []
    start = np.asarray(a.base_position)
    for k in range(steps):
        target = home + 0.03 * np.sin(2 * np.pi * 0.5 * k * PERIOD_S + phase)
        # a hand that holds the torso, so that the feet stay at work; the same force for both engines
        wrench, kick = np.zeros((ENVS, 6)), np.zeros((ENVS, 6))
        away, speed = np.asarray(a.base_position) - start, np.asarray(a.base_lin_vel_w)
        wrench[:, :2] = np.clip(-1500.0 * away[:, :2] - 150.0 * speed[:, :2], -300.0, 300.0)
        wrench[0, 0] += 20.0 if k < 10 else 0.0
        wrench[1, 5] = 2.0 if k < 10 else 0.0
        if k == 5:
            kick[1] = [0.05, -0.05, 0.0, 0.1, 0.0, 0.2]
        command = np.tile(target, (ENVS, cpu.substeps, 1))
        drive = Drive(*(jnp.asarray(v, wide) for v in (command, wrench, kick)))
        a, b = cpu.step(a, drive, params), step(b, drive, params)
        apart.append(_apart(a.qpos, b.qpos))
        gyro.append(_apart(a.gyro_b, b.gyro_b))
        late.append(max(_apart(a.history[name], b.history[name]) for name in common["history"]))
        low.append(float(np.asarray(a.base_position)[:, 2].min()))
    return {
        "qpos": apart,
        "gyro": gyro,
        "history": late,
        "height": low,
        "moved": _apart(a.qpos, qpos),
        "dtype": str(b.qpos.dtype),
        "envs_differ": _apart(a.qpos[0], a.qpos[1]),
    }


def _apart(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


if __name__ == "__main__":
    result = main(int(sys.argv[1]), sys.argv[2])
    print(json.dumps(result))
    print(
        f"{len(result['qpos'])} control steps, {result['dtype']}: qpos within {max(result['qpos']):.2g}, "
        f"gyro {max(result['gyro']):.2g}, history {max(result['history']):.2g}",
        file=sys.stderr,
    )
