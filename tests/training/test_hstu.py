"""HSTU with everything at once is HSTU from event to event, from candidate to candidate."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ckv_export.model.reference_hstu import HstuReference
from ckv_export.training import demo_data, initial_state
from ckv_export.training.evaluate import pool_rows, rows_used
from ckv_export.training.hstu import HstuAtOnce, training_model


@pytest.fixture
def spec(small_spec):
    return dataclasses.replace(small_spec("hstu"), max_len=14)


def biased_state(spec):
    """A state whose biases are no zeros, with tables shorter than the histories."""
    state = initial_state(spec, 0)
    for name in [name for name in state if name.endswith("_bias")]:
        size = 9 if "position" in name else 20
        state[name] = torch.randn(size, generator=torch.Generator().manual_seed(size))
    return state


@pytest.mark.parametrize("timed", [True, False])
def test_scores_and_cache_are_the_references(spec, timed: bool) -> None:
    if not timed:
        features = tuple(f for f in spec.features if f.kind != "timestamp")
        spec = dataclasses.replace(spec, features=features)
    state = biased_state(spec)
    clicks = demo_data(spec, 0, train=24, held_out=1, candidates=3).train
    slow, fast = HstuReference(spec, state), HstuAtOnce(spec, state)
    asked = clicks.history, clicks.mask, clicks.candidates, clicks.user
    torch.testing.assert_close(fast.score(*asked), slow.score(*asked))
    pairs = zip(*(m.cache(clicks.history, clicks.mask) for m in (fast, slow)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.user["k"][clicks.mask], other.user["k"][clicks.mask])
        assert torch.equal(one.index["v"][clicks.mask], other.index["v"][clicks.mask])


def test_the_time_between_events_is_never_rounded_to_another_bucket(spec) -> None:
    state = initial_state(spec, 0)
    state["attention.0.time_bias"] = torch.arange(31.0)
    apart = [0, 1, 2, 3, 4, 2**25 - 1, 2**25, 2**31 - 1, -1, -1000]  # below 0: clocks differ
    times, mask = torch.tensor([[0, n] for n in apart], dtype=torch.int32), torch.ones(10, 2).bool()
    biases = HstuAtOnce(spec, state)._biases(0, mask, times)[:, 1, 0]
    assert biases.tolist() == [0, 0, 1, 1, 2, 24, 25, 30, 0, 0]


def test_rows_of_every_layer_are_counted(spec) -> None:
    state = initial_state(spec, 0)
    clicks = demo_data(spec, 0, train=24, held_out=1, candidates=3).train
    layers = HstuAtOnce(spec, state).cache(clicks.history, clicks.mask)
    wanted = {
        side: sum(len(entries.index[side][clicks.mask].unique()) for entries in layers)
        for side in "kv"
    }
    assert rows_used(spec, state, clicks) == wanted
    assert pool_rows(spec) == {"k": 2 * 24, "v": 2 * 24}


def test_router_losses_are_of_every_layer_and_of_the_candidates_too(spec) -> None:
    model = training_model(spec, initial_state(spec, 0))
    clicks = demo_data(spec, 0, train=8, held_out=1, candidates=3).train
    model.losses(clicks)
    assert len(model._router_losses) == 2 * 2  # layers, K and V
    real = model._real(17)
    assert torch.equal(real[:, :14], clicks.mask)
    assert real[:, 14:].all()
