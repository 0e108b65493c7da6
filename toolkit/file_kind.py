"""What a file is, by its first bytes: told where another kind of file was expected. Nothing is loaded for it."""

from __future__ import annotations

import enum
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO


class FileKind(enum.Enum):
    """The kinds of file that people bring; the value is what it is called."""

    BUNDLE = "a .kinfer bundle"
    CHECKPOINT = "a checkpoint of ksim train"
    LOG = "an MCAP log"
    ONNX = "a bare ONNX graph"
    OLD_BUNDLE = "a .kinfer of K-Scale's first format: one ONNX graph with a schema in it"
    PROTOBUF = "a protobuf message, and no ONNX graph"
    KSCALE_CHECKPOINT = "a checkpoint of K-Scale's ksim"
    TORCH = "a PyTorch checkpoint"
    ARRAYS = "an archive of NumPy arrays"
    ZIP = "a zip archive"
    TAR = "a tar that is not packed with gzip"
    GZIP_TAR = "a gzip tar of other files"
    GZIP = "a gzip file without a tar in it"
    BROKEN_GZIP = "a gzip file that is cut or damaged"
    PACKED = "a file packed with something else than gzip"
    PICKLE = "a Python pickle, which is never loaded"
    HDF5 = "an HDF5 file"
    LFS_POINTER = "a Git LFS pointer, not the file itself"
    PAGE = "a web page, as a failed download leaves it"
    DESCRIPTION = "the description of a robot"
    JSON = "JSON"
    TEXT = "text"
    EMPTY = "empty"
    UNKNOWN = "of an unknown kind"


# what to do, whatever was expected
_REMEDIES = {
    FileKind.LFS_POINTER: "git lfs pull fetches the file",
    FileKind.PAGE: "download the file itself",
    FileKind.EMPTY: "copy or download it again",
}
_HEAD = 4096
_BLOCK = tarfile.BLOCKSIZE
_MAGIC = (
    (b"\x89MCAP0\r\n", FileKind.LOG),
    (b"\x89HDF\r\n\x1a\n", FileKind.HDF5),
    (b"\x93NUMPY", FileKind.ARRAYS),
    (b"BZh", FileKind.PACKED),
    (b"\xfd7zXZ\0", FileKind.PACKED),
    (b"\x28\xb5\x2f\xfd", FileKind.PACKED),
    (b"7z\xbc\xaf\x27\x1c", FileKind.PACKED),
    *((bytes([0x80, protocol]), FileKind.PICKLE) for protocol in range(2, 6)),
)
_OLD_SCHEMA = b"\n\x0fkinfer_metadata"


def _first_member(block: bytes) -> str | None:
    """The name in the header block of a tar; None where it is none."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name
    except tarfile.HeaderError:
        return None


def _gzip(head: bytes) -> FileKind:
    stream = zlib.decompressobj(wbits=31)
    try:
        block = stream.decompress(head, _BLOCK)
    except zlib.error:
        return FileKind.BROKEN_GZIP
    if len(block) < _BLOCK:
        return FileKind.GZIP if stream.eof else FileKind.BROKEN_GZIP
    if not any(block):  # what a tar ends with
        return FileKind.GZIP_TAR
    name = _first_member(block)
    if name is None:
        return FileKind.GZIP
    if name in ("model", "optimizer", "opt_state", "aux_data", "state", "config"):
        return FileKind.KSCALE_CHECKPOINT
    member = name.rpartition("/")[2]
    return FileKind.BUNDLE if member in ("init_fn.onnx", "step_fn.onnx", "metadata.json") else FileKind.GZIP_TAR


def _zip(head: bytes) -> FileKind:
    """By the name of the first member, which is there also where the end is cut off."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name == b"meta.json":
        return FileKind.CHECKPOINT
    if name.endswith(b"/data.pkl"):
        return FileKind.TORCH
    return FileKind.ARRAYS if name.endswith(b".npy") else FileKind.ZIP


def _text(head: bytes) -> FileKind | None:
    """The kind of a text; None where it is none."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < _HEAD:  # else a character that the end of the head cuts
            return None
        text = head[: error.start].decode("utf-8-sig")
    if any((c not in "\t\n\r\f" and ord(c) < 32) or ord(c) == 127 for c in text):
        return None
    text = text.lstrip().lower()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return FileKind.LFS_POINTER
    if text.startswith("<"):
        if "<mujoco" in text or "<robot" in text:
            return FileKind.DESCRIPTION
        return FileKind.PAGE if "<html" in text or "<error>" in text or "<!doctype html" in text else FileKind.TEXT
    return FileKind.JSON if text.startswith(("{", "[")) else FileKind.TEXT


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("no varint")


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(number, wire type) of each field at the top of a protobuf message; the file stands at its content.

    Raises:
        ValueError: it is none, or it breaks off.
    """
    at = 0
    while at < size:
        file.seek(at)
        number, wire = divmod(_varint(file), 8)
        if not 0 < number < 2**29 or wire not in (0, 1, 2, 5):
            raise ValueError("no field")
        length = _varint(file) if wire == 2 else {1: 8, 5: 4}.get(wire, 0)
        at = file.tell() + length
        yield number, wire
        if wire == 0:
            file.seek(at)
            _varint(file)
            at = file.tell()
    if at > size:
        raise ValueError("cut off")


def _protobuf(file: BinaryIO) -> FileKind:
    size = file.seek(0, 2)
    found: set[tuple[int, int]] = set()
    whole = True
    try:
        for number, wire in _fields(file, size):
            if number == 14 and wire == 2 and file.read(len(_OLD_SCHEMA)) == _OLD_SCHEMA:
                return FileKind.OLD_BUNDLE
            found.add((number, wire))
    except ValueError:
        whole = False
    if {(1, 0), (7, 2)} <= found:  # ir_version and graph
        return FileKind.ONNX
    return FileKind.PROTOBUF if whole and found else FileKind.UNKNOWN


def kind_of(path: str | Path) -> FileKind:
    """What a file is, by its content, whatever its name.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(_HEAD)
        if not head:
            return FileKind.EMPTY
        for magic, kind in _MAGIC:
            if head.startswith(magic):
                return kind
        if head.startswith(b"\x1f\x8b"):
            return _gzip(head)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _zip(head)
        if len(head) >= _BLOCK and _first_member(head[:_BLOCK]) is not None:
            return FileKind.TAR
        return _text(head) or _protobuf(file)


def mistaken(path: str | Path, expected: str, maybe: set[FileKind], remedies: Mapping[FileKind, str]) -> str | None:
    """One line about a file that is of another kind than was expected; None where it may be of that kind.

    Args:
        path: the file.
        expected: what was, as the line tells it.
        maybe: the kinds that it may have, damaged or not.
        remedies: what to do about a kind, for this reader alone; {path} stands for the file.
    """
    try:
        kind = kind_of(path)
    except OSError:
        return None
    if kind in maybe:
        return None
    remedy = (remedies.get(kind) or _REMEDIES.get(kind) or "name another file").replace("{path}", str(path))
    return f"{path}: is {kind.value}; expected {expected}; {remedy}"
