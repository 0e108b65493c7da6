"""Each verb that reads a bundle, a checkpoint or a log tells what it was given instead, in one line."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ksim.cli import main
from robots.bundle import read_bundle
from toolkit.files import shipped_policy

BUNDLE, CHECKPOINT = shipped_policy("stand", ".kinfer"), shipped_policy("stand", ".ckpt")


def bare_onnx() -> bytes:
    return read_bundle(BUNDLE).step_fn


def old_kinfer() -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(bare_onnx())
    model.metadata_props.add(key="kinfer_metadata", value="CgUKA2Zvbw==")
    return model.SerializeToString()


def zipped() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("policy.onnx", bare_onnx())
    return raw.getvalue()


def theirs() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name in ("model", "config"):
            tar.addfile(tarfile.TarInfo(name))
    return raw.getvalue()


def log() -> bytes:
    from mcap.writer import Writer

    raw = io.BytesIO()
    writer = Writer(raw)
    writer.start()
    writer.finish()
    return raw.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "onnx": (bare_onnx, "is a bare ONNX graph"),
    "zip": (zipped, "is a zip archive"),
    "tar": (lambda: gzip.decompress(BUNDLE.read_bytes()), "is a tar that is not packed with gzip"),
    "old": (old_kinfer, "is a .kinfer of K-Scale's first format"),
    "ckpt": (CHECKPOINT.read_bytes, "is a checkpoint of ksim train"),
    "bin": (theirs, "is a checkpoint of K-Scale's ksim"),
    "mcap": (log, "is an MCAP log"),
    "html": (lambda: b"<!DOCTYPE html><html><head><title>404</title></head></html>", "is a web page"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "is a Git LFS pointer"),
    "pb": (lambda: b"\n\x06joints\x12\x03\x08\x96\x01\x18\x01", "is a protobuf message"),
    "empty": (lambda: b"", "is empty"),
    "kinfer": (BUNDLE.read_bytes, "is a .kinfer bundle"),
}
# verb -> (its arguments, the name that the file has there, what it takes)
VERBS = {
    "run": (["{file}", "--log", "{log}"], "p.kinfer", "kinfer"),
    "inspect": (["{file}"], "p.kinfer", "kinfer"),
    "eval": (["{file}"], "p.kinfer", "kinfer"),
    "validate": (["{file}", "--checkpoint", str(CHECKPOINT)], "p.kinfer", "kinfer"),
    "validate's checkpoint": ([str(BUNDLE), "--checkpoint", "{file}"], "model.ckpt", "ckpt"),
    "eval of a checkpoint": (["{file}"], "model.ckpt", "ckpt"),
    "export": (["{file}", "-o", "{out}"], "model.ckpt", "ckpt"),
    "parity": (["{file}"], "run.mcap", "mcap"),
}
EXPECTED = {
    "kinfer": "expected a .kinfer bundle",
    "ckpt": "expected a checkpoint of ksim train",
    "mcap": "not a log of ksim run",
}


@pytest.mark.parametrize(("verb", "kind"), [(v, k) for v in VERBS for k in FILES if VERBS[v][2] != k])
def test_what_was_given_instead_is_told_in_one_line(verb, kind, tmp_path, capsys, monkeypatch):
    arguments, name, takes = VERBS[verb]
    make, told = FILES[kind]
    monkeypatch.chdir(tmp_path)  # what nobody names would be written here
    (tmp_path / name).write_bytes(make())
    paths = {"file": str(tmp_path / name), "log": str(tmp_path / "new.mcap"), "out": str(tmp_path / "out.kinfer")}
    word = verb.split("'")[0].split()[0]
    assert main([word, *(a.format(**paths) for a in arguments)]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("ksim ")]
    assert out == "" and lines == [err.strip()], err
    said = f"not a log of ksim run (it {told}" if takes == "mcap" else told
    assert f"{paths['file']}: {said}" in err and EXPECTED[takes] in err
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("verb", ["run", "eval"])  # ksim inspect takes it for a robot's
def test_a_folder_is_told_to_be_one(verb, tmp_path: Path, capsys):
    folder = tmp_path / "p.kinfer"
    folder.mkdir()
    assert main([verb, str(folder)]) == 1
    assert f"{folder}: is a folder; expected a .kinfer bundle" in capsys.readouterr().err
