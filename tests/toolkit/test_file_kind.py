"""A file is told by what is in it, whatever its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mcap.writer import Writer

from robots.bundle import read_bundle
from toolkit.file_kind import FileKind, kind_of, mistaken
from toolkit.files import shipped_policy

ROOT = Path(__file__).parents[2]
BUNDLE, CHECKPOINT = shipped_policy("stand", ".kinfer"), shipped_policy("stand", ".ckpt")


def onnx_graph(*properties: tuple[str, str]) -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(read_bundle(BUNDLE).step_fn)
    del model.metadata_props[:]
    for key, value in properties:
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def tar(*names: str, mode: str = "w:gz", kind: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2000
            archive.addfile(info, io.BytesIO(os.urandom(2000)))
    return raw.getvalue()


def zipped(*names: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 50)
    return raw.getvalue()


def log() -> bytes:
    raw = io.BytesIO()
    writer = Writer(raw)
    writer.start()
    writer.finish()
    return raw.getvalue()


def arrays(name: str) -> bytes:
    raw = io.BytesIO()
    np.savez(raw, a=np.zeros(3)) if name == "npz" else np.save(raw, np.zeros(3))
    return raw.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 440028\n"
DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
BYTES = {
    "a bundle": (BUNDLE.read_bytes, FileKind.BUNDLE),
    "the first bytes of a bundle": (lambda: BUNDLE.read_bytes()[:200], FileKind.BUNDLE),
    "fewer than tell": (lambda: BUNDLE.read_bytes()[:40], FileKind.BROKEN_GZIP),
    "a bundle whose metadata is first": (lambda: tar("metadata.json", "step_fn.onnx"), FileKind.BUNDLE),
    "a bundle of other folders": (lambda: tar("./policy/init_fn.onnx"), FileKind.BUNDLE),
    "a checkpoint": (CHECKPOINT.read_bytes, FileKind.CHECKPOINT),
    "half a checkpoint": (lambda: CHECKPOINT.read_bytes()[:5000], FileKind.CHECKPOINT),
    "an empty log": (log, FileKind.LOG),
    "a graph": (onnx_graph, FileKind.ONNX),
    "a graph with notes": (lambda: onnx_graph(("robot", "kbot")), FileKind.ONNX),
    "half a graph": (lambda: onnx_graph()[:9000], FileKind.ONNX),
    "a .kinfer of 2024": (lambda: onnx_graph(("kinfer_metadata", "CgUKA2Zvbw==")), FileKind.OLD_BUNDLE),
    "a .kinfer of 2024, JSON": (lambda: onnx_graph(("a", "b"), ("kinfer_metadata", "{}")), FileKind.OLD_BUNDLE),
    "another protobuf message": (lambda: b"\n\x06joints\x12\x03\x08\x96\x01\x18\x01", FileKind.PROTOBUF),
    "ksim's checkpoint": (lambda: tar("model", "state", "config"), FileKind.KSCALE_CHECKPOINT),
    "torch.save": (lambda: zipped("archive/data.pkl", "archive/version"), FileKind.TORCH),
    "torch.save under another name": (lambda: zipped("model_999/data.pkl"), FileKind.TORCH),
    "a pickle": (lambda: pickle.dumps({"a": 1}), FileKind.PICKLE),
    "an npz": (lambda: arrays("npz"), FileKind.ARRAYS),
    "an npy": (lambda: arrays("npy"), FileKind.ARRAYS),
    "a zip": (lambda: zipped("init_fn.onnx", "step_fn.onnx"), FileKind.ZIP),
    "an empty zip": (lambda: zipped(), FileKind.ZIP),
    "a plain tar": (lambda: gzip.decompress(BUNDLE.read_bytes()), FileKind.TAR),
    "a plain tar of long ago": (lambda: tar("a.onnx", mode="w", kind=tarfile.GNU_FORMAT), FileKind.TAR),
    "a tar of meshes": (lambda: tar("meshes/torso.stl"), FileKind.GZIP_TAR),
    "text in gzip": (lambda: gzip.compress(b"step 1\n" * 1000), FileKind.GZIP),
    "a word in gzip": (lambda: gzip.compress(b"hello"), FileKind.GZIP),
    "bzip2": (lambda: bz2.compress(b"x"), FileKind.PACKED),
    "xz": (lambda: lzma.compress(b"x"), FileKind.PACKED),
    "a pointer": (lambda: POINTER, FileKind.LFS_POINTER),
    "a page": (lambda: b"\n<!DOCTYPE html>\n<html><title>Not Found</title>", FileKind.PAGE),
    "a page without a doctype": (lambda: b"<HTML><body>502", FileKind.PAGE),
    "a page in Greek": (lambda: "<!doctype html><p>Δεν βρέθηκε</p>".encode() * 300, FileKind.PAGE),
    "a store that denies": (lambda: DENIED, FileKind.PAGE),
    "an MJCF": ((ROOT / "robots" / "kbot" / "robot.xml").read_bytes, FileKind.DESCRIPTION),
    "a URDF": (lambda: b'<?xml version="1.0"?>\n<!-- ours -->\n<robot name="a"/>', FileKind.DESCRIPTION),
    "JSON": ((ROOT / "robots" / "kbot" / "metadata.json").read_bytes, FileKind.JSON),
    "YAML": ((ROOT / "configs" / "kbot_stand.yaml").read_bytes, FileKind.TEXT),
    "a character that the first bytes cut": (lambda: b"a" * 4095 + "é".encode() + b"b" * 100, FileKind.TEXT),
    "nothing": (lambda: b"", FileKind.EMPTY),
    "zeros": (lambda: bytes(5000), FileKind.UNKNOWN),
    "noise": (lambda: bytes(np.random.default_rng(1).integers(128, 256, 5000, np.uint8)), FileKind.UNKNOWN),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_a_file_is_told_by_its_content(name, tmp_path):
    make, kind = BYTES[name]
    (tmp_path / "policy.kinfer").write_bytes(make())
    assert kind_of(tmp_path / "policy.kinfer") is kind


def test_a_whole_graph_is_looked_through_without_reading_it(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:  # a graph of 1 GiB, which takes no room on disk
        file.write(b"\x08\x08" + b"\x3a\x80\x80\x80\x80\x04")
        file.seek(2**30, 1)
        file.write(b"\x42\x02\x10\x11")
    assert kind_of(path) is FileKind.ONNX


def test_one_line_says_what_it_is_what_was_expected_and_what_to_do(tmp_path):
    path = tmp_path / "p.kinfer"
    path.write_bytes(POINTER)
    line = f"{path}: is a Git LFS pointer, not the file itself; expected a bundle; git lfs pull fetches the file"
    assert mistaken(path, "a bundle", {FileKind.BUNDLE}, {}) == line
    assert mistaken(path, "a pointer", {FileKind.LFS_POINTER}, {}) is None
    assert mistaken(tmp_path / "none", "a bundle", set(), {}) is None
