"""A trial load, the other way to meet a hostile graph: a process with limits loads and runs it first.

The product does not use it; fuzz_trial.py compares it with the check of deploy/bundle/graph, docs/safety.md says why
the check stayed. As a program it reads shapes and both graphs from its input and answers with what was wrong.
"""

from __future__ import annotations

import functools
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random
import onnxruntime as ort

from deploy.bundle.graph.size_up import RULES

# What both graphs may take beyond Python and ONNX Runtime themselves, and how long all may last.
MEMORY, CPU_S, WALL_S = 1024 * 2**20, 10, 30
STEPS, STEP_S = 5, 0.5

# message: field number, name and kind; * repeats. What is left out is refused.
_SCHEMA = """
Model: 1 ir_version int64, 2 producer_name string, 3 producer_version string, 4 domain string, 5 model_version int64,
 6 doc_string string, 7 graph Graph, 8 opset_import *Opset, 14 metadata_props *Entry
Opset: 1 domain string, 2 version int64
Entry: 1 key string, 2 value string
Graph: 1 node *Node, 2 name string, 5 initializer *Tensor, 10 doc_string string, 11 input *ValueInfo,
 12 output *ValueInfo, 13 value_info *ValueInfo, 16 metadata_props *Entry
Node: 1 input *string, 2 output *string, 3 name string, 4 op_type string, 5 attribute *Attribute, 6 doc_string string,
 7 domain string, 9 metadata_props *Entry
Attribute: 1 name string, 2 f float, 3 i int64, 4 s bytes, 5 t Tensor, 6 g Graph, 7 floats *float, 8 ints *int64,
 9 strings *bytes, 13 doc_string string, 20 type int32
Tensor: 1 dims *int64, 2 data_type int32, 4 float_data *float, 5 int32_data *int32, 7 int64_data *int64, 8 name string,
 9 raw_data bytes, 10 double_data *double, 11 uint64_data *uint64, 12 doc_string string, 16 metadata_props *Entry
ValueInfo: 1 name string, 2 type Type, 3 doc_string string, 4 metadata_props *Entry
Type: 1 tensor_type TensorType, 6 denotation string
TensorType: 1 elem_type int32, 2 shape Shape
Shape: 1 dim *Dimension
Dimension: 1 dim_value int64, 2 dim_param string, 3 denotation string
"""
ALLOWED = {*RULES, "If"}
# Operators that make sizes out of values: what they make must have a size that ONNX Runtime can tell beforehand.
_SIZERS = {"ConstantOfShape", "Range", "Expand", "Tile", "Pad", "OneHot", "TopK", "NonZero", "Reshape"}


class RefusedError(Exception):
    """What is wrong, in one line."""


@functools.cache
def model_class() -> Any:
    """Protobuf's class of a model."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="graph.proto", package="g", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in re.findall(r"^(\w+): ([^:]+)(?=^\w|\Z)", _SCHEMA, re.M):
        made = file.message_type.add(name=message)
        for number, name, star, kind in re.findall(r"(\d+) (\w+) (\*?)(\w+)", fields):
            field = made.field.add(name=name, number=int(number), label=3 if star else 1)  # type: ignore[arg-type]
            if kind[0].isupper():
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".g.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[attr-defined]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("g.Model"))


def _session(data: bytes, plain: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _check_nodes(graph: Any) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED:
            raise RefusedError(f"operator {node.domain}.{node.op_type}; a policy has no use for it, or it may not end")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                if any(n.op_type in _SIZERS for n in attribute.g.node):
                    raise RefusedError(f"{node.op_type}: a branch that makes sizes")
                _check_nodes(attribute.g)


def _check_sizes(model: Any) -> None:
    """Every size is fixed as far as ONNX Runtime can tell, and no integer is divided by what may be 0."""
    declared = {o.name for o in model.graph.output}
    whole = type(model).FromString(model.SerializeToString())
    for name in (n for node in model.graph.node for n in node.output):
        if name and name not in declared:
            whole.graph.output.add(name=name)
    found = {o.name: (o.type, o.shape) for o in _session(whole.SerializeToString(), plain=True).get_outputs()}
    constants = {t.name: t for t in whole.graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in whole.graph.node if n.op_type == "Constant" and n.attribute}
    for node in whole.graph.node:
        for name in node.output:
            kind, shape = found.get(name, ("", []))
            if node.op_type in _SIZERS and not all(isinstance(n, int) for n in shape):
                raise RefusedError(f"{node.op_type} {name[:60]}: a size that depends on values; expected fixed sizes")
            if node.op_type in ("Div", "Mod") and "int" in kind:
                divisor = constants.get(node.input[1])
                if divisor is None or not re.fullmatch(b"[^\0\xff].*", divisor.raw_data, re.S):
                    raise RefusedError(f"{node.op_type} {name[:60]}: integers divided by what may be 0 or -1")


def look(data: bytes) -> None:
    """The list: known fields, allowed operators, fixed sizes; nothing is run."""
    model = model_class()()
    model.ParseFromString(data)
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise RefusedError("fields that a policy has no use for: weights elsewhere, functions, sparse weights")
    if any(o.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft") for o in model.opset_import):
        raise RefusedError("operators of another domain")
    _check_nodes(model.graph)
    _check_sizes(model)


def run_graphs(init_fn: bytes, step_fn: bytes, shapes: dict[str, tuple[int, ...]], joints: int) -> None:
    """Load both graphs and run a few steps."""
    init, step = _session(init_fn), _session(step_fn)
    if init.get_inputs() or len(init.get_outputs()) != 1 or len(step.get_outputs()) != 2:
        raise RefusedError("expected init_fn without inputs and with 1 output, step_fn with 2")
    for i in step.get_inputs():
        if i.type != "tensor(float)" or tuple(i.shape) != tuple(shapes.get(i.name, ())):
            raise RefusedError(f"input {i.name[:60]}: {i.type} {i.shape!s:.60}; expected {shapes.get(i.name)} of float")
    names = [i.name for i in step.get_inputs()]
    rng = np.random.default_rng(0)
    carry = init.run(None, {})[0]
    for t in range(STEPS):
        if getattr(carry, "dtype", None) != np.float32 or carry.shape != tuple(shapes["carry"]):
            raise RefusedError(f"a carry of another size or type than {shapes['carry']} of float")
        fed = {n: (rng.normal(size=shapes[n]) * (t > 0)).astype(np.float32) for n in names}
        if "carry" in fed:
            fed["carry"] = carry
        start = time.perf_counter()
        action, carry = step.run(None, fed)
        if time.perf_counter() - start > STEP_S:
            raise RefusedError(f"a step takes more than {STEP_S} s")
        if getattr(action, "dtype", None) != np.float32 or action.shape != (joints,):
            raise RefusedError(f"an action of another size or type than {joints} of float")


def limit() -> None:
    """From here on this process has this much memory and time, and opens no file."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    for nothing in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
        resource.setrlimit(nothing, (0, 0))


def answer(
    init_fn: bytes, step_fn: bytes, shapes: dict[str, tuple[int, ...]], joints: int, with_list: bool = True
) -> str:
    """Empty, or what is wrong in one line."""
    try:
        if with_list:
            look(init_fn)
            look(step_fn)
        run_graphs(init_fn, step_fn, shapes, joints)
    except Exception as error:
        return f"{type(error).__name__} {' '.join(str(error).split())[:300]}"
    return ""


def try_out(init_fn: bytes, step_fn: bytes, shapes: dict[str, tuple[int, ...]], joints: int) -> str:
    """The same from a process started for it."""
    head = json.dumps({"bytes": [len(init_fn), len(step_fn)], "shapes": shapes, "joints": joints}).encode()
    command = [sys.executable, "-P", __file__]
    try:
        whole = b"".join((head, b"\n", init_fn, step_fn))
        done = subprocess.run(command, input=whole, capture_output=True, timeout=WALL_S, start_new_session=True)
    except subprocess.TimeoutExpired:
        return f"no answer within {WALL_S} s"
    return json.loads(done.stdout) if not done.returncode else f"ONNX Runtime ended with {done.returncode}"


def main() -> int:
    """The process."""
    model_class()
    head = json.loads(sys.stdin.buffer.readline())
    init_fn, step_fn = (sys.stdin.buffer.read(n) for n in head["bytes"])
    limit()
    print(json.dumps(answer(init_fn, step_fn, head["shapes"], head["joints"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
