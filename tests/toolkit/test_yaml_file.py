"""YAML that a person wrote: what is read, and one line for everything else."""

from __future__ import annotations

import datetime

import pytest

from deploy.twin.reality import Reality, RealityError, load_reality, parse_reality
from toolkit.yaml_file import MAX_BYTES, YamlError, parse_yaml, quote, read_yaml


def test_plain_yaml_is_read_as_pyyaml_reads_it():
    text = "a: 1\nb: {c: [1.5, yes, ~, 'x']}\nd: 2020-01-02\n1: y\n"
    assert parse_yaml(text) == {"a": 1, "b": {"c": [1.5, True, None, "x"]}, "d": datetime.date(2020, 1, 2), 1: "y"}
    assert parse_yaml("") is None and parse_yaml("# nothing\n") is None
    assert parse_yaml("&name {a: 1}") == {"a": 1}  # an anchor that nothing refers to


REFUSED = {
    "a month that is none": ("a: 2020-13-45", "not YAML: month must be in 1..12"),
    "an integer that is none": ("a: !!int abc", "not YAML: invalid literal for int"),
    "a float that is none": ("a: !!float abc", "not YAML: could not convert"),
    "a truth that is none": ("a: !!bool x", "not YAML"),
    "a time that is none": ("a: !!timestamp x", "not YAML"),
    "an empty integer": ("a: !!int ''", "not YAML"),
    "an object of Python": ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "5,000 digits": ("a: " + "9" * 5000, "line 1: a value of 5000 characters; expected at most 4096"),
    "4,500 hexadecimal digits": ("a: 0x" + "f" * 4500, "expected at most 4096"),
    "3,000 brackets": ("a: " + "[" * 3000 + "]" * 3000, "nested more than 32 deep"),
    "3,000 braces": ("{a: " * 3000, "nested more than 32 deep"),
    "a key twice": ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' is given twice"),
    "a key twice inside": ("a: {b: 1, b: 1}", "line 1: key 'b' is given twice"),
    "an alias": ("a: &x [1]\nb: *x\n", "line 2: an alias"),
    "an alias of itself": ("&x [*x]", "an alias"),
    "a merged mapping": ("a: &x {b: 1}\nc: {<<: *x}\n", "an alias"),
    "two documents": ("a: 1\n---\na: 2\n", "expected a single document"),
    "a key that is a list": ("? [a]\n: 2", "unhashable"),
    "a tab": ("\ta: 1", "not YAML"),
    "too much": ("#" * (MAX_BYTES + 1), "more than 262144 characters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_in_a_settings_file_is_one_short_line(name, tmp_path):
    text, words = REFUSED[name]
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 400
    path = tmp_path / "reality.yaml"
    path.write_text(text)
    with pytest.raises(RealityError) as caught:
        load_reality(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 600


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    for path, words in (
        (tmp_path / "none.yaml", "cannot read it (No such file or directory); expected a YAML file"),
        (tmp_path, "cannot read it (Is a directory)"),
        (tmp_path / "a\0b", "cannot read it"),
    ):
        with pytest.raises(YamlError) as caught:
            read_yaml(path, "a YAML file")
        assert words in str(caught.value)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9")
    with pytest.raises(YamlError, match=r"not YAML: .*expected a YAML file in UTF-8"):
        read_yaml(latin, "a YAML file")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(YamlError, match=r"large\.yaml: more than 262144 bytes"):
        read_yaml(large, "a YAML file")


def test_a_message_quotes_at_most_300_characters():
    assert quote("short") == "'short'"
    assert quote("x" * 1000) == "'" + "x" * 299 + "..."
    assert quote(10**5000) == "a int too large to show"
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert quote(deep) == "a list too large to show"


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("sensors", "orientation_bias_rad", [1e308, 0, 0], "-3.14159 to 3.14159"),
        ("sensors", "gyro_bias_rad_s", [10**400, 0, 0], "-1000 to 1000"),
        ("sensors", "accelerometer_noise_m_s2", 1e308, "0 to 10000"),
        ("sensors", "position_noise_rad", 1e308, "0 to"),
        ("body", "payload_kg", 10**400, "0 to 1000"),
        ("joints", "kp_scale", {"all": 1e308}, "0 to 100"),
        ("joints", "damping_add", 1e300, "0 to 1000"),
        ("joints", "zero_offset_rad", -1e308, "-3.14159 to"),
        ("pushes", "force_max_n", 1e308, "0 to 100000"),
        ("pushes", "duration_s", [0, 1e308], "0 to 1e+06"),
        ("sensors", "gyro_unit", [1], "deg/s or rad/s"),
    ],
)
def test_a_reality_that_no_robot_has_is_refused_with_its_key(section, key, value, words):
    with pytest.raises(RealityError) as caught:
        parse_reality({section: {key: value}})
    message = str(caught.value)
    assert f"{section}.{key}" in message and ": got " in message and words in message and len(message) < 600


def test_the_name_of_a_reality_is_short_text():
    assert parse_reality({"name": "x" * 200}) == Reality(name="x" * 200)
    for value in ("x" * 201, 5):
        with pytest.raises(RealityError, match=r"name: got .*expected a string of at most 200 characters"):
            parse_reality({"name": value})
