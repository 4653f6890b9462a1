"""What is asked of a benchmark is refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckv_export.bench.request import BenchRequest, parse_sweep
from ckv_export.bench.workload import Sizes
from ckv_export.errors import InputError


def test_sweeps_of_one_axis_are_one():
    given = ["history=10,1", "batch=2", "history=5"]
    assert parse_sweep(given) == {"history": [10, 1, 5], "batch": [2]}
    assert parse_sweep([]) == {}


@pytest.mark.parametrize(
    "text", ["history", "history=", "=1", "depth=1", "batch=1,", "batch=\u00b2"]
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(InputError, match=r"a sweep is written AXIS=N,N,\.\.\. with an axis of"):
        parse_sweep([text])


@pytest.mark.parametrize("text", ["candidates=5,0", "history=99999999999999999999"])
def test_a_size_of_a_sweep_that_is_none_is_refused(text: str):
    with pytest.raises(InputError, match="must lie in"):
        BenchRequest(Path("no bundle"), Sizes(), sweep=parse_sweep([text]))
