"""Router, cached entries and assembly of one layer against the formulas, one event at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ckv_testing.draw import draw_state, halves, make_spec

from ckv_export.contract import AttentionSpec, CacheSpec
from ckv_export.model.collective import CacheEntries, CollectiveAttention, Router, assembled

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 10, 13, 16, 17, 101])
@pytest.mark.parametrize("bias", [True, False])
def test_router_takes_the_first_of_the_best_rows(rows: int, bias: bool, rng: np.random.Generator):
    """Rows are whole halves, so ties are exact; 10, 13, 17 and 101 need padded groups."""
    weight, offset = halves(rng, (rows, 4), 1), halves(rng, (rows,), 1)
    x = halves(rng, (3, 20, 4), 2)
    x[0, :5] = 0.0
    router = Router(tensor(weight), tensor(offset) if bias else None)
    got = router(tensor(x))
    assert got.dtype == torch.int32
    tied = 0
    for b, t in np.ndindex(3, 20):
        logits = weight @ x[b, t] + (offset if bias else 0.0)
        best = [j for j in range(rows) if logits[j] == logits.max()]
        tied += len(best) > 1
        assert got[b, t] == best[0]
    # Without a bias the five zero events tie all rows.
    assert bias or tied >= 5 * (rows > 1)


def test_router_where_only_the_last_row_wins():
    """The copies that pad the last group must not be named."""
    for rows in range(1, 40):
        weight = torch.zeros(rows, 1)
        weight[-1] = 1.0
        router = Router(weight, None)
        assert router(torch.ones(1, 1, 1)).item() == rows - 1
        assert router(-torch.ones(1, 1, 1)).item() == 0


def test_router_of_no_events():
    assert Router(torch.ones(7, 3), None)(torch.ones(2, 0, 3)).shape == (2, 0)


def test_nan_in_an_event_still_routes_to_an_existing_row(rng: np.random.Generator):
    """Such an event spoils its own user's score, not the memory behind the pool or the batch."""
    weight = halves(rng, (13, 4), 2)
    x = halves(rng, (2, 6, 4), 2)
    expected = Router(tensor(weight), None)(tensor(x))
    x[1, 3] = np.nan
    x[1, 5, 0] = np.nan
    got = Router(tensor(weight), None)(tensor(x))
    assert 0 <= int(got.min()) <= int(got.max()) < 13
    assert torch.equal(got[0], expected[0])


ATTENTIONS = {
    "both shared": AttentionSpec(8, 2, 2, 3, 10, 7),
    "K plain": AttentionSpec(8, 2, 8, 3, 0, 7, user_bias=True, router_bias=True),
    "V plain": AttentionSpec(8, 4, 1, 8, 5, 0, use_silu=False),
    "no user part": AttentionSpec(8, 1, 0, 0, 5, 6),
}


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_entries_and_vectors_of_an_event(attention: AttentionSpec, rng: np.random.Generator):
    spec = make_spec("sim", attention=attention)
    state = draw_state(spec, rng)
    layer = CollectiveAttention(attention, 0, state)
    x = halves(rng, (2, 5, spec.d_event), 4)
    activate = silu if attention.use_silu else np.positive
    entries = layer.encode(tensor(x))
    for name in "kv":
        pool, (index, user) = layer.pools["kv".index(name)], entries.side(name)
        assert (index is None) == (not attention.shared(name))
        vectors = assembled(pool, index, user, torch.float32)
        parts = {n: state.get(f"attention.0.{name}.{n}") for n in ("weight", "bias", "pool")}
        for b, t in np.ndindex(2, 5):
            u = parts["weight"].double().numpy() @ x[b, t]
            u = u if parts["bias"] is None else u + parts["bias"].double().numpy()
            if attention.shared(name):
                row = parts["pool"][index[b, t]].double().numpy()
                u = np.concatenate([row, activate(u)])
            vector = activate(u)
            # fp32 products of a few numbers around 1
            np.testing.assert_allclose(vectors[b, t], vector, rtol=1e-5, atol=1e-6)
            cached = user[b, t].numpy()
            np.testing.assert_array_equal(cached, vectors[b, t, 8 - len(cached) :])


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_entries_follow_the_order_of_the_cache(rng: np.random.Generator):
    for attention in ATTENTIONS.values():
        spec = make_spec("sim", attention=attention)
        cache = CacheSpec.of(spec)
        layer = CollectiveAttention(attention, 0, draw_state(spec, rng))
        first, second = (layer.encode(tensor(halves(rng, (2, n, spec.d_event), 2))) for n in (3, 4))
        again = CacheEntries.of(cache, first.tensors(cache))
        for field in dataclasses.fields(CacheEntries):
            assert getattr(again, field.name) is getattr(first, field.name)
        joined = first.then(second).tensors(cache)
        for got, a, b in zip(joined, first.tensors(cache), second.tensors(cache), strict=True):
            assert torch.equal(got, torch.cat([a, b], dim=1))
        taken = second.take(torch.tensor([3, 0])).tensors(cache)
        for got, b in zip(taken, second.tensors(cache), strict=True):
            assert torch.equal(got, b[:, [3, 0]])
