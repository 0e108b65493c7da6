"""A JAX policy function -> ONNX -> .kinfer bundle.

`convert` takes any function `(inputs, carry) -> (action, carry)`, so that a policy trained elsewhere in JAX exports the
same way as ours.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.errors import ExportError
from export.function import FlatPolicy, Step, flatten
from export.lowering import LoweringError, lower, raised
from export.rewrites import rewrite
from robots.bundle import Bundle
from robots.spec import PolicySpec, canonical_json, input_specs
from toolkit.errors import ToolkitError

# Split has its sizes as an input from here on.
OPSET_MIN = 13
LOOK_STEPS = 100
LOOK_EDGES = (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -2.0, 2.5)


def _complete(spec: PolicySpec, flat: FlatPolicy) -> PolicySpec:
    """The spec with size and layout of the carry; its own layout where the carry is flat already."""
    size = flat.carry.size
    if spec.carry_size not in (0, size):
        shapes = ", ".join(f"{p.name} {p.shape}" for p in flat.layout)
        raise ExportError(
            f"initial carry: got {size} elements ({shapes}), expected {spec.carry_size}, the spec's carry_size; "
            "give the spec that size, or 0 to take the carry's"
        )
    own = bool(spec.carry_layout) and len(flat.layout) == 1
    return spec.replace(carry_size=size, carry_layout=spec.carry_layout if own else flat.layout)


def _versions(spec: PolicySpec) -> dict[str, str]:
    names = ("ksim2real", "jax", "jaxlib", "jax2onnx", "onnx", "onnxruntime")
    found = dict(spec.versions)
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _check_step(step: Step, spec: PolicySpec) -> None:
    """The function has the signature that the spec says, before anything is traced to ONNX."""
    known = input_specs(spec.robot, spec.commands)
    for array in spec.inputs:
        if array.name not in known or array.shape != known[array.name].shape:
            raise ExportError(
                f"input {array.name}: got shape {array.shape}, expected one of "
                f"{', '.join(f'{a.name} {a.shape}' for a in known.values())}; .kinfer has no other inputs"
            )
    inputs = {a.name: jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in spec.inputs}
    carry = jax.ShapeDtypeStruct((spec.carry_size,), jnp.float32)
    try:
        action, _ = jax.eval_shape(lambda i, c: step(i, c), inputs, carry)
    except ExportError:
        raise
    except KeyError as error:
        raise ExportError(
            f"policy function: reads {error}, which is no input; expected only {', '.join(inputs)}; "
            "add it to the spec's inputs if it is one"
        ) from error
    except Exception as error:
        hint = "; call a copy of the module in the step, nnx.clone(module)" if "trace level" in str(error) else ""
        if isinstance(error, jax.errors.TracerArrayConversionError):
            hint = "; use jax.numpy in place of numpy"
        elif isinstance(error, jax.errors.ConcretizationTypeError):  # also of a bool
            hint = "; a value is not known while it is traced: choose with jnp.where, and leave out float() and int()"
        raise ExportError(f"policy function: cannot be traced: {_first_line(error)}{raised(error)}{hint}") from error
    expected = ((len(spec.robot.joints),), "float32")
    got = (action.shape, str(action.dtype)) if hasattr(action, "shape") else type(action).__name__
    if got != expected:
        raise ExportError(f"policy function: returns an action of {got}, expected {expected}, a target for each joint")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@functools.cache
def _load_jax2onnx() -> None:
    """Import jax2onnx's plugins, quickly.

    Their modules build example layers when imported, which compiles some seventy XLA programs: ten seconds of one
    core. Under an abstract trace nothing is compiled, and the examples are never used. What cannot be imported
    that way, the first conversion imports as usual.
    """
    import jax2onnx.plugins

    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # its examples register themselves twice, and say so

    def load() -> Any:
        for module in pkgutil.walk_packages(jax2onnx.plugins.__path__, "jax2onnx.plugins.", onerror=lambda name: None):
            with contextlib.suppress(Exception):
                importlib.import_module(module.name)
        return jnp.zeros(())

    jax.eval_shape(load)


def trace(step: Step, spec: PolicySpec, *, opset: int = graph.OPSET, lowered: bool = False) -> onnx.ModelProto:
    """The function as jax2onnx makes it, its inputs in the order of the spec with the carry last.

    Args:
        step: over a flat carry of `spec.carry_size`.
        spec: what the policy is.
        opset: ONNX opset.
        lowered: JAX traces the function first, so that jax2onnx sees JAX's primitives alone. It has forms of its own
            for layers of flax and equinox and for functions of jax.numpy, which make smaller graphs, and of which some
            are wrong for arrays without a batch axis.

    Raises:
        ExportError: jax2onnx cannot convert it.
    """
    function, arguments = _positional(step, spec)
    names = [*(a.name for a in spec.inputs), graph.CARRY]
    try:
        return _model(lower(function, arguments).function if lowered else function, arguments, opset, names)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"policy function: jax2onnx cannot convert it: {_first_line(error)}; use operations that it knows"
        ) from error


def _positional(step: Step, spec: PolicySpec) -> tuple[Callable[..., tuple[Any, Any]], list[jax.ShapeDtypeStruct]]:
    """The step as a function of arrays, the carry last, and their shapes."""
    names = [a.name for a in spec.inputs]

    def positional(*args: Any) -> tuple[Any, Any]:
        return step(dict(zip(names, args[:-1], strict=True)), args[-1])

    shapes = [*(a.shape for a in spec.inputs), (spec.carry_size,)]
    return positional, [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]


def _model(
    function: Callable[..., Any], arguments: Sequence[Any], opset: int, names: list[str] | None = None
) -> onnx.ModelProto:
    """Any function of arrays as jax2onnx makes it."""
    from jax2onnx import to_onnx

    _load_jax2onnx()
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer
        model = to_onnx(function, list(arguments), model_name="step", opset=opset, input_names=names)
    assert isinstance(model, onnx.ModelProto)
    model.ir_version = graph.IR_VERSION if opset <= graph.OPSET else graph.IR_MAX
    return model


def _stamp(model: onnx.ModelProto, spec: PolicySpec) -> None:
    """What deployment must agree on, at full precision, so that the .onnx file alone also carries it."""
    model.producer_name = "ksim2real"
    model.producer_version = spec.versions.get("ksim2real", "")
    properties = {
        graph.SPEC_PROPERTY: canonical_json(spec.to_json()),
        "spec_digest": spec.digest,
        "robot_digest": spec.robot.digest,
        "weights_digest": spec.weights_digest,
        "config_digest": spec.config_digest,
        "versions": canonical_json(spec.versions),
    }
    helper.set_model_props(model, properties)
    about = {a.name: f"{a.unit}, frame {a.frame}" if a.frame else a.unit for a in spec.inputs}
    about[graph.CARRY] = "recurrent state, flat: " + ", ".join(
        f"{part.name} {'x'.join(map(str, part.shape)) or '1'}" for part in spec.carry_layout
    )
    for value in model.graph.input:
        value.doc_string = about[value.name]


def _serialize(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _init_model(carry: np.ndarray, opset: int) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(carry, "initial_carry")
    node = helper.make_node("Constant", [], [graph.CARRY], name="node_carry", value=tensor)
    out = helper.make_tensor_value_info(graph.CARRY, TensorProto.FLOAT, carry.shape)
    model = helper.make_model(
        helper.make_graph([node], "init", [], [out]), opset_imports=[helper.make_opsetid("", opset)]
    )
    model.ir_version = graph.IR_VERSION if opset <= graph.OPSET else graph.IR_MAX
    return model


def convert(step: Step, init_carry: Any, spec: PolicySpec, *, opset: int = graph.OPSET) -> Bundle:
    """A policy function as a bundle, checked as the robot loads and runs it. The same function and spec give the same
    bytes.

    The check is a short one, 100 steps of drawn inputs against the function; `ksim validate` is the proof.

    Args:
        step: `(inputs, carry) -> (action, carry)`: inputs by .kinfer name, SI, float32; the action is the
            joint targets [rad] in the order of `spec.robot.joints`. Weights are closed over.
        init_carry: the first carry: an array, or any pytree of float32 arrays (a tuple of (h, c), a dict, none).
            A bundle's carry is flat: its parts follow one another as `carry_layout` of the bundle's spec names them.
        spec: what the policy is. Its `carry_size` may be 0: the carry has its own. Inputs that the function does
            not use are left out of the bundle.
        opset: ONNX opset.

    Raises:
        ExportError: the function is not what the spec says, has no float32 ONNX form, or its form is not the function.
    """
    if not isinstance(spec, PolicySpec):
        raise ExportError(f"spec: got {type(spec).__name__}, expected a robots.PolicySpec")
    if not OPSET_MIN <= opset <= graph.OPSET_MAX:
        raise ExportError(f"opset: got {opset}, expected {OPSET_MIN} to {graph.OPSET_MAX}")
    try:
        flat = flatten(step, init_carry)
        spec = _complete(spec, flat)
        _check_step(flat.step, spec)
        try:
            bundle = _either(flat, spec, opset)
        except LoweringError:
            raise
        except ExportError as error:
            if _same_again(flat, spec):
                raise
            raise ExportError(
                "policy function: called again it is another function: it keeps something of its own between calls "
                "(self.x = ..., a global, a list), which no graph does; hand it round in the carry"
            ) from error
    except ExportError:
        raise
    except ToolkitError as error:
        raise ExportError(f"policy function or specification: {' '.join(str(error).split())}") from error
    except Exception as error:  # what JAX, jax2onnx and onnx raise has no common root
        raise ExportError(f"policy function or specification: cannot be converted: {_first_line(error)}") from error
    return bundle


def _same_again(flat: FlatPolicy, spec: PolicySpec) -> bool:
    """Whether two traces of the function are one graph. True also where that cannot be told."""
    function, shapes = _positional(flat.step, spec)
    try:
        first, again = (jax.make_jaxpr(lambda *args: function(*args))(*shapes) for _ in range(2))
    except jax.errors.UnexpectedTracerError:
        return False
    except Exception:  # it was told what is wrong
        return True
    texts = [re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr)) for closed in (first, again)]
    pairs = zip(first.consts, again.consts, strict=False)
    return texts[0] == texts[1] and all(a is b or np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _either(flat: FlatPolicy, spec: PolicySpec, opset: int) -> Bundle:
    """By jax2onnx's own forms of layers where there is nothing to go around, else by JAX's primitives.

    Its own forms make smaller graphs. Some are wrong, which the short check tells.
    """
    if not lower(*_positional(flat.step, spec)).around:
        with contextlib.suppress(Exception):
            bundle = _convert(flat, spec, opset, False)
            _look(bundle, flat)
            return bundle
    try:
        bundle = _convert(flat, spec, opset, True)
        _look(bundle, flat)
        return bundle
    except LoweringError:
        raise
    except ExportError as error:
        found = ""
        with contextlib.suppress(Exception):  # it goes through JAX's own traces
            found = _culprit(flat, spec, opset)
        if not found:
            raise
        raise ExportError(f"policy function: {found}") from error


def _culprit(flat: FlatPolicy, spec: PolicySpec, opset: int) -> str:
    """The operation at fault in words; empty where none is found."""
    from export.blame import culprit

    function, shapes = _positional(flat.step, spec)
    lowered = lower(function, shapes).function
    rows = _rows(spec)
    for t in range(0, len(next(iter(rows.values()))), 10):
        given = [*(rows[a.name][t] for a in spec.inputs), flat.carry]
        found = culprit(lowered, given, lambda inner, arguments: _model(inner, arguments, opset))
        if found:
            return found
    return ""


def _rows(spec: PolicySpec) -> dict[str, np.ndarray]:
    """Inputs of the short check: drawn ones, then such as operations differ at: zeros, halves, ones, ties."""
    from export.compare import drawn

    # a third of the declared range: near its ends values reach hundreds, where 1e-5 is a rounding error
    rows = {k: np.float32(0.3) * v for k, v in drawn(spec.inputs, LOOK_STEPS, np.random.default_rng(0)).items()}
    for array in spec.inputs:
        low, high = (np.broadcast_to(v, array.shape) for v in (array.low, array.high))
        edges = [np.clip(np.full(array.shape, edge), low, high) for edge in LOOK_EDGES]
        rows[array.name] = np.concatenate([rows[array.name], edges]).astype(np.float32)
    return rows or {"time": np.zeros((LOOK_STEPS, 1), np.float32)}


def _look(bundle: Bundle, flat: FlatPolicy) -> None:
    """The robot side loads the bundle, and its steps are the function's.

    Raises:
        ExportError: it does not, or they differ.
    """
    from deploy.bundle.session import OnnxPolicy
    from deploy.errors import PolicyError
    from export.compare import difference

    assert bundle.spec is not None
    try:
        OnnxPolicy(bundle)
    except PolicyError as error:
        reason = str(error).removesuffix("; export it again")
        raise ExportError(
            f"policy function: its graph is not one that ksim run takes: {reason}; write it with other operations "
            "(a Python loop in place of jax.lax.scan, no random numbers, finite weights)"
        ) from error
    inputs = _rows(bundle.spec)
    steps = len(next(iter(inputs.values())))
    resets = np.random.default_rng(1).random(steps) < 0.1
    found = difference(bundle, flat.step, flat.carry, inputs, resets, carry_limited=False)
    if not found.of_limit <= 1.0:
        raise ExportError(
            f"policy function: ONNX Runtime and JAX differ by {found.error:.3g} in a step of drawn inputs, expected at "
            f"most {found.step_limit:g}: an operation means something else in ONNX, or loses digits; write it another "
            "way"
        )


def _convert(flat: FlatPolicy, spec: PolicySpec, opset: int, lowered: bool) -> Bundle:
    model = trace(flat.step, spec, opset=opset, lowered=lowered)
    rewrite(model)
    graph.name_outputs(model, [graph.ACTION, graph.CARRY_OUT])
    graph.drop_unused(model, keep=graph.CARRY)
    used = {v.name for v in model.graph.input}
    return assemble(model, flat.carry, spec.replace(inputs=tuple(a for a in spec.inputs if a.name in used)))


def assemble(model: onnx.ModelProto, carry: np.ndarray, spec: PolicySpec) -> Bundle:
    """The bundle of a step graph and its first carry, (carry,), both checked and stamped with the spec.

    Raises:
        ExportError: the graph is not what the spec says.
    """
    spec = spec.replace(versions=_versions(spec)).contract()
    opset = max(o.version for o in model.opset_import)
    model, init = graph.infer(model), _init_model(carry, opset)
    for each in (model, init):
        _stamp(each, spec)
    graph.check_step(model, spec)
    graph.check_init(init, spec)
    return Bundle(
        joint_names=spec.robot.joint_names,
        command_names=spec.command_names,
        carry_shape=(spec.carry_size,),
        init_fn=_serialize(init),
        step_fn=_serialize(model),
        spec=spec,
        joint_biases=tuple(spec.robot.column("home_rad")),
    )
