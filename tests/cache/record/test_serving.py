"""A server that keeps records, and nothing else of its users, scores as one that keeps tensors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ckv_testing.draw import KINDS, draw_state, exact, make_spec
from ckv_testing.hstu import SPEC as HSTU
from ckv_testing.records import manifest

from ckv_export.cache.record import RecordLayout, append, batch, empty, encode, past, user_events
from ckv_export.contract import ModelSpec
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.registry import build_model
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.parity.tolerances import TOLERANCES
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, EVENTS = 5, 12
SCORE = TOLERANCES["score"].absolute


class Server:
    """The two graphs of a drawn model."""

    def __init__(self, spec: ModelSpec, rng: np.random.Generator) -> None:
        self.spec = spec
        state = initial_state(spec, 0) if spec.kind == "hstu" else draw_state(spec, rng)
        model = build_model(spec, state)
        graphs = PrefillGraph(model), DecodeGraph(model)
        self.prefill, self.decode = (TorchRunner(g, g.io) for g in graphs)
        self.prefill.activate()
        self.decode.activate()
        self.layout = RecordLayout.of(dataclasses.replace(manifest(), model=spec), "float32")


def users(spec: ModelSpec, rng: np.random.Generator) -> Arrays:
    """Inputs with left-padded histories of `EVENTS`, the first full, none empty, and 2 new ones."""
    inputs = generate_case(spec, CaseSize("events", USERS, EVENTS, 2, 3, "full"), rng).inputs
    inputs = {name: exact(a) for name, a in inputs.items()}
    lengths = np.array([EVENTS, 1, *rng.integers(2, EVENTS, USERS - 2)])
    mask = np.arange(EVENTS) >= EVENTS - lengths[:, None]
    for name, a in inputs.items():
        if name.startswith("history_"):
            a[~mask] = 0
    return inputs | {"history_mask": mask}


def prefilled(server: Server, inputs: Arrays, events: slice) -> Arrays:
    """Inputs and outputs of prefill for some of the events, nothing before them."""
    feeds = {
        f"event_{name.removeprefix('history_')}": a[:, events].copy()
        for name, a in inputs.items()
        if name.startswith("history_")
    }
    if server.spec.kind == "hstu":
        feeds |= past(server.layout, [empty(server.layout)] * USERS, 0)
    return feeds | server.prefill.infer(feeds)


@pytest.mark.parametrize("kind", [*KINDS, "hstu"])
def test_scores_and_appended_records(kind, rng):
    spec = HSTU if kind == "hstu" else make_spec(kind, window=5)
    server = Server(spec, rng)
    layout, inputs = server.layout, users(spec, rng)
    tensors = prefilled(server, inputs, slice(None))
    records = [
        encode(layout, user_events(layout, tensors, u, graph="prefill")) for u in range(USERS)
    ]
    request = {n: a for n, a in inputs.items() if n.startswith(("append_", "candidate_", "user_"))}
    names = {tensor.name for tensor in server.decode.io.inputs}
    direct = {n: a for n, a in (tensors | inputs).items() if n in names}
    for name, a in direct.items():
        if name.startswith("cache_"):
            direct[name] = a[:, :, EVENTS - spec.cached_events(EVENTS) :].copy()
    wanted = server.decode.infer(direct)
    got = server.decode.infer(request | batch(layout, records, EVENTS))
    np.testing.assert_allclose(got["score"], wanted["score"], rtol=0, atol=SCORE)

    grown = [
        append(layout, record, user_events(layout, inputs | got, u))
        for u, record in enumerate(records)
    ]
    later = server.decode.infer(
        {n: a[:, :0] if n.startswith("append_") else a for n, a in request.items()}
        | batch(layout, grown, EVENTS + 2)
    )
    np.testing.assert_allclose(later["score"], wanted["score"], rtol=0, atol=SCORE)


def test_a_long_history_of_hstu_goes_through_prefill_in_pieces(rng):
    server = Server(HSTU, rng)
    layout, inputs = server.layout, users(HSTU, rng)
    whole = prefilled(server, inputs, slice(None))
    records = [empty(layout)] * USERS
    for start in range(0, EVENTS, 5):
        feeds = {
            f"event_{n.removeprefix('history_')}": a[:, start : start + 5].copy()
            for n, a in inputs.items()
            if n.startswith("history_")
        }
        feeds |= past(layout, records)
        tensors = feeds | server.prefill.infer(feeds)
        records = [
            append(layout, record, user_events(layout, tensors, u, graph="prefill"))
            for u, record in enumerate(records)
        ]
    at_once = [encode(layout, user_events(layout, whole, u, graph="prefill")) for u in range(USERS)]
    pieces, wanted = batch(layout, records), batch(layout, at_once)
    assert pieces.keys() == wanted.keys()
    for name, a in wanted.items():
        np.testing.assert_allclose(pieces[name], a, rtol=0, atol=1e-5, err_msg=name)
