"""The operators that read a pool, as PyTorch computes them; their ONNX bodies are tested apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckv_export.model.pooled import (
    pool_gather_concat,
    pooled_attention,
    pooled_pointwise_attention,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(2, 3, 4), (1, 1, 1), (3, 2, 0), (2, 0, 3), (0, 2, 3)]


def drawn(rng: np.random.Generator, users: int, candidates: int, events: int):
    """Query and the two pooled sides: 8 wide, 5 and 7 rows, user parts of 2 and 3."""
    shapes = {
        "query": (users, candidates, 8),
        **{"pool_k": (5, 6), "user_k": (users, events, 2)},
        **{"pool_v": (7, 5), "user_v": (users, events, 3)},
    }
    given = {n: torch.from_numpy(rng.standard_normal(s)).float() for n, s in shapes.items()}
    for side, rows in (("k", 5), ("v", 7)):
        index = rng.integers(0, rows, (users, events)).astype(np.int32)
        given[f"index_{side}"] = torch.from_numpy(index)
    order = ("query", "pool_k", "index_k", "user_k", "pool_v", "index_v", "user_v")
    return [given[name] for name in order]


def vectors(pool: torch.Tensor, index: torch.Tensor, user: torch.Tensor) -> np.ndarray:
    out = np.zeros((*index.shape, pool.shape[1] + user.shape[-1]))
    for at in np.ndindex(*index.shape):
        out[at] = [*pool[index[at]].tolist(), *user[at].tolist()]
    return out


@pytest.mark.parametrize(("users", "candidates", "events"), SIZES)
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_softmax_attention(
    users: int, candidates: int, events: int, heads: int, rng: np.random.Generator
):
    query, *sides = drawn(rng, users, candidates, events)
    mask = torch.from_numpy((rng.random((users, events)) < 0.6).astype(np.int32))
    mask[:1] = 0
    got = pooled_attention(query, *sides, mask, heads, 0.25)
    assert got.shape == (users, candidates, 8)
    assert got.is_contiguous()
    key, value, width = vectors(*sides[:3]), vectors(*sides[3:]), 8 // heads
    for b, c, h in np.ndindex(users, candidates, heads):
        part = slice(width * h, width * (h + 1))
        logits = key[b, :, part] @ query[b, c, part].double().numpy() * 0.25
        logits = np.where(mask[b].numpy() != 0, logits, -1e9)
        weights = np.exp(logits - logits.max(initial=-1e9))
        expected = weights @ value[b, :, part] / max(weights.sum(), 1e-30)
        np.testing.assert_allclose(got[b, c, part], expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("users", "candidates", "events"), SIZES)
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_pointwise_attention(
    users: int, candidates: int, events: int, heads: int, rng: np.random.Generator
):
    query, *sides = drawn(rng, users, candidates, events)
    bias = torch.from_numpy(rng.standard_normal((users, candidates, events))).float()
    visible = torch.from_numpy((rng.random(bias.shape) < 0.6).astype(np.int32))
    count = torch.from_numpy(rng.integers(1, 9, (users, candidates))).float()
    got = pooled_pointwise_attention(query, *sides, bias, visible, count, heads, 0.25)
    assert got.shape == (users, candidates, 8)
    assert got.is_contiguous()
    key, value, width = vectors(*sides[:3]), vectors(*sides[3:]), 8 // heads
    for b, c, h in np.ndindex(users, candidates, heads):
        part, total = slice(width * h, width * (h + 1)), np.zeros(width)
        for n in range(events):
            x = float(key[b, n, part] @ query[b, c, part].double().numpy()) * 0.25
            x += float(bias[b, c, n])
            total += int(visible[b, c, n]) * x / (1 + np.exp(-x)) * value[b, n, part]
        np.testing.assert_allclose(got[b, c, part], total / float(count[b, c]), rtol=0, atol=3e-6)


@pytest.mark.parametrize("sizes", [(2, 3, 4), (2, 3, 0)])
def test_operators_are_registered_as_pytorch_wants_them(
    sizes: tuple[int, int, int], rng: np.random.Generator
):
    """Shapes under tracing are those of a real run, and nothing is written to an input."""
    query, *sides = drawn(rng, *sizes)
    users, candidates, events = sizes
    mask = torch.ones(users, events, dtype=torch.int32)
    bias = torch.zeros(users, candidates, events)
    visible, count = bias.int(), torch.ones(users, candidates)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(pool_gather_concat, tuple(sides[:3]), test_utils=checks)
    torch.library.opcheck(pooled_attention, (query, *sides, mask, 2, 0.5), test_utils=checks)
    torch.library.opcheck(
        pooled_pointwise_attention,
        (query, *sides, bias, visible, count, 2, 0.5),
        test_utils=checks,
    )
