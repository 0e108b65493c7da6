"""Commands over time: what a schedule file says, and what of it is refused."""

from pathlib import Path

import numpy as np
import pytest

from deploy.control.commands import Schedule, read_schedule
from deploy.control.run import RunOptions
from deploy.errors import CheckError
from robots import read_bundle
from toolkit.errors import SettingsError
from toolkit.files import shipped_policy

GOOD = """
- {at_s: 0}
- {at_s: 1.5, xvel: 0.05}
- {at_s: 4, yawrate: -0.02, vx: 0.01}
"""


@pytest.fixture(scope="module")
def spec():
    spec = read_bundle(shipped_policy("stand", ".kinfer")).spec
    wide = [type(c)(name=c.name, low=-0.1, high=0.1, unit=c.unit) for c in spec.commands]
    return type(spec)(**{**spec.__dict__, "commands": tuple(wide)})


def written(folder: Path, text: str) -> Path:
    path = folder / "course.yaml"
    path.write_text(text)
    return path


def test_a_schedule_holds_each_command_until_the_next(tmp_path, spec):
    schedule = read_schedule(written(tmp_path, GOOD), spec)
    names = spec.command_names
    at = {t: dict(zip(names, schedule.at(t).tolist(), strict=True)) for t in (0.0, 1.48, 1.5, 3.98, 4.0, 1e3)}
    assert at[0.0] == at[1.48] == dict.fromkeys(names, 0.0)
    assert at[1.5] == at[3.98] == {"xvel": 0.05, "yvel": 0.0, "yawrate": 0.0}
    assert at[4.0] == at[1e3] == {"xvel": 0.01, "yvel": 0.0, "yawrate": -0.02}


def test_a_sum_of_periods_reaches_a_round_time(tmp_path, spec):
    schedule = read_schedule(written(tmp_path, GOOD), spec)
    assert schedule.at(sum([0.02] * 75))[0] == 0.05


def test_a_command_of_a_whole_run_is_a_schedule_too():
    schedule = Schedule.constant(np.asarray([0.3, 0.0]))
    assert schedule.at(0.0).tolist() == schedule.at(99.0).tolist() == [0.3, 0.0]
    assert schedule.to_list(["a", "b"]) == [{"at_s": 0.0, "a": 0.3, "b": 0.0}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("xvel: 1", "got dict, expected a YAML list"),
        ("[]", "got list, expected a YAML list"),
        ("- 3", "expected a YAML list"),
        ("- {at_s: 1}", "entry 1: at_s 1: expected 0 in the first entry"),
        ("- {xvel: 0}", "entry 1: at_s: got None, expected a number"),
        ("- {at_s: 0}\n- {at_s: 0}", "entry 2: at_s 0: expected more than 0"),
        ("- {at_s: 0}\n- {at_s: .nan}", "entry 2: at_s: got nan, expected a number"),
        ("- {at_s: 0, xvel: fast}", "entry 1: xvel: got 'fast', expected a number"),
        ("- {at_s: 0, xvel: true}", "entry 1: xvel: got True, expected a number"),
        (f"- {{at_s: 0, xvel: 1{0:0400d}}}", "entry 1: xvel: got 10000000"),
        ("- {at_s: 0, xvel: 9}", "entry 1: xvel=9: expected -0.1 to 0.1"),
        ("- {at_s: 0, speed: 0}", "entry 1: speed: unknown; this policy takes xvel"),
        ("- {at_s: 0, xvel: 0, vx: 0}", "two names of one command"),
        ("- {at_s: 0", "not YAML"),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line(tmp_path, spec, text, said):
    path = written(tmp_path, text)
    with pytest.raises(CheckError) as error:
        read_schedule(path, spec)
    assert said in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_schedule_and_a_command_are_not_both_taken(tmp_path):
    with pytest.raises(SettingsError, match="either --schedule or --command"):
        RunOptions(bundle=Path("p.kinfer"), command={"xvel": 0.0}, schedule=tmp_path / "course.yaml")


def test_a_csv_file_says_the_same_and_an_empty_cell_is_rest(tmp_path, spec):
    path = tmp_path / "course.CSV"
    path.write_bytes("\ufeffat_s, xvel ,yawrate\r\n0,,\r\n1.5,0.05,\r\n\r\n4,1e-2,-0.02\r\n".encode())
    schedule, yaml = read_schedule(path, spec), read_schedule(written(tmp_path, GOOD), spec)
    assert schedule.begins_s == yaml.begins_s and schedule.commands.tolist() == yaml.commands.tolist()
    assert schedule.kind == "schedule"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got the header '' and 0 lines, expected a CSV file"),
        ("at_s,xvel", "and 0 lines, expected a CSV file"),
        ("0,0\n1,0.1", "got the header '0,0'"),
        ("at_s;xvel\n0;0", "got the header 'at_s;xvel'"),
        ("at_s,xvel,xvel\n0,0,0", "got the header"),
        ("at_s,,xvel\n0,0,0", "got the header"),
        ("at_s,xvel\n0,0,0", "entry 1: 3 cells, expected 2"),
        ("at_s,xvel\n0,0\n1", "entry 2: 1 cells, expected 2"),
        ("at_s,xvel\n,0", "entry 1: at_s: got None, expected a number"),
        ("at_s,xvel\n0,fast", "entry 1: xvel: got 'fast', expected a number"),
        ("at_s,xvel\n0,nan", "entry 1: xvel: got nan, expected a number"),
        ("at_s,xvel\n0,9", "entry 1: xvel=9: expected -0.1 to 0.1"),
        ("at_s,speed\n0,0", "entry 1: speed: unknown; this policy takes xvel"),
        ("at_s,xvel\n0,0\n0,0", "entry 2: at_s 0: expected more than 0"),
        ('at_s,xvel\n0,"\0"', "entry 1: xvel: got"),
        ("at_s,xvel\n0,\xff", "got 'ÿ', expected a number"),
        ("x" * 200_000, "field larger than field limit"),
        ("at_s\n" + "\n" * 5_000_000, "more than 4194304 bytes"),
    ],
)
def test_what_is_no_csv_schedule_is_refused_in_one_line(tmp_path, spec, text, said):
    path = tmp_path / "course.csv"
    path.write_text(text)
    with pytest.raises(CheckError) as error:
        read_schedule(path, spec)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_csv_file_that_cannot_be_read_is_one_line(tmp_path, spec):
    (tmp_path / "latin.csv").write_bytes(b"at_s,xvel\n0,\xff")
    for name in ("latin.csv", "none.csv", "folder.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        with pytest.raises(CheckError, match=rf"{name}: cannot read it \(.*\); expected a CSV file"):
            read_schedule(tmp_path / name, spec)
