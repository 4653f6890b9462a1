"""Generated requests: shapes, padding, times and what each graph is fed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ckv_testing.draw import KINDS, RICH, make_spec
from ckv_testing.records import TIME

from ckv_export.bench.workload import NOW, Request, Sizes, draw_request
from ckv_export.contract import FEATURES, EventForm, GraphSpec, ModelSpec, decode_io, prefill_io
from ckv_export.errors import InputError
from ckv_export.training import demo_spec

SIM = make_spec("sim", features=(*RICH, TIME))
HSTU = dataclasses.replace(demo_spec("hstu"), features=(*RICH, TIME))
FORMS = {
    "features": FEATURES,
    "one id": EventForm(item_key="item_id"),
    "external": EventForm("external"),
    "pools given": EventForm(pools="float32"),
}


def graphs_of(spec: ModelSpec, form: EventForm) -> dict[str, GraphSpec]:
    return {"prefill": prefill_io(spec, form), "decode": decode_io(spec, form)}


def draw(
    spec: ModelSpec,
    rng: np.random.Generator,
    sizes: Sizes,
    lengths: tuple[int, ...] | None = None,
    form: EventForm = FEATURES,
) -> Request:
    return draw_request(spec, graphs_of(spec, form), sizes, rng, lengths)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("spec", [SIM, HSTU, *map(make_spec, KINDS)], ids=lambda s: s.kind)
@pytest.mark.parametrize("sizes", [Sizes(3, 7, 2, 5), Sizes(1, 0, 0, 1)], ids=["some", "nothing"])
def test_graphs_are_fed_all_their_inputs_but_cache_and_pools(
    spec: ModelSpec, form: EventForm, sizes: Sizes, rng: np.random.Generator
):
    graphs = graphs_of(spec, form)
    request = draw(spec, rng, sizes, form=form)
    axes = {"B": sizes.batch, "S": sizes.history, "T": sizes.appended, "C": sizes.candidates}
    cache = {
        t.name: np.zeros(t.shape(axes | {"K": spec.cached_events(sizes.history)}), t.dtype)
        for t in graphs["decode"].inputs
        if t.name.startswith("cache_")
    }
    fed = {
        "prefill": (request.prefill_feeds(graphs["prefill"], spec), axes | {"K": 0}),
        "decode": (request.decode_feeds(graphs["decode"], cache), axes),
    }
    for name, (feeds, sized) in fed.items():
        wanted = [t for t in graphs[name].inputs if not t.name.startswith("pool_")]
        assert feeds.keys() == {t.name for t in wanted}
        for tensor in wanted:
            array = feeds[tensor.name]
            assert array.dtype == tensor.dtype, tensor.name
            if not tensor.name.startswith("cache_"):
                assert array.shape == tensor.shape(sized), tensor.name


@pytest.mark.parametrize("spec", [SIM, HSTU], ids=lambda s: s.kind)
def test_histories_are_padded_on_the_left_and_nothing_else_is(
    spec: ModelSpec, rng: np.random.Generator
):
    """As many events appended as there are of history: their masks have one shape."""
    lengths = (0, 2, 4)
    request = draw(spec, rng, Sizes(3, 4, 4, 4), lengths)
    assert request.real == lengths
    expected = [[False] * 4, [False, False, True, True], [True] * 4]
    assert request.inputs["history_mask"].tolist() == expected
    assert request.inputs["append_mask"].all()
    mask = np.array(expected)
    feeds = request.prefill_feeds(prefill_io(spec), spec)
    assert feeds["event_mask"].tolist() == expected
    for name in ("item_id", "tags", "time", "image"):
        events = feeds[f"event_{name}"]
        assert not events[~mask].any(), name
        assert events[mask].all(), name
        assert request.inputs[f"append_{name}"].all(), name
        assert request.inputs[f"candidate_{name}"].all(), name
        if f"history_{name}" in request.inputs:
            np.testing.assert_array_equal(events, request.inputs[f"history_{name}"])


@pytest.mark.parametrize("spec", [SIM, HSTU], ids=lambda s: s.kind)
def test_times_rise_and_end_before_what_comes_now(spec: ModelSpec, rng: np.random.Generator):
    request = draw(spec, rng, Sizes(2, 1000, 3, 5))
    times = request.prefill_feeds(prefill_io(spec), spec)["event_time"].astype(np.int64)
    assert (np.diff(times, axis=1) > 0).all()
    assert times.min() > 0
    assert times.max() < NOW
    assert np.diff(times, axis=1).mean() == pytest.approx(3600, rel=0.2)  # an hour, typically
    assert (request.inputs["append_time"] == NOW).all()
    assert (request.inputs["candidate_time"] == NOW).all()


def test_ids_lie_in_their_tables(rng: np.random.Generator):
    request = draw(SIM, rng, Sizes(8, 50, 5, 50))
    tables = {f.name: f.vocab_size for f in SIM.features if f.kind in ("categorical", "sequence")}
    seen = 0
    for name, array in request.inputs.items():
        size = tables.get(name.split("_", 1)[1])
        if size is not None:
            assert 1 <= array.min() <= array.max() < size, name
            seen += 1
    assert seen > len(tables)


def test_without_scoring_one_candidate_is_left_and_all_else_is_as_it_was(rng: np.random.Generator):
    request = draw(SIM, rng, Sizes(2, 6, 3, 5), (6, 1))
    alone = request.without_scoring()
    assert alone.sizes == Sizes(2, 6, 3, 1)
    assert alone.real == request.real
    assert alone.inputs.keys() == request.inputs.keys()
    for name, array in request.inputs.items():
        left = array[:, :1] if name.startswith("candidate_") else array
        np.testing.assert_array_equal(alone.inputs[name], left)
        assert alone.inputs[name].flags.c_contiguous


def test_the_cached_events_are_those_of_the_window():
    assert Sizes(2, 100, 3, 5).axes(SIM) == {
        **{"B": 2, "S": 100, "T": 3, "C": 5},
        "K": SIM.window - 1,
    }
    assert Sizes(2, 100, 3, 5).axes(HSTU)["K"] == 100
    assert Sizes(2, 0, 3, 5).axes(SIM)["K"] == 0


@pytest.mark.parametrize("lengths", [(), (3,), (3, 3, 3), (3, 5), (-1, 3)])
def test_lengths_that_do_not_fit_are_refused(lengths: tuple, rng: np.random.Generator):
    with pytest.raises(InputError, match="lengths must be 2 numbers in 0 to 4, one for each user"):
        draw(SIM, rng, Sizes(2, 4, 1, 1), lengths)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"batch": 0}, "batch must lie in 1 to 10,000,000, got 0"),
        ({"history": -1}, "history must lie in 0 to 10,000,000, got -1"),
        ({"appended": -1}, "appended must lie in 0 to"),
        ({"candidates": 0}, "candidates must lie in 1 to 10,000,000, got 0"),
        ({"candidates": 10**7 + 1}, "got 10,000,001"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict, says: str):
    with pytest.raises(InputError, match=says):
        Sizes().replaced(**sizes)
