"""One machine for typed settings: what it takes, what it refuses and in which words."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.toolkit.run_settings import (
    RUN,
    AirTime,
    ChainedNoise,
    GaussianNoise,
    Noise,
    Ppo,
    Reward,
    Run,
    Sums,
    UniformNoise,
    refused,
)
from toolkit.errors import SettingsError, ToolkitError
from toolkit.settings import Settings, apply_overrides, from_dict, kinds, merge

# ------------------------------------------------------------------ types and bounds


def test_lists_become_tuples_whole_floats_integers_and_integers_floats():
    run = Run(hold=["a", "b"], seed=3.0, limit_s=2, duration_s=[1, 2], sizes=[1.0])  # type: ignore[arg-type]
    assert run.hold == ("a", "b") and run.duration_s == (1.0, 2.0) and run.sizes == (1,)
    assert (type(run.seed), type(run.limit_s), type(run.duration_s[0])) == (int, float, float)
    assert run == Run(hold=("a", "b"), seed=3, limit_s=2.0, duration_s=(1.0, 2.0), sizes=(1,))


def test_settings_have_a_hash_also_with_mappings_in_them_and_equal_ones_have_the_same():
    one, two = Run(words={"a": "b", "c": "d"}), Run(words={"c": "d", "a": "b"})
    assert hash(one) == hash(two) and one == two
    assert len({one, two, Run(words={"a": "c"})}) == 2


def test_a_mapping_in_settings_does_not_change_and_can_be_copied_and_pickled():
    for change in (
        lambda words: words.update(a="c"),
        lambda words: words.pop("a"),
        lambda words: words.__setitem__("a", "c"),
        lambda words: words.setdefault("b", "c"),
    ):
        run = Run(words={"a": "b"})
        with pytest.raises(TypeError, match="settings do not change"):
            change(run.words)
        assert run.words == {"a": "b"}
    assert copy.deepcopy(run) == run and pickle.loads(pickle.dumps(run)) == run


WRONG = [
    ({"seed": 1.5}, "configuration key seed: got 1.5, expected an integer"),
    ({"seed": True}, "seed: got True, expected an integer"),
    ({"seed": "1"}, "seed: got '1', expected an integer"),
    ({"seed": -1}, "configuration key seed: got -1, expected 0 to 4294967295 (a seed)"),
    ({"fast": 1}, "fast: got 1, expected true or false"),
    ({"task": 5}, "task: got 5, expected a string"),
    ({"task": None}, "task: got None, expected a string"),
    ({"name": "x" * 9}, "name: got 'xxxxxxxxx', expected a string of at most 8 characters"),
    ({"name": 5}, "name: got 5, expected a string of at most 8 characters"),
    ({"engine": "mjy"}, "engine: got 'mjy', expected auto, mujoco or mjx"),
    ({"engine": ["auto"]}, "engine: got ['auto'], expected auto, mujoco or mjx"),
    ({"limit_s": math.nan}, "limit_s: got nan, expected a number"),
    ({"limit_s": -math.inf}, "limit_s: got -inf, expected 0 to inf (seconds)"),
    ({"duration_s": [0.5, 0.1]}, "duration_s: got [0.5, 0.1], expected low at most high"),
    ({"duration_s": [0.5]}, "duration_s: got [0.5], expected a list of 2"),
    ({"duration_s": 3}, "duration_s: got 3, expected a list of 2"),
    ({"duration_s": [0, 1e4]}, "duration_s: got [0, 10000.0], expected 0 to 3600 (seconds)"),
    ({"duration_s": [0, math.inf]}, "expected 0 to 3600 (seconds)"),
    ({"duration_s": [0, "x"]}, "duration_s: got 'x', expected a number"),
    ({"commands": {"vx": [0, 11]}}, "commands.vx: got [0, 11], expected -10 to 10 (m/s)"),
    ({"commands": {"vx": 3}}, "commands.vx: got 3, expected a list of 2"),
    ({"commands": [1]}, "commands: got [1], expected a mapping of name to [low, high]"),
    ({"commands": {1: [0, 1]}}, "expected a mapping of name to [low, high]"),
    ({"words": {"a": 1}}, "words.a: got 1, expected a string"),
    ({"words": 3}, "words: got 3, expected a mapping of names"),
    ({"hold": "knee"}, "hold: got 'knee', expected a list"),
    ({"hold": [3]}, "hold[0]: got 3, expected a string"),
    ({"sizes": [8, 65]}, "sizes[1]: got 65, expected 1 to 64 (units)"),
    ({"scale": {"knee": 101}}, "scale.knee: got 101, expected 0 to 100 (a factor)"),
    ({"scale": -1}, "scale: got -1, expected 0 to 100 (a factor)"),
    ({"scale": [1]}, "scale: got [1], expected a number or a mapping of name to a number"),
    ({"folder": 3}, "folder: got 3, expected a path"),
    ({"ppo": {"noise_std": 10**400}}, "ppo.noise_std: got 1000"),
    ({"ppo": {"noise_std": math.inf}}, "ppo.noise_std: got inf, expected a number"),
    ({"ppo": {"envs": 10}}, "configuration key ppo.envs: got 10, expected a multiple of minibatches"),
    ({"ppo": 3}, "ppo: got 3, expected a mapping"),
    ({"noise": {"std": 11}}, "noise.std: got 11, expected 0 to 10 (rad)"),
    ([1], "(file): got [1], expected a mapping with task, name, engine"),
]


@pytest.mark.parametrize(("data", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_what_no_field_takes_is_refused_by_name_and_in_one_line(data, words):
    with pytest.raises(SettingsError) as caught:
        from_dict(Run, data)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert isinstance(caught.value, ToolkitError)


@pytest.mark.parametrize("data", [d for d, _ in WRONG if isinstance(d, dict) and not {"noise", "ppo"} & set(d)])
def test_construction_refuses_what_loading_refuses_in_the_same_words(data):
    with pytest.raises(SettingsError) as loaded:
        from_dict(Run, data)
    with pytest.raises(SettingsError) as made:
        Run(**data)
    assert str(made.value) == str(loaded.value)


def test_infinity_is_taken_where_the_bound_says_so():
    assert Run(limit_s=math.inf).limit_s == math.inf
    with pytest.raises(SettingsError, match=r"rate: got inf, expected 0 to 1"):
        Ppo(rate=math.inf)


def test_both_ends_of_a_bound_are_in_it():
    assert Run(seed=0).seed == 0 and Run(seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(SettingsError, match="4294967296"):
        Run(seed=2**32)


def test_a_field_outside_the_plain_form_is_neither_written_nor_read_nor_checked_and_stays():
    run = Run(cache=[1])
    assert "cache" not in run.to_dict()
    assert merge(run, {"seed": 1}).cache == [1]
    assert "'cache' is unknown" in refused("cache=[2]")


def test_a_rule_of_a_class_holds_when_made_loaded_merged_and_replaced():
    good = Sums(name="a", parts=(0.5, 0.5))
    for make in (
        lambda: Sums(name="a", parts=(0.6, 0.5)),
        lambda: from_dict(Sums, {"name": "a", "parts": [0.6, 0.5]}),
        lambda: merge(good, {"parts": [0.6, 0.5]}),
        lambda: dataclasses.replace(good, parts=(0.6, 0.5)),
        lambda: apply_overrides(good, ["parts=[0.6, 0.5]"]),
    ):
        with pytest.raises(SettingsError, match=r"parts: got \[0\.6, 0\.5\], expected a sum of at most 1"):
            make()


def test_many_overrides_are_checked_once():
    before = Sums.checked
    apply_overrides(Sums(name="a"), ["name=b", "parts=[0.1]", "name=c"])
    assert Sums.checked == before + 2  # when it is made, and when it is changed


def test_a_key_that_cannot_be_printed_is_shown_as_python_writes_it():
    with pytest.raises(SettingsError, match=r"^configuration key commands\.a\\nb: got the character '\\n'"):
        from_dict(Run, {"commands": {"a\nb": 3}})


@dataclass(frozen=True, kw_only=True)
class Whole(Settings):
    """Has a required section."""

    ppo: Ppo


def test_null_for_a_section_without_a_default_is_refused_and_for_another_changes_nothing():
    with pytest.raises(SettingsError, match="ppo: got None, expected a mapping"):
        from_dict(Whole, {"ppo": None})
    assert from_dict(Run, {"ppo": None, "noise": None}) == RUN
    assert from_dict(Whole, {"ppo": {}}) == Whole(ppo=Ppo())


def test_a_missing_field_is_named_with_what_it_takes():
    with pytest.raises(SettingsError, match="configuration key name: is missing, expected a string"):
        from_dict(Sums, {"parts": []})


# ------------------------------------------------------------------ unknown names


def test_an_unknown_key_is_refused_and_the_nearest_named():
    assert refused("ppo.enfs=3") == "configuration key 'ppo.enfs' is unknown; did you mean ppo.envs?"
    assert "known keys: envs, minibatches, rate, noise_std" in refused("ppo.xyz=3")
    assert "'1' is unknown" in refused("1=3")


def test_a_key_of_another_section_is_found_there():
    assert refused("envs=3") == "configuration key 'envs' is unknown; did you mean ppo.envs?"
    assert "did you mean rewards.air_time.threshold_s?" in refused("ppo.threshold_s=1")


def test_a_key_that_many_sections_have_is_found_in_none_of_them():
    three = apply_overrides(RUN, ["rewards.low={kind: Reward}"])
    assert "did you mean rewards.alive.weight or rewards.air_time.weight or rewards.low.weight?" in refused(
        "ppo.weight=1", three
    )
    four = apply_overrides(three, ["rewards.high={kind: Reward}"])
    assert refused("ppo.weight=1", four).endswith("known keys: envs, minibatches, rate, noise_std")


def test_a_path_given_to_merge_stands_before_every_key():
    with pytest.raises(SettingsError, match=r"'task\.ppo\.enfs' is unknown; did you mean task\.ppo\.envs\?"):
        merge(RUN, {"ppo": {"enfs": 1}}, "task")
    with pytest.raises(SettingsError, match=r"key task\.ppo\.envs: got 0"):
        merge(RUN, {"ppo": {"envs": 0}}, "task")


# ------------------------------------------------------------------ kinds


def test_a_field_takes_any_kind_of_its_class_and_says_which_it_is():
    run = merge(RUN, {"noise": {"kind": "UniformNoise", "span": [-2, 2]}})
    assert run.noise == UniformNoise(span=(-2.0, 2.0))
    assert run.to_dict()["noise"] == {"kind": "UniformNoise", "span": [-2.0, 2.0]}
    assert merge(run, {"noise": {"span": [0, 1]}}).noise == UniformNoise(span=(0.0, 1.0))
    # the same kind merges, another begins anew
    assert merge(run, {"noise": {"kind": "UniformNoise"}}).noise == run.noise
    assert apply_overrides(run, ["noise.kind=GaussianNoise", "noise.std=2"]).noise == GaussianNoise(std=2.0)


def test_the_declared_class_itself_needs_no_kind():
    assert RUN.to_dict()["rewards"] == {
        "alive": {"weight": 1.0},
        "air_time": {"kind": "AirTime", "weight": 0.5, "threshold_s": 0.4},
    }


def test_kinds_inside_kinds_survive_the_plain_form():
    noise = ChainedNoise(parts=(GaussianNoise(std=1), ChainedNoise(parts=(UniformNoise(),))))
    run = Run(noise=noise)
    assert from_dict(Run, json.loads(json.dumps(run.to_dict()))) == run
    assert run.to_dict()["noise"]["parts"][0] == {"kind": "GaussianNoise", "std": 1.0}
    with pytest.raises(SettingsError, match=r"noise\.parts\[1\]\.std: got -1, expected 0 to 10 \(rad\)"):
        merge(
            run,
            {"noise": {"parts": [{"kind": "GaussianNoise"}, {"kind": "GaussianNoise", "std": -1}]}},
        )


def test_the_kind_and_its_fields_may_be_given_in_any_order():
    for words in (["noise.kind=UniformNoise", "noise.span=[0,1]"], ["noise.span=[0,1]", "noise.kind=UniformNoise"]):
        assert apply_overrides(RUN, words).noise == UniformNoise(span=(0.0, 1.0))
    last = ["noise={kind: UniformNoise, span: [0, 1]}", "noise.kind=GaussianNoise", "noise.std=2"]
    assert apply_overrides(RUN, last).noise == GaussianNoise(std=2.0)
    assert "'noise.std' is unknown; known keys: span" in refused(["noise.std=2", "noise.kind=UniformNoise"])


def test_an_unknown_kind_names_the_nearest_and_all():
    text = refused("noise.kind=GausianNoise")
    assert text == (
        "configuration key noise.kind: got 'GausianNoise'; did you mean GaussianNoise? "
        "there is ChainedNoise, GaussianNoise, UniformNoise"
    )
    assert "noise.kind: got 'Noise'; " in refused("noise.kind=Noise")  # nobody makes the base
    assert "rewards.new.kind: got 3; there is AirTime, Reward" in refused("rewards.new={kind: 3}")


def test_without_a_kind_where_one_is_needed_those_there_are_are_named():
    assert (
        "extra: got no kind, expected a mapping with a kind, one of ChainedNoise, GaussianNoise, UniformNoise"
        in refused("extra.std=3")
    )
    with pytest.raises(TypeError, match="abstract"):
        Noise()  # type: ignore[abstract]


def test_an_optional_field_is_given_and_taken_away():
    run = merge(RUN, {"extra": {"kind": "GaussianNoise"}})
    assert run.extra == GaussianNoise() and RUN.to_dict()["extra"] is None
    assert merge(run, {"extra": None}).extra is None
    assert apply_overrides(run, ["extra=null", "extra.kind=UniformNoise"]).extra == UniformNoise()
    assert from_dict(Run, run.to_dict()) == run


def test_another_class_of_settings_is_refused():
    with pytest.raises(SettingsError, match=r"noise: got .*Ppo\(.*expected a mapping|noise: got Ppo.*expected a Noise"):
        Run(noise=Ppo())  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Shape(Settings):
    """A base for two kinds of one name."""


def test_two_kinds_of_one_name_are_an_error_that_says_where_both_are():
    one = type("Round", (Shape,), {"__module__": "shop.a"})
    two = type("Round", (Shape,), {"__module__": "shop.b"})
    with pytest.raises(SettingsError, match=r"two kinds of Shape have the name Round: in shop\.[ab] and in shop\.[ab]"):
        kinds(Shape)
    del one, two


def test_a_class_that_is_new_is_found_among_the_kinds():
    @dataclass(frozen=True, kw_only=True)
    class LateNoise(Noise):
        def spread(self) -> float:
            return 0.0

    assert merge(RUN, {"noise": {"kind": "LateNoise"}}).noise == LateNoise()


# ------------------------------------------------------------------ plain form


def test_the_plain_form_is_json_and_its_digest_knows_every_bit():
    run = Run(limit_s=1.0)
    assert json.loads(json.dumps(run.to_dict(), allow_nan=False)) == run.to_dict()
    assert run.to_dict()["duration_s"] == [0.1, 0.5] and run.to_dict()["folder"] == "runs"
    other = dataclasses.replace(run, ppo=dataclasses.replace(run.ppo, rate=math.nextafter(5e-4, 1)))
    assert other.digest != run.digest == Run(limit_s=1).digest


# a machine that has much else to do draws slowly
UNHURRIED = hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def _texts(most: int, least: int = 0) -> st.SearchStrategy[str]:
    """Text that can stand in a file: see toolkit.strict_json.check_text."""
    plain = st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"])
    return st.text(plain, min_size=least, max_size=most)


_numbers = st.floats(-10, 10)
_ranges = st.tuples(_numbers, _numbers).map(lambda pair: tuple(sorted(pair)))
_noises = st.recursive(
    st.builds(GaussianNoise, std=st.floats(0, 10)) | st.builds(UniformNoise, span=_ranges),
    lambda inner: st.builds(ChainedNoise, parts=st.lists(inner, max_size=3).map(tuple)),
    max_leaves=4,
)
_rewards = st.builds(Reward, weight=_numbers) | st.builds(AirTime, weight=_numbers, threshold_s=st.floats(0, 10))
_runs = st.builds(
    Run,
    task=_texts(9),
    engine=st.sampled_from(["auto", "mujoco", "mjx"]),
    seed=st.integers(0, 2**32 - 1),
    fast=st.booleans(),
    limit_s=st.floats(0, 1e300),
    scale=st.floats(0, 100) | st.dictionaries(_texts(3, 1), st.floats(0, 100)),
    hold=st.lists(_texts(4)).map(tuple),
    commands=st.dictionaries(_texts(4, 1), _ranges, max_size=3),
    ppo=st.builds(lambda n, k: Ppo(envs=n * k, minibatches=k), st.integers(1, 99), st.integers(1, 99)),
    noise=_noises,
    extra=st.none() | _noises,
    rewards=st.dictionaries(_texts(4, 1), _rewards, max_size=4),
)


@UNHURRIED
@given(_runs)
def test_the_plain_form_read_again_is_the_same_settings_with_the_same_digest(run: Run):
    back = from_dict(Run, json.loads(json.dumps(run.to_dict())))
    assert back == run and hash(back) == hash(run) and back.digest == run.digest
    assert merge(run, {}) == run and Run.from_dict(run.to_dict(), base=run) == run


_words = st.sampled_from(["ppo", "seed", "noise", "kind", "rewards", "commands", "std", "alive", "a\nb"])
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(_words, inner),
)


@UNHURRIED
@given(_plain)
def test_any_plain_data_give_settings_or_one_line(data: Any):
    try:
        run = from_dict(Run, data)
    except SettingsError as error:
        assert "\n" not in str(error)
    else:
        assert from_dict(Run, run.to_dict()) == run
