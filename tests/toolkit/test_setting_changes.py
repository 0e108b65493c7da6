"""How settings are changed: merging, named terms, files and overrides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest

from tests.toolkit.run_settings import (
    RUN,
    AirTime,
    Ppo,
    Reward,
    Run,
    Sums,
    refused,
)
from toolkit.errors import SettingsError
from toolkit.settings import Bound, Settings, apply_overrides, from_dict, load, merge

# ------------------------------------------------------------------ merging


def test_sections_merge_key_by_key_and_keep_the_default_of_the_whole():
    run = from_dict(Run, {"ppo": {"minibatches": 2}})
    assert (run.ppo.envs, run.ppo.minibatches) == (128, 2)
    assert merge(run, {"ppo": {"rate": 0.1}}).ppo == Ppo(envs=128, minibatches=2, rate=0.1)
    assert merge(run, {"ppo": None}) == run and merge(run, None) == run


def test_two_overrides_of_one_mapping_both_hold_and_a_whole_mapping_replaces():
    run = apply_overrides(RUN, ["commands.vx=[0.5,0.5]", "commands.vy=[0,0]"])
    assert run.commands == {"vx": (0.5, 0.5), "vy": (0.0, 0.0)}
    assert apply_overrides(run, ["commands={yaw: [0, 1]}"]).commands == {"yaw": (0.0, 1.0)}
    both = apply_overrides(run, ["commands={yaw: [0, 1]}", "commands.vx=[1, 1]"])
    assert both.commands == {"yaw": (0.0, 1.0), "vx": (1.0, 1.0)}
    assert merge(run, {"commands": {"yaw": [0, 1]}}).commands == {"yaw": (0.0, 1.0)}


def test_an_override_with_null_takes_one_name_out_of_a_mapping():
    assert apply_overrides(RUN, ["commands.vx=null"]).commands == {}
    assert "'commands.vy' is unknown; did you mean commands.vx? there is vx" in refused("commands.vy=null")


def test_overrides_are_merged_first_and_checked_as_one():
    assert "multiple of minibatches" in refused("ppo.envs=10")
    run = apply_overrides(RUN, ["ppo.envs=10", "ppo.minibatches=5"])
    assert (run.ppo.envs, run.ppo.minibatches) == (10, 5)
    assert apply_overrides(RUN, ["ppo={envs: 10}", "ppo={minibatches: 5}"]).ppo == run.ppo
    assert apply_overrides(RUN, ["seed=1", "seed=2"]).seed == 2


def test_an_override_that_is_none_says_what_one_looks_like():
    assert refused("seed") == "--set 'seed': expected key=value, for example --set ppo.envs=64"
    assert refused("=1").startswith("--set '=1': expected key=value")
    assert refused("seed=[1").startswith("--set 'seed=[1': the value is not YAML")
    assert "9 names deep" in refused("a.b.c.d.e.f.g.h.i=1")
    assert "seed: got {'x': 1}, expected an integer" in refused("seed.x=1")


def test_numbers_with_an_exponent_are_numbers():
    assert apply_overrides(RUN, ["ppo.rate=1e-3"]).ppo.rate == 1e-3
    assert apply_overrides(RUN, ["ppo.envs=1e3"]).ppo.envs == 1000


# ------------------------------------------------------------------ named terms


def test_a_mapping_changes_a_term_and_leaves_the_others():
    run = apply_overrides(RUN, ["rewards.air_time.threshold_s=0.3"])
    assert run.rewards == {"alive": Reward(), "air_time": AirTime(weight=0.5, threshold_s=0.3)}
    assert list(run.rewards) == ["alive", "air_time"]


def test_a_bare_number_is_the_weight():
    assert apply_overrides(RUN, ["rewards.air_time=3"]).rewards["air_time"] == AirTime(weight=3.0)
    run = apply_overrides(RUN, ["rewards.air_time=3", "rewards.air_time.threshold_s=1"])
    assert run.rewards["air_time"] == AirTime(weight=3.0, threshold_s=1.0)
    assert "rewards.alive.weight: got [1], expected a number" in refused("rewards.alive=[1]")
    assert "noise: got 3, expected a mapping" in refused("noise=3")  # no shorthand


def test_null_takes_a_term_out_and_an_unknown_one_is_refused_with_what_there_is():
    assert list(apply_overrides(RUN, ["rewards.alive=null"]).rewards) == ["air_time"]
    expected = "configuration key 'rewards.airtime' is unknown; did you mean rewards.air_time? there is alive, air_time"
    assert refused("rewards.airtime=null") == expected
    assert refused(["rewards.alive=null", "rewards.alive=null"]).endswith("is unknown; there is air_time")


def test_null_or_nothing_empties_a_table_of_terms_and_what_comes_after_is_put_into_it():
    for text in ("rewards=null", "rewards={}"):
        assert apply_overrides(RUN, [text]).rewards == {}
        run = apply_overrides(RUN, ["rewards.alive=3", text, "rewards.flight={kind: AirTime}"])
        assert run.rewards == {"flight": AirTime()}
        assert "'rewards.alive' is unknown; there is none" in refused([text, "rewards.alive=3"])
    assert merge(RUN, {"rewards": {}}).rewards == merge(RUN, {"rewards": None}).rewards == {}
    assert list(merge(RUN, {"rewards": {"alive": 2}}).rewards) == ["alive", "air_time"]


@pytest.mark.parametrize("name", ["", "x" * 201, "\udcff", "a\nb", "\x1b[2J"])
def test_a_name_that_cannot_stand_in_a_file_is_refused_where_it_is_given(name):
    for changes in ({"rewards": {name: Reward()}}, {"words": {name: "a"}}, {"commands": {name: (0, 1)}}):
        with pytest.raises(SettingsError, match="expected") as caught:
            merge(RUN, changes)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    assert merge(RUN, {"rewards": {"x" * 200: Reward()}}).rewards["x" * 200] == Reward()


def test_a_text_that_cannot_stand_in_a_file_is_refused():
    for text in ("\udcff", "a\nb"):
        with pytest.raises(SettingsError, match=r"task: got the character .* expected plain text"):
            Run(task=text)


@dataclass(frozen=True, kw_only=True)
class Slope(Settings):
    """A number that moves."""

    end: float = 1.0

    def bounded(self) -> dict[str, float]:
        return {"end": self.end}


@dataclass(frozen=True, kw_only=True)
class Sloped(Settings):
    """A field that is a number or moves."""

    weight: Annotated[float | Slope, Bound(-2, 2, "a weight")] = 1.0


def test_a_bound_holds_for_settings_that_stand_in_the_place_of_a_number():
    assert Sloped(weight=Slope(end=-2)).weight == Slope(end=-2.0)
    with pytest.raises(SettingsError, match=r"weight\.end: got 3\.0, expected -2 to 2 \(a weight\)"):
        Sloped(weight=Slope(end=3))
    with pytest.raises(SettingsError, match=r"weight\.end: got 3\.0"):
        merge(Sloped(weight=Slope()), {"weight": {"end": 3}})


def test_a_text_may_have_a_least_length():
    @dataclass(frozen=True, kw_only=True)
    class Named(Settings):
        name: Annotated[str, Bound(1, 8, "characters")]

    with pytest.raises(SettingsError, match="name: got '', expected a string of 1 to 8 characters"):
        Named(name="")


def test_a_new_term_says_its_kind():
    run = apply_overrides(RUN, ["rewards.flight={kind: AirTime, weight: -1}"])
    assert run.rewards["flight"] == AirTime(weight=-1.0) and list(run.rewards)[-1] == "flight"
    assert apply_overrides(RUN, ["rewards.flight.kind=AirTime", "rewards.flight.weight=-1"]) == run
    for text in ("rewards.flight=3", "rewards.flight.weight=3"):
        assert refused(text) == (
            "configuration key 'rewards.flight' is unknown; there is alive, air_time; "
            "a new one needs a kind, one of AirTime, Reward"
        )


def test_terms_taken_out_stay_out_when_the_plain_form_is_read():
    run = apply_overrides(RUN, ["rewards.alive=null"])
    assert from_dict(Run, run.to_dict()) == run
    assert from_dict(Run, Run(rewards={}).to_dict()).rewards == {}


def test_terms_given_in_python_may_be_settings_or_plain():
    run = Run(rewards={"a": Reward(weight=2), "b": {"kind": "AirTime"}})  # type: ignore[dict-item]
    assert run.rewards == {"a": Reward(weight=2.0), "b": AirTime()}
    assert merge(RUN, {"rewards": {"a": Reward(weight=2)}}).rewards["a"] == Reward(weight=2.0)


# ------------------------------------------------------------------ files


def test_a_file_is_read_over_the_defaults_and_overrides_over_that(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 5\nppo: {rate: 1e-3}\nrewards: {alive: null, air_time: 2}\nnoise:\n")
    run = load(Run, path, ["seed=6"])
    assert (run.seed, run.ppo.rate, run.rewards) == (6, 1e-3, {"air_time": AirTime(weight=2.0)})
    assert load(Run(fast=True), path).fast
    path.write_text("")
    assert load(Run, path) == RUN


def test_a_file_that_is_wrong_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    for text, words in (("sead: 5", "'sead' is unknown; did you mean seed?"), ("seed: [", "not YAML"), ("3", "(file)")):
        path.write_text(text)
        with pytest.raises(SettingsError) as caught:
            load(Run, path)
        assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    with pytest.raises(SettingsError, match=r"none\.yaml: no such file; expected a YAML configuration such as"):
        load(Run, tmp_path / "none.yaml")


def test_a_class_with_required_fields_is_loaded_from_its_file(tmp_path):
    path = tmp_path / "sums.yaml"
    path.write_text("name: x")
    assert load(Sums, path) == Sums(name="x")


class ShopError(SettingsError):
    """Of one package."""


@dataclass(frozen=True, kw_only=True)
class Shop(Settings):
    """Has its own error and noun."""

    ppo: Ppo = Ppo()
    error: ClassVar[type[SettingsError]] = ShopError
    noun: ClassVar[str] = "shop: "


def test_the_outermost_class_says_which_error_and_in_whose_name():
    for make in (lambda: merge(Shop(), {"ppo": {"envs": 0}}), lambda: Shop(ppo={"envs": 0})):  # type: ignore[arg-type]
        with pytest.raises(ShopError, match=r"^shop: ppo\.envs: got 0, expected 1 to 131072 \(environments\)$"):
            make()
    with pytest.raises(ShopError, match=r"^shop: 'pop' is unknown; did you mean ppo\?$"):
        merge(Shop(), {"pop": 1})
    with pytest.raises(ShopError, match="expected key=value"):
        apply_overrides(Shop(), ["x"])
