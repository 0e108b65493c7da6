"""Damages a bundle at one of its layers and packs the outer ones again, so that the damage is met where it is."""

from __future__ import annotations

import copy
import gzip
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import onnx
from fuzz.seeds import Seed
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

INTEGERS = [0, 1, -1, 2, 3, 7, 8, 255, 1024, 4097, 2**16, 2**24, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**53,
            2**63 - 1, -(2**63)]  # fmt: skip
FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"), 1e30, 0.5]
JSON_VALUES: list[str] = [
    "null", "true", "0", "-1", "1e999", "-1e999", "NaN", "Infinity", "1e308", "10" * 2000, "9" * 25, str(2**63), "0.1",
    '""', '"a"', '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"a\\nb"', '"' + "x" * 70_000 + '"', "[]", "{}", "[1]",
    '["a","a"]', "[" * 50 + "]" * 50, "[" * 20_000, '{"a":' * 200 + "1" + "}" * 200, "[" + "1," * 5000 + "1]",
    '{"a":1,"a":2}', '["' + '","'.join(f"n{k}" for k in range(1100)) + '"]', "[1000000,1000000,1000000]", "[1e9]",
    '"\u202e"', "[null]", "1e9", "1000000000000", '{"low":[1],"high":[0]}', "-0", "[[1]]", '"../x"',
]  # fmt: skip
# among them what the check refuses by name
OPERATORS = [
    "Loop", "Scan", "RandomNormal", "NonZero", "Resize", "Unique", "StringNormalizer", "SequenceAt", "If", "Custom",
    "QuantizeLinear", "Add", "Mul", "MatMul", "Concat", "Reshape", "Expand", "Tile", "Pad", "Gather", "Slice", "Range",
    "ConstantOfShape", "Div", "Mod", "ReduceSum", "ReduceMean", "TopK", "ArgMax", "LSTM", "Conv", "Einsum", "Where",
    "Transpose", "Split", "Squeeze", "Unsqueeze", "ScatterND", "GatherND", "CumSum", "OneHot", "Identity", "Softmax",
    "LpNormalization", "BitShift", "Pow", "Shape", "Trilu", "Cast", "MaxPool", "ReduceLogSumExp", "Hardmax",
]  # fmt: skip


def flip(rng: random.Random, data: bytes) -> bytes:
    """A few bits, or a piece cut out, doubled, or put in."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.randrange(6)
        if kind < 3:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            out[at] = rng.choice([0, 0xFF, 0x7F, 0x80])
        elif kind == 4:
            del out[at : at + rng.choice([1, 2, 16])]
        else:
            out[at:at] = rng.choice([b"\0", b"\xff" * 9, bytes(out[at : at + 32]), rng.randbytes(4)])
    return bytes(out[: rng.randrange(len(out))]) if out and rng.random() < 0.1 else bytes(out)


# ONNX


def _tensor(rng: random.Random, tensor: onnx.TensorProto) -> None:
    kind = rng.randrange(7)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTEGERS)
    elif kind == 1:
        tensor.dims.append(rng.choice(INTEGERS))
    elif kind == 2:
        tensor.data_type = rng.choice([*range(25), -1, 2**31 - 1])
    elif kind == 3:
        tensor.raw_data = flip(rng, tensor.raw_data)
    elif kind == 4:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
    elif len(tensor.raw_data) % 8 == 0 and tensor.data_type == TensorProto.INT64:
        count = len(tensor.raw_data) // 8
        values = list(struct.unpack(f"<{count}q", tensor.raw_data))
        if values:
            values[rng.randrange(count)] = rng.choice(INTEGERS)
        tensor.raw_data = struct.pack(f"<{count}q", *values)
    elif len(tensor.raw_data) >= 4 and tensor.data_type == TensorProto.FLOAT:
        at = 4 * rng.randrange(len(tensor.raw_data) // 4)
        number = struct.pack("<f", rng.choice(FLOATS))
        tensor.raw_data = tensor.raw_data[:at] + number + tensor.raw_data[at + 4 :]


def _attribute(rng: random.Random, node: onnx.NodeProto) -> None:
    names = [
        "axis", "axes", "keepdims", "to", "perm", "alpha", "epsilon", "hidden_size", "direction", "layout", "group",
        "pads", "strides", "dilations", "kernel_shape", "mode", "equation", "batch_dims", "num_outputs", "allowzero",
        "p", "k", "clip", "activations", "linear_before_reset", "stash_type", "largest", "exclusive",
    ]  # fmt: skip
    if not node.attribute or rng.random() < 0.3:
        values = [rng.choice(INTEGERS), rng.choice(FLOATS), [rng.choice(INTEGERS) for _ in range(rng.randrange(1, 5))],
                  rng.choice(["", "reverse", "bidirectional", "edge", "LEFT", "ij,jk->ik", "...a->a",
                              "x" * 999])]  # fmt: skip
        node.attribute.append(helper.make_attribute(rng.choice(names), rng.choice(values)))
        return
    one = rng.choice(node.attribute)
    kind = rng.randrange(6)
    if kind == 0:
        node.attribute.remove(one)
    elif kind == 1:
        one.type = rng.randrange(15)  # type: ignore[assignment]
    elif one.HasField("t"):
        _tensor(rng, one.t)
    elif one.HasField("s"):
        one.s = flip(rng, one.s)
    elif one.ints:
        one.ints[rng.randrange(len(one.ints))] = rng.choice(INTEGERS)
    elif one.HasField("f"):
        one.f = rng.choice(FLOATS)
    elif one.HasField("g"):
        _graph(rng, one.g)
    else:
        one.i = rng.choice(INTEGERS)


def _graph(rng: random.Random, graph: onnx.GraphProto) -> None:
    names = (
        [o for n in graph.node for o in n.output] + [i.name for i in graph.initializer] + [i.name for i in graph.input]
    )
    node = rng.choice(graph.node) if graph.node else graph.node.add()
    kind = rng.randrange(14)
    if kind <= 2:
        _attribute(rng, node)
    elif kind <= 5 and graph.initializer:
        _tensor(rng, rng.choice(graph.initializer))
    elif kind == 6:
        node.op_type = rng.choice(OPERATORS)
    elif kind == 7 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nothing"])
    elif kind == 8:
        (node.input if rng.random() < 0.7 else node.output).append(rng.choice([*names, "", "more"]))
    elif kind == 9 and (node.input or node.output):
        (node.input or node.output).pop()
    elif kind == 10:
        again = copy.deepcopy(node)
        graph.node.insert(rng.randrange(len(graph.node)), again)
        if rng.random() < 0.7:
            again.output[:] = [f"{o}_again" for o in again.output]
            again.op_type = rng.choice(OPERATORS) if rng.random() < 0.5 else again.op_type
    elif kind == 11 and names:  # grows by two, forty times
        last = rng.choice(names)
        for step in range(rng.choice([4, 40])):
            made = helper.make_node("Concat", [last, last], [f"double{step}"], axis=0)
            graph.node.insert(len(graph.node), made)
            last = f"double{step}"
    elif kind == 12:
        values = rng.choice([graph.input, graph.output])
        value = rng.choice(values) if values else values.add()
        what = rng.randrange(4)
        if what == 0:
            value.name = rng.choice([*names, "time", "gyroscope", "x"])
        elif what == 1:
            value.type.tensor_type.elem_type = rng.choice([*range(20)])
        elif what == 2:
            value.type.tensor_type.shape.dim.add(dim_value=rng.choice(INTEGERS))
        elif value.type.tensor_type.shape.dim:
            rng.choice(value.type.tensor_type.shape.dim).dim_param = "n"
    else:
        swapped = rng.sample(range(len(graph.node)), 2) if len(graph.node) > 1 else [0, 0]
        a, b = (copy.deepcopy(graph.node[k]) for k in swapped)
        graph.node[swapped[0]].CopyFrom(b)
        graph.node[swapped[1]].CopyFrom(a)


def _model(rng: random.Random, data: bytes) -> bytes:
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        kind = rng.randrange(20)
        if kind == 0:
            model.ir_version = rng.choice(INTEGERS)
        elif kind == 1:
            model.opset_import[0].version = rng.choice([*INTEGERS, 6, 9, 11, 13, 18, 20, 21, 22, 23, 24])
        elif kind == 2:
            model.opset_import.add(domain=rng.choice(["com.microsoft", "x", "ai.onnx.ml", ""]), version=1)
        elif kind == 3:
            rng.choice(model.graph.node).domain = rng.choice(["com.microsoft", "x", "ai.onnx"])
        elif kind == 4:
            model.functions.add(name="f", domain="")
        elif kind == 5:
            inner = copy.deepcopy(model.graph)
            for _ in range(rng.choice([1, 3, 40])):
                node = helper.make_node("If", ["flag"], ["picked"], then_branch=inner, else_branch=inner)
                inner = helper.make_graph([node], "nest", [], inner.output)
                if inner.ByteSize() > 200_000:
                    break
            model.graph.node.append(inner.node[0])
        elif kind == 6:
            model.graph.sparse_initializer.add().values.CopyFrom((list(model.graph.initializer) or [TensorProto()])[0])
        else:
            _graph(rng, model.graph)
    return model.SerializeToString()


# what indices, axes and lengths that come from the carry may be; as int64 the large ones become the least
_EXTREMES = [
    0.0, -1.0, 1.0, 2.0, 100.0, -100.0, 2.0**31, -(2.0**31), 2.0**62, -(2.0**62), 9.3e18, -9.3e18, 3.4e38, -3.4e38,
]  # fmt: skip


def _carry(rng: random.Random, data: bytes) -> bytes:
    """The first carry with other values."""
    model = onnx.ModelProto.FromString(data)
    for tensor in [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]:
        count = len(tensor.raw_data) // 4
        values = list(struct.unpack(f"<{count}f", tensor.raw_data[: 4 * count]))
        for at in rng.sample(range(count), min(count, rng.choice([1, 2, 8, 1000]))):
            values[at] = rng.choice(_EXTREMES)
        tensor.raw_data = struct.pack(f"<{count}f", *values)
    return model.SerializeToString()


# JSON


def _paths(value: Any, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, v in inner for path in _paths(v, (*at, key)))]


def _metadata(rng: random.Random, text: bytes) -> bytes:
    data = json.loads(text)
    for _ in range(rng.choice([1, 1, 2])):
        path = rng.choice(_paths(data)[1:])
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        kind = rng.randrange(8)
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(["x", "", "\ud800", "k" * 300, "proofs", "shape", "num_commands"])] = parent[path[-1]]
        elif kind == 2 and isinstance(parent, list):
            parent *= rng.choice([2, 60])
        elif kind == 3 and isinstance(parent[path[-1]], (int, float)):
            parent[path[-1]] = rng.choice([*INTEGERS, *FLOATS])
        else:
            parent[path[-1]] = "@@"
        if not isinstance(data, dict) or len(_paths(data)) < 2:
            break
    out = json.dumps(data)
    while '"@@"' in out:
        out = out.replace('"@@"', rng.choice(JSON_VALUES), 1)
    return out.encode("utf-8", "surrogatepass")


# the archive


def _entry(rng: random.Random, name: str, data: bytes, damage: bool) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    extra = b""
    if damage:
        kind = rng.randrange(9)
        if kind == 0:
            info.type = rng.choice(
                [b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"L", b"K", b"x", b"g", b"V", b"\0", b"Z"]
            )
            info.linkname = rng.choice(["", "/etc/passwd", "init_fn.onnx"])
        elif kind == 1:
            info.name = rng.choice(["../step_fn.onnx", "/step_fn.onnx", "./step_fn.onnx", "x", "", "a" * 99,
                                    "metadata.json", "step_fn.onnx\n", "init_fn.onnx "])  # fmt: skip
        elif kind == 2:
            info.size = rng.choice([0, 1, 511, 512, 2**20, 2**33, 2**62])
        elif kind == 3:
            key = rng.choice(
                ["path", "size", "linkpath", "GNU.sparse.size", "GNU.sparse.map", "mtime", "comment", "uid"]
            )
            info.pax_headers = {key: rng.choice(["1", "99999999999", "x" * 9000, "step_fn.onnx", "0,1,2"])}
            return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)
        elif kind == 4:
            info.name = "n" * 300  # GNU's long names
        else:
            extra = flip(rng, info.tobuf(tarfile.GNU_FORMAT))
    head = extra or info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % 512)


def pack(rng: random.Random, members: dict[str, bytes], damage: bool) -> bytes:
    """The members as a tar, written by hand so that it may be wrong."""
    names = list(members)
    chosen = rng.randrange(len(names)) if damage else -1
    what = rng.randrange(6) if damage else 9
    parts = [_entry(rng, n, members[n], k == chosen and what >= 3) for k, n in enumerate(names)]
    if what == 0:
        parts.append(parts[chosen])
    elif what == 1:
        parts.pop(chosen)
    elif what == 2:
        a, b = rng.sample(names, 2)
        parts = [_entry(rng, n, members[{a: b, b: a}.get(n, n)], False) for n in names]
    tail = rng.choice([b"", bytes(512), bytes(1024), bytes(10240), bytes(2**21), b"x" * 700]) if damage else bytes(1024)
    raw = b"".join(parts) + tail
    return raw[: rng.randrange(len(raw))] if what == 3 else raw


def zip_up(rng: random.Random, raw: bytes, damage: bool) -> bytes:
    """The tar as gzip, which may be wrong."""
    out = gzip.compress(raw, 1, mtime=0)
    if not damage:
        return out
    kind = rng.randrange(6)
    if kind == 0:
        return out[: rng.randrange(len(out))]
    if kind == 1:
        return out + rng.choice([b"\0" * 99, b"garbage", out, gzip.compress(b"")])
    if kind == 2:
        return gzip.compress(raw[: len(raw) // 2], 1) + gzip.compress(raw[len(raw) // 2 :], 1)
    if kind == 3:
        return rng.choice(
            [b"", b"\x1f\x8b", zlib.compress(raw, 1), raw, gzip.compress(bytes(rng.choice([10**5, 3 * 10**7])))]
        )
    return flip(rng, out)


LAYERS = {"graph": 40, "carry": 10, "onnx bytes": 14, "metadata": 24, "metadata bytes": 4, "archive": 10, "gzip": 8}


def mutate(rng: random.Random, seed: Seed, layer: str = "") -> tuple[str, bytes]:
    """(the layer that was damaged, the file); any layer, or the one named."""
    layer = layer or rng.choices(list(LAYERS), list(LAYERS.values()))[0]
    members = seed.members()
    member = "step_fn.onnx" if rng.random() < 0.85 else "init_fn.onnx"
    change: dict[str, Callable[[random.Random, bytes], bytes]] = {"onnx bytes": flip, "graph": _model}
    if layer == "carry":
        members["init_fn.onnx"] = _carry(rng, members["init_fn.onnx"])
    elif layer in change:
        try:
            members[member] = change[layer](rng, members[member])
        except (DecodeError, ValueError, TypeError, OverflowError):
            members[member] = flip(rng, members[member])  # what protobuf itself refuses to write
    elif layer == "metadata":
        members["metadata.json"] = _metadata(rng, members["metadata.json"])
    elif layer == "metadata bytes":
        members["metadata.json"] = flip(rng, members["metadata.json"])
    return layer, zip_up(rng, pack(rng, members, layer == "archive"), layer == "gzip")
