"""A command line made from a class of settings: flags, help, and one line for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from toolkit.cli import Option, options
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings

ROOT = Path(__file__).parents[2]


class BakeError(SettingsError):
    """Of this test."""


def _pairs(texts: list[str]) -> dict[str, float]:
    return {name: float(value) for name, value in (text.split("=") for text in texts)}


@dataclass(frozen=True, kw_only=True)
class Bake(Settings):
    """One field of every sort."""

    cake: Annotated[Path, Option("what to bake", positional=True)]
    other: Annotated[str | None, Option("another", positional=True)] = None
    rate_hz: Annotated[float, Option("how often"), Bound(0, 100, "Hz")] = 50.0
    eggs: Annotated[int, Option("how many, 100 % fresh", short="-e", metavar="N"), Bound(1, 12, "eggs")] = 3
    oven: Annotated[Literal["gas", "wood"], Option("which")] = "gas"
    set: Annotated[tuple[str, ...], Option("override", metavar="KEY=VALUE")] = ()
    nuts: Annotated[tuple[str, ...], Option("some or all", many=True)] = ()
    spice: Annotated[dict[str, float], Option("how much (default 0)", read=_pairs), Bound(0, 1, "a share")] = field(
        default_factory=dict
    )
    wait_s: Annotated[float, Option("then wait [s]", flag="--wait"), Bound(0, 9, "seconds")] = 0.0
    json: Annotated[bool, Option("print JSON")] = False
    fan: Annotated[bool, Option("blow")] = True
    fresh: Annotated[bool, Option("begin anew", group="start")] = False
    init: Annotated[str | None, Option("begin with this", group="start")] = None
    hidden: int = 7
    error: ClassVar[type[SettingsError]] = BakeError

    def check(self) -> None:
        self.require(self.wait_s == 0 or not self.fan, "wait_s", self.wait_s, "0 with --fan")


def bake(*argv: str) -> Bake:
    return options(Bake, argv, "ksim bake", "Bakes.", "ksim bake cake --eggs 3")


def test_without_options_the_defaults_are_those_of_the_class():
    assert bake("cake") == Bake(cake=Path("cake"))


def test_every_field_that_is_marked_has_a_flag():
    made = bake(
        *("cake", "pie", "--rate-hz", "20", "-e", "4", "--oven", "wood", "--set", "a=1", "--set", "b=2"),
        *("--spice", "salt=0.5", "--spice", "mint=1", "--wait", "2", "--json", "--no-fan", "--init", "x"),
        *("--nuts", "pine", "wal", "--nuts", "pea"),
    )
    assert made == Bake(
        cake=Path("cake"), other="pie", rate_hz=20.0, eggs=4, oven="wood", set=("a=1", "b=2"),
        spice={"salt": 0.5, "mint": 1.0}, wait_s=2.0, json=True, fan=False, init="x",
        nuts=("pine", "wal", "pea"),
    )  # fmt: skip
    assert bake("cake", "--eggs", "4").eggs == 4
    assert type(made.cake) is type(Path())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--eggs", "13"], "--eggs: got 13, expected 1 to 12 (eggs)"),
        (["--rate-hz", "-1"], "--rate-hz: got -1.0, expected 0 to 100 (Hz)"),
        (["--rate-hz", "nan"], "--rate-hz: got nan, expected a number"),
        (["--wait", "10"], "--wait: got 10.0, expected 0 to 9 (seconds)"),
        (["--wait", "1"], "--wait: got 1.0, expected 0 with --fan"),
        (["--spice", "salt=2"], "--spice.salt: got 2.0, expected 0 to 1 (a share)"),
    ],
)
def test_a_value_out_of_its_bounds_is_an_error_that_names_the_flag(argv, words):
    with pytest.raises(BakeError) as caught:
        bake("cake", *argv)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the following arguments are required: cake"),
        (["cake", "--eggs", "many"], "argument -e/--eggs: invalid int value: 'many'"),
        (["cake", "--oven", "sun"], "argument --oven: invalid choice: 'sun' (choose from"),
        (["cake", "--egg", "3"], "unrecognized arguments: --egg 3"),
        (["cake", "--hidden", "3"], "unrecognized arguments: --hidden 3"),
        (["cake", "--fresh", "--init", "x"], "argument --init: not allowed with argument --fresh"),
    ],
)
def test_words_that_are_none_are_one_line_and_status_2(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        bake(*argv)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith(f"ksim bake: {words}") and said.endswith("; see ksim bake --help\n")
    assert said.count("\n") == 1


def test_the_help_tells_flags_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        bake("--help")
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "-e N, --eggs N how many, 100 % fresh (default: 3)",
        "--rate-hz RATE_HZ how often (default: 50.0)",
        "--oven {gas,wood} which (default: gas)",
        "--spice SPICE how much (default 0)",
        "--json print JSON",
        "--fan, --no-fan blow",
        "[--fresh | --init INIT]",
        "example: ksim bake cake --eggs 3",
    ):
        assert words in said
    assert "hidden" not in said


@dataclass(frozen=True, kw_only=True)
class Send(Settings):
    """A flag without a default."""

    to: Annotated[str, Option("whom")]


def test_a_flag_without_a_default_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        options(Send, [], "ksim send", "", "")
    assert capsys.readouterr().err == "ksim send: the following arguments are required: --to; see ksim send --help\n"
    assert options(Send, ["--to", "x"], "ksim send", "", "") == Send(to="x")


def test_the_modules_of_options_and_settings_load_little():
    code = "import sys, toolkit.settings, toolkit.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"toolkit", "yaml"} <= set(done.stdout.split())
    assert not {"numpy", "jax", "robots", "pydantic", "rich", "mujoco"} & set(done.stdout.split())
