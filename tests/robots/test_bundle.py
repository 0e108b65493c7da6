"""A .kinfer file reads back as it was written, or is refused with one line."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from robots.bundle import MEMBERS, Bundle, read_bundle, write_bundle
from robots.errors import BundleError
from robots.load import load_robot
from robots.spec import CommandSpec, PolicySpec, input_specs
from toolkit.files import atomic_path


def policy_spec() -> PolicySpec:
    robot = load_robot("kbot")
    commands = (CommandSpec(name="vx", low=-0.5, high=0.5, unit="m/s"),)
    return PolicySpec(
        task="kbot_stand",
        robot=robot,
        inputs=tuple(input_specs(robot, commands).values()),
        commands=commands,
        carry_size=256,
        control_period_s=robot.control_period_s,
        action_low_rad=tuple(robot.column("lower_rad")),
        action_high_rad=tuple(robot.column("upper_rad")),
        proofs={"onnx_error_max": 1 / 3e7},
    )


@pytest.fixture
def bundle() -> Bundle:
    spec = policy_spec()
    return Bundle(
        joint_names=spec.robot.joint_names,
        command_names=spec.command_names,
        carry_shape=(spec.carry_size,),
        init_fn=bytes(range(256)) * 3,
        step_fn=os.urandom(4096),
        spec=spec,
    )


def pack(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """A gzip tar with any members, links among them."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(raw.getvalue()))
    return path


def plain(**metadata) -> dict[str, bytes | tarfile.TarInfo]:
    """The members of a small bundle as K-Scale's own exporter writes it."""
    content = {"joint_names": ["a", "b"], "command_names": ["vx"], "carry_size": 3, **metadata}
    content = {k: v for k, v in content.items() if v is not ...}
    return {"init_fn.onnx": b"init", "step_fn.onnx": b"step", "metadata.json": json.dumps(content).encode()}


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_bundle_reads_back_as_it_was_written(tmp_path, bundle):
    path = tmp_path / "deep" / "policy.kinfer"
    write_bundle(path, bundle)
    back = read_bundle(path)
    assert back == bundle
    assert back.digest == bundle.digest
    assert back.spec is not None and back.spec.robot.joint("dof_left_elbow_02").kd == 1.266


def test_the_same_bundle_gives_the_same_bytes_under_any_name_and_at_any_time(tmp_path, bundle, monkeypatch):
    write_bundle(tmp_path / "a.kinfer", bundle)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_bundle(tmp_path / "b.kinfer", bundle)
    assert (tmp_path / "a.kinfer").read_bytes() == (tmp_path / "b.kinfer").read_bytes()


def test_the_archive_has_exactly_the_three_members_of_the_format(tmp_path, bundle):
    write_bundle(tmp_path / "p.kinfer", bundle)
    with tarfile.open(tmp_path / "p.kinfer", "r:gz") as tar:
        assert tar.getnames() == ["init_fn.onnx", "step_fn.onnx", "metadata.json"]
        metadata = json.load(tar.extractfile("metadata.json"))
    assert set(metadata) == {"joint_names", "command_names", "carry_size", "ksim2real"}
    assert metadata["carry_size"] == [256]


def test_a_bundle_of_k_scales_exporter_reads_without_our_key(tmp_path):
    back = read_bundle(pack(tmp_path / "p.kinfer", plain()))
    assert (back.joint_names, back.command_names, back.carry_size, back.spec) == (("a", "b"), ("vx",), 3, None)
    assert (back.init_fn, back.step_fn) == (b"init", b"step")


def test_a_carry_size_may_be_a_shape_or_a_number(tmp_path):
    for written in ([3], 3):
        assert read_bundle(pack(tmp_path / "p.kinfer", plain(carry_size=written))).carry_size == 3


def test_a_bundle_from_before_named_commands_gets_names(tmp_path):
    back = read_bundle(pack(tmp_path / "p.kinfer", plain(command_names=..., num_commands=2)))
    assert back.command_names == ("command_0", "command_1")


def test_the_home_pose_is_written_to_the_last_digit_and_a_file_without_it_keeps_its_digest(tmp_path, bundle):
    home = tuple(bundle.spec.robot.column("home_rad"))
    homed = dataclasses.replace(bundle, joint_biases=home)
    write_bundle(tmp_path / "p.kinfer", homed)
    back = read_bundle(tmp_path / "p.kinfer")
    assert back == homed and back.joint_biases == home and back.digest == homed.digest != bundle.digest
    with pytest.raises(BundleError, match=r"joint_biases: got .*, expected .* as in ksim2real"):
        dataclasses.replace(bundle, joint_biases=home[::-1])
    write_bundle(tmp_path / "q.kinfer", bundle)
    assert read_bundle(tmp_path / "q.kinfer").joint_biases is None


def test_how_a_file_says_it_is_kept_and_makes_no_other_bundle_of_it(tmp_path):
    first, second = (dict(sorted(plain().items(), reverse=way)) for way in (False, True))
    a, b = read_bundle(pack(tmp_path / "a.kinfer", first)), read_bundle(pack(tmp_path / "b.kinfer", second))
    assert (a.written.members, b.written.members) == (tuple(first), tuple(second)) and a == b
    old = read_bundle(pack(tmp_path / "c.kinfer", plain(command_names=None, num_commands=None, carry_size=3)))
    assert not old.written.named_commands and not old.written.carry_shape and old.command_names == ()


def test_a_truncated_file_is_refused_at_every_length(tmp_path, bundle):
    write_bundle(tmp_path / "p.kinfer", bundle)
    whole = (tmp_path / "p.kinfer").read_bytes()
    cut = tmp_path / "cut.kinfer"
    for length in [*range(0, 64), *range(64, len(whole), 97), *range(len(whole) - 24, len(whole))]:
        cut.write_bytes(whole[:length])
        with pytest.raises(BundleError) as caught:
            read_bundle(cut)
        assert "\n" not in str(caught.value)


def test_a_damaged_byte_never_gives_another_bundle(tmp_path, bundle):
    write_bundle(tmp_path / "p.kinfer", bundle)
    whole = (tmp_path / "p.kinfer").read_bytes()
    bad = tmp_path / "bad.kinfer"
    for at in range(0, len(whole), 53):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            # bytes of the gzip header that mean nothing may change
            assert read_bundle(bad) == bundle
        except BundleError as error:
            assert "\n" not in str(error)


def test_a_tar_cut_inside_the_gzip_is_refused_at_every_block(tmp_path, bundle):
    write_bundle(tmp_path / "p.kinfer", bundle)
    raw = gzip.decompress((tmp_path / "p.kinfer").read_bytes())
    cut = tmp_path / "cut.kinfer"
    content_end = raw.rindex(b"}") + 1
    for length in range(0, content_end, 211):
        cut.write_bytes(gzip.compress(raw[:length]))
        with pytest.raises(BundleError):
            read_bundle(cut)


FOREIGN = {
    "another member": {"extra.txt": b"x"},
    "a member in a folder": {"sub/step_fn.onnx": b"x"},
    "a member above": {"../step_fn.onnx": b"x"},
    "a symbolic link": {"step_fn.onnx": link("step_fn.onnx", tarfile.SYMTYPE, "/etc/passwd")},
    "a hard link": {"step_fn.onnx": link("step_fn.onnx", tarfile.LNKTYPE, "init_fn.onnx")},
    "a folder": {"step_fn.onnx": link("step_fn.onnx", tarfile.DIRTYPE, "")},
    "a device": {"step_fn.onnx": link("step_fn.onnx", tarfile.CHRTYPE, "")},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_members_and_links_are_refused(tmp_path, case):
    with pytest.raises(BundleError, match=r"member .*; expected exactly init_fn\.onnx, step_fn\.onnx, metadata\.json"):
        read_bundle(pack(tmp_path / "p.kinfer", {**plain(), **FOREIGN[case]}))


def test_a_member_given_twice_is_refused(tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in (*MEMBERS, "step_fn.onnx"):
            info = tarfile.TarInfo(name)
            content = plain()[name]
            assert isinstance(content, bytes)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path = tmp_path / "p.kinfer"
    path.write_bytes(gzip.compress(raw.getvalue()))
    with pytest.raises(BundleError, match=r"member 'step_fn\.onnx'"):
        read_bundle(path)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_missing_member_is_named(tmp_path, name):
    members = plain()
    del members[name]
    with pytest.raises(BundleError, match=f"no {name}; expected exactly"):
        read_bundle(pack(tmp_path / "p.kinfer", members))


BAD_METADATA = {
    "not JSON": (b"{", r"metadata\.json: not JSON"),
    "not UTF-8": (b"\xff\xfe", r"metadata\.json: not JSON"),
    "deeply nested": (b"[" * 100_000, "nested too deep; expected at most 32 levels"),
    "a list": (b"[]", "got list, expected an object"),
    "no joints": ({"joint_names": []}, r"joint_names: got \[\], expected a list of names"),
    "joints that are numbers": ({"joint_names": [1]}, r"joint_names: got \[1\]"),
    "joints twice": ({"joint_names": ["a", "a"]}, "joint_names: a given twice"),
    "commands that are text": ({"command_names": "vx"}, "command_names: got 'vx'"),
    "many commands": (
        {"command_names": ..., "num_commands": 10**9},
        "num_commands: got 1000000000, expected 0 to 1024",
    ),
    "false for commands": ({"command_names": ..., "num_commands": False}, "num_commands: got False, expected 0 to"),
    "no carry": ({"carry_size": ...}, "carry_size: got None"),
    "negative carry": ({"carry_size": -1}, "carry_size: got -1"),
    "true for a carry": ({"carry_size": True}, "carry_size: got True"),
    "our key of another kind": ({"ksim2real": 3}, "ksim2real: PolicySpec: got 'int'"),
    "our key for another robot": (
        {"ksim2real": policy_spec().to_json()},
        r"metadata\.json: joint_names: got \('a', 'b'\), expected \('dof_left_hip_pitch_04', ",
    ),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata_is_named(tmp_path, case):
    change, message = BAD_METADATA[case]
    members = {**plain(), "metadata.json": change} if isinstance(change, bytes) else plain(**change)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(pack(tmp_path / "p.kinfer", members))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_or_no_archive_is_refused(tmp_path):
    for path, message in ((tmp_path / "none.kinfer", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(BundleError, match=message):
            read_bundle(path)
    (tmp_path / "text.kinfer").write_text("hello")
    with pytest.raises(BundleError, match=r"is text; expected a \.kinfer bundle"):
        read_bundle(tmp_path / "text.kinfer")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="power"), atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError("power")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path, bundle):
    (tmp_path / "other").write_text("")
    write_bundle(tmp_path / "p.kinfer", bundle)
    assert (tmp_path / "p.kinfer").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "change",
    [
        {"carry_shape": (3,)},
        {"joint_names": ("a",)},
        {"command_names": ()},
        {"command_names": ("vx", "vx"), "spec": None},
    ],
)
def test_a_bundle_that_contradicts_itself_cannot_be_made(bundle, change):
    with pytest.raises(BundleError):
        dataclasses.replace(bundle, **change)
