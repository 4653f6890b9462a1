"""Verdicts on results made up for the purpose."""

from __future__ import annotations

import copy
import functools
import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckv_testing.results import result, timing, way

from ckv_export.bench.compare import compare, load
from ckv_export.errors import InputError


def pair(rng: np.random.Generator, factor: float) -> tuple[dict, dict]:
    return tuple(
        result(way("a", decode=timing(rng, 10 * f), request=timing(rng, 20))) for f in (1, factor)
    )


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.2, "slower"), (1.03, "same"), (1.0, "same"), (0.97, "same"), (0.8, "faster")],
)
def test_each_phase_is_judged(factor: float, verdict: str, rng: np.random.Generator):
    found = compare(*pair(rng, factor), 0.05)
    assert {r.phase: r.verdict for r in found.rows} == {"decode": verdict, "request": "same"}
    assert found.regressed == (verdict == "slower")
    (decode,) = (r for r in found.rows if r.phase == "decode")
    assert decode.interval.low <= decode.interval.ratio <= decode.interval.high
    assert decode.interval.ratio == pytest.approx(factor, rel=0.02)
    assert (decode.old_ms, decode.new_ms) == pytest.approx((10, 10 * factor), rel=0.01)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (("bundle", "fingerprint"), "fingerprint"),
        (("bundle", "precision"), "precision: fp32 and other"),
        (("settings", "threads"), "threads: 1 and other"),
        (("settings", "stored"), "stored: fp32 and other"),
        (("settings", "source"), "source: memory and other"),
        (("settings", "sizes", "history"), "differ in history: 1000 and other: measure"),
    ],
)
def test_what_measures_something_else_is_refused(
    place: tuple[str, ...], says: str, rng: np.random.Generator
):
    old, new = pair(rng, 1.0)
    part = functools.reduce(operator.getitem, place[:-1], new)
    part[place[-1]] = "other"
    with pytest.raises(InputError, match=says):
        compare(old, new, 0.05, any_machine=True)


def test_another_machine_is_refused_unless_asked_for(rng: np.random.Generator):
    old, new = pair(rng, 1.0)
    new["environment"]["machine"]["cpu"] = "other"
    with pytest.raises(InputError, match="cpu: c and other"):
        compare(old, new, 0.05)
    assert compare(old, new, 0.05, any_machine=True).notes == ("cpu: c and other",)
    new = copy.deepcopy(old)
    new["environment"]["machine"]["cores"] = 4
    with pytest.raises(InputError, match="cores: 2 and 4"):
        compare(old, new, 0.05)
    new = copy.deepcopy(old)
    new["environment"]["gpus"] = [{"name": "a GPU"}, {"name": "another"}]
    with pytest.raises(InputError, match=r"GPUs: none and a GPU, another\)"):
        compare(old, new, 0.05)
    new = copy.deepcopy(old)
    new["environment"]["versions"]["torch"] = "3"
    assert compare(old, new, 0.05).notes == ("torch 2 and 3",)


def test_too_few_windows_tell_nothing(rng: np.random.Generator):
    few, enough, new = (result(way("a", decode=timing(rng, 10, windows=n))) for n in (2, 3, 10))
    for pair_ in ((few, new), (new, few)):
        with pytest.raises(InputError, match="no way and phase in common"):
            compare(*pair_, 0.05)
    assert len(compare(enough, new, 0.05).rows) == 1


def test_what_only_one_result_has_is_passed_over(rng: np.random.Generator):
    ways = [way("a", decode=timing(rng, 10)), way("b", decode=timing(rng, 10))]
    more = way("a", decode=timing(rng, 10), request=timing(rng, 10))
    for old, new in ((ways[:1], [more, ways[1]]), ([more, ways[1]], ways[:1])):
        rows = compare(result(*old), result(*new), 0.05).rows
        assert [(row.way, row.phase) for row in rows] == [("a", "decode")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2, "ways": []}', "nul"])
def test_other_files_are_refused(text: str, tmp_path: Path):
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"old\.json is"):
        load(file)
    with pytest.raises(InputError, match=r"can't read the result .*: there is no such file"):
        load(tmp_path / "absent.json")
    file.write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match="is no result of ckv-export bench: it lacks 'ways'"):
        load(file)
    file.write_text(json.dumps(result() | {"schema_version": 2}))
    with pytest.raises(
        InputError, match="is a result of schema version 2, this ckv-export reads 1"
    ):
        load(file)
    file.write_text(json.dumps(result()))
    assert load(file)["settings"] == result()["settings"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("settings",), None),
        (("settings", "threads"), "1"),
        (("settings", "sizes", "history"), None),
        (("settings", "sizes", "batch"), 0),
        (("environment",), []),
        (("environment", "gpus"), {}),
        (("bundle", "fingerprint"), 1),
        (("ways",), {}),
        (("ways", 0), 1),
        (("ways", 0, "cache"), None),
        (("ways", 0, "phases"), []),
        (("ways", 0, "phases", "decode"), None),
        (("ways", 0, "phases", "decode", "p50_ms"), "10"),
        (("ways", 0, "phases", "decode", "mean_ms"), 0),
        (("ways", 0, "phases", "decode", "windows_ms"), [[]]),
        (("ways", 0, "phases", "decode", "windows_ms"), [[1.0, float("nan")]]),
    ],
)
def test_what_comparison_would_stumble_over_is_named(
    place: tuple, value: object, tmp_path: Path, rng: np.random.Generator
):
    changed = result(way("a", decode=timing(rng, 10)))
    part: Any = changed
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    file = tmp_path / "old.json"
    file.write_text(json.dumps(changed))
    named = "ways" if place[0] == "ways" else r"\.".join(place[:2])
    with pytest.raises(InputError, match=rf"is no result of ckv-export bench: it lacks {named}:"):
        load(file)
