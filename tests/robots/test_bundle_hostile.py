"""A .kinfer file that somebody made to do harm is refused with one line, in little memory, and changes nothing."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from robots import bundle as bundle_module
from robots.bundle import MEMBERS, read_bundle, write_bundle
from robots.errors import BundleError
from robots.load import load_robot
from robots.spec import CommandSpec, PolicySpec, input_specs
from toolkit import strict_json

METADATA = {"joint_names": ["a", "b"], "command_names": ["vx"], "carry_size": 3}


def plain(metadata: object = METADATA) -> dict[str, bytes]:
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    return {"init_fn.onnx": b"init", "step_fn.onnx": b"step", "metadata.json": text}


def entry(name: str, data: bytes, **changes) -> bytes:
    """One member of a tar: its header, changed as asked, and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    kind = tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT
    return info.tobuf(kind) + data + bytes(-len(data) % 512)


def tar(*entries: bytes, tail: bytes = bytes(1024)) -> bytes:
    return b"".join(entries) + tail


def members(**metadata) -> list[bytes]:
    return [entry(name, data) for name, data in plain({**METADATA, **metadata}).items()]


def refused(path: Path, packed: bytes, message: str, limit: int = 8_000_000) -> None:
    """Reading raises one line that matches, and takes less than `limit` bytes."""
    path.write_bytes(packed)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=message) as caught:
            read_bundle(path)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "policy.kinfer"


HUGE = 200_000_000  # what a header says
MUCH = 20_000_000  # what there is


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (bytes(MUCH), "more than|bytes after the end of the archive"),
        (entry("other", b"", size=HUGE) + bytes(MUCH), "member 'other'"),
        (entry("step_fn.onnx", b"", size=HUGE) + bytes(MUCH), "200000000 bytes; expected at most 134217728"),
        (entry("metadata.json", b"", size=HUGE) + bytes(MUCH), "200000000 bytes; expected at most 4194304"),
        (tar(*members(), tail=bytes(MUCH)), "bytes after the end of the archive"),
        (entry("pax", b"", type=tarfile.XHDTYPE, size=HUGE) + bytes(MUCH), "200000000 bytes; expected at most 4096"),
        (entry("long", b"", type=tarfile.GNUTYPE_LONGNAME, size=HUGE) + bytes(MUCH), "of type b'L'"),
    ],
    ids=["zeros", "unknown", "step", "metadata", "padding", "pax", "long name"],
)
def test_a_bomb_is_refused_before_it_unpacks(path, raw, message):
    packed = gzip.compress(raw, 1)
    assert len(packed) < 2_000_000
    refused(path, packed, message)


def test_a_file_that_is_too_large_is_not_even_opened(path, monkeypatch):
    with path.open("wb") as file:
        file.truncate(bundle_module.MAX_BYTES + 1)
    with pytest.raises(BundleError, match="268435457 bytes; expected at most 268435456"):
        read_bundle(path)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"L", b"K", b"g", b"V", b"Z"])
def test_a_member_that_is_no_plain_file_is_refused(path, kind):
    extra = entry("step_fn.onnx", b"", type=kind, linkname="/etc/passwd")
    refused(path, gzip.compress(tar(*members()[:1], extra, members()[2])), f"of type {kind!r}")


@pytest.mark.parametrize(
    "name",
    ["../step_fn.onnx", "/step_fn.onnx", "./step_fn.onnx", "", "step_fn.onnx/", "STEP_FN.ONNX", "x" * 90, "\x1b[2J"],
)
def test_a_name_that_is_not_exactly_known_is_refused(path, name):
    refused(path, gzip.compress(tar(*members()[:1], entry(name, b"step"), members()[2])), "expected exactly init_fn")


@pytest.mark.parametrize("key", ["path", "size", "linkpath", "GNU.sparse.map", "GNU.sparse.name", "hdrcharset"])
def test_a_pax_record_that_says_something_about_the_member_is_refused(path, key):
    bad = entry("step_fn.onnx", b"step", pax_headers={key: "1"})
    refused(path, gzip.compress(tar(members()[0], bad, members()[2])), f"the pax record b'{key}'")


def test_records_that_say_when_and_by_whom_are_passed_over(path, tmp_path):
    """As Python's own `TarFile.add` writes them in front of each member."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, data in plain().items():
            (tmp_path / name).write_bytes(data)
            archive.add(tmp_path / name, name)
    path.write_bytes(raw.getvalue())
    assert b"mtime=" in gzip.decompress(raw.getvalue())
    assert read_bundle(path).step_fn == b"step"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"9 mtime=1", "a pax record without its length|of type|the pax record"),
        (b"99 mtime=1\n", "a pax record without its length"),
        (b"0 mtime=1\n", "a pax record without its length"),
        (b"mtime=1\n", "a pax record without its length"),
        (b"-5 a\n", "a pax record without its length"),
    ],
)
def test_a_broken_pax_record_is_refused(path, records, message):
    bad = entry("pax", records, type=tarfile.XHDTYPE)
    refused(path, gzip.compress(tar(bad, *members())), message)


def test_pax_records_of_nothing_or_of_each_other_are_refused(path):
    pax = entry("pax", b"11 mtime=1\n", type=tarfile.XHDTYPE)
    refused(path, gzip.compress(tar(*members(), pax)), "a broken tar header")
    refused(path, gzip.compress(tar(pax, pax, *members())), "of type b'x'")


@pytest.mark.parametrize(
    "size", [b"-0000000001\0", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xff" * 12, b"zzz\0"]
)
def test_an_absurd_size_is_refused(path, size):
    header = bytearray(entry("step_fn.onnx", b"")[:512])
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    refused(path, gzip.compress(tar(members()[0], bytes(header))), "expected at most 134217728|a broken tar header")


def test_bytes_after_the_end_are_refused(path):
    whole = tar(*members())
    refused(path, gzip.compress(whole) + b"more", "bytes after the end of the gzip stream")
    refused(path, gzip.compress(whole + b"x" * 512), "something else than zeros after the last member")
    # K-Scale's runtime would read the first stream only
    refused(path, gzip.compress(whole[:1024]) + gzip.compress(whole[1024:]), "ends too early|bytes after the end")


def test_a_gzip_stream_whose_checksum_is_wrong_is_refused(path):
    packed = bytearray(gzip.compress(tar(*members())))
    packed[-5] ^= 1
    refused(path, bytes(packed), "not gzip|is damaged|incorrect")


def spec() -> dict:
    robot = load_robot("kbot")
    commands = (CommandSpec(name="vx", low=-0.5, high=0.5, unit="m/s"),)
    return PolicySpec(
        task="t",
        robot=robot,
        inputs=tuple(input_specs(robot, commands).values()),
        commands=commands,
        carry_size=3,
        control_period_s=0.02,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
    ).to_json()


def ours(change) -> bytes:
    """Metadata of ours with a change in our key, given as text that may not be JSON."""
    data = spec()
    change(data)
    names = [j["name"] for j in spec()["robot"]["joints"]]
    return json.dumps({"joint_names": names, "command_names": ["vx"], "carry_size": 3, "ksim2real": data}).encode()


HOSTILE = {
    "infinity": (b'{"joint_names":["a"],"carry_size":1e999}', "the number 1e999; expected finite"),
    "NaN": (b'{"joint_names":["a"],"carry_size":NaN}', "the number NaN"),
    "a number without end": (b'{"joint_names":["a"],"carry_size":' + b"9" * 300_000 + b"}", "of 300000 digits"),
    "a fraction without end": (b'{"joint_names":["a"],"carry_size":0.' + b"9" * 300_000 + b"}", "got 1.0"),
    "a key twice": (b'{"joint_names":["a"],"carry_size":1,"carry_size":2}', "the key 'carry_size' twice"),
    "a key twice inside": (b'{"joint_names":["a"],"carry_size":1,"x":{"y":[{"z":1,"z":1}]}}', "the key 'z' twice"),
    "33 levels": (b'{"joint_names":' + b"[" * 33 + b"]" * 33 + b"}", "nested too deep"),
    "a million levels": (b"[" * 1_000_000, "nested too deep"),
    "a million objects": (b'{"a":' * 700_000, "nested too deep"),
    "half a surrogate": (b'{"joint_names":["\\ud800"],"carry_size":1}', r"the character '\\ud800'"),
    "a terminal escape": (b'{"joint_names":["\\u001b[2J"],"carry_size":1}', r"the character '\\x1b'"),
    "a line break": (b'{"joint_names":["a\\nb"],"carry_size":1}', r"the character '\\n'"),
    "text that runs backwards": ('{"joint_names":["\u202e"],"carry_size":1}'.encode(), r"the character '\\u202e'"),
    "a zero byte": (b'{"joint_names":["a\\u0000"],"carry_size":1}', r"the character '\\x00'"),
    "a long name": (b'{"joint_names":["' + b"a" * 129 + b'"],"carry_size":1}', "text of 129 characters"),
    "an empty name": (b'{"joint_names":[""],"carry_size":1}', "joint_names: got .* expected a list of names"),
    "a long key": (b'{"' + b"k" * 257 + b'":1}', "text of 257 characters; expected at most 256"),
    "long text": (b'{"x":"' + b"k" * 70_000 + b'"}', "text of 70000 characters"),
    "many joints": (json.dumps({"joint_names": [*map(str, range(1025))], "carry_size": 1}).encode(), "1025 names"),
    "one name many times": (
        b'{"joint_names":[' + b'"a",' * 200_000 + b'"a"],"carry_size":1}', "200001 names"),
    "numbers for names": (b'{"joint_names":[1,2],"carry_size":1}', r"joint_names: got \[1, 2\]"),
    "a key that is no text": (b'{1:2}', "not JSON"),
    "two values": (b"{} {}", "not JSON"),
    "a huge carry": (b'{"joint_names":["a"],"carry_size":1000001}', "carry_size: got 1000001, expected .*0 to 1000000"),
    "an input without end": (ours(lambda d: d["inputs"][0].update(shape=[10**12])), "shape: got .* 1000000 elements"),
    "an input whose sizes are small": (ours(lambda d: d["inputs"][0].update(shape=[10**6, 10**6])), "1000000 elements"),
    "an input of many axes": (ours(lambda d: d["inputs"][0].update(shape=[10**9] * 900)), "at most 8 positive"),
    "a long list": (ours(lambda d: d["inputs"][0].update(shape=[1] * 200_000)), "shape: got 200000 elements"),
    "a robot of many joints": (
        ours(lambda d: d["robot"].update(joints=d["robot"]["joints"][:1] * 2000)), "joints: got 2000 elements"),
    "a limit that is an integer without end": (
        ours(lambda d: d["robot"]["joints"][0].update(kp=10**400)), "an integer of 401 digits"),
    "a limit that is text": (ours(lambda d: d["robot"]["joints"][0].update(kp="1")), "kp: got '1', expected a number"),
    "a limit that is true": (ours(lambda d: d["robot"]["joints"][0].update(kp=True)), "kp: got True, expected"),
    "another kind everywhere": (ours(lambda d: d.update(robot=[])), r"robot: got \[\], expected a mapping"),
    "a key that is not known": (ours(lambda d: d.update(run="rm")), "'run' is unknown; known keys: task"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused_in_one_line_and_little_memory(path, case):
    text, message = HOSTILE[case]
    entries = [entry(name, data) for name, data in plain(text).items()]
    refused(path, gzip.compress(tar(*entries), 1), message, limit=150_000_000)


def test_what_could_not_be_read_again_is_not_written(path):
    bundle = read_bundle(pack_plain(path))
    before = path.read_bytes()
    for change in (
        {"joint_names": ("a\n",)},
        {"joint_names": tuple(f"j{k}" for k in range(1025))},
        {"carry_shape": (10**7,)},
    ):
        with pytest.raises(BundleError, match="could not be read again"):
            write_bundle(path, dataclasses.replace(bundle, **change))
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def pack_plain(path: Path) -> Path:
    path.write_bytes(gzip.compress(tar(*members())))
    return path


def test_ordinary_json_reads_as_the_standard_library_reads_it():
    for value in (METADATA, spec(), {"a": [1, -2.5e-7, "ä€𝄞", None, True, {"b": []}], "c": 2**63}):
        text = json.dumps(value).encode()
        assert strict_json.loads(text) == json.loads(text) == value


def test_every_member_is_needed_once_and_order_does_not_matter(path):
    path.write_bytes(gzip.compress(tar(*members()[::-1])))
    assert read_bundle(path).joint_names == ("a", "b")
    for k, name in enumerate(MEMBERS):
        refused(path, gzip.compress(tar(*(m for i, m in enumerate(members()) if i != k))), f"no {name}")
        refused(path, gzip.compress(tar(*members(), members()[k])), f"member '{name}' of type b'0'; expected exactly")
    for folder in (".", "policy"):
        packed = [entry(f"{folder}/{name}", data) for name, data in plain(METADATA).items()]
        refused(path, gzip.compress(tar(*packed)), "each once; pack it from within its folder, by names alone")
