"""Reads and writes .kinfer: a gzip tar of exactly init_fn.onnx, step_fn.onnx and metadata.json.

K-Scale's runtime refuses any other member and ignores unknown keys of metadata.json, so what the
toolkit adds is the key `ksim2real` there: a PolicySpec in JSON. Nothing is ever executed or unpickled.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robots.errors import BundleError, SpecError
from robots.spec import PolicySpec, canonical_json, digest

MEMBERS = ("init_fn.onnx", "step_fn.onnx", "metadata.json")
EXTRA_KEY = "ksim2real"
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A .kinfer file in memory.

    Attributes:
        joint_names: the order of the action and of the joint inputs.
        command_names: the elements of the input `command`.
        carry_size: length of the flat carry.
        init_fn: ONNX model without inputs; its output is the first carry.
        step_fn: ONNX model of one control step.
        spec: what our exporter added; None in a file that it did not write.

    Raises:
        BundleError: names are given twice, or the spec says something else than the fields.
    """

    joint_names: tuple[str, ...]
    command_names: tuple[str, ...]
    carry_size: int
    init_fn: bytes
    step_fn: bytes
    spec: PolicySpec | None = None

    def __post_init__(self) -> None:
        for what, names in (("joint_names", self.joint_names), ("command_names", self.command_names)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise BundleError(f"{what}: {', '.join(twice)} given twice; expected each once")
        if self.spec is None:
            return
        for what, outer, inner in (
            ("joint_names", self.joint_names, self.spec.robot.joint_names),
            ("command_names", self.command_names, self.spec.command_names),
            ("carry_size", self.carry_size, self.spec.carry_size),
        ):
            if outer != inner:
                raise BundleError(f"{what}: got {outer}, expected {inner} as in {EXTRA_KEY}; export it again")

    def metadata(self) -> dict[str, Any]:
        """The content of metadata.json."""
        data: dict[str, Any] = {
            "joint_names": list(self.joint_names),
            "command_names": list(self.command_names),
            "carry_size": [self.carry_size],  # a shape: kinfer 0.6.1 refuses a bare number
        }
        if self.spec is not None:
            data[EXTRA_KEY] = self.spec.to_json()
        return data

    @property
    def digest(self) -> str:
        """SHA-256 over the three members."""
        return digest({"init": digest(self.init_fn), "step": digest(self.step_fn), "metadata": self.metadata()})


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path to write beside `path`; renamed onto it on success, removed on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle; the same bundle gives the same bytes, and no half-written file is ever seen."""
    contents = {
        "init_fn.onnx": bundle.init_fn,
        "step_fn.onnx": bundle.step_fn,
        "metadata.json": canonical_json(bundle.metadata()).encode(),
    }
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in MEMBERS:
            info = tarfile.TarInfo(name)
            info.size = len(contents[name])
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(contents[name]))
    with (
        atomic_path(path) as part,
        part.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="", compresslevel=9) as zipped,
    ):
        zipped.write(raw.getvalue())


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle of ours or of K-Scale's.

    Raises:
        BundleError: the file is missing, truncated, too large, or not what its metadata says.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such file; expected a .kinfer bundle (ksim export CKPT -o policy.kinfer)")
    try:
        with gzip.open(path, "rb") as zipped:
            raw = zipped.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise BundleError(f"{path}: more than {MAX_BYTES} bytes unpacked; expected a policy bundle")
        contents: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                if member.name not in MEMBERS or member.name in contents or not member.isfile():
                    raise BundleError(f"{path}: member {member.name!r}; expected exactly {', '.join(MEMBERS)}")
                file = tar.extractfile(member)
                assert file is not None
                contents[member.name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise BundleError(f"{path}: not a readable gzip tar ({error}); export it again") from error
    missing = [name for name in MEMBERS if name not in contents]
    if missing:
        raise BundleError(f"{path}: no {', '.join(missing)}; expected exactly {', '.join(MEMBERS)}; export it again")
    return _parse(path, contents)


def _parse(path: Path, contents: dict[str, bytes]) -> Bundle:
    try:
        data = json.loads(contents["metadata.json"].decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: metadata.json is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path}: metadata.json: got {type(data).__name__}, expected an object")
    names = data.get("joint_names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise BundleError(f"{path}: metadata.json: joint_names: got {names!r}, expected a list of names")
    commands = data.get("command_names")
    if commands is None:  # files before kinfer 0.6
        count = data.get("num_commands", 0)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 1024:
            raise BundleError(f"{path}: metadata.json: num_commands: got {count!r}, expected 0 to 1024")
        commands = [f"command_{i}" for i in range(count)]
    if not isinstance(commands, list) or not all(isinstance(n, str) for n in commands):
        raise BundleError(f"{path}: metadata.json: command_names: got {commands!r}, expected a list of names")
    carry_size = data.get("carry_size")
    if isinstance(carry_size, list) and len(carry_size) == 1:
        carry_size = carry_size[0]
    if not isinstance(carry_size, int) or isinstance(carry_size, bool) or not 0 <= carry_size <= 1_000_000:
        raise BundleError(f"{path}: metadata.json: carry_size: got {carry_size!r}, expected one number, 0 to 1000000")
    spec = None
    if EXTRA_KEY in data:
        try:
            spec = PolicySpec.from_json(data[EXTRA_KEY])
        except (SpecError, RecursionError) as error:
            raise BundleError(f"{path}: metadata.json: {EXTRA_KEY}: {error}") from error
    try:
        return Bundle(
            joint_names=tuple(names),
            command_names=tuple(commands),
            carry_size=carry_size,
            init_fn=contents["init_fn.onnx"],
            step_fn=contents["step_fn.onnx"],
            spec=spec,
        )
    except BundleError as error:
        raise BundleError(f"{path}: metadata.json: {error}") from error
