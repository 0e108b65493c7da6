"""Margins: what a ladder says of its rungs, by hand, and that nothing else is read from a bundle."""

from __future__ import annotations

import json

import pytest

from robots.errors import SpecError
from robots.margins import Answer, Ladder, Margins, Rung
from robots.spec import PolicySpec, canonical_json
from tests.robots.test_spec import POLICY


def ladder(*survived: int, of: int = 32) -> Ladder:
    """Rungs 0, 0.02, 0.04, ... with so many that survived."""
    return Ladder(rungs=tuple(Rung(value=0.02 * i, survived=n, episodes=of) for i, n in enumerate(survived)))


@pytest.mark.parametrize(
    ("survived", "margin", "at_least"),
    [
        ((32, 32, 32), 0.04, True),
        ((32, 29, 28), 0.02, False),  # 29 of 32 are 90.6 %, 28 are 87.5 %
        ((32, 28, 32), 0.0, False),  # what stands beyond a fall does not count
        ((28, 32, 32), None, False),
        ((29,), 0.0, True),
    ],
)
def test_the_margin_is_the_greatest_value_up_to_which_nine_tenths_survive(survived, margin, at_least):
    found = ladder(*survived)
    assert (found.margin, found.at_least) == (margin, at_least)


def test_nine_of_ten_episodes_stand():
    assert ladder(9, 9, of=10).at_least and ladder(8, of=10).margin is None


def answer(earlier: float, last: float) -> Answer:
    return Answer(share=0.2, earlier_rad=earlier, last_rad=last, joint="knee", at_limit=0.0)


def test_a_pull_that_still_grows_by_a_tenth_and_a_hundredth_winds_up():
    assert not answer(0.5, 0.56).winds_up and answer(0.5, 0.5601).winds_up
    assert not answer(0.0, 0.01).winds_up and answer(0.0, 0.02).winds_up
    assert not answer(0.5, 0.1).winds_up and answer(0.5, 0.1).pull_rad == 0.5 and answer(0.1, 0.5).pull_rad == 0.5


MARGINS = Margins(
    imu_age_s=ladder(32, 32, 3),
    held_ticks=Ladder(rungs=(Rung(value=0.0, survived=1, episodes=3),)),
    answers=(answer(1 / 3, 0.1 + 0.2),),
    seed=7,
    episode_s=8.0,
    others_s={"imu": 0.0275, "action": 0.018},
    answer_s=5.0,
)


def test_margins_travel_in_a_specification_through_json_without_loss():
    spec = POLICY.replace(margins=MARGINS)
    back = PolicySpec.from_json(json.loads(canonical_json(spec.to_json())))
    assert back == spec and back.margins == MARGINS and back.digest == spec.digest
    assert list(back.margins.ladders) == ["imu_age_s", "held_ticks"] and back.margins.joint_age_s is None


def test_a_specification_without_margins_is_written_as_before_there_were_any():
    assert "margins" not in POLICY.to_json() and PolicySpec.from_json(POLICY.to_json()).margins is None
    # what the graphs are stamped with does not tell of them
    assert POLICY.replace(margins=MARGINS).contract().digest == POLICY.contract().digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imu_age_s": {"rungs": []}}, "rungs"),
        ({"imu_age_s": {"rungs": [{"value": 0.0, "survived": 4, "episodes": 3}]}}, "survived"),
        ({"imu_age_s": {"rungs": [{"value": -0.1, "survived": 3, "episodes": 3}]}}, "value"),
        ({"imu_age_s": {"rungs": [{"value": 0.1, "survived": 3, "episodes": 0}]}}, "episodes"),
        ({"imu_age_s": {"rungs": [{"value": v, "survived": 3, "episodes": 3} for v in (0.1, 0.1)]}}, "rungs"),
        ({"imu_age_s": {"rungs": [{"value": float(v), "survived": 3, "episodes": 3} for v in range(101)]}}, "rungs"),
        ({"imu_age_s": 0.04}, "imu_age_s"),
        ({"answers": [answer(0.1, 0.1).to_dict() | {"share": 2.0}]}, "share"),
        ({"others_s": {"imu": "late"}}, "others_s"),
        ({"margin": 0.1}, "margin"),
    ],
)
def test_a_bundle_with_other_margins_is_refused_and_the_key_named(change, said):
    data = POLICY.to_json() | {"margins": MARGINS.to_dict() | change}
    with pytest.raises(SpecError, match=said):
        PolicySpec.from_json(data)
