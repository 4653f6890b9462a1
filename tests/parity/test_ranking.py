"""Ranking measures against loops over pairs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from ckv_testing.runs import scored

from ckv_export.parity.ranking import auc, kendall_tau, ndcg, order, overlap, ranking_report


def slow_tau(a: list[float], b: list[float]) -> float | None:
    concordant = discordant = only_a = only_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        x, y = a[i] - a[j], b[i] - b[j]
        concordant += x * y > 0
        discordant += x * y < 0
        only_a += x == 0 and y != 0
        only_b += x != 0 and y == 0
    pairs = concordant + discordant
    below = math.sqrt((pairs + only_a) * (pairs + only_b))
    return None if below == 0 else (concordant - discordant) / below


@pytest.mark.parametrize("size", [2, 3, 8, 30])
def test_kendall_tau_is_that_of_all_pairs(size: int, rng: np.random.Generator):
    for _ in range(20):
        a, b = rng.integers(0, 6, (2, size)).astype(np.float64)
        wanted = slow_tau(list(a), list(b))
        assert kendall_tau(a, b) == (None if wanted is None else pytest.approx(wanted))


def test_kendall_tau_of_the_same_and_the_opposite_order(rng: np.random.Generator):
    scores = rng.permutation(10).astype(np.float64)
    assert kendall_tau(scores, scores * 3) == pytest.approx(1.0)
    assert kendall_tau(scores, -scores) == pytest.approx(-1.0)


def slow_auc(scores: list[float], labels: list[float]) -> float:
    pairs = [
        1.0 if s > t else 0.5 if s == t else 0.0
        for s, x in zip(scores, labels, strict=True)
        for t, y in zip(scores, labels, strict=True)
        if x == 1 and y == 0
    ]
    return sum(pairs) / len(pairs)


def test_auc_is_that_of_all_pairs(rng: np.random.Generator):
    scores = rng.integers(0, 10, 60).astype(np.float32)
    labels = rng.integers(0, 2, 60).astype(np.float32)
    assert auc(scores, labels) == pytest.approx(slow_auc(list(scores), list(labels)))
    assert auc(scores, np.ones(60)) is None
    assert auc(np.full(60, np.nan), labels) is None


def test_lower_position_wins_a_tie():
    assert order(np.array([1.0, 2.0, 2.0, 0.0])).tolist() == [1, 2, 0, 3]


def slow_ndcg(got: list[float], truth: list[float], top: int) -> float:
    def dcg(positions: list[int]) -> float:
        gains = [truth[p] - min(truth) for p in positions[:top]]
        return sum(g / math.log2(rank + 2) for rank, g in enumerate(gains))

    ranked, ideal = (
        sorted(range(len(s)), key=lambda p, s=s: (-s[p], p)) for s in (got, truth)
    )  # fmt: skip
    return dcg(ranked) / dcg(ideal)


@pytest.mark.parametrize("top", [1, 3, 10, 50])
def test_ndcg_and_overlap(top: int, rng: np.random.Generator):
    truth = rng.standard_normal(20)
    got = truth + 0.3 * rng.standard_normal(20)
    assert ndcg(got, truth, top) == pytest.approx(slow_ndcg(list(got), list(truth), top))
    assert ndcg(truth, truth, top) == pytest.approx(1.0)
    wanted = set(np.argsort(-got)[:top]) & set(np.argsort(-truth)[:top])
    assert overlap(got, truth, top) == len(wanted) / min(top, 20)
    assert ndcg(got, np.ones(20), top) == 1.0, "every order is as good"


def test_report_is_the_mean_over_users(rng: np.random.Generator):
    truth = rng.random((5, 12)).astype(np.float32)
    got = truth + rng.normal(0, 0.2, (5, 12)).astype(np.float32)
    labels = rng.integers(0, 2, (5, 12)).astype(np.float32)
    single = rng.random((3, 1)).astype(np.float32)
    runs = [
        # Fed the reference's rows it ranks rightly; what users get counts.
        replace(scored(truth[:2], truth[:2], labels[:2]), served={"score": got[:2]}),
        scored(got[2:], truth[2:], labels[2:]),
        scored(single, single),
    ]
    found = ranking_report(runs, 4)
    rows = [(g.astype(np.float64), t.astype(np.float64)) for g, t in zip(got, truth, strict=True)]
    assert found.users == 5, "one candidate has no order"
    assert found.ndcg == pytest.approx(np.mean([slow_ndcg(list(g), list(t), 4) for g, t in rows]))
    assert found.kendall == pytest.approx(np.mean([slow_tau(list(g), list(t)) for g, t in rows]))
    assert found.least_kendall == pytest.approx(min(slow_tau(list(g), list(t)) for g, t in rows))
    flat = labels.ravel().tolist()
    assert found.auc == pytest.approx(slow_auc(got.ravel().tolist(), flat))
    assert found.auc_delta == pytest.approx(
        slow_auc(got.ravel().tolist(), flat) - slow_auc(truth.ravel().tolist(), flat)
    )


def test_report_of_nothing():
    assert ranking_report([], 10).to_dict() == {
        "top": 10, "users": 0, "ndcg": None, "overlap": None, "kendall": None,
        "least_kendall": None, "auc": None, "auc_truth": None, "auc_delta": None,
    }  # fmt: skip
    nan = np.full((2, 3), np.nan, np.float32)
    assert ranking_report([scored(nan, np.ones((2, 3), np.float32))], 10).users == 0
