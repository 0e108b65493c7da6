"""Export a policy that was not trained here: any JAX function (inputs, carry) -> (action, carry).

    python examples/export_your_own.py [-o arm.kinfer]

The robot is a three-joint arm described in code, the policy a GRU in plain JAX with a dict for its carry. The bundle is
proven on inputs recorded in a simulation of the arm that is not ours either, and written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from export import convert, prove
from robots import CommandSpec, JointSpec, PolicySpec, RobotSpec, write_bundle
from robots.spec import input_specs

EPISODES, STEPS = 40, 250
HIDDEN = 32


def arm() -> RobotSpec:
    """The robot: what the metadata of its actuators and its drawing say."""

    def joint(name: str, id: int, lower: float, upper: float, home: float) -> JointSpec:
        return JointSpec(
            name=name, id=id, kp=40.0, kd=1.5, torque_limit_nm=12.0, torque_max_nm=17.0, velocity_max_rad_s=18.0,
            armature=0.008, friction_nm=0.1, damping=0.0, lower_rad=lower, upper_rad=upper, home_rad=home,
            actuator_type="servo",
        )  # fmt: skip

    joints = (joint("shoulder", 11, -1.5, 1.5, 0.2), joint("elbow", 12, 0.0, 2.4, 0.8), joint("wrist", 13, -1, 1, 0.0))
    return RobotSpec(name="arm", joints=joints, control_period_s=0.02)


def weights(inputs: int, outputs: int) -> dict[str, Any]:
    """Stands for the weights that you trained."""
    shapes = {"w": (inputs + HIDDEN, 3 * HIDDEN), "b": (3 * HIDDEN,), "out": (HIDDEN, outputs)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape, jnp.float32) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def policy(params: dict[str, Any], robot: RobotSpec, inputs: dict[str, Any], carry: dict[str, Any]) -> tuple[Any, Any]:
    """Your policy: raw inputs in SI go in, joint targets [rad] come out, whatever it needs to remember goes round.

    All that is done to an input or an action is done in here, so that it is in the graph.
    """
    home = jnp.asarray(robot.column("home_rad"), jnp.float32)
    low, high = (jnp.asarray(robot.column(f"{end}_rad"), jnp.float32) for end in ("lower", "upper"))
    seen = jnp.concatenate(
        [inputs["joint_angles"] - home, 0.1 * inputs["joint_angular_velocities"], inputs["command"], carry["last"]]
    )
    x = jnp.concatenate([seen, carry["h"]])
    gates = x @ params["w"][:, : 2 * HIDDEN] + params["b"][: 2 * HIDDEN]
    keep, reset = jax.nn.sigmoid(gates[:HIDDEN]), jax.nn.sigmoid(gates[HIDDEN:])
    both = jnp.concatenate([seen, reset * carry["h"]])
    new = jnp.tanh(both @ params["w"][:, 2 * HIDDEN :] + params["b"][2 * HIDDEN :])
    h = keep * carry["h"] + (1.0 - keep) * new
    move = jnp.tanh(h @ params["out"])
    return jnp.clip(home + 0.5 * move, low, high), {"h": h, "last": move}


def simulate(step: Any, first: dict[str, Any], robot: RobotSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Stands for your simulation: one episode, what the policy was given at each step, noise and all."""
    period = robot.control_period_s
    angle = np.asarray(robot.column("home_rad")) + rng.uniform(-0.2, 0.2, len(robot.joints))
    velocity, command, carry, rows = np.zeros(3), rng.uniform(-1.0, 1.0, 1), first, []
    for _ in range(STEPS):
        seen = {
            "joint_angles": np.float32(angle + rng.normal(0.0, 0.005, 3)),
            "joint_angular_velocities": np.float32(velocity + rng.normal(0.0, 0.05, 3)),
            "command": np.float32(command),
        }
        rows.append(seen)
        target, carry = step(seen, carry)
        velocity = velocity + period * (100.0 * (np.asarray(target) - angle) - 16.0 * velocity)
        angle = angle + period * velocity
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def main(argv: list[str] | None = None) -> int:
    """Convert, prove, write."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("-o", "--output", type=Path, default=Path("arm.kinfer"), help="the bundle (%(default)s)")
    args = parse.parse_args(argv)

    robot = arm()
    commands = (CommandSpec(name="reach", low=-1.0, high=1.0, unit="m"),)
    known = input_specs(robot, commands)
    reads = ("joint_angles", "joint_angular_velocities", "command")
    spec = PolicySpec(
        task="arm_reach",
        robot=robot,
        inputs=tuple(known[name] for name in reads),
        commands=commands,
        carry_size=0,  # 0: as long as the first carry is
        control_period_s=robot.control_period_s,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
        training={"by": "another trainer", "steps": 10_000_000},
    )
    n = len(robot.joints)
    params = weights(2 * n + len(commands) + n, n)
    first = {"h": np.zeros(HIDDEN, np.float32), "last": np.zeros(n, np.float32)}

    def step(inputs: dict[str, Any], carry: dict[str, Any]) -> tuple[Any, Any]:
        return policy(params, robot, inputs, carry)

    bundle = convert(step, first, spec)
    rng, compiled = np.random.default_rng(0), jax.jit(step)
    episodes = [simulate(compiled, first, robot, rng) for _ in range(EPISODES)]
    bundle = prove(bundle, step, first, episodes)
    write_bundle(args.output, bundle)

    assert bundle.spec is not None
    parts = ", ".join(f"{part.name} {part.shape}" for part in bundle.spec.carry_layout)
    print(f"wrote {args.output}: {len(bundle.step_fn):,} bytes of graph, carry of {bundle.carry_size} ({parts})")
    for what in ("recorded", "drawn"):
        found = bundle.spec.proofs["numbers"][what]
        print(
            f"ONNX Runtime against JAX over {found['steps']:,} carried steps of {what} inputs: "
            f"action {found['action_error']:.1e} rad, carry {found['carry_error']:.1e}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
