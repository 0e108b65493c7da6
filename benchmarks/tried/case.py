"""What the rows of docs/compatibility.md are tried on: a robot of two joints, its inputs, and ways to make a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robots.spec import JointSpec, PolicySpec, RobotSpec, input_specs

# (step, initial carry), as export.convert takes them
Made = tuple[Callable[..., Any], Any]
INPUTS = ("joint_angles", "gyroscope", "time")
RANDOM_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table.

    Attributes:
        group: the table's part.
        name: what is tried, as a user would write it.
        make: gives the policy.
    """

    group: str
    name: str
    make: Callable[[], Made]


def _joint(name: str, bus_id: int) -> JointSpec:
    return JointSpec(
        name=name, id=bus_id, kp=30.0, kd=1.0, torque_limit_nm=10.0, torque_max_nm=15.0, velocity_max_rad_s=20.0,
        armature=0.01, friction_nm=0.0, damping=0.0, lower_rad=-1.2, upper_rad=1.2, home_rad=0.0, actuator_type="m",
    )  # fmt: skip


ROBOT = RobotSpec(name="leg", joints=(_joint("hip", 1), _joint("knee", 2)))


def spec() -> PolicySpec:
    """Of a policy that reads six numbers; its carry is as the policy has it."""
    known = input_specs(ROBOT, ())
    return PolicySpec(
        task="tried",
        robot=ROBOT,
        inputs=tuple(known[name] for name in INPUTS),
        commands=(),
        carry_size=0,
        control_period_s=0.02,
        action_low_rad=(-1.2, -1.2),
        action_high_rad=(1.2, 1.2),
    )


def see(inputs: dict[str, Any]) -> jax.Array:
    """Five numbers: what most policies here look at."""
    return jnp.concatenate([inputs["joint_angles"], inputs["gyroscope"]])


def of(function: Callable[[jax.Array], Any]) -> Made:
    """A policy whose next carry is a function of five numbers, whole: nothing of it goes unproven."""

    def flat(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.ravel(v).astype(jnp.float32) for v in jax.tree.leaves(function(x))])

    size = jax.eval_shape(flat, jax.ShapeDtypeStruct((5,), jnp.float32)).shape
    return lambda i, c: (0.5 * i["joint_angles"], flat(see(i))), jnp.zeros(size)


def at_time(function: Callable[[jax.Array], Any]) -> Made:
    """The same, of the seconds since the start, a scalar."""
    size = jax.eval_shape(function, jax.ShapeDtypeStruct((), jnp.float32)).shape
    return lambda i, c: (0.5 * i["joint_angles"], function(i["time"][0])), jnp.zeros(size)


def cell(step: Callable[[Any, jax.Array], tuple[Any, jax.Array]], carry: Any) -> Made:
    """A recurrent policy of a layer (carry, x) -> (carry, y), as flax has them."""

    def policy(inputs: dict[str, Any], carry: Any) -> tuple[jax.Array, Any]:
        carry, y = step(carry, see(inputs))
        return 0.5 * jnp.tanh(y[:2]), carry

    return policy, carry


def rows() -> dict[str, np.ndarray]:
    """Inputs by name, (T, k): drawn ones of several sizes, and those at which operations differ."""
    rng = np.random.default_rng(0)
    drawn = [scale * rng.standard_normal((RANDOM_ROWS, 5)) for scale in (0.1, 1.0, 10.0)]
    edges = [
        np.zeros(5), np.ones(5), -np.ones(5), np.full(5, 0.5), [-2.5, -1.5, -0.5, 0.5, 1.5],
        [2.5, 3.5, 4.5, -3.5, -4.5], [1, 1, 2, 2, 1], [3, -3, 3, -3, 0], [0, 0, 0, 1, -1], [7, -7, 6, -6, 5],
        [1e-6, -1e-6, 1e-4, -1e-4, 1e-7], [90, -90, 45, -45, 60], [0, 1, 0, -1, 0], [-1, 0, 1, 0, -1],
        [1e3, -1e3, 1e2, -1e2, 0], [np.pi, -np.pi, np.pi / 2, -np.pi / 2, 2 * np.pi], [5, 4, 3, 2, 1],
    ]  # fmt: skip
    values = np.concatenate([*drawn, np.asarray(edges, np.float64)]).astype(np.float32)
    # one that goes on for longer than any table here, and stands at its first and last entry
    time = np.concatenate([[0.0, 0.0], 0.031 * np.arange(len(values) - 2)]).astype(np.float32)
    return {"joint_angles": values[:, :2], "gyroscope": values[:, 2:], "time": time[:, None]}
