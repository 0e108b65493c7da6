"""What jax2onnx does not take, or takes wrongly, how it is gone around, and when that is no longer needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from export import ExportError, convert
from export.lowering import RULES, UNROLL_MAX
from export.tracing import _complete, _convert, _look, flatten
from robots.spec import JointSpec, PolicySpec, RobotSpec, input_specs

KEY = jax.random.key(0)
OUT = jnp.asarray(np.random.default_rng(1).normal(0, 0.3, (8, 2)).astype(np.float32))


def joint(name: str, bus_id: int) -> JointSpec:
    return JointSpec(
        name=name, id=bus_id, kp=30.0, kd=1.0, torque_limit_nm=10.0, torque_max_nm=15.0, velocity_max_rad_s=20.0,
        armature=0.01, friction_nm=0.0, damping=0.0, lower_rad=-1.2, upper_rad=1.2, home_rad=0.0, actuator_type="m",
    )  # fmt: skip


ROBOT = RobotSpec(name="leg", joints=(joint("hip", 1), joint("knee", 2)))


def spec() -> PolicySpec:
    known = input_specs(ROBOT, ())
    return PolicySpec(
        task="t",
        robot=ROBOT,
        inputs=tuple(known[name] for name in ("joint_angles", "gyroscope", "time")),
        commands=(),
        carry_size=0,
        control_period_s=0.02,
        action_low_rad=(-1.2, -1.2),
        action_high_rad=(1.2, 1.2),
    )


def see(inputs: dict[str, Any]) -> jax.Array:
    return jnp.concatenate([inputs["joint_angles"], inputs["gyroscope"]])


def plain(function: Callable[[jax.Array], jax.Array]) -> tuple[Callable[..., Any], Any]:
    """A policy without a carry whose action is made of a function of five numbers."""
    return lambda i, c: (0.2 * jnp.tanh(jnp.ravel(function(see(i))))[:2], c), ()


def cell(step: Callable[..., Any], carry: Any) -> tuple[Callable[..., Any], Any]:
    """A recurrent policy: (carry, x) -> (carry, y) of flax."""

    def policy(inputs: dict[str, Any], carry: Any) -> tuple[jax.Array, Any]:
        carry, y = step(carry, see(inputs))
        return 0.2 * jnp.tanh(y @ OUT), carry

    return policy, carry


def linen(module: Any) -> tuple[Callable[..., Any], Any]:
    params = module.init(KEY, jnp.zeros(5))
    return plain(lambda x: module.apply(params, x))


def of_flax() -> dict[str, Callable[[], tuple[Callable[..., Any], Any]]]:
    nn = pytest.importorskip("flax.linen")
    nnx = pytest.importorskip("flax.nnx")

    def linen_cell(module: Any) -> tuple[Callable[..., Any], Any]:
        carry = module.initialize_carry(KEY, (5,))
        params = module.init(KEY, carry, jnp.zeros(5))
        return cell(lambda c, x: module.apply(params, c, x), carry)

    def nnx_cell(module: Any) -> tuple[Callable[..., Any], Any]:
        return cell(module, module.initialize_carry((5,), nnx.Rngs(0)))

    rngs = lambda: nnx.Rngs(0)  # noqa: E731
    return {
        "linen Dense, LayerNorm, relu": lambda: linen(
            nn.Sequential([nn.Dense(16), nn.relu, nn.LayerNorm(), nn.Dense(2)])
        ),
        "linen Dense, RMSNorm, gelu": lambda: linen(nn.Sequential([nn.Dense(16), nn.gelu, nn.RMSNorm(), nn.Dense(2)])),
        "linen GroupNorm, elu": lambda: linen(nn.Sequential([nn.Dense(16), nn.elu, nn.GroupNorm(4), nn.Dense(2)])),
        "linen LSTMCell": lambda: linen_cell(nn.LSTMCell(8)),
        "linen OptimizedLSTMCell": lambda: linen_cell(nn.OptimizedLSTMCell(8)),
        "linen GRUCell": lambda: linen_cell(nn.GRUCell(8)),
        "linen MGUCell": lambda: linen_cell(nn.MGUCell(8)),
        "nnx Linear": lambda: plain(nnx.Linear(5, 2, rngs=rngs())),
        "nnx LayerNorm": lambda: plain(nnx.LayerNorm(5, rngs=rngs())),
        "nnx BatchNorm": lambda: plain(nnx.BatchNorm(5, use_running_average=True, rngs=rngs())),
        "nnx LSTMCell": lambda: nnx_cell(nnx.LSTMCell(5, 8, rngs=rngs())),
        "nnx GRUCell": lambda: nnx_cell(nnx.GRUCell(5, 8, rngs=rngs())),
    }


def ring(inputs: dict[str, Any], carry: Any) -> tuple[jax.Array, Any]:
    """A history that is written at a place that goes round."""
    rows, at = carry
    rows = jax.lax.dynamic_update_slice(rows, see(inputs)[None], (jnp.int32(at[0]), 0))
    return 0.2 * jnp.tanh(rows.mean(0)[:2]), (rows, jnp.mod(at + 1, 4))


CLIP = jnp.asarray(np.float32(0.3 * np.sin(np.arange(60)[:, None] * [0.1, 0.2])))


def frame(inputs: dict[str, Any]) -> jax.Array:
    return jnp.int32(jnp.clip(inputs["time"][0] / 0.02, 0.0, 59.0))


def motion(pick: Callable[[jax.Array], jax.Array]) -> tuple[Callable[..., Any], Any]:
    return lambda i, c: (pick(frame(i)) + 0.1 * i["joint_angles"], c), ()


CASES: dict[str, Callable[[], tuple[Callable[..., Any], Any]]] = {
    "equinox LayerNorm": lambda: plain(eqx.nn.LayerNorm(5)),
    "equinox RMSNorm": lambda: plain(eqx.nn.RMSNorm(5)),
    "var": lambda: plain(lambda x: jnp.var(x) * x),
    "std, ddof": lambda: plain(lambda x: jnp.std(x, ddof=1) * x),
    "mean over an axis": lambda: plain(lambda x: x[:4] - jnp.mean(x[:4].reshape(2, 2), axis=0).repeat(2)),
    "motion[k]": lambda: motion(lambda k: CLIP[k]),
    "jnp.take": lambda: motion(lambda k: jnp.take(CLIP, k, axis=0, mode="clip")),
    "dynamic_index_in_dim": lambda: motion(lambda k: jax.lax.dynamic_index_in_dim(CLIP, k, keepdims=False)),
    "one_hot @ motion": lambda: motion(lambda k: jax.nn.one_hot(k, 60) @ CLIP),
    "interp": lambda: plain(lambda x: jnp.interp(x, jnp.linspace(-1, 1, 7), jnp.linspace(0, 2, 7) ** 2)),
    "searchsorted": lambda: plain(lambda x: jnp.float32(jnp.searchsorted(jnp.linspace(-1, 1, 9), x))),
    "sort": lambda: plain(jnp.sort),
    "argsort": lambda: plain(lambda x: x[jnp.argsort(x)]),
    "top_k": lambda: plain(lambda x: jax.lax.top_k(x, 2)[0]),
    "flip": lambda: plain(jnp.flip),
    "integer division": lambda: plain(lambda x: jnp.float32(jnp.int32(x * 10) // 3)),
    "integers": lambda: plain(lambda x: jnp.float32(jnp.int32(x * 10) * 3 + 1)),
    "fori_loop": lambda: plain(lambda x: jax.lax.fori_loop(0, 3, lambda k, v: 0.5 * v + x * k, x)),
    "scan": lambda: plain(lambda x: jax.lax.scan(lambda s, u: (0.5 * s + u, s), 0.0, x)[1]),
    "scan in reverse": lambda: plain(lambda x: jax.lax.scan(lambda s, u: (0.5 * s + u, s), 0.0, x, reverse=True)[1]),
    "polyval": lambda: plain(lambda x: jnp.polyval(jnp.array([1.0, 2.0, 3.0]), x)),
    "cond": lambda: plain(lambda x: jax.lax.cond(x[0] > 0, lambda v: v, lambda v: 2 * v, x)),
    "switch": lambda: plain(
        lambda x: jax.lax.switch(jnp.int32(3 * x[0]), [lambda v: v, lambda v: 2 * v, lambda v: 3 * v], x)
    ),
    "ring buffer": lambda: (ring, (jnp.zeros((4, 5)), jnp.zeros(1))),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_exported_and_is_the_function(name):
    policy, carry = CASES[name]()
    bundle = convert(policy, carry, spec())  # which compares 100 steps with JAX
    assert bundle.spec is not None and bundle.spec.inputs


def test_layers_of_flax_on_an_observation_without_a_batch_axis_are_exported():
    for name, make in of_flax().items():
        policy, carry = make()
        try:
            convert(policy, carry, spec())
        except ExportError as error:
            pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda x: jax.lax.while_loop(lambda v: v[0] < 1, lambda v: v + 1, x),
            r"a loop that ends when .* use a Python",
        ),
        (lambda x: jax.lax.fori_loop(0, UNROLL_MAX + 1, lambda k, v: 0.5 * v, x), rf"a loop of {UNROLL_MAX + 1} turns"),
        (lambda x: x + jax.random.normal(jax.random.key(0), (5,)), r"random numbers; .* leave the noise out"),
        (lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32), r"got BFLOAT16, expected float32"),
        (lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((5,), jnp.float32), x), r"a call back to Python"),
        (lambda x: jnp.linalg.solve(jnp.eye(5) * 2 + jnp.outer(x, x), x), r"cannot convert it"),
    ],
)
def test_what_has_no_form_in_a_graph_is_refused_with_the_cause_and_the_users_line(function, words):
    policy, carry = plain(function)
    with pytest.raises(ExportError, match=words) as caught:
        convert(policy, carry, spec())
    line = inspect.getsourcelines(function)[1]
    if "BFLOAT16" not in str(caught.value) and "solve" not in inspect.getsource(function).split("\n")[0]:
        assert f"(test_lowering.py, line {line})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_remedies_work():
    def python_loop(x):
        for _ in range(70):
            x = 0.5 * x
        return x

    for remedy in (
        python_loop,
        lambda x: x * 0.5 ** jnp.arange(5.0),  # over a whole axis
        lambda x: jax.lax.fori_loop(0, UNROLL_MAX, lambda k, v: 0.5 * v, x),
    ):
        convert(*plain(remedy), spec())
    convert(
        lambda i, c: (0.1 * i["joint_angles"] + c, 0.5 * c), jnp.zeros(2), spec()
    )  # over control steps, by the carry


# what jax2onnx does by itself today fails: when one of these no longer does, its rule may go
NEEDED = {
    "scan": "fori_loop",
    "cond": "switch",
}


@pytest.mark.parametrize(("rule", "name"), NEEDED.items())
def test_each_way_round_is_still_needed(rule, name, monkeypatch):
    policy, carry = CASES[name]()
    flat = flatten(policy, carry)
    whole = _complete(spec(), flat)
    _look(_convert(flat, whole, 17, True), flat)
    monkeypatch.delitem(RULES, rule)
    with pytest.raises(Exception):  # noqa: B017
        _look(_convert(flat, whole, 17, True), flat)


def test_jax2onnxs_own_forms_of_layers_are_still_wrong_without_a_batch_axis():
    flat = flatten(*of_flax()["nnx Linear"]())
    whole = _complete(spec(), flat)
    with pytest.raises(Exception):  # noqa: B017
        _look(_convert(flat, whole, 17, False), flat)
