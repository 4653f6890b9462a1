"""Selection, argmax and attention against loops, ties and empty axes first."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckv_export.model import ops
from ckv_export.model.pooled import pool_gather_concat

# -- select_largest


def selected_by_loops(row: list[float], count: int) -> list[bool]:
    order = sorted(range(len(row)), key=lambda t: (-row[t], t))[:count]
    return [t in order for t in range(len(row))]


def check_selection(scores: np.ndarray, count: int) -> None:
    got = ops.select_largest(torch.from_numpy(scores), count)
    assert got.dtype == torch.bool
    assert got.shape == scores.shape
    for at in np.ndindex(scores.shape[:-1]):
        row = scores[at].tolist()
        assert got[at].tolist() == selected_by_loops(row, count), (row, count)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("distinct", [1, 2, 3, 1000])
def test_selection_is_a_stable_sort_cut_off(count: int, distinct: int, rng: np.random.Generator):
    for size in {0, 1, count - 1, count, count + 1, 2 * count, 4 * count}:
        scores = rng.integers(-distinct, distinct + 1, (3, 4, size)).astype(np.float32)
        check_selection(scores, count)


@given(
    st.lists(st.sampled_from([-1e9, -1.5, -0.0, 0.0, 1e-30, 2.0, 1e30]), max_size=12),
    st.integers(1, 13),
)
@settings(max_examples=300, deadline=None)
def test_selection_with_extremes_and_signed_zeros(row: list[float], count: int):
    check_selection(np.array([row], np.float32).reshape(1, len(row)), count)


def test_all_equal_scores_select_the_lowest_positions():
    got = ops.select_largest(torch.zeros(2, 9), 4)
    assert got.tolist() == [[True] * 4 + [False] * 5] * 2


def test_selection_of_no_rows():
    assert ops.select_largest(torch.zeros(0, 3, 5), 2).shape == (0, 3, 5)


# -- first_argmax and first_position


def first_of_largest(row: list[float]) -> int:
    return max(range(len(row)), key=lambda j: (row[j], -j))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 12, 13, 36, 97])
def test_argmax_takes_the_lowest_position(rows: int, rng: np.random.Generator):
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    for distinct, groups in itertools.product((0, 1, 3, 1000), divisors):
        logits = rng.integers(-distinct, distinct + 1, (2, 5, rows)).astype(np.float32)
        got = ops.first_argmax(torch.from_numpy(logits), groups)
        assert got.dtype == torch.int32
        assert got.flatten().tolist() == [first_of_largest(r) for r in logits.reshape(10, rows)]


def test_argmax_of_no_events():
    assert ops.first_argmax(torch.zeros(2, 0, 6), 3).shape == (2, 0)
    assert ops.first_argmax(torch.zeros(0, 4, 6), 2).shape == (0, 4)


def test_argmax_of_infinite_logits():
    infinity = float("inf")
    logits = torch.tensor([[[-infinity] * 6, [0.0, -infinity, infinity, infinity, 1.0, infinity]]])
    assert ops.first_argmax(logits, 3).tolist() == [[0, 2]]


def test_position_of_the_first_hit():
    hits = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    assert ops.first_position(hits).tolist() == [1, 3, 0]


# -- pool rows


def test_pool_gather_concat_puts_the_pool_part_first(rng: np.random.Generator):
    pool = rng.standard_normal((5, 3)).astype(np.float32)
    index = rng.integers(0, 5, (2, 4)).astype(np.int32)
    user = rng.standard_normal((2, 4, 2)).astype(np.float32)
    got = pool_gather_concat(*map(torch.from_numpy, (pool, index, user)))
    for b, t in np.ndindex(2, 4):
        expected = [*pool[index[b, t]], *user[b, t]]
        assert got[b, t].tolist() == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_pool_gather_concat_of_nothing(shape: tuple[int, int]):
    got = pool_gather_concat(
        torch.zeros(5, 3), torch.zeros(shape, dtype=torch.int32), torch.zeros(*shape, 2)
    )
    assert got.shape == (*shape, 5)


# -- attention


def attention_by_loops(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, heads: int, scale: bool
) -> np.ndarray:
    users, candidates, d = query.shape
    events, width = key.shape[1], d // heads
    out = np.zeros((users, candidates, d))
    for b, c, h in np.ndindex(users, candidates, heads):
        logits = []
        for n in range(events):
            dot = sum(
                float(query[b, c, h * width + j]) * float(key[b, n, h * width + j])
                for j in range(width)
            )
            logits.append((dot / math.sqrt(width) if scale else dot) if mask[b, n] else -1e9)
        top = max(logits, default=0.0)
        powers = [math.exp(x - top) for x in logits]
        for n, j in itertools.product(range(events), range(width)):
            weight = powers[n] / sum(powers)
            out[b, c, h * width + j] += weight * float(value[b, n, h * width + j])
    return out


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, heads: int, scale: bool
) -> np.ndarray:
    tensors = [torch.from_numpy(a) for a in (query, key, value, mask)]
    scaled = tensors[0] * ops.attention_scale(query.shape[-1], heads, scale)
    logits = ops.masked_logits(scaled, tensors[1], tensors[3], heads)
    return ops.weighted_values(logits, tensors[2], heads).numpy()


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("events", [0, 1, 5])
def test_masked_attention(events: int, heads: int, scale: bool, rng: np.random.Generator):
    query, key, value = (
        rng.standard_normal((4, n, 6)).astype(np.float32) for n in (3, events, events)
    )
    mask = rng.random((4, events)) < 0.5
    mask[0], mask[1] = True, False
    got = attend(query, key, value, mask, heads, scale)
    expected = attention_by_loops(query, key, value, mask, heads, scale)
    # Values are around 1, and a handful of fp32 products and powers round by some 1e-7 each.
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)
    if events:
        np.testing.assert_allclose(got[1], np.tile(value[1].mean(0), (3, 1)), rtol=0, atol=1e-6)


def test_a_masked_logit_is_exact_however_large_the_product(rng: np.random.Generator):
    """Selections compare masked logits: they must tie, and weigh the same where all are masked."""
    query, key = (torch.from_numpy(rng.standard_normal((2, n, 6))).float() for n in (3, 5))
    mask = torch.from_numpy(rng.random((2, 5)) < 0.5)
    got = ops.masked_logits(1e4 * query, key, mask, 2)
    for b, h, c, n in np.ndindex(*got.shape):
        part = slice(3 * h, 3 * h + 3)
        dot = 1e4 * float(query[b, c, part].double() @ key[b, n, part].double())
        if mask[b, n]:
            assert got[b, h, c, n].item() == pytest.approx(dot, abs=0.1)
        else:
            assert got[b, h, c, n].item() == ops.MASKED


def test_attention_to_nothing_is_zero():
    got = attend(*np.zeros((3, 2, 0, 4), np.float32), np.zeros((2, 0), bool), 2, True)
    assert got.shape == (2, 0, 4)
    one = np.ones((2, 1, 4), np.float32)
    empty = np.ones((2, 0, 4), np.float32)
    assert attend(one, empty, empty, np.ones((2, 0), bool), 2, True).tolist() == [[[0.0] * 4]] * 2


def test_excluded_event_weighs_nothing_beside_a_masked_one():
    """What a search leaves out stays out even where everything it keeps is masked."""
    logits = torch.tensor([[[[ops.MASKED, ops.EXCLUDED, ops.MASKED]]]])
    value = torch.tensor([[[1.0], [float(2**100)], [3.0]]])
    assert ops.weighted_values(logits, value, 1).item() == 2.0


def test_heads_are_consecutive_columns():
    x = torch.arange(6.0).reshape(1, 1, 6)
    assert ops.split_heads(x, 2).tolist() == [[[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]]
    assert torch.equal(ops.merge_heads(ops.split_heads(x, 3)), x)
