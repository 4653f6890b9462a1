"""HSTU's cache however it came about: in one prefill, in chunks, or event by event in decode."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from ckv_testing.draw import DNN, ODD_DNN, PLAIN, RICH
from ckv_testing.hstu_models import run

from ckv_export.contract import AttentionSpec, FeatureSpec, ModelSpec, decode_io, prefill_io
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model
from ckv_export.parity.inputs import CaseSize, Fill, generate_case
from ckv_export.runtimes.base import Arrays
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")

# All of it runs in float64: products are batched otherwise in every chunk, and no rounding of
# theirs may flip a row.
CLOSE = 1e-10

TIME = FeatureSpec("time", "item", "timestamp", 0)
SPECS = {
    "plain": ModelSpec(
        "hstu", PLAIN, AttentionSpec(8, 2, 2, 1, 10, 7), DNN, max_len=60, num_layers=2
    ),
    "times, K not shared": ModelSpec(
        "hstu", (*PLAIN, TIME), AttentionSpec(6, 3, 6, 2, 0, 5), DNN, max_len=60, num_layers=2
    ),
    "times, every feature, three layers": ModelSpec(
        "hstu", (TIME, *RICH), AttentionSpec(8, 4, 1, 3, 6, 9), ODD_DNN, max_len=60, num_layers=3
    ),
}
SOME_TIMES = "times, every feature, three layers"


class Server:
    """Serves a drawn model as a host would, and keeps each event's entries itself."""

    def __init__(self, name: str, rng: np.random.Generator, events: int, fill: Fill) -> None:
        self.spec = SPECS[name]
        model = build_model(self.spec, self.draw(rng))
        self.prefill_graph, self.decode_graph = PrefillGraph(model), DecodeGraph(model)
        size = CaseSize("events", 3, events, 0, 3, fill)
        self.inputs = generate_case(self.spec, size, rng).inputs
        empty = {"B": len(self.inputs["history_mask"]), "S": 0}
        self.nothing = {
            t.name: np.zeros(t.shape(empty), t.dtype) for t in self.prefill_graph.io.outputs
        }

    def draw(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Biases of distances and times are no zeros, and shorter than histories get."""
        state = initial_state(self.spec, int(rng.integers(2**32)))
        drawn = {
            name: torch.from_numpy(rng.standard_normal(11))
            for name in state
            if name.endswith(("position_bias", "time_bias"))
        }
        return {name: tensor.double() for name, tensor in (state | drawn).items()}

    def group(self, group: str, start: int, end: int) -> Arrays:
        """The events from `start` to `end` under the names of `group`."""
        names = [*(f.name for f in self.spec.item_features), "mask"]
        return {f"{group}_{n}": self.inputs[f"history_{n}"][:, start:end] for n in names}

    def prefill(self, past: Arrays, start: int, end: int) -> Arrays:
        """The entries of some events after `past`, which has those of the events before them."""
        known = self.group("past", start - past["cache_v_user"].shape[2], start)
        known |= {name.replace("cache_", "past_", 1): a for name, a in past.items()}
        return run(self.prefill_graph, known | self.group("event", start, end))

    def chunked(self, cuts: Iterable[int]) -> Arrays:
        """The entries of all events, prefilled from cut to cut."""
        cache = self.nothing
        for start, end in itertools.pairwise(cuts):
            cache = joined(cache, self.prefill(cache, start, end))
        return cache

    def decode(self, cache: Arrays, known: int, appended: int) -> tuple[np.ndarray, Arrays]:
        """Scores and new entries with `known` events cached and the next `appended` given."""
        feeds = dict(self.inputs) | cache | self.group("history", 0, known)
        out = run(self.decode_graph, feeds | self.group("append", known, known + appended))
        score = out.pop("score")
        return score, {n.replace("append_", "cache_", 1): a for n, a in out.items()}


def joined(cache: Arrays, new: Arrays) -> Arrays:
    return {name: np.concatenate([a, new[name]], axis=2) for name, a in cache.items()}


def first(cache: Arrays, events: int) -> Arrays:
    return {name: a[:, :, :events] for name, a in cache.items()}


def assert_same_entries(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        bound = 0.0 if name.endswith("_index") else CLOSE
        np.testing.assert_allclose(got[name], array, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("fill", ["full", "ragged", "holes"])
@pytest.mark.parametrize("name", SPECS)
def test_any_chunking_of_prefill_gives_one_cache(name: str, fill: Fill, rng: np.random.Generator):
    events = 20
    server = Server(name, rng, events, fill)
    whole = server.chunked([0, events])
    assert whole["cache_v_user"].shape[2] == events
    assert_same_entries(server.chunked(range(events + 1)), whole)
    for _ in range(4):
        # Drawn with repetition: some chunks are empty, at the ends too.
        cuts = [0, *sorted(int(c) for c in rng.integers(0, events + 1, 6)), events]
        print(cuts)
        assert_same_entries(server.chunked(cuts), whole)
    assert_same_entries(server.chunked([0, 0, 1, 1, events, events]), whole)


@pytest.mark.parametrize("name", SPECS)
def test_a_chunk_that_forgets_its_past_gets_other_entries(name: str, rng: np.random.Generator):
    """But in the first layer, which reads the event alone: what the test above rests on."""
    server = Server(name, rng, 12, "full")
    whole = server.chunked([0, 12])["cache_v_user"][:, :, 6:]
    later = server.prefill(server.nothing, 6, 12)["cache_v_user"]
    np.testing.assert_allclose(later[:, 0], whole[:, 0], rtol=0, atol=CLOSE)
    assert np.abs(later[:, 1:] - whole[:, 1:]).max() > 1e-6


@pytest.mark.parametrize("fill", ["full", "ragged", "holes"])
@pytest.mark.parametrize("name", SPECS)
def test_prefill_and_append_equal_prefill_of_all(name: str, fill: Fill, rng: np.random.Generator):
    server = Server(name, rng, 9, fill)
    for total in (0, 1, 2, 9):
        everything = server.chunked([0, total])
        expected, nothing = server.decode(everything, total, 0)
        assert all(a.shape[2] == 0 for a in nothing.values())
        for known in range(total + 1):
            cache = first(everything, known)
            score, new = server.decode(cache, known, total - known)
            print(f"{known} cached, {total - known} appended")
            np.testing.assert_allclose(score, expected, rtol=0, atol=CLOSE)
            assert_same_entries(joined(cache, new), everything)


@pytest.mark.parametrize("name", SPECS)
def test_fifty_events_appended_one_by_one(name: str, rng: np.random.Generator):
    server = Server(name, rng, 50, "full")
    cache, moved, last = server.nothing, 0, server.decode(server.nothing, 0, 0)[0]
    for known in range(50):
        score, new = server.decode(cache, known, 1)
        cache = joined(cache, new)
        prefilled = server.chunked([0, known + 1])
        expected, _ = server.decode(prefilled, known + 1, 0)
        np.testing.assert_allclose(score, expected, rtol=0, atol=CLOSE)
        assert_same_entries(cache, prefilled)
        moved += bool(np.abs(score - last).max() > 1e-6)
        last = score
    assert moved > 45, "appending hardly ever changed a score: this test proved nothing"


@pytest.mark.parametrize("name", SPECS)
def test_later_events_change_no_earlier_entry(name: str, rng: np.random.Generator):
    server = Server(name, rng, 15, "holes")
    whole = server.chunked([0, 15])
    for events in range(15):
        assert_same_entries(server.chunked([0, events]), first(whole, events))


def test_candidates_change_no_entry(rng: np.random.Generator):
    server = Server(SOME_TIMES, rng, 8, "full")
    cache = server.chunked([0, 6])
    base = server.decode(cache, 6, 2)[1]
    other = generate_case(server.spec, CaseSize("other", 3, 8, 0, 11), rng).inputs
    server.inputs |= {n: a for n, a in other.items() if n.startswith("candidate_")}
    score, entries = server.decode(cache, 6, 2)
    assert score.shape == (3, 11)
    assert_same_entries(entries, base)


@pytest.mark.parametrize("name", SPECS)
def test_outputs_have_the_shapes_and_dtypes_of_the_contract(name: str):
    spec = SPECS[name]
    model = build_model(spec, initial_state(spec, 0))
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    assert prefill.io == prefill_io(spec)
    assert decode.io == decode_io(spec)
    choices = {"B": (0, 1, 2), "S": (0, 1, 4), "K": (0, 1, 3), "T": (0, 1, 3), "C": (0, 1, 3)}
    for graph in (prefill, decode):
        axes = sorted({a for t in graph.io.inputs for a in t.axes if isinstance(a, str)})
        for chosen in itertools.product(*(choices[axis] for axis in axes)):
            sizes = dict(zip(axes, chosen, strict=True))
            given = [torch.from_numpy(np.zeros(t.shape(sizes), t.dtype)) for t in graph.io.inputs]
            outputs = graph(*given)
            got = [(tuple(o.shape), str(o.dtype).removeprefix("torch.")) for o in outputs]
            assert got == [(t.shape(sizes), t.dtype) for t in graph.io.outputs], sizes
            assert all(o.isfinite().all() for o in outputs), sizes
