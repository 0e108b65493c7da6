"""What jax2onnx makes of ordinary policy code passes the check of the robot's side, and runs there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime as ort
import pytest

from deploy.bundle.graph.check import check_graph
from deploy.errors import PolicyError

SIZES = {"joint_angles": 3, "carry": 8}

ORDINARY = {
    "a slice that begins at a value": lambda a, c: (jax.lax.dynamic_slice(c, (a[0].astype(jnp.int32),), (3,)), c),
    "a ring buffer": lambda a, c: (a, jax.lax.dynamic_update_slice(c, a, (c[0].astype(jnp.int32),))),
    "a history": lambda a, c: (a, jnp.concatenate([c[3:], a])),
    "roll": lambda a, c: (a, jnp.roll(c, 3)),
    "at set": lambda a, c: (a, c.at[2:5].set(a)),
    "a branch": lambda a, c: (jax.lax.cond(a[0] > 0, lambda x: x * 2, lambda x: x + 1, a), c),
    "sorting and picking": lambda a, c: (c[jnp.argsort(c)[:3]], c),
    "a mask of minus infinity": lambda a, c: (a + jnp.where(jnp.arange(8) < 2, c, -jnp.inf).max(), c),
    "attention": lambda a, c: (jax.nn.softmax(jnp.outer(a, a)) @ a, c),
    "a convolution over history": lambda a, c: (
        a,
        jax.lax.conv_general_dilated(c[None, None], jnp.ones((1, 1, 3)), (1,), "SAME")[0, 0],
    ),
    "a norm and a cross product": lambda a, c: (jnp.cross(a, a + 1) / jnp.linalg.norm(a), c),
    "angles": lambda a, c: (jnp.mod(jnp.arctan2(a, a + 1), 2 * jnp.pi), c),
    "activations": lambda a, c: (jax.nn.gelu(a), jax.nn.silu(c) + jax.nn.elu(c) + jax.nn.softplus(c)),
    "bounds that are infinite": lambda a, c: (jnp.clip(a, -jnp.inf, 1), jnp.cumsum(c)),
    "integers divided by a constant": lambda a, c: (a, c * (jnp.arange(8) // 2)),
    "what is no number, replaced": lambda a, c: (jnp.nan_to_num(a), c),
}


def exported(function) -> bytes:
    from jax2onnx import to_onnx

    shapes = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in SIZES.values()]
    model = to_onnx(function, shapes, model_name="step", opset=17, input_names=list(SIZES))
    return model.SerializeToString()  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_policy_code_is_readable_on_the_robot(case):
    function = ORDINARY[case]
    data = exported(function)
    facts = check_graph(data, "step_fn.onnx", {name: (n,) for name, n in SIZES.items()})
    assert facts.nodes > 0 and len(facts.outputs) == 2
    angles, carry = np.float32([0.5, -0.25, 0.75]), np.linspace(0, 1, 8, dtype=np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    made = session.run(None, {"joint_angles": angles, "carry": carry})
    for got, expected in zip(made, function(jnp.asarray(angles), jnp.asarray(carry)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_loop_is_refused_with_what_to_do():
    data = exported(lambda a, c: (jax.lax.fori_loop(0, 3, lambda i, x: x * 2, a), c))
    with pytest.raises(PolicyError, match=r"a loop, which could run without end; unroll it"):
        check_graph(data, "step_fn.onnx", {name: (n,) for name, n in SIZES.items()})
