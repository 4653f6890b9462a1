from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckv_export.cache import occupancy_of_counts, pool_occupancy, row_counts
from ckv_export.errors import EventsError, SpecError


def brute_force(events: list[int], rows: int) -> dict[str, float]:
    counts = Counter(events)
    shares = sorted((counts[r] / len(events) if events else 0.0 for r in range(rows)), reverse=True)
    entropy = -sum(p * math.log(p) for p in shares if p)
    return {
        "events": len(events),
        "rows_used": len(counts),
        "rows_dead": rows - len(counts),
        "used_share": len(counts) / rows,
        "entropy": entropy,
        "effective_rows": math.exp(entropy) if events else 0,
        "top_1_percent": sum(shares[: math.ceil(rows / 100)]),
        "top_10_percent": sum(shares[: math.ceil(rows / 10)]),
        "max_row_share": shares[0],
        "uniform_used_rows": rows * (1 - (1 - 1 / rows) ** len(events)),
    }


@given(st.data(), st.integers(1, 250))
def test_against_brute_force(data: st.DataObject, rows: int):
    events = data.draw(st.lists(st.integers(0, rows - 1), max_size=300))
    (use,) = pool_occupancy(np.array(events, np.int32), rows=rows)
    for name, value in brute_force(events, rows).items():
        assert getattr(use, name) == pytest.approx(value, abs=1e-9), name
    assert 0 <= use.normalised_entropy <= 1
    assert use.sorted_counts.sum() == len(events)
    json.dumps(use.to_dict(), allow_nan=False)


@given(
    st.integers(0, 4), st.integers(1, 3), st.integers(0, 6), st.integers(1, 9), st.integers(0, 99)
)
def test_layers_and_mask(users: int, layers: int, length: int, rows: int, seed: int):
    random = np.random.default_rng(seed)
    mask = random.random((users, length)) < 0.6
    index = random.integers(0, rows, (users, layers, length))
    index.transpose(0, 2, 1)[~mask] = rows + 7  # what is masked may be anything
    uses = pool_occupancy(index, mask, rows=rows, side="v")
    assert [u.layer for u in uses] == list(range(layers))
    for n, use in enumerate(uses):
        kept = [int(i) for i in index[:, n][mask]]
        assert use.side == "v"
        assert use.rows_used == len(set(kept))
        assert use.entropy == pytest.approx(brute_force(kept, rows)["entropy"], abs=1e-12)


def test_no_events_are_defined():
    (use,) = pool_occupancy(np.zeros(0, np.int32), rows=5)
    assert (use.events, use.rows_used, use.rows_dead) == (0, 0, 5)
    assert use.entropy == use.effective_rows == use.normalised_entropy == use.max_row_share == 0
    assert use.uniform_used_rows == 0


@pytest.mark.parametrize(("events", "even"), [(0, 0.0), (3, 1.0)])
def test_a_pool_of_one_row_is_used_evenly(events: int, even: float):
    (use,) = pool_occupancy(np.zeros(events, np.int32), rows=1)
    assert (use.normalised_entropy, use.uniform_used_rows) == (even, even)


def test_even_use_has_full_entropy():
    (use,) = pool_occupancy(np.arange(400, dtype=np.uint16) % 200, rows=200)
    assert use.normalised_entropy == pytest.approx(1)
    assert use.effective_rows == pytest.approx(200)
    assert (use.top_1_percent, use.top_10_percent) == pytest.approx((0.01, 0.1))


def test_counts_of_batches_add_up():
    index = np.random.default_rng(0).integers(0, 30, 100)
    both = row_counts(index[:60], rows=30) + row_counts(index[60:], rows=30)
    assert occupancy_of_counts(both[0]) == pool_occupancy(index, rows=30)[0]


@pytest.mark.parametrize("bad", [-1, 10])
def test_a_row_outside_the_pool_is_refused(bad: int):
    words = rf"K row numbers of layer 0 must lie in \[0, 10\), got {bad} and 0 more outside"
    with pytest.raises(EventsError, match=words):
        pool_occupancy(np.array([0, bad, 3]), rows=10)


@pytest.mark.parametrize(
    ("index", "mask", "words"),
    [
        (np.zeros(3), None, "whole numbers, got float64"),
        (np.zeros((2, 3), int), None, r"shape \[N\] or \[B, L, S\], got \[2, 3\]"),
        (np.zeros((2, 1, 3), int), np.ones((2, 4), bool), r"shape \[2, 3\], got \[2, 4\]"),
        (np.zeros(3, int), np.ones(4, bool), r"shape \[3\], got"),
        (np.zeros((1, 1, 3), int), np.ones(3, bool), r"shape \[1, 3\], got \[3\]"),
    ],
)
def test_wrong_shapes(index: np.ndarray, mask: np.ndarray | None, words: str):
    with pytest.raises(EventsError, match=words):
        pool_occupancy(index, mask, rows=10)


def test_a_side_without_a_pool_is_refused():
    with pytest.raises(SpecError, match="V side has no pool"):
        pool_occupancy(np.zeros(3, int), rows=0, side="v")
