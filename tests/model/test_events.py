"""However a graph is given its events, they have the same embeddings, and the models the scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckv_testing.draw import KINDS, PLAIN, RICH, draw_state, exact, make_spec
from torch import Tensor

from ckv_export.contract import (
    FEATURES,
    AttentionSpec,
    DnnSpec,
    EventForm,
    FeatureSpec,
    ModelSpec,
)
from ckv_export.graphs.decode import DecodeGraph
from ckv_export.graphs.prefill import PrefillGraph
from ckv_export.model.events import EventEmbedding, all_item_embeddings
from ckv_export.model.registry import build_model
from ckv_export.parity.inputs import CaseSize, generate_case
from ckv_export.runtimes.base import Arrays
from ckv_export.runtimes.torch import TorchRunner
from ckv_export.training import initial_state

pytestmark = pytest.mark.usefixtures("one_thread")

EXTERNAL = EventForm("external")
BY_ID = EventForm(item_key="item_id")
TIME = FeatureSpec("time", "item", "timestamp", 0)
# No unit is ever dead and no score saturated: what differs shows.
SMOOTH = DnnSpec((7,), ("gelu",), batch_norm=False, sigmoid=False)
HSTU = ModelSpec(
    "hstu", (*RICH[:4], TIME, *RICH[4:]), AttentionSpec(8, 2, 2, 1, 10, 7), SMOOTH, 30, num_layers=2
)


def draw_catalogue(spec: ModelSpec, key: str, rng: np.random.Generator) -> dict[str, Tensor]:
    """Values of every embedded item feature but `key`, for each of its ids."""
    items = next(f.vocab_size for f in spec.item_features if f.name == key)
    size = CaseSize("catalogue", 1, items, 0, 1, "full")
    inputs = generate_case(spec, size, rng).inputs
    names = [f.name for f in spec.embedded_item_features if f.name != key]
    return {name: torch.from_numpy(exact(inputs[f"history_{name}"])[0]) for name in names}


def draw_inputs(
    spec: ModelSpec, key: str, catalogue: dict[str, Tensor], rng: np.random.Generator
) -> Arrays:
    """A request with every feature, as the catalogue has it, under the names of all groups."""
    inputs = generate_case(spec, CaseSize("request", 3, 9, 2, 4, "holes"), rng).inputs
    for group in ("history", "append", "candidate"):
        ids = torch.from_numpy(inputs[f"{group}_{key}"]).long()
        inputs |= {f"{group}_{name}": table[ids].numpy() for name, table in catalogue.items()}
    return {name: exact(a) for name, a in inputs.items()}


def tensors(inputs: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a) for name, a in inputs.items()}


@pytest.mark.parametrize("key", ["item_id", "cate_id"])
@pytest.mark.parametrize("features", [PLAIN, RICH])
def test_looked_up_features_embed_as_given_ones(
    features: tuple[FeatureSpec, ...], key: str, rng: np.random.Generator
):
    if key not in {f.name for f in features}:
        # Behind all others, on the table of another feature.
        shared = FeatureSpec(key, "item", "categorical", 6, vocab_size=23, shares="item_id")
        features = (*features, shared)
    spec = make_spec("sim", features=features)
    state = draw_state(spec, rng)
    catalogue = draw_catalogue(spec, key, rng)
    assert catalogue
    given = tensors(draw_inputs(spec, key, catalogue, rng))
    looking, inline = (
        EventEmbedding(spec, state, EventForm(item_key=key), catalogue),
        EventEmbedding(spec, state),
    )
    for group in ("history", "append", "candidate"):
        expected = inline.items_of(given, group)
        assert expected.std() > 0.1
        # Ids alone: nothing but the key is there to be read.
        got = looking.items_of({f"{group}_{key}": given[f"{group}_{key}"]}, group)
        assert torch.equal(got, expected)
        assert got.shape[-1] == spec.d_event
    if spec.user_features:
        assert torch.equal(looking.user_of(given), inline.user_of(given))


def test_external_embeddings_are_taken_as_they_are(rng: np.random.Generator):
    spec = make_spec("sim", features=RICH)
    events = EventEmbedding(spec, draw_state(spec, rng), EXTERNAL)
    items = torch.randn(2, 5, spec.d_event)
    users = torch.randn(2, spec.d_user_features)
    given = {"history_embedding": items, "candidate_embedding": items + 1, "user_embedding": users}
    assert torch.equal(events.items_of(given, "history"), items)
    assert torch.equal(events.items_of(given, "candidate"), items + 1)
    assert torch.equal(events.user_of(given), users)
    assert not list(events.parameters()), "tables that no graph needs are carried along"


def test_names_that_only_differ_in_a_dot_are_two_features(rng: np.random.Generator):
    names = ("a.b", "a_b", "a%2Eb", "items")
    others = (FeatureSpec(n, "item", "categorical", 3, vocab_size=30) for n in names)
    spec = make_spec("sim", features=(PLAIN[0], *others))
    state = draw_state(spec, rng)
    catalogue = {n: torch.full((30,), i + 1, dtype=torch.int32) for i, n in enumerate(names)}
    embedded = all_item_embeddings(
        EventEmbedding(spec, state, BY_ID, catalogue), torch.tensor([7], dtype=torch.int32)
    )
    parts = [state[f"embedding.{n}.table"][i + 1] for i, n in enumerate(names)]
    assert torch.equal(embedded[0], torch.cat([state["embedding.item_id.table"][7], *parts]))


def test_all_items_embed_as_events_of_theirs(rng: np.random.Generator):
    spec = make_spec("sim", features=RICH)
    state, catalogue = draw_state(spec, rng), draw_catalogue(spec, "item_id", rng)
    ids = torch.from_numpy(rng.permutation(23)[:11].astype(np.int32))
    got = all_item_embeddings(EventEmbedding(spec, state, BY_ID, catalogue), ids)
    every = {f"event_{n}": table[ids.long()][None] for n, table in catalogue.items()}
    expected = EventEmbedding(spec, state).items_of(every | {"event_item_id": ids[None]}, "event")
    assert got.shape == (11, spec.d_event)
    assert torch.equal(got, expected[0])


@pytest.mark.parametrize("kind", [*KINDS, "hstu"])
def test_every_form_of_a_model_scores_and_caches_alike(kind: str, rng: np.random.Generator):
    spec = HSTU if kind == "hstu" else make_spec(kind, features=RICH, dnn=SMOOTH)
    state = initial_state(spec, 1) if kind == "hstu" else draw_state(spec, rng)
    catalogue = draw_catalogue(spec, "item_id", rng)
    inputs = draw_inputs(spec, "item_id", catalogue, rng)
    plain = EventEmbedding(spec, state)
    inputs |= {
        f"{group}_embedding": plain.items_of(tensors(inputs), group).numpy()
        for group in ("history", "append", "candidate")
    }
    inputs["user_embedding"] = plain.user_of(tensors(inputs)).numpy()
    expected = outputs(spec, state, plain, inputs)
    assert np.ptp(expected["score"]) > 1e-6
    for form in (EXTERNAL, BY_ID):
        looked_up = catalogue if form.item_key else {}
        events = EventEmbedding(spec, state, form, looked_up)
        got = outputs(spec, state, events, inputs)
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array, err_msg=f"{name} of {form}")


def outputs(
    spec: ModelSpec, state: dict[str, Tensor], events: EventEmbedding, inputs: Arrays
) -> Arrays:
    """Outputs of both graphs; each is fed what its own contract names and nothing else."""
    model = build_model(spec, state, events)
    prefill, decode = PrefillGraph(model), DecodeGraph(model)
    users, history = inputs["history_mask"].shape
    feeds = {n.replace("history_", "event_", 1): a for n, a in inputs.items()}
    feeds |= {
        t.name: np.zeros(t.shape({"B": users, "K": 0}), t.dtype)
        for t in prefill.io.inputs
        if t.name.startswith("past_")
    }
    kept = history - spec.cached_events(history)
    with TorchRunner(prefill, prefill.io) as runner:
        cache = runner.infer({t.name: feeds[t.name] for t in prefill.io.inputs})
    feeds = inputs | {n: np.ascontiguousarray(a[:, :, kept:]) for n, a in cache.items()}
    with TorchRunner(decode, decode.io) as runner:
        return cache | runner.infer({t.name: feeds[t.name] for t in decode.io.inputs})


def test_a_tensor_per_feature_is_the_form_unless_told(rng: np.random.Generator):
    spec = make_spec("sim")
    state = draw_state(spec, rng)
    assert EventEmbedding(spec, state).form is FEATURES
    assert build_model(spec, state).events.form == EventForm("inline", None)


def test_looked_up_values_are_no_trainable_parameters(rng: np.random.Generator):
    """Whole numbers can have no gradient: as constants of the graph they need none."""
    spec = make_spec("sim", features=RICH)
    state, catalogue = draw_state(spec, rng), draw_catalogue(spec, "item_id", rng)
    events = EventEmbedding(spec, state, BY_ID, catalogue)
    kinds = {p.dtype for p in events.parameters()}
    assert kinds == {torch.int32, torch.float32}
    assert not any(p.requires_grad for p in events.parameters())
    assert events.form == BY_ID
