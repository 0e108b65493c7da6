"""docs/safety.md names what the code has: every kind of fault and clamp, every phase, the defaults of the options."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.control.machine import OnFault, Phase
from deploy.control.run import RunOptions
from deploy.robot.faults import ClampKind, FaultKind
from deploy.robot.frozen import FrozenLimits
from deploy.robot.safety import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "safety.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """First column to the rest, of the table under a heading."""
    text = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return {row[0].strip().strip("`").split("`")[0]: "|".join(row[1:]) for row in cells}


def test_the_page_has_every_kind_of_fault_and_clamp_and_every_phase():
    assert set(rows("What ends a run")) == {kind.value for kind in FaultKind}
    assert list(rows("What a target has to pass")) == [kind.value for kind in ClampKind]
    assert list(rows("The phases of a run")) == [phase.value for phase in Phase]
    assert set(rows("`--on-fault`: damp, hold or off")) == {value.value for value in OnFault}


def test_the_limits_on_the_page_are_those_of_the_code():
    faults, limits, frozen = rows("What ends a run"), Limits.__dataclass_fields__, FrozenLimits()
    number = lambda kind: float(re.search(r"[\d.]+", faults[kind])[0])  # noqa: E731
    assert number("joint out of range") == limits["range_slack_rad"].default
    assert number("over-speed") == limits["over_speed"].default
    assert number("over-torque") == limits["over_torque"].default and number("spin") == limits["spin_max_rad_s"].default
    assert number("too hot") == limits["temperature_max_c"].default
    assert number("jumped") == limits["jump_max_rad"].default
    assert number("stale") == limits["stale_ticks_max"].default == number("frozen") == frozen.channel_ticks
    assert faults["frozen joint"].split("|")[1].split()[0] == str(frozen.joint_ticks)
    fields = RunOptions.__dataclass_fields__
    assert number("lost") == fields["lost_ticks_max"].default and "a quarter" in faults["too slow"]
    assert fields["late_max"].default == 0.25 and fields["tilt_max_rad"].default == 1.0 == number("fall")
