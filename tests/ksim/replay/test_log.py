"""The log: its data model as an ACSet schema, and what a damaged one is refused for."""

from __future__ import annotations

import itertools
import json

import pytest

from ksim.cli import main
from ksim.errors import ReplayError
from ksim.replay_log import validate_log
from ksim.schema import OBJECTS, acset_instance, acset_schema, attributes, fits
from ksim.types import PhysicsState
from robots.motor import MotorState
from tests.ksim.replay.short_task import STEPS


def test_the_schema_has_the_objects_maps_and_attributes_of_the_types():
    schema = acset_schema()
    assert [row["name"] for row in schema["Ob"]] == ["PhysicsState", "Trajectory", "Observation", "Reward", "Action"]
    maps = {(row["name"], row["dom"], row["codom"]) for row in schema["Hom"]}
    assert maps >= {
        ("step", "Action", "PhysicsState"),
        ("observe", "PhysicsState", "Observation"),
        ("reward", "Trajectory", "Reward"),
    }
    found = {(row["name"], row["dom"], row["codom"]) for row in schema["Attr"]}
    assert found >= {("qpos", "PhysicsState", "Vector"), ("qvel", "PhysicsState", "Vector")}
    assert found >= {
        ("done", "Trajectory", "Flag"),
        ("raw", "Action", "Vector"),
        ("inputs", "Observation", "VectorByName"),
    }
    fields = set(PhysicsState.__dataclass_fields__) - {"motor", "history", "internal", "scene"}
    motor = {f"motor_{name}" for name in MotorState._fields}
    assert set(attributes("PhysicsState")) == fields | motor


def test_the_schema_is_one_that_acsets_can_read():
    """As ACSets.jl parses it: the keys of its JSON schema, names that exist, and each name of a column once."""
    schema = json.loads(json.dumps(acset_schema(), allow_nan=False))
    assert schema["version"]["ACSetSchema"] == "0.0.1" and "ACSets" in schema["version"]
    objects, types = ({row["name"] for row in schema[key]} for key in ("Ob", "AttrType"))
    assert all(row["dom"] in objects and row["codom"] in objects for row in schema["Hom"])
    assert all(row["dom"] in objects and row["codom"] in types for row in schema["Attr"])
    assert types == {row["codom"] for row in schema["Attr"]}
    columns = [row["name"] for key in ("Hom", "Attr") for row in schema[key]]
    assert len(columns) == len(set(columns))
    ends = {row["name"]: (row["dom"], row["codom"]) for row in schema["Hom"]}
    for row in schema["equations"]:
        for path in row["paths"]:
            assert ends[path[0]][0] == row["dom"] and ends[path[-1]][1] == row["codom"]
            assert all(ends[a][1] == ends[b][0] for a, b in itertools.pairwise(path))


def test_a_log_as_tables_fits_the_schema_and_its_equation(log):
    tables, schema = acset_instance(log), acset_schema()
    assert {name: len(rows) for name, rows in tables.items()} == {
        "PhysicsState": STEPS + 1,
        "Observation": STEPS + 1,
        "Trajectory": STEPS,
        "Reward": STEPS,
        "Action": STEPS,
    }
    for ob, rows in tables.items():
        maps = {row["name"]: row["codom"] for row in schema["Hom"] if row["dom"] == ob}
        assert [row["_id"] for row in rows] == list(range(1, len(rows) + 1))
        for row in rows:
            assert set(row) == {"_id", *maps, *attributes(ob)}
            assert all(1 <= row[name] <= len(tables[codomain]) for name, codomain in maps.items())
            assert all(fits(kind, row[name]) for name, kind in attributes(ob).items())
    states, actions = tables["PhysicsState"], tables["Action"]
    assert all(row["physics"] == actions[row["action"] - 1]["step"] for row in tables["Trajectory"])
    assert states[actions[0]["taken_at"] - 1]["qpos"] == log.events[0]["layers"]["physics"]["qpos"]
    assert states[actions[-1]["step"] - 1]["qpos"] == log.events[-1]["layers"]["physics"]["qpos"]
    assert set(tables) == set(OBJECTS)


def changed(line: int, **values):
    """A damage: a line with other values."""

    def damage(lines):
        event = json.loads(lines[line])
        for key, value in values.items():
            at, *path = key.split("__")
            target = event
            for name in path:
                target, at = target[at], name
            target[at] = value
        return [*lines[:line], json.dumps(event), *lines[line + 1 :]]

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: ["# not JSON", *lines[1:]], "line 1: not JSON"),
        (lambda lines: lines[1:], "line 1: no birth of a replay"),
        (lambda lines: ["[1, 2]"], "line 1: list"),
        (lambda lines: [*lines[:5], lines[5][:100]], "line 6: not JSON"),
        (lambda lines: lines[:-3], "the file was cut"),
        (lambda lines: [*lines[:4], *lines[5:]], "line 5: event_id 'step_4'; expected step_3"),
        (lambda lines: [*lines, lines[-1]], "line 21: impact 1"),
        (lambda lines: [*lines[:2], lines[2].replace(":0.0", ":NaN", 1), *lines[3:]], "the number NaN"),
        (changed(0, birth__version=2), "version 2; expected 1"),
        (changed(0, birth__dtypes__qpos="|O"), "birth.dtypes.qpos '|O'"),
        (changed(0, birth__names=None), "birth.names None; expected one of type dict"),
        (changed(0, birth__names={}), "birth.names.joints None; expected a list of names"),
        (changed(0, birth__names__qpos=[1]), "birth.names.qpos [1]; expected a list of names"),
        (changed(0, birth__seed=True), "birth.seed True; expected one of type int"),
        (changed(0, birth__version=True), "version True; expected 1"),
        (changed(0, birth__task=3), "birth.task 3; expected one of type str"),
        (lambda lines: lines[:1], "the episode does not end"),
        (lambda lines: changed(0, impact=1)(lines[:1]), "line 1: impact 1; expected 1 where the episode ends"),
        (changed(20, impact=True), "line 21: impact True"),
        (changed(3, trit=True), "line 4: trit True"),
        (changed(3, delta={"action": [0.0], "reward": 0.03}), "line 4: an action of 1 numbers; expected 20"),
        (changed(3, before_hash="0" * 64), "line 4: before_hash"),
        (changed(3, trit=-1), "line 4: trit -1 for a reward"),
        (changed(3, impact=1), "line 4: impact 1"),
        (changed(3, delta={"action": [True], "reward": 0.0}), "line 4: delta without action and reward"),
        (changed(3, layers__reward__done=True), "line 4: impact 0 where done is True"),
        (changed(3, layers__reward__terms=[0.1]), "line 4: layers, given and reward: terms [0.1]"),
        (changed(3, layers__physics__qpos=[0.0]), "line 4: qpos of 1 numbers; expected 27"),
        (changed(3, layers__physics__torque="x"), "line 4: layers, physics: torque 'x'"),
        (changed(3, layers__physics__torque=[0.5] * 20), "line 4: the state is not the one of after_hash"),
        (changed(3, layers={}), "line 4: layers are missing"),
    ],
)
def test_a_damaged_log_is_refused_in_one_line(log, tmp_path, capsys, damage, words):
    path, lines = tmp_path / "damaged.jsonl", log.path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in damage(lines)))
    with pytest.raises(ReplayError) as error:
        validate_log(path)
    assert words in str(error.value)
    assert main(["diff", str(log.path), str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(f"ksim diff: {path}: ")


def test_a_log_whose_last_line_has_no_end_or_that_is_not_there_is_refused(log, tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_bytes(log.path.read_bytes()[:-1])
    with pytest.raises(ReplayError, match="line 21: the last line has no end"):
        validate_log(path)
    with pytest.raises(ReplayError, match="No such file"):
        validate_log(tmp_path / "none.jsonl")
