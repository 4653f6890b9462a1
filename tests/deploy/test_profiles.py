"""Several shape ranges for one engine: written, read, and refused where nobody fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ckv_testing.draw import make_spec

from ckv_export.contract import EventForm, Profile, Range
from ckv_export.deploy.profiles import NamedRanges, read_profiles, resolve
from ckv_export.errors import InputError
from ckv_export.manifest import ItemTable, Manifest


@pytest.fixture
def manifest() -> Manifest:
    """Of a SIM with a window of 5 events and histories of up to 20."""
    spec = dataclasses.replace(make_spec("sim"), window=5, max_len=20)
    return Manifest(
        "toy", "ab" * 32, spec, EventForm(), None, Profile.default(spec), source={}, versions={},
        operators={}, notes=(), timings={}, parity=None,
    )  # fmt: skip


def test_one_profile_by_default(manifest: Manifest):
    assert resolve((), manifest.profile, manifest) == (manifest.profile,)


def test_ranges_replace_those_of_the_bundle(manifest: Manifest):
    wishes = [NamedRanges.parse("history=0:1:3,batch=1:8:64"), NamedRanges.parse("S=4:20,C=7")]
    short, long = resolve(wishes, manifest.profile, manifest)
    assert (short.axes["S"], short.axes["B"]) == (Range(0, 1, 3), Range(1, 8, 64))
    # The cached events follow: a window of 5 caches 4.
    assert short.axes["K"] == Range(0, 1, 3)
    assert long.axes["K"] == Range(4, 4, 4)
    assert long.axes["C"] == Range(7, 7, 7)
    for axis in ("T", "B"):
        assert long.axes[axis] == manifest.profile.axes[axis]


def test_text_comes_back(manifest: Manifest):
    wish = NamedRanges.parse("history = 0:1:3, batch=8")
    assert wish.axes == (("S", Range(0, 1, 3)), ("B", Range(8, 8, 8)))
    again = NamedRanges.parse(str(wish))
    assert again.axes == wish.axes


def test_yaml_files(tmp_path: Path, manifest: Manifest):
    """1:8:32 is a number to the base of 60 in YAML; here it is a range."""
    path = tmp_path / "profiles.yaml"
    path.write_text("short: {history: 0:10, batch: 1:8:32}\nlong:\n  history: 20\n  T: 0\n")
    short, long = read_profiles(path)
    assert (short.name, long.name) == ("short", "long")
    assert dict(short.axes) == {"S": Range(0, 10, 10), "B": Range(1, 8, 32)}
    assert dict(long.axes) == {"S": Range(20, 20, 20), "T": Range(0, 0, 0)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must hold profiles by name"),
        ("[]", "must hold profiles by name"),
        ("{}", "must hold profiles by name"),
        ("short: 3", "must hold profiles by name"),
        ("short: {history: a}", "profile 'short', history: a range is written"),
        ("short: {history: [1, 2]}", "profile 'short', history: a range is written"),
        ("short: {history: 1, S: 2}", "profile 'short' has two ranges of the axis S"),
        ("short: {history: 5:1}", "profile 'short', history: a range must satisfy"),
        ("short: [}", "can't be read"),
        ("short: {history: 1}\nshort: {history: 2}", "'short' stands there twice.*line 2"),
        ("short: {history: 1, history: 2}", "'history' stands there twice"),
        ("? [a]\n: {S: 1}\n? [a]\n: {S: 2}", "can't be read"),
        pytest.param("[" * 500, "can't be read", id="deep"),
        pytest.param("\x01", "can't be read", id="control"),
        ("a: !!python/object/apply:os.system ['true']", "must hold profiles by name"),
    ],
)
def test_odd_yaml_files(tmp_path: Path, text: str, says: str):
    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_profiles(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path):
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe\x00{")
    (tmp_path / "folder.yaml").mkdir()
    for name, why in (
        ("odd.yaml", "'utf-8' codec"),
        ("no.yaml", "there is no such file or folder$"),
        ("folder.yaml", "Is a directory$"),
    ):
        with pytest.raises(InputError, match=f"{name} can't be read: {why}"):
            read_profiles(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("history", "a profile is written AXIS=MIN:OPT:MAX,..., got 'history'"),
        ("history=1,", "a profile is written"),
        ("=", "profile '=', : a range is written"),
        ("batch=8,history=1,B=9", "has two ranges of the axis B: leave one"),
        ("batch=8,batch=8", "has two ranges of the axis B: leave one"),
        ("history=2:1", "profile 'history=2:1', history: a range must satisfy"),
    ],
)
def test_odd_texts(text: str, says: str):
    with pytest.raises(InputError, match=says):
        NamedRanges.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("histroy=1:2", r"no axis 'histroy'; did you mean 'history'.*S of 'event_item_id'"),
        ("I=1:2", r"no axis 'I'.*; the axes are B of"),
        ("history_mask=1:2", r"'history_mask' is an input; give ranges to its axes B, S instead"),
        ("cache_k_user=1:2", r"'cache_k_user' is an input; give ranges to its axes B, K instead"),
        ("candidates=0", r"input 'candidate_item_id' and \d+ more would never hold candidates"),
        ("batch=0:0", r"would never hold users: the range of B is 0:0:0"),
        ("K=5:6", r"no history fits input 'cache_k_index' and .* 0 to 20 events .* 0 to 4 cached"),
        ("history=10:20,cached=0:3", r"no history fits .* have 4 to 4 cached ones"),
    ],
)
def test_profiles_that_nobody_fits_name_the_input(manifest: Manifest, text: str, says: str):
    with pytest.raises(InputError, match=says):
        resolve([NamedRanges.parse(text)], manifest.profile, manifest)


def test_the_profile_of_the_bundle_itself(manifest: Manifest):
    nobody = manifest.profile.replaced(manifest.model, {"C": Range(0, 0, 0)})
    with pytest.raises(InputError, match=r"the profile: input .* would never hold candidates"):
        resolve((), nobody, manifest)


def test_ranges_that_some_history_fits(manifest: Manifest):
    (profile,) = resolve([NamedRanges.parse("K=4:6")], manifest.profile, manifest)
    assert profile.axes["K"] == Range(4, 6, 6)


def test_the_item_table_has_as_many_rows_as_it_has(manifest: Manifest):
    table = dataclasses.replace(
        manifest, item_table=ItemTable(50, 8, "float32"), form=EventForm(item_key="item_id"),
        profile=manifest.profile.with_items(50),
    )  # fmt: skip
    for text in ("I=1:60", "I=50:60", "I=1:50"):
        resolve([NamedRanges.parse(text)], table.profile, table)
    with pytest.raises(InputError, match="the item table has 50 rows, which the range 1:2:2 of I"):
        resolve([NamedRanges.parse("I=1:2")], table.profile, table)
