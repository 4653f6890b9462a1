"""Ranges as they are written, and profiles of a model."""

from __future__ import annotations

import json

import pytest
from ckv_testing.draw import make_spec
from hypothesis import given
from hypothesis import strategies as st

from ckv_export.contract import CacheSpec, Profile, Range
from ckv_export.errors import SpecError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8", (8, 8, 8)), ("1:8", (1, 8, 8)), ("1:4:8", (1, 4, 8)), ("0", (0, 0, 0)), ("0:0:1", None)],
)
def test_ranges_are_read(text: str, expected: tuple[int, int, int] | None):
    assert Range.parse(text) == Range(*(expected or (0, 0, 1)))


@pytest.mark.parametrize("text", ["", ":", "a", "1:2:3:4", "1.5", "1::2", "1-2"])
def test_texts_that_are_no_range(text: str):
    with pytest.raises(SpecError) as error:
        Range.parse(text)
    assert "written N, MIN:MAX or MIN:OPT:MAX in whole numbers" in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["3:2", "-1:2", "1:5:4", "2:1:4"])
def test_ranges_out_of_order_are_refused(text: str):
    with pytest.raises(SpecError, match="0 <= min <= opt <= max, got"):
        Range.parse(text)


def test_ranges_beyond_any_size_are_refused():
    assert Range.parse("0:1:2147483647").max == 2**31 - 1
    with pytest.raises(SpecError, match=r"must end below 2147483648, .* got 0:1:2147483648"):
        Range.parse("0:1:2147483648")


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3).map(sorted))
def test_range_reads_what_it_prints(ends: list[int]):
    assert Range.parse(str(Range(*ends))) == Range(*ends)


def test_default_profile_is_the_models_own():
    spec = make_spec("sim", window=5, max_len=30)
    profile = Profile.default(spec)
    assert list(profile.axes) == ["B", "S", "K", "T", "C"]
    assert profile.axes["S"] == Range(0, 30, 30)
    assert profile.axes["K"] == Range(0, 4, 4)
    assert profile.axes["T"] == Range(0, 1, 30)
    assert profile.axes["C"] == Range(1, 100, 1024)
    assert profile.with_items(7).axes == {**profile.axes, "I": Range(7, 7, 7)}
    assert Profile.default(make_spec("sim", window=50, max_len=30)).axes["K"] == Range(0, 30, 30)
    assert Profile.default(make_spec("sim", max_len=1)).axes["T"] == Range(0, 1, 1)


def test_k_follows_s_until_it_is_given():
    spec = make_spec("sim", window=5)
    default = Profile.default(spec)
    followed = default.replaced(spec, {"S": Range(2, 3, 100)})
    assert followed.axes["K"] == Range(2, 3, 4)
    assert followed.axes["S"] == Range(2, 3, 100)
    given_too = default.replaced(spec, {"S": Range(2, 3, 100), "K": Range(0, 0, 1)})
    assert given_too.axes["K"] == Range(0, 0, 1)
    assert default.replaced(spec, {"B": Range(1, 1, 1)}).axes["K"] == default.axes["K"]
    assert default == Profile.default(spec), "the profile itself must stay as it was"


def test_unknown_axis_of_a_profile_is_refused():
    spec = make_spec("sim")
    with pytest.raises(SpecError, match="has the axes B, S, K, T, C, got 'N'"):
        Profile.default(spec).replaced(spec, {"N": Range(1, 1, 1)})


def test_profile_gives_three_shapes_and_survives_json():
    spec = make_spec("sim", "K not shared, biases, 4 heads")
    profile = Profile.default(spec)
    tensor = CacheSpec.of(spec).named("cache", "K")[1]
    assert tensor.name == "cache_k_user"
    assert profile.shapes(tensor) == ((1, 1, 0, 16), (1, 1, 4, 16), (64, 1, 4, 16))
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
