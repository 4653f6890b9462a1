"""Drawn lengths, ids and buckets."""

from __future__ import annotations

import numpy as np
import pytest

from ckv_export.bench.traffic import (
    bucket_of,
    buckets,
    history_lengths,
    padding_waste,
    zipf_ids,
)
from ckv_export.errors import InputError


def test_padding_waste_is_what_a_loop_counts(rng: np.random.Generator):
    sizes = buckets(1000)
    assert sizes == (125, 250, 500, 1000)
    lengths = [0, 1, 125, 126, 1000, *history_lengths(200, 1000, rng)]
    waste = padding_waste(lengths, sizes)
    padded, counts = 0, dict.fromkeys(sizes, 0)
    for length in lengths:
        bucket = next(s for s in sizes if length <= s)
        padded, counts[bucket] = padded + bucket, counts[bucket] + 1
    assert waste.padded == padded
    assert waste.by_bucket == counts
    assert waste.share == pytest.approx(1 - sum(lengths) / padded)


def test_no_events_waste_nothing_and_too_many_are_refused():
    assert padding_waste([], (4,)).share == 0.0
    assert buckets(1000) == (125, 250, 500, 1000)
    assert buckets(0) == (0,)
    assert padding_waste([0, 0], buckets(0)).to_dict()["share_padding"] == 0.0
    assert buckets(1) == (1,)
    assert buckets(3) == (1, 2, 3)
    with pytest.raises(InputError, match="1001 events fits none of the buckets 500, 1000"):
        bucket_of(1001, (500, 1000))


def test_lengths_have_a_long_tail(rng: np.random.Generator):
    assert history_lengths(3, 0, rng) == [0, 0, 0]
    assert 15 < np.median(history_lengths(4000, 1000, rng, typical=20.0)) < 25
    lengths = history_lengths(4000, 1000, rng)
    assert min(lengths) >= 0
    assert max(lengths) == 1000
    assert 80 < np.median(lengths) < 125
    assert np.mean(lengths) > 1.4 * np.median(lengths)


@pytest.mark.parametrize("vocab", [1, 2, 3, 10, 5000, 10**7])
def test_ids_are_real_ones_and_few_are_popular(vocab: int, rng: np.random.Generator):
    ids = zipf_ids(vocab, (50, 100), rng)
    assert ids.dtype == np.int32
    assert ids.min() >= min(1, vocab - 1)
    assert ids.max() < max(vocab, 1)
    if vocab >= 5000:
        _, counts = np.unique(ids, return_counts=True)
        # The 10 most popular of thousands: by a Zipf law about a third, evenly next to none.
        assert 0.15 < np.sort(counts)[-10:].sum() / ids.size < 0.6
    elif vocab > 2:
        assert set(ids.ravel().tolist()) == set(range(1, vocab))


def test_popularity_falls_as_the_law_says_and_ranks_are_scattered(rng: np.random.Generator):
    """Share of the k most popular: an integral of rank^-1.1 up to k + 1, over that of all ranks."""
    vocab, draws = 1001, 200_000
    counts = np.bincount(zipf_ids(vocab, (draws,), rng), minlength=vocab)[1:]
    by_rank = np.sort(counts)[::-1]
    for k in (1, 3, 10, 100, 500):
        expected = (1 - (k + 1) ** -0.1) / (1 - vocab**-0.1)
        assert by_rank[:k].sum() / draws == pytest.approx(expected, abs=0.01)
    popular = np.sort(np.argsort(counts)[::-1][:10])
    assert np.diff(popular).min() > 10, "popular items lie side by side in memory"


def test_the_same_ids_are_popular_in_history_and_candidates(rng: np.random.Generator):
    first, second = (np.bincount(zipf_ids(5000, (20_000,), rng)) for _ in range(2))
    assert first.argmax() == second.argmax()
    assert set(np.argsort(first)[-3:]) == set(np.argsort(second)[-3:])


def test_the_law_holds_for_as_many_ids_as_an_int32_counts(rng: np.random.Generator):
    vocab = 2**31 - 1
    ids = zipf_ids(vocab, (20_000,), rng)
    assert ids.min() >= 1
    assert ids.max() < vocab
    assert (ids > vocab // 2).mean() > 0.1  # scattered over all of it, not wrapped around
