"""Checks the ONNX graphs of a bundle before ONNX Runtime sees them; nothing is run.

`read_graphs(bundle)` bounds what a graph may ask for in memory and work, follows every size through it, and
refuses what a policy has no use for. It allows whatever jax2onnx and tf2onnx make of a policy, old files of
K-Scale's among them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.bundle.graph.shapes import FLOAT, Call, Value, constant
from deploy.bundle.graph.size_up import size_up
from deploy.bundle.graph.wire import Message, element_type, parse, tensor_array
from deploy.errors import PolicyError
from robots.bundle import Bundle
from robots.inputs import POLICY_INPUTS

CARRY = "carry"
# What ONNX Runtime 1.20 and later reads.
OPSETS, IR_VERSIONS = (7, 23), (3, 11)
MAX_NODES = 10_000
# A step of a policy of 60 million weights; the control loop has 20 ms for it.
MAX_WORK = 2 * 10**9
MAX_MEMORY = 512 * 2**20
_STANDARD = (b"", b"ai.onnx")
# exporters declare these whether they use them or not
_UNUSED = (b"ai.onnx.ml", b"ai.onnx.training", b"ai.onnx.preview.training", b"com.microsoft")


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph is.

    Attributes:
        bytes: size of the file.
        opset: version of ONNX's operators.
        ir_version: version of the format.
        producer: who wrote it, with its version; may be empty.
        nodes: number of nodes, those of branches included.
        operators: how often each occurs.
        weights: elements of all constants.
        work: multiplications, additions and elements written in a step, at most.
        memory_bytes: all that the nodes make in a step, at most.
        inputs: shape of each input.
        outputs: shape of each output.
        properties: what the exporter wrote into it.
        digest: SHA-256 of the file.
        computes: SHA-256 of what it computes, without what its exporter noted beside it.
    """

    bytes: int
    opset: int
    ir_version: int
    producer: str
    nodes: int
    operators: dict[str, int]
    weights: int
    work: int
    memory_bytes: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    properties: dict[str, str]
    digest: str
    computes: str


def _text(raw: bytes, limit: int = 60) -> str:
    """Text of a file that nobody vouches for, safe to print."""
    text = raw[: 4 * limit].decode("utf-8", "replace")
    return text[:limit] if text.isprintable() else ascii(text)[1:-1][:limit]


def _check_finite(array: np.ndarray) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    # one infinity is a bound or a mask, as jnp.clip and attention have; among weights it is damage
    if array.size > 1 or np.isnan(array).any():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} values that are not finite; expected finite weights")


# ONNX's number of each type of attribute: the field that holds it, and what it is when that is left out
_FORMS: dict[int, tuple[str, Any]] = {
    1: ("f", 0.0), 2: ("i", 0), 3: ("s", b""), 4: ("t", None), 5: ("g", None), 6: ("floats", []), 7: ("ints", []),
    8: ("strings", []),
}  # fmt: skip


def _attribute(raw: Message) -> Any:
    """The value that the type names, and no other."""
    kind = raw.get("type", 0)
    name, default = _FORMS.get(kind, ("", None))
    filled = {other for other, _ in _FORMS.values() if other in raw and np.shape(raw[other]) != (0,)}
    value = raw.get(name, default)
    if value is None or filled - {name}:
        raise ValueError(f"attribute {_text(raw.get('name', b''))} of type {kind}; expected one value of its type")
    if name == "t":
        value = tensor_array(value)
    if name in ("f", "floats", "t"):
        _check_finite(np.asarray(value))
    return value


_OPTIONAL_OUTPUTS = ("LSTM", "GRU", "RNN", "Dropout", "LayerNormalization")


class _Walk:
    """Goes through a graph and its branches once, in order."""

    def __init__(self, model: Message) -> None:
        self.work = self.memory = self.weights = 0
        self.operators: Counter[str] = Counter()
        self.opset = self._opset(model)

    @staticmethod
    def _opset(model: Message) -> int:
        imports = {}
        for each in model["opset_import"]:
            domain = each.get("domain", b"")
            domain = b"" if domain in _STANDARD else domain
            if domain in imports or domain not in (b"", *_UNUSED):
                raise ValueError(f"operators of {_text(domain) or 'ONNX'}; expected only ONNX's own, once")
            imports[domain] = each.get("version", 0)
        opset = imports.get(b"", 0)
        if not OPSETS[0] <= opset <= OPSETS[1]:
            raise ValueError(f"opset {opset}; expected {OPSETS[0]} to {OPSETS[1]}")
        return opset

    def graph(self, graph: Message, outer: dict[bytes, Value], inputs: dict[bytes, Value]) -> list[tuple[bytes, Value]]:
        """Sizes of a graph's outputs.

        Args:
            graph: the graph.
            outer: what an outer graph has made so far.
            inputs: what it is given.
        """
        scope = {**outer, **inputs}
        for tensor in graph["initializer"]:
            name = tensor.get("name", b"")
            try:
                array = tensor_array(tensor)
                _check_finite(array)
                self.weights += array.size
                self._define(scope, name, constant(array))
            except ValueError as error:
                raise ValueError(f"weights {_text(name)}: {error}") from error
        for node in graph["node"]:
            self._node(node, scope)
        out = []
        for declared in graph["output"]:
            name = declared.get("name", b"")
            if name not in scope or name in dict(out):
                raise ValueError(f"output {_text(name)}; expected a value that the graph makes, each once")
            out.append((name, scope[name]))
        return out

    @staticmethod
    def _define(scope: dict[bytes, Value], name: bytes, value: Value) -> None:
        if not name or name in scope:
            raise ValueError(f"the name {_text(name)!r} is empty or given twice")
        scope[name] = value

    def _node(self, node: Message, scope: dict[bytes, Value]) -> None:
        op = _text(node.get("op_type", b""))
        self.operators[op] += 1
        if self.operators.total() > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} nodes; expected a policy's graph")
        try:
            if node.get("domain", b"") not in _STANDARD or node.get("overload"):
                raise ValueError(f"of the domain {_text(node.get('domain', b''))}; expected only ONNX's own")
            missing = [name for name in node["input"] if name and name not in scope]
            if missing:
                raise ValueError(f"reads {_text(missing[0])!r} before anything makes it")
            attributes = {_text(a.get("name", b"")): a for a in node["attribute"]}
            if len(attributes) != len(node["attribute"]):
                raise ValueError("an attribute given twice")
            call = Call(
                op=op,
                inputs=[scope[name] if name else None for name in node["input"]],
                attributes={name: _attribute(raw) for name, raw in attributes.items()},
                outputs=len(node["output"]),
                opset=self.opset,
            )
            values = self._branches(call, scope) if op == "If" else size_up(call)
            self.weights += sum(v.size for v in call.attributes.values() if isinstance(v, np.ndarray))
            self.work += call.work
            self.memory += 8 * call.scratch + sum(v.size * v.dtype.itemsize for v in values)
            if self.work > MAX_WORK or self.memory > MAX_MEMORY:
                so_far = f"{self.work} operations and {self.memory} bytes so far"
                raise ValueError(f"{so_far}; expected at most {MAX_WORK} and {MAX_MEMORY}")
            for name, value in zip(node["output"], values, strict=True):
                if name or op not in _OPTIONAL_OUTPUTS:
                    self._define(scope, name, value)
        except ValueError as error:
            made = next((name for name in node["output"] if name), b"")
            raise ValueError(f"{op or 'a node'} {_text(made)}: {error}") from error

    def _branches(self, call: Call, scope: dict[bytes, Value]) -> list[Value]:
        """Both branches of an If; where they differ, the larger size is a bound."""
        condition = call.value(0)
        if len(call.attributes) != 2 or condition.dtype.kind != "b" or condition.size != 1:
            raise ValueError("expected a condition of one truth value, and two branches")
        sides = []
        for name in ("then_branch", "else_branch"):
            branch = call.attributes.get(name)
            if not isinstance(branch, dict) or branch["input"]:
                raise ValueError(f"{name}; expected a graph without inputs")
            sides.append([value for _, value in self.graph(branch, scope, {})])
        out = []
        for a, b in zip(*sides, strict=True):
            if a.dtype != b.dtype or len(a.shape) != len(b.shape):
                raise ValueError("branches of another type or number of axes")
            shape = tuple(map(max, a.shape, b.shape))
            out.append(Value(dtype=a.dtype, shape=shape, exact=a.exact and b.exact and a.shape == b.shape))
        if len(out) != call.outputs:
            raise ValueError(f"{len(out)} results of its branches for {call.outputs} outputs")
        return out


def _declared(info: Message, what: str) -> tuple[int, ...] | None:
    """The shape that an input or output declares; None where it leaves some of it open."""
    tensor = info.get("type", {}).get("tensor_type")
    if tensor is None or element_type(tensor.get("elem_type", 0)) != FLOAT:
        raise ValueError(f"{what}: expected a float32 tensor")
    dims = tensor.get("shape", {"dim": [{}]})["dim"]
    if any("dim_value" not in d or "dim_param" in d for d in dims):
        return None
    return tuple(d["dim_value"] for d in dims)


def _inputs(graph: Message, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[tuple[bytes, Value]]:
    weights = {tensor.get("name", b"") for tensor in graph["initializer"]}
    for info in graph["input"]:
        raw = info.get("name", b"")
        if raw in weights:  # as files before IR version 4 list them
            continue
        name = _text(raw)
        if name not in shapes:
            expected = f"some of {', '.join(shapes)}" if shapes else "none"
            raise ValueError(f"input {name!r} is unknown; expected {expected}")
        shape = _declared(info, f"input {name}")
        if shape is None or shape != shapes[name]:
            got = "a size that is not fixed" if shape is None else f"tensor(float) of shape {list(shape[:8])}"
            raise ValueError(f"input {name}: {got}, expected tensor(float) of shape {list(shapes[name])}")
        yield raw, Value(dtype=FLOAT, shape=shape)


# who wrote a graph and what he wrote beside it; not what it computes
_NOT_COMPUTED = ("metadata_props", "producer_name", "producer_version", "model_version", "doc_string", "domain")


def _feed(digest: Any, value: Any) -> None:
    """Hash a part of a graph: kind and length of each of its parts, and their content."""
    if isinstance(value, dict):
        value = [part for key in sorted(value) for part in (key, value[key])]
        nested = True
    else:
        nested = isinstance(value, list) and len(value) > 0 and isinstance(value[0], dict)
    raw = isinstance(value, (bytes, memoryview, np.ndarray))
    content = b"" if nested else bytes(value) if raw else repr(value).encode()
    digest.update(f"{type(value).__name__} {len(value) if nested else len(content)} ".encode() + content)
    for part in value if nested else ():
        _feed(digest, part)


def known_inputs(joints: int, commands: int, carry_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of every input that a .kinfer may declare, by name; some only before kinfer 0.6."""
    shapes = {i.name: (i.length(joints, commands),) for i in POLICY_INPUTS}
    return {**shapes, CARRY: carry_shape}


def check_graph(data: bytes, what: str, shapes: Mapping[str, tuple[int, ...]]) -> GraphFacts:
    """Check one graph.

    Args:
        data: the model.
        what: its name, for errors.
        shapes: of every input that it may have, by name.

    Raises:
        PolicyError: it is not a graph that a policy needs, or asks for too much.
    """
    model = parse(data, what)
    try:
        ir_version = model.get("ir_version", 0)
        if not IR_VERSIONS[0] <= ir_version <= IR_VERSIONS[1]:
            raise ValueError(f"IR version {ir_version}; expected {IR_VERSIONS[0]} to {IR_VERSIONS[1]}")
        graph, walk = model["graph"], _Walk(model)
        given = list(_inputs(graph, shapes))
        inputs = dict(given)
        if len(inputs) != len(given):
            raise ValueError("an input given twice")
        outputs = dict(walk.graph(graph, {}, inputs))
        for info in graph["output"]:
            name, value = _text(info.get("name", b"")), outputs[info.get("name", b"")]
            shape = _declared(info, f"output {name}")
            # where a size is only bounded, OnnxPolicy compares each step's with what is declared
            fits = value.exact and shape in (None, value.shape)
            if not value.exact and shape is not None and len(shape) == len(value.shape):
                fits = all(a <= b for a, b in zip(shape, value.shape, strict=True))
            if value.dtype != FLOAT or not fits:
                raise ValueError(
                    f"output {name}: {value.dtype} of shape {value.shape}{'' if value.exact else ' at most'}; "
                    f"expected float32 of {'fixed sizes' if shape is None else shape}"
                )
    except ValueError as error:
        raise PolicyError(f"{what}: {_text(str(error).encode(), 400)}; export it again") from error
    computes = hashlib.sha256()
    _feed(computes, {key: value for key, value in model.items() if key not in _NOT_COMPUTED})
    producer = (_text(model.get(key, b"")) for key in ("producer_name", "producer_version"))
    return GraphFacts(
        bytes=len(data),
        opset=walk.opset,
        ir_version=ir_version,
        producer=" ".join(producer).strip(),
        nodes=walk.operators.total(),
        operators=dict(sorted(walk.operators.items())),
        weights=walk.weights,
        work=walk.work,
        memory_bytes=walk.memory,
        inputs={_text(name): value.shape for name, value in inputs.items()},
        outputs={_text(name): value.shape for name, value in outputs.items()},
        properties={_text(p.get("key", b"")): p.get("value", b"").decode("utf-8", "replace")
                    for p in model["metadata_props"]},
        digest=hashlib.sha256(data).hexdigest(),
        computes=computes.hexdigest(),
    )  # fmt: skip


def read_graphs(bundle: Bundle) -> tuple[GraphFacts, GraphFacts]:
    """Check both graphs of a bundle, and say what they are: (init_fn, step_fn).

    Raises:
        PolicyError: one of them is not what a policy needs.
    """
    shapes = known_inputs(len(bundle.joint_names), len(bundle.command_names), bundle.carry_shape)
    init = check_graph(bundle.init_fn, "init_fn.onnx", {})
    return init, check_graph(bundle.step_fn, "step_fn.onnx", shapes)
