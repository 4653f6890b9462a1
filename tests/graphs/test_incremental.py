"""Appending events in decode is the same as having had them in the history."""

from __future__ import annotations

import numpy as np
import pytest
from ckv_testing.draw import KINDS, draw_state, exact, make_spec

from ckv_export.contract import ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.torch import TorchRunner

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 5
SCORE = TOLERANCES["score"].absolute


class Server:
    """Serves requests from the two graphs as a host would: keeps each event's entries itself."""

    def __init__(self, spec: ModelSpec, rng: np.random.Generator, events: Arrays) -> None:
        self.spec, self.events = spec, events
        model = build_model(spec, draw_state(spec, rng))
        prefill, decode = PrefillGraph(model), DecodeGraph(model)
        self.prefill, self.decode = (TorchRunner(g, g.io) for g in (prefill, decode))
        for runner in (self.prefill, self.decode):
            runner.activate()

    def entries(self, count: int) -> Arrays:
        """Prefill the first `count` events."""
        names = [*(f.name for f in self.spec.item_features), "mask"]
        return self.prefill.infer(
            {f"event_{n}": self.events[f"history_{n}"][:, :count].copy() for n in names}
        )

    def score(self, cache: Arrays, known: int, appended: int) -> tuple[np.ndarray, Arrays]:
        """Decode with `known` events cached and the next `appended` ones given."""
        kept = known - self.spec.cached_events(known)
        feeds = {name: a[:, :, kept:].copy() for name, a in cache.items()}
        for name in [*(f.name for f in self.spec.item_features), "mask"]:
            history = self.events[f"history_{name}"]
            feeds[f"history_{name}"] = history[:, :known].copy()
            feeds[f"append_{name}"] = history[:, known : known + appended].copy()
        rest = ("candidate_", "user_")
        feeds |= {n: a for n, a in self.events.items() if n.startswith(rest)}
        out = self.decode.infer(feeds)
        score = out.pop("score")
        return score, {n.replace("append_", "cache_", 1): a for n, a in out.items()}


def serve(kind: str, alignment: str, rng: np.random.Generator, events: int) -> Server:
    """A server of a drawn model, with `events` events; user 0 has all of them, the last none."""
    spec = make_spec(kind, "rich, fuxictr mask, 2 heads", mask_alignment=alignment, window=WINDOW)
    case = generate_case(spec, CaseSize("events", 4, events, 0, 3), rng)
    inputs = {name: exact(a) for name, a in case.inputs.items()}
    for name in inputs:
        if name.startswith("history_"):
            inputs[name][-1] = 0
    return Server(spec, rng, inputs)


def joined(cache: Arrays, new: Arrays) -> Arrays:
    return {name: np.concatenate([a, new[name]], axis=2) for name, a in cache.items()}


def assert_same_entries(got: Arrays, expected: Arrays) -> None:
    """Row numbers exactly; user parts within a rounding of products that are batched otherwise."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        bound = 0.0 if name.endswith("_index") else 1e-6
        np.testing.assert_allclose(got[name], array, rtol=bound, atol=bound, err_msg=name)


@pytest.mark.parametrize("alignment", ["aligned", "fuxictr"])
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_append_equal_prefill_of_all(
    kind: str, alignment: str, rng: np.random.Generator
):
    server = serve(kind, alignment, rng, events=2 * WINDOW + 3)
    sizes = [0, 1, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW]
    for total in sizes:
        everything = server.entries(total)
        expected, _ = server.score(everything, total, 0)
        for known in {0, 1, total - 1, total - 2, WINDOW - 1, WINDOW} & set(range(total + 1)):
            cache = server.entries(known)
            score, new = server.score(cache, known, total - known)
            print(f"{known} cached, {total - known} appended")
            np.testing.assert_allclose(score, expected, rtol=0, atol=SCORE)
            assert_same_entries(joined(cache, new), everything)


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_events_appended_one_by_one(kind: str, rng: np.random.Generator):
    server = serve(kind, "fuxictr", rng, events=50)
    cache = server.entries(0)
    moved = 0
    for known in range(50):
        score, new = server.score(cache, known, 1)
        cache = joined(cache, new)
        expected, nothing = server.score(server.entries(known + 1), known + 1, 0)
        np.testing.assert_allclose(score, expected, rtol=0, atol=SCORE)
        assert all(a.shape[2] == 0 for a in nothing.values())
        before, _ = server.score(server.entries(known), known, 0)
        moved += not np.allclose(score, before, rtol=0, atol=10 * SCORE)
    assert_same_entries(cache, server.entries(50))
    assert moved > 25, "appending hardly ever changed a score: this test proved nothing"


def test_padding_appended_to_padding_changes_no_score(rng: np.random.Generator):
    server = serve("sdim", "aligned", rng, events=12)
    first, _ = server.score(server.entries(6), 6, 0)
    later, _ = server.score(server.entries(6), 6, 6)
    assert np.isfinite(first).all()
    # Padding embeds alike at every position, so a uniform mean over it does not depend on which.
    np.testing.assert_allclose(later[-1], first[-1], rtol=0, atol=SCORE)
    assert not np.allclose(later[:-1], first[:-1], rtol=0, atol=SCORE), "nor does any other event"
