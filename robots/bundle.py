"""Reads and writes .kinfer: a gzip tar of exactly init_fn.onnx, step_fn.onnx and metadata.json.

K-Scale's runtime refuses any other member and ignores unknown keys of metadata.json, so what the
toolkit adds is the key `ksim2real` there: a PolicySpec in JSON. Nothing is ever executed or unpickled, and what
reading takes in memory is bounded by the sizes below.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robots.archive import unpack
from robots.errors import BundleError, RobotsError, SpecError
from robots.spec import PolicySpec, canonical_json, digest
from toolkit import strict_json
from toolkit.file_kind import FileKind, mistaken
from toolkit.files import atomic_path
from toolkit.strict_json import check_text

MEMBERS = ("init_fn.onnx", "step_fn.onnx", "metadata.json")
EXTRA_KEY = "ksim2real"
# Bounds of what is read [bytes]: 30 million float32 weights in a graph, and a metadata.json a hundred times ours.
MAX_BYTES = 256 * 2**20
_LIMITS = {"init_fn.onnx": MAX_BYTES // 2, "step_fn.onnx": MAX_BYTES // 2, "metadata.json": 4 * 2**20}
MAX_NAMES, MAX_NAME = 1024, 128
# keys of the spec that hold any JSON
_FREE = ("training", "proofs", "envelope", "self_test", "versions")


# of a carry: elements in all, and axes
CARRY_MAX, CARRY_AXES = 1_000_000, 8
_EXPECTED = f"a .kinfer bundle, which is a gzip tar of {', '.join(MEMBERS)}"
_REMEDIES = {
    FileKind.CHECKPOINT: "export it first: ksim export {path} -o policy.kinfer",
    FileKind.ONNX: "name the .kinfer that was exported with it (ksim export CKPT -o policy.kinfer)",
    FileKind.OLD_BUNDLE: "export its policy again",
    FileKind.LOG: "ksim log info {path} tells what it says",
    FileKind.KSCALE_CHECKPOINT: "K-Scale's convert.py makes a .kinfer of it",
    FileKind.TAR: "gzip it",
}


@dataclass(frozen=True, kw_only=True)
class AsWritten:
    """How a file says what it says, where runtimes take one form and not another. The defaults are how we write.

    Attributes:
        members: their order in the archive.
        named_commands: `command_names` is there; files from before kinfer 0.6 have only their number.
        carry_shape: `carry_size` is a shape; files from before kinfer 0.6 may have a bare number.
        odd_biases: `joint_biases` is there and is not one number for each joint, so it was not read.
    """

    members: tuple[str, ...] = MEMBERS
    named_commands: bool = True
    carry_shape: bool = True
    odd_biases: bool = False


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A .kinfer file in memory.

    Attributes:
        joint_names: the order of the action and of the joint inputs.
        command_names: the elements of the input `command`.
        carry_shape: of the carry; ours are flat, K-Scale's may have any number of axes.
        init_fn: ONNX model without inputs; its output is the first carry.
        step_fn: ONNX model of one control step.
        spec: what our exporter added; None in a file that it did not write.
        joint_biases: the home pose [rad], in the order of the joints, where K-Scale's runtimes look for it; None
            where the file has none.
        written: the form of the file that it was read from; two bundles may differ in it and be equal.

    Raises:
        BundleError: names are given twice, or the spec says something else than the fields.
    """

    joint_names: tuple[str, ...]
    command_names: tuple[str, ...]
    carry_shape: tuple[int, ...]
    init_fn: bytes
    step_fn: bytes
    spec: PolicySpec | None = None
    joint_biases: tuple[float, ...] | None = None
    written: AsWritten = field(default=AsWritten(), compare=False)

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
            ("carry_size", self.carry_shape, (self.spec.carry_size,)),
            ("joint_biases", self.joint_biases, tuple(self.spec.robot.column("home_rad"))),
        ):
            if outer not in (inner, None):
                raise BundleError(f"{what}: got {outer}, expected {inner} as in {EXTRA_KEY}; export it again")

    def metadata(self) -> dict[str, Any]:
        """The content of metadata.json."""
        data: dict[str, Any] = {
            "joint_names": list(self.joint_names),
            "command_names": list(self.command_names),
            "carry_size": list(self.carry_shape),  # a shape: kinfer 0.6.1 refuses a bare number
        }
        if self.joint_biases is not None:
            data["joint_biases"] = list(self.joint_biases)
        if self.spec is not None:
            data[EXTRA_KEY] = self.spec.to_json()
        return data

    @property
    def carry_size(self) -> int:
        """Elements of the carry."""
        return math.prod(self.carry_shape)

    @property
    def digest(self) -> str:
        """SHA-256 over the three members."""
        return digest({"init": digest(self.init_fn), "step": digest(self.step_fn), "metadata": self.metadata()})


def write_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle; the same bundle gives the same bytes, and no half-written file is ever seen.

    Raises:
        BundleError: `read_bundle` would refuse it.
    """
    contents = {
        "init_fn.onnx": bundle.init_fn,
        "step_fn.onnx": bundle.step_fn,
        "metadata.json": canonical_json(bundle.metadata()).encode(),
    }
    try:
        for name, limit in _LIMITS.items():
            if len(contents[name]) > limit:
                raise ValueError(f"{name} of {len(contents[name])} bytes; expected at most {limit}")
        _parse(contents)
    except (ValueError, RobotsError) as error:
        raise BundleError(f"{path}: could not be read again: {_short(error)}") from error
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
    """Read a bundle of ours or of K-Scale's. Of the graphs nothing is read: see deploy.bundle.graph.read_graphs.

    Raises:
        BundleError: the file is missing, truncated, too large, or not what its metadata says.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise BundleError(f"{path}: {what}; expected a .kinfer bundle (ksim export CKPT -o policy.kinfer)")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise BundleError(f"{path}: {size} bytes; expected at most {MAX_BYTES}; export it again")
    try:
        with path.open("rb") as file:
            contents = unpack(file, _LIMITS)
    except (OSError, ValueError) as error:
        maybe = {FileKind.BUNDLE, FileKind.BROKEN_GZIP, FileKind.GZIP_TAR}
        other = mistaken(path, _EXPECTED, maybe, _REMEDIES)
        raise BundleError(other or f"{path}: not a readable gzip tar: {_short(error)}; export it again") from error
    missing = [name for name in MEMBERS if name not in contents]
    if missing:
        raise BundleError(f"{path}: no {', '.join(missing)}; expected exactly {', '.join(MEMBERS)}; export it again")
    try:
        return _parse(contents)
    except (ValueError, RobotsError) as error:
        raise BundleError(f"{path}: metadata.json: {_short(error)}") from error


def _short(error: object, limit: int = 400) -> str:
    """One line that a terminal holds; a hostile value may be as long as the file."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def _names(data: dict[str, Any], key: str, least: int) -> tuple[str, ...]:
    """A list of names, few and short enough to be printed.

    Raises:
        ValueError: it is something else.
    """
    names = data.get(key)
    if not isinstance(names, list) or len(names) < least or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{key}: got {names!r:.200}, expected a list of names")
    if len(names) > MAX_NAMES:
        raise ValueError(f"{key}: got {len(names)} names, expected at most {MAX_NAMES}")
    for name in names:
        check_text(name, MAX_NAME)
    return tuple(names)


def _integer(value: Any, key: str, limit: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ValueError(f"{key}: got {value!r:.200}, expected {what}0 to {limit}")
    return value


def _biases(data: dict[str, Any]) -> tuple[float, ...] | None:
    """The home pose; None where there is none, or something that is not one number for each joint."""
    biases = data.get("joint_biases")
    if not isinstance(biases, list) or len(biases) != len(data["joint_names"]):
        return None
    numbers = all(isinstance(b, (int, float)) and not isinstance(b, bool) for b in biases)
    return tuple(float(b) for b in biases) if numbers else None


def _check_counts(data: Any) -> None:
    """No list of the contract is longer than names may be; what validation adds is bounded by the member's size.

    Raises:
        ValueError: one is.
    """
    todo = [(key, value) for key, value in data.items() if key not in _FREE] if isinstance(data, dict) else []
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            todo += value.items()
        elif isinstance(value, list):
            if len(value) > MAX_NAMES:
                raise ValueError(f"{EXTRA_KEY}: {key}: got {len(value)} elements, expected at most {MAX_NAMES}")
            todo += [(key, inner) for inner in value]


def _parse(contents: dict[str, bytes]) -> Bundle:
    data = strict_json.loads(contents["metadata.json"])
    if not isinstance(data, dict):
        raise ValueError(f"got {type(data).__name__}, expected an object")
    joints = _names(data, "joint_names", 1)
    named = data.get("command_names") is not None
    if not named:  # files before kinfer 0.6
        count = 0 if data.get("num_commands") is None else _integer(data["num_commands"], "num_commands", MAX_NAMES, "")
        commands = tuple(f"command_{i}" for i in range(count))
    else:
        commands = _names(data, "command_names", 0)
    carry = data.get("carry_size")
    axes = carry if isinstance(carry, list) else [carry]  # a bare number before kinfer 0.6
    if not 1 <= len(axes) <= CARRY_AXES:
        raise ValueError(f"carry_size: got {len(axes)} numbers, expected a shape of 1 to {CARRY_AXES}")
    shape = tuple(_integer(axis, "carry_size", CARRY_MAX, "") for axis in axes)
    if math.prod(shape) > CARRY_MAX:
        raise ValueError(f"carry_size: got {list(shape)}, expected at most {CARRY_MAX} elements")
    spec = None
    if EXTRA_KEY in data:
        _check_counts(data[EXTRA_KEY])
        try:
            spec = PolicySpec.from_json(data[EXTRA_KEY])
        except SpecError as error:
            raise ValueError(f"{EXTRA_KEY}: {error}") from error
    biases = _biases(data)
    written = AsWritten(
        members=tuple(contents),
        named_commands=named,
        carry_shape=isinstance(carry, list),
        odd_biases=biases is None and data.get("joint_biases") is not None,
    )
    return Bundle(
        joint_names=joints,
        command_names=commands,
        carry_shape=shape,
        init_fn=contents["init_fn.onnx"],
        step_fn=contents["step_fn.onnx"],
        spec=spec,
        joint_biases=biases,
        written=written,
    )
