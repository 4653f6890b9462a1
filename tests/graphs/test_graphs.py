"""The modules have exactly the contract's inputs and outputs, at every size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ckv_testing.draw import KINDS, VARIANTS, draw_state, make_spec

from ckv_export.contract import GraphSpec, decode_io, prefill_io
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model, build_reference

DTYPES = {"int32": torch.int32, "float32": torch.float32}
PARTS = ("index", "user")
pytestmark = pytest.mark.usefixtures("one_thread")


def zeros(io: GraphSpec, sizes: dict[str, int]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.zeros(t.shape(sizes), t.dtype)) for t in io.inputs]


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_what_the_reference_caches_of_an_event_of_zeros(
    variant: str, rng: np.random.Generator
):
    spec = make_spec("sim", variant)
    state = draw_state(spec, rng)
    padding = PrefillGraph(build_model(spec, state)).padding()
    assert bool(padding) == spec.attention.user_bias
    event = {f.name: torch.zeros(1, 1, *f.inner).to(DTYPES[f.dtype]) for f in spec.item_features}
    [entries] = build_reference(spec, state).cache(event, torch.zeros(1, 1, dtype=torch.bool))
    for name, tensor in [(f"{s}_{p}", getattr(entries, p)[s]) for s in "kv" for p in PARTS]:
        wanted = [] if tensor is None else tensor.flatten().tolist()
        given = padding.get(f"cache_{name}", [0.0] * len(wanted))
        assert given == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_shapes_and_dtypes_of_the_contract(
    kind: str, variant: str, rng: np.random.Generator
):
    spec = make_spec(kind, variant)
    model = build_model(spec, draw_state(spec, rng))
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    assert prefill.io == prefill_io(spec)
    assert decode.io == decode_io(spec)
    window = spec.window - 1
    for users, history, appended, candidates in itertools.product(
        (0, 2), (0, 1, window, window + 2), (0, 1, 3), (0, 3)
    ):
        cached = min(history, window)
        sizes = dict(zip("BSKTC", (users, history, cached, appended, candidates), strict=True))
        for graph in (prefill, decode):
            outputs = graph(*zeros(graph.io, sizes))
            got = [(tuple(o.shape), str(o.dtype).removeprefix("torch.")) for o in outputs]
            assert got == [(t.shape(sizes), t.dtype) for t in graph.io.outputs], sizes
            assert all(o.isfinite().all() for o in outputs), sizes


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_nothing_but_padding_are_finite_and_alike(kind: str, rng: np.random.Generator):
    """All-zero events, all masked: no NaN, and the same score for each of the candidates."""
    spec = make_spec(kind, "rich, fuxictr mask, 2 heads")
    model = build_model(spec, draw_state(spec, rng))
    graph = DecodeGraph(model)
    for history in (0, 1, 3, 4, 5, 9):
        sizes = {"B": 2, "S": history, "K": min(history, 4), "T": 1, "C": 3}
        score = graph(*zeros(graph.io, sizes))[0]
        assert score.isfinite().all()
        torch.testing.assert_close(score, score[:1, :1].expand_as(score), rtol=0, atol=1e-6)
