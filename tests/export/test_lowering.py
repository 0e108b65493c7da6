"""What jax2onnx does not take, or takes wrongly, how it is gone around, and when that is no longer needed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from export import ExportError, convert
from export.lowering import RULES, UNFOLD, UNROLL_MAX
from export.tracing import _complete, _convert, _look, flatten

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    from tried.case import see, spec
finally:
    sys.path.pop(0)

KEY = jax.random.key(0)
OUT = jnp.asarray(np.random.default_rng(1).normal(0, 0.3, (8, 2)).astype(np.float32))


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
    "motion[k], k beyond both ends": lambda: motion(lambda k: CLIP[4 * k - 60]),
    "vmap of a lookup": lambda: plain(lambda x: jax.vmap(lambda k: CLIP[k])(jnp.int32(20 * x[:3])).T),
    "rows that go beyond the end": lambda: plain(
        lambda x: jax.lax.dynamic_slice(jnp.tile(x, 2), (jnp.int32(20 * x[0]),), (3,))
    ),
    "written beyond the end": lambda: plain(
        lambda x: jax.lax.dynamic_update_slice(x, x[:2] - 5, (jnp.int32(20 * x[0]),))
    ),
    "x.at[k].set": lambda: plain(lambda x: x.at[jnp.int32(20 * x[0])].set(9.0)),
    "x.at[:, k].set": lambda: plain(lambda x: jnp.outer(x, x).at[:, jnp.int32(9 * x[0])].set(jnp.arange(5.0))),
    "x.at[ks].set twice": lambda: plain(lambda x: x.at[jnp.array([1, 0, 1])].set(x[:3])),
    "x.at[ks].add": lambda: plain(lambda x: x.at[jnp.int32(9 * x[:3])].add(x[2:])),
    "x.at[ks].add, .subtract": lambda: plain(lambda x: x.at[jnp.int32(9 * x[:3])].subtract(x[2:])),
    "x.at[k].multiply": lambda: plain(lambda x: x.at[jnp.int32(9 * x[0])].multiply(-3.0)),
    "x.at[k].min": lambda: plain(lambda x: x.at[jnp.int32(9 * x[0])].min(-1.0)),
    "x.at[k].max": lambda: plain(lambda x: x.at[jnp.int32(9 * x[0])].max(1.0)),
    "a bool of two": lambda: plain(lambda x: x * jnp.where(x[0] > 0, x > 0.1, x < 0.2)),
    "arctan2 of -0": lambda: plain(lambda x: jnp.arctan2(-jnp.abs(x), -jnp.abs(x))),
    "associative_scan": lambda: plain(lambda x: jax.lax.associative_scan(jnp.add, x)),
    "transposed convolution": lambda: plain(
        lambda x: jax.lax.conv_transpose(x[None, :, None], OUT[:3, :1, None], (2,), "SAME")
    ),
    "integer ** 3": lambda: plain(lambda x: 0.001 * jnp.float32(jnp.int32(9 * x) ** 3)),
    "cumprod": lambda: plain(lambda x: jnp.cumprod(x)[::-1]),
    "cumlogsumexp": lambda: plain(lambda x: 0.01 * jax.lax.cumlogsumexp(-200 - x)[::-1]),
    "platform_dependent": lambda: plain(lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)),
    "digitize beside a layer": lambda: plain(
        lambda x: jnp.float32(jnp.digitize(x, jnp.linspace(-1, 1, 9))) + x[jnp.int32(jnp.abs(x[0]))]
    ),
    "random numbers that nothing reads": lambda: plain(
        lambda x: (jax.random.normal(jax.random.key(0), (5,)), jnp.flip(x)[jnp.int32(jnp.abs(x[0]))] * x)[1]
    ),
    "weights of half precision": lambda: plain(lambda x: x[jnp.int32(jnp.abs(x[0]))] * OUT.astype(jnp.bfloat16)[:5, 0]),
    "a mask of -inf": lambda: plain(
        lambda x: jax.nn.softmax(jnp.outer(x, x) + jnp.where(jnp.tril(jnp.ones((5, 5), bool)), 0.0, -jnp.inf)) @ x
    ),
    "a NaN that is not taken": lambda: plain(lambda x: jnp.median(x) * x),
    "scores too large for 1e-5": lambda: plain(lambda x: jax.nn.softmax(40 * jnp.outer(x, x)) @ x),
}
# those that the names above do not bring in; others are in NEEDED below
TRIED = [name for name in CASES if name not in {"scan", "scan in reverse", "argsort", "top_k", "flip"}]


@pytest.mark.parametrize("name", TRIED)
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


def solved(x):
    return jnp.linalg.solve(jnp.eye(5) * 2 + jnp.outer(x, x), x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda x: jax.lax.while_loop(lambda v: v[0] < 1, lambda v: v + 1, x),
            r"a loop that ends when .* use a Python",
        ),
        (lambda x: jax.lax.fori_loop(0, UNROLL_MAX + 1, lambda k, v: 0.5 * v, x), rf"a loop of {UNROLL_MAX + 1} turns"),
        (lambda x: x + jax.random.normal(jax.random.key(0), (5,)), r"random numbers; .* leave the noise out"),
        (lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32), r"bfloat16 in .*; .* dtype=jnp.float32"),
        (lambda x: (x.astype(jnp.float16) * 2).astype(jnp.float32), r"float16 in .*; .* dtype=jnp.float32"),
        (lambda x: jnp.abs(jnp.fft.rfft(x)), r"complex64 in fft; .* two arrays"),
        (lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((5,), jnp.float32), x), r"a call back to Python"),
        (solved, r"lu: .*; of a constant matrix do it in training.*Cramer's rule"),
        (lambda x: jnp.float32(jnp.int32(x * 9) & 1), r"and: .*; take bits of an integer apart by // and %"),
        (lambda x: jnp.cumprod(jnp.tile(x, 20))[:5], r"a running product .*; use jnp.cumsum, of logarithms"),
    ],
)
def test_what_has_no_form_in_a_graph_is_refused_with_the_cause_and_the_users_line(function, words):
    policy, carry = plain(function)
    with pytest.raises(ExportError, match=words) as caught:
        convert(policy, carry, spec())
    lines, line = inspect.getsourcelines(function)
    at = line + len(lines) - 1 if function is solved else line
    assert f"(test_lowering.py:{at}: " in str(caught.value)
    assert "jnp" in str(caught.value) or "jax." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_is_the_users_own_where_jax_has_traced_the_same_function_before():
    jnp.searchsorted(jnp.arange(5.0), jnp.ones(5))

    def first(x):
        return x + jax.random.uniform(jax.random.key(0), (5,))

    def second(x):
        return x - jax.random.uniform(jax.random.key(0), (5,))

    for function in (first, second):
        with pytest.raises(ExportError) as caught:
            convert(*plain(function), spec())
        assert f"test_lowering.py:{inspect.getsourcelines(function)[1] + 1}: return x" in str(caught.value)


def test_an_error_of_the_users_own_has_its_line():
    def wrong(x):
        return x @ jnp.ones(4)

    with pytest.raises(ExportError, match=r"cannot be traced: TypeError.*\(test_lowering.py:\d+: return x @ jnp.ones"):
        convert(lambda i, c: (wrong(see(i)), c), (), spec())


def crossed(x):
    """The solution of three equations by Cramer's rule."""
    a, b, c = (jnp.eye(3) * 2 + jnp.outer(x[:3], x[2:])).T
    volume = jnp.dot(a, jnp.cross(b, c))
    y = x[1:4]
    return jnp.stack([jnp.dot(y, jnp.cross(b, c)), jnp.dot(a, jnp.cross(y, c)), jnp.dot(a, jnp.cross(b, y))]) / volume


def test_the_remedies_work():
    def python_loop(x):
        for _ in range(70):
            x = 0.5 * x
        return x

    def transform(x):
        angle = 2 * jnp.pi * jnp.outer(jnp.arange(3), jnp.arange(5)) / 5
        return jnp.hypot(jnp.cos(angle) @ x, jnp.sin(angle) @ x)

    a, y = jnp.eye(3) * 2 + jnp.outer(OUT[:3, 0], OUT[2:5, 0]), OUT[1:4, 0]
    np.testing.assert_allclose(crossed(OUT[:5, 0]), jnp.linalg.solve(a, y), atol=1e-5)
    for remedy in (
        python_loop,
        lambda x: x * 0.5 ** jnp.arange(5.0),  # over a whole axis
        lambda x: jax.lax.fori_loop(0, UNROLL_MAX, lambda k, v: 0.5 * v, x),
        crossed,
        transform,
        lambda x: jnp.float32(jnp.int32(x * 9) // 2 % 2),
        lambda x: jnp.exp(jnp.cumsum(jnp.log(1 + jnp.abs(jnp.tile(x, 20)) / 100)))[-5:],
    ):
        convert(*plain(remedy), spec())
    convert(
        lambda i, c: (0.1 * i["joint_angles"] + c, 0.5 * c), jnp.zeros(2), spec()
    )  # over control steps, by the carry


def test_a_module_of_nnx_that_traces_by_itself_is_refused_with_what_to_do_and_that_works():
    nnx = pytest.importorskip("flax.nnx")
    module = nnx.RNN(nnx.SimpleCell(5, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

    def history(x):
        return jnp.stack([x, -x])

    with pytest.raises(ExportError, match=r"TraceContextError.*test_lowering.py.*nnx.clone\(module\)"):
        convert(*plain(lambda x: module(history(x))), spec())
    convert(*plain(lambda x: nnx.clone(module)(history(x))), spec())


def test_what_a_function_does_with_its_inputs_is_its_own_affair():
    whole = [
        lambda i, c: (0.5 * i["joint_angles"], c),  # the carry as it is, the gyroscope not at all
        lambda i, c: (i["joint_angles"], c.at[jnp.int32(i["time"][0]) % 2].set(1.0)),  # an input as it is
        lambda i, c: (jax.lax.cond(i["time"][0] > 1, lambda: i["gyroscope"][:2], lambda: c), c),  # by an inner part
        lambda i, c: (c, i["joint_angles"]),
    ]
    for step in whole:
        convert(step, jnp.zeros(2), spec())


@pytest.mark.parametrize("name", ["searchsorted", "interp", "a bool of two"])
def test_no_integers_are_computed_with_that_onnx_runtime_1_20_does_not_compute_with(name):
    bundle = convert(*CASES[name](), spec())
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(bundle.step_fn))
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    computing = ("Where", "Add", "Sub", "Mul", "Div", "Max", "Min")
    found = {kinds[n.output[0]] for n in model.graph.node if n.op_type in computing and n.output[0] in kinds}
    assert found <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64}


# What jax2onnx does by itself today fails, or is wrong: entry -> what shows it.
NEEDED = {
    "scan": "fori_loop",
    "cond": "switch",
    "select_n": "a bool of two",
    "atan2": "arctan2 of -0",
    "gather": "vmap of a lookup",
    "dynamic_slice": "rows that go beyond the end",
    "dynamic_update_slice": "written beyond the end",
    "scatter": "x.at[k].set",
    jax.lax.scatter_add_p.name: "x.at[ks].add",
    jax.lax.scatter_sub_p.name: "x.at[ks].add, .subtract",
    jax.lax.scatter_mul_p.name: "x.at[k].multiply",
    jax.lax.scatter_min_p.name: "x.at[k].min",
    jax.lax.scatter_max_p.name: "x.at[k].max",
    "pad": "associative_scan",
    "conv_general_dilated": "transposed convolution",
    "integer_pow": "integer ** 3",
    "cumprod": "cumprod",
    "cumlogsumexp": "cumlogsumexp",
    "lt_to": "digitize beside a layer",
}
# Calls are written out so that the rules reach what is in them; le_to is the twin of lt_to, and known_gather of gather.
CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
# ONNX Runtime 1.20 needs them, not jax2onnx: the test of its integers.
OLDER = {"add", "sub", "mul", "div", "max", "min"}
# What no graph has: nothing is gone around.
REFUSED = {
    "while", "random_bits", "random_seed", "random_wrap", "threefry2x32", "pure_callback", "io_callback",
    "debug_callback", "debug_print",
}  # fmt: skip


def test_each_entry_has_a_test_that_tells_when_it_may_go():
    assert {*UNFOLD, *RULES} == {*NEEDED, *CALLS, *REFUSED, *OLDER, "le_to", "gather"}


@pytest.mark.parametrize(("entry", "name"), NEEDED.items())
def test_each_way_round_is_still_needed(entry, name, monkeypatch):
    policy, carry = CASES[name]()
    flat = flatten(policy, carry)
    whole = _complete(spec(), flat)
    for entries in (UNFOLD, RULES):
        monkeypatch.delitem(entries, entry, raising=False)
    try:
        _look(_convert(flat, whole, 17, True), flat)
    except Exception:
        return
    pytest.fail(f"jax2onnx does it by itself: the entry {entry!r} of export/lowering.py may go")


def test_jax2onnxs_own_forms_of_layers_are_still_wrong_without_a_batch_axis():
    flat = flatten(*of_flax()["nnx Linear"]())
    whole = _complete(spec(), flat)
    try:
        _look(_convert(flat, whole, 17, False), flat)
    except Exception:
        return
    pytest.fail("jax2onnx has nnx.Linear on a vector right: look whether export/lowering.py is needed at all")


class Counts:
    """A policy that remembers beside its carry."""

    def __init__(self):
        self.steps, self.last = 0, jnp.zeros(2)

    def number(self, inputs, carry):
        self.steps += 1
        return 0.5 * jnp.sin(self.steps * 0.1 + inputs["joint_angles"]), carry

    def array(self, inputs, carry):
        self.last = 0.9 * self.last + 0.1 * inputs["joint_angles"]
        return self.last, carry


@pytest.mark.parametrize("name", ["number", "array"])
def test_a_function_that_remembers_beside_its_carry_is_told_so(name):
    with pytest.raises(ExportError, match=r"called again it is another function.*hand it round in the carry"):
        convert(getattr(Counts(), name), (), spec())


def test_atan2_of_an_array_and_a_scalar_works():
    convert(lambda i, c: (jnp.arctan2(i["joint_angles"], i["gyroscope"][0]), c), (), spec())
    convert(lambda i, c: (jnp.arctan2(i["gyroscope"][0], i["joint_angles"]), c), (), spec())


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda i, c: (np.tanh(np.asarray(i["joint_angles"])), c), "use jax.numpy in place of numpy"),
        (lambda i, c: (i["joint_angles"] if i["joint_angles"][0] > 0 else -i["joint_angles"], c), "with jnp.where"),
        (lambda i, c: (i["joint_angles"] * float(i["joint_angles"][0]), c), r"leave out float\(\) and int\(\)"),
    ],
)
def test_what_cannot_be_traced_has_a_remedy(policy, said):
    with pytest.raises(ExportError, match=said):
        convert(policy, (), spec())


@pytest.mark.parametrize(
    ("carry", "said"),
    [
        ({"n": np.int32(0)}, "part n: .*count in float32"),
        ({"on": np.asarray(False)}, "part on: .*compare with 0.5"),
        (1.0, r"write jnp.float32\(...\)"),
        ({"key": jax.random.key(0)}, "part key: got a key of random numbers.*leave the noise and its key out"),
    ],
)
def test_a_carry_of_another_type_has_a_remedy(carry, said):
    with pytest.raises(ExportError, match=said):
        convert(lambda i, c: (i["joint_angles"], c), carry, spec())
