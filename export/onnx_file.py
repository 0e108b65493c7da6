"""Reads an ONNX policy of another toolkit: one observation vector and recurrent states in, actions and states out.

What exporters differ in is evened out here: a batch axis that is fixed, open or not there, float64, old operators,
local functions, outputs that nobody needs. What they note beside the graph is read in onnx_metadata.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, compose, helper, inliner, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from export import graph
from export.compare import session
from export.errors import ExportError

# Prefix of all names of the file's graph in the bundle's.
PREFIX = "policy/"
# Axes of ReduceSum, Squeeze and Unsqueeze are inputs from here on, as our own nodes have them.
_OPSET_MIN = 13
# What other kinds of files begin with.
_OTHERS = {
    b"PK": "a zip, as PyTorch writes .pt files",
    b"\x1f\x8b": "a gzip, as .kinfer files are",
    b"\x80": "a pickle, as PyTorch checkpoints are",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """A recurrent state.

    Attributes:
        input: name of the input.
        output: name of the output that is the next one.
        shape: its shape in the file.
    """

    input: str
    output: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A policy as a graph that is float32, of static shapes and of operators that we compose.

    Attributes:
        path: where it came from.
        model: the graph.
        obs: name of the observation.
        obs_shape: [N], after axes of one.
        actions: name of the output.
        count: how many actions there are.
        states: recurrent states, in the order of the inputs.
        metadata: the file's metadata_props.
        double: the file was float64.
    """

    path: Path
    model: onnx.ModelProto
    obs: str
    obs_shape: tuple[int, ...]
    actions: str
    count: int
    states: tuple[State, ...]
    metadata: Mapping[str, str]
    double: bool

    @property
    def size(self) -> int:
        """How many values the observation has."""
        return self.obs_shape[-1]


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX policy; check how it is written")
    with path.open("rb") as file:
        head = file.read(2)
    what = next((text for mark, text in _OTHERS.items() if head.startswith(mark)), "")
    if what:
        raise ExportError(f"{path}: is {what}; expected an ONNX file; export the policy with torch.onnx.export")
    try:
        model = onnx.load_model(path)  # and the weights that lie beside it
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx have no common root
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{path}: not an ONNX model ({reason}); export it again") from error
    model = inliner.inline_local_functions(model) if model.functions else model
    custom = sorted({f"{n.domain}.{n.op_type}" for n in graph.nodes(model.graph) if n.domain not in ("", "ai.onnx")})
    if custom:
        raise ExportError(f"{path}: operators {', '.join(custom)}; expected only ONNX's own; export it without them")
    return model


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Every constant, wherever it is."""
    found = [t for g in graph.graphs(model.graph) for t in g.initializer]
    for node in graph.nodes(model.graph):
        found += [a.t for a in node.attribute if a.type == AttributeProto.TENSOR]
    return found


def _to_float32(model: onnx.ModelProto) -> bool:
    """Make float32 of float64; whether there was any."""
    found = False
    for tensor in _tensors(model):
        if tensor.data_type == TensorProto.DOUBLE:
            name, found = tensor.name, True
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))
    for node in graph.nodes(model.graph):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.DOUBLE:
                attribute.i, found = TensorProto.FLOAT, True
    for inner in graph.graphs(model.graph):
        for value in (*inner.input, *inner.output):
            if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
                value.type.tensor_type.elem_type, found = TensorProto.FLOAT, True
    return found


def _named(path: Path, what: str, names: list[str]) -> str:
    return f"{path}: {what} {', '.join(names) or 'none'}"


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The declared shape; what is open is a batch of one or a sequence of one."""
    return tuple(d.dim_value if d.HasField("dim_value") else 1 for d in value.type.tensor_type.shape.dim)


def _fix(value: onnx.ValueInfoProto) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, _shape(value), strict=True):
        dim.dim_value = size


def _roles(path: Path, model: onnx.ModelProto, told: Mapping[str, str]) -> tuple[str, dict[str, str], str]:
    """(observation, states as input: output, actions), by name."""
    inputs, outputs = ([v.name for v in values] for values in (model.graph.input, model.graph.output))
    missing = [f"{a}: {b}" for a, b in told.items() if a not in inputs or b not in outputs]
    if missing:
        raise ExportError(
            f"{_named(path, 'inputs', inputs)}; outputs {', '.join(outputs)}; the spec's states say "
            f"{', '.join(missing)}; name an input and an output of the file"
        )
    states = dict(told)
    for name in inputs:
        after = f"{name.removesuffix('_in')}_out"
        if name.endswith("_in") and after in outputs:
            states.setdefault(name, after)
    twice = sorted({after for after in states.values() if list(states.values()).count(after) > 1})
    if twice:
        raise ExportError(
            f"{path}: states: {', '.join(twice)} is the next one of "
            f"{', '.join(name for name in states if states[name] in twice)}; "
            f"expected an output of its own for each; there is {', '.join(outputs)}"
        )
    left = [name for name in inputs if name not in states]
    if len(left) != 1:
        hint = "export the motion with the policy's own steps, or train without" if "time_step" in left else (
            "name each recurrent input and its output under states, such as states: {hidden: hidden_next}"
        )  # fmt: skip
        raise ExportError(
            f"{_named(path, 'inputs', inputs)}; expected one observation, and states X_in with an output X_out; {hint}"
        )
    rest = [name for name in outputs if name not in states.values()]
    actions = next((name for name in ("actions", "action", "mean") if name in rest), rest[0] if len(rest) == 1 else "")
    if not actions:
        raise ExportError(f"{_named(path, 'outputs', rest)}; expected one named actions; export it under that name")
    return left[0], states, actions


def _prune(model: onnx.ModelProto, wanted: list[str]) -> None:
    """Keep these outputs, in this order, and what they need."""
    kept = {value.name: value for value in model.graph.output}
    needed, keep = set(wanted), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            keep.append(node)
            needed |= {i for inner in (node, *_inside(node)) for i in inner.input}
    nodes, outputs = keep[::-1], [onnx.ValueInfoProto.FromString(kept[n].SerializeToString()) for n in wanted]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(outputs)


def _inside(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [n for a in node.attribute if a.type == AttributeProto.GRAPH for n in graph.nodes(a.g)]


def read_onnx(path: str | Path, states: Mapping[str, str] | None = None) -> OnnxFile:
    """Read a policy.

    Args:
        path: an .onnx file; weights that lie beside it are read too.
        states: recurrent inputs and their outputs, where the names do not tell.

    Raises:
        ExportError: it is not a policy that takes one observation.
    """
    path = Path(path)
    model = _load(path)
    metadata = {p.key: p.value for p in model.metadata_props}
    del model.metadata_props[:]
    weights = {t.name for t in model.graph.initializer}
    plain = [v for v in model.graph.input if v.name not in weights]  # IR versions before 4 list weights too
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(plain)
    half = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    found = {t.data_type for t in _tensors(model)} | {v.type.tensor_type.elem_type for v in plain}
    if name := next((text for kind, text in half.items() if kind in found), ""):
        raise ExportError(f"{path}: got {name}, expected float32 (or float64); export it in float32")
    double = _to_float32(model)
    obs, pairs, actions = _roles(path, model, states or {})
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > graph.OPSET_MAX:
        raise ExportError(f"{path}: opset {opset}, expected at most {graph.OPSET_MAX}; export it with opset_version=17")
    open_ended = {
        v.name for v in model.graph.input for d in v.type.tensor_type.shape.dim[-1:] if not d.HasField("dim_value")
    }
    for value in model.graph.input:
        _fix(value)
    shapes = {v.name: _shape(v) for v in model.graph.input}
    if obs in open_ended:
        raise ExportError(
            f"{path}: input {obs}: how many values it takes is left open; expected a number, as [1, N] has; export it "
            "with no axis open but the batch"
        )
    if not shapes[obs] or int(np.prod(shapes[obs])) != shapes[obs][-1]:
        raise ExportError(
            f"{path}: input {obs}: got shape {list(shapes[obs])}, expected [1, N]; export it for one robot"
        )
    _prune(model, [actions, *pairs.values()])
    unread = [n for n in shapes if n not in {i for node in graph.nodes(model.graph) for i in node.input}]
    if unread:
        raise ExportError(f"{path}: {actions} and the states do not depend on {', '.join(unread)}; expected a policy")
    if opset < _OPSET_MIN:
        try:
            model = version_converter.convert_version(model, graph.OPSET)
        except Exception as error:  # its exceptions have no common root
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"{path}: opset {opset} cannot be made {graph.OPSET} ({reason}); export it with opset_version=17"
            ) from error
        opset = graph.OPSET
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    model.ir_version = graph.IR_VERSION if opset <= graph.OPSET else graph.IR_MAX
    run = session(model.SerializeToString(), str(path))
    wanted = [actions, *pairs.values()]
    try:
        zeros = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
        made = [np.asarray(value) for value in run.run(wanted, zeros)]
    except Exception as error:  # its exceptions have no common root
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{path}: cannot be run for one robot ({reason}); export it with a batch of one") from error
    for value, array in zip(model.graph.output, made, strict=True):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, TensorProto.FLOAT, array.shape))
    for (name, after), array in zip(pairs.items(), made[1:], strict=True):
        if array.shape != shapes[name]:
            raise ExportError(
                f"{path}: state {name} of shape {list(shapes[name])} becomes {after} of {list(array.shape)}; "
                "expected the same; check states in the spec"
            )
    order = [name for name in shapes if name in pairs]
    found_states = tuple(State(input=n, output=pairs[n], shape=shapes[n]) for n in order)
    return OnnxFile(
        path=path,
        model=model,
        obs=obs,
        obs_shape=shapes[obs],
        actions=actions,
        count=made[0].size,
        states=found_states,
        metadata=metadata,
        double=double,
    )


def prefixed(file: OnnxFile) -> OnnxFile:
    """The same with all names under `policy/`, so that none is one of ours."""
    model = compose.add_prefix(file.model, PREFIX)
    states = tuple(
        dataclasses.replace(s, input=f"{PREFIX}{s.input}", output=f"{PREFIX}{s.output}") for s in file.states
    )
    return dataclasses.replace(
        file, model=model, obs=f"{PREFIX}{file.obs}", actions=f"{PREFIX}{file.actions}", states=states
    )


class Network:
    """A policy in ONNX Runtime, called with one observation at a time.

    Args:
        file: what `read_onnx` gave.
        original: run the file itself, as it lies on the disk; else the graph that was made of it.

    Raises:
        ExportError: it cannot be run.
    """

    def __init__(self, file: OnnxFile, *, original: bool) -> None:
        self._file = file
        self._run: Any
        if original and file.double:  # of which ONNX Runtime has not every operator
            self._run = ReferenceEvaluator(str(file.path))
        elif original:
            self._run = session(str(file.path), str(file.path))
        else:
            self._run = session(file.model.SerializeToString(), str(file.path))
        self._types: dict[str, Any] = {}
        if original and file.double:  # which of the inputs are
            given = onnx.load_model(file.path, load_external_data=False).graph.input
            self._types = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in given}
        self._wanted = [file.actions, *(s.output for s in file.states)]

    def start(self) -> list[np.ndarray]:
        """Recurrent states before the first step: zeros."""
        return [np.zeros(s.shape, self._types.get(s.input, np.float32)) for s in self._file.states]

    def __call__(self, obs: np.ndarray, states: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(actions (A,), next states) of an observation (N,)."""
        feed = {s.input: v for s, v in zip(self._file.states, states, strict=True)}
        feed[self._file.obs] = obs.reshape(self._file.obs_shape)
        feed = {name: value.astype(self._types.get(name, np.float32)) for name, value in feed.items()}
        actions, *after = self._run.run(self._wanted, feed)
        return actions.reshape(-1), after
